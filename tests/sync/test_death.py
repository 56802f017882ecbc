"""Who holds a lock, or waits, is killed: nobody else hangs.  (The stdlib's locks do.)

Nothing here measures how soon: that a test ends at all is what it says.
"""

import os
import pathlib
import signal
import threading
import time
import warnings

import pytest
import sync_targets as targets
from sync_helpers import (
    LIMIT,
    Child,
    Task,
    in_thread,
    ours,
    recorded_warnings,
    run_program,
    wait_until,
    wait_until_asleep,
)

import mproc_ext

pytestmark = pytest.mark.skipif(
    not ours("Lock"), reason="mproc_ext.synchronize hands out the stdlib's locks"
)
needs_condition = pytest.mark.skipif(not ours("Condition"), reason="Condition is the stdlib's")
needs_event = pytest.mark.skipif(not ours("Event"), reason="Event is the stdlib's")
needs_barrier = pytest.mark.skipif(not ours("Barrier"), reason="Barrier is the stdlib's")

KINDS = ("Lock", "RLock")
STILL = 0.4  # seconds after which what has not been recovered will not be: several re-checks


@pytest.fixture
def ctx(method):
    return mproc_ext.get_context(method)


@pytest.fixture
def fork():
    return mproc_ext.get_context("fork")


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def held_by_child(ctx, *locks):
    child = Child(ctx, targets.hold, *locks)
    child.expect("held")
    return child


def free(lock):
    """Whether another thread gets it; it is as it was afterwards."""
    return in_thread(lambda: lock.acquire(False) and lock.release() is None)


# ---- The owner is killed -----------------------------------------------------------------------


def test_acquire_that_waits(ctx, kind):
    lock = getattr(ctx, kind)()
    held_by_child(ctx, lock).kill()
    with recorded_warnings() as found:
        assert lock.acquire() is True
    assert len(found) == 1
    assert lock._semlock._count() == 1
    assert lock._semlock._is_mine()
    assert "MainProcess" in repr(lock)
    lock.release()
    assert free(lock)


def test_acquire_that_waits_already(ctx, kind):
    """The death comes during the wait."""
    lock = getattr(ctx, kind)()
    child = held_by_child(ctx, lock)
    with recorded_warnings() as found:
        waiter = Task(lambda: (lock.acquire(), lock.release()))
        wait_until_asleep(waiter)
        child.kill()
        assert waiter.get() == (True, None)
    assert len(found) == 1
    assert free(lock)


def test_acquire_with_a_timeout(fork, kind):
    lock = getattr(fork, kind)()
    held_by_child(fork, lock).kill()
    with recorded_warnings() as found:
        assert lock.acquire(True, LIMIT) is True
    assert len(found) == 1


@pytest.mark.parametrize("arguments", [(False,), (True, 0), (True, -1), (True, 0.001)])
def test_acquire_that_does_not_wait(fork, kind, arguments):
    """It looks now and then only; who asks again and again gets it."""
    lock = getattr(fork, kind)()
    held_by_child(fork, lock).kill()
    with recorded_warnings() as found:
        wait_until(lambda: lock.acquire(*arguments))
    assert len(found) == 1
    lock.release()
    assert free(lock)


def test_with(fork, kind):
    lock = getattr(fork, kind)()
    held_by_child(fork, lock).kill()
    with recorded_warnings() as found:
        with lock:
            assert not free(lock)
    assert len(found) == 1
    assert free(lock)


def test_many_times_held(fork):
    """An RLock that its owner held three times is the next owner's once."""
    lock = fork.RLock()
    held_by_child(fork, lock, lock, lock).kill()
    with recorded_warnings() as found:
        assert lock.acquire() is True
        assert lock.acquire() is True
    assert len(found) == 1
    assert lock._semlock._count() == 2
    lock.release()
    lock.release()
    assert free(lock)


def test_many_locks(fork):
    locks = [getattr(fork, kind)() for kind in KINDS * 10]
    held_by_child(fork, *locks).kill()
    with recorded_warnings() as found:
        for lock in locks:
            assert lock.acquire() is True
    assert len(found) == len(locks)


