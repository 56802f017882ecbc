"""No descriptors, no memory, no room in files; and descriptors that the program has closed."""

import pathlib
import resource

import pytest
from queue_helpers import OURS
from sync_helpers import run_program

pytestmark = pytest.mark.skipif(not OURS, reason="about ours")

HERE = pathlib.Path(__file__).parent
PRELUDE = f"""
import gc, os, queue, resource, select, sys, traceback
sys.path += {[str(HERE), str(HERE.parent / "sync")]!r}
import mproc_ext
from queue_helpers import pattern
ctx = mproc_ext.get_context(sys.argv[1] if len(sys.argv) > 1 else "fork")

def limit(kind, value):
    kind = getattr(resource, kind)
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))

def raises(kinds, function, *args):
    try:
        function(*args)
    except kinds as error:
        return error
    raise AssertionError("nothing was raised")

def check(q):
    for number in range(3):
        q.put(number)
    assert [q.get() for _ in range(3)] == [0, 1, 2]
"""


@pytest.fixture
def run(tmp_path):
    def run(text, *args):
        program = tmp_path / "program.py"
        program.write_text(PRELUDE + text)
        return run_program(program, *args)

    return run


def test_no_more_descriptors(run):
    """The error is OSError with EMFILE; what there is goes on, and what is dropped makes room."""
    out = run(
        """
import errno
first = [ctx.Queue(), ctx.JoinableQueue(), ctx.SimpleQueue()]
limit("RLIMIT_NOFILE", 64)
made = []
def make():
    while True:
        made.append(ctx.Queue())
for _ in range(3):
    error = raises(OSError, make)
    assert error.errno == errno.EMFILE, error
    assert "open files" in str(error), error
    assert len(made) > 10
    for q in first + made:
        check(q)
    first[0].put(pattern(1, 5_000_000))
    assert first[0].get() == pattern(1, 5_000_000)
    for _ in range(20_000):
        first[2].put(b"x" * 100)
    for _ in range(20_000):
        first[2].get()
    made.clear()
    gc.collect()
print("good")
"""
    )
    assert out == "good\n"


def test_address_space(run):
    """A message for which there is none is a MemoryError, and changes nothing."""
    out = run(
        """
q, simple = ctx.Queue(), ctx.SimpleQueue()
check(q), check(simple)
big = b"x" * (64 << 20)
q.put(1)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
limit("RLIMIT_AS", used + (8 << 20))
for which in (q, simple):
    error = raises((MemoryError, OSError), which.put, big)
    error = raises((MemoryError, OSError), which.put, [big, 1])
assert q.qsize() == 1
assert q.get() == 1
check(q), check(simple)
limit("RLIMIT_AS", resource.RLIM_INFINITY)
q.put(big)
assert q.get() == big
print("good")
"""
    )
    assert out == "good\n"


def test_a_consumer_without_address_space(run):
    """It leaves the message to others, or to itself later."""
    out = run(
        """
q = ctx.Queue()
check(q)
def consume(ready, told):
    ready.send(1)
    told.recv()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    limit("RLIMIT_AS", used + (1 << 20))
    error = raises((MemoryError, OSError), q.get)
    limit("RLIMIT_AS", resource.RLIM_INFINITY)
    ready.send(type(error).__name__)
    told.recv()
    ready.send(len(q.get()))
a, ready = ctx.Pipe()
child = ctx.Process(target=consume, args=(ready, ready))
child.start()
a.recv()
q.put(b"x" * (64 << 20))
a.send(1)
print(a.recv(), q.qsize())
a.send(1)
print(a.recv())
child.join()
check(q)
"""
    )
    assert out in (f"MemoryError 1\n{64 << 20}\n", f"OSError 1\n{64 << 20}\n")


def test_file_size(run):
    """RLIMIT_FSIZE: an OSError with EFBIG, no signal; the queue goes on."""
    out = run(
        """
import errno
q, simple = ctx.Queue(), ctx.SimpleQueue()
check(q), check(simple)
q.put("there")
limit("RLIMIT_FSIZE", 1 << 20)
for which in (q, simple):
    error = raises((OSError, MemoryError), which.put, b"x" * (64 << 20))
    assert getattr(error, "errno", errno.ENOMEM) in (errno.EFBIG, errno.ENOMEM), error
assert q.get() == "there"
check(q), check(simple)
count = 0
try:
    while count < 1_000_000:
        q.put(b"x" * 1000)
        count += 1
except (OSError, MemoryError):
    pass
else:
    raise AssertionError("it grew")
assert q.qsize() == count
for _ in range(count):
    assert q.get() == b"x" * 1000
limit("RLIMIT_FSIZE", resource.RLIM_INFINITY)
q.put(b"x" * (64 << 20))
assert len(q.get()) == 64 << 20
print("good")
"""
    )
    assert out == "good\n"


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("reused", [False, True])
def test_descriptors_closed_behind_our_back(run, watched, reused, tmp_path):
    """Their numbers may be a user's file's by then: not one byte of that changes or is read."""
    out = run(
        f"""
q, simple = ctx.Queue(), ctx.SimpleQueue()
for which in (q, simple):
    check(which)
    if {watched}:
        assert not select.select([which._reader], [], [], 0)[0]
os.closerange(3, 100)
files = []
if {reused}:
    for number in range(40):
        fd = os.open({str(tmp_path)!r} + f"/file{{number}}", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"the user's")
        os.lseek(fd, 4, os.SEEK_SET)
        files.append(fd)
for which in (q, simple):
    check(which)
    for number in range(1000):
        which.put(number)
        assert which.get() == number
    try:
        which.put(b"x" * 3_000_000)
    except (OSError, MemoryError):
        pass
    else:
        assert which.get() == b"x" * 3_000_000
    check(which)
    if {watched}:
        error = raises((OSError, ValueError), which._reader.fileno)
try:
    for number in range(100_000):
        q.put(b"x" * 100)
except (OSError, MemoryError):
    pass
count = q.qsize()
for _ in range(count):
    q.get()
check(q)
if os.fork() == 0:
    check(q)
    q.close()
    simple.close()
    os._exit(0)
assert os.wait()[1] == 0
q.close()
simple.close()
del q, simple, which
gc.collect()
for number, fd in enumerate(files):
    assert os.lseek(fd, 0, os.SEEK_CUR) == 4, number
    assert os.pread(fd, 100, 0) == b"the user's", number
    assert os.fstat(fd).st_size == 10
fresh = ctx.Queue()
check(fresh)
fresh.put(b"x" * 3_000_000)
fresh.get()
print("good")
"""
    )
    assert out == "good\n"


