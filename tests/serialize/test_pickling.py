"""What is pickled: as by ForkingPickler, whoever registers with it or replaces it."""

import copyreg
import gc
import io
import pickle
import subprocess
import sys
import sysconfig
import threading
import weakref
from multiprocessing import connection, queues, reduction
from multiprocessing.reduction import ForkingPickler

import graphs
import pytest

import mproc_ext
from mproc_ext import _core, _pickling

BOTH = pytest.mark.parametrize(
    ("dumps", "loads"),
    [(ForkingPickler.dumps, ForkingPickler.loads), (_core.dumps, _core.loads)],
    ids=["stdlib", "ours"],
)


class Registered:
    pass


def make_seven():
    return 7


def make_eight():
    return 8


def seven(obj):
    return make_seven, ()


def eight(obj):
    return make_eight, ()


def refuse(obj):
    raise AssertionError("pickle looks at no table for this type")


@pytest.fixture(autouse=True)
def tables():
    """What the tests register is forgotten after them."""
    before = [(table, dict(table)) for table in (copyreg.dispatch_table, extra())]
    yield
    for table, content in before:
        table.clear()
        table.update(content)


def extra():
    return ForkingPickler._extra_reducers


@BOTH
def test_registrations(dumps, loads):
    obj = Registered()
    assert type(loads(dumps(obj))) is Registered
    copyreg.pickle(Registered, seven)
    assert loads(dumps(obj)) == 7
    ForkingPickler.register(Registered, eight)
    assert loads(dumps([obj, obj])) == [8, 8]
    ForkingPickler.register(Registered, seven)
    assert loads(dumps(obj)) == 7
    del extra()[Registered]
    copyreg.dispatch_table[Registered] = eight
    assert loads(dumps(obj)) == 8
    del copyreg.dispatch_table[Registered]
    assert type(loads(dumps(obj))) is Registered


@BOTH
def test_registrations_for_builtins_do_not_count(dumps, loads):
    values = [None, True, 1, 1.5, "abc", b"abc", (1,), [1], {1: 2}]
    for value in values:
        ForkingPickler.register(type(value), refuse)
        copyreg.dispatch_table[type(value)] = refuse
    assert loads(dumps(values)) == values
    assert loads(dumps([*values, Registered()]))[:-1] == values


class Registers:
    """Registers something for another type while it is pickled itself."""

    def __reduce__(self):
        ForkingPickler.register(Registered, seven)
        return list, ()


@BOTH
def test_registration_while_pickling_counts_from_the_next_object_on(dumps, loads):
    first = loads(dumps([Registers(), Registered()]))
    assert type(first[1]) is Registered
    assert loads(dumps(Registered())) == 7


@BOTH
def test_protocol(dumps, loads):
    default = pickle.loads(pickle.dumps(graphs.ByProtocol()))
    assert loads(dumps(graphs.ByProtocol())) == default


def local_function():
    def inner():
        pass

    return inner


class Failing:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class NotThere:
    __qualname__ = "Elsewhere"


@pytest.mark.parametrize(
    "make",
    [
        lambda: lambda: None,
        local_function,
        threading.Lock,
        lambda: [1, threading.Lock()],
        lambda: {"key": (1, threading.Lock())},
        lambda: (i for i in "ab"),
        lambda: sys,
        lambda: sys.__stdout__,
        lambda: Failing(ValueError("no")),
        lambda: Failing(KeyboardInterrupt("no")),
        NotThere,
        lambda: memoryview(b"x"),
    ],
)
def test_errors(make):
    obj, found = make(), []
    for dumps in (ForkingPickler.dumps, _core.dumps):
        with pytest.raises(BaseException) as caught:
            dumps(obj)
        error = caught.value
        notes = getattr(error, "__notes__", None)
        found.append((type(error), str(error), error.args, notes))
    assert found[0] == found[1]
    # What comes after it is not disturbed.
    assert _core.loads(_core.dumps([Registered, 1])) == [Registered, 1]


class Nested:
    """Sends something itself while it is pickled, and again while it is loaded."""

    def __init__(self, depth):
        self.depth = depth

    def __reduce__(self):
        inner = [self.depth]
        if self.depth > 0:
            inner = _core.loads(_core.dumps([Nested(self.depth - 1), self.depth]))
        return remake, (inner,)


def remake(inner):
    return _core.loads(_core.dumps((inner, Registered)))[0]


def test_pickling_within_pickling():
    for _ in range(3):
        expected = [0]
        for depth in range(1, 12):
            expected = [expected, depth]
        assert _core.loads(_core.dumps(Nested(11))) == expected


