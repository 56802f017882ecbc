"""What the workers here run: importable by name under every start method."""

import copy
import ctypes
import multiprocessing
import os
import signal
import sys
import time


def identity(x):
    return x


def square(x):
    return x * x


def add(x, y=100):
    return x + y


def pair(x, y):
    return x, y


def nothing():
    pass


def nothing_of(x):
    pass


def arguments(*args, **kwargs):
    return args, kwargs


def apply(function, *args):
    return function(*args)


def size(data):
    return len(data)


def make_bytes(size, fill=7):
    return bytes([fill]) * size


def fail(kind, *args):
    raise kind(*args)


def fail_at(x, which, kind=ValueError):
    if x == which:
        raise kind(f"item {x}")
    return x


def fail_at_three(x):
    return fail_at(x, 3)


def fail_with_notes(text, note):
    error = ValueError(text)
    error.add_note(note)
    error.extra = [text]
    raise error


def fail_from_another():
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise RuntimeError("the second") from error


def fail_while_handling():
    try:
        raise KeyError("the first")
    except KeyError:
        raise RuntimeError("the second")


def fail_in_a_group():
    raise ExceptionGroup("a group", [ValueError("one"), ExceptionGroup("two", [KeyError(3)])])


def stop_at_one(x):
    if x == 1:
        raise StopIteration("no more")
    return x


def return_lambda(*_):
    return lambda: None


class OddError(Exception):
    """An exception with a state of its own."""

    def __init__(self, code, text="odd"):
        super().__init__(code, text)
        self.code = code
        self.text = text


class LocalError(Exception):
    """One that cannot be pickled."""

    def __init__(self):
        super().__init__("not to be pickled")
        self.function = lambda: None


class Copier:
    """Makes a copy of a thing, whatever it is called with."""

    def __init__(self, thing):
        self.thing = thing

    def __call__(self, *_):
        return copy.deepcopy(self.thing)


class Star:
    def __init__(self, function):
        self.function = function

    def __call__(self, args):
        return self.function(*args)


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None

    def plus(self, y):
        return self.x + y

    def __call__(self, y):
        return self.x * y

    @classmethod
    def make(cls, x):
        return cls(x)

    @staticmethod
    def twice(x):
        return 2 * x


class Unpicklable:
    def __reduce__(self):
        raise RuntimeError("it refuses to be pickled")


class Counted:
    """Counts its instances in this process."""

    living = 0

    def __new__(cls):
        cls.living += 1
        return object.__new__(cls)

    def __del__(self):
        type(self).living -= 1


class Iterable:
    """An iterable with a length of its own mind."""

    def __init__(self, length, items):
        self.length = length
        self.items = items

    def __len__(self):
        return self.length() if callable(self.length) else self.length

    def __iter__(self):
        return iter(self.items)


def items_until(count, kind=ValueError):
    yield from range(count)
    raise kind("the items end")


# ---- files that tasks write to, and wait for ---------------------------------------------------


def note(path, word=""):
    """One line, in one system call: the word, or the number of this process."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{word or os.getpid()}\n".encode())
    finally:
        os.close(fd)


def note_and_return(path, value):
    note(path, str(value))
    return value


noted = False


def note_once(path, value):
    """A short task; the first one of a process notes its number."""
    global noted
    if not noted:
        noted = True
        note(path)
    time.sleep(0.001)
    return value


def wait_for_file(path, value=None):
    while not os.path.exists(path):
        time.sleep(0.001)
    return value


def wait_at(path, x):
    """The first item waits for the file, others do not."""
    return wait_for_file(path, x) if x == 0 else x


def note_and_sleep_for_ever(path):
    note(path)
    # Short sleeps: CPython does not see a signal that comes between its last look for one and the
    # system call until that ends.
    while True:
        time.sleep(0.1)


# ---- what a worker is ---------------------------------------------------------------------------


def describe(*_):
    me = multiprocessing.current_process()
    return os.getpid(), me.name, me.daemon, multiprocessing.parent_process() is not None


def worker_pid(*_):
    return os.getpid()


def sleep_and_tell(_):
    """Long enough for another worker to take the next task."""
    time.sleep(0.01)
    return os.getpid()


def have_a_child():
    """Whether this worker may start a process of its own, and that one's exit code."""
    child = multiprocessing.get_context("fork").Process(target=nothing)
    try:
        child.start()
    except AssertionError as error:
        return str(error)
    child.join()
    return child.exitcode


initialized = None


def initialize(*args):
    global initialized
    assert initialized is None
    initialized = args


