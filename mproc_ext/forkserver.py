"""The fork server: a process without threads that forks children on request.

The server and its clients are the two ends of one Unix socket pair.  The clients' end is
inherited, never named, so nobody else can reach the server (there is no address and nothing to
authenticate), nothing stays behind in the file system, and the server sees the end of the stream
once the last client is gone.  A request is one message with descriptors; the client reads the
child's pid, or the errno that kept it from being made, from a pipe, and later the exit code.

The server watches the clients of daemonic children and kills those whose client has ended; they
are killed by the kernel if the server itself ends.  It holds one descriptor for each child, and one
for each client that has daemonic ones.

All clients of a server are in its PID namespace, so that its children have for them the numbers
that it says.  A process that was forked into another namespace starts a server there.
"""

import errno
import os
import select
import signal
import socket
import sys
import warnings

from mproc_ext import _core, _fds, _modules, popen_fork, process, spawn, util
from mproc_ext.reduction import pickle

# Here and not in each child of the server.
from mproc_ext.resource_tracker import _resource_tracker

_modules.announce(__name__)

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
        self._identity = None  # of the socket, whose number the program may close and use again
        self._forkserver_pid = None  # where this process, or the one it is a copy of, ...
        self._starter = None  # ... whose identity this is, started the server
        self._namespaces = None  # what _core.namespaces() said in the server's namespace
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
        self._forget()

    def _connect(self, fd, pid=None):
        """Take a control socket, and the server's pid where this process has started it."""
        self._forkserver_alive_fd = fd
        self._identity = _fds.identity(fd)
        self._namespaces = _core.namespaces()
        self._starter = _core.identity()
        self._forkserver_pid = pid

    def _forget(self):
        """Drop the server, and reap it if it is our child: the end of the stream asks it to stop,
        if it has not ended already."""
        _fds.close(self._forkserver_alive_fd, self._identity)
        self._forkserver_alive_fd = None
        pid, self._forkserver_pid = self._forkserver_pid, None
        if pid is not None and self._starter == _core.identity():
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:
                pass  # somebody else has reaped it

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
        control_fd = self._running()
        opened = []
        try:
            status_r, status_w = _pipe(opened)
            data_r, data_w = _pipe(opened)
            # Without pidfds the child takes its data pipe for the sentinel of its parent.
            client_fd = _core.pidfd_open(os.getpid())
            if client_fd is not None:
                opened.append(client_fd)
            sent = [data_r, status_w, control_fd, spawn.tracker_fd()]
            if client_fd is not None:
                sent.append(client_fd)
            request = {
                "daemon": daemon,
                "alias": _modules.aliased,
                "client": None if client_fd is None else _core.identity(),
            }
            _core.send_fds(control_fd, pickle.dumps(request), [*sent, *fds])
            opened.remove(status_r)
            opened.remove(data_w)
            return status_r, data_w
        finally:
            util.close_fds(*opened)

    def _start(self, fds, daemon):
        """Have the server make a child.  Returns its pid and what connect_to_new_process does.

        A server that was killed may be found dead only now: then another one is asked.  If the
        first had made a child, that finds its data pipe closed, and ends.
        """
        may_retry = self._is_alive()
        while True:
            try:
                return self._request(fds, daemon)
            except (ConnectionError, EOFError) as error:
                if not may_retry or self._is_alive():
                    raise self._explained(error)
            may_retry = False

    def _request(self, fds, daemon):
        status_r, data_w = self.connect_to_new_process(fds, daemon=daemon)
        try:
            pid = read_signed(status_r)
            if pid < 0:
                raise start_error(-pid)
            return pid, status_r, data_w
        except BaseException:
            util.close_fds(status_r, data_w)
            raise

    def _explained(self, error):
        """The exception to raise where a request came to nothing."""
        if self._is_alive():
            # The server lives: it could not receive the descriptors of the request.
            return start_error(errno.EMFILE)
        if self._preload_modules and self._preload_on_error == "fail":
            error.add_note(
                "Forkserver process may have crashed during module preloading. Check stderr."
            )
        return error

    def ensure_running(self):
        """Make sure that a fork server is running.

        This can be called from any process.  Note that usually a child
        process will just reuse the forkserver started by its parent, so
        ensure_running() will do nothing.
        """
        self._running()

    def _running(self):
        """The control socket of a server that runs."""
        with self._lock:
            if not self._is_alive():
                if self._forkserver_alive_fd is not None:
                    self._forget()
                self._launch()
            return self._forkserver_alive_fd

    def _is_alive(self):
        """Whether there is a server in our namespace, our end of its socket is still that, and so
        is its own."""
        fd = self._forkserver_alive_fd
        return (
            fd is not None
            and self._namespaces == _core.namespaces()
            and self._identity == _fds.identity(fd)
            and not _hung_up(fd)
        )

    def _launch(self):
        if _namespace("pid_for_children") != _namespace("pid"):
            raise OSError(
                errno.EXDEV,
                "the fork server would be in another PID namespace than this process, for which "
                "its children had no numbers: start it before os.unshare or os.setns, or use fork "
                "or spawn",
            )
        startup = pickle.dumps(self._startup_data())
        opened = []
        try:
            client_fd, server_fd = _socketpair(opened)
            startup_r, startup_w = _pipe(opened)
            command = spawn.interpreter_command(
                "main",
                "forkserver",
                control_fd=server_fd,
                startup_fd=startup_r,
                version=spawn.__version__,
                foreign=_core.is_foreign(),
            )
            pid = util.spawnv_passfds(command[0], command, [server_fd, startup_r])
            opened.remove(startup_r)
            os.close(startup_r)
            try:
                popen_fork.write_all(startup_w, startup)
            except BaseException:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise
            opened.remove(client_fd)
            self._connect(client_fd, pid)
        finally:
            util.close_fds(*opened)

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
    """A pipe, both ends noted in a list of what is to be closed on an error."""
    ends = _core.pipe()
    opened.extend(ends)
    return ends


