"""Who destroys a block of shared memory: its creator's resource tracker, and no process that only
attached to it.

The creator is a program, and so is an attacher that is unrelated to it: that has a tracker of its
own, if any.  Both are waited for until their trackers have ended, too, as these hold stderr.
"""

import textwrap

import pytest

CREATOR = """
import os, pickle, signal, subprocess, sys
import {package} as mp
from {package} import resource_tracker
from {package}.shared_memory import ShareableList, SharedMemory

METHOD = {method!r}
context = mp.get_context(METHOD)

ATTACHER = '''
import os, pickle, signal, sys
from {package} import resource_tracker
from {package}.resource_tracker import unregister
from {package}.shared_memory import ShareableList, SharedMemory
name = sys.argv[1]
'''

def exists(name):
    return os.path.exists("/dev/shm/" + name)

def unrelated(name, code):
    "Runs an attacher; what it and its tracker said, and its exit status."
    command = [sys.executable, *{options!r}, "-c", ATTACHER + code, name]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout, done.stderr, done.returncode

"""


@pytest.fixture(params=["mproc_ext", "alias"])
def said(request, programs, tmp_path):
    """Runs CREATOR and a text, of which what follows a line "main:" is for the main process; what
    it and its tracker said."""

    def run(text, method="fork"):
        alias = request.param == "alias"
        options = ["-W", "ignore::DeprecationWarning", "-W", "ignore::ResourceWarning"]
        options += ["-m", "mproc_ext"] if alias else []
        prologue = CREATOR.format(
            package="multiprocessing" if alias else "mproc_ext", method=method, options=options
        )
        functions, _, main = textwrap.dedent(text).rpartition("main:\n")
        main = "if __name__ == '__main__':\n" + textwrap.indent(main, "    ")
        path = tmp_path / "creator.py"
        path.write_text(prologue + functions + main)
        done = programs.run_python(*options, path)
        return done.stdout, done.stderr, done.returncode

    return run


# An attacher whose tracker runs anyway: it must not have heard of what was attached to.
END = {
    "exit": "resource_tracker.ensure_running()",
    "close": "resource_tracker.ensure_running(); getattr(it, 'shm', it).close()",
    "kill": "os.kill(os.getpid(), signal.SIGKILL)",
    "kill with tracker": "resource_tracker.ensure_running(); os.kill(os.getpid(), signal.SIGKILL)",
}


@pytest.mark.parametrize("end", END)
@pytest.mark.parametrize(
    "attach",
    [
        "it = SharedMemory(name)",
        "it = SharedMemory(name=name, create=False, size=5)",
        "it = SharedMemory(name, track=None)",
        "it = ShareableList(name=name)",
        "it = pickle.loads(pickle.dumps(SharedMemory(name)))",
        "it = pickle.loads(pickle.dumps(SharedMemory(name, track=False)))",
        "it = pickle.loads(pickle.dumps(ShareableList(name=name)))",
    ],
)
def test_an_attacher_that_ends_leaves_the_block(said, attach, end):
    assert said(
        f"""
        main:
        numbers = ShareableList([1, 2, 3])
        print(unrelated(numbers.shm.name, {attach + chr(10) + END[end]!r}))
        print(exists(numbers.shm.name), list(ShareableList(name=numbers.shm.name)))
        numbers.shm.unlink()
        """
    ) == (f"('', '', {-9 if 'kill' in end else 0})\nTrue [1, 2, 3]\n", "", 0)


def names_a_block(name):
    try:
        open(f"/dev/shm/{name}").close()
    except FileNotFoundError:
        return False
    return True


