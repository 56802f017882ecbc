"""Queues with zero_copy: what is lent lies in the shared memory that it came in, is nobody else's,
and is given back when nobody can reach it any more.
"""

import ctypes
import gc
import importlib.util
import os
import pickle
import queue
import random
import signal
import subprocess
import sys
import threading

import pytest
import zero_copy_targets
from queue_helpers import LIMIT, OURS, end, pattern, stderr
from sync_helpers import Child, Task, wait_until
from zero_copy_targets import BIG, LEAST, MAKERS, Bad, Carrier, ZeroCopyByteArray, lent

import mproc_ext

if OURS:
    from mproc_ext import _core

pytestmark = pytest.mark.skipif(not OURS, reason="the stdlib's queues lend nothing")

HAS_NUMPY = importlib.util.find_spec("numpy") is not None
if HAS_NUMPY:
    import numpy

needs_numpy = pytest.mark.skipif(not HAS_NUMPY, reason="numpy is not installed")
UNIT = 64 * 1024


def in_units(size):
    return -(-size // UNIT) * UNIT


@pytest.fixture(params=["class", pytest.param("numpy", marks=needs_numpy)])
def how(request):
    return request.param


@pytest.fixture
def make(how):
    return MAKERS[how]


@pytest.fixture(autouse=True)
def nothing_lent():
    yield
    gc.collect()
    assert lent() == 0


@pytest.fixture
def q(ours):
    return ours.Queue(zero_copy=True)


def through(q, thing):
    q.put(thing)
    return q.get()


def lease_of(view):
    """What a memoryview, or an array, lies on in the end."""
    while not isinstance(view, memoryview):
        view = view.base
    return view.obj


def owned():
    return _core.heap_stats()["owned"]


# ---- What comes out ----------------------------------------------------------------------------


@pytest.mark.parametrize("writable", [True, False])
def test_lent_as_it_was_put(q, make, writable):
    data = pattern(7, BIG)
    thing = through(q, make(data, writable))
    assert thing.bytes() == data
    assert thing.is_writable() is writable
    # The pickle, and where the buffer is, come with it.
    assert BIG < lent() <= in_units(BIG + 1000)
    del thing
    assert lent() == 0


def test_a_buffer_lies_on_the_lease_and_cache_lines(q, how, make):
    thing = through(q, make(pattern(1, BIG)))
    view = thing.data if how == "class" else thing.array
    assert type(lease_of(view)).__name__ == "Lease"
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    assert address % 64 == 0
    with open("/proc/self/maps") as maps:
        for line in maps:
            first, last = (int(part, 16) for part in line.split()[0].split("-"))
            if first <= address < last:
                assert line.split()[1][3] == "s"
                break
        else:
            raise AssertionError("it is nowhere")


def test_what_is_written_is_seen_by_nobody_else(q, make):
    mine = make(pattern(1, BIG))
    q.put(mine)
    q.put(mine)
    mine.write(bytes(BIG))
    one, other = q.get(), q.get()
    assert one.bytes() == other.bytes() == pattern(1, BIG)
    one.write(pattern(2, BIG))
    assert other.bytes() == pattern(1, BIG)
    assert mine.bytes() == bytes(BIG)
    # Nor do later messages come to lie there.
    for number in range(3, 20):
        assert through(q, make(pattern(number, BIG))).bytes() == pattern(number, BIG)
    assert one.bytes() == pattern(2, BIG)
    assert other.bytes() == pattern(1, BIG)


def test_buffers_of_one_message_stay_as_long_as_one_of_them(q):
    things = [Carrier(bytearray(pattern(n, BIG)), n) for n in range(5)]
    got = through(q, things)
    assert [(one.bytes(), one.note) for one in got] == [(pattern(n, BIG), n) for n in range(5)]
    whole = lent()
    assert 5 * BIG < whole <= in_units(5 * BIG + 2000)
    last = got[3]
    del got
    assert lent() == whole
    assert last.bytes() == pattern(3, BIG)
    part = last.data[100:200]
    del last
    assert lent() == whole
    assert bytes(part) == pattern(3, BIG)[100:200]


def test_an_object_twice_in_a_message_is_one(q, make):
    thing = make(pattern(1, BIG))
    one, other, again = through(q, [thing, thing, (thing,)])
    assert one is other is again[0]
    assert lent() <= in_units(BIG + 1000)


def test_the_object_below_a_buffer_is_the_buffer(q):
    """As pickle's documentation has it: a memoryview's obj is asked for the bytes."""
    things = [ZeroCopyByteArray(pattern(n, BIG + n)) for n in range(3)]
    got = through(q, things)
    assert [type(thing) for thing in got] == [ZeroCopyByteArray] * 3
    assert got == things
    assert lent() == 0  # these have copied it
    views = through(q, [pickle.PickleBuffer(bytes(thing)) for thing in things])
    assert [bytes(view.obj) for view in views] == things
    assert all(memoryview(view.obj).readonly for view in views)


def test_a_pickle_buffer_is_a_memoryview(q):
    for data in (bytearray(pattern(1, BIG)), pattern(1, BIG)):
        view = through(q, pickle.PickleBuffer(data))
        assert type(view) is memoryview
        assert view == data
        assert (view.format, view.ndim, view.contiguous) == ("B", 1, True)
        assert view.readonly is isinstance(data, bytes)
        del view


@pytest.mark.parametrize("size", [0, 1, 1000, LEAST - 1])
def test_short_buffers_are_copied(q, size):
    for data, kind in ((bytearray(pattern(1, size)), bytearray), (pattern(1, size), bytes)):
        thing = through(q, Carrier(data))
        assert type(thing.data) is kind
        assert thing.data == data
        assert lent() == 0


@pytest.mark.parametrize("size", [LEAST, LEAST + 1, 2 * LEAST, 5_000_000])
def test_longer_ones_are_lent(q, size):
    thing = through(q, Carrier(bytearray(pattern(9, size))))
    assert thing.data == pattern(9, size)
    assert lent() > 0


def test_short_and_long_ones_together(q):
    sizes = [10, BIG, 0, LEAST, 1000, LEAST - 1, 2 * BIG]
    got = through(q, {n: Carrier(pattern(n, size), b"x" * size) for n, size in enumerate(sizes)})
    for number, size in enumerate(sizes):
        assert got[number].bytes() == pattern(number, size)
        assert got[number].note == b"x" * size
        assert type(got[number].note) is bytes


def test_what_has_no_buffers_is_as_without(q):
    big = {"b": pattern(1, BIG), "a": bytearray(pattern(2, BIG)), "s": "é" * BIG, "l": [1.5] * BIG}
    got = through(q, big)
    assert got == big
    assert [type(value) for value in got.values()] == [bytes, bytearray, str, list]
    got["a"].append(1)  # it can be resized
    for thing in (None, 7, "x", (1, 2), {1: [2]}, ValueError("x"), pickle.loads):
        assert repr(through(q, thing)) == repr(thing)
    assert lent() == 0


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_by_default_nothing_is_lent(ours, kind, make):
    q = getattr(ours, kind)()
    thing = through(q, make(pattern(1, BIG)))
    assert thing.bytes() == pattern(1, BIG)
    assert lent() == 0


# ---- numpy -------------------------------------------------------------------------------------

ARRAYS = {
    "c": lambda: numpy.arange(60_000.0).reshape(200, 300),
    "fortran": lambda: numpy.asfortranarray(numpy.arange(60_000.0).reshape(200, 300)),
    "transposed": lambda: numpy.arange(60_000.0).reshape(10, 20, 300).T,
    "with gaps": lambda: numpy.arange(120_000)[::2],
    "backwards": lambda: numpy.arange(60_000)[::-1],
    "broadcast": lambda: numpy.broadcast_to(numpy.arange(1000), (100, 1000)),
    "big-endian": lambda: numpy.arange(60_000, dtype=">i4"),
    "bool": lambda: numpy.arange(100_000) % 3 == 0,
    "complex": lambda: numpy.arange(60_000) * 1j,
    "times": lambda: numpy.arange(60_000).astype("M8[s]"),
    "structured": lambda: numpy.zeros(20_000, dtype=[("a", "i4"), ("b", "f8", (3,))]),
    "strings": lambda: numpy.array(["x", "éé"] * 40_000),
    "objects": lambda: numpy.array([1, "x", None] * 20_000, dtype=object),
    "empty": lambda: numpy.zeros((0, 5)),
    "none": lambda: numpy.array(3.5),
    "short": lambda: numpy.arange(10),
    "masked": lambda: numpy.ma.masked_greater(numpy.arange(60_000), 5),
    "records": lambda: numpy.rec.fromarrays([numpy.arange(60_000.0), numpy.arange(60_000)]),
}


@needs_numpy
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("writable", [True, False])
def test_arrays_are_what_they_were(q, name, writable):
    array = ARRAYS[name]()
    if not writable:
        array.flags.writeable = False
    got = through(q, array)
    expected = pickle.loads(pickle.dumps(array, 5))
    assert type(got) is type(expected)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert got.strides == expected.strides
    for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "WRITEABLE", "ALIGNED"):
        assert got.flags[flag] == expected.flags[flag], flag
    same = got.tolist() if array.dtype == object else got.tobytes()
    assert same == (array.tolist() if array.dtype == object else array.tobytes())


