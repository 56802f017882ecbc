/* test_ring_takers.c - rings that count who has taken what, and what the dead had taken as done:
 * in each order of events, killed at each step, and at random. */
#include "harness.h"

#include "mpx_ring_pvt.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static mpx_ring_t make_ring(void)
{
    mpx_arena_t *arena;
    mpx_ring_t ring;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    CHECK_EQ(mpx_ring_create(&ring, arena, MPX_RING_UNLIMITED), 0);
    mpx_ring_count_takers(&ring);
    return ring;
}

static void put(mpx_ring_t *ring, int count)
{
    for (int i = 0; i < count; i++) {
        mpx_message_t message = {.data = &i, .size = sizeof(i)};
        CHECK_EQ(mpx_ring_put(ring, &message, much_later()), 0);
    }
}

static void get(mpx_ring_t *ring, int count)
{
    int number;
    mpx_message_t message;
    for (int i = 0; i < count; i++) {
        CHECK_EQ(mpx_ring_get(ring, &number, sizeof(number), &message, much_later()), 0);
    }
}

static void finish(mpx_ring_t *ring, int count)
{
    for (int i = 0; i < count; i++) {
        CHECK_EQ(mpx_ring_finish(ring, much_later()), 0);
    }
}

/* It looks for the dead at least once, and once more after it has slept. */
static int join_for_a_while(mpx_ring_t *ring)
{
    return mpx_ring_join(ring, mpx_os_deadline(MPX_WAIT_RECHECK + MPX_WAIT_RECHECK / 2));
}

/* One look at the dead, and no sleep. */
static int join_now(mpx_ring_t *ring)
{
    return mpx_ring_join(ring, mpx_os_now());
}

/* So many are unfinished, and not one less for who looks again. */
static void check_unfinished(mpx_ring_t *ring, uint32_t count)
{
    if (count == 0) {
        CHECK_EQ(mpx_ring_join(ring, much_later()), 0);
    } else {
        int64_t end = much_later();
        do { /* on a busy machine, once more is too late */
            CHECK_EQ(join_now(ring), -EAGAIN);
        } while (mpx_ring_unfinished(ring) > count && mpx_os_now() < end);
        CHECK_EQ(join_now(ring), -EAGAIN);
    }
    CHECK_EQ(mpx_ring_unfinished(ring), count);
}

/* ---- Who takes, who finishes, who ends ------------------------------------------------------- */

struct part {
    mpx_ring_t ring;
    int takes;
    int finishes;
};

static void take_part(void *argument)
{
    struct part *part = argument;
    get(&part->ring, part->takes);
    finish(&part->ring, part->finishes);
}

static pid_t start_part(mpx_ring_t *ring, int takes, int finishes)
{
    struct part part = {.ring = *ring, .takes = takes, .finishes = finishes};
    return start_process(take_part, &part);
}

static void run_part(mpx_ring_t *ring, int takes, int finishes)
{
    CHECK_EQ(wait_for(start_part(ring, takes, finishes)), 0);
}

TEST(what_a_process_had_that_has_ended_is_done)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 6);
    run_part(&ring, 3, 1);
    check_unfinished(&ring, 3);
    run_part(&ring, 0, 0);
    run_part(&ring, 2, 2);
    check_unfinished(&ring, 1);
    CHECK_EQ(join_for_a_while(&ring), -EAGAIN);
    CHECK_EQ(mpx_ring_unfinished(&ring), 1);
    run_part(&ring, 1, 0);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

TEST(what_the_living_have_is_not)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 4);
    get(&ring, 2);
    run_part(&ring, 1, 0);
    check_unfinished(&ring, 3);
    finish(&ring, 1);
    check_unfinished(&ring, 2);
    get(&ring, 1);
    finish(&ring, 2);
    check_unfinished(&ring, 0);
    CHECK_EQ(mpx_ring_finish(&ring, much_later()), 0); /* of the dead one: it was counted already */
    CHECK_EQ(mpx_ring_unfinished(&ring), 0);
    CHECK_EQ(mpx_ring_finish(&ring, much_later()), -ERANGE);
    CHECK_EQ(mpx_ring_try_finish(&ring), -ERANGE);
    mpx_ring_drop(&ring);
}

