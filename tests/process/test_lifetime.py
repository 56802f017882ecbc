"""Who dies with whom: daemonic children with their parent process, and nobody with a thread."""

import os
import select
import signal
import subprocess
import sys
import textwrap

import pytest

# Every program below starts children that would live for ever, and prints what the test asks.
PROLOGUE = """
import os, signal, sys, threading, time
import mproc_ext as mp

def report_and_stay(w):
    os.write(w.fileno(), b"%d\\n" % os.getpid())
    while True:
        time.sleep(1000)

def start(ctx, daemon, w, results=None):
    p = ctx.Process(target=report_and_stay, args=(w,), daemon=daemon)
    p.start()
    if results is not None:
        results.append(p)
    return p
"""


@pytest.fixture
def program(tmp_path):
    """Runs a program text under a start method; gives the Popen, its output as a pipe."""
    started = []

    def run(method, text, *arguments):
        path = tmp_path / "program.py"
        path.write_text(PROLOGUE + textwrap.dedent(text))
        process = subprocess.Popen(
            [sys.executable, str(path), method, *arguments],
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def has_ended(pid, timeout):
    """Whether the process, no child of ours, ends within the time."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], timeout)[0])
    finally:
        os.close(fd)


def pid_from(process):
    line = process.stdout.readline()
    assert line, "the program ended without a word"
    return int(line)


MAIN = """
if __name__ == "__main__":
    ctx = mp.get_context(sys.argv[1])
    r, w = ctx.Pipe(False)
    p = start(ctx, sys.argv[2] == "daemon", w)
    print(os.read(r.fileno(), 100).decode().strip(), flush=True)
    sys.stdin.readline()
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM, signal.SIGABRT])
def test_daemonic_child_dies_with_killed_parent(program, method, signum):
    parent = program(method, MAIN, "daemon")
    child = pid_from(parent)
    assert not has_ended(child, 0)
    parent.send_signal(signum)
    assert has_ended(child, 20)


def test_other_child_outlives_killed_parent(program, method):
    parent = program(method, MAIN, "plain")
    child = pid_from(parent)
    try:
        parent.kill()
        parent.wait()
        assert not has_ended(child, 1)
    finally:
        os.kill(child, signal.SIGKILL)


def test_daemonic_child_of_a_thread_that_ends(program, method):
    """It outlives the thread, and dies with the process."""
    parent = program(
        method,
        """
        if __name__ == "__main__":
            ctx = mp.get_context(sys.argv[1])
            r, w = ctx.Pipe(False)
            results = []
            if sys.argv[1] == "forkserver":  # whose server must not belong to the thread either
                threading.Thread(target=mp.forkserver.ensure_running).start()
            thread = threading.Thread(target=start, args=(ctx, True, w, results))
            thread.start()
            thread.join()
            child = int(os.read(r.fileno(), 100))
            while os.path.exists(f"/proc/self/task/{thread.native_id}"):
                time.sleep(0.01)  # join returns a little before the kernel's thread has ended
            print(child, results[0].is_alive(), flush=True)
            sys.stdin.readline()
            print(results[0].is_alive(), flush=True)
            sys.stdin.readline()
        """.replace("mp.forkserver.", "__import__('mproc_ext.forkserver').forkserver."),
    )
    pid, alive = parent.stdout.readline().split()
    assert alive == "True"
    assert not has_ended(int(pid), 0.5)
    print(file=parent.stdin, flush=True)
    assert parent.stdout.readline() == "True\n"
    parent.kill()
    assert has_ended(int(pid), 20)


def test_daemonic_child_dies_with_its_parent_not_with_its_grandparent(program, method):
    parent = program(
        method,
        """
        def middle(w):
            ctx = mp.get_context(sys.argv[1])
            start(ctx, True, w)
            report_and_stay(w)

        if __name__ == "__main__":
            ctx = mp.get_context(sys.argv[1])
            r, w = ctx.Pipe(False)
            p = ctx.Process(target=middle, args=(w,))
            p.start()
            pids = set()
            while len(pids) < 2:
                pids |= set(os.read(r.fileno(), 100).split())
            (child,) = pids - {b"%d" % p.pid}
            print(child.decode(), flush=True)
            sys.stdin.readline()
            p.kill()
            p.join()
            sys.stdin.readline()
        """,
    )
    child = pid_from(parent)
    assert not has_ended(child, 0)
    print(file=parent.stdin, flush=True)
    assert has_ended(child, 20)


def test_signal_of_a_thread_s_end_is_not_seen_by_the_child(program):
    """The child sleeps in system calls while threads of its parent come and go."""
    parent = program(
        "fork",
        """
        def child(w):
            time.sleep(0.5)
            w.send("slept")

        if __name__ == "__main__":
            ctx = mp.get_context("fork")
            r, w = ctx.Pipe(False)
            results = []
            def run():
                p = ctx.Process(target=child, args=(w,), daemon=True)
                p.start()
                results.append(p)
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            for _ in range(20):
                other = threading.Thread(target=int)
                other.start()
                other.join()
            print(r.recv(), flush=True)
            results[0].join()
            print(results[0].exitcode, flush=True)
        """,
    )
    assert parent.stdout.read() == "slept\n0\n"


def test_program_executed_by_a_daemonic_child(program, method):
    """What it becomes by exec is not killed by the end of its parent's thread."""
    parent = program(
        method,
        """
        def become(w):
            os.set_inheritable(w.fileno(), True)
            told = f"echo $$ >/proc/self/fd/{w.fileno()}"
            os.execv("/bin/sh", ["sh", "-c", f"{told}; exec sleep 1000"])

        if __name__ == "__main__":
            ctx = mp.get_context(sys.argv[1])
            r, w = ctx.Pipe(False)
            results = []
            def run():
                p = ctx.Process(target=become, args=(w,), daemon=True)
                p.start()
                results.append(p)
                assert os.read(r.fileno(), 100)
            thread = threading.Thread(target=run)
            thread.start()
            thread.join()
            while os.path.exists(f"/proc/self/task/{thread.native_id}"):
                time.sleep(0.01)
            print(results[0].pid, flush=True)
            sys.stdin.readline()
            print(results[0].is_alive(), flush=True)
        """,
    )
    child = pid_from(parent)
    assert not has_ended(child, 0.3)
    print(file=parent.stdin, flush=True)
    assert parent.stdout.readline() == "True\n"


def test_pool_workers_die_with_killed_parent(program):
    parent = program(
        "fork",
        """
        if __name__ == "__main__":
            with mp.Pool(3) as pool:
                print(*(p.pid for p in pool._pool), flush=True)
                sys.stdin.readline()
        """,
    )
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(workers) == 3
    parent.kill()
    assert all(has_ended(pid, 20) for pid in workers)


def test_everything_killed_leaves_no_process(program):
    """The fork server ends with its last client, its daemonic children with it."""
    parent = program(
        "forkserver",
        """
        if __name__ == "__main__":
            ctx = mp.get_context("forkserver")
            r, w = ctx.Pipe(False)
            start(ctx, True, w)
            from mproc_ext.forkserver import _forkserver
            print(_forkserver._forkserver_pid, int(os.read(r.fileno(), 100)), flush=True)
            sys.stdin.readline()
        """,
    )
    server, child = (int(pid) for pid in parent.stdout.readline().split())
    parent.kill()
    assert has_ended(child, 20)
    assert has_ended(server, 20)