@needs_numpy
@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_by_default_arrays_are_what_pickle_gives(package, kind):
    """Private, writable as pickle's, and resizable where pickle's are."""
    for array in (numpy.arange(60_000.0), numpy.asfortranarray(numpy.ones((300, 300)))):
        q = getattr(package.get_context("fork"), kind)()
        task = Task(q.get)
        q.put(array)
        got = task.get()
        expected = pickle.loads(bytes(mproc_ext.reduction.ForkingPickler.dumps(array)))
        for flag in ("C_CONTIGUOUS", "F_CONTIGUOUS", "OWNDATA", "WRITEABLE", "ALIGNED"):
            assert got.flags[flag] == expected.flags[flag], flag
        assert (got == array).all()
        got[...] = 5
        if expected.flags.owndata:
            got.resize((700, 300), refcheck=False)
            expected.resize((700, 300), refcheck=False)
            assert got.shape == expected.shape
        if hasattr(q, "cancel_join_thread"):
            end(q)


# ---- The bound ---------------------------------------------------------------------------------


@pytest.fixture
def limit():
    yield _core.limit_leases
    _core.limit_leases(0)


@pytest.mark.parametrize("writable", [True, False])
def test_beyond_the_limit_it_is_copied(q, make, how, limit, writable):
    one = through(q, make(pattern(1, BIG), writable))
    size = lent()
    limit(2 * size)
    two = through(q, make(pattern(2, BIG), writable))
    assert lent() == 2 * size
    before = owned()
    three = through(q, make(pattern(3, BIG), writable))
    assert lent() == 2 * size
    assert owned() == before
    assert three.bytes() == pattern(3, BIG)
    assert three.is_writable() is writable
    if how == "class":
        assert type(three.data) is (bytearray if writable else bytes)
    del one
    four = through(q, make(pattern(4, BIG), writable))
    assert lent() == 2 * size
    assert [thing.bytes() for thing in (two, three, four)] == [pattern(n, BIG) for n in (2, 3, 4)]


