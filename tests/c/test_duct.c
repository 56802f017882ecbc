/* test_duct.c - the duct: what goes through the ring and what through the descriptor, the order of
 * both, sleepers, limits, damage, and a model. Deaths are in test_duct_crash.c.
 */
#include "duct_peer.h"

#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>

static int64_t soon(void)
{
    return mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
}

static int try_put(struct way *way, uint32_t number, size_t size)
{
    unsigned char bytes[MPX_DUCT_RING];
    fill(bytes, number, size);
    return mpx_duct_try_put(&way->duct, bytes, size);
}

/* Through the descriptor, as far as there is room at once. */
static int begin(struct way *way, uint32_t number, size_t size)
{
    static unsigned char bytes[LONGEST];
    mpx_outflow_t out;
    fill(bytes, number, size);
    mpx_outflow_begin(&out, (const char *)bytes, size);
    out.is_socket = way->is_socket;
    int status = mpx_duct_begin(&way->duct, way->writer, &out, much_later());
    CHECK(status < 0 || mpx_outflow_left(&out) == 0);
    return status;
}

static int stop(struct way *way)
{
    return mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later());
}

static void check_message(struct way *way, struct receiver *receiver, uint32_t number, size_t size)
{
    CHECK_EQ(receive(way, receiver, much_later()), 0);
    CHECK_EQ(receiver->size, size);
    CHECK(receiver->size == size && is_as_filled(receiver->bytes, number, size));
}

/* As somebody reads who knows of no ring. */
static void check_plain(struct way *way, struct receiver *receiver, uint32_t number, size_t size)
{
    mpx_inflow_t in = {.is_socket = way->is_socket};
    mpx_wait_mood_t mood = {0};
    mpx_stream_wait_t wait = {.mood = &mood, .deadline = much_later()};
    int status = 0;
    while (status == 0 && !in.has_size) {
        status = mpx_inflow_read_header(&in, way->reader, &wait);
    }
    CHECK_EQ(in.size, size);
    while (status == 0 && in.got < in.size) {
        status = mpx_inflow_read(&in, way->reader, (char *)receiver->bytes + in.got,
                                 LONGEST - (size_t)in.got, &wait);
    }
    CHECK_EQ(status, 0);
    CHECK(is_as_filled(receiver->bytes, number, size));
}

/* Children have it, too, and do not free it. */
static struct receiver *receiver_of_test;

/* A test of both kinds of descriptors. */
#define TEST_OF_BOTH(title)                                       \
    static void title##_of(struct way *way, struct receiver *in); \
    TEST(title)                                                   \
    {                                                             \
        for (int kind = 0; kind < KINDS; kind++) {                \
            struct way *way = open_way(kind);                     \
            receiver_of_test = new_receiver();                    \
            title##_of(way, receiver_of_test);                    \
            free(receiver_of_test);                               \
            close_way(way);                                       \
        }                                                         \
    }                                                             \
    static void title##_of(struct way *way, struct receiver *in)

/* ---- Which way ------------------------------------------------------------------------------- */

TEST_OF_BOTH(a_duct_is_told_from_other_memory)
{
    CHECK(mpx_duct_is_sound(&way->duct, sizeof(way->duct)));
    CHECK(!mpx_duct_is_sound(&way->duct, sizeof(way->duct) - 1));
    way->duct.most = MPX_DUCT_MOST + 1;
    CHECK(!mpx_duct_is_sound(&way->duct, sizeof(way->duct)));
    way->duct.most = MPX_DUCT_MOST;
    way->duct.magic++;
    CHECK(!mpx_duct_is_sound(&way->duct, sizeof(way->duct)));
    CHECK_EQ(in->size, 0);
}

TEST_OF_BOTH(the_ring_is_used_once_the_receiver_knows)
{
    CHECK(mpx_duct_has_something(&way->duct));
    CHECK(!mpx_duct_announce_sleep(&way->duct));
    for (uint32_t i = 0; i < 3; i++) {
        CHECK_EQ(try_put(way, i, 10), -EXDEV);
        CHECK_EQ(begin(way, i, 10), 0);
        CHECK_EQ(used_bytes(way), 0);
        CHECK_EQ(mpx_os_unread(way->reader), (i + 1) * 14);
    }
    size_t size;
    CHECK_EQ(mpx_duct_try_get(&way->duct, in->bytes, LONGEST, &size), -EXDEV);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EAGAIN);
    CHECK_EQ(try_put(way, 0, 10), -EXDEV);
    for (uint32_t i = 0; i < 3; i++) {
        check_message(way, in, i, 10);
    }
    CHECK_EQ(try_put(way, 3, 10), -EXDEV);
    settle(way);
    CHECK(!mpx_duct_has_something(&way->duct));
    CHECK_EQ(try_put(way, 3, 10), 0);
    CHECK_EQ(mpx_os_unread(way->reader), 0);
    CHECK(mpx_duct_has_message(&way->duct));
    CHECK_EQ(mpx_duct_try_get(&way->duct, in->bytes, LONGEST, &size), 0);
    CHECK_EQ(size, 10);
    CHECK(is_as_filled(in->bytes, 3, 10));
    check_nothing(way, in);
}

