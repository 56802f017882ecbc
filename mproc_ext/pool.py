"""Pool and ThreadPool.

A Pool's tasks go to its workers by shared memory, and whoever waits for a result is who gives out
tasks and collects results meanwhile: see src/py/engine.h and _engine.py.  A worker that dies takes
nobody along but the task that it was in, and is replaced.

A pool whose class or context is one that the engine cannot serve (a subclass with queues of its
own, a context that is a mock) has the stdlib's code, and so have the pools of threads.  A context
of the stdlib's own stands for this package's of its start method.
"""

import importlib
import itertools
import math
import operator
import os
import queue
import sys
import threading
import time

from mproc_ext import _core, _engine, _modules, _progress, _results, context, util
from mproc_ext._engine import (
    BrokenPoolError,
    TaskTimeoutError,
    WorkerLostError,
    current_worker,
)

_std = _modules.overlay(__name__)

__all__ = [
    *("Pool", "ThreadPool"),
    *("BrokenPoolError", "TaskTimeoutError", "WorkerLostError", "current_worker"),
]

_ours = context._ours
_check_running = _std.Pool._check_running
_new_result = object.__new__

# Seconds.
_TERMINATE_GRACE = 5.0
_PUT_GRACE = 1.0

# What a subclass may override that the engine has not: with any of it, it is the stdlib's.
_NOT_HONOURED = frozenset(
    "_setup_queues _repopulate_pool _repopulate_pool_static _maintain_pool _join_exited_workers "
    "_get_tasks _get_sentinels _get_worker_sentinels _handle_workers _handle_tasks "
    "_handle_results _guarded_task_generation _help_stuff_finish _terminate_pool "
    "_wait_for_updates".split()
)


# The default of kwds, which nobody changes: it is sent as it is.
_NO_NAMES = {}


class _How:
    """How a call is to be done: the arguments that the stdlib's have not."""

    __slots__ = ("cloudpickle", "is_async", "is_direct", "items", "progress", "retries", "timeout")

    def __init__(self, pool, is_async, timeout=None, retries=0, progress=None):
        self.is_async = is_async
        self.is_direct = False  # not by a method that a subclass has overridden
        self.timeout = None if timeout is None else _seconds(timeout)
        self.retries = _retries(retries)
        if progress is not None and not isinstance(progress, (bool, str)):
            raise TypeError("progress must be a bool, or a str that describes the call")
        self.progress = progress
        self.items = 0  # their number, or what counts them, for who shows the progress
        self.cloudpickle = pool._cloudpickle

    def is_plain(self):
        """Whether the standard library does it so too."""
        return self.timeout is None and not self.retries and not self.progress


