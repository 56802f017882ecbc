"""The same interface over threads: the stdlib's, with this package's ThreadPool."""

from mproc_ext import _modules

_std = _modules.overlay(__name__)

__all__ = list(_std.__all__)


def Pool(processes=None, initializer=None, initargs=()):
    from mproc_ext.pool import ThreadPool

    return ThreadPool(processes, initializer, initargs)
