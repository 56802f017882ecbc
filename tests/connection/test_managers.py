"""Managers on our connections: the stdlib's objects, proxies, errors, counts and ends."""

import contextlib
import copy
import gc
import importlib
import os
import signal
import socket
import threading
from unittest import mock

import connection_listener_targets as targets
import pytest
from connection_helpers import OURS
from connection_listener_targets import ERRORS, Thing
from sync_helpers import LIMIT, Child, Task, outcome, run_program, wait_until, wait_until_asleep

from mproc_ext import managers as ours
from mproc_ext._stdlib import managers as theirs

only_ours = pytest.mark.skipif(not OURS, reason="there are only the stdlib's")
OF = {"multiprocessing": theirs, "mproc_ext": ours}
THINGS = {theirs: targets.TheirThings, ours: targets.OurThings}
KEY = b"a key"


@pytest.fixture
def managers(package):
    """The module, of either package."""
    return OF[package.__name__]


@pytest.fixture
def manager(mp):
    with mp.Manager() as manager:
        yield manager


@pytest.fixture
def things(managers, mp):
    """A manager of Things, of either package."""
    with THINGS[managers](ctx=mp) as manager:
        yield manager


def result(function, *args):
    """As outcome(); of a traceback from the server the last line, as its other ones show code."""
    kind, text, *more = outcome(function, *args)
    if kind == "RemoteError":
        text = [line for line in text.splitlines() if line.strip("-")][-1]
    return kind, text, *more


def count(manager):
    """How many objects the server has.  It learns a moment later of a proxy that is gone."""
    return manager._number_of_objects()


def wait_for_count(manager, expected):
    gc.collect()
    wait_until(lambda: count(manager) == expected, f"a count of {expected}")


# -- what the types do ----------------------------------------------------------------------------

