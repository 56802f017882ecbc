/* test_event.c - the event: set, clear, waiting, and processes that are killed. */
#include "harness.h"

#include "mpx_event.h"
#include "mpx_wait.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 5000, KILLS = 200, ASLEEP = 2 };

struct shared {
    mpx_event_t event;
    mpx_event_t answer;
    mpx_atomic_u32 waiting;
    mpx_atomic_u32 through;
};

static int wait_once(mpx_event_t *event, int64_t deadline)
{
    return mpx_event_wait(event, mpx_event_begin(event), deadline);
}

static void wait_until(mpx_atomic_u32 *word, uint32_t value)
{
    while (mpx_u32_load_acquire(word) != value) {
        sched_yield();
    }
}

static void wait_for_sleeper(mpx_event_t *event)
{
    while (!(mpx_u32_load_relaxed(&event->word) & ASLEEP)) {
        sched_yield();
    }
}

/* ---- One thread ------------------------------------------------------------------------------ */

TEST(set_and_clear)
{
    mpx_event_t event = {{0}};
    for (int i = 0; i < 3; i++) {
        CHECK(!mpx_event_is_set(&event));
        mpx_event_clear(&event); /* it is */
        CHECK(!mpx_event_is_set(&event));
        mpx_event_set(&event);
        CHECK(mpx_event_is_set(&event));
        mpx_event_set(&event); /* it is */
        CHECK(mpx_event_is_set(&event));
        CHECK_EQ(wait_once(&event, MPX_NEVER), 0);
        CHECK_EQ(wait_once(&event, mpx_os_now()), 0);
        CHECK(mpx_event_is_set(&event));
        mpx_event_clear(&event);
    }
}

TEST(a_wait_is_over_if_it_was_set_meanwhile)
{
    mpx_event_t event = {{0}};
    mpx_event_wait_t before = mpx_event_begin(&event);
    CHECK_EQ(mpx_event_wait(&event, before, mpx_os_now()), -ETIMEDOUT);
    mpx_event_set(&event);
    mpx_event_wait_t during = mpx_event_begin(&event);
    mpx_event_clear(&event);
    CHECK_EQ(mpx_event_wait(&event, before, mpx_os_now()), 0);
    CHECK_EQ(mpx_event_wait(&event, during, mpx_os_now()), 0);
    CHECK_EQ(wait_once(&event, mpx_os_now()), -ETIMEDOUT);
}

TEST(the_count_wraps_around)
{
    mpx_event_t event = {{UINT32_MAX - 3}}; /* clear, after the last turn */
    mpx_event_wait_t wait = mpx_event_begin(&event);
    CHECK_EQ(mpx_event_wait(&event, wait, mpx_os_deadline(MPX_NANOS_PER_MILLI)), -ETIMEDOUT);
    mpx_event_set(&event);
    CHECK(mpx_event_is_set(&event));
    mpx_event_wait_t during = mpx_event_begin(&event);
    mpx_event_clear(&event);
    CHECK_EQ(mpx_u32_load_relaxed(&event.word), 0);
    CHECK_EQ(mpx_event_wait(&event, wait, mpx_os_now()), 0);
    CHECK_EQ(mpx_event_wait(&event, during, mpx_os_now()), 0);
}

