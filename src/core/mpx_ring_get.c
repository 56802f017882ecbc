/* mpx_ring_get.c - see mpx_ring.h: the consumers' side.
 *
 * Layer: L5
 *
 * A consumer that dies with the mutex in its hands leaves one of these, which the next one settles:
 *
 *   message half copied    nothing: it lies at `head` still
 *   `leaving` noted        the segment is `head`'s no more, and is freed, or it still is
 *   `counting` noted       see mpx_ring_join.c
 *   `taking` noted         the record has been taken, and then its block is freed unless it is the
 *                          dead one's already: the message is lost with it; or it has not
 */
#include "mpx_ring_pvt.h"

#include "mpx_fault.h"

#include <errno.h>
#include <string.h>

/* The message brings a block, and the caller did not say whose it is to be. */
#define NEEDS_OWNER 1

/* There is no record for this process, of a ring that counts who takes. */
#define NEEDS_TAKER 2

/* More empty segments are not linked to each other but where memory is damaged. */
#define MOST_EMPTY 1000

/* A record in a segment, as it was read once. */
typedef struct {
    uint32_t units;
    uint32_t size;
    const unsigned char *data;
    mpx_enclosed_t enclosed; /* all 0: none */
    bool is_pad;
} found_t;

static void settle(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    if (mpx_u32_load_relaxed(&control->counting) != 0) {
        mpx_ring_settle_counts(ring);
    }
    if (control->leaving != 0) {
        if (mpx_u64_load_relaxed(&control->head_block) != control->leaving) {
            (void)mpx_heap_free(ring->arena, control->leaving, ring->owner);
        }
        MPX_STEP(ring_settled_leave);
        control->leaving = 0;
    }
    if (control->taking != 0) {
        uint32_t position = mpx_ring_position(mpx_u64_load_relaxed(&control->head));
        if (position != control->taking_at) {
            (void)mpx_heap_free(ring->arena, control->taking, ring->owner);
        }
        MPX_STEP(ring_settled_take);
        control->taking = 0;
    }
}

/* ---- Segments -------------------------------------------------------------------------------- */

/* Goes on to the next segment, as long as `position` is at the end of one that is not the last. */
static int find_segment(mpx_ring_t *ring, uint32_t position)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_side_t *side = &ring->consumer;
    for (int i = 0; i < MOST_EMPTY; i++) {
        uint64_t block = mpx_u64_load_relaxed(&control->head_block);
        int status = mpx_ring_map(ring, side, block);
        if (status < 0) {
            return status;
        }
        uint64_t next = mpx_u64_load_acquire(&side->segment->next); /* R13: with R12 */
        if (MPX_LIKELY(next == 0) || side->segment->end != position ||
            mpx_u64_load_acquire(&control->tail_block) == block) { /* R9: with R8 */
            return 0;
        }
        control->leaving = block;
        MPX_STEP(ring_leave_noted);
        mpx_u64_store_release(&control->head_block, next); /* R10: with R11 */
        MPX_STEP(ring_left);
        (void)mpx_heap_free(ring->arena, block, ring->owner);
        MPX_STEP(ring_left_freed);
        control->leaving = 0;
        side->left += side->capacity;
    }
    return -EPROTO;
}

/* ---- Records --------------------------------------------------------------------------------- */

/* Reads the header of the record at the position, with at most `limit` units before `tail`. */
static inline int read_record(const mpx_ring_side_t *side, uint32_t position, uint32_t limit,
                              found_t *found)
{
    uint32_t at = position & (side->capacity - 1);
    uint32_t left = side->capacity - at;
    const unsigned char *data = side->data + (size_t)at * MPX_RING_UNIT;
    mpx_record_t record;
    memcpy(&record, data, sizeof(record));
    uint32_t kind = record.kind & 0xff;
    if (record.kind != mpx_record_kind_at(kind, position) || left == 0 || limit == 0) {
        return -EPROTO;
    }
    found->is_pad = kind == MPX_RECORD_PAD;
    found->enclosed = (mpx_enclosed_t){0};
    found->size = record.size;
    found->data = data + sizeof(record);
    if (found->is_pad) {
        found->units = left;
        return left <= limit ? 0 : -EPROTO;
    }
    if (record.size > MPX_RING_INLINE + sizeof(found->enclosed)) {
        return -EPROTO;
    }
    found->units = mpx_record_units(record.size);
    if (found->units > left || found->units > limit) {
        return -EPROTO;
    }
    if (kind == MPX_RECORD_WITH_BLOCK && record.size >= sizeof(found->enclosed)) {
        memcpy(&found->enclosed, found->data, sizeof(found->enclosed));
        found->data += sizeof(found->enclosed);
        found->size -= (uint32_t)sizeof(found->enclosed);
        return found->enclosed.block == 0 ? -EPROTO : 0;
    }
    return kind == MPX_RECORD_MESSAGE && record.size <= MPX_RING_INLINE ? 0 : -EPROTO;
}

