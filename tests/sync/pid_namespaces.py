"""Processes in other PID namespaces, for the tests here."""

import ctypes
import os
import signal
import traceback
from multiprocessing import Pipe

from sync_helpers import LIMIT

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_REC_PRIVATE = 0x4000 | 0x40000
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unshare(flags):
    _check(_libc.unshare(flags))


def remount_proc(proc):
    """*own*: the /proc of this namespace; *absent*: none; *outer*: as it was."""
    if proc == "outer":
        return
    _check(_libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
    if proc == "own":
        _check(_libc.mount(b"proc", b"/proc", b"proc", 0, None))
    else:
        while os.path.exists("/proc/version"):
            _check(_libc.umount2(b"/proc", MNT_DETACH))


def choose_pid(pid):
    """The next process of this namespace gets the number."""
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(pid - 1))


def why_not():
    """Why no namespace can be made here, None where it can."""
    pid = os.fork()
    if pid == 0:
        try:
            unshare(CLONE_NEWPID | CLONE_NEWNS)
            _check(_libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None))
            os._exit(not os.access("/proc/sys/kernel/ns_last_pid", os.W_OK))
        except OSError:
            os._exit(1)
    return "not permitted to make PID namespaces" if os.waitpid(pid, 0)[1] else None


def free_pid():
    """A number that no process here has."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


class Inside:
    """A process with that number in a new PID namespace, forked from this one, that runs the
    function with a connection to here."""

    def __init__(self, function, *args, pid, proc="outer"):
        self.connection, theirs = Pipe()
        self._leader = os.fork()
        if self._leader == 0:
            self.connection.close()
            _run_and_exit(theirs, _lead, theirs, function, args, pid, proc)
        theirs.close()
        self.outer_pid = self.recv()

    def recv(self):
        assert self.connection.poll(LIMIT), f"nothing came from inside for {LIMIT} s"
        value = self.connection.recv()
        assert not (isinstance(value, tuple) and value[0] == "failed"), value[1]
        return value

    def send(self, value):
        self.connection.send(value)

    def kill(self):
        os.kill(self.outer_pid, signal.SIGKILL)
        self.join(-signal.SIGKILL)

    def join(self, exitcode=0):
        status = os.waitpid(self._leader, 0)[1]
        self.connection.close()
        assert os.waitstatus_to_exitcode(status) == (exitcode if exitcode >= 0 else 99)


def _run_and_exit(connection, function, *args):
    code = 98
    try:
        code = function(*args) or 0
    except BaseException:
        connection.send(("failed", traceback.format_exc()))
    finally:
        os._exit(code)


def _fork_and_wait(connection, function, *args):
    pid = os.fork()
    if pid == 0:
        _run_and_exit(connection, function, *args)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 99


def _lead(connection, function, args, pid, proc):
    unshare(CLONE_NEWPID | CLONE_NEWNS)
    return _fork_and_wait(connection, _be_first, connection, function, args, pid, proc)


def _be_first(connection, function, args, pid, proc):
    choose_pid(pid)
    return _fork_and_wait(connection, _run, connection, function, args, pid, proc)


def _run(connection, function, args, pid, proc):
    assert os.getpid() == pid
    connection.send(int(os.readlink("/proc/self")))
    remount_proc(proc)
    function(connection, *args)
