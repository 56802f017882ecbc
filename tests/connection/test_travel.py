"""Connections that go to other processes: by fork, as arguments, through one another."""

import copy
import os
import pickle

import connection_targets
import pytest
from connection_helpers import OURS, close, fds, open_pair, theirs
from sync_helpers import LIMIT, Child

import mproc_ext
from mproc_ext import reduction, resource_sharer


def receive(connection):
    assert connection.poll(LIMIT)
    return connection.recv()


@pytest.mark.parametrize("duplex", [True, False])
def test_arguments(ctx, package, duplex):
    """A child's are of the same class, and on the same pipe."""
    for end in (0, 1):
        ends = ctx.Pipe(duplex)
        mine, other = ends[1 - end], ends[end]
        child = Child(ctx, connection_targets.describe, other)
        kind = type(other)
        assert kind.__module__ == f"{package.__name__}.connection" or not OURS
        child.expect((kind.__module__, kind.__qualname__, other.readable, other.writable))
        child.expect(False)
        child.join()
        close(mine, other)


def test_both_ways_with_a_child(ctx):
    there, back = ctx.Pipe()
    child = ctx.Process(target=connection_targets.echo, args=(back,))
    child.start()
    back.close()
    for thing in (1, "text", b"x" * 200_000, [connection_targets.Point(5)], {}):
        there.send(thing)
        assert receive(there) == thing
    there.send(None)
    child.join(LIMIT)
    assert child.exitcode == 0
    assert there.poll(LIMIT)
    with pytest.raises(EOFError):
        there.recv()
    there.close()


def test_the_end_of_a_child(ctx):
    """What it has sent is there, then the end."""
    reader, writer = ctx.Pipe(False)
    child = ctx.Process(target=writer.send, args=(["the", "last"],))
    child.start()
    writer.close()
    child.join(LIMIT)
    assert receive(reader) == ["the", "last"]
    with pytest.raises(EOFError):
        reader.recv()
    reader.close()


def test_a_closed_one_does_not_travel(ctx):
    if ctx.get_start_method() == "fork":
        pytest.skip("nothing is pickled")
    one, other = ctx.Pipe()
    one.close()
    with pytest.raises(OSError, match="handle is closed"):
        ctx.Process(target=print, args=(one,)).start()
    other.close()


def test_a_child_that_is_killed(ctx):
    one, other = ctx.Pipe()
    child = Child(ctx, connection_targets.hold, other)
    other.close()
    child.expect("holds")
    one.send("never received")
    child.kill()
    with pytest.raises((EOFError, ConnectionResetError)):
        one.recv()
    one.close()


@pytest.mark.parametrize("duplex", [True, False])
def test_through_a_connection(connection, kind, duplex):
    """In one process: another descriptor of the same pipe."""
    before = fds()
    with open_pair(connection, kind) as (reader, writer):
        first, second = connection.Pipe(duplex)
        for one in (first, second):
            writer.send([one, "and", one.fileno()])
            found, _, number = reader.recv()
            assert type(found) is connection.Connection
            assert found.fileno() != number
            assert (found.readable, found.writable) == (one.readable, one.writable)
            if one is first:
                second.send("to the copy")
                assert found.recv() == "to the copy"
            else:
                found.send("from the copy")
                assert first.recv() == "from the copy"
            found.close()
            assert not one.closed
        close(first, second)
    resource_sharer.stop(LIMIT)  # it has a socket
    assert fds() <= before  # which may have had some of threads that are ending


def test_through_a_connection_to_a_child(ctx):
    """And back from there."""
    child = Child(ctx, connection_targets.use_what_comes)
    first, second = ctx.Pipe(False)
    child.send(second)
    to_child, from_here = ctx.Pipe()
    child.send(to_child)
    assert receive(first) == ("from", child.pid)
    from_here.send("through the connection that was sent")
    assert child.recv() == "through the connection that was sent"
    back = child.recv()
    assert type(back) is type(first)
    from_here.send("again")
    assert receive(back) == "again"
    child.send("done")
    child.join()
    close(first, second, to_child, from_here, back)


def test_through_a_queue(mp):
    queue = mp.SimpleQueue()
    one, other = mp.Pipe()
    queue.put(one)
    found = queue.get()
    other.send(1)
    assert found.recv() == 1
    close(one, other, found)
    queue.close()


def test_dumps_and_loads(mp):
    """As those do who send pickles in their own ways."""
    one, other = mp.Pipe()
    data = bytes(reduction.ForkingPickler.dumps(one))
    found = reduction.ForkingPickler.loads(data)
    assert type(found) is type(one)
    found.send("through the copy")
    assert other.recv() == "through the copy"
    close(one, other, found)


def test_a_subclass_travels_as_the_stdlibs_does(modules, monkeypatch):
    """ForkingPickler knows the class itself alone."""
    found = []
    for module in modules:

        class Derived(module.Connection):
            pass

        monkeypatch.setattr(connection_targets, "Derived", Derived, raising=False)
        Derived.__module__, Derived.__qualname__ = "connection_targets", "Derived"
        reading, writing = os.pipe()
        one = Derived(reading, writable=False)
        try:
            copied = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(one))
        except Exception as error:
            found.append(type(error))
        else:
            found.append((type(copied).__name__, copied._handle == reading, copied.writable))
            copied._handle = None
        one.close()
        os.close(writing)
    assert found[1] == found[0]


@pytest.mark.parametrize("how", [copy.copy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies(modules, how):
    """Of the same descriptor, as copying and plain pickling have it."""
    found = []
    for module in modules:
        with open_pair(module, "pipe") as (reader, _):
            try:
                copied = how(reader)
            except Exception as error:
                found.append(type(error).__name__)
            else:
                found.append((copied._handle == reader._handle, copied.readable, copied.writable))
                copied._handle = None
    assert found[1] == found[0]


@pytest.mark.skipif(not OURS, reason="about ours")
def test_between_the_two_packages(method):
    """A child of the stdlib's is given one of ours, and a child of ours one of the stdlib's."""
    import multiprocessing

    contexts = [package.get_context(method) for package in (multiprocessing, mproc_ext)]
    for ctx, other in (contexts, contexts[::-1]):
        there, back = other.Pipe()
        child = ctx.Process(target=connection_targets.echo, args=(back,))
        child.start()
        back.close()
        there.send([1, "two"])
        assert receive(there) == [1, "two"]
        there.send(None)
        child.join(LIMIT)
        assert child.exitcode == 0
        there.close()


def test_reducers_are_registered(ours):
    """Of ours beside the stdlib's own, which stays as it is."""
    with open_pair(ours, "pipe") as (reader, _), open_pair(theirs, "pipe") as (other, _):
        for one in (reader, other):
            copied = reduction.ForkingPickler.loads(reduction.ForkingPickler.dumps(one))
            assert type(copied) is type(one)
            assert not copied.writable
            copied.close()


def test_bare_fork(connection, kind):
    """A child of os.fork, which runs none of multiprocessing's hooks, has both ends."""
    with open_pair(connection, kind) as (reader, writer):
        writer.send("for the child")
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                assert reader.recv() == "for the child"
                writer.send_bytes(b"from the child")
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        assert reader.recv_bytes() == b"from the child"
        assert not reader.poll()


def test_a_forked_child_that_drops_its_copies(connection, kind):
    """Closes its own descriptors alone."""
    with open_pair(connection, kind) as (reader, writer):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                close(reader, writer)
                code = 0
            finally:
                os._exit(code)
        assert os.waitpid(pid, 0)[1] == 0
        writer.send(1)
        assert reader.recv() == 1
