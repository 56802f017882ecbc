/* mpx_ring_put.c - see mpx_ring.h: the producers' side.
 *
 * Layer: L5
 *
 * A producer that dies with the mutex in its hands leaves one of these, which the next one settles
 * before it does anything else:
 *
 *   record half written        nothing: it lies behind `tail`
 *   `linking` noted            the new segment is linked, or it is not, and then is freed
 *   segment linked, but not    the last segment is found by following the links; no consumer leaves
 *   yet the last one           a segment that still counts as the last
 *   `giving` noted             the record has been published, or it has not, and then the block is
 *                              freed: the message is the dead one's own
 *
 * To free a block is one exchange of its owner, which fails where the block is not the ring's
 * (any more, or yet), so to do it twice does no harm.
 */
#include "mpx_ring_pvt.h"

#include "mpx_fault.h"

#include <errno.h>
#include <string.h>

/* The record needs a new segment, of which the caller has none. */
#define NEEDS_SEGMENT 1

/* ---- What the dead left ---------------------------------------------------------------------- */

/* The links lead to the last segment; not in more steps than one, but where memory is damaged. */
static int follow_links(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_side_t *side = &ring->producer;
    int status = mpx_ring_map(ring, side, mpx_u64_load_relaxed(&control->tail_block));
    uint64_t next = status < 0 ? 0 : mpx_u64_load_relaxed(&side->segment->next);
    if (next != 0) {
        status = mpx_ring_map(ring, side, next);
        if (status == 0) {
            control->room_from = side->segment->start;
            mpx_u64_store_release(&control->tail_block, next); /* R8: with R9 */
        }
    }
    return status;
}

MPX_NODISCARD static int settle(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    if (control->linking != 0) {
        int status = follow_links(ring);
        if (status < 0) {
            return status;
        }
        if (mpx_u64_load_relaxed(&control->tail_block) != control->linking) {
            (void)mpx_heap_free(ring->arena, control->linking, ring->owner);
        }
        MPX_STEP(ring_settled_link);
        control->linking = 0;
    }
    if (control->giving != 0) {
        uint32_t position = mpx_ring_position(mpx_u64_load_relaxed(&control->tail));
        if (position == control->giving_at) {
            (void)mpx_heap_free(ring->arena, control->giving, ring->owner);
        }
        MPX_STEP(ring_settled_gift);
        control->giving = 0;
    }
    return 0;
}

/* ---- Room ------------------------------------------------------------------------------------ */

/* Asks how far the consumers are. As long as they are in another segment, all of the last one since
 * its start is in use. */
static void ask_for_room(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    uint64_t block = mpx_u64_load_acquire(&control->head_block); /* R11: with R10 */
    uint64_t head = mpx_u64_load_acquire(&control->head);        /* R3: with R2 */
    control->head_seen = head;
    control->room_from = block == mpx_u64_load_relaxed(&control->tail_block)
                             ? mpx_ring_position(head)
                             : ring->producer.segment->start;
}

/* Whether that many units are free, one after the other, behind `units` of filling. */
static bool has_room(mpx_ring_t *ring, uint32_t position, uint32_t units)
{
    uint32_t used = position - ring->control->room_from;
    return used <= ring->producer.capacity && units <= ring->producer.capacity - used;
}

/* The units to fill up before a record that must not wrap. */
static uint32_t filling(const mpx_ring_side_t *side, uint32_t position, uint32_t units)
{
    uint32_t left = side->capacity - (position & (side->capacity - 1));
    return units > left ? left : 0;
}

/* Links the segment, which belongs to `own`, behind the last one. */
static int link_segment(mpx_ring_t *ring, mpx_heap_owner_t own, mpx_block_t block,
                        uint32_t position)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_side_t side = {0};
    int status = mpx_ring_map(ring, &side, block);
    if (status < 0) {
        return status;
    }
    side.segment->start = position;
    control->linking = block;
    MPX_STEP(ring_link_noted);
    if (!mpx_heap_give(ring->arena, block, own, ring->owner)) {
        control->linking = 0;
        return -EPROTO;
    }
    MPX_STEP(ring_link_given);
    ring->producer.segment->end = position;
    mpx_u64_store_release(&ring->producer.segment->next, block); /* R12: with R13 */
    MPX_STEP(ring_linked);
    mpx_u64_store_release(&control->tail_block, block); /* R8: with R9 */
    MPX_STEP(ring_link_last);
    control->room_from = position;
    ring->producer = side;
    control->linking = 0;
    return 0;
}

