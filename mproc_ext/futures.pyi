from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import process as _std
from concurrent.futures.process import BrokenProcessPool as BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

from mproc_ext.pool import (
    TaskTimeoutError as TaskTimeoutError,
    WorkerLostError as WorkerLostError,
    current_worker as current_worker,
)

__all__ = [
    "BrokenProcessPool",
    "ProcessPoolExecutor",
    "TaskTimeoutError",
    "WorkerLostError",
    "current_worker",
]

_T = TypeVar("_T")

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
