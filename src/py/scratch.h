/* scratch.h - a copy of bytes, for a reader who is done with it when he asks for the next.
 *
 * A new object for each would lie in new memory, and there the system's clearing of pages costs
 * more than the copying. This one lies in the module's idle buffer. It is written to only while
 * nobody but its maker refers to it, so whoever holds it longer, or a memoryview of it, has what he
 * got.
 */
#ifndef MPX_PY_SCRATCH_H
#define MPX_PY_SCRATCH_H

#include "module.h"

/* Of fewer bytes a new object is as good, and more the module does not keep. */
#define MPX_SCRATCH_LEAST ((size_t)32 << 10)
#define MPX_SCRATCH_MOST  MPX_BUFFER_KEPT

/* Where to write what *scratch, an object with a buffer, is to have: so many bytes. It is made
 * where that is NULL. NULL, without an exception, where somebody else refers to it, or for lack of
 * memory.
 */
char *mpx_scratch_room(PyObject *module, PyObject **scratch, size_t size);

/* Drops the maker's reference; NULL: there is none. The module gets its buffer back, unless
 * somebody else refers to the object: he keeps it. */
void mpx_scratch_drop(PyObject *module, PyObject *scratch);

#endif
