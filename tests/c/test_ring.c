/* test_ring.c - the ring: order, contents, growth and trimming, limits, counters that wrap,
 * waiting. Deaths are in test_ring_crash.c, memory that is damaged in test_fuzz.c.
 */
#include "harness.h"

#include "mpx_ring_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned char buffer[MPX_RING_INLINE];

static int64_t soon(void)
{
    return mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
}

static mpx_arena_t *home(void)
{
    mpx_arena_t *arena;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    return arena;
}

static mpx_ring_t make_ring(uint32_t limit)
{
    mpx_ring_t ring;
    CHECK_EQ(mpx_ring_create(&ring, home(), limit), 0);
    return ring;
}

/* Bytes that tell which message they are of. */
static void fill(unsigned char *bytes, size_t size, uint32_t number)
{
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(number * 31 + i);
    }
}

static int put(mpx_ring_t *ring, uint32_t number, size_t size)
{
    static unsigned char bytes[MPX_RING_INLINE + 1];
    fill(bytes, size, number);
    mpx_message_t message = {.data = bytes, .size = size};
    return mpx_ring_put_now(ring, &message, much_later());
}

static void check_get(mpx_ring_t *ring, uint32_t number, size_t size)
{
    static unsigned char expected[MPX_RING_INLINE];
    mpx_message_t message;
    int status = mpx_ring_get_now(ring, buffer, MPX_RING_INLINE, &message, much_later());
    CHECK_EQ(status, 0);
    if (status == 0) {
        fill(expected, size, number);
        CHECK_EQ(message.size, size);
        CHECK(message.data == buffer && message.block == 0);
        CHECK(message.size == size && memcmp(buffer, expected, size) == 0);
    }
}

static int get_status(mpx_ring_t *ring)
{
    mpx_message_t message;
    return mpx_ring_get_now(ring, buffer, MPX_RING_INLINE, &message, much_later());
}

static size_t owned(mpx_ring_t *ring)
{
    mpx_heap_stats_t stats;
    mpx_heap_stats(ring->arena, &stats);
    return stats.owned;
}

/* ---- One thread ------------------------------------------------------------------------------ */

TEST(an_empty_ring)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    mpx_message_t message;
    CHECK_EQ(mpx_ring_count(&ring), 0);
    CHECK_EQ(mpx_ring_try_get(&ring, buffer, MPX_RING_INLINE, &message), -EAGAIN);
    CHECK_EQ(mpx_ring_get(&ring, buffer, MPX_RING_INLINE, &message, soon()), -EAGAIN);
    CHECK_EQ(mpx_ring_wait(&ring, soon()), -EAGAIN);
    mpx_ring_drop(&ring);
}

TEST(messages_of_every_length_in_order)
{
    static const uint32_t sizes[] = {0,  1,    7,    8,    9,     15,    16,
                                     17, 4000, 4096, 5000, 32768, 65000, MPX_RING_INLINE};
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    for (uint32_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        CHECK_EQ(put(&ring, i, sizes[i]), 0);
        CHECK_EQ(mpx_ring_count(&ring), i + 1);
    }
    CHECK_EQ(put(&ring, 0, MPX_RING_INLINE + 1), -EMSGSIZE);
    for (uint32_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        CHECK_EQ(mpx_ring_wait(&ring, mpx_os_now()), 0);
        check_get(&ring, i, sizes[i]);
    }
    CHECK_EQ(get_status(&ring), -EAGAIN);
    CHECK_EQ(mpx_ring_count_put(&ring), MPX_ARRAY_LENGTH(sizes));
    mpx_ring_drop(&ring);
}

TEST(a_ring_is_found_by_its_slot)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED), again;
    mpx_slot_t lock;
    CHECK_EQ(mpx_slot_new(ring.arena, &lock), 0);
    CHECK_EQ(mpx_ring_open(&again, ring.arena, lock), -EPROTO);
    CHECK_EQ(mpx_ring_open(&again, ring.arena, 0), -EPROTO);
    CHECK_EQ(mpx_ring_open(&again, ring.arena, ring.slot), 0);
    CHECK_EQ(put(&ring, 1, 100), 0);
    check_get(&again, 1, 100);
    mpx_slot_drop(ring.arena, lock);
    mpx_ring_drop(&ring);
}

TEST(what_is_dropped_gives_its_memory_back)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    size_t before = owned(&ring);
    for (uint32_t i = 0; i < 1000; i++) {
        CHECK_EQ(put(&ring, i, 5000), 0);
    }
    CHECK(owned(&ring) > before);
    mpx_ring_t other = make_ring(1);
    mpx_ring_drop(&ring);
    CHECK_EQ(owned(&other), before);
    mpx_ring_drop(&other);
}

