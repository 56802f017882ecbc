from collections.abc import Callable, Iterable
from multiprocessing import context as _std
from multiprocessing.context import (
    AuthenticationError as AuthenticationError,
    BufferTooShort as BufferTooShort,
    ProcessError as ProcessError,
    TimeoutError as TimeoutError,
    _force_start_method as _force_start_method,
    assert_spawning as assert_spawning,
    get_spawning_popen as get_spawning_popen,
    set_spawning_popen as set_spawning_popen,
)
from typing import Any, ClassVar, Literal, overload

from mproc_ext import pool, queues, synchronize

__all__ = ()

# What the stdlib's contexts have, with our classes as results. The stdlib's own classes are their
# bases, so that whatever takes a `multiprocessing.context.BaseContext` takes ours.

class BaseContext(_std.BaseContext):
    def BoundedSemaphore(self, value: int = 1) -> synchronize.BoundedSemaphore: ...
    def Lock(self) -> synchronize.Lock: ...
    def RLock(self) -> synchronize.RLock: ...
    def Semaphore(self, value: int = 1) -> synchronize.Semaphore: ...
    def Queue(
        self, maxsize: int = 0, *, max_bytes: int = 0, zero_copy: bool = False
    ) -> queues.Queue[Any]: ...
    def JoinableQueue(
        self,
        maxsize: int = 0,
        *,
        max_bytes: int = 0,
        zero_copy: bool = False,
        on_death: Literal["done"] | None = None,
    ) -> queues.JoinableQueue[Any]: ...
    def SimpleQueue(self, *, zero_copy: bool = False) -> queues.SimpleQueue[Any]: ...
    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        *,
        worker_exit: Callable[[], object] | None = None,
        max_memory: int | tuple[int | None, int | None] | None = None,
        cpus: Iterable[int | Iterable[int]] | None = None,
        max_restarts: tuple[int, float] | None = None,
        cloudpickle: bool = False,
    ) -> pool.Pool: ...
    def set_forkserver_preload(
        self, module_names: list[str], *, on_error: Literal["ignore", "warn", "fail"] = "ignore"
    ) -> None: ...
    @overload
    def get_context(self, method: None = None) -> DefaultContext: ...
    @overload
    def get_context(self, method: Literal["spawn"]) -> SpawnContext: ...
    @overload
    def get_context(self, method: Literal["fork"]) -> ForkContext: ...
    @overload
    def get_context(self, method: Literal["forkserver"]) -> ForkServerContext: ...
    @overload
    def get_context(self, method: str) -> BaseContext: ...

class Process(_std.Process):
    def interrupt(self) -> None: ...

class ForkProcess(_std.ForkProcess):
    def interrupt(self) -> None: ...

class SpawnProcess(_std.SpawnProcess):
    def interrupt(self) -> None: ...

class ForkServerProcess(_std.ForkServerProcess):
    def interrupt(self) -> None: ...

class DefaultContext(BaseContext, _std.DefaultContext):
    Process: ClassVar[type[Process]]
    def __init__(self, context: _std.BaseContext | None = None) -> None: ...

class ForkContext(BaseContext, _std.ForkContext):
    Process: ClassVar[type[ForkProcess]]

class SpawnContext(BaseContext, _std.SpawnContext):
    Process: ClassVar[type[SpawnProcess]]

class ForkServerContext(BaseContext, _std.ForkServerContext):
    Process: ClassVar[type[ForkServerProcess]]

_default_context: DefaultContext
