"""One connection: its end, its descriptor, its life."""

import contextlib
import gc
import os
import random
import select
import socket
import struct
import sys
import threading
import weakref

import pytest
from connection_helpers import (
    KINDS,
    OURS,
    adopt,
    blocked_in,
    close,
    descriptors,
    fds,
    fill,
    framed,
    header,
    make_pair,
    messages_in,
    open_pair,
    raw_reader,
    raw_writer,
    read_all,
    read_exactly,
    theirs,
    wide_header,
    write_all,
)
from sync_helpers import LIMIT, Task, outcome, wait_until

import mproc_ext

RECEIVE = {
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes limited": lambda c: c.recv_bytes(100_000),
    "recv_bytes_into": lambda c: c.recv_bytes_into(bytearray(100_000)),
}
every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
SEND = {
    "send": lambda c: c.send(b"x" * 100),
    "send_bytes": lambda c: c.send_bytes(b"x" * 100),
    "send_bytes large": lambda c: c.send_bytes(b"x" * 20_000),
}
every_send = pytest.mark.parametrize("send", SEND.values(), ids=SEND)

# ---- The end ---------------------------------------------------------------------------------

MESSAGE = framed(b"\x80\x04K\x01.")
WIDE = wide_header(5) + b"\x80\x04K\x01."


@every_receive
@pytest.mark.parametrize("whole", [MESSAGE, WIDE], ids=["short", "wide"])
def test_end_at_every_byte(modules, kind, receive, whole):
    """EOFError where a part could have begun; an OSError in the middle of one; and again after."""
    for length in range(len(whole) + 1):
        found = []
        for module in modules:
            with raw_writer(module, kind) as (reader, fd):
                write_all(fd, MESSAGE + whole[:length])
                os.close(fd)
                found.append([outcome(receive, reader) for _ in range(4)])
                found[-1].append((reader.closed, reader.readable))
        assert found[1] == found[0], length
        assert found[0][0][0] == "returns"
        names = [result[0] for result in found[0][1:4]]
        if length == len(whole):
            assert names == ["returns", "EOFError", "EOFError"]
        elif length in (0, 4, 12) and (length != 12 or whole is WIDE):
            assert names == ["EOFError"] * 3
        else:
            assert found[0][1] == ("OSError", "got end of file during message", None)


def test_the_end_is_readable(pair):
    """poll() and wait() say so, as recv() would not wait."""
    reader, writer = pair
    assert not reader.poll()
    writer.send(1)
    writer.close()
    assert reader.poll(LIMIT)
    assert reader.recv() == 1
    for timeout in (0, 0.01, None):
        assert reader.poll(timeout)
    with pytest.raises(EOFError):
        reader.recv()
    assert reader.poll()
    assert not reader.closed


@every_send
def test_nobody_reads(modules, kind, send):
    """BrokenPipeError, once the other end is closed."""
    for module in modules:
        with open_pair(module, kind) as (reader, writer):
            reader.close()
            if kind == "tcp":
                # The first one goes out, and is answered with a reset.
                with contextlib.suppress(OSError):
                    writer.send_bytes(b"first")
                assert select.select([writer], [], [], LIMIT)[0]
            for _ in range(2):
                assert outcome(send, writer)[0] in ("BrokenPipeError", "ConnectionResetError")
            assert not writer.closed
            assert writer.writable


def test_unread_data_when_the_other_end_closes(modules):
    """A socket that is closed with something unread is reset: both say so."""
    found = []
    for module in modules:
        with open_pair(module, "tcp") as (reader, writer):
            writer.send(1)
            reader.send(2)
            assert writer.poll(LIMIT)
            assert reader.poll(LIMIT)
            writer.close()
            wait_until(lambda: select.select([reader], [], [], 0)[0])
            found.append([outcome(reader.recv) for _ in range(3)])
    assert found[1] == found[0]


def test_the_other_end_closes_in_the_middle_of_a_send(connection, kind):
    with open_pair(connection, kind) as (reader, writer):
        task = blocked_in(writer.send_bytes, bytes(20_000_000))
        os.read(reader.fileno(), 10_000)
        reader.close()
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            task.get()


