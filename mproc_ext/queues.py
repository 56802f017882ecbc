"""Queue, JoinableQueue and SimpleQueue, on a ring of messages in shared memory.

What counts is in C (src/py/queue.c, src/core/mpx_ring.h).  There is no feeder thread: an object is
pickled and in the queue when put() returns.  So a process that has put something can be joined
before the queue is drained, and what it has put is not lost when it is killed.

* A process that is killed at any point tears no message and strands nobody; a message is lost only
  with the consumer that had it in its hands.
* A queue without a limit grows, and gives its memory back when it has been drained.

A subclass that overrides what is not called here (`_feed`, `_start_thread`...) gets the stdlib's
code for its objects.
"""

import collections
import errno
import io
import operator
import os
import queue
import sys
import threading
from types import GenericAlias, TracebackType

from mproc_ext import (
    _arena,
    _core,
    _modules,
    connection,
    context,
    reduction,
    synchronize,
    util,
)

_std = _modules.overlay(__name__)

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]

_SEM_VALUE_MAX = synchronize.SEM_VALUE_MAX


class ShutDown(Exception):
    """Raised by put(), and by get() on an empty queue, once the queue has been shut down."""


ShutDown = getattr(queue, "ShutDown", ShutDown)
_core.serve_queues(queue.Empty, queue.Full, ShutDown)


class Channel(_core.Channel):
    """A ring of messages and its two ends; pickled only for a child that is being started."""

    def __getstate__(self):
        synchronize._assert_may_travel(self)
        self._check_ends()
        ends = self._ends()
        if -1 in ends:
            raise OSError("handle is closed")
        return (self._zero_copy, *_arena.hand_over(self), *map(reduction.DupFd, ends))

    def __setstate__(self, state):
        self._zero_copy, *where, reader, writer = state
        ends = [-1 if end is None else end.detach() for end in (reader, writer)]
        self._take(*_arena.take_over(*where), *ends)


def _escape(data):
    """Bytes as a message that is not taken for one of ours."""
    return bytes((_core.RAW_TAG,)) + data if len(data) and data[0] >= _core.FIRST_TAG else data


def _unescape(message):
    """The bytes of a message; of an object that was put, its pickle."""
    if not message or message[0] < _core.FIRST_TAG:
        return message
    if message[0] == _core.RAW_TAG:
        return message[1:]
    return bytes(_std._ForkingPickler.dumps(_core.loads(message)))


# So long a wait for bytes does not see what poll() has taken, in seconds.
_PIECE = 0.1


class _Kept(list):
    """The message that poll() has taken, if any, in a thread that has the readers' lock.

    Who polls with that lock relies on it that no other reader takes what is there; ours do not know
    the lock.  So while the lock is held it is its holder's, and then whoever's in this process.
    """

    lock = None
    pid = None  # of who has taken it: a forked child has a copy

    def keep(self, data):
        self[:] = [data]
        self.pid = os.getpid()

    def is_here(self):
        return bool(self) and self.pid == os.getpid()

    def is_locked_here(self):
        return self.lock is not None and self.lock._semlock._is_mine()

    def take(self):
        if self.is_here() and (self.is_locked_here() or not self.lock._semlock._is_zero()):
            try:
                return self.pop()
            except IndexError:
                pass  # another thread was first
        return None


