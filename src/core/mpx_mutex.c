/* mpx_mutex.c - see mpx_mutex.h.
 *
 * Layer: L2
 *
 * Before a thread takes the lock, it announces the word to the kernel as the one operation that is
 * pending on its robust list; the announcement stands until the lock is released. A thread that
 * dies meanwhile has one of these behind it:
 *
 *   announced, the lock is another's or free   the kernel finds another owner in the word and
 * leaves it; where there is none, it wakes a waiter, who may be the one whose wake this thread took
 * with it taken                                      the kernel writes OWNER_DIED in the place of
 * the id and wakes a waiter released, nobody woken yet                 the kernel wakes one
 *
 * The announcement is taken back before the caller hears of a timeout or a signal.
 *
 * The second net, and the only one where the kernel has no robust list, is the waiters' look at the
 * owner.
 */
#include "mpx_mutex.h"

#include "mpx_fault.h"

#include <errno.h>

int mpx_mutex_lock(mpx_mutex_t *mutex, int64_t deadline)
{
    const mpx_thread_t *self = mpx_os_self();
    uint64_t own = mpx_owned_by(self->number, self->start);
    int status = mpx_mutex_try_first(self, own, mutex);
    if (status == -EDEADLK) {
        return status;
    }
    if (status == -EAGAIN) {
        status = mpx_owned_wait(&mutex->owned, own, deadline, mpx_os_thread_alive);
    }
    if (status < 0) {
        mpx_mutex_withdraw(self);
    }
    return status;
}

/* A free word may have OWNER_DIED or WAITERS in it. */
int mpx_mutex_try_again(const mpx_thread_t *self, uint64_t own, mpx_mutex_t *mutex)
{
    int status = -EAGAIN;
    uint64_t seen = mpx_u64_load_relaxed(&mutex->owned.word);
    if (mpx_owned_is_free(seen)) {
        status = mpx_owned_take(&mutex->owned, seen, own | (seen & MPX_FUTEX_WAITERS));
    }
    if (status == -EAGAIN) {
        mpx_mutex_withdraw(self);
    }
    return status;
}

int mpx_mutex_try_lock(mpx_mutex_t *mutex)
{
    return mpx_mutex_try_lock_as(mpx_os_self(), mutex);
}

void mpx_mutex_unlock(mpx_mutex_t *mutex)
{
    mpx_mutex_unlock_as(mpx_os_self(), mutex);
}
