"""Lock and RLock: the stdlib's behaviour to the letter.  The stdlib's own run beside ours."""

import decimal
import errno
import fractions
import inspect
import math
import platform
import threading
import time

import pytest
import sync_targets as targets
from sync_helpers import (
    Child,
    Task,
    ask,
    in_thread,
    normal,
    ours,
    outcome,
    wait_until_asleep,
)

KINDS = ("Lock", "RLock")
KINDS_AND_SEMAPHORES = (*KINDS, "Semaphore", "BoundedSemaphore")
TOO_OFTEN = "semaphore or lock released too many times"
NOT_OWNED = "attempt to release recursive lock not owned by thread"


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(params=KINDS_AND_SEMAPHORES)
def any_kind(request):
    return request.param


@pytest.fixture
def lock(mp, kind):
    return getattr(mp, kind)()


def held(mp, kind):
    """A lock that a thread took that has ended: held, and not by who asks."""
    lock = getattr(mp, kind)()
    assert in_thread(lock.acquire) is True
    return lock


# ---- Making ------------------------------------------------------------------------------------


def test_signatures(synchronize, mp, any_kind):
    kind = getattr(synchronize, any_kind)
    value = "value=1, " if "Semaphore" in any_kind else ""
    assert str(inspect.signature(kind)) == f"({value}*, ctx)"
    lock = getattr(mp, any_kind)()
    assert str(inspect.signature(lock.acquire)) == "(block=True, timeout=None)"
    assert str(inspect.signature(lock.release)) == "()"


MAKING = {
    "without ctx": lambda cls, ctx: cls(),
    "ctx by position": lambda cls, ctx: cls(ctx),
    "two positions": lambda cls, ctx: cls(1, 2),
    "two positions and ctx": lambda cls, ctx: cls(1, 2, ctx=ctx),
    "unknown keyword": lambda cls, ctx: cls(ctx=ctx, x=1),
    "ctx of the wrong type": lambda cls, ctx: cls(ctx=5),
    "ctx None": lambda cls, ctx: cls(ctx=None),
    "again": lambda cls, ctx: cls(ctx=ctx).__init__(ctx=ctx),
    "without __init__, repr": lambda cls, ctx: repr(cls.__new__(cls)),
    "without __init__, acquire": lambda cls, ctx: cls.__new__(cls).acquire(),
    "without __init__, with": lambda cls, ctx: cls.__new__(cls).__enter__(),
}


@pytest.mark.parametrize("case", MAKING)
def test_making(both, any_kind, case):
    theirs, mine = (outcome(MAKING[case], getattr(ctx_module(ctx), any_kind), ctx) for ctx in both)
    assert mine == theirs


@pytest.mark.parametrize("value", [0, 3, True, 2**31 - 1, 2**31, -1, 1.5, "x", None])
@pytest.mark.parametrize("kind", ["Semaphore", "BoundedSemaphore"])
def test_making_with_a_value(both, kind, value):
    results = []
    for ctx in both:
        cls = getattr(ctx_module(ctx), kind)
        results.append([outcome(cls, value, ctx=ctx), outcome(cls, value=value, ctx=ctx)])
        results[-1].append(outcome(cls, value, ctx=None))
    assert results[1] == results[0]


def test_init_of_a_base(synchronize, mp):
    """It makes what that class is, whatever the object's is."""
    made = synchronize.BoundedSemaphore(2, ctx=mp)
    for args, kwargs in [((3,), {}), ((), {"value": 3})]:
        synchronize.Semaphore.__init__(made, *args, ctx=mp, **kwargs)
        assert made._semlock.maxvalue == 2**31 - 1
        synchronize.BoundedSemaphore.__init__(made, *args, ctx=mp, **kwargs)
        assert made._semlock.maxvalue == 3


