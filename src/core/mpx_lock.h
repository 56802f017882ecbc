/* mpx_lock.h - the lock that users get: owned by a process, released by anyone.
 *
 * Layer: L2
 *
 * multiprocessing.Lock may be taken by one thread or process and released by another, so the
 * kernel's robust list, which is a thread's own, cannot help. The word says which *process* took it
 * (a thread that ends keeps the lock held), and who waits looks whether that lives.
 *
 * A process that ends in good order while it holds the lock leaves it locked and nobody's
 * (mpx_lock_disown): then it is never recovered, and anyone may release it. Some programs take a
 * lock in one process and release it in another.
 *
 * Killed at any point, a process leaves one of these behind:
 *
 *   the lock taken          recovered by the next who wants it
 *   the lock released,      whoever sleeps looks within MPX_WAIT_RECHECK
 *   nobody woken
 *   WAITERS, and nobody     one wake for nothing
 *   sleeps
 */
#ifndef MPX_LOCK_H
#define MPX_LOCK_H

#include "mpx_owned.h"

/* In shared memory; all zero is a free lock. */
typedef struct {
    mpx_owned_t owned; /* by a process, or by nobody */
} mpx_lock_t;

/* What mpx_lock_try does where the lock is not free. */
MPX_NODISCARD int mpx_lock_try_held(mpx_lock_t *lock, mpx_atomic_u64 *next_look);

/* Takes the lock without waiting: 0, MPX_OWNER_DIED, or -EAGAIN where it is another's. To look
 * whether the owner lives takes some system calls: done here only when the time *next_look has
 * come, which is then set anew. It is the caller's own, or its threads', 0 at first. */
MPX_NODISCARD static inline int mpx_lock_try(mpx_lock_t *lock, mpx_atomic_u64 *next_look)
{
    bool is_free = mpx_u64_load_relaxed(&lock->owned.word) == 0;
    if (MPX_LIKELY(is_free && mpx_owned_take(&lock->owned, 0, mpx_os_own_word()) == 0)) {
        return 0;
    }
    return mpx_lock_try_held(lock, next_look);
}

/* Takes the lock: 0, MPX_OWNER_DIED (it is taken all the same), -ETIMEDOUT or -EINTR. */
MPX_NODISCARD int mpx_lock_acquire(mpx_lock_t *lock, int64_t deadline);

/* Releases the lock, whoever has it; -EPERM where it is free. One step, whatever the word was: a
 * free one is 0 before and after. */
MPX_NODISCARD static inline int mpx_lock_release(mpx_lock_t *lock)
{
    uint64_t before = mpx_u64_exchange_release(&lock->owned.word, 0); /* O0: with O1 */
    MPX_STEP(lock_released);
    if (MPX_UNLIKELY(before & MPX_FUTEX_WAITERS)) {
        mpx_owned_wake(&lock->owned);
    }
    return MPX_LIKELY(!mpx_owned_is_free(before)) ? 0 : -EPERM;
}

bool mpx_lock_is_held(mpx_lock_t *lock);

/* Whether this process took it. */
bool mpx_lock_is_own(mpx_lock_t *lock);

/* Makes a lock that this process holds nobody's. */
void mpx_lock_disown(mpx_lock_t *lock);

#endif
