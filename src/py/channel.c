/* channel.c - see channel.h. */
#include "channel.h"

#include <errno.h>

#include <structmember.h>

#include "serialize.h"

/* A message up to this length is received on the stack. */
#define SMALL 2048

/* From here on, to copy is worth letting other threads run. */
#define LARGE ((size_t)512 * 1024)

static ChannelObject *channel(PyObject *self)
{
    return (ChannelObject *)self;
}

/* ---- Errors ---------------------------------------------------------------------------------- */

MPX_COLD static int raise_status(int status)
{
    if (status == -EPROTO)
        mpx_raise_message(status,
                          "the queue's shared memory is damaged: some process has written to what "
                          "is not its own; make another queue",
                          NULL);
    else if (status == -ENOMEM)
        PyErr_NoMemory();
    else if (status == -EUSERS)
        mpx_raise_message(status, "too many processes take from this queue (on_death='done')",
                          NULL);
    else
        mpx_raise(status);
    return -EINTR;
}

/* This process is a child that was forked while its parent waited: it may not have the message, but
 * has put nothing yet. */
#define FORKED (-ECHILD)

/* Whether it is a result of the functions in channel.h. */
static bool is_told(int status)
{
    return status == 0 || status == MPX_CHANNEL_TIMEOUT || status == MPX_CHANNEL_SHUT ||
           status == MPX_CHANNEL_LOOK || status == MPX_CHANNEL_NO_END || status == -EINTR;
}

/* What a program gets that has no such end any more; the standard library's messages. */
MPX_COLD static int raise_no_end(void)
{
    PyErr_SetString(PyExc_OSError, "handle is closed");
    return MPX_CHANNEL_NO_END;
}

static inline int check_end(int fd)
{
    return MPX_LIKELY(fd >= 0) ? 0 : raise_no_end();
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Whether to go on after a piece of a wait; the deadline of a piece is -EAGAIN or -EBUSY in rings.
 */
static bool waits_on(int *status, int64_t deadline)
{
    int result = *status;
    if (result == -EAGAIN || result == -EBUSY)
        *status = -ETIMEDOUT;
    bool goes_on = mpx_wait_on(status, deadline);
    if (*status == -ETIMEDOUT)
        *status = -EAGAIN;
    return goes_on;
}

/* Who is not to wait waits for others to be done with what they are in the middle of: that takes
 * microseconds, and longer on a busy machine. So many pieces of time in which nobody gets on mean
 * that one was stopped there. */
#define PATIENCE 10

/* Such a wait: of the messages that go through, to see whether others get on. */
typedef struct {
    uint32_t count;
    int pieces;
} patience_t;

/* Whether to go on; where it is given up, that is a timeout. */
static bool waits_for_others(int *status, patience_t *patience, uint32_t count)
{
    if (*status == -EAGAIN || !waits_on(status, MPX_NEVER))
        return false;
    patience->pieces = count == patience->count ? patience->pieces + 1 : 0;
    patience->count = count;
    if (patience->pieces < PATIENCE)
        return true;
    *status = MPX_CHANNEL_TIMEOUT;
    return false;
}

/* ---- Sending --------------------------------------------------------------------------------- */

/* A process that has closed its own reading end may be the last one that has an interest in it. */
MPX_COLD static int look_for_readers(ChannelObject *self)
{
    if (!mpx_bell_has_no_reader(&self->ring.bell))
        return 0;
    mpx_raise(-EPIPE);
    return MPX_CHANNEL_NO_END;
}

static inline int check_for_readers(ChannelObject *self)
{
    return MPX_LIKELY(self->ring.bell.reader >= 0) ? 0 : look_for_readers(self);
}

/* A signal's handler may fork. */
static int check_process(uint64_t process)
{
    return process == mpx_os_own_word() ? 0 : FORKED;
}

static int send_now(ChannelObject *self, const mpx_message_t *message)
{
    uint64_t process = mpx_os_own_word();
    patience_t patience = {0};
    int status;
    do {
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_ring_put_now(&self->ring, message, piece);
        Py_END_ALLOW_THREADS
    } while (waits_for_others(&status, &patience, mpx_ring_count_put(&self->ring)) &&
             (status = check_process(process)) == 0);
    return status;
}

static int send_slowly(ChannelObject *self, const mpx_message_t *message, int64_t deadline)
{
    uint64_t process = mpx_os_own_word();
    int status;
    if (!mpx_may_wait(deadline))
        return -EINTR;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_ring_put(&self->ring, message, piece);
        Py_END_ALLOW_THREADS
    } while (waits_on(&status, deadline) && (status = check_for_readers(self)) == 0 &&
             (status = check_process(process)) == 0);
    return status;
}

