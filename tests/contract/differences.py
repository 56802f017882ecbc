"""What of mproc_ext may differ from the running Python's multiprocessing, and why.

The contract tests compare everything that facts.py finds.  A difference that is not here fails
them, and so does an entry here that differs no more.
"""

# name, as the tests print it: group/fact -> reason
DIFFERENCES = {
    "(package)/ACCELERATED": "beyond the stdlib: whether the core in C is used",
    "(package)/ACCELERATED value": "beyond the stdlib: whether the core in C is used",
    "(package)/install": "beyond the stdlib: makes `multiprocessing` mean this package",
    "(package)/install signature": "beyond the stdlib: makes `multiprocessing` mean this package",
}

# Entries of DIFFERENCES that are about some Pythons only -> whether sys.version_info is one.
ONLY_ON = {}

# What newer Pythons' stdlib has and mproc_ext gives to older ones: since when the stdlib has it,
# and patterns for the groups and the facts.  test_newer.py says that it has to be there.
SYNC = r"(Lock|RLock|Semaphore|BoundedSemaphore|Condition|SemLock)"
NEWER = [
    ((3, 12), r"queues|context|\(package\)", r"(Joinable|Simple)?Queue\.__class_getitem__.*"),
    ((3, 12), r"(Joinable|Simple)?Queue\(\)", r"__class_getitem__.*"),
    ((3, 12), r"connection|managers", r"deliver_challenge signature"),
    ((3, 13), r"shared_memory", r"SharedMemory signature"),
    ((3, 13), r"managers", r"(DictProxy|ListProxy)\.__class_getitem__.*"),
    ((3, 14), r".*", r"(\w*Process\.)?interrupt( signature)?"),
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
]
