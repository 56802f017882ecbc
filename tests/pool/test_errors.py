"""Bad input and use at the wrong time: the stdlib's error, to the letter, and the pool goes on."""

import contextlib
import copy
import importlib
import multiprocessing
import os
import pickle
import re

import pool_targets as targets
import pytest
from both_packages import PACKAGES
from pool_helpers import LIMIT, METHODS
from sync_helpers import outcome, run_program

CALLS = {
    "apply": lambda pool: pool.apply(abs, (1,)),
    "apply_async": lambda pool: pool.apply_async(abs, (1,)),
    "map": lambda pool: pool.map(abs, [1]),
    "map of nothing": lambda pool: pool.map(abs, []),
    "map_async": lambda pool: pool.map_async(abs, [1]),
    "starmap": lambda pool: pool.starmap(abs, [(1,)]),
    "starmap_async": lambda pool: pool.starmap_async(abs, [(1,)]),
    "imap": lambda pool: pool.imap(abs, [1]),
    "imap, chunks": lambda pool: pool.imap(abs, [1], 5),
    "imap, bad chunks": lambda pool: pool.imap(abs, [1], 0),
    "imap_unordered": lambda pool: pool.imap_unordered(abs, [1]),
    "imap_unordered, chunks": lambda pool: pool.imap_unordered(abs, [1], 5),
    "enter": lambda pool: pool.__enter__(),
    "map of no iterable": lambda pool: pool.map(abs, 5),
}


@pytest.fixture(params=["processes", "threads"])
def make(request, pools, mp):
    """Makes pools of either kind."""
    if request.param == "threads":
        return pools.ThreadPool
    return lambda *args, **kwargs: pools.Pool(*args, context=mp, **kwargs)


# ---- how many ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, -(1 << 70), 0.5, False])
def test_too_few_workers(make, count):
    with pytest.raises(ValueError, match=r"^Number of processes must be at least 1$"):
        make(count)


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ("1", "'<' not supported between instances of 'str' and 'int'"),
        ([], "'<' not supported between instances of 'list' and 'int'"),
        (1j, "'<' not supported between instances of 'complex' and 'int'"),
        (1.5, "'float' object cannot be interpreted as an integer"),
        (float("nan"), "'float' object cannot be interpreted as an integer"),
    ],
)
def test_what_is_no_count_of_workers(make, count, message):
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        make(count)


def test_as_many_as_there_are_processors(pools, mp):
    count = getattr(os, "process_cpu_count", os.cpu_count)()
    with pools.Pool(context=mp) as pool:
        assert len(pool._pool) == pool._processes == count
    with pools.Pool(True, context=mp) as pool:
        assert len(pool._pool) == 1


def test_more_workers_than_tasks(pools, mp):
    with pools.Pool(40, context=mp) as pool:
        assert pool.map(targets.square, range(3)) == [0, 1, 4]
        assert pool.map(targets.square, range(500), 1) == [n * n for n in range(500)]


# ---- what a pool is made with --------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 0.5, 1.0, "12", [], False])
def test_a_bad_maxtasksperchild(pools, mp, value):
    with pytest.raises(ValueError, match=r"^maxtasksperchild must be a positive int or None$"):
        pools.Pool(1, maxtasksperchild=value, context=mp)


@pytest.mark.parametrize("value", [0, 1, "text", ()])
def test_an_initializer_that_cannot_be_called(make, value):
    with pytest.raises(TypeError, match=r"^initializer must be a callable$"):
        make(1, value)


def test_which_error_comes_first(pools, mp):
    with pytest.raises(ValueError, match="Number of processes"):
        pools.Pool(0, 5, (), -1, mp)
    with pytest.raises(ValueError, match="maxtasksperchild"):
        pools.Pool(1, 5, (), -1, mp)


# The stdlib's __del__ finds no state.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_arguments_there_are_not(make):
    for call in (
        lambda: make(1, nonsense=1),
        lambda: make(1, None, (), None, None, None),
        lambda: make(1, processes=1),
    ):
        with pytest.raises(TypeError):
            call()


