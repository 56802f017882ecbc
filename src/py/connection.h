/* connection.h - _core.Connection: messages through a descriptor, in the standard library's form.
 *
 * connection.c has the type; connection_traffic.c, what it does with the descriptor, and with the
 * shared memory that the ends of a Pipe() have beside it (rings.h).
 *
 * Each direction has its turn (turn.h), and in it a message goes on where it was, whoever comes:
 *
 *   - a send that a signal handler's exception ends in the middle of a message leaves the rest of
 *     it with the connection, and the next send begins with that: the reader gets whole messages;
 *   - a receive that ends so leaves what has come, and the next one goes on there;
 *   - a handler that sends, or receives, first does what its thread was at: its own message comes
 *     after that, and the one that has arrived is the handler's.
 *
 * Where another thread closes the connection in the middle of a send, that goes through with it, as
 * a write does: the descriptor's number is free at once, and the other end sees the end after it.
 * So what may take more than one system call has a number of its own (own_fd.h).
 *
 * What is kept so is of one process and one descriptor: a child that is forked has no part in it.
 */
#ifndef MPX_PY_CONNECTION_H
#define MPX_PY_CONNECTION_H

#include "own_fd.h"
#include "received.h"
#include "rings.h"
#include "serialize.h"
#include "turn.h"

#include "mpx_stream.h"

/* A message that is being sent, by a call that a handler may have interrupted. */
typedef struct mpx_sending {
    mpx_outflow_t out;
    mpx_duct_t *duct;           /* by which it was begun, and has to be finished, or NULL */
    struct mpx_sending *before; /* which is to be finished first, or NULL */
    uint64_t process;           /* which sends it, as its word */
    mpx_own_fd_t own;           /* the descriptor, as long as it is under way */
} mpx_sending_t;

/* Whose what a direction keeps between calls is. */
typedef struct {
    uint64_t process; /* as its word */
    uint32_t handles;
} mpx_keeper_t;

typedef struct {
    PyObject_HEAD mpx_atomic_u32 handle; /* the descriptor, or MPX_NO_HANDLE: closed */
    mpx_atomic_u32 handles;              /* counts those that it was given */
    mpx_atomic_u32 readable, writable;
    mpx_atomic_u32 is_socket;  /* the descriptor was one when it was given */
    mpx_atomic_u32 is_patched; /* it has a method of its own that others call */
    PyObject *module;
    module_state_t *state;
    mpx_namespace_t namespace; /* of the standard library's module of connections */
    mpx_ring_end_t end;        /* of a Pipe() */

    /* In the turn of who sends. */
    mpx_turn_t sender;
    mpx_wait_mood_t sender_mood;
    mpx_sending_t *sending;  /* the one that was begun last, or NULL */
    mpx_sending_t rest;      /* what was left of one; its memory is its own */
    mpx_keeper_t sending_of; /* of these two */
    mpx_atomic_u32 is_ended; /* the descriptor was closed; who is sending has yet to see to that */

    /* In the turn of who receives. */
    mpx_turn_t receiver;
    mpx_wait_mood_t receiver_mood;
    mpx_inflow_t in;
    mpx_received_t content; /* what has come of it */
    mpx_keeper_t receiving_of;
} ConnectionObject;

static inline ConnectionObject *mpx_connection(PyObject *self)
{
    return (ConnectionObject *)self;
}

/* The descriptor; -1 where there is none. */
static inline int mpx_connection_fd(ConnectionObject *self)
{
    return (int)mpx_u32_load_relaxed(&self->handle);
}

/* connection_traffic.c: sends the bytes as one message. 0, or -1 with an exception. */
int mpx_connection_send(ConnectionObject *self, const char *data, size_t size);

/* connection_traffic.c: the same of a large message, with more bytes before and after these. */
int mpx_connection_send_within(ConnectionObject *self, const mpx_brackets_t *brackets,
                               const char *data, size_t size);

/* connection_traffic.c: receives a message of at most `most` bytes (below 0: of any size) into
 * `message`, which is all zero, and the caller's to free. 0; -1 with an exception; or 1 where there
 * is one that is larger, or what has come is no message: nothing can be received any more. */
int mpx_connection_receive(ConnectionObject *self, Py_ssize_t most, mpx_purpose_t purpose,
                           mpx_received_t *message);

/* connection_traffic.c: whether there is something to receive by the deadline: 1, 0, or -1 with an
 * exception. */
int mpx_connection_poll(ConnectionObject *self, int64_t deadline);

/* rings.h: from now on everything goes through the descriptor. */
static inline void mpx_connection_leave(ConnectionObject *self)
{
    if (MPX_UNLIKELY(mpx_end_is_joined(&self->end)))
        mpx_end_leave(&self->end, mpx_connection_fd(self));
}

/* The descriptor has been closed in this process. What this thread was sending, and was interrupted
 * in, ends with it; what another thread is sending goes on. */
void mpx_connection_end(ConnectionObject *self);

/* Gives up what was left of a message, and of one that was being received. */
void mpx_connection_forget(ConnectionObject *self);

/* connection_wait.c: whether another library has put its own in select.poll's place (gevent, whose
 * other threads run while it waits): then the standard library's code is to wait. */
bool mpx_polls_otherwise(void);

/* connection.c: whether nobody has put other methods in the place of this one's. */
bool mpx_connection_is_plain(PyObject *self);

#endif
