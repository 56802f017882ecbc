"""Messages that are damaged or made up: an exception, no crash, no memory without bounds."""

import pickle
import random
import struct
import tracemalloc

import graphs
import pytest
from test_graphs import SEED

from mproc_ext import _core

NONE, INT8, LONG, FLOAT = 0xA0, 0xA3, 0xA6, 0xA7
ASCII, STR_2, STR_4, BYTES = 0xA8, 0xA9, 0xAA, 0xAB
TUPLE, LIST, FLOATS, DICT, KNOWN, STR_1 = 0xAC, 0xAD, 0xAE, 0xAF, 0xB0, 0xB1
NUMBERED = 0x40
WIDE = struct.Struct("<BQ").pack


def test_tags_are_these():
    for obj, tag in (
        (None, NONE),
        (1, INT8),
        (2**70, LONG),
        (1.5, FLOAT),
        ("", ASCII),
        ("é", STR_1),
        (b"", BYTES),
        ((), TUPLE),
        ([[]], LIST | NUMBERED),
    ):
        assert _core.dumps(obj)[0] == tag, obj
    assert [bytes([FLOATS]) in _core.dumps([[1.0, 2.0, 3.0]]), _core.dumps(["Ωx"])[2]] == [
        True,
        STR_2 | NUMBERED,
    ]


@pytest.mark.parametrize(
    "message",
    [
        [LIST],
        [LIST, 1],
        [LIST, 2, NONE],
        [LIST, 0, NONE],  # something after the end
        [LIST, 255],
        [LIST, *WIDE(255, 2**64 - 1)],
        [LIST, *WIDE(255, 2**63)],
        [TUPLE, *WIDE(255, 2**40), NONE],
        [DICT, *WIDE(255, 2**63), NONE],
        [DICT, 1, NONE],
        [FLOATS, *WIDE(255, 2**61), *b"x" * 8],
        [FLOATS, 2, *b"x" * 15],
        [ASCII, *WIDE(255, 2**63 - 1), 65],
        [ASCII, 3, 65, 65, 0x80],  # no ASCII
        [ASCII, 1, 0xE9],
        [DICT, 1, ASCII, 2, 65, 0xE9, NONE],
        [STR_1, *WIDE(255, 2**63 - 1), 0xE9],
        [STR_1, 0],
        [STR_1, 1, 65],  # ASCII
        [STR_1, 2, 65, 66],
        [STR_2, *WIDE(255, 2**63 - 1), 65, 66],
        [STR_4, *WIDE(255, 2**62), 65],
        [BYTES, 5, 65],
        [LONG, 9, 1],
        [STR_2, 0],
        [STR_2, 1, 65, 0],  # fits in one byte
        [STR_4, 1, 0, 1, 0, 0],  # fits in two
        [STR_4, 1, 0, 0, 0x11, 0],  # beyond the last character
        [STR_4, 2, 0, 0, 1, 0, 0, 0, 0, 0x80],
        [KNOWN, 0],
        [LIST, 1, KNOWN, 0],
        [LIST | NUMBERED, 1, KNOWN, 0],  # in itself
        [TUPLE, 2, ASCII | NUMBERED, 1, 65, KNOWN, 1],
        [LIST, 2, ASCII | NUMBERED, 1, 65, KNOWN, *WIDE(255, 2**64 - 1)],
        [*[LIST, 1] * 33, NONE],
        [0xB2],
        [0xC5],
        [0xDF],
        [0xFE],
        [LIST, 1, 0xBF],
        [LIST, 1, 0x80],
        [LIST, 1, 0],
    ],
    ids=lambda message: bytes(message[:20]).hex(),
)
def test_damaged(message):
    with pytest.raises(pickle.UnpicklingError, match="the message is damaged"):
        _core.loads(bytes(message))


@pytest.mark.parametrize("key", [[LIST, 0], [DICT, 0], [TUPLE, 1, LIST, 0]])
def test_keys_that_cannot_be(key):
    with pytest.raises(TypeError, match="unhashable"):
        _core.loads(bytes([DICT, 1, *key, NONE]))


