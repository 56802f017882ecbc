"""What a pool has beyond the standard library."""

import asyncio
import concurrent.futures
import fractions
import functools
import itertools
import math
import multiprocessing
import os
import pathlib
import pickle
import signal
import sys
import threading
import time

import option_targets as options
import pool_targets as targets
import pytest
from pool_helpers import (
    LIMIT,
    is_gone,
    lines,
    story,
    wait_for_lines,
    wait_until_gone,
)
from sync_helpers import Task, run_program, wait_until, wait_until_asleep

import mproc_ext
from mproc_ext import pool as pools

CancelledError = concurrent.futures.CancelledError
HERE = pathlib.Path(__file__).parent
PATHS = os.pathsep.join(map(str, [HERE, HERE.parent / "sync"]))
# Timeouts of what takes for ever: where nothing else has to be in time, and where other tasks do,
# in workers that may have to import what they run.
BRIEF = 0.2
AMPLE = 3


@pytest.fixture
def ctx(method):
    return mproc_ext.get_context(method)


@pytest.fixture
def fork():
    return mproc_ext.get_context("fork")


@pytest.fixture
def two(fork):
    with fork.Pool(2) as pool:
        yield pool


@pytest.fixture
def one(fork):
    with fork.Pool(1) as pool:
        yield pool


@pytest.fixture
def notes(tmp_path):
    return tmp_path / "notes"


def pids(pool):
    return [worker.pid for worker in pool._pool]


def check_usable(pool, size=2):
    assert pool.map(targets.square, range(50), 1) == [n * n for n in range(50)]
    assert list(pool.imap(targets.square, range(20))) == [n * n for n in range(20)]
    assert pool.apply_async(targets.add, (1,), {"y": 2}).get(LIMIT) == 3

    def is_full():
        return len(pool._pool) == size and not any(map(is_gone, pids(pool)))

    wait_until(is_full, f"that there are {size} workers")


def check_ends(pool):
    workers = pids(pool)
    pool.close()
    pool.join()
    assert all(map(is_gone, workers))


def collect(iterator):
    """(what it gives, the errors it raises) until its end."""
    found, errors = [], []
    while True:
        try:
            found.append(iterator.next(LIMIT))
        except StopIteration:
            return found, errors
        except mproc_ext.TimeoutError as error:
            assert type(error) is pools.TaskTimeoutError, f"stuck after {found} and {errors}"
            errors.append(error)
        except Exception as error:
            errors.append(error)


def begin_and_block(pool, notes, word="begun"):
    """A task that is running, and what it waits for."""
    gate = notes.with_name(f"gate-{word}")
    result = pool.apply_async(options.note_then_wait_for, (str(notes), word, str(gate)))
    wait_until(lambda: word in lines(notes), "the begin of the task")
    return result, gate


# ---- timeout= ------------------------------------------------------------------------------------


def calls(pool, function, items, **names):
    """All ways to call a function of one argument, each as a function without one."""
    return {
        "apply": lambda: [pool.apply(function, (x,), **names) for x in items],
        "apply_async": lambda: [
            result.get(LIMIT)
            for result in [pool.apply_async(function, (x,), **names) for x in items]
        ],
        "map": lambda: pool.map(function, items, 1, **names),
        "map_async": lambda: pool.map_async(function, items, 1, **names).get(LIMIT),
        "starmap": lambda: pool.starmap(function, [(x,) for x in items], 1, **names),
        "starmap_async": lambda: pool.starmap_async(
            function, [(x,) for x in items], 1, **names
        ).get(LIMIT),
        "imap": lambda: list(pool.imap(function, items, **names)),
        "imap_unordered": lambda: sorted(pool.imap_unordered(function, items, **names)),
    }


CALLS = list(calls(None, None, None))
MAPS = CALLS[2:]


@pytest.mark.parametrize("call", CALLS)
def test_timeout(two, call):
    began = time.monotonic()
    with pytest.raises(pools.TaskTimeoutError) as found:
        calls(two, options.sleep_at_three, range(6), timeout=BRIEF)[call]()
    assert time.monotonic() - began >= BRIEF
    assert isinstance(found.value, mproc_ext.TimeoutError)
    assert "sleep_at_three" in str(found.value)
    assert str(BRIEF) in str(found.value)
    assert str(found.value) == str(pickle.loads(pickle.dumps(found.value)))
    check_usable(two)


@pytest.mark.parametrize("call", CALLS)
def test_a_timeout_that_is_not_reached(two, call):
    before = pids(two)
    assert calls(two, targets.identity, range(20), timeout=LIMIT)[call]() == list(range(20))
    assert pids(two) == before


def test_timeout_by_each_method(ctx):
    with ctx.Pool(2) as pool:
        found, errors = collect(pool.imap(options.sleep_at_three, range(8), timeout=AMPLE))
        assert found == [0, 1, 2, 4, 5, 6, 7]
        assert [type(error) for error in errors] == [pools.TaskTimeoutError]
        check_usable(pool)
        check_ends(pool)


def test_timeout_kills_and_replaces_the_worker(two, notes):
    result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),), timeout=BRIEF)
    (pid,) = map(int, wait_for_lines(notes, 1))
    with pytest.raises(pools.TaskTimeoutError) as found:
        result.get(LIMIT)
    assert str(pid) in str(found.value)
    wait_until_gone(pid)
    check_usable(two)
    assert pid not in pids(two)
    assert not result.cancelled()
    assert result.done()


def test_the_time_counts_from_where_the_task_begins(one):
    """Not from where it was asked for."""
    results = [one.apply_async(options.sleep, (0.4,)) for _ in range(10)]
    late = one.apply_async(targets.square, (3,), timeout=AMPLE)
    assert late.get(LIMIT) == 9
    assert [result.get(0) for result in results] == [0.4] * 10


def test_a_timeout_fails_no_other_task(one):
    """That was given to the worker before it was killed."""
    stuck = one.apply_async(options.sleep_at, (1, 1), timeout=BRIEF)
    others = [one.apply_async(targets.square, (n,)) for n in range(300)]
    with pytest.raises(pools.TaskTimeoutError):
        stuck.get(LIMIT)
    assert [other.get(LIMIT) for other in others] == [n * n for n in range(300)]


def test_timeouts_in_the_middle_of_a_map(two, notes):
    """The map has failed, and its other tasks were done."""
    result = two.map_async(
        functools.partial(options.note_and_sleep_at_three, str(notes)), range(12), 1, timeout=AMPLE
    )
    with pytest.raises(pools.TaskTimeoutError) as found:
        result.get(LIMIT)
    assert "task 3 of" in str(found.value)
    assert sorted(map(int, lines(notes))) == list(range(12))


@pytest.mark.parametrize("call", ["map", "starmap", "map_async", "starmap_async"])
def test_a_timeout_is_of_one_call(two, notes, call):
    """Where no size of chunks was asked for: none is lost with another one."""

    def made(function, count, *chunksize, timeout):
        items = [(n,) for n in range(count)] if "star" in call else range(count)
        value = getattr(two, call)(function, items, *chunksize, timeout=timeout)
        return value.get(LIMIT) if "async" in call else value

    function = functools.partial(options.note_and_sleep_at_three, str(notes))
    with pytest.raises(pools.TaskTimeoutError, match="task 3 of"):
        made(function, 32, timeout=AMPLE)
    assert sorted(map(int, lines(notes))) == list(range(32))
    with pytest.raises(pools.TaskTimeoutError, match="items 2 to 3 of"):
        made(options.sleep_at_three, 4, 2, timeout=BRIEF)


def test_many_timeouts(two):
    found, errors = collect(
        two.imap_unordered(options.sleep_at_three, [3, 1, 3, 2, 3, 3], timeout=1)
    )
    assert sorted(found) == [1, 2]
    assert [type(error) for error in errors] == [pools.TaskTimeoutError] * 4
    check_usable(two)


def test_short_timeouts_of_tasks_that_are_as_short(two):
    """Each result is there, or the error is; the first task of a new worker is not the one before
    it."""
    for _ in range(5):
        found, errors = collect(two.imap(options.sleep, [0.0, 0.02, 0.0] * 4, timeout=0.015))
        assert len(found) + len(errors) == 12
        assert {type(error) for error in errors} <= {pools.TaskTimeoutError}
    check_usable(two)


def test_a_timeout_calls_the_callback(two):
    told = []
    result = two.apply_async(
        options.sleep_at, (1, 1), timeout=BRIEF, callback=told.append, error_callback=told.append
    )
    result.wait(LIMIT)
    assert [type(error) for error in told] == [pools.TaskTimeoutError]


