"""What the children of the tests here run: importable by name under every start method."""

import os
import sys
import time


def describe_lock(connection, lock):
    """What another process sees of a lock, and whether it gets it."""
    sem = lock._semlock
    connection.send((repr(lock), sem._is_mine(), sem._count(), sem._is_zero(), lock.acquire(False)))


def call(connection, thing, *names):
    """The results of methods called without arguments, one after the other."""
    results = []
    for name in names:
        try:
            results.append(getattr(thing, name)())
        except Exception as error:
            results.append((type(error).__name__, str(error)))
    connection.send(results)


def acquire_and_show(connection, lock, times=1):
    for _ in range(times):
        lock.acquire()
    connection.send(repr(lock))
    connection.recv()


def hold(connection, *locks):
    """Take locks; release them when told to, or end as told."""
    for lock in locks:
        lock.acquire()
    connection.send("held")
    how = connection.recv()
    if how == "os._exit":
        os._exit(0)
    if how == "sys.exit":
        sys.exit(3)
    if how == "raise":
        sys.stderr = None
        raise ValueError("the target fails while it holds a lock")
    if how == "release":
        for lock in reversed(locks):
            lock.release()
    connection.send("done")


def acquire(connection, lock, release=True):
    """Wait for a lock; say before and after."""
    connection.send("waits")
    lock.acquire()
    connection.send("got it")
    if release:
        lock.release()


def count_under(lock, counter, times):
    """Add to a counter that only the lock protects."""
    for _ in range(times):
        with lock:
            value = counter.value
            if value % 16 == 0:
                time.sleep(0)  # let others in, were there a gap
            counter.value = value + 1


def use_semaphore(semaphore, inside, most, times):
    """Say how many are inside at once; `inside` and `most` have a lock."""
    for _ in range(times):
        with semaphore:
            with inside.get_lock():
                inside.value += 1
                most.value = max(most.value, inside.value)
            time.sleep(0)
            with inside.get_lock():
                inside.value -= 1


def wait_condition(connection, condition, timeout=None):
    """Wait on a condition.  Who holds its lock after "waits" was sent knows that this sleeps."""
    with condition:
        connection.send("waits")
        woken = condition.wait(timeout)
        connection.send(woken)


def wait_event(connection, event, timeout=None):
    connection.send("waits")
    connection.send(event.wait(timeout))


def set_event(event):
    event.set()


def pass_barrier(connection, barrier, times=1, timeout=None):
    results = []
    for _ in range(times):
        try:
            results.append(barrier.wait(timeout))
        except Exception as error:
            results.append(type(error).__name__)
    connection.send(results)


def change_and_notify(condition, state):
    with condition:
        state.value += 1
        condition.notify()


def send_back(connection, thing):
    connection.send(type(thing).__name__)


def hand_on(connection, context_method, package, thing):
    """Give what this child was given to a child of its own."""
    import importlib

    ctx = importlib.import_module(package).get_context(context_method)
    child = ctx.Process(target=describe_lock, args=(connection, thing))
    child.start()
    child.join()


class TaggedMixin:
    """A user's subclass: more arguments, more state, its own pickling."""

    def __init__(self, tag, *, ctx):
        super().__init__(ctx=ctx)
        self.tag = tag

    def __getstate__(self):
        return super().__getstate__(), self.tag

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.tag = state[1] + "!"


def _subclass(title, package, name, mixins=(), **namespace):
    """A class on top of one of the package's, which pickle finds here."""
    import importlib

    base = getattr(importlib.import_module(f"{package}.synchronize"), name)
    title = f"{title}_{package}_{name}"
    globals()[title] = type(title, (*mixins, base), {"__module__": __name__, **namespace})
    return globals()[title]


def _tagged():
    """{(package, name): a subclass} of every type that pickles itself."""
    found = {}
    for package in ("multiprocessing", "mproc_ext"):
        for name in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition"):
            kind = _subclass("Tagged", package, name, (TaggedMixin,))
            if name.endswith("Semaphore"):
                kind.__init__ = _init_semaphore(kind)
            found[package, name] = kind
    return found


def _init_semaphore(kind):
    def __init__(self, tag, *, ctx):
        super(TaggedMixin, self).__init__(2, ctx=ctx)
        self.tag = tag

    return __init__


TAGGED = _tagged()


# {package: a subclass of its Event} that has a slot besides its dictionary.
SLOTTED = {
    package: _subclass("Slotted", package, "Event", __slots__=("slot",))
    for package in ("multiprocessing", "mproc_ext")
}


def describe_own(connection, event):
    """What the program has put into an event of a class of its own."""
    connection.send((event.tag, event.slot, event.itself is event, event.is_set()))


def use_tagged(connection, thing):
    with thing:
        inside = repr(thing)
    connection.send((thing.tag, type(thing).__name__, inside, thing.acquire(False)))
    thing.release()