def test_own_methods():
    """The interpreter calls them in its fast way; what a class defines itself stays."""
    from mproc_ext import _core, synchronize

    for kind in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"):
        cls = getattr(synchronize, kind)
        names = ("set", "clear", "is_set", "wait") if kind == "Event" else ("__enter__", "__exit__")
        for name in names:
            assert vars(cls)[name].__objclass__ is cls

    class Own(synchronize.Lock):
        def acquire(self):
            return "own"

    assert _core.own_methods(Own) is Own
    assert Own(ctx=None).acquire() == "own"
    assert vars(Own)["release"].__objclass__ is Own
    for wrong in (int, 5):
        with pytest.raises(TypeError, match="is no class of ours"):
            _core.own_methods(wrong)


def test_start_method_of_the_context(mp):
    class Odd:
        def get_start_method(self):
            raise KeyError("odd")

    with pytest.raises(KeyError, match="odd"):
        ctx_module(mp).Lock(ctx=Odd())
    assert mp.Lock()._is_fork_ctx is True


def ctx_module(ctx):
    import importlib

    return importlib.import_module(type(ctx).__module__.replace("context", "synchronize"))


@pytest.mark.parametrize("base", ["SemLock", "object"])
def test_bases(synchronize, any_kind, base):
    base = getattr(synchronize, base, object)
    assert issubclass(getattr(synchronize, any_kind), base)
    assert isinstance(getattr(synchronize, any_kind)(ctx=None), base)


def test_ours_is_the_stdlibs_too(any_kind):
    """Libraries ask isinstance(x, multiprocessing.synchronize.Lock)."""
    import multiprocessing.synchronize

    import mproc_ext

    made = getattr(mproc_ext.get_context("fork"), any_kind)()
    assert isinstance(made, getattr(multiprocessing.synchronize, any_kind))


def test_attributes(mp, any_kind):
    lock = getattr(mp, any_kind)()
    lock.anything = 1
    assert lock.anything == 1
    assert vars(lock)["anything"] == 1
    del lock.anything
    assert bool(lock)
    assert lock == lock
    assert lock != getattr(mp, any_kind)()
    assert {lock: 1}[lock] == 1
    import weakref

    assert weakref.ref(lock)() is lock


# ---- acquire and release -----------------------------------------------------------------------


def test_acquire_and_release(lock):
    assert lock.acquire() is True
    assert lock.release() is None
    assert lock.acquire(False) is True
    assert lock.release() is None
    assert lock.acquire(True, 1) is True
    assert lock.release() is None


def test_lock_is_not_recursive(mp):
    lock = mp.Lock()
    lock.acquire()
    assert lock.acquire(False) is False
    assert lock.acquire(block=False) is False
    assert lock.acquire(True, 0) is False
    assert lock.acquire(timeout=0.001) is False
    lock.release()


def test_rlock_is_recursive(mp):
    lock = mp.RLock()
    for count in range(1, 50):
        assert lock.acquire() is True
        assert lock._semlock._count() == count
    for count in range(48, -1, -1):
        assert in_thread(lock.acquire, False) is False
        assert lock.release() is None
        assert lock._semlock._count() == count
    assert in_thread(lock.acquire, False) is True


def test_release_of_what_is_not_held(mp):
    assert outcome(mp.Lock().release) == ("ValueError", TOO_OFTEN, None)
    assert outcome(mp.RLock().release) == ("AssertionError", NOT_OWNED, None)


def test_release_twice(mp):
    for lock, expected in (
        (mp.Lock(), ("ValueError", TOO_OFTEN, None)),
        (mp.RLock(), ("AssertionError", NOT_OWNED, None)),
    ):
        lock.acquire()
        lock.release()
        assert outcome(lock.release) == expected
        assert lock.acquire(False) is True  # and nothing is broken
        assert in_thread(lock.acquire, False) is False


def test_release_by_another_thread(mp):
    lock = held(mp, "Lock")
    assert lock.release() is None
    assert lock.acquire(False) is True
    rlock = held(mp, "RLock")
    assert outcome(rlock.release) == ("AssertionError", NOT_OWNED, None)
    assert rlock.acquire(False) is False


