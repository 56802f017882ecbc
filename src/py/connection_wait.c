/* connection_wait.c - _core.wait: which of many objects with descriptors are ready.
 *
 * As the standard library's wait, on poll: there the interpreter makes a selector, and in it an
 * object for each descriptor; here it is one array. What is wrong with an object, and timeouts of
 * unusual types, are left to the standard library's function.
 */
#include "connection.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>

#include "mpx_os.h"

/* Of one call. */
typedef struct {
    PyObject *module;
    PyObject *objects;     /* a tuple, or NULL */
    struct pollfd *polled; /* without `events`: it is ready, whatever its descriptor says */
    bool has_ready;        /* there is such a one */
} waiting_t;

/* As selectors._fileobj_to_fd; -1 with an exception. */
static int descriptor_of(PyObject *module, PyObject *object)
{
    module_state_t *state = module_state(module);
    if (PyObject_TypeCheck(object, state->connection_type) && mpx_connection_is_plain(object) &&
        mpx_connection_fd(mpx_connection(object)) >= 0) {
        mpx_connection_leave(mpx_connection(object));
        int fd = mpx_connection_fd(mpx_connection(object));
        if (fd < 0) /* another thread has closed it meanwhile */
            PyErr_SetString(PyExc_OSError, "handle is closed");
        return fd;
    }
    PyObject *number = NULL;
    if (PyLong_Check(object)) {
        number = Py_NewRef(object);
    } else {
        number = PyObject_CallMethodNoArgs(object, state->names[MPX_NAME_FILENO]);
        if (number != NULL && !PyLong_Check(number))
            Py_SETREF(number, PyNumber_Long(number));
    }
    int overflow = 0;
    long fd = number == NULL ? -1 : PyLong_AsLongAndOverflow(number, &overflow);
    if (number == NULL) {
        if (PyErr_ExceptionMatches(PyExc_AttributeError) ||
            PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError)) {
            PyErr_Clear();
            PyErr_Format(PyExc_ValueError, "Invalid file object: %R", object);
        }
    } else if (fd < 0 && overflow <= 0) {
        PyErr_Format(PyExc_ValueError, "Invalid file descriptor: %S", number);
    } else if (fd < 0 || fd > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        fd = -1;
    }
    Py_XDECREF(number);
    return (int)fd;
}

/* A connection that could not put into its descriptor what is in its rings, as a process without a
 * free descriptor, and without memory for a thread, cannot. -1 with an exception. */
MPX_COLD static int look_into_rings(waiting_t *waiting, PyObject *object, struct pollfd *polled)
{
    int has = mpx_connection_poll(mpx_connection(object), 0);
    if (has > 0) {
        polled->events = 0;
        waiting->has_ready = true;
    }
    return has < 0 ? -1 : 0;
}

static bool is_in_rings(PyObject *module, PyObject *object)
{
    return PyObject_TypeCheck(object, module_state(module)->connection_type) &&
           mpx_end_is_joined(&mpx_connection(object)->end) && mpx_connection_is_plain(object);
}

static int compare_fds(const void *a, const void *b)
{
    int first = *(const int *)a, second = *(const int *)b;
    return (first > second) - (first < second);
}

/* The standard library's selectors take no descriptor twice. -1 with the exception. */
static int check_for_twins(const waiting_t *waiting, Py_ssize_t count)
{
    int *fds = PyMem_RawMalloc((size_t)count * sizeof(*fds)), twin = -1;
    if (fds == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (Py_ssize_t i = 0; i < count; i++)
        fds[i] = waiting->polled[i].fd;
    qsort(fds, (size_t)count, sizeof(*fds), compare_fds);
    for (Py_ssize_t i = 1; i < count && twin < 0; i++) {
        if (fds[i - 1] == fds[i])
            twin = fds[i];
    }
    PyMem_RawFree(fds);
    if (twin < 0)
        return 0;
    PyObject *second = NULL; /* borrowed: the one that a selector would refuse */
    for (Py_ssize_t i = 0, seen = 0; i < count && second == NULL; i++) {
        if (waiting->polled[i].fd == twin && seen++ > 0)
            second = PyTuple_GET_ITEM(waiting->objects, i);
    }
    PyErr_Format(PyExc_KeyError, "%R (FD %d) is already registered", second, twin);
    return -1;
}

static int note_objects(waiting_t *waiting, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *object = PyTuple_GET_ITEM(waiting->objects, i);
        int fd = descriptor_of(waiting->module, object);
        if (fd < 0)
            return -1;
        waiting->polled[i] = (struct pollfd){.fd = fd, .events = POLLIN};
        if (is_in_rings(waiting->module, object) &&
            look_into_rings(waiting, object, &waiting->polled[i]) < 0)
            return -1;
    }
    return count > 1 ? check_for_twins(waiting, count) : 0;
}

