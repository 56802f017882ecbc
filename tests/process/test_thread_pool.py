"""ThreadPool: terminate and join with tasks that do not end."""

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
        count = len(begun)
        release.set()
        for thread in threads:
            thread.join()
        assert len(begun) == count <= 3


def test_close_and_join_wait_for_the_tasks():
    with mproc_ext.pool.ThreadPool(2) as pool:
        result = pool.map_async(str, range(100), chunksize=1)
        pool.close()
        pool.join()
        assert result.get() == [str(number) for number in range(100)]
