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


def close_and_say(connection, q):
    q.close()
    connection.send("closed")


def use_when_told(connection, q, results):
    connection.send("ready")
    connection.recv()
    results.put(q.get())
    q.put("own")
    results.put(q.get())


def consume(q):
    """Take and be done with what comes, until it is None."""
    while q.get() is not None:
        q.task_done()
    q.task_done()


def put_when_told(connection, q):
    while (thing := connection.recv()) is not None:
        q.put(thing)


def get_and_send_one(connection, q):
    connection.send(q.get())
    connection.recv()


def relay(source, sink):
    """From one end to another until there is an end, and say so; from queues, by their ends."""
    if not hasattr(source, "recv"):
        source._writer.close()
        source, sink = source._reader, sink._writer
    try:
        while True:
            sink.send(source.recv())
    except EOFError:
        sink.send("EOF")


def loop_back(reader, writer, results):
    writer.send("through the child")
    results.put(reader.recv())
