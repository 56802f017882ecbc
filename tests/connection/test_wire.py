"""The bytes on the wire: the stdlib's, byte for byte, however they come in parts."""

import copyreg
import ctypes
import importlib
import io
import mmap
import os
import pathlib
import pickle
import random
import threading

import connection_targets
import pytest
from connection_helpers import (
    OURS,
    close,
    descriptors,
    framed,
    header,
    open_pair,
    raw_reader,
    raw_writer,
    read_all,
    read_exactly,
    sending,
    theirs,
    wait_until_blocked,
    wide_header,
    write_all,
)
from connection_targets import Point
from sync_helpers import LIMIT, Task, outcome

from mproc_ext import context, reduction

SIZES = [0, 1, 2, 100, 16383, 16384, 16385, 65_536, 1 << 20]
OBJECTS = {
    "None": None,
    "True": True,
    "int": 7,
    "large int": -(2**200),
    "float": 1.5,
    "empty str": "",
    "str": "text",
    "latin-1": "é" * 300,
    "surrogate": "\udc80",
    "bytes": b"bytes",
    "large bytes": b"x" * 100_000,
    "large str": "x" * 100_000,
    "bytearray": bytearray(b"x" * 1000),
    "large bytearray": bytearray(b"x" * 100_000),
    "tuple": (1, 2.5, "three", None, True),
    "list": [1, [2, [3, []]], ()],
    "dict": {"id": 1, "name": "x", "price": 1.5, "tags": None, "ok": True, "n": 2**40},
    "floats": [float(n) for n in range(1000)],
    "many": list(range(5000)),
    "set": {1},
    "range": range(5),
    "object": Point([1, "two"]),
    "class": Point,
    "function": os.path.join,
    "method": "text".upper,
    "descriptor of dict": dict.get,
    "exception": ValueError("wrong", 5),
    "path": pathlib.PurePosixPath("/tmp/file"),
}
SAME = ["the same text"] * 3 + [["the same list"]] * 2
OBJECTS["shared"] = SAME
RECURSIVE = [1]
RECURSIVE.append(RECURSIVE)
OBJECTS["recursive"] = RECURSIVE

every_object = pytest.mark.parametrize("thing", OBJECTS.values(), ids=OBJECTS)


def sent(module, kind, *calls):
    """The bytes on the wire of what a connection sends."""
    with raw_reader(module, kind) as (writer, fd):
        task = Task(read_all, fd)
        for call in calls:
            call(writer)
        writer.close()
        return task.get()


# ---- What is sent ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_bytes(modules, kind, size):
    data = random.Random(size).randbytes(size)
    for module in modules:
        assert sent(module, kind, lambda c: c.send_bytes(data)) == framed(data)
        view = memoryview(bytearray(b"before" + data + b"after"))
        assert sent(module, kind, lambda c: c.send_bytes(view, 6, size)) == framed(data)


@every_object
def test_objects(modules, kind, thing):
    """What ForkingPickler makes of them."""
    expected = framed(bytes(reduction.ForkingPickler.dumps(thing)))
    for module in modules:
        assert sent(module, kind, lambda c: c.send(thing)) == expected


@pytest.mark.parametrize("size", SIZES)
def test_objects_of_sizes(modules, kind, size):
    """Also where the pickle's own size is near a limit of the header's."""
    for more in range(-40, 1, 5):
        thing = b"x" * max(size + more, 0)
        expected = framed(bytes(reduction.ForkingPickler.dumps(thing)))
        for module in modules:
            assert sent(module, kind, lambda c: c.send(thing)) == expected


def test_one_after_the_other(modules, kind):
    found = [
        sent(
            module,
            kind,
            lambda c: c.send(1),
            lambda c: c.send_bytes(b""),
            lambda c: c.send_bytes(b"x" * 20_000),
            lambda c: c.send("x" * 20_000),
            lambda c: c.send_bytes(b"last"),
        )
        for module in modules
    ]
    assert found[1] == found[0]
    assert found[0].startswith(framed(pickle.dumps(1)) + framed(b""))
    assert found[0].endswith(framed(b"last"))


def test_what_is_not_sent(modules, kind):
    """Nothing of what cannot be pickled."""

    class Fails:
        def __reduce__(self):
            raise LookupError("not pickled")

    for module in modules:
        calls = [
            lambda c, thing=thing: outcome(c.send, thing)
            for thing in (Fails(), ["x" * 100_000, Fails()], lambda: 0, memoryview(b"abc"))
        ]
        assert sent(module, kind, *calls, lambda c: c.send_bytes(b"only this")) == framed(
            b"only this"
        )


