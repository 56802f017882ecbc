"""What the calls of a pool return and raise, in both packages."""

import array
import collections
import datetime
import decimal
import functools
import gc
import importlib
import multiprocessing
import operator
import pathlib
import pickle
import queue
import re
import threading
import types
import weakref

import pool_targets as targets
import pytest
from pool_helpers import LIMIT
from sync_helpers import Task, wait_until

LENGTHS = [0, 1, 2, 7, 8, 9, 100, 1000]
CHUNKS = [None, 1, 2, 7, 1000]


# ---- apply --------------------------------------------------------------------------------------


def test_apply(pool):
    assert pool.apply(targets.square, (5,)) == 25
    assert pool.apply(targets.square, (), {"x": 3}) == 9
    assert pool.apply(targets.add, [1], {"y": 2}) == 3
    assert pool.apply(targets.nothing) is None
    assert pool.apply(func=targets.add, args=(1,), kwds={"y": 5}) == 6
    assert pool.apply(targets.arguments, range(3)) == ((0, 1, 2), {})
    assert pool.apply(targets.arguments, "ab", {"c": 1}) == (("a", "b"), {"c": 1})


def test_many_keywords(pool):
    names = {f"name{number}": number for number in range(300)}
    assert pool.apply(targets.arguments, (), names) == ((), names)
    assert list(pool.apply(targets.arguments, (), names)[1]) == list(names)  # in order


def test_apply_async(pool):
    results = [pool.apply_async(targets.square, (number,)) for number in range(200)]
    assert [result.get(LIMIT) for result in results] == [n * n for n in range(200)]
    assert all(result.ready() and result.successful() for result in results)


def test_results_are_had_in_any_order(pool):
    results = [pool.apply_async(targets.square, (number,)) for number in range(50)]
    assert [result.get(LIMIT) for result in reversed(results)] == [
        n * n for n in reversed(range(50))
    ]


def test_a_result_is_one_object(pool):
    result = pool.apply_async(targets.identity, ([1],))
    assert result.get(LIMIT) is result.get()
    result = pool.apply_async(targets.fail, (ValueError, "why"))
    errors = []
    for _ in range(2):
        with pytest.raises(ValueError, match="why") as caught:
            result.get(LIMIT)
        errors.append(caught.value)
    assert errors[0] is errors[1]


def test_a_result_that_is_not_there(pool, tmp_path):
    result = pool.apply_async(targets.wait_for_file, (str(tmp_path / "go"), 5))
    assert not result.ready()
    with pytest.raises(ValueError, match=r"<.*ApplyResult object at 0x.*> not ready"):
        result.successful()
    for seconds in (0, 0.01, -1):
        assert result.wait(seconds) is None
        with pytest.raises(multiprocessing.TimeoutError):
            result.get(seconds)
    (tmp_path / "go").touch()
    assert result.wait(LIMIT) is None
    assert result.ready()
    assert result.successful()
    assert result.get(0) == 5


@pytest.mark.parametrize("call", ["imap", "imap_unordered"])
def test_items_that_wait_for_results(pool, call):
    """Who waits for a result does not wait for the next item."""
    items = queue.SimpleQueue()
    items.put(0)
    results = getattr(pool, call)(targets.add, iter(items.get, None))
    for number in range(1, 50):
        assert results.next(LIMIT) == number + 99
        items.put(number)
    items.put(None)
    assert list(results) == [149]


def test_classes_of_results(pool):
    module = importlib.import_module(type(pool).__module__)
    result = pool.apply_async(targets.nothing)
    assert isinstance(result, module.ApplyResult)
    assert module.AsyncResult is module.ApplyResult
    assert isinstance(pool.map_async(abs, [1]), module.MapResult)
    assert isinstance(pool.starmap_async(pow, [(1, 2)]), module.MapResult)
    assert issubclass(module.MapResult, module.ApplyResult)
    assert isinstance(pool.imap(abs, [1]), module.IMapIterator)
    assert isinstance(pool.imap_unordered(abs, [1]), module.IMapUnorderedIterator)
    assert issubclass(module.IMapUnorderedIterator, module.IMapIterator)
    for call in (pool.imap, pool.imap_unordered):
        assert type(call(abs, [1], 2)) is types.GeneratorType
    assert isinstance(module.AsyncResult[int], types.GenericAlias)


def test_several_threads_get_one_result(pool, tmp_path):
    result = pool.apply_async(targets.wait_for_file, (str(tmp_path / "go"), [5]))
    tasks = [Task(result.get) for _ in range(5)]
    (tmp_path / "go").touch()
    first, *others = [task.get() for task in tasks]
    assert first == [5]
    assert all(other is first for other in others)


def test_a_result_outlives_its_pool(pools, mp):
    with pools.Pool(2, context=mp) as pool:
        result, failure = pool.apply_async(abs, (-1,)), pool.apply_async(int, ("x",))
        mapped, lazy = pool.map_async(abs, [-1, -2]), pool.imap(abs, range(5))
        pool.close()
        pool.join()
    assert result.get(0) == 1
    assert mapped.get(0) == [1, 2]
    assert list(lazy) == list(range(5))
    with pytest.raises(ValueError, match="invalid literal"):
        failure.get(0)


