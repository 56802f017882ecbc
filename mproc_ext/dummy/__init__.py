"""The same interface over threads: the stdlib's package itself."""

from mproc_ext._modules import identity

identity(__name__)
