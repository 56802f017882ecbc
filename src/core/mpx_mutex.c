/* mpx_mutex.c - see mpx_mutex.h.
 *
 * Layer: L2
 *
 * The word. Its lower half is a futex in the kernel's robust layout: the owner's thread id,
 * WAITERS, OWNER_DIED. The upper half says when the owner started, and is written in the same step.
 * Free is zero; a lock whose owner died is free too, with OWNER_DIED in it.
 *
 * Death. Before a thread takes the lock, it announces the lock to the kernel as the one operation
 * that is pending; the announcement stands until the lock is released. A thread that dies meanwhile
 * has one of these behind it:
 *
 *   announced, the lock is another's or free   the kernel finds another owner in the word and
 * leaves it; where there is none, it wakes a waiter, who may be the one whose wake this thread took
 * with it taken                                      the kernel writes OWNER_DIED in the place of
 * the id and wakes a waiter released, nobody woken yet                 the kernel wakes one
 *
 * The announcement is taken back before the caller hears of a timeout or a signal.
 *
 * The second net, and the only one where the kernel has no robust list: who sleeps looks every
 * RECHECK whether the owner lives, by id and start. So whatever wake is lost with a dying process
 * costs that long, and nobody counts sleepers.
 *
 * Waiting. A few yields first: the sections are short, and a wake of another processor costs more
 * than all of them. WAITERS is set by who goes to sleep and cleared by the release; who was asleep
 * sets it again when it takes the lock, since others may sleep on. Who gives up after a sleep
 * passes on the wake that it may have taken.
 *
 * Order. M0 (release) makes what the owner has written visible to M1 (acquire), which takes the
 * lock next. Where the owner died there is no M0: the kernel's write comes after all of the dead
 * thread's, and reading it at M1 is reading after a system call of another processor.
 */
#include "mpx_mutex.h"

#include "mpx_fault.h"

#include <errno.h>
#include <sched.h>

#define YIELDS  40
#define RECHECK (50 * MPX_NANOS_PER_MILLI)

/* The half that the kernel knows. The core is for little-endian machines. */
static mpx_atomic_u32 *futex_of(mpx_mutex_t *mutex)
{
    return (mpx_atomic_u32 *)(void *)&mutex->word;
}

static uint64_t word_of(const mpx_thread_t *thread)
{
    return (uint64_t)thread->start << 32 | thread->id;
}

static bool is_free(uint64_t word)
{
    return (word & MPX_FUTEX_TID_MASK) == 0;
}

/* ---- The kernel's pending operation ---------------------------------------------------------- */

static bool is_announced(const mpx_thread_t *self)
{
    return self->robust != NULL && self->robust->pending != NULL;
}

static void announce(const mpx_thread_t *self, mpx_mutex_t *mutex)
{
    if (self->robust != NULL) {
        self->robust->pending = (char *)&mutex->word - self->robust->futex_offset;
    }
    mpx_compiler_barrier(); /* before the lock is taken */
}

static void withdraw(const mpx_thread_t *self)
{
    mpx_compiler_barrier(); /* after the lock is released */
    if (self->robust != NULL) {
        self->robust->pending = NULL;
    }
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Another thread sleeps, perhaps, and the wake that was meant for one of us came to this one. */
static void pass_on(mpx_mutex_t *mutex)
{
    uint64_t seen = mpx_u64_load_relaxed(&mutex->word);
    while (!is_free(seen)) {
        if (mpx_u64_cas_relaxed(&mutex->word, &seen, seen | MPX_FUTEX_WAITERS)) {
            return; /* the owner wakes one */
        }
    }
    (void)!mpx_os_futex_wake(futex_of(mutex), 1);
}

/* Sleeps while the word is `seen`, for RECHECK at most. 0: look again; 1: its owner is dead. */
static int sleep_on(mpx_mutex_t *mutex, uint64_t seen, int64_t deadline)
{
    int64_t now = mpx_os_now();
    if (now >= deadline) {
        return -ETIMEDOUT;
    }
    int64_t until = deadline - now > RECHECK ? now + RECHECK : deadline;
    int status = mpx_os_futex_wait(futex_of(mutex), (uint32_t)seen, until);
    if (status == -ETIMEDOUT) {
        uint32_t id = (uint32_t)seen & MPX_FUTEX_TID_MASK;
        return !mpx_os_thread_alive(id, (uint32_t)(seen >> 32));
    }
    return status == -EINTR ? -EINTR : 0;
}

/* Takes the lock with `own` for the new word if it still is `seen`. */
static int take(mpx_mutex_t *mutex, uint64_t seen, uint64_t own, bool owner_is_dead)
{
    if (!mpx_u64_cas_acquire(&mutex->word, &seen, own)) { /* M1: with M0 */
        return -EAGAIN;
    }
    MPX_STEP(mutex_taken);
    return owner_is_dead || (seen & MPX_FUTEX_OWNER_DIED) ? MPX_OWNER_DIED : 0;
}

static int lock_slowly(mpx_mutex_t *mutex, uint64_t own, int64_t deadline, bool *slept)
{
    for (unsigned tries = 0;; tries++) {
        uint64_t seen = mpx_u64_load_relaxed(&mutex->word);
        int status = -EAGAIN;
        if (is_free(seen)) {
            uint64_t waiters = *slept ? MPX_FUTEX_WAITERS : seen & MPX_FUTEX_WAITERS;
            status = take(mutex, seen, own | waiters, false);
        } else if (tries < YIELDS) {
            sched_yield();
        } else if (seen & MPX_FUTEX_WAITERS ||
                   mpx_u64_cas_relaxed(&mutex->word, &seen, seen | MPX_FUTEX_WAITERS)) {
            seen |= MPX_FUTEX_WAITERS;
            MPX_STEP(mutex_waiting);
            status = sleep_on(mutex, seen, deadline);
            *slept = true;
            MPX_STEP(mutex_awake);
            if (status == 1) {
                status = take(mutex, seen, own | MPX_FUTEX_WAITERS, true);
            } else if (status == 0) {
                status = -EAGAIN;
            }
        }
        if (status != -EAGAIN) {
            return status;
        }
    }
}

/* ---- Lock and unlock ------------------------------------------------------------------------- */

int mpx_mutex_lock(mpx_mutex_t *mutex, int64_t deadline)
{
    const mpx_thread_t *self = mpx_os_self();
    bool slept = false;
    if (MPX_UNLIKELY(is_announced(self))) {
        return -EDEADLK;
    }
    announce(self, mutex);
    MPX_STEP(mutex_announced);
    int status = take(mutex, 0, word_of(self), false);
    if (status == -EAGAIN) {
        status = lock_slowly(mutex, word_of(self), deadline, &slept);
    }
    if (status < 0) {
        if (slept) {
            pass_on(mutex);
        }
        withdraw(self);
    }
    return status;
}

void mpx_mutex_unlock(mpx_mutex_t *mutex)
{
    MPX_STEP(mutex_releasing);
    uint64_t before = mpx_u64_exchange_release(&mutex->word, 0); /* M0: with M1 */
    MPX_STEP(mutex_released);
    if (before & MPX_FUTEX_WAITERS) {
        (void)!mpx_os_futex_wake(futex_of(mutex), 1);
    }
    MPX_STEP(mutex_woken);
    withdraw(mpx_os_self());
}