# ---- map and starmap ----------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", CHUNKS)
def test_map(pool, chunk):
    for length in LENGTHS:
        expected = [number * number for number in range(length)]
        assert pool.map(targets.square, range(length), chunk) == expected
        result = pool.map_async(targets.square, list(range(length)), chunksize=chunk)
        assert result.get(LIMIT) == expected
        assert result.successful()


@pytest.mark.parametrize("chunk", CHUNKS)
def test_starmap(pool, chunk):
    for length in LENGTHS:
        pairs = list(zip(range(length), reversed(range(length)), strict=True))
        assert pool.starmap(targets.pair, pairs, chunk) == pairs
        assert pool.starmap_async(targets.pair, iter(pairs), chunksize=chunk).get(LIMIT) == pairs


def test_starmap_of_all_that_can_be_unpacked(pool):
    items = [[1, 2], (3, 4), "ab", range(2), {"c": 0, "d": 1}, b"xy"]
    expected = [(1, 2), (3, 4), ("a", "b"), (0, 1), ("c", "d"), (120, 121)]
    assert pool.starmap(targets.pair, items) == expected
    assert pool.starmap(targets.nothing, [(), []]) == [None, None]
    with pytest.raises(TypeError):
        pool.starmap(targets.pair, [(1, 2), 3])
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'y'"):
        pool.starmap(targets.pair, [(1,)])


@pytest.mark.parametrize(
    "make",
    [list, tuple, set, frozenset, dict.fromkeys, collections.deque, iter, array.array, bytes]
    + [lambda items: (item for item in items), lambda items: map(int, items), memoryview],
    ids="list tuple set frozenset dict deque iterator array bytes generator map view".split(),
)
def test_iterables(pool, make):
    items = bytes(range(20))
    if make is array.array:
        make = functools.partial(array.array, "B")
    assert pool.map(targets.square, make(items), 3) == [item * item for item in items]
    assert list(pool.imap(targets.square, make(items))) == [item * item for item in items]
    assert list(pool.imap(targets.square, make(items), 3)) == [item * item for item in items]
    assert sorted(pool.imap_unordered(targets.square, make(items))) == [i * i for i in items]


def test_map_of_text(pool):
    assert pool.map(ord, "abc") == [97, 98, 99]


