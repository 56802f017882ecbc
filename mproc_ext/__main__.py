"""``python -m mproc_ext program.py args…``: see :mod:`mproc_ext._run`."""

from mproc_ext._run import main

__all__ = ()

if __name__ == "__main__":
    main()
