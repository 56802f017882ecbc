/* apart.h - messages of pickles whose large buffers lie beside them.
 *
 * Pickle's protocol 5 lets an object give its bytes (a PickleBuffer) instead of a copy of them.
 * Here those of MPX_APART_LEAST and more are copied once, to where the receiver can use them as
 * they are:
 *
 *     tag | pickle ... | buffer | buffer ... | entry for each | how many entries | bytes of pickle
 *
 *     entry   8 bytes: where the buffer begins, in the message | 1 bit: writable; 63: its size
 *
 * A buffer begins at a multiple of 64. Numbers are in the machine's own form.
 */
#ifndef MPX_PY_APART_H
#define MPX_PY_APART_H

#include "lease.h"
#include "serialize.h"

/* What is shorter goes into the pickle: a lease would keep 64 KB at least for it. */
#define MPX_APART_LEAST ((Py_ssize_t)MPX_BLOCK_UNIT)

/* Appends the message of an object; as mpx_pickle. */
int mpx_apart_write(PyObject *module, PyObject *tables, PyObject *object, mpx_buffer_t *out);

/* The object of such a message, which may hold anything. Its buffers are memoryviews on the
 * parcel's block, where there is one and it can be lent (see mpx_lease_new). Else they are new
 * bytes, or bytearrays where they are writable: as pickle gives them that are in the pickle. */
PyObject *mpx_apart_read(PyObject *module, const char *data, size_t size, mpx_parcel_t *parcel);

#endif
