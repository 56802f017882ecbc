import sys
from multiprocessing.resource_sharer import stop as stop

if sys.platform == "win32":
    from multiprocessing.resource_sharer import DupSocket as DupSocket

    __all__ = ["stop", "DupSocket"]
else:
    from multiprocessing.resource_sharer import DupFd as DupFd

    __all__ = ["stop", "DupFd"]
