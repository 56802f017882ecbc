"""The stdlib of other Pythons, which know nothing of this package, at the other end."""

import contextlib
import gc
import glob
import json
import os
import subprocess
import sys

import pytest
from connection_helpers import OURS
from sync_helpers import LIMIT, Task

from mproc_ext import connection, get_context, managers

pytestmark = pytest.mark.skipif(not OURS, reason="there are only the stdlib's connections")
KEY, WRONG = b"a key", b"another key"


def found():
    """Every Python there is that the package is made for, by version; the running one first."""
    running = os.path.join(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    paths = glob.glob(os.path.expanduser("~/.pyenv/versions/3.*/bin/python"))
    paths += glob.glob("/usr/bin/python3.[1-9][0-9]")
    pythons = {}
    for path in [running, *sorted(paths)]:
        code = "import sys; print(*sys.version_info[:2]); print(sys.version.split()[0])"
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            # A version manager's Python may be there and not run.
            done = subprocess.run(
                [path, "-ISc", code], capture_output=True, text=True, timeout=LIMIT
            )
            if done.returncode == 0:
                version, name = done.stdout.splitlines()
                if (3, 11) <= tuple(map(int, version.split())) <= (3, 15):
                    pythons.setdefault(name, path)
    return pythons


PYTHONS = found()


@pytest.fixture(params=PYTHONS or [pytest.param("", marks=pytest.mark.skip("no other Python"))])
def python(request):
    return PYTHONS[request.param]


# What the other Python runs: arguments in a line of JSON, and everything it has to say in others.
PEER = r"""
import gc, json, multiprocessing, os, sys
import multiprocessing.connection as connection, multiprocessing.managers as managers
from multiprocessing.managers import BaseManager, SyncManager

def say(*words):
    print(json.dumps(words), flush=True)

def no_package():
    try:
        import mproc_ext
    except ImportError:
        return True

def echo(end):
    while True:
        thing = end.recv()
        if thing is None:
            break
        if thing == "bytes":
            end.send_bytes(end.recv_bytes())
        else:
            end.send(thing)
    end.close()

def client(address, key):
    echo(connection.Client(address, authkey=key))

def listener(address, key):
    with connection.Listener(address, authkey=key) as listener:
        say(listener.address)
        echo(listener.accept())

def descriptors(reader, writer):
    if reader == writer:
        return echo(connection.Connection(reader))
    reader = connection.Connection(reader, writable=False)
    writer = connection.Connection(writer, readable=False)
    while (thing := reader.recv()) is not None:
        writer.send(thing)

def challenge(address, key, digest):
    with connection.Listener(address) as listener:
        say(listener.address)
        with listener.accept() as end:
            connection.deliver_challenge(end, key, *([digest] if digest else []))
            connection.answer_challenge(end, key)
            echo(end)

class Thing:
    def __init__(self, value):
        self.value = value
    def add(self, value):
        self.value += value
        return self.value
    def fails(self):
        raise LookupError("it fails", 5)
    def child(self):
        return Thing(1000)

class Manager(SyncManager):
    pass
Manager.register("Thing", Thing, method_to_typeid={"child": "Child"})
Manager.register("Child", method_to_typeid={"child": "Child"}, create_method=False)

def manager(address, key):
    multiprocessing.current_process().authkey = key
    server = Manager(address, key).get_server()
    say(server.address)
    server.serve_forever()

def proxies(address, key):
    multiprocessing.current_process().authkey = key
    manager = Manager(address, key)
    manager.connect()
    d, a, thing = manager.dict(a=1), manager.list([1, 2]), manager.Thing(5)
    d["b"] = [3]
    d["inner"] = a
    a.append(3)
    d["inner"].append(4)
    found = [sorted(d.keys()), sorted(iter(d)), a[:], thing.add(2), thing.child().add(1), str(a)]
    for call in (thing.fails, lambda: d["none"], lambda: a.nothing(), lambda: a._callmethod("no")):
        try:
            found.append(call())
        except Exception as error:
            found.append([type(error).__name__, error.args if len(error.args) == 2 else []])
    q, lock = manager.Queue(), manager.Lock()
    q.put(a)
    with lock:
        found.append([q.get()[:], q.empty()])
    found.append(thing.child().child().add(2))
    gc.collect()
    found.append(manager._number_of_objects())
    say(found)
    del d, a, thing, q, lock
    gc.collect()
    say(manager._number_of_objects())

what, *args = json.loads(sys.argv[1])
assert no_package()
def argument(a):
    return a["bytes"].encode() if type(a) is dict else tuple(a) if type(a) is list else a
args = map(argument, args)
if what in ("client", "proxies"):
    os.read(0, 1)
try:
    globals()[what](*args)
except Exception as error:
    say(type(error).__name__)
else:
    say("done")
"""


class Peer:
    """A process of another Python, which ends with this."""

    def __init__(self, python, *words, pass_fds=()):
        words = [{"bytes": word.decode()} if isinstance(word, bytes) else word for word in words]
        self.process = subprocess.Popen(
            [python, "-Ic", PEER, json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=pass_fds,
        )

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.kill()
        self.process.communicate()

    def go(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def said(self):
        line = Task(self.process.stdout.readline).get()
        assert line, "the other Python said nothing"
        words = json.loads(line)
        return tuple(words[0]) if type(words[0]) is list and len(words[0]) == 2 else words[0]

    def done(self):
        assert self.said() == "done"
        assert self.process.wait(LIMIT) == 0


OBJECTS = [
    0,
    -1,
    1 << 70,
    1.5,
    "text",
    "\ud800",
    b"bytes",
    bytearray(b"more"),
    (1, (2, [3, {4: {5}}])),
    {"a": [None, True]},
    [["shared"]] * 2,
    "x" * 16380,
    b"x" * 16384,
    b"x" * (1 << 20),
    KeyError("why"),
    range(3),
    len,
]
SIZES = (0, 1, 4, 16384, 16385, 65536, 1 << 20)


def converse(end, other=None):
    """Send all kinds of things, and get them back."""
    other = other or end
    for thing in OBJECTS:
        end.send(thing)
        back = other.recv()
        assert type(back) is type(thing)
        assert repr(back) == repr(thing)
    for size in SIZES if other is end else ():
        data = os.urandom(size)
        end.send("bytes")
        end.send_bytes(data)
        assert other.recv_bytes() == data
    end.send(None)
    with pytest.raises(EOFError):
        other.recv()


@pytest.fixture(params=["AF_UNIX", "abstract", "AF_INET"])
def address(request, tmp_path):
    if request.param == "AF_UNIX":
        return str(tmp_path / "socket")
    return f"\0{tmp_path}" if request.param == "abstract" else ("127.0.0.1", 0)


# An abstract name comes from the socket as bytes.
def as_text(address):
    return address.decode() if isinstance(address, bytes) else address


@pytest.mark.parametrize("key", [None, KEY])
def test_we_listen(python, address, key):
    with connection.Listener(address, authkey=key) as listener:
        with Peer(python, "client", as_text(listener.address), key) as peer:
            peer.go()
            with Task(listener.accept).get() as end:
                assert type(end) is connection.Connection
                converse(end)
            peer.done()


@pytest.mark.parametrize("key", [None, KEY])
def test_they_listen(python, tmp_path, key):
    for address in (str(tmp_path / "socket"), ["127.0.0.1", 0]):
        with Peer(python, "listener", address, key) as peer:
            with connection.Client(peer.said(), authkey=key) as end:
                assert type(end) is connection.Connection
                converse(end)
            peer.done()


def test_wrong_keys(python, tmp_path):
    with connection.Listener(authkey=KEY) as listener:
        with Peer(python, "client", listener.address, WRONG) as peer:
            peer.go()
            with pytest.raises(connection.AuthenticationError):
                Task(listener.accept).get()
            assert peer.said() == "AuthenticationError"
    with Peer(python, "listener", str(tmp_path / "socket"), KEY) as peer:
        with pytest.raises(connection.AuthenticationError):
            connection.Client(peer.said(), authkey=WRONG)
        assert peer.said() == "AuthenticationError"


@pytest.mark.parametrize("digest", [None, "md5", "sha256", "sha384", "sha3_256", "sha3_384"])
def test_digests_that_they_ask_for(python, tmp_path, digest):
    """Before 3.12 there was no choice."""
    version = next(name for name, path in PYTHONS.items() if path == python)
    if digest and (version.startswith("3.11.") or sys.version_info < (3, 12)):
        pytest.skip("there is no choice of digests in 3.11")
    with Peer(python, "challenge", str(tmp_path / "socket"), KEY, digest) as peer:
        with connection.Client(peer.said(), authkey=KEY) as end:
            converse(end)
        peer.done()


@pytest.mark.parametrize("duplex", [True, False])
def test_descriptors_that_they_inherit(python, duplex):
    if duplex:
        ours, theirs = connection.Pipe()
        fds = [theirs.fileno()] * 2
        ends = [theirs]
        other = ours
    else:
        reader, ours = connection.Pipe(False)
        other, writer = connection.Pipe(False)
        ends = [reader, writer]
        fds = [end.fileno() for end in ends]
    with Peer(python, "descriptors", *fds, pass_fds=fds) as peer:
        for end in ends:
            end.close()
        converse(ours, other)
        peer.done()
    ours.close()
    other.close()


# -- managers -------------------------------------------------------------------------------------


class Thing:
    def __init__(self, value):
        self.value = value

    def add(self, value):
        self.value += value
        return self.value

    def fails(self):
        raise LookupError("it fails", 5)

    def child(self):
        return Thing(1000)


class Manager(managers.SyncManager):
    pass


Manager.register("Thing", Thing, method_to_typeid={"child": "Child"})
Manager.register("Child", method_to_typeid={"child": "Child"}, create_method=False)

EXPECTED = [
    ["a", "b", "inner"],
    ["a", "b", "inner"],
    [1, 2, 3, 4],
    7,
    1001,
    "[1, 2, 3, 4]",
    ["LookupError", ["it fails", 5]],
    ["KeyError", []],
    ["AttributeError", []],
    ["RemoteError", []],
    [[1, 2, 3, 4], True],
    1002,
    5,
]


def use(manager):
    """What the peer's `proxies` does."""
    d, a, thing = manager.dict(a=1), manager.list([1, 2]), manager.Thing(5)
    d["b"] = [3]
    d["inner"] = a
    a.append(3)
    d["inner"].append(4)
    found = [sorted(d.keys()), sorted(iter(d)), a[:], thing.add(2), thing.child().add(1), str(a)]
    for call in (thing.fails, lambda: d["none"], lambda: a.nothing(), lambda: a._callmethod("no")):
        try:
            found.append(call())
        except Exception as error:
            found.append([type(error).__name__, [*error.args] if len(error.args) == 2 else []])
    q, lock = manager.Queue(), manager.Lock()
    q.put(a)
    with lock:
        found.append([q.get()[:], q.empty()])
    found.append(thing.child().child().add(2))
    gc.collect()  # before 3.13 an error is in a cycle
    found.append(manager._number_of_objects())
    return found


@pytest.fixture
def our_key():
    """Proxies that come from a manager's process ask it with the key of this process."""
    process = managers.process.current_process()
    before, process.authkey = process.authkey, KEY
    yield
    process.authkey = before


@pytest.mark.usefixtures("our_key")
def test_their_manager(python, tmp_path):
    with Peer(python, "manager", str(tmp_path / "socket"), KEY) as peer:
        address = peer.said()
        wrong = Manager(address, WRONG)
        with pytest.raises(connection.AuthenticationError):
            wrong.connect()
        manager = Manager(address, KEY)
        manager.connect()
        assert use(manager) == EXPECTED
        gc.collect()
        assert manager._number_of_objects() == 0
        d = manager.dict(a=manager.list([1]))
        # They were pickled as what is known there.
        assert type(d) is managers.DictProxy
        assert type(d["a"]) is managers._std.ListProxy
        assert d["a"][:] == [1]


@pytest.mark.usefixtures("our_key")
def test_our_manager(python):
    with Manager(authkey=KEY, ctx=get_context("fork")) as manager:
        with Peer(python, "proxies", manager.address, WRONG) as peer:
            peer.go()
            assert peer.said() == "AuthenticationError"
        with Peer(python, "proxies", manager.address, KEY) as peer:
            peer.go()
            assert list(peer.said()) == EXPECTED
            assert peer.said() == 0
            peer.done()


@pytest.mark.usefixtures("our_key")
def test_our_proxies_come_back_as_ours():
    with Manager(authkey=KEY, ctx=get_context("fork")) as manager:
        d = manager.dict(list=manager.list([1]), thing=manager.Thing(5))
        assert type(d["list"]) is managers.ListProxy
        assert type(d["thing"]).__bases__ == (managers.BaseProxy,)
        assert d["thing"].add(1) == 6
