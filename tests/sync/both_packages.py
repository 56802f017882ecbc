"""Fixtures that give both packages, so that the stdlib says what is right."""

import importlib
import multiprocessing

import pytest


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
