"""_reader and _writer: connections on the same stream as put and get."""

import asyncio
import contextlib
import os
import pickle
import select
import selectors
from multiprocessing.connection import Connection, wait

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, is_ours, settle, stderr
from sync_helpers import Child, Task, asleep_in, outcome, wait_until, wait_until_asleep


def readable(thing, timeout=0):
    """What each way of waiting says, which must be one and the same."""
    poller = select.poll()
    poller.register(thing, select.POLLIN)
    epoll = select.epoll()
    epoll.register(thing.fileno(), select.EPOLLIN)
    with selectors.DefaultSelector() as selector:
        selector.register(thing, selectors.EVENT_READ)
        said = {
            bool(select.select([thing], [], [], timeout)[0]),
            bool(poller.poll(timeout * 1000)),
            bool(epoll.poll(timeout)),
            bool(selector.select(timeout)),
            wait([thing], timeout) == [thing],
            thing.poll(timeout),
        }
    epoll.close()
    assert len(said) == 1
    return said.pop()


def test_what_they_are(mp, kind):
    q = getattr(mp, kind)()
    reader, writer = q._reader, q._writer
    assert isinstance(reader, Connection)
    assert isinstance(writer, Connection)
    assert (reader.readable, reader.writable, reader.closed) == (True, False, False)
    assert (writer.readable, writer.writable, writer.closed) == (False, True, False)
    assert reader.fileno() != writer.fileno()
    assert q._reader is reader
    with pytest.raises(OSError, match="connection is write-only"):
        writer.recv()
    with pytest.raises(OSError, match="connection is write-only"):
        writer.recv_bytes()
    with pytest.raises(OSError, match="connection is write-only"):
        writer.poll()
    with pytest.raises(OSError, match="connection is read-only"):
        reader.send(1)
    with pytest.raises(OSError, match="connection is read-only"):
        reader.send_bytes(b"1")


def test_readable_where_there_is_something(mp, kind):
    q = getattr(mp, kind)()
    reader = q._reader
    assert not readable(reader)
    for _ in range(3):
        q.put("a")
        assert readable(reader, LIMIT)
        assert q.get() == "a"
        assert not readable(reader)
    for number in range(100):
        q.put(number)
    settle(q, 100)
    for number in range(100):
        assert readable(reader, LIMIT)
        assert q.get() == number
    assert not readable(reader)
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib sends later")
def test_asked_for_when_there_is_something(ours, kind):
    q = getattr(ours, kind)()
    q.put("before")
    assert readable(q._reader)
    assert q.get() == "before"
    assert not readable(q._reader)


def test_readable_for_what_a_child_put(ctx, kind):
    q = getattr(ctx, kind)()
    child = Child(ctx, queue_targets.put_when_told, q)
    reader = q._reader
    for number in range(5):
        assert not readable(reader)
        child.send(number)
        assert readable(reader, LIMIT)
        assert q.get() == number
    child.send(None)
    child.join()
    assert not readable(reader)
    end(q)


def test_readable_when_the_producer_was_killed(ctx, kind):
    q = getattr(ctx, kind)()
    child = Child(ctx, queue_targets.put_when_told, q)
    child.send("last")
    wait_until(lambda: not q.empty())
    child.kill()
    assert readable(q._reader, LIMIT)
    assert q.get() == "last"
    assert not readable(q._reader)
    end(q)


def test_wait_for_several(mp):
    queues = [mp.SimpleQueue() for _ in range(3)]
    readers = [q._reader for q in queues]
    assert wait(readers, 0) == []
    queues[1].put(1)
    assert wait(readers, LIMIT) == [readers[1]]
    queues[0].put(0)
    assert set(wait(readers, LIMIT)) == set(readers[:2])
    assert [queues[1].get(), queues[0].get()] == [1, 0]
    assert wait(readers, 0) == []


def test_wait_wakes(mp, kind):
    q = getattr(mp, kind)()
    task = Task(wait, [q._reader], LIMIT)
    task.join(0.1)
    q.put("x")
    assert task.get() == [q._reader]
    assert q.get() == "x"
    end(q)


