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
