"""Locks and fork: in a thread, while others wait, of what is held; processes that nobody made."""

import gc
import os
import sysconfig
import threading

import pytest
from sync_helpers import LIMIT, Task, in_thread, ours, wait_until, wait_until_asleep

from mproc_ext import context

KINDS = ("Lock", "RLock")


def in_fork(mp, function, started=lambda: None):
    """What a function returns in a forked child of multiprocessing's; calls another one as soon as
    there is a child."""
    reader, writer = mp.Pipe(False)
    child = mp.Process(target=lambda: writer.send(function()), name="Kid")
    child.start()
    started()
    writer.close()
    assert reader.poll(LIMIT)
    result = reader.recv()
    child.join()
    assert child.exitcode == 0
    return result


def in_bare_fork(function):
    """Whether a function returns something true in a child of os.fork."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = 0 if function() else 2
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def test_counts_start_anew(mp):
    lock = mp.RLock()
    for _ in range(3):
        lock.acquire()

    def look():
        sem = lock._semlock
        return sem._count(), sem._is_mine(), repr(lock), lock.acquire(False)

    assert in_fork(mp, look) == (0, False, "<RLock(SomeOtherProcess, nonzero)>", False)
    assert lock._semlock._count() == 3
    for _ in range(3):
        lock.release()
    assert in_fork(mp, lambda: (lock.acquire(False), lock.acquire(False), repr(lock))) == (
        True,
        True,
        "<RLock(Kid, 2)>",
    )


def test_condition_is_not_the_childs(mp):
    condition = mp.Condition()

    def use():
        try:
            condition.notify()
        except AssertionError as error:
            return str(error)

    with condition:
        assert in_fork(mp, use) == "lock is not owned"
        condition.notify()


def test_fork_in_a_thread(mp, kind):
    """The thread that forks is the child's main thread."""
    lock = getattr(mp, kind)()

    def fork():
        with lock:
            return in_fork(mp, lambda: (lock._semlock._is_mine(), lock.acquire(False)))

    assert in_thread(fork, name="T") == (False, False)
    assert in_thread(lambda: in_fork(mp, lambda: lock.acquire(False))) is True


def test_thread_and_main_in_the_child(mp):
    """Threads of the child are told apart as those of the parent are."""
    lock = mp.RLock()

    def look():
        lock.acquire()
        other = in_thread(lambda: (lock.acquire(False), repr(lock)))
        return other, lock._semlock._count()

    assert in_thread(in_fork, mp, look) == ((False, "<RLock(SomeOtherThread, nonzero)>"), 1)


def test_fork_while_a_thread_sleeps_in_acquire(mp, kind):
    lock = getattr(mp, kind)()
    lock.acquire()
    waiter = Task(lambda: (lock.acquire(), lock.release()))
    wait_until_asleep(waiter)
    reader, writer = mp.Pipe(False)

    def child_work():
        writer.send("here")
        lock.acquire()
        writer.send("got it")
        lock.release()

    child = mp.Process(target=child_work)
    child.start()
    assert reader.recv() == "here"
    wait_until_asleep(child)
    lock.release()
    assert waiter.get() == (True, None)
    assert reader.poll(LIMIT)
    assert reader.recv() == "got it"
    child.join()
    assert child.exitcode == 0
    assert lock.acquire(False) is True


@pytest.mark.parametrize("kind", ["Event", "Condition", "Barrier"])
def test_fork_while_a_thread_waits(mp, kind):
    thing = mp.Barrier(2) if kind == "Barrier" else getattr(mp, kind)()

    def wait():
        if kind == "Condition":
            with thing:
                return thing.wait(LIMIT)
        return thing.wait(LIMIT)

    waiter = Task(wait)
    wait_until_asleep(waiter)

    def wake():
        if kind == "Event":
            thing.set()
        elif kind == "Barrier":
            thing.wait(LIMIT)
        else:
            with thing:
                thing.notify()
        return True

    assert in_fork(mp, wake) is True
    assert waiter.get() in (True, 0)


