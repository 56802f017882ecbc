"""Count references around what the core does, in a debug build of Python.

Every case is run in rounds. What Python keeps for itself (caches that fill) grows less from round
to round and ends; a leak grows by one for each time, in every round, for ever. So a case passes
with the first round in which the number of references has grown by less than one for every two
times.
"""

import concurrent.futures
import gc
import itertools
import os
import pickle
import sys
import warnings
from multiprocessing.reduction import ForkingPickler

import mproc_ext
import mproc_ext.pool
from mproc_ext import _core, connection

TIMES, ROUNDS = 40, 30


def nothing():
    pass


def start_and_join(method):
    context = mproc_ext.get_context(method)
    process = context.Process(target=nothing)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
    process.close()


def terminate(method):
    context = mproc_ext.get_context(method)
    process = context.Process(target=input_forever)
    process.start()
    process.terminate()
    process.join()
    process.close()


def input_forever():
    import signal

    signal.pause()


def fail_to_start():
    process = mproc_ext.get_context("spawn").Process(target=lambda: None)
    try:
        process.start()
    except Exception:
        return
    raise AssertionError("a lambda was pickled")


def use_locks():
    context = mproc_ext.get_context("spawn")
    for lock in (context.Lock(), context.RLock(), context.Semaphore(2), context.BoundedSemaphore()):
        with lock:
            if lock.acquire(False):
                lock.release()
            lock._semlock._is_mine(), lock._semlock._get_value(), lock.locked(), repr(lock)
        for wrong in ({"timeout": "x"}, {"unknown": 1}):
            try:
                lock.acquire(**wrong)
            except TypeError:
                continue
            raise AssertionError(wrong)


def make_locks():
    from mproc_ext import synchronize

    context = mproc_ext.get_context("spawn")
    for cls in (synchronize.Semaphore, synchronize.BoundedSemaphore):
        cls(3, ctx=context), cls(value=3, ctx=context), cls(ctx=None)
    for args, kwargs in (((1, 2), {}), ((), {"unknown": 1}), ((), {"ctx": 5})):
        try:
            synchronize.Lock(*args, **kwargs)
        except (TypeError, AttributeError):
            continue
        raise AssertionError(args)

    @mproc_ext._core.own_methods
    class Lock(synchronize.Lock):
        pass

    Lock(ctx=context).acquire()


class Around:
    """A lock that a condition has to ask."""

    def __init__(self, lock, error=None):
        self._semlock, self.release, self.error = lock._semlock, lock.release, error
        self.lock = lock

    def acquire(self):
        self.lock.acquire()
        if self.error:
            raise self.error


def use_a_condition_of_any_lock():
    context = mproc_ext.get_context("spawn")
    lock = context.Lock()
    for error in (None, KeyError("acquire")):
        condition = context.Condition(Around(lock, error))
        condition._lock.itself = condition
        lock.acquire()
        condition.notify(1.5)
        for timeout in (0, float("nan"), "x"):
            try:
                condition.wait(timeout)
            except (KeyError, OSError, TypeError):
                continue
            assert error is None
        lock.release()
        for method in (condition.notify, condition.wait):
            try:
                method()
            except AssertionError:
                continue
            raise ValueError(method)


def use_conditions_and_events():
    context = mproc_ext.get_context("spawn")
    condition, event, barrier = context.Condition(), context.Event(), context.Barrier(1)
    with condition:
        condition.notify_all()
        assert condition.wait(0) is False
    event.set()
    assert event.wait()
    assert event.is_set()
    event.clear()
    assert event.wait(0) is False
    barrier.wait()
    repr([condition, event, barrier])


def use_values():
    context = mproc_ext.get_context("spawn")
    value, array, large = context.Value("i", 3), context.Array("d", 2), context.Array("q", 1000)
    text = context.Array("c", b"text")
    with value:
        value.value += 1
    array[0] = array[-1] + 1
    large[999] = len(large[:5]) + len(text.value)
    for wrong in (lambda: array[2], lambda: array["x"], lambda: setattr(value, "value", "x")):
        try:
            wrong()
        except (IndexError, TypeError):
            continue
        raise AssertionError(wrong)
    value.acquire, value._obj = value.release, value.get_obj()
    assert value.get_obj().value == 4


def pass_shared_objects():
    context = mproc_ext.get_context("spawn")
    shared = context.Lock(), context.Condition(), context.Event(), context.Barrier(2)
    shared += context.Value("i"), context.Array("d", 2), context.Array("q", 1000)
    process = context.Process(target=len, args=(shared,))
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()


class Shared:
    """What a program puts in ForkingPickler's place."""

    dumps = staticmethod(pickle.dumps)
    loads = staticmethod(pickle.loads)


def send_trees():
    text, items = f"text {TIMES}", [1.5, 2.5, 3.5]
    tree = [text, {text: items, 2**80: (None, True, b"abc", "Ω", "\U0001f600")}, items]
    tree += [[f"{i}" for i in range(200)] * 2]
    assert _core.loads(_core.dumps(tree)) == tree
    tree.append(tree)
    assert len(_core.loads(_core.dumps(tree))) == len(tree)
    tree.clear()


