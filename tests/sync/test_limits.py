"""Few descriptors, little memory, closed descriptors, very many locks: programs of their own."""

import os
import platform

import pytest
from sync_helpers import ours, run_program

pytestmark = pytest.mark.skipif(
    not ours("Lock"), reason="mproc_ext.synchronize hands out the stdlib's locks"
)
needs_event = pytest.mark.skipif(not ours("Event"), reason="Event is the stdlib's")
LIBC = platform.libc_ver()[0]
FULL = os.environ.get("MPROC_EXT_STORM") == "full"

START = """
import errno, gc, os, resource, sys, threading, warnings
import mproc_ext
warnings.simplefilter("error", RuntimeWarning)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def in_child(ctx, function, *args):
    process = ctx.Process(target=function, args=args)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode

def works(ctx):
    "A lock, made now, does what it should, in two processes."
    lock = ctx.Lock()
    lock.acquire()
    in_child(ctx, lock.release)
    assert lock.acquire(False) is True and lock.acquire(False) is False
"""


def run(body, **kwargs):
    return run_program("-c", START + body, **kwargs)


@needs_event
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_few_descriptors(method, tmp_path):
    """3,500 locks and events where a process may have 256 descriptors, children too."""
    program = tmp_path / "few_descriptors.py"
    program.write_text(
        START
        + f"""
def check(locks, events):
    assert not any(lock.acquire(False) for lock in locks[::2])
    assert all(lock.acquire(False) for lock in locks[1::2])
    for event in events:
        event.set()

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    ctx = mproc_ext.get_context({method!r})
    before = descriptors()
    locks = [ctx.Lock() for _ in range(3500)]
    events = [ctx.Event() for _ in range(3500)]
    more = descriptors() - before
    for lock in locks[::2]:
        lock.acquire()
    in_child(ctx, check, locks, events)
    assert not any(lock.acquire(False) for lock in locks)
    assert all(event.is_set() for event in events)
    assert more < 20, more
    print("all right")
"""
    )
    assert run_program(program) == "all right\n"


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_queues_with_few_descriptors(method, tmp_path):
    """100 queues, which have a pipe each, where a process may have 256 descriptors."""
    program = tmp_path / "queues.py"
    program.write_text(
        START
        + f"""
def echo(queues):
    for number, queue in enumerate(queues):
        queue.put(queue.get(timeout=50) + number)

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    ctx = mproc_ext.get_context({method!r})
    queues = [ctx.Queue() for _ in range(100)]
    for queue in queues:
        queue.put(1)
    in_child(ctx, echo, queues)
    assert [queue.get(timeout=50) for queue in queues] == list(range(1, 101))
    print("all right")
"""
    )
    assert run_program(program) == "all right\n"


@needs_event
def test_all_kinds_with_few_descriptors():
    assert (
        run("""
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
ctx = mproc_ext.get_context("fork")
things = [
    [ctx.Lock(), ctx.RLock(), ctx.Semaphore(3), ctx.BoundedSemaphore(3), ctx.Condition(),
     ctx.Event(), ctx.Barrier(1)]
    for _ in range(300)
]
for lock, rlock, semaphore, bounded, condition, event, barrier in things:
    with lock, rlock, semaphore, bounded, condition:
        condition.notify_all()
    event.set()
    assert barrier.wait() == 0
print("all right")
""")
        == "all right\n"
    )


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_no_descriptor_left(method):
    """The first lock of a process that has no descriptor left: an OSError, and later it works."""
    assert (
        run(f"""
ctx = mproc_ext.get_context({method!r})
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    while True:
        taken.append(os.dup(0))
except OSError as error:
    assert error.errno == errno.EMFILE
made = []
try:
    for _ in range(5000):
        made.append(ctx.Lock())
except OSError as error:
    assert error.errno in (errno.EMFILE, errno.ENFILE), error
for lock in made:
    assert lock.acquire(False) is True
for fd in taken:
    os.close(fd)
for lock in made:
    assert lock.acquire(False) is False
if {method!r} == "fork":
    works(ctx)
print("all right")
""")
        == "all right\n"
    )


