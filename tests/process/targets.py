"""What the children of test_process.py run: importable by name under every start method."""

import os
import signal
import sys
import time

import mproc_ext


def nothing():
    pass


def exit_with(value):
    sys.exit(value)


def exit_hard(code):
    os._exit(code)


def fail():
    raise ValueError("a failure of the target")


def crash():
    signal.signal(signal.SIGSEGV, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(60)


def wait_for(connection):
    connection.recv()


def sleep_for_ever(connection=None):
    if connection is not None:
        connection.send(os.getpid())
    # Short sleeps: CPython does not see a signal that comes between its last look for one and the
    # system call until that ends.
    while True:
        time.sleep(0.1)


def describe(connection):
    me, parent = mproc_ext.current_process(), mproc_ext.parent_process()
    connection.send(
        {
            "pid": os.getpid(),
            "name": me.name,
            "daemon": me.daemon,
            "authkey": bytes(me.authkey),
            "start_method": mproc_ext.get_start_method(),
            "parent": (parent.name, parent.pid, parent.is_alive()),
            "stdin": sys.stdin.read(),
            "argv": list(sys.argv),
            "children": len(mproc_ext.active_children()),
        }
    )


def watch_parent(connection):
    parent = mproc_ext.parent_process()
    connection.send((os.getpid(), parent.is_alive()))
    parent.join(30)
    with open(connection.recv(), "w") as file:
        file.write(f"{parent.is_alive()}")


def leave_grandchild(connection):
    """Exit at once, while a child of this process holds on to all it inherited."""
    if os.fork() == 0:
        sleep_for_ever(connection)


class Overriding(mproc_ext.Process):
    def _bootstrap(self, parent_sentinel=None):
        os._exit(17)


class Counting(mproc_ext.Process):
    """A subclass with state and a run of its own."""

    def __init__(self, connection, number):
        super().__init__(name="counting")
        self.connection = connection
        self.number = number

    def run(self):
        self.connection.send((self.name, self.number + 1))


def put_under_lock(queue, lock):
    with lock:
        queue.put(os.getpid())
