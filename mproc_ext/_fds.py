"""Descriptors that the program may close behind our back, so that the number is another file's."""

import contextlib
import os

__all__ = ()


def identity(fd):
    """What makes a file itself, whatever number leads to it; None where the number is free."""
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def close(fd, known):
    """Close a descriptor, if it is still that of the file which has this identity."""
    if identity(fd) == known:
        with contextlib.suppress(OSError):  # another thread was quicker
            os.close(fd)