# ---- Sizes and limits ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [4, 100, 16384, 100_000, 1 << 20])
def test_buffer_too_short(pair, size):
    """The message is in the error, and the stream goes on."""
    reader, writer = pair
    data = os.urandom(size)
    task = Task(lambda: (writer.send_bytes(data), writer.send("next")))
    small = bytearray(b"x" * (size - 1))
    with pytest.raises(mproc_ext.BufferTooShort) as caught:
        reader.recv_bytes_into(small)
    assert caught.value.args == (data,)
    assert type(caught.value.args[0]) is bytes
    assert small == b"x" * (size - 1)
    assert reader.recv() == "next"
    task.get()


@pytest.mark.parametrize("size", [3, 100_000])
@pytest.mark.parametrize("limit", [0, 2])
def test_maxlength_too_small(pair, kind, size, limit):
    """Nothing more can be received; what writes too still writes, and else it is closed."""
    reader, writer = pair
    task = Task(writer.send_bytes, b"x" * size)
    with pytest.raises(OSError, match="bad message length"):
        reader.recv_bytes(limit)
    if kind in ("pipe", "one-way ring"):
        assert reader.closed
        message = "handle is closed"
    else:
        assert not reader.closed
        assert not reader.readable
        assert reader.writable
        message = "connection is write-only"
        reader.send("the other way")
        assert writer.recv() == "the other way"
    for receive in (reader.recv, reader.recv_bytes, reader.poll):
        with pytest.raises(OSError, match=message):
            receive()
    reader.close()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        task.get()


@pytest.mark.parametrize("size", [0, 1, 16384, 16385, 70_000, 1 << 20, 5_000_001])
def test_sizes(pair, size):
    reader, writer = pair
    data = os.urandom(size)
    task = Task(lambda: (writer.send_bytes(data), writer.send(data), writer.send_bytes(data)))
    into = bytearray(b"x" * (size + 7))
    assert reader.recv_bytes() == data
    assert reader.recv() == data
    assert reader.recv_bytes_into(into, 3) == size
    assert into == b"xxx" + data + b"xxxx"
    task.get()


def test_what_is_received_is_ones_own(pair):
    """Bytes that stay as they are, and an array that nobody writes to later."""
    reader, writer = pair
    into, kept = bytearray(10), []
    for number in range(50):
        writer.send_bytes(bytes([number]) * 10)
        writer.send(bytearray([number]) * 10)
        writer.send_bytes(bytes([number + 1]) * 10)
        kept += [reader.recv_bytes(), reader.recv()]
        assert type(kept[-2]) is bytes
        assert reader.recv_bytes_into(into) == 10
        assert into == bytes([number + 1]) * 10
    assert kept == [make([n]) * 10 for n in range(50) for make in (bytes, bytearray)]


def test_what_is_received_into_can_be_resized_afterwards(pair):
    reader, writer = pair
    for offset in (0, 100):  # it fits; it does not
        into = bytearray(100)
        writer.send_bytes(b"abc")
        with contextlib.suppress(mproc_ext.BufferTooShort):
            reader.recv_bytes_into(into, offset)
        into.extend(b"more")
        assert len(into) == 104


def test_what_was_sent_can_be_resized_afterwards(pair):
    reader, writer = pair
    data = bytearray(b"abc")
    writer.send_bytes(data)
    data.extend(b"more")
    assert reader.recv_bytes() == b"abc"
    data.clear()


# ---- Non-blocking descriptors ----------------------------------------------------------------

NO_WAIT = ("BlockingIOError", "[Errno 11] Resource temporarily unavailable", 11)


@every_receive
def test_nothing_to_read_without_blocking(modules, kind, receive):
    """As read(2) says; what is there is received."""
    for module in modules:
        with open_pair(module, kind) as (reader, writer):
            os.set_blocking(reader.fileno(), False)
            assert outcome(receive, reader) == NO_WAIT
            writer.send(1)
            assert reader.poll(LIMIT)
            receive(reader)
            assert outcome(receive, reader) == NO_WAIT
            assert not os.get_blocking(reader.fileno())


