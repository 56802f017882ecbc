"""What the ``.pth`` file calls at the start of a Python that runs with MPROC_EXT_ALIAS=1."""

__all__ = ["enable"]


def enable():
    """Make ``import multiprocessing`` mean this package."""
    from mproc_ext import _alias

    _alias.install()
