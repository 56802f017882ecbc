"""Queue(max_bytes=...): the pickles in the queue have so many bytes at most."""

import queue
import threading

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end
from sync_helpers import Child, Task, handler, signal_when_asleep, wait_until_asleep

pytestmark = pytest.mark.skipif(not OURS, reason="not in the stdlib")

queues = pytest.importorskip("mproc_ext.queues")

SIZE = 100  # of a pickle of bytes, with its tag and its length
HUNDRED = b"x" * 98
LARGE = b"x" * 299_990  # lies in a block


@pytest.fixture(params=["Queue", "JoinableQueue"])
def make(request, ours):
    return getattr(ours, request.param)


def used(q):
    return q.stats()["bytes"]


def test_exact(make):
    q = make(max_bytes=3 * SIZE)
    assert q.stats()["max_bytes"] == 3 * SIZE
    for number in range(3):
        assert not q.full()
        assert used(q) == number * SIZE
        q.put(HUNDRED)
    assert q.full()
    for put in (
        lambda: q.put_nowait(b""),
        lambda: q.put(b"", False),
        lambda: q.put(b"", True, 0.01),
        lambda: q.put(b"", timeout=0),
        lambda: q.put_many([b""], timeout=0.01),
    ):
        with pytest.raises(queue.Full):
            put()
    assert used(q) == 3 * SIZE
    assert q.qsize() == 3
    assert q.get() == HUNDRED
    q.put_nowait(HUNDRED)
    for _ in range(3):
        q.get()
    assert used(q) == 0


@pytest.mark.parametrize("limit", [0, -1, -(10**30)])
def test_no_limit(make, limit):
    q = make(2, max_bytes=limit)
    q.put(LARGE)
    assert q.stats()["max_bytes"] is None
    assert used(q) is None
    q.put(LARGE)
    assert q.full()


def test_both_limits(make):
    q = make(2, max_bytes=3 * SIZE)
    q.put(1)
    q.put(2)
    assert q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    assert [q.get(), q.get()] == [1, 2]
    q.put(b"x" * 250)
    assert not q.full()
    with pytest.raises(queue.Full):
        q.put_nowait(HUNDRED)


def test_large_messages(make):
    """They count for what they have, not for the memory that they take."""
    q = make(max_bytes=700_000)
    q.put(LARGE)
    q.put([LARGE])
    assert 599_990 < used(q) < 600_100
    with pytest.raises(queue.Full):
        q.put(LARGE, timeout=0.01)
    assert q.get() == LARGE
    q.put(LARGE, timeout=0.01)
    assert q.get() == [LARGE]
    assert q.get() == LARGE
    assert used(q) == 0


@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("size", [1001, 70_000, 5_000_000])
def test_too_large_for_the_queue(make, block, size):
    """It could wait for ever; and what is in the queue stays."""
    q = make(max_bytes=1000)
    q.put("before")
    with pytest.raises(ValueError, match="bytes, the queue has max_bytes=1000") as info:
        q.put(b"x" * size, block)
    assert size < int(str(info.value).split()[3]) < size + 20
    with pytest.raises(ValueError, match="the queue has max_bytes=1000"):
        q.put_many(["second", b"x" * size, "never"])
    assert q.get_many() == ["before", "second"]
    q.put("after")
    assert q.get() == "after"
    assert used(q) == 0


def test_waits_for_room(make):
    q = make(max_bytes=10 * SIZE)
    for _ in range(10):
        q.put(HUNDRED)
    large = Task(q.put, b"x" * 490)
    wait_until_asleep(large)
    small = Task(q.put, "s")
    wait_until_asleep(small)
    q.get()
    small.get()
    for _ in range(5):
        q.get()
    large.get()
    assert q.qsize() == 6


def test_put_many_in_parts(make):
    q = make(max_bytes=3 * SIZE)
    with pytest.raises(queue.Full) as info:
        q.put_many([HUNDRED] * 5, timeout=0.01)
    assert info.value.args == (3,)
    task = Task(q.put_many, [HUNDRED] * 20)
    assert [q.get(timeout=LIMIT) for _ in range(23)] == [HUNDRED] * 23
    task.get()
    assert used(q) == 0


def test_unpicklable_takes_nothing(make):
    q = make(max_bytes=SIZE)
    q._on_queue_feeder_error = lambda error, obj: None
    q.put(lambda: None)
    assert used(q) == 0
    q.put(queue_targets.Poison(ValueError, "bad"))
    with pytest.raises(ValueError, match="bad"):
        q.get()
    assert used(q) == 0


def test_shutdown_wakes(make):
    q = make(max_bytes=SIZE)
    q.put(HUNDRED)
    tasks = [Task(q.put, HUNDRED), Task(q.put, HUNDRED, True, LIMIT)]
    for task in tasks:
        wait_until_asleep(task)
    q.shutdown()
    for task in tasks:
        with pytest.raises(queues.ShutDown):
            task.get()
    q.shutdown(immediate=True)
    assert used(q) == 0


def test_handler_that_makes_room(make):
    q = make(max_bytes=SIZE)
    q.put(HUNDRED)
    with handler(lambda *_: q.get()):
        sender = signal_when_asleep()
        q.put(HUNDRED)
        sender.get()
    assert q.qsize() == 1


def test_threads(make):
    q = make(max_bytes=5 * SIZE)
    sizes = [0, 10, 98, 400]

    def put(seed):
        for number in range(500):
            q.put(bytes(sizes[(seed + number) % 4]))

    threads = [threading.Thread(target=put, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    total = 0
    for _ in range(2000):
        assert used(q) <= 5 * SIZE
        total += len(q.get(timeout=LIMIT))
    for thread in threads:
        thread.join()
    assert total == 500 * sum(sizes)
    assert used(q) == 0


def test_in_children(our_ctx, kind):
    """The limit goes with the queue, and what the dead had put or waited for is right."""
    if kind == "SimpleQueue":
        pytest.skip("has no limit")
    q = getattr(our_ctx, kind)(max_bytes=SIZE)
    child = Child(our_ctx, queue_targets.put_when_told, q)
    child.send(HUNDRED)
    assert q.get(timeout=LIMIT) == HUNDRED
    child.send(HUNDRED)
    child.send(HUNDRED)
    wait_until_asleep(child)
    assert q.stats()["max_bytes"] == SIZE
    assert used(q) == SIZE
    child.kill()
    assert q.get() == HUNDRED
    assert used(q) == 0
    q.put(HUNDRED, timeout=0)
    end(q)


@pytest.mark.parametrize("wrong", ["5", 1.5, None])
def test_no_number(make, wrong):
    with pytest.raises(TypeError):
        make(max_bytes=wrong)


def test_beyond_all_numbers(make):
    with pytest.raises(OverflowError):
        make(max_bytes=2**63)
    assert make(max_bytes=2**63 - 1).stats()["max_bytes"] == 2**63 - 1


def test_by_keyword_only(make):
    with pytest.raises(TypeError):
        make(1, 2)


def test_a_subclass_that_is_the_stdlibs(ours):
    class Theirs(queues.Queue):
        def _feed(self, *args):
            super()._feed(*args)

    with pytest.raises(NotImplementedError, match="max_bytes"):
        Theirs(max_bytes=5, ctx=ours)
    Theirs(max_bytes=0, ctx=ours).close()
