"""What the stdlib's queues have not: batches, shutdown, iteration, figures."""

import contextlib
import queue
import random
import signal

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, stderr
from sync_helpers import (
    Child,
    Task,
    handler,
    signal_when_asleep,
    wait_until,
    wait_until_asleep,
)

from mproc_ext import queues

pytestmark = pytest.mark.skipif(not OURS, reason="the stdlib's queues")


@pytest.fixture(params=["Queue", "JoinableQueue"])
def q(request, ours):
    return getattr(ours, request.param)()


# ---- Batches ---------------------------------------------------------------------------------


def test_many(q):
    assert q.put_many([]) is None
    assert q.put_many(iter(range(10))) is None
    assert q.qsize() == 10
    assert q.get_many(3) == [0, 1, 2]
    assert q.get_many(max=100) == [3, 4, 5, 6, 7, 8, 9]
    q.put_many("abc")
    assert q.get_many() == ["a", "b", "c"]
    q.put_many([b"x" * 100_000] * 3)
    assert [len(thing) for thing in q.get_many()] == [100_000] * 3


def test_get_many_from_empty(q):
    with pytest.raises(queue.Empty):
        q.get_many(block=False)
    with pytest.raises(queue.Empty):
        q.get_many(5, timeout=0.01)
    task = Task(q.get_many, 5)
    wait_until_asleep(task)
    q.put(1)
    assert task.get() == [1]


@pytest.mark.parametrize("most", [0, -1])
def test_get_none(q, most):
    with pytest.raises(ValueError, match="max must be positive"):
        q.get_many(most)


@pytest.mark.parametrize("most", ["1", 1.0, [], object()])
def test_get_many_of_no_number(q, most):
    with pytest.raises(TypeError):
        q.get_many(most)
    assert q.empty()


def test_get_as_many_as_one_can(q):
    q.put_many(range(5))
    assert q.get_many(10**30) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("arguments", [{"block": False}, {"timeout": 0.01}, {"timeout": 0}])
def test_put_many_into_full(ours, arguments):
    q = ours.Queue(3)
    with pytest.raises(queue.Full) as info:
        q.put_many(range(5), **arguments)
    assert info.value.args == (3,)
    with pytest.raises(queue.Full) as info:
        q.put_many(range(5), **arguments)
    assert info.value.args == (0,)
    assert q.get_many() == [0, 1, 2]


def test_put_many_waits(ours):
    q = ours.Queue(2)
    task = Task(q.put_many, range(100))
    found = []
    while len(found) < 100:
        found += q.get_many(timeout=LIMIT)
    assert found == list(range(100))
    task.get()


def test_put_many_of_what_raises(q):
    def objects():
        yield 1
        yield 2
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        q.put_many(objects())
    assert q.get_many() == [1, 2]
    with pytest.raises(TypeError):
        q.put_many(5)


def test_put_many_with_something_unpicklable(q):
    with stderr() as text:
        q.put_many([1, lambda: None, 2])
    assert text.getvalue().startswith("Traceback")
    assert "test_put_many_with_something_unpicklable" in text.getvalue()
    assert q.get_many() == [1, 2]


def test_put_many_of_the_queue_itself(q):
    """A generator that uses the queue in the middle of it."""

    def objects():
        for number in range(3):
            q.put(("inside", number))
            yield number

    q.put_many(objects())
    assert q.get_many() == [("inside", 0), 0, ("inside", 1), 1, ("inside", 2), 2]


def test_many_of_all_kinds(q):
    """Those that go several at once, and between them those that go alone: in their order."""
    large = [bytes(9000), "x" * 100_000, [list(range(5000))], b"y" * 8190]
    small = [1, "two", 3.0, None, (4, "four"), {"five": 5}, 2**100, b"", "", []]
    things = [*small, *large, frozenset([6]), *small * 30, *large, *[frozenset([7])] * 3, *small]
    for iterable in (things, tuple(things), iter(things)):
        q.put_many(iterable)
        found = []
        while len(found) < len(things):
            found += q.get_many(7 if len(found) < 100 else None)
        assert found == things
        assert q.qsize() == 0
    q.put_many(range(1000))
    assert [q.get() for _ in range(3)] == [0, 1, 2]
    assert q.get_many(1) == [3]
    assert q.get_many(100) == list(range(4, 104))
    assert q.get_many() == list(range(104, 1000))


def test_many_that_make_it_grow(q):
    count = 200_000
    q.put_many(range(count))
    assert q.qsize() == count
    assert q.get_many() == list(range(count))


class Nested:
    """What puts something itself when it is pickled."""

    def __init__(self, q, thing):
        self.put_inside = lambda: q.put(thing)

    def __reduce__(self):
        self.put_inside()
        return str, ("outside",)