def _socketpair(opened):
    """A pair of sockets for messages, noted like the ends of a pipe."""
    for end in socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET):
        opened.append(_core.above_stdio(end.detach()))
    return opened[-2:]


def start_error(number):
    """The exception of a start that failed in the server, by its errno."""
    why = {
        errno.EMFILE: "it has no descriptor left, and it holds one for each child that runs (see "
        "ulimit -n)",
        errno.EAGAIN: "the limit on processes is reached (RLIMIT_NPROC, see ulimit -u, or pids.max "
        "of the cgroup)",
    }.get(number, os.strerror(number))
    return OSError(number, f"the fork server cannot start a process: {why}")


def _namespace(name):
    """What makes a namespace of this process itself.  None without /proc, and for the next children
    where they come into one that has had no process yet."""
    try:
        return os.stat(f"/proc/self/ns/{name}").st_ino
    except OSError:
        return None


def _hung_up(fd):
    """Whether the other end has been closed."""
    poller = select.poll()
    poller.register(fd, 0)
    return bool(poller.poll(0))


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
        except (Exception, SystemExit) as error:
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


def main(control_fd, startup_fd, version, foreign=False):
    """Run the fork server; returns when the last client has gone."""
    spawn.check_version(version)
    _core.started_by(foreign)
    with open(startup_fd, "rb") as file:
        startup = pickle.load(file)
    if startup["alias"]:
        from mproc_ext._alias import install

        install()
    # First: what the program's main module reads at its top level is meant for the program.
    util._close_stdin()
    _handle_preload(**startup["preload"])
    _fill_standard_streams()
    _Server(control_fd).serve()


def _fill_standard_streams():
    """No descriptor that comes with a request may get the number of one, to be printed to."""
    fd = os.open(os.devnull, os.O_RDWR)
    while fd <= 2:
        fd = os.dup(fd)
    os.close(fd)