/* ---- A model --------------------------------------------------------------------------------- */

static size_t random_size(uint32_t number)
{
    static const uint32_t most[] = {1, 16, 40, 200, 3000, 20000, MPX_RING_INLINE};
    uint32_t mixed = number * UINT32_C(2654435761);
    return (mixed >> 8) % (most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)] + 1);
}

/* Puts and gets at random, with bursts, against two counters: the queue that this has to be. */
static void live(mpx_ring_t *ring, uint32_t limit, int rounds)
{
    uint32_t first = 0, next = 0;
    for (int round = 0; round < rounds; round++) {
        uint32_t burst = random_below(round % 16 == 0 ? 400 : 12);
        for (uint32_t i = 0; i < burst; i++) {
            int status = put(ring, next, random_size(next));
            CHECK_EQ(status, next - first < limit ? 0 : -EAGAIN);
            next += status == 0;
        }
        CHECK_EQ(mpx_ring_count(ring), next - first);
        burst = random_below(round % 16 == 15 ? 1000 : 12);
        for (uint32_t i = 0; i < burst && first != next; i++) {
            check_get(ring, first, random_size(first));
            first++;
        }
        CHECK_EQ(mpx_ring_count(ring), next - first);
    }
    for (; first != next; first++) {
        check_get(ring, first, random_size(first));
    }
    CHECK_EQ(get_status(ring), -EAGAIN);
}

TEST(random_puts_and_gets)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    live(&ring, MPX_RING_UNLIMITED, emulated() ? 100 : 1000);
    mpx_ring_drop(&ring);
}

TEST(random_puts_and_gets_with_a_limit)
{
    mpx_ring_t ring = make_ring(7);
    live(&ring, 7, emulated() ? 100 : 1000);
    mpx_ring_drop(&ring);
}

/* The same with several at once. */
static uint32_t put_batch(mpx_ring_t *ring, uint32_t first, uint32_t count)
{
    static unsigned char bytes[16][MPX_RING_INLINE];
    mpx_message_t messages[16];
    uint32_t put = 0;
    for (uint32_t i = 0; i < count; i++) {
        size_t size = random_size(first + i);
        fill(bytes[i], size, first + i);
        messages[i] = (mpx_message_t){.data = bytes[i], .size = size};
    }
    while (put < count) {
        size_t done;
        int status = mpx_ring_try_put_many(ring, messages + put, count - put, &done);
        CHECK((status == 0) == (done > 0));
        CHECK(status == 0 || status == -EAGAIN || status == -EBUSY);
        if (status == -EAGAIN) {
            break;
        }
        if (status == -EBUSY) { /* it has to grow */
            CHECK_EQ(mpx_ring_put_now(ring, messages + put, much_later()), 0);
            done = 1;
        }
        put += (uint32_t)done;
    }
    return put;
}

static uint32_t get_batch(mpx_ring_t *ring, uint32_t first, uint32_t count)
{
    static unsigned char expected[MPX_RING_INLINE];
    mpx_message_t messages[16];
    size_t done;
    int status = mpx_ring_try_get_many(ring, buffer, sizeof(buffer), NULL, messages, count, &done);
    CHECK((status == 0) == (done > 0));
    unsigned char *at = buffer;
    for (uint32_t i = 0; i < done; i++) {
        fill(expected, random_size(first + i), first + i);
        CHECK(messages[i].room == at && messages[i].size == random_size(first + i));
        CHECK(memcmp(at, expected, messages[i].size) == 0);
        at += messages[i].size;
    }
    return (uint32_t)done;
}

static void live_in_batches(mpx_ring_t *ring, uint32_t limit, int rounds)
{
    uint32_t first = 0, next = 0;
    for (int round = 0; round < rounds; round++) {
        for (uint32_t burst = random_below(8); burst > 0; burst--) {
            uint32_t count = 1 + random_below(16), put = put_batch(ring, next, count);
            CHECK(put == count || next + put - first == limit);
            next += put;
        }
        for (uint32_t burst = random_below(10); burst > 0 && first != next; burst--) {
            uint32_t got = get_batch(ring, first, 1 + random_below(16));
            REQUIRE(got > 0);
            first += got;
        }
        CHECK_EQ(mpx_ring_count(ring), next - first);
    }
}

TEST(random_batches)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED), limited = make_ring(21);
    live_in_batches(&ring, MPX_RING_UNLIMITED, emulated() ? 50 : 500);
    live_in_batches(&limited, 21, emulated() ? 50 : 500);
    mpx_ring_drop(&ring);
    mpx_ring_drop(&limited);
}

