"""Use a package wrongly in every way we know; print what it raises, as JSON.

    python misuse.py PACKAGE METHOD

The result is {case: [type, message]}, or ["nothing", what it returned] for a case that raised none.
Process ids, addresses and the package's name are replaced, so that two packages that behave the
same give the same result.
"""

import functools
import importlib
import io
import json
import os
import pickle
import re
import signal
import sys
import threading
import warnings

CASES = {}


def case(function):
    CASES[function.__name__] = function
    return function


def nothing(*args):
    pass


def fail(text):
    raise LookupError(text)


def send_error(connection, function, *args):
    """In a child: what the function raises, to the parent."""
    connection.send(outcome(functools.partial(function, *args)))
    connection.close()


def outcome(function):
    try:
        value = function()
    except BaseException as error:
        kind = type(error)
        return [f"{kind.__module__}.{kind.__qualname__}", normal(str(error))]
    return ["nothing", normal(repr(value))]


def normal(text):
    text = re.sub(r"\b0x[0-9a-f]+\b", "0x...", text)
    text = re.sub(r"\b(pid=|pid |parent=)\d+", r"\1N", text)
    text = re.sub(r"(-|Process-|PoolWorker-|__mp_)\d+(:\d+)*", r"\1N", text)
    return re.sub(r"\bmproc_ext\b", "multiprocessing", text)


def in_child(mp, function, *args):
    """What the function raises in a child process, raised here as (type, message)."""
    ours, theirs = mp.Pipe()
    child = mp.Process(target=send_error, args=(theirs, function, *args))
    child.start()
    theirs.close()
    try:
        result = ours.recv()
    finally:
        child.join()
    raise FromChild(*result)


class FromChild(Exception):
    def __str__(self):
        return " ".join(self.args)


def started(mp, target=nothing, **kwargs):
    child = mp.Process(target=target, **kwargs)
    child.start()
    return child


def finished(mp):
    child = started(mp)
    child.join()
    return child


# ---- Process ---------------------------------------------------------------------------------


@case
def start_twice(mp):
    finished(mp).start()


@case
def start_twice_while_running(mp):
    from_parent, _ours = mp.Pipe(False)
    child = started(mp, target=from_parent.recv)
    try:
        child.start()
    finally:
        child.kill()
        child.join()


@case
def start_closed(mp):
    child = finished(mp)
    child.close()
    child.start()


@case
def join_before_start(mp):
    mp.Process(target=nothing).join()


@case
def is_alive_before_start(mp):
    return mp.Process(target=nothing).is_alive()


@case
def terminate_before_start(mp):
    mp.Process(target=nothing).terminate()


@case
def kill_before_start(mp):
    mp.Process(target=nothing).kill()


@case
def exitcode_before_start(mp):
    return mp.Process(target=nothing).exitcode


@case
def pid_before_start(mp):
    return mp.Process(target=nothing).pid


@case
def sentinel_before_start(mp):
    return mp.Process(target=nothing).sentinel


@case
def close_before_start(mp):
    child = mp.Process(target=nothing)
    child.close()
    return child


@case
def close_while_running(mp):
    from_parent, ours = mp.Pipe(False)
    child = mp.Process(target=from_parent.recv)
    child.start()
    try:
        child.close()
    finally:
        ours.send(None)
        child.join()


@case
def join_after_close(mp):
    child = finished(mp)
    child.close()
    child.join()


@case
def close_twice(mp):
    child = finished(mp)
    child.close()
    return child.close()


for attribute in ("exitcode", "pid", "ident", "sentinel", "name", "daemon", "authkey"):

    def closed_attribute(mp, attribute=attribute):
        child = finished(mp)
        child.close()
        value = getattr(child, attribute)
        return type(value).__name__

    CASES[f"closed_{attribute}"] = closed_attribute

for method in ("is_alive", "terminate", "kill", "run"):

    def closed_method(mp, method=method):
        child = finished(mp)
        child.close()
        return getattr(child, method)()

    CASES[f"closed_{method}"] = closed_method


@case
def repr_of_closed(mp):
    child = finished(mp)
    child.close()
    return child


@case
def repr_of_initial(mp):
    return mp.Process(name="some")


@case
def repr_of_finished(mp):
    child = mp.Process(name="some", target=nothing)
    child.start()
    child.join()
    return child


