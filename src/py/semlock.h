/* semlock.h - what other types in C know of, and do with, an object that is one of our locks,
 * perhaps.
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

/* A type of which is known that it has our locks and that nothing in Python takes part where its
 * objects are asked for `_semlock`. That holds as long as the type is not changed, which gives it
 * another version. All zero: none is known. */
typedef struct {
    PyTypeObject *type; /* to compare with: no reference */
    unsigned int version;
} mpx_plain_type_t;

static inline bool mpx_has_version(PyTypeObject *type)
{
#if PY_VERSION_HEX < 0x030C0000
    return PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG);
#else
    return type->tp_version_tag != 0;
#endif
}

static inline bool mpx_is_plain(PyObject *lock, const mpx_plain_type_t *known)
{
    PyTypeObject *type = Py_TYPE(lock);
    return type == known->type && type->tp_version_tag == known->version && mpx_has_version(type);
}

/* `lock._semlock._is_mine()` of any object: 1, 0, or -1 with an exception. Notes in `known` what it
 * finds. */
int mpx_semlock_is_mine(module_state_t *state, PyObject *lock, mpx_plain_type_t *known);

/* The same of an object of a plain type; false also where the lock was not initialised. */
bool mpx_semlock_is_mine_plainly(PyObject *lock);

/* `lock._semlock._count()` of any object: a new reference. */
PyObject *mpx_semlock_count(module_state_t *state, PyObject *lock, mpx_plain_type_t *known);

#endif