/* To wait for room would be to wait for ever. */
static int raise_too_long(ChannelObject *self, const mpx_message_t *message)
{
    PyErr_Format(PyExc_ValueError, "the object takes %llu bytes, the queue has max_bytes=%llu",
                 (unsigned long long)(message->block ? message->bytes : message->size),
                 (unsigned long long)mpx_ring_most_bytes(&self->ring));
    return -EINTR;
}

/* After a try that was in vain. */
MPX_COLD static int send_at_last(ChannelObject *self, const mpx_message_t *message,
                                 int64_t deadline, int status)
{
    if (status == -EBUSY && deadline == MPX_CHANNEL_NOW)
        status = send_now(self, message);
    else if (status == -EBUSY || (status == -EAGAIN && deadline != MPX_CHANNEL_NOW))
        status = send_slowly(self, message, deadline);
    if (MPX_UNLIKELY(status == -EMSGSIZE))
        return raise_too_long(self, message);
    return is_told(status) || status == FORKED ? status : raise_status(status);
}

static inline int send_message(ChannelObject *self, const mpx_message_t *message, int64_t deadline)
{
    int status = mpx_ring_try_put(&self->ring, message);
    return MPX_LIKELY(status == 0) ? 0 : send_at_last(self, message, deadline, status);
}

