from collections.abc import Sequence
from typing import Final, Literal

__all__ = [
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
]

MAXFDS_TO_SEND: Final[int]

class ForkServer:
    def set_forkserver_preload(
        self, modules_names: list[str], *, on_error: Literal["ignore", "warn", "fail"] = "ignore"
    ) -> None: ...
    def get_inherited_fds(self) -> list[int] | None: ...
    def connect_to_new_process(
        self, fds: Sequence[int], *, daemon: bool = False
    ) -> tuple[int, int]: ...
    def ensure_running(self) -> None: ...

def read_signed(fd: int) -> int: ...
def write_signed(fd: int, n: int) -> None: ...

_forkserver: ForkServer
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
