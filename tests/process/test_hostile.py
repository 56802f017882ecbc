"""Programs that do what they should not, or what nobody thought of; each runs in its own process.

They close our descriptors and use the numbers, close objects that other threads wait for, block
every signal, patch what others patch, and subclass what others subclass.
"""

import sys
import textwrap

import pytest

PROLOGUE = """
import gc, os, signal, socket, sys, threading, time
import mproc_ext as mp

METHOD = sys.argv[1] if len(sys.argv) > 1 else "fork"
context = mp.get_context(METHOD)

def nothing():
    pass

def sleep(seconds):
    time.sleep(seconds)

def leave(code):
    sys.exit(code)

def exitcode_of(process):
    process.start()
    process.join()
    return process.exitcode

"""

# A debug build of Python shows these by default.
QUIET = ("-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning")


@pytest.fixture
def outcome(programs, tmp_path):
    """Runs PROLOGUE and a text, of which what follows a line "main:" is for the main process; what
    it printed."""

    def run(text, *arguments, options=QUIET):
        text = textwrap.dedent(text)
        functions, _, main = text.rpartition("main:\n")
        main = "if __name__ == '__main__':\n" + textwrap.indent(main, "    ")
        path = tmp_path / "program.py"
        path.write_text(PROLOGUE + functions + main)
        done = programs.run_python(*options, path, *arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run


# ---- descriptors that the program closed, and whose numbers it uses --------------------------


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_a_signal_reaches_no_other_process_after_closerange(outcome, way):
    said = outcome(
        """
        main:
        first = context.Process(target=sleep, args=(100,))
        first.start()
        os.closerange(3, 64)
        second = context.Process(target=sleep, args=(100,))
        second.start()
        first.terminate()
        first.join()
        print(first.exitcode, second.is_alive())
        second.kill()
        second.join()
        print(second.exitcode)
        """,
        way,
        options=["-W", "ignore"],  # the resource tracker says that it was started again
    )
    assert said == "-15 True\n-9\n"


@pytest.mark.parametrize("timeout", ["", "30"])
@pytest.mark.parametrize("readable", [False, True])
def test_join_after_closerange(outcome, timeout, readable):
    said = outcome(
        f"""
        main:
        inside, outside = os.pipe()
        process = context.Process(target=os.read, args=(inside, 1))
        process.start()
        os.dup2(outside, 100)
        os.closerange(3, 64)
        pipes = [os.pipe() for _ in range(8)]
        if {readable}:
            for _, w in pipes:
                os.write(w, b"x")
        process.join(0.05)
        print(process.exitcode)
        os.write(100, b"x")
        process.join({timeout})
        print(process.exitcode)
        """
    )
    assert said == "None\n0\n"


def test_the_fork_servers_socket_is_another_file_now(outcome):
    said = outcome(
        """
        main:
        from mproc_ext.forkserver import _forkserver
        print(exitcode_of(context.Process(target=nothing)))
        fd = _forkserver._forkserver_alive_fd
        pair = socket.socketpair()
        os.dup2(pair[0].fileno(), fd)
        print(exitcode_of(context.Process(target=nothing)))
        pair[1].setblocking(False)
        try:
            print(pair[1].recv(1000))
        except BlockingIOError:
            print("untouched")
        print(os.path.sameopenfile(fd, pair[0].fileno()))
        """,
        "forkserver",
    )
    assert said == "0\n0\nuntouched\nTrue\n"


def test_no_file_of_a_forked_process_is_closed(outcome):
    """It has copies of our objects, and may have used their descriptors' numbers."""
    said = outcome(
        """
        main:
        processes = [context.Process(target=sleep, args=(100,)) for _ in range(3)]
        for process in processes:
            process.start()
        pid = os.fork()
        if pid == 0:
            os.closerange(3, 64)
            fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
            mp.process._children.clear()
            del process, processes
            gc.collect()
            missing = [fd for fd in fds if not os.path.exists(f"/proc/self/fd/{fd}")]
            os.write(1, b"%d\\n" % len(missing))
            os._exit(0)
        os.waitpid(pid, 0)
        for process in processes:
            process.kill()
            process.join()
        """
    )
    assert said == "0\n"


@pytest.mark.parametrize("closed", [(1,), (0, 1, 2)])
@pytest.mark.parametrize("run", [(), ("-m", "mproc_ext")])
def test_standard_streams_that_are_closed(outcome, method, closed, run, tmp_path):
    """What is printed to their numbers goes into no pipe and no socket of ours."""
    report = tmp_path / "report"
    outcome(
        f"""
        from multiprocessing.shared_memory import SharedMemory

        def tell(number):
            for garbage in (lambda: os.write(1, b"garbage"), lambda: print("more", flush=True)):
                try:
                    garbage()
                except OSError:
                    pass
            memory = SharedMemory(create=True, size=8)  # its tracker is to understand it
            memory.close()
            memory.unlink()
            with open({str(report)!r}, "a") as file:
                print(number, mp.parent_process().is_alive(), file=file)
            sys.exit(number)

        main:
        for fd in {closed}:
            os.close(fd)
        mp.set_forkserver_preload([])
        for number in (4, 5):
            process = context.Process(target=tell, args=(number,))
            process.start()
            try:
                print("and yet more", flush=True)
            except OSError:
                pass
            process.join()
            with open({str(report)!r}, "a") as file:
                print("ended with", process.exitcode, file=file)
        os._exit(0)
        """,
        method,
        options=[*QUIET, *run],
    )
    assert report.read_text() == "4 True\nended with 4\n5 True\nended with 5\n"


# ---- threads ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", ["", "30"])
def test_close_while_another_thread_joins(outcome, method, timeout):
    """Its descriptor's number is the next child's before the waiting thread looks again."""
    said = outcome(
        f"""
        main:
        def join(process):
            try:
                process.join({timeout})
            except (ValueError, AssertionError):
                pass  # closed before the thread began to wait
        for _ in range(30 if METHOD == "fork" else 8):
            process = context.Process(target=sleep, args=(0.003,))
            process.start()
            threads = [threading.Thread(target=join, args=(process,)) for _ in range(3)]
            for thread in threads:
                thread.start()
            process.join()
            process.close()
            second = context.Process(target=sleep, args=(100,))
            second.start()
            for thread in threads:
                thread.join(20)
            print(*(thread.is_alive() for thread in threads))
            second.kill()
            second.join()
            second.close()
        """,
        method,
    )
    assert set(said.splitlines()) == {"False False False"}


@pytest.mark.parametrize("run", [(), ("-m", "mproc_ext")])
@pytest.mark.parametrize("make", ["Pipe()", "Value('i', 1)", "Queue()", "Lock()", "Pool"])
def test_threads_that_are_the_first_to_use_a_module(outcome, make, run):
    """Each of them imports it, and gets the whole of it."""
    for _ in range(3):
        said = outcome(
            f"""
            main:
            barrier = threading.Barrier(8)
            def use():
                barrier.wait()
                context.{make}
            threads = [threading.Thread(target=use) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            """,
            options=[*QUIET, *run],
        )
        assert said == ""


# ---- signals ---------------------------------------------------------------------------------

HOLDS_ON = """
def hold_on(how, w):
    if how == "block":
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    elif how == "handle":
        signal.signal(signal.SIGURG, lambda *_: None)
    os.write(w.fileno(), b"x")
    time.sleep(1000)

def start(how, w):
    context.Process(target=hold_on, args=(how, w), daemon=True).start()
    time.sleep(1000)

main:
r, w = context.Pipe(False)
middle = mp.get_context("fork").Process(target=start, args=(sys.argv[2], w))
middle.start()
w.close()
os.read(r.fileno(), 1)
middle.kill()
middle.join()
print(r.poll(20))  # the end of the pipe: nobody holds the other one any more
"""


@pytest.mark.parametrize("how", ["block", "handle"])
def test_a_daemonic_child_dies_with_its_parent_whatever_it_does_to_signals(outcome, method, how):
    assert outcome(HOLDS_ON, method, how) == "True\n"


@pytest.mark.parametrize("by_thread", [False, True])
def test_sigurg_means_nothing_to_the_children_of_a_daemonic_child(outcome, method, by_thread):
    said = outcome(
        """
        def fork():
            pid = os.fork()
            if pid == 0:
                signal.sigtimedwait([signal.SIGUSR1], 60)
                os._exit(0)
            os.kill(pid, signal.SIGURG)
            os.kill(pid, signal.SIGUSR1)
            _, status = os.waitpid(pid, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)

        main:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        process = context.Process(target=fork, daemon=True)
        if sys.argv[2] == "True":
            thread = threading.Thread(target=process.start)
            thread.start()
            thread.join()
        else:
            process.start()
        process.join()
        """,
        method,
        str(by_thread),
        options=["-W", "ignore"],
    )
    assert said == "0\n"


def test_exit_codes_where_sigchld_is_ignored(outcome):
    """The fork server inherits that, and must learn the exit codes all the same."""
    said = outcome(
        """
        def dispositions(code):
            print(signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN, flush=True)
            sys.exit(code)

        main:
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        print(exitcode_of(context.Process(target=dispositions, args=(3,))))
        """,
        "forkserver",
    )
    assert said == "True\n3\n"


def test_a_handler_that_raises_during_a_start_leaves_no_child(outcome):
    """The child does not read what it is sent, so that the write blocks."""
    said = outcome(
        """
        main:
        class Stop(Exception):
            pass
        def stop(signum, frame):
            raise Stop
        signal.signal(signal.SIGALRM, stop)
        from mproc_ext import spawn
        from mproc_ext.resource_tracker import _resource_tracker
        _resource_tracker.ensure_running()
        mp.set_executable("/bin/sh")
        spawn.get_command_line = lambda **kwds: ["sh", "-c", "exec sleep 1000"]
        process = context.Process(target=print, args=("x" * 1_000_000,))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        try:
            process.start()
        except Stop:
            print("stopped")
        _resource_tracker._stop()
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            print("no child")
        """,
        "spawn",
    )
    assert said == "stopped\nno child\n"


def test_a_program_that_dies_of_sigpipe_keeps_its_fork_server(outcome):
    """What the main module sets holds in the server too; a client that has gone must not end it."""
    said = outcome(
        """
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)

        def leave_a_child():
            context.Process(target=sleep, args=(0.3,)).start()
            os._exit(0)

        def has_the_programs_action():
            time.sleep(0.6)
            sys.exit(signal.getsignal(signal.SIGPIPE) is signal.SIG_DFL)

        main:
        other = context.Process(target=has_the_programs_action)
        other.start()
        assert exitcode_of(context.Process(target=leave_a_child)) == 0
        other.join()
        print(other.exitcode)
        """,
        "forkserver",
    )
    assert said == "1\n"


def test_a_child_that_reads_nothing_where_sigpipe_kills(outcome):
    said = outcome(
        """
        main:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        context.set_executable("/bin/false")
        print(exitcode_of(context.Process(target=len, args=(b"x" * (1 << 20),))))
        print(signal.SIGPIPE in signal.pthread_sigmask(signal.SIG_BLOCK, []))
        print(signal.SIGPIPE in signal.sigpending())
        """,
        "spawn",
    )
    assert said == "1\nFalse\nFalse\n"


# ---- warnings --------------------------------------------------------------------------------


@pytest.mark.skipif(sys.version_info < (3, 12), reason="os.fork warns of threads since 3.12")
@pytest.mark.parametrize("package", ["multiprocessing", "mproc_ext"])
def test_the_warning_of_threads_is_filtered_by_the_stdlibs_module(outcome, package):
    said = outcome(
        f"""
        main:
        import warnings
        import {package} as package
        event = threading.Event()
        threading.Thread(target=event.wait).start()
        process = package.get_context("fork").Process(target=nothing)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.filterwarnings(
                "ignore", category=DeprecationWarning, module=r"multiprocessing\\.popen_fork$"
            )
            process.start()
        process.join()
        event.set()
        print(len(caught))
        """
    )
    assert said == "0\n"


def test_a_fork_server_with_threads_where_warnings_are_errors(outcome):
    said = outcome(
        """
        started = threading.Event()
        threading.Thread(target=started.wait, daemon=True).start()

        main:
        print(exitcode_of(context.Process(target=leave, args=(4,))))
        """,
        "forkserver",
        options=["-W", "error"],
    )
    assert said == "4\n"


# ---- what others patch and subclass ----------------------------------------------------------


def test_bootstrap_is_called_by_keyword(outcome):
    said = outcome(
        """
        class Process(context.Process):
            def _bootstrap(self, **keywords):
                print(sorted(keywords), flush=True)
                return super()._bootstrap(**keywords)

        main:
        print(exitcode_of(Process(target=leave, args=(5,))))
        """
    )
    assert said == "['parent_sentinel']\n5\n"


def test_bootstrap_that_was_patched_before_the_first_start(outcome):
    said = outcome(
        """
        main:
        from unittest import mock
        import atexit
        import multiprocessing.process
        atexit.register(print, "at exit of the parent")
        with mock.patch.object(multiprocessing.process.BaseProcess, "_bootstrap", return_value=6):
            exitcode = exitcode_of(context.Process(target=nothing))
        print(exitcode, flush=True)
        """
    )
    assert said == "6\nat exit of the parent\n"


@pytest.mark.parametrize("function", ["os.waitpid", "select.poll"])
def test_what_the_stdlib_waits_with_was_replaced(outcome, method, function):
    """As gevent does: it is called, so that other green threads run meanwhile."""
    said = outcome(
        f"""
        from unittest import mock
        import select, multiprocessing.connection

        main:
        # What waits with poll is the stdlib's wait.
        called = {function!r}.replace("select.poll", "multiprocessing.connection.wait")
        with (
            mock.patch({function!r}, side_effect={function}),
            mock.patch(called, side_effect=eval(called)) as replaced,
        ):
            process = context.Process(target=sleep, args=(0.3,))
            process.start()
            process.join(0.01)
            process.join(60)
            print(process.exitcode, replaced.called)
            process = context.Process(target=leave, args=(6,))
            process.start()
            process.join()
            print(process.exitcode, process.is_alive())
            process = context.Process(target=sleep, args=(100,))
            process.start()
            process.terminate()
            process.join()
            print(process.exitcode)
        """,
        method,
    )
    called = function == "select.poll" or method != "forkserver"  # as in the stdlib
    assert said == f"0 {called}\n6 False\n-15\n"


def test_a_failed_start_where_functions_were_replaced(outcome):
    said = outcome(
        """
        from unittest import mock

        main:
        context.set_executable("/nonexistent/python")
        with mock.patch("os.kill"), mock.patch("os.waitpid", side_effect=os.waitpid):
            try:
                context.Process(target=nothing).start()
            except FileNotFoundError as error:
                print(os.fsdecode(error.filename))
        """,
        "spawn",
    )
    assert said == "/nonexistent/python\n"


def test_kill_was_replaced(outcome, method):
    said = outcome(
        """
        from unittest import mock

        main:
        process = context.Process(target=sleep, args=(100,))
        process.start()
        with mock.patch("os.kill") as replaced:
            process.terminate()
        print(replaced.mock_calls == [mock.call(process.pid, signal.SIGTERM)], process.is_alive())
        process.kill()
        process.join()
        """,
        method,
    )
    assert said == "True True\n"


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
@pytest.mark.parametrize(
    "function",
    [
        "_posixsubprocess.fork_exec",
        "multiprocessing.util.spawnv_passfds",
        "mproc_ext.util.spawnv_passfds",
    ],
)
def test_what_the_stdlib_starts_programs_with_was_replaced(outcome, way, function):
    """As debuggers do, whose code is to run in the child first."""
    said = outcome(
        f"""
        from unittest import mock
        import _posixsubprocess, multiprocessing.util, mproc_ext.util

        def is_prepared():
            sys.exit(7 if hasattr(sys, "prepared") else 8)

        main:
        mp.set_forkserver_preload([])
        SharedMemory = __import__("multiprocessing.shared_memory").shared_memory.SharedMemory
        memory = SharedMemory(create=True, size=1)  # the tracker is not what is to be prepared
        memory.close()
        memory.unlink()
        original = {function}
        def prepared(*arguments):
            at = 0 if {function!r}.endswith("fork_exec") else 1  # the path comes before the argv
            argv = [
                os.fsencode(text).replace(b"import sys;", b"import sys; sys.prepared = True;", 1)
                for text in arguments[at]
            ]
            return original(*arguments[:at], argv, *arguments[at + 1 :])
        with mock.patch({function!r}, prepared):
            print(exitcode_of(context.Process(target=is_prepared)))
        process = context.Process(target=sleep, args=(100,))
        process.start()
        process.kill()
        process.join()
        print(process.exitcode)
        """,
        way,
    )
    assert said == "7\n-9\n"


def test_a_popen_that_forks_itself(outcome):
    said = outcome(
        """
        from mproc_ext import util
        from mproc_ext.popen_fork import Popen

        class Own(Popen):
            def _launch(self, process):
                r, w = os.pipe()
                self.pid = os.fork()
                if self.pid == 0:
                    os.close(r)
                    os._exit(process._bootstrap(parent_sentinel=None))
                os.close(w)
                self.finalizer = util.Finalize(self, util.close_fds, (r,))
                self.sentinel = r

        class Process(context.Process):
            _Popen = Own

        main:
        process = Process(target=leave, args=(7,))
        process.start()
        process.join()
        print(process.exitcode)
        fd = process.sentinel
        process.close()
        print(os.path.exists(f"/proc/self/fd/{fd}"))
        """
    )
    assert said == "7\nFalse\n"


def test_a_default_context_of_ones_own(outcome):
    said = outcome(
        """
        main:
        import multiprocessing.context as theirs
        for module in (theirs, mp.context):
            own = module.DefaultContext(module._concrete_contexts["spawn"])
            before = mp.get_start_method()
            print(own.get_start_method(), mp.get_start_method() == before)
            own.set_start_method("forkserver", force=True)
            print(own.get_start_method(), mp.get_start_method() == before)
        """
    )
    assert said == "spawn True\nforkserver True\n" * 2


def test_a_context_that_another_library_registers(outcome, method):
    """As loky does; the stdlib's code looks for it in the child."""
    said = outcome(
        """
        class Process(context.Process):
            _start_method = "own"

        class Context(type(context)):
            _name = "own"
            Process = Process

        mp.context._concrete_contexts["own"] = Context()

        def method():
            print(mp.get_start_method(), flush=True)

        main:
        print(exitcode_of(mp.get_context("own").Process(target=method)))
        """,
        method,
    )
    assert said.splitlines()[-1] == "0"


def test_descriptors_that_change_while_they_are_read(outcome):
    said = outcome(
        """
        from mproc_ext.util import spawnv_passfds

        class Fd:
            def fileno(self):
                fds.clear()
                gc.collect()
                return 0

        main:
        fds = [Fd() for _ in range(1000)]
        os.waitpid(spawnv_passfds(b"/bin/true", [b"true"], fds), 0)
        print(fds)
        """
    )
    assert said == "[]\n"


def test_a_thread_pool_with_queues_of_its_own(outcome):
    said = outcome(
        """
        import queue
        from mproc_ext.pool import ThreadPool

        class Pool(ThreadPool):
            def _setup_queues(self):
                self._inqueue = queue.SimpleQueue()
                self._outqueue = queue.SimpleQueue()
                self._quick_put = self._inqueue.put
                self._quick_get = self._outqueue.get

        main:
        with Pool(2) as pool:
            print(pool.map(abs, [-1, -2]))
        pool.join()
        """
    )
    assert said == "[1, 2]\n"


# ---- the end of an interpreter ---------------------------------------------------------------


@pytest.mark.skipif(
    sys.version_info >= (3, 14), reason="it finds them gone under the stdlib's spawn too"
)
@pytest.mark.parametrize("where", ["child", "parent"])
def test_the_finalizer_of_a_global_finds_the_other_globals(outcome, where):
    said = outcome(
        f"""
        class Last:
            def __del__(self):
                print(word)

        last = None
        word = "finalized"

        def set_last():
            global last
            last = Last()

        main:
        if {where!r} == "parent":
            set_last()
        else:
            exitcode_of(context.Process(target=set_last))
        """,
        "spawn",
    )
    assert said == "finalized\n"


# ---- frozen programs -------------------------------------------------------------------------


FROZEN = """
import sys
sys.frozen, sys.executable = True, EXECUTABLE
import mproc_ext
if ALIAS:
    mproc_ext.install()
import multiprocessing.spawn
multiprocessing.set_executable(EXECUTABLE)

def answer(connection):
    connection.send(sys.argv[1])

if __name__ == "__main__":
    mproc_ext.freeze_support()
    context = (multiprocessing if ALIAS else mproc_ext).get_context(sys.argv[1])
    ours, theirs = context.Pipe()
    process = context.Process(target=answer, args=(theirs,))
    process.start()
    theirs.close()
    said = ours.recv()
    process.join()
    print(said, process.exitcode, type(process._popen).__module__.partition(".")[0])
"""


@pytest.mark.parametrize("alias", [False, True])
@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_a_frozen_program(programs, way, alias, tmp_path):
    """Its executable takes the stdlib's command lines, and no others."""
    executable, program = tmp_path / "frozen", tmp_path / "program.py"
    executable.write_text(
        f"""#!/bin/sh
case "$*" in
*"-c "*"from multiprocessing."*) exec {sys.executable} "$@" ;;
*"-c "*) exit 99 ;;
*) exec {sys.executable} {program} "$@" ;;
esac
"""
    )
    executable.chmod(0o755)
    text = FROZEN.replace("EXECUTABLE", repr(str(executable))).replace("ALIAS", str(alias))
    program.write_text(text)
    done = programs.run_python(program, way)
    assert (done.stdout, done.stderr) == (f"{way} 0 multiprocessing\n", "")


# ---- shared memory that a child made ---------------------------------------------------------


@pytest.mark.parametrize("package", ["multiprocessing", "mproc_ext"])
def test_shared_memory_outlives_the_child_that_made_it(outcome, method, package):
    said = outcome(
        f"""
        from {package}.resource_tracker import ensure_running
        from {package}.shared_memory import SharedMemory

        def make(connection):
            block = SharedMemory(create=True, size=100)
            block.buf[0] = 7
            connection.send(block.name)
            block.close()

        main:
        if METHOD == "fork":  # the others share the tracker in any case
            ensure_running()
        ours, theirs = context.Pipe()
        process = context.Process(target=make, args=(theirs,))
        process.start()
        name = ours.recv()
        process.join()
        block = SharedMemory(name)
        print(block.buf[0])
        block.close()
        block.unlink()
        """,
        method,
    )
    assert said == "7\n"


def test_shared_memory_of_the_parent_outlives_a_child_that_attached(outcome, method):
    said = outcome(
        """
        from mproc_ext.resource_tracker import ensure_running
        from mproc_ext.shared_memory import SharedMemory

        def attach(connection):
            block = SharedMemory(connection.recv())
            connection.send(block.buf[0])
            block.close()

        main:
        if METHOD == "fork":  # the others share the tracker in any case
            ensure_running()
        ours, theirs = context.Pipe()
        process = context.Process(target=attach, args=(theirs,))
        process.start()  # before there is any shared memory
        block = SharedMemory(create=True, size=100)
        block.buf[0] = 8
        ours.send(block.name)
        print(ours.recv())
        process.join()
        again = SharedMemory(block.name)
        print(again.buf[0])
        again.close()
        block.close()
        block.unlink()
        """,
        method,
    )
    assert said == "8\n8\n"


@pytest.mark.parametrize("run", [(), ("-m", "mproc_ext")])
def test_the_blocks_of_lists_and_managers_are_of_the_one_class(outcome, run):
    said = outcome(
        """
        import pickle
        from mproc_ext.managers import SharedMemoryManager
        from mproc_ext.shared_memory import ShareableList, SharedMemory

        main:
        shared = ShareableList([1, 2])
        with SharedMemoryManager() as manager:
            for block in (shared.shm, manager.SharedMemory(8), manager.ShareableList([3]).shm):
                copy = pickle.loads(pickle.dumps(block))
                print(isinstance(block, SharedMemory), isinstance(copy, SharedMemory))
                copy.close()
        shared.shm.close()
        shared.shm.unlink()
        """,
        options=[*QUIET, *run],
    )
    assert said == "True True\n" * 3


def test_untracked_shared_memory_leaves_the_tracker_alone(outcome):
    """Another object of the same block is tracked, and stays so."""
    said = outcome(
        """
        from mproc_ext.shared_memory import SharedMemory

        main:
        block = SharedMemory(create=True, size=100)
        other = SharedMemory(block.name, track=False)
        other.close()
        block.close()
        block.unlink()
        untracked = SharedMemory(create=True, size=100, track=False)
        untracked.close()
        untracked.unlink()
        print("done")
        """
    )
    assert said == "done\n"


# ---- the fork server -------------------------------------------------------------------------


def test_more_children_than_the_fork_server_has_descriptors_for(outcome):
    """A start fails with what to do; those that run go on, and starts succeed again later."""
    said = outcome(
        """
        import resource

        def wait(connection):
            connection.recv()

        main:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, limit[1]))
        from mproc_ext.forkserver import ensure_running
        ensure_running()  # with the limit, which then is lifted here
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        running = []
        try:
            while len(running) < 60:
                ours, theirs = context.Pipe()
                process = context.Process(target=wait, args=(theirs,))
                process.start()
                theirs.close()
                running.append((process, ours))
        except OSError as error:
            print(type(error).__name__, error.errno, "ulimit -n" in str(error))
        print(len(running) > 20)
        for process, ours in running:
            ours.send(None)
            process.join()
            assert process.exitcode == 0, process.exitcode
        print(exitcode_of(context.Process(target=leave, args=(9,))))
        """,
        "forkserver",
    )
    assert said == "OSError 24 True\nTrue\n9\n"


def test_a_main_module_that_exits_does_not_end_the_fork_server(programs, tmp_path):
    (tmp_path / "program.py").write_text(
        """
import sys
import mproc_ext

if __name__ != "__main__":
    sys.exit("not the main module")
from mproc_ext.forkserver import _forkserver
for _ in range(2):
    process = mproc_ext.get_context("forkserver").Process(target=print)
    process.start()
    process.join()
    print(process.exitcode, _forkserver._forkserver_pid is not None)
"""
    )
    done = programs.run_python(tmp_path / "program.py")
    assert (done.returncode, done.stdout) == (0, "1 True\n1 True\n"), done.stderr


def test_an_executable_that_is_no_python_leaves_no_fork_server(outcome):
    said = outcome(
        """
        main:
        sys.argv.append("x" * 300_000)
        mp.set_executable("/bin/true")
        for _ in range(3):
            try:
                context.Process(target=nothing).start()
            except (OSError, EOFError) as error:
                print(type(error).__name__)
        from mproc_ext.resource_tracker import _resource_tracker
        _resource_tracker._stop()
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            print("no child")
        """,
        "forkserver",
    )
    assert said.splitlines()[-1] == "no child"
    assert len(said.splitlines()) == 4


def test_the_fork_server_was_killed_just_now(outcome):
    """A request that the dying server takes with it is made again."""
    said = outcome(
        """
        main:
        from mproc_ext.forkserver import _forkserver
        for number in range(40):
            _forkserver.ensure_running()
            os.kill(_forkserver._forkserver_pid, signal.SIGKILL)
            assert exitcode_of(context.Process(target=leave, args=(number,))) == number
        """,
        "forkserver",
    )
    assert said == ""


def test_the_fork_server_ignores_ctrl_c_and_its_children_do_not(outcome):
    said = outcome(
        """
        def has_default_handler():
            sys.exit(signal.getsignal(signal.SIGINT) is signal.default_int_handler)

        main:
        from mproc_ext.forkserver import _forkserver
        signal.signal(signal.SIGINT, signal.default_int_handler)
        assert exitcode_of(context.Process(target=has_default_handler)) == 1
        server = _forkserver._forkserver_pid
        os.kill(server, signal.SIGINT)
        assert exitcode_of(context.Process(target=has_default_handler)) == 1
        print(server == _forkserver._forkserver_pid)
        """,
        "forkserver",
    )
    assert said == "True\n"


def test_what_a_preloaded_module_prints_is_printed_once(outcome, tmp_path):
    (tmp_path / "prints.py").write_text("print('loaded', end='')")
    said = outcome(
        """
        main:
        mp.set_forkserver_preload(["prints"])
        for _ in range(3):
            assert exitcode_of(context.Process(target=nothing)) == 0
        """,
        "forkserver",
    )
    assert said == "loaded"


def test_a_preloaded_module_that_waits_for_every_child(outcome, tmp_path):
    """Their exit codes are lost to the server, but not their ends."""
    (tmp_path / "reaps.py").write_text(
        textwrap.dedent(
            """
            import os, threading, time

            def reap():
                while True:
                    try:
                        os.waitpid(-1, 0)
                    except ChildProcessError:
                        time.sleep(0.001)

            threading.Thread(target=reap, daemon=True).start()
            """
        )
    )
    said = outcome(
        """
        main:
        mp.set_forkserver_preload(["reaps"])
        found = set()
        while 255 not in found:
            found.add(exitcode_of(context.Process(target=leave, args=(3,))))
        print(found <= {3, 255})
        """,
        "forkserver",
    )
    assert said == "True\n"
