/* test_mutex.c - the internal lock: exclusion, death of owners and waiters, deadlines, signals. */
#include "harness.h"

#include "mpx_mutex.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int64_t soon(void)
{
    return mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
}

static bool is_withdrawn(void)
{
    const mpx_thread_t *self = mpx_os_self();
    return self->robust == NULL || self->robust->pending == NULL;
}

/* ---- The calling thread ---------------------------------------------------------------------- */

static void check_self(void *parent)
{
    const mpx_thread_t *self = mpx_os_self();
    CHECK_EQ(self->id, mpx_os_thread_id());
    CHECK(parent == NULL || self->id != *(uint32_t *)parent);
    CHECK_EQ(self->robust != NULL, mpx_os_has(MPX_HAS_ROBUST_LIST));
    CHECK_EQ(mpx_os_thread_alive(self->id, 0), 1);
    if (self->start != 0 && !emulated()) { /* an emulator makes up the /proc of its own number */
        CHECK_EQ(mpx_os_thread_alive(self->id, self->start), 1);
        CHECK_EQ(mpx_os_thread_alive(self->id, self->start + 1), 0);
    }
}

static void *check_self_in_thread(void *parent)
{
    check_self(parent);
    return NULL;
}

TEST(a_thread_knows_itself_after_fork_too)
{
    pthread_t thread;
    uint32_t parent = mpx_os_self()->id;
    check_self(NULL);
    CHECK_EQ(wait_for(start_process(check_self, &parent)), 0);
    REQUIRE(pthread_create(&thread, NULL, check_self_in_thread, &parent) == 0);
    pthread_join(thread, NULL);
    CHECK_EQ(mpx_os_self()->id, parent);
}

TEST(a_thread_knows_itself_where_no_handler_can_be_registered)
{
    inject("pthread_atfork", ENOMEM, 0, ALWAYS);
    uint32_t parent = mpx_os_self()->id;
    CHECK_EQ(wait_for(start_process(check_self, &parent)), 0);
}

static void do_nothing(void *unused)
{
    (void)unused;
}

TEST(a_zombie_is_a_dead_thread)
{
    siginfo_t info;
    pid_t pid = start_process(do_nothing, NULL);
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    if (!emulated()) {
        CHECK_EQ(mpx_os_thread_alive((uint32_t)pid, 0), 0);
    }
    wait_for(pid);
    CHECK_EQ(mpx_os_thread_alive((uint32_t)pid, 0), 0);
}

TEST(without_proc_only_a_free_number_is_a_dead_thread)
{
    inject("open_proc", ENOENT, 0, ALWAYS);
    CHECK_EQ(mpx_os_self()->start, 0);
    CHECK_EQ(mpx_os_thread_alive((uint32_t)getpid(), 12345), 1);
    pid_t pid = start_process(do_nothing, NULL);
    wait_for(pid);
    CHECK_EQ(mpx_os_thread_alive((uint32_t)pid, 0), 0);
}

/* ---- One thread ------------------------------------------------------------------------------ */

TEST(lock_and_unlock)
{
    mpx_mutex_t mutex = {{{0}}};
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(mpx_mutex_lock(&mutex, MPX_NEVER), 0);
        CHECK_EQ((uint32_t)mpx_u64_load_relaxed(&mutex.owned.word), mpx_os_thread_id());
        mpx_mutex_unlock(&mutex);
        CHECK_EQ(mpx_u64_load_relaxed(&mutex.owned.word), 0);
        CHECK(is_withdrawn());
    }
}

TEST(a_second_lock_at_once_is_refused)
{
    mpx_mutex_t first = {{{0}}}, second = {{{0}}};
    if (!mpx_os_has(MPX_HAS_ROBUST_LIST)) {
        return; /* nobody notices then */
    }
    REQUIRE(mpx_mutex_lock(&first, MPX_NEVER) == 0);
    CHECK_EQ(mpx_mutex_lock(&second, MPX_NEVER), -EDEADLK);
    CHECK_EQ(mpx_u64_load_relaxed(&second.owned.word), 0);
    mpx_mutex_unlock(&first);
    CHECK_EQ(mpx_mutex_lock(&second, MPX_NEVER), 0);
    mpx_mutex_unlock(&second);
}

/* ---- Several --------------------------------------------------------------------------------- */

enum { ROUNDS = 20000 };

struct shared {
    mpx_mutex_t mutex;
    uint64_t count; /* no atomic: the lock has to do */
    mpx_atomic_u32 signals;
};

static void count_up(void *argument)
{
    struct shared *shared = argument;
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(mpx_mutex_lock(&shared->mutex, MPX_NEVER), 0);
        shared->count++;
        if (i % 64 == 0) {
            sched_yield(); /* so that others find it taken */
        }
        mpx_mutex_unlock(&shared->mutex);
    }
}

