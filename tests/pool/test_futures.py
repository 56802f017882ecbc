"""ProcessPoolExecutor, beyond what CPython's own tests ask (tests/conformance, mode executor)."""

import asyncio
import concurrent.futures
import gc
import itertools
import multiprocessing
import os
import pickle
import queue
import re
import signal
import sys
import threading
import unittest.mock
import weakref

import futures_targets as targets
import pytest
from pool_helpers import is_gone, lines, wait_for_lines, wait_until_gone
from sync_helpers import LIMIT, Task, run_program, wait_until

import mproc_ext
from mproc_ext import _engine, futures
from mproc_ext.futures import BrokenProcessPool, ProcessPoolExecutor


@pytest.fixture
def ctx(method):
    return mproc_ext.get_context(method)


@pytest.fixture
def fork():
    return mproc_ext.get_context("fork")


@pytest.fixture(scope="module", params=["fork", "spawn", "forkserver"])
def shared(request):
    """Two workers, for tests that leave them alive."""
    with ProcessPoolExecutor(2, mproc_ext.get_context(request.param)) as executor:
        executor.map(targets.nothing, range(2))  # they start now, and are not the first test's
        assert len(executor._processes) == 2
        yield executor


@pytest.fixture
def one(fork):
    """One worker: what it does is in order."""
    with ProcessPoolExecutor(1, fork) as executor:
        yield executor


def block(executor, folder):
    """Has a worker busy; returns the future, and what lets it go on."""
    noted, gate = folder / "noted", folder / "gate"
    future = executor.submit(targets.note_and_wait, str(noted), str(gate))
    wait_for_lines(noted, 1)
    return future, gate.touch


def story(error):
    return f"{error} {error.__cause__}"


# ---- calls ---------------------------------------------------------------------------------------


def test_submit(shared):
    future = shared.submit(targets.arguments, 1, two=2, self=3, fn=4)
    assert isinstance(future, concurrent.futures.Future)
    assert future.result(LIMIT) == ((1,), {"two": 2, "self": 3, "fn": 4})
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert not future.cancel()


def test_a_result_is_the_same_object_each_time(shared):
    future = shared.submit(targets.pair, 1, [2])
    assert future.result() is future.result(timeout=1)


def test_an_exception(shared):
    future = shared.submit(targets.fail, KeyError, "key")
    with pytest.raises(KeyError, match="key"):
        future.result(LIMIT)
    error = future.exception()
    assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
    assert "raise kind(*args)" in str(error.__cause__)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, BaseException])
def test_what_is_no_exception_is_the_tasks_too(shared, kind):
    error = shared.submit(targets.fail, kind, 5).exception(LIMIT)
    assert type(error) is kind
    assert error.args == (5,)
    assert shared.submit(targets.square, 3).result(LIMIT) == 9


def test_a_stop_iteration(shared):
    assert type(shared.submit(targets.fail, StopIteration).exception(LIMIT)) is StopIteration


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_stop_iteration_does_not_end_a_map(shared, chunksize):
    results = shared.map(targets.stop_at, range(6), [4] * 6, chunksize=chunksize)
    assert list(itertools.islice(results, 4)) == [0, 1, 2, 3]
    with pytest.raises(RuntimeError, match="generator raised StopIteration") as caught:
        next(results)
    assert type(caught.value.__cause__) is StopIteration
    assert list(results) == []


def test_what_cannot_be_pickled(shared):
    error = shared.submit(targets.size, lambda: None).exception(LIMIT)
    assert isinstance(error, (AttributeError, pickle.PicklingError))
    assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
    assert str(error) in str(error.__cause__)
    assert shared.submit(lambda: None).exception(LIMIT) is not None
    # The error itself, with no other one around it.
    assert "cannot be written" in str(
        shared.submit(targets.make_unwritable, ValueError).exception(LIMIT)
    )
    assert type(shared.submit(targets.make_unwritable, SystemExit).exception(LIMIT)) is SystemExit
    assert shared.submit(targets.square, 3).result(LIMIT) == 9


@pytest.mark.parametrize("length", [0, 1, 2, 7, 1000])
@pytest.mark.parametrize("chunksize", [1, 2, 3, 2000])
def test_map(shared, length, chunksize):
    expected = [n * n for n in range(length)]
    for items in (range(length), list(range(length)), iter(range(length))):
        assert list(shared.map(targets.square, items, chunksize=chunksize)) == expected
    letters = itertools.cycle("abcdefg")
    pairs = shared.map(targets.pair, range(length), letters, chunksize=chunksize)
    assert list(pairs) == [(n, "abcdefg"[n % 7]) for n in range(length)]


def test_map_of_nothing(shared):
    assert list(shared.map(targets.nothing)) == []
    assert list(shared.map(targets.pair, [], [1])) == []


def test_map_asks_for_all_arguments_at_once(one):
    items = iter(range(5000))
    results = one.map(targets.square, items)
    assert next(items, None) is None
    assert sum(1 for _ in results) == 5000


def test_map_asks_in_the_calling_thread(one):
    threads = set()

    def items():
        for n in range(300):
            threads.add(threading.get_ident())
            yield n

    assert len(list(one.map(targets.square, items()))) == 300
    assert threads == {threading.get_ident()}


def test_map_begins_while_its_arguments_come(one, tmp_path):
    noted = tmp_path / "noted"

    def items():
        yield 1
        wait_for_lines(noted, 1)
        yield 2
        yield 3
        yield 4
        wait_for_lines(noted, 4)

    assert list(one.map(targets.note, itertools.repeat(str(noted)), items())) == [None] * 4