def test_a_timeout_with_maxtasksperchild(fork):
    with fork.Pool(2, maxtasksperchild=2) as pool:
        found, errors = collect(pool.imap(options.sleep_at_three, range(20), timeout=AMPLE))
        assert found == [n for n in range(20) if n != 3]
        assert [type(error) for error in errors] == [pools.TaskTimeoutError]
        check_ends(pool)


def test_a_task_that_took_too_long_is_not_done_again(two, notes):
    function = functools.partial(options.note_and_sleep_at_three, str(notes))
    with pytest.raises(pools.TaskTimeoutError):
        two.map(function, range(6), 1, timeout=AMPLE, retries=5)
    assert sorted(map(int, lines(notes))) == list(range(6))


def test_timeout_and_retries(two, notes):
    """A task that died is done again, with its time from the start."""
    function = functools.partial(options.die_at_first, str(notes), times=2)
    assert two.map(function, range(5), 1, timeout=LIMIT, retries=2) == list(range(5))


@pytest.mark.parametrize("timeout", [None, 1e10, math.inf, 1, 10**6])
def test_timeouts_of_all_kinds(two, timeout):
    assert two.apply(targets.square, (3,), timeout=timeout) == 9
    assert two.map(targets.square, range(3), timeout=timeout) == [0, 1, 4]


# ---- retries= ------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_retries(two, notes, call):
    """The second time it succeeds."""
    function = functools.partial(options.die_at_first, str(notes))
    assert calls(two, function, range(4), retries=1)[call]() == list(range(4))
    for n in range(4):
        assert len(lines(notes.with_name(f"notes-{n}"))) == 2
    check_usable(two)


@pytest.mark.parametrize("call", CALLS)
def test_retries_that_run_out(two, notes, call):
    function = functools.partial(options.die_at_first, str(notes), times=100)
    with pytest.raises(pools.WorkerLostError) as found:
        calls(two, function, [0], retries=2)[call]()
    assert found.value.exitcode == -signal.SIGKILL
    assert "die_at_first" in found.value.task
    assert len(lines(notes.with_name("notes-0"))) == 3
    check_usable(two)


def test_no_retries(two, notes):
    with pytest.raises(pools.WorkerLostError):
        two.apply(options.die_at_first, (str(notes), 0))
    assert len(lines(notes.with_name("notes-0"))) == 1


def test_retries_by_each_method(ctx, notes):
    with ctx.Pool(2) as pool:
        function = functools.partial(options.die_at_first, str(notes))
        assert pool.map(function, range(3), 1, retries=1) == [0, 1, 2]
        check_ends(pool)


def test_exceptions_are_not_retried(two, notes):
    function = functools.partial(targets.note_and_return, str(notes))
    assert two.map(function, range(3), retries=9) == [0, 1, 2]
    with pytest.raises(ValueError, match="item 1"):
        two.map(options.fail_at_odd, range(3), 1, retries=9)
    assert sorted(lines(notes)) == ["0", "1", "2"]


@pytest.mark.parametrize("size", [10, 100_000, 5 << 20])
def test_retries_of_large_arguments(two, notes, size):
    items = [(str(notes), n, b"x" * size) for n in range(3)]
    assert two.starmap(options.die_with, items, 1, retries=1) == [size] * 3


def test_retries_of_a_chunk(two, notes):
    function = functools.partial(options.die_at_first, str(notes))
    assert two.map(function, range(6), 3, retries=3) == list(range(6))


def test_retries_with_maxtasksperchild(fork, notes):
    with fork.Pool(2, maxtasksperchild=1) as pool:
        function = functools.partial(options.die_at_first, str(notes))
        assert pool.map(function, range(5), 1, retries=1) == list(range(5))


def test_as_many_retries_as_you_like(two, notes):
    result = two.apply(options.die_at_first, (str(notes), 7), retries=sys.maxsize)
    assert result == 7


# ---- cancel(), cancelled(), done() ---------------------------------------------------------------


def check_cancelled(result):
    with pytest.raises(CancelledError):
        result.get(LIMIT)
    assert result.cancelled()
    assert result.done()
    assert result.ready()
    assert not result.successful()
    assert result.cancel()


def test_cancel_what_is_running(two, notes):
    result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
    (pid,) = map(int, wait_for_lines(notes, 1))
    assert not result.done()
    assert not result.cancelled()
    assert result.cancel()
    check_cancelled(result)
    wait_until_gone(pid)
    check_usable(two)
    assert pid not in pids(two)


def test_cancel_what_is_running_by_each_method(ctx, notes):
    with ctx.Pool(2) as pool:
        result = pool.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
        (pid,) = map(int, wait_for_lines(notes, 1))
        assert result.cancel()
        check_cancelled(result)
        wait_until_gone(pid)
        check_usable(pool)
        check_ends(pool)


def test_cancel_what_is_not_begun(one, notes):
    """Whether the worker has it already, or not: it never runs, and no worker is killed."""
    blocked, gate = begin_and_block(one, notes)
    before = pids(one)
    results = [one.apply_async(targets.note_and_return, (str(notes), n)) for n in range(300)]
    kept = {0, 7, 150, 299}
    for n, result in enumerate(results):
        assert n in kept or result.cancel()
    gate.touch()
    assert blocked.get(LIMIT) == "begun"
    for n, result in enumerate(results):
        if n in kept:
            assert result.get(LIMIT) == n
            assert not result.cancelled()
        else:
            check_cancelled(result)
    assert lines(notes) == ["begun", *map(str, sorted(kept))]
    assert pids(one) == before


def test_cancel_what_is_done(two):
    result = two.apply_async(targets.square, (3,))
    assert result.get(LIMIT) == 9
    assert not result.cancel()
    assert not result.cancelled()
    assert result.get() == 9
    failed = two.apply_async(targets.fail, (ValueError, "no"))
    failed.wait(LIMIT)
    assert not failed.cancel()
    with pytest.raises(ValueError, match="no"):
        failed.get()


def test_cancel_kills_only_what_runs(one, notes):
    """What else was given to that worker is done by the next one."""
    first, _ = begin_and_block(one, notes)
    others = [one.apply_async(targets.square, (n,)) for n in range(300)]
    assert first.cancel()
    check_cancelled(first)
    assert [other.get(LIMIT) for other in others] == [n * n for n in range(300)]


def test_cancel_large_arguments(one, notes):
    blocked, gate = begin_and_block(one, notes)
    results = [one.apply_async(targets.size, (b"x" * (1 << 20),), retries=n % 2) for n in range(40)]
    assert all(result.cancel() for result in results)
    gate.touch()
    assert blocked.get(LIMIT) == "begun"
    check_usable(one, 1)


def test_cancel_a_map_half_done(two, notes):
    function = functools.partial(options.note_and_sleep_at_three, str(notes))
    result = two.map_async(function, [0, 1, 2] + [3] * 20, 1)
    wait_until(lambda: lines(notes).count("3") == 2, "that both workers sleep")
    assert result.cancel()
    check_cancelled(result)
    check_usable(two)
    assert lines(notes).count("3") == 2


@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
@pytest.mark.parametrize("buffersize", [None, 3])
def test_cancel_an_imap(two, kind, buffersize):
    items = [0, 1, 2, 3, 4, 3, 5, 6]
    iterator = getattr(two, kind)(options.sleep_at_three, items, buffersize=buffersize)
    found = [iterator.next(LIMIT) for _ in range(3)]
    assert kind == "imap_unordered" or found == [0, 1, 2]
    assert iterator.cancel()
    assert iterator.cancelled()
    with pytest.raises(CancelledError):
        found.extend(iterator)
    assert len(found) == len(set(found))
    assert set(found) <= {0, 1, 2, 4, 5, 6}
    check_usable(two)


def test_cancel_an_imap_of_infinitely_many(two):
    drawn = itertools.count()
    iterator = two.imap(targets.square, drawn, buffersize=4)
    assert [next(iterator) for _ in range(3)] == [0, 1, 4]
    assert iterator.cancel()
    seen = next(drawn)
    check_usable(two)
    assert next(drawn) == seen + 1
    check_ends(two)


@pytest.mark.parametrize("wait", ["get", "get with a limit", "wait", "next"])
def test_cancel_while_others_wait(two, notes, wait):
    if wait == "next":
        result = two.imap(targets.note_and_sleep_for_ever, [str(notes)])
        waits = [Task(result.next) for _ in range(2)]
    else:
        result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
        waits = {
            "get": [Task(result.get) for _ in range(3)],
            "get with a limit": [Task(result.get, LIMIT) for _ in range(3)],
            "wait": [Task(result.wait) for _ in range(3)],
        }[wait]
    wait_for_lines(notes, 1)
    for each in waits:
        wait_until_asleep(each)
    assert result.cancel()
    for each in waits:
        if wait == "wait":
            assert each.get() is None
        else:
            with pytest.raises(CancelledError):
                each.get()
    check_usable(two)


