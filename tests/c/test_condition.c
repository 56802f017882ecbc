/* test_condition.c - the condition variable: who is notified, in what order, and what the dead
 * leave.
 */
#include "harness.h"

#include "mpx_condition.h"
#include "mpx_lock.h"
#include "mpx_wait.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { TURNS = 500, KILLS = 200, CROWD = 40, ROUNDS = 300 };

/* In memory that is shared, or in a slot's place where threads do. */
struct shared {
    mpx_slot_t condition;
    mpx_lock_t lock;
    mpx_atomic_u32 entered;
    mpx_atomic_u32 left;
    mpx_atomic_u32 next; /* whose turn it is */
    mpx_atomic_u32 places;
    mpx_atomic_u32 wrong;
};

static mpx_arena_t *arena;

static mpx_slot_t make(void)
{
    mpx_slot_t slot = 0;
    CHECK_EQ(mpx_slot_new(arena, &slot), 0);
    return slot;
}

static void open_arena(void)
{
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    mpx_arena_set_undertaker(mpx_condition_undertake);
}

static struct shared *open_shared(void)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    open_arena();
    shared->condition = make();
    return shared;
}

static mpx_slot_t enter(mpx_slot_t condition)
{
    mpx_slot_t node = 0;
    CHECK_EQ(mpx_condition_enter(arena, condition, &node), 0);
    return node;
}

static void check_counts(mpx_slot_t condition, uint32_t waiting, uint32_t granted)
{
    mpx_condition_counts_t counts = {99, 99};
    CHECK_EQ(mpx_condition_count(arena, condition, &counts), 0);
    CHECK_EQ(counts.waiting, waiting);
    CHECK_EQ(counts.granted, granted);
}

static bool is_granted_now(mpx_slot_t condition, mpx_slot_t node)
{
    int status = mpx_condition_sleep(arena, condition, node, mpx_os_now());
    CHECK(status == 0 || status == -ETIMEDOUT);
    return status == 0;
}

static void wait_until(mpx_atomic_u32 *word, uint32_t value)
{
    while (mpx_u32_load_acquire(word) != value) {
        sched_yield();
    }
}

/* ---- One thread ------------------------------------------------------------------------------ */

TEST(nobody_waits)
{
    open_arena();
    mpx_slot_t condition = make(), node;
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), 0);
    CHECK_EQ(mpx_condition_notify(arena, condition, SIZE_MAX), 0);
    check_counts(condition, 0, 0);
    CHECK_EQ(mpx_condition_enter(arena, UINT32_MAX, &node), -EFAULT);
    CHECK_EQ(mpx_condition_notify(arena, 0, 1), -EFAULT);
    CHECK_EQ(mpx_condition_sleep(arena, condition, UINT32_MAX, MPX_NEVER), -EFAULT);
    CHECK_EQ(mpx_condition_leave(arena, condition, UINT32_MAX), -EFAULT);
}

TEST(the_oldest_are_granted_and_as_many_as_it_says)
{
    mpx_slot_t nodes[5];
    open_arena();
    mpx_slot_t condition = make();
    for (int i = 0; i < 5; i++) {
        nodes[i] = enter(condition);
    }
    check_counts(condition, 5, 0);
    CHECK_EQ(mpx_condition_notify(arena, condition, 0), 0);
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), 1);
    CHECK_EQ(mpx_condition_notify(arena, condition, 2), 2);
    for (int i = 0; i < 5; i++) {
        CHECK_EQ(is_granted_now(condition, nodes[i]), i < 3);
    }
    check_counts(condition, 2, 3);
    CHECK_EQ(mpx_condition_leave(arena, condition, nodes[1]), 1);
    CHECK_EQ(mpx_condition_leave(arena, condition, nodes[3]), 0);
    check_counts(condition, 1, 2);
    CHECK_EQ(mpx_condition_notify(arena, condition, 7), 1);
    CHECK_EQ(mpx_condition_notify(arena, condition, 7), 0);
    CHECK_EQ(mpx_condition_leave(arena, condition, nodes[4]), 1);
    CHECK_EQ(mpx_condition_leave(arena, condition, nodes[0]), 1);
    CHECK_EQ(mpx_condition_leave(arena, condition, nodes[2]), 1);
    check_counts(condition, 0, 0);
}