/* Begins where the counters are about to wrap. */
static void set_counters(mpx_ring_t *ring, uint32_t position, uint32_t messages)
{
    mpx_u64_store_relaxed(&ring->control->head, mpx_ring_word(position, messages));
    mpx_u64_store_relaxed(&ring->control->tail, mpx_ring_word(position, messages));
    ring->control->head_seen = ring->control->tail_seen = mpx_ring_word(position, messages);
    ring->control->room_from = position;
}

TEST(counters_that_wrap)
{
    for (uint32_t before = 0; before < 3000; before += 113) {
        mpx_ring_t ring = make_ring(before % 2 ? MPX_RING_UNLIMITED : 50);
        set_counters(&ring, UINT32_MAX - 40 * before, UINT32_MAX / 2 - before);
        live(&ring, before % 2 ? MPX_RING_UNLIMITED : 50, 50);
        mpx_ring_drop(&ring);
    }
}

/* ---- Growth ---------------------------------------------------------------------------------- */

TEST(a_million_messages_before_the_first_get)
{
    uint32_t count = emulated() ? 20000 : 1000000;
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    size_t before = owned(&ring);
    unsigned char bytes[100];
    mpx_message_t message = {.data = bytes, .size = sizeof(bytes)};
    for (uint32_t i = 0; i < count; i++) {
        memset(bytes, (int)i, sizeof(bytes));
        if (mpx_ring_put_now(&ring, &message, much_later()) != 0) {
            CHECK(false);
            break;
        }
    }
    CHECK_EQ(mpx_ring_count(&ring), count);
    for (uint32_t i = 0; i < count; i++) {
        if (mpx_ring_try_get(&ring, buffer, MPX_RING_INLINE, &message) != 0 ||
            message.size != sizeof(bytes) || buffer[0] != (unsigned char)i ||
            buffer[99] != (unsigned char)i) {
            CHECK(false);
            break;
        }
    }
    CHECK(mpx_ring_has_chores(&ring));
    mpx_ring_do_chores(&ring);
    CHECK(!mpx_ring_has_chores(&ring));
    CHECK_EQ(owned(&ring), before); /* drained, it is as short as it was */
    live(&ring, MPX_RING_UNLIMITED, 20);
    mpx_ring_drop(&ring);
}

TEST(a_segment_that_cannot_be_had)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    uint32_t count = 0;
    for (; count < 40; count++) {
        CHECK_EQ(put(&ring, count, 1000), 0);
    }
    inject("fallocate", ENOSPC, 0, ALWAYS);
    int status;
    while ((status = put(&ring, count, 1000)) == 0) {
        count++;
        REQUIRE(count < 100000);
    }
    CHECK_EQ(status, -ENOSPC);
    CHECK_EQ(put(&ring, count, 1000), -ENOSPC);
    inject_nothing();
    CHECK_EQ(mpx_ring_count(&ring), count);
    CHECK_EQ(put(&ring, count, 1000), 0);
    for (uint32_t i = 0; i <= count; i++) {
        check_get(&ring, i, 1000);
    }
    mpx_ring_drop(&ring);
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

static mpx_block_t make_block(mpx_ring_t *ring, uint32_t number, size_t size)
{
    mpx_block_t block = 0;
    mpx_heap_owner_t own;
    void *address;
    CHECK_EQ(mpx_heap_own(ring->arena, &own), 0);
    CHECK_EQ(mpx_heap_new(ring->arena, own, size, &block, &address), 0);
    if (block != 0) {
        fill(address, size, number);
    }
    return block;
}

static bool free_block(mpx_ring_t *ring, mpx_block_t block)
{
    mpx_heap_owner_t own;
    CHECK_EQ(mpx_heap_own(ring->arena, &own), 0);
    return mpx_heap_free(ring->arena, block, own);
}

TEST(a_block_changes_hands)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    size_t before = owned(&ring), size;
    mpx_block_t block = make_block(&ring, 5, 200000);
    mpx_message_t message = {.data = "with", .size = 4, .block = block}, got;
    CHECK_EQ(mpx_ring_try_put(&ring, &message), 0);
    CHECK(!free_block(&ring, block)); /* it is the ring's */
    CHECK_EQ(mpx_ring_try_put(&ring, &message), -EPROTO);
    CHECK_EQ(mpx_ring_try_get(&ring, buffer, MPX_RING_INLINE, &got), 0);
    CHECK(got.block == block && got.size == 4 && memcmp(buffer, "with", 4) == 0);
    unsigned char *address = mpx_heap_at(ring.arena, got.block, &size);
    CHECK(size >= 200000 && address[199999] == (unsigned char)(5 * 31 + 199999));
    CHECK(free_block(&ring, got.block));
    CHECK(!free_block(&ring, got.block));
    CHECK_EQ(owned(&ring), before);
    mpx_ring_drop(&ring);
}

