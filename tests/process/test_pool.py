"""Pools: terminate and join with tasks that do not end, and with workers that put a result."""

import importlib
import threading

import pytest

import mproc_ext.pool


@pytest.mark.parametrize("busy", [0, 1, 3])
def test_join_after_terminate_does_not_wait_for_a_task(busy, monkeypatch):
    release = threading.Event()
    started = threading.Semaphore(0)

    def task(_):
        started.release()
        release.wait()

    pool = mproc_ext.pool.ThreadPool(3)
    monkeypatch.setattr(mproc_ext.pool, "_TERMINATE_GRACE", 0.05)
    threads = list(pool._pool)
    result = pool.map_async(task, range(busy), chunksize=1)
    for _ in range(busy):
        started.acquire()
    pool.terminate()
    pool.join()
    assert sum(thread.is_alive() for thread in threads) == busy
    release.set()
    for thread in threads:
        thread.join()
    assert result.ready() == (busy == 0)


@pytest.mark.parametrize("package", ["multiprocessing", "mproc_ext"])
def test_terminate_at_once(package):
    """Its workers take the tasks, or their end, while terminate drains the queue of them."""
    cls = importlib.import_module(f"{package}.pool").Pool
    for _ in range(25):
        pool = cls(2, context=mproc_ext.get_context("fork"))
        pool.terminate()
        pool.join()


def test_join_after_terminate_waits_for_a_short_task(monkeypatch):
    started, release = threading.Semaphore(0), threading.Event()

    def task(_):
        started.release()
        release.wait()

    pool = mproc_ext.pool.ThreadPool(1)
    monkeypatch.setattr(mproc_ext.pool, "_TERMINATE_GRACE", 60)
    (thread,) = pool._pool
    pool.map_async(task, range(1))
    started.acquire()
    pool.terminate()
    threading.Timer(0.1, release.set).start()
    pool.join()
    assert not thread.is_alive()


def test_terminate_at_any_moment(monkeypatch):
    """Queued tasks are dropped; none is started after terminate has returned."""
    for _ in range(200):
        begun = []
        release = threading.Event()

        def task(number, begun=begun, release=release):
            begun.append(number)
            release.wait()

        pool = mproc_ext.pool.ThreadPool(3)
        monkeypatch.setattr(mproc_ext.pool, "_TERMINATE_GRACE", 0)
        threads = list(pool._pool)
        pool.map_async(task, range(1000), chunksize=1)
        pool.terminate()
        pool.join()
        taken = len(pool._inqueue.running_at_end)  # and begun, sooner or later
        release.set()
        for thread in threads:
            thread.join()
        assert len(begun) == taken <= 3


def test_close_and_join_wait_for_the_tasks():
    with mproc_ext.pool.ThreadPool(2) as pool:
        result = pool.map_async(str, range(100), chunksize=1)
        pool.close()
        pool.join()
        assert result.get() == [str(number) for number in range(100)]


# The moment at which a worker must not be killed: the pool has told its threads to end, and the
# thread that hands out the tasks has its last word, through the queue of the results, still to say.
SLOW_RESULTS = """
import multiprocessing.pool, os, time
import mproc_ext.pool

ready, begin, inside = os.pipe(), os.pipe(), os.pipe()

class Pool(mproc_ext.pool.Pool):
    def _setup_queues(self):
        super()._setup_queues()
        queue = self._outqueue

        def put_in_worker(result):
            os.write(ready[1], b"x")
            os.read(begin[0], 1)
            with queue._wlock:
                os.write(inside[1], b"x")
                time.sleep(0.3)
                queue._writer.send(result)

        queue.put = put_in_worker

handle_tasks = multiprocessing.pool.Pool._handle_tasks

def handle_tasks_late(taskqueue, put, outqueue, pool, cache):
    class Late:
        def put(self, result):
            for worker in pool:
                os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
            type(outqueue).put(outqueue, result)

    handle_tasks(taskqueue, put, Late(), pool, cache)

multiprocessing.pool.Pool._handle_tasks = handle_tasks_late

def put_in_parent(result):
    type(pool._outqueue).put(pool._outqueue, result)
    os.write(begin[1], b"x")
    os.read(inside[0], 1)

if __name__ == "__main__":
    pool = Pool(2, context=mproc_ext.get_context("fork"))
    pool._outqueue.put = put_in_parent
    pool.map_async(int, range(2), chunksize=1)
    for _ in range(2):
        os.read(ready[0], 1)
    pool.terminate()
    pool.join()
    print([worker.exitcode for worker in pool._pool])
"""


def test_terminate_while_a_worker_puts_a_result(programs):
    """A worker that was killed there would keep the lock for good."""
    result = programs.run_python("-c", SLOW_RESULTS)
    assert (result.stdout, result.stderr) == ("[-15, -15]\n", "")


REPLACED_WORKERS = """
import mproc_ext as mp

if __name__ == "__main__":
    for round in range(60):
        pool = mp.Pool(2, maxtasksperchild=1)
        results = pool.imap_unordered(abs, range(200))
        for _ in range(round % 20):
            next(results)
        pool.terminate()
        pool.join()
        assert not mp.active_children()
    print("done")
"""


def test_terminate_while_workers_are_replaced(programs):
    """Those that the pool starts until it has ended the thread that does so are ended too."""
    result = programs.run_python("-c", REPLACED_WORKERS)
    assert (result.stdout, result.stderr) == ("done\n", "")


def test_the_death_of_an_idle_worker_is_no_matter(method, recwarn):
    """It waited for a task with a lock held, which another one takes over without a word."""
    with mproc_ext.get_context(method).Pool(2) as pool:
        assert pool.map(abs, range(10)) == list(range(10))
        for _ in range(5):
            worker = pool._pool[0]
            worker.kill()
            worker.join()
            assert pool.map(abs, range(10)) == list(range(10))
    assert not [found for found in recwarn.list if found.category is RuntimeWarning]
