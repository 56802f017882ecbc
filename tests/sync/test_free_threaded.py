"""Many threads at once on the same objects.  Without a GIL they run truly in parallel; with one the
same has to hold."""

import contextlib
import ctypes
import gc
import itertools
import os
import re
import sys
import threading

import pytest
from sync_helpers import LIMIT, Task, asleep_in, ours

import mproc_ext

if not ours("Condition"):
    pytest.skip("mproc_ext hands out the stdlib's", allow_module_level=True)

from mproc_ext import _arena, _core
from mproc_ext.sharedctypes import synchronized

THREADS = 6
KINDS = ("Lock", "RLock", "Semaphore", "BoundedSemaphore")


@pytest.fixture(autouse=True)
def often_switched():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def ctx():
    return mproc_ext.get_context("fork")


@pytest.fixture(params=KINDS)
def lock(ctx, request):
    return getattr(ctx, request.param)()


def together(*functions):
    """What the functions return, each in a thread, all begun at once."""
    start = threading.Barrier(len(functions))

    def begin(function):
        start.wait(LIMIT)
        return function()

    tasks = [Task(begin, function) for function in functions]
    return [task.get() for task in tasks]


def in_all(function):
    """The same of one function, which is given the number of its thread."""
    return together(*(lambda number=number: function(number) for number in range(THREADS)))


def while_others(function, *others):
    """What the function returns; the others are called over and over meanwhile, each by a thread of
    its own.  All have been called when it begins."""
    stop = threading.Event()
    begun = threading.Semaphore(0)

    def repeat(other):
        for turn in itertools.count():
            other()
            if turn == 0:
                begun.release()
            if stop.is_set():
                return

    tasks = [Task(repeat, other) for other in others]
    try:
        for _ in others:
            assert begun.acquire(timeout=LIMIT)
        return function()
    finally:
        stop.set()
        for task in tasks:
            task.get()


# ---- Locks ---------------------------------------------------------------------------------------


def test_one_at_a_time(lock):
    counter = [0]
    inside = []

    def work(number):
        for _ in range(1500):
            with lock:
                inside.append(number)
                assert inside == [number]
                counter[0] += 1
                assert inside.pop() == number

    in_all(work)
    assert counter == [THREADS * 1500]
    assert (lock._semlock._count(), lock._semlock._get_value()) == (0, 1)


def test_attempts(lock):
    """Who does not wait for it is told the truth, too."""
    inside = []
    got = []

    def work(number):
        for _ in range(3000):
            if lock.acquire(False):
                inside.append(number)
                assert inside == [number]
                inside.pop()
                got.append(number)
                lock.release()

    in_all(work)
    assert got
    assert (lock._semlock._count(), lock._semlock._get_value()) == (0, 1)


def test_recursion(ctx):
    lock = ctx.RLock()
    counter = [0]

    def work(number):
        for turn in range(800):
            depth = turn % 3 + 1
            assert not lock._semlock._is_mine()
            with pytest.raises(AssertionError, match="not owned by thread"):
                lock.release()
            for _ in range(depth):
                assert lock.acquire() is True
            assert lock._semlock._is_mine()
            assert lock._semlock._count() == depth
            counter[0] += 1
            for _ in range(depth):
                lock.release()

    in_all(work)
    assert counter == [THREADS * 800]
    assert lock._semlock._count() == 0


@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_permits(ctx, kind):
    semaphore = getattr(ctx, kind)(2)
    inside = set()

    def work(number):
        for _ in range(1500):
            with semaphore:
                inside.add(number)
                assert len(inside) <= 2
                inside.discard(number)

    in_all(work)
    assert semaphore.get_value() == 2
    assert semaphore._semlock._count() == 0


def test_the_bound_holds(ctx):
    """Of many releases at once, as many succeed as there are permits missing."""
    for _ in range(200):
        semaphore = ctx.BoundedSemaphore(2)
        semaphore.acquire()

        def work(number, semaphore=semaphore):
            try:
                semaphore.release()
            except ValueError:
                return 0
            return 1

        assert sum(in_all(work)) == 1
        assert (semaphore.get_value(), semaphore._semlock._count()) == (2, 0)


def test_released_by_another_thread(ctx):
    """A lock that is handed from thread to thread: each releases what another has acquired."""
    locks = [ctx.Lock() for _ in range(THREADS)]
    for lock in locks[1:]:
        lock.acquire()
    order = []

    def work(number):
        for _ in range(300):
            assert locks[number].acquire(True, LIMIT)
            order.append(number)
            locks[(number + 1) % THREADS].release()

    in_all(work)
    assert order == list(range(THREADS)) * 300