def test_an_initializer_that_cannot_be_sent(package, pools):
    """By pickle: spawn and forkserver say so at once, and no worker is left."""
    for method in ("spawn", "forkserver"):
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            pools.Pool(2, lambda: None, context=package.get_context(method))
    assert [p for p in multiprocessing.active_children() if "PoolWorker" in p.name] == []


def test_a_failed_pool_is_no_running_one(pools, mp, recwarn):
    """It goes without a ResourceWarning."""
    for arguments in ((0,), (1, 5), (1, None, (), -1)):
        with contextlib.suppress(ValueError, TypeError):
            pools.Pool(*arguments, context=mp)
    assert not [found for found in recwarn.list if found.category is ResourceWarning]


# ---- what is called ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [None, 5, "abs", []])
def test_what_cannot_be_called(make, function):
    kind = type(function).__name__
    with make(2) as pool:
        for call in (
            lambda: pool.apply(function),
            lambda: pool.apply_async(function, (1,)).get(LIMIT),
            lambda: pool.map(function, [1]),
            lambda: pool.starmap(function, [(1,)]),
            lambda: next(pool.imap(function, [1])),
            lambda: next(pool.imap(function, [1], 2)),
            lambda: next(pool.imap_unordered(function, [1])),
        ):
            with pytest.raises(TypeError, match=f"^'{kind}' object is not callable$"):
                call()
        assert pool.map(function, []) == []
        assert pool.map(abs, [-1]) == [1]


def test_arguments_that_do_not_fit(make):
    with make(1) as pool:
        for call, message in (
            (lambda: pool.apply(targets.add), "missing 1 required positional argument: 'x'"),
            (lambda: pool.apply(targets.add, (1, 2, 3)), "takes from 1 to 2 positional arguments"),
            (lambda: pool.apply(targets.add, (), {"z": 1}), "unexpected keyword argument 'z'"),
            (lambda: pool.apply(targets.add, (1,), {"x": 1}), "multiple values for argument 'x'"),
            (lambda: pool.apply(targets.add, 5), "must be an iterable, not int"),
            (lambda: pool.apply(targets.add, None), "must be an iterable, not NoneType"),
            (lambda: pool.apply(targets.add, (), 5), "must be a mapping, not int"),
            (lambda: pool.apply(targets.add, (1,), {2: 3}), "keywords must be strings"),
            (lambda: pool.map(targets.nothing, [1]), "takes 0 positional arguments"),
            (lambda: pool.starmap(targets.add, [5]), "'int' object is not iterable"),
        ):
            with pytest.raises(TypeError, match=message):
                call()
        assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("call", ["map", "map_async", "starmap", "starmap_async"])
def test_what_is_no_iterable(make, call):
    with make(1) as pool:
        for thing in (5, None, abs, object()):
            kind = type(thing).__name__
            with pytest.raises(TypeError, match=f"^'{kind}' object is not iterable$"):
                getattr(pool, call)(abs, thing)
        assert pool.map(abs, [-1]) == [1]


def test_calls_without_arguments(make):
    with make(1) as pool:
        for call in ("apply", "apply_async", "map", "starmap", "imap", "imap_unordered"):
            with pytest.raises(TypeError):
                getattr(pool, call)()
            with pytest.raises(TypeError):
                getattr(pool, call)(abs, [], nonsense=1)


