"""Every call with every kind of argument: what the stdlib's connections do, ours do too."""

import array
import ctypes
import fractions
import mmap
import os
import random

import pytest
from connection_helpers import close, framed, open_pair, read_exactly, write_all
from sync_helpers import outcome

from mproc_ext import reduction

END = b"the end of what was sent"


class Index:
    def __init__(self, value=2):
        self.value = value

    def __index__(self):
        return self.value


class Fails:
    def __index__(self):
        raise LookupError("no index")

    def __reduce__(self):
        raise LookupError("not pickled")

    def __bool__(self):
        raise LookupError("neither true nor false")


class Bytes(bytes):
    def __len__(self):
        return 2


# What the scripts below use.
NAMES = {
    **{module.__name__: module for module in (array, ctypes, fractions, mmap, os)},
    **{kind.__name__: kind for kind in (Index, Fails, Bytes)},
    "reduction": reduction,
}


def state(connection):
    """Ours says True where the stdlib says what it was given."""
    return bool(connection.closed), bool(connection.readable), bool(connection.writable)


def play(module, kind, script, **more):
    """What each call of a script gives, the ends' state after it, and what is left in the end.

    r is the end that reads, w the one that writes.
    """
    with open_pair(module, kind) as (r, w):
        reading, writing = os.dup(r.fileno()), os.dup(w.fileno())
        names = {**NAMES, **more, "r": r, "w": w, "connection": module}
        found = []
        try:
            for call in script.split("; "):
                found.append((call, outcome(eval, call, names), state(r), state(w)))
                assert found[-1][1][0] != "NameError", call
            write_all(writing, END)
            left = read_exactly(reading, len(END))
            while not left.endswith(END):
                left += os.read(reading, 1 << 20)
            return found, left
        finally:
            os.close(reading)
            os.close(writing)


@pytest.fixture
def check(modules, kind):
    """That a script gives the same with both; returns it."""

    def check(script):
        (expected, left), found = (play(module, kind, script) for module in modules)
        for theirs, ours in zip(expected, found[0], strict=True):
            assert ours == theirs
        assert found[1] == left
        return expected

    return check


SEND_BYTES = """
w.send_bytes(b"")
w.send_bytes(b"abc")
w.send_bytes(bytearray(b"abc"))
w.send_bytes(memoryview(b"abc"))
w.send_bytes(Bytes(b"abc"))
w.send_bytes(array.array("i", [1, 2, 3]))
w.send_bytes(array.array("d", [1.5] * 3000))
w.send_bytes(array.array("d", [1.5] * 3000), 3, 20000)
w.send_bytes(memoryview(array.array("H", [1, 2, 3])), 1)
w.send_bytes(memoryview(array.array("H", [1, 2, 3])), 1, 2)
w.send_bytes((ctypes.c_int * 3)(1, 2, 3))
w.send_bytes(ctypes.c_int(5))
w.send_bytes(ctypes.c_char(b"c"))
w.send_bytes((ctypes.c_char * 3)(b"a", b"b", b"c"), 1)
w.send_bytes(mmap.mmap(-1, 10), 2, 5)
w.send_bytes(memoryview(b"abcdef")[::2], 1, 1)
w.send_bytes(memoryview(b"abcdef")[::2])
w.send_bytes(memoryview(b"abcdef")[::2], 1)
w.send_bytes(memoryview(bytes(16384 * 2))[::2])
w.send_bytes(memoryview(array.array("i", range(6)))[::2])
w.send_bytes(memoryview(bytes(12)).cast("B", (12, 1)))
w.send_bytes(memoryview(bytes(24)).cast("i", (2, 3)))
w.send_bytes(memoryview(bytes(24)).cast("i", (2, 3)), 5, 7)
w.send_bytes(memoryview(bytes(4)).cast("i", ()))
w.send_bytes(memoryview(b"abc").cast("b"))
w.send_bytes(memoryview(b"abc").cast("c"), 1)
w.send_bytes(memoryview(b"\\0\\1").cast("?"), 1)
(m := memoryview(b"abc")); m.release(); w.send_bytes(m); w.send_bytes(b"after")
w.send_bytes("abc")
w.send_bytes(None)
w.send_bytes(5)
w.send_bytes([1, 2])
w.send_bytes(b"abc", 0)
w.send_bytes(b"abc", 1)
w.send_bytes(b"abc", 3)
w.send_bytes(b"abc", 4)
w.send_bytes(b"abc", -1)
w.send_bytes(b"abc", 2**31)
w.send_bytes(b"abc", 2**63)
w.send_bytes(b"abc", 2**64)
w.send_bytes(b"abc", -(2**31))
w.send_bytes(b"abc", -(2**63) - 1)
w.send_bytes(b"abc", True)
w.send_bytes(b"abc", None)
w.send_bytes(b"abc", "1")
w.send_bytes(b"abc", 1, 1)
w.send_bytes(b"abc", 1, 2)
w.send_bytes(b"abc", 1, 3)
w.send_bytes(b"abc", 3, 0)
w.send_bytes(b"abc", 0, 0)
w.send_bytes(b"abc", 4, 0)
w.send_bytes(b"abc", 0, -1)
w.send_bytes(b"abc", -1, -1)
w.send_bytes(b"abc", 4, -1)
w.send_bytes(b"abc", 0, 2**63)
w.send_bytes(b"abc", 1, 2**63 - 1)
w.send_bytes(b"abc", 0, 2**64)
w.send_bytes(b"abc", 0, -(2**64))
w.send_bytes(b"abc", 0, None)
w.send_bytes(b"abc", 2, None)
w.send_bytes(b"abc", 0, True)
w.send_bytes(b"abc", 0, False)
w.send_bytes(b"abc", 0, "1")
w.send_bytes(b"abc", offset=1)
w.send_bytes(b"abc", size=1)
w.send_bytes(buf=b"abc", offset=1, size=1)
w.send_bytes(size=1, offset=1, buf=b"abc")
w.send_bytes(bytes(16384)); r.recv_bytes()
w.send_bytes(bytes(16385)); r.recv_bytes()
"""