def test_cancel_by_a_callback(two, notes):
    """In the service thread: of another call, and of the one that it is about."""
    other = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
    wait_for_lines(notes, 1)
    told = []

    def cancel(value):
        told.append((value, other.cancel(), result.cancel()))

    held = threading.Event()
    result = two.apply_async(
        targets.square, (3,), callback=lambda value: (held.wait(LIMIT), cancel(value))
    )
    held.set()
    assert result.get(LIMIT) == 9
    assert told == [(9, True, False)]
    check_cancelled(other)
    assert not result.cancelled()


def test_cancel_calls_the_error_callback(two, notes):
    told = []
    result = two.apply_async(
        targets.note_and_sleep_for_ever, (str(notes),), error_callback=told.append
    )
    wait_for_lines(notes, 1)
    assert result.cancel()
    result.wait(LIMIT)
    assert [type(error) for error in told] == [CancelledError]


def test_cancel_from_many_threads(two, notes):
    """One of them does it; it counts as cancelled for all."""
    result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
    wait_for_lines(notes, 1)
    tasks = [Task(result.cancel) for _ in range(8)]
    assert all(task.get() for task in tasks)
    check_cancelled(result)


def test_cancel_at_any_moment(two):
    """Each call is done, or cancelled."""
    for n in range(150):
        result = two.apply_async(targets.square, (n,))
        if n % 3:
            time.sleep(n % 7 / 10_000)
        if result.cancel():
            with pytest.raises(CancelledError):
                result.get(LIMIT)
        else:
            assert result.get(LIMIT) == n * n
    check_usable(two)


def test_cancel_in_the_items_own_iterator(two):
    told = []

    def items():
        yield from range(3)
        told.append(iterator.cancel())
        yield 3

    iterator = two.imap(targets.identity, items(), buffersize=1)
    with pytest.raises(CancelledError):
        list(iterator)
    assert told == [True]
    check_usable(two)


def test_cancel_with_a_retry_in_sight(two, notes):
    """It is not done again."""
    result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),), retries=5)
    wait_for_lines(notes, 1)
    assert result.cancel()
    check_usable(two)
    assert len(lines(notes)) == 1


def test_cancel_twice_before_the_callback_is_called(two, notes):
    first = threading.Event()
    two.apply_async(targets.nothing, callback=lambda _: first.wait(LIMIT))  # callbacks wait
    result = two.apply_async(
        targets.note_and_sleep_for_ever, (str(notes),), error_callback=lambda _: None
    )
    wait_for_lines(notes, 1)
    assert result.cancel()
    assert not result.ready()
    assert result.cancelled()
    assert result.cancel()
    first.set()
    check_cancelled(result)


def test_cancel_after_the_end(fork):
    with fork.Pool(1) as pool:
        result = pool.apply_async(options.sleep_at, (1, 1))
    assert not result.cancel()
    with pytest.raises(pools.BrokenPoolError):
        result.get(LIMIT)
    assert not result.cancelled()


def test_close_waits_for_nothing_that_was_cancelled(two, notes):
    results = [two.apply_async(targets.note_and_sleep_for_ever, (str(notes),)) for _ in range(6)]
    wait_for_lines(notes, 2)
    two.close()
    for result in reversed(results):
        assert result.cancel()
    workers = pids(two)
    two.join()
    assert all(map(is_gone, workers))


# ---- await ---------------------------------------------------------------------------------------


async def within_limit(awaitable):
    return await asyncio.wait_for(awaitable, LIMIT)


async def wrapped(result):
    return await result


def run(coroutine):
    return asyncio.run(within_limit(coroutine))


def test_await(two):
    async def main():
        assert await two.apply_async(targets.square, (3,)) == 9
        assert await two.map_async(targets.square, range(5)) == [0, 1, 4, 9, 16]
        assert await two.starmap_async(targets.add, [(1, 2), (3, 4)]) == [3, 7]
        return "done"

    assert run(main()) == "done"


def test_await_by_each_method(ctx):
    with ctx.Pool(2) as pool:
        assert run(wrapped(pool.map_async(targets.square, range(5)))) == [0, 1, 4, 9, 16]


def test_await_many_at_once(two):
    async def main():
        results = [two.apply_async(targets.square, (n,)) for n in range(500)]
        return await asyncio.gather(*map(wrapped, results))

    assert run(main()) == [n * n for n in range(500)]


def test_await_what_is_done(two):
    result = two.apply_async(targets.square, (3,))
    result.wait(LIMIT)
    assert run(wrapped(result)) == 9
    assert run(wrapped(result)) == 9


def test_await_one_many_times(two):
    async def main():
        result = two.apply_async(options.sleep, (0.1,))
        return await asyncio.gather(*(wrapped(result) for _ in range(20)))

    assert run(main()) == [0.1] * 20


@pytest.mark.parametrize("kind", [ValueError, KeyError, StopIteration, StopAsyncIteration])
def test_await_an_error(two, kind):
    """A coroutine cannot raise StopIteration."""
    expected = RuntimeError if kind is StopIteration else kind
    with pytest.raises(expected) as found:
        run(wrapped(two.apply_async(targets.fail, (kind, "no"))))
    assert kind.__name__ in story(found.value)


def test_await_a_timeout_and_a_death(two):
    with pytest.raises(pools.TaskTimeoutError):
        run(wrapped(two.apply_async(options.sleep_at, (1, 1), timeout=BRIEF)))
    with pytest.raises(pools.WorkerLostError):
        run(wrapped(two.apply_async(targets.exit_hard, (3,))))
    check_usable(two)


def test_await_what_is_cancelled(two, notes):
    """The awaiting coroutine sees asyncio's error, as with its own futures."""

    async def main():
        result = two.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
        waiter = asyncio.ensure_future(wrapped(result))
        await asyncio.to_thread(wait_for_lines, notes, 1)
        assert result.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert waiter.cancelled()
        with pytest.raises(asyncio.CancelledError):
            await result
        return "done"

    assert run(main()) == "done"
    check_usable(two)


def test_await_a_task_that_raises_what_cancel_does(two):
    """Nobody has cancelled anything: it is an error as any other."""

    async def main():
        result = two.apply_async(targets.fail, (CancelledError, "mine"))
        with pytest.raises(CancelledError, match="mine"):
            await result
        assert not result.cancelled()
        return "done"

    assert run(main()) == "done"


