/* mpx_ring.c - see mpx_ring.h: creation, segments, and waiting.
 *
 * Layer: L5
 */
#include "mpx_ring_pvt.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

/* No word of a side is that, but for the bit of the sleepers. */
#define NO_WORD MPX_RING_SLEEPERS

/* What a ring's slot holds. */
typedef struct {
    uint64_t key; /* the heap's */
    mpx_atomic_u64 control;
} ring_room_t;

/* ---- Segments -------------------------------------------------------------------------------- */

static bool is_power_of_two(uint32_t number)
{
    return number != 0 && (number & (number - 1)) == 0;
}

int mpx_ring_map(mpx_ring_t *ring, mpx_ring_side_t *side, mpx_block_t block)
{
    size_t size;
    if (MPX_LIKELY(mpx_ring_is_mapped(side, block))) {
        return 0;
    }
    mpx_ring_segment_t *segment = mpx_heap_at(ring->arena, block, &size);
    if (segment == NULL) {
        return -ENOMEM;
    }
    uint32_t capacity = segment->capacity;
    if (size < MPX_SEGMENT_HEADER || !is_power_of_two(capacity) ||
        capacity > (size - MPX_SEGMENT_HEADER) / MPX_RING_UNIT) {
        return -EPROTO;
    }
    side->process = 0;
    side->block = block;
    side->segment = segment;
    side->data = (unsigned char *)segment + MPX_SEGMENT_HEADER;
    side->capacity = capacity;
    side->process = mpx_os_own_word();
    return 0;
}

int mpx_ring_new_segment(mpx_ring_t *ring, mpx_heap_owner_t owner, uint32_t units,
                         mpx_block_t *block, int64_t deadline)
{
    void *address;
    uint32_t capacity = MPX_SEGMENT_FIRST;
    while (capacity < units) {
        capacity *= 2;
    }
    size_t size = MPX_SEGMENT_HEADER + (size_t)capacity * MPX_RING_UNIT;
    int status = mpx_heap_new_until(ring->arena, owner, size, block, &address, deadline);
    if (status == 0) {
        mpx_ring_segment_t *segment = address;
        memset(segment, 0, sizeof(*segment));
        segment->capacity = capacity;
    }
    return status;
}

/* ---- Creation -------------------------------------------------------------------------------- */

/* Whoever has the slot may take the ring for whole once its control block is known. */
static int furnish(mpx_ring_t *ring, uint32_t limit)
{
    mpx_block_t block, segment;
    void *address;
    int status = mpx_heap_new(ring->arena, ring->owner, MPX_BLOCK_UNIT, &block, &address);
    if (status == 0) {
        MPX_STEP(ring_control); /* the slot's, as all that follows */
        status = mpx_ring_new_segment(ring, ring->owner, 0, &segment, MPX_NEVER);
    }
    if (status < 0) {
        return status;
    }
    mpx_ring_control_t *control = address;
    memset(control, 0, sizeof(*control));
    control->magic = MPX_RING_MAGIC;
    control->limit = limit;
    control->owner = ring->owner;
    mpx_u64_store_relaxed(&control->tail_block, segment);
    mpx_u64_store_relaxed(&control->head_block, segment);
    mpx_u64_store_relaxed(&control->put[1].word, NO_WORD);
    mpx_u64_store_relaxed(&control->got[1].word, NO_WORD);
    ring_room_t *room = mpx_slot_at(ring->arena, ring->slot);
    mpx_u64_store_release(&room->control, block); /* R0: with R1 */
    ring->control = control;
    return 0;
}

int mpx_ring_create(mpx_ring_t *ring, mpx_arena_t *arena, uint32_t limit)
{
    *ring = (mpx_ring_t){.arena = arena, .bell = {.reader = -1, .writer = -1}};
    int status = mpx_slot_new(arena, &ring->slot);
    if (status < 0) {
        return status;
    }
    status = mpx_heap_owner_new(arena, ring->slot, &ring->owner);
    if (status == 0) {
        status = furnish(ring, limit);
    }
    if (status < 0) {
        mpx_ring_drop(ring);
    }
    return status;
}

int mpx_ring_open(mpx_ring_t *ring, mpx_arena_t *arena, mpx_slot_t slot)
{
    size_t size;
    *ring = (mpx_ring_t){.arena = arena, .slot = slot, .bell = {.reader = -1, .writer = -1}};
    ring_room_t *room = mpx_slot_at(arena, slot);
    if (room == NULL) {
        return -EPROTO;
    }
    mpx_block_t block = mpx_u64_load_acquire(&room->control); /* R1: with R0 */
    ring->control = block == 0 ? NULL : mpx_heap_at(arena, block, &size);
    if (ring->control == NULL || size < MPX_BLOCK_UNIT || ring->control->magic != MPX_RING_MAGIC) {
        return -EPROTO;
    }
    ring->owner = ring->control->owner;
    return 0;
}