RECV_BYTES = """
w.send_bytes(b"abc"); r.recv_bytes()
w.send_bytes(b""); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes(3)
w.send_bytes(b"abc"); r.recv_bytes(4)
w.send_bytes(b"abc"); r.recv_bytes(maxlength=3)
w.send_bytes(b"abc"); r.recv_bytes(maxlength=None)
w.send_bytes(b"abc"); r.recv_bytes(2**70)
w.send_bytes(b"abc"); r.recv_bytes(2**63)
w.send_bytes(b"abc"); r.recv_bytes(2**63 - 1)
w.send_bytes(b"abc"); r.recv_bytes(True); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes(2); r.recv_bytes(); r.recv(); r.poll(); r.recv_bytes_into(bytearray(9))
w.send_bytes(b"abc"); r.recv_bytes(0); r.send_bytes(b"the other way"); r.close()
w.send_bytes(b""); r.recv_bytes(0)
w.send_bytes(b"abc"); r.recv_bytes(-1); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes(-(2**70)); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes(-0.5); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes("3")
w.send_bytes(b"abc"); r.recv_bytes(b"3")
w.send_bytes(b"abc"); r.recv_bytes(Index())
w.send_bytes(b"abc"); r.recv_bytes(Fails())
w.send_bytes(b"abc"); w.send_bytes(b"def"); r.recv_bytes(1); r.recv_bytes()
"""  # noqa: E501

