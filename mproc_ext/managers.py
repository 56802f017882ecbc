"""Managers and their proxies: the stdlib's, with this package's default context and, on older
Pythons, what newer ones have."""

import types

from mproc_ext import _modules, context, pool

_std = _modules.overlay(__name__)

__all__ = list(_std.__all__)


class BaseManager(_std.BaseManager):
    """Base class of managers.  See the stdlib's documentation of multiprocessing.managers."""

    def __init__(
        self,
        address=None,
        authkey=None,
        serializer="pickle",
        ctx=None,
        *,
        shutdown_timeout=1.0,
    ):
        super().__init__(
            address,
            authkey,
            serializer,
            ctx or context._default_context.get_context(),
            shutdown_timeout=shutdown_timeout,
        )


class SyncManager(BaseManager, _std.SyncManager):
    """A manager of synchronisation objects, queues, pools, lists, dicts, sets and values."""


SyncManager.register("Pool", pool.Pool, _std.PoolProxy)

if hasattr(_std, "SharedMemoryManager"):

    class SharedMemoryManager(BaseManager, _std.SharedMemoryManager):
        """A manager of shared memory blocks."""

        def SharedMemory(self, size):
            """Returns a new SharedMemory instance with the specified size in
            bytes, to be tracked by the manager."""
            from mproc_ext.shared_memory import _adopt

            return _adopt(super().SharedMemory(size))

        def ShareableList(self, sequence):
            """Returns a new ShareableList instance populated with the values
            from the input sequence, to be tracked by the manager."""
            from mproc_ext.shared_memory import ShareableList, _adopt

            shared = super().ShareableList(sequence)
            shared.__class__ = ShareableList
            _adopt(shared.shm)
            return shared


def _in_place(*names):
    """Methods that change the referent and return the proxy itself."""

    def method(name):
        def in_place(self, value):
            self._callmethod(name, (value,))
            return self

        in_place.__name__ = name
        return in_place

    return {name: method(name) for name in names}


def _proxy_type(name, base, exposed, *in_place):
    """A proxy type like those of Python 3.14: *base* plus what it lacks."""
    raw = _std.MakeProxyType(f"_Base{name}", tuple(dict.fromkeys((*base, *exposed, *in_place))))
    members = {
        "__module__": __name__,
        "__class_getitem__": classmethod(types.GenericAlias),
        **_in_place(*in_place),
    }
    return type(name, (raw,), members)


if not hasattr(_std.AcquirerProxy, "locked"):

    class AcquirerProxy(_std.AcquirerProxy):
        _exposed_ = (*_std.AcquirerProxy._exposed_, "locked")

        def locked(self):
            return self._callmethod("locked")

    class ConditionProxy(AcquirerProxy, _std.ConditionProxy):
        _exposed_ = (*_std.ConditionProxy._exposed_, "locked")

    import threading

    for _name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
        SyncManager.register(_name, getattr(threading, _name), AcquirerProxy)
    SyncManager.register("Condition", threading.Condition, ConditionProxy)
    del _name

if not hasattr(_std, "SetProxy"):
    ListProxy = _proxy_type(
        "ListProxy", _std.BaseListProxy._exposed_, ("clear", "copy"), "__iadd__", "__imul__"
    )
    DictProxy = _proxy_type(
        "DictProxy",
        _std.DictProxy._exposed_,
        ("__or__", "__reversed__", "__ror__", "fromkeys"),
        "__ior__",
    )
    DictProxy._method_to_typeid_ = {"__iter__": "Iterator"}
    SetProxy = _proxy_type(
        "SetProxy",
        (),
        """__and__ __class_getitem__ __contains__ __iter__ __len__ __or__ __rand__ __ror__
        __rsub__ __rxor__ __sub__ __xor__ __ge__ __gt__ __le__ __lt__ add clear copy difference
        difference_update discard intersection intersection_update isdisjoint issubset issuperset
        pop remove symmetric_difference symmetric_difference_update union update""".split(),
        "__iand__",
        "__ior__",
        "__isub__",
        "__ixor__",
    )
    SyncManager.register("list", list, ListProxy)
    SyncManager.register("dict", dict, DictProxy)
    SyncManager.register("set", set, SetProxy)
