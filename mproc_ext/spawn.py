"""Code that starts processes by spawn and forkserver, in the parent and in the child.

What is to be told to the child, and how its ``__main__`` is made, is the stdlib's; how the child
comes to it is ours: a command line that finds this package, whatever ``sys.path`` will be, and a
check that parent and child run the same version of it.
"""

import os
import sys

from mproc_ext import _core, _modules
from mproc_ext._version import __version__

_std = _modules.overlay(__name__)

__all__ = [
    "_main",
    "freeze_support",
    "set_executable",
    "get_executable",
    "get_preparation_data",
    "get_command_line",
    "import_main_path",
]

_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# The current folder, which -c puts first on sys.path, may hold another copy of this package.
_PROGRAM = (
    "import sys; sys.path[:] = [*filter(None, sys.path), {root!r}]; "
    "from mproc_ext._modules import need_core; need_core(); "
    "from mproc_ext.{module} import {function} as main; sys.exit(main({arguments}))"
)


def header(process_obj):
    """What a child has to know before it can read what it is about."""
    return {
        "daemon": bool(process_obj.daemon),
        "by_main_thread": _core.in_main_thread(),
        "alias": _modules.aliased,
        "version": __version__,
        "foreign": _core.is_foreign(),
    }


def interpreter_command(function, module="spawn", **kwds):
    """A command line that calls a function of this package in a fresh interpreter."""
    program = _PROGRAM.format(
        root=_ROOT,
        module=module,
        function=function,
        arguments=", ".join(f"{name}={value!r}" for name, value in kwds.items()),
    )
    flags = _std.util._args_from_interpreter_flags()
    return [_std.get_executable(), *flags, "-c", program]


def get_command_line(**kwds):
    """
    Returns prefix of command line used for spawning a child process
    """
    if getattr(sys, "frozen", False):
        return _std.get_command_line(**kwds)
    return [*interpreter_command("spawn_main", **kwds), "--multiprocessing-fork"]


def check_version(version):
    """End this child, with one sentence, if its parent runs another version of the package."""
    if version != __version__:
        sys.exit(
            f"mproc_ext: this process found version {__version__} of the package, in {_ROOT}, but "
            f"the process that started it runs version {version}: make both use one installation"
        )


def spawn_main(
    pipe_handle,
    parent_pid=None,
    tracker_fd=None,
    parent_fd=None,
    daemon=False,
    by_main_thread=False,
    alias=False,
    version=__version__,
    foreign=False,
):
    """
    Run code specified by data received over pipe
    """
    check_version(version)
    _core.started_by(foreign)
    assert _std.is_forking(sys.argv), "Not forking"
    if daemon:
        _core.die_with_parent(parent_pid, parent_fd, by_main_thread)
    if alias:
        from mproc_ext._alias import install

        install()
    if tracker_fd is not None:
        # Not above: the stdlib's resource_tracker imports spawn, which under the alias is this.
        from mproc_ext.resource_tracker import _resource_tracker

        _resource_tracker._fd = tracker_fd
    return _std._main(pipe_handle, parent_fd)


def tracker_fd():
    """The descriptor of a resource tracker that runs.

    One is shared by all processes, from the first start on: a child with its own would have shared
    memory unlinked at its end that others still use.
    """
    from mproc_ext.resource_tracker import _resource_tracker

    try:
        fd = _resource_tracker.getfd()
    except OSError:
        # The program closed it (closerange), and the tracker stumbles over that.  It ends with the
        # last process that has the descriptor.
        _resource_tracker._fd = _resource_tracker._pid = None
        fd = _resource_tracker.getfd()
    _resource_tracker._fd = _core.above_stdio(fd)
    return _resource_tracker._fd
