"""`import multiprocessing` means mproc_ext: by python -m mproc_ext, by install(), by a variable."""

import json
import os
import subprocess
import sys

import pytest

ARGUMENTS = ["one", "--two", "-x", ""]

# What a program can tell of how it was run.
TELL = """
import json, sys
main = sys.modules['__main__']
print(json.dumps({
    'name': __name__, 'argv': sys.argv, 'path0': sys.path[0], 'main': main.__name__,
    'file': globals().get('__file__'), 'spec': getattr(globals().get('__spec__'), 'name', None),
    'package': globals().get('__package__'), 'doc': globals().get('__doc__'),
    'is main': vars(main) is globals(), 'cached': globals().get('__cached__', 'none'),
    'loader': getattr(__loader__, '__name__', type(__loader__).__name__),
    'builtins': '__builtins__' in globals(),
    'ours': sorted(name for name in globals() if 'mproc' in name or 'install' in name),
}))
"""


def files(folder):
    """A script, a module, a package and an application folder that tell."""
    (folder / "tell.py").write_text(TELL)
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(TELL)
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text(TELL)


FORMS = {
    "script": ["tell.py"],
    "script in a folder": ["./tell.py"],
    "standard input": ["-"],
    "module": ["-m", "tell"],
    "package": ["-m", "package"],
    "folder": ["app"],
    "command": ["-c", TELL],
}


@pytest.mark.parametrize("form", FORMS)
def test_program_sees_what_it_sees_without(programs, tmp_path, form):
    files(tmp_path)
    command = [*FORMS[form], *ARGUMENTS]
    given = {"cwd": tmp_path, "input": TELL if form == "standard input" else None}
    theirs = programs.run_python(*command, **given)
    ours = programs.run_python("-m", "mproc_ext", *command, **given)
    assert theirs.returncode == ours.returncode == 0, ours.stderr
    theirs, ours = json.loads(theirs.stdout), json.loads(ours.stdout)
    assert theirs["argv"][1:] == ARGUMENTS
    assert ours == theirs


EXITS = {
    "0": "sys.exit(0)",
    "nothing": "sys.exit()",
    "7": "sys.exit(7)",
    "text": "sys.exit('why')",
    "exception": "raise LookupError('why')",
    "interrupt": "raise KeyboardInterrupt",
    "os._exit": "os._exit(9)",
    "signal": "os.kill(os.getpid(), 9)",
    "syntax": "this is no Python",
    "at exit": "import atexit; atexit.register(print, 'at the end'); sys.exit(3)",
}


@pytest.mark.parametrize("form", ["script", "command"])
@pytest.mark.parametrize("exit", EXITS)
def test_exit_status_and_traceback(programs, tmp_path, form, exit):
    text = f"import os, sys\n{EXITS[exit]}\n"
    (tmp_path / "program.py").write_text(text)
    command = ["program.py"] if form == "script" else ["-c", text]
    theirs = programs.run_python(*command, cwd=tmp_path)
    ours = programs.run_python("-m", "mproc_ext", *command, cwd=tmp_path)
    assert ours.returncode == theirs.returncode
    assert ours.stdout == theirs.stdout
    # The same message, and no frame of ours or of runpy's in the traceback.
    assert ours.stderr.splitlines()[-1:] == theirs.stderr.splitlines()[-1:]
    assert "mproc_ext" not in ours.stderr
    assert "runpy" not in ours.stderr
    assert ("Traceback" in ours.stderr) == ("Traceback" in theirs.stderr)


def test_options_of_python_come_first(programs):
    code = "import sys; print(sys.flags.optimize, sys.flags.dont_write_bytecode, sys.warnoptions)"
    result = programs.run_python("-O", "-B", "-W", "error", "-m", "mproc_ext", "-c", code)
    assert result.stdout == "1 1 ['error']\n", result.stderr


