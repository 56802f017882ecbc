"""Pool and ThreadPool: the stdlib's, with this package's default context."""

import queue
import threading
import time

from mproc_ext import _modules, context

_std = _modules.overlay(__name__)

__all__ = ["Pool", "ThreadPool"]

# Seconds.
_TERMINATE_GRACE = 5.0
_PUT_GRACE = 1.0


class Pool(_std.Pool):
    """A pool of worker processes.  See the stdlib's documentation of multiprocessing.pool."""

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
    ):
        super().__init__(
            processes, initializer, initargs, maxtasksperchild, context or _default_context()
        )

    def _setup_queues(self):
        super()._setup_queues()
        # An idle worker waits for a task with this lock held: that it is killed then means nothing,
        # and terminate() does so.
        self._inqueue._rlock._warned = True

    @classmethod
    def _terminate_pool(
        cls,
        taskqueue,
        inqueue,
        outqueue,
        pool,
        change_notifier,
        worker_handler,
        task_handler,
        result_handler,
        cache,
    ):
        super()._terminate_pool(
            taskqueue,
            inqueue,
            outqueue,
            _Victims(pool, outqueue),
            change_notifier,
            worker_handler,
            task_handler,
            result_handler,
            cache,
        )


class ThreadPool(Pool, _std.ThreadPool):
    """A pool of worker threads.

    After terminate(), join() waits for the pool's threads, but for those that were running a task
    then no longer than five seconds: a thread cannot be stopped, and the task may take for ever.
    """

    def __init__(self, processes=None, initializer=None, initargs=()):
        _std.ThreadPool.__init__(self, processes, initializer, initargs)

    def _setup_queues(self):
        self._inqueue = _Tasks()
        self._outqueue = _Results(self._inqueue)
        self._quick_put = self._inqueue.put
        self._quick_get = self._outqueue.get

    @staticmethod
    def _help_stuff_finish(inqueue, task_handler, size):
        if isinstance(inqueue, _Tasks):  # a subclass may have made queues of its own
            inqueue.end()
        _std.ThreadPool._help_stuff_finish(inqueue, task_handler, size)

    def join(self):
        running = getattr(self._inqueue, "running_at_end", None)
        if not running:
            super().join()
            return
        workers = self._pool
        self._pool = [worker for worker in workers if worker.ident not in running]
        try:
            super().join()
        finally:
            self._pool = workers
        deadline = time.monotonic() + _TERMINATE_GRACE
        for worker in workers:
            worker.join(max(0, deadline - time.monotonic()))


class _Victims:
    """The workers of a pool that is terminated: none is killed in the middle of putting a result.

    It would keep the lock of the results, and the threads that end the pool would wait for that.

    The pool's own list is asked each time: its workers are replaced until the thread that does so
    has ended.
    """

    def __init__(self, workers, results):
        self._workers = workers
        self._lock = getattr(results, "_wlock", None)

    def __len__(self):
        return len(self._workers)

    def __getitem__(self, index):
        return self._workers[index]

    def __iter__(self):
        # Only the first to go through them kills.
        lock, self._lock = self._lock, None
        # Not for ever: a worker may be in the middle because nobody reads its result any more.
        deadline = time.monotonic() + _PUT_GRACE
        held = lock is not None and lock.acquire(timeout=_PUT_GRACE)
        try:
            yield from self._workers
            if held:  # until those that were just told to end have done so
                for worker in self._workers:
                    worker.join(max(0, deadline - time.monotonic()))
        finally:
            if held:
                lock.release()


class _Tasks(queue.SimpleQueue):
    """The tasks of a ThreadPool: knows which threads run one, and gives none out after the end."""

    def __init__(self):
        self._lock = threading.Lock()
        self._ended = False
        self._running = set()
        self.running_at_end = frozenset()

    def get(self, block=True, timeout=None):
        task = super().get(block, timeout)
        with self._lock:
            if self._ended:
                return None
            if task is not None:
                self._running.add(threading.get_ident())
        return task

    def done(self):
        self._running.discard(threading.get_ident())

    def end(self):
        """A thread that is not in running_at_end hereafter takes no further task, and ends."""
        with self._lock:
            self._ended = True
            self.running_at_end = frozenset(self._running)


class _Results(queue.SimpleQueue):
    """The results of a ThreadPool: a thread that puts one has done its task."""

    def __init__(self, tasks):
        self._tasks = tasks

    def __new__(cls, tasks):
        return super().__new__(cls)

    def put(self, result, block=True, timeout=None):
        self._tasks.done()
        super().put(result, block, timeout)


def _default_context():
    return context._default_context.get_context()
