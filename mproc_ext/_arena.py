"""How shared objects get from a parent to a child that it starts by exec.

A child that is forked has its parent's objects.  For another one, pickling an object seats the
child in the object's arena, once, and lets it hold the object's slot; unpickling attaches the
child's process to the arena.  See src/core/mpx_arena.h.
"""

import os

from mproc_ext import _core, context, reduction

__all__ = ()

# The records for this process that it has made its own: (identity, seat).
_seats_taken = set()


def hand_over(shared):
    """What a child needs to become a holder of the object: the beginning of its pickled state."""
    return hand_over_slot(*_core.arena_of(shared))


def hand_over_slot(identity, fd, slot):
    """The same of a slot of the arena behind a descriptor."""
    popen = context.get_spawning_popen()
    seats = popen.__dict__.setdefault("_arena_seats", {})
    if identity not in seats:
        seats[identity] = _core.arena_seat(identity), reduction.DupFd(fd)
    seat, fd = seats[identity]
    _core.arena_give(identity, seat, slot)
    return identity, seat, fd, slot


def take_over(identity, seat, fd, slot):
    """In the child: attach to the arena.  Returns what the type's _take method takes."""
    if (identity, seat) not in _seats_taken:
        fd = fd.detach()
        if _core.arena_known(identity):
            # The child of a fork server that is in it, by what the main module makes.
            os.close(fd)
            _core.arena_join(identity, seat)
        else:
            _core.arena_attach(fd, seat)
        _seats_taken.add((identity, seat))
    return identity, slot


def settle(popen, pid):
    """The child has been started as *pid*; or, with 0, there is none."""
    for identity, (seat, _) in popen.__dict__.pop("_arena_seats", {}).items():
        _core.arena_settle(identity, seat, pid)


class Block(_core.Block):
    """At most BLOCK_SIZE bytes of shared memory, zeros at first, aligned to 8: a writable buffer.

    They are not used again while any process can reach them.
    """

    def __getstate__(self):
        if context.get_spawning_popen() is None:
            raise TypeError(
                "cannot pickle shared memory: a process inherits it or is given it when it starts"
            )
        return (*hand_over(self), len(memoryview(self)))

    def __setstate__(self, state):
        *where, size = state
        self._remake(*take_over(*where), size)