static void copy(void *to, const void *from, size_t size)
{
    if (size < LARGE) {
        memcpy(to, from, size);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    memcpy(to, from, size);
    Py_END_ALLOW_THREADS
}

static inline int check_for_sending(ChannelObject *self)
{
    int status = check_end(self->ring.bell.writer);
    return status < 0 ? status : check_for_readers(self);
}

/* The block has the message; the record, its length. On failure it stays this process's. FORKED:
 * the block is not. */
static int send_block(ChannelObject *self, mpx_block_t block, size_t size, int64_t deadline)
{
    uint64_t length = size;
    mpx_message_t message = {
        .data = &length, .size = sizeof(length), .block = block, .bytes = size};
    mpx_u32_store_relaxed(&self->had_large, 1);
    return send_message(self, &message, deadline);
}

static inline int send_record(ChannelObject *self, const char *data, size_t size, int64_t deadline)
{
    mpx_message_t message = {.data = data, .size = size};
    return send_message(self, &message, deadline);
}

static void free_own_block(ChannelObject *self, mpx_block_t block)
{
    mpx_heap_owner_t own;
    if (block != 0 && mpx_heap_own(self->ring.arena, &own) == 0)
        (void)mpx_heap_free(self->ring.arena, block, own);
}

static int try_to_make(ChannelObject *self, size_t size, int64_t deadline, mpx_block_t *block,
                       void **address)
{
    mpx_arena_t *arena = self->ring.arena;
    mpx_heap_owner_t own;
    int status = mpx_heap_own(arena, &own);
    return status < 0 ? status : mpx_heap_new_until(arena, own, size, block, address, deadline);
}

/* Another process may have been stopped in the middle of making a block: it is waited for without
 * the GIL. */
static int make_slowly(ChannelObject *self, size_t size, int64_t deadline, mpx_block_t *block,
                       void **address)
{
    patience_t patience = {0};
    bool is_now = deadline == MPX_CHANNEL_NOW;
    int status;
    do {
        int64_t piece = mpx_piece_of(is_now ? MPX_NEVER : deadline);
        Py_BEGIN_ALLOW_THREADS
        status = try_to_make(self, size, piece, block, address);
        Py_END_ALLOW_THREADS
    } while (is_now ? waits_for_others(&status, &patience, 0) : waits_on(&status, deadline));
    return status;
}

/* A block of this process's. 0; MPX_CHANNEL_TIMEOUT; or -EINTR with an exception. */
static int make_block(ChannelObject *self, size_t size, int64_t deadline, mpx_block_t *block,
                      void **address)
{
    int status = size >= LARGE ? -EBUSY : try_to_make(self, size, 0, block, address);
    if (status == -EBUSY || status == -EINTR)
        status = make_slowly(self, size, deadline, block, address);
    return is_told(status) ? status : raise_status(status);
}

MPX_COLD static int send_copy(ChannelObject *self, const char *data, size_t size, int64_t deadline)
{
    mpx_block_t block;
    void *address;
    int status = make_block(self, size, deadline, &block, &address);
    if (status != 0)
        return status;
    copy(address, data, size);
    status = send_block(self, block, size, deadline);
    if (status != 0)
        free_own_block(self, block); /* if it is */
    return status;
}

int mpx_channel_send(ChannelObject *self, const char *data, size_t size, int64_t deadline)
{
    int status = check_for_sending(self);
    if (MPX_UNLIKELY(status < 0))
        return status;
    do {
        status = MPX_LIKELY(size <= MPX_RING_INLINE) ? send_record(self, data, size, deadline)
                                                     : send_copy(self, data, size, deadline);
    } while (MPX_UNLIKELY(status == FORKED));
    return status;
}

size_t mpx_channel_send_some(ChannelObject *self, const mpx_message_t *messages, size_t count)
{
    size_t done = 0;
    if (self->ring.bell.writer >= 0 && self->ring.bell.reader >= 0)
        (void)!mpx_ring_try_put_many(&self->ring, messages, count, &done);
    return done;
}

/* ---- Letters --------------------------------------------------------------------------------- */

/* The block, and what a fork is to copy of it. */
static int note_block(mpx_letter_t *letter, char *address, size_t capacity)
{
    if (letter->fork_copy == NULL)
        letter->fork_copy = mpx_fork_copy_begin(address, capacity);
    else
        mpx_fork_copy_move(letter->fork_copy, address, capacity);
    return letter->fork_copy == NULL ? -1 : 0;
}

/* Goes on in a block. */
static int move_to_block(mpx_letter_t *letter, size_t needed)
{
    mpx_buffer_t *buffer = &letter->buffer;
    mpx_block_t block;
    void *address;
    size_t capacity =
        letter->block == 0 || needed > 2 * buffer->capacity ? needed : 2 * buffer->capacity;
    int status = make_block(letter->channel, capacity, letter->deadline, &block, &address);
    if (status < 0) {
        if (status == MPX_CHANNEL_TIMEOUT)
            PyErr_SetNone(module_state(letter->module)->full_error);
        letter->lacks_memory = true;
        return -1;
    }
    memcpy(address, buffer->data, buffer->size);
    if (note_block(letter, address, capacity) < 0) {
        free_own_block(letter->channel, block);
        letter->lacks_memory = true;
        return -1;
    }
    if (!letter->has_moved && buffer->data != letter->small)
        letter->spare = (mpx_buffer_t){.data = buffer->data, .capacity = buffer->capacity};
    letter->has_moved = true;
    free_own_block(letter->channel, letter->block);
    letter->block = block;
    buffer->data = address;
    buffer->capacity = capacity;
    return 1;
}

/* Goes on in the module's buffer. */
static int leave_small(mpx_letter_t *letter, size_t needed)
{
    mpx_buffer_t *buffer = &letter->buffer, idle;
    mpx_take_buffer(letter->module, &idle);
    if (mpx_buffer_grow(&idle, needed) < 0) {
        mpx_give_buffer(letter->module, &idle);
        letter->lacks_memory = true;
        return -1;
    }
    memcpy(idle.data, buffer->data, buffer->size);
    buffer->data = idle.data;
    buffer->capacity = idle.capacity;
    return 1;
}

/* A child goes on with its copy, in a block of its own. */
MPX_COLD static int leave_parents_block(mpx_letter_t *letter)
{
    if (letter->fork_copy->copy == NULL) {
        letter->lacks_memory = true;
        PyErr_NoMemory();
        return -1;
    }
    letter->buffer.data = letter->fork_copy->copy;
    letter->block = 0;
    return move_to_block(letter, letter->buffer.capacity);
}

static inline int settle(mpx_letter_t *letter)
{
    return letter->fork_copy != NULL && letter->fork_copy->is_child ? leave_parents_block(letter)
                                                                    : 0;
}

int mpx_letter_grow(mpx_buffer_t *buffer, size_t needed)
{
    mpx_letter_t *letter = (mpx_letter_t *)buffer;
    if (needed == 0)
        return settle(letter);
    if (needed > MPX_RING_INLINE)
        return move_to_block(letter, needed);
    return buffer->data == letter->small ? leave_small(letter, needed) : 0;
}

static int send_from_block(mpx_letter_t *letter, int64_t deadline)
{
    mpx_buffer_t *buffer = &letter->buffer;
    if (buffer->size <= MPX_RING_INLINE)
        return send_record(letter->channel, buffer->data, buffer->size, deadline);
    int status = send_block(letter->channel, letter->block, buffer->size, deadline);
    if (status == 0)
        letter->block = 0;
    return status;
}

int mpx_letter_send(mpx_letter_t *letter, int64_t deadline)
{
    if (letter->block == 0) /* short, or in a buffer that happened to have so much room */
        return mpx_channel_send(letter->channel, letter->buffer.data, letter->buffer.size,
                                deadline);
    int status = check_for_sending(letter->channel);
    if (status < 0)
        return status;
    do {
        if (settle(letter) < 0)
            return -EINTR;
        status = send_from_block(letter, deadline);
    } while (status == FORKED);
    return status;
}

void mpx_letter_clear(mpx_letter_t *letter)
{
    if (!letter->has_moved)
        letter->spare =
            (mpx_buffer_t){.data = letter->buffer.data, .capacity = letter->buffer.capacity};
    free_own_block(letter->channel, letter->block);
    mpx_fork_copy_end(letter->fork_copy);
    if (letter->spare.data != NULL)
        mpx_give_buffer(letter->module, &letter->spare);
}

/* ---- Receiving ------------------------------------------------------------------------------- */

/* A message on its way to the reader: in `small`, or in `buffer` where that is too small. */
typedef struct {
    mpx_message_t message;
    void *buffer;
    size_t capacity;
    char small[SMALL];
} arrival_t;

/* Makes room for any message that has no block. */
MPX_COLD static int make_room(arrival_t *arrival)
{
    arrival->buffer = PyMem_RawMalloc(MPX_RING_INLINE);
    if (arrival->buffer == NULL) {
        PyErr_NoMemory();
        return -EINTR;
    }
    arrival->capacity = MPX_RING_INLINE;
    return 0;
}

bool mpx_channel_is_at_end(ChannelObject *self)
{
    return self->ring.bell.writer < 0 && mpx_bell_has_no_writer(&self->ring.bell) &&
           mpx_ring_count(&self->ring) == 0;
}

static int check_for_writers(ChannelObject *self)
{
    if (MPX_LIKELY(!mpx_channel_is_at_end(self)))
        return 0;
    PyErr_SetNone(PyExc_EOFError);
    return MPX_CHANNEL_NO_END;
}

static int receive_now(ChannelObject *self, arrival_t *arrival)
{
    patience_t patience = {0};
    int status;
    do {
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_ring_get_now(&self->ring, arrival->buffer, arrival->capacity,
                                  &arrival->message, piece);
        Py_END_ALLOW_THREADS
    } while (waits_for_others(&status, &patience, mpx_ring_count_got(&self->ring)));
    return status;
}

/* After a piece of a wait. */
static int look_aside(ChannelObject *self)
{
    return mpx_u32_load_relaxed(&self->set_aside) ? MPX_CHANNEL_LOOK : 0;
}

static int receive_slowly(ChannelObject *self, arrival_t *arrival, int64_t deadline)
{
    int status = check_for_writers(self);
    if (status < 0)
        return status;
    if (!mpx_may_wait(deadline))
        return -EINTR;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        status =
            mpx_ring_get(&self->ring, arrival->buffer, arrival->capacity, &arrival->message, piece);
        if (status == -EAGAIN)
            mpx_heap_look(self->ring.arena, &self->watch);
        Py_END_ALLOW_THREADS
    } while (waits_on(&status, deadline) && (status = check_for_writers(self)) == 0 &&
             (status = look_aside(self)) == 0);
    return status;
}

