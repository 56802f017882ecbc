"""ProcessPoolExecutor, on the engine of the pools.

An executor's tasks go to its workers as those of a Pool do: see src/py/engine.h and _engine.py.  A
future is a job of one task, and whoever waits for its result gives out tasks and collects results
meanwhile.  Who waits otherwise (by wait(), as_completed(), a callback, asyncio) asks for the
future's condition first: from then on the service thread tells.  map() is one job of many tasks,
without futures.

Unlike a Pool, an executor is broken by the first worker that dies, as the standard library's is;
its errors are the standard library's own classes.
"""

import itertools
import operator
import os
import pickle
import threading
import time
import weakref
from collections import deque
from concurrent.futures import CancelledError, Executor, _base, process as _std
from traceback import format_exception

from mproc_ext import _core, _engine, context, process, reduction, util
from mproc_ext._engine import TaskTimeoutError, WorkerLostError, current_worker

__all__ = [
    *("BrokenProcessPool", "ProcessPoolExecutor"),
    *("TaskTimeoutError", "WorkerLostError", "current_worker"),
]

BrokenProcessPool = _std.BrokenProcessPool

# Programs may put other classes in their place.
_StdExecutor = _std.ProcessPoolExecutor
_ExceptionWithTraceback = _std._ExceptionWithTraceback
_RemoteTraceback = _std._RemoteTraceback

_TERMINATE = getattr(_std, "_TERMINATE", "terminate")
_KILL = getattr(_std, "_KILL", "kill")

# What it says where it is broken, as the standard library does.
_NOT_USABLE = "A child process terminated abruptly, the process pool is not usable anymore"
_TERMINATED = (
    "A process in the process pool was terminated abruptly while the future was running or pending."
)
_COLLECTED = (
    "The ProcessPoolExecutor was garbage collected with work pending after its last worker process "
    "exited upon reaching max_tasks_per_child; the pending work can never be run."
)
_FORCED = (
    "A worker process exited while the pool was being forcefully shut down; work that was still "
    "enqueued will not be run."
)
_NO_WORKER = (
    "A replacement worker process could not be started, leaving the pool without workers to run "
    "the remaining work."
)

# ---- In the worker -------------------------------------------------------------------------------

_TELLS_ALL = 1
_ENDS_PUZZLED = 2


class _Failure(_ExceptionWithTraceback):
    """An exception as it is sent: with its traceback, which is there also where it cannot be
    unpickled."""

    def __reduce__(self):
        return _rebuild, (bytes(reduction.ForkingPickler.dumps(self.exc)), self.tb)


def _rebuild(data, traceback):
    """In the parent."""
    try:
        error = pickle.loads(data)
        error.__cause__ = _RemoteTraceback(traceback)
    except BaseException as reason:  # a constructor with other arguments, mostly
        reason.__cause__ = _RemoteTraceback(traceback)
        raise
    return error


def _failure(error):
    return _Failure(error, error.__traceback__)


def _unsendable(reason, _):
    return _failure(reason)


def _work(crew, place, lane, options, manners):
    """What the process of a worker runs."""
    process.current_process()._config["daemon"] = False
    _core.serve_pools(context.TimeoutError, _failure, _unsendable, _engine._apply)
    try:
        _engine._begin_work(crew, place, lane, options)
    except BaseException as error:
        _base.LOGGER.critical("Exception in initializer:", exc_info=True)
        _engine._say_why(crew, lane, error)
        return
    _engine.do_tasks(crew, lane, options, manners)


# ---- In the parent -------------------------------------------------------------------------------

_has_ended = False  # the interpreter's threads are being joined
_crews = weakref.WeakSet()


def _end_at_exit():
    """Before the interpreter joins its threads: all that was submitted is done."""
    global _has_ended
    _has_ended = True
    crews = [crew for crew in _crews if crew._is_here]
    for crew in crews:
        crew.no_more()
    for crew in crews:
        crew._join_service()


threading._register_atexit(_end_at_exit)