TEST(a_grant_and_a_timeout_at_once)
{
    open_arena();
    mpx_slot_t condition = make();
    mpx_slot_t node = enter(condition);
    CHECK(!is_granted_now(condition, node));
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), 1);
    CHECK_EQ(mpx_condition_leave(arena, condition, node), 1);
}

TEST(who_comes_later_is_not_notified)
{
    open_arena();
    mpx_slot_t condition = make();
    mpx_slot_t early = enter(condition);
    CHECK_EQ(mpx_condition_notify(arena, condition, SIZE_MAX), 1);
    mpx_slot_t late = enter(condition);
    CHECK(!is_granted_now(condition, late));
    CHECK_EQ(mpx_condition_leave(arena, condition, late), 0);
    CHECK_EQ(mpx_condition_leave(arena, condition, early), 1);
}

TEST(a_deadline_ends_the_wait)
{
    open_arena();
    mpx_slot_t condition = make();
    mpx_slot_t node = enter(condition);
    int64_t deadline = mpx_os_deadline(5 * MPX_WAIT_RECHECK / 2);
    CHECK_EQ(mpx_condition_sleep(arena, condition, node, deadline), -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
    CHECK_EQ(mpx_condition_leave(arena, condition, node), 0);
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), 0);
    CHECK_EQ(enter(condition), node); /* the slot came back */
}

TEST(a_signal_ends_the_wait_and_it_goes_on)
{
    open_arena();
    mpx_slot_t condition = make();
    mpx_slot_t node = enter(condition);
    pid_t signaller = start_interrupting();
    CHECK_EQ(mpx_condition_sleep(arena, condition, node, much_later()), -EINTR);
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), 1);
    CHECK_EQ(mpx_condition_sleep(arena, condition, node, much_later()), 0);
    CHECK_EQ(mpx_condition_leave(arena, condition, node), 1);
    kill(signaller, SIGKILL);
    wait_for(signaller);
}

/* A handler may fork in the middle of a wait; the child must leave its parent's node alone. */
static void leave_as_a_copy(void *nodes)
{
    mpx_slot_t *condition_and_node = nodes;
    CHECK_EQ(mpx_condition_sleep(arena, condition_and_node[0], condition_and_node[1], MPX_NEVER),
             -ESTALE);
    CHECK_EQ(mpx_condition_leave(arena, condition_and_node[0], condition_and_node[1]), 0);
    check_counts(condition_and_node[0], 1, 0);
}

TEST(the_copy_of_a_waiter_is_none)
{
    open_arena();
    mpx_slot_t slots[2] = {make()};
    slots[1] = enter(slots[0]);
    CHECK_EQ(wait_for(start_process(leave_as_a_copy, slots)), 0);
    CHECK_EQ(mpx_condition_notify(arena, slots[0], 1), 1);
    CHECK_EQ(mpx_condition_leave(arena, slots[0], slots[1]), 1);
}

TEST(no_slot_for_a_node)
{
    open_arena();
    mpx_slot_t condition = make(), node;
    int status = 0;
    close(mpx_arena_fd(arena));
    keeps_descriptors(0);
    for (int i = 0; i < 100000 && status == 0; i++) {
        status = mpx_condition_enter(arena, condition, &node);
    }
    CHECK_EQ(status, -EBADF);
    CHECK(mpx_condition_notify(arena, condition, SIZE_MAX) > 0);
}

/* ---- Damage ---------------------------------------------------------------------------------- */

