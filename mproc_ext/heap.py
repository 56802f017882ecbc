"""The heap of shared ctypes objects: the stdlib's module, one state for both packages."""

from mproc_ext._modules import identity

identity(__name__)
