"""Managers and their proxies, on this package's connections; what newer Pythons have, for all.

The code is the stdlib's.  Which listener, client, server, proxy and context it uses is ours: the
classes here are the stdlib's, with that changed.
"""

import threading
import types
import weakref
from importlib import import_module
from importlib.util import find_spec
from operator import getitem, is_

from mproc_ext import _modules, connection, context, pool

_std = _modules.overlay(__name__)
_graft = _modules.grafter(__name__)

__all__ = list(_std.__all__)

get_context = context._default_context.get_context


class _ListenerClient(dict):
    """Listener and client by serializer; what is not here is the stdlib's."""

    def __missing__(self, serializer):
        return _std.listener_client[serializer]


listener_client = _ListenerClient(
    pickle=(connection.Listener, connection.Client),
    xmlrpclib=(connection.XmlListener, connection.XmlClient),
)


class _Local:
    """An object of a server; who keeps this keeps what Server.id_to_obj has of it."""

    def __init__(self, entry):
        self.entry = entry


class _LocalObjects(dict):
    """Server.id_to_local_proxy_obj: the objects for which there are proxies in the server itself,
    since they were put into other ones.

    The stdlib keeps them for good; here they go with the last such proxy.  What the stdlib's own
    RebuildProxy puts here stays.
    """

    def __init__(self):
        self._lock = threading.RLock()
        self._locals = weakref.WeakValueDictionary()

    def __contains__(self, ident):
        return super().__contains__(ident) or ident in self._locals

    def __missing__(self, ident):
        return self._locals[ident].entry

    def hold(self, ident, objects):
        with self._lock:
            local = self._locals.get(ident)
            if local is None:
                local = self._locals[ident] = _Local(objects[ident])
            return local


_init_server = _graft(_std.Server.__init__)


class Server(_std.Server):
    """What runs in a manager's process: it has the objects, and does what the proxies ask for."""

    def __init__(self, registry, address, authkey, serializer):
        _init_server(self, registry, address, authkey, serializer)
        self.id_to_local_proxy_obj = _LocalObjects()


def RebuildProxy(func, token, serializer, kwds):
    """Function used for unpickling proxy objects."""
    server = getattr(_std.process.current_process(), "_manager_server", None)
    held = None
    if isinstance(server, Server) and server.address == token.address:
        held = server.id_to_local_proxy_obj.hold(token.id, server.id_to_obj)
    proxy = _std.RebuildProxy(func, token, serializer, kwds)
    if held is not None:
        proxy._held = held
    return proxy


class BaseManager(_std.BaseManager):
    """Base class of managers.  See the stdlib's documentation of multiprocessing.managers."""

    _Server = Server

    __init__ = _graft(_std.BaseManager.__init__)
    connect = _graft(_std.BaseManager.connect)
    get_server = _graft(_std.BaseManager.get_server)
    register = classmethod(_graft(_std.BaseManager.register.__func__))
    start = _graft(_std.BaseManager.start)


class _Call:
    """What is pickled as a call: whoever unpickles it makes that, and has the result."""

    def __init__(self, function, *arguments):
        self._call = function, arguments

    def __reduce__(self):
        return self._call


# This module, but the stdlib's where this package is not installed: a remote manager's process.
_MODULE_THERE = _Call(
    import_module,
    _Call(
        getitem,
        (__name__, _std.__name__),
        _Call(is_, _Call(find_spec, _modules.OURS), None),
    ),
)


class _Ours:
    """What this module has, and the stdlib's too, on its way to another process."""

    def __init__(self, ours):
        self._ours = ours

    def __call__(self, *args, **kwds):  # what is copied is not unpickled
        return self._ours(*args, **kwds)

    def __reduce__(self):
        return getattr, (_MODULE_THERE, self._ours.__name__)


def _for_a_pickle(found):
    return _Ours(found) if found is globals().get(getattr(found, "__name__", None)) else found


_reduce = _graft(_std.BaseProxy.__reduce__)