TEST_OF_BOTH(what_is_in_the_ring_goes_before_what_is_written)
{
    settle(way);
    CHECK_EQ(try_put(way, 1, 10), 0);
    CHECK_EQ(try_put(way, 2, 20), 0);
    CHECK_EQ(begin(way, 3, 30), 0);
    CHECK(mpx_duct_is_empty(&way->duct));
    CHECK_EQ(mpx_os_unread(way->reader), 14 + 24 + 34);
    CHECK_EQ(try_put(way, 4, 40), 0);
    CHECK(!mpx_duct_is_empty(&way->duct) && !mpx_duct_has_message(&way->duct));
    for (uint32_t i = 1; i <= 4; i++) {
        check_message(way, in, i, i * 10);
    }
    check_nothing(way, in);
}

TEST_OF_BOTH(who_sleeps_is_written_to)
{
    settle(way);
    for (uint32_t i = 0; i < 10; i += 2) {
        check_nothing(way, in); /* and says so */
        CHECK_EQ(try_put(way, i, 10), -EXDEV);
        CHECK_EQ(begin(way, i, 10), 0);
        CHECK_EQ(mpx_os_unread(way->reader), 14);
        CHECK_EQ(try_put(way, i + 1, 10), 0);
        CHECK(!mpx_duct_announce_sleep(&way->duct));
        check_message(way, in, i, 10);
        CHECK(!mpx_duct_announce_sleep(&way->duct));
        check_message(way, in, i + 1, 10);
    }
}

TEST_OF_BOTH(nobody_goes_to_sleep_where_something_is)
{
    settle(way);
    CHECK_EQ(try_put(way, 1, 10), 0);
    CHECK(!mpx_duct_announce_sleep(&way->duct));
    CHECK_EQ(try_put(way, 2, 10), 0);
    check_message(way, in, 1, 10);
    check_message(way, in, 2, 10);
    CHECK(mpx_duct_announce_sleep(&way->duct));
    CHECK(mpx_duct_announce_sleep(&way->duct)); /* so may another one */
}

static void receive_numbers(void *argument)
{
    struct way *way = argument;
    struct receiver *in = new_receiver();
    for (uint32_t i = 0; i < 200; i++) {
        check_next(way, in, i);
    }
    free(in);
}

static bool is_asleep(struct way *way)
{
    return (mpx_u64_load_relaxed(&way->duct.tail) & 1) && mpx_u32_load_relaxed(&way->duct.opened);
}

TEST_OF_BOTH(a_sleeping_process_is_woken)
{
    pid_t pid = start_process(receive_numbers, way);
    for (uint32_t i = 0; i < 200; i++) {
        while (i % 2 == 0 && !is_asleep(way)) {
            sched_yield();
        }
        CHECK_EQ(send_number(way, i, much_later()), 0);
    }
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(in->size, 0);
}

/* ---- Lengths --------------------------------------------------------------------------------- */

TEST_OF_BOTH(every_length)
{
    settle(way);
    size_t size;
    uint32_t wrong = 0;
    for (uint32_t i = 0; i <= way->most; i += emulated() && i > 100 ? 61 : 1) {
        wrong += try_put(way, i, i) != 0;
        if (i > 0) {
            wrong += mpx_duct_try_get(&way->duct, in->bytes, i - 1, &size) != -ENOBUFS || size != i;
        }
        in->bytes[i] = 0xa5;
        wrong += mpx_duct_try_get(&way->duct, in->bytes, i, &size) != 0 || size != i;
        wrong += !is_as_filled(in->bytes, i, i) || in->bytes[i] != 0xa5;
    }
    CHECK_EQ(wrong, 0);
    CHECK_EQ(try_put(way, 0, way->most + 1), -EXDEV);
    CHECK(!mpx_duct_has_something(&way->duct));
}

/* At each place where a record can begin. */
TEST_OF_BOTH(the_ring_s_end_is_filled)
{
    static const size_t sizes[] = {0, 1, 8, 9, 100, 4000};
    settle(way);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        for (uint32_t at = 0; at < 2 * sizes[i] + 32; at += 8) {
            preset(way, 5 * MPX_DUCT_RING - at);
            CHECK_EQ(try_put(way, at, sizes[i]), 0);
            CHECK_EQ(try_put(way, at + 1, sizes[i]), 0);
            check_message(way, in, at, sizes[i]);
            check_message(way, in, at + 1, sizes[i]);
            CHECK_EQ(try_put(way, at, sizes[i]), 0);
        }
    }
}

/* What is in the ring goes to the descriptor in pieces of 4096 bytes, or alone. */
TEST_OF_BOTH(lengths_around_a_piece)
{
    static const size_t sizes[] = {0,    1,    7,    8,    9,    2040, 2044, 2045, 4084,  4088,
                                   4091, 4092, 4093, 4096, 4097, 8183, 8184, 8185, 16367, 16368};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        for (size_t j = 0; j < MPX_ARRAY_LENGTH(sizes) && sizes[i] <= way->most; j++) {
            settle(way);
            preset(way, 9 * MPX_DUCT_RING - 8 * (uint64_t)j);
            uint32_t count = 0;
            while (sizes[j] <= way->most && count < 7 &&
                   try_put(way, count, sizes[count % 2 ? i : j]) == 0) {
                count++;
            }
            CHECK_EQ(begin(way, 99, 3), 0);
            CHECK(mpx_duct_is_empty(&way->duct));
            for (uint32_t k = 0; k < count; k++) {
                check_message(way, in, k, sizes[k % 2 ? i : j]);
            }
            check_message(way, in, 99, 3);
        }
    }
}

