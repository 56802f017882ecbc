/* test_spsc.c - the ring of one producer and one consumer: what goes through it, where it wraps,
 * what it has room for, damage, and how both ends wait. Deaths are in test_crew_crash.c.
 */
#include "harness.h"

#include "mpx_spsc.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

enum { CAPACITY = 1024, UNIT = MPX_SPSC_UNIT, MOST = CAPACITY / 4, RECORDS = 200000 };

/* A ring, and its two ends. */
struct ring {
    mpx_spsc_words_t words;
    MPX_ALIGNED(MPX_CACHE_LINE) unsigned char data[CAPACITY];
    mpx_spsc_t producer;
    mpx_spsc_t consumer;
};

static void open_at(struct ring *ring, uint64_t position)
{
    memset(ring, 0, sizeof(*ring));
    mpx_spsc_init(&ring->words);
    mpx_u64_store_relaxed(&ring->words.tail, position << 1);
    mpx_u64_store_relaxed(&ring->words.head, position << 1);
    mpx_spsc_open_producer(&ring->producer, &ring->words, ring->data, CAPACITY);
    mpx_spsc_open_consumer(&ring->consumer, &ring->words, ring->data, CAPACITY);
}

static int64_t soon(void)
{
    return mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
}

/* Bytes that belong to the number. */
static void fill(unsigned char *bytes, uint32_t number, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(number * 31 + i * 7);
    }
}

static bool is_as_filled(const unsigned char *bytes, uint32_t number, uint32_t size)
{
    for (uint32_t i = 0; i < size; i++) {
        if (bytes[i] != (unsigned char)(number * 31 + i * 7)) {
            return false;
        }
    }
    return true;
}

/* Commits a record, where there is room. */
static bool put(mpx_spsc_t *end, uint32_t number, uint32_t size)
{
    unsigned char *room = mpx_spsc_reserve(end, size);
    if (room == NULL) {
        return false;
    }
    fill(room, number, size);
    mpx_spsc_commit(
        end, (mpx_spsc_header_t){.size = size, .kind = 7, .number = number, .extra = number + 1});
    return true;
}

static bool is_record(const mpx_spsc_header_t *header, const void *data, uint32_t number,
                      uint32_t size)
{
    return header->size == size && header->kind == 7 && header->number == number &&
           header->extra == number + 1 && is_as_filled(data, number, size);
}

static void take(mpx_spsc_t *end, uint32_t number, uint32_t size)
{
    mpx_spsc_header_t header;
    const void *data;
    int status = mpx_spsc_peek(end, &header, &data);
    CHECK_EQ(status, 0);
    if (status == 0) {
        CHECK(is_record(&header, data, number, size));
        mpx_spsc_pop(end, header.size);
    }
}

static void check_nothing(mpx_spsc_t *end)
{
    mpx_spsc_header_t header;
    const void *data;
    CHECK_EQ(mpx_spsc_peek(end, &header, &data), -EAGAIN);
    CHECK(!mpx_spsc_has_record(end));
}

/* Of a record with its header. */
static uint32_t whole(uint32_t size)
{
    return (UNIT + size + UNIT - 1) / UNIT * UNIT;
}

/* ---- What goes through ----------------------------------------------------------------------- */

TEST(a_record_is_there_once_it_is_published)
{
    struct ring ring;
    open_at(&ring, 0);
    check_nothing(&ring.consumer);
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK(put(&ring.producer, 1, 5));
    CHECK(put(&ring.producer, 2, 0));
    check_nothing(&ring.consumer);
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK(mpx_spsc_has_record(&ring.consumer));
    take(&ring.consumer, 1, 5);
    CHECK(put(&ring.producer, 3, MOST));
    CHECK(!mpx_spsc_publish(&ring.producer));
    take(&ring.consumer, 2, 0);
    take(&ring.consumer, 3, MOST);
    check_nothing(&ring.consumer);
}

TEST(a_record_may_be_shorter_than_the_room_for_it)
{
    struct ring ring;
    open_at(&ring, 0);
    for (uint32_t number = 0; number < 1000; number++) {
        unsigned char *room = mpx_spsc_reserve(&ring.producer, MOST);
        REQUIRE(room != NULL);
        fill(room, number, number % 40);
        mpx_spsc_commit(&ring.producer,
                        (mpx_spsc_header_t){
                            .size = number % 40, .kind = 7, .number = number, .extra = number + 1});
        CHECK(!mpx_spsc_publish(&ring.producer));
        take(&ring.consumer, number, number % 40);
        mpx_spsc_release(&ring.consumer);
    }
}

