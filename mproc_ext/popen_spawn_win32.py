"""Process start on Windows: the stdlib's module, which cannot be imported on Linux either."""

from mproc_ext._modules import identity

identity(__name__)