TEST(a_deadline_ends_the_wait)
{
    mpx_event_t event = {{0}};
    int64_t deadline = mpx_os_deadline(3 * MPX_WAIT_RECHECK / 2);
    CHECK_EQ(wait_once(&event, deadline), -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
    CHECK(!mpx_event_is_set(&event));
}

TEST(a_signal_ends_the_wait)
{
    mpx_event_t event = {{0}};
    pid_t signaller = start_interrupting();
    CHECK_EQ(wait_once(&event, much_later()), -EINTR);
    kill(signaller, SIGKILL);
    wait_for(signaller);
}

/* Set and cleared while a handler ran: the wait that is taken up again is over. */
TEST(an_interrupted_wait_misses_nothing)
{
    mpx_event_t event = {{0}};
    mpx_event_wait_t wait = mpx_event_begin(&event);
    pid_t signaller = start_interrupting();
    CHECK_EQ(mpx_event_wait(&event, wait, much_later()), -EINTR);
    mpx_event_set(&event);
    mpx_event_clear(&event);
    CHECK_EQ(mpx_event_wait(&event, wait, much_later()), 0);
    kill(signaller, SIGKILL);
    wait_for(signaller);
}

/* ---- Several --------------------------------------------------------------------------------- */

static void wait_in_shared(void *argument)
{
    struct shared *shared = argument;
    mpx_event_wait_t wait = mpx_event_begin(&shared->event);
    mpx_u32_fetch_add_acq_rel(&shared->waiting, 1);
    CHECK_EQ(mpx_event_wait(&shared->event, wait, much_later()), 0);
    mpx_u32_fetch_add_acq_rel(&shared->through, 1);
}

TEST(set_and_clear_at_once_wake_all)
{
    pid_t pids[CONTENDERS];
    struct shared *shared = shared_memory(sizeof(*shared));
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = start_process(wait_in_shared, shared);
    }
    wait_until(&shared->waiting, CONTENDERS);
    wait_for_sleeper(&shared->event);
    mpx_event_set(&shared->event);
    mpx_event_clear(&shared->event);
    for (int i = 0; i < CONTENDERS; i++) {
        CHECK_EQ(wait_for(pids[i]), 0);
    }
    CHECK_EQ(mpx_u32_load_relaxed(&shared->through), CONTENDERS);
    free_shared_memory(shared, sizeof(*shared));
}

/* The last to arrive lets the others go on. In the next round they wait for the other event, which
 * nobody looks at before. */
struct rounds {
    mpx_event_t events[2];
    mpx_atomic_u32 arrived;
};

static void go_round(void *argument)
{
    struct rounds *rounds = argument;
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        mpx_event_t *event = &rounds->events[i % 2];
        if (mpx_u32_fetch_add_acq_rel(&rounds->arrived, 1) + 1 == i * CONTENDERS) {
            mpx_event_clear(&rounds->events[(i + 1) % 2]);
            mpx_event_set(event);
        }
        REQUIRE(wait_once(event, much_later()) == 0);
        REQUIRE(mpx_u32_load_relaxed(&rounds->arrived) >= i * CONTENDERS);
    }
}

TEST(threads_go_round)
{
    struct rounds rounds = {.arrived = {0}};
    run_in_threads(go_round, &rounds);
    CHECK_EQ(mpx_u32_load_relaxed(&rounds.arrived), ROUNDS * CONTENDERS);
}

TEST(processes_go_round)
{
    struct rounds *rounds = shared_memory(sizeof(*rounds));
    run_in_processes(go_round, rounds);
    CHECK_EQ(mpx_u32_load_relaxed(&rounds->arrived), ROUNDS * CONTENDERS);
    free_shared_memory(rounds, sizeof(*rounds));
}

/* ---- Order ----------------------------------------------------------------------------------- */

struct message {
    mpx_event_t event;
    uint32_t text; /* no atomic */
};

static void *receive(void *argument)
{
    struct message *message = argument;
    CHECK_EQ(wait_once(&message->event, MPX_NEVER), 0);
    CHECK_EQ(message->text, 42);
    return NULL;
}

TEST(set_carries_what_came_before_it)
{
    for (int i = 0; i < 200; i++) {
        struct message message = {.text = 0};
        pthread_t thread;
        REQUIRE(pthread_create(&thread, NULL, receive, &message) == 0);
        message.text = 42;
        mpx_event_set(&message.event);
        pthread_join(thread, NULL);
    }
}

/* Work is announced by an event that may be set already, and taken after it was cleared. The one
 * that clears it just before the announcement finds the work, or the event set again. */