def test_a_limit_of_one_byte_lends_nothing(q, make, limit):
    limit(1)
    things = [through(q, make(pattern(n, BIG))) for n in range(20)]
    assert [thing.bytes() for thing in things] == [pattern(n, BIG) for n in range(20)]
    assert lent() == 0


def test_the_limit_is_a_part_of_the_memory():
    _, most = _core.leases()
    with open("/proc/meminfo") as file:
        total = int(file.readline().split()[1]) * 1024
    assert 0 < most < total


def test_what_was_lent_is_used_again(q, make):
    through(q, make(pattern(0, BIG)))
    before = _core.heap_stats()["size"]
    for number in range(2_000):
        assert through(q, make(pattern(number, BIG))).bytes()[:8] == pattern(number, 8)
    assert _core.heap_stats()["size"] == before


def test_what_was_lent_is_given_back_to_the_system(q, make):
    for number in range(100):
        q.put(make(pattern(number, 1 << 20)))
    things = [q.get() for _ in range(100)]
    assert owned() > 100 << 20
    del things
    with pytest.raises(queue.Empty):
        q.get(timeout=1.5)  # who is idle gives memory back
    stats = _core.heap_stats()
    assert stats["free_stored"] <= 5 << 20
    assert stats["owned"] < 10 << 20


