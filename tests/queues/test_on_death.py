"""JoinableQueue(on_death='done'): what a process had taken that has ended is done with."""

import collections
import gc
import os
import random
import re
import threading
import time

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS
from sync_helpers import (
    Child,
    Task,
    handler,
    signal_when_asleep,
    wait_until,
    wait_until_asleep,
)

import mproc_ext
from mproc_ext import queues

pytestmark = pytest.mark.skipif(not OURS, reason="beyond the stdlib")

# In which time somebody who joins has looked several times whether anybody has died.
LOOKS = 0.3


@pytest.fixture
def q(our_ctx):
    return our_ctx.JoinableQueue(on_death="done")


def unfinished(q):
    return q._unfinished_tasks.get_value()


def check_unfinished(q, count):
    """Whoever joins waits as long as there is one, and knows by then of all the dead."""
    task = Task(q.join)
    if count:
        wait_until(lambda: unfinished(q) == count)
        task.join(LOOKS)
        assert task.is_alive()
        assert unfinished(q) == count
        for _ in range(count):
            if not q.empty():
                q.get()
            q.task_done()
    task.get()
    assert unfinished(q) == 0


# ---- Arguments -------------------------------------------------------------------------------


def test_arguments(our_ctx):
    for make in (
        our_ctx.JoinableQueue,
        mproc_ext.JoinableQueue,
        lambda *args, **kwargs: queues.JoinableQueue(*args, ctx=our_ctx, **kwargs),
    ):
        q = make(3, on_death="done")
        assert q.stats()["limit"] == 3
        make(on_death=None)
        for bad in ("Done", "lost", "", b"done", True, 0, ("done",)):
            message = re.escape(f"on_death must be None or 'done', not {bad!r}")
            with pytest.raises(ValueError, match=message):
                make(on_death=bad)
        with pytest.raises(TypeError):
            make(0, "done")
    with pytest.raises(TypeError):
        our_ctx.Queue(on_death="done")


def test_a_subclass_that_is_the_stdlibs(ours):
    class Feeds(queues.JoinableQueue):
        def _feed(self, *args):
            super()._feed(*args)

    Feeds(ctx=ours).join()
    Feeds(on_death=None, ctx=ours).join()
    with pytest.raises(NotImplementedError, match="on_death of a queue that is the standard lib"):
        Feeds(on_death="done", ctx=ours)
    with pytest.raises(ValueError, match="on_death must be"):
        Feeds(on_death="other", ctx=ours)


def test_a_subclass_of_ours(ours):
    class Mine(queues.JoinableQueue):
        def get(self, *args):
            return super().get(*args)

    q = Mine(on_death="done", ctx=ours)
    q.put(1)
    child = Child(ours, queue_targets.take, q, 1, 0)
    child.expect([1])
    child.kill()
    q.join()


# ---- Who has ended ---------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["kill", "os._exit", "sys.exit", "return", "exec"])
def test_the_end_of_who_has_taken(our_ctx, q, ending):
    q.put_many(range(4))
    child = Child(our_ctx, queue_targets.take, q, 3, 1, None if ending == "kill" else ending)
    child.expect([0, 1, 2])
    if ending == "kill":
        assert unfinished(q) == 3
        child.kill()
    elif ending != "exec":
        child.join()
    check_unfinished(q, 1)
    if ending == "exec":
        child.kill()  # it did live


def test_killed_while_somebody_joins(our_ctx, q):
    q.put_many([1, 2])
    child = Child(our_ctx, queue_targets.take, q, 2, 0)
    child.expect([1, 2])
    tasks = [Task(q.join) for _ in range(3)]
    joiner = our_ctx.Process(target=q.join)
    joiner.start()
    for task in tasks:
        wait_until_asleep(task)
    os.kill(child.pid, 9)
    for task in tasks:
        task.get()
    joiner.join(LIMIT)
    assert joiner.exitcode == 0
    child.join(-9)
    assert unfinished(q) == 0
    q.put(3)
    check_unfinished(q, 1)


def test_a_zombie_has_ended(ours):
    q = ours.JoinableQueue(on_death="done")
    q.put(1)
    child = Child(ours, queue_targets.take, q, 1, 0)
    child.expect([1])
    child.kill_unreaped()
    q.join()
    child.join(-9)


