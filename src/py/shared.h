/* shared.h - what the Python types have in common whose state is a slot of shared memory.
 *
 * Such an object holds its slot once in this process. Its Python subclass in
 * mproc_ext/synchronize.py has the dict and the weak references. It is pickled only for a child
 * that is being started, by handing the slot over (see mpx_arena.h); mproc_ext/_arena.py has the
 * policy.
 */
#ifndef MPX_PY_SHARED_H
#define MPX_PY_SHARED_H

#include "module.h"

#include "mpx_arena.h"

#define MPX_SHARED_HEAD               \
    PyObject_HEAD mpx_arena_t *arena; \
    mpx_slot_t slot; /* 0: none */    \
    bool is_fork_ctx;                 \
    void *room;

typedef struct {
    MPX_SHARED_HEAD
} SharedObject;

/* Gives the object a slot of its own, all zero. 0, or -1 with an exception. */
int mpx_shared_make(SharedObject *self);

/* The same: a slot that begins with a free mpx_lock_t. */
int mpx_shared_make_lock(SharedObject *self);

/* Gives the object the slot that its parent has handed over: (identity of the arena, slot). */
int mpx_shared_take(SharedObject *self, PyObject *identity, mpx_slot_t slot);

/* Drops the slot: at the end of the object. */
void mpx_shared_drop(SharedObject *self);

/* Sets the AttributeError of the missing attribute of an object that was not initialised: the
 * standard library's objects get theirs from __init__. */
void mpx_shared_raise_not_made(SharedObject *self, const char *attribute);

/* Whether the object has been initialised; raises where not. */
static inline bool mpx_shared_check(SharedObject *self, const char *attribute)
{
    if (MPX_LIKELY(self->room != NULL))
        return true;
    mpx_shared_raise_not_made(self, attribute);
    return false;
}

/* Whether the start method of a context, which is not None, is fork; -1 with an exception. */
int mpx_shared_is_fork(module_state_t *state, PyObject *ctx);

/* Adds a type on top of another one. 0, or -1 with an exception. */
int mpx_add_type(PyObject *module, PyType_Spec *spec, PyObject *base);

/* Adds a type on top of _core.Shared. 0, or -1 with an exception. */
int mpx_add_shared_type(PyObject *module, PyType_Spec *spec);

/* Sets the exception of a failed call on an arena. */
PyObject *mpx_shared_raise(int status);

#endif
