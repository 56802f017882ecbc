/* semlock.h - what other types in C know of, and do with, an object that is one of our locks,
 * perhaps.
 */
#ifndef MPX_PY_SEMLOCK_H
#define MPX_PY_SEMLOCK_H

#include "module.h"

#include "mpx_atomic.h"

/* Whether these are the methods of a lock here, not something that was put in their place. */
bool mpx_semlock_has(PyObject *lock, PyObject *acquire, PyObject *release);

/* Enters a section that runs no Python code, under a lock of which that was said: how to leave it
 * again, or -1 with an exception. */
int mpx_semlock_enter(PyObject *lock);

/* Leaves it. 0, or -1 with an exception. */
int mpx_semlock_leave(PyObject *lock, int how);

/* The version of a type of which is known that its objects are our locks, and that nothing in
 * Python takes part where they are asked for `_semlock`. The interpreter gives no version twice,
 * and a type that is changed loses its own. 0: none is known. */
typedef mpx_atomic_u32 mpx_plain_version_t;

/* The type's version, 0 where it has none now. */
static inline uint32_t mpx_version_of(PyTypeObject *type)
{
#if PY_VERSION_HEX < 0x030C0000
    if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG))
        return 0;
#endif
#ifdef Py_GIL_DISABLED
    return _Py_atomic_load_uint_relaxed(&type->tp_version_tag);
#else
    return type->tp_version_tag;
#endif
}

static inline bool mpx_is_plain(PyObject *lock, mpx_plain_version_t *known)
{
    uint32_t version = mpx_version_of(Py_TYPE(lock));
    return version != 0 && version == mpx_u32_load_relaxed(known);
}

/* `lock._semlock._is_mine()` of any object: 1, 0, or -1 with an exception. Notes in `known` what it
 * finds. */
int mpx_semlock_is_mine(module_state_t *state, PyObject *lock, mpx_plain_version_t *known);

/* The same of an object of a plain type; false also where the lock was not initialised. */
bool mpx_semlock_is_mine_plainly(PyObject *lock);

/* `lock._semlock._count()` of any object: a new reference. */
PyObject *mpx_semlock_count(module_state_t *state, PyObject *lock, mpx_plain_version_t *known);

#endif
