"""Locks, semaphores, conditions, events and barriers: the stdlib's."""

from mproc_ext import _modules

_std = _modules.stdlib("synchronize")

if hasattr(_std.SemLock, "locked"):
    _modules.identity(__name__)
else:
    _modules.overlay(__name__)

    class SemLock(_std.SemLock):
        def locked(self):
            """Whether an acquire that does not wait would fail."""
            return self._semlock._is_zero()

    class Semaphore(SemLock, _std.Semaphore):
        pass

    class BoundedSemaphore(Semaphore, _std.BoundedSemaphore):
        pass

    class Lock(SemLock, _std.Lock):
        pass

    class RLock(SemLock, _std.RLock):
        pass
