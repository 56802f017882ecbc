"""Kill the workers of a pool, over and over: pool_storm.py KILLS; see --help.

One or two threads have a pool do calls of all kinds, with arguments and results of a few bytes to
500 KB.  Another process kills workers, at random or, in a core that was built with
MPROC_EXT_KILL_POINTS=1, at points in the middle of what the core does.  Some tasks end their worker
themselves, raise, allocate until there is no more, or block for ever.  After some kills the pool is
ended, one way or another, and there is a new one.

Every task has a number, and a ledger says how often it was begun and done, and who was killed when.
A task that was done has its result, once; one that was begun and whose worker died is lost, and no
other one is, nor is any begun again, but where the call asks for that.

Ends with a table of the points, a line of figures and status 0; with 1 and a line that says why,
where a call does not end, where a result or an error is not the task's, where a pool is not usable
once nobody is killed any more, where shared memory, a process or a descriptor is left, and, where
nobody has died at one of the points after THOROUGH kills, and up to as many again.
"""

import argparse
import collections
import concurrent.futures
import faulthandler
import gc
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
import traceback

import pool_storm_tasks as tasks
from pool_storm_tasks import EACH, EXITCODES, Ledger, Raised, Torn

import mproc_ext
from mproc_ext import _engine
from mproc_ext.pool import Pool, TaskTimeoutError, WorkerLostError

THOROUGH = 5_000
OF_A_POOL = 120  # kills
ANY_POINT = 2**31 - 1
LOOK_INTERVAL = 0.0003
AT_A_POINT = 0.05  # seconds that a plan has to come true
REPLACED = 0.3  # seconds until somebody else is killed, at most
AT_MOST = 10.0  # seconds from a kill to the end of the call
BLOCKED = 0.03  # timeout of tasks that block
LONG = 1000.0  # timeout of tasks that end
POINTS = ("worker_", "spsc_", "crew_", "heap_", "mutex_", "owned_")
# Passed once, when the heap grows or shrinks, or by who waits for a mutex: tests/c kills there.
RARE = (
    "heap_entry", "heap_extent", "heap_extended", "heap_allocated", "heap_touched",
    "heap_unstored", "heap_punched", "heap_swept",
    "owned_waiting", "owned_awake",
)  # fmt: skip


class Failure(Exception):
    pass


# ---- Who kills ---------------------------------------------------------------------------------


