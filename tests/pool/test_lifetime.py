"""From the start of a pool's workers to their end, in both packages; and subclasses of pools."""

import gc
import importlib
import os
import re
import threading
import types
import unittest.mock
import warnings
import weakref

import pool_targets as targets
import pytest
from both_packages import PACKAGES
from pool_helpers import LIMIT, is_gone, lines, wait_for_lines, wait_until_gone
from sync_helpers import Task, run_program, wait_until, wait_until_asleep

NAMES = {"fork": "ForkPoolWorker", "spawn": "SpawnPoolWorker", "forkserver": "ForkServerPoolWorker"}


def pids(pool):
    return [worker.pid for worker in pool._pool]


# ---- workers -------------------------------------------------------------------------------------


def test_workers(ctx, method):
    with ctx.Pool(2) as pool:
        seen = set(pool.map(targets.describe, range(50), 1))
        for pid, name, daemon, has_parent in seen:
            assert pid in pids(pool)
            assert pid != os.getpid()
            assert re.fullmatch(rf"{NAMES[method]}-[\d:]+", name)
            assert daemon
            assert has_parent
        for worker in pool._pool:
            assert isinstance(worker, ctx.Process)
            assert re.fullmatch(rf"{NAMES[method]}-[\d:]+", worker.name)
            assert worker.daemon
            assert worker.is_alive()
            assert worker.exitcode is None
        assert len({worker.name for worker in pool._pool}) == 2


def test_workers_of_a_thread_pool(pools):
    with pools.ThreadPool(2) as pool:
        (pid,) = set(pool.map(targets.worker_pid, range(10), 1))
        assert pid == os.getpid()
        assert all(isinstance(worker, threading.Thread) for worker in pool._pool)
        assert all(worker.daemon for worker in pool._pool)
        assert len(pool._pool) == 2


def test_a_worker_has_no_children(mp):
    with mp.Pool(1) as pool:
        assert (
            pool.apply(targets.have_a_child)
            == "daemonic processes are not allowed to have children"
        )


def test_attributes(package, pools, ctx):
    pool = pools.Pool(3, None, (), 7, ctx)
    try:
        assert pool._processes == 3
        assert pool._ctx is ctx
        assert pool._state == pools.RUN == "RUN"
        assert type(pool._pool) is list
        assert len(pool._pool) == 3
        assert len(set(pids(pool))) == 3
        assert pool._maxtasksperchild == 7
        assert pool._initializer is None
        assert pool._initargs == ()
        assert pool._cache == {}
        assert repr(pool) == f"<{package.__name__}.pool.Pool state=RUN pool_size=3>"
        pool.close()
        assert pool._state == pools.CLOSE == "CLOSE"
        assert "state=CLOSE" in repr(pool)
        pool.join()
    finally:
        pool.terminate()
    assert pool._state == pools.TERMINATE == "TERMINATE"
    assert repr(pool).startswith(f"<{package.__name__}.pool.Pool state=TERMINATE pool_size=")
    assert pools.INIT == "INIT"


def test_repr_of_a_thread_pool(package, pools):
    with pools.ThreadPool(2) as pool:
        assert repr(pool) == f"<{package.__name__}.pool.ThreadPool state=RUN pool_size=2>"


def test_the_context_that_is_the_default(package, pools):
    with package.Pool(1) as pool, pools.Pool(1) as other:
        for each in (pool, other):
            assert type(each) is pools.Pool
            assert each._ctx.get_start_method() == package.get_start_method()
    with package.get_context("spawn").Pool(1) as pool:
        assert pool._ctx is package.get_context("spawn")


def test_a_pool_in_a_process(mp):
    """Which is no daemon: it may have children."""
    parent, child = mp.Pipe()

    def work():
        with mp.Pool(2) as pool:
            child.send(pool.map(targets.square, range(10)))

    process = mp.Process(target=work)
    process.start()
    assert parent.poll(LIMIT)
    assert parent.recv() == [n * n for n in range(10)]
    process.join(LIMIT)
    assert process.exitcode == 0