TEST(a_block_is_put_and_taken_alone)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    mpx_block_t block = make_block(&ring, 1, 70000);
    mpx_message_t messages[] = {{.data = "a", .size = 1},
                                {.data = "bb", .size = 2, .block = block},
                                {.data = "ccc", .size = 3},
                                {.data = buffer, .size = MPX_RING_INLINE + 1}};
    mpx_message_t got[4];
    size_t done, put = 0;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(mpx_ring_try_put_many(&ring, messages + put, 4 - put, &done), 0);
        CHECK_EQ(done, 1);
        put += done;
    }
    CHECK_EQ(mpx_ring_try_put_many(&ring, messages + put, 1, &done), -EMSGSIZE);
    for (size_t i = 1; i <= 3; i++) {
        CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 4, NULL, got, 4, &done), 0);
        CHECK(done == 1 && got->size == i);
    }
    CHECK(free_block(&ring, block));
    mpx_ring_drop(&ring);
}

static bool starts_with_a(const void *data, size_t size, mpx_block_t block)
{
    return size > 0 && *(const char *)data == 'a' && block == 0;
}

TEST(only_what_is_wanted_is_taken)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    mpx_block_t block = make_block(&ring, 1, 70000);
    mpx_message_t messages[] = {{.data = "a1", .size = 2},
                                {.data = "a2", .size = 2},
                                {.data = "b", .size = 1},
                                {.data = "a3", .size = 2},
                                {.data = "a4", .size = 2, .block = block}};
    mpx_message_t got[5];
    size_t done;
    CHECK_EQ(mpx_ring_try_put_many(&ring, messages, 5, &done), 0);
    CHECK_EQ(done, 4);
    CHECK_EQ(mpx_ring_try_put_many(&ring, messages + 4, 1, &done), 0);
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 100, starts_with_a, got, 5, &done), 0);
    CHECK(done == 2 && memcmp(buffer, "a1a2", 4) == 0);
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 100, starts_with_a, got, 5, &done), -ENOMSG);
    CHECK(done == 0 && mpx_ring_count(&ring) == 3);
    CHECK_EQ(mpx_ring_try_get(&ring, buffer, 100, got), 0);
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 1, starts_with_a, got, 5, &done), -ENOBUFS);
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 100, starts_with_a, got, 5, &done), 0);
    CHECK(done == 1 && memcmp(buffer, "a3", 2) == 0);
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 100, starts_with_a, got, 5, &done), -ENOMSG);
    CHECK_EQ(mpx_ring_try_get(&ring, buffer, 100, got), 0);
    CHECK(free_block(&ring, got->block));
    CHECK_EQ(mpx_ring_try_get_many(&ring, buffer, 100, starts_with_a, got, 5, &done), -EAGAIN);
    mpx_ring_drop(&ring);
}

TEST(blocks_in_a_dropped_ring_are_free)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED), other = make_ring(1);
    size_t before = owned(&ring);
    for (uint32_t i = 0; i < 10; i++) {
        mpx_message_t message = {.data = "", .size = 0, .block = make_block(&ring, i, 70000)};
        CHECK_EQ(mpx_ring_put_now(&ring, &message, much_later()), 0);
    }
    CHECK(owned(&ring) > before);
    mpx_ring_drop(&ring);
    CHECK_EQ(owned(&other), before / 2);
    mpx_ring_drop(&other);
}

/* ---- Limits, shutting, waiting --------------------------------------------------------------- */

TEST(a_limit_is_exact)
{
    mpx_ring_t ring = make_ring(3);
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(put(&ring, i, 10), 0);
    }
    mpx_message_t message = {.data = "x", .size = 1};
    CHECK_EQ(mpx_ring_try_put(&ring, &message), -EAGAIN);
    CHECK_EQ(mpx_ring_put(&ring, &message, soon()), -EAGAIN);
    check_get(&ring, 0, 10);
    CHECK_EQ(put(&ring, 3, 10), 0);
    CHECK_EQ(put(&ring, 4, 10), -EAGAIN);
    CHECK_EQ(mpx_ring_count(&ring), 3);
    mpx_ring_drop(&ring);
}

