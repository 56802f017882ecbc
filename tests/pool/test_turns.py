"""What a signal, a fork or a failure at a bad moment leaves of a pool."""

import multiprocessing
import os
import random
import signal
import threading

import pool_targets as targets
import pytest
from pool_helpers import LIMIT
from sync_helpers import handler, in_thread

import mproc_ext
from mproc_ext import pool as pools

pytestmark = pytest.mark.skipif(not mproc_ext.ACCELERATED, reason="the pools are the stdlib's")


@pytest.fixture
def fork():
    return mproc_ext.get_context("fork")


@pytest.fixture
def one(fork):
    with fork.Pool(1) as pool:
        yield pool
    pool.join()


class Hit(Exception):
    pass


def hit(*_):
    raise Hit


def take_turns_until_hit(crew):
    signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-5, 2e-4))
    while True:
        with crew.turn():
            pass


def take_one(crew):
    with crew.turn():
        return True


def test_a_signal_takes_no_turn_along(one):
    """Wherever it comes: else the service thread would wait for ever."""
    assert one.apply(abs, (-1,)) == 1
    with handler(hit, signal.SIGALRM):
        for _ in range(200):
            with pytest.raises(Hit):
                take_turns_until_hit(one._crew)
            assert in_thread(take_one, one._crew)


@pytest.mark.parametrize("call", ["imap", "imap_unordered"])
def test_items_that_no_thread_can_draw(one, monkeypatch, call):
    """The call fails, and nobody waits for it."""
    assert one.apply_async(abs, (-1,)).get(LIMIT) == 1
    start = threading.Thread.start

    def start_others(thread):
        if thread.name.endswith("-items"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_others)
    with pytest.raises(RuntimeError, match="can't start"):
        getattr(one, call)(abs, (n for n in range(3)))
    monkeypatch.undo()
    assert one._cache == {}
    assert list(one.imap(abs, (n for n in range(3)))) == [0, 1, 2]
    one.close()
    in_thread(one.join)


@pytest.mark.parametrize("call", ["apply_async", "map_async", "imap"])
def test_a_forked_copy_starts_no_thread(one, call):
    """It would take the parent's results."""
    assert one.apply(abs, (-1,)) == 1  # which needs none
    argument = [-1]
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            getattr(one, call)(abs, argument)
        except ValueError as error:
            right = "belongs to the process" in str(error) and threading.active_count() == 1
            status = 0 if right else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert one.apply_async(abs, (-2,)).get(LIMIT) == 2


def test_the_service_thread_fails(one):
    """Who counts on it is told."""

    def fail():
        raise MemoryError("for a test")

    one._crew._maintain = fail
    os.kill(one._pool[0].pid, signal.SIGKILL)
    told = threading.Event()
    result = one.apply_async(abs, (-1,), callback=print, error_callback=lambda _: told.set())
    assert told.wait(LIMIT)
    with pytest.raises(pools.BrokenPoolError, match="service thread") as found:
        result.get(LIMIT)
    assert isinstance(found.value.__cause__, MemoryError)
    del one._crew._maintain


def test_ctrl_c_right_after_a_worker_is_started(fork):
    """Another one gets its lane: the first must not have it still."""
    starts = []

    class Process(fork.Process):
        def start(self):
            super().start()
            starts.append(self)
            if len(starts) == 2:
                raise KeyboardInterrupt

    class Pool(pools.Pool):
        @staticmethod
        def Process(ctx, *args, **names):
            return Process(*args, **names)

    with Pool(1, context=fork) as pool:
        before = set(multiprocessing.active_children()) - set(pool._pool)
        assert pool.apply(abs, (-1,)) == 1
        pool._pool[0].kill()
        pool._pool[0].join()
        with pytest.raises(KeyboardInterrupt):
            pool.apply(abs, (-1,))
        assert pool.map(targets.worker_pid, range(100), 1) == [starts[2].pid] * 100
        assert set(multiprocessing.active_children()) - before == set(pool._pool) == {starts[2]}
    pool.join()
