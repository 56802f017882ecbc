import sys

if sys.platform == "win32":
    from multiprocessing.popen_spawn_win32 import (
        TERMINATE as TERMINATE,
        WINENV as WINENV,
        WINEXE as WINEXE,
        WINSERVICE as WINSERVICE,
        Popen as Popen,
    )

    __all__ = ["Popen"]
