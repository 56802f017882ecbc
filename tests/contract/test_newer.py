"""What newer Pythons' stdlib has is there on every Python.  newer.py has the uses."""

import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NAMES = re.findall(r"^@since\(3, \d+\)\ndef (\w+)", (HERE / "newer.py").read_text(), re.MULTILINE)


def test_the_uses_are_found():
    assert len(NAMES) >= 19


@pytest.mark.parametrize("name", NAMES)
def test_newer(contract, method, name):
    result = contract.run_python(HERE / "newer.py", name, method)
    assert result.returncode == 0, result.stderr
