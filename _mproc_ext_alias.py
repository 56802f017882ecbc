"""What the ``.pth`` file calls at the start of a Python that runs with MPROC_EXT_ALIAS=1.

It stands outside of the package, because to import a module of the package is to import
multiprocessing, and most Pythons that inherit the variable never do that.  They pay for one entry
in ``sys.meta_path``; the first import of multiprocessing, or of mproc_ext, installs the alias.

So does the import of threading, without which there are no other threads: one that imported
multiprocessing while the alias is being installed would find half of either package.
"""

import sys

__all__ = ["enable"]

_PACKAGES = ("multiprocessing", "mproc_ext")
_THREADS = "threading"


def enable():
    """Make ``import multiprocessing`` mean mproc_ext from its first import on."""
    if any(name in sys.modules for name in (*_PACKAGES, _THREADS)):
        _install()
    else:
        sys.meta_path.insert(0, _FirstImport())


def _install():
    from mproc_ext import _alias

    _alias.install()


class _FirstImport:
    """A meta path finder that is asked once, and the loader of what it finds."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _PACKAGES and fullname != _THREADS:
            return None
        from importlib.machinery import ModuleSpec

        return ModuleSpec(fullname, self, is_package=fullname in _PACKAGES)

    def create_module(self, spec):
        """The module itself, imported by those who can once this finder is out of the way."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        try:
            if spec.name == _THREADS:
                __import__(_THREADS)
            _install()
        except BaseException:
            sys.meta_path.insert(0, self)
            raise
        module = sys.modules[spec.name]
        self._spec = module.__spec__
        return module

    def exec_module(self, module):
        module.__spec__ = self._spec  # the import system has put its own there
