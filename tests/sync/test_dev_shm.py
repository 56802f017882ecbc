"""Without a usable /dev/shm: in a mount namespace of their own, programs find it full, read-only or
absent."""

import pathlib
import subprocess

import pytest
from sync_helpers import ours, run_program

pytestmark = pytest.mark.skipif(
    not all(ours(name) for name in ("Lock", "Condition", "Event", "Barrier")),
    reason="these are the stdlib's, which need /dev/shm",
)

# What to do to /dev/shm, and that it was done.
MOUNTS = {
    "of 16 KB": (
        "mount -t tmpfs -o size=16k none /dev/shm",
        "! head -c 20000 /dev/zero > /dev/shm/full 2> /dev/null; rm /dev/shm/full",
    ),
    "full": (
        "mount -t tmpfs -o size=16k none /dev/shm",
        "! cat /dev/zero > /dev/shm/full 2> /dev/null",
    ),
    "read-only": (
        "mount -t tmpfs -o ro none /dev/shm",
        "! touch /dev/shm/file 2> /dev/null",
    ),
    # Another /dev: to unmount /dev/shm may uncover a folder, which is the whole machine's.
    "absent": (
        """
        mount -t tmpfs none /mnt
        for name in null zero full random urandom; do
            touch /mnt/$name
            mount --bind /dev/$name /mnt/$name
        done
        ln -s /proc/self/fd /mnt/fd
        mount --move /mnt /dev
        """,
        "! test -e /dev/shm",
    ),
}

PROGRAM = """
import os, sys, threading, mproc_ext

def work(lock, rlock, semaphore, condition, event, barrier, queue, value, array):
    with lock, rlock, value:
        value.value += array[99_999]
    semaphore.acquire()
    with condition:
        condition.notify()
    assert event.wait(30)
    barrier.wait(30)
    queue.put("done")

def check(method):
    ctx = mproc_ext.get_context(method)
    lock, rlock, semaphore, condition = ctx.Lock(), ctx.RLock(), ctx.Semaphore(0), ctx.Condition()
    event, barrier, queue = ctx.Event(), ctx.Barrier(2), ctx.Queue()
    value, array = ctx.Value("i", 3), ctx.Array("q", range(100_000))
    args = lock, rlock, semaphore, condition, event, barrier, queue, value, array
    with condition:
        process = ctx.Process(target=work, args=args)
        process.start()
        semaphore.release()
        assert condition.wait(30)
    event.set()
    barrier.wait(30)
    assert queue.get(timeout=30) == "done"
    process.join()
    assert process.exitcode == 0, process.exitcode
    assert value.value == 100_002
    many = [ctx.Lock() for _ in range(5000)]  # more than 16 KB
    assert all(one.acquire(False) for one in many)

def kill_the_owner():
    ctx = mproc_ext.get_context("fork")
    lock = ctx.Lock()
    child = ctx.Process(target=lambda: (lock.acquire(), os.kill(os.getpid(), 9)))
    child.start()
    child.join()
    assert lock.acquire(timeout=30)

if __name__ == "__main__":
    for method in "fork", "spawn", "forkserver":
        check(method)
    kill_the_owner()
    print("all right")
"""


def in_namespace(script):
    return ["unshare", "--map-root-user", "--mount", "sh", "-ec", script]


def can_mount():
    try:
        tried = subprocess.run(
            in_namespace("mount -t tmpfs none /mnt"), capture_output=True, timeout=30
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


@pytest.mark.parametrize("state", MOUNTS)
@pytest.mark.parametrize("without", ["", "memfd_seal"])
def test_dev_shm(state, without, tmp_path):
    if not can_mount():
        pytest.skip("this user may not mount anything, not even in a namespace")
    program = pathlib.Path(tmp_path, "program.py")
    program.write_text(PROGRAM)
    change, proof = MOUNTS[state]
    script = f'{change}\n{proof}\nexec "$@"'
    out = run_program(
        "-W",
        "ignore:a process died:RuntimeWarning",
        program,
        prefix=[*in_namespace(script), "sh"],
        env={"MPROC_EXT_WITHOUT": without},
    )
    assert out == "all right\n"
