"""Value, Array and their raw forms: the stdlib's behaviour, over memory that is not used again
while somebody sees it."""

import array as array_module
import ctypes
import gc
import itertools
import math
import os
import pickle
import signal
import warnings

import pytest
import sync_targets
import values_targets as targets
from sync_helpers import (
    Child,
    Task,
    ours,
    outcome,
    recorded_warnings,
    run_program,
    wait_until,
    wait_until_asleep,
)

import mproc_ext
import mproc_ext.heap
import mproc_ext.sharedctypes
from mproc_ext import sharedctypes

pytestmark = pytest.mark.skipif(
    not ours("Lock"), reason="mproc_ext.sharedctypes hands out the stdlib's objects"
)

INTEGERS = "bBhHiIlLqQ"
CODES = INTEGERS + "fd"
THINGS = [
    0, 1, -1, 127, 128, -128, -129, 255, 256, 2**15, 2**16 - 1, 2**31, -(2**31) - 1, 2**32, 2**63,
    -(2**63), 2**64 - 1, 2**64, -(2**70), 2**1100, True, False, 1.5, -0.0, 1e300, 1e-320, math.inf,
    None, "x", b"x", b"", [], 1j, "", object,
]  # fmt: skip


class Whole(int):
    pass


class Index:
    def __index__(self):
        return 1


class Real(float):
    pass


class Lying:
    def __bool__(self):
        raise ValueError("no truth")


THINGS += [Whole(5), Index(), Real(2.5), Lying()]
SIMPLE = [ctypes.c_bool, ctypes.c_char, ctypes.c_wchar, ctypes.c_void_p, ctypes.c_longdouble]
SIMPLE += [ctypes.c_int.__ctype_be__, targets.Number, ctypes.py_object]


def same(both, function, *args):
    theirs, mine = (outcome(function, ctx, *args) for ctx in both)
    assert mine == theirs, args


# ---- Items -------------------------------------------------------------------------------------


def set_and_get(ctx, kind, item):
    value = ctx.Value(kind)
    value.value = item
    return value.value, value.get_obj().value


def make_and_get(ctx, kind, item):
    value = ctx.Value(kind, item)
    return value.value, ctx.RawValue(kind, item).value


@pytest.mark.parametrize("use", [set_and_get, make_and_get])
@pytest.mark.parametrize("kind", [*CODES, *SIMPLE], ids=str)
def test_value(both, kind, use):
    if kind is ctypes.py_object and use is set_and_get:
        pytest.skip("py_object has no value to get before it is set")
    for item in THINGS:
        same(both, use, kind, item)


@pytest.mark.parametrize("kind", ["c", "u"])
def test_value_of_a_character(both, kind):
    for item in (b"a", "a", b"ab", "ab", "", b"", 65, 300, None):
        same(both, set_and_get, kind, item)


def use_array(ctx, kind, index, item):
    shared = ctx.Array(kind, [1, 2, 3])
    results = [outcome(lambda: shared[index])]
    results.append(outcome(shared.__setitem__, index, item))
    results.append(shared[:])
    results.append(list(shared.get_obj()))
    return results


@pytest.mark.parametrize("kind", [*CODES, ctypes.c_bool, targets.Number], ids=str)
def test_array_items(both, kind):
    indices = [0, 2, -1, -3, 3, -4, 2**70, -(2**70), True, Index(), Whole(1), 1.0, "0", None, ()]
    for index in indices:
        same(both, use_array, kind, index, 1)
    for item in THINGS:
        same(both, use_array, kind, 1, item)


def test_array_slices(both):
    def use(ctx, cut, items):
        shared = ctx.Array("h", range(8))
        return outcome(lambda: shared[cut]), outcome(shared.__setitem__, cut, items), shared[:]

    for cut in itertools.product((None, 0, 2, -1, 99), (None, 1, -2), (None, 2)):
        cut = slice(*cut)
        for items in ([], [1], [1, 2], range(8), "ab", 5, [None]):
            same(both, use, cut, items)