static void send_long(void *argument)
{
    static unsigned char bytes[LONGEST];
    struct way *way = argument;
    for (uint32_t i = 0; i < 30; i++) {
        size_t size = i % 3 == 0 ? LONGEST - i : i % 3 == 1 ? i : 5000;
        fill(bytes, i, size);
        CHECK_EQ(send_bytes(way, bytes, size, much_later()), 0);
    }
}

TEST_OF_BOTH(long_messages_between_short_ones)
{
    settle(way);
    pid_t pid = start_process(send_long, way);
    for (uint32_t i = 0; i < 30; i++) {
        check_message(way, in, i, i % 3 == 0 ? LONGEST - i : i % 3 == 1 ? i : 5000);
    }
    CHECK_EQ(wait_for(pid), 0);
    check_nothing(way, in);
}

/* ---- Room ------------------------------------------------------------------------------------ */

/* So many messages that there is no room for another one. */
static uint32_t fill_ring(struct way *way, uint32_t first)
{
    while (try_put(way, first, 1000) == 0) {
        first++;
    }
    CHECK_EQ(try_put(way, first, 1000), -EAGAIN);
    return first;
}

TEST_OF_BOTH(a_full_ring)
{
    mpx_wait_mood_t mood = {0};
    settle(way);
    uint32_t end = fill_ring(way, 0);
    CHECK_EQ(end, MPX_DUCT_RING / 1008);
    CHECK_EQ(mpx_duct_put(&way->duct, in->bytes, 1000, much_later()), -EAGAIN);
    CHECK_EQ(mpx_duct_wait_for_room(&way->duct, &mood, soon()), -ETIMEDOUT);
    pid_t pid = start_interrupting();
    int status;
    do { /* it may have looked around meanwhile */
        status = mpx_duct_wait_for_room(&way->duct, &mood, much_later());
    } while (status == 0);
    CHECK_EQ(status, -EINTR);
    kill(pid, SIGKILL);
    wait_for(pid);
    check_message(way, in, 0, 1000);
    check_message(way, in, 1, 1000);
    CHECK_EQ(try_put(way, end, 1000), 0);
    for (uint32_t i = 2; i <= end; i++) {
        check_message(way, in, i, 1000);
    }
    check_nothing(way, in);
}

/* A longest message finds room in an empty ring, wherever it begins. */
TEST_OF_BOTH(an_empty_ring_has_room)
{
    settle(way);
    for (uint64_t at = 0; at < MPX_DUCT_RING; at += 8) {
        preset(way, at);
        CHECK_EQ(try_put(way, 1, way->most), 0);
    }
    check_message(way, in, 1, way->most);
}

static void wait_for_room(void *argument)
{
    struct way *way = argument;
    static const char bytes[1000];
    mpx_wait_mood_t mood = {0};
    inject("recovery", 0, 0, ALWAYS);
    int status = 0;
    while (status == 0 && mpx_duct_put(&way->duct, bytes, sizeof(bytes), much_later()) == -EAGAIN) {
        status = mpx_duct_wait_for_room(&way->duct, &mood, much_later());
    }
    CHECK_EQ(status, 0);
}

static void wait_until_wanted(struct way *way)
{
    while (!(mpx_u64_load_relaxed(&way->duct.head) & 1)) {
        usleep(100);
    }
    usleep(1000);
}

TEST_OF_BOTH(who_waits_for_room_is_woken_when_half_is_free)
{
    settle(way);
    uint32_t end = fill_ring(way, 0), next = 0;
    pid_t pid = start_process(wait_for_room, way);
    wait_until_wanted(way);
    while ((end - next) * 1008 > MPX_DUCT_RING / 2) { /* without what it puts when it is woken */
        CHECK(mpx_u64_load_relaxed(&way->duct.head) & 1);
        check_message(way, in, next++, 1000);
    }
    CHECK(next < end);
    CHECK_EQ(wait_for(pid), 0);
}

/* By one who empties the ring, too. */
TEST_OF_BOTH(who_waits_for_room_is_woken_by_who_empties_the_ring)
{
    for (int stops = 0; stops < 2; stops++) {
        settle(way);
        uint32_t end = fill_ring(way, 0);
        pid_t pid = start_process(wait_for_room, way);
        wait_until_wanted(way);
        CHECK_EQ(stops ? stop(way) : begin(way, end, 10), 0);
        CHECK_EQ(wait_for(pid), 0);
        for (uint32_t i = 0; i < end; i++) {
            check_message(way, in, i, 1000);
        }
        if (!stops) {
            check_message(way, in, end, 10);
            CHECK_EQ(mpx_os_unread(way->reader), 0);
        }
    }
}

/* ---- A full descriptor ----------------------------------------------------------------------- */

/* Whoever has the descriptor besides may have filled it. */
static uint32_t write_by_others(struct way *way, uint32_t first)
{
    unsigned char bytes[1000];
    for (;; first++) {
        mpx_outflow_t out;
        fill(bytes, first, sizeof(bytes));
        mpx_outflow_begin(&out, (const char *)bytes, sizeof(bytes));
        out.is_socket = way->is_socket;
        int status = mpx_outflow_write(&out, way->writer, NULL);
        if (status == -EAGAIN) {
            return first;
        }
        CHECK(status == 0 && mpx_outflow_left(&out) == 0);
    }
}

