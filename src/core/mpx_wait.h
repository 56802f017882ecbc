/* mpx_wait.h - how those wait whose waker may be killed: in pieces, with a look at each end.
 *
 * Layer: L2
 */
#ifndef MPX_WAIT_H
#define MPX_WAIT_H

#include "mpx_os.h"

/* How often to yield before going to sleep: a wake of another processor costs more than most
 * sections take. */
#define MPX_WAIT_YIELDS 40

/* A yield that takes so long has let others run: on a machine that is busy, to sleep is sooner
 * over, since who is woken is let in. So many of the next waits do without yields then. */
#define MPX_WAIT_BUSY (100 * INT64_C(1000))
#define MPX_WAIT_WARY 64

/* Where waits yield, of one process: all zero at first. */
typedef struct {
    mpx_atomic_u32 wary; /* waits to go without yields */
} mpx_wait_mood_t;

/* One turn of a wait that yields before it sleeps: true where it has yielded; false where it is
 * time to sleep, or the deadline has passed. `tries` counts the turns from 0 on. */
bool mpx_wait_yields(mpx_wait_mood_t *mood, unsigned tries, int64_t deadline);

/* The longest sleep, and so what a wake that was lost with a dying process costs. */
#define MPX_WAIT_RECHECK (50 * MPX_NANOS_PER_MILLI)

#define MPX_WAIT_LOOK 1

/* Sleeps while *word == expected, for MPX_WAIT_RECHECK at most.
 *   0              woken, or the word is another
 *   MPX_WAIT_LOOK  nobody woke this one: look whether there is somebody who would
 *   -ETIMEDOUT     the deadline had passed before
 *   -EINTR         a signal handler ran */
MPX_NODISCARD int mpx_wait_a_while(mpx_atomic_u32 *word, uint32_t expected, int64_t deadline);

#endif
