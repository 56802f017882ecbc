"""Pipe()s whose messages go through shared memory: nobody but a clock can tell them from pipes."""

import asyncio
import contextlib
import copy
import fcntl
import gc
import importlib
import os
import pickle
import random
import resource
import select
import signal
import struct
import subprocess
import sys
import termios
import threading

import pytest
from connection_helpers import (
    RINGS,
    blocked_in,
    close,
    fds,
    fork,
    framed,
    make_pair,
    messages_in,
    number_of,
    open_rings,
    open_the_rings,
    read_all,
    read_exactly,
    sending,
    signal_when_blocked,
    stamped,
    theirs,
    wait_until_blocked,
)
from sync_helpers import LIMIT, Task, handler, outcome, run_program, wait_until

from mproc_ext import reduction, resource_sharer

LONG = bytes(range(256)) * 800


@pytest.fixture(params=list(RINGS))
def flow(request):
    return request.param


def ringed_pair(module, flow):
    """The ends of a Pipe() that has been used, so that there are rings."""
    ends = make_pair(module, flow)
    open_the_rings(*ends)
    return ends


@pytest.fixture
def ends(ours, flow):
    """(one that reads, one that writes), with rings; closed in the end."""
    ends = ringed_pair(ours, flow)
    yield ends
    close(*ends)


@pytest.fixture
def numbered(ours, flow):
    """The same two, and their descriptors, for which nobody has asked them."""
    numbers = os.pipe()
    for number in numbers:
        os.close(number)
    ends = ringed_pair(ours, flow)
    yield (*ends, *numbers)
    close(*ends)


def unread(fd):
    return struct.unpack("i", fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4))[0]


def is_readable(fd):
    return bool(select.select([fd], [], [], 0)[0])


# ---- Leaving -------------------------------------------------------------------------------------


def by_fileno(connection, module):
    connection.fileno()


def by_handle(connection, module):
    assert connection._handle is not None


def by_wait(connection, module):
    module.wait([connection], 0)


def by_select(connection, module):
    select.select([connection], [], [], 0)


def by_pickle(connection, module):
    again = pickle.loads(bytes(reduction.ForkingPickler.dumps(connection)))
    assert (again.readable, again.writable) == (connection.readable, connection.writable)
    again.close()
    for sharer in (resource_sharer, importlib.import_module("mproc_ext._stdlib.resource_sharer")):
        sharer.stop(LIMIT)  # it has a socket, in a thread


def by_copy(connection, module):
    copy.copy(connection)._handle = None


def by_state(connection, module):
    connection.__getstate__()


def by_new_handle(connection, module):
    connection._handle = connection._handle


WAYS = [by_fileno, by_handle, by_wait, by_select, by_pickle, by_copy, by_state, by_new_handle]
leaving = pytest.mark.parametrize("leave", WAYS)
at_either_end = pytest.mark.parametrize("who", ["reader", "writer"])

UNREAD = {
    "nothing": [],
    "one": [b"x"],
    "short": [b"", b"x", b"abc" * 30, b"", b"y" * 700] * 4,
    "up to a page": [b"a" * 4091, b"b" * 4092, b"", b"c" * 4093, b"d" * 4096],
    "long": [b"short", b"a" * 16368, b"b" * 16369, b"c" * 5000, b"", b"d" * 15000, b"last"],
}


@leaving
@at_either_end
@pytest.mark.parametrize("messages", UNREAD)
def test_what_is_unread_is_in_the_descriptor(numbered, ours, who, leave, messages):
    reader, writer, reading, writing = numbered
    messages = UNREAD[messages]
    for message in messages:
        writer.send_bytes(message)
    leave(reader if who == "reader" else writer, ours)
    wire = b"".join(map(framed, messages))
    assert unread(reading) == len(wire)
    assert is_readable(reading) == bool(wire)
    assert read_exactly(reading, len(wire)) == wire
    assert not is_readable(reading)
    # From then on, too, without another word from the other end.
    writer.send_bytes(b"after that")
    assert read_exactly(reading, 14) == framed(b"after that")
    os.write(writing, framed(b"raw"))
    assert reader.recv_bytes() == b"raw"
    assert open_rings(writer) == (False, False)
    assert reader.fileno() == reading
    assert writer.fileno() == writing


