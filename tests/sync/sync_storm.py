"""Kill the processes that use a lock, over and over: sync_storm.py KIND KILLS; see --help.

Four processes use one lock (or value, semaphore, condition, event, barrier) as fast as they can.
Again and again one is killed, the holder as often as not, and replaced once the others have got on
without it.  In a core that was built with MPROC_EXT_KILL_POINTS=1 the rest of the deaths are at
points in the middle of what the core does, each of them in turn; then at the end a table says how
often each was passed and how often somebody died there.

Ends with a line of figures, and with status 0; with 1 and a line that says why, where two were
inside at once, where one does not get on for so many seconds, where the numbers are not what they
must be, and, after THOROUGH kills, where nobody has died at one of the points.
"""

import argparse
import importlib
import json
import os
import random
import signal
import sys
import tempfile
import time

from sync_storm_memory import WORKERS, Memory
from sync_storm_work import KINDS

THOROUGH = 3_000
ANY_POINT = 2**31 - 1
LOOK_INTERVAL = 0.0002
AT_A_POINT = 0.05  # seconds that a plan has to come true
AFTER_A_DEATH = 0.2


class Failure(Exception):
    pass


def core_of(package):
    """The core, if it can be told where to die."""
    core = sys.modules.get("mproc_ext._core") if package == "mproc_ext" else None
    return core if hasattr(core, "kill_points") else None


