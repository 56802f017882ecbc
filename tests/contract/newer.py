"""Use what newer Pythons' multiprocessing has, with mproc_ext and this Python.

    python newer.py NAME METHOD

Runs one of the functions below with the names of a start method; an assertion that fails is the
result.  All of them also pass with the stdlib of a Python that is new enough (see SINCE).
"""

import inspect
import os
import sys
import time
import warnings

import mproc_ext
from mproc_ext import connection, managers, queues, shared_memory

SINCE = {}


def since(*version):
    def remember(function):
        SINCE[function.__name__] = version
        return function

    return remember


def wait_for_ever(ready):
    try:
        ready.send("ready")
        while True:  # a signal just before a pause() would not end that
            time.sleep(0.01)
    except KeyboardInterrupt:
        ready.send("interrupted")
        sys.exit(7)


@since(3, 14)
def process_interrupt(mp):
    ours, theirs = mp.Pipe()
    child = mp.Process(target=wait_for_ever, args=(theirs,))
    child.start()
    assert ours.recv() == "ready"
    child.interrupt()
    assert ours.recv() == "interrupted"
    child.join()
    assert child.exitcode == 7
    child.interrupt()  # of one that has ended: nothing, as with terminate()


@since(3, 14)
def process_interrupt_of_closed(mp):
    child = mp.Process(target=os.getpid)
    child.start()
    child.join()
    child.close()
    try:
        child.interrupt()
    except ValueError as error:
        assert str(error) == "process object is closed"
    else:
        raise AssertionError("interrupt() of a closed process")


@since(3, 14)
def process_without_keyword_arguments(mp):
    child = mp.Process(target=os.getpid, kwargs=None)
    child.start()
    child.join()
    assert child.exitcode == 0


@since(3, 14)
def every_process_class_has_interrupt(mp):
    for name in ("ForkProcess", "SpawnProcess", "ForkServerProcess", "Process"):
        assert callable(getattr(mproc_ext.context, name).interrupt), name


def report_locked(locks, result):
    result.send([lock.locked() for lock in locks])


def check_locked(mp, lock):
    assert lock.locked() is False
    with lock:
        assert lock.locked() is True
        ours, theirs = mp.Pipe()
        child = mp.Process(target=report_locked, args=([lock], theirs))
        child.start()
        assert ours.recv() == [True]
        child.join()
        assert child.exitcode == 0
    assert lock.locked() is False


@since(3, 14)
def lock_locked(mp):
    check_locked(mp, mp.Lock())


@since(3, 14)
def rlock_locked(mp):
    check_locked(mp, mp.RLock())


@since(3, 14)
def semaphore_locked(mp):
    check_locked(mp, mp.Semaphore(1))
    semaphore = mp.Semaphore(2)
    with semaphore:
        assert not semaphore.locked()
    assert mp.Semaphore(0).locked()


@since(3, 14)
def bounded_semaphore_locked(mp):
    check_locked(mp, mp.BoundedSemaphore(1))


@since(3, 14)
def manager_lock_locked(mp):
    with mp.Manager() as manager:
        lock = manager.Lock()
        assert lock.locked() is False
        with lock:
            assert lock.locked() is True
        assert lock.locked() is False


@since(3, 14)
def manager_set(mp):
    with mp.Manager() as manager:
        proxy = manager.set([1, 2])
        assert isinstance(proxy, managers.SetProxy)
        assert managers.SetProxy[int].__origin__ is managers.SetProxy
        proxy.add(3)
        proxy.discard(1)
        assert 3 in proxy
        assert 1 not in proxy
        assert len(proxy) == 2
        assert sorted(proxy) == [2, 3]
        assert proxy | {9} == {2, 3, 9}
        assert {9} | proxy == {2, 3, 9}
        assert proxy & {3} == {3}
        assert {3} & proxy == {3}
        assert proxy - {3} == {2}
        assert {3, 4} - proxy == {4}
        assert proxy ^ {3} == {2}
        assert {3} ^ proxy == {2}
        assert proxy <= {2, 3}
        assert proxy < {2, 3, 4}
        assert proxy >= {2}
        assert proxy > {2}
        same = proxy
        proxy |= {4}
        proxy &= {3, 4}
        proxy ^= {5}
        proxy -= {3}
        assert proxy is same
        assert proxy.copy() == {4, 5}
        proxy.update([6])
        assert proxy.union([7]) == {4, 5, 6, 7}
        assert proxy.intersection([4]) == {4}
        assert proxy.difference([4]) == {5, 6}
        assert proxy.symmetric_difference([4]) == {5, 6}
        assert proxy.issuperset([4])
        assert proxy.issubset([4, 5, 6])
        assert proxy.isdisjoint([1])
        proxy.intersection_update([4, 5])
        proxy.difference_update([5])
        proxy.symmetric_difference_update([8])
        proxy.remove(8)
        assert proxy.pop() == 4
        proxy.clear()
        assert len(proxy) == 0
        try:
            proxy.remove(1)
        except KeyError as error:
            assert error.args == (1,)
        else:
            raise AssertionError("remove() of what is not there")