TEST(nobody_finishes_what_was_not_put)
{
    mpx_ring_t ring = make_ring();
    CHECK_EQ(mpx_ring_try_finish(&ring), -ERANGE);
    put(&ring, 1);
    CHECK_EQ(mpx_ring_try_finish(&ring), 0); /* not taken yet, as in queue.Queue */
    CHECK_EQ(mpx_ring_try_finish(&ring), -ERANGE);
    CHECK_EQ(mpx_ring_join(&ring, much_later()), 0);
    get(&ring, 1);
    CHECK_EQ(mpx_ring_try_finish(&ring), -ERANGE);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

TEST(a_forked_child_has_not_what_its_parent_took)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 3);
    get(&ring, 2);
    run_part(&ring, 1, 0);
    check_unfinished(&ring, 2);
    run_part(&ring, 0, 0);
    check_unfinished(&ring, 2);
    finish(&ring, 2);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

/* Takes, and lives until it is killed. */
static void hold(void *argument)
{
    struct part *part = argument;
    take_part(part);
    raise(SIGSTOP);
}

static pid_t start_holding(mpx_ring_t *ring, int takes)
{
    struct part part = {.ring = *ring, .takes = takes};
    pid_t pid = start_process(hold, &part);
    wait_until_stopped(pid);
    return pid;
}

static void end(pid_t pid)
{
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
}

static void take_and_become_another(void *argument)
{
    take_part(argument);
    become_another_program();
}

TEST(what_a_process_had_that_executes_another_program_is_done)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 2);
    struct part part = {.ring = ring, .takes = 2, .finishes = 1};
    pid_t pid = start_process(take_and_become_another, &part);
    CHECK_EQ(mpx_ring_join(&ring, much_later()), 0);
    end(pid); /* it did live */
    mpx_ring_drop(&ring);
}

TEST(finished_by_another_one_before_the_death)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 5);
    pid_t holder = start_holding(&ring, 3);
    finish(&ring, 2); /* this process has taken nothing: the holder's */
    check_unfinished(&ring, 3);
    end(holder);
    check_unfinished(&ring, 2);
    get(&ring, 2);
    check_unfinished(&ring, 2);
    finish(&ring, 2);
    check_unfinished(&ring, 0);
    CHECK_EQ(mpx_ring_finish(&ring, much_later()), 0); /* the holder's third one */
    CHECK_EQ(mpx_ring_finish(&ring, much_later()), -ERANGE);
    mpx_ring_drop(&ring);
}

TEST(finished_by_another_one_after_the_death)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 5);
    end(start_holding(&ring, 3));
    check_unfinished(&ring, 2);
    finish(&ring, 3); /* the dead one's, which are done: nothing is counted twice */
    check_unfinished(&ring, 2);
    finish(&ring, 2); /* ahead of the gets */
    check_unfinished(&ring, 0);
    end(start_holding(&ring, 2));
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

/* It never returns too early, at the price that it waits for the other holder too. */
TEST(finished_by_another_one_for_nobody_knows_whom)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 2);
    pid_t first = start_holding(&ring, 1), second = start_holding(&ring, 1);
    finish(&ring, 1);
    check_unfinished(&ring, 1);
    end(first);
    check_unfinished(&ring, 1);
    end(second);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

TEST(a_killed_one_is_found_by_who_sleeps_in_join)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 1);
    pid_t holder = start_holding(&ring, 1);
    pid_t killer = fork();
    if (killer == 0) {
        while (!(mpx_u64_load_relaxed(&ring.control->done) & MPX_RING_SLEEPERS)) {
            usleep(100);
        }
        kill(holder, SIGKILL);
        _exit(0);
    }
    CHECK_EQ(mpx_ring_join(&ring, much_later()), 0);
    CHECK_EQ(wait_for(killer), 0);
    CHECK(was_killed(wait_for(holder)));
    mpx_ring_drop(&ring);
}

/* A number that is used again is another process. */
TEST(a_dead_one_whose_number_is_in_use)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 1);
    get(&ring, 1);
    mpx_atomic_u64 *owner = (mpx_atomic_u64 *)(ring.control + 1);
    uint64_t word = mpx_u64_load_relaxed(owner);
    CHECK_EQ(word, mpx_os_own_word());
    CHECK(word >> 32 != 0);
    check_unfinished(&ring, 1);
    mpx_u64_store_relaxed(owner, word - (UINT64_C(1) << 32));
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

TEST(without_counts_it_stays_unfinished)
{
    mpx_arena_t *arena;
    mpx_ring_t ring;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    CHECK_EQ(mpx_ring_create(&ring, arena, MPX_RING_UNLIMITED), 0);
    put(&ring, 2);
    end(start_holding(&ring, 1));
    check_unfinished(&ring, 2);
    run_part(&ring, 1, 0);
    check_unfinished(&ring, 2);
    finish(&ring, 2);
    CHECK_EQ(mpx_ring_join(&ring, much_later()), 0);
    mpx_ring_drop(&ring);
}