def test_tracebacks_show_the_lines_of_a_command(programs):
    command = ["-c", "def fail():\n    1 / 0\nfail()"]
    theirs = programs.run_python(*command)
    ours = programs.run_python("-m", "mproc_ext", *command)
    assert ours.stderr == theirs.stderr


@pytest.mark.parametrize("command", [[], ["-m"], ["-c"]])
def test_without_a_program_there_is_a_message(programs, command):
    result = programs.run_python("-m", "mproc_ext", *command)
    assert result.returncode != 0
    assert "usage: python -m mproc_ext" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_program_that_is_not_there(programs):
    result = programs.run_python("-m", "mproc_ext", "/nonexistent/program.py")
    assert result.returncode == 2
    assert "No such file or directory" in result.stderr
    assert "Traceback" not in result.stderr


def test_module_that_is_not_there(programs):
    result = programs.run_python("-m", "mproc_ext", "-m", "no_such_module")
    assert result.returncode == 1
    assert "No module named no_such_module" in result.stderr
    assert "Traceback" not in result.stderr


# ---- all submodules, here and in children ----------------------------------------------------

EVERYWHERE = """
import importlib, json, os, pkgutil, subprocess, sys
{begin}

def aliased():
    import mproc_ext
    wrong = []
    import multiprocessing
    if multiprocessing is not mproc_ext:
        wrong.append('multiprocessing')
    for name in NAMES:
        theirs = importlib.import_module('multiprocessing.' + name)
        if theirs is not importlib.import_module('mproc_ext.' + name):
            wrong.append(name)
        elif '.' not in name and getattr(multiprocessing, name) is not theirs:
            wrong.append('attribute ' + name)
    import concurrent.futures.process as futures
    if futures.mp is not mproc_ext:
        wrong.append('concurrent.futures')
    return wrong

NAMES = {names!r}

def child(connection):
    connection.send(aliased())

def task(number):
    import multiprocessing, mproc_ext
    return isinstance(multiprocessing.current_process(), mproc_ext.process.BaseProcess), aliased()

if __name__ == '__main__':
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor
    result = {{'here': aliased()}}
    for method in ('fork', 'spawn', 'forkserver'):
        context = multiprocessing.get_context(method)
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,))
        process.start()
        theirs.close()
        result[method] = ours.recv()
        process.join()
        result[method + ' class'] = type(process).__module__ == 'mproc_ext.context' or \
            type(process).__module__
        with ProcessPoolExecutor(1, mp_context=context) as executor:
            result[method + ' futures'] = executor.submit(task, 1).result()
        with context.Pool(1) as pool:
            result[method + ' pool'] = pool.map(task, [1])[0]
    print(json.dumps(result))
"""

BEGINS = {
    "install": ("import mproc_ext; mproc_ext.install()", [], {}),
    "install twice": ("import mproc_ext; mproc_ext.install(); mproc_ext.install()", [], {}),
    "install late": (
        "import multiprocessing.pool; del multiprocessing; import mproc_ext; mproc_ext.install()",
        [],
        {},
    ),
    "-m mproc_ext": ("", ["-m", "mproc_ext"], {}),
    "variable": ("", [], {"MPROC_EXT_ALIAS": "1"}),
    "variable and -I": ("", ["-I"], {"MPROC_EXT_ALIAS": "1"}),
}


def submodules():
    """The stdlib's submodules that can be imported here."""
    code = """
import importlib, json, multiprocessing, multiprocessing.dummy, pkgutil
names = [m.name for m in pkgutil.iter_modules(multiprocessing.__path__)]
names += ['dummy.' + m.name for m in pkgutil.iter_modules(multiprocessing.dummy.__path__)]
print(json.dumps([name for name in names if 'win32' not in name]))
"""
    environ = {**os.environ, "MPROC_EXT_ALIAS": ""}
    return json.loads(subprocess.check_output([sys.executable, "-c", code], env=environ, cwd="/"))