SCRIPTS = {
    "dict": """
        d := m.dict(a=1); d["b"] = 2; d.update(c=3); len(d); sorted(d.keys()); d["a"]; d["none"];
        d.get("none"); d.get("none", 4); d.pop("a"); d.pop("a"); d.pop("a", 5); "b" in d;
        d.setdefault("e", []); d.items(); d.values(); d.copy(); sorted(d); str(d); repr(d)[:25];
        d._getvalue(); copy.deepcopy(d); del d["b"]; del d["b"]; d.popitem(); d.clear();
        d.popitem(); d == {}; d[[]]; d[1] = lambda: 0; d[1]; d.nothing();
        d._callmethod("nothing"); d._callmethod("__class__"); d._callmethod("get");
        d._callmethod("get", (1,), {"a": 2}); d | {1: 2}; {1: 2} | d; list(reversed(d));
        d.fromkeys([1, 2], 3)""",
    "list": """
        a := m.list([3, 1, 2]); a.append(4); a.sort(); a[:]; a[1:3]; a[9]; a[0] = 5; len(a);
        a.extend([6, 7]); a.pop(); a.pop(0); a.remove(1); a.remove(99); a.insert(0, 8);
        a.reverse(); a.index(8); a.index(99); a.count(8); 8 in a; a + [1]; a * 2; 2 * a; list(a);
        str(a); del a[0]; a[:] = [1]; a._getvalue(); list(reversed(a)); a.nothing;
        a.append(threading.Lock()); a[:]; a.sort(key=len); a.append(); m.list(5); m.list(1, 2);
        a.copy(); a.clear()""",
    "Namespace": """
        n := m.Namespace(a=1); n.a; n.b; setattr(n, "b", [2]); n.b; str(n); delattr(n, "a"); n.a;
        delattr(n, "a"); n._private; setattr(n, "_private", 3); n._private; repr(n)[:30];
        n._getvalue(); setattr(n, "c", threading.Lock()); m.Namespace(1)""",
    "Value": """
        v := m.Value("i", 7); v.value; setattr(v, "value", 8); v.value; v.get(); v.set(9);
        v.get(); str(v); m.Value("i"); v.other""",
    "Array": """
        a := m.Array("i", [1, 2, 3]); len(a); a[1]; a[1] = 5; a[:]; a[9]; a[0] = "x"; str(a);
        m.Array("i", "abc"); m.Array("no", [1])""",
    "Queue": """
        q := m.Queue(2); q.put(1); q.put([2]); q.put(3, False); q.put_nowait(4); q.full();
        q.qsize(); q.get(); q.get(timeout=1); q.get(False); q.get_nowait(); q.get(True, 0.01);
        q.empty(); q.task_done(); q.task_done(); q.task_done(); q.join();
        q.maxsize; m.Queue("x")""",
    "JoinableQueue": """
        q := m.JoinableQueue(); q.put(1); q.get(); q.task_done(); q.join(); q.task_done()""",
    "Event": """
        e := m.Event(); e.is_set(); e.wait(0.01); e.set(); e.is_set(); e.wait(); e.clear();
        e.is_set(); e.other()""",
    "Lock": """
        x := m.Lock(); x.acquire(); x.acquire(False); x.acquire(True, 0.01); x.release();
        x.release(); x.__enter__(); x.__exit__(None, None, None);
        x.locked(); x.acquire("a", "b")""",
    "RLock": """
        x := m.RLock(); x.acquire(); x.acquire(); x.release(); x.release(); x.release()""",
    "Semaphore": """
        x := m.Semaphore(2); x.acquire(); x.acquire(); x.acquire(False); x.release(); x.release();
        x.release(); m.Semaphore(-1)""",
    "BoundedSemaphore": """
        x := m.BoundedSemaphore(1); x.acquire(); x.acquire(False); x.release(); x.release()""",
    "Condition": """
        c := m.Condition(); c.acquire(); c.wait(0.01); c.notify(); c.notify(2); c.notify_all();
        c.wait_for(lambda: False, 0.01); c.wait_for(lambda: 5); c.release(); c.notify(); c.wait();
        c.__enter__(); c.__exit__(None, None, None)""",
    "Condition of a lock": """
        l := m.Lock(); c := m.Condition(l); c.acquire(); l.acquire(False); c.release();
        l.acquire(False)""",
    "Barrier": """
        b := m.Barrier(1); b.wait(); b.parties; b.n_waiting; b.broken; b.abort(); b.broken;
        b.wait(); b.reset(); b.wait(); m.Barrier(0); m.Barrier(2).wait(0.01)""",
    "Pool": """
        p := m.Pool(1); p.apply(len, ([1, 2],)); r := p.apply_async(len, ([1],)); r.get();
        r.ready(); r.successful(); r.wait(); p.map(len, [[], [1]]); p.apply(len, (1,));
        list(p.imap(len, [[1], [1, 2]])); i := p.imap_unordered(len, [[1]]); next(i); next(i);
        p.starmap(divmod, [(7, 2)]); p.map_async(len, [[]]).get(); p.close(); p.join();
        p.apply(len, ([],)); p.__exit__(None, None, None)""",
    "iterators": """
        d := m.dict(a=1); i := iter(d); next(i); next(i); iter(i) is i; i.close(); i.send(1);
        i.throw(KeyError); d["b"] = 2; next(iter(d)); m.Iterator; m.AsyncResult""",
    "nested": """
        d := m.dict(); a := m.list([1]); d["a"] = a; d["a"].append(2); a[:]; str(d["a"]);
        d["a"][1]; a.append(m.dict(x=m.list(["deep"]))); d["a"][2]["x"][0]; type(d["a"]).__name__;
        d["d"] = d; d["d"]["d"]["a"][0]; len(d.values()); d["a"][9]; del a; d["a"][:2];
        d.pop("a")[0]; "a" in d; d.clear(); n := m.Namespace(); setattr(n, "q", m.Queue());
        n.q.put(1); n.q.get(); q := m.Queue(); q.put(m.Event()); q.get().is_set()""",
    "unpickling": """
        a := m.list(); a.append(targets.Custom(1)); a[0].args; a.append(range(3)); a[1];
        a.append(print); a[2]; a.append(m); a.append(b"x" * 300000); len(a[3]); a.append(a);
        a[-1][1]""",
    "the manager": """
        m.nothing; m.dict(1); m.list(a=1); m._create("nothing"); m._create("Namespace")[1];
        m.address is None; m.start(); m.get_server(); m.connect(); m.join(0.01); m.Lock(1)""",
}


def play(manager, script):
    names = {"m": manager, "copy": copy, "threading": threading, "targets": targets}
    for call in (" ".join(call.split()) for call in script.split(";")):
        try:
            compile(call, "call", "eval")
        except SyntaxError:
            if ":=" in call:
                call = f"({call})"  # a name of its own
            else:
                yield call, result(exec, call, names)
                continue
        yield call, result(eval, call, names)


@pytest.mark.parametrize("script", SCRIPTS)
def test_types_and_errors(both, script):
    played = []
    for mp in both:
        with mp.Manager() as manager:
            played.append(list(play(manager, SCRIPTS[script])))
    for (call, expected), (_, found) in zip(*played, strict=True):
        if since_newer(call) and expected[0] in ("AttributeError", "TypeError", "RemoteError"):
            continue
        assert found == expected, call
    assert any(found[0] == "returns" for _, found in played[1])


def since_newer(call):
    """Whether this is of what we give to older Pythons."""
    return any(
        name in call
        for name in ("locked()", "d |", "| d", "reversed(d)", "fromkeys", "a.clear", "a.copy")
    )


@only_ours
def test_of_whose_classes_all_is(both):
    made = {
        "dict": (), "list": (), "Namespace": (), "Value": ("i", 0), "Array": ("i", [0]),
        "Queue": (), "JoinableQueue": (), "Event": (), "Lock": (), "RLock": (), "Semaphore": (),
        "BoundedSemaphore": (), "Condition": (), "Barrier": (1,), "Pool": (1,),
    }  # fmt: skip
    for mp, module in zip(both, (theirs, ours), strict=True):
        with mp.Manager() as manager:
            for name, args in made.items():
                proxy = getattr(manager, name)(*args)
                assert isinstance(proxy, theirs.BaseProxy)
                assert isinstance(proxy, ours.BaseProxy) == (module is ours)
                proxy._connect()
                assert type(proxy._tls.connection).__module__ == module.connection.__name__
                if hasattr(theirs, type(proxy).__name__):
                    assert isinstance(proxy, getattr(theirs, type(proxy).__name__))
            assert type(iter(manager.dict())) is module.IteratorProxy
            del proxy


