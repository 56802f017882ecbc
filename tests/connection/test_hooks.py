"""Subclasses and patches of the class: what the stdlib's methods call is called by ours too."""

import gc
import io
import os
import pickle
import select
from unittest import mock

import pytest
from connection_helpers import OURS, adopt, close, descriptors, open_pair, theirs
from sync_helpers import outcome

from mproc_ext import connection as our

CHECKS = ("_check_closed", "_check_readable", "_check_writable")
BYTES = ("_send_bytes", "_recv_bytes", "_send", "_recv")
HOOKS = (*BYTES, "_poll", "_close", *CHECKS)


def plain(value):
    """What a hook was given, as both packages' can be compared."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return value


def recording(cls, names, log):
    """A subclass that writes down the calls of its hooks, and does what they do."""

    def make(name):
        def hook(self, *args):
            log.append((name, [plain(arg) for arg in args]))
            return getattr(super(made, self), name)(*args)

        return hook

    made = type("Recording", (cls,), {name: make(name) for name in names})
    return made


def use(reader, writer):
    """Everything that calls a hook; what it gives."""
    found = []

    def call(function, *args, **kwargs):
        found.append(outcome(function, *args, **kwargs))

    for send in (
        lambda: writer.send([1, "two"]),
        lambda: writer.send_bytes(b"abc"),
        lambda: writer.send_bytes(bytearray(b"abcdef"), 1, 3),
        lambda: writer.send_bytes(b""),
        lambda: writer.send_bytes(bytes(20_000)),
        lambda: writer.send("x" * 20_000),
    ):
        call(send)
        call(reader.poll)
        call(reader.recv if len(found) < 3 or len(found) > 15 else reader.recv_bytes)
    call(writer.send, lambda: 0)
    call(writer.send_bytes, b"abc")
    call(reader.recv_bytes_into, bytearray(5))
    call(reader.recv_bytes, -1)
    call(reader.poll, 0)
    call(reader.poll, timeout=0.001)
    call(writer.send_bytes, b"abc")
    call(reader.recv_bytes, 2)
    for end in (reader, writer):
        call(lambda end=end: (end.closed, end.readable, end.writable))
        call(end.close)
        call(end.close)
        call(end.recv)
        call(end.send, 1)
        call(end.poll)
    return found


@pytest.mark.parametrize("names", [(), *((name,) for name in HOOKS), HOOKS, BYTES, CHECKS], ids=str)
def test_hooks_that_record(modules, kind, names):
    """They are called as often, in the same order, with the same arguments."""
    found, logs = [], []
    for module in modules:
        log = []
        cls = recording(module.Connection, names, log)
        one_way = kind == "pipe"
        reading, writing = descriptors(kind)
        reader, writer = cls(reading, writable=not one_way), cls(writing, readable=not one_way)
        found.append(use(reader, writer))
        logs.append(log)
    assert found[1] == found[0]
    assert logs[1] == logs[0]
    assert {name for name, _ in logs[0]} == set(names)


@pytest.mark.parametrize("name", HOOKS)
def test_hooks_on_a_mixin(modules, name):
    """They may come from anywhere in the order of bases."""
    logs = []
    for module in modules:
        log = []

        def hook(self, *args, name=name, log=log):
            log.append(name)
            return getattr(super(Mixin, self), name)(*args)

        Mixin = type("Mixin", (), {name: hook})
        cls = type("Mixed", (Mixin, module.Connection), {"__slots__": ()})
        ends = [cls(fd) for fd in descriptors("socketpair")]
        use(*ends)
        logs.append(log)
    assert logs[1] == logs[0]
    assert logs[0]


class Memory:
    """Mixed into a connection: messages are kept in a list, and the descriptor is not used."""

    def __init__(self, *args):
        super().__init__(*args)
        self.kept = []

    def _send_bytes(self, buf):
        self.kept.append(bytes(buf))

    def _recv_bytes(self, maxsize=None):
        data = self.kept.pop(0)
        if maxsize is not None and len(data) > maxsize:
            return None
        buf = io.BytesIO()
        buf.write(data)
        return buf

    def _poll(self, timeout):
        return bool(self.kept)


def test_another_way_for_the_bytes(connection):
    cls = type("InMemory", (Memory, connection.Connection), {})
    fd, other = descriptors("socketpair")
    one = cls(fd)
    assert not one.poll()
    one.send([1, "two"])
    one.send_bytes(b"abcdef", 2, 3)
    assert one.poll()
    assert one.kept[1:] == [b"cde"]
    assert pickle.loads(one.kept[0]) == [1, "two"]
    assert one.recv() == [1, "two"]
    into = bytearray(5)
    assert one.recv_bytes_into(into, 1) == 3
    assert into == b"\0cde\0"
    one.send_bytes(b"abc")
    with pytest.raises(OSError, match="bad message length"):
        one.recv_bytes(2)
    assert not one.readable
    one.close()
    os.set_blocking(other, False)
    assert os.read(other, 100) == b""  # the end: not a byte was sent
    os.close(other)


@pytest.mark.parametrize("hook", ["_send", "_recv"])
def test_bytes_that_are_changed_on_their_way(connection, kind, hook):
    """One end is of a subclass that turns every bit."""

    def turned(data):
        return bytes(byte ^ 255 for byte in bytes(data))

    class Turns(connection.Connection):
        if hook == "_send":

            def _send(self, buf):
                super()._send(turned(buf))

        else:

            def _recv(self, size):
                buf = io.BytesIO()
                buf.write(turned(super()._recv(size).getvalue()))
                return buf

    reading, writing = descriptors(kind)
    readable, writable = (Turns, connection.Connection)[:: 1 if hook == "_recv" else -1]
    reader = readable(reading, writable=kind != "pipe")
    writer = writable(writing, readable=kind != "pipe")
    if hook == "_send":
        writer.send_bytes(b"abc")
        assert reader.fileno() == reading
        assert turned(os.read(reading, 100)) == b"\0\0\0\3abc"
    else:
        os.write(writing, turned(b"\0\0\0\3abc"))
        assert reader.recv_bytes() == b"abc"
        os.write(writing, turned(b"\0\0\0\5\x80\x04K\1."))
        assert reader.recv() == 1
    close(reader, writer)


def test_a_check_that_refuses(modules):
    found = []
    for module in modules:

        class Refuses(module.Connection):
            refused = None

            def _check(self, what):
                if self.refused == what:
                    raise PermissionError(f"no {what}")

            def _check_closed(self):
                self._check("closed")
                super()._check_closed()

            def _check_readable(self):
                self._check("readable")

            def _check_writable(self):
                self._check("writable")

        ends = adopt(module, "socketpair", *descriptors("socketpair"))
        refuses = Refuses(os.dup(ends[0].fileno()), readable=False)
        ends[1].send(1)
        results = []
        for refuses.refused in ("closed", "readable", "writable", None):
            for call in (refuses.send_bytes, refuses.send):
                results.append(outcome(call, b"abc"))
            for call in (refuses.fileno, refuses.poll):
                results.append(outcome(call)[0])
        results.append(outcome(refuses.recv))  # it has been made readable by the check
        found.append(results)
        close(refuses, *ends)
    assert found[1] == found[0]
    assert found[0][0] == ("PermissionError", "no closed", None)
    assert found[0][-1] == ("returns", "1")


def test_bad_message_length_of_ones_own(modules):
    found = []
    for module in modules:

        class Forgives(module.Connection):
            def _bad_message_length(self):
                raise ValueError("too long for me")

        with open_pair(module, "pipe") as (reader, writer):
            forgives = Forgives(os.dup(reader.fileno()), writable=False)
            writer.send_bytes(b"abc")
            found.append(
                (outcome(forgives.recv_bytes, 2), forgives.closed, os.read(reader.fileno(), 9))
            )
            forgives.close()
    assert found[1] == found[0] == (("ValueError", "too long for me", None), False, b"abc")


@pytest.mark.parametrize("ending", ["close", "with", "drop"])
def test_close_of_ones_own(modules, ending):
    """_close() is called once, however it ends, also where it fails."""
    for module in modules:
        for fails in (False, True):
            calls = []

            class Closes(module.Connection):
                def _close(self, calls=calls, fails=fails):
                    calls.append(self._handle)
                    super()._close()
                    if fails and ending != "drop":
                        raise LookupError("in _close")

            fd, other = descriptors("pipe")
            one = Closes(fd)
            if ending == "drop":
                del one
                gc.collect()
            else:
                end = one.close if ending == "close" else lambda: one.__exit__(None, None, None)
                assert outcome(end)[0] == ("LookupError" if fails else "returns")
                assert one.closed
                end()
            assert calls == [fd]
            os.close(other)


def test_an_end_that_is_overridden(connection):
    """close() itself, as those do who count connections."""
    closed = []

    class Counted(connection.Connection):
        def close(self):
            closed.append(self)
            super().close()

    reading, writing = descriptors("socketpair")
    with Counted(reading) as one:
        pass
    assert closed == [one]
    assert one.closed
    os.close(writing)


@pytest.mark.parametrize("name", ["send", "recv", "send_bytes", "recv_bytes", "poll", "fileno"])
def test_public_methods_are_overridden(modules, name):
    """The others do not call them."""
    logs = []
    for module in modules:
        log = []
        cls = recording(module.Connection, [name], log)
        use(*(cls(fd) for fd in descriptors("socketpair")))
        logs.append([called for called, _ in log])
    assert logs[1] == logs[0]


# ---- Classes ---------------------------------------------------------------------------------


def test_a_subclass_with_slots_and_attributes(connection):
    class Named(connection.Connection):
        __slots__ = ("name",)
        kind = "named"

        def __init__(self, handle, name):
            super().__init__(handle)
            self.name = name
            self.other = name * 2

    ends = [Named(fd, name) for fd, name in zip(descriptors("socketpair"), "ab", strict=True)]
    ends[0].send([1, "two"])
    assert ends[1].recv() == [1, "two"]
    assert [(end.name, end.other, end.kind) for end in ends] == [
        ("a", "aa", "named"),
        ("b", "bb", "named"),
    ]
    del ends[0].name
    with pytest.raises(AttributeError):
        ends[0].name  # noqa: B018
    close(*ends)


def test_a_subclass_that_forgets_to_initialise(connection):
    class Forgets(connection.Connection):
        def __init__(self):
            pass

    one = Forgets()
    assert one.closed
    for call in (one.fileno, one.recv, one.poll, lambda: one.send(1)):
        with pytest.raises(OSError, match="handle is closed"):
            call()
    one.close()


def test_a_subclass_of_a_subclass(connection):
    class First(connection.Connection):
        pass

    class Second(First):
        def _send_bytes(self, buf):
            super()._send_bytes(bytes(buf) * 2)

    one, two = (Second(fd) for fd in descriptors("socketpair"))
    one.send_bytes(b"abc")
    assert two.recv_bytes() == b"abcabc"
    close(one, two)
    one, two = (First(fd) for fd in descriptors("socketpair"))
    one.send_bytes(b"abc")
    assert two.recv_bytes() == b"abc"
    close(one, two)


@pytest.mark.skipif(not OURS, reason="about ours")
def test_a_subclass_of_both(ours):
    class Both(ours.Connection, theirs.Connection):
        pass

    one, two = (Both(fd) for fd in descriptors("socketpair"))
    one.send(1)
    assert two.recv() == 1
    close(one, two)


# ---- Patches ---------------------------------------------------------------------------------


def once(log, name, function):
    def hook(self, *args):
        log.append((name, [plain(arg) for arg in args]))
        return function(self, *args)

    return hook


@pytest.mark.parametrize("name", HOOKS)
@pytest.mark.parametrize("before", [True, False], ids=["used before", "fresh"])
def test_patches_of_the_class(modules, name, before):
    """While they last, for connections that exist as for new ones."""
    logs = []
    for module in modules:
        log = []
        with open_pair(module, "socketpair") as (reader, writer):
            if before:
                writer.send(1)
                assert reader.recv() == 1
            original = getattr(module.Connection, name)
            with mock.patch.object(module.Connection, name, once(log, name, original)):
                use(reader, writer)
                use(*adopt(module, "socketpair", *descriptors("socketpair")))
            logs.append(list(log))
        with open_pair(module, "socketpair") as (reader, writer):
            use(reader, writer)
        assert log == logs[-1]
        assert getattr(module.Connection, name) is original
    assert logs[1] == logs[0]
    assert logs[0]


def test_patches_of_the_class_in_a_subclass(connection):
    """Where the patch is of the base."""

    class Derived(connection.Connection):
        pass

    one, two = (Derived(fd) for fd in descriptors("socketpair"))
    one.send(1)
    with mock.patch.object(connection.Connection, "_send_bytes") as patched:
        one.send(2)
    assert patched.call_count == 1
    one.send(3)
    assert [two.recv(), two.recv()] == [1, 3]
    close(one, two)


@pytest.mark.parametrize("name", ["send", "recv", "poll", "send_bytes", "recv_bytes", "close"])
def test_patches_of_public_methods(connection, name):
    reader, writer = connection.Pipe()
    with mock.patch.object(connection.Connection, name, return_value="patched") as patched:
        assert getattr(reader, name)() == "patched"
    assert patched.call_count == 1
    writer.send(1)
    assert reader.poll()
    assert reader.recv() == 1
    close(reader, writer)


@pytest.mark.parametrize("name", HOOKS)
def test_patches_of_one_connection(modules, name):
    """A hook that is set on the object: the stdlib's methods find it there."""
    logs = []
    for module in modules:
        log = []
        reader, writer = adopt(module, "socketpair", *descriptors("socketpair"))
        for end in (reader, writer):
            original = getattr(end, name)

            def hook(*args, original=original, name=name, log=log):
                log.append((name, [plain(arg) for arg in args]))
                return original(*args)

            setattr(end, name, hook)
        use(reader, writer)
        logs.append(log)
    assert logs[1] == logs[0]
    assert logs[0]


