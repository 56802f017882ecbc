"""What the children of the tests here run: importable by name under every start method."""

import os
import signal
import time


def raise_back(kind, *args):
    raise kind(*args)


class Poison:
    """Can be pickled; unpickling raises."""

    def __init__(self, kind=ValueError, *args):
        self.what = kind, *args

    def __reduce__(self):
        return raise_back, self.what


def put_all(q, objects):
    for thing in objects:
        q.put(thing)


def get_and_send(connection, q, count):
    connection.send([q.get() for _ in range(count)])


def echo(tasks, results):
    """Send back what comes, until it is None."""
    while (thing := tasks.get()) is not None:
        results.put(thing)
    results.put(None)


def get_or_name_error(q, results, count):
    for _ in range(count):
        try:
            results.put(q.get())
        except Exception as error:
            results.put(type(error).__name__)


def hand_on(connection, q, package, method):
    """Give what this child was given to a child of its own."""
    import importlib

    ctx = importlib.import_module(package).get_context(method)
    child = ctx.Process(target=get_and_send, args=(connection, q, 1))
    child.start()
    child.join()
