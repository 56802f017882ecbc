import sys

if sys.platform != "win32":
    from typing import ClassVar

    from mproc_ext import popen_fork

    __all__ = ["Popen"]

    class _DupFd:
        fd: int
        def __init__(self, fd: int) -> None: ...
        def detach(self) -> int: ...

    class Popen(popen_fork.Popen):
        DupFd: ClassVar[type[_DupFd]]
