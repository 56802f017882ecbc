"""Condition: the stdlib's behaviour to the letter, waits and notifications that are exact."""

import errno
import gc
import inspect
import sys
import threading
import time
import weakref

import pytest
import sync_targets as targets
from sync_helpers import (
    Child,
    Task,
    in_thread,
    outcome,
    run_program,
    wait_readable,
    wait_until_asleep,
)

WAIT_UNOWNED = ("AssertionError", "must acquire() condition before using wait()", None)
NOTIFY_UNOWNED = ("AssertionError", "lock is not owned", None)


@pytest.fixture(params=["RLock", "Lock"])
def condition(request, mp):
    return mp.Condition(getattr(mp, request.param)())


class Waiters:
    """Threads that wait on a condition; those that were woken, in that order."""

    def __init__(self, condition, count, timeout=None):
        self.condition = condition
        self.woken = []
        entered = threading.Semaphore(0)

        def wait(number):
            with condition:
                entered.release()
                result = condition.wait(timeout)
                self.woken.append((number, result))

        self.tasks = [Task(wait, number) for number in range(count)]
        for _ in self.tasks:
            entered.acquire()
        with condition:  # whoever gets it now knows that all of them have released it, and sleep
            pass

    def wait_until_woken(self, count):
        deadline = time.monotonic() + 60
        while len(self.woken) < count:
            assert time.monotonic() < deadline, self.woken
            time.sleep(0.001)
        assert len(self.woken) == count


def test_signatures(synchronize, mp):
    cls = synchronize.Condition
    assert str(inspect.signature(cls)) == "(lock=None, *, ctx)"
    condition = cls(ctx=mp)
    assert str(inspect.signature(condition.wait)) == "(timeout=None)"
    assert str(inspect.signature(cls.wait_for)) == "(self, predicate, timeout=None)"
    assert str(inspect.signature(condition.notify)) == "(n=1)"
    assert str(inspect.signature(cls.notify_all)) == "(self)"


def test_attributes(synchronize, mp):
    condition = mp.Condition()
    assert isinstance(condition._lock, synchronize.RLock)
    for name in ("_sleeping_count", "_woken_count", "_wait_semaphore"):
        assert getattr(condition, name).get_value() == 0
    lock = mp.Lock()
    assert mp.Condition(lock)._lock is lock
    condition.anything = 1
    assert condition.anything == 1


@pytest.mark.parametrize(
    "case",
    [
        lambda sync, ctx: sync.Condition(),
        lambda sync, ctx: sync.Condition(ctx.Lock()),
        lambda sync, ctx: sync.Condition(None, None, ctx=ctx),
        lambda sync, ctx: sync.Condition(ctx=None),
        lambda sync, ctx: sync.Condition(5, ctx=ctx),
        lambda sync, ctx: sync.Condition(0, ctx=ctx),
        lambda sync, ctx: sync.Condition(ctx.Event(), ctx=ctx),
        lambda sync, ctx: sync.Condition(ctx.Semaphore(3), ctx=ctx),
        lambda sync, ctx: type(sync.Condition(threading.Lock(), ctx=ctx)),
    ],
)
def test_making(both, case):
    import importlib

    results = []
    for ctx in both:
        name = type(ctx).__module__.replace("context", "synchronize")
        results.append(outcome(case, importlib.import_module(name), ctx))
    assert results[1] == results[0]


def test_acquire_and_release(mp):
    lock = mp.RLock()
    condition = mp.Condition(lock)
    assert condition.acquire() is True
    assert lock._semlock._is_mine()
    assert condition.acquire(False) is True
    assert condition.acquire(block=True, timeout=1) is True
    for _ in "123":
        assert condition.release() is None
    assert outcome(condition.release)[0] == "AssertionError"
    with condition as value:
        assert value is True
        assert in_thread(condition.acquire, False) is False
    with pytest.raises(KeyError):
        with condition:
            raise KeyError
    assert in_thread(lock.acquire, False) is True


def test_repr(mp):
    condition = mp.Condition()
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"
    with condition:
        assert repr(condition) == "<Condition(<RLock(MainProcess, 1)>, 0)>"
        assert condition.wait(0) is False
        assert repr(condition) == "<Condition(<RLock(MainProcess, 1)>, 0)>"
    assert repr(mp.Condition(mp.Lock())) == "<Condition(<Lock(owner=None)>, 0)>"
    assert repr(mp.Condition(mp.Semaphore(2))) == "<Condition(<Semaphore(value=2)>, 0)>"


