"""Semaphore and BoundedSemaphore: the stdlib's behaviour to the letter."""

import errno
import sys

import pytest
import sync_targets as targets
from sync_helpers import Child, Task, ask, in_thread, outcome, wait_until_asleep

MOST = 2**31 - 1
TOO_OFTEN = ("ValueError", "semaphore or lock released too many times", None)
TOO_LARGE = ("OverflowError", "Python int too large to convert to C int", None)
INVALID = ("OSError", "[Errno 22] Invalid argument", errno.EINVAL)


@pytest.fixture(params=["Semaphore", "BoundedSemaphore"])
def kind(request):
    return request.param


@pytest.fixture
def make(mp, kind):
    return getattr(mp, kind)


class Index:
    def __index__(self):
        return 3


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (-1, INVALID),
        (-(2**31), INVALID),
        (-(2**31) - 1, TOO_LARGE),
        (2**31, TOO_LARGE),
        (2**40, TOO_LARGE),
        (2**70, TOO_LARGE),
        (1.0, ("TypeError", "'float' object cannot be interpreted as an integer", None)),
        ("1", ("TypeError", "'str' object cannot be interpreted as an integer", None)),
        (None, ("TypeError", "'NoneType' object cannot be interpreted as an integer", None)),
        ([], ("TypeError", "'list' object cannot be interpreted as an integer", None)),
    ],
)
def test_values_that_it_refuses(make, value, expected):
    assert outcome(make, value) == expected


@pytest.mark.parametrize(
    ("value", "number"), [(0, 0), (1, 1), (5, 5), (True, 1), (Index(), 3), (MOST, MOST)]
)
def test_values(make, kind, value, number):
    semaphore = make(value)
    assert semaphore.get_value() == number
    assert semaphore._semlock._get_value() == number
    assert semaphore._semlock.kind == 1
    if kind == "Semaphore":
        assert repr(semaphore) == f"<Semaphore(value={number})>"
        assert semaphore._semlock.maxvalue == MOST
    elif not isinstance(value, Index):
        assert repr(semaphore) == f"<BoundedSemaphore(value={number}, maxvalue={number})>"
        assert semaphore._semlock.maxvalue == number
    assert semaphore.acquire(False) is (number > 0)


def test_value_is_1_unless_said(make):
    assert make().get_value() == 1
    assert make(value=4).get_value() == 4


def test_values_count(make):
    semaphore = make(3)
    for left in (2, 1, 0):
        assert semaphore.acquire() is True
        assert semaphore.get_value() == left
        assert semaphore._semlock._is_zero() is (left == 0)
    assert semaphore.acquire(False) is False
    assert semaphore.acquire(True, 0.001) is False
    for left in (1, 2, 3):
        assert semaphore.release() is None
        assert semaphore.get_value() == left


def test_a_semaphore_may_grow(mp):
    semaphore = mp.Semaphore(0)
    for value in range(1, 6):
        semaphore.release()
        assert semaphore.get_value() == value
    assert repr(semaphore) == "<Semaphore(value=5)>"
    assert semaphore._semlock._count() == -5
    assert semaphore._semlock._is_mine() is False


def test_a_bounded_one_may_not(mp):
    semaphore = mp.BoundedSemaphore(2)
    assert outcome(semaphore.release) == TOO_OFTEN
    semaphore.acquire()
    semaphore.release()
    assert outcome(semaphore.release) == TOO_OFTEN
    assert semaphore.get_value() == 2
    assert repr(semaphore) == "<BoundedSemaphore(value=2, maxvalue=2)>"
    assert outcome(mp.BoundedSemaphore(0).release) == TOO_OFTEN


def test_the_greatest_value(mp):
    semaphore = mp.Semaphore(MOST)
    assert outcome(semaphore.release) == TOO_OFTEN
    assert semaphore.acquire() is True
    assert semaphore.release() is None
    assert outcome(semaphore.release) == TOO_OFTEN
    assert semaphore.get_value() == MOST


