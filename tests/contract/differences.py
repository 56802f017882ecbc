"""What of mproc_ext may differ from the running Python's multiprocessing, and why.

The contract tests compare everything that facts.py finds.  A difference that is not here fails
them, and so does an entry here that differs no more.
"""

# name, as the tests print it: group/fact -> reason
DIFFERENCES = {
    "(package)/ACCELERATED": "beyond the stdlib: whether the core in C is used",
    "(package)/install": "beyond the stdlib: makes `multiprocessing` mean this package",
}

METHODS = ("", "'fork'", "'spawn'", "'forkserver'")  # as they are in the tests' names

# The classes that start processes are C types: what the stdlib sets on their instances is a
# descriptor.
for popen in ("popen_fork", "popen_spawn_posix", "popen_forkserver"):
    for name in ("__new__", "__new__ signature", "pid", "returncode", "sentinel"):
        DIFFERENCES[f"{popen}/Popen.{name}"] = "Popen is a type in C"

# Acting on children that somebody else has waited for.
for method in ("fork", "spawn"):
    for case in ("child_that_another_reaped", "children_that_nobody_reaps"):
        DIFFERENCES[f"misuse/{method}/{case}"] = (
            "the stdlib calls a child that it lost alive for ever; ours has ended, with exit code "
            "255, which is what the stdlib's forkserver says of a child that it lost"
        )

DIFFERENCES["context/_concrete_contexts"] = (
    "a dict that also puts into the stdlib's what another library registers"
)

# Locks, conditions and events are types in C, whose state is a slot of shared memory.
for kind in ("SemLock", "Lock", "RLock", "Semaphore", "BoundedSemaphore"):
    for name in ("acquire", "acquire signature", "release", "release signature"):
        DIFFERENCES[f"synchronize/{kind}.{name}"] = (
            "a method; the stdlib sets an attribute of that name and signature on each object"
        )
    for name in ("__enter__", "__exit__", "locked"):
        DIFFERENCES[f"synchronize/{kind}.{name} signature"] = "a method in C: self has no name"
DIFFERENCES["synchronize/SemLock._make_methods signature"] = "a method in C: self has no name"
for name in ("__enter__", "__exit__", "wait", "notify"):
    DIFFERENCES[f"synchronize/Condition.{name} signature"] = "a method in C: self has no name"
for name in ("acquire", "release"):
    for group in ("synchronize/Condition.", "Condition()/"):
        DIFFERENCES[f"{group}{name}"] = (
            "set on each object as in the stdlib, which keeps it in its own structure"
        )
for name in ("set", "clear", "is_set", "wait"):
    DIFFERENCES[f"synchronize/Event.{name} signature"] = "a method in C: self has no name"
for name in ("__getstate__", "__setstate__"):
    for fact in (name, f"{name} signature"):
        DIFFERENCES[f"synchronize/Event.{fact}"] = (
            "pickles itself; the stdlib's is made of a condition and a semaphore that do"
        )
DIFFERENCES["Lock()._semlock/bases"] = "a type in C, too, but ours"
for method in ("fork", "spawn", "forkserver"):
    DIFFERENCES[f"misuse/{method}/pickle_an_event"] = (
        "names the event; the stdlib names the condition that its event is made of"
    )

# So are the wrappers of shared ctypes objects, whose items are got and set in C.
for kind in ("SynchronizedBase", "Synchronized", "SynchronizedArray", "SynchronizedString"):
    for name in ("acquire", "release"):
        DIFFERENCES[f"sharedctypes/{kind}.{name}"] = "the stdlib has it in the object's dict"
    for name in ("__setattr__", "__delattr__"):
        for fact in (name, f"{name} signature"):
            DIFFERENCES[f"sharedctypes/{kind}.{fact}"] = "what C relies on may be replaced"
for kind in ("SynchronizedArray", "SynchronizedString"):
    for name in ("__getitem__", "__setitem__", "__len__"):
        DIFFERENCES[f"sharedctypes/{kind}.{name} signature"] = "a method in C: other names"
    for fact in ("__delitem__", "__delitem__ signature"):
        DIFFERENCES[f"sharedctypes/{kind}.{fact}"] = "comes with __setitem__ in C; raises the same"
for instance in ("Value('i')", "Value(c_char)", "Array('i', 2)", "Array('c', 2)"):
    for name in ("acquire", "release"):
        DIFFERENCES[f"{instance}/{name}"] = "the stdlib has it in the object's dict"
