"""Threads that share one connection, and forks in the midst of it."""

import contextlib
import os
import pickle
import random
import select
import sys
import sysconfig
import threading

import pytest
from connection_helpers import (
    KINDS,
    RINGS,
    blocked_in,
    close,
    fork,
    framed,
    is_blocked,
    make_pair,
    messages_in,
    number_of,
    open_pair,
    open_the_rings,
    raw_reader,
    raw_writer,
    read_all,
    read_exactly,
    sending,
    stamped,
    theirs,
    wait_until_blocked,
    write_all,
)
from sync_helpers import LIMIT, Task, outcome, wait_until

SIZES = [1, 100, 5_000, 16_384, 16_385, 70_000, 300_000, 1_000_000]
WEIGHTS = [20, 20, 20, 10, 10, 5, 3, 1]
END = 0xFFFF_FFFF  # the number of a message after which a receiver stops


@pytest.fixture(autouse=True)
def often():
    """Threads take turns far more often than they would."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def numbers(sender, each):
    return range(sender * each, (sender + 1) * each)


def message_of(number):
    size = random.Random(number).choices(SIZES, WEIGHTS)[0]
    return stamped(number, size)


def receive_bytes(reader):
    return reader.recv_bytes()


def receive_limited(reader):
    return reader.recv_bytes(2_000_000)


def receive_into(reader):
    into = bytearray(1_100_000)
    size = reader.recv_bytes_into(into)
    return memoryview(into)[:size]


def send_object(writer, message):
    writer.send({"number": message[:4], "message": message, "rest": [1, 2.5]})


def receive_object(reader):
    thing = reader.recv()
    assert thing["number"] == thing["message"][:4]
    return thing["message"]


WAYS = {
    "bytes": (lambda writer, message: writer.send_bytes(message), [receive_bytes]),
    "mixed": (
        lambda writer, message: writer.send_bytes(message),
        [receive_bytes, receive_into, receive_limited],
    ),
    "objects": (send_object, [receive_object]),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def receive_all(reader, receive):
    found = []
    while (number := number_of(receive(reader))) != END:
        found.append(number)
    return found


@every_way
@pytest.mark.parametrize(("senders", "receivers"), [(1, 1), (8, 1), (1, 8), (6, 4)])
def test_all_arrive_once(ours, kind, way, senders, receivers):
    """None is torn, none is lost, none comes twice; those of one sender, to one receiver, come in
    order."""
    send, receives = way
    each = 240 // senders
    with open_pair(ours, kind) as (reader, writer):

        def send_all(sender):
            for number in numbers(sender, each):
                send(writer, message_of(number))

        receiving = [
            Task(receive_all, reader, receives[n % len(receives)]) for n in range(receivers)
        ]
        tasks = [sending(writer, send_all, sender) for sender in range(senders)]
        for task in tasks:
            task.get()
        for _ in receiving:
            send(writer, stamped(END, 1))
        found = [task.get() for task in receiving]
    assert sorted(number for received in found for number in received) == [*range(senders * each)]
    for received in found:
        for sender in range(senders):
            mine = [number for number in received if number in numbers(sender, each)]
            assert mine == sorted(mine)


def test_both_directions_at_once(ours):
    """Threads that send and threads that receive, on one connection, and who answers."""
    with open_pair(ours, "socketpair") as (here, there):

        def answer():
            while (message := there.recv_bytes()) != b"":
                there.send_bytes(message)

        def send_all(sender):
            for number in numbers(sender, 50):
                here.send_bytes(message_of(number))

        def collect():
            while (message := here.recv_bytes()) != b"":
                found.append(number_of(message))

        found = []
        answering = [Task(answer) for _ in range(3)]
        receiving = [Task(collect) for _ in range(3)]
        for task in [sending(here, send_all, sender) for sender in range(4)]:
            task.get()
        # Those who answer overtake each other.
        wait_until(lambda: len(found) == 200)
        for end, tasks in ((here, answering), (there, receiving)):
            for _ in tasks:
                end.send_bytes(b"")
            for task in tasks:
                task.get()
    assert sorted(found) == list(range(200))


def test_one_that_sends_and_one_that_receives(connection, kind):
    """What the stdlib promises, too."""
    with open_pair(connection, kind) as (reader, writer):
        task = sending(
            writer, lambda: [writer.send_bytes(message_of(number)) for number in range(200)]
        )
        assert [number_of(reader.recv_bytes()) for _ in range(200)] == list(range(200))
        task.get()


def test_who_waits_for_the_turn_gets_it(ours, kind):
    """Nobody who sends is left out while others do."""
    with open_pair(ours, kind) as (reader, writer):
        done = threading.Event()
        counts = [0] * 4

        def send_until_done(index):
            while not done.is_set():
                writer.send_bytes(stamped(index, 20_000))
                counts[index] += 1

        tasks = [sending(writer, send_until_done, index) for index in range(4)]
        seen = [0] * 4
        while min(seen) < 5:
            seen[number_of(reader.recv_bytes())] += 1
        done.set()
        finished = Task(lambda: ([task.get() for task in tasks], writer.send_bytes(b"")))
        while (message := reader.recv_bytes()) != b"":
            seen[number_of(message)] += 1
        finished.get()
    assert seen == counts


def test_poll_while_others_receive(ours, kind):
    """It answers, whatever the others take; with a message that stays there, it says so."""
    with open_pair(ours, kind) as (reader, writer):
        done = threading.Event()

        def look():
            said = set()
            while not done.is_set():
                said.add(reader.poll())
                said.add(reader.poll(0.0001))
            return said

        looking = [Task(look) for _ in range(2)]
        receiving = [Task(receive_all, reader, receive_bytes) for _ in range(2)]
        for number in range(200):
            writer.send_bytes(message_of(number))
        for _ in receiving:
            writer.send_bytes(stamped(END, 1))
        found = [number for task in receiving for number in task.get()]
        done.set()
        assert set.union(*(task.get() for task in looking)) <= {True, False}
        assert sorted(found) == list(range(200))
        writer.send_bytes(b"there")
        assert [Task(reader.poll, timeout).get() for timeout in (0, None, LIMIT)] == [True] * 3


def test_many_wait_for_one_message(ours, kind):
    """One gets it, the others go on waiting, and get the next ones."""
    with open_pair(ours, kind) as (reader, writer):
        tasks = [Task(reader.recv) for _ in range(5)]
        wait_until_one_is_blocked(tasks)
        for number in range(5):
            writer.send(number)
        assert sorted(task.get() for task in tasks) == list(range(5))


def wait_until_one_is_blocked(tasks):
    wait_until(lambda: any(is_blocked(task) for task in tasks), "a wait for the descriptor")


def test_all_are_told_of_the_end(ours, kind):
    with open_pair(ours, kind) as (reader, writer):
        tasks = [Task(reader.recv) for _ in range(5)]
        wait_until_one_is_blocked(tasks)
        writer.close()
        for task in tasks:
            with pytest.raises(EOFError):
                task.get()


def test_all_are_told_of_closing(ours, kind):
    """Those who wait for their turn, too."""
    with raw_writer(ours, kind) as (reader, _):
        tasks = [Task(reader.recv) for _ in range(5)]
        wait_until_one_is_blocked(tasks)
        reader.close()
        for task in tasks:
            with pytest.raises(OSError, match="handle is closed"):
                task.get()


def test_closed_while_many_send(ours, kind):
    """Each has sent its messages whole, but for at most one that the end is in the middle of."""
    with raw_reader(ours, kind) as (writer, fd):

        def send_all(sender):
            with contextlib.suppress(OSError):
                while True:
                    writer.send_bytes(stamped(sender, SIZES[counts[sender] % len(SIZES)]))
                    counts[sender] += 1

        counts = [0] * 6
        reading = Task(read_all, fd)
        tasks = [Task(send_all, sender) for sender in range(6)]
        wait_until(lambda: sum(counts) > 40)
        writer.close()
        for task in tasks:
            task.get()
        found, rest = messages_in(reading.get())
        seen = [number_of(message) for message in found]
        assert sum(counts) <= len(seen) <= sum(counts) + 1
        for sender, count in enumerate(counts):
            assert count <= seen.count(sender) <= count + 1
        assert not rest or len(seen) == sum(counts)


def test_a_message_waits_for_the_one_before(ours, kind):
    """A small one that another thread sends comes after the large one that has begun."""
    with raw_reader(ours, kind) as (writer, fd):
        large = stamped(1, 5_000_000)
        first = blocked_in(writer.send_bytes, large)
        others = [Task(writer.send_bytes, b"small") for _ in range(3)]
        found, rest = messages_in(read_exactly(fd, len(framed(large)) + 3 * len(framed(b"small"))))
        for task in (first, *others):
            task.get()
        assert found == [large, *[b"small"] * 3]
        assert not rest


def test_errors_of_one_are_not_anothers(ours, kind):
    """Who fails to pickle, or to unpickle, leaves the others alone."""
    with open_pair(ours, kind) as (reader, writer):

        def send_some(sender):
            for number in numbers(sender, 50):
                if number % 3 == 0:
                    with pytest.raises((AttributeError, pickle.PicklingError)):
                        writer.send([b"x" * 1000, lambda: 0])
                writer.send(number) if number % 2 else writer.send_bytes(b"garbage")

        def receive_some():
            found = []
            while True:
                try:
                    number = reader.recv()
                except EOFError:
                    return found
                except Exception as error:
                    assert "pickle data was truncated" in str(error)
                    found.append("garbage")
                else:
                    found.append(number)

        receiving = [Task(receive_some) for _ in range(3)]
        tasks = [sending(writer, send_some, sender) for sender in range(4)]
        for task in tasks:
            task.get()
        writer.close()
        found = [thing for task in receiving for thing in task.get()]
    assert found.count("garbage") == 100
    assert sorted(n for n in found if n != "garbage") == list(range(1, 200, 2))


@pytest.mark.parametrize("kind", [*KINDS, *RINGS])
@pytest.mark.parametrize("size", [1, 1_000, 50_000, 5_000_000])
def test_the_reader_goes_while_a_thread_waits_for_room(connection, kind, size):
    """One call is told of a socket's error: the one that waits, which sent nothing or a part."""
    reader, writer = make_pair(connection, kind)
    if kind in RINGS and connection is not theirs:
        open_the_rings(reader, writer)
    message = bytes(size)

    def send_on():
        while True:
            writer.send_bytes(message)

    task = Task(outcome, send_on)
    wait_until_blocked(task)
    reader.close()
    found = task.get()[0]
    expected = {"BrokenPipeError", "ConnectionResetError"}
    if kind in ("pipe", "one-way ring"):
        expected = {"BrokenPipeError"}
    elif size < 50_000 or kind == "tcp":
        expected = {"ConnectionResetError"}
    assert found in expected
    if writer.readable:
        assert outcome(writer.recv_bytes)[0] == "EOFError"
    writer.close()