static int put_bytes(mpx_ring_t *ring, size_t size, mpx_block_t block, uint64_t bytes)
{
    mpx_message_t message = {.data = buffer, .size = size, .block = block, .bytes = bytes};
    return mpx_ring_put(ring, &message, soon());
}

TEST(a_limit_of_bytes_is_exact)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    mpx_message_t got;
    mpx_ring_limit_bytes(&ring, 1000);
    CHECK_EQ(mpx_ring_most_bytes(&ring), 1000);
    CHECK_EQ(put_bytes(&ring, 1001, 0, 0), -EMSGSIZE);
    CHECK_EQ(put_bytes(&ring, 600, 0, 0), 0);
    CHECK_EQ(put_bytes(&ring, 401, 0, 0), -EAGAIN);
    CHECK(!mpx_ring_is_full(&ring));
    CHECK_EQ(put_bytes(&ring, 400, 0, 0), 0);
    CHECK(mpx_ring_is_full(&ring));
    CHECK_EQ(mpx_ring_bytes(&ring), 1000);
    CHECK_EQ(put_bytes(&ring, 0, 0, 0), 0); /* it takes none */
    CHECK_EQ(put_bytes(&ring, 1, 0, 0), -EAGAIN);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(get_status(&ring), 0);
    }
    CHECK_EQ(mpx_ring_bytes(&ring), 0);
    mpx_block_t block = make_block(&ring, 1, 100000);
    CHECK_EQ(put_bytes(&ring, 8, block, 1001), -EMSGSIZE);
    CHECK_EQ(put_bytes(&ring, 8, block, 999), 0);
    CHECK_EQ(mpx_ring_bytes(&ring), 999);
    CHECK_EQ(put_bytes(&ring, 2, 0, 0), -EAGAIN);
    CHECK_EQ(mpx_ring_get_now(&ring, buffer, MPX_RING_INLINE, &got, much_later()), 0);
    CHECK(got.block == block && got.bytes == 999 && got.size == 8);
    CHECK(free_block(&ring, block));
    CHECK_EQ(mpx_ring_bytes(&ring), 0);
    mpx_ring_drop(&ring);
}

/* Against a sum, with several at once and through growth, drains and counters that wrap. */
TEST(random_messages_with_a_limit_of_bytes)
{
    for (uint32_t most = 2000; most <= 20u << 20; most *= 100) {
        mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
        uint64_t bytes = 0;
        mpx_ring_limit_bytes(&ring, most);
        for (int round = 0; round < (emulated() ? 300 : 3000); round++) {
            static unsigned char data[MPX_RING_INLINE];
            mpx_message_t messages[8];
            size_t done = 0, count = 1 + random_below(8);
            bool puts = random_below(round / 256 % 2 == 0 ? 3 : 5) < 2;
            for (size_t i = 0; puts && i < count; i++) {
                messages[i] = (mpx_message_t){.data = data, .size = random_below(most / 4) % 60000};
            }
            int status = puts ? mpx_ring_try_put_many(&ring, messages, count, &done) : 0;
            if (status == -EBUSY) { /* the ring has to grow */
                CHECK(done == 0);
                status = mpx_ring_put_now(&ring, messages, much_later());
                done = status == 0;
            }
            CHECK(status == 0 || (done == 0 && bytes + messages[0].size > most));
            if (!puts && mpx_ring_try_get_many(&ring, buffer, sizeof(buffer), NULL, messages, count,
                                               &done) < 0) {
                CHECK(done == 0 && mpx_ring_count(&ring) == 0);
            }
            for (size_t i = 0; i < done; i++) {
                bytes += puts ? messages[i].size : -messages[i].size;
            }
            CHECK(bytes <= most);
            CHECK_EQ(mpx_ring_bytes(&ring), bytes);
        }
        mpx_ring_drop(&ring);
    }
}

struct pair {
    mpx_ring_t ring;
    size_t size;
};

static void put_when_there_is_room(void *argument)
{
    struct pair *pair = argument;
    mpx_message_t message = {.data = buffer, .size = pair->size};
    CHECK_EQ(mpx_ring_put(&pair->ring, &message, much_later()), 0);
}