def what_was_initialized(*_):
    return initialized


def note_initialized(path, *args):
    initialize(*args)
    note(path)


class Nondaemonic:
    """Mixed into a process: a worker that may have children."""

    @property
    def daemon(self):
        return False

    @daemon.setter
    def daemon(self, value):
        pass


def nondaemonic_context(ctx):
    """The context that programs make for a pool whose workers have children."""
    process = type("NondaemonicProcess", (Nondaemonic, ctx.Process), {})
    return type("NondaemonicContext", (type(ctx),), {"Process": process})()


# ---- how a worker dies --------------------------------------------------------------------------


def die_by(number):
    os.kill(os.getpid(), number)
    time.sleep(120)  # it does not come back from there


def die_at(x, which, path):
    if x == which:
        die_by(signal.SIGKILL)
    note(path, str(x))
    return x


def die_in_tens(x):
    if x % 10 == 5:
        die_by(signal.SIGKILL)
    return x


def exit_hard(code):
    os._exit(code)


def exit_by_exception(*args):
    sys.exit(*args)


def crash():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    ctypes.string_at(0)


def abort():
    os.abort()


def ignore_sigterm_for_ever(path):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note_and_sleep_for_ever(path)


def leave_a_child_and_sleep(path):
    """The child has all that this worker had open, and outlives it."""
    if os.fork() == 0:
        note_and_sleep_for_ever(path)
    note_and_sleep_for_ever(path)


def close_all():
    os.closerange(3, 1024)
    return "closed"


def note_and_make_bytes(path, size):
    note(path)
    return bytes(size)


class Bare(BaseException):
    """Neither an error nor an exit."""


# ---- what cannot come back ----------------------------------------------------------------------


def refuse(text):
    raise ValueError(text)


class Poison:
    """Can be pickled; unpickling raises, in every process or in all but one."""

    def __init__(self, text, but_in=None):
        self.text = text
        self.but_in = but_in

    def __reduce__(self):
        return _unpickle_poison, (self.text, self.but_in)


def _unpickle_poison(text, but_in):
    if os.getpid() == but_in:
        return Poison(text, but_in)
    return refuse(text)


def return_poison(text):
    return Poison(text)


def poison_at(x, which):
    return Poison("cannot be unpickled") if x == which else x


class TwoArgumentsError(Exception):
    """The usual mistake: it is pickled with one argument, and made with two."""

    def __init__(self, code, detail):
        super().__init__(f"{code}: {detail}")


def fail_with_two_arguments():
    raise TwoArgumentsError(7, "seven")


class NoRepr:
    """Cannot be pickled, and cannot be shown."""

    def __reduce__(self):
        raise RuntimeError("it refuses to be pickled")

    def __repr__(self):
        raise RuntimeError("it refuses to be shown")


def return_no_repr():
    return NoRepr()


# ---- initializers -------------------------------------------------------------------------------


def refuse_to_start():
    raise ValueError("the initializer fails on purpose")


def fail_once(path):
    """Fails in the first worker that comes here."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return
    raise ValueError("the first one fails")


def stop_working_when_noted(path):
    """Fails from the moment that the file is there."""
    if os.path.exists(path):
        raise ValueError("the initializer fails by now")


class MyInt(int):
    pass


SPECIAL = 7777  # the item at which these do something else


def number_or_not(x):
    if x == SPECIAL:
        return ["no number", x, MyInt(x)]
    return x * 1.5 if x % 3 == 0 else -x


def stop_at_special(x):
    if x == SPECIAL:
        raise StopIteration
    return x


def fail_at_special(x):
    return fail_at(x, SPECIAL)


def odd_ones(x):
    return [None, True, x, float("inf"), 1 << 200, MyInt(x), "text", (x, x)][x % 8]


def fork_and(x):
    """A child that ends at once, in the middle of a chunk."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return x + 0.5


def sleep_a_moment(x):
    time.sleep(0.02)
    return x


def _take_long():
    """In the program's own process, where code that runs for others takes the time of its calls."""
    if multiprocessing.parent_process() is None:
        end = time.monotonic() + 0.25
        while time.monotonic() < end:
            pass


def _read_slowly(number):
    _take_long()
    return SlowToRead(number)


class SlowToRead:
    def __init__(self, number):
        self.number = number

    def __reduce__(self):
        return _read_slowly, (self.number,)


class SlowToPickle:
    def __init__(self, number):
        self.number = number

    def __getstate__(self):
        _take_long()
        return {"number": self.number}


def number_of(x):
    return x.number
