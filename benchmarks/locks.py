"""What locks and shared values cost: multiprocessing against mproc_ext.

    python benchmarks/locks.py [--rounds N] [--only WORD]

Every case of every library runs in a process of its own; rounds are interleaved, so that what else
the machine does meets both.  A row shows the median over the rounds, and the ratio.  Beside them
stand floors: what a type in C costs at the least for a method, an attribute, an item, a `with`; a
row holds by its ratio or by coming within 1.3 of its floor.  Run it in a virtual environment with
the package installed, on a machine that is idle.
"""

import importlib
import threading
import time
import timeit

from rounds import LIBRARIES, medians, parser, print_heading, run_round, run_rounds

# name -> (the row's title, setup, statement, its floor, how often a round runs it).  In the setup
# `mp` is a context.
STATEMENTS = {
    "with Lock": ("`with lock`", "x = mp.Lock()", "with x: pass", "with", 200_000),
    "with RLock": ("`with rlock`", "x = mp.RLock()", "with x: pass", "with", 200_000),
    "with Semaphore": ("`with semaphore`", "x = mp.Semaphore(3)", "with x: pass", "with", 200_000),
    "acquire": (
        "Lock: acquire(), release()",
        "x = mp.Lock()",
        "x.acquire(); x.release()",
        "two methods",
        200_000,
    ),
    "acquire bound": (
        "Lock: the same, bound before",
        "x = mp.Lock(); a, r = x.acquire, x.release",
        "a(); r()",
        "two functions",
        200_000,
    ),
    "acquire RLock": (
        "RLock: acquire(), release()",
        "x = mp.RLock()",
        "x.acquire(); x.release()",
        "two methods",
        200_000,
    ),
    "acquire inner": (
        "RLock: the same, when held",
        "x = mp.RLock(); x.acquire()",
        "x.acquire(); x.release()",
        "two methods",
        200_000,
    ),
    "try": (
        "Lock: acquire(False) in vain",
        "x = mp.Lock(); x.acquire()",
        "x.acquire(False)",
        "a method",
        200_000,
    ),
    "is_set": ("Event.is_set()", "x = mp.Event()", "x.is_set()", "a method", 100_000),
    "wait set": (
        "Event.wait() when set",
        "x = mp.Event(); x.set()",
        "x.wait()",
        "a method",
        50_000,
    ),
    "set clear": (
        "Event: set(), clear()",
        "x = mp.Event()",
        "x.set(); x.clear()",
        "two plain methods",
        50_000,
    ),
    "notify": (
        "Condition.notify(), no waiter",
        "x = mp.Condition(); x.acquire()",
        "x.notify()",
        "a method",
        100_000,
    ),
    "value": (
        "value.value += 1",
        "x = mp.Value('i', 0)",
        "x.value += 1",
        "an attribute, twice",
        100_000,
    ),
    "value read": ("value.value", "x = mp.Value('d', 0)", "x.value", "an attribute", 100_000),
    "raw value": ("raw.value += 1", "x = mp.RawValue('i', 0)", "x.value += 1", None, 100_000),
    "item": ("array[5]", "x = mp.Array('d', 100)", "x[5]", "an item", 100_000),
    "item set": ("array[5] = 1.0", "x = mp.Array('d', 100)", "x[5] = 1.0", "an item", 100_000),
    "make Lock": ("making a Lock", "f = mp.Lock", "f()", None, 5_000),
    "make Event": ("making an Event", "f = mp.Event", "f()", None, 1_500),
    "make Condition": ("making a Condition", "f = mp.Condition", "f()", None, 1_500),
    "make Value": ("making a Value", "f = mp.Value", "f('i', 0)", None, 3_000),
    "make Array": ("making an Array of 100", "f = mp.Array", "f('d', 100)", None, 2_000),
}

# What a type in C costs: builtins that do next to nothing.  A held SemLock of the recursive kind
# only counts; threading.Lock is no floor, as it parses its arguments in the slow way.
HELD = """import multiprocessing
x = multiprocessing.get_context("fork").RLock()._semlock
x.acquire()
a, r = x.acquire, x.release
"""
FLOORS = {
    "a method": ("a method in C", "x = threading.Lock()", "x.locked()", 500_000),
    "two plain methods": ("two of them", "x = threading.Lock()", "x.locked(); x.locked()", 500_000),
    "two methods": (
        "acquire(), release() of what only counts",
        HELD,
        "x.acquire(); x.release()",
        500_000,
    ),
    "two functions": ("the same, bound before", HELD, "a(); r()", 500_000),
    "with": ("`with` of what only counts", HELD, "with x: pass", 500_000),
    "an attribute": ("an attribute in C", "x = 1j", "x.real", 500_000),
    "an attribute, twice": (
        "an integer attribute in C, += 1",
        "x = UnicodeDecodeError('ascii', b'', 0, 1, '')",
        "x.start += 1",
        500_000,
    ),
    "an item": ("an item of a bytearray", "x = bytearray(100)", "x[5]", 500_000),
}


