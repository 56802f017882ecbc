"""Signal handlers that run while a connection is at work: they return, raise, use it, fork."""

import contextlib
import itertools
import os
import pickle
import select
import signal

import pytest
from connection_helpers import (
    OURS,
    Interrupted,
    adopt,
    descriptors,
    fill,
    fork,
    framed,
    header,
    interrupt,
    interrupted,
    messages_in,
    messages_of,
    number_of,
    open_pair,
    raw_reader,
    raw_writer,
    read_all,
    read_exactly,
    signal_after,
    signal_when_blocked,
    stamped,
    theirs,
    untroubled,
    wide_header,
    write_all,
)
from sync_helpers import LIMIT, Task, handler, outcome, wait_until

BIG = b"big" * 2_000_000  # more than pipes and sockets hold
SOME = 3 * 65_536


@contextlib.contextmanager
def alarms(function, seconds=0.0005):
    """Again and again."""
    with handler(function, signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


RECEIVE = {
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes limited": lambda c: c.recv_bytes(1000),
    "recv_bytes_into": lambda c: c.recv_bytes_into(bytearray(1000)),
}
every_receive = pytest.mark.parametrize("receive", RECEIVE.values(), ids=RECEIVE)
# It is a pickle of several parts, and as bytes not the same as what it is of.
FIRST, SECOND = (pickle.dumps([name, "x" * 300]) for name in ("first", "second"))


def received(receive, data):
    """What a call gives where this message comes."""
    if receive is RECEIVE["recv"]:
        return pickle.loads(data)
    return len(data) if receive is RECEIVE["recv_bytes_into"] else data


# ---- Handlers that return --------------------------------------------------------------------


def test_alarms_while_sending(connection, kind):
    """Large messages arrive whole, whatever interrupts the call that sends them."""
    count = [0]

    def ring(*_):
        count[0] += 1

    with open_pair(connection, kind) as (reader, writer):
        task = untroubled(lambda: [number_of(reader.recv_bytes()) for _ in range(40)])
        with alarms(ring):
            for number in range(40):
                writer.send_bytes(stamped(number, 1_000_000 if number % 2 else 40_000))
            wait_until(lambda: count[0] > 10)
        assert task.get() == list(range(40))


def test_alarms_while_receiving(connection, kind):
    count = [0]

    def ring(*_):
        count[0] += 1

    with open_pair(connection, kind) as (reader, writer):
        messages = [stamped(number, 1_000_000 if number % 2 else 40_000) for number in range(40)]
        task = untroubled(lambda: [writer.send_bytes(message) for message in messages])
        with alarms(ring):
            found = [number_of(reader.recv_bytes()) for _ in messages]
            wait_until(lambda: count[0] > 10)
        task.get()
        assert found == list(range(40))


def test_alarms_while_objects_go_both_ways(connection):
    """One thread of this process sends back what comes."""
    count = [0]

    def ring(*_):
        count[0] += 1

    with open_pair(connection, "socketpair") as (here, there):

        def echo():
            while (thing := there.recv()) is not None:
                there.send(thing)

        task = untroubled(echo)
        with alarms(ring):
            for number in range(1000):
                here.send([number, "x" * (number * 37 % 5000)])
                assert here.poll(LIMIT)
                assert here.recv() == [number, "x" * (number * 37 % 5000)]
            wait_until(lambda: count[0] > 10)
        here.send(None)
        task.get()


def test_a_wait_goes_on_after_a_handler(pair):
    """poll() waits for as long as it was told to; what comes meanwhile ends it."""
    reader, writer = pair
    seen = []
    with alarms(lambda *_: seen.append(1), 0.01):
        assert not reader.poll(0.05)
    assert seen

    def send(*_):
        writer.send("from the handler")

    with handler(send):
        sender = signal_when_blocked()
        assert reader.poll(None)
        sender.get()
        assert reader.recv() == "from the handler"
        sender = signal_when_blocked()
        assert reader.poll(LIMIT)
        sender.get()
        assert reader.recv() == "from the handler"


@every_receive
def test_a_handler_that_sends_what_is_waited_for(pair, receive):
    reader, writer = pair
    with handler(lambda *_: writer.send_bytes(FIRST)):
        sender = signal_when_blocked()
        assert receive(reader) == received(receive, FIRST)
        sender.get()


# ---- Handlers that raise ---------------------------------------------------------------------


@pytest.mark.parametrize("call", ["send", "recv", "poll", "poll for a while"])
def test_keyboard_interrupt(pair, call):
    reader, writer = pair
    function = {
        "send": lambda: writer.send(BIG),
        "recv": reader.recv,
        "poll": lambda: reader.poll(None),
        "poll for a while": lambda: reader.poll(LIMIT),
    }[call]
    sender = signal_when_blocked(signal.SIGINT)
    try:
        function()
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("it returned")
    sender.get()


def test_raised_where_nothing_was_sent(connection, kind):
    """There was no room for a byte of it: it is not sent."""
    with raw_reader(connection, kind) as (writer, fd):
        size = fill(writer.fileno())
        for call in (lambda: writer.send_bytes(b"not this"), lambda: writer.send_bytes(BIG)):
            interrupted(call)
        assert read_exactly(fd, size) == bytes(size)
        writer.send_bytes(b"but this")
        writer.close()
        assert messages_of(fd) == [b"but this"]


SEND = {
    "bytes": (lambda c: c.send_bytes(BIG), BIG),
    "part": (lambda c: c.send_bytes(BIG, 5, 4_000_000), BIG[5:4_000_005]),
    "object": (lambda c: c.send(BIG), pickle.dumps(BIG)),
    "object of parts": (lambda c: c.send([BIG, 1j]), pickle.dumps([BIG, 1j])),
}
every_send = pytest.mark.parametrize(("send", "data"), SEND.values(), ids=SEND)


@every_send
def test_raised_in_the_middle_of_sending(ours, kind, send, data):
    """The rest goes out before the next message."""
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(send, writer)
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"next")
        writer.send_bytes(b"and next")
        writer.close()
        assert task.get() == [data, b"next", b"and next"]


