/* rings.h - the shared memory of the two ends of a Pipe().
 *
 * Both ends are connections with descriptors, as the standard library's. Beside these they have two
 * ducts (mpx_duct.h), one for each direction, in blocks that belong to a slot which every process
 * with one of the ends holds; a duct is made when a few messages have been sent. Without, all goes
 * through the descriptors.
 *
 * Leaving. Whoever asks for an end's descriptor is to find there what the standard library would
 * have put there. So the end leaves: what is in the rings goes to the descriptors, and from then on
 * everything does, also what the other end sends, which sees that the ducts are stopped. The other
 * end's end is a reason to leave, too: what the descriptor says then is what counts.
 *
 * Trust. To write into its own descriptor an end needs the other one's. (Of a pipe it opens its own
 * again by /proc, which is gone after a chroot: a folder kept open would be a way out of that. And
 * root, who may be somebody else by then, lets anybody open the pipe who gets at it.) Each end of a
 * socket pair has a second socket, its *life*, whose peer is the other end's. Who makes a duct
 * sends a copy of its end through its life, where it stays in the queue: so the copy is no
 * process's, and who takes it takes it for all. Since it keeps the end open, that one's end is seen
 * by the life's; and who leaves drops the copy.
 *
 * What fails here is no error: the connection is plain then.
 */
#ifndef MPX_PY_RINGS_H
#define MPX_PY_RINGS_H

#include "own_fd.h"

#include "mpx_arena.h"
#include "mpx_atomic.h"
#include "mpx_duct.h"

#define MPX_NO_HANDLE UINT32_MAX

/* What the ends in this process share. */
typedef struct mpx_rings mpx_rings_t;

/* A connection's part of it; all zero but for `life`: none. */
typedef struct {
    mpx_atomic_ptr rings; /* mpx_rings_t, or NULL: the connection is plain, or plain again */
    mpx_rings_t *joined;  /* the same as long as the connection lives */
    bool is_socket;
    bool sends, receives;
    unsigned side;       /* which of the ducts it sends to; it receives from the other */
    mpx_atomic_u32 life; /* a descriptor, or MPX_NO_HANDLE */
    mpx_file_id_t life_file;
    mpx_own_fd_t hidden;       /* the life, while a closed connection has a thread that sends */
    mpx_atomic_u32 sent;       /* messages, before there was a duct; then, before it was opened */
    mpx_atomic_u64 next_look;  /* when to ask next whether there is another end */
    mpx_atomic_u32 closings;   /* how often one had been closed then */
    mpx_wait_mood_t room_mood; /* of waiting for room in the duct */
    mpx_atomic_u64 asked_by;   /* the process that has asked whether it could leave */
    mpx_atomic_u32 may_leave;  /* and what came of it */
    mpx_atomic_u32 is_reset;   /* this has been said */
} mpx_ring_end_t;

static inline bool mpx_end_is_joined(mpx_ring_end_t *end)
{
    return mpx_ptr_load_relaxed(&end->rings) != NULL;
}

/* The duct to send to, and the one to receive from; NULL where there is none yet. */
mpx_duct_t *mpx_end_sends_to(mpx_ring_end_t *end);
mpx_duct_t *mpx_end_receives_from(mpx_ring_end_t *end);

/* A message is about to be sent without a duct: after some, one is made. */
void mpx_end_count_sent(mpx_ring_end_t *end, int fd);

/* A message is about to be sent by a duct that has not been opened. */
void mpx_end_wait_for_opening(mpx_ring_end_t *end, mpx_duct_t *duct);

/* Begins to write a message without a duct, as mpx_outflow_write does. -EAGAIN: also where there is
 * one by now. */
MPX_NODISCARD int mpx_end_begin(mpx_ring_end_t *end, int fd, mpx_outflow_t *out);

/* Joins two new ends; without success, they stay plain. */
void mpx_ends_join(mpx_ring_end_t *first, mpx_ring_end_t *second, bool duplex);

/* What a child needs that is to have this end; false where there is nothing. */
typedef struct {
    mpx_arena_t *arena;
    mpx_slot_t slot;
    unsigned side;
    bool is_socket;
    int life; /* or -1 */
} mpx_end_parts_t;

bool mpx_end_parts(mpx_ring_end_t *end, mpx_end_parts_t *parts);

/* In the child, which holds the slot, and owns the life: both are the end's from then on. 0 or a
 * negative errno; then the connection is plain, and what was left of the other end is there. */
int mpx_end_adopt(mpx_ring_end_t *end, const mpx_end_parts_t *parts);

/* Finds out whether this process is able to leave (`may_leave`), before it opens a duct to receive
 * from. In a critical section of the module. */
void mpx_end_ask_to_leave(mpx_ring_end_t *end, int fd);

/* Leaves, as far as that is possible: where the descriptor has no room for what is in the ring, the
 * rest stays there, and goes on being received. */
void mpx_end_leave(mpx_ring_end_t *end, int fd);

/* Whether nobody has the other end any more; asked of the kernel where somebody has closed one, or
 * some time has passed since the last time. */
bool mpx_end_is_alone(mpx_ring_end_t *end, int fd);

/* There is no other end any more: whether it went with something unread in the duct. This is said
 * once, as the kernel does for what is in a socket's queue. */
bool mpx_end_was_reset(mpx_ring_end_t *end);

/* What a wait looks at besides the descriptor; fd -1: nothing. */
struct pollfd mpx_end_polls(mpx_ring_end_t *end);

/* Whether that has said that nobody has the other end any more. */
bool mpx_end_was_left(mpx_ring_end_t *end, const struct pollfd *polled);

/* The connection's descriptor has been closed in this process. */
void mpx_end_close(mpx_ring_end_t *end);

/* Its connection was closed, and mpx_end_close is left to a thread that is sending, which a child
 * that is forked until then does not have. */
void mpx_end_hide(mpx_ring_end_t *end);

/* At the connection's end. */
void mpx_end_forget(mpx_ring_end_t *end);

#endif
