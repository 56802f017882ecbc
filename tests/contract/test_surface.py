"""Names, kinds, signatures and class hierarchy are those of the running Python's stdlib."""

import subprocess
import sys

import pytest

WINDOWS_ONLY = {"popen_spawn_win32"}


def test_every_submodule_is_known(contract):
    """The list is read from the disk: if that found nothing, the tests below would say nothing."""
    found = set(contract.stdlib_submodules())
    assert {"connection", "context", "dummy", "dummy.connection", "managers", "pool"} <= found
    assert len(found) >= 22


def test_submodule_is_importable(contract, submodule):
    outcome = {package: contract.facts(package)[submodule]["import"] for package in PACKAGES}
    assert len(set(outcome.values())) == 1, outcome
    if submodule in WINDOWS_ONLY and sys.platform != "win32":
        assert outcome["mproc_ext"] == "ModuleNotFoundError"  # it imports msvcrt
    else:
        assert outcome["mproc_ext"] == "works"


PACKAGES = ("multiprocessing", "mproc_ext", "alias")


def test_same_surface(contract, group):
    theirs = contract.facts("multiprocessing")[group]
    assert theirs, "nothing was compared"
    real = contract.differences(group)
    unexcused = {name: pair for name, pair in real.items() if name not in contract.DIFFERENCES}
    report = [f"{name}: stdlib {a!r}, mproc_ext {b!r}" for name, (a, b) in unexcused.items()]
    assert not report, "\n".join(report)


def test_same_surface_under_the_alias(contract, group):
    ours, alias = contract.facts("mproc_ext")[group], contract.facts("alias")[group]
    report = [
        f"{fact}: mproc_ext {ours.get(fact)!r}, multiprocessing {alias.get(fact)!r}"
        for fact in dict.fromkeys([*ours, *alias])
        if ours.get(fact) != alias.get(fact)
    ]
    assert not report, "\n".join(report)


def test_every_excused_difference_is_real(contract):
    assert contract.unused_differences() == []
    assert all(reason.strip() for reason in contract.DIFFERENCES.values())


def test_factories_work(contract, group):
    """A factory that fails in the same way in both packages would make its group mean nothing."""
    theirs = contract.facts("multiprocessing")[group]
    assert "make" not in theirs, theirs


# Names with an underscore of which some Pythons' stdlib has none.
PRIVATE_SINCE = {
    "context/_concrete_contexts": (3, 4),
    "queues/Queue._terminate_broken": (3, 12),
    "resource_tracker/ResourceTracker._check_alive": (3, 7),
}


def test_private_names_that_others_use(contract, group):
    """Those of them that this Python's stdlib does not have are known: no name is misspelt."""
    theirs = contract.facts("multiprocessing")[group]
    missing = {f"{group}/{fact}" for fact, value in theirs.items() if value == "missing"}
    expected = {
        name
        for name, since in PRIVATE_SINCE.items()
        if sys.version_info < since and name.partition("/")[0] == group
    }
    assert missing == expected
    ours = contract.facts("mproc_ext")[group]
    still = {f"{group}/{fact}" for fact, value in ours.items() if value == "missing"}
    assert still - missing <= contract.DIFFERENCES.keys()


# Names that have to be the stdlib's own objects, and classes that may be subclasses of it: what one
# package makes is recognised by code that knows the other, and there is one of each table.
SAME = """
    ProcessError BufferTooShort TimeoutError AuthenticationError
    context.ProcessError context.BufferTooShort context.TimeoutError context.AuthenticationError
    process.BaseProcess process.AuthenticationString process.ORIGINAL_DIR
    process._current_process process._children process._dangling process.current_process
    process.active_children process.parent_process
    queues.Empty queues.Full queues._ForkingPickler connection._ForkingPickler
    reduction.ForkingPickler reduction.register reduction.AbstractReducer
    util.Finalize util._finalizer_registry util._finalizer_counter util._afterfork_registry
    util._afterfork_counter util.ForkAwareLocal util.register_after_fork util._exit_function
    pool.MaybeEncodingError pool.RemoteTraceback pool.ExceptionWithTraceback
    context._tls context.set_spawning_popen context.get_spawning_popen context.assert_spawning
    resource_sharer.DupFd resource_tracker._resource_tracker
    managers.RemoteError managers.Token dummy.Process
    dummy.connection.Connection
    connection.deliver_challenge connection.answer_challenge
"""

SUBCLASS = """
    Process context.Process context.ForkProcess context.SpawnProcess context.ForkServerProcess
    context.BaseContext context.DefaultContext context.ForkContext context.SpawnContext
    context.ForkServerContext
    queues.Queue queues.JoinableQueue queues.SimpleQueue pool.Pool pool.ThreadPool
    pool.AsyncResult pool.ApplyResult pool.MapResult pool.IMapIterator
    synchronize.Lock synchronize.RLock synchronize.Semaphore synchronize.BoundedSemaphore
    synchronize.Condition synchronize.Event synchronize.Barrier synchronize.SemLock
    sharedctypes.SynchronizedBase sharedctypes.Synchronized sharedctypes.SynchronizedArray
    sharedctypes.SynchronizedString heap.Arena heap.Heap heap.BufferWrapper
    connection.Connection connection.Listener connection.SocketListener connection.XmlListener
    managers.BaseManager managers.SyncManager managers.SharedMemoryManager managers.Server
    managers.SharedMemoryServer managers.BaseProxy managers.ListProxy managers.DictProxy
    managers.AcquirerProxy managers.ConditionProxy managers.EventProxy managers.BarrierProxy
    managers.NamespaceProxy managers.ValueProxy managers.ArrayProxy managers.PoolProxy
    managers.IteratorProxy managers.Namespace shared_memory.SharedMemory shared_memory.ShareableList
    resource_tracker.ResourceTracker
"""

