"""The holder is killed as often as not, hundreds of times: nobody hangs, nobody is inside twice.

MPROC_EXT_STORM=full runs the numbers that CI runs once: 10,000 kills of each kind by fork (3,000
where locks are made), 300 by the other methods.  With a core that was built with
MPROC_EXT_KILL_POINTS=1 half of those who do not hold the lock die in the middle of what the core
does.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import ours, run_program
from sync_storm_work import KINDS

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("sync_storm.py")
FULL = os.environ.get("MPROC_EXT_STORM") == "full"
KILLS = dict.fromkeys(KINDS, 10_000) | {"Making": 3_000}

pytestmark = pytest.mark.skipif(
    not all(ours(name) for name in ("Lock", "Condition", "Event", "Barrier")),
    reason="these are the stdlib's, which hang",
)


def blow(kind, kills, method, at_once, limit):
    out = run_program(PROGRAM, kind, kills, "--method", method, "--at-once", at_once, limit=limit)
    print(f"\n{out}", end="")
    found = re.search(rf"^{kind}, {method}: (\d+) kills, .* longest wait [\d.]+ ms$", out, re.M)
    assert found
    assert int(found[1]) >= kills


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_storm(kind):
    blow(kind, KILLS[kind] if FULL else 300, "fork", 8 if FULL else 3, 1100 if FULL else 110)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("kind", KINDS)
def test_storm_of_programs(kind, method):
    blow(kind, 300 if FULL else 12, method, 4 if FULL else 1, 1100 if FULL else 110)


def test_the_build_is_the_one_that_was_wanted():
    if os.environ.get("MPROC_EXT_KILL_POINTS", "0") in ("", "0"):
        pytest.skip("no core with kill points was asked for")
    assert len(mproc_ext._core.kill_points()) > 40
