"""Ctrl-C comes just when a worker has been started: nobody is left that nobody knows."""

import itertools
import multiprocessing
import os
import signal

import futures_targets as targets
import pytest
from pool_helpers import wait_for_lines, wait_until_gone
from sync_helpers import LIMIT, wait_until

import mproc_ext
from mproc_ext import _engine, pool as pools, process
from mproc_ext.futures import ProcessPoolExecutor

pytestmark = pytest.mark.skipif(
    not mproc_ext.ACCELERATED, reason="the workers are started by the stdlib"
)


@pytest.fixture
def ctx(method):
    return mproc_ext.get_context(method)


@pytest.fixture(params=["is started", "has its lane"])
def interrupt(request, monkeypatch):
    """interrupt(number): Ctrl-C comes when that worker, from now on, is as far."""
    if request.param == "is started":
        owner, name = process.BaseProcess, "start"
    else:
        owner, name = _engine.Crew, "_open"
    real = getattr(owner, name)

    def arm(number):
        count = itertools.count(1)

        def call(self, *args):
            real(self, *args)
            if next(count) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(owner, name, call, raising=False)

    return arm


def workers():
    return sorted(child.pid for child in multiprocessing.active_children())


def pids(pool):
    return sorted(worker.pid for worker in pool._pool)


def test_a_pool_that_is_made(ctx, interrupt):
    before = workers()
    interrupt(2)
    with pytest.raises(KeyboardInterrupt):
        pools.Pool(3, context=ctx)
    assert workers() == before


def test_a_pool_that_grows(ctx, interrupt):
    before = workers()
    with pools.Pool(1, context=ctx) as pool:
        interrupt(2)
        with pytest.raises(KeyboardInterrupt):
            pool.resize(4)
        assert sorted(before + pids(pool)) == workers()

        def is_full():
            assert pool.map(abs, range(20), 1) == list(range(20))
            return len(pool._pool) == 4

        wait_until(is_full, "that it has all its workers")
        assert sorted(before + pids(pool)) == workers()


def test_a_worker_that_is_replaced(ctx, interrupt):
    before = workers()
    with pools.Pool(1, context=ctx) as pool:
        (pid,) = pids(pool)
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        interrupt(1)
        with pytest.raises(KeyboardInterrupt):
            pool.apply(abs, (-5,))
        assert workers() == before
        assert pool.apply(abs, (-5,)) == 5
        assert sorted(before + pids(pool)) == workers()


def test_an_executor_that_begins(ctx, interrupt):
    before = workers()
    with ProcessPoolExecutor(2, ctx) as executor:
        interrupt(1)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(targets.square, 3)
        assert workers() == before
        assert executor.submit(targets.square, 3).result(LIMIT) == 9


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_executor_that_grows(method, interrupt, tmp_path):
    before = workers()
    with ProcessPoolExecutor(2, mproc_ext.get_context(method)) as executor:
        noted, gate = tmp_path / "noted", tmp_path / "gate"
        blocked = executor.submit(targets.note_and_wait, str(noted), str(gate))
        wait_for_lines(noted, 1)
        interrupt(1)
        with pytest.raises(KeyboardInterrupt):
            executor.submit(targets.square, 3)
        assert sorted([*before, *executor._processes]) == workers()
        # By the second worker, which is tried again with this call.
        assert executor.submit(targets.square, 4).result(LIMIT) == 16
        assert len(executor._processes) == 2
        gate.touch()
        assert blocked.result(LIMIT) > 0