# ---- Forks -----------------------------------------------------------------------------------


def join(pid):
    assert os.waitpid(pid, 0)[1] == 0


class Gate:
    """What a child waits for."""

    def __init__(self):
        self.reading, self.writing = os.pipe()

    def open(self):
        os.write(self.writing, b"!")

    def wait(self):
        assert select.select([self.reading], [], [], LIMIT)[0]

    def close(self):
        os.close(self.reading)
        os.close(self.writing)


@pytest.fixture
def gate():
    gate = Gate()
    yield gate
    gate.close()


def test_fork_while_a_thread_sends(ours, kind, gate):
    """The child's copy is free, and has nothing of what its parent sends."""
    with raw_reader(ours, kind) as (writer, fd):
        large = stamped(1, 5_000_000)
        task = blocked_in(writer.send_bytes, large)
        pid = fork(lambda: (gate.wait(), writer.send_bytes(b"from the child")))
        found, rest = messages_in(read_exactly(fd, len(framed(large))))
        assert (found, rest) == ([large], b"")
        task.get()
        gate.open()
        join(pid)
        writer.send_bytes(b"from the parent")
        writer.close()
        assert messages_in(read_all(fd)) == ([b"from the child", b"from the parent"], b"")


def test_fork_while_a_thread_sends_and_others_wait(ours, kind, gate):
    with raw_reader(ours, kind) as (writer, fd):
        large = stamped(1, 5_000_000)
        tasks = [blocked_in(writer.send_bytes, large)]
        tasks += [Task(writer.send_bytes, large) for _ in range(3)]
        pids = [fork(lambda: (gate.wait(), writer.send_bytes(b"small"))) for _ in range(2)]
        found, rest = messages_in(read_exactly(fd, 4 * len(framed(large))))
        assert (found, rest) == ([large] * 4, b"")
        for task in tasks:
            task.get()
        gate.open()
        for pid in pids:
            join(pid)
        writer.close()
        assert messages_in(read_all(fd)) == ([b"small"] * 2, b"")