/* The record of the message at the position, and the position behind it. */
static int find_message(mpx_ring_t *ring, uint32_t position, uint64_t tail, found_t *found,
                        uint32_t *end)
{
    uint32_t last = mpx_ring_position(tail);
    int status = 0;
    *found = (found_t){.is_pad = true};
    while (status == 0 && found->is_pad) {
        status = read_record(&ring->consumer, position, last - position, found);
        position += found->units;
    }
    *end = position;
    return status;
}

/* ---- Get ------------------------------------------------------------------------------------- */

/* What a consumer brings to the mutex: room for messages, which are copied one behind the other. */
typedef struct {
    mpx_message_t *messages;
    size_t count;
    size_t done;
    char *room;
    size_t capacity;
    mpx_ring_wanted_t *wanted; /* or NULL */
    mpx_heap_owner_t own;      /* where it has been asked for */
    uint64_t before;           /* `head`, as it was */
} getting_t;

/* Makes it visible that so many messages are taken, up to the position; `head` as it was. */
static inline uint64_t claim(mpx_ring_t *ring, uint64_t head, uint32_t end, size_t count)
{
    uint32_t messages = mpx_ring_messages(head) + (uint32_t)count;
    MPX_STEP(ring_copied);
    uint64_t before = mpx_u64_exchange_acq_rel(
        &ring->control->head, mpx_ring_word(end, messages)); /* R2: with R3, R7: with R6 */
    MPX_STEP(ring_taken);
    return before;
}

/* The same of a ring that may count who takes. */
static uint64_t claim_for_taker(mpx_ring_t *ring, uint64_t head, uint32_t end, size_t count)
{
    bool counts_takers = ring->control->counts_takers;
    if (MPX_UNLIKELY(counts_takers)) {
        mpx_ring_note_taking(ring, head, (uint32_t)count);
    }
    uint64_t before = claim(ring, head, end, count);
    if (MPX_UNLIKELY(counts_takers)) {
        mpx_ring_count_taken(ring);
    }
    return before;
}

/* What is about to be taken, up to the position, is taken of the bytes. */
MPX_COLD static void take_bytes(mpx_ring_t *ring, const getting_t *getting, uint64_t head,
                                uint32_t end)
{
    uint32_t messages = mpx_ring_messages(head) + (uint32_t)getting->done;
    uint64_t bytes = 0;
    for (size_t i = 0; i < getting->done; i++) {
        bytes += mpx_message_bytes(getting->messages + i);
    }
    mpx_ring_add_bytes(ring->control->got, head, mpx_ring_word(end, messages), bytes);
}

static void claim_all(mpx_ring_t *ring, getting_t *getting, uint64_t head, uint32_t end)
{
    if (MPX_UNLIKELY(ring->control->most_bytes != 0)) {
        take_bytes(ring, getting, head, end);
    }
    getting->before = claim_for_taker(ring, head, end, getting->done);
}

static void copy_message(getting_t *getting, const found_t *found)
{
    mpx_message_t *message = getting->messages + getting->done++;
    *message = (mpx_message_t){.room = getting->room,
                               .size = found->size,
                               .block = found->enclosed.block,
                               .bytes = found->enclosed.bytes};
    mpx_ring_copy(getting->room, found->data, found->size);
    getting->room += found->size;
    getting->capacity -= found->size;
}

/* A message with a block, which must be to be had here: else it stays for another one. */
static int get_with_block(mpx_ring_t *ring, getting_t *getting, const found_t *found, uint64_t head,
                          uint32_t end)
{
    mpx_ring_control_t *control = ring->control;
    size_t size;
    if (getting->own == 0) {
        return NEEDS_OWNER;
    }
    if (mpx_heap_at(ring->arena, found->enclosed.block, &size) == NULL) {
        return -ENOMEM;
    }
    copy_message(getting, found);
    control->taking_at = mpx_ring_position(head);
    mpx_compiler_barrier(); /* whoever dies here leaves no note, or a whole one */
    control->taking = found->enclosed.block;
    MPX_STEP(ring_take_noted);
    claim_all(ring, getting, head, end);
    bool given = mpx_heap_give(ring->arena, found->enclosed.block, ring->owner, getting->own);
    MPX_STEP(ring_take_given);
    control->taking = 0;
    return given ? 0 : -EPROTO;
}

