"""What the tests of deaths run, each in a process of its own: python death_scenarios.py NAME METHOD

The stdlib's pool hangs in nearly all of them.
"""

import collections
import contextlib
import faulthandler
import functools
import os
import pathlib
import pickle
import random
import re
import signal
import sys
import tempfile
import threading
import time

import pool_targets as targets
from pool_helpers import (
    LIMIT,
    SOON,
    is_gone,
    lines,
    story,
    wait_for_lines,
    wait_until_gone,
)
from sync_helpers import Task, wait_until

import mproc_ext
from mproc_ext import pool as pools

SCENARIOS = {}
LARGE = 50 << 20  # bytes


def scenario(*choices):
    """Registers a function of (context, scratch folder), for each choice once."""

    def register(function):
        for choice in choices or (None,):
            name = function.__name__ + ("" if choice is None else f" {choice}")
            SCENARIOS[name] = functools.partial(function, choice=choice) if choices else function
        return function

    return register


# ---- what is looked at -------------------------------------------------------------------------


@contextlib.contextmanager
def raises(*kinds):
    """The error is there afterwards, in a list."""
    found = []
    try:
        yield found
    except kinds as error:
        found.append(error)
    else:
        raise AssertionError(f"no {' or '.join(kind.__name__ for kind in kinds)}")


def pids(pool):
    return [worker.pid for worker in pool._pool]


def check_lost(error, pid=None, exitcode=-signal.SIGKILL, function=None):
    """A worker's death is told of in full, and can be told on to another process."""
    assert type(error) is pools.WorkerLostError, repr(error)
    assert isinstance(error, RuntimeError)
    assert type(error.pid) is int
    assert error.pid != os.getpid()
    if pid is not None:
        assert error.pid == pid, (error.pid, pid)
    if exitcode is not None:
        assert error.exitcode == exitcode, (error.exitcode, exitcode)
    assert str(error.pid) in str(error), str(error)
    assert error.task is not None
    if function is not None:
        assert function in f"{error.task} {error}", (error.task, str(error))
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.pid, copy.exitcode) == (type(error), error.pid, error.exitcode)


def check_usable(pool, size=2):
    """It does what it is asked to, with all its workers."""
    assert pool.map(targets.square, range(50), 1) == [n * n for n in range(50)]
    assert list(pool.imap(targets.square, range(20))) == [n * n for n in range(20)]
    assert sorted(pool.imap_unordered(targets.square, range(20))) == [n * n for n in range(20)]
    assert pool.apply_async(targets.add, (1,), {"y": 2}).get(SOON) == 3

    def is_full():
        return len(pool._pool) == size and not any(map(is_gone, pids(pool)))

    wait_until(is_full, "that the dead are replaced", SOON)


def check_ends(pool):
    """It closes in order, and leaves no worker."""
    pool.close()
    workers = pids(pool)
    pool.join()
    assert all(map(is_gone, workers))


def collect(iterator):
    """(what it gives, the errors it raises) until its end."""
    found, errors = [], []
    while True:
        try:
            found.append(iterator.next(SOON))
        except StopIteration:
            return found, errors
        except mproc_ext.TimeoutError:
            raise AssertionError(f"stuck after {len(found)} items and {errors}")
        except Exception as error:
            errors.append(error)


def warm(pool):
    """Wait until every worker has done a task: none is on its way to be one any more."""
    seen = set()

    def all_seen():
        seen.update(pool.map(targets.sleep_and_tell, range(4), 1))
        return seen.issuperset(pids(pool))

    wait_until(all_seen, "a task of every worker", SOON)


def kill_worker(pool, number=signal.SIGKILL, at=0):
    pid = pool._pool[at].pid
    os.kill(pid, number)
    wait_until_gone(pid, seconds=SOON)
    return pid


# ---- killed from outside -------------------------------------------------------------------------


@scenario("SIGKILL", "SIGTERM", "SIGSEGV")
def killed_idle(ctx, folder, choice):
    """Nobody notices."""
    with ctx.Pool(2) as pool:
        for _ in range(5):
            warm(pool)
            gone = kill_worker(pool, getattr(signal, choice))
            check_usable(pool)
            assert gone not in pids(pool)
        check_ends(pool)


@scenario()
def all_killed_idle(ctx, folder):
    with ctx.Pool(3) as pool:
        warm(pool)
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
        check_usable(pool, 3)
        check_ends(pool)


@scenario()
def killed_before_the_first_task(ctx, folder):
    with ctx.Pool(2) as pool:
        for pid in pids(pool):
            os.kill(pid, signal.SIGKILL)
        check_usable(pool)
        check_ends(pool)


@scenario()
def killed_idle_then_closed(ctx, folder):
    with ctx.Pool(2) as pool:
        warm(pool)
        kill_worker(pool)
        check_ends(pool)