ONE_WORLD = """
import importlib, json, sys
def find(package, path):
    *modules, name = path.split('.')
    module = importlib.import_module('.'.join([package, *modules]))
    return getattr(module, name)
result = {}
for path in sys.argv[1:]:
    theirs, ours = find('multiprocessing', path), find('mproc_ext', path)
    if theirs is ours:
        result[path] = 'same'
    else:
        subclass = isinstance(ours, type) and issubclass(ours, theirs)
        result[path] = 'subclass' if subclass else f'{ours!r} is unrelated to {theirs!r}'
print(json.dumps(result))
"""


@pytest.mark.parametrize("first", ["multiprocessing", "mproc_ext"])
def test_one_world_with_the_stdlib(contract, first):
    """Whichever package is imported first."""
    code = f"import {first}\n" + ONE_WORLD
    found = contract.json_of("-c", code, *SAME.split(), *SUBCLASS.split())
    allowed = {path: {"same"} for path in SAME.split()}
    allowed.update({path: {"same", "subclass"} for path in SUBCLASS.split()})
    wrong = {path: found[path] for path in allowed if found[path] not in allowed[path]}
    assert wrong == {}


# Modules that the stdlib's submodules have imported, under names that programs patch or read.
IMPORTED = """
    popen_fork.os popen_fork.signal popen_fork.util popen_spawn_posix.os popen_spawn_posix.spawn
    popen_forkserver.os popen_forkserver.forkserver forkserver.os
    forkserver.signal forkserver.socket forkserver.spawn forkserver.util forkserver.process
    spawn.os spawn.sys spawn.util spawn.process spawn.reduction util.os util.atexit
    queues.time queues.threading queues.os queues.connection queues.context
    pool.threading pool.queue pool.time pool.util pool.os connection.os connection.time
    connection.socket connection.reduction connection.util synchronize.threading synchronize.time
    synchronize.context synchronize.util managers.threading managers.pool managers.shared_memory
    context.process context.reduction process.os process.threading heap.mmap reduction.socket
"""


def test_modules_that_others_reach_through_ours(contract):
    code = """
import importlib, json, sys
missing = []
for path in sys.argv[1:]:
    submodule, name = path.split('.')
    for package in ('multiprocessing', 'mproc_ext'):
        if not hasattr(importlib.import_module(f'{package}.{submodule}'), name):
            missing.append(f'{package}.{path}')
print(json.dumps(missing))
"""
    assert contract.json_of("-c", code, *IMPORTED.split()) == []


def test_one_default_start_method(contract):
    """Whoever sets it sets it for both."""
    code = """
import json, multiprocessing as theirs, mproc_ext as ours
seen = [theirs.get_start_method(allow_none=True), ours.get_start_method(allow_none=True)]
ours.set_start_method('spawn')
seen += [theirs.get_start_method(), ours.get_start_method()]
theirs.set_start_method('fork', force=True)
seen += [theirs.get_start_method(), ours.get_start_method()]
ours.set_start_method(None, force=True)
seen += [theirs.get_start_method(allow_none=True), ours.get_start_method(allow_none=True)]
print(json.dumps(seen))
"""
    seen = contract.json_of("-c", code)
    assert seen == [None, None, "spawn", "spawn", "fork", "fork", None, None]


SHARED_STATE = """
import json, sys
import multiprocessing as theirs, mproc_ext as ours

def child(go, queue):
    go.recv()
    queue.put([theirs.current_process() is ours.current_process(),
               theirs.parent_process() is ours.parent_process(),
               theirs.current_process().name,
               ours.parent_process().pid,
               bytes(theirs.current_process().authkey) == b'key'])

if __name__ == '__main__':
    ours.current_process().authkey = b'key'
    import os
    result = []
    for maker, other in ((ours, theirs), (theirs, ours)):
        queue = other.get_context(sys.argv[1]).SimpleQueue()
        go, us = other.get_context(sys.argv[1]).Pipe(False)
        context = maker.get_context(sys.argv[1])
        process = context.Process(target=child, args=(go, queue), name='who')
        process.start()
        result.append(process in other.active_children())
        us.send('go')
        same_world, same_parent, name, parent, key = queue.get()
        process.join()
        result += [same_world, same_parent, name == 'who', parent == os.getpid(), key]
        result += [isinstance(process, theirs.process.BaseProcess), process.exitcode == 0]
    print(json.dumps(result))
"""


def test_processes_of_one_package_with_objects_of_the_other(contract, method, tmp_path):
    script = tmp_path / "shared_state.py"
    script.write_text(SHARED_STATE)
    result = contract.json_of(script, method)
    assert len(result) == 16
    assert all(result), result


def test_submodules_are_attributes_whatever_loads_them():
    """The stdlib's start methods load modules that ours do not; programs use what is loaded."""
    code = """
import mproc_ext
for name in "connection context heap managers pool process queues reduction spawn util".split():
    assert getattr(mproc_ext, name).__name__.endswith("." + name), name
for name in ("popen_spawn_win32", "nothing", "_private"):
    assert not hasattr(mproc_ext, name), name
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")