BAD_INPUT = {
    "args": lambda pool: pool.apply(targets.add, 5),
    "kwds": lambda pool: pool.apply(targets.add, (), 5),
    "keys": lambda pool: pool.apply(targets.add, (1,), {2: 3}),
    "function": lambda pool: pool.apply(None),
    "function of a map": lambda pool: pool.map("text", [1]),
    "lambda": lambda pool: pool.apply(lambda: 1),
    "iterable": lambda pool: pool.map(abs, 5),
    "iterable of imap": lambda pool: list(pool.imap(abs, 5)),
    "starmap": lambda pool: pool.starmap(targets.add, [5]),
    "chunk 0": lambda pool: pool.map(abs, [1], 0),
    "chunk -1": lambda pool: pool.map(abs, [1, 2], -1),
    "chunk 1.5": lambda pool: pool.map(abs, [1], 1.5),
    "chunk '2'": lambda pool: pool.map(abs, [1], "2"),
    "imap chunk 0": lambda pool: pool.imap(abs, [1], 0),
    "imap chunk 0.5": lambda pool: pool.imap(abs, [1], 0.5),
    "imap chunk -1.5": lambda pool: pool.imap_unordered(abs, [1], -1.5),
    "imap chunk 1.5": lambda pool: list(pool.imap(abs, [1], 1.5)),
    "imap chunk None": lambda pool: pool.imap(abs, [1], None),
    "imap chunk '2'": lambda pool: pool.imap_unordered(abs, [1], "2"),
    "no state to join": lambda pool: pool.join(),
    "timeout": lambda pool: pool.apply_async(targets.wait_for_file, ("/no/such",)).get("1"),
    "timeout of wait": lambda pool: pool.apply_async(targets.wait_for_file, ("/no",)).wait([]),
    "timeout of next": lambda pool: pool.imap(targets.wait_for_file, ["/no/such"]).next("1"),
    "late timeout": lambda pool: pool.apply_async(targets.wait_for_file, ("/no/such",)).get(-5),
    "not ready": lambda pool: pool.apply_async(targets.wait_for_file, ("/no",)).successful(),
    "unpicklable": lambda pool: pool.apply(targets.identity, (targets.Unpicklable(),)),
    "pool as an argument": lambda pool: pool.apply(targets.identity, (pool,)),
    "bad result": lambda pool: re.sub(
        "0x[0-9a-f]+", "0x", str(outcome(pool.apply, targets.return_lambda))
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_both_say_the_same(both, name):
    """Type, message and errno, in whatever Python."""
    found = []
    for ctx in both:
        with ctx.Pool(1) as pool:
            found.append(outcome(BAD_INPUT[name], pool))
    assert found[1] == found[0]


# ---- use at the wrong time -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_use_after_the_end(make, end):
    pool = make(1)
    try:
        getattr(pool, end)()
        for joined in (False, True):
            for name, call in CALLS.items():
                found = outcome(call, pool)
                assert found[:2] == ("ValueError", "Pool not running"), (name, joined)
            pool.join()
    finally:
        pool.terminate()


def test_join_before_close(make):
    with make(1) as pool:
        with pytest.raises(ValueError, match=r"^Pool is still running$"):
            pool.join()
        assert pool.map(abs, [-1]) == [1]
        pool._state = "nonsense"
        with pytest.raises(ValueError, match=r"^In unknown state$"):
            pool.join()
        with pytest.raises(ValueError, match=r"^Pool not running$"):
            pool.map(abs, [-1])
        pool._state = "RUN"
        assert pool.map(abs, [-1]) == [1]


def test_ends_in_any_order(make):
    pool = make(1)
    for name, state in (
        ("close", "CLOSE"),
        ("close", "CLOSE"),
        ("join", "CLOSE"),
        ("join", "CLOSE"),
        ("terminate", "TERMINATE"),
        ("terminate", "TERMINATE"),
        ("close", "TERMINATE"),
        ("join", "TERMINATE"),
    ):
        assert getattr(pool, name)() is None
        assert pool._state == state


# ---- pickling ------------------------------------------------------------------------------------

# Newer Pythons have notes after it, of where in the task it was found.
NOT_PICKLED = r"^pool objects cannot be passed between processes or pickled(\n|$)"


def test_a_pool_is_not_pickled(make):
    with make(1) as pool:
        for call in (pickle.dumps, copy.copy, copy.deepcopy, lambda thing: thing.__reduce__()):
            with pytest.raises(NotImplementedError, match=NOT_PICKLED):
                call(pool)
        assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("name", PACKAGES)
@pytest.mark.parametrize("method", METHODS)
def test_a_pool_is_no_argument(name, method):
    ctx = importlib.import_module(name).get_context(method)
    with ctx.Pool(1) as pool:
        for call in (
            lambda: pool.apply(targets.identity, (pool,)),
            lambda: pool.map(targets.identity, [pool]),
            lambda: pool.apply(pool.map, (abs, [1])),
        ):
            with pytest.raises(NotImplementedError, match=NOT_PICKLED):
                call()
        if method != "fork":
            child = ctx.Process(target=targets.identity, args=(pool,))
            with pytest.raises(NotImplementedError, match=NOT_PICKLED):
                child.start()
        assert pool.map(abs, [-1]) == [1]


def test_results_are_not_pickled(make):
    """They hold locks, and are of use in this process alone."""
    with make(1) as pool:
        for result in (pool.apply_async(abs, (1,)), pool.imap(abs, [1])):
            with pytest.raises((TypeError, NotImplementedError)):
                pickle.dumps(result)


# ---- memory --------------------------------------------------------------------------------------

# The standard library's pools stop doing anything then.
NO_ADDRESS_SPACE = """
import contextlib
import os
import resource
import mproc_ext
from mproc_ext.futures import BrokenProcessPool, ProcessPoolExecutor

HARD = resource.getrlimit(resource.RLIMIT_AS)[1]

def limit(room):
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (size + room, HARD))

def unlimit():
    resource.setrlimit(resource.RLIMIT_AS, (HARD, HARD))

@contextlib.contextmanager
def limited():
    limit(2 << 20)
    try:
        yield
    finally:
        unlimit()

def big(size):
    return b"x" * size

def fails(call, *args):
    try:
        call(*args)
    except MemoryError:
        return
    raise AssertionError("there was memory for it")

def works(pool):
    assert pool.apply(len, (bytes(1 << 20),)) == len(pool.apply(big, (1 << 20,))) == 1 << 20

ctx = mproc_ext.get_context("fork")
"""


@pytest.mark.parametrize(
    "code",
    [
        # The worker has made the memory larger: in this process it is to be mapped.
        """
with ctx.Pool(2) as pool:
    pool.map(abs, range(10))
    with limited():
        fails(pool.map, big, [1 << 20] * 3)
        assert pool.apply(abs, (-1,)) == 1
    works(pool)
""",
        # The same for what this process sends then.
        """
long = bytes(200 << 20)
with ctx.Pool(2) as pool:
    pool.map(abs, range(10))
    with limited():
        fails(pool.map, big, [1 << 20] * 3)
        fails(pool.apply, len, (long,))
        assert pool.apply(abs, (-1,)) == 1
    assert pool.apply(len, (long,)) == len(long)
    works(pool)
""",
        # A worker cannot map what it is sent.
        """
long = bytes(200 << 20)
with ctx.Pool(1) as pool:
    pool.apply(limit, (1 << 20,))
    fails(pool.apply, len, (long,))
    assert pool.apply(abs, (-1,)) == 1
    pool.apply(unlimit)
    assert pool.apply(len, (long,)) == len(long)
    works(pool)
""",
        """
with ProcessPoolExecutor(2, ctx) as executor:
    executor.submit(abs, -1).result()
    with limited():
        error = executor.submit(big, 40 << 20).exception()
        assert executor.submit(abs, -1).result() == 1
    assert type(error) is BrokenProcessPool and type(error.__cause__) is MemoryError, error
    assert str(error) == "the result of big cannot be unpickled: MemoryError"
    assert len(executor.submit(big, 40 << 20).result()) == 40 << 20
""",
    ],
    ids=["result", "argument", "worker", "executor"],
)
def test_no_address_space(code):
    """MemoryError, and the pool goes on."""
    assert run_program("-c", f"{NO_ADDRESS_SPACE}{code}print('done')") == "done\n"