/* Whoever has room is woken, also where another one sleeps who has none yet. */
TEST(who_waits_for_bytes_is_woken)
{
    struct pair small = {make_ring(MPX_RING_UNLIMITED), 100}, large;
    mpx_ring_limit_bytes(&small.ring, 1000);
    large = (struct pair){small.ring, 900};
    CHECK_EQ(put_bytes(&small.ring, 200, 0, 0), 0);
    CHECK_EQ(put_bytes(&small.ring, 750, 0, 0), 0);
    pid_t second = start_process(put_when_there_is_room, &large);
    usleep(10000);
    pid_t first = start_process(put_when_there_is_room, &small);
    usleep(10000);
    CHECK_EQ(get_status(&small.ring), 0);
    CHECK_EQ(wait_for(first), 0);
    CHECK_EQ(mpx_ring_bytes(&small.ring), 850);
    CHECK_EQ(get_status(&small.ring), 0);
    CHECK_EQ(wait_for(second), 0);
    CHECK_EQ(mpx_ring_bytes(&small.ring), 1000);
    mpx_ring_drop(&small.ring);
}

TEST(a_shut_ring_gives_what_it_has)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    mpx_message_t message = {.data = "x", .size = 1};
    CHECK_EQ(put(&ring, 1, 10), 0);
    CHECK(!mpx_ring_is_shut(&ring));
    mpx_ring_shut(&ring);
    CHECK(mpx_ring_is_shut(&ring));
    CHECK_EQ(put(&ring, 1, 10), -EPIPE);
    CHECK_EQ(mpx_ring_try_put(&ring, &message), -EPIPE);
    CHECK_EQ(mpx_ring_wait(&ring, MPX_NEVER), 0);
    check_get(&ring, 1, 10);
    CHECK_EQ(mpx_ring_get(&ring, buffer, MPX_RING_INLINE, &message, MPX_NEVER), -EPIPE);
    CHECK_EQ(mpx_ring_try_get(&ring, buffer, MPX_RING_INLINE, &message), -EPIPE);
    CHECK_EQ(mpx_ring_wait(&ring, MPX_NEVER), -EPIPE);
    mpx_ring_drop(&ring);
}

static void get_until_shut(void *argument)
{
    mpx_ring_t *ring = argument;
    mpx_message_t message;
    unsigned char *bytes = malloc(MPX_RING_INLINE);
    int status;
    do {
        status = mpx_ring_get(ring, bytes, MPX_RING_INLINE, &message, much_later());
    } while (status == 0);
    CHECK_EQ(status, -EPIPE);
    free(bytes);
}

static void put_until_shut(void *argument)
{
    mpx_ring_t *ring = argument;
    mpx_message_t message = {.data = "x", .size = 1};
    int status;
    do {
        status = mpx_ring_put(ring, &message, much_later());
    } while (status == 0);
    CHECK_EQ(status, -EPIPE);
}

static void sleep_then_shut(void *argument)
{
    mpx_ring_t *ring = argument;
    usleep(20000);
    mpx_ring_shut(ring);
}

TEST(shutting_wakes_all_who_wait)
{
    mpx_ring_t empty = make_ring(MPX_RING_UNLIMITED), full = make_ring(1);
    pid_t pids[7];
    for (int i = 0; i < 3; i++) {
        pids[i] = start_process(get_until_shut, &empty);
        pids[3 + i] = start_process(put_until_shut, &full);
    }
    pids[6] = start_process(sleep_then_shut, &empty);
    usleep(20000);
    mpx_ring_shut(&full);
    for (int i = 0; i < 7; i++) {
        CHECK_EQ(wait_for(pids[i]), 0);
    }
    mpx_ring_drop(&empty);
    mpx_ring_drop(&full);
}

TEST(a_signal_ends_a_wait)
{
    mpx_ring_t empty = make_ring(MPX_RING_UNLIMITED), full = make_ring(1);
    mpx_message_t message = {.data = "x", .size = 1};
    CHECK_EQ(mpx_ring_try_put(&full, &message), 0);
    pid_t signaller = start_interrupting();
    CHECK_EQ(mpx_ring_get(&empty, buffer, MPX_RING_INLINE, &message, much_later()), -EINTR);
    CHECK_EQ(mpx_ring_wait(&empty, much_later()), -EINTR);
    message = (mpx_message_t){.data = "x", .size = 1};
    CHECK_EQ(mpx_ring_put(&full, &message, much_later()), -EINTR);
    kill(signaller, SIGKILL);
    wait_for(signaller);
    mpx_ring_drop(&empty);
    mpx_ring_drop(&full);
}

/* ---- The bell -------------------------------------------------------------------------------- */

static bool is_readable(const mpx_ring_t *ring)
{
    struct pollfd polled = {.fd = ring->bell.reader, .events = POLLIN};
    return poll(&polled, 1, 0) == 1;
}

static mpx_ring_t make_watched(void)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    CHECK_EQ(mpx_bell_new(&ring.bell), 0);
    mpx_ring_watch(&ring);
    return ring;
}

