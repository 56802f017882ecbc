"""The workers of pools and executors: how they start, what they are, and what becomes of them.

The tasks are C's (src/py/crew.c and worker.c); here are the processes.  A crew has lanes, one for
each worker; a worker that ends leaves its lane to the next one.  Whoever drives the crew (see
src/py/engine.h) calls `_maintain` when a worker has ended, `_kill` and `_make_timeout` for a task
that takes too long.  A service thread is started with the first job that nobody waits for at once.
"""

import contextlib
import functools
import os
import pickle
import signal
import sys
import threading
import time

from mproc_ext import _arena, _core, connection, context, reduction, util
from mproc_ext._modules import stdlib

_pool = stdlib("pool")
_util = stdlib("util")

__all__ = ()

# Seconds.
_GRACE = 5.0  # between asking a worker to end and killing it
_LOOK = 0.2  # between two looks at the memory of workers

# So many workers in a row that could not begin break the crew: that said why, ended by themselves
# or died in their initializer; and that were killed before that, maybe by somebody else.
_TRIES = 3
_TRIES_KILLED = 100


class WorkerLostError(RuntimeError):
    """A worker died in the middle of a task, or ended: the task has no result.

    pid, exitcode: of the worker; exitcode is negative where a signal has killed it, as that of a
    Process.  task: what it was doing, as a string; or None.
    """

    def __init__(self, message, pid=None, exitcode=None, task=None):
        super().__init__(message)
        self.pid = pid
        self.exitcode = exitcode
        self.task = task

    def __reduce__(self):
        return type(self), (self.args[0], self.pid, self.exitcode, self.task)


class TaskTimeoutError(context.TimeoutError):
    """A task took longer than its timeout; its worker was killed and replaced."""


class BrokenPoolError(RuntimeError):
    """The pool does no task any more: it was terminated, or its workers do not start."""


class CurrentWorker:
    """What a worker of a pool is, for the code that runs in it.

    id: 0 to the number of workers - 1; who replaces a worker has its id.  state: a dict for the
    program, kept from task to task.
    """

    def __init__(self, worker_id):
        self.id = worker_id
        self.state = {}

    def __repr__(self):
        return f"<worker {self.id}>"


_current = None


def current_worker():
    """The worker that this code runs in; None in a process that is no worker of a pool."""
    return _current


class ByValue:
    """A function that is sent by its code, not by its name, as it is now.

    Where that cannot be, it is an error of whoever sends it.
    """

    def __init__(self, function):
        import cloudpickle

        self._function = function
        self.__qualname__ = name_of(function)
        self._error = None
        try:
            self._pickle = cloudpickle.dumps(function)
        except Exception as error:
            self._error = error

    def __call__(self, *args):
        return self._function(*args)

    def __reduce__(self):
        if self._error is not None:
            raise self._error
        import cloudpickle

        return cloudpickle.loads, (self._pickle,)


class Options:
    """How workers are: what `Pool` and `ProcessPoolExecutor` are told, checked."""

    def __init__(
        self,
        initializer=None,
        initargs=(),
        maxtasks=None,
        worker_exit=None,
        max_memory=None,
        cpus=None,
        max_restarts=None,
    ):
        if worker_exit is not None and not callable(worker_exit):
            raise TypeError("worker_exit must be a callable")
        self.initializer = initializer
        self.initargs = initargs
        self.maxtasks = maxtasks or 0
        self.worker_exit = worker_exit
        self.soft_memory, self.hard_memory = _memory_limits(max_memory)
        self.cpus = _cpu_sets(cpus)
        self.max_restarts = _restarts(max_restarts)

    def send_by_value(self):
        """The functions, for start methods that pickle them."""
        if self.initializer is not None:
            self.initializer = ByValue(self.initializer)
        if self.worker_exit is not None:
            self.worker_exit = ByValue(self.worker_exit)

    def __getstate__(self):
        # What the program has given is unpickled where an error can be told to the parent.
        start = bytes(reduction.ForkingPickler.dumps((self.initializer, self.initargs)))
        return {**self.__dict__, "initializer": None, "initargs": (), "_start": start}

    _start = None

    def unpack(self):
        if self._start is not None:
            self.initializer, self.initargs = pickle.loads(self._start)


