from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import process as _std
from concurrent.futures.process import BrokenProcessPool as BrokenProcessPool
from multiprocessing.context import BaseContext, TimeoutError as _TimeoutError
from typing import Any, TypeVar

__all__ = [
    "BrokenProcessPool",
    "ProcessPoolExecutor",
    "TaskTimeoutError",
    "WorkerLostError",
    "current_worker",
]

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

class TaskTimeoutError(_TimeoutError): ...

class _CurrentWorker:
    id: int
    state: dict[Any, Any]

def current_worker() -> _CurrentWorker | None: ...

class ProcessPoolExecutor(_std.ProcessPoolExecutor):
    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        worker_exit: Callable[[], object] | None = None,
        max_memory: int | tuple[int, int] | None = None,
        cpus: Sequence[int | Iterable[int]] | None = None,
        max_restarts: tuple[int, float] | None = None,
        cloudpickle: bool = False,
        timeout: float | None = None,
        retries: int = 0,
    ) -> None: ...
    def map(
        self,
        fn: Callable[..., _T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[_T]: ...
    def terminate_workers(self) -> None: ...
    def kill_workers(self) -> None: ...
