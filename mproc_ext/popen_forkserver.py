"""Start of a child by the fork server."""

import os
import threading
import time

from mproc_ext import _modules, forkserver, popen_fork, popen_spawn_posix, util

_modules.announce(__name__)

_RECHECK = 0.1  # seconds

__all__ = ["Popen"]


class _DupFd:
    """A descriptor in a pickle: sent to the child, named by its place among those sent."""

    def __init__(self, ind):
        self.ind = ind

    def detach(self):
        return forkserver.get_inherited_fds()[self.ind]


class Popen(popen_fork.Popen):
    """A grandchild: the fork server's child, of which a pipe tells us pid and exit code."""

    method = "forkserver"
    DupFd = _DupFd

    def __init__(self, process_obj):
        self._fds = []
        self._lock = threading.Lock()
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj):
        data = popen_spawn_posix.dump(self, process_obj)
        try:
            pid, status_r, data_w = forkserver._forkserver._start(
                self._fds, bool(process_obj.daemon)
            )
        except BaseException:
            popen_spawn_posix.settle(self, 0)
            raise
        popen_spawn_posix.settle(self, pid)
        self.finalizer = util.Finalize(self, util.close_fds, (status_r, data_w))
        self.pid = pid
        self.sentinel = status_r
        popen_spawn_posix.write_data(data_w, data)

    def poll(self, flag=os.WNOHANG):
        return self.wait(0 if flag == os.WNOHANG else None)

    def wait(self, timeout=None):
        if self.returncode is not None:
            return self.returncode
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        if deadline != deadline:
            raise ValueError("Invalid value NaN (not a number)")
        while self.returncode is None:
            # In pieces: another thread may learn the exit code first, and close the sentinel.
            left = min(_RECHECK, deadline - time.monotonic())
            try:
                ended = popen_fork.wait_for(self.sentinel, left)
            except OSError:
                if self.returncode is None:
                    raise
                break
            if ended:
                self._read_returncode()
            elif time.monotonic() >= deadline:
                break
        return self.returncode

    def _read_returncode(self):
        with self._lock:
            if self.returncode is None:
                try:
                    self.returncode = forkserver.read_signed(self.sentinel)
                except (OSError, EOFError):
                    # The server was killed, so nobody can tell.
                    self.returncode = 255

    def _send_signal(self, sig):
        if self.poll() is None:
            try:
                os.kill(self.pid, sig)
            except ProcessLookupError:
                pass
