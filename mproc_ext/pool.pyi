from collections.abc import Callable, Iterable, Mapping
from multiprocessing import pool as _std
from multiprocessing.pool import (
    CLOSE as CLOSE,
    INIT as INIT,
    RUN as RUN,
    TERMINATE as TERMINATE,
    ApplyResult as ApplyResult,
    AsyncResult as AsyncResult,
    IMapIterator as IMapIterator,
    IMapUnorderedIterator as IMapUnorderedIterator,
    MapResult as MapResult,
)
from typing import Any, TypeVar

from mproc_ext import _results
from mproc_ext.context import TimeoutError

__all__ = [
    "Pool",
    "ThreadPool",
    "BrokenPoolError",
    "TaskTimeoutError",
    "WorkerLostError",
    "current_worker",
]

_S = TypeVar("_S")
_T = TypeVar("_T")

class WorkerLostError(RuntimeError):
    pid: int | None
    exitcode: int | None
    task: str | None
    def __init__(
        self,
        message: str,
        pid: int | None = None,
        exitcode: int | None = None,
        task: str | None = None,
    ) -> None: ...

class TaskTimeoutError(TimeoutError): ...
class BrokenPoolError(RuntimeError): ...

class _CurrentWorker:
    id: int
    state: dict[Any, Any]

def current_worker() -> _CurrentWorker | None: ...

class Pool(_std.Pool):
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any | None = None,
        *,
        worker_exit: Callable[[], object] | None = None,
        max_memory: int | tuple[int | None, int | None] | None = None,
        cpus: Iterable[int | Iterable[int]] | None = None,
        max_restarts: tuple[int, float] | None = None,
        cloudpickle: bool = False,
    ) -> None: ...
    def apply(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> _T: ...
    def apply_async(
        self,
        func: Callable[..., _T],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = {},
        callback: Callable[[_T], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
    ) -> _results.ApplyResult[_T]: ...
    def map(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> list[_T]: ...
    def map_async(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> _results.MapResult[_T]: ...
    def starmap(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> list[_T]: ...
    def starmap_async(
        self,
        func: Callable[..., _T],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[_T]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> _results.MapResult[_T]: ...
    def imap(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = 1,
        *,
        buffersize: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> _results.IMapIterator[_T]: ...
    def imap_unordered(
        self,
        func: Callable[[_S], _T],
        iterable: Iterable[_S],
        chunksize: int | None = 1,
        *,
        buffersize: int | None = None,
        timeout: float | None = None,
        retries: int = 0,
        progress: bool | str | None = None,
    ) -> _results.IMapIterator[_T]: ...
    def resize(self, processes: int) -> None: ...

class ThreadPool(Pool, _std.ThreadPool):
    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
    ) -> None: ...