def test_map_whose_arguments_raise(one, tmp_path):
    noted = tmp_path / "noted"

    def items():
        yield 1
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        one.map(targets.note, [str(noted)] * 2, items())
    wait_for_lines(noted, 1)  # what came before is done
    with pytest.raises(TypeError, match="'int' object is not iterable"):
        one.map(targets.square, 5)
    assert one.submit(targets.square, 3).result(LIMIT) == 9


def test_map_is_given_a_list_that_changes(one):
    items = list(range(3000))
    results = one.map(targets.square, items)
    items.clear()
    assert len(list(results)) == 3000


def test_map_with_a_failing_task(shared):
    results = shared.map(targets.stop_at, range(4), [9] * 3 + [()], chunksize=1)
    assert list(results) == [0, 1, 2, 3]
    results = shared.map(divmod, [4, 4, 4], [2, 0, 1])
    assert next(results) == (2, 0)
    with pytest.raises(ZeroDivisionError):
        next(results)
    with pytest.raises(StopIteration):
        next(results)


@pytest.mark.parametrize("chunksize", [1, 3])
def test_map_timeout(one, tmp_path, chunksize):
    _, let_go = block(one, tmp_path)
    results = one.map(targets.square, range(5), timeout=0, chunksize=chunksize)
    with pytest.raises(TimeoutError) as caught:
        next(results)
    assert type(caught.value) is TimeoutError
    assert list(results) == []
    let_go()
    assert one.submit(targets.square, 3).result(LIMIT) == 9


def test_map_that_is_left_cancels_what_is_not_begun(one, tmp_path):
    noted = tmp_path / "notes"
    results = one.map(targets.note, itertools.repeat(str(noted), 20_000), range(20_000))
    next(results)
    results.close()
    assert one.submit(targets.square, 3).result(LIMIT) == 9
    assert 1 <= len(lines(noted)) < 20_000


@pytest.mark.parametrize("buffersize", [1, 2, 10])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_map_buffersize(shared, buffersize, chunksize):
    asked = []

    def items():
        for n in range(30):
            asked.append(n)
            yield n

    results = shared.map(targets.square, items(), chunksize=chunksize, buffersize=buffersize)
    assert len(asked) <= buffersize * chunksize
    for count, result in enumerate(results, 1):
        assert result == (count - 1) ** 2
        assert len(asked) <= count + (buffersize + 1) * chunksize
    assert count == 30


@pytest.mark.parametrize(
    ("buffersize", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError)]
)
def test_map_buffersize_that_is_wrong(one, buffersize, kind):
    with pytest.raises(kind, match="buffersize must be"):
        one.map(targets.square, [1], buffersize=buffersize)


def test_large_arguments_and_results(shared):
    data = bytes(5 << 20)
    assert list(shared.map(targets.size, [data] * 5)) == [len(data)] * 5
    assert shared.submit(targets.pair, data, 1).result(LIMIT) == (data, 1)


def test_an_executor_in_a_worker(shared):
    assert shared.submit(targets.nest, False).result(LIMIT) == 49
    assert shared.submit(targets.nest, True).result(LIMIT) == 49


def test_a_pool_in_a_forked_worker_has_its_own_errors(one):
    cause = one.submit(targets.cause_in_a_pool).result(LIMIT)
    assert cause == "multiprocessing.pool.RemoteTraceback"


# ---- futures -------------------------------------------------------------------------------------


def test_wait_and_as_completed(shared):
    for wait in (concurrent.futures.wait, concurrent.futures.as_completed):
        todo = [shared.submit(targets.square, n) for n in range(300)]
        done = wait(todo, timeout=LIMIT)
        done = set(done.done if wait is concurrent.futures.wait else done)
        assert done == set(todo)
        assert sorted(future.result(0) for future in done) == [n * n for n in range(300)]


def test_wait_for_the_first(shared, tmp_path):
    blocked, let_go = block(shared, tmp_path)
    quick = shared.submit(targets.square, 3)
    first = concurrent.futures.wait(
        [blocked, quick], LIMIT, return_when=concurrent.futures.FIRST_COMPLETED
    )
    assert first == ({quick}, {blocked})
    let_go()
    assert blocked.result(LIMIT) > 0


def test_wait_for_an_exception(shared, tmp_path):
    blocked, let_go = block(shared, tmp_path)
    failing = shared.submit(targets.fail, ValueError)
    first = concurrent.futures.wait(
        [blocked, failing], LIMIT, return_when=concurrent.futures.FIRST_EXCEPTION
    )
    assert first == ({failing}, {blocked})
    let_go()


def test_callbacks(shared):
    calls = queue.Queue()
    future = shared.submit(targets.square, 3)
    for n in range(3):
        future.add_done_callback(lambda future, n=n: calls.put((n, future.result(0))))
    assert [calls.get(timeout=LIMIT) for _ in range(3)] == [(0, 9), (1, 9), (2, 9)]
    future.add_done_callback(calls.put)  # at once
    assert calls.get_nowait() is future


def test_a_callback_may_use_the_executor(shared):
    found = queue.Queue()

    def go_on(future):
        found.put(shared.submit(targets.square, future.result()).result(LIMIT))
        found.put(list(shared.map(targets.square, range(10))))
        shared.submit(targets.square, 2).add_done_callback(lambda last: found.put(last.result()))

    shared.submit(targets.square, 3).add_done_callback(go_on)
    assert found.get(timeout=LIMIT) == 81
    assert found.get(timeout=LIMIT) == [n * n for n in range(10)]
    assert found.get(timeout=LIMIT) == 4


