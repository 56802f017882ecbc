"""Processes that are killed: no message torn, none twice, nobody stranded."""

import collections
import itertools
import os
import queue
import random
import signal
import threading
import time

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, pattern
from sync_helpers import Child, Task, wait_until, wait_until_asleep

import mproc_ext

pytestmark = pytest.mark.skipif(not OURS, reason="the stdlib's may hang")


@pytest.mark.parametrize("what", ["get", "recv", "poll"])
def test_a_killed_reader_locks_nobody_out(our_ctx, kind, what):
    q = getattr(our_ctx, kind)()
    children = [Child(our_ctx, queue_targets.wait_in, q, what) for _ in range(3)]
    for child in children:
        child.expect("waits")
        wait_until_asleep(child)
    for child in children[:2]:
        child.kill()
    q.put("it")
    if what == "poll":
        children[2].expect(True)
        assert q.get() == "it"
    else:
        children[2].expect("it")
    children[2].join()
    q.put("more")
    assert q.get() == "more"


def test_a_killed_writer_that_waits_for_room(our_ctx):
    q = our_ctx.Queue(1)
    q.put(0)
    children = [Child(our_ctx, queue_targets.wait_in, q, "put") for _ in range(3)]
    for child in children:
        child.expect("waits")
        wait_until_asleep(child)
    for child in children[:2]:
        child.kill()
    assert q.get() == 0
    assert q.get(timeout=LIMIT) == children[2].pid
    children[2].join()
    assert q.empty()


def test_killed_while_it_joins(our_ctx):
    q = our_ctx.JoinableQueue()
    q.put(1)
    child = Child(our_ctx, queue_targets.wait_in, q, "join")
    child.expect("waits")
    wait_until_asleep(child)
    task = Task(q.join)
    wait_until_asleep(task)
    child.kill()
    q.task_done()
    task.get()


def test_what_the_dead_had_put_stays(our_ctx, kind):
    q = getattr(our_ctx, kind)()
    child = Child(our_ctx, queue_targets.put_when_told, q)
    for size in (1, 100_000):
        child.send(b"x" * size)
        wait_until(lambda: not q.empty())
        if size == 1:
            assert q.get() == b"x"
    child.kill()
    assert q.get() == b"x" * 100_000


def owned():
    """Bytes that anybody owns, as far as is known once the dead have been looked for."""
    return mproc_ext._core.heap_stats()["owned"]


def test_a_child_that_executes_another_program_holds_no_memory(ours):
    before = owned()
    q = ours.Queue()
    q.put(b"x" * 10_000_000)
    pid = os.fork()
    if pid == 0:
        os.execv("/bin/sleep", ["sleep", "1000"])
    try:
        del q
        wait_until(lambda: owned() == before)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_children_that_are_killed_at_once_hold_no_memory(ours):
    """os.fork tells the package of no child: many of these die before they are members."""
    before = owned()
    q = ours.Queue()
    q.put(b"x" * 10_000_000)
    for _ in range(100):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    del q
    assert owned() == before


def storm(ctx, limit, seconds, sizes, pause=0.02, max_bytes=0):
    """Producers and consumers are killed at random. Each message tells who sent it, its number and
    its length."""
    rng = random.Random(limit + 7)
    q, results = ctx.Queue(limit, max_bytes=max_bytes), ctx.Queue()
    made = {"producer": 0, "consumer": 0}

    def start(role):
        made[role] += 1
        target = getattr(queue_targets, f"storm_{role}")
        process = ctx.Process(target=target, args=(q, results, made[role], sizes), daemon=True)
        process.start()
        return role, process

    crew = [start(role) for role in ("producer", "consumer") * 2]
    seen, killed, read = set(), 0, []
    until = time.monotonic() + seconds

    def collect(timeout):
        try:
            read.extend(results.get_many(timeout=timeout))
        except Exception as error:
            assert type(error).__name__ == "Empty"
            return False
        return True

    while time.monotonic() < until:
        collect(rng.random() * pause)
        at = rng.randrange(len(crew))
        role, process = crew[at]
        process.kill()
        process.join()
        killed += role == "consumer"
        crew[at] = start(role)
    for role, process in crew:
        if role == "producer":
            process.kill()
            process.join()
    consumers = [process for role, process in crew if role == "consumer"]
    while collect(2.0):
        pass
    assert q.empty()
    for process in consumers:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    last = {}
    for who, number, ok in read:
        assert ok, (who, number)
        assert (who, number) not in seen
        seen.add((who, number))
        last[who] = max(last.get(who, 0), number)
    # A producer's numbers have no gaps but for what died with a consumer.
    count = collections.Counter(who for who, _ in seen)
    lost = sum(last[who] - count[who] for who in last)
    assert lost <= killed, (lost, killed)
    assert len(read) > 20
    assert q.stats()["bytes"] == (0 if max_bytes else None)
    return len(read), lost, killed


@pytest.mark.parametrize("limit", [0, 3])
@pytest.mark.parametrize("sizes", [(0, 3000), (0, 400_000)])
def test_storm(ours, limit, sizes):
    storm(ours, limit, 4, sizes)