# ---- Processes ---------------------------------------------------------------------------------


def test_lent_between_processes(our_ctx, kind, how):
    q = getattr(our_ctx, kind)(zero_copy=True)
    child = Child(our_ctx, zero_copy_targets.put_patterns, q, how, 10)
    things = [q.get() for _ in range(10)]
    child.expect("put")
    assert [thing.bytes() for thing in things] == [pattern(n, BIG) for n in range(10)]
    assert lent() > 10 * BIG
    child.send("end")
    child.join()
    assert [thing.bytes() for thing in things] == [pattern(n, BIG) for n in range(10)]


def test_a_child_gets_on_loan(our_ctx, kind, how, make):
    q = getattr(our_ctx, kind)(zero_copy=True)
    child = Child(our_ctx, zero_copy_targets.get_patterns, q, 5)
    for number in range(5):
        q.put(make(pattern(number, BIG)))
    child.expect([True] * 5)
    assert child.recv() > 5 * BIG
    child.expect(True)
    child.expect(0)
    child.join()


def test_a_forked_child_has_what_its_parent_has_on_loan(ours, q, make):
    thing = through(q, make(pattern(1, BIG)))
    size = lent()
    child = Child(ours, zero_copy_targets.hold, thing)
    child.expect(size)
    child.send(pattern(2, BIG))
    child.expect(pattern(2, BIG))
    assert thing.bytes() == pattern(2, BIG)  # both see it
    del thing
    for number in range(20):
        through(q, make(pattern(number + 3, BIG)))
    child.send("say")
    child.expect(pattern(2, BIG))
    before = owned()
    child.send("end")
    child.join()
    assert before - owned() == size


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_started_by_exec_does_not_have_it(method, make):
    ctx = mproc_ext.get_context(method)
    q = ctx.Queue(zero_copy=True)
    thing = through(q, make(pattern(1, BIG)))
    size = lent()
    child = Child(ctx, zero_copy_targets.get_and_hold, q)
    q.put(make(pattern(2, BIG)))
    assert child.recv() == size
    before = owned()
    del thing
    assert before - owned() == size
    child.send("say")
    child.expect(pattern(2, BIG))
    child.join()
    assert before - owned() == 2 * size


def test_killed_with_things_on_loan(our_ctx, how, make):
    q = our_ctx.Queue(zero_copy=True)
    through(q, make(pattern(0, BIG)))
    before = owned()
    children = [Child(our_ctx, zero_copy_targets.get_and_hold, q) for _ in range(3)]
    for number in range(3):
        q.put(make(pattern(number, BIG)))
    for child in children:
        assert child.recv() > BIG
    assert owned() > before + 3 * BIG
    for child in children:
        child.kill()
    wait_until(lambda: owned() <= before)


def test_the_heir_of_a_killed_one_keeps_it(ours, make):
    q = ours.Queue(zero_copy=True)
    child = Child(ours, zero_copy_targets.fork_with_what_came, q, ours)
    q.put(make(pattern(1, BIG)))
    size = child.recv()  # its child says this
    assert size > BIG
    before = owned()
    child.kill()
    for number in range(20):
        through(q, make(pattern(number + 2, BIG)))
    child.send("say")
    child.expect(pattern(1, BIG))
    child.send("end")
    wait_until(lambda: before - owned() == size)


def test_sent_on_to_another_queue(ours, q, make):
    default, another = ours.Queue(), ours.SimpleQueue(zero_copy=True)
    thing = through(q, make(pattern(1, BIG)))
    size = lent()
    again, copy, other = through(q, thing), through(default, thing), through(another, thing)
    assert lent() == 3 * size
    thing.write(bytes(BIG))
    again.write(pattern(2, BIG))
    assert copy.bytes() == other.bytes() == pattern(1, BIG)
    assert thing.bytes() == bytes(BIG)