/* Of somebody who asks again and again. */
static void look(ChannelObject *self)
{
    Py_BEGIN_ALLOW_THREADS
    mpx_heap_look(self->ring.arena, &self->watch);
    Py_END_ALLOW_THREADS
}

MPX_COLD static void do_chores(ChannelObject *self)
{
    Py_BEGIN_ALLOW_THREADS
    mpx_ring_do_chores(&self->ring);
    Py_END_ALLOW_THREADS
}

/* After a try that was in vain. */
MPX_COLD static int receive_at_last(ChannelObject *self, arrival_t *arrival, int64_t deadline,
                                    int status)
{
    if (status == -EAGAIN && deadline == MPX_CHANNEL_NOW)
        look(self);
    else if (status == -EBUSY && deadline == MPX_CHANNEL_NOW)
        status = receive_now(self, arrival);
    else if (status == -EBUSY || (status == -EAGAIN && deadline != MPX_CHANNEL_NOW))
        status = receive_slowly(self, arrival, deadline);
    if (status == -EAGAIN && mpx_channel_is_at_end(self))
        status = check_for_writers(self);
    return status;
}

static inline int receive_message(ChannelObject *self, arrival_t *arrival, int64_t deadline)
{
    int status =
        mpx_ring_try_get(&self->ring, arrival->buffer, arrival->capacity, &arrival->message);
    if (MPX_UNLIKELY(mpx_ring_has_chores(&self->ring)))
        do_chores(self);
    return MPX_LIKELY(status == 0) ? 0 : receive_at_last(self, arrival, deadline, status);
}

MPX_COLD static PyObject *read_block(ChannelObject *self, const arrival_t *arrival,
                                     mpx_channel_reader_t *reader, void *context)
{
    mpx_parcel_t parcel = {self->ring.arena, arrival->message.block};
    uint64_t length = 0;
    size_t size = 0;
    PyObject *result = NULL;
    void *address = mpx_heap_at(parcel.arena, parcel.block, &size);
    if (arrival->message.size == sizeof(length))
        memcpy(&length, arrival->buffer, sizeof(length));
    if (address == NULL || length == 0 || length > size)
        raise_status(-EPROTO);
    else
        result = reader(context, address, length, &parcel);
    free_own_block(self, parcel.block);
    if (parcel.block != 0)
        mpx_heap_flow(parcel.arena, size);
    mpx_u32_store_relaxed(&self->had_large, 1);
    if (mpx_ring_count(&self->ring) == 0) {
        Py_BEGIN_ALLOW_THREADS
        mpx_heap_ebb(parcel.arena);
        Py_END_ALLOW_THREADS
    }
    return result;
}

