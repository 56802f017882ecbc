"""Forks and signals in the middle of put and get."""

import os
import signal
import threading
import time

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, is_ours
from sync_helpers import Child, Task, handler, signal_when_asleep, wait_until, wait_until_asleep


class Interrupted(Exception):
    pass


def interrupt(*_):
    raise Interrupted


# ---- Fork ------------------------------------------------------------------------------------


def in_fork(mp, function):
    reader, writer = mp.Pipe(False)
    child = mp.Process(target=lambda: writer.send(function()))
    child.start()
    writer.close()
    assert reader.poll(LIMIT)
    result = reader.recv()
    child.join()
    assert child.exitcode == 0
    return result


@pytest.mark.skipif(not OURS, reason="the stdlib's lock may be held in the child")
@pytest.mark.parametrize("size", [10, 5000, 100_000])
def test_fork_while_threads_put_and_get(ours, kind, size):
    """Whatever a thread is in the middle of, the queue is whole in the child, and here.

    Without a GIL the interpreter's own lock of an object that a thread is using stays locked in the
    child: so child and threads share no closure.
    """
    q, other = getattr(ours, kind)(), getattr(ours, kind)()
    stop = threading.Event()
    data = b"x" * size

    def pump(q, stop, data):
        count = 0
        while not stop.is_set():
            q.put(data)
            assert q.get() == data
            count += 1
        return count

    def use(q=q, other=other, data=data):
        other.put(data)
        q.put(data)
        return other.get() == data and q.get() == data

    tasks = [Task(pump, q, stop, data) for _ in range(2)]
    try:
        for _ in range(15):
            assert in_fork(ours, use)
    finally:
        stop.set()
    assert all(task.get() > 0 for task in tasks)
    assert q.empty()


@pytest.mark.skipif(not OURS, reason="the stdlib's lock is held in the child")
def test_fork_while_a_thread_sleeps_in_get(ours, kind):
    q = getattr(ours, kind)()
    task = Task(q.get)
    wait_until_asleep(task)
    assert in_fork(ours, lambda: (q.put("for the parent"), q.empty())) is not None
    assert task.get() == "for the parent"
    task = Task(q.get)
    wait_until_asleep(task)
    child = Child(ours, queue_targets.get_and_send, q, 1)
    q.put(1)
    q.put(2)
    assert sorted([task.get(), *child.recv()]) == [1, 2]
    child.join()


@pytest.mark.skipif(not OURS, reason="about ours")
def test_fork_while_a_thread_sleeps_in_put(ours):
    q = ours.Queue(1)
    q.put(0)
    task = Task(q.put, 1)
    wait_until_asleep(task)
    assert in_fork(ours, lambda: [q.get(), q.get()]) == [0, 1]
    task.get()
    assert q.empty()


def test_bare_fork(mp, kind):
    """A child of os.fork, which runs none of multiprocessing's hooks."""
    q = getattr(mp, kind)()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            q.put("from the child")
            if not is_ours(q) and kind != "SimpleQueue":
                q.close()
                q.join_thread()
            code = 0
        finally:
            os._exit(code)
    assert q.get() == "from the child"
    assert os.waitpid(pid, 0)[1] == 0
    end(q)


@pytest.mark.skipif(not OURS, reason="what the stdlib's thread has not sent is lost")
def test_what_was_put_before_the_end_is_there(our_ctx, kind):
    q = getattr(our_ctx, kind)()
    child = our_ctx.Process(target=queue_targets.put_and_exit, args=(q, 300))
    child.start()
    child.join(LIMIT)
    assert child.exitcode == 7
    assert [q.get() for _ in range(300)] == list(range(300))


# ---- Signals ---------------------------------------------------------------------------------


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
@pytest.mark.parametrize("arguments", [(), (True, LIMIT)])
def test_handler_that_raises(ours, arguments):
    q, full = ours.Queue(), ours.Queue(1)
    full.put(0)
    with handler(interrupt):
        for call in (lambda: q.get(*arguments), lambda: full.put(1, *arguments)):
            sender = signal_when_asleep()
            with pytest.raises(Interrupted):
                call()
            sender.get()
    assert q.empty()
    assert full.get() == 0
    assert full.empty()
    q.put(1)
    assert q.get() == 1


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
@pytest.mark.parametrize("call", ["get", "simple", "put", "join", "poll", "recv"])
def test_keyboard_interrupt(ours, call):
    q = ours.JoinableQueue(1)
    if call in ("put", "join"):
        q.put(0)
    function = {
        "get": q.get,
        "simple": ours.SimpleQueue().get,
        "put": lambda: q.put(1),
        "join": q.join,
        "poll": lambda: q._reader.poll(None),
        "recv": q._reader.recv,
    }[call]
    sender = signal_when_asleep(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        function()
    sender.get()


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
def test_handler_that_puts_what_is_waited_for(ours, kind):
    q = getattr(ours, kind)()
    with handler(lambda *_: q.put("from the handler")):
        sender = signal_when_asleep()
        assert q.get() == "from the handler"
        sender.get()


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
def test_handler_that_makes_room(ours):
    q = ours.Queue(1)
    q.put("old")
    seen = []
    with handler(lambda *_: seen.append(q.get())):
        sender = signal_when_asleep()
        q.put("new")
        sender.get()
    assert seen == ["old"]
    assert q.get() == "new"


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
def test_handler_that_waits_too(ours):
    """A wait inside a wait, on the same queue."""
    q = ours.Queue()
    seen = []

    def get_inside(*_):
        seen.append(q.get())

    main = threading.main_thread()
    with handler(get_inside):
        sender = signal_when_asleep()
        putter = Task(lambda: (sender.get(), wait_until_asleep(main), q.put("inner"),
                               wait_until(lambda: seen), q.put("outer")))  # fmt: skip
        assert q.get() == "outer"
        putter.get()
    assert seen == ["inner"]


@pytest.mark.parametrize("kind", ["Queue", "SimpleQueue"])
def test_many_signals(ours, kind):
    """Handlers that use the queue while its own thread is at any point of put and get."""
    q, inner = getattr(ours, kind)(), getattr(ours, kind)()
    count = [0]

    def use(*_):
        count[0] += 1  # first: it may be interrupted by itself
        inner.put("inner")
        assert inner.get() == "inner"
        q.put("extra")

    with handler(use, signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        try:
            found, number = [], 0
            until = time.monotonic() + 1
            while time.monotonic() < until:
                q.put(number)
                number += 1
                found.append(q.get())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        while not q.empty():
            found.append(q.get())
    assert count[0] > 10
    assert [thing for thing in found if thing != "extra"] == list(range(number))
    assert found.count("extra") == count[0]


@pytest.mark.skipif(not OURS, reason="the stdlib sleeps elsewhere")
def test_a_wait_goes_on_after_a_handler(ours):
    q = ours.Queue()
    seen = []
    import queue

    with handler(lambda *_: seen.append(1), signal.SIGALRM):
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        try:
            began = time.monotonic()
            with pytest.raises(queue.Empty):
                q.get(timeout=0.32)
            took = time.monotonic() - began
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    assert took > 0.3
    assert seen  # of 6: on a busy machine they come together