def test_fork_while_a_thread_receives(ours, kind, gate):
    """The child begins with the message that comes next."""
    with raw_writer(ours, kind) as (reader, fd):
        message = stamped(1, 200_000)
        for at in (0, 2, 4, 1000, 100_000):
            data = framed(message)
            feed = Task(write_all, fd, data[:at])
            task = blocked_in(reader.recv_bytes)
            feed.get()
            wait_until_blocked(task)

            def in_child():
                gate.wait()
                assert reader.recv_bytes() == b"for the child"

            pid = fork(in_child)
            write_all(fd, data[at:])
            assert task.get() == message
            write_all(fd, framed(b"for the child"))
            gate.open()
            join(pid)
            os.read(gate.reading, 1)
            assert not reader.poll()


def test_the_other_direction_in_a_child(ours):
    """While a thread of the parent is in the middle of a send, the child receives."""
    with open_pair(ours, "socketpair") as (here, there):
        task = blocked_in(here.send_bytes, stamped(1, 5_000_000))

        def in_child():
            assert here.recv() == "for the child"

        pid = fork(in_child)
        there.send("for the child")
        join(pid)
        assert number_of(there.recv_bytes()) == 1
        task.get()


def test_a_child_that_closes_its_copy(ours, kind):
    """While a thread of the parent uses it."""
    with raw_reader(ours, kind) as (writer, fd):
        large = stamped(1, 5_000_000)
        task = blocked_in(writer.send_bytes, large)
        join(fork(writer.close))
        assert messages_in(read_exactly(fd, len(framed(large)))) == ([large], b"")
        task.get()