/* ---- Many takers ----------------------------------------------------------------------------- */

struct record {
    mpx_atomic_u64 owner;
    mpx_atomic_u64 open;
};

static uint32_t fill_records(mpx_ring_t *ring, uint64_t owner)
{
    struct record *records = (struct record *)(ring->control + 1);
    uint32_t count = (MPX_BLOCK_UNIT - sizeof(*ring->control)) / sizeof(*records);
    for (uint32_t i = 0; i < count; i++) {
        mpx_u64_store_relaxed(&records[i].owner, owner);
        mpx_u64_store_relaxed(&records[i].open, 0);
    }
    mpx_u32_store_relaxed(&ring->control->takers, count);
    return count;
}

static uint64_t word_of(pid_t pid)
{
    uint64_t start = 0;
    CHECK_EQ(mpx_os_pid_alive((mpx_process_id_t){.pid = pid}), 1);
    return start << 32 | (uint32_t)pid;
}

TEST(no_record_is_free)
{
    mpx_ring_t ring = make_ring();
    mpx_message_t message;
    int number;
    put(&ring, 2);
    pid_t living = start_holding(&ring, 0);
    CHECK(fill_records(&ring, word_of(living)) > 4000);
    CHECK_EQ(mpx_ring_try_get(&ring, &number, sizeof(number), &message), -EBUSY);
    CHECK_EQ(mpx_ring_get(&ring, &number, sizeof(number), &message, much_later()), -EUSERS);
    CHECK_EQ(mpx_ring_get_now(&ring, &number, sizeof(number), &message, much_later()), -EUSERS);
    CHECK_EQ(mpx_ring_count(&ring), 2);
    end(living);
    get(&ring, 2);
    check_unfinished(&ring, 2);
    finish(&ring, 2);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

TEST(records_of_the_dead_are_used_again)
{
    mpx_ring_t ring = make_ring();
    int rounds = emulated() ? 10 : 100;
    for (int i = 0; i < rounds; i++) {
        put(&ring, 1);
        run_part(&ring, 1, 0);
        CHECK_EQ(mpx_ring_join(&ring, much_later()), 0);
        CHECK_EQ(mpx_u32_load_relaxed(&ring.control->takers), 1);
    }
    mpx_ring_drop(&ring);
}

/* ---- Damage ---------------------------------------------------------------------------------- */

TEST(a_note_of_no_record)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 2);
    mpx_u32_store_relaxed(&ring.control->counting, UINT32_C(0xbfffffff));
    get(&ring, 1);
    mpx_u32_store_relaxed(&ring.control->takers, UINT32_MAX);
    check_unfinished(&ring, 2);
    mpx_ring_drop(&ring);
}

/* ---- Killed at each step --------------------------------------------------------------------- */

enum { PUT = 8 };

static const char *step;

/* Has one open when it comes to the step. */
static void get_until_killed(void *argument)
{
    mpx_ring_t *ring = argument;
    get(ring, 2);
    finish(ring, 1);
    signal_at_step(step, SIGKILL);
    get(ring, 1);
    finish(ring, 1);
}

static void finish_until_killed(void *argument)
{
    mpx_ring_t *ring = argument;
    get(ring, 3);
    finish(ring, 1);
    signal_at_step(step, SIGKILL);
    finish(ring, 1);
}

static void get_another(void *argument)
{
    signal_at_step(step, SIGKILL);
    get(argument, 1);
}

static void finish_for_another(void *argument)
{
    signal_at_step(step, SIGKILL);
    finish(argument, 1);
}

static void join_until_killed(void *argument)
{
    signal_at_step(step, SIGKILL);
    CHECK_EQ(mpx_ring_join(argument, much_later()), -EAGAIN);
}

static void kill_at(const char *site, void (*function)(void *), mpx_ring_t *ring)
{
    step = site;
    CHECK(was_killed(wait_for(start_process(function, ring))));
}

/* All that the dead have taken is done, once, and what nobody has taken is not. */
static void check_rest(mpx_ring_t *ring, uint32_t taken)
{
    uint32_t left = mpx_ring_count(ring);
    CHECK_EQ(left, PUT - taken);
    check_unfinished(ring, left);
    get(ring, (int)left);
    check_unfinished(ring, left);
    finish(ring, (int)left);
    check_unfinished(ring, 0);
}

