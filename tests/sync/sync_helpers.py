"""Shared by the tests here."""

import _multiprocessing
import contextlib
import importlib
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import warnings

import mproc_ext

LIMIT = 60  # seconds after which something that was to happen has not
FUTEX = {"x86_64": "202", "aarch64": "98"}.get(os.uname().machine)


def ours(name):
    """Whether mproc_ext's class of this name is its own by now, and not the stdlib's code."""
    mine = getattr(importlib.import_module("mproc_ext.synchronize"), name)
    theirs = getattr(importlib.import_module("mproc_ext._stdlib.synchronize"), name)
    if not mproc_ext.ACCELERATED or mine is theirs:
        return False
    ctx = mproc_ext.get_context("fork")
    if name in ("Condition", "Event", "Barrier"):
        return True
    return type(getattr(ctx, name)()._semlock) is not _multiprocessing.SemLock


def outcome(function, *args, **kwargs):
    """What a call returns or raises, in a form that two packages can be compared by."""
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        return type(error).__name__, normal(str(error)), getattr(error, "errno", None)
    return "returns", normal(repr(value))


def normal(text):
    text = re.sub(r"\b0x[0-9a-f]+\b", "0x...", text)
    return re.sub(r"\bmproc_ext\b", "multiprocessing", text)


def wait_until(predicate, what="it", seconds=LIMIT):
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.001)


def is_asleep(pid, tid, on_futex=True):
    """Whether a thread sleeps on a futex (which is what all locks do, the interpreter's too), or
    in another system call."""
    task = f"/proc/{pid}/task/{tid}"
    try:
        with open(f"{task}/stat") as file:
            if file.read().rpartition(")")[2].split()[0] != "S":
                return False
        with open(f"{task}/syscall") as file:
            return FUTEX is None or (file.read().split()[0] == FUTEX) == on_futex
    except PermissionError:
        return True
    except FileNotFoundError:
        return False


def wait_until_asleep(who, looks=5, on_futex=True):
    """Wait until a thread, or the main thread of a process, sleeps: seen so several times in a
    row, as it may also sleep for a moment for the GIL."""
    if isinstance(who, threading.Thread):
        pid, tid = os.getpid(), who.native_id
    else:
        pid = tid = getattr(who, "pid", who)
    seen = 0

    def look():
        nonlocal seen
        assert not isinstance(who, threading.Thread) or who.is_alive(), f"{who} sleeps no more"
        seen = seen + 1 if is_asleep(pid, tid, on_futex) else 0
        return seen == looks

    wait_until(look, f"the sleep of thread {tid} of {pid}")


class Task(threading.Thread):
    """A thread with a result."""

    def __init__(self, function, *args, name=None):
        super().__init__(name=name, daemon=True)
        self._call = function, args
        self._result = None
        self._error = None
        self.start()

    def run(self):
        function, args = self._call
        try:
            self._result = function(*args)
        except BaseException as error:
            self._error = error

    def get(self):
        self.join(LIMIT)
        assert not self.is_alive(), f"{self._call} has not returned after {LIMIT} s"
        if self._error is not None:
            raise self._error
        return self._result


def asleep_in(wait, *arguments):
    """A task that is seen asleep in wait(*arguments, seconds), which ends by itself.  Where the
    machine is too busy for that to be seen within so little, it gets more."""
    for seconds in (0.3, 1.0, 5.0, LIMIT):
        began = time.monotonic()
        task = Task(wait, *arguments, seconds)
        try:
            wait_until_asleep(task)
        except AssertionError:
            if time.monotonic() - began < seconds:
                raise
        else:
            return task
    raise AssertionError(f"{wait} has not been seen asleep in {seconds} s")


def in_thread(function, *args, name=None):
    return Task(function, *args, name=name).get()


class Child:
    """A process that runs a function of sync_targets, and a connection to it."""

    def __init__(self, ctx, target, *args, name=None, **kwargs):
        self.connection, theirs = ctx.Pipe()
        self.process = ctx.Process(target=target, args=(theirs, *args), kwargs=kwargs, name=name)
        self.process.start()
        theirs.close()
        self.pid = self.process.pid

    def recv(self):
        assert self.connection.poll(LIMIT), f"{self.process} has sent nothing for {LIMIT} s"
        return self.connection.recv()

    def expect(self, value):
        assert self.recv() == value

    def send(self, value):
        self.connection.send(value)

    def says_nothing(self, seconds):
        return not self.connection.poll(seconds)

    def join(self, exitcode=0):
        self.process.join(LIMIT)
        assert self.process.exitcode == exitcode

    def kill(self):
        self.process.kill()
        self.join(-signal.SIGKILL)

    def kill_unreaped(self):
        """Leave it a zombie."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)


def ask(ctx, target, *args, **kwargs):
    """What a child that runs the function sends."""
    child = Child(ctx, target, *args, **kwargs)
    answer = child.recv()
    child.join()
    return answer


@contextlib.contextmanager
def recorded_warnings():
    """The RuntimeWarnings that were given, in a list."""
    found = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
        found.extend(str(w.message) for w in caught if issubclass(w.category, RuntimeWarning))


@contextlib.contextmanager
def handler(function, number=signal.SIGUSR1):
    before = signal.signal(number, function)
    try:
        yield
    except BaseException:
        signal.signal(number, signal.SIG_IGN)  # it may still come, and is not to end all tests
        raise
    signal.signal(number, before)


def signal_when_asleep(number=signal.SIGUSR1, on_futex=True):
    """Send the main thread a signal once it sleeps; from a thread that this returns."""
    main = threading.main_thread()

    def send():
        wait_until_asleep(main, on_futex=on_futex)
        signal.pthread_kill(main.ident, number)

    return Task(send)


def run_program(*args, limit=LIMIT, env=None, expect=0, prefix=()):
    """Run a Python program in a session of its own, of which nothing is left; what it prints."""
    process = subprocess.Popen(
        [*prefix, sys.executable, *map(str, args)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd="/",  # not the source tree, where an unbuilt package would be found first
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        out, err = "", f"it ran longer than {limit} s\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        more = process.communicate()
        out, err = out + more[0], err + more[1]
    assert process.returncode == expect, f"exit status {process.returncode}\n{out}\n{err}"
    return out


def wait_readable(*connections):
    return select.select(connections, [], [], LIMIT)[0]
