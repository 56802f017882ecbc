"""put and get with all their arguments, good and bad; sizes and limits."""

import decimal
import fractions
import queue
import resource
import sys
import threading
import time

import pytest
from queue_helpers import LIMIT, OURS, end, settle
from sync_helpers import Task, asleep_in, outcome, wait_until_asleep

BLOCK_TIMEOUT = [
    (block, timeout)
    for block in (True, False, 1, 0, None, "yes", "", [], 2.5)
    for timeout in (None, 0, 0.01, -1, -0.5, True)
]
# What is no time, or too long a one; of those that the stdlib would wait for, none.
NO_TIMES = ("1", [], object, 1j, b"", float("nan"), -(10**400), 10**400, float("-inf"))


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
@pytest.mark.parametrize(("block", "timeout"), BLOCK_TIMEOUT)
def test_get_from_empty(both, kind, block, timeout):
    if block and timeout is None:
        pytest.skip("waits for ever")
    theirs, ours = (outcome(getattr(mp, kind)().get, block, timeout) for mp in both)
    assert ours == theirs


@pytest.mark.parametrize(("block", "timeout"), BLOCK_TIMEOUT)
def test_put_into_full(both, block, timeout):
    if block and timeout is None:
        pytest.skip("waits for ever")
    results = []
    for mp in both:
        q = mp.Queue(1)
        q.put(1)
        results.append(outcome(q.put, 2, block, timeout))
        assert q.get(timeout=LIMIT) == 1
        end(q)
    assert results[0] == results[1]


@pytest.mark.parametrize(("block", "timeout"), BLOCK_TIMEOUT)
def test_where_there_is_no_need_to_wait(both, block, timeout):
    results = []
    for mp in both:
        q = mp.Queue()
        put = outcome(q.put, "it", block, timeout)
        if put[0] != "returns":
            q.put("it")
        settle(q)
        results.append((put, outcome(q.get, block, timeout), q.qsize()))
        end(q)
    if results[0][1][0] == "Empty":  # no time for it to look
        results = [result[:1] for result in results]
    assert results[0] == results[1]


@pytest.mark.parametrize("timeout", NO_TIMES, ids=repr)
@pytest.mark.parametrize("block", [True, False])
@pytest.mark.parametrize("is_full", [True, False])
def test_put_with_no_time(both, block, timeout, is_full):
    if is_full and block and timeout == -(10**400):
        pytest.skip("OverflowError in both, the stdlib's depends on the Python")
    results = []
    for mp in both:
        q = mp.Queue(1)
        if is_full:
            q.put(0)
        results.append(outcome(q.put, 1, block, timeout))
        end(q)
    assert results[0] == results[1]


@pytest.mark.parametrize("timeout", NO_TIMES, ids=repr)
@pytest.mark.parametrize("block", [True, False])
def test_get_with_no_time(both, block, timeout):
    theirs, ours = (outcome(mp.Queue().get, block, timeout) for mp in both)
    assert ours == theirs


@pytest.mark.parametrize("timeout", [decimal.Decimal("0.01"), fractions.Fraction(1, 100)], ids=repr)
@pytest.mark.parametrize("name", ["get", "put"])
def test_other_numbers(both, name, timeout):
    results = []
    for mp in both:
        q = mp.Queue(1)
        if name == "put":
            q.put(0)
        call = (q.put, 1) if name == "put" else (q.get,)
        results.append(outcome(*call, True, timeout))
        end(q)
    assert results[0] == results[1]


@pytest.mark.skipif(not OURS, reason="the stdlib's poll() takes at most 24 days")
@pytest.mark.parametrize("timeout", [1e7, 1e15, 2**62, 10**30])
def test_long_times(ours, timeout):
    """What the clock can count is waited for; more fails only where it would have to wait."""
    q = ours.Queue(1)
    q.put(1, timeout=timeout)
    assert q.get(timeout=timeout) == 1
    if timeout < 2**63:
        task = Task(q.get, True, timeout)
        wait_until_asleep(task)
        q.put(2)
        assert task.get() == 2
    else:
        with pytest.raises(OSError, match="Invalid argument"):
            q.get(timeout=timeout)