/* Whether the segment has something at the position. */
static bool goes_on(const mpx_ring_side_t *side, uint32_t position)
{
    uint64_t next = mpx_u64_load_acquire(&side->segment->next); /* R13: with R12 */
    return next == 0 || side->segment->end != position;
}

static bool is_wanted(const getting_t *getting, const found_t *found)
{
    return getting->wanted == NULL ||
           getting->wanted(found->data, found->size, found->enclosed.block);
}

/* The first message, which has no block, and those behind it as far as there is room for them. No
 * segment is left before `head` is behind it. */
static void get_some(mpx_ring_t *ring, getting_t *getting, const found_t *first, uint64_t head,
                     uint64_t tail, uint32_t end)
{
    uint32_t there = mpx_ring_between(head, tail), next;
    found_t found = {0};
    copy_message(getting, first);
    while (getting->done < getting->count && getting->done < there &&
           goes_on(&ring->consumer, end) && find_message(ring, end, tail, &found, &next) == 0 &&
           found.enclosed.block == 0 && found.size <= getting->capacity &&
           is_wanted(getting, &found)) {
        copy_message(getting, &found);
        end = next;
    }
    claim_all(ring, getting, head, end);
}

/* `tail` where there may be messages since `head`. What producers write has to come from another
 * processor: it is asked for where what was last seen of it has been read. */
static inline uint64_t tail_behind(mpx_ring_control_t *control, uint64_t head)
{
    uint64_t tail = control->tail_seen;
    if (mpx_ring_between(head, tail) == 0) {
        tail = mpx_u64_load_acquire(&control->tail); /* R5: with R4 */
        control->tail_seen = tail;
    }
    return tail;
}

/* Under the mutex. */
static int get_locked(mpx_ring_t *ring, getting_t *getting)
{
    mpx_ring_control_t *control = ring->control;
    found_t found = {0};
    uint32_t end = 0;
    if (MPX_UNLIKELY(
            (control->leaving | control->taking | mpx_u32_load_relaxed(&control->counting)) != 0)) {
        settle(ring);
    }
    uint64_t head = mpx_u64_load_relaxed(&control->head);
    uint64_t tail = tail_behind(control, head);
    if (mpx_ring_between(head, tail) == 0) {
        return -EAGAIN;
    }
    if (MPX_UNLIKELY(control->counts_takers) && !mpx_ring_is_taker(ring)) {
        return NEEDS_TAKER;
    }
    int status = find_segment(ring, mpx_ring_position(head));
    if (status == 0) {
        status = find_message(ring, mpx_ring_position(head), tail, &found, &end);
    }
    if (status < 0) {
        return status;
    }
    if (!is_wanted(getting, &found)) {
        return -ENOMSG;
    }
    if (found.size > getting->capacity) {
        return -ENOBUFS;
    }
    if (found.enclosed.block != 0) {
        return get_with_block(ring, getting, &found, head, end);
    }
    get_some(ring, getting, &found, head, tail, end);
    return 0;
}

static bool has_message(mpx_ring_t *ring, uint64_t tail, uint64_t bytes)
{
    (void)bytes;
    return mpx_ring_between(mpx_u64_load_acquire(&ring->control->head), tail) !=
           0; /* R3: with R2 */
}

/* ---- Going back to a short segment ----------------------------------------------------------- */

static bool is_long(const mpx_ring_side_t *side)
{
    return side->capacity > MPX_SEGMENT_KEPT;
}

static bool is_empty(mpx_ring_t *ring)
{
    return !has_message(ring, mpx_u64_load_acquire(&ring->control->tail), 0); /* R5: with R4 */
}

/* If it takes longer, it is left to be done another time. */
#define TRIM_PATIENCE (10 * MPX_NANOS_PER_MILLI)

/* Who empties a ring with a long segment links a short one behind it, and leaves the long one. The
 * producers' side is held for that, so it is not done where a producer is at work: there will be
 * another time. */
static void trim(mpx_ring_t *ring)
{
    mpx_heap_owner_t own;
    mpx_block_t block;
    if (mpx_heap_own(ring->arena, &own) < 0 ||
        mpx_ring_new_segment(ring, own, 0, &block, mpx_os_now() + TRIM_PATIENCE) < 0) {
        return;
    }
    if (!mpx_ring_link_if_empty(ring, own, block)) {
        (void)mpx_heap_free(ring->arena, block, own);
        return;
    }
    if (mpx_mutex_try_lock(&ring->control->consumers) >= 0) {
        settle(ring);
        uint64_t head = mpx_u64_load_relaxed(&ring->control->head);
        (void)!find_segment(ring, mpx_ring_position(head));
        mpx_mutex_unlock(&ring->control->consumers);
    }
}

