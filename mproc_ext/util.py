"""Logging, finalizers and after-fork hooks: the stdlib's, live."""

import sys

from mproc_ext import _modules

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
    from mproc_ext import _core

    return _core.spawn(path, args, passfds)
