"""Tests of CPython's suite that need not pass, by exact name, with the reason.

Only a test that looks at an internal which this package replaces belongs here (the feeder
thread of a queue, the name of a semaphore). A test that passes although it is excused is an
error: take it off the list.

The key is the test's name as the runner prints it, `group.Class.method`. The value is the reason,
or a tuple of the reason and where it holds: {"modes": ("name",), "pythons": ("3.11", "3.12")}.
RACY has the same form.
"""

from __future__ import annotations

import sys

_NO_ADDRESS = (
    "reads the server's address and key; ours has neither, as its socket is inherited, never named",
    {"pythons": ("3.14", "3.15")},
)

# Tests with a race of CPython's own: they need not pass at the first try, but at one of the next.
_INTERRUPT = (
    "CPython does not see a SIGINT that comes between its last look for signals and the system call"
    " of time.sleep(100): such a child sleeps on. With the stdlib of 3.15 that were 2 of 100 in a"
    " loop, and 3 of 4 runs of the test"
)
_THREADS_LEFT = (
    "before 3.13 test_terminate leaves threads that sleep for minutes, where they began before"
    " terminate(): no pool can end them. The stdlib's join waits for them, and the test fails; ours"
    " does not, and they are left over"
)
_SHUTDOWN = (
    "concurrent.futures of these Pythons (gh-125451, gh-110337): the executor's thread holds the"
    " shutdown lock while it joins the queue's feeder thread, which waits for that lock to report"
    " the object that cannot be pickled. With the stdlib of 3.13.0, 6 of 340 runs hung; where the"
    " feeder thread is slow to take that lock, 5 of 5 with 3.12.1 and 3.13.0, and none with 3.11.7"
)
_CHILD_LEFT = (
    "test_resource_tracker, which is excused below, fails before it waits for its child: whether"
    " that has been reaped when the runner looks is a matter of time"
)
_WORKER_LEFT = (
    (
        "test_failed_worker_replacement_breaks_pool, which is excused below, fails while a worker"
        " is still to start and to end: whether it ends as the runner looks is a matter of time"
    ),
    {"modes": ("executor",), "pythons": ("3.14", "3.15")},
)
RACY: dict[str, str | tuple[str, dict[str, tuple[str, ...]]]] = {
    f"test_multiprocessing_{method}.WithProcessesTestProcess.test_interrupt": _INTERRUPT
    for method in ("fork", "spawn", "forkserver")
} | {
    f"test_multiprocessing_{method}.TestResourceTracker.<environment>": _CHILD_LEFT
    for method in ("fork", "spawn", "forkserver")
}
RACY["test_concurrent_futures.ProcessPoolSpawnProcessPoolExecutorTest.<environment>"] = _WORKER_LEFT
if sys.version_info < (3, 13):
    for method in ("fork", "spawn", "forkserver"):
        RACY[f"test_multiprocessing_{method}.WithThreadsTestPool.<environment>"] = _THREADS_LEFT
if (3, 12) <= sys.version_info < (3, 12, 8) or (3, 13) <= sys.version_info < (3, 13, 1):
    for method in ("Fork", "Spawn", "Forkserver"):
        for test in (
            "ExecutorDeadlockTest.test_shutdown_deadlock_pickle",
            # It submits a local function.
            "ProcessPoolShutdownTest.test_processes_terminate",
        ):
            RACY[f"test_concurrent_futures.ProcessPool{method}{test}"] = (
                _SHUTDOWN,
                {"modes": ("name", "alias", "baseline")},  # not where the executor is ours
            )

_NO_NAME = (
    "looks at the name of a semaphore, and what the resource tracker does with it: ours has none"
)

_NO_FEEDER = (
    "has the feeder thread of the executor's queue fail to start; the alias and ours have none",
    {"modes": ("alias", "executor"), "pythons": ("3.13", "3.14", "3.15")},
)
_NO_SPAWN_WORKER = (
    "has the function fail that starts workers of the stdlib's: see tests/pool/test_futures.py",
    {"modes": ("executor",), "pythons": ("3.14", "3.15")},
)

EXCUSED: dict[str, str | tuple[str, dict[str, tuple[str, ...]]]] = (
    {
        f"test_multiprocessing_forkserver.WithProcessesTestProcess.{test}": _NO_ADDRESS
        for test in ("test_forkserver_auth_is_enabled", "test_forkserver_without_auth_fails")
    }
    | {
        f"test_multiprocessing_{method}.TestResourceTracker.{test}": _NO_NAME
        for method in ("fork", "spawn", "forkserver")
        for test in ("test_resource_tracker", "test_resource_tracker_sigkill")
    }
    | {
        f"test_concurrent_futures.ProcessPool{method}ProcessPoolExecutorTest"
        ".test_python_finalization_error": _NO_FEEDER
        for method in ("Fork", "Spawn", "Forkserver")
    }
    | {
        f"test_concurrent_futures.ProcessPool{method}ProcessPoolExecutorTest"
        ".test_failed_worker_replacement_breaks_pool": _NO_SPAWN_WORKER
        for method in ("Spawn", "Forkserver")
    }
)


def excuse(name: str, mode: str, python: str) -> str | None:
    """The reason why this test need not pass, or None."""
    return _reason(EXCUSED.get(name), mode, python)


def race(name: str, mode: str, python: str) -> str | None:
    """The reason why this test need not pass at the first try, or None."""
    return _reason(RACY.get(name), mode, python)


def _reason(entry, mode: str, python: str) -> str | None:
    if entry is None or isinstance(entry, str):
        return entry
    reason, where = entry
    if mode not in where.get("modes", (mode,)) or python not in where.get("pythons", (python,)):
        return None
    return reason
