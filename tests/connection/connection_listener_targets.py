"""What the children of the tests of listeners and managers run, and the classes that they share:
importable by name under every start method."""

import os
import threading

from mproc_ext import managers as ours
from mproc_ext._stdlib import managers as theirs


def serve_one(link, listener):
    """Add one to what a client sends."""
    link.send(listener.address)
    with listener.accept() as end:
        end.send(end.recv() + 1)


# -- of managers ----------------------------------------------------------------------------------


class Custom(Exception):
    pass


class TwoArguments(Exception):
    """Cannot be unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


class CannotBePickled(Exception):
    def __reduce__(self):
        raise Custom("not this one")


ERRORS = {
    "KeyError": KeyError("key"),
    "Custom": Custom("why", 7),
    "TwoArguments": TwoArguments(1, 2),
    "CannotBePickled": CannotBePickled(),
    "AttributeError": AttributeError("what?"),
    "EOFError": EOFError("no more"),
    "OSError": OSError(5, "five"),
    "SystemExit": SystemExit(3),
    "KeyboardInterrupt": KeyboardInterrupt(),
    "StopIteration": StopIteration(4),
}


class Thing:
    """A referent."""

    def __init__(self, value=None, *, more=None):
        self.value, self.more = value, more
        self.event = threading.Event()
        self.lock = threading.Lock()  # each client has a thread of the server's

    def get(self):
        return self.value, self.more

    def set(self, value):
        self.value = value

    def add(self, value):
        with self.lock:
            self.value += value
            return self.value

    def error(self, name):
        raise ERRORS[name]

    def function(self):
        return lambda: None

    def echo(self, *args, **kwds):
        return args, kwds

    def child(self, value):
        return Thing(value)

    def numbers(self):
        yield from range(3)

    def pid(self):
        return os.getpid()

    def threads(self):
        return threading.active_count()

    def wait(self):
        self.event.wait()

    def wake(self):
        self.event.set()

    def _hidden(self):
        return "hidden"

    def __len__(self):
        return 5

    def __str__(self):
        return f"a thing of {self.value}"

    def __repr__(self):
        return f"Thing({self.value!r})"


def initialize(value):
    global initial
    initial = value, os.getpid()


def initialized():
    return initial


def fail():
    raise Custom("the initializer fails")


class TheirThings(theirs.SyncManager):
    pass


class OurThings(ours.SyncManager):
    pass


for _manager in (TheirThings, OurThings):
    _manager.register("Thing", Thing)
    _manager.register("initialized", initialized)


class TellServer(ours.Server):
    """Tells of whose classes its connections and its listener are."""

    public = [*ours.Server.public, "kind"]

    def kind(self, c):
        return type(c).__module__, type(self.listener).__module__


class Told(ours.BaseManager):
    _Server = TellServer


def kinds(*proxies):
    """Of whose class each of them, and its connection's module, is."""
    found = []
    for proxy in proxies:
        proxy._callmethod("__len__")
        found += [type(proxy).__module__, type(proxy._tls.connection).__module__]
    return found


def use(link, *proxies):
    """Use a list and a dict, until told to end; say of whose class they are."""
    numbers, names = proxies
    numbers.append(os.getpid())
    names[os.getpid()] = list(numbers)
    link.send(kinds(*proxies))
    link.recv()


def use_what_comes(link):
    numbers = link.recv()
    link.send((type(numbers).__module__, list(numbers)))
    numbers.append("from the child")
    link.send("done")
    link.recv()


def add(link, proxy, count):
    for _ in range(count):
        proxy.add(1)
    link.send("done")


def call(link, proxy, name, *args):
    """What a method gives, or raises."""
    link.send("calls")
    try:
        link.send(getattr(proxy, name)(*args))
    except Exception as error:
        link.send(type(error).__name__)


def connect(link, package, address, key, typeid):
    """Use a manager of another process by its address."""
    import importlib

    managers = importlib.import_module(f"{package}.managers")

    class Remote(managers.BaseManager):
        pass

    Remote.register(typeid)
    manager = Remote(address, key)
    try:
        manager.connect()
        thing = getattr(manager, typeid)()
        link.send((thing.add(1), str(thing)))
    except Exception as error:
        link.send(type(error).__name__)
    link.recv()