/* Beginning at each position, and with each size: the wrap is met in every way. */
TEST(records_wrap)
{
    struct ring ring;
    for (uint64_t position = 0; position < CAPACITY; position += UNIT) {
        for (uint32_t size = 0; size <= MOST; size += size < 40 ? 1 : 27) {
            open_at(&ring, position);
            uint32_t there = 0;
            while (put(&ring.producer, there, size)) {
                there++;
            }
            CHECK(there >= 2);
            CHECK(!mpx_spsc_publish(&ring.producer));
            for (uint32_t number = 0; number < there; number++) {
                take(&ring.consumer, number, size);
            }
            check_nothing(&ring.consumer);
        }
    }
}

TEST(positions_pass_what_a_futex_holds)
{
    static const uint64_t positions[] = {UINT32_MAX / 2 - 500 + 4, UINT32_MAX - 511,
                                         (UINT64_C(1) << 40) - 512};
    struct ring ring;
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(positions); i++) {
        open_at(&ring, positions[i] / UNIT * UNIT);
        for (uint32_t number = 0; number < 100; number++) {
            CHECK(put(&ring.producer, number, 40));
            CHECK(!mpx_spsc_publish(&ring.producer));
            take(&ring.consumer, number, 40);
            CHECK(mpx_spsc_announce(&ring.consumer));
            mpx_spsc_stand_down(&ring.consumer);
            mpx_spsc_release(&ring.consumer);
            CHECK_EQ(mpx_spsc_read_up_to(&ring.producer), mpx_spsc_committed_up_to(&ring.producer));
        }
    }
}

TEST(a_ring_is_full)
{
    struct ring ring;
    open_at(&ring, 0);
    uint32_t there = 0, taken = 0;
    while (put(&ring.producer, there, 48)) {
        there++;
    }
    CHECK_EQ(there, CAPACITY / 64);
    CHECK(mpx_spsc_reserve(&ring.producer, 0) == NULL);
    CHECK(!mpx_spsc_publish(&ring.producer));
    take(&ring.consumer, taken++, 48);
    CHECK(mpx_spsc_reserve(&ring.producer, 0) == NULL); /* it was not given back */
    mpx_spsc_release(&ring.consumer);
    CHECK(mpx_spsc_reserve(&ring.producer, 49) == NULL);
    CHECK(put(&ring.producer, there++, 48));
    CHECK(mpx_spsc_reserve(&ring.producer, 0) == NULL);
    CHECK(!mpx_spsc_publish(&ring.producer));
    while (taken < there) {
        take(&ring.consumer, taken++, 48);
    }
    mpx_spsc_release(&ring.consumer);
    mpx_spsc_release(&ring.consumer); /* nothing more */
    CHECK_EQ(mpx_spsc_read_up_to(&ring.producer), mpx_spsc_committed_up_to(&ring.producer));
}

/* What is filled up before the wrap counts. */
TEST(a_record_that_would_wrap_needs_the_rest_too)
{
    struct ring ring;
    open_at(&ring, CAPACITY - 2 * UNIT);
    for (uint32_t number = 0; number < 3; number++) {
        CHECK(put(&ring.producer, number, MOST - UNIT));
    }
    /* The first one begins a lap, so two units are lost. */
    CHECK_EQ(mpx_spsc_committed_up_to(&ring.producer), CAPACITY + 3 * MOST);
    CHECK(mpx_spsc_reserve(&ring.producer, MOST - UNIT) == NULL);
    CHECK(put(&ring.producer, 3, MOST - 3 * UNIT));
    CHECK(mpx_spsc_reserve(&ring.producer, 0) == NULL);
}

/* A reservation that is not used leaves what was filled up: no record. */
TEST(nothing_but_what_was_filled_up)
{
    struct ring ring;
    open_at(&ring, CAPACITY - UNIT);
    CHECK(mpx_spsc_reserve(&ring.producer, 40) != NULL);
    CHECK(!mpx_spsc_publish(&ring.producer));
    mpx_spsc_header_t header;
    const void *data;
    CHECK_EQ(mpx_spsc_peek(&ring.consumer, &header, &data), -EAGAIN);
    check_nothing(&ring.consumer);
    mpx_spsc_release(&ring.consumer);
    CHECK_EQ(mpx_spsc_read_up_to(&ring.producer), CAPACITY);
    CHECK(put(&ring.producer, 1, 40));
    CHECK(!mpx_spsc_publish(&ring.producer));
    take(&ring.consumer, 1, 40);
}

