"""The rules that the C core keeps by its files alone: layers, Python.h, memory orders, names."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
CORE = SRC / "core"
FILES = sorted(CORE.glob("*.[ch]"))
SOURCES = [path for path in FILES if path.suffix == ".c"]

by_name = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def layer(path: Path) -> int:
    """The layer that the opening comment of a file states."""
    found = re.search(r"^ \* Layer: L(\d)$", path.read_text(), re.MULTILINE)
    assert found, f"{path.name} does not say its layer"
    return int(found[1])


def without_comments(text: str) -> str:
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)


def test_there_is_a_core() -> None:
    assert {"mpx_base.h", "mpx_atomic.h", "mpx_os.h", "mpx_segment.c"} <= {p.name for p in FILES}


@by_name
def test_opening_comment_says_what_the_file_is(path: Path) -> None:
    opening = path.read_text().split("*/")[0]
    assert re.match(rf"/\* {re.escape(path.name)} - \S.{{10,}}", opening)
    assert layer(path) >= 0


@by_name
def test_python_is_not_mentioned(path: Path) -> None:
    assert "Python.h" not in path.read_text()


@by_name
def test_includes_go_downward(path: Path) -> None:
    for name in re.findall(r'^\s*#\s*include\s+"(.+?)"', path.read_text(), re.MULTILINE):
        assert layer(CORE / name) <= layer(path), f"{path.name} includes {name}"


@by_name
def test_a_header_of_the_core_comes_first(path: Path) -> None:
    """mpx_base.h asks libc for what Linux has beyond C11: before libc's first header."""
    includes = re.findall(r"^\s*#\s*include\s+(\S+)", path.read_text(), re.MULTILINE)
    assert path.name == "mpx_base.h" or includes[0].startswith('"mpx_')


@by_name
def test_memory_orders_are_named_in_one_place(path: Path) -> None:
    code = without_comments(path.read_text())
    # An atomic that the wrappers do not know would have an order of its own, or none.
    forbidden = r"memory_order|stdatomic|\b_Atomic\b|__atomic_|__sync_|\batomic_\w+\("
    assert bool(re.search(forbidden, code)) == (path.name == "mpx_atomic.h")


def test_ordering_pairs_are_in_the_design() -> None:
    code = "".join(path.read_text() for path in [*FILES, *SRC.glob("py/*.[ch]")])
    pairs = set(re.findall(r"\b([A-Z]\d): with ([A-Z]\d)\b", code))
    rows = re.findall(r"^\| ([A-Z]\d) .*?\| ([A-Z]\d) ", (SRC / "DESIGN.md").read_text(), re.M)
    assert rows
    assert pairs == {*rows, *((acquire, release) for release, acquire in rows)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_exported_names_begin_with_mpx(path: Path, tmp_path: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests need a C compiler"
    obj = tmp_path / "object.o"
    subprocess.run([compiler, "-std=c11", f"-I{CORE}", "-c", path, "-o", obj], check=True)
    listing = subprocess.run(
        ["nm", "--extern-only", "--defined-only", obj], check=True, capture_output=True, text=True
    ).stdout
    names = [line.split()[-1] for line in listing.splitlines()]
    assert names
    assert [name for name in names if not name.startswith("mpx_")] == []
