"""The numbers that the processes of a storm share, in a file that each of them maps.

Every number is written by one process at a time, without a lock: the locks are what is tried out.
"""

import mmap
import os

WORKERS = 4
WORD = 8
_ROW = 64  # bytes: what different processes write is a cache line apart
_PER_POINT = 2 * WORD  # passes and kills, see src/testing/kill_points.c

# Guarded by the lock of a storm, but for `holder`, which is a hint.
GUARDED = ("holder", "inside", "first", "second", "recoveries", "mail", "generations")
# A worker's own: `since` is when it began to wait, 0 where it does not; `plan` is the killer's.
OWN = ("turns", "longest", "plan", "since")


class Memory:
    def __init__(self, path, points=0):
        rows = _ROW * (WORKERS + 1)
        with open(path, "r+b") as file:
            os.ftruncate(file.fileno(), rows + points * _PER_POINT)
            self.map = mmap.mmap(file.fileno(), 0)
        self._words = memoryview(self.map).cast("q")
        self._points = points
        self.counts_at = rows

    def get(self, field):
        return self._words[GUARDED.index(field)]

    def set(self, field, value):
        self._words[GUARDED.index(field)] = value

    def add(self, field, value=1):
        self._words[GUARDED.index(field)] += value

    def _at(self, worker, field):
        return _ROW * (worker + 1) // WORD + OWN.index(field)

    def of(self, worker, field):
        return self._words[self._at(worker, field)]

    def set_of(self, worker, field, value):
        self._words[self._at(worker, field)] = value

    def plan_at(self, worker):
        return self._at(worker, "plan") * WORD

    def turns(self):
        return [self.of(worker, "turns") for worker in range(WORKERS)]

    def passes_and_kills(self):
        first = self.counts_at // WORD
        return [
            (self._words[first + 2 * point], self._words[first + 2 * point + 1])
            for point in range(self._points)
        ]
