"""Run the programs of the process tests, each in a session in which nothing may be left."""

import os
import signal
import subprocess
import sys
import time
import types

import pytest

LIMIT = 60  # seconds for a program
METHODS = ("fork", "spawn", "forkserver")


def session_members(session):
    """The processes of a session that are not zombies: (pid, command line)."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat") as file:
                fields = file.read().rpartition(")")[2].split()
            with open(f"/proc/{entry}/cmdline") as file:
                command = file.read().replace("\0", " ").strip()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append((int(entry), command))
    return found


def wait_for_empty_session(session, seconds=10):
    """What is left of a session.  Servers notice the end of their program in their own time."""
    deadline = time.monotonic() + seconds
    while (left := session_members(session)) and time.monotonic() < deadline:
        time.sleep(0.01)  # nothing else tells of the end of somebody else's child
    return left


def environment(**changes):
    """This environment without what an outer alias has set; a change to None removes a variable."""
    environ = {**os.environ, "MPROC_EXT_ALIAS": None, "PYTHONWARNINGS": None, **changes}
    return {name: value for name, value in environ.items() if value is not None}


def run(command, *, env=None, limit=LIMIT, input=None, stdin=None, cwd="/", **kwargs):
    """Run a program; fail if it does not end in time, or leaves a process behind.

    It does not run in the source tree, where an unbuilt package would be found first.
    """
    if input is None and stdin is None:
        stdin = subprocess.DEVNULL
    process = subprocess.Popen(
        [*map(str, command)],
        env=environment(**(env or {})),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.PIPE if input is not None else stdin,
        cwd=cwd,
        text=True,
        start_new_session=True,
        **kwargs,
    )
    try:
        out, err = process.communicate(input, timeout=limit)
    except subprocess.TimeoutExpired:
        left = session_members(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"{command} ran longer than {limit} s\nprocesses: {left}\n{out}\n{err}")
    left = wait_for_empty_session(process.pid)
    for pid, _ in left:
        os.kill(pid, signal.SIGKILL)
    assert left == [], f"{command} left processes behind\n{err}"
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def run_python(*args, **kwargs):
    return run([sys.executable, *args], **kwargs)


def pytest_generate_tests(metafunc):
    if "method" in metafunc.fixturenames:
        metafunc.parametrize("method", METHODS)


@pytest.fixture(scope="session")
def programs():
    """The functions above, for the tests: with importlib mode they cannot import them."""
    return types.SimpleNamespace(**globals())