def test_array_methods(both):
    makers = [0, 1, 3, b"abc", [1, 2], (), -1, 2**64, None, "x"]
    for kind, items in itertools.product("idc", makers):
        for make in ("Array", "RawArray"):
            same(both, lambda ctx, *args, make=make: list(getattr(ctx, make)(*args)), kind, items)
            same(both, lambda ctx, *args, make=make: len(getattr(ctx, make)(*args)), kind, items)
    shared = [ctx.Array("i", 4) for ctx in both]
    for name, *args in (
        ("__len__",),
        ("__delitem__", 0),
        ("__getitem__",),
        ("__setitem__", 1),
        ("__getslice__", 0, 2),
        ("__contains__", 0),
        ("__reversed__",),
        ("__iter__",),
    ):
        theirs, mine = (outcome(lambda it=it: getattr(it, name)(*args)) for it in shared)
        assert mine[0] == theirs[0], name

    def delete(it):
        del it[0]

    assert outcome(delete, shared[0]) == outcome(delete, shared[1])
    assert [5 in it for it in shared] == [False, False]
    assert list(reversed(shared[1])) == [0] * 4


@pytest.mark.parametrize("kind", ["x", "", None, 5, int, "ii", object(), list], ids=str)
def test_no_such_type(kind):
    ctx = mproc_ext.get_context("fork")
    for make in (ctx.Value, ctx.RawValue):
        with pytest.raises(TypeError, match="bad typecode"):
            make(kind)


def test_text(both):
    def use(ctx, item):
        text = ctx.Array("c", b"hello")
        text.value = item
        return text.value, text.raw, text[1], text[:], len(text), text.get_obj().raw

    for item in (b"", b"hi", b"hello", b"too long", "hi", None, b"a\0b", 5):
        same(both, use, item)

    def use_raw(ctx, item):
        text = ctx.Array(ctypes.c_char, 4)
        text.raw = item
        text[0] = b"Z"
        return text.raw, text.value

    for item in (b"", b"abcd", b"abc", b"abcde", "abcd"):
        same(both, use_raw, item)


def test_structures(both):
    def use(ctx):
        point = ctx.Value(targets.Point, 1, 2.5)
        point.x += 1
        results = [point.x, point.y, outcome(lambda: point.z), type(point).__name__]
        points = ctx.Array(targets.Point, [(1, 2.0), (3, 4.0)])
        results += [points[1].x, len(points), points[0].y, outcome(setattr, point, "x", "no")]
        grid = ctx.Array(ctypes.c_int * 3, 2)
        grid[1][2] = 7
        grid[0] = (1, 2, 3)
        return [*results, list(grid[1]), list(grid[0]), grid.get_obj()[1][2]]

    same(both, use)


# ---- Its lock ----------------------------------------------------------------------------------


def test_surface(both):
    def use(ctx):
        results = []
        for thing in (ctx.Value("i", 3), ctx.Array("d", 2), ctx.Array("c", 2)):
            assert thing.get_lock() is thing._lock
            assert thing.get_obj() is thing._obj
            assert thing.acquire == thing.get_lock().acquire
            with thing as entered:
                results += [entered, thing.get_lock()._semlock._is_mine()]
            results += [repr(thing), thing.acquire(), thing.acquire(False), thing.release()]
            results += [thing.release(), outcome(thing.release)]
        return results

    same(both, use)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_items_are_under_the_lock(ctx, kind):
    """A child that has it keeps everybody out."""
    lock = getattr(ctx, kind)()
    value = ctx.Value("i", 3, lock=lock)
    shared = ctx.Array("i", [4], lock=lock)
    uses = [
        lambda: value.value,
        lambda: shared[0],
        lambda: setattr(value, "value", 4),
        lambda: shared.__setitem__(0, 5),
    ]
    for use, result in zip(uses, (3, 4, None, None), strict=True):
        child = Child(ctx, sync_targets.hold, lock)
        child.expect("held")
        task = Task(use)
        wait_until_asleep(task)
        assert task.is_alive()
        child.send("release")
        assert task.get() == result
        child.join()
    assert (value.value, shared[0]) == (4, 5)


