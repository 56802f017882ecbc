/* channel.h - a ring of messages and its bell, as one object of Python: what queues are made of.
 *
 * Its methods are for mproc_ext/queues.py; the types of queues use the functions below. A process
 * closes the two ends for itself, as it would those of a pipe: a channel that no process can write
 * to any more, and that is empty, is at its end.
 */
#ifndef MPX_PY_CHANNEL_H
#define MPX_PY_CHANNEL_H

#include "shared.h"

#include "mpx_ring.h"

typedef struct {
    MPX_SHARED_HEAD
    mpx_ring_t ring;
} ChannelObject;

/* A deadline: not to wait. */
#define MPX_CHANNEL_NOW 0

/* Results of the functions below that are no exceptions; -EINTR says that there is one. */
#define MPX_CHANNEL_TIMEOUT (-EAGAIN) /* no room, or no message, by the deadline */
#define MPX_CHANNEL_SHUT    (-EPIPE)

/* Like -EINTR: this process has closed its end, or every process the other one. */
#define MPX_CHANNEL_NO_END (-ENOTCONN)

/* Sends the bytes as one message. 0, MPX_CHANNEL_TIMEOUT, MPX_CHANNEL_SHUT; or MPX_CHANNEL_NO_END or
 * -EINTR with an exception. */
int mpx_channel_send(ChannelObject *self, const char *data, size_t size, int64_t deadline);

/* What becomes of the bytes of a message, which do not outlive the call. */
typedef PyObject *mpx_channel_reader_t(void *context, const char *data, size_t size);

/* Receives a message: what `reader` makes of it. NULL with an exception; or without one where
 * *status is MPX_CHANNEL_TIMEOUT or MPX_CHANNEL_SHUT. */
PyObject *mpx_channel_receive(ChannelObject *self, int64_t deadline, mpx_channel_reader_t *reader,
                              void *context, int *status);

/* Whether there is a message by the deadline: 1, 0, or -1 with an exception. */
int mpx_channel_poll(ChannelObject *self, int64_t deadline);

/* Whether an object is a channel that has been made; raises where not. */
ChannelObject *mpx_channel_of(PyObject *module, PyObject *object);

#endif