static void drop_watched(mpx_ring_t *ring)
{
    mpx_bell_close_reader(&ring->bell);
    mpx_bell_close_writer(&ring->bell);
    mpx_ring_drop(ring);
}

TEST(a_watched_ring_is_readable_while_it_has_something)
{
    mpx_ring_t ring = make_watched();
    for (int round = 0; round < 3; round++) {
        CHECK(!is_readable(&ring));
        CHECK_EQ(put(&ring, 1, 10), 0);
        CHECK_EQ(put(&ring, 2, 10), 0);
        CHECK(is_readable(&ring));
        check_get(&ring, 1, 10);
        CHECK(is_readable(&ring));
        check_get(&ring, 2, 10);
        CHECK(!is_readable(&ring));
    }
    drop_watched(&ring);
}

TEST(a_ring_that_is_watched_late)
{
    mpx_ring_t ring = make_ring(MPX_RING_UNLIMITED);
    CHECK_EQ(mpx_bell_new(&ring.bell), 0);
    CHECK_EQ(put(&ring, 1, 10), 0);
    CHECK(!is_readable(&ring));
    mpx_ring_watch(&ring);
    CHECK(is_readable(&ring));
    check_get(&ring, 1, 10);
    CHECK(!is_readable(&ring));
    drop_watched(&ring);
}

TEST(a_shut_ring_is_readable)
{
    mpx_ring_t ring = make_watched();
    CHECK_EQ(put(&ring, 1, 10), 0);
    mpx_ring_shut(&ring);
    check_get(&ring, 1, 10);
    CHECK(is_readable(&ring));
    drop_watched(&ring);
    ring = make_watched();
    mpx_ring_shut(&ring);
    CHECK(is_readable(&ring));
    CHECK_EQ(get_status(&ring), -EPIPE);
    CHECK(is_readable(&ring));
    drop_watched(&ring);
    ring = make_ring(MPX_RING_UNLIMITED); /* watched after that */
    CHECK_EQ(mpx_bell_new(&ring.bell), 0);
    mpx_ring_shut(&ring);
    mpx_ring_watch(&ring);
    CHECK(is_readable(&ring));
    drop_watched(&ring);
}

/* A producer without its end does not keep others from ringing. */
TEST(a_producer_that_has_lost_its_end)
{
    mpx_ring_t ring = make_watched(), other = ring;
    other.bell.writer = -1;
    CHECK_EQ(put(&other, 1, 10), 0);
    CHECK(!is_readable(&ring));
    CHECK_EQ(put(&ring, 2, 10), 0);
    CHECK(is_readable(&ring));
    check_get(&ring, 1, 10);
    check_get(&ring, 2, 10);
    CHECK(!is_readable(&ring));
    mpx_ring_close_ends(&ring, false, true);
    CHECK_EQ(ring.bell.writer, -1);
    CHECK(mpx_bell_has_no_writer(&ring.bell));
    mpx_ring_close_ends(&ring, true, false);
    CHECK_EQ(ring.bell.reader, -1);
    drop_watched(&ring);
}

TEST(a_bell_of_which_an_end_is_another_file_is_not_touched)
{
    mpx_ring_t ring = make_watched();
    char byte;
    int other[2];
    CHECK_EQ(mpx_os_pipe(other), 0);
    int reader = dup(ring.bell.reader), writer = dup(ring.bell.writer);
    CHECK(dup2(other[1], ring.bell.writer) >= 0);
    CHECK(dup2(other[0], ring.bell.reader) >= 0);
    CHECK_EQ(put(&ring, 1, 10), 0);
    CHECK_EQ(fcntl(other[0], F_SETFL, O_NONBLOCK), 0);
    CHECK_EQ(read(other[0], &byte, 1), -1);
    CHECK_EQ(write(other[1], "x", 1), 1);
    check_get(&ring, 1, 10);
    CHECK_EQ(read(other[0], &byte, 1), 1);
    CHECK(!mpx_bell_has_no_writer(&ring.bell) && !mpx_bell_has_no_reader(&ring.bell));
    CHECK(dup2(reader, ring.bell.reader) >= 0 && dup2(writer, ring.bell.writer) >= 0);
    close(reader);
    close(writer);
    close(other[0]);
    close(other[1]);
    drop_watched(&ring);
}

