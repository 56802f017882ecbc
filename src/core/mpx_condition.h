/* mpx_condition.h - a condition variable whose waiters are known one by one, and may die.
 *
 * Layer: L3
 *
 * Each waiter is a node in a slot of the condition's own arena. The nodes are a list, from the
 * newest to the oldest, which changes under the condition's mutex only. A notify grants the oldest
 * nodes that wait: so it wakes as many as it says, those who were waiting, and nobody else.
 *
 *     mpx_condition_enter       the user's lock is held; a node is linked
 *                               the caller releases the user's lock
 *     mpx_condition_sleep       until the node is granted; again after a signal
 *     mpx_condition_leave       unlinks the node, and says for certain whether it was granted
 *                               the caller takes the user's lock again
 *
 * Death. Nobody waits for a waiter, so a dead one only stands in the list. If it has been granted,
 * or is granted later, the grant passes to the oldest one that was waiting at that notify and still
 * is. Who sleeps looks for such grants every MPX_WAIT_RECHECK (one sleeper for all), and for dead
 * nodes of any kind about once a second. A grant is consumed when its waiter unlinks its node: who
 * dies after that has been notified.
 *
 * Killed at any point, a process leaves one of these behind; tests/c/test_condition.c kills there:
 *
 *   a slot made, or a node        a slot that the arena finds when it looks who lives
 *   filled and marked, not linked
 *   a node linked                 it may be granted, and passes its grant on when it is found
 *   some of n nodes granted       as if n had been less
 *   nodes granted, nobody woken   who sleeps looks within MPX_WAIT_RECHECK
 *   a node unlinked, not dropped  a slot, as above; a condition marked that has no nodes
 *   a burial begun (`dead` is     whoever takes the mutex next goes through with it: the heir is
 *   set)                          granted once, and the dead one unlinked
 *
 * What keeps slots from being used again. A node is marked (mpx_slot_mark_linked) from before it is
 * linked till after it is unlinked, and a condition while it has nodes: a dead waiter was perhaps
 * the last one to hold the condition. mpx_condition_undertake is the arena's undertaker for both; a
 * process that makes conditions tells it so (mpx_arena_set_undertaker). It unlinks only nodes of
 * processes that it finds dead. It relies on this:
 *
 *   - It is called for slots that no living member holds, and of those none is freed before it
 *     returns, neither by this process nor by another one: the condition that it locks is perhaps
 *     one of them.
 *   - The caller holds no mutex: here is one taken.
 *   - mpx_slot_at and mpx_slot_mark_linked, which are called with the mutex held, take none.
 *
 * A child that was forked holds the nodes of its parent's waiters, and keeps their slots, unlinked
 * or not, until it ends.
 *
 * Order. What came before a notify is seen by those whom it wakes (N0, N1).
 */
#ifndef MPX_CONDITION_H
#define MPX_CONDITION_H

#include "mpx_arena.h"

/* In a slot of an arena; all zero is a condition without waiters. Who uses it holds the slot. */
typedef struct {
    mpx_atomic_u32 kind;   /* says that this is a condition, from the first node on */
    mpx_atomic_u32 newest; /* the slot of the newest node, 0: none */
    mpx_mutex_t mutex;
    uint64_t tickets;            /* the ticket of the node that was linked last */
    mpx_atomic_u64 next_look;    /* when to look for dead nodes that have been granted */
    mpx_atomic_u64 next_inquest; /* when to look for any */
    mpx_atomic_u32 dead;         /* the slot of the node that is being buried, 0: none */
    mpx_atomic_u32 heir;         /* the slot of the node that gets its grant, 0: none */
} mpx_condition_t;

MPX_STATIC_ASSERT(sizeof(mpx_condition_t) <= MPX_SLOT_ROOM, "a condition fits a slot");

typedef struct {
    uint32_t waiting; /* not granted; dead ones too, until they are found */
    uint32_t granted; /* granted, and not left yet */
} mpx_condition_counts_t;

/* Makes a node for this waiter, whom each notify from now on may wake. What mpx_slot_new returns,
 * or -EFAULT where there is no such condition. */
MPX_NODISCARD int mpx_condition_enter(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t *node);

/* Sleeps until the node is granted:
 *   0           it is
 *   -ETIMEDOUT  it was not by the deadline; leave
 *   -EINTR      a signal handler ran; call again, or leave
 *   -ESTALE     the node is another process's: a handler has forked, and this is the child. Leave,
 *               which does not touch the parent's node */
MPX_NODISCARD int mpx_condition_sleep(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t node,
                                      int64_t deadline);

/* Ends the wait, and drops the node. 1 where it has been granted, whatever mpx_condition_sleep has
 * said last: the waiter has been notified then. 0 where not. */
MPX_NODISCARD int mpx_condition_leave(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t node);

/* Whether nobody waits: who holds the user's lock, which each waiter held when it came, sees all
 * that have come. */
static inline bool mpx_condition_is_empty(mpx_condition_t *condition)
{
    return mpx_u32_load_relaxed(&condition->newest) == 0;
}

/* Grants the `count` oldest nodes that wait, SIZE_MAX for all, and wakes their waiters. How many
 * there were; -EPROTO where the list is damaged, or this process cannot map all of it: then nobody
 * has been granted. */
MPX_NODISCARD int mpx_condition_notify(mpx_arena_t *arena, mpx_slot_t condition, size_t count);

/* Counts the nodes; -EPROTO as above. */
MPX_NODISCARD int mpx_condition_count(mpx_arena_t *arena, mpx_slot_t condition,
                                      mpx_condition_counts_t *counts);

/* The same after a look at every process that waits: those that are dead have been buried. Some
 * system calls for each. */
MPX_NODISCARD int mpx_condition_count_living(mpx_arena_t *arena, mpx_slot_t condition,
                                             mpx_condition_counts_t *counts);

/* The arena's undertaker: see above. */
void mpx_condition_undertake(mpx_arena_t *arena, mpx_slot_t slot);

#endif
