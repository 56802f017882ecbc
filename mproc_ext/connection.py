"""Pipe, Listener, Client and wait: the stdlib's module itself."""

from mproc_ext._modules import identity

identity(__name__)