@leaving
@at_either_end
def test_both_directions(ours, who, leave):
    numbers = os.pipe()
    for number in numbers:
        os.close(number)
    ends = ringed_pair(ours, "rings")
    for number in range(40):
        for end in ends:
            end.send_bytes(b"%d" % number * 20)
    leave(ends[who == "writer"], ours)
    wire = b"".join(framed(b"%d" % number * 20) for number in range(40))
    for number in numbers:
        assert unread(number) == len(wire)
        assert read_exactly(number, len(wire)) == wire
    close(*ends)


@leaving
@at_either_end
def test_whoever_reads_on_gets_them(ends, ours, who, leave):
    """By the connection, one of the stdlib's in another program, and both in turn."""
    reader, writer = ends
    for number in range(30):
        writer.send(number)
    leave(ends[who == "writer"], ours)
    assert [reader.recv() for _ in range(10)] == list(range(10))
    again = theirs.Connection(os.dup(reader.fileno()), writable=False)
    assert [again.recv() for _ in range(10)] == list(range(10, 20))
    program = (
        "import sys, multiprocessing.connection as c\n"
        "r = c.Connection(int(sys.argv[1]), writable=False)\n"
        "print([r.recv() for _ in range(10)])"
    )
    out = subprocess.run(
        [sys.executable, "-c", program, str(reader.fileno())],
        pass_fds=[reader.fileno()],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=True,
    ).stdout
    assert out.strip() == str(list(range(20, 30)))
    assert not reader.poll()
    writer.close()
    assert again.poll(LIMIT)
    for one in (reader, again):
        with pytest.raises(EOFError):
            one.recv()
    again.close()


@leaving
@at_either_end
def test_in_the_middle_of_a_long_message(numbered, ours, who, leave):
    reader, writer, reading, _ = numbered
    writer.send_bytes(b"before")
    task = sending(writer, writer.send_bytes, LONG * 3)
    wait_until_blocked(task)
    leave(reader if who == "reader" else writer, ours)
    wire = framed(b"before") + framed(LONG * 3)
    assert read_exactly(reading, len(wire)) == wire
    task.get()
    assert not is_readable(reading)


@leaving
@at_either_end
def test_short_ones_of_others_in_the_middle_of_a_long_one(numbered, ours, who, leave):
    """They come after it, whoever asks for the descriptor."""
    reader, writer, reading, _ = numbered
    first = sending(writer, writer.send_bytes, LONG * 3)
    wait_until(lambda: is_readable(reading))
    wait_until_blocked(first)
    others = [sending(writer, writer.send_bytes, b"short%d" % i) for i in range(3)]
    wait_until(lambda: all(map(is_settled, others)))
    leave(reader if who == "reader" else writer, ours)
    wire = framed(LONG * 3)
    assert read_exactly(reading, len(wire)) == wire
    rest = read_exactly(reading, 3 * 10)
    assert sorted(messages_in(rest)[0]) == [b"short%d" % i for i in range(3)]
    for task in (first, *others):
        task.get()


def is_settled(task):
    """Whether it has ended, or sleeps."""
    if not task.is_alive():
        return True
    with contextlib.suppress(FileNotFoundError), open(f"/proc/self/task/{task.native_id}/stat") as f:
        return f.read().rpartition(")")[2].split()[0] == "S"
    return True