# ---- initializers --------------------------------------------------------------------------------


def test_initializer(ctx, tmp_path):
    path = tmp_path / "notes"
    with ctx.Pool(2, targets.note_initialized, (str(path), 1, "two")) as pool:
        found = pool.map(targets.what_was_initialized, range(20), 1)
        assert found == [(1, "two")] * 20
        assert set(wait_for_lines(path, 2)) == {str(pid) for pid in pids(pool)}
    assert len(lines(path)) == 2


def test_every_new_worker_is_initialized(ctx, tmp_path):
    path = tmp_path / "notes"
    with ctx.Pool(1, targets.note_initialized, (str(path),), maxtasksperchild=2) as pool:
        assert pool.map(targets.what_was_initialized, range(6), 1) == [()] * 6
        pool.close()
        pool.join()
    assert len(set(lines(path))) == len(lines(path)) >= 3


def test_initargs_of_any_iterable(mp):
    for arguments in ([1, 2], "ab", range(2), iter([1, 2])):
        with mp.Pool(1, targets.initialize, arguments) as pool:
            assert len(pool.apply(targets.what_was_initialized)) == 2


def test_initializer_of_a_thread_pool(pools):
    called = []
    with pools.ThreadPool(3, called.append, (1,)) as pool:
        assert pool.map(abs, [-1]) == [1]
        wait_until(lambda: called == [1, 1, 1], "the initializers")


# ---- maxtasksperchild ----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, True])
def test_maxtasksperchild(ctx, count):
    with ctx.Pool(2, maxtasksperchild=count) as pool:
        found = pool.map(targets.worker_pid, range(12), 1)
        pool.close()
        pool.join()
    assert max(map(found.count, found)) <= count
    assert len(set(found)) >= 12 / count


def test_a_chunk_is_one_task(mp):
    with mp.Pool(1, maxtasksperchild=1) as pool:
        first, second = (pool.map(targets.worker_pid, range(10), 10) for _ in range(2))
        assert len(set(first)) == len(set(second)) == 1
        assert first != second


def test_a_worker_that_has_done_its_tasks_ends(mp):
    with mp.Pool(1, maxtasksperchild=2) as pool:
        (worker,) = pool._pool
        assert pool.map(targets.worker_pid, range(2), 1) == [worker.pid] * 2
        wait_until(lambda: is_gone(worker.pid), "the end of the worker")
        wait_until(lambda: pool._pool and pool._pool[0] is not worker, "the next worker")
        assert worker.exitcode == 0
        assert pool.apply(targets.worker_pid) == pool._pool[0].pid


def test_refill_as_cpythons_tests_do(mp):
    pool = mp.Pool(3, maxtasksperchild=10)
    before = pids(pool)
    results = [pool.apply_async(targets.square, (n,)) for n in range(100)]
    assert [result.get(LIMIT) for result in results] == [n * n for n in range(100)]
    pool._repopulate_pool()
    wait_until(lambda: all(worker.is_alive() for worker in pool._pool), "that all live")
    after = pids(pool)
    assert None not in before + after
    assert sorted(before) != sorted(after)
    pool.close()
    pool.join()


def test_closed_while_workers_are_replaced(ctx):
    pool = ctx.Pool(3, maxtasksperchild=1)
    results = [pool.apply_async(targets.square, (n,)) for n in range(12)]
    pool.close()
    pool.join()
    assert [result.get(0) for result in results] == [n * n for n in range(12)]
    assert all(map(is_gone, pids(pool)))


# ---- close, terminate, with ----------------------------------------------------------------------


