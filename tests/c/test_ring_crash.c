/* test_ring_crash.c - the ring when processes are killed: at each step, and at random. */
#include "harness.h"

#include "mpx_ring_pvt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned char buffer[MPX_RING_INLINE];

static mpx_ring_t make_ring(void)
{
    mpx_arena_t *arena;
    mpx_ring_t ring;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    CHECK_EQ(mpx_ring_create(&ring, arena, MPX_RING_UNLIMITED), 0);
    CHECK_EQ(mpx_bell_new(&ring.bell), 0);
    return ring;
}

/* More than is ever put, so that bytes are counted. */
#define MANY (UINT64_C(1) << 40)

static mpx_ring_t make_counting(void)
{
    mpx_ring_t ring = make_ring();
    mpx_ring_limit_bytes(&ring, MANY);
    return ring;
}

static void drop(mpx_ring_t *ring)
{
    mpx_bell_close_reader(&ring->bell);
    mpx_bell_close_writer(&ring->bell);
    mpx_ring_drop(ring);
}

/* Bytes that belong to somebody, after a look for the dead. */
static size_t owned(mpx_ring_t *ring)
{
    mpx_heap_stats_t stats;
    mpx_heap_sweep(ring->arena);
    mpx_heap_stats(ring->arena, &stats);
    return stats.owned;
}

/* ---- Messages -------------------------------------------------------------------------------- */

enum { WITH_BLOCK = 7, BLOCK_SIZE = 70000 }; /* every 7th message has a block */

struct head {
    uint32_t number;
    uint32_t size;
};

static void fill(unsigned char *bytes, struct head head)
{
    memcpy(bytes, &head, sizeof(head));
    for (size_t i = sizeof(head); i < head.size; i++) {
        bytes[i] = (unsigned char)(head.number * 31 + i);
    }
}

static bool is_whole(const unsigned char *bytes, size_t size)
{
    struct head head;
    memcpy(&head, bytes, sizeof(head));
    if (head.size != size) {
        return false;
    }
    for (size_t i = sizeof(head); i < size; i++) {
        if (bytes[i] != (unsigned char)(head.number * 31 + i)) {
            return false;
        }
    }
    return true;
}

static uint32_t size_of(uint32_t number)
{
    static const uint32_t most[] = {1, 40, 200, 3000, 20000, 60000};
    uint32_t mixed = number * UINT32_C(2654435761);
    return sizeof(struct head) + (mixed >> 8) % most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)];
}

/* How the ring is used: by what it does when there is nothing special, without a bell; or not. */
static bool plainly;

static int put(mpx_ring_t *ring, uint32_t number, int64_t deadline)
{
    static unsigned char bytes[MPX_RING_INLINE];
    struct head head = {number, size_of(number)};
    fill(bytes, head);
    mpx_message_t message = {.data = bytes, .size = head.size};
    if (number % WITH_BLOCK == 0) {
        mpx_heap_owner_t own;
        void *address;
        message.bytes = BLOCK_SIZE;
        if (mpx_heap_own(ring->arena, &own) < 0 ||
            mpx_heap_new(ring->arena, own, BLOCK_SIZE, &message.block, &address) < 0) {
            return -ENOMEM;
        }
        fill(address, (struct head){number, BLOCK_SIZE});
    }
    int status = plainly ? mpx_ring_try_put(ring, &message) : -EBUSY;
    return status == -EBUSY ? mpx_ring_put(ring, &message, deadline) : status;
}

/* 0 and the number of a message that is as it was put; -EBADMSG where it is not. */
static int get(mpx_ring_t *ring, uint32_t *number, int64_t deadline)
{
    mpx_message_t message;
    int status = plainly ? mpx_ring_try_get(ring, buffer, MPX_RING_INLINE, &message) : -EBUSY;
    if (mpx_ring_has_chores(ring)) {
        mpx_ring_do_chores(ring);
    }
    if (status == -EBUSY || status == -EAGAIN) {
        status = mpx_ring_get(ring, buffer, MPX_RING_INLINE, &message, deadline);
    }
    if (status < 0) {
        return status;
    }
    memcpy(number, buffer, sizeof(*number));
    if (!is_whole(buffer, message.size) || (*number % WITH_BLOCK == 0) != (message.block != 0)) {
        return -EBADMSG;
    }
    if (message.block != 0) {
        mpx_heap_owner_t own;
        size_t size;
        unsigned char *bytes = mpx_heap_at(ring->arena, message.block, &size);
        if (bytes == NULL || size < BLOCK_SIZE || !is_whole(bytes, BLOCK_SIZE) ||
            memcmp(bytes, number, sizeof(*number)) != 0 || mpx_heap_own(ring->arena, &own) < 0 ||
            !mpx_heap_free(ring->arena, message.block, own)) {
            return -EBADMSG;
        }
    }
    return 0;
}