/* How long the segment behind the last one is to be. */
static uint32_t next_capacity(const mpx_ring_side_t *side, uint32_t units)
{
    uint32_t capacity = 2 * side->capacity;
    if (capacity > MPX_SEGMENT_MOST) {
        capacity = MPX_SEGMENT_MOST;
    }
    return capacity > 2 * units ? capacity : 2 * units;
}

/* ---- The bell -------------------------------------------------------------------------------- */

static bool is_empty(mpx_ring_t *ring)
{
    uint64_t head = mpx_u64_load_acquire(&ring->control->head); /* R3: with R2 */
    return mpx_ring_between(head, mpx_u64_load_relaxed(&ring->control->tail)) == 0;
}

/* `rung` is written after it is, and cleared before it is not: whoever dies between leaves a bell
 * that is rung once too often. A process that has lost its end leaves it to the next producer. */
static void ring_bell(mpx_ring_t *ring)
{
    if (!mpx_u32_load_relaxed(&ring->control->rung) && mpx_bell_ring(&ring->bell)) {
        MPX_STEP(ring_rung);
        mpx_u32_store_relaxed(&ring->control->rung, 1);
    }
}

static void silence(mpx_ring_t *ring)
{
    mpx_u32_store_relaxed(&ring->control->rung, 0);
    MPX_STEP(ring_quieting);
    mpx_bell_quiet(&ring->bell);
}

/* Nobody waits for a producer that was stopped in the middle for longer than this. */
#define PATIENCE (100 * MPX_NANOS_PER_MILLI)

static bool lock_producers(mpx_ring_t *ring)
{
    int64_t deadline = mpx_os_now() + PATIENCE;
    int status;
    do {
        status = mpx_mutex_lock(&ring->control->producers, deadline);
    } while (status == -EINTR);
    return status >= 0;
}

/* A ring that is shut is at its end, which is to be seen. */
static bool is_silent(mpx_ring_t *ring)
{
    return is_empty(ring) && !mpx_ring_is_shut(ring);
}

/* Without the mutex, the bell is rung: rather once too often. */
void mpx_ring_watch(mpx_ring_t *ring)
{
    if (mpx_ring_is_watched(ring->control)) {
        return;
    }
    bool locked = lock_producers(ring);
    if (locked && is_silent(ring)) {
        silence(ring);
    } else {
        ring_bell(ring);
    }
    MPX_STEP(ring_watching);
    mpx_u32_store_relaxed(&ring->control->watched, 1);
    if (locked) {
        mpx_mutex_unlock(&ring->control->producers);
    }
}

static void quiet(mpx_ring_t *ring)
{
    if (is_silent(ring)) {
        silence(ring);
    }
    mpx_mutex_unlock(&ring->control->producers);
}

void mpx_ring_quiet(mpx_ring_t *ring)
{
    if (lock_producers(ring)) { /* else the next one who looks does it */
        quiet(ring);
    }
}

bool mpx_ring_try_quiet(mpx_ring_t *ring)
{
    if (mpx_mutex_try_lock(&ring->control->producers) < 0) {
        return false;
    }
    quiet(ring);
    return true;
}

void mpx_ring_toll(mpx_ring_t *ring)
{
    bool locked = lock_producers(ring);
    if (mpx_ring_is_watched(ring->control)) {
        ring_bell(ring);
    }
    if (locked) {
        mpx_mutex_unlock(&ring->control->producers);
    }
}

/* Under the mutex: a thread of this process may be about to write to the descriptor, whose number
 * is another file's as soon as it is closed. */
void mpx_ring_close_ends(mpx_ring_t *ring, bool reader, bool writer)
{
    bool locked = lock_producers(ring);
    if (reader) {
        mpx_bell_close_reader(&ring->bell);
    }
    if (writer) {
        mpx_bell_close_writer(&ring->bell);
    }
    if (locked) {
        mpx_mutex_unlock(&ring->control->producers);
    }
}