@every_send
def test_no_room_without_blocking(modules, kind, send):
    for module in modules:
        with raw_reader(module, kind) as (writer, fd):
            size = fill(writer.fileno())
            os.set_blocking(writer.fileno(), False)
            assert outcome(send, writer) == NO_WAIT
            assert read_exactly(fd, size) == bytes(size)
            send(writer)
            writer.close()
            (message,), rest = messages_in(read_all(fd))
            assert len(message) >= 100
            assert not rest


def until_not_blocking(function):
    """Again and again, as a program calls what does not block, until it is done or under way."""
    while True:
        try:
            return function()
        except BlockingIOError as error:
            if hasattr(error, "characters_written"):
                return None


@every_receive
def test_the_middle_of_a_message_without_blocking(ours, kind, receive):
    """However it comes, no part of it is lost."""
    whole = b"\x80\x04" + b"N0" * 10_000 + b"K\x01."
    data = framed(whole) + wide_header(len(whole)) + whole
    with raw_writer(ours, kind) as (reader, fd):
        os.set_blocking(reader.fileno(), False)
        task = Task(lambda: [until_not_blocking(lambda: receive(reader)) for _ in range(2)])
        for at in range(60):
            write_all(fd, data[at : at + 1])
        for at in range(60, len(data), 777):
            write_all(fd, data[at : at + 777])
        expected = {int: [1, 1], bytes: [whole] * 2}
        found = task.get()
        if receive is RECEIVE["recv_bytes_into"]:
            assert found == [len(whole)] * 2
        else:
            assert found == expected[type(found[0])]


def test_the_middle_of_sending_without_blocking(ours, kind):
    """Who reads sees whole messages, each once, also when it reads late."""
    with raw_reader(ours, kind) as (writer, fd):
        os.set_blocking(writer.fileno(), False)
        sent = [bytes([number]) * 100_000 for number in range(30)] + [b""]
        task = Task(lambda: [until_not_blocking(lambda: writer.send_bytes(m)) for m in sent])
        assert select.select([fd], [], [], LIMIT)[0]
        total = sum(len(framed(message)) for message in sent)
        found, rest = messages_in(read_exactly(fd, total))
        task.get()
        assert found == sent
        assert not rest
        writer.close()
        assert read_all(fd) == b""


@pytest.mark.parametrize("size", [1_000_000, 5_000_000])
def test_a_part_without_blocking(modules, kind, size):
    """It is said as by the standard library, which leaves a part of a message there."""
    message = bytes(size)
    for module in modules:
        with raw_reader(module, kind) as (writer, fd):
            os.set_blocking(writer.fileno(), False)
            assert outcome(writer.send_bytes, message) == NO_WAIT
            assert outcome(writer.send, message) == NO_WAIT
        with raw_writer(module, kind) as (reader, fd):
            os.set_blocking(reader.fileno(), False)
            write_all(fd, framed(b"0123456789")[:9])
            assert outcome(reader.recv_bytes) == NO_WAIT


def test_how_much_was_written_without_blocking(ours, kind):
    """With a part of it the message is under way; without, it has to be sent again."""
    with raw_reader(ours, kind) as (writer, fd):
        os.set_blocking(writer.fileno(), False)
        with pytest.raises(BlockingIOError) as first:
            writer.send_bytes(bytes(5_000_000))
        written = first.value.characters_written
        assert 0 < written < 5_000_000
        with pytest.raises(BlockingIOError) as second:
            writer.send_bytes(b"second")
        assert not hasattr(second.value, "characters_written")
        task = Task(read_exactly, fd, 5_000_000 + 4 + 4 + 5)
        while outcome(writer.send_bytes, b"third") == NO_WAIT:
            pass
        found, rest = messages_in(task.get())
        assert (found, rest) == ([bytes(5_000_000), b"third"], b"")


# ---- Closing ---------------------------------------------------------------------------------


def test_closing_ends_it(connection, kind):
    reading, writing = descriptors(kind)
    reader, writer = adopt(connection, kind, reading, writing)
    for end, fd in ((writer, writing), (reader, reading)):
        assert (end.fileno(), end.closed) == (fd, False)
        end.close()
        assert end.closed
        assert end._handle is None
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        end.close()