TEST(another_end_goes_on_where_one_has_stopped)
{
    struct ring ring;
    open_at(&ring, 0);
    for (uint32_t number = 0; number < 100; number++) {
        CHECK(put(&ring.producer, number, 100));
        CHECK(put(&ring.producer, number + 1, 10));
        CHECK(!mpx_spsc_publish(&ring.producer));
        CHECK(put(&ring.producer, 4711, 10)); /* which is lost with its end */
        mpx_spsc_open_producer(&ring.producer, &ring.words, ring.data, CAPACITY);
        take(&ring.consumer, number, 100);
        mpx_spsc_release(&ring.consumer);
        take(&ring.consumer, number + 1, 10);
        mpx_spsc_open_consumer(&ring.consumer, &ring.words, ring.data, CAPACITY);
        take(&ring.consumer, number + 1, 10); /* again */
        mpx_spsc_release(&ring.consumer);
        check_nothing(&ring.consumer);
    }
}

TEST(the_producer_finds_its_records)
{
    struct ring ring;
    uint64_t ends[3];
    open_at(&ring, CAPACITY - 10 * UNIT);
    for (uint32_t number = 0; number < 3; number++) {
        CHECK(put(&ring.producer, number, 50 + number));
        ends[number] = mpx_spsc_committed_up_to(&ring.producer);
    }
    CHECK_EQ(ends[1] - ends[0], whole(51));
    CHECK(!mpx_spsc_publish(&ring.producer));
    for (uint32_t number = 0; number < 3; number++) {
        const mpx_spsc_header_t *header =
            mpx_spsc_record_before(&ring.producer, ends[number], 50 + number);
        CHECK(is_record(header, header + 1, number, 50 + number));
        CHECK(mpx_spsc_read_up_to(&ring.producer) < ends[number]);
        take(&ring.consumer, number, 50 + number);
        mpx_spsc_release(&ring.consumer);
        CHECK_EQ(mpx_spsc_read_up_to(&ring.producer), ends[number]);
    }
}

/* ---- Damaged memory -------------------------------------------------------------------------- */

TEST(a_damaged_header_is_found)
{
    static const uint32_t sizes[] = {41,        CAPACITY - UNIT + 1, CAPACITY,
                                     INT32_MAX, UINT32_MAX - UNIT,   UINT32_MAX - 1,
                                     UINT32_MAX};
    struct ring ring;
    for (uint64_t position = 0; position < CAPACITY; position += UNIT) {
        for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
            for (uint32_t kind = 0; kind < 2; kind++) {
                open_at(&ring, position);
                CHECK(put(&ring.producer, 0, 0));
                CHECK(!mpx_spsc_publish(&ring.producer));
                mpx_spsc_header_t damaged = {.size = sizes[i], .kind = kind}, header;
                memcpy(ring.data + position, &damaged, sizeof(damaged));
                const void *data;
                CHECK_EQ(mpx_spsc_peek(&ring.consumer, &header, &data), -EPROTO);
            }
        }
    }
}

/* Whatever the words and the ring hold: nothing outside of it is read or written. */
TEST(damaged_words_lead_nowhere_else)
{
    static struct {
        unsigned char before[4 * UNIT];
        struct ring ring;
        unsigned char after[4 * UNIT];
    } all;
    memset(all.before, 1, sizeof(all.before));
    memset(all.after, 1, sizeof(all.after));
    struct ring *ring = &all.ring;
    unsigned found = 0, put_there = 0;
    for (int i = 0; i < 20000; i++) {
        open_at(ring, 0);
        for (size_t at = 0; at < CAPACITY; at++) {
            ring->data[at] = (unsigned char)random_below(random_below(4) == 0 ? 256 : 2);
        }
        uint64_t tail = random_below(2) ? random_below(4 * CAPACITY) : (uint64_t)random_state << 33;
        mpx_u64_store_relaxed(&ring->words.tail, tail + random_below(64));
        mpx_u64_store_relaxed(&ring->words.head, random_below(2) ? tail : random_below(9999));
        bool opens_again = random_below(2) != 0;
        mpx_spsc_words_t copy = ring->words;
        if (opens_again) {
            mpx_spsc_open_consumer(&ring->consumer, &copy, ring->data, CAPACITY);
        }
        mpx_spsc_header_t header;
        const void *data;
        for (int j = 0; j < 10 && mpx_spsc_peek(&ring->consumer, &header, &data) == 0; j++) {
            const unsigned char *begin = data;
            CHECK(begin >= ring->data && begin + header.size <= ring->data + CAPACITY);
            mpx_spsc_pop(&ring->consumer, header.size);
            found++;
        }
        if (opens_again) {
            mpx_spsc_open_producer(&ring->producer, &copy, ring->data, CAPACITY);
        }
        unsigned char *room = mpx_spsc_reserve(&ring->producer, MOST);
        if (room != NULL) {
            CHECK(room >= ring->data + UNIT && room + MOST <= ring->data + CAPACITY);
            mpx_spsc_commit(&ring->producer, (mpx_spsc_header_t){.size = MOST, .kind = 1});
            put_there++;
        }
    }
    CHECK(found > 0 && put_there > 0);
    for (size_t i = 0; i < sizeof(all.before); i++) {
        CHECK(all.before[i] == 1 && all.after[i] == 1);
    }
}

