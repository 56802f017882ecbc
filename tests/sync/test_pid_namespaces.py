"""Locks, conditions and starts of processes where these are in several PID namespaces.

A number of a process says nothing in another namespace: who holds a lock there must not be taken
for dead, nor for oneself, and must be found dead when it is.
"""

import os
import signal
import tempfile
import time

import pytest
from pid_namespaces import Inside, free_pid, why_not
from sync_helpers import LIMIT, ours, recorded_warnings, run_program, wait_until

import mproc_ext

pytestmark = [
    pytest.mark.skipif(not ours("Lock"), reason="the locks are the stdlib's"),
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

SOME_LOOKS = 0.3  # seconds in which who waits looks several times whether the owner lives

ctx = mproc_ext.get_context("fork")
number = pytest.mark.parametrize("number", ["free", "same"])
proc = pytest.mark.parametrize("proc", ["outer", "own", "absent"])
kind = pytest.mark.parametrize("kind", ["Lock", "RLock"])


def is_held_by_another(lock):
    """Seen by one who waits, and by one who tries again and again."""
    with recorded_warnings() as warned:
        if lock.acquire(timeout=SOME_LOOKS):
            return False
        end = time.monotonic() + SOME_LOOKS
        while time.monotonic() < end:
            if lock.acquire(False):
                return False
            time.sleep(0.01)
    return warned == []


def takes_over(lock):
    with recorded_warnings() as warned:
        start = time.monotonic()
        got = lock.acquire(timeout=LIMIT)
        took = time.monotonic() - start
    lock.release()
    return got and len(warned) == 1 and took < 5


def hold(connection, lock):
    """Hold it; released when told so, then held until the end."""
    lock.acquire()
    connection.send("held")
    connection.recv()
    lock.release()
    connection.send("released")
    connection.recv()
    lock.acquire()
    connection.send("held")
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)


def watch(connection, lock):
    """The other side of that."""
    connection.send(is_held_by_another(lock))
    connection.recv()
    with lock:
        connection.send("released")
    connection.recv()
    connection.send(is_held_by_another(lock))
    connection.recv()
    connection.send(takes_over(lock))


def play(holder, watcher):
    assert holder.recv() == "held"
    watcher.send(None)
    assert watcher.recv() is True
    holder.send(None)
    assert holder.recv() == "released"
    watcher.send(None)
    assert watcher.recv() == "released"
    holder.send(None)
    assert holder.recv() == "held"
    watcher.send(None)
    assert watcher.recv() is True
    holder.send(None)
    watcher.send(None)
    assert watcher.recv() is True


def watch_when_told(connection, lock):
    connection.recv()
    watch(connection, lock)


def outside(function, *args):
    """A process like Inside's, in the namespace of the tests."""
    ours_end, theirs = ctx.Pipe()
    process = ctx.Process(target=function, args=(theirs, *args))
    process.start()
    theirs.close()

    class Outside:
        pid = process.pid
        send = staticmethod(ours_end.send)

        @staticmethod
        def recv():
            assert ours_end.poll(LIMIT)
            return ours_end.recv()

        @staticmethod
        def join(exitcode=0):
            process.join(LIMIT)
            assert process.exitcode == exitcode

    return Outside


@kind
@number
@proc
def test_the_holder_is_inside(kind, number, proc):
    lock = getattr(ctx, kind)()
    watcher = outside(watch_when_told, lock)
    pid = watcher.pid if number == "same" else free_pid()
    holder = Inside(hold, lock, pid=pid, proc=proc)
    play(holder, watcher)
    watcher.join()
    holder.join(-signal.SIGKILL)


@kind
@number
@proc
def test_the_holder_is_outside(kind, number, proc):
    lock = getattr(ctx, kind)()
    holder = outside(hold, lock)
    pid = holder.pid if number == "same" else free_pid()
    watcher = Inside(watch_when_told, lock, pid=pid, proc=proc)
    play(holder, watcher)
    watcher.join()
    holder.join(-signal.SIGKILL)


@kind
@pytest.mark.parametrize("pids", [(7, 7), (7, 8)], ids=["same", "other"])
def test_each_is_in_a_namespace_of_its_own(kind, pids):
    lock = getattr(ctx, kind)()
    holder = Inside(hold, lock, pid=pids[0])
    watcher = Inside(watch_when_told, lock, pid=pids[1])
    play(holder, watcher)
    watcher.join()
    holder.join(-signal.SIGKILL)


