"""Messages are invisible: what comes out is what ForkingPickler gives, to the identities."""

import os
import random
from multiprocessing.reduction import ForkingPickler

import graphs
import pytest

import mproc_ext
from mproc_ext import _core

# A test that fails prints it: MPROC_EXT_SEED=N runs the same graphs again.
SEED = int(os.environ.get("MPROC_EXT_SEED", random.SystemRandom().randrange(2**32)))
COUNT = int(os.environ.get("MPROC_EXT_GRAPHS", 300))

PLAIN_FROM = 0xA0


def is_tree(obj):
    """Whether the object's message was written without pickle."""
    return _core.dumps(obj)[0] >= PLAIN_FROM


def attempt(function, obj):
    try:
        return function(obj), None
    except Exception as error:
        return None, (type(error), str(error))


def send_message(obj):
    return _core.loads(_core.dumps(obj))


def assert_same(obj, send=send_message):
    expected, their_error = attempt(lambda o: ForkingPickler.loads(ForkingPickler.dumps(o)), obj)
    found, our_error = attempt(send, obj)
    assert our_error == their_error
    originals = graphs.ids_in(obj)
    assert graphs.shape(found, originals.keys()) == graphs.shape(expected, originals.keys())


@pytest.mark.parametrize("part", range(5))
def test_random_graphs(part):
    trees = 0
    for i in range(COUNT):
        seed = f"{SEED}-{part}-{i}"
        graph = graphs.Maker(seed).graph()
        try:
            assert_same(graph)
            trees += is_tree(graph)
        except BaseException:
            print(f"MPROC_EXT_SEED={SEED}, graph {seed}")
            raise
    # Both ways were taken.
    assert COUNT * 0.2 < trees < COUNT * 0.95


@pytest.mark.parametrize(
    "values", [graphs.INTS, graphs.FLOATS, graphs.STRS, graphs.BYTES, graphs.OTHERS]
)
def test_each_value(values):
    for value in values:
        for obj in (
            value,
            [value],
            [value, value],
            (value, [value]),
            {"key": value},
            {1: (value,)},
        ):
            assert_same(obj)


@pytest.mark.parametrize(
    "obj",
    [None, True, 5, 2**70, 1.5, "abc", "Ω", "\ud800", b"abc", (), [], {}, (1, [2, {3: "x"}])],
    ids=repr,
)
def test_plain_trees_are_not_pickled(obj):
    assert is_tree(obj)


def twice(obj):
    return [obj, obj]


def recursive_list():
    obj = [1]
    obj.append(obj)
    return obj


def recursive_dict():
    obj = {}
    obj["self"] = obj
    return obj


def recursive_tuple():
    obj = ([],)
    obj[0].append(obj)
    return obj


def list_in_its_tuple():
    obj = recursive_tuple()[0]
    return [obj, obj]


@pytest.mark.parametrize(
    "make",
    [
        lambda: twice([1]),
        lambda: twice((1, 2)),
        lambda: twice({"a": 1}),
        lambda: twice("".join(["a", "b"])),
        lambda: twice(bytes([1, 2, 3])),
        lambda: twice(2**100),
        lambda: twice(1.5e10),
        lambda: twice(()),
        lambda: [{"key": 1}, {"key": 2}],
        # Equal, and not the same.
        lambda: [{"".join(["k", "ey"]): 1}, {"".join(["k", "ey"]): 2}],
        lambda: {"".join(["k", "ey"]): "".join(["k", "ey"])},
        lambda: [[], []],
        lambda: [(1, x) for x in (2, 2)],
        recursive_list,
        recursive_dict,
        recursive_tuple,
        list_in_its_tuple,
        lambda: [f"text {i}" for i in range(1000)],
        lambda: twice([f"text {i}" for i in range(1000)]),
        lambda: [s for s in [f"text {i}" for i in range(130)] for _ in "ab"],
        lambda: [{"id": i, "name": f"name {i}"} for i in range(300)],
        lambda: [float(i) for i in range(300)] + [1],
        lambda: [1.0, 2, 3.0, 4, 5.0],
        lambda: twice([1.0, 2.0, 3.0]),
        lambda: {i: str(i) for i in range(70)},
        lambda: many_shared(63),
        lambda: many_shared(65),
        lambda: many_shared(70_000),
    ],
)
def test_identities(make):
    assert_same(make())


def many_shared(count):
    """Each at several places, the last ones under numbers of more than a byte."""
    items = [(f"text {i}", i) for i in range(count)]
    return [items, items[::-1], [item[0] for item in items[:300]], items]


def test_many_objects_of_others():
    """A piece of a list whose items the program goes on holding."""
    lines = [f"line {i}" for i in range(5000)]
    assert is_tree(lines[100:4000])
    assert is_tree(many_shared(5000))


def nested(depth, wrap):
    obj = wrap(None)
    for _ in range(depth - 1):
        obj = wrap(obj)
    return obj


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: {"x": x}])
def test_depth(wrap):
    """Up to 32 without pickle; as deep as pickle goes; and its error beyond."""
    for depth in (1, 2, 31, 32, 33, 34, 100):
        obj = nested(depth, wrap)
        assert_same(obj)
        assert is_tree(obj) == (depth <= 32)
    deep = nested(100_000, wrap)
    for dumps in (ForkingPickler.dumps, _core.dumps):
        with pytest.raises(RecursionError):
            dumps(deep)
    while deep:
        (deep,) = deep.values() if isinstance(deep, dict) else deep


def key(text):
    """A str that is no other's."""
    return "".join(list(text))


def test_keys_of_dicts():
    """Those of one message may be those of another one; what is two objects stays two."""
    texts = ["k", "key", "k" * 32, "k" * 33, "schlüssel", "ключ", "", *map(str, range(1000))]
    for _ in range(3):
        for text in texts:
            assert_same({key(text): 1})
            assert_same([{key(text): 1}, {key(text): 2}, {key(text): key(text)}])
            assert_same(twice({key(text): 1}))
            shared = key(text)
            assert_same([{shared: shared}, {key(text): shared}])
        assert_same([{key(text): i for i, text in enumerate(texts)} for _ in range(2)])


@pytest.mark.skipif(not mproc_ext.ACCELERATED, reason="there are only the stdlib's queues")
def test_random_graphs_in_shared_memory():
    """Long messages are read where they lie, with other precautions."""
    q = mproc_ext.get_context("fork").SimpleQueue()
    ballast = b"x" * 70_000

    def send(obj):
        q.put(obj)
        return q.get()

    for i in range(COUNT):
        seed = f"{SEED}-shared-{i}"
        graph = [graphs.Maker(seed, plain=i % 2).graph(), ballast]
        try:
            assert_same(graph, send)
        except BaseException:
            print(f"MPROC_EXT_SEED={SEED}, graph {seed}")
            raise