def test_raised_more_than_once(ours, kind):
    """What was begun is finished, what was not is not sent."""
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        start = b""
        for message in (b"small", BIG[1:]):
            interrupted(writer.send_bytes, message)
            start += read_exactly(fd, 10_000)  # room for some more of the first one
            interrupted(writer.send_bytes, message)
        task = untroubled(read_all, fd)
        writer.send_bytes(b"last")
        writer.close()
        assert messages_in(start + task.get()) == ([BIG, b"last"], b"")


def test_raised_in_one_after_the_other(ours, kind):
    """The second one is begun before it is interrupted, and so it is sent, too."""
    messages = [stamped(number, 6_000_000) for number in range(4)]
    found = bytearray()
    with raw_reader(ours, kind) as (writer, fd):
        for message in messages:
            # So much is read that what comes before it has gone out.
            missing = sum(len(framed(one)) for one in messages[: messages.index(message)])
            task = untroubled(read_exactly, fd, missing - len(found) + SOME)
            interrupted(writer.send_bytes, message, after=task)
            found += task.get()
        task = untroubled(read_all, fd)
        writer.send_bytes(b"last")
        writer.close()
        assert messages_in(bytes(found) + task.get()) == ([*messages, b"last"], b"")


def test_the_rest_is_what_was_to_be_sent(ours, kind):
    """The buffer is the program's again, as soon as the call has ended."""
    data = bytearray(BIG)
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, data)
        data[:] = bytes(len(data))
        data.clear()
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"next")
        writer.close()
        assert task.get() == [BIG, b"next"]


def test_the_rest_goes_out_from_another_thread(ours, kind):
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        reading = untroubled(messages_of, fd)
        Task(writer.send_bytes, b"next").get()
        writer.close()
        assert reading.get() == [BIG, b"next"]


def test_the_rest_goes_out_before_an_empty_message(ours, kind):
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"")
        writer.close()
        assert task.get() == [BIG, b""]


