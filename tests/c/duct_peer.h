/* duct_peer.h - what the tests of the duct share: who sends and receives as its callers do, and
 * messages whose contents are known.
 */
#ifndef DUCT_PEER_H
#define DUCT_PEER_H

#include "harness.h"

#include "mpx_duct.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* More than a pipe or a socket holds. */
enum { LONGEST = 300 * 1024, KINDS = 2 };

/* In memory that processes share: a duct, and its descriptor's two ends. */
struct way {
    mpx_duct_t duct;
    int reader, writer;
    bool is_socket;
    uint32_t most;
};

static inline struct way *open_way(bool is_socket)
{
    struct way *way = shared_memory(sizeof(*way));
    int ends[2];
    CHECK_EQ(is_socket ? socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)
                       : pipe2(ends, O_CLOEXEC),
             0);
    way->reader = ends[0];
    way->writer = ends[1];
    way->is_socket = is_socket;
    way->most = is_socket ? MPX_DUCT_MOST : MPX_DUCT_MOST_PIPE;
    mpx_duct_init(&way->duct, is_socket);
    return way;
}

/* Where a write to it fails: see mpx_os_write_now. */
static inline const char *write_site(const struct way *way)
{
    return way->is_socket || !mpx_os_has(MPX_HAS_NOWAIT) ? "stream_send" : "stream_write_now";
}

static inline void close_way(struct way *way)
{
    close(way->reader);
    close(way->writer);
    free_shared_memory(way, sizeof(*way));
}

/* ---- Contents -------------------------------------------------------------------------------- */

struct head {
    uint32_t number;
    uint32_t size;
};

/* Bytes of any length; what has room begins with its head. */
static inline void fill(unsigned char *bytes, uint32_t number, size_t size)
{
    struct head head = {number, (uint32_t)size};
    for (size_t i = 0; i < size; i++) {
        bytes[i] = (unsigned char)(number * 31 + i * 7);
    }
    if (size >= sizeof(head)) {
        memcpy(bytes, &head, sizeof(head));
    }
}

static inline bool is_as_filled(const unsigned char *bytes, uint32_t number, size_t size)
{
    struct head head = {number, (uint32_t)size};
    size_t i = 0;
    if (size >= sizeof(head)) {
        if (memcmp(bytes, &head, sizeof(head)) != 0) {
            return false;
        }
        i = sizeof(head);
    }
    for (; i < size; i++) {
        if (bytes[i] != (unsigned char)(number * 31 + i * 7)) {
            return false;
        }
    }
    return true;
}

/* Of the message of this number: mostly short, and around what the ring has room for. */
static inline size_t size_of(uint32_t number)
{
    static const uint32_t most[] = {1, 8, 40, 40, 200, 200, 3000, 4200, 17000, 100000};
    uint32_t mixed = number * UINT32_C(2654435761);
    return sizeof(struct head) + (mixed >> 8) % most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)];
}

/* ---- Sending --------------------------------------------------------------------------------- */

/* What is left of a message that has begun. */
static inline int write_rest(struct way *way, mpx_outflow_t *out, mpx_wait_mood_t *mood,
                             int64_t deadline)
{
    mpx_stream_wait_t wait = {.mood = mood, .deadline = deadline};
    int status = 0;
    if (mpx_outflow_left(out) == 0) {
        return 0;
    }
    while (status == 0 && mpx_outflow_left(out) > 0) {
        status = mpx_outflow_write(out, way->writer, &wait);
    }
    int finished = mpx_duct_finish(&way->duct, way->writer, way->is_socket, deadline);
    return status < 0 ? status : finished == -EAGAIN ? 0 : finished;
}

/* Through the descriptor. */
static inline int send_aside(struct way *way, const unsigned char *bytes, size_t size,
                             mpx_wait_mood_t *mood, int64_t deadline)
{
    mpx_outflow_t out;
    mpx_outflow_begin(&out, (const char *)bytes, size);
    out.is_socket = way->is_socket;
    for (;;) {
        int status = mpx_duct_begin(&way->duct, way->writer, &out, deadline);
        if (status != -EAGAIN) {
            return status < 0 ? status : write_rest(way, &out, mood, deadline);
        }
        struct pollfd room = {.fd = way->writer, .events = POLLOUT};
        if (mpx_os_poll(&room, 1, mpx_os_deadline(MPX_NANOS_PER_MILLI)) > 0) {
            /* Not for want of room: the receiver is to come to the descriptor's end. */
            (void)!mpx_duct_wait_for_room(&way->duct, mood, mpx_os_deadline(MPX_NANOS_PER_MILLI));
        }
        if (mpx_os_now() >= deadline) {
            return -ETIMEDOUT;
        }
    }
}

static inline int send_bytes(struct way *way, const unsigned char *bytes, size_t size,
                             int64_t deadline)
{
    mpx_wait_mood_t mood = {0};
    int status = mpx_duct_try_put(&way->duct, bytes, size);
    while (status == -EAGAIN || status == -EBUSY) {
        if (status == -EAGAIN) {
            status = mpx_duct_wait_for_room(&way->duct, &mood, deadline);
            if (status < 0) {
                return status;
            }
        }
        status = mpx_duct_put(&way->duct, bytes, size, deadline);
    }
    return status == -EXDEV ? send_aside(way, bytes, size, &mood, deadline) : status;
}