def test_asyncio(ctx, kind):
    q = getattr(ctx, kind)()
    child = ctx.Process(target=queue_targets.put_all, args=(q, list(range(50))))

    async def collect():
        loop = asyncio.get_running_loop()
        found, done = [], loop.create_future()

        def ready():
            found.append(q.get())
            if len(found) == 50:
                done.set_result(None)

        loop.add_reader(q._reader, ready)
        child.start()
        await asyncio.wait_for(done, LIMIT)
        loop.remove_reader(q._reader)
        return found

    assert asyncio.run(collect()) == list(range(50))
    child.join()
    end(q)


def test_one_stream(mp):
    q = mp.SimpleQueue()
    reader, writer = q._reader, q._writer
    q.put("put")
    writer.send("send")
    writer.send_bytes(pickle.dumps("bytes"))
    writer.send_bytes(b"raw")
    assert reader.recv() == "put"
    assert q.get() == "send"
    assert q.get() == "bytes"
    assert reader.recv_bytes() == b"raw"
    q.put({"a": [1]})
    assert pickle.loads(reader.recv_bytes()) == {"a": [1]}


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"\x80", b"\x9f", b"\xa0", b"\xa5abc", b"\xb0", b"\xbf", b"\xbf\xbf", b"\xff" * 9,
     bytes(range(256)) * 10, b"\xa0" * 70_000, b"y" * 200_000],
    ids=lambda data: f"{data[:4]!r}-{len(data)}",
)  # fmt: skip
def test_bytes(mp, data):
    q = mp.SimpleQueue()
    reader, writer = q._reader, q._writer

    def send():
        writer.send_bytes(data)
        writer.send_bytes(memoryview(data))
        writer.send_bytes(b"<<" + data + b">>", 2, len(data))
        writer.send_bytes(data)

    task = Task(send)
    assert reader.recv_bytes() == data
    assert reader.recv_bytes(len(data)) == data
    buffer = bytearray(len(data) + 5)
    assert reader.recv_bytes_into(buffer, 5) == len(data)
    assert buffer[5:] == data
    if data:
        with pytest.raises(OSError, match="bad message length"):
            reader.recv_bytes(len(data) - 1)
        assert reader.closed
    else:
        assert reader.recv_bytes(0) == b""
    with contextlib.suppress(BrokenPipeError):  # the stdlib may be about to write the last one
        task.get()


def test_arrays_of_items(both):
    import array

    results = []
    for mp in both:
        q = mp.SimpleQueue()
        q._writer.send_bytes(array.array("i", [1, 2, 3]), 4)
        into = array.array("i", [0] * 4)
        results.append((q._reader.recv_bytes_into(into, 4), into.tolist()))
        q._writer.send_bytes(b"too long for it")
        results.append(outcome(q._reader.recv_bytes_into, bytearray(3)))
        results.append(outcome(q._writer.send_bytes, "text"))
        results.append(outcome(q._writer.send_bytes, b"abc", 4))
        results.append(outcome(q._writer.send_bytes, b"abc", -1))
        results.append(outcome(q._reader.recv_bytes, -1))
        results.append(outcome(q._reader.poll, "x")[0])
    half = len(results) // 2
    assert results[:half] == results[half:]


def closed(mp, kind, which):
    q = getattr(mp, kind)()
    end_ = getattr(q, which)
    end_.close()
    end_.close()
    results = [
        end_.closed,
        outcome(end_.fileno),
        outcome(end_.poll),
        outcome(end_.recv),
        outcome(end_.send, 1),
        outcome(end_.send_bytes, b"1"),
        outcome(end_.recv_bytes),
    ]
    if which == "_reader":
        results += [outcome(q.get), outcome(q.empty)]
    elif kind == "SimpleQueue":
        results.append(outcome(q.put, 1))
    return results


