/* shared.h - what the Python types have in common whose state is a slot of shared memory.
 *
 * Such an object holds its slot once in this process. Its Python subclass in
 * mproc_ext/synchronize.py has the dict and the weak references. It is pickled only for a child
 * that is being started, by handing the slot over (see mpx_arena.h); mproc_ext/_arena.py has the
 * policy.
 *
 * Threads. An object that is initialised again gets another slot, and holds the one before until
 * it is dropped: a thread may be waiting in that, or have its memory in a buffer. So what a thread
 * has once seen of an object stays usable as long as it has the object.
 */
#ifndef MPX_PY_SHARED_H
#define MPX_PY_SHARED_H

#include "module.h"

#include "mpx_arena.h"
#include "mpx_atomic.h"

typedef struct mpx_former mpx_former_t;

#define MPX_SHARED_HEAD                                                        \
    PyObject_HEAD mpx_arena_t *arena; /* with the slot: mpx_shared_place */    \
    mpx_slot_t slot;                  /* 0: none */                            \
    bool is_fork_ctx;                                                          \
    mpx_atomic_ptr room;  /* of the slot, once what is in it is initialised */ \
    mpx_former_t *former; /* the slots before this one */

typedef struct {
    MPX_SHARED_HEAD
} SharedObject;

/* A slot that this process holds. */
typedef struct {
    mpx_arena_t *arena;
    mpx_slot_t slot;
    void *room; /* NULL: there is no slot */
} mpx_place_t;

/* Makes a slot, all zero; with `is_lock`, one that begins with a free mpx_lock_t. 0, or -1 with an
 * exception. */
int mpx_place_new(mpx_place_t *place, bool is_lock);

/* The slot that the parent has handed over: (identity of the arena, slot). The same. */
int mpx_place_take(mpx_place_t *place, PyObject *identity, mpx_slot_t slot);

/* Gives the object the slot, whose content is initialised. 0; or -1 with an exception, and the slot
 * is dropped. */
int mpx_shared_hold(SharedObject *self, mpx_place_t place);

/* Gives the object a slot of its own, all zero. 0, or -1 with an exception. */
int mpx_shared_make(SharedObject *self);

/* Drops all slots: at the end of the object. */
void mpx_shared_drop(SharedObject *self);

/* The object's slot. */
mpx_place_t mpx_shared_place(SharedObject *self);

static inline void *mpx_shared_room(SharedObject *self)
{
    return mpx_ptr_load_acquire(&self->room); /* P1: with P0 */
}

/* Sets the AttributeError of the missing attribute of an object that was not initialised: the
 * standard library's objects get theirs from __init__. */
void mpx_shared_raise_not_made(SharedObject *self, const char *attribute);

/* Whether the object has been initialised; raises where not. */
static inline bool mpx_shared_check(SharedObject *self, const char *attribute)
{
    if (MPX_LIKELY(mpx_shared_room(self) != NULL))
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

#endif
