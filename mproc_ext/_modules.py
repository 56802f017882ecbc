"""Which module a name means: the stdlib's, ours, or ours under the stdlib's name.

Three families of names meet here, and one meta path finder answers for all of them:

``mproc_ext._stdlib.X``
    The stdlib's own ``multiprocessing.X``, always, also while ``multiprocessing`` means us.
    It is the very module the rest of the program sees, so that there is one set of children,
    one authkey, one registry of finalizers.
``multiprocessing`` and ``multiprocessing.X``
    After :func:`alias`, ``mproc_ext`` and ``mproc_ext.X``.
``mproc_ext.X`` without the C core
    The stdlib's ``multiprocessing.X``; in a frozen program this holds for what starts processes.

Most of our submodules replace only a few names of the stdlib's.  Such a module is an
:class:`Overlay`: what it defines itself is its own, everything else is read from, and written
to, the stdlib's module, live.  Whoever assigns to an internal (``mproc_ext.util._logger``) or
patches one reaches the code that uses it.
"""

import importlib
import multiprocessing as _package
import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType

from mproc_ext._finder import Finder

__all__ = ()

STDLIB = "multiprocessing"
OURS = "mproc_ext"
TRUE = "mproc_ext._stdlib"

aliased = False
accelerated = True


def need_core():
    """End this child, with one sentence, if it has no core: its parent speaks to one."""
    if not accelerated:
        sys.exit(
            "mproc_ext: the process that started this one runs with the package's C core, and this "
            "one without (see the log): unset MPROC_EXT_DISABLE, or make both use one installation"
        )


def stdlib(name):
    """The stdlib's submodule *name*, loaded if need be, whatever ``multiprocessing`` means."""
    return importlib.import_module(f"{TRUE}.{name}")


def is_submodule(name):
    """Whether the running Python's multiprocessing has a submodule of this (dotted) name."""
    return _find_stdlib(name) is not None


def _is_private(name):
    """Whether this package has a module of this name, which the stdlib's has not."""
    if "." in name:
        return False
    return PathFinder.find_spec(f"{OURS}.{name}", sys.modules[OURS].__path__) is not None


def _is_frozen_start(name):
    """Whether the module starts processes, and this program has no interpreter that a command line
    could be given to.  Those who freeze programs (PyInstaller) know the stdlib's command lines."""
    return name in ("forkserver", "popen_forkserver", "popen_spawn_posix") and getattr(
        sys, "frozen", False
    )


def _find_stdlib(name):
    parent = name.rpartition(".")[0]
    path = _find_stdlib(parent).submodule_search_locations if parent else _package.__path__
    return PathFinder.find_spec(f"{STDLIB}.{name}", path)


def _load_stdlib(name):
    """Import the stdlib's submodule *name* under its own name, past the alias."""
    full = f"{STDLIB}.{name}"
    if not aliased:
        return importlib.import_module(full)
    from importlib.util import module_from_spec

    spec = _find_stdlib(name)
    if spec is None:
        raise ModuleNotFoundError(f"No module named {full!r}", name=full)
    module = module_from_spec(spec)
    # A package's submodules, which it may import itself, find it here.
    sys.modules[f"{TRUE}.{name}"] = module
    spec.loader.exec_module(module)
    return module


class _Loader:
    """Makes a name in sys.modules mean a module that exists, or is made, elsewhere.

    The module is put there itself, never a stand-in for it: another thread that imports the same
    name meanwhile would be given the stand-in for good.
    """

    def __init__(self, obtain):
        self._obtain = obtain

    def create_module(self, spec):
        module = self._obtain()
        self._spec = module.__spec__
        # What the import system sets where it is missing, and what it sets in any case.
        if not hasattr(module, "__path__"):
            spec.submodule_search_locations = None
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec


def find_spec(fullname):
    """The spec of a module that the package provides or, under the alias, stands for; or None."""
    top, _, name = fullname.partition(".")
    if top == OURS and name:
        if name.startswith("_stdlib."):
            name = name.removeprefix("_stdlib.")
            return _spec(fullname, lambda: _load_stdlib(name))
        if not accelerated and name == "futures":
            return _spec(fullname, lambda: importlib.import_module("concurrent.futures.process"))
        if (not accelerated or _is_frozen_start(name)) and is_submodule(name):
            return _spec(fullname, lambda: stdlib(name))
    elif aliased and top == STDLIB:
        if not name:
            return _spec(fullname, lambda: sys.modules[OURS])
        # Our private modules too: pkgutil lists them, and they must not be loaded twice.
        if not is_submodule(name) and not _is_private(name):
            return None
        return _spec(fullname, lambda: importlib.import_module(f"{OURS}.{name}"))
    return None