/* What is no short message, or none at all: `result` is that of the first try. */
MPX_COLD static PyObject *receive_rest(ChannelObject *self, arrival_t *arrival, int64_t deadline,
                                       mpx_channel_reader_t *reader, void *context, int result,
                                       int *status)
{
    PyObject *object = NULL;
    if (result == -ENOBUFS) {
        result = make_room(arrival);
        if (result == 0)
            result = receive_message(self, arrival, deadline);
    }
    if (result == 0)
        object = arrival->message.block
                     ? read_block(self, arrival, reader, context)
                     : reader(context, arrival->buffer, arrival->message.size, NULL);
    else if (!is_told(result))
        result = raise_status(result);
    if (arrival->buffer != arrival->small)
        PyMem_RawFree(arrival->buffer);
    *status = result;
    return object;
}

PyObject *mpx_channel_receive(ChannelObject *self, int64_t deadline, mpx_channel_reader_t *reader,
                              void *context, int *status)
{
    arrival_t arrival;
    arrival.buffer = arrival.small;
    arrival.capacity = SMALL;
    int result = check_end(self->ring.bell.reader);
    if (MPX_LIKELY(result == 0))
        result = receive_message(self, &arrival, deadline);
    if (MPX_LIKELY(result == 0 && arrival.message.block == 0)) {
        *status = 0;
        return reader(context, arrival.small, arrival.message.size, NULL);
    }
    return receive_rest(self, &arrival, deadline, reader, context, result, status);
}

/* So many messages are received at once: what a consumer that is killed may take with it. */
#define BATCH       64
#define BATCH_BYTES 8192

size_t mpx_channel_receive_some(ChannelObject *self, size_t most, mpx_ring_wanted_t *wanted,
                                mpx_channel_taker_t *taker, void *context)
{
    mpx_message_t messages[BATCH];
    char room[BATCH_BYTES];
    size_t done = 0;
    if (self->ring.bell.reader >= 0)
        (void)!mpx_ring_try_get_many(&self->ring, room, sizeof(room), wanted, messages,
                                     most < BATCH ? most : BATCH, &done);
    if (mpx_ring_has_chores(&self->ring))
        do_chores(self);
    for (size_t i = 0; i < done; i++)
        taker(context, messages[i].room, messages[i].size);
    return done;
}

int mpx_channel_poll(ChannelObject *self, int64_t deadline)
{
    int status;
    if (mpx_ring_count(&self->ring) > 0)
        return 1;
    if (!mpx_may_wait(deadline))
        return -1;
    do {
        int64_t piece = mpx_piece_of(deadline);
        if (mpx_channel_is_at_end(self))
            return 1; /* as a pipe at its end, which can be read: EOFError */
        Py_BEGIN_ALLOW_THREADS
        status = mpx_ring_wait(&self->ring, piece);
        Py_END_ALLOW_THREADS
    } while (waits_on(&status, deadline));
    return status == -EINTR ? -1 : status == 0 || status == -EPIPE;
}

/* ---- The type -------------------------------------------------------------------------------- */

static bool is_made(PyObject *self)
{
    return mpx_shared_check((SharedObject *)self, "_ring");
}

static int take_ring(PyObject *self, mpx_ring_t ring)
{
    void *room = mpx_slot_at(ring.arena, ring.slot);
    channel(self)->ring = ring;
    return mpx_shared_hold((SharedObject *)self, (mpx_place_t){ring.arena, ring.slot, room});
}

static int create(mpx_ring_t *ring, uint32_t limit)
{
    mpx_arena_t *arena;
    int status = mpx_arena_home(&arena);
    if (status == 0)
        status = mpx_ring_create(ring, arena, limit);
    if (status == -EBADF || status == -ESTALE) {
        status = mpx_arena_move(&arena); /* the program has closed its descriptor */
        if (status == 0)
            status = mpx_ring_create(ring, arena, limit);
    }
    return status;
}

PyDoc_STRVAR(Channel_make_doc,
             "_make($self, limit, max_bytes, /)\n--\n\n"
             "Make an empty channel of at most limit messages, and so many bytes of them (0: any "
             "number).");

