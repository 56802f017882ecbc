/* test_stream.c - messages through pipes and sockets: the bytes, the ends, waiting, interruptions.
 */
#define _GNU_SOURCE

#include "fuzz_stream.h"
#include "harness.h"

#include "mpx_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static mpx_wait_mood_t mood;

static mpx_stream_wait_t until(int64_t deadline)
{
    return (mpx_stream_wait_t){.mood = &mood, .deadline = deadline};
}

/* What the code is told of what was opened last. */
static bool is_socket;

static void open_pipe(int ends[2])
{
    CHECK_EQ(pipe2(ends, O_CLOEXEC), 0);
    is_socket = mpx_os_is_stream_socket(ends[0]);
    CHECK(!is_socket);
}

static void open_sockets(int ends[2])
{
    CHECK_EQ(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends), 0);
    is_socket = mpx_os_is_stream_socket(ends[0]);
    CHECK(is_socket);
}

/* Either may have got the number of the other. */
static void open_pipe_for_sockets(int ends[2])
{
    open_pipe(ends);
    is_socket = true;
}

static void open_sockets_for_a_pipe(int ends[2])
{
    open_sockets(ends);
    is_socket = false;
}

TEST(what_lingers_may_take_long_to_close)
{
    int ends[2], file = open("/dev/null", O_RDONLY | O_CLOEXEC);
    open_pipe(ends);
    CHECK(mpx_os_closes_at_once(ends[0]) && mpx_os_closes_at_once(ends[1]));
    close(ends[0]);
    close(ends[1]);
    CHECK(mpx_os_closes_at_once(ends[0])); /* there is nothing to close */
    open_sockets(ends);
    const struct linger lingers = {.l_onoff = 1, .l_linger = 10};
    CHECK(mpx_os_closes_at_once(ends[0]));
    CHECK_EQ(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &lingers, sizeof(lingers)), 0);
    CHECK(!mpx_os_closes_at_once(ends[0]) && mpx_os_closes_at_once(ends[1]));
    CHECK(!mpx_os_closes_at_once(file));
    close(file);
    close(ends[0]);
    close(ends[1]);
}

typedef void open_t(int ends[2]);
static open_t *const kinds[] = {open_pipe, open_sockets, open_pipe_for_sockets,
                                open_sockets_for_a_pipe};

static void close_both(const int ends[2])
{
    close(ends[0]);
    close(ends[1]);
}

/* ---- What is on the way ---------------------------------------------------------------------- */

static void check_header(uint64_t size, const char *expected, size_t length)
{
    mpx_outflow_t out;
    mpx_outflow_begin(&out, NULL, (size_t)size);
    CHECK_EQ(out.header_size, length);
    CHECK_EQ(memcmp(out.header, expected, length), 0);
}

TEST(the_header_is_the_standard_librarys)
{
    check_header(0, "\0\0\0\0", 4);
    check_header(1, "\0\0\0\1", 4);
    check_header(0x01020304, "\1\2\3\4", 4);
    check_header(0x7fffffff, "\x7f\xff\xff\xff", 4);
    check_header(0x80000000, "\xff\xff\xff\xff\0\0\0\0\x80\0\0\0", 12);
    check_header(0x0102030405060708, "\xff\xff\xff\xff\1\2\3\4\5\6\7\10", 12);
}

/* Receives what was sent, of at most `room` bytes, and lets go of it. */
static int receive(int fd, char *data, size_t room, const mpx_stream_wait_t *wait)
{
    mpx_inflow_t in = {.header_got = 0, .is_socket = is_socket};
    while (!in.has_size) {
        int status = mpx_inflow_read_header(&in, fd, wait);
        if (status < 0) {
            return status;
        }
    }
    CHECK(in.size <= room);
    while (in.got < in.size && in.size <= room) {
        int status = mpx_inflow_read(&in, fd, data + in.got, room - (size_t)in.got, wait);
        if (status < 0) {
            return status;
        }
    }
    return (int)in.size;
}

