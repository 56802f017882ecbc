"""What pools cost: multiprocessing against mproc_ext, and billiard, mpire, pebble, loky and joblib.

    python benchmarks/pools.py [--rounds N] [--only WORD]

The peers stand beside the two where they are installed (the extra `benchmarks`) and have the case;
loky and pebble are executors, and have the rows of those.  Every case of every library runs in a
process of its own; rounds are interleaved, so that what else the machine does meets all.  A row
shows the median over the rounds, and the ratio.  A pool has two workers, which are forked (by loky
and joblib in their own way, as they advise against fork), and which have done some tasks before the
time begins.  All libraries do the same number of tasks; quick ones do them all again until the time
is long enough.  Run it in a virtual environment with the package installed, on a machine that is
idle.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

from cases import LEAST
from rounds import LIBRARIES, parser, print_heading, run_round
from tasks import add, is_odd, length, negative, same, worker

WORKERS = 2
MANY = 20_000
MILLION = 1_000_000
MEGABYTE = bytes(1 << 20)
NUMBERS = list(range(MANY))
PAIRS = [(number, 1) for number in NUMBERS]
STARTS = 10  # pools that are started and stopped in one turn
IDLE = 5  # seconds

# ---- Pools and executors -----------------------------------------------------------------------


def context_of(library):
    return importlib.import_module(library).get_context("fork")


@contextlib.contextmanager
def mpire_pool():
    mpire = importlib.import_module("mpire")
    with mpire.WorkerPool(WORKERS, start_method="fork", keep_alive=True) as pool:

        def named(method, default):
            # A task of several arguments is a tuple: starmap() is map().
            return lambda function, items, chunksize=default: method(
                function, items, chunk_size=chunksize
            )

        yield SimpleNamespace(
            map=named(pool.map, None),
            starmap=named(pool.map, None),
            imap=named(pool.imap, 1),
            imap_unordered=named(pool.imap_unordered, 1),
            apply=pool.apply,
            apply_async=pool.apply_async,
        )


@contextlib.contextmanager
def joblib_pool():
    """Its workers stay from one Parallel to the next."""
    joblib = importlib.import_module("joblib")

    def named(default, returned):
        def run(function, items, chunksize=default):
            parallel = joblib.Parallel(WORKERS, batch_size=chunksize, return_as=returned)
            return parallel(map(joblib.delayed(function), items))

        return run

    yield SimpleNamespace(
        map=named("auto", "list"),
        imap=named(1, "generator"),
        imap_unordered=named(1, "generator_unordered"),
    )


@contextlib.contextmanager
def pebble_executor():
    pebble = importlib.import_module("pebble")
    with pebble.ProcessPool(WORKERS, context=context_of("multiprocessing")) as pool:
        yield SimpleNamespace(
            map=lambda function, items, chunksize: pool.map(
                function, items, chunksize=chunksize
            ).result(),
            submit=lambda function, *args: pool.schedule(function, args),
        )


def executor_of(library):
    if library == "pebble":
        return pebble_executor()
    if library == "loky":
        return importlib.import_module(library).ProcessPoolExecutor(WORKERS)
    ours = library == "mproc_ext"
    futures = importlib.import_module("mproc_ext.futures") if ours else concurrent.futures
    return futures.ProcessPoolExecutor(WORKERS, mp_context=context_of(library))


@contextlib.contextmanager
def executor_as_pool(library):
    with executor_of(library) as executor:
        yield SimpleNamespace(
            map=lambda function, items, chunksize: list(
                executor.map(function, items, chunksize=chunksize)
            )
        )


def pool_of(library):
    if library == "mpire":
        return mpire_pool()
    if library == "joblib":
        return joblib_pool()
    if library in ("loky", "pebble"):
        return executor_as_pool(library)
    return context_of(library).Pool(WORKERS)


# ---- What they do: of a pool and a count, how many tasks have been done ------------------------


def count_of(iterable):
    return sum(1 for _ in iterable)


def iterator(count):
    """Numbers that nobody can tell the count of."""
    return itertools.islice(itertools.count(), count)


def apply_one_by_one(pool, count):
    for number in range(count):
        pool.apply(negative, (number,))
    return count


def get_one_by_one(pool, count):
    for number in range(count):
        pool.apply_async(negative, (number,)).get()
    return count


def get_all(pool, count):
    results = [pool.apply_async(negative, (number,)) for number in range(count)]
    return len([result.get() for result in results])


def submit_one_by_one(executor, count):
    for number in range(count):
        executor.submit(negative, number).result()
    return count


def as_completed(executor, count):
    futures = [executor.submit(negative, number) for number in range(count)]
    return len([future.result() for future in concurrent.futures.as_completed(futures)])


# ---- Measures: of a library, a number ----------------------------------------------------------


def timed(work, count, make=pool_of):
    """What measures the microseconds of a task in a pool that is warm."""

    def measure(library):
        with make(library) as pool:
            work(pool, count // 10)
            spent = turns = 0
            while spent < LEAST:
                begin = time.perf_counter()
                done = work(pool, count)
                spent += time.perf_counter() - begin
                turns += 1
                assert done == count, done
        return spent / (turns * count) * 1e6

    return measure


def start(library):
    with pool_of(library):
        pass


def start_and_map(library):
    with pool_of(library) as pool:
        pool.map(negative, range(WORKERS), chunksize=1)


def timed_start(function):
    """What measures the milliseconds of a start and stop, without the first: that one imports."""

    def measure(library):
        function(library)
        begin = time.perf_counter()
        for _ in range(STARTS):
            function(library)
        return (time.perf_counter() - begin) / STARTS * 1e3

    return measure


def processor_time(pid):
    """Seconds that all threads of a process have had of a processor."""
    return time.clock_gettime(~pid << 3 | 2)  # the clock that clock_getcpuclockid() names


def idle(library):
    """The share of a processor, in %, that a worker takes with nothing to do."""
    with pool_of(library) as pool:
        pids = set()
        while len(pids) < WORKERS:
            pids.update(pool.map(worker, range(100), chunksize=1))
        time.sleep(1)
        before, begin = sum(map(processor_time, pids)), time.perf_counter()
        time.sleep(IDLE)
        spent = sum(map(processor_time, pids)) - before
        return spent / (time.perf_counter() - begin) / len(pids) * 100


def peak():
    """Bytes of memory that this process has had at the most."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024


