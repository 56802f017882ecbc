/* queue.c - Queue of mproc_ext.queues: objects through a channel, with a limit and timeouts.
 *
 * An object is pickled at once, in the thread that puts it.
 */
#include "queue.h"

/* A queue is closed for the process that did so: a child that it forks has an open one. */
static bool is_closed(PyObject *self)
{
    return mpx_queue(self)->closed_by != 0 && mpx_queue(self)->closed_by == mpx_os_own_word();
}

static bool check_open(PyObject *self)
{
    if (MPX_LIKELY(!is_closed(self)))
        return true;
    PyErr_Format(PyExc_ValueError, "Queue %R is closed", self);
    return false;
}

/* ---- put ------------------------------------------------------------------------------------- */

/* What the standard library's feeder thread does with an object that cannot be pickled, while the
 * exception is being handled. */
static PyObject *report(PyObject *self, PyObject *object)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *before = PyErr_GetHandledException();
    PyErr_SetHandledException(error);
    PyObject *result = PyObject_CallMethod(self, "_on_unpicklable", "OO", error, object);
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return result;
}

static PyObject *send_or_report(PyObject *self, PyObject *object, int64_t deadline)
{
    bool is_unpicklable;
    PyObject *result = mpx_queue_send(self, object, deadline, &is_unpicklable);
    if (MPX_UNLIKELY(is_unpicklable) && PyErr_ExceptionMatches(PyExc_Exception))
        return report(self, object);
    return result;
}

/* A queue that is full says so before it looks at the object. */
static bool is_full_now(PyObject *self)
{
    mpx_ring_t *ring = &mpx_queue_channel(self)->ring;
    return mpx_queue(self)->is_limited && mpx_ring_is_full(ring);
}

static PyObject *put(PyObject *self, PyObject *object, bool blocks, PyObject *timeout)
{
    int64_t deadline = MPX_NEVER;
    if (timeout != Py_None && mpx_wait_deadline_of(timeout, &deadline) < 0)
        return NULL;
    if (!blocks)
        deadline = MPX_CHANNEL_NOW;
    if (!blocks && is_full_now(self)) {
        PyErr_SetNone(mpx_queue_state(self)->full_error);
        return NULL;
    }
    return send_or_report(self, object, deadline);
}

PyDoc_STRVAR(Queue_put_doc,
             "put($self, obj, block=True, timeout=None)\n--\n\n"
             "Put an object, pickled now; it may be changed right after.\n\n"
             "Where the queue is full, wait for room: at most timeout seconds (None: for ever), or "
             "not at all\nwithout block; then raise queue.Full.  ValueError: the queue is closed.  "
             "An object that cannot be\npickled is reported by _on_queue_feeder_error, which "
             "prints a traceback, and dropped.");

static PyObject *Queue_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const char *const keywords[] = {"obj", "block", "timeout", NULL};
    PyObject *values[3] = {NULL, Py_True, Py_None};
    bool blocks;
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "put", args, nargs, names);
    if (mpx_parse_arguments("O|OO:put", args, nargs, names, keywords, values, 1, 3) < 0 ||
        !check_open(self) || mpx_flag_of(values[1], &blocks) < 0)
        return NULL;
    return put(self, values[0], blocks, values[2]);
}

PyDoc_STRVAR(Queue_put_nowait_doc, "put_nowait($self, obj)\n--\n\nput(obj, False).");

static PyObject *Queue_put_nowait(PyObject *self, PyObject *object)
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "put_nowait", &object, 1,
                               NULL);
    return check_open(self) ? put(self, object, false, Py_None) : NULL;
}

/* ---- get ------------------------------------------------------------------------------------- */

/* The standard library adds the timeout to the time, and so takes what can be added. */
static int get_deadline_of(PyObject *timeout, int64_t *deadline)
{
    if (PyFloat_Check(timeout) || PyLong_Check(timeout))
        return mpx_wait_deadline_of(timeout, deadline);
    PyObject *now = PyFloat_FromDouble((double)mpx_os_now() / (double)MPX_NANOS_PER_SEC);
    PyObject *end = now == NULL ? NULL : PyNumber_Add(now, timeout);
    PyObject *rest = end == NULL ? NULL : PyNumber_Subtract(end, now);
    int status = rest == NULL ? -1 : mpx_wait_deadline_of(rest, deadline);
    Py_XDECREF(now);
    Py_XDECREF(end);
    Py_XDECREF(rest);
    return status;
}

