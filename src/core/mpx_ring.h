/* mpx_ring.h - a queue of messages in shared memory, of any number of processes, that no death
 * tears.
 *
 * Layer: L5
 *
 * Producers take turns by one mutex, consumers by another; between the two sides there is one
 * producer and one consumer. A message lies in a record of its own length. A put becomes visible by
 * one exchange of `tail`, a get by one of `head`: whoever dies before has done nothing, whoever
 * dies after is done.
 *
 *     head, tail   32 bits            31 bits      1
 *                  | position        | messages   | somebody sleeps |
 *
 * A position counts units of 16 bytes since the ring was made, modulo 2^32; so do the messages,
 * modulo 2^31. Since one word has both, the number of messages is exact at every instruction. The
 * lower half of `tail` is the futex on which consumers sleep, the lower half of `head` that of
 * producers; the exchange clears the bit of the sleepers and tells that there are some.
 *
 * The memory. Records lie in segments: blocks of the heap that belong to the ring's slot. A ring
 * without a limit never makes its producers wait: where a record finds no room, the producer links
 * a new segment, twice as long, behind the last one. Consumers follow the links and free what they
 * leave. A ring that has been drained goes back to a short segment.
 *
 * Large messages. What is longer than MPX_RING_INLINE does not belong in a record, but in a block
 * of the heap, which the message brings. It belongs to the producer's process, then to the ring,
 * then to the consumer's process; killed between, its bearer leaves it to the next one, or to the
 * heap's look for the dead. No block is lost, and none is freed twice.
 *
 * Bytes. Where they are limited, each side has the sum of the bytes of all messages ever, for the
 * word that it has published last and for the one before or after that: it writes the sum for the
 * word to come in the place of the older one, and publishes the word. So a sum is that of a word,
 * whoever dies between; how many bytes are in the ring is the difference of the sums of both sides.
 *
 * Waiting. A few yields first, then sleep. Who was woken and takes a message wakes the next one
 * where there are more, or else sets the bit again: two puts in a row find it once.
 *
 * Bell. Who waits with select needs a descriptor: a bell that producers ring before they publish,
 * and that falls silent where the ring is empty, both under the producers' mutex. It costs nothing
 * until somebody asks for it.
 *
 * Processes. A handle is a process's own; a forked child may go on with the one it has copied.
 *
 * Done with. Who has taken a message says so when it is done with it, and others may wait until
 * that holds for all. A ring may count of each process what it has taken, so that what the dead had
 * counts as done: see mpx_ring_join.c.
 *
 * Corrupt memory: what is read from it is checked before it is used, and is -EPROTO.
 */
#ifndef MPX_RING_H
#define MPX_RING_H

#include "mpx_bell.h"
#include "mpx_heap.h"
#include "mpx_wait.h"

/* The longest message without a block, bytes. */
#define MPX_RING_INLINE (UINT32_C(64) * 1024)

/* No limit of messages. There never are more than that. */
#define MPX_RING_UNLIMITED (UINT32_C(1) << 30)

struct mpx_ring_control;
struct mpx_ring_segment;

/* What this process knows of a side of the ring, used under that side's mutex. */
typedef struct {
    uint64_t process; /* who has learnt it: a fork may copy it half written */
    mpx_block_t block;
    struct mpx_ring_segment *segment;
    unsigned char *data;
    uint32_t capacity; /* units, a power of two */
    uint32_t left;     /* units of segments that were left since somebody looked */
} mpx_ring_side_t;

/* The members are private. */
typedef struct {
    mpx_arena_t *arena;
    mpx_slot_t slot;
    mpx_heap_owner_t owner;
    struct mpx_ring_control *control;
    mpx_bell_t bell; /* both ends -1: none */
    mpx_wait_mood_t mood;
    mpx_ring_side_t producer;
    mpx_ring_side_t consumer;
    uint32_t taker; /* where this process's record is, perhaps: see mpx_ring_join.c */
    mpx_atomic_u32 has_chores, is_loud, is_long, has_left; /* see mpx_ring_do_chores */
} mpx_ring_t;