def read_damaged_messages():
    text = f"text {TIMES}"
    message = _core.dumps([text, {text: (text, 2**80, b"abc", "Ω")}, [1.5, 2.5, 3.5], [[text]]])
    for end in range(1, len(message)):
        try:
            _core.loads(message[:end])
        except pickle.UnpicklingError:
            continue
        raise AssertionError(end)


def send_pickles():
    for obj in (1j, [1j, "text" * 10_000], Shared, [{1j: Shared}] * 3):
        assert _core.loads(_core.dumps(obj)) == obj
        names = {"_ForkingPickler": Shared}
        assert _core.loads(_core.dumps(obj, names), names) == obj
        assert _core.loads(_core.dumps(obj), names) == obj
    for wrong in (lambda: None, [1, lambda: None], iter("ab").__class__.__iter__):
        try:
            _core.dumps(wrong)
        except (pickle.PicklingError, AttributeError, TypeError):
            continue


def register_reducers():
    ForkingPickler.register(complex, lambda obj: (str, ()))
    assert _core.loads(_core.dumps(1j)) == ""
    del ForkingPickler._extra_reducers[complex]
    ForkingPickler.persistent_id = lambda self, obj: None
    assert _core.loads(_core.dumps([1])) == [1]
    del ForkingPickler.persistent_id
    assert _core.loads(_core.dumps(1j)) == 1j


class Carrier:
    """Gives pickle its bytes out of band."""

    def __init__(self, data, *rest):
        self.data = data
        self.rest = rest

    def __reduce_ex__(self, protocol):
        return Carrier, (pickle.PickleBuffer(self.data), *self.rest)


def lend_buffers():
    q = mproc_ext.get_context("fork").SimpleQueue(zero_copy=True)
    for data in (bytearray(100_000), bytes(100_000), bytearray(10)):
        q.put([Carrier(data), Carrier(data)])
        one, other = q.get()
        assert one.data == other.data == data
        q.put(one)
        _core.limit_leases(1)
        assert q.get().data == data
        _core.limit_leases(0)
        one.rest = other, one
    try:
        q.put([Carrier(bytearray(100_000)), Carrier(b"", lambda: None)])
    except (pickle.PicklingError, AttributeError):
        pass
    else:
        raise AssertionError("a lambda was pickled")
    q._channel._send_bytes(bytes([_core.FIRST_TAG + 30]) + bytes([255]) * 100_000)
    try:
        q.get()
    except pickle.UnpicklingError:
        return
    raise AssertionError("a damaged message was read")


class Slow(connection.Connection):
    """One that has the standard library's methods."""

    def _send_bytes(self, buf):
        super()._send_bytes(buf)