def test_repr_counts_waiters(mp):
    condition = mp.Condition()
    waiters = Waiters(condition, 2)
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 2)>"
    with condition:
        condition.notify_all()
    waiters.wait_until_woken(2)
    assert repr(condition) == "<Condition(<RLock(None, 0)>, 0)>"


def test_un_acquired(condition):
    assert outcome(condition.wait) == WAIT_UNOWNED
    assert outcome(condition.wait, 0) == WAIT_UNOWNED
    assert outcome(condition.wait, "x") == WAIT_UNOWNED
    assert outcome(condition.notify) == NOTIFY_UNOWNED
    assert outcome(condition.notify, "x") == NOTIFY_UNOWNED
    assert outcome(condition.notify_all) == NOTIFY_UNOWNED
    assert outcome(condition.wait_for, lambda: False) == WAIT_UNOWNED


def test_acquired_by_another(condition):
    in_thread(condition.acquire)
    assert outcome(condition.wait) == WAIT_UNOWNED
    assert outcome(condition.notify) == NOTIFY_UNOWNED


def test_acquired_by_another_process(ctx):
    condition = ctx.Condition()
    child = Child(ctx, targets.hold, condition)
    child.expect("held")
    assert outcome(condition.wait) == WAIT_UNOWNED
    assert outcome(condition.notify) == NOTIFY_UNOWNED
    child.send("release")
    child.expect("done")
    child.join()


@pytest.mark.parametrize("n", [0, -1, 1, 1.5, 2**80, sys.maxsize, True, "x", None, []])
def test_notify_arguments(both, n):
    results = []
    for ctx in both:
        condition = ctx.Condition()
        with condition:
            results.append([outcome(condition.notify, n), outcome(condition.notify, n=n)])
            results[-1].append(repr(condition))
    assert results[1] == results[0]


@pytest.mark.parametrize(
    "timeout", [0, 0.0, -1, -1e300, 0.001, "x", [], 10**400, float("nan"), float("inf"), 1e300]
)
def test_wait_timeouts(both, timeout):
    """Whatever is wrong with the timeout: the lock is held again, as often as before."""
    results = []
    for ctx in both:
        condition = ctx.Condition()
        with condition, condition:
            results.append([outcome(condition.wait, timeout), condition._lock._semlock._count()])
            results[-1].append(repr(condition))
            condition.notify()
        assert in_thread(condition.acquire, False) is True
    assert results[1] == results[0]


def test_wait_gives_up(condition):
    with condition:
        began = time.monotonic()
        assert condition.wait(0.1) is False
        assert time.monotonic() - began > 0.09
        assert condition._lock._semlock._is_mine()


def test_notify_is_not_remembered(condition):
    with condition:
        condition.notify()
        condition.notify_all()
        assert condition.wait(0.01) is False


def test_wait_releases_an_rlock_wholly(mp):
    condition = mp.Condition()

    def wait():
        with condition, condition, condition:
            entered.release()
            result = condition.wait()
            return result, condition._lock._semlock._count()

    entered = threading.Semaphore(0)
    task = Task(wait)
    entered.acquire()
    with condition:
        condition.notify()
    assert task.get() == (True, 3)


def test_wait_over_a_semaphore(mp):
    """As often as it was acquired, it is released and acquired again."""
    semaphore = mp.Semaphore(3)
    condition = mp.Condition(semaphore)
    condition.acquire()
    condition.acquire()
    assert condition.wait(0) is False
    assert (semaphore.get_value(), semaphore._semlock._count()) == (1, 2)


def test_notify_wakes_one(condition):
    waiters = Waiters(condition, 1)
    with condition:
        condition.notify()
    waiters.wait_until_woken(1)
    assert waiters.woken == [(0, True)]


