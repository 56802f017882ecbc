"""The holder is killed as often as not, hundreds of times: nobody hangs, nobody is inside twice.

MPROC_EXT_STORM=full runs the numbers that CI runs once: 10,000 kills of each kind.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import ours, run_program

PROGRAM = pathlib.Path(__file__).with_name("sync_storm.py")
FULL = os.environ.get("MPROC_EXT_STORM") == "full"
KINDS = ("Lock", "RLock", "Condition", "Event", "Barrier")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_storm(kind):
    if not ours(kind) or not ours("Lock"):
        pytest.skip(f"{kind} is the stdlib's, which hangs")
    kills = 10_000 if FULL else 300
    out = run_program(PROGRAM, kind, kills, limit=1100 if FULL else 110)
    print(out, end="")
    assert re.search(rf"{kind}: {kills} kills, \d+ of the holder.* longest wait [\d.]+ ms", out)


@pytest.mark.parametrize("kind", KINDS)
def test_the_storm_finds_what_hangs(kind):
    """The stdlib's does, soon."""
    out = run_program(PROGRAM, kind, 2000, "multiprocessing", 1, expect=1, limit=100)
    assert out == ""