@scenario("SIGKILL", "SIGTERM", "SIGABRT", "SIGSEGV")
def killed_in_a_task(ctx, folder, choice):
    number = getattr(signal, choice)
    with ctx.Pool(2) as pool:
        result = pool.apply_async(targets.note_and_sleep_for_ever, (str(folder / "notes"),))
        (pid,) = map(int, wait_for_lines(folder / "notes", 1))
        os.kill(pid, number)
        with raises(pools.WorkerLostError) as found:
            result.get(SOON)
        check_lost(found[0], pid, -number, "note_and_sleep_for_ever")
        assert result.ready()
        assert not result.successful()
        assert result.wait(0) is None
        check_usable(pool)
        assert pid not in pids(pool)
        check_ends(pool)


@scenario()
def killed_in_the_only_worker(ctx, folder):
    """Tasks behind it are done by the next one."""
    with ctx.Pool(1) as pool:
        lost = pool.apply_async(targets.note_and_sleep_for_ever, (str(folder / "notes"),))
        others = [pool.apply_async(targets.square, (n,)) for n in range(50)]
        (pid,) = map(int, wait_for_lines(folder / "notes", 1))
        os.kill(pid, signal.SIGKILL)
        with raises(pools.WorkerLostError) as found:
            lost.get(SOON)
        check_lost(found[0], pid)
        assert [result.get(SOON) for result in others] == [n * n for n in range(50)]
        check_usable(pool, 1)


@scenario("apply", "map", "starmap", "imap", "imap_unordered")
def killed_while_somebody_waits(ctx, folder, choice):
    """In the call itself."""
    path = str(folder / "notes")
    with ctx.Pool(2) as pool:
        calls = {
            "apply": lambda: pool.apply(targets.note_and_sleep_for_ever, (path,)),
            "map": lambda: pool.map(targets.note_and_sleep_for_ever, [path]),
            "starmap": lambda: pool.starmap(targets.note_and_sleep_for_ever, [(path,)]),
            "imap": lambda: next(pool.imap(targets.note_and_sleep_for_ever, [path])),
            "imap_unordered": lambda: list(
                pool.imap_unordered(targets.note_and_sleep_for_ever, [path], 2)
            ),
        }
        task = Task(calls[choice])
        (pid,) = map(int, wait_for_lines(folder / "notes", 1))
        os.kill(pid, signal.SIGKILL)
        with raises(pools.WorkerLostError) as found:
            task.get()
        check_lost(found[0], pid)
        check_usable(pool)


@scenario()
def killed_while_closing(ctx, folder):
    """join() waits for tasks, and for none that is lost."""
    with ctx.Pool(2) as pool:
        lost = pool.apply_async(targets.note_and_sleep_for_ever, (str(folder / "notes"),))
        others = [pool.apply_async(targets.square, (n,)) for n in range(50)]
        (pid,) = map(int, wait_for_lines(folder / "notes", 1))
        pool.close()
        task = Task(pool.join)
        os.kill(pid, signal.SIGKILL)
        task.get()
        with raises(pools.WorkerLostError) as found:
            lost.get(0)
        check_lost(found[0], pid)
        assert [result.get(0) for result in others] == [n * n for n in range(50)]


@scenario()
def killed_with_a_child_of_its_own(ctx, folder):
    """Which holds on to all that the worker had open, so that no end of a file tells of it."""
    with ctx.Pool(2) as pool:
        result = pool.apply_async(targets.leave_a_child_and_sleep, (str(folder / "notes"),))
        noted = set(map(int, wait_for_lines(folder / "notes", 2)))
        (pid,) = noted & set(pids(pool))
        (grandchild,) = noted - {pid}
        try:
            os.kill(pid, signal.SIGKILL)
            with raises(pools.WorkerLostError) as found:
                result.get(SOON)
            check_lost(found[0], pid)
            assert not is_gone(grandchild)
            check_usable(pool)
            check_ends(pool)
        finally:
            os.kill(grandchild, signal.SIGKILL)


@scenario()
def killed_while_it_sends(ctx, folder):
    """Something large: it is there whole, or lost."""
    rng = random.Random(7)
    counts = collections.Counter()
    with ctx.Pool(2) as pool:
        for number in range(20):
            path = folder / f"notes {number}"
            result = pool.apply_async(targets.note_and_make_bytes, (str(path), LARGE))
            (pid,) = map(int, wait_for_lines(path, 1))
            time.sleep(rng.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
            try:
                assert result.get(SOON) == bytes(LARGE)
                counts["whole"] += 1
            except pools.WorkerLostError as error:
                check_lost(error, pid)
                counts["lost"] += 1
            assert pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]
        assert sum(counts.values()) == 20, counts
        check_usable(pool)


