"""What is put: objects that cannot be pickled or unpickled, that change afterwards, that may not
travel; and other picklers than the usual one."""

import importlib
import pickle
import sys
import traceback

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, is_ours, settle, stderr
from queue_targets import Poison
from sync_helpers import Child, Task, outcome, wait_until


class Unpicklable(Exception):
    pass


class Mute:
    """Raises what it is told to when it is pickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Fine:
    def __init__(self):
        self.inner = [1, {"a": b"c"}]

    def __eq__(self, other):
        return type(other) is Fine and other.inner == self.inner


THINGS = [
    *(None, True, 0, -(2**70), 1.5, float("inf"), 1j, range(3), slice(1, 2, 3), int, len),
    *("text", "\ud800", "é", b"", b"\x80\xbf", bytearray(b"x" * 100)),
    *([], (), {}, {1, 2}, [1, [2, (3, {"k": {4}})]], Fine(), ValueError("x", 3)),
]


@pytest.mark.parametrize("thing", THINGS, ids=lambda thing: repr(thing)[:20])
def test_things(mp, kind, thing):
    q = getattr(mp, kind)()
    q.put(thing)
    back = q.get()
    assert type(back) is type(thing)
    assert repr(back) == repr(thing) or back == thing
    end(q)


def test_identities(mp, kind):
    q = getattr(mp, kind)()
    inner = ["x"]
    q.put((inner, inner, inner[0]))
    a, b, c = q.get()
    assert a is b
    assert a[0] is c
    loop = []
    loop.append(loop)
    q.put(loop)
    back = q.get()
    assert back[0] is back
    end(q)


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_unpicklable_is_reported_and_dropped(mp, kind):
    q = getattr(mp, kind)(2)
    with stderr() as text:
        for _ in range(3):
            q.put(Mute(Unpicklable("no way")))
            wait_until(lambda: q.qsize() == 0)
        q.put("next")
        assert q.get(timeout=LIMIT) == "next"
        q.put("a")
        q.put("b")
    said = text.getvalue()
    assert said.count("Traceback (most recent call last):\n") == 3
    assert said.count("Unpicklable: no way\n") == 3
    assert said.count("in __reduce__\n") == 3
    settle(q, 2)
    assert [q.get(), q.get()] == ["a", "b"]
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib's traceback is that of its thread")
@pytest.mark.parametrize("thing", [lambda: None, Mute(Unpicklable("no")), sys], ids=repr)
def test_the_report_shows_who_put_it(ours, thing):
    q = ours.Queue()
    with stderr() as text:
        q.put(thing)  # here
    lines = text.getvalue().splitlines()
    assert "Traceback (most recent call last):" in lines
    assert "    q.put(thing)  # here" in lines
    assert "in test_the_report_shows_who_put_it" in text.getvalue()
    assert q.empty()
    assert sys.exc_info() == (None, None, None)


@pytest.mark.skipif(not OURS, reason="the stdlib counts it")
def test_unpicklable_is_not_waited_for(ours):
    q = ours.JoinableQueue()
    with stderr():
        q.put(Mute(Unpicklable()))
    q.join()
    with pytest.raises(ValueError, match="too many times"):
        q.task_done()


def test_unpicklable_while_another_exception_is_handled(ours):
    q = ours.Queue()
    try:
        raise KeyError("outer")
    except KeyError as outer:
        with stderr() as text:
            q.put(Mute(Unpicklable("inner")))
        assert sys.exc_info()[1] is outer
    assert "Unpicklable: inner" in text.getvalue()
    assert sys.exc_info() == (None, None, None)


@pytest.mark.skipif(not OURS, reason="the stdlib's thread ends with it")
@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_base_exceptions_propagate(ours, kind, error):
    q = getattr(ours, kind)()
    with pytest.raises(error):
        q.put(Mute(error()))
    assert q.empty()
    q.put(1)
    assert q.get() == 1


def test_simple_queue_raises(mp):
    q = mp.SimpleQueue()
    with pytest.raises(Unpicklable):
        q.put(Mute(Unpicklable()))
    with pytest.raises((pickle.PicklingError, AttributeError)):
        q.put(lambda: None)
    with pytest.raises(TypeError):
        q.put(sys)
    assert q.empty()
    q.put("next")
    assert q.get() == "next"


@pytest.mark.parametrize("error", [ValueError, KeyError, KeyboardInterrupt, SystemExit, EOFError])
def test_unpickling_that_raises(mp, kind, error):
    """In whoever gets it; it is gone then."""
    q = getattr(mp, kind)()
    q.put(Poison(error, "bad"))
    q.put("good")
    with pytest.raises(error, match="bad"):
        q.get()
    assert q.get() == "good"
    settle(q, 0)
    assert q.empty()
    if hasattr(q, "qsize"):
        assert q.qsize() == 0
    end(q)


def test_unpickling_that_raises_in_a_child(ctx):
    q, results = ctx.Queue(), ctx.SimpleQueue()
    q.put(Poison(ValueError, "bad"))
    q.put("good")
    child = ctx.Process(target=queue_targets.get_or_name_error, args=(q, results, 2))
    child.start()
    assert results.get() == "ValueError"
    assert results.get() == "good"
    child.join()


def test_unpickling_of_something_large(mp, kind):
    q = getattr(mp, kind)()
    put = Task(q.put, [Poison(ValueError, "bad"), b"x" * 1_000_000])
    with pytest.raises(ValueError, match="bad"):
        q.get()
    put.get()
    q.put("good")
    assert q.get() == "good"
    end(q)


@pytest.mark.skipif(not OURS, reason="the stdlib pickles later")
def test_changed_after_put(ours, kind):
    q = getattr(ours, kind)()
    for size in (1, 1000, 100_000):
        thing = {"list": [1] * size}
        q.put(thing)
        thing["list"].clear()
        thing.clear()
        assert q.get() == {"list": [1] * size}


@pytest.mark.parametrize("what", ["Queue", "JoinableQueue", "SimpleQueue", "Lock", "Event"])
def test_what_may_not_travel_through_a_queue(both, what):
    """The text is that of the stdlib."""
    results = []
    for mp in both:
        thing = getattr(mp, what)()
        q = mp.Queue()
        with stderr() as text:
            q.put(thing)
            wait_until(lambda text=text: "inheritance\n" in text.getvalue())
        end(q)
        simple = outcome(mp.SimpleQueue().put, thing)
        said = [line for line in text.getvalue().splitlines() if line.endswith("inheritance")]
        results.append((said, simple))
        assert simple[0] == "RuntimeError"
    if what != "Event":  # the stdlib's is made of others, which it names
        assert results[0] == results[1]


@pytest.mark.parametrize("what", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_pickled_by_hand(both, what):
    theirs, ours = (outcome(pickle.dumps, getattr(mp, what)()) for mp in both)
    assert theirs[0] == "RuntimeError"
    assert ours == theirs


def test_connections_travel(mp, kind):
    q = getattr(mp, kind)()
    a, b = mp.Pipe()
    q.put(a)
    a2 = q.get()
    b.send("hello")
    assert a2.recv() == "hello"
    end(q)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_queues_of_the_wrong_context(package, method, kind):
    """A fork context's queue for a child that is not forked: the stdlib refuses."""
    ctx = package.get_context("spawn" if method == "fork" else method)
    q = getattr(package.get_context("fork"), kind)()
    with pytest.raises(RuntimeError, match="A SemLock created in a fork context is being shared"):
        ctx.Process(target=print, args=(q,)).start()