def test_recovered_by_one(fork, kind):
    """Of all that wait, one after the other gets it, and it is recovered once."""
    lock = getattr(fork, kind)()
    child = held_by_child(fork, lock)
    others = [Child(fork, targets.acquire, lock) for _ in range(3)]
    inside = []

    def work():
        with lock:
            inside.append(1)
            assert len(inside) == 1
            time.sleep(0)
            inside.pop()

    threads = [Task(work) for _ in range(3)]
    for other in others:
        other.expect("waits")
        wait_until_asleep(other)
    for thread in threads:
        wait_until_asleep(thread)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child.kill()
        for other in others:
            other.expect("got it")
            other.join()
        for thread in threads:
            thread.get()
    assert free(lock)


def test_the_next_owner_dies_too(fork, kind):
    lock = getattr(fork, kind)()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(5):
            held_by_child(fork, lock).kill()
        assert lock.acquire() is True
    lock.release()
    assert free(lock)


def test_one_warning_for_a_lock_and_process(fork, kind):
    lock, another = getattr(fork, kind)(), getattr(fork, kind)()
    with recorded_warnings() as found:
        for _ in range(3):
            held_by_child(fork, lock).kill()
            with lock:
                pass
    assert len(found) == 1
    held_by_child(fork, another).kill()
    with recorded_warnings() as found:
        assert another.acquire() is True
    assert len(found) == 1


def test_where_the_warning_is_an_error(fork, kind):
    """The lock is released first: whoever catches the error has nothing to release."""
    lock = getattr(fork, kind)()
    held_by_child(fork, lock).kill()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            lock.acquire()
        assert lock._semlock._count() == 0
        assert not lock._semlock._is_mine()
        assert free(lock)
        assert lock.acquire(False) is True
        lock.release()


def test_where_the_warning_is_an_error_with(fork, kind):
    lock = getattr(fork, kind)()
    held_by_child(fork, lock).kill()
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        with pytest.raises(RuntimeWarning):
            with lock:
                pytest.fail("it was entered")
        assert free(lock)


def test_a_zombie_is_dead(fork, kind):
    lock = getattr(fork, kind)()
    child = held_by_child(fork, lock)
    child.kill_unreaped()
    stat = pathlib.Path(f"/proc/{child.pid}/stat")
    assert stat.read_text().rpartition(")")[2].split()[0] == "Z"
    with recorded_warnings() as found:
        assert lock.acquire() is True
    assert len(found) == 1
    assert stat.exists()  # it was nobody's business to reap it
    child.join(-signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM])
def test_other_signals(fork, kind, number):
    lock = getattr(fork, kind)()
    child = held_by_child(fork, lock)
    os.kill(child.pid, number)
    child.process.join(LIMIT)
    with recorded_warnings() as found:
        assert lock.acquire() is True
    assert len(found) == 1


def test_os_exit_counts_as_killed(ctx, kind):
    lock = getattr(ctx, kind)()
    child = held_by_child(ctx, lock)
    child.send("os._exit")
    child.join()
    with recorded_warnings() as found:
        assert lock.acquire() is True
    assert len(found) == 1


def test_the_dead_ones_thread_held_it(fork, kind):
    """It is the process that owns: a thread of it that has ended had taken the lock."""
    lock = getattr(fork, kind)()

    def work(connection, lock):
        in_thread(lock.acquire)
        connection.send("held")
        connection.recv()

    child = Child(fork, work, lock)
    child.expect("held")
    assert lock.acquire(True, STILL) is False
    child.kill()
    with recorded_warnings() as found:
        assert lock.acquire() is True
    assert len(found) == 1


def test_the_parent_is_killed():
    """A program's main process holds the lock and is killed; its child goes on."""
    program = """
import os, signal, sys, warnings, mproc_ext
ctx = mproc_ext.get_context("fork")
lock, done = ctx.Lock(), os.pipe()
middle = os.fork()
if middle == 0:
    lock.acquire()
    if os.fork() == 0:
        parent = os.getppid()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            os.kill(parent, signal.SIGKILL)
            got = lock.acquire()
        os.write(done[1], f"{got} {len(caught)}".encode())
        os._exit(0)
    signal.pause()
os.waitpid(middle, 0)
print(os.read(done[0], 100).decode())
"""
    assert run_program("-c", program) == "True 1\n"