@scenario()
def killed_while_it_reads(ctx, folder):
    """Something large: the task is done by another worker, or lost with this one."""
    rng = random.Random(8)
    data = bytes(LARGE)
    with ctx.Pool(1) as pool:
        for _ in range(10):
            pid = pool.apply(targets.worker_pid)
            result = pool.apply_async(targets.size, (data,))
            time.sleep(rng.random() * 0.05)
            os.kill(pid, signal.SIGKILL)
            try:
                assert result.get(SOON) == LARGE
            except pools.WorkerLostError as error:
                check_lost(error, pid)
            assert pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]
        check_usable(pool, 1)


# ---- among many tasks ----------------------------------------------------------------------------


@scenario(1, 7, 50)
def among_a_map(ctx, folder, choice):
    """The others of it are done; get() raises after them."""
    path = folder / "notes"
    function = functools.partial(targets.die_at, which=50, path=str(path))
    with ctx.Pool(2) as pool:
        result = pool.map_async(function, range(200), choice)
        with raises(pools.WorkerLostError) as found:
            result.get(SOON)
        check_lost(found[0], function="die_at")
        at = 50 // choice * choice
        chunk = range(at, min(200, at + choice))
        done = [number for number in range(200) if number not in chunk or number < 50]
        assert sorted(map(int, lines(path))) == done
        check_usable(pool)
        check_ends(pool)


@scenario("starmap", "default chunks", "map with a callback")
def among_other_maps(ctx, folder, choice):
    path = str(folder / "notes")
    with ctx.Pool(2) as pool:
        called = []
        if choice == "starmap":
            items = [(n, 50, path) for n in range(200)]
            result = pool.starmap_async(targets.die_at, items, 1, None, called.append)
        else:
            function = functools.partial(targets.die_at, which=50, path=path)
            result = pool.map_async(function, range(200), error_callback=called.append)
        with raises(pools.WorkerLostError) as found:
            result.get(SOON)
        check_lost(found[0])
        assert called == found
        assert len(lines(folder / "notes")) >= 170
        check_usable(pool)


@scenario("imap", "imap_unordered")
def among_an_imap(ctx, folder, choice):
    """Its item alone raises."""
    with ctx.Pool(2) as pool:
        function = functools.partial(targets.die_at, which=50, path=str(folder / "notes"))
        found, errors = collect(getattr(pool, choice)(function, range(200)))
        assert sorted(found) == [number for number in range(200) if number != 50]
        if choice == "imap":
            assert found == sorted(found)
        (error,) = errors
        check_lost(error)
        check_usable(pool)


@scenario("imap", "imap_unordered")
def several_among_an_imap(ctx, folder, choice):
    with ctx.Pool(2) as pool:
        found, errors = collect(getattr(pool, choice)(targets.die_in_tens, range(100)))
        assert sorted(found) == [number for number in range(100) if number % 10 != 5]
        assert len(errors) == len({error.pid for error in errors}) == 10
        for error in errors:
            check_lost(error)
        check_usable(pool)


@scenario()
def among_an_imap_in_chunks(ctx, folder):
    """It ends with the error, as with any; those before it were given."""
    with ctx.Pool(2) as pool:
        iterator = pool.imap(targets.die_in_tens, range(100), 5)
        assert [next(iterator) for _ in range(5)] == list(range(5))
        with raises(pools.WorkerLostError) as found:
            next(iterator)
        check_lost(found[0])
        with raises(StopIteration):
            next(iterator)
        check_usable(pool)


@scenario()
def among_apply_asyncs(ctx, folder):
    with ctx.Pool(2) as pool:
        called = collections.Counter()
        results = [
            pool.apply_async(
                targets.die_in_tens,
                (n,),
                callback=lambda _: called.update(["good"]),
                error_callback=lambda error: called.update([type(error).__name__]),
            )
            for n in range(100)
        ]
        lost = set()
        for number, result in enumerate(results):
            if number % 10 == 5:
                with raises(pools.WorkerLostError) as found:
                    result.get(SOON)
                check_lost(found[0])
                lost.add(found[0].pid)
            else:
                assert result.get(SOON) == number
        assert len(lost) == 10
        assert called == {"good": 90, "WorkerLostError": 10}
        check_usable(pool)


@scenario()
def among_tasks_of_several_threads(ctx, folder):
    """Each hears of its own."""
    with ctx.Pool(2) as pool:

        def work(number):
            if number % 2:
                assert pool.map(targets.identity, range(100), 1) == list(range(100))
                return 0
            with raises(pools.WorkerLostError) as found:
                pool.map(targets.die_in_tens, range(10 * number, 10 * number + 10), 1)
            check_lost(found[0])
            return found[0].pid

        tasks = [Task(work, number) for number in range(6)]
        assert len({task.get() for task in tasks} - {0}) == 3
        check_usable(pool)