def test_close_and_join(ctx, tmp_path):
    """All that was begun is done first."""
    pool = ctx.Pool(2)
    everybody = pids(pool)
    go = str(tmp_path / "go")
    results = [pool.apply_async(targets.wait_for_file, (go, n)) for n in range(10)]
    mapped, lazy = pool.map_async(abs, range(100), 1), pool.imap(abs, range(100))
    pool.close()
    task = Task(pool.join)
    assert not results[0].ready()
    assert not any(map(is_gone, everybody))
    (tmp_path / "go").touch()
    task.get()
    assert all(map(is_gone, everybody))
    assert [result.get(0) for result in results] == list(range(10))
    assert mapped.get(0) == list(range(100))
    assert list(lazy) == list(range(100))
    assert all(worker.exitcode == 0 for worker in pool._pool)


def test_close_ends_workers_without_a_join(mp):
    pool = mp.Pool(2)
    everybody = pids(pool)
    assert pool.map(abs, [-1]) == [1]
    pool.close()
    wait_until_gone(*everybody)
    pool.join()


def test_with(ctx):
    with ctx.Pool(2) as pool:
        everybody = pids(pool)
        assert pool.map(abs, [-1]) == [1]
        assert pool._state == "RUN"
    assert pool._state == "TERMINATE"
    pool.join()
    assert all(map(is_gone, everybody))


def test_with_passes_errors_on(mp):
    pool = mp.Pool(1)
    everybody = pids(pool)
    with pytest.raises(ZeroDivisionError), pool:
        1 // 0  # noqa: B018
    pool.join()
    assert all(map(is_gone, everybody))


def test_with_gives_the_pool(mp):
    pool = mp.Pool(1)
    with pool as given:
        assert given is pool
    pool.join()


def test_terminate_drops_tasks(ctx, tmp_path):
    path = tmp_path / "notes"
    pool = ctx.Pool(2)
    everybody = pids(pool)
    pool.map_async(targets.note_and_sleep_for_ever, [str(path)] * 1000, 1)
    wait_for_lines(path, 2)
    pool.terminate()
    pool.join()
    assert all(map(is_gone, everybody))
    assert len(lines(path)) == 2


def test_terminate_keeps_what_is_done(mp, tmp_path):
    pool = mp.Pool(1)
    done = pool.apply_async(abs, (-1,))
    assert done.get(LIMIT) == 1
    pool.apply_async(targets.note_and_sleep_for_ever, (str(tmp_path / "notes"),))
    wait_for_lines(tmp_path / "notes", 1)
    pool.terminate()
    pool.join()
    assert done.get(0) == 1


def test_terminate_of_a_thread_pool(pools):
    pool = pools.ThreadPool(2)
    assert pool.map(abs, [-1]) == [1]
    workers = list(pool._pool)
    pool.terminate()
    pool.join()
    assert not any(worker.is_alive() for worker in workers)


def test_many_pools(mp):
    """Neither descriptors nor threads are left of them."""
    counts = []
    for _ in range(3):
        for _ in range(5):
            with mp.Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
            pool.join()
            del pool
        gc.collect()
        counts.append((len(os.listdir("/proc/self/fd")), threading.active_count()))
    assert counts[2] == counts[1]


# ---- pools that nobody closes --------------------------------------------------------------------


def test_an_unclosed_pool(ctx):
    pool = ctx.Pool(2)
    everybody, dead = pids(pool), weakref.ref(pool)
    text = repr(pool)
    assert pool.map(abs, [-1, -2]) == [1, 2]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del pool
        gc.collect()
    found = [str(each.message) for each in caught if each.category is ResourceWarning]
    caught.clear()  # a warning has the pool for its source
    gc.collect()
    assert found == [f"unclosed running multiprocessing pool {text}"]
    assert dead() is None
    wait_until_gone(*everybody)


@pytest.mark.parametrize("end", ["close", "terminate"])
def test_no_warning_of_an_ended_pool(mp, recwarn, end):
    warnings.simplefilter("always")
    pool = mp.Pool(1)
    getattr(pool, end)()
    pool.join()
    dead = weakref.ref(pool)
    del pool
    gc.collect()
    assert dead() is None
    assert not [each for each in recwarn.list if each.category is ResourceWarning]


