"""The runner of CPython's own tests: it must not miss a hang, a leftover child or a failure."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import textwrap
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "conformance"


if importlib.util.find_spec("test._test_multiprocessing") is None:
    pytest.skip("this Python comes without CPython's own tests", allow_module_level=True)


@pytest.fixture(scope="module", autouse=True)
def modules():
    """run.py, _suite.py and excused.py under names of their own, the path as it was after it."""
    path, before = list(sys.path), set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("conformance_run", FOLDER / "run.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules["conformance_run"] = module
        spec.loader.exec_module(module)
        global run, suite
        run, suite = module, sys.modules["_suite"]
        yield
    finally:
        sys.path[:] = path
        for name in {"conformance_run", "_suite", "excused"} - before:
            sys.modules.pop(name, None)


# -- the replaced word ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("import multiprocessing.pool", "import mproc_ext.pool"),
        ("import _multiprocessing", "import _multiprocessing"),
        ("'-c', 'import multiprocessing; f()'", "'-c', 'import mproc_ext; f()'"),
        ("test_multiprocessing_fork", "test_multiprocessing_fork"),
        ("logging.logMultiprocessing", "logging.logMultiprocessing"),
    ],
)
def test_word(before, after):
    assert suite.replace_word(before) == after


def test_word_stays_where_the_stdlib_looks_it_up():
    line = "with support.swap_item(sys.modules, 'multiprocessing', None):\n"
    assert suite.replace_word(line, "test_logging.py") == line
    assert "mproc_ext" in suite.replace_word(line, "_test_multiprocessing.py")


def test_modules_are_found_in_the_copy():
    text = textwrap.dedent(
        """\
        from test import support
        from test._test_multiprocessing import TestFlags
        PRELOAD = ['__main__', 'test.test_multiprocessing_forkserver']
        code = '''if 1:
            from test.test_concurrent_futures import sleep_and_print
        '''
        """
    )
    assert suite.replace_modules(text, "/r") == textwrap.dedent(
        """\
        from test import support
        from mpx_suite._test_multiprocessing import TestFlags
        PRELOAD = ['__main__', 'mpx_suite.test_multiprocessing_forkserver']
        code = '''if 1:
            __import__('sys').path.insert(0, '/r'); from mpx_suite.test_concurrent_futures import sleep_and_print
        '''
        """  # noqa: E501
    )


def test_programs_import_our_executor():
    text = """
        from concurrent.futures import {executor_type}
        from concurrent.futures import ThreadPoolExecutor
    """
    assert suite.replace_executor(text) == text.replace(
        "concurrent.futures import {", "mproc_ext.futures import {"
    )


def test_multiprocess_tests_of_a_module():
    source = textwrap.dedent(
        """\
        class A:
            def helper(self):
                multiprocessing.Pipe()
            def test_direct(self):
                multiprocessing.Queue()
            def test_through_helper(self):
                self.helper()
            @patch("multiprocessing.Manager")
            def test_decorated(self, manager):
                pass
            def test_other(self):
                logging.logMultiprocessing = True
        """
    )
    assert suite.multiprocess_tests(source) == {
        "A": ["test_direct", "test_through_helper", "test_decorated"]
    }


def test_name_mode_leaves_no_word_behind(tmp_path):
    groups = suite.prepare(tmp_path / "r", "name")
    names = {group.name for group in groups if group.modules}
    assert names >= {*suite.ALWAYS, "test_multiprocessing_main_handling", "test_logging"}
    for file in (tmp_path / "r").rglob("*.py"):
        if file.name in ("_child.py", "test_logging.py"):
            continue
        kept = suite.KEPT_LINES.get(file.name, ())
        lines = [line for line in file.read_text().splitlines() if suite.WORD.search(line)]
        lines = [line for line in lines if not any(pattern.search(line) for pattern in kept)]
        assert not lines, f"{file}: {lines}"


def test_executor_mode_names_our_executor(tmp_path):
    """Its copies are those of name mode, but for the executor that programs import."""

    def texts(mode):
        (group,) = (
            g for g in suite.prepare(tmp_path / mode, mode) if g.name == "test_concurrent_futures"
        )
        if not group.modules:
            pytest.skip("this Python comes without test_concurrent_futures")
        folder = tmp_path / mode / suite.PACKAGE
        files = sorted(folder.rglob("*.py"))
        files = [f for f in files if "test_concurrent_futures" in str(f.relative_to(folder))]
        return {str(f.relative_to(folder)): f.read_text() for f in files}

    def differing(one, other):
        assert one.keys() == other.keys()
        return [
            (before.strip(), after.strip())
            for file in one
            for before, after in zip(one[file].split("\n"), other[file].split("\n"), strict=True)
            if before != after and str(tmp_path) not in before
        ]

    name, executor = texts("name"), texts("executor")
    # the stdlib's executor, with our contexts
    assert any("mproc_ext" in text for text in name.values())
    assert not any("mproc_ext.futures" in text for text in name.values())
    pairs = differing(name, executor)
    assert len(pairs) >= 3
    assert set(pairs) == {
        (
            "from concurrent.futures import {executor_type}",
            "from mproc_ext.futures import {executor_type}",
        )
    }


def test_executor_mode_has_tests_of_executors_alone(tmp_path):
    assert [g.name for g in suite.prepare(tmp_path / "r", "executor")] == [
        "test_concurrent_futures"
    ]


def test_other_modes_use_the_originals(tmp_path):
    for group in suite.prepare(tmp_path / "r", "baseline"):
        if group.source == "own":
            assert all(module.startswith("test.") for module in group.modules)


# -- synthetic tests, really run --------------------------------------------------------------


class Runner:
    def __init__(self, folder):
        self.folder = folder

    def mode(self, name, text, kind="baseline"):
        root = self.folder / name
        package = root / suite.PACKAGE
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "test_made.py").write_text("import unittest\n" + textwrap.dedent(text))
        shutil.copy(FOLDER / "_child.py", root / "_child.py")
        return run.Mode(kind, root)

    def run(self, mode, methods, limit=60.0):
        unit = run.Unit("test_made", suite.PACKAGE + ".test_made", "Made", methods)
        return run.run_units(
            mode, [unit], jobs=1, limit=limit, ours=None, stdlib=run.stdlib_origin()
        )

    def states(self, *args, **kwargs):
        found = self.run(*args, **kwargs)
        return {name.removeprefix("test_made.Made."): o.state for name, o in found.items()}


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def test_plain_outcomes(runner):
    mode = runner.mode(
        "m",
        """
        class Made(unittest.TestCase):
            def test_a(self): pass
            def test_b(self): self.fail('no')
            def test_c(self): self.skipTest('later')
            def test_d(self):
                with self.subTest(1): self.fail('sub')
            @unittest.expectedFailure
            def test_e(self): pass
            @unittest.expectedFailure
            def test_f(self): self.fail('as expected')
        """,
    )
    assert runner.states(mode, [f"test_{x}" for x in "abcdef"]) == {
        "test_a": "passed",
        "test_b": "failed",
        "test_c": "skipped",
        "test_d": "failed",
        "test_e": "failed",
        "test_f": "passed",
    }


def test_a_hang_names_its_test_and_the_others_still_run(runner):
    mode = runner.mode(
        "m",
        """
        import threading
        class Made(unittest.TestCase):
            def test_a(self): pass
            def test_b(self): threading.Event().wait()
            def test_c(self): pass
        """,
    )
    found = runner.run(mode, ["test_a", "test_b", "test_c"], limit=1.5)
    assert {n: o.state for n, o in found.items()} == {
        "test_made.Made.test_a": "passed",
        "test_made.Made.test_b": "failed",
        "test_made.Made.test_c": "passed",
    }
    detail = found["test_made.Made.test_b"].detail
    assert "no test began or ended" in detail
    assert "in test_b" in detail  # where it hangs


def test_a_crash_names_its_test_and_the_others_still_run(runner):
    mode = runner.mode(
        "m",
        """
        import os, signal
        class Made(unittest.TestCase):
            def test_a(self): os.kill(os.getpid(), signal.SIGKILL)
            def test_b(self): pass
            def test_c(self): os._exit(0)
        """,
    )
    found = runner.run(mode, ["test_a", "test_b", "test_c"])
    states = [found[f"test_made.Made.test_{x}"].state for x in "abc"]
    assert states == ["failed", "passed", "failed"]
    assert "SIGKILL" in found["test_made.Made.test_a"].detail


@pytest.mark.parametrize("session", [False, True])
def test_a_child_that_is_left_is_killed_and_counts(runner, tmp_path, session):
    pid_file = tmp_path / "pid"
    mode = runner.mode(
        "m",
        f"""
        import subprocess, sys
        class Made(unittest.TestCase):
            def test_a(self):
                p = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],
                                     start_new_session={session})
                open({str(pid_file)!r}, 'w').write(str(p.pid))
                p.returncode = 0   # no ResourceWarning
        """,
    )
    grace, run.GRACE = run.GRACE, 0.2
    try:
        found = runner.run(mode, ["test_a"])
    finally:
        run.GRACE = grace
    assert found["test_made.Made.test_a"].state == "passed"
    left = found["test_made.Made.<left-over processes>"]
    pid = int(pid_file.read_text())
    assert left.state == "failed"
    assert str(pid) in left.detail
    assert not alive(pid)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_fork_that_runs_on_is_seen(runner):
    mode = runner.mode(
        "m",
        """
        import os
        class Made(unittest.TestCase):
            def test_a(self):
                pid = os.fork()
                if pid: os.waitpid(pid, 0)
        """,
    )
    assert runner.states(mode, ["test_a"])["<left the test>"] == "failed"


def test_warnings_of_the_suite_are_failures(runner):
    mode = runner.mode(
        "m",
        """
        from test import support
        class Made(unittest.TestCase):
            def test_a(self): pass
            @classmethod
            def tearDownClass(cls):
                support.environment_altered = True
                support.print_warning('Dangling processes: {1}')
        """,
    )
    found = runner.run(mode, ["test_a"])
    assert found["test_made.Made.test_a"].state == "passed"
    environment = found["test_made.Made.<environment>"]
    assert environment.state == "failed"
    assert "Dangling processes" in environment.detail


def test_fixtures(runner):
    mode = runner.mode(
        "failing",
        """
        class Made(unittest.TestCase):
            @classmethod
            def setUpClass(cls): raise OSError('no')
            def test_a(self): pass
        """,
    )
    assert runner.states(mode, ["test_a"]) == {"test_a": "failed"}
    mode = runner.mode(
        "skipping",
        """
        def setUpModule(): raise unittest.SkipTest('not here')
        class Made(unittest.TestCase):
            def test_a(self): pass
        """,
    )
    assert runner.states(mode, ["test_a"]) == {"test_a": "skipped"}
    mode = runner.mode(
        "at_the_end",
        """
        def tearDownModule(): raise OSError('left')
        class Made(unittest.TestCase):
            def test_a(self): pass
        """,
    )
    assert runner.states(mode, ["test_a"]) == {"test_a": "passed", "<tearDownModule>": "failed"}


def test_exit_code_counts(runner):
    mode = runner.mode(
        "m",
        """
        import atexit, os
        class Made(unittest.TestCase):
            def test_a(self): atexit.register(os._exit, 3)
        """,
    )
    assert runner.states(mode, ["test_a"]) == {"test_a": "passed", "<exit>": "failed"}


# -- our executor -----------------------------------------------------------------------------

# A package of the name, which is all that the mode takes of it: the extension is not needed.
# concurrent.futures keeps what was once asked for.
OURS = """
from concurrent.futures import ProcessPoolExecutor as Stdlib
class ProcessPoolExecutor(Stdlib): pass
"""


@pytest.fixture
def our_package(tmp_path, monkeypatch):
    """Write mproc_ext.futures into a package that the runner's processes find."""

    def write(text):
        folder = tmp_path / "path" / suite.OUR_NAME
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
        (folder / "futures.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", str(folder.parent))
        return str(folder)

    return write


