"""Barrier: threading.Barrier's behaviour, across processes, to the letter of the stdlib."""

import inspect
import threading
import time

import pytest
import sync_targets as targets
from sync_helpers import LIMIT, Child, Task, normal, outcome, wait_until


def broken(function, *args):
    with pytest.raises(threading.BrokenBarrierError) as raised:
        function(*args)
    assert raised.value.args == ()


def waiting(barrier, count):
    wait_until(lambda: barrier.n_waiting == count, f"{count} that wait")


def test_class(synchronize):
    cls = synchronize.Barrier
    assert issubclass(cls, threading.Barrier)
    assert str(inspect.signature(cls)) == "(parties, action=None, timeout=None, *, ctx)"
    assert str(inspect.signature(cls.wait)) == "(self, timeout=None)"


@pytest.mark.parametrize("parties", [0, -1, 1, True, "x", 1.5, None, 2**80])
def test_parties(both, parties):
    results = []
    for ctx in both:
        results.append(outcome(ctx.Barrier, parties))
        results.append(outcome(lambda ctx=ctx: ctx.Barrier(parties).parties))
        results.append(outcome(lambda ctx=ctx: ctx.Barrier(parties).n_waiting))
        results.append(outcome(lambda ctx=ctx: ctx.Barrier(parties).broken))
    assert results[4:] == results[:4]


@pytest.mark.parametrize(
    "case",
    [
        lambda ctx: ctx.Barrier(),
        lambda ctx: ctx.Barrier(2, None, None, None),
        lambda ctx: ctx.Barrier(2).wait(0, 0),
        lambda ctx: ctx.Barrier(1, 5).wait(),
        lambda ctx: ctx.Barrier(1, action=5, timeout=3).wait(),
        lambda ctx: ctx.Barrier(1, timeout="x").wait(),
        lambda ctx: ctx.Barrier(2, timeout="x").wait(),
        lambda ctx: ctx.Barrier(2).wait("x"),
        lambda ctx: ctx.Barrier(1).wait("x"),
        lambda ctx: ctx.Barrier(2, timeout=-1).wait(),
        lambda ctx: ctx.Barrier(2, timeout=0).wait(),
        lambda ctx: ctx.Barrier(2, timeout=5).wait(0),
        lambda ctx: ctx.Barrier(0).wait(0),
        lambda ctx: ctx.Barrier(-1).wait(0),
        lambda ctx: ctx.Barrier(1.5).wait(0),
        lambda ctx: ctx.Barrier("x").wait(0),
        lambda ctx: ctx.Barrier(2).wait(float("nan")),
        lambda ctx: ctx.Barrier(2).wait(float("inf")),
        lambda ctx: setattr(ctx.Barrier(2), "parties", 3),
        lambda ctx: setattr(ctx.Barrier(2), "n_waiting", 3),
        lambda ctx: setattr(ctx.Barrier(2), "broken", 3),
    ],
)
def test_misuse(both, case):
    theirs, mine = (outcome(case, ctx) for ctx in both)
    assert mine == theirs


@pytest.mark.parametrize("timeout", ["x", float("nan"), -1, 0])
def test_state_after_a_timeout_that_fails(both, timeout):
    results = []
    for ctx in both:
        barrier = ctx.Barrier(2)
        outcome(barrier.wait, timeout)
        results.append([barrier.broken, barrier.n_waiting, barrier._state, barrier._count])
        results[-1].append(outcome(barrier.wait, 0))
    assert results[1] == results[0]


def test_attributes(synchronize, mp):
    def action():
        pass

    barrier = mp.Barrier(3, action, 7)
    assert (barrier.parties, barrier.n_waiting, barrier.broken) == (3, 0, False)
    assert (barrier._parties, barrier._action, barrier._timeout) == (3, action, 7)
    assert (barrier._state, barrier._count) == (0, 0)
    assert isinstance(barrier._cond, synchronize.Condition)
    barrier.anything = 1
    assert barrier.anything == 1


def test_repr(mp):
    barrier = mp.Barrier(2)
    name = "<multiprocessing.synchronize.Barrier at 0x...: "
    assert normal(repr(barrier)) == name + "waiters=0/2>"
    task = Task(barrier.wait)
    waiting(barrier, 1)
    assert normal(repr(barrier)) == name + "waiters=1/2>"
    barrier.wait()
    task.get()
    barrier.abort()
    assert normal(repr(barrier)) == name + "broken>"


def test_one_party(mp):
    barrier = mp.Barrier(1)
    assert [barrier.wait() for _ in range(5)] == [0] * 5
    assert barrier.n_waiting == 0


@pytest.mark.parametrize("parties", [2, 5])
def test_threads(mp, parties):
    barrier = mp.Barrier(parties)
    for _ in range(10):
        tasks = [Task(barrier.wait) for _ in range(parties)]
        assert sorted(task.get() for task in tasks) == list(range(parties))
    assert barrier.n_waiting == 0


def test_generations_do_not_mix(mp):
    """Nobody enters the next one before all have left the last."""
    barrier, turns, seen = mp.Barrier(3), 60, []

    def run():
        for turn in range(turns):
            seen.append(turn)
            barrier.wait()

    for task in [Task(run) for _ in range(3)]:
        task.get()
    assert seen == sorted(seen)