@pytest.mark.parametrize("which", ["_reader", "_writer"])
def test_closed_ends(both, kind, which):
    theirs, ours = (closed(mp, kind, which) for mp in both)
    assert ours == theirs


def test_closed_with_the_queue(mp):
    q = mp.SimpleQueue()
    reader, writer = q._reader, q._writer
    q.close()
    assert reader.closed
    assert writer.closed
    assert q._reader is reader


@pytest.mark.skipif(not OURS, reason="the stdlib's thread closes them")
def test_asked_for_after_close(ours, kind):
    q = getattr(ours, kind)()
    q.put(1)
    q.close()
    assert q._reader.closed
    assert q._writer.closed
    q._reader.close()


def test_eof(mp, kind):
    """All writers are closed: what is there can be read, and then there is an end."""
    q = getattr(mp, kind)()
    q.put("last")
    settle(q)
    q._writer.close()
    assert q.get() == "last"
    assert q._reader.poll(LIMIT)
    assert not q.empty()  # get() would not wait
    assert wait([q._reader], LIMIT) == [q._reader]
    for call in (q.get, q._reader.recv, q._reader.recv_bytes):
        with pytest.raises(EOFError):
            call()
    if kind != "SimpleQueue":
        with pytest.raises(EOFError):
            q.get(timeout=LIMIT)
        with pytest.raises(EOFError):
            q.get(block=False)


def test_eof_when_the_producer_has_died(ctx, kind):
    q = getattr(ctx, kind)()
    child = Child(ctx, queue_targets.put_when_told, q)
    child.send("last")
    assert q.get() == "last"
    q._writer.close()
    if is_ours(q):
        task = Task(q.get)
        wait_until_asleep(task)
        child.kill()
        with pytest.raises(EOFError):
            task.get()
    else:
        child.kill()
    with pytest.raises(EOFError):
        q.get()


def test_broken_pipe(mp):
    q = mp.SimpleQueue()
    q._reader.close()
    with pytest.raises(BrokenPipeError):
        q.put(1)
    with pytest.raises(BrokenPipeError):
        q._writer.send(1)
    with pytest.raises(BrokenPipeError):
        q._writer.send_bytes(b"1")


def test_broken_pipe_when_the_consumer_has_died(ctx):
    q = ctx.SimpleQueue()
    child = Child(ctx, queue_targets.get_and_send_one, q)
    q.put(1)
    child.expect(1)
    q._reader.close()
    q.put(2)
    child.kill()
    with pytest.raises(BrokenPipeError):
        q.put(3)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
@pytest.mark.parametrize("which", ["_reader", "_writer"])
def test_put_that_nobody_can_receive_is_reported(mp, kind, which):
    """Like what cannot be pickled."""
    q = getattr(mp, kind)()
    if which == "_reader":
        q._reader.close()
    else:
        q._writer.close()
    with stderr() as text:
        q.put(1)
        wait_until(lambda: "Error: " in text.getvalue() and q.qsize() == 0)
        wait_until(lambda: text.getvalue().endswith("\n"))
    last = text.getvalue().splitlines()[-1]
    assert last == {"_reader": "BrokenPipeError: [Errno 32] Broken pipe",
                    "_writer": "OSError: handle is closed"}[which]  # fmt: skip
    end(q)


def test_ignored_epipe(mp):
    q = mp.Queue()
    q._ignore_epipe = True
    q._reader.close()
    with stderr() as text:
        q.put(1)
        if not is_ours(q):
            q._thread.join()
    assert text.getvalue() == ""
    end(q)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_ends_in_a_child(package, method):
    """A child that was given the reading end alone has no writing one: it sees the end."""
    ctx = package.get_context(method)
    q, results = ctx.SimpleQueue(), ctx.SimpleQueue()
    ends = (q._reader, results._writer) if method != "fork" else (q, results)
    child = ctx.Process(target=queue_targets.relay, args=ends)
    child.start()
    q.put({"a": 1})
    q._writer.send_bytes(pickle.dumps("bytes"))
    assert results.get() == {"a": 1}
    assert results.get() == "bytes"
    q._writer.close()
    assert results.get() == "EOF"
    child.join(LIMIT)
    assert child.exitcode == 0
    q._reader.close()
    results._writer.close()
    with pytest.raises(EOFError):
        results.get()