@pytest.mark.parametrize("begin", BEGINS)
def test_everywhere(programs, tmp_path, begin):
    code, options, environ = BEGINS[begin]
    names = submodules()
    assert len(names) > 20
    (tmp_path / "program.py").write_text(EVERYWHERE.format(begin=code, names=names))
    result = programs.run_python(*options, tmp_path / "program.py", env=environ)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.pop("here") == []
    for method in ("fork", "spawn", "forkserver"):
        assert found.pop(method) == []
        assert found.pop(f"{method} class") is True
        assert found.pop(f"{method} futures") == [True, []]
        assert found.pop(f"{method} pool") == [True, []]
    assert found == {}
    if begin != "install late":
        assert result.stderr == ""


def test_modules_are_found_by_both_names(programs):
    code = f"""
import inspect, sys
for name in {submodules()!r}:
    names = {{}}
    exec(f"from multiprocessing import {{name}} as found", names) if "." not in name else \\
        exec(f"from multiprocessing.dummy import {{name[6:]}} as found", names)
    for package in ("multiprocessing", "mproc_ext"):
        assert sys.modules[f"{{package}}.{{name}}"] is names["found"], (package, name)
from multiprocessing import pool, util
assert inspect.getmodule(pool.ApplyResult) is pool
assert inspect.getmodule(util.Finalize) is util
"""
    result = programs.run_python("-m", "mproc_ext", "-c", code)
    assert (result.returncode, result.stderr) == (0, "")


def test_our_private_modules_are_loaded_once(programs):
    code = """
import multiprocessing.managers, sys
import mproc_ext
for name in ('_modules', '_core', '_alias', '_stdlib', '_run'):
    __import__('multiprocessing.' + name)
    assert sys.modules['multiprocessing.' + name] is sys.modules['mproc_ext.' + name], name
try:
    import multiprocessing.no_such_module
except ModuleNotFoundError as error:
    assert str(error) == "No module named 'multiprocessing.no_such_module'", error
else:
    raise AssertionError
import multiprocessing.pool
from mproc_ext._finder import Finder
assert sys.meta_path.count(Finder) == 1
"""
    result = programs.run_python("-m", "mproc_ext", "-c", code)
    assert (result.returncode, result.stderr) == (0, "")


def test_modules_are_pickled_by_name(programs):
    """As cloudpickle and dill have it, where a function of __main__ uses one."""
    code = (
        "import copyreg, pickle, multiprocessing.util, multiprocessing.context as context\n"
        "for module in (multiprocessing.util, context):\n"
        "    assert pickle.loads(pickle.dumps(module)) is module\n"
    )
    result = programs.run_python("-m", "mproc_ext", "-c", code)
    assert (result.returncode, result.stderr) == (0, "")


def test_source_of_a_program_is_found_from_another_folder(programs, tmp_path):
    (tmp_path / "program.py").write_text(
        "import inspect, os\n"
        "def function(): pass\n"
        "os.chdir('/')\n"
        "print(inspect.getsource(function), end='')\n"
        "print(function.__code__.co_filename == __file__, __builtins__.len([1]),"
        " '__annotations__' in globals())\n"
    )
    theirs = programs.run_python("program.py", cwd=tmp_path)
    ours = programs.run_python("-m", "mproc_ext", "program.py", cwd=tmp_path)
    assert (ours.stdout, ours.stderr) == (theirs.stdout, "")
    assert ours.stdout.startswith("def function(): pass\nTrue 1 ")


def test_without_the_alias_multiprocessing_is_the_stdlibs(programs):
    code = "import multiprocessing, mproc_ext; print(multiprocessing is mproc_ext)"
    assert programs.run_python("-c", code).stdout == "False\n"
    for value in ("0", "", "no"):
        result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": value})
        assert result.stdout == "False\n", value


MEANS = "import multiprocessing; print(multiprocessing.__name__)"


def test_pythons_started_in_other_ways_have_it_too(programs):
    """Those that subprocess starts, and theirs: the variable is in the environment."""
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {MEANS!r}])"
    assert programs.run_python("-m", "mproc_ext", "-c", code).stdout == "mproc_ext\n"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    assert programs.run_python("-m", "mproc_ext", "-c", outer).stdout == "mproc_ext\n"