def test_sending_while_pickling(modules, kind):
    """What an object's reducer sends goes first, and whole."""
    found = []
    for module in modules:

        class Sends:
            def __reduce__(self):
                writer.send("inner")
                return str, ("outer",)

        with raw_reader(module, kind) as (writer, fd):
            writer.send([b"x" * 10_000, Sends()])
            writer.close()
            found.append(read_all(fd))
    assert found[1] == found[0]
    assert found[0].startswith(framed(bytes(reduction.ForkingPickler.dumps("inner"))))


# ---- Between the packages --------------------------------------------------------------------


@pytest.fixture(params=["ours to theirs", "theirs to ours", "ours to ours", "theirs to theirs"])
def mixed(request, modules, kind):
    """(one that reads, one that writes) of two packages."""
    by_name = dict(zip(("theirs", "ours"), modules, strict=True))
    writing, reading = (by_name[name] for name in request.param.split(" to "))
    fds = descriptors(kind)
    ends = (
        reading.Connection(fds[0], writable=kind != "pipe"),
        writing.Connection(fds[1], readable=kind != "pipe"),
    )
    yield ends
    close(*ends)


@every_object
def test_objects_between_packages(mixed, thing):
    reader, writer = mixed
    task = sending(writer, writer.send, thing)
    found = reader.recv()
    task.get()
    assert type(found) is type(thing)
    if thing is RECURSIVE:
        assert found[1] is found
    elif thing is SAME:
        assert found == thing
        assert found[0] is found[1] is found[2]
        assert found[3] is found[4]
    elif isinstance(thing, Exception):
        assert found.args == thing.args
    elif thing == OBJECTS["method"]:
        assert found() == thing()
    else:
        assert found == thing


@pytest.mark.parametrize("size", [*SIZES, 10_000_000])
def test_bytes_between_packages(mixed, size):
    reader, writer = mixed
    data = random.Random(size).randbytes(size)
    into = bytearray(size)
    task = sending(writer, lambda: [writer.send_bytes(data) for _ in range(2)])
    assert reader.recv_bytes(size) == data
    assert reader.recv_bytes_into(into) == size
    assert into == data
    task.get()


def test_many_between_packages(mixed):
    reader, writer = mixed
    chance = random.Random(5)
    things = [
        chance.choice([n, str(n) * 10, b"x" * chance.choice(SIZES), {"n": n}]) for n in range(300)
    ]

    def send_all():
        for number, thing in enumerate(things):
            writer.send(thing)
            writer.send_bytes(number.to_bytes(4, "big") * (number % 7))

    task = sending(writer, send_all)
    for number, thing in enumerate(things):
        assert reader.recv() == thing
        assert reader.recv_bytes() == number.to_bytes(4, "big") * (number % 7)
    task.get()


# ---- What comes in parts ---------------------------------------------------------------------

PICKLED = b"\x80\x04\x8c\x04text."
RECEIVE = {
    "recv": (lambda c: c.recv(), "text"),
    "recv_bytes": (lambda c: c.recv_bytes(), PICKLED),
    "recv_bytes limited": (lambda c: c.recv_bytes(len(PICKLED)), PICKLED),
    "recv_bytes_into": (lambda c: c.recv_bytes_into(bytearray(50)), len(PICKLED)),
}


@pytest.mark.parametrize(("receive", "expected"), RECEIVE.values(), ids=RECEIVE)
@pytest.mark.parametrize("start", [header, wide_header], ids=["short", "wide"])
def test_split_at_every_byte(connection, kind, receive, expected, start):
    data = start(len(PICKLED)) + PICKLED
    with raw_writer(connection, kind) as (reader, fd):
        for length in range(1, len(data)):
            task = Task(receive, reader)
            write_all(fd, data[:length])
            wait_until_blocked(task)
            write_all(fd, data[length:])
            assert task.get() == expected, length
        task = Task(lambda: [receive(reader) for _ in range(3)])
        for at in range(3 * len(data)):
            at %= len(data)
            write_all(fd, data[at : at + 1])
        assert task.get() == [expected] * 3