TEST_OF_BOTH(a_full_descriptor)
{
    settle(way);
    CHECK_EQ(try_put(way, 0, 1000), 0);
    CHECK_EQ(try_put(way, 1, 1000), 0);
    uint32_t end = write_by_others(way, 2);
    uint64_t used = used_bytes(way);
    CHECK_EQ(begin(way, end, 1000), -EAGAIN);
    CHECK_EQ(used_bytes(way), used);
    for (uint32_t i = 2; i < 22; i++) {
        check_message(way, in, i, 1000);
    }
    CHECK_EQ(begin(way, end, 1000), 0);
    CHECK_EQ(used_bytes(way), 0);
    for (uint32_t i = 22; i < end; i++) {
        check_message(way, in, i, 1000);
    }
    check_message(way, in, 0, 1000);
    check_message(way, in, 1, 1000);
    check_message(way, in, end, 1000);
    check_nothing(way, in);
}

/* Nor does a ring take more than goes to the descriptor. */
TEST_OF_BOTH(a_ring_behind_a_full_descriptor)
{
    settle(way);
    uint32_t end = 0;
    while (begin(way, end, 1000) == 0) {
        end++;
    }
    CHECK_EQ(try_put(way, end, 1000), -EXDEV);
    for (uint32_t i = 0; i < end; i++) {
        check_message(way, in, i, 1000);
    }
    check_nothing(way, in);
}

/* ---- In the middle of a long message --------------------------------------------------------- */

/* The beginning of a longest message, as much as there is room for. */
static mpx_outflow_t begin_long(struct way *way, uint32_t number)
{
    static unsigned char bytes[LONGEST];
    mpx_outflow_t out;
    fill(bytes, number, LONGEST);
    mpx_outflow_begin(&out, (const char *)bytes, LONGEST);
    out.is_socket = way->is_socket;
    CHECK_EQ(mpx_duct_begin(&way->duct, way->writer, &out, much_later()), 0);
    CHECK(out.done > 0 && mpx_outflow_left(&out) > 0);
    return out;
}

static void write_more(struct way *way, struct receiver *in, mpx_outflow_t *out)
{
    while (mpx_outflow_left(out) > 0) {
        CHECK_EQ(mpx_outflow_write(out, way->writer, NULL), 0);
        CHECK_EQ(receive_now(way, in), mpx_outflow_left(out) > 0 ? -EAGAIN : 0);
    }
}

TEST_OF_BOTH(nothing_comes_between)
{
    settle(way);
    CHECK_EQ(try_put(way, 1, 10), 0);
    mpx_outflow_t out = begin_long(way, 2);
    CHECK_EQ(try_put(way, 3, 10), -EXDEV);
    check_message(way, in, 1, 10);
    CHECK_EQ(receive_now(way, in), -EAGAIN);
    CHECK_EQ(mpx_os_unread(way->reader), 0);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EAGAIN);
    CHECK(!mpx_duct_announce_sleep(&way->duct));
    write_more(way, in, &out);
    CHECK(is_as_filled(in->bytes, 2, LONGEST));
    CHECK_EQ(try_put(way, 3, 10), -EXDEV);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EAGAIN);
    CHECK_EQ(mpx_duct_finish(&way->duct, way->writer, way->is_socket, much_later()), 0);
    CHECK_EQ(try_put(way, 3, 10), -EXDEV); /* the receiver may be asleep, since it was told so */
    CHECK_EQ(begin(way, 3, 10), 0);
    CHECK_EQ(mpx_os_unread(way->reader), 14);
    CHECK_EQ(try_put(way, 4, 10), -EXDEV); /* so much was written that there may be no room */
    check_message(way, in, 3, 10);
    settle(way);
    CHECK_EQ(try_put(way, 4, 10), 0);
    check_message(way, in, 4, 10);
    check_nothing(way, in);
}

TEST_OF_BOTH(what_comes_after_a_long_message_goes_through_the_ring)
{
    settle(way);
    mpx_outflow_t out = begin_long(way, 2);
    CHECK_EQ(receive_now(way, in), -EAGAIN);
    write_more(way, in, &out);
    CHECK_EQ(mpx_duct_finish(&way->duct, way->writer, way->is_socket, much_later()), 0);
    settle(way);
    CHECK_EQ(try_put(way, 3, 10), 0);
    check_message(way, in, 3, 10);
    check_nothing(way, in);
}

static void begin_and_end(void *argument)
{
    (void)begin_long(argument, 1);
}

/* As after one that was killed: the message has no end, and the next one is taken for that. */
TEST_OF_BOTH(a_writer_is_gone)
{
    settle(way);
    CHECK_EQ(wait_for(start_process(begin_and_end, way)), 0);
    CHECK_EQ(try_put(way, 2, 10), -EXDEV);
    while (mpx_os_unread(way->reader) > 0) {
        CHECK_EQ(receive_now(way, in), -EAGAIN);
    }
    CHECK_EQ(begin(way, 2, 10), 0);
    CHECK_EQ(mpx_os_unread(way->reader), 14);
    CHECK_EQ(receive_now(way, in), -EAGAIN);
    mpx_inflow_reset(&in->in);
    check_nothing(way, in);
    CHECK_EQ(wait_for(start_process(begin_and_end, way)), 0);
    while (mpx_os_unread(way->reader) > 0) {
        CHECK_EQ(receive_now(way, in), -EAGAIN);
    }
    mpx_inflow_reset(&in->in);
    check_nothing(way, in); /* settled all the same */
    CHECK_EQ(begin(way, 3, 10), 0);
    check_message(way, in, 3, 10);
}

