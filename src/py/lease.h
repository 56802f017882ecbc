/* lease.h - a message's block on loan to Python objects: its bytes, as long as a buffer is on them.
 *
 * One object has the lease; each buffer of the message is a part, which has that one, and exports
 * its own bytes: so the `obj` of a memoryview on it is what pickle's protocol 5 promises, something
 * with the contents of what was sent. When the last part goes the block is given back. See
 * mpx_lease.h for forks and deaths.
 *
 * What ends a lease knows nothing of the module: so it may outlive that at the end of the
 * interpreter.
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

/* Takes the parcel's block over: the object; or None, where there is to be no lease: too much is on
 * loan, or memory is short. NULL with an exception. Then, too, the block is the parcel's. */
PyObject *mpx_lease_new(PyObject *module, mpx_parcel_t *parcel);

/* A memoryview on these bytes of the lease's block. */
PyObject *mpx_lease_view(PyObject *module, PyObject *lease, const char *data, size_t size,
                         bool is_readonly);

#endif
