"""How far a call of a pool has come, on stderr: by tqdm if it is installed, else a plain line."""

import sys
import threading

__all__ = ()

# Seconds.
_INTERVAL = 0.1
_PATIENCE = 1.0  # with a stderr that takes nothing: the call does not wait for that

# What writing to a stderr raises that is none, or is closed.
_CLOSED = (AttributeError, OSError, ValueError)


class _Line:
    """A line that is written over, as tqdm's is."""

    def __init__(self, total, desc):
        self._total = total
        self._desc = f"{desc}: " if desc else ""
        self._done = 0
        self.update(0)

    def update(self, count):
        self._done += count
        total = "?" if self._total is None else self._total
        self._write(f"\r{self._desc}{self._done}/{total}")

    def close(self):
        self._write("\n")

    @staticmethod
    def _write(text):
        sys.stderr.write(text)
        sys.stderr.flush()


def _bar(total, desc):
    try:
        from tqdm import tqdm
    except ImportError:
        return _Line(total, desc)
    return tqdm(total=total, desc=desc)


class Items:
    """The items of a call that nobody knows the number of; counts them."""

    def __init__(self, iterable):
        self._iterable = iterable
        self.count = 0

    def __iter__(self):
        for item in self._iterable:
            self.count += 1
            yield item


def show(job, progress, items):
    """Shows the progress of the job until it is done; *progress* is True, or a description.

    items: how many there are, or an Items.
    """
    total = None if isinstance(items, Items) else items
    try:
        bar = _bar(total, progress if isinstance(progress, str) else None)
    except _CLOSED:
        return
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(job, bar, items, total, done), daemon=True)
    thread.start()

    def end():
        # All is shown when the call counts as done, and what the program prints comes after it.
        done.set()
        thread.join(_PATIENCE)

    job._when_done(end)


def _watch(job, bar, items, total, done):
    shown = 0
    is_done = False
    try:
        while not is_done:
            is_done = done.wait(_INTERVAL)
            # The last chunk may be a short one.
            finished = min(job._progress[0], items.count if total is None else total)
            if finished > shown:
                bar.update(finished - shown)
                shown = finished
        bar.close()
    except _CLOSED:
        pass  # the call goes on