def test_large_ones_in_parts(connection, kind):
    """Parts of all sizes, that end in the middle of headers and of messages."""
    chance = random.Random(7)
    messages = [chance.randbytes(chance.choice([0, 1, 5, 70_000, 1 << 20])) for _ in range(20)]
    data = b"".join(
        chance.choice([header, wide_header])(len(message)) + message for message in messages
    )
    with raw_writer(connection, kind) as (reader, fd):
        task = Task(lambda: [reader.recv_bytes() for _ in messages])
        while data:
            size = int(2 ** chance.uniform(0, 20))
            write_all(fd, data[:size])
            data = data[size:]
        assert task.get() == messages


def test_all_at_once(connection, kind):
    """Of several messages that are there, each call takes one."""
    messages = [b"x" * size for size in (0, 1, 4, 5, 1000, 0, 16_384, 3)]
    with raw_writer(connection, kind) as (reader, fd):
        write_all(fd, b"".join(map(framed, messages)))
        for message in messages:
            assert reader.poll(LIMIT)
            assert reader.recv_bytes() == message
        assert not reader.poll()


def test_a_message_in_the_middle_is_readable(connection, kind):
    """poll() is about bytes, as the stdlib's: with a part of a header there is something."""
    with raw_writer(connection, kind) as (reader, fd):
        for at in range(4):
            write_all(fd, header(3)[at : at + 1])
            assert reader.poll(LIMIT)
        write_all(fd, b"abc")
        assert reader.recv_bytes() == b"abc"
        assert not reader.poll()


@pytest.mark.parametrize("size", [16_385, 1 << 20])
def test_a_slow_reader(connection, kind, size):
    """Who sends waits, and what comes out is whole."""
    data = random.Random(size).randbytes(size)
    chance = random.Random(9)
    with raw_reader(connection, kind) as (writer, fd):
        task = Task(lambda: [writer.send_bytes(data) for _ in range(3)])
        expected = framed(data) * 3
        found = bytearray()
        while len(found) < len(expected):
            found += os.read(fd, chance.choice([1, 7, 100, 5000, 100_000]))
        task.get()
        assert found == expected


# ---- Beyond 2 GiB ----------------------------------------------------------------------------

HUGE = (1 << 31) + 5


@pytest.fixture(scope="module")
def huge():
    """Zeros of which no page has memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, HUGE, flags=flags, prot=mmap.PROT_READ) as zeros:
        yield zeros


def read_away(fd, size):
    """Read so much, which is to be zeros."""
    buffer = bytearray(1 << 20)
    while size:
        count = os.readv(fd, [memoryview(buffer)[: min(size, len(buffer))]])
        assert count
        assert not buffer.count(b"\1", 0, count)
        size -= count


@pytest.mark.parametrize("more", [-6, -5, 0], ids=["last short one", "first wide one", "wide"])
def test_sending_more_than_2_gib(modules, huge, more):
    """The header of the others is of 12 bytes, and the stdlib's too."""
    size = HUGE + more
    expected = header(size)
    assert len(expected) == (4 if more == -6 else 12)
    for module in modules[1:] if more else modules:
        with raw_reader(module, "pipe") as (writer, fd):
            task = Task(writer.send_bytes, huge, 0, size)
            assert read_exactly(fd, len(expected)) == expected
            read_away(fd, size)
            task.get()
            writer.send_bytes(b"next")
            assert read_exactly(fd, 8) == framed(b"next")


def available():
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvail"))


@pytest.mark.skipif(
    os.environ.get("MPROC_EXT_STORM", "short") == "short", reason="takes half a minute, and 4 GB"
)
@pytest.mark.timeout(600)
def test_receiving_more_than_2_gib(ours):
    if available() < 3 * HUGE:
        pytest.skip("there is not enough memory for it")
    piece = random.Random(3).randbytes((1 << 20) + 7)

    def feed(fd):
        write_all(fd, wide_header(HUGE))
        left = HUGE
        while left:
            part = memoryview(piece)[:left]
            write_all(fd, part)
            left -= len(part)
        write_all(fd, framed(b"next"))

    with raw_writer(ours, "socketpair") as (reader, fd):
        task = Task(feed, fd)
        found = reader.recv_bytes()
        task.get()
        assert len(found) == HUGE
        view, at = memoryview(found), 0
        while at < HUGE:
            part = view[at : at + len(piece)]
            assert part == memoryview(piece)[: len(part)]
            at += len(part)
        assert reader.recv_bytes() == b"next"


# ---- Who pickles -----------------------------------------------------------------------------