class _Lazy:
    """An attribute of a future that is made when somebody asks for it."""

    def __init__(self, make):
        self._make = make

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, future, owner=None):
        if future is None:
            return self
        return future.__dict__.setdefault(self._name, self._make(future))


def _condition_of(future):
    # Who has the condition is told by it.
    future._watch()
    return threading.Condition()


class Future(_core.JobFuture, _engine.Job, _base.Future):
    """The result of a call that another process does.

    The standard library's.  What result() and exception() of it wait for they help along; the
    state is that of the job, until it is told to those who wait by the condition: those find it as
    they were told.
    """

    _condition = _Lazy(_condition_of)
    _waiters = _Lazy(lambda future: [])
    _done_callbacks = _Lazy(lambda future: [])

    def cancel(self):
        """Cancel it, unless a worker has begun it; whether it is cancelled."""
        crew = self._crew
        if crew is not None and crew._is_here:
            with crew.turn():
                is_mine = crew._withdraw(self)
            if is_mine:
                self._tell_cancelled()
        return self.cancelled()

    def set_result(self, result):
        """Only its executor does so."""
        raise _base.InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception):
        """Only its executor does so."""
        raise _base.InvalidStateError(f"{self._state}: {self!r}")

    def _tell_cancelled(self):
        with self._condition:
            self._state = _base.CANCELLED
            self._condition.notify_all()
        self._invoke_callbacks()
        self.set_running_or_notify_cancel()

    def _tell(self):
        """It has its result: tell those who wait by the condition."""
        with self._condition:
            if self._state == _base.FINISHED:
                return
            self._state = _base.FINISHED
            for waiter in self._waiters:
                if self._exception is None:
                    waiter.add_result(self)
                else:
                    waiter.add_exception(self)
            self._condition.notify_all()

    def _call_callbacks(self):
        """In the service thread."""
        self._tell()
        self._invoke_callbacks()

    def _raise_cancelled(self):
        raise CancelledError()


class _Map(_core.JobIterator, _engine.Job):
    """The results of map(), in order."""

    def cancel(self):
        crew = self._crew
        if crew is not None and crew._is_here:
            with crew.turn():
                crew._curtail(self, CancelledError())