def test_count_and_owner(make):
    semaphore = make(3)
    semaphore.acquire()
    semaphore.acquire()
    assert (semaphore._semlock._count(), semaphore._semlock._is_mine()) == (2, True)
    assert in_thread(semaphore._semlock._is_mine) is False
    in_thread(semaphore.release)
    assert (semaphore._semlock._count(), semaphore._semlock._is_mine()) == (1, True)
    in_thread(semaphore.acquire)  # the last to acquire is the owner
    assert (semaphore._semlock._count(), semaphore._semlock._is_mine()) == (2, False)


def test_with(make):
    semaphore = make(1)
    with semaphore as result:
        assert result is True
        assert semaphore.get_value() == 0
    with pytest.raises(KeyError):
        with semaphore:
            raise KeyError
    assert semaphore.get_value() == 1


def test_repr_in_another_process(ctx, kind):
    semaphore = getattr(ctx, kind)(4)
    semaphore.acquire()
    text = f"<{kind}(value=3{'' if kind == 'Semaphore' else ', maxvalue=4'})>"
    assert repr(semaphore) == text
    assert ask(ctx, targets.call, semaphore, "__repr__", "get_value", "acquire") == [text, 3, True]
    assert semaphore.get_value() == 2


def test_bound_holds_across_processes(ctx):
    semaphore = ctx.BoundedSemaphore(1)
    assert ask(ctx, targets.call, semaphore, "release") == [TOO_OFTEN[:2]]
    semaphore.acquire()
    assert ask(ctx, targets.call, semaphore, "release", "release") == [None, TOO_OFTEN[:2]]


def test_subclass(synchronize, mp, kind):
    class Mine(getattr(synchronize, kind)):
        def __init__(self, tag, value=2, *, ctx):
            super().__init__(value, ctx=ctx)
            self.tag = tag

        def get_value(self):
            return -super().get_value()

    semaphore = Mine("t", ctx=mp)
    assert (semaphore.tag, semaphore.get_value()) == ("t", -2)
    # The repr asks get_value since 3.14, and _semlock before.
    value = "-2" if sys.version_info >= (3, 14) else "2"
    assert repr(semaphore).startswith(f"<Mine(value={value}")


def test_one_release_wakes_one(make):
    semaphore = make(1)
    semaphore.acquire()
    waiters = [Task(semaphore.acquire) for _ in range(3)]
    for waiter in waiters:
        wait_until_asleep(waiter)
    for left in (2, 1, 0):
        semaphore.release()
        while sum(waiter.is_alive() for waiter in waiters) > left:
            waiters[0].join(0.001)
        assert sum(waiter.is_alive() for waiter in waiters) == left
    assert semaphore.get_value() == 0


def test_many_releases_wake_many(ctx):
    semaphore = ctx.Semaphore(0)
    children = [Child(ctx, targets.acquire, semaphore, False) for _ in range(3)]
    for child in children:
        child.expect("waits")
        wait_until_asleep(child)
    for _ in children:
        semaphore.release()
    for child in children:
        child.expect("got it")
        child.join()
    assert semaphore.get_value() == 0


def test_no_more_than_its_value_are_inside(ctx, kind):
    semaphore = getattr(ctx, kind)(2)
    inside, most = ctx.Value("i", 0), ctx.Value("i", 0)
    arguments = (semaphore, inside, most, 50)
    children = [ctx.Process(target=targets.use_semaphore, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    targets.use_semaphore(*arguments)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert inside.value == 0
    assert 1 <= most.value <= 2
    assert semaphore.get_value() == 2


def test_nothing_is_lost_or_gained(make, mp):
    """Threads and processes that take and give at once."""
    semaphore = make(3)

    def work():
        for turn in range(300):
            if turn % 3:
                with semaphore:
                    pass
            elif semaphore.acquire(False):
                semaphore.release()

    children = [mp.Process(target=work) for _ in range(2)]
    for child in children:
        child.start()
    for task in [Task(work) for _ in range(3)]:
        task.get()
    for child in children:
        child.join()
    assert semaphore.get_value() == 3