/* How many are ready by the deadline, -1 with an exception. */
static int wait_for_any(const waiting_t *waiting, Py_ssize_t count, int64_t deadline)
{
    int ready = mpx_os_poll(waiting->polled, (size_t)count, 0);
    while (ready == 0 || ready == -EINTR) {
        int status = ready == 0 ? -ETIMEDOUT : -EINTR;
        if (!mpx_wait_on(&status, deadline))
            return status == -EINTR ? -1 : 0;
        int64_t end = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        ready = mpx_os_poll(waiting->polled, (size_t)count, end);
        Py_END_ALLOW_THREADS
    }
    if (ready < 0)
        mpx_raise(ready);
    return ready;
}

static PyObject *ready_objects(const waiting_t *waiting, Py_ssize_t count)
{
    PyObject *ready = PyList_New(0);
    for (Py_ssize_t i = 0; ready != NULL && i < count; i++) {
        if (waiting->polled[i].revents == 0 && waiting->polled[i].events != 0)
            continue;
        if (PyList_Append(ready, PyTuple_GET_ITEM(waiting->objects, i)) < 0)
            Py_CLEAR(ready);
    }
    return ready;
}

static PyObject *wait_for_objects(waiting_t *waiting, int64_t deadline)
{
    Py_ssize_t count = PyTuple_GET_SIZE(waiting->objects);
    waiting->polled = PyMem_RawCalloc((size_t)count + 1, sizeof(*waiting->polled));
    if (waiting->polled == NULL)
        return PyErr_NoMemory();
    if (note_objects(waiting, count) < 0)
        return NULL;
    if (wait_for_any(waiting, count, waiting->has_ready ? 0 : deadline) < 0)
        return NULL;
    return ready_objects(waiting, count);
}

PyDoc_STRVAR(wait_doc,
             "wait(object_list, timeout=None)\n--\n\n"
             "Wait till an object in object_list is ready/readable.\n"
             "\n"
             "Returns list of those objects in object_list which are ready/readable, in their\n"
             "order: connections, sockets, sentinels of processes, and whatever else has a\n"
             "fileno() or is a descriptor.  An empty list after *timeout* seconds (None: it waits\n"
             "without a limit; 0 or less: it does not wait).\n"
             "\n"
             "ValueError: something in the list has no descriptor.  OSError: it is closed.\n"
             "KeyError: two of them have the same descriptor.");

static PyObject *wait_as_stdlib(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *names)
{
    PyObject *dict = module_state(module)->connections;
    PyObject *wait = dict == NULL ? NULL : PyDict_GetItemString(dict, "wait"); /* borrowed */
    if (wait == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "mproc_ext.connection is not imported");
        return NULL;
    }
    return PyObject_Vectorcall(wait, args, (size_t)nargs, names);
}

bool mpx_polls_otherwise(void)
{
    PyObject *select = PyImport_ImportModule("select");
    PyObject *poll = select == NULL ? NULL : PyObject_GetAttrString(select, "poll");
    bool is_another = poll != NULL && !PyCFunction_Check(poll);
    Py_XDECREF(poll);
    Py_XDECREF(select);
    PyErr_Clear();
    return is_another;
}

static PyObject *wait_function(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *names)
{
    static const char *const keywords[] = {"object_list", "timeout", NULL};
    PyObject *values[] = {NULL, Py_None};
    int64_t deadline;
    if (mpx_parse_arguments("O|O:wait", args, nargs, names, keywords, values, 1, 2) < 0 ||
        !mpx_usual_deadline_of(values[1], &deadline)) {
        PyErr_Clear();
        return wait_as_stdlib(module, args, nargs, names); /* which says what is wrong */
    }
    if (deadline > mpx_os_now() && mpx_polls_otherwise())
        return wait_as_stdlib(module, args, nargs, names);
    waiting_t waiting = {.module = module, .objects = PySequence_Tuple(values[0])};
    PyObject *ready = waiting.objects == NULL ? NULL : wait_for_objects(&waiting, deadline);
    PyMem_RawFree(waiting.polled);
    Py_XDECREF(waiting.objects);
    return ready;
}

static PyMethodDef functions[] = {
    {"wait", (PyCFunction)(void (*)(void))wait_function, METH_FASTCALL | METH_KEYWORDS, wait_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_connection_wait(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
