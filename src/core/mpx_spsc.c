/* mpx_spsc.c - see mpx_spsc.h.
 *
 * Layer: L3
 */
#include "mpx_spsc.h"

#include "mpx_fault.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define WAITS UINT64_C(1)
#define PAD   0

static uint64_t word_of(uint64_t position)
{
    return position << 1;
}

/* Records begin at units, whatever damaged memory says. */
static uint64_t position_of(uint64_t word)
{
    return word >> 1 & ~(uint64_t)(MPX_SPSC_UNIT - 1);
}

/* The core is for little-endian machines. */
static mpx_atomic_u32 *futex_of(mpx_atomic_u64 *word)
{
    return (mpx_atomic_u32 *)(void *)word;
}

static uint32_t rounded(uint32_t size)
{
    return (uint32_t)(sizeof(mpx_spsc_header_t) + size + MPX_SPSC_UNIT - 1) & ~(MPX_SPSC_UNIT - 1U);
}

static unsigned char *at(const mpx_spsc_t *end, uint64_t position)
{
    return end->data + (position & (end->capacity - 1));
}

/* How many bytes there are from the position to where the ring wraps. */
static uint32_t before_wrap(const mpx_spsc_t *end, uint64_t position)
{
    return end->capacity - (uint32_t)(position & (end->capacity - 1));
}

void mpx_spsc_init(mpx_spsc_words_t *words)
{
    mpx_u64_store_relaxed(&words->tail, 0);
    mpx_u64_store_relaxed(&words->head, 0);
}

static void open_end(mpx_spsc_t *end, mpx_spsc_words_t *words, void *data, uint32_t capacity)
{
    *end = (mpx_spsc_t){.words = words, .data = data, .capacity = capacity};
}

void mpx_spsc_open_producer(mpx_spsc_t *end, mpx_spsc_words_t *words, void *data, uint32_t capacity)
{
    open_end(end, words, data, capacity);
    end->position = end->shown = position_of(mpx_u64_load_relaxed(&words->tail));
    end->other = position_of(mpx_u64_load_acquire(&words->head)); /* C3: with C2 */
}

void mpx_spsc_open_consumer(mpx_spsc_t *end, mpx_spsc_words_t *words, void *data, uint32_t capacity)
{
    open_end(end, words, data, capacity);
    end->position = end->shown = position_of(mpx_u64_load_relaxed(&words->head));
    end->other = end->position;
}

/* ---- The producer ---------------------------------------------------------------------------- */

uint64_t mpx_spsc_read_up_to(mpx_spsc_t *end)
{
    end->other = position_of(mpx_u64_load_acquire(&end->words->head)); /* C3: with C2 */
    return end->other;
}

/* What a record takes, with what is filled up before it. */
static uint32_t needed_for(const mpx_spsc_t *end, uint32_t size)
{
    uint32_t needed = rounded(size), rest = before_wrap(end, end->position);
    return needed <= rest ? needed : needed + rest;
}

/* A head that damaged memory gives leads to no room. */
static bool has_room(mpx_spsc_t *end, uint32_t size)
{
    uint64_t used = end->position - end->other;
    return used <= end->capacity && needed_for(end, size) <= end->capacity - used;
}

void *mpx_spsc_reserve(mpx_spsc_t *end, uint32_t size)
{
    if (!has_room(end, size)) {
        (void)mpx_spsc_read_up_to(end);
        if (!has_room(end, size)) {
            return NULL;
        }
    }
    uint32_t rest = before_wrap(end, end->position);
    if (rounded(size) > rest) {
        mpx_spsc_header_t pad = {.size = rest - (uint32_t)sizeof(pad), .kind = PAD};
        memcpy(at(end, end->position), &pad, sizeof(pad));
        end->position += rest;
    }
    return at(end, end->position) + sizeof(mpx_spsc_header_t);
}

void mpx_spsc_commit(mpx_spsc_t *end, mpx_spsc_header_t header)
{
    memcpy(at(end, end->position), &header, sizeof(header));
    end->position += rounded(header.size);
}

bool mpx_spsc_publish(mpx_spsc_t *end)
{
    if (end->position == end->shown) {
        return false;
    }
    MPX_STEP(spsc_written);
    uint64_t before =
        mpx_u64_exchange_acq_rel(&end->words->tail, word_of(end->position)); /* C0: with C1 */
    MPX_STEP(spsc_published);
    end->shown = end->position;
    return (before & WAITS) != 0;
}

void mpx_spsc_wake_consumer(mpx_spsc_t *end)
{
    (void)mpx_os_futex_wake(futex_of(&end->words->tail), INT_MAX);
}

