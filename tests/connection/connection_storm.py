"""Kill the peers of conversations, over and over: connection_storm.py CONVERSATIONS; see --help.

Every conversation goes through a pipe, a socket or a Pipe() of its own, between a process that
survives and one that is forked for it and killed at a random moment: while it sends, receives or
answers messages of 1 byte to 2 MB, which have numbers and checksums.  Sometimes several threads of
the survivor send at once.

The survivor has to see whole messages in order, all of which the peer had sent, and then the end:
EOFError, or the OSError that says that a message is missing its end, or what the system says of a
peer that is gone.

Ends with a line of figures and status 0; with 1 and a line that says why, where a survivor does not
get on for so many seconds, where a message is torn, is lost, comes twice or out of order, where an
error is another one, or where descriptors or memory are lost.

With --spoil the peers send something wrong now and then, which has to be found.
"""

import argparse
import collections
import contextlib
import ctypes
import faulthandler
import gc
import importlib
import json
import mmap
import os
import pathlib
import random
import select
import signal
import struct
import sys
import threading
import time

HERE = pathlib.Path(__file__).parent
sys.path += [str(HERE), str(HERE.parent / "sync")]

from connection_helpers import KINDS, RINGS, fds, make_pair, number_of, stamped  # noqa: E402

ONE_WAY = ["pipe", "one-way ring"]
BOTH_WAYS = [kind for kind in (*KINDS, *RINGS) if kind not in ONE_WAY]
WORKERS = 4
SIZES = [1, 10, 100, 1_000, 16_000, 17_000, 70_000, 300_000, 2_000_000]
WEIGHTS = [20, 20, 20, 20, 10, 10, 8, 5, 2]
LEAVES = 0.003  # of the messages
LONGEST = 0.2  # seconds that a peer lives
THREADS = 3  # that send at once
MEMORY = 30 << 20  # bytes that a worker may grow by, once it has warmed up
WARM = 25  # conversations
TURNS, SENT, WORDS = range(3)


class Failure(Exception):
    pass


class Words:
    """Numbers that all processes see; each worker has its row, and its peers write there too."""

    def __init__(self):
        self._map = mmap.mmap(-1, WORKERS * WORDS * 8)

    def get(self, worker, word):
        return struct.unpack_from("q", self._map, (worker * WORDS + word) * 8)[0]

    def set(self, worker, word, value):
        struct.pack_into("q", self._map, (worker * WORDS + word) * 8, value)


def memory():
    """Bytes in use, without those that malloc keeps for later."""
    gc.collect()
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


# ---- Messages --------------------------------------------------------------------------------


def leave_now_and_then(connection):
    """Who asks a Pipe() for its descriptor gets a plain connection from then on."""
    if random.random() < LEAVES:
        connection.fileno()


def send(connection, number):
    """In one of the ways that there are; the number says in which."""
    leave_now_and_then(connection)
    data = stamped(number, random.choices(SIZES, WEIGHTS)[0])
    if number % 3 == 0:
        connection.send_bytes(data)
    elif number % 3 == 1:
        connection.send_bytes(bytearray(b"before" + data + b"after"), 6, len(data))
    else:
        connection.send({"number": number, "data": data, "rest": [None, 1.5]})


def receive(connection, number):
    """The number of the message; the expected one says in which way it comes."""
    leave_now_and_then(connection)
    if number % 3 == 0:
        return number_of(connection.recv_bytes())
    if number % 3 == 1:
        into = bytearray(max(SIZES) + 100)
        size = connection.recv_bytes_into(into)
        return number_of(memoryview(into)[:size])
    thing = connection.recv()
    if number_of(thing["data"]) != thing["number"]:
        raise Failure(f"message {thing['number']} has the data of another one")
    return thing["number"]


def receive_next(connection, number):
    try:
        found = receive(connection, number)
    except AssertionError as error:
        raise Failure(str(error)) from None
    if found != number:
        raise Failure(f"message {found} came in the place of {number}")


def dawdle():
    if random.random() < 0.1:
        time.sleep(random.uniform(0, 0.002))


# ---- What either peer does -------------------------------------------------------------------


def sends(connection, note):
    number = 0
    while True:
        send(connection, number)
        number += 1
        note(number)
        dawdle()


def receives(connection, note):
    number = 0
    while True:
        receive_next(connection, number)
        number += 1
        note(number)
        dawdle()


# ---- The peer that is killed -----------------------------------------------------------------


