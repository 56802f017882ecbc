"""Subclasses: what they override is honoured, by ours or by the stdlib's code."""

import concurrent.futures.process
import importlib
import multiprocessing.queues
import queue
import weakref

import pytest
import queue_targets
from queue_helpers import LIMIT, OURS, end, is_ours, settle, stderr
from sync_helpers import wait_until


class Recorder:
    """Mixed into a queue: what its handler of errors was told."""

    def __init__(self, *args, **kwargs):
        self.told = []
        super().__init__(*args, **kwargs)

    def _on_queue_feeder_error(self, e, obj):
        self.told.append((type(e).__name__, str(e), obj))


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_own_handler_of_errors(package, queues, kind):
    cls = type("Recording", (Recorder, getattr(queues, kind)), {})
    q = cls(ctx=package.get_context("fork"))
    thing = lambda: None  # noqa: E731 (it has no name to be pickled by)
    with stderr() as text:
        q.put(thing)
        q.put("next")
        assert q.get(timeout=LIMIT) == "next"
    assert text.getvalue() == ""
    ((name, message, obj),) = q.told
    assert name in ("AttributeError", "PicklingError")
    assert "<lambda>" in message
    assert obj is thing
    end(q)


@pytest.mark.skipif(not OURS, reason="about ours")
def test_own_handler_is_called_in_c(ours):
    queues = importlib.import_module("mproc_ext.queues")
    cls = type("Recording", (Recorder, queues.Queue), {})
    q = cls(3, ctx=ours)
    assert is_ours(q)


@pytest.mark.skipif(not OURS, reason="about ours")
def test_the_executors_queue(ours):
    """concurrent.futures.process._SafeQueue made of ours, as under the alias."""
    queues = importlib.import_module("mproc_ext.queues")
    namespace = dict(vars(concurrent.futures.process._SafeQueue))
    for name in ("__dict__", "__weakref__", "__init__", "_on_queue_feeder_error"):
        namespace.pop(name, None)

    class SafeQueue(queues.Queue):
        def __init__(self, max_size=0, *, ctx, pending_work_items, thread_wakeup):
            self.pending_work_items = pending_work_items
            self.thread_wakeup = thread_wakeup
            super().__init__(max_size, ctx=ctx)

        def _on_queue_feeder_error(self, e, obj):
            self.pending_work_items.pop(obj.work_id)[1].append((e, e.__traceback__ is not None))
            self.thread_wakeup()

    class Item:
        work_id = 7

        def __reduce__(self):
            raise ValueError("not me")

    woken, errors = [], []
    q = SafeQueue(3, ctx=ours, pending_work_items={7: (None, errors)},
                  thread_wakeup=lambda: woken.append(1))  # fmt: skip
    assert is_ours(q)
    q._ignore_epipe = True
    q.put(Item())
    assert [str(e) for e, _ in errors] == ["not me"]
    assert errors[0][1]
    assert woken == [1]
    assert q.qsize() == 0
    q._terminate_broken()
    with pytest.raises(ValueError, match="is closed"):
        q.put(1)


class Counting:
    def __init__(self, *args, **kwargs):
        self.calls = []
        super().__init__(*args, **kwargs)

    def put(self, obj, block=True, timeout=None):
        self.calls.append(("put", obj, block))
        super().put(("wrapped", obj), block, timeout)

    def get(self, block=True, timeout=None):
        self.calls.append(("get", block))
        return super().get(block, timeout)[1]


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue"])
def test_own_put_and_get(package, queues, kind):
    """put_nowait and get_nowait go by them."""
    q = type("Counts", (Counting, getattr(queues, kind)), {})(ctx=package.get_context("fork"))
    q.put(1)
    q.put_nowait(2)
    settle(q, 2)
    assert q.get() == 1
    wait_until(lambda: not q.empty())
    assert q.get_nowait() == 2
    assert q.calls == [("put", 1, True), ("put", 2, False), ("get", True), ("get", False)]
    end(q)


