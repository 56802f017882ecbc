"""Locks travel to children while these start, and in no other way."""

import copy
import importlib
import pickle

import pytest
import sync_targets as targets
from sync_helpers import Child, ask, outcome, run_program, wait_until_asleep

MAKERS = {
    "Lock": lambda ctx: ctx.Lock(),
    "RLock": lambda ctx: ctx.RLock(),
    "Semaphore": lambda ctx: ctx.Semaphore(3),
    "BoundedSemaphore": lambda ctx: ctx.BoundedSemaphore(3),
    "Condition": lambda ctx: ctx.Condition(),
    "Event": lambda ctx: ctx.Event(),
    "Barrier": lambda ctx: ctx.Barrier(2),
}
PICKLES_ITSELF = ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition")


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


def refusal(name):
    text = f"{name} objects should only be shared between processes through inheritance"
    return "RuntimeError", text, None


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(mp, kind, protocol):
    thing = MAKERS[kind](mp)
    pickles_itself = kind in PICKLES_ITSELF or (kind == "Event" and hasattr(thing, "_take"))
    name = kind if pickles_itself else "Condition"
    assert outcome(pickle.dumps, thing, protocol) == refusal(name)
    assert outcome(pickle.dumps, [thing], protocol) == refusal(name)


def test_copying_is_refused(both, kind):
    results = []
    for ctx in both:
        thing = MAKERS[kind](ctx)
        results.append([outcome(copy.deepcopy, thing)[0], outcome(copy.copy, thing)[0]])
        if kind != "Event":  # the stdlib's is a pair of others
            results[-1].append(outcome(lambda thing=thing: thing.__getstate__())[:1])
    assert results[1] == results[0]


def test_the_refusal_names_the_class(synchronize, mp):
    class Mine(synchronize.Lock):
        pass

    class Condition(synchronize.Condition):
        pass

    assert outcome(pickle.dumps, Mine(ctx=mp)) == refusal("Mine")
    assert outcome(pickle.dumps, Condition(ctx=mp)) == refusal("Condition")


def test_through_a_queue_it_is_refused(mp, kind, capfd):
    queue = mp.SimpleQueue()
    assert outcome(queue.put, MAKERS[kind](mp))[0] == "RuntimeError"
    _reader, writer = mp.Pipe()
    assert outcome(writer.send, MAKERS[kind](mp))[0] == "RuntimeError"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_of_a_fork_context_to_another(package, kind, method):
    thing = MAKERS[kind](package.get_context("fork"))
    ctx = package.get_context(method)
    process = ctx.Process(target=targets.set_event, args=(thing,))
    expected = (
        "A SemLock created in a fork context is being shared with a process in a spawn context. "
        "This is not supported. Please use the same context to create multiprocessing objects and "
        "Process."
    )
    if kind == "Barrier":  # its heap block is refused first, or its lock
        assert outcome(process.start)[0] in ("RuntimeError", "AttributeError", "TypeError")
    else:
        assert outcome(process.start) == ("RuntimeError", expected, None)


@pytest.mark.parametrize("made", ["spawn", "forkserver"])
@pytest.mark.parametrize("used", ["fork", "spawn", "forkserver"])
def test_of_another_context(package, made, used):
    lock = package.get_context(made).Lock()
    lock.acquire()
    ctx = package.get_context(used)
    assert ask(ctx, targets.describe_lock, lock)[2:] == (0, True, False)
    lock.release()
    assert ask(ctx, targets.call, lock, "acquire") == [True]
    assert lock.acquire(False) is False


def test_kinds_arrive(ctx, kind):
    assert ask(ctx, targets.send_back, MAKERS[kind](ctx)) == kind


def test_what_arrives_is_the_same_lock(ctx):
    """Given twice, and inside something else."""
    lock = ctx.Lock()
    lock.acquire()
    child = Child(ctx, targets.acquire, lock)
    child.expect("waits")
    wait_until_asleep(child)
    lock.release()
    child.expect("got it")
    child.join()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_child_hands_it_on(package, method):
    """What was unpickled can be pickled again, by any start method (gh-108520)."""
    ctx = package.get_context(method)
    lock = ctx.Lock()
    lock.acquire()
    for further in ("fork", "spawn", "forkserver"):
        child = Child(ctx, targets.hand_on, further, package.__name__, lock)
        assert child.recv()[2:] == (0, True, False)
        child.join()