def test_looks(lock):
    """What is said of a lock that others take and release is one of what may be said."""
    name = type(lock).__name__
    owner = "MainThread|None|SomeOtherThread|SomeOtherProcess|Thread-[0-9]+( \\(.*\\))?"
    if name in ("Lock", "RLock"):
        count = r"([0-9]+|nonzero)"
        shape = rf"<{name}\((owner=)?({owner})(, {count})?\)>"
    else:
        shape = rf"<{name}\((value=)?(0|1|unknown)(, maxvalue=1)?\)>"

    def look():
        for _ in range(1500):
            view = lock._semlock
            assert re.fullmatch(shape, repr(lock)), repr(lock)
            assert view._count() in (0, 1)
            assert view._get_value() in (0, 1)
            assert view._is_mine() is False
            assert view.handle == lock._semlock.handle
            assert view._is_zero() in (True, False)

    def work():
        with lock:
            assert lock._semlock._is_mine() or name.endswith("Semaphore")
        with lock._semlock:
            pass

    while_others(look, work, work)
    assert (lock._semlock._count(), lock._semlock._get_value()) == (0, 1)


# ---- Conditions, events, barriers ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_condition(ctx, kind):
    """Nothing that was put is lost, and nothing is got twice."""
    condition = ctx.Condition(getattr(ctx, kind)())
    items = []
    per_thread = 400

    def put(number):
        for n in range(per_thread):
            with condition:
                items.append((number, n))
                condition.notify()

    def get():
        got = []
        for _ in range(per_thread):
            with condition:
                assert condition.wait_for(lambda: items, LIMIT)
                got.append(items.pop())
        return got

    pairs = THREADS // 2
    results = together(
        *(lambda number=number: put(number) for number in range(pairs)), *[get] * pairs
    )
    got = sorted(item for result in results[pairs:] for item in result)
    assert got == [(number, n) for number in range(pairs) for n in range(per_thread)]
    assert condition._lock._semlock._count() == 0


def test_notify_all(ctx):
    condition = ctx.Condition()
    turn = [0]
    waiting = [0]

    def wait():
        for _ in range(150):
            with condition:
                waiting[0] += 1
                seen = turn[0]
                assert condition.wait_for(lambda seen=seen: turn[0] > seen, LIMIT)

    def notify():
        while turn[0] < 150:
            with condition:
                if waiting[0] == THREADS:
                    waiting[0] = 0
                    turn[0] += 1
                    condition.notify_all()

    together(notify, *[wait] * THREADS)
    assert repr(condition).endswith(", 0)>")


def test_event(ctx):
    """Each set wakes all who wait."""
    there, back = ctx.Event(), ctx.Event()
    counts, returns = [0] * THREADS, [0] * THREADS

    def wait(number):
        for _ in range(200):
            assert there.wait(LIMIT)
            counts[number] += 1
            assert back.wait(LIMIT)
            returns[number] += 1

    def steer():
        for turn in range(1, 201):
            back.clear()
            there.set()
            while min(counts) < turn:
                assert there.is_set()
            there.clear()
            back.set()
            while min(returns) < turn:
                assert not there.is_set()

    together(steer, *(lambda number=number: wait(number) for number in range(THREADS)))
    assert counts == [200] * THREADS


def test_barrier(ctx):
    passed = []
    barrier = ctx.Barrier(THREADS, lambda: passed.append(None))

    def work(number):
        return [barrier.wait(LIMIT) for _ in range(100)]

    for indices in zip(*in_all(work), strict=True):
        assert sorted(indices) == list(range(THREADS))
    assert len(passed) == 100
    assert barrier.n_waiting == 0


# ---- Values --------------------------------------------------------------------------------------


def test_value(ctx):
    value = ctx.Value("i")

    def work(number):
        for _ in range(1500):
            with value.get_lock():
                value.value += 1

    in_all(work)
    assert value.value == THREADS * 1500
    assert value.get_lock()._semlock._count() == 0


@pytest.mark.parametrize(
    ("code", "items"), [("q", (0, -1)), ("d", (1e300, -1e-300)), ("b", (1, -1))]
)
def test_whole_values(ctx, code, items):
    value = ctx.Value(code, items[0])

    def work(number):
        for turn in range(2000):
            value.value = items[(turn + number) % 2]
            assert value.value in items

    in_all(work)
    assert value.get_lock().acquire(False) is True