def test_closed_with_a_rest(ours, kind):
    """Who reads is told that a message is missing."""
    reading, writing = descriptors(kind)
    reader, writer = adopt(ours, kind, reading, writing)
    interrupted(writer.send_bytes, BIG)
    writer.close()
    with pytest.raises(OSError, match="got end of file during message"):
        reader.recv_bytes()
    reader.close()


def test_receiving_with_a_rest(ours):
    """The other direction goes on."""
    with open_pair(ours, "socketpair") as (one, other):
        interrupted(one.send_bytes, BIG)
        other.send("the other way")
        assert one.poll(LIMIT)
        assert one.recv() == "the other way"
        task = untroubled(lambda: [other.recv_bytes(), other.recv()])
        one.send("next")
        assert task.get() == [BIG, "next"]


def test_another_descriptor_gets_nothing_of_the_rest(ours, kind):
    first, second = descriptors(kind), descriptors(kind)
    writer = ours.Connection(first[1], readable=kind != "pipe")
    interrupted(writer.send_bytes, BIG)
    writer._handle = second[1]
    task = untroubled(messages_of, second[0])
    writer.send_bytes(b"through the second")
    writer.close()
    assert task.get() == [b"through the second"]
    for fd in (*first, second[0]):
        os.close(fd)


def test_another_descriptor_while_the_rest_is_sent(ours, kind):
    """The rest's own copy of the first descriptor goes with the rest."""
    first, second = descriptors(kind), descriptors(kind)
    writer = ours.Connection(first[1], readable=kind != "pipe")
    interrupted(writer.send_bytes, BIG)
    task = untroubled(messages_of, second[0])

    def send(*_):
        writer._handle = second[1]
        writer.send_bytes(b"from the handler")

    with handler(send):
        sender = signal_when_blocked()
        writer.send_bytes(b"outer")
        sender.get()
    writer.close()
    assert task.get() == [b"from the handler", b"outer"]
    os.close(first[1])
    read_all(first[0])  # to the end, which nobody else holds open
    for fd in (first[0], second[0]):
        os.close(fd)


def test_another_descriptor_begins_with_a_message(ours, kind):
    """What has been received of one is no part of what comes from the other."""
    first, second = descriptors(kind), descriptors(kind)
    reader = ours.Connection(first[0], writable=kind != "pipe")
    write_all(first[1], wide_header(50)[:6])
    interrupted(reader.recv_bytes)
    reader._handle = second[0]
    write_all(second[1], framed(b"through the second"))
    assert reader.recv_bytes() == b"through the second"
    reader.close()
    for fd in (*first, second[1]):
        os.close(fd)


@every_receive
@pytest.mark.parametrize("start", [header, wide_header], ids=["short", "wide"])
@pytest.mark.parametrize("at", [0, 2, 4, 7, 12, 13, 100])
def test_raised_in_the_middle_of_receiving(ours, kind, receive, start, at):
    """It goes on where it was."""
    data = start(len(FIRST)) + FIRST
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, data[:at])
        interrupted(receive, reader)
        assert not reader.poll()
        write_all(fd, data[at : at + 20])
        interrupted(receive, reader)
        write_all(fd, data[at + 20 :] + framed(SECOND))
        assert reader.poll(LIMIT)
        assert receive(reader) == received(receive, FIRST)
        assert receive(reader) == received(receive, SECOND)


@every_receive
@pytest.mark.parametrize("first", RECEIVE.values(), ids=RECEIVE)
def test_received_in_another_way(ours, kind, first, receive):
    """Whoever comes next goes on, be it in another thread."""
    data = framed(FIRST)
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, data[:50])
        interrupted(first, reader)
        write_all(fd, data[50:] + framed(SECOND))
        assert Task(receive, reader).get() == received(receive, FIRST)
        assert first(reader) == received(first, SECOND)


