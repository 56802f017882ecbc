"""Forks in the middle of pickling and unpickling: parent and child have each their own message."""

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import textwrap

import pytest
from queue_helpers import LIMIT, OURS, end

pytestmark = pytest.mark.skipif(not OURS, reason="the stdlib's thread pickles, and is in no child")

SIZE = 100_000


class Meeting:
    """Two processes that come from one fork, and wait for each other."""

    def __init__(self):
        self.pipes = [os.pipe(), os.pipe()]
        self.child = None
        self.is_child = False
        self.limit = contextlib.nullcontext

    def fork(self):
        with self.limit():
            self.child = os.fork()
        self.is_child = self.child == 0

    def tell(self):
        os.write(self.pipes[self.is_child][1], b"!")

    def wait(self):
        reader = self.pipes[not self.is_child][0]
        assert select.select([reader], [], [], LIMIT)[0]
        os.read(reader, 1)

    def name(self):
        return "child" if self.is_child else "parent"

    def end(self, code):
        """In the child its end; in the parent the child's exit status."""
        if self.is_child:
            os._exit(code)
        status = os.waitpid(self.child, 0)[1]
        for fd in (*self.pipes[0], *self.pipes[1]):
            os.close(fd)
        return os.waitstatus_to_exitcode(status)


meeting = None


@pytest.fixture(autouse=True)
def new_meeting():
    global meeting
    meeting = Meeting()
    yield
    if meeting.is_child:  # it has failed
        os._exit(1)
    meeting = None


def fill(name):
    return {"child": b"C", "parent": b"P"}[name] * SIZE


class ForksWhilePickled:
    def __reduce__(self):
        meeting.fork()
        return str, ("forked",)


class NamesProcess:
    """Both have written something by then: the parent waits for the child."""

    def __reduce__(self):
        if not meeting.is_child:
            meeting.wait()
        return bytes, (fill(meeting.name()),)


class Tells:
    def __reduce__(self):
        if meeting.is_child:
            meeting.tell()
        return str, ("told",)


def in_child(function):
    """Runs only there, to its end."""
    code = 1
    try:
        function()
        code = 0
    finally:
        meeting.end(code)


@pytest.mark.parametrize("zero_copy", [False, True])
def test_fork_while_pickling(ours, zero_copy):
    """Both messages arrive as they were put."""
    q = ours.Queue(zero_copy=zero_copy)
    start = [b"x" * SIZE, "y" * SIZE]
    q.put([*start, ForksWhilePickled(), NamesProcess(), b"z" * SIZE, Tells(), bytearray(SIZE)])
    if meeting.is_child:
        in_child(lambda: None)
    assert meeting.end(0) == 0
    found = [q.get(timeout=LIMIT), q.get(timeout=LIMIT)]
    rest = [b"z" * SIZE, "told", bytearray(SIZE)]
    assert sorted(found) == [[*start, "forked", fill(name), *rest] for name in ("child", "parent")]
    assert q.empty()
    end(q)


def test_what_the_parent_has_sent_is_gone(ours):
    """The child goes on when the parent's message is received, its block another message's."""
    q = ours.SimpleQueue()

    class Late:
        def __reduce__(self):
            if meeting.is_child:
                meeting.wait()
            return str, ("late",)

    q.put([b"x" * SIZE, ForksWhilePickled(), Late(), b"y" * SIZE])
    expected = [b"x" * SIZE, "forked", "late", b"y" * SIZE]
    if meeting.is_child:
        in_child(lambda: None)
    assert q.get() == expected
    q.put([b"z" * 4 * SIZE] * 3)
    meeting.tell()
    assert meeting.end(0) == 0
    assert q.get() == [b"z" * 4 * SIZE] * 3
    assert q.get() == expected
    end(q)


def test_no_memory_for_a_copy(ours):
    """The child cannot put the message; the parent can."""
    q = ours.SimpleQueue()
    size = 200 << 20

    @contextlib.contextmanager
    def limit():
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + size // 2, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)

    meeting.limit = limit
    error = None
    try:
        q.put([b"x" * size, ForksWhilePickled(), b"y" * SIZE])
    except MemoryError as exception:
        error = exception
    finally:
        if meeting.is_child:
            meeting.end(0 if error else 1)
    assert error is None
    assert meeting.end(0) == 0
    assert q.get() == [b"x" * size, "forked", b"y" * SIZE]
    assert q.empty()
    end(q)


def fork_and_wait():
    """The child goes on when the parent is done with the message, and its block another one's."""
    meeting.fork()
    if meeting.is_child:
        meeting.wait()
    return "forked"