/* A message: `size` bytes (MPX_RING_INLINE at most), and a block or 0. With a block comes how many
 * bytes it counts for where bytes are limited; without, that is `size`. */
typedef struct {
    union {
        const void *data; /* to be put */
        void *room;       /* for what is got */
    };
    size_t size;
    mpx_block_t block;
    uint64_t bytes;
} mpx_message_t;

/* Makes an empty ring of at most `limit` messages (1 to MPX_RING_UNLIMITED), in a slot that this
 * process holds once. -ENOMEM, -ENOSPC, -EFBIG, -EBADF, -ESTALE: no memory for it. */
MPX_NODISCARD int mpx_ring_create(mpx_ring_t *ring, mpx_arena_t *arena, uint32_t limit);

/* Lets it have so many bytes of messages at most, of which no part is counted that the ring adds.
 * For who has made it, before anybody else has it. */
void mpx_ring_limit_bytes(mpx_ring_t *ring, uint64_t bytes);

/* The ring in a slot that this process holds. -EPROTO: there is none. */
MPX_NODISCARD int mpx_ring_open(mpx_ring_t *ring, mpx_arena_t *arena, mpx_slot_t slot);

/* Lets the slot go; where nobody else has it, so do its blocks: how many bytes. */
uint64_t mpx_ring_drop(mpx_ring_t *ring);

/* Puts a message. Its block belongs to this process (mpx_heap_own) before and to the ring after
 * that; after a failure it still is this process's.
 *   0           done
 *   -EAGAIN     there is no room, and the deadline has passed
 *   -EBUSY      other producers were at work until the deadline, or one of them was stopped
 *   -EINTR      a signal handler ran: call again
 *   -EPIPE      the ring was shut
 *   -EMSGSIZE   longer than MPX_RING_INLINE, or than all messages together may be
 *   -EPROTO     the ring is damaged
 *   -ENOMEM, -ENOSPC, -EFBIG, -EBADF, -ESTALE   there is no memory to grow; the ring is as before
 */
MPX_NODISCARD int mpx_ring_put(mpx_ring_t *ring, const mpx_message_t *message, int64_t deadline);

/* The same without a wait for room: the deadline is for -EBUSY. */
MPX_NODISCARD int mpx_ring_put_now(mpx_ring_t *ring, const mpx_message_t *message,
                                   int64_t deadline);

/* The same without any wait or system call, but to wake a sleeper; -EBUSY: mpx_ring_put_now might
 * do it. */
MPX_NODISCARD int mpx_ring_try_put(mpx_ring_t *ring, const mpx_message_t *message);

/* Puts the first ones of several messages, one or more, as many as there is room for at once, in
 * one step: whoever gets one of them may get them all. *done says how many; a message with a block
 * is put alone. Else as mpx_ring_try_put; -EBUSY: begin with mpx_ring_put_now. */
MPX_NODISCARD int mpx_ring_try_put_many(mpx_ring_t *ring, const mpx_message_t *messages,
                                        size_t count, size_t *done);

/* Takes the oldest message, and copies it to `buffer`, which has `capacity` bytes. Its block
 * belongs to this process then.
 *   0           done: message->data is the buffer
 *   -ENOBUFS    it is longer than that (no message is than MPX_RING_INLINE): it stays in the ring
 *   -EAGAIN     there is none, and the deadline has passed
 *   -EBUSY      as with put
 *   -EINTR      a signal handler ran: call again
 *   -EPIPE      there is none, and the ring was shut
 *   -EPROTO     the ring is damaged
 *   -ENOMEM, -EBADF, ...   its segment cannot be mapped: it stays in the ring */
MPX_NODISCARD int mpx_ring_get(mpx_ring_t *ring, void *buffer, size_t capacity,
                               mpx_message_t *message, int64_t deadline);
MPX_NODISCARD int mpx_ring_get_now(mpx_ring_t *ring, void *buffer, size_t capacity,
                                   mpx_message_t *message, int64_t deadline);
MPX_NODISCARD int mpx_ring_try_get(mpx_ring_t *ring, void *buffer, size_t capacity,
                                   mpx_message_t *message);

