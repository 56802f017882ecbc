/* mpx_wait.c - see mpx_wait.h.
 *
 * Layer: L2
 */
#include "mpx_wait.h"

#include "mpx_fault.h"

#include <errno.h>

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
