"""Index the standard library's source files: once with multiprocessing, once with mproc_ext.

    python examples/index_stdlib.py [--files N] [--method METHOD] [--workers N] [--rounds N]

The index says of every name in the running Python's standard library in how many files and on
how many lines it stands. It is built in two ways, each with either package:

Pool.map    The workers of a Pool read and tokenize the files. A Lock guards two Values, files
            and lines done, which must agree with each other whenever the parent looks at them to
            show how far the work is.

pipeline    Indexer Processes take the files' paths from one Queue and put what they found on a
            second one. A collector Process merges that, and talks to the parent through a Pipe:
            it is told how many files to expect, and sends the finished index back.

The functions below never name a package: they get it as the argument `mp`. All of the indexes
must be equal; the exit status is 1 if any two differ.
"""

import argparse
import collections
import contextlib
import importlib
import keyword
import os
import pathlib
import platform
import sys
import sysconfig
import time
import tokenize

PACKAGES = ("multiprocessing", "mproc_ext")
NOT_INDEXED = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}

# In a Pool's workers: the Lock and the two Values that it guards, set by `start_worker`.
progress = None


def source_files(limit=None):
    """The paths of the standard library's source files, without its tests."""
    root = pathlib.Path(sysconfig.get_path("stdlib"))
    found = sorted(
        str(path)
        for path in root.rglob("*.py")
        if NOT_INDEXED.isdisjoint(path.relative_to(root).parts)
    )
    return found[:limit]


def index_file(path):
    """How many lines a file has, and on how many of them each name stands."""
    names = collections.Counter()
    last_line, seen = 0, set()
    try:
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
                    if token.start[0] != last_line:
                        names.update(seen)
                        last_line, seen = token.start[0], set()
                    seen.add(token.string)
    except (SyntaxError, UnicodeDecodeError, tokenize.TokenError):
        return 0, {}  # a file in another dialect, or a test's broken one: it has no names
    names.update(seen)
    return token.end[0] - 1, dict(names)


class Index:
    """name -> (files, lines), and the sums over everything that was added."""

    def __init__(self):
        self.names = {}
        self.files = self.lines = 0

    def add(self, lines, names):
        self.files += 1
        self.lines += lines
        for name, count in names.items():
            files, total = self.names.get(name, (0, 0))
            self.names[name] = files + 1, total + count

    def __eq__(self, other):
        return vars(self) == vars(other)


# ---- with a Pool, a Lock and Values ----------------------------------------------------------


def start_worker(*shared):
    global progress
    progress = shared


def index_with_progress(path):
    lines, names = index_file(path)
    lock, files_done, lines_done = progress
    with lock:  # both or none: whoever holds the lock sees two numbers that belong together
        files_done.value += 1
        lines_done.value += lines
    return lines, names


def index_with_pool(mp, paths, workers, show):
    lock = mp.Lock()
    files_done = mp.Value("i", 0, lock=False)
    lines_done = mp.Value("i", 0, lock=False)
    index = Index()
    with mp.Pool(workers, start_worker, (lock, files_done, lines_done)) as pool:
        result = pool.map_async(index_with_progress, paths)
        while not result.ready():
            result.wait(0.2)
            with lock:
                show(f"{files_done.value} of {len(paths)} files, {lines_done.value:,} lines")
        for lines, names in result.get():
            index.add(lines, names)
        pool.close()
        pool.join()
    if (files_done.value, lines_done.value) != (index.files, index.lines):
        raise RuntimeError("the shared progress is not what the workers did")
    return index


# ---- with Processes, Queues and a Pipe -------------------------------------------------------


def indexer(paths, found):
    """Index what comes from one Queue into another, until None comes."""
    for path in iter(paths.get, None):
        found.put(index_file(path))


def collector(found, to_parent):
    """Merge what is found, as many files as the parent says, and send it the index."""
    index = Index()
    expected = to_parent.recv()
    while index.files < expected:
        index.add(*found.get())
    to_parent.send(index)
    to_parent.close()


def index_with_pipeline(mp, paths, workers, show):
    ours, theirs = mp.Pipe()
    to_index, found = mp.Queue(), mp.Queue()
    children = [mp.Process(target=collector, args=(found, theirs), name="collector")]
    for number in range(workers):
        children.append(
            mp.Process(target=indexer, args=(to_index, found), name=f"indexer-{number}")
        )
    try:
        for child in children:
            child.start()
        theirs.close()  # the collector has its own: when that is closed, `recv` here ends too
        ours.send(len(paths))
        for path in paths:
            to_index.put(path)
        for _ in range(workers):
            to_index.put(None)
        show("waiting for the collector")
        index = receive(mp, ours, children)
        for child in children:
            child.join()
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
                child.join()
        for queue in (to_index, found):
            queue.close()
            queue.join_thread()
        ours.close()
    return index