def test_received_into_a_buffer_that_was_left(ours, kind):
    """What has come is in no buffer of a call that has ended."""
    data = framed(bytes(range(1, 200)))
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, data[:50])
        left = bytearray(1000)
        interrupted(reader.recv_bytes_into, left)
        left.clear()  # nobody holds it
        write_all(fd, data[50:])
        into = bytearray(199)
        assert reader.recv_bytes_into(into) == 199
        assert into == bytes(range(1, 200))
        assert left == b""


def test_a_limit_after_an_interrupt(ours, kind):
    """It is the limit of the call that goes on."""
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, framed(FIRST)[:50])
        interrupted(reader.recv_bytes)
        write_all(fd, framed(FIRST)[50:])
        with pytest.raises(OSError, match="bad message length"):
            reader.recv_bytes(60)


def test_the_end_after_an_interrupt(ours, kind):
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, framed(FIRST)[:50])
        interrupted(reader.recv_bytes)
        os.close(fd)
        with pytest.raises(OSError, match="got end of file during message"):
            reader.recv_bytes()
        with pytest.raises(EOFError):
            reader.recv_bytes()


class Raises:
    """A handler that raises in the middle of a call, at most once in each."""

    def __init__(self):
        self.count = 0
        self.armed = False

    def __call__(self, *_):
        if self.armed:
            self.armed = False
            self.count += 1
            raise Interrupted

    def call(self, function, *args):
        """What the function returns, or None where it was interrupted, or just has returned."""
        try:
            self.armed = True
            result = function(*args)
            self.armed = False
        except Interrupted:
            return None
        return result


SIZES = [1, 100, 30_000, 300_000]


def test_alarms_that_raise_while_sending(ours, kind):
    """At any point: all that was begun arrives, each once, in order."""
    ring, certain, sent = Raises(), [], 0

    def send(number):
        writer.send_bytes(stamped(number, SIZES[number % 4]))
        return number

    with open_pair(ours, kind) as (reader, writer):
        task = untroubled(lambda: list(iter(lambda: number_of(reader.recv_bytes()), 0)))
        with alarms(ring, 0.002):
            while sent < 400 or ring.count < 20:
                sent += 1
                certain.append(ring.call(send, sent))
        send(0)
        found = task.get()
    assert found == sorted(set(found))
    assert {*certain} - {None} <= {*found} <= {*range(1, sent + 1)}


def test_alarms_that_raise_while_receiving(ours, kind):
    """No message is torn.  One that has been received is lost with the call's result, where a
    handler raises between that and its use."""
    ring, found = Raises(), []
    with open_pair(ours, kind) as (reader, writer):

        def send_until_told():
            number = 0
            while not told:
                number += 1
                writer.send_bytes(stamped(number, SIZES[number % 4]))
            writer.send_bytes(stamped(0, 1))
            return number

        told = []
        task = untroubled(send_until_told)
        with alarms(ring, 0.002):
            while len(found) < 400 or ring.count < 20:
                message = ring.call(reader.recv_bytes)
                if message is not None:
                    found.append(number_of(message))
        told.append(1)
        found += iter(lambda: number_of(reader.recv_bytes()), 0)
        sent = task.get()
    assert found == sorted(set(found))
    assert sent - len(found) <= ring.count


# ---- Handlers that use the connection --------------------------------------------------------


def test_a_handler_that_sends(ours, kind):
    """First the message is finished that it has interrupted."""
    tasks = []
    with raw_reader(ours, kind) as (writer, fd):

        def send(*_):
            tasks.append(untroubled(messages_of, fd))
            writer.send_bytes(b"from the handler")

        with handler(send):
            sender = signal_when_blocked()
            writer.send_bytes(BIG)
            sender.get()
        writer.send_bytes(b"next")
        writer.close()
        assert tasks[0].get() == [BIG, b"from the handler", b"next"]


def test_a_handler_that_sends_where_nothing_was_sent(ours, kind):
    """Both arrive."""
    with raw_reader(ours, kind) as (writer, fd):
        size = fill(writer.fileno())
        tasks = []

        def send(*_):
            tasks.append(untroubled(lambda: (read_exactly(fd, size), messages_of(fd))[1]))
            writer.send_bytes(b"from the handler")

        with handler(send):
            sender = signal_when_blocked()
            writer.send_bytes(b"outer")
            sender.get()
        writer.close()
        assert sorted(tasks[0].get()) == [b"from the handler", b"outer"]


