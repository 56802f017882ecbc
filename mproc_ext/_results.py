"""What the calls of a pool return: results to wait for, and iterators over them.

They are the stdlib's classes by inheritance; what counts is in C (src/py/job.c).
"""

import asyncio
import concurrent.futures
import functools
import os
import threading

from mproc_ext import _core, _engine, _progress
from mproc_ext._modules import stdlib

_std = stdlib("pool")

__all__ = ()


# Between who begins to wait for a job and the service thread, which tells all that do.
_waiters_lock = threading.Lock()
os.register_at_fork(after_in_child=_waiters_lock._at_fork_reinit)


class _Result(_engine.Job):
    """What the results of calls and the iterators have in common."""

    _waiters = ()

    @functools.cached_property
    def _job(self):
        return next(_std.job_counter)

    def _begin(self, crew, kind, order, function, items, chunk, length, how, ahead=0):
        self._timeout = how.timeout
        if how.cloudpickle:
            function = _engine.ByValue(function)
        has_callbacks = self._has_callback()
        if how.is_async or has_callbacks:
            crew.need_service()
        try:
            is_fed = crew._begin(
                *(self, kind, order, function, items, chunk, length, has_callbacks),
                *(how.timeout or 0.0, how.retries, ahead),
            )
            if is_fed:
                crew.feed(self)
        except BaseException as error:
            # Where it has begun: nobody would draw its items, or has it to wait for.
            if self._crew is not None:
                with crew.turn():
                    crew._abandon(self, error, False)
            raise
        if how.progress:
            _progress.show(self, how.progress, how.items)
        return self

    def _has_callback(self):
        return False

    def _call_callbacks(self):
        """In the service thread, before the result counts as ready."""
        self._pool = None
        with _waiters_lock:
            waiters, self._waiters = self._waiters, None
        for waiter in waiters:
            waiter()

    def _when_done(self, waiter):
        """Has it called in the service thread, or at once where the result is there."""
        crew = self._crew
        if crew is not None:
            crew._check_here()
            crew.need_service()
            with crew.turn(), _waiters_lock:
                if self._crew is not None and self._watch():
                    self._waiters = (*self._waiters, waiter)
                    return
        waiter()

    def cancel(self):
        """Drop the call; a worker that is in the middle of it is killed, and replaced.

        True where that was done, now or before: get() raises concurrent.futures.CancelledError
        then.  False: the call was done already.
        """
        crew = self._crew
        if crew is None:
            return self._is_cancelled
        crew._check_here()
        with crew.turn():
            done = crew._cancel(self, concurrent.futures.CancelledError(), True)
            return done or self._is_cancelled

    def cancelled(self):
        """Whether the call was cancelled."""
        return self._is_cancelled


class ApplyResult(_Result, _core.JobResult, _std.ApplyResult):
    """The result of a call that another process does: of apply_async.

    ready(), successful(), wait(timeout) and get(timeout) are the standard library's.  Beside them:
    cancel(), cancelled(), done(); and in a coroutine it can be awaited.
    """

    _callback = _error_callback = None

    def __init__(self, pool, callback=None, error_callback=None):
        self._pool = pool
        if callback is not None:
            self._callback = callback
        if error_callback is not None:
            self._error_callback = error_callback

    def _has_callback(self):
        return self._callback is not None or self._error_callback is not None

    def _call_callbacks(self):
        try:
            callback = self._callback if self._success else self._error_callback
            if callback:
                callback(self._value)
        finally:
            super()._call_callbacks()

    def successful(self):
        """Whether the call has not raised.  ValueError: it is not ready."""
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return self._success

    done = _core.JobResult.ready

    def __await__(self):
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def settle():
            if future.cancelled():
                return
            if self._is_cancelled:
                future.cancel()
            elif self._success:
                future.set_result(self._value)
            else:
                future.set_exception(_awaitable(self._value))

        def tell():
            # A loop that was closed meanwhile wants no result.
            try:
                loop.call_soon_threadsafe(settle)
            except RuntimeError:
                pass

        self._when_done(tell)
        return future.__await__()


def _awaitable(error):
    """A Future takes no StopIteration, which would end the generator that awaits it."""
    if isinstance(error, StopIteration):
        wrapped = RuntimeError("the task raised StopIteration")
        wrapped.__cause__ = error
        return wrapped
    return error


class MapResult(ApplyResult, _std.MapResult):
    """The result of map_async and starmap_async: a list."""

    def __init__(self, pool, callback=None, error_callback=None):
        ApplyResult.__init__(self, pool, callback, error_callback)

    def _has_callback(self):
        # The stdlib's calls none for an empty one.
        return ApplyResult._has_callback(self) and not self._is_empty

    _is_empty = False


class IMapIterator(_Result, _core.JobIterator, _std.IMapIterator):
    """The results of imap(), one by one, in order; next() takes a timeout in seconds."""

    def __init__(self, pool):
        self._pool = pool


class IMapUnorderedIterator(IMapIterator, _std.IMapUnorderedIterator):
    """The results of imap_unordered(), one by one, as they come."""


class BufferedIterator(_std.IMapIterator):
    """The results of imap(buffersize=) and imap_unordered(buffersize=).

    When nobody has it any more, the items that were not sent are not asked for: else the call would
    wait for its reader for ever.
    """

    def __init__(self, job):
        self._iterator = job
        self.next = job.next
        self.cancel = job.cancel
        self.cancelled = job.cancelled

    def __next__(self):
        return next(self._iterator)

    def __del__(self, _leave=_core.JobIterator._leave):
        _leave(self._iterator)


class BufferedChunks(BufferedIterator):
    """The same of results that come in chunks."""

    def __init__(self, job):
        super().__init__(job)
        self._items = (item for chunk in job for item in chunk)
        del self.next  # a chunk's

    def __next__(self):
        return next(self._items)


# They are shown as what they are for programs.
for _cls in (ApplyResult, MapResult, IMapIterator, IMapUnorderedIterator):
    _cls.__module__ = "mproc_ext.pool"