def test_there_and_back(our_ctx, how, make):
    there, back = our_ctx.Queue(zero_copy=True), our_ctx.Queue(zero_copy=True)
    process = our_ctx.Process(target=zero_copy_targets.echo_until_none, args=(there, back))
    process.start()
    for number in range(50):
        there.put(make(pattern(number, BIG)))
        assert back.get(timeout=LIMIT).bytes() == pattern(number, BIG)
    there.put(None)
    process.join(LIMIT)
    assert process.exitcode == 0


# ---- Threads, garbage, the end -----------------------------------------------------------------


def test_threads(q, make):
    count, found, lock = 60, [], threading.Lock()

    def produce(first):
        for number in range(first, first + count):
            q.put(make(pattern(number, BIG)))

    def consume():
        held = []
        for _ in range(count):
            thing = q.get()
            number = int.from_bytes(thing.bytes()[:8], "little")
            assert thing.bytes() == pattern(number, BIG)
            thing.write(pattern(number + 10_000, BIG))
            with lock:
                found.append(number)
            held.append((number, thing))
            if len(held) > 3:
                before, thing = held.pop(random.randrange(4))
                assert thing.bytes() == pattern(before + 10_000, BIG)

    tasks = [Task(produce, n * 1000) for n in range(3)] + [Task(consume) for _ in range(3)]
    for task in tasks:
        task.get()
    assert sorted(found) == [n * 1000 + k for n in range(3) for k in range(count)]


def test_garbage_in_a_cycle_gives_it_back(q, make):
    thing = through(q, make(pattern(1, BIG)))
    thing.note = [thing]
    del thing
    assert lent() > 0
    gc.collect()
    assert lent() == 0


def test_the_queue_may_go_first(ours, make):
    q = ours.Queue(zero_copy=True)
    thing = through(q, make(pattern(1, BIG)))
    q.close()
    del q
    gc.collect()
    assert thing.bytes() == pattern(1, BIG)


AT_THE_END = """
import atexit, builtins, ctypes, gc, pickle, sys
sys.path.insert(0, sys.argv[1])
import mproc_ext
from zero_copy_targets import Carrier
q = mproc_ext.get_context("fork").Queue(zero_copy=True)
def one():
    q.put(Carrier(bytearray(b"x" * 300_000)))
    return q.get()
held = one()
builtins.held = one()
sys.held = one()
held_in_a_cycle = one()
held_in_a_cycle.note = [held_in_a_cycle, one()]
class Late:
    def __init__(self):
        self.thing = one()
    def __del__(self):
        assert bytes(self.thing.data[:3]) == b"xxx"
        print("late", flush=True)
late = sys.late = Late()
ctypes.pythonapi.Py_IncRef(ctypes.py_object(one()))
if sys.argv[2] == "unloaded":
    import threading
    for name in [name for name in sys.modules if name.startswith("mproc_ext")]:
        del sys.modules[name]
    del mproc_ext, q
    gc.collect()
atexit.register(lambda: print("exit", len(held.data)))
"""


@pytest.mark.parametrize("how_it_ends", ["plainly", "unloaded"])
def test_the_interpreter_ends_with_things_on_loan(how_it_ends):
    folder = os.path.dirname(__file__)
    path = [folder, *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_END, folder, how_it_ends],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONMALLOC": "debug"},
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd="/",
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("exit 300000\n")


# ---- The other ways in and out -----------------------------------------------------------------


def test_the_ends(q, how, make):
    q._writer.send(make(pattern(1, BIG)))
    thing = q._reader.recv()
    assert thing.bytes() == pattern(1, BIG)
    assert lent() > BIG
    del thing
    q.put(make(pattern(2, BIG)))
    assert pickle.loads(q._reader.recv_bytes()).bytes() == pattern(2, BIG)
    q._writer.send_bytes(pickle.dumps(Carrier(pattern(3, BIG))))
    assert q.get().bytes() == pattern(3, BIG)
    q._writer.send_bytes(b"\xbe" + pattern(4, BIG))
    assert q._reader.recv_bytes() == b"\xbe" + pattern(4, BIG)
    assert lent() == 0


