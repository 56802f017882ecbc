"""What the workers of a storm do, for ever, and what has to be true of the numbers at the end.

A worker counts a turn when it has done something once; who waits is got on by the others, so a
wake that is lost is a worker that stands still.  Wherever the living can go on without the dead,
they have to (`SURVIVORS_GO_ON`).
"""

import os
import random
import signal
import threading
import time
import warnings

from sync_storm_memory import WORKERS

import mproc_ext

PAUSE = 0.0005  # seconds: those who wait fall asleep


class Work:
    """One kind of thing, which is made in the parent and passed to its workers."""

    # Whose points of the core (src/core, MPX_STEP) a storm of it has to come by.
    POINTS = ("owned_", "lock_")

    # Whether all workers but one get on.
    SURVIVORS_GO_ON = True

    def __init__(self, ctx):
        self.make(ctx)

    def run(self, number, memory):
        warnings.simplefilter("ignore", RuntimeWarning)
        self.number, self.memory, self.pid = number, memory, os.getpid()
        while True:
            self.turn()
            memory.set_of(number, "turns", memory.of(number, "turns") + 1)

    def timed(self, call, *args):
        """Call what may wait, and keep the longest time."""
        memory, number = self.memory, self.number
        began = time.monotonic_ns()
        result = call(*args)
        waited = time.monotonic_ns() - began
        if waited > memory.of(number, "longest"):
            memory.set_of(number, "longest", waited)
        return result

    def complain(self, text):
        os.write(1, f"{text}\n".encode())
        os.kill(os.getppid(), signal.SIGUSR1)
        signal.pause()

    def section(self):
        """What only one may do at a time; sometimes the others have fallen asleep by its end.

        `first` and `second` are counted up one after the other, so they are the same unless the
        one who was here before has died here.
        """
        memory, pid = self.memory, self.pid
        memory.set("holder", pid)
        memory.set("inside", pid)
        first, second = memory.get("first"), memory.get("second")
        if first == second + 1:
            memory.set("second", first)
            memory.add("recoveries")
        elif first != second:
            self.complain(f"what the lock guards is damaged: {first}, {second}")
        memory.set("first", first + 1)
        for _ in range(random.randrange(30)):
            if memory.get("inside") != pid:
                self.complain("two were inside at once")
        if random.random() < 0.3:
            time.sleep(PAUSE)
        if memory.get("inside") != pid:
            self.complain("two were inside at once")
        memory.set("second", first + 1)
        memory.set("holder", 0)

    def after_kill(self):
        """In the parent."""

    def check(self, memory, turns, kills):
        """What is wrong at the end, or None: a section that was not counted as a turn, or that was
        found half done, was a dead one's."""
        sections = memory.get("first")
        if not turns <= sections <= turns + kills:
            return f"{sections} sections in {turns} turns with {kills} kills"
        if memory.get("recoveries") > kills:
            return f"{memory.get('recoveries')} sections left half done by {kills} kills"
        return None


class Lock(Work):
    def make(self, ctx):
        self.lock = ctx.Lock()

    def turn(self):
        self.timed(self.lock.acquire)
        self.section()
        self.lock.release()


class RLock(Work):
    def make(self, ctx):
        self.lock = ctx.RLock()

    def turn(self):
        self.timed(self.lock.acquire)
        self.lock.acquire()
        self.section()
        self.lock.release()
        self.lock.release()


class Value(Work):
    """A number that everybody counts up, and its lock."""

    def make(self, ctx):
        self.value = ctx.Value("q", 0)

    def turn(self):
        self.timed(self.value.get_lock().acquire)
        self.section()
        self.value.value += 1
        self.value.get_lock().release()

    def check(self, memory, turns, kills):
        if not turns <= self.value.value <= turns + kills:
            return f"the value is {self.value.value} after {turns} turns with {kills} kills"
        return super().check(memory, turns, kills)


class Semaphore(Work):
    """Two give permits, while there are few, and two take them.

    A permit that a dead one had taken stays taken, and whether the dead had given or taken the last
    one is not known; no other is lost, and who waits is woken.
    """

    POINTS = ("semaphore_",)
    FEW = 2

    def make(self, ctx):
        self.semaphore = ctx.Semaphore(0)

    def turn(self):
        if self.number % 2:
            while self.semaphore.get_value() >= self.FEW:
                time.sleep(PAUSE)
            self.memory.set("holder", self.pid)
            self.semaphore.release()
            self.memory.set("holder", 0)
        else:
            self.timed(self.semaphore.acquire)
            self.memory.set("holder", self.pid)
            if random.random() < 0.3:
                time.sleep(PAUSE)
            self.memory.set("holder", 0)

    def check(self, memory, turns, kills):
        each = memory.turns()
        counted = sum(each[1::2]) - sum(each[::2])
        value = self.semaphore.get_value()
        if abs(value - counted) > kills:
            return f"{value} permits, not {counted}, with {kills} kills"
        return None


