"""Pool and ThreadPool: the stdlib's, with this package's default context."""

from mproc_ext import _modules, context

_std = _modules.overlay(__name__)

__all__ = ["Pool", "ThreadPool"]


class Pool(_std.Pool):
    """A pool of worker processes.  See the stdlib's documentation of multiprocessing.pool."""

    def __init__(
        self,
        processes=None,
        initializer=None,
        initargs=(),
        maxtasksperchild=None,
        context=None,
    ):
        super().__init__(
            processes, initializer, initargs, maxtasksperchild, context or _default_context()
        )


class ThreadPool(Pool, _std.ThreadPool):
    """A pool of worker threads."""

    def __init__(self, processes=None, initializer=None, initargs=()):
        _std.ThreadPool.__init__(self, processes, initializer, initargs)


def _default_context():
    return context._default_context.get_context()
