/* turn.h - whose turn it is to use one direction of a connection: one thread's at a time, so that
 * the parts of two messages never mix.
 *
 * It is no lock that a fork could leave locked: in a child, a turn of its parent's threads is over.
 * A signal handler that runs in a thread's own turn shares it.
 */
#ifndef MPX_PY_TURN_H
#define MPX_PY_TURN_H

#include "module.h"

#include "mpx_atomic.h"

typedef struct {
    mpx_atomic_u32 holder;  /* the kernel's number of a thread, or 0 */
    unsigned depth;         /* how often the holder has it besides; the holder's */
    mpx_atomic_u64 process; /* of which that is a thread */
} mpx_turn_t;

/* Waits for it. 0, or -1 with an exception of a signal handler. */
int mpx_turn_take(mpx_turn_t *turn);

void mpx_turn_end(mpx_turn_t *turn);

/* Whether another thread of this process has it; or else whoever had it sees what was done before
 * this was asked. */
bool mpx_turn_is_anothers(mpx_turn_t *turn);

/* Whether this thread has it. */
bool mpx_turn_is_mine(mpx_turn_t *turn);

#endif