def test_many(q, make):
    q.put_many(make(pattern(n, BIG)) for n in range(10))
    things = q.get_many()
    q.shutdown()
    assert [thing.bytes() for thing in things + list(q)] == [pattern(n, BIG) for n in range(10)]


def test_dropped_by_shutdown(q, make):
    through(q, make(pattern(0, BIG)))
    before = owned()
    for number in range(5):
        q.put(make(pattern(number, BIG)))
    q.shutdown(immediate=True)
    assert owned() <= before


def test_an_object_whose_unpickling_raises_gives_it_back(q):
    q.put(Bad(bytearray(BIG)))
    q.put("next")
    with pytest.raises(ValueError, match="bad"):
        q.get()
    gc.collect()
    assert lent() == 0
    assert q.get() == "next"


def test_an_object_that_cannot_be_pickled(q):
    before = owned()
    with stderr() as written:
        q.put([Carrier(bytearray(BIG)), threading.Lock()])
    assert "TypeError: cannot pickle" in written.getvalue()
    assert owned() == before
    assert through(q, 1) == 1


def test_a_buffer_with_gaps_is_reported_as_pickle_does(q):
    with stderr() as written:
        q.put(pickle.PickleBuffer(memoryview(bytearray(BIG))[::2]))
    assert "PicklingError" in written.getvalue()
    assert "non-contiguous" in written.getvalue()


class Releasing:
    """Releases the buffer before it, which has been pickled by then."""

    def __init__(self, buffer):
        self.buffer = buffer

    def __reduce_ex__(self, protocol):
        self.buffer.release()
        return int, ()


def test_a_buffer_that_is_released_meanwhile(q):
    buffer = pickle.PickleBuffer(bytearray(BIG))
    with stderr() as written:
        q.put([buffer, Releasing(buffer)])
    assert "ValueError: operation forbidden on released" in written.getvalue()
    assert through(q, 1) == 1


class MyPickler(mproc_ext.reduction.ForkingPickler):
    used = 0

    @classmethod
    def dumps(cls, obj, protocol=None):
        cls.used += 1
        return super().dumps(obj, protocol)

    @staticmethod
    def loads(data):
        MyPickler.used += 1
        return pickle.loads(data)


def test_a_pickler_of_the_programs_own_is_used(q, monkeypatch):
    from multiprocessing import queues

    q.put(Carrier(bytearray(pattern(1, BIG))))
    monkeypatch.setattr(queues, "_ForkingPickler", MyPickler)
    MyPickler.used = 0
    assert q.get().bytes() == pattern(1, BIG)
    assert MyPickler.used == 1
    q.put(Carrier(bytearray(pattern(2, BIG))))
    assert MyPickler.used == 2
    monkeypatch.undo()
    thing = q.get()
    assert thing.bytes() == pattern(2, BIG)
    assert type(thing.data) is type(pickle.loads(pickle.dumps(Carrier(bytearray(BIG)))).data)
    assert lent() == 0


class Registered:
    def __init__(self, data):
        self.data = data


def reduce_registered(thing):
    return Registered, (pickle.PickleBuffer(thing.data),)


def test_a_registered_reducer_counts(q):
    mproc_ext.reduction.ForkingPickler.register(Registered, reduce_registered)
    try:
        thing = through(q, Registered(bytearray(pattern(1, BIG))))
    finally:
        del mproc_ext.reduction.ForkingPickler._extra_reducers[Registered]
    assert type(thing.data) is memoryview
    assert thing.data == pattern(1, BIG)


def test_pickling_while_pickling(q):
    """A reducer that uses such a queue itself gets another pickler."""

    class_of_inner = Carrier
    inner = q

    class Nested(Carrier):
        def __reduce_ex__(self, protocol):
            inner.put(class_of_inner(bytearray(pattern(5, BIG))))
            return class_of_inner, (pickle.PickleBuffer(self.data), protocol)

    q.put([Nested(bytearray(pattern(1, BIG))), Nested(bytearray(pattern(2, BIG)))])
    assert [q.get().bytes() for _ in range(2)] == [pattern(5, BIG)] * 2
    one, other = q.get()
    assert (one.bytes(), other.bytes()) == (pattern(1, BIG), pattern(2, BIG))
    assert one.note == other.note == 5