static int send_all(int fd, const char *data, size_t size, const mpx_stream_wait_t *wait)
{
    mpx_outflow_t out;
    mpx_outflow_begin(&out, data, size);
    out.is_socket = is_socket;
    while (mpx_outflow_left(&out) > 0) {
        int status = mpx_outflow_write(&out, fd, wait);
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

TEST(messages_arrive)
{
    char data[5000];
    memset(data, 'x', sizeof(data));
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        int ends[2];
        char got[sizeof(data)];
        kinds[kind](ends);
        for (size_t size = 0; size <= sizeof(data); size += size < 20 ? 1 : 1660) {
            data[size / 2] = (char)size;
            CHECK_EQ(send_all(ends[1], data, size, NULL), 0);
            CHECK_EQ(receive(ends[0], got, sizeof(got), NULL), size);
            CHECK_EQ(memcmp(got, data, size), 0);
        }
        CHECK_EQ(receive(ends[0], got, sizeof(got), NULL), -EAGAIN);
        close_both(ends);
    }
}

/* A header in single bytes: each is taken as it comes. */
static int parse(const char *bytes, size_t count, mpx_inflow_t *in)
{
    int ends[2], status = 0;
    open_pipe(ends);
    *in = (mpx_inflow_t){.header_got = 0};
    for (size_t i = 0; i < count && status == 0; i++) {
        CHECK(!in->has_size);
        CHECK_EQ(write(ends[1], bytes + i, 1), 1);
        status = mpx_inflow_read_header(in, ends[0], NULL);
    }
    close_both(ends);
    return status;
}

TEST(a_header_comes_in_pieces)
{
    mpx_inflow_t in;
    CHECK_EQ(parse("\0\0\1\2", 4, &in), 0);
    CHECK(in.has_size && in.size == 0x102);
    CHECK_EQ(parse("\xff\xff\xff\xff\0\0\0\1\0\0\0\0", 12, &in), 0);
    CHECK(in.has_size && in.size == UINT64_C(1) << 32);
    CHECK_EQ(parse("\xff\xff\xff\xff\0\0\0\0\0\0\0\7", 12, &in), 0);
    CHECK(in.has_size && in.size == 7);
}

TEST(what_is_no_size_is_told)
{
    mpx_inflow_t in;
    CHECK_EQ(parse("\xff\xff\xff\xfe", 4, &in), -EBADMSG);
    CHECK_EQ(parse("\x80\0\0\0", 4, &in), -EBADMSG);
    CHECK_EQ(parse("\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", 12, &in), -EBADMSG);
    CHECK_EQ(parse("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12, &in), -EBADMSG);
}

/* ---- Ends ------------------------------------------------------------------------------------ */

/* What a receiver is told when only so many bytes of a stream come. */
static int at_end_of(const char *bytes, size_t count)
{
    char got[100];
    int ends[2];
    open_pipe(ends);
    CHECK_EQ(write(ends[1], bytes, count), count);
    close(ends[1]);
    int status = receive(ends[0], got, sizeof(got), NULL);
    close(ends[0]);
    return status;
}

TEST(the_end_is_told_from_a_torn_message)
{
    static const char shorter[] = "\0\0\0\3abc", longer[] = "\xff\xff\xff\xff\0\0\0\0\0\0\0\3abc";
    for (size_t count = 0; count <= 7; count++) {
        int expected = count == 7 ? 3 : count == 0 || count == 4 ? -EPIPE : -EPROTO;
        CHECK_EQ(at_end_of(shorter, count), expected);
    }
    for (size_t count = 0; count <= 15; count++) {
        bool is_at_a_start = count == 0 || count == 4 || count == 12;
        CHECK_EQ(at_end_of(longer, count), count == 15 ? 3 : is_at_a_start ? -EPIPE : -EPROTO);
    }
}

TEST(nobody_reads_any_more)
{
    signal(SIGPIPE, SIG_IGN);
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        int ends[2];
        kinds[kind](ends);
        close(ends[0]);
        CHECK_EQ(send_all(ends[1], "abc", 3, NULL), -EPIPE);
        close(ends[1]);
        CHECK_EQ(send_all(ends[1], "abc", 3, NULL), -EBADF);
    }
}

/* ---- Brackets -------------------------------------------------------------------------------- */

/* Mostly at once, but not where pipes are written to in other ways. */
static void write_in_pieces(mpx_outflow_t *out, const int ends[2], char *got)
{
    while (mpx_outflow_left(out) > 0) {
        size_t done = out->done, left = mpx_outflow_left(out);
        char copy[64];
        CHECK(left <= sizeof(copy));
        mpx_outflow_copy_rest(out, copy);
        CHECK_EQ(mpx_outflow_write(out, ends[1], NULL), 0);
        ssize_t more = read(ends[0], got + done, left);
        CHECK_EQ((size_t)more, out->done - done);
        CHECK_EQ(memcmp(got + done, copy, (size_t)more), 0);
    }
}

TEST(brackets_are_a_part_of_the_message)
{
    const mpx_brackets_t cases[] = {
        {"before", "end", 6, 3}, {"beforeit", "last", 8, 4}, {"", "z", 0, 1}, {"a", "", 1, 0}};
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        int ends[2];
        kinds[kind](ends);
        for (size_t i = 0; i < MPX_ARRAY_LENGTH(cases); i++) {
            const mpx_brackets_t *brackets = &cases[i];
            unsigned before = brackets->before_size, after = brackets->after_size;
            char expected[64] = {0, 0, 0, (char)(before + 7 + after)}, got[64];
            memcpy(expected + 4, brackets->before, before);
            memcpy(expected + 4 + before, "content", 7);
            memcpy(expected + 4 + before + 7, brackets->after, after);
            size_t length = 4 + before + 7 + after;
            /* As if so many bytes of it had been written. */
            for (size_t done = 0; done <= length; done++) {
                mpx_outflow_t out;
                mpx_outflow_begin_within(&out, brackets, "content", 7);
                out.is_socket = is_socket;
                CHECK_EQ(mpx_outflow_length(&out), length);
                out.done = done;
                memcpy(got, expected, done);
                write_in_pieces(&out, ends, got);
                CHECK_EQ(memcmp(got, expected, length), 0);
            }
        }
        close_both(ends);
    }
}

/* ---- Waiting --------------------------------------------------------------------------------- */

enum { LARGE = 3 << 20 };

static void send_large(void *argument)
{
    const int *ends = argument;
    mpx_stream_wait_t wait = until(MPX_NEVER);
    char *data = malloc(LARGE);
    for (size_t i = 0; i < LARGE; i++) {
        data[i] = (char)(i >> 12);
    }
    close(ends[0]);
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(send_all(ends[1], data, LARGE - (size_t)i, &wait), 0);
    }
    free(data);
}