def test_with(connection):
    reader, writer = connection.Pipe(False)
    with reader as entered:
        assert entered is reader
        with pytest.raises(KeyError), writer:
            raise KeyError("inside")
        assert writer.closed
        assert not reader.closed
    assert reader.closed


def test_dropping_closes(connection, kind):
    before = fds()
    ends = adopt(connection, kind, *descriptors(kind))
    ends[0].myself = ends[0]  # a cycle
    assert len(fds() - before) == 2
    del ends
    gc.collect()
    assert fds() <= before


@contextlib.contextmanager
def unraisable():
    """The errors that nobody could be told of."""
    found = []
    before = sys.unraisablehook
    sys.unraisablehook = lambda args: found.append((args.exc_type, str(args.exc_value)))
    try:
        yield found
    finally:
        sys.unraisablehook = before


def test_dropping_what_somebody_has_closed(modules):
    """One line on stderr."""
    for module in modules:
        reader, writer = module.Pipe(False)
        os.close(reader.fileno())
        with unraisable() as found:
            del reader
            gc.collect()
        assert found == [(OSError, "[Errno 9] Bad file descriptor")]
        writer.close()


def test_dropping_what_was_never_made(modules):
    for module in modules:
        with unraisable() as found:
            for arguments in (("wrong",), (-1,), ()):
                with pytest.raises((AttributeError, ValueError, TypeError)):
                    module.Connection(*arguments)
            module.Connection.__new__(module.Connection)
            gc.collect()
        assert not found


def test_a_handle_that_is_taken_away(connection):
    """It is not closed."""
    reader, writer = connection.Pipe()
    fd = reader.fileno()
    reader._handle = None
    assert reader.closed
    reader.close()
    del reader
    gc.collect()
    os.fstat(fd)
    os.close(fd)
    with pytest.raises(EOFError):
        writer.recv()
    writer.close()


def test_a_handle_that_is_given(connection, kind):
    """The new descriptor is the connection's, the old one is no more."""
    first, second = descriptors(kind), descriptors(kind)
    reader, writer = adopt(connection, kind, *first)
    reader._handle, writer._handle = second
    writer.send("through the second")
    assert (reader.fileno(), writer.fileno()) == second
    assert not select.select([first[0]], [], [], 0)[0]
    assert reader.recv() == "through the second"
    close(reader, writer)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(second[0])
    for fd in first:
        os.close(fd)


def test_weak_references(connection):
    reader, writer = connection.Pipe()
    gone = []
    reference = weakref.ref(reader, gone.append)
    assert reference() is reader
    del reader
    gc.collect()
    assert reference() is None
    assert gone == [reference]
    with pytest.raises(EOFError):
        writer.recv()
    writer.close()


ENDS = (OSError, EOFError, TypeError)  # where the descriptor has gone from under a wait


@every_receive
def test_closed_by_another_thread(connection, kind, receive):
    """Who waits neither hangs for good, nor reads what is not its own: the descriptor's number is
    another file's by then."""
    with raw_writer(connection, kind) as (reader, fd):
        task = blocked_in(receive, reader)
        number = reader.fileno()
        reader.close()
        others = [os.pipe() for _ in range(2)]
        try:
            taken = [other for other in others if number in other]
            assert taken
            for _, writing in others:
                write_all(writing, MESSAGE * 3)
            with contextlib.suppress(OSError):
                write_all(fd, MESSAGE)
            os.close(fd)
            with pytest.raises(ENDS):
                task.get()
            for reading, _ in others:
                assert os.read(reading, 1000) == MESSAGE * 3
        finally:
            for ends in others:
                for other in ends:
                    os.close(other)


def test_poll_while_another_thread_closes(ours, kind):
    """An error, also where nothing comes any more."""
    with raw_writer(ours, kind) as (reader, _):
        task = blocked_in(reader.poll, None)
        reader.close()
        with pytest.raises(OSError, match="handle is closed"):
            task.get()


