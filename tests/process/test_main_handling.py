"""Children see the program as the stdlib's children do, in whatever way it was run.

Each way of running a program is tried on the stdlib, under our name, and as multiprocessing through
`python -m mproc_ext` and MPROC_EXT_ALIAS=1; what parent and child report has to be the same.
"""

import functools
import json
import os
import pty
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("main_program.py").read_text()
VARIANTS = ("ours", "-m mproc_ext", "MPROC_EXT_ALIAS")


def source(variant):
    return SOURCE.replace("PACKAGE", "mproc_ext" if variant == "ours" else "multiprocessing")


def start(variant, *options):
    """The command up to the program, with options of Python."""
    alias = ["-m", "mproc_ext"] if variant == "-m mproc_ext" else []
    return [sys.executable, *options, *alias]


# Each way gets a folder to write to, and the variant; it returns the command without the last
# argument, and what to give to `run`.

WAYS = {}


def way(function):
    WAYS[function.__name__] = function
    return function


@way
def script(folder, variant):
    (folder / "program.py").write_text(source(variant))
    return [*start(variant), folder / "program.py"], {}


@way
def relative_script(folder, variant):
    (folder / "program.py").write_text(source(variant))
    return [*start(variant), "program.py"], {"cwd": folder}


@way
def script_of_a_parent_folder(folder, variant):
    (folder / "sub").mkdir()
    (folder / "program.py").write_text(source(variant))
    return [*start(variant), "../program.py"], {"cwd": folder / "sub"}


@way
def script_without_extension(folder, variant):
    (folder / "program").write_text(source(variant))
    return [*start(variant), folder / "program"], {}


@way
def script_with_an_odd_name(folder, variant):
    (folder / "pro gräm-1.2.py").write_text(source(variant))
    return [*start(variant), folder / "pro gräm-1.2.py"], {}


@way
def script_through_a_link(folder, variant):
    (folder / "real").mkdir()
    (folder / "real" / "program.py").write_text(source(variant))
    (folder / "link.py").symlink_to("real/program.py")
    return [*start(variant), folder / "link.py"], {}


@way
def script_that_changes_the_folder(folder, variant):
    (folder / "program.py").write_text("import os\nos.chdir('/')\n" + source(variant))
    return [*start(variant), "program.py"], {"cwd": folder}


@way
def module(folder, variant):
    (folder / "program.py").write_text(source(variant))
    return [*start(variant), "-m", "program"], {"cwd": folder}


@way
def module_of_a_package(folder, variant):
    package = folder / "package" / "inner"
    package.mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "program.py").write_text(
        "from . import neighbour; assert neighbour\n" + source(variant)
    )
    (package / "neighbour.py").write_text("")
    return [*start(variant), "-m", "package.inner.program"], {"cwd": folder}


@way
def package(folder, variant):
    (folder / "package").mkdir()
    (folder / "package" / "__init__.py").write_text("")
    (folder / "package" / "__main__.py").write_text(source(variant))
    return [*start(variant), "-m", "package"], {"cwd": folder}


@way
def directory(folder, variant):
    (folder / "app").mkdir()
    (folder / "app" / "__main__.py").write_text(source(variant))
    return [*start(variant), folder / "app"], {}


@way
def zipapp(folder, variant):
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        archive.writestr("__main__.py", source(variant))
    return [*start(variant), folder / "app.pyz"], {}


@way
def zipapp_that_imports_the_program(folder, variant):
    """The advised shape: the functions are in a module of the archive."""
    text = source(variant).replace('if __name__ == "__main__":', "def run():")
    with zipfile.ZipFile(folder / "app.pyz", "w") as archive:
        archive.writestr(
            "__main__.py", "import program\nif __name__ == '__main__': program.run()\n"
        )
        archive.writestr("program.py", text)
    return [*start(variant), folder / "app.pyz"], {}


@way
def module_in_a_zip(folder, variant):
    with zipfile.ZipFile(folder / "lib.zip", "w") as archive:
        archive.writestr("program.py", source(variant))
    environ = {"PYTHONPATH": str(folder / "lib.zip")}
    return [*start(variant), "-m", "program"], {"env": environ, "cwd": folder}


@way
def command(folder, variant):
    return [*start(variant), "-c", source(variant)], {"cwd": folder}


@way
def standard_input(folder, variant):
    if variant == "-m mproc_ext":
        return None  # reading the program from stdin is what `python` without a program does
    return [*start(variant), "-"], {"input": source(variant), "cwd": folder}


@way
def interactive_after_a_script(folder, variant):
    if variant == "-m mproc_ext":
        return None  # there, -i is an option of the Python that runs mproc_ext
    (folder / "program.py").write_text(source(variant))
    return [*start(variant, "-i"), folder / "program.py"], {}


@way
def with_options(folder, variant):
    (folder / "program.py").write_text(source(variant))
    options = ["-B", "-O", "-W", "ignore::ImportWarning", "-X", "utf8", "-u"]
    return [*start(variant, *options), folder / "program.py"], {}


@way
def isolated(folder, variant):
    (folder / "program.py").write_text(source(variant))
    return [*start(variant, "-I"), folder / "program.py"], {}


@way
def development_mode(folder, variant):
    (folder / "program.py").write_text(source(variant))
    return [*start(variant, "-X", "dev", "-W", "ignore"), folder / "program.py"], {}


@way
def program_that_starts_in_a_thread(folder, variant):
    text = source(variant).replace(
        "    main(sys.argv[1])\n",
        "    import threading\n    thread = threading.Thread(target=main, args=(sys.argv[1],))\n"
        "    thread.start()\n    thread.join()\n",
    )
    (folder / "program.py").write_text(text)
    return [*start(variant), folder / "program.py"], {}


