"""Locks, semaphores, conditions, events and barriers in shared memory without a name.

What counts is in C (src/py/semlock.c, event.c, condition.c).  None of these objects is lost with a
process that dies:

* A Lock or RLock that a dead process held is taken over by the next who acquires it, with one
  RuntimeWarning.  A process that ends normally leaves it locked: a Lock for anyone to release, an
  RLock, which only its holder could, for good.
* A permit of a Semaphore that a dead process had taken stays taken.
* Nobody waits for a waiter that has died: not a notify, not a barrier.
"""

import math
import sys
import threading
import time

from mproc_ext import _arena, _core, _modules, context, util

_std = _modules.overlay(__name__)

__all__ = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"]


@_core.set_first_lock_hook
def _at_end():
    """A process that ends in good order with a lock held leaves it locked, and nobody's."""
    util.Finalize(None, _core.disown_locks, exitpriority=-1000)


# Seconds between two looks whether those live for whom a barrier waits; the longest such wait.
_RECHECK = 0.1
_LONGEST = 1e9


def _is_fork(ctx):
    if ctx is None:
        ctx = context._default_context.get_context()
    return ctx.get_start_method() == "fork"


def _assert_may_travel(shared):
    context.assert_spawning(shared)
    if shared._is_fork_ctx:
        raise RuntimeError(
            "A SemLock created in a fork context is being "
            "shared with a process in a spawn context. This is "
            "not supported. Please use the same context to create "
            "multiprocessing objects and Process."
        )


class SemLock(_core.SemLockBase, _std.SemLock):
    """The base of locks and semaphores."""

    def __init__(self, kind, value, maxvalue, *, ctx):
        self._make(kind, value, maxvalue, _is_fork(ctx), kind == _std.RECURSIVE_MUTEX)
        self._make_methods()

    def __getstate__(self):
        _assert_may_travel(self)
        semlock = self._semlock
        kind = semlock.kind, semlock.maxvalue, self._is_lock
        return (*_arena.hand_over(self), kind, self._warned)

    def __setstate__(self, state):
        *where, kind, self._warned = state
        self._remake(*_arena.take_over(*where), *kind)
        self._make_methods()


@_core.own_methods
class Semaphore(_core.Semaphore, SemLock, _std.Semaphore):
    """A number of permits that acquire() takes from and release() adds to."""


@_core.own_methods
class BoundedSemaphore(_core.BoundedSemaphore, Semaphore, _std.BoundedSemaphore):
    """A semaphore that release() does not raise above its initial value (ValueError)."""


@_core.own_methods
class Lock(_core.Lock, SemLock, _std.Lock):
    """A lock that a process holds, and any thread or process may release."""


@_core.own_methods
class RLock(_core.RLock, SemLock, _std.RLock):
    """A lock that the thread which holds it may acquire again; it releases it as often."""


def _slow_inits():
    """What __init__ in C calls where it is not called as usual: with the stdlib's signatures and,
    where these are violated, its messages."""

    def lock(self, *, ctx):
        self._make(_std.SEMAPHORE, 1, 1, _is_fork(ctx), True)
        self._make_methods()

    def rlock(self, *, ctx):
        SemLock.__init__(self, _std.RECURSIVE_MUTEX, 1, 1, ctx=ctx)

    def semaphore(self, value=1, *, ctx):
        SemLock.__init__(self, _std.SEMAPHORE, value, _std.SEM_VALUE_MAX, ctx=ctx)

    def bounded_semaphore(self, value=1, *, ctx):
        SemLock.__init__(self, _std.SEMAPHORE, value, value, ctx=ctx)

    functions = lock, rlock, semaphore, bounded_semaphore
    for function, cls in zip(functions, (Lock, RLock, Semaphore, BoundedSemaphore), strict=True):
        function.__name__ = "__init__"
        function.__qualname__ = f"{cls.__name__}.__init__"
    return functions


_core.set_slow_inits(*_slow_inits())


class _Count:
    """How many waiters of a condition are in some state, as the semaphore that counts them in the
    stdlib's would say."""

    def __init__(self, count):
        self._count_now = count

    @property
    def _semlock(self):
        return self

    def get_value(self):
        return self._count_now()

    _get_value = get_value