def test_no_address_space():
    """Locks until there is no address space left: MemoryError or OSError; those that were made
    are whole."""
    assert (
        run("""
ctx = mproc_ext.get_context("fork")
lock = ctx.Lock()
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (12 << 20), hard))
made = []
try:
    for _ in range(1_000_000):
        made.append(ctx.Lock())
except MemoryError:
    pass
except OSError as error:
    assert error.errno in (errno.ENOMEM, errno.ENOSPC), error
else:
    raise AssertionError("there was memory for a million locks")
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
assert len(made) > 100
assert all(lock.acquire(False) for lock in made)
assert not any(lock.acquire(False) for lock in made)
assert lock.acquire(False) is True
for one in made:
    one.release()
del made, one
works(ctx)
print("all right")
""")
        == "all right\n"
    )


def test_no_address_space_for_the_first():
    """OSError, which programs like tqdm take for a reason to do without."""
    program = """
import importlib, os, resource, sys
package = importlib.import_module(sys.argv[1])
synchronize = importlib.import_module(f"{sys.argv[1]}.synchronize")
ctx = package.get_context("fork")
next(getattr(synchronize.SemLock, "_rand", None) or iter("."))
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size, hard))
made, error = [None] * 1000, None
try:
    for number in range(1000):
        made[number] = synchronize.Lock(ctx=ctx)
except Exception as raised:
    error = raised
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
print(type(error).__name__, error)
"""
    names = ("multiprocessing", "mproc_ext")
    theirs, mine = (run_program("-c", program, name) for name in names)
    assert mine == theirs == "OSError [Errno 12] Cannot allocate memory\n"


@needs_event
@pytest.mark.parametrize("kind", ["RLock", "Semaphore", "Condition", "Event", "Barrier"])
def test_no_address_space_for_others(kind):
    arguments = "2" if kind == "Barrier" else ""
    assert (
        run(f"""
ctx = mproc_ext.get_context("fork")
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
soft, hard = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (size + (8 << 20), hard))
made = []
try:
    for _ in range(1_000_000):
        made.append(ctx.{kind}({arguments}))
except (MemoryError, OSError):
    pass
resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
texts = set(repr(one).replace(hex(id(one)), "") for one in made[::50])
assert len(texts) == 1, texts
made.clear()
works(ctx)
print("all right")
""")
        == "all right\n"
    )


def test_very_many_locks_one_after_the_other():
    """A million (ten million in the full storm), with forks between; a child forked midway holds
    a thousand and finds them as it left them."""
    total = 10_000_000 if FULL else 1_000_000
    assert (
        run(
            f"""
total, forks = {total}, 20
ctx = mproc_ext.get_context("fork")

def churn(count):
    Lock = ctx.Lock
    for _ in range(count // 100):
        kept = [Lock() for _ in range(100)]
        kept[0].acquire()
        kept[50].acquire()
        assert kept[1].acquire(False)

def keep(reader, writer, locks):
    mine = [ctx.Lock() for _ in range(500)] + locks
    for lock in mine[::3]:
        lock.acquire()
    writer.send("ready")
    reader.recv()
    assert not any(lock.acquire(False) for lock in mine[::3])
    assert all(lock.acquire(False) for lock in mine[1::3])

churn(total // forks)
before = None
for turn in range(forks - 1):
    if turn == forks // 2:
        ours, theirs = ctx.Pipe()
        inherited = [ctx.Lock() for _ in range(500)]
        keeper = ctx.Process(target=keep, args=(theirs, theirs, inherited))
        keeper.start()
        assert ours.recv() == "ready"
        del inherited
    churn(total // forks)
    in_child(ctx, churn, 1000)
    if turn == 1:
        before = memory()
growth = memory() - before
ours.send("check")
keeper.join()
assert keeper.exitcode == 0, keeper.exitcode
assert growth < 4 << 20, growth
print("all right")
""",
            limit=600 if FULL else 100,
        )
        == "all right\n"
    )


@needs_event
def test_very_many_of_each_kind():
    assert (
        run("""
ctx = mproc_ext.get_context("fork")
made = [ctx.Lock, ctx.RLock, ctx.Semaphore, ctx.BoundedSemaphore, ctx.Condition, ctx.Event,
        lambda: ctx.Barrier(2)]
for make in made:
    for _ in range(2000):
        make()
before, open_before = memory(), descriptors()
for make in made:
    for _ in range(20_000):
        make()
gc.collect()
assert memory() - before < 2 << 20, memory() - before
assert descriptors() == open_before
print("all right")
""")
        == "all right\n"
    )


def test_cycles_are_collected():
    """A lock that refers to itself."""
    assert (
        run("""
ctx = mproc_ext.get_context("fork")
before = None
for turn in range(200_000):
    lock = ctx.Lock()
    lock.itself = lock
    if turn == 140_000:  # until then a free-threaded Python's own heap grows
        gc.collect()
        before = memory()
gc.collect()
assert memory() - before < 2 << 20, memory() - before
print("all right")
""")
        == "all right\n"
    )