TEST(large_messages_go_in_pieces)
{
    char *got = malloc(LARGE);
    mpx_stream_wait_t wait = until(MPX_NEVER);
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        int ends[2];
        kinds[kind](ends);
        pid_t pid = start_process(send_large, ends);
        close(ends[1]);
        for (int i = 0; i < 3; i++) {
            int size = receive(ends[0], got, LARGE, &wait), wrong = 0;
            CHECK_EQ(size, LARGE - i);
            for (int at = 0; at < size; at++) {
                wrong += got[at] != (char)(at >> 12);
            }
            CHECK_EQ(wrong, 0);
        }
        CHECK_EQ(receive(ends[0], got, LARGE, &wait), -EPIPE);
        CHECK_EQ(wait_for(pid), 0);
        close(ends[0]);
    }
    free(got);
}

TEST(a_wait_ends_at_the_deadline)
{
    char got[10], *data = calloc(1, LARGE);
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        int ends[2];
        kinds[kind](ends);
        int64_t began = mpx_os_now();
        mpx_stream_wait_t wait = until(began + 20 * MPX_NANOS_PER_MILLI);
        CHECK_EQ(receive(ends[0], got, sizeof(got), &wait), -ETIMEDOUT);
        CHECK(mpx_os_now() >= began + 20 * MPX_NANOS_PER_MILLI);
        CHECK_EQ(send_all(ends[1], data, LARGE, NULL), -EAGAIN);
        wait.deadline = mpx_os_now() + 20 * MPX_NANOS_PER_MILLI;
        CHECK_EQ(send_all(ends[1], data, LARGE, &wait), -ETIMEDOUT);
        close_both(ends);
    }
    free(data);
}

