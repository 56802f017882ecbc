"""Start of a child by executing a fresh interpreter."""

import io
import os
import signal

from mproc_ext import _core, _modules, context, popen_fork, spawn, util
from mproc_ext.resource_tracker import _resource_tracker

_modules.announce(__name__)

__all__ = ["Popen"]


class _DupFd:
    """A descriptor in a pickle: inherited under the same number."""

    def __init__(self, fd):
        self.fd = fd

    def detach(self):
        return self.fd


class Popen(popen_fork.Popen):
    method = "spawn"
    DupFd = _DupFd

    def __init__(self, process_obj):
        self._fds = []
        super().__init__(process_obj)

    def duplicate_for_child(self, fd):
        self._fds.append(fd)
        return fd

    def _launch(self, process_obj):
        tracked = _resource_tracker._fd is not None
        tracker_fd = spawn.tracker_fd()
        self._fds.append(tracker_fd)
        data = dump(self, process_obj)
        child_r, parent_w = _core.pipe()
        try:
            try:
                self._execute(process_obj, child_r, tracker_fd)
                settle(self, self.pid)
            except OSError as error:
                if error.filename is not None and not tracked:
                    # What could not be executed as the child was no tracker either.
                    _resource_tracker._stop()
                raise
            finally:
                # Closed before the data is written: if the child dies, the write must not block.
                os.close(child_r)
            write_data(parent_w, data)
        except BaseException:
            # A signal handler's, say: if there is a child, nobody will ever know of it.
            settle(self, 0)
            if hasattr(self, "pid"):
                self.kill()
                self.wait()
            raise
        finally:
            os.close(parent_w)

    def _execute(self, process_obj, child_r, tracker_fd):
        self._spawn(
            spawn.get_executable(),
            lambda parent_fd: spawn.get_command_line(
                pipe_handle=child_r,
                parent_pid=os.getpid(),
                parent_fd=parent_fd,
                tracker_fd=tracker_fd,
                **spawn.header(process_obj),
            ),
            [*self._fds, child_r],
            util.starter(),
        )


def dump(popen, process_obj):
    """The pickled data from which a child of spawn or forkserver is made."""
    prep_data = spawn.get_preparation_data(process_obj._name)
    buffer = io.BytesIO()
    context.set_spawning_popen(popen)
    try:
        context.reduction.dump(prep_data, buffer)
        context.reduction.dump(process_obj, buffer)
    except BaseException:
        settle(popen, 0)
        raise
    finally:
        context.set_spawning_popen(None)
    return buffer.getvalue()


def settle(popen, pid):
    """Tell the arenas whose locks the child has been given that it was started; with 0, not."""
    if "_arena_seats" in popen.__dict__:
        from mproc_ext import _arena

        _arena.settle(popen, pid)


def write_data(fd, data):
    """Send the data to the child.  A child that died before it read them has an exit code, which
    tells more than an exception here would."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    try:
        popen_fork.write_all(fd, data)
    except BrokenPipeError:
        # Where the program has not left SIGPIPE ignored, it is on its way to this thread.
        if signal.SIGPIPE not in before:
            signal.sigtimedwait([signal.SIGPIPE], 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