def test_warning_as_cpythons_tests_have_it(mp, pools):
    """Of a pool whose state is set by hand."""
    pool = mp.Pool(1)
    pool.terminate()
    pool.join()
    pool._state = pools.RUN
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):  # noqa: PT031
        del pool
        gc.collect()


def test_an_unclosed_thread_pool(pools):
    pool = pools.ThreadPool(2)
    workers = list(pool._pool)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):  # noqa: PT031
        del pool
        gc.collect()
    wait_until(lambda: not any(worker.is_alive() for worker in workers), "the end of the threads")


AT_EXIT = """
import sys
from {package} import get_context
class Holder:
    pass
def test():
    global holder
    holder = Holder()
    holder.pool = get_context(sys.argv[1]).Pool(2)
    holder.pool.map(float, tuple(range(10)))
    holder.itself = holder
if __name__ == "__main__":
    test()
    print("end")
"""


def test_an_unclosed_pool_at_exit(package, method):
    code = AT_EXIT.format(package=package.__name__)
    assert run_program("-c", code, method) == "end\n"


# ---- callbacks at the end ------------------------------------------------------------------------


class Callback:
    """It has begun, and goes on when it is told to."""

    def __init__(self, then=lambda: None):
        self.begun, self.go, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._then = then

    def __call__(self, value):
        self.begun.set()
        assert self.go.wait(LIMIT)
        self._then()
        self.ended.set()

    def begin(self, pool, call):
        getattr(pool, call)(targets.identity, [1], callback=self)
        assert self.begun.wait(LIMIT)


def leave_with(pool):
    with pool:
        pass


@pytest.mark.parametrize("end", [lambda pool: pool.terminate(), leave_with])
@pytest.mark.parametrize("call", ["apply_async", "map_async"])
def test_the_end_waits_for_a_callback(ctx, call, end):
    pool, callback = ctx.Pool(2), Callback()
    callback.begin(pool, call)
    task = Task(end, pool)
    wait_until_asleep(task)
    assert not callback.ended.is_set()
    callback.go.set()
    task.get()
    assert callback.ended.is_set()
    pool.join()


@pytest.mark.parametrize("end", [lambda pool: pool.terminate(), leave_with])
def test_a_callback_may_end_the_pool(ctx, end):
    pool = ctx.Pool(2)
    everybody = pids(pool)
    callback = Callback(lambda: end(pool))
    callback.begin(pool, "apply_async")
    callback.go.set()
    assert callback.ended.wait(LIMIT)
    wait_until_gone(*everybody)
    pool.terminate()
    pool.join()


def test_a_callback_ends_a_pool_that_is_being_ended(ctx):
    pool = ctx.Pool(2)
    callback = Callback(pool.terminate)
    callback.begin(pool, "apply_async")
    task = Task(pool.terminate)
    wait_until_asleep(task)
    callback.go.set()
    task.get()
    assert callback.ended.is_set()
    pool.join()


# The callback is in the middle when the program ends, and long after: what cuts it off does so.
CALLBACK_AT_EXIT = """
import sys
import threading
import time
from {package} import get_context

begun, go = threading.Event(), threading.Event()

def callback(value):
    begun.set()
    go.wait()
    time.sleep(0.5)
    {then}
    print("ended", flush=True)

if __name__ == "__main__":
    import atexit
    pool = get_context(sys.argv[1]).Pool(2)
    getattr(pool, sys.argv[2])(abs, [-1], callback=callback)
    begun.wait()
    atexit.register(go.set)
"""


@pytest.mark.parametrize("call", ["apply_async", "map_async"])
def test_a_callback_at_exit(package, method, call):
    code = CALLBACK_AT_EXIT.format(package=package.__name__, then="pass")
    assert run_program("-c", code, method, call) == "ended\n"


@pytest.mark.parametrize(
    "then", ["pool.terminate()", "pool.close()", "pool.apply_async(abs, (-1,))"]
)
def test_what_a_callback_does_at_exit(package, then):
    code = CALLBACK_AT_EXIT.format(package=package.__name__, then=then)
    assert run_program("-c", code, "fork", "apply_async") == "ended\n"


