"""Messages that lie in shared memory while they are read: another process can write to them."""

import decimal
import gc
import mmap
import os
import pickle
import signal
import sys
import time

import pytest
from queue_helpers import LIMIT, OURS, fds, is_shared_memory

pytestmark = pytest.mark.skipif(not OURS, reason="the stdlib's lie in the process's own memory")

BIG = 70_000
SIZE = 1_000_000
TAIL = 32
SECONDS = 0.5


def send(q, message):
    q._writer._channel._send_bytes(message)


class NoTree:
    """What only pickle can write."""

    def __eq__(self, other):
        return type(other) is NoTree

    __hash__ = None


PIECE = 1 << 20


def places(mark):
    """Where it is in the shared memory: of each place its file, and the end of the mark."""
    for fd in map(int, fds()):
        try:
            if is_shared_memory(fd):
                yield from ((fd, at) for at in places_in(fd, mark))
        except OSError:
            continue


def places_in(fd, mark):
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)  # to read elsewhere through a mapping takes memory
            end = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError:
            return  # there is no more
        while at < end:
            piece = os.pread(fd, min(PIECE + len(mark), end - at), at)
            found = piece.find(mark)
            while found >= 0:
                yield at + found + len(mark)
                found = piece.find(mark, found + 1)
            at += PIECE


def scribble(mark, before, other, ready):
    """Writes other bytes behind the mark, wherever that is, and the former ones, in turn.

    Runs in a child, until it is killed, or its parent. It looks again from time to time, as the
    messages move."""
    parent = os.getppid()
    while os.getppid() == parent:
        here = []
        for fd, at in places(mark):
            start = at - at % mmap.PAGESIZE
            memory = mmap.mmap(fd, at - start + len(other), offset=start)
            here.append((memory, at - start))
        if here:
            os.write(ready, b"!")
        for _ in range(5000):
            for memory, at in here:
                memory[at : at + len(other)] = other
                memory[at : at + len(other)] = before


def pause():
    time.sleep(0.001)


class Pauses:
    """Lets others run while its message is unpickled: the scribbler too, on a loaded machine."""

    def __reduce__(self):
        return pause, ()


def check_str(text):
    """It is one that Python could have made itself."""
    codes = [ord(character) for character in text[SIZE - TAIL :]]
    assert max(codes) < 0x110000
    assert text.isascii() == (max(codes) < 128)
    made = text[: SIZE - TAIL] + "".join(map(chr, codes))
    assert text == made
    assert hash(text) == hash(made)


@pytest.mark.parametrize("plain", [True, False], ids=["tree", "pickle"])
@pytest.mark.parametrize(
    ("letter", "unit", "tail", "other"),
    [
        ("a", 1, "a", b"\xff" * TAIL),
        ("b", 1, "\xe9", b"b" * TAIL),
        ("c", 2, "\u0394", b"c\0" * TAIL),
        ("d", 4, "\U00010394", b"d\0\0\0" * TAIL),
        ("e", 4, "\U00010394", b"\xff" * 4 * TAIL),
    ],
    ids=["no ascii", "ascii", "no ucs2", "no ucs4", "no unicode"],
)
def test_str_that_changes(ours, plain, letter, unit, tail, other):
    """It is what it was or what it became, or an error: never a str that cannot be."""
    q = ours.SimpleQueue()
    mark = os.urandom(16).hex()
    text = letter * (SIZE - TAIL - len(mark)) + mark + tail * TAIL
    message = [None, text]
    if not plain:
        message = [Pauses(), text]
        unit = 1
        other = other[: len((tail * TAIL).encode())]
    q.put(message)
    code = {1: "latin-1", 2: "utf-16-le", 4: "utf-32-le"}[unit] if plain else "utf-8"
    before = (tail * TAIL).encode(code)[: len(other)]
    ready, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            scribble(mark.encode(code), before, other, writer)
        finally:
            os._exit(0)
    os.close(writer)
    seen = []
    try:
        assert os.read(ready, 1), "it found no message"
        start = time.monotonic()
        while time.monotonic() < start + SECONDS or (
            len(set(seen)) == 1 and time.monotonic() < start + LIMIT
        ):
            time.sleep(0.001)  # who scribbles gets time while there is something to scribble on
            try:
                found = q.get()
            except (pickle.UnpicklingError, UnicodeDecodeError):
                seen.append("error")
            else:
                check_str(found[1])
                seen.append("as it was" if found[1] == text else "changed")
            q.put(message)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
    assert len(set(seen)) > 1, "nothing has changed"


@pytest.mark.parametrize(
    "message",
    [
        b"\xac\x02\xa8\x03ab\x80",
        b"\xac\x02\xb1\x03abc",
        b"\xac\x02\xa9\x01a\0",
        b"\xac\x02\xaf\x01\xa8\x02a\x80\xa0",
        b"\xac\x02\xa6\xff" + (2**62).to_bytes(8, "little"),
        b"\xac\x03\xa0",
        b"\x80\x05\x8c\x01\xff\x94.",
        b"garbage",
    ],
    ids=bytes.hex,
)
def test_damaged_messages(ours, message):
    """The error is that of a short message."""
    q = ours.SimpleQueue()
    ballast = b"\xab\xff" + BIG.to_bytes(8, "little") + bytes(BIG)
    for padded in (message, message + ballast):
        send(q, padded)
    with pytest.raises(Exception) as expected:
        q.get()
    with pytest.raises(type(expected.value)) as found:
        q.get()
    assert str(found.value) == str(expected.value)