class _Crew(_engine.Crew):
    """The workers of an executor, which it does not keep alive.

    What the executor was given (the initializer, the context) may lead back to it, and stays there.
    """

    broken_error = BrokenProcessPool
    name = "executor"
    service_is_daemon = False

    def __init__(self, executor, options):
        super().__init__(None, options)
        self.by_pid = {}
        self.breaks_on_death = options.max_restarts is None and executor._retries == 0
        self._be_executor()
        self._manners = _TELLS_ALL | (_ENDS_PUZZLED if self.breaks_on_death else 0)
        self._timeout = executor._task_timeout
        this = weakref.ref(self)

        def close(_):
            if (crew := this()) is not None:
                util.debug("Executor collected: its workers end after what there is to do")
                crew._close()

        self._executor = weakref.ref(executor, close)
        _crews.add(self)

    # -- Workers --

    @property
    def is_full(self):
        """Whether it has all workers that it is to have."""
        executor = self._executor()
        return executor is None or self._wanted_workers >= executor._max_workers

    def grow(self, tasks, most):
        """Start workers for so many more tasks, where none is idle."""
        idle = max(0, self._ready - self._unfinished)
        if tasks > idle:
            self.have(min(most, len(self.processes) + tasks - idle))

    def have(self, workers):
        """Have so many, at least."""
        if workers <= self._wanted_workers:
            return
        with self.turn():
            if self._broken is not None or self._is_stopping:
                return
            before = self._wanted_workers
            try:
                self.start(max(workers, before))
            except BaseException:
                self._wanted_workers = before  # the next call tries again
                raise

    def _new_process(self, place, lane):
        executor = self._executor()
        return executor._context.Process(
            target=_work, args=(self, place, lane, executor._options, self._manners)
        )

    def _launch(self, worker):
        # It is killed when this process ends in whatever way, as a daemon, but may have children.
        is_daemon = worker.daemon
        worker.daemon = True
        worker.start()
        worker._config["daemon"] = is_daemon

    def _seat(self, place, worker):
        super()._seat(place, worker)
        self.by_pid[worker.pid] = worker

    def _undo_start(self, place, worker):
        self.by_pid.pop(worker.pid, None)
        super()._undo_start(place, worker)

    def _refill(self):
        if not any(place is None for place in self._places[: self._wanted_workers]):
            return
        executor = self._executor()
        message = cause = None
        if executor is None:
            message = _COLLECTED
        else:
            with executor._shutdown_lock:
                if executor._force_shutting_down:
                    message = _FORCED
                elif self._unfinished or not executor._shutdown_thread:
                    try:
                        self._fill()
                    except Exception as error:
                        # Those that are left go on; it is tried again with the next that ends.
                        message, cause = _NO_WORKER, "".join(format_exception(error))
        if not self.processes and (self._unfinished or cause):
            self._break_down(cause, message)

    def _end_worker(self, place, process):
        util.debug(f"cleaning up worker {place}")
        pid, exitcode = process.pid, process.exitcode
        was_killed_here = process in self._given_up or pid in self._too_large
        breaks = self.breaks_on_death and not was_killed_here
        lost = []

        def story(why):
            if why is not None:
                return "".join(format_exception(why))
            return f"Process {pid} terminated abruptly with exit code {exitcode}"

        def make_error(job, index, why):
            if breaks:
                error = _broken(story(why))
            else:
                error = self._make_lost(pid, exitcode, job._describe(index))
                error.__cause__ = why
            lost.append(error)
            return error

        self._places[place] = None
        self.processes.remove(process)
        process.join()
        has_begun, is_ready, why = self._bury(place, make_error)
        if self._is_stopping or self._broken is not None:
            return
        is_due = is_ready and why is None and exitcode == 0 and not lost and self._may_end
        if is_due:
            self.by_pid.pop(pid, None)
        elif breaks:
            self._break_down(story(why))
        else:
            self.by_pid.pop(pid, None)
            self._count_death(place, process, has_begun, is_ready, lost[-1] if lost else why)

    @property
    def _may_end(self):
        """Whether a worker may end that nobody has told to."""
        return self._options.maxtasks > 0 or self._options.soft_memory is not None

    def _fail(self, cause, message):
        text = None if cause is None else "".join(format_exception(cause))
        self._break_down(text, f"{message}: the executor does no task any more")

    def _break_down(self, cause, message=None):
        """No task is done any more; cause: a traceback, or what else there is to say."""
        executor = self._executor()
        if executor is not None:
            executor._be_broken()
        # An exception of its own for each, as tracebacks are added to them.
        for job in reversed(self._jobs()):
            self._abandon(job, _broken(cause, message), False)
        self._break(_broken(cause, message))
        self._end_all()

    def _make_timeout(self, place, job, index):
        return TaskTimeoutError(
            f"{job._describe(index)} took longer than {self._timeout} s; worker "
            f"{self._places[place].pid} was killed"
        )

    def _explain(self, error):
        """An argument could not be pickled."""
        error.__cause__ = _RemoteTraceback('\n"""\n{}"""'.format("".join(format_exception(error))))
        return error

    def _explain_unread(self, job, index, is_error, reason):
        """A result could not be unpickled; or an exception, whose traceback the reason has.

        The standard library's executor breaks then, and so its class is what programs expect.
        """
        what = "exception" if is_error else "result"
        error = BrokenProcessPool(
            f"the {what} of {job._describe(index)} cannot be unpickled: {type(reason).__name__}"
        )
        error.__cause__ = reason
        return error

    # -- The end --

    def no_more(self):
        """No task comes after those that there are."""
        executor = self._executor()
        if executor is not None:
            executor._is_quick = False
        self._close()

    def cancel_all(self):
        """Cancel what no worker has begun."""
        for job in reversed(self._jobs()):
            job.cancel()

    def _fail_service(self, error):
        self._break_down("".join(format_exception(error)))

    def _end_service(self):
        """In the service thread, when all is done."""
        was_broken = self._broken is not None
        if not was_broken:
            self.stop_workers()
        processes = list(self.processes)
        if was_broken:
            _engine._join_all(processes)
        for worker in processes:
            worker.join()
        self._is_stopping = True
        self._bury_all()