static void check_killed(void (*function)(void *), const char *site, uint32_t taken)
{
    for (int settled = 0; settled < 3; settled++) {
        mpx_ring_t ring = make_ring();
        put(&ring, PUT);
        kill_at(site, function, &ring);
        uint32_t more = 0;
        /* Another one dies with what the first one has left. */
        if (settled == 1) {
            kill_at("ring_settled_count", get_another, &ring);
        } else if (settled == 2) {
            run_part(&ring, 1, 0);
            more = 1;
        }
        check_rest(&ring, taken + more);
        mpx_ring_drop(&ring);
    }
}

/* A note is found only from some steps on. */
static void check_killed_without_note(void (*function)(void *), const char *site, uint32_t taken)
{
    mpx_ring_t ring = make_ring();
    put(&ring, PUT);
    kill_at(site, function, &ring);
    check_rest(&ring, taken);
    mpx_ring_drop(&ring);
}

TEST(a_consumer_killed_at_each_step_of_get)
{
    check_killed_without_note(get_until_killed, "ring_copied", 2);
    check_killed(get_until_killed, "ring_count_noted", 2);
    check_killed(get_until_killed, "ring_taken", 3);
    check_killed(get_until_killed, "ring_counted", 3);
    check_killed_without_note(get_until_killed, "mutex_releasing", 3);
    check_killed_without_note(get_until_killed, "mutex_released", 3);
}

TEST(a_consumer_killed_at_each_step_of_its_first_get)
{
    static const char *const none[] = {"ring_taker_made", "ring_copied", "ring_count_noted"};
    static const char *const one[] = {"ring_taken", "ring_counted"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(none) + MPX_ARRAY_LENGTH(one); i++) {
        bool taken = i >= MPX_ARRAY_LENGTH(none);
        mpx_ring_t ring = make_ring();
        put(&ring, PUT);
        signal_at_step(taken ? one[i - MPX_ARRAY_LENGTH(none)] : none[i], SIGKILL);
        CHECK(was_killed(wait_for(start_part(&ring, 1, 0))));
        signal_at_step(NULL, 0);
        check_rest(&ring, taken);
        mpx_ring_drop(&ring);
    }
}

TEST(a_consumer_killed_at_each_step_of_finish)
{
    check_killed(finish_until_killed, "ring_count_noted", 3);
    check_killed(finish_until_killed, "ring_finished", 3);
    check_killed(finish_until_killed, "ring_finish_counted", 3);
    check_killed_without_note(finish_until_killed, "mutex_releasing", 3);
}

/* What it has finished is another one's, who goes on living. */
TEST(a_stranger_killed_at_each_step_of_finish)
{
    static const char *const steps[] = {"ring_count_noted", "ring_finished", "ring_finish_counted"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        mpx_ring_t ring = make_ring();
        put(&ring, 3);
        get(&ring, 2);
        kill_at(steps[i], finish_for_another, &ring);
        check_unfinished(&ring, 2);
        finish(&ring, 1);
        check_unfinished(&ring, 1);
        CHECK_EQ(ring.control->strangers, 1);
        run_part(&ring, 1, 1);
        check_unfinished(&ring, 0);
        mpx_ring_drop(&ring);
    }
}

TEST(who_joins_killed_at_each_step)
{
    static const char *const steps[] = {
        "ring_burying",   "mutex_announced",     "owned_taken", "ring_count_noted",
        "ring_finished",  "ring_finish_counted", "ring_buried", "mutex_releasing",
        "mutex_released", "mutex_woken",         "ring_waiting"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        mpx_ring_t ring = make_ring();
        put(&ring, PUT);
        run_part(&ring, 3, 1);
        run_part(&ring, 2, 1);
        kill_at(steps[i], join_until_killed, &ring);
        check_rest(&ring, 5);
        mpx_ring_drop(&ring);
    }
}

TEST(who_joins_killed_where_another_one_was)
{
    static const char *const steps[] = {"ring_count_noted", "ring_finished", "ring_finish_counted",
                                        "ring_buried"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        for (size_t j = 0; j < MPX_ARRAY_LENGTH(steps); j++) {
            mpx_ring_t ring = make_ring();
            put(&ring, PUT);
            run_part(&ring, 3, 1);
            run_part(&ring, 2, 0);
            kill_at(steps[i], join_until_killed, &ring);
            kill_at(steps[j], join_until_killed, &ring);
            check_rest(&ring, 5);
            mpx_ring_drop(&ring);
        }
    }
}

