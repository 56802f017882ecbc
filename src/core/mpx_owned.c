/* mpx_owned.c - see mpx_owned.h.
 *
 * Layer: L2
 */
#include "mpx_owned.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <sched.h>

/* The longest time with yields: on a machine that is busy each one may take some milliseconds, and
 * only who sleeps looks whether the owner lives. */
#define YIELD_TIME (MPX_WAIT_RECHECK / 5)

void mpx_owned_wake(mpx_owned_t *owned)
{
    (void)!mpx_os_futex_wake(mpx_owned_futex(owned), 1);
}

/* Another one sleeps, perhaps, and the wake that was meant for one of us came here. */
static void pass_on(mpx_owned_t *owned)
{
    uint64_t seen = mpx_u64_load_relaxed(&owned->word);
    while (!mpx_owned_is_free(seen)) {
        if (mpx_u64_cas_relaxed(&owned->word, &seen, seen | MPX_FUTEX_WAITERS)) {
            return; /* the owner wakes one */
        }
    }
    mpx_owned_wake(owned);
}

/* Sleeps while the word is `seen`. 1: the owner is dead; 0: look again. */
static int sleep_on(mpx_owned_t *owned, uint64_t seen, int64_t deadline, mpx_owner_alive_t *alive)
{
    int status = mpx_wait_a_while(mpx_owned_futex(owned), (uint32_t)seen, deadline);
    if (status == MPX_WAIT_LOOK) {
        return !alive((uint32_t)seen & MPX_FUTEX_TID_MASK, (uint32_t)(seen >> 32));
    }
    return status;
}

/* One round of waiting: the result of the wait, or -EAGAIN. */
static int try_once(mpx_owned_t *owned, uint64_t own, int64_t deadline, mpx_owner_alive_t *alive,
                    bool may_sleep, bool *slept)
{
    uint64_t seen = mpx_u64_load_relaxed(&owned->word);
    if (mpx_owned_is_free(seen)) {
        uint64_t waiters = *slept ? MPX_FUTEX_WAITERS : seen & MPX_FUTEX_WAITERS;
        return mpx_owned_take(owned, seen, own | waiters);
    }
    if (!may_sleep) {
        sched_yield();
        return -EAGAIN;
    }
    if (!(seen & MPX_FUTEX_WAITERS) &&
        !mpx_u64_cas_relaxed(&owned->word, &seen, seen | MPX_FUTEX_WAITERS)) {
        return -EAGAIN;
    }
    seen |= MPX_FUTEX_WAITERS;
    MPX_STEP(owned_waiting);
    int status = sleep_on(owned, seen, deadline, alive);
    *slept = true;
    MPX_STEP(owned_awake);
    if (status == 1) {
        return mpx_owned_take(owned, seen, own | MPX_FUTEX_WAITERS);
    }
    return status == 0 ? -EAGAIN : status;
}

int mpx_owned_wait(mpx_owned_t *owned, uint64_t own, int64_t deadline, mpx_owner_alive_t *alive)
{
    bool slept = false, may_sleep = false;
    int status = -EAGAIN;
    int64_t yield_until = mpx_os_deadline(YIELD_TIME);
    for (unsigned tries = 0; status == -EAGAIN; tries++) {
        may_sleep = may_sleep || tries >= MPX_WAIT_YIELDS || mpx_os_now() >= yield_until;
        status = try_once(owned, own, deadline, alive, may_sleep, &slept);
    }
    if (status < 0 && slept) {
        pass_on(owned);
    }
    return status;
}