def test_release_by_another_process(ctx):
    lock = ctx.Lock()
    lock.acquire()
    assert ask(ctx, targets.call, lock, "release", "acquire", "release") == [None, True, None]
    assert lock.acquire(False) is True
    rlock = ctx.RLock()
    rlock.acquire()
    assert ask(ctx, targets.call, rlock, "release") == [("AssertionError", NOT_OWNED)]
    assert rlock.release() is None


class Float:
    def __float__(self):
        return 0.0


class Index:
    def __index__(self):
        return 0


class NoFloat:
    def __float__(self):
        raise KeyError("no float")


class WrongFloat:
    def __float__(self):
        return "0"


class NoBool:
    def __bool__(self):
        raise KeyError("no bool")


ARGUMENTS = {
    "three": (True, None, 1),
    "block twice": ((True,), {"block": True}),
    "blocking": ((), {"blocking": True}),
    "unknown": ((), {"block": True, "x": 1}),
    "timeout only": ((), {"timeout": 0}),
    "both by name": ((), {"timeout": 0, "block": 1}),
    "list": ([],),
    "empty str": ("",),
    "str": ("x",),
    "None": (None,),
    "float": (0.5,),
    "zero": (0.0,),
    "2": (2,),
    "-1": (-1,),
    "2**80": (2**80,),
    "no bool": (NoBool(),),
    "bool fails before timeout": (NoBool(), "x"),
}


def call_with(acquire, arguments):
    if len(arguments) == 2 and isinstance(arguments[1], dict):
        return acquire(*arguments[0], **arguments[1])
    return acquire(*arguments)


@pytest.mark.parametrize("case", ARGUMENTS)
@pytest.mark.parametrize("state", ["free", "own", "other's"])
def test_arguments(both, any_kind, case, state):
    if state != "free" and case in ("str", "2", "-1"):
        pytest.skip("would wait")
    results = []
    for ctx in both:
        lock = held(ctx, any_kind) if state == "other's" else getattr(ctx, any_kind)()
        if state == "own":
            lock.acquire()
        if state != "free" and case in ("2**80",):
            results.append(outcome(call_with, lock.acquire, (*ARGUMENTS[case], 0)))
        elif state != "free" and case == "float":
            results.append(outcome(call_with, lock.acquire, (0.5, 0)))
        else:
            results.append(outcome(call_with, lock.acquire, ARGUMENTS[case]))
    assert results[1] == results[0]


def test_release_takes_no_arguments(both, any_kind):
    for arguments, keywords in (((1,), {}), ((), {"x": 1})):
        results = []
        for ctx in both:
            lock = getattr(ctx, any_kind)()
            lock.acquire()
            result = outcome(lambda lock=lock: lock.release(*arguments, **keywords))
            assert result[0] == "TypeError"
            results.append(result[1].replace("SemLock.", "").replace(f"{any_kind}.", ""))
            assert lock._semlock._count() == 1
        assert results[1] == results[0]


# ---- Timeouts ----------------------------------------------------------------------------------

AT_ONCE = {
    "0": 0,
    "0.0": 0.0,
    "-0.0": -0.0,
    "False": False,
    "-1": -1,
    "-1e300": -1e300,
    "-inf": -math.inf,
    "1e-300": 1e-300,
    "Decimal": decimal.Decimal(0),
    "Fraction": fractions.Fraction(-1, 3),
    "__float__": Float(),
    "__index__": Index(),
}
UNUSABLE = {"nan": math.nan, "inf": math.inf, "1e300": 1e300, "2**63": 2**63, "9.3e18": 9.3e18}
WRONG = {
    "str": ("1", "TypeError", "must be real number, not str"),
    "bytes": (b"1", "TypeError", "must be real number, not bytes"),
    "list": ([], "TypeError", "must be real number, not list"),
    "complex": (1j, "TypeError", "must be real number, not complex"),
    "object": (object(), "TypeError", "must be real number, not object"),
    "10**400": (10**400, "OverflowError", "int too large to convert to float"),
    "-10**400": (-(10**400), "OverflowError", "int too large to convert to float"),
    "error in __float__": (NoFloat(), "KeyError", "'no float'"),
}


