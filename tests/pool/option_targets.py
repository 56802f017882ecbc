"""What the tests of options run in workers: importable by name under every start method."""

import os
import signal
import sys
import time

from pool_targets import note

from mproc_ext.pool import current_worker

MEGABYTE = 1 << 20


def sleep_at(x, which):
    """One of the items takes for ever."""
    while x == which:
        time.sleep(0.1)
    return x


def sleep_at_three(x):
    return sleep_at(x, 3)


def note_and_sleep_at_three(path, x):
    note(path, str(x))
    return sleep_at(x, 3)


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def note_then_wait_for(path, word, other):
    """Says that it has begun, then waits for a file."""
    note(path, word)
    while not os.path.exists(other):
        time.sleep(0.001)
    return word


def die_at_first(path, x, times=1):
    """The first calls with this item kill their worker; the file says how often it was called."""
    mine = f"{path}-{x}"
    note(mine)
    with open(mine) as file:
        calls = len(file.readlines())
    if calls <= times:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(120)
    return x


def die_with(path, x, payload):
    die_at_first(path, x)
    return len(payload)


def worker_id(*_):
    return current_worker().id


def count(*_):
    """How often this worker was here."""
    state = current_worker().state
    state["count"] = state.get("count", 0) + 1
    return os.getpid(), state["count"]


def id_of_a_forked_child(*_):
    """What a child of a worker takes itself for."""
    read, write = os.pipe()
    if (pid := os.fork()) == 0:
        os.write(write, repr(current_worker()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 100).decode()


def set_state(value):
    current_worker().state["value"] = value


def get_state(*_):
    return current_worker().state["value"]


def affinity(*_):
    return current_worker().id, os.sched_getaffinity(0)


initial = None


def keep_affinity():
    global initial
    initial = os.sched_getaffinity(0)


def kept_affinity(*_):
    return current_worker().id, initial


def allocate(megabytes):
    """Has them at once; they are given back after the task."""
    return len(bytearray(megabytes * MEGABYTE))


kept = []


def allocate_and_keep(megabytes):
    kept.append(b"x" * (megabytes * MEGABYTE))
    return os.getpid()


def allocate_for_ever(*_):
    """Until it is killed; not so fast that the machine has none left before somebody looks."""
    while True:
        kept.append(b"x" * MEGABYTE)
        time.sleep(0.005)


def allocate_at_three(x):
    return allocate_for_ever() if x == 3 else x


class NoteAtExit:
    """A worker_exit."""

    def __init__(self, path, then=None):
        self.path = path
        self.then = then

    def __call__(self):
        note(self.path, f"{current_worker().id}-{os.getpid()}")
        if self.then == "raise":
            raise ValueError("the exit hook failed")
        if self.then == "exit":
            sys.exit(3)


def fail_at_odd(x):
    if x % 2:
        raise ValueError(f"item {x}")
    return x