def test_the_executor_of_the_tests_is_ours(runner, our_package):
    our_package(OURS)
    mode = runner.mode(
        "m",
        """
        import concurrent.futures
        from concurrent import futures
        from concurrent.futures import process
        import mproc_ext.futures
        class Made(unittest.TestCase):
            executor_type = futures.ProcessPoolExecutor
            def test_both(self):
                ours = mproc_ext.futures.ProcessPoolExecutor
                self.assertIs(self.executor_type, ours)
                self.assertIs(process.ProcessPoolExecutor, ours)
                self.assertIs(concurrent.futures.ProcessPoolExecutor, ours)
            def test_used(self):
                with self.executor_type(1) as executor:
                    self.assertEqual(executor.submit(abs, -3).result(), 3)
        """,
        "executor",
    )
    assert runner.states(mode, ["test_both", "test_used"]) == {
        "test_both": "passed",
        "test_used": "passed",
    }


def test_an_executor_that_is_the_stdlibs_is_refused(runner, our_package):
    our_package("from concurrent.futures import ProcessPoolExecutor")
    mode = runner.mode(
        "m",
        """
        class Made(unittest.TestCase):
            def test_a(self): pass
        """,
        "executor",
    )
    (outcome,) = runner.run(mode, ["test_a"]).values()
    assert outcome.state == "failed"
    assert "nothing to test" in outcome.detail


