"""Pipe()s whose messages go through shared memory: nobody but a clock can tell them from pipes."""

import asyncio
import contextlib
import copy
import fcntl
import gc
import importlib
import itertools
import mmap
import os
import pickle
import random
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import sysconfig
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
from sync_helpers import LIMIT, Task, handler, is_asleep, outcome, run_program, wait_until

import mproc_ext
from mproc_ext import reduction, resource_sharer

LONG = bytes(range(256)) * 800
WITHOUT_NOWAIT = "nowait" in os.environ.get("MPROC_EXT_WITHOUT", "")


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


def linger():
    """In a child, until it is killed: by itself, where its test has failed."""
    signal.alarm(2 * LIMIT)
    while True:
        signal.pause()


def send_on(writer, messages):
    """Send until that fails: (with what, how many were sent)."""
    sent = 0
    try:
        for message in messages:
            writer.send_bytes(message)
            sent += 1
    except Exception as error:
        return type(error), sent


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


one_shares = threading.Lock()


def by_pickle(connection, module):
    with one_shares:
        again = pickle.loads(bytes(reduction.ForkingPickler.dumps(connection)))
        assert (again.readable, again.writable) == (connection.readable, connection.writable)
        again.close()
        theirs = importlib.import_module("mproc_ext._stdlib.resource_sharer")
        for sharer in (resource_sharer, theirs):
            sharer.stop(LIMIT)  # a thread of it has a socket, and a copy for a moment longer


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
    try:
        with open(f"/proc/self/task/{task.native_id}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "S"
    except FileNotFoundError:
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
        signal.alarm(2 * LIMIT)
        while fate == "busy":
            pass
        linger()

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


def become_nobody():
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def go_to_a_bare_root():
    os.chroot("/proc/self/fdinfo")


def run_out_of_descriptors():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    with contextlib.suppress(OSError):
        while True:
            os.dup(2)


@pytest.mark.parametrize("loss", [become_nobody, run_out_of_descriptors])
@pytest.mark.parametrize("leave", [by_fileno, by_wait, by_select])
def test_who_has_lost_something(ends, ours, leave, loss):
    """Rights or descriptors: what is sent after that is in the descriptor all the same."""
    if os.geteuid() != 0 and loss is not run_out_of_descriptors:
        pytest.skip("only root can lose that")
    reader, writer = ends
    told, tell = os.pipe()
    sent, send = os.pipe()

    def child():
        writer.close()
        assert reader.recv() == "before"
        while not open_rings(reader)[1]:
            assert not reader.poll()
        loss()
        os.write(tell, b".")
        os.read(sent, 1)
        leave(reader, ours)
        fd = reader.fileno()
        for number in range(20):
            assert is_readable(fd)
            assert reader.recv() == number
        assert not is_readable(fd)

    pid = fork(child)
    writer.send("before")
    os.read(told, 1)
    for number in range(20):
        writer.send(number)
    os.write(send, b".")
    assert ended(pid) == 0
    for fd in (told, tell, sent, send):
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can lose its rights")
def test_root_receives_from_somebody_else(ours):
    """And is somebody else by the time that it leaves."""
    reader, writer = make_pair(ours, "one-way ring")
    sent, send = os.pipe()
    received, receive = os.pipe()

    def sender():
        become_nobody()
        for number in range(10):
            writer.send(number)
            os.read(received, 1)
        for number in range(3):
            writer.send(number)
        os.write(send, b".")

    def receiver():
        for number in range(10):
            assert reader.recv() == number
            assert not reader.poll()
            os.write(receive, b".")
        assert open_rings(reader)[1]
        os.read(sent, 1)
        become_nobody()
        fd = reader.fileno()
        for number in range(3):
            assert is_readable(fd)
            assert reader.recv() == number

    pids = [fork(sender), fork(receiver)]
    assert [ended(pid) for pid in reversed(pids)] == [0, 0]
    for fd in (sent, send, received, receive):
        os.close(fd)
    close(reader, writer)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
@pytest.mark.parametrize("leave", [by_fileno, by_wait, by_select])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_has_lost_proc(ends, ours, flow, leave, when):
    """Before or after it has opened the ring: all that is sent is received."""
    reader, writer = ends if when == "after" else make_pair(ours, flow)
    told, tell = os.pipe()
    sent, send = os.pipe()

    def child():
        writer.close()
        if when == "after":
            assert reader.recv() == "before"
            while not open_rings(reader)[1]:
                assert not reader.poll()
        go_to_a_bare_root()
        os.write(tell, b".")
        assert os.read(sent, 1) == b"."
        for number in range(20):
            assert reader.recv() == number
        os.write(tell, b".")
        assert os.read(sent, 1) == b"."
        leave(reader, ours)
        if flow == "rings" or when == "before":  # else it is not in the descriptor
            assert is_readable(reader.fileno())
        for number in range(20):
            assert reader.poll()
            assert reader.recv() == number
        assert not reader.poll()
        os.write(tell, b".")
        assert [reader.recv() for _ in range(20)] == [*range(20)]
        says_the_end(reader)

    pid = fork(child)
    reader.close()
    if when == "after":
        writer.send("before")
    for _ in range(3):
        assert os.read(told, 1) == b"."
        for number in range(20):
            writer.send(number)
        os.write(send, b".")
    writer.close()
    assert ended(pid) == 0
    for fd in (told, tell, sent, send):
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
@pytest.mark.parametrize("last", ["another message", "close"])
def test_the_sender_moves_what_who_has_lost_proc_cannot(ours, last):
    reader, writer = ringed_pair(ours, "one-way ring")
    told, tell = os.pipe()
    sent, send = os.pipe()

    def child():
        writer.close()
        go_to_a_bare_root()
        os.write(tell, b".")
        os.read(sent, 1)
        fd = reader.fileno()
        assert ours.wait([reader])  # which looks into the ring
        os.write(tell, b".")
        assert select.select([fd], [], [], LIMIT)[0]
        assert ours.wait([reader])
        assert reader.recv() == 1
        if last == "another message":
            assert ours.wait([reader])
            assert reader.recv() == 2
        assert ours.wait([reader])
        says_the_end(reader)

    pid = fork(child)
    reader.close()
    os.read(told, 1)
    writer.send(1)
    os.write(send, b".")
    os.read(told, 1)
    if last == "another message":
        writer.send(2)
    writer.close()
    assert ended(pid) == 0
    for fd in (told, tell, sent, send):
        os.close(fd)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root")
def test_another_file_has_the_name_below_proc(ours, tmp_path):
    """In a root that somebody has furnished it is not taken for the pipe."""
    reader, writer = make_pair(ours, "one-way ring")
    folder = tmp_path / "proc" / "self" / "fd"
    folder.mkdir(parents=True)
    for name in fds():
        os.mkfifo(folder / name)
    others = [os.open(folder / name, os.O_RDWR) for name in os.listdir(folder)]

    def child():
        os.chroot(tmp_path)
        for number in range(10):
            writer.send(number)
            assert reader.recv() == number
            assert not reader.poll()
        for number in range(5):
            writer.send(number)
        assert is_readable(reader.fileno())
        assert not any(is_readable(other) for other in others)
        assert [reader.recv() for _ in range(5)] == [*range(5)]

    assert ended(fork(child)) == 0
    for other in others:
        os.close(other)
    close(reader, writer)


def test_no_folder_is_open(ends):
    """By which one could get out of a new root."""
    for name in fds():
        with contextlib.suppress(OSError):  # the one that listed them
            assert not stat.S_ISDIR(os.fstat(int(name)).st_mode)


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


@pytest.mark.parametrize("size", [0, 10, 100, 600, 2045, 3000, 4092, 16_000])
@pytest.mark.parametrize("total", [10_000, 40_000, 60_000, 90_000, 250_000])
def test_all_that_was_sent(numbered, size, total):
    """Before anybody received something: there is no more in the ring than goes to the descriptor,
    whether the sender has ended or waits for room."""
    reader, writer, reading, _ = numbered
    count = total // (size + 4)
    pid = fork(lambda: [writer.send_bytes(bytes(size)) for _ in range(count)])
    writer.close()
    wait_until(lambda: is_dead(pid) or is_asleep(pid, pid, on_futex=False))
    assert reader.fileno() == reading
    assert read_all(reading) == framed(bytes(size)) * count
    assert ended(pid) == 0


def is_dead(pid):
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None


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
def test_a_number_that_is_another_files_by_now(numbered, ours, who, leave, both_ways, victim, flow):
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
        them, us = map(call, self.modules, self.pairs)
        assert them == us, f"{what}: stdlib {them}, ours {us}, after {self.log[-30:]}"
        return them

    def can_send(self, side, size):
        waiting = [*self.unread[not side], size]
        if WITHOUT_NOWAIT:  # a pipe says that it is full while the end of its last page is not
            waiting = [-(-(size + 4) // 4096) * 4096 for size in waiting]
        return sum(waiting) < self.FULL and len(waiting) <= self.MANY

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


def test_what_was_sent_is_seen_while_it_moves(ends):
    """A long message goes through the descriptor, and takes along to it what was sent before."""
    reader, writer = ends
    sent = mproc_ext.Value("q", 0, lock=False)
    rounds = range(0, 2000, 2)

    def child():
        reader.close()
        for number in rounds:
            while sent.value == number:
                pass
            writer.send_bytes(b"short")
            sent.value += 1
            writer.send_bytes(LONG)

    pid = fork(child)
    unseen = 0
    for number in rounds:
        sent.value += 1
        while sent.value == number + 1:
            pass
        unseen += sum(not reader.poll() for _ in range(8))
        assert reader.recv_bytes() == b"short"
        assert reader.recv_bytes() == LONG
        assert not reader.poll()
    assert unseen == 0
    assert ended(pid) == 0


# ---- How much there is room for ------------------------------------------------------------------


def count_taken(module, duplex, size):
    """How many messages of a size can be sent to nobody."""
    reader, writer = module.Pipe(duplex)
    for number in range(10):
        writer.send(number)
        reader.recv()
    assert not reader.poll()
    sent = 0

    def send():
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.send_bytes(bytes(size))
                sent += 1

    task = Task(send)
    wait_until_blocked(task)
    before = sent
    wait_until_blocked(task)
    assert sent == before
    reader.close()
    task.get()
    writer.close()
    return sent


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("size", [0, 1, 100, 600, 1020, 2045, 3000, 4092, 4093, 16368, 20_000])
def test_as_many_as_the_stdlib_takes(modules, ours, duplex, size):
    """So that no program waits for itself where it did not before; and not without end."""
    them, us = (count_taken(module, duplex, size) for module in modules)
    spared = max(2, 4096 // (size + 4)) if WITHOUT_NOWAIT and not duplex else 0  # its last page
    assert them <= us + spared
    assert us * (size + 4) < 8 << 20


def test_who_is_stopped_holds_up_the_sender(ends):
    reader, writer = ends
    pid = fork(lambda: [reader.recv_bytes() for _ in range(3000)])
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
    task = sending(writer, lambda: [writer.send_bytes(bytes(1000)) for _ in range(3000)])
    wait_until_blocked(task)
    os.kill(pid, signal.SIGCONT)
    task.get()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- Who has the ends ----------------------------------------------------------------------------


@pytest.mark.timeout(400)  # a fork takes long where memory is watched
def test_who_was_stopped_is_answered(ours):
    """Wherever it was stopped after its message could be seen."""
    for _ in range(200):
        here, there = ours.Pipe()

        def child(there=there):
            there.send("here")
            linger()

        pid = fork(child)
        assert here.recv() == "here"
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        Task(here.send, "an answer").get()
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        close(here, there)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def says_the_end(connection):
    assert connection.poll(LIMIT)
    with pytest.raises((EOFError, ConnectionResetError)):
        connection.recv()


def test_the_end_of_one_of_many_children(ours, flow):
    """Each was forked with all ends that there were before."""
    children = []
    for number in range(12):
        reader, writer = ringed_pair(ours, flow)

        def child(writer=writer, number=number):
            writer.send(number)
            linger()

        pid = fork(child)
        writer.close()
        children.append((pid, reader))
    for number, (_, reader) in enumerate(children):
        assert reader.recv() == number
    random.Random(1).shuffle(children)
    while children:
        pid, reader = children.pop()
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        says_the_end(reader)
        reader.close()
        assert not any(other.poll() for _, other in children)


def test_a_copy_that_was_not_closed(ends):
    """No end comes, as long as somebody might send; then it does."""
    reader, writer = ends
    assert ended(fork(lambda: writer.send("from a child"))) == 0
    assert reader.recv() == "from a child"
    assert not reader.poll(0.05)
    writer.close()
    says_the_end(reader)


def test_a_grandchild_sends_on(ends):
    reader, writer = ends
    told, tell = os.pipe()

    def grandchild():
        os.read(told, 1)
        writer.send("from a grandchild")

    pid = fork(lambda: fork(grandchild))
    writer.close()
    assert ended(pid) == 0
    assert not reader.poll(0.01)
    os.write(tell, b"x")
    assert reader.recv() == "from a grandchild"
    says_the_end(reader)
    os.close(told)
    os.close(tell)


def test_many_processes_send(ends):
    """Without a lock, which short messages do not need."""
    reader, writer = ends
    count, each = 6, 400

    def child(who):
        for number in range(each):
            writer.send_bytes(stamped(who * each + number, 8 + number % 1500))

    pids = [fork(lambda who=who: child(who)) for who in range(count)]
    found = [number_of(reader.recv_bytes()) for _ in range(count * each)]
    assert sorted(found) == list(range(count * each))
    for who in range(count):
        mine = [number for number in found if number // each == who]
        assert mine == sorted(mine)
    assert [ended(pid) for pid in pids] == [0] * count
    assert not reader.poll()


def test_a_child_only_asks(ends):
    """For the descriptor, while its parent goes on sending."""
    reader, writer = ends
    for end in (reader, writer):
        pid = fork(end.fileno)
        for number in range(2000):
            writer.send(number)
            assert reader.recv() == number
        assert ended(pid) == 0
        writer.send("more")
        assert reader.recv() == "more"


@leaving
def test_a_child_leaves_with_messages(ends, ours, leave):
    reader, writer = ends
    for number in range(30):
        writer.send(number)
    pid = fork(lambda: leave(reader, ours))
    assert ended(pid) == 0
    assert [reader.recv() for _ in range(30)] == list(range(30))
    writer.send(30)
    assert reader.recv() == 30


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("size", [100, 3000, 300_000])
def test_a_fork_while_others_are_at_it(ends, size):
    """Of a process whose threads send and receive: the child has no part in that."""
    reader, writer = ends
    count = 2_000_000 // (size + 5000)
    sender = sending(
        writer, lambda: [writer.send_bytes(stamped(number, size)) for number in range(count)]
    )
    receiver = Task(lambda: [number_of(reader.recv_bytes()) for _ in range(count)])
    pids = []
    while sender.is_alive() and len(pids) < 20:
        pids.append(fork(lambda: None))
    assert receiver.get() == list(range(count))
    sender.get()
    assert [ended(pid) for pid in pids] == [0] * len(pids)
    writer.close()
    says_the_end(reader)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_another_thread_leaves(ours, flow):
    """The child has nothing that keeps the end from coming."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for _ in range(80):
            reader, writer = ringed_pair(ours, flow)
            for number in range(100):
                writer.send(number)

            def child(reader=reader, writer=writer):
                close(reader, writer)
                linger()

            task = Task(reader.fileno)
            pids = [fork(child) for _ in range(2)]
            fd = task.get()
            writer.close()
            while select.select([fd], [], [], LIMIT)[0] and os.read(fd, 1 << 16):
                pass
            assert is_readable(fd)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                ended(pid)
            reader.close()
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("fate", ["closed", "killed"])
def test_what_the_other_end_has_not_read(modules, ours, fate):
    """A socket pair's kernel says once that it was there."""

    def after(module):
        here, there = module.Pipe()

        def child():
            here.close()
            for number in range(10):
                assert there.recv() == number
            there.send("read")
            linger()

        pid = fork(child)
        for number in range(10):
            here.send(number)
        assert here.recv() == "read"
        if fate == "killed":
            there.close()
        here.send("unread")
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        there.close()
        said = [outcome(call) for call in (here.recv, here.recv, here.poll)]
        said.append(outcome(here.send, "late"))
        here.close()
        return said

    them, us = map(after, modules)
    assert them == us
    assert "Reset" in us[0][0]


def test_closed_by_another_thread_in_the_middle_of_sending(numbered):
    """The message gets there whole, and then the end; the number is free at once."""
    reader, writer, _, writing = numbered
    writer.send_bytes(b"short")
    task = sending(writer, writer.send_bytes, LONG * 10)
    wait_until_blocked(task)
    writer.close()
    assert writer.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writing)
    with pytest.raises(OSError, match="handle is closed"):
        writer.send_bytes(b"more")
    assert reader.recv_bytes() == b"short"
    assert reader.recv_bytes() == LONG * 10
    task.get()
    says_the_end(reader)


def test_an_exec_closes_them(ends):
    reader, writer = ends
    told, tell = os.pipe()

    def child():
        os.dup2(told, 0)
        os.execv("/bin/cat", ["cat"])

    pid = fork(child)
    os.close(told)
    writer.send("last")
    writer.close()
    assert reader.recv() == "last"
    says_the_end(reader)
    os.close(tell)
    assert ended(pid) == 0


# ---- Death ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [8, 3000, 12_000, 300_000])
@pytest.mark.parametrize("seed", range(3))
def test_a_sender_is_killed(ours, flow, size, seed):
    """What it has sent comes whole and in order, then the end."""
    reader, writer = ringed_pair(ours, flow)

    def child():
        number = 0
        while True:
            writer.send_bytes(stamped(number, size))
            number += 1

    pid = fork(child)
    writer.close()
    for number in range(random.Random(seed).randrange(1, 200)):
        assert number_of(reader.recv_bytes()) == number
    os.kill(pid, signal.SIGKILL)
    number += 1
    end = None
    while end is None:
        try:
            message = reader.recv_bytes()
        except (EOFError, OSError) as error:
            end = error
        else:
            assert number_of(message) == number
            number += 1
    assert ended(pid) == -signal.SIGKILL
    if size < 4000:
        assert isinstance(end, EOFError | ConnectionResetError)
    reader.close()


@pytest.mark.parametrize("how", ["recv", "poll", "fileno", "wait"])
@pytest.mark.parametrize("size", [8, 4000])
def test_all_that_the_dead_have_sent(ours, flow, how, size):
    """Whatever they were at."""
    chance = random.Random(size)
    for _ in range(30):
        reader, writer = ringed_pair(ours, flow)
        sent = mmap.mmap(-1, 8)

        def child(writer=writer, sent=sent):
            for number in itertools.count(1):
                writer.send_bytes(stamped(number, size))
                sent[:8] = number.to_bytes(8, "little")

        pid = fork(child)
        writer.close()
        found = [number_of(reader.recv_bytes()) for _ in range(chance.randrange(1, 30))]
        os.kill(pid, signal.SIGKILL)
        ended(pid)
        if how == "fileno":
            messages, rest = messages_in(read_all(reader.fileno()))
            found += map(number_of, messages)
            assert rest == b""
        with contextlib.suppress(EOFError, ConnectionResetError):
            while how != "fileno":
                if how == "poll":
                    assert reader.poll(LIMIT)
                if how == "wait":
                    assert ours.wait([reader], LIMIT)
                found.append(number_of(reader.recv_bytes()))
        assert found == list(range(1, len(found) + 1))
        assert len(found) >= int.from_bytes(sent[:8], "little")
        reader.close()


@pytest.mark.parametrize("size", [8, 3000, 300_000])
def test_a_receiver_is_killed(ours, flow, size):
    reader, writer = ringed_pair(ours, flow)

    def child():
        while True:
            reader.recv_bytes()

    pid = fork(child)
    reader.close()
    for _ in range(50):
        writer.send_bytes(bytes(size))
    os.kill(pid, signal.SIGKILL)
    error, _ = send_on(writer, itertools.repeat(bytes(size)))
    assert error in (BrokenPipeError, ConnectionResetError)
    with pytest.raises(BrokenPipeError):
        writer.send_bytes(b"")
    assert ended(pid) == -signal.SIGKILL
    writer.close()


def test_a_receiver_has_ended(both, ours, flow):
    """A send after join() fails."""
    for ctx in both:
        for _ in range(20):
            reader, writer = ctx.Pipe(flow == "rings")
            for number in range(10):
                writer.send(number)
                reader.recv()
            reader.poll()
            process = ctx.Process(target=reader.recv)
            process.start()
            reader.close()
            writer.send("the last")
            process.join()
            with pytest.raises(BrokenPipeError):
                writer.send("to nobody")
            writer.close()


def test_one_that_waits_for_room_sees_the_end(ours, flow):
    reader, writer = ringed_pair(ours, flow)
    pid = fork(linger)
    reader.close()
    task = Task(outcome, lambda: [writer.send_bytes(bytes(1000)) for _ in range(3000)])
    wait_until_blocked(task)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    assert task.get()[0] in ("BrokenPipeError", "ConnectionResetError")
    writer.close()


# ---- Descriptors and memory ----------------------------------------------------------------------


def test_no_descriptor_is_free(ends, ours):
    """While they leave: nothing is lost."""
    reader, writer = ends
    for number in range(30):
        writer.send(number)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, fds())) + 3, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        reader.fileno()
        found = [reader.recv() for _ in range(30)]
        writer.send("more")
        found.append(reader.recv())
        writer.fileno()
        writer.send("still more")
        found.append(reader.recv())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert found == [*range(30), "more", "still more"]
    assert not reader.poll()


NO_DESCRIPTOR_AND_NO_MEMORY = """
import contextlib, os, resource, select, sys, threading
from mproc_ext.connection import Pipe, wait

def limit(name, soft):
    resource.setrlimit(name, (soft, resource.getrlimit(name)[1]))

reader, writer = Pipe({duplex})
other = Pipe(False)
for number in range(9):
    writer.send(number)
    assert reader.recv() == number
writer.send("in the ring")
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
taken = []
limit(resource.RLIMIT_NOFILE, max(map(int, os.listdir("/proc/self/fd"))) + 3)
with contextlib.suppress(OSError):
    while True:
        taken.append(os.dup(2))
limit(resource.RLIMIT_AS, used + (1 << 20))
ended, threads = threading.Event(), 0
with contextlib.suppress(MemoryError, RuntimeError):
    while threads < 20:  # the C library may have kept the memory of one
        threading.Thread(target=ended.wait, daemon=True).start()
        threads += 1
assert threads < 20
assert wait([other[0], reader], {timeout}) == [reader]
assert wait([reader, other[0]], {timeout}) == [reader]
assert reader.poll({timeout}) and reader.recv() == "in the ring"
assert wait([other[0], reader], 0) == []
writer.send("after it")
assert wait([other[0], reader], {timeout}) == [reader]
assert reader.recv() == "after it"
limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
for fd in taken:
    os.close(fd)
writer.send("and at last")
assert select.select([reader], [], [], {timeout})[0] == [reader]
assert reader.recv() == "and at last"
print("fine")
"""


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("timeout", [0, 0.5, None])
def test_no_descriptor_and_no_memory_limits(ours, duplex, timeout):
    """wait() sees what it could not put into the descriptor."""
    program = NO_DESCRIPTOR_AND_NO_MEMORY.format(duplex=duplex, timeout=timeout)
    assert run_program("-c", program).strip() == "fine"


def use_and_drop(module, duplex, how):
    reader, writer = module.Pipe(duplex)
    for number in range(7):
        writer.send(number)
        assert reader.recv() == number
    writer.send("unread")
    if how == "left":
        reader.fileno()
    elif how == "closed":
        close(reader, writer)
    elif how == "cycle":
        reader.self = writer.other = [reader, writer]
    elif how == "forked":
        ended(fork(reader.recv))


@pytest.mark.parametrize("duplex", [True, False])
@pytest.mark.parametrize("how", ["dropped", "left", "closed", "cycle", "forked"])
def test_nothing_is_left_of_many(ours, duplex, how):
    count = 60 if how == "forked" else 600
    core = importlib.import_module("mproc_ext._core")
    use_and_drop(ours, duplex, how)
    gc.collect()
    before, stats = fds(), core.heap_stats()
    for number in range(count):
        use_and_drop(ours, duplex, how)
        if how == "cycle" and number % 100 == 0:
            gc.collect()
    gc.collect()
    assert fds() == before
    assert core.heap_stats()["owned"] == stats["owned"]


def test_more_pairs_than_have_rings(ours):
    """Further ones are plain, and do the same."""
    pairs = [ours.Pipe() for _ in range(150)]
    for _ in range(8):
        for number, (one, other) in enumerate(pairs):
            one.send(number)
            other.send(-number)
        for number, (one, other) in enumerate(pairs):
            assert (other.recv(), one.recv()) == (number, -number)
    for number, (one, other) in enumerate(pairs):
        one.send(number)
        one.close()
        assert other.recv() == number
        says_the_end(other)
        other.close()
    one, other = ringed_pair(ours, "rings")  # there is room again
    close(one, other)


@pytest.mark.parametrize("duplex", [True, False])
def test_many_pipes_take_as_many_descriptors(modules, ours, duplex):
    """But for those of a few, and the memory's."""
    for module in modules:
        before = len(fds())
        pairs = [module.Pipe(duplex) for _ in range(200)]
        taken = len(fds()) - before
        assert taken <= (433 if module is ours else 400)
        for pair in pairs:
            close(*pair)
    open_the_rings(*(again := ours.Pipe(duplex)))
    close(*again)


FIRST_MESSAGE = """
import os, resource, sys
import mproc_ext
from mproc_ext.connection import Pipe
class Late:
    def __init__(self):
        self.reader, self.writer = Pipe(duplex=False)
        self.write = os.write

    def __del__(self):
        self.writer.send([1, {2}])
        assert self.reader.recv() == [1, {2}]
        self.write(1, b"fine")

late = Late()
"""


@pytest.mark.parametrize("loss", ["chroot", "descriptors", "interpreter"])
def test_nothing_is_imported_for_the_first_message(loss):
    """When all that an import needs may be gone."""
    if loss == "chroot" and os.geteuid() != 0:
        pytest.skip("only root can do that")
    if loss == "interpreter" and sysconfig.get_config_var("Py_GIL_DISABLED"):
        pytest.skip("the pipe, too, is closed before that: the stdlib's send fails as well")
    losses = {
        "chroot": "os.chroot('/proc/self/fdinfo'); del late",
        "descriptors": """
resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
try:
    while True:
        os.dup(2)
except OSError:
    del late
""",
        "interpreter": "",
    }
    assert run_program("-c", FIRST_MESSAGE + losses[loss]) == "fine"


def test_few_descriptors(ours):
    """A process that may have 64."""
    program = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
import mproc_ext
from mproc_ext.connection import Pipe
pairs = []
try:
    while True:
        pairs.append(Pipe())
except OSError as error:
    assert error.errno == 24, error
assert len(pairs) >= 8
pairs.pop()
for _ in range(8):
    for number, (one, other) in enumerate(pairs):
        one.send(number)
        other.send(-number)
        assert (other.recv(), one.recv()) == (number, -number)
print("fine")
"""
    assert run_program("-c", program).strip() == "fine"


# ---- Signals -------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop(*_):
    raise Stop


def test_a_handler_raises_while_there_is_no_room(ends):
    """The message that was not begun is not sent; those before it are."""
    reader, writer = ends
    with handler(stop):
        task = signal_when_blocked()
        error, sent = send_on(writer, (stamped(number, 1000) for number in itertools.count()))
        task.get()
    assert error is Stop
    assert [number_of(reader.recv_bytes()) for _ in range(sent)] == list(range(sent))
    writer.send_bytes(b"after")
    assert reader.recv_bytes() == b"after"


@pytest.mark.parametrize("size", [200_001, 500_000])
def test_a_handler_raises_in_the_middle(ends, size):
    """The rest comes before the next message, however short that is."""
    reader, writer = ends
    with handler(stop):
        task = signal_when_blocked()
        error, _ = send_on(writer, itertools.repeat(stamped(7, size)))
        task.get()
    assert error is Stop
    task = sending(writer, writer.send_bytes, b"after")
    while (message := reader.recv_bytes()) != b"after":
        assert number_of(message) == 7
    task.get()
    writer.send_bytes(b"short")
    assert reader.recv_bytes() == b"short"


def test_a_handler_raises_while_it_is_asleep(ends):
    reader, writer = ends
    for _ in range(3):
        with handler(stop):
            task = signal_when_blocked()
            with pytest.raises(Stop):
                reader.recv()
            task.get()
        writer.send("kept")
        assert reader.recv() == "kept"


def test_a_handler_receives(ends):
    """What has arrived is its; then the one that it interrupted goes on."""
    reader, writer = ends
    found = []

    def receive(*_):
        writer.send("first")
        found.append(reader.recv())
        writer.send("second")

    with handler(receive):
        task = signal_when_blocked()
        found.append(reader.recv())
        task.get()
    assert found == ["first", "second"]


def test_a_handler_sends(ends):
    """While a send waits for room: both come, once."""
    reader, writer = ends
    count = 300
    receivers = []

    def send(*_):
        receivers.append(Task(lambda: [reader.recv_bytes() for _ in range(count + 1)]))
        writer.send_bytes(b"from the handler" * 300)

    with handler(send):
        task = signal_when_blocked()
        for number in range(count):
            writer.send_bytes(b"%d" % number * 1500)
        task.get()
    found = receivers[0].get()
    found.remove(b"from the handler" * 300)
    assert found == [b"%d" % number * 1500 for number in range(count)]


@pytest.mark.parametrize("size", [3000, 300_000])
def test_a_handler_forks(ends, size):
    """While a send waits for room: the child does not send it, too."""
    reader, writer = ends
    count, pids, receivers = 300, [], []

    def divide(*_):
        pid = os.fork()
        if pid == 0:
            return
        pids.append(pid)
        receivers.append(Task(lambda: [number_of(reader.recv_bytes()) for _ in range(count)]))

    with handler(divide):
        task = signal_when_blocked()
        main = os.getpid()
        try:
            for number in range(count):
                writer.send_bytes(stamped(number, size))
                if os.getpid() != main:
                    os._exit(0)
        finally:
            if os.getpid() != main:
                os._exit(1)
        task.get()
    assert receivers[0].get() == list(range(count))
    assert ended(pids[0]) == 0
    assert not reader.poll()


# ---- Threads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_many_threads(ends, ours, seed):
    """Each message once, each sender's in order, while somebody leaves."""
    reader, writer = ends
    chance = random.Random(seed)
    sizes = [8, 8, 100, 1000, 4100, 15_000, 20_000, 250_000]
    each, count = 150, 4
    plans = [[chance.choice(sizes[: 4 + seed]) for _ in range(each)] for _ in range(count)]
    moment = chance.randrange(each)
    reached = threading.Event()

    def send(who):
        for number, size in enumerate(plans[who]):
            if number == moment:
                reached.set()
            writer.send_bytes(stamped(who * each + number, size))

    senders = [sending(writer, send, who) for who in range(count)]
    lock = threading.Lock()
    found = [[] for _ in range(count)]
    left = count * each

    def receive(who):
        nonlocal left
        while True:
            with lock:
                if left == 0:
                    return
                left -= 1
            found[who].append(number_of(reader.recv_bytes()))

    receivers = [Task(receive, who) for who in range(count)]
    assert reached.wait(LIMIT)
    chance.choice(WAYS)(chance.choice(ends), ours)
    for task in (*senders, *receivers):
        task.get()
    assert sorted(itertools.chain(*found)) == list(range(count * each))
    for numbers in found:
        for who in range(count):
            mine = [number for number in numbers if number // each == who]
            assert mine == sorted(mine)
    assert not reader.poll()