struct work {
    mpx_event_t event;
    mpx_atomic_u32 made;
    mpx_atomic_u32 seen;
};

static void *make_work(void *argument)
{
    struct work *work = argument;
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        mpx_u32_store_relaxed(&work->made, i);
        mpx_event_set(&work->event);
        while (i % 4 == 0 && mpx_u32_load_relaxed(&work->seen) != i) {
            sched_yield();
        }
    }
    return NULL;
}

TEST(work_announced_by_an_event_that_is_set_is_found)
{
    struct work work = {.made = {0}};
    uint32_t seen = 0;
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, make_work, &work) == 0);
    while (seen != ROUNDS) {
        if (wait_once(&work.event, mpx_os_deadline(5 * MPX_NANOS_PER_SEC)) < 0) {
            CHECK(false); /* the last announcement was lost */
            mpx_u32_store_relaxed(&work.seen, mpx_u32_load_relaxed(&work.made));
            continue;
        }
        mpx_event_clear(&work.event);
        seen = mpx_u32_load_relaxed(&work.made);
        mpx_u32_store_relaxed(&work.seen, seen);
    }
    pthread_join(thread, NULL);
}

/* ---- Death ----------------------------------------------------------------------------------- */

static void set_shared(void *argument)
{
    struct shared *shared = argument;
    mpx_event_set(&shared->event);
}

TEST(killed_between_setting_and_waking)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t waiter = start_process(wait_in_shared, shared);
    wait_for_sleeper(&shared->event);
    signal_at_step("event_set", SIGKILL);
    CHECK(was_killed(wait_for(start_process(set_shared, shared))));
    signal_at_step(NULL, 0);
    mpx_event_clear(&shared->event); /* the sleeper looks for itself, and is late */
    CHECK_EQ(wait_for(waiter), 0);
    free_shared_memory(shared, sizeof(*shared));
}

static void check_waiter_killed_at(const char *step)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    signal_at_step(step, SIGKILL);
    pid_t victim = start_process(wait_in_shared, shared);
    signal_at_step(NULL, 0);
    wait_for_sleeper(&shared->event);
    pid_t other = start_process(wait_in_shared, shared);
    wait_until(&shared->waiting, 2);
    mpx_event_set(&shared->event);
    mpx_event_clear(&shared->event);
    CHECK(was_killed(wait_for(victim)));
    CHECK_EQ(wait_for(other), 0);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->through), 1);
    free_shared_memory(shared, sizeof(*shared));
}

TEST(a_waiter_killed_at_each_step_strands_nobody)
{
    check_waiter_killed_at("event_waiting");
    check_waiter_killed_at("event_awake");
}

static void set_clear_and_wait(void *argument)
{
    struct shared *shared = argument;
    for (;;) {
        mpx_event_wait_t wait = mpx_event_begin(&shared->event);
        mpx_u32_fetch_add_relaxed(&shared->waiting,
                                  mpx_event_wait(&shared->event, wait, much_later()) < 0);
        mpx_event_clear(&shared->event);
        mpx_event_set(&shared->event);
        mpx_u32_fetch_add_relaxed(&shared->through, 1);
        mpx_event_clear(&shared->event);
        mpx_event_set(&shared->answer);
    }
}

static void keep_setting(void *argument)
{
    struct shared *shared = argument;
    for (;;) {
        mpx_event_set(&shared->event);
        (void)!wait_once(&shared->answer, mpx_os_deadline(MPX_NANOS_PER_MILLI));
        mpx_event_clear(&shared->answer);
    }
}

TEST(killed_at_random_the_others_go_on)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    pid_t setter = start_process(keep_setting, shared);
    kill_at_random(set_clear_and_wait, shared, &shared->through, KILLS);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->waiting), 0);
    kill(setter, SIGKILL);
    wait_for(setter);
    free_shared_memory(shared, sizeof(*shared));
}