/* ---- At each step ---------------------------------------------------------------------------- */

/* Grows, drains and trims. */
static void use(void *argument)
{
    mpx_ring_t *ring = argument;
    uint32_t number;
    if (!plainly) {
        mpx_ring_watch(ring);
    }
    for (int round = 0; round < 2; round++) {
        for (uint32_t i = plainly; i < 100; i++) { /* the first one has a block */
            CHECK_EQ(put(ring, i, much_later()), 0);
        }
        while (mpx_ring_count(ring) > 0) {
            CHECK_EQ(get(ring, &number, much_later()), 0);
        }
    }
}

/* What is put adds just what it has to what the dead have left. */
static void check_bytes(mpx_ring_t *ring)
{
    uint64_t before = mpx_ring_bytes(ring);
    CHECK_EQ(put(ring, 1, much_later()), 0);
    CHECK_EQ(put(ring, 2 * WITH_BLOCK, much_later()), 0);
    CHECK_EQ(mpx_ring_bytes(ring) - before,
             mpx_ring_most_bytes(ring) ? size_of(1) + BLOCK_SIZE : 0);
}

/* Numbers go up, and none is missing but what a consumer had that was killed. */
static void check_rest(mpx_ring_t *ring, bool was_empty)
{
    uint32_t number = 0, last = 0;
    CHECK_EQ(put(ring, 1000, much_later()), 0);
    for (uint32_t left = mpx_ring_count(ring); left > 0; left--) {
        CHECK_EQ(get(ring, &number, much_later()), 0);
        CHECK(was_empty || last == 0 || number == 1000 || number == last + 1);
        last = number;
    }
    CHECK_EQ(number, 1000);
    CHECK_EQ(mpx_ring_count(ring), 0);
    CHECK_EQ(mpx_ring_bytes(ring), 0);
}

static bool is_readable(const mpx_ring_t *ring)
{
    struct pollfd polled = {.fd = ring->bell.reader, .events = POLLIN};
    return poll(&polled, 1, 0) == 1;
}

/* Where it is watched, it is readable if it has something; and not, once it has been found empty.
 * Who finds it so does not wait for long for a mutex: where it is a dead one's, the next one may
 * have it. */
static void check_readable(mpx_ring_t *ring)
{
    mpx_message_t message;
    mpx_ring_watch(ring);
    CHECK(mpx_ring_count(ring) == 0 || is_readable(ring));
    if (mpx_ring_count(ring) == 0) {
        do {
            CHECK_EQ(mpx_ring_try_get(ring, buffer, MPX_RING_INLINE, &message), -EAGAIN);
            mpx_ring_do_chores(ring);
        } while (is_readable(ring));
    }
}

static void check_killed_at_in(mpx_ring_t ring, const char *first, const char *second)
{
    size_t before = owned(&ring);
    signal_at_step(first, SIGKILL);
    CHECK(was_killed(wait_for(start_process(use, &ring))));
    if (second != NULL) {
        signal_at_step(second, SIGKILL);
        CHECK(was_killed(wait_for(start_process(use, &ring))));
    }
    signal_at_step(NULL, 0);
    check_readable(&ring);
    check_rest(&ring, second != NULL);
    check_bytes(&ring);
    check_rest(&ring, true);
    use(&ring);
    CHECK_EQ(owned(&ring), before);
    drop(&ring);
}

static void check_killed_at(const char *first, const char *second)
{
    check_killed_at_in(make_ring(), first, second);
    check_killed_at_in(make_counting(), first, second);
}

static void check_killed_at_each(const char *const *steps, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        check_killed_at(steps[i], NULL);
        plainly = true;
        check_killed_at(steps[i], NULL);
        plainly = false;
    }
}

TEST(a_producer_killed_at_each_step)
{
    static const char *const steps[] = {"ring_written",   "ring_gift_noted", "ring_given",
                                        "ring_published", "ring_link_noted", "ring_link_given",
                                        "ring_linked",    "ring_link_last"};
    check_killed_at_each(steps, MPX_ARRAY_LENGTH(steps));
    check_killed_at("ring_rung", NULL);
    check_killed_at("ring_watching", NULL);
}

TEST(a_consumer_killed_at_each_step)
{
    static const char *const steps[] = {"ring_copied",     "ring_take_noted",  "ring_taken",
                                        "ring_take_given", "ring_leave_noted", "ring_left",
                                        "ring_left_freed"};
    check_killed_at_each(steps, MPX_ARRAY_LENGTH(steps));
    check_killed_at("ring_quieting", NULL);
}

