/* mpx_lock.c - see mpx_lock.h.
 *
 * Layer: L2
 */
#include "mpx_lock.h"

#include "mpx_fault.h"

#include <errno.h>

/* No process has this number: the kernel's largest is 2^22. */
#define NOBODY MPX_FUTEX_TID_MASK

#define LOOK_INTERVAL (20 * MPX_NANOS_PER_MILLI)

static int owner_alive(uint32_t number, uint32_t start)
{
    return number == NOBODY ||
           mpx_os_process_alive((mpx_process_id_t){.pid = (pid_t)number, .start = start});
}

/* The time of the last tick of the clock, which is some milliseconds ago, is had for a third of the
 * price. */
int mpx_lock_try_held(mpx_lock_t *lock, mpx_atomic_u64 *next_look)
{
    int64_t now = mpx_os_tick();
    if (MPX_LIKELY(now < (int64_t)mpx_u64_load_relaxed(next_look))) {
        return -EAGAIN;
    }
    mpx_u64_store_relaxed(next_look, (uint64_t)(now + LOOK_INTERVAL));
    uint64_t own = mpx_os_own_word();
    uint64_t seen = mpx_u64_load_relaxed(&lock->owned.word);
    uint32_t number = (uint32_t)seen & MPX_FUTEX_TID_MASK;
    if (number != 0 && owner_alive(number, (uint32_t)(seen >> 32))) {
        return -EAGAIN;
    }
    return mpx_owned_take(&lock->owned, seen, own | (seen & MPX_FUTEX_WAITERS));
}

int mpx_lock_acquire(mpx_lock_t *lock, int64_t deadline)
{
    uint64_t own = mpx_os_own_word();
    int status = mpx_owned_take(&lock->owned, 0, own);
    return status != -EAGAIN ? status : mpx_owned_wait(&lock->owned, own, deadline, owner_alive);
}

bool mpx_lock_is_held(mpx_lock_t *lock)
{
    return !mpx_owned_is_free(mpx_u64_load_relaxed(&lock->owned.word));
}

static bool is_own(uint64_t word)
{
    return (word & ~(uint64_t)MPX_FUTEX_WAITERS) == mpx_os_own_word();
}

bool mpx_lock_is_own(mpx_lock_t *lock)
{
    return is_own(mpx_u64_load_relaxed(&lock->owned.word));
}

void mpx_lock_disown(mpx_lock_t *lock)
{
    uint64_t seen = mpx_u64_load_relaxed(&lock->owned.word);
    while (is_own(seen)) {
        uint64_t nobodys = mpx_owned_by(NOBODY, 0) | (seen & MPX_FUTEX_WAITERS);
        if (mpx_u64_cas_release(&lock->owned.word, &seen, nobodys)) { /* O0: who releases is O1 */
            return;
        }
    }
}