def memory(library):
    """Bytes of the parent's for each task of a large map.

    The results are True and False, of which there is one each: they take no more than their list.
    """
    with pool_of(library) as pool:
        pool.map(is_odd, range(1000), chunksize=1)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak is what there is now
        before = peak()
        results = pool.map(is_odd, range(MILLION), chunksize=1)
        grown = peak() - before
        assert len(results) == MILLION
        return (grown - sys.getsizeof(results)) / MILLION


# ---- Rounds and rows ---------------------------------------------------------------------------


@dataclasses.dataclass
class Case:
    title: str
    measure: Callable
    has_ratio: bool = True
    rounds: int | None = None  # as many as the options say


CASES = {
    "map 1": Case(
        "map(), chunksize 1",
        timed(lambda pool, n: len(pool.map(negative, range(n), chunksize=1)), MANY),
    ),
    "map": Case(
        "map() of 1,000,000, default chunks",
        timed(lambda pool, n: len(pool.map(negative, range(n))), MILLION),
    ),
    "imap": Case(
        "imap() of a list",
        timed(lambda pool, n: count_of(pool.imap(negative, NUMBERS[:n])), MANY),
    ),
    "imap iterator": Case(
        "imap() of an iterator",
        timed(lambda pool, n: count_of(pool.imap(negative, iterator(n))), MANY),
    ),
    "unordered": Case(
        "imap_unordered() of a list",
        timed(lambda pool, n: count_of(pool.imap_unordered(negative, NUMBERS[:n])), MANY),
    ),
    "unordered iterator": Case(
        "imap_unordered() of an iterator",
        timed(lambda pool, n: count_of(pool.imap_unordered(negative, iterator(n))), MANY),
    ),
    "starmap": Case(
        "starmap(), chunksize 1",
        timed(lambda pool, n: len(pool.starmap(add, PAIRS[:n], chunksize=1)), MANY),
    ),
    "apply": Case("apply()", timed(apply_one_by_one, 2000)),
    "apply get": Case("apply_async(), then get(), one by one", timed(get_one_by_one, 2000)),
    "apply many": Case("apply_async() of all, then get()", timed(get_all, MANY)),
    "send MB": Case(
        "map() of bytes of 1 MB to their length, chunksize 1",
        timed(lambda pool, n: len(pool.map(length, [MEGABYTE] * n, chunksize=1)), 100),
    ),
    "MB back": Case(
        "the same, the bytes come back",
        timed(lambda pool, n: len(pool.map(same, [MEGABYTE] * n, chunksize=1)), 100),
    ),
    "start": Case("start and stop of a Pool(2), ms", timed_start(start)),
    "start tasks": Case("the same with two tasks done, ms", timed_start(start_and_map)),
    "executor map": Case(
        "executor: map(), chunksize 1",
        timed(lambda e, n: count_of(e.map(negative, range(n), chunksize=1)), MANY, executor_of),
    ),
    "executor chunks": Case(
        "executor: map() of 1,000,000, chunksize 1,000",
        timed(
            lambda e, n: count_of(e.map(negative, range(n), chunksize=1000)), MILLION, executor_of
        ),
    ),
    "executor submit": Case(
        "executor: submit(), then result(), one by one",
        timed(submit_one_by_one, 2000, executor_of),
    ),
    "executor completed": Case(
        "executor: submit() of all, then as_completed()",
        timed(as_completed, MANY, executor_of),
    ),
    "idle": Case("an idle worker, % of a processor", idle, has_ratio=False),
    "memory": Case(
        "the parent's memory for a task of a map() of 1,000,000, chunksize 1, bytes (one round)",
        memory,
        has_ratio=False,
        rounds=1,
    ),
}

