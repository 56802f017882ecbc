import sys
from collections.abc import Sequence
from multiprocessing.util import (
    DEBUG as DEBUG,
    DEFAULT_LOGGING_FORMAT as DEFAULT_LOGGING_FORMAT,
    INFO as INFO,
    LOGGER_NAME as LOGGER_NAME,
    MAXFD as MAXFD,
    NOTSET as NOTSET,
    SUBDEBUG as SUBDEBUG,
    SUBWARNING as SUBWARNING,
    Finalize as Finalize,
    ForkAwareLocal as ForkAwareLocal,
    ForkAwareThreadLock as ForkAwareThreadLock,
    abstract_sockets_supported as abstract_sockets_supported,
    close_all_fds_except as close_all_fds_except,
    debug as debug,
    get_logger as get_logger,
    get_temp_dir as get_temp_dir,
    info as info,
    is_abstract_socket_namespace as is_abstract_socket_namespace,
    is_exiting as is_exiting,
    log_to_stderr as log_to_stderr,
    register_after_fork as register_after_fork,
    sub_debug as sub_debug,
    sub_warning as sub_warning,
)

__all__ = [
    "sub_debug",
    "debug",
    "info",
    "sub_warning",
    "get_logger",
    "log_to_stderr",
    "get_temp_dir",
    "register_after_fork",
    "is_exiting",
    "Finalize",
    "ForkAwareThreadLock",
    "ForkAwareLocal",
    "close_all_fds_except",
    "SUBDEBUG",
    "SUBWARNING",
]

if sys.version_info >= (3, 14):
    from multiprocessing.util import WARNING as WARNING, warn as warn

    __all__ += ["warn"]

def spawnv_passfds(
    path: str | bytes, args: Sequence[str | bytes], passfds: Sequence[int]
) -> int: ...