def test_variable_imports_nothing_before_it_is_needed(programs):
    code = "import sys; print([name for name in sys.modules if 'multiprocessing' in name])"
    result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": "1"})
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    "first",
    [
        "import multiprocessing",
        "import multiprocessing.pool as pool; assert pool.__name__ == 'mproc_ext.pool'",
        "from multiprocessing import Pool; assert Pool.__func__.__module__ == 'mproc_ext.context'",
        "from multiprocessing.dummy import connection; assert connection.Pipe",
        "import mproc_ext",
        "import mproc_ext.pool",
        "from mproc_ext import pool",
        "import mproc_ext; mproc_ext.install()",
        "import concurrent.futures.process",
        "import threading; assert threading.__spec__.loader is not None",
        "__import__('multiprocessing')",
        "import importlib; importlib.import_module('multiprocessing.pool')",
    ],
)
def test_variable_whatever_is_imported_first(programs, first):
    code = (
        f"{first}\nimport sys, multiprocessing, mproc_ext, multiprocessing.pool\n"
        "print(multiprocessing is mproc_ext, multiprocessing.pool is mproc_ext.pool,"
        " any(type(finder).__name__ == '_FirstImport' for finder in sys.meta_path))"
    )
    result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": "1"})
    assert (result.stdout, result.stderr) == ("True True False\n", "")


THREADS = """
import sys, threading
barrier = threading.Barrier(6)
errors = []

def load(*names):
    barrier.wait()
    try:
        for name in names:
            __import__(name)
    except BaseException as error:
        errors.append(repr(error))

names = ('', '.queues', '.pool', '.context', '.managers', '.connection')
threads = [threading.Thread(target=load, args=('multiprocessing' + name,)) for name in names]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
import multiprocessing, mproc_ext
print(errors, multiprocessing is mproc_ext, multiprocessing.pool is mproc_ext.pool)
"""


# One thread is in the middle of the package when the other executes a submodule of it.
TWO_THREADS = """
import importlib, sys, threading
other_may_begin, first_may_go_on = threading.Event(), threading.Event()
errors = []

def load(name):
    try:
        importlib.import_module(name).__name__
        importlib.import_module('mproc_ext').get_context('spawn').Process
    except BaseException as error:
        errors.append((name, repr(error)))

def meet(event, arguments):
    if event != 'exec':
        return
    path = getattr(arguments[0], 'co_filename', '')
    if path.endswith('/mproc_ext/POINT.py'):
        other_may_begin.set()
        first_may_go_on.wait()
    elif path.endswith(('/mproc_ext/SUBMODULE.py', '/mproc_ext/SUBMODULE/__init__.py')):
        first_may_go_on.set()

sys.addaudithook(meet)
threads = [threading.Thread(target=load, args=('mproc_ext',))]
threads[0].start()
other_may_begin.wait()
threads.append(threading.Thread(target=load, args=('mproc_ext.SUBMODULE',)))
threads[1].start()
for thread in threads:
    thread.join()
print(errors)
"""


@pytest.mark.skipif(
    sys.version_info >= (3, 14),
    reason="the import system lets nobody begin with a submodule while its package is executed",
)
@pytest.mark.parametrize("submodule", ["context", "connection", "pool", "spawn", "dummy"])
@pytest.mark.parametrize("point", ["_modules", "_stdlib", "_version"])
def test_threads_that_import_package_and_submodule(programs, submodule, point):
    code = TWO_THREADS.replace("SUBMODULE", submodule).replace("POINT", point)
    result = programs.run_python("-c", code)
    assert (result.stdout, result.stderr) == ("[]\n", "")


@pytest.mark.parametrize("begin", ["-m mproc_ext", "variable"])
def test_threads_that_import_at_the_same_time(programs, begin):
    _, options, environ = BEGINS[begin]
    for _ in range(10):
        result = programs.run_python(*options, "-c", THREADS, env=environ)
        assert (result.stdout, result.stderr) == ("[] True True\n", "")