def test_map_reads_what_has_no_length_in_the_caller(pool):
    threads = []

    def items():
        for item in range(3):
            threads.append(threading.current_thread())
            yield item

    assert pool.map_async(targets.square, items()).get(LIMIT) == [0, 1, 4]
    assert threads == [threading.current_thread()] * 3
    with pytest.raises(ZeroDivisionError):
        pool.map_async(targets.square, (1 // n for n in (1, 0)))  # at once


def test_an_iterable_longer_than_its_length(one):
    """There is no room for more results; what is beyond is done, and nobody waits for it."""
    assert one.map(abs, targets.Iterable(1, [-1, -2, -3]), 1) == [1]
    assert one.map(abs, [-4]) == [4]


def test_a_length_that_fails(pool):
    def fail():
        raise ZeroDivisionError("no length")

    for call in (pool.map, pool.map_async, pool.starmap, pool.starmap_async):
        with pytest.raises(ZeroDivisionError, match="no length"):
            call(abs, targets.Iterable(fail, [1]))
    assert list(pool.imap(abs, targets.Iterable(fail, [-1]))) == [1]


def test_an_iterable_with_a_length_that_raises_midway(pool):
    items = targets.Iterable(5, targets.items_until(3))
    with pytest.raises(ValueError, match="the items end") as caught:
        pool.map(abs, targets.Iterable(1, targets.items_until(0)), 1)
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="the items end"):
        pool.map(abs, items, 5)
    assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("call", ["map", "starmap"])
def test_empty(pool, call):
    for empty in ([], (), iter([]), range(0), ""):
        for chunk in (None, 1, 5, 0):
            assert getattr(pool, call)(abs, empty, chunk) == []
    result = getattr(pool, f"{call}_async")(abs, [])
    assert result.ready()
    assert result.successful()
    assert result.get() == []


def test_empty_calls_nobody_back(pool):
    called = []
    result = pool.map_async(abs, [], callback=called.append, error_callback=called.append)
    assert result.get() == []
    assert pool.apply(abs, (-1,)) == 1
    assert called == []


def test_map_that_stops_in_the_function(pool):
    """StopIteration ends the map() of a chunk, not the pool's."""
    assert pool.map(targets.stop_at_one, range(3), chunksize=3) == [0]
    assert pool.map(targets.stop_at_one, [5, 6, 1, 7], chunksize=4) == [5, 6]
    assert list(pool.imap(targets.stop_at_one, [0, 1, 2])) == [0]
    with pytest.raises(StopIteration):
        pool.apply(targets.stop_at_one, (1,))


# ---- chunk sizes --------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [0, -1])
def test_a_chunk_size_below_one(pool, chunk):
    """map() does nothing then, and says it is done."""
    called = []
    for call in (pool.map_async, pool.starmap_async):
        result = call(abs, [1, 2, 3], chunk, callback=called.append)
        assert result.ready()
        assert result.get() == [None] * 3
    assert called == []
    for call in (pool.imap, pool.imap_unordered):
        with pytest.raises(ValueError, match=rf"^Chunksize must be 1\+, not {chunk}$"):
            call(abs, [1, 2, 3], chunk)
    assert pool.map(abs, [-1]) == [1]


def test_how_a_chunk_size_below_one_is_shown(pool):
    for call, shown in ((pool.imap, "0"), (pool.imap_unordered, "False")):
        with pytest.raises(ValueError, match=rf"^Chunksize must be 1\+, not {shown}$"):
            call(abs, [1, 2, 3], False)


def test_how_many_results_an_iterator_has(pool):
    items = queue.SimpleQueue()
    for call in (pool.imap, pool.imap_unordered):
        results = call(abs, iter(items.get, None))
        items.put(-1)
        first, length = results.next(LIMIT), getattr(results, "_length", "no attribute")
        items.put(-2)
        items.put(None)
        assert (first, length) == (1, None)
        assert list(results) == [2]
        assert results._length == 2
        results = call(abs, [])
        assert list(results) == []
        assert results._length == 0


def test_a_chunk_size_that_is_no_number(pools, mp):
    # A pool of its own: the stdlib's waits for such a map for ever once it is closed.
    with pools.Pool(1, context=mp) as pool:
        for call in (pool.map, pool.starmap, pool.imap, pool.imap_unordered):
            with pytest.raises(TypeError, match="between instances of 'str' and 'int'"):
                call(abs, [1], "2")
        assert pool.map(abs, [-1]) == [1]


def test_chunk_sizes_of_other_kinds(pool):
    for call in (pool.imap, pool.imap_unordered):
        with pytest.raises(TypeError, match="'NoneType' and 'int'"):
            call(abs, [1], None)
    for chunk in (1.5, 1 << 70):
        for call in (pool.map, pool.imap, pool.imap_unordered):
            with pytest.raises(ValueError, match="islice"):
                list(call(abs, [1], chunk))
    assert pool.map(abs, [-1, -2], True) == [1, 2]
    assert list(pool.imap(abs, [-1, -2], True)) == [1, 2]
    assert list(pool.imap(abs, [-1, -2], 1.0)) == [1, 2]


def test_what_is_in_a_chunk(pools, mp):
    """The default is a fourth of a worker's share, rounded up."""
    with pools.Pool(1, maxtasksperchild=1, context=mp) as pool:  # a chunk is a task
        for count, chunk, expected in (
            (16, None, [4, 4, 4, 4]),
            (17, None, [5, 5, 5, 2]),
            (3, None, [1, 1, 1]),
            (7, 3, [3, 3, 1]),
        ):
            pids = pool.map(targets.worker_pid, range(count), chunk)
            assert list(collections.Counter(pids).values()) == expected
        pids = list(pool.imap(targets.worker_pid, range(7), 3))
        assert list(collections.Counter(pids).values()) == [3, 3, 1]
        pool.close()
        pool.join()


# ---- imap ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 7, 1000])
def test_imap(pool, chunk):
    for length in LENGTHS:
        expected = [number * number for number in range(length)]
        assert list(pool.imap(targets.square, range(length), chunk)) == expected
        found = pool.imap_unordered(targets.square, iter(range(length)), chunksize=chunk)
        assert sorted(found) == expected


def test_imap_is_an_iterator(pool):
    for call in (pool.imap, pool.imap_unordered):
        iterator = call(targets.square, [3])
        assert iter(iterator) is iterator
        assert iterator.next() == 9
        for _ in range(3):
            with pytest.raises(StopIteration):
                next(iterator)
            with pytest.raises(StopIteration):
                iterator.next(timeout=0)


def test_imap_keeps_the_order(pool, tmp_path):
    go = str(tmp_path / "go")
    iterator = pool.imap(functools.partial(targets.wait_at, go), range(10))
    for seconds in (0, -1, 0.01):
        with pytest.raises(multiprocessing.TimeoutError):
            iterator.next(seconds)
    (tmp_path / "go").touch()
    assert iterator.next(LIMIT) == 0
    assert list(iterator) == list(range(1, 10))


def test_imap_unordered_gives_what_is_done_first(pool, tmp_path):
    go = str(tmp_path / "go")
    iterator = pool.imap_unordered(functools.partial(targets.wait_at, go), range(10))
    first = [iterator.next(LIMIT) for _ in range(9)]
    assert sorted(first) == list(range(1, 10))
    with pytest.raises(multiprocessing.TimeoutError):
        iterator.next(timeout=0)
    (tmp_path / "go").touch()
    assert iterator.next(LIMIT) == 0
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("call", ["imap", "imap_unordered"])
def test_imap_goes_on_after_an_error(pool, call):
    iterator = getattr(pool, call)(targets.fail_at_three, range(6))
    found, errors = [], []
    while True:
        try:
            found.append(next(iterator))
        except StopIteration:
            break
        except ValueError as error:
            errors.append(str(error))
    assert sorted(found) == [0, 1, 2, 4, 5]
    assert errors == ["item 3"]
    if call == "imap":
        assert found == sorted(found)


def test_imap_in_chunks_ends_with_an_error(pool):
    iterator = pool.imap(targets.fail_at_three, range(6), 2)
    assert [next(iterator), next(iterator)] == [0, 1]
    with pytest.raises(ValueError, match="item 3"):
        next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize("call", ["imap", "imap_unordered"])
@pytest.mark.parametrize("chunk", [1, 2])
def test_a_generator_that_raises_midway(pool, call, chunk):
    iterator = getattr(pool, call)(abs, targets.items_until(4), chunk)
    found = []
    with pytest.raises(ValueError, match="the items end") as caught:
        found.extend(iterator)
    assert caught.value.__cause__ is None
    if call == "imap":
        assert found == list(range(4))
    else:
        assert set(found) <= set(range(4))
    for empty in (targets.items_until(0), targets.items_until(0, KeyError)):
        with pytest.raises((ValueError, KeyError)):
            next(getattr(pool, call)(abs, empty, chunk))


@pytest.mark.parametrize("call", ["imap", "imap_unordered"])
def test_imap_of_what_is_no_iterable(pool, call):
    """It is noticed where the first item is asked for."""
    for chunk in (1, 2):
        iterator = getattr(pool, call)(abs, 3, chunk)
        with pytest.raises(TypeError, match=r"^'int' object is not iterable$"):
            next(iterator)


def test_imaps_that_nobody_reads(pool):
    for call in (pool.imap, pool.imap_unordered):
        next(call(targets.square, range(100)))
        call(targets.make_bytes, [100_000] * 20)
        call(targets.make_bytes, [100_000] * 20, 3)
    assert pool.map(abs, [-1]) == [1]


# ---- callbacks ----------------------------------------------------------------------------------


def test_callbacks(pool):
    good, bad = [], []
    call = functools.partial(pool.apply_async, callback=good.append, error_callback=bad.append)
    value = call(targets.identity, ([1],)).get(LIMIT)
    assert (good, bad) == ([[1]], [])
    assert good.pop() is value
    with pytest.raises(ValueError, match="why") as caught:
        call(targets.fail, (ValueError, "why")).get(LIMIT)
    assert good == []
    assert bad == [caught.value]


@pytest.mark.parametrize("call", ["map_async", "starmap_async"])
def test_callbacks_of_maps(pool, call):
    good, bad = [], []
    do = functools.partial(
        getattr(pool, call), chunksize=1, callback=good.append, error_callback=bad.append
    )
    items = range(5) if call == "map_async" else [(n,) for n in range(5)]
    value = do(targets.identity, items).get(LIMIT)
    assert value == list(range(5))
    assert good.pop() is value
    with pytest.raises(ValueError, match="item 3") as caught:
        do(targets.fail_at_three, items).get(LIMIT)
    assert (good, bad) == ([], [caught.value])


def test_a_callback_without_a_get(pool):
    called = []
    pool.apply_async(abs, (-3,), callback=called.append)
    pool.map_async(int, ["x"], error_callback=called.append)
    wait_until(lambda: len(called) == 2, "the callbacks")
    assert 3 in called
    assert {type(value) for value in called} == {int, ValueError}


@pytest.mark.parametrize("call", ["apply_async", "map_async"])
@pytest.mark.parametrize("fails", [False, True])
def test_get_returns_after_the_callback(pool, call, fails):
    begun, go, ended = threading.Event(), threading.Event(), []

    def callback(value):
        begun.set()
        assert go.wait(LIMIT)
        ended.append(value)

    function = int if fails else str
    result = getattr(pool, call)(function, ["x"], callback=callback, error_callback=callback)
    assert begun.wait(LIMIT)
    assert not result.ready()
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.01)
    task = Task(result.get)
    go.set()
    if fails:
        with pytest.raises(ValueError, match="invalid literal"):
            task.get()
    else:
        task.get()
    assert len(ended) == 1