def test_patched_instance(mp):
    q = mp.Queue()
    seen = []
    q.put = lambda obj, block=True, timeout=None: seen.append((obj, block))
    q.put_nowait(5)
    q.get = lambda block=True, timeout=None: ("got", block)
    assert q.get_nowait() == ("got", False)
    assert seen == [(5, False)]


def stdlibs_way(name):
    """A subclass that overrides a part of the stdlib's that ours has not."""
    base = importlib.import_module("mproc_ext.queues").Queue
    return {
        "_start_thread": queue_targets.OwnThread,
        "_feed": queue_targets.OwnFeed,
        "__getstate__": queue_targets.Tagged,
        "_reset": queue_targets.OwnReset,
        "joinable": queue_targets.OwnJoinable,
    }[name], base


@pytest.mark.skipif(not OURS, reason="about ours")
@pytest.mark.parametrize("name", ["_start_thread", "_feed", "__getstate__", "_reset", "joinable"])
def test_the_stdlibs_way(our_ctx, name):
    cls, base = stdlibs_way(name)
    q = cls(2, ctx=our_ctx)
    assert isinstance(q, base)
    assert isinstance(q, multiprocessing.queues.Queue)
    assert not is_ours(q)
    results = our_ctx.SimpleQueue()
    q.put_nowait("a")
    q.put("b", timeout=LIMIT)
    with pytest.raises(queue.Full):
        q.put("c", block=False)
    assert q.full()
    assert q.qsize() == 2
    child = our_ctx.Process(target=queue_targets.get_some, args=(q, results, 2))
    child.start()
    assert [results.get(), results.get()] == ["a", "b"]
    seen = results.get()
    child.join()
    assert q.empty()
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    if name in ("_start_thread", "_feed", "_reset"):
        assert q.calls
    if name == "__getstate__" and our_ctx.get_start_method() != "fork":
        assert seen == "tag!"
    if name == "joinable":
        q.task_done()
        q.task_done()
        q.join()
    for method in ("put_many", "get_many", "shutdown", "stats"):
        with pytest.raises(NotImplementedError):
            getattr(q, method)(*[[]] * (method == "put_many"))
    q.put("late")
    q.close()
    q.join_thread()


@pytest.mark.skipif(not OURS, reason="about ours")
def test_simple_queue_the_stdlibs_way(our_ctx):
    q = queue_targets.TaggedSimple(ctx=our_ctx)
    assert not is_ours(q)
    results = our_ctx.SimpleQueue()
    q.put(obj="a")
    child = our_ctx.Process(target=queue_targets.echo, args=(q, results))
    child.start()
    q.put(None)
    assert [results.get(), results.get()] == ["a", None]
    child.join()
    assert q.empty()
    q.close()
    with pytest.raises(OSError, match="closed"):
        q.get()


def test_more_state_of_its_own(package, queues, method):
    """The usual way: arguments and state of one's own, which go to children too."""
    ctx = package.get_context(method)
    q = queue_targets.make_tagged(package.__name__)(ctx=ctx)
    results = ctx.SimpleQueue()
    q.put("a")
    child = ctx.Process(target=queue_targets.get_some, args=(q, results, 1))
    child.start()
    assert results.get() == "a"
    assert results.get() == ("tag" if method == "fork" else "tag!")
    child.join()
    end(q)


def test_weak_references_and_attributes(mp, kind):
    q = getattr(mp, kind)()
    q.anything = 1
    assert weakref.ref(q)() is q
    assert hash(q) == hash(q)
    assert q != getattr(mp, kind)()


@pytest.mark.parametrize("package", ["mproc_ext"], indirect=True)
@pytest.mark.skipif(not OURS, reason="about ours")
def test_instances(queues, mp):
    for name in ("Queue", "JoinableQueue", "SimpleQueue"):
        q = getattr(mp, name)()
        assert isinstance(q, getattr(multiprocessing.queues, name))
        assert isinstance(q, getattr(queues, name))
    assert issubclass(queues.JoinableQueue, queues.Queue)
    assert issubclass(queues.JoinableQueue, multiprocessing.queues.JoinableQueue)