@scenario()
def with_workers_that_are_replaced_anyway(ctx, folder):
    with ctx.Pool(2, maxtasksperchild=3) as pool:
        found, errors = collect(pool.imap_unordered(targets.die_in_tens, range(60)))
        assert sorted(found) == [number for number in range(60) if number % 10 != 5]
        assert len(errors) == 6
        check_usable(pool)
        check_ends(pool)


@scenario("imap_unordered", "apply_async")
def small_storm(ctx, folder, choice):
    """Workers are killed from outside: each item is there once, or its loss is."""
    rng = random.Random(9)
    wanted = 50 if ctx.get_start_method() == "fork" else 6
    path = folder / "notes"
    stop, killed = threading.Event(), []

    def kill_some():
        # Those that have begun to work: whoever dies on the way there may be taken for one that
        # cannot work at all.
        while not stop.wait(rng.random() * 0.02) and len(killed) < wanted:
            at_work = set(map(int, lines(path))).intersection(pids(pool)).difference(killed)
            if at_work:
                pid = rng.choice(sorted(at_work))
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)

    with ctx.Pool(2) as pool:
        task = Task(kill_some)
        found, errors = [], []
        function = functools.partial(targets.note_once, str(path))
        while len(killed) < wanted:
            if choice == "imap_unordered":
                got = collect(pool.imap_unordered(function, range(200)))
            else:
                got = [], []
                for result in [pool.apply_async(function, (n,)) for n in range(200)]:
                    try:
                        got[0].append(result.get(SOON))
                    except pools.WorkerLostError as error:
                        got[1].append(error)
            assert len(got[0]) + len(got[1]) == 200
            assert len(set(got[0])) == len(got[0])
            found += got[0]
            errors += got[1]
        stop.set()
        task.get()
        for error in errors:
            check_lost(error)
            assert error.pid in killed
        assert found
        check_usable(pool)
        check_ends(pool)


# ---- what ends a worker from inside --------------------------------------------------------------

ENDS = {
    "os._exit": (targets.exit_hard, (3,), 3),
    "os._exit 0": (targets.exit_hard, (0,), 0),
    "sys.exit": (targets.exit_by_exception, (), 0),
    "sys.exit 4": (targets.exit_by_exception, (4,), 4),
    "sys.exit text": (targets.exit_by_exception, ("a text",), 1),
    "SystemExit": (targets.fail, (SystemExit, 5), 5),
    "KeyboardInterrupt": (targets.fail, (KeyboardInterrupt,), None),
    "segfault": (targets.crash, (), -signal.SIGSEGV),
    "abort": (targets.abort, (), -signal.SIGABRT),
    "SIGKILL": (targets.die_by, (signal.SIGKILL,), -signal.SIGKILL),
}


@scenario(*ENDS)
def ended_by(ctx, folder, choice):
    function, args, exitcode = ENDS[choice]
    with ctx.Pool(2) as pool:
        for _ in range(2):
            called = []
            result = pool.apply_async(function, args, error_callback=called.append)
            with raises(pools.WorkerLostError) as found:
                result.get(SOON)
            check_lost(found[0], exitcode=exitcode, function=function.__name__)
            assert called == found
            check_usable(pool)
        with raises(pools.WorkerLostError) as found:
            pool.starmap(function, [args] * 3, 1)
        check_lost(found[0], exitcode=exitcode)
        found, errors = collect(pool.imap(functools.partial(function, *args[1:]), [*args[:1]]))
        assert (found, len(errors)) == ([], min(1, len(args)))
        check_usable(pool)
        check_ends(pool)


@scenario("Bare", "GeneratorExit")
def another_base_exception(ctx, folder, choice):
    """It is told of, or ends the worker."""
    kind = targets.Bare if choice == "Bare" else GeneratorExit
    with ctx.Pool(2) as pool:
        with raises(pools.WorkerLostError, kind):
            pool.apply_async(targets.fail, (kind, "why")).get(SOON)
        check_usable(pool)


@scenario()
def a_worker_that_closes_all(ctx, folder):
    """All its descriptors: it may go on, or be lost."""
    with ctx.Pool(2) as pool:
        try:
            assert pool.apply_async(targets.close_all).get(SOON) == "closed"
        except pools.WorkerLostError as error:
            check_lost(error, exitcode=None)
        check_usable(pool)


# ---- what cannot be unpickled --------------------------------------------------------------------


@scenario("apply", "map", "imap", "imap_unordered")
def a_result_that_cannot_be_unpickled(ctx, folder, choice):
    function = functools.partial(targets.poison_at, which=3)
    with ctx.Pool(2) as pool:
        for _ in range(3):
            if choice == "apply":
                args = targets.return_poison, ("cannot be unpickled",)
                call = functools.partial(pool.apply, *args)
            elif choice == "map":
                call = functools.partial(pool.map, function, range(10), 1)
            else:
                found, errors = collect(getattr(pool, choice)(function, range(10)))
                assert sorted(found) == [number for number in range(10) if number != 3]
                assert len(errors) == 1
                assert "cannot be unpickled" in story(errors[0]), story(errors[0])
                continue
            with raises(Exception) as found:
                Task(call).get()
            assert "cannot be unpickled" in story(found[0]), story(found[0])
        check_usable(pool)
        check_ends(pool)