TEST(a_signal_ends_a_wait)
{
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        char got[10], *data = calloc(1, LARGE);
        int ends[2];
        kinds[kind](ends);
        mpx_stream_wait_t wait = until(much_later());
        pid_t pid = start_interrupting();
        CHECK_EQ(receive(ends[0], got, sizeof(got), &wait), -EINTR);
        kill(pid, SIGKILL);
        wait_for(pid);
        CHECK_EQ(send_all(ends[1], data, LARGE, NULL), -EAGAIN);
        pid = start_interrupting();
        CHECK_EQ(send_all(ends[1], data, LARGE, &wait), -EINTR);
        kill(pid, SIGKILL);
        wait_for(pid);
        close_both(ends);
        free(data);
    }
}

/* ---- System calls that fail ------------------------------------------------------------------ */

static void check_errors(open_t *open)
{
    static const char *const reads[] = {"stream_recv", "stream_read_now", "stream_read"};
    static const char *const writes[] = {"stream_write_now", "stream_send", "stream_write"};
    int ends[2];
    char got[10];
    open(ends);
    mpx_stream_wait_t wait = until(MPX_NEVER);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(writes); i++) {
        /* Where one is not used, another one is: then it goes through. */
        inject(writes[i], EIO, 0, 1);
        int status = send_all(ends[1], "abc", 3, &wait);
        inject_nothing();
        CHECK(status == -EIO || status == 0);
        if (status < 0) {
            CHECK_EQ(send_all(ends[1], "abc", 3, &wait), 0);
        }
    }
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(reads); i++) {
        inject(reads[i], EIO, 0, 1);
        int status = receive(ends[0], got, sizeof(got), &wait);
        inject_nothing();
        CHECK(status == -EIO || status == 3);
        if (status < 0) {
            CHECK_EQ(receive(ends[0], got, sizeof(got), &wait), 3);
        }
    }
    inject("poll", ENOMEM, 0, 1);
    CHECK_EQ(receive(ends[0], got, sizeof(got), &wait), -ENOMEM);
    close_both(ends);
}

TEST(errors_are_told_and_change_nothing)
{
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        check_errors(kinds[kind]);
    }
}

/* A kernel that knows the flag, but not of pipes; of neither. */
TEST(what_the_kernel_does_not_know_is_done_otherwise)
{
    for (size_t kind = 0; kind < MPX_ARRAY_LENGTH(kinds); kind++) {
        char got[5000], data[5000] = "";
        int ends[2];
        kinds[kind](ends);
        inject("stream_read_now", EOPNOTSUPP, 0, ALWAYS);
        inject("stream_write_now", EOPNOTSUPP, 0, ALWAYS);
        CHECK_EQ(receive(ends[0], got, sizeof(got), NULL), -EAGAIN);
        CHECK_EQ(send_all(ends[1], data, sizeof(data), NULL), 0);
        CHECK_EQ(receive(ends[0], got, sizeof(got), NULL), sizeof(data));
        int status;
        do {
            status = send_all(ends[1], data, sizeof(data), NULL);
        } while (status == 0);
        CHECK_EQ(status, -EAGAIN);
        inject_nothing();
        close_both(ends);
    }
}

/* ---- A hostile peer -------------------------------------------------------------------------- */

/* Bytes that are mostly those of headers. */
TEST(whatever_comes_is_messages_and_an_end)
{
    static const uint8_t likely[] = {0, 0, 0, 1, 2, 5, 0x7f, 0x80, 0xff, 0xff, 0xff, 0xff};
    uint8_t bytes[300];
    for (int run = 0; run < 5000; run++) {
        size_t size = 2 + random_below(random_below(2) ? 30 : sizeof(bytes) - 1);
        for (size_t i = 0; i < size; i++) {
            bytes[i] = (uint8_t)random_below(256);
            if (i > 1 && random_below(4) > 0) {
                bytes[i] = likely[random_below(MPX_ARRAY_LENGTH(likely))];
            }
        }
        LLVMFuzzerTestOneInput(bytes, size);
    }
}
