/* lease.h - a message's block on loan to Python objects: its bytes, as long as a buffer is on them.
 *
 * The object does not copy. It exports the bytes; whoever has a buffer on it (a memoryview, and
 * what is made of that) has the object, and when that goes the block is given back. See mpx_lease.h
 * for forks and deaths.
 *
 * It holds nothing of Python's, and what ends it knows nothing of the module: so it may outlive
 * that at the end of the interpreter.
 */
#ifndef MPX_PY_LEASE_H
#define MPX_PY_LEASE_H

#include "module.h"

#include "mpx_heap.h"

/* The block that a message came in: this process's own. Who takes it over sets it to 0. */
typedef struct {
    mpx_arena_t *arena;
    mpx_block_t block;
} mpx_parcel_t;

/* Takes the parcel's block over, which has these bytes: the object, or None, where there is to be
 * no lease: too much is on loan, or memory is short. NULL with an exception. Then, too, the block
 * is the parcel's. */
PyObject *mpx_lease_new(PyObject *module, mpx_parcel_t *parcel, const char *data, size_t size);

#endif
