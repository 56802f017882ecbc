"""Shared memory blocks with a name: the stdlib's."""

from mproc_ext import _modules

_modules.identity(__name__)
