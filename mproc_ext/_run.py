"""Run a program in which ``import multiprocessing`` means this package.

    python -m mproc_ext program.py [argument ...]
    python -m mproc_ext -m module [argument ...]
    python -m mproc_ext -c code [argument ...]
    python -m mproc_ext - [argument ...]              the program comes from standard input

It sets MPROC_EXT_ALIAS=1, so that a Python which the program starts by other means has it too.
"""

import builtins
import os
import sys
from importlib.machinery import BuiltinImporter
from types import ModuleType

__all__ = ["main"]

USAGE = "usage: python -m mproc_ext [-m module | -c code | program | -] [argument ...]"


def main():
    """Take the program from ``sys.argv`` and run it as ``__main__``."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE if arguments else f"{USAGE}\n(a program is missing)")
        sys.exit(0 if arguments else 2)
    if arguments[0][:2] in ("-m", "-c") and len(arguments[0]) > 2:  # in one word
        arguments[:1] = arguments[0][:2], arguments[0][2:]
    if arguments[0][:1] == "-" and arguments[0] not in ("-m", "-c", "-"):
        sys.exit(_unknown_option(arguments[0]))
    if arguments[0] in ("-m", "-c") and len(arguments) < 2:
        sys.exit(f"Argument expected for the {arguments[0]} option\n{USAGE}")

    from mproc_ext import install

    os.environ["MPROC_EXT_ALIAS"] = "1"
    _fresh_main()
    install()
    _hide_our_frames()
    if arguments[0] == "-m":
        _run_module(arguments[1:])
    elif arguments[0] == "-c":
        _run_code(arguments[1:])
    elif arguments[0] == "-":
        _run_stdin(arguments)
    else:
        _run_path(arguments)


def _unknown_option(option):
    print(
        f"Unknown option: {option}\nOptions of Python itself come before -m mproc_ext.\n{USAGE}",
        file=sys.stderr,
    )
    return 2


def _fresh_main():
    """A new, empty ``__main__`` that stays: threads and exit functions outlive the program."""
    module = ModuleType("__main__")
    vars(module).update(__builtins__=builtins, __loader__=BuiltinImporter)
    if sys.version_info < (3, 14):
        vars(module)["__annotations__"] = {}
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _set_path0(folder):
    """What Python puts first on sys.path for this kind of program, in place of what it put there
    for ``-m mproc_ext``: the current folder."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = folder


def _run_module(arguments):
    import runpy

    sys.argv[:] = arguments
    runpy._run_module_as_main(arguments[0], alter_argv=True)


def _run_code(arguments):
    sys.argv[:] = ["-c", *arguments[1:]]
    _set_path0("")
    source = arguments[0]
    if sys.version_info >= (3, 14):
        import textwrap

        source = textwrap.dedent(source)
    code = compile(source, "<string>", "exec", dont_inherit=True)
    if sys.version_info >= (3, 13):
        _register_source(code, source, "<string>")
    exec(code, vars(sys.modules["__main__"]))


def _register_source(code, source, name):
    """Let tracebacks show the lines, as those of -c do since 3.13."""
    import linecache

    register = getattr(linecache, "_register_code", None)
    if register is not None:
        # Before some release of 3.13 the name was the key.
        takes_code = sys.version_info >= (3, 14) or hasattr(linecache, "_interactive_cache")
        register(code if takes_code else name, source, name)


def _run_stdin(arguments):
    sys.argv[:] = arguments
    _set_path0("")
    _set_file("<stdin>")
    _execute(sys.stdin.buffer.read(), "<stdin>")


def _run_path(arguments):
    import runpy
    from importlib.machinery import SourceFileLoader
    from pkgutil import get_importer

    path = arguments[0]
    sys.argv[:] = arguments
    if type(get_importer(path)).__name__ not in ("NoneType", "NullImporter", "FileFinder") or (
        os.path.isdir(path)
    ):
        # A folder or an archive with a __main__ module.
        _set_path0(os.path.join(os.getcwd(), path))
        runpy._run_module_as_main("__main__", alter_argv=False)
        return
    try:
        with open(path, "rb") as file:
            source = file.read()
    except OSError as error:
        print(
            f"{sys.executable}: can't open file {os.path.abspath(path)!r}: "
            f"[Errno {error.errno}] {error.strerror}",
            file=sys.stderr,
        )
        sys.exit(2)
    _set_path0(os.path.dirname(os.path.realpath(path)))
    path = os.path.join(os.getcwd(), path)  # as it was given: Python keeps the dots too
    _set_file(path, __loader__=SourceFileLoader("__main__", path))
    if path.endswith(".pyc"):
        exec(_code_of_pyc(source), vars(sys.modules["__main__"]))
    else:
        _execute(source, path)


def _set_file(path, **more):
    if sys.version_info < (3, 15):
        more["__cached__"] = None
    vars(sys.modules["__main__"]).update(__file__=path, **more)


def _code_of_pyc(data):
    import marshal
    from importlib.util import MAGIC_NUMBER

    if data[:4] != MAGIC_NUMBER:
        sys.exit("RuntimeError: Bad magic number in .pyc file")
    return marshal.loads(data[16:])


def _execute(source, filename):
    exec(compile(source, filename, "exec", dont_inherit=True), vars(sys.modules["__main__"]))


def _hide_our_frames():
    """Leave the frames of this file, and of runpy above the program, out of its tracebacks."""
    import runpy

    original = sys.excepthook
    hidden = (
        __file__,
        os.path.join(os.path.dirname(__file__), "__main__.py"),
        runpy._run_code.__code__.co_filename,
    )

    def excepthook(kind, value, traceback):
        program = traceback
        while program is not None and program.tb_frame.f_code.co_filename in hidden:
            program = program.tb_next
        # Nothing left: the error is in the source itself (SyntaxError), which it shows.
        original(kind, value if value is None else value.with_traceback(program), program)

    sys.excepthook = excepthook
