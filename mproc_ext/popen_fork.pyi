import sys

if sys.platform != "win32":
    from collections.abc import Callable
    from typing import ClassVar

    from mproc_ext._core import Child
    from mproc_ext.process import BaseProcess

    __all__ = ["Popen"]

    class Popen(Child):
        method: ClassVar[str]
        finalizer: Callable[[], object] | None
        def __init__(self, process_obj: BaseProcess) -> None: ...
        def duplicate_for_child(self, fd: int) -> int: ...
        def interrupt(self) -> None: ...
        def terminate(self) -> None: ...
        def kill(self) -> None: ...
