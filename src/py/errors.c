/* errors.c - from the core's negative errnos to Python's exceptions; the only place. */
#include "module.h"

#include <errno.h>
#include <string.h>

PyObject *mpx_raise(int status)
{
    if (status == -EMFILE)
        return mpx_raise_message(status, "Too many open files (RLIMIT_NOFILE, see ulimit -n)",
                                 NULL);
    errno = -status;
    return PyErr_SetFromErrno(PyExc_OSError);
}

PyObject *mpx_raise_message(int status, const char *message, PyObject *filename)
{
    PyObject *error = filename == NULL
                          ? PyObject_CallFunction(PyExc_OSError, "is", -status, message)
                          : PyObject_CallFunction(PyExc_OSError, "isO", -status, message, filename);
    if (error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
    }
    return NULL;
}
