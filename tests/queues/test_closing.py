"""close() and what comes after; joining the thread that ours has not; JoinableQueue's counts."""

import gc
import weakref

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, fds, settle
from sync_helpers import Child, Task, outcome, run_program, wait_until_asleep


def after_close(mp, kind, used):
    q = getattr(mp, kind)()
    if used:
        q.put(1)
        settle(q)
        assert q.get() == 1
    q.close()
    if kind != "SimpleQueue":
        q.join_thread()
    names = ["close", "get"]
    if kind != "SimpleQueue":
        names += ["get_nowait", "qsize", "full", "join_thread", "cancel_join_thread", "close"]
    results = [outcome(getattr(q, name)) for name in names]
    return [*results, outcome(q.put, 1), outcome(lambda: q.put(obj=1))]


@pytest.mark.parametrize("used", [False, True])
def test_after_close(both, kind, used):
    theirs, ours = (after_close(mp, kind, used) for mp in both)
    assert ours == theirs


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_closed_without_a_put(mp, kind):
    """Nothing but put and get ends with that."""
    q = getattr(mp, kind)()
    child = mp.Process(target=lambda: (q.put("back"), q.close()))
    child.start()
    q.close()
    child.join()
    assert not q.empty()
    assert q._reader.recv() == "back"
    assert q.empty()
    assert not q._writer.closed


def test_join_thread_before_close(mp):
    q = mp.Queue()
    with pytest.raises(AssertionError, match=r"Queue <.*queues\.Queue object at 0x.*> not closed"):
        q.join_thread()
    q.close()
    q.join_thread()
    q.join_thread()


def test_cancel_join_thread(mp):
    q = mp.Queue()
    q.cancel_join_thread()
    q.put(1)
    settle(q)
    q.cancel_join_thread()
    assert q._joincancelled
    assert q.get() == 1
    q.close()
    q.cancel_join_thread()


def test_closed_in_one_process(ctx, kind):
    """The others go on."""
    q = getattr(ctx, kind)()
    child = Child(ctx, queue_targets.close_and_say, q)
    child.expect("closed")
    child.join()
    q.put(1)
    assert q.get() == 1
    end(q)


def test_closed_here_open_in_the_child(mp, kind):
    """A child that was forked before goes on with what this process put before it closed."""
    q, results = getattr(mp, kind)(), mp.SimpleQueue()
    child = mp.Process(target=lambda: results.put([q.get(), q.get()]))
    child.start()
    q.put("a")
    q.put("b" * 100_000)
    q.close()
    if kind != "SimpleQueue":
        q.join_thread()
    assert results.get() == ["a", "b" * 100_000]
    child.join()


@pytest.mark.skipif(not OURS, reason="the stdlib's thread closes them")
def test_close_closes_descriptors(ours, kind):
    before = fds()
    q = getattr(ours, kind)()
    assert len(fds() - before) == 2
    q.put(1)
    q.close()
    assert fds() == before


def test_dropping_closes_descriptors(mp, kind):
    getattr(mp, kind)()  # what is made once
    gc.collect()
    before = fds()
    for _ in range(20):
        q = getattr(mp, kind)()
        q._reader, q._writer  # noqa: B018
        del q
    gc.collect()
    assert fds() == before


def test_garbage_in_a_cycle(mp, kind):
    q = getattr(mp, kind)()
    q.itself = q
    dead = weakref.ref(q)
    del q
    gc.collect()
    assert dead() is None


def test_dropped_in_the_parent(ctx, kind):
    q, results = getattr(ctx, kind)(), ctx.SimpleQueue()
    child = Child(ctx, queue_targets.use_when_told, q, results)
    child.expect("ready")
    q.put("before")
    if hasattr(q, "join_thread"):
        q.close()
        q.join_thread()
    del q
    gc.collect()
    others = [getattr(ctx, kind)() for _ in range(5)]
    for other in others:
        other.put("not this")
    child.send("go")
    assert results.get() == "before"
    assert results.get() == "own"
    child.join()
    for other in others:
        end(other)


def test_dropped_in_a_forked_child(mp, kind):
    queues = [getattr(mp, kind)() for _ in range(3)]
    results = mp.SimpleQueue()

    def drop():
        queues.clear()
        gc.collect()
        fresh = [getattr(mp, kind)() for _ in range(3)]
        for q in fresh:
            q.put("the child's")
        results.put([q.get() for q in fresh])

    child = mp.Process(target=drop)
    child.start()
    assert results.get() == ["the child's"] * 3
    child.join()
    for number, q in enumerate(queues):
        q.put(number)
    assert [q.get() for q in queues] == [0, 1, 2]


@pytest.mark.skipif(not OURS, reason="the stdlib's producer waits for its thread")
@pytest.mark.parametrize("size", [100, 1_000_000])
def test_producer_is_joined_before_the_queue_is_drained(our_ctx, kind, size):
    q = getattr(our_ctx, kind)()
    child = our_ctx.Process(target=queue_targets.put_all, args=(q, [b"x" * size] * 20))
    child.start()
    child.join(LIMIT)
    assert child.exitcode == 0
    assert [q.get() for _ in range(20)] == [b"x" * size] * 20