def receive(mp, connection, children):
    """What comes through the connection; RuntimeError if one of the children fails before."""
    running = list(children)
    while True:
        ready = mp.connection.wait([connection, *(child.sentinel for child in running)])
        for child in [child for child in running if child.sentinel in ready]:
            child.join()
            running.remove(child)
            if child.exitcode:
                raise RuntimeError(f"{child.name} ended with exit status {child.exitcode}")
        if connection in ready:
            return connection.recv()


# ---- how long it takes -----------------------------------------------------------------------


def nothing():
    """What a process does whose start is measured."""


def start_processes(mp, count):
    """Start processes and wait for them, one after the other."""
    for _ in range(count):
        child = mp.Process(target=nothing)
        child.start()
        child.join()
        if child.exitcode:
            raise RuntimeError(f"{child.name} ended with exit status {child.exitcode}")
        child.close()


def steps(args, paths, show):
    """(what it is, how many times per run, the function, its start method)"""
    workers = args.workers

    def pool(mp):
        return index_with_pool(mp, paths, workers, show)

    def pipeline(mp):
        return index_with_pipeline(mp, paths, workers, show)

    yield "Pool.map of the files", 1, pool, args.method
    yield "pipeline of Processes", 1, pipeline, args.method
    for method, count in (("fork", 20), ("forkserver", 20), ("spawn", 5)):

        def start(mp, count=count):
            start_processes(mp, count)

        yield f"a process, {method}", count, start, method


def run(packages, args, paths, show):
    """Run every step with every package in turn; return the indexes and the best times."""
    indexes, times = [], {}
    for title, count, step, method in steps(args, paths, show):
        contexts = {name: Package(package, method) for name, package in packages.items()}
        if method == "forkserver":  # the server's own start is not what is measured
            for mp in contexts.values():
                start_processes(mp, 1)
        for number in range(args.rounds):
            for name, mp in contexts.items():
                show(f"{title}, {name}, round {number + 1}")
                began = time.perf_counter()
                index = step(mp)
                took = (time.perf_counter() - began) / count
                times.setdefault(title, {}).setdefault(name, []).append(took)
                if index is not None:
                    indexes.append(index)
    best = {title: {name: min(all) for name, all in row.items()} for title, row in times.items()}
    return indexes, best


class Package:
    """A package's names, those that depend on the start method for one start method."""

    def __init__(self, package, method):
        self._context = package.get_context(method)
        self.connection = importlib.import_module(f"{package.__name__}.connection")

    def __getattr__(self, name):
        return getattr(self._context, name)


def print_table(times):
    first, second = PACKAGES
    print(f"{'best time, ms':24}{first:>16}{second:>12}{'ratio':>9}")
    for title, row in times.items():
        a, b = row[first], row[second]
        print(f"{title:24}{a * 1e3:16.2f}{b * 1e3:12.2f}{a / b:8.2f}x")


def progress_line(text):
    """Show one line that the next one replaces, where somebody looks."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, metavar="N", help="index only the first N files")
    parser.add_argument(
        "--method",
        choices=("fork", "spawn", "forkserver"),
        help="start method of the Pool and the pipeline (default: this Python's)",
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="the best one counts")
    args = parser.parse_args()
    if min(args.workers, args.rounds) < 1 or (args.files is not None and args.files < 1):
        parser.error("--files, --workers and --rounds are at least 1")

    try:
        packages = {name: importlib.import_module(name) for name in PACKAGES}
    except ImportError as error:
        print(f"{error}; install it first: make demo does", file=sys.stderr)
        return 2
    stdlib, ours = packages.values()
    if stdlib is ours:
        print("`import multiprocessing` means mproc_ext here: nothing to compare", file=sys.stderr)
        return 2

    paths = source_files(args.files)
    if not paths:
        print(f"no source files in {sysconfig.get_path('stdlib')}", file=sys.stderr)
        return 2
    with contextlib.ExitStack() as at_end:
        at_end.callback(progress_line, "")
        indexes, times = run(packages, args, paths, progress_line)

    index = indexes[0]
    method = args.method or stdlib.get_start_method()
    print(
        f"Python {platform.python_version()}, mproc_ext {ours.__version__}"
        f" ({'accelerated' if ours.ACCELERATED else 'not accelerated: the stdlib itself'}),"
        f" {platform.system()} {platform.release()}, {os.cpu_count()} CPUs"
    )
    print(
        f"{index.files} files, {index.lines:,} lines, {len(index.names):,} names;"
        f" {args.workers} workers, start method {method}, best of {args.rounds}"
    )
    common = sorted(index.names, key=lambda name: (-index.names[name][1], name))[:5]
    print("most lines:", ", ".join(f"{name} {index.names[name][1]:,}" for name in common))
    print()
    print_table(times)
    print()
    if any(other != index for other in indexes):
        print("The indexes DIFFER.")
        return 1
    print(f"All {len(indexes)} indexes are equal.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
