"""Shared by the tests here."""

import contextlib
import gc
import importlib
import os
import resource
import select
import signal
import socket
import stat
import struct
import threading
import zlib

import pytest
from sync_helpers import LIMIT, Task, handler, is_asleep, signal_when_asleep, wait_until_asleep

KINDS = ("pipe", "socketpair", "tcp")

# Our Pipe()s whose messages go through shared memory; of the stdlib's module, pipes and sockets.
RINGS = {"rings": "socketpair", "one-way ring": "pipe"}

theirs = importlib.import_module("mproc_ext._stdlib.connection")

# Whether mproc_ext's connections are its own here, or the stdlib's.
OURS = importlib.import_module("mproc_ext.connection").Connection is not theirs.Connection


def descriptors(kind):
    """(one to read from, one to write to); but for a pipe's both do both."""
    if kind == "pipe":
        return os.pipe()
    if kind == "socketpair":
        ends = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
            for end in (server, client):
                # A given size does not grow: tests fill them.
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
                end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                # Else who writes byte by byte waits for acknowledgements.
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.connect(server.getsockname())
            ends = server.accept()[0], client.dup()
    return tuple(end.detach() for end in ends)


def adopt(module, kind, reading, writing):
    """Descriptors as connections of a module."""
    one_way = kind == "pipe"
    return (
        module.Connection(reading, writable=not one_way),
        module.Connection(writing, readable=not one_way),
    )


@contextlib.contextmanager
def open_pair(module, kind):
    """(one that reads, one that writes), closed in the end."""
    ends = make_pair(module, kind)
    if kind in RINGS and OURS and module is not theirs:
        open_the_rings(*ends)
    try:
        yield ends
    finally:
        close(*ends)


def open_rings(connection):
    """Whether what it sends, and what it receives, goes through shared memory."""
    return importlib.import_module("mproc_ext._core").open_rings(connection)


def make_pair(module, kind):
    """(one that reads, one that writes)"""
    if kind in RINGS:
        return module.Pipe(duplex=kind == "rings")
    return adopt(module, kind, *descriptors(kind))


def open_the_rings(reader, writer):
    """Use the ends of a Pipe() until their messages go through shared memory."""
    for source, target in ((writer, reader), (reader, writer)):
        if source.writable:
            for number in range(6):
                source.send(number)
                assert target.recv() == number
            assert not target.poll()
    assert open_rings(writer) == (True, writer.readable)
    assert open_rings(reader) == (reader.writable, True)


@contextlib.contextmanager
def raw_writer(module, kind):
    """(a connection that reads, the descriptor at the other end), closed in the end."""
    reading, writing = descriptors(kind)
    reader = module.Connection(reading, writable=kind != "pipe")
    try:
        yield reader, writing
    finally:
        close(reader)
        with contextlib.suppress(OSError):
            os.close(writing)


@contextlib.contextmanager
def raw_reader(module, kind):
    """(a connection that writes, the descriptor at the other end), closed in the end."""
    reading, writing = descriptors(kind)
    writer = module.Connection(writing, readable=kind != "pipe")
    try:
        yield writer, reading
    finally:
        close(writer)
        with contextlib.suppress(OSError):
            os.close(reading)


def close(*connections):
    """Whatever a test has done to them."""
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.close()


def header(size):
    """What comes before a message."""
    return struct.pack("!i", size) if size <= 0x7FFFFFFF else wide_header(size)


def wide_header(size):
    return struct.pack("!iQ", -1, size)


def framed(data):
    return header(len(data)) + data


def write_all(fd, data):
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data) :]