def _seconds(timeout):
    try:
        seconds = float(timeout)
    except OverflowError:
        seconds = math.inf
    except (TypeError, ValueError):
        seconds = None
    if seconds is None or isinstance(timeout, (str, bytes, bytearray)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not seconds > 0:
        raise ValueError(f"timeout must be above 0 seconds, not {timeout!r}")
    return seconds


def _retries(retries):
    try:
        count = operator.index(retries)
    except TypeError:
        raise TypeError(f"retries must be an int, not {retries!r}") from None
    if count < 0:
        raise ValueError(f"retries must be 0 or more, not {retries!r}")
    return min(count, sys.maxsize)


# What to do where there is none, by option.
_INSTEAD = {
    "timeout": "a thread cannot be stopped: use a Pool, or get(timeout) of the _async calls",
    "retries": "its threads do not die: use a Pool, or have the function try again",
    "progress": "use a Pool, or count the results of imap() as they come",
    "buffersize": "use a Pool, or imap() of one part of the items after the other",
}


def _not_with_the_stdlib(pool, **options):
    """The pool is the standard library's: none of its own options may be used."""
    for name, value in options.items():
        if value is None or (not value and name in ("retries", "progress")):
            continue
        if isinstance(pool, ThreadPool):
            raise TypeError(f"a ThreadPool has no {name}=; {_INSTEAD[name]}")
        raise TypeError(f"{_why_the_stdlibs(pool)}: it has no {name}=")


def _why_the_stdlibs(pool):
    """For people: where the pool is of the standard library."""
    if isinstance(_ours(getattr(pool, "_ctx", None)), context.BaseContext):
        what = f"{type(pool).__name__} overrides what only the standard library's pool calls"
    else:
        what = "its context is not one of this package"
    return f"this pool is the standard library's, as {what}"


def _iterate(iterable):
    """Its iterator; what is wrong with it comes out where the first item is asked for."""
    try:
        return iter(iterable)
    except Exception as error:
        return _raise(error)


def _in_chunks(chunksize, iterable):
    """The size, and the iterator; what is wrong with the size comes out with the first item."""
    try:
        itertools.islice((), chunksize)
        return operator.index(chunksize), _iterate(iterable)
    except Exception as error:
        return 1, _raise(error)


def _raise(error):
    raise error
    yield


class Pool(_std.Pool):
    """A pool of worker processes.

    The standard library's, and besides:

    worker_exit    called in each worker before it ends in good order
    max_memory     bytes: a worker that has more after a task is replaced; or two limits: one that
                   has more than the second is killed in the middle of a task (WorkerLostError)
    cpus           the CPUs for each worker in turn: ints, or sets of ints
    max_restarts   (count, seconds): when more workers than that die within the time the pool gives
                   up (BrokenPoolError)
    cloudpickle    functions are sent by value, with the library of this name: lambdas, closures,
                   and those of a notebook

    A worker that dies fails the task that it was in with WorkerLostError, or has it done again by
    another one as often as `retries` says; it is replaced, and the pool goes on.  Where workers end
    before their first task (an initializer that fails), the pool breaks after three of them:
    BrokenPoolError with the cause.
    """

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
        *,
        worker_exit=None,
        max_memory=None,
        cpus=None,
        max_restarts=None,
        cloudpickle=False,
    ):
        ctx = _ours(context) if context else _default_context()
        self._crew = None
        self._cloudpickle = False
        self._state = _std.INIT  # __del__ looks at it
        if not _engine.is_served(type(self), Pool, _NOT_HONOURED, ctx):
            self._ctx = ctx = context or ctx
            _not_with_the_stdlib(
                self,
                worker_exit=worker_exit,
                max_memory=max_memory,
                cpus=cpus,
                max_restarts=max_restarts,
                cloudpickle=cloudpickle or None,
            )
            super().__init__(processes, initializer, initargs, maxtasksperchild, ctx)
            return
        # The state in which a call need not ask; a subclass with a check of its own has none.
        self._unchecked = _std.RUN if type(self)._check_running is _check_running else None
        # As the standard library does it, in its order.
        self._pool = []
        self._ctx = ctx
        self._maxtasksperchild = maxtasksperchild
        self._initializer = initializer
        self._initargs = initargs
        if processes is None:
            processes = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        if maxtasksperchild is not None and (
            not isinstance(maxtasksperchild, int) or maxtasksperchild <= 0
        ):
            raise ValueError("maxtasksperchild must be a positive int or None")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._processes = processes
        if cloudpickle:
            importlib.import_module("cloudpickle")  # now, not in the middle of a task
        self._cloudpickle = bool(cloudpickle)
        options = _engine.Options(
            *(initializer, initargs, maxtasksperchild, worker_exit, max_memory, cpus, max_restarts)
        )
        if cloudpickle:
            options.send_by_value()
        self._crew = crew = _engine.Crew(_process_maker(self.Process, ctx), options)
        self._pool = crew.processes
        try:
            crew.start(processes)
        except BaseException:
            crew.terminate()
            raise
        self._terminate = util.Finalize(self, crew.terminate, exitpriority=15)
        self._state = _std.RUN

    @property
    def _cache(self):
        """The calls that are not done, by number."""
        if self._crew is None:
            return self.__dict__["_cache"]
        return {job._job: job for job in self._crew._jobs()}

    @_cache.setter
    def _cache(self, cache):
        self.__dict__["_cache"] = cache

    # -- Calls --

    def apply(self, func, args=(), kwds=_NO_NAMES, *, timeout=None, retries=0):
        """func(*args, **kwds), done by a worker."""
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries)
            return super().apply(func, args, kwds)
        if timeout is None and retries == 0:
            if type(self).apply_async is not Pool.apply_async:
                return self.apply_async(func, args, kwds).get()
            if not self._cloudpickle:
                return self._begin_call(func, args, kwds).get()
        how = _How(self, False, timeout, retries)
        return self._apply(func, args, kwds, None, None, how).get()

    def apply_async(
        self,
        func,
        args=(),
        kwds=_NO_NAMES,
        callback=None,
        error_callback=None,
        *,
        timeout=None,
        retries=0,
    ):
        """As apply(), but returns an AsyncResult at once."""
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries)
            return super().apply_async(func, args, kwds, callback, error_callback)
        is_plain = timeout is None and retries == 0 and not self._cloudpickle
        if is_plain and callback is None and error_callback is None:
            if self._crew._service is None:
                self._crew.need_service()
            return self._begin_call(func, args, kwds)
        how = _How(self, True, timeout, retries)
        return self._apply(func, args, kwds, callback, error_callback, how)

    def _begin_call(self, func, args, kwds):
        """A call with nothing but its arguments, in as few steps as that takes."""
        if self._state is not self._unchecked:
            self._check_running()
        result = _new_result(_results.ApplyResult)
        self._crew._begin_call(result, self, func, args, kwds)
        return result

    def _apply(self, func, args, kwds, callback, error_callback, how):
        self._check_running()
        result = _results.ApplyResult(self, callback, error_callback)
        return result._begin(
            *(self._crew, _core.JOB_ONE, _core.ORDER_APPLY, func, (args, kwds), 1, 1, how)
        )

    def map(self, func, iterable, chunksize=None, *, timeout=None, retries=0, progress=None):
        """[func(item) for item in iterable], done by the workers in chunks.

        A chunk is what *timeout* and *retries* are of: with a timeout, one item if not said.
        """
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries, progress=progress)
            return super().map(func, iterable, chunksize)
        how = _How(self, False, timeout, retries, progress)
        return self._map(func, iterable, False, chunksize, None, None, how).get()

    def map_async(
        self,
        func,
        iterable,
        chunksize=None,
        callback=None,
        error_callback=None,
        *,
        timeout=None,
        retries=0,
        progress=None,
    ):
        """As map(), but returns an AsyncResult at once."""
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries, progress=progress)
            return super().map_async(func, iterable, chunksize, callback, error_callback)
        how = _How(self, True, timeout, retries, progress)
        return self._map(func, iterable, False, chunksize, callback, error_callback, how)

    def starmap(self, func, iterable, chunksize=None, *, timeout=None, retries=0, progress=None):
        """[func(*item) for item in iterable], done by the workers in chunks, as map() does it."""
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries, progress=progress)
            return super().starmap(func, iterable, chunksize)
        how = _How(self, False, timeout, retries, progress)
        return self._map(func, iterable, True, chunksize, None, None, how).get()

    def starmap_async(
        self,
        func,
        iterable,
        chunksize=None,
        callback=None,
        error_callback=None,
        *,
        timeout=None,
        retries=0,
        progress=None,
    ):
        """As starmap(), but returns an AsyncResult at once."""
        if self._crew is None:
            _not_with_the_stdlib(self, timeout=timeout, retries=retries, progress=progress)
            return super().starmap_async(func, iterable, chunksize, callback, error_callback)
        how = _How(self, True, timeout, retries, progress)
        return self._map(func, iterable, True, chunksize, callback, error_callback, how)

    def _map_async(
        self, func, iterable, mapper, chunksize=None, callback=None, error_callback=None
    ):
        if self._crew is None:
            return super()._map_async(func, iterable, mapper, chunksize, callback, error_callback)
        stars = mapper is _std.starmapstar
        how = _How(self, True)
        how.is_direct = True
        return self._map(func, iterable, stars, chunksize, callback, error_callback, how)

    def _map(self, func, iterable, stars, chunksize, callback, error_callback, how):
        is_overridden = type(self)._map_async is not Pool._map_async
        if is_overridden and not how.is_direct and how.is_plain():
            mapper = _std.starmapstar if stars else _std.mapstar
            return self._map_async(func, iterable, mapper, chunksize, callback, error_callback)
        self._check_running()
        if not hasattr(iterable, "__len__"):
            iterable = list(iterable)
        how.items = length = len(iterable)
        if chunksize is None and how.timeout is not None:
            chunksize = 1  # it is the time of one call
        elif chunksize is None:
            chunksize, extra = divmod(length, len(self._pool) * 4 or 1)
            if extra:
                chunksize += 1
        result = _results.MapResult(self, callback, error_callback)
        if length == 0 or chunksize <= 0:
            # The standard library asks for nothing then, and has as many results.
            result._is_empty = True
            items, chunksize = iter(()), 1
        else:
            chunksize, items = _in_chunks(chunksize, iterable)
        one = _core.ORDER_STAR if stars else _core.ORDER_CALL
        many = _core.ORDER_STARCHUNK if stars else _core.ORDER_CHUNK
        order = one if chunksize == 1 else many
        return result._begin(
            *(self._crew, _core.JOB_ALL, order, func, items, chunksize, length, how)
        )

    def imap(
        self,
        func,
        iterable,
        chunksize=1,
        *,
        buffersize=None,
        timeout=None,
        retries=0,
        progress=None,
    ):
        """An iterator over func(item) for each item, in order.

        The items are asked for as the workers get on; with *buffersize*, never so many results are
        ahead of who iterates.
        """
        if self._crew is None:
            _not_with_the_stdlib(
                self, buffersize=buffersize, timeout=timeout, retries=retries, progress=progress
            )
            return super().imap(func, iterable, chunksize)
        how = _How(self, True, timeout, retries, progress)
        result = _results.IMapIterator(self)
        return self._imap(result, func, iterable, chunksize, buffersize, how)

    def imap_unordered(
        self,
        func,
        iterable,
        chunksize=1,
        *,
        buffersize=None,
        timeout=None,
        retries=0,
        progress=None,
    ):
        """As imap(), but the results come as they are done."""
        if self._crew is None:
            _not_with_the_stdlib(
                self, buffersize=buffersize, timeout=timeout, retries=retries, progress=progress
            )
            return super().imap_unordered(func, iterable, chunksize)
        how = _How(self, True, timeout, retries, progress)
        result = _results.IMapUnorderedIterator(self)
        return self._imap(result, func, iterable, chunksize, buffersize, how)

    def _imap(self, result, func, iterable, chunksize, buffersize, how):
        self._check_running()
        ordered = type(result) is _results.IMapIterator
        if chunksize < 1:
            shown = format(chunksize, "n") if ordered else repr(chunksize)
            raise ValueError(f"Chunksize must be 1+, not {shown}")
        if how.progress:
            if hasattr(iterable, "__len__"):
                how.items = len(iterable)
            else:
                iterable = how.items = _progress.Items(iterable)
        ahead = 0
        if buffersize is not None:
            if not isinstance(buffersize, int):
                raise TypeError("buffersize must be an integer or None")
            if buffersize < 1:
                raise ValueError("buffersize must be None or > 0")
            ahead = min(max(1, int(buffersize // chunksize)), sys.maxsize)
        if chunksize == 1:
            size, items = 1, _iterate(iterable)
        else:
            size, items = _in_chunks(chunksize, iterable)
        result._begin(
            self._crew,
            _core.JOB_ORDERED if ordered else _core.JOB_UNORDERED,
            _core.ORDER_CALL if chunksize == 1 else _core.ORDER_CHUNK,
            *(func, items, size, -1, how, ahead),
        )
        if chunksize == 1:
            return _results.BufferedIterator(result) if ahead else result
        if ahead:
            return _results.BufferedChunks(result)
        return (item for chunk in result for item in chunk)

    # -- Workers --

    def resize(self, processes):
        """Have so many workers from now on; those that are too many end after what they do."""
        if self._crew is None:
            whose = "a ThreadPool" if isinstance(self, ThreadPool) else _why_the_stdlibs(self)
            raise NotImplementedError(f"{whose}: it cannot be resized; make another one")
        self._check_running()
        self._crew._check_here()
        try:
            processes = operator.index(processes)
        except TypeError:
            raise TypeError(f"processes must be an int, not {type(processes).__name__}") from None
        if processes < 1:
            raise ValueError("Number of processes must be at least 1")
        self._crew.resize(processes)
        self._processes = processes

    def _repopulate_pool(self):
        if self._crew is None:
            super()._repopulate_pool()
            return
        self._crew._check_here()
        with self._crew.turn():
            self._crew._maintain()

    # -- The end --

    def close(self):
        """No further calls; the workers end when those that there are have been done."""
        if self._crew is None:
            super().close()
            return
        util.debug("closing pool")
        if self._state == _std.RUN:
            self._state = _std.CLOSE
            self._crew.close()

    def terminate(self):
        """End at once: calls that are not done raise BrokenPoolError."""
        if self._crew is None:
            super().terminate()
            return
        util.debug("terminating pool")
        self._state = _std.TERMINATE
        self._terminate()

    def join(self):
        """Wait until the workers have ended, after close() or terminate()."""
        if self._crew is None:
            super().join()
            return
        util.debug("joining pool")
        if self._state == _std.RUN:
            raise ValueError("Pool is still running")
        if self._state not in (_std.CLOSE, _std.TERMINATE):
            raise ValueError("In unknown state")
        self._crew.join()

    # -- The standard library's way --

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
        self._crew = None
        self._cloudpickle = False
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


def _process_maker(process, ctx):
    """What makes a worker: without a reference to the pool, which would never be collected."""

    def make(target, args):
        worker = process(ctx, target=target, args=args)
        worker.name = worker.name.replace("Process", "PoolWorker")
        worker.daemon = True
        return worker

    return make


def _default_context():
    return context._default_context.get_context()
