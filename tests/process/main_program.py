"""A program that says what its child processes see of it.  test_main_handling.py runs it in every
way in which Python runs a program, with this name or another; PACKAGE is replaced before."""

import json
import os
import sys

import PACKAGE as multiprocessing


def seen():
    """What a process can tell of the main module and of how it was started."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return {
        "name": __name__,
        "main": main.__name__,
        "same main": sys.modules.get("__mp_main__") is main,
        "file": getattr(main, "__file__", None),
        "spec": getattr(spec, "name", None),
        "package": getattr(main, "__package__", None),
        "argv": sys.argv,
        "orig_argv": sys.orig_argv[-1] if multiprocessing.parent_process() is None else None,
        "path": sys.path,
        "cwd": os.getcwd(),
        "flags": str(sys.flags),
        "warnoptions": sys.warnoptions,
        "dev": sys.flags.dev_mode,
        "utf8": sys.flags.utf8_mode,
        "xoptions": sorted(sys._xoptions),
        "executable": sys.executable,
        "stdin": os.path.samestat(os.fstat(0), os.stat(os.devnull)),
        "daemon": multiprocessing.current_process().daemon,
        "process": multiprocessing.current_process().name,
        "method": multiprocessing.get_start_method(allow_none=True),
    }


class Own:
    """An object of the main module's travels to the child and back."""

    def __init__(self, value):
        self.value = value


def child(connection, own):
    connection.send([seen(), own.value])
    connection.send(own)


def main(method):
    context = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    process = context.Process(target=child, args=(theirs, Own(5)), name="the child")
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        back = ours.recv()
        answer.append(isinstance(back, Own) and back.value)
    except EOFError:
        answer = "no answer"
    process.join()
    # A process whose target is not of the main module.
    ours, theirs = context.Pipe()
    other = context.Process(target=theirs.send, args=("from a builtin",))
    other.start()
    theirs.close()
    try:
        builtin = ours.recv()
    except EOFError:
        builtin = "no answer"
    other.join()
    result = [seen(), answer, process.exitcode, builtin, other.exitcode]
    print("RESULT" + "=" + json.dumps(result), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