def test_executor_mode_lists_what_uses_process_pools(tmp_path, our_package, monkeypatch):
    def prepare(root, mode, version=None):
        made = Runner(tmp_path).mode(
            mode,
            """
            from concurrent import futures
            class FutureTests(unittest.TestCase):
                def test_a(self): pass
            class ThreadPoolWaitTest(unittest.TestCase):
                executor_type = futures.ThreadPoolExecutor
                def test_a(self): pass
            class ThreadPoolExecutorTest(unittest.TestCase):
                executor_type = futures.ThreadPoolExecutor
                def test_a(self): pass
                def test_hang_global_shutdown_lock(self): pass
            class ProcessPoolForkWaitTest(unittest.TestCase):
                executor_type = futures.ProcessPoolExecutor
                def test_a(self): pass
            """,
        )
        assert made.root == root
        return [suite.Group("test_made", [suite.PACKAGE + ".test_made"], "made")]

    monkeypatch.setattr(suite, "prepare", prepare)
    mode = run.prepare("executor", tmp_path, our_package(OURS), run.stdlib_origin())
    assert [(u.cls, u.methods) for u in run.select(mode, [])] == [
        ("ProcessPoolForkWaitTest", ["test_a"]),
        ("ThreadPoolExecutorTest", ["test_hang_global_shutdown_lock"]),
    ]