@pytest.mark.parametrize("sizes", [(0, 3000), (0, 400_000)])
def test_storm_with_a_limit_of_bytes(ours, sizes):
    """No byte stays counted that a dead process had put, or taken."""
    storm(ours, 0, 4, sizes, max_bytes=sizes[1] + 1000)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_storm_of_started_processes(our_ctx, method):
    storm(our_ctx, 0, 10, (0, 100_000), pause=1)


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def stop_child(child, is_in_the_middle, goes_on):
    """Stops a child again and again, until that happens in the middle of what it does for ever."""
    until = time.monotonic() + 2 * LIMIT
    while True:
        time.sleep(random.random() / 500)
        os.kill(child.pid, signal.SIGSTOP)
        wait_until(lambda: state_of(child.pid) == "T")
        if is_in_the_middle():
            return
        os.kill(child.pid, signal.SIGCONT)
        goes_on()
        assert time.monotonic() < until


def is_full(q, message):
    try:
        q.put_nowait(message)
    except queue.Full:
        return True
    return False


def dies_in_the_middle(ours, what):
    """How many deaths the queue has seen then.

    The child is stopped again and again until it happens to be copying a message under the lock;
    or to have that of the heap, which the first messages need: no queue has seen that.
    """
    q = ours.Queue()
    child = Child(ours, queue_targets.put_and_get_for_ever, q, b"x" * 65_000)
    child.expect("begins")
    taken = []

    def is_in_the_middle():
        began = time.monotonic()
        try:
            if what == "put":
                q.put_nowait("x")
            else:
                taken.append(q.get_nowait())
        except (queue.Full, queue.Empty):
            assert time.monotonic() - began < 0.5 * LIMIT
            return what == "put" or q.qsize() > 0
        return False

    def goes_on():
        if what == "put":
            q.get()  # else there would be more and more, for which it needs new memory
        q.put_many(taken)  # the child waits for it
        taken.clear()

    stop_child(child, is_in_the_middle, goes_on)
    with pytest.raises((queue.Full, queue.Empty)):
        q.put("x", timeout=0.1) if what == "put" else q.get(timeout=0.1)
    assert q.stats()["deaths"] == 0
    child.kill()
    q.put("after")
    assert "after" in q.get_many()
    deaths = q.stats()["deaths"]
    end(q)
    return deaths


@pytest.mark.parametrize("what", ["put", "get"])
def test_stopped_in_the_middle(ours, what):
    """Whoever does not want to wait does not: Full or Empty after about a second."""
    assert any(dies_in_the_middle(ours, what) == 1 for _ in range(3))


def test_stopped_in_the_middle_of_making_a_block(ours):
    """That has nothing to do with this queue; but all queues have their blocks from one heap."""
    other, q = ours.Queue(), ours.Queue()
    child = Child(ours, queue_targets.put_and_get_for_ever, other, b"x" * 70_000)
    child.expect("begins")
    stop_child(child, lambda: is_full(q, b"x" * 70_000), q.get)
    began = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(b"x" * 70_000, timeout=0.1)
    assert time.monotonic() - began < 0.5 * LIMIT
    task = Task(q.put, b"y" * 70_000)
    assert task.is_alive()
    child.kill()
    task.get()
    assert q.get() == b"y" * 70_000
    end(q)


def test_threads_go_on_while_a_producer_is_stopped(ours):
    """Its mutex is waited for, to make _reader unreadable, but without the GIL."""
    q = ours.Queue()
    assert not q._reader.poll()
    q._reader.fileno()  # from now on it is looked at
    child = Child(ours, queue_targets.put_for_ever, q, b"x" * 65_000)
    child.expect("begins")
    stop_child(child, lambda: is_full(q, "x"), q.get_many)
    while q.qsize():
        q.get()
    beats, stop = itertools.count(), threading.Event()

    def beat():
        while not stop.wait(0.001):
            next(beats)

    task = Task(beat)
    began = time.monotonic()
    gone_on = 0
    while gone_on < 4:  # 1 is its own, 2 a switch of threads before or behind the wait
        before = next(beats)
        with pytest.raises(queue.Empty):
            q.get_nowait()  # waits for the mutex for 100 ms
        gone_on = next(beats) - before
        assert time.monotonic() - began < LIMIT
    stop.set()
    task.get()
    child.kill()
    end(q)


def test_a_stopped_consumer_is_waited_for_by_nobody(ours):
    """It sleeps in get: stopped, it has no lock."""
    q = ours.Queue()
    child = Child(ours, queue_targets.wait_in, q, "get")
    child.expect("waits")
    wait_until_asleep(child)
    os.kill(child.pid, signal.SIGSTOP)
    for number in range(100):
        q.put(number)
    assert [q.get(timeout=LIMIT) for _ in range(100)] == list(range(100))
    q.put(pattern(1, 10))
    os.kill(child.pid, signal.SIGCONT)
    child.expect(pattern(1, 10))
    child.join()
    end(q)