def read_all(fd):
    """All bytes up to the end."""
    pieces = []
    while piece := os.read(fd, 1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


def read_exactly(fd, size):
    """That many bytes, which have to come."""
    found = bytearray()
    while len(found) < size:
        assert select.select([fd], [], [], LIMIT)[0], f"{len(found)} bytes came of {size}"
        piece = os.read(fd, size - len(found))
        assert piece, f"the end, after {len(found)} bytes of {size}"
        found += piece
    return bytes(found)


def messages_in(data):
    """The messages that bytes from the wire are, and what is left of them."""
    found = []
    while len(data) >= 4:
        (size,), start = struct.unpack_from("!i", data), 4
        if size == -1:
            if len(data) < 12:
                break
            (size,), start = struct.unpack_from("!Q", data, 4), 12
        if len(data) < start + size:
            break
        found.append(bytes(data[start : start + size]))
        data = data[start + size :]
    return found, data


def is_tcp(fd):
    if not stat.S_ISSOCK(os.fstat(fd).st_mode):
        return False
    with socket.socket(fileno=os.dup(fd)) as there:
        return there.family == socket.AF_INET


def fill(fd):
    """Write bytes until there is room for none; how many."""
    if is_tcp(fd):
        pytest.skip("TCP finds more room when what it has sent is acknowledged, a moment later")
    os.set_blocking(fd, False)
    count = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            count += os.write(fd, bytes(1 << 16))
    with contextlib.suppress(BlockingIOError):
        while True:
            count += os.write(fd, b"\0")
    os.set_blocking(fd, True)
    return count


def stamped(number, size):
    """A message of that size, or a few bytes more, that tells its number and whether it is torn."""
    body = number.to_bytes(8, "big") * (size // 8 + 1)
    return struct.pack("!II", number, zlib.crc32(body)) + body


def number_of(message):
    number, crc = struct.unpack_from("!II", message)
    body = memoryview(message)[8:]
    assert zlib.crc32(body) == crc, f"message {number} is torn"
    assert int.from_bytes(body[:8], "big") == number
    return number


def limit_memory(more):
    """Lets this process have so many bytes of address space more than it has, and no others."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, resource.RLIM_INFINITY))


def sending(writer, function, *args):
    """A task that sends; where it fails, nobody is left waiting for it."""

    def send():
        try:
            return function(*args)
        except BaseException:
            close(writer)
            raise

    return Task(send)


def fds():
    gc.collect()  # what earlier tests have left would be closed in between
    folder = "/proc/self/fd"
    return {name for name in os.listdir(folder) if os.path.lexists(f"{folder}/{name}")}


def is_blocked(thread):
    """Whether it sleeps in a system call that is no lock's."""
    return is_asleep(os.getpid(), thread.native_id, on_futex=False)


def wait_until_blocked(who):
    """Wait until a thread, or the main thread of a process, waits for a descriptor."""
    wait_until_asleep(who, on_futex=False)


def signal_when_blocked(*number):
    return signal_when_asleep(*number, on_futex=False)


def blocked_in(function, *args):
    """A task that waits for a descriptor there."""
    task = Task(function, *args)
    wait_until_blocked(task)
    return task


def fork(function):
    """A child's pid: it runs the function, and ends."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            function()
            code = 0
        finally:
            os._exit(code)
    return pid


# ---- Interrupted calls ------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


def signal_after(task):
    """Send the main thread a signal once the task is done and that thread waits."""
    main = threading.main_thread()

    def send():
        task.get()
        wait_until_blocked(main)
        signal.pthread_kill(main.ident, signal.SIGUSR1)

    return Task(send)


def interrupted(function, *args, after=None):
    """Call it, and have a handler raise once it waits, and a task is done."""
    with handler(interrupt):
        sender = signal_when_blocked() if after is None else signal_after(after)
        with pytest.raises(Interrupted):
            function(*args)
        sender.get()


def untroubled(function, *args):
    """A task in a thread that the kernel gives no signals."""

    def call():
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGUSR1, signal.SIGUSR2})
        return function(*args)

    return Task(call)


def messages_of(fd):
    """All messages up to the end, which is no message's middle."""
    found, rest = messages_in(read_all(fd))
    assert not rest
    return found