def test_a_handler_that_sends_and_is_interrupted(ours, kind):
    """A handler in a handler raises: what was begun is finished by the next one who sends."""
    with raw_reader(ours, kind) as (writer, fd):

        def send(*_):
            interrupted_there = signal_when_blocked(signal.SIGUSR2)
            try:
                writer.send_bytes(b"from the handler")
            finally:
                interrupted_there.get()

        with handler(send), handler(interrupt, signal.SIGUSR2):
            sender = signal_when_blocked()
            with pytest.raises(Interrupted):
                writer.send_bytes(BIG)
            sender.get()
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"next")
        writer.close()
        assert task.get() == [BIG, b"next"]


@every_receive
@pytest.mark.parametrize("inner", RECEIVE.values(), ids=RECEIVE)
@pytest.mark.parametrize("at", [0, 2, 50])
def test_a_handler_that_receives(ours, kind, receive, inner, at):
    """The message that has begun to come is the handler's, the next one its thread's."""
    data = framed(FIRST)
    seen = []
    with raw_writer(ours, kind) as (reader, fd):

        def take(*_):
            write_all(fd, data[at:])
            seen.append(inner(reader))
            write_all(fd, framed(SECOND))

        write_all(fd, data[:at])
        with handler(take):
            sender = signal_when_blocked()
            assert receive(reader) == received(receive, SECOND)
            sender.get()
        assert seen == [received(inner, FIRST)]


def test_a_handler_that_receives_a_large_one(ours, kind):
    """What had come of it, in memory of the call, is not lost."""
    seen = []
    with open_pair(ours, kind) as (reader, writer):
        tasks = []

        def take(*_):
            tasks.append(untroubled(write_all, writer.fileno(), framed(BIG)[SOME:]))
            seen.append(reader.recv_bytes())
            tasks.append(untroubled(writer.send_bytes, BIG[1:]))

        write_all(writer.fileno(), framed(BIG)[:100])
        feed = untroubled(write_all, writer.fileno(), framed(BIG)[100:SOME])
        with handler(take):
            sender = signal_after(feed)
            assert reader.recv_bytes() == BIG[1:]
            sender.get()
        assert seen == [BIG]
        for task in tasks:
            task.get()


def test_a_handler_that_polls(pair):
    reader, writer = pair
    seen = []

    def look(*_):
        seen.append((reader.poll(), reader.poll(0.01)))
        writer.send_bytes(FIRST)
        seen.append((reader.poll(LIMIT), reader.poll(None)))

    with handler(look):
        sender = signal_when_blocked()
        assert reader.recv_bytes() == FIRST
        sender.get()
    assert seen == [(False, False), (True, True)]


@pytest.mark.parametrize("call", ["recv", "recv_bytes", "poll", "send"])
def test_a_handler_that_closes(pair, call):
    """An error; not the bytes of whatever has the descriptor's number next."""
    reader, writer = pair
    one = writer if call == "send" else reader
    function = {
        "recv": reader.recv,
        "recv_bytes": reader.recv_bytes,
        "poll": lambda: reader.poll(None),
        "send": lambda: writer.send_bytes(BIG),
    }[call]
    with handler(lambda *_: one.close()):
        sender = signal_when_blocked()
        if call == "poll":
            # The stdlib's says that something is to be had: an error.
            assert outcome(function)[0] in ("returns", "OSError")
        else:
            with pytest.raises((OSError, TypeError)):
                function()
        sender.get()
    assert one.closed