class Plain:
    """Pickled by whatever is registered."""

    def __init__(self, name):
        self.name = name


def restore(how, name):
    thing = Plain(name)
    thing.how = how
    return thing


def name_of(thing):
    return thing.how, thing.name


@pytest.fixture
def no_reducers():
    """Takes back what a test registers."""
    extra, table = dict(reduction.ForkingPickler._extra_reducers), dict(copyreg.dispatch_table)
    yield
    for now, before in (
        (reduction.ForkingPickler._extra_reducers, extra),
        (copyreg.dispatch_table, table),
    ):
        now.clear()
        now.update(before)


def through(module, kind, thing):
    """(the bytes, what is received of them)."""
    data = sent(module, kind, lambda c: c.send(thing))
    with raw_writer(module, kind) as (reader, fd):
        task = Task(write_all, fd, data)
        found = reader.recv()
        task.get()
        return data, found


@pytest.mark.parametrize("used_before", [True, False])
def test_registered_reducers(modules, kind, no_reducers, used_before):
    """They count from the moment on, at any depth, and before copyreg's, which do not."""
    found = []
    for module in modules:
        if used_before:
            through(module, kind, [1, "two"])
        reduction.ForkingPickler.register(Plain, lambda thing: (restore, ("reducer", thing.name)))
        data, things = through(module, kind, [Plain("a"), {"b": Plain("b")}])
        assert [name_of(things[0]), name_of(things[1]["b"])] == [("reducer", "a"), ("reducer", "b")]
        reduction.ForkingPickler.register(Plain, lambda thing: (restore, ("second", thing.name)))
        data, thing = through(module, kind, Plain("c"))
        assert name_of(thing) == ("second", "c")
        found.append(data)
    assert found[1] == found[0]


def test_copyreg(modules, kind, no_reducers):
    found = []
    for module in modules:
        copyreg.pickle(Plain, lambda thing: (restore, ("copyreg", thing.name)))
        data, thing = through(module, kind, Plain("a"))
        found.append((data, getattr(thing, "how", None)))
        del copyreg.dispatch_table[Plain]
    assert found[1] == found[0]


def test_reducers_of_builtin_types(modules, kind, no_reducers):
    """Of those that pickle knows by itself they are not asked, as in the stdlib."""
    found = []
    for module in modules:
        for builtin in (int, str, list, dict, float):
            reduction.ForkingPickler.register(builtin, lambda thing: (str, ("replaced",)))
        reduction.ForkingPickler.register(complex, lambda thing: (str, ("replaced",)))
        found.append(through(module, kind, [1, "two", [3.5], {}, 4j]))
    assert found[1] == found[0]
    assert found[0][1] == [1, "two", [3.5], {}, "replaced"]


class Loud(reduction.ForkingPickler):
    """Notes what it is asked for."""

    log = []

    @classmethod
    def dumps(cls, obj, protocol=None):
        cls.log.append(("dumps", obj))
        return reduction.ForkingPickler.dumps(("loud", obj), protocol)

    @staticmethod
    def loads(data):
        Loud.log.append(("loads", bytes(data)))
        return ("heard", pickle.loads(data))


@pytest.mark.parametrize("used_before", [True, False])
def test_an_assigned_pickler(modules, kind, monkeypatch, used_before):
    """connection._ForkingPickler is looked up each time."""
    found = []
    for module in modules:
        if used_before:
            through(module, kind, 1)
        Loud.log = []
        with monkeypatch.context() as patch:
            patch.setattr(module, "_ForkingPickler", Loud)
            data, thing = through(module, kind, 5)
            assert thing == ("heard", ("loud", 5))
        found.append((data, Loud.log))
        assert through(module, kind, 5)[1] == 5
    assert found[1] == found[0]
    assert [name for name, _ in found[0][1]] == ["dumps", "loads"]


class Reducing(reduction.ForkingPickler):
    """With reducers of its own."""

    def __init__(self, *args):
        super().__init__(*args)
        self.dispatch_table[Plain] = lambda thing: (restore, ("subclass", thing.name))


def test_an_assigned_subclass(modules, kind, monkeypatch):
    found = []
    for module in modules:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_ForkingPickler", Reducing)
            data, thing = through(module, kind, [Plain("a"), 1])
            assert name_of(thing[0]) == ("subclass", "a")
        found.append(data)
    assert found[1] == found[0]


