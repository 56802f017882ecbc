"""Start of a child by the fork server."""

import os
import signal
import threading

from mproc_ext import _core, forkserver, popen_fork, popen_spawn_posix, util

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
        self._pidfd = None
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return len(self._fds) - 1

    def _launch(self, process_obj):
        data = popen_spawn_posix.dump(self, process_obj)
        status_r, data_w = forkserver.connect_to_new_process(
            self._fds, daemon=bool(process_obj.daemon)
        )
        held = [status_r, data_w]
        self._close = util.Finalize(self, _close_all, (held,))
        popen_spawn_posix.write_data(data_w, data)
        try:
            pid = forkserver.read_signed(status_r)
        except EOFError as error:
            forkserver._forkserver._explain(error)
            raise
        if pid < 0:
            raise OSError(-pid, f"the fork server cannot start a process: {os.strerror(-pid)}")
        self.pid = pid
        self.sentinel = status_r
        try:
            self._pidfd = _core.pidfd_open(pid)
        except ProcessLookupError:
            pass  # it has ended already; its exit code is on the way
        if self._pidfd is not None:
            held.append(self._pidfd)

    def poll(self, flag=os.WNOHANG):
        return self.wait(0 if flag == os.WNOHANG else None)

    def wait(self, timeout=None):
        if self.returncode is None and _core.wait_readable(self.sentinel, timeout):
            with self._lock:
                if self.returncode is None:
                    try:
                        self.returncode = forkserver.read_signed(self.sentinel)
                    except (OSError, EOFError):
                        # The server was killed, so nobody can tell.
                        self.returncode = 255
        return self.returncode

    def _send_signal(self, sig):
        if self.poll() is not None:
            return
        try:
            if self._pidfd is not None:
                signal.pidfd_send_signal(self._pidfd, sig)
            else:
                os.kill(self.pid, sig)
        except ProcessLookupError:
            pass

    def close(self):
        self._close()


def _close_all(fds):
    util.close_fds(*fds)
