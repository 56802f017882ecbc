"""ctypes objects in shared memory, with a lock around them or without.

What is small lies in a slot of an arena (src/core/mpx_arena.h), what is larger in a block of the
heap (heap.py): neither is used again while a process can still see it.  The objects are ctypes
objects as in the standard library, whose code this stands on: only the items of plain types, with a
lock of ours around them, are got and set in C (src/py/synchronized.h).

When a process dies that holds the lock, who acquires it next takes it over, see synchronize.RLock;
of the memory, a value that was being written when it died has the old bytes or the new ones.
"""

import ctypes
import weakref

from mproc_ext import _arena, _core, _modules, get_context, heap, synchronize
from mproc_ext.context import assert_spawning

_std = _modules.overlay(__name__)

__all__ = ["RawValue", "RawArray", "Value", "Array", "copy", "synchronized"]

# The types whose items the C code knows, with their names there.
_CODES = {
    type_: type_._type_
    for type_ in (*_std.typecode_to_type.values(), ctypes.c_bool)
    if type_ not in (ctypes.c_char, ctypes.c_wchar)
}
_LOCKS = frozenset({synchronize.Lock, synchronize.RLock})
_reducers = _std._ForkingPickler._extra_reducers


def _new_value(type_):
    try:
        size = ctypes.sizeof(type_)
    except TypeError as error:
        raise TypeError(
            "bad typecode (must be a ctypes type or one of "
            "c, b, B, u, h, H, i, I, l, L, q, Q, f or d)"
        ) from error
    if size > _core.BLOCK_SIZE:
        wrapper = heap.BufferWrapper(size)
        wrapper._fill_with_zeros()
        return _std.rebuild_ctype(type_, wrapper, None)
    if _reducers.get(type_) is not _std.reduce_ctype:
        _std._ForkingPickler.register(type_, _std.reduce_ctype)
    wrapper = _arena.Block(size)
    obj = type_.from_buffer(wrapper)
    obj._wrapper = wrapper
    return obj


def RawValue(typecode_or_type, *args):
    """A ctypes object in shared memory, without a lock.

    typecode_or_type  a ctypes type, or a letter as in the array module
    args              what the type is called with; without them all bytes are zero

    TypeError where there is no such type.
    """
    type_ = _std.typecode_to_type.get(typecode_or_type, typecode_or_type)
    obj = _new_value(type_)
    obj.__init__(*args)
    return obj


def RawArray(typecode_or_type, size_or_initializer):
    """A ctypes array in shared memory, without a lock.

    typecode_or_type     the type of its items: a ctypes type, or a letter as in the array module
    size_or_initializer  how many zeros, or a sequence of items

    TypeError where there is no such type.
    """
    type_ = _std.typecode_to_type.get(typecode_or_type, typecode_or_type)
    if isinstance(size_or_initializer, int):
        return _new_value(type_ * size_or_initializer)
    obj = _new_value(type_ * len(size_or_initializer))
    obj.__init__(*size_or_initializer)
    return obj


def _locked(obj, lock, ctx):
    if lock is False:
        return obj
    if lock is True or lock in (True, None):
        ctx = ctx or get_context()
        lock = ctx.RLock()
    elif not hasattr(lock, "acquire"):
        raise AttributeError(f"{lock!r} has no method 'acquire'")
    return synchronized(obj, lock, ctx=ctx)


def Value(typecode_or_type, *args, lock=True, ctx=None):
    """A ctypes object in shared memory, as RawValue makes it, with a lock around it.

    lock  the lock to use; True for a new RLock, False for none at all: then it is a RawValue

    ``value.value += 1`` gets and sets under the lock, but lets it go in between: write it in
    ``with value.get_lock():``.
    """
    return _locked(RawValue(typecode_or_type, *args), lock, ctx)


def Array(typecode_or_type, size_or_initializer, *, lock=True, ctx=None):
    """A ctypes array in shared memory, as RawArray makes it, with a lock around it.

    lock  the lock to use; True for a new RLock, False for none at all: then it is a RawArray
    """
    return _locked(RawArray(typecode_or_type, size_or_initializer), lock, ctx)


def copy(obj):
    """A new object in shared memory with the value of a ctypes object."""
    new_obj = _new_value(type(obj))
    ctypes.pointer(new_obj)[0] = obj
    return new_obj


def synchronized(obj, lock=None, ctx=None):
    """A ctypes object with a lock around it: the one given, or a new RLock."""
    assert not isinstance(obj, _std.SynchronizedBase), "object already synchronized"
    ctx = ctx or get_context()

    cls = type(obj)
    if cls in _CODES:
        return _bound(Synchronized(obj, lock, ctx), obj, _CODES[cls])
    if isinstance(obj, ctypes._SimpleCData):
        return Synchronized(obj, lock, ctx)
    if isinstance(obj, ctypes.Array):
        item_type = obj._type_
        if item_type is ctypes.c_char:
            return SynchronizedString(obj, lock, ctx)
        wrapper = SynchronizedArray(obj, lock, ctx)
        if item_type in _CODES and cls is item_type * len(obj):
            return _bound(wrapper, obj, _CODES[item_type])
        return wrapper
    try:
        wrapper = class_cache[cls]
    except KeyError:
        members = {name: _std.make_property(name) for name, *_ in cls._fields_}
        wrapper = type("Synchronized" + cls.__name__, (SynchronizedBase,), members)
        class_cache[cls] = wrapper
    return wrapper(obj, lock, ctx)


def _bound(wrapper, obj, code):
    """Let the C code get and set the items, unless the lock is the program's own, or the memory the
    ctypes object's own, which can be resized."""
    if type(wrapper._lock) in _LOCKS and not obj._b_needsfree_:
        wrapper._bind(code)
    return wrapper


class_cache = weakref.WeakKeyDictionary()


class SynchronizedBase(_core.SynchronizedBase, _std.SynchronizedBase):
    """A ctypes object in shared memory and its lock; an attribute is got or set under it.

    ``with`` holds the lock.  Pickled only for a child that is being started.
    """

    def _new_lock(self, ctx):
        return (ctx or get_context(force=True)).RLock()

    def __reduce__(self):
        assert_spawning(self)
        return synchronized, (self._obj, self._lock)


class Synchronized(_core.SynchronizedValue, SynchronizedBase, _std.Synchronized):
    """A number in shared memory and its lock."""


class SynchronizedArray(_core.SynchronizedArray, SynchronizedBase, _std.SynchronizedArray):
    """An array in shared memory and its lock."""


class SynchronizedString(SynchronizedArray, _std.SynchronizedString):
    """An array of characters in shared memory and its lock."""