def test_descriptors_closed():
    """A daemon closes all it has inherited, and opens others under the same numbers."""
    assert (
        run("""
ctx = mproc_ext.get_context("fork")
locks = [ctx.Lock() for _ in range(100)]
event = ctx.Event()
os.closerange(3, 256)
files = [os.open("/dev/null", os.O_RDWR) for _ in range(40)]
for lock in locks[::2]:
    lock.acquire()

def look():
    assert not any(lock.acquire(False) for lock in locks[::2])
    assert all(lock.acquire(False) for lock in locks[1::2])
    event.set()

pid = os.fork()
if pid == 0:
    look()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert event.wait(30) is True
more = [ctx.Lock() for _ in range(5000)]
assert all(lock.acquire(False) for lock in more)
works(ctx)
for fd in files:  # nobody has closed, resized or written to what took the numbers
    assert os.readlink(f"/proc/self/fd/{fd}") == "/dev/null"
print("all right")
""")
        == "all right\n"
    )


def test_descriptors_closed_and_replaced_by_files(tmp_path):
    """The numbers mean the program's own files now: their contents stay what they were."""
    assert (
        run(f"""
ctx = mproc_ext.get_context("fork")
locks = [ctx.Lock() for _ in range(100)]
os.closerange(3, 256)
files = []
for number in range(40):
    fd = os.open({str(tmp_path)!r} + f"/{{number}}", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"the program's own data" * 10)
    files.append(fd)
more = [ctx.Lock() for _ in range(20_000)]
del more[::2]
for turn in range(50):
    more += [ctx.Lock() for _ in range(500)]
    del more[:100]
assert all(lock.acquire(False) for lock in locks)
for fd in files:
    assert os.pread(fd, 1000, 0) == b"the program's own data" * 10
    assert os.fstat(fd).st_size == 220
print("all right")
""")
        == "all right\n"
    )


def test_nothing_in_dev_shm():
    assert (
        run("""
import multiprocessing
from multiprocessing import process, resource_tracker, synchronize

def named():
    return [name for name in os.listdir("/dev/shm") if name.startswith(f"sem.mpx-{os.getpid()}-")]

# Other programs make semaphores meanwhile: this one's have names of their own.
process.current_process()._config["semprefix"] = f"/mpx-{os.getpid()}"
ctx = mproc_ext.get_context("spawn")
things = [ctx.Lock(), ctx.RLock(), ctx.Semaphore(2), ctx.Condition(), ctx.Event(), ctx.Barrier(3)]
assert not named()
assert resource_tracker._resource_tracker._pid is None
theirs = synchronize.Lock(ctx=multiprocessing.get_context("spawn"))
assert len(named()) == 1
print("all right")
""")
        == "all right\n"
    )


def test_threads_at_the_limit():
    """Many threads make, use and drop locks while there is no descriptor left."""
    assert (
        run("""
ctx = mproc_ext.get_context("fork")
shared = ctx.Lock()
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors(), hard))
errors = []

def work():
    try:
        for _ in range(300):
            try:
                lock = ctx.Lock()
            except OSError as error:
                assert error.errno == errno.EMFILE
                continue
            with shared, lock:
                assert lock.acquire(False) is False
    except BaseException as error:
        errors.append(repr(error))

threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not errors, errors
print("all right")
""")
        == "all right\n"
    )


@pytest.mark.skipif(LIBC != "glibc", reason="other loaders get all memory when a thread starts")
@pytest.mark.parametrize("work", ["lock.acquire()", "(a.send(5), b.recv())"])
def test_no_memory_for_what_a_thread_has_of_its_own(work):
    """The loader would end the process, where a thread uses the core for the first time."""
    assert (
        run(f"""
import ctypes
malloc = ctypes.CDLL(None).malloc
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
lock, (a, b) = mproc_ext.Lock(), mproc_ext.Pipe()
for number in range(9):
    a.send(number), b.recv(), lock.acquire(), lock.release()
def use():
    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))
    for size in (1 << 20, 1 << 16, 4096, 1024, 512, 256, 128, 64, 48, 32, 24, 16, 8):
        while malloc(size):
            pass
    try:
        {work}
    except MemoryError:
        pass
    os.write(1, b"all right")
thread = threading.Thread(target=use)
thread.start()
thread.join()
os._exit(0)
""")
        == "all right"
    )