def test_put_many_of_what_puts_something_itself(q):
    q.put_many([1, 2, Nested(q, "inside"), 3])
    assert q.get_many() == [1, 2, "inside", "outside", 3]


@pytest.mark.parametrize("things", [range(10), [*range(5), {6}, *range(6, 10)]])
def test_put_many_with_little_room(ours, things):
    q = ours.Queue(4)
    q.put_many("ab")
    with pytest.raises(queue.Full) as info:
        q.put_many(things, block=False)
    assert info.value.args == (2,)
    assert q.get_many() == ["a", "b", 0, 1]
    task = Task(q.put_many, things)
    assert [q.get(timeout=LIMIT) for _ in range(10)] == list(things)
    task.get()


def test_put_many_after_shutdown(q):
    q.put_many([1, 2])
    q.shutdown()
    with pytest.raises(queues.ShutDown):
        q.put_many([3, 4])
    assert q.get_many() == [1, 2]
    with pytest.raises(queues.ShutDown):
        q.get_many()


@pytest.mark.parametrize("get_next", ["get", "get_nowait", "get_many"])
def test_get_many_with_what_cannot_be_unpickled(q, get_next):
    """What came before is not lost with it: this process gets it next."""
    q.put_many([1, 2, queue_targets.Poison(KeyError, "bad"), 3])
    with pytest.raises(KeyError, match="bad"):
        q.get_many()
    assert q.qsize() == 3  # and none of those that it had taken is missing
    found = getattr(q, get_next)()
    assert found == [1, 2, 3] if get_next == "get_many" else found == 1
    assert get_next == "get_many" or q.get_many() == [2, 3]
    q.put(queue_targets.Poison(KeyError, "alone"))
    with pytest.raises(KeyError, match="alone"):
        q.get_many()
    with pytest.raises(queue.Empty):
        q.get_nowait()


class Alarm(BaseException):
    pass


