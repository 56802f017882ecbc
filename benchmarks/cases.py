"""What benchmarks share whose cases take microseconds: a table of them, with all libraries side by
side, and processes that begin at the same moment.

A case is (the row's title, what measures: of a library and a count, seconds each; the first count).
"""

import multiprocessing
import statistics
import time

from rounds import LIBRARIES, parser, print_heading, run_round

LEAST = 0.3  # seconds that a measurement takes
DICT = {"id": 1, "name": "x", "price": 1.5, "tags": None, "ok": True, "n": 2**40}

# The time of a case is taken by processes of the stdlib's, so that nothing else differs.
fork = multiprocessing.get_context("fork")


def timed(processes, go):
    """Seconds from the moment that all have been started, and wait at the barrier."""
    for process in processes:
        process.start()
    go.wait()
    begin = time.perf_counter()
    for process in processes:
        process.join()
        assert process.exitcode == 0, process.exitcode
    return time.perf_counter() - begin


def measure(case, library):
    """Microseconds of one, measured for long enough."""
    _, function, count = case
    each = function(library, count)
    if each * count < LEAST:
        each = function(library, int(LEAST / each) + 1)
    return each * 1e6


def run_cases(doc, cases, *, peers=(), can_run=lambda name: True):
    """The whole program: a row for each of the cases, {name: case}, that can run here."""
    options = parser(doc, 5, (*LIBRARIES, *peers))
    options.add_argument("--only", default="", help="cases that have this word in their names")
    options = options.parse_args()
    if options.case:
        print(measure(cases[options.case], options.library))
        return
    print_heading(options.rounds)
    libraries = (*LIBRARIES, *filter(can_run, peers))
    print(f"| us | {' | '.join(libraries)} | faster |\n|---|{'--:|' * (len(libraries) + 1)}")
    for name, (title, *_) in cases.items():
        if options.only not in name or not can_run(name):
            continue
        rounds = [
            [run_round(library, name)[0] for library in libraries] for _ in range(options.rounds)
        ]
        found = [statistics.median(column) for column in zip(*rounds, strict=True)]
        figures = " | ".join(f"{number:.3g}" for number in found)
        print(f"| {title} | {figures} | **{found[0] / found[1]:.3g}x** |", flush=True)