def test_both_are_in_the_same_inner_namespace():
    lock = ctx.Lock()

    def run(connection):
        holder = outside(hold, lock)
        watcher = outside(watch_when_told, lock)
        play(holder, watcher)
        watcher.join()
        holder.join(-signal.SIGKILL)
        connection.send("done")

    inner = Inside(run, pid=500, proc="own")
    assert inner.recv() == "done"
    inner.join()


# ---- Who is who ----------------------------------------------------------------------------------


@kind
def test_a_copy_with_its_parents_number_has_not_acquired_what_that_has(kind):
    lock = getattr(ctx, kind)()

    def look(connection):
        sem = lock._semlock
        connection.send((sem._is_mine(), sem._count(), lock.acquire(False)))
        try:
            lock.release()
            connection.send("released")
        except AssertionError:
            connection.send("refused")

    with lock:
        inner = Inside(look, pid=os.getpid())
        assert inner.recv() == (False, 0, False)
        released = inner.recv()
        inner.join()
        if kind == "RLock":
            assert released == "refused"
            assert lock._semlock._is_mine()
            assert lock._semlock._count() == 1
        else:
            assert released == "released"  # anyone may
            assert lock.acquire(False)


def test_a_copy_that_ends_in_good_order_leaves_its_parents_lock_alone():
    lock = ctx.Lock()

    def end(connection):
        from mproc_ext import _core

        with ctx.Lock():
            _core.disown_locks()

    lock.acquire()
    Inside(end, pid=os.getpid()).join()

    def wait(connection):
        connection.send(is_held_by_another(lock))
        connection.recv()
        connection.send(takes_over(lock))

    # Nobody's lock is never recovered: this one must still be.
    def hold_here(connection):
        with lock:
            Inside(end, pid=os.getpid()).join()
            connection.send("held")
            connection.recv()
            os.kill(os.getpid(), signal.SIGKILL)

    lock.release()
    holder = outside(hold_here)
    assert holder.recv() == "held"
    watcher = outside(wait)
    assert watcher.recv() is True
    holder.send(None)
    watcher.send(None)
    assert watcher.recv() is True
    watcher.join()
    holder.join(-signal.SIGKILL)


# ---- Conditions, events, barriers ----------------------------------------------------------------


@pytest.mark.skipif(not ours("Condition"), reason="Condition is the stdlib's")
@number
def test_a_notify_goes_from_namespace_to_namespace(number):
    condition, back = ctx.Condition(), ctx.Condition()
    pid = os.getpid() if number == "same" else free_pid()

    def wait(connection):
        with condition:
            connection.send("waits")
            connection.send(condition.wait(LIMIT))
        connection.recv()
        with back:
            back.notify()

    inner = Inside(wait, pid=pid)
    assert inner.recv() == "waits"
    with condition:
        time.sleep(SOME_LOOKS)
        assert condition._sleeping_count.get_value() == 1
        condition.notify()
    assert inner.recv() is True
    with back:
        inner.send(None)
        assert back.wait(LIMIT)
    inner.join()


@pytest.mark.skipif(not ours("Condition"), reason="Condition is the stdlib's")
@number
def test_the_notify_of_a_waiter_killed_inside_goes_to_a_living_one(number):
    condition = ctx.Condition()

    def wait(connection):
        with condition:
            connection.send("waits")
            connection.send(condition.wait(LIMIT))

    first = Inside(wait, pid=os.getpid() if number == "same" else free_pid())
    assert first.recv() == "waits"
    second = outside(wait)
    assert second.recv() == "waits"
    with condition:
        os.kill(first.outer_pid, signal.SIGKILL)
        first.join(-signal.SIGKILL)
        condition.notify()  # the older one
    assert second.recv() is True
    second.join()


@pytest.mark.skipif(not ours("Event"), reason="Event is the stdlib's")
def test_an_event_is_seen_in_all_namespaces():
    there, here = ctx.Event(), ctx.Event()

    def wait(connection):
        connection.send(there.wait(LIMIT))
        here.set()

    inner = Inside(wait, pid=os.getpid())
    there.set()
    assert inner.recv() is True
    assert here.wait(LIMIT)
    inner.join()