/* ---- Put ------------------------------------------------------------------------------------- */

static inline void write_record(mpx_ring_side_t *side, uint32_t position, uint32_t kind,
                                const void *data, size_t size, const mpx_enclosed_t *enclosed)
{
    unsigned char *at = side->data + (size_t)(position & (side->capacity - 1)) * MPX_RING_UNIT;
    mpx_record_t record = {.size = (uint32_t)size, .kind = mpx_record_kind_at(kind, position)};
    if (kind == MPX_RECORD_WITH_BLOCK) {
        record.size += (uint32_t)sizeof(*enclosed);
        memcpy(at + sizeof(record), enclosed, sizeof(*enclosed));
        memcpy(at + sizeof(record) + sizeof(*enclosed), data, size);
    } else {
        mpx_ring_copy(at + sizeof(record), data, size);
    }
    memcpy(at, &record, sizeof(record));
}

/* What a producer brings to the mutex. */
typedef struct {
    const mpx_message_t *messages;
    size_t count;
    size_t done;          /* of those, the first ones */
    mpx_heap_owner_t own; /* where it has been asked for: of a block, and of a segment */
    mpx_block_t segment;  /* a new one, or 0 */
    uint32_t wanted;      /* how many units a new one is to have */
    uint64_t spare;       /* bytes for which there is room, where they are limited */
    uint64_t before;      /* `tail`, as it was */
} putting_t;

static uint32_t units_of(const mpx_message_t *message)
{
    return mpx_record_units(message->size + (message->block ? sizeof(mpx_enclosed_t) : 0));
}

/* Writes a message behind `position`; the position behind it. */
static uint32_t write_message(mpx_ring_t *ring, const mpx_message_t *message, uint32_t position,
                              uint32_t fill)
{
    mpx_ring_side_t *side = &ring->producer;
    mpx_enclosed_t enclosed = {message->block, message->bytes};
    if (fill > 0) {
        write_record(side, position, MPX_RECORD_PAD, NULL, 0, NULL);
    }
    write_record(side, position + fill, message->block ? MPX_RECORD_WITH_BLOCK : MPX_RECORD_MESSAGE,
                 message->data, message->size, &enclosed);
    return position + fill + units_of(message);
}

/* Makes visible so many messages, which were written up to the position; `tail` as it was. */
static inline uint64_t publish(mpx_ring_t *ring, uint64_t tail, uint32_t position, size_t count)
{
    uint32_t messages = mpx_ring_messages(tail) + (uint32_t)count;
    MPX_STEP(ring_written);
    uint64_t before = mpx_u64_exchange_acq_rel(
        &ring->control->tail, mpx_ring_word(position, messages)); /* R4: with R5, R7: with R6 */
    MPX_STEP(ring_published);
    return before;
}

/* What is about to be made visible, up to the position, is added to the bytes. */
MPX_COLD static void add_bytes(mpx_ring_t *ring, const putting_t *putting, uint64_t tail,
                               uint32_t position)
{
    uint32_t messages = mpx_ring_messages(tail) + (uint32_t)putting->done;
    uint64_t bytes = 0;
    for (size_t i = 0; i < putting->done; i++) {
        bytes += mpx_message_bytes(putting->messages + i);
    }
    mpx_ring_add_bytes(ring->control->put, tail, mpx_ring_word(position, messages), bytes);
}

static void publish_all(mpx_ring_t *ring, putting_t *putting, uint64_t tail, uint32_t position)
{
    if (MPX_UNLIKELY(ring->control->most_bytes != 0)) {
        add_bytes(ring, putting, tail, position);
    }
    putting->before = publish(ring, tail, position, putting->done);
}