/* Where a link was overwritten, with `wrong`. Nothing hangs or crashes, and nobody is granted. */
static void check_damaged(bool in_node, uint32_t wrong_or_0)
{
    mpx_slot_t nodes[3], condition = make();
    for (int i = 0; i < 3; i++) {
        nodes[i] = enter(condition);
    }
    uint32_t wrong = wrong_or_0 != 0 ? wrong_or_0 : nodes[2]; /* a circle */
    mpx_condition_t *head = mpx_slot_at(arena, condition);
    uint32_t *links = mpx_slot_at(arena, nodes[1]);
    if (in_node) {
        links[2] = wrong; /* older */
    } else {
        mpx_u32_store_relaxed(&head->newest, wrong);
    }
    mpx_condition_counts_t counts;
    CHECK_EQ(mpx_condition_count(arena, condition, &counts), -EPROTO);
    CHECK_EQ(mpx_condition_count_living(arena, condition, &counts), -EPROTO);
    CHECK_EQ(mpx_condition_notify(arena, condition, 1), -EPROTO);
    for (int i = 2; i >= 0; i--) {
        CHECK_EQ(mpx_condition_leave(arena, condition, nodes[i]), 0);
    }
}

TEST(a_damaged_list_is_refused)
{
    open_arena();
    mpx_slot_t other = make();
    check_damaged(true, UINT32_MAX);
    check_damaged(true, other);
    check_damaged(true, 0);
    check_damaged(false, UINT32_MAX);
    check_damaged(false, other);
}

/* ---- Several --------------------------------------------------------------------------------- */

/* A wait as users know it. */
static int wait_under(struct shared *shared, int64_t deadline)
{
    mpx_slot_t node = enter(shared->condition);
    CHECK_EQ(mpx_lock_release(&shared->lock), 0);
    (void)!mpx_condition_sleep(arena, shared->condition, node, deadline);
    int granted = mpx_condition_leave(arena, shared->condition, node);
    CHECK(mpx_lock_acquire(&shared->lock, MPX_NEVER) >= 0);
    return granted;
}

static void take_turns(void *argument)
{
    struct shared *shared = argument;
    uint32_t place = mpx_u32_fetch_add_relaxed(&shared->places, 1);
    CHECK(mpx_lock_acquire(&shared->lock, MPX_NEVER) >= 0);
    for (uint32_t turn = 0; turn < TURNS; turn++) {
        while (mpx_u32_load_relaxed(&shared->next) != turn * CONTENDERS + place) {
            REQUIRE(wait_under(shared, much_later()) == 1);
        }
        mpx_u32_fetch_add_relaxed(&shared->next, 1);
        CHECK(mpx_condition_notify(arena, shared->condition, SIZE_MAX) >= 0);
    }
    CHECK_EQ(mpx_lock_release(&shared->lock), 0);
}

TEST(threads_take_turns)
{
    struct shared *shared = open_shared();
    run_in_threads(take_turns, shared);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->next), TURNS * CONTENDERS);
    check_counts(shared->condition, 0, 0);
}

TEST(processes_take_turns)
{
    struct shared *shared = open_shared();
    run_in_processes(take_turns, shared);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->next), TURNS * CONTENDERS);
    check_counts(shared->condition, 0, 0);
}

static void wait_once(void *argument)
{
    struct shared *shared = argument;
    mpx_slot_t node = enter(shared->condition);
    mpx_u32_fetch_add_acq_rel(&shared->entered, 1);
    CHECK_EQ(mpx_condition_sleep(arena, shared->condition, node, much_later()), 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, node), 1);
    mpx_u32_fetch_add_acq_rel(&shared->left, 1);
}

static pid_t start_waiter(struct shared *shared)
{
    uint32_t entered = mpx_u32_load_acquire(&shared->entered);
    pid_t pid = start_process(wait_once, shared);
    wait_until(&shared->entered, entered + 1);
    return pid;
}

