"""The table in src/DESIGN.md that says whose implementation every public class is, is true."""

import re
import sys

import pytest

# Classes that some Pythons' stdlib does not have; what we add there is in test_newer.py.
ON_SOME_PYTHONS = {"resource_tracker.ReentrantCallError", "managers.SetProxy"}


def rows(contract):
    """{class: (whose, names of ours)} as the table has it for the running Python."""
    text = (contract.HERE.parents[1] / "src" / "DESIGN.md").read_text()
    section = re.search(r"^## Whose implementation$(.*?)(?=^## |\Z)", text, re.M | re.S).group(1)
    table = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        classes, whose, ours = cells
        for name in re.findall(r"`([\w.]+)`", classes):
            assert name not in table, f"{name} is in two rows"
            table[name] = for_this_python(whose), names(ours, table)
    return table


def for_this_python(whose):
    kind, _, older = whose.partition("; ")
    if older:
        other, since = re.fullmatch(r"(\w+) before (3\.\d+)", older).groups()
        if sys.version_info < tuple(map(int, since.split("."))):
            return other
    return kind


def names(cell, table):
    """The names in backticks: "as `x`, and `y`" takes those of x, "before 3.14 `z`" for older."""
    found = set()
    for part in cell.split(";"):
        since = re.search(r"before (3\.\d+)", part)
        if since and sys.version_info >= tuple(map(int, since.group(1).split("."))):
            continue
        for name in re.findall(r"`([\w.]+)`", part):
            found |= table[name][1] if "." in name and name in table else {name}
    return found


@pytest.fixture(scope="module")
def real(contract):
    return contract.json_of(contract.HERE / "classes.py", *contract.stdlib_submodules())


def test_every_class_is_in_the_table(contract, real):
    table = rows(contract)
    assert len(real) > 60
    assert real.keys() - table.keys() == set()
    assert table.keys() - real.keys() <= ON_SOME_PYTHONS


def test_the_table_is_true(contract, real):
    wrong = {}
    for name, (whose, ours) in rows(contract).items():
        if name not in real:
            continue
        kind, defined = real[name]
        if kind != whose:
            wrong[name] = f"the table says {whose}, it is {kind}"
        elif kind == "extended" and not set(defined) <= ours:
            wrong[name] = f"not in the table: {sorted(set(defined) - ours)}"
        elif kind == "extended" and not set(defined):
            wrong[name] = "nothing of it is ours"
    assert wrong == {}