def test_a_subclass_with_the_stdlibs_code(ours):
    class Queue(mproc_ext.queues.Queue):
        def _feed(self, *args):
            super()._feed(*args)

        _feed = staticmethod(mproc_ext.queues.Queue._feed)

    q = Queue(ctx=ours, zero_copy=True)
    assert q._channel is None
    q.put(Carrier(bytearray(pattern(1, BIG))))
    assert q.get().bytes() == pattern(1, BIG)
    end(q)
    assert lent() == 0


@pytest.mark.parametrize(("kind", "args"), [("Queue", 1), ("JoinableQueue", 1), ("SimpleQueue", 0)])
def test_the_option_has_a_name(ours, kind, args):
    with pytest.raises(TypeError):
        getattr(ours, kind)(*[0] * args, True)
    assert getattr(ours, kind)(zero_copy=1)._channel._zero_copy is True
    assert getattr(ours, kind)(zero_copy=None)._channel._zero_copy is False


def test_without_a_descriptor(make):
    """The program has closed all: what is there is lent, or copied, and nothing is lost."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            q = mproc_ext.get_context("fork").Queue(zero_copy=True)
            for number in range(5):
                q.put(make(pattern(number, BIG)))
            os.closerange(3, 1000)
            things = [q.get() for _ in range(5)]
            well = [thing.bytes() for thing in things] == [pattern(n, BIG) for n in range(5)]
            status = 0 if well else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0


# ---- Bad bytes ---------------------------------------------------------------------------------


def message_of(q, thing):
    q.put(thing)
    return q._channel._receive_bytes(1.0)


def test_damaged_messages_are_errors(q):
    rng = random.Random(1)
    whole = message_of(q, [Carrier(pattern(1, LEAST)), Carrier(bytearray(pattern(2, LEAST)))])
    one, other = _core.loads(whole)
    assert (one.bytes(), other.bytes()) == (pattern(1, LEAST), pattern(2, LEAST))
    assert (type(one.data), type(other.data)) == (bytes, bytearray)
    for size in [*range(60), *range(len(whole) - 60, len(whole))]:
        with pytest.raises((pickle.UnpicklingError, EOFError, ValueError)):
            _core.loads(whole[:size] if size else b"\xbe")
    for _ in range(3_000):
        bad = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            bad[len(bad) - 1 - rng.randrange(48)] = rng.choice([0, 1, 2, 127, 128, 255])
        try:
            things = _core.loads(bytes(bad))
        except (pickle.UnpicklingError, EOFError):
            continue
        assert sum(len(thing.data) for thing in things) <= len(whole)


def test_damaged_messages_on_loan(q):
    """The same where the bytes lie in a block."""
    rng = random.Random(2)
    whole = message_of(q, [Carrier(pattern(1, LEAST)), Carrier(bytearray(pattern(2, LEAST)))])
    for _ in range(300):
        bad = bytearray(whole)
        bad[len(bad) - 1 - rng.randrange(48)] = rng.choice([0, 1, 2, 127, 128, 255])
        q._channel._send_bytes(bad)
        try:
            things = q.get()
        except (pickle.UnpicklingError, EOFError):
            continue
        assert sum(len(thing.data) for thing in things) <= len(whole)
        del things
    assert through(q, 1) == 1


# ---- Deaths ------------------------------------------------------------------------------------


def test_killed_at_random_with_things_on_loan(ours, make):
    """Whoever is killed, the memory is whole; nothing comes twice, and none of it is lost."""
    q = ours.Queue(zero_copy=True)
    through(q, make(pattern(0, BIG)))
    before = owned()
    rng = random.Random(3)
    for round in range(12):
        children = [Child(ours, zero_copy_targets.get_and_hold, q) for _ in range(3)]
        for number in range(3):
            q.put(make(pattern(round * 3 + number, BIG)))
        rng.shuffle(children)
        for child in children:
            if rng.random() < 0.5:
                child.recv()
            os.kill(child.pid, signal.SIGKILL)
            child.process.join()
        while not q.empty():
            q.get()
    wait_until(lambda: owned() <= before)