@scenario("apply", "apply_async with a callback", "map", "imap")
def an_error_that_cannot_be_unpickled(ctx, folder, choice):
    """The usual one: its __init__ takes other arguments than it hands to Exception."""
    called = []
    with ctx.Pool(2) as pool:
        calls = {
            "apply": lambda: pool.apply(targets.fail_with_two_arguments),
            "apply_async with a callback": lambda: pool.apply_async(
                targets.fail_with_two_arguments, error_callback=called.append
            ).get(SOON),
            "map": lambda: pool.starmap(targets.fail_with_two_arguments, [()] * 3, 1),
            "imap": lambda: next(
                pool.imap(targets.Star(targets.fail_with_two_arguments), [()] * 3)
            ),
        }
        for _ in range(3):
            with raises(Exception) as found:
                Task(calls[choice]).get()
            assert not isinstance(found[0], mproc_ext.TimeoutError)
            assert "TwoArgumentsError" in story(found[0]), story(found[0])
            assert len(called) == (choice == "apply_async with a callback")
            called.clear()
        check_usable(pool)
        check_ends(pool)


@scenario("apply", "map", "imap")
def arguments_that_cannot_be_unpickled(ctx, folder, choice):
    """In the worker, which goes on or is replaced."""
    bad = targets.Poison("cannot be unpickled")
    with ctx.Pool(2) as pool:
        calls = {
            "apply": lambda: pool.apply(targets.identity, (bad,)),
            "map": lambda: pool.map(targets.identity, [1, bad, 3], 1),
            "imap": lambda: list(pool.imap(targets.identity, [bad])),
        }
        for _ in range(3):
            with raises(Exception) as found:
                Task(calls[choice]).get()
            assert "cannot be unpickled" in story(found[0]), story(found[0])
        found, errors = collect(pool.imap(targets.identity, [1, bad, 3]))
        assert (found, len(errors)) == ([1, 3], 1)
        check_usable(pool)
        check_ends(pool)


@scenario("apply", "map")
def a_function_that_is_not_there(ctx, folder, choice):
    """The worker has never heard of it: the usual one in an interactive session."""
    with ctx.Pool(2) as pool:
        pool.map(abs, range(10), 1)

        def later(x):
            return x

        later.__qualname__ = later.__name__ = "defined_later"
        targets.defined_later = later
        later.__module__ = targets.__name__
        with raises(Exception) as found:
            if choice == "apply":
                pool.apply_async(later, (1,)).get(SOON)
            else:
                pool.map_async(later, range(10)).get(SOON)
        assert not isinstance(found[0], mproc_ext.TimeoutError)
        assert "defined_later" in story(found[0]), story(found[0])
        check_usable(pool)


@scenario()
def a_result_that_cannot_even_be_shown(ctx, folder):
    """MaybeEncodingError is made of what is shown."""
    with ctx.Pool(2) as pool:
        with raises(Exception) as found:
            pool.apply_async(targets.return_no_repr).get(SOON)
        assert not isinstance(found[0], mproc_ext.TimeoutError)
        assert "it refuses to be" in story(found[0]), story(found[0])
        check_usable(pool)


# ---- callbacks -----------------------------------------------------------------------------------


@scenario("callback", "error_callback")
def a_callback_that_raises(ctx, folder, choice):
    """Other results come, with their callbacks; the next ones too."""

    def callback(_):
        raise ValueError("the callback fails")

    with ctx.Pool(2) as pool:
        for _ in range(3):
            function = int if choice == "callback" else targets.crash
            args = (5,) if choice == "callback" else ()
            result = pool.apply_async(function, args, **{choice: callback})
            called = []
            pool.apply_async(abs, (-1,), callback=called.append).get(SOON)
            assert called == [1]
            result.wait(SOON)
            assert result.ready()
        check_usable(pool)
        check_ends(pool)


@scenario()
def callbacks_that_exit(ctx, folder):
    with ctx.Pool(2) as pool:
        result = pool.apply_async(abs, (-1,), callback=lambda _: sys.exit(5))
        result.wait(SOON)
        assert result.ready()
        check_usable(pool)


@scenario("imap", "imap_unordered")
def several_threads_read_one_iterator(ctx, folder, choice):
    with ctx.Pool(2) as pool:
        iterator = getattr(pool, choice)(targets.identity, range(400))

        def read():
            return [next(iterator) for _ in range(100)]

        tasks = [Task(read) for _ in range(4)]
        assert sorted(item for task in tasks for item in task.get()) == list(range(400))


# ---- initializers --------------------------------------------------------------------------------