@case
def repr_of_failed(mp):
    child = mp.Process(name="some", target=os._exit, args=(3,))
    child.start()
    child.join()
    return child


@case
def repr_of_killed(mp):
    from_parent, _ours = mp.Pipe(False)
    child = mp.Process(name="some", target=from_parent.recv)
    child.start()
    child.kill()
    child.join()
    return child


@case
def repr_of_daemonic(mp):
    return mp.Process(name="some", daemon=True)


@case
def set_daemon_while_running(mp):
    child = finished(mp)
    child.daemon = True


@case
def set_name_to_bytes(mp):
    mp.Process().name = b"name"


@case
def name_of_another_type(mp):
    return mp.Process(name=7).name


@case
def group_not_none(mp):
    mp.Process(group=1)


@case
def unknown_argument(mp):
    mp.Process(taget=nothing)


@case
def too_many_arguments(mp):
    mp.Process(None, nothing, "name", (), {}, True)


@case
def args_not_iterable(mp):
    mp.Process(target=nothing, args=7)


@case
def kwargs_not_a_mapping(mp):
    mp.Process(target=nothing, kwargs=7)


@case
def target_not_callable(mp):
    child = mp.Process(target="nothing")
    child.run()


@case
def authkey_of_another_type(mp):
    mp.Process().authkey = "text"


@case
def pickle_a_process(mp):
    pickle.dumps(finished(mp))


@case
def pickle_an_authkey(mp):
    pickle.dumps(mp.current_process().authkey)


@case
def join_with_text(mp):
    child = finished(mp)
    child.join("soon")


def join_it(child):
    child.join()


@case
def join_in_another_process(mp):
    if mp.method == "fork":  # by the others, a process that was started cannot be sent there
        in_child(mp, join_it, finished(mp))


def alive(child):
    return child.is_alive()


@case
def is_alive_in_another_process(mp):
    if mp.method == "fork":
        in_child(mp, alive, finished(mp))


def terminate_it(child):
    child.terminate()


@case
def terminate_in_another_process(mp):
    if mp.method == "fork":
        in_child(mp, terminate_it, finished(mp))


@case
def child_that_another_reaped(mp):
    child = started(mp)
    if mp.method != "forkserver":
        os.waitpid(child.pid, 0)
    child.join()
    return child.exitcode, child.is_alive(), child in mp.module.active_children()


@case
def children_that_nobody_reaps(mp):
    if mp.method == "forkserver":  # they are the server's
        return None
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = started(mp)
        child.join()
        return child.exitcode, child.is_alive(), child in mp.module.active_children()
    finally:
        signal.signal(signal.SIGCHLD, before)


def start_one_that_was_made_elsewhere(child):
    child.start()


@case
def start_what_another_process_made(mp):
    if mp.method == "fork":
        in_child(mp, start_one_that_was_made_elsewhere, mp.Process(target=nothing))


def start_a_child(package, method):
    context = importlib.import_module(package).get_context(method)
    context.Process(target=nothing).start()


@case
def daemonic_process_has_children(mp):
    ours, theirs = mp.Pipe()
    child = mp.Process(
        target=send_error, args=(theirs, start_a_child, mp.package, mp.method), daemon=True
    )
    child.start()
    theirs.close()
    result = ours.recv()
    child.join()
    raise FromChild(*result)


@case
def parent_process_of_main(mp):
    return mp.parent_process()


@case
def join_current_process(mp):
    mp.current_process().join()


@case
def start_current_process(mp):
    mp.current_process().start()


@case
def close_current_process(mp):
    mp.current_process().close()


def target_with_locals():
    def inner():
        pass

    return inner


@case
def unpicklable_target(mp):
    child = mp.Process(target=target_with_locals())
    child.start()
    child.join()
    return child.exitcode


@case
def unpicklable_argument(mp):
    child = mp.Process(target=nothing, args=(threading.Lock(),))
    child.start()
    child.join()
    return child.exitcode


# ---- contexts --------------------------------------------------------------------------------


@case
def unknown_context(mp):
    mp.module.get_context("threads")


@case
def unknown_start_method(mp):
    mp.module.set_start_method("threads", force=True)


@case
def set_start_method_twice(mp):
    try:
        mp.module.set_start_method("fork")
        mp.module.set_start_method("spawn")
    finally:
        mp.module.set_start_method(None, force=True)


