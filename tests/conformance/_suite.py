"""Find CPython's own tests, copy them, and put our name in where the copy is to use us.

Nothing here imports multiprocessing: the runner stays out of what it measures.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent

PACKAGE = "mpx_suite"  # the package that the copied tests live in
OUR_NAME = "mproc_ext"
MODES = ("name", "alias", "baseline", "executor")
COPIED = ("name", "executor")  # modes whose tests are copies, with our name in them

START_METHODS = ("fork", "spawn", "forkserver")
ALWAYS = tuple(f"test_multiprocessing_{m}" for m in START_METHODS)  # no Python is without them
MAIN_FILE = "_test_multiprocessing.py"
VENV_SCRIPT = "_test_venv_multiprocessing.py"

WORD = re.compile(r"\bmultiprocessing\b")

# In executor mode: what uses ProcessPoolExecutor without having it as its executor_type. Of the
# classes that have it, every test runs.
EXECUTOR_USERS = {
    "FailingInitializerResourcesTest": ("test_forkserver", "test_spawn"),
    "ThreadPoolExecutorTest": ("test_hang_global_shutdown_lock",),
}

# The programs that tests of executors run; the name of the class is put in when they are run.
PROGRAM_IMPORT = re.compile(r"\bfrom concurrent\.futures import (?={executor_type}$)", re.MULTILINE)

# Modules of the `test` package that are copied, and are to be found in the copy.
RENAMED = re.compile(
    r"\btest\.(?=(?:_test_multiprocessing|test_multiprocessing_\w+|test_concurrent_futures"
    r"|test_logging|mp_preload\w*|mp_fork_bomb)\b)"
)

# Imported by code that a test runs in a Python of its own with -I: nothing but the installed
# packages is on that path.
INDENTED_IMPORT = re.compile(
    rf"^(?P<indent>[ \t]+)(?P<import>from {PACKAGE}\.\S+ import .+)$", re.MULTILINE
)

# Lines where the word is no use of the package: the text of a message, or a key that the standard
# library looks up itself (logging asks sys.modules for 'multiprocessing', and must not call the
# stdlib's Manager).
KEPT_LINES = {
    "_test_multiprocessing.py": (re.compile(r"unclosed running multiprocessing pool"),),
    "test_logging.py": (re.compile(r"sys\.modules"), re.compile(r"@patch\(")),
}


@dataclass
class Group:
    """One row of the table: some modules that hold tests."""

    name: str
    modules: list[str] = field(default_factory=list)
    source: str = ""  # where the tests come from, or why there are none
    only: dict[str, list[str]] | None = None  # class -> methods; None: everything


def replace_word(text: str, file_name: str = "") -> str:
    """`multiprocessing` -> `mproc_ext`, also inside strings (which subprocesses run)."""
    kept = KEPT_LINES.get(file_name, ())

    def line_replaced(line: str) -> str:
        if any(pattern.search(line) for pattern in kept):
            return line
        return WORD.sub(OUR_NAME, line)

    return "".join(line_replaced(line) for line in text.splitlines(keepends=True))


def replace_modules(text: str, root: str) -> str:
    """`test.test_x` -> the copy of test_x, wherever a test names it."""
    text = RENAMED.sub(PACKAGE + ".", text)
    return INDENTED_IMPORT.sub(
        lambda m: f"{m['indent']}__import__('sys').path.insert(0, {root!r}); {m['import']}", text
    )


def replace_executor(text: str) -> str:
    """The executor that a test's program imports is ours."""
    return PROGRAM_IMPORT.sub(f"from {OUR_NAME}.futures import ", text)


def replace_neighbours(text: str) -> str:
    """`from . import x` -> `from test import x`; not in the programs that tests write down."""
    lines = text.splitlines(keepends=True)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level == 1 and node.module is None:
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace("from . import", "from test import")
    return "".join(lines)


