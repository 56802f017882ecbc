/* condition.c - Condition of mproc_ext.synchronize: what waits for a notify.
 *
 * The lock is any object that the standard library's Condition takes; here are the waiters. A wait
 * is enter (with the lock held), sleep, and leave; the lock is released and acquired in between by
 * the caller, which is mproc_ext/synchronize.py.
 */
#include "shared.h"

#include <errno.h>

#include "mpx_condition.h"

static PyObject *raise_status(int status)
{
    if (status == -EPROTO)
        return mpx_raise_message(status, "the list of a condition's waiters is damaged", NULL);
    return mpx_shared_raise(status);
}

PyDoc_STRVAR(Condition_enter_doc, "_enter($self, /)\n--\n\n"
                                  "Begin to wait: a number for _sleep and _leave.");

static PyObject *Condition_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    SharedObject *self = (SharedObject *)object;
    mpx_slot_t node;
    if (!mpx_shared_check(self, "_cond"))
        return NULL;
    int status = mpx_condition_enter(self->arena, self->slot, &node);
    return status < 0 ? mpx_shared_raise(status) : PyLong_FromUnsignedLong(node);
}

PyDoc_STRVAR(Condition_sleep_doc, "_sleep($self, node, timeout, /)\n--\n\n"
                                  "Sleep until notified, or for timeout seconds (None: for ever).");

static PyObject *Condition_sleep(PyObject *object, PyObject *args)
{
    SharedObject *self = (SharedObject *)object;
    unsigned int node;
    PyObject *timeout;
    int64_t deadline = MPX_NEVER;
    int status;
    if (!PyArg_ParseTuple(args, "IO:_sleep", &node, &timeout) || !mpx_shared_check(self, "_cond") ||
        (timeout != Py_None && mpx_wait_deadline_of(timeout, &deadline) < 0) ||
        !mpx_may_wait(deadline))
        return NULL;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS status = mpx_condition_sleep(self->arena, self->slot, node, piece);
        Py_END_ALLOW_THREADS
    } while (mpx_wait_on(&status, deadline));
    if (status == -EINTR)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Condition_leave_doc, "_leave($self, node, /)\n--\n\n"
                                  "End a wait: whether it was notified.");

static PyObject *Condition_leave(PyObject *object, PyObject *argument)
{
    SharedObject *self = (SharedObject *)object;
    unsigned long node = PyLong_AsUnsignedLong(argument);
    if ((node == (unsigned long)-1 && PyErr_Occurred()) || !mpx_shared_check(self, "_cond"))
        return NULL;
    return PyBool_FromLong(mpx_condition_leave(self->arena, self->slot, (mpx_slot_t)node) > 0);
}

PyDoc_STRVAR(Condition_notify_doc, "_notify($self, n, /)\n--\n\n"
                                   "Wake the n that have waited longest.");

static PyObject *Condition_notify(PyObject *object, PyObject *argument)
{
    SharedObject *self = (SharedObject *)object;
    Py_ssize_t count = PyNumber_AsSsize_t(argument, NULL);
    if ((count == -1 && PyErr_Occurred()) || !mpx_shared_check(self, "_cond"))
        return NULL;
    int status = mpx_condition_notify(self->arena, self->slot, count < 0 ? 0 : (size_t)count);
    if (status < 0)
        return raise_status(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Condition_counts_doc,
             "_counts($self, living, /)\n--\n\n"
             "How many wait and how many of them are notified: (waiting, notified).\n\n"
             "living says whether to look first which of them live; it takes system calls.");

static PyObject *Condition_counts(PyObject *object, PyObject *living)
{
    SharedObject *self = (SharedObject *)object;
    mpx_condition_counts_t counts;
    if (!mpx_shared_check(self, "_cond"))
        return NULL;
    int status = living == Py_True ? mpx_condition_count_living(self->arena, self->slot, &counts)
                                   : mpx_condition_count(self->arena, self->slot, &counts);
    if (status < 0)
        return raise_status(status);
    return Py_BuildValue("II", counts.waiting, counts.granted);
}

PyDoc_STRVAR(Condition_make_doc, "_make($self, /)\n--\n\nMake the shared part.");

static PyObject *Condition_make(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_shared_make((SharedObject *)self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Condition_doc, "The waiters of a condition that processes share.");

static PyMethodDef Condition_methods[] = {
    {"_enter", Condition_enter, METH_NOARGS, Condition_enter_doc},
    {"_sleep", Condition_sleep, METH_VARARGS, Condition_sleep_doc},
    {"_leave", Condition_leave, METH_O, Condition_leave_doc},
    {"_notify", Condition_notify, METH_O, Condition_notify_doc},
    {"_counts", Condition_counts, METH_O, Condition_counts_doc},
    {"_make", Condition_make, METH_NOARGS, Condition_make_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Condition_slots[] = {
    {Py_tp_doc, (void *)Condition_doc},
    {Py_tp_methods, Condition_methods},
    {0, NULL},
};

static PyType_Spec Condition_spec = {
    .name = "mproc_ext._core.Condition",
    .basicsize = sizeof(SharedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Condition_slots,
};

int mpx_add_condition(PyObject *module)
{
    mpx_arena_set_undertaker(mpx_condition_undertake);
    return mpx_add_shared_type(module, &Condition_spec);
}