def test_a_callback_may_use_the_pool(pool):
    results = []

    def callback(value):
        if value < 5:
            results.append(pool.apply_async(targets.add, (value, 1), callback=callback))
        else:
            results.append(None)

    pool.apply_async(targets.identity, (0,), callback=callback)
    wait_until(lambda: None in results, "the last callback")
    assert [result.get(LIMIT) for result in results[:-1]] == [1, 2, 3, 4, 5]


def test_callbacks_are_in_order(one):
    called = []
    results = [one.apply_async(abs, (n,), callback=called.append) for n in range(200)]
    results[-1].get(LIMIT)
    assert called == list(range(200))


# ---- errors -------------------------------------------------------------------------------------

ERRORS = [
    ValueError("why"),
    ValueError(),
    KeyError("key"),
    OSError(2, "No such file", "name"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "why"),
    targets.OddError(3, "text"),
    MemoryError("none left"),
    RecursionError("too deep"),
    EOFError("an end"),
    multiprocessing.TimeoutError("late"),
    multiprocessing.ProcessError("process"),
    AssertionError((1, 2)),
    ExceptionGroup("several", [ValueError(1), OSError(2, "two")]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors(pool, error):
    copier = targets.Copier(error)
    at_zero = functools.partial(targets.fail_at, which=0, kind=copier)
    calls = [
        lambda: pool.apply(targets.fail, (copier,)),
        lambda: pool.starmap(targets.fail, [(copier,)]),
        lambda: next(pool.imap(at_zero, [0])),
        lambda: next(pool.imap_unordered(at_zero, [0], 2)),
    ]
    for call in calls:
        with pytest.raises(type(error)) as caught:
            call()
        found = caught.value
        assert type(found) is type(error)
        assert str(found) == str(error)
        assert repr(found.args) == repr(error.args)
        assert repr(vars(found)) == repr(vars(error))


def test_what_an_error_has_with_it(pool):
    with pytest.raises(ValueError, match="text") as caught:
        pool.apply(targets.fail_with_notes, ("text", "a note"))
    assert caught.value.__notes__ == ["a note"]
    assert caught.value.extra == ["text"]


def test_an_error_in_a_map(pool):
    """The others are done, and only then get() raises."""
    for chunk in (None, 1, 4, 100):
        with pytest.raises(ValueError, match=r"^item 3$"):
            pool.map(targets.fail_at_three, range(20), chunk)
        result = pool.starmap_async(targets.fail_at_three, [(n,) for n in range(20)], chunk)
        result.wait(LIMIT)
        assert not result.successful()


def test_a_failing_map_waits_for_its_other_tasks(pool, tmp_path):
    go = str(tmp_path / "go")
    result = pool.starmap_async(
        targets.apply, [(targets.wait_for_file, go), (targets.fail, ValueError, "why")], 1
    )
    with pytest.raises(multiprocessing.TimeoutError):
        result.get(0.05)
    (tmp_path / "go").touch()
    with pytest.raises(ValueError, match="why"):
        result.get(LIMIT)


def test_remote_traceback(process_pool):
    module = importlib.import_module(type(process_pool).__module__)
    with pytest.raises(ValueError, match="why") as caught:
        process_pool.apply(targets.fail, (ValueError, "why"))
    cause = caught.value.__cause__
    assert type(cause) is module.RemoteTraceback
    assert cause.tb == str(cause)
    text = str(cause)
    assert text.startswith('\n"""\nTraceback (most recent call last):\n')
    assert text.endswith('\nValueError: why\n"""')
    assert "in fail\n    raise kind(*args)\n" in text
    assert caught.value.__suppress_context__  # as `raise ... from` has it


@pytest.mark.parametrize("call", ["map", "starmap", "imap", "imap_unordered"])
def test_remote_traceback_of_maps(process_pool, call):
    for chunk in (1, 3):
        with pytest.raises(ValueError, match="why") as caught:
            list(
                getattr(process_pool, call)(
                    functools.partial(targets.fail, ValueError), [("why",)], chunk
                )
            )
        assert "in fail\n    raise kind(*args)\n" in str(caught.value.__cause__)


def test_nested_errors(process_pool):
    with pytest.raises(RuntimeError, match="the second") as caught:
        process_pool.apply(targets.fail_from_another)
    text = str(caught.value.__cause__)
    assert "KeyError: 'the first'" in text
    assert "The above exception was the direct cause of the following exception" in text
    with pytest.raises(RuntimeError, match="the second") as caught:
        process_pool.apply(targets.fail_while_handling)
    text = str(caught.value.__cause__)
    assert "During handling of the above exception, another exception occurred" in text
    with pytest.raises(ExceptionGroup) as caught:
        process_pool.apply(targets.fail_in_a_group)
    assert repr(caught.value.exceptions) == repr(
        (ValueError("one"), ExceptionGroup("two", [KeyError(3)]))
    )
    assert "| KeyError: 3" in str(caught.value.__cause__)


def test_a_thread_raises_the_error_itself(thread_pool):
    error = ValueError("why")
    with pytest.raises(ValueError, match="why") as caught:
        thread_pool.apply(targets.fail_at, (0, 0, lambda _: error))
    assert caught.value is error
    assert error.__cause__ is None


# ---- what cannot be pickled ---------------------------------------------------------------------


def test_a_result_that_cannot_be_pickled(process_pool):
    module = importlib.import_module(type(process_pool).__module__)
    for _ in range(10):
        called = []
        result = process_pool.apply_async(targets.return_lambda, error_callback=called.append)
        with pytest.raises(module.MaybeEncodingError) as caught:
            result.get(LIMIT)
        error = caught.value
        assert called == [error]
        assert type(error) is module.MaybeEncodingError
        assert error.value.startswith("<function return_lambda.<locals>.<lambda> at 0x")
        assert "return_lambda.<locals>.<lambda>" in error.exc
        # It is made anew here, of what had been shown there.
        assert error.args == (repr(error.exc), repr(error.value))
        assert str(error) == f"Error sending result: '{error.value}'. Reason: '{error.exc}'"
        assert repr(error) == f"<MaybeEncodingError: {error}>"
        assert error.__cause__ is None
    assert process_pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]


def test_results_of_maps_that_cannot_be_pickled(process_pool):
    module = importlib.import_module(type(process_pool).__module__)
    with pytest.raises(module.MaybeEncodingError) as caught:
        process_pool.map(targets.return_lambda, range(2), 2)
    assert caught.value.value.startswith("[<function return_lambda")  # the chunk
    for call in (process_pool.imap, process_pool.imap_unordered):
        iterator = call(targets.return_lambda, range(3))
        for _ in range(3):
            with pytest.raises(module.MaybeEncodingError):
                next(iterator)
        with pytest.raises(StopIteration):
            next(iterator)


@pytest.mark.parametrize("chunk", [1, 2, None])
@pytest.mark.parametrize("count", [1, 5])
def test_how_a_result_that_cannot_be_pickled_is_shown(process_pool, chunk, count):
    """That of a map is in a list, whatever its chunks; so are those of an imap in chunks."""
    module = importlib.import_module(type(process_pool).__module__)
    one = re.compile(r"<function return_lambda\.<locals>\.<lambda> at 0x[0-9a-f]+>")

    def shown(get):
        with pytest.raises(module.MaybeEncodingError) as caught:
            get()
        return one.sub("X", caught.value.value)

    some = ["[X]"] if chunk == 1 or count == 1 or chunk is None else ["[X]", "[X, X]"]
    items, pairs = range(count), [(n,) for n in range(count)]
    assert shown(lambda: process_pool.map(targets.return_lambda, items, chunk)) in some
    assert shown(lambda: process_pool.starmap(targets.return_lambda, pairs, chunk)) in some
    for call in (process_pool.imap, process_pool.imap_unordered):
        found = shown(lambda call=call: next(call(targets.return_lambda, items, chunk or 1)))
        assert found in (some if chunk == 2 else ["X"])


def test_an_error_that_cannot_be_pickled(process_pool):
    module = importlib.import_module(type(process_pool).__module__)
    with pytest.raises(module.MaybeEncodingError) as caught:
        process_pool.apply(targets.fail, (targets.LocalError,))
    # What is shown is what wraps the error, with its traceback.
    assert "ExceptionWithTraceback object at 0x" in caught.value.value
    assert "lambda" in caught.value.exc


def test_arguments_that_cannot_be_pickled(process_pool):
    """It is get() that says so."""
    bad = targets.Unpicklable()
    called = []
    calls = [
        process_pool.apply_async(targets.identity, (bad,), error_callback=called.append),
        process_pool.apply_async(targets.identity, (), {"x": bad}, error_callback=called.append),
        process_pool.map_async(targets.identity, [bad] * 10, error_callback=called.append),
        process_pool.starmap_async(targets.identity, [(bad,)] * 10, error_callback=called.append),
    ]
    for result in calls:
        with pytest.raises(RuntimeError, match=r"^it refuses to be pickled") as caught:
            result.get(LIMIT)
        assert caught.value.__cause__ is None
    assert len(called) == 4
    for call in (process_pool.imap, process_pool.imap_unordered):
        iterator = call(targets.identity, [0, bad, 2])
        found = []
        while True:
            try:
                found.append(next(iterator))
            except StopIteration:
                break
            except RuntimeError as error:
                found.append(str(error))
        assert sorted(map(str, found)) == ["0", "2", "it refuses to be pickled"]
    assert process_pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]