def a_number(number, name="no name"):
    """By itself, which it is not within the number of a process."""
    return rf"(?<!\d){int(number)}(?!\d)|{name}"


# What is called, with what, and what the reason given for the end must have in it.
INITIALIZERS = {
    "raises": (targets.refuse_to_start, (), "the initializer fails on purpose"),
    "exits": (targets.exit_by_exception, (7,), a_number(7)),
    "exits hard": (targets.exit_hard, (7,), a_number(7)),
    "is killed": (targets.die_by, (signal.SIGKILL,), a_number(signal.SIGKILL, "SIGKILL")),
    "crashes": (targets.crash, (), a_number(signal.SIGSEGV, "SIGSEGV")),
    "takes other arguments": (targets.refuse_to_start, (1, 2), "refuse_to_start"),
    "has no arguments": (targets.nothing, 5, "iterable"),
    "cannot be unpickled": (
        targets.identity,
        (targets.Poison("cannot be unpickled"),),
        a_number(1, "cannot be unpickled"),  # a started process may say it on its stderr alone
    ),
}


@scenario(*INITIALIZERS)
def an_initializer_that(ctx, folder, choice):
    """The pool breaks after a few tries, and says why to all."""
    function, args, reason = INITIALIZERS[choice]
    if choice == "cannot be unpickled" and ctx.get_start_method() == "fork":
        return  # nothing is pickled
    pool = ctx.Pool(2, function, args)
    with raises(pools.BrokenPoolError) as found:
        pool.apply_async(abs, (-1,)).get(SOON)
    assert isinstance(found[0], RuntimeError)
    assert found[0].__cause__ is not None
    assert re.search(reason, story(found[0])), story(found[0])
    for call in (
        lambda: pool.map_async(abs, range(10)).get(SOON),
        lambda: pool.apply(abs, (1,)),
        lambda: list(pool.imap(abs, range(10))),
        lambda: list(pool.imap_unordered(abs, range(10), 3)),
    ):
        with raises(pools.BrokenPoolError) as found:
            Task(call).get()
        assert re.search(reason, story(found[0])), story(found[0])
    pool.terminate()
    pool.join()
    wait_until(lambda: not mproc_ext.active_children(), "the end of all workers", SOON)


@scenario("close", "terminate", "with", "drop")
def a_broken_pool_is_ended_by(ctx, folder, choice):
    pool = ctx.Pool(2, targets.refuse_to_start)
    with raises(pools.BrokenPoolError):
        pool.apply_async(abs, (-1,)).get(SOON)
    if choice == "with":
        with contextlib.suppress(ValueError, pools.BrokenPoolError):
            with pool:
                pass
    elif choice != "drop":
        getattr(pool, choice)()
        pool.join()
    del pool
    wait_until(lambda: not mproc_ext.active_children(), "the end of all workers", SOON)


@scenario()
def an_initializer_that_fails_once(ctx, folder):
    """That is no reason to break."""
    with ctx.Pool(1, targets.fail_once, (str(folder / "notes"),)) as pool:
        assert pool.map_async(abs, [-1, -2]).get(SOON) == [1, 2]
        check_usable(pool, 1)


@scenario()
def an_initializer_that_fails_later(ctx, folder):
    """Its first workers were good; the next ones are not."""
    path = folder / "notes"
    with ctx.Pool(2, targets.stop_working_when_noted, (str(path),)) as pool:
        assert pool.map(abs, range(10), 1) == list(range(10))
        path.touch()
        while True:
            try:
                pool.apply_async(targets.crash).get(SOON)
            except pools.WorkerLostError:
                continue
            except pools.BrokenPoolError as error:
                assert "the initializer fails by now" in story(error), story(error)
                break


# ---- terminate -----------------------------------------------------------------------------------


@scenario("apply", "get", "map", "imap", "imap_unordered", "wait", "join")
def terminate_while_another_thread_waits_in(ctx, folder, choice):
    path = str(folder / "notes")
    pool = ctx.Pool(2)
    results = [pool.apply_async(targets.note_and_sleep_for_ever, (path,)) for _ in range(2)]
    wait_for_lines(folder / "notes", 2)
    begun = threading.Event()

    def wait():
        begun.set()
        if choice == "apply":
            pool.apply(abs, (1,))
        elif choice == "get":
            results[0].get()
        elif choice == "map":
            pool.map(abs, range(100), 1)
        elif choice == "join":
            pool.close()
            pool.join()
        elif choice == "wait":
            results[0].wait()
        else:
            list(getattr(pool, choice)(abs, range(10)))

    task = Task(wait)
    assert begun.wait(LIMIT)
    workers = pids(pool)
    pool.terminate()
    pool.join()
    assert all(map(is_gone, workers))
    if choice in ("wait", "join"):
        task.get()
    else:
        # A call may only begin once it is over.
        with raises(pools.BrokenPoolError, ValueError) as found:
            task.get()
        if choice == "get":
            assert type(found[0]) is pools.BrokenPoolError
        if type(found[0]) is ValueError:
            assert str(found[0]) == "Pool not running"