@case
def set_start_method_after_use(mp):
    try:
        mp.module.Lock()
        mp.module.set_start_method("spawn")
    finally:
        mp.module.set_start_method(None, force=True)


@case
def set_start_method_of_a_context(mp):
    mp.context.set_start_method("spawn" if mp.method == "fork" else "fork")


@case
def get_unknown_context_of_a_context(mp):
    mp.context.get_context("threads")


@case
def set_none_as_start_method(mp):
    mp.module.set_start_method(None)


@case
def preload_not_strings(mp):
    mp.module.set_forkserver_preload([1])


@case
def preload_one_string(mp):
    return mp.module.set_forkserver_preload("")


@case
def reducer_of_another_type(mp):
    mp.context.reducer = 3
    try:
        return mp.context.reducer
    finally:
        mp.context.reducer = importlib.import_module(mp.package + ".reduction")


@case
def unknown_attribute_of_the_package(mp):
    return mp.module.nonsense


@case
def unknown_attribute_of_a_context(mp):
    return mp.context.nonsense


# ---- synchronize -----------------------------------------------------------------------------


@case
def negative_semaphore(mp):
    mp.Semaphore(-1)


@case
def semaphore_of_text(mp):
    mp.Semaphore("1")


@case
def huge_semaphore(mp):
    mp.Semaphore(2**70)


@case
def semaphore_above_the_limit(mp):
    mp.Semaphore(2**31)


@case
def bounded_semaphore_released_too_often(mp):
    semaphore = mp.BoundedSemaphore(1)
    semaphore.release()


@case
def lock_released_too_often(mp):
    mp.Lock().release()


@case
def rlock_released_by_another(mp):
    mp.RLock().release()


@case
def rlock_released_by_another_thread(mp):
    lock = mp.RLock()
    lock.acquire()
    result = []
    thread = threading.Thread(target=lambda: result.append(outcome(lock.release)))
    thread.start()
    thread.join()
    raise FromChild(*result[0])


@case
def acquire_with_text(mp):
    mp.Lock().acquire(True, "soon")


@case
def acquire_with_too_many(mp):
    mp.Lock().acquire(True, 1, 2)


@case
def pickle_a_lock(mp):
    pickle.dumps(mp.Lock())


@case
def pickle_a_condition(mp):
    pickle.dumps(mp.Condition())


@case
def pickle_an_event(mp):
    pickle.dumps(mp.Event())


@case
def condition_wait_unlocked(mp):
    mp.Condition().wait()


@case
def condition_notify_unlocked(mp):
    mp.Condition().notify()


@case
def condition_notify_all_unlocked(mp):
    mp.Condition().notify_all()


@case
def barrier_of_none(mp):
    mp.Barrier(0)


@case
def barrier_times_out(mp):
    mp.Barrier(2, timeout=0.01).wait()


@case
def barrier_aborted(mp):
    barrier = mp.Barrier(2)
    barrier.abort()
    barrier.wait()


@case
def barrier_without_parties(mp):
    mp.Barrier()


for factory in ("Lock", "RLock", "Semaphore", "BoundedSemaphore", "Condition", "Event"):

    def representation(mp, factory=factory):
        return getattr(mp, factory)()

    CASES[f"repr_of_{factory}"] = representation


@case
def repr_of_held_lock(mp):
    lock = mp.Lock()
    lock.acquire()
    return lock


@case
def repr_of_held_rlock(mp):
    lock = mp.RLock()
    lock.acquire()
    lock.acquire()
    return lock


# ---- queues ----------------------------------------------------------------------------------


@case
def queue_get_nowait(mp):
    mp.Queue().get_nowait()


@case
def queue_get_times_out(mp):
    mp.Queue().get(timeout=0.01)


@case
def queue_put_full(mp):
    queue = mp.Queue(1)
    queue.put(1)
    try:
        queue.put_nowait(2)
    finally:
        queue.get()


@case
def queue_put_times_out(mp):
    queue = mp.Queue(1)
    queue.put(1)
    try:
        queue.put(2, timeout=0.01)
    finally:
        queue.get()


@case
def queue_put_closed(mp):
    queue = mp.Queue()
    queue.close()
    queue.put(1)


@case
def queue_get_closed(mp):
    queue = mp.Queue()
    queue.close()
    queue.get()


