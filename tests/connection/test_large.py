"""Large messages: their bytes are sent from where they are, and received to where they stay.

Whoever sends or receives, and in whichever way: what is on the wire is the standard library's, and
what has begun to come goes on with the next call, which may be another one.
"""

import gc
import os
import pickle
import sysconfig
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
from connection_helpers import (
    Interrupted,
    framed,
    interrupted,
    messages_of,
    open_pair,
    raw_reader,
    raw_writer,
    read_exactly,
    untroubled,
    write_all,
)
from sync_helpers import Task, outcome, run_program

from mproc_ext import _core, _pickling

HERE = Path(__file__).parent
EDGE = 1 << 16  # from here on pickle puts bytes into no frame
SIZES = [EDGE - 1, EDGE, EDGE + 1, (1 << 20) + 5]


class Bytes(bytes):
    """Is pickled in another way."""


class Text(str):
    """The same."""

    __slots__ = ()


def numbered(size):
    """Bytes of which no two parts are the same."""
    return b"".join(number.to_bytes(4, "big") for number in range(size // 4 + 1))[:size]


MAKE = {
    "bytes": numbered,
    "bytearray": lambda size: bytearray(numbered(size)),
    "ascii": lambda size: numbered(size).hex()[:size],
    "latin": lambda size: "\xe9" * size,
    "wide": lambda size: "\u20ac" * size,
    "subclass of bytes": lambda size: Bytes(numbered(size)),
    "subclass of str": lambda size: Text(numbered(size).hex()[:size]),
    "list": lambda size: [numbered(size), numbered(size).hex()],
    "twice": lambda size: [numbered(size)] * 2,
}
every_kind_of_object = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)


@every_kind_of_object
@pytest.mark.parametrize("size", SIZES)
def test_what_is_on_the_wire(connection, kind, make, size):
    thing = make(size)
    with raw_reader(connection, kind) as (writer, fd):
        task = Task(messages_of, fd)
        writer.send(thing)
        writer.send("next")
        writer.close()
        assert task.get() == [pickle.dumps(thing), pickle.dumps("next")]


@every_kind_of_object
@pytest.mark.parametrize("size", SIZES)
def test_what_is_received(pair, kind, make, size):
    reader, writer = pair
    thing = make(size)
    task = Task(lambda: [writer.send(thing), writer.send("next")])
    found = reader.recv()
    assert type(found) is type(thing)
    assert found == thing
    assert reader.recv() == "next"
    task.get()


def received_into(connection):
    into = bytearray(10 * EDGE)
    return bytes(into[: connection.recv_bytes_into(into)])


RECEIVE = {
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes_into": received_into,
    "_recv_bytes": lambda c: c._recv_bytes().getvalue(),
}


def received(receive, message):
    return pickle.loads(message) if receive is RECEIVE["recv"] else message


MESSAGES = {
    "bytes": pickle.dumps(numbered(3 * EDGE)),
    "object": pickle.dumps([numbered(3 * EDGE), 7]),
    "bytes without a memo": pickle.dumps(numbered(3 * EDGE))[:-2] + b".",
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
@pytest.mark.parametrize("first", RECEIVE.values(), ids=RECEIVE)
@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
def test_received_in_another_way(ours, message, first, receive):
    """Wherever the first call was interrupted."""
    data = framed(message)
    following = framed(pickle.dumps("next"))
    for at in (4, 8, 11, 12, 60_000, len(data) - 3, len(data) - 2, len(data) - 1):
        with raw_writer(ours, "socketpair") as (reader, fd):
            feed = untroubled(write_all, fd, data[:at])
            interrupted(first, reader, after=feed)
            task = untroubled(write_all, fd, data[at:] + following)
            assert receive(reader) == received(receive, message)
            assert reader.recv() == "next"
            task.get()


@pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
def test_a_fork_in_the_middle(ours, receive):
    """The child has no part in what has come: it begins with the message behind it."""
    data = framed(MESSAGES["bytes"])
    with raw_writer(ours, "socketpair") as (reader, fd):
        feed = untroubled(write_all, fd, data[:60_000])
        interrupted(receive, reader, after=feed)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                write_all(fd, framed(pickle.dumps("the child's")))
                assert reader.recv() == "the child's"
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        task = untroubled(write_all, fd, data[60_000:])
        assert receive(reader) == received(receive, MESSAGES["bytes"])
        task.get()


def test_dropped_in_the_middle(ours):
    for at in (5, 11, 60_000):
        with raw_writer(ours, "socketpair") as (reader, fd):
            feed = untroubled(write_all, fd, framed(MESSAGES["bytes"])[:at])
            interrupted(reader.recv, after=feed)
            os.close(fd)
            with pytest.raises(OSError, match="got end of file during message"):
                reader.recv()


SHORTER = numbered(2 * EDGE)
FRONT = pickle.dumps(SHORTER)[:7]
DAMAGED = {
    "an end of another kind": FRONT + SHORTER + b"N.",
    "no end": FRONT + SHORTER + b"\x94\x94",
    "more after the end": FRONT + SHORTER + b".\x94",
    "too short": FRONT + SHORTER[:-1] + b"\x94.",
    "too long": FRONT + SHORTER + b"!\x94.",
    "another protocol": b"\x80\x03" + FRONT[2:] + SHORTER + b"\x94.",
    "no protocol": b"\x81" + FRONT[1:] + SHORTER + b"\x94.",
    "a text that is none": FRONT[:2] + b"X" + FRONT[3:] + b"\xff" * len(SHORTER) + b"\x94.",
    "nothing but bytes": FRONT + SHORTER,
}


@pytest.mark.parametrize("message", DAMAGED.values(), ids=DAMAGED)
def test_damaged_pickles(modules, message):
    def receive(module):
        with open_pair(module, "socketpair") as (reader, writer):
            task = Task(lambda: [writer.send_bytes(message), writer.send("next")])
            found = outcome(reader.recv)
            assert reader.recv() == "next"
            task.get()
        return found

    assert receive(modules[1]) == receive(modules[0])


@pytest.mark.parametrize("method", ["dumps", "loads"])
def test_another_pickler(connection, kind, method, monkeypatch):
    """A program's own class gets all of them."""
    seen = []

    class Pickler(connection._ForkingPickler):
        @classmethod
        def dumps(cls, obj, protocol=None):
            seen.append(("dumps", type(obj)))
            return super().dumps(obj, protocol)

        @staticmethod
        def loads(data, *rest):
            seen.append(("loads", bytes(data[:3])))
            return pickle.loads(data, *rest)

    with open_pair(connection, kind) as (reader, writer):
        monkeypatch.setattr(connection, "_ForkingPickler", Pickler)
        task = Task(writer.send, SHORTER)
        assert reader.recv() == SHORTER
        task.get()
    assert [what for what, _ in seen if what == method] == [method]


def test_an_exception_while_the_pickler_is_looked_at(ours):
    """It is the caller's: a signal handler's, mostly."""
    is_armed = False

    def tables(cls):
        if is_armed:
            raise Interrupted
        return _pickling.tables(cls)

    _core.serve_pickling(tables, vars(_pickling))
    try:
        with open_pair(ours, "socketpair") as (reader, writer):
            task = untroubled(lambda: writer.send(SHORTER))
            assert reader.recv() == SHORTER
            task.get()
            is_armed = True
            ForkingPickler.looked_at = None  # it is another version of the class
            with pytest.raises(Interrupted):
                writer.send(SHORTER)
            is_armed = False
            task = untroubled(lambda: writer.send(SHORTER))
            assert reader.recv() == SHORTER
            task.get()
    finally:
        is_armed = False
        del ForkingPickler.looked_at
        _core.serve_pickling(_pickling.tables, vars(_pickling))


def test_what_was_sent_is_kept_while_it_is_sent(ours):
    """Where a handler's exception ends the send, too: the rest is a copy."""
    with raw_reader(ours, "socketpair") as (writer, fd):
        interrupted(lambda: writer.send(numbered(4_000_000)))
        task = untroubled(messages_of, fd)
        writer.send("next")
        writer.close()
        assert task.get() == [pickle.dumps(numbered(4_000_000)), pickle.dumps("next")]


@pytest.mark.parametrize("read", [2, 4, 7, 11, 12, 60_000])
def test_interrupted_at_every_part(ours, read):
    """The rest of a message is cut in its header, before its bytes, in them, and behind them."""
    message = numbered(400_000)
    data = framed(pickle.dumps(message))
    with raw_reader(ours, "pipe") as (writer, fd):
        interrupted(writer.send, message)
        found = read_exactly(fd, read)
        interrupted(writer.send_bytes, b"")
        task = untroubled(read_exactly, fd, len(data) - read + 4)
        writer.send_bytes(b"")
        assert found + task.get() == data + b"\0\0\0\0"


def call_without(nomemory, number, function):
    """Call it, and have that allocation fail."""
    gc.disable()
    nomemory.set_nomemory(number, number + 1)
    try:
        return function()
    finally:
        nomemory.remove_mem_hooks()
        gc.enable()


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="pickle.loads alone crashes under set_nomemory in a free-threaded 3.13",
)
def test_no_memory(ours):
    """What has come is not lost where there is none to put its parts together."""
    nomemory = pytest.importorskip("_testcapi", reason="CPython's own tests are not there")
    if not hasattr(nomemory, "set_nomemory"):
        pytest.skip("this _testcapi cannot make allocations fail")
    thing = numbered(3 << 20)  # more than there is in memory that is kept
    unusual = pickle.dumps(thing)[:-2] + b"2."
    with raw_writer(ours, "pipe") as (reader, fd):  # what the first use asks of the class is asked
        write_all(fd, framed(pickle.dumps("before")))
        assert reader.recv() == "before"
    found = []
    for number in range(1, 20):
        file = os.memfd_create("messages")
        write_all(file, framed(unusual) + framed(pickle.dumps("next")))
        os.lseek(file, 0, os.SEEK_SET)
        with ours.Connection(file, writable=False) as reader:
            try:
                assert call_without(nomemory, number, reader.recv) == thing
            except MemoryError:
                found.append(reader.recv())
    # Where unpickling fails the message is gone.
    assert thing in found
    assert all(one in (thing, "next") for one in found)


LIMITED = """
import os, pickle, sys
sys.path += {paths!r}
import mproc_ext.connection
from connection_helpers import framed, limit_memory, raw_writer, write_all

with raw_writer(mproc_ext.connection, "socketpair") as (reader, fd):
    write_all(fd, framed(pickle.dumps(bytes(40 << 20)))[:100])
    os.close(fd)
    limit_memory(20 << 20)
    try:
        reader.{receive}()
    except OSError as error:
        print(error)
"""


@pytest.mark.parametrize("receive", ["recv", "recv_bytes"])
def test_no_memory_for_what_has_not_come(ours, receive):
    """A size that is only said takes none that is not there."""
    program = LIMITED.format(paths=[str(HERE), str(HERE.parent / "sync")], receive=receive)
    assert run_program("-c", program).splitlines() == ["got end of file during message"]


NO_ROOM_FOR_TWO = """
import sys
sys.path += {paths!r}
import mproc_ext.connection
from connection_helpers import limit_memory, open_pair, sending

data = b"".join(number.to_bytes(4, "big") for number in range(30 << 20))
with open_pair(mproc_ext.connection, {kind!r}) as (reader, writer):
    task = sending(writer, lambda: (writer.{send}(data), writer.send("next")))
    for more in {limits}:
        limit_memory(more << 20)
        try:
            received = reader.{receive}()
        except MemoryError:
            print("MemoryError")
        else:
            print(received == data, reader.recv())
            task.get()
            break
"""


@pytest.mark.parametrize("way", ["recv", "recv_bytes"])
@pytest.mark.parametrize("limits", [[150], [50, 20, 150]])
@pytest.mark.parametrize("kind", ["pipe", "socketpair"])
def test_no_room_for_a_message_twice_limits(ours, kind, limits, way):
    """A message takes the memory that it has; and where that was not there, when it is."""
    program = NO_ROOM_FOR_TWO.format(
        paths=[str(HERE), str(HERE.parent / "sync")],
        kind=kind,
        limits=limits,
        receive=way,
        send=way.replace("recv", "send"),
    )
    *failures, last = run_program("-c", program).splitlines()
    assert last == "True next"
    assert set(failures) <= {"MemoryError"}
    # A free-threaded Python has address space in reserve, which is enough at the first try.
    assert len(failures) == len(limits) - 1 or sysconfig.get_config_var("Py_GIL_DISABLED")