class ForksWhileUnpickled:
    def __reduce__(self):
        return fork_and_wait, ()


@pytest.mark.parametrize("zero_copy", [False, True])
def test_fork_while_unpickling(ours, zero_copy):
    q = ours.Queue(zero_copy=zero_copy)
    q.put([b"x" * SIZE, ForksWhileUnpickled(), b"y" * SIZE, "z" * SIZE, 5, bytearray(b"b" * SIZE)])
    found = q.get()
    expected = [b"x" * SIZE, "forked", b"y" * SIZE, "z" * SIZE, 5, bytearray(b"b" * SIZE)]
    if meeting.is_child:

        def check():
            assert found == expected

        in_child(check)
    assert found == expected
    q.put([b"z" * 4 * SIZE] * 3)
    meeting.tell()
    assert meeting.end(0) == 0
    assert q.get() == [b"z" * 4 * SIZE] * 3
    end(q)


def test_the_child_frees_nothing_of_the_parents(ours):
    """It reads to its end, while the parent is in the middle of the message."""
    q = ours.SimpleQueue()

    def wait_in_parent():
        if not meeting.is_child:
            meeting.wait()
        return "waited"

    globals()["wait_in_parent"] = wait_in_parent
    wait_in_parent.__qualname__ = "wait_in_parent"

    class Waits:
        def __reduce__(self):
            return wait_in_parent, ()

    class Forks:
        def __reduce__(self):
            return just_fork, ()

    q.put([b"x" * SIZE, Forks(), Waits(), b"y" * SIZE])
    found = q.get()
    expected = [b"x" * SIZE, "forked", "waited", b"y" * SIZE]
    if meeting.is_child:

        def use_memory():
            assert found == expected
            other = ours.SimpleQueue()
            for _ in range(5):
                other.put([b"z" * SIZE] * 2)
            meeting.tell()

        in_child(use_memory)
    assert found == expected
    assert meeting.end(0) == 0
    end(q)


def just_fork():
    meeting.fork()
    return "forked"


def test_fork_while_reading_a_tree():
    """Comparing keys may warn, and a warning run anything."""
    program = """
        import os, sys, warnings, mproc_ext
        q = mproc_ext.get_context("fork").SimpleQueue()
        reader, writer = os.pipe()
        child = None
        def fork(*_, **__):
            global child
            if child is not None:
                return  # keys may be compared more than once
            child = os.fork()
            if child == 0:
                os.read(reader, 1)
        warnings.simplefilter("always")
        message = [b"x" * 100_000, {"a": 1.5}, b"y" * 100_000, ["z" * 100_000, ("end", 2.5)]]
        q.put([*message[:1], {"a": 1, b"a": 2}, *message])
        warnings.showwarning = fork
        found = q.get()
        assert child is not None
        warnings.showwarning = print
        assert found[2:] == message, "the message is wrong"
        if child == 0:
            os._exit(5)
        q.put([b"w" * 400_000] * 3)
        os.write(writer, b"!")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
        print("good")
    """
    result = subprocess.run(
        [sys.executable, "-b", "-c", textwrap.dedent(program)],
        stdout=subprocess.PIPE,
        timeout=LIMIT,
        text=True,
    )
    assert result.stdout == "good\n"


@pytest.mark.parametrize("plain", [True, False])
def test_fork_in_a_handler_while_put_waits(ours, plain):
    """A full queue: a signal's handler forks, and child and parent go on to wait."""
    q = ours.Queue(1)
    q.put("full")
    message = [b"x" * SIZE, 1 if plain else 1j]
    reader, writer = os.pipe()
    receiver = os.fork()
    if receiver == 0:
        code = 1
        try:
            for _ in range(2):
                assert select.select([reader], [], [], LIMIT)[0]
                os.read(reader, 1)
            code = 0 if [q.get() for _ in range(3)] == ["full", message, message] else 2
        finally:
            os._exit(code)

    def fork(*_):
        meeting.fork()
        os.write(writer, b"!")

    former = signal.signal(signal.SIGALRM, fork)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    code = 1
    try:
        q.put(message, timeout=LIMIT)
        code = 0
    finally:
        signal.signal(signal.SIGALRM, former)
        if meeting.is_child:
            meeting.end(code)
    os.close(reader)
    os.close(writer)
    assert meeting.child
    assert meeting.end(0) == 0
    assert os.waitstatus_to_exitcode(os.waitpid(receiver, 0)[1]) == 0
    end(q)