TEST(an_end_that_nobody_has)
{
    mpx_bell_t bell;
    CHECK_EQ(mpx_bell_new(&bell), 0);
    CHECK(!mpx_bell_has_no_writer(&bell) && !mpx_bell_has_no_reader(&bell));
    mpx_bell_t reader = bell, writer = bell;
    mpx_bell_close_writer(&writer);
    CHECK(mpx_bell_has_no_writer(&reader));
    CHECK(!mpx_bell_has_no_reader(&writer));
    mpx_bell_close_reader(&reader);
    mpx_bell_ring(&reader); /* no SIGPIPE, no error */
    CHECK_EQ(mpx_bell_new(&bell), 0);
    mpx_bell_close_reader(&bell);
    CHECK(mpx_bell_has_no_reader(&bell));
    mpx_bell_ring(&bell);
    mpx_bell_close_writer(&bell);
    CHECK_EQ(mpx_bell_adopt(&bell, -1, -1), -EBADF);
    inject("bell_nonblock", EINVAL, 1, 1);
    CHECK_EQ(mpx_bell_new(&bell), -EINVAL);
}

/* ---- Many at once ---------------------------------------------------------------------------- */

enum { EACH = 20000 };

struct crowd {
    mpx_ring_t ring;
    mpx_atomic_u32 next; /* numbers of those who come */
    mpx_atomic_u32 got;
    mpx_atomic_u32 wrong;
    mpx_atomic_u32 seen[2 * EACH];
};

/* Half of them put, half of them get; a message is the number of its producer and its own. */
static void take_part(void *argument)
{
    struct crowd *crowd = argument;
    mpx_ring_t ring = crowd->ring;
    uint32_t me = mpx_u32_fetch_add_relaxed(&crowd->next, 1);
    uint32_t each = emulated() ? EACH / 20 : EACH;
    if (me % 2 == 0) {
        for (uint32_t i = 0; i < each; i++) {
            uint32_t bytes[64] = {me / 2, i};
            mpx_message_t message = {.data = bytes, .size = 8 + i % 200};
            CHECK_EQ(mpx_ring_put(&ring, &message, much_later()), 0);
        }
        return;
    }
    uint32_t *bytes = malloc(MPX_RING_INLINE), last[2] = {0};
    while (mpx_u32_fetch_add_relaxed(&crowd->got, 1) < 2 * each) {
        mpx_message_t message;
        CHECK_EQ(mpx_ring_get(&ring, bytes, MPX_RING_INLINE, &message, much_later()), 0);
        if (bytes[0] > 1 || bytes[1] >= each || message.size != 8 + bytes[1] % 200 ||
            bytes[1] + 1 <= last[bytes[0]]) {
            mpx_u32_fetch_add_relaxed(&crowd->wrong, 1);
            continue;
        }
        last[bytes[0]] = bytes[1] + 1; /* one producer's messages come in their order */
        mpx_u32_fetch_add_relaxed(&crowd->seen[bytes[0] * EACH + bytes[1]], 1);
    }
    free(bytes);
}

static void check_crowd(struct crowd *crowd, uint32_t limit, void (*run)(void (*)(void *), void *))
{
    memset(crowd, 0, sizeof(*crowd));
    crowd->ring = make_ring(limit);
    run(take_part, crowd);
    CHECK_EQ(mpx_u32_load_relaxed(&crowd->wrong), 0);
    uint32_t each = emulated() ? EACH / 20 : EACH, missing = 0;
    for (uint32_t i = 0; i < 2 * EACH; i++) {
        missing += mpx_u32_load_relaxed(&crowd->seen[i]) != (i % EACH < each);
    }
    CHECK_EQ(missing, 0);
    CHECK_EQ(mpx_ring_count(&crowd->ring), 0);
    mpx_ring_drop(&crowd->ring);
}

TEST(processes_put_and_get)
{
    struct crowd *crowd = shared_memory(sizeof(*crowd));
    check_crowd(crowd, MPX_RING_UNLIMITED, run_in_processes);
    check_crowd(crowd, 5, run_in_processes);
    free_shared_memory(crowd, sizeof(*crowd));
}

/* Threads use one handle. */
static void take_part_in_thread(void *argument)
{
    take_part(argument);
}

TEST(threads_put_and_get)
{
    struct crowd *crowd = shared_memory(sizeof(*crowd));
    memset(crowd, 0, sizeof(*crowd));
    crowd->ring = make_ring(MPX_RING_UNLIMITED);
    run_in_threads(take_part_in_thread, crowd);
    CHECK_EQ(mpx_u32_load_relaxed(&crowd->wrong), 0);
    CHECK_EQ(mpx_ring_count(&crowd->ring), 0);
    mpx_ring_drop(&crowd->ring);
    free_shared_memory(crowd, sizeof(*crowd));
}