@_core.own_methods
class Condition(_core.Condition, _std.Condition):
    """What waits for a notify, with the lock that guards what it waits for."""

    def __init__(self, lock=None, *, ctx):
        self._lock = lock or ctx.RLock()
        self._is_fork_ctx = _is_fork(ctx)
        self._make()
        self._make_methods()

    def __getstate__(self):
        _assert_may_travel(self)
        return (self._lock, *_arena.hand_over(self))

    def __setstate__(self, state):
        self._lock, *where = state
        self._is_fork_ctx = False
        self._take(*_arena.take_over(*where))
        self._make_methods()

    @property
    def _sleeping_count(self):
        return _Count(lambda: sum(self._counts(False)))

    @property
    def _woken_count(self):
        return _Count(lambda: self._counts(False)[1])

    @property
    def _wait_semaphore(self):
        return _Count(int)

    @staticmethod
    def _rounded_up(n):
        """The number of waiters below *n*, whatever that is but an int."""
        if not 0 < n:  # noqa: SIM300 (in this order, for the TypeError)
            return 0
        return sys.maxsize if n >= sys.maxsize else math.ceil(n)


@_core.own_methods
class Event(_core.Event, _std.Event):
    """A flag that is set or not, and can be waited for."""

    def __init__(self, *, ctx):
        self._is_fork_ctx = _is_fork(ctx)
        self._make()

    def __getstate__(self):
        _assert_may_travel(self)
        # The stdlib's has no such method: what the program has put into the object travels too.
        return (*_arena.hand_over(self), object.__getstate__(self))

    def __setstate__(self, state):
        *where, own = state
        self._is_fork_ctx = False
        self._take(*_arena.take_over(*where))
        attributes, slots = own if isinstance(own, tuple) else (own, None)
        self.__dict__.update(attributes or {})
        for name, value in (slots or {}).items():
            setattr(self, name, value)

    def __copy__(self):
        return self


class Barrier(_std.Barrier):
    """Lets its parties pass together; see threading.Barrier.

    A party that dies while it waits counts no more: another one has to come in its place.

    Each party inside has a node among the waiters of ``_cond``, unless it holds the lock; those who
    wait to enter stand at ``_door``, with the same lock.  So whoever holds that can count who is
    inside, and the stdlib's ``_count`` is put right by it.
    """

    def __init__(self, parties, action=None, timeout=None, *, ctx):
        cond = ctx.Condition()
        door = ctx.Condition(cond._lock)
        self.__setstate__((parties, action, timeout, cond, door, _arena.Block(8)))
        self._state = 0
        self._count = 0

    def __setstate__(self, state):
        (self._parties, self._action, self._timeout, self._cond, self._door, self._block) = state
        self._array = memoryview(self._block).cast("i")
        self._releasing = 0

    def __getstate__(self):
        return (self._parties, self._action, self._timeout, self._cond, self._door, self._block)

    def _enter(self):
        while self._state in (-1, 1):
            if not self._door.wait(_RECHECK) and not self._living_inside():
                # The last of those who were let through has died on its way out.
                self._count = 0
                self._exit()
        if self._state < 0:
            raise threading.BrokenBarrierError
        inside = sum(self._cond._counts(False)) + self._releasing
        if inside != self._count or inside + 1 == self._parties:
            self._count = self._living_inside()

    def _wait(self, timeout):
        # In pieces: who lets the others through may die before it has told them all.
        deadline = None if timeout is None or self._state else time.monotonic() + timeout
        while self._state == 0:
            left = _RECHECK if deadline is None else deadline - time.monotonic()
            if left <= 0:
                break
            # What is no time that one could wait for is for the condition to refuse.
            self._cond.wait(_RECHECK if _RECHECK < left < _LONGEST else left)
        super()._wait(0)

    def _living_inside(self):
        return sum(self._cond._counts(True)) + self._releasing

    def _release(self):
        # Who holds the lock now and gets to _enter() is the action, which waits at its own barrier:
        # the party that runs it is inside, and has no node.
        self._releasing += 1
        try:
            super()._release()
        finally:
            self._releasing -= 1

    def _exit(self):
        super()._exit()
        self._door.notify_all()

    def _break(self):
        super()._break()
        self._door.notify_all()
