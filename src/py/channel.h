/* channel.h - a ring of messages and its bell, as one object of Python: what queues are made of.
 *
 * Its methods are for mproc_ext/queues.py; the types of queues use the functions below. A process
 * closes the two ends for itself, as it would those of a pipe: a channel that no process can write
 * to any more, and that is empty, is at its end.
 */
#ifndef MPX_PY_CHANNEL_H
#define MPX_PY_CHANNEL_H

#include "shared.h"

#include "buffer.h"
#include "fork_copy.h"
#include "lease.h"
#include "mpx_ring.h"

typedef struct {
    MPX_SHARED_HEAD
    mpx_ring_t ring;
    char is_zero_copy;        /* large buffers are written apart: see apart.h */
    mpx_atomic_u32 had_large; /* this process has sent or received something in a block */
    mpx_atomic_u32 set_aside; /* and what it takes out of the ring may be for another thread */
    mpx_heap_watch_t watch;   /* for those who wait in vain */
} ChannelObject;

/* A deadline: not to wait. */
#define MPX_CHANNEL_NOW 0

/* Results of the functions below that are no exceptions; -EINTR says that there is one. */
#define MPX_CHANNEL_TIMEOUT (-EAGAIN) /* no room, or no message, by the deadline */
#define MPX_CHANNEL_SHUT    (-EPIPE)

/* Like -EINTR: this process has closed its end, or every process the other one. */
#define MPX_CHANNEL_NO_END (-ENOTCONN)

/* Of receiving: a thread of this process may have taken a message that is for who waits. */
#define MPX_CHANNEL_LOOK 1

/* Sends the bytes as one message. 0, MPX_CHANNEL_TIMEOUT, MPX_CHANNEL_SHUT; or MPX_CHANNEL_NO_END
 * or -EINTR with an exception. */
int mpx_channel_send(ChannelObject *self, const char *data, size_t size, int64_t deadline);

/* A message up to this length is written on the stack. */
#define MPX_LETTER_SMALL 256

/* A message that is being written. It begins in the letter itself and goes on in the module's idle
 * buffer; what does not fit into a record, in a block of shared memory, so that it is copied only
 * once. */
typedef struct {
    mpx_buffer_t buffer; /* the first member: its grower finds the letter by it */
    PyObject *module;
    ChannelObject *channel;
    mpx_block_t block;          /* which has the content, or 0: none, or it was sent */
    mpx_fork_copy_t *fork_copy; /* of the block, or NULL */
    bool has_moved;             /* the content is, or was, in a block */
    bool lacks_memory;          /* it could not grow: that is no fault of the object */
    int64_t deadline;           /* of waiting for a process that was stopped where it grows */
    mpx_buffer_t spare;         /* the module's buffer then, or none */
    char small[MPX_LETTER_SMALL];
} mpx_letter_t;

int mpx_letter_grow(mpx_buffer_t *buffer, size_t needed);

static inline void mpx_letter_begin(mpx_letter_t *letter, PyObject *module, ChannelObject *channel,
                                    int64_t deadline)
{
    letter->buffer = (mpx_buffer_t){
        .data = letter->small, .capacity = sizeof(letter->small), .grower = mpx_letter_grow};
    letter->module = module;
    letter->channel = channel;
    letter->block = 0;
    letter->fork_copy = NULL;
    letter->has_moved = false;
    letter->lacks_memory = false;
    letter->deadline = deadline;
    letter->spare.data = NULL;
}

/* Sends what was written. As mpx_channel_send. */
int mpx_letter_send(mpx_letter_t *letter, int64_t deadline);

/* Gives back what a letter has that is not in itself. */
void mpx_letter_clear(mpx_letter_t *letter);

/* Is due for each letter, sent or not. */
static inline void mpx_letter_end(mpx_letter_t *letter)
{
    if (MPX_UNLIKELY(letter->buffer.data != letter->small))
        mpx_letter_clear(letter);
}

/* What becomes of the bytes of a message, which do not outlive the call, unless the reader takes
 * over the block that they are in; NULL: they are in none. */
typedef PyObject *mpx_channel_reader_t(void *context, const char *data, size_t size,
                                       mpx_parcel_t *parcel);

/* Receives a message: what `reader` makes of it. NULL with an exception; or without one where
 * *status is MPX_CHANNEL_TIMEOUT, MPX_CHANNEL_SHUT or MPX_CHANNEL_LOOK. */
PyObject *mpx_channel_receive(ChannelObject *self, int64_t deadline, mpx_channel_reader_t *reader,
                              void *context, int *status);

/* Sends the first ones of several messages, as many as there is room for at once; how many. Where
 * it is none, mpx_channel_send of the first one does it, or says why it cannot be done. */
size_t mpx_channel_send_some(ChannelObject *self, const mpx_message_t *messages, size_t count);

/* What becomes of a message of several. */
typedef void mpx_channel_taker_t(void *context, const char *data, size_t size);

/* Receives at most `most` short messages that are wanted and there now, in one step; how many.
 * Where it is none, mpx_channel_receive says why. */
size_t mpx_channel_receive_some(ChannelObject *self, size_t most, mpx_ring_wanted_t *wanted,
                                mpx_channel_taker_t *taker, void *context);

/* Whether there is a message by the deadline: 1, 0, or -1 with an exception. */
int mpx_channel_poll(ChannelObject *self, int64_t deadline);

/* Whether there is no message, and nobody who could send one. */
bool mpx_channel_is_at_end(ChannelObject *self);

/* Whether an object is a channel that has been made; raises where not. */
ChannelObject *mpx_channel_of(PyObject *module, PyObject *object);

#endif
