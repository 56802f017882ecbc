/* mpx_semaphore.c - see mpx_semaphore.h.
 *
 * Layer: L2
 */
#include "mpx_semaphore.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <sched.h>

#define WAITERS UINT32_C(1)
#define PERMIT  UINT32_C(2)

static uint32_t value_of(uint32_t word)
{
    return word / PERMIT;
}

void mpx_semaphore_init(mpx_semaphore_t *semaphore, uint32_t value)
{
    mpx_u32_store_relaxed(&semaphore->word, value * PERMIT);
}

uint32_t mpx_semaphore_value(mpx_semaphore_t *semaphore)
{
    return value_of(mpx_u32_load_relaxed(&semaphore->word));
}

static void wake_one(mpx_semaphore_t *semaphore)
{
    (void)!mpx_os_futex_wake(&semaphore->word, 1);
}

/* Takes a permit if there is one, and leaves `waiters` in the word. */
static int take(mpx_semaphore_t *semaphore, uint32_t waiters)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    while (value_of(seen) > 0) {
        uint32_t left = (seen - PERMIT) | waiters;
        if (mpx_u32_cas_acquire(&semaphore->word, &seen, left)) { /* Q1: with Q0 */
            MPX_STEP(semaphore_taken);
            if (waiters && value_of(left) > 0) {
                wake_one(semaphore);
            }
            return 0;
        }
    }
    return -EAGAIN;
}

int mpx_semaphore_try(mpx_semaphore_t *semaphore)
{
    return take(semaphore, 0);
}

/* Sleeps while there is no permit: 0 is "look again". */
static int sleep_on(mpx_semaphore_t *semaphore, int64_t deadline)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    if (seen == 0 && mpx_u32_cas_relaxed(&semaphore->word, &seen, WAITERS)) {
        seen = WAITERS;
    }
    if (seen != WAITERS) {
        return 0;
    }
    MPX_STEP(semaphore_waiting);
    int status = mpx_wait_a_while(&semaphore->word, WAITERS, deadline);
    MPX_STEP(semaphore_awake);
    return status == MPX_WAIT_LOOK ? 0 : status;
}

/* The wake that this one gives up may have been meant for another. */
static void pass_on(mpx_semaphore_t *semaphore)
{
    if (mpx_semaphore_value(semaphore) > 0) {
        wake_one(semaphore);
    }
}

int mpx_semaphore_acquire(mpx_semaphore_t *semaphore, int64_t deadline)
{
    for (unsigned tries = 0; tries < MPX_WAIT_YIELDS; tries++) {
        if (take(semaphore, 0) == 0) {
            return 0;
        }
        sched_yield();
    }
    int status = sleep_on(semaphore, deadline);
    while (status == 0 && take(semaphore, WAITERS) < 0) {
        status = sleep_on(semaphore, deadline);
    }
    if (status < 0) {
        pass_on(semaphore);
    }
    return status;
}

int mpx_semaphore_release(mpx_semaphore_t *semaphore, uint32_t limit)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    do {
        if (value_of(seen) >= limit) {
            return -EOVERFLOW;
        }
    } while (!mpx_u32_cas_acq_rel(&semaphore->word, &seen,
                                  (seen & ~WAITERS) + PERMIT)); /* Q0: with Q1 */
    MPX_STEP(semaphore_released);
    if (seen & WAITERS) {
        wake_one(semaphore);
    }
    return 0;
}
