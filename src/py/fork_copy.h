/* fork_copy.h - bytes of shared memory that a thread is in the middle of writing or reading, and
 * what becomes of them in a child that it forks there: the program's code may, where it is pickled
 * or unpickled.
 *
 * The block that they lie in stays the parent's, which goes on writing to it, sends it or frees it.
 * So the thread copies them before it forks, and the child has the copy: in memory of its own, as
 * they were at the fork. A fork costs that time and memory only where such bytes are in use; and
 * whether they are, costs no system call.
 *
 * A thread knows its own alone, and no child has its parent's other threads. Those who use it keep
 * no address in the bytes where the program's code may run.
 */
#ifndef MPX_PY_FORK_COPY_H
#define MPX_PY_FORK_COPY_H

#include "module.h"

typedef struct mpx_fork_copy mpx_fork_copy_t;

struct mpx_fork_copy {
    char *data; /* in a child the copy's; or NULL: there was no memory for one */
    size_t size;
    char *copy; /* or NULL */
    bool is_child;
    mpx_fork_copy_t *next, **link; /* of the thread's */
};

/* From now on the thread uses these bytes; it may change `data` and `size`. NULL with a
 * MemoryError. */
mpx_fork_copy_t *mpx_fork_copy_begin(char *data, size_t size);

/* It uses other bytes instead, which are the process's own. */
void mpx_fork_copy_move(mpx_fork_copy_t *self, char *data, size_t size);

/* It uses them no more; NULL: it did not. In the same thread. */
void mpx_fork_copy_end(mpx_fork_copy_t *self);

#endif