def test_own_lock_may_be_held(mp):
    for kind in ("Lock", "RLock"):
        value = mp.Value("i", 3, lock=getattr(mp, kind)())
        if kind == "RLock":
            with value, value.get_lock():
                value.value += 1
                assert value.get_lock()._semlock._count() == 2
        assert value.get_lock()._semlock._count() == 0
        value.value += 1
        assert value.get_lock()._semlock._count() == 0


class Recording:
    """A lock of the program's own."""

    def __init__(self):
        self.calls = []

    def acquire(self):
        self.calls.append("acquire")

    def release(self):
        self.calls.append("release")

    def __enter__(self):
        self.calls.append("enter")

    def __exit__(self, *args):
        self.calls.append("exit")


def test_lock_of_the_program(both):
    def use(ctx):
        lock = Recording()
        value = ctx.Value("i", 1, lock=lock)
        shared = ctx.Array("i", 2, lock=lock)
        value.value += 1
        shared[0] = shared[1]
        results = [outcome(setattr, value, "value", "x"), outcome(lambda: shared[5]), len(shared)]
        return [*results, lock.calls, value.value]

    same(both, use)
    for wrong in (0, "", 5, "x", object(), []):
        same(both, lambda ctx, lock=wrong: type(ctx.Value("i", lock=lock)).__name__)
        same(both, lambda ctx, lock=wrong: type(ctx.Array("i", 1, lock=lock)).__name__)


def test_what_is_replaced(both):
    """The attributes that the stdlib's code works with may be replaced at any time."""

    def use(ctx):
        value = ctx.Value("i", 1)
        shared = ctx.Array("i", [1, 2])
        calls = []
        real = value.acquire
        value.acquire = lambda: calls.append("acquire") or real()
        value.value += 1
        value._obj = ctypes.c_int(40)
        value.value += 1
        results = [value.value, value.get_obj().value, calls[:]]
        shared._lock = lock = Recording()
        shared[0] += 5
        results += [shared[:], lock.calls]
        shared._obj = [4]
        results += [shared[0], len(shared)]
        del value._obj, shared._lock
        return [*results, outcome(lambda: value.value)[0], outcome(lambda: shared[0])[0]]

    same(both, use)


def test_subclasses(both):
    def use(ctx):
        module = __import__(type(ctx.Value("i")).__module__, fromlist=["Synchronized"])

        class Counter(module.Synchronized):
            entered = 0

            def increment(self):
                with self:
                    self.value += 1

            def __enter__(self):
                self.entered += 1
                return super().__enter__()

        class Items(module.SynchronizedArray):
            def __getitem__(self, index):
                return super().__getitem__(index) * 2

            def __enter__(self):
                self.entered = True
                return super().__enter__()

        counter = Counter(ctx.RawValue("i", 5), ctx.RLock())
        counter.increment()
        items = Items(ctx.RawArray("i", [1, 2]), ctx=ctx)
        items[0] = 10
        return counter.value, counter.entered, items[0], items[:1], items.entered, repr(counter)

    same(both, use)


def test_other_memory(both):
    """Objects of ctypes' own memory, which can be resized, and foreign buffers."""

    def use(ctx):
        module = __import__(type(ctx.Value("i")).__module__, fromlist=["synchronized"])
        own = (ctypes.c_int * 2)(1, 2)
        wrapped = module.synchronized(own, ctx.RLock())
        ctypes.resize(own, 4096)
        wrapped[1] = 9
        buffer = bytearray(8)
        number = module.synchronized(ctypes.c_int.from_buffer(buffer), ctx.Lock())
        number.value = 258
        again = outcome(module.synchronized, number)
        copied = module.copy(own)
        other = module.copy(number.get_obj()).value
        return list(own), wrapped[:], bytes(buffer), again, list(copied), other

    same(both, use)