def peer_answers(connection, note):
    number = 0
    while True:
        receive_next(connection, number)
        send(connection, number)
        number += 1
        note(number)


def peer_receives_from_threads(connection, note):
    """Each thread's are in order; the numbers' first digit is the thread's."""
    expected = [thread * 10_000_000 for thread in range(THREADS)]
    count = 0
    while True:
        number = number_of(connection.recv_bytes())
        thread = number // 10_000_000
        if number != expected[thread]:
            raise Failure(f"message {number} came in the place of {expected[thread]}")
        expected[thread] += 1
        count += 1
        note(count)


def peer_spoils(connection, note):
    """Sends what was not to be sent."""
    number = 0
    while True:
        if number % 3 == 0 and random.random() < 0.05:
            data = bytearray(stamped(number, 1000))
            data[random.randrange(8, len(data))] ^= 1
            connection.send_bytes(data)
        else:
            send(connection, number)
        number += 1


# ---- Who survives ----------------------------------------------------------------------------


def survive_asking(connection, turn):
    number = 0
    while True:
        send(connection, number)
        receive_next(connection, number)
        number += 1
        turn(number)


def survive_sending_in_threads(connection, turn):
    """All of them see the end; the errors are checked one by one."""
    errors = []

    def run(thread):
        number = thread * 10_000_000
        try:
            while True:
                connection.send_bytes(stamped(number, random.choices(SIZES, WEIGHTS)[0]))
                number += 1
                turn(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors[1:]:
        ending_of(error, "sends")
    raise errors[0]


ROLES = {
    "receives": (receives, sends),
    "sends": (sends, receives),
    "asks": (survive_asking, peer_answers),
    "sends in threads": (survive_sending_in_threads, peer_receives_from_threads),
}


def ending_of(error, role):
    """How a conversation has ended, where it may end so."""
    if isinstance(error, EOFError) and str(error) == "" and role in ("receives", "asks"):
        return "EOFError"
    if type(error) is OSError and str(error) == "got end of file during message":
        return "in the middle of a message"
    if isinstance(error, (BrokenPipeError, ConnectionResetError)):
        return type(error).__name__
    raise error


class Worker:
    """Has one conversation after the other."""

    def __init__(self, index, module, words, seed, roles):
        self.index, self.module, self.words, self.seed = index, module, words, seed
        self.roles = roles
        self.endings = collections.Counter()
        self.messages = 0

    def turn(self, number):
        """The survivor has sent or received its message of this number less one, or none."""
        self.words.set(self.index, TURNS, self.words.get(self.index, TURNS) + 1)
        self.number = number
        self.messages += number > 0

    def run_peer(self, function, connection):
        """In the child, which never returns from here."""
        code = 3
        try:
            function(connection, lambda number: self.words.set(self.index, SENT, number))
        except Failure as failure:
            print(f"Connection: the peer: {failure}", flush=True)
        except (EOFError, OSError):
            code = 4  # the survivor has gone: it has failed, and says so
        finally:
            os._exit(code)

    def converse(self, conversation):
        random.seed(f"{self.seed} {self.index} {conversation}")
        role = random.choice(self.roles)
        kind = random.choice(BOTH_WAYS if role == "asks" else BOTH_WAYS + ONE_WAY)
        self.what = f"a survivor that {role} through a {kind}, conversation {conversation}"
        survive, peer = ROLES[role]
        self.words.set(self.index, SENT, 0)
        reader, writer = make_pair(self.module, kind)
        mine, other = (writer, reader) if role.startswith("sends") else (reader, writer)
        self.number = 0
        pid = os.fork()
        if pid == 0:
            random.seed(f"{self.seed} {self.index} {conversation} peer")
            mine.close()
            self.run_peer(peer, other)
        other.close()
        moment = LONGEST * random.random() ** 3
        killer = threading.Thread(target=lambda: (time.sleep(moment), os.kill(pid, signal.SIGKILL)))
        killer.start()
        try:
            survive(mine, self.turn)
        except Exception as error:
            ending = ending_of(error, role)
        killer.join()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status != -signal.SIGKILL:
            raise Failure(f"the peer ended with {status}, after {ending}")
        self.check_after(mine, role, ending)
        mine.close()
        self.endings[ending] += 1
        self.turn(0)

    def check_after(self, mine, role, ending):
        """What had been sent has come, and the end stays the end."""
        if role == "receives":
            sent = self.words.get(self.index, SENT)
            if self.number < sent:
                raise Failure(f"{sent} messages were sent, {self.number} came")
            for _ in range(2):
                try:
                    receive(mine, 0)
                except EOFError:
                    pass
                else:
                    raise Failure("something came after the end")
        elif role.startswith("sends"):
            try:
                mine.send_bytes(b"x" * 100_000)
            except (BrokenPipeError, ConnectionResetError):
                pass
            else:
                raise Failure(f"there was something to be sent after {ending}")

    def warm_up(self):
        """Has all open that a process has open for its rings."""
        reader, writer = self.module.Pipe(duplex=False)
        for number in range(20):
            writer.send(number)
            reader.recv()
        reader.close()
        writer.close()

    def run(self, conversations):
        before = None
        self.warm_up()
        for conversation in range(conversations):
            try:
                self.converse(conversation)
            except Exception as error:
                raise Failure(f"{type(error).__name__}: {error}: {self.what}") from error
            if conversation == min(WARM, conversations // 2):
                before = fds(), memory()
        if before is not None:
            if fds() != before[0]:
                raise Failure(f"descriptors: {len(before[0])} before, {len(fds())} now")
            if memory() > before[1] + MEMORY:
                raise Failure(f"bytes of memory: {before[1]} before, {memory()} now")
        return {"endings": self.endings, "messages": self.messages}


# ---- The storm -------------------------------------------------------------------------------


class Storm:
    def __init__(self, module, conversations, patience, seed, roles):
        self.words = Words()
        self.patience = patience
        self.reports = {}  # descriptor -> (worker, pid)
        for index in range(WORKERS):
            count = conversations // WORKERS + (index < conversations % WORKERS)
            worker = Worker(index, module, self.words, seed, roles)
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                self.work(worker, count, writing)
            os.close(writing)
            self.reports[reading] = index, pid

    @staticmethod
    def work(worker, count, writing):
        code = 1
        try:
            faulthandler.register(signal.SIGUSR1, file=sys.stdout)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            report = worker.run(count)
            code = 0
        except Failure as failure:
            report = {"failure": str(failure)}
        finally:
            with open(writing, "w") as file:
                json.dump(report, file)
            os._exit(code)

    def wait(self):
        """The workers' reports, of which each has to get on until it has made its own."""
        found = []
        seen = {index: (None, 0.0) for index, _ in self.reports.values()}
        while self.reports:
            for fd in select.select(list(self.reports), [], [], 0.1)[0]:
                index, pid = self.reports.pop(fd)
                with open(fd) as file:
                    text = file.read()
                os.waitpid(pid, 0)
                if not text:
                    raise Failure(f"worker {index} has died")
                report = json.loads(text)
                if "failure" in report:
                    raise Failure(report["failure"])
                found.append(report)
            now = time.monotonic()
            for index, pid in self.reports.values():
                turns, since = seen[index]
                if self.words.get(index, TURNS) != turns:
                    seen[index] = self.words.get(index, TURNS), now
                elif now - since > self.patience:
                    os.kill(pid, signal.SIGUSR1)
                    time.sleep(0.5)  # for what it prints
                    raise Failure(f"worker {index} does not get on for {self.patience:g} s")
        return found

    def end(self):
        for fd, (_, pid) in self.reports.items():
            os.close(fd)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("conversations", type=int)
    parser.add_argument("--package", default="mproc_ext")
    parser.add_argument("--patience", type=float, default=20, help="seconds until it is a hang")
    parser.add_argument("--spoil", action="store_true", help="send what is to be found")
    options = parser.parse_args()
    seed = int(os.environ.get("MPROC_EXT_STORM_SEED", os.getpid()))
    module = importlib.import_module(f"{options.package}.connection")
    # The stdlib's threads tear each other's messages.
    roles = [role for role in ROLES if options.package == "mproc_ext" or "threads" not in role]
    if options.spoil:
        ROLES["receives"] = receives, peer_spoils
    began = time.monotonic()
    storm = Storm(module, options.conversations, options.patience, seed, roles)
    try:
        reports = storm.wait()
    except Failure as failure:
        print(f"Connection: {failure} (MPROC_EXT_STORM_SEED={seed})")
        return 1
    finally:
        storm.end()
    endings = collections.Counter()
    for report in reports:
        endings.update(report["endings"])
    print(
        f"Connection: {sum(endings.values())} conversations in {time.monotonic() - began:.1f} s; "
        f"{sum(report['messages'] for report in reports)} messages; ended by "
        + ", ".join(f"{count} {ending}" for ending, count in sorted(endings.items()))
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
