"""Without its core the package is there all the same, and hands out the stdlib."""

import importlib.util
import os
import shutil
import subprocess
import sys

import pytest

MODULES = (
    "connection context dummy dummy.connection forkserver heap managers pool popen_fork "
    "popen_forkserver popen_spawn_posix process queues reduction resource_sharer resource_tracker "
    "shared_memory sharedctypes spawn synchronize util"
).split()

PROGRAM = """\
import multiprocessing
import os
import mproc_ext

def target(queue):
    queue.put((os.environ["MPROC_EXT_DISABLE"], mproc_ext.ACCELERATED))

if __name__ == "__main__":
    mproc_ext.install()  # has nothing to do
    for method in multiprocessing.get_all_start_methods():
        context = mproc_ext.get_context(method)
        assert context is multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=target, args=(queue,))
        process.start()
        assert queue.get(timeout=60) == ("1", False)
        process.join()
        assert process.exitcode == 0
    with mproc_ext.Pool(1) as pool:
        assert pool.map(abs, [-1, 2]) == [1, 2]
    print("done")
"""


def python(*arguments, cwd, **variables):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MPROC_EXT_")}
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=kept | {"MPROC_EXT_DISABLE": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_every_name_is_the_stdlib_s(tmp_path):
    code = (
        "import importlib, multiprocessing, mproc_ext\n"
        "assert mproc_ext.ACCELERATED is False\n"
        "for name in multiprocessing.__all__:\n"
        "    ours, theirs = getattr(mproc_ext, name), getattr(multiprocessing, name)\n"
        "    assert ours == theirs, name\n"
        f"for name in {MODULES}:\n"
        "    ours = importlib.import_module('mproc_ext.' + name)\n"
        "    assert ours is importlib.import_module('multiprocessing.' + name), name\n"
        "import sys; assert 'mproc_ext._core' not in sys.modules\n"
    )
    done = python("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_one_log_line_says_why(tmp_path):
    code = "import logging; logging.basicConfig(level=logging.INFO); import mproc_ext"
    (line,) = python("-c", code, cwd=tmp_path).stderr.splitlines()
    assert "MPROC_EXT_DISABLE" in line
    assert "stdlib" in line


@pytest.mark.parametrize("start", [[], ["-m", "mproc_ext"]])
def test_a_program_runs(tmp_path, start):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = python(*start, program, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_the_alias_leaves_the_stdlib_alone(tmp_path):
    code = "import multiprocessing; print(multiprocessing.__name__)"
    done = python("-c", code, cwd=tmp_path, MPROC_EXT_ALIAS="1")
    assert (done.stdout, done.stderr) == ("multiprocessing\n", "")


@pytest.mark.parametrize("value", ["", "0"])
def test_the_switch_is_off(tmp_path, value):
    code = "import mproc_ext; print(mproc_ext.ACCELERATED)"
    done = python("-c", code, cwd=tmp_path, MPROC_EXT_DISABLE=value)
    assert (done.stdout, done.stderr) == ("True\n", "")


def test_a_package_that_is_not_built_says_so(tmp_path):
    source = os.path.dirname(importlib.util.find_spec("mproc_ext").origin)
    shutil.copytree(source, tmp_path / "mproc_ext", ignore=shutil.ignore_patterns("*.so"))
    code = "import mproc_ext; print(mproc_ext.ACCELERATED)"
    result = python("-c", code, cwd=tmp_path, MPROC_EXT_DISABLE="0", PYTHONPATH=str(tmp_path))
    assert result.stdout == "False\n", result.stderr
    assert f"it is not built in {tmp_path / 'mproc_ext'}" in result.stderr