class Condition(Work):
    """A box for one letter: two put one in when it is empty, two take it out.

    No wait has a limit, and each notify is for one, so a notify that is lost with a dead waiter
    would leave somebody waiting.  Who dies with the lock held has perhaps not notified: whoever
    takes the lock over notifies everybody, as a program has to.
    """

    POINTS = ("owned_", "lock_", "mutex_", "condition_", "slot_taken", "slot_held", "slot_dropped")
    POINTS += ("slot_freed",)

    def make(self, ctx):
        self.lock = ctx.RLock()
        self.empty, self.full = ctx.Condition(self.lock), ctx.Condition(self.lock)

    def turn(self):
        here, there, wanted = (
            (self.empty, self.full, 0) if self.number % 2 else (self.full, self.empty, 1)
        )
        memory = self.memory
        self.timed(self.lock.acquire)
        self.tell_all_after_a_death()
        while memory.get("mail") != wanted:
            self.timed(here.wait)
            self.tell_all_after_a_death()
        self.section()
        memory.set("mail", 1 - wanted)
        there.notify()
        self.lock.release()

    def tell_all_after_a_death(self):
        if getattr(self.lock, "_warned", False):
            self.lock._warned = False
            self.empty.notify_all()
            self.full.notify_all()

    def after_kill(self):
        # Perhaps all others wait for a notify, and nobody for the lock that the dead one held.
        if self.lock.acquire(timeout=1):
            self.tell_all_after_a_death()
            self.lock.release()


class Event(Work):
    """Two set and clear, two wait."""

    POINTS = ("event_",)

    def make(self, ctx):
        self.event = ctx.Event()

    def turn(self):
        if self.number % 2:
            self.memory.set("holder", self.pid)
            self.event.set()
            if random.random() < 0.3:
                time.sleep(PAUSE)
            self.event.clear()
            self.event.is_set()
            self.memory.set("holder", 0)
            if random.random() < 0.5:
                time.sleep(PAUSE)
        else:
            self.timed(self.event.wait)

    def check(self, memory, turns, kills):
        self.event.set()
        return None if self.event.is_set() and self.event.wait(0) else "it cannot be set"


class Barrier(Work):
    """All but one pass together, so the living are enough."""

    POINTS = Condition.POINTS
    PARTIES = WORKERS - 1

    def make(self, ctx):
        self.barrier = ctx.Barrier(self.PARTIES, count_generation)

    def turn(self):
        global memory_of_the_barrier
        memory_of_the_barrier = self.memory
        self.memory.set("holder", self.pid)
        try:
            self.timed(self.barrier.wait)
        except threading.BrokenBarrierError:
            self.barrier.reset()
            self.turn()

    def check(self, memory, turns, kills):
        generations = memory.get("generations")
        if not (generations - kills) * self.PARTIES - kills <= turns <= generations * self.PARTIES:
            return f"{turns} turns in {generations} generations with {kills} kills"
        return None


class Making(Work):
    """Everybody makes locks, holds them for a while and drops them, and forks children that have
    them too: no slot is two locks, and what the dead had is used again."""

    POINTS = ("slot_taken", "slot_held", "slot_dropped", "slot_freed", "slot_swept", "member_bits")
    POINTS += ("member_birth", "member_seating", "member_seated", "member_handed_over")
    POINTS += ("member_buried", "arena_sweeping")
    ROOM = 4 << 20  # bytes, many times what the living need

    def make(self, ctx):
        self.ctx = ctx
        self.one = ctx.Lock()

    def turn(self):
        self.memory.set("holder", self.pid)
        locks = [self.timed(self.ctx.Lock) for _ in range(random.randrange(100))]
        if not all(lock.acquire(False) for lock in locks):
            self.complain("a new lock is held already")
        if random.random() < 0.3:
            child = os.fork()
            if child == 0:
                more = [self.ctx.Lock() for _ in range(10)]
                os._exit(not all(lock.locked() for lock in locks) or any(m.locked() for m in more))
            if os.waitpid(child, 0)[1] not in (0, signal.SIGKILL):
                self.complain("a child found its parent's locks free, or its own held")
        if not all(lock.locked() for lock in locks):
            self.complain("a lock that this process holds is free")
        self.memory.set("holder", 0)

    def check(self, memory, turns, kills):
        size = os.fstat(mproc_ext._core.arena_of(self.one)[1]).st_size
        if size > self.ROOM:
            return f"the arena has grown to {size} bytes"
        return None


memory_of_the_barrier = None


def count_generation():
    memory_of_the_barrier.add("generations")


KINDS = {
    kind.__name__: kind
    for kind in (Lock, RLock, Value, Semaphore, Condition, Event, Barrier, Making)
}
