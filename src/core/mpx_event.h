/* mpx_event.h - a flag in one word of shared memory that processes wait for.
 *
 * Layer: L2
 *
 * The word has a bit that says whether the event is set, a bit that says whether somebody sleeps,
 * perhaps, and the number of times that it was set. Who waits remembers that number from the start
 * of the wait: where it is another by now the event was set meanwhile, also where it has been
 * cleared since. So set and clear, one right after the other, wake all who wait.
 *
 * Nobody counts sleepers (see mpx_owned.h). Killed at any point, a process leaves one of these:
 *
 *   set, nobody woken      whoever sleeps looks within MPX_WAIT_RECHECK
 *   WAITERS, and nobody    one wake for nothing
 *   sleeps
 *
 * Order. Setting and clearing are steps in one order, each of which sees what came before the steps
 * before it (E0, E1), also where the event was set or clear already: so a process that clears the
 * event and then looks for work finds the work of one that found the event set. Looking is a load:
 * it sees what came before the step whose result it finds.
 */
#ifndef MPX_EVENT_H
#define MPX_EVENT_H

#include "mpx_fault.h"
#include "mpx_os.h"

/* In shared memory; all zero is an event that is not set. */
typedef struct {
    mpx_atomic_u32 word;
} mpx_event_t;

/* The start of a wait. It is forgotten after 2^30 times that the event is set. */
typedef struct {
    uint32_t turn;
} mpx_event_wait_t;

/* In the word. */
#define MPX_EVENT_SET     UINT32_C(1)
#define MPX_EVENT_WAITERS UINT32_C(2) /* never beside SET */
#define MPX_EVENT_TURN    UINT32_C(4) /* what is counted from here on wraps around */

static inline bool mpx_event_is_set(mpx_event_t *event)
{
    return (mpx_u32_load_acquire(&event->word) & MPX_EVENT_SET) != 0; /* E1: with E0 */
}

/* Wakes all who sleep. */
void mpx_event_wake(mpx_event_t *event);

/* Where it is set already the word is written all the same: whoever clears it next sees what came
 * before. A load alone would tell nobody, and could be done before what precedes it is visible. */
static inline void mpx_event_set(mpx_event_t *event)
{
    uint32_t seen = mpx_u32_load_relaxed(&event->word);
    uint32_t set;
    do {
        set = seen & MPX_EVENT_SET ? seen
                                   : ((seen & ~MPX_EVENT_WAITERS) | MPX_EVENT_SET) + MPX_EVENT_TURN;
    } while (!mpx_u32_cas_acq_rel(&event->word, &seen, set)); /* E0: with E1, E1: with E0 */
    MPX_STEP(event_set);
    if (MPX_UNLIKELY(seen & MPX_EVENT_WAITERS)) {
        mpx_event_wake(event);
    }
}

static inline void mpx_event_clear(mpx_event_t *event)
{
    (void)mpx_u32_fetch_and_acq_rel(&event->word, ~MPX_EVENT_SET); /* E0: with E1, E1: with E0 */
}

/* Begins a wait: what happens from now on ends it. */
mpx_event_wait_t mpx_event_begin(mpx_event_t *event);

/* Waits until the event is set:
 *   0           it is, or was at some time since the wait began
 *   -ETIMEDOUT  it was not by the deadline
 *   -EINTR      a signal handler ran; call again with the same `wait`, and nothing is missed */
MPX_NODISCARD int mpx_event_wait(mpx_event_t *event, mpx_event_wait_t wait, int64_t deadline);

#endif