# ---- forked copies -------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["nothing", "drop", "terminate", "close", "repr"])
def test_a_forked_copy(mp, what):
    """It can go, and end what it has: that is the parent's."""
    pool = mp.Pool(2)
    assert pool.map(abs, [-1]) == [1]
    everybody = pids(pool)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            warnings.simplefilter("ignore")
            if what == "drop":
                del pool
                gc.collect()
                status = 0
            elif what == "repr":
                status = 0 if "state=RUN pool_size=2" in repr(pool) else 2
            elif what == "nothing":
                status = 0
            else:
                getattr(pool, what)()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]
    assert pids(pool) == everybody
    pool.close()
    pool.join()


def test_a_copy_in_a_child_that_ends_in_order(mp):
    """The end of the child runs what is to be run at an end."""
    with mp.Pool(2) as pool:
        child = mp.Process(target=targets.nothing)
        child.start()
        child.join(LIMIT)
        assert child.exitcode == 0
        assert pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]


def test_a_pool_of_its_own_in_a_fork(mp):
    """Made in a child that has a copy of another pool."""
    with mp.Pool(2) as pool:
        assert pool.map(abs, [-1]) == [1]
        parent, child = mp.Pipe()

        def work():
            with mp.Pool(2) as other:
                child.send(other.map(targets.square, range(10), 1))

        process = mp.Process(target=work)
        process.start()
        assert parent.poll(LIMIT)
        assert parent.recv() == [n * n for n in range(10)]
        process.join(LIMIT)
        assert process.exitcode == 0
        assert pool.map(abs, [-1, -2, -3], 1) == [1, 2, 3]


# ---- subclasses ----------------------------------------------------------------------------------


def test_a_subclass_that_overrides_process(pools, ctx):
    made = []

    class Pool(pools.Pool):
        @staticmethod
        def Process(ctx, *args, **kwds):
            process = ctx.Process(*args, **kwds)
            made.append(process)
            return process

    with Pool(2, context=ctx, maxtasksperchild=1) as pool:
        assert pool.map(targets.square, range(6), 1) == [n * n for n in range(6)]
        assert set(pool._pool) <= set(made)
        assert len(made) >= 6


def test_workers_that_may_have_children(pools, mp):
    """The usual recipe, by a context whose processes are never daemons."""
    ctx = targets.nondaemonic_context(mp)
    with pools.Pool(2, context=ctx) as pool:
        assert pool._ctx is ctx
        assert not any(worker.daemon for worker in pool._pool)
        assert pool.map(targets.nothing_of, range(4), 1) == [None] * 4
        assert pool.apply(targets.have_a_child) == 0
        pool.close()
        pool.join()


def test_the_same_by_overriding_process(pools, mp):
    class Pool(pools.Pool):
        @staticmethod
        def Process(ctx, *args, **kwds):
            process = ctx.Process(*args, **kwds)
            process.__class__ = type("NondaemonicProcess", (targets.Nondaemonic, type(process)), {})
            return process

    with Pool(1, context=mp) as pool:
        assert pool.apply(targets.have_a_child) == 0
        pool.close()
        pool.join()


class CountingQueue:
    """What joblib puts in the place of a pool's queues: pipes, and a pickler of its own."""

    def __init__(self, ctx, counts):
        self._reader, self._writer = ctx.Pipe(duplex=False)
        self._rlock = ctx.Lock()
        self._wlock = ctx.Lock()
        self._counts = counts

    def __getstate__(self):
        return self._reader, self._writer, self._rlock, self._wlock

    def __setstate__(self, state):
        self._reader, self._writer, self._rlock, self._wlock = state
        self._counts = []

    def empty(self):
        return not self._reader.poll()

    def get(self):
        with self._rlock:
            return self._reader.recv()

    def put(self, thing):
        with self._wlock:
            self._send(thing)

    def _send(self, thing):
        self._counts.append(thing)
        self._writer.send(thing)

    def _recv(self):
        thing = self._reader.recv()
        self._counts.append(thing)
        return thing