@only_ours
def test_the_server_has_our_connections(method):
    with targets.Told(ctx=importlib.import_module("mproc_ext").get_context(method)) as manager:
        conn = manager._Client(manager.address, authkey=manager._authkey)
        expected = ("mproc_ext.connection",) * 2
        assert theirs.dispatch(conn, None, "kind") == expected
        conn.close()


# -- errors from the server -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ERRORS)
def test_error_of_a_method(both, name):
    """And the thread's next call, whatever became of its connection."""
    results = []
    for mp, module in zip(both, (theirs, ours), strict=True):
        with THINGS[module](ctx=mp) as manager:
            thing = manager.Thing(1)
            results.append([result(thing.error, name), result(thing.add, 1)])
            results[-1].append(Task(result, thing.add, 1).get())
    assert results[1] == results[0]
    assert results[0][0][0] != "returns"
    assert results[0][-1][0] == "returns"  # the manager goes on


def test_a_remote_error_shows_what_happened_there(things, managers):
    thing = things.Thing()
    with pytest.raises(managers.RemoteError) as caught:
        thing.function()
    lines = str(caught.value).splitlines()
    assert lines[0] == ""
    assert lines[1] == lines[-1] == "-" * 75
    assert "Unserializable message: Traceback (most recent call last):" in lines
    assert any("lambda" in line for line in lines)
    with pytest.raises(managers.RemoteError) as caught:
        thing._callmethod("none")
    assert "Traceback (most recent call last):" in str(caught.value)
    assert "AttributeError: method 'none' of <class" in str(caught.value)
    assert thing.echo(1) == ((1,), {})


def test_what_is_no_answer(managers, package):
    for answer, kind in [
        (("#RETURN", 5), "returns"),
        (("#NEVER", 5), "ValueError"),
        (("#TRACEBACK", "text"), "RemoteError"),
        (("#UNSERIALIZABLE", "text"), "RemoteError"),
        (("#TRACEBACK", 5), "TypeError"),
        (("#ERROR", KeyError(5)), "KeyError"),
        (("#ERROR", 5), "TypeError"),
        (("#RETURN",), "ValueError"),
        (5, "TypeError"),
    ]:
        one, other = package.Pipe()
        proxy = managers.BaseProxy(
            managers.Token("Thing", f"nowhere {answer}", "1"), "pickle", authkey=KEY, incref=False
        )
        proxy._tls.connection = one
        other.send(answer)
        assert outcome(proxy._callmethod, "method", (1,))[0] == kind
        assert other.recv() == ("1", "method", (1,), {})
        one.close()
        other.close()


# -- register -------------------------------------------------------------------------------------


def registered(module, **how):
    class Things(module.SyncManager):
        pass

    Things.register("Thing", Thing, **how)
    Things.register("Child", method_to_typeid={"child": "Child"}, create_method=False)
    return Things


class ThingProxy:
    """To be mixed with a module's BaseProxy."""

    _exposed_ = ("add", "__len__", "child")
    _method_to_typeid_ = {"child": "Child"}

    def add(self, value):
        return self._callmethod("add", (value,))

    def twice(self, value):
        return self.add(value) + self.add(value)

    def child(self, value):
        return self._callmethod("child", (value,))


REGISTERED = {
    "nothing": lambda module: {},
    "exposed": lambda module: {"exposed": ("add", "_hidden", "nothing")},
    "exposed list": lambda module: {"exposed": ["get"]},
    "method_to_typeid": lambda module: {
        "method_to_typeid": {"child": "Child", "numbers": "Iterator"}
    },
    "typeid that is none": lambda module: {"method_to_typeid": {"child": "None"}},
    "method_to_typeid that is no dict": lambda module: {"method_to_typeid": ["child"]},
    "method_to_typeid of numbers": lambda module: {"method_to_typeid": {1: "Thing"}},
    "proxytype": lambda module: {"proxytype": type("P", (ThingProxy, module.BaseProxy), {})},
    "proxytype and exposed": lambda module: {
        "proxytype": type("P", (ThingProxy, module.BaseProxy), {}),
        "exposed": ("get", "add"),
    },
    "a made proxytype": lambda module: {"proxytype": module.MakeProxyType("Made", ("add", "get"))},
    "no create_method": lambda module: {"create_method": False},
    "AutoProxy": lambda module: {"proxytype": module.AutoProxy},
}
USED = """t := m.Thing(1); t.add(2); t.get(); t._hidden(); t.nothing(); t.twice(1); len(t);
    c := t.child(5); c.add(1); c.child(7).add(1); type(c).__name__; list(t.numbers()); str(t);
    type(t).__name__; t._callmethod("get"); t._callmethod("_hidden"); t._exposed_; m.Thing(1, 2);
    m.Thing(more=3).get(); m._create("Thing", 5)[1]"""


