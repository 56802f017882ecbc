"""What connections cost: multiprocessing against mproc_ext.

    python benchmarks/connections.py [--rounds N] [--only WORD]

Every case of every library runs in a process of its own; rounds are interleaved, so that what else
the machine does meets both.  A row shows the median over the rounds, and the ratio.  All processes
of a case have been started, and wait, before the time begins.  Run it in a virtual environment
with the package installed, on a machine that is idle.
"""

import importlib
import resource
import time

from cases import DICT, fork, run_cases, timed

MEGABYTE = bytes(1 << 20)
MANY = 500


def context_of(library):
    return importlib.import_module(library).get_context("fork")


def send(connection, message, count, go):
    go.wait()
    for _ in range(count):
        connection.send(message)


def receive(connection, count, go):
    go.wait()
    for _ in range(count):
        connection.recv()


def send_bytes(connection, message, count, go):
    go.wait()
    for _ in range(count):
        connection.send_bytes(message)


def receive_bytes(connection, count, go):
    go.wait()
    for _ in range(count):
        connection.recv_bytes()


def receive_into(connection, count, go):
    into = bytearray(len(MEGABYTE))
    go.wait()
    for _ in range(count):
        connection.recv_bytes_into(into)


def echo(reader, writer, count, go):
    go.wait()
    for _ in range(count):
        writer.send(reader.recv())


def echo_bytes(reader, writer, count, go):
    go.wait()
    for _ in range(count):
        writer.send_bytes(reader.recv_bytes())


def pipe_of(library, duplex=True, is_plain=False):
    """One whose descriptors were asked for has what is sent in them, as the stdlib's has."""
    ends = context_of(library).Pipe(duplex)
    if is_plain:
        for end in ends:
            end.fileno()
    return ends


def one_way(library, count, message, duplex=True, send=send, receive=receive, is_plain=False):
    reader, writer = pipe_of(library, duplex, is_plain)
    go = fork.Barrier(3)
    processes = [
        fork.Process(target=send, args=(writer, message, count, go)),
        fork.Process(target=receive, args=(reader, count, go)),
    ]
    return timed(processes, go) / count


def there_and_back(library, count, message, duplex=True, as_bytes=False, is_plain=False):
    """Over one pipe both ways, or over two."""
    if duplex:
        here, there = pipe_of(library, is_plain=is_plain)
        reader, writer, ends = here, here, (there, there)
    else:
        reader, answering = pipe_of(library, False, is_plain)
        asked, writer = pipe_of(library, False, is_plain)
        ends = asked, answering
    go = fork.Barrier(2)
    process = fork.Process(target=echo_bytes if as_bytes else echo, args=(*ends, count, go))
    process.start()
    send = writer.send_bytes if as_bytes else writer.send
    receive = reader.recv_bytes if as_bytes else reader.recv
    go.wait()
    begin = time.perf_counter()
    for _ in range(count):
        send(message)
        receive()
    spent = time.perf_counter() - begin
    process.join()
    return spent / count


def alone(library, count):
    reader, writer = context_of(library).Pipe()
    begin = time.perf_counter()
    for number in range(count):
        writer.send(number)
        reader.recv()
    return (time.perf_counter() - begin) / count


def poll(library, count):
    reader, _writer = context_of(library).Pipe()
    begin = time.perf_counter()
    for _ in range(count):
        reader.poll()
    return (time.perf_counter() - begin) / count


def set_in_manager(library, count):
    managers = importlib.import_module(f"{library}.managers")
    with managers.SyncManager(ctx=context_of(library)) as manager:
        proxy = manager.dict()
        proxy[0] = 0  # connects
        begin = time.perf_counter()
        for _ in range(count):
            proxy[1] = 2
        return (time.perf_counter() - begin) / count


def wait_for_many(library, count):
    """One of them has something."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    wait = importlib.import_module(f"{library}.connection").wait
    pipes = [context_of(library).Pipe() for _ in range(MANY)]
    readers = [reader for reader, _ in pipes]
    pipes[MANY // 2][1].send(1)
    begin = time.perf_counter()
    for _ in range(count):
        wait(readers)
    spent = time.perf_counter() - begin
    assert wait(readers) == [readers[MANY // 2]]
    return spent / count


def make(library, count):
    ctx = context_of(library)
    begin = time.perf_counter()
    for _ in range(count):
        for end in ctx.Pipe():
            end.close()
    return (time.perf_counter() - begin) / count


CASES = {
    "int": ("a small int, one way, Pipe()", lambda *a: one_way(*a, 7), 2000),
    "int False": ("the same, Pipe(False)", lambda *a: one_way(*a, 7, False), 2000),
    "round trip": ("a small int there and back, Pipe()", lambda *a: there_and_back(*a, 7), 500),
    "round trip False": (
        "the same, two of Pipe(False)",
        lambda *a: there_and_back(*a, 7, False),
        500,
    ),
    "int plain": (
        "a small int, one way, a Pipe() whose fileno() was asked for",
        lambda *a: one_way(*a, 7, is_plain=True),
        2000,
    ),
    "round trip plain": (
        "the same there and back",
        lambda *a: there_and_back(*a, 7, is_plain=True),
        500,
    ),
    "int plain False": (
        "a small int, one way, such a Pipe(False)",
        lambda *a: one_way(*a, 7, False, is_plain=True),
        2000,
    ),
    "round trip plain False": (
        "the same there and back, two of them",
        lambda *a: there_and_back(*a, 7, False, is_plain=True),
        500,
    ),
    "dict": ("a dict of 6 keys, one way", lambda *a: one_way(*a, DICT), 2000),
    "bytes": ("bytes of 1 MB, one way", lambda *a: one_way(*a, MEGABYTE), 50),
    "bytes raw": (
        "the same, send_bytes() and recv_bytes()",
        lambda *a: one_way(*a, MEGABYTE, send=send_bytes, receive=receive_bytes),
        50,
    ),
    "bytes into": (
        "the same, recv_bytes_into()",
        lambda *a: one_way(*a, MEGABYTE, send=send_bytes, receive=receive_into),
        50,
    ),
    "bytes False": (
        "the same, recv_bytes(), Pipe(False)",
        lambda *a: one_way(*a, MEGABYTE, False, send=send_bytes, receive=receive_bytes),
        50,
    ),
    "bytes back": (
        "bytes of 1 MB there and back",
        lambda *a: there_and_back(*a, MEGABYTE),
        50,
    ),
    "bytes raw back": (
        "the same, send_bytes() and recv_bytes()",
        lambda *a: there_and_back(*a, MEGABYTE, as_bytes=True),
        50,
    ),
    "alone": ("send() and recv() in one process", alone, 2000),
    "poll": ("poll() of an empty one", poll, 2000),
    "manager": ("setting an item of a manager's dict", set_in_manager, 300),
    "wait": (f"wait() for {MANY}, one of them ready", wait_for_many, 50),
    "make": ("making a Pipe, and closing it", make, 200),
}


if __name__ == "__main__":
    run_cases(__doc__, CASES)