@pytest.mark.parametrize(
    ("kind", "method", "args", "named"),
    [
        (kind, method, args, named)
        for kind in ("Queue", "JoinableQueue", "SimpleQueue")
        for method, args, named in [
            ("put", (), {}),
            ("put", (1, True, None, 4), {}),
            ("put", (1,), {"item": 2}),
            ("put", (), {"item": 2}),
            ("put", (1,), {"obj": 2}),
            ("get", (True, None, 3), {}),
            ("get", (), {"wait": 1}),
            ("get", (True,), {"block": 2}),
            ("put_nowait", (), {}),
            ("put_nowait", (1, 2), {}),
            ("put_nowait", (), {"item": 1}),
        ]
        if kind != "SimpleQueue" or method == "put"
    ],
)
def test_wrong_arguments(both, kind, method, args, named):
    """As the stdlib says."""
    found = []
    for mp in both:
        q = getattr(mp, kind)()
        found.append(outcome(getattr(q, method), *args, **named))
        end(q)
    assert found[0] == found[1]
    assert found[0][0] == "TypeError"


def test_a_moment_where_there_is_no_time(mp):
    """A producer that tries again and again lets those run who make room."""
    q = mp.Queue(1)
    q.put("x")
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw
    for _ in range(50):
        with pytest.raises(queue.Full):
            q.put("y", timeout=0)
    # Not each time on a busy machine: the moment may be over before it begins.
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw - before > 10
    assert q.get(timeout=LIMIT) == "x"
    end(q)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (1, 2, 3, 4),
        ("obj", True, None, None),
    ],
)
def test_wrong_number_of_arguments(mp, arguments):
    q = mp.Queue()
    with pytest.raises(TypeError):
        q.put(*arguments)
    with pytest.raises(TypeError):
        q.get(1, 2, 3)
    with pytest.raises(TypeError):
        q.put_nowait()
    with pytest.raises(TypeError):
        q.get_nowait(1)
    with pytest.raises(TypeError):
        q.get(blocking=True)
    with pytest.raises(TypeError):
        mp.SimpleQueue().put(1, 2)
    with pytest.raises(TypeError):
        mp.SimpleQueue().get(True)


def test_keywords(mp):
    q = mp.Queue(1)
    q.put(obj="it", block=False, timeout=0.1)
    with pytest.raises(queue.Full):
        q.put(timeout=0.01, block=True, obj="more")
    assert q.get(timeout=LIMIT, block=True) == "it"
    q.put_nowait(obj="nowait")
    settle(q)
    assert q.get(block=True) == "nowait"


def test_nowait(mp):
    q = mp.Queue(2)
    with pytest.raises(queue.Empty):
        q.get_nowait()
    q.put_nowait("a")
    q.put_nowait("b")
    with pytest.raises(queue.Full):
        q.put_nowait("c")
    settle(q, 2)
    assert [q.get(), q.get()] == ["a", "b"]
    with pytest.raises(queue.Empty):
        q.get_nowait()
    assert q.get.__name__ == "get"


def test_sizes(mp):
    q = mp.Queue(3)
    seen = []
    for number in range(3):
        seen.append((q.qsize(), q.empty(), q.full()))
        q.put(number)
        settle(q)
    seen.append((q.qsize(), q.empty(), q.full()))
    for _ in range(3):
        q.get()
        seen.append((q.qsize(), q.empty(), q.full()))
    assert seen == [
        (0, True, False),
        (1, False, False),
        (2, False, False),
        (3, False, True),
        (2, False, False),
        (1, False, False),
        (0, True, False),
    ]


def test_simple_empty(mp):
    q = mp.SimpleQueue()
    assert q.empty()
    q.put(0)
    assert not q.empty()
    assert q.get() == 0
    assert q.empty()
    assert not hasattr(q, "qsize")
    assert not hasattr(q, "put_nowait")


def sized(mp, size):
    q = mp.Queue(size)
    return q._maxsize, type(q._maxsize).__name__, q.full(), q.qsize(), q.empty()


@pytest.mark.parametrize(
    "size",
    [0, 1, -1, -(10**30), True, False, 2**31 - 1, 2**31, 2**63, 10**30, 1.0, 2.5, -1.5, "1", None,
     [], float("nan"), float("inf"), float("-inf"), decimal.Decimal(2), decimal.Decimal(-2)],
    ids=repr,
)  # fmt: skip
def test_maxsize(both, size):
    theirs, ours = (outcome(sized, mp, size) for mp in both)
    assert ours == theirs


def test_maxsize_is_an_index(both):
    class Index(int):
        pass

    class Odd:
        def __le__(self, other):
            return False

        def __index__(self):
            return 2

    for size in (Index(2), Odd()):
        results = []
        for mp in both:
            try:
                q = mp.Queue(size)
            except Exception as error:
                results.append((type(error).__name__, str(error)))
            else:
                q.put(1)
                results.append((outcome(q.put, 2, False), outcome(q.put, 3, False)))
                end(q)
        assert results[0] == results[1]


