"""The heap of the shared ctypes objects that are too large for a slot of an arena.

The stdlib's heap on other memory: files without a name that lie in memory (memfd) instead of
temporary files, so that nothing depends on what /dev/shm or a disk has room for.  And a block that
was given back is not handed out again while another process can still see it: a token in an arena
(see src/core/mpx_arena.h), made with the block, tells whether one can.

A heap belongs to one process, as the stdlib's does.  When that dies, its memory is freed with the
last process that has mapped it.
"""

import collections
import mmap
import os

from mproc_ext import _arena, _core, _fds, _modules, reduction, util

_std = _modules.overlay(__name__)

__all__ = ["BufferWrapper"]

LARGE = 64 << 20


def _see_whether_there_is(size):
    """MemoryError where the machine has not got that much memory: what lies in memory is given out
    page by page, and who then uses one page too many is killed."""
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        kilobytes = sum(int(fields[name].split()[0]) for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError):
        return
    if size > kilobytes << 10:
        raise MemoryError(
            f"{size} bytes of shared memory are more than the {kilobytes << 10} that this machine "
            "has available"
        )


class Arena(_std.Arena):
    """Memory that blocks are handed out of: a file without a name, mapped.

    MemoryError where the machine has not got as much; OSError where there is no descriptor or no
    address space left.
    """

    def __init__(self, size, fd=-1):
        self.size = size
        if fd == -1 and size >= LARGE:
            _see_whether_there_is(size)
        self.fd = _core.memory_file() if fd == -1 else fd
        self._identity = _fds.identity(self.fd)
        util.Finalize(self, _fds.close, (self.fd, self._identity))
        if fd == -1:
            if _core.features()["memfd_seal"]:
                os.ftruncate(self.fd, size)
            else:
                os.posix_fallocate(self.fd, 0, size)  # perhaps on a disk: no SIGBUS when it is full
        self.buffer = mmap.mmap(self.fd, self.size)


def reduce_arena(a):
    if a.fd == -1:
        raise ValueError("Arena is unpicklable because forking was enabled when it was created")
    if _fds.identity(a.fd) != a._identity:
        os.fstat(a.fd)  # where the number is free that is what it raises
        raise OSError(
            "the program has closed the descriptor of mproc_ext's shared memory: what is in it "
            "cannot be given to a new process"
        )
    return rebuild_arena, (a.size, reduction.DupFd(a.fd))


def rebuild_arena(size, dupfd):
    return Arena(size, dupfd.detach())


reduction.register(Arena, reduce_arena)


class Heap(_std.Heap):
    """Hands out blocks of arenas, and takes them back."""

    def __init__(self, size=mmap.PAGESIZE):
        super().__init__(size)
        # What was given back, but can be seen by another process yet: (block, token).
        self._lent = collections.deque()
        util.register_after_fork(self, Heap._forget)

    def _forget(self):
        """In a forked child, which holds what its parent's heap lends as long as it has it here."""
        self._lent = collections.deque()

    def _give_back(self, block, token):
        """Free a block once nobody but this process has its token."""
        if token._is_shared():
            _core.bury_dead()
        if token._is_shared():
            self._lent.append((block, token))
        else:
            self.free(block)

    def _new_arena(self, size):
        if self._take_back():
            return self._malloc(size)
        length = self._roundup(max(self._size, size), mmap.PAGESIZE)
        if self._size < self._DOUBLE_ARENA_SIZE_UNTIL:
            self._size *= 2
        util.info("allocating a new mmap of length %d", length)
        arena = Arena(length)
        self._arenas.append(arena)
        return arena, 0, length

    def _take_back(self):
        """Free what no other process sees any more; whether that was anything."""
        if not self._lent:
            return False
        _core.bury_dead()
        count = 0
        for _ in range(len(self._lent)):  # another thread may append
            block, token = self._lent.popleft()
            if token._is_shared():
                self._lent.append((block, token))
            else:
                self._add_free_block(block)
                self._remove_allocated_block(block)
                self._n_frees += 1
                count += 1
        return count > 0


class BufferWrapper(_std.BufferWrapper):
    """A block of shared memory, which a child process inherits or is given."""

    _heap = Heap()

    def __init__(self, size):
        heap = BufferWrapper._heap
        self._token = _arena.Block(0)
        block = heap.malloc(size)
        self._state = (block, size)
        util.Finalize(self, heap._give_back, args=(block, self._token))

    def _fill_with_zeros(self):
        """The whole pages within are given back to the system, which is what makes them zeros."""
        (arena, start, _), size = self._state
        first, last = -(-start // mmap.PAGESIZE), (start + size) // mmap.PAGESIZE
        view = self.create_memoryview()
        if first < last:
            try:
                arena.buffer.madvise(
                    mmap.MADV_REMOVE, first * mmap.PAGESIZE, (last - first) * mmap.PAGESIZE
                )
            except OSError:
                pass  # the program has its own kind of arena
            else:
                begin, end = first * mmap.PAGESIZE - start, last * mmap.PAGESIZE - start
                view[:begin] = bytes(begin)
                view[end:] = bytes(size - end)
                return
        view[:] = bytes(size)
