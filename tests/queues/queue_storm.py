"""Kill the processes that use a queue, over and over: queue_storm.py KILLS; see --help.

Three producers and three consumers use one queue as fast as they can, with messages of 1 byte to
8 MB.  Again and again one is killed, at random or, in a core that was built with
MPROC_EXT_KILL_POINTS=1, at points in the middle of what the core does, and replaced once the others
have got on without it.  Every message has a number and a checksum, and a ledger says which were put
and which were got.

With --on-death the queue counts as done what the dead had taken, and one more worker joins it,
again and again; in the end join() has to return.

With --many they are put and got several at a time, and that many may be lost with a consumer.

With --zero-copy most messages are lent.  Consumers keep some, write to them, and look later whether
anybody else did.

Ends with a table of the points, a line of figures and status 0; with 1 and a line that says why,
where one does not get on for so many seconds, where a message is torn, comes twice or out of its
producer's order, where more are lost than consumers were killed, where shared memory is lost, and,
where nobody has died at one of the points after THOROUGH kills, and up to as many again.
"""

import argparse
import faulthandler
import importlib
import itertools
import mmap
import os
import pickle
import random
import signal
import sys
import tempfile
import threading
import time
import zlib
from multiprocessing import connection

import mproc_ext

THOROUGH = 3_000
PRODUCERS, CONSUMERS, JOINERS = 3, 3, 1  # joiners only with --on-death
TAKERS = range(PRODUCERS, PRODUCERS + CONSUMERS)
WORKERS = PRODUCERS + CONSUMERS + JOINERS
EACH = 10_000_000  # numbers of messages of one producer, its successors' included
SIZES = [1, 10, 100, 1_000, 10_000, 60_000, 70_000, 300_000, 2_000_000, 8_000_000]
WEIGHTS = [50, 50, 50, 30, 10, 5, 5, 2, 1, 0.5]
LENT_SIZES = [1_000, 70_000, 300_000, 1_000_000]
BACKLOG = 300  # messages at which producers pause
NEVER_REACHED = 2**40  # bytes: but they are counted
LENT_BACKLOG = 30
SEVERAL = 8  # at most, with --many
KEPT = 3  # of what a consumer has on loan
ANY_POINT = 2**31 - 1
LOOK_INTERVAL = 0.0003
AT_A_POINT = 0.05  # seconds that a plan has to come true
CLEARED_UP = 0.3  # and its second part, once the first one has
POINTS = ("ring_", "heap_", "mutex_", "owned_")
POINTS_ON_DEATH = ("ring_", "mutex_")
LENT_POINTS = ("lease_", "slot_taken", "slot_held", "slot_dropped", "slot_freed")
# Passed once, when the heap grows, or when a mutex is slept for: tests/c kills there.
RARE = (
    "ring_shut", "ring_watching", "heap_entry", "heap_extent", "heap_extended", "owned_waiting",
    "owned_awake",
)  # fmt: skip
# What is lent is in no segment, and no mutex is held while it is copied, so there are few of these:
# the other storm is for them.
LENT_RARE = tuple(
    "ring_left ring_left_freed ring_leave_noted ring_settled_leave ring_linked ring_link_last "
    "ring_link_given ring_link_noted ring_settled_link".split()
)

# Of queues that count who has taken what.
ON_DEATH = (
    "ring_taker_made", "ring_count_noted", "ring_counted", "ring_finish_counted",
    "ring_settled_count", "ring_burying", "ring_buried",
)  # fmt: skip

# What is passed when somebody has died there, who was one of these.
AFTER = {
    "ring_settled_take": ("ring_take_noted", TAKERS),
    "ring_settled_leave": ("ring_leave_noted", TAKERS),
    "ring_settled_gift": ("ring_gift_noted", range(PRODUCERS)),
    "ring_settled_link": ("ring_link_noted", range(PRODUCERS)),
}
AFTER_ON_DEATH = {"ring_settled_count": ("ring_count_noted", TAKERS)}