@pytest.mark.parametrize(
    "message", [b"", b"\x80", b"\x80\x05", b"garbage", b"\xbf", b"\xbfgarbage"]
)
def test_damaged_pickles(message):
    """As pickle says."""
    with pytest.raises(Exception) as expected:
        pickle.loads(message.removeprefix(b"\xbf"))
    with pytest.raises(type(expected.value)) as found:
        _core.loads(message)
    assert str(found.value) == str(expected.value)


def test_what_pickle_makes_is_read():
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert _core.loads(pickle.dumps([1, graphs.Color.RED], protocol)) == [1, graphs.Color.RED]


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_no_bytes(wrong):
    with pytest.raises(TypeError, match="a bytes-like object is required"):
        _core.loads(wrong)


def test_bytes_like():
    message = _core.dumps([1, "a"])
    for like in (bytearray(message), memoryview(message), memoryview(bytearray(message))):
        assert _core.loads(like) == [1, "a"]


def try_to_load(message):
    try:
        obj = _core.loads(message)
    except (pickle.UnpicklingError, TypeError):
        return
    # What came out is sound.
    repr(obj), graphs.shape(obj), _core.dumps(obj)


def trees(count, name):
    for i in range(count):
        message = _core.dumps(graphs.Maker(f"{SEED}-{name}-{i}", plain=1).graph())
        if 0xA0 <= message[0] < 0xFF and len(message) < 20_000:
            yield message


def test_every_truncation():
    for message in trees(60, "truncated"):
        for end in range(1, min(len(message), 400)):
            with pytest.raises(pickle.UnpicklingError):
                _core.loads(message[:end])


def test_random_changes():
    print(f"MPROC_EXT_SEED={SEED}")
    rng = random.Random(SEED)
    for message in trees(150, "changed"):
        for _ in range(60):
            changed = bytearray(message)
            for _ in range(rng.choice((1, 1, 2, 5))):
                where = rng.randrange(len(changed))
                action = rng.randrange(4)
                if action == 0:
                    changed[where] = rng.randrange(256)
                elif action == 1:
                    changed[where] = rng.choice(
                        (*range(0xA0, 0xB2), *range(0xE0, 0xF2), 0xFF, 0, 1)
                    )
                elif action == 2 and len(changed) > 1:
                    del changed[where : where + rng.randrange(1, 9)]
                else:
                    end = where + rng.randrange(1, 30)
                    changed[where:where] = changed[where:end]
                if not changed:
                    changed.append(0xA0)
            # Only our own form: pickle's opcodes call what they name.
            if changed[0] >= 0xA0 and changed[0] != 0xBF:
                try_to_load(changed)


def test_random_bytes():
    rng = random.Random(SEED)
    for _ in range(5000):
        body = rng.choices((*range(0xA0, 0xB2), *range(0xE0, 0xF2), 0xFF, *range(8)), k=40)
        try_to_load(bytes([rng.choice((LIST, TUPLE, DICT)), rng.randrange(20), *body]))


def lists_in_lists(size):
    """Each claims all that is left."""
    return b"".join(bytes([LIST]) + WIDE(255, size) for _ in range(30)) + bytes([NONE]) * size


@pytest.mark.parametrize("eaten", [0, 600_000], ids=["at once", "after a string"])
def test_memory_is_bounded(eaten):
    """Of lists in lists that each claim all that is left only one can have it."""
    message = lists_in_lists(1_000_000)
    if eaten:
        # Of what the outer list claims most is gone before the others claim theirs.
        rest = lists_in_lists(400_000)
        message = bytes([LIST]) + WIDE(255, eaten + len(rest))
        message += bytes([BYTES]) + WIDE(255, eaten) + bytes(eaten) + rest
    tracemalloc.start()
    try:
        with pytest.raises(pickle.UnpicklingError):
            _core.loads(message)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(message)
