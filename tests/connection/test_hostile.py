"""Bytes that are no messages: an error or a message, never a crash, never memory without bounds."""

import os
import pathlib
import pickle
import random
import struct
import sysconfig

import pytest
from connection_helpers import (
    framed,
    header,
    open_pair,
    raw_writer,
    wide_header,
    write_all,
)
from sync_helpers import LIMIT, Task, outcome, run_program

HERE = pathlib.Path(__file__).parent
SEED = int(os.environ.get("MPROC_EXT_SEED", random.randrange(2**32)))
NO_MEMORY = 30 << 20  # bytes: what a reader may take for what never comes


def take_all(module, kind, data, calls):
    """What the calls give, one after the other, of a reader that these bytes have come to."""
    with raw_writer(module, kind) as (reader, fd):
        task = Task(lambda: (write_all(fd, data), os.close(fd)))
        found = []
        for call in calls:
            found.append(outcome(call, reader))
            if found[-1][0] in ("EOFError", "OSError"):
                break
        found.append((reader.closed, reader.readable))
        reader.close()
        outcome(task.get)
        return found


CALLS = {
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes limited": lambda c: c.recv_bytes(100),
    "recv_bytes_into": lambda c: c.recv_bytes_into(bytearray(100)),
    "poll": lambda c: c.poll(LIMIT),
}


def chance_of(request):
    """The same numbers again with MPROC_EXT_SEED, which a failure shows."""
    print(f"MPROC_EXT_SEED={SEED}")
    return random.Random(f"{SEED} {request.node.name}")


# ---- Headers ---------------------------------------------------------------------------------


def some_bytes(chance, size):
    """But for the one byte by which a pickle asks for memory by a number."""
    return chance.randbytes(size).replace(pickle.LONG_BINPUT, pickle.NONE)


def random_part(chance):
    """A piece of a stream, most of which the stdlib reads as we do."""
    size = chance.choice([0, 1, 2, 3, 4, 5, 8, 12, 100, 300])
    data = some_bytes(chance, size)
    kind = chance.random()
    if kind < 0.5:
        return framed(data)
    if kind < 0.7:
        return wide_header(size) + data
    if kind < 0.8:
        return header(size + chance.randrange(1, 50)) + data  # the next part is its end
    if kind < 0.9:
        return struct.pack("!i", chance.randrange(0, 1000)) + data
    return chance.choice([b"\0", b"\0\0", b"\0\0\0", b"\xff\xff\xff\xff\0\0\0\0"]) + data


def sizes_are_plain(data):
    """Whether no header in there says less than 0 or more than there is memory for: of those the
    stdlib's reader makes something else."""
    while len(data) >= 4:
        (size,), start = struct.unpack_from("!i", data), 4
        if size == -1:
            if len(data) < 12:
                return True
            (size,), start = struct.unpack_from("!Q", data, 4), 12
        if not 0 <= size <= 1 << 20:
            return False
        data = data[start + size :]
    return True


def test_streams_at_random(modules, kind, request):
    """As the stdlib's reader has them, whichever calls take them."""
    chance, compared = chance_of(request), 0
    while compared < 300:
        data = b"".join(random_part(chance) for _ in range(chance.randrange(1, 8)))
        data = data[: chance.randrange(len(data) + 1)]
        if not sizes_are_plain(data):
            continue
        calls = chance.choices(list(CALLS.values()), k=12)
        expected, found = (take_all(module, kind, data, calls) for module in modules)
        assert found == expected, (data, SEED)
        compared += 1


def test_bytes_at_random(ours, kind, request):
    """Whatever they are."""
    chance = chance_of(request)
    for _ in range(500):
        data = some_bytes(chance, chance.randrange(40))
        if chance.random() < 0.3:
            data = b"\xff\xff\xff\xff" + data
        calls = chance.choices(list(CALLS.values()), k=12)
        found = take_all(ours, kind, data, calls)
        # In the end there is the end.
        assert found[-2][0] in ("EOFError", "OSError", "returns"), (data, SEED)
        names = {result[0] for result in found[:-1]}
        assert names <= {
            *("returns", "EOFError", "OSError", "BufferTooShort", "UnpicklingError"),
            *("ValueError", "AttributeError", "IndexError", "KeyError", "TypeError"),
            *("ImportError", "ModuleNotFoundError", "UnicodeDecodeError", "MemoryError"),
            *("OverflowError", "SyntaxError"),
        }, (data, SEED)


@pytest.mark.parametrize("size", [-2, -3, -1000, -(2**31)])
@pytest.mark.parametrize("call", [name for name in CALLS if name != "poll"])
def test_sizes_below_zero(ours, kind, size, call):
    """There is no such message, and none after it."""
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, struct.pack("!i", size) + framed(b"next"))
        with pytest.raises(OSError, match="bad message length"):
            CALLS[call](reader)
        assert reader.closed == (kind == "pipe")
        if kind != "pipe":
            assert not reader.readable
            assert reader.writable
        with pytest.raises(OSError, match=r"handle is closed|connection is write-only"):
            CALLS[call](reader)