@pytest.mark.parametrize("timeout", AT_ONCE)
def test_timeouts_that_do_not_wait(mp, any_kind, timeout):
    lock = held(mp, any_kind)
    assert lock.acquire(True, AT_ONCE[timeout]) is False
    assert lock.acquire(False, AT_ONCE[timeout]) is False
    free = getattr(mp, any_kind)()
    assert free.acquire(True, AT_ONCE[timeout]) is True


@pytest.mark.parametrize("timeout", UNUSABLE)
def test_timeouts_that_no_clock_has(package, mp, any_kind, timeout):
    """They are looked at only by who has to wait."""
    if package.__name__ == "multiprocessing" and platform.machine() != "x86_64":
        pytest.skip("the stdlib converts such a number in ways that C does not define")
    timeout = UNUSABLE[timeout]
    lock = held(mp, any_kind)
    with pytest.raises(OSError) as raised:
        lock.acquire(True, timeout)
    assert raised.value.args == (errno.EINVAL, "Invalid argument")
    assert lock.acquire(False, timeout) is False
    free = getattr(mp, any_kind)()
    assert free.acquire(True, timeout) is True
    assert free.acquire(False, timeout) is (any_kind == "RLock")


@pytest.mark.parametrize("timeout", WRONG)
def test_timeouts_of_the_wrong_type(mp, any_kind, timeout):
    """They are looked at by everyone but the owner of an RLock."""
    timeout, kind, message = WRONG[timeout]
    lock, free = held(mp, any_kind), getattr(mp, any_kind)()
    for block in (True, False):
        assert outcome(lock.acquire, block, timeout) == (kind, message, None)
        assert outcome(free.acquire, block, timeout) == (kind, message, None)
    assert free._semlock._count() == 0
    assert free.acquire() is True
    if any_kind == "RLock":
        assert free.acquire(True, timeout) is True
        assert free._semlock._count() == 2
    else:
        assert outcome(free.acquire, True, timeout) == (kind, message, None)
        assert free._semlock._count() == 1


def test_float_that_is_none(both, kind):
    theirs, mine = (outcome(held(ctx, kind).acquire, True, WrongFloat()) for ctx in both)
    assert mine == theirs


@pytest.mark.parametrize("timeout", [1e9, 1e10, 1e18, 2**62, 30, decimal.Decimal(30)])
def test_long_timeouts_wait(mp, any_kind, timeout):
    lock = getattr(mp, any_kind)()
    lock.acquire()
    waiter = Task(lock.acquire, True, timeout)
    wait_until_asleep(waiter)
    lock.release()
    assert waiter.get() is True


def test_timeout_is_waited_for(mp, any_kind):
    lock = held(mp, any_kind)
    began = time.monotonic()
    assert lock.acquire(True, 0.1) is False
    assert lock.acquire(timeout=0.1) is False
    assert time.monotonic() - began > 0.19


@pytest.mark.parametrize("arguments", [(), (True,), (True, None)])
def test_without_a_timeout_it_waits(mp, any_kind, arguments):
    lock = getattr(mp, any_kind)()
    lock.acquire()
    waiter = Task(lock.acquire, *arguments)
    wait_until_asleep(waiter)
    lock.release()
    assert waiter.get() is True
    assert lock.acquire(False) is False


# ---- with --------------------------------------------------------------------------------------


def test_with(lock):
    with lock as result:
        assert result is True
        assert in_thread(lock.acquire, False) is False
    assert in_thread(lock.acquire, False) is True


def test_with_that_raises(lock):
    with pytest.raises(ZeroDivisionError):
        with lock:
            raise ZeroDivisionError
    assert in_thread(lock.acquire, False) is True


def test_with_released_inside(mp):
    for lock, expected in ((mp.Lock(), TOO_OFTEN), (mp.RLock(), NOT_OWNED)):
        with pytest.raises((ValueError, AssertionError), match=expected):
            with lock:
                lock.release()
        assert lock.acquire(False) is True