TEST(processes_are_notified_in_the_order_in_which_they_came)
{
    pid_t pids[CONTENDERS];
    struct shared *shared = open_shared();
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = start_waiter(shared);
    }
    for (uint32_t i = 0; i < CONTENDERS; i++) {
        CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1);
        CHECK_EQ(wait_for(pids[i]), 0);
        CHECK_EQ(mpx_u32_load_relaxed(&shared->left), i + 1);
        check_counts(shared->condition, CONTENDERS - i - 1, 0);
    }
}

static void *wait_in_thread(void *shared)
{
    wait_once(shared);
    return NULL;
}

TEST(a_crowd_is_woken)
{
    pthread_t threads[CROWD];
    struct shared *shared = open_shared();
    for (int i = 0; i < CROWD; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, wait_in_thread, shared) == 0);
    }
    wait_until(&shared->entered, CROWD);
    usleep(20000); /* some sleep by now */
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, SIZE_MAX), CROWD);
    for (int i = 0; i < CROWD; i++) {
        pthread_join(threads[i], NULL);
    }
    check_counts(shared->condition, 0, 0);
}

/* Each notify is one wait that ends, neither more nor fewer. */
static void notify_and_count(void *argument)
{
    struct shared *shared = argument;
    for (int i = 0; i < TURNS; i++) {
        if (mpx_u32_fetch_add_relaxed(&shared->places, 1) % 2 == 0) {
            int granted = mpx_condition_notify(arena, shared->condition, (size_t)(i % 3));
            mpx_u32_fetch_add_relaxed(&shared->entered, (uint32_t)granted);
        } else {
            mpx_slot_t node = enter(shared->condition);
            int64_t deadline = mpx_os_deadline(i % 5 * 10000);
            int status = mpx_condition_sleep(arena, shared->condition, node, deadline);
            int granted = mpx_condition_leave(arena, shared->condition, node);
            CHECK(granted == 1 || (granted == 0 && status == -ETIMEDOUT));
            mpx_u32_fetch_add_relaxed(&shared->left, (uint32_t)granted);
        }
    }
}

TEST(no_notify_is_lost_and_none_counts_twice)
{
    struct shared *shared = open_shared();
    run_in_threads(notify_and_count, shared);
    run_in_processes(notify_and_count, shared);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->left), mpx_u32_load_relaxed(&shared->entered));
    check_counts(shared->condition, 0, 0);
}

/* ---- Order ----------------------------------------------------------------------------------- */

struct message {
    mpx_slot_t condition;
    mpx_slot_t node;
    uint32_t text; /* no atomic */
};

static void *send_text(void *argument)
{
    struct message *message = argument;
    message->text = 42;
    CHECK_EQ(mpx_condition_notify(arena, message->condition, 1), 1);
    return NULL;
}

TEST(a_notify_carries_what_came_before_it)
{
    open_arena();
    struct message message = {.condition = make()};
    for (int i = 0; i < 200; i++) {
        pthread_t thread;
        message.text = 0;
        message.node = enter(message.condition);
        REQUIRE(pthread_create(&thread, NULL, send_text, &message) == 0);
        CHECK_EQ(mpx_condition_sleep(arena, message.condition, message.node, MPX_NEVER), 0);
        CHECK_EQ(message.text, 42);
        pthread_join(thread, NULL);
        CHECK_EQ(mpx_condition_leave(arena, message.condition, message.node), 1);
    }
}

/* ---- Dead waiters ---------------------------------------------------------------------------- */

/* It does not sleep: who sleeps looks for the dead, and there would be fewer of them. */
static void enter_and_stay(void *argument)
{
    struct shared *shared = argument;
    (void)enter(shared->condition);
    mpx_u32_fetch_add_acq_rel(&shared->entered, 1);
    for (;;) {
        pause();
    }
}