@pytest.mark.parametrize("size", [2**63, 2**63 + 5, 2**64 - 1, 2**64 - 2**31])
@pytest.mark.parametrize("call", [name for name in CALLS if name != "poll"])
def test_sizes_beyond_all(ours, kind, size, call):
    with raw_writer(ours, kind) as (reader, fd):
        write_all(fd, wide_header(size) + b"x" * 100)
        with pytest.raises(OSError, match="bad message length"):
            CALLS[call](reader)
        assert not (reader.readable and not reader.closed)


# ---- Memory ----------------------------------------------------------------------------------

CLAIMS = [2**31 - 1, 2**31, 2**33, 2**40, 2**47, 2**62, 2**63 - 1]

PROGRAM = """
import os, sys
sys.path += {paths!r}
import mproc_ext.connection
from connection_helpers import header, raw_writer, write_all
from sync_helpers import Task, outcome

def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

calls = {{
    "recv": lambda c: c.recv(),
    "recv_bytes": lambda c: c.recv_bytes(),
    "recv_bytes limited": lambda c: c.recv_bytes(2**63 - 1),
    "recv_bytes_into": lambda c: c.recv_bytes_into(bytearray(100)),
}}
for call in calls.values():
    for sent in (0, 1, 100, 100_000, {sent}):
        before = peak()
        with raw_writer(mproc_ext.connection, {kind!r}) as (reader, fd):
            task = Task(lambda: (write_all(fd, header({size})), write_all(fd, bytes(sent)),
                                 os.close(fd)))
            print(*outcome(call, reader)[:2], peak() - before)
            task.get()
"""


@pytest.mark.parametrize("size", CLAIMS)
def test_a_size_that_never_comes(ours, kind, size):
    """Costs as much as what does come, not what the header says."""
    program = PROGRAM.format(
        paths=[str(HERE), str(HERE.parent / "sync")], kind=kind, size=size, sent=3_000_000
    )
    lines = run_program("-c", program).splitlines()
    assert len(lines) == 20
    for line in lines:
        error, _, memory = line.rpartition(" ")
        assert error.startswith(("OSError got end of file during message", "EOFError"))
        assert int(memory) < NO_MEMORY


LIMITED = """
import os, resource, sys
sys.path += {paths!r}
import mproc_ext.connection
from connection_helpers import limit_memory, open_pair, sending
from sync_helpers import outcome

with open_pair(mproc_ext.connection, {kind!r}) as (reader, writer):
    data = bytes(200 << 20)
    task = sending(writer, lambda: (writer.send_bytes(data), writer.send("next")))
    limit_memory(50 << 20)
    try:
        received = reader.recv_bytes()
    except MemoryError:
        print("MemoryError")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
        received = reader.recv_bytes()
    print(len(received) == len(data), reader.recv())
    reader.close()
    outcome(task.get)
"""


def test_a_message_beyond_the_limits_of_memory(ours, kind):
    """MemoryError; and what has come of it is not lost, nor taken for something else."""
    program = LIMITED.format(paths=[str(HERE), str(HERE.parent / "sync")], kind=kind)
    *failures, last = run_program("-c", program).splitlines()
    assert last == "True next"
    assert set(failures) <= {"MemoryError"}
    # A free-threaded Python has address space in reserve, which may be enough at the first try.
    assert len(failures) == 1 or sysconfig.get_config_var("Py_GIL_DISABLED")


# ---- Pickles ---------------------------------------------------------------------------------


def test_every_first_byte(modules, kind):
    """As the stdlib's has them: there are messages in no other form than pickle's."""
    messages = [bytes([first]) + rest for first in range(256) for rest in (b"", b".", b"\0" * 20)]
    found = []
    for module in modules:
        with open_pair(module, kind) as (reader, writer):
            found.append([])
            for message in messages:
                writer.send_bytes(message)
                found[-1].append(outcome(reader.recv))
            writer.send("next")
            assert reader.recv() == "next"
    for message, expected, ours in zip(messages, *found, strict=True):
        assert ours == expected, message
    for message, result in zip(messages, found[0], strict=True):
        if message[0] >= 0xA0:
            assert result[0] == "UnpicklingError"


GOOD = [
    pickle.dumps(thing, protocol)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    for thing in (
        [1, "two", (3.5, None, True)],
        {"id": 2**70, "name": "é", b"bytes": bytearray(b"x")},
        {1, 2, 3},
        "x" * 300,
    )
]

# Those of which a damaged copy can do no harm: no names that are looked up, no memory by a number.
HARMLESS = set(b"()]}.KJMNIFGXUTVBCSTu0laetsde\x80\x85\x86\x87\x88\x89\x8c\x8a\x8e\x8f\x90\x94")


def damaged(chance, data):
    data = bytearray(data)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data))
        what = chance.random()
        if what < 0.4:
            data[at] = chance.choice([*HARMLESS, chance.randrange(0xA0, 256)])
        elif what < 0.7:
            del data[at : at + chance.randrange(1, 4)]
        else:
            data[at:at] = bytes(chance.choices([*HARMLESS], k=chance.randrange(1, 4)))
        if not data:
            data = bytearray(b".")
    return bytes(data)