@pytest.mark.parametrize("kind", [*CODES, ctypes.c_bool], ids=str)
def test_done_in_c(monkeypatch, kind):
    """What is plain is not left to the stdlib's code."""
    ctx = mproc_ext.get_context("fork")
    value, shared = ctx.Value(kind), ctx.Array(kind, 2)
    zero = type(value.get_obj())().value
    left = []
    for cls, name in (
        (sharedctypes._std.SynchronizedArray, "__getitem__"),
        (sharedctypes._std.SynchronizedArray, "__setitem__"),
        (sharedctypes._std.SynchronizedArray, "__len__"),
    ):
        monkeypatch.setattr(cls, name, lambda self, *args: left.append(args))
    monkeypatch.setattr(sharedctypes._std.Synchronized, "value", property(left.append, left.append))
    value.value = shared[1] = zero
    assert (value.value, shared[0], len(shared), left) == (zero, zero, 2, [])
    assert shared[:] is None
    assert left == [(slice(None),)]


# ---- Processes ---------------------------------------------------------------------------------


def test_in_a_child(ctx):
    value = ctx.Value("i", 3)
    shared = ctx.Array("d", [1, 2, 3])
    text = ctx.Array("c", b"old")
    point = ctx.Value(targets.Point, 1, 2.5)
    raw = ctx.RawArray("l", 4000)
    process = ctx.Process(target=targets.change, args=(value, shared, text, point, raw))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert (value.value, shared[:], text.value) == (4, [1, 2, 2.5], b"new")
    assert (point.x, point.y, raw[3], sum(raw)) == (5, 2.5, 9, 9)


