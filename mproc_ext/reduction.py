"""Pickling of connections and descriptors: the stdlib's module itself, so that its state is one for both packages."""

from mproc_ext._modules import identity

identity(__name__)
