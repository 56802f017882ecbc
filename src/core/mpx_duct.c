/* mpx_duct.c - see mpx_duct.h.
 *
 * Layer: L3
 */
#include "mpx_duct.h"

#include "mpx_fault.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define MAGIC UINT64_C(0x00ff746375647fff)

/* In the lowest bits of the words: positions are multiples of WORD. */
#define ASLEEP UINT64_C(1) /* of tail: write to the descriptor, which wakes the receiver */
#define WANTED UINT64_C(1) /* of head: somebody waits for room */
#define MOVED  UINT64_C(2) /* of head: the messages before it may come back, see empty_to */

#define WORD 8
#define MASK (MPX_DUCT_RING - 1)

/* So many bytes of the ring are written to the descriptor at once: as a whole, or not at all. */
#define BATCH 4096

MPX_STATIC_ASSERT((MPX_DUCT_RING & MASK) == 0, "a power of two");
MPX_STATIC_ASSERT(MPX_DUCT_MOST_PIPE + 4 == BATCH, "a batch has room for what a pipe's ring has");

void mpx_duct_init(mpx_duct_t *duct, bool is_socket)
{
    memset(duct, 0, offsetof(mpx_duct_t, ring));
    duct->magic = MAGIC;
    duct->most = is_socket ? MPX_DUCT_MOST : MPX_DUCT_MOST_PIPE;
    mpx_u32_store_relaxed(&duct->aside, 1);
    mpx_u64_store_relaxed(&duct->tail, ASLEEP);
}

void mpx_duct_belong_to(mpx_duct_t *duct, const mpx_file_id_t *file)
{
    duct->file = *file;
}

bool mpx_duct_is_sound(const mpx_duct_t *duct, size_t size)
{
    return size >= sizeof(*duct) && duct->magic == MAGIC && duct->most <= MPX_DUCT_MOST;
}

bool mpx_duct_is_open(mpx_duct_t *duct)
{
    return mpx_u32_load_relaxed(&duct->opened) != 0 && !mpx_duct_is_stopped(duct);
}

/* ---- Words ----------------------------------------------------------------------------------- */

static inline uint64_t position(uint64_t word)
{
    return word & ~(uint64_t)(WORD - 1);
}

static inline uint64_t tail_now(mpx_duct_t *duct)
{
    return position(mpx_u64_load_acquire(&duct->tail)); /* D1: with D0 */
}

static inline uint64_t head_now(mpx_duct_t *duct)
{
    return position(mpx_u64_load_acquire(&duct->head)); /* D3: with D2 */
}

/* What is being moved may come back. */
bool mpx_duct_is_empty(mpx_duct_t *duct)
{
    uint64_t tail = tail_now(duct);
    return (mpx_u64_load_acquire(&duct->head) & ~WANTED) == tail; /* D3: with D2 */
}

bool mpx_duct_has_something(mpx_duct_t *duct)
{
    return !mpx_duct_is_empty(duct) || mpx_u32_load_acquire(&duct->aside) != 0; /* D7: with D6 */
}

bool mpx_duct_has_message(mpx_duct_t *duct)
{
    return !mpx_duct_is_empty(duct) && mpx_u32_load_acquire(&duct->aside) == 0; /* D7: with D6 */
}

/* The half of `head` on which those sleep who wait for room. The core is for little-endian
 * machines.
 */
static mpx_atomic_u32 *futex_of(mpx_atomic_u64 *word)
{
    return (mpx_atomic_u32 *)(void *)word;
}

static void wake_sleepers(mpx_duct_t *duct)
{
    (void)!mpx_os_futex_wake(futex_of(&duct->head), INT_MAX);
}

/* Who says after this that it waits sees what was done before. */
static void wake_senders(mpx_duct_t *duct)
{
    (void)mpx_u64_fetch_and_acq_rel(&duct->head, ~WANTED); /* D2: with D3 */
    wake_sleepers(duct);
}

/* The same where `head` says that there may be some. */
static void wake_waiting_senders(mpx_duct_t *duct)
{
    if (MPX_UNLIKELY(mpx_u64_load_relaxed(&duct->head) & WANTED)) {
        wake_senders(duct);
    }
}

/* ---- Records --------------------------------------------------------------------------------- */

/* A record is a word, and the message, filled up to the next one. It does not wrap: the rest of the
 * ring is filled by one without a message. The word has the size, and a check of the position. */
#define FILLING UINT32_MAX

