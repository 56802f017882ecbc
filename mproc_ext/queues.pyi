import sys
from collections.abc import Iterable, Iterator
from multiprocessing import queues as _std
from queue import Empty as Empty, Full as Full
from types import GenericAlias
from typing import Any, Literal, TypeVar

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]

_T = TypeVar("_T")

if sys.version_info >= (3, 13):
    from queue import ShutDown as ShutDown
else:
    class ShutDown(Exception): ...

class Queue(_std.Queue[_T]):
    def __init__(
        self, maxsize: int = 0, *, max_bytes: int = 0, zero_copy: bool = False, ctx: Any = ...
    ) -> None: ...
    def put_many(
        self, iterable: Iterable[_T], block: bool = True, timeout: float | None = None
    ) -> None: ...
    def get_many(
        self, max: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[_T]: ...
    def shutdown(self, immediate: bool = False) -> None: ...
    def stats(self) -> dict[str, Any]: ...
    def __iter__(self) -> Iterator[_T]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

class JoinableQueue(Queue[_T], _std.JoinableQueue[_T]):
    def __init__(
        self,
        maxsize: int = 0,
        *,
        max_bytes: int = 0,
        zero_copy: bool = False,
        on_death: Literal["done"] | None = None,
        ctx: Any = ...,
    ) -> None: ...

class SimpleQueue(_std.SimpleQueue[_T]):
    def __init__(self, *, ctx: Any = ..., zero_copy: bool = False) -> None: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
