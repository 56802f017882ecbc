"""Start and join many processes: storm.py METHOD COUNT.  Ends with a line of figures.

Exits with 1 where a zombie, a descriptor, or memory that grows with the count is left.
"""

import os
import sys
import time

import mproc_ext

WIDTH = 8  # alive at once
MEMORY = 1 << 20  # bytes by which the process may grow after the first tenth


def child(number):
    os._exit(number % 200)


def memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def zombies():
    found = 0
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/children") as file:
            for pid in file.read().split():
                with open(f"/proc/{pid}/stat") as stat:
                    found += stat.read().rpartition(")")[2].split()[0] == "Z"
    return found


def run(ctx, numbers):
    numbers = list(numbers)
    for first in range(0, len(numbers), WIDTH):
        processes = [
            (number, ctx.Process(target=child, args=(number,)))
            for number in numbers[first : first + WIDTH]
        ]
        for _, process in processes:
            process.start()
        for number, process in processes:
            process.join()
            if process.exitcode != number % 200:
                sys.exit(f"process {number} ended with {process.exitcode}")


def main(method, count):
    ctx = mproc_ext.get_context(method)
    run(ctx, range(count // 10))  # caches, the fork server, the first arenas
    before, open_before = memory(), descriptors()
    started = time.monotonic()
    run(ctx, range(count // 10, count))
    seconds = time.monotonic() - started
    growth = memory() - before
    left = zombies()
    print(
        f"{method}: {count} processes, {seconds / (count * 0.9) * 1000:.2f} ms each, "
        f"{left} zombies, {descriptors() - open_before} more descriptors, "
        f"{growth // 1024} KiB more memory"
    )
    return left or descriptors() != open_before or growth > MEMORY


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))