uint64_t mpx_ring_drop(mpx_ring_t *ring)
{
    mpx_slot_drop(ring->arena, ring->slot);
    ring->control = NULL;
    return mpx_heap_free_all(ring->arena, ring->owner);
}

/* ---- Looking --------------------------------------------------------------------------------- */

/* `head` once more, so that both were so at one time. */
uint32_t mpx_ring_count(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    uint64_t tail, head = mpx_u64_load_acquire(&control->head); /* R3: with R2 */
    uint64_t before;
    do {
        before = head;
        tail = mpx_u64_load_acquire(&control->tail); /* R5: with R4 */
        head = mpx_u64_load_acquire(&control->head); /* R3: with R2 */
    } while (mpx_ring_between(before, head) != 0);
    return mpx_ring_between(head, tail);
}

uint32_t mpx_ring_count_put(mpx_ring_t *ring)
{
    return mpx_ring_messages(mpx_u64_load_acquire(&ring->control->tail)); /* R5: with R4 */
}

uint32_t mpx_ring_count_got(mpx_ring_t *ring)
{
    return mpx_ring_messages(mpx_u64_load_acquire(&ring->control->head)); /* R3: with R2 */
}

uint32_t mpx_ring_deaths(mpx_ring_t *ring)
{
    return mpx_u32_load_relaxed(&ring->control->deaths);
}

uint64_t mpx_ring_memory(mpx_ring_t *ring)
{
    return mpx_heap_owned_by(ring->arena, ring->owner);
}

bool mpx_ring_is_full(mpx_ring_t *ring)
{
    uint64_t most = ring->control->most_bytes;
    return mpx_ring_count(ring) >= ring->control->limit ||
           (most != 0 && mpx_ring_bytes(ring) >= most);
}