class BaseProxy(_std.BaseProxy):
    """Base class of proxies: its methods are done by an object in a manager's process."""

    # One table of connections, and one count of proxies, for the stdlib's proxies and ours.
    __init__ = _modules.grafter(__name__, BaseProxy=_std.BaseProxy)(_std.BaseProxy.__init__)

    def __reduce__(self):
        rebuild, (kind, *state) = _reduce(self)
        return _for_a_pickle(rebuild), (_for_a_pickle(kind), *state)


MakeProxyType = _graft(_std.MakeProxyType)
MakeProxyType.__defaults__ = ({},)  # the proxy types that were made: the stdlib has its own
AutoProxy = _graft(_std.AutoProxy)

_ours = {_std.BaseProxy: BaseProxy, _std.AutoProxy: AutoProxy}


def _our(proxytype):
    """Our class for one of the stdlib's proxies: the same, on top of our BaseProxy."""
    if proxytype not in _ours and getattr(proxytype, "__module__", None) == _std.__name__:
        bases = (*map(_our, proxytype.__bases__), proxytype)
        _ours[proxytype] = type(proxytype.__name__, bases, {"__module__": __name__})
    return _ours.get(proxytype, proxytype)


for _name, _type in list(vars(_std).items()):
    if isinstance(_type, type) and issubclass(_type, _std.BaseProxy):
        globals()[_name] = _our(_type)


class SyncManager(BaseManager, _std.SyncManager):
    """A manager of synchronisation objects, queues, pools, lists, dicts, sets and values."""


for _name, (_make, _exposed, _methods, _type) in _std.SyncManager._registry.items():
    _creates = hasattr(_std.SyncManager, _name)
    SyncManager.register(_name, _make, _our(_type), _exposed, _methods, _creates)
del _name, _make, _exposed, _methods, _type, _creates

SyncManager.register("Pool", pool.Pool, _our(_std.PoolProxy))

if hasattr(_std, "SharedMemoryManager"):

    class SharedMemoryServer(Server, _std.SharedMemoryServer):
        """The server of a manager of shared memory blocks: they go with it."""

        __init__ = _graft(_std.SharedMemoryServer.__init__)

    class SharedMemoryManager(BaseManager, _std.SharedMemoryManager):
        """A manager of shared memory blocks."""

        _Server = SharedMemoryServer

        __init__ = _graft(_std.SharedMemoryManager.__init__)
        get_server = _graft(_std.SharedMemoryManager.get_server)

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


def _proxy_type(name, exposed, *in_place):
    """A proxy type like those of Python 3.14: this Python's, if it has one, plus what it lacks."""
    older = _our(getattr(_std, name, BaseProxy))
    has = getattr(older, "_exposed_", ())
    members = {
        "__module__": __name__,
        "__class_getitem__": classmethod(types.GenericAlias),
        "_exposed_": tuple(dict.fromkeys((*has, *exposed, *in_place))),
        **_in_place(*in_place),
    }
    return type(name, (MakeProxyType(f"_Base{name}", exposed), older), members)


if not hasattr(_std.AcquirerProxy, "locked"):

    class AcquirerProxy(_our(_std.AcquirerProxy)):
        _exposed_ = (*_std.AcquirerProxy._exposed_, "locked")

        def locked(self):
            return self._callmethod("locked")

    class ConditionProxy(AcquirerProxy, _our(_std.ConditionProxy)):
        _exposed_ = (*_std.ConditionProxy._exposed_, "locked")

    import threading

    for _name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore"):
        SyncManager.register(_name, getattr(threading, _name), AcquirerProxy)
    SyncManager.register("Condition", threading.Condition, ConditionProxy)
    del _name

if not hasattr(_std, "SetProxy"):
    ListProxy = _proxy_type("ListProxy", ("clear", "copy"), "__iadd__", "__imul__")
    DictProxy = _proxy_type(
        "DictProxy", ("__or__", "__reversed__", "__ror__", "fromkeys"), "__ior__"
    )
    SetProxy = _proxy_type(
        "SetProxy",
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