/* The first message, for which there is room, and which has a block of this process. */
static int put_with_block(mpx_ring_t *ring, putting_t *putting, uint64_t tail, uint32_t fill)
{
    mpx_ring_control_t *control = ring->control;
    const mpx_message_t *message = putting->messages;
    control->giving_at = mpx_ring_position(tail);
    mpx_compiler_barrier(); /* whoever dies here leaves no note, or a whole one */
    control->giving = message->block;
    MPX_STEP(ring_gift_noted);
    if (!mpx_heap_give(ring->arena, message->block, putting->own, ring->owner)) {
        control->giving = 0;
        return -EPROTO;
    }
    MPX_STEP(ring_given);
    putting->done = 1;
    uint32_t position = write_message(ring, message, mpx_ring_position(tail), fill);
    publish_all(ring, putting, tail, position);
    control->giving = 0;
    return 0;
}

/* How many units to fill up before the message at that position; -1 where there is no room. */
static int64_t place(mpx_ring_t *ring, const mpx_message_t *message, uint32_t position)
{
    uint32_t units = units_of(message);
    uint32_t fill = filling(&ring->producer, position, units);
    if (has_room(ring, position, fill + units)) {
        return fill;
    }
    ask_for_room(ring);
    return has_room(ring, position, fill + units) ? (int64_t)fill : -1;
}

/* The same for the first one, for which a new segment is linked if need be. */
static int make_place(mpx_ring_t *ring, putting_t *putting, uint64_t tail, uint32_t *fill)
{
    uint32_t position = mpx_ring_position(tail), units = units_of(putting->messages);
    int64_t found = place(ring, putting->messages, position);
    if (found >= 0) {
        *fill = (uint32_t)found;
        return 0;
    }
    if (putting->segment == 0) {
        putting->wanted = next_capacity(&ring->producer, units);
        uint32_t used = position - mpx_ring_position(ring->control->head_seen);
        return used > MPX_RING_UNITS - putting->wanted ? -ENOSPC : NEEDS_SEGMENT;
    }
    int status = link_segment(ring, putting->own, putting->segment, position);
    if (status == 0) {
        putting->segment = 0;
        *fill = filling(&ring->producer, position, units);
    }
    return status;
}

/* Messages without blocks, the first one of which has its place; as many as have room at once. */
static void put_some(mpx_ring_t *ring, putting_t *putting, uint64_t tail, uint32_t fill)
{
    uint32_t room = ring->control->limit - mpx_ring_between(ring->control->head_seen, tail);
    uint32_t position = write_message(ring, putting->messages, mpx_ring_position(tail), fill);
    bool counts = ring->control->most_bytes != 0;
    for (putting->done = 1; putting->done < putting->count && putting->done < room;
         putting->done++) {
        const mpx_message_t *next = putting->messages + putting->done;
        if (counts) {
            putting->spare -= mpx_message_bytes(next - 1);
        }
        bool stays = next->block != 0 || (counts && mpx_message_bytes(next) > putting->spare);
        int64_t found = stays ? -1 : place(ring, next, position);
        if (found < 0) {
            break;
        }
        position = write_message(ring, next, position, (uint32_t)found);
    }
    publish_all(ring, putting, tail, position);
}

static bool is_full(mpx_ring_t *ring, uint64_t tail, uint64_t head)
{
    return mpx_ring_between(head, tail) >= ring->control->limit;
}

/* Under the mutex. What consumers write has to come from another processor: it is asked for where
 * what was last seen of it leaves no room. */
static bool is_full_now(mpx_ring_t *ring, uint64_t tail)
{
    mpx_ring_control_t *control = ring->control;
    if (MPX_UNLIKELY(is_full(ring, tail, control->head_seen))) {
        control->head_seen = mpx_u64_load_acquire(&control->head); /* R3: with R2 */
        return is_full(ring, tail, control->head_seen);
    }
    return false;
}

/* Under the mutex: whether there is room for the bytes of the first message. */
MPX_COLD static int find_spare(mpx_ring_t *ring, putting_t *putting, uint64_t tail)
{
    mpx_ring_control_t *control = ring->control;
    uint64_t most = control->most_bytes, bytes = mpx_message_bytes(putting->messages), put;
    if (bytes > most) {
        return -EMSGSIZE;
    }
    if (!mpx_ring_sum_of(control->put, tail, &put)) {
        return -EPROTO;
    }
    if (put - control->got_seen > most - bytes) {
        control->got_seen = mpx_ring_sum_now(control->got, &control->head);
    }
    putting->spare = most - (put - control->got_seen);
    return put - control->got_seen > most - bytes ? -EAGAIN : 0;
}

