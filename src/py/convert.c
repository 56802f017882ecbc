/* convert.c - from Python's arguments to what the core takes. */
#include "module.h"

#include <math.h>
#include <stdbool.h>

#include "mpx_os.h"

/* A negative time is over at once; what lies beyond the end of the clock never comes. */
static int64_t deadline_after(double seconds)
{
    double nanos = ceil(seconds * (double)MPX_NANOS_PER_SEC);
    return nanos >= (double)INT64_MAX ? MPX_NEVER : mpx_os_deadline(nanos > 0 ? (int64_t)nanos : 0);
}

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
    *deadline = deadline_after(seconds);
    return 0;
}

bool mpx_usual_deadline_of(PyObject *timeout, int64_t *deadline)
{
    if (timeout != Py_None) {
        if (!PyFloat_CheckExact(timeout) && !PyLong_CheckExact(timeout))
            return false;
        double seconds = PyFloat_AsDouble(timeout);
        if (!(seconds > -1e9 && seconds < 1e6)) {
            PyErr_Clear();
            return false;
        }
    }
    return mpx_deadline_of(timeout, deadline) == 0;
}

int mpx_wait_deadline_of(PyObject *timeout, int64_t *deadline)
{
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -1;
    bool is_valid = !isnan(seconds) && seconds < 0x1p63;
    *deadline = is_valid ? deadline_after(seconds) : MPX_NO_DEADLINE;
    return 0;
}

int mpx_flag_of(PyObject *object, bool *flag)
{
    if (object == Py_True || object == Py_False) {
        *flag = object == Py_True;
        return 0;
    }
#if PY_VERSION_HEX >= 0x030C0000
    int value = PyObject_IsTrue(object);
#else
    int value = _PyLong_AsInt(object);
#endif
    if (value == -1 && PyErr_Occurred())
        return -1;
    *flag = value != 0;
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

/* The slow way, for errors: the interpreter's own parser. */
static int parse_by_tuple(const char *format, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *names, const char *const *keywords, PyObject **values)
{
    PyObject *rest[3] = {NULL, NULL, NULL};
    PyObject *keyword_args = PyDict_New(), *positional = PyTuple_New(nargs);
    int status = keyword_args == NULL || positional == NULL ? -1 : 0;
    for (Py_ssize_t i = 0; status == 0 && i < nargs; i++)
        PyTuple_SET_ITEM(positional, i, Py_NewRef(args[i]));
    for (Py_ssize_t i = 0; status == 0 && names != NULL && i < PyTuple_GET_SIZE(names); i++)
        status = PyDict_SetItem(keyword_args, PyTuple_GET_ITEM(names, i), args[nargs + i]);
    if (status == 0 &&
        !PyArg_ParseTupleAndKeywords(positional, keyword_args, format, (char **)keywords, &rest[0],
                                     &rest[1], &rest[2]))
        status = -1;
    for (int i = 0; status == 0 && i < 3; i++) {
        if (rest[i] != NULL)
            values[i] = rest[i]; /* the caller's arguments keep it alive */
    }
    Py_XDECREF(keyword_args);
    Py_XDECREF(positional);
    return status;
}

static bool is_called(PyObject *name, const char *keyword)
{
    return PyUnicode_CompareWithASCIIString(name, keyword) == 0;
}

int mpx_parse_optional(const char *format, PyObject *const *args, Py_ssize_t nargs, PyObject *names,
                       const char *const *keywords, PyObject **values, Py_ssize_t count)
{
    return mpx_parse_arguments(format, args, nargs, names, keywords, values, 0, count);
}

int mpx_parse_arguments(const char *format, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *names, const char *const *keywords, PyObject **values,
                        Py_ssize_t required, Py_ssize_t count)
{
    PyObject *given[3] = {NULL, NULL, NULL};
    Py_ssize_t named = names == NULL ? 0 : PyTuple_GET_SIZE(names);
    bool fits = nargs <= count && count <= 3;
    for (Py_ssize_t i = 0; fits && i < nargs; i++)
        given[i] = args[i];
    for (Py_ssize_t i = 0; fits && i < named; i++) {
        Py_ssize_t at = 0;
        while (at < count && !is_called(PyTuple_GET_ITEM(names, i), keywords[at]))
            at++;
        fits = at < count && given[at] == NULL;
        if (fits)
            given[at] = args[nargs + i];
    }
    for (Py_ssize_t i = 0; fits && i < required; i++)
        fits = given[i] != NULL;
    if (MPX_UNLIKELY(!fits))
        return parse_by_tuple(format, args, nargs, names, keywords, values);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (given[i] != NULL)
            values[i] = given[i];
    }
    return 0;
}
