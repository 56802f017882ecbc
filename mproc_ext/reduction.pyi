import sys
from multiprocessing.reduction import (
    HAVE_SEND_HANDLE as HAVE_SEND_HANDLE,
    AbstractReducer as AbstractReducer,
    ForkingPickler as ForkingPickler,
    dump as dump,
    recv_handle as recv_handle,
    register as register,
    send_handle as send_handle,
)

if sys.platform == "win32":
    from multiprocessing.reduction import (
        DupHandle as DupHandle,
        duplicate as duplicate,
        steal_handle as steal_handle,
    )
else:
    from multiprocessing.reduction import DupFd as DupFd, recvfds as recvfds, sendfds as sendfds

    if sys.version_info < (3, 14):
        from multiprocessing.reduction import ACKNOWLEDGE as ACKNOWLEDGE

if sys.platform == "win32":
    __all__ = [
        "send_handle",
        "recv_handle",
        "ForkingPickler",
        "register",
        "dump",
        "DupHandle",
        "duplicate",
        "steal_handle",
    ]
else:
    __all__ = [
        "send_handle",
        "recv_handle",
        "ForkingPickler",
        "register",
        "dump",
        "DupFd",
        "sendfds",
        "recvfds",
    ]