def test_limit_counts_all_processes(ctx):
    import queue_targets

    q = ctx.Queue(3)
    child = ctx.Process(target=queue_targets.put_all, args=(q, [1, 2]))
    child.start()
    for expected in (1, 2):
        assert q.get(timeout=LIMIT) == expected
    child.join()
    for number in range(3):
        q.put(number, timeout=LIMIT)
    with pytest.raises(queue.Full):
        q.put(3, block=False)
    assert [q.get(timeout=LIMIT) for _ in range(3)] == [0, 1, 2]


def test_put_waits_for_room(mp):
    q = mp.Queue(1)
    q.put("first")
    settle(q)
    task = Task(q.put, "second")
    wait_until_asleep(task)
    assert q.get() == "first"
    assert task.get() is None
    assert q.get(timeout=LIMIT) == "second"
    end(q)


def test_get_waits_for_something(mp, kind):
    q = getattr(mp, kind)()
    task = Task(q.get)
    time.sleep(0.05)  # the stdlib sleeps in a read, ours on a futex
    assert task.is_alive()
    q.put("it")
    assert task.get() == "it"
    end(q)


def test_timeouts_take_their_time(mp):
    q = mp.Queue(1)
    began = time.monotonic()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.12)
    assert time.monotonic() - began >= 0.115
    q.put(1)
    began = time.monotonic()
    with pytest.raises(queue.Full):
        q.put(2, timeout=0.12)
    assert time.monotonic() - began >= 0.115
    end(q)


def generic(queues):
    if sys.version_info < (3, 12) and not queues.__name__.startswith("mproc_ext"):
        pytest.skip("the stdlib's are none yet")
    return queues


def test_generic(queues):
    generic(queues)
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        cls = getattr(queues, name)
        alias = cls[int]
        assert alias.__origin__ is cls
        assert alias.__args__ == (int,)


def test_generic_makes_a_queue(package, queues):
    ctx = package.get_context("fork")
    q = generic(queues).Queue[int](ctx=ctx)
    q.put(3)
    assert q.get(timeout=LIMIT) == 3


def test_made_again(queues, package):
    """__init__ twice: another queue, and who waits in the former goes on to do so."""
    ctx = package.get_context("fork")
    q = queues.Queue(ctx=ctx)
    q.put("lost")
    settle(q)
    q.__init__(1, ctx=ctx)
    assert q.empty()
    q.put("kept")
    assert q.get(timeout=LIMIT) == "kept"
    q.put("kept")
    with pytest.raises(queue.Full):
        q.put("more", block=False)
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib's")
def test_made_again_under_a_waiter(ours):
    q = ours.Queue()
    task = asleep_in(q.get, True)
    for _ in range(20):
        q.__init__(ctx=ours)
    with pytest.raises(queue.Empty):
        task.get()


def test_not_made(queues):
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        cls = getattr(queues, name)
        q = cls.__new__(cls)
        for call in (lambda q=q: q.put(1), lambda q=q: q.get(), q.empty):
            with pytest.raises(AttributeError):
                call()
        del q


def test_attributes_that_programs_look_at(mp):
    q = mp.JoinableQueue(5)
    assert len(q._buffer) == 0
    q.put(1)
    settle(q)
    assert q._poll()
    assert not q._closed
    assert q._sem._semlock._get_value() == 4
    assert q._unfinished_tasks.get_value() == 1
    with q._rlock, q._wlock:
        pass
    data = q._recv_bytes()
    assert type(data) is bytes
    q._send_bytes(data)
    assert q.get() == 1
    with pytest.raises(AttributeError, match="has no attribute '_missing'"):
        _ = q._missing
    end(q)
    simple = mp.SimpleQueue()
    assert simple._poll() is False
    with simple._rlock, simple._wlock:
        pass
    with pytest.raises(AttributeError):
        _ = simple._sem


def test_many_at_once_in_threads(mp):
    """Attributes that are made when asked for are the same for all threads."""
    for _ in range(20):
        q = mp.Queue()
        start = threading.Barrier(4)

        def look(q=q, start=start):
            start.wait()
            return q._reader, q._writer, q._rlock

        found = [task.get() for task in [Task(look) for _ in range(4)]]
        for things in zip(*found, strict=True):
            assert len({id(thing) for thing in things}) == 1
        found[0][1].send(5)
        assert found[1][0].recv() == 5