RECV_BYTES_INTO = """
w.send_bytes(b"abc"); (b := bytearray(3)); r.recv_bytes_into(b); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b, 1); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b, 2); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b, offset=2); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(buf=b, offset=2); b
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b, 3); b; w.send_bytes(b"d"); r.recv_bytes()
w.send_bytes(b"abc"); (b := bytearray(2)); r.recv_bytes_into(b); b; w.send_bytes(b"d"); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray())
w.send_bytes(b""); r.recv_bytes_into(bytearray())
w.send_bytes(b""); (b := bytearray(2)); r.recv_bytes_into(b, 2); b
w.send_bytes(b"a"); (b := bytearray(2)); r.recv_bytes_into(b, 2); b
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), -1); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), 6); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), 2**63); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), 2**64); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), -(2**64)); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), None); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(bytearray(5), "1"); r.recv_bytes()
w.send_bytes(b"abc"); (b := bytearray(5)); r.recv_bytes_into(b, True); b
w.send_bytes(b"abc"); r.recv_bytes_into("text"); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into(None); r.recv_bytes()
w.send_bytes(b"abc"); r.recv_bytes_into([0] * 5); r.recv_bytes()
w.send_bytes(b"abc"); w.send_bytes(b"d"); r.recv_bytes_into(b"12345"); r.recv_bytes()
w.send_bytes(b"abc"); w.send_bytes(b"d"); r.recv_bytes_into(memoryview(bytearray(9)).toreadonly()); r.recv_bytes()
w.send_bytes(b"abc"); (b := bytearray(6)); r.recv_bytes_into(memoryview(b)[2:]); b
w.send_bytes(b"abc"); (b := bytearray(6)); r.recv_bytes_into(memoryview(b)[::2]); r.poll()
w.send_bytes(b"abc"); (b := bytearray(6)); r.recv_bytes_into(memoryview(b)[::-1]); r.poll()
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b); b
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b, 4); b
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b, 8); b
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b, 12); b
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b, 16); b
w.send_bytes(bytes(8)); (b := array.array("i", [1] * 4)); r.recv_bytes_into(b, 17); r.recv_bytes()
w.send_bytes(bytes(8)); (b := array.array("d", [1.5] * 4)); r.recv_bytes_into(b, 8); b
w.send_bytes(bytes(8)); (b := (ctypes.c_int * 4)(1, 1, 1, 1)); r.recv_bytes_into(b, 4); list(b)
w.send_bytes(bytes(12)); (b := bytearray(12)); r.recv_bytes_into(memoryview(b).cast("B", (3, 4))); r.poll()
w.send_bytes(bytes(3)); (b := bytearray(12)); r.recv_bytes_into(memoryview(b).cast("B", (3, 4))); r.poll()
w.send_bytes(bytes(3)); (b := bytearray(12)); r.recv_bytes_into(memoryview(b).cast("i", (3, 1))); r.poll()
w.send_bytes(bytes(4)); (b := ctypes.c_int(5)); r.recv_bytes_into(b); r.poll()
w.send_bytes(bytes(4)); (b := mmap.mmap(-1, 8)); b.write(b"x" * 8); r.recv_bytes_into(b, 2); b[:]
w.send_bytes(b"abc"); (m := memoryview(bytearray(3))); m.release(); r.recv_bytes_into(m); r.recv_bytes()
"""  # noqa: E501

OBJECTS = """
w.send(None); r.recv()
w.send(0); r.recv()
w.send(-(2**100)); r.recv()
w.send(1.5); r.recv()
w.send("text é"); r.recv()
w.send("\\udc80"); r.recv()
w.send(b"bytes"); r.recv()
w.send(bytearray(b"bytes")); r.recv()
w.send([1, (2, 3), {4: "5"}, {6}, frozenset()]); r.recv()
w.send(fractions.Fraction(1, 3)); r.recv()
w.send(obj=1); r.recv()
w.send(int); r.recv()
w.send(Index); r.recv()
w.send(bytes(30_000)); len(r.recv())
w.send(lambda: 0); w.send(1); r.recv()
w.send(Fails()); w.send(1); r.recv()
w.send(memoryview(b"abc")); w.send(1); r.recv()
w.send(1); w.send(2); w.send_bytes(b"3"); r.recv(); r.recv(); r.recv_bytes()
w.send(1); r.recv_bytes()
w.send_bytes(reduction.ForkingPickler.dumps("text")); r.recv()
w.send_bytes(b"garbage"); w.send(1); r.recv(); r.recv()
w.send_bytes(b""); w.send(1); r.recv(); r.recv()
w.send_bytes(b"\\x80"); w.send(1); r.recv(); r.recv()
w.send_bytes(b"cno_such_module\\nname\\n."); w.send(1); r.recv(); r.recv()
w.send_bytes(b"cos\\nno_such_name\\n."); w.send(1); r.recv(); r.recv()
w.send_bytes(b"I1\\n.and more"); w.send(1); r.recv(); r.recv()
"""