for method in ("fork", "spawn", "forkserver"):
    DIFFERENCES[f"misuse/{method}/pickle_a_raw_value"] = (
        "a TypeError that says what to do; the stdlib's names the mmap inside"
    )

# Queues are types in C.
for kind, methods in {
    "Queue": "put put_nowait get get_nowait qsize empty full",
    "JoinableQueue": "put put_nowait get get_nowait qsize empty full",
    "SimpleQueue": "put get empty",
}.items():
    for name in methods.split():
        DIFFERENCES[f"queues/{kind}.{name} signature"] = "a method in C: self has no name"
    for fact in ("__new__", "__new__ signature"):
        DIFFERENCES[f"queues/{kind}.{fact}"] = "a type in C"
for kind in ("Queue", "JoinableQueue"):
    for name in ("put_many", "get_many", "shutdown", "stats", "__iter__"):
        for fact in (name, f"{name} signature"):
            DIFFERENCES[f"queues/{kind}.{fact}"] = "beyond the stdlib"
        if name != "__iter__":
            DIFFERENCES[f"{kind}()/{name}"] = "beyond the stdlib"

# So are connections.
for name in (
    "__del__ __enter__ __exit__ close fileno poll recv recv_bytes recv_bytes_into send send_bytes"
).split():
    DIFFERENCES[f"connection/Connection.{name} signature"] = "a method in C: self has no name"
for name in ("__new__", "__setattr__", "__delattr__", "__getstate__", "__setstate__"):
    for fact in (name, f"{name} signature"):
        DIFFERENCES[f"connection/Connection.{fact}"] = "a type in C"

QUEUE_KEYWORDS = "beyond the stdlib: max_bytes, zero_copy, on_death"
for kind in ("Queue", "JoinableQueue", "SimpleQueue"):
    for group in ("(package)", "queues", *(f"get_context({method})" for method in METHODS)):
        DIFFERENCES[f"{group}/{kind} signature"] = QUEUE_KEYWORDS
    for cls in ("Base", "Default", "Fork", "Spawn", "ForkServer"):
        DIFFERENCES[f"context/{cls}Context.{kind} signature"] = QUEUE_KEYWORDS

POOL_KEYWORDS = "beyond the stdlib: worker_exit, max_memory, cpus, max_restarts, cloudpickle"
for group in ("(package)", *(f"get_context({method})" for method in METHODS)):
    DIFFERENCES[f"{group}/Pool signature"] = POOL_KEYWORDS
for cls in ("Base", "Default", "Fork", "Spawn", "ForkServer"):
    DIFFERENCES[f"context/{cls}Context.Pool signature"] = POOL_KEYWORDS

# Pools have an engine in C: no queues, and no threads that go between them and the workers.
for name in (
    "_inqueue _outqueue _quick_put _quick_get _taskqueue _change_notifier "
    "_worker_handler _task_handler _result_handler"
).split():
    DIFFERENCES[f"Pool(1)/{name}"] = (
        "part of the stdlib's way, which has queues and threads; a pool whose class overrides what "
        "uses them has them"
    )
for keywords, methods in {
    "timeout, retries": "apply apply_async",
    "timeout, retries, progress": "map map_async starmap starmap_async",
    "buffersize, timeout, retries, progress": "imap imap_unordered",
}.items():
    for name in methods.split():
        for group in ("pool/Pool.", "pool/ThreadPool.", "Pool(1)/"):
            DIFFERENCES[f"{group}{name} signature"] = f"beyond the stdlib: {keywords}"
DIFFERENCES["pool/Pool signature"] = (
    "beyond the stdlib: worker_exit, max_memory, cpus, max_restarts, cloudpickle"
)
for name in ("Pool.resize", "ThreadPool.resize"):
    for fact in (name, f"{name} signature"):
        DIFFERENCES[f"pool/{fact}"] = "beyond the stdlib"
DIFFERENCES["Pool(1)/resize"] = "beyond the stdlib"
for name in ("WorkerLostError", "TaskTimeoutError", "BrokenPoolError", "current_worker"):
    DIFFERENCES[f"pool/{name}"] = "beyond the stdlib"
