/* mpx_duct.h - one direction of a pipe whose two ends share memory: messages through a ring, where
 * that is sooner done, and through the pipe's descriptor.
 *
 * Layer: L3
 *
 * Short messages go through the ring, without a system call. The rest goes through the descriptor,
 * in the standard library's form (mpx_stream.h): what is long, what comes while the receiver
 * sleeps, whom that wakes, and everything once the duct is stopped, since somebody wants to have
 * the plain descriptor. What is in the ring then is written to the descriptor.
 *
 * Order. What is in the descriptor always comes before what is in the ring. Who writes to it finds
 * the ring empty, or empties it to there, and says so in `aside` before; receivers read the ring
 * only where nothing is aside. They say that themselves, when they have found the descriptor empty:
 * under the senders' mutex.
 *
 *     tail   position | the receiver sleeps         senders, under the mutex
 *     head   position | somebody waits for room     receivers, and senders that empty the ring
 *                     | what is before it is on its way to the descriptor
 *
 * A position is the number of bytes that were ever put. A message becomes visible by one exchange
 * of `tail`, which fails where the receiver has gone to sleep meanwhile; it is taken by one of
 * `head`, which fails where somebody else has taken it. So receivers need no mutex: they copy, then
 * take.
 *
 * Room. All that is in the ring has room in the descriptor, behind what is there: so it can be put
 * there at any time, and a sender waits when it would without a ring.
 *
 * Death. Whoever is killed before such an exchange has done nothing, whoever is killed after it is
 * done; but for who empties the ring to the descriptor, which takes two steps: to take the
 * messages, and to write them. It notes before what it is about to do, and `head` says that the
 * note counts, from the exchange that takes them until they are written and counted. The kernel
 * writes so few bytes as a whole or not at all; which it was is known to the receiver, who counts
 * what it reads, once it has read the descriptor to its end. Then it puts the messages back, or
 * not.
 *
 * The caller writes to the descriptor one message at a time, and reads it so: it has a lock of its
 * own process for each. Several processes that send long messages mix them, as they would with the
 * standard library; short ones they do not.
 *
 * Corrupt memory: what is read from the ring is checked before it is used, and is -EPROTO.
 */
#ifndef MPX_DUCT_H
#define MPX_DUCT_H

#include "mpx_mutex.h"
#include "mpx_stream.h"
#include "mpx_wait.h"

/* Bytes of the ring, a power of two. */
#define MPX_DUCT_RING (UINT32_C(32) * 1024)

/* The longest message in the ring, through a socket, which takes so much as a whole; a pipe does
 * that up to PIPE_BUF. */
#define MPX_DUCT_MOST      (MPX_DUCT_RING / 2 - 16)
#define MPX_DUCT_MOST_PIPE (UINT32_C(4096) - 4)

/* In shared memory; the members are private. */
typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) uint64_t magic;
    uint32_t most;
    mpx_atomic_u32 stopped;
    mpx_atomic_u32 aside;  /* there may be something in the descriptor */
    mpx_atomic_u32 opened; /* the receiver knows of the ring */
    mpx_file_id_t file;    /* of the descriptor; all zero: it is not looked at */

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 tail;
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 head;

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_mutex_t senders;
    uint64_t head_seen; /* `head`, as it was at some time */
    uint32_t written;   /* messages, to the descriptor since it was empty last */
    uint32_t doubtful;  /* a sender died with the mutex: `written` may be wrong */
    uint32_t moving;    /* a dead one was moving messages from the ring to the descriptor */
    uint32_t moving_after, moving_count; /* note: so many, the first one after so many written */
    uint64_t moving_from;                /* from there to `head` */
    uint64_t weight;                     /* bytes that were written, see weigh */
    uint32_t read_seen;                  /* `read`, when a sender had waited in vain */
    uint64_t writing; /* the process that is in the middle of a message, as its word, or 0 */

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 tail_seen; /* as head_seen, of receivers */
    mpx_atomic_u32 read;                                  /* messages, from the descriptor */

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 ring[MPX_DUCT_RING / 8];
} mpx_duct_t;

/* Makes one of memory that nobody else has yet. Until the receiver has opened it, by reading the
 * descriptor to its end, all messages go through that. */
void mpx_duct_init(mpx_duct_t *duct, bool is_socket);