/* Leaves a node in the list whose process is dead. */
static void leave_dead_waiter(struct shared *shared)
{
    uint32_t entered = mpx_u32_load_acquire(&shared->entered);
    pid_t pid = start_process(enter_and_stay, shared);
    wait_until(&shared->entered, entered + 1);
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
}

TEST(a_sleeper_gets_the_grant_of_a_dead_one)
{
    struct shared *shared = open_shared();
    leave_dead_waiter(shared);
    leave_dead_waiter(shared);
    pid_t first = start_waiter(shared);
    pid_t second = start_waiter(shared);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1);
    CHECK_EQ(wait_for(first), 0);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->left), 1);
    check_counts(shared->condition, 1, 0);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1);
    CHECK_EQ(wait_for(second), 0);
}

static void enter_and_become_another(void *argument)
{
    struct shared *shared = argument;
    (void)enter(shared->condition);
    mpx_u32_store_release(&shared->entered, 1);
    become_another_program();
}

TEST(who_executes_another_program_waits_no_more)
{
    struct shared *shared = open_shared();
    pid_t other = start_process(enter_and_become_another, shared);
    wait_until(&shared->entered, 1);
    mpx_slot_t own = enter(shared->condition);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1); /* it is the older one */
    CHECK_EQ(mpx_condition_sleep(arena, shared->condition, own, much_later()), 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 1);
    check_counts(shared->condition, 0, 0);
    CHECK_EQ(kill(other, SIGKILL), 0);
    CHECK(was_killed(wait_for(other)));
}

/* Sleeps, in vain, until the counts are these: a sleeper looks for the dead now and then, and on a
 * busy machine the time of one sleep may be over before its first look. */
static void sleep_until(mpx_slot_t condition, mpx_slot_t node, uint32_t waiting, uint32_t granted)
{
    int64_t end = much_later();
    mpx_condition_counts_t counts = {99, 99};
    while ((counts.waiting != waiting || counts.granted != granted) && mpx_os_now() < end) {
        int64_t deadline = mpx_os_deadline(4 * MPX_WAIT_RECHECK);
        CHECK_EQ(mpx_condition_sleep(arena, condition, node, deadline), -ETIMEDOUT);
        CHECK_EQ(mpx_condition_count(arena, condition, &counts), 0);
    }
    check_counts(condition, waiting, granted);
}

TEST(a_dead_one_has_no_heir_among_those_who_came_later)
{
    struct shared *shared = open_shared();
    leave_dead_waiter(shared);
    mpx_slot_t early = enter(shared->condition);
    leave_dead_waiter(shared);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, SIZE_MAX), 3);
    mpx_slot_t late = enter(shared->condition);
    sleep_until(shared->condition, late, 1, 1);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, early), 1);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, late), 0);
}

TEST(the_living_are_counted)
{
    mpx_condition_counts_t counts;
    struct shared *shared = open_shared();
    for (int i = 0; i < 20; i++) { /* more than are looked at in one piece */
        leave_dead_waiter(shared);
    }
    mpx_slot_t own = enter(shared->condition);
    leave_dead_waiter(shared);
    check_counts(shared->condition, 22, 0);
    /* After that: who sleeps looks for the dead itself, before long. */
    pid_t pid = start_waiter(shared);
    CHECK_EQ(mpx_condition_count_living(arena, shared->condition, &counts), 0);
    CHECK_EQ(counts.waiting, 2);
    check_counts(shared->condition, 2, 0);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, SIZE_MAX), 2);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 1);
}

TEST(sleepers_find_the_dead_that_wait)
{
    struct shared *shared = open_shared();
    mpx_slot_t own = enter(shared->condition);
    leave_dead_waiter(shared);
    leave_dead_waiter(shared);
    sleep_until(shared->condition, own, 1, 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 0);
}