static inline uint64_t record_word(uint64_t at, uint32_t size)
{
    uint32_t check = (uint32_t)(at / WORD) * UINT32_C(0x9e3779b1) ^ size;
    return (uint64_t)check << 32 | size;
}

static inline mpx_atomic_u64 *word_at(mpx_duct_t *duct, uint64_t at)
{
    return &duct->ring[(at & MASK) / WORD];
}

static inline uint64_t record_length(size_t size)
{
    return WORD + (size + WORD - 1) / WORD * WORD;
}

/* How many bytes there are to the end of the ring. */
static inline uint64_t left_behind(uint64_t at)
{
    return MPX_DUCT_RING - (at & MASK);
}

/* By words: a receiver may be reading what it will find to have been taken before. */
static inline void copy_in(mpx_atomic_u64 *words, const void *data, size_t size)
{
    const char *from = data;
    uint64_t word = 0;
    for (; size >= WORD; size -= WORD, from += WORD) {
        memcpy(&word, from, WORD);
        mpx_u64_store_relaxed(words++, word);
    }
    if (size > 0) {
        word = 0;
        memcpy(&word, from, size);
        mpx_u64_store_relaxed(words, word);
    }
}

static inline void copy_out(void *buffer, mpx_atomic_u64 *words, size_t size)
{
    char *to = buffer;
    uint64_t word;
    for (; size >= WORD; size -= WORD, to += WORD) {
        word = mpx_u64_load_relaxed(words++);
        memcpy(to, &word, WORD);
    }
    if (size > 0) {
        word = mpx_u64_load_relaxed(words);
        memcpy(to, &word, size);
    }
}

/* The record of a message at *at, or behind filling that is there, and then *at is behind that. Not
 * beyond `end`. */
MPX_NODISCARD static inline int find_record(mpx_duct_t *duct, uint64_t *at, uint64_t end,
                                            uint32_t *size)
{
    uint64_t word = mpx_u64_load_relaxed(word_at(duct, *at));
    *size = (uint32_t)word;
    if (MPX_UNLIKELY(*size == FILLING)) {
        if (word != record_word(*at, FILLING) || end - *at <= left_behind(*at)) {
            return -EPROTO;
        }
        *at += left_behind(*at);
        word = mpx_u64_load_relaxed(word_at(duct, *at));
        *size = (uint32_t)word;
    }
    bool is_sound = word == record_word(*at, *size) && *size <= duct->most;
    return is_sound && record_length(*size) <= end - *at && record_length(*size) <= left_behind(*at)
               ? 0
               : -EPROTO;
}

/* ---- Putting --------------------------------------------------------------------------------- */

/* A pipe has 16 pages. What does not go on in a page begins the next one: so any two that follow
 * each other have more than 4096 bytes of content, and so many bytes of messages have room in all.
 * A socket takes more of large pieces, but of small ones not even that. */
#define WEIGHT (15 * 2048)

/* Under the mutex: notes what was written. */
static inline void weigh(mpx_duct_t *duct, size_t size, bool is_socket)
{
    duct->weight += size + (is_socket ? 2048 : 0);
}

/* Under the mutex: how many bytes of records there may be. All of a ring goes to an empty
 * descriptor, since records are longer than messages are there. */
static inline uint64_t most_in_ring(mpx_duct_t *duct)
{
    if (MPX_LIKELY(!mpx_u32_load_relaxed(&duct->aside))) {
        return MPX_DUCT_RING;
    }
    return duct->weight < WEIGHT ? WEIGHT - duct->weight : 0;
}

/* Under the mutex: whether there is room for so many bytes. */
static inline bool has_room(mpx_duct_t *duct, uint64_t tail, uint64_t length)
{
    uint64_t most = most_in_ring(duct);
    if (MPX_LIKELY(tail - duct->head_seen + length <= most)) {
        return true;
    }
    duct->head_seen = head_now(duct);
    return tail - duct->head_seen + length <= most;
}

/* When receivers have read so many messages, they may be done with all soon. */
#define PROGRESS 32

static bool is_worth_waiting(mpx_duct_t *duct)
{
    return mpx_u32_load_relaxed(&duct->read) - duct->read_seen >= PROGRESS;
}