def test_a_function_that_cannot_be_pickled(process_pool):
    for function in (lambda: None, targets.return_lambda()):
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            process_pool.apply(function)
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            process_pool.map(function, range(10))
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            next(process_pool.imap(function, range(10)))


def test_threads_need_no_pickle(thread_pool):
    thing = targets.Unpicklable()
    assert thread_pool.apply(lambda x: x, (thing,)) is thing
    assert thread_pool.map(lambda x: x, [thing])[0] is thing
    assert next(thread_pool.imap(lambda x: x, [thing])) is thing


# ---- values -------------------------------------------------------------------------------------

VALUES = [
    None,
    True,
    0,
    -1,
    1 << 62,
    1 << 63,
    -(1 << 200),
    1.5,
    float("inf"),
    3j,
    "",
    "text \N{SNOWMAN} \N{GRINNING FACE}",
    "\ud800",
    b"",
    b"\0\xff" * 300,
    bytearray(b"abc"),
    (),
    (1, (2, (3,))),
    [],
    [1, [2, [3]]],
    {},
    {"a": {1: (2,)}, (1, 2): None},
    {1, 2},
    frozenset("ab"),
    range(3),
    slice(1, 2),
    ...,
    NotImplemented,
    int,
    len,
    datetime.datetime(2024, 1, 2, 3, 4),
    decimal.Decimal("1.10"),
    pathlib.PurePosixPath("/a/b"),
    collections.OrderedDict(a=1),
    collections.deque([1, 2], 5),
    array.array("d", [1.5]),
    targets.Point(3),
    targets.square,
    "x" * 100_000,
    list(range(10_000)),
]


