/* mpx_event.c - see mpx_event.h.
 *
 * Layer: L2
 */
#include "mpx_event.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <limits.h>
#include <sched.h>

static uint32_t turn_of(uint32_t word)
{
    return word / MPX_EVENT_TURN;
}

void mpx_event_wake(mpx_event_t *event)
{
    (void)!mpx_os_futex_wake(&event->word, INT_MAX);
}

/* An event that is set now was set after the turn before. */
mpx_event_wait_t mpx_event_begin(mpx_event_t *event)
{
    uint32_t seen = mpx_u32_load_relaxed(&event->word);
    return (mpx_event_wait_t){.turn = turn_of(seen & MPX_EVENT_SET ? seen - MPX_EVENT_TURN : seen)};
}

static bool is_over(mpx_event_t *event, mpx_event_wait_t wait)
{
    uint32_t seen = mpx_u32_load_acquire(&event->word); /* E1: with E0 */
    return (seen & MPX_EVENT_SET) || turn_of(seen) != wait.turn;
}

/* Sleeps while the word is as `wait` knows it: 0 is "look again". */
static int sleep_on(mpx_event_t *event, mpx_event_wait_t wait, int64_t deadline)
{
    uint32_t asleep = wait.turn * MPX_EVENT_TURN | MPX_EVENT_WAITERS;
    uint32_t seen = wait.turn * MPX_EVENT_TURN;
    if (!mpx_u32_cas_relaxed(&event->word, &seen, asleep) && seen != asleep) {
        return 0;
    }
    MPX_STEP(event_waiting);
    int status = mpx_wait_a_while(&event->word, asleep, deadline);
    MPX_STEP(event_awake);
    return status == MPX_WAIT_LOOK ? 0 : status;
}

int mpx_event_wait(mpx_event_t *event, mpx_event_wait_t wait, int64_t deadline)
{
    int status = 0;
    for (unsigned tries = 0; !is_over(event, wait); tries++) {
        if (status < 0) {
            return status;
        }
        if (tries >= MPX_WAIT_YIELDS) {
            status = sleep_on(event, wait, deadline);
        } else if (mpx_os_now() < deadline) {
            sched_yield();
        } else {
            status = -ETIMEDOUT;
        }
    }
    return 0;
}
