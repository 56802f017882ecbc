"""Listener, Client and the proof of the key: addresses, errors and what comes out."""

import contextlib
import gc
import os
import socket
import sys
from unittest import mock

import connection_listener_targets
import pytest
from connection_helpers import OURS, close, fds, framed, messages_in, raw_writer, theirs, write_all
from sync_helpers import LIMIT, Child, Task, outcome, run_program

from mproc_ext import connection as our, reduction

KEY = b"a key"
# An empty one is no key to older listeners, and is one to their clients.
KEYS = [None, KEY, bytes(1000), *([b""] if sys.version_info >= (3, 13) else [])]
FAMILIES = ("AF_UNIX", "abstract", "AF_INET", "arbitrary")


def an_address(kind, tmp_path):
    """What a Listener is given for its address."""
    if kind == "AF_UNIX":
        return str(tmp_path / "socket")
    if kind == "abstract":
        return f"\0{tmp_path}"
    return ("127.0.0.1", 0) if kind == "AF_INET" else None


@pytest.fixture(params=FAMILIES)
def address(request, tmp_path):
    return an_address(request.param, tmp_path)


def met(listener, module, **client):
    """(the listener's connection, the client's), of a client of any module."""
    task = Task(listener.accept)
    theirs = module.Client(listener.address, **client)
    return task.get(), theirs


# -- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("key", KEYS)
def test_conversation(connection, address, key):
    with connection.Listener(address, authkey=key) as listener:
        ours, client = met(listener, connection, authkey=key)
        for end in (ours, client):
            assert type(end) is connection.Connection
            assert (end.readable, end.writable, end.closed) == (True, True, False)
        for sender, receiver in ((ours, client), (client, ours)):
            sender.send(["one", 2])
            sender.send_bytes(b"three")
            assert receiver.recv() == ["one", 2]
            assert receiver.recv_bytes() == b"three"
        client.close()
        with pytest.raises(EOFError):
            ours.recv()
        close(ours)


def test_who_was_accepted(modules, tmp_path):
    for module in modules:
        with module.Listener(("127.0.0.1", 0)) as listener:
            assert listener.last_accepted is None
            ours, client = met(listener, module)
            with socket.socket(fileno=os.dup(client.fileno())) as there:
                assert listener.last_accepted == there.getsockname()
            close(ours, client)
        with module.Listener(str(tmp_path / "socket")) as listener:
            assert listener.address == str(tmp_path / "socket")
            close(*met(listener, module))
            assert listener.last_accepted == ""


def test_arbitrary_addresses(connection):
    with connection.Listener() as one, connection.Listener(family="AF_UNIX") as two:
        assert one.address != two.address
        assert os.path.exists(one.address)
        assert os.path.exists(two.address)
    with connection.Listener(family="AF_INET") as listener:
        assert listener.address[0] == "127.0.0.1"
        assert listener.address[1] > 0


def test_several_clients(connection, address):
    with connection.Listener(address, backlog=5, authkey=KEY) as listener:
        clients = [Task(connection.Client, listener.address, None, KEY) for _ in range(5)]
        accepted = [listener.accept() for _ in clients]
        clients = [task.get() for task in clients]
        for number, client in enumerate(clients):
            client.send(number)
        assert sorted(end.recv() for end in accepted) == list(range(5))
        close(*accepted, *clients)


def test_a_name_is_gone_with_its_listener(connection, tmp_path):
    path = tmp_path / "socket"
    listener = connection.Listener(str(path))
    assert path.is_socket()
    listener.close()
    listener.close()
    assert not path.exists()
    listener = connection.Listener(str(path))
    del listener
    gc.collect()
    assert not path.exists()