/* ---- The interface --------------------------------------------------------------------------- */

/* For a thread of this process, at the end of its call. */
MPX_COLD static void add_chore(mpx_ring_t *ring, mpx_atomic_u32 *chore)
{
    mpx_u32_store_relaxed(chore, 1);
    mpx_u32_store_relaxed(&ring->has_chores, 1);
}

static bool take_chore(mpx_atomic_u32 *chore)
{
    bool is_there = mpx_u32_load_relaxed(chore) != 0;
    mpx_u32_store_relaxed(chore, 0);
    return is_there;
}

/* The heap gives storage back where blocks are made, which a ring that is drained does no more. */
MPX_COLD void mpx_ring_do_chores(mpx_ring_t *ring)
{
    (void)take_chore(&ring->has_chores);
    if (take_chore(&ring->is_long) && is_empty(ring)) {
        trim(ring);
        mpx_heap_trim(ring->arena, MPX_STORAGE_DRAINED);
    }
    if (take_chore(&ring->has_left)) {
        mpx_heap_trim(ring->arena, MPX_STORAGE_IN_USE);
    }
    if (take_chore(&ring->is_loud) && is_empty(ring)) {
        mpx_ring_quiet(ring);
    }
}

/* What comes after a get, outside the mutex. */
static void finish(mpx_ring_t *ring, uint64_t before, bool was_long, uint32_t left)
{
    mpx_ring_wake(ring, &ring->control->head, before);
    if (MPX_UNLIKELY(was_long) && is_empty(ring)) {
        add_chore(ring, &ring->is_long);
    } else if (MPX_UNLIKELY(left > MPX_SEGMENT_KEPT)) {
        add_chore(ring, &ring->has_left);
    }
}

/* The bell must not be heard where there is nothing. That `rung` is 0 does not say that it is
 * silent: so who found the ring empty does not rely on it. */
static void look_at_bell(mpx_ring_t *ring, int status)
{
    bool may_ring = status == -EAGAIN || mpx_u32_load_relaxed(&ring->control->rung) != 0;
    if (may_ring && is_empty(ring) && !mpx_ring_try_quiet(ring)) {
        add_chore(ring, &ring->is_loud);
    }
}

/* With the mutex taken. */
static int get_and_unlock(mpx_ring_t *ring, getting_t *getting)
{
    int status = get_locked(ring, getting);
    bool was_long = is_long(&ring->consumer);
    uint32_t left = ring->consumer.left;
    ring->consumer.left = 0;
    mpx_mutex_unlock(&ring->control->consumers);
    if (status == 0) {
        finish(ring, getting->before, was_long, left);
    }
    if (MPX_UNLIKELY(mpx_ring_is_watched(ring->control))) {
        look_at_bell(ring, status);
    }
    return status;
}

/* Whether the last message may be taken from a long segment, which is given back after that. */
static inline bool may_drain(const mpx_ring_side_t *side, uint64_t head, uint64_t tail)
{
    return is_long(side) && mpx_ring_between(head, tail) == 1;
}

/* Under the mutex: takes a message without a block from the segment at hand where nothing else
 * needs to be done: nobody counts or has died, and no memory is to be given back. False where
 * get_locked has to look. */
static inline bool get_plainly(mpx_ring_t *ring, void *buffer, size_t capacity,
                               mpx_message_t *message, uint64_t *before)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_side_t *side = &ring->consumer;
    uint64_t head = mpx_u64_load_relaxed(&control->head);
    uint64_t tail = tail_behind(control, head);
    uint32_t position = mpx_ring_position(head);
    found_t found;
    if (MPX_UNLIKELY((control->leaving | control->taking | control->counts_takers |
                      control->most_bytes) != 0 ||
                     side->left != 0 || mpx_ring_between(head, tail) == 0 ||
                     may_drain(side, head, tail) ||
                     !mpx_ring_is_mapped(side, mpx_u64_load_relaxed(&control->head_block)) ||
                     !goes_on(side, position) ||
                     read_record(side, position, mpx_ring_position(tail) - position, &found) < 0 ||
                     found.is_pad || found.enclosed.block != 0 || found.size > capacity)) {
        return false;
    }
    *message = (mpx_message_t){.room = buffer, .size = found.size};
    mpx_ring_copy(buffer, found.data, found.size);
    *before = claim(ring, head, position + found.units, 1);
    return true;
}

