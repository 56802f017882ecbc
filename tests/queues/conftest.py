"""Fixtures for the tests of queues."""

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

__all__ = ["both", "ctx", "method", "mp", "nothing_left", "ours", "our_ctx", "package", "queues"]


@pytest.fixture
def queues(package):
    return importlib.import_module(f"{package.__name__}.queues")


def _our_context(method):
    package = importlib.import_module("mproc_ext")
    if not package.ACCELERATED:
        pytest.skip("there are only the stdlib's queues")
    return package.get_context(method)


@pytest.fixture
def ours():
    """Our context, for what the stdlib has not or does wrong."""
    return _our_context("fork")


@pytest.fixture
def our_ctx(method):
    return _our_context(method)


@pytest.fixture(params=["Queue", "JoinableQueue", "SimpleQueue"])
def kind(request):
    return request.param