# -- judgement --------------------------------------------------------------------------------


def test_judged_by_what_the_stdlib_does(runner, tmp_path):
    ours = runner.mode(
        "ours",
        f"""
        import os
        class Made(unittest.TestCase):
            def test_ours(self): self.fail('only here')
            def test_both(self): self.fail('here too')
            def test_flaky(self): os.mkdir({str(tmp_path / "once")!r}); self.fail('once')
            test_flaky = lambda self: (
                os.path.exists({str(tmp_path / "once")!r}) or
                (os.mkdir({str(tmp_path / "once")!r}), self.fail('once')))
            def test_good(self): pass
        """,
    )
    stdlib = runner.mode(
        "stdlib",
        """
        class Made(unittest.TestCase):
            def test_ours(self): pass
            def test_both(self): self.fail('here too')
            def test_flaky(self): pass
            def test_good(self): pass
        """,
    )

    def again(where, name):
        mode = stdlib if where == "baseline" else ours
        method = name.split(".", 2)[2]
        return set(runner.states(mode, [method]).values()) == {"passed"}

    found = runner.run(ours, ["test_ours", "test_both", "test_flaky", "test_good"])
    run.judge(found, "name", again)
    assert {n.split(".")[2]: o.state for n, o in found.items()} == {
        "test_ours": "failed",
        "test_both": "stdlib fails",
        "test_flaky": "FLAKY",
        "test_good": "passed",
    }
    assert run.closing_line(found) == "1 passed, 2 failed, 0 skipped"
    table = run.table([suite.Group("test_made", ["m"], "own")], found, {"test_made": 3.0})
    row = next(line for line in table.splitlines() if line.startswith("test_made"))
    assert row.split()[1:] == ["1", "2", "0", "0", "1", "3", "s"]


