"""The holder is killed as often as not, hundreds of times: nobody hangs, nobody is inside twice.

MPROC_EXT_STORM=thorough, which CI runs, kills 3,000 of each kind by fork, and 60 by the other
methods; MPROC_EXT_STORM=full 10,000 (3,000 where locks are made) and 300.  With a core that was
built with MPROC_EXT_KILL_POINTS=1 half of those who do not hold the lock die in the middle of what
the core does.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import ours, run_program
from sync_storm_work import KINDS

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("sync_storm.py")
HOW = os.environ.get("MPROC_EXT_STORM", "short")
KILLS = {"full": 10_000, "thorough": 3_000}.get(HOW, 300)
KILLS_OF_PROGRAMS = {"full": 300, "thorough": 60}.get(HOW, 12)
LIMIT = 110 if HOW == "short" else 1100

pytestmark = pytest.mark.skipif(
    not all(ours(name) for name in ("Lock", "Condition", "Event", "Barrier")),
    reason="these are the stdlib's, which hang",
)


def blow(kind, kills, method, at_once):
    out = run_program(PROGRAM, kind, kills, "--method", method, "--at-once", at_once, limit=LIMIT)
    print(f"\n{out}", end="")
    found = re.search(rf"^{kind}, {method}: (\d+) kills, .* longest wait [\d.]+ ms$", out, re.M)
    assert found
    assert int(found[1]) >= kills


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_storm(kind):
    kills = min(KILLS, 3_000) if kind == "Making" else KILLS
    blow(kind, kills, "fork", 3 if HOW == "short" else 8)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("kind", KINDS)
def test_storm_of_programs(kind, method):
    blow(kind, KILLS_OF_PROGRAMS, method, 1 if HOW == "short" else 4)


def test_the_build_is_the_one_that_was_wanted():
    if os.environ.get("MPROC_EXT_KILL_POINTS", "0") in ("", "0"):
        pytest.skip("no core with kill points was asked for")
    assert len(mproc_ext._core.kill_points()) > 40
