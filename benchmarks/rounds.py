"""What the benchmarks share: rounds of both libraries in turn, each in a process of its own.

A benchmark is a script that prints what one round of a case gives when it is started with --case
and --library, and that compares the two libraries without these options.
"""

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys

LIBRARIES = ("multiprocessing", "mproc_ext")


def parser(doc, rounds=7, libraries=LIBRARIES):
    """The options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--library", choices=libraries, help=argparse.SUPPRESS)
    return parser


def print_heading(rounds, peers=()):
    """What was measured where; ends the program where mproc_ext would be the stdlib."""
    import mproc_ext

    if not mproc_ext.ACCELERATED:
        sys.exit("mproc_ext runs without its core here")
    versions = "".join(f"{peer} {importlib.metadata.version(peer)}, " for peer in peers)
    print(
        f"Python {platform.python_version()}, mproc_ext {mproc_ext.__version__}, {versions}"
        f"Linux {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs; "
        f"median of {rounds} rounds\n"
    )


def run_round(library, case, *options):
    """The numbers that one round of a case gives."""
    command = [
        sys.executable,
        os.path.abspath(sys.argv[0]),
        "--case",
        case,
        "--library",
        library,
        *options,
    ]
    # Not from here, where an unbuilt package may lie.
    output = subprocess.check_output(command, text=True, cwd="/")
    return [float(number) for number in output.split()]


def run_rounds(rounds, case, *options):
    """{library: [what each round gives]}, the rounds interleaved."""
    found = {library: [] for library in LIBRARIES}
    for _ in range(rounds):
        for library in LIBRARIES:
            found[library].append(run_round(library, case, *options))
    return found


def medians(rounds):
    """The median over the rounds of each number."""
    return [statistics.median(column) for column in zip(*rounds, strict=True)]