/* What the functions that only try to get leave to be done after them, because it may take long: to
 * silence the bell where a producer is at work, or was stopped, and to give memory back. */
static inline bool mpx_ring_has_chores(mpx_ring_t *ring)
{
    return mpx_u32_load_relaxed(&ring->has_chores) != 0;
}

void mpx_ring_do_chores(mpx_ring_t *ring);

/* Whether to take a message, which has a block or 0. Called under the mutex: it looks at the bytes,
 * which are not to be trusted, and does nothing else. */
typedef bool mpx_ring_wanted_t(const void *data, size_t size, mpx_block_t block);

/* Takes the oldest messages, up to `count`, as many as there are, as are wanted (NULL: all are) and
 * as the buffer has room for, in one step. *done says how many: one or more; a message with a block
 * is taken alone. Else as mpx_ring_try_get, and
 *   -ENOMSG   the oldest one is not wanted */
MPX_NODISCARD int mpx_ring_try_get_many(mpx_ring_t *ring, void *buffer, size_t capacity,
                                        mpx_ring_wanted_t *wanted, mpx_message_t *messages,
                                        size_t count, size_t *done);

/* How many messages there are; how many were put ever, and taken (modulo 2^31). */
uint32_t mpx_ring_count(mpx_ring_t *ring);
uint32_t mpx_ring_count_put(mpx_ring_t *ring);
uint32_t mpx_ring_count_got(mpx_ring_t *ring);

/* How many bytes they may be, 0 for any number; and how many they are, where that is limited. */
uint64_t mpx_ring_most_bytes(mpx_ring_t *ring);
uint64_t mpx_ring_bytes(mpx_ring_t *ring);

/* How often a process has died that had one of the mutexes, modulo 2^32. */
uint32_t mpx_ring_deaths(mpx_ring_t *ring);

/* Bytes of shared memory that it takes now, free ones between messages included. */
uint64_t mpx_ring_memory(mpx_ring_t *ring);

/* Whether it has as many messages as it may, or bytes. */
bool mpx_ring_is_full(mpx_ring_t *ring);

/* Waits until there is a message: 0, -EAGAIN, -EINTR, -EPIPE as above. */
MPX_NODISCARD int mpx_ring_wait(mpx_ring_t *ring, int64_t deadline);

/* For a ring that nobody else has yet: what a process has taken counts as done once that process
 * has ended without finishing it, whoever looks for that: who joins does. Then a get may fail with
 * -EUSERS: some thousands of living processes have taken something. */
void mpx_ring_count_takers(mpx_ring_t *ring);

/* Counts a message as done with: one that was taken, and worked on. -ERANGE: all that were ever put
 * are. -EBUSY, -EINTR as with get, where takers are counted. */
MPX_NODISCARD int mpx_ring_finish(mpx_ring_t *ring, int64_t deadline);

/* The same without any wait or system call, but to wake sleepers; -EBUSY: mpx_ring_finish might do
 * it. */
MPX_NODISCARD int mpx_ring_try_finish(mpx_ring_t *ring);

/* How many have been put and are not done with: exact, now. */
uint32_t mpx_ring_unfinished(mpx_ring_t *ring);

/* Waits until there is none of those: 0, -EAGAIN at the deadline, -EINTR. */
MPX_NODISCARD int mpx_ring_join(mpx_ring_t *ring, int64_t deadline);

/* From now on the ring's bell, of which each process has the descriptors in its handle, is readable
 * where there is a message: before it can be seen, and until somebody has found that there is none.
 * Whoever dies leaves it readable for too long, at most until the next one looks. */
void mpx_ring_watch(mpx_ring_t *ring);

/* Closes ends of the bell in this process, whose other threads may be at work. */
void mpx_ring_close_ends(mpx_ring_t *ring, bool reader, bool writer);

/* No put from now on; who waits for room, a message or the bell is told. */
void mpx_ring_shut(mpx_ring_t *ring);
bool mpx_ring_is_shut(mpx_ring_t *ring);

#endif
