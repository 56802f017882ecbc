"""The stdlib's own multiprocessing, as ``mproc_ext._stdlib.X``, also while it is aliased.

Its submodules are found by :mod:`mproc_ext._modules`.  Pickles made while ``multiprocessing``
means this package name the stdlib's classes by this path where we have one of the same name.
"""

__all__ = ()
__path__ = []