/* Under the mutex: 0 where one message or more are put, NEEDS_SEGMENT, or an error. */
static int put_locked(mpx_ring_t *ring, putting_t *putting)
{
    mpx_ring_control_t *control = ring->control;
    uint32_t fill = 0;
    int status = 0;
    if (MPX_UNLIKELY(control->linking != 0 || control->giving != 0)) {
        status = settle(ring);
    }
    if (status == 0 && mpx_ring_is_shut(ring)) {
        status = -EPIPE;
    }
    uint64_t tail = mpx_u64_load_relaxed(&control->tail);
    if (status == 0 && is_full_now(ring, tail)) {
        status = -EAGAIN;
    }
    if (status == 0 && MPX_UNLIKELY(control->most_bytes != 0)) {
        status = find_spare(ring, putting, tail);
    }
    if (status == 0) {
        status = mpx_ring_map(ring, &ring->producer, mpx_u64_load_relaxed(&control->tail_block));
    }
    if (status == 0) {
        status = make_place(ring, putting, tail, &fill);
    }
    if (status != 0) {
        return status;
    }
    if (MPX_UNLIKELY(mpx_ring_is_watched(control))) {
        ring_bell(ring);
    }
    if (putting->messages->block) {
        return put_with_block(ring, putting, tail, fill);
    }
    put_some(ring, putting, tail, fill);
    return 0;
}

static bool has_place(mpx_ring_t *ring, uint64_t head, uint64_t bytes)
{
    uint64_t most = ring->control->most_bytes;
    if (is_full(ring, mpx_u64_load_acquire(&ring->control->tail), head)) { /* R5: with R4 */
        return false;
    }
    return most == 0 || bytes > most || mpx_ring_bytes(ring) <= most - bytes;
}

/* The messages up to the first one that is too long. */
static int check_messages(mpx_ring_t *ring, putting_t *putting)
{
    size_t fitting = 0;
    while (fitting < putting->count && putting->messages[fitting].size <= MPX_RING_INLINE) {
        fitting++;
    }
    putting->count = fitting;
    if (fitting == 0) {
        return -EMSGSIZE;
    }
    return putting->messages->block == 0 ? 0 : mpx_heap_own(ring->arena, &putting->own);
}

/* With the mutex taken. */
static int put_and_unlock(mpx_ring_t *ring, putting_t *putting)
{
    int status = put_locked(ring, putting);
    mpx_mutex_unlock(&ring->control->producers);
    if (status == 0) {
        mpx_ring_wake(ring, &ring->control->tail, putting->before);
    }
    return status;
}

/* Under the mutex: puts a message without a block where nothing needs to be done before: there is
 * room behind the last one, nobody has died, and no bell is to be rung. False where put_locked has
 * to look. */
static inline bool put_plainly(mpx_ring_t *ring, const mpx_message_t *message, uint64_t *before)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_side_t *side = &ring->producer;
    uint64_t tail = mpx_u64_load_relaxed(&control->tail);
    uint32_t position = mpx_ring_position(tail), units = mpx_record_units(message->size);
    if (MPX_UNLIKELY((control->linking | control->giving | control->most_bytes) != 0 ||
                     mpx_ring_was_shut(control) || mpx_ring_is_watched(control) ||
                     is_full(ring, tail, control->head_seen) ||
                     !mpx_ring_is_mapped(side, mpx_u64_load_relaxed(&control->tail_block)) ||
                     filling(side, position, units) > 0 || !has_room(ring, position, units))) {
        return false;
    }
    write_record(side, position, MPX_RECORD_MESSAGE, message->data, message->size, NULL);
    *before = publish(ring, tail, position + units, 1);
    return true;
}

MPX_COLD static int try_put_and_unlock(mpx_ring_t *ring, putting_t *putting)
{
    int status = put_and_unlock(ring, putting);
    return status == NEEDS_SEGMENT ? -EBUSY : status;
}