POLL = """
r.poll()
r.poll(0)
r.poll(0.0)
r.poll(-1)
r.poll(-0.5)
r.poll(1e-9)
r.poll(0.001)
r.poll(timeout=0)
r.poll(fractions.Fraction(1, 1000))
r.poll("1")
r.poll(b"1")
r.poll([])
r.poll(1j)
r.poll(Index(0))
r.poll(float("nan"))
w.send(1); r.poll(float("inf"))
r.poll(-float("inf"))
w.send(1); r.poll(1e10)
w.send(1); r.poll(1e300)
w.send(1); r.poll(2**31)
w.send(1); r.poll(2**70)
r.poll(-(2**70))
r.poll(Fails())
w.send(1); r.poll(); r.poll(); r.recv(); r.poll()
w.send(1); r.poll(None); r.poll(5); r.poll(5.5); r.poll(-1); r.recv(); r.poll()
w.send(1); r.poll(0), r.poll(timeout=None), r.poll(timeout=7)
w.send_bytes(b""); r.poll(); r.recv_bytes(); r.poll()
w.send_bytes(b"abc"); r.poll(5); r.recv_bytes()
"""

DIRECTIONS = """
r.send(1)
r.send_bytes(b"1")
w.recv() if not w.readable else None
w.recv_bytes() if not w.readable else None
w.recv_bytes(-1) if not w.readable else None
w.recv_bytes_into(bytearray(5)) if not w.readable else None
w.poll()
w.poll("wrong")
w.poll(-1)
r.send(lambda: 0)
r.send_bytes("text")
r.send_bytes(b"", -1)
r.readable, r.writable, w.readable, w.writable, r.closed
"""

CLOSED = """
r.close(); r.closed; r.close(); r.closed
r.close(); r.fileno()
r.close(); r.recv()
r.close(); r.recv_bytes()
r.close(); r.recv_bytes(-1)
r.close(); r.recv_bytes_into(bytearray(5))
r.close(); r.recv_bytes_into("wrong")
r.close(); r.poll()
r.close(); r.poll("wrong")
r.close(); r.send(1)
r.close(); r.readable, r.writable
r.close(); r.__enter__() is r; r.__exit__(None, None, None)
w.close(); w.send(1)
w.close(); w.send(lambda: 0)
w.close(); w.send_bytes(b"1")
w.close(); w.send_bytes("wrong", -1)
w.close(); w.recv()
w.close(); w.poll()
w.close(); setattr(w, "_handle", os.dup(r.fileno())); w.closed; w.close(); w.closed
r.close(); repr(r)
r.__enter__() is r; r.__exit__(None, None, None); r.closed
r.__exit__(ValueError, ValueError("x"), None); r.closed
os.close(r.fileno()); r.recv_bytes(); r.send_bytes(b"1"); r.poll(); r.close(); r.closed; r.close()
os.close(w.fileno()); w.send(1); w.send_bytes(b"1"); w.send_bytes(bytes(20_000)); w.close(); w.closed
"""  # noqa: E501

ATTRIBUTES = """
r._handle == r.fileno()
r._readable, r._writable, w._readable, w._writable
(f := r._handle); setattr(r, "_handle", None); r.closed; r.fileno(); r.recv(); os.close(f)
(f := os.dup(r._handle)); os.close(r._handle); setattr(r, "_handle", f); w.send(1); r.recv(); r.fileno() == f
setattr(r, "_readable", False); r.recv(); r.poll(); r.readable
setattr(r, "_readable", 0); r.recv()
setattr(r, "_readable", "yes"); w.send(1); r.recv()
setattr(w, "_writable", False); w.send(1); w.writable
setattr(w, "_writable", []); w.send_bytes(b"1")
setattr(r, "_writable", True); r.writable
setattr(r, "something", 5); r.something; r.__dict__["something"]; delattr(r, "something"); hasattr(r, "something")
r.no_such_attribute
hash(r) == hash(r), r == r, r == w, r != w
isinstance(r, connection.Connection)
type(r).__name__, type(r).__qualname__, type(r).__module__
repr(r)
str(w)
f"{r}"
bool(r)
len(r)
iter(r)
r < w
"""  # noqa: E501

