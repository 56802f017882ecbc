"""Process objects under every start method: results, waiting, signals, threads, descriptors."""

import gc
import importlib.util
import os
import pathlib
import select
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

import mproc_ext
from mproc_ext import connection

# Importable by this name in the children of spawn and forkserver, whose sys.path is ours.
_FOLDER = str(pathlib.Path(__file__).parent)
if _FOLDER not in sys.path:
    sys.path.append(_FOLDER)
targets = importlib.import_module("targets")


@pytest.fixture
def ctx(method):
    return mproc_ext.get_context(method)


@pytest.fixture(autouse=True)
def nothing_left():
    """No test leaves a child or a zombie."""
    yield
    for process in mproc_ext.active_children():
        process.kill()
        process.join()


def open_fds():
    gc.collect()  # what earlier tests left in cycles is not closed between two looks
    return {int(name) for name in os.listdir("/proc/self/fd")}


def children():
    """The kernel's list of this process's children."""
    return {
        pid
        for thread in os.listdir("/proc/self/task")
        for pid in pathlib.Path(f"/proc/self/task/{thread}/children").read_text().split()
    }


def start(ctx, target, *args, **kwargs):
    process = ctx.Process(target=target, args=args, **kwargs)
    process.start()
    return process


@pytest.mark.parametrize(
    ("target", "args", "exitcode"),
    [
        (targets.nothing, (), 0),
        (targets.exit_with, (None,), 0),
        (targets.exit_with, (7,), 7),
        (targets.exit_with, ("a message",), 1),
        (targets.exit_hard, (9,), 9),
        (targets.fail, (), 1),
        (targets.crash, (), -signal.SIGSEGV),
    ],
)
def test_exitcode(ctx, target, args, exitcode, capfd):
    process = start(ctx, target, *args)
    assert process.exitcode in (None, exitcode)
    process.join(30)
    assert process.exitcode == exitcode
    assert not process.is_alive()
    process.close()


@pytest.mark.parametrize(
    ("how", "exitcodes"),
    [
        ("terminate", {-signal.SIGTERM}),
        ("kill", {-signal.SIGKILL}),
        ("interrupt", {1, -signal.SIGINT}),
    ],
)
def test_signals(ctx, how, exitcodes, capfd):
    r, w = ctx.Pipe(False)
    process = start(ctx, targets.sleep_for_ever, w)
    assert r.recv() == process.pid
    getattr(process, how)()
    process.join(30)
    assert process.exitcode in exitcodes
    getattr(process, how)()  # of a process that has ended: nothing happens


def test_child_sees_what_it_is(ctx, method):
    r, w = ctx.Pipe(False)
    process = start(ctx, targets.describe, w, name="a name", daemon=True)
    seen = r.recv()
    process.join(30)
    assert seen == {
        "pid": process.pid,
        "name": "a name",
        "daemon": True,
        "authkey": bytes(mproc_ext.current_process().authkey),
        "start_method": method,
        "parent": ("MainProcess", os.getpid(), True),
        "stdin": "",
        "argv": sys.argv,
        "children": 0,
    }


