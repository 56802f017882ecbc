"""What the children of the tests here run: importable by name under every start method."""

import multiprocessing.queues as _stdlib_queues
import os
import signal
import threading
import time

import mproc_ext.queues as _queues


def raise_back(kind, *args):
    raise kind(*args)


class Poison:
    """Can be pickled; unpickling raises."""

    def __init__(self, kind=ValueError, *args):
        self.what = kind, *args

    def __reduce__(self):
        return raise_back, self.what


class Slow:
    """Takes its time to be unpickled."""

    def __init__(self, number):
        self.number = number

    def __setstate__(self, state):
        self.__dict__.update(state)
        until = time.monotonic() + 0.0005
        while time.monotonic() < until:
            pass


class Rings(Slow):
    """Has an alarm come while it, or what comes next, is unpickled."""

    def __setstate__(self, state):
        signal.setitimer(signal.ITIMER_REAL, 0.002)
        super().__setstate__(state)


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


def get_some_and_stay(connection, q, count):
    for _ in range(count):
        q.get()
    connection.send("got")
    connection.recv()


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


def look_at(connection, q):
    connection.send((q.empty(), q.qsize() if hasattr(q, "qsize") else None))


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


def get_some(q, results, count):
    """Send on what comes, and then the queue's tag, if it has one."""
    for _ in range(count):
        results.put(q.get())
    results.put(getattr(q, "tag", None))


class _Called:
    def __init__(self, *args, **kwargs):
        self.calls = []
        super().__init__(*args, **kwargs)


class OwnThread(_Called, _queues.Queue):
    def _start_thread(self):
        self.calls.append(1)
        super()._start_thread()


class OwnFeed(_Called, _queues.Queue):
    """As loky does it: the thread is this class's own."""

    def _start_thread(self):
        self.calls.append(1)
        super()._start_thread()

    @staticmethod
    def _feed(*args):
        raise AssertionError("the stdlib starts Queue._feed")


class OwnReset(_Called, _queues.Queue):
    def _reset(self, after_fork=False):
        if hasattr(self, "calls"):
            self.calls.append(after_fork)
        super()._reset(after_fork)


class _TagMixin:
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.tag = "tag"

    def __getstate__(self):
        return super().__getstate__(), self.tag

    def __setstate__(self, state):
        super().__setstate__(state[0])
        self.tag = state[1] + "!"


class Tagged(_TagMixin, _queues.Queue):
    pass


class TaggedStdlib(_TagMixin, _stdlib_queues.Queue):
    pass


class TaggedSimple(_TagMixin, _queues.SimpleQueue):
    pass


class OwnJoinable(_TagMixin, _queues.JoinableQueue):
    pass


def make_tagged(package):
    return Tagged if package == "mproc_ext" else TaggedStdlib


def echo_many(q, results):
    """In batches, until the queue is shut down."""
    while True:
        try:
            found = q.get_many(50)
        except _queues.ShutDown:
            return
        results.put_many(found)
        for _ in found:
            q.task_done()


def iterate(connection, q):
    connection.send(list(q))


def put_and_exit(q, count):
    for number in range(count):
        q.put(number)
    os._exit(7)


def digest(q, results):
    import hashlib

    while (data := q.get()) is not None:
        results.put(hashlib.sha256(data).digest())


def produce(q, name, count):
    from queue_helpers import pattern

    for number in range(count):
        q.put((name, number, pattern(number, number % 300)))


def produce_in_threads(q, name, threads, count):
    def work(thread):
        for number in range(count):
            q.put((name, thread, number))

    _run([threading.Thread(target=work, args=(thread,)) for thread in range(threads)])


def consume_in_threads(q, results, threads):
    """Each thread sends what it got, up to the first None."""

    def work():
        found = []
        while (thing := q.get()) is not None:
            found.append(thing)
        results.put(found)

    _run([threading.Thread(target=work) for _ in range(threads)])


def _run(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def wait_in(connection, q, what):
    connection.send("waits")
    if what == "put":
        q.put(os.getpid())
        return
    call = {"get": q.get, "recv": q._reader.recv, "join": getattr(q, "join", None)}
    connection.send(q._reader.poll(None) if what == "poll" else call[what]())


def storm_producer(q, results, who, sizes):
    import random

    from queue_helpers import pattern

    rng = random.Random(who)
    for number in range(1, 1 << 30):
        size = rng.randrange(*sizes) if rng.random() < 0.2 else rng.randrange(100)
        q.put((who, number, size, pattern(who * 1000 + number, size)))


def storm_consumer(q, results, who, sizes):
    from queue_helpers import pattern

    while True:
        sender, number, size, data = q.get()
        results.put((sender, number, data == pattern(sender * 1000 + number, size)))


# ---- What has been taken and is not done with ------------------------------------------------


def take(connection, q, takes, done, ending=None):
    """Take some, be done with some, and then end in that way, or do what one is told."""
    taken = [q.get() for _ in range(takes)]
    for _ in range(done):
        q.task_done()
    connection.send(taken)
    if ending == "os._exit":
        os._exit(0)
    elif ending == "sys.exit":
        raise SystemExit(0)
    elif ending == "exec":
        os.execv("/bin/sleep", ["sleep", "1000"])
    while ending is None and (order := connection.recv()) is not None:
        if order == "done":
            q.task_done()
        elif order == "get_many":
            taken = q.get_many(3)
        elif order == "recv":
            taken = [q._reader.recv()]
        elif order == "fork":
            pid = os.fork()
            if pid == 0:
                q.task_done()
                os._exit(0)
            os.waitpid(pid, 0)
        connection.send((order, taken))


def take_in_threads(connection, q, threads, each):
    """Each thread is done with all but one of what it takes."""

    def work():
        for number in range(each):
            q.get()
            if number:
                q.task_done()

    _run([threading.Thread(target=work) for _ in range(threads)])
    connection.send("taken")
    connection.recv()


DONE = 255


def hold_some(q, path, who, seed):
    """Take and be done with, with some in hand; end now and then.  The file says of each number who
    took it, or that it is done."""
    import mmap
    import queue
    import random

    rng = random.Random(seed)
    with open(path, "r+b") as file:
        states = mmap.mmap(file.fileno(), 0)
    held = []

    def finish_one():
        states[held.pop(rng.randrange(len(held)))] = DONE
        q.task_done()

    while True:
        try:
            if rng.random() < 0.2:
                taken = q.get_many(3, timeout=0.02)
            else:
                taken = [q.get(timeout=0.02)]
        except queue.Empty:
            while held:
                finish_one()
            continue
        for number in taken:
            states[number] = who
            held.append(number)
        while held and (len(held) > 4 or rng.random() < 0.5):
            finish_one()
        chance = rng.random()
        if chance < 0.002:
            os._exit(3)
        if chance < 0.004:
            raise SystemExit(4)


def join_again_and_again(q):
    import time

    while True:
        q.join()
        time.sleep(0.001)


def put_for_ever(connection, q, thing):
    connection.send("begins")
    while True:
        if q.qsize() < 100:
            q.put(thing)


def put_and_get_for_ever(connection, q, thing):
    connection.send("begins")
    while True:
        q.put(thing)
        q.get()