@scenario()
def get_after_terminate(ctx, folder):
    pool = ctx.Pool(2)
    path = str(folder / "notes")
    done = pool.apply_async(abs, (-1,))
    assert done.get(SOON) == 1
    result = pool.apply_async(targets.note_and_sleep_for_ever, (path,))
    mapped = pool.map_async(targets.note_and_sleep_for_ever, [path] * 10, 1)
    lazy = pool.imap(targets.note_and_sleep_for_ever, [path] * 10)
    chunks = pool.imap_unordered(targets.note_and_sleep_for_ever, [path] * 10, 3)
    wait_for_lines(folder / "notes", 2)
    pool.terminate()
    for call in (result.get, mapped.get, lazy.next, lambda: next(chunks)):
        with raises(pools.BrokenPoolError):
            Task(call).get()
    pool.join()
    assert done.get() == 1
    assert result.ready()
    assert not result.successful()


@scenario()
def terminate_twice(ctx, folder):
    pool = ctx.Pool(2)
    pool.map_async(targets.note_and_sleep_for_ever, [str(folder / "notes")] * 100, 1)
    wait_for_lines(folder / "notes", 2)
    workers = pids(pool)
    tasks = [Task(pool.terminate) for _ in range(3)]
    pool.terminate()
    for task in tasks:
        task.get()
    pool.terminate()
    pool.join()
    pool.join()
    assert all(map(is_gone, workers))


@scenario()
def terminate_in_a_callback(ctx, folder):
    pool = ctx.Pool(2)
    lost = pool.apply_async(targets.note_and_sleep_for_ever, (str(folder / "notes"),))
    wait_for_lines(folder / "notes", 1)
    ended = threading.Event()

    def callback(_):
        pool.terminate()
        ended.set()

    pool.apply_async(abs, (-1,), callback=callback)
    assert ended.wait(SOON)
    pool.join()
    with raises(pools.BrokenPoolError):
        lost.get(SOON)


@scenario()
def terminate_workers_that_do_not_listen(ctx, folder):
    """They ignore SIGTERM."""
    pool = ctx.Pool(2)
    pool.map_async(targets.ignore_sigterm_for_ever, [str(folder / "notes")] * 2, 1)
    workers = list(map(int, wait_for_lines(folder / "notes", 2)))
    pool.terminate()
    pool.join()
    assert all(map(is_gone, workers))


@scenario()
def terminate_stopped_workers(ctx, folder):
    pool = ctx.Pool(2)
    assert pool.map(abs, range(10), 1) == list(range(10))
    workers = pids(pool)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    pool.terminate()
    pool.join()
    assert all(map(is_gone, workers))


@scenario()
def terminate_at_any_moment(ctx, folder):
    rng = random.Random(10)
    rounds = 60 if ctx.get_start_method() == "fork" else 8
    for _ in range(rounds):
        pool = ctx.Pool(2, maxtasksperchild=rng.choice([None, 1, 5]))
        workers = pids(pool)
        results = [
            pool.map_async(targets.identity, range(1000), 1),
            pool.map_async(targets.make_bytes, [100_000] * 50, 1),
            pool.apply_async(targets.crash),
        ]
        lazy = pool.imap_unordered(targets.identity, range(1000))
        time.sleep(rng.random() * 0.02)
        pool.terminate()
        pool.join()
        assert all(map(is_gone, workers))
        assert not mproc_ext.active_children()
        for result in results:
            with contextlib.suppress(pools.BrokenPoolError, pools.WorkerLostError):
                result.get(SOON)
        with contextlib.suppress(pools.BrokenPoolError):
            for _ in range(1000):
                lazy.next(SOON)


@scenario()
def with_ends_while_tasks_run(ctx, folder):
    with ctx.Pool(2) as pool:
        result = pool.map_async(targets.note_and_sleep_for_ever, [str(folder / "notes")] * 100, 1)
        workers = list(map(int, wait_for_lines(folder / "notes", 2)))
    wait_until_gone(*workers, seconds=SOON)
    with raises(pools.BrokenPoolError):
        result.get(SOON)


@scenario()
def dropped_while_tasks_run(ctx, folder):
    """A result keeps its pool, and without any of them it goes."""
    pool = ctx.Pool(2)
    pool.map_async(targets.note_and_sleep_for_ever, [str(folder / "notes")] * 2, 1)
    workers = list(map(int, wait_for_lines(folder / "notes", 2)))
    pool.terminate()
    del pool
    wait_until_gone(*workers, seconds=SOON)


