/* test_lock.c - the lock of users: owned by a process, released by anyone, recovered from the dead.
 */
#include "harness.h"

#include "mpx_lock.h"
#include "mpx_wait.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS = 20000, KILLS = 200 };

struct shared {
    mpx_lock_t lock;
    uint64_t count; /* no atomic: the lock has to do */
    mpx_atomic_u32 signals;
};

/* ---- One process ----------------------------------------------------------------------------- */

/* An emulator makes up the /proc of a process's own number, where a process that looks at its own
 * lock would find another one. */
static bool looks_at_itself(void)
{
    return !emulated();
}

TEST(try_acquire_release)
{
    mpx_lock_t lock = {{{0}}};
    mpx_atomic_u64 next_look = {looks_at_itself() ? 0 : MPX_NEVER};
    CHECK(!mpx_lock_is_held(&lock) && !mpx_lock_is_own(&lock));
    CHECK_EQ(mpx_lock_release(&lock), -EPERM);
    CHECK_EQ(mpx_lock_try(&lock, &next_look), 0);
    CHECK(mpx_lock_is_held(&lock) && mpx_lock_is_own(&lock));
    CHECK_EQ(mpx_lock_try(&lock, &next_look), -EAGAIN); /* looks at the owner */
    CHECK(mpx_u64_load_relaxed(&next_look) > 0);
    CHECK_EQ(mpx_lock_try(&lock, &next_look), -EAGAIN); /* does not */
    CHECK_EQ(mpx_lock_acquire(&lock, mpx_os_now()), -ETIMEDOUT);
    if (looks_at_itself()) {
        CHECK_EQ(mpx_lock_acquire(&lock, mpx_os_deadline(1000)), -ETIMEDOUT);
    }
    CHECK_EQ(mpx_lock_release(&lock), 0);
    CHECK_EQ(mpx_lock_acquire(&lock, MPX_NEVER), 0);
    CHECK_EQ(mpx_lock_release(&lock), 0);
    CHECK_EQ(mpx_lock_release(&lock), -EPERM);
    CHECK(!mpx_lock_is_held(&lock));
}

static void *take(void *lock)
{
    CHECK_EQ(mpx_lock_acquire(lock, MPX_NEVER), 0);
    return NULL;
}

TEST(a_thread_that_ends_keeps_it_held_and_another_releases_it)
{
    mpx_lock_t lock = {{{0}}};
    pthread_t thread;
    mpx_atomic_u64 next_look = {0};
    REQUIRE(pthread_create(&thread, NULL, take, &lock) == 0);
    pthread_join(thread, NULL);
    CHECK(mpx_lock_is_own(&lock));
    if (looks_at_itself()) {
        CHECK_EQ(mpx_lock_try(&lock, &next_look), -EAGAIN);
        CHECK_EQ(mpx_lock_acquire(&lock, mpx_os_deadline(3 * MPX_WAIT_RECHECK)), -ETIMEDOUT);
    }
    CHECK_EQ(mpx_lock_release(&lock), 0);
}

/* ---- Several processes ----------------------------------------------------------------------- */

static void release(void *lock)
{
    CHECK(mpx_lock_is_held(lock) && !mpx_lock_is_own(lock));
    CHECK_EQ(mpx_lock_release(lock), 0);
}

TEST(another_process_releases_it)
{
    mpx_lock_t *lock = shared_memory(sizeof(*lock));
    CHECK_EQ(mpx_lock_acquire(lock, MPX_NEVER), 0);
    CHECK_EQ(wait_for(start_process(release, lock)), 0);
    CHECK(!mpx_lock_is_held(lock));
    free_shared_memory(lock, sizeof(*lock));
}

static void count_up(void *argument)
{
    struct shared *shared = argument;
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(mpx_lock_acquire(&shared->lock, MPX_NEVER), 0);
        shared->count++;
        if (i % 64 == 0) {
            sched_yield(); /* so that others find it taken */
        }
        CHECK_EQ(mpx_lock_release(&shared->lock), 0);
    }
}

TEST(threads_exclude_each_other)
{
    struct shared shared = {.count = 0};
    run_in_threads(count_up, &shared);
    CHECK_EQ(shared.count, CONTENDERS * ROUNDS);
}

TEST(processes_exclude_each_other)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    run_in_processes(count_up, shared);
    CHECK_EQ(shared->count, CONTENDERS * ROUNDS);
    free_shared_memory(shared, sizeof(*shared));
}

/* ---- The end of the owner -------------------------------------------------------------------- */

static void take_and_stay(void *argument)
{
    struct shared *shared = argument;
    CHECK(mpx_lock_acquire(&shared->lock, MPX_NEVER) >= 0);
    mpx_u32_store_release(&shared->signals, 1);
    for (;;) {
        pause();
    }
}

static pid_t start_owner(struct shared *shared)
{
    mpx_u32_store_relaxed(&shared->signals, 0);
    pid_t pid = start_process(take_and_stay, shared);
    while (!mpx_u32_load_acquire(&shared->signals)) {
        sched_yield();
    }
    return pid;
}

/* Killed, and not even reaped by its parent: a zombie is dead. */
static pid_t kill_owner(struct shared *shared)
{
    siginfo_t info;
    pid_t pid = start_owner(shared);
    kill(pid, SIGKILL);
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    return pid;
}

