"""The storm of test_storm.py fails where it should: so it would find what is wrong."""

import pathlib
import re

import pytest
from sync_helpers import run_program
from sync_storm_work import KINDS

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("sync_storm.py")

# Where nobody waits for anybody, nobody hangs: then the dead's memory is lost.
HANG = [kind for kind in KINDS if kind != "Making"]
# A POSIX semaphore has no owner, and the kernel does not lose a wake.
HANG_IN_THE_STDLIB = [kind for kind in HANG if kind != "Semaphore"]


def fails(kind, kills, why, *args, env=None):
    out = run_program(PROGRAM, kind, kills, "--patience", 2, *args, env=env, expect=1, limit=110)
    print(f"\n{out}", end="")
    assert re.search(rf"^{kind}: {why}", out, re.MULTILINE)


def hangs(kind, *args, env=None):
    fails(kind, 5000, "worker .* did not get on for 2 s", *args, env=env)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", HANG_IN_THE_STDLIB)
def test_the_storm_finds_that_the_stdlib_hangs(kind):
    hangs(kind, "--package", "multiprocessing")


needs_kill_points = pytest.mark.skipif(
    not hasattr(getattr(mproc_ext, "_core", None), "kill_points"),
    reason="the core was not built with MPROC_EXT_KILL_POINTS=1",
)
RECOVERS_NOTHING = {"MPROC_EXT_RECOVERY": "0"}


@needs_kill_points
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", HANG)
def test_the_storm_finds_that_recovery_is_off(kind):
    hangs(kind, env=RECOVERS_NOTHING)


@needs_kill_points
def test_the_storm_finds_that_memory_of_the_dead_is_lost():
    """Or nobody gets on, where one was killed who kept the others from it."""
    fails("Making", 500, "(the arena has grown to|worker .* did not get on)", env=RECOVERS_NOTHING)