/* Or the consumer would go through what was never put, for ever. */
TEST(a_tail_that_cannot_be_is_damage)
{
    struct ring ring;
    mpx_spsc_header_t header;
    const void *data;
    open_at(&ring, 0);
    mpx_u64_store_relaxed(&ring.words.tail, (CAPACITY + UNIT) << 1);
    CHECK_EQ(mpx_spsc_peek(&ring.consumer, &header, &data), -EPROTO);
    mpx_u64_store_relaxed(&ring.words.tail, UINT64_MAX - 1);
    CHECK_EQ(mpx_spsc_peek(&ring.consumer, &header, &data), -EPROTO);
    open_at(&ring, 10 * UNIT);
    mpx_u64_store_relaxed(&ring.words.tail, 9 * UNIT << 1); /* before the consumer */
    CHECK_EQ(mpx_spsc_peek(&ring.consumer, &header, &data), -EPROTO);
}

TEST(a_head_that_cannot_be_is_no_room)
{
    struct ring ring;
    open_at(&ring, 0);
    while (put(&ring.producer, 0, 48)) {
    }
    CHECK(!mpx_spsc_publish(&ring.producer));
    mpx_u64_store_relaxed(&ring.words.head, (CAPACITY + UNIT) << 1); /* before the producer */
    CHECK(mpx_spsc_reserve(&ring.producer, 0) == NULL);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 0, soon()), -ETIMEDOUT);
}

/* ---- Announcing ------------------------------------------------------------------------------ */

TEST(who_sleeps_is_to_be_woken)
{
    struct ring ring;
    open_at(&ring, 0);
    CHECK(mpx_spsc_announce(&ring.consumer));
    CHECK(mpx_spsc_announce(&ring.consumer)); /* once more, as after a spurious wake */
    CHECK(put(&ring.producer, 0, 8));
    CHECK(mpx_spsc_publish(&ring.producer));
    CHECK(put(&ring.producer, 1, 8));
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK(!mpx_spsc_announce(&ring.consumer));
    mpx_spsc_stand_down(&ring.consumer); /* there is nothing to take back */
    take(&ring.consumer, 0, 8);
    take(&ring.consumer, 1, 8);
    CHECK(mpx_spsc_announce(&ring.consumer));
    mpx_spsc_stand_down(&ring.consumer);
    CHECK(put(&ring.producer, 2, 8));
    CHECK(!mpx_spsc_publish(&ring.producer));
    take(&ring.consumer, 2, 8);
}

/* The consumer has looked, the producer publishes, and then the consumer announces. */
TEST(what_came_meanwhile_is_not_slept_for)
{
    struct ring ring;
    open_at(&ring, 0);
    CHECK(!mpx_spsc_has_record(&ring.consumer));
    mpx_spsc_t stale = ring.consumer;
    CHECK(put(&ring.producer, 0, 8));
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK(!mpx_spsc_announce(&stale));
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK_EQ(mpx_spsc_wait(&ring.consumer, MPX_WAIT_RECHECK, soon()), 0);
}

/* ---- Waiting --------------------------------------------------------------------------------- */