def test_a_creator_that_is_killed_leaves_no_block(said):
    out, err, status = said(
        """
        main:
        print(SharedMemory(create=True, size=10).name, flush=True)
        kept = SharedMemory(create=True, size=10)
        print(exists(kept.name), flush=True)
        other = pickle.loads(pickle.dumps(kept))  # does not change that
        print(kept.name, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    first, alive, second = out.split()
    assert (alive, status) == ("True", -9)
    assert "There appear to be 2 leaked shared_memory objects" in err
    for name in (first, second):
        assert not names_a_block(name)


@pytest.mark.parametrize("unlink", ["block", "list", "pickle"])
def test_a_child_unlinks_what_its_parent_created(said, method, unlink):
    """The tracker of both says nothing: neither that it leaked, nor that it was unknown."""
    assert said(
        f"""
        def destroy(name, pickled):
            if {unlink!r} == "block":
                block = SharedMemory(name)
            elif {unlink!r} == "list":
                block = ShareableList(name=name).shm
            else:
                block = pickle.loads(pickled).shm
            block.close()
            block.unlink()

        main:
        numbers = ShareableList([1])
        name = numbers.shm.name
        child = context.Process(target=destroy, args=(name, pickle.dumps(numbers)))
        child.start()
        child.join()
        print(child.exitcode, exists(name))
        """,
        method,
    ) == ("0 False\n", "", 0)


def test_children_attach_and_the_parent_unlinks(said, method):
    assert said(
        """
        def attach(block, name):
            again = SharedMemory(name)
            again.buf[0] += 1
            block.buf[0] += 1
            if block.buf[0] == 4:
                os.kill(os.getpid(), signal.SIGKILL)

        main:
        block = SharedMemory(create=True, size=10)
        for _ in range(3):
            child = context.Process(target=attach, args=(block, block.name))
            child.start()
            child.join()
            print(child.exitcode, exists(block.name), block.buf[0])
        block.close()
        block.unlink()
        """,
        method,
    ) == ("0 True 2\n-9 True 4\n0 True 6\n", "", 0)


def test_a_parent_unlinks_what_its_child_created(said, method):
    assert said(
        """
        def create(connection):
            block = SharedMemory(create=True, size=10)
            connection.send(block)

        main:
        resource_tracker.ensure_running()
        ours, theirs = context.Pipe()
        child = context.Process(target=create, args=(theirs,))
        child.start()
        block = ours.recv()
        child.join()
        print(child.exitcode, exists(block.name))
        block.unlink()
        print(exists(block.name))
        """,
        method,
    ) == ("0 True\nFalse\n", "", 0)


def test_an_unrelated_process_unlinks(said):
    """Its tracker, which does not know the block, hears nothing that is an error to it; there is
    none, if it has not been needed before."""
    for prepare, running in (("", False), ("resource_tracker.ensure_running()", True)):
        attacher = f"""
{prepare}
block = SharedMemory(name)
block.close()
block.unlink()
print(resource_tracker._resource_tracker._fd is not None)
try:
    block.unlink()
except FileNotFoundError:
    print("gone")
"""
        assert said(
            f"""
            main:
            block = SharedMemory(create=True, size=10, track=False)
            print(unrelated(block.name, {attacher!r}))
            print(exists(block.name))
            """
        ) == (f"('{running}\\ngone\\n', '', 0)\nFalse\n", "", 0)


@pytest.mark.parametrize("call", ["resource_tracker.unregister", "unregister"])
def test_a_program_that_undoes_the_stdlibs_default_by_hand(said, call):
    """The tracker is told to forget a name that it does not know, and says nothing of it."""
    attacher = f"""
block = SharedMemory(name)
{call}(block._name, "shared_memory")
numbers = ShareableList(name=name)
{call}("/" + numbers.shm.name, "shared_memory")
"""
    assert said(
        f"""
        main:
        numbers = ShareableList([1])
        print(unrelated(numbers.shm.name, {attacher!r}))
        print(exists(numbers.shm.name))
        numbers.shm.unlink()
        """
    ) == ("('', '', 0)\nTrue\n", "", 0)


def test_the_trackers_method_that_others_have_replaced(said):
    """It is called; and ours may come twice, where a program loads modules anew."""
    attacher = """
import importlib
from mproc_ext import shared_memory
tracker, told = resource_tracker._resource_tracker, []
tracker._send = lambda *message: told.append(message)
shared_memory = importlib.reload(shared_memory)
block = shared_memory.SharedMemory(name)
assert resource_tracker._resource_tracker._fd is None
unregister(block._name, "shared_memory")
print([command for command, shown, kind in told if shown == "/" + name])
"""
    assert said(
        f"""
        main:
        block = SharedMemory(create=True, size=10)
        print(unrelated(block.name, {attacher!r}))
        print(exists(block.name))
        block.unlink()
        """
    ) == ("(\"['REGISTER', 'UNREGISTER']\\n\", '', 0)\nTrue\n", "", 0)


def test_an_attacher_without_memory_leaves_the_block(said):
    """The stdlib's constructor unlinks a block that it cannot map."""
    attacher = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, -1))