@way
def without_standard_input(folder, variant):
    """fd 0 is closed: the child's first descriptors are not what they usually are."""
    text = "import os\nif __name__ == '__main__': os.close(0)\n" + source(variant).replace(
        "os.fstat(0)", "os.stat(os.devnull)"
    )
    (folder / "program.py").write_text(text)
    return [*start(variant), folder / "program.py"], {}


def result_of(output):
    found = re.findall(r"^(?:>>> )*RESULT=(.*)$", output, re.MULTILINE)
    assert len(found) == 1, output
    return json.loads(found[0])


results = {}


def outcome(programs, tmp_path_factory, name, method, variant):
    """(what the program printed, its exit status), with the folder's and the variant's name cut."""
    key = name, method, variant
    if key not in results:
        folder = tmp_path_factory.mktemp("main")
        made = WAYS[name](folder, variant)
        if made is None:
            return None
        begin, keywords = made
        environ = {**keywords.pop("env", {})}
        if variant == "MPROC_EXT_ALIAS":
            environ["MPROC_EXT_ALIAS"] = "1"
        result = programs.run([*begin, method], env=environ, **keywords)
        try:
            value = result_of(result.stdout)
        except AssertionError:
            value = f"no result: {result.stdout}{result.stderr}"
        text = json.dumps(value).replace(str(folder), "FOLDER")
        text = text.replace("FOLDER/sub/../", "FOLDER/")  # `python -m mproc_ext` has it so at once
        text = text.replace("mproc_ext", "multiprocessing")
        results[key] = json.loads(text), result.returncode, result.stderr
    return results[key]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", WAYS)
def test_same_as_with_the_stdlib(programs, tmp_path_factory, name, method, variant):
    theirs = outcome(programs, tmp_path_factory, name, method, "stdlib")
    ours = outcome(programs, tmp_path_factory, name, method, variant)
    if ours is None:
        pytest.skip("there is no such way to run a program through mproc_ext")
    if (name, method) == ("standard_input", "forkserver") and sys.version_info[:2] == (3, 14):
        # The stdlib's server dies of a main module that has no file, ours lets the child fail.
        assert "ConnectionResetError" in theirs[0]
        value, status, _ = outcome(programs, tmp_path_factory, name, "spawn", "stdlib")
        theirs = json.loads(json.dumps(value).replace('"spawn"', '"forkserver"')), status
    assert isinstance(theirs[0], list), theirs
    assert ours[:2] == theirs[:2], ours[2]


def test_the_program_says_something(programs, tmp_path_factory, method):
    """What the comparison compares: a child of a script that knows its main module."""
    (parent, answer, exitcode, builtin, other), status, _ = outcome(
        programs, tmp_path_factory, "script", method, "ours"
    )
    assert status == 0
    child, own, back = answer
    assert (exitcode, other, own, back) == (0, 0, 5, 5)
    assert builtin == "from a builtin"
    assert parent["name"] == "__main__"
    assert child["name"] == ("__main__" if method == "fork" else "__mp_main__")
    assert child["file"] == "FOLDER/program.py"
    assert child["argv"] == ["FOLDER/program.py", method]
    assert child["process"] == "the child"
    assert child["path"] == parent["path"]


INTERACTIVE = """
import PACKAGE as multiprocessing
context = multiprocessing.get_context("METHOD")
ours, theirs = context.Pipe()
process = context.Process(target=theirs.send, args=("hello",))
process.start()
answer = ours.recv()
process.join()
def defined_here(): pass

own = context.Process(target=defined_here)
own.start()
own.join()
print("ANS" + "WER", answer, process.exitcode, own.exitcode)
exit()
"""


@functools.cache
def interactive(package, method, alias):
    """What an interactive Python, on a terminal, answers."""
    environ = {**os.environ, "PYTHON_BASIC_REPL": "1", "TERM": "dumb", "MPROC_EXT_ALIAS": alias}
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-q"],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environ,
        cwd="/",
        start_new_session=True,
    )
    os.close(terminal)
    text = INTERACTIVE.replace("PACKAGE", package).replace("METHOD", method)
    os.write(controller, text.encode())
    output = b""
    try:
        while True:
            try:
                data = os.read(controller, 4096)
            except OSError:  # EIO: the last process with the terminal has ended
                break
            if not data:
                break
            output += data
        process.wait(30)
    finally:
        process.kill()
        process.wait()
        os.close(controller)
    answers = re.findall(r"^ANSWER (.*?)\r?$", output.decode(), re.MULTILINE)
    assert len(answers) == 1, output.decode()
    return answers[0], process.returncode


@pytest.mark.parametrize(("package", "alias"), [("mproc_ext", ""), ("multiprocessing", "1")])
def test_interactive(method, package, alias):
    theirs = interactive("multiprocessing", method, "")
    assert theirs[0].startswith("hello 0 ")
    assert interactive(package, method, alias) == theirs


READS_AT_TOP_LEVEL = """
import sys
import mproc_ext

line = sys.stdin.readline().strip()

def target():
    print(repr(line), flush=True)

if __name__ == "__main__":
    process = mproc_ext.get_context("forkserver").Process(target=target)
    process.start()
    process.join()
    print(line, sys.stdin.readline().strip())
"""


def test_the_fork_server_does_not_read_the_programs_input(programs, tmp_path):
    """It runs the main module once more: what that reads at its top level is meant for the program.
    (A child of spawn reads it, as the stdlib's does.)"""
    path = tmp_path / "reads.py"
    path.write_text(READS_AT_TOP_LEVEL)
    read, write = os.pipe()
    os.write(write, b"one\ntwo\n")
    with open(read) as stdin:
        result = programs.run_python(path, stdin=stdin)
    os.close(write)
    assert (result.stdout, result.stderr) == ("''\none two\n", "")