int mpx_ring_try_put(mpx_ring_t *ring, const mpx_message_t *message)
{
    mpx_mutex_t *mutex = &ring->control->producers;
    putting_t putting = {.messages = message, .count = 1};
    uint64_t before;
    bool is_plain = message->block == 0 && message->size <= MPX_RING_INLINE;
    int status = MPX_LIKELY(is_plain) ? 0 : check_messages(ring, &putting);
    if (status < 0) {
        return status;
    }
    const mpx_thread_t *self = mpx_os_self();
    status = mpx_mutex_try_lock_as(self, mutex);
    if (MPX_UNLIKELY(status != 0)) {
        if (status < 0) {
            return status == -EAGAIN ? -EBUSY : status;
        }
        mpx_ring_count_death(ring->control);
    }
    if (MPX_UNLIKELY(!is_plain || !put_plainly(ring, message, &before))) {
        return try_put_and_unlock(ring, &putting);
    }
    mpx_mutex_unlock_as(self, mutex);
    mpx_ring_wake(ring, &ring->control->tail, before);
    return 0;
}

static int put(mpx_ring_t *ring, putting_t *putting, bool may_wait, int64_t deadline)
{
    mpx_ring_control_t *control = ring->control;
    bool slept = false;
    int status = check_messages(ring, putting);
    while (status == 0) {
        status = mpx_mutex_lock(&control->producers, deadline);
        if (status < 0) {
            break;
        }
        if (status == MPX_OWNER_DIED) {
            mpx_ring_count_death(control);
        }
        status = put_and_unlock(ring, putting);
        if (status == NEEDS_SEGMENT) {
            status = mpx_heap_own(ring->arena, &putting->own);
            if (status == 0) {
                status = mpx_ring_new_segment(ring, putting->own, putting->wanted,
                                              &putting->segment, deadline);
            }
        } else if (status == -EAGAIN && may_wait) {
            status = mpx_ring_wait_for(ring, &control->head, has_place,
                                       mpx_message_bytes(putting->messages), deadline, &slept);
        } else {
            break;
        }
    }
    if (putting->segment != 0) {
        (void)mpx_heap_free(ring->arena, putting->segment, putting->own);
    }
    if (slept) {
        mpx_ring_pass_on(ring, &control->head, has_place);
    }
    return status == -ETIMEDOUT ? -EBUSY : status;
}

int mpx_ring_put(mpx_ring_t *ring, const mpx_message_t *message, int64_t deadline)
{
    putting_t putting = {.messages = message, .count = 1};
    return put(ring, &putting, true, deadline);
}

int mpx_ring_put_now(mpx_ring_t *ring, const mpx_message_t *message, int64_t deadline)
{
    putting_t putting = {.messages = message, .count = 1};
    return put(ring, &putting, false, deadline);
}

int mpx_ring_try_put_many(mpx_ring_t *ring, const mpx_message_t *messages, size_t count,
                          size_t *done)
{
    putting_t putting = {.messages = messages, .count = count};
    *done = 0;
    int status = check_messages(ring, &putting);
    if (status < 0) {
        return status;
    }
    status = mpx_ring_try_lock(ring->control, &ring->control->producers);
    if (status < 0) {
        return status;
    }
    status = try_put_and_unlock(ring, &putting);
    *done = status == 0 ? putting.done : 0;
    return status;
}

bool mpx_ring_link_if_empty(mpx_ring_t *ring, mpx_heap_owner_t own, mpx_block_t block)
{
    mpx_ring_control_t *control = ring->control;
    if (mpx_mutex_try_lock(&control->producers) < 0) {
        return false;
    }
    bool linked = false;
    uint64_t tail = mpx_u64_load_relaxed(&control->tail);
    uint64_t head = mpx_u64_load_acquire(&control->head); /* R3: with R2 */
    if (mpx_ring_between(head, tail) == 0 && settle(ring) == 0 &&
        mpx_ring_map(ring, &ring->producer, mpx_u64_load_relaxed(&control->tail_block)) == 0 &&
        ring->producer.capacity > MPX_SEGMENT_KEPT) {
        linked = link_segment(ring, own, block, mpx_ring_position(tail)) == 0;
    }
    mpx_mutex_unlock(&control->producers);
    return linked;
}