MAKING = """
connection.Connection(-1)
connection.Connection(-(2**70))
connection.Connection("5")
connection.Connection(None)
connection.Connection(5.0)
connection.Connection(Fails())
connection.Connection(r.fileno(), False, False)
connection.Connection(r.fileno(), readable=False, writable=False)
connection.Connection(r.fileno(), 0, [])
connection.Connection(-1, False, False)
connection.Connection(r.fileno(), Fails())
(c := connection.Connection(os.dup(r.fileno()), writable=False)); c.readable, c.writable; c.close()
(c := connection.Connection(os.dup(r.fileno()), False)); c.readable, c.writable; c.close()
(c := connection.Connection(os.dup(r.fileno()), 1, "")); w.send(5); c.recv(); c.send(1); c.close()
(c := connection.Connection(Index(os.dup(r.fileno())))); type(c.fileno()); w.send(5); c.recv(); c.close()
(c := connection.Connection(handle=os.dup(r.fileno()), readable=True, writable=True)); c.closed; c.close()
(c := connection.Connection(1_000_000)); c.fileno(); c.send(1); c.recv(); c.close(); c.closed
(c := connection.Connection.__new__(connection.Connection)); c.closed; c.close(); c.fileno(); c.send(1); c.recv()
(f := r.fileno()); r.__init__(os.dup(f)); r.readable, r.writable; w.send(5); r.recv(); os.close(f)
connection.Pipe(duplex=True)[0].writable, connection.Pipe(duplex=False)[0].writable
connection.Pipe(0)[1].readable, connection.Pipe([1])[1].readable
connection.Pipe(Fails())
"""  # noqa: E501


def scripts(text):
    return pytest.mark.parametrize("script", [line for line in text.splitlines() if line])


@scripts(SEND_BYTES)
def test_send_bytes(check, script):
    check(script)


@scripts(RECV_BYTES)
def test_recv_bytes(check, script):
    check(script)


@scripts(RECV_BYTES_INTO)
def test_recv_bytes_into(check, script):
    check(script)


@scripts(OBJECTS)
def test_objects(check, script):
    check(script)


@scripts(POLL)
def test_poll(check, script):
    check(script)


@scripts(DIRECTIONS)
def test_directions(check, script):
    check(script)


@scripts(CLOSED)
def test_closed(check, script):
    check(script)


@scripts(ATTRIBUTES)
def test_attributes(check, script):
    check(script)


@scripts(MAKING)
def test_making(check, script):
    check(script)


def test_the_scripts_do_what_they_say(modules):
    """So that comparing them means something."""
    found, left = play(modules[1], "pipe", 'w.send_bytes(b"abc", 1); r.send(1); r.close()')
    assert left == framed(b"bc") + END
    assert [result for _, result, *_ in found] == [
        ("returns", "None"),
        ("OSError", "connection is read-only", None),
        ("returns", "None"),
    ]
    assert found[-1][2:] == ((True, True, False), (False, False, True))


SIGNATURES = """
w.send()
w.send(1, 2)
w.send(object=1)
w.send_bytes()
w.send_bytes(b"", 0, 0, 0)
w.send_bytes(b"", buf=b"")
w.send_bytes(b"", length=1)
r.recv(1)
r.recv(timeout=1)
r.recv_bytes(1, 2)
r.recv_bytes(size=1)
r.recv_bytes_into()
r.recv_bytes_into(bytearray(5), 0, 0)
r.recv_bytes_into(bytearray(5), start=0)
r.poll(0, 0)
r.poll(seconds=0)
r.fileno(1)
r.close(1)
connection.Connection()
connection.Connection(5, True, True, True)
connection.Connection(5, read=True)
connection.Connection.send(5)
connection.Connection.poll()
"""

ATTRIBUTE_ERRORS = """
setattr(r, "readable", False)
setattr(r, "writable", False)
setattr(r, "closed", True)
delattr(r, "closed")
delattr(r, "readable")
r.readable()
"""


@scripts(SIGNATURES + ATTRIBUTE_ERRORS)
def test_wrong_signatures(modules, kind, script):
    """An error of the same type, and nothing has happened."""
    (expected, _), (found, left) = (play(module, kind, script) for module in modules)
    assert expected[0][1][0] in ("TypeError", "AttributeError")
    assert found[0][1][0] == expected[0][1][0]
    assert found[0][2:] == expected[0][2:]
    assert left == END


