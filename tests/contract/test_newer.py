"""What newer Pythons' stdlib has is there on every Python.  newer.py has the uses."""

import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = re.findall(r"^@since\(3, \d+\)\ndef (\w+)", (HERE / "newer.py").read_text(), re.MULTILINE)


def test_the_uses_are_found():
    assert len(NAMES) >= 19


# What we do not give to older Pythons: name -> (the first that has it, why).
NOT_GIVEN = {
    "challenge_with_a_digest": ((3, 12), "who may connect, and how, is the stdlib's code"),
}


@pytest.mark.parametrize("name", NAMES)
def test_newer(contract, method, name):
    result = contract.run_python(HERE / "newer.py", name, method)
    since, why = NOT_GIVEN.get(name, ((3, 0), ""))
    if sys.version_info < since:
        assert result.returncode != 0, "it is there: take it off the list"
        pytest.skip(why)
    assert result.returncode == 0, result.stderr