bool mpx_ring_is_shut(mpx_ring_t *ring)
{
    return mpx_ring_was_shut(ring->control);
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

void mpx_ring_limit_bytes(mpx_ring_t *ring, uint64_t bytes)
{
    ring->control->most_bytes = bytes;
}

uint64_t mpx_ring_most_bytes(mpx_ring_t *ring)
{
    return ring->control->most_bytes;
}

static int place_of(mpx_ring_sum_t *sums, uint64_t word)
{
    word &= ~MPX_RING_SLEEPERS;
    for (int i = 0; i < 2; i++) {
        if (mpx_u64_load_relaxed(&sums[i].word) == word) {
            return i;
        }
    }
    return -1;
}

bool mpx_ring_sum_of(mpx_ring_sum_t *sums, uint64_t word, uint64_t *sum)
{
    int place = place_of(sums, word);
    *sum = place < 0 ? 0 : mpx_u64_load_relaxed(&sums[place].sum);
    return place >= 0;
}

/* Who dies between the stores leaves a place of which the word has been before, or is to come: it
 * is not that of the other place, and is written anew. */
void mpx_ring_add_bytes(mpx_ring_sum_t *sums, uint64_t before, uint64_t after, uint64_t bytes)
{
    int place = place_of(sums, before) == 1;
    mpx_ring_sum_t *next = &sums[!place];
    mpx_u64_store_relaxed(&next->word, NO_WORD);
    mpx_u64_store_release(&next->sum, /* R18: with R19 */
                          mpx_u64_load_relaxed(&sums[place].sum) + bytes);
    MPX_STEP(ring_summed);
    mpx_u64_store_relaxed(&next->word, after & ~MPX_RING_SLEEPERS);
}

/* A sum that was overwritten meanwhile is known by the word: it has been published before. */
uint64_t mpx_ring_sum_now(mpx_ring_sum_t *sums, mpx_atomic_u64 *word)
{
    uint64_t seen = mpx_u64_load_acquire(word), before, sum; /* R3: with R2, R5: with R4 */
    do {
        before = seen & ~MPX_RING_SLEEPERS;
        int place = place_of(sums, before);
        sum = place < 0 ? 0 : mpx_u64_load_acquire(&sums[place].sum); /* R19: with R18 */
        seen = mpx_u64_load_acquire(word);                            /* R3: with R2, R5: with R4 */
    } while ((seen & ~MPX_RING_SLEEPERS) != before);
    return sum;
}

/* What was put is read after what was taken: more may have been by then, but not less. */
uint64_t mpx_ring_bytes(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    uint64_t put, got = mpx_ring_sum_now(control->got, &control->head), before;
    do {
        before = got;
        put = mpx_ring_sum_now(control->put, &control->tail);
        got = mpx_ring_sum_now(control->got, &control->head);
    } while (got != before);
    return put - got;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Of those who wait for room for their bytes, one may have it and the next one not. */
void mpx_ring_wake_sleepers(mpx_ring_t *ring, mpx_atomic_u64 *word)
{
    bool all = word == &ring->control->head && ring->control->most_bytes != 0;
    (void)!mpx_os_futex_wake(mpx_ring_futex(word), all ? INT_MAX : 1);
}

bool mpx_ring_announce(mpx_atomic_u64 *word, uint64_t seen)
{
    return (seen & MPX_RING_SLEEPERS) ||
           mpx_u64_cas_acquire(word, &seen, seen | MPX_RING_SLEEPERS); /* R7: with R6 */
}

int mpx_ring_sleep_on(mpx_atomic_u64 *word, uint64_t seen, int64_t deadline)
{
    MPX_STEP(ring_waiting);
    int status =
        mpx_wait_a_while(mpx_ring_futex(word), (uint32_t)(seen | MPX_RING_SLEEPERS), deadline);
    MPX_STEP(ring_awake);
    return status == MPX_WAIT_LOOK ? 0 : status;
}

/* For a few microseconds in all: so many yields, with a look after the first and each fifth one. */
#define GATHER_YIELDS 16
#define GATHER_LOOK   5

/* A consumer that is faster than the producers fetches the cache lines of `tail` and of the record
 * from another processor for each message, which costs both sides more than the message does. Where
 * several came within one wait there are more to come: they are let gather, as long as they do. A
 * message in two parts is taken for more too, but waits for one yield only. */
static void gather(mpx_ring_t *ring, uint64_t tail, int64_t deadline)
{
    if (mpx_ring_between(mpx_u64_load_relaxed(&ring->control->head), tail) < 2) {
        return;
    }
    for (unsigned tries = 0; tries < GATHER_YIELDS; tries++) {
        if (!mpx_wait_yields(&ring->mood, tries, deadline)) {
            return;
        }
        if (tries % GATHER_LOOK == 0) {
            uint64_t before = tail;
            tail = mpx_u64_load_relaxed(&ring->control->tail);
            if (tail == before) {
                return;
            }
        }
    }
}

int mpx_ring_wait_for(mpx_ring_t *ring, mpx_atomic_u64 *word, mpx_ring_ready_t *ready,
                      uint64_t bytes, int64_t deadline, bool *slept)
{
    int status = 0;
    for (unsigned tries = 0;; tries++) {
        uint64_t seen = mpx_u64_load_acquire(word); /* R3: with R2, R5: with R4 */
        if (ready(ring, seen, bytes) || mpx_ring_is_shut(ring)) {
            if (tries > 0 && tries < MPX_WAIT_YIELDS && word == &ring->control->tail) {
                gather(ring, seen, deadline);
            }
            return 0;
        }
        if (status < 0) {
            return status == -ETIMEDOUT ? -EAGAIN : status;
        }
        if (mpx_wait_yields(&ring->mood, tries, deadline)) {
            continue;
        }
        *slept = true;
        tries = MPX_WAIT_YIELDS;
        /* To shut the ring changes the word; what was done before that is seen. */
        if (mpx_ring_announce(word, seen) && !mpx_ring_is_shut(ring)) {
            status = mpx_ring_sleep_on(word, seen, deadline);
        }
    }
}

void mpx_ring_pass_on(mpx_ring_t *ring, mpx_atomic_u64 *word, mpx_ring_ready_t *ready)
{
    uint64_t seen = mpx_u64_load_acquire(word); /* R3: with R2, R5: with R4 */
    while (!ready(ring, seen, 1)) {
        if (mpx_ring_announce(word, seen)) {
            return; /* the next one to come wakes one */
        }
        seen = mpx_u64_load_acquire(word); /* R3: with R2, R5: with R4 */
    }
    (void)!mpx_os_futex_wake(mpx_ring_futex(word), 1);
}

void mpx_ring_shut(mpx_ring_t *ring)
{
    mpx_atomic_u64 *words[] = {&ring->control->tail, &ring->control->head};
    mpx_u32_store_release(&ring->control->shut, 1); /* R6: with R7 */
    MPX_STEP(ring_shut);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(words); i++) {
        (void)mpx_u64_fetch_and_acq_rel(words[i], ~MPX_RING_SLEEPERS); /* R6: with R7 */
        (void)!mpx_os_futex_wake(mpx_ring_futex(words[i]), INT_MAX);
    }
    mpx_ring_toll(ring);
}
