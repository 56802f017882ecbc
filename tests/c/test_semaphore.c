/* test_semaphore.c - the counting semaphore: values, limits, waiting, and processes that are
 * killed. */
#include "harness.h"

#include "mpx_semaphore.h"
#include "mpx_wait.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 20000, PERMITS = 2 };

struct shared {
    mpx_semaphore_t semaphore;
    mpx_semaphore_t answers;
    mpx_atomic_u32 inside;
    mpx_atomic_u32 too_many;
};

/* ---- One thread ------------------------------------------------------------------------------ */

TEST(values_and_limits)
{
    mpx_semaphore_t semaphore;
    mpx_semaphore_init(&semaphore, 2);
    CHECK_EQ(mpx_semaphore_value(&semaphore), 2);
    CHECK_EQ(mpx_semaphore_try(&semaphore), 0);
    CHECK_EQ(mpx_semaphore_acquire(&semaphore, MPX_NEVER), 0);
    CHECK_EQ(mpx_semaphore_value(&semaphore), 0);
    CHECK_EQ(mpx_semaphore_try(&semaphore), -EAGAIN);
    CHECK_EQ(mpx_semaphore_acquire(&semaphore, mpx_os_now()), -ETIMEDOUT);
    CHECK_EQ(mpx_semaphore_value(&semaphore), 0);
    CHECK_EQ(mpx_semaphore_release(&semaphore, 1), 0);
    CHECK_EQ(mpx_semaphore_release(&semaphore, 1), -EOVERFLOW);
    CHECK_EQ(mpx_semaphore_release(&semaphore, MPX_SEMAPHORE_MAX), 0);
    CHECK_EQ(mpx_semaphore_value(&semaphore), 2);
    mpx_semaphore_init(&semaphore, MPX_SEMAPHORE_MAX);
    CHECK_EQ(mpx_semaphore_value(&semaphore), MPX_SEMAPHORE_MAX);
    CHECK_EQ(mpx_semaphore_release(&semaphore, MPX_SEMAPHORE_MAX), -EOVERFLOW);
    CHECK_EQ(mpx_semaphore_try(&semaphore), 0);
    CHECK_EQ(mpx_semaphore_value(&semaphore), MPX_SEMAPHORE_MAX - 1);
}

TEST(a_deadline_ends_the_wait)
{
    mpx_semaphore_t semaphore;
    mpx_semaphore_init(&semaphore, 0);
    int64_t deadline = mpx_os_deadline(3 * MPX_WAIT_RECHECK / 2);
    CHECK_EQ(mpx_semaphore_acquire(&semaphore, deadline), -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
    CHECK_EQ(mpx_semaphore_value(&semaphore), 0);
}

TEST(a_signal_ends_the_wait)
{
    mpx_semaphore_t semaphore;
    mpx_semaphore_init(&semaphore, 0);
    pid_t signaller = start_interrupting();
    CHECK_EQ(mpx_semaphore_acquire(&semaphore, much_later()), -EINTR);
    kill(signaller, SIGKILL);
    wait_for(signaller);
}

/* ---- Several --------------------------------------------------------------------------------- */

static void use_permits(void *argument)
{
    struct shared *shared = argument;
    for (int i = 0; i < ROUNDS; i++) {
        CHECK_EQ(mpx_semaphore_acquire(&shared->semaphore, MPX_NEVER), 0);
        if (mpx_u32_fetch_add_relaxed(&shared->inside, 1) >= PERMITS) {
            mpx_u32_fetch_add_relaxed(&shared->too_many, 1);
        }
        if (i % 64 == 0) {
            sched_yield();
        }
        mpx_u32_fetch_add_relaxed(&shared->inside, UINT32_MAX);
        CHECK_EQ(mpx_semaphore_release(&shared->semaphore, PERMITS), 0);
    }
}

static void check_after_use(struct shared *shared)
{
    CHECK_EQ(mpx_u32_load_relaxed(&shared->too_many), 0);
    CHECK_EQ(mpx_semaphore_value(&shared->semaphore), PERMITS);
}

TEST(no_more_threads_than_permits)
{
    struct shared shared;
    memset(&shared, 0, sizeof(shared));
    mpx_semaphore_init(&shared.semaphore, PERMITS);
    run_in_threads(use_permits, &shared);
    check_after_use(&shared);
}

TEST(no_more_processes_than_permits)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    mpx_semaphore_init(&shared->semaphore, PERMITS);
    run_in_processes(use_permits, shared);
    check_after_use(shared);
    free_shared_memory(shared, sizeof(*shared));
}

