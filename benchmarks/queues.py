"""What queues cost: multiprocessing against mproc_ext, and faster-fifo where that is installed.

    python benchmarks/queues.py [--rounds N] [--only WORD]

Every case of every library runs in a process of its own; rounds are interleaved, so that what else
the machine does meets all.  A row shows the median over the rounds, and the ratio.  All processes
of a case have been started, and wait, before the time begins.  Run it in a virtual environment
with the package installed, on a machine that is idle.
"""

import importlib.util
import time

from cases import DICT, fork, run_cases, timed

PEER = "faster_fifo"


def queue_of(library, size, **options):
    """A queue of the library with room for at least a thousand messages of that size.

    The options are for ours: the others have none of them.
    """
    if library == PEER:
        return importlib.import_module(PEER).Queue(max_size_bytes=max(64 * size, 1_000_000))
    context = importlib.import_module(library).get_context("fork")
    return context.Queue(**options) if library == "mproc_ext" else context.Queue()


def put(queue, message, count, go):
    go.wait()
    for _ in range(count):
        queue.put(message)


def get(queue, count, go):
    go.wait()
    for _ in range(count):
        queue.get()


def get_and_read(queue, count, go):
    """Looks at a number of every page, as nothing has been copied where it lies on loan."""
    go.wait()
    for _ in range(count):
        assert queue.get()[::512].sum() > 0


def echo(there, back, count, go):
    go.wait()
    for _ in range(count):
        back.put(there.get())


def stream(library, count, message, size, pairs=1, get=get, **options):
    """Producers and consumers, as many of these as of those."""
    queue, each = queue_of(library, size, **options), max(count // pairs, 1)
    go = fork.Barrier(2 * pairs + 1)
    processes = [fork.Process(target=put, args=(queue, message, each, go)) for _ in range(pairs)]
    processes += [fork.Process(target=get, args=(queue, each, go)) for _ in range(pairs)]
    return timed(processes, go) / (each * pairs)


def round_trip(library, count):
    there, back = queue_of(library, 100), queue_of(library, 100)
    go = fork.Barrier(2)
    process = fork.Process(target=echo, args=(there, back, count, go))
    process.start()
    go.wait()
    begin = time.perf_counter()
    for number in range(count):
        there.put(number)
        back.get()
    spent = time.perf_counter() - begin
    process.join()
    return spent / count


def alone(library, count):
    queue = queue_of(library, 100)
    queue.put(0)
    queue.get()
    begin = time.perf_counter()
    for number in range(count):
        queue.put(number)
        queue.get()
    return (time.perf_counter() - begin) / count


def make(library, count):
    begin = time.perf_counter()
    for _ in range(count):
        queue_of(library, 100)
    return (time.perf_counter() - begin) / count


def array(megabytes):
    return importlib.import_module("numpy").ones(megabytes << 17)


CASES = {
    "int": ("a small int, 1 producer, 1 consumer", lambda *a: stream(*a, 7, 100), 2000),
    "int 4": ("a small int, 4 producers, 4 consumers", lambda *a: stream(*a, 7, 100, 4), 2000),
    "str": ("a str of 10 characters", lambda *a: stream(*a, "0123456789", 100), 2000),
    "dict": ("a dict of 6 keys", lambda *a: stream(*a, DICT, 400), 2000),
    "floats": (
        "a list of 1,000 floats",
        lambda *a: stream(*a, [float(i) for i in range(1000)], 10_000),
        500,
    ),
    "bytes": ("bytes of 1 MB", lambda *a: stream(*a, bytes(1 << 20), 1 << 20), 50),
    "numpy": ("a numpy array of 16 MB", lambda *a: stream(*a, array(16), 16 << 20), 5),
    "numpy read": (
        "the same, and a number of each page is read",
        lambda *a: stream(*a, array(16), 16 << 20, get=get_and_read),
        5,
    ),
    "numpy lent": (
        "the same, with `zero_copy`",
        lambda *a: stream(*a, array(16), 16 << 20, get=get_and_read, zero_copy=True),
        5,
    ),
    "round trip": ("a small int there and back", round_trip, 500),
    "alone": ("put() and get() in one process", alone, 2000),
    "make": ("making a Queue", make, 50),
}


def can_run(name):
    """Whether there is what a case needs, or a peer."""
    module = "numpy" if "numpy" in name else name
    return module not in ("numpy", PEER) or importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    run_cases(__doc__, CASES, peers=[PEER], can_run=can_run)