@case
def queue_get_nowait_closed(mp):
    queue = mp.Queue()
    queue.close()
    queue.get_nowait()


@case
def queue_empty_closed(mp):
    queue = mp.Queue()
    queue.close()
    queue.empty()


@case
def queue_qsize_closed(mp):
    queue = mp.Queue()
    queue.close()
    return queue.qsize()


@case
def queue_closed_twice(mp):
    queue = mp.Queue()
    queue.close()
    return queue.close()


@case
def queue_join_thread_open(mp):
    mp.Queue().join_thread()


@case
def pickle_a_queue(mp):
    pickle.dumps(mp.Queue())


@case
def pickle_a_simple_queue(mp):
    pickle.dumps(mp.SimpleQueue())


@case
def queue_task_done_too_often(mp):
    mp.JoinableQueue().task_done()


@case
def queue_size_is_text(mp):
    mp.Queue("1")


@case
def queue_without_context(mp):
    importlib.import_module(mp.package + ".queues").Queue()


@case
def simple_queue_put_closed(mp):
    queue = mp.SimpleQueue()
    queue.close()
    queue.put(1)


@case
def simple_queue_get_closed(mp):
    queue = mp.SimpleQueue()
    queue.close()
    queue.get()


@case
def simple_queue_empty_closed(mp):
    queue = mp.SimpleQueue()
    queue.close()
    queue.empty()


@case
def simple_queue_put_unpicklable(mp):
    mp.SimpleQueue().put(threading.Lock())


# ---- connection ------------------------------------------------------------------------------


@case
def send_on_closed(mp):
    a, _b = mp.Pipe()
    a.close()
    a.send(1)


@case
def recv_on_closed(mp):
    a, _b = mp.Pipe()
    a.close()
    a.recv()


@case
def poll_on_closed(mp):
    a, _b = mp.Pipe()
    a.close()
    a.poll()


@case
def fileno_of_closed(mp):
    a, _b = mp.Pipe()
    a.close()
    a.fileno()


@case
def send_to_the_reading_end(mp):
    reader, _writer = mp.Pipe(False)
    reader.send(1)


@case
def recv_from_the_writing_end(mp):
    _reader, writer = mp.Pipe(False)
    writer.recv()


@case
def poll_the_writing_end(mp):
    _reader, writer = mp.Pipe(False)
    writer.poll()


@case
def recv_at_the_end(mp):
    a, b = mp.Pipe()
    b.close()
    a.recv()


@case
def send_without_reader(mp):
    a, b = mp.Pipe()
    b.close()
    a.send(1)


@case
def send_unpicklable(mp):
    a, _b = mp.Pipe()
    a.send(threading.Lock())


@case
def send_bytes_of_text(mp):
    a, _b = mp.Pipe()
    a.send_bytes("text")


@case
def send_bytes_offset(mp):
    a, _b = mp.Pipe()
    a.send_bytes(b"abc", 4)


@case
def send_bytes_negative_offset(mp):
    a, _b = mp.Pipe()
    a.send_bytes(b"abc", -1)


@case
def send_bytes_negative_size(mp):
    a, _b = mp.Pipe()
    a.send_bytes(b"abc", 0, -1)


@case
def send_bytes_size(mp):
    a, _b = mp.Pipe()
    a.send_bytes(b"abc", 2, 2)


@case
def recv_bytes_negative(mp):
    a, _b = mp.Pipe()
    a.recv_bytes(-1)


@case
def recv_bytes_too_long(mp):
    a, b = mp.Pipe()
    b.send_bytes(b"abc")
    a.recv_bytes(2)


@case
def recv_bytes_into_too_short(mp):
    a, b = mp.Pipe()
    b.send_bytes(b"abc")
    a.recv_bytes_into(bytearray(2))


@case
def recv_bytes_into_offset(mp):
    a, b = mp.Pipe()
    b.send_bytes(b"abc")
    a.recv_bytes_into(bytearray(2), 3)


@case
def recv_bytes_into_negative_offset(mp):
    a, _b = mp.Pipe()
    a.recv_bytes_into(bytearray(2), -1)


@case
def pickle_a_connection(mp):
    pickle.dumps(mp.Pipe()[0])


@case
def connection_of_a_bad_descriptor(mp):
    importlib.import_module(mp.package + ".connection").Connection(-1)