/* Under the mutex. */
static inline int put_locked(mpx_duct_t *duct, const void *data, size_t size)
{
    uint64_t tail = mpx_u64_load_relaxed(&duct->tail), at = tail;
    if (MPX_UNLIKELY((tail & ASLEEP) || duct->writing != 0 ||
                     mpx_u32_load_relaxed(&duct->stopped))) {
        return -EXDEV; /* behind the rest of a long one, for which there may be no room yet */
    }
    uint64_t length = record_length(size), filling = left_behind(at);
    filling = length > filling ? filling : 0;
    if (MPX_UNLIKELY(duct->moving)) {
        return -EAGAIN; /* what a dead one was moving may come back */
    }
    if (MPX_UNLIKELY(!has_room(duct, tail, filling + length))) {
        return tail != duct->head_seen || is_worth_waiting(duct) ? -EAGAIN : -EXDEV;
    }
    if (MPX_UNLIKELY(filling > 0)) {
        mpx_u64_store_relaxed(word_at(duct, at), record_word(at, FILLING));
        at += filling;
    }
    mpx_u64_store_relaxed(word_at(duct, at), record_word(at, (uint32_t)size));
    copy_in(word_at(duct, at) + 1, data, size);
    MPX_STEP(duct_written);
    bool is_put = mpx_u64_cas_acq_rel(&duct->tail, &tail, at + length); /* D0: with D1 */
    MPX_STEP(duct_put);
    return is_put ? 0 : -EXDEV;
}

/* What the mutex says where its last owner died. Where nothing is aside, nothing has been written
 * that it could have left uncounted. */
static void note_death(mpx_duct_t *duct, int status)
{
    if (MPX_UNLIKELY(status == MPX_OWNER_DIED)) {
        duct->doubtful |= mpx_u32_load_relaxed(&duct->aside);
        duct->moving = (mpx_u64_load_acquire(&duct->head) & MOVED) != 0; /* D3: with D2 */
    }
}

int mpx_duct_try_put(mpx_duct_t *duct, const void *data, size_t size)
{
    if (MPX_UNLIKELY(size > duct->most)) {
        return -EXDEV;
    }
    const mpx_thread_t *self = mpx_os_self();
    int status = mpx_mutex_try_lock_as(self, &duct->senders);
    if (MPX_UNLIKELY(status < 0)) {
        return status == -EAGAIN ? -EBUSY : status;
    }
    note_death(duct, status);
    status = put_locked(duct, data, size);
    mpx_mutex_unlock_as(self, &duct->senders);
    return status;
}

MPX_NODISCARD static int lock(mpx_duct_t *duct, int64_t deadline)
{
    int status = mpx_mutex_lock(&duct->senders, deadline);
    note_death(duct, status);
    return status == -ETIMEDOUT ? -EBUSY : status < 0 ? status : 0;
}

int mpx_duct_put(mpx_duct_t *duct, const void *data, size_t size, int64_t deadline)
{
    int status = size > duct->most ? -EXDEV : lock(duct, deadline);
    if (status == 0) {
        status = put_locked(duct, data, size);
        mpx_mutex_unlock(&duct->senders);
    }
    return status;
}

/* Whether who sleeps would be woken: by who takes messages that are there, or settles what may come
 * back. With WANTED in `head`, so that they see it. */
static bool has_waker(mpx_duct_t *duct, uint64_t head)
{
    return (tail_now(duct) != position(head) || (head & MOVED)) && !mpx_duct_is_stopped(duct);
}

/* Receivers wake who sleeps here when half of the ring is free; one that dies before leaves this to
 * the next look. */
int mpx_duct_wait_for_room(mpx_duct_t *duct, mpx_wait_mood_t *mood, int64_t deadline)
{
    uint64_t head = mpx_u64_load_relaxed(&duct->head), now = head;
    bool is_aside = mpx_u32_load_relaxed(&duct->aside) != 0;
    for (unsigned tries = 0; mpx_wait_yields(mood, tries, deadline); tries++) {
        now = mpx_u64_load_relaxed(&duct->head);
        if (position(now) != position(head) || (is_aside && !mpx_u32_load_relaxed(&duct->aside))) {
            return 0;
        }
    }
    if (position(now) != position(head)) {
        return 0;
    }
    if (!(now & WANTED) &&
        !mpx_u64_cas_acquire(&duct->head, &now, now | WANTED)) { /* D3: with D2 */
        return 0;
    }
    MPX_STEP(duct_waiting);
    if (!has_waker(duct, now)) {
        return 0;
    }
    int status = mpx_wait_a_while(futex_of(&duct->head), (uint32_t)(now | WANTED), deadline);
    if (status == MPX_WAIT_LOOK) {
        return mpx_os_now() < deadline ? 0 : -ETIMEDOUT;
    }
    return status;
}

/* ---- Emptying the ring to the descriptor ----------------------------------------------------- */