def test_contexts_of_the_other_package(both, method, kind):
    """Queues go through the other package's processes."""
    contexts = [importlib.import_module(name).get_context(method) for name in (
        "multiprocessing", "mproc_ext")]  # fmt: skip
    for mine, theirs in (contexts, contexts[::-1]):
        q, results = getattr(mine, kind)(), mine.SimpleQueue()
        child = theirs.Process(target=queue_targets.echo, args=(q, results))
        child.start()
        q.put("there and back")
        q.put(None)
        assert results.get() == "there and back"
        assert results.get() is None
        child.join()


def test_given_to_a_grandchild(ctx, kind):
    q = getattr(ctx, kind)()
    child = Child(ctx, queue_targets.hand_on, q, type(ctx).__module__.split(".")[0],
                  ctx.get_start_method())  # fmt: skip
    q.put("for the grandchild")
    assert child.recv() == ["for the grandchild"]
    child.join()
    end(q)


class Loud(pickle.Pickler):
    """A pickler of the program's, in the place of ForkingPickler."""

    calls = 0

    @classmethod
    def dumps(cls, obj, protocol=None):
        cls.calls += 1
        return b"\xff" + pickle.dumps(("loud", obj))

    @staticmethod
    def loads(data, /):
        assert bytes(data[:1]) == b"\xff"
        return pickle.loads(data[1:])


