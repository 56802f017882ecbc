/* mpx_ring_pvt.h - how a ring lies in shared memory, and what the two sides of it share.
 *
 * Layer: L5
 *
 * Two kinds of blocks belong to the ring's slot: one that holds the control structure, whose
 * reference is in the slot, and segments.
 *
 *     slot      key of the heap | control block
 *     control   control structure | records of takers ...    up to a unit of the heap
 *     segment   header | records ...        as many units as a power of two
 *     record    length, kind, check | the message | filling up to the next unit
 *
 * A record never wraps: where it would, the rest of the segment is filled by one of kind PAD, and
 * the same exchange of `tail` makes both visible.
 */
#ifndef MPX_RING_PVT_H
#define MPX_RING_PVT_H

#include "mpx_ring.h"

#include <errno.h>
#include <string.h>

#define MPX_RING_MAGIC    UINT64_C(0x00ff676e69727fff)
#define MPX_RING_UNIT     16
#define MPX_SEGMENT_FIRST (UINT32_C(64) * 1024 / MPX_RING_UNIT)        /* units */
#define MPX_SEGMENT_MOST  (UINT32_C(16) * 1024 * 1024 / MPX_RING_UNIT) /* units */

/* A ring that is empty in a segment longer than this one goes back to the first length. */
#define MPX_SEGMENT_KEPT (4 * MPX_SEGMENT_FIRST)

/* So much storage of free blocks is kept: while a long ring is in use, and when it has been
 * drained.
 */
#define MPX_STORAGE_IN_USE  ((size_t)64 * 1024 * 1024)
#define MPX_STORAGE_DRAINED ((size_t)2 * 1024 * 1024)

/* Positions are told apart up to this distance: the most units that a ring may hold. */
#define MPX_RING_UNITS (UINT32_C(1) << 31)

#define MPX_RING_SLEEPERS UINT64_C(1)

/* What a note says of counts: see mpx_ring_join.c. */
typedef struct {
    uint32_t messages; /* of `head`, before; or of `done`, after */
    uint64_t open;
    int64_t strangers;
} mpx_ring_counts_t;

/* How many bytes all messages ever had at the time of a word: `head` or `tail`, but for the bit of
 * the sleepers. */
typedef struct {
    mpx_atomic_u64 word;
    mpx_atomic_u64 sum;
} mpx_ring_sum_t;

/* Of the notes: a block that is just changing hands, or 0. Each is written before, and cleared
 * after, the stores that it speaks of; whoever takes the mutex next and finds one finishes what it
 * says. See settle in mpx_ring_put.c and mpx_ring_get.c. */
typedef struct mpx_ring_control {
    MPX_ALIGNED(MPX_CACHE_LINE) uint64_t magic;
    mpx_heap_owner_t owner; /* of its blocks */
    uint64_t most_bytes;    /* 0: not limited, and not counted */
    uint32_t limit;         /* messages */
    mpx_atomic_u32 shut;
    mpx_atomic_u32 watched;
    mpx_atomic_u32 deaths; /* of who had a mutex */

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 tail;
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 head;

    /* How many messages are done with, in the upper 31 bits; below, that somebody sleeps. */
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 done;

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_mutex_t producers;
    mpx_atomic_u64 tail_block; /* the last segment */
    uint64_t linking;          /* note: a segment that becomes the last one */
    uint64_t giving;           /* note: a message's block, for the record at giving_at */
    uint32_t giving_at;
    uint32_t room_from;  /* no unit of the last segment is in use before this position */
    uint64_t head_seen;  /* `head`, as it was at some time */
    mpx_atomic_u32 rung; /* the bell has been, for certain, since it was last silent */
    mpx_ring_sum_t put[2];
    uint64_t got_seen; /* the sum of the other side, as it was at some time */

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_mutex_t consumers;
    mpx_atomic_u64 head_block; /* the segment in which `head` is, or at whose end */
    uint64_t leaving;          /* note: a segment that has been read to its end */
    uint64_t taking;           /* note: a message's block, of the record at taking_at */
    uint64_t tail_seen;        /* `tail`, as it was at some time */
    uint32_t taking_at;
    uint32_t counts_takers;  /* whether this ring does */
    mpx_atomic_u32 counting; /* note: `counts`, of what and whom */
    mpx_ring_sum_t got[2];

    MPX_ALIGNED(MPX_CACHE_LINE) mpx_ring_counts_t counts;
    int64_t strangers;     /* see mpx_ring_join.c */
    mpx_atomic_u32 takers; /* how many records there are */
} mpx_ring_control_t;

