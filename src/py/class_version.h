/* class_version.h - whether a class is still as it was when somebody looked at it.
 *
 * Its version is a number that the interpreter gives no second time, and takes away when something
 * is assigned to the class or to one of its bases. A lookup of an attribute gives it one: so first
 * a lookup, then the version is asked for, then the class is looked at. What is changed meanwhile
 * counts as a change.
 */
#ifndef MPX_PY_CLASS_VERSION_H
#define MPX_PY_CLASS_VERSION_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#ifdef Py_GIL_DISABLED
#    define MPX_LOAD_UINT(field)         _Py_atomic_load_uint(&(field))
#    define MPX_STORE_UINT(field, value) _Py_atomic_store_uint(&(field), value)
#else
#    define MPX_LOAD_UINT(field)         (field)
#    define MPX_STORE_UINT(field, value) ((field) = (value))
#endif

/* 0 where it has none. */
static inline unsigned mpx_class_version(PyTypeObject *type)
{
#if PY_VERSION_HEX < 0x030D0000
    if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG))
        return 0;
#endif
    return MPX_LOAD_UINT(type->tp_version_tag);
}

#endif
