"""Random graphs of objects, and what of them can be seen: structure, types, values, identities."""

import collections
import dataclasses
import decimal
import enum
import random
import struct


class List(list):
    pass


class Tuple(tuple):
    __slots__ = ()


class Dict(dict):
    pass


class Str(str):
    pass


class Int(int):
    pass


class Float(float):
    pass


class Bytes(bytes):
    pass


class Color(enum.Enum):
    RED = "red"
    BLUE = 2


class Level(enum.IntEnum):
    LOW = 1


Point = collections.namedtuple("Point", "x y")


@dataclasses.dataclass
class Record:
    name: object
    value: object = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    name: object


class Plain:
    """Its attributes' names come back interned."""


class Reduced:
    """Is made anew by a call."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Reduced, (self.value,)


class ByProtocol:
    """Comes back as the protocol that it was pickled with."""

    def __reduce_ex__(self, protocol):
        return int, (protocol,)


def function(x):
    return x


INTS = [0, 1, -1, 5, 127, 128, -128, -129, 255, 256, 257, 2**15, 2**31 - 1, 2**31, -(2**31)]
INTS += [-(2**31) - 1, 2**62, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 2**64, 2**1000, -(2**1000)]
INTS += [2**2039, -(2**2040), 2**4000 + 1, 2 ** (8 * 32767), 2**300_000 + 1]
FLOATS = [0.0, -0.0, 1.5, -2.25, 1e308, 5e-324, float("inf"), float("-inf"), float("nan")]
FLOATS += [-float("nan"), struct.unpack("<d", b"\1\2\3\4\5\6\xf8\x7f")[0]]
STRS = [
    "",
    "a",
    "é",
    "\0",
    "abc",
    "name",
    "é" * 3,
    "naïve",
    "Ω",
    "Ωmega" * 60,
    "\uffff",
    "\U0001f600",
]
STRS += ["x" * 254, "x" * 255, "x" * 256, "\ud800", "a\udfffb", "\ud83d\ude00", "\U0010ffff" * 300]
BYTES = [b"", b"a", b"\xff", b"abc", b"\x80\x05", bytes(range(256)), b"x" * 255, b"y" * 70_000]
OTHERS = [Color.RED, Level.LOW, function, Record, len, Ellipsis, NotImplemented, range(3), 1j]
OTHERS += [decimal.Decimal("1.50"), bytearray(b"xyz"), Str("s"), Int(7), Float(2.5), Bytes(b"b")]
OTHERS += [
    frozenset({1, "one"}),
    {1, 2, "three"},
    ByProtocol(),
    type(None),
    collections.OrderedDict,
]


class Maker:
    """Makes graphs.  `plain`: how often, from 0 to 1, one has only what needs no pickle."""

    def __init__(self, seed, plain=0.5):
        self.random = random.Random(seed)
        self.only_plain = self.random.random() < plain
        self.is_sharing = self.random.random() < 0.7
        self.made = []

    def graph(self):
        root = self.value(self.random.randint(0, 5))
        if self.is_sharing and self.random.random() < 0.3:
            self.make_recursive()
        self.made.clear()
        return root

    def make_recursive(self):
        for container in self.made:
            if self.random.random() < 0.2:
                target = self.random.choice(self.made)
                if type(container) in (list, List):
                    container.append(target)
                elif type(container) in (dict, Dict):
                    container[f"more{len(container)}"] = target

    def value(self, depth):
        made = self.made
        if self.is_sharing and made and self.random.random() < 0.25:
            return self.random.choice(made)
        value = self.leaf() if depth == 0 or self.random.random() < 0.3 else self.container(depth)
        made.append(value)
        return value

    def leaf(self):
        choice = self.random.choice
        kind = self.random.randrange(6 if self.only_plain else 7)
        if kind == 0:
            return choice((None, True, False))
        if kind == 1:
            return choice(INTS) + self.random.randrange(2)
        if kind == 2:
            return choice(FLOATS) * 1.0
        if kind == 3:
            return choice(STRS)
        if kind == 4:
            # One that nothing else refers to.
            return "".join(choice("abcé€\U0001f600") for _ in range(self.random.randrange(4)))
        if kind == 5:
            return choice(BYTES) if self.random.random() < 0.5 else self.random.randbytes(3)
        return choice(OTHERS)

    def container(self, depth):
        size = self.random.choice((0, 1, 2, 3, 4, 8, 20 if depth < 3 else 5))
        items = [self.value(depth - 1) for _ in range(size)]
        kind = self.random.randrange(4 if self.only_plain else 13)
        if kind == 0:
            return items
        if kind == 1:
            return tuple(items)
        if kind == 2:
            return {self.key(): item for item in items}
        if kind == 3:
            return [self.random.random() for _ in items]
        if kind == 4:
            return List(items)
        if kind == 5:
            return Tuple(items)
        if kind == 6:
            return Dict((self.key(), item) for item in items)
        if kind == 7:
            return Record(items, items[0] if items else None)
        if kind == 8:
            return Point(items, tuple(items))
        if kind == 9:
            return Frozen(items)
        if kind == 10:
            plain = Plain()
            for i, item in enumerate(items):
                setattr(plain, f"name{i % 5}", item)
            return plain
        if kind == 11:
            return Reduced(items)
        return {self.key() for _ in items}

    def key(self):
        # No NaN: it equals nothing, so the order in a set tells two of them apart.
        kinds = (int, float, str, bytes, bool)
        hashable = [v for v in self.made[-5:] if type(v) in kinds and v == v]
        if hashable and self.random.random() < 0.3:
            return self.random.choice(hashable)
        kind = self.random.randrange(4)
        if kind == 0:
            return self.random.choice(STRS)
        if kind == 1:
            return self.random.choice(INTS[:24])
        if kind == 2:
            return (self.random.choice(STRS), self.random.randrange(3))
        return self.random.choice(("id", "name", "value", "Ωmega"))


def order(obj):
    """What sorts objects of several types; repr() refuses long ints."""
    return str(type(obj)), hex(obj) if isinstance(obj, int) else repr(obj)


def shape(root, originals=frozenset()):
    """All that can be seen of a graph: equal for graphs that no program can tell apart.

    An object that was met before is the place where, so identities are in it.  `originals` are ids
    of objects (functions, singletons) of which it is seen whether they are in the graph.
    """
    places, kept = {}, []

    def visit(obj):
        place = places.get(id(obj))
        if place is not None:
            return ("as at", place)
        places[id(obj)] = len(places)
        kept.append(obj)
        return (type(obj), id(obj) in originals, *inside(obj))

    def inside(obj):
        parts = []
        if isinstance(obj, float):
            parts.append(struct.pack("<d", obj))
        elif isinstance(obj, (bytes, bytearray, str, complex, range)):
            parts.append(repr(obj))
        elif isinstance(obj, int):
            parts.append(hex(obj))
        elif isinstance(obj, dict):
            parts += [(visit(key), visit(value)) for key, value in obj.items()]
        elif isinstance(obj, (list, tuple)):
            parts += [visit(item) for item in obj]
        elif isinstance(obj, (set, frozenset)):
            parts += [visit(item) for item in sorted(obj, key=order)]
        elif isinstance(obj, Frozen):
            parts.append(visit(obj.name))
        elif isinstance(obj, decimal.Decimal):
            parts.append(str(obj))
        if hasattr(obj, "__dict__") and not isinstance(obj, (type, enum.Enum)):
            parts += [(visit(key), visit(value)) for key, value in vars(obj).items()]
        return parts

    return visit(root)


def ids_in(root):
    """The ids of all objects in a graph, as far as `shape` looks."""
    seen, todo = {}, [root]
    while todo:
        obj = todo.pop()
        if id(obj) in seen:
            continue
        seen[id(obj)] = obj
        if isinstance(obj, dict):
            todo += obj.keys()
            todo += obj.values()
        elif isinstance(obj, (list, tuple, set, frozenset)):
            todo += obj
        elif isinstance(obj, Frozen):
            todo.append(obj.name)
        if hasattr(obj, "__dict__") and not isinstance(obj, (type, enum.Enum)):
            todo += vars(obj).keys()
            todo += vars(obj).values()
    return seen