def is_child(pid, parent):
    """Whether it lives, and is not another process that has got the number."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            state, its_parent = file.read().rpartition(")")[2].split()[:2]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX" and (parent is None or int(its_parent) == parent)


class Killer:
    """Runs in a process of its own."""

    def __init__(self, ledger, core, kills, pause, storm, method):
        self.ledger, self.kills, self.pause, self.storm = ledger, kills, pause, storm
        self.parent = None if method == "forkserver" else storm  # of the workers
        names = core.kill_points() if core else ()
        self.concerned = concerned(names)
        self.of_young = 0  # in a row

    def run(self):
        while not self.ledger.get(tasks.STOP) and is_child(self.storm, None):
            if self.ledger.get(tasks.PAUSE):
                self.bury()
                self.ledger.set(tasks.PAUSED, 1)
                time.sleep(LOOK_INTERVAL)
                continue
            self.ledger.set(tasks.PAUSED, 0)
            time.sleep(random.uniform(0, self.pause))
            if self.concerned and random.random() < 0.75 and self.kill_at_a_point():
                continue
            self.kill_at_random()
        self.bury()

    def places(self):
        return range(self.ledger.get(tasks.WORKERS))

    def is_to_go_on(self):
        return not self.ledger.get(tasks.STOP) and not self.ledger.get(tasks.PAUSE)

    def wait_for_successor(self, place, pid):
        deadline = time.monotonic() + REPLACED
        while (
            self.is_to_go_on()
            and time.monotonic() < deadline
            and self.ledger.of(place, tasks.PID) == pid
        ):
            time.sleep(LOOK_INTERVAL)

    def kill_at_random(self):
        """One that does tasks; or one that has just been started, but never two of these in a row,
        as a pool gives up whose workers do not start."""
        places = [n for n in self.places() if self.ledger.of(n, tasks.PID)]
        if not places:
            return
        place = random.choice(places)
        pid, started = self.ledger.of(place, tasks.PID), self.ledger.of(place, tasks.STARTED)
        is_young = started != pid
        if is_young and self.of_young:
            return
        if is_child(started, self.parent):
            when = time.monotonic_ns()
            try:
                os.kill(started, signal.SIGKILL)
            except ProcessLookupError:
                return  # it was in the middle of ending itself
            self.ledger.log(started, when)
            self.of_young = is_young
            while is_child(started, self.parent):
                time.sleep(LOOK_INTERVAL)
            self.wait_for_successor(place, pid)

    def bury(self):
        """Log those that have died by their plan."""
        buried = []
        for place in range(tasks.PLACES):
            if pid := self.ledger.of(place, tasks.DIED):
                self.ledger.log(pid, self.ledger.of(place, tasks.DIED_AT))
                self.ledger.set(tasks.AT_POINTS, self.ledger.get(tasks.AT_POINTS) + 1)
                self.ledger.set_of(place, tasks.DIED, 0)
                buried.append((place, pid))
        if buried:
            self.of_young = 0
        return buried

    def plan_a_death(self):
        """The point and the pass at which somebody is to die: rare points as often as others."""
        counts, kills = self.ledger.passes_and_kills(), self.ledger.get(tasks.LOGGED)
        if random.random() < 0.1:
            return ANY_POINT, random.randrange(1, 100)
        is_late = kills >= self.kills
        some = (is_late and missed(self.concerned, counts)) or random.sample(self.concerned, 3)
        number = min(some, key=lambda n: counts[n][1])
        often = counts[number][0] // (kills + 1)
        return number + 1, random.randrange(1, 2 + min(often // 4, 10))

    def kill_at_a_point(self):
        """Who comes by first dies; perhaps others, before that is known.  Whether somebody did."""
        point, passes = self.plan_a_death()
        for place in self.places():
            self.ledger.set_of(place, tasks.PLAN, point << 32 | passes)
        deadline = time.monotonic() + AT_A_POINT
        while not (buried := self.bury()) and time.monotonic() < deadline and self.is_to_go_on():
            time.sleep(LOOK_INTERVAL)
        for place in range(tasks.PLACES):
            self.ledger.set_of(place, tasks.PLAN, 0)
        buried += self.bury()
        for place, pid in buried:
            self.wait_for_successor(place, pid)
        return bool(buried)


def concerned(names):
    return [
        number for number, name in enumerate(names) if name.startswith(POINTS) and name not in RARE
    ]


def missed(points, counts):
    """The points where nobody has died."""
    return [number for number in points if not counts[number][1]]


# ---- Who has work ------------------------------------------------------------------------------


class Caller:
    """A thread that has a pool do one call after the other, and checks what comes."""

    def __init__(self, storm, number):
        self.storm, self.ledger = storm, storm.ledger
        self.first = self.next = number * EACH
        self.retried = {}  # number of a task: how often it may be done again
        self.tally = collections.Counter()
        self.lost = []  # (pid, exit code, when, number of the task or None)
        self.call = None  # (what, since when)
        self.error = None

    # -- What there is to do --

    def specs(self, count, whats=(), *, large=False, retries=0):
        """So many tasks, of which some are not as the others."""
        all_whats = [*whats, *["work"] * (count - len(whats))]
        random.shuffle(all_whats)
        specs = []
        for what in all_whats:
            sent = returned = 0
            if large:
                goes, comes = random.choice([(1, 0), (0, 1), (1, 1)])
                sent = goes * random.randrange(100_000, 500_000)
                returned = comes * random.randrange(100_000, 500_000)
            else:
                sent, returned = random.choice([8, 80, 800, 5_000]), random.choice([8, 80, 3_000])
            specs.append(tasks.make_spec(self.next, what, sent, returned))
            if retries:
                self.retried[self.next] = retries
            self.next += 1
        self.tally["tasks"] += count
        return specs

    def some(self):
        """Tasks of one call; now and then with one that ends its worker, or raises."""
        what = random.choice([*EXITCODES, "raise", "raise", "grow"])
        if random.random() < 0.2:
            return self.specs(random.randint(4, 10), large=True)
        return self.specs(random.randint(20, 80), [what] if random.random() < 0.15 else [])

    def run(self, pool):
        kinds = [
            self.map_by_one, self.map, self.starmap, self.imap, self.imap_unordered,
            self.imap_ahead, self.imap_chunks, self.apply, self.apply_async, self.map_async,
            self.retry, self.time_out, self.time_out_in_map, self.cancel,
        ]  # fmt: skip
        while not self.storm.is_over and self.error is None:
            kind = random.choice(kinds)
            self.call = kind.__name__, time.monotonic()
            kind(pool)
            self.tally["calls"] += 1
        self.call = None

    def run_in_thread(self, pool):
        try:
            self.run(pool)
        except (Failure, Torn) as failure:
            self.error = str(failure)
        except BaseException:
            self.error = f"{self.call} has raised\n{traceback.format_exc()}"

    # -- Calls whose tasks have one result in all --

    def whole(self, specs, function, *args, **names):
        try:
            values = function(*args, **names)
        except Exception as error:
            self.check_error(error, specs, time.monotonic_ns())
            return
        if len(values) != len(specs):
            raise Failure(f"{len(values)} results of {len(specs)} tasks")
        for value, spec in zip(values, specs, strict=True):
            self.check_value(value, spec)

    def map_by_one(self, pool):
        specs = self.some()
        self.whole(specs, pool.map, tasks.do, specs, 1)

    def map(self, pool):
        specs = self.some()
        self.whole(specs, pool.map, tasks.do, specs)

    def starmap(self, pool):
        specs = self.some()
        self.whole(specs, pool.starmap, tasks.do_star, specs, random.choice([1, 3, None]))

    def map_async(self, pool):
        specs, others = self.some(), self.some()
        told = []
        callbacks = {"callback": told.append, "error_callback": told.append}
        first = pool.map_async(tasks.do, specs, 1, **callbacks)
        second = pool.map_async(tasks.do, others)
        self.whole(specs, first.get)
        if len(told) != 1:
            raise Failure(f"callbacks were called {len(told)} times when get() has returned")
        self.whole(others, second.get)

    def retry(self, pool):
        specs = self.specs(random.randint(20, 60), retries=3, large=random.random() < 0.3)
        self.whole(specs, pool.map, tasks.do, specs, random.choice([1, 4]), retries=3)
        (spec,) = self.specs(1, ["exit"], retries=1)
        self.one(spec, pool.apply, tasks.do, (spec,), retries=1)

    def imap_chunks(self, pool):
        specs = self.some()
        self.whole(specs, lambda: list(pool.imap(tasks.do, specs, 5)))

    def time_out_in_map(self, pool):
        specs = self.specs(20, ["block"])
        self.whole(specs, pool.map, tasks.do, specs, 1, timeout=BLOCKED)

    # -- Calls with a result of each task --

    def one(self, spec, function, *args, **names):
        try:
            value = function(*args, **names)
        except Exception as error:
            self.check_error(error, [spec], time.monotonic_ns())
        else:
            self.check_value(value, spec)

    def imap(self, pool):
        specs = self.some()
        results = pool.imap(tasks.do, specs)
        for spec in specs:
            self.one(spec, next, results)
        self.check_end(results)

    def imap_ahead(self, pool):
        specs = self.some()
        results = pool.imap(tasks.do, iter(specs), buffersize=random.randint(1, 20))
        for spec in specs:
            self.one(spec, next, results)
        self.check_end(results)

    def check_end(self, results):
        if (more := next(results, None)) is not None:
            raise Failure(f"an iterator has one more result: {more[0]}")

    def imap_unordered(self, pool):
        specs = self.some()
        left = {spec[0]: spec for spec in specs}
        results = pool.imap_unordered(tasks.do, specs)
        for _ in specs:
            try:
                value = next(results)
            except Exception as error:
                now = time.monotonic_ns()
                number = self.number_of(error, specs)
                self.check_error(error, [left.pop(number)], now)
            else:
                self.check_value(value, left.pop(value[0]))
        self.check_end(results)

    def number_of(self, error, specs):
        """Which task has failed; with a KeyError by who asks, if that one has an end already."""
        if isinstance(error, Raised):
            return error.number
        if isinstance(error, WorkerLostError):
            found = re.match(r"task (\d+) of do$", error.task)
            return specs[int(found[1]) if found else 0][0]
        return next(spec[0] for spec in specs if spec[1] == "grow")

    def apply(self, pool):
        for spec in self.specs(3, random.choice([[], ["exit"], ["raise"]])):
            self.one(spec, pool.apply, tasks.do, (spec,))

    def apply_async(self, pool):
        specs = self.some()
        results = [pool.apply_async(tasks.do, (spec,)) for spec in specs]
        for spec, result in zip(specs, results, strict=True):
            self.one(spec, result.get)

    def time_out(self, pool):
        specs = self.specs(12, ["block", "block"])
        limits = [BLOCKED if spec[1] == "block" else LONG for spec in specs]
        results = [
            pool.apply_async(tasks.do, (spec,), timeout=limit)
            for spec, limit in zip(specs, limits, strict=True)
        ]
        for spec, result in zip(specs, results, strict=True):
            self.one(spec, result.get)

    def cancel(self, pool):
        specs = self.specs(12, ["block", "block"])
        results = [pool.apply_async(tasks.do, (spec,)) for spec in specs]
        time.sleep(random.uniform(0, 0.003))
        pairs = list(zip(specs, results, strict=True))
        cancelled = [spec[1] == "block" and result.cancel() for spec, result in pairs]
        for spec, result, was_cancelled in zip(specs, results, cancelled, strict=True):
            try:
                self.one(spec, result.get)
            except concurrent.futures.CancelledError:
                pass
            if was_cancelled != result.cancelled():
                raise Failure(f"task {spec[0]} is cancelled, or is not: {was_cancelled}")

    # -- What came --

    def check_value(self, value, spec):
        number, what = spec[:2]
        tasks.check_value(value, number)
        if what != "work":
            raise Failure(f"task {number}, which was to {what}, has a result")
        if not self.ledger.done[number]:
            raise Failure(f"task {number} has a result, but was not done")
        self.tally["results"] += 1

    def check_error(self, error, specs, now):
        """One of these tasks has ended so."""
        whats = {spec[1] for spec in specs}
        number = specs[0][0] if len(specs) == 1 else None
        if isinstance(error, WorkerLostError):
            if error.exitcode not in {-signal.SIGKILL, *(EXITCODES.get(what) for what in whats)}:
                raise Failure(f"a task of {whats} has {error!r}")
            self.lost.append((error.pid, error.exitcode, now, number))
            kind = "lost"
        elif isinstance(error, Raised):
            if error.number not in {spec[0] for spec in specs if spec[1] == "raise"}:
                raise Failure(f"the error of task {error.number} is that of {specs[0][0]}")
            kind = "raised"
        elif isinstance(error, TaskTimeoutError) and "block" in whats:
            kind = "timed out"
        elif isinstance(error, MemoryError) and "grow" in whats:
            kind = "out of memory"
        elif isinstance(error, concurrent.futures.CancelledError) and "block" in whats:
            kind = "cancelled"
        else:
            raise Failure(f"tasks {specs[0][0]} and on, {whats}, have failed: {error!r}") from error
        self.tally[kind] += 1

    # -- In the end --

    def check_marks(self):
        for number in range(self.first, self.next):
            times = self.ledger.begun[number]
            if times > 1 + self.retried.get(number, 0):
                raise Failure(f"task {number} was begun {times} times")


# ---- The storm ---------------------------------------------------------------------------------


class Storm:
    def __init__(self, method, patience, path, kills):
        self.ctx = mproc_ext.get_context(method)
        self.method, self.patience, self.path, self.kills = method, patience, path, kills
        self.core = tasks.core_of_storm()
        self.points = self.core.kill_points() if self.core else ()
        self.concerned = concerned(self.points)
        self.ledger = Ledger(path, len(self.points))
        self.callers = [Caller(self, number) for number in range(tasks.THREADS)]
        self.killer = None
        self.is_over = False  # for the calls of this pool
        self.pools = 0

    def killed(self):
        return self.ledger.get(tasks.LOGGED)

    def blow(self):
        began = time.monotonic()
        self.ledger.set(tasks.PAUSE, 1)
        self.start_killer()
        try:
            self.watch()
            self.warm_up()
            before = self.belongings()
            while self.goes_on():
                self.use_a_pool()
                self.check_belongings(before)
        finally:
            self.stop_killer()
        self.check_ledger()
        self.seconds = time.monotonic() - began

    def goes_on(self):
        """Until so many have died; and up to as many again, until somebody has at each point."""
        killed = self.killed()
        if killed < self.kills or self.kills < THOROUGH:
            return killed < self.kills
        return killed < 2 * self.kills and bool(
            missed(self.concerned, self.ledger.passes_and_kills())
        )

    def watch(self):
        """Ends this program, too, when it waits for the dead where no other thread can run."""
        faulthandler.dump_traceback_later(2 * self.patience + 5, exit=True, file=sys.stdout)

    def start_killer(self):
        pause = 0.004 if self.method == "fork" else 0.1
        parent, self.killer = os.getpid(), os.fork()
        if self.killer == 0:
            random.seed(random.random())
            try:
                Killer(self.ledger, self.core, self.kills, pause, parent, self.method).run()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)

    def stop_killer(self):
        self.ledger.set(tasks.STOP, 1)
        if os.waitpid(self.killer, 0)[1]:
            raise Failure("who kills has failed")

    # -- A pool --

    def make_pool(self, count, most=None):
        for place in range(tasks.PLACES):
            for field in (tasks.STARTED, tasks.PID, tasks.PLAN):
                self.ledger.set_of(place, field, 0)
        self.ledger.set(tasks.WORKERS, count)
        return Pool(count, tasks.begin, (self.path, len(self.points)), most, self.ctx)

    def warm_up(self):
        """What is made once is made now."""
        pool = self.make_pool(2)
        caller = self.callers[0]
        self.check_usable(pool, caller)
        pool.terminate()
        pool.join()
        del pool
        gc.collect()

    def use_a_pool(self):
        self.pools += 1
        self.pause(False)
        pool = self.make_pool(random.randint(2, tasks.PLACES), random.choice([None, None, 25]))
        killed = self.killed()
        until = killed + OF_A_POOL if killed >= self.kills else min(killed + OF_A_POOL, self.kills)
        self.is_over = False
        callers = self.callers[: random.randint(1, len(self.callers))]
        threads = [
            threading.Thread(target=caller.run_in_thread, args=(pool,), daemon=True)
            for caller in callers
        ]
        for thread in threads:
            thread.start()
        seen, since = self.killed(), time.monotonic()
        while self.killed() < until:
            time.sleep(0.01)
            self.watch()
            self.look_at(callers)
            if self.killed() > seen:
                seen, since = self.killed(), time.monotonic()
            if time.monotonic() - since > self.patience:
                raise Failure(f"nobody is left to be killed, after {seen} kills")
        self.is_over = True
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.001)
            self.look_at(callers)
        self.pause(True)
        self.watch()
        self.check_usable(pool, callers[0])
        self.end(pool)

    def look_at(self, callers):
        for caller in callers:
            if caller.error is not None:
                raise Failure(caller.error)
            call = caller.call
            if call is not None and time.monotonic() - call[1] > self.patience:
                raise Failure(
                    f"{call[0]}() has not ended for {self.patience:g} s, after {self.killed()} "
                    f"kills"
                )

    def pause(self, is_to):
        self.ledger.set(tasks.PAUSE, int(is_to))
        deadline = time.monotonic() + self.patience
        while self.ledger.get(tasks.PAUSED) != is_to:
            if time.monotonic() > deadline:
                raise Failure("who kills does not pause")
            time.sleep(LOOK_INTERVAL)

    def check_usable(self, pool, caller):
        """Nobody is killed any more, and nothing is lost."""
        before = len(caller.lost)
        specs = caller.specs(40)
        caller.whole(specs, pool.map_async(tasks.do, specs, 1).get, self.patience)
        if len(caller.lost) != before:
            raise Failure("a call has failed, and nobody was killed")

    def end(self, pool):
        how = random.choice(["close", "terminate", "with"])
        began = time.monotonic()
        if how == "with":
            with pool:
                pass
        else:
            getattr(pool, how)()
        pool.join()
        if time.monotonic() - began > self.patience:
            raise Failure(f"the end of a pool by {how} took {time.monotonic() - began:.1f} s")

    # -- What is left --

    def belongings(self):
        """(shared memory, descriptors, children) of this process."""
        gc.collect()
        children = []
        for name in os.listdir("/proc"):
            if name.isdigit() and is_child(name, os.getpid()):
                children.append(int(name))
        return (
            sys.modules["mproc_ext._core"].heap_stats()["owned"],
            len(os.listdir("/proc/self/fd")),
            sorted(children),
        )

    def check_belongings(self, before):
        self.watch()
        if (now := self.belongings()) != before:
            raise Failure(f"{before} bytes, descriptors and children were there before, now {now}")

    def check_ledger(self):
        self.watch()
        died = collections.defaultdict(list)
        for pid, when in self.ledger.deaths():
            died[pid].append(when)
        lost = [each for caller in self.callers for each in caller.lost]
        self.waits = []
        by_pid = collections.Counter()
        for pid, exitcode, when, number in lost:
            if exitcode == -signal.SIGKILL:
                by_pid[pid] += 1
                if by_pid[pid] > len(died[pid]):
                    raise Failure(f"{by_pid[pid]} tasks are lost with {pid}: {died[pid]}")
                # A process may get the number of one that died before.
                self.waits.append(min(abs(when - each) for each in died[pid]) / 1e9)
            elif number is not None:
                self.waits.append((when - self.ledger.died_at[number]) / 1e9)
        for caller in self.callers:
            caller.check_marks()
        self.tally = sum((caller.tally for caller in self.callers), collections.Counter())
        if max(self.waits, default=0) > AT_MOST:
            raise Failure(f"a call has ended {max(self.waits):.1f} s after the kill")
        if not self.tally["results"] or not self.waits:
            raise Failure("there are no results, or nothing was lost")


def print_table(storm):
    counts = storm.ledger.passes_and_kills()
    for number, (passes, kills) in enumerate(counts):
        if number in storm.concerned or passes:
            print(f"  {storm.points[number]:24} {passes:12} passes {kills:6} kills")
    return [storm.points[number] for number in missed(storm.concerned, counts)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int)
    parser.add_argument("--method", default="fork")
    parser.add_argument("--patience", type=float, default=20, help="seconds until it is a hang")
    parser.add_argument("--unnoticed", action="store_true", help="the pool notices no death")
    options = parser.parse_args()
    seed = int(os.environ.get("MPROC_EXT_STORM_SEED", os.getpid()))
    random.seed(seed)
    if options.unnoticed:
        _engine.Crew._maintain = lambda self: None
    with tempfile.NamedTemporaryFile() as file:
        storm = Storm(options.method, options.patience, file.name, options.kills)
        try:
            storm.blow()
        except (Failure, Torn) as failure:
            print(f"Pool: {failure} (MPROC_EXT_STORM_SEED={seed})", flush=True)
            # Threads may hang, and the pool with them.
            os._exit(1)
        points = print_table(storm)
    tally = storm.tally
    print(
        f"Pool, {options.method}: {storm.killed()} kills, {storm.ledger.get(tasks.AT_POINTS)} at "
        f"points in the core, of {storm.pools} pools, in {storm.seconds:.1f} s; "
        f"{tally['calls']} calls, {tally['tasks']} tasks, {tally['results']} results, "
        f"{tally['lost']} lost, {tally['timed out']} timed out, {tally['cancelled']} cancelled, "
        f"{tally['raised'] + tally['out of memory']} raised; from a kill to the end of the call "
        f"{statistics.median(storm.waits) * 1000:.1f} ms, at most {max(storm.waits) * 1000:.1f} ms"
    )
    if points and options.kills >= THOROUGH:
        print(f"Pool: nobody died at {', '.join(points)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