@pytest.mark.skipif(not ours("Barrier"), reason="Barrier is the stdlib's")
def test_a_barrier_counts_the_living_of_all_namespaces():
    barrier = ctx.Barrier(2)

    def enter(connection):
        connection.send("enters")
        connection.send(barrier.wait(LIMIT))

    killed = Inside(enter, pid=os.getpid())
    assert killed.recv() == "enters"
    wait_until(lambda: barrier.n_waiting == 1)
    killed.kill()
    living = Inside(enter, pid=os.getpid())
    assert living.recv() == "enters"
    wait_until(lambda: barrier.n_waiting == 1)
    time.sleep(SOME_LOOKS)
    assert sorted([barrier.wait(LIMIT), living.recv()]) == [0, 1]
    living.join()


# ---- Starting processes --------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys, time, warnings
sys.path.insert(0, {folder!r})
import mproc_ext
from pid_namespaces import CLONE_NEWPID, Inside, free_pid, unshare
from test_pid_namespaces import is_held_by_another, takes_over
from mproc_ext import _core

def hold(connection, lock):
    lock.acquire()
    connection.send(_core.is_foreign())
    connection.recv()
    os.kill(os.getpid(), signal.SIGKILL)

def run(ctx):
    lock = ctx.Lock()
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=hold, args=(theirs, lock))
    process.start()
    foreign = ours.recv()
    assert is_held_by_another(lock)
    ours.send(None)
    assert takes_over(lock)
    process.join()
    assert process.exitcode == -signal.SIGKILL, process.exitcode
    return foreign
"""


def run(program, *args, **kwargs):
    """Run it from a file: spawned children import their functions from it."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "program.py")
        with open(path, "w") as file:
            file.write(PROGRAM.format(folder=os.path.dirname(__file__)) + program)
        return run_program(path, *args, **kwargs)


def test_slots_that_only_the_dead_inside_held_are_used_again():
    """In a program of its own, whose arena has held nothing else."""
    program = """
def make(connection):
    locks = [ctx.Lock() for _ in range(3000)]
    connection.send(len(locks))
    connection.recv()

if __name__ == "__main__":
    ctx = mproc_ext.get_context("fork")
    for _ in range(4):
        inner = Inside(make, pid=os.getpid())
        assert inner.recv() == 3000
        here = [ctx.Lock() for _ in range(3000)]
        numbers = {lock._semlock.handle for lock in here}
        assert len(numbers) == 3000
        inner.kill()
        del here
    # Had the dead kept theirs, the numbers would have come to four times as many.
    assert max(numbers) < 4096 * 2 + 64, max(numbers)
    assert not _core.is_foreign()
    print("all right")
"""
    assert run(program) == "all right\n"


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_child_that_is_started_in_another_namespace(method):
    program = """
if __name__ == "__main__":
    unshare(CLONE_NEWPID)
    ctx = mproc_ext.get_context(sys.argv[1])
    lock = ctx.Lock()
    ours, theirs = ctx.Pipe()
    first = ctx.Process(target=time.sleep, args=(1000,))
    first.start()  # the namespace lives as long as this one
    print(run(ctx))
    first.kill()
    first.join()
"""
    assert run(program, method) == "True\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_children_of_a_process_in_another_namespace(method):
    program = """
def inner(connection, ctx):
    connection.send((_core.is_foreign(), run(ctx)))

if __name__ == "__main__":
    ctx = mproc_ext.get_context(sys.argv[1])
    print(run(ctx))
    inside = Inside(inner, ctx, pid=os.getpid(), proc="own")
    print(*inside.recv())
    inside.join()
    print(run(ctx))
"""
    assert run(program, method) == "False\nTrue True\nFalse\n"


