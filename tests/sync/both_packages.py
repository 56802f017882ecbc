"""Fixtures that give both packages, so that the stdlib says what is right.

With MPROC_EXT_TESTS=ours `package` is ours alone: what the stdlib does depends on the Python, and
not on how the core was built, so CI asks on one Python. A test that compares the two (`both`) asks
always.
"""

import importlib
import multiprocessing
import os

import pytest

PACKAGES = ["multiprocessing", "mproc_ext"]
if os.environ.get("MPROC_EXT_TESTS") == "ours":
    PACKAGES.remove("multiprocessing")


@pytest.fixture(params=PACKAGES)
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