# ---- It is not recovered -----------------------------------------------------------------------


def test_a_stopped_owner_lives(fork, kind):
    lock = getattr(fork, kind)()
    child = held_by_child(fork, lock)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED)
    with recorded_warnings() as found:
        assert lock.acquire(True, STILL) is False
        assert lock.acquire(False) is False
    assert found == []
    child.send("release")
    os.kill(child.pid, signal.SIGCONT)
    assert lock.acquire(True, LIMIT) is True
    child.expect("done")
    child.join()


def test_a_thread_that_ends_keeps_it(fork, kind):
    lock = getattr(fork, kind)()
    in_thread(lock.acquire)
    with recorded_warnings() as found:
        assert lock.acquire(True, STILL) is False
    assert found == []
    if kind == "Lock":
        assert lock.release() is None
        assert free(lock)


@pytest.mark.parametrize("how", ["end", "sys.exit", "raise"])
def test_a_process_that_exits_leaves_it_locked(ctx, how):
    """Some programs take a lock in one process and release it in another."""
    lock = ctx.Lock()
    child = held_by_child(ctx, lock)
    child.send(how)
    child.process.join(LIMIT)
    assert child.process.exitcode == {"end": 0, "sys.exit": 3, "raise": 1}[how]
    with recorded_warnings() as found:
        assert lock.acquire(True, STILL) is False
        assert lock.acquire(False) is False
        assert lock.locked() is True
        assert repr(lock) == "<Lock(owner=SomeOtherProcess)>"
        assert lock.release() is None
        assert lock.acquire(False) is True
    assert found == []


def test_left_locked_released_by_a_third(fork):
    lock = fork.Lock()
    child = held_by_child(fork, lock)
    child.send("end")
    child.expect("done")
    child.join()
    waiter = Child(fork, targets.acquire, lock)
    waiter.expect("waits")
    wait_until_asleep(waiter)
    third = fork.Process(target=lock.release)
    third.start()
    third.join()
    waiter.expect("got it")
    waiter.join()
    assert free(lock)


def test_a_main_program_that_exits_leaves_it_locked():
    program = """
import os, sys, mproc_ext
ctx = mproc_ext.get_context("fork")
lock, done = ctx.Lock(), os.pipe()
middle = os.fork()
if middle == 0:
    lock.acquire()
    parent = os.getpid()
    if os.fork() == 0:
        while os.getppid() == parent:
            os.sched_yield()
        seen = lock.acquire(True, 0.3), lock.release(), lock.acquire(False)
        os.write(done[1], repr(seen).encode())
        os._exit(0)
    sys.exit(0)
os.waitpid(middle, 0)
print(os.read(done[0], 100).decode())
"""
    assert run_program("-W", "error::RuntimeWarning", "-c", program) == "(False, None, True)\n"


def test_what_was_released_is_not_recovered(fork, kind):
    lock = getattr(fork, kind)()
    child = held_by_child(fork, lock)
    child.send("release")
    child.expect("done")
    child.join()
    with recorded_warnings() as found:
        assert lock.acquire(False) is True
    assert found == []


def test_released_by_another_before_the_death(fork):
    """The dead one took it once; it was released for it, and somebody else has it."""
    lock = fork.Lock()
    child = held_by_child(fork, lock)
    lock.release()
    lock.acquire()
    child.kill()
    with recorded_warnings() as found:
        assert in_thread(lock.acquire, True, STILL) is False
    assert found == []
    lock.release()
    assert free(lock)


def test_permits_of_the_dead_stay_lost(fork):
    semaphore = fork.Semaphore(2)
    held_by_child(fork, semaphore).kill()
    with recorded_warnings() as found:
        assert semaphore.get_value() == 1
        assert semaphore.acquire(False) is True
        assert semaphore.acquire(True, STILL) is False
    assert found == []


# ---- Who waits is killed -----------------------------------------------------------------------


def waiting_children(ctx, target, thing, count):
    children = [Child(ctx, target, thing) for _ in range(count)]
    for child in children:
        child.expect("waits")
    for child in children:
        wait_until_asleep(child)
    return children