static void join_when_stopped_before(void *argument)
{
    signal_at_step("ring_burying", SIGSTOP);
    CHECK_EQ(join_for_a_while(argument), -EAGAIN);
}

/* What it has seen of a record says nothing by the time that it has the mutex. */
TEST(who_joins_finds_another_one_in_the_record)
{
    mpx_ring_t ring = make_ring();
    put(&ring, 2);
    run_part(&ring, 1, 0);
    pid_t joiner = start_process(join_when_stopped_before, &ring);
    wait_until_stopped(joiner);
    check_unfinished(&ring, 1);
    pid_t holder = start_holding(&ring, 1);
    CHECK_EQ(mpx_u32_load_relaxed(&ring.control->takers), 1);
    kill(joiner, SIGCONT);
    CHECK_EQ(wait_for(joiner), 0);
    CHECK_EQ(mpx_ring_unfinished(&ring), 1);
    end(holder);
    check_unfinished(&ring, 0);
    mpx_ring_drop(&ring);
}

static void join(void *argument)
{
    CHECK_EQ(mpx_ring_join(argument, much_later()), 0);
}

TEST(many_join_at_once)
{
    int rounds = emulated() ? 5 : 50;
    for (int i = 0; i < rounds; i++) {
        mpx_ring_t ring = make_ring();
        put(&ring, 3);
        run_part(&ring, 1, 0);
        run_part(&ring, 2, 0);
        if (i % 2) {
            run_in_threads(join, &ring);
        } else {
            run_in_processes(join, &ring);
        }
        CHECK_EQ(mpx_ring_unfinished(&ring), 0);
        CHECK_EQ(ring.control->strangers, -3);
        mpx_ring_drop(&ring);
    }
}

/* ---- At random ------------------------------------------------------------------------------- */

enum { KILLS = 400, BACKLOG = 40 };

struct storm {
    mpx_ring_t ring;
    mpx_atomic_u32 turns;
    mpx_atomic_u32 broken;
};

/* Puts, takes, finishes sometimes, and joins for a moment. */
static void storm_part(void *argument)
{
    struct storm *storm = argument;
    mpx_ring_t ring = storm->ring;
    unsigned seed = (unsigned)getpid();
    int number, open = 0;
    mpx_message_t message = {.data = &number, .size = sizeof(number)}, got;
    for (;;) {
        int64_t soon = mpx_os_deadline(MPX_NANOS_PER_MILLI);
        int status = -EAGAIN;
        switch (rand_r(&seed) % 4) {
        case 0:
            if (mpx_ring_count(&ring) < BACKLOG) {
                number = (int)seed;
                status = mpx_ring_put(&ring, &message, much_later());
            }
            break;
        case 1:
            status = mpx_ring_get(&ring, &number, sizeof(number), &got, soon);
            open += status == 0;
            break;
        case 2:
            status = open == 0 ? 0 : mpx_ring_finish(&ring, much_later());
            open -= open > 0;
            break;
        default:
            status = mpx_ring_join(&ring, soon);
            break;
        }
        if (status != 0 && status != -EAGAIN && status != -EBUSY) {
            mpx_u32_fetch_add_relaxed(&storm->broken, 1);
        }
        mpx_u32_fetch_add_relaxed(&storm->turns, 1);
    }
}

TEST(killed_at_random_all_that_was_taken_is_done)
{
    struct storm *storm = shared_memory(sizeof(*storm));
    storm->ring = make_ring();
    mpx_ring_t *ring = &storm->ring;
    kill_at_random(storm_part, storm, &storm->turns, emulated() ? KILLS / 10 : KILLS);
    CHECK_EQ(mpx_u32_load_relaxed(&storm->broken), 0);
    uint32_t left = mpx_ring_count(ring);
    put(ring, 1);
    get(ring, (int)left + 1);
    check_unfinished(ring, left + 1);
    finish(ring, (int)left);
    check_unfinished(ring, 1);
    CHECK(ring->control->strangers < 0);
    finish(ring, 1);
    CHECK_EQ(mpx_ring_join(ring, much_later()), 0);
    CHECK_EQ(mpx_ring_messages(mpx_u64_load_relaxed(&ring->control->done)),
             mpx_ring_messages(mpx_u64_load_relaxed(&ring->control->head)));
    mpx_ring_drop(ring);
    free_shared_memory(storm, sizeof(*storm));
}
