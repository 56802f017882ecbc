"""Pipe, Listener and Client over threads: the stdlib's module itself."""

from mproc_ext._modules import identity

identity(__name__)