/* Messages of the ring, as they are written. */
typedef struct {
    uint64_t from, to;
    uint32_t count;
    const char *data; /* NULL: in `bytes` */
    size_t size;
    unsigned char bytes[BATCH];
} batch_t;

static void append(batch_t *batch, const mpx_outflow_t *out, mpx_atomic_u64 *words)
{
    memcpy(batch->bytes + batch->size, out->header, out->header_size);
    batch->size += out->header_size;
    copy_out(batch->bytes + batch->size, words, out->size);
    batch->size += out->size;
}

/* Under the mutex: the first messages of the ring. Of a pipe's one, since so its sender would have
 * written it: the kernel fills pages in another way with other pieces, and who sends to nobody is
 * to find as much room as without a ring. */
static int gather(mpx_duct_t *duct, batch_t *batch, bool is_socket)
{
    uint64_t end = tail_now(duct), at = head_now(duct);
    batch->from = batch->to = at;
    batch->count = 0;
    batch->size = 0;
    batch->data = NULL;
    while (at != end) {
        uint32_t size;
        mpx_outflow_t out;
        int status = find_record(duct, &at, end, &size);
        if (status < 0) {
            return status;
        }
        mpx_atomic_u64 *words = word_at(duct, at) + 1;
        mpx_outflow_begin(&out, (const char *)(void *)words, size);
        if (mpx_outflow_left(&out) > BATCH - batch->size) {
            if (batch->count > 0) {
                break;
            }
            batch->data = out.data; /* a long one, alone */
            batch->size = size;
        } else {
            append(batch, &out, words);
        }
        at += record_length(size);
        batch->to = at;
        batch->count++;
        if (batch->data != NULL || !is_socket) {
            break;
        }
    }
    return 0;
}

/* A part of a batch that has been written is not to be taken back. It does not come to that: see
 * MPX_DUCT_MOST. */
#define PATIENCE 100

static int write_batch(batch_t *batch, int fd, bool is_socket)
{
    mpx_outflow_t out = {.data = (const char *)batch->bytes, .size = batch->size};
    if (batch->data != NULL) {
        mpx_outflow_begin(&out, batch->data, batch->size);
    }
    out.is_socket = is_socket;
    int status = mpx_outflow_write(&out, fd, NULL);
    for (int i = 0; status == 0 && mpx_outflow_left(&out) > 0; i++) {
        struct pollfd room = {.fd = fd, .events = POLLOUT};
        if (i == PATIENCE) {
            return -EIO;
        }
        (void)!mpx_os_poll(&room, 1, mpx_os_deadline(10 * MPX_NANOS_PER_MILLI));
        status = mpx_outflow_write(&out, fd, NULL);
        status = status == -EAGAIN ? 0 : status;
    }
    return status;
}

/* Under the mutex: `head` from a position to another one, with MOVED or without; unless somebody
 * has taken a message, or put these back, meanwhile. */
static bool go_on(mpx_duct_t *duct, uint64_t from, uint64_t to)
{
    uint64_t head = mpx_u64_load_relaxed(&duct->head);
    do {
        if ((head & ~WANTED) != from) {
            return false;
        }
    } while (!mpx_u64_cas_acq_rel(&duct->head, &head, to | (head & WANTED))); /* D2: with D3 */
    return true;
}

/* In the place of a process: the message has no end. */
#define TORN UINT64_C(1)

/* Under the mutex: whether the descriptor is in the middle of a message. */
static bool is_written_to(const mpx_duct_t *duct)
{
    const mpx_process_id_t id = {.pid = (pid_t)(uint32_t)duct->writing,
                                 .start = (uint32_t)(duct->writing >> 32)};
    return duct->writing > TORN &&
           (duct->writing == mpx_os_own_word() || mpx_os_process_alive(id) != 0);
}

static bool belongs_to(const mpx_duct_t *duct, int fd)
{
    return duct->file.inode == 0 || mpx_os_is_file(fd, duct->file);
}

/* Under the mutex: 0 where the ring is empty, -EAGAIN where there is no room.
 *
 * Who takes messages to write them notes before where they are, and how many had been written then.
 * MOVED, which comes with the step that takes them and goes with the one that is the end of it,
 * says that the note counts. */