def test_the_default_timeout_of_sockets_is_not_a_connections(connection):
    """Who waits for a message waits for it, whatever the program wants of its own sockets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.01)
    try:
        with connection.Listener() as listener:
            ours, client = met(listener, connection)
            for end in (ours, client):
                assert os.get_blocking(end.fileno())
            close(ours, client)
    finally:
        socket.setdefaulttimeout(before)


def test_descriptors_are_the_connections(connection, address):
    before = fds()
    with connection.Listener(address, authkey=KEY) as listener:
        ends = met(listener, connection, authkey=KEY)
        assert len(fds() - before) == 3
        assert not any(os.get_inheritable(end.fileno()) for end in ends)
        close(*ends)
    assert fds() <= before


def test_xml(connection):
    import xmlrpc.client

    with connection.XmlListener(authkey=KEY) as listener:
        task = Task(listener.accept)
        client = connection.XmlClient(listener.address, authkey=KEY)
        ours = task.get()
        for end in (ours, client):
            assert type(end) is connection.ConnectionWrapper
            assert type(end._conn) is connection.Connection
        client.send(["one", 2, None])
        assert ours.poll(LIMIT)
        assert ours.recv() == ["one", 2, None]
        ours.send({"four": 5.5})
        assert xmlrpc.client.loads(client.recv_bytes())[0] == ({"four": 5.5},)
        close(ours, client)


@pytest.mark.skipif(not OURS, reason="there are only the stdlib's")
def test_what_the_stdlib_knows_them_as():
    for name in ("Connection", "Listener", "SocketListener", "XmlListener"):
        ours, stdlibs = getattr(our, name), getattr(theirs, name)
        assert ours is not stdlibs
        assert issubclass(ours, stdlibs)
    with theirs.Listener() as listener:
        task = Task(listener.accept)
        with our.Client(listener.address) as client:
            assert type(task.get()) is theirs.Connection
            assert isinstance(client, theirs.Connection)


# -- errors ---------------------------------------------------------------------------------------

# Calls that fail, or not, without a peer.  What they open is dropped.
CALLS = {
    "unknown family": lambda m, p: m.Listener(family="AF_NONE"),
    "Windows' family": lambda m, p: m.Listener(family="AF_PIPE"),
    "family that is no text": lambda m, p: m.Listener(family=1),
    "address of another family": lambda m, p: m.Listener(("127.0.0.1", 0), "AF_UNIX"),
    "name as an AF_INET address": lambda m, p: m.Listener(p("a"), "AF_INET"),
    "number for an address": lambda m, p: m.Listener(5),
    "list for an address": lambda m, p: m.Listener(["127.0.0.1", 0]),
    "bytes that are no abstract name": lambda m, p: m.Listener(b"name"),
    "abstract name of bytes": lambda m, p: m.Listener(b"\0" + p("b").encode()).address,
    "Windows' address": lambda m, p: m.Listener(r"\\.\pipe\x"),
    "folder that is not there": lambda m, p: m.Listener(p("none/socket")),
    "longest name": lambda m, p: len(m.Listener(p("long", 107)).address),
    "name that is too long": lambda m, p: m.Listener(p("long", 108)),
    "abstract name that is too long": lambda m, p: m.Listener("\0" + "x" * 108),
    "name that is taken": lambda m, p: [m.Listener(p("taken")) for _ in range(2)],
    "port that is too high": lambda m, p: m.Listener(("127.0.0.1", 65536)),
    "host that is not here": lambda m, p: m.Listener(("192.0.2.1", 0)),
    "text for a key": lambda m, p: m.Listener(authkey="text"),
    "number for a key": lambda m, p: m.Listener(p("key"), authkey=0),
    "bytearray for a key": lambda m, p: m.Listener(authkey=bytearray(b"key")),
    "text for a backlog": lambda m, p: m.Listener(backlog="one"),
    "backlog below 0": lambda m, p: type(m.Listener(backlog=-1).address),
    "too many arguments": lambda m, p: m.Listener(None, None, 1, None, None),
    "closed listener": lambda m, p: shut(m.Listener(p("shut"))).accept(),
    "address of a closed listener": lambda m, p: shut(m.Listener(p("shut"))).address,
    "last_accepted of a closed listener": lambda m, p: shut(m.Listener(p("shut"))).last_accepted,
    "with a closed listener": lambda m, p: shut(m.Listener(p("shut"))).__enter__().accept(),
    "client of nobody": lambda m, p: m.Client(p("nobody")),
    "client of one who has gone": lambda m, p: m.Client(left(m.Listener(p("left")))),
    "client of a file": lambda m, p: m.Client(touched(p("file"))),
    "client of a closed port": lambda m, p: m.Client(left(m.Listener(("127.0.0.1", 0)))),
    "client without an address": lambda m, p: m.Client(None),
    "client of a number": lambda m, p: m.Client(7),
    "client of Windows' address": lambda m, p: m.Client(r"\\.\pipe\x"),
    "client of Windows' family": lambda m, p: m.Client(p("x"), family="AF_PIPE"),
    "client of an unknown family": lambda m, p: m.Client(p("x"), family="AF_NONE"),
    "client of a name that is too long": lambda m, p: m.Client(p("long", 108)),
    "client of no host": lambda m, p: m.Client(("", 0)),
    "client of three": lambda m, p: m.Client(("127.0.0.1", 1, 2)),
    "client with text for a key": lambda m, p: m.Client(listens(m, p("c")).address, authkey="key"),
    "socket listener of no family": lambda m, p: m.SocketListener(p("s"), "AF_NONE"),
    "socket client of nobody": lambda m, p: m.SocketClient(p("nobody")),
    "rebuilt of nothing": lambda m, p: m.rebuild_connection(None, True, True),
    "reduced when closed": lambda m, p: m.reduce_connection(closed(m)),
    "XML client of nobody": lambda m, p: m.XmlClient(p("nobody")),
    "challenge with text": lambda m, p: m.deliver_challenge(closed(m), "text"),
    "challenge of a closed connection": lambda m, p: m.deliver_challenge(closed(m), KEY),
    "answer with text": lambda m, p: m.answer_challenge(closed(m), "text"),
    "answer of a closed connection": lambda m, p: m.answer_challenge(closed(m), KEY),
}
FAIL = {
    name
    for name in CALLS
    if name not in ("abstract name of bytes", "longest name", "backlog below 0")
}


def shut(listener):
    listener.close()
    return listener


def left(listener):
    address = listener.address
    listener.close()
    return address


def touched(path):
    open(path, "w").close()
    return path


def closed(module):
    first, second = module.Pipe()
    close(first, second)
    return first


listening = []


def listens(module, address):
    listening.append(module.Listener(address))
    return listening[-1]


@pytest.mark.parametrize("call", CALLS)
def test_errors_are_the_stdlibs(modules, call, monkeypatch, tmp_path):
    """A message may name the path: it is the same one, and free again, for each of them."""
    monkeypatch.chdir(tmp_path)

    def path(name, length=0):
        return name.ljust(length, "x")

    results = []
    for module in modules:
        results.append(outcome(CALLS[call], module, path))
        while listening:
            listening.pop().close()
        gc.collect()
        for name in os.listdir(tmp_path):
            os.unlink(name)
    assert results[1] == results[0]
    assert (results[0][0] != "returns") == (call in FAIL)


# -- the proof of the key -------------------------------------------------------------------------

LEGACY = b"#CHALLENGE#" + bytes(20)
MODERN = b"#CHALLENGE#{sha256}" + bytes(40)
WELCOME, FAILURE = b"#WELCOME#", b"#FAILURE#"

# What a peer says, and then nothing more.
TORN = {
    "nothing": b"",
    "half a header": b"\0\0",
    "a header alone": framed(MODERN)[:4],
    "half a message": framed(MODERN)[:30],
    "more than is read": framed(bytes(257)),
    "a size that is absurd": b"\xff\xff\xff\xff\x10" + bytes(7),
}
TO_ANSWER = {
    **TORN,
    "no challenge": framed(b"hello"),
    "an empty message": framed(b""),
    "a short challenge": framed(b"#CHALLENGE#" + bytes(5)),
    "a challenge and nothing": framed(MODERN),
    "a legacy challenge and nothing": framed(LEGACY),
    "a welcome": framed(MODERN) + framed(WELCOME),
    "a legacy welcome": framed(LEGACY) + framed(WELCOME),
    "a failure": framed(MODERN) + framed(FAILURE),
    "another word": framed(MODERN) + framed(b"#WELCOMED#"),
    "half a welcome": framed(MODERN) + framed(WELCOME)[:6],
    "an unknown digest": framed(b"#CHALLENGE#{none}" + bytes(40)) + framed(WELCOME),
    "another digest": framed(b"#CHALLENGE#{sha3_384}" + bytes(40)) + framed(WELCOME),
    "an open brace": framed(b"#CHALLENGE#{sha256" + bytes(40)) + framed(WELCOME),
    "as much as is read": framed(MODERN.ljust(256)) + framed(WELCOME),
}
ACCEPTED = {"a welcome", "a legacy welcome", "another digest", "as much as is read"}
# Before 3.12 there was but one, and nobody said which.
OF_NO_DIGEST = {"an unknown digest", "an open brace"}
TO_DELIVER = {
    **TORN,
    "an empty message": framed(b""),
    "a wrong digest": framed(b"{sha256}" + bytes(32)),
    "a wrong legacy digest": framed(bytes(16)),
    "a digest that is too short": framed(b"{sha256}" + bytes(31)),
    "a digest that is too long": framed(b"{md5}" + bytes(32)),
    "an unknown digest": framed(b"{none}" + bytes(32)),
    "no digest": framed(b"hello"),
    "as much as is read": framed(bytes(256)),
}


def said_to(module, function, kind, words):
    """What a function of the module makes of a peer's words, what it says, and the connection's
    state then."""
    with raw_writer(module, kind) as (end, peer):
        write_all(peer, words)
        with socket.socket(fileno=os.dup(peer)) as there:
            there.shutdown(socket.SHUT_WR)
        result = outcome(function, end, KEY)
        state = end.closed, bool(end.readable), end.writable
        end.close()
        said, rest = messages_in(read_until_end(peer))
        assert rest == b""
        return result, said, state


def read_until_end(fd):
    """What has been said does not have to be read before the connection is closed."""
    pieces = []
    with contextlib.suppress(ConnectionResetError):
        while piece := os.read(fd, 1 << 16):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("kind", ["socketpair", "tcp"])
@pytest.mark.parametrize("words", TO_ANSWER)
def test_answer_to_a_peer(modules, kind, words):
    first, second = (
        said_to(module, module.answer_challenge, kind, TO_ANSWER[words]) for module in modules
    )
    if kind == "tcp":  # what the peer gets of it depends on how fast it is reset
        first, second = (first[0], first[2]), (second[0], second[2])
    assert second == first
    accepted = ACCEPTED if hasattr(theirs, "_create_response") else ACCEPTED | OF_NO_DIGEST
    assert (first[0] == ("returns", "None")) == (words in accepted)


@pytest.mark.parametrize("words", TO_DELIVER)
def test_challenge_to_a_peer(modules, words):
    results = []
    for module in modules:
        result, said, state = said_to(
            module, module.deliver_challenge, "socketpair", TO_DELIVER[words]
        )
        challenge, *rest = said
        assert challenge.startswith(b"#CHALLENGE#")
        results.append((result, len(challenge), rest, state))
    assert results[1] == results[0]
    assert results[0][0][0] != "returns"


@pytest.mark.skipif(not OURS, reason="the stdlib takes a negative size for an empty message")
def test_a_negative_size_is_an_error(ours):
    for function in (ours.answer_challenge, ours.deliver_challenge):
        result = said_to(ours, function, "socketpair", b"\xff\xff\xff\xfe")[0]
        assert result[:2] == ("OSError", "bad message length")


def keys_met(module, address, ours, theirs):
    """What a listener with one key and a client with another make of each other."""
    with module.Listener(address, authkey=ours) as listener:
        # A side without a key waits for a message, and then for a second one, in vain.
        def accept():
            with listener.accept() as end:
                return end.recv_bytes()

        def connect():
            with module.Client(listener.address, authkey=theirs) as end:
                end.send_bytes(b"a word")
                return end.recv_bytes()

        client = Task(outcome, connect)
        return outcome(accept), client.get()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(KEY, b"another"), (KEY, b""), (KEY, KEY + b"."), (KEY, KEY[:-1])],
)
def test_different_keys(modules, address, ours, theirs):
    first, second = (keys_met(module, address, ours, theirs) for module in modules)
    assert second == first
    assert {first[0][0], first[1][0]} <= {"AuthenticationError", "EOFError", "OSError"}


def test_a_key_on_one_side_only(connection, address):
    """A client that has none sees the challenge; a listener that has none, what is no answer."""
    with connection.Listener(address, authkey=KEY) as listener:
        accepting = Task(outcome, listener.accept)
        with connection.Client(listener.address) as client:
            assert client.recv_bytes().startswith(b"#CHALLENGE#")
            client.send_bytes(b"what?")
            assert client.recv_bytes() == FAILURE
        assert accepting.get()[0] == "AuthenticationError"
    with connection.Listener(address) as listener:
        connecting = Task(outcome, connection.Client, listener.address, None, KEY)
        with listener.accept() as ours:
            ours.send_bytes(b"what?")
            assert connecting.get()[0] in ("AuthenticationError", "AssertionError")
            with pytest.raises(EOFError):
                ours.recv_bytes()


def test_a_refused_client_is_let_go(connection, address):
    """The listener goes on, and keeps no descriptor of it."""
    before = fds()
    with connection.Listener(address, authkey=KEY) as listener:
        for _ in range(3):
            client = Task(outcome, connection.Client, listener.address, None, b"another")
            with pytest.raises(connection.AuthenticationError):
                listener.accept()
            assert client.get()[0] == "AuthenticationError"
        close(*met(listener, connection, authkey=KEY))
        gc.collect()
        assert len(fds() - before) == 1
    assert fds() <= before


def test_a_client_that_hangs_up_is_an_error_of_one_accept(connection, address):
    with connection.Listener(address, authkey=KEY) as listener:
        connection.Client(listener.address).close()
        with pytest.raises((EOFError, BrokenPipeError, ConnectionResetError)):
            listener.accept()
        close(*met(listener, connection, authkey=KEY))


# -- to other processes, and patches --------------------------------------------------------------


def test_pickled_by_us_is_ours(modules):
    for module in modules:
        with module.Listener() as listener:
            ours, client = met(listener, module)
            pickled = bytes(reduction.ForkingPickler.dumps(client))
            client.close()
            copy = reduction.ForkingPickler.loads(pickled)
            assert type(copy) is module.Connection
            assert (copy.readable, copy.writable) == (True, True)
            copy.send("through the copy")
            assert ours.recv() == "through the copy"
            close(ours, copy)
        reader, writer = module.Pipe(False)
        for end in (reader, writer):
            copy = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(end))
            assert type(copy) is module.Connection
            assert (copy.readable, copy.writable) == (end.readable, end.writable)
            close(copy, end)


def test_listener_in_a_child(package, connection, address):
    with connection.Listener(address, authkey=KEY) as listener:
        child = Child(package.get_context("fork"), connection_listener_targets.serve_one, listener)
        child.expect(listener.address)
        with connection.Client(listener.address, authkey=KEY) as client:
            client.send(41)
            assert client.recv() == 42
        child.join()


def test_listener_that_is_pickled(package, connection, method):
    """What has no name in the file system can be."""
    with connection.Listener(("127.0.0.1", 0), authkey=KEY) as listener:
        ctx = package.get_context(method)
        child = Child(ctx, connection_listener_targets.serve_one, listener)
        child.expect(listener.address)
        with connection.Client(listener.address, authkey=KEY) as client:
            client.send(41)
            assert client.recv() == 42
        child.join()


# name in the module -> what uses it.
USES = {
    "SocketListener": lambda m: m.Listener(),
    "SocketClient": lambda m: m.Client("nowhere"),
    "address_type": lambda m: m.Client("nowhere"),
    "arbitrary_address": lambda m: m.Listener(),
    "_validate_family": lambda m: m.Client("nowhere"),
    "socket": lambda m: m.SocketClient(("127.0.0.1", 1)),
    "deliver_challenge": lambda m: accept_one(m, KEY),
    "answer_challenge": lambda m: connect_one(m, KEY),
    "Connection": lambda m: accept_one(m),
    "Client": lambda m: m.XmlClient("nowhere"),
    "ConnectionWrapper": lambda m: m.XmlClient(listens(m, None).address),
    "rebuild_connection": lambda m: m.reduce_connection(m.Pipe()[0])[0](),
}


def accept_one(module, key=None):
    with module.Listener(authkey=key) as listener:
        client = module.SocketClient(listener.address)
        try:
            return listener.accept()
        finally:
            close(client)


def connect_one(module, key=None):
    with module.Listener() as listener:
        return module.Client(listener.address, authkey=key)


@pytest.mark.parametrize("name", USES)
def test_what_a_program_puts_in_place_of_a_name_is_used(connection, name):
    before = getattr(connection, name)
    with mock.patch.object(connection, name) as stand_in:
        stand_in.side_effect = LookupError("the stand-in was called")
        stand_in.socket.side_effect = LookupError("the stand-in was called")
        try:
            with pytest.raises(LookupError, match="the stand-in was called"):
                USES[name](connection)
        finally:
            while listening:
                listening.pop().close()
    assert getattr(connection, name) is before


@pytest.mark.skipif(not OURS, reason="there are only the stdlib's")
def test_patches_of_one_module_are_not_the_others():
    for name in ("SocketListener", "SocketClient", "Client", "Connection", "rebuild_connection"):
        before = getattr(theirs, name)
        with mock.patch.object(our, name):
            assert getattr(theirs, name) is before


PATCHED = """
from unittest import mock
import multiprocessing.connection, multiprocessing.managers, mproc_ext
assert multiprocessing is mproc_ext
with mock.patch("multiprocessing.connection.SocketClient", return_value="stand-in"):
    assert multiprocessing.connection.Client("nowhere") == "stand-in"
with mock.patch("multiprocessing.connection.Connection", side_effect=lambda *_, **__: "end"):
    assert multiprocessing.Pipe() == ("end", "end")
with multiprocessing.connection.Listener(authkey=b"key") as listener:
    with mock.patch("multiprocessing.connection.answer_challenge", side_effect=LookupError("why")):
        try:
            multiprocessing.connection.Client(listener.address, authkey=b"key")
        except LookupError as error:
            print(error)
"""


@pytest.mark.skipif(not OURS, reason="there is no alias for the stdlib")
def test_patches_under_the_alias(tmp_path):
    program = tmp_path / "patched.py"
    program.write_text(PATCHED)
    assert run_program("-m", "mproc_ext", program) == "why\n"


def test_accept_in_a_thread_ends_with_an_error_when_the_socket_does(connection):
    """close() of another thread does not wake it; a shutdown of the socket does."""
    listener = connection.Listener()
    task = Task(outcome, listener.accept)
    listener._listener._socket.shutdown(socket.SHUT_RDWR)
    assert task.get()[0] == "OSError"
    listener.close()