static PyObject *Channel_make(PyObject *self, PyObject *args)
{
    mpx_ring_t ring;
    mpx_bell_t bell;
    unsigned long limit;
    long long max_bytes;
    if (!PyArg_ParseTuple(args, "kL:_make", &limit, &max_bytes))
        return NULL;
    if (mpx_shared_room((SharedObject *)self) != NULL) {
        PyErr_SetString(PyExc_ValueError, "the channel has been made");
        return NULL;
    }
    bool is_limited = limit > 0 && limit < MPX_RING_UNLIMITED;
    int status = create(&ring, is_limited ? (uint32_t)limit : MPX_RING_UNLIMITED);
    if (status == 0) {
        status = mpx_bell_new(&bell);
        if (status < 0)
            mpx_ring_drop(&ring);
    }
    if (status < 0)
        return mpx_raise(status);
    ring.bell = bell;
    if (max_bytes > 0)
        mpx_ring_limit_bytes(&ring, (uint64_t)max_bytes);
    return take_ring(self, ring) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Channel_take_doc,
             "_take($self, identity, slot, reader, writer, /)\n--\n\n"
             "Become the channel that the parent has handed over, with these descriptors (-1: it "
             "had none).");

static PyObject *Channel_take(PyObject *self, PyObject *args)
{
    PyObject *identity;
    unsigned int slot;
    int reader, writer;
    mpx_place_t place;
    mpx_ring_t ring;
    if (!PyArg_ParseTuple(args, "SIii:_take", &identity, &slot, &reader, &writer))
        return NULL;
    if (mpx_shared_room((SharedObject *)self) != NULL) {
        PyErr_SetString(PyExc_ValueError, "the channel has been made");
        return NULL;
    }
    if (mpx_place_take(&place, identity, slot) < 0)
        return NULL;
    int status = mpx_ring_open(&ring, place.arena, slot);
    if (status == 0 && (reader >= 0 || writer >= 0))
        status = mpx_bell_adopt(&ring.bell, reader, writer);
    if (status < 0) {
        mpx_slot_drop(place.arena, slot);
        raise_status(status);
        return NULL;
    }
    return take_ring(self, ring) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Channel_ends_doc, "_ends($self, /)\n--\n\n"
                               "The descriptors of the ends: (reader, writer), -1 where closed.");

static PyObject *Channel_ends(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    return Py_BuildValue("ii", channel(self)->ring.bell.reader, channel(self)->ring.bell.writer);
}

PyDoc_STRVAR(Channel_check_ends_doc,
             "_check_ends($self, /)\n--\n\n"
             "Raise OSError where the program has closed a descriptor behind the channel's back: "
             "its number may be\nanother file's by now.");

static PyObject *Channel_check_ends(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    if (!mpx_bell_is_whole(&channel(self)->ring.bell))
        return mpx_raise(-EBADF);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Channel_watch_doc,
             "_watch($self, /)\n--\n\n"
             "Have the reading end's descriptor be readable where there is a message.");

static PyObject *Channel_watch(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    mpx_ring_watch(&channel(self)->ring);
    Py_RETURN_NONE;
}

static void close_ends(ChannelObject *self, bool reader, bool writer)
{
    Py_BEGIN_ALLOW_THREADS
    mpx_ring_close_ends(&self->ring, reader, writer);
    Py_END_ALLOW_THREADS
}

PyDoc_STRVAR(Channel_close_reader_doc, "_close_reader($self, /)\n--\n\n"
                                       "Close the reading end in this process.");

static PyObject *Channel_close_reader(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    close_ends(channel(self), true, false);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Channel_close_writer_doc, "_close_writer($self, /)\n--\n\n"
                                       "Close the writing end in this process.");

static PyObject *Channel_close_writer(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    close_ends(channel(self), false, true);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Channel_send_bytes_doc, "_send_bytes($self, buffer, /)\n--\n\n"
                                     "Send the bytes as one message.");