@case
def connection_of_neither(mp):
    connection = importlib.import_module(mp.package + ".connection")
    connection.Connection(0, readable=False, writable=False)


@case
def wait_for_text(mp):
    importlib.import_module(mp.package + ".connection").wait(["text"])


@case
def client_of_nobody(mp):
    importlib.import_module(mp.package + ".connection").Client("/nonexistent/socket")


@case
def client_of_unknown_family(mp):
    importlib.import_module(mp.package + ".connection").Client(7)


@case
def listener_of_unknown_family(mp):
    importlib.import_module(mp.package + ".connection").Listener(family="AF_NONE")


@case
def listener_with_text_as_key(mp):
    importlib.import_module(mp.package + ".connection").Listener(authkey="text")


@case
def wrong_key(mp):
    connection = importlib.import_module(mp.package + ".connection")
    with connection.Listener(authkey=b"right") as listener:
        result = []
        thread = threading.Thread(
            target=lambda: result.append(
                outcome(lambda: connection.Client(listener.address, authkey=b"wrong"))
            )
        )
        thread.start()
        mine = outcome(listener.accept)
        thread.join()
    raise FromChild(*mine, *result[0])


@case
def listener_accept_closed(mp):
    listener = importlib.import_module(mp.package + ".connection").Listener()
    listener.close()
    listener.accept()


# ---- shared ctypes and memory ----------------------------------------------------------------


@case
def array_of_unknown_type(mp):
    if sys.version_info >= (3, 15):  # whose message is clearer; test_newer.py has it
        mp.Array("x", 1)


@case
def array_without_size(mp):
    mp.Array("i")


@case
def array_of_negative_size(mp):
    mp.Array("i", -1)


@case
def array_of_text(mp):
    mp.Array("i", "text")


@case
def raw_array_index(mp):
    mp.RawArray("i", 2)[2]


@case
def value_of_text(mp):
    mp.Value("i", "text")


@case
def value_with_wrong_lock(mp):
    mp.Value("i", 0, lock="lock")


@case
def array_with_wrong_lock(mp):
    mp.Array("i", 1, lock=3)


@case
def value_without_lock_has_none(mp):
    mp.Value("i", 0, lock=False).get_lock()


@case
def pickle_a_value(mp):
    pickle.dumps(mp.Value("i", 0))


@case
def pickle_a_raw_value(mp):
    pickle.dumps(mp.RawValue("i", 0))


@case
def shared_memory_of_no_size(mp):
    importlib.import_module(mp.package + ".shared_memory").SharedMemory(create=True, size=0)


@case
def shared_memory_of_negative_size(mp):
    importlib.import_module(mp.package + ".shared_memory").SharedMemory(create=True, size=-1)


@case
def shared_memory_that_is_not_there(mp):
    importlib.import_module(mp.package + ".shared_memory").SharedMemory(name="mpx-not-there")


@case
def shared_memory_without_name(mp):
    importlib.import_module(mp.package + ".shared_memory").SharedMemory()


# ---- Pool ------------------------------------------------------------------------------------


@case
def pool_of_none(mp):
    mp.Pool(0)


@case
def pool_of_negative_size(mp):
    mp.Pool(-1)


@case
def pool_of_text(mp):
    mp.Pool("1")


@case
def pool_with_uncallable_initializer(mp):
    mp.Pool(1, initializer=1)


@case
def pool_with_negative_lifetime(mp):
    mp.Pool(1, maxtasksperchild=-1)


@case
def pool_with_text_as_lifetime(mp):
    mp.Pool(1, maxtasksperchild="1")


@case
def pool_used_closed(mp):
    with mp.Pool(1) as pool:
        pool.close()
        pool.apply(nothing)


@case
def pool_used_terminated(mp):
    with mp.Pool(1) as pool:
        pool.terminate()
        pool.map(nothing, [])


@case
def pool_entered_closed(mp):
    pool = mp.Pool(1)
    pool.close()
    try:
        pool.__enter__()
    finally:
        pool.terminate()


@case
def pool_joined_running(mp):
    with mp.Pool(1) as pool:
        pool.join()


@case
def pool_imap_chunksize(mp):
    with mp.Pool(1) as pool:
        pool.imap(nothing, [1], chunksize=0)