def time_statement(setup, statement, count, names):
    """Nanoseconds a turn; the loop's own few are in it."""
    timer = timeit.Timer(statement, setup, globals=names)
    timer.timeit(max(1, count // 20))
    return timer.timeit(count) / count * 1e9


# ---- Several processes -------------------------------------------------------------------------


def start_together(mp, processes, function, *args):
    """Starts children that say that they are there, and lets them go at once; returns the ends of
    their pipes, and the children."""
    connections, children = [], []
    for _ in range(processes):
        ours, theirs = mp.Pipe()
        child = mp.Process(target=function, args=(theirs, *args))
        child.start()
        connections.append(ours)
        children.append(child)
    for connection in connections:
        connection.recv()
    for connection in connections:
        connection.send("go")
    return connections, children


def locked_loop(connection, lock, count):
    connection.send("ready")
    connection.recv()
    began = time.perf_counter()
    for _ in range(count):
        with lock:
            pass
    connection.send((began, time.perf_counter()))


def contended(mp, processes=2, count=60_000):
    """Nanoseconds for each take of a lock that two processes want all the time."""
    connections, children = start_together(mp, processes, locked_loop, mp.Lock(), count)
    began, ended = zip(*(connection.recv() for connection in connections), strict=True)
    for child in children:
        child.join()
    return (max(ended) - min(began)) / (processes * count) * 1e9


def counting_loop(connection, lock, seconds, work):
    connection.send("ready")
    connection.recv()
    end, turns = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        for _ in range(20):
            with lock:
                for _ in range(work):
                    pass
        turns += 20
    connection.send(turns)


def four(mp, seconds=1.0, work=10):
    """Four processes on one lock: [ns a take, the worst one's share of a fair share in %]."""
    connections, children = start_together(mp, 4, counting_loop, mp.Lock(), seconds, work)
    turns = [connection.recv() for connection in connections]
    for child in children:
        child.join()
    return [seconds / sum(turns) * 1e9, min(turns) / (sum(turns) / 4) * 100]


def answer_notifications(connection, condition, count):
    with condition:
        connection.send("ready")
        for _ in range(count):
            condition.wait()
            condition.notify()


def notified(mp, count=3_000):
    """Nanoseconds from a notify to the return of the waiter's notify, in two processes."""
    condition = mp.Condition()
    ours, theirs = mp.Pipe()
    child = mp.Process(target=answer_notifications, args=(theirs, condition, count))
    child.start()
    ours.recv()
    with condition:
        began = time.perf_counter()
        for _ in range(count):
            condition.notify()
            condition.wait()
        took = time.perf_counter() - began
    child.join()
    return took / count * 1e9


def answer_events(ping, pong, count):
    for _ in range(count):
        ping.wait()
        ping.clear()
        pong.set()


def events(mp, count=3_000):
    """Nanoseconds for a round trip over two events."""
    ping, pong = mp.Event(), mp.Event()
    child = mp.Process(target=answer_events, args=(ping, pong, count))
    child.start()
    began = time.perf_counter()
    for _ in range(count):
        ping.set()
        pong.wait()
        pong.clear()
    took = time.perf_counter() - began
    child.join()
    return took / count * 1e9


PROCESSES = {
    "contended": ("contended Lock, 2 processes, a take", contended),
    "four": ("4 processes on one Lock: throughput, as the time of a take", four),
    "notified": ("Condition: notify and back, 2 processes", notified),
    "events": ("Event: set and back, 2 processes", events),
}


# ---- Rounds and rows ---------------------------------------------------------------------------


def measure(library, case):
    """What one round of a case gives: nanoseconds, and what else it measures."""
    if case in FLOORS:
        _, setup, statement, count = FLOORS[case]
        return [time_statement(setup, statement, count, {"threading": threading})]
    mp = importlib.import_module(library).get_context("fork")
    if case in PROCESSES:
        result = PROCESSES[case][1](mp)
        return result if isinstance(result, list) else [result]
    _, setup, statement, _, count = STATEMENTS[case]
    return [time_statement(setup, statement, count, {"mp": mp})]


def shown(ns):
    return f"{ns:.0f} ns" if ns < 10_000 else f"{ns / 1000:.1f} us"


def main():
    options = parser(__doc__)
    options.add_argument("--only", default="", help="cases that have this word in their names")
    args = options.parse_args()
    if args.case:
        print(*measure(args.library, args.case))
        return

    print_heading(args.rounds)
    cases = [case for case in (*STATEMENTS, *PROCESSES) if args.only in case]
    wanted = {STATEMENTS[case][3] for case in cases if case in STATEMENTS}
    floors = {}
    for floor in FLOORS:
        if floor in wanted:
            (floors[floor],) = medians([run_round(LIBRARIES[0], floor) for _ in range(args.rounds)])
            print(f"floor: {FLOORS[floor][0]}: {shown(floors[floor])}", flush=True)
    print("\n| | multiprocessing | mproc_ext | ratio | floor | ours / floor |")
    print("|---|--:|--:|--:|--:|--:|")
    for case in cases:
        found = run_rounds(args.rounds, case)
        theirs, ours = (medians(found[library]) for library in LIBRARIES)
        title = (STATEMENTS.get(case) or PROCESSES[case])[0]
        row = f"| {title} | {shown(theirs[0])} | {shown(ours[0])} | {theirs[0] / ours[0]:.2f}x "
        floor = floors.get(STATEMENTS[case][3]) if case in STATEMENTS else None
        row += f"| {shown(floor)} | {ours[0] / floor:.2f} |" if floor else "| | |"
        print(row, flush=True)
        if len(ours) > 1:
            # Of all rounds the worst: a process that starves once has starved.
            worst = [min(result[1] for result in found[library]) for library in LIBRARIES]
            print(
                f"| ... the worst share of a fair one | {worst[0]:.0f} % | {worst[1]:.0f} % | | | |"
            )


if __name__ == "__main__":
    main()