static void take_one(void *argument)
{
    struct shared *shared = argument;
    CHECK_EQ(mpx_semaphore_acquire(&shared->semaphore, MPX_NEVER), 0);
    CHECK_EQ(mpx_semaphore_release(&shared->answers, MPX_SEMAPHORE_MAX), 0);
}

/* As many releases as sleepers, one right after the other: the second meets no WAITERS. */
TEST(releases_in_a_row_wake_all)
{
    pid_t pids[CONTENDERS];
    struct shared *shared = shared_memory(sizeof(*shared));
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = start_process(take_one, shared);
    }
    while (mpx_u32_load_relaxed(&shared->semaphore.word) == 0) {
        sched_yield(); /* somebody is about to sleep */
    }
    for (int i = 0; i < CONTENDERS; i++) {
        CHECK_EQ(mpx_semaphore_release(&shared->semaphore, MPX_SEMAPHORE_MAX), 0);
    }
    for (int i = 0; i < CONTENDERS; i++) {
        CHECK_EQ(mpx_semaphore_acquire(&shared->answers, much_later()), 0);
        CHECK_EQ(wait_for(pids[i]), 0);
    }
    CHECK_EQ(mpx_semaphore_value(&shared->semaphore), 0);
    free_shared_memory(shared, sizeof(*shared));
}

/* What is written before a release is seen by who takes that permit, however many there were. */
struct message {
    mpx_semaphore_t filled;
    uint32_t text; /* no atomic */
};

static void *receive(void *argument)
{
    struct message *message = argument;
    CHECK_EQ(mpx_semaphore_acquire(&message->filled, MPX_NEVER), 0);
    CHECK_EQ(message->text, 42);
    return NULL;
}

TEST(a_permit_carries_what_came_before_it)
{
    for (int i = 0; i < 200; i++) {
        struct message message = {.text = 0};
        pthread_t thread;
        mpx_semaphore_init(&message.filled, 0);
        REQUIRE(pthread_create(&thread, NULL, receive, &message) == 0);
        message.text = 42;
        CHECK_EQ(mpx_semaphore_release(&message.filled, 1), 0);
        pthread_join(thread, NULL);
    }
}

/* ---- Death ----------------------------------------------------------------------------------- */

/* The permit that follows is had by the one who lives, whatever the victim did with its wake. */
static void check_waiter_killed_at(const char *step)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    signal_at_step(step, SIGKILL);
    pid_t victim = start_process(take_one, shared);
    signal_at_step(NULL, 0);
    while (mpx_u32_load_relaxed(&shared->semaphore.word) == 0) {
        sched_yield();
    }
    pid_t other = start_process(take_one, shared);
    CHECK_EQ(mpx_semaphore_release(&shared->semaphore, MPX_SEMAPHORE_MAX), 0);
    CHECK(was_killed(wait_for(victim)));
    CHECK_EQ(wait_for(other), 0);
    CHECK_EQ(mpx_semaphore_value(&shared->semaphore), 0);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(a_waiter_killed_at_each_step_strands_nobody)
{
    check_waiter_killed_at("semaphore_waiting");
    check_waiter_killed_at("semaphore_awake");
}

static void release_one(void *argument)
{
    struct shared *shared = argument;
    (void)!mpx_semaphore_release(&shared->semaphore, MPX_SEMAPHORE_MAX);
}

TEST(killed_between_a_release_and_its_wake)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t waiter = start_process(take_one, shared);
    while (mpx_u32_load_relaxed(&shared->semaphore.word) == 0) {
        sched_yield();
    }
    signal_at_step("semaphore_released", SIGKILL);
    CHECK(was_killed(wait_for(start_process(release_one, shared))));
    signal_at_step(NULL, 0);
    CHECK_EQ(wait_for(waiter), 0);
    free_shared_memory(shared, sizeof(*shared));
}

/* Its permit is lost, as with POSIX semaphores; the next one is not. */
TEST(killed_with_a_permit)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    mpx_semaphore_init(&shared->semaphore, 1);
    signal_at_step("semaphore_taken", SIGKILL);
    CHECK(was_killed(wait_for(start_process(take_one, shared))));
    signal_at_step(NULL, 0);
    CHECK_EQ(mpx_semaphore_value(&shared->semaphore), 0);
    CHECK_EQ(mpx_semaphore_release(&shared->semaphore, 1), 0);
    CHECK_EQ(mpx_semaphore_acquire(&shared->semaphore, much_later()), 0);
    free_shared_memory(shared, sizeof(*shared));
}