@pytest.mark.parametrize("how", REGISTERED)
def test_register(both, how):
    played = []
    for mp, module in zip(both, (theirs, ours), strict=True):
        made = outcome(lambda module=module: registered(module, **REGISTERED[how](module)))
        if made[0] != "returns":
            played.append([("register", made)])
            continue
        with registered(module, **REGISTERED[how](module))(ctx=mp) as manager:
            played.append(list(play(manager, USED)))
    for (call, expected), (_, found) in zip(*played, strict=True):
        assert found == expected, call


def test_register_of_an_existing_object(managers, mp):
    """By a function, which is how a server gives its own object to whoever connects."""
    shared = Thing(100)

    class Things(managers.BaseManager):
        pass

    Things.register("shared", lambda: shared, exposed=("add",))
    with Things(ctx=mp) as manager:
        assert manager.shared().add(1) == 101
        assert manager.shared().add(1) == 102
        assert shared.value == 100  # the server has a fork's copy


def test_registries_are_each_class_own(managers):
    class One(managers.BaseManager):
        pass

    class Two(One):
        pass

    One.register("thing", Thing)
    Two.register("other", Thing)
    assert set(Two._registry) - set(One._registry) == {"other"}
    assert not hasattr(One, "other")
    assert not hasattr(managers.BaseManager, "thing")
    assert "thing" not in theirs.BaseManager._registry
    assert "thing" not in ours.BaseManager._registry


@only_ours
def test_what_was_registered_with_the_stdlib_is_there():
    code = """
import collections
from multiprocessing.managers import SyncManager, BaseProxy
class P(BaseProxy):
    _exposed_ = ("count",)
SyncManager.register("Deque", collections.deque, exposed=("append", "__len__"))
SyncManager.register("Counted", list, P)
import mproc_ext, mproc_ext.managers
with mproc_ext.get_context("fork").Manager() as manager:
    deque = manager.Deque()
    deque.append(1)
    counted = manager.Counted([1, 1])
    print(len(deque), isinstance(deque, mproc_ext.managers.BaseProxy), type(counted) is P)
    print(counted._callmethod("count", (1,)))
"""
    assert run_program("-c", code) == "1 True True\n2\n"


# -- references -----------------------------------------------------------------------------------


def test_an_object_lives_as_long_as_its_proxies(manager):
    assert count(manager) == 0
    a = manager.list()
    b = manager.dict()
    assert count(manager) == 2
    other = copy.copy(a)
    assert type(other) is type(a)
    del a
    assert count(manager) == 2
    other.append(1)
    del other
    wait_for_count(manager, 1)
    assert manager._debug_info().strip().endswith("{}")
    del b
    wait_for_count(manager, 0)


def test_a_copy_by_value_is_no_proxy(manager):
    a = manager.list([[1]])
    value = copy.deepcopy(a)
    assert value == [[1]]
    assert type(value) is list
    del a
    wait_for_count(manager, 0)


def test_garbage(manager):
    a = manager.list()
    a.myself = a  # a cycle
    del a
    assert count(manager) == 1
    wait_for_count(manager, 0)


def test_temporary_proxies(manager):
    """Of iterators, and of what is nested."""
    d = manager.dict(a=1)
    for _ in range(3):
        assert list(d) == ["a"]
    wait_for_count(manager, 1)
    iterator = iter(d)
    assert count(manager) == 2
    assert next(iterator) == "a"
    del iterator
    wait_for_count(manager, 1)


def test_nested_objects_live_in_each_other(manager):
    outer = manager.list()
    inner = manager.list([1])
    outer.append(inner)
    del inner
    gc.collect()
    assert outer[0][:] == [1]
    outer[0].append(2)
    got = outer[0]
    del outer
    gc.collect()
    assert got[:] == [1, 2]


class Counted(Thing):
    living = 0

    def __init__(self):
        type(self).living += 1

    def __del__(self):
        type(self).living -= 1

    def count(self):
        return type(self).living


@only_ours
def test_what_was_nested_goes_with_what_it_was_in(both):
    """The stdlib keeps for good what ever was in another object."""

    class Manager(ours.SyncManager):
        pass

    Manager.register("Counted", Counted)
    with Manager(ctx=both[1]) as manager:
        first = manager.Counted()

        def living():
            # What a call has given is the server's until the thread's next one.
            first.count()
            return first.count()

        outer, names = manager.list(), manager.dict()
        outer.append(manager.Counted())
        names["a"] = names["b"] = manager.Counted()
        outer.append(names)
        assert living() == 3
        again = outer.pop(0)
        assert again.count() == 3
        outer.append(again)
        del again
        gc.collect()
        assert outer[1].count() == 3
        del outer[1]
        assert living() == 2
        del names["a"]
        assert living() == 2
        assert outer[0]["b"].count() == 2
        del names
        gc.collect()
        assert living() == 2
        del outer
        gc.collect()
        wait_until(lambda: living() == 1, "the end of all that was nested")
        assert count(manager) == 1


