import sys
from multiprocessing import synchronize as _std
from multiprocessing.synchronize import Barrier as Barrier, Condition as Condition, Event as Event

__all__ = ["Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"]

if sys.version_info >= (3, 14):
    from multiprocessing.synchronize import (
        BoundedSemaphore as BoundedSemaphore,
        Lock as Lock,
        RLock as RLock,
        Semaphore as Semaphore,
        SemLock as SemLock,
    )
else:
    class SemLock(_std.SemLock):
        def locked(self) -> bool: ...

    class Lock(SemLock, _std.Lock): ...
    class RLock(SemLock, _std.RLock): ...
    class Semaphore(SemLock, _std.Semaphore): ...
    class BoundedSemaphore(Semaphore, _std.BoundedSemaphore): ...
