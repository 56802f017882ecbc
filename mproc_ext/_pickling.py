"""Whether a class that stands for ForkingPickler does just what the stdlib's does.

The C core writes and reads messages itself then; otherwise it calls the class, as the stdlib would.
It asks here when it meets a class for the first time and whenever one has been changed.
"""

import _pickle
from types import FunctionType

from mproc_ext import _core
from mproc_ext._modules import stdlib

__all__ = ()

_reduction = stdlib("reduction")

# For who speaks for neither queues nor connections: the name that is looked up in their modules.
_ForkingPickler = _reduction.ForkingPickler

# What the stdlib's class has; `register` does nothing while an object is pickled.
_FUNCTIONS = {"__init__": FunctionType, "dumps": classmethod}
_NAMES = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__"),
    *("__firstlineno__", "__static_attributes__"),
    *("_extra_reducers", "_copyreg_dispatch_table", "register", "loads"),
    *_FUNCTIONS,
}


def tables(cls):
    """The tables of reducers of a class that is like the stdlib's, or None for any other.

    What is in the second one counts before what is in the first.
    """
    if type(cls) is not type or cls.__bases__ != (_pickle.Pickler,):
        return None
    names = vars(cls)
    for name, kind in _FUNCTIONS.items():
        function = names.get(name)
        if type(function) is not kind:
            return None
        function = getattr(function, "__func__", function)
        if (
            type(function) is not FunctionType
            or function.__globals__ is not vars(_reduction)
            or function.__qualname__ != f"ForkingPickler.{name}"
        ):
            return None
    extra = names.get("_extra_reducers")
    general = names.get("_copyreg_dispatch_table")
    if (
        not names.keys() <= _NAMES
        or names.get("loads") is not _pickle.loads
        or type(extra) is not dict
        or type(general) is not dict
    ):
        return None
    return general, extra


_core.serve_pickling(tables, globals())