def test_counting(ctx):
    value = ctx.Value("q")
    shared = ctx.Array("i", 3)
    children = [ctx.Process(target=targets.add, args=(value, shared, 2000)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert (value.value, shared[:]) == (6000, [0, 6000, 0])


def test_pickling(both):
    for make in (
        lambda ctx: ctx.Value("i"),
        lambda ctx: ctx.Array("i", 2),
        lambda ctx: ctx.RawValue("i"),
        lambda ctx: ctx.RawArray("i", 2),
        lambda ctx: ctx.Value(targets.Point),
    ):
        theirs, mine = (outcome(pickle.dumps, make(ctx)) for ctx in both)
        assert mine[0] == theirs[0]


def held(ctx, *things):
    child = Child(ctx, targets.keep, *things)
    child.expect("here")
    return child


@pytest.mark.parametrize("length", [1, 7, 8, 1000, 100_000])
def test_memory_is_not_used_again_while_a_child_sees_it(method, length):
    ctx = mproc_ext.get_context(method)
    shared = ctx.Array("q", range(1, length + 1))
    child = held(ctx, shared)
    before = bytes(memoryview(shared.get_obj()).cast("B"))
    del shared
    gc.collect()
    others = [ctx.Array("q", [-1] * length) for _ in range(20)]
    child.send("now")
    assert child.recv() == [before]
    child.join()
    assert all(item == -1 for other in others for item in other[:])


def test_memory_is_used_again(method):
    """After the child's end, however it ends."""
    ctx = mproc_ext.get_context(method)
    heap = mproc_ext.heap.BufferWrapper._heap
    keeper = ctx.RawArray("b", 1000)  # keeps the arena itself
    for kill in (False, True):
        shared = ctx.Array("q", range(1, 1001))
        block = shared.get_obj()._wrapper._state[0]
        child = held(ctx, shared)
        del shared
        gc.collect()
        assert heap._lent
        if kill:
            child.kill()
        else:
            child.send("now")
            child.recv()
            child.join()
        large = ctx.RawArray("q", 1_000_000)  # which needs more memory: the heap looks
        assert not heap._lent
        assert sum(large[:1000]) == 0
        more = []
        while not any(other._wrapper._state[0][:2] == block[:2] for other in more):
            more.append(ctx.RawArray("q", 1000))
            assert sum(more[-1]) == 0
            assert len(more) < 10_000
    assert len(keeper) == 1000


def test_memory_comes_back_at_once(method):
    """Where the children have ended before."""
    ctx = mproc_ext.get_context(method)
    heap = mproc_ext.heap.BufferWrapper._heap
    shared = ctx.Array("q", 1000)
    child = held(ctx, shared)
    child.send("now")
    child.recv()
    child.join()
    freed = heap._n_frees
    del shared
    gc.collect()
    assert heap._n_frees == freed + 1


def test_zeros_again(mp):
    """What was freed is zero for who gets it next, and what is beside it is kept."""
    for size in (1, 7, 8, 4096, 5000, 12288, 100_000):
        beside = [mp.Array("B", [255] * 13) for _ in range(3)]
        first = mp.Array("B", [255] * size)
        after = mp.Array("B", [255] * 100)
        del first
        gc.collect()
        assert sum(mp.Array("B", size)) == 0
        assert all(set(other) == {255} for other in [*beside, after])


def test_a_view_keeps_the_memory(mp):
    view = memoryview(mp.Array("i", [1, 2, 3]).get_obj())
    large = memoryview(mp.Array("i", range(1000)).get_obj())
    gc.collect()
    others = [mp.Array("i", [9] * 1000) for _ in range(5)]
    assert list(view.cast("B").cast("i")) == [1, 2, 3]
    assert list(large.cast("B").cast("i")) == list(range(1000))
    assert len(others) == 5


def test_numpy(mp):
    numpy = pytest.importorskip("numpy")
    shared = mp.Array("d", 1000)
    items = numpy.frombuffer(shared.get_obj())
    items[:] = range(1000)
    assert shared[999] == 999.0
    shared[0] = 5
    assert items[0] == 5
    small = numpy.frombuffer(mp.Array("i", [1, 2]).get_obj(), dtype="i4")
    gc.collect()
    assert small.tolist() == [1, 2]


def test_buffers(mp):
    shared = mp.Array("i", [1, 2, 3])
    assert array_module.array("i", bytes(shared.get_obj())).tolist() == [1, 2, 3]


# ---- Death -------------------------------------------------------------------------------------


def test_owner_is_killed(method):
    ctx = mproc_ext.get_context(method)
    value = ctx.Value("i", 3)
    child = Child(ctx, targets.take, value)
    child.expect("held")
    child.kill()
    with recorded_warnings() as found:
        assert value.value == 7
        value.value += 1
    assert len(found) == 1
    assert value.value == 8


def test_warning_that_is_an_error(mp):
    mp = mproc_ext.get_context("fork")
    value = mp.Value("i", 3)
    child = Child(mp, targets.take, value)
    child.expect("held")
    child.kill()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            value.value  # noqa: B018
        assert value.value == 7
    assert value.get_lock()._semlock._count() == 0


def test_writers_are_killed(method):
    """In the middle of an item, as often as not: the lock is recovered, the item is whole."""
    ctx = mproc_ext.get_context(method)
    shared = ctx.Array("q", 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for _ in range(40 if method == "fork" else 5):
            child = Child(ctx, targets.write_for_ever, shared)
            child.expect("here")
            seen = shared[0]
            wait_until(lambda seen=seen: shared[0] != seen, "a change")
            child.process.kill()
            assert shared[0] in (0, -1)
            child.process.join()
            assert shared[0] in (0, -1)
            assert child.process.exitcode == -signal.SIGKILL


def test_items_are_not_torn(mp):
    """One that looks without the lock sees an item whole, while another process writes."""
    mp = mproc_ext.get_context("fork")
    shared = mp.Array("Q", 1)
    ones = 2**64 - 1
    child = Child(mp, targets.one_store_for_ever, shared, 0, ones)
    child.expect("here")
    look = shared.get_obj()
    seen = {look[0] for _ in range(200_000)}
    assert seen <= {0, ones}
    child.kill()


# ---- Where there is little ---------------------------------------------------------------------


def test_no_file_with_a_name(tmp_path):
    program = tmp_path / "traces.py"
    program.write_text(
        "import os, sys, mproc_ext\n"
        "things = [mproc_ext.Value('i'), mproc_ext.Array('d', 10000)]\n"
        "with open('/proc/self/maps') as file:\n"
        "    files = {line.split(None, 5)[5].strip() for line in file if line.count(' ') > 5}\n"
        "files |= {os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')[:-1]}\n"
        "print([name for name in files if name.startswith(('/dev/shm', '/tmp', '/var/tmp'))\n"
        "    and not name.endswith(' (deleted)') and not name.startswith(sys.prefix)])\n"
    )
    assert run_program(program) == "[]\n"


def test_descriptor_closed(tmp_path):
    """The program closes everything, and opens its own files on the numbers."""
    program = tmp_path / "closed.py"
    program.write_text(
        "import gc, os, mproc_ext\n"
        "ctx = mproc_ext.get_context('fork')\n"
        "old = ctx.Array('q', range(1000)), ctx.Value('i', 5)\n"
        "os.closerange(3, 100)\n"
        f"file = open({str(tmp_path / 'own')!r}, 'wb', 0)\n"
        "taken = [os.dup(file.fileno()) for _ in range(50)]\n"
        "new = ctx.Array('q', range(3000)), ctx.Value('i', 6)\n"
        "assert sum(old[0]) == 499500 and old[1].value == 5\n"
        "process = ctx.Process(target=new[0].__setitem__, args=(0, 7))\n"
        "process.start(); process.join()\n"
        "assert new[0][0] == 7 and new[1].value == 6\n"
        "del old, new\n"
        "gc.collect()\n"
        "for fd in taken:\n"
        "    os.fstat(fd)\n"
        "assert os.fstat(file.fileno()).st_size == 0\n"
        "print('all right')\n"
    )
    assert run_program(program) == "all right\n"


def test_closed_descriptor_is_not_handed_over(tmp_path):
    program = tmp_path / "closed_spawn.py"
    program.write_text(
        "import os, mproc_ext\n"
        "if __name__ == '__main__':\n"
        "    ctx = mproc_ext.get_context('spawn')\n"
        "    shared = ctx.RawArray('q', 1000)\n"
        "    os.close(shared._wrapper._state[0][0].fd)\n"
        "    file = open(os.devnull)\n"
        "    try:\n"
        "        ctx.Process(target=print, args=(shared,)).start()\n"
        "    except OSError as error:\n"
        "        print(error)\n"
    )
    assert "has closed the descriptor" in run_program(program)


@pytest.mark.parametrize("size", [2**33, 2**40])
def test_too_large(size):
    program = (
        "import resource, sys, importlib\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\n"
        "ctx = importlib.import_module(sys.argv[1]).get_context('fork')\n"
        f"try: ctx.RawArray('b', {size})\n"
        "except Exception as error: print(type(error).__name__, getattr(error, 'errno', None))\n"
        "print(len(ctx.RawArray('b', 10000)))\n"
    )
    theirs, mine = (run_program("-c", program, name) for name in ("multiprocessing", "mproc_ext"))
    assert mine.splitlines()[0] in (theirs.splitlines()[0], "MemoryError None")
    assert mine.splitlines()[1:] == theirs.splitlines()[1:] == ["10000"]


def test_more_than_the_machine_has():
    """The stdlib's process dies of it, or fills the disk."""
    ctx = mproc_ext.get_context("fork")
    gc.collect()  # what earlier tests left in cycles is not closed between the two looks
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(MemoryError, match="shared memory"):
        ctx.RawArray("b", 2**42)
    assert len(os.listdir("/proc/self/fd")) == before
    assert sum(ctx.RawArray("b", 10_000)) == 0


def test_many(mp):
    mp = mproc_ext.get_context("fork")
    values = [mp.Value("i", number) for number in range(20_000)]
    assert all(value.value == number for number, value in enumerate(values))