def test_values(pool):
    for value in VALUES:
        for found in (
            pool.apply(targets.identity, (value,)),
            pool.apply(targets.identity, kwds={"x": value}),
            pool.map(targets.identity, [value])[0],
            next(pool.imap(targets.identity, [value])),
        ):
            assert type(found) is type(value)
            assert found == value
    assert pool.map(targets.identity, VALUES, 1) == VALUES
    assert list(pool.imap(targets.identity, VALUES)) == VALUES
    assert pool.starmap(targets.pair, [(value, value) for value in VALUES]) == [
        (value, value) for value in VALUES
    ]


def test_what_is_shared_within_a_task_stays_so(process_pool):
    thing = [1]
    first, second = process_pool.apply(targets.identity, ([thing, thing],))
    assert first is second
    assert first is not thing
    cycle = []
    cycle.append(cycle)
    found = process_pool.apply(targets.identity, (cycle,))
    assert found[0] is found


def test_errors_as_values(pool):
    """An error that is returned is no failure."""
    found = pool.apply(targets.identity, (KeyError("a value"),))
    assert repr(found) == "KeyError('a value')"
    assert found.__cause__ is None


FUNCTIONS = [
    (len, "abc", 3),
    (str, 5, "5"),
    (operator.neg, 3, -3),
    (operator.itemgetter(1), "ab", "b"),
    (operator.methodcaller("upper"), "a", "A"),
    (functools.partial(targets.add, y=2), 1, 3),
    ("a-b".split, "-", ["a", "b"]),
    ([1, 1].count, 1, 2),
    (targets.Point(3).plus, 4, 7),
    (targets.Point(3), 4, 12),
    (targets.Point, 4, targets.Point(4)),
    (targets.Point.make, 5, targets.Point(5)),
    (targets.Point.twice, 5, 10),
    (dict.fromkeys, "a", {"a": None}),
]