static PyObject *Channel_send_bytes(PyObject *self, PyObject *argument)
{
    Py_buffer view;
    if (!is_made(self) || PyObject_GetBuffer(argument, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int status = mpx_channel_send(channel(self), view.buf, (size_t)view.len, MPX_NEVER);
    PyBuffer_Release(&view);
    if (status == MPX_CHANNEL_SHUT)
        return mpx_raise(status);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *read_bytes(void *Py_UNUSED(context), const char *data, size_t size,
                            mpx_parcel_t *Py_UNUSED(parcel))
{
    return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
}

PyDoc_STRVAR(
    Channel_receive_bytes_doc,
    "_receive_bytes($self, timeout, /)\n--\n\n"
    "The bytes of the next message, which it waits for: so many seconds (None: for ever), and "
    "then it is None.");

static PyObject *Channel_receive_bytes(PyObject *self, PyObject *timeout)
{
    int status;
    int64_t deadline;
    if (!is_made(self) || mpx_deadline_of(timeout, &deadline) < 0)
        return NULL;
    PyObject *bytes;
    do {
        bytes = mpx_channel_receive(channel(self), deadline, read_bytes, NULL, &status);
    } while (status == MPX_CHANNEL_LOOK);
    if (status == MPX_CHANNEL_TIMEOUT)
        Py_RETURN_NONE;
    if (status == MPX_CHANNEL_SHUT)
        PyErr_SetNone(PyExc_EOFError);
    return bytes;
}

static PyObject *read_nothing(void *Py_UNUSED(context), const char *Py_UNUSED(data),
                              size_t Py_UNUSED(size), mpx_parcel_t *Py_UNUSED(parcel))
{
    return Py_NewRef(Py_True);
}

PyDoc_STRVAR(
    Channel_set_aside_doc,
    "_set_aside($self, /)\n--\n\n"
    "Have the threads of this process that wait for a message look for it elsewhere, too.");

static PyObject *Channel_set_aside(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    mpx_u32_store_relaxed(&channel(self)->set_aside, 1);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Channel_drop_doc, "_drop($self, /)\n--\n\n"
                               "Drop the next message; False where there is none.");

static PyObject *Channel_drop(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int status;
    if (!is_made(self))
        return NULL;
    PyObject *dropped =
        mpx_channel_receive(channel(self), MPX_CHANNEL_NOW, read_nothing, NULL, &status);
    if (status == MPX_CHANNEL_TIMEOUT || status == MPX_CHANNEL_SHUT)
        Py_RETURN_FALSE;
    return dropped;
}

PyDoc_STRVAR(Channel_poll_doc,
             "_poll($self, timeout, /)\n--\n\n"
             "Whether there is a message within timeout seconds (None: for ever).");

static PyObject *Channel_poll(PyObject *self, PyObject *timeout)
{
    int64_t deadline;
    if (!is_made(self) || mpx_deadline_of(timeout, &deadline) < 0 ||
        check_end(channel(self)->ring.bell.reader) < 0)
        return NULL;
    int has = mpx_channel_poll(channel(self), deadline);
    return has < 0 ? NULL : PyBool_FromLong(has);
}

PyDoc_STRVAR(Channel_count_doc, "_count($self, /)\n--\n\nHow many messages there are.");

static PyObject *Channel_count(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return is_made(self) ? PyLong_FromUnsignedLong(mpx_ring_count(&channel(self)->ring)) : NULL;
}

PyDoc_STRVAR(Channel_stats_doc,
             "_stats($self, /)\n--\n\n"
             "(how many messages have been put ever, modulo 2**31; how many there are; their bytes "
             "and the limit\nof those, 0 where there is none; bytes of memory; processes that died "
             "in the middle, modulo 2**32).");

static PyObject *Channel_stats(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    mpx_ring_t *ring = &channel(self)->ring;
    if (!is_made(self))
        return NULL;
    uint32_t put, count;
    unsigned long long bytes, most = mpx_ring_most_bytes(ring);
    do { /* so that all of it was so at one time */
        put = mpx_ring_count_put(ring);
        count = mpx_ring_count(ring);
        bytes = most ? mpx_ring_bytes(ring) : 0;
    } while (put != mpx_ring_count_put(ring) || count != mpx_ring_count(ring));
    unsigned long long memory = mpx_ring_memory(ring);
    return Py_BuildValue("IIKKKI", put, count, bytes, most, memory, mpx_ring_deaths(ring));
}

PyDoc_STRVAR(Channel_max_bytes_doc, "_max_bytes($self, /)\n--\n\n"
                                    "How many bytes all messages may have; 0: any number.");

static PyObject *Channel_max_bytes(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    return PyLong_FromUnsignedLongLong(mpx_ring_most_bytes(&channel(self)->ring));
}

PyDoc_STRVAR(Channel_count_takers_doc,
             "_count_takers($self, /)\n--\n\n"
             "From its begin, count as done with what a process had taken that has ended.");

static PyObject *Channel_count_takers(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    mpx_ring_count_takers(&channel(self)->ring);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Channel_finish_doc,
             "_finish($self, /)\n--\n\n"
             "Count a message as done with; False where all that were put are already.");

static PyObject *Channel_finish(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    int status = mpx_ring_try_finish(&channel(self)->ring);
    if (status == -EBUSY) {
        do {
            int64_t piece = mpx_piece_of(MPX_NEVER);
            Py_BEGIN_ALLOW_THREADS
            status = mpx_ring_finish(&channel(self)->ring, piece);
            Py_END_ALLOW_THREADS
        } while (waits_on(&status, MPX_NEVER));
    }
    if (status == -EINTR)
        return NULL;
    return PyBool_FromLong(status == 0);
}

PyDoc_STRVAR(Channel_unfinished_doc, "_unfinished($self, /)\n--\n\n"
                                     "How many messages have been put and are not done with.");

static PyObject *Channel_unfinished(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return is_made(self) ? PyLong_FromUnsignedLong(mpx_ring_unfinished(&channel(self)->ring))
                         : NULL;
}

PyDoc_STRVAR(Channel_join_doc, "_join($self, /)\n--\n\n"
                               "Wait until all messages that were put are done with.");

static PyObject *Channel_join(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int status;
    if (!is_made(self))
        return NULL;
    do {
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_ring_join(&channel(self)->ring, piece);
        Py_END_ALLOW_THREADS
    } while (waits_on(&status, MPX_NEVER));
    return status == -EINTR ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Channel_shut_doc, "_shut($self, /)\n--\n\nLet nothing be put from now on.");

static PyObject *Channel_shut(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    mpx_ring_shut(&channel(self)->ring);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static void Channel_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (mpx_shared_room((SharedObject *)self) != NULL) {
        mpx_bell_close_reader(&channel(self)->ring.bell);
        mpx_bell_close_writer(&channel(self)->ring.bell);
        bool had_large = mpx_u32_load_relaxed(&channel(self)->had_large) != 0;
        uint64_t size = mpx_ring_drop(&channel(self)->ring);
        if (size > 0) {
            Py_BEGIN_ALLOW_THREADS
            mpx_heap_end(channel(self)->ring.arena, size, had_large);
            Py_END_ALLOW_THREADS
        }
    }
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(
    heap_stats_doc,
    "heap_stats()\n--\n\n"
    "Bytes of shared memory that new objects get, after a look for what is nobody's: size, "
    "owned,\nfree_stored.");

static PyObject *heap_stats(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    mpx_arena_t *arena;
    mpx_heap_stats_t stats;
    int status = mpx_arena_home(&arena);
    if (status < 0)
        return mpx_raise(status);
    mpx_heap_sweep(arena);
    mpx_heap_stats(arena, &stats);
    return Py_BuildValue("{s:K,s:K,s:K}", "size", (unsigned long long)stats.size, "owned",
                         (unsigned long long)stats.owned, "free_stored",
                         (unsigned long long)stats.free_stored);
}

static PyMethodDef functions[] = {
    {"heap_stats", heap_stats, METH_NOARGS, heap_stats_doc},
    {NULL, NULL, 0, NULL},
};

ChannelObject *mpx_channel_of(PyObject *module, PyObject *object)
{
    if (PyObject_TypeCheck(object, module_state(module)->channel_type))
        return is_made(object) ? channel(object) : NULL;
    PyErr_Format(PyExc_TypeError, "%R is no channel", object);
    return NULL;
}

PyDoc_STRVAR(Channel_doc, "A ring of messages in shared memory; the base of the one in queues.");

static PyMethodDef Channel_methods[] = {
    {"_make", Channel_make, METH_VARARGS, Channel_make_doc},
    {"_take", Channel_take, METH_VARARGS, Channel_take_doc},
    {"_ends", Channel_ends, METH_NOARGS, Channel_ends_doc},
    {"_check_ends", Channel_check_ends, METH_NOARGS, Channel_check_ends_doc},
    {"_watch", Channel_watch, METH_NOARGS, Channel_watch_doc},
    {"_close_reader", Channel_close_reader, METH_NOARGS, Channel_close_reader_doc},
    {"_close_writer", Channel_close_writer, METH_NOARGS, Channel_close_writer_doc},
    {"_send_bytes", Channel_send_bytes, METH_O, Channel_send_bytes_doc},
    {"_receive_bytes", Channel_receive_bytes, METH_O, Channel_receive_bytes_doc},
    {"_set_aside", Channel_set_aside, METH_NOARGS, Channel_set_aside_doc},
    {"_drop", Channel_drop, METH_NOARGS, Channel_drop_doc},
    {"_poll", Channel_poll, METH_O, Channel_poll_doc},
    {"_count", Channel_count, METH_NOARGS, Channel_count_doc},
    {"_stats", Channel_stats, METH_NOARGS, Channel_stats_doc},
    {"_count_takers", Channel_count_takers, METH_NOARGS, Channel_count_takers_doc},
    {"_max_bytes", Channel_max_bytes, METH_NOARGS, Channel_max_bytes_doc},
    {"_finish", Channel_finish, METH_NOARGS, Channel_finish_doc},
    {"_unfinished", Channel_unfinished, METH_NOARGS, Channel_unfinished_doc},
    {"_join", Channel_join, METH_NOARGS, Channel_join_doc},
    {"_shut", Channel_shut, METH_NOARGS, Channel_shut_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Channel_members[] = {
    {"_zero_copy", T_BOOL, offsetof(ChannelObject, is_zero_copy), 0,
     "whether large buffers are lent to who receives them"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot Channel_slots[] = {
    {Py_tp_members, Channel_members},
    {Py_tp_doc, (void *)Channel_doc},
    {Py_tp_dealloc, Channel_dealloc},
    {Py_tp_methods, Channel_methods},
    {0, NULL},
};

static PyType_Spec Channel_spec = {
    .name = "mproc_ext._core.Channel",
    .basicsize = sizeof(ChannelObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Channel_slots,
};

int mpx_add_channel(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->channel_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Channel_spec,
                                                                   (PyObject *)state->shared_type);
    if (state->channel_type == NULL || PyModule_AddType(module, state->channel_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
