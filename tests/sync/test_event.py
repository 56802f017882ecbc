"""Event: the stdlib's behaviour to the letter."""

import errno
import inspect
import math
import platform
import re
import time

import pytest
import sync_targets as targets
from sync_helpers import Child, Task, ask, outcome, wait_until_asleep


@pytest.fixture
def event(mp):
    return mp.Event()


def test_signatures(synchronize, event):
    assert str(inspect.signature(synchronize.Event)) == "(*, ctx)"
    assert str(inspect.signature(event.wait)) == "(timeout=None)"
    for name in ("set", "clear", "is_set"):
        assert str(inspect.signature(getattr(event, name))) == "()"


@pytest.mark.parametrize(
    "case",
    [
        lambda cls, ctx: cls(),
        lambda cls, ctx: cls(ctx),
        lambda cls, ctx: cls(1, ctx=ctx),
        lambda cls, ctx: cls(ctx=ctx).set(1),
        lambda cls, ctx: cls(ctx=ctx).clear(1),
        lambda cls, ctx: cls(ctx=ctx).is_set(1),
        lambda cls, ctx: cls(ctx=ctx).wait(0, 1),
        lambda cls, ctx: cls(ctx=ctx).wait(timeout=0),
        lambda cls, ctx: cls(ctx=ctx).wait(time=0),
    ],
)
def test_misuse(both, case):
    import importlib

    results = []
    for ctx in both:
        name = type(ctx).__module__.replace("context", "synchronize")
        result = outcome(case, importlib.import_module(name).Event, ctx)
        # Functions in C have other words for a wrong number of arguments.
        results.append(result[:1] if result[0] == "TypeError" else result)
    assert results[1] == results[0]


def test_states(event):
    assert event.is_set() is False
    assert event.wait(0) is False
    assert event.set() is None
    assert event.is_set() is True
    assert event.set() is None
    assert event.is_set() is True
    assert event.wait() is True
    assert event.wait(0) is True
    assert event.wait(-1) is True
    assert event.is_set() is True
    assert event.clear() is None
    assert event.is_set() is False
    assert event.clear() is None
    assert event.wait(0) is False


def test_many_sets_are_one(event):
    for _ in range(10):
        event.set()
    event.clear()
    assert event.is_set() is False


def test_repr(synchronize, event, mp):
    class Mine(synchronize.Event):
        pass

    def shown(event):
        return re.sub("0x[0-9a-f]+", "0x", repr(event))

    assert repr(event) == f"<Event at {id(event):#x} unset>"
    event.set()
    assert repr(event) == f"<Event at {id(event):#x} set>"
    assert shown(Mine(ctx=mp)) == "<test_repr.<locals>.Mine at 0x unset>"


def test_attributes(event):
    event.anything = 1
    assert event.anything == 1


@pytest.mark.parametrize("timeout", [0, 0.0, False, -1, -1e300, -math.inf, 1e-300, 0.001])
def test_timeouts_that_give_up(event, timeout):
    assert event.wait(timeout) is False
    assert event.wait(timeout=timeout) is False
    event.set()
    assert event.wait(timeout) is True


@pytest.mark.parametrize("timeout", [math.nan, math.inf, 1e300, 2**63])
def test_timeouts_that_no_clock_has(package, event, timeout):
    if package.__name__ == "multiprocessing" and platform.machine() != "x86_64":
        pytest.skip("the stdlib converts such a number in ways that C does not define")
    with pytest.raises(OSError) as raised:
        event.wait(timeout)
    assert raised.value.args == (errno.EINVAL, "Invalid argument")
    event.set()
    assert event.wait(timeout) is True
    event.clear()
    assert event.is_set() is False


@pytest.mark.parametrize("timeout", ["1", b"1", [], 1j, 10**400])
def test_timeouts_of_the_wrong_type(both, timeout):
    """A set event does not look at them."""
    results = []
    for ctx in both:
        event = ctx.Event()
        results.append([outcome(event.wait, timeout), outcome(event.is_set)])
        event.set()
        results[-1].append(outcome(event.wait, timeout))
    assert results[1] == results[0]


def test_wait_takes_its_time(event):
    began = time.monotonic()
    assert event.wait(0.1) is False
    assert time.monotonic() - began > 0.09


@pytest.mark.parametrize("timeout", [None, 60, 1e10, 1e18])
def test_set_wakes_all(event, timeout):
    waiters = [Task(event.wait, timeout) for _ in range(4)]
    for waiter in waiters:
        wait_until_asleep(waiter)
    event.set()
    assert [waiter.get() for waiter in waiters] == [True] * 4


def test_set_wakes_processes(ctx):
    event = ctx.Event()
    children = [Child(ctx, targets.wait_event, event) for _ in range(3)]
    for child in children:
        child.expect("waits")
        wait_until_asleep(child)
    assert not any(child.connection.poll() for child in children)
    event.set()
    for child in children:
        child.expect(True)
        child.join()


def test_set_in_a_child(ctx):
    event = ctx.Event()
    child = ctx.Process(target=targets.set_event, args=(event,))
    child.start()
    assert event.wait(60) is True
    child.join()
    assert event.is_set() is True


def test_state_is_shared(ctx):
    event = ctx.Event()
    names = ("is_set", "set", "is_set", "clear", "is_set", "set")
    assert ask(ctx, targets.call, event, *names) == [False, None, True, None, False, None]
    assert event.is_set() is True
    assert ask(ctx, targets.call, event, "is_set", "wait", "clear") == [True, True, None]
    assert event.is_set() is False


def test_set_and_clear_wakes_who_sleeps(event):
    """The stdlib's may say False then, as the event is not set any more."""
    waiters = [Task(event.wait) for _ in range(3)]
    for waiter in waiters:
        wait_until_asleep(waiter)
    event.set()
    event.clear()
    assert {waiter.get() for waiter in waiters} <= {True, False}
    assert event.is_set() is False
    assert event.wait(0.01) is False


def test_set_and_clear_wakes_processes(ctx):
    event = ctx.Event()
    children = [Child(ctx, targets.wait_event, event) for _ in range(2)]
    for child in children:
        child.expect("waits")
        wait_until_asleep(child)
    event.set()
    event.clear()
    for child in children:
        assert child.recv() in (True, False)
        child.join()


def test_ping_pong(mp):
    """Two processes, each waits for what the other sets: a wake lost would hang it."""
    ping, pong, times = mp.Event(), mp.Event(), 300

    def answer():
        for _ in range(times):
            ping.wait()
            ping.clear()
            pong.set()

    child = mp.Process(target=answer)
    child.start()
    for _ in range(times):
        ping.set()
        assert pong.wait(60) is True
        pong.clear()
    child.join()
    assert child.exitcode == 0


def test_subclass(synchronize, mp):
    seen = []

    class Watched(synchronize.Event):
        def __init__(self, name, *, ctx):
            super().__init__(ctx=ctx)
            self.name = name

        def set(self):
            seen.append("set")
            super().set()

        def is_set(self):
            seen.append("is_set")
            return super().is_set()

    event = Watched("x", ctx=mp)
    event.set()
    assert event.wait() is True
    assert event.is_set() is True
    assert " set>" in repr(event)
    assert seen == ["set", "is_set", "is_set"]
    assert event.name == "x"


def test_a_copy_is_the_same_event(mp):
    import copy

    event = mp.Event()
    other = copy.copy(event)
    event.set()
    assert other.is_set() is True
    other.clear()
    assert event.is_set() is False