TEST_OF_BOTH(a_writer_gives_up)
{
    settle(way);
    (void)begin_long(way, 1);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EAGAIN);
    while (mpx_os_unread(way->reader) > 0) {
        CHECK_EQ(receive_now(way, in), -EAGAIN);
    }
    mpx_inflow_reset(&in->in);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EAGAIN);
    mpx_duct_tear(&way->duct, much_later());
    CHECK_EQ(try_put(way, 2, 10), -EXDEV);
    check_nothing(way, in);
}

/* ---- Stopping -------------------------------------------------------------------------------- */

TEST_OF_BOTH(stopped_where_there_is_room)
{
    settle(way);
    uint32_t end = fill_ring(way, 0);
    CHECK(!mpx_duct_is_stopped(&way->duct));
    CHECK_EQ(stop(way), 0);
    CHECK(mpx_duct_is_stopped(&way->duct) && mpx_duct_is_empty(&way->duct));
    CHECK_EQ(try_put(way, 0, 10), -EXDEV);
    CHECK_EQ(mpx_duct_put(&way->duct, "", 1, 0), -EXDEV);
    for (uint32_t i = 0; i < end; i++) {
        check_plain(way, in, i, 1000);
    }
    CHECK_EQ(mpx_os_unread(way->reader), 0);
    CHECK_EQ(stop(way), 0);
}

TEST_OF_BOTH(stopped_before_it_was_opened)
{
    CHECK_EQ(stop(way), 0);
    settle(way);
    CHECK_EQ(try_put(way, 0, 10), -EXDEV);
    CHECK_EQ(begin(way, 0, 10), 0);
    check_message(way, in, 0, 10);
    check_nothing(way, in);
}

TEST_OF_BOTH(stopped_where_there_is_no_room)
{
    settle(way);
    uint32_t in_ring = fill_ring(way, 0), end = write_by_others(way, in_ring);
    CHECK_EQ(stop(way), -EAGAIN);
    CHECK(mpx_duct_is_stopped(&way->duct) && !mpx_duct_is_empty(&way->duct));
    CHECK_EQ(try_put(way, end, 1000), -EXDEV);
    CHECK_EQ(begin(way, end, 1000), -EAGAIN);
    for (uint32_t i = in_ring; i < in_ring + 8; i++) {
        check_message(way, in, i, 1000);
    }
    uint64_t used = used_bytes(way);
    CHECK_EQ(stop(way), -EAGAIN); /* some of it */
    CHECK(used_bytes(way) < used);
    for (uint32_t i = in_ring + 8; i < end; i++) {
        check_message(way, in, i, 1000);
    }
    for (uint32_t i = 0; i < in_ring; i++) {
        check_message(way, in, i, 1000);
    }
    CHECK_EQ(stop(way), 0);
    check_nothing(way, in);
}

/* ---- System calls that fail ------------------------------------------------------------------ */

TEST_OF_BOTH(what_cannot_be_written_stays_in_the_ring)
{
    settle(way);
    for (uint32_t i = 0; i < 20; i++) {
        CHECK_EQ(try_put(way, i, 1000), 0);
    }
    uint64_t used = used_bytes(way);
    for (unsigned skip = 0; skip < 3; skip++) {
        inject(write_site(way), EIO, skip, 1);
        CHECK_EQ(stop(way), -EIO);
        inject_nothing();
        CHECK(skip == 0 ? used_bytes(way) == used : used_bytes(way) < used);
        used = used_bytes(way);
    }
    CHECK(used > 0);
    for (uint32_t i = 0; i < 20; i++) {
        check_message(way, in, i, 1000);
    }
    check_nothing(way, in);
}

TEST(nobody_reads_any_more)
{
    signal(SIGPIPE, SIG_IGN);
    for (int kind = 0; kind < KINDS; kind++) {
        struct way *way = open_way(kind);
        settle(way);
        CHECK_EQ(try_put(way, 0, 10), 0);
        close(way->reader);
        CHECK_EQ(begin(way, 1, 10), -EPIPE);
        CHECK_EQ(stop(way), -EPIPE);
        CHECK(mpx_duct_is_stopped(&way->duct) && !mpx_duct_is_empty(&way->duct));
        close(way->writer);
        free_shared_memory(way, sizeof(*way));
    }
}

/* Nobody writes any more: what is in the ring comes before the end. */
TEST(the_end_comes_after_the_ring)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct way *way = open_way(kind);
        struct receiver *in = new_receiver();
        settle(way);
        CHECK_EQ(begin(way, 0, 10), 0);
        CHECK_EQ(try_put(way, 1, 10), 0);
        close(way->writer);
        check_message(way, in, 0, 10);
        check_message(way, in, 1, 10);
        CHECK_EQ(receive(way, in, much_later()), -EPIPE);
        close(way->reader);
        free_shared_memory(way, sizeof(*way));
        free(in);
    }
}

TEST_OF_BOTH(it_is_not_settled_where_the_kernel_does_not_say)
{
    inject("unread", EIO, 0, 1);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EIO);
    inject_nothing();
    CHECK_EQ(try_put(way, 0, 10), -EXDEV);
    check_nothing(way, in);
}

static void put_with_a_stop(void *argument)
{
    signal_at_step("duct_written", SIGSTOP);
    CHECK_EQ(try_put(argument, 1, 10), 0);
}

