"""What the children of the tests here run: importable by name under every start method."""

import os


def echo(connection):
    """Send back what comes, until it is None."""
    while (thing := connection.recv()) is not None:
        connection.send(thing)
    connection.close()


def echo_bytes(connection, count):
    for _ in range(count):
        connection.send_bytes(connection.recv_bytes())


def describe(connection, other):
    """What another process sees of a connection."""
    kind = type(other)
    connection.send((kind.__module__, kind.__qualname__, other.readable, other.writable))
    connection.send(other.closed)


def use_what_comes(connection):
    """Use, and send back, connections that come through another one."""
    writer = connection.recv()
    reader = connection.recv()
    writer.send(("from", os.getpid()))
    connection.send(reader.recv())
    connection.send(reader)
    connection.recv()


def hold(connection, *others):
    connection.send("holds")
    connection.recv()


receive_inside = None  # what a test puts there, to be called when a message is unpickled


class Point:
    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None


def call_receive_inside():
    return receive_inside()
