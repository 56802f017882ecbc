"""Queue, JoinableQueue and SimpleQueue: the stdlib's."""

from types import GenericAlias

from mproc_ext import _modules

_std = _modules.stdlib("queues")

if hasattr(_std.Queue, "__class_getitem__"):
    _modules.identity(__name__)
else:
    _modules.overlay(__name__)

    class Queue(_std.Queue):
        __class_getitem__ = classmethod(GenericAlias)

    class JoinableQueue(Queue, _std.JoinableQueue):
        pass

    class SimpleQueue(_std.SimpleQueue):
        __class_getitem__ = classmethod(GenericAlias)