@leaving
@pytest.mark.parametrize("fate", ["closed", "dead", "killed", "busy", "stopped"])
def test_what_the_other_end_is_doing(numbered, ours, fate, leave):
    """The writer is in another process, which needs to do nothing for it."""
    reader, writer, reading, _ = numbered
    told, tell = os.pipe()

    def child():
        for number in range(20):
            writer.send_bytes(b"%d" % number)
        if fate == "closed":
            writer.close()
        os.write(tell, b"x")
        if fate == "dead":
            return
        if fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            if fate != "busy":
                signal.pause()

    pid = fork(child)
    writer.close()
    assert os.read(told, 1) == b"x"
    if fate in ("dead", "killed"):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    leave(reader, ours)
    wire = b"".join(framed(b"%d" % number) for number in range(20))
    assert unread(reading) == len(wire)
    assert read_exactly(reading, len(wire)) == wire
    ends = fate in ("closed", "dead", "killed")
    assert is_readable(reading) == ends
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert os.read(reading, 1) == b""
    os.close(told)
    os.close(tell)


@leaving
@at_either_end
def test_the_other_one_is_asleep(numbered, ours, who, leave):
    """In recv(), of which each message then is: the descriptor's wakes it."""
    reader, writer, _, writing = numbered
    task = blocked_in(reader.recv_bytes)
    leave(reader if who == "reader" else writer, ours)
    os.write(writing, framed(b"raw"))
    assert task.get() == b"raw"
    task = blocked_in(reader.recv_bytes)
    writer.send_bytes(b"more")
    assert task.get() == b"more"


@leaving
def test_twice_at_once(ends, ours, leave):
    reader, writer = ends
    for number in range(50):
        writer.send(number)
    tasks = [Task(leave, end, ours) for end in (reader, writer, reader, writer)]
    for task in tasks:
        task.get()
    assert [reader.recv() for _ in range(50)] == list(range(50))
    assert not reader.poll()


@leaving
@at_either_end
def test_while_others_send_and_receive(ends, ours, who, leave):
    reader, writer = ends
    count = 3000
    sender = sending(writer, lambda: [writer.send(number) for number in range(count)])
    receiver = Task(lambda: [reader.recv() for _ in range(count)])
    assert reader.readable
    leave(ends[who == "writer"], ours)
    assert receiver.get() == list(range(count))
    sender.get()


def test_poll_epoll_and_asyncio(numbered):
    reader, writer, reading, _ = numbered
    for _ in range(2):
        writer.send("unread")
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    assert poll.poll(0) == [(reading, select.POLLIN)]
    with select.epoll() as epoll:
        epoll.register(reader, select.EPOLLIN | select.EPOLLET)
        assert epoll.poll(0) == [(reading, select.EPOLLIN)]
        assert epoll.poll(0) == []
        writer.send("the third")
        assert epoll.poll(LIMIT) == [(reading, select.EPOLLIN)]
    assert [reader.recv() for _ in range(3)] == ["unread", "unread", "the third"]
    assert poll.poll(0) == []

    async def receive(count):
        loop, done, found = asyncio.get_running_loop(), asyncio.Event(), []

        def ready():
            found.append(reader.recv())
            if len(found) == count:
                done.set()

        loop.add_reader(reader, ready)
        for number in range(count):
            writer.send(number)
        await asyncio.wait_for(done.wait(), LIMIT)
        loop.remove_reader(reader)
        return found

    assert asyncio.run(receive(20)) == list(range(20))


def test_asyncio_without_a_message_since(ends):
    """What was sent before the loop asked."""
    reader, writer = ends
    writer.send("before")

    async def receive():
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().add_reader(
            reader, lambda: future.done() or future.set_result(reader.recv())
        )
        return await asyncio.wait_for(future, LIMIT)

    assert asyncio.run(receive()) == "before"


def test_sent_as_a_handle(ends, ours, flow):
    """To a child, by reduction.send_handle."""
    reader, writer = ends
    for number in range(10):
        writer.send(number)
    there, here = theirs.Pipe()

    def child():
        reader.close()
        writer.close()
        again = theirs.Connection(reduction.recv_handle(there), writable=False)
        there.send([again.recv() for _ in range(11)])

    pid = fork(child)
    reduction.send_handle(here, reader.fileno(), pid)
    writer.send("and one")
    assert here.poll(LIMIT)
    assert here.recv() == [*range(10), "and one"]
    os.waitpid(pid, 0)
    close(there, here)


