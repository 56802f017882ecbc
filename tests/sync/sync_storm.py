"""Kill the processes that use a lock, over and over: sync_storm.py KIND KILLS [PACKAGE [PATIENCE]].

Four processes use one lock (or condition, event, barrier) as fast as they can.  Every few moments
one is killed, the holder as often as not, and another takes its place.  Ends with a line of
figures; exits with 1 where two were inside at once, and where one does not get on for PATIENCE
seconds.
"""

import importlib
import mmap
import os
import random
import signal
import struct
import sys
import threading
import time
import warnings

WORKERS = 4
SLOT = 64  # bytes of shared memory for each worker, and for all of them
PATIENCE = 20


class Shared:
    """Numbers that the processes share without a lock: each is written by one at a time."""

    FIELDS = ("holder", "inside", "tokens", "passes")

    def __init__(self):
        self._map = mmap.mmap(-1, SLOT * (WORKERS + 1))
        self._view = memoryview(self._map).cast("q")

    def get(self, field):
        return self._view[self.FIELDS.index(field)]

    def set(self, field, value):
        self._view[self.FIELDS.index(field)] = value

    def worker(self, number):
        """[turns, longest wait in ns]"""
        first = SLOT * (number + 1) // struct.calcsize("q")
        return self._view[first : first + 2]

    def turns(self):
        return sum(self.worker(number)[0] for number in range(WORKERS))


class Storm:
    def __init__(self, ctx, kind):
        self.ctx = ctx
        self.kind = kind
        self.shared = Shared()
        self.thing = ctx.Barrier(WORKERS) if kind == "Barrier" else getattr(ctx, kind)()
        self.work = getattr(self, kind.lower())

    def start(self, number):
        process = self.ctx.Process(target=self.run, args=(number,))
        process.start()
        return process

    def run(self, number):
        warnings.simplefilter("ignore", RuntimeWarning)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.work(number, self.shared.worker(number))

    # What the workers do, for ever.

    def timed(self, mine, call, *args):
        """Call what may wait, and keep the longest time."""
        began = time.monotonic_ns()
        result = call(*args)
        mine[1] = max(mine[1], time.monotonic_ns() - began)
        return result

    def section(self):
        """What only one may do at a time; how long is left to chance."""
        shared, pid = self.shared, os.getpid()
        shared.set("holder", pid)
        shared.set("inside", pid)
        for _ in range(random.randrange(30)):
            if shared.get("inside") != pid:
                os.write(2, b"two were inside at once\n")
                os.kill(os.getppid(), signal.SIGUSR1)
        shared.set("holder", 0)

    def lock(self, number, mine):
        while True:
            self.timed(mine, self.thing.acquire)
            self.section()
            self.thing.release()
            mine[0] += 1

    def rlock(self, number, mine):
        while True:
            self.timed(mine, self.thing.acquire)
            self.thing.acquire()
            self.section()
            self.thing.release()
            self.section()
            self.thing.release()
            mine[0] += 1

    def condition(self, number, mine):
        """Two make tokens, two wait for them."""
        condition, shared = self.thing, self.shared
        while True:
            self.timed(mine, condition.acquire)
            self.section()
            if number % 2:
                shared.set("tokens", min(shared.get("tokens") + 1, 100))
                condition.notify()
            else:
                while not shared.get("tokens"):
                    self.timed(mine, condition.wait)
                shared.set("tokens", shared.get("tokens") - 1)
            condition.release()
            mine[0] += 1

    def event(self, number, mine):
        """Two set and clear, two wait."""
        event = self.thing
        while True:
            if number % 2:
                self.shared.set("holder", os.getpid())
                event.set()
                event.clear()
                event.is_set()
                self.shared.set("holder", 0)
            else:
                self.timed(mine, event.wait)
            mine[0] += 1

    def barrier(self, number, mine):
        """A party that died is missed, or counted: then the barrier is reset."""
        barrier = self.thing
        while True:
            self.shared.set("holder", os.getpid())
            try:
                self.timed(mine, barrier.wait, 1)
                mine[0] += 1
            except threading.BrokenBarrierError:
                barrier.reset()

    # The killing.

    def victim(self, processes):
        """Which one to kill, and whether it held the lock."""
        if random.random() < 0.5:
            deadline = time.monotonic() + 0.01
            while time.monotonic() < deadline:
                holder = self.shared.get("holder")
                for number, process in enumerate(processes):
                    if process.pid == holder:
                        return number, True
        return random.randrange(WORKERS), False

    def wait_for_turns(self, everyones, patience):
        """Until somebody has got on, or everyone has."""
        before = [self.shared.worker(number)[0] for number in range(WORKERS)]
        deadline = time.monotonic() + patience
        while True:
            now = [self.shared.worker(number)[0] for number in range(WORKERS)]
            stuck = [number for number in range(WORKERS) if now[number] == before[number]]
            if not stuck or (len(stuck) < WORKERS and not everyones):
                return
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"{self.kind}: workers {stuck} did not get on for {patience} s; "
                    f"holder {self.shared.get('holder')}"
                )
            time.sleep(0)

    def blow(self, kills, patience):
        processes = [self.start(number) for number in range(WORKERS)]
        of_holder, began = 0, time.monotonic()
        try:
            for turn in range(kills):
                self.wait_for_turns(turn % 10 == 9, patience)
                number, held = self.victim(processes)
                of_holder += held
                pid = processes[number].pid
                processes[number].kill()
                processes[number].join()
                if self.shared.get("holder") == pid:
                    self.shared.set("holder", 0)
                processes[number] = self.start(number)
            self.wait_for_turns(True, patience)
        finally:
            for process in processes:
                process.kill()
                process.join()
        longest = max(self.shared.worker(number)[1] for number in range(WORKERS))
        return (
            f"{self.kind}: {kills} kills, {of_holder} of the holder, in "
            f"{time.monotonic() - began:.1f} s; {self.shared.turns()} turns; "
            f"longest wait {longest / 1e6:.1f} ms"
        )


def two_inside(*_):
    raise SystemExit("two were inside at once")


def main(kind, kills, package="mproc_ext", patience=PATIENCE):
    random.seed(int(os.environ.get("MPROC_EXT_STORM_SEED", os.getpid())))
    signal.signal(signal.SIGUSR1, two_inside)
    ctx = importlib.import_module(package).get_context("fork")
    print(Storm(ctx, kind).blow(int(kills), float(patience)))


if __name__ == "__main__":
    main(*sys.argv[1:])
