"""Passing of sockets and descriptors on request: the stdlib's module itself, with one state for both packages."""

from mproc_ext._modules import identity

identity(__name__)