def multiprocess_tests(source: str) -> dict[str, list[str]]:
    """The test methods of a module that use multiprocessing: class -> methods.

    A method is one of them if its own text has the word, or calls a helper whose text has it.
    """
    tree = ast.parse(source)
    functions: dict[str, list[str]] = {}

    def text_of(node: ast.FunctionDef) -> str:
        first = min([node.lineno] + [d.lineno for d in node.decorator_list])
        return "\n".join(source.splitlines()[first - 1 : node.end_lineno])

    classes: list[tuple[str, ast.FunctionDef]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    classes.append((node.name, item))
    helpers = {
        item.name
        for _, item in classes
        if not item.name.startswith("test") and WORD.search(text_of(item))
    }
    for class_name, item in classes:
        if not item.name.startswith("test"):
            continue
        attributes = {n.attr for n in ast.walk(item) if isinstance(n, ast.Attribute)}
        if WORD.search(text_of(item)) or attributes & helpers:
            functions.setdefault(class_name, []).append(item.name)
    return functions


# -- where the tests are --------------------------------------------------------------------


def fetched_folder(version: tuple[int, int]) -> Path:
    """Where fetch_suite.py puts the tests that an installation came without."""
    override = os.environ.get("MPROC_EXT_CONFORMANCE_SUITES")
    base = Path(override) if override else REPOSITORY / "build" / "conformance"
    return base / f"suite-{version[0]}.{version[1]}"


def own_test_folder() -> Path:
    """The running Python's own `test` package."""
    import test

    for entry in test.__path__:
        if (Path(entry) / MAIN_FILE).exists():
            return Path(entry)
    raise SystemExit(
        f"{sys.executable} comes without CPython's own tests ({MAIN_FILE}): nothing to run"
    )


def find_module(name: str, folders: list[Path]) -> Path | None:
    """The file or package folder of a test module, from the first folder that has it."""
    for folder in folders:
        for candidate in (folder / name / "__init__.py", folder / (name + ".py")):
            if candidate.exists():
                return candidate.parent if candidate.name == "__init__.py" else candidate
    return None


# -- the copy ---------------------------------------------------------------------------------

WRAPPER = """\
import unittest
from {main} import install_tests_in_module_dict

install_tests_in_module_dict(globals(), {method!r})

if __name__ == '__main__':
    unittest.main()
"""

# test_venv itself makes an empty venv, where the package is not installed: the same two programs
# are run with the Python under test.
VENV_MODULE = """\
import os
import subprocess
import sys
import unittest


class VenvTest(unittest.TestCase):

    def run_python(self, *args):
        done = subprocess.run([sys.executable, '-I', *args], capture_output=True, text=True,
                              timeout=60)
        self.assertEqual(done.returncode, 0, msg=done.stderr)
        return done.stdout.strip()

    def test_multiprocessing(self):
        out = self.run_python(
            '-c',
            'from multiprocessing import Pool; '
            'pool = Pool(1); '
            'print(pool.apply_async("Python".lower).get(3)); '
            'pool.terminate()')
        self.assertEqual(out, 'python')

    def test_multiprocessing_recursion(self):
        self.run_python(os.path.join(os.path.dirname(__file__), '{script}'))
"""


def _copy(source: Path, target: Path, mode: str, root: Path) -> None:
    text = source.read_text(encoding="utf-8")
    if mode in COPIED:
        text = replace_word(text, source.name)
    if mode == "executor":
        text = replace_executor(text)
    if source.parent.name == "test":  # its neighbours are not copied with it
        text = replace_neighbours(text)
    text = replace_modules(text, str(root))
    if source.name.startswith("mp_"):  # scripts that tests run with -I
        text = f"import sys; sys.path.insert(0, {str(root)!r})\n{text}"
    target.write_text(text, encoding="utf-8")


def _copy_module(source: Path, package: Path, mode: str, root: Path) -> list[str]:
    """Copy a module or a package; the dotted names (below the package) of what holds tests."""
    if source.is_file():
        _copy(source, package / source.name, mode, root)
        return [source.stem]
    folder = package / source.name
    folder.mkdir()
    for file in sorted(source.glob("*.py")):
        _copy(file, folder / file.name, mode, root)
    return [f"{source.name}.{f.stem}" for f in sorted(folder.glob("test_*.py"))]


def _modules_of(source: Path) -> list[str]:
    if source.is_file():
        return [source.stem]
    return [f"{source.name}.{file.stem}" for file in sorted(source.glob("test_*.py"))]


def prepare(root: Path, mode: str, version: tuple[int, int] | None = None) -> list[Group]:
    """Fill `root` with what a run in this mode needs; the groups of modules to run.

    In the modes COPIED everything is a copy, in the package PACKAGE. Otherwise the tests are the
    running Python's own modules, untouched, and PACKAGE holds only what it came without.
    Executor mode has the tests of executors alone.
    """
    version = version or sys.version_info[:2]
    own = own_test_folder()
    fetched = fetched_folder(version)
    folders = [own, fetched]
    package = root / PACKAGE
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    shutil.copy(HERE / "_child.py", root / "_child.py")

    if mode == "name":
        for file in [own / MAIN_FILE, *sorted(own.glob("mp_*.py"))]:
            _copy(file, package / file.name, mode, root)
    main = f"{PACKAGE}._test_multiprocessing" if mode == "name" else "test._test_multiprocessing"

    groups = []

    def add(name: str, only: dict[str, list[str]] | None = None) -> None:
        source = find_module(name, folders)
        if source is None:
            groups.append(Group(name, [], "not in this installation"))
            return
        where = "own" if own in source.parents else f"from {fetched}"
        if mode not in COPIED and own in source.parents:
            modules = ["test." + m for m in _modules_of(source)]
        else:
            modules = [f"{PACKAGE}.{m}" for m in _copy_module(source, package, mode, root)]
        groups.append(Group(name, modules, where, only))

    if mode == "executor":
        add("test_concurrent_futures")
        return groups
    for method in START_METHODS:
        name = f"test_multiprocessing_{method}"
        if find_module(name, [own]):
            add(name)
        else:  # three lines around the same file: made here where the installation has none
            (package / f"{name}.py").write_text(WRAPPER.format(main=main, method=method))
            groups.append(Group(name, [f"{PACKAGE}.{name}"], "own, wrapper made here"))
    add("test_multiprocessing_main_handling")
    add("test_concurrent_futures")
    logging_tests = find_module("test_logging", [own])
    add(
        "test_logging",
        multiprocess_tests(logging_tests.read_text(encoding="utf-8")) if logging_tests else None,
    )
    script = own / VENV_SCRIPT
    if script.exists():
        name = "test_venv_multiprocessing"
        _copy(script, package / VENV_SCRIPT, mode, root)
        text = VENV_MODULE.replace("{script}", VENV_SCRIPT)
        if mode == "name":
            text = text.replace("from multiprocessing", f"from {OUR_NAME}")
        (package / f"{name}.py").write_text(text)
        groups.append(Group(name, [f"{PACKAGE}.{name}"], "own script"))
    return groups


def group_of(module: str) -> str:
    """`test.test_multiprocessing_fork.test_misc` -> `test_multiprocessing_fork`."""
    return module.removeprefix("test.").removeprefix(PACKAGE + ".").split(".")[0]
