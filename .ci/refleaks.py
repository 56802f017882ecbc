"""Count references around what the core does, in a debug build of Python.

Every case is run a few times to warm up, then many times: the number of references must not
have grown by as much as one for each time.
"""

import gc
import sys

import mproc_ext

WARM_UP, TIMES = 5, 40


def nothing():
    pass


def start_and_join(method):
    context = mproc_ext.get_context(method)
    process = context.Process(target=nothing)
    process.start()
    process.join()
    assert process.exitcode == 0, process.exitcode
    process.close()


def terminate(method):
    context = mproc_ext.get_context(method)
    process = context.Process(target=input_forever)
    process.start()
    process.terminate()
    process.join()
    process.close()


def input_forever():
    import signal

    signal.pause()


def fail_to_start():
    process = mproc_ext.get_context("spawn").Process(target=lambda: None)
    try:
        process.start()
    except Exception:
        return
    raise AssertionError("a lambda was pickled")


CASES = {
    "fork: start, join": lambda: start_and_join("fork"),
    "fork: start, terminate": lambda: terminate("fork"),
    "spawn: start, join": lambda: start_and_join("spawn"),
    "spawn: unpicklable target": fail_to_start,
    "forkserver: start, join": lambda: start_and_join("forkserver"),
}


def references():
    for _ in range(3):
        gc.collect()
    return sys.gettotalrefcount()


def main():
    if not mproc_ext.ACCELERATED:
        sys.exit("there is no core to look at")
    failed = 0
    for name, case in CASES.items():
        for _ in range(WARM_UP):
            case()
        before = references()
        for _ in range(TIMES):
            case()
        grown = (references() - before) / TIMES
        leaks = grown >= 1
        failed += leaks
        print(f"{'LEAK' if leaks else 'ok':4} {name}: {grown:+.2f} references each time")
    print(f"{len(CASES) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
