"""Many processes, one after the other: nothing is left.

MPROC_EXT_STORM=full runs the numbers that CI runs once: 10,000 by fork, 300 by spawn, 2,000 by
the fork server; otherwise a tenth.
"""

import os
import pathlib
import subprocess
import sys

import pytest

COUNTS = {"fork": 10_000, "spawn": 300, "forkserver": 2_000}


@pytest.mark.timeout(1200)
def test_storm(method):
    count = COUNTS[method] // (1 if os.environ.get("MPROC_EXT_STORM") == "full" else 10)
    program = pathlib.Path(__file__).parent / "storm.py"
    done = subprocess.run(
        [sys.executable, str(program), method, str(count)], capture_output=True, text=True
    )
    print(done.stdout, end="")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