@pytest.mark.parametrize("watched", [False, True])
def test_descriptors_that_were_duplicated(run, watched, tmp_path):
    """A program may dup all that is open, or have other files under our numbers: of the user's
    files not one byte changes, and a queue goes on with what it has mapped."""
    out = run(
        f"""
q, simple = ctx.Queue(), ctx.SimpleQueue()
readers = {{which: which._reader.fileno() for which in (q, simple)}} if {watched} else {{}}
listed = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2]
listed = [fd for fd in listed if os.path.exists(f"/proc/self/fd/{{fd}}")]  # but the folder's
copies = {{fd: os.dup(fd) for fd in listed}}
for which in (q, simple):
    check(which)
    which.put(pattern(1, 3_000_000))
    assert which.get() == pattern(1, 3_000_000)
    if which in readers:
        which.put(1)
        assert select.select([readers[which]], [], [], 5)[0]
        assert which.get() == 1
        assert not select.select([readers[which]], [], [], 0)[0]
user = os.open({str(tmp_path)!r} + "/file", os.O_RDWR | os.O_CREAT)
os.write(user, b"the user's")
for fd in copies:
    os.dup2(user, fd)
os.lseek(user, 4, os.SEEK_SET)
for which in (q, simple):
    check(which)
    for number in range(1000):
        which.put(number)
        assert which.get() == number
    try:
        which.put(b"x" * 30_000_000)
    except (OSError, MemoryError):
        pass
    else:
        assert which.get() == b"x" * 30_000_000
assert os.lseek(user, 0, os.SEEK_CUR) == 4
assert os.pread(user, 100, 0) == b"the user's"
for fd, copy in copies.items():
    os.dup2(copy, fd)
    os.close(copy)
for which in (q, simple):
    which.put(pattern(2, 30_000_000))
    assert which.get() == pattern(2, 30_000_000)
    if which in readers:
        which.put(1)
        assert select.select([readers[which]], [], [], 5)[0]
    which.close()
print("good")
"""
    )
    assert out == "good\n"


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_closed_descriptors_do_not_travel(run, method, tmp_path):
    """A child is not given a user's file in their place."""
    out = run(
        f"""
q = ctx.Queue()
os.closerange(3, 50)
files = [os.open({str(tmp_path)!r} + "/file", os.O_RDWR | os.O_CREAT) for _ in range(20)]
error = raises(OSError, ctx.Process(target=print, args=(q,)).start)
assert os.stat(files[0]).st_size == 0
check(q)
print("good")
""",
        method,
    )
    assert out == "good\n"


def test_damaged_memory(run):
    """Something has written to the queue's memory: an error that says so, here and in a child.

    A record's header is overwritten; it is found by the message behind it.
    """
    out = run(
        """
import errno, mmap
from queue_helpers import is_shared_memory
def overwrite(text):
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            if not is_shared_memory(fd):
                continue
        except OSError:
            continue
        with mmap.mmap(fd, 0) as memory:
            at = memory.find(text)
            assert at > 0
            memory[at - at % 16 : at - at % 16 + 8] = b"\\xff" * 8
def check_damage(which):
    error = raises(OSError, which.get)
    assert error.errno == errno.EPROTO, error
    assert "queue's shared memory is damaged" in str(error), error
    assert "make another queue" in str(error), error
for kind in ("Queue", "SimpleQueue"):
    q, other = getattr(ctx, kind)(), getattr(ctx, kind)()
    q.put(f"it is in this {kind}")
    overwrite(f"it is in this {kind}".encode())
    for _ in range(3):
        check_damage(q)
        q.put("behind it")
    child = ctx.Process(target=check_damage, args=(q,))
    child.start()
    child.join()
    assert child.exitcode == 0
    check(other)
    q.close()
print("good")
"""
    )
    assert out == "good\n"


def test_resource_limits_are_those_of_the_test():
    """The programs set soft limits; they need hard ones that allow it."""
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 64