@pytest.mark.parametrize("kind", [*KINDS, "Semaphore", "BoundedSemaphore"])
def test_waiters_of_a_lock(ctx, kind):
    lock = getattr(ctx, kind)()
    lock.acquire()
    first, second, third = waiting_children(ctx, targets.acquire, lock, 3)
    first.kill()
    second.kill()
    lock.release()
    third.expect("got it")
    third.join()
    assert lock.acquire(True, LIMIT) is True


@pytest.mark.parametrize("kind", [*KINDS, "Semaphore"])
def test_a_waiter_that_is_being_woken(fork, kind):
    """Killed at the same moment as the wake reaches it: another one is woken."""
    for turn in range(15):
        lock = getattr(fork, kind)()
        lock.acquire()
        first, second = waiting_children(fork, targets.acquire, lock, 2)
        if turn % 3 == 0:
            os.kill(first.pid, signal.SIGSTOP)  # has the wake, and does nothing with it
            os.waitid(os.P_PID, first.pid, os.WSTOPPED)
        lock.release()
        first.process.kill()
        if kind == "Semaphore":
            # The first may have taken the one permit with it.
            first.process.join()
            wait_until(lambda: second.connection.poll() or lock.get_value() == 0)
            if not second.connection.poll(0.05):
                lock.release()
        second.expect("got it")
        second.join()
        first.process.join()


@needs_condition
def test_waiters_of_a_condition(ctx):
    condition = ctx.Condition()
    first, second = waiting_children(ctx, targets.wait_condition, condition, 2)
    first.kill()
    with condition:
        condition.notify()  # returns: the stdlib's waits for the dead
    second.expect(True)
    second.join()
    with condition:
        condition.notify_all()
        condition.notify()


@needs_condition
def test_all_waiters_of_a_condition(fork):
    condition = fork.Condition()
    for child in waiting_children(fork, targets.wait_condition, condition, 3):
        child.kill()
    with condition:
        condition.notify(2)
        condition.notify_all()
        assert condition.wait(0.01) is False
    living = Task(lambda: waited(condition))
    wait_until_asleep(living)
    with condition:
        condition.notify()
    assert living.get() is True


def waited(condition):
    with condition:
        return condition.wait(LIMIT)


@needs_condition
def test_a_waiter_of_a_condition_killed_in_the_wake(fork):
    """It was notified and killed before it had the lock again: nobody hangs, nothing is left."""
    condition = fork.Condition()
    for _ in range(15):
        (child,) = waiting_children(fork, targets.wait_condition, condition, 1)
        with condition:
            condition.notify()
            child.kill()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with condition:
                condition.notify_all()


@needs_condition
def test_the_owner_of_a_conditions_lock(fork):
    condition = fork.Condition()
    (waiter,) = waiting_children(fork, targets.wait_condition, condition, 1)
    held_by_child(fork, condition).kill()
    with recorded_warnings() as found:
        with condition:
            condition.notify()
    assert len(found) == 1
    waiter.expect(True)
    waiter.join()


@needs_event
def test_waiters_of_an_event(ctx):
    event = ctx.Event()
    first, second = waiting_children(ctx, targets.wait_event, event, 2)
    first.kill()
    event.set()
    second.expect(True)
    second.join()
    event.clear()
    (third,) = waiting_children(ctx, targets.wait_event, event, 1)
    third.kill()
    event.set()
    event.clear()
    assert event.wait(0.01) is False


@needs_event
def test_setters_of_an_event_killed_anywhere(fork):
    """However far they got, the event works."""
    event = fork.Event()

    def work(connection):
        connection.send("here")
        while True:
            event.set()
            event.is_set()
            event.clear()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(20):
            child = Child(fork, work)
            child.expect("here")
            event.wait(0.002)
            child.kill()
        event.clear()
        assert event.is_set() is False
        waiter = Task(event.wait, LIMIT)
        wait_until_asleep(waiter)
        event.set()
        assert waiter.get() is True


