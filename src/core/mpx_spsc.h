/* mpx_spsc.h - a ring of records in shared memory, of one producer and one consumer.
 *
 * Layer: L3
 *
 * A record becomes visible by one exchange of `tail`, and its room is free again by one of `head`:
 * whoever is killed before has done nothing, whoever is killed after it is done. There is no lock.
 * The caller says which process, and which of its threads, is the one at each end; it has a handle
 * (mpx_spsc_t) there.
 *
 *     tail   position | the consumer sleeps           the producer's; the consumer sets the bit
 *     head   position | the producer waits for room   the consumer's; the producer sets the bit
 *
 * A position is the number of bytes that were ever put. The lower half of a word is a futex. Who
 * sets a bit does so by a compare-and-exchange, which fails where the other side was at work; the
 * exchange of the other side clears it and tells that it was there. So no wake is lost but with a
 * process that is killed between the exchange and the wake.
 *
 * Records are contiguous, each behind a header of 16 bytes: where one would wrap, the rest of the
 * ring is filled by one of kind 0. A producer may write in place: it reserves room, and commits
 * what it has used of it; several records are published at once.
 *
 * Corrupt memory: what is read from it is checked before it is used, and is -EPROTO.
 */
#ifndef MPX_SPSC_H
#define MPX_SPSC_H

#include "mpx_wait.h"

#define MPX_SPSC_UNIT 16

/* In shared memory; the members are private. */
typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 tail;
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 head;
} mpx_spsc_words_t;

/* What stands before a record's bytes. The kind is not 0; what the numbers mean is the caller's. */
typedef struct {
    uint32_t size;
    uint32_t kind;
    uint32_t number;
    uint32_t extra;
} mpx_spsc_header_t;

MPX_STATIC_ASSERT(sizeof(mpx_spsc_header_t) == MPX_SPSC_UNIT, "a header is a unit");

/* An end of it, of one process; the members are private. */
typedef struct {
    mpx_spsc_words_t *words;
    unsigned char *data;
    uint32_t capacity; /* bytes, a power of two */
    uint64_t position; /* of this end: what is committed, or read */
    uint64_t shown;    /* what of that the other end knows */
    uint64_t other;    /* the other end's, as it was seen last */
    mpx_wait_mood_t mood;
} mpx_spsc_t;

/* Makes a ring of memory that nobody else has yet. */
void mpx_spsc_init(mpx_spsc_words_t *words);

/* An end of one: its only user goes on where the one before it has stopped. */
void mpx_spsc_open_producer(mpx_spsc_t *end, mpx_spsc_words_t *words, void *data,
                            uint32_t capacity);
void mpx_spsc_open_consumer(mpx_spsc_t *end, mpx_spsc_words_t *words, void *data,
                            uint32_t capacity);

/* ---- The producer ---------------------------------------------------------------------------- */

/* The room for a record of at most `size` bytes, a quarter of the capacity at most, behind the
 * place of its header; NULL where there is none. */
void *mpx_spsc_reserve(mpx_spsc_t *end, uint32_t size);

/* The record that was written there, with header.size bytes, is to be published. */
void mpx_spsc_commit(mpx_spsc_t *end, mpx_spsc_header_t header);

/* Publishes what was committed: whether the consumer sleeps, and is to be woken. */
MPX_NODISCARD bool mpx_spsc_publish(mpx_spsc_t *end);

/* Where the consumer sleeps on the ring itself (mpx_spsc_wait). */
void mpx_spsc_wake_consumer(mpx_spsc_t *end);

/* Waits for room for a record of `size` bytes, or a while: 0, -ETIMEDOUT, -EINTR. */
MPX_NODISCARD int mpx_spsc_wait_for_room(mpx_spsc_t *end, uint32_t size, int64_t deadline);

/* How far the consumer has come, and where the next record will end that is committed now: what is
 * committed has been read once the one is not below the other. */
uint64_t mpx_spsc_read_up_to(mpx_spsc_t *end);
static inline uint64_t mpx_spsc_committed_up_to(const mpx_spsc_t *end)
{
    return end->position;
}

/* The producer's own record that ends there, which it has not written over yet. */
const mpx_spsc_header_t *mpx_spsc_record_before(const mpx_spsc_t *end, uint64_t position,
                                                uint32_t size);

/* ---- The consumer ---------------------------------------------------------------------------- */

/* The next record: 0, -EAGAIN: there is none; -EPROTO. Its bytes, behind *header, stay until
 * mpx_spsc_release. */
MPX_NODISCARD int mpx_spsc_peek(mpx_spsc_t *end, mpx_spsc_header_t *header, const void **data);

/* Goes on to the one after it. */
void mpx_spsc_pop(mpx_spsc_t *end, uint32_t size);

/* Gives the room of what was popped back. */
void mpx_spsc_release(mpx_spsc_t *end);

/* Whether there is a record that was not popped. */
bool mpx_spsc_has_record(mpx_spsc_t *end);

/* Waits until there is one, in pieces of at most `piece` nanoseconds: 0; MPX_WAIT_LOOK: a piece has
 * passed; -ETIMEDOUT, -EINTR. */
MPX_NODISCARD int mpx_spsc_wait(mpx_spsc_t *end, int64_t piece, int64_t deadline);

/* For a consumer that sleeps elsewhere: says so, false where there is something; and takes it back.
 */
MPX_NODISCARD bool mpx_spsc_announce(mpx_spsc_t *end);
void mpx_spsc_stand_down(mpx_spsc_t *end);

#endif
