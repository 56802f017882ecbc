"""What the tests of executors run in workers: importable by name under every start method."""

import concurrent.futures
import ctypes
import os
import signal
import sys
import time

from sync_helpers import LIMIT, wait_until

import mproc_ext
from mproc_ext.futures import ProcessPoolExecutor, current_worker


def square(x):
    return x * x


def pair(x, y):
    return x, y


def arguments(*args, **kwargs):
    return args, kwargs


def nothing(*_):
    pass


def size(data):
    return len(data)


def fail(kind, *args):
    raise kind(*args)


def stop_at(x, which):
    if x == which:
        raise StopIteration(x)
    return x


def note(path, line):
    with open(path, "a") as file:
        file.write(f"{line}\n")


def note_and_wait(path, gate):
    """Ends when there is a file `gate`."""
    note(path, os.getpid())
    wait_until(lambda: os.path.exists(gate), "the gate")
    return os.getpid()


def note_and_block(path):
    note(path, os.getpid())
    time.sleep(2 * LIMIT)


def die(how, *_):
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "exit":
        os._exit(3)
    elif how == "exit with 0":
        os._exit(0)
    elif how == "segfault":
        ctypes.string_at(0)


def die_at(x, which):
    if x == which:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def die_at_first(path, x):
    """Dies where it is the first to be here."""
    if not os.path.exists(path):
        note(path, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def fail_to_begin(*args):
    raise RuntimeError("not today", *args)


def worker_id(_=None):
    return current_worker().id, os.getpid()


def grow(megabytes):
    """Keeps them until the worker ends."""
    current_worker().state["kept"] = bytearray(megabytes << 20)
    return os.getpid()


def affinity(_):
    return current_worker().id, os.sched_getaffinity(0)


def nest(executor_of_stdlib):
    """An executor in a worker of an executor."""
    module = concurrent.futures if executor_of_stdlib else sys.modules["mproc_ext.futures"]
    with module.ProcessPoolExecutor(1) as executor:
        return executor.submit(square, 7).result(LIMIT)


class RaisesWhenRead:
    """Raises where it is unpickled; in the worker, or in the parent where it is a result."""

    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        return fail, (self.kind, "cannot be read")


class RaisesWhenWritten:
    def __init__(self, kind):
        self.kind = kind

    def __reduce__(self):
        raise self.kind("cannot be written")


class Unpicklable(Exception):
    """An exception that is pickled, and not unpickled."""

    def __init__(self, one, two):
        super().__init__(one)


class Subclass(ProcessPoolExecutor):
    """Counts what is submitted, map()'s too."""

    count = 0

    def submit(self, fn, /, *args, **kwargs):
        self.count += 1
        return super().submit(fn, *args, **kwargs)


def make_unreadable(kind):
    return RaisesWhenRead(kind)


def make_unwritable(kind):
    return RaisesWhenWritten(kind)


def cause_in_a_pool():
    """What the error of a pool's task was raised from."""
    with mproc_ext.get_context("fork").Pool(1) as pool:
        try:
            pool.apply(fail, (ValueError,))
        except ValueError as error:
            kind = type(error.__cause__)
            return f"{kind.__module__}.{kind.__qualname__}"


class Exit:
    def __init__(self, path):
        self.path = path

    def __call__(self):
        note(self.path, os.getpid())


class Text(str):
    """Can be weakly referred to."""
