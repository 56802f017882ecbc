"""Shared memory blocks with a name: the stdlib's; on older Pythons with the track parameter."""

from inspect import signature

from mproc_ext import _modules

_std = _modules.stdlib("shared_memory")

if hasattr(_std.SharedMemory, "_track"):
    _modules.identity(__name__)
else:
    _modules.overlay(__name__)
    from mproc_ext.resource_tracker import register, unregister

    class SharedMemory(_std.SharedMemory):
        """Creates a shared memory block or attaches to one; see the stdlib's documentation.

        track=False keeps the block out of the resource tracker, which would unlink it when the
        processes that know it have ended, also where this one only attached to it.
        """

        _track = True

        def __init__(self, name=None, create=False, size=0, *, track=True):
            super().__init__(name, create, size)
            self._track = track
            if not track:
                unregister(self._name, "shared_memory")

        def unlink(self):
            """Requests that the underlying shared memory block be destroyed."""
            if not self._track and self._name:
                register(self._name, "shared_memory")  # which the stdlib's unlink takes back
            super().unlink()
