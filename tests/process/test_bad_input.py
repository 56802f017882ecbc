"""Starting a process fails in every way we know: a clear error, and nothing is left behind.

bad_input.py has the cases; each runs as a program of its own.
"""

import re
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("bad_input.py")
CASES = re.findall(r"^@case\ndef (\w+)", PROGRAM.read_text(), re.MULTILINE)

# What the child says on stderr, where it is the child that finds out.
SAYS = {
    "target_that_the_child_cannot_import": "ModuleNotFoundError: No module named 'ghost_module'",
    "argument_that_the_child_cannot_read": "LookupError: cannot be made again",
}


def test_the_cases_are_found():
    assert len(CASES) > 20
    assert set(SAYS) <= set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_bad_input(programs, method, case):
    result = programs.run_python(PROGRAM, case, method)
    assert result.returncode == 0, result.stderr
    if result.stdout.startswith("SKIP"):
        pytest.skip(result.stdout.removeprefix("SKIP ").strip())
    if case in SAYS and method != "fork":
        assert SAYS[case] in result.stderr
        assert "Traceback" in result.stderr
    elif case not in SAYS and "child" not in case:
        assert result.stderr == ""
