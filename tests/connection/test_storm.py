"""Peers of conversations are killed at random: the survivors see whole messages, and the end.

MPROC_EXT_STORM=thorough, which CI runs, has 1,000 conversations; MPROC_EXT_STORM=full 5,000.
"""

import os
import pathlib
import re

import pytest
from sync_helpers import run_program

import mproc_ext

PROGRAM = pathlib.Path(__file__).with_name("connection_storm.py")
HOW = os.environ.get("MPROC_EXT_STORM", "short")
CONVERSATIONS = {"full": 5_000, "thorough": 1_000}.get(HOW, 200)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "package",
    [
        pytest.param(
            "mproc_ext",
            marks=pytest.mark.skipif(not mproc_ext.ACCELERATED, reason="it is the stdlib's"),
        ),
        "multiprocessing",
    ],
)
def test_storm(package):
    """The stdlib's too: so that what is expected of ours is what a program is used to."""
    count = CONVERSATIONS if package == "mproc_ext" else 100
    out = run_program(PROGRAM, count, "--package", package, limit=1700)
    print(f"\n{out}", end="")
    found = re.search(r"^Connection: (\d+) convers.*; (\d+) messages; ended by (.*)$", out, re.M)
    assert int(found[1]) == count
    assert int(found[2]) > count
    assert "in the middle of a message" in found[3]
    assert "EOFError" in found[3]


@pytest.mark.timeout(120)
@pytest.mark.skipif(not mproc_ext.ACCELERATED, reason="as above")
def test_the_storm_finds_what_is_wrong():
    out = run_program(PROGRAM, 1000, "--spoil", expect=1)
    assert re.search(r"^Connection: Failure: message \d+ is torn", out, re.M)