def test_enter_and_exit(both, kind):
    results = []
    for ctx in both:
        lock = getattr(ctx, kind)()
        results.append(
            [
                outcome(lock.__enter__),
                outcome(lock.__exit__),
                outcome(lock.__enter__),
                outcome(lock.__exit__, None, None, None),
                outcome(lock.__exit__, None, None, None),
                outcome(lock.__enter__),
                outcome(lock.__exit__, 1, 2, 3),
            ]
        )
    assert results[1] == results[0]


# ---- Who has it --------------------------------------------------------------------------------


def test_repr_of_a_lock(mp):
    lock = mp.Lock()
    assert repr(lock) == "<Lock(owner=None)>"
    lock.acquire()
    assert repr(lock) == "<Lock(owner=MainProcess)>"
    assert in_thread(lambda: repr(lock), name="T") == "<Lock(owner=SomeOtherThread)>"
    lock.release()
    assert repr(lock) == "<Lock(owner=None)>"
    assert in_thread(lambda: (lock.acquire(), repr(lock)), name="T") == (
        True,
        "<Lock(owner=MainProcess|T)>",
    )
    assert repr(lock) == "<Lock(owner=SomeOtherThread)>"
    lock.release()
    assert repr(lock) == "<Lock(owner=None)>"


def test_repr_of_an_rlock(mp):
    lock = mp.RLock()
    assert repr(lock) == "<RLock(None, 0)>"
    lock.acquire()
    assert repr(lock) == "<RLock(MainProcess, 1)>"
    lock.acquire()
    assert repr(lock) == "<RLock(MainProcess, 2)>"
    assert in_thread(lambda: repr(lock)) == "<RLock(SomeOtherThread, nonzero)>"
    lock.release()
    lock.release()
    assert repr(lock) == "<RLock(None, 0)>"
    assert in_thread(lambda: (lock.acquire(), repr(lock)), name="T") == (
        True,
        "<RLock(MainProcess|T, 1)>",
    )
    assert repr(lock) == "<RLock(SomeOtherThread, nonzero)>"


@pytest.mark.parametrize(("times", "inside"), [(1, "1"), (2, "2")])
def test_repr_across_processes(ctx, kind, times, inside):
    lock = getattr(ctx, kind)()
    if kind == "Lock":
        times, inside, other = 1, "<Lock(owner=Kid)>", "<Lock(owner=SomeOtherProcess)>"
    else:
        inside, other = f"<RLock(Kid, {inside})>", "<RLock(SomeOtherProcess, nonzero)>"
    child = Child(ctx, targets.acquire_and_show, lock, times, name="Kid")
    child.expect(inside)
    assert repr(lock) == other
    assert in_thread(lambda: repr(lock)) == other
    child.send("end")
    child.join()


def test_another_process_has_no_part_in_it(ctx, kind):
    lock = getattr(ctx, kind)()
    lock.acquire()
    other = "owner=SomeOtherProcess" if kind == "Lock" else "SomeOtherProcess, nonzero"
    assert ask(ctx, targets.describe_lock, lock) == (f"<{kind}({other})>", False, 0, True, False)
    lock.release()
    assert ask(ctx, targets.describe_lock, lock)[1:] == (False, 0, False, True)


def test_repr_names_the_class(synchronize, mp):
    class Mine(synchronize.Lock):
        pass

    class Twice(synchronize.RLock):
        pass

    assert repr(Mine(ctx=mp)) == "<Mine(owner=None)>"
    assert repr(Twice(ctx=mp)) == "<Twice(None, 0)>"


def test_repr_follows_the_process_name(mp):
    process = mp.current_process() if hasattr(mp, "current_process") else None
    before = process.name
    lock = mp.Lock()
    lock.acquire()
    try:
        process.name = "Another"
        assert repr(lock) == "<Lock(owner=Another)>"
    finally:
        process.name = before


def test_locked(package, mp, any_kind):
    lock = getattr(mp, any_kind)()
    if package.__name__ == "multiprocessing" and not hasattr(lock, "locked"):
        pytest.skip("this Python's stdlib has no locked()")
    assert lock.locked() is False
    lock.acquire()
    assert lock.locked() is True
    assert in_thread(lock.locked) is True
    lock.release()
    assert lock.locked() is False