# What they have.  A million tasks one by one take minutes with the others, or gigabytes.
IMAPS = ["imap", "imap iterator", "unordered", "unordered iterator"]
MAPS = ["send MB", "MB back", "idle"]
EXECUTORS = [name for name in CASES if name.startswith("executor")]
PEERS = {
    "billiard": [name for name in CASES if name not in EXECUTORS],
    "mpire": [name for name in CASES if name not in EXECUTORS and name not in ("start", "memory")],
    "pebble": [*EXECUTORS, *MAPS, "start tasks"],
    "loky": [*EXECUTORS, *MAPS, "start tasks"],
    "joblib": ["map 1", "map", *IMAPS, *MAPS],
}


def can_run(library, name):
    if library in PEERS:
        return name in PEERS[library]
    if library == "mproc_ext" and name in EXECUTORS:
        return importlib.util.find_spec("mproc_ext.futures") is not None
    return True


def shown(number):
    if number is None:
        return ""
    return f"{number:,.0f}" if number >= 1000 else f"{number:.3g}"


def run_case(name, libraries, rounds):
    """{library: the median of its rounds}, for those that can run the case."""
    found = {library: [] for library in libraries if can_run(library, name)}
    for _ in range(rounds):
        for library, numbers in found.items():
            numbers.append(run_round(library, name)[0])
    return {library: statistics.median(numbers) for library, numbers in found.items()}


def main():
    options = parser(__doc__, 5, (*LIBRARIES, *PEERS))
    options.add_argument("--only", default="", help="cases that have this word in their names")
    args = options.parse_args()
    if args.case:
        print(CASES[args.case].measure(args.library))
        return

    peers = [name for name in PEERS if importlib.util.find_spec(name) is not None]
    print_heading(args.rounds, peers)
    columns = [*LIBRARIES, "faster", *peers]
    print(f"| us a task | {' | '.join(columns)} |\n|---|{'--:|' * len(columns)}")
    for name, case in CASES.items():
        if args.only not in name:
            continue
        found = run_case(name, (*LIBRARIES, *peers), case.rounds or args.rounds)
        cells = {library: shown(found.get(library)) for library in (*LIBRARIES, *peers)}
        theirs, ours = (found.get(library) for library in LIBRARIES)
        cells["faster"] = f"**{theirs / ours:.3g}x**" if case.has_ratio and ours else ""
        print(f"| {case.title} | {' | '.join(cells[column] for column in columns)} |", flush=True)


if __name__ == "__main__":
    main()
