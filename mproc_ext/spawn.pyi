from multiprocessing.spawn import (
    WINEXE as WINEXE,
    WINSERVICE as WINSERVICE,
    _main as _main,
    get_executable as get_executable,
    get_preparation_data as get_preparation_data,
    import_main_path as import_main_path,
    is_forking as is_forking,
    old_main_modules as old_main_modules,
    prepare as prepare,
    set_executable as set_executable,
)
from typing import Any

__all__ = [
    "_main",
    "freeze_support",
    "set_executable",
    "get_executable",
    "get_preparation_data",
    "get_command_line",
    "import_main_path",
]

def get_command_line(**kwds: Any) -> list[str]: ...
def freeze_support() -> None: ...
