"""Workers of pools are killed, hundreds of times: every call ends, each task has its result, or its
worker has died, and the pool goes on.

MPROC_EXT_STORM=thorough, which CI runs, kills 5,000 by fork and 100 by the other methods.  With a
core that was built with MPROC_EXT_KILL_POINTS=1 many of them die in the middle of what the core
does.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import run_program

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("pool_storm.py")
HOW = os.environ.get("MPROC_EXT_STORM", "short")
KILLS = {"full": 20_000, "thorough": 5_000}.get(HOW, 200)
KILLS_OF_PROGRAMS = {"full": 1_000, "thorough": 100}.get(HOW, 20)

pytestmark = pytest.mark.skipif(
    not mproc_ext.ACCELERATED, reason="the pools are the stdlib's, which hang"
)
needs_kill_points = pytest.mark.skipif(
    not hasattr(getattr(mproc_ext, "_core", None), "kill_points"),
    reason="the core was not built with MPROC_EXT_KILL_POINTS=1",
)


def blow(kills, *args, env=None, expect=0):
    out = run_program(PROGRAM, kills, *args, env=env, expect=expect, limit=3500)
    print(f"\n{out}", end="")
    return out


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_storm(method):
    kills = KILLS if method == "fork" else KILLS_OF_PROGRAMS
    out = blow(kills, "--method", method)
    found = re.search(rf"^Pool, {method}: (\d+) kills, .* (\d+) results, (\d+) lost", out, re.M)
    assert found
    assert int(found[1]) >= kills
    assert int(found[2]) > int(found[3]) > 0


@pytest.mark.timeout(120)
def test_the_storm_finds_that_deaths_are_not_noticed():
    out = blow(5_000, "--patience", 6, "--unnoticed", expect=1)
    found = r"Pool: \w+\(\) has not ended|Pool: nobody is left to be killed, after [1-9]|Timeout"
    assert re.search(f"^({found})", out, re.M)


@pytest.mark.timeout(300)
@needs_kill_points
def test_the_storm_finds_that_recovery_is_off():
    """What the dead had stays theirs: memory, and what the others wait for."""
    out = blow(5_000, "--patience", 2, env={"MPROC_EXT_RECOVERY": "0"}, expect=1)
    found = r"Pool: \(\d+, .* bytes, |Pool: \w+\(\) has not ended|Pool: tasks .* failed|Timeout"
    assert re.search(f"^({found})", out, re.M)
