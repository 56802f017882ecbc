/* received.h - a message that is being received, or has been.
 *
 * Of a large one most bytes are read to where they stay: into the bytes object that they will be,
 * where that is known (`recv_bytes`), or is seen from the first ones (the pickle of a bytes object
 * has it as it is, between a few others). To copy it once takes as long as the kernel takes.
 *
 * Nobody else knows the object before it is whole.
 */
#ifndef MPX_PY_RECEIVED_H
#define MPX_PY_RECEIVED_H

#include "buffer.h"

/* What the message is for. */
typedef enum {
    MPX_FOR_BUFFER, /* to be read in one piece */
    MPX_FOR_BYTES,  /* all of it is a bytes object */
    MPX_FOR_OBJECT, /* it is a pickle */
} mpx_purpose_t;

/* All zero: nothing has come, and there is no memory. */
typedef struct {
    mpx_buffer_t buffer; /* its bytes; but for those that are in */
    PyObject *bytes;     /* this object, or NULL */
    size_t at;           /* where in the message those begin */
} mpx_received_t;

/* Where the bytes behind the first `got` of a message of `size` bytes go, and for how many there is
 * room, of which the buffer's have been counted. NULL with an exception. */
char *mpx_received_room(mpx_received_t *received, mpx_purpose_t purpose, uint64_t size,
                        uint64_t got, size_t *room);

/* The message of `size` bytes is whole: it is the object where its purpose allows that, and else is
 * all in the buffer. 0, or -1 with an exception, and it is as before. */
int mpx_received_end(mpx_received_t *received, mpx_purpose_t purpose, size_t size);

/* Puts all of it into the buffer. 0, or -1 with an exception, and it is as before. */
int mpx_received_join(mpx_received_t *received);

/* Gives back the buffer, and drops the object. */
void mpx_received_drop(PyObject *module, mpx_received_t *received);

#endif
