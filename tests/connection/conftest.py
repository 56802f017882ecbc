"""Fixtures for the tests of connections."""

import importlib
import pathlib
import sys

import pytest

# Importable by name in the children of spawn and forkserver too, whose sys.path is ours.
_HERE = pathlib.Path(__file__).parent
for _folder in (_HERE, _HERE.parent / "sync"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

from both_packages import both, ctx, method, mp, nothing_left, package  # noqa: E402
from connection_helpers import KINDS, OURS, RINGS, open_pair, theirs  # noqa: E402

__all__ = ["both", "ctx", "method", "mp", "nothing_left", "package"]


def pytest_generate_tests(metafunc):
    """Kinds of connections; a pair of them is a Pipe() with shared memory, too."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "kind" in metafunc.fixturenames and all("kind" not in mark.args[:1] for mark in marks):
        is_pair = {"pair", "our_pair"} & set(metafunc.fixturenames)
        metafunc.parametrize("kind", [*KINDS, *RINGS] if is_pair else KINDS)


@pytest.fixture
def connection(package):
    """The module, of either package."""
    return importlib.import_module(f"{package.__name__}.connection")


@pytest.fixture
def ours():
    """Our module, for what the stdlib's connections do wrong."""
    if not OURS:
        pytest.skip("there are only the stdlib's connections")
    return importlib.import_module("mproc_ext.connection")


@pytest.fixture
def modules():
    """The stdlib's module and ours, to be compared."""
    return theirs, importlib.import_module("mproc_ext.connection")


@pytest.fixture
def pair(connection, kind):
    """(one that reads, one that writes) of either package."""
    with open_pair(connection, kind) as ends:
        yield ends


@pytest.fixture
def our_pair(ours, kind):
    with open_pair(ours, kind) as ends:
        yield ends
