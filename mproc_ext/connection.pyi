import sys
from multiprocessing.connection import (
    Client as Client,
    Connection as Connection,
    Listener as Listener,
    Pipe as Pipe,
    answer_challenge as answer_challenge,
    deliver_challenge as deliver_challenge,
    wait as wait,
)

if sys.platform == "win32":
    from multiprocessing.connection import PipeConnection as PipeConnection

__all__ = ["Client", "Listener", "Pipe", "wait"]