const mpx_spsc_header_t *mpx_spsc_record_before(const mpx_spsc_t *end, uint64_t position,
                                                uint32_t size)
{
    return (const mpx_spsc_header_t *)(void *)at(end, position - rounded(size));
}

/* ---- The consumer ---------------------------------------------------------------------------- */

static void look(mpx_spsc_t *end)
{
    end->other = position_of(mpx_u64_load_acquire(&end->words->tail)); /* C1: with C0 */
}

bool mpx_spsc_has_record(mpx_spsc_t *end)
{
    if (end->position == end->other) {
        look(end);
    }
    return end->position != end->other;
}

int mpx_spsc_peek(mpx_spsc_t *end, mpx_spsc_header_t *header, const void **data)
{
    while (mpx_spsc_has_record(end)) {
        const unsigned char *record = at(end, end->position);
        uint32_t rest = before_wrap(end, end->position);
        memcpy(header, record, sizeof(*header));
        uint64_t there = end->other - end->position;
        if (there > end->capacity || header->size > rest - sizeof(*header) ||
            rounded(header->size) > there) {
            return -EPROTO;
        }
        if (header->kind != PAD) {
            *data = record + sizeof(*header);
            return 0;
        }
        end->position += rounded(header->size);
    }
    return -EAGAIN;
}

void mpx_spsc_pop(mpx_spsc_t *end, uint32_t size)
{
    end->position += rounded(size);
}

void mpx_spsc_release(mpx_spsc_t *end)
{
    if (end->position == end->shown) {
        return;
    }
    uint64_t before =
        mpx_u64_exchange_acq_rel(&end->words->head, word_of(end->position)); /* C2: with C3 */
    MPX_STEP(spsc_released);
    end->shown = end->position;
    if (MPX_UNLIKELY(before & WAITS)) {
        (void)mpx_os_futex_wake(futex_of(&end->words->head), INT_MAX);
    }
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Sets the bit in a word that still is at this position. */
static bool announce(mpx_atomic_u64 *word, uint64_t position)
{
    uint64_t seen = word_of(position);
    bool done =
        mpx_u64_cas_relaxed(word, &seen, seen | WAITS) || seen == (word_of(position) | WAITS);
    MPX_STEP(spsc_announced);
    return done;
}

/* Sleeps while the word is at this position and has the bit: 0 is "look again". */
static int sleep_on(mpx_atomic_u64 *word, uint64_t position, int64_t piece, int64_t deadline)
{
    int64_t now = mpx_os_now();
    if (now >= deadline) {
        return -ETIMEDOUT;
    }
    int64_t until = deadline - now > piece ? now + piece : deadline;
    int status = mpx_os_futex_wait(futex_of(word), (uint32_t)(word_of(position) | WAITS), until);
    return status == -ETIMEDOUT ? MPX_WAIT_LOOK : status == -EINTR ? -EINTR : 0;
}

bool mpx_spsc_announce(mpx_spsc_t *end)
{
    return !mpx_spsc_has_record(end) && announce(&end->words->tail, end->position);
}

void mpx_spsc_stand_down(mpx_spsc_t *end)
{
    uint64_t seen = word_of(end->position) | WAITS;
    (void)mpx_u64_cas_relaxed(&end->words->tail, &seen, word_of(end->position));
}

int mpx_spsc_wait(mpx_spsc_t *end, int64_t piece, int64_t deadline)
{
    for (unsigned tries = 0; !mpx_spsc_has_record(end); tries++) {
        if (mpx_wait_yields(&end->mood, tries, deadline)) {
            continue;
        }
        tries = MPX_WAIT_YIELDS;
        if (announce(&end->words->tail, end->position)) {
            int status = sleep_on(&end->words->tail, end->position, piece, deadline);
            if (status != 0) {
                return mpx_spsc_has_record(end) ? 0 : status;
            }
        }
    }
    return 0;
}

int mpx_spsc_wait_for_room(mpx_spsc_t *end, uint32_t size, int64_t deadline)
{
    for (unsigned tries = 0;; tries++) {
        (void)mpx_spsc_read_up_to(end);
        if (has_room(end, size)) {
            return 0;
        }
        if (mpx_wait_yields(&end->mood, tries, deadline)) {
            continue;
        }
        tries = MPX_WAIT_YIELDS;
        if (announce(&end->words->head, end->other)) {
            int status = sleep_on(&end->words->head, end->other, MPX_WAIT_RECHECK, deadline);
            if (status < 0) {
                return status;
            }
            if (status == MPX_WAIT_LOOK) {
                return -ETIMEDOUT;
            }
        }
    }
}