def _remote(cause):
    return _RemoteTraceback(f"\n'''\n{cause}'''")


def _broken(cause, message=None):
    error = BrokenProcessPool(message or _TERMINATED)
    if cause is not None:
        error.__cause__ = _remote(cause)
    return error


class _CallQueue:
    """What programs find as the executor's queue."""

    def join_thread(self):
        """There is no thread that feeds it."""


_NOT_HONOURED = frozenset(
    "_start_executor_manager_thread _adjust_process_count _launch_processes _spawn_process".split()
)


class ProcessPoolExecutor(_StdExecutor):
    """An executor of worker processes.

    The standard library's, and besides, as of mproc_ext.pool.Pool:

    worker_exit    called in each worker before it ends in good order
    max_memory     bytes: a worker that has more after a task is replaced; or two limits: one that
                   has more than the second is killed in the middle of a task (WorkerLostError)
    cpus           the CPUs for each worker in turn: ints, or sets of ints
    max_restarts   (count, seconds): a worker that dies is replaced, and its task alone fails
                   (WorkerLostError); more deaths than that within the time break the executor
    cloudpickle    functions are sent by value, with the library of this name
    timeout        seconds that each task may run: its worker is killed then, and replaced
                   (TaskTimeoutError)
    retries        how often a task is done again whose worker has died, which is replaced

    Without max_restarts and retries the first worker that dies breaks the executor
    (BrokenProcessPool).  A context that is not of this package, nor the standard library's of a
    start method, makes it the standard library's, without options; so does a subclass that
    overrides how that starts its workers.
    """

    def __init__(
        self,
        max_workers=None,
        mp_context=None,
        initializer=None,
        initargs=(),
        *,
        max_tasks_per_child=None,
        worker_exit=None,
        max_memory=None,
        cpus=None,
        max_restarts=None,
        cloudpickle=False,
        timeout=None,
        retries=0,
    ):
        _std._check_system_limits()
        self._shutdown_lock = threading.Lock()
        if mp_context is None:
            method = None if max_tasks_per_child is None else "spawn"
            mp_context = context._default_context.get_context(method)
        self._context = context._ours(mp_context)
        self._crew = None
        self._is_quick = False  # a submit() needs to look at nothing
        self._is_stdlib = not _engine.is_served(
            type(self), ProcessPoolExecutor, _NOT_HONOURED, self._context
        )
        beyond = (worker_exit, max_memory, cpus, max_restarts, cloudpickle or None, timeout)
        if self._is_stdlib:
            if retries or any(option is not None for option in beyond):
                raise NotImplementedError(
                    "this executor is the standard library's: it has no options"
                )
            super().__init__(
                max_workers,
                mp_context,
                initializer,
                initargs,
                max_tasks_per_child=max_tasks_per_child,
            )
            return
        # As the standard library does it, in its order.
        if max_workers is None:
            max_workers = getattr(os, "process_cpu_count", os.cpu_count)() or 1
        elif max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        self._max_workers = max_workers
        self._mp_context = mp_context
        is_fork = self._context.get_start_method(allow_none=False) == "fork"
        self._safe_to_dynamically_spawn_children = not is_fork
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._initializer = initializer
        self._initargs = initargs
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
            if is_fork:
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start "
                    "method; supply a different mp_context."
                )
        self._max_tasks_per_child = max_tasks_per_child
        self._executor_manager_thread = None
        self._processes = {}
        self._shutdown_thread = False
        self._broken = False
        self._cancel_pending_futures = False
        self._force_shutting_down = False
        self._call_queue = _CallQueue()
        operator.index(max_workers)  # the standard library makes a semaphore of it
        # Beyond it.
        if timeout is not None and not timeout > 0:
            raise ValueError("timeout must be a positive number of seconds, or None")
        if not isinstance(retries, int) or retries < 0:
            raise ValueError("retries must be an int of 0 or more")
        if cloudpickle:
            import cloudpickle as _  # now, not in the middle of a task
        self._cloudpickle = bool(cloudpickle)
        self._task_timeout = timeout
        self._retries = retries
        self._limits = (worker_exit, max_memory, cpus, max_restarts)
        self._options = _engine.Options(initializer, initargs, max_tasks_per_child, *self._limits)
        self._how = (1, 1, False, timeout or 0.0, retries, 0)

    # -- Workers --

    def _refuse(self):
        if self._broken:
            raise BrokenProcessPool(self._broken)
        if self._shutdown_thread:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _has_ended:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")
        if self._crew is not None and not self._crew._is_here:
            raise RuntimeError(
                "cannot schedule new futures: the executor belongs to the process that has used it"
            )

    def _prepare(self, tasks):
        """Have workers for so many tasks."""
        self._refuse()
        most = self._max_workers
        with self._shutdown_lock:
            self._refuse()
            if self._crew is None:
                is_dynamic = self._safe_to_dynamically_spawn_children
                self._start(min(tasks, most) if is_dynamic else most)
                self._is_quick = self._crew.is_full
                return
        self._crew.grow(tasks, most)
        self._is_quick = self._crew.is_full and not (self._shutdown_thread or _has_ended)

    def _start(self, workers):
        limits = _engine.Options(None, (), self._max_tasks_per_child, *self._limits)
        self._crew = crew = _Crew(self, limits)
        try:
            crew.start(workers)
            # After the workers, which may be forked.
            crew.need_service()
        except BaseException:
            self._crew = None
            crew.terminate()
            raise
        self._processes = crew.by_pid
        self._executor_manager_thread = crew._service

    def _be_broken(self):
        self._broken = _NOT_USABLE
        self._shutdown_thread = True
        self._is_quick = False

    @property
    def _pending_work_items(self):
        """What is not done, by number, in the order in which it was submitted.

        Programs ask for its length, and cancel the future of each.
        """
        if self._is_stdlib:
            return self.__dict__["_pending_work_items"]
        jobs = [] if self._crew is None else reversed(self._crew._jobs())
        return {n: _std._WorkItem(job, job._function, (), {}) for n, job in enumerate(jobs)}

    @_pending_work_items.setter
    def _pending_work_items(self, items):
        self.__dict__["_pending_work_items"] = items

    # Programs that want workers before the first task (PyTorch's compiler) call the next two.

    def _adjust_process_count(self):
        """Have one worker more; all of them where they are forked."""
        if self._is_stdlib:
            super()._adjust_process_count()
        else:
            here = 0 if self._crew is None else len(self._crew.processes)
            self._have(here + 1)

    def _start_executor_manager_thread(self):
        if self._is_stdlib:
            super()._start_executor_manager_thread()
        elif self._executor_manager_thread is None:
            self._have(0)

    def _have(self, workers):
        if self._crew is None:
            self._prepare(workers)
        else:
            self._refuse()
            self._crew.have(min(workers, self._max_workers))

    # -- Calls --

    def submit(self, fn, /, *args, **kwargs):
        if not self._is_quick:
            if self._is_stdlib:
                return super().submit(fn, *args, **kwargs)
            self._prepare(1)
        if self._cloudpickle:
            fn = _engine.ByValue(fn)
        future = Future()
        try:
            self._crew._begin(
                future, _core.JOB_ONE, _core.ORDER_APPLY, fn, (args, kwargs), *self._how
            )
        except (ValueError, BrokenProcessPool):
            # It was shut down, or broken, meanwhile.
            self._refuse()
            raise
        return future

    submit.__doc__ = Executor.submit.__doc__

    def map(self, fn, *iterables, timeout=None, chunksize=1, buffersize=None):
        """Returns an iterator equivalent to map(fn, iter).

        Args:
            fn: A callable that will take as many arguments as there are
                passed iterables.
            timeout: The maximum number of seconds to wait.  If None, then
                there is no limit on the wait time.
            chunksize: If greater than one, the iterables will be chopped
                into chunks of size chunksize and submitted to the process
                pool.  If set to one, the items in the list will be sent
                one at a time.
            buffersize: The number of submitted tasks whose results have not
                yet been yielded.  If the buffer is full, iteration over the
                iterables pauses until a result is yielded from the buffer.
                If None, all input elements are eagerly collected, and
                a task is submitted for each.

        Returns:
            An iterator equivalent to: map(func, *iterables) but the calls
            may be evaluated out-of-order.

        Raises:
            TimeoutError: If the entire result iterator could not be
                generated before the given timeout.
            Exception: If fn(*args) raises for any values.
        """
        if chunksize < 1:
            raise ValueError("chunksize must be >= 1.")
        chunksize = _chunk_size(chunksize)
        if buffersize is not None and not isinstance(buffersize, int):
            raise TypeError("buffersize must be an integer or None")
        if buffersize is not None and buffersize < 1:
            raise ValueError("buffersize must be None or > 0")
        end = None if timeout is None else timeout + time.monotonic()
        by_submit = type(self).submit is not ProcessPoolExecutor.submit
        if self._is_stdlib or by_submit or buffersize is not None:
            arguments = zip(*iterables, strict=False)
            results = _submit_all(self, fn, arguments, chunksize, buffersize, end)
            return results if chunksize == 1 else _chain(results)
        if self._cloudpickle:
            fn = _engine.ByValue(fn)
        job = self._begin_map(fn, iterables, chunksize)
        results = iter(()) if job is None else _take_all(job, end)
        return results if chunksize == 1 else _chain(results)

    def _begin_map(self, fn, iterables, chunksize):
        """The job; None: there is nothing to do."""
        items, length = _arguments(iterables)
        if items is None:
            return None
        if not self._is_quick:
            self._prepare(1 if length < 0 else -(-length // chunksize))
            if length < 0 and not self._crew.is_full:
                items = self._growing(items, chunksize)
        if len(iterables) > 1:
            order = _core.ORDER_STAR if chunksize == 1 else _core.ORDER_STARCHUNK
        else:
            order = _core.ORDER_CALL if chunksize == 1 else _core.ORDER_CHUNK
        job = _Map()
        how = (chunksize, length, *self._how[2:])
        crew = self._crew
        try:
            if crew._begin(job, _core.JOB_ORDERED, order, fn, items, *how):
                is_whole = crew._feed(job, True)  # here and now
                if not is_whole:
                    self._refuse()
        except (ValueError, BrokenProcessPool):
            if job._crew is None:
                self._refuse()
            raise
        return job

    def _growing(self, items, chunksize):
        """The items; where there are more tasks than workers, those are started."""
        for count, item in enumerate(items):
            if count % chunksize == 0:
                self._crew.have(min(count // chunksize + 1, self._max_workers))
            yield item

    # -- The end --

    def shutdown(self, wait=True, *, cancel_futures=False):
        if self._is_stdlib:
            super().shutdown(wait, cancel_futures=cancel_futures)
            return
        with self._shutdown_lock:
            self._cancel_pending_futures = cancel_futures
            self._shutdown_thread = True
            self._is_quick = False
        crew, service = self._crew, self._executor_manager_thread
        if crew is not None and crew._is_here:
            crew._close()
            if cancel_futures:
                crew.cancel_all()
            if wait and service is not None:
                with crew.aside():
                    service.join()
            elif wait and (self._broken or self._force_shutting_down):
                # It was shut down before, without waiting: its workers end now.
                crew._join_service()
        self._executor_manager_thread = None
        self._call_queue = None
        self._processes = None

    shutdown.__doc__ = Executor.shutdown.__doc__

    def _force_shutdown(self, operation):
        """End or kill the workers in the middle of what they do; see terminate_workers()."""
        if self._is_stdlib and hasattr(_StdExecutor, "_force_shutdown"):
            super()._force_shutdown(operation)
            return
        if operation not in (_TERMINATE, _KILL):
            raise ValueError(f"Unsupported operation: {operation!r}")
        # From here on no worker is replaced, which would not be among these.
        with self._shutdown_lock:
            self._force_shutting_down = True
        # Also where it was shut down before, and shows none any more.
        processes = [] if self._crew is None else list(self._crew.by_pid.values())
        self.shutdown(wait=False, cancel_futures=True)
        for worker in processes:
            try:
                if worker.is_alive():
                    worker.terminate() if operation == _TERMINATE else worker.kill()
            except (ValueError, ProcessLookupError):
                continue  # it has ended, and was closed

    def terminate_workers(self):
        """Attempts to terminate the executor's workers.
        Iterates through all of the current worker processes and terminates
        each one that is still alive.

        After terminating workers, the pool will be in a broken state
        and no longer usable (for instance, new tasks should not be
        submitted).
        """
        return self._force_shutdown(operation=_TERMINATE)

    def kill_workers(self):
        """Attempts to kill the executor's workers.
        Iterates through all of the current worker processes and kills
        each one that is still alive.

        After killing workers, the pool will be in a broken state
        and no longer usable (for instance, new tasks should not be
        submitted).
        """
        return self._force_shutdown(operation=_KILL)


# ---- map() ---------------------------------------------------------------------------------------


def _arguments(iterables):
    """(their iterator, how many they are, or -1); (None, 0): there are none.

    Of one iterable as they are; else tuples of one of each.
    """
    if iterables and all(type(iterable) in (list, tuple, range) for iterable in iterables):
        first = iterables[0]
        if len(iterables) > 1:
            first = list(zip(*iterables, strict=False))
        elif type(first) is list:
            first = first.copy()
        return (iter(first), len(first)) if len(first) else (None, 0)
    rest = iter(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)
    first = list(itertools.islice(rest, 1))
    return (itertools.chain(first, rest), -1) if first else (None, 0)


def _chunk_size(chunksize):
    """As an int; what is none is an error of what the standard library divides the items by."""
    if type(chunksize) is not int:
        if hasattr(_std, "_get_chunks"):
            next(_std._get_chunks((), chunksize=chunksize), None)
        else:
            itertools.batched((), chunksize)
    return operator.index(chunksize)


def _take_all(job, end):
    """What the job gives, in order; what nobody waits for any more is cancelled."""
    try:
        if end is None:
            yield from job
        else:
            yield from _take_until(job, end)
    finally:
        job.cancel()


def _take_until(job, end):
    while True:
        try:
            result = job.next(end - time.monotonic())
        except StopIteration:
            return
        yield result
        del result


def _chain(lists):
    """Their items; without a reference to one that was yielded."""
    for results in lists:
        results.reverse()
        while results:
            yield results.pop()


def _call_chunk(fn, chunk):
    return [fn(*args) for args in chunk]


def _submit_all(executor, fn, arguments, chunksize, buffersize, end):
    """The standard library's way of map(): with submit()."""
    if chunksize == 1:
        calls = ((fn, *args) for args in arguments)
    else:
        chunks = iter(lambda: tuple(itertools.islice(arguments, chunksize)), ())
        calls = ((_call_chunk, fn, chunk) for chunk in chunks)
    futures = deque(executor.submit(*call) for call in itertools.islice(calls, buffersize))
    # The executor may be collected while there are results to come.
    executor = weakref.ref(executor)

    def results():
        try:
            while futures:
                if buffersize and (alive := executor()) and (call := next(calls, None)):
                    futures.append(alive.submit(*call))
                    del alive, call
                left = None if end is None else end - time.monotonic()
                yield _base._result_or_cancel(futures.popleft(), left)
        finally:
            for future in futures:
                future.cancel()

    return results()