def test_closed_by_another_thread_while_sending(ours, kind):
    """The message goes on to where it was going: not one byte to another file."""
    content = bytes(20_000_000)
    with raw_reader(ours, kind) as (writer, fd):
        task = blocked_in(writer.send_bytes, content)
        number = writer.fileno()
        writer.close()
        others = [os.pipe() for _ in range(2)]
        try:
            assert any(number in other for other in others)
            wire = framed(content)
            assert read_exactly(fd, len(wire)) == wire
            task.get()
            assert os.read(fd, 1) == b""
            for reading, _ in others:
                assert not select.select([reading], [], [], 0)[0]
        finally:
            os.close(fd)
            with contextlib.suppress(*ENDS):
                task.get()
            for ends in others:
                for other in ends:
                    os.close(other)


def test_closed_by_another_thread_at_any_moment(ours, kind):
    """The message comes whole, or nothing of it, and then the end."""
    content = bytes(1_000_000)
    for _ in range(60):
        reader, writer = make_pair(ours, kind)
        began = threading.Event()

        def send(writer=writer, began=began):
            began.set()
            writer.send_bytes(content)

        receiving, sending = Task(reader.recv_bytes), Task(send)
        began.wait()
        for _ in range(random.randrange(3000)):
            pass
        writer.close()
        sent, received = outcome(sending.get), outcome(receiving.get)
        if sent[0] == "returns":
            assert received == ("returns", repr(content))
            received = outcome(reader.recv_bytes)
        else:
            assert sent[:2] == ("OSError", "handle is closed")
        assert received[0] == "EOFError"
        reader.close()


def test_a_fork_while_one_that_was_closed_is_sending(ours, kind):
    """The end comes after the message, and does not wait for the child."""
    content = bytes(20_000_000)
    with raw_reader(ours, kind) as (writer, fd):
        task = blocked_in(writer.send_bytes, content)
        writer.close()
        go, wait = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(wait)
            os.read(go, 1)
            os._exit(0)
        try:
            wire = framed(content)
            assert read_exactly(fd, len(wire)) == wire
            task.get()
            assert select.select([fd], [], [], LIMIT)[0]
            assert os.read(fd, 1) == b""
        finally:
            os.close(wait)
            os.waitpid(pid, 0)
            os.close(go)


# ---- What it is ------------------------------------------------------------------------------


def test_it_is_the_stdlibs_too(connection):
    for end in connection.Pipe():
        assert isinstance(end, theirs.Connection)
        assert isinstance(end, theirs._ConnectionBase)
        end.close()
    assert issubclass(connection.Connection, theirs.Connection)


@pytest.mark.skipif(not OURS, reason="about ours")
def test_every_way_to_get_one_gives_ours(ours, tmp_path):
    """Also where the family and the place are of other kinds."""
    addresses = [None, ("localhost", 0), str(tmp_path / "socket"), b"\0mproc_ext"]
    for address in addresses[: 3 if sys.platform != "linux" else 4]:
        with ours.Listener(address) as listener:
            client = Task(ours.Client, listener.address)
            ends = listener.accept(), client.get()
            assert {type(end) for end in ends} == {ours.Connection}
            ends[0].send(1)
            assert ends[1].recv() == 1
            close(*ends)
    for context in (mproc_ext, mproc_ext.get_context("fork"), mproc_ext.get_context("spawn")):
        for ends in (context.Pipe(), context.Pipe(False), context.Pipe(duplex=False)):
            assert {type(end) for end in ends} == {ours.Connection}
            close(*ends)


def test_select(pair):
    """The descriptor says what is to be said of it."""
    reader, writer = pair
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    assert not poller.poll(0)
    writer.send_bytes(b"")
    for _ in range(2):
        assert poller.poll(LIMIT * 1000)
        assert select.select([reader], [], [], LIMIT)[0] == [reader]
        assert reader.poll(LIMIT)
    assert reader.recv_bytes() == b""
    assert not poller.poll(0)
    assert not reader.poll()


def test_raw_reads_between(pair):
    """Nothing is read ahead: who reads the descriptor finds the next message there."""
    reader, writer = pair
    for _ in range(3):
        writer.send_bytes(b"first")
        writer.send_bytes(b"second")
        writer.send_bytes(b"third")
        assert reader.recv_bytes() == b"first"
        assert read_exactly(reader.fileno(), 10) == framed(b"second")
        assert reader.poll(LIMIT)
        assert reader.recv_bytes() == b"third"
        write_all(writer.fileno(), framed(b"raw"))
        assert reader.recv_bytes() == b"raw"
        assert not reader.poll()