PyDoc_STRVAR(Queue_get_doc,
             "get($self, block=True, timeout=None)\n--\n\n"
             "Take the oldest object.\n\n"
             "Where there is none, wait for one: at most timeout seconds (None: for ever), or not "
             "at all without\nblock; then raise queue.Empty.  ValueError: the queue is closed.  "
             "An exception that unpickling\nraises comes out here, and the object is gone.");

static PyObject *Queue_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const char *const keywords[] = {"block", "timeout", NULL};
    PyObject *values[2] = {Py_True, Py_None};
    int64_t deadline = MPX_NEVER;
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "get", args, nargs, names);
    if (mpx_parse_optional("|OO:get", args, nargs, names, keywords, values, 2) < 0 ||
        !check_open(self))
        return NULL;
    int blocks = PyObject_IsTrue(values[0]);
    if (blocks < 0 || (blocks && values[1] != Py_None && get_deadline_of(values[1], &deadline) < 0))
        return NULL;
    return mpx_queue_receive(self, blocks ? deadline : MPX_CHANNEL_NOW);
}

PyDoc_STRVAR(Queue_get_nowait_doc, "get_nowait($self)\n--\n\nget(False).");

static PyObject *Queue_get_nowait(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "get_nowait", NULL, 0,
                               NULL);
    return check_open(self) ? mpx_queue_receive(self, MPX_CHANNEL_NOW) : NULL;
}

/* ---- Looking --------------------------------------------------------------------------------- */

PyDoc_STRVAR(Queue_qsize_doc, "qsize($self)\n--\n\nHow many objects there are: exact, now.");

static PyObject *Queue_qsize(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "qsize", NULL, 0, NULL);
    return PyLong_FromUnsignedLong(mpx_ring_count(&mpx_queue_channel(self)->ring));
}

PyDoc_STRVAR(Queue_empty_doc, "empty($self)\n--\n\nWhether there is no object: exact, now.");

static PyObject *Queue_empty(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "empty", NULL, 0, NULL);
    if (!mpx_queue_check_reader(self))
        return NULL;
    return PyBool_FromLong(mpx_ring_count(&mpx_queue_channel(self)->ring) == 0);
}

PyDoc_STRVAR(Queue_full_doc, "full($self)\n--\n\nWhether there is no room: exact, now.");

static PyObject *Queue_full(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_queue_super(self, mpx_queue_state(self)->queue_type, "full", NULL, 0, NULL);
    return PyBool_FromLong(mpx_ring_is_full(&mpx_queue_channel(self)->ring));
}

/* ---- The type -------------------------------------------------------------------------------- */

PyDoc_STRVAR(Queue_doc, "Objects through a ring in shared memory; the base of those in queues.");

#define WITH_NAMES(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef Queue_methods[] = {
    {"put", WITH_NAMES(Queue_put), METH_FASTCALL | METH_KEYWORDS, Queue_put_doc},
    {"put_nowait", Queue_put_nowait, METH_O, Queue_put_nowait_doc},
    {"get", WITH_NAMES(Queue_get), METH_FASTCALL | METH_KEYWORDS, Queue_get_doc},
    {"get_nowait", Queue_get_nowait, METH_NOARGS, Queue_get_nowait_doc},
    {"qsize", Queue_qsize, METH_NOARGS, Queue_qsize_doc},
    {"empty", Queue_empty, METH_NOARGS, Queue_empty_doc},
    {"full", Queue_full, METH_NOARGS, Queue_full_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_closed(self));
}

static int set_closed(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int closed = value == NULL ? 0 : PyObject_IsTrue(value);
    if (closed < 0)
        return -1;
    mpx_queue(self)->closed_by = closed ? mpx_os_own_word() : 0;
    return 0;
}

static PyGetSetDef Queue_properties[] = {
    {"_closed", get_closed, set_closed, "closed in this process", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Queue_slots[] = {
    {Py_tp_doc, (void *)Queue_doc},
    {Py_tp_methods, Queue_methods},
    {Py_tp_getset, Queue_properties},
    {0, NULL},
};

static PyType_Spec Queue_spec = {
    .name = "mproc_ext._core.Queue",
    .basicsize = sizeof(QueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Queue_slots,
};

int mpx_add_queue(PyObject *module)
{
    return mpx_add_queue_type(module, &Queue_spec, &module_state(module)->queue_type);
}