def test_alarms_that_send_and_receive(ours, kind):
    """The same connection, at any point of its own calls."""
    numbers, seen, received_inside = itertools.count(1), [], []
    with open_pair(ours, kind) as (reader, writer):

        def use(*_):
            mine = next(numbers)  # in one step: an alarm comes in the handler, too
            seen.append(mine)
            writer.send(("extra", mine))
            if reader.poll():
                received_inside.append(reader.recv())

        found = []
        with alarms(use, 0.003):
            number = 0
            while len(seen) < 50 or number < 500:
                writer.send(("regular", number))
                number += 1
                found.append(reader.recv())
        count = len(seen) + number
        while len(found) + len(received_inside) < count:
            assert reader.poll(LIMIT)
            found.append(reader.recv())
        assert not reader.poll()
    everything = sorted(found + received_inside)
    assert everything == [
        *(("extra", n + 1) for n in range(len(seen))),
        *(("regular", n) for n in range(number)),
    ]


# ---- Handlers that fork ----------------------------------------------------------------------


def fork_and_leave(children, function=lambda: None):
    """A handler: the child does something, and ends in there."""

    def handle(*_):
        pid = fork(function)
        children.append(pid)
        assert os.waitpid(pid, 0)[1] == 0

    return handle


def test_fork_while_sending(connection, kind):
    with raw_reader(connection, kind) as (writer, fd):
        children, tasks = [], []
        leave = fork_and_leave(children)

        def fork_and_read(*_):
            leave()
            tasks.append(untroubled(messages_of, fd))

        with handler(fork_and_read):
            sender = signal_when_blocked()
            writer.send_bytes(BIG)
            sender.get()
        writer.send_bytes(b"next")
        writer.close()
        assert tasks[0].get() == [BIG, b"next"]
        assert children


@every_receive
def test_fork_while_receiving(connection, kind, receive):
    with raw_writer(connection, kind) as (reader, fd):
        children = []
        leave = fork_and_leave(children)

        def fork_and_write(*_):
            leave()
            write_all(fd, framed(FIRST)[50:])

        write_all(fd, framed(FIRST)[:50])
        with handler(fork_and_write):
            sender = signal_when_blocked()
            assert receive(reader) == received(receive, FIRST)
            sender.get()
        assert children


@pytest.mark.skipif(not OURS, reason="about ours")
def test_fork_with_a_rest(ours, kind):
    """The child does not send what its parent will, nor does it when it closes its copy."""
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        fork_and_leave([], writer.close)()
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"next")
        writer.close()
        assert task.get() == [BIG, b"next"]


def test_fork_with_a_rest_that_is_sent_then(ours, kind):
    """What the child sends after that is whole."""
    with raw_reader(ours, kind) as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        go, wait = os.pipe()

        def in_child():
            assert select.select([go], [], [], LIMIT)[0]
            writer.send_bytes(b"from the child")

        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                in_child()
                code = 0
            finally:
                os._exit(code)
        task = untroubled(messages_of, fd)
        writer.send_bytes(b"from the parent")
        os.write(wait, b"!")
        assert os.waitpid(pid, 0)[1] == 0
        writer.close()
        assert task.get() == [BIG, b"from the parent", b"from the child"]
        os.close(go)
        os.close(wait)


def test_fork_with_a_message_half_received(ours, kind):
    """What has come is the parent's: the child, whose turn it is later, begins with the next."""
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, framed(FIRST)[:50])
        interrupted(reader.recv_bytes)
        go, wait = os.pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert select.select([go], [], [], LIMIT)[0]
                assert reader.recv_bytes() == SECOND
                code = 0
            finally:
                os._exit(code)
        write_all(fd, framed(FIRST)[50:] + framed(SECOND))
        assert reader.recv_bytes() == FIRST
        os.write(wait, b"!")
        assert os.waitpid(pid, 0)[1] == 0
        os.close(go)
        os.close(wait)


def test_the_stdlib_tears_what_is_interrupted():
    """So that the tests above mean something."""
    with raw_reader(theirs, "pipe") as (writer, fd):
        interrupted(writer.send_bytes, BIG)
        task = untroubled(read_all, fd)
        writer.send_bytes(b"next")
        writer.close()
        data = task.get()
        assert len(data) < len(BIG)
        assert messages_in(data)[0] == []
