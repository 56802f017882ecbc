"""The fork server: a process without threads that forks children on request.

The server and its clients are the two ends of one Unix socket pair.  The clients' end is
inherited, never named, so nobody else can reach the server (there is no address and nothing to
authenticate), nothing stays behind in the file system, and the server sees the end of the stream
once the last client is gone.  A request is one message with descriptors; the client reads the
child's pid, or the errno that kept it from being made, from a pipe, and later the exit code.

The server watches the clients of daemonic children and kills those whose client has ended; they
are killed by the kernel if the server itself ends.
"""

import os
import select
import signal
import socket
import sys
import warnings

from mproc_ext import _core, _modules, popen_fork, process, spawn, util
from mproc_ext.reduction import pickle

__all__ = [
    "ensure_running",
    "get_inherited_fds",
    "connect_to_new_process",
    "set_forkserver_preload",
]

MAXFDS_TO_SEND = 253  # the kernel's SCM_MAX_FD
_OWN_FDS = 5  # of a request: data, status, the client, the control socket, the resource tracker
_MAX_REQUEST = 4096


class ForkServer:
    """The fork server as its clients see it; a process has one."""

    def __init__(self):
        self._forkserver_alive_fd = None  # our end of the control socket
        self._forkserver_pid = None  # where this process started the server
        self._inherited_fds = None
        self._lock = util.ForkAwareThreadLock()
        self._preload_modules = ["__main__"]
        self._preload_on_error = "ignore"

    def _stop(self):
        # Method used by unit tests to stop the server
        with self._lock:
            self._stop_unlocked()

    def _stop_unlocked(self):
        if self._forkserver_pid is None:
            return
        # The end of the stream asks the server to stop.
        os.close(self._forkserver_alive_fd)
        self._forget()

    def _forget(self):
        """Drop a server that has ended, or is about to, and reap it if it is our child."""
        self._forkserver_alive_fd = None
        pid, self._forkserver_pid = self._forkserver_pid, None
        if pid is not None:
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # a copy of the process that started the server: not ours to reap

    def set_forkserver_preload(self, modules_names, *, on_error="ignore"):
        """Set list of module names to try to load in forkserver process.

        The on_error parameter controls how import failures are handled:
        "ignore" (default) silently ignores failures, "warn" emits warnings,
        and "fail" raises exceptions breaking the forkserver context.
        """
        if not all(type(mod) is str for mod in modules_names):
            raise TypeError("module_names must be a list of strings")
        if on_error not in ("ignore", "warn", "fail"):
            raise ValueError(f"on_error must be 'ignore', 'warn', or 'fail', not {on_error!r}")
        self._preload_modules = modules_names
        self._preload_on_error = on_error

    def get_inherited_fds(self):
        """Return list of fds inherited from parent process.

        This returns None if the current process was not started by fork
        server.
        """
        return self._inherited_fds

    def connect_to_new_process(self, fds, *, daemon=False):
        """Request forkserver to create a child process.

        Returns a pair of fds (status_r, data_w).  The calling process can read
        the child process's pid and (eventually) its returncode from status_r.
        The calling process should write to data_w the pickled preparation and
        process data.
        """
        if len(fds) + _OWN_FDS > MAXFDS_TO_SEND:
            raise ValueError("too many fds")
        self.ensure_running()
        opened = []
        try:
            status_r, status_w = _pipe(opened)
            data_r, data_w = _pipe(opened)
            # Without pidfds the child takes its data pipe for the sentinel of its parent.
            client_fd = _core.pidfd_open(os.getpid())
            if client_fd is not None:
                opened.append(client_fd)
            tracker_fd = spawn.running_tracker_fd()
            sent = [data_r, status_w, self._forkserver_alive_fd]
            sent += [fd for fd in (client_fd, tracker_fd) if fd is not None]
            request = {
                "daemon": daemon,
                "alias": _modules.aliased,
                "client_fd": client_fd is not None,
                "tracker_fd": tracker_fd is not None,
            }
            _core.send_fds(self._forkserver_alive_fd, pickle.dumps(request), [*sent, *fds])
            opened.remove(status_r)
            opened.remove(data_w)
            return status_r, data_w
        except ConnectionError as error:
            self._explain(error)
            raise
        finally:
            util.close_fds(*opened)

    def _explain(self, error):
        """Add what we know of it to an exception that means that the server has gone."""
        if self._preload_modules and self._preload_on_error == "fail":
            error.add_note(
                "Forkserver process may have crashed during module preloading. Check stderr."
            )

    def ensure_running(self):
        """Make sure that a fork server is running.

        This can be called from any process.  Note that usually a child
        process will just reuse the forkserver started by its parent, so
        ensure_running() will do nothing.
        """
        with self._lock:
            if self._forkserver_alive_fd is not None:
                events = _events(self._forkserver_alive_fd)
                if not events & (select.POLLHUP | select.POLLNVAL | select.POLLERR):
                    return
                if not events & select.POLLNVAL:  # else the program closed it, and may reuse it
                    os.close(self._forkserver_alive_fd)
                self._forget()
            self._launch()

    def _launch(self):
        startup = pickle.dumps(self._startup_data())
        client, server = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with client, server:
            opened = []
            try:
                startup_r, startup_w = _pipe(opened)
                command = spawn.interpreter_command(
                    "main",
                    "forkserver",
                    control_fd=server.fileno(),
                    startup_fd=startup_r,
                    version=spawn.__version__,
                )
                pid = _core.spawn(command[0], command, [server.fileno(), startup_r])
                opened.remove(startup_r)
                os.close(startup_r)
                popen_fork.write_all(startup_w, startup)
            finally:
                util.close_fds(*opened)
            self._forkserver_pid = pid
            self._forkserver_alive_fd = client.detach()

    def _startup_data(self):
        data = {"preload": self._preload_modules, "on_error": self._preload_on_error}
        if self._preload_modules:
            prepared = spawn.get_preparation_data("ignore")
            for ours, theirs in (
                ("main_path", "init_main_from_path"),
                ("main_name", "init_main_from_name"),
                ("sys_path", "sys_path"),
                ("sys_argv", "sys_argv"),
            ):
                data[ours] = prepared.get(theirs)
        return {"preload": data, "alias": _modules.aliased}