def test_nested_objects_under_load(manager):
    """Put, got, popped and dropped by several threads at once."""
    outer = manager.list()

    def work(number):
        for turn in range(20):
            inner = manager.list([number, turn])
            outer.append(inner)
            del inner
            got = outer.pop()
            assert len(got) == 2
            assert got[0] in range(4)
            outer.append(got)
            del got
            assert len(outer.pop(0)[:]) == 2

    for task in [Task(work, number) for number in range(4)]:
        task.get()
    assert outer[:] == []
    wait_for_count(manager, 1)


def test_a_child_counts(ctx):
    """Its references are its own, and gone with it.  A child of spawn has none: as in the stdlib,
    who starts it keeps what it is given."""
    with ctx.Manager() as manager:
        numbers, names = manager.list(), manager.dict()
        children = [Child(ctx, targets.use, numbers, names) for _ in range(2)]
        for child in children:
            module = type(numbers).__module__
            link = module.replace("managers", "connection")
            assert child.recv() == [module, link] * 2
        pids = {child.pid for child in children}
        assert set(numbers) == pids
        assert set(names.keys()) == pids
        if ctx.get_start_method() == "spawn":
            assert count(manager) == 2
        else:
            del numbers, names
            gc.collect()
            assert count(manager) == 2
        for child in children:
            child.send("end")
            child.join()
        numbers = names = None
        wait_for_count(manager, 0)


def test_killed_children_cost_their_references_only(mp):
    """As in the stdlib, what they had stays; the server goes on."""
    with mp.Manager() as manager:
        numbers, names = manager.list(), manager.dict()
        child = Child(mp, targets.use, numbers, names)
        child.recv()
        child.kill()
        numbers.append("after")
        assert numbers[-1] == "after"
        assert count(manager) == 2


def test_a_proxy_that_goes_through_a_connection(ctx):
    with ctx.Manager() as manager:
        child = Child(ctx, targets.use_what_comes)
        numbers = manager.list([1])
        child.send(numbers)
        assert child.recv() == (type(numbers).__module__, [1])
        child.expect("done")
        assert numbers[1] == "from the child"
        child.send("end")
        child.join()
        del numbers
        wait_for_count(manager, 0)


def test_a_forked_child_has_connections_of_its_own(mp, things):
    """Parent and child call at the same time, and each gets its own answers."""
    thing = things.Thing(0)
    thing.add(0)  # there is a connection when the child is forked
    children = [Child(mp, targets.add, thing, 200) for _ in range(2)]
    for number in range(200):
        assert thing.echo(number) == ((number,), {})
    for child in children:
        child.expect("done")
        child.join()
    assert thing.get() == (400, None)


# -- threads --------------------------------------------------------------------------------------


def test_threads_have_connections_of_their_own(things):
    """One that waits for an answer keeps no other one from calling."""
    thing = things.Thing(0)
    waiting = [Task(thing.wait) for _ in range(3)]
    for task in waiting:
        wait_until_asleep(task, on_futex=False)
    assert thing.add(1) == 1
    before = thing.threads()
    thing.wake()
    for task in waiting:
        task.get()
    wait_until(lambda: thing.threads() == before - 3, "the end of the threads' servers")


def test_many_threads(things):
    thing, lock = things.Thing(0), things.Lock()

    def work(number):
        for turn in range(50):
            assert thing.echo(number, turn=turn) == ((number,), {"turn": turn})
            with lock:
                thing.add(1)

    for task in [Task(work, number) for number in range(8)]:
        task.get()
    assert thing.get() == (400, None)


def test_a_threads_connection_ends_with_the_thread(things):
    thing = things.Thing(0)
    before = thing.threads()
    for _ in range(5):
        Task(thing.add, 1).get()
    wait_until(lambda: thing.threads() == before, "the end of the threads' servers")
    assert thing.get() == (5, None)


# -- remote managers ------------------------------------------------------------------------------


@contextlib.contextmanager
def served(module, key, address=None):
    """A server in threads of this process, of one Thing; and that."""

    class Things(module.BaseManager):
        pass

    thing = Thing(10)
    Things.register("thing", lambda: thing, exposed=("add", "__str__"))
    server = Things(address, key).get_server()
    server.stop_event = threading.Event()

    def accept():
        """As Server.accepter, which goes on for ever when the socket has been shut down."""
        with contextlib.suppress(OSError):
            while True:
                conn = server.listener.accept()
                threading.Thread(target=server.handle_request, args=(conn,), daemon=True).start()

    accepter = Task(accept)
    try:
        yield server, thing
    finally:
        server.listener._listener._socket.shutdown(socket.SHUT_RDWR)
        accepter.get()
        server.listener.close()


