"""What the tests of zero_copy put into queues, and what their children run: importable by name."""

import pickle
import signal

from queue_helpers import pattern

from mproc_ext import _core

LEAST = 64 * 1024  # bytes from which a buffer is lent
BIG = 300_000


class Carrier:
    """Gives pickle its bytes as numpy's arrays do: out of band, from protocol 5 on."""

    def __init__(self, data, note=None):
        self.data = data
        self.note = note

    def __reduce_ex__(self, protocol):
        data = pickle.PickleBuffer(self.data) if protocol >= 5 else bytes(self.data)
        return type(self), (data, self.note)

    def bytes(self):
        return bytes(self.data)

    def is_writable(self):
        return not memoryview(self.data).readonly

    def write(self, data):
        memoryview(self.data)[:] = data


class ZeroCopyByteArray(bytearray):
    """Of the documentation of pickle's protocol 5."""

    def __reduce_ex__(self, protocol):
        if protocol >= 5:
            return type(self)._reconstruct, (pickle.PickleBuffer(self),), None
        return type(self)._reconstruct, (bytearray(self),)

    @classmethod
    def _reconstruct(cls, obj):
        with memoryview(obj) as view:
            obj = view.obj
            return obj if type(obj) is cls else cls(obj)


class Array:
    """The same of a numpy array."""

    def __init__(self, array, note=None):
        self.array = array
        self.note = note

    def bytes(self):
        return self.array.tobytes()

    def is_writable(self):
        return self.array.flags.writeable

    def write(self, data):
        self.array.view("B").reshape(-1)[:] = list(data)


def _of_numpy(data, writable):
    import numpy

    array = numpy.frombuffer(bytearray(data), dtype="B")
    array.flags.writeable = writable
    return Array(array)


MAKERS = {
    "class": lambda data, writable=True: Carrier(bytearray(data) if writable else bytes(data)),
    "numpy": lambda data, writable=True: _of_numpy(data, writable),
}


def lent():
    """Bytes that this process has on loan."""
    return _core.leases()[0]


class Bad(Carrier):
    """Its unpickling raises, with the buffer in hand."""

    def __init__(self, data, note=None):
        super().__init__(data, note)
        if note == "made":
            raise ValueError("bad")

    def __reduce_ex__(self, protocol):
        return type(self), (super().__reduce_ex__(protocol)[1][0], "made")


def put_patterns(connection, q, how, count):
    for number in range(count):
        q.put(MAKERS[how](pattern(number, BIG)))
    connection.send("put")
    connection.recv()


def get_patterns(connection, q, count):
    """Gets objects, writes into the first one, and says what it has."""
    found = [q.get() for _ in range(count)]
    connection.send([one.bytes() == pattern(n, BIG) for n, one in enumerate(found)])
    connection.send(lent())
    found[0].write(bytes(BIG))
    connection.send(found[0].bytes() == bytes(BIG))
    del found
    connection.send(lent())


def get_and_hold(connection, q):
    held = q.get()
    connection.send(lent())
    connection.recv()
    connection.send(held.bytes())


def hold(connection, held):
    """What it has inherited, or was given."""
    connection.send(lent())
    while (order := connection.recv()) != "end":
        if isinstance(order, bytes):
            held.write(order)
        connection.send(held.bytes())


def fork_with_what_came(connection, q, ctx):
    """Gets something on loan and forks a child that has it too; then it is killed."""
    held = q.get()
    child = ctx.Process(target=hold, args=(connection, held), daemon=False)
    child.start()
    connection.close()
    signal.pause()


def echo_until_none(there, back):
    while (thing := there.get()) is not None:
        back.put(thing)
