/* semlock.h - what other types in C do with a lock or semaphore of semlock.c.
 */
#ifndef MPX_PY_SEMLOCK_H
#define MPX_PY_SEMLOCK_H

#include "module.h"

/* Whether these are the methods of a lock here, not something that was put in their place. */
bool mpx_semlock_has(PyObject *lock, PyObject *acquire, PyObject *release);

/* Enters a section that runs no Python code, under a lock of which that was said: how to leave it
 * again, or -1 with an exception. */
int mpx_semlock_enter(PyObject *lock);

/* Leaves it. 0, or -1 with an exception. */
int mpx_semlock_leave(PyObject *lock, int how);

#endif
