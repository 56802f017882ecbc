/* wait.c - how Python code waits in the core: in pieces, between which signal handlers run. */
#include "module.h"

#include <errno.h>

#include "mpx_fault.h"
#include "mpx_os.h"

/* How late a signal handler may run that comes in the instant between two system calls. */
#define PIECE (100 * MPX_NANOS_PER_MILLI)

int64_t mpx_piece_of(int64_t deadline)
{
    int64_t end = mpx_os_now() + PIECE;
    return end < deadline && !MPX_FAULT(recovery) ? end : deadline;
}

bool mpx_may_wait(int64_t deadline)
{
    if (deadline != MPX_NO_DEADLINE)
        return true;
    mpx_raise(-EINVAL);
    return false;
}

bool mpx_wait_on(int *status, int64_t deadline)
{
    if (*status != -EINTR && *status != -ETIMEDOUT)
        return false;
    if (PyErr_CheckSignals() < 0) {
        *status = -EINTR;
        return false;
    }
    return *status == -EINTR || mpx_os_now() < deadline;
}
