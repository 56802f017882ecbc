"""Handlers of signals that come in the middle of what a pool or executor does, in both packages.

They wait for the pool, or raise; and what they raise comes out of the call that the main thread is
in, whatever task's code they have interrupted.
"""

import concurrent.futures
import contextlib
import importlib
import signal
import threading

import pool_targets as targets
import pytest
from pool_helpers import LIMIT
from sync_helpers import Task


class Alarm(Exception):
    pass


def raise_alarm(*_):
    raise Alarm


@contextlib.contextmanager
def alarm(handler, seconds=0.3):
    """The handler is called once, after that time."""
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(params=["raise_alarm", "method", "control_c"])
def raising(request):
    """A handler, and what it raises."""
    handlers = {
        "raise_alarm": (raise_alarm, Alarm),
        "method": (Raiser().handle, Alarm),
        "control_c": (signal.default_int_handler, KeyboardInterrupt),
    }
    return handlers[request.param]


class Raiser:
    def handle(self, *_):
        self.fail()

    def fail(self):
        raise Alarm


@pytest.fixture
def two(pools, mp):
    with pools.Pool(2, context=mp) as pool:
        yield pool


@pytest.fixture
def executor(package, mp):
    module = concurrent.futures
    if package.__name__ == "mproc_ext":
        module = importlib.import_module("mproc_ext.futures")
    executor = module.ProcessPoolExecutor(2, mp_context=mp)
    yield executor
    executor.shutdown()


# ---- Handlers that wait -------------------------------------------------------------------------


@pytest.mark.parametrize("ends", ["close", "terminate"])
def test_the_pool_is_ended_in_a_handler(two, ends):
    ended = []

    def end(*_):
        if ends == "close":
            two.close()
            two.join()
        else:
            two.terminate()
        ended.append(True)
        raise Alarm

    with alarm(end), pytest.raises(Alarm):
        two.map(targets.sleep_a_moment, range(100), 1)
    assert ended


@pytest.mark.parametrize("cancels", [False, True])
@pytest.mark.parametrize("call", ["map", "result"])
def test_the_executor_is_shut_down_in_a_handler(executor, call, cancels):
    ended = []

    def end(*_):
        executor.shutdown(cancel_futures=cancels)
        ended.append(True)
        raise Alarm

    def run():
        if call == "map":
            return list(executor.map(targets.sleep_a_moment, range(100)))
        futures = [executor.submit(targets.sleep_a_moment, number) for number in range(100)]
        return [future.result(LIMIT) for future in futures]

    with alarm(end), pytest.raises(Alarm):
        run()
    assert ended


def test_a_handler_waits_for_a_thread_that_uses_the_pool(two):
    found = []

    def wait(*_):
        found.append(Task(two.map, targets.square, [1, 2, 3]).get())

    with alarm(wait):
        assert two.map(targets.sleep_a_moment, range(50), 1) == list(range(50))
    assert found == [[1, 4, 9]]


# ---- Handlers that raise ------------------------------------------------------------------------


def test_while_the_result_of_another_task_is_read(two, raising, tmp_path):
    handler, kind = raising
    results = [two.apply_async(targets.SlowToRead, (number,)) for number in range(4)]
    last = two.apply_async(targets.wait_for_file, (str(tmp_path / "go"), 5))
    with alarm(handler), pytest.raises(kind):
        last.get(LIMIT)
    (tmp_path / "go").touch()
    assert last.get(LIMIT) == 5
    assert [result.get(LIMIT).number for result in results] == [0, 1, 2, 3]


def test_while_the_arguments_of_another_task_are_pickled(two, raising, tmp_path):
    handler, kind = raising
    last = two.apply_async(targets.wait_for_file, (str(tmp_path / "go"), 5))
    items = [targets.SlowToPickle(number) for number in range(4)]
    results = []

    def run():  # the call may have begun the map already
        results.append(two.map_async(targets.number_of, items, 1))
        last.get(LIMIT)

    with alarm(handler), pytest.raises(kind):
        run()
    (tmp_path / "go").touch()
    assert last.get(LIMIT) == 5
    assert [result.get(LIMIT) for result in results] == [[0, 1, 2, 3]] * len(results)
    assert two.map(targets.number_of, items, 1) == [0, 1, 2, 3]


def test_while_an_executor_reads_a_result(executor, raising, tmp_path):
    handler, kind = raising
    futures = [executor.submit(targets.SlowToRead, number) for number in range(4)]
    last = executor.submit(targets.wait_for_file, str(tmp_path / "go"), 5)
    with alarm(handler), pytest.raises(kind):
        last.result(LIMIT)
    (tmp_path / "go").touch()
    assert last.result(LIMIT) == 5
    assert [future.result(LIMIT).number for future in futures] == [0, 1, 2, 3]


def test_while_an_executor_pickles(executor, raising):
    handler, kind = raising
    futures = []

    def run():
        for number in range(4):
            futures.append(executor.submit(targets.number_of, targets.SlowToPickle(number)))
        threading.Event().wait(LIMIT)

    with alarm(handler), pytest.raises(kind):
        run()
    assert [future.result(LIMIT) for future in futures] == list(range(len(futures)))
