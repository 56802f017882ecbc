"""How long it takes to start and join a process: multiprocessing against mproc_ext.

    python benchmarks/start.py [--rounds N] [--starts N]

Every case of every library runs in a process of its own; rounds are interleaved, so that what else
the machine does meets both.  A row shows the median over the rounds of a round's median, and the
ratio.  Run it in a virtual environment with the package installed, on a machine that is idle.
"""

import importlib
import statistics
import subprocess
import sys
import time

from rounds import LIBRARIES, medians, parser, print_heading, run_rounds

CASES = {  # case -> how many times per round, as a share of --starts
    "fork": 1.0,
    "forkserver": 0.5,
    "spawn": 0.2,
    "import": 0.2,
}


def nothing():
    """What the started processes do."""


def measure_start(library, method, count):
    """Milliseconds of each start and join, without the first: that one starts servers."""
    context = importlib.import_module(library).get_context(method)
    times = []
    for _ in range(count + 1):
        began = time.perf_counter()
        child = context.Process(target=nothing)
        child.start()
        child.join()
        times.append((time.perf_counter() - began) * 1e3)
        assert child.exitcode == 0
        child.close()
    return times[1:]


def measure_import(library, count):
    """Milliseconds of the import in a fresh interpreter, the interpreter's own start apart."""
    code = (
        "import time; began = time.perf_counter(); "
        f"import {library}; print((time.perf_counter() - began) * 1e3)"
    )
    command = [sys.executable, "-c", code]
    outputs = (subprocess.check_output(command, text=True, cwd="/") for _ in range(count))
    return [float(output) for output in outputs]


def main():
    options = parser(__doc__)
    options.add_argument("--starts", type=int, default=100)
    args = options.parse_args()
    if args.case:
        if args.case == "import":
            times = measure_import(args.library, args.starts)
        else:
            times = measure_start(args.library, args.case, args.starts)
        print(statistics.median(times))
        return

    print_heading(args.rounds)
    print("| start and join, ms | multiprocessing | mproc_ext | ratio |")
    print("|---|--:|--:|--:|")
    for case, share in CASES.items():
        count = max(3, int(args.starts * share))
        found = run_rounds(args.rounds, case, "--starts", str(count))
        (theirs,), (ours,) = (medians(found[library]) for library in LIBRARIES)
        title = "import of the package" if case == "import" else f"a process, {case}"
        print(f"| {title} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