def counting_pool(pools):
    class Pool(pools.Pool):
        def _setup_queues(self):
            self.sent, self.received = [], []
            self._inqueue = CountingQueue(self._ctx, self.sent)
            self._outqueue = CountingQueue(self._ctx, self.received)
            self._quick_put = self._inqueue._send
            self._quick_get = self._outqueue._recv

    return Pool


def test_a_subclass_with_queues_of_its_own(pools, mp):
    """It is the stdlib's way then: (job, index, function, args, kwds), and (job, index, result)."""
    with counting_pool(pools)(2, context=mp) as pool:
        assert pool.map(targets.square, range(20), 1) == [n * n for n in range(20)]
        assert list(pool.imap(targets.square, range(5))) == [0, 1, 4, 9, 16]
        assert pool.apply(targets.add, (1,), {"y": 2}) == 3
        with pytest.raises(ValueError, match="why"):
            pool.apply(targets.fail, (ValueError, "why"))
        assert len(pool.sent) == len(pool.received) == 27
        assert all(len(task) == 5 for task in pool.sent)
        assert pool.sent[25][2:] == (targets.add, (1,), {"y": 2})
        assert pool.received[25][1:] == (0, (True, 3))
        pool.close()
        pool.join()


def test_its_workers_are_replaced(pools, mp):
    with counting_pool(pools)(2, context=mp, maxtasksperchild=2) as pool:
        found = pool.map(targets.worker_pid, range(12), 1)
        assert max(map(found.count, found)) <= 2
        pool.close()
        pool.join()


def test_it_terminates_and_is_dropped(pools, mp):
    pool = counting_pool(pools)(2, context=mp)
    assert pool.map(abs, [-1]) == [1]
    pool.terminate()
    pool.join()
    assert all(map(is_gone, pids(pool)))


def test_a_subclass_that_wraps_the_stdlibs_queues(pools, ctx):
    """As torch does: other queues, and workers started by hand."""
    started = []

    class Pool(pools.Pool):
        def _setup_queues(self):
            self._inqueue = self._ctx.SimpleQueue()
            self._outqueue = self._ctx.SimpleQueue()
            self._quick_put = self._inqueue._writer.send
            self._quick_get = self._outqueue._reader.recv

        def _repopulate_pool(self):
            for _ in range(self._processes - len(self._pool)):
                worker = self.Process(
                    self._ctx,
                    target=pools.worker,
                    args=(
                        self._inqueue,
                        self._outqueue,
                        self._initializer,
                        self._initargs,
                        self._maxtasksperchild,
                        self._wrap_exception,
                    ),
                )
                self._pool.append(worker)
                worker.name = worker.name.replace("Process", "PoolWorker")
                worker.daemon = True
                worker.start()
                started.append(worker)

    with Pool(2, targets.initialize, (1,), context=ctx) as pool:
        assert pool._pool == started
        assert pool.map(targets.square, range(20), 1) == [n * n for n in range(20)]
        assert pool.map(targets.what_was_initialized, range(4), 1) == [(1,)] * 4
        pool.close()
        pool.join()


def test_a_subclass_that_changes_little(pools, ctx):
    """It has calls of its own, and calls those it extends."""

    class Pool(pools.Pool):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.calls = []

        def apply_async(self, *args, **kwargs):
            self.calls.append("apply_async")
            return super().apply_async(*args, **kwargs)

        def terminate(self):
            self.calls.append("terminate")
            super().terminate()

        def istarmap(self, function, items):
            return self.imap(targets.Star(function), items)

    with Pool(2, context=ctx) as pool:
        assert pool.apply(abs, (-1,)) == 1  # by apply_async
        assert list(pool.istarmap(targets.pair, [(1, 2), (3, 4)])) == [(1, 2), (3, 4)]
    assert pool.calls == ["apply_async", "terminate"]
    assert type(pool).__name__ in repr(pool)


