"""Shared memory blocks with a name: the stdlib's; on older Pythons with the track parameter."""

from mproc_ext import _modules

_std = _modules.stdlib("shared_memory")

if hasattr(_std.SharedMemory, "_track"):
    _modules.identity(__name__)
else:
    _modules.overlay(__name__)
    import threading
    from contextlib import nullcontext

    from mproc_ext import resource_tracker

    class _Tracker:
        """What the stdlib's module takes for the resource tracker: does nothing for a thread that
        is at an object which is not tracked."""

        def __init__(self):
            self.local = threading.local()

        def register(self, name, kind):
            if not getattr(self.local, "off", False):
                resource_tracker.register(name, kind)

        def unregister(self, name, kind):
            if not getattr(self.local, "off", False):
                resource_tracker.unregister(name, kind)

        def __getattr__(self, name):
            return getattr(resource_tracker, name)

        def __enter__(self):
            self.local.off = True

        def __exit__(self, *exc_info):
            self.local.off = False

    _tracker = _std.resource_tracker = _Tracker()

    def _tracking(track):
        return nullcontext() if track else _tracker

    class SharedMemory(_std.SharedMemory):
        """Creates a shared memory block or attaches to one; see the stdlib's documentation.

        track=False keeps the block out of the resource tracker, which would unlink it when the
        processes that know it have ended, also where this one only attached to it.
        """

        _track = True

        def __init__(self, name=None, create=False, size=0, *, track=True):
            self._track = track
            with _tracking(self._track):
                super().__init__(name, create, size)

        def unlink(self):
            """Requests that the underlying shared memory block be destroyed."""
            with _tracking(self._track):
                super().unlink()

    def _adopt(memory):
        """Make a block that the stdlib's code has made one of ours."""
        memory.__class__ = SharedMemory
        return memory

    class ShareableList(_std.ShareableList):
        __doc__ = _std.ShareableList.__doc__

        def __init__(self, sequence=None, *, name=None):
            super().__init__(sequence, name=name)
            _adopt(self.shm)
