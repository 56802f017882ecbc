"""multiprocessing, with a core in C: the same names, faster, and it does not hang on a death.

Use it in one of three ways::

    import mproc_ext as multiprocessing             # one import
    python -m mproc_ext program.py                  # none: `import multiprocessing` means this
    MPROC_EXT_ALIAS=1 python program.py             # the same, for every Python started below

The module has every name of the running Python's :mod:`multiprocessing` and, beyond them:

``ACCELERATED``
    True where the C core is in use.  False on a platform it is not made for, and with
    ``MPROC_EXT_DISABLE=1`` in the environment: then all names are the stdlib's own.
``install()``
    Make ``import multiprocessing`` mean this package, here and in the children.
"""

import sys

from mproc_ext import _modules
from mproc_ext._version import __version__


def _load_core():
    """Whether the C core is to be used; says in one log line why, where it is not."""
    import os

    if os.environ.get("MPROC_EXT_DISABLE", "0") not in ("", "0"):
        reason, level = "MPROC_EXT_DISABLE is set", 20
    elif sys.platform != "linux":
        reason, level = f"it is made for Linux, and this is {sys.platform}", 20
    else:
        try:
            from mproc_ext import _core
        except ImportError as error:
            from importlib.util import find_spec

            built = find_spec(f"{__name__}._core") is not None
            reason = str(error) if built else f"it is not built in {__path__[0]}"
            level = 30
        else:
            if _core.__version__ == __version__:
                return True
            raise ImportError(
                f"mproc_ext {__version__} found its C core of version {_core.__version__} "
                f"({_core.__file__}): the installation is mixed, install the package again"
            )
    import logging

    logging.getLogger("mproc_ext").log(
        level, "mproc_ext runs without its C core and hands out the stdlib: %s", reason
    )
    return False


ACCELERATED = _modules.accelerated = _load_core()

if ACCELERATED:
    from mproc_ext import context, process, reduction
else:
    from multiprocessing import context, process, reduction

#
# Copy stuff from default context, as the stdlib does
#

__all__ = [x for x in dir(context._default_context) if not x.startswith("_")]
globals().update((name, getattr(context._default_context, name)) for name in __all__)

__all__ += ["ACCELERATED", "install"]

SUBDEBUG = 5
SUBWARNING = 25


def install():
    """Make ``import multiprocessing``, and all its submodules, mean this package.

    It holds for this process and for its children under every start method, and for
    :mod:`concurrent.futures`.  Call it before the modules that use multiprocessing are imported:
    a name which a module imported earlier stays what it was, and a RuntimeWarning names those
    modules.  Calling it again does nothing; without the C core it does nothing either, as the
    names are the stdlib's then.
    """
    from mproc_ext import _alias

    _alias.install()


def __getattr__(name):
    """A submodule that something else has loaded is an attribute of the stdlib's package, and what
    loads which is another thing there than here: so all of them are attributes of ours."""
    if not name.startswith("_") and _modules.is_submodule(name):
        from importlib import import_module

        try:
            return import_module(f"{__name__}.{name}")
        except ImportError:
            pass  # one for another platform
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# Alias for main module -- will be reset by bootstrapping child processes
if "__main__" in sys.modules:
    sys.modules["__mp_main__"] = sys.modules["__main__"]