def test_a_subclass_with_a_check_of_its_own(pools, ctx):
    class Pool(pools.Pool):
        checks = 0

        def _check_running(self):
            self.checks += 1
            super()._check_running()

    with Pool(1, context=ctx) as pool:
        for call in (
            lambda: pool.apply(abs, (-1,)),
            lambda: pool.apply_async(abs, (-1,)).get(),
            lambda: pool.apply_async(abs, (-1,), callback=id).get(),
            lambda: pool.map(abs, [-1]),
            lambda: next(pool.imap(abs, [-1])),
        ):
            before = pool.checks
            call()
            assert pool.checks == before + 1
        pool.close()
        with pytest.raises(ValueError, match=r"^Pool not running$"):
            pool.apply(abs, (-1,))


def test_methods_of_the_class_are_there(pools):
    """What subclasses and programs call or patch."""
    for name in (
        "Process _setup_queues _repopulate_pool _repopulate_pool_static _maintain_pool "
        "_join_exited_workers _get_worker_sentinels _get_sentinels _wait_for_updates _get_tasks "
        "_handle_workers _handle_tasks _handle_results _help_stuff_finish _terminate_pool "
        "_check_running _guarded_task_generation _map_async __reduce__ __del__"
    ).split():
        assert callable(getattr(pools.Pool, name)), name
    assert list(pools.Pool._get_tasks(abs, range(5), 2)) == [
        (abs, (0, 1)),
        (abs, (2, 3)),
        (abs, (4,)),
    ]
    assert pools.mapstar((abs, [-1, -2])) == [1, 2]
    assert pools.starmapstar((pow, [(2, 3)])) == [8]


# ---- a mock for a context ------------------------------------------------------------------------


@pytest.mark.parametrize("good", [0, 1, 3])
def test_a_process_that_cannot_be_started(pools, good):
    """Those that were started are ended, and the error is raised.  CPython's test has this mock."""
    made = []

    class FailingProcess:
        def __init__(self, **kwargs):
            self.name = "Fake Process"
            self.exitcode = None
            self.state = None
            made.append(self)

        def start(self):
            if len(made) > good:
                raise OSError("Manually induced OSError")
            self.state = "started"

        def terminate(self):
            self.state = "stopping"

        def join(self):
            if self.state == "stopping":
                self.state = "stopped"

        def is_alive(self):
            return self.state in ("started", "stopping")

    ctx = unittest.mock.MagicMock(Process=FailingProcess)
    with pytest.raises(OSError, match="Manually induced OSError"):
        pools.Pool(5, context=ctx)
    assert len(made) == good + 1
    assert [process.state for process in made] == ["stopped"] * good + [None]


def test_a_context_with_processes_of_its_own(pools, mp):
    """A context that is no subclass of ours, but hands on to one."""
    started = []

    class Process(mp.Process):
        def start(self):
            super().start()
            started.append(self.pid)

    wrapper = types.SimpleNamespace(
        **{name: getattr(mp, name) for name in ("SimpleQueue", "Lock", "Pipe", "Queue", "Event")},
        Process=Process,
        get_context=lambda method=None: mp,
        get_start_method=lambda allow_none=False: "fork",
    )
    with pools.Pool(2, context=wrapper) as pool:
        assert pool._ctx is wrapper
        assert pids(pool) == started
        assert pool.map(targets.square, range(5), 1) == [0, 1, 4, 9, 16]
        pool.close()
        pool.join()


@pytest.mark.parametrize("name", PACKAGES)
def test_a_managers_pool(name):
    """A pool in a manager's process: its workers are daemons, and the manager is none."""
    package = importlib.import_module(name)
    with package.get_context("fork").Manager() as manager:
        pool = manager.Pool(2)
        assert pool.map(targets.square, range(5)) == [0, 1, 4, 9, 16]
        assert pool.apply_async(targets.add, (1,), {"y": 2}).get(LIMIT) == 3
        assert sorted(pool.imap_unordered(targets.square, range(5))) == [0, 1, 4, 9, 16]
        pool.terminate()