@pytest.mark.parametrize("ending", ["kill", "os._exit", "return"])
def test_by_default_it_stays_unfinished(our_ctx, ending):
    """As in the standard library."""
    q = our_ctx.JoinableQueue()
    q.put_many(range(2))
    child = Child(our_ctx, queue_targets.take, q, 1, 0, None if ending == "kill" else ending)
    child.expect([0])
    if ending == "kill":
        child.kill()
    else:
        child.join()
    check_unfinished(q, 2)


def test_what_the_living_have_is_waited_for(our_ctx, q):
    q.put_many(range(4))
    mine = q.get()
    living = Child(our_ctx, queue_targets.take, q, 2, 0)
    living.expect([1, 2])
    dead = Child(our_ctx, queue_targets.take, q, 1, 0)
    dead.expect([3])
    dead.kill()
    task = Task(q.join)
    for left in (2, 1):
        living.send("done")
        living.expect(("done", [1, 2]))
        task.join(LOOKS)
        assert task.is_alive()
        assert unfinished(q) == left
    assert mine == 0
    q.task_done()
    task.get()
    living.send(None)
    living.join()
    assert unfinished(q) == 0


def test_every_way_to_take(our_ctx, q):
    child = Child(our_ctx, queue_targets.take, q, 0, 0)
    child.expect([])
    q.put_many(range(3))
    child.send("get_many")
    child.expect(("get_many", [0, 1, 2]))
    for thing in (b"x" * 300_000, queue_targets.Poison):
        q.put(thing)
        child.send("recv")
        child.expect(("recv", [thing]))
    assert unfinished(q) == 5
    child.kill()
    q.put(1)
    check_unfinished(q, 1)


# ---- task_done by others ---------------------------------------------------------------------


def test_done_by_another_process(our_ctx, q):
    """Before the death of who took it, and after: nothing is counted twice."""
    q.put_many(range(5))
    child = Child(our_ctx, queue_targets.take, q, 3, 0)
    child.expect([0, 1, 2])
    q.task_done()
    assert unfinished(q) == 4
    child.kill()
    task = Task(q.join)
    wait_until(lambda: unfinished(q) == 2)
    q.task_done()
    q.task_done()  # of the dead one's three
    task.join(LOOKS)
    assert task.is_alive()
    assert unfinished(q) == 2
    assert q.get_many(2) == [3, 4]
    q.task_done()
    q.task_done()
    task.get()
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()


def test_too_many(our_ctx, q):
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()
    q.put(1)
    assert q.get() == 1
    q.task_done()
    with pytest.raises(ValueError, match="called too many times"):
        q.task_done()
    q.join()


def test_a_forked_child_has_nothing_of_its_parents(ours):
    q = ours.JoinableQueue(on_death="done")
    q.put_many(range(3))
    child = Child(ours, queue_targets.take, q, 3, 0)
    child.expect([0, 1, 2])
    child.send("fork")  # and it says that one is done
    child.expect(("fork", [0, 1, 2]))
    task = Task(q.join)
    task.join(LOOKS)
    assert task.is_alive()
    assert unfinished(q) == 2
    child.send("done")
    child.expect(("done", [0, 1, 2]))
    assert unfinished(q) == 1
    child.kill()
    task.get()
    assert unfinished(q) == 0


def test_threads(our_ctx, q):
    q.put_many(range(4 * 200))
    child = Child(our_ctx, queue_targets.take_in_threads, q, 4, 200)
    child.expect("taken")
    assert unfinished(q) == 4
    child.kill()
    check_unfinished(q, 0)


def test_threads_that_are_done_at_once(ours):
    q = ours.JoinableQueue(on_death="done")
    q.put_many(range(2000))
    barrier = threading.Barrier(4)

    def work():
        barrier.wait()
        for _ in range(500):
            q.get()
            q.task_done()

    tasks = [Task(work) for _ in range(4)]
    q.join()
    for task in tasks:
        task.get()
    assert unfinished(q) == 0
    assert q.qsize() == 0


def test_shutdown(our_ctx, q):
    q.put_many(range(5))
    child = Child(our_ctx, queue_targets.take, q, 2, 1)
    child.expect([0, 1])
    q.shutdown(immediate=True)
    assert unfinished(q) == 1
    child.kill()
    q.join()