def test_variable_and_a_look_for_the_package(programs):
    code = (
        "import importlib.util, sys\n"
        "assert importlib.util.find_spec('multiprocessing') is not None\n"
        "assert 'multiprocessing' not in sys.modules\n" + MEANS
    )
    result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": "1"})
    assert (result.stdout, result.stderr) == ("mproc_ext\n", "")


def test_variable_and_an_installation_that_is_broken(programs):
    """Each import says so; none quietly means the stdlib."""
    code = (
        "import sys\n"
        "sys.modules['mproc_ext._modules'] = None\n"
        "for _ in range(2):\n"
        "    try:\n        import multiprocessing\n"
        "    except ImportError as error:\n        print(error.name)\n"
    )
    result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": "1"})
    assert (result.stdout, result.stderr) == ("mproc_ext._modules\n" * 2, "")


def test_variable_and_a_multiprocessing_that_is_there_already(programs):
    """Another .pth file, or sitecustomize, was first."""
    code = "__import__('multiprocessing.pool')\n__import__('_mproc_ext_alias').enable()\n" + MEANS
    result = programs.run_python("-c", code)
    assert (result.stdout, result.stderr) == ("mproc_ext\n", "")


def test_without_the_core_there_is_no_alias(programs):
    environ = {"MPROC_EXT_DISABLE": "1"}
    result = programs.run_python("-m", "mproc_ext", "-c", MEANS, env=environ)
    assert (result.returncode, result.stdout) == (0, "multiprocessing\n"), result.stderr


# ---- what was imported before ----------------------------------------------------------------


def test_the_warning_names_the_modules(programs, tmp_path):
    (tmp_path / "early.py").write_text("from multiprocessing import Process, Queue")
    (tmp_path / "module.py").write_text("import multiprocessing as mp")
    (tmp_path / "deep.py").write_text("from multiprocessing.pool import Pool")
    (tmp_path / "innocent.py").write_text("import json")
    (tmp_path / "program.py").write_text(
        "import early, module, deep, innocent\n"
        "import mproc_ext\n"
        "mproc_ext.install()\n"
        "import multiprocessing\n"
        "print(multiprocessing is mproc_ext, early.Process is mproc_ext.Process)\n"
    )
    result = programs.run_python(tmp_path / "program.py")
    assert result.stdout == "True False\n", result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    for name in ("early", "module", "deep"):
        assert name in result.stderr
    assert "innocent" not in result.stderr
    assert "program.py:3" in result.stderr, "the warning is about the line that calls install()"


def test_no_warning_without_reason(programs, tmp_path):
    (tmp_path / "program.py").write_text(
        "import json, concurrent.futures, concurrent.futures.process, logging.handlers\n"
        "import mproc_ext\n"
        "mproc_ext.install()\n"
    )
    result = programs.run_python("-W", "error", tmp_path / "program.py")
    assert (result.returncode, result.stderr) == (0, "")


def test_names_imported_before_still_work(programs, tmp_path, method):
    (tmp_path / "program.py").write_text(
        f"""
import sys, warnings
from multiprocessing import get_context, current_process
import mproc_ext
warnings.simplefilter('ignore')
mproc_ext.install()
import multiprocessing

def child(queue):
    queue.put(current_process() is multiprocessing.current_process())

if __name__ == '__main__':
    for context in (get_context({method!r}), multiprocessing.get_context({method!r})):
        queue = context.SimpleQueue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        assert queue.get() is True
        process.join()
        assert process.exitcode == 0
    print('ok')
"""
    )
    result = programs.run_python(tmp_path / "program.py")
    assert (result.returncode, result.stdout) == (0, "ok\n"), result.stderr