TEST(a_time_far_away_stops_nobody_from_looking)
{
    struct shared *shared = open_shared();
    mpx_condition_t *condition = mpx_slot_at(arena, shared->condition);
    mpx_u64_store_relaxed(&condition->next_look, UINT64_MAX / 2);
    mpx_u64_store_relaxed(&condition->next_inquest, UINT64_MAX / 2);
    leave_dead_waiter(shared);
    mpx_slot_t own = enter(shared->condition);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1);
    CHECK_EQ(mpx_condition_sleep(arena, shared->condition, own, much_later()), 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 1);
}

/* ---- Killed at each step --------------------------------------------------------------------- */

static const char *const waiter_steps[] = {
    "condition_made",       "condition_filled",   "condition_named",   "condition_filling",
    "condition_node_named", "condition_marked",   "condition_linked",  "condition_waiting",
    "condition_awake",      "condition_unlinked", "condition_unnamed", "condition_unmarked",
    "condition_emptied",    "condition_left",     "mutex_released",    "slot_dropped"};

/* Where a victim is to be killed; NULL in others. */
static const char *last_step;

/* A loaded machine may take its time over the yields that come before the sleep. */
static int64_t a_moment(void)
{
    bool asleep = last_step != NULL && (strcmp(last_step, "condition_waiting") == 0 ||
                                        strcmp(last_step, "condition_awake") == 0);
    return asleep ? much_later() : mpx_os_deadline(5 * MPX_NANOS_PER_MILLI);
}

static void wait_for_a_moment(void *argument)
{
    struct shared *shared = argument;
    mpx_slot_t node = enter(shared->condition);
    (void)!mpx_condition_sleep(arena, shared->condition, node, a_moment());
    (void)!mpx_condition_leave(arena, shared->condition, node);
}

struct victim {
    const char *step;
    void (*function)(void *);
    struct shared *shared;
};

/* Not before the fork, whose handlers take steps too. */
static void run_to_step(void *argument)
{
    struct victim *victim = argument;
    last_step = victim->step;
    signal_at_step(victim->step, SIGKILL);
    victim->function(victim->shared);
    fprintf(stderr, "%s: not reached\n", victim->step);
}

static void kill_at(const char *step, void (*function)(void *), struct shared *shared)
{
    struct victim victim = {step, function, shared};
    CHECK(was_killed(wait_for(start_process(run_to_step, &victim))));
}

TEST(a_waiter_killed_at_each_step_strands_nobody)
{
    struct shared *shared = open_shared();
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(waiter_steps); i++) {
        mpx_condition_counts_t counts;
        kill_at(waiter_steps[i], wait_for_a_moment, shared);
        mpx_slot_t own = enter(shared->condition);
        CHECK(mpx_condition_notify(arena, shared->condition, 1) == 1);
        CHECK_EQ(mpx_condition_sleep(arena, shared->condition, own, much_later()), 0);
        CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 1);
        CHECK_EQ(mpx_condition_count_living(arena, shared->condition, &counts), 0);
        check_counts(shared->condition, 0, 0);
    }
}

static void notify_two(void *argument)
{
    struct shared *shared = argument;
    (void)!mpx_condition_notify(arena, shared->condition, 2);
}

static void check_notifier_killed_at(const char *step, int granted)
{
    struct shared *shared = open_shared();
    pid_t first = start_waiter(shared);
    pid_t second = start_waiter(shared);
    usleep(10000); /* they sleep, most likely */
    kill_at(step, notify_two, shared);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, SIZE_MAX), 2 - granted);
    CHECK_EQ(wait_for(first), 0);
    CHECK_EQ(wait_for(second), 0);
}

TEST(a_notifier_killed_at_each_step_strands_nobody)
{
    check_notifier_killed_at("condition_granting", 0);
    check_notifier_killed_at("condition_granted", 1);
    check_notifier_killed_at("mutex_releasing", 2);
    check_notifier_killed_at("condition_notified", 2);
}