# ---- _semlock ----------------------------------------------------------------------------------


def test_semlock(mp, kind):
    lock = getattr(mp, kind)()
    sem = lock._semlock
    assert (sem._count(), sem._is_mine(), sem._is_zero(), sem._get_value()) == (0, False, False, 1)
    lock.acquire()
    assert (sem._count(), sem._is_mine(), sem._is_zero(), sem._get_value()) == (1, True, True, 0)
    assert in_thread(lambda: (sem._count(), sem._is_mine())) == (1, False)
    lock.release()
    assert (sem._count(), sem._is_mine(), sem._is_zero(), sem._get_value()) == (0, False, False, 1)
    assert sem.kind == (1 if kind == "Lock" else 0)
    assert sem.maxvalue == 1
    assert sem.SEM_VALUE_MAX == 2**31 - 1
    assert isinstance(sem.handle, int)
    assert sem.name is None or isinstance(sem.name, str)


@pytest.mark.parametrize("name", ["handle", "kind", "maxvalue", "name"])
def test_semlock_is_read_only(both, kind, name):
    theirs, mine = (outcome(setattr, getattr(c, kind)()._semlock, name, 1) for c in both)
    assert theirs[0] == mine[0] == "AttributeError"


def test_semlock_works_like_its_lock(mp, kind):
    lock = getattr(mp, kind)()
    with lock._semlock as entered:
        assert entered is True
        assert lock._semlock._is_mine()
        assert "MainProcess" in repr(lock)
    assert lock._semlock.acquire() is True
    assert in_thread(lock.acquire, False) is False
    assert lock._semlock.release() is None
    assert in_thread(lock.acquire, False) is True


def test_make_name_and_rand(synchronize, mp):
    """Libraries replace these."""
    name = synchronize.SemLock._make_name()
    assert name.startswith("/mp-") or "mp" in name
    assert name != synchronize.SemLock._make_name()
    assert isinstance(next(synchronize.SemLock._rand), str)
    assert mp.Lock()._make_name() != name


@pytest.mark.parametrize(
    "arguments",
    [(0, 1, 1), (1, 3, 5), (1, 5, 3), (2, 1, 1), (1, -1, 1), (1, 2**31, 1), (1, 1.5, 1)],
)
def test_semlock_class(both, arguments):
    results = []
    for ctx in both:
        made = outcome(lambda ctx=ctx: ctx_module(ctx).SemLock(*arguments, ctx=ctx)._semlock.kind)
        results.append(made)
    assert results[1] == results[0]


# ---- Subclasses --------------------------------------------------------------------------------


def test_subclass_with_more_arguments(synchronize, mp, kind):
    class Named(getattr(synchronize, kind)):
        def __init__(self, name, *, ctx):
            super().__init__(ctx=ctx)
            self.name = name

        def double(self):
            return self.name * 2

    lock = Named("x", ctx=mp)
    assert lock.double() == "xx"
    with lock:
        assert in_thread(lock.acquire, False) is False
    assert lock.acquire(False) is True


def test_subclass_overrides_enter_and_exit(synchronize, mp, kind):
    seen = []

    class Watched(getattr(synchronize, kind)):
        def __enter__(self):
            seen.append("enter")
            return super().__enter__()

        def __exit__(self, *args):
            seen.append(args[0])
            return super().__exit__(*args)

    lock = Watched(ctx=mp)
    with lock as value:
        assert value is True
    with pytest.raises(KeyError):
        with lock:
            raise KeyError
    assert seen == ["enter", None, "enter", KeyError]


def test_subclass_overrides_acquire(synchronize, mp, kind):
    """The stdlib's objects have acquire and release as attributes, which win over a class's; ours
    call what the subclass has, but for ``with``, and ``_semlock`` is without it."""
    seen = []

    class Counting(getattr(synchronize, kind)):
        def acquire(self, *args, **kwargs):
            seen.append("acquire")
            return self._semlock.acquire(*args, **kwargs)

        def release(self):
            seen.append("release")
            return self._semlock.release()

    lock = Counting(ctx=mp)
    assert lock.acquire() is True
    lock.release()
    assert seen == (
        ["acquire", "release"] if ours(kind) and "mproc_ext" in str(synchronize) else []
    )
    seen.clear()
    with lock:
        pass
    assert seen == []
    assert Counting.acquire(lock) is True
    Counting.release(lock)
    assert seen == ["acquire", "release"]


