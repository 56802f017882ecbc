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

/* ---- For a thread that has asked mpx_os_self already ----------------------------------------- */

/* Announces the lock to the kernel: before it is taken. See mpx_mutex.c. */
static inline void mpx_mutex_announce(const mpx_thread_t *self, mpx_mutex_t *mutex)
{
    if (MPX_LIKELY(self->robust != NULL)) {
        self->robust->pending = (char *)&mutex->owned.word - self->robust->futex_offset;
    }
    mpx_compiler_barrier(); /* before the lock is taken */
}

static inline void mpx_mutex_withdraw(const mpx_thread_t *self)
{
    mpx_compiler_barrier(); /* after the lock is released */
    if (MPX_LIKELY(self->robust != NULL)) {
        self->robust->pending = NULL;
    }
}

/* Announces the lock and tries once: 0, -EAGAIN, -EDEADLK. A caller that gives up withdraws. */
MPX_NODISCARD static inline int mpx_mutex_try_first(const mpx_thread_t *self, uint64_t own,
                                                    mpx_mutex_t *mutex)
{
    if (MPX_UNLIKELY(self->robust != NULL && self->robust->pending != NULL)) {
        return -EDEADLK;
    }
    mpx_mutex_announce(self, mutex);
    MPX_STEP(mutex_announced);
    return mpx_owned_take(&mutex->owned, 0, own);
}

/* mpx_mutex_try_lock where the first try did not succeed. */
MPX_NODISCARD int mpx_mutex_try_again(const mpx_thread_t *self, uint64_t own, mpx_mutex_t *mutex);

MPX_NODISCARD static inline int mpx_mutex_try_lock_as(const mpx_thread_t *self, mpx_mutex_t *mutex)
{
    uint64_t own = mpx_owned_by(self->number, self->start);
    int status = mpx_mutex_try_first(self, own, mutex);
    return MPX_LIKELY(status != -EAGAIN) ? status : mpx_mutex_try_again(self, own, mutex);
}

static inline void mpx_mutex_unlock_as(const mpx_thread_t *self, mpx_mutex_t *mutex)
{
    MPX_STEP(mutex_releasing);
    uint64_t before = mpx_u64_exchange_release(&mutex->owned.word, 0); /* O0: with O1 */
    MPX_STEP(mutex_released);
    if (MPX_UNLIKELY(before & MPX_FUTEX_WAITERS)) {
        mpx_owned_wake(&mutex->owned);
    }
    MPX_STEP(mutex_woken);
    mpx_mutex_withdraw(self);
}

#endif
