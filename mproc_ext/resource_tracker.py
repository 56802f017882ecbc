"""The process that unlinks leaked names: the stdlib's module, one state for both packages."""

from mproc_ext._modules import identity

identity(__name__)