class _End(connection.Connection):
    """One end of a channel, as the connection that it is in the stdlib's queues."""

    def __init__(self, channel, is_reader):
        fd = channel._ends()[0 if is_reader else 1]
        super().__init__(max(fd, 0), is_reader, not is_reader)
        if fd < 0:
            self._handle = None
        self._channel = channel
        self._kept = _Kept()
        self._objects = _core.SimpleQueue()
        self._objects._hold(channel, False, connection._std.__dict__)
        self._objects._share(self._kept)

    def _close(self):
        if self._readable:
            self._channel._close_reader()
        else:
            self._channel._close_writer()

    def fileno(self):
        """The descriptor: it is readable where there is a message."""
        self._check_closed()
        self._channel._check_ends()
        if self._readable:
            self._channel._watch()
        return self._handle

    def send(self, obj):
        self._check_closed()
        self._check_writable()
        self._objects.put(obj)

    def recv(self):
        self._check_closed()
        self._check_readable()
        return self._objects.get()

    def _send_bytes(self, buf):
        self._channel._send_bytes(_escape(buf))

    def _recv_bytes(self, maxsize=None):
        while (data := self._kept.take()) is None:
            data = self._channel._receive_bytes(_PIECE)
            if data is not None:
                break
        data = _unescape(data)
        if maxsize is not None and len(data) > maxsize:
            return None
        buf = io.BytesIO()
        buf.write(data)
        return buf

    def _poll(self, timeout):
        if self._kept.is_here():
            return True
        if not self._kept.is_locked_here():
            return self._channel._poll(timeout)
        try:
            data = self._channel._receive_bytes(timeout)
        except EOFError:
            return True
        if data is not None:
            self._kept.keep(data)
            self._channel._set_aside()
        return data is not None

    def __reduce__(self):
        """For a child, which gets this end alone: it must not count as one that has the other."""
        context.assert_spawning(self)
        self._check_closed()
        self._channel._check_ends()
        ends = self._channel._ends()
        mine = ends[0 if self._readable else 1]
        state = [self._channel._zero_copy, *_arena.hand_over(self._channel), None, None]
        state[-2 if self._readable else -1] = reduction.DupFd(mine)
        return _end_of, (state, self._readable)


def _end_of(state, is_reader):
    channel = Channel()
    channel.__setstate__(state)
    return _End(channel, is_reader)


class _Part:
    """An attribute of the stdlib's queues that is made when somebody asks for it.

    A class with a __getattr__ would do too, but then the interpreter looks up put() and get() in
    the slow way.
    """

    names = set()

    def __init__(self, make):
        self._make = make

    def __set_name__(self, cls, name):
        self._name = name
        self.names.add(name)

    def __get__(self, queue, cls=None):
        if queue is None:
            return self
        if queue._channel is None:
            cls = type(queue).__name__
            raise AttributeError(f"{cls!r} object has no attribute {self._name!r}")
        return queue.__dict__.setdefault(self._name, self._make(queue))


class _Ended:
    """What queues have in common: the two ends, and the locks of the stdlib's."""

    def _end(self, name):
        # Both: a connection closes its end when it is dropped, and so they have to go together.
        for key in ("_reader", "_writer"):
            end = _End(self._channel, key == "_reader")
            if self.__dict__.setdefault(key, end) is not end:
                end._handle = None  # another thread was first
        return self.__dict__[name]

    def _new_lock(self):
        return synchronize.Lock(ctx=context._default_context.get_context())

    def _new_read_lock(self):
        lock = self._new_lock()
        reader = self._reader
        kept = reader._kept
        if kept.lock is None:
            self._share(kept)
            kept.lock = lock
        return kept.lock

    _reader = _Part(lambda self: self._end("_reader"))
    _writer = _Part(lambda self: self._end("_writer"))
    _poll = _Part(lambda self: self._reader.poll)

    # Nothing here needs the locks; Pool holds one while it drains a queue.
    _rlock = _Part(_new_read_lock)
    _wlock = _Part(_new_lock)

    def _begin(self, channel, is_limited):
        if self._channel is not None:  # it is initialised again
            for name in (*_Part.names, "_ignore_epipe", "_joincancelled"):
                self.__dict__.pop(name, None)
        self._hold(channel, is_limited, _std.__dict__)

    def _close_ends(self):
        for name, close in (
            ("_reader", self._channel._close_reader),
            ("_writer", self._channel._close_writer),
        ):
            end = self.__dict__.get(name)
            (close if end is None else end.close)()