/* Of a new one: what is in the ring is written to this file only. The program may have closed the
 * descriptor, and have another one under the number: then it is -EBADF. */
void mpx_duct_belong_to(mpx_duct_t *duct, const mpx_file_id_t *file);

/* Whether there is one in so many bytes of memory. */
bool mpx_duct_is_sound(const mpx_duct_t *duct, size_t size);

/* ---- Sending --------------------------------------------------------------------------------- */

/* Puts a message into the ring: 0, or
 *   -EXDEV   it goes through the descriptor: mpx_duct_begin
 *   -EAGAIN  there is no room
 *   -EBUSY   another sender is at work (mpx_duct_put: until the deadline)
 *   -EINTR   a signal handler ran */
MPX_NODISCARD int mpx_duct_try_put(mpx_duct_t *duct, const void *data, size_t size);
MPX_NODISCARD int mpx_duct_put(mpx_duct_t *duct, const void *data, size_t size, int64_t deadline);

/* Waits until receivers have taken something, or a while: 0, -ETIMEDOUT or -EINTR. */
MPX_NODISCARD int mpx_duct_wait_for_room(mpx_duct_t *duct, mpx_wait_mood_t *mood, int64_t deadline);

/* Begins to write a message to the descriptor, after what is in the ring. 0: all of it has been
 * written; or a part, and the rest follows by mpx_outflow_write, and mpx_duct_finish. -EAGAIN:
 * there is no room; -EBUSY, -EINTR as above; or what a write says. */
MPX_NODISCARD int mpx_duct_begin(mpx_duct_t *duct, int fd, mpx_outflow_t *out, int64_t deadline);

/* The rest of a message has been written that was begun so. */
MPX_NODISCARD int mpx_duct_finish(mpx_duct_t *duct, int fd, bool is_socket, int64_t deadline);

/* It will never be: its reader finds the end in the middle of it, and nothing of what came after.
 */
void mpx_duct_tear(mpx_duct_t *duct, int64_t deadline);

/* Nothing goes through the ring from now on, and what is in it goes to the descriptor. -EAGAIN:
 * there is no room there for all of it, the rest has stayed; else as mpx_duct_begin, and then it
 * may not have been stopped. */
MPX_NODISCARD int mpx_duct_stop(mpx_duct_t *duct, int fd, bool is_socket, int64_t deadline);

static inline bool mpx_duct_is_stopped(mpx_duct_t *duct)
{
    return mpx_u32_load_acquire(&duct->stopped) != 0; /* D5: with D4 */
}

/* Whether messages go through the ring: the receiver knows of it, and nobody has stopped it. */
bool mpx_duct_is_open(mpx_duct_t *duct);

/* ---- Receiving ------------------------------------------------------------------------------- */

/* Takes the oldest message out of the ring: 0, or
 *   -EXDEV   there may be one in the descriptor, which comes first
 *   -EAGAIN  there is none
 *   -ENOBUFS it is longer than the buffer: *size bytes
 *   -EPROTO  the ring is damaged */
MPX_NODISCARD int mpx_duct_try_get(mpx_duct_t *duct, void *buffer, size_t capacity, size_t *size);

/* Whether there is anything, as far as can be seen in memory: in the ring, or perhaps in the
 * descriptor. */
bool mpx_duct_has_something(mpx_duct_t *duct);

/* Whether the next message is in the ring. */
bool mpx_duct_has_message(mpx_duct_t *duct);

/* Whether the ring is empty, and stays so but for what is put. */
bool mpx_duct_is_empty(mpx_duct_t *duct);

/* A message was read from the descriptor. */
static inline void mpx_duct_count_read(mpx_duct_t *duct)
{
    (void)mpx_u32_fetch_add_relaxed(&duct->read, 1);
}

/* The descriptor was found empty, between two messages: if it still is, then nothing is aside.
 * -EAGAIN: it is not; or a message is being written, and the next thing comes through the
 * descriptor: the receiver may sleep until that is readable. -EBUSY and -EINTR as above. */
MPX_NODISCARD int mpx_duct_settle(mpx_duct_t *duct, int fd, int64_t deadline);

/* Says that the receiver goes to sleep, until the descriptor is readable; false where there is
 * something, so that it must not. */
MPX_NODISCARD bool mpx_duct_announce_sleep(mpx_duct_t *duct);

#endif
