"""The shared memory of queues goes back to the kernel: drained, dropped, idle."""

import queue
import time

import pytest
import queue_targets
import zero_copy_targets
from queue_helpers import OURS, stored
from sync_helpers import Child, wait_until
from zero_copy_targets import Carrier

pytestmark = pytest.mark.skipif(not OURS, reason="about ours")

LITTLE = 5_000_000  # what may be kept for the next message


@pytest.fixture
def base(ours):
    """What is stored once nothing is left of other tests."""
    q = ours.Queue()
    q.put(bytes(100_000))
    q.get()
    del q
    return stored()


SIZES = {"large": [5_000_000] * 20, "many": [100_000] * 500, "mixed": [10, 70_000, 8_000_000] * 8}


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_drained(ours, kind, sizes, base):
    q = getattr(ours, kind)()
    for size in sizes:
        q.put(bytes(size))
    assert stored() > sum(sizes)
    for size in sizes:
        assert len(q.get()) == size
    assert stored() < base + LITTLE


def test_drained_by_another_process(ours, base):
    q = ours.Queue()
    for _ in range(20):
        q.put(bytes(5_000_000))
    child = Child(ours, queue_targets.get_some_and_stay, q, 20)
    child.expect("got")
    assert stored() < base + LITTLE
    child.kill()


def test_dropped_with_what_is_in_it(ours, base):
    q = ours.Queue()
    for _ in range(20):
        q.put(bytes(5_000_000))
    del q
    assert stored() < base + LITTLE


def test_many_queues_that_are_dropped(ours, base):
    queues = [ours.Queue() for _ in range(500)]
    assert stored() > 50_000_000
    queues.clear()
    assert stored() < base + 2 * LITTLE


def test_shut_down_at_once(ours, base):
    q = ours.Queue()
    for _ in range(20):
        q.put(bytes(5_000_000))
    q.shutdown(immediate=True)
    assert stored() < base + LITTLE


def test_a_program_that_goes_on_keeps_what_it_needs(ours):
    """Else it would pay for the storage of every message anew."""
    q = ours.Queue()
    for round, count in enumerate([2, 2, 1, 2, 2, 1, 1, 2] * 4):
        for _ in range(count):
            q.put(bytes(8_000_000))
        for _ in range(count):
            q.get()
        assert round == 0 or stored() > 16_000_000
    assert stored() < 80_000_000


@pytest.mark.parametrize("how", ["nowait", "timeout", "waits"])
def test_a_program_that_goes_on_no_more(ours, how, base):
    q = ours.Queue()
    for _ in range(10):
        q.put(bytes(8_000_000))
        q.get()
    assert stored() > base + LITTLE

    def asks():
        if how == "nowait":
            time.sleep(0.01)
        with pytest.raises(queue.Empty):
            q.get(how != "nowait", {"nowait": None, "timeout": 0.02, "waits": 5}[how])
        return stored() < base + LITTLE

    wait_until(asks)


def test_what_a_killed_process_had_on_loan(ours, base):
    q = ours.Queue(zero_copy=True)
    child = Child(ours, zero_copy_targets.get_and_hold, q)
    q.put(Carrier(bytearray(50_000_000)))
    assert child.recv() > 50_000_000
    assert stored() > 50_000_000
    child.kill()

    def asks():
        with pytest.raises(queue.Empty):
            q.get(timeout=0.1)
        return stored() < base + LITTLE

    wait_until(asks)


def test_what_was_on_loan(ours, base):
    q = ours.Queue(zero_copy=True)
    for _ in range(10):
        q.put(Carrier(bytearray(8_000_000)))
    kept = [q.get() for _ in range(10)]
    assert stored() > 80_000_000
    kept.clear()
    assert stored() < base + LITTLE
