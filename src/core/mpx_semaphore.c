/* mpx_semaphore.c - see mpx_semaphore.h.
 *
 * Layer: L2
 */
#include "mpx_semaphore.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <sched.h>

void mpx_semaphore_init(mpx_semaphore_t *semaphore, uint32_t value)
{
    mpx_u32_store_relaxed(&semaphore->word, value * MPX_SEMAPHORE_PERMIT);
}

uint32_t mpx_semaphore_value(mpx_semaphore_t *semaphore)
{
    return mpx_u32_load_relaxed(&semaphore->word) / MPX_SEMAPHORE_PERMIT;
}

void mpx_semaphore_wake(mpx_semaphore_t *semaphore)
{
    (void)!mpx_os_futex_wake(&semaphore->word, 1);
}

/* Sleeps while there is no permit: 0 is "look again". */
static int sleep_on(mpx_semaphore_t *semaphore, int64_t deadline)
{
    uint32_t seen = mpx_u32_load_relaxed(&semaphore->word);
    if (seen == 0 && mpx_u32_cas_relaxed(&semaphore->word, &seen, MPX_SEMAPHORE_WAITERS)) {
        seen = MPX_SEMAPHORE_WAITERS;
    }
    if (seen != MPX_SEMAPHORE_WAITERS) {
        return 0;
    }
    MPX_STEP(semaphore_waiting);
    int status = mpx_wait_a_while(&semaphore->word, MPX_SEMAPHORE_WAITERS, deadline);
    MPX_STEP(semaphore_awake);
    return status == MPX_WAIT_LOOK ? 0 : status;
}

/* The wake that this one gives up may have been meant for another. */
static void pass_on(mpx_semaphore_t *semaphore)
{
    if (mpx_semaphore_value(semaphore) > 0) {
        mpx_semaphore_wake(semaphore);
    }
}

int mpx_semaphore_acquire(mpx_semaphore_t *semaphore, int64_t deadline)
{
    for (unsigned tries = 0; tries < MPX_WAIT_YIELDS; tries++) {
        if (mpx_semaphore_take(semaphore, 0) == 0) {
            return 0;
        }
        sched_yield();
    }
    int status = sleep_on(semaphore, deadline);
    while (status == 0 && mpx_semaphore_take(semaphore, MPX_SEMAPHORE_WAITERS) < 0) {
        status = sleep_on(semaphore, deadline);
    }
    if (status < 0) {
        pass_on(semaphore);
    }
    return status;
}