@pytest.mark.parametrize("kind", [Alarm, TimeoutError])
def test_a_signal_handler_that_raises_in_get_many(q, kind):
    """It does so at once, and nothing is lost but what was just unpickled."""

    def ring(*_):
        raise kind

    count = 2000
    objects = [n if n % 3 else queue_targets.Slow(n) for n in range(count)]
    objects[count // 2] = queue_targets.Rings(count // 2)  # so it has taken some, and leaves some
    q.put_many(objects)
    with handler(ring, signal.SIGALRM), pytest.raises(kind):
        q.get_many()
    stats = q.stats()
    left = stats["puts"] - stats["gets"]  # what others could get
    found = []
    with contextlib.suppress(queue.Empty):
        while True:
            found += q.get_many(random.choice([1, 5, None]), block=False)
    numbers = [getattr(one, "number", one) for one in found]
    assert numbers == sorted(set(numbers))
    assert len(numbers) >= count - 1
    assert len(numbers) > left > 0


def test_what_get_many_had_is_no_childs(q, ours):
    q.put_many([1, queue_targets.Poison(KeyError, "bad"), 2])
    with pytest.raises(KeyError):
        q.get_many()
    child = Child(ours, queue_targets.get_and_send, q, 1)
    child.expect([2])
    child.join()
    assert q.get_many() == [1]


def test_many_after_close(q):
    q.close()
    with pytest.raises(ValueError, match="is closed"):
        q.put_many([1])
    with pytest.raises(ValueError, match="is closed"):
        q.get_many(1)


def test_many_arguments(q):
    q.put_many(iterable=[1], block=True, timeout=None)
    assert q.get_many(max=None, block=True, timeout=1) == [1]
    for bad in (
        lambda: q.put_many(),
        lambda: q.put_many([], 1, 2, 3),
        lambda: q.get_many(1, 2, 3, 4),
    ):
        with pytest.raises(TypeError):
            bad()
    with pytest.raises(TypeError):
        q.put_many([1], timeout="x")


def test_many_between_processes(our_ctx):
    q, results = our_ctx.JoinableQueue(), our_ctx.Queue()
    workers = [our_ctx.Process(target=queue_targets.echo_many, args=(q, results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    q.put_many(range(2000))
    found = []
    while len(found) < 2000:
        found += results.get_many(timeout=LIMIT)
    assert sorted(found) == list(range(2000))
    q.join()
    q.shutdown()
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0


def test_many_interrupted(ours):
    q = ours.Queue(1)

    def interrupt(*_):
        raise InterruptedError("by a signal")

    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(InterruptedError):
            q.put_many(range(3))
        sender.get()
    assert q.get_many() == [0]


# ---- Shutdown --------------------------------------------------------------------------------


def test_shutdown(q):
    q.put_many([1, 2])
    q.shutdown()
    for put in (q.put, q.put_nowait):
        with pytest.raises(queues.ShutDown):
            put(3)
    with pytest.raises(queues.ShutDown):
        q.put_many([3])
    assert q.get() == 1
    assert q.get_many(5) == [2]
    for get in (q.get, q.get_nowait, q.get_many):
        with pytest.raises(queues.ShutDown):
            get()
    with pytest.raises(queues.ShutDown):
        q.get(timeout=0.01)
    q.shutdown()
    assert q.empty()


def test_shutdown_immediate(q):
    q.put_many([1, b"x" * 200_000, queue_targets.Poison()])
    q.shutdown(immediate=True)
    assert q.qsize() == 0
    with pytest.raises(queues.ShutDown):
        q.get()
    if hasattr(q, "join"):
        q.join()


def test_shutdown_immediate_of_what_was_taken(ours):
    """It is in the queue still, as qsize() says."""
    q = ours.JoinableQueue()
    q.put_many([1, 2, queue_targets.Poison(), 3])
    with pytest.raises(ValueError):
        q.get_many()
    q.task_done()
    with q._rlock:
        assert q._reader.poll()
    assert q.qsize() == 3
    q.shutdown(immediate=True)
    assert q.qsize() == 0
    with pytest.raises(queues.ShutDown):
        q.get()
    Task(q.join).get()


def test_shutdown_then_join(ours):
    q = ours.JoinableQueue()
    q.put_many([1, 2, 3])
    assert q.get() == 1
    task = Task(q.join)
    wait_until_asleep(task)
    q.shutdown(True)
    wait_until_asleep(task)
    q.task_done()
    task.get()


def test_shutdown_wakes(ours):
    q, full = ours.Queue(), ours.Queue(1)
    full.put(0)
    tasks = [
        Task(q.get),
        Task(q.get, True, LIMIT),
        Task(full.put, 1),
        Task(full.put, 1, True, LIMIT),
    ]
    for task in tasks:
        wait_until_asleep(task)
    q.shutdown()
    full.shutdown()
    for task in tasks:
        with pytest.raises(queues.ShutDown):
            task.get()
    assert full.get() == 0


def test_shutdown_in_another_process(our_ctx):
    q = our_ctx.Queue()
    child = Child(our_ctx, queue_targets.iterate, q)
    q.put_many(["a", "b"])
    q.shutdown()
    child.expect(["a", "b"])
    child.join()


def test_shutdown_is_that_of_queue(ours):
    if hasattr(queue, "ShutDown"):
        assert queues.ShutDown is queue.ShutDown
    assert issubclass(queues.ShutDown, Exception)


def test_shutdown_of_a_watched_queue(ours):
    from multiprocessing.connection import wait

    q = ours.Queue()
    assert wait([q._reader], 0) == []
    task = Task(wait, [q._reader], LIMIT)
    task.join(0.1)
    q.shutdown()
    assert task.get() == [q._reader]
    with pytest.raises(queues.ShutDown):
        q.get()


def test_a_thread_that_waits_gets_what_another_one_had_taken(ours):
    """And then failed to get."""
    q = ours.Queue()
    found = []

    def get_all():
        while "end" not in found:
            with contextlib.suppress(ValueError):
                found.append(q.get())

    task = Task(get_all)
    for number in range(20):
        wait_until_asleep(task)
        q.put_many([number, queue_targets.Poison()])
        with contextlib.suppress(ValueError, queue.Empty):
            found += q.get_many(timeout=0.01)
        wait_until(q.empty)
    q.put("end")
    task.get()
    assert found == [*range(20), "end"]


# ---- Iteration, figures ----------------------------------------------------------------------


def test_iteration(q):
    q.put_many(range(5))
    q.shutdown()
    assert list(q) == [0, 1, 2, 3, 4]
    assert list(q) == []


def test_stats(ours):
    q = ours.Queue(5)
    memory = q.stats()["memory"]
    rest = {"limit": 5, "bytes": None, "max_bytes": None, "deaths": 0}
    assert 0 < memory < 300_000
    assert q.stats() == {"puts": 0, "gets": 0, "size": 0, "memory": memory, **rest}
    q.put_many(range(3))
    q.get()
    assert q.stats() == {"puts": 3, "gets": 1, "size": 2, "memory": memory, **rest}
    q.put(b"x" * 1_000_000)
    assert 1_000_000 <= q.stats()["memory"] - memory < 1_100_000
    for _ in range(3):
        q.get()
    assert q.stats()["memory"] == memory
    q.close()
    assert q.stats()["size"] == 0
    assert ours.Queue().stats()["limit"] is None
    end(q)