def test_two_namespaces_have_two_fork_servers():
    """Each gives its clients numbers of their own namespace, and kills the right ones' children."""
    program = """
def start(ctx):
    process = ctx.Process(target=time.sleep, args=(1000,), daemon=True)
    process.start()
    return process

def inner(connection, ctx, outer_child):
    process = start(ctx)
    with open(f"/proc/{process.pid}/stat") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    connection.send(parent != 0)
    process.terminate()
    process.join()
    connection.send(process.exitcode)
    start(ctx)

if __name__ == "__main__":
    ctx = mproc_ext.get_context("forkserver")
    process = start(ctx)
    inside = Inside(inner, ctx, process.pid, pid=os.getpid(), proc="own")
    print(inside.recv(), inside.recv())
    inside.join()
    print(process.is_alive())
    process.kill()
    process.join()
    print(process.exitcode)
"""
    assert run(program) == f"True {-signal.SIGTERM}\nTrue\n{-signal.SIGKILL}\n"


def test_a_fork_server_for_another_namespace_is_refused():
    program = """
import errno
if __name__ == "__main__":
    ctx = mproc_ext.get_context("forkserver")
    unshare(CLONE_NEWPID)
    try:
        run(ctx)
    except OSError as error:
        print(errno.errorcode[error.errno], "start it before os.unshare" in str(error))
"""
    assert run(program) == "EXDEV True\n"


def test_a_fork_server_that_runs_goes_on_after_unshare():
    program = """
if __name__ == "__main__":
    ctx = mproc_ext.get_context("forkserver")
    print(run(ctx))
    unshare(CLONE_NEWPID)
    print(run(ctx))
"""
    assert run(program) == "False\nFalse\n"


# ---- Without a /proc of one's own ----------------------------------------------------------------


# A zombie can be told from a living process with a pidfd or with the /proc of its namespace.
@pytest.mark.parametrize(
    ("proc", "without"),
    [
        ("own", ""),
        ("own", "pidfd"),
        ("own", "pidfd,robust_list"),
        ("outer", ""),
        ("outer", "robust_list"),
        ("absent", ""),
        ("absent", "robust_list"),
    ],
)
def test_a_program_that_is_in_an_inner_namespace_as_a_whole(proc, without):
    program = """
if __name__ == "__main__":
    print(run(mproc_ext.get_context("fork")))
"""

    def start(connection):
        connection.send(run(program, env={"MPROC_EXT_WITHOUT": without}))

    inner = Inside(start, pid=free_pid(), proc=proc)
    assert inner.recv() == "False\n"
    inner.join()


def test_the_proc_of_an_outer_namespace_is_not_believed():
    """What it says of the holder's number is about a zombie."""
    program = """
from pid_namespaces import choose_pid
if __name__ == "__main__":
    ctx = mproc_ext.get_context("fork")
    lock = ctx.Lock()
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=hold, args=(theirs, lock))
    choose_pid(int(sys.argv[1]))
    process.start()
    ours.recv()
    print(process.pid, is_held_by_another(lock))
    ours.send(None)
    process.join()
    print(takes_over(lock))
"""
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    os.waitid(os.P_PID, zombie, os.WEXITED | os.WNOWAIT)

    def start(connection):
        connection.send(run(program, zombie, env={"MPROC_EXT_WITHOUT": "pidfd"}))

    inner = Inside(start, pid=free_pid())
    printed = inner.recv()
    inner.join()
    os.waitpid(zombie, 0)
    assert printed == f"{zombie} True\nTrue\n"


def test_a_process_without_proc_is_never_taken_for_dead():
    """Its parent could give a sign of life, it cannot: its lock stays locked, anyone may release
    it."""
    program = """
def inner(connection, ctx, lock):
    ours, theirs = ctx.Pipe()
    process = ctx.Process(target=hold, args=(theirs, lock))
    process.start()
    connection.send(ours.recv())
    connection.recv()
    ours.send(None)
    process.join()
    connection.send(process.exitcode)

if __name__ == "__main__":
    ctx = mproc_ext.get_context("fork")
    lock = ctx.Lock()
    inside = Inside(inner, ctx, lock, pid=free_pid(), proc="absent")
    print(inside.recv(), is_held_by_another(lock))
    inside.send(None)
    print(inside.recv(), is_held_by_another(lock))
    inside.join()
    lock.release()
    print(lock.acquire(False))
    lock.release()
    print(run(ctx))  # nothing has changed among those of one namespace
"""
    assert run(program) == f"True True\n{-signal.SIGKILL} True\nTrue\nFalse\n"