static void count_the_living(void *argument)
{
    struct shared *shared = argument;
    mpx_condition_counts_t counts;
    (void)!mpx_condition_count_living(arena, shared->condition, &counts);
}

/* One grant has one heir, however often it is passed on. */
TEST(a_burial_killed_at_each_step_passes_one_grant_to_one)
{
    static const char *const steps[] = {
        "condition_heir_named", "condition_burying", "condition_granting", "condition_granted",
        "condition_unlinked",   "condition_unnamed", "condition_unmarked", "condition_buried"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        struct shared *shared = open_shared();
        mpx_condition_counts_t counts;
        leave_dead_waiter(shared);
        mpx_slot_t heir = enter(shared->condition);
        mpx_slot_t other = enter(shared->condition);
        CHECK_EQ(mpx_condition_notify(arena, shared->condition, 1), 1);
        kill_at(steps[i], count_the_living, shared);
        CHECK_EQ(mpx_condition_count_living(arena, shared->condition, &counts), 0);
        CHECK_EQ(counts.waiting, 1);
        CHECK_EQ(counts.granted, 1);
        CHECK_EQ(mpx_condition_leave(arena, shared->condition, other), 0);
        CHECK_EQ(mpx_condition_leave(arena, shared->condition, heir), 1);
        check_counts(shared->condition, 0, 0);
    }
}

/* ---- What the dead leave in the arena -------------------------------------------------------- */

/* A condition of its own, which nobody else holds. */
static void wait_alone(void *argument)
{
    struct shared *shared = argument;
    shared->condition = make();
    wait_for_a_moment(shared);
}

/* Where others that died are in the list, not each step is reached. */
static void wait_among_the_dead(void *argument)
{
    wait_for_a_moment(argument);
    raise(SIGKILL);
}

/* The number of the largest of so many slots. */
static mpx_slot_t largest_of(mpx_slot_t *slots, int count)
{
    mpx_slot_t largest = 0;
    for (int i = 0; i < count; i++) {
        slots[i] = make();
        largest = slots[i] > largest ? slots[i] : largest;
    }
    for (int i = 0; i < count; i++) {
        mpx_slot_drop(arena, slots[i]);
    }
    return largest;
}

static void check_slots_come_back(void (*function)(void *))
{
    mpx_slot_t slots[ROUNDS];
    struct shared *shared = open_shared();
    int rounds = emulated() ? ROUNDS / 2 : ROUNDS;
    for (int i = 0; i < rounds; i++) {
        kill_at(waiter_steps[(size_t)i % MPX_ARRAY_LENGTH(waiter_steps)], function, shared);
        if (i % 16 == 0) {
            (void)largest_of(slots, 30); /* so that somebody looks for free slots */
        }
    }
    CHECK(largest_of(slots, 60) <= (emulated() ? 128 : 256));
    mpx_slot_t condition = make();
    mpx_slot_t own = enter(condition);
    CHECK_EQ(mpx_condition_notify(arena, condition, SIZE_MAX), 1);
    CHECK_EQ(mpx_condition_leave(arena, condition, own), 1);
}

TEST(slots_of_dead_waiters_come_back)
{
    check_slots_come_back(wait_among_the_dead);
}

TEST(slots_of_conditions_whose_waiters_are_all_dead_come_back)
{
    check_slots_come_back(wait_alone);
}

TEST(the_undertaker_leaves_the_living_alone)
{
    if (emulated()) {
        return; /* it makes up the /proc of a process's own number, which then looks like another's
                 */
    }
    struct shared *shared = open_shared();
    mpx_slot_t own = enter(shared->condition);
    pid_t pid = start_waiter(shared);
    for (mpx_slot_t slot = 0; slot < 64; slot++) {
        mpx_condition_undertake(arena, slot);
    }
    check_counts(shared->condition, 2, 0);
    CHECK_EQ(mpx_condition_notify(arena, shared->condition, SIZE_MAX), 2);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(mpx_condition_leave(arena, shared->condition, own), 1);
}

