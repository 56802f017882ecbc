"""Signal handlers that run while their thread waits, use what it waits for, or raise."""

import signal
import time

import pytest
from sync_helpers import (
    LIMIT,
    Task,
    handler,
    in_thread,
    ours,
    signal_when_asleep,
    wait_until_asleep,
)

KINDS = ("Lock", "RLock", "Semaphore", "BoundedSemaphore")


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


@pytest.fixture(params=KINDS)
def held(request, mp):
    """A lock that a thread took, which has ended."""
    lock = getattr(mp, request.param)()
    in_thread(lock.acquire)
    return lock


@pytest.mark.parametrize("arguments", [(), (True, LIMIT)])
@pytest.mark.parametrize("kind", ["Lock", "Semaphore", "BoundedSemaphore"])
def test_handler_releases_what_is_waited_for(mp, kind, arguments):
    lock = getattr(mp, kind)()
    lock.acquire()
    with handler(lambda *_: lock.release()):
        sender = signal_when_asleep()
        assert lock.acquire(*arguments) is True
        sender.get()
    assert lock.acquire(False) is False
    assert lock._semlock._count() == 1


@pytest.mark.parametrize("arguments", [(), (True, LIMIT)])
def test_handler_that_raises(held, arguments):
    count = held._semlock._count()
    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(Interrupted):
            held.acquire(*arguments)
        sender.get()
    assert held._semlock._count() == count
    assert held._semlock._is_zero()
    if "RLock" not in repr(held):
        held.release()
        assert held.acquire(False) is True
        assert held.acquire(False) is False


def test_keyboard_interrupt(held):
    sender = signal_when_asleep(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        held.acquire()
    sender.get()
    assert held._semlock._is_zero()


def test_with_is_interrupted(held):
    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(Interrupted):
            with held:
                pytest.fail("it was not acquired")
        sender.get()
    assert held._semlock._is_zero()


def test_a_wait_goes_on_after_a_handler(held):
    """For the rest of its time: not for all of it again, and not for less."""
    seen = []
    with handler(lambda *_: seen.append(1), signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            began = time.monotonic()
            assert held.acquire(True, 1) is False
            took = time.monotonic() - began
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert took > 0.98
    assert seen  # of 19: on a busy machine they come together


def test_handler_tries_what_is_waited_for(held):
    seen = []
    with handler(lambda *_: seen.append((held.acquire(False), held.acquire(True, 0.01)))):
        sender = signal_when_asleep()
        assert held.acquire(True, 0.4) is False
        sender.get()
    assert seen == [(False, False)]


def test_handler_waits_for_another(mp):
    """A wait inside a wait."""
    outer, inner = mp.Lock(), mp.Lock()
    outer.acquire()
    inner.acquire()

    def wait_for_inner(*_):
        task = Task(lambda: (wait_until_asleep(main), inner.release()))
        assert inner.acquire(True, LIMIT) is True
        task.get()
        outer.release()

    import threading

    main = threading.main_thread()
    with handler(wait_for_inner):
        sender = signal_when_asleep()
        assert outer.acquire() is True
        sender.get()
    assert outer.acquire(False) is False
    assert inner.acquire(False) is False


def test_condition_wait_is_interrupted(mp):
    condition = mp.Condition()
    with handler(interrupt):
        with condition, condition:
            sender = signal_when_asleep()
            with pytest.raises(Interrupted):
                condition.wait()
            sender.get()
            assert condition._lock._semlock._count() == 2
            condition.notify()
        assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"
    assert in_thread(condition.acquire, False) is True


def test_event_wait_is_interrupted(mp):
    event = mp.Event()
    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(Interrupted):
            event.wait()
        sender.get()
    assert event.is_set() is False
    task = Task(event.wait)
    wait_until_asleep(task)
    event.set()
    assert task.get() is True


def test_barrier_wait_is_interrupted(mp):
    """Who was interrupted does not wait any more, and the barrier is whole."""
    barrier = mp.Barrier(2)
    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(Interrupted):
            barrier.wait()
        sender.get()
    assert (barrier.n_waiting, barrier.broken) == (0, False)
    task = Task(barrier.wait)
    assert {barrier.wait(LIMIT), task.get()} == {0, 1}


@pytest.mark.skipif(not ours("Event"), reason="the stdlib's hangs: its set() waits for who waits")
def test_handler_sets_the_event():
    import mproc_ext

    event = mproc_ext.get_context("fork").Event()
    with handler(lambda *_: (event.set(), event.is_set())):
        sender = signal_when_asleep()
        assert event.wait() is True
        sender.get()
    event.clear()
    with handler(lambda *_: (event.set(), event.clear())):
        sender = signal_when_asleep()
        assert event.wait(LIMIT) in (True, False)
        sender.get()


@pytest.mark.skipif(not ours("Condition"), reason="the stdlib's hangs: notify waits for who waits")
def test_handler_notifies():
    import mproc_ext

    condition = mproc_ext.get_context("fork").Condition()

    def notify(*_):
        with condition:
            condition.notify()

    with handler(notify), condition:
        sender = signal_when_asleep()
        assert condition.wait() is True
        sender.get()


def test_many_signals_among_many_takes(mp):
    """Nothing is taken twice or lost where a handler runs between any two steps."""
    lock, other = mp.Lock(), mp.RLock()
    turns, seen, counter = 400, [], 0

    def use_locks(*_):
        seen.append(1)
        with other, other:
            pass
        if lock.acquire(False):
            lock.release()

    def work():
        nonlocal counter
        for turn in range(turns):
            with lock:
                value = counter
                if turn % 8 == 0:
                    time.sleep(0)
                counter = value + 1

    with handler(use_locks, signal.SIGALRM):
        tasks = [Task(work) for _ in range(3)]
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        try:
            work()
            for task in tasks:
                task.get()
            while len(seen) < 5:
                with other:
                    time.sleep(0.001)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert counter == turns * 4
    assert lock.acquire(False) is True
    assert in_thread(other.acquire, False) is True


def test_handler_forks_while_its_thread_waits(mp):
    lock = mp.Lock()
    lock.acquire()

    def fork(*_):
        child = mp.Process(target=lock.release)
        child.start()
        child.join()

    with handler(fork):
        sender = signal_when_asleep()
        assert lock.acquire(True, LIMIT) is True
        sender.get()
    assert lock.acquire(False) is False
