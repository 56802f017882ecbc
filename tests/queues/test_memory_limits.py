"""Messages for which the machine, or a control group, has no memory: MemoryError, before the kernel
looks for somebody to kill."""

import contextlib
import functools
import os
import pathlib
import subprocess
import sys
import sysconfig

import pytest
from queue_helpers import LIMIT, OURS

pytestmark = pytest.mark.skipif(not OURS, reason="about ours")

# The first to be killed, should it come to that.
PRELUDE = """
import sys
with open("/proc/self/oom_score_adj", "w") as file:
    file.write("1000")
import mproc_ext
ctx = mproc_ext.get_context("fork")
q, simple = ctx.Queue(), ctx.SimpleQueue()
def check_no_memory(thing):
    for which in (q, simple):
        which.put("before")
        try:
            which.put(thing)
        except MemoryError:
            pass
        else:
            raise AssertionError("there was memory")
        which.put(b"x" * 3_000_000)
        assert which.get() == "before"
        assert which.get() == b"x" * 3_000_000
        assert which.empty()
"""


def kilobytes(name):
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name + ":"))


def run(program, *, first=None):
    """`first`: what the process does before it is Python."""
    process = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        preexec_fn=first,
        capture_output=True,
        text=True,
        timeout=4 * LIMIT,
    )
    assert process.returncode == 0, (process.returncode, process.stderr)
    return process.stdout


def test_larger_than_the_machine():
    """Zeros that nobody has written take no memory; their copy would."""
    size = (kilobytes("MemAvailable") + kilobytes("SwapFree") + 200_000) * 1024
    if size > kilobytes("MemTotal") * 1024:
        pytest.skip("nearly all memory is free: the kernel may refuse the object itself")
    out = run(
        f"""
thing = bytes({size})
check_no_memory(thing)
check_no_memory([thing, 1])
print("good")
"""
    )
    assert out == "good\n"


def group_files():
    """(a new group's folder, its limit's file) where this process may make one."""
    for root, limit in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        folder = pathlib.Path(root, f"mproc_ext_test_{os.getpid()}")
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / limit).exists():
                return folder, folder / limit
            folder.rmdir()
    return None, None


@pytest.fixture
def group():
    folder, limit = group_files()
    if folder is None:
        pytest.skip("no control group can be made here")
    try:
        yield folder, limit
    finally:
        folder.rmdir()


@functools.cache
def writes_zeros():
    """Whether zeros take memory as soon as they are made, as those of a debug build do."""

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    zeros = bytes(64 << 20)
    return resident() - before > len(zeros) // 2


def run_in(group, program):
    """With 200 MB of memory at most, and swap beyond that, if any."""
    folder, limit = group
    try:
        limit.write_text(str(200 << 20))
    except OSError:
        pytest.skip("control groups have no limits here")

    def enter():
        (folder / "cgroup.procs").write_text(str(os.getpid()))

    try:
        out = run(program, first=enter)
    except subprocess.TimeoutExpired:
        raise
    except subprocess.SubprocessError as error:
        pytest.skip(f"the group cannot be entered: {error}")
    assert out == "good\n"


def test_larger_than_the_control_group(group):
    if writes_zeros():
        pytest.skip("the object itself is larger than the group")
    run_in(
        group,
        """
check_no_memory(bytes(300 << 20))
q.put(bytes(50 << 20))
assert len(q.get()) == 50 << 20
print("good")
""",
    )


@pytest.mark.parametrize("size", [100, 5_000, 70_000, 200_000, 900_000, 5_000_000])
def test_many_that_are_larger_together(group, size):
    if sysconfig.get_config_var("Py_GIL_DISABLED") and size > 1 << 20:
        pytest.skip("the interpreter's own allocator keeps what was freed for a while")
    run_in(
        group,
        f"""
thing = bytes({size})
count = 0
try:
    while count * {size} < 1 << 30:
        q.put(thing)
        count += 1
except MemoryError:
    pass
assert 50 << 20 < count * {size} < 200 << 20, count
for _ in range(count):
    assert q.get() == thing
q.put("after")
assert q.get() == "after"
other = bytearray(100 << 20)  # what was in the queue is the program's again
for at in range(0, len(other), 4096):
    other[at] = 1
print("good")
""",
    )
