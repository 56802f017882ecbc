"""What it costs to turn an object into a message and back: pickle, ForkingPickler, mproc_ext.

    python benchmarks/serialize.py [--rounds N] [--only WORD]

ForkingPickler is what multiprocessing's queues and connections use.  Every case of every way runs
in a process of its own; rounds are interleaved, so that what else the machine does meets all of
them.  A row shows the medians over the rounds of dumps and loads together, and how often ours goes
into theirs, in time of the processor: nothing here waits.  Run it in a virtual environment with the
package installed; with numpy, its arrays are measured too.

Two things to know.  `_core.dumps` copies the message once more, into a bytes object, which a queue
does not: it counts from 100 KB on.  And malloc is told to keep what is freed: whether it does so on
its own, or has the kernel give new pages each time, is luck that outweighs all else for large ones.
"""

import dataclasses
import importlib.util
import os
import time
import timeit

from rounds import medians, parser, print_heading, run_round

WAYS = {
    "pickle": "from pickle import dumps, loads",
    "forking": "from multiprocessing.reduction import ForkingPickler\n"
    "dumps, loads = ForkingPickler.dumps, ForkingPickler.loads",
    "ours": "from mproc_ext._core import dumps, loads",
}


@dataclasses.dataclass
class Record:
    id: int
    name: str
    price: float


ROW = 'dict([("id", 1), ("name", "x" * 8), ("price", 1.5), ("tags", None), ("ok", True), ("n", n)])'

# name -> (the row's title, what makes the object, how often a round runs it)
CASES = {
    "int": ("int", "12345", 200_000),
    "str": ("str(10)", "'abcdefghij'", 200_000),
    "bytes": ("bytes(10)", "b'abcdefghij'", 200_000),
    "float": ("float", "1.5", 200_000),
    "tuple": ("3-tuple", "(1, 'abc', 2.5)", 100_000),
    "dict": ("6-key dict", f"[{ROW} for n in [2**40]][0]", 50_000),
    "dicts": ("list of 100 such dicts", f"[{ROW} for n in range(100)]", 1_000),
    "floats": ("list of 1000 floats", "[i * 1.1 for i in range(1000)]", 1_000),
    "ints": ("list of 1000 ints", "list(range(1000))", 1_000),
    "strs": ("list of 1000 str", "[f'text {i}' for i in range(1000)]", 1_000),
    "held": ("the same, held elsewhere too", "held[:]", 1_000),
    "text": ("str(100000)", "'x' * 100_000", 5_000),
    "record": ("dataclass instance", "Record(1, 'name', 1.5)", 30_000),
    "records": ("list of 100 of them", "[Record(i, 'name', i * 1.5) for i in range(100)]", 500),
    "numpy": ("numpy array of 100 floats", "numpy.arange(100.0)", 30_000),
    "numpy large": ("numpy array of 100000 floats", "numpy.arange(100_000.0)", 500),
}


def measure(case, way):
    """Nanoseconds of the processor for dumps and loads; the loop's own few are in it."""
    _, make, count = CASES[case]
    names = {"Record": Record, "held": [f"text {i}" for i in range(1000)]}
    setup = f"{WAYS[way]}\n{'import numpy' if 'numpy' in case else ''}\nx = {make}"
    timer = timeit.Timer("loads(dumps(x))", setup, time.process_time, names)
    timer.timeit(count // 20)
    return timer.timeit(count) / count * 1e9


def main():
    options = parser(__doc__)
    options.add_argument("--only", default="", help="cases that have this word in their names")
    options.add_argument("--way", choices=WAYS)
    args = options.parse_args()
    if args.case:
        print(measure(args.case, args.way))
        return

    os.environ.update(MALLOC_TRIM_THRESHOLD_="100000000", MALLOC_MMAP_THRESHOLD_="100000000")
    print_heading(args.rounds)
    print("| dumps and loads | pickle | ForkingPickler | mproc_ext | ratios |")
    print("|---|--:|--:|--:|--:|")
    has_numpy = importlib.util.find_spec("numpy") is not None
    for case, (title, _, _) in CASES.items():
        if args.only not in case or ("numpy" in case and not has_numpy):
            continue
        found = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                found[way].append(run_round("mproc_ext", case, "--way", way))
        theirs, forking, ours = (medians(found[way])[0] for way in WAYS)
        print(
            f"| {title} | {theirs:,.0f} ns | {forking:,.0f} ns | {ours:,.0f} ns "
            f"| {theirs / ours:.1f}x {forking / ours:.1f}x |",
            flush=True,
        )


if __name__ == "__main__":
    main()
