/* mpx_semaphore.h - a counting semaphore in one word of shared memory.
 *
 * Layer: L2
 *
 * The word is twice the value, and 1 where somebody sleeps, perhaps: that goes with the next
 * release, which wakes one. Who was asleep sets it again when it takes a permit, and wakes one more
 * where permits are left: two releases may have met only one wake. Nobody counts sleepers (see
 * mpx_owned.h).
 *
 * Permits have no owner, as those of POSIX: what a killed process has taken stays taken. Killed
 * between a release and its wake, or with a wake that it did not use, it leaves sleepers that look
 * for themselves within MPX_WAIT_RECHECK.
 *
 * Order. A release (Q0) makes what came before it visible to the one that takes the permit (Q1), as
 * do all releases before it: each is a step in one release sequence.
 */
#ifndef MPX_SEMAPHORE_H
#define MPX_SEMAPHORE_H

#include "mpx_fault.h"
#include "mpx_os.h"

#include <errno.h>

/* In shared memory; all zero is a semaphore of value 0. */
typedef struct {
    mpx_atomic_u32 word;
} mpx_semaphore_t;

/* The largest value, that of POSIX semaphores here. */
#define MPX_SEMAPHORE_MAX UINT32_C(0x7fffffff)

/* In the word: somebody sleeps, perhaps; and what a permit counts. */
#define MPX_SEMAPHORE_WAITERS UINT32_C(1)
#define MPX_SEMAPHORE_PERMIT  UINT32_C(2)

/* Before anyone else knows it. */
void mpx_semaphore_init(mpx_semaphore_t *semaphore, uint32_t value);

/* Wakes one who sleeps. */
void mpx_semaphore_wake(mpx_semaphore_t *semaphore);

/* Takes a permit if there is one, and leaves `waiters` in the word: 0, or -EAGAIN. */
MPX_NODISCARD static inline int mpx_semaphore_take(mpx_semaphore_t *semaphore, uint32_t waiters)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    while (seen >= MPX_SEMAPHORE_PERMIT) {
        uint32_t left = (seen - MPX_SEMAPHORE_PERMIT) | waiters;
        if (mpx_u32_cas_acquire(&semaphore->word, &seen, left)) { /* Q1: with Q0 */
            MPX_STEP(semaphore_taken);
            if (waiters && left >= MPX_SEMAPHORE_PERMIT) {
                mpx_semaphore_wake(semaphore);
            }
            return 0;
        }
    }
    return -EAGAIN;
}

/* Takes a permit without waiting: 0, or -EAGAIN where there is none. */
MPX_NODISCARD static inline int mpx_semaphore_try(mpx_semaphore_t *semaphore)
{
    return mpx_semaphore_take(semaphore, 0);
}

/* Takes a permit: 0, -ETIMEDOUT or -EINTR. */
MPX_NODISCARD int mpx_semaphore_acquire(mpx_semaphore_t *semaphore, int64_t deadline);

/* Gives a permit; -EOVERFLOW where there are `limit` already. */
MPX_NODISCARD static inline int mpx_semaphore_release(mpx_semaphore_t *semaphore, uint32_t limit)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    uint32_t more;
    do {
        if (seen / MPX_SEMAPHORE_PERMIT >= limit) {
            return -EOVERFLOW;
        }
        more = (seen & ~MPX_SEMAPHORE_WAITERS) + MPX_SEMAPHORE_PERMIT;
    } while (!mpx_u32_cas_acq_rel(&semaphore->word, &seen, more)); /* Q0: with Q1 */
    MPX_STEP(semaphore_released);
    if (MPX_UNLIKELY(seen & MPX_SEMAPHORE_WAITERS)) {
        mpx_semaphore_wake(semaphore);
    }
    return 0;
}

uint32_t mpx_semaphore_value(mpx_semaphore_t *semaphore);

#endif