TEST_OF_BOTH(another_sender_is_at_work)
{
    mpx_outflow_t out;
    settle(way);
    pid_t pid = start_process(put_with_a_stop, way);
    wait_until_stopped(pid);
    CHECK_EQ(try_put(way, 2, 10), -EBUSY);
    CHECK_EQ(mpx_duct_put(&way->duct, "abc", 3, soon()), -EBUSY);
    mpx_outflow_begin(&out, "abc", 3);
    CHECK_EQ(mpx_duct_begin(&way->duct, way->writer, &out, soon()), -EBUSY);
    CHECK_EQ(mpx_duct_stop(&way->duct, way->writer, false, soon()), -EBUSY);
    CHECK(!mpx_duct_is_stopped(&way->duct));
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, soon()), -EBUSY);
    pid_t other = start_interrupting();
    CHECK_EQ(mpx_duct_put(&way->duct, "abc", 3, much_later()), -EINTR);
    CHECK_EQ(mpx_duct_settle(&way->duct, way->reader, much_later()), -EINTR);
    kill(other, SIGKILL);
    wait_for(other);
    kill(pid, SIGCONT);
    CHECK_EQ(wait_for(pid), 0);
    check_message(way, in, 1, 10);
    check_nothing(way, in);
}

/* ---- Damage ---------------------------------------------------------------------------------- */

TEST_OF_BOTH(a_damaged_record)
{
    static const size_t words[] = {0, 3};
    size_t size;
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(words); i++) {
        for (int bit = 0; bit < 64; bit++) {
            settle(way);
            preset(way, 0);
            CHECK_EQ(try_put(way, 0, 16), 0);
            CHECK_EQ(try_put(way, 1, 16), 0);
            mpx_atomic_u64 *word = &way->duct.ring[words[i]];
            uint64_t value = mpx_u64_load_relaxed(word);
            mpx_u64_store_relaxed(word, value ^ UINT64_C(1) << bit);
            if (i > 0) {
                check_message(way, in, 0, 16);
            }
            CHECK_EQ(mpx_duct_try_get(&way->duct, in->bytes, LONGEST, &size), -EPROTO);
            CHECK_EQ(mpx_duct_try_get(&way->duct, in->bytes, LONGEST, &size), -EPROTO);
            CHECK_EQ(begin(way, 2, 16), -EPROTO);
            mpx_u64_store_relaxed(word, value);
            CHECK_EQ(begin(way, 2, 16), 0);
            if (i == 0) {
                check_message(way, in, 0, 16);
            }
            check_message(way, in, 1, 16);
            check_message(way, in, 2, 16);
        }
    }
}

static uint64_t random_word(void)
{
    uint64_t word = (uint64_t)random_below(UINT32_MAX) << 32 | random_below(UINT32_MAX);
    return word >> random_below(64);
}

/* Whatever is there: no call crashes or hangs, and what is received fits. */
static void use_damaged(struct way *way, struct receiver *in)
{
    static const int allowed[] = {0, -EPROTO, -EAGAIN, -EXDEV, -ENOBUFS, -EBUSY, -EIO, -ETIMEDOUT};
    for (int i = 0; i < 12; i++) {
        size_t capacity = random_below(2) ? LONGEST : random_below(100);
        mpx_wait_mood_t mood = {0};
        int status = 0;
        switch (random_below(6)) {
        case 0:
            status = try_put(way, 1, random_below(20000));
            break;
        case 1:
            status = begin(way, 1, random_below(900));
            break;
        case 2:
            status = stop(way);
            mpx_u32_store_relaxed(&way->duct.stopped, 0);
            break;
        case 3:
            status = mpx_duct_settle(&way->duct, way->reader, much_later());
            break;
        case 4:
            status = mpx_duct_wait_for_room(&way->duct, &mood, 0);
            (void)!mpx_duct_announce_sleep(&way->duct);
            break;
        default:
            status = mpx_duct_try_get(&way->duct, in->bytes, capacity, &in->size);
            CHECK(status != 0 || in->size <= capacity);
        }
        bool is_allowed = false;
        for (size_t j = 0; j < MPX_ARRAY_LENGTH(allowed); j++) {
            is_allowed = is_allowed || status == allowed[j];
        }
        CHECK(is_allowed);
    }
}

static void empty_descriptor(struct way *way)
{
    char bytes[4096];
    while (mpx_os_read_now(way->reader, bytes, sizeof(bytes)) > 0) {
    }
}

/* Words of the ring, or of what is beside it; but the mutex is not to be an owner's who is not. */
static void damage(struct way *way)
{
    mpx_duct_t *duct = &way->duct;
    mpx_atomic_u64 *const words[] = {&duct->tail, &duct->head, &duct->tail_seen};
    for (uint32_t i = random_below(4); i < 4; i++) {
        mpx_atomic_u64 *word = &duct->ring[random_below(random_below(2) ? 40 : 4096)];
        uint64_t value = random_word();
        if (random_below(2)) { /* a record as it could be */
            uint64_t at = (uint64_t)(word - duct->ring) * 8;
            uint32_t size = random_below(4) ? random_below(20000) : UINT32_MAX;
            value = (uint64_t)((uint32_t)(at / 8) * UINT32_C(0x9e3779b1) ^ size) << 32 | size;
        }
        mpx_u64_store_relaxed(word, value);
    }
    if (random_below(3) == 0) {
        mpx_u64_store_relaxed(words[random_below(3)], random_word());
    } else if (random_below(3) == 0) {
        duct->head_seen = random_word();
        duct->moving_from = random_word();
    }
    if (random_below(20) == 0) {
        duct->most = (uint32_t)random_word();
    }
}