TEST(a_wait_ends_with_its_piece_or_its_deadline)
{
    struct ring ring;
    open_at(&ring, 0);
    CHECK_EQ(mpx_spsc_wait(&ring.consumer, MPX_NANOS_PER_MILLI, MPX_NEVER), MPX_WAIT_LOOK);
    CHECK_EQ(mpx_spsc_wait(&ring.consumer, MPX_NEVER, mpx_os_now() - 1), -ETIMEDOUT);
    int64_t deadline = soon();
    int status;
    do {
        status = mpx_spsc_wait(&ring.consumer, 50 * MPX_NANOS_PER_SEC, deadline);
    } while (status == MPX_WAIT_LOOK);
    CHECK_EQ(status, -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
    CHECK(put(&ring.producer, 0, 0));
    CHECK(mpx_spsc_publish(&ring.producer)); /* the bit is still set */
    CHECK_EQ(mpx_spsc_wait(&ring.consumer, 1, mpx_os_now() - 1), 0);
}

TEST(a_wait_for_room_ends)
{
    struct ring ring;
    open_at(&ring, 0);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, MOST, mpx_os_now() - 1), 0);
    while (put(&ring.producer, 0, 48)) {
    }
    CHECK(!mpx_spsc_publish(&ring.producer));
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 0, mpx_os_now() - 1), -ETIMEDOUT);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 0, soon()), -ETIMEDOUT);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 0, MPX_NEVER), -ETIMEDOUT); /* a while */
    take(&ring.consumer, 0, 48);
    mpx_spsc_release(&ring.consumer);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 48, mpx_os_now() - 1), 0);
    CHECK_EQ(mpx_spsc_wait_for_room(&ring.producer, 49, mpx_os_now() - 1), -ETIMEDOUT);
}

TEST(a_signal_ends_a_wait)
{
    struct ring ring;
    open_at(&ring, 0);
    pid_t pid = start_interrupting();
    int status;
    do {
        status = mpx_spsc_wait(&ring.consumer, MPX_NANOS_PER_SEC, much_later());
    } while (status == MPX_WAIT_LOOK);
    CHECK_EQ(status, -EINTR);
    while (put(&ring.producer, 0, 48)) {
    }
    CHECK(mpx_spsc_publish(&ring.producer));
    do {
        status = mpx_spsc_wait_for_room(&ring.producer, 0, much_later());
    } while (status == -ETIMEDOUT);
    CHECK_EQ(status, -EINTR);
    kill(pid, SIGKILL);
    wait_for(pid);
}

/* Both ends by threads, or processes. The word with the bit is how one knows that the other sleeps,
 * or is about to. */
static void wait_for_bit(mpx_atomic_u64 *word)
{
    while (!(mpx_u64_load_acquire(word) & 1)) {
        sched_yield();
    }
}

static void *publish_when_it_sleeps(void *argument)
{
    struct ring *ring = argument;
    for (uint32_t number = 0; number < 50; number++) {
        wait_for_bit(&ring->words.tail);
        CHECK(put(&ring->producer, number, 8));
        CHECK(mpx_spsc_publish(&ring->producer));
        mpx_spsc_wake_consumer(&ring->producer);
    }
    return NULL;
}

TEST(a_publication_wakes)
{
    struct ring ring;
    pthread_t thread;
    open_at(&ring, 0);
    REQUIRE(pthread_create(&thread, NULL, publish_when_it_sleeps, &ring) == 0);
    for (uint32_t number = 0; number < 50; number++) {
        CHECK_EQ(mpx_spsc_wait(&ring.consumer, 30 * MPX_NANOS_PER_SEC, much_later()), 0);
        take(&ring.consumer, number, 8);
        mpx_spsc_release(&ring.consumer);
    }
    pthread_join(thread, NULL);
}

static void *release_when_it_sleeps(void *argument)
{
    struct ring *ring = argument;
    for (uint32_t number = 0; number < 50; number++) {
        wait_for_bit(&ring->words.head);
        take(&ring->consumer, number, 48);
        mpx_spsc_release(&ring->consumer);
    }
    return NULL;
}

TEST(room_wakes)
{
    struct ring ring;
    pthread_t thread;
    open_at(&ring, 0);
    uint32_t there = 0, prompt = 0;
    while (put(&ring.producer, there, 48)) {
        there++;
    }
    CHECK(!mpx_spsc_publish(&ring.producer));
    REQUIRE(pthread_create(&thread, NULL, release_when_it_sleeps, &ring) == 0);
    for (uint32_t number = 0; number < 50; number++) {
        int status = mpx_spsc_wait_for_room(&ring.producer, 48, much_later());
        prompt += status == 0;
        while (status == -ETIMEDOUT) { /* on a busy machine it may take longer than a while */
            status = mpx_spsc_wait_for_room(&ring.producer, 48, much_later());
        }
        CHECK_EQ(status, 0);
        CHECK(put(&ring.producer, there++, 48));
        CHECK(!mpx_spsc_publish(&ring.producer));
    }
    pthread_join(thread, NULL);
    CHECK(prompt > 0); /* without a wake, each would */
}