def test_a_mock_in_place_of_a_method(connection):
    reader, writer = connection.Pipe()
    with mock.patch.object(writer, "send") as patched:
        writer.send("to the mock")
    patched.assert_called_once_with("to the mock")
    writer.send("to the reader")
    assert reader.recv() == "to the reader"
    close(reader, writer)


def test_a_mock_with_the_methods_of_a_connection(connection):
    fake = mock.create_autospec(connection.Connection, instance=True)
    fake.recv.return_value = 5
    assert fake.recv() == 5
    fake.send(1)
    fake.send.assert_called_once_with(1)
    assert isinstance(fake, connection.Connection)
    with pytest.raises(AttributeError):
        fake.no_such_method()


def test_what_the_stdlib_waits_with_was_replaced(our_pair):
    """As gevent does: the stdlib's code calls it, so that other green threads run meanwhile."""
    reader, writer = our_pair
    with (
        mock.patch("select.poll", side_effect=select.poll),
        mock.patch.object(theirs, "wait", side_effect=theirs.wait) as waits,
    ):
        assert not reader.poll(0.01)
        assert our.wait([reader], 0.01) == []
        assert waits.call_count == 2
        assert not reader.poll()
        assert our.wait([reader], 0) == []
        writer.send(1)
        assert reader.poll(None)
        assert our.wait([reader]) == [reader]
        assert reader.recv() == 1
    assert waits.call_count == 4
