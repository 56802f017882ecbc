"""Shared by the tests here."""

import pathlib

from sync_helpers import LIMIT, wait_until

METHODS = ("fork", "spawn", "forkserver")
# Waits of a program end before the program's own limit, so that it says what has not happened.
SOON = LIMIT / 2


def lines(path):
    """What tasks have noted in a file so far."""
    return path.read_text().split() if path.exists() else []


def wait_for_lines(path, count, seconds=LIMIT):
    wait_until(lambda: len(lines(path)) >= count, f"line {count} of {path.name}", seconds)
    return lines(path)


def is_gone(pid):
    """Whether a process has ended; a zombie has."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in "ZX"


def wait_until_gone(*pids, seconds=LIMIT):
    wait_until(lambda: all(map(is_gone, pids)), f"the end of {pids}", seconds)


def chain(error):
    """An exception and what it was raised from, down to the first."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def story(error):
    """All that an exception says, with what it was raised from."""
    return "\n".join(f"{type(each).__name__}: {each}" for each in chain(error))