/* With the mutex taken; where the message is to be this process's, that is asked for without it. */
MPX_COLD static int try_get_and_unlock(mpx_ring_t *ring, getting_t *getting)
{
    int status = get_and_unlock(ring, getting);
    while (status == NEEDS_OWNER) {
        status = mpx_heap_own(ring->arena, &getting->own);
        if (status < 0) {
            return status;
        }
        status = mpx_ring_try_lock(ring->control, &ring->control->consumers);
        if (status < 0) {
            return status;
        }
        status = get_and_unlock(ring, getting);
    }
    if (status == NEEDS_TAKER) {
        return -EBUSY;
    }
    return status == -EAGAIN && mpx_ring_is_shut(ring) && is_empty(ring) ? -EPIPE : status;
}

int mpx_ring_try_get(mpx_ring_t *ring, void *buffer, size_t capacity, mpx_message_t *message)
{
    mpx_mutex_t *mutex = &ring->control->consumers;
    const mpx_thread_t *self = mpx_os_self();
    uint64_t before;
    int status = mpx_mutex_try_lock_as(self, mutex);
    if (MPX_UNLIKELY(status != 0)) {
        if (status < 0) {
            return status == -EAGAIN ? -EBUSY : status;
        }
        mpx_ring_count_death(ring->control);
    }
    if (MPX_UNLIKELY(!get_plainly(ring, buffer, capacity, message, &before))) {
        getting_t getting = {.messages = message, .count = 1, .room = buffer, .capacity = capacity};
        return try_get_and_unlock(ring, &getting);
    }
    mpx_mutex_unlock_as(self, mutex);
    mpx_ring_wake(ring, &ring->control->head, before);
    if (MPX_UNLIKELY(mpx_ring_is_watched(ring->control))) {
        look_at_bell(ring, 0);
    }
    return 0;
}

static int get(mpx_ring_t *ring, getting_t *getting, bool may_wait, int64_t deadline)
{
    mpx_ring_control_t *control = ring->control;
    bool slept = false;
    int status = 0;
    while (status == 0) {
        status = mpx_mutex_lock(&control->consumers, deadline);
        if (status < 0) {
            break;
        }
        if (status == MPX_OWNER_DIED) {
            mpx_ring_count_death(control);
        }
        status = get_and_unlock(ring, getting);
        if (status == NEEDS_OWNER) {
            status = mpx_heap_own(ring->arena, &getting->own);
        } else if (status == NEEDS_TAKER) {
            status = mpx_ring_make_taker(ring, deadline);
        } else if (status != -EAGAIN) {
            break;
        } else if (mpx_ring_is_shut(ring) && is_empty(ring)) {
            status = -EPIPE;
        } else if (may_wait) {
            status = mpx_ring_wait_for(ring, &control->tail, has_message, 0, deadline, &slept);
        }
    }
    if (slept) {
        mpx_ring_pass_on(ring, &control->tail, has_message);
    }
    if (mpx_ring_has_chores(ring)) {
        mpx_ring_do_chores(ring);
    }
    return status == -ETIMEDOUT ? -EBUSY : status;
}

int mpx_ring_get(mpx_ring_t *ring, void *buffer, size_t capacity, mpx_message_t *message,
                 int64_t deadline)
{
    getting_t getting = {.messages = message, .count = 1, .room = buffer, .capacity = capacity};
    return get(ring, &getting, true, deadline);
}

int mpx_ring_get_now(mpx_ring_t *ring, void *buffer, size_t capacity, mpx_message_t *message,
                     int64_t deadline)
{
    getting_t getting = {.messages = message, .count = 1, .room = buffer, .capacity = capacity};
    return get(ring, &getting, false, deadline);
}

int mpx_ring_try_get_many(mpx_ring_t *ring, void *buffer, size_t capacity,
                          mpx_ring_wanted_t *wanted, mpx_message_t *messages, size_t count,
                          size_t *done)
{
    getting_t getting = {.messages = messages,
                         .count = count,
                         .room = buffer,
                         .capacity = capacity,
                         .wanted = wanted};
    *done = 0;
    int status = mpx_ring_try_lock(ring->control, &ring->control->consumers);
    if (status < 0) {
        return status;
    }
    status = try_get_and_unlock(ring, &getting);
    *done = status == 0 ? getting.done : 0;
    return status;
}

int mpx_ring_wait(mpx_ring_t *ring, int64_t deadline)
{
    bool slept = false;
    int status = mpx_ring_wait_for(ring, &ring->control->tail, has_message, 0, deadline, &slept);
    if (slept) { /* the wake was for one who takes a message: this one does not */
        mpx_ring_pass_on(ring, &ring->control->tail, has_message);
    }
    return status == 0 && is_empty(ring) && mpx_ring_is_shut(ring) ? -EPIPE : status;
}
