"""A program that uses the types; mypy reads it, nobody runs it."""

import multiprocessing
import multiprocessing.context
import multiprocessing.pool
import multiprocessing.process
from typing import Any, assert_type

import mproc_ext
import mproc_ext.connection
import mproc_ext.managers
import mproc_ext.pool
import mproc_ext.queues
import mproc_ext.shared_memory
import mproc_ext.sharedctypes
import mproc_ext.synchronize


def work(number: int) -> str:
    return str(number)


def processes() -> None:
    process = mproc_ext.Process(target=work, args=(1,), name="worker", daemon=True)
    process.start()
    process.join(timeout=1.5)
    process.interrupt()
    assert_type(process.exitcode, int | None)
    assert_type(process.sentinel, int)
    assert_type(mproc_ext.active_children(), list[multiprocessing.process.BaseProcess])
    # One world: what takes the stdlib's takes ours.
    base: multiprocessing.process.BaseProcess = process
    theirs: multiprocessing.context.Process = process
    del base, theirs


def contexts() -> None:
    spawn = mproc_ext.get_context("spawn")
    assert_type(spawn, mproc_ext.context.SpawnContext)
    assert_type(mproc_ext.get_context("fork"), mproc_ext.context.ForkContext)
    assert_type(mproc_ext.get_context("forkserver"), mproc_ext.context.ForkServerContext)
    assert_type(mproc_ext.get_context(), mproc_ext.context.DefaultContext)
    spawn.Process(target=work).interrupt()
    context: multiprocessing.context.BaseContext = spawn
    del context
    mproc_ext.set_start_method("spawn", force=True)
    assert_type(mproc_ext.get_start_method(), str)
    mproc_ext.set_forkserver_preload(["json"], on_error="warn")


def queues() -> None:
    queue: mproc_ext.Queue[int] = mproc_ext.Queue()
    queue.put(1)
    assert_type(queue.get(timeout=1), int)
    queue.put_many([1, 2], timeout=1)
    queue.put_many(["one"])  # type: ignore[list-item]
    assert_type(queue.get_many(2), list[int])
    for number in queue:
        assert_type(number, int)
    queue.shutdown(immediate=True)
    queue.put("one")  # type: ignore[arg-type]
    made = mproc_ext.get_context("spawn").JoinableQueue(3)
    assert_type(made, mproc_ext.queues.JoinableQueue[Any])
    made.task_done()
    mproc_ext.JoinableQueue(on_death="done").join()
    context = mproc_ext.get_context("spawn")
    context.JoinableQueue(3, on_death="done").join()
    mproc_ext.queues.JoinableQueue[int](3, on_death=None, ctx=context).put(1)
    mproc_ext.JoinableQueue(on_death="other")  # type: ignore[arg-type]


def locks() -> None:
    lock = mproc_ext.Lock()
    assert_type(lock, mproc_ext.synchronize.Lock)
    with lock:
        assert_type(lock.locked(), bool)
    assert_type(mproc_ext.RLock().locked(), bool)
    assert_type(mproc_ext.BoundedSemaphore(2).locked(), bool)
    mproc_ext.Condition(lock).wait_for(lambda: True, timeout=1)


def pools() -> None:
    with mproc_ext.pool.Pool(2, maxtasksperchild=3) as pool:
        assert_type(pool.map(work, [1, 2]), list[str])
        assert_type(pool.apply_async(work, (1,)).get(1), str)
        pool.map(work, ["one"])  # type: ignore[arg-type]
        assert_type(pool.map_async(work, [1]).get(), list[str])
        assert_type(pool.starmap(work, [(1,)], timeout=1.5, progress="working"), list[str])
        assert_type(pool.starmap_async(work, [(1,)], progress=True).get(), list[str])
        assert_type(next(pool.imap(work, [1], buffersize=4)), str)
        assert_type(pool.imap_unordered(work, [1], 10, retries=1).next(timeout=1), str)
        assert_type(pool.apply(work, (1,), timeout=1.5, retries=2), str)
        assert_type(pool.apply_async(work, (1,)).cancel(), bool)
        assert_type(pool.imap(work, [1]).cancelled(), bool)
        pool.apply(work, (1,), retries="2")  # type: ignore[arg-type]
        pool.imap(work, [1], progress=1)  # type: ignore[arg-type]
        pool.resize(4)
        # What takes the stdlib's takes ours.
        theirs: multiprocessing.pool.Pool = pool
        result: multiprocessing.pool.AsyncResult[str] = pool.apply_async(work, (1,))
        results: mproc_ext.pool.MapResult[str] = pool.map_async(work, [1])
        del theirs, result, results
    error = mproc_ext.pool.WorkerLostError("lost")
    assert_type(error.exitcode, int | None)
    assert_type(error.task, str | None)
    timeout: mproc_ext.TimeoutError = mproc_ext.pool.TaskTimeoutError()
    broken: RuntimeError = mproc_ext.pool.BrokenPoolError()
    del timeout, broken
    if (worker := mproc_ext.pool.current_worker()) is not None:
        assert_type(worker.id, int)
        worker.state["key"] = 1


def pools_of_their_own() -> None:
    mproc_ext.Pool(2, max_memory=1 << 30, cpus=[0, {1, 2}], max_restarts=(3, 60))
    mproc_ext.get_context("spawn").Pool(
        max_memory=(1 << 30, 2 << 30), worker_exit=print, cloudpickle=True
    )
    mproc_ext.pool.Pool(max_memory="1 GB")  # type: ignore[arg-type]
    mproc_ext.pool.ThreadPool(2).resize(2)


async def awaited() -> None:
    with mproc_ext.Pool(2) as pool:
        assert_type(await pool.apply_async(work, (1,)), str)
        assert_type(await pool.map_async(work, [1]), list[str])


def connections() -> None:
    reader, writer = mproc_ext.Pipe(duplex=False)
    writer.send([1])
    mproc_ext.connection.wait([reader], timeout=0)


def shared() -> None:
    with mproc_ext.Value("i", 1).get_lock():
        pass
    block = mproc_ext.shared_memory.SharedMemory(create=True, size=16)
    mproc_ext.shared_memory.SharedMemory(block.name, track=None).close()
    mproc_ext.shared_memory.SharedMemory(block.name, track=False).unlink()
    items = mproc_ext.shared_memory.ShareableList([1, 2])
    assert_type(items[0], int)
    assert_type(items.shm, mproc_ext.shared_memory.SharedMemory)


def managers() -> None:
    with mproc_ext.Manager() as manager:
        numbers = manager.list([1, 2])
        numbers.append(3)


def additions() -> None:
    assert_type(mproc_ext.ACCELERATED, bool)
    assert_type(mproc_ext.__version__, str)
    assert_type(mproc_ext.install(), None)