@pytest.mark.parametrize("code", ["h", "q", "d"])
def test_array(ctx, code):
    array = ctx.Array(code, 2 * THREADS)

    def work(number):
        for _ in range(800):
            array[number] += 1
            with array.get_lock():
                array[-1] += 1
            assert len(array) == 2 * THREADS
            assert array[number] == array[:][number]

    in_all(work)
    assert array[:THREADS] == [800] * THREADS
    assert array[-1] == THREADS * 800


def test_object_replaced(ctx):
    """Whichever object a thread finds, it is whole, and what lies beside it is not touched."""
    for _ in range(60):
        array = ctx.RawArray("b", [5] * 24)
        objects = [ctypes.c_byte.from_buffer(array, at) for at in (4, 8, 12)]
        value = synchronized(objects[0], ctx.RLock(), ctx)

        def use(value=value, objects=objects):
            for _ in range(60):
                value.value = 5
                assert value.value == 5
                assert value.get_obj() in objects

        def replace(value=value, objects=objects):
            value._obj = objects[1]
            value._obj = objects[2]

        together(use, use, replace, replace)
        assert array[:] == [5] * 24


def test_lock_replaced(ctx):
    for _ in range(60):
        locks = [ctx.RLock(), ctx.Lock()]
        value = synchronized(ctx.RawValue("b", 5), locks[0], ctx)

        def use(value=value, locks=locks):
            for _ in range(60):
                assert value.get_lock() in locks
                assert value.acquire.__self__ in locks
                assert value.release.__self__ in locks

        def replace(lock, value=value):
            value._lock, value.acquire, value.release = lock, lock.acquire, lock.release

        together(use, use, *(lambda lock=lock, f=replace: f(lock) for lock in locks))


def test_initialised_again(ctx):
    for _ in range(60):
        array = ctx.RawArray("b", [5] * 24)
        objects = [ctypes.c_byte.from_buffer(array, at) for at in (4, 8, 12)]
        lock = ctx.RLock()
        value = synchronized(objects[0], lock, ctx)

        def use(value=value):
            for _ in range(60):
                value.value = 5
                assert value.value == 5

        def again(obj, value=value, lock=lock):
            value.__init__(obj, lock, ctx)
            value._bind("b")

        together(use, use, *(lambda obj=obj, f=again: f(obj) for obj in objects))
        assert array[:] == [5] * 24


def test_a_method_replaced_while_items_are_set(ctx):
    """What was known of the object is not looked at twice."""
    for _ in range(150):
        array = ctx.RawArray("B", [9] * 24)
        value = synchronized(ctypes.c_ubyte.from_buffer(array, 8), ctx.RLock(), ctx)

        def use(value=value):
            for _ in range(60):
                value.value = 9
                assert value.value == 9

        def replace(value=value):
            value._lock = value._lock

        together(use, use, replace)
        assert array[:] == [9] * 24


def test_condition_lock_replaced(ctx):
    condition = ctx.Condition()
    locks = [ctx.RLock(), ctx.Lock(), threading.RLock()]
    condition._lock = locks[0]

    def replace(lock):
        condition._lock, condition.acquire, condition.release = lock, lock.acquire, lock.release

    def use():
        for _ in range(1000):
            assert condition._lock in locks
            assert condition.acquire.__self__ in locks
            with pytest.raises((AssertionError, AttributeError)):
                condition.notify()  # held by nobody, or without a _semlock
            repr(condition)

    while_others(use, *(lambda lock=lock: replace(lock) for lock in locks))


# ---- Making and dropping -------------------------------------------------------------------------


def test_made_and_dropped(ctx):
    """No two have the same slot at the same time."""

    def work(number):
        for _ in range(20):
            locks = [ctx.Lock() for _ in range(15)]
            events = [ctx.Event() for _ in range(15)]
            values = [ctx.Value("q", number) for _ in range(15)]
            assert all(lock.acquire(False) for lock in locks)
            assert not any(event.is_set() for event in events)
            for event in events:
                event.set()
            assert all(value.value == number for value in values)
            assert not any(lock.acquire(False) for lock in locks)
            condition = ctx.Condition()
            with condition:
                assert condition.wait(0) is False

    in_all(work)


def test_large_values_made_and_dropped(ctx):
    def work(number):
        for turn in range(40):
            arrays = [ctx.RawArray("B", [number + 1] * 500) for _ in range(4)]
            zeros = ctx.RawArray("B", 3000 * (turn % 3 + 1))
            assert all(bytes(array) == bytes([number + 1] * 500) for array in arrays)
            assert not any(zeros)

    in_all(work)