def test_a_pickler_that_is_no_class(modules, kind, monkeypatch):
    """Whatever has dumps and loads."""

    class Text:
        def dumps(self, thing):
            return repr(thing).encode()

        def loads(self, data):
            return bytes(data).decode()

    for module in modules:
        with monkeypatch.context() as patch:
            patch.setattr(module, "_ForkingPickler", Text())
            assert through(module, kind, [1]) == (framed(b"[1]"), "[1]")


@pytest.mark.parametrize("name", ["dumps", "loads"])
def test_patches_of_the_pickler(modules, kind, monkeypatch, name):
    for module in modules:
        original = getattr(reduction.ForkingPickler, name)
        calls = []

        def patched(*args, original=original, calls=calls):
            calls.append(len(args))
            return original(*args)

        through(module, kind, 1)
        with monkeypatch.context() as patch:
            patch.setattr(reduction.ForkingPickler, name, patched)
            assert through(module, kind, [1])[1] == [1]
        assert calls == [1]
        assert through(module, kind, 2)[1] == 2
        assert calls == [1]


@pytest.mark.parametrize("wrong", ["text", None, 5, [b"list"]])
def test_a_pickler_that_gives_no_bytes(modules, kind, monkeypatch, wrong):
    """An error, and the stream goes on."""
    for module in modules:
        with raw_reader(module, kind) as (writer, fd):
            with monkeypatch.context() as patch:
                patch.setattr(module, "_ForkingPickler", Loud)
                patch.setattr(Loud, "dumps", lambda thing: wrong)
                with pytest.raises(TypeError):
                    writer.send(1)
            writer.send_bytes(b"next")
            writer.close()
            assert read_all(fd) == framed(b"next")


def test_the_contexts_reducer(modules, kind, package):
    """Assigned to a context it changes nothing for connections, as in the stdlib."""
    before = context.reduction
    found = []
    for module in modules:
        other = type(reduction)("other_reduction")
        vars(other).update(vars(reduction), ForkingPickler=Loud)
        ctx = package.get_context("fork")
        try:
            ctx.reducer = other
            found.append(through(module, kind, [1, "two"]))
            one, two = ctx.Pipe()
            one.send([1, "two"])
            assert two.recv_bytes() == found[-1][0][4:]
            close(one, two)
        finally:
            ctx.reducer = before
    assert found[1] == found[0]
    assert found[0][1] == [1, "two"]


def test_a_reducer_that_is_given_by_another_module(modules, kind):
    """What sharedctypes registers for a type when it first shares one: which says no to others."""
    array = importlib.import_module("mproc_ext.sharedctypes").RawArray(ctypes.c_int, 1)
    for module in modules:
        with open_pair(module, kind) as (_, writer):
            assert outcome(writer.send, array)[0] == "RuntimeError"


def test_pickles_of_other_protocols(connection, kind):
    with raw_writer(connection, kind) as (reader, fd):
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            write_all(fd, framed(pickle.dumps([protocol, Point(protocol)], protocol)))
            assert reader.recv() == [protocol, Point(protocol)]


def test_receiving_while_unpickling(connection, kind):
    """Who receives in there gets the next message."""
    with raw_writer(connection, kind) as (reader, fd):
        connection_targets.receive_inside = reader.recv
        try:

            class Receives:
                def __reduce__(self):
                    return connection_targets.call_receive_inside, ()

            data = io.BytesIO()
            pickle.dump([b"x" * 5000, Receives(), "outer"], data)
            write_all(fd, framed(data.getvalue()))
            write_all(fd, framed(pickle.dumps("inner")))
            assert reader.recv() == [b"x" * 5000, "inner", "outer"]
        finally:
            connection_targets.receive_inside = None


def test_unpickling_in_many_threads(connection, kind):
    """Each has its own message."""
    with raw_writer(connection, kind) as (reader, fd):
        lock, found = threading.Lock(), []

        def receive_all():
            while (thing := reader.recv()) is not None:
                with lock:
                    found.append(thing)

        if OURS and connection is not theirs:
            tasks = [Task(receive_all) for _ in range(4)]
        else:
            tasks = [Task(receive_all)]
        for number in range(500):
            write_all(fd, framed(pickle.dumps([number, "x" * number])))
        for _ in tasks:
            write_all(fd, framed(pickle.dumps(None)))
        for task in tasks:
            task.get()
        assert sorted(found) == [[number, "x" * number] for number in range(500)]
