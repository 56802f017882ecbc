"""Shared by the tests here."""

import contextlib
import io
import os
import sys

from sync_helpers import LIMIT, wait_until

import mproc_ext

KINDS = ("Queue", "JoinableQueue", "SimpleQueue")
BIG = 3 << 20  # bytes: more than a pipe or a segment holds

# Whether mproc_ext's queues are its own here, or the stdlib's.
OURS = mproc_ext.ACCELERATED


def is_ours(queue):
    return getattr(queue, "_channel", None) is not None


def settle(queue, count=1):
    """Wait until the feeder thread of the stdlib has sent so many objects."""
    if not is_ours(queue) and hasattr(queue, "_buffer"):
        wait_until(lambda: not queue._buffer and (not count or not queue.empty()))


@contextlib.contextmanager
def stderr():
    """What is written to sys.stderr, in whatever thread."""
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        yield sys.stderr
    finally:
        sys.stderr = before


def end(queue):
    """Let nothing of a stdlib's queue keep this process from its end."""
    if hasattr(queue, "cancel_join_thread"):
        queue.cancel_join_thread()
    queue.close()


def pattern(number, size):
    """Bytes of which each part tells of the number."""
    head = number.to_bytes(8, "little")
    return (head * (size // 8 + 1))[:size] if size >= 8 else head[:size]


def fds():
    return set(os.listdir("/proc/self/fd"))


def memory(pid="self"):
    """Bytes of shared memory that a process has in its page tables."""
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith("RssShmem:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no RssShmem")


def is_shared_memory(fd):
    """Whether it is a memory file, or where the kernel has no seals the like of it."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    return name.endswith(" (deleted)") and name.startswith(("/memfd:", "/dev/shm/"))


def stored():
    """Bytes of storage that the memory files have which this process has open."""
    total = 0
    for fd in fds():
        with contextlib.suppress(OSError):
            if is_shared_memory(fd):
                total += os.stat(f"/proc/self/fd/{fd}").st_blocks * 512
    return total


__all__ = [
    "BIG",
    "KINDS",
    "LIMIT",
    "OURS",
    "end",
    "fds",
    "is_shared_memory",
    "is_ours",
    "memory",
    "pattern",
    "settle",
    "stderr",
    "stored",
]