def test_subclass_overrides_make_methods(synchronize, mp, kind):
    seen = []

    class Counting(getattr(synchronize, kind)):
        def _make_methods(self):
            super()._make_methods()
            acquire = self.acquire
            self.acquire = lambda *args: seen.append(args) or acquire(*args)

    lock = Counting(ctx=mp)
    assert lock.acquire(True, 0) is True
    lock.release()
    with lock:
        pass
    assert seen == [(True, 0)]


def test_methods_can_be_assigned(mp, kind):
    """unittest.mock and others replace the methods of one object."""
    lock = getattr(mp, kind)()
    lock.acquire = lambda *args: "acquired"
    lock.release = lambda: "released"
    assert (lock.acquire(), lock.release()) == ("acquired", "released")
    with lock as value:  # does not use them
        assert value is True
        assert lock._semlock._count() == 1
    assert lock._semlock._count() == 0


# ---- Many at once ------------------------------------------------------------------------------


def test_threads(mp, kind):
    lock = getattr(mp, kind)()
    counter = 0
    threads, times = 8, 300

    def work():
        nonlocal counter
        for turn in range(times):
            with lock:
                value = counter
                if turn % 16 == 0:
                    time.sleep(0)
                counter = value + 1

    tasks = [Task(work) for _ in range(threads)]
    for task in tasks:
        task.get()
    assert counter == threads * times


def test_processes(ctx, kind):
    lock = getattr(ctx, kind)()
    counter = ctx.Value("i", 0, lock=False)
    children = [ctx.Process(target=targets.count_under, args=(lock, counter, 300)) for _ in "123"]
    for child in children:
        child.start()
    targets.count_under(lock, counter, 300)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert counter.value == 1200


def test_threads_and_processes(mp, kind):
    lock = getattr(mp, kind)()
    counter = mp.Value("i", 0, lock=False)
    children = [mp.Process(target=targets.count_under, args=(lock, counter, 300)) for _ in "12"]
    for child in children:
        child.start()
    for task in [Task(targets.count_under, lock, counter, 300) for _ in "123"]:
        task.get()
    for child in children:
        child.join()
    assert counter.value == 1500


def test_waiter_in_another_process(ctx, kind):
    lock = getattr(ctx, kind)()
    lock.acquire()
    child = Child(ctx, targets.acquire, lock)
    child.expect("waits")
    wait_until_asleep(child)
    lock.release()
    child.expect("got it")
    child.join()


def test_dropped_while_another_process_has_it(ctx, kind):
    """A lock lives as long as any process can reach it."""
    lock = getattr(ctx, kind)()
    child = Child(ctx, targets.hold, lock)
    child.expect("held")
    del lock
    others = [getattr(ctx, kind)() for _ in range(20)]
    assert all(other.acquire(False) for other in others)
    child.send("release")
    child.expect("done")
    child.join()
    assert all(in_thread(other.acquire, False) is False for other in others)


def test_the_threading_module_can_use_it(mp):
    """threading.Condition over a Lock: over an RLock it cannot tell who owns it."""
    condition = threading.Condition(mp.Lock())
    state = []

    def wait():
        with condition:
            return condition.wait_for(lambda: state, 30)

    task = Task(wait)
    wait_until_asleep(task)
    with condition:
        state.append(1)
        condition.notify()
    assert task.get() == [1]


def test_the_oracle_is_the_stdlib(package, mp):
    """So that a test that compares does not compare ours with ours."""
    own = package.__name__ == "mproc_ext"
    assert normal(type(mp.Lock()).__module__) == "multiprocessing.synchronize"
    if not own:
        assert type(mp.Lock()._semlock).__module__ == "_multiprocessing"
    else:
        assert ours("Lock") in (True, False)