def test_a_signal_while_it_joins(ours):
    q = ours.JoinableQueue(on_death="done")
    q.put(1)

    def interrupt(*_):
        raise InterruptedError("by a signal")

    with handler(interrupt):
        sender = signal_when_asleep()
        with pytest.raises(InterruptedError):
            q.join()
        sender.get()
    q.get()
    q.task_done()
    q.join()


def test_a_queue_that_is_gone_takes_its_records_along(ours):
    """No memory of its own, and none that stays."""
    gc.collect()
    before = mproc_ext._core.heap_stats()["owned"]
    plain, counting = ours.JoinableQueue(), ours.JoinableQueue(on_death="done")
    both = mproc_ext._core.heap_stats()["owned"]
    del plain
    gc.collect()
    one = mproc_ext._core.heap_stats()["owned"]
    assert both - one == one - before
    del counting
    gc.collect()
    assert mproc_ext._core.heap_stats()["owned"] == before


# ---- A storm ---------------------------------------------------------------------------------

HOLDERS, COUNT = 3, 1000
THOROUGH = os.environ.get("MPROC_EXT_STORM", "short") != "short"


class Storm:
    """Consumers with something in hand are killed, or end by themselves, while others join."""

    def __init__(self, ctx, path):
        self.ctx, self.path = ctx, path
        self.q = ctx.JoinableQueue(on_death="done")
        self.rng = random.Random(7)
        self.made = 0
        self.ends = collections.Counter()
        with open(path, "wb") as file:
            file.truncate(COUNT)
        self.holders = [self.start() for _ in range(HOLDERS)]
        self.joiner = self.start_joiner()

    def start(self):
        self.made = self.made % 250 + 1
        process = self.ctx.Process(
            target=queue_targets.hold_some,
            args=(self.q, self.path, self.made, self.rng.random()),
            daemon=True,
        )
        process.start()
        return self.made, process

    def start_joiner(self):
        process = self.ctx.Process(
            target=queue_targets.join_again_and_again, args=(self.q,), daemon=True
        )
        process.start()
        return process

    def replace_the_dead(self):
        for at, (_, process) in enumerate(self.holders):
            if process.exitcode is not None:
                self.ends[process.exitcode] += 1
                self.holders[at] = self.start()

    def kill_one(self):
        _, process = self.rng.choice(self.holders)
        process.kill()
        process.join()
        if self.rng.random() < 0.2:
            self.joiner.kill()
            self.joiner.join()
            self.joiner = self.start_joiner()

    def blow(self, kills, pause):
        """One round: when join returns, nobody living has anything, and it does return."""
        with open(self.path, "r+b") as file:
            file.write(bytes(COUNT))
        ends = self.ends.total()
        self.q.put_many(range(COUNT))
        task = Task(self.q.join)
        for _ in range(kills):
            task.join(self.rng.random() * pause)
            self.kill_one()
            self.replace_the_dead()
        deadline = time.monotonic() + LIMIT
        while task.is_alive():
            task.join(0.01)
            if not task.is_alive():
                break
            assert time.monotonic() < deadline, f"join has not returned: {unfinished(self.q)} left"
            self.replace_the_dead()
        task.get()
        with open(self.path, "rb") as file:
            states = file.read()
        living = {who for who, process in self.holders if process.is_alive()}
        assert self.q.empty()
        assert unfinished(self.q) == 0
        assert not living & set(states), "join returned too early"
        self.replace_the_dead()
        # What one has taken, by get_many, and not written down.
        assert states.count(0) <= 3 * (self.ends.total() - ends)

    def end(self):
        for _, process in self.holders:
            process.kill()
            process.join()
        self.joiner.kill()
        self.joiner.join()
        self.q.join()
        assert unfinished(self.q) == 0
        self.q.put(1)
        assert unfinished(self.q) == 1


@pytest.mark.timeout(600)
def test_storm(our_ctx, method, tmp_path):
    rounds, kills, pause = (60, 6, 0.005) if method == "fork" else (12, 5, 0.1)
    rounds *= 5 if THOROUGH else 1
    storm = Storm(our_ctx, str(tmp_path / "states"))
    for _ in range(rounds):
        storm.blow(kills, pause)
    assert storm.ends[-9] >= rounds * kills * 0.5
    print(f"\n{method}: {dict(storm.ends)} ends")
    storm.end()