class _Server:
    """Forks children on request; sends their pids and exit codes to the clients."""

    def __init__(self, control_fd):
        self._control_fd = control_fd
        self._children = {}  # pid -> the pipe to its client
        self._daemons = {}  # what tells of the end of a client -> the pids of its daemonic children
        self._client_fds = {}  # identity of a client -> its pidfd, a key of _daemons
        self._wake_r, self._wake_w = os.pipe()
        for fd in (self._wake_r, self._wake_w):
            os.set_blocking(fd, False)
        # Protect the server from ^C, and from clients that have gone, and have it woken by the ends
        # of its children. The children get back what was there, or what the main module has set:
        # SIGCHLD may be ignored, and nobody would learn an exit code.
        self._handlers = {
            signal.SIGPIPE: signal.signal(signal.SIGPIPE, signal.SIG_IGN),
            signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda signum, frame: None),
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
        }
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        self._poller = select.poll()
        for fd in (control_fd, self._wake_r):
            self._poller.register(fd, select.POLLIN)

    def serve(self):
        while True:
            ready = {fd for fd, _ in self._poller.poll()}
            if self._wake_r in ready:
                self._reap()
            for client_fd in ready.intersection(self._daemons):
                self._kill_daemons(client_fd)
            # Last: without /proc, a new client may have the identity of one that has ended.
            if self._control_fd in ready and not self._answer():
                return

    def _reap(self):
        """Send the exit codes of the children that have ended to their clients."""
        try:
            os.read(self._wake_r, 512)
        except BlockingIOError:
            pass
        for pid in list(self._children):
            try:
                reaped, status = os.waitpid(pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status)
            except ChildProcessError:
                reaped, code = pid, 255  # reaped by a module that was preloaded
            if reaped:
                status_w = self._children.pop(pid)
                _tell(status_w, code)
                os.close(status_w)
                for client_fd in [fd for fd, pids in self._daemons.items() if pid in pids]:
                    self._daemons[client_fd].remove(pid)
                    if not self._daemons[client_fd]:
                        self._drop_client(client_fd)

    def _kill_daemons(self, client_fd):
        """The client has ended: so have its daemonic children to."""
        for pid in self._daemons[client_fd]:
            os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still its own
        self._drop_client(client_fd)

    def _drop_client(self, client_fd):
        self._poller.unregister(client_fd)
        del self._daemons[client_fd]
        for client in [name for name, fd in self._client_fds.items() if fd == client_fd]:
            del self._client_fds[client]
        os.close(client_fd)

    def _answer(self):
        """Serve one request.  False where there are no clients any more."""
        try:
            data, fds = _core.recv_fds(self._control_fd, _MAX_REQUEST)
        except OSError:
            # Without its descriptors there is nobody to answer to: the client sees the end of its
            # pipe, and that the server lives.
            return True
        if not data:
            return False
        request = pickle.loads(data)
        data_r, status_w, control_w, tracker_fd, *rest = fds
        client_fd = None if request["client"] is None else rest.pop(0)
        child = _core.Child()
        try:
            if client_fd is None:
                client_fd = os.dup(data_r)
            self._fork(child, request, status_w, data_r, control_w, tracker_fd, client_fd, rest)
        except Exception as error:
            _tell(status_w, -(getattr(error, "errno", None) or errno.ENOMEM))
            os.close(status_w)
        else:
            _tell(status_w, child.pid)
            self._children[child.pid] = status_w
            if request["daemon"]:
                client_fd = self._watch(request["client"], client_fd, child.pid)
        finally:
            child.close()
            util.close_fds(data_r, control_w, tracker_fd, *rest)
            if client_fd is not None:
                os.close(client_fd)
        return True

    def _watch(self, client, client_fd, pid):
        """Have the daemonic child killed with its client.  Returns the descriptor if it is not
        needed: there is one for the client already."""
        known_fd = self._client_fds.get(client)
        if known_fd is not None:
            self._daemons[known_fd].append(pid)
            return client_fd
        self._daemons[client_fd] = [pid]
        if client is not None:
            self._client_fds[client] = client_fd
        # A pidfd is readable at the end; the data pipe is before, and hangs up then.
        self._poller.register(client_fd, 0 if client is None else select.POLLIN)
        return None

    def _fork(self, child, request, status_w, *fds):
        server = os.getpid()
        try:
            server_fd = child._fork(request["daemon"])
            if server_fd is not None:
                # In this order: a client that finds its pipe closed asks whether the server lives.
                util.close_fds(server_fd, self._control_fd, status_w)
                popen_fork.run_child(self._run_child, request, *fds)
        finally:
            if os.getpid() != server:
                os._exit(1)

    def _run_child(self, request, data_r, control_w, tracker_fd, client_fd, fds):
        try:
            signal.set_wakeup_fd(-1)
            for signum, handler in self._handlers.items():
                signal.signal(signum, signal.SIG_DFL if handler is None else handler)
            util.close_fds(self._wake_r, self._wake_w, *self._children.values(), *self._daemons)
            if request["alias"]:
                from mproc_ext._alias import install

                install()
            _forkserver._connect(control_w)
            _resource_tracker._fd = tracker_fd
            _forkserver._inherited_fds = fds
            return spawn._main(data_r, client_fd)
        except Exception:
            sys.excepthook(*sys.exc_info())
            util._flush_std_streams()
            return 1


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