def _pipe(opened):
    """os.pipe, noting both ends in a list of what is to be closed on an error."""
    ends = os.pipe()
    opened.extend(ends)
    return ends


def _events(fd):
    """What is to be said of a descriptor at once, as poll's events."""
    poller = select.poll()
    poller.register(fd, 0)
    return sum(events for _, events in poller.poll(0))


#
# The server
#


def _handle_import_error(on_error, what, error):
    if on_error == "fail":
        raise error
    if on_error == "warn":
        warnings.warn(f"Failed to preload {what}: {error}", ImportWarning, stacklevel=3)


def _handle_preload(
    preload, main_path=None, sys_path=None, sys_argv=None, on_error="ignore", main_name=None
):
    """Import the modules of the list *preload*; "__main__" stands for the program's main module,
    given by path or by name.  What goes wrong is treated as *on_error* says."""
    if not preload:
        return
    if sys_argv is not None:
        sys.argv[:] = sys_argv
    if sys_path is not None:
        sys.path[:] = sys_path
    if "__main__" in preload and (main_path is not None or main_name is not None):
        process.current_process()._inheriting = True
        try:
            if main_name is not None:
                spawn._fixup_main_from_name(main_name)
            else:
                spawn.import_main_path(main_path)
        except Exception as error:
            what = f"__main__ from {main_name or main_path!r}"
            _handle_import_error(on_error, what, error)
        finally:
            del process.current_process()._inheriting
    for name in preload:
        try:
            __import__(name)
        except ImportError as error:
            _handle_import_error(on_error, f"module {name!r}", error)
    # gh-135335: children must not inherit what the modules left in the buffers
    util._flush_std_streams()


def main(control_fd, startup_fd, version):
    """Run the fork server; returns when the last client has gone."""
    spawn.check_version(version)
    with open(startup_fd, "rb") as file:
        startup = pickle.load(file)
    if startup["alias"]:
        from mproc_ext._alias import install

        install()
    _handle_preload(**startup["preload"])
    util._close_stdin()
    _Server(control_fd).serve()


