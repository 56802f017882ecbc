"""A worker has died, and what it has left runs Python code that uses the pool itself."""

import gc
import os
import signal
import sysconfig

import pytest

import mproc_ext
from mproc_ext import pool as pools

pytestmark = pytest.mark.skipif(
    not mproc_ext.ACCELERATED, reason="the pools are the stdlib's, which hang"
)

_shared = None  # the pool of a test
_gate = None  # its worker answers once this is open: who calls collects what is there


def ask_pool(number):
    """In the parent: what unpickles a result."""
    return _shared.apply(abs, (-number,))


class Asks:
    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return ask_pool, (self.number,)


def answer_or_die(number):
    _gate.wait()
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return Asks(number)


without_memory = pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="pickle.loads alone crashes under set_nomemory in a free-threaded 3.13",
)


@pytest.fixture
def pool():
    global _shared, _gate
    ctx = mproc_ext.get_context("fork")
    _gate = ctx.Event()
    with pools.Pool(1, context=ctx) as _shared:
        yield _shared
    _shared.join()
    _shared = _gate = None


def begin_all(pool, numbers, function=answer_or_die):
    """Have them done while nobody collects, until the worker has died."""
    pid = pool._pool[0].pid
    results = [pool.apply_async(function, (number,)) for number in numbers]
    _gate.set()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # and leave it to the pool
    return results


def test_reading_what_the_dead_has_answered_may_use_the_pool(pool):
    assert pool.apply(abs, (-1,)) == 1
    with pool._crew.turn():
        answered, lost = begin_all(pool, [1, 3])
        pool._repopulate_pool()  # as who drives does, when an answer came after it has looked
    assert answered.get() == 1
    with pytest.raises(pools.WorkerLostError):
        lost.get()
    # And the pool has a worker that it knows.
    assert pool.apply_async(abs, (-5,)).get(20) == 5
    assert len(pool._pool) == 1


def answer_plainly_or_die(number):
    _gate.wait()
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def bury_without_memory(pool):
    """There is none to take what the dead worker has left out of its lane."""
    nomemory = pytest.importorskip("_testcapi", reason="CPython's own tests are not there")
    if not hasattr(nomemory, "set_nomemory"):
        pytest.skip("this _testcapi cannot make allocations fail")
    crew, bury = pool._crew, pool._crew._bury
    (lane,) = lanes = [crew._lane(0)[0]]

    def bury_so(*args):
        gc.disable()
        nomemory.set_nomemory(0, 1)
        try:
            return bury(*args)
        finally:
            nomemory.remove_mem_hooks()
            gc.enable()
            lanes.append(crew._lane(0)[0])

    crew._bury = bury_so
    pool._repopulate_pool()
    crew._bury = bury
    assert lanes == [lane, lane]  # else it had the memory


@without_memory
def test_without_memory(pool):
    pool.map(abs, range(5_000), 1)
    with pool._crew.turn():
        answered, lost, waits = begin_all(pool, [1, 3, 4], answer_plainly_or_die)
        bury_without_memory(pool)
    assert answered.get() == 1
    assert waits.get() == 4
    with pytest.raises(pools.WorkerLostError):
        lost.get()
    assert pool.apply_async(abs, (-5,)).get(20) == 5
    assert len(pool._pool) == 1


@without_memory
def test_without_memory_what_needs_the_lane_fails(pool):
    """What is read asks the pool, whose one lane is not free yet."""
    assert pool.apply(abs, (-1,)) == 1
    with pool._crew.turn():
        results = begin_all(pool, [1, 3])
        bury_without_memory(pool)
    for result in results:
        with pytest.raises(pools.BrokenPoolError, match="no worker"):
            result.get(20)


def test_a_call_that_is_cancelled_meanwhile(pool):
    pool.map(abs, range(5_000), 1)  # so that it is given several tasks at once
    with pool._crew.turn():
        answered, lost, waits = begin_all(pool, [1, 3, 4])
        told = []
        make_lost = pool._crew._make_lost

        def cancel_too(*args):
            told.append(waits.cancel())
            return make_lost(*args)

        pool._crew._make_lost = cancel_too
        pool._repopulate_pool()
    assert told == [True]
    assert answered.get() == 1
    assert waits.cancelled()
    with pytest.raises(pools.WorkerLostError):
        lost.get()
    assert pool.apply_async(abs, (-5,)).get(20) == 5


def test_ctrl_c_meanwhile_loses_no_task(pool):
    """It goes on to who drives; the task has it as its end."""
    assert pool.apply(abs, (-1,)) == 1

    def interrupt(*args):
        raise KeyboardInterrupt

    with pool._crew.turn():
        lost, waits = begin_all(pool, [3, 4])
        make_lost, pool._crew._make_lost = pool._crew._make_lost, interrupt
        with pytest.raises(KeyboardInterrupt):
            pool._repopulate_pool()
        pool._crew._make_lost = make_lost
        pool._repopulate_pool()
    with pytest.raises(KeyboardInterrupt):
        lost.get()
    assert waits.get() == 4


def test_ctrl_c_meanwhile_leaves_no_lane_without_a_worker(pool):
    assert pool.apply(abs, (-1,)) == 1
    fill = pool._crew._fill

    def interrupt():
        pool._crew._fill = fill
        raise KeyboardInterrupt

    pool._crew._fill = interrupt
    with pool._crew.turn():
        (lost,) = begin_all(pool, [3])
        with pytest.raises(KeyboardInterrupt):
            lost.wait()
    assert pool.apply_async(abs, (-5,)).get(20) == 5