@since(3, 14)
def manager_list_clear_and_copy(mp):
    with mp.Manager() as manager:
        proxy = manager.list([1, 2])
        copy = proxy.copy()
        assert copy == [1, 2]
        proxy.clear()
        assert len(proxy) == 0
        assert copy == [1, 2]


@since(3, 14)
def manager_dict_operators(mp):
    with mp.Manager() as manager:
        proxy = manager.dict({"a": 1, "b": 2})
        assert list(reversed(proxy)) == ["b", "a"]
        assert proxy | {"b": 3} == {"a": 1, "b": 3}
        assert {"b": 3} | proxy == {"a": 1, "b": 2}
        same = proxy
        proxy |= {"c": 4}
        assert proxy is same
        assert proxy.copy() == {"a": 1, "b": 2, "c": 4}
        assert proxy.fromkeys("xy", 0) == {"x": 0, "y": 0}


class Own(managers.SyncManager):
    """What a user derives from the manager."""


@since(3, 14)
def manager_set_of_a_derived_manager(mp):
    with Own(ctx=mp) as manager:
        assert manager.set([1]).copy() == {1}


@since(3, 12)
def queue_generics(mp):
    assert queues.Queue[int].__origin__ is queues.Queue
    assert queues.JoinableQueue[int].__origin__ is queues.JoinableQueue
    assert queues.SimpleQueue[int].__args__ == (int,)


@since(3, 13)
def proxy_generics(mp):
    assert managers.DictProxy[str, int].__origin__ is managers.DictProxy
    assert managers.ListProxy[int].__origin__ is managers.ListProxy


@since(3, 12)
def challenge_with_a_digest(mp):
    parameter = inspect.signature(connection.deliver_challenge).parameters["digest_name"]
    assert parameter.default == "sha256"
    for digest in ("sha256", "sha3_256", "sha384"):
        ours, theirs = mp.Pipe()
        child = mp.Process(target=connection.answer_challenge, args=(theirs, b"key"))
        child.start()
        connection.deliver_challenge(ours, b"key", digest_name=digest)
        child.join()
        assert child.exitcode == 0


@since(3, 13)
def shared_memory_untracked(mp):
    block = shared_memory.SharedMemory(create=True, size=16, track=False)
    try:
        again = shared_memory.SharedMemory(block.name, track=False)
        again.buf[:3] = b"abc"
        again.close()
        assert bytes(block.buf[:3]) == b"abc"
    finally:
        block.close()
        block.unlink()


def nothing():
    pass


@since(3, 15)
def preload_on_error(mp):
    try:
        mproc_ext.set_forkserver_preload(["json"], on_error="perhaps")
    except ValueError as error:
        assert str(error) == "on_error must be 'ignore', 'warn', or 'fail', not 'perhaps'"
    else:
        raise AssertionError("an unknown on_error")
    mproc_ext.set_forkserver_preload(["json"], on_error="warn")
    server = mproc_ext.get_context("forkserver")
    server.set_forkserver_preload(["no_such_module"], on_error="ignore")
    child = server.Process(target=nothing)
    child.start()
    child.join()
    assert child.exitcode == 0


@since(3, 15)
def preload_on_error_fails(mp):
    server = mproc_ext.get_context("forkserver")
    server.set_forkserver_preload(["no_such_module"], on_error="fail")
    child = server.Process(target=nothing)
    try:
        child.start()
    except (EOFError, OSError):
        pass
    else:
        raise AssertionError("the server started without the module")


@since(3, 15)
def clear_error_for_a_typecode(mp):
    for make in (mp.Value, mp.RawValue):
        try:
            make("x", 0)
        except TypeError as error:
            assert str(error).startswith("bad typecode (must be a ctypes type or one of c, b,")
        else:
            raise AssertionError("an unknown typecode")
    for make in (mp.Array, mp.RawArray):
        try:
            make("x", 1)
        except TypeError as error:
            assert str(error).startswith("bad typecode (must be a ctypes type or one of c, b,")
        else:
            raise AssertionError("an unknown typecode")


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)
    name, method = sys.argv[1:]
    globals()[name](mproc_ext.get_context(method))