def _is_int(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _memory_limits(limits):
    if limits is None:
        return None, None
    soft, hard = limits if isinstance(limits, tuple) and len(limits) == 2 else (limits, None)
    for limit in (soft, hard):
        if limit is not None and not _is_int(limit):
            raise TypeError(f"max_memory must be an int of bytes, or (soft, hard), not {limits!r}")
        if limit is not None and limit <= 0:
            raise ValueError(f"max_memory must be above 0 bytes, not {limits!r}")
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(f"max_memory must be (soft, hard), the larger one last, not {limits!r}")
    return soft, hard


def _cpu_sets(cpus):
    if cpus is None:
        return None
    try:
        sets = [{cpu} if isinstance(cpu, int) else set(cpu) for cpu in cpus]
    except TypeError:
        sets = [{None}]
    if not all(_is_int(cpu) for each in sets for cpu in each):
        raise TypeError(f"cpus must be a sequence of ints, or of sets of ints, not {cpus!r}")
    if not sets or not all(sets):
        raise ValueError("cpus must have a CPU, or a set of CPUs, for each worker in turn")
    if any(cpu < 0 for each in sets for cpu in each):
        raise ValueError(f"cpus must be numbers of CPUs, not {cpus!r}")
    return sets


def _restarts(limit):
    if limit is None:
        return None
    try:
        count, seconds = limit
        is_wrong = count < 0 or not seconds > 0
    except (TypeError, ValueError):
        raise TypeError(f"max_restarts must be (count, seconds), not {limit!r}") from None
    if is_wrong:
        raise ValueError(
            f"max_restarts must be a count of 0 or more, and seconds above 0, not {limit!r}"
        )
    return count, seconds


# ---- In the worker -----------------------------------------------------------------------------


class _Failure(_pool.ExceptionWithTraceback):
    """An exception as it is sent: with its traceback, which is there also where it cannot be
    unpickled."""

    def __reduce__(self):
        return _rebuild, (bytes(reduction.ForkingPickler.dumps(self.exc)), self.tb)


# It is shown, where it cannot be pickled, as the stdlib's.
_Failure.__qualname__ = "ExceptionWithTraceback"
_Failure.__module__ = "multiprocessing.pool"


def _rebuild(data, traceback):
    try:
        error = pickle.loads(data)
    except Exception as reason:  # a constructor with other arguments, mostly
        error = reason
    return _pool.rebuild_exc(error, traceback)


def _failure(error):
    return _Failure(error, error.__traceback__)


def _apply(function, args, kwds):
    return function(*args, **kwds)


def _unsendable(reason, value):
    """What is sent in place of what cannot be pickled."""
    try:
        return _pool.MaybeEncodingError(reason, value)
    except Exception as error:  # it cannot be shown either
        return _failure(error)


def _be_pools():
    """What a worker answers is a pool's; that of an executor may have forked this process."""
    _core.serve_pools(context.TimeoutError, _failure, _unsendable, _apply)


_be_pools()


def _memory(pid="self"):
    """Bytes of memory that a process has."""
    with open(f"/proc/{pid}/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _say_why(crew, lane, error):
    """Why this worker does not begin; a short form of it where that cannot be sent."""
    for reason in (error, RuntimeError(f"{type(error).__name__}: {error}"[:1000])):
        with contextlib.suppress(Exception):
            _core.say_why(crew, lane, pickle.dumps(_failure(reason)))
            return


def _forget_worker():
    global _current
    _current = None


def _begin_work(crew, place, lane, options):
    global _current
    _current = CurrentWorker(place)
    os.register_at_fork(after_in_child=_forget_worker)  # its children are no workers
    if options.cpus is not None:
        os.sched_setaffinity(0, options.cpus[place % len(options.cpus)])
    options.unpack()
    if options.initializer is not None:
        _core.say_why(crew, lane, b"")
        options.initializer(*options.initargs)


def work(crew, place, lane, options):
    """What the process of a worker runs."""
    _be_pools()
    try:
        _begin_work(crew, place, lane, options)
    except BaseException as error:
        _say_why(crew, lane, error)
        raise
    try:
        do_tasks(crew, lane, options, 0)
    except BaseException as error:  # of a task, which is lost with this worker
        _say_why(crew, lane, error)
        raise


def do_tasks(crew, lane, options, manners):
    """Until there are no more; manners: see _core.work()."""
    after = None
    if options.soft_memory is not None:
        after = lambda: _memory() > options.soft_memory  # noqa: E731
    if not _core.work(crew, lane, options.maxtasks, after, manners):
        sys.exit(1)
    if options.worker_exit is not None:
        options.worker_exit()
    util.debug("worker exiting")


# ---- In the parent -----------------------------------------------------------------------------


class Crew(_core.Crew):
    """The workers of a pool, and who looks after them."""

    # What an executor has otherwise.
    broken_error = BrokenPoolError
    name = "pool"
    service_is_daemon = True  # the interpreter does not wait for it

    def __init__(self, make_process, options):
        self._is_fork_ctx = True
        self._make(options.maxtasks)
        self._make_process = make_process
        self._options = options
        self.processes = []  # those that live, as the pool shows them
        self._places = []  # by lane: a process, or None
        self._wanted_workers = 0
        self._failed_to_begin = self._killed_at_start = 0
        self._restarted = []
        self._given_up = set()  # processes that were killed for a task, not by one
        self._too_large = {}  # by number of a process that was killed for it: bytes of memory
        self._is_stopping = False  # workers that end are not replaced
        self._service = None
        self._service_lock = threading.Lock()
        self._next_look = 0.0
        self._looks_at_memory = options.hard_memory is not None

    def __getstate__(self):
        return _arena.hand_over(self)

    def __setstate__(self, state):
        self._take(*_arena.take_over(*state))

    # -- Workers --

    def start(self, count):
        """Have so many workers, and start those that are missing."""
        self._check_here()
        with self.turn():
            self._wanted_workers = count
            while len(self._places) < count:
                self._add_lane()
                self._places.append(None)
            self._fill()

    def resize(self, count):
        """As start(); those that are too many end after the tasks that they have."""
        with self.turn():
            if self._broken is not None:
                raise self._broken
            self.start(count)
            for place in range(count, len(self._places)):
                if self._places[place] is not None:
                    self._stop(place)
        # Who ends, or is to come after one that ends, does not wait for the next call.
        self.need_service()

    def _check_here(self):
        if not self._is_here:
            raise ValueError("Pool not running: it belongs to the process that has made it")

    def _fill(self):
        for place in range(self._wanted_workers):
            if self._places[place] is None:
                self._start_worker(place)

    def _start_worker(self, place):
        lane, _, _ = self._lane(place)
        process = self._new_process(place, lane)
        try:
            self._launch(process)
            self._seat(place, process)
        except BaseException:
            self._undo_start(place, process)
            raise

    def _new_process(self, place, lane):
        return self._make_process(work, (self, place, lane, self._options))

    def _launch(self, process):
        process.start()
        util.debug("added worker")

    def _seat(self, place, process):
        self._open(place, process.sentinel)
        self._places[place] = process
        self.processes.append(process)

    def _undo_start(self, place, process):
        """What has come between, Ctrl-C mostly, leaves no worker that nobody knows: the next one is
        given its lane."""
        pid = process.pid
        if pid is None:  # it was not started
            return
        process.kill()
        process.join()
        self._places[place] = None
        if process in self.processes:
            self.processes.remove(process)
        self._bury(
            place,
            lambda job, index, _: self._make_lost(pid, process.exitcode, job._describe(index)),
        )

    def _maintain(self):
        """Bury the workers that have ended, and start others.  Whoever drives calls this."""
        for place, process in enumerate(self._places):
            if process is None:
                continue
            if self._lane(place)[2] and process.exitcode is None:
                process.kill()
                process.join()
            if process.exitcode is not None:
                self._end_worker(place, process)
                self._too_large.pop(process.pid, None)
                self._given_up.discard(process)
        if not self._is_stopping and self._broken is None:
            self._refill()

    def _refill(self):
        try:
            self._fill()
        except Exception as error:
            # Without a process, a thread or a descriptor to be had: the others go on, and it is
            # tried again with the next one that ends.
            if not self.processes:
                self._fail(error, f"the {self.name} has no worker, and cannot start one: {error!r}")

    def _end_worker(self, place, process):
        util.debug(f"cleaning up worker {place}")
        pid, exitcode = process.pid, process.exitcode
        lost = []

        def make_error(job, index, why):
            error = self._make_lost(pid, exitcode, job._describe(index))
            error.__cause__ = why  # before anybody has it
            lost.append(error)
            return error

        self._places[place] = None
        if process in self.processes:
            self.processes.remove(process)
        process.join()
        has_begun, is_ready, why = self._bury(place, make_error)
        if not self._is_stopping and self._broken is None:
            self._count_death(place, process, has_begun, is_ready, lost[-1] if lost else why)

    def _count_death(self, place, process, has_begun, is_ready, why):
        """why: what tells most of it, an exception; or None."""
        pid, exitcode = process.pid, process.exitcode
        if is_ready:
            self._failed_to_begin = self._killed_at_start = 0
        elif place < self._wanted_workers:
            self._failed_to_begin += has_begun or exitcode >= 0
            self._killed_at_start += 1
            if self._failed_to_begin >= _TRIES or self._killed_at_start >= _TRIES_KILLED:
                message = f"{self._killed_at_start} workers ended before their first task"
                why = why or self._make_lost(pid, exitcode, "its start")
                self._fail(why, f"{message}, the last one with exit code {exitcode}")
                return
        if exitcode != 0 and process not in self._given_up:
            self._count_restart(
                why or self._make_lost(pid, exitcode, None if is_ready else "its start")
            )

    def _count_restart(self, why):
        limit = self._options.max_restarts
        if limit is None:
            return
        count, seconds = limit
        now = time.monotonic()
        self._restarted = [at for at in self._restarted if now - at < seconds] + [now]
        if len(self._restarted) > count:
            self._fail(why, f"{len(self._restarted)} workers have died within {seconds} s")

    def _fail(self, cause, message):
        error = self.broken_error(f"{message}: the {self.name} does no task any more")
        error.__cause__ = cause
        self._break(error)
        self._end_all()

    def _end_all(self):
        """The crew is broken."""
        self._close()
        for process in self.processes:
            process.terminate()

    def _make_lost(self, pid, exitcode, task):
        how = f"was killed by {_signal_name(-exitcode)}" if exitcode < 0 else "ended"
        how += "" if exitcode < 0 else f" with exit code {exitcode}"
        if pid in self._too_large:
            how += f", as it had {self._too_large[pid]} bytes of memory,"
        where = "between two tasks" if task is None else f"in the middle of {task}"
        return WorkerLostError(f"worker {pid} {how} {where}", pid, exitcode, task)

    def _make_timeout(self, place, job, index):
        return TaskTimeoutError(
            f"{job._describe(index)} took longer than {job._timeout} s; worker "
            f"{self._places[place].pid} was killed"
        )

    def _kill(self, place):
        """For a task that is not wanted any more: that is no death to be counted."""
        process = self._places[place]
        if process is not None:
            self._given_up.add(process)
            process.kill()

    def _is_interrupt(self, error):
        """Whether a signal's handler has raised it: it came through the handler's code."""
        if threading.get_ident() != threading.main_thread().ident:
            return False
        codes = set(map(_code_of, map(signal.getsignal, signal.valid_signals())))
        traceback = error.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code in codes:
                return True
            traceback = traceback.tb_next
        return False

    # -- The service thread --

    def need_service(self):
        """Have a service thread, which somebody is to rely on."""
        if self._service is None and self._is_here:
            with self._service_lock:
                if self._service is None:
                    thread = threading.Thread(
                        target=self._run_service,
                        name=f"mproc_ext-{self.name}",
                        daemon=self.service_is_daemon,
                    )
                    thread.start()
                    self._service = thread

    def _run_service(self):
        try:
            while (todo := self._serve()) != _core.SERVICE_END:
                if todo == _core.SERVICE_CALLBACKS:
                    self._run_settled()
        except BaseException as error:
            # Nobody would look after the workers, nor after jobs that nobody waits for.
            with self.turn():
                self._fail_service(error)
            self._run_settled()
        self._end_service()

    def _fail_service(self, error):
        self._fail(error, f"the service thread has failed: {error!r}")

    def _end_service(self):
        if not self._is_stopping and self._broken is None:
            self.stop_workers()

    def feed(self, job):
        """Have the items of the job drawn by a thread: they may take as long as they like."""
        name = f"mproc_ext-{self.name}-items"
        threading.Thread(target=self._feed, args=(job, False), name=name, daemon=True).start()

    def _run_settled(self):
        while (job := self._next_settled()) is not None:
            try:
                job._call_callbacks()
            except BaseException:
                threading.excepthook(
                    threading.ExceptHookArgs((*sys.exc_info(), threading.current_thread()))
                )
            finally:
                self._set_done(job)
            job = None

    def _look_at_memory(self):
        """Kill the workers that have more than they may.  Whoever drives calls this."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK
        for process in self.processes:
            try:
                memory = _memory(process.pid)
            except (OSError, ValueError, IndexError):  # it has ended
                continue
            if memory > self._options.hard_memory:
                self._too_large[process.pid] = memory
                process.kill()

    # -- The end --

    def close(self):
        """No job comes after those that there are: the workers end when they are done."""
        if not self._is_here:
            return
        self._close()
        if self._unfinished:
            self.need_service()
        else:
            self.stop_workers()

    def stop_workers(self):
        with self.turn():
            self._is_stopping = True
            for place, process in enumerate(self._places):
                if process is not None and not self._stop(place):
                    process.terminate()

    def join(self):
        """Wait for all jobs and workers, after close() or terminate()."""
        self._check_here()
        self._drain(None)
        if not self._is_stopping:
            self.stop_workers()
        self._join_service()
        for process in list(self.processes):
            process.join()
        self._bury_all()

    def _bury_all(self):
        with self.turn():
            for place, process in enumerate(self._places):
                if process is not None and not process.is_alive():
                    self._places[place] = None
                    self._bury(place, lambda job, index, why: self._broken)

    def _join_service(self):
        service = self._service
        if service is not None and service is not threading.current_thread():
            with self.aside():
                service.join()

    def terminate(self, error=None):
        """End at once: jobs fail, workers are killed in the middle of what they do."""
        if not self._is_here:
            return
        with self.turn():
            self._is_stopping = True
            if _util._exiting:
                # Threads that wait for a job are daemons, which are to see nothing of the end.
                self._be_over()
            else:
                if error is None:
                    error = self.broken_error(f"the {self.name} was terminated")
                self._break(error)
                self._close()
        processes = list(self.processes)
        for process in processes:
            if process.exitcode is None:
                process.terminate()
        # A worker that has a handler for that signal ends by this, when it has nothing to do.
        with self.turn():
            for place, process in enumerate(self._places):
                if process is not None:
                    self._stop(place)
        _join_all(processes)
        # At the interpreter's end too: a callback that has begun is not cut off in the middle.
        self._join_service()

    def _raise_over(self):
        """In a callback that the interpreter waits for before it ends."""
        raise self.broken_error(f"the {self.name} does no task any more: the interpreter ends")


def is_served(cls, own, not_honoured, ctx):
    """Whether the engine can serve a class that is *own*, or derived from it, with that context:
    not where it overrides something that there is only in the stdlib's."""
    if not isinstance(ctx, context.BaseContext):
        return False
    for base in cls.__mro__:
        if base is own:
            return True
        if not not_honoured.isdisjoint(base.__dict__):
            return False
    return False


def _join_all(processes):
    """Wait until all have ended; who has not after a time is killed."""
    deadline = time.monotonic() + _GRACE
    waiting = {process.sentinel: process for process in processes if process.exitcode is None}
    while waiting and (left := deadline - time.monotonic()) > 0:
        for sentinel in connection.wait(list(waiting), left):
            waiting.pop(sentinel).join()
    for process in waiting.values():
        process.kill()
    for process in waiting.values():
        process.join()


def _code_of(handler):
    """That of a signal's handler, None where it has none in Python."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if not hasattr(handler, "__code__") and not hasattr(handler, "__func__"):
        handler = getattr(type(handler), "__call__", None)  # noqa: B004
    return getattr(getattr(handler, "__func__", handler), "__code__", None)


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


class Job:
    """What jobs have in common beside what is in C."""

    _timeout = None

    def _describe(self, index):
        """The task, for people who read that it was lost."""
        name = name_of(self._function)
        if self._chunk > 1:
            first = index * self._chunk
            return f"items {first} to {first + self._chunk - 1} of {name}"
        return f"task {index} of {name}" if self._is_many else name


def name_of(function):
    return getattr(function, "__qualname__", None) or repr(function)