class Changes:
    """Changes the list that it is in while that is pickled."""

    def __init__(self, target, change):
        self.target, self.change = target, change

    def __reduce__(self):
        self.change(self.target)
        return list, ()


def prepend(target):
    target.insert(0, "new")


def shrink(target):
    del target[2:]


def add_key(target):
    target[f"key{len(target)}"] = 1


@pytest.mark.parametrize("change", [prepend, shrink, list.clear, add_key])
def test_what_changes_while_it_is_pickled(change):
    found = []
    for dumps, loads in (
        (ForkingPickler.dumps, ForkingPickler.loads),
        (_core.dumps, _core.loads),
    ):
        target = {} if change is add_key else []
        items = [1, "a", None, "b", 2.5]
        items[2] = Changes(target, change)
        target.update(enumerate(items)) if change is add_key else target.extend(items)
        try:
            found.append((graphs.shape(loads(dumps(target))), graphs.shape(len(target))))
        except RuntimeError as error:
            found.append((type(error), str(error)))
    assert found[0] == found[1]


class Referred:
    pass


class FailingItem:
    def __reduce__(self):
        raise ValueError


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept(fails):
    obj = Referred()
    obj.itself = obj
    text, items = "".join(["a", "bc"]), [obj]
    before = sys.getrefcount(text), sys.getrefcount(items)
    graph = [obj, text, items, *([FailingItem()] if fails else [])]
    if fails:
        with pytest.raises(ValueError):
            _core.dumps(graph)
    else:
        _core.dumps(graph)
    del graph
    assert (sys.getrefcount(text), sys.getrefcount(items)) == before
    obj.itself = None
    reference = weakref.ref(obj)
    del obj, items
    assert reference() is None


def test_large_messages_between_small_ones():
    large = [graphs.Record(i, str(i)) for i in range(10_000)]
    for obj in (graphs.Record(1, 2), large, graphs.Record(3, 4), {"x": large}, b"x" * 10**7, [1]):
        assert _core.loads(_core.dumps(obj)) == obj
        assert _core.loads(_core.dumps([obj, graphs.Color.RED])) == [obj, graphs.Color.RED]


# ---- Another class in ForkingPickler's place ------------------------------------------------


class Own:
    """What dill and cloudpickle do: messages that no one else can read."""

    prefix = b"own:"

    @classmethod
    def dumps(cls, obj):
        return cls.prefix + pickle.dumps(obj)

    @classmethod
    def loads(cls, message):
        assert bytes(message).startswith(cls.prefix)
        return pickle.loads(bytes(message).removeprefix(cls.prefix))


class High(Own):
    prefix = b"\xfd7zXZ"


@pytest.mark.parametrize("module", [queues, connection])
@pytest.mark.parametrize("own", [Own, High])
def test_a_class_assigned_to_the_module(module, own, monkeypatch):
    names = vars(module)
    assert _core.dumps([1], names) == _core.dumps([1])
    monkeypatch.setattr(module, "_ForkingPickler", own)
    message = _core.dumps([1], names)
    assert own.prefix in message[:6]
    assert message.endswith(pickle.dumps([1]))
    assert _core.loads(message, names) == [1]
    # The other module's is not touched.
    other = vars(connection if module is queues else queues)
    assert _core.dumps([1], other) == _core.dumps([1])
    monkeypatch.undo()
    assert _core.loads(_core.dumps([1], names), names) == [1]