def test_both_packages_in_one_program(programs, tmp_path, method):
    (tmp_path / "program.py").write_text(
        f"""
import multiprocessing, mproc_ext

def child(one, two):
    two.put(one.get() + 1)

if __name__ == '__main__':
    for package in (multiprocessing, mproc_ext):
        theirs = multiprocessing.get_context({method!r}).Queue()
        ours = mproc_ext.get_context({method!r}).Queue()
        process = package.get_context({method!r}).Process(target=child, args=(theirs, ours))
        process.start()
        theirs.put(1)
        assert ours.get() == 2
        process.join()
        assert process.exitcode == 0
        theirs.close()
        theirs.join_thread()  # or the next fork would warn of it
    print('ok')
"""
    )
    result = programs.run_python(tmp_path / "program.py")
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")


# ---- another version in the child, or no core ------------------------------------------------


@pytest.mark.parametrize("way", ["spawn", "forkserver"])
def test_child_without_the_core_stops(programs, tmp_path, way):
    (tmp_path / "program.py").write_text(
        f"""
import os
import mproc_ext

def child():
    print('the child ran')

if __name__ == '__main__':
    os.environ['MPROC_EXT_DISABLE'] = '1'
    process = mproc_ext.get_context({way!r}).Process(target=child)
    try:
        process.start()
    except (EOFError, ConnectionError):  # it ends before the request, or with it
        print('exit code 1')
    else:
        process.join()
        print('exit code', process.exitcode)
"""
    )
    result = programs.run_python(tmp_path / "program.py")
    assert result.stdout == "exit code 1\n", result.stdout + result.stderr
    assert result.stderr.startswith("mproc_ext: the process that started this one runs with")
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_child_with_another_version_stops(programs, tmp_path):
    """The parent says that it is another version than the one that is installed."""
    (tmp_path / "program.py").write_text(
        """
import sys
import mproc_ext, mproc_ext.spawn, mproc_ext.forkserver

def child():
    print('the child ran')

if __name__ == '__main__':
    mproc_ext.spawn.__version__ = '99.0.0'
    process = mproc_ext.get_context('spawn').Process(target=child)
    process.start()
    process.join()
    print('exit code', process.exitcode)
"""
    )
    result = programs.run_python(tmp_path / "program.py")
    assert result.stdout == "exit code 1\n", result.stdout + result.stderr
    assert "99.0.0" in result.stderr
    assert "mproc_ext" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_exit_functions_that_came_before_the_package_can_use_it(programs):
    code = """
import atexit

@atexit.register
def leave():
    from multiprocessing import Process, SimpleQueue
    import multiprocessing.pool
    queue = SimpleQueue()  # a Queue would start a thread, which 3.12 does not do here
    process = Process(target=queue.put, args=(multiprocessing.__name__,))
    process.start()
    print(queue.get(), process.join(), process.exitcode)

import multiprocessing
"""
    result = programs.run_python("-c", code, env={"MPROC_EXT_ALIAS": "1"})
    assert (result.stdout, result.stderr) == ("mproc_ext None 0\n", "")


def test_options_in_one_word(programs):
    for arguments in (["-cprint(__name__)"], ["-c", "print(__name__)"]):
        result = programs.run_python("-m", "mproc_ext", *arguments)
        assert (result.stdout, result.stderr) == ("__main__\n", "")
    result = programs.run_python("-m", "mproc_ext", "-mjson.tool", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("usage: ")


def test_options_of_python_itself_come_first(programs):
    for option in ("-u", "--version", "-O"):
        result = programs.run_python("-m", "mproc_ext", option, "program.py")
        assert result.returncode == 2
        assert result.stderr.startswith(f"Unknown option: {option}\n")


@pytest.mark.parametrize("code", ["print(1)", "  print(1)\n  print(2)"])
def test_indented_code(programs, code):
    """Python takes the indent away since 3.14."""
    theirs = programs.run_python("-c", code)
    ours = programs.run_python("-m", "mproc_ext", "-c", code)
    assert (ours.returncode, ours.stdout) == (theirs.returncode, theirs.stdout)
