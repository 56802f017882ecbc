"""The process that runs one class of tests (or lists them all).

A file of its own with nothing at its top, because every child that a test spawns imports it
again as its main module. The arguments: a JSON file that says what to do.
"""

import sys


def listing(spec):
    """Every class and its methods, module by module."""
    import importlib
    import unittest

    executor = put_executor() if spec["mode"] == "executor" else None

    found = []
    for module_name in spec["modules"]:
        entry = {"module": module_name, "classes": [], "skipped": None, "error": None}
        found.append(entry)
        try:
            module = importlib.import_module(module_name)
        except unittest.SkipTest as reason:
            entry["skipped"] = str(reason)
            continue
        except Exception:
            import traceback

            entry["error"] = traceback.format_exc()
            continue
        for name, value in sorted(vars(module).items()):
            if isinstance(value, type) and issubclass(value, unittest.TestCase):
                methods = unittest.defaultTestLoader.getTestCaseNames(value)
                if executor and getattr(value, "executor_type", None) is not executor:
                    users = spec["executor_users"].get(name, ())
                    methods = [method for method in methods if method in users]
                if methods:
                    entry["classes"].append([name, list(methods)])
    return found


def checks(spec):
    """Refuse to run where the results would say nothing about the package."""
    if spec["mode"] == "baseline":
        import multiprocessing

        if multiprocessing.__spec__.origin != spec["stdlib"]:
            sys.exit(f"multiprocessing is not the stdlib's: {multiprocessing.__file__}")
        return
    import mproc_ext

    if spec["mode"] == "alias":
        import multiprocessing

        if multiprocessing is not mproc_ext:
            sys.exit(f"multiprocessing does not mean mproc_ext here: {multiprocessing!r}")


def put_executor():
    """Make ProcessPoolExecutor ours for the tests that are imported from now on."""
    import concurrent.futures.process

    import mproc_ext.futures

    executor = mproc_ext.futures.ProcessPoolExecutor
    if executor is concurrent.futures.process.ProcessPoolExecutor:
        sys.exit("mproc_ext.futures.ProcessPoolExecutor is the stdlib's: nothing to test")
    concurrent.futures.ProcessPoolExecutor = executor
    concurrent.futures.process.ProcessPoolExecutor = executor
    return executor


def reach_package():
    """Let the programs that tests run with -I -S, where there is no site-packages, import us."""
    import os

    from test.support import script_helper

    import mproc_ext

    folder = os.path.dirname(os.path.dirname(os.path.abspath(mproc_ext.__file__)))
    plain = script_helper._assert_python

    def _assert_python(expected_success, /, *args, **env):
        args = list(args)
        if "-S" in args and "-c" in args:
            code = args.index("-c") + 1
            args[code] = f"import sys; sys.path.append({folder!r})\n{args[code]}"
        return plain(expected_success, *args, **env)

    script_helper._assert_python = _assert_python


def result_class(spec):
    import json
    import os
    import time
    import traceback
    import unittest

    class Result(unittest.TestResult):
        """Writes a line as each test starts and ends, so that a hang names its test."""

        def __init__(self):
            super().__init__()
            self.pid = os.getpid()
            self.began = 0.0
            self.state = None
            self.detail = []

        def write(self, **record):
            record["pid"] = os.getpid()
            data = (json.dumps(record) + "\n").encode()
            # opened for each line: no descriptor of ours is open while a test runs
            fd = os.open(spec["results"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)

        def startTest(self, test):
            super().startTest(test)
            self.state, self.detail = None, []
            self.write(event="start", method=test._testMethodName)
            print(f"\n-- {test._testMethodName}", flush=True)
            self.began = time.monotonic()

        def stopTest(self, test):
            took = time.monotonic() - self.began
            super().stopTest(test)
            self.write(
                event="stop",
                method=test._testMethodName,
                state=self.state or "passed",
                detail="\n".join(self.detail),
                time=round(took, 3),
            )

        def note(self, test, state, detail):
            # what is not a test: setUpClass, tearDownClass, setUpModule, tearDownModule
            if not hasattr(test, "_testMethodName"):
                self.write(event="fixture", name=str(test), state=state, detail=detail)
                return
            order = (None, "passed", "skipped", "failed")
            if order.index(state) >= order.index(self.state):
                self.state = state
            if detail:
                self.detail.append(detail)

        def problem(self, test, err):
            text = "".join(traceback.format_exception(*err))
            print(text, flush=True)
            self.note(test, "failed", text)

        def addError(self, test, err):
            self.problem(test, err)

        def addFailure(self, test, err):
            self.problem(test, err)

        def addSubTest(self, test, subtest, err):
            if err is not None:
                self.problem(test, err)

        def addSuccess(self, test):
            self.note(test, "passed", "")

        def addExpectedFailure(self, test, err):
            self.note(test, "passed", "")

        def addUnexpectedSuccess(self, test):
            self.note(test, "failed", "unexpected success")

        def addSkip(self, test, reason):
            self.note(test, "skipped", reason)

    return Result()


def run(spec):
    import faulthandler
    import importlib
    import resource
    import unittest

    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable()  # the runner sends SIGABRT to what hangs
    from test import support

    support.verbose = 0
    # None: every resource; these tests ask for cpu and walltime, and use loopback alone
    support.use_resources = None

    checks(spec)
    if spec["mode"] in ("name", "executor"):
        reach_package()
    if spec["mode"] == "executor":
        put_executor()
    result = result_class(spec)
    module = importlib.import_module(spec["module"])
    case = getattr(module, spec["class"])
    suite = unittest.TestSuite(case(method) for method in spec["methods"])
    # unittest finds setUpModule by the class's module, which may be where a base was made
    suite.run(result)
    result.write(event="end", altered=bool(support.environment_altered))


def main():
    import json

    with open(sys.argv[1], encoding="utf-8") as file:
        spec = json.load(file)
    if spec["action"] == "list":
        checks(spec)
        found = listing(spec)
        with open(spec["results"], "w", encoding="utf-8") as file:
            json.dump(found, file)
    else:
        run(spec)


if __name__ == "__main__":
    main()