TEST_OF_BOTH(whatever_is_in_memory)
{
    for (int run = 0; run < (emulated() ? 1000 : 5000); run++) {
        mpx_duct_init(&way->duct, way->is_socket);
        empty_descriptor(way);
        settle(way);
        preset(way, random_below(3) ? 0 : random_word() & ~UINT64_C(7));
        for (uint32_t i = random_below(20); i > 0; i--) {
            (void)try_put(way, i, random_below(random_below(2) ? 16 : way->most));
        }
        damage(way);
        use_damaged(way, in);
    }
}

/* ---- A model --------------------------------------------------------------------------------- */

/* One who sends and receives by turns, never waiting. */
struct model {
    struct way *way;
    struct receiver *in;
    uint32_t next, first; /* the next number to be sent, and to be received */
    mpx_outflow_t out;    /* which has begun, or has nothing left */
    unsigned char bytes[120000];
};

static void send_some(struct model *model)
{
    struct way *way = model->way;
    if (mpx_outflow_left(&model->out) > 0) {
        int status = mpx_outflow_write(&model->out, way->writer, NULL);
        CHECK(status == 0 || status == -EAGAIN);
        if (mpx_outflow_left(&model->out) == 0) {
            status = mpx_duct_finish(&way->duct, way->writer, way->is_socket, much_later());
            CHECK(status == 0 || status == -EAGAIN);
        }
        return;
    }
    size_t size = size_of(model->next);
    fill(model->bytes, model->next, size);
    int status = mpx_duct_try_put(&way->duct, model->bytes, size);
    CHECK(status == 0 || status == -EAGAIN || status == -EXDEV);
    if (status == -EXDEV || (status == -EAGAIN && random_below(4) == 0)) {
        mpx_outflow_t out;
        mpx_outflow_begin(&out, (const char *)model->bytes, size);
        out.is_socket = way->is_socket;
        status = mpx_duct_begin(&way->duct, way->writer, &out, much_later());
        CHECK(status == 0 || status == -EAGAIN);
        if (status == 0) {
            model->out = out;
        }
    }
    model->next += status == 0;
}

static bool receive_some(struct model *model)
{
    struct receiver *in = model->in;
    struct pollfd look = {.fd = model->way->reader, .events = POLLIN};
    in->is_readable = poll(&look, 1, 0) > 0 && random_below(2);
    if (in->is_readable && mpx_duct_has_message(&model->way->duct)) {
        in->is_readable = false;
    }
    int status = receive_now(model->way, in);
    CHECK(status == 0 || status == -EAGAIN);
    if (status != 0) {
        return false;
    }
    CHECK_EQ(in->size, size_of(model->first));
    CHECK(is_as_filled(in->bytes, model->first, in->size));
    model->first++;
    return true;
}

static void live(struct way *way, struct receiver *in, uint64_t position, int rounds)
{
    struct model *model = calloc(1, sizeof(*model));
    model->way = way;
    model->in = in;
    preset(way, position);
    for (int round = 0; round < rounds; round++) {
        for (uint32_t i = random_below(round % 16 == 0 ? 300 : 12); i > 0; i--) {
            send_some(model);
        }
        for (uint32_t i = random_below(round % 16 == 15 ? 400 : 12); i > 0; i--) {
            (void)receive_some(model);
        }
        if (round > rounds / 2 && random_below(20) == 0) {
            int status = stop(way);
            CHECK(status == 0 || status == -EAGAIN);
        }
    }
    while (model->first != model->next) {
        if (mpx_outflow_left(&model->out) > 0) {
            send_some(model);
        }
        (void)receive_some(model);
    }
    check_nothing(way, in);
    CHECK_EQ(stop(way), 0);
    free(model);
}

TEST_OF_BOTH(sends_and_receives_at_random)
{
    live(way, in, 0, emulated() ? 200 : 4000);
}

TEST_OF_BOTH(positions_wrap)
{
    live(way, in, UINT64_C(0) - MPX_DUCT_RING / 2, emulated() ? 200 : 1000);
    CHECK(mpx_u64_load_relaxed(&way->duct.head) < UINT64_C(1) << 40);
}

TEST_OF_BOTH(the_half_that_is_a_futex_wraps)
{
    live(way, in, (UINT64_C(7) << 32) - MPX_DUCT_RING / 2, emulated() ? 200 : 1000);
    CHECK(mpx_u64_load_relaxed(&way->duct.head) > UINT64_C(7) << 32);
}

/* ---- Threads --------------------------------------------------------------------------------- */

enum { SENDERS = 3, RECEIVERS = 3 };

/* A process has a lock for who writes to the descriptor, and one for who reads it. */
struct crowd {
    struct way *way;
    uint32_t each; /* messages of a sender */
    mpx_atomic_u32 senders, receivers, got;
    mpx_atomic_u32 *seen; /* how often each number came */
    pthread_mutex_t writing, reading;
    struct receiver *in; /* who has `reading` */
};