def test_parent_process_of_a_killed_parent(ctx, method, tmp_path):
    answer = tmp_path / "answer"
    program = f"""
import sys
sys.path.append({_FOLDER!r})
import targets, mproc_ext
if __name__ == "__main__":
    ctx = mproc_ext.get_context({method!r})
    here, there = ctx.Pipe()
    process = ctx.Process(target=targets.watch_parent, args=(there,))
    process.start()
    pid, alive = here.recv()
    here.send({str(answer)!r})
    print(pid, alive, flush=True)
    sys.stdin.read()
"""
    path = tmp_path / "program.py"
    path.write_text(program)
    with subprocess.Popen(
        [sys.executable, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        pid, alive = parent.stdout.readline().split()
        assert alive == "True"
        watcher = os.pidfd_open(int(pid))
        parent.kill()
    assert select.select([watcher], [], [], 30)[0]
    os.close(watcher)
    assert answer.read_text() == "False"


def test_subclass(ctx, capfd):
    r, w = ctx.Pipe(False)
    before = mproc_ext.get_start_method(allow_none=True)
    mproc_ext.set_start_method(ctx.get_start_method(), force=True)
    try:
        process = targets.Counting(w, 41)
        process.start()
        assert r.recv() == ("counting", 42)
        process.join(30)
        overriding = targets.Overriding()
        overriding.start()
        overriding.join(30)
        assert overriding.exitcode == 17
    finally:
        mproc_ext.set_start_method(before, force=True)


def test_patched_bootstrap(monkeypatch):
    """What coverage does: the method is replaced on BaseProcess."""
    original = mproc_ext.process.BaseProcess._bootstrap

    def bootstrap(self, *args, **kwargs):
        return original(self, *args, **kwargs) + 5

    monkeypatch.setattr(mproc_ext.process.BaseProcess, "_bootstrap", bootstrap)
    process = start(mproc_ext.get_context("fork"), targets.nothing)
    process.join(30)
    assert process.exitcode == 5


#
# Waiting
#


def test_sentinel(ctx):
    here, there = ctx.Pipe()
    process = ctx.Process(target=targets.wait_for, args=(there,))
    with pytest.raises(ValueError, match="process not started"):
        process.sentinel  # noqa: B018
    process.start()
    assert connection.wait([process.sentinel, here], 0) == []
    here.send(None)
    assert connection.wait([process.sentinel], 30) == [process.sentinel]
    process.join()
    assert connection.wait([process.sentinel], 30) == [process.sentinel]


def test_grandchild_does_not_hold_up_the_sentinel(ctx):
    r, w = ctx.Pipe(False)
    process = start(ctx, targets.leave_grandchild, w)
    grandchild = r.recv()
    try:
        process.join(30)
        assert process.exitcode == 0
    finally:
        os.kill(grandchild, signal.SIGKILL)


@pytest.mark.parametrize("timeout", [0, 0.0, -1, 0.05])
def test_join_with_timeout(ctx, timeout):
    here, there = ctx.Pipe()
    process = start(ctx, targets.wait_for, there)
    assert process.join(timeout) is None
    assert process.exitcode is None
    here.send(None)
    process.join(1e9)
    assert process.exitcode == 0


def test_join_with_bad_timeout(ctx):
    here, there = ctx.Pipe()
    process = start(ctx, targets.wait_for, there)
    with pytest.raises(TypeError):
        process.join("1")
    with pytest.raises(ValueError, match="NaN"):
        process.join(float("nan"))
    here.send(None)
    process.join(float("inf"))


def test_handler_runs_during_join(ctx):
    class Alarm(Exception):
        pass

    def handler(signum, frame):
        calls.append(signum)
        if len(calls) == 3:
            raise Alarm

    calls = []
    here, there = ctx.Pipe()
    process = start(ctx, targets.wait_for, there)
    old = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(Alarm):
            process.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert len(calls) >= 3
    here.send(None)
    process.join(30)
    assert process.exitcode == 0


def test_many_threads_wait_for_one_process(ctx):
    """All of them learn the exit code, by whatever method, and nobody sees a gap."""
    for _ in range(5):
        here, there = ctx.Pipe()
        process = start(ctx, targets.wait_for, there)
        barrier = threading.Barrier(9)
        seen = []

        def by_join(timeout):
            barrier.wait()
            process.join(timeout)
            seen.append(process.exitcode)

        def by_polling():
            barrier.wait()
            while process.is_alive():
                pass
            seen.append(process.exitcode)

        threads = [threading.Thread(target=by_join, args=(t,)) for t in (None, None, 30, 30, 30)]
        threads += [threading.Thread(target=by_polling) for _ in range(3)]
        for thread in threads:
            thread.start()
        barrier.wait()
        here.send(None)
        for thread in threads:
            thread.join()
        assert seen == [0] * 8


def test_threads_start_and_join_at_once(ctx):
    failures = []

    def run():
        try:
            for _ in range(10 if ctx.get_start_method() == "fork" else 2):
                process = start(ctx, targets.exit_hard, 3)
                process.join()
                assert process.exitcode == 3
        except BaseException as error:
            failures.append(error)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork with threads
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []


@pytest.mark.parametrize("reaper", ["ignored", "waitpid"])
def test_child_that_somebody_else_reaps(reaper):
    """It has ended, and says so: 255, as nobody can tell how."""
    ctx = mproc_ext.get_context("fork")
    old = signal.getsignal(signal.SIGCHLD)
    if reaper == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        process = start(ctx, targets.nothing)
        if reaper == "waitpid":
            os.waitpid(process.pid, 0)
        process.join(30)
        assert not process.is_alive()
        assert process.exitcode == 255
    finally:
        signal.signal(signal.SIGCHLD, old)


def test_no_signal_reaches_another_process(ctx):
    """Once the exit code is known the number may belong to anybody."""
    process = start(ctx, targets.nothing)
    process.join(30)
    process._popen.pid = os.getpid()
    process.kill()
    process.terminate()


#
# What surrounds a start
#


def test_descriptors_are_given_back(ctx):
    start(ctx, targets.nothing).join()  # the fork server stays
    before = open_fds()
    for _ in range(5):
        process = start(ctx, targets.nothing)
        process.join()
        process.close()
        dropped = start(ctx, targets.nothing)
        dropped.join()
        del dropped
    assert open_fds() == before


def test_streams_are_flushed_once(method, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys, mproc_ext
def child():
    print("child", end=" ")
if __name__ == "__main__":
    sys.stdout.write("parent ")
    process = mproc_ext.get_context({method!r}).Process(target=child)
    process.start()
    process.join()
    print("end")
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("parent child end\n", "")


@pytest.mark.parametrize("how", ["None", "closed"])
def test_without_stdin(method, how, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"""
import sys, mproc_ext
def child():
    pass
if __name__ == "__main__":
    if {how!r} == "None":
        sys.stdin = None
    else:
        sys.stdin.close()
    process = mproc_ext.get_context({method!r}).Process(target=child)
    process.start()
    process.join()
    print(process.exitcode)
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_hooks_of_fork_run(tmp_path):
    """os.register_at_fork, register_after_fork, finalizers and exit functions of the child."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import atexit, os, sys, mproc_ext
from mproc_ext import util
class Thing: pass
thing = Thing()
os.register_at_fork(
    before=lambda: print("before"),
    after_in_parent=lambda: None,
    after_in_child=lambda: print("in child"),
)
util.register_after_fork(thing, lambda thing: print("after fork"))
atexit.register(print, "exit of", os.getpid() and "parent")
util.Finalize(None, print, ("finalizer of parent",), exitpriority=1)
def child():
    util.Finalize(None, print, ("finalizer of child",), exitpriority=1)
    print("child")
if __name__ == "__main__":
    process = mproc_ext.get_context("fork").Process(target=child)
    process.start()
    process.join()
    sys.stdout.flush()
"""
    )
    ours = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    program.write_text(program.read_text().replace("mproc_ext", "multiprocessing"))
    stdlib = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert ours.stdout == stdlib.stdout
    assert ours.stdout.splitlines()[:4] == ["before", "in child", "after fork", "child"]
    assert ours.stderr == ""


def test_replaced_os_fork_is_called(monkeypatch):
    """gevent and others replace it to learn of every child."""
    calls = []
    original = os.fork

    def fork():
        calls.append(None)
        return original()

    monkeypatch.setattr(os, "fork", fork)
    process = start(mproc_ext.get_context("fork"), targets.exit_hard, 4)
    process.join()
    assert process.exitcode == 4
    assert len(calls) == 1


def test_audit_events(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys, mproc_ext
def child():
    pass
if __name__ == "__main__":
    events = []
    sys.addaudithook(lambda event, args: events.append(event))
    for method in ("fork", "spawn"):
        events.clear()
        process = mproc_ext.get_context(method).Process(target=child)
        process.start()
        process.join()
        print("os.fork" in events, "os.posix_spawn" in events)
"""
    )
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("True False\nFalse True\n", "")


@pytest.mark.skipif(sys.version_info < (3, 12), reason="os.fork warns of threads since 3.12")
def test_fork_with_threads_warns():
    ctx = mproc_ext.get_context("fork")
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        with pytest.warns(DeprecationWarning, match=r"multi-threaded, use of fork\(\)"):
            start(ctx, targets.nothing).join()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            process = ctx.Process(target=targets.nothing)
            if sys.version_info < (3, 15):  # the stdlib's os.fork drops the error
                process.start()
                process.join()
                assert process.exitcode == 0
                return
            before = children()
            with pytest.raises(DeprecationWarning):
                process.start()
        assert not process.is_alive()
        assert children() == before  # no child was made
    finally:
        release.set()
        thread.join()


def test_environment_and_folder_of_the_moment(ctx, tmp_path, monkeypatch):
    """A fresh interpreter gets what the parent has now, not what it was started with."""
    if ctx.get_start_method() == "forkserver":
        pytest.skip("the fork server keeps the environment of its own start, as the stdlib's does")
    r, w = ctx.Pipe(False)
    monkeypatch.setenv("MPROC_EXT_TEST", "here")
    monkeypatch.chdir(tmp_path)
    process = ctx.Process(target=os.system, args=(f'echo "$MPROC_EXT_TEST $PWD" > {tmp_path}/out',))
    process.start()
    process.join()
    assert (tmp_path / "out").read_text() == f"here {tmp_path}\n"
    r.close()
    w.close()


def test_start_is_not_held_up_by_a_child_that_dies_early(monkeypatch, capfd):
    """More data than a pipe holds, and nobody there to read them."""
    from mproc_ext import spawn

    monkeypatch.setattr(
        spawn,
        "get_command_line",
        lambda **kwds: [sys.executable, "-S", "-c", "raise SystemExit(3)"],
    )
    process = mproc_ext.get_context("spawn").Process(target=len, args=(bytes(10_000_000),))
    started = time.monotonic()
    process.start()
    process.join(60)
    assert process.exitcode == 3
    assert time.monotonic() - started < 60


def test_two_packages_in_one_program(ctx, method):
    """Objects of each in the processes of the other; one set of children."""
    import multiprocessing

    theirs = multiprocessing.get_context(method)
    for first, second in ((ctx, theirs), (theirs, ctx)):
        queue = second.Queue()
        lock = second.Lock()
        process = first.Process(target=targets.put_under_lock, args=(queue, lock))
        with lock:
            process.start()
            assert process in mproc_ext.active_children()
            assert process in multiprocessing.active_children()
        assert queue.get(timeout=30) == process.pid
        process.join(30)
        assert isinstance(process, multiprocessing.process.BaseProcess)
