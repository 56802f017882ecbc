"""What the ``.pth`` file calls at the start of a Python that runs with MPROC_EXT_ALIAS=1.

It stands outside of the package, because to import a module of the package is to import
multiprocessing, and most Pythons that inherit the variable never do that.  They pay for one entry
in ``sys.meta_path``; the first import of multiprocessing, or of mproc_ext, installs the alias.
"""

import sys

__all__ = ["enable"]

_NAMES = ("multiprocessing", "mproc_ext")


def enable():
    """Make ``import multiprocessing`` mean mproc_ext from its first import on."""
    if any(name in sys.modules for name in _NAMES):
        _install()
    else:
        sys.meta_path.insert(0, _FirstImport())


def _install():
    from mproc_ext import _alias

    _alias.install()


class _FirstImport:
    """A meta path finder that is asked once, and the loader of what it finds."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _NAMES:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        # The import system takes what stands in sys.modules after this call for the result.
        del sys.modules[module.__spec__.name]
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            _install()
        except BaseException:
            sys.meta_path.insert(0, self)
            raise