# Rows of eight words, one of each worker: what different processes write is a cache line apart.
TURNS, NEXT, PLAN = range(3)
ROW, WORD = 64, 8
PUT, GOT = 1, 1


class Failure(Exception):
    pass


class Ledger:
    """Numbers and marks that all processes share, each written by one of them at a time."""

    def __init__(self, path, points=0):
        self.counts_at = ROW * WORKERS
        self.marks_at = self.counts_at + points * 2 * WORD
        messages = EACH * PRODUCERS
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), self.marks_at + messages * (1 + CONSUMERS))
            self.map = mmap.mmap(file.fileno(), 0)
        view = memoryview(self.map)
        self._words = view[: self.marks_at].cast("q")
        self.put = view[self.marks_at : self.marks_at + messages]
        self.got = [
            view[self.marks_at + messages * (1 + n) : self.marks_at + messages * (2 + n)]
            for n in range(CONSUMERS)
        ]
        self._points = points

    def of(self, worker, field):
        return self._words[worker * ROW // WORD + field]

    def set_of(self, worker, field, value):
        self._words[worker * ROW // WORD + field] = value

    def add_to(self, worker, field):
        self._words[worker * ROW // WORD + field] += 1

    def plan_at(self, worker):
        return worker * ROW + PLAN * WORD

    def passes_and_kills(self):
        first = self.counts_at // WORD
        return [
            (self._words[first + 2 * point], self._words[first + 2 * point + 1])
            for point in range(self._points)
        ]


def core_of(package):
    """The core, if it can be told where to die."""
    core = sys.modules.get("mproc_ext._core") if package == "mproc_ext" else None
    return core if hasattr(core, "kill_points") else None


# ---- The workers -------------------------------------------------------------------------------


def message(number):
    size = random.choices(SIZES, WEIGHTS)[0]
    body = number.to_bytes(8, "little") * (size // 8 + 1)
    if random.random() < 0.5:
        return number, zlib.crc32(body), body
    return {"number": number, "crc": zlib.crc32(body), "body": body, "rest": [number, None, 1.5]}


class Lent:
    """What a consumer gets on loan."""

    def __init__(self, number, crc, body):
        self.number, self.crc, self.body = number, crc, body

    def __reduce_ex__(self, protocol):
        return Lent, (self.number, self.crc, pickle.PickleBuffer(self.body))

    def stamp(self, mark):
        self.body[:] = mark.to_bytes(8, "little") * (len(self.body) // 8)
        self.mark = mark

    def check_stamp(self):
        if self.body != self.mark.to_bytes(8, "little") * (len(self.body) // 8):
            raise Failure(f"somebody has written to message {self.number}, which is on loan")


def lent_message(number):
    if random.random() < 0.3:
        return message(number)
    body = bytearray(number.to_bytes(8, "little") * (random.choice(LENT_SIZES) // 8))
    return Lent(number, zlib.crc32(body), body)


def check_message(got):
    if type(got) is Lent:
        number, crc, body = got.number, got.crc, got.body
    else:
        number, crc, body = got[:3] if type(got) is tuple else list(got.values())[:3]
    if zlib.crc32(body) != crc or int.from_bytes(body[:8], "little") != number:
        raise Failure(f"message {number} is torn")
    return number


def produce(queue, ledger, worker, many):
    lends = getattr(getattr(queue, "_channel", None), "_zero_copy", False)
    make, backlog = (lent_message, LENT_BACKLOG) if lends else (message, BACKLOG)
    while True:
        if queue.qsize() > backlog:
            time.sleep(0.0005)
        else:
            count = random.randint(1, SEVERAL) if many else 1
            first = ledger.of(worker, NEXT)
            ledger.set_of(worker, NEXT, first + count)
            numbers = [worker * EACH + first + n for n in range(count)]
            if many:
                queue.put_many([make(number) for number in numbers])
            else:
                queue.put(make(*numbers))
            for number in numbers:
                ledger.put[number] = PUT
        ledger.add_to(worker, TURNS)


def things_of(queue, many):
    while True:
        if random.random() < 0.01:
            connection.wait([queue._reader])
            mproc_ext.Queue()
        yield from queue.get_many(random.randint(1, SEVERAL)) if many else [queue.get()]


def consume(queue, ledger, worker, many):
    got = ledger.got[worker - PRODUCERS]
    last, kept = {}, []
    for thing in things_of(queue, many):
        number = check_message(thing)
        if type(thing) is Lent:
            thing.stamp(worker * EACH + number)
            kept.append(thing)
        if len(kept) > KEPT:
            kept.pop(random.randrange(len(kept))).check_stamp()
        del thing
        producer = number // EACH
        if last.get(producer, -1) >= number:
            raise Failure(f"message {number} came after {last[producer]}")
        last[producer] = number
        if got[number] == 255:
            raise Failure(f"message {number} came again and again")
        got[number] += GOT
        queue.task_done()
        ledger.add_to(worker, TURNS)


def join(queue, ledger, worker, many):
    while True:
        queue.join()
        ledger.add_to(worker, TURNS)
        time.sleep(0.001)


def run_worker(queue, worker, path, package, many):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    random.seed()
    core = core_of(package)
    ledger = Ledger(path, len(core.kill_points()) if core else 0)
    if core:
        core.kill_points_enrol(ledger.map, ledger.counts_at, ledger.plan_at(worker))
    work = produce if worker < PRODUCERS else consume if worker in TAKERS else join
    work(queue, ledger, worker, many)


# ---- The killing -------------------------------------------------------------------------------


class Storm:
    def __init__(
        self, method, package, patience, path, *, on_death=False, zero_copy=False, many=False
    ):
        self.ctx = importlib.import_module(package).get_context(method)
        self.package, self.patience, self.path = package, patience, path
        core = core_of(package)
        self.points = core.kill_points() if core else ()
        points = POINTS_ON_DEATH if on_death else POINTS + LENT_POINTS if zero_copy else POINTS
        left_out = RARE if on_death else RARE + ON_DEATH
        if zero_copy:
            left_out += LENT_RARE
        self.concerned = [
            number
            for number, name in enumerate(self.points)
            if name.startswith(points) and name not in left_out
        ]
        self.after = AFTER | AFTER_ON_DEATH if on_death else AFTER
        self.ledger = Ledger(path, len(self.points))
        self.on_death, self.many = on_death, many
        options = {"max_bytes": NEVER_REACHED} if package == "mproc_ext" else {}
        if on_death:
            options["on_death"] = "done"
        if zero_copy:
            options["zero_copy"] = True
        self.queue = self.ctx.JoinableQueue(**options)
        self.processes = [None] * (WORKERS if on_death else WORKERS - JOINERS)
        self.kills = self.of_consumers = self.at_points = 0
        self.is_late = False  # all are killed that were to be
        self.longest = 0.0

    def start(self, worker):
        self.ledger.set_of(worker, PLAN, 0)
        self.processes[worker] = self.ctx.Process(
            target=run_worker,
            args=(self.queue, worker, self.path, self.package, self.many),
            daemon=True,
        )
        self.processes[worker].start()

    def bury(self):
        """Count those that have died, and forget them; how many are missing."""
        for worker, process in enumerate(self.processes):
            if process is not None and process.exitcode is not None:
                if process.exitcode != -signal.SIGKILL:
                    raise Failure(f"worker {worker} ended with {process.exitcode}")
                self.processes[worker] = None
                self.kills += 1
                self.of_consumers += worker in TAKERS
        return self.processes.count(None)

    def kill(self, worker):
        self.processes[worker].kill()
        self.processes[worker].join()

    def turns(self):
        return [self.ledger.of(worker, TURNS) for worker in range(WORKERS)]

    def wait_for_turns(self):
        """Until a producer and a consumer have got on, as long as there is one of each left."""
        before, began = self.turns(), time.monotonic()

        def has_got_on(workers):
            living = [n for n in workers if self.processes[n] is not None]
            now = self.turns()
            return not living or any(now[n] != before[n] for n in living)

        def has_nothing_to_get():
            return self.processes[:PRODUCERS].count(None) == PRODUCERS and self.queue.empty()

        while not (has_got_on(range(PRODUCERS)) and (has_got_on(TAKERS) or has_nothing_to_get())):
            if time.monotonic() - began > self.patience:
                living = [n for n, process in enumerate(self.processes) if process is not None]
                raise Failure(
                    f"no worker of {living} got on for {self.patience:g} s; turns {before}; "
                    f"{self.queue.qsize()} messages; after {self.kills} kills"
                )
            time.sleep(LOOK_INTERVAL)
            self.bury()
        self.longest = max(self.longest, time.monotonic() - began)

    def plan_a_death(self, counts):
        """The point and the pass at which somebody is to die: rare points as often as others."""
        if random.random() < 0.1:
            return ANY_POINT, random.randrange(1, 200)
        some = (self.is_late and self.missed(counts)) or random.sample(self.concerned, 3)
        number = min(some, key=lambda n: counts[n][1])
        often = counts[number][0] // (self.kills + 1)
        return number + 1, random.randrange(1, 2 + min(often, 30))

    def missed(self, counts):
        """The points that it is concerned with where nobody has died."""
        return [number for number in self.concerned if not counts[number][1]]

    def goes_on(self, kills):
        """Until so many have died; and up to as many again, until somebody has at each point."""
        if self.kills < max(kills, THOROUGH):
            return self.kills < kills
        return self.kills < 2 * kills and bool(self.missed(self.ledger.passes_and_kills()))

    def kill_at_a_point(self):
        """Who comes by first dies; perhaps others, before that is known.  Whether somebody did."""
        counts, before = self.ledger.passes_and_kills(), self.kills
        wanted = 1
        if random.random() < 0.2:
            # One dies, and then another one where it clears up after the first.
            wanted = 2
            second, (first, workers) = random.choice(list(self.after.items()))
            plans = [(self.points.index(second) + 1, 1)] * WORKERS
            plans[random.choice(workers)] = self.points.index(first) + 1, 1
        else:
            plans = [self.plan_a_death(counts)] * WORKERS
        for worker, (point, passes) in enumerate(plans):
            self.ledger.set_of(worker, PLAN, point << 32 | passes)
        deadline, dead = time.monotonic() + AT_A_POINT, 0
        while dead < wanted and time.monotonic() < deadline:
            time.sleep(LOOK_INTERVAL)
            if (seen := self.bury()) > dead:
                # Where the kernel does not say who has died, who waits for the lock looks for it.
                dead, deadline = seen, time.monotonic() + CLEARED_UP
        for worker in range(WORKERS):
            self.ledger.set_of(worker, PLAN, 0)
        self.bury()
        self.at_points += self.kills - before
        return self.kills > before

    def blow(self, kills):
        began = time.monotonic()
        try:
            for worker in range(len(self.processes)):
                self.start(worker)
            while self.goes_on(kills):
                self.is_late = self.kills >= kills
                self.watch()
                time.sleep(random.uniform(0, 0.004))
                if random.random() < 0.4 or not self.concerned or not self.kill_at_a_point():
                    self.kill(random.choice([n for n, p in enumerate(self.processes) if p]))
                self.bury()
                self.wait_for_turns()
                for worker, process in enumerate(self.processes):
                    if process is None:
                        self.start(worker)
            self.drain()
        finally:
            for process in self.processes:
                if process is not None:
                    process.kill()
                    process.join()
        self.check()
        self.seconds = time.monotonic() - began

    def watch(self):
        """Ends this program, too, when it waits for the dead: to start another it needs a lock."""
        faulthandler.dump_traceback_later(2 * self.patience + 5, exit=True, file=sys.stdout)

    # ---- The end -------------------------------------------------------------------------------

    def drain(self):
        self.watch()
        for worker in range(PRODUCERS):
            self.kill(worker)
        self.bury()
        deadline = time.monotonic() + self.patience
        while not self.queue.empty():
            if time.monotonic() > deadline:
                raise Failure(f"{self.queue.qsize()} messages are left")
            time.sleep(LOOK_INTERVAL)
        if self.on_death:
            self.join()

    def join(self):
        """The consumers are killed too, so all that they have taken is done."""
        for worker in TAKERS:
            if self.processes[worker] is not None:
                self.kill(worker)
        self.bury()
        task = threading.Thread(target=self.queue.join, daemon=True)
        task.start()
        task.join(self.patience)
        left = self.queue._unfinished_tasks.get_value()
        if task.is_alive() or left:
            raise Failure(f"join() does not return, or too early: {left} messages are unfinished")

    def check(self):
        self.watch()
        put = got = lost = 0
        numbers = [
            range(worker * EACH, worker * EACH + self.ledger.of(worker, NEXT))
            for worker in range(PRODUCERS)
        ]
        for number in itertools.chain(*numbers):
            was_put = self.ledger.put[number]
            times = sum(of_one[number] for of_one in self.ledger.got)
            if times > 1:
                raise Failure(f"message {number} came {times} times")
            put += was_put
            got += times
            lost += was_put and not times
        self.put, self.lost = put, lost
        # The last ones have taken their messages, but perhaps not said so.
        if lost > (self.of_consumers + CONSUMERS) * (SEVERAL if self.many else 1):
            raise Failure(f"{lost} messages are lost with {self.of_consumers} killed consumers")
        if got == 0:
            raise Failure("nothing came")
        if self.package == "mproc_ext":
            self.check_memory()

    def check_memory(self):
        """As much as of an empty queue that has never been used."""
        core = sys.modules["mproc_ext._core"]
        # Finishes what the last ones left half done, and takes the queue back to its first size.
        for _ in range(100):
            self.queue.put(bytes(10_000))
        for _ in range(100):
            self.queue.get()
        stats = self.queue.stats()
        if stats["size"] or stats["bytes"]:
            raise Failure(f"{stats} of a queue that is empty")
        used = core.heap_stats()["owned"]
        another = self.ctx.Queue()  # of the same size
        of_one = core.heap_stats()["owned"] - used
        del another
        if used != of_one:
            raise Failure(f"{used} bytes of shared memory are used, {of_one} of them by the queue")


def print_table(storm):
    counts = storm.ledger.passes_and_kills()
    for number, (passes, kills) in enumerate(counts):
        if number in storm.concerned or passes:
            print(f"  {storm.points[number]:24} {passes:12} passes {kills:6} kills")
    return [storm.points[number] for number in storm.missed(counts)]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("kills", type=int)
    parser.add_argument("--method", default="fork")
    parser.add_argument("--package", default="mproc_ext")
    parser.add_argument("--zero-copy", action="store_true")
    parser.add_argument("--many", action="store_true", help="put_many() and get_many()")
    parser.add_argument("--patience", type=float, default=20, help="seconds until it is a hang")
    parser.add_argument("--on-death", action="store_true", help="JoinableQueue(on_death='done')")
    options = parser.parse_args()
    seed = int(os.environ.get("MPROC_EXT_STORM_SEED", os.getpid()))
    random.seed(seed)
    with tempfile.NamedTemporaryFile() as file:
        storm = Storm(
            options.method,
            options.package,
            options.patience,
            file.name,
            on_death=options.on_death,
            zero_copy=options.zero_copy,
            many=options.many,
        )
        try:
            storm.blow(options.kills)
        except Failure as failure:
            print(f"Queue: {failure} (MPROC_EXT_STORM_SEED={seed})")
            return 1
        missed = print_table(storm)
    print(
        f"Queue, {options.method}: {storm.kills} kills, {storm.of_consumers} of consumers, "
        f"{storm.at_points} at points in the core, in {storm.seconds:.1f} s; {storm.put} messages, "
        f"{storm.lost} lost; longest wait {storm.longest * 1000:.1f} ms"
    )
    if missed and options.kills >= THOROUGH:
        print(f"Queue: nobody died at {', '.join(missed)}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