@pytest.mark.parametrize("package", ["multiprocessing", "mproc_ext"])
@pytest.mark.parametrize(
    "assign",
    [
        "package.get_context('fork').reducer = Reducer()",
        "reduction.ForkingPickler = Own",
        "queues._ForkingPickler = Own",
    ],
)
def test_every_way_to_assign_a_class(package, assign):
    """As in the stdlib, the first two count where the module is imported later."""
    before = f"import {package}.queues as queues" if assign.startswith("queues") else ""
    program = f"""
import pickle, sys
import {package} as package
from {package} import reduction
class Own:
    @staticmethod
    def dumps(obj):
        return b'own'
class Reducer(reduction.AbstractReducer):
    ForkingPickler = Own
{before}
assert {bool(before)} or 'multiprocessing.queues' not in sys.modules
{assign}
import {package}.queues
from mproc_ext import _core, _modules
print(_core.dumps(1, vars(_modules.stdlib('queues'))))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd="/", check=False
    )
    assert (done.stdout, done.stderr) == ("b'own'\n", "")


@pytest.mark.parametrize("obj", [[1, "a"], Registered, b"x" * 5000])
def test_one_end_has_another_class(obj):
    """The other end gets what the stdlib's would get: pickle's bytes, or what the class made."""
    seen = []

    class Watching:
        @staticmethod
        def loads(message):
            seen.append(bytes(message))
            return pickle.loads(message)

        @staticmethod
        def dumps(obj):
            return pickle.dumps(obj, 2)

    names = {"_ForkingPickler": Watching}
    assert _core.loads(_core.dumps(obj), names) == obj
    assert pickle.loads(seen[0]) == obj
    assert seen[0][:1] == b"\x80"
    assert _core.loads(_core.dumps(obj, names)) == obj
    high = {"_ForkingPickler": High}
    with pytest.raises(pickle.UnpicklingError):
        _core.loads(_core.dumps(obj, high))


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_what_another_class_returns_is_checked(wrong):
    class Wrong:
        @staticmethod
        def dumps(obj):
            return wrong

    with pytest.raises(TypeError, match="a bytes-like object is required"):
        _core.dumps(1, {"_ForkingPickler": Wrong})


def test_a_view_of_wider_items():
    import array

    class Wide:
        @staticmethod
        def dumps(obj):
            return array.array("I", pickle.dumps(obj, 0).ljust(40))

        loads = staticmethod(lambda message: message)

    names = {"_ForkingPickler": Wide}
    expected = array.array("I", pickle.dumps(1, 0).ljust(40)).tobytes()
    assert _core.loads(_core.dumps(1, names), names) == expected


class Subclass(ForkingPickler):
    pass


def test_a_subclass_is_called():
    calls = []

    class Counting(ForkingPickler):
        @classmethod
        def dumps(cls, obj, protocol=None):
            calls.append(obj)
            return super().dumps(obj, protocol)

    names = {"_ForkingPickler": Counting}
    assert _core.loads(_core.dumps([1], names), names) == [1]
    assert calls == [[1]]
    names = {"_ForkingPickler": Subclass}
    assert _core.dumps([1], names) == bytes(ForkingPickler.dumps([1]))


def test_the_name_is_gone():
    with pytest.raises(NameError, match="name '_ForkingPickler' is not defined"):
        _core.dumps(1, {})
    with pytest.raises(NameError, match="name '_ForkingPickler' is not defined"):
        _core.loads(b"", {})


def tagged_dumps(cls, obj, protocol=None):
    buf = io.BytesIO()
    cls(buf, protocol).dump(("tagged", obj))
    return buf.getbuffer()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("dumps", classmethod(tagged_dumps), ("tagged", 1)),
        ("loads", staticmethod(lambda message: ("loaded", pickle.loads(message))), ("loaded", 1)),
        ("persistent_id", lambda self, obj: None, 1),
        ("reducer_override", lambda self, obj: NotImplemented, 1),
        ("_extra_reducers", {}, 1),
    ],
)
def test_the_class_is_changed(name, value, expected, monkeypatch):
    assert _core.loads(_core.dumps(1)) == 1
    monkeypatch.setattr(ForkingPickler, name, value, raising=False)
    for _ in range(3):
        assert _core.loads(_core.dumps(1)) == expected
    monkeypatch.undo()
    assert _core.loads(_core.dumps(1)) == 1
    assert _core.dumps(1)[0] >= 0xA0


def test_a_method_of_the_pickler_sees_every_object(monkeypatch):
    seen = []

    def reducer_override(self, obj):
        seen.append(obj)
        return NotImplemented

    monkeypatch.setattr(ForkingPickler, "reducer_override", reducer_override, raising=False)
    _core.dumps([1, graphs.Color.RED])
    assert graphs.Color.RED in seen


def test_other_tables(monkeypatch):
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", {Registered: seven})
    assert _core.loads(_core.dumps(Registered())) == 7
    monkeypatch.undo()
    assert type(_core.loads(_core.dumps(Registered()))) is Registered


def test_the_class_is_looked_at_once(monkeypatch):
    calls = []

    def tables(cls):
        calls.append(cls)
        return real(cls)

    real = _pickling.tables
    monkeypatch.setattr(ForkingPickler, "_extra_reducers", {})
    _core.serve_pickling(tables, vars(_pickling))
    try:
        for obj in ([1], Registered, 1j):
            assert _core.loads(_core.dumps(obj)) == obj
            assert _core.loads(_core.dumps(obj, vars(queues)), vars(queues)) == obj
        assert calls == [ForkingPickler]
    finally:
        monkeypatch.undo()
        _core.serve_pickling(real, vars(_pickling))
    _core.dumps(1)


def test_the_stdlibs_class_is_plain():
    general, extra = _pickling.tables(ForkingPickler)
    assert general is copyreg.dispatch_table
    assert extra is ForkingPickler._extra_reducers
    assert _pickling.tables(Subclass) is None
    assert reduction.ForkingPickler is queues._ForkingPickler is connection._ForkingPickler


# ---- Threads ----------------------------------------------------------------------------------


def test_threads():
    """Each thread gets its own objects back, while others change what it sends."""
    shared = {"list": [1, 2, 3], "dict": {"a": 1}}
    stop, errors = threading.Event(), []

    def change():
        i = 0
        while not stop.is_set():
            i += 1
            shared["list"].append(str(i) * 3)
            shared["dict"][f"key{i % 50}"] = [i]
            if i % 40 == 0:
                shared["list"].clear()
                shared["dict"].clear()

    def use(number):
        try:
            for i in range(300):
                obj = [graphs.Record(number, [i, "x" * i]), {"i": i}, graphs.Color.RED]
                assert _core.loads(_core.dumps(obj)) == obj
                tree = [number, {"i": str(i)}, (i, 1.5)]
                assert _core.loads(_core.dumps(tree)) == tree
                try:
                    found = _core.loads(_core.dumps(shared))
                except RuntimeError as error:  # pickle's, where a dict has changed
                    assert "changed size" in str(error) or "mutated" in str(error)
                    continue
                assert set(found) == {"list", "dict"}
        except BaseException as error:
            errors.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    threads = [threading.Thread(target=use, args=(n,)) for n in range(4)]
    changer = threading.Thread(target=change)
    try:
        for thread in (changer, *threads):
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        changer.join()
        sys.setswitchinterval(before)
    assert errors == []


# ---- Memory -----------------------------------------------------------------------------------


@pytest.mark.skipif(
    bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    reason="pickle.loads alone crashes under set_nomemory in a free-threaded 3.13",
)
def test_no_memory():
    """Every allocation fails once, in turn: a MemoryError, and the next time it works."""
    nomemory = pytest.importorskip("_testcapi", reason="CPython's own tests are not there")
    if not hasattr(nomemory, "set_nomemory"):
        pytest.skip("this _testcapi cannot make allocations fail")
    # The buffer is made anew for each, and so are the tables of what is known.
    tree = [{"id": 1, "text": "x" * 2**20, "big": 2**200}, (1.5, "Ω", [2.0, 3.0, 4.0]), b"xyz"]
    tree.append([[f"text {i}" for i in range(200)]] * 2)
    for obj in (tree, [graphs.Color.RED, tree]):
        message = _core.dumps(obj)
        for function, argument in ((_core.dumps, obj), (_core.loads, message)):
            failed = 0
            for start in range(1, 400):
                gc.disable()
                nomemory.set_nomemory(start, start + 1)
                try:
                    function(argument)
                except MemoryError:
                    failed += 1
                except Exception:  # an import, a lookup that hides it
                    failed += 1
                finally:
                    nomemory.remove_mem_hooks()
                    gc.enable()
            assert failed > 0
            assert _core.loads(_core.dumps(obj)) == obj


def test_the_name_moves_in_the_module():
    """A queue remembers where it was, and finds out where it is."""
    queue = mproc_ext.get_context("fork").SimpleQueue()
    names = vars(queues)
    original = names["_ForkingPickler"]

    def sent():
        queue.put(1)
        return queue._reader.recv_bytes()

    plain = sent()
    own = Own.dumps(1)
    try:
        for _ in range(3):
            names["_ForkingPickler"] = Own
            assert sent() == own
            queue.put(1)
            assert queue.get() == 1
            del names["_ForkingPickler"]
            names["_another_name"] = original  # behind the place, or at it
            with pytest.raises(NameError, match="_ForkingPickler"):
                queue.put(1)
            names["_ForkingPickler"] = original
            assert sent() == sent() == plain
            del names["_ForkingPickler"], names["_another_name"]
            names["".join(["_Forking", "Pickler"])] = Own  # another str of that name
            assert sent() == sent() == own
            del names["_ForkingPickler"]
            names["_ForkingPickler"] = original
            assert sent() == sent() == plain
    finally:
        names.pop("_another_name", None)
        names["_ForkingPickler"] = original