@pytest.mark.parametrize("kind", PICKLES_ITSELF)
def test_subclass(package, method, kind):
    ctx = package.get_context(method)
    thing = targets.TAGGED[package.__name__, kind]("tag", ctx=ctx)
    child = Child(ctx, targets.use_tagged, thing, name="Kid")
    tag, name, inside, again = child.recv()
    child.join()
    # __getstate__ and __setstate__ were called where there was something to pickle.
    assert tag == ("tag" if method == "fork" else "tag!")
    assert name == type(thing).__name__
    assert again is True
    if kind in ("Lock", "RLock"):
        assert "Kid" in inside
    assert thing.acquire(False) is True


FORK_SERVERS_OWN = """
import importlib, os, sys
ctx = importlib.import_module(sys.argv[1]).get_context("forkserver")
OWN = ctx.Lock()  # the fork server has one as well, in an arena that its children share

def leaf(lock, same, value, array, given):
    given.acquire()
    lock.acquire()
    value.value += 1
    array[0] = 5
    print(same.acquire(False), len(os.listdir("/proc/self/fd")))

def child(given):
    made = [ctx.Lock() for _ in range(100)]
    value, array = ctx.Value("i", 3), ctx.Array("i", 3)
    for lock in made[:3]:
        args = lock, lock, value, array, given
        process = ctx.Process(target=leaf, args=args)
        process.start()
        process.join()
        print(process.exitcode, lock.acquire(False), value.value, array[0], given.acquire(False))
        given.release()
    lock = made[50]
    del made
    print(any(ctx.Lock().acquire(False) is False for _ in range(1000)), lock.acquire(False))

if __name__ == "__main__":
    given = ctx.Lock()
    process = ctx.Process(target=child, args=(given,))
    process.start()
    process.join()
    print(process.exitcode)
"""


def test_what_a_fork_servers_child_makes(tmp_path):
    """It gives the child of its own what lies in the fork server's arena, which that knows."""
    program = tmp_path / "fork_servers_own.py"
    program.write_text(FORK_SERVERS_OWN)
    out = {name: run_program(str(program), name) for name in ("multiprocessing", "mproc_ext")}
    lines = {name: text.splitlines() for name, text in out.items()}
    for name in lines:  # no descriptor more from one to the next
        assert (
            len({line for line in lines[name] if line.startswith("False ")} - {"False True"}) == 1
        )
    assert lines["mproc_ext"][1::2] == lines["multiprocessing"][1::2]
    assert lines["mproc_ext"][-2:] == ["False True", "0"]


def test_what_is_in_an_event_arrives(package, ctx):
    """Unlike a lock's: the stdlib's Event has no __getstate__."""
    event = targets.SLOTTED[package.__name__](ctx=ctx)
    event.tag, event.slot, event.itself = "tag", "slot", event
    event.set()
    assert ask(ctx, targets.describe_own, event) == ("tag", "slot", True, True)


def test_an_unpickled_condition_is_one_with_its_lock(ctx):
    lock = ctx.Lock()
    condition = ctx.Condition(lock)
    child = Child(ctx, targets.wait_condition, condition)
    child.expect("waits")
    with lock:
        condition.notify()
    child.expect(True)
    child.join()


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize(
    ("made", "started"), [("multiprocessing", "mproc_ext"), ("mproc_ext", "multiprocessing")]
)
def test_one_world(made, started, method, kind):
    """Each package's objects reach the other's processes."""
    thing = MAKERS[kind](importlib.import_module(made).get_context(method))
    ctx = importlib.import_module(started).get_context(method)
    assert ask(ctx, targets.send_back, thing) == kind
    if hasattr(thing, "acquire"):
        thing.acquire()
        if "Lock" in kind:
            assert ask(ctx, targets.describe_lock, thing)[1:] == (False, 0, True, False)
