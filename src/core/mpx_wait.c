/* mpx_wait.c - see mpx_wait.h.
 *
 * Layer: L2
 */
#include "mpx_wait.h"

#include "mpx_fault.h"

#include <errno.h>
#include <sched.h>

int mpx_wait_a_while(mpx_atomic_u32 *word, uint32_t expected, int64_t deadline)
{
    int64_t now = mpx_os_now();
    if (now >= deadline) {
        return -ETIMEDOUT;
    }
    int64_t until = deadline;
    if (deadline - now > MPX_WAIT_RECHECK && !MPX_FAULT(recovery)) {
        until = now + MPX_WAIT_RECHECK;
    }
    int status = mpx_os_futex_wait(word, expected, until);
    if (status == -ETIMEDOUT) {
        return MPX_WAIT_LOOK;
    }
    return status == -EINTR ? -EINTR : 0;
}

bool mpx_wait_yields(mpx_wait_mood_t *mood, unsigned tries, int64_t deadline)
{
    uint32_t wary = mpx_u32_load_relaxed(&mood->wary);
    if (tries >= MPX_WAIT_YIELDS) {
        return false;
    }
    if (wary > 0) {
        /* Threads may count one wait for two; it is a mood. */
        mpx_u32_store_relaxed(&mood->wary, wary - 1);
        return false;
    }
    int64_t before = mpx_os_now();
    if (before >= deadline) {
        return false;
    }
    sched_yield();
    if (mpx_os_now() - before > MPX_WAIT_BUSY) {
        mpx_u32_store_relaxed(&mood->wary, MPX_WAIT_WARY);
    }
    return true;
}