class _Server:
    def __init__(self, control_fd):
        self._control_fd = control_fd
        self._poller = select.poll()
        self._poller.register(control_fd, select.POLLIN)
        self._children = {}  # sentinel -> (Child, the pipe to its client)
        self._clients = {}  # what tells of the end of a client -> its daemonic Child
        # Protect the server from ^C; its children get back what was there.
        self._old_sigint = signal.signal(signal.SIGINT, signal.SIG_IGN)
        # A sentinel without pidfds is a pipe, which a grandchild may hold open: look as well.
        self._timeout = None if _core.features()["pidfd"] else 50

    def serve(self):
        while True:
            ready = [fd for fd, _ in self._poller.poll(self._timeout)]
            if self._timeout is not None:
                ready = dict.fromkeys([*ready, *self._children])
            for fd in ready:
                if fd in self._clients:
                    self._clients[fd]._send_signal(signal.SIGKILL)
                    self._drop_client(fd)
                elif fd in self._children:
                    self._report(fd)
            if self._control_fd in ready and not self._answer():
                return

    def _report(self, sentinel):
        """Send the exit code of a child that has ended to its client."""
        child, status_w = self._children[sentinel]
        code = child.poll()
        if code is None:
            return
        self._poller.unregister(sentinel)
        del self._children[sentinel]
        for fd in [fd for fd, of in self._clients.items() if of is child]:
            self._drop_client(fd)
        child.close()
        _tell(status_w, code)
        os.close(status_w)

    def _drop_client(self, fd):
        self._poller.unregister(fd)
        del self._clients[fd]
        os.close(fd)

    def _answer(self):
        """Serve one request.  False where there are no clients any more."""
        try:
            data, fds = _core.recv_fds(self._control_fd, _MAX_REQUEST)
        except OSError as error:
            # The request is lost with its descriptors, and its client sees the end of its pipe.
            warnings.warn(f"forkserver: a request failed: {error}", RuntimeWarning)
            return True
        if not data:
            return False
        request = pickle.loads(data)
        data_r, status_w, control_w, *rest = fds
        client_fd = rest.pop(0) if request["client_fd"] else os.dup(data_r)
        child = _core.Child()
        try:
            self._fork(child, request, data_r, status_w, control_w, client_fd, rest)
        except OSError as error:
            _tell(status_w, -error.errno)
            util.close_fds(status_w, client_fd)
        else:
            _tell(status_w, child.pid)
            self._children[child.sentinel] = child, status_w
            self._poller.register(child.sentinel, select.POLLIN)
            if request["daemon"]:
                self._clients[client_fd] = child
                # A pidfd is readable at the end; the data pipe is before, and hangs up then.
                self._poller.register(client_fd, select.POLLIN if request["client_fd"] else 0)
            else:
                os.close(client_fd)
        finally:
            util.close_fds(data_r, control_w, *rest)
        return True

    def _fork(self, child, request, data_r, status_w, control_w, client_fd, rest):
        server = os.getpid()
        try:
            server_fd = child._fork(request["daemon"])
            if server_fd is not None:
                util.close_fds(server_fd, status_w)
                popen_fork.run_child(self._run_child, request, data_r, control_w, client_fd, rest)
        finally:
            if os.getpid() != server:
                os._exit(1)

    def _run_child(self, request, data_r, control_w, client_fd, fds):
        try:
            signal.signal(signal.SIGINT, self._old_sigint)
            self._close_inherited()
            if request["alias"]:
                from mproc_ext._alias import install

                install()
            _forkserver._forkserver_alive_fd = control_w
            if request["tracker_fd"]:
                from mproc_ext.resource_tracker import _resource_tracker

                _resource_tracker._fd = fds.pop(0)
            _forkserver._inherited_fds = fds
            return spawn._main(data_r, client_fd)
        except Exception:
            sys.excepthook(*sys.exc_info())
            util._flush_std_streams()
            return 1

    def _close_inherited(self):
        """In a child: close what the server holds for itself and for its other children."""
        os.close(self._control_fd)
        for child, status_w in self._children.values():
            child.close()
            os.close(status_w)
        util.close_fds(*self._clients)


def _tell(status_w, number):
    """Send a number to a client; it may have gone."""
    try:
        write_signed(status_w, number)
    except BrokenPipeError:
        pass


#
# Read and write signed numbers
#


def read_signed(fd):
    data = b""
    while len(data) < 8:
        read = os.read(fd, 8 - len(data))
        if not read:
            raise EOFError("unexpected EOF")
        data += read
    return int.from_bytes(data, sys.byteorder, signed=True)


def write_signed(fd, n):
    popen_fork.write_all(fd, n.to_bytes(8, sys.byteorder, signed=True))


_forkserver = ForkServer()
ensure_running = _forkserver.ensure_running
get_inherited_fds = _forkserver.get_inherited_fds
connect_to_new_process = _forkserver.connect_to_new_process
set_forkserver_preload = _forkserver.set_forkserver_preload