static int empty_to(mpx_duct_t *duct, int fd, bool is_socket)
{
    batch_t batch;
    if (!mpx_duct_is_empty(duct) && !belongs_to(duct, fd)) {
        return -EBADF;
    }
    while (!mpx_duct_is_empty(duct)) {
        if (duct->moving || duct->doubtful || is_written_to(duct)) {
            return -EAGAIN; /* the receiver, or the writer, is to be done with that */
        }
        if (duct->writing != 0) { /* by a dead one: this would be taken for the rest of it */
            (void)go_on(duct, head_now(duct), tail_now(duct));
            continue;
        }
        int status = gather(duct, &batch, is_socket);
        if (status < 0) {
            return status;
        }
        if (batch.count == 0) {
            return mpx_duct_is_empty(duct) ? 0 : -EPROTO; /* receivers were sooner */
        }
        duct->moving_from = batch.from;
        duct->moving_after = duct->written;
        duct->moving_count = batch.count;
        mpx_u32_store_release(&duct->aside, 1); /* D6: with D7 */
        MPX_STEP(duct_move_noted);
        if (!go_on(duct, batch.from, batch.to | MOVED)) {
            if (head_now(duct) == batch.from) {
                return -EPROTO;
            }
            continue; /* a receiver was sooner */
        }
        MPX_STEP(duct_move_taken);
        status = write_batch(&batch, fd, is_socket);
        MPX_STEP(duct_move_written);
        if (status < 0) {
            (void)go_on(duct, batch.to | MOVED, batch.from);
            return status;
        }
        duct->written += batch.count;
        weigh(duct, batch.size, is_socket);
        MPX_STEP(duct_move_counted);
        (void)go_on(duct, batch.to | MOVED, batch.to);
    }
    return 0;
}

/* Under the mutex. */
static int begin_locked(mpx_duct_t *duct, int fd, mpx_outflow_t *out)
{
    int status = empty_to(duct, fd, out->is_socket);
    if (status < 0) {
        return status;
    }
    mpx_u32_store_release(&duct->aside, 1); /* D6: with D7 */
    MPX_STEP(duct_aside);
    status = mpx_outflow_write(out, fd, NULL);
    MPX_STEP(duct_begun);
    if (status < 0) {
        return status;
    }
    duct->written++;
    weigh(duct, mpx_outflow_length(out), out->is_socket);
    if (is_worth_waiting(duct)) {
        duct->read_seen = mpx_u32_load_relaxed(&duct->read);
    }
    duct->writing = mpx_outflow_left(out) > 0 ? mpx_os_own_word() : 0;
    if (mpx_u32_load_relaxed(&duct->opened)) {
        (void)mpx_u64_fetch_and_acq_rel(&duct->tail, ~ASLEEP);
    }
    return 0;
}

int mpx_duct_begin(mpx_duct_t *duct, int fd, mpx_outflow_t *out, int64_t deadline)
{
    int status = lock(duct, deadline);
    if (status == 0) {
        status = begin_locked(duct, fd, out);
        mpx_mutex_unlock(&duct->senders);
        wake_waiting_senders(duct);
    }
    return status;
}

int mpx_duct_finish(mpx_duct_t *duct, int fd, bool is_socket, int64_t deadline)
{
    int status = lock(duct, deadline);
    if (status == 0) {
        duct->writing = 0;
        if (mpx_u32_load_relaxed(&duct->stopped)) {
            status = empty_to(duct, fd, is_socket); /* which who stopped it could not */
        }
        mpx_mutex_unlock(&duct->senders);
    }
    return status;
}

void mpx_duct_tear(mpx_duct_t *duct, int64_t deadline)
{
    if (lock(duct, deadline) == 0) {
        duct->writing = TORN;
        mpx_mutex_unlock(&duct->senders);
    }
}