def test_methods_of_what_is_no_connection(connection):
    for thing in (5, "text", None):
        for name in ("send", "recv_bytes_into", "recv", "poll", "close", "fileno", "_send_bytes"):
            with pytest.raises((TypeError, AttributeError)):
                getattr(connection.Connection, name)(thing, 5)


def test_numbers_that_are_no_descriptors(connection):
    """Found out sooner or later."""
    for number in (2**31, 2**32, 2**32 + 1, 2**63, 2**64):
        try:
            one = connection.Connection(number)
        except (ValueError, OverflowError):
            continue
        with pytest.raises((OverflowError, OSError)):
            one.send(1)
        one._handle = None


VIEWS = {
    "2-d": memoryview(bytes(range(12))).cast("B", (3, 4)),
    "2-d large": memoryview(bytes(36_000)).cast("B", (6, 6000)),
    "steps": memoryview(b"abcdef")[::2],
    "steps large": memoryview(b"ab" * 20_000)[::2],
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_that_are_no_plain_bytes(ours, kind, view):
    """The stdlib says one size and sends another, or says it and sends nothing."""
    found, left = play(ours, kind, "w.send_bytes(view)", view=view)
    assert left in (END, framed(view.tobytes()) + END)
    assert (left == END) == (found[0][1][0] in ("TypeError", "BufferError", "NotImplementedError"))


# ---- At random -------------------------------------------------------------------------------

SIZES = (0, 1, 3, 4, 5, 100, 4096, 16384, 16385, 30_000)
NUMBERS = (-1, 0, 1, 2, 3, 4, 5, 100, 20_000, 2**31, 2**63, None)


def random_script(chance):
    """Calls of which none waits: what is received has been sent."""
    calls, waiting = [], 0
    for _ in range(30):
        kind = chance.random()
        if kind < 0.45 and waiting < 2:
            size = chance.choice(SIZES)
            if chance.random() < 0.5:
                calls.append(f"w.send_bytes(bytes({size}))")
                waiting += 1
            elif chance.random() < 0.5:
                calls.append(f"w.send('x' * {size})")
                waiting += 1
            else:
                offset, length = chance.choice(NUMBERS[:-1]), chance.choice(NUMBERS)
                calls.append(f"w.send_bytes(bytes({size}), {offset}, {length})")
                waiting += 0 <= offset <= size and (length is None or 0 <= length <= size - offset)
        elif kind < 0.9 and waiting:
            call = chance.choice(["recv()", "bytes", "into", "poll()", "fails"])
            if call == "bytes":
                limit = chance.choice([None, 40_000, 2**40, -1])
                calls.append(f"r.recv_bytes({limit})")
                waiting -= limit != -1
            elif call == "into":
                offset = chance.choice(NUMBERS[:-1])
                size = chance.choice(SIZES)
                calls.append(f"r.recv_bytes_into(bytearray({size}), {offset})")
                waiting -= 0 <= offset <= size
            elif call == "fails":
                calls.append("r.recv_bytes_into(b'read-only')")
                waiting -= 1
            else:
                calls.append(f"r.{call}")
                waiting -= call == "recv()"
        else:
            calls.append(chance.choice(["r.poll(0)", "r.fileno() >= 0", "w.send(lambda: 0)"]))
    if chance.random() < 0.3 and waiting:
        calls.append("r.recv_bytes(0)")
    calls += ["r.close()", "w.close()"] if chance.random() < 0.5 else []
    return "; ".join(calls)


@pytest.mark.parametrize("seed", range(20))
def test_random_calls(check, seed):
    script = random_script(random.Random(seed))
    assert len(check(script)) >= 30


@pytest.mark.parametrize("duplex", [True, False])
def test_pipe(modules, duplex):
    for module in modules:
        reader, writer = ends = module.Pipe(duplex)
        try:
            assert isinstance(ends, tuple)
            assert [type(end) for end in ends] == [module.Connection] * 2
            assert (reader.readable, reader.writable) == (True, duplex)
            assert (writer.readable, writer.writable) == (duplex, True)
            assert not any(os.get_inheritable(end.fileno()) for end in ends)
            assert all(os.get_blocking(end.fileno()) for end in ends)
            writer.send(1)
            assert reader.recv() == 1
        finally:
            close(*ends)