def test_a_full_pipe_is_no_limit(mp):
    """put() does not wait where there is no limit."""
    q = mp.Queue()
    for _ in range(200):
        q.put(b"x" * 10_000)
    assert [len(q.get()) for _ in range(200)] == [10_000] * 200
    end(q)


# ---- JoinableQueue ---------------------------------------------------------------------------


def test_task_done_too_often(both):
    results = []
    for mp in both:
        q = mp.JoinableQueue()
        before = outcome(q.task_done)
        q.put(1)
        q.get()
        results.append((before, outcome(q.task_done), outcome(q.task_done)))
        end(q)
    assert results[0] == results[1]
    assert results[0][0][:2] == ("ValueError", "task_done() called too many times")


def test_join(mp):
    q = mp.JoinableQueue()
    q.join()
    for number in range(3):
        q.put(number)
    joined = Task(q.join)
    for number in range(3):
        assert joined.is_alive()
        assert q.get() == number
        q.task_done()
    joined.get()
    q.join()
    end(q)


def test_join_across_processes(ctx):
    q = ctx.JoinableQueue()
    workers = [ctx.Process(target=queue_targets.consume, args=(q,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for _ in range(3):
        for number in range(50):
            q.put(number)
        q.join()
    for _ in workers:
        q.put(None)
    q.join()
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0
    assert q.empty()
    end(q)


def test_many_join(mp):
    q = mp.JoinableQueue()
    q.put(1)
    tasks = [Task(q.join) for _ in range(4)]
    for task in tasks:
        wait_until_asleep(task)
    q.get()
    q.task_done()
    for task in tasks:
        task.get()
    end(q)


def test_task_done_before_get(mp):
    """It counts objects that were put, whoever has them."""
    q = mp.JoinableQueue()
    q.put(1)
    q.task_done()
    q.join()
    settle(q)
    assert q.get() == 1
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()
    end(q)


# ---- The end of the program ------------------------------------------------------------------

WAITING = """
import sys, threading, importlib
ctx = importlib.import_module(sys.argv[1]).get_context(sys.argv[2])
q, full, done = ctx.Queue(), ctx.Queue(1), ctx.JoinableQueue()
full.put(1)
done.put(1)
full.cancel_join_thread(), done.cancel_join_thread()
calls = [q.get, ctx.SimpleQueue().get, lambda: full.put(2), done.join, lambda: q._reader.poll(None)]
threads = [threading.Thread(target=call, daemon=True) for call in calls for _ in range(2)]
for thread in threads:
    thread.start()
import time
time.sleep(0.2)
print("end", flush=True)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_the_end_with_threads_that_wait(package, method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(WAITING)
    assert run_program(program, package.__name__, method) == "end\n"


BUSY = """
import sys, threading, importlib, time
ctx = importlib.import_module("mproc_ext").get_context("fork")
q, simple = ctx.Queue(), ctx.SimpleQueue()
def pump(q):
    while True:
        q.put(b"x" * 100)
        q.get()
for which in (q, simple, q, simple):
    threading.Thread(target=pump, args=(which,), daemon=True).start()
time.sleep(0.1)
print("end", flush=True)
"""


@pytest.mark.skipif(not OURS, reason="about ours")
def test_the_end_with_threads_that_put_and_get(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(BUSY)
    for _ in range(5):
        assert run_program(program) == "end\n"


GLOBALS = """
import importlib, sys
ctx = importlib.import_module(sys.argv[1]).get_context("fork")
queues = [ctx.Queue(), ctx.JoinableQueue(), ctx.SimpleQueue()]
for q in queues:
    q.put([1] * 1000)
    q._reader, q._writer
class Late:
    def __del__(self):
        for q in queues:
            q.get()
queues[0].late = Late()
print("end", flush=True)
"""


def test_the_end_with_queues_in_use(package, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(GLOBALS)
    assert run_program(program, package.__name__) == "end\n"


@pytest.mark.skipif(not OURS, reason="about ours")
def test_put_from_a_finalizer_at_the_end_reports_nothing(tmp_path):
    """While the program ends, what cannot be pickled is dropped in silence, as by the stdlib."""
    program = tmp_path / "program.py"
    program.write_text(
        "import mproc_ext, mproc_ext.util as util, sys\n"
        "q = mproc_ext.get_context('fork').Queue()\n"
        "sys.stderr = sys.stdout\n"
        "util.Finalize(None, lambda: q.put(lambda: None), exitpriority=-50)\n"
    )
    assert run_program(program) == ""


def test_stderr_is_gone(ours):
    q = ours.Queue()
    import sys

    before, sys.stderr = sys.stderr, None
    try:
        q.put(lambda: None)
    finally:
        sys.stderr = before
    assert q.empty()