@needs_barrier
def test_a_party_of_a_barrier(ctx):
    """It had arrived: the others may pass or find the barrier broken, but do not hang, and after
    a reset it is as good as new."""
    barrier = ctx.Barrier(2)
    child = Child(ctx, targets.pass_barrier, barrier)
    wait_until(lambda: barrier.n_waiting == 1)
    child.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            barrier.wait(1)
        except threading.BrokenBarrierError:
            pass
        if barrier.broken:
            barrier.reset()
        for _ in range(3):
            child = Child(ctx, targets.pass_barrier, barrier)
            barrier.wait(LIMIT)
            assert child.recv()[0] in (0, 1)
            child.join()


@needs_barrier
def test_a_party_of_a_barrier_killed_while_it_leaves(fork):
    """The generation is complete, and one of it never leaves: the next one comes all the same."""
    barrier = fork.Barrier(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for turn in range(10):
            child = Child(fork, targets.pass_barrier, barrier)
            wait_until(lambda: barrier.n_waiting == 1)
            if turn % 2:
                wait_until_asleep(child)
                os.kill(child.pid, signal.SIGSTOP)
                os.waitid(os.P_PID, child.pid, os.WSTOPPED)
            task = Task(passed, barrier)
            task.join(0.05)  # it may pass at once, or wait for the child to leave
            child.process.kill()
            child.process.join()
            task.get()
            if barrier.broken or barrier.n_waiting:
                barrier.reset()
            tasks = [Task(barrier.wait, LIMIT) for _ in range(2)]
            assert sorted(task.get() for task in tasks) == [0, 1]


@needs_barrier
def test_a_party_of_a_barrier_killed_before_it_tells_the_others(fork):
    """The last one in has let the others through, but not woken them."""
    barrier = fork.Barrier(3)

    def work(connection):
        barrier._cond.notify_all = lambda: os.kill(os.getpid(), signal.SIGKILL)
        barrier.wait()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tasks = [Task(barrier.wait) for _ in range(2)]
        wait_until(lambda: barrier.n_waiting == 2)
        for task in tasks:
            wait_until_asleep(task)
        Child(fork, work).join(-signal.SIGKILL)
        assert sorted(task.get() for task in tasks) == [0, 1]
        tasks = [Task(barrier.wait) for _ in range(3)]
        assert sorted(task.get() for task in tasks) == [0, 1, 2]


def passed(barrier):
    try:
        return barrier.wait(5)
    except threading.BrokenBarrierError:
        return None


@needs_barrier
def test_abort_and_reset_after_deaths(fork):
    barrier = fork.Barrier(3)
    children = [Child(fork, targets.pass_barrier, barrier) for _ in range(2)]
    wait_until(lambda: barrier.n_waiting == 2)
    for child in children:
        child.kill()
    barrier.abort()
    assert barrier.broken is True
    barrier.reset()
    assert (barrier.broken, barrier.n_waiting) == (False, 0)
    tasks = [Task(barrier.wait, LIMIT) for _ in range(3)]
    assert sorted(task.get() for task in tasks) == [0, 1, 2]


# ---- Value's lock, and others that are made of locks -------------------------------------------


def test_the_lock_of_a_value(fork):
    value = fork.Value("i", 5)
    child = Child(fork, lambda connection: targets.hold(connection, value.get_lock()))
    child.expect("held")
    child.kill()
    with recorded_warnings() as found:
        with value:
            value.value += 1
    assert len(found) == 1
    assert value.value == 6


def test_nothing_is_left_when_all_are_killed():
    """kill -9 of everything: they had no name in any file system, so there is none left."""
    program = """
import os, signal, sys, mproc_ext
ctx = mproc_ext.get_context("fork")
things = [ctx.Lock(), ctx.RLock(), ctx.Event(), ctx.Condition(), ctx.Semaphore(3), ctx.Barrier(2)]
things[0].acquire()
for _ in range(2):
    ctx.Process(target=things[0].acquire).start()
used = open("/proc/self/maps").read().splitlines() + [
    os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if fd.isdigit()
    and os.path.lexists(f"/proc/self/fd/{fd}")]
named = [name for name in used if "/dev/shm" in name and not name.endswith(" (deleted)")]
print("ready", named, flush=True)
os.killpg(0, signal.SIGKILL)
"""
    assert run_program("-c", program, expect=-signal.SIGKILL) == "ready []\n"
