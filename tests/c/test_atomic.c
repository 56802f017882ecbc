/* test_atomic.c - the atomic wrappers: values, and the edges a thread sanitizer can see. */
#include "harness.h"

#include "mpx_atomic.h"

#include <pthread.h>
#include <sched.h>

TEST(u32_operations)
{
    mpx_atomic_u32 word = {0};
    mpx_u32_store_relaxed(&word, 7);
    CHECK_EQ(mpx_u32_load_relaxed(&word), 7);
    mpx_u32_store_release(&word, 8);
    CHECK_EQ(mpx_u32_load_acquire(&word), 8);
    CHECK_EQ(mpx_u32_exchange_acquire(&word, 9), 8);
    CHECK_EQ(mpx_u32_exchange_release(&word, 10), 9);
    CHECK_EQ(mpx_u32_exchange_acq_rel(&word, 11), 10);
    CHECK_EQ(mpx_u32_fetch_add_relaxed(&word, 1), 11);
    CHECK_EQ(mpx_u32_fetch_add_acq_rel(&word, UINT32_MAX), 12);
    CHECK_EQ(mpx_u32_fetch_or_acq_rel(&word, 0xf0), 11);
    CHECK_EQ(mpx_u32_fetch_and_acq_rel(&word, 0xf0), 0xfb);
    CHECK_EQ(mpx_u32_load_relaxed(&word), 0xf0);
}

TEST(u64_operations_use_all_bits)
{
    const uint64_t big = UINT64_C(1) << 40;
    mpx_atomic_u64 word = {0};
    mpx_u64_store_relaxed(&word, big);
    CHECK(mpx_u64_load_relaxed(&word) == big);
    mpx_u64_store_release(&word, big + 1);
    CHECK(mpx_u64_load_acquire(&word) == big + 1);
    CHECK(mpx_u64_exchange_acq_rel(&word, big + 2) == big + 1);
    CHECK(mpx_u64_fetch_add_relaxed(&word, big) == big + 2);
    CHECK(mpx_u64_fetch_or_acq_rel(&word, 1) == 2 * big + 2);
    CHECK(mpx_u64_fetch_and_acq_rel(&word, 1) == 2 * big + 3);
    CHECK(mpx_u64_load_relaxed(&word) == 1);
}

TEST(compare_and_exchange_says_what_it_found)
{
    bool (*const variants[])(mpx_atomic_u32 *, uint32_t *, uint32_t) = {
        mpx_u32_cas_relaxed, mpx_u32_cas_acquire, mpx_u32_cas_release, mpx_u32_cas_acq_rel};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(variants); i++) {
        mpx_atomic_u32 word = {1};
        uint32_t expected = 2;
        CHECK(!variants[i](&word, &expected, 3));
        CHECK_EQ(expected, 1);
        CHECK_EQ(mpx_u32_load_relaxed(&word), 1);
        CHECK(variants[i](&word, &expected, 3));
        CHECK_EQ(mpx_u32_load_relaxed(&word), 3);
    }
}

TEST(pointer_operations)
{
    int one;
    int two;
    void *expected = NULL;
    mpx_atomic_ptr word = {NULL};
    CHECK(mpx_ptr_cas_release(&word, &expected, &one));
    CHECK(mpx_ptr_load_acquire(&word) == &one);
    CHECK(!mpx_ptr_cas_release(&word, &expected, &two));
    CHECK(expected == &one);
    CHECK(mpx_ptr_exchange_acquire(&word, NULL) == &one);
}

/* ---- Threads --------------------------------------------------------------------------------- */

enum { ROUNDS = 20000, THREADS = 4 };

/* Two threads hand plain data back and forth; each edge is a release and an acquire of `turn`. */
struct relay {
    mpx_atomic_u32 turn;
    unsigned data;
};

static void take_turns(struct relay *relay, uint32_t mine, uint32_t next)
{
    for (int i = 0; i < ROUNDS; i++) {
        while (mpx_u32_load_acquire(&relay->turn) != mine) {
            mpx_cpu_relax();
            sched_yield();
        }
        relay->data++;
        mpx_u32_store_release(&relay->turn, next);
    }
}

static void *second_runner(void *relay)
{
    take_turns(relay, 1, 0);
    return NULL;
}

TEST(release_and_acquire_publish_plain_data)
{
    struct relay relay = {.turn = {0}, .data = 0};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, second_runner, &relay) == 0);
    take_turns(&relay, 0, 1);
    pthread_join(thread, NULL);
    CHECK_EQ(relay.data, 2 * ROUNDS);
}

/* A spinning lock of each pair of operations, around plain data. */
struct guarded {
    mpx_atomic_u32 by_exchange;
    mpx_atomic_u32 by_cas;
    unsigned under_exchange;
    unsigned under_cas;
    mpx_atomic_u64 sum;
};

static void *use_guarded(void *argument)
{
    struct guarded *guarded = argument;
    for (int i = 0; i < ROUNDS / THREADS; i++) {
        while (mpx_u32_exchange_acquire(&guarded->by_exchange, 1) != 0) {
            sched_yield();
        }
        guarded->under_exchange++;
        CHECK_EQ(mpx_u32_exchange_release(&guarded->by_exchange, 0), 1);

        for (uint32_t free = 0; !mpx_u32_cas_acquire(&guarded->by_cas, &free, 1); free = 0) {
            sched_yield();
        }
        guarded->under_cas++;
        uint32_t held = 1;
        CHECK(mpx_u32_cas_release(&guarded->by_cas, &held, 0));

        mpx_u64_fetch_add_relaxed(&guarded->sum, 3);
    }
    return NULL;
}

TEST(read_modify_writes_exclude_each_other)
{
    struct guarded guarded = {.under_exchange = 0};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, use_guarded, &guarded) == 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    CHECK_EQ(guarded.under_exchange, ROUNDS);
    CHECK_EQ(guarded.under_cas, ROUNDS);
    CHECK_EQ(mpx_u64_load_relaxed(&guarded.sum), 3 * ROUNDS);
}