@pytest.mark.parametrize("name", ["queues", "connection"])
def test_other_picklers(package, mp, kind, name):
    q = getattr(mp, kind)()
    module = importlib.import_module(f"{package.__name__}.{name}")
    before = module._ForkingPickler
    module._ForkingPickler = Loud
    try:
        if name == "queues":
            q.put(1)
            assert q.get() == ("loud", 1)
        else:
            q._writer.send(1)
            data = q._reader.recv_bytes()
            assert Loud.loads(data) == ("loud", 1)
    finally:
        module._ForkingPickler = before
    if name == "connection":
        q._writer.send(2)
        assert q._reader.recv() == 2
    end(q)


def test_registered_reducers(package, mp, kind):
    reduction = importlib.import_module(f"{package.__name__}.reduction")
    reduction.ForkingPickler.register(Registered, lambda thing: (Registered, (thing.value + 1,)))
    q = getattr(mp, kind)()
    q.put(Registered(1))
    assert q.get().value == 2
    end(q)


class Registered:
    def __init__(self, value):
        self.value = value


def test_pickling_that_uses_the_queue(ours):
    """__reduce__ runs in put(): it may put and get itself."""
    q = ours.Queue()

    class Busy:
        def __reduce__(self):
            q.put("from inside")
            return str, ("outside",)

    q.put(Busy())
    assert [q.get(), q.get()] == ["from inside", "outside"]


def test_the_report_of_a_broken_handler(ours):
    class Broken(type(ours.Queue())):
        def _on_queue_feeder_error(self, e, obj):
            raise RuntimeError("handler") from e

    q = Broken(ctx=ours)
    with pytest.raises(RuntimeError, match="handler") as info:
        q.put(lambda: None)
    assert is_ours(q)
    assert isinstance(info.value.__cause__, (AttributeError, pickle.PicklingError))
    assert traceback.format_exception(info.value.__cause__)
    q.put(1)
    assert q.get() == 1


class Node:
    def __init__(self, following):
        self.following = following

    def __getstate__(self):
        return self.__dict__


def walk(frames, function, *args):
    return walk(frames - 1, function, *args) if frames else function(*args)


def depth():
    frame, count = sys._getframe(), 0
    while frame is not None:
        frame, count = frame.f_back, count + 1
    return count


@pytest.mark.parametrize("left", [600, 200, 100])
def test_put_deep_in_a_recursion(mp, left):
    """An object is put that is not too deep by itself: the stdlib's thread has its own stack."""
    thing = None
    for _ in range(100):
        thing = Node(thing)
    q = mp.Queue()
    walk(sys.getrecursionlimit() - depth() - left, q.put, thing)
    found = q.get(timeout=LIMIT)
    for _ in range(100):
        found = found.following
    assert found is None
    end(q)


def test_put_too_deep(mp):
    """By itself: it is reported, and the queue goes on."""
    q = mp.Queue()
    thing = []
    for _ in range(200_000):
        thing = [thing]
    with stderr() as printed:
        q.put(thing)
        q.put("next")
        assert q.get(timeout=LIMIT) == "next"
        wait_until(lambda: "RecursionError" in printed.getvalue())
    end(q)
    while thing:  # its end would be a recursion too
        thing = thing.pop()
