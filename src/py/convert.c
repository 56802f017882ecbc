/* convert.c - from Python's arguments to what the core takes. */
#include "module.h"

#include <math.h>

#include "mpx_os.h"

int mpx_deadline_of(PyObject *timeout, int64_t *deadline)
{
    if (timeout == NULL || timeout == Py_None) {
        *deadline = MPX_NEVER;
        return 0;
    }
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "Invalid value NaN (not a number)");
        return -1;
    }
    double nanos = ceil(seconds * (double)MPX_NANOS_PER_SEC);
    *deadline =
        nanos >= (double)INT64_MAX ? MPX_NEVER : mpx_os_deadline(nanos > 0 ? (int64_t)nanos : 0);
    return 0;
}

int mpx_fds_of(PyObject *sequence, int **fds, Py_ssize_t *count)
{
    /* A copy: an item's fileno() may change the caller's list. */
    PyObject *items = PySequence_Tuple(sequence);
    if (items == NULL)
        return -1;
    *count = PyTuple_GET_SIZE(items);
    *fds = PyMem_New(int, *count > 0 ? (size_t)*count : 1);
    if (*fds == NULL) {
        PyErr_NoMemory();
        Py_DECREF(items);
        return -1;
    }
    for (Py_ssize_t i = 0; i < *count; i++) {
        (*fds)[i] = PyObject_AsFileDescriptor(PyTuple_GET_ITEM(items, i));
        if ((*fds)[i] < 0) {
            PyMem_Free(*fds);
            *fds = NULL;
            Py_DECREF(items);
            return -1;
        }
    }
    Py_DECREF(items);
    return 0;
}
