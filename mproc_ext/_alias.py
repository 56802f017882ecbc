"""``import multiprocessing`` means this package: what :func:`mproc_ext.install` does."""

import sys
import warnings
from importlib import import_module

import mproc_ext
from mproc_ext import _modules

__all__ = ["install"]


def install():
    """See :func:`mproc_ext.install`."""
    if _modules.aliased or not mproc_ext.ACCELERATED:
        return
    prefix = _modules.STDLIB + "."
    loaded = [name for name in sys.modules if name.startswith(prefix)]
    for name in loaded:
        import_module(f"{_modules.OURS}.{name.removeprefix(prefix)}")
    stale = _stale_modules()
    # In this order: a thread that imports multiprocessing meanwhile gets either, never a new copy.
    stdlib = sys.modules[_modules.STDLIB]
    sys.modules[_modules.STDLIB] = mproc_ext
    _modules.aliased = True
    loaded = [name for name in sys.modules if name.startswith(prefix)]
    for name in loaded:
        # Keep the stdlib's module where _modules.stdlib finds it, and free its name for ours.
        sys.modules[f"{_modules.TRUE}.{name.removeprefix(prefix)}"] = sys.modules.pop(name)
    for name in loaded:
        import_module(name)
    _rename_shadowed()
    futures = sys.modules.get("concurrent.futures.process")
    if getattr(futures, "mp", None) is stdlib:  # it may be the one that is importing us
        futures.mp = mproc_ext
    if stale:
        warnings.warn(
            "mproc_ext.install(): these modules imported multiprocessing before and keep the "
            f"stdlib's names: {', '.join(stale)}; call install() before they are imported",
            RuntimeWarning,
            stacklevel=3,
        )


def _shadowed():
    """What the stdlib has and we have another one of, as (stdlib's module, name, object)."""
    for name, ours in list(sys.modules.items()):
        if isinstance(ours, _modules.Overlay) and name.startswith(_modules.OURS + "."):
            theirs = ours._stdlib
            for attribute in vars(ours):
                if not attribute.startswith("__") and hasattr(theirs, attribute):
                    value = getattr(theirs, attribute)
                    if value is not getattr(ours, attribute):
                        yield theirs, attribute, value


def _stale_modules():
    """The names of the modules that hold a name of the stdlib which would mean ours now."""
    stdlib = sys.modules[_modules.STDLIB]
    changed = {id(value) for _, _, value in _shadowed() if callable(value)}
    changed.add(id(stdlib))
    changed.update(
        id(module)
        for name, module in sys.modules.items()
        if name.startswith(_modules.STDLIB + ".")
        and module is not sys.modules.get(f"{_modules.OURS}.{name.partition('.')[2]}", module)
    )
    default = stdlib.context._default_context
    own = (_modules.STDLIB, _modules.OURS, "concurrent.futures")

    def is_stale(value):
        return id(value) in changed or getattr(value, "__self__", None) is default

    stale = []
    for name, module in list(sys.modules.items()):
        if module is None or name == "__mp_main__" or name.startswith(own):
            continue
        try:
            values = list(vars(module).values())
        except TypeError:
            continue
        if any(is_stale(value) for value in values):
            stale.append(name)
    return stale


def _rename_shadowed():
    """Let the stdlib's classes and functions that we shadow be pickled by a path that finds them:
    objects made from names that were imported before go on travelling to other processes."""
    for theirs, _, value in _shadowed():
        if getattr(value, "__module__", None) == theirs.__name__ and hasattr(value, "__qualname__"):
            leaf = theirs.__name__.partition(".")[2]
            value.__module__ = f"{_modules.TRUE}.{leaf}"