@at_either_end
@leaving
def test_the_end_comes(numbered, ours, who, leave):
    reader, writer, reading, _ = numbered
    writer.send_bytes(b"last")
    if who == "reader":
        leave(reader, ours)
        writer.close()
    else:
        writer.close()
        leave(reader, ours)
    assert read_all(reading) == framed(b"last")
    with pytest.raises(EOFError):
        reader.recv()


# ---- The number of a descriptor ------------------------------------------------------------------


@pytest.fixture
def victim(tmp_path):
    """A file of the program's."""
    fd = os.open(tmp_path / "victim", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    yield fd
    os.close(fd)


def other_numbers(connection_fds):
    """All of the process's pipes and sockets."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}").startswith(("pipe:", "socket:")):
                yield int(name)


def is_whole(fd):
    os.lseek(fd, 0, os.SEEK_SET)
    return os.read(fd, 1000) == b"content"


@leaving
@at_either_end
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_number_that_is_another_files_by_now(
    numbered, ours, who, leave, both_ways, victim, flow
):
    """The messages of rings go nowhere then."""
    reader, writer, reading, writing = numbered
    before = {number: os.dup(number) for number in (reading, writing)}
    for _ in range(5):
        writer.send_bytes(b"secret")
        if both_ways and reader.writable:
            reader.send_bytes(b"secret")
    end, number = (reader, reading) if who == "reader" else (writer, writing)
    os.dup2(victim, number)
    with contextlib.suppress(OSError):  # an epoll does not take files, a poll does
        leave(end, ours)
    assert is_whole(number)
    for number, fd in before.items():
        os.dup2(fd, number, inheritable=False)
        os.close(fd)


@at_either_end
def test_all_numbers_are_another_files(numbered, who, victim):
    """Of whatever there is beside the ends, too."""
    reader, writer, reading, writing = numbered
    inside = [
        int(name)
        for name in os.listdir("/proc/self/fd")
        if os.path.lexists(f"/proc/self/fd/{name}") and int(name) > 2
    ]
    assert {reading, writing} <= set(inside)

    def child():
        for _ in range(5):
            writer.send_bytes(b"secret")
        for number in other_numbers(inside):
            if number > 2:
                os.dup2(victim, number)
        end = reader if who == "reader" else writer
        for call in (end.fileno, end.close, reader.close, writer.close):
            call()
        assert is_whole(victim)

    pid = fork(child)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_closed_behind_our_back(ours, flow):
    """As the stdlib's, at the latest when a while has passed."""
    program = f"""
import os, sys, time
sys.path[:0] = {sys.path!r}
from connection_helpers import make_pair, open_the_rings
from mproc_ext import connection as ours
reader, writer = make_pair(ours, {flow!r})
open_the_rings(reader, writer)
os.closerange(3, 200)
def keeps_failing(call):
    deadline = time.monotonic() + {LIMIT}
    while time.monotonic() < deadline:
        try:
            call()
        except OSError as error:
            assert error.errno == 9, error
            return
    raise AssertionError(call)
keeps_failing(lambda: writer.send(1))
keeps_failing(lambda: writer.send_bytes(bytes(100_000)))
keeps_failing(writer.close)
keeps_failing(reader.close)
print("fine")
"""
    assert run_program("-c", program).strip() == "fine"


# ---- Compared step by step -----------------------------------------------------------------------


class Script:
    """Random calls on the two ends of a Pipe(), of the stdlib's and of ours."""

    SIZES = (0, 1, 2, 30, 500, 4090, 4091, 4092, 4093, 4096, 4100, 16360, 16368, 16369, 16380)
    FULL = 40_000  # less than any descriptor takes, whatever the sizes
    MANY = 50

    def __init__(self, modules, duplex, seed):
        self.random = random.Random(seed)
        self.modules = modules
        self.pairs = [list(module.Pipe(duplex)) for module in modules]
        self.unread = [[], []]  # sizes, by who receives
        self.log = []

    def both(self, what, call):
        self.log.append(what)
        mine, other = (call(module, pair) for module, pair in zip(self.modules, self.pairs))
        assert mine == other, f"{what}: stdlib {mine}, ours {other}, after {self.log[-30:]}"
        return mine

    def can_send(self, side, size):
        waiting = self.unread[not side]
        return sum(waiting) + size < self.FULL and len(waiting) < self.MANY

    def send(self, side):
        size = self.random.choice(self.SIZES)
        if not self.can_send(side, size):
            return
        if self.random.random() < 0.5:
            done = self.both(
                f"send_bytes {side} {size}",
                lambda _, pair: outcome(pair[side].send_bytes, bytes([size % 251]) * size),
            )
        else:
            done = self.both(
                f"send {side} {size}", lambda _, pair: outcome(pair[side].send, "x" * size)
            )
            size += 20
        if done == ("returns", "None"):
            self.unread[not side].append(size)

    def recv(self, side):
        ready = self.both(f"poll {side}", lambda _, pair: outcome(pair[side].poll))
        if ready == ("returns", "False"):
            return
        how = self.random.choice(["recv", "recv_bytes", "recv_bytes", "at most", "into"])
        room = self.random.choice([0, 100, 20_000])

        def call(_, pair):
            if how == "at most":
                return outcome(pair[side].recv_bytes, room + 10)
            if how == "into":
                into = bytearray(room)
                return outcome(pair[side].recv_bytes_into, into), bytes(into)
            return outcome(getattr(pair[side], how))

        done = self.both(f"{how} {side} {room}", call)
        if "bad message length" in done:
            self.unread[side].append(self.FULL)  # nothing more can be received
        elif self.unread[side] and "OSError" not in done:
            self.unread[side].pop(0)

    def leave(self, side):
        leave = self.random.choice(WAYS)

        def call(module, pair):
            result = outcome(leave, pair[side], module)
            return result[0]

        if not all(pair[side].closed for pair in self.pairs):
            self.both(f"{leave.__name__} {side}", call)

    def look(self, side):
        """At the descriptor's bytes."""

        def call(_, pair):
            if pair[side].closed:
                return None
            fd = pair[side].fileno()
            return unread(fd) if pair[side].readable else None, is_readable(fd)

        self.both(f"look {side}", call)

    def close(self, side):
        self.both(f"close {side}", lambda _, pair: outcome(pair[side].close))

    def again(self, side):
        """A second connection to the end, which from now on is the end."""
        if any(pair[side].closed for pair in self.pairs):
            return

        def call(module, pair):
            fd = os.dup(pair[side].fileno())
            flags = pair[side].readable, pair[side].writable
            pair[side].close()
            pair[side] = module.Connection(fd, *flags)
            return flags

        with contextlib.suppress(ValueError):  # neither, after a message that was too long
            self.both(f"again {side}", call)

    def run(self, steps):
        for _ in range(10):  # so that there are rings
            for side in (0, 1):
                if self.pairs[0][side].writable:
                    self.both(f"first {side}", lambda _, pair: outcome(pair[side].send, 1))
                    self.both(f"first {1 - side}", lambda _, pair: outcome(pair[1 - side].recv))
        weights = {"send": 60, "recv": 45, "leave": 1, "look": 1, "close": 1, "again": 1}
        for _ in range(steps):
            name = self.random.choices(list(weights), list(weights.values()))[0]
            side = self.random.randrange(2)
            getattr(self, name)(side)
        for side in (0, 1):
            for _ in range(self.MANY + 5):
                self.recv(side)
        close(*(end for pair in self.pairs for end in pair))


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("seeds", range(20))
def test_random_scripts(modules, ours, duplex, seeds):
    for seed in range(seeds * 10, seeds * 10 + 10):
        Script(modules, duplex, seed).run(150)
