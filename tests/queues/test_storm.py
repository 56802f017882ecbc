"""Producers and consumers are killed, hundreds of times: no message is torn or comes twice, none is
lost but with a consumer, and nobody hangs.

MPROC_EXT_STORM=thorough, which CI runs, kills 3,000 by fork and 60 by the other methods;
MPROC_EXT_STORM=full 20,000 and 1,000.  With a core that was built with MPROC_EXT_KILL_POINTS=1 half
of them die in the middle of what the core does.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import run_program

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("queue_storm.py")
HOW = os.environ.get("MPROC_EXT_STORM", "short")
KILLS = {"full": 20_000, "thorough": 3_000}.get(HOW, 150)
KILLS_OF_PROGRAMS = {"full": 1_000, "thorough": 60}.get(HOW, 12)

pytestmark = pytest.mark.skipif(
    not mproc_ext.ACCELERATED, reason="the queues are the stdlib's, which hang"
)
needs_kill_points = pytest.mark.skipif(
    not hasattr(getattr(mproc_ext, "_core", None), "kill_points"),
    reason="the core was not built with MPROC_EXT_KILL_POINTS=1",
)


def blow(kills, *args, env=None, expect=0):
    out = run_program(PROGRAM, kills, *args, env=env, expect=expect, limit=1700)
    print(f"\n{out}", end="")
    return out


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_storm(method):
    kills = KILLS if method == "fork" else KILLS_OF_PROGRAMS
    out = blow(kills, "--method", method)
    found = re.search(rf"^Queue, {method}: (\d+) kills, .* lost", out, re.M)
    assert found
    assert int(found[1]) >= kills


@pytest.mark.timeout(1800)
def test_storm_while_somebody_joins():
    out = blow(KILLS, "--on-death")
    assert re.search(r"^Queue, fork: \d+ kills, .* lost", out, re.M)


@pytest.mark.timeout(1800)
def test_storm_of_several_at_a_time():
    # The points are those of the first storm.
    kills = KILLS if HOW == "full" else min(KILLS, 1_000)
    assert re.search(r"^Queue, fork: .* lost", blow(kills, "--many"), re.M)


@pytest.mark.timeout(1800)
def test_storm_of_what_is_lent():
    assert re.search(r"^Queue, fork: .* lost", blow(KILLS, "--zero-copy"), re.M)


@pytest.mark.timeout(120)
@needs_kill_points
def test_the_storm_finds_that_recovery_is_off():
    out = blow(5_000, "--patience", 2, env={"MPROC_EXT_RECOVERY": "0"}, expect=1)
    found = r"Queue: no worker of .* got on|Queue: \d+ bytes of shared memory|Timeout"
    assert re.search(f"^({found})", out, re.M)


@pytest.mark.timeout(120)
def test_the_storm_finds_that_the_stdlib_hangs():
    out = blow(5_000, "--patience", 2, "--package", "multiprocessing", expect=1)
    assert re.search(r"^Queue: (no worker of .* got on|worker \d ended with)", out, re.M)
