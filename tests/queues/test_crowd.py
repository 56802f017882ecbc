"""Many at once, many messages, long ones; and what a queue takes of memory."""

import gc
import hashlib
import itertools
import pathlib
import threading

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, memory, pattern, stored
from sync_helpers import Task, run_program

SIZES = [0, 1, 7, 8, 100, 1023, 1024, 1025, 2047, 2048, 2049, 4096, 65_520, 65_535, 65_536, 65_537,
         131_072, 1_000_000, 5_000_000]  # fmt: skip


@pytest.mark.parametrize("form", ["bytes", "object", "send_bytes"])
def test_sizes(mp, form):
    q = mp.SimpleQueue()
    for number, size in enumerate(SIZES * 2):
        data = pattern(number, size)
        if form == "send_bytes":
            task = Task(q._writer.send_bytes, data)
            assert q._reader.recv_bytes() == data
        else:
            task = Task(q.put, data if form == "bytes" else {number: bytearray(data)})
            assert q.get() == (data if form == "bytes" else {number: data})
        task.get()


def test_64_megabytes(our_ctx):
    q, results = our_ctx.Queue(), our_ctx.SimpleQueue()
    child = our_ctx.Process(target=queue_targets.digest, args=(q, results))
    child.start()
    data = pattern(99, 64 << 20)
    for _ in range(2):
        q.put(data)
        assert results.get() == hashlib.sha256(data).digest()
    q.put(None)
    child.join(LIMIT)
    assert child.exitcode == 0
    end(q)


def test_order_of_each_producer(ctx, kind):
    q = getattr(ctx, kind)()
    producers = [
        ctx.Process(target=queue_targets.produce, args=(q, name, 2000)) for name in range(3)
    ]
    for producer in producers:
        producer.start()
    last = dict.fromkeys(range(3), -1)
    for _ in range(6000):
        name, number, data = q.get()
        assert number == last[name] + 1
        assert data == pattern(number, number % 300)
        last[name] = number
    for producer in producers:
        producer.join(LIMIT)
        assert producer.exitcode == 0
    end(q)


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_crowd(ctx, limit):
    """Processes with threads on both sides: each object comes once."""
    q, results = ctx.Queue(limit), ctx.SimpleQueue()
    producers = [ctx.Process(target=queue_targets.produce_in_threads, args=(q, name, 2, 300))
                 for name in range(2)]  # fmt: skip
    consumers = [ctx.Process(target=queue_targets.consume_in_threads, args=(q, results, 2))
                 for _ in range(2)]  # fmt: skip
    for process in producers + consumers:
        process.start()
    for process in producers:
        process.join(LIMIT)
        assert process.exitcode == 0
    for _ in range(4):
        q.put(None)
    found = [item for _ in range(4) for item in results.get()]
    for process in consumers:
        process.join(LIMIT)
    assert len(found) == 1200
    assert len(set(found)) == 1200
    assert q.empty()
    end(q)


def test_threads(mp, kind):
    q = getattr(mp, kind)()

    def put(name):
        for number in range(2000):
            q.put((name, number))

    def get():
        return [q.get() for _ in range(2000)]

    putters = [Task(put, name) for name in range(4)]
    getters = [Task(get) for _ in range(4)]
    found = [task.get() for task in getters]
    for task in putters:
        task.get()
    assert sorted(itertools.chain(*found)) == [
        (name, number) for name in range(4) for number in range(2000)
    ]
    for part in found:
        for name in range(4):
            numbers = [number for who, number in part if who == name]
            assert numbers == sorted(numbers)
    end(q)


def test_looking_on(mp):
    """Who only looks sees nothing impossible."""
    q = mp.Queue(5)
    stop = threading.Event()

    def look():
        seen = set()
        while not stop.is_set():
            seen.add(q.qsize())
            q.empty(), q.full()
        return seen

    looker = Task(look)
    putter = Task(lambda: [q.put(number) for number in range(3000)])
    assert [q.get() for _ in range(3000)] == list(range(3000))
    putter.get()
    stop.set()
    assert looker.get() <= set(range(6))
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib keeps them in the producer")
def test_a_million_before_the_first_get(ours):
    q = ours.Queue()
    data = b"x" * 100
    for _ in range(1_000_000):
        q.put(data)
    assert q.qsize() == 1_000_000
    assert stored() > 100_000_000
    for _ in range(1_000_000):
        assert q.get() == data
    assert q.empty()
    q.put(1)
    assert q.get() == 1


@pytest.mark.skipif(not OURS, reason="about ours")
def test_memory_of_a_drained_queue(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(DRAINED)
    assert int(run_program(program)) < 4_000_000


DRAINED = f"""
import sys
sys.path.append({str(pathlib.Path(__file__).parent)!r})
sys.path.append({str(pathlib.Path(__file__).parents[1] / "sync")!r})
from queue_helpers import stored
import mproc_ext
q = mproc_ext.get_context("fork").Queue()
for _ in range(200_000):
    q.put(b"x" * 100)
assert stored() > 20_000_000
for _ in range(200_000):
    q.get()
for _ in range(1000):
    q.put(1)
    q.get()
print(stored())
"""


@pytest.mark.skipif(not OURS, reason="about ours")
def test_memory_of_idle_queues(ours):
    first = ours.Queue()
    first.put(1)
    first.get()
    before = memory()
    queues = [ours.Queue() for _ in range(50)]
    for q in queues:
        q.put([1] * 10)
        q.get()
    each = (memory() - before) / 50
    assert each < 300_000
    del queues, q
    gc.collect()


@pytest.mark.skipif(not OURS, reason="about ours")
def test_memory_does_not_grow(ours, kind):
    q = getattr(ours, kind)()

    def use():
        for number in range(300):
            q.put(pattern(number, number * 997 % 200_000))
            if number % 3 == 2:
                for _ in range(3):
                    q.get()

    for _ in range(5):
        use()
    before = stored()
    for _ in range(20):
        use()
    assert stored() <= before + 1_000_000
    end(q)


@pytest.mark.skipif(not OURS, reason="about ours")
def test_queues_that_are_made_and_dropped(ours):
    def use():
        for _ in range(100):
            q = ours.Queue()
            q.put(b"x" * 100_000)
            q.put("small")

    for _ in range(5):
        use()
    before = stored()
    for _ in range(20):
        use()
    assert stored() <= before + 1_000_000