TEST(threads_exclude_each_other)
{
    struct shared shared;
    memset(&shared, 0, sizeof(shared));
    run_in_threads(count_up, &shared);
    CHECK_EQ(shared.count, CONTENDERS * ROUNDS);
    CHECK_EQ(mpx_u64_load_relaxed(&shared.mutex.owned.word) & MPX_FUTEX_TID_MASK, 0);
}

TEST(processes_exclude_each_other)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    run_in_processes(count_up, shared);
    CHECK_EQ(shared->count, CONTENDERS * ROUNDS);
    free_shared_memory(shared, sizeof(*shared));
}

/* ---- Deadlines and signals ------------------------------------------------------------------- */

static void hold(void *argument)
{
    struct shared *shared = argument;
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, MPX_NEVER), 0);
    mpx_u32_store_release(&shared->signals, 1);
    for (;;) {
        pause();
    }
}

/* A process that has the lock, and keeps it. */
static pid_t start_holder(struct shared *shared)
{
    mpx_u32_store_relaxed(&shared->signals, 0);
    pid_t pid = start_process(hold, shared);
    while (!mpx_u32_load_acquire(&shared->signals)) {
        sched_yield();
    }
    return pid;
}

TEST(a_deadline_ends_the_wait)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t holder = start_holder(shared);
    int64_t deadline = soon();
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, deadline), -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
    CHECK(is_withdrawn());
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, mpx_os_now()), -ETIMEDOUT);
    kill(holder, SIGKILL);
    wait_for(holder);
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()), MPX_OWNER_DIED);
    mpx_mutex_unlock(&shared->mutex);
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()), 0);
    mpx_mutex_unlock(&shared->mutex);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(a_signal_ends_the_wait)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t holder = start_holder(shared);
    pid_t signaller = start_interrupting();
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()), -EINTR);
    CHECK(is_withdrawn());
    kill(signaller, SIGKILL);
    wait_for(signaller);
    kill(holder, SIGKILL);
    wait_for(holder);
    free_shared_memory(shared, sizeof(*shared));
}

/* ---- Death ----------------------------------------------------------------------------------- */

static void take_and_release(void *argument)
{
    struct shared *shared = argument;
    int status = mpx_mutex_lock(&shared->mutex, MPX_NEVER);
    CHECK(status >= 0);
    mpx_mutex_unlock(&shared->mutex);
}

/* The lock can be had, at once or as soon as the death is noticed; with what result. */
static void check_killed_at(const char *step, int expected)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    signal_at_step(step, SIGKILL);
    CHECK(was_killed(wait_for(start_process(take_and_release, shared))));
    signal_at_step(NULL, 0);
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()), expected);
    mpx_mutex_unlock(&shared->mutex);
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()), 0);
    mpx_mutex_unlock(&shared->mutex);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(killed_at_each_step)
{
    check_killed_at("mutex_announced", 0);
    check_killed_at("owned_taken", MPX_OWNER_DIED);
    check_killed_at("mutex_releasing", MPX_OWNER_DIED);
    check_killed_at("mutex_released", 0);
    check_killed_at("mutex_woken", 0);
}

static bool has_waiters(struct shared *shared)
{
    return (mpx_u64_load_relaxed(&shared->mutex.owned.word) & MPX_FUTEX_WAITERS) != 0;
}

/* The lock is held here, a victim waits for it and dies, and another one waits: it gets it. */
static void check_waiter_killed_at(const char *step)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    REQUIRE(mpx_mutex_lock(&shared->mutex, MPX_NEVER) == 0);
    signal_at_step(step, SIGKILL);
    pid_t victim = start_process(take_and_release, shared);
    signal_at_step(NULL, 0);
    while (!has_waiters(shared)) {
        sched_yield();
    }
    pid_t other = start_process(take_and_release, shared);
    mpx_mutex_unlock(&shared->mutex);
    CHECK(was_killed(wait_for(victim)));
    CHECK_EQ(wait_for(other), 0);
    CHECK_EQ(mpx_mutex_lock(&shared->mutex, much_later()) >= 0, 1);
    mpx_mutex_unlock(&shared->mutex);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(a_waiter_killed_at_each_step_strands_nobody)
{
    check_waiter_killed_at("owned_waiting");
    check_waiter_killed_at("owned_awake");
}

/* A word as it was left by a thread whose number is ours now: the second net has to find it. */
TEST(an_owner_whose_number_was_given_again)
{
    mpx_mutex_t mutex;
    const mpx_thread_t *self = mpx_os_self();
    if (self->start == 0) {
        return;
    }
    mpx_u64_store_relaxed(&mutex.owned.word, (uint64_t)(self->start + 1) << 32 | self->id);
    CHECK_EQ(mpx_mutex_lock(&mutex, much_later()), MPX_OWNER_DIED);
    mpx_mutex_unlock(&mutex);
}

/* ---- A storm --------------------------------------------------------------------------------- */

enum { KILLS = 300 };

struct storm {
    mpx_mutex_t mutex;
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
        int status = mpx_mutex_lock(&storm->mutex, much_later());
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
        mpx_mutex_unlock(&storm->mutex);
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
