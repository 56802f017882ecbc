/* queue.h - what the types of queues have in common: an object with a channel, or with none.
 *
 * The standard library's classes lie beneath those of mproc_ext/queues.py. An object without a
 * channel is one that is to have their code path: what is called here goes on to them.
 */
#ifndef MPX_PY_QUEUE_H
#define MPX_PY_QUEUE_H

#include "channel.h"
#include "serialize.h"

typedef struct {
    PyObject_HEAD PyObject *channel; /* NULL: the standard library's way */
    mpx_namespace_t namespace;       /* in which _ForkingPickler is looked up */
    PyObject *former; /* a list of the channels before this one, which threads may be in; or NULL */
    PyObject *taken;  /* a list of what a get_many had that raised, the next ones to get; or NULL */
    PyObject *kept;   /* a list, of a message that _reader has taken and nobody received; or NULL */
    PyObject *maxsize; /* what programs find as _maxsize; or NULL */
    PyObject *opid;    /* and as _opid */
    PyObject *module;
    module_state_t *state; /* of the module */
    uint64_t taken_by;     /* the process that took that */
    uint64_t closed_by;    /* the process that did; 0: none */
    uint64_t used_by;      /* the process that put something; 0: none */
    char is_limited;
} QueueObject;

/* What is wrong with an object that was not sent. */
typedef enum {
    MPX_NOT_AT_FAULT,
    MPX_UNPICKLABLE, /* the exception is the one that pickling raised */
    MPX_UNREADABLE,  /* nobody can receive it, or this process has closed its end */
} mpx_queue_fault_t;

static inline QueueObject *mpx_queue(PyObject *self)
{
    return (QueueObject *)self;
}

static inline ChannelObject *mpx_queue_channel(PyObject *self)
{
    return (ChannelObject *)mpx_queue(self)->channel;
}

static inline module_state_t *mpx_queue_state(PyObject *self)
{
    return mpx_queue(self)->state;
}

/* Sends what it takes to make the object anew: None, or NULL with an exception, which is queue.Full
 * at the deadline. */
PyObject *mpx_queue_send(PyObject *self, PyObject *object, int64_t deadline,
                         mpx_queue_fault_t *fault);

/* Sends an object's message that was made elsewhere. As above. */
PyObject *mpx_queue_send_message(PyObject *self, PyObject *bytes, int64_t deadline,
                                 mpx_queue_fault_t *fault);

/* The next object; NULL with an exception, which is queue.Empty at the deadline. */
PyObject *mpx_queue_receive(PyObject *self, int64_t deadline);

/* The first of what this process had taken with a get_many that raised; NULL without an exception:
 * nothing. */
PyObject *mpx_queue_get_taken(PyObject *self);

/* How many messages this process has taken out of the ring that are in the queue all the same. */
size_t mpx_queue_count_taken(PyObject *self);

/* As the standard library says it: one at its end is not, as get() would not wait. */
static inline bool mpx_queue_is_empty(PyObject *self)
{
    return mpx_ring_count(&mpx_queue_channel(self)->ring) == 0 &&
           mpx_queue_count_taken(self) == 0 && !mpx_channel_is_at_end(mpx_queue_channel(self));
}

/* Sets the OSError of a queue whose reading end this process has closed; false. */
bool mpx_queue_check_reader(PyObject *self);

/* Adds a type on top of _core.QueueBase; *type is a new reference. 0, or -1 with an exception. */
int mpx_add_queue_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type);

#endif
