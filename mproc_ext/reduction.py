"""Pickling of connections and descriptors: the stdlib's module itself, with one state for both packages."""

from mproc_ext._modules import identity

identity(__name__)