/* The message of this number. */
static inline int send_number(struct way *way, uint32_t number, int64_t deadline)
{
    unsigned char bytes[120000];
    size_t size = size_of(number);
    fill(bytes, number, size);
    return send_bytes(way, bytes, size, deadline);
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* What a receiver keeps between calls. */
struct receiver {
    mpx_inflow_t in;
    bool is_readable; /* poll has said so */
    size_t size;
    unsigned char bytes[LONGEST];
};

/* One step at the descriptor: 0: a message is there; -EALREADY: look again; -EINPROGRESS: the rest
 * of one is to come; or what a read says. */
static inline int read_aside(struct way *way, struct receiver *receiver)
{
    mpx_inflow_t *in = &receiver->in;
    in->is_socket = way->is_socket;
    receiver->is_readable = false;
    for (;;) {
        int status;
        if (!in->has_size) {
            status = mpx_inflow_read_header(in, way->reader, NULL);
        } else if (in->size > LONGEST) {
            return -EBADMSG;
        } else {
            status = mpx_inflow_read(in, way->reader, (char *)receiver->bytes + in->got,
                                     LONGEST - (size_t)in->got, NULL);
        }
        if (status == 0 && in->has_size && in->got == in->size) {
            receiver->size = (size_t)in->size;
            mpx_duct_count_read(&way->duct);
            mpx_inflow_reset(in);
            return 0;
        }
        if (status == -EAGAIN && mpx_inflow_has_begun(in)) {
            return -EINPROGRESS;
        }
        if ((status == -EAGAIN || status == -EPIPE) && !mpx_inflow_has_begun(in)) {
            int settled = mpx_duct_settle(&way->duct, way->reader, much_later());
            if (settled == -EAGAIN) { /* something has come, or its writer is not done yet */
                sched_yield();
                return -EALREADY;
            }
            bool is_end = status == -EPIPE && !mpx_duct_has_something(&way->duct);
            return settled < 0 && settled != -EAGAIN ? settled : is_end ? -EPIPE : -EALREADY;
        }
        if (status < 0) {
            return status;
        }
    }
}

/* The next message, if there is one now: 0; -EAGAIN: there is none, and that has been announced;
 * or a negative errno. */
static inline int receive_now(struct way *way, struct receiver *receiver)
{
    for (;;) {
        int status = -EXDEV;
        if (!mpx_inflow_has_begun(&receiver->in) && !receiver->is_readable) {
            status = mpx_duct_try_get(&way->duct, receiver->bytes, sizeof(receiver->bytes),
                                      &receiver->size);
        }
        if (status == -EXDEV) {
            status = read_aside(way, receiver);
        } else if (status == -EAGAIN && !mpx_duct_announce_sleep(&way->duct)) {
            status = -EALREADY;
        }
        if (status != -EALREADY) {
            return status == -EINPROGRESS ? -EAGAIN : status;
        }
    }
}

/* The same, with a wait: -EAGAIN at the deadline. */
static inline int receive(struct way *way, struct receiver *receiver, int64_t deadline)
{
    for (;;) {
        int status = receive_now(way, receiver);
        if (status != -EAGAIN) {
            return status;
        }
        struct pollfd look = {.fd = way->reader, .events = POLLIN};
        if (mpx_os_poll(&look, 1, deadline) == 0) {
            return -EAGAIN;
        }
        receiver->is_readable = true;
    }
}

static inline struct receiver *new_receiver(void)
{
    return calloc(1, sizeof(struct receiver));
}

/* The next message has this number, and is whole. */
static inline void check_next(struct way *way, struct receiver *receiver, uint32_t number)
{
    int status = receive(way, receiver, much_later());
    CHECK_EQ(status, 0);
    if (status == 0) {
        CHECK_EQ(receiver->size, size_of(number));
        CHECK(is_as_filled(receiver->bytes, number, receiver->size));
    }
}

static inline void check_nothing(struct way *way, struct receiver *receiver)
{
    CHECK_EQ(receive_now(way, receiver), -EAGAIN);
    struct pollfd look = {.fd = way->reader, .events = POLLIN};
    CHECK_EQ(poll(&look, 1, 0), 0);
}

/* So that messages go through the ring, unless there is something in the descriptor. */
static inline void settle(struct way *way)
{
    int status = mpx_duct_settle(&way->duct, way->reader, much_later());
    CHECK_EQ(status, mpx_os_unread(way->reader) > 0 ? -EAGAIN : 0);
}

/* Both positions, as if so many bytes had been put and taken. */
static inline void preset(struct way *way, uint64_t position)
{
    uint64_t bits = mpx_u64_load_relaxed(&way->duct.tail) & 7;
    mpx_u64_store_relaxed(&way->duct.tail, position | bits);
    mpx_u64_store_relaxed(&way->duct.head, position);
    mpx_u64_store_relaxed(&way->duct.tail_seen, position);
    way->duct.head_seen = position;
}

static inline uint64_t used_bytes(struct way *way)
{
    uint64_t head = mpx_u64_load_relaxed(&way->duct.head) & ~UINT64_C(7);
    return (mpx_u64_load_relaxed(&way->duct.tail) & ~UINT64_C(7)) - head;
}

#endif
