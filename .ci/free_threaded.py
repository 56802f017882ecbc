"""A free-threaded Python imports the core and works, and the GIL stays off.

Run by a free-threaded Python that has the package installed.
"""

import os
import subprocess
import sys

PROGRAM = """\
import sys, threading, warnings

assert not sys.flags.ignore_environment
before = sys._is_gil_enabled()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mproc_ext
    import mproc_ext._core
after = sys._is_gil_enabled()

def target(queue):
    queue.put(mproc_ext.current_process().name)

def use(pool, number, right):
    items = range(number, number + 500)
    expected = [str(item) for item in items]
    for _ in range(20):
        assert pool.map(str, items, 1) == pool.map(str, items) == expected
        assert list(pool.imap(str, items)) == expected
        assert sorted(pool.imap_unordered(str, items, 7)) == sorted(expected)
        told = []
        results = [pool.apply_async(str, (i,), callback=told.append) for i in range(20)]
        assert [result.get() for result in results] == [str(i) for i in range(20)]
        assert sorted(told) == sorted(map(str, range(20)))
        assert pool.apply(str, (number,)) == str(number)
    right.append(number)

if __name__ == "__main__":
    assert mproc_ext.ACCELERATED
    for method in ("fork", "spawn", "forkserver"):
        context = mproc_ext.get_context(method)
        queue = context.Queue()
        process = context.Process(target=target, args=(queue,), name="free")
        process.start()
        assert queue.get(timeout=60) == "free", method
        process.join()
        assert process.exitcode == 0, (method, process.exitcode)
    # Several threads on one pool, whose workers run without the GIL too.
    with mproc_ext.get_context("spawn").Pool(2) as pool:
        right = []
        threads = [threading.Thread(target=use, args=(pool, i, right)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(right) == [0, 1, 2, 3], right
    print(before, after, any("GIL" in str(w.message) for w in caught))
"""

# By PYTHON_GIL: whether the GIL is on before the import and after it, and whether that warns.
EXPECTED = {None: "False False False", "0": "False False False", "1": "True True False"}


def main():
    import sysconfig
    import tempfile

    assert sysconfig.get_config_var("Py_GIL_DISABLED"), "this is no free-threaded Python"
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        program = os.path.join(folder, "program.py")
        with open(program, "w") as file:
            file.write(PROGRAM)
        for gil, expected in EXPECTED.items():
            env = {k: v for k, v in os.environ.items() if k != "PYTHON_GIL"}
            if gil is not None:
                env["PYTHON_GIL"] = gil
            done = subprocess.run(
                [sys.executable, program], env=env, capture_output=True, text=True, timeout=300
            )
            ok = done.returncode == 0 and done.stdout.strip() == expected
            failed += not ok
            print(f"{'ok' if ok else 'FAILED'}: PYTHON_GIL={gil}: {done.stdout.strip()}")
            if not ok:
                print(f"expected {expected}\n{done.stderr}")
    print(f"{len(EXPECTED) - failed} passed, {failed} failed, 0 skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