static int send_in_turn(struct crowd *crowd, uint32_t number)
{
    struct way *way = crowd->way;
    mpx_wait_mood_t mood = {0};
    unsigned char bytes[120000];
    size_t size = size_of(number);
    fill(bytes, number, size);
    int status = mpx_duct_try_put(&way->duct, bytes, size);
    while (status == -EAGAIN || status == -EBUSY) {
        if (status == -EAGAIN && number % 8 == 0) {
            status = -EXDEV; /* so that the ring is emptied now and then */
            break;
        }
        if (status == -EAGAIN) {
            CHECK_EQ(mpx_duct_wait_for_room(&way->duct, &mood, much_later()), 0);
        }
        status = mpx_duct_put(&way->duct, bytes, size, much_later());
    }
    if (status == -EXDEV) {
        pthread_mutex_lock(&crowd->writing);
        status = send_aside(way, bytes, size, &mood, much_later());
        pthread_mutex_unlock(&crowd->writing);
    }
    return status;
}

static void *be_sender(void *argument)
{
    struct crowd *crowd = argument;
    uint32_t first = mpx_u32_fetch_add_relaxed(&crowd->senders, 1) * crowd->each;
    for (uint32_t i = 0; i < crowd->each; i++) {
        CHECK_EQ(send_in_turn(crowd, first + i), 0);
    }
    return NULL;
}

/* Without the lock out of the ring; where that does not do, with it. 0, or -EAGAIN. */
static int receive_in_turn(struct crowd *crowd, struct receiver *own, struct receiver **got)
{
    size_t size;
    int status = mpx_duct_try_get(&crowd->way->duct, own->bytes, LONGEST, &size);
    own->size = size;
    *got = own;
    if (status != -EAGAIN && status != -EXDEV) {
        return status;
    }
    pthread_mutex_lock(&crowd->reading);
    status = receive(crowd->way, crowd->in, mpx_os_deadline(MPX_NANOS_PER_MILLI));
    if (status == 0) {
        own->size = crowd->in->size;
        memcpy(own->bytes, crowd->in->bytes, own->size);
    }
    pthread_mutex_unlock(&crowd->reading);
    return status;
}

static void *be_receiver(void *argument)
{
    struct crowd *crowd = argument;
    uint32_t all = SENDERS * crowd->each, last[SENDERS] = {0};
    struct receiver *own = new_receiver(), *in;
    while (mpx_u32_load_relaxed(&crowd->got) < all) {
        int status = receive_in_turn(crowd, own, &in);
        CHECK(status == 0 || status == -EAGAIN);
        if (status != 0) {
            continue;
        }
        struct head head;
        memcpy(&head, in->bytes, sizeof(head));
        CHECK(in->size >= sizeof(head) && head.number < all);
        CHECK(is_as_filled(in->bytes, head.number, in->size));
        if (head.number < all) {
            uint32_t sender = head.number / crowd->each;
            CHECK(head.number >= last[sender]);
            last[sender] = head.number + 1;
            mpx_u32_fetch_add_relaxed(&crowd->seen[head.number], 1);
        }
        mpx_u32_fetch_add_relaxed(&crowd->got, 1);
    }
    free(own);
    return NULL;
}

/* In the middle of it all, by somebody who neither sends nor receives. */
static void *be_stopper(void *argument)
{
    struct crowd *crowd = argument;
    while (mpx_u32_load_relaxed(&crowd->got) < crowd->each) {
        sched_yield();
    }
    int status;
    do {
        pthread_mutex_lock(&crowd->writing);
        status = stop(crowd->way);
        pthread_mutex_unlock(&crowd->writing);
        CHECK(status == 0 || status == -EAGAIN);
    } while (status == -EAGAIN);
    return NULL;
}

static void run_crowd(struct way *way, int receivers, bool stops)
{
    struct crowd crowd = {.way = way,
                          .each = emulated() ? 100 : 2000,
                          .writing = PTHREAD_MUTEX_INITIALIZER,
                          .reading = PTHREAD_MUTEX_INITIALIZER,
                          .in = new_receiver()};
    pthread_t threads[SENDERS + RECEIVERS + 1];
    int count = 0;
    crowd.seen = calloc((size_t)SENDERS * crowd.each, sizeof(*crowd.seen));
    for (int i = 0; i < SENDERS; i++) {
        CHECK_EQ(pthread_create(&threads[count++], NULL, be_sender, &crowd), 0);
    }
    for (int i = 0; i < receivers; i++) {
        CHECK_EQ(pthread_create(&threads[count++], NULL, be_receiver, &crowd), 0);
    }
    if (stops) {
        CHECK_EQ(pthread_create(&threads[count++], NULL, be_stopper, &crowd), 0);
    }
    while (count > 0) {
        pthread_join(threads[--count], NULL);
    }
    for (uint32_t i = 0; i < SENDERS * crowd.each; i++) {
        CHECK_EQ(mpx_u32_load_relaxed(&crowd.seen[i]), 1);
    }
    check_nothing(way, crowd.in);
    CHECK(mpx_duct_is_stopped(&way->duct) == stops);
    free(crowd.seen);
    free(crowd.in);
}

TEST_OF_BOTH(many_senders_and_one_receiver)
{
    CHECK_EQ(in->size, 0);
    run_crowd(way, 1, false);
}

TEST_OF_BOTH(many_senders_and_many_receivers)
{
    CHECK_EQ(in->size, 0);
    run_crowd(way, RECEIVERS, false);
}

TEST_OF_BOTH(stopped_in_the_middle_of_it_all)
{
    CHECK_EQ(in->size, 0);
    run_crowd(way, 1, true);
}

TEST_OF_BOTH(stopped_with_many_receivers)
{
    CHECK_EQ(in->size, 0);
    run_crowd(way, RECEIVERS, true);
}