@pytest.mark.parametrize("address", [None, ("127.0.0.1", 0), "abstract"])
@pytest.mark.parametrize("client", ["multiprocessing", "mproc_ext"])
def test_remote(managers, method, client, address, tmp_path):
    """A server of either package, clients of either package, in other processes."""
    if address == "abstract":
        address = f"\0{tmp_path}"
    ctx = importlib.import_module(client).get_context("spawn" if method == "fork" else method)
    with served(managers, KEY, address) as (server, thing):
        for key, expected in ((KEY, (11, "a thing of 11")), (b"wrong", "AuthenticationError")):
            child = Child(ctx, targets.connect, client, server.address, key, "thing")
            child.expect(expected)
            assert len(server.id_to_refcount) == (1 if key == KEY else 0)
            child.send("end")
            child.join()
            wait_until(lambda: not server.id_to_refcount, "the child's release of its object")
        assert thing.value == 11


def test_connect_to_nobody(both, tmp_path):
    results = []
    for module in (theirs, ours):
        found = [
            result(module.BaseManager(address, KEY).connect)
            for address in (str(tmp_path / "nobody"), ("127.0.0.1", 1), None, 5)
        ]
        results.append(found)
    assert results[1] == results[0]
    assert [kind for kind, *_ in results[0]][:2] == ["FileNotFoundError", "ConnectionRefusedError"]


def test_two_managers_of_one_server(managers, mp):
    """A manager that connects is as good as the one that started the server, but for its end."""
    Things = THINGS[managers]
    with Things(authkey=KEY, ctx=mp) as manager:
        other = Things(manager.address, KEY, ctx=mp)
        other.connect()
        thing = other.Thing(1)
        assert count(manager) == count(other) == 1
        assert not hasattr(other, "shutdown")
        del other
        gc.collect()
        assert thing.add(1) == 2
    with pytest.raises((EOFError, OSError)):
        thing.add(1)


def test_serializer_xmlrpclib(both):
    script = """d := m.dict(); d["a"] = 1; d["a"]; d.items(); a := m.list([1, "two", None, 4.5]);
        a[1]; a[:]; a.append({"b": [1]}); a[4]; a[99]; d["none"]; len(a); str(a); e := m.Event();
        e.is_set(); e.set(); e.wait()"""
    played = []
    for mp, module in zip(both, (theirs, ours), strict=True):
        with module.SyncManager(serializer="xmlrpclib", ctx=mp) as manager:
            played.append(list(play(manager, script)))
            proxy = manager.list()
            proxy.append(1)
            assert type(proxy._tls.connection) is theirs.connection.ConnectionWrapper
            assert type(proxy._tls.connection._conn) is module.connection.Connection
    for (call, expected), (_, found) in zip(*played, strict=True):
        assert found == expected, call
    assert sum(found[0] == "returns" for _, found in played[1]) > 10


@pytest.mark.parametrize("table", ["package's", "stdlib's"])
def test_serializer_of_ones_own(managers, mp, table):
    """In whichever table a program writes it."""
    made = []

    class Listener(managers.connection.Listener):
        def accept(self):
            made.append("accepted")
            return super().accept()

    def client(address, *args, **kwds):
        made.append("connected")
        return managers.connection.Client(address, *args, **kwds)

    where = managers.listener_client if table == "package's" else theirs.listener_client
    where["of its own"] = Listener, client
    try:
        with managers.SyncManager(serializer="of its own", ctx=mp) as manager:
            assert made[-1:] != ["accepted"]  # that is in the server
            a = manager.list([1])
            assert a[:] == [1]
            assert "connected" in made
            d = manager.dict()
            child = Child(mp, targets.use, a, d)
            child.recv()
            child.send("end")
            child.join()
            assert a[:] == [1, child.pid]
    finally:
        del where["of its own"]
    assert outcome(managers.SyncManager, serializer="of its own")[0] == "KeyError"


# -- the ends -------------------------------------------------------------------------------------


def test_states(both):
    script = """m.dict(); m._create("dict"); m.start(); m.start(); m.get_server(); d := m.dict();
        m.join(0.01); m.shutdown(); m.shutdown(); d[1] = 2; str(d)[-19:]; m.dict(); m.start();
        m.get_server(); m.__enter__(); m.connect(); m._number_of_objects(); m.join(); del d"""
    played = []
    for mp, module in zip(both, (theirs, ours), strict=True):
        played.append(list(play(module.SyncManager(ctx=mp), script)))
    for (call, expected), (_, found) in zip(*played, strict=True):
        assert found[0] == expected[0], call
        assert "listener-" in expected[1] or found == expected, call
    assert dict(played[1])["m.start()"][0] == "ProcessError"


def test_shutdown_ends_the_process(things):
    process = things._process
    thing = things.Thing()
    things.shutdown()
    assert not process.is_alive()
    assert process.exitcode == 0
    with pytest.raises((EOFError, OSError)):
        thing.get()
    del thing
    gc.collect()


def test_dropping_a_manager_ends_its_process(mp):
    manager = mp.Manager()
    process = manager._process
    a = manager.list()
    del manager, a
    gc.collect()
    process.join(LIMIT)
    assert process.exitcode == 0