def is_harmless(data):
    """Looks up nothing, and puts nothing at a number."""
    return not set(data) & set(b"cirRoP\x81\x92\x93\x82\x83\x84\x97\x98")


def test_damaged_pickles(modules, kind, request):
    """What the stdlib says of each; and the next message arrives."""
    chance, compared = chance_of(request), 0
    messages = []
    while compared < 1500:
        data = damaged(chance, chance.choice(GOOD))
        if is_harmless(data):
            messages.append(data)
            compared += 1
    found = []
    for module in modules:
        with open_pair(module, kind) as (reader, writer):
            found.append([])
            for number, message in enumerate(messages):
                writer.send_bytes(message)
                writer.send(number)
                found[-1].append(outcome(reader.recv))
                assert reader.recv() == number
    for message, expected, ours in zip(messages, *found, strict=True):
        assert ours == expected, (message, SEED)
    assert {"returns", "UnpicklingError"} <= {result[0] for result in found[0]}


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"garbage",
        b"\x80",
        b"\x80\x05",
        b"\x80\x63.",
        b".",
        b"N",
        b"(lp0\n",
        b"cno_such_module\nname\n.",
        b"cos\nno_such_name\n.",
        b"cbuiltins\nint\n(S'x'\ntR.",
        b"\x8b\xff\xff\xff\x7f",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc",
        b"X\xff\xff\xff\xffabc",
        b"B\xff\xff\xff\x7fabc",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xffabc",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7fN.",
        b"\x80\x04\x95\x02\x00\x00\x00\x00\x00\x00\x00N.N.",
        b"h\x05.",
        b"0.",
        b"K\x01K\x02.",
        pickle.dumps(1) + b"and more",
        bytes([0xA0]),
        bytes([0xA3, 5]),
        bytes([0xAE, 1, 0xA8, 1, 65, 0xA0]),
    ],
)
def test_what_cannot_be_unpickled(modules, kind, message):
    """The error is the stdlib's, and the stream stays in step."""
    found = []
    for module in modules:
        with open_pair(module, kind) as (reader, writer):
            results = []
            for _ in range(3):
                writer.send_bytes(message)
                writer.send(["next"])
                results.append(outcome(reader.recv))
                assert reader.recv() == ["next"]
            found.append(results)
    assert found[1] == found[0]


class Poison:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return raise_it, (self.kind,)


def raise_it(kind):
    raise kind("from the message")


@pytest.mark.parametrize("kind_of", [ValueError, EOFError, OSError, MemoryError, KeyboardInterrupt])
def test_a_message_that_raises(pair, kind_of):
    """Whatever it raises, be it what the connection would: the stream stays in step."""
    reader, writer = pair
    for _ in range(3):
        writer.send([b"x" * 1000, Poison(kind_of), "rest"])
        writer.send("next")
        with pytest.raises(kind_of, match="from the message"):
            reader.recv()
        assert reader.recv() == "next"


DEEP = """
import sys
sys.path += {paths!r}
import mproc_ext.connection
from connection_helpers import open_pair
with open_pair(mproc_ext.connection, "socketpair") as (reader, writer):
    for message in ({messages}):
        writer.send_bytes(message)
        writer.send("next")
        try:
            reader.recv()
        except Exception:
            pass
        print(reader.recv())
"""


def test_deep_pickles():
    """Nested deeper than the stack goes, and with memory by a number: in a program of its own."""
    messages = """
        b"(" * 30_000 + b"t" * 30_000 + b".",
        b"]" * 10_000 + b"a" * 9_999 + b".",
        b"(" * 10_000,
        b"N" * 30_000 + b".",
    """
    program = DEEP.format(paths=[str(HERE), str(HERE.parent / "sync")], messages=messages)
    lines = run_program("-c", program).splitlines()
    assert lines == ["next"] * 4


def test_hostile_bytes_before_authentication(ours):
    """Who has connected, and says anything but the right thing, costs no memory: the listener goes
    on with the next one."""
    with ours.Listener(("127.0.0.1", 0), authkey=b"key") as listener:
        for data in (
            b"",
            b"\xff" * 12,
            header(2**31 - 1),
            wide_header(2**62),
            wide_header(2**64 - 1) + b"x",
            struct.pack("!i", -5),
            framed(b"wrong"),
            framed(b"x" * 100_000),
        ):
            task = Task(listener.accept)
            client = ours.SocketClient(listener.address)
            write_all(client.fileno(), data)
            client.close()
            result = outcome(task.get)
            assert result[0] in (
                *("OSError", "EOFError", "AuthenticationError", "AssertionError"),
                *("ConnectionResetError", "BrokenPipeError"),
            )
        task = Task(listener.accept)
        with ours.Client(listener.address, authkey=b"key") as client, task.get() as accepted:
            client.send("authenticated")
            assert accepted.recv() == "authenticated"