def open_descriptors():
    def is_open(number):
        with contextlib.suppress(OSError):
            os.fstat(number)
            return True

    return {number for number in map(int, os.listdir("/proc/self/fd")) if is_open(number)}


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="without a GIL a fork may come between the closing of a descriptor and of the end",
)
@pytest.mark.parametrize("kind", [*KINDS, *RINGS])
def test_fork_while_a_thread_closes(ours, kind):
    """What is closed in the child has nothing open, and what is not can be closed."""
    in_the_midst = 0
    with open_pair(ours, kind):
        pass  # what all of them share is there from here on
    for number in range(100):
        before = open_descriptors()
        pairs = [make_pair(ours, kind) for _ in range(5)]
        for pair in pairs:
            if kind in RINGS:
                open_the_rings(*pair)
        ends = [end for pair in pairs for end in pair]
        task = Task(close, *ends)
        for _ in range(number % 25 * 10):
            pass

        def in_child(before=before, ends=ends):
            closed = sum(end.closed for end in ends)
            close(*ends)
            assert open_descriptors() <= before
            os._exit(3 if 0 < closed < len(ends) else 0)

        pid = fork(in_child)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        task.get()
        assert status in (0, 3)
        in_the_midst += status == 3
    assert in_the_midst


@pytest.mark.parametrize("kind", RINGS)
def test_fork_after_closing_while_a_thread_sends(ours, kind, gate):
    """The sending goes on in the parent, and the child has nothing of the end."""
    reader, writer = make_pair(ours, kind)
    open_the_rings(reader, writer)
    large = stamped(1, 5_000_000)
    task = blocked_in(writer.send_bytes, large)
    writer.close()
    pid = fork(lambda: (reader.close(), gate.wait()))
    assert reader.recv_bytes() == large
    task.get()
    assert reader.poll(LIMIT)
    with pytest.raises(EOFError):
        reader.recv()
    gate.open()
    join(pid)
    reader.close()


def test_forks_again_and_again(ours, kind):
    """At any point of what a thread does: no child hangs, none hurts its parent."""
    with open_pair(ours, kind) as (reader, writer):
        done = threading.Event()

        def send_until_done():
            number = 0
            while not done.is_set():
                writer.send_bytes(stamped(number, SIZES[number % 6]))
                number += 1
            writer.send_bytes(stamped(END, 1))
            return number

        tasks = [sending(writer, send_until_done)]
        receiving = Task(receive_all, reader, receive_bytes)
        inner = ours.Pipe()

        def in_child():
            # Its own pipe, through copies that other threads have used.
            inner[0].send_bytes(b"x" * 1000)
            assert inner[1].recv_bytes() == b"x" * 1000
            close(reader, writer)

        for _ in range(30):
            join(fork(in_child))
        done.set()
        count = tasks[0].get()
        assert receiving.get() == list(range(count))
        close(*inner)