/* ---- A crowd of two -------------------------------------------------------------------------- */

/* Sizes that the number says. */
static uint32_t size_of(uint32_t number)
{
    static const uint32_t most[] = {1, 8, 40, 40, 100, MOST + 1};
    uint32_t mixed = number * UINT32_C(2654435761);
    return (mixed >> 8) % most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)];
}

static uint32_t records(void)
{
    return emulated() ? RECORDS / 20 : RECORDS;
}

/* Some at a time. */
static void produce(void *argument)
{
    struct ring *ring = argument;
    mpx_spsc_t *end = &ring->producer;
    for (uint32_t number = 0; number < records(); number++) {
        while (!put(end, number, size_of(number))) {
            if (mpx_spsc_publish(end)) {
                mpx_spsc_wake_consumer(end);
            }
            int status = mpx_spsc_wait_for_room(end, size_of(number), much_later());
            CHECK(status == 0 || status == -ETIMEDOUT);
        }
        if ((number >> 3) % (1 + number % 5) == 0 && mpx_spsc_publish(end)) {
            mpx_spsc_wake_consumer(end);
        }
    }
    if (mpx_spsc_publish(end)) {
        mpx_spsc_wake_consumer(end);
    }
}

static void consume(struct ring *ring)
{
    mpx_spsc_t *end = &ring->consumer;
    uint32_t wrong = 0;
    for (uint32_t number = 0; number < records(); number++) {
        mpx_spsc_header_t header;
        const void *data;
        int status;
        while ((status = mpx_spsc_peek(end, &header, &data)) == -EAGAIN) {
            mpx_spsc_release(end);
            status = mpx_spsc_wait(end, 30 * MPX_NANOS_PER_SEC, much_later());
            REQUIRE(status == 0);
        }
        REQUIRE(status == 0);
        wrong += !is_record(&header, data, number, size_of(number));
        mpx_spsc_pop(end, header.size);
        if (number % 7 == 0) {
            mpx_spsc_release(end);
        }
    }
    CHECK_EQ(wrong, 0);
    check_nothing(end);
}

static void *produce_in_thread(void *argument)
{
    produce(argument);
    return NULL;
}

TEST(two_threads)
{
    static struct ring ring;
    pthread_t thread;
    open_at(&ring, CAPACITY / 2);
    REQUIRE(pthread_create(&thread, NULL, produce_in_thread, &ring) == 0);
    consume(&ring);
    pthread_join(thread, NULL);
}

TEST(two_processes)
{
    struct ring *ring = shared_memory(sizeof(*ring));
    open_at(ring, 0);
    pid_t pid = start_process(produce, ring);
    consume(ring);
    CHECK_EQ(wait_for(pid), 0);
    free_shared_memory(ring, sizeof(*ring));
}

/* ---- A model --------------------------------------------------------------------------------- */

/* Any calls of both ends, against what is in the ring by a list. */
TEST(as_a_model_says)
{
    enum { TURNS = 200000, LIST = CAPACITY };
    static struct ring ring;
    static uint32_t sizes[LIST];
    uint32_t put_numbers = 0, published = 0, popped = 0;
    open_at(&ring, 0);
    for (int turn = 0; turn < (emulated() ? TURNS / 20 : TURNS); turn++) {
        uint32_t size = size_of(random_below(1 << 30));
        switch (random_below(6)) {
        case 0:
        case 1:
            if (put(&ring.producer, put_numbers, size)) {
                sizes[put_numbers++ % LIST] = size;
            } else {
                /* It is full by itself, or for what the consumer has kept. */
                uint64_t used =
                    mpx_spsc_committed_up_to(&ring.producer) - mpx_spsc_read_up_to(&ring.producer);
                CHECK(used + 2 * whole(MOST) > CAPACITY);
            }
            break;
        case 2:
            CHECK(!mpx_spsc_publish(&ring.producer));
            published = put_numbers;
            break;
        case 3:
        case 4:
            CHECK_EQ(mpx_spsc_has_record(&ring.consumer) && popped == published, false);
            if (popped < published) {
                take(&ring.consumer, popped, sizes[popped % LIST]);
                popped++;
            }
            break;
        default:
            mpx_spsc_release(&ring.consumer);
        }
    }
    CHECK(popped > 1000);
}
