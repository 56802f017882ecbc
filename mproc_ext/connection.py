"""Connection, Pipe, Listener, Client and wait.

What sends and receives is in C (src/py/connection.c); the bytes on the way are the standard
library's, whose connections may have the other end.  Who may connect to a listener, and how that
is proved, is the standard library's code; what comes out is our Connection.
"""

# _pickling: queues need it, too. C would import it later, when there may be no descriptor left.
from mproc_ext import _core, _modules, _pickling, context, reduction

_std = _modules.overlay(__name__)
_graft = _modules.grafter(__name__)

__all__ = ["Client", "Listener", "Pipe", "wait"]

wait = _core.wait


@_core.own_methods
class Connection(_core.Connection, _std.Connection):
    """Messages, objects or bytes, through a descriptor: a pipe's or a socket's.

    Threads may share it: the messages of those who send do not mix, and each message is one
    receiver's.  Processes that share one end have to take turns, as with the standard library's.

    Raises ValueError where *handle* is no descriptor, and where it may be neither read from nor
    written to.
    """

    # By copy, or plain pickle: another connection with the same descriptor, as the stdlib's.
    def __getstate__(self):
        names = ("_handle", "_readable", "_writable")
        return {**self.__dict__, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state):
        for name, value in state.items():
            setattr(self, name, value)


# What the standard library's methods call: which of ours may do its work depends on nobody's having
# put something else in its place.
_BYTES = {name: getattr(Connection, name) for name in ("_send", "_recv")}
_HOOKS = {
    name: getattr(Connection, name)
    for name in (
        "_send_bytes",
        "_recv_bytes",
        "_poll",
        "_close",
        "_check_closed",
        "_check_readable",
        "_check_writable",
        "_bad_message_length",
        "fileno",  # by wait()
    )
}


# With defaults: it is called late at the interpreter's end, too, when there are no globals left.
def _kind_of(cls, bytes=_BYTES, hooks=_HOOKS):
    """0: no method is overridden that others call; 1: some are; 2: those which move bytes, too."""
    if any(getattr(cls, name) is not hook for name, hook in bytes.items()):
        return 2
    return int(any(getattr(cls, name) is not hook for name, hook in hooks.items()))


_core.serve_connections(_std.__dict__, _kind_of)


def Pipe(duplex=True):
    """Return a pair of connections, the two ends of a pipe.

    With *duplex* both can send and receive; without, the first receives and the second sends.
    """
    if duplex:
        ends = _std.socket.socketpair()
        for end in ends:
            end.setblocking(True)
        first, second = (Connection(end.detach()) for end in ends)
    else:
        reader, writer = _std.os.pipe()
        first, second = Connection(reader, writable=False), Connection(writer, readable=False)
    _core.join_ends(first, second, duplex)
    return first, second


class SocketListener(_std.SocketListener):
    """A socket that is bound to an address and listens."""

    accept = _graft(_std.SocketListener.accept)


class Listener(_std.Listener):
    """A socket that listens: accept() waits for a client, and returns the connection to it."""

    __init__ = _graft(_std.Listener.__init__)


SocketClient = _graft(_std.SocketClient)
Client = _graft(_std.Client)


class XmlListener(Listener, _std.XmlListener):
    """A listener whose connections send and receive by XML-RPC's rules, not by pickle's."""


XmlClient = _graft(_std.XmlClient)
_xml_dumps = _graft(_std._xml_dumps)  # they share a global with XmlClient
_xml_loads = _graft(_std._xml_loads)

_reduce_connection = _graft(_std.reduce_connection)


def reduce_connection(conn):
    """How a connection is pickled.  For a child of ours that is being started an end of a Pipe()
    keeps its shared memory; else what is pickled is its descriptor."""
    is_for_child = isinstance(context.get_spawning_popen(), _core.Child)
    parts = _core.end_parts(conn) if is_for_child else None
    if parts is None:
        return _reduce_connection(conn)
    from mproc_ext import _arena

    place, fd, side, is_socket, life = parts
    fd, life = reduction.DupFd(fd), reduction.DupFd(life) if life >= 0 else None
    state = (fd, conn.readable, conn.writable, _arena.hand_over_slot(*place), side, is_socket, life)
    return _rebuild_end, state


def _rebuild_end(fd, readable, writable, place, side, is_socket, life):
    from mproc_ext import _arena

    conn = Connection(fd.detach(), readable, writable)
    life = -1 if life is None else life.detach()
    _core.adopt_end(conn, *_arena.take_over(*place), side, is_socket, life)
    return conn


rebuild_connection = _graft(_std.rebuild_connection)
reduction.register(Connection, reduce_connection)