def test_functions_of_all_kinds(pool):
    for function, argument, expected in FUNCTIONS:
        assert pool.apply(function, (argument,)) == expected
        assert pool.map(function, [argument] * 3, 1) == [expected] * 3
        assert list(pool.imap(function, [argument] * 3)) == [expected] * 3


def test_a_callable_is_sent_as_it_is_then(process_pool):
    """One that has a state is not kept from the first time."""
    thing = targets.Point(1)
    assert process_pool.apply(thing, (10,)) == 10
    thing.x = 2
    assert process_pool.map(thing, [10] * 8, 1) == [20] * 8
    assert process_pool.apply(thing.plus, (10,)) == 12


def test_many_functions(pool):
    """More than a worker might remember."""
    for number in range(300):
        function = functools.partial(targets.add, y=number)
        assert pool.apply(function, (1,)) == number + 1


@pytest.mark.parametrize("size", [1_000, 65_536, 1 << 20, 20 << 20])
def test_large(pool, size):
    data = bytes(range(256)) * (size // 256)
    assert pool.apply(targets.size, (data,)) == len(data)
    assert pool.apply(targets.make_bytes, (size,)) == bytes([7]) * size
    assert pool.apply(targets.identity, (data,)) == data
    assert pool.map(targets.size, [data] * 4, 1) == [len(data)] * 4


def test_many_large_results_that_wait(pool):
    """More than any buffer holds, with nobody who reads them yet."""
    results = [pool.apply_async(targets.make_bytes, (300_000, n)) for n in range(100)]
    mapped = pool.map_async(targets.make_bytes, [1 << 20] * 20, 1)
    mapped.wait(LIMIT)
    for number, result in reversed(list(enumerate(results))):
        assert result.get(LIMIT) == bytes([number]) * 300_000
    assert [len(data) for data in mapped.get(0)] == [1 << 20] * 20


def test_many_large_tasks_and_results(pool):
    """Neither side may wait for the other to make room."""
    data = bytes(400_000)
    results = [pool.apply_async(targets.identity, (data,)) for _ in range(100)]
    assert all(result.get(LIMIT) == data for result in results)


def test_large_errors(process_pool):
    text = "x" * (1 << 20)
    with pytest.raises(ValueError, match=r"x{1000}") as caught:
        process_pool.map(functools.partial(targets.fail, ValueError), [text] * 4, 1)
    assert caught.value.args == (text,)


def test_many_small_tasks(pool):
    assert pool.map(targets.identity, range(5_000), 1) == list(range(5_000))
    results = [pool.apply_async(targets.identity, (n,)) for n in range(2_000)]
    assert [result.get(LIMIT) for result in results] == list(range(2_000))


# ---- threads, and what stays ---------------------------------------------------------------------


def test_several_threads(pool):
    def work(number):
        base = number * 1000
        assert pool.map(targets.identity, range(base, base + 50), 3) == [*range(base, base + 50)]
        for item in range(base, base + 30):
            assert pool.apply(targets.identity, (item,)) == item
        assert list(pool.imap(targets.identity, range(base, base + 50))) == [
            *range(base, base + 50)
        ]
        with pytest.raises(ValueError, match=f"thread {number}"):
            pool.apply(targets.fail, (ValueError, f"thread {number}"))
        return number

    tasks = [Task(work, number) for number in range(6)]
    assert [task.get() for task in tasks] == list(range(6))


def test_a_thread_waits_where_another_one_is_served(pool, tmp_path):
    """Who waits for a long task does not keep others from their results."""
    slow = pool.apply_async(targets.wait_for_file, (str(tmp_path / "go"), "slow"))
    task = Task(slow.get)
    assert pool.map(targets.identity, range(100), 1) == list(range(100))
    assert not slow.ready()
    (tmp_path / "go").touch()
    assert task.get() == "slow"


def test_references_are_released(pool):
    """Neither tasks nor results are kept after they are done with."""
    objects = [targets.Counted() for _ in range(10)]
    refs = [weakref.ref(thing) for thing in objects]
    pool.map(targets.identity, objects)
    pool.apply(targets.identity, (objects[0],))
    list(pool.imap(targets.identity, objects))
    del objects

    def released():
        gc.collect()
        return not any(ref() for ref in refs) and targets.Counted.living == 0

    wait_until(released, "the end of the last reference")


def test_results_do_not_keep_the_pool(pools, mp):
    pool = pools.Pool(1, context=mp)
    result, mapped = pool.apply_async(abs, (-1,)), pool.map_async(abs, [-1])
    result.get(LIMIT)
    mapped.get(LIMIT)
    wait_until(lambda: result._pool is None and mapped._pool is None)
    pool.close()
    pool.join()
    assert not pool._cache


# ---- Chunks of numbers -------------------------------------------------------------------------

INTS = [0, 1, -1, 127, 128, -129, 1 << 31, -(1 << 63), (1 << 63) - 1]
NUMBERS = [*INTS, 0.0, -0.0, 1e300, True, None]


def are_the_same(found, expected):
    return found == expected and list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize("count", [2, 14, 254, 255, 256, 5000])
def test_chunks_of_numbers(pool, count):
    numbers = (NUMBERS * 400)[:count]
    assert are_the_same(pool.map(targets.identity, numbers, count), numbers)
    assert are_the_same(pool.map(targets.identity, tuple(numbers), 100), numbers)
    assert str(pool.map(targets.identity, numbers, count)[9:11]) == str(numbers[9:11])
    assert are_the_same(list(pool.imap(targets.identity, numbers, count)), numbers)


@pytest.mark.parametrize("others", [[1 << 64], ["text"], [[1]], [targets.MyInt(5)], [(1, 2)]])
@pytest.mark.parametrize("place", [0, 5, 10])
def test_chunks_that_are_not_all_of_numbers(pool, others, place):
    items = list(range(10))
    items[place:place] = others
    assert are_the_same(pool.map(targets.identity, items, 20), items)


def numbers_with(special, count=300):
    numbers = list(range(count))
    if special is not None:
        numbers[special] = targets.SPECIAL
    return numbers


@pytest.mark.parametrize("special", [0, 1, 7, 299, None])
@pytest.mark.parametrize("chunksize", [2, 100, 300])
def test_results_that_cease_to_be_numbers(pool, special, chunksize):
    numbers = numbers_with(special)
    found = pool.map(targets.number_or_not, numbers, chunksize)
    assert are_the_same(found, list(map(targets.number_or_not, numbers)))
    if special is not None:
        assert type(found[special][2]) is targets.MyInt


@pytest.mark.parametrize("chunksize", [2, 8, 5000])
def test_odd_results_of_numbers(pool, chunksize):
    assert are_the_same(
        pool.map(targets.odd_ones, range(5000), chunksize), list(map(targets.odd_ones, range(5000)))
    )


@pytest.mark.parametrize("special", [0, 1, 299])
def test_a_chunk_of_numbers_ends_with_stop_iteration(pool, special):
    """As it ends the map() that a chunk is."""
    assert list(pool.imap(targets.stop_at_special, numbers_with(special), 300)) == list(
        range(special)
    )


@pytest.mark.parametrize("special", [0, 150, 299])
def test_an_error_in_a_chunk_of_numbers(pool, special):
    with pytest.raises(ValueError, match=f"item {targets.SPECIAL}"):
        pool.map(targets.fail_at_special, numbers_with(special), 300)
    assert pool.map(targets.fail_at_special, range(300), 300) == list(range(300))


def test_a_fork_in_a_chunk_of_numbers(process_pool):
    assert process_pool.map(targets.fork_and, range(20), 10) == [x + 0.5 for x in range(20)]