def raises(errors, function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except errors:
        return
    raise AssertionError(f"{function} did not raise")


def use_connections():
    for first, second in (connection.Pipe(), connection.Pipe(False)[::-1]):
        with first, second:
            for obj in (1, {"key": [1.5, None]}, b"x" * 30_000, ForkingPickler):
                first.send(obj)
                assert second.recv() == obj
            first.send_bytes(b"abcdef", 1, 3)
            assert second.poll()
            assert second.poll(timeout=1)
            assert second.recv_bytes(3) == b"bcd"
            first.send_bytes(memoryview(b"abcd").cast("B", (2, 2)))
            room = bytearray(10)
            assert second.recv_bytes_into(room, 2) == 4
            first.send_bytes(b"abc")
            raises(mproc_ext.BufferTooShort, second.recv_bytes_into, bytearray(2))
            assert connection.wait([second], 0) == []
            first.send_bytes(b"no pickle")
            assert connection.wait([second, sys.stdin.fileno()], 0)[0] is second
            raises(pickle.UnpicklingError, second.recv)
            raises((AttributeError, TypeError, pickle.PicklingError), first.send, lambda: None)
            raises(ValueError, first.send_bytes, b"abc", 5)
            raises(ValueError, connection.wait, ["no descriptor"], 0)
            first.send_bytes(b"too long")
            raises(OSError, second.recv_bytes, 2)
        raises(OSError, second.recv)
    first, second = connection.Pipe()
    slow = Slow(first.fileno())
    first._handle = None
    slow.send(1)
    slow._own = slow  # for the garbage collector
    del slow
    gc.collect()
    assert second.recv() == 1
    raises(EOFError, second.recv)


def fail(error):
    raise error


def use_a_pool():
    text = f"text {TIMES}"
    with mproc_ext.get_context("fork").Pool(2) as pool:
        assert pool.apply(len, ([1, text],)) == 2
        for chunksize in (1, 3, None):
            assert pool.map(str, range(20), chunksize) == [str(i) for i in range(20)]
            assert pool.starmap(divmod, [(7, 2)] * 5, chunksize) == [(3, 1)] * 5
        for items in ([text] * 10, [1j] * 10, [b"x" * 10_000] * 3):
            assert list(pool.imap(repr, items)) == list(map(repr, items))
            assert list(pool.imap_unordered(repr, items, 4)) == list(map(repr, items))
        lazy = pool.imap(len, iter([text] * 50), buffersize=2)
        assert next(lazy) == len(text)
        lazy.cancel()
        bound = text.join  # goes along with its task
        assert pool.map(bound, [["a", "b"]] * 3) == [bound(["a", "b"])] * 3
        pool.close()
        pool.join()


def call_back_from_a_pool():
    told = []
    with mproc_ext.get_context("fork").Pool(1) as pool:
        result = pool.apply_async(len, ([1],), callback=told.append, error_callback=fail)
        assert result.get() == 1
        assert result.successful()
        result.itself = result
        error = pool.map_async(fail, [KeyError(1)], callback=fail, error_callback=told.append)
        raises(KeyError, error.get)
        assert len(told) == 2


def raise_in_a_pool():
    with mproc_ext.get_context("fork").Pool(1) as pool:
        raises(KeyError, pool.apply, fail, (KeyError("key"),))
        raises(KeyError, pool.map, fail, [KeyError("key")] * 5)
        raises(KeyError, list, pool.imap(fail, [KeyError("key")] * 5))
        raises(KeyError, pool.map, len, broken_items())
        raises(KeyError, list, pool.imap(len, broken_items()))
        # What cannot be pickled: there and back.
        raises((AttributeError, TypeError, pickle.PicklingError), pool.apply, lambda: None)
        raises(mproc_ext.pool.MaybeEncodingError, pool.apply, compile, ("1", "name", "eval"))
        raises(TypeError, pool.map, len, 5)
        raises(ValueError, pool.apply, len, ([],), timeout=-1)


def broken_items():
    yield "text"
    raise KeyError("items")


def end_workers_of_a_pool():
    with mproc_ext.get_context("fork").Pool(1, maxtasksperchild=2) as pool:
        raises(mproc_ext.pool.WorkerLostError, pool.apply, os._exit, (1,))
        assert pool.map(len, ["a"] * 5, 1) == [1] * 5
        raises(mproc_ext.TimeoutError, pool.apply, input_forever, timeout=0.01)
        result = pool.apply_async(input_forever)
        assert result.cancel()
        raises(concurrent.futures.CancelledError, result.get)


def terminate_a_pool():
    pool = mproc_ext.get_context("fork").Pool(2)
    results = [pool.apply_async(input_forever) for _ in range(5)]
    iterator = pool.imap(input_forever, itertools.count())
    pool.terminate()
    for result in results:
        raises(mproc_ext.pool.BrokenPoolError, result.get)
    raises(mproc_ext.pool.BrokenPoolError, next, iterator)
    raises(ValueError, pool.apply, len, ([],))
    pool.join()


def forget_a_pool():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pool = mproc_ext.get_context("fork").Pool(1)
        pool.itself = pool  # for the garbage collector
        assert pool.apply(len, ("a",)) == 1
        assert pool.apply_async(len, ("a",)).get() == 1
        del pool
        gc.collect()


def leak():
    import ctypes

    ctypes.pythonapi.Py_IncRef(ctypes.py_object(object()))


CASES = {
    "fork: start, join": lambda: start_and_join("fork"),
    "fork: start, terminate": lambda: terminate("fork"),
    "spawn: start, join": lambda: start_and_join("spawn"),
    "spawn: unpicklable target": fail_to_start,
    "forkserver: start, join": lambda: start_and_join("forkserver"),
    "locks and semaphores": use_locks,
    "locks and semaphores, made": make_locks,
    "a condition of any lock": use_a_condition_of_any_lock,
    "conditions, events, barriers": use_conditions_and_events,
    "values and arrays": use_values,
    "spawn: shared objects as arguments": pass_shared_objects,
    "buffers on loan": lend_buffers,
    "messages without pickle": send_trees,
    "messages by pickle": send_pickles,
    "messages that are damaged": read_damaged_messages,
    "messages: reducers, another class": register_reducers,
    "connections": use_connections,
    "pools": use_a_pool,
    "pools: callbacks": call_back_from_a_pool,
    "pools: errors": raise_in_a_pool,
    "pools: workers that end": end_workers_of_a_pool,
    "pools: terminated": terminate_a_pool,
    "pools: unclosed": forget_a_pool,
}


def references():
    for _ in range(3):
        gc.collect()
    return sys.gettotalrefcount()


def growth(case):
    """How many references are left by each of TIMES runs."""
    before = references()
    for _ in range(TIMES):
        case()
    return (references() - before) / TIMES


def rounds(case):
    grown = [growth(case)]
    while grown[-1] >= 0.5 and len(grown) < ROUNDS:
        grown.append(growth(case))
    return grown


def main():
    if not mproc_ext.ACCELERATED:
        sys.exit("there is no core to look at")
    if rounds(leak)[-1] < 0.5:
        sys.exit("a leak would not be seen")
    failed = 0
    for name, case in CASES.items():
        grown = rounds(case)
        leaks = grown[-1] >= 0.5
        failed += leaks
        history = " ".join(f"{number:+.2f}" for number in grown)
        print(f"{'LEAK' if leaks else 'ok':4} {name}: references each time, by rounds: {history}")
    print(f"{len(CASES) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