def run_worker(work, number, path, package):
    """A worker's life."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    random.seed()
    core = core_of(package)
    memory = Memory(path, len(core.kill_points()) if core else 0)
    if core:
        core.kill_points_enrol(memory.map, memory.counts_at, memory.plan_at(number))
    work.run(number, memory)


class Storm:
    def __init__(self, kind, method, package, patience, path):
        self.ctx = importlib.import_module(package).get_context(method)
        self.kind, self.package, self.patience, self.path = kind, package, patience, path
        core = core_of(package)
        self.points = core.kill_points() if core else ()
        self.memory = Memory(path, len(self.points))
        self.work = KINDS[kind](self.ctx)
        self.concerned = [
            number for number, name in enumerate(self.points) if name.startswith(self.work.POINTS)
        ]
        self.processes = [None] * WORKERS
        self.seen = [(0, 0.0)] * WORKERS  # turns, and since when it has been so many
        self.kills = self.of_holder = self.at_points = 0

    # ---- The workers ---------------------------------------------------------------------------

    def start(self, number):
        self.memory.set_of(number, "plan", 0)
        self.processes[number] = self.ctx.Process(
            target=run_worker, args=(self.work, number, self.path, self.package), daemon=True
        )
        self.processes[number].start()
        self.seen[number] = self.memory.of(number, "turns"), time.monotonic()

    def bury(self):
        """Count those that have died, and forget them."""
        for number, process in enumerate(self.processes):
            if process is not None and process.exitcode is not None:
                if process.exitcode != -signal.SIGKILL:
                    raise Failure(f"worker {number} ended with {process.exitcode}")
                if self.memory.get("holder") == process.pid:
                    self.memory.set("holder", 0)
                self.processes[number] = None
                self.kills += 1
        return self.processes.count(None)

    def kill(self, number):
        self.processes[number].kill()
        self.processes[number].join()

    # ---- Do they get on? -----------------------------------------------------------------------

    def watch(self):
        now, turns = time.monotonic(), self.memory.turns()
        for number, (before, since) in enumerate(self.seen):
            if turns[number] != before or self.processes[number] is None:
                self.seen[number] = turns[number], now
            elif now - since > self.patience:
                alive = [n for n in range(WORKERS) if self.processes[n] is not None]
                raise Failure(
                    f"{self.kind}: worker {number} of {alive} did not get on for "
                    f"{self.patience:g} s; turns {turns}; after {self.kills} kills"
                )

    def wait_until(self, predicate, seconds=None):
        deadline = None if seconds is None else time.monotonic() + seconds
        while not predicate():
            self.watch()
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(LOOK_INTERVAL)
        return True

    def wait_for_turns(self):
        """Until every living worker has got on, or one more has died by its plan."""
        before, dead = self.memory.turns(), self.processes.count(None)

        def have_got_on():
            return self.bury() > dead or all(
                process is None or self.memory.of(number, "turns") != before[number]
                for number, process in enumerate(self.processes)
            )

        self.wait_until(have_got_on)

    # ---- The killing ---------------------------------------------------------------------------

    def kill_the_holder(self):
        """Whether one was found in time."""

        def holder():
            pid = self.memory.get("holder")
            return [n for n, process in enumerate(self.processes) if process.pid == pid]

        found = []
        self.wait_until(lambda: found.extend(holder()) or found, 0.01)
        if found:
            self.of_holder += 1
            self.kill(found[0])
        return bool(found)

    def plan_a_death(self):
        """The point and the pass at which somebody is to die: rare points as often as others."""
        if random.random() < 0.1:
            return ANY_POINT, random.randrange(1, 200)
        counts = self.memory.passes_and_kills()
        number = min(random.sample(self.concerned, 3), key=lambda n: counts[n][1])
        passes, _ = counts[number]
        often = passes // (self.kills + 1)
        return number + 1, random.randrange(1, 2 + min(often, 30))

    def kill_at_a_point(self):
        """Everybody has the same plan, and who comes by first dies; perhaps others, before that is
        known.  Whether somebody did."""
        before = self.kills
        self.plan(*self.plan_a_death())
        died = self.wait_until(self.bury, AT_A_POINT)
        self.plan(0, 0)
        self.bury()
        self.at_points += self.kills - before
        return died

    def kill_two(self):
        """One, and then another at a point that is passed after a death only."""
        counts = self.memory.passes_and_kills()
        rare = [number for number in self.concerned if counts[number][0] < self.kills]
        if not rare:
            return False
        self.plan(random.choice(rare) + 1, 1)
        self.kill(random.randrange(WORKERS))
        before = self.bury()
        self.wait_until(lambda: self.bury() > before, AFTER_A_DEATH)
        self.plan(0, 0)
        self.at_points += self.bury() - before
        return True

    def plan(self, point, passes):
        for number in range(WORKERS):
            self.memory.set_of(number, "plan", point << 32 | passes)

    def kill_somebody(self):
        chance = random.random()
        if chance < 0.5:
            done = self.kill_the_holder()
        elif chance < 0.53:
            done = self.kill_two()
        else:
            done = bool(self.concerned) and self.kill_at_a_point()
        self.bury()
        if not done and not self.processes.count(None):
            self.kill(random.randrange(WORKERS))
            self.bury()

    def blow(self, kills):
        began = time.monotonic()
        try:
            for number in range(WORKERS):
                self.start(number)
            while self.kills < kills:
                self.kill_somebody()
                self.work.after_kill()
                if self.work.SURVIVORS_GO_ON and self.processes.count(None) == 1:
                    self.wait_for_turns()
                for number in range(WORKERS):
                    if self.processes[number] is None:
                        self.start(number)
            self.wait_for_turns()
        finally:
            for process in self.processes:
                if process is not None:
                    process.kill()
                    process.join()
        self.check()
        self.seconds = time.monotonic() - began

    # ---- The end -------------------------------------------------------------------------------

    def check(self):
        turns = sum(self.memory.turns())
        wrong = self.work.check(self.memory, turns, self.kills + WORKERS)
        if wrong:
            raise Failure(f"{self.kind}: {wrong}")

    def figures(self):
        return {
            "kills": self.kills,
            "of_holder": self.of_holder,
            "at_points": self.at_points,
            "turns": sum(self.memory.turns()),
            "longest": max(self.memory.of(number, "longest") for number in range(WORKERS)),
            "seconds": self.seconds,
            "counts": self.memory.passes_and_kills(),
            "concerned": self.concerned,
            "points": self.points,
        }


def worker_complained(*_):
    raise Failure("stopped by a worker")


def one_storm(options, kills, seed):
    """Its figures, or a text that says what is wrong."""
    random.seed(seed)
    signal.signal(signal.SIGUSR1, worker_complained)
    with tempfile.NamedTemporaryFile() as file:
        try:
            storm = Storm(
                options.kind, options.method, options.package, options.patience, file.name
            )
            storm.blow(kills)
        except Failure as failure:
            return f"{failure} (MPROC_EXT_STORM_SEED={seed})"
        return storm.figures()


def storms_at_once(options, seed):
    """The results of several storms, each in a process of its own: most of the time they wait."""
    readers = []
    for turn in range(options.at_once):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.close(reader)
            result = one_storm(options, -(-options.kills // options.at_once), seed + turn)
            with open(writer, "w") as file:
                json.dump(result, file)
            os._exit(0)
        os.close(writer)
        readers.append(reader)
    for reader in readers:
        with open(reader) as file:
            text = file.read()
        yield json.loads(text) if text else "a storm has come to no end"


def sum_up(results):
    total = dict(results[0])
    for name in ("kills", "of_holder", "at_points", "turns"):
        total[name] = sum(result[name] for result in results)
    for name in ("longest", "seconds"):
        total[name] = max(result[name] for result in results)
    total["counts"] = [
        [sum(column) for column in zip(*of_a_point, strict=True)]
        for of_a_point in zip(*(result["counts"] for result in results), strict=True)
    ]
    return total


def print_table(total):
    """Every point that the kind is concerned with, or that was passed; those where nobody died that
    somebody should have died at."""
    missed = []
    for number, (name, (passes, kills)) in enumerate(
        zip(total["points"], total["counts"], strict=True)
    ):
        is_concerned = number in total["concerned"]
        if is_concerned and not kills:
            missed.append(name)
        if is_concerned or passes:
            print(f"  {name:24} {passes:12} passes {kills:6} kills")
    return missed


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("kills", type=int)
    parser.add_argument("--method", default="fork")
    parser.add_argument("--package", default="mproc_ext")
    parser.add_argument("--patience", type=float, default=20, help="seconds until it is a hang")
    parser.add_argument("--at-once", type=int, default=1, help="storms that share the kills")
    options = parser.parse_args()
    seed = int(os.environ.get("MPROC_EXT_STORM_SEED", os.getpid()))
    results = list(storms_at_once(options, seed))
    failures = [result for result in results if isinstance(result, str)]
    if failures:
        print("\n".join(failures))
        return 1
    total = sum_up(results)
    missed = print_table(total)
    if missed and options.kills >= THOROUGH:
        print(f"{options.kind}: nobody died at {', '.join(missed)}")
        return 1
    print(
        f"{options.kind}, {options.method}: {total['kills']} kills, {total['of_holder']} of the "
        f"holder, {total['at_points']} at points in the core, in {total['seconds']:.1f} s; "
        f"{total['turns']} turns; longest wait {total['longest'] / 1e6:.1f} ms"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