def test_every_truncation(ours):
    """Of a pickle, as pickle says."""
    q = ours.SimpleQueue()
    data = pickle.dumps([b"x" * BIG, "y" * BIG, NoTree(), bytearray(BIG), decimal.Decimal(1)], 5)
    for cut in [*range(1, 200), BIG - 9, BIG, BIG + 9, 2 * BIG, 2 * BIG + 99]:
        with pytest.raises(Exception) as expected:
            pickle.loads(data[:-cut])
        send(q, data[:-cut])
        with pytest.raises(type(expected.value)) as found:
            q.get()
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_each_protocol(ours, protocol):
    q = ours.SimpleQueue()
    thing = [b"x" * BIG, "\xe9" * BIG, NoTree(), bytearray(BIG), 2**70, ("a", 1.5, None, -5)]
    send(q, pickle.dumps([thing, thing], protocol))
    found = q.get()
    assert found == [thing, thing]
    assert found[0] is found[1]


LENGTHS = [100, 30_000, 40_000, 1_000_000, 33_000, 2_000_000, 1 << 20, (1 << 20) + 1, 70_000]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_many_large_strings(ours, protocol):
    """Each as it was, though the copies of all lie in one memory."""
    q = ours.SimpleQueue()
    letters = ["a", "\xe9", "\u0394", "\U00010394"]
    things = [letter * (length // 4) for length in LENGTHS for letter in letters]
    things += [b"b" * length for length in LENGTHS]
    things += [decimal.Decimal(number) for number in range(5000)]  # frames of 64 KB
    for order in (things, things[::-1]):
        send(q, pickle.dumps([NoTree(), *order], protocol))
        assert q.get() == [NoTree(), *order]


class Gets:
    """Gets another message, or an error, in the middle of its own."""

    q = None
    got = None

    def __setstate__(self, state):
        try:
            Gets.got = Gets.q.get()
        except UnicodeDecodeError as error:
            Gets.got = error


@pytest.mark.parametrize("is_bad", [False, True])
def test_get_in_the_middle(ours, is_bad):
    q, Gets.q = ours.SimpleQueue(), ours.SimpleQueue()
    # A frame with what follows: it is being read when the other message is.
    short = [f"{number:04}" for number in range(9000)]
    inner = [NoTree(), "i" * 900_000, *short[::-1], "j" * 900_000]
    outer = ["o" * 900_000, short[:4500], Gets(), short[4500:], "p" * 900_000, NoTree()]
    data = pickle.dumps(inner)
    at = data.index(b"j" * 900_000)
    send(Gets.q, data[:at] + b"\xff" + data[at + 1 :] if is_bad else data)
    gets = outer[2]
    gets.state = None  # so that __setstate__ is called
    q.put(outer)
    found = q.get()
    assert type(found.pop(2)) is Gets
    del outer[2]
    assert found == outer
    if is_bad:
        assert Gets.got.object == b"\xff" + b"j" * 899_999
    else:
        assert Gets.got == inner
    q.put(outer)
    assert q.get() == outer


def find_file():
    """What the interpreter's unpickler reads from."""
    for unpickler in gc.get_objects():
        if type(unpickler) is pickle.Unpickler:
            for method in gc.get_referents(unpickler):
                file = getattr(method, "__self__", None)
                if type(file).__name__ == "Reading":
                    return file
    raise AssertionError("nothing is being unpickled")


class Steals:
    """Reads a part of its own message, and keeps it."""

    keep = None
    kept = None
    file = None

    def __setstate__(self, state):
        Steals.file = find_file()
        assert type(Steals.file.read(STOLEN)) is bytes  # what it is a piece of, nothing has said
        assert Steals.file.read(4) == STOLEN.to_bytes(4, "little")
        copy = Steals.file.read(STOLEN)
        assert type(copy) is not bytes or sys.version_info >= (3, 16)
        Steals.kept = Steals.keep(copy)


STOLEN = BIG + 1


@pytest.mark.parametrize("keep", [lambda copy: copy, memoryview], ids=["copy", "view of it"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_who_keeps_a_copy(ours, keep, is_cut):
    """It stays as it is, during this message and later ones."""
    q = ours.SimpleQueue()
    Steals.keep = keep
    steals = Steals()
    steals.state = None
    texts = ["x" * BIG, "y" * 900_000, "z" * STOLEN]
    data = pickle.dumps(["w" * 900_000, steals, *texts], 5)
    at = data.index(texts[0].encode()) - len(b"X\0\0\0\0")
    stolen = b"b" * STOLEN + STOLEN.to_bytes(4, "little") + b"s" * STOLEN
    data = data[:at] + stolen + data[at:]
    send(q, data[:-100] if is_cut else data)
    if is_cut:
        with pytest.raises(pickle.UnpicklingError):
            q.get()
    else:
        assert q.get()[2:] == texts
    view = memoryview(Steals.kept)
    assert view.readonly
    for letter in "abc":
        assert view == b"s" * STOLEN
        q.put([NoTree(), letter * STOLEN, letter * 900_000])
        assert q.get() == [NoTree(), letter * STOLEN, letter * 900_000]
    with pytest.raises(ValueError, match="nothing is being unpickled"):
        Steals.file.read(STOLEN)
    assert view == b"s" * STOLEN