def test_shutdown_while_calls_wait(things):
    thing = things.Thing()
    waiting = [Task(thing.wait) for _ in range(3)]
    for task in waiting:
        wait_until_asleep(task, on_futex=False)
    things.shutdown()
    for task in waiting:
        with pytest.raises((EOFError, OSError)):
            task.get()


def test_a_killed_server_strands_nobody(things):
    """Calls that wait, calls that begin, the ends of proxies and of the manager."""
    thing, other = things.Thing(), things.Thing()
    waiting = Task(thing.wait)
    wait_until_asleep(waiting, on_futex=False)
    other.get()
    things._process.kill()
    things._process.join(LIMIT)
    with pytest.raises((EOFError, OSError)):
        waiting.get()
    with pytest.raises((EOFError, OSError)):
        other.get()
    with pytest.raises((EOFError, OSError)):
        Task(other.get).get()
    with pytest.raises((EOFError, OSError)):
        things.Thing()
    with pytest.raises((EOFError, OSError)):
        count(things)
    assert str(other).endswith("'__str__()' failed>")
    assert repr(other).startswith("<AutoProxy[Thing] object")
    del thing, other
    gc.collect()
    things.shutdown()
    things.join()


def test_a_server_that_is_killed_under_its_children(ctx, managers):
    with THINGS[managers](ctx=ctx) as manager:
        thing = manager.Thing()
        children = [Child(ctx, targets.call, thing, "wait") for _ in range(2)]
        for child in children:
            child.expect("calls")
        wait_until(lambda: thing.threads() >= 5, "the calls of both")
        manager._process.kill()
        for child in children:
            assert child.recv() in ("EOFError", "ConnectionResetError", "BrokenPipeError")
            child.join()


def test_a_stopped_server_answers_later(things):
    thing = things.Thing(0)
    thing.add(1)
    os.kill(things._process.pid, signal.SIGSTOP)
    try:
        task = Task(thing.add, 1)
        wait_until_asleep(task, on_futex=False)
        fresh = Task(Task, thing.add, 1).get()
        wait_until_asleep(fresh, on_futex=False)
    finally:
        os.kill(things._process.pid, signal.SIGCONT)
    assert {task.get(), fresh.get()} == {2, 3}


def test_initializer(ctx, managers):
    manager = THINGS[managers](ctx=ctx)
    assert outcome(manager.start, 5)[:2] == ("TypeError", "initializer must be a callable")
    manager.start(targets.initialize, ("value",))
    value, pid = manager.initialized()._getvalue()
    assert (value, pid) == ("value", manager._process.pid)
    manager.shutdown()


def test_initializer_that_fails(managers, mp, capfd):
    manager = managers.SyncManager(ctx=mp)
    with pytest.raises(EOFError):
        manager.start(targets.fail)
    manager._process.join(LIMIT)
    assert manager._process.exitcode == 1
    assert "the initializer fails" in capfd.readouterr().err


def test_sigint_is_not_for_the_server(things):
    thing = things.Thing(0)
    os.kill(things._process.pid, signal.SIGINT)
    assert thing.add(1) == 1


# -- blocks of shared memory ----------------------------------------------------------------------


def test_shared_memory(both, method):
    if not hasattr(theirs, "SharedMemoryManager"):
        pytest.skip("this Python has no shared memory")
    for mp, module in zip(both, (theirs, ours), strict=True):
        ctx = importlib.import_module(mp.Process.__module__.partition(".")[0]).get_context(method)
        with module.SharedMemoryManager(ctx=ctx) as manager:
            block = manager.SharedMemory(100)
            numbers = manager.ShareableList([1, "two"])
            assert block.size >= 100
            assert numbers[1] == "two"
            names = {block.name, numbers.shm.name}
            conn = manager._Client(manager.address, authkey=manager._authkey)
            assert set(module.dispatch(conn, None, "list_segments")) == names
            conn.close()
            there = {name.lstrip("/") for name in names}
            assert there <= set(os.listdir("/dev/shm"))
            block.close()
            numbers.shm.close()
            assert outcome(manager.SharedMemory, 0)[0] == "ValueError"
            assert outcome(manager.get_server)[:2] == (
                "ProcessError",
                "Already started SharedMemoryServer",
            )
        assert not there & set(os.listdir("/dev/shm"))
        assert isinstance(manager._Server, type)
        assert manager._Server.__module__ == module.__name__


# -- what a program overrides, or puts in place ---------------------------------------------------


class CountingServer:
    """To be mixed with a module's Server."""

    def serve_client(self, conn):
        conn.send(("#RETURN", "served by hand"))
        request = conn.recv()
        conn.send(("#RETURN", request))
        raise SystemExit

    def handle_request(self, conn):
        self.handled = getattr(self, "handled", 0) + 1
        super().handle_request(conn)

    def number_of_objects(self, c):
        return -self.handled