def test_fork_while_threads_take_and_release(mp, kind):
    """Whatever a thread is in the middle of, the lock is whole in the child.

    Without a GIL the interpreter's own lock of an object, which a thread has or is about to get at
    the fork, stays locked in the child: so child and threads share no closure here, and the
    stdlib's locks, which use that lock, are left out.
    """
    if sysconfig.get_config_var("Py_GIL_DISABLED") and not isinstance(mp, context.BaseContext):
        pytest.skip("the stdlib's lock may stay locked in the child")
    lock = getattr(mp, kind)()
    stop, going = threading.Event(), threading.Event()
    turns = [0, 0]

    def work(number, lock, stop, going, turns):
        while not stop.is_set():
            with lock:
                pass
            turns[number] += 1
            going.wait()  # else they may leave no moment for the child

    def look(lock=lock):
        return [lock.acquire(True, LIMIT), lock.release()]

    tasks = [Task(work, number, lock, stop, going, turns) for number in range(2)]
    try:
        for _ in range(20):
            before = list(turns)
            going.set()
            wait_until(lambda before=before: turns[0] > before[0] and turns[1] > before[1])
            assert in_fork(mp, look, going.clear) == [True, None]
    finally:
        stop.set()
        going.set()
    for task in tasks:
        task.get()
    assert lock.acquire(False) is True


def test_grandchildren(mp, kind):
    lock = getattr(mp, kind)()
    lock.acquire()

    def look():
        return lock._semlock._is_mine(), lock.acquire(False)

    assert in_fork(mp, lambda: in_fork(mp, lambda: in_fork(mp, look))) == (False, False)
    lock.release()
    assert in_fork(mp, lambda: in_fork(mp, look)) == (False, True)


def test_made_in_a_child(mp):
    def use():
        lock, event = mp.Lock(), mp.Event()
        lock.acquire()
        seen = in_fork(mp, lambda: (lock.acquire(False), event.set()))
        return seen, event.is_set()

    assert in_fork(mp, use) == ((False, None), True)


def test_dropped_in_one_process(mp):
    """What one process drops, another one goes on to use: the memory is not given out again."""
    locks = [mp.Lock() for _ in range(50)]
    for lock in locks[::2]:
        lock.acquire()
    ready, go = mp.Event(), mp.Event()
    reader, writer = mp.Pipe(False)

    def check(locks):
        ready.set()
        go.wait(LIMIT)
        writer.send([lock.acquire(False) for lock in locks])

    child = mp.Process(target=check, args=(locks,))
    child.start()
    # The process object lets go of the arguments of a child that has started.
    assert ready.wait(LIMIT)
    del locks, lock
    gc.collect()
    more = [mp.Lock() for _ in range(200)]
    assert all(lock.acquire(False) for lock in more)
    go.set()
    assert reader.recv() == [False, True] * 25
    child.join()
    assert not any(lock.acquire(False) for lock in more)


def test_bare_fork(mp, kind):
    """A child of os.fork, which runs none of multiprocessing's hooks."""
    lock = getattr(mp, kind)()
    assert in_bare_fork(lambda: lock.acquire(False) and lock.release() is None)
    assert lock.acquire(False) is True
    lock.release()

    def hold(*_):
        with lock:
            os.write(writer, b"x")
            return os.read(release, 1) == b"x"

    reader, writer = os.pipe()
    release, releaser = os.pipe()
    task = Task(in_bare_fork, hold)
    assert os.read(reader, 1) == b"x"
    assert lock.acquire(False) is False
    os.write(releaser, b"x")
    assert task.get()
    assert lock.acquire(True, LIMIT) is True
    for fd in (reader, writer, release, releaser):
        os.close(fd)


@pytest.mark.skipif(not ours("Lock"), reason="the stdlib's child takes itself for the owner")
@pytest.mark.parametrize("kind", KINDS)
def test_bare_fork_does_not_own(kind):
    import mproc_ext

    lock = getattr(mproc_ext.get_context("fork"), kind)()
    with lock:
        assert in_bare_fork(lambda: not lock._semlock._is_mine() and not lock.acquire(False))
        assert lock._semlock._is_mine()


def test_the_end_of_a_bare_child_changes_nothing(mp, kind):
    """It held nothing, so nothing of it is recovered."""
    import warnings

    lock = getattr(mp, kind)()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with lock:
            assert in_bare_fork(lambda: True)
            assert in_thread(lock.acquire, False) is False
        assert in_thread(lock.acquire, False) is True