TEST(killed_while_counting_bytes)
{
    static const char *const steps[] = {"ring_written", "ring_published", "ring_copied",
                                        "ring_taken"};
    check_killed_at_in(make_counting(), "ring_summed", NULL);
    check_killed_at_in(make_counting(), "ring_summed", "ring_summed");
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        check_killed_at_in(make_counting(), "ring_summed", steps[i]);
        check_killed_at_in(make_counting(), steps[i], "ring_summed");
    }
}

/* ---- Several at once ------------------------------------------------------------------------- */

enum { SEVERAL = 10 };

/* Who only tries a dead one's mutex has it with the robust list alone: else the first one waits. */
static void put_several(void *argument)
{
    mpx_message_t messages[SEVERAL];
    uint32_t numbers[SEVERAL];
    size_t done;
    for (uint32_t i = 0; i < SEVERAL; i++) {
        numbers[i] = i;
        messages[i] = (mpx_message_t){.data = numbers + i, .size = sizeof(numbers[i])};
    }
    int status = mpx_ring_try_put_many(argument, messages, SEVERAL, &done);
    size_t first = status == -EBUSY;
    if (first == 1) {
        CHECK_EQ(mpx_ring_put(argument, messages, much_later()), 0);
        status = mpx_ring_try_put_many(argument, messages + 1, SEVERAL - 1, &done);
    }
    CHECK_EQ(status, 0);
    CHECK_EQ(done, SEVERAL - first);
}

static void get_several(void *argument)
{
    mpx_message_t messages[SEVERAL];
    uint32_t numbers[SEVERAL];
    size_t done;
    int status =
        mpx_ring_try_get_many(argument, numbers, sizeof(numbers), NULL, messages, SEVERAL, &done);
    size_t first = status == -EBUSY;
    if (first == 1) {
        CHECK_EQ(mpx_ring_get(argument, numbers, sizeof(*numbers), messages, much_later()), 0);
        status = mpx_ring_try_get_many(argument, numbers + 1, sizeof(numbers) - sizeof(*numbers),
                                       NULL, messages, SEVERAL - 1, &done);
    }
    CHECK_EQ(status, 0);
    CHECK_EQ(done, SEVERAL - first);
    for (uint32_t i = 0; i < SEVERAL; i++) {
        CHECK_EQ(numbers[i], i);
    }
}

static void check_several(void (*function)(void *), const char *step, uint32_t before,
                          uint32_t after)
{
    mpx_ring_t ring = make_ring();
    if (before > 0) {
        put_several(&ring);
    }
    signal_at_step(step, SIGKILL);
    CHECK(was_killed(wait_for(start_process(function, &ring))));
    signal_at_step(NULL, 0);
    CHECK_EQ(mpx_ring_count(&ring), after);
    if (after > 0) {
        get_several(&ring);
    }
    put_several(&ring);
    get_several(&ring);
    CHECK_EQ(mpx_ring_deaths(&ring), 1);
    drop(&ring);
}

TEST(of_several_all_or_none)
{
    check_several(put_several, "ring_written", 0, 0);
    check_several(put_several, "ring_published", 0, SEVERAL);
    check_several(get_several, "ring_copied", SEVERAL, SEVERAL);
    check_several(get_several, "ring_taken", SEVERAL, 0);
}

/* ---- While settling -------------------------------------------------------------------------- */

TEST(killed_while_settling)
{
    static const char *const links[] = {"ring_link_noted", "ring_link_given", "ring_linked",
                                        "ring_link_last"};
    static const char *const gifts[] = {"ring_gift_noted", "ring_given", "ring_published"};
    static const char *const leaves[] = {"ring_leave_noted", "ring_left", "ring_left_freed"};
    static const char *const takes[] = {"ring_take_noted", "ring_taken", "ring_take_given"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(links); i++) {
        check_killed_at(links[i], "ring_settled_link");
    }
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(gifts); i++) {
        check_killed_at(gifts[i], "ring_settled_gift");
        check_killed_at(leaves[i], "ring_settled_leave");
        check_killed_at(takes[i], "ring_settled_take");
    }
}

/* ---- Sleepers -------------------------------------------------------------------------------- */

static void wait_and_get(void *argument)
{
    uint32_t number;
    CHECK_EQ(get(argument, &number, much_later()), 0);
}