MPX_STATIC_ASSERT(sizeof(mpx_ring_control_t) < MPX_BLOCK_UNIT / 2, "with room for takers");

/* `end` counts where `next` is not 0. */
typedef struct mpx_ring_segment {
    MPX_ALIGNED(MPX_CACHE_LINE) uint32_t capacity; /* units */
    uint32_t start;                                /* the position at which it became the last */
    uint32_t end;                                  /* the position at which the next one did */
    mpx_atomic_u64 next;
} mpx_ring_segment_t;

static inline bool mpx_ring_is_watched(mpx_ring_control_t *control)
{
    return mpx_u32_load_relaxed(&control->watched) != 0;
}

/* What a mutex says where its last owner died. */
static inline void mpx_ring_count_death(mpx_ring_control_t *control)
{
    (void)mpx_u32_fetch_add_relaxed(&control->deaths, 1);
}

/* One of the two mutexes, or -EBUSY where somebody has it. */
MPX_NODISCARD static inline int mpx_ring_try_lock(mpx_ring_control_t *control, mpx_mutex_t *mutex)
{
    int status = mpx_mutex_try_lock(mutex);
    if (MPX_UNLIKELY(status == MPX_OWNER_DIED)) {
        mpx_ring_count_death(control);
    }
    return status == -EAGAIN ? -EBUSY : status < 0 ? status : 0;
}

#define MPX_SEGMENT_HEADER sizeof(mpx_ring_segment_t)

/* ---- Words ----------------------------------------------------------------------------------- */

static inline uint32_t mpx_ring_position(uint64_t word)
{
    return (uint32_t)(word >> 32);
}

static inline uint64_t mpx_ring_word(uint32_t position, uint32_t messages)
{
    return (uint64_t)position << 32 | (uint32_t)(messages << 1);
}

static inline uint32_t mpx_ring_messages(uint64_t word)
{
    return (uint32_t)word >> 1;
}

/* How many messages lie between the two. */
static inline uint32_t mpx_ring_between(uint64_t head, uint64_t tail)
{
    return (mpx_ring_messages(tail) - mpx_ring_messages(head)) & (UINT32_MAX >> 1);
}

/* ---- Records --------------------------------------------------------------------------------- */

enum mpx_record_kind { MPX_RECORD_PAD = 1, MPX_RECORD_MESSAGE, MPX_RECORD_WITH_BLOCK };

/* What stands before a message with a block, besides. */
typedef struct {
    mpx_block_t block;
    uint64_t bytes;
} mpx_enclosed_t;

/* What stands before a message. */
typedef struct {
    uint32_t size; /* bytes behind this one; of PAD, none is read */
    uint32_t kind; /* and above its 8 bits, a check of the position */
} mpx_record_t;

static inline uint32_t mpx_record_kind_at(uint32_t kind, uint32_t position)
{
    return kind | (position * UINT32_C(0x9e3779b1)) << 8;
}

static inline uint32_t mpx_record_units(size_t size)
{
    return (uint32_t)((sizeof(mpx_record_t) + size + MPX_RING_UNIT - 1) / MPX_RING_UNIT);
}

/* Most messages are too short for a call of memcpy. Two pieces that overlap have any of the sizes
 * in between. */
static inline void mpx_ring_copy(void *to, const void *from, size_t size)
{
    char *into = to;
    const char *data = from;
    if (size > 16) {
        memcpy(into, data, size);
    } else if (size >= 8) {
        memcpy(into, data, 8);
        memcpy(into + size - 8, data + size - 8, 8);
    } else if (size >= 4) {
        memcpy(into, data, 4);
        memcpy(into + size - 4, data + size - 4, 4);
    } else if (size > 0) {
        into[0] = data[0];
        into[size / 2] = data[size / 2];
        into[size - 1] = data[size - 1];
    }
}

/* ---- mpx_ring.c ------------------------------------------------------------------------------ */

/* Whether it is the segment in that block which the side knows. Under its mutex. */
static inline bool mpx_ring_is_mapped(const mpx_ring_side_t *side, mpx_block_t block)
{
    return side->block == block && side->process == mpx_os_own_word();
}

static inline bool mpx_ring_was_shut(mpx_ring_control_t *control)
{
    return mpx_u32_load_acquire(&control->shut) != 0; /* R7: with R6 */
}

/* The segment in the block, as the side knows it from now on. Under its mutex. */
MPX_NODISCARD int mpx_ring_map(mpx_ring_t *ring, mpx_ring_side_t *side, mpx_block_t block);