DIFFERENCES["pool/__all__"] = "four names beyond the stdlib's"
for call, methods in {
    "apply_async": "cancel cancelled done",
    "map_async": "cancel cancelled done",
    "imap": "cancel cancelled",
    "imap_unordered": "cancel cancelled",
}.items():
    for name in methods.split():
        DIFFERENCES[f"Pool(1).{call}/{name}"] = "beyond the stdlib"

# The forkserver is ours, and so is what it and its clients say to each other.
for name in (
    "ForkServer.connect_to_new_process signature",
    "connect_to_new_process signature",
    "MAXFDS_TO_SEND value",
    "SIGNED_STRUCT",
):
    DIFFERENCES[f"forkserver/{name}"] = "part of the server's protocol, which is another one"
DIFFERENCES["forkserver/main signature"] = "part of the server's protocol, which is another one"
DIFFERENCES["forkserver/AuthenticationError"] = "imported there by the stdlib, defined in context"
DIFFERENCES["spawn/spawn_main signature"] = "what our parent tells our child; optional, at the end"
for popen in ("popen_forkserver", "popen_spawn_posix"):
    DIFFERENCES[f"{popen}/set_spawning_popen"] = "imported there by the stdlib, defined in context"

DIFFERENCES["(package)/__all__"] = "ACCELERATED and install, beyond the stdlib's names"
DIFFERENCES["managers/listener_client"] = "a dict that falls back on the stdlib's"
DIFFERENCES["shared_memory/SharedMemory signature"] = (
    "track=None: tracked where it is created, and not where it is only attached to, which would"
    " destroy it; the stdlib's True means both"
)
DIFFERENCES["managers/MakeProxyType signature"] = "a default shows which proxies were made so far"
for method in ("fork", "spawn"):
    DIFFERENCES[f"misuse/{method}/join_with_text"] = (
        "the stdlib does not look at the timeout of a child that has ended"
    )

# Entries of DIFFERENCES that are about some Pythons only -> whether sys.version_info is one.
ONLY_ON = {
    **{
        f"synchronize/{kind}.locked signature": lambda version: version >= (3, 14)
        for kind in ("SemLock", "Lock", "RLock", "Semaphore", "BoundedSemaphore")
    },
    "forkserver/main signature": lambda version: version >= (3, 15),
    "forkserver/AuthenticationError": lambda version: version >= (3, 14),
}

# What newer Pythons' stdlib has and mproc_ext gives to older ones: since when the stdlib has it,
# and patterns for the groups and the facts.  test_newer.py says that it has to be there.
SYNC = r"(Lock|RLock|Semaphore|BoundedSemaphore|Condition|SemLock)"
NEWER = [
    ((3, 12), r"queues|context|\(package\)", r"(Joinable|Simple)?Queue\.__class_getitem__.*"),
    ((3, 12), r"(Joinable|Simple)?Queue\(\)", r"__class_getitem__.*"),
    ((3, 12), r"queues", r"Queue\._terminate_broken.*"),
    ((3, 12), r"connection|managers", r"deliver_challenge signature"),
    ((3, 13), r"managers", r"(DictProxy|ListProxy)\.__class_getitem__.*"),
    ((3, 14), r".*", r"((\w*Process|Popen)\.)?interrupt( signature)?"),
    ((3, 14), r"context|\(package\)", r"\w*Process( signature|\.__init__.*)"),
    ((3, 14), r".*", rf"({SYNC}\.)?locked( signature)?"),
    ((3, 14), r"managers", r"(AcquirerProxy|ConditionProxy)\.locked.*"),
    ((3, 14), r"managers", r"(Base)?SetProxy.*"),
    ((3, 14), r"managers", r"(SyncManager|SharedMemoryManager)\.set.*"),
    ((3, 14), r"Manager\(\)", r"set( signature)?"),
    ((3, 14), r"managers", r"(Base)?ListProxy\.(clear|copy).*"),
    ((3, 14), r"Manager\(\)\.list\(\)", r"(clear|copy).*"),
    ((3, 14), r"managers", r"(Base)?DictProxy\.(fromkeys|__reversed__|__ior__|__r?or__).*"),
    ((3, 14), r"Manager\(\)\.dict\(\)", r"(fromkeys|__reversed__|__ior__|__r?or__).*"),
    ((3, 15), r".*", r"(\w+\.)?set_forkserver_preload signature"),
    ((3, 15), r"forkserver", r"main signature"),
    ((3, 15), r"context", r"DefaultContext signature"),
]