def test_a_callback_that_raises(shared, caplog):
    future = shared.submit(targets.square, 3)
    called = threading.Event()
    future.add_done_callback(lambda _: targets.fail(ValueError, "in a callback"))
    future.add_done_callback(lambda _: called.set())
    assert called.wait(LIMIT)
    wait_until(lambda: "in a callback" in caplog.text or future.done(), "the log")
    assert shared.submit(targets.square, 3).result(LIMIT) == 9


def test_a_result_is_there_before_and_after_somebody_was_told(shared):
    """Who has a result finds the future done, whatever others wait for."""
    for _ in range(200):
        future = shared.submit(targets.square, 3)
        told = threading.Event()
        future.add_done_callback(lambda _, told=told: told.set())
        assert future.result(LIMIT) == 9
        assert future.done()
        assert not future.running()
        assert future._state == "FINISHED"
        assert told.wait(LIMIT)


def test_timeouts(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    assert blocked.running()
    assert not blocked.done()
    for wait in (blocked.result, blocked.exception):
        for timeout in (0, -1, 0.01):
            with pytest.raises(TimeoutError) as caught:
                wait(timeout)
            assert type(caught.value) is TimeoutError
    let_go()
    assert blocked.exception(LIMIT) is None


def test_cancel(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    called = []
    waiting = [one.submit(targets.square, n) for n in range(5)]
    for future in waiting:
        future.add_done_callback(called.append)
        assert not future.running()
        assert future.cancel()
        assert future.cancel()
        assert future.cancelled()
        assert future.done()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result()
        with pytest.raises(concurrent.futures.CancelledError):
            future.exception()
    assert called == waiting
    assert not blocked.cancel()
    let_go()
    assert blocked.result(LIMIT) > 0
    assert one.submit(targets.square, 3).result(LIMIT) == 9


def test_cancel_wakes_those_who_wait(one, tmp_path):
    _, let_go = block(one, tmp_path)
    todo = [one.submit(targets.square, n) for n in range(3)]
    tasks = [
        Task(concurrent.futures.wait, todo),
        Task(lambda: list(concurrent.futures.as_completed(todo))),
        Task(todo[0].result),
    ]
    wait_until(lambda: len(todo[0]._waiters) == 2, "two that wait")
    for future in todo:
        assert future.cancel()
    assert tasks[0].get().done == set(todo)
    assert set(tasks[1].get()) == set(todo)
    with pytest.raises(concurrent.futures.CancelledError):
        tasks[2].get()
    let_go()


def test_a_lot_is_cancelled_in_no_time(one, tmp_path):
    _, let_go = block(one, tmp_path)
    todo = [one.submit(targets.square, n) for n in range(30_000)]
    gate = threading.Timer(0, let_go)
    one.shutdown(wait=False, cancel_futures=True)
    gate.start()
    gate.join()
    assert sum(future.cancelled() for future in todo) > 29_000
    assert all(future.done() for future in concurrent.futures.wait(todo, LIMIT).done)


def test_cancel_futures_cancels_maps(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    results = one.map(targets.square, range(100))
    one.shutdown(wait=False, cancel_futures=True)
    let_go()
    with pytest.raises(concurrent.futures.CancelledError):
        list(results)
    assert blocked.result(LIMIT) > 0


def test_repr(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    waiting = one.submit(targets.square, 3)
    assert "state=running" in repr(blocked)
    assert "state=pending" in repr(waiting)
    waiting.cancel()
    assert "state=cancelled" in repr(waiting)
    let_go()
    blocked.result(LIMIT)
    assert "state=finished returned int" in repr(blocked)
    failed = one.submit(targets.fail, ValueError)
    failed.exception(LIMIT)
    assert "state=finished raised ValueError" in repr(failed)


def test_nothing_is_kept_of_what_is_done(one):
    item = targets.Text("item")
    seen = weakref.ref(item)
    future = one.submit(str, item)
    assert future.result(LIMIT) == "item"
    results = one.map(str, [item])
    assert list(results) == ["item"]
    del item
    gc.collect()
    assert seen() is None
    result = future.result()
    before = sys.getrefcount(result)
    del future
    gc.collect()
    assert sys.getrefcount(result) == before - 1


def test_references_do_not_grow(one):
    item = [object()]
    mark = "a text that nobody else has"
    for _ in range(3):
        counts = sys.getrefcount(item), sys.getrefcount(mark), sys.getrefcount(targets.square)
        for _ in range(50):
            one.submit(targets.size, [mark]).result(LIMIT)
            assert type(one.submit(targets.size, mark, None).exception(LIMIT)) is TypeError
            todo = [one.submit(targets.size, mark) for _ in range(3)]
            concurrent.futures.wait(todo, LIMIT)
            todo[0].cancel()
            list(one.map(targets.size, [mark] * 5))
        del todo
        gc.collect()
    found = sys.getrefcount(item), sys.getrefcount(mark), sys.getrefcount(targets.square)
    assert all(now <= before + 2 for now, before in zip(found, counts, strict=True))


def test_a_future_and_an_executor_are_not_pickled(one):
    for what in (one, one.submit(targets.square, 3)):
        with pytest.raises(TypeError, match="cannot pickle"):
            pickle.dumps(what)


def test_a_future_takes_no_arguments():
    with pytest.raises(TypeError, match="takes no arguments"):
        futures.Future(1)


# ---- many threads, asyncio -----------------------------------------------------------------------


def test_map_of_many_that_come_one_by_one(shared):
    def items():
        yield from range(5000)

    for chunksize in (1, 7):
        results = shared.map(targets.square, items(), chunksize=chunksize)
        assert list(results) == [n * n for n in range(5000)]


def test_map_whose_arguments_shut_the_executor_down(fork):
    executor = ProcessPoolExecutor(1, fork)

    def items():
        yield 1
        executor.shutdown(wait=False)
        yield 2

    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.map(targets.square, items())
    assert executor._executor_manager_thread is None


def test_map_whose_arguments_depend_on_results(shared):
    found = queue.Queue()

    def items():
        yield 1
        future = shared.submit(targets.square, 3)
        future.add_done_callback(lambda future: found.put(future.result()))
        yield found.get(timeout=LIMIT)

    assert list(shared.map(targets.square, items())) == [1, 81]


def test_many_threads(shared):
    def work(seed):
        for n in range(60):
            future = shared.submit(targets.square, seed + n)
            if n % 3 == 0:
                concurrent.futures.wait([future], LIMIT)
            elif n % 3 == 1:
                next(concurrent.futures.as_completed([future], LIMIT))
            assert future.result(LIMIT) == (seed + n) ** 2
        return list(shared.map(targets.square, range(seed, seed + 500)))

    tasks = [Task(work, seed) for seed in range(8)]
    for seed, task in enumerate(tasks):
        assert task.get() == [n * n for n in range(seed, seed + 500)]


def test_a_future_that_several_wait_for(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    tasks = [Task(blocked.result, LIMIT) for _ in range(5)]
    tasks += [Task(concurrent.futures.wait, [blocked], LIMIT) for _ in range(3)]
    let_go()
    pid = blocked.result(LIMIT)
    assert [task.get() for task in tasks[:5]] == [pid] * 5
    assert all(task.get().done == {blocked} for task in tasks[5:])


def test_asyncio(shared):
    async def main():
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(shared, targets.square, n) for n in range(100)]
        assert await asyncio.gather(*calls) == [n * n for n in range(100)]
        for n in range(20):
            assert await loop.run_in_executor(shared, targets.square, n) == n * n
        with pytest.raises(ValueError, match="asyncio"):
            await loop.run_in_executor(shared, targets.fail, ValueError, "asyncio")

    asyncio.run(asyncio.wait_for(main(), LIMIT))


def test_asyncio_cancels(one, tmp_path):
    blocked, let_go = block(one, tmp_path)

    async def main():
        loop = asyncio.get_running_loop()
        noted = str(tmp_path / "never")
        call = loop.run_in_executor(one, targets.note, noted, "here")
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())
    let_go()
    blocked.result(LIMIT)
    one.submit(targets.square, 3).result(LIMIT)
    assert not (tmp_path / "never").exists()


# ---- workers -------------------------------------------------------------------------------------


def test_workers_start_on_demand(method):
    with ProcessPoolExecutor(4, mproc_ext.get_context(method)) as executor:
        assert executor._processes == {}
        executor.submit(targets.square, 3).result(LIMIT)
        assert len(executor._processes) == (4 if method == "fork" else 1)
        executor.submit(targets.square, 3).result(LIMIT)
        assert len(executor._processes) == (4 if method == "fork" else 1)
        executor.map(targets.square, range(100))
        assert len(executor._processes) == 4
        processes = executor._processes
    assert all(process.exitcode == 0 for process in processes.values())


def test_max_tasks_per_child(method):
    if method == "fork":
        pytest.skip("the standard library forbids it")
    with ProcessPoolExecutor(1, mproc_ext.get_context(method), max_tasks_per_child=3) as executor:
        pids = [executor.submit(os.getpid).result(LIMIT) for _ in range(7)]
        assert [len(list(group)) for _, group in itertools.groupby(pids)] == [3, 3, 1]
        assert len(executor._processes) == 1


def test_a_worker_that_cannot_be_replaced(tmp_path):
    ctx = mproc_ext.get_context("spawn")
    executor = ProcessPoolExecutor(1, ctx, max_tasks_per_child=1)
    blocked, let_go = block(executor, tmp_path)
    waiting = executor.submit(targets.square, 3)
    with unittest.mock.patch.object(ctx.Process, "start", side_effect=OSError("no process")):
        let_go()
        assert blocked.result(LIMIT) > 0
        error = waiting.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert "could not be started" in str(error)
        assert "no process" in str(error.__cause__)
        executor.shutdown()


def test_workers_that_do_not_start():
    ctx = mproc_ext.get_context("spawn")
    executor = ProcessPoolExecutor(2, ctx)
    with unittest.mock.patch.object(ctx.Process, "start", side_effect=OSError("no process")):
        with pytest.raises(OSError, match="no process"):
            executor.submit(targets.square, 3)
    assert executor.submit(targets.square, 3).result(LIMIT) == 9
    executor.shutdown()


def test_a_thread_that_does_not_start(fork):
    executor = ProcessPoolExecutor(2, fork)
    before = set(multiprocessing.active_children())
    with unittest.mock.patch.object(
        threading.Thread, "start", side_effect=RuntimeError("can't start new thread")
    ):
        with pytest.raises(RuntimeError, match="can't start new thread"):
            executor.submit(targets.square, 3)
    assert set(multiprocessing.active_children()) == before
    assert executor.submit(targets.square, 3).result(LIMIT) == 9
    executor.shutdown()


def test_contexts(method):
    given = multiprocessing.get_context(method)
    with ProcessPoolExecutor(1, given) as executor:
        assert executor._mp_context is given
        assert executor.submit(targets.worker_id).result(LIMIT)[0] == 0
        (process,) = executor._processes.values()
        assert isinstance(process, mproc_ext.get_context(method).Process)
    with ProcessPoolExecutor(1) as executor:
        assert executor._mp_context is mproc_ext.get_context()
    with ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
        assert executor._mp_context is mproc_ext.get_context("spawn")


def test_a_foreign_context_has_the_stdlibs_executor():
    class Context(multiprocessing.context.ForkContext):
        """No context of this package."""

    with ProcessPoolExecutor(1, Context()) as executor:
        assert executor.submit(targets.square, 3).result(LIMIT) == 9
        assert list(executor.map(targets.pair, "ab", "cd", chunksize=2)) == [("a", "c"), ("b", "d")]
        executor.terminate_workers()
    with pytest.raises(NotImplementedError, match="no options"):
        ProcessPoolExecutor(1, Context(), timeout=3)


def test_the_stdlibs_executor_with_our_context(ctx):
    with concurrent.futures.ProcessPoolExecutor(2, ctx) as executor:
        assert list(executor.map(targets.square, range(50))) == [n * n for n in range(50)]
        assert executor.submit(targets.square, 3).result(LIMIT) == 9


def test_subclasses(fork):
    with targets.Subclass(1, fork) as executor:
        assert executor.submit(targets.square, 3).result(LIMIT) == 9
        assert list(executor.map(targets.square, range(4), chunksize=2)) == [0, 1, 4, 9]
        assert executor.count == 3
        assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"max_tasks_per_child": 1, "mp_context": mproc_ext.get_context("fork")}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"max_workers": 1.5}, TypeError),
        ({"max_workers": 2.0}, TypeError),
        ({"max_workers": 1.5, "initializer": 5}, TypeError),
    ],
)
def test_wrong_arguments_as_the_stdlib_says_it(arguments, kind):
    with pytest.raises(kind) as theirs:
        concurrent.futures.ProcessPoolExecutor(**arguments)
    with pytest.raises(kind) as ours:
        ProcessPoolExecutor(**arguments)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("chunksize", [0, 0.5, 1.0, 1.5, 2.0, "2", None])
