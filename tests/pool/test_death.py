"""Where the stdlib's pool hangs: ours ends, at once, with the reason, and goes on."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from death_scenarios import SCENARIOS
from pool_helpers import LIMIT, is_gone, wait_until_gone
from sync_helpers import run_program, wait_until_asleep

import mproc_ext.pool

PROGRAM = pathlib.Path(__file__).with_name("death_scenarios.py")
PATHS = os.pathsep.join(
    [str(PROGRAM.parent), str(PROGRAM.parent.parent / "sync"), os.environ.get("PYTHONPATH", "")]
)


@pytest.mark.parametrize("name", SCENARIOS)
def test_death(name, method):
    assert run_program(PROGRAM, name, method, env={"PYTHONPATH": PATHS}) == "done\n"


class Program:
    """A program of death_scenarios.py that is not waited for, in a session of its own."""

    def __init__(self, name, method, folder, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, PROGRAM, name, method, folder, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": PATHS},
            cwd="/",
            text=True,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.workers = []

    def __enter__(self):
        # What it says first: its workers.  None where it has failed.
        self.workers = [int(word) for word in self.process.stdout.readline().split()]
        if not self.workers:
            pytest.fail(self.process.communicate(timeout=LIMIT)[1])
        return self

    def __exit__(self, *_):
        for pid in (self.pid, *self.workers):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        try:
            os.killpg(self.pid, signal.SIGKILL)  # and its servers
        except ProcessLookupError:
            pass
        self.process.communicate()

    def end(self):
        """(exit status, output, errors), once it and its workers have ended."""
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{self.process.args} does not end")
        wait_until_gone(*self.workers)
        return self.process.returncode, out, err


@pytest.mark.parametrize("busy", [False, True])
def test_the_parent_is_killed(method, tmp_path, busy):
    with Program("parent_that_is_killed", method, tmp_path, busy) as program:
        assert not any(map(is_gone, program.workers))
        os.kill(program.pid, signal.SIGKILL)
        wait_until_gone(*program.workers)


@pytest.mark.parametrize("busy", [False, True])
def test_the_parent_exits_hard(method, tmp_path, busy):
    with Program("parent_that_exits_hard", method, tmp_path, busy) as program:
        wait_until_gone(*program.workers)


WHERE = ["get", "get with a timeout", "wait", "apply", "map", "imap", "imap_unordered", "join"]


@pytest.mark.parametrize("ends", ["terminate", "with", "no end"])
@pytest.mark.parametrize("where", WHERE)
def test_interrupted(tmp_path, where, ends):
    """Ctrl-C reaches the process that waits; the program ends, and so do its workers."""
    with Program("interrupted", "fork", tmp_path, where, ends) as program:
        wait_until_asleep(program.pid, on_futex=True)
        os.kill(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert (status, out) == (0, "interrupted\n"), err


@pytest.mark.parametrize("where", ["get", "map", "imap", "join"])
def test_interrupted_as_a_terminal_does_it(method, tmp_path, where):
    """All of its processes at once."""
    with Program("interrupted", method, tmp_path, where, "with") as program:
        wait_until_asleep(program.pid)
        os.killpg(program.pid, signal.SIGINT)
        status, out, err = program.end()
        # A worker's end may be told of before the interrupt is.
        assert status in (0, 1), err
        assert out == "interrupted\n" or "WorkerLostError" in err


@pytest.mark.parametrize("where", ["get", "map"])
def test_interrupted_and_not_caught(method, tmp_path, where):
    with Program("interrupted", method, tmp_path, where, "uncaught") as program:
        wait_until_asleep(program.pid)
        os.kill(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert (status, out) == (-signal.SIGINT, ""), err
        assert err.rstrip().endswith("KeyboardInterrupt")


def test_interrupted_many_times(tmp_path):
    """In the middle of its end, too."""
    with Program("interrupted", "fork", tmp_path, "get", "terminate") as program:
        wait_until_asleep(program.pid)
        while program.process.poll() is None:
            os.kill(program.pid, signal.SIGINT)
            time.sleep(0.01)
        program.end()


def test_a_handler_of_the_programs_own(method, tmp_path):
    with Program("interrupted_and_goes_on", method, tmp_path) as program:
        wait_until_asleep(program.pid)
        os.kill(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert (status, out) == (0, "interrupted\n"), err


EXITS = "idle, busy, at once, closed, by SystemExit, after a death, with results unread".split(", ")


@pytest.mark.parametrize("how", EXITS)
def test_exit_without_a_word(method, tmp_path, how):
    """With a pool that a global name holds."""
    with Program("exits", method, tmp_path, how) as program:
        status, out, err = program.end()
        assert (status, out) == (0, ""), err
        assert "Traceback" not in err


@pytest.mark.parametrize("where", ["map", "in between"])
def test_a_daemon_thread_at_exit(method, tmp_path, where):
    with Program("daemon_thread", method, tmp_path, where) as program:
        status, out, err = program.end()
        assert (status, out) == (0, ""), err
        assert "Traceback" not in err


class PicklesOnly(Exception):
    """What many libraries' errors are: pickle calls the class with the message alone."""

    def __init__(self, status, url):
        super().__init__(f"{status} for {url}")


def raise_pickles_only(*_):
    raise PicklesOnly(503, "somewhere")


def test_the_traceback_of_what_cannot_be_unpickled():
    with mproc_ext.get_context("fork").Pool(1) as pool:
        with pytest.raises(TypeError, match="url") as found:
            pool.apply(raise_pickles_only)
        assert "503 for somewhere" in str(found.value.__cause__)
        assert pool.apply(abs, (-1,)) == 1


def leave(reason):
    sys.exit(reason)


def test_why_a_worker_has_ended():
    with mproc_ext.get_context("fork").Pool(1) as pool:
        with pytest.raises(mproc_ext.pool.WorkerLostError) as found:
            pool.apply(leave, ("no configuration",))
        assert isinstance(found.value.__cause__, SystemExit)
        assert found.value.__cause__.code == "no configuration"


HANDLES = """
import signal
import mproc_ext
from mproc_ext import _engine

_engine._GRACE = 1e6  # seconds: who waits for it waits for ever

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: None)
    with mproc_ext.get_context("fork").Pool(2) as pool:
        assert pool.map(abs, [-1, -2, -3]) == [1, 2, 3]
    pool = mproc_ext.get_context("fork").Pool(2)  # it ends with the program
"""


def test_idle_workers_that_handle_sigterm_end_at_once():
    run_program("-c", HANDLES)