def test_processes(ctx):
    barrier = ctx.Barrier(3)
    children = [Child(ctx, targets.pass_barrier, barrier, 20) for _ in range(3)]
    results = [child.recv() for child in children]
    for turn in zip(*results, strict=True):
        assert sorted(turn) == [0, 1, 2]
    for child in children:
        child.join()
    assert (barrier.n_waiting, barrier.broken) == (0, False)


def test_n_waiting_is_shared(ctx):
    barrier = ctx.Barrier(3)
    children = [Child(ctx, targets.pass_barrier, barrier) for _ in range(2)]
    waiting(barrier, 2)
    assert barrier.wait() == 2
    assert sorted(child.recv()[0] for child in children) == [0, 1]
    for child in children:
        child.join()


def test_action(mp):
    calls = []
    barrier = mp.Barrier(3, lambda: calls.append(barrier.n_waiting))
    for count in range(1, 4):
        tasks = [Task(barrier.wait) for _ in range(3)]
        for task in tasks:
            task.get()
        assert len(calls) == count
    assert calls == [3, 3, 3]


def test_action_that_raises(mp):
    barrier = mp.Barrier(2, lambda: 1 / 0)
    task = Task(barrier.wait)
    waiting(barrier, 1)
    with pytest.raises(ZeroDivisionError):
        barrier.wait()
    broken(task.get)
    assert barrier.broken is True
    broken(barrier.wait)
    barrier.reset()
    assert barrier.broken is False


def test_abort(mp):
    barrier = mp.Barrier(3)
    tasks = [Task(barrier.wait) for _ in range(2)]
    waiting(barrier, 2)
    assert barrier.abort() is None
    for task in tasks:
        broken(task.get)
    assert barrier.broken is True
    assert barrier.n_waiting == 0
    broken(barrier.wait)
    broken(barrier.wait, 0)


def test_abort_reaches_processes(ctx):
    barrier = ctx.Barrier(3)
    children = [Child(ctx, targets.pass_barrier, barrier, 2) for _ in range(2)]
    waiting(barrier, 2)
    barrier.abort()
    for child in children:
        child.expect(["BrokenBarrierError"] * 2)
        child.join()


def test_reset(mp):
    barrier = mp.Barrier(3)
    assert barrier.reset() is None  # with nobody there
    assert barrier.broken is False
    tasks = [Task(barrier.wait) for _ in range(2)]
    waiting(barrier, 2)
    barrier.reset()
    for task in tasks:
        broken(task.get)
    assert (barrier.broken, barrier.n_waiting) == (False, 0)
    tasks = [Task(barrier.wait) for _ in range(3)]
    assert sorted(task.get() for task in tasks) == [0, 1, 2]


def test_reset_reaches_processes(ctx):
    barrier = ctx.Barrier(2)
    child = Child(ctx, targets.pass_barrier, barrier, 2)
    waiting(barrier, 1)
    barrier.reset()
    waiting(barrier, 1)  # the child again
    assert barrier.wait() == 1
    child.expect(["BrokenBarrierError", 0])
    child.join()


def test_abort_and_reset(mp):
    barrier = mp.Barrier(2)
    task = Task(barrier.wait)
    waiting(barrier, 1)
    barrier.abort()
    broken(task.get)
    barrier.reset()
    task = Task(barrier.wait)
    waiting(barrier, 1)
    assert barrier.wait() == 1
    assert task.get() == 0


@pytest.mark.parametrize("default", [True, False])
def test_timeout_breaks_it(mp, default):
    barrier = mp.Barrier(3, timeout=0.2 if default else None)
    other = Task(barrier.wait, LIMIT)
    waiting(barrier, 1)
    began = time.monotonic()
    broken(barrier.wait, *(() if default else (0.2,)))
    assert time.monotonic() - began > 0.1
    broken(other.get)
    assert barrier.broken is True


def test_timeout_of_the_call_wins(mp):
    barrier = mp.Barrier(2, timeout=0.001)
    task = Task(barrier.wait, LIMIT)
    waiting(barrier, 1)
    assert barrier.wait() == 1
    assert task.get() == 0


def test_a_barrier_in_its_action(mp):
    """The action runs under the barrier's lock, which is recursive."""
    barrier = mp.Barrier(1, lambda: shown.append((barrier.parties, barrier.broken)))
    shown = []
    assert barrier.wait() == 0
    assert shown == [(1, False)]


def test_an_action_that_waits_for_its_own_barrier(mp):
    barrier = mp.Barrier(2, lambda: barrier.wait(0.01))
    tasks = [Task(outcome, barrier.wait, LIMIT) for _ in range(2)]
    assert {task.get()[0] for task in tasks} == {"BrokenBarrierError"}
    assert barrier.broken
    assert barrier.n_waiting == 0


def test_subclass(synchronize, mp):
    class Counting(synchronize.Barrier):
        def __init__(self, name, parties, *, ctx):
            super().__init__(parties, self.passed, 60, ctx=ctx)
            self.name = name
            self.times = 0

        def passed(self):
            self.times += 1

    barrier = Counting("x", 2, ctx=mp)
    for _ in range(3):
        task = Task(barrier.wait)
        barrier.wait()
        task.get()
    assert (barrier.name, barrier.times) == ("x", 3)
    assert "Counting" in repr(barrier)