def test_dropped_by_another_thread(ctx):
    made = []

    def make():
        for _ in range(400):
            lock = ctx.Lock()
            lock.acquire()
            made.append(lock._semlock)
        gc.collect()

    def drop():
        for _ in range(400):
            while not made:
                pass
            assert made.pop().acquire(False) is False

    together(make, make, drop, drop)


def test_made_again_while_it_is_used(ctx, lock):
    """Who has made an object anew has harmed nobody else's."""

    def again():
        lock.__init__(ctx=ctx)
        others = [type(lock)(ctx=ctx) for _ in range(3)]
        assert all(other.acquire(False) for other in others)

    def use():
        for _ in range(300):
            lock.acquire(False)
            with contextlib.suppress(ValueError, AssertionError):  # made anew in between
                lock.release()
            repr(lock)

    def other():
        for one in [type(lock)(ctx=ctx) for _ in range(5)]:
            assert one.acquire(False)
            one.release()

    while_others(use, again, other)


def test_made_again_while_a_thread_waits(ctx):
    """It waits where it did, and that is not another object's place meanwhile."""
    lock = ctx.Lock()
    lock.acquire()
    waiter = asleep_in(lock.acquire, True)
    lock.__init__(ctx=ctx)
    others = [ctx.Lock() for _ in range(100)]
    assert waiter.get() is False
    assert all(other.acquire(False) for other in others)
    assert lock.acquire(False) is True


def test_condition_made_again_while_a_thread_waits(ctx):
    condition = ctx.Condition()

    def wait(seconds):
        with condition:
            return condition.wait(seconds)

    waiter = asleep_in(wait)
    condition.__init__(condition._lock, ctx=ctx)
    with condition:
        condition.notify_all()
    others = [ctx.Condition() for _ in range(100)]
    assert waiter.get() is False
    for other in others:
        assert repr(other).endswith(", 0)>")


def test_block_made_again_while_a_view_is_on_it():
    block = _arena.Block(8)
    view = memoryview(block)
    block.__init__(8)
    others = [_arena.Block(8) for _ in range(100)]
    view[:] = b"x" * 8
    assert bytes(block) == bytes(8)
    assert all(bytes(other) == bytes(8) for other in others)
    view.release()


# ---- Processes -----------------------------------------------------------------------------------


def test_forks_in_the_midst(ctx):
    """Children find everything whole, whatever the other threads are at.

    They and the threads share nothing of Python's: without a GIL, the interpreter's own lock of an
    object which a thread has at the fork stays locked in the child.
    """
    counter = ctx.Value("i")
    shared = [ctx.Lock(), ctx.RLock(), ctx.Condition(), ctx.Event()]

    def child(ctx, counter, lock, rlock, condition, event):
        with lock, rlock, condition:
            condition.notify_all()
        event.set()
        mine = [ctx.Lock() for _ in range(50)]
        assert all(lock.acquire(False) for lock in mine)
        for _ in range(20):
            with counter:
                counter.value += 1

    own = mproc_ext.get_context("spawn")

    def make():
        with own.Condition() as held:
            own.Event().set()
        assert held is True

    def fork():
        for _ in range(12):
            process = ctx.Process(target=child, args=(ctx, counter, *shared))
            process.start()
            process.join(LIMIT)
            assert process.exitcode == 0

    while_others(lambda: together(fork, fork), make, make)
    assert counter.value == 2 * 12 * 20
    assert shared[3].is_set()


def test_one_child_of_many_threads(ctx):
    """Each learns the exit code."""
    for _ in range(8):
        go = ctx.Event()
        process = ctx.Process(target=lambda go=go: (go.wait(LIMIT), os._exit(7)))
        process.start()

        def look(process=process):
            process.join(LIMIT)
            return process.exitcode, process.is_alive(), process._popen.returncode

        answers = together(go.set, *[look] * THREADS)
        assert answers[1:] == [(7, False, 7)] * THREADS
        process.close()


def test_one_start_at_a_time():
    """Where two threads start the same child, one is refused."""
    child = _core.Child()
    entered, go = threading.Event(), threading.Event()

    def argv_of(fd):
        entered.set()
        assert go.wait(LIMIT)
        return ["true"]

    task = Task(child._spawn, "/bin/true", argv_of, [])
    assert entered.wait(LIMIT)
    with pytest.raises(RuntimeError, match="another thread is starting"):
        child._fork(False)
    go.set()
    task.get()
    assert child.wait() == 0
    with pytest.raises(RuntimeError, match="has started process"):
        child._spawn("/bin/true", argv_of, [])
