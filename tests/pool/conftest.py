"""Fixtures for the tests of pools."""

import importlib
import multiprocessing
import pathlib
import sys

import pytest

# Importable by name in the children of spawn and forkserver too, whose sys.path is ours.
_HERE = pathlib.Path(__file__).parent
for _folder in (_HERE, _HERE.parent / "sync"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

from both_packages import PACKAGES, both, ctx, method, mp, package  # noqa: E402
from pool_helpers import METHODS  # noqa: E402

__all__ = ["both", "ctx", "method", "mp", "package"]


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a child; the workers of a module's shared pool are not the test's."""
    before = set(multiprocessing.active_children())
    yield
    for process in set(multiprocessing.active_children()) - before:
        process.kill()
        process.join()


def _open(name, kind):
    module = importlib.import_module(f"{name}.pool")
    if kind == "threads":
        return module.ThreadPool(2)
    return module.Pool(2, context=importlib.import_module(name).get_context(kind))


def _ids(kinds):
    return [pytest.param((name, kind), id=f"{name}-{kind}") for name in PACKAGES for kind in kinds]


def _shared(request):
    pool = _open(*request.param)
    yield pool
    pool.close()
    pool.join()


@pytest.fixture(scope="module", params=_ids(METHODS))
def process_pool(request):
    """Two processes of either package, by each start method, for all tests of a module."""
    yield from _shared(request)


@pytest.fixture(scope="module", params=_ids([*METHODS, "threads"]))
def pool(request):
    """The same, and threads."""
    yield from _shared(request)


@pytest.fixture
def pools(package):
    """The module, of either package."""
    return importlib.import_module(f"{package.__name__}.pool")


@pytest.fixture
def thread_pool(pools):
    with pools.ThreadPool(2) as pool:
        yield pool


@pytest.fixture
def one(pools, mp):
    """A pool of one forked worker: what it does is in order."""
    pool = pools.Pool(1, context=mp)
    yield pool
    pool.close()
    pool.join()