/* Makes a segment of at least `units`, which belongs to the heap's `owner`. */
MPX_NODISCARD int mpx_ring_new_segment(mpx_ring_t *ring, mpx_heap_owner_t owner, uint32_t units,
                                       mpx_block_t *block, int64_t deadline);

/* After a look at the ring that found it empty: silences the bell, if it still is. */
void mpx_ring_quiet(mpx_ring_t *ring);

/* The same, unless somebody has the producers' mutex: false. */
MPX_NODISCARD bool mpx_ring_try_quiet(mpx_ring_t *ring);

/* After the ring was shut: who waits for the bell is to see that. */
void mpx_ring_toll(mpx_ring_t *ring);

/* Where the ring is empty and its last segment is long, links the segment, which belongs to `own`,
 * behind it. In mpx_ring_put.c; takes the producers' mutex, if it is free. */
bool mpx_ring_link_if_empty(mpx_ring_t *ring, mpx_heap_owner_t own, mpx_block_t block);

static inline uint64_t mpx_message_bytes(const mpx_message_t *message)
{
    return message->block != 0 ? message->bytes : message->size;
}

/* The sum of a side's bytes at the word; false where there is none: damaged. Under its mutex. */
MPX_NODISCARD bool mpx_ring_sum_of(mpx_ring_sum_t *sums, uint64_t word, uint64_t *sum);

/* Says that the sum is `bytes` more at the word `after`, which is about to be published. Under the
 * side's mutex. */
void mpx_ring_add_bytes(mpx_ring_sum_t *sums, uint64_t before, uint64_t after, uint64_t bytes);

/* The sum of the other side, now. 0 where there is none: damaged. */
uint64_t mpx_ring_sum_now(mpx_ring_sum_t *sums, mpx_atomic_u64 *word);

/* What a wait is for, seen in the word that was read: false means sleep. `bytes` is what whoever
 * waits for room has to put. */
typedef bool mpx_ring_ready_t(mpx_ring_t *ring, uint64_t word, uint64_t bytes);

/* Waits until the word is ready, or the ring shut: 0, -EAGAIN at the deadline, -EINTR. `slept` is
 * set where this thread may have had another one's wake. */
MPX_NODISCARD int mpx_ring_wait_for(mpx_ring_t *ring, mpx_atomic_u64 *word, mpx_ring_ready_t *ready,
                                    uint64_t bytes, int64_t deadline, bool *slept);

/* After such a wait, and what it was for: others may sleep on, whose wake came here. */
void mpx_ring_pass_on(mpx_ring_t *ring, mpx_atomic_u64 *word, mpx_ring_ready_t *ready);

/* Wakes who sleeps on the word. */
void mpx_ring_wake_sleepers(mpx_ring_t *ring, mpx_atomic_u64 *word);

/* The half of a word that sleepers sleep on. The core is for little-endian machines. */
static inline mpx_atomic_u32 *mpx_ring_futex(mpx_atomic_u64 *word)
{
    return (mpx_atomic_u32 *)(void *)word;
}

/* Says in the word that somebody sleeps; false where it is another by now. */
bool mpx_ring_announce(mpx_atomic_u64 *word, uint64_t seen);

/* Sleeps while the word is `seen` and says that somebody does: 0 is "look again". */
MPX_NODISCARD int mpx_ring_sleep_on(mpx_atomic_u64 *word, uint64_t seen, int64_t deadline);

/* After an exchange that found `before` in the word, and outside the mutexes. */
static inline void mpx_ring_wake(mpx_ring_t *ring, mpx_atomic_u64 *word, uint64_t before)
{
    if (MPX_UNLIKELY(before & MPX_RING_SLEEPERS)) {
        mpx_ring_wake_sleepers(ring, word);
    }
}

/* ---- mpx_ring_join.c: only where takers are counted, and under the consumers' mutex ---------- */

/* Whether this process has a record, or gets one now; false where mpx_ring_make_taker has to. */
bool mpx_ring_is_taker(mpx_ring_t *ring);

/* Before and after `head`, as it was, goes on by so many messages. */
void mpx_ring_note_taking(mpx_ring_t *ring, uint64_t head, uint32_t messages);
void mpx_ring_count_taken(mpx_ring_t *ring);

/* Goes through with what a dead one has noted. */
void mpx_ring_settle_counts(mpx_ring_t *ring);

/* Outside the mutex: looks for the dead, so that there is a record for this process. -EUSERS: there
 * are too many; -EBUSY, -EINTR. */
MPX_NODISCARD int mpx_ring_make_taker(mpx_ring_t *ring, int64_t deadline);

#endif