def test_a_servers_methods_are_overridden(managers, mp):
    class Hand(managers.SyncManager):
        _Server = type("Server", (CountingServer, managers.Server), {})

    with Hand(ctx=mp) as manager:
        a = manager.list()  # create, incref, decref
        assert count(manager) == -4
        assert a._callmethod("append", (1,)) == "served by hand"
        assert a._tls.connection.recv() == ("#RETURN", (a._id, "append", (1,), {}))
        a._tls.connection.close()
        del a._tls.connection


def test_fallbacks_are_overridden(managers, mp):
    class Server(managers.Server):
        fallback_mapping = {
            **managers.Server.fallback_mapping,
            "#HOW": lambda self, conn, ident, obj, more: (type(obj).__name__, more),
        }

    class Manager(managers.SyncManager):
        _Server = Server

    with Manager(ctx=mp) as manager:
        a = manager.list([1])
        assert a._callmethod("#HOW", ("much",)) == ("list", "much")
        assert a._getvalue() == [1]
        assert str(a) == "[1]"
        assert outcome(a._callmethod, "#WHAT")[0] == "RemoteError"


def test_a_proxys_methods_are_overridden(managers, mp):
    calls = []

    class Proxy(managers.BaseProxy):
        _exposed_ = ("add", "child")
        _method_to_typeid_ = {"child": "Child"}

        def add(self, value):
            return self._callmethod("add", (value,))

        def child(self, value):
            return self._callmethod("child", (value,))

        def _connect(self):
            calls.append("connect")
            super()._connect()

        def _callmethod(self, methodname, args=(), kwds={}):  # noqa: B006
            calls.append(methodname)
            return super()._callmethod(methodname, args, kwds)

        def _incref(self):
            calls.append("incref")
            super()._incref()

    with registered(managers, proxytype=Proxy)(ctx=mp) as manager:
        thing = manager.Thing(1)
        assert thing.add(1) == 2
        assert thing.child(7).add(1) == 8
        assert thing.add(1) == 3
        assert calls == ["incref", "add", "connect", "child", "add"]


def test_names_that_are_replaced(managers, mp):
    with mock.patch.object(managers.BaseProxy, "_callmethod", return_value="mocked"):
        with mp.Manager() as manager:
            assert manager.list()[0] == "mocked"
    with mock.patch.object(managers, "AutoProxy", wraps=managers.AutoProxy) as auto:

        class Things(managers.BaseManager):
            pass

        Things.register("Thing", Thing)
        with Things(ctx=mp) as manager:
            thing = manager.Thing(1)
            assert auto.call_count == 1
            del thing
    with mock.patch.object(managers, "Server", side_effect=LookupError("why")):
        with pytest.raises(LookupError, match="why"):
            managers.BaseManager().get_server()
    with mock.patch.object(managers, "get_context", return_value="context"):
        assert managers.BaseManager()._ctx == "context"


@only_ours
def test_the_stdlibs_module_is_as_it_was():
    code = """
import multiprocessing, multiprocessing.managers as m, multiprocessing.connection as c
before = [{**vars(x)} for x in (m, c, m.BaseProxy, m.BaseManager, m.SyncManager, m.Server)]
registry = {**m.SyncManager._registry}
import mproc_ext.managers
mproc_ext.get_context("fork").Manager().list()
after = [{**vars(x)} for x in (m, c, m.BaseProxy, m.BaseManager, m.SyncManager, m.Server)]
for one, other in zip(before, after):
    changed = {k for k in one.keys() | other.keys() if one.get(k) is not other.get(k)}
    assert changed <= {"_next_serial"}, changed
assert registry == m.SyncManager._registry
assert m.listener_client["pickle"] == (c.Listener, c.Client)
with multiprocessing.get_context("fork").Manager() as manager:
    a = manager.list([1])
    a[0]
    print(type(a) is m.ListProxy, type(a._tls.connection) is c.Connection)
"""
    assert run_program("-c", code) == "True True\n"


@only_ours
def test_under_the_alias(tmp_path):
    """Whether the stdlib's module was there before or not."""
    program = tmp_path / "program.py"
    program.write_text("""
import multiprocessing.managers, mproc_ext.managers
import mproc_ext._stdlib.managers as theirs
assert multiprocessing.managers is mproc_ext.managers
def child(a, d):
    d["kind"] = type(a).__module__, type(a._tls.connection).__module__ if len(a) else None
if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        ctx = multiprocessing.get_context(method)
        with ctx.Manager() as manager:
            a, d = manager.list([1]), manager.dict()
            assert isinstance(a, theirs.ListProxy)
            p = ctx.Process(target=child, args=(a, d))
            p.start()
            p.join()
            d["inner"] = a
            print(*d["kind"], type(d["inner"]) is multiprocessing.managers.ListProxy)
""")
    expected = "mproc_ext.managers mproc_ext.connection True\n" * 3
    assert run_program("-m", "mproc_ext", program) == expected
    late = tmp_path / "late.py"
    late.write_text(
        "import multiprocessing.managers, mproc_ext; mproc_ext.install()\n" + program.read_text()
    )
    assert run_program("-W", "ignore", late) == expected
