"""Start processes in ways that fail, and look at what is left.

    python bad_input.py CASE METHOD

A case gets a context.  It checks that what fails raises what it should; around it is checked that
no descriptor, no zombie and no child is left, and that the next process starts.  The exit status
is 0 if all of that holds.
"""

import contextlib
import ctypes
import errno
import gc
import importlib
import os
import pickle
import resource
import signal
import stat
import sys
import tempfile
import threading
import types

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def nothing(*args):
    pass


def descriptors():
    """The open descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one of the listing itself
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return {number: what for number, what in found.items() if not what.startswith("/proc/")}


def zombies():
    """Children that have ended and that nobody has waited for."""
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            for pid in file.read().split():
                with open(f"/proc/{pid}/stat") as stat_file:
                    state = stat_file.read().rpartition(")")[2].split()[0]
                if state == "Z":
                    found.append(int(pid))
    return found


@contextlib.contextmanager
def raises(*types, text="", filename=None, number=None):
    """Something has to raise one of these, with a text in its message."""
    try:
        yield
    except types as error:
        message = str(error)
        assert text in message, f"{text!r} is not in {message!r}"
        if filename is not None:
            assert os.fsdecode(error.filename) == filename, error
        if number is not None:
            assert error.errno == number, error
    else:
        raise AssertionError(f"nothing was raised, of {types}")


def works(mp):
    """A process starts and does its work."""
    ours, theirs = mp.Pipe(False)
    child = mp.Process(target=theirs.send, args=("here",))
    child.start()
    theirs.close()
    assert ours.recv() == "here"
    child.join()
    assert child.exitcode == 0
    child.close()
    ours.close()


def pickles(mp):
    """Whether this start method sends the process object to the child."""
    return mp.get_start_method() != "fork"


def children():
    """The pids of all children, those that ended as well."""
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        return set(file.read().split())


# ---- what cannot be sent, and what the child cannot read ------------------------------------


def local_function():
    def inner():
        pass

    return inner


@case
def unpicklable_target(mp):
    if not pickles(mp):
        return
    before = children()
    with raises(AttributeError, pickle.PicklingError, text="local_function.<locals>.inner"):
        mp.Process(target=local_function()).start()
    assert children() == before, "a process was started for what cannot be sent"


@case
def unpicklable_argument_after_descriptors(mp):
    """What was duplicated for the child before the error is closed."""
    if not pickles(mp):
        return
    ours, theirs = mp.Pipe()
    with raises(TypeError, text="cannot pickle '_thread.lock' object"):
        mp.Process(target=nothing, args=(ours, theirs, threading.Lock())).start()
    ours.close()
    theirs.close()


class FailsToPickle:
    def __reduce__(self):
        raise OSError(errno.EDOM, "its own error")


@case
def error_from_a_reducer(mp):
    if not pickles(mp):
        return
    with raises(OSError, text="its own error", number=errno.EDOM):
        mp.Process(target=nothing, args=(FailsToPickle(),)).start()


@case
def thousand_unpicklable_starts(mp):
    if not pickles(mp):
        return
    for _ in range(1000):
        with raises(TypeError, text="cannot pickle"):
            mp.Process(target=nothing, args=(threading.Lock(),)).start()


def from_a_module_that_is_gone():
    ghost = types.ModuleType("ghost_module")
    exec("def target(*args): pass", ghost.__dict__)
    ghost.target.__module__ = "ghost_module"
    sys.modules["ghost_module"] = ghost
    return ghost.target


@case
def target_that_the_child_cannot_import(mp):
    if not pickles(mp):
        return
    child = mp.Process(target=from_a_module_that_is_gone())
    child.start()
    child.join()
    assert child.exitcode == 1, child.exitcode
    child.close()  # test_bad_input.py looks for the ModuleNotFoundError on stderr


@case
def target_that_the_child_cannot_import_before_much_data(mp):
    """The child stops reading early: the parent may get an error, but nothing may be left."""
    if not pickles(mp):
        return
    child = mp.Process(target=from_a_module_that_is_gone(), args=(b"x" * 10_000_000,))
    try:
        child.start()
    except BrokenPipeError:
        return
    child.join()
    assert child.exitcode == 1, child.exitcode
    child.close()


class FailsToUnpickle:
    def __reduce__(self):
        return fail_in_a_child, (os.getpid(),)


def fail_in_a_child(pid):
    if os.getpid() != pid:
        raise LookupError("cannot be made again")


@case
def argument_that_the_child_cannot_read(mp):
    if not pickles(mp):
        return
    child = mp.Process(target=nothing, args=(FailsToUnpickle(),))
    child.start()
    child.join()
    assert child.exitcode == 1, child.exitcode
    child.close()


def exit_at_once():
    os._exit(9)


class ExitsToUnpickle:
    def __reduce__(self):
        return exit_at_once, ()


@case
def child_that_dies_while_it_reads(mp):
    """It never comes to its target, while the parent still has the most of 10 MB to send."""
    if not pickles(mp):
        return
    child = mp.Process(target=nothing, args=(ExitsToUnpickle(), b"x" * 10_000_000))
    try:
        child.start()
    except BrokenPipeError:
        return
    child.join()
    assert child.exitcode in (9, 255), child.exitcode  # 255: forkserver's for a child it lost
    child.close()


# ---- wrong calls ----------------------------------------------------------------------------


@case
def start_twice(mp):
    child = mp.Process(target=nothing)
    child.start()
    with raises(AssertionError, text="cannot start a process twice"):
        child.start()
    child.join()
    assert child.exitcode == 0
    with raises(AssertionError, text="cannot start a process twice"):
        child.start()
    child.close()


def use_of_another(child, result):
    for use in (child.join, child.is_alive, child.start, child.terminate):
        try:
            use()
        except Exception as error:
            result.send(f"{type(error).__name__}: {error}")
        else:
            result.send("nothing")


@case
def another_processs_child(mp):
    if pickles(mp):
        return  # a started process cannot be sent
    from_us, to_other = mp.Pipe(False)
    other = mp.Process(target=from_us.recv)
    other.start()
    ours, theirs = mp.Pipe(False)
    child = mp.Process(target=use_of_another, args=(other, theirs))
    child.start()
    assert ours.recv() == "AssertionError: can only join a child process"
    assert ours.recv() == "AssertionError: can only test a child process"
    assert ours.recv() == "AssertionError: cannot start a process twice"
    ours.recv()  # terminate() is allowed: it is a signal
    child.join()
    other.join()
    assert other.exitcode == -signal.SIGTERM
    for connection in (from_us, to_other, ours, theirs):
        connection.close()
    child.close()
    other.close()


@case
def closed(mp):
    child = mp.Process(target=nothing)
    child.start()
    child.join()
    child.close()
    for use in (child.join, child.is_alive, child.terminate, child.kill, child.start):
        with raises(ValueError, text="process object is closed"):
            use()
    for name in ("exitcode", "pid", "sentinel"):
        with raises(ValueError, text="process object is closed"):
            getattr(child, name)
    child.close()


@case
def close_while_it_runs(mp):
    from_us, to_child = mp.Pipe(False)
    child = mp.Process(target=from_us.recv)
    child.start()
    with raises(ValueError, text="Cannot close a process while it is still running"):
        child.close()
    to_child.send(None)
    child.join()
    child.close()
    from_us.close()
    to_child.close()


# ---- the system says no ---------------------------------------------------------------------


CAP_SYS_ADMIN, CAP_SYS_RESOURCE = 21, 24


def set_capabilities(*, without):
    """Change the effective capabilities to all that are permitted but some (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits of each
    assert libc.capget(header, data) == 0
    data[0], data[3] = data[1], data[4]
    for capability in without:
        data[0] &= ~(1 << capability)
    assert libc.capset(header, data) == 0, os.strerror(ctypes.get_errno())


@contextlib.contextmanager
def no_more_processes():
    """fork fails with EAGAIN: the limit on processes is one.

    It does not bind root, so root takes another real user id and puts off two capabilities; it
    keeps its effective user id, which has to read Python's files.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    root = os.geteuid() == 0
    if root:
        os.setresuid(54321, 0, 0)
        set_capabilities(without=[CAP_SYS_ADMIN, CAP_SYS_RESOURCE])
    resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
    try:
        try:
            pid = os.fork()
        except BlockingIOError:
            pass
        else:
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            raise AssertionError("RLIMIT_NPROC does not bind here: this case tests nothing")
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        if root:
            set_capabilities(without=[])
            os.setresuid(0, 0, 0)


@case
def fork_fails(mp):
    """With a forkserver that runs already, it is not we who fork: see forkserver_cannot_fork."""
    if mp.get_start_method() == "forkserver":
        return
    child = mp.Process(target=nothing)
    with no_more_processes(), raises(BlockingIOError, number=errno.EAGAIN):
        child.start()
    with raises(AssertionError, text="can only join a started process"):
        child.join()
    child.start()  # the same object, later
    child.join()
    assert child.exitcode == 0
    child.close()


@case
def fork_fails_100_times(mp):
    if mp.get_start_method() == "forkserver":
        return
    with no_more_processes():
        for _ in range(100):
            with raises(BlockingIOError, number=errno.EAGAIN):
                mp.Process(target=nothing).start()


@case
def server_cannot_be_started(mp):
    """Before the first process: the forkserver itself has to be forked."""
    with no_more_processes(), raises(BlockingIOError, number=errno.EAGAIN):
        mp.Process(target=nothing).start()


server_cannot_be_started.cold = True


def pids_group():
    """A new cgroup that can limit how many processes there are; None where it cannot be made."""
    for root in ("/sys/fs/cgroup/pids", "/sys/fs/cgroup"):
        path = tempfile.mktemp(prefix="mproc_ext-", dir=root)
        try:
            os.mkdir(path)
        except OSError:
            continue
        if os.path.exists(f"{path}/pids.max"):
            return path
        os.rmdir(path)
    return None


@case
def forkserver_cannot_fork(mp):
    """The server is alive but may not fork; the parent gets an error, and later it works again."""
    if mp.get_start_method() != "forkserver":
        return
    group = pids_group()
    if group is None:
        print("SKIP no pids cgroup can be made here")
        return
    server = importlib.import_module("mproc_ext.forkserver")._forkserver._forkserver_pid
    home = group.rpartition("/")[0]
    try:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(server))
        with open(f"{group}/pids.max", "w") as file:
            file.write("1")
        with raises(OSError, EOFError):
            mp.Process(target=nothing).start()
    finally:
        with contextlib.suppress(OSError):  # it may have ended with the error, as the stdlib's does
            with open(f"{home}/cgroup.procs", "w") as file:
                file.write(str(server))
        # A group can be removed once its last process is reaped: start() of the next one does.
        works(mp)
        os.rmdir(group)


forkserver_cannot_fork.new_server = True


@case
def executable_is_missing(mp):
    missing = "/nonexistent/python"
    exec_fails(mp, missing, FileNotFoundError, errno.ENOENT)


executable_is_missing.cold = True


@case
def executable_is_not_executable(mp):
    with tempfile.NamedTemporaryFile() as file:
        exec_fails(mp, file.name, PermissionError, errno.EACCES)


executable_is_not_executable.cold = True


@case
def executable_is_a_folder(mp):
    exec_fails(mp, "/usr", PermissionError, errno.EACCES)


executable_is_a_folder.cold = True


@case
def executable_is_no_program(mp):
    with tempfile.NamedTemporaryFile("w", delete=False) as file:
        file.write("neither a script nor a program\n")
    try:
        os.chmod(file.name, stat.S_IRWXU)
        exec_fails(mp, file.name, OSError, errno.ENOEXEC)
    finally:
        os.unlink(file.name)


executable_is_no_program.cold = True


def exec_fails(mp, path, error, number):
    if mp.get_start_method() == "fork":
        return
    right = sys.executable
    mp.set_executable(path)
    try:
        for _ in range(3):
            with raises(error, number=number, filename=path, text=path):
                mp.Process(target=nothing).start()
    finally:
        mp.set_executable(right)


@case
def executable_fails_while_the_server_runs(mp):
    """spawn only: the forkserver has its interpreter already."""
    if mp.get_start_method() == "spawn":
        exec_fails(mp, "/nonexistent/python", FileNotFoundError, errno.ENOENT)


@contextlib.contextmanager
def only_free(count):
    """No more than `count` descriptors can be opened."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    filling = []
    try:
        while True:
            try:
                filling.append(os.open("/dev/null", os.O_RDONLY))
            except OSError as error:
                assert error.errno == errno.EMFILE
                break
        for _ in range(count):
            os.close(filling.pop())
        yield
    finally:
        for descriptor in filling:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@case
def no_descriptors_left(mp):
    """With none, one, two… free: start() fails with EMFILE, until there are enough."""
    failed = started = 0
    for count in range(16):
        before = descriptors()
        child = mp.Process(target=nothing)
        with only_free(count):
            try:
                child.start()
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                failed += 1
            else:
                child.join()
                started += 1
                assert child.exitcode is not None
        if child.pid is not None:
            child.close()
        del child
        assert descriptors() == before, f"with {count} free"
        assert zombies() == [], f"with {count} free"
    assert failed, "no start failed: this case tests nothing"
    assert started, "no start worked: this case tests too few counts"


@case
def no_descriptors_left_for_a_connection(mp):
    """The same for a child that is sent something with a descriptor of its own."""
    ours, theirs = mp.Pipe()
    failed = 0
    for count in range(16):
        before = descriptors()
        child = mp.Process(target=nothing, args=(ours, theirs))
        with only_free(count):
            try:
                child.start()
            except OSError as error:
                assert error.errno == errno.EMFILE, error
                failed += 1
            else:
                child.join()
        if child.pid is not None:
            child.close()
        del child
        assert descriptors() == before, f"with {count} free"
        assert zombies() == [], f"with {count} free"
    ours.close()
    theirs.close()
    assert failed, "no start failed: this case tests nothing"


# ---- what is checked around each ------------------------------------------------------------


def changes(before):
    """The descriptors that are new, or are something else by now; and those that were closed."""
    after = descriptors()
    opened = {number: what for number, what in after.items() if before.get(number) != what}
    closed = {number: what for number, what in before.items() if number not in after}
    return opened, closed


def check(name, package, method):
    mp = importlib.import_module(package).get_context(method)
    function = CASES[name]
    cold = getattr(function, "cold", False)  # no process may have been started before
    if not cold:
        works(mp)  # now the servers run, and what is opened once is open
    before = descriptors()
    function(mp)
    gc.collect()
    opened, closed = changes(before)
    if getattr(function, "new_server", False):
        assert len(opened) <= len(closed), f"leaked: of {opened} (closed: {closed})"
    elif not cold:
        assert (opened, closed) == ({}, {}), f"opened {len(opened)}: {opened}, closed {closed}"
    assert zombies() == [], "zombies"
    assert mp.active_children() == []
    works(mp)
    if cold:
        # What failed may have left open what the first start opens once, but nothing beyond it.
        everything = len(changes(before)[0])
        assert len(opened) <= everything, f"leaked: of {opened}"
        if method != "forkserver":  # whose server runs by now
            function(mp)
            gc.collect()
            assert len(changes(before)[0]) == everything, "leaked by the second time"
    works(mp)
    assert zombies() == [], "zombies after the next start"


if __name__ == "__main__":
    case_name, method_name, *package_name = sys.argv[1:]
    check(case_name, *(package_name or ["mproc_ext"]), method_name)
