import sys
from multiprocessing.connection import (
    answer_challenge as answer_challenge,
    deliver_challenge as deliver_challenge,
    wait as wait,
)

__all__ = ["Client", "Listener", "Pipe", "wait"]

if sys.platform == "win32":
    from multiprocessing.connection import (
        Client as Client,
        Connection as Connection,
        Listener as Listener,
        Pipe as Pipe,
        PipeConnection as PipeConnection,
    )
else:
    from multiprocessing import connection as _std
    from typing import Any

    from typing_extensions import TypeVar

    _Sent = TypeVar("_Sent", contravariant=True, default=Any)
    _Received = TypeVar("_Received", covariant=True, default=Any)

    class Connection(_std.Connection[_Sent, _Received]): ...

    class Listener(_std.Listener):
        def accept(self) -> Connection[Any, Any]: ...

    def Client(
        address: _std._Address, family: str | None = None, authkey: bytes | None = None
    ) -> Connection[Any, Any]: ...
    def Pipe(duplex: bool = True) -> tuple[Connection[Any, Any], Connection[Any, Any]]: ...