@case
def pool_imap_unordered_chunksize(mp):
    with mp.Pool(1) as pool:
        pool.imap_unordered(nothing, [1], chunksize=-1)


@case
def pool_map_not_iterable(mp):
    with mp.Pool(1) as pool:
        pool.map(nothing, 3)


@case
def pool_task_fails(mp):
    with mp.Pool(1) as pool:
        pool.apply(fail, ("why",))


@case
def pool_map_fails(mp):
    with mp.Pool(1) as pool:
        pool.map(fail, ["why", "and this"])


@case
def pool_imap_fails(mp):
    with mp.Pool(1) as pool:
        list(pool.imap(fail, ["why"]))


@case
def pool_unpicklable_result(mp):
    with mp.Pool(1) as pool:
        pool.apply(threading.Lock)


@case
def pool_unpicklable_task(mp):
    with mp.Pool(1) as pool:
        pool.apply(nothing, (threading.Lock(),))


@case
def pool_result_not_ready(mp):
    with mp.Pool(1) as pool:
        late = importlib.import_module(mp.package + ".pool").AsyncResult(pool, None, None)
        late.successful()


@case
def pool_result_times_out(mp):
    with mp.Pool(1) as pool:
        late = importlib.import_module(mp.package + ".pool").AsyncResult(pool, None, None)
        late.get(0.01)


@case
def pool_imap_times_out(mp):
    with mp.Pool(1) as pool:
        late = importlib.import_module(mp.package + ".pool").IMapIterator(pool)
        late.next(0.01)


@case
def pickle_a_pool(mp):
    with mp.Pool(1) as pool:
        pickle.dumps(pool)


@case
def pool_repr(mp):
    with mp.Pool(1) as pool:
        return pool


@case
def pool_repr_terminated(mp):
    pool = mp.Pool(1)
    pool.terminate()
    return pool


# ---- managers, util and the rest -------------------------------------------------------------


@case
def manager_not_started(mp):
    importlib.import_module(mp.package + ".managers").SyncManager(ctx=mp.context).list()


@case
def manager_started_twice(mp):
    manager = importlib.import_module(mp.package + ".managers").SyncManager(ctx=mp.context)
    manager.start()
    try:
        manager.start()
    finally:
        manager.shutdown()


@case
def manager_used_after_shutdown(mp):
    manager = importlib.import_module(mp.package + ".managers").SyncManager(ctx=mp.context)
    manager.start()
    manager.shutdown()
    manager.list()


@case
def manager_with_uncallable_initializer(mp):
    manager = importlib.import_module(mp.package + ".managers").SyncManager(ctx=mp.context)
    manager.start(initializer=3)


@case
def manager_error_from_the_server(mp):
    with importlib.import_module(mp.package + ".managers").SyncManager(ctx=mp.context) as manager:
        manager.list()[0]


@case
def manager_unknown_serializer(mp):
    importlib.import_module(mp.package + ".managers").SyncManager(serializer="json")


@case
def register_after_fork_of_int(mp):
    importlib.import_module(mp.package + ".util").register_after_fork(3, nothing)


@case
def finalize_of_none_without_priority(mp):
    importlib.import_module(mp.package + ".util").Finalize(None, nothing)


@case
def finalize_with_text_as_priority(mp):
    importlib.import_module(mp.package + ".util").Finalize(None, nothing, exitpriority="1")


@case
def spawning_is_asserted(mp):
    importlib.import_module(mp.package + ".context").assert_spawning(3)


@case
def log_to_stderr_of_unknown_level(mp):
    mp.module.log_to_stderr("NONSENSE")


@case
def cpu_count_type(mp):
    return type(mp.module.cpu_count()).__name__


class Package:
    """The package's names; those of the chosen start method where there are two."""

    def __init__(self, package, method):
        self.package = package
        self.method = method
        self.module = importlib.import_module(package)
        self.context = self.module.get_context(method)

    def __getattr__(self, name):
        return getattr(self.context, name)


def main(package, method):
    warnings.simplefilter("ignore")
    sys.stderr = io.StringIO()  # the tracebacks of children's errors
    mp = Package(package, method)
    return {name: outcome(functools.partial(function, mp)) for name, function in CASES.items()}


if __name__ == "__main__":
    result = main(*sys.argv[1:])
    json.dump(result, sys.stdout)