TEST(a_sleeper_killed_at_each_step_strands_nobody)
{
    static const char *const steps[] = {"ring_waiting", "ring_awake"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        mpx_ring_t ring = make_ring();
        signal_at_step(steps[i], SIGKILL);
        pid_t victim = start_process(wait_and_get, &ring);
        signal_at_step(NULL, 0);
        while (!(mpx_u64_load_relaxed(&ring.control->tail) & MPX_RING_SLEEPERS)) {
            usleep(100);
        }
        pid_t other = start_process(wait_and_get, &ring);
        usleep(10000);
        CHECK_EQ(put(&ring, 1, much_later()), 0);
        CHECK(was_killed(wait_for(victim)));
        CHECK_EQ(wait_for(other), 0);
        drop(&ring);
    }
}

static void shut(void *argument)
{
    mpx_ring_shut(argument);
}

TEST(shut_by_one_who_is_killed_before_the_wakes)
{
    mpx_ring_t ring = make_ring();
    mpx_message_t message;
    signal_at_step("ring_shut", SIGKILL);
    pid_t victim = start_process(shut, &ring);
    signal_at_step(NULL, 0);
    CHECK_EQ(mpx_ring_get(&ring, buffer, MPX_RING_INLINE, &message, much_later()), -EPIPE);
    CHECK(was_killed(wait_for(victim)));
    drop(&ring);
}

/* ---- A storm --------------------------------------------------------------------------------- */

enum { KILLS = 400, NUMBERS = 4 << 20, BACKLOG = 400 };

enum { NEVER_PUT, BEGUN, PUT };

struct storm {
    mpx_ring_t ring;
    mpx_atomic_u32 turns;
    mpx_atomic_u32 next;
    mpx_atomic_u32 broken;
    mpx_atomic_u32 state[NUMBERS];
    mpx_atomic_u32 got[NUMBERS];
};

static void put_next(struct storm *storm, mpx_ring_t *ring)
{
    uint32_t number = mpx_u32_fetch_add_relaxed(&storm->next, 1);
    if (number >= NUMBERS) {
        return;
    }
    mpx_u32_store_relaxed(&storm->state[number], BEGUN);
    if (put(ring, number, much_later()) != 0) {
        mpx_u32_fetch_add_relaxed(&storm->broken, 1);
    }
    mpx_u32_store_relaxed(&storm->state[number], PUT);
}

static void get_next(struct storm *storm, mpx_ring_t *ring)
{
    uint32_t number = 0;
    int status = get(ring, &number, mpx_os_deadline(MPX_NANOS_PER_MILLI));
    if (status == 0 && number < NUMBERS) {
        mpx_u32_fetch_add_relaxed(&storm->got[number], 1);
    } else if (status != -EAGAIN && status != -EBUSY) {
        mpx_u32_fetch_add_relaxed(&storm->broken, 1);
    }
}

/* Puts some, gets some: now and then so many that the ring grows, or is emptied. */
static void take_part(void *argument)
{
    struct storm *storm = argument;
    mpx_ring_t ring = storm->ring;
    unsigned seed = (unsigned)getpid();
    for (;;) {
        bool puts = rand_r(&seed) % 2 && mpx_ring_count(&ring) < BACKLOG;
        for (int i = rand_r(&seed) % 40; i > 0; i--) {
            (puts ? put_next : get_next)(storm, &ring);
            mpx_u32_fetch_add_relaxed(&storm->turns, 1);
        }
    }
}

TEST(killed_at_random_nothing_is_torn_repeated_or_leaked)
{
    struct storm *storm = shared_memory(sizeof(*storm));
    storm->ring = make_counting();
    size_t before = owned(&storm->ring);
    uint32_t number, lost = 0, repeated = 0;
    plainly = true;
    kill_at_random(take_part, storm, &storm->turns, emulated() ? KILLS / 10 : KILLS);
    while (mpx_ring_count(&storm->ring) > 0) {
        CHECK_EQ(get(&storm->ring, &number, much_later()), 0);
        mpx_u32_fetch_add_relaxed(&storm->got[number], 1);
    }
    CHECK_EQ(mpx_u32_load_relaxed(&storm->broken), 0);
    CHECK_EQ(mpx_ring_bytes(&storm->ring), 0);
    CHECK(emulated() || mpx_ring_deaths(&storm->ring) > 0);
    for (uint32_t i = 0; i < NUMBERS; i++) {
        uint32_t got = mpx_u32_load_relaxed(&storm->got[i]);
        repeated += got > 1;
        lost += got == 0 && mpx_u32_load_relaxed(&storm->state[i]) == PUT;
    }
    CHECK_EQ(repeated, 0);
    CHECK(lost <= KILLS + CONTENDERS); /* what one has in its hands when it dies */
    CHECK(mpx_u32_load_relaxed(&storm->next) < NUMBERS);
    use(&storm->ring);
    CHECK_EQ(owned(&storm->ring), before);
    drop(&storm->ring);
    free_shared_memory(storm, sizeof(*storm));
}
