/* synchronized.h - what SynchronizedValue and SynchronizedArray have in common: a ctypes object in
 * shared memory, and the lock that guards it.
 *
 * The classes of mproc_ext/sharedctypes.py stand on these and, after them, on the standard
 * library's. What is done here is what can be done without a Python call: the items are of a plain
 * type, the lock is one of semlock.c, and the object has the attributes it was made with.
 * Everything else is left to the next class in the MRO, that is to the standard library's code,
 * errors included.
 */
#ifndef MPX_PY_SYNCHRONIZED_H
#define MPX_PY_SYNCHRONIZED_H

#include "module.h"

#include "mpx_atomic.h"

/* `obj` and the three after it are what the standard library's code works with: they may be
 * replaced at any time, or missing. From `bound` on there is what the code here works with. */
typedef struct {
    PyObject_HEAD PyObject *obj;
    PyObject *lock;
    PyObject *acquire;
    PyObject *release;
    mpx_atomic_u32 bound; /* whether that is to be done here */
    char code;            /* what ctypes calls the type of an item */
    Py_ssize_t length;    /* items */
    Py_buffer view;       /* the memory of what was obj; its own obj is NULL where there is none */
    PyObject *semlock;    /* what was the lock; NULL: nothing of this is set */
} SynchronizedObject;

/* Whether the object's items can be got and set here. */
static inline bool mpx_is_bound(SynchronizedObject *self)
{
    return mpx_u32_load_acquire(&self->bound); /* P7: with P6 */
}

/* An item, of an object that was seen bound, under the lock; NULL with an exception. */
PyObject *mpx_synchronized_get(SynchronizedObject *self, Py_ssize_t index);

/* Sets an item under the lock. 1; 0 where the value is not of the very type that items have: not to
 * be done here; or -1 with an exception. */
int mpx_synchronized_set(SynchronizedObject *self, Py_ssize_t index, PyObject *value);

/* super(_core.SynchronizedBase, bound).name, where `bound` is self or its type: what the standard
 * library's class has by that name. */
PyObject *mpx_synchronized_next(PyObject *self, PyObject *bound, const char *name);

/* synchronized_value.c, synchronized_array.c: the types on top of _core.SynchronizedBase. */
extern PyType_Spec mpx_synchronized_value_spec;
extern PyType_Spec mpx_synchronized_array_spec;

#endif