/* The node's slot is not used again while it is linked, dead as its process may be. */
TEST(a_linked_slot_is_not_handed_out)
{
    static mpx_slot_t slots[ROUNDS];
    struct shared *shared = open_shared();
    mpx_arena_set_undertaker(NULL);
    leave_dead_waiter(shared);
    mpx_condition_t *condition = mpx_slot_at(arena, shared->condition);
    mpx_slot_t dead = mpx_u32_load_relaxed(&condition->newest);
    for (int i = 0; i < ROUNDS; i++) {
        slots[i] = make();
        CHECK(slots[i] != dead);
    }
    check_counts(shared->condition, 1, 0);
    mpx_arena_set_undertaker(mpx_condition_undertake);
    for (int i = 0; i < ROUNDS; i++) {
        mpx_slot_drop(arena, slots[i]);
    }
    bool back = false;
    for (int i = 0; i < ROUNDS * 4; i++) {
        back = back || make() == dead;
    }
    CHECK(back);
    check_counts(shared->condition, 0, 0);
}

/* Nor is that of its condition, when nobody holds it any more. */
TEST(a_condition_with_nodes_is_not_handed_out)
{
    struct shared *shared = open_shared();
    uint32_t seat;
    mpx_arena_set_undertaker(NULL);
    leave_dead_waiter(shared);
    REQUIRE(mpx_arena_seat(arena, &seat) == 0);
    CHECK_EQ(mpx_arena_give(arena, seat, shared->condition), 0);
    mpx_arena_settle(arena, seat, 0);
    mpx_slot_drop(arena, shared->condition);
    for (int i = 0; i < ROUNDS; i++) {
        CHECK(make() != shared->condition);
    }
    mpx_arena_set_undertaker(mpx_condition_undertake);
    bool back = false;
    for (int i = 0; i < ROUNDS * 4; i++) {
        back = back || make() == shared->condition;
    }
    CHECK(back);
}

/* ---- A storm --------------------------------------------------------------------------------- */

static void wait_and_notify(void *argument)
{
    struct shared *shared = argument;
    for (unsigned i = (unsigned)getpid();; i++) {
        mpx_slot_t node = enter(shared->condition);
        int64_t deadline = i % 4 == 0 ? mpx_os_deadline(i % 7 * 100000) : much_later();
        if (i % 2 == 0 && mpx_condition_notify(arena, shared->condition, i % 3 + 1) < 0) {
            mpx_u32_fetch_add_relaxed(&shared->wrong, 1);
        }
        int status = mpx_condition_sleep(arena, shared->condition, node, deadline);
        int granted = mpx_condition_leave(arena, shared->condition, node);
        if ((status != 0 && i % 4 != 0) || granted < 0 || (status == 0 && granted != 1)) {
            mpx_u32_fetch_add_relaxed(&shared->wrong, 1);
        }
        mpx_u32_fetch_add_relaxed(&shared->left, 1);
    }
}

static void keep_notifying(void *argument)
{
    struct shared *shared = argument;
    for (;;) {
        if (mpx_condition_notify(arena, shared->condition, 1) < 0) {
            mpx_u32_fetch_add_relaxed(&shared->wrong, 1);
        }
        usleep(100);
    }
}

TEST(killed_at_random_the_others_go_on)
{
    mpx_condition_counts_t counts;
    struct shared *shared = open_shared();
    pid_t notifier = start_process(keep_notifying, shared);
    kill_at_random(wait_and_notify, shared, &shared->left, emulated() ? KILLS / 4 : KILLS);
    kill(notifier, SIGKILL);
    wait_for(notifier);
    CHECK_EQ(mpx_u32_load_relaxed(&shared->wrong), 0);
    CHECK_EQ(mpx_condition_count_living(arena, shared->condition, &counts), 0);
    check_counts(shared->condition, 0, 0);
}
