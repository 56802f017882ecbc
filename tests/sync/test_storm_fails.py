"""The storm of test_storm.py fails where it should: so it would find what is wrong."""

import re

import pytest
from sync_helpers import run_program
from sync_storm_work import KINDS
from test_storm import PROGRAM

import mproc_ext

# A POSIX semaphore has no owner, and the kernel does not lose a wake.
HANG_IN_THE_STDLIB = [kind for kind in KINDS if kind != "Semaphore"]


def fails(kind, *args, env=None):
    out = run_program(PROGRAM, kind, 5000, "--patience", 2, *args, env=env, expect=1, limit=110)
    print(f"\n{out}", end="")
    assert re.search(rf"^{kind}: worker .* did not get on for 2 s", out, re.MULTILINE)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", HANG_IN_THE_STDLIB)
def test_the_storm_finds_that_the_stdlib_hangs(kind):
    fails(kind, "--package", "multiprocessing")


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_the_storm_finds_that_recovery_is_off(kind):
    if not hasattr(mproc_ext._core, "kill_points"):
        pytest.skip("the core was not built with MPROC_EXT_KILL_POINTS=1")
    fails(kind, env={"MPROC_EXT_RECOVERY": "0"})