def test_neighbours_are_found_but_a_program_in_a_string_keeps_its_own():
    text = 'try:\n    from . import smtpd\nfinally:\n    S = """\nfrom . import sibling\n"""\n'
    assert suite.replace_neighbours(text) == text.replace(". import smtpd", "test import smtpd")


def test_what_the_stdlib_fails_now_and_then_is_not_ours():
    tries = iter([True, True, True, False])  # the first is the usual one
    found = {"g.C.test_a": run.Outcome("failed")}
    run.judge(found, "name", lambda where, name: where == "name" or next(tries))
    assert found["g.C.test_a"].state == "stdlib fails"


def test_a_racy_test_may_pass_at_the_second_try(monkeypatch):
    monkeypatch.setitem(run.race.__globals__["RACY"], "g.C.test_a", "a race of CPython's own")
    names = ["g.C.test_a", "g.C.<environment>", "g.D.<environment>"]
    found = {name: run.Outcome("failed") for name in names}
    run.judge(found, "name", lambda where, name: True)
    assert [o.state for o in found.values()] == ["stdlib fails", "stdlib fails", "FLAKY"]
    found = {names[0]: run.Outcome("failed")}
    run.judge(found, "name", lambda where, name: where == "baseline")
    assert found[names[0]].state == "failed"


def test_a_race_of_the_stdlibs_executor_is_none_of_ours(monkeypatch):
    name = "test_concurrent_futures.C.test_a"
    race = ("a race of the stdlib's executor", {"modes": ("name", "baseline")})
    monkeypatch.setitem(run.race.__globals__["RACY"], name, race)
    states = {}
    for mode in ("name", "executor"):
        found = {name: run.Outcome("failed")}
        run.judge(found, mode, lambda where, name: True)
        states[mode] = found[name].state
    assert states == {"name": "stdlib fails", "executor": "FLAKY"}


def test_a_module_that_only_the_stdlib_can_import_is_a_failure(tmp_path):
    name = "test_made.<import>.test.test_made"
    ours, stdlib = run.Mode("alias", tmp_path), run.Mode("baseline", tmp_path)
    ours.classes["test_made"] = [("test.test_made", "<import>", [])]
    ours.notes[name] = "ImportError"
    modes = {"alias": ours, "baseline": stdlib}

    def judged():
        found = {name: run.Outcome("failed", 0.0, "ImportError")}
        run.judge(found, "alias", lambda where, n: run.passes(modes[where], n, where == "alias"))
        return found[name].state

    assert judged() == "failed"
    stdlib.notes[name] = "ImportError"
    assert judged() == "stdlib fails"


def test_excuses(monkeypatch):
    excused = {
        "g.C.test_a": "looks at the feeder thread",
        "g.C.test_b": ("only there", {"modes": ("alias",)}),
        "g.C.test_gone": "gone",
    }
    monkeypatch.setattr(run, "EXCUSED", excused)
    monkeypatch.setitem(run.excuse.__globals__, "EXCUSED", excused)
    found = {"g.C.test_a": run.Outcome("failed"), "g.C.test_b": run.Outcome("failed")}
    run.judge(found, "name", lambda where, name: where == "baseline", "3.13")
    assert [o.state for o in found.values()] == ["excused", "failed"]
    groups = [suite.Group("g", ["m"], "own")]
    assert run.missing_excuses(groups, found, "name", "3.13") == ["g.C.test_gone"]
    assert run.missing_excuses([], found, "name", "3.13") == []
    found = {"g.C.test_a": run.Outcome("passed")}
    run.judge(found, "name", None, "3.13")
    assert found["g.C.test_a"].state == "stale excuse"
    assert run.closing_line(found) == "0 passed, 1 failed, 0 skipped"


