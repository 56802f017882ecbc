"""What the storm of a pool shares: the ledger, and the tasks that the workers do."""

import ctypes
import mmap
import os
import random
import resource
import signal
import sys
import time
import zlib

from mproc_ext import pool as pools

PLACES = 4  # workers at most
EACH = 2**23  # numbers of tasks of one thread
THREADS = 2
TASKS = EACH * THREADS
DEATHS = 2**16  # that the log has room for
WORD = 8
ROW = 64  # what different processes write is a cache line apart

# Words of the first row, and of those of the workers.
STOP, PAUSE, PAUSED, WORKERS, LOGGED, AT_POINTS = range(6)
STARTED, PID, PLAN, DIED_AT, DIED = range(5)

EXITCODES = {
    "exit": 3,
    "sys.exit": 4,
    "segfault": -signal.SIGSEGV,
    "abort": -signal.SIGABRT,
}


class Torn(Exception):
    pass


class Raised(Exception):
    """What a task raises that is to raise."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


class Ledger:
    """Numbers and marks that all processes share, each written by one of them at a time."""

    def __init__(self, path, points=0):
        self._points = points
        self.counts_at = ROW * (1 + PLACES)
        log_at = self.counts_at + points * 2 * WORD
        died_at = log_at + DEATHS * 2 * WORD
        marks_at = died_at + TASKS * WORD
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), marks_at + 2 * TASKS)
            self.map = mmap.mmap(file.fileno(), 0)
        view = memoryview(self.map)
        self._words = view[:log_at].cast("q")
        self._log = view[log_at:died_at].cast("q")
        # Of each task: when it has killed its worker; how often it was begun, and done.
        self.died_at = view[died_at:marks_at].cast("q")
        self.begun = view[marks_at : marks_at + TASKS]
        self.done = view[marks_at + TASKS :]

    def get(self, field):
        return self._words[field]

    def set(self, field, value):
        self._words[field] = value

    def _at(self, place, field):
        return (1 + place) * ROW // WORD + field

    def of(self, place, field):
        return self._words[self._at(place, field)]

    def set_of(self, place, field, value):
        self._words[self._at(place, field)] = value

    def enrol(self, core, place):
        plan, note = self._at(place, PLAN) * WORD, self._at(place, DIED_AT) * WORD
        core.kill_points_enrol(self.map, self.counts_at, plan, note)

    def log(self, pid, when):
        count = self.get(LOGGED)
        self._log[2 * count], self._log[2 * count + 1] = pid, when
        self.set(LOGGED, count + 1)

    def deaths(self):
        """(pid, when) of all that the storm has killed."""
        return [(self._log[2 * n], self._log[2 * n + 1]) for n in range(self.get(LOGGED))]

    def passes_and_kills(self):
        first = self.counts_at // WORD
        return [
            (self._words[first + 2 * point], self._words[first + 2 * point + 1])
            for point in range(self._points)
        ]


def core_of_storm():
    """The core, if it can be told where to die."""
    core = sys.modules.get("mproc_ext._core")
    return core if hasattr(core, "kill_points") else None


# ---- In the workers ----------------------------------------------------------------------------

_ledger = None
_is_enrolled = False


def begin(path, points):
    """The initializer."""
    global _ledger, _is_enrolled
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    random.seed()
    _ledger, _is_enrolled = Ledger(path, points), False
    _ledger.set_of(pools.current_worker().id, STARTED, os.getpid())


def _enrol():
    """With the first task: a pool whose workers die before that again and again is to break."""
    global _is_enrolled
    if not _is_enrolled:
        _is_enrolled = True
        place, core = pools.current_worker().id, core_of_storm()
        _ledger.set_of(place, PID, os.getpid())
        if core:
            _ledger.enrol(core, place)


def _spin(seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pass


def _die(what):
    if what == "exit":
        os._exit(EXITCODES[what])
    elif what == "sys.exit":
        sys.exit(EXITCODES[what])
    elif what == "segfault":
        ctypes.string_at(0)
    else:
        os.abort()


def _grow():
    """Allocates until there is no more."""
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, hard))
    blocks = []
    try:
        while True:
            blocks.append(bytearray(5_000_000))
    finally:
        blocks.clear()
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def make_spec(number, what, sent, returned):
    body = number.to_bytes(8, "little") * (sent // 8)
    return number, what, zlib.crc32(body), body, returned


def do(spec):
    number, what, crc, body, returned = spec
    _enrol()
    _ledger.begun[number] += 1
    if zlib.crc32(body) != crc:
        raise Torn(f"what task {number} was given is torn")
    if what in EXITCODES:
        _ledger.died_at[number] = time.monotonic_ns()
        _die(what)
    elif what == "raise":
        raise Raised(number)
    elif what == "grow":
        _grow()
    elif what == "block":
        time.sleep(10_000)
    else:
        _spin(random.uniform(0, 0.0003))
    body = number.to_bytes(8, "little") * (returned // 8)
    _ledger.done[number] += 1
    return number, zlib.crc32(body), body


def do_star(*spec):
    return do(spec)


def check_value(value, number):
    got, crc, body = value
    if got != number:
        raise Torn(f"task {number} has the result of {got}")
    if zlib.crc32(body) != crc or (body and int.from_bytes(body[:8], "little") != number):
        raise Torn(f"the result of task {number} is torn")