def test_an_await_that_is_cancelled(two, notes):
    """Is that of one waiter; the call goes on."""

    async def main():
        result, gate = begin_and_block(two, notes)
        waiters = [asyncio.ensure_future(wrapped(result)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(wrapped(result), 0.05)
        assert not result.cancelled()
        gate.touch()
        return await asyncio.gather(*waiters[1:])

    assert run(main()) == ["begun", "begun"]
    check_usable(two)


def test_a_loop_that_is_closed_early(two, notes, capfd):
    result, gate = begin_and_block(two, notes)

    async def main():
        waiter = asyncio.ensure_future(wrapped(result))
        await asyncio.sleep(0.01)
        return waiter

    asyncio.run(main())
    gate.touch()
    assert result.get(LIMIT) == "begun"
    assert run(wrapped(result)) == "begun"
    check_usable(two)
    assert capfd.readouterr().err == ""


def test_await_in_two_loops(two, notes):
    result, gate = begin_and_block(two, notes)
    tasks = [Task(run, wrapped(result)) for _ in range(3)]
    gate.touch()
    assert [task.get() for task in tasks] == ["begun"] * 3


def test_await_without_a_loop(two):
    with pytest.raises(RuntimeError, match="no running event loop"):
        wrapped(two.apply_async(targets.square, (3,))).send(None)


def test_await_and_callbacks(two):
    """A callback is called first."""
    told = []

    async def main():
        value = await two.apply_async(targets.square, (3,), callback=told.append)
        told.append("awaited")
        return value

    assert run(main()) == 9
    assert told == [9, "awaited"]


def test_await_between_the_callback_and_the_end(two, monkeypatch):
    """The service thread has told all that waited, and the result does not count as ready yet."""
    told, go_on = threading.Event(), threading.Event()
    set_done = two._crew._set_done

    def set_done_late(job):
        told.set()
        go_on.wait(LIMIT)
        set_done(job)

    monkeypatch.setattr(two._crew, "_set_done", set_done_late)
    result = two.apply_async(targets.square, (3,), callback=lambda _: None)
    assert told.wait(LIMIT)
    assert run(wrapped(result)) == 9
    go_on.set()
    assert result.get(LIMIT) == 9


def use_in_a_fork(result, connection):
    """What a copy of a process may do with a result that its parent waits for."""
    told = []
    for use in (result.cancel, lambda: wrapped(result).send(None)):
        try:
            told.append(repr(use()))
        except (RuntimeError, ValueError) as error:
            told.append(str(error))
    connection.send(told)


def test_a_forked_copy_of_a_result(two, fork, notes):
    """Is no way to the pool, which is the parent's."""
    result, gate = begin_and_block(two, notes)
    ours, theirs = fork.Pipe()
    child = fork.Process(target=use_in_a_fork, args=(result, theirs))
    child.start()
    assert ours.poll(LIMIT)
    told = ours.recv()
    assert told[0] == "Pool not running: it belongs to the process that has made it"
    child.join(LIMIT)
    assert child.exitcode == 0
    gate.touch()
    assert result.get(LIMIT) == "begun"


def test_await_at_the_pools_end(fork, notes):
    async def main():
        pool = fork.Pool(1)
        result, _ = begin_and_block(pool, notes)
        waiter = asyncio.ensure_future(wrapped(result))
        await asyncio.sleep(0)
        pool.terminate()
        with pytest.raises(pools.BrokenPoolError):
            await waiter
        pool.join()
        return "done"

    assert run(main()) == "done"


def test_the_loop_goes_on_while_a_result_is_awaited(two, notes):
    async def main():
        result, gate = begin_and_block(two, notes)
        waiter = asyncio.ensure_future(wrapped(result))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not waiter.done()
        gate.touch()
        return await waiter

    assert run(main()) == "begun"


# ---- imap(buffersize=) ---------------------------------------------------------------------------


class Drawn:
    """Items without end, which says how many were asked for."""

    def __init__(self, end=None):
        self.count = 0
        self.end = end
        self.most_ahead = 0
        self.read = 0

    def __iter__(self):
        return self

    def __next__(self):
        if self.count == self.end:
            raise StopIteration
        self.count += 1
        self.most_ahead = max(self.most_ahead, self.count - self.read)
        return self.count - 1


@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
@pytest.mark.parametrize("buffersize", [1, 2, 3, 10, 1000])
def test_buffersize(two, kind, buffersize):
    items = Drawn()
    iterator = getattr(two, kind)(targets.identity, items, buffersize=buffersize)
    found = []
    for x in iterator:
        items.read += 1
        found.append(x)
        if len(found) == 3000:
            break
    # The one that is being handed out counts as read.
    assert items.most_ahead <= buffersize + 1
    assert items.count <= len(found) + buffersize
    if kind == "imap":
        assert found == list(range(3000))
    else:
        assert len(set(found)) == 3000
    assert iterator.cancel()


def test_buffersize_waits_for_the_reader(two):
    items = Drawn()
    iterator = two.imap(targets.identity, items, buffersize=5)
    for n in range(20):
        assert next(iterator) == n
        check_usable(two)  # which drives, and does not draw
        assert items.count <= n + 1 + 5
    assert iterator.cancel()


@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
@pytest.mark.parametrize(("buffersize", "chunksize"), [(1, 4), (4, 4), (10, 4), (9, 3)])
def test_buffersize_in_chunks(two, kind, buffersize, chunksize):
    """No more chunks than fit, but one; besides the one that is being read."""
    items = Drawn()
    iterator = getattr(two, kind)(targets.identity, items, chunksize, buffersize=buffersize)
    found = []
    for x in iterator:
        found.append(x)
        assert items.count <= len(found) + max(buffersize, chunksize) + chunksize
        if len(found) == 200:
            break
    assert len(set(found)) == 200


def test_buffersize_of_few_items(two):
    assert list(two.imap(targets.square, Drawn(3), buffersize=100)) == [0, 1, 4]
    assert list(two.imap(targets.square, [], buffersize=1)) == []
    assert list(two.imap(targets.square, range(10), 3, buffersize=2)) == [n * n for n in range(10)]
    assert sorted(two.imap_unordered(targets.square, Drawn(50), buffersize=1)) == [
        n * n for n in range(50)
    ]


def test_buffersize_by_each_method(ctx):
    with ctx.Pool(2) as pool:
        iterator = pool.imap(targets.square, itertools.count(), buffersize=4)
        assert list(itertools.islice(iterator, 100)) == [n * n for n in range(100)]


def test_buffersize_and_errors(two):
    found, errors = collect(two.imap(options.fail_at_odd, range(20), buffersize=3))
    assert found == list(range(0, 20, 2))
    assert [str(error) for error in errors] == [f"item {n}" for n in range(1, 20, 2)]


def test_buffersize_and_items_that_raise(two):
    found, errors = collect(two.imap(targets.identity, targets.items_until(7), buffersize=2))
    assert found == list(range(7))
    assert [str(error) for error in errors] == ["the items end"]


def test_buffersize_timeouts_and_deaths(two, notes):
    found, errors = collect(
        two.imap(options.sleep_at_three, [1, 3, 2, 3, 4], buffersize=2, timeout=AMPLE)
    )
    assert (found, len(errors)) == ([1, 2, 4], 2)
    function = functools.partial(options.die_at_first, str(notes))
    assert list(two.imap(function, range(6), buffersize=2, retries=1)) == list(range(6))


def test_two_of_them_at_once(two):
    first = two.imap(targets.square, itertools.count(), buffersize=3)
    second = two.imap_unordered(targets.identity, range(100), buffersize=2)
    assert sorted(second) == list(range(100))
    assert [next(first) for _ in range(50)] == [n * n for n in range(50)]


def test_readers_in_several_threads(two):
    iterator = two.imap_unordered(targets.identity, range(2000), buffersize=8)
    tasks = [Task(list, iterator) for _ in range(4)]
    assert sorted(itertools.chain.from_iterable(task.get() for task in tasks)) == list(range(2000))


# ---- current_worker() ----------------------------------------------------------------------------


def test_current_worker_outside():
    assert pools.current_worker() is None


def test_current_worker(ctx):
    with ctx.Pool(3) as pool:
        assert set(pool.map(options.worker_id, range(100), 1)) <= {0, 1, 2}
        counts = pool.map(options.count, range(100), 1)
    for pid in {pid for pid, _ in counts}:
        mine = [number for each, number in counts if each == pid]
        assert sorted(mine) == list(range(1, len(mine) + 1))


def test_a_workers_child_is_no_worker(ctx):
    with ctx.Pool(1) as pool:
        assert pool.apply(options.id_of_a_forked_child) == "None"
        assert pool.apply(options.worker_id) == 0


def test_the_initializer_is_in_the_worker(ctx):
    with ctx.Pool(2, options.set_state, ("mine",)) as pool:
        assert set(pool.map(options.get_state, range(10), 1)) == {"mine"}


def test_who_replaces_a_worker_has_its_id(two):
    for _ in range(3):
        os.kill(pids(two)[0], signal.SIGKILL)
        check_usable(two)
        assert set(two.map(options.worker_id, range(100), 1)) <= {0, 1}


def test_the_state_ends_with_its_worker(fork):
    with fork.Pool(1, maxtasksperchild=3) as pool:
        counts = [number for _, number in pool.map(options.count, range(9), 1)]
        assert counts == [1, 2, 3] * 3


# ---- worker_exit= --------------------------------------------------------------------------------


def test_worker_exit(ctx, notes):
    with ctx.Pool(2, worker_exit=options.NoteAtExit(str(notes))) as pool:
        pool.map(targets.square, range(10), 1)
        workers = pids(pool)
        assert lines(notes) == []
        check_ends(pool)
    assert sorted(lines(notes)) == sorted(f"{n}-{pid}" for n, pid in enumerate(workers))


def test_worker_exit_with_maxtasksperchild(fork, notes):
    with fork.Pool(1, maxtasksperchild=2, worker_exit=options.NoteAtExit(str(notes))) as pool:
        made = pool.map(targets.worker_pid, range(6), 1)
        check_ends(pool)
    expected = [f"0-{pid}" for pid in dict.fromkeys(made)]
    assert lines(notes)[:3] == expected
    assert len(lines(notes)) <= 4  # and of one that had no task


def test_worker_exit_is_not_called_where_there_is_no_order(fork, notes):
    with fork.Pool(2, worker_exit=options.NoteAtExit(str(notes))) as pool:
        pool.map(targets.square, range(10), 1)
        os.kill(pids(pool)[0], signal.SIGKILL)
        check_usable(pool)
        pool.apply_async(options.sleep_at, (1, 1), timeout=BRIEF).wait(LIMIT)
        pool.terminate()
        pool.join()
    assert lines(notes) == []


@pytest.mark.parametrize("then", ["raise", "exit"])
def test_a_worker_exit_that_fails(fork, notes, then, capfd):
    with fork.Pool(1, maxtasksperchild=1, worker_exit=options.NoteAtExit(str(notes), then)) as pool:
        assert pool.map(targets.square, range(8), 1) == [n * n for n in range(8)]
        check_usable(pool, 1)
        check_ends(pool)
    assert len(lines(notes)) >= 8
    assert ("the exit hook failed" in capfd.readouterr().err) == (then == "raise")


# ---- cpus= ---------------------------------------------------------------------------------------

ALLOWED = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize("form", ["ints", "sets", "mixed", "generator", "one"])
def test_cpus(fork, form):
    cpus = {
        "ints": ALLOWED,
        "sets": [{cpu} for cpu in ALLOWED],
        "mixed": [ALLOWED, *ALLOWED],
        "generator": (range(cpu, cpu + 1) for cpu in ALLOWED),
        "one": [ALLOWED[0]],
    }[form]
    wanted = {
        "mixed": [set(ALLOWED), *({cpu} for cpu in ALLOWED)],
        "one": [{ALLOWED[0]}],
    }.get(form, [{cpu} for cpu in ALLOWED])
    with fork.Pool(4, cpus=cpus) as pool:
        for place, got in pool.map(options.affinity, range(40), 1):
            assert got == wanted[place % len(wanted)]
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_cpus_and_the_initializer(ctx):
    """They are set before it."""
    with ctx.Pool(2, options.keep_affinity, cpus=[ALLOWED[0]]) as pool:
        for _, got in pool.map(options.kept_affinity, range(10), 1):
            assert got == {ALLOWED[0]}


def test_the_next_worker_has_the_same_cpus(fork):
    with fork.Pool(2, cpus=[ALLOWED[0], ALLOWED[-1]], maxtasksperchild=1) as pool:
        for place, got in pool.map(options.affinity, range(10), 1):
            assert got == {[ALLOWED[0], ALLOWED[-1]][place]}


def test_cpus_that_are_not_there(fork, capfd):
    with fork.Pool(2, cpus=[100_000]) as pool:
        with pytest.raises(pools.BrokenPoolError) as found:
            pool.map(targets.square, range(10))
        assert "OSError" in story(found.value)


# ---- max_restarts= -------------------------------------------------------------------------------


def test_max_restarts(ctx):
    """So many deaths are all right, and one more is not."""
    with ctx.Pool(2, max_restarts=(2, LIMIT)) as pool:
        for _ in range(2):
            with pytest.raises(pools.WorkerLostError):
                pool.apply(targets.exit_hard, (3,))
            check_usable(pool)
        with pytest.raises((pools.WorkerLostError, pools.BrokenPoolError)):
            pool.apply(targets.exit_hard, (3,))
        with pytest.raises(pools.BrokenPoolError, match=r"3 workers have died within \d+ s"):
            pool.map(targets.square, range(10))
        with pytest.raises(pools.BrokenPoolError):
            pool.apply_async(targets.square, (1,)).get(LIMIT)
        workers = pids(pool)
        check_ends(pool)
        assert all(map(is_gone, workers))


def test_max_restarts_says_which_was_the_last(ctx):
    with ctx.Pool(1, max_restarts=(1, LIMIT)) as pool:
        for code in (3, 4):
            with pytest.raises(pools.WorkerLostError):
                pool.apply(targets.exit_hard, (code,))
        with pytest.raises(pools.BrokenPoolError, match="2 workers have died") as caught:
            pool.apply(targets.square, (1,))
        last = caught.value.__cause__
        assert type(last) is pools.WorkerLostError
        assert last.exitcode == 4
        assert "exit_hard" in last.task


def test_max_restarts_says_which_was_the_last_that_had_no_task(ctx):
    with ctx.Pool(1, max_restarts=(0, LIMIT)) as pool:
        (pid,) = pids(pool)
        pool.apply(targets.square, (1,))
        os.kill(pid, signal.SIGKILL)
        wait_until_gone(pid)
        with pytest.raises(pools.BrokenPoolError, match="1 workers have died") as caught:
            pool.map(targets.square, range(10))
        last = caught.value.__cause__
        assert type(last) is pools.WorkerLostError
        assert (last.pid, last.exitcode, last.task) == (pid, -signal.SIGKILL, None)
        assert str(last) == f"worker {pid} was killed by SIGKILL between two tasks"


def test_max_restarts_ends_what_is_there(fork, notes):
    with fork.Pool(2, max_restarts=(0, LIMIT)) as pool:
        running, _ = begin_and_block(pool, notes)
        lost = pool.apply_async(targets.exit_hard, (3,))
        with pytest.raises((pools.WorkerLostError, pools.BrokenPoolError)):
            lost.get(LIMIT)
        with pytest.raises(pools.BrokenPoolError):
            running.get(LIMIT)


def test_max_restarts_counts_deaths_alone(fork):
    """Not workers that end in good order."""
    with fork.Pool(1, maxtasksperchild=1, max_restarts=(0, LIMIT)) as pool:
        assert pool.map(targets.square, range(20), 1) == [n * n for n in range(20)]
        pool.resize(3)
        pool.resize(1)
        check_usable(pool, 1)


def test_max_restarts_counts_no_kills_that_were_asked_for(fork, notes):
    with fork.Pool(1, max_restarts=(0, LIMIT)) as pool:
        for n in range(1, 4):
            result = pool.apply_async(targets.note_and_sleep_for_ever, (str(notes),))
            wait_for_lines(notes, n)
            assert result.cancel()
            check_usable(pool, 1)
            with pytest.raises(pools.TaskTimeoutError):
                pool.apply(options.sleep_at, (1, 1), timeout=BRIEF)
            check_usable(pool, 1)


def test_max_restarts_forgets(fork):
    with fork.Pool(1, max_restarts=(1, 0.05)) as pool:
        for _ in range(4):
            with pytest.raises(pools.WorkerLostError):
                pool.apply(targets.exit_hard, (3,))
            check_usable(pool, 1)
            time.sleep(0.1)


# ---- max_memory= ---------------------------------------------------------------------------------

PLENTY = 10 << 30


def memory_of(pid):
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_max_memory(ctx):
    """Who has more after a task is replaced, and the result is there."""
    with ctx.Pool(1) as pool:
        usual = memory_of(pool.apply(targets.worker_pid))
    with ctx.Pool(1, max_memory=usual + 80 * options.MEGABYTE) as pool:
        made = [pool.apply(options.allocate_and_keep, (50,)) for _ in range(6)]
        assert len(set(made)) == 3
        assert made == sorted(made, key=made.index)
        assert [made.count(pid) for pid in dict.fromkeys(made)] == [2, 2, 2]
        check_ends(pool)


def test_max_memory_that_is_not_reached(two):
    with mproc_ext.get_context("fork").Pool(2, max_memory=PLENTY) as pool:
        before = pids(pool)
        pool.map(options.allocate, [50] * 10, 1)
        check_usable(pool)
        assert pids(pool) == before


def test_max_memory_that_each_worker_has_at_once(fork):
    with fork.Pool(2, max_memory=1) as pool:
        made = pool.map(targets.worker_pid, range(10), 1)
        assert len(set(made)) == 10


def test_max_memory_and_worker_exit(fork, notes):
    with fork.Pool(1, max_memory=1, worker_exit=options.NoteAtExit(str(notes))) as pool:
        made = pool.map(targets.worker_pid, range(3), 1)
        check_ends(pool)
    assert lines(notes)[:3] == [f"0-{pid}" for pid in made]


def check_killed_for_memory(error):
    assert type(error) is pools.WorkerLostError
    assert error.exitcode == -signal.SIGKILL
    assert "bytes of memory" in str(error)


def hard():
    """More than a worker has that was forked from this process."""
    return memory_of(os.getpid()) + 200 * options.MEGABYTE


@pytest.mark.parametrize("call", CALLS)
def test_hard_limit(fork, call):
    """In the middle of a task, whoever waits for it."""
    with fork.Pool(2, max_memory=(None, hard())) as pool:
        with pytest.raises(pools.WorkerLostError) as found:
            calls(pool, options.allocate_at_three, range(5))[call]()
        check_killed_for_memory(found.value)
        check_usable(pool)


def test_hard_limit_by_each_method(ctx):
    with ctx.Pool(2, max_memory=(None, hard())) as pool:
        found, errors = collect(pool.imap(options.allocate_at_three, range(6)))
        assert found == [0, 1, 2, 4, 5]
        check_killed_for_memory(*errors)
        check_usable(pool)
        check_ends(pool)


def test_hard_limit_while_nobody_waits(fork):
    with fork.Pool(1, max_memory=(None, hard())) as pool:
        (worker,) = pids(pool)
        result = pool.apply_async(options.allocate_for_ever)
        wait_until_gone(worker)
        with pytest.raises(pools.WorkerLostError) as found:
            result.get(LIMIT)
        check_killed_for_memory(found.value)
        assert found.value.pid == worker


def test_hard_limit_and_retries(fork):
    with fork.Pool(1, max_memory=(None, hard())) as pool:
        with pytest.raises(pools.WorkerLostError) as found:
            pool.apply(options.allocate_for_ever, retries=2)
        check_killed_for_memory(found.value)
        check_usable(pool, 1)


def test_both_limits(fork):
    """Who has more than the first one after a task is replaced in good order."""
    with fork.Pool(1, max_memory=(1, PLENTY)) as pool:
        made = pool.map(targets.worker_pid, range(4), 1)
        assert len(set(made)) == 4


# ---- resize() ------------------------------------------------------------------------------------


def wait_for_size(pool, count):
    wait_until(lambda: len(pool._pool) == count, f"that there are {count} workers")


def test_resize(ctx):
    with ctx.Pool(2) as pool:
        for count in (4, 1, 3, 2):
            pool.resize(count)
            assert pool._processes == count
            wait_for_size(pool, count)
            check_usable(pool, count)
            assert set(pool.map(options.worker_id, range(100), 1)) <= set(range(count))
        check_ends(pool)


def test_resize_while_a_map_runs(two):
    result = two.map_async(options.sleep, [0.005] * 400, 1)
    for count in (3, 1, 5, 2, 1, 4):
        two.resize(count)
        time.sleep(0.02)
    assert result.get(LIMIT) == [0.005] * 400
    wait_for_size(two, 4)
    check_usable(two, 4)
    check_ends(two)


def test_resize_many_times_at_once(two):
    stop = threading.Event()

    def resize(counts):
        for count in itertools.cycle(counts):
            if stop.is_set():
                return
            two.resize(count)

    tasks = [Task(resize, counts) for counts in ([1, 3], [2, 4, 1])]
    for _ in range(10):
        assert two.map(targets.square, range(200), 1) == [n * n for n in range(200)]
    stop.set()
    for task in tasks:
        task.get()
    two.resize(2)
    wait_for_size(two, 2)
    check_usable(two)
    check_ends(two)


def test_resize_down_ends_what_has_begun_first(two, notes):
    """A worker that is too many ends after what it does."""
    tasks = [begin_and_block(two, notes, word) for word in ("a", "b")]
    two.resize(1)
    more = [two.apply_async(targets.square, (n,)) for n in range(100)]
    for result, gate in tasks:
        gate.touch()
        assert result.get(LIMIT) in ("a", "b")
    assert [each.get(LIMIT) for each in more] == [n * n for n in range(100)]
    wait_for_size(two, 1)


def test_resize_up_helps_at_once(one, notes):
    blocked, gate = begin_and_block(one, notes)
    others = [one.apply_async(targets.square, (n,)) for n in range(100)]
    one.resize(2)
    assert [other.get(LIMIT) for other in others] == [n * n for n in range(100)]
    gate.touch()
    assert blocked.get(LIMIT) == "begun"


def test_resize_down_where_there_is_no_room_to_say_so(two, notes):
    """The worker that is to end has tasks for all the room there is, and is in the first one."""
    large = "x" * 4000
    two.map(targets.nothing_of, range(5000), 1)  # short tasks: many are given at once
    gates = [notes.with_name(name) for name in ("a", "b")]
    blocked = [
        two.apply_async(options.note_then_wait_for, (str(notes), str(n), str(gate)))
        for n, gate in enumerate(gates)
    ]
    others = two.map_async(targets.size, [large] * 60, 1)
    wait_for_lines(notes, 2)
    two.resize(1)
    for gate in gates:
        gate.touch()
    assert [each.get(LIMIT) for each in blocked] == ["0", "1"]
    assert others.get(LIMIT) == [4000] * 60
    wait_for_size(two, 1)


def test_resize_to_what_it_is(two):
    before = pids(two)
    two.resize(2)
    check_usable(two)
    assert pids(two) == before


def test_resize_and_worker_exit(fork, notes):
    with fork.Pool(3, worker_exit=options.NoteAtExit(str(notes))) as pool:
        workers = pids(pool)
        pool.resize(1)
        wait_for_size(pool, 1)
        wait_for_lines(notes, 2)
        assert sorted(lines(notes)) == [f"1-{workers[1]}", f"2-{workers[2]}"]


def test_resize_while_nothing_is_to_be_done(two):
    """It does not wait for the next call: who is too many goes, who is missing comes."""
    workers = pids(two)
    two.resize(1)
    wait_for_size(two, 1)
    wait_until_gone(workers[1])
    two.resize(3)
    two.resize(1)
    two.resize(3)
    wait_until(lambda: sum(p.exitcode is None for p in two._pool) == 3, "that there are 3")
    check_usable(two, 3)


@pytest.mark.parametrize("count", [0, -1, 2.0, "2", None, [2]])
def test_bad_sizes(two, count):
    with pytest.raises((TypeError, ValueError), match="rocesses must be a"):
        two.resize(count)
    assert two._processes == 2
    os.kill(pids(two)[0], signal.SIGKILL)
    check_usable(two)  # what is missing is still known
    check_ends(two)


def test_resize_of_a_broken_pool(fork):
    with fork.Pool(1, max_restarts=(0, LIMIT)) as pool:
        lost = pool.apply_async(targets.exit_hard, (3,))
        with pytest.raises((pools.WorkerLostError, pools.BrokenPoolError)):
            lost.get(LIMIT)
        with pytest.raises(pools.BrokenPoolError):
            pool.map(targets.square, range(3))
        with pytest.raises(pools.BrokenPoolError):
            pool.resize(3)
        check_ends(pool)


def test_resize_after_the_end(fork):
    pool = fork.Pool(1)
    pool.close()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.resize(2)
    pool.join()
    with pytest.raises(ValueError, match="Pool not running"):
        pool.resize(2)


# ---- progress= -----------------------------------------------------------------------------------


def without_tqdm(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)


@pytest.fixture(params=["tqdm", "a line"])
def bar(request, monkeypatch):
    """What shows it; a function that says what a text ends with, and how often."""
    if request.param == "tqdm":
        pytest.importorskip("tqdm")
    else:
        without_tqdm(monkeypatch)
    return request.param


def check_shown(err, done, total, desc=""):
    last = err.rstrip("\n").rpartition("\r")[2]
    assert f"{done}/{total}" in last or (total == "?" and f"{done}it" in last), err
    assert last.startswith(desc)
    assert err.endswith("\n")
    assert "Traceback" not in err


@pytest.mark.parametrize("call", MAPS)
def test_progress(two, call, bar, capfd):
    """All of it is shown when the call returns, and nothing more comes after that."""
    for progress in (True, "squares"):
        made = calls(two, targets.square, range(30), progress=progress)[call]()
        assert made == [n * n for n in range(30)]
        err = capfd.readouterr().err
        check_shown(err, 30, 30, "" if progress is True else "squares")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("call", MAPS)
def test_no_progress(two, call, capfd):
    for progress in (None, False, ""):
        calls(two, targets.square, range(3), progress=progress)[call]()
    assert capfd.readouterr().err == ""


def test_progress_in_the_middle(two, notes, bar, capfd):
    shown = ""
    gate = notes.with_name("gate")
    result = two.map_async(
        functools.partial(targets.wait_at, str(gate)), range(10), 1, progress=True
    )

    def is_shown():
        nonlocal shown
        shown += capfd.readouterr().err
        return "9/10" in shown

    wait_until(is_shown, "that 9 of 10 are shown")
    gate.touch()
    result.get(LIMIT)
    check_shown(shown + capfd.readouterr().err, 10, 10)


@pytest.mark.parametrize("chunksize", [1, 4])
@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
def test_progress_of_what_has_no_length(two, kind, chunksize, bar, capfd):
    call = getattr(two, kind)
    assert len(list(call(targets.square, iter(range(10)), chunksize, progress=True))) == 10
    check_shown(capfd.readouterr().err, 10, "?")


@pytest.mark.parametrize("chunksize", [None, 1, 3, 100])
def test_progress_in_chunks(two, chunksize, bar, capfd):
    two.map(targets.square, range(10), chunksize, progress=True)
    check_shown(capfd.readouterr().err, 10, 10)


@pytest.mark.parametrize("call", ["map", "imap"])
def test_progress_of_nothing(two, call, bar, capfd):
    assert list(getattr(two, call)(targets.square, [], progress=True)) == []
    check_shown(capfd.readouterr().err, 0, 0 if bar == "a line" else "?")


def test_progress_at_failures(two, notes, bar, capfd):
    """What has failed is finished too."""
    with pytest.raises(ValueError, match=r"item \d"):
        two.map(options.fail_at_odd, range(10), 1, progress=True)
    check_shown(capfd.readouterr().err, 10, 10)
    with pytest.raises(pools.TaskTimeoutError):
        two.map(options.sleep_at_three, range(5), 1, progress=True, timeout=BRIEF)
    check_shown(capfd.readouterr().err, 5, 5)
    collect(two.imap(targets.exit_hard, range(4), progress=True))
    check_shown(capfd.readouterr().err, 4, 4)
    function = functools.partial(options.die_at_first, str(notes))
    two.map(function, range(4), 1, progress=True, retries=1)
    check_shown(capfd.readouterr().err, 4, 4)


def test_progress_of_what_is_cancelled(two, notes, bar, capfd):
    result = two.map_async(targets.note_and_sleep_for_ever, [str(notes)] * 5, 1, progress=True)
    wait_for_lines(notes, 2)
    assert result.cancel()
    with pytest.raises(CancelledError):
        result.get(LIMIT)
    check_shown(capfd.readouterr().err, 0, 5)


def test_progress_at_the_pools_end(fork, notes, bar, capfd):
    with fork.Pool(1) as pool:
        result = pool.map_async(targets.note_and_sleep_for_ever, [str(notes)] * 5, 1, progress=True)
        wait_for_lines(notes, 1)
    with pytest.raises(pools.BrokenPoolError):
        result.get(LIMIT)
    check_shown(capfd.readouterr().err, 0, 5)


def test_progress_with_callbacks(two, bar, capfd):
    told = []
    result = two.map_async(targets.square, range(5), callback=told.append, progress=True)
    result.get(LIMIT)
    assert told == [[0, 1, 4, 9, 16]]
    check_shown(capfd.readouterr().err, 5, 5)


@pytest.mark.parametrize("what", ["None", "closed"])
def test_progress_without_a_stderr(two, what, bar, monkeypatch, tmp_path, capfd):
    stream = None
    if what == "closed":
        with open(tmp_path / "closed", "w") as stream:
            pass
    monkeypatch.setattr(sys, "stderr", stream)
    assert two.map(targets.square, range(5), progress=True) == [0, 1, 4, 9, 16]
    assert tuple(capfd.readouterr()) == ("", "")


# ---- cloudpickle= --------------------------------------------------------------------------------


@pytest.fixture
def by_value(ctx):
    pytest.importorskip("cloudpickle")
    with ctx.Pool(2, cloudpickle=True) as pool:
        yield pool


@pytest.mark.parametrize("call", CALLS)
def test_lambdas_and_closures(by_value, call):
    factor = 7
    assert calls(by_value, lambda x: x * 2, range(9))[call]() == list(range(0, 18, 2))
    assert calls(by_value, lambda x: x * factor, range(9))[call]() == list(range(0, 63, 7))


def test_functions_of_all_kinds(by_value):
    def nested(x, more=1):
        return x + more if x < 1 else nested(x - 1) + 1

    class Local:
        def __init__(self, x):
            self.x = x

        def plus(self, y):
            return self.x + y

        def __call__(self, y):
            return self.x * y

    assert by_value.apply(nested, (3,), {"more": 2}) == 4
    assert by_value.map(functools.partial(lambda x, y: x - y, 10), range(4)) == [10, 9, 8, 7]
    assert by_value.map(Local(3).plus, range(3)) == [3, 4, 5]
    assert by_value.map(Local(3), range(3)) == [0, 3, 6]
    assert by_value.map(targets.square, range(3)) == [0, 1, 4]
    assert by_value.map(abs, [-1, 1]) == [1, 1]
    assert by_value.starmap(lambda *args: args, [(1, 2), ()]) == [(1, 2), ()]


def test_a_function_is_sent_as_it_is_when_it_is_called(by_value):
    results = []
    for n in range(200):
        results.append(by_value.apply_async(lambda: n))
    assert [result.get(LIMIT) for result in results] == list(range(200))


def test_a_function_that_cannot_be_sent_by_value_either(by_value):
    """Is an error of the call's result, as it is without."""
    lock = threading.Lock()
    result = by_value.apply_async(lambda: lock)
    with pytest.raises(TypeError, match="pickle"):
        result.get(LIMIT)
    with pytest.raises(TypeError, match="pickle"):
        by_value.map(lambda x: lock, range(3))
    with pytest.raises(TypeError, match="pickle"):
        list(by_value.imap(lambda x: lock, range(3)))
    assert by_value.map(lambda x: -x, range(3)) == [0, -1, -2]


def test_not_by_value(two):
    with pytest.raises((AttributeError, pickle.PicklingError)):
        two.map(lambda x: x, range(3))
    check_usable(two)


def test_errors_name_the_function(by_value):
    def slow():
        time.sleep(LIMIT)

    with pytest.raises(pools.TaskTimeoutError, match="slow"):
        by_value.apply(slow, timeout=BRIEF)
    with pytest.raises(pools.WorkerLostError, match="lambda"):
        by_value.apply(lambda: os._exit(3))


def test_initializer_and_worker_exit_by_value(ctx, notes):
    pytest.importorskip("cloudpickle")
    path = str(notes)
    with ctx.Pool(
        1,
        lambda word: targets.note(path, word),
        ("begin",),
        worker_exit=lambda: targets.note(path, "end"),
        cloudpickle=True,
    ) as pool:
        assert pool.map(lambda x: -x, range(3)) == [0, -1, -2]
        check_ends(pool)
    assert lines(notes) == ["begin", "end"]


PROGRAM = """
import os, sys
import mproc_ext

offset = 100

class Thing:
    def __init__(self, x):
        self.x = x

def work(x):
    return os.getpid(), Thing(x).x + offset

def main():
    with mproc_ext.get_context(sys.argv[-1]).Pool(2, cloudpickle=True) as pool:
        made = pool.map(work, range(20), 1)
        assert [value for _, value in made] == list(range(100, 120))
        assert os.getpid() not in {pid for pid, _ in made}
        assert pool.apply(lambda: offset) == 100
    print("done")

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("how", ["a file", "-c"])
def test_functions_of_main(method, tmp_path, how):
    """With -c no child could import it."""
    pytest.importorskip("cloudpickle")
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    arguments = (path, method) if how == "a file" else ("-c", PROGRAM, method)
    assert run_program(*arguments) == "done\n"


def test_cloudpickle_that_is_not_installed(fork, monkeypatch):
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match="cloudpickle"):
        fork.Pool(1, cloudpickle=True)
    with fork.Pool(1, cloudpickle=False) as pool:
        assert pool.apply(targets.square, (3,)) == 9


# ---- what is wrong -------------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"timeout": 0}, ValueError),
        ({"timeout": -1}, ValueError),
        ({"timeout": math.nan}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"timeout": b"1"}, TypeError),
        ({"timeout": [1]}, TypeError),
        ({"timeout": 1j}, TypeError),
        ({"retries": -1}, ValueError),
        ({"retries": 1.0}, TypeError),
        ({"retries": "1"}, TypeError),
        ({"retries": None}, TypeError),
    ],
    ids=str,
)
def test_bad_arguments(two, call, names, kind):
    with pytest.raises(kind, match=rf"^{next(iter(names))} must be "):
        calls(two, targets.square, range(3), **names)[call]()
    assert two._cache == {}


@pytest.mark.parametrize("call", MAPS)
@pytest.mark.parametrize("progress", [1, 0.5, ["a"], b"a", print])
def test_bad_progress(two, call, progress):
    with pytest.raises(TypeError, match=r"^progress must be a bool, or a str"):
        calls(two, targets.square, range(3), progress=progress)[call]()


@pytest.mark.parametrize("kind", ["imap", "imap_unordered"])
@pytest.mark.parametrize("buffersize", [0, -1, 1.0, "1", [1]])
def test_bad_buffersize(two, kind, buffersize):
    error = ValueError if isinstance(buffersize, int) else TypeError
    with pytest.raises(error, match=r"^buffersize must be "):
        getattr(two, kind)(targets.square, range(3), buffersize=buffersize)


def test_numbers_of_all_sizes(two):
    huge = 10**400
    assert two.apply(targets.square, (3,), timeout=huge, retries=huge) == 9
    assert two.map(targets.square, range(3), timeout=fractions.Fraction(99)) == [0, 1, 4]
    assert list(two.imap(targets.square, range(3), buffersize=huge, retries=True)) == [0, 1, 4]


OPTIONS = [
    *((call, {name: 1}) for call in CALLS for name in ("timeout", "retries")),
    *((call, {"timeout": 0}) for call in CALLS),
    *((call, {"progress": True}) for call in MAPS),
    *((call, {"buffersize": size}) for call in ("imap", "imap_unordered") for size in (0, 3)),
]


@pytest.mark.parametrize(("call", "names"), OPTIONS, ids=str)
def test_a_thread_pool_has_no_options(call, names):
    """Rather than that they are passed over; and what to do is said."""
    with pools.ThreadPool(1) as pool:
        with pytest.raises(
            TypeError, match=rf"^a ThreadPool has no {next(iter(names))}=; .*use a Pool, or \w+"
        ):
            calls(pool, targets.square, range(3), **names)[call]()
        assert calls(pool, targets.square, range(3))[call]() == [0, 1, 4]


def test_a_thread_pool_is_told_what_is_the_default():
    with pools.ThreadPool(1) as pool:
        names = {"timeout": None, "retries": 0, "progress": False}
        assert pool.map(targets.square, [3], **names) == [9]
        assert list(pool.imap(targets.square, [3], buffersize=None, **names)) == [9]


def test_a_thread_pool_is_not_resized():
    with pools.ThreadPool(1) as pool, pytest.raises(NotImplementedError, match="ThreadPool"):
        pool.resize(3)


class WithQueues(pools.Pool):
    """What the engine has not is its own."""

    def _setup_queues(self):
        super()._setup_queues()


def test_a_pool_that_is_the_stdlibs_says_why(fork):
    with WithQueues(1, context=fork) as pool:
        for call in (pool.map, pool.imap):
            with pytest.raises(TypeError, match=r"WithQueues overrides .*: it has no timeout="):
                call(targets.square, range(3), timeout=3)
        with pytest.raises(NotImplementedError, match="WithQueues overrides"):
            pool.resize(3)
        assert pool.map(targets.square, range(3)) == [0, 1, 4]
    pool.join()
    with pytest.raises(TypeError, match=r"WithQueues overrides .*: it has no max_memory="):
        WithQueues(1, context=fork, max_memory=1 << 30)


class Overriding(pools.Pool):
    """What it has of its own knows of no options."""

    def apply_async(self, func, args=(), kwds={}, callback=None, error_callback=None):  # noqa: B006
        return super().apply_async(targets.identity, args, kwds, callback, error_callback)

    def _map_async(self, func, iterable, mapper, *args):
        return super()._map_async(targets.identity, iterable, mapper, *args)


def test_options_where_a_subclass_overrides(fork, notes):
    with Overriding(2, context=fork) as pool:
        assert pool.apply(targets.square, (3,)) == 3
        assert pool.map(targets.square, [2, 3]) == [2, 3]
        function = functools.partial(options.die_at_first, str(notes))
        assert pool.apply(function, (5,), retries=1) == 5
        assert pool.map(function, [6, 7], 1, retries=1) == [6, 7]
        with pytest.raises(pools.TaskTimeoutError):
            pool.map(options.sleep_at_three, [3], timeout=BRIEF)


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        ({"worker_exit": 3}, TypeError),
        ({"worker_exit": "exit"}, TypeError),
        ({"max_memory": 0}, ValueError),
        ({"max_memory": -1}, ValueError),
        ({"max_memory": 1.5}, TypeError),
        ({"max_memory": "1"}, TypeError),
        ({"max_memory": True}, TypeError),
        ({"max_memory": [1, 2]}, TypeError),
        ({"max_memory": (1,)}, TypeError),
        ({"max_memory": (1, 2, 3)}, TypeError),
        ({"max_memory": (0, 1)}, ValueError),
        ({"max_memory": (1, -1)}, ValueError),
        ({"max_memory": (2, 1)}, ValueError),
        ({"cpus": 0}, TypeError),
        ({"cpus": []}, ValueError),
        ({"cpus": [[]]}, ValueError),
        ({"cpus": [0, set()]}, ValueError),
        ({"cpus": [-1]}, ValueError),
        ({"cpus": [[0, -1]]}, ValueError),
        ({"cpus": "01"}, TypeError),
        ({"cpus": [0.0]}, TypeError),
        ({"cpus": [["0"]]}, TypeError),
        ({"max_restarts": 3}, TypeError),
        ({"max_restarts": (1,)}, TypeError),
        ({"max_restarts": (1, 2, 3)}, TypeError),
        ({"max_restarts": ("1", 2)}, TypeError),
        ({"max_restarts": (1, None)}, TypeError),
        ({"max_restarts": (-1, 1)}, ValueError),
        ({"max_restarts": (1, 0)}, ValueError),
        ({"max_restarts": (1, math.nan)}, ValueError),
    ],
    ids=str,
)
def test_bad_options(fork, names, kind):
    """Nothing was started."""
    before = multiprocessing.active_children()
    with pytest.raises(kind, match=rf"^{next(iter(names))} must "):
        fork.Pool(1, **names)
    assert multiprocessing.active_children() == before


@pytest.mark.parametrize(
    "names",
    [{"cpus": [0]}, {"max_memory": 1}, {"cloudpickle": True}, {"worker_exit": print}],
    ids=str,
)
def test_a_pool_that_is_the_stdlibs_has_no_options(names):
    class Context(multiprocessing.context.ForkContext):
        """No context of this package."""

    (name,) = names
    match = f"its context is not one of this package: it has no {name}="
    with pytest.raises(TypeError, match=match):
        pools.Pool(1, context=Context(), **names)


def test_a_stdlibs_context(method):
    """It stands for ours of the same start method."""
    given = multiprocessing.get_context(method)
    with pools.Pool(1, context=given, max_memory=PLENTY) as pool:
        assert all(type(worker) is mproc_ext.get_context(method).Process for worker in pool._pool)
        assert pool.map(targets.square, range(5), 1, timeout=LIMIT) == [0, 1, 4, 9, 16]
        assert pool.apply(abs, (-1,)) == 1


def test_a_stdlibs_context_where_the_pool_is_the_stdlibs_too():
    given = multiprocessing.get_context("fork")
    with WithQueues(1, context=given) as pool:
        assert pool._ctx is given
        assert pool.map(targets.square, range(3)) == [0, 1, 4]
        with pytest.raises(TypeError, match=r"WithQueues overrides .*: it has no timeout="):
            pool.map(targets.square, range(3), timeout=3)


# ---- the end -------------------------------------------------------------------------------------

# With the standard library's pools a callback must not wait for its own pool at all.
WAITS_AT_EXIT = """
import atexit
import threading
import time
import mproc_ext

begun, go = threading.Event(), threading.Event()

def callback(value):
    assert pool.apply(abs, (-1,)) == 1
    begun.set()
    go.wait()
    time.sleep(0.5)
    try:
        {call}
    except mproc_ext.pool.BrokenPoolError as error:
        print(error, flush=True)

if __name__ == "__main__":
    pool = mproc_ext.get_context("fork").Pool(2)
    pool.apply_async(abs, (-1,), callback=callback)
    begun.wait()
    atexit.register(go.set)
"""


@pytest.mark.parametrize(
    "call",
    [
        "pool.apply(abs, (-1,))",
        "pool.map(abs, range(10))",
        "next(pool.imap(abs, [-1]))",
        "pool.apply_async(abs, (-1,)).wait()",
    ],
)
def test_a_callback_that_waits_for_its_pool_at_exit(call):
    out = run_program("-c", WAITS_AT_EXIT.format(call=call))
    assert out == "the pool does no task any more: the interpreter ends\n"


def test_a_callback_that_cancels_at_exit():
    call = "job = pool.apply_async(abs, (-1,)); assert job.cancel(); print('cancelled', flush=True)"
    assert run_program("-c", WAITS_AT_EXIT.format(call=call)) == "cancelled\n"