@pytest.mark.parametrize("items", [[], [1, 2, 3]])
def test_what_is_no_chunk_size_as_the_stdlib_says_it(one, chunksize, items):
    kinds = (TypeError, ValueError)
    with concurrent.futures.ProcessPoolExecutor(1) as executor, pytest.raises(kinds) as theirs:
        executor.map(targets.square, items, chunksize=chunksize)
    with pytest.raises(kinds) as ours:
        one.map(targets.square, items, chunksize=chunksize)
    assert (type(ours.value), str(ours.value)) == (type(theirs.value), str(theirs.value))


def test_a_chunk_size_is_what_has_an_index(one):
    class Two(int):
        pass

    for chunksize in (True, Two(2)):
        assert list(one.map(targets.square, range(5), chunksize=chunksize)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize(
    "option",
    [
        {"timeout": 0},
        {"timeout": -1},
        {"retries": -1},
        {"retries": 1.5},
        {"max_memory": -1},
        {"cpus": []},
        {"max_restarts": (-1, 1)},
    ],
)
def test_wrong_options(option):
    with pytest.raises(ValueError, match=next(iter(option))):
        ProcessPoolExecutor(1, **option)


# ---- the end -------------------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [True, False])
def test_shutdown(ctx, wait):
    executor = ProcessPoolExecutor(2, ctx)
    todo = [executor.submit(targets.square, n) for n in range(50)]
    processes, thread = executor._processes, executor._executor_manager_thread
    executor.shutdown(wait=wait)
    executor.shutdown(wait=wait)
    if not wait:
        thread.join(LIMIT)
    assert not thread.is_alive()
    assert all(process.exitcode == 0 for process in processes.values())
    assert [future.result(0) for future in todo] == [n * n for n in range(50)]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(targets.square, 3)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(targets.square, [3])
    assert list(executor.map(targets.square, [])) == []


def test_shutdown_of_what_was_not_used():
    before = multiprocessing.active_children()
    executor = ProcessPoolExecutor(2)
    executor.shutdown()
    assert multiprocessing.active_children() == before


def test_shutdown_while_others_submit(fork):
    """Each future has a result, or was not accepted."""
    for _ in range(20):
        executor = ProcessPoolExecutor(2, fork)
        executor.submit(targets.square, 0).result(LIMIT)
        todo = queue.Queue()

        def submit(executor=executor, todo=todo):
            for n in itertools.count():
                todo.put(executor.submit(targets.square, n))

        tasks = [Task(submit) for _ in range(2)]
        wait_until(lambda todo=todo: todo.qsize() > 20)
        executor.shutdown()
        for task in tasks:
            with pytest.raises(RuntimeError, match="after shutdown"):
                task.get()
        while not todo.empty():
            assert todo.get().result(LIMIT) >= 0


@pytest.mark.parametrize("operation", ["terminate_workers", "kill_workers"])
def test_force(ctx, tmp_path, operation):
    executor = ProcessPoolExecutor(2, ctx)
    blocked, _ = block(executor, tmp_path)
    todo = [executor.submit(targets.note_and_block, str(tmp_path / "x")) for _ in range(10)]
    thread, processes = executor._executor_manager_thread, dict(executor._processes)
    getattr(executor, operation)()
    thread.join(LIMIT)
    assert not thread.is_alive()
    wait_until_gone(*processes)
    assert type(blocked.exception(0)) is BrokenProcessPool
    assert all(
        future.cancelled() or type(future.exception(0)) is BrokenProcessPool for future in todo
    )
    assert sum(future.cancelled() for future in todo) >= 8
    with pytest.raises(RuntimeError):
        executor.submit(targets.square, 3)


def are_reaped(processes):
    """Without a look that would reap them."""
    return [process._popen.returncode is not None for process in processes]


@pytest.mark.parametrize("operation", ["terminate_workers", "kill_workers"])
@pytest.mark.parametrize("is_shut_down", [False, True])
def test_shutdown_waits_for_workers_that_were_ended(ctx, tmp_path, operation, is_shut_down):
    with ProcessPoolExecutor(2, ctx) as executor:
        block(executor, tmp_path)
        executor.submit(targets.note_and_block, os.devnull)
        processes = list(executor._processes.values())
        if is_shut_down:
            executor.shutdown(wait=False)
        getattr(executor, operation)()
    assert are_reaped(processes) == [True, True]


def test_shutdown_waits_for_the_workers_of_a_broken_executor(ctx, tmp_path):
    with ProcessPoolExecutor(2, ctx) as executor:
        block(executor, tmp_path)
        error = executor.submit(targets.die, "kill").exception(LIMIT)
        assert type(error) is BrokenProcessPool
        processes = list(executor._processes.values())
        executor.shutdown(wait=False)
    assert are_reaped(processes) == [True, True]


def test_an_executor_that_is_collected(ctx):
    executor = ProcessPoolExecutor(2, ctx)
    todo = [executor.submit(targets.square, n) for n in range(100)]
    thread, processes = executor._executor_manager_thread, executor._processes
    seen = weakref.ref(executor)
    del executor
    gc.collect()
    assert seen() is None
    thread.join(LIMIT)
    assert not thread.is_alive()
    assert all(process.exitcode == 0 for process in processes.values())
    assert [future.result(0) for future in todo] == [n * n for n in range(100)]


def test_an_initializer_that_refers_to_the_executor_does_not_keep_it(fork):
    holder = []
    executor = ProcessPoolExecutor(1, fork, initializer=targets.nothing, initargs=(holder,))
    holder.append(executor)
    executor.submit(targets.square, 3).result(LIMIT)
    thread, seen = executor._executor_manager_thread, weakref.ref(executor)
    del executor, holder
    gc.collect()
    assert seen() is None
    thread.join(LIMIT)
    assert not thread.is_alive()


EXIT = """
import sys
from futures_targets import note, square
from mproc_ext import get_context
from mproc_ext.futures import ProcessPoolExecutor
if __name__ == "__main__":
    executor = ProcessPoolExecutor(2, get_context(sys.argv[1]))
    for n in range(200):
        executor.submit(note, sys.argv[2], n)
    results = executor.map(square, range(1000))
    if sys.argv[3] == "raise":
        raise SystemExit(0)
"""


@pytest.mark.parametrize("how", ["end", "raise"])
def test_what_is_pending_at_exit_is_done(method, tmp_path, how):
    program = tmp_path / "program.py"
    program.write_text(EXIT)
    paths = os.pathsep.join(sys.path)
    assert run_program(program, method, tmp_path / "notes", how, env={"PYTHONPATH": paths}) == ""
    assert sorted(map(int, lines(tmp_path / "notes"))) == list(range(200))


def use_in_a_child(executor, future, connection):
    found = [future.done(), future.running(), future.cancel(), future.cancelled()]
    try:
        executor.submit(targets.square, 3)
    except RuntimeError as error:
        found.append(str(error))
    executor.shutdown()
    connection.send(found)


def test_a_forked_copy(one, fork, tmp_path):
    blocked, let_go = block(one, tmp_path)
    here, there = fork.Pipe()
    child = fork.Process(target=use_in_a_child, args=(one, blocked, there))
    child.start()
    assert here.poll(LIMIT)
    *found, message = here.recv()
    child.join(LIMIT)
    assert child.exitcode == 0
    assert found == [False, True, False, False]
    assert "belongs to the process that has used it" in message
    let_go()
    assert blocked.result(LIMIT) > 0


def use_unused(executor, connection):
    with executor:
        connection.send(executor.submit(targets.square, 3).result(LIMIT))


def test_a_forked_copy_of_what_was_not_used(fork):
    executor = ProcessPoolExecutor(1, fork)
    here, there = fork.Pipe()
    child = fork.Process(target=use_unused, args=(executor, there))
    child.start()
    assert here.poll(LIMIT)
    assert here.recv() == 9
    child.join(LIMIT)
    assert child.exitcode == 0
    assert executor.submit(targets.square, 4).result(LIMIT) == 16
    executor.shutdown()


# ---- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["kill", "exit", "exit with 0", "segfault"])
def test_a_worker_dies(ctx, how):
    with ProcessPoolExecutor(2, ctx) as executor:
        assert executor.submit(targets.square, 3).result(LIMIT) == 9
        todo = [executor.submit(targets.die, how)]
        todo += [executor.submit(targets.note_and_block, os.devnull) for _ in range(5)]
        errors = [future.exception(LIMIT) for future in todo]
        assert {type(error) for error in errors} == {BrokenProcessPool}
        assert len(set(map(id, errors))) == len(errors)
        for error in errors:
            assert "terminated abruptly while the future was running or pending" in str(error)
            why = str(error.__cause__)
            assert re.search(r"Process \d+ terminated abruptly with exit code", why)
        with pytest.raises(BrokenProcessPool, match="not usable anymore"):
            executor.submit(targets.square, 3)
        with pytest.raises(BrokenProcessPool, match="not usable anymore"):
            executor.map(targets.square, [3])


def test_an_idle_worker_is_killed(ctx):
    with ProcessPoolExecutor(2, ctx) as executor:
        pids = {executor.submit(os.getpid).result(LIMIT) for _ in range(10)}
        os.kill(pids.pop(), signal.SIGKILL)
        wait_until(lambda: executor._broken, "that it is noticed")
        with pytest.raises(BrokenProcessPool):
            executor.submit(targets.square, 3)


def test_a_map_whose_worker_dies(ctx):
    with ProcessPoolExecutor(2, ctx) as executor:
        results = executor.map(targets.die_at, range(2000), itertools.repeat(1000))
        found = []
        with pytest.raises(BrokenProcessPool) as caught:
            found.extend(results)
        assert found == list(range(len(found)))
        assert len(found) <= 1000
        assert "exit code -9" in story(caught.value)


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_arguments_that_cannot_be_unpickled(ctx, kind):
    with ProcessPoolExecutor(1, ctx) as executor:
        error = executor.submit(targets.nothing, targets.RaisesWhenRead(kind)).exception(LIMIT)
        assert type(error) is BrokenProcessPool


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_results_that_cannot_be_unpickled(ctx, kind):
    with ProcessPoolExecutor(1, ctx) as executor:
        pid = executor.submit(os.getpid).result(LIMIT)
        future = executor.submit(targets.make_unreadable, kind)
        waiting = executor.submit(os.getpid)
        error = future.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert "the result of make_unreadable cannot be unpickled" in str(error)
        assert type(error.__cause__) is kind
        assert error.__cause__.args == ("cannot be read",)
        # It is that task's alone.
        assert waiting.result(LIMIT) == pid
        assert not executor._broken
        with pytest.raises(BrokenProcessPool, match="task 0 of make_unreadable"):
            list(executor.map(targets.make_unreadable, [kind, kind]))
        assert executor.submit(os.getpid).result(LIMIT) == pid


def test_an_exception_that_cannot_be_unpickled(ctx):
    with ProcessPoolExecutor(1, ctx) as executor:
        future = executor.submit(targets.fail, targets.Unpicklable, 1, 2)
        waiting = executor.submit(targets.square, 3)
        error = future.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert "the exception of fail cannot be unpickled" in str(error)
        reason = error.__cause__
        assert type(reason) is TypeError
        assert "Unpicklable" in str(reason)
        assert type(reason.__cause__) is concurrent.futures.process._RemoteTraceback
        assert "raise kind(*args)" in str(reason.__cause__)
        assert waiting.result(LIMIT) == 9
        assert not executor._broken


def test_a_callback_sees_an_exception_that_cannot_be_unpickled(one):
    seen = queue.Queue()
    future = one.submit(targets.fail, targets.Unpicklable, 1, 2)
    future.add_done_callback(lambda done: seen.put(done.exception(0)))
    error = seen.get(timeout=LIMIT)
    assert error is future.exception(0)
    assert "raise kind(*args)" in str(error.__cause__.__cause__)


def test_an_initializer_that_fails(ctx):
    with ProcessPoolExecutor(2, ctx, targets.fail_to_begin, ("really",)) as executor:
        error = executor.submit(targets.square, 3).exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert "not today" in str(error.__cause__)
        wait_until(lambda: executor._broken, "that it is noticed")


def test_a_death_with_a_lot_to_do_is_told_in_no_time(one, tmp_path):
    _, _ = block(one, tmp_path)
    todo = [one.submit(targets.square, n) for n in range(30_000)]
    (pid,) = one._processes
    os.kill(pid, signal.SIGKILL)
    assert len(concurrent.futures.wait(todo, LIMIT).done) == len(todo)
    assert {type(future.exception(0)) for future in todo} == {BrokenProcessPool}


def test_the_others_are_ended_when_one_dies(ctx, tmp_path):
    with ProcessPoolExecutor(2, ctx) as executor:
        blocked, _ = block(executor, tmp_path)
        executor.submit(targets.die, "kill")
        assert type(blocked.exception(LIMIT)) is BrokenProcessPool
        (pid,) = lines(tmp_path / "noted")
    assert is_gone(int(pid))


PARENT = """
import os, signal, sys
from futures_targets import note_and_block
from mproc_ext import get_context
from mproc_ext.futures import ProcessPoolExecutor
from pool_helpers import wait_for_lines
import pathlib
if __name__ == "__main__":
    executor = ProcessPoolExecutor(2, get_context(sys.argv[1]))
    for _ in range(2):
        executor.submit(note_and_block, sys.argv[2])
    wait_for_lines(pathlib.Path(sys.argv[2]), 1)
    print(*executor._processes, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_parent_is_killed(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PARENT)
    paths = os.pathsep.join(sys.path)
    out = run_program(
        program, method, tmp_path / "notes", env={"PYTHONPATH": paths}, expect=-signal.SIGKILL
    )
    wait_until_gone(*map(int, out.split()))


# ---- beyond the stdlib ---------------------------------------------------------------------------


def test_timeout(ctx, tmp_path):
    with ProcessPoolExecutor(1, ctx, timeout=0.2) as executor:
        pid = executor.submit(os.getpid).result(LIMIT)
        error = executor.submit(targets.note_and_block, os.devnull).exception(LIMIT)
        assert type(error) is futures.TaskTimeoutError
        assert "note_and_block took longer than 0.2 s" in str(error)
        assert executor.submit(os.getpid).result(LIMIT) != pid
        assert list(executor.map(targets.square, range(5))) == [0, 1, 4, 9, 16]


def test_retries(ctx, tmp_path):
    with ProcessPoolExecutor(2, ctx, retries=1) as executor:
        assert executor.submit(targets.die_at_first, str(tmp_path / "one"), 5).result(LIMIT) == 5
        error = executor.submit(targets.die, "kill").exception(LIMIT)
        assert type(error) is futures.WorkerLostError
        assert error.exitcode == -signal.SIGKILL
        assert "die" in error.task
        results = executor.map(targets.die_at_first, [str(tmp_path / "two")] * 50, range(50))
        assert list(results) == list(range(50))


def test_max_restarts(ctx):
    with ProcessPoolExecutor(1, ctx, max_restarts=(2, LIMIT)) as executor:
        for _ in range(2):
            assert type(executor.submit(targets.die, "exit").exception(LIMIT)) is (
                futures.WorkerLostError
            )
        assert executor.submit(targets.square, 3).result(LIMIT) == 9
        unread = executor.submit(targets.make_unreadable, ValueError).exception(LIMIT)
        assert unread.__cause__.args == ("cannot be read",)
        executor.submit(targets.die, "exit").exception(LIMIT)
        wait_until(lambda: executor._broken, "that it is broken")
        with pytest.raises(BrokenProcessPool):
            executor.submit(targets.square, 3)


def test_max_restarts_says_which_was_the_last(ctx, tmp_path):
    with ProcessPoolExecutor(2, ctx, max_restarts=(0, LIMIT)) as executor:
        waiting, _ = block(executor, tmp_path)
        executor.submit(targets.die, "exit").exception(LIMIT)
        error = waiting.exception(LIMIT)
        assert type(error) is BrokenProcessPool
        assert "1 workers have died" in str(error)
        assert "WorkerLostError" in str(error.__cause__)
        assert "exit code 3 in the middle of die" in str(error.__cause__)


def test_max_memory(ctx):
    most = _engine._memory() + (200 << 20)  # a forked worker begins with what this one has
    with ProcessPoolExecutor(1, ctx, max_memory=most) as executor:
        pid = executor.submit(targets.grow, 1).result(LIMIT)
        assert executor.submit(targets.grow, most >> 19).result(LIMIT) == pid
        assert executor.submit(os.getpid).result(LIMIT) != pid
        assert is_gone(pid)


def test_cpus_and_worker_exit(ctx, tmp_path):
    cpus = sorted(os.sched_getaffinity(0))[:2]
    noted = tmp_path / "exits"
    exit_ = targets.Exit(str(noted))
    with ProcessPoolExecutor(2, ctx, cpus=cpus, worker_exit=exit_) as executor:
        seen = dict(executor.map(targets.affinity, range(50)))
        count = len(executor._processes)
    for place, allowed in seen.items():
        assert allowed == {cpus[place % len(cpus)]}
    assert len(lines(noted)) == count


def test_cloudpickle(ctx):
    pytest.importorskip("cloudpickle")
    with ProcessPoolExecutor(1, ctx, cloudpickle=True) as executor:
        n = 5
        assert executor.submit(lambda x: x + n, 3).result(LIMIT) == 8
        assert list(executor.map(lambda x, y: (x, y, n), "ab", "cd")) == [
            ("a", "c", 5),
            ("b", "d", 5),
        ]


def test_current_worker(shared):
    ids = {place for place, _ in shared.map(targets.worker_id, range(50))}
    assert ids <= {0, 1}
    assert ids
    assert futures.current_worker() is None


# ---- the quick paths -----------------------------------------------------------------------------


def test_a_future_that_nobody_else_waits_for_has_no_lock(one):
    future = one.submit(targets.square, 3)
    assert future.result(LIMIT) == 9
    assert future.done()
    assert vars(future) == {}


def test_a_map_is_one_job(one, tmp_path):
    _, let_go = block(one, tmp_path)
    before = one._crew._unfinished
    results = one.map(targets.square, range(10_000))
    assert one._crew._unfinished == before + 1
    let_go()
    assert len(list(results)) == 10_000


def test_what_is_pending_is_cancelled_by_its_items(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    waiting = [one.submit(targets.square, n) for n in range(5)]
    for item in one._pending_work_items.values():
        item.future.cancel()
    let_go()
    assert blocked.result(LIMIT) > 0
    assert all(future.cancelled() for future in waiting)
    assert one.submit(targets.square, 3).result(LIMIT) == 9


def test_workers_before_the_first_task(ctx):
    """As PyTorch's compiler has them."""
    with ProcessPoolExecutor(3, ctx) as executor:
        for _ in range(2):
            executor._adjust_process_count()
        executor._start_executor_manager_thread()
        assert len(executor._processes) == (3 if ctx.get_start_method() == "fork" else 2)
        assert executor._executor_manager_thread.is_alive()
        executor._adjust_process_count()
        executor._adjust_process_count()
        assert len(executor._processes) == 3
        assert executor.submit(targets.square, 3).result(LIMIT) == 9
    with ProcessPoolExecutor(3, ctx) as executor:
        executor._start_executor_manager_thread()
        assert executor.submit(targets.square, 3).result(LIMIT) == 9


@pytest.mark.parametrize("is_begun", [True, False])
@pytest.mark.parametrize("call", ["set_result", "set_exception", "set_running_or_notify_cancel"])
def test_somebody_else_settles_a_future(one, tmp_path, is_begun, call):
    begun, let_go = block(one, tmp_path)
    future = begun if is_begun else one.submit(targets.square, 3)
    if call == "set_running_or_notify_cancel":
        if is_begun:
            with pytest.raises(RuntimeError, match="unexpected state"):
                future.set_running_or_notify_cancel()
        else:
            assert future.set_running_or_notify_cancel()
    else:
        with pytest.raises(concurrent.futures.InvalidStateError):
            getattr(future, call)(ValueError("theirs"))
    let_go()
    assert one.submit(targets.square, 4).result(LIMIT) == 16
    assert concurrent.futures.wait([begun, future], LIMIT).not_done == set()
    assert one._crew._unfinished == 0
    assert not one._broken


def test_pending_work_items(one, tmp_path):
    blocked, let_go = block(one, tmp_path)
    waiting = one.submit(targets.square, 3)
    assert [item.future for item in one._pending_work_items.values()] == [blocked, waiting]
    let_go()
    assert waiting.result(LIMIT) == 9
    assert len(one._pending_work_items) == 0
