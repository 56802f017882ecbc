import sys
from multiprocessing import queues as _std
from queue import Empty as Empty, Full as Full
from types import GenericAlias
from typing import Any, TypeVar

__all__ = ["Queue", "SimpleQueue", "JoinableQueue"]

if sys.version_info >= (3, 12):
    from multiprocessing.queues import (
        JoinableQueue as JoinableQueue,
        Queue as Queue,
        SimpleQueue as SimpleQueue,
    )
else:
    _T = TypeVar("_T")

    class Queue(_std.Queue[_T]):
        def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

    class JoinableQueue(Queue[_T], _std.JoinableQueue[_T]): ...

    class SimpleQueue(_std.SimpleQueue[_T]):
        def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