@pytest.mark.parametrize(("n", "count"), [(1, 3), (2, 4), (3, 3), (7, 3)])
def test_notify_wakes_so_many(condition, n, count):
    waiters = Waiters(condition, count)
    for woken in range(min(n, count), count + 1, n):
        with condition:
            condition.notify(n)
        waiters.wait_until_woken(woken)
    with condition:
        assert len(waiters.woken) == min(count, count // n * n or count)
        condition.notify_all()
    waiters.wait_until_woken(count)
    assert all(result is True for _, result in waiters.woken)


def test_notify_wakes_no_more_later(condition):
    """Nor do those that sleep on take a look in between for a notification."""
    waiters = Waiters(condition, 4)
    with condition:
        condition.notify(2)
    waiters.wait_until_woken(2)
    time.sleep(0.3)
    assert len(waiters.woken) == 2
    with condition:
        condition.notify_all()
    waiters.wait_until_woken(4)


@pytest.mark.parametrize("n", [0, -3])
def test_notify_wakes_none(condition, n):
    waiters = Waiters(condition, 2)
    with condition:
        condition.notify(n)
    with condition:
        assert condition.wait(0.02) is False
    assert waiters.woken == []
    with condition:
        condition.notify_all()
    waiters.wait_until_woken(2)


def test_notifications_add_up(condition):
    """Several while the lock is held, for as many waiters."""
    waiters = Waiters(condition, 4)
    with condition:
        condition.notify()
        condition.notify(2)
    waiters.wait_until_woken(3)
    with condition:
        condition.notify()
    waiters.wait_until_woken(4)


def test_who_gave_up_takes_no_notification(condition):
    first = Waiters(condition, 2, timeout=0.01)
    first.wait_until_woken(2)
    assert {result for _, result in first.woken} == {False}
    second = Waiters(condition, 2)
    with condition:
        condition.notify()
    second.wait_until_woken(1)
    with condition:
        condition.notify()
    second.wait_until_woken(2)


def test_who_comes_later_takes_no_notification(condition):
    """A notification is for those who wait already."""
    entered = threading.Semaphore(0)

    def wait():
        with condition:
            entered.release()
            return condition.wait(60)

    early = Waiters(condition, 1)
    with condition:
        condition.notify()
        late = Task(wait)
        wait_until_asleep(late)  # in acquire
    early.wait_until_woken(1)
    entered.acquire()
    with condition:
        assert late.is_alive()
        condition.notify()
    assert late.get() is True


def test_processes_one_by_one(ctx):
    condition = ctx.Condition()
    children = {}
    for _ in range(3):
        child = Child(ctx, targets.wait_condition, condition)
        child.expect("waits")
        children[child.connection] = child
    left = set(children)
    while left:
        with condition:
            condition.notify()
        (connection,) = wait_readable(*left)
        children[connection].expect(True)
        left.remove(connection)
        with condition:  # nobody else was woken
            assert not any(connection.poll() for connection in left)
    for child in children.values():
        child.join()


def test_processes_all_at_once(ctx):
    condition = ctx.Condition(ctx.Lock())
    children = [Child(ctx, targets.wait_condition, condition) for _ in range(3)]
    for child in children:
        child.expect("waits")
    with condition:
        condition.notify_all()
    for child in children:
        child.expect(True)
        child.join()
    assert repr(condition) == "<Condition(<Lock(owner=None)>, 0)>"


def test_threads_and_processes_share_the_notifications(mp):
    condition = mp.Condition()
    waiters = Waiters(condition, 2)
    children = [Child(mp, targets.wait_condition, condition) for _ in range(2)]
    for child in children:
        child.expect("waits")

    def woken():
        return len(waiters.woken) + sum(child.connection.poll() for child in children)

    for count in range(1, 5):
        with condition:
            condition.notify()
        while woken() < count:
            time.sleep(0.001)
        with condition:
            assert woken() == count
    for child in children:
        child.expect(True)
        child.join()


def test_notify_from_a_child(ctx):
    condition, state = ctx.Condition(), ctx.Value("i", 0, lock=False)
    children = [
        ctx.Process(target=targets.change_and_notify, args=(condition, state)) for _ in range(3)
    ]
    with condition:
        for child in children:
            child.start()
        assert condition.wait_for(lambda: state.value == 3, 60) is True
    for child in children:
        child.join()


# ---- wait_for ----------------------------------------------------------------------------------


def test_wait_for_what_holds_needs_no_lock(mp):
    condition = mp.Condition()
    assert condition.wait_for(lambda: "yes") == "yes"
    assert condition.wait_for(predicate=lambda: 5, timeout=None) == 5
    assert condition.wait_for(lambda: 0, 0) == 0
    assert condition.wait_for(list, -1) == []


def test_wait_for_asks_again(mp):
    condition = mp.Condition()
    answers = []

    def predicate():
        assert condition._lock._semlock._is_mine()
        answers.append(len(answers) >= 2 and "enough")
        return answers[-1]

    def wait():
        with condition:
            return condition.wait_for(predicate)

    task = Task(wait)
    while task.is_alive():
        with condition:
            condition.notify()
    assert task.get() == "enough"
    assert answers == [False, False, "enough"]


def test_wait_for_timeout(condition):
    asked = []
    with condition:
        began = time.monotonic()
        assert condition.wait_for(lambda: asked.append(1), 0.1) is None
        assert time.monotonic() - began > 0.09
        assert len(asked) == 2
        assert condition._lock._semlock._is_mine()


@pytest.mark.parametrize(
    "arguments",
    [
        (3,),
        (lambda: 1 / 0,),
        (lambda: False, "x"),
        (lambda: True, "x"),
        (lambda: False, float("nan")),
        (lambda: False, float("inf")),
        (),
    ],
)
def test_wait_for_arguments(both, arguments):
    results = []
    for ctx in both:
        condition = ctx.Condition()
        with condition:
            results.append([outcome(condition.wait_for, *arguments), repr(condition)])
    assert results[1] == results[0]


# ---- Subclasses and strange locks --------------------------------------------------------------


def test_notify_all_is_notify(synchronize, mp):
    seen = []

    class Watched(synchronize.Condition):
        def notify(self, n=1):
            seen.append(n)
            return super().notify(n)

    condition = Watched(ctx=mp)
    with condition:
        condition.notify_all()
        condition.notify()
    assert seen == [sys.maxsize, 1]
    assert repr(condition).startswith("<Watched(")


def test_wait_for_is_wait(synchronize, mp):
    seen = []

    class Watched(synchronize.Condition):
        def wait(self, timeout=None):
            seen.append(timeout)
            return super().wait(0)

    condition = Watched(ctx=mp)
    answers = iter([0, 0, 1])
    with condition:
        assert condition.wait_for(lambda: next(answers)) == 1
        assert seen == [None, None]
        assert condition.wait_for(lambda: 0, 0.001) == 0
        assert all(0 < timeout <= 0.001 for timeout in seen[2:])


def test_the_lock_of_two_conditions(mp):
    lock = mp.Lock()
    one, other = mp.Condition(lock), mp.Condition(lock)
    first, second = Waiters(one, 1), Waiters(other, 1)
    with other:
        other.notify_all()
    second.wait_until_woken(1)
    with lock:
        assert first.woken == []
        one.notify()
    first.wait_until_woken(1)


def test_unusable_timeout_releases_nothing_for_good(condition):
    with condition:
        with pytest.raises(OSError) as raised:
            condition.wait(float("nan"))
        assert raised.value.errno == errno.EINVAL
    assert in_thread(condition.acquire, False) is True


# What each of these locks is asked, a condition must ask: not look at what is beneath.
class Asked:
    """A lock around a lock, with a _semlock around its _semlock."""

    def __init__(self, lock, seen):
        self.lock, self.seen = lock, seen

    def __getattr__(self, name):
        if name == "_semlock":
            return Asked(self.lock._semlock, self.seen)
        self.seen.append(name)
        return getattr(self.lock, name)


def test_a_lock_that_is_no_lock_of_ours(mp):
    seen = []
    condition = mp.Condition(Asked(mp.RLock(), seen))
    condition._lock.acquire()
    condition._lock.acquire()
    seen.clear()
    assert condition.wait(0) is False
    assert seen == ["_is_mine", "_count", *["release"] * 2, *["acquire"] * 2]
    seen.clear()
    condition.notify()
    condition.notify_all()
    assert seen == ["_is_mine"] * 2
    assert condition._lock.lock._semlock._count() == 2


# In the next three, only ours: _semlock is an attribute of each object of the stdlib's.


@pytest.mark.parametrize("package", ["mproc_ext"], indirect=True)
def test_a_lock_with_a_semlock_of_its_own(synchronize, mp):
    answers = []

    class Watched(synchronize.RLock):
        @property
        def _semlock(self):
            answers.append("asked")
            return super()._semlock

    condition = mp.Condition(Watched(ctx=mp))
    for _ in range(3):
        with condition:
            answers.clear()
            condition.notify()
            assert answers
            answers.clear()
            condition.wait(0)
            assert len(answers) >= 2


@pytest.mark.parametrize("package", ["mproc_ext"], indirect=True)
def test_a_lock_whose_class_changes(synchronize, mp):
    """What a condition knows of the class holds until then."""

    class Changing(synchronize.Lock):
        pass

    class NotMine:
        def _is_mine(self):
            return False

    condition = mp.Condition(Changing(ctx=mp))
    with condition:
        for _ in range(3):
            condition.notify()
        Changing._semlock = NotMine()
        assert outcome(condition.notify) == NOTIFY_UNOWNED
        assert outcome(condition.wait) == WAIT_UNOWNED
        del Changing._semlock
        condition.notify()


@pytest.mark.parametrize("package", ["mproc_ext"], indirect=True)
def test_a_lock_that_says_itself_what_its_attributes_are(synchronize, mp):
    class NotMine:
        def _is_mine(self):
            return False

    class Strange(synchronize.Lock):
        def __getattribute__(self, name):
            return NotMine() if name == "_semlock" else super().__getattribute__(name)

    condition = mp.Condition(Strange(ctx=mp))
    with condition:
        assert outcome(condition.notify) == NOTIFY_UNOWNED


def test_another_lock_in_its_place(mp):
    condition = mp.Condition()
    condition.acquire()
    condition.notify()
    condition._lock = mp.Lock()
    assert outcome(condition.notify) == NOTIFY_UNOWNED
    condition._lock.acquire()
    condition.notify()
    assert condition.wait(0) is False
    del condition._lock
    for method in (condition.wait, condition.notify, condition.notify_all, condition.__enter__):
        assert outcome(method)[0] == "AttributeError"


def test_methods_of_the_lock_are_called_as_they_are(synchronize, mp):
    seen = []

    class Watched(synchronize.RLock):
        def acquire(self, *args, **kwargs):
            seen.append("acquire")
            return super().acquire(*args, **kwargs)

        def release(self):
            seen.append("release")
            return super().release()

        def __enter__(self):
            seen.append("__enter__")
            return super().__enter__()

        def __exit__(self, *args):
            seen.append(args)
            return super().__exit__(*args)

    # The stdlib's lock has attributes of its own by these names, which come first.
    expected = ["release", "acquire"] if "mproc_ext" in str(synchronize) else []
    condition = mp.Condition(Watched(ctx=mp))
    with condition:
        assert seen == ["__enter__"]
        seen.clear()
        condition.wait(0)
        assert seen == expected
        seen.clear()
    assert seen == [(None, None, None)]


def test_exceptions_of_the_lock(mp):
    """One that comes while the lock is acquired again has the one of the wait as its context."""

    class Failing:
        def __init__(self, lock):
            self.lock, self._semlock, self.fails = lock, lock._semlock, ()

        def acquire(self):
            self.lock.acquire()
            if "acquire" in self.fails:
                raise KeyError("acquire")

        def release(self):
            if "release" in self.fails:
                raise KeyError("release")
            self.lock.release()

    lock = Failing(mp.Lock())
    condition = mp.Condition(lock)
    lock.acquire()
    lock.fails = ("release",)
    with pytest.raises(KeyError, match="release"):
        condition.wait(0)
    assert lock._semlock._is_mine()
    lock.fails = ("acquire",)
    with pytest.raises(KeyError, match="acquire") as raised:
        condition.wait(float("nan"))
    assert isinstance(raised.value.__context__, OSError)
    assert lock._semlock._is_mine()


def test_acquire_and_release_are_attributes(synchronize, mp):
    condition = mp.Condition()
    condition.acquire = condition.release = lambda: "mine"
    assert (condition.acquire(), condition.release()) == ("mine", "mine")
    del condition.acquire
    assert not hasattr(condition, "acquire")

    class Own(synchronize.Condition):
        def acquire(self):
            raise NotImplementedError

    condition = Own(ctx=mp)
    assert condition.acquire() is True  # the lock's: set on the object, it comes first


def test_without_asserts(package):
    program = (
        f"import {package.__name__} as mp; c = mp.get_context('fork').Condition(); "
        "c.notify(); c.notify_all(); print(c.wait(0))"
    )
    assert run_program("-O", "-c", program) == "False\n"


def test_freed_with_a_cycle(mp):
    condition = mp.Condition()
    condition._lock.condition = condition
    condition.itself = condition
    gone = weakref.ref(condition)
    del condition
    gc.collect()
    assert gone() is None
