/* mpx_arena.h - small objects in shared memory that live as long as a process can reach them.
 *
 * Layer: L3
 *
 * An arena is a segment of 64-byte slots that a family of processes shares: one descriptor for any
 * number of locks, events and values. A process makes its first arena when it needs one; a forked
 * child goes on with its parent's, and one that was started by exec is given it with the first
 * object it receives.
 *
 * Who can reach a slot. Every process of an arena has a member record, with a bit for each slot:
 * set while the process holds the slot. A slot is free when no living member holds it.
 *
 *   fork        a handler that libc runs makes the child's record before the child exists: a copy
 *               of its parent's bits. Until the fork is over no thread of the parent makes or drops
 *               a slot.
 *   exec        the parent makes the record (mpx_arena_seat), sets a bit in it for each object that
 *               it hands over (mpx_arena_give), and tells whose it is (mpx_arena_settle). The child
 *               finds it by its number (mpx_arena_attach).
 *   death       the record of a dead process counts no more, nor that of one that executes another
 *               program. Nobody is told of a death: who finds no free slot looks which members
 * live.
 *
 * Within a process, a slot is held as often as it was made, taken over or held, and is dropped as
 * often.
 *
 * Killed at any point, a process leaves a whole arena: see mpx_arena.c.
 *
 * Threads. Everything here may be called from any thread; nothing from a signal handler.
 */
#ifndef MPX_ARENA_H
#define MPX_ARENA_H

#include "mpx_lock.h"
#include "mpx_mutex.h"
#include "mpx_segment.h"

#define MPX_SLOT_SIZE 64

/* What the user of a slot gets of it, aligned to 8 bytes. The rest says when it was made. */
#define MPX_SLOT_ROOM 56

/* A slot's number within its arena; never 0. */
typedef uint32_t mpx_slot_t;

/* This process's handle of an arena. It stays until the process ends. */
typedef struct mpx_arena mpx_arena_t;

/* The same for all processes, and for one arena only. */
typedef struct {
    uint64_t low;
    uint64_t high;
} mpx_arena_id_t;

/* The arena for new objects; the first call makes it. */
MPX_NODISCARD int mpx_arena_home(mpx_arena_t **arena);

/* Another arena in place of one that cannot grow, because the program has closed its descriptor.
 * What is in that stays usable. Of several threads that ask at once, one makes it. */
MPX_NODISCARD int mpx_arena_move(mpx_arena_t **arena);

/* The arena of this identity, NULL where this process has not attached to it. */
mpx_arena_t *mpx_arena_find(mpx_arena_id_t id);

mpx_arena_id_t mpx_arena_id(const mpx_arena_t *arena);

/* The descriptor, to hand to another process; -EBADF or -ESTALE where the program has closed it. */
MPX_NODISCARD int mpx_arena_fd(const mpx_arena_t *arena);

/* ---- Slots ----------------------------------------------------------------------------------- */

/* Makes a slot of zeros, which this process holds once. -ENOMEM, -ENOSPC, -EFBIG, -EBADF and
 * -ESTALE where there is none and the arena cannot grow. */
MPX_NODISCARD int mpx_slot_new(mpx_arena_t *arena, mpx_slot_t *slot);

/* The same, marked as mpx_slot_mark_lock does: all zero is a free lock. */
MPX_NODISCARD int mpx_slot_new_lock(mpx_arena_t *arena, mpx_slot_t *slot);

/* Holds a slot that this process holds once more. */
void mpx_slot_hold(mpx_arena_t *arena, mpx_slot_t slot);

/* Drops a slot once. After the last time this process must not touch it. */
void mpx_slot_drop(mpx_arena_t *arena, mpx_slot_t slot);

/* Whether another process holds the slot too, as far as is known here: one that has died counts
 * until somebody has looked. */
bool mpx_slot_is_shared(mpx_arena_t *arena, mpx_slot_t slot);

/* Looks which processes have died, in all arenas. */
void mpx_arena_bury_dead(void);

/* Whether a process that has had this arena has it no more: it is dead, or executes another
 * program. False where that is not sure. */
bool mpx_arena_has_lost(const mpx_arena_t *arena, mpx_process_id_t process);

/* The room of a slot that this process holds, or that another one has linked from such a slot; NULL
 * where there is no such slot, or it cannot be mapped. */
void *mpx_slot_at(mpx_arena_t *arena, mpx_slot_t slot);

/* ---- Locks ----------------------------------------------------------------------------------- */

/* Says that the slot's room begins with an mpx_lock_t. Where this process holds that when it drops
 * the slot for the last time, or ends in good order, it becomes nobody's: see mpx_lock_disown. */
void mpx_slot_mark_lock(mpx_arena_t *arena, mpx_slot_t slot);

/* This process ends in good order. */
void mpx_arena_disown_locks(void);

/* ---- Slots that other slots refer to --------------------------------------------------------- */

/* A slot whose number is written in another one (the node of a waiter in a list) must not be used
 * again while it is, also when the process that made it dies. So it is marked before its number is
 * stored anywhere, and unmarked after that is gone. The slot must be held. */
void mpx_slot_mark_linked(mpx_arena_t *arena, mpx_slot_t slot, bool linked);

/* What takes a marked slot that no living process holds out of what refers to it, and unmarks it.
 * Of this header it may call mpx_slot_at and mpx_slot_mark_linked. Until a process knows such a
 * function it leaves these slots alone. */
typedef void mpx_undertaker_t(mpx_arena_t *arena, mpx_slot_t slot);
void mpx_arena_set_undertaker(mpx_undertaker_t *undertaker);

/* ---- Handing slots to a process that is started by exec -------------------------------------- */

/* A member record for a child that is about to be started: its number, above 0. */
MPX_NODISCARD int mpx_arena_seat(mpx_arena_t *arena, uint32_t *seat);

/* Lets the child hold a slot that this process holds. */
MPX_NODISCARD int mpx_arena_give(mpx_arena_t *arena, uint32_t seat, mpx_slot_t slot);

/* The child has been started as `pid`; or, with 0, has not and will not be. */
void mpx_arena_settle(mpx_arena_t *arena, uint32_t seat, pid_t pid);

/* In the child: attaches to the arena behind the descriptor, which is the arena's from then on, as
 * the member that its parent has seated. On failure the descriptor stays the caller's.
 * -EPROTO: that is no arena, or the seat is another's. */
MPX_NODISCARD int mpx_arena_attach(mpx_arena_t **arena, int fd, uint32_t seat);

/* The same in a child that is a member already, as the child of a fork server can be: it holds what
 * it was given besides what it holds. Once for a seat. */
MPX_NODISCARD int mpx_arena_join(mpx_arena_t *arena, uint32_t seat);

/* Takes a slot over that the parent has given: it is held once more. -EPROTO: it was not given. */
MPX_NODISCARD int mpx_slot_take(mpx_arena_t *arena, mpx_slot_t slot);

/* ---- Fork ------------------------------------------------------------------------------------ */

/* After a fork that led to the child `pid`, in the thread that forked: says whose the child's
 * records are, in case it is killed before it adopts them. Without this they are nobody's then
 * where they could be marked (see mpx_arena_member.c); else they stay this process's, and what they
 * hold is held, as long as it lives. */
void mpx_arena_forked(pid_t pid);

/* After a fork that failed, in the thread that tried: takes the member records back that were made
 * for the child. libc does not say so to its handlers. Without this they are nobody's where they
 * could be marked, which somebody has to find. */
void mpx_arena_fork_failed(void);

#endif
