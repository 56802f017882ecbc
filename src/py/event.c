/* event.c - Event of mproc_ext.synchronize: a flag in a slot of shared memory. */
#include "shared.h"

#include <errno.h>

#include "mpx_event.h"

static mpx_event_t *event_of(PyObject *self)
{
    return mpx_shared_check((SharedObject *)self, "_cond") ? mpx_shared_room((SharedObject *)self)
                                                           : NULL;
}

PyDoc_STRVAR(Event_is_set_doc, "is_set($self)\n--\n\n"
                               "Whether the event is set.");

static PyObject *Event_is_set(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    mpx_event_t *event = event_of(self);
    return event == NULL ? NULL : PyBool_FromLong(mpx_event_is_set(event));
}

PyDoc_STRVAR(Event_set_doc, "set($self)\n--\n\n"
                            "Set the event, and wake all who wait for it.");

static PyObject *Event_set(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    mpx_event_t *event = event_of(self);
    if (event == NULL)
        return NULL;
    mpx_event_set(event);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Event_clear_doc, "clear($self)\n--\n\n"
                              "Make the event one that is not set: who waits from now on waits "
                              "for the next set().");

static PyObject *Event_clear(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    mpx_event_t *event = event_of(self);
    if (event == NULL)
        return NULL;
    mpx_event_clear(event);
    Py_RETURN_NONE;
}

static int wait_for(mpx_event_t *event, int64_t deadline)
{
    mpx_event_wait_t wait = mpx_event_begin(event);
    int status;
    if (!mpx_may_wait(deadline))
        return -EINTR;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_event_wait(event, wait, piece);
        Py_END_ALLOW_THREADS
    } while (mpx_wait_on(&status, deadline));
    return status;
}

PyDoc_STRVAR(
    Event_wait_doc,
    "wait($self, timeout=None)\n--\n\n"
    "Wait until the event is set: True, or False after timeout seconds (None: for ever).\n\n"
    "True also where it was set during the wait and cleared at once.  Signal handlers run during\n"
    "the wait.");

static PyObject *Event_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *names)
{
    static const char *const keywords[] = {"timeout", NULL};
    PyObject *values[2] = {Py_None, NULL};
    int64_t deadline = MPX_NEVER;
    if (mpx_parse_optional("|O:wait", args, nargs, names, keywords, values, 1) < 0)
        return NULL;
    mpx_event_t *event = event_of(self);
    if (event == NULL)
        return NULL;
    if (mpx_event_is_set(event))
        Py_RETURN_TRUE;
    if (values[0] != Py_None && mpx_wait_deadline_of(values[0], &deadline) < 0)
        return NULL;
    int status = wait_for(event, deadline);
    return status == -EINTR ? NULL : PyBool_FromLong(status == 0);
}

PyDoc_STRVAR(Event_make_doc, "_make($self)\n--\n\nMake the shared part.");

static PyObject *Event_make(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_shared_make((SharedObject *)self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Event_doc, "A flag that processes share; the base of the one in synchronize.");

static PyMethodDef Event_methods[] = {
    {"is_set", Event_is_set, METH_NOARGS, Event_is_set_doc},
    {"set", Event_set, METH_NOARGS, Event_set_doc},
    {"clear", Event_clear, METH_NOARGS, Event_clear_doc},
    {"wait", (PyCFunction)(void (*)(void))Event_wait, METH_FASTCALL | METH_KEYWORDS,
     Event_wait_doc},
    {"_make", Event_make, METH_NOARGS, Event_make_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Event_slots[] = {
    {Py_tp_doc, (void *)Event_doc},
    {Py_tp_methods, Event_methods},
    {0, NULL},
};

static PyType_Spec Event_spec = {
    .name = "mproc_ext._core.Event",
    .basicsize = sizeof(SharedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Event_slots,
};

int mpx_add_event(PyObject *module)
{
    return mpx_add_shared_type(module, &Event_spec);
}
