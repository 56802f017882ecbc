"""Start of a child by fork: policy over the C type ``_core.Child``."""

import atexit
import os
import posix
import select
import signal
import sys

from mproc_ext import _modules, util
from mproc_ext._core import Child, thread_count, wait_readable

_modules.announce(__name__)

__all__ = ["Popen"]

# Since 3.13 _bootstrap leaves the child's exit functions to whoever called it.
_RUNS_ATEXIT = sys.version_info >= (3, 13)


class Popen(Child):
    """The child of a started Process, as its parent sees it.

    Where another library has replaced the functions by which the stdlib waits and signals (gevent,
    whose threads wait for its event loop), the stdlib's code runs, which calls them; so it does
    where a subclass has its own way to learn the exit code, which need not be that of a child.
    """

    method = "fork"
    finalizer = None  # for subclasses that have something to close

    def __init__(self, process_obj):
        util._flush_std_streams()
        self._launch(process_obj)

    def duplicate_for_child(self, fd):
        return fd

    def poll(self, flag=os.WNOHANG):
        return self._stdlib().poll(self, flag) if waits_otherwise() else super().poll(flag)

    def wait(self, timeout=None):
        if waits_otherwise() or self._polls_otherwise():
            return self._stdlib().wait(self, timeout)
        return super().wait(timeout)

    def _send_signal(self, sig):
        if waits_otherwise() or self._polls_otherwise() or util.is_replaced(os.kill):
            self._stdlib()._send_signal(self, sig)
        else:
            super()._send_signal(sig)

    def _polls_otherwise(self):
        return type(self).poll is not Popen.poll

    @staticmethod
    def _stdlib():
        return _modules.stdlib("popen_fork").Popen

    def interrupt(self):
        self._send_signal(signal.SIGINT)

    def terminate(self):
        self._send_signal(signal.SIGTERM)

    def kill(self):
        self._send_signal(signal.SIGKILL)

    def close(self):
        if self.finalizer is not None:
            self.finalizer()
        super().close()

    def _launch(self, process_obj):
        parent = os.getpid()
        warn_of_threads()
        try:
            with sharing_tracker():
                parent_sentinel = self._fork(process_obj.daemon)
            if parent_sentinel is not None:
                run_child(process_obj._bootstrap, parent_sentinel=parent_sentinel)
        finally:
            # Whatever went wrong, the child must not return into its parent's code.
            if os.getpid() != parent:
                os._exit(1)


def waits_otherwise():
    """Whether another library has replaced what the stdlib waits for processes with."""
    return util.is_replaced(os.waitpid) or util.is_replaced(getattr(select, "poll", None))


def wait_for(fd, timeout):
    """Wait until a descriptor is readable; whether it is so after *timeout* seconds."""
    if waits_otherwise():
        return bool(_modules.stdlib("connection").wait([fd], timeout))
    return wait_readable(fd, timeout)


def warn_of_threads():
    """Warn as os.fork does since 3.12, by the name of the module from which the stdlib calls it:
    programs filter the warning by that.

    Where warnings are errors, os.fork raises this one from 3.15 on, and forks in silence before.
    It comes before the fork, so that there is no child that nobody knows."""
    if sys.version_info < (3, 12) or os.fork is not posix.fork or thread_count() <= 1:
        return
    import warnings

    try:
        warnings.warn_explicit(
            f"This process (pid={os.getpid()}) is multi-threaded, use of fork() may lead to "
            "deadlocks in the child.",
            DeprecationWarning,
            __file__,
            sys._getframe(1).f_lineno,
            "multiprocessing.popen_fork",
            _warned,
        )
    except Exception:
        if sys.version_info >= (3, 15):
            raise


_warned = {}


def run_child(bootstrap, *args, **kwargs):
    """In a forked child: run *bootstrap*, which returns an exit code, and exit with it."""
    code = 1
    try:
        if _RUNS_ATEXIT:
            atexit._clear()
            atexit.register(util._exit_function)
        code = bootstrap(*args, **kwargs)
    finally:
        try:
            if _RUNS_ATEXIT:
                atexit._run_exitfuncs()
        finally:
            os._exit(code)


def write_all(fd, data):
    """os.write until all is written."""
    data = memoryview(data)
    while data:
        data = data[os.write(fd, data) :]


class sharing_tracker:
    """Around a fork: tells the resource tracker's at-fork handler, where this Python has one
    (gh-146313), that the child goes on using its parent's tracker."""

    def __enter__(self):
        tracker = sys.modules.get("multiprocessing.resource_tracker")
        self._intent = getattr(tracker, "_fork_intent", None)
        if self._intent is not None:
            self._intent.preserve_fd = True

    def __exit__(self, *exc_info):
        if self._intent is not None:
            self._intent.preserve_fd = False