def test_two_connections_on_one_descriptor(connection, kind):
    with open_pair(connection, kind) as (reader, writer):
        other = connection.Connection(os.dup(reader.fileno()), writable=kind != "pipe")
        for number in range(6):
            writer.send(number)
        assert [(reader, other)[n % 2].recv() for n in range(6)] == list(range(6))
        other.close()
        writer.send("the first one is still open")
        assert reader.recv() == "the first one is still open"


@pytest.mark.parametrize("what", ["a file", "a directory", "write-only", "read-only"])
def test_descriptors_of_other_kinds(modules, what, tmp_path):
    """Whatever the system says."""
    path = tmp_path / "file"
    found = []
    for module in modules:
        path.write_bytes(b"")
        flags = {"write-only": os.O_WRONLY, "read-only": os.O_RDONLY}.get(what, os.O_RDWR)
        fd = os.open(tmp_path, 0) if what == "a directory" else os.open(path, flags)
        with module.Connection(fd) as connection:
            results = [
                outcome(connection.send, [1, 2]),
                outcome(connection.send_bytes, b"x" * 20_000),
            ]
            if what != "a directory":
                os.lseek(fd, 0, os.SEEK_SET)
            results += [outcome(connection.poll), outcome(connection.recv)]
            results += [outcome(connection.recv_bytes) for _ in range(2)]
        found.append((results, path.read_bytes()))
    assert found[1] == found[0]


def test_a_terminal(connection):
    """A device that is neither a pipe nor a socket."""
    import pty
    import tty

    main, other = pty.openpty()
    tty.setraw(other)
    with connection.Connection(main) as one, connection.Connection(other) as two:
        one.send([1, "two"])
        assert two.recv() == [1, "two"]
        task = blocked_in(one.recv)
        two.send_bytes(b"\x80\x04K\x01.")
        assert task.get() == 1


def test_a_socket_without_a_stream(modules):
    """A datagram is a message's header, or its rest, by luck: as the stdlib."""
    found = []
    for module in modules:
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one, two = (module.Connection(end.detach()) for end in ends)
        os.write(one.fileno(), header(3))
        os.write(one.fileno(), b"abc")
        found.append(outcome(two.recv_bytes))
        close(one, two)
    assert found[1] == found[0] == ("returns", "b'abc'")


def test_many_descriptors(connection, kind):
    """Made and closed again and again, none is left."""
    before = fds()
    for _ in range(300):
        with open_pair(connection, kind) as (reader, writer):
            writer.send(1)
            assert reader.recv() == 1
    assert fds() <= before


def test_kinds_are_what_they_are_called():
    """So that the tests run on all of them."""
    import stat

    assert KINDS == ("pipe", "socketpair", "tcp")
    for kind in KINDS:
        fd, other = descriptors(kind)
        assert stat.S_ISFIFO(os.fstat(fd).st_mode) == (kind == "pipe")
        os.close(fd)
        os.close(other)


def send_for_ever(writer, message):
    while True:
        writer.send_bytes(message)


@pytest.mark.parametrize("kind", ["socketpair", "tcp", "rings"])
@pytest.mark.parametrize("way", ["send", "receive"])
def test_a_socket_with_a_time_limit(connection, kind, way):
    """SO_RCVTIMEO and SO_SNDTIMEO, which any copy of the descriptor may set."""
    option = socket.SO_SNDTIMEO if way == "send" else socket.SO_RCVTIMEO
    with open_pair(connection, kind) as (reader, writer):
        end = writer if way == "send" else reader
        with socket.socket(fileno=os.dup(end.fileno())) as copy:
            copy.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", 0, 150_000))
        if way == "send":
            with pytest.raises(BlockingIOError):
                send_for_ever(writer, bytes(3_000))
        else:
            for _ in range(2):
                with pytest.raises(BlockingIOError):
                    reader.recv()
            writer.send("in time")
            assert reader.recv() == "in time"