def _make_channel(limit, max_bytes, ctx, zero_copy):
    channel = Channel()
    channel._zero_copy = bool(zero_copy)
    channel._is_fork_ctx = synchronize._is_fork(ctx)
    channel._make(limit, max_bytes)
    return channel


# What a subclass may override that is not called here: with any of it, it is the stdlib's.
_NOT_HONOURED = frozenset(
    "_feed _start_thread _reset _after_fork _finalize_join _finalize_close "
    "__getstate__ __setstate__".split()
)


def _is_stdlibs(cls, ours):
    for base in cls.__mro__:
        if base in ours:
            return False
        if not _NOT_HONOURED.isdisjoint(base.__dict__):
            return True
    return False


def _no_limit_of_bytes(max_bytes):
    if max_bytes > 0:
        raise NotImplementedError("max_bytes of a queue that is the standard library's")


def _with_callers(traceback, frame):
    """A traceback that begins where the program does: it shows who put the object."""
    while frame is not None:
        traceback = TracebackType(traceback, frame, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return traceback


@_core.own_methods
class Queue(_core.Queue, _Ended, _std.Queue):
    """A queue of objects for any number of processes and threads; see queue.Queue.

    It goes to other processes as an argument of a Process, or by fork; not through another queue.
    An object is in the queue when put() returns, and is pickled in the thread that puts it: there
    is no feeder thread.  It is lost neither with the process that has put it nor, but for the one
    that it had just taken, with a process that gets.

    *maxsize* is how many objects are in it at most: then put() waits for room.  Without it (0, or
    below) the queue grows as needed, and gives the memory back when it is drained.

    *max_bytes* is how many bytes the pickles of what is in it have at most: put() waits for room
    as it does with *maxsize*, and raises ValueError for an object that is larger by itself.

    With *zero_copy*, get() does not copy the large buffers of an object (64 KB and more: those of
    numpy arrays, and of whatever gives pickle's protocol 5 a PickleBuffer).  A numpy array then
    lies in the shared memory that it came in, writable if the one that was put is, but it does not
    own its data and cannot be resized; a PickleBuffer arrives as a memoryview.  The memory is only
    this process's, until nothing uses it any more.  A child that is forked meanwhile has it too:
    both see what either writes, and it is free when both are done with it or dead.  A process has
    at most a quarter of the memory on loan that could be had when it first got something so; what
    is beyond that is copied, into memory of its own.

    A thread of one process may fork while another one puts or gets: the child's copy of the queue
    works.  A subclass that overrides what is not called here (`_feed`, `_start_thread`...) is the
    standard library's, without *max_bytes* and what else that does not have.

    TypeError, ValueError: what the semaphore of the standard library's queue says of a *maxsize*
    that is no int, or too large.  OSError: no descriptor or no memory is left.
    """

    def __init__(self, maxsize=0, *, max_bytes=0, zero_copy=False, ctx):
        max_bytes = max(operator.index(max_bytes), 0)
        if _is_stdlibs(type(self), _OURS):
            _no_limit_of_bytes(max_bytes)
            _std.Queue.__init__(self, maxsize, ctx=ctx)
            return
        if maxsize <= 0:
            maxsize = _SEM_VALUE_MAX
        elif type(maxsize) is not int or maxsize > _SEM_VALUE_MAX:
            ctx.BoundedSemaphore(maxsize)  # raises what it does where that is no such number
            if not isinstance(maxsize, int):
                maxsize = operator.index(maxsize)
        self._maxsize = maxsize
        self._opid = os.getpid()
        self._begin(_make_channel(operator.index(maxsize), max_bytes, ctx, zero_copy))

    # As the stdlib sets it on each object: here where it is anything else, as the interpreter finds
    # methods soonest of an object whose dict has not been made.
    _ignore_epipe = False
    _close = _thread = _jointhread = None
    _joincancelled = False

    # What programs look at: nothing waits to be sent.
    _buffer = _Part(lambda self: collections.deque())
    _notempty = _Part(lambda self: threading.Condition(threading.Lock()))
    _recv_bytes = _Part(lambda self: self._reader.recv_bytes)
    _send_bytes = _Part(lambda self: self._writer.send_bytes)
    _sem = _Part(lambda self: synchronize._Count(lambda: self._maxsize - self.qsize()))

    def _begin(self, channel):
        super()._begin(channel, self._maxsize < _SEM_VALUE_MAX or channel._max_bytes() > 0)
        self._closed = False

    def __getstate__(self):
        if self._channel is None:
            return super().__getstate__()
        context.assert_spawning(self)
        return self._ignore_epipe, self._maxsize, self._channel, self._opid

    def __setstate__(self, state):
        if len(state) != 4:
            super().__setstate__(state)
            return
        ignore_epipe, self._maxsize, channel, self._opid = state
        self._begin(channel)
        if ignore_epipe:
            self._ignore_epipe = ignore_epipe

    def _dumps_in_thread(self, obj):
        """The message of an object, made in a thread, whose stack is empty."""
        made = []

        def dumps():
            try:
                made.append((_core.dumps(obj, _std.__dict__), None))
            except BaseException as error:
                made.append((None, error))

        thread = threading.Thread(target=dumps, daemon=True)
        thread.start()
        thread.join()
        message, error = made.pop()
        if error is not None:
            raise error
        return message

    def _on_unsent(self, error, obj):
        """What the stdlib's feeder thread does, in the thread that called put()."""
        if self._ignore_epipe and getattr(error, "errno", 0) == errno.EPIPE:
            return
        if util.is_exiting():
            util.info("error in queue thread: %s", error)
            return
        if self._on_queue_feeder_error is Queue._on_queue_feeder_error:
            error.__traceback__ = _with_callers(error.__traceback__, sys._getframe().f_back)
        self._on_queue_feeder_error(error, obj)

    def close(self):
        """Put and get nothing more in this process: both raise ValueError.

        What has been put is in the queue, for the other processes.
        """
        if self._channel is None:
            super().close()
            return
        self._closed = True
        if self._used:  # else it does nothing more in the stdlib either
            self._close_ends()

    def join_thread(self):
        """Return at once: what was put is in the queue.  AssertionError: not without close()."""
        if self._channel is None:
            super().join_thread()
            return
        util.debug("Queue.join_thread()")
        assert self._closed, f"Queue {self!r} not closed"

    def cancel_join_thread(self):
        """Nothing: this process does not wait at its end, and loses nothing by that."""
        if self._channel is None:
            super().cancel_join_thread()
            return
        util.debug("Queue.cancel_join_thread()")
        self._joincancelled = True

    def _terminate_broken(self):
        self._reader.close()
        self.close()
        self.join_thread()

    def shutdown(self, immediate=False):
        """Let nothing be put from now on, by whichever process: put() raises ShutDown.

        get() goes on until the queue is empty, and then raises ShutDown too, also where it is just
        waiting.  With *immediate*, what is in the queue is dropped, and of a JoinableQueue counts
        as done.  Wakes all who wait, also if this process is killed on the way.
        """
        if self._channel is None:
            raise NotImplementedError("shutdown() of a queue that is the standard library's")
        self._channel._shut()
        while immediate and (self._drop_taken() or self._drop_kept() or self._channel._drop()):
            self._on_dropped()

    def _drop_kept(self):
        reader = self.__dict__.get("_reader")
        return reader is not None and reader._kept.take() is not None

    def _on_dropped(self):
        """One that was in the queue at its end is nobody's any more."""

    def stats(self):
        """Figures of the queue, all of one moment: a dict.

        * `puts`, `gets`: how many objects have been put and taken, ever, modulo 2**31.
        * `size`, `limit`: how many there are now, and may be (None: no limit).
        * `bytes`, `max_bytes`: how many bytes their pickles have, and may have.  Both are None
          without max_bytes: nobody counts them.
        * `memory`: bytes of shared memory that the queue takes, in pieces of 64 KB.
        * `deaths`: how many processes were killed in the middle of putting or taking something,
          and found out by the next one.
        """
        if self._channel is None:
            raise NotImplementedError("stats() of a queue that is the standard library's")
        puts, size, count, max_bytes, memory, deaths = self._channel._stats()
        return {
            "puts": puts,
            "gets": (puts - size) % 2**31,
            "size": size,
            "limit": self._maxsize if self._maxsize < _SEM_VALUE_MAX else None,
            "bytes": count if max_bytes else None,
            "max_bytes": max_bytes or None,
            "memory": memory,
            "deaths": deaths,
        }

    def __iter__(self):
        """The objects as they come, until the queue has been shut down and is empty."""
        while True:
            try:
                yield self.get()
            except ShutDown:
                return

    __class_getitem__ = classmethod(GenericAlias)


@_core.own_methods
class JoinableQueue(Queue, _std.JoinableQueue):
    """A queue whose consumers say of each object when they are done with it.

    Where a process ends that has taken objects and not said so, they stay unfinished, and join()
    waits for ever; with on_death='done' they count as done.  That goes by the process that took an
    object, however it ends, and not by its children.  Where other processes call task_done() for
    it, join() may wait until these takers have ended, too.

    *maxsize*, *max_bytes* and *zero_copy* as with Queue.  ValueError: *on_death* is anything else.
    """

    def __init__(self, maxsize=0, *, max_bytes=0, zero_copy=False, on_death=None, ctx):
        if on_death is not None and on_death != "done":
            raise ValueError(f"on_death must be None or 'done', not {on_death!r}")
        if _is_stdlibs(type(self), _OURS):
            if on_death is not None:
                raise NotImplementedError("on_death of a queue that is the standard library's")
            _no_limit_of_bytes(max_bytes)
            _std.JoinableQueue.__init__(self, maxsize, ctx=ctx)
            return
        Queue.__init__(self, maxsize, max_bytes=max_bytes, zero_copy=zero_copy, ctx=ctx)
        if on_death == "done":
            self._channel._count_takers()

    # Counts, for programs that look at them.
    _unfinished_tasks = _Part(lambda self: synchronize._Count(self._channel._unfinished))
    _cond = _Part(lambda self: synchronize.Condition(ctx=context._default_context.get_context()))

    def _on_dropped(self):
        self._channel._finish()

    def task_done(self):
        """Say that an object which get() returned is done with.

        Any process may say so.  ValueError: there are no more that have been put and are not done.
        """
        if self._channel is None:
            super().task_done()
        elif not self._channel._finish():
            raise ValueError("task_done() called too many times")

    def join(self):
        """Wait until every object that was put is done with: task_done() was called for each.

        An object counts from put() on, whether somebody has got it or not.
        """
        if self._channel is None:
            super().join()
        else:
            self._channel._join()


@_core.own_methods
class SimpleQueue(_core.SimpleQueue, _Ended, _std.SimpleQueue):
    """A queue without a limit, and without timeouts; *zero_copy* as with Queue.

    put() does not wait.  It raises what goes wrong when an object is pickled, where that of a Queue
    reports it and goes on.
    """

    def __init__(self, *, ctx, zero_copy=False):
        if _is_stdlibs(type(self), _OURS):
            _std.SimpleQueue.__init__(self, ctx=ctx)
        else:
            self._begin(_make_channel(0, 0, ctx, zero_copy), False)

    def __getstate__(self):
        if self._channel is None:
            return super().__getstate__()
        context.assert_spawning(self)
        return self._channel

    def __setstate__(self, state):
        if isinstance(state, tuple):
            super().__setstate__(state)
        else:
            self._begin(state, False)

    def close(self):
        """Close the queue in this process: put(), get() and empty() raise OSError."""
        if self._channel is None:
            super().close()
        else:
            self._close_ends()

    __class_getitem__ = classmethod(GenericAlias)


_OURS = {Queue, JoinableQueue, SimpleQueue}
