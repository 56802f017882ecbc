"""Shared memory blocks with a name: the stdlib's, but who attaches to one does not destroy it."""

import struct
import types
import weakref

from mproc_ext import _modules, resource_tracker

_std = _modules.overlay(__name__)

_KIND = "shared_memory"  # what the resource tracker calls a block

# The blocks that this process has attached to by default: name -> the last one of that name.
_attached = weakref.WeakValueDictionary()

if hasattr(_std.SharedMemory, "_track"):

    def _open(memory, name, create, size, track):
        _std.SharedMemory.__init__(memory, name, create, size, track=track)

else:
    import threading

    class _Tracker:
        """What the stdlib's module takes for the resource tracker: does not register what a thread
        makes that wants it untracked."""

        def __init__(self):
            self.local = threading.local()

        def register(self, name, kind):
            if getattr(self.local, "registers", True):
                resource_tracker.register(name, kind)

        def __getattr__(self, name):
            return getattr(resource_tracker, name)

    _tracker = _std.resource_tracker = _Tracker()

    def _open(memory, name, create, size, track):
        memory._track = track
        _tracker.local.registers = track
        try:
            _std.SharedMemory.__init__(memory, name, create, size)
        finally:
            _tracker.local.registers = True


class SharedMemory(_std.SharedMemory):
    """Creates a shared memory block, or attaches to one that exists.

    name is the block's name in /dev/shm; a new block gets one if it is None.  With create=True a
    block of size bytes is made, without it size means nothing.  track says whether the resource
    tracker, a process that all processes of a program share, is to unlink the block when the last
    of them has ended and nobody has called unlink():

    None    (default) yes where the block is created, no where it is attached to: the end, or the
            death, of a process that only attached, leaves the block alone
    True    yes: an unrelated program that attaches destroys the block when it ends
    False   no: the block stays until somebody calls unlink()

    True and False mean what they mean in the stdlib (from Python 3.13 on), where True is the
    default.  A copy that came by pickling has attached by default, whatever the original did.  A
    forked child has the block as well, and keeps it when its parent closes its own.

    Raises FileExistsError or FileNotFoundError where a block of this name exists, or does not;
    ValueError for an impossible size, for no name without create, and for a block that is empty
    still.  If there is an OSError after the block was opened (no address space, say), the block is
    unlinked, but not where it was attached to by default.
    """

    _track = True  # None: attached by default

    def __init__(self, name=None, create=False, size=0, *, track=None):
        if track is None and create:
            track = True
        _open(self, name, create, size, track)
        if track is None:
            _attached[self._name] = self

    def unlink(self):
        """Requests that the block be destroyed; call it once, in any process that has the block.

        Who has it open can go on using it.  The memory is free when all have closed it, or ended.
        This process's resource tracker, if it has one, forgets the block, but not with track=False.
        Raises FileNotFoundError where the block has been unlinked before.
        """
        if self._track:
            super().unlink()
        elif self._track is None and not hasattr(self, "_size"):
            pass  # the constructor, which has failed to map what is not ours
        elif self._name:
            _std._posixshmem.shm_unlink(self._name)
            if self._track is None:
                _attached.pop(self._name, None)
                _forget(self._name)


def _forget(name):
    """Have this process's tracker, if there is one, know nothing of a name: the process that made
    the block may share it, and a name that it does not know is an error to it."""
    if resource_tracker._resource_tracker._fd is None:
        return
    try:
        resource_tracker.register(name, _KIND)
    except ValueError:
        return  # a name that it cannot be told
    resource_tracker.unregister(name, _KIND)


def _tolerant(send):
    """Many a program undoes the stdlib's default by hand: it attaches, and calls unregister.  The
    tracker does not know the name, and would print a traceback."""
    # The tracker has __del__, and is to be in no cycle.  Others may have put a function there.
    get = weakref.WeakMethod(send) if isinstance(send, types.MethodType) else lambda: send

    def sends(cmd, name, kind):
        if cmd == "UNREGISTER" and kind == _KIND and name in _attached:
            get()("REGISTER", name, kind)
        get()(cmd, name, kind)

    return sends


# Not the functions register and unregister: programs have imported those by name.
resource_tracker._resource_tracker._send = _tolerant(resource_tracker._resource_tracker._send)


def _adopt(memory):
    """Make a block that the stdlib's code has created one of ours."""
    memory.__class__ = SharedMemory
    return memory


class ShareableList(_std.ShareableList):
    """A list of fixed length whose items lie in a shared memory block.

    sequence has the items of a new list: int, float, bool, None, and str and bytes, which can be
    replaced by no longer ones.  Without it, name is that of a list's block that exists, which is
    attached to: the end of this process does not destroy it.  shm is the SharedMemory; a copy that
    came by pickling has attached to it.

    Raises what SharedMemory raises, and KeyError for an item of another type.
    """

    def __init__(self, sequence=None, *, name=None):
        if name is None or sequence is not None:
            super().__init__(sequence, name=name)
            _adopt(self.shm)
        else:
            # As the stdlib's, whose block would be tracked.
            self.shm = SharedMemory(name)
            self._list_len = len(self)
            self._allocated_offsets = list(
                struct.unpack_from(self._format_size_metainfo, self.shm.buf, 8)
            )
