"""Logging, finalizers and after-fork hooks: the stdlib's, live."""

import sys
from types import BuiltinFunctionType

from mproc_ext import _core, _modules

_std = _modules.overlay(__name__)


def _cleanup_tests():
    """Cleanup multiprocessing resources when multiprocessing tests
    completed."""
    forkserver = sys.modules.get("mproc_ext.forkserver")
    if forkserver is not None:
        forkserver._forkserver._stop()
    _std._cleanup_tests()


def spawnv_passfds(path, args, passfds):
    """Start a program with only the given descriptors, and 0, 1 and 2, open; returns its pid."""
    return (_their_starter() or _core.spawn)(path, args, passfds)


def starter():
    """What starts programs in place of the core, or None.

    Debuggers and profilers replace the functions by which the stdlib starts a program, so as to
    have the child under their control.
    """
    return _their_starter() if spawnv_passfds is _OURS else spawnv_passfds


def _their_starter():
    import _posixsubprocess

    if _std.spawnv_passfds is not _THEIRS or is_replaced(_posixsubprocess.fork_exec):
        return _std.spawnv_passfds
    return None


def is_replaced(function):
    """Whether what stands in place of a function of an extension module is another's."""
    return not isinstance(function, BuiltinFunctionType)


_OURS, _THEIRS = spawnv_passfds, _std.spawnv_passfds
