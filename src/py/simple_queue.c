/* simple_queue.c - SimpleQueue of mproc_ext.queues: objects through a channel, and nothing else. */
#include "queue.h"

static PyObject *super(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs,
                       PyObject *names)
{
    PyTypeObject *type = mpx_queue_state(self)->simple_queue_type;
    return mpx_super(self, type, name, args, nargs, names);
}

PyDoc_STRVAR(SimpleQueue_put_doc,
             "put($self, obj)\n--\n\n"
             "Put an object into the queue.\n"
             "\n"
             "It is pickled now, and may be changed right after.  It never waits for room.\n"
             "When it returns the object is in the queue: it is lost neither by the end nor by\n"
             "the death of this process.\n"
             "\n"
             "An object that cannot be pickled raises here what pickle says of it.\n"
             "OSError: this process has closed the queue.\n"
             "BrokenPipeError: so has everyone who could read.\n"
             "MemoryError, OSError: there is no memory for it; the queue is as before.");

static PyObject *SimpleQueue_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *names)
{
    static const char *const keywords[] = {"obj", NULL};
    PyObject *object;
    mpx_queue_fault_t fault;
    if (mpx_queue(self)->channel == NULL)
        return super(self, "put", args, nargs, names);
    if (MPX_LIKELY(nargs == 1 && names == NULL))
        return mpx_queue_send(self, args[0], MPX_NEVER, &fault);
    if (mpx_parse_arguments("O:put", args, nargs, names, keywords, &object, 1, 1) < 0) {
        PyErr_Clear();
        return super(self, "put", args, nargs, names); /* which says what is wrong */
    }
    return mpx_queue_send(self, object, MPX_NEVER, &fault);
}

PyDoc_STRVAR(SimpleQueue_get_doc,
             "get($self)\n--\n\n"
             "Take the oldest object out of the queue; wait for one where there is none.\n"
             "\n"
             "OSError: this process has closed the queue.\n"
             "EOFError: the queue is empty, and there is no process that could put something.\n"
             "An exception that unpickling raises comes out here, and the object is gone.");

static PyObject *SimpleQueue_get(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return super(self, "get", NULL, 0, NULL);
    return mpx_queue_receive(self, MPX_NEVER);
}

PyDoc_STRVAR(SimpleQueue_empty_doc, "empty($self)\n--\n\n"
                                    "Whether there is no object in the queue: exact, now.\n"
                                    "\n"
                                    "OSError: this process has closed the queue.");

static PyObject *SimpleQueue_empty(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return super(self, "empty", NULL, 0, NULL);
    if (!mpx_queue_check_reader(self))
        return NULL;
    return PyBool_FromLong(mpx_queue_is_empty(self));
}

PyDoc_STRVAR(SimpleQueue_doc, "Objects through a channel; the base of the one in queues.");

static PyMethodDef SimpleQueue_methods[] = {
    {"put", (PyCFunction)(void (*)(void))SimpleQueue_put, METH_FASTCALL | METH_KEYWORDS,
     SimpleQueue_put_doc},
    {"get", SimpleQueue_get, METH_NOARGS, SimpleQueue_get_doc},
    {"empty", SimpleQueue_empty, METH_NOARGS, SimpleQueue_empty_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot SimpleQueue_slots[] = {
    {Py_tp_doc, (void *)SimpleQueue_doc},
    {Py_tp_methods, SimpleQueue_methods},
    {0, NULL},
};

static PyType_Spec SimpleQueue_spec = {
    .name = "mproc_ext._core.SimpleQueue",
    .basicsize = sizeof(QueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = SimpleQueue_slots,
};

int mpx_add_simple_queue(PyObject *module)
{
    return mpx_add_queue_type(module, &SimpleQueue_spec, &module_state(module)->simple_queue_type);
}