def _spec(fullname, obtain):
    spec = ModuleSpec(fullname, _Loader(obtain))
    spec.submodule_search_locations = []  # a submodule of the result may be imported through it
    return spec


_MOST_REPLACED = 10  # values of a name that are kept: the first, and the last ones


class Overlay(ModuleType):
    """A module that is the stdlib's module of the same name but for what it defines itself.

    What it does not define itself is got from the stdlib's module, and set there.  Deleting what
    has been set brings back what was there before: tools that replace a name for a while, as
    pytest's monkeypatch does, find it missing in our __dict__, and delete it in the end.
    """

    def __getattr__(self, name):
        if (name.startswith("__") and name != "__all__") or name in self.__dict__["_deleted"]:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        try:
            return getattr(self.__dict__["_stdlib"], name)
        except AttributeError:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}") from None

    def __setattr__(self, name, value):
        own = self.__dict__
        if name in own or name in own["_deleted"] or name.startswith("__"):
            own["_deleted"].discard(name)
            own[name] = value
            return
        under, replaced = own["_stdlib"], own["_replaced"]
        if name in under.__dict__:
            before = replaced.setdefault(name, [])
            before.append(under.__dict__[name])
            if len(before) > _MOST_REPLACED:
                del before[1]
        setattr(under, name, value)

    def __delattr__(self, name):
        own = self.__dict__
        if name in own:
            del own[name]
            own["_deleted"].add(name)
        elif own["_replaced"].get(name):
            setattr(own["_stdlib"], name, own["_replaced"][name].pop())
        else:
            delattr(own["_stdlib"], name)

    def __reduce__(self):
        # cloudpickle and dill know modules by their exact type.
        return importlib.import_module, (self.__name__,)

    def __dir__(self):
        return sorted(set(self.__dict__) | set(dir(self.__dict__["_stdlib"])))


def overlay(module_name):
    """Turn the calling module into an :class:`Overlay`; returns the stdlib's module under it."""
    under = _lay_over(module_name)
    announce(module_name)
    return under


class _Names(dict):
    """The globals of the stdlib's functions in an overlay: its names, as they are at the moment."""

    def __init__(self, module_name, others):
        super().__init__(__name__=module_name, __package__=OURS, **others)
        self._own = sys.modules[module_name].__dict__
        self._under = self._own["_stdlib"].__dict__

    def __missing__(self, name):
        own = self._own
        if name in own:
            return own[name]
        if name in self._under and name not in own["_deleted"]:
            return self._under[name]
        raise KeyError(name)  # one of the builtins


def grafter(module_name, **others):
    """A function that gives the stdlib's functions the calling overlay's names as globals.

    The stdlib's Listener makes a SocketListener: after a graft, ours, or what a program has put in
    its place.  *others* are names that mean something else there.  For what is not called often: a
    global costs half a microsecond, and one of the builtins a whole one.
    """
    names = _Names(module_name, others)

    def graft(function):
        # Compiled with the program (Nuitka), or replaced by another library: it stays what it is.
        if type(function) is not FunctionType or function.__globals__ is not names._under:
            return function
        grafted = FunctionType(
            function.__code__,
            names,
            function.__name__,
            function.__defaults__,
            function.__closure__,
        )
        grafted.__kwdefaults__ = function.__kwdefaults__
        grafted.__qualname__ = function.__qualname__
        return grafted

    return graft


def identity(module_name):
    """Make *module_name*, which is being imported, the stdlib's module itself.

    A thread that imports it meanwhile has found the module that is being executed, and keeps that
    one: hence it has the stdlib's names too.
    """
    sys.modules[module_name] = _lay_over(module_name)
    announce(module_name)


def _lay_over(module_name):
    under = stdlib(module_name.removeprefix(OURS + "."))
    module = sys.modules[module_name]
    module.__dict__["_stdlib"] = under
    module.__dict__["_deleted"] = set()  # of what the module defines itself
    module.__dict__["_replaced"] = {}  # name -> the values that it had in the stdlib's module
    module.__class__ = Overlay
    return under


def announce(module_name):
    """Under the alias, put a module that is imported by our name under the stdlib's as well: so
    does `from multiprocessing import X`, which asks for the submodule X of mproc_ext."""
    if aliased:
        theirs = f"{STDLIB}.{module_name.removeprefix(OURS + '.')}"
        sys.modules.setdefault(theirs, sys.modules[module_name])


sys.meta_path.insert(0, Finder)
# Now: another thread would take it for no package until it has been executed.
importlib.import_module(TRUE)