for attach in (lambda: SharedMemory(name), lambda: ShareableList(name=name)):
    try:
        attach()
    except OSError as error:
        print(error.errno)
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))  # a sanitizer needs more at the end
"""
    assert said(
        f"""
        main:
        block = SharedMemory(create=True, size=1 << 31)  # takes no memory
        print(unrelated(block.name, {attacher!r}))
        print(exists(block.name))
        block.unlink()
        """
    ) == ("('12\\n12\\n', '', 0)\nTrue\n", "", 0)


# ---- an explicit track is the stdlib's -------------------------------------------------------

LEAK = "resource_tracker: There appear to be 1 leaked shared_memory objects to clean up at shutdown"


def test_tracked_explicitly(said):
    """An unrelated program that attaches so destroys the block when it ends."""
    out, err, status = said(
        """
        main:
        block = SharedMemory(create=True, size=10)
        out, err, status = unrelated(block.name, "SharedMemory(name, track=True).close()")
        print(status, exists(block.name))
        print(err)
        resource_tracker.unregister(block._name, "shared_memory")
        """
    )
    assert out.startswith("0 False\n")
    assert out.count(LEAK) == 1
    assert (err, status) == ("", 0)


def test_tracked_explicitly_and_unlinked_by_a_child(said, method):
    """It and its parent have one entry in one tracker."""
    assert said(
        """
        def destroy(name):
            block = SharedMemory(name, track=True)
            block.close()
            block.unlink()

        main:
        block = SharedMemory(create=True, size=10)
        child = context.Process(target=destroy, args=(block.name,))
        child.start()
        child.join()
        print(child.exitcode, exists(block.name))
        """,
        method,
    ) == ("0 False\n", "", 0)


def test_untracked_explicitly(said):
    """The tracker hears of nothing: not of the creation, nor of an unlink by the attacher."""
    out, err, status = said(
        """
        main:
        untracked = SharedMemory(create=True, size=10, track=False)
        print(resource_tracker._resource_tracker._fd)
        untracked.unlink()
        tracked = SharedMemory(create=True, size=10)
        SharedMemory(tracked.name, track=False).unlink()
        """
    )
    assert (out, status) == ("None\n", 0)
    assert err.count(LEAK) == 1


def test_an_untracked_block_outlives_its_creator(said, programs):
    out, err, status = said(
        """
        main:
        resource_tracker.ensure_running()
        print(SharedMemory(create=True, size=10, track=False).name)
        """
    )
    name = out.strip()
    assert (err, status) == ("", 0)
    assert names_a_block(name)
    code = "import sys; from mproc_ext.shared_memory import *; SharedMemory(sys.argv[1]).unlink()"
    done = programs.run_python("-c", code, name)
    assert (done.stderr, done.returncode) == ("", 0)
    assert not names_a_block(name)


# ---- managers --------------------------------------------------------------------------------


def test_blocks_of_a_manager(said, method):
    """The manager destroys them; who attached does not, and nobody is told of leaks."""
    assert said(
        """
        from mproc_ext.managers import SharedMemoryManager

        def change(block, numbers, name):
            again = SharedMemory(name)
            block.buf[0] += 1
            again.buf[0] += 1
            numbers[0] += 2

        main:
        with SharedMemoryManager(ctx=context) as manager:
            block, numbers = manager.SharedMemory(10), manager.ShareableList([5])
            child = context.Process(target=change, args=(block, numbers, block.name))
            child.start()
            child.join()
            print(child.exitcode, block.buf[0], numbers[0])
            attacher = "block = SharedMemory(name); print(block.buf[0])"
            print(unrelated(block.name, attacher))
            print(exists(block.name), exists(numbers.shm.name))
        print(exists(block.name), exists(numbers.shm.name))
        """,
        method,
    ) == ("0 2 7\n('2\\n', '', 0)\nTrue True\nFalse False\n", "", 0)