TEST(who_waits_recovers_it)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t owner = kill_owner(shared);
    CHECK_EQ(mpx_lock_acquire(&shared->lock, much_later()), MPX_OWNER_DIED);
    CHECK(mpx_lock_is_own(&shared->lock));
    wait_for(owner);
    CHECK_EQ(mpx_lock_release(&shared->lock), 0);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(who_tries_often_recovers_it)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    mpx_atomic_u64 next_look = {0};
    pid_t owner = start_owner(shared);
    CHECK_EQ(mpx_lock_try(&shared->lock, &next_look), -EAGAIN);
    kill(owner, SIGKILL);
    wait_for(owner);
    int status;
    do {
        status = mpx_lock_try(&shared->lock, &next_look);
    } while (status == -EAGAIN);
    CHECK_EQ(status, MPX_OWNER_DIED);
    CHECK(mpx_lock_is_own(&shared->lock));
    free_shared_memory(shared, sizeof(*shared));
}

static void take_and_disown(void *lock)
{
    CHECK_EQ(mpx_lock_acquire(lock, MPX_NEVER), 0);
    mpx_lock_disown(lock);
    CHECK(mpx_lock_is_held(lock) && !mpx_lock_is_own(lock));
}

TEST(nobodys_lock_stays_locked_until_somebody_releases_it)
{
    mpx_lock_t *lock = shared_memory(sizeof(*lock));
    mpx_atomic_u64 next_look = {0};
    CHECK_EQ(wait_for(start_process(take_and_disown, lock)), 0);
    CHECK_EQ(mpx_lock_try(lock, &next_look), -EAGAIN);
    CHECK_EQ(mpx_lock_acquire(lock, mpx_os_deadline(3 * MPX_WAIT_RECHECK)), -ETIMEDOUT);
    CHECK_EQ(mpx_lock_release(lock), 0);
    CHECK_EQ(mpx_lock_acquire(lock, MPX_NEVER), 0);
    mpx_lock_t other = {{{0}}};
    mpx_lock_disown(&other); /* of another's, or a free one: nothing */
    CHECK(!mpx_lock_is_held(&other));
    free_shared_memory(lock, sizeof(*lock));
}

TEST(an_owner_whose_number_was_given_again)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    mpx_process_id_t own = mpx_os_own_process();
    if (own.start != 0 && looks_at_itself()) {
        mpx_u64_store_relaxed(&shared->lock.owned.word,
                              mpx_owned_by((uint32_t)own.pid, own.start + 1));
        CHECK_EQ(mpx_lock_acquire(&shared->lock, much_later()), MPX_OWNER_DIED);
    }
    free_shared_memory(shared, sizeof(*shared));
}

static void take_and_release(void *argument)
{
    struct shared *shared = argument;
    CHECK(mpx_lock_acquire(&shared->lock, MPX_NEVER) >= 0);
    CHECK_EQ(mpx_lock_release(&shared->lock), 0);
}

TEST(killed_at_each_step)
{
    static const struct {
        const char *step;
        int expected;
    } cases[] = {{"owned_taken", MPX_OWNER_DIED}, {"lock_released", 0}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(cases); i++) {
        struct shared *shared = shared_memory(sizeof(*shared));
        signal_at_step(cases[i].step, SIGKILL);
        CHECK(was_killed(wait_for(start_process(take_and_release, shared))));
        signal_at_step(NULL, 0);
        CHECK_EQ(mpx_lock_acquire(&shared->lock, much_later()), cases[i].expected);
        free_shared_memory(shared, sizeof(*shared));
    }
}

/* ---- A storm --------------------------------------------------------------------------------- */

struct storm {
    mpx_lock_t lock;
    uint32_t inside; /* who is in the section; left behind by who dies there */
    mpx_atomic_u32 broken;
    mpx_atomic_u32 recovered;
    mpx_atomic_u32 turns;
};

static void take_turns(void *argument)
{
    struct storm *storm = argument;
    uint32_t me = (uint32_t)getpid();
    for (;;) {
        int status = mpx_lock_acquire(&storm->lock, much_later());
        if (status < 0 || (status == 0 && storm->inside != 0)) {
            mpx_u32_fetch_add_relaxed(&storm->broken, 1);
        }
        mpx_u32_fetch_add_relaxed(&storm->recovered, status == MPX_OWNER_DIED);
        storm->inside = me;
        mpx_cpu_relax();
        if (storm->inside != me) {
            mpx_u32_fetch_add_relaxed(&storm->broken, 1);
        }
        storm->inside = 0;
        (void)!mpx_lock_release(&storm->lock);
        mpx_u32_fetch_add_relaxed(&storm->turns, 1);
    }
}

TEST(killed_at_random_the_others_go_on)
{
    struct storm *storm = shared_memory(sizeof(*storm));
    kill_at_random(take_turns, storm, &storm->turns, KILLS);
    CHECK_EQ(mpx_u32_load_relaxed(&storm->broken), 0);
    CHECK(mpx_u32_load_relaxed(&storm->recovered) > 0);
    free_shared_memory(storm, sizeof(*storm));
}
