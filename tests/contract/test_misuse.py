"""Wrong use raises what the stdlib raises: the same type with the same message.

misuse.py has the cases.  It runs once for each package and start method.
"""

import runpy
from pathlib import Path

import pytest

CASES = list(runpy.run_path(str(Path(__file__).with_name("misuse.py")))["CASES"])


@pytest.mark.parametrize("case", CASES)
def test_same_error(contract, method, case):
    theirs = contract.misuse("multiprocessing", method)[case]
    ours = contract.misuse("mproc_ext", method)[case]
    if {f"misuse/{case}", f"misuse/{method}/{case}"} & contract.DIFFERENCES.keys():
        assert ours != theirs, "no difference any more: take it off the list"
    else:
        assert ours == theirs


def test_same_errors_under_the_alias(contract, method):
    ours, alias = contract.misuse("mproc_ext", method), contract.misuse("alias", method)
    assert {case: pair for case, pair in alias.items() if pair != ours[case]} == {}
    assert alias.keys() == ours.keys()


def test_most_cases_raise(contract, method):
    """What raises nothing compares nothing: if the cases stop being wrong use, this says so."""
    theirs = contract.misuse("multiprocessing", method)
    raising = [case for case, (kind, _) in theirs.items() if kind != "nothing"]
    assert len(theirs) == len(CASES)
    assert len(raising) > 100