@pytest.mark.skipif(not OURS, reason="about ours")
def test_both_ends_in_a_child(our_ctx):
    q, results = our_ctx.SimpleQueue(), our_ctx.SimpleQueue()
    child = our_ctx.Process(target=queue_targets.loop_back, args=(q._reader, q._writer, results))
    child.start()
    assert results.get() == "through the child"
    child.join()
    q.put(1)
    assert q.get() == 1


@pytest.mark.skipif(not OURS, reason="the stdlib's connections may be sent")
def test_ends_travel_only_at_the_start(ours):
    with pytest.raises(RuntimeError, match="should only be shared between processes"):
        pickle.dumps(ours.Queue()._reader)


@pytest.mark.skipif(not OURS, reason="the stdlib's close both")
def test_an_end_outlives_its_queue(ours, kind):
    q = getattr(ours, kind)()
    q.put("last")
    reader = q._reader
    del q
    assert reader.recv() == "last"
    with pytest.raises(EOFError):
        reader.recv()


@pytest.mark.skipif(not OURS, reason="the stdlib's readers wait with the lock")
def test_the_readers_lock(ours):
    """Who has it may rely on what poll() said, whoever else reads: as Pool.terminate does."""
    q = ours.SimpleQueue()
    stop = []

    def read():
        while (thing := q.get()) != "stop":
            stop.append(thing)

    tasks = [Task(read) for _ in range(2)]
    mine = 0
    for number in range(500):
        q.put(number)
        with q._rlock:
            if q._reader.poll():
                assert isinstance(q._reader.recv() if number % 2 else q._reader.recv_bytes(),
                                  (int, bytes))  # fmt: skip
                mine += 1
    for _ in tasks:
        q.put("stop")
    for task in tasks:
        task.get()
    assert mine + len(stop) == 500


def test_polled_with_the_readers_lock(mp, kind):
    """What was there then is still in the queue, but for a child that is forked."""
    q = getattr(mp, kind)()
    q.put(1)
    settle(q, 1)
    q.put(2)
    with q._rlock:
        assert q._reader.poll()
        if OURS and mp.get_start_method() == "fork" and is_ours(q):
            child = Child(mp, queue_targets.look_at, q)
            child.expect((False, 1) if kind != "SimpleQueue" else (False, None))
            child.join()
    assert not q.empty()
    if kind != "SimpleQueue":
        wait_until(lambda: q.qsize() == 2)
    assert q._reader.poll()
    assert q.get() == 1
    assert q.get() == 2
    assert q.empty()
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib's readers wait with the lock")
@pytest.mark.parametrize("name", ["get", "recv", "recv_bytes"])
def test_polled_while_a_thread_waits(ours, kind, name):
    """It gets what poll() has taken, when the lock is free."""
    q = getattr(ours, kind)()
    get = q.get if name == "get" else getattr(q._reader, name)

    def poll(seconds):
        with q._rlock:
            return q._reader.poll(seconds)

    for number in range(3):
        getter = Task(get)
        wait_until_asleep(getter)
        poller = asleep_in(poll)
        q.put(number)
        poller.get()
        found = getter.get()
        assert (pickle.loads(found) if name == "recv_bytes" else found) == number


def test_with(mp):
    q = mp.SimpleQueue()
    with q._writer as writer:
        writer.send(1)
    assert q._writer.closed
    assert q.get() == 1
    with pytest.raises(EOFError):
        q.get()


def test_nothing_is_written_to_it_by_selecting(mp, kind):
    """A look changes nothing: also when it is often."""
    q = getattr(mp, kind)()
    for _ in range(1000):
        assert not select.select([q._reader], [], [], 0)[0]
    q.put(os.getpid())
    assert q.get() == os.getpid()
    end(q)