def test_floor(monkeypatch, tmp_path):
    floors = tmp_path / "floors.json"
    floors.write_text(
        '{"3.13": {"test_multiprocessing_fork": 5, "test_concurrent_futures": 7},'
        ' "executor": {"3.13": {"test_concurrent_futures": 3}}}'
    )
    monkeypatch.setattr(run, "FLOORS", floors)
    groups = [
        suite.Group("test_multiprocessing_fork", ["m"], "own"),
        suite.Group("test_concurrent_futures", [], "not in this installation"),
    ]
    assert run.below_floor(groups, {"test_multiprocessing_fork": 5}, "name", "3.13") == []
    assert run.below_floor(groups, {"test_multiprocessing_fork": 4}, "name", "3.13")
    # what an installation may lack is no excuse for the rest
    assert run.below_floor([], {}, "name", "3.13")
    groups[1].modules = ["m"]
    assert run.below_floor(groups, {"test_multiprocessing_fork": 5}, "name", "3.13")
    # executor mode has its own
    assert run.below_floor(groups[1:], {"test_concurrent_futures": 3}, "executor", "3.13") == []
    assert run.below_floor(groups[1:], {"test_concurrent_futures": 2}, "executor", "3.13")


def test_floors_are_recorded_for_every_python():
    import json

    floors = json.loads((FOLDER / "floors.json").read_text())
    pythons = {"3.11", "3.12", "3.13", "3.14", "3.15"}
    executor = floors.pop("executor")
    assert set(executor) >= pythons
    for python, groups in executor.items():
        assert 150 < groups["test_concurrent_futures"] < floors[python]["test_concurrent_futures"]
    assert set(floors) >= pythons
    for python, groups in floors.items():
        assert set(groups) >= {*suite.ALWAYS, "test_multiprocessing_main_handling"}, python
        assert all(groups[name] > 300 for name in suite.ALWAYS)


def test_long_classes_are_split():
    unit = run.Unit("g", "m", "C", ["test_a", "test_b", "test_c"])
    times = {"g.C.test_a": 30.0, "g.C.test_b": 30.0, "g.C.test_c": 10.0}
    assert [p.methods for p in run.split(unit, times, 45)] == [["test_a"], ["test_b", "test_c"]]
    assert [p.methods for p in run.split(unit, {}, 45)] == [["test_a", "test_b", "test_c"]]


def test_the_command_line_runs_one_class(tmp_path):
    """End to end, on the stdlib: a pattern that matches nothing fails, a class passes."""
    import subprocess

    command = [sys.executable, str(FOLDER / "run.py"), "--mode", "baseline", "--only"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    good = subprocess.run(
        [*command, "test_multiprocessing_fork.TestInvalidFamily."],
        capture_output=True, text=True, env=env,
    )  # fmt: skip
    assert good.returncode == 0, good.stdout + good.stderr
    assert good.stdout.splitlines()[-1] == "1 passed, 0 failed, 1 skipped"
    none = subprocess.run(
        [*command, "no.such.test"], capture_output=True, text=True, env=env
    )  # fmt: skip
    assert none.returncode == 1
    assert none.stdout.splitlines()[-1] == "0 passed, 0 failed, 0 skipped"
    assert not list(tmp_path.iterdir())  # nothing left behind


def test_started_where_sigint_is_ignored(tmp_path):
    """`run.py &` in a shell: the tests that send SIGINT still get their KeyboardInterrupt."""
    import subprocess

    name = "test_multiprocessing_fork.WithProcessesTestCondition.test_wait_result"
    done = subprocess.run(
        ["sh", "-c", 'trap "" INT; exec "$@"', "sh", sys.executable, str(FOLDER / "run.py"),
         "--mode", "baseline", "--only", name],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "1 passed, 0 failed, 0 skipped", done.stdout