int mpx_duct_stop(mpx_duct_t *duct, int fd, bool is_socket, int64_t deadline)
{
    int status = lock(duct, deadline);
    if (status == 0) {
        /* What may be wrong then is what the next death leaves, if it comes in the middle. */
        duct->doubtful = 0;
        status = empty_to(duct, fd, is_socket);
        MPX_STEP(duct_stopping);
        mpx_u32_store_release(&duct->stopped, 1); /* D4: with D5 */
        mpx_mutex_unlock(&duct->senders);
        wake_senders(duct);
    }
    return status;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* `tail`, where there may be messages since `at`. What senders write has to come from another
 * processor: it is asked for where what was last seen of it has been read. */
static inline uint64_t tail_behind(mpx_duct_t *duct, uint64_t at)
{
    uint64_t tail = mpx_u64_load_acquire(&duct->tail_seen); /* D9: with D8 */
    if ((int64_t)(tail - at) <= 0) {
        tail = tail_now(duct);
        mpx_u64_store_release(&duct->tail_seen, tail); /* D8: with D9 */
    }
    return tail;
}

/* Whether a message that was read before is at `head` still: what was read of one that somebody has
 * taken may be anything. */
static bool has_moved(mpx_duct_t *duct, uint64_t at)
{
    return head_now(duct) != at;
}

/* Those who wait for room are woken when half of the ring is free. */
static bool is_time_to_wake(mpx_duct_t *duct, uint64_t at)
{
    return tail_now(duct) - at <= MPX_DUCT_RING / 2;
}

int mpx_duct_try_get(mpx_duct_t *duct, void *buffer, size_t capacity, size_t *size)
{
    for (;;) {
        uint64_t head = mpx_u64_load_acquire(&duct->head), at = position(head); /* D3: with D2 */
        uint64_t end = tail_behind(duct, at);
        if (MPX_UNLIKELY(mpx_u32_load_acquire(&duct->aside))) { /* D7: with D6 */
            return -EXDEV;
        }
        if (end == at) {
            return -EAGAIN;
        }
        uint32_t found;
        int status = find_record(duct, &at, end, &found);
        if (status == 0 && found > capacity) {
            status = -ENOBUFS;
        }
        if (MPX_UNLIKELY(status < 0)) {
            if (has_moved(duct, position(head))) {
                continue;
            }
            *size = found;
            return status;
        }
        copy_out(buffer, word_at(duct, at) + 1, found);
        *size = found;
        at += record_length(found);
        bool wakes = (head & WANTED) && is_time_to_wake(duct, at);
        MPX_STEP(duct_copied);
        if (!mpx_u64_cas_acq_rel(&duct->head, &head, wakes ? at : at | (head & WANTED))) {
            continue; /* D2: with D3 */
        }
        MPX_STEP(duct_taken);
        if (MPX_UNLIKELY(wakes)) {
            wake_sleepers(duct);
        }
        return 0;
    }
}

/* Under the mutex, with the descriptor empty: what a dead one was moving has been read, or is put
 * back. */
static void settle_move(mpx_duct_t *duct)
{
    uint64_t head = mpx_u64_load_acquire(&duct->head) & ~WANTED; /* D3: with D2 */
    if (head & MOVED) {
        uint32_t read = mpx_u32_load_relaxed(&duct->read) - duct->moving_after;
        bool is_unwritten = read < duct->moving_count;
        (void)go_on(duct, head, position(is_unwritten ? duct->moving_from : head));
    }
    MPX_STEP(duct_settling);
    duct->moving = 0;
}

static void settle_locked(mpx_duct_t *duct)
{
    settle_move(duct);
    duct->writing = 0;
    duct->written = 0;
    duct->weight = 0;
    duct->read_seen = 0;
    mpx_u32_store_relaxed(&duct->read, 0);
    duct->doubtful = 0;
    MPX_STEP(duct_settled);
    if (!mpx_u32_load_relaxed(&duct->opened)) {
        mpx_u32_store_relaxed(&duct->opened, 1);
        (void)mpx_u64_fetch_and_acq_rel(&duct->tail, ~ASLEEP);
    }
    mpx_u32_store_release(&duct->aside, 0); /* D6: with D7 */
}

int mpx_duct_settle(mpx_duct_t *duct, int fd, int64_t deadline)
{
    int status = lock(duct, deadline);
    if (status < 0) {
        return status;
    }
    int unread = mpx_os_unread(fd);
    if (unread < 0) {
        status = unread;
    } else if (unread > 0) {
        status = -EAGAIN;
    } else if (is_written_to(duct)) {
        /* The receiver has nothing else to look at than the descriptor: what is sent behind this
         * message goes there, too. */
        (void)mpx_u64_fetch_or_acq_rel(&duct->tail, ASLEEP);
        status = -EAGAIN;
    } else {
        settle_locked(duct);
    }
    mpx_mutex_unlock(&duct->senders);
    wake_waiting_senders(duct); /* there may be more room, or a dead one was moving */
    return status;
}

bool mpx_duct_announce_sleep(mpx_duct_t *duct)
{
    uint64_t tail = mpx_u64_load_acquire(&duct->tail);                            /* D1: with D0 */
    if (position(tail) != head_now(duct) || mpx_u32_load_acquire(&duct->aside)) { /* D7: with D6 */
        return false;
    }
    return (tail & ASLEEP) || mpx_u64_cas_acquire(&duct->tail, &tail, tail | ASLEEP);
}
