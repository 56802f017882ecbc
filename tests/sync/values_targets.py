"""What the children of test_values.py run: importable by name under every start method."""

import ctypes


class Point(ctypes.Structure):
    _fields_ = (("x", ctypes.c_int), ("y", ctypes.c_double))


class Number(ctypes.c_int):
    """A type of the program's own, whose value is no plain item."""


def change(value, array, text, point, raw):
    """Another value in each of them."""
    with value:
        value.value += 1
    array[-1] = 2.5
    text.value = b"new"
    point.x = 5
    raw[3] = 9


def add(value, array, times):
    for _ in range(times):
        with value.get_lock():
            value.value += 1
        with array:
            array[1] += 1


def keep(connection, *things):
    """Hold on to them until told to end; says what is in them then."""
    connection.send("here")
    connection.recv()
    connection.send([bytes(memoryview(thing.get_obj()).cast("B")) for thing in things])


def take(connection, value):
    """Die with the lock, or as told."""
    value.acquire()
    value.value = 7
    connection.send("held")
    connection.recv()


def write_for_ever(connection, array):
    connection.send("here")
    item = 0
    while True:
        array[0] = item
        item = ~item


def one_store_for_ever(connection, array, first, second):
    """Two values whose bytes are all different, one after the other, without the lock."""
    connection.send("here")
    item = array.get_obj()
    while True:
        item[0] = first
        item[0] = second
