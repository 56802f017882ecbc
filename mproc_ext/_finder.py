"""What stands on ``sys.meta_path`` for this package, for as long as the interpreter runs.

It knows nothing but a name.  A finder of _modules itself would keep all that multiprocessing knows
(the target of this process, and its globals) from the interpreter's last garbage collection: before
3.12 a ``__del__`` would find its globals gone.
"""

import sys

__all__ = ()


class Finder:
    @staticmethod
    def find_spec(fullname, path=None, target=None):
        modules = sys.modules.get("mproc_ext._modules")
        return None if modules is None else modules.find_spec(fullname)
