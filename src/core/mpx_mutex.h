/* mpx_mutex.h - the internal lock: short sections on shared memory, and a dead owner is no
 * obstacle.
 *
 * Layer: L2
 *
 * For the core's own structures (arenas, queues, pools), never for the user: its owner is a thread,
 * and only the owner releases it.
 *
 * A thread holds one at a time, because the kernel's place for announcing one is one. Between lock
 * and unlock there is no call into Python, no pthread mutex, no allocation and no wait.
 *
 * What it protects must be right at every instruction, since the owner may die at any: the next one
 * is told (MPX_OWNER_DIED), but nothing is repaired for it.
 */
#ifndef MPX_MUTEX_H
#define MPX_MUTEX_H

#include "mpx_owned.h"

/* In shared memory; all zero is a free lock. */
typedef struct {
    mpx_owned_t owned; /* by a thread */
} mpx_mutex_t;

/* Takes the lock.
 *   0               it was free, or its owner released it
 *   MPX_OWNER_DIED  its owner died; it is taken all the same
 *   -ETIMEDOUT      it was not to be had by the deadline
 *   -EINTR          a signal handler ran while this thread slept
 *   -EDEADLK        this thread holds such a lock already */
MPX_NODISCARD int mpx_mutex_lock(mpx_mutex_t *mutex, int64_t deadline);

/* The same without a wait: -EAGAIN where another thread has the lock. */
MPX_NODISCARD int mpx_mutex_try_lock(mpx_mutex_t *mutex);

/* Releases a lock that this thread holds. */
void mpx_mutex_unlock(mpx_mutex_t *mutex);

#endif
