"""Fixtures for the tests of locks: both packages, so that the stdlib says what is right."""

import importlib
import multiprocessing
import pathlib
import sys

import pytest

# Importable by name in the children of spawn and forkserver too, whose sys.path is ours.
_FOLDER = str(pathlib.Path(__file__).parent)
if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)


@pytest.fixture(params=["multiprocessing", "mproc_ext"])
def package(request):
    return importlib.import_module(request.param)


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def method(request):
    return request.param


@pytest.fixture
def mp(package):
    """A context of either package, where the start method does not matter."""
    return package.get_context("fork")


@pytest.fixture
def synchronize(package):
    return importlib.import_module(f"{package.__name__}.synchronize")


@pytest.fixture
def ctx(package, method):
    """Every context of either package."""
    return package.get_context(method)


@pytest.fixture
def both():
    """The stdlib's context and ours, to be compared."""
    return [
        importlib.import_module(name).get_context("fork")
        for name in ("multiprocessing", "mproc_ext")
    ]


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a child."""
    yield
    for process in multiprocessing.active_children():
        process.kill()
        process.join()