@scenario()
def use_of_a_forked_copy(ctx, folder):
    """A copy in a child does the task or refuses it: it does not wait for ever."""
    with ctx.Pool(2) as pool:
        pool.map(abs, range(10), 1)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with contextlib.suppress(Exception):
                    assert pool.apply_async(abs, (-1,)).get() == 1
                status = 0
            finally:
                os._exit(status)

        def has_ended():
            return is_gone(pid)

        try:
            wait_until(has_ended, "the end of the child", SOON)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == 0
        check_usable(pool)


# ---- ends of the program; what is printed is read by the test ------------------------------------


def begin(ctx, folder, count=2):
    """A pool whose workers are in tasks that do not end."""
    pool = ctx.Pool(2)
    result = pool.map_async(
        targets.note_and_sleep_for_ever, [str(folder / "notes")] * count, chunksize=1
    )
    wait_for_lines(folder / "notes", min(count, 2))
    return pool, result


def say(*words):
    print(*words, flush=True)


def parent_that_is_killed(ctx, folder, busy):
    pool, _ = begin(ctx, folder, 2 if busy else 0)
    pool.apply_async(targets.identity, (1,))
    say(*pids(pool))
    threading.Event().wait()


def parent_that_exits_hard(ctx, folder, busy):
    pool, _ = begin(ctx, folder, 2 if busy else 0)
    say(*pids(pool))
    os._exit(0)


def interrupted(ctx, folder, where, ends):
    """Wait in a call for what does not come, until SIGINT does."""
    pool, result = begin(ctx, folder)
    path = str(folder / "more notes")
    calls = {
        "get": result.get,
        "wait": result.wait,
        "apply": lambda: pool.apply(targets.note_and_sleep_for_ever, (path,)),
        "map": lambda: pool.map(targets.note_and_sleep_for_ever, [path]),
        "imap": lambda: next(pool.imap(targets.note_and_sleep_for_ever, [path])),
        "imap_unordered": lambda: list(pool.imap_unordered(abs, [1, 2, 3], 2)),
        "join": lambda: (pool.close(), pool.join()),
        "get with a timeout": lambda: result.get(10 * LIMIT),
    }
    say(*pids(pool))
    try:
        if ends == "with":
            with pool:
                calls[where]()
        else:
            calls[where]()
    except KeyboardInterrupt:
        if ends == "uncaught":
            raise
        if ends == "terminate":
            pool.terminate()
            pool.join()
        say("interrupted")
        return
    raise AssertionError("no KeyboardInterrupt")


def interrupted_and_goes_on(ctx, folder):
    """A handler of the program's own is run while it waits, and the wait goes on."""
    seen = []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))
    with ctx.Pool(1) as pool:
        result = pool.apply_async(targets.wait_for_file, (str(folder / "go"), 5))
        thread = Task(_go_on_when, seen, folder / "go")
        say(*pids(pool))
        assert result.get(LIMIT) == 5
        thread.get()
    say("interrupted")


def _go_on_when(seen, path):
    wait_until(lambda: seen, "the signal")
    path.touch()


def exits(ctx, folder, how):
    """Without a word to the pool."""
    if how == "after a death":
        pool = ctx.Pool(2)
        pool.apply_async(targets.crash)
        pool.map(abs, range(10), 1)
    elif how == "with results unread":
        pool = ctx.Pool(2)
        pool.map_async(targets.make_bytes, [1 << 20] * 50, 1)
    elif how == "at once":
        pool = ctx.Pool(2)
    elif how == "closed":
        pool, _ = begin(ctx, folder)
        pool.close()
    else:
        pool, _ = begin(ctx, folder, 0 if how == "idle" else 100)
    globals()["kept"] = pool  # until the interpreter's last moment
    say(*pids(pool))
    if how == "by SystemExit":
        sys.exit(0)


def daemon_thread(ctx, folder, where):
    """It waits in a call, or goes on making tasks, when the interpreter ends."""
    pool = ctx.Pool(2)
    begun = threading.Event()

    def work():
        if where == "map":
            begun.set()
            pool.map(targets.note_and_sleep_for_ever, [str(folder / "notes")] * 100, 1)
        while True:
            pool.map(abs, range(100), 1)
            list(pool.imap(abs, range(100)))
            begun.set()

    threading.Thread(target=work, daemon=True).start()
    assert begun.wait(LIMIT)
    if where == "map":
        wait_for_lines(folder / "notes", 2)
    say(*pids(pool))


def main(name, method, *arguments):
    faulthandler.dump_traceback_later(LIMIT - 5, exit=True)
    ctx = mproc_ext.get_context(method)
    if name in SCENARIOS:
        with tempfile.TemporaryDirectory() as folder:
            SCENARIOS[name](ctx, pathlib.Path(folder))
        print("done")
        return
    folder, *arguments = arguments
    arguments = [{"True": True, "False": False}.get(each, each) for each in arguments]
    globals()[name](ctx, pathlib.Path(folder), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
