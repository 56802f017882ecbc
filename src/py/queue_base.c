/* queue_base.c - see queue.h; _core.QueueBase. */
#include "queue.h"

#include <structmember.h>

#include "mpx_os.h"

/* ---- Messages -------------------------------------------------------------------------------- */

/* What a status other than 0 means to who puts or gets; `timeout` is the exception at the deadline.
 */
MPX_COLD static PyObject *raise_result(PyObject *self, int status, PyObject *timeout)
{
    if (status == MPX_CHANNEL_TIMEOUT)
        PyErr_SetNone(timeout);
    else if (status == MPX_CHANNEL_SHUT)
        PyErr_SetNone(mpx_queue_state(self)->shut_down_error);
    return NULL;
}

MPX_COLD static PyObject *raise_unsent(PyObject *self, int status, mpx_queue_fault_t *fault)
{
    if (status == MPX_CHANNEL_NO_END)
        *fault = MPX_UNREADABLE;
    return raise_result(self, status, mpx_queue_state(self)->full_error);
}

PyObject *mpx_queue_send(PyObject *self, PyObject *object, int64_t deadline,
                         mpx_queue_fault_t *fault)
{
    module_state_t *state = mpx_queue_state(self);
    mpx_letter_t letter;
    *fault = MPX_NOT_AT_FAULT;
    mpx_letter_begin(&letter, state->module, mpx_queue_channel(self), deadline);
    int status = mpx_dumps(state, &mpx_queue(self)->namespace, object, &letter.buffer,
                           mpx_queue_channel(self)->is_zero_copy);
    if (MPX_UNLIKELY(status < 0)) {
        if (!letter.lacks_memory)
            *fault = MPX_UNPICKLABLE;
        mpx_letter_end(&letter);
        return NULL;
    }
    status = mpx_letter_send(&letter, deadline);
    mpx_letter_end(&letter);
    if (MPX_LIKELY(status == 0))
        return Py_NewRef(Py_None);
    return raise_unsent(self, status, fault);
}

PyObject *mpx_queue_send_message(PyObject *self, PyObject *bytes, int64_t deadline,
                                 mpx_queue_fault_t *fault)
{
    char *data;
    Py_ssize_t size;
    *fault = MPX_NOT_AT_FAULT;
    if (PyBytes_AsStringAndSize(bytes, &data, &size) < 0)
        return NULL;
    int status = mpx_channel_send(mpx_queue_channel(self), data, (size_t)size, deadline);
    return status == 0 ? Py_NewRef(Py_None) : raise_unsent(self, status, fault);
}

static PyObject *read_object(void *context, const char *data, size_t size, mpx_parcel_t *parcel)
{
    PyObject *self = context;
    return mpx_loads(mpx_queue_state(self), &mpx_queue(self)->namespace, data, size, parcel);
}

static bool has_kept(QueueObject *queue)
{
    if (queue->kept == NULL || PyList_GET_SIZE(queue->kept) == 0)
        return false;
    PyObject *answer = PyObject_CallMethod(queue->kept, "is_here", NULL);
    bool has = answer == Py_True;
    Py_XDECREF(answer);
    if (answer == NULL)
        PyErr_WriteUnraisable(queue->kept);
    return has;
}

size_t mpx_queue_count_taken(PyObject *self)
{
    QueueObject *queue = mpx_queue(self);
    size_t count = 0;
    if (MPX_LIKELY(queue->taken == NULL && queue->kept == NULL))
        return 0;
    Py_BEGIN_CRITICAL_SECTION(self);
    if (queue->taken != NULL && queue->taken_by == mpx_os_own_word())
        count = (size_t)PyList_GET_SIZE(queue->taken);
    Py_END_CRITICAL_SECTION();
    return count + has_kept(queue);
}

/* What _reader has taken, where that is not somebody else's; NULL without an exception: nothing. */
MPX_COLD static PyObject *load_kept(PyObject *self)
{
    PyObject *data = PyObject_CallMethod(mpx_queue(self)->kept, "take", NULL), *object = NULL;
    char *bytes;
    Py_ssize_t size;
    if (data != NULL && data != Py_None && PyBytes_AsStringAndSize(data, &bytes, &size) == 0)
        object = mpx_loads(mpx_queue_state(self), &mpx_queue(self)->namespace, bytes, (size_t)size,
                           NULL);
    Py_XDECREF(data);
    return object;
}

/* The first of what this process had taken with a get_many that raised. Forked children have
 * copies, which are dropped. */
MPX_COLD PyObject *mpx_queue_get_taken(PyObject *self)
{
    QueueObject *queue = mpx_queue(self);
    PyObject *object = NULL, *before = NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    Py_ssize_t count = queue->taken == NULL ? 0 : PyList_GET_SIZE(queue->taken);
    if (count > 0 && queue->taken_by == mpx_os_own_word()) {
        object = Py_NewRef(PyList_GET_ITEM(queue->taken, 0));
        if (PyList_SetSlice(queue->taken, 0, 1, NULL) < 0)
            Py_CLEAR(object);
        count--;
    } else {
        count = 0;
    }
    if (count == 0)
        before = mpx_put(&queue->taken, NULL);
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(before);
    return object;
}

/* What this process has taken out of the ring before; NULL without an exception: nothing. */
MPX_COLD static PyObject *get_set_aside(PyObject *self)
{
    QueueObject *queue = mpx_queue(self);
    PyObject *object = queue->taken == NULL ? NULL : mpx_queue_get_taken(self);
    if (object != NULL || PyErr_Occurred() || queue->kept == NULL ||
        PyList_GET_SIZE(queue->kept) == 0)
        return object;
    return load_kept(self);
}

PyObject *mpx_queue_receive(PyObject *self, int64_t deadline)
{
    QueueObject *queue = mpx_queue(self);
    int status;
    do {
        if (MPX_UNLIKELY(queue->taken != NULL || queue->kept != NULL)) {
            PyObject *object = get_set_aside(self);
            if (object != NULL || PyErr_Occurred())
                return object;
        }
        PyObject *object =
            mpx_channel_receive(mpx_queue_channel(self), deadline, read_object, self, &status);
        if (MPX_LIKELY(status == 0))
            return object;
    } while (status == MPX_CHANNEL_LOOK);
    return raise_result(self, status, mpx_queue_state(self)->empty_error);
}

bool mpx_queue_check_reader(PyObject *self)
{
    if (MPX_LIKELY(mpx_queue_channel(self)->ring.bell.reader >= 0))
        return true;
    PyErr_SetString(PyExc_OSError, "handle is closed");
    return false;
}

/* ---- The type -------------------------------------------------------------------------------- */

/* Keeps the channel of an object that is initialised again: a thread may be waiting in it. */
static int keep_former(QueueObject *queue)
{
    if (queue->channel == NULL)
        return 0;
    if (queue->former == NULL)
        queue->former = PyList_New(0);
    return queue->former == NULL ? -1 : PyList_Append(queue->former, queue->channel);
}

PyDoc_STRVAR(QueueBase_hold_doc,
             "_hold($self, channel, is_limited, namespace, /)\n--\n\n"
             "Put and get through that channel, with the _ForkingPickler of a module's dict.");

static PyObject *QueueBase_hold(PyObject *self, PyObject *args)
{
    QueueObject *queue = mpx_queue(self);
    PyObject *object, *namespace;
    int is_limited;
    if (!PyArg_ParseTuple(args, "OpO!:_hold", &object, &is_limited, &PyDict_Type, &namespace) ||
        mpx_channel_of(queue->module, object) == NULL || keep_former(queue) < 0)
        return NULL;
    queue->is_limited = (char)is_limited;
    PyObject *before = mpx_put(&queue->namespace.dict, Py_NewRef(namespace));
    Py_XDECREF(before);
    before = mpx_put(&queue->channel, Py_NewRef(object));
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(QueueBase_share_doc, "_share($self, kept, /)\n--\n\n"
                                  "Share a list with _reader, which has a method take().");

static PyObject *QueueBase_share(PyObject *self, PyObject *kept)
{
    if (!PyList_Check(kept)) {
        PyErr_SetString(PyExc_TypeError, "a list is needed");
        return NULL;
    }
    PyObject *before = mpx_put(&mpx_queue(self)->kept, Py_NewRef(kept));
    Py_XDECREF(before);
    Py_RETURN_NONE;
}

static PyObject *QueueBase_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                               PyObject *Py_UNUSED(names))
{
    PyObject *self = type->tp_alloc(type, 0);
    PyObject *module = PyType_GetModuleByDef(type, &mpx_core_module);
    if (self != NULL)
        mpx_queue(self)->module = Py_XNewRef(module);
    if (self != NULL && module == NULL)
        Py_CLEAR(self);
    if (self != NULL)
        mpx_queue(self)->state = module_state(module);
    return self;
}

static int QueueBase_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(mpx_queue(self)->channel);
    Py_VISIT(mpx_queue(self)->namespace.dict);
    Py_VISIT(mpx_queue(self)->former);
    Py_VISIT(mpx_queue(self)->taken);
    Py_VISIT(mpx_queue(self)->kept);
    Py_VISIT(mpx_queue(self)->maxsize);
    Py_VISIT(mpx_queue(self)->opid);
    Py_VISIT(mpx_queue(self)->module);
    return 0;
}

/* What an exception's traceback may hold is this object. The rest leads nowhere, and is in use. */
static int QueueBase_clear(PyObject *self)
{
    Py_CLEAR(mpx_queue(self)->taken);
    return 0;
}

static void QueueBase_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(mpx_queue(self)->channel);
    Py_CLEAR(mpx_queue(self)->namespace.dict);
    Py_CLEAR(mpx_queue(self)->former);
    Py_CLEAR(mpx_queue(self)->taken);
    Py_CLEAR(mpx_queue(self)->kept);
    Py_CLEAR(mpx_queue(self)->maxsize);
    Py_CLEAR(mpx_queue(self)->opid);
    Py_CLEAR(mpx_queue(self)->module);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(QueueBase_doc, "Base of queues of objects through a channel.");

static PyMethodDef QueueBase_methods[] = {
    {"_hold", QueueBase_hold, METH_VARARGS, QueueBase_hold_doc},
    {"_share", QueueBase_share, METH_O, QueueBase_share_doc},
    {NULL, NULL, 0, NULL},
};

/* The interpreter finds methods soonest of an object whose dict has not been made: what all queues
 * have lies here. */
static PyMemberDef QueueBase_members[] = {
    {"_maxsize", T_OBJECT_EX, offsetof(QueueObject, maxsize), 0, "as the standard library's"},
    {"_opid", T_OBJECT_EX, offsetof(QueueObject, opid), 0, "as the standard library's"},
    {"_channel", T_OBJECT, offsetof(QueueObject, channel), READONLY,
     "None where the standard library's code is to be used"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot QueueBase_slots[] = {
    {Py_tp_doc, (void *)QueueBase_doc},   {Py_tp_new, QueueBase_new},
    {Py_tp_traverse, QueueBase_traverse}, {Py_tp_dealloc, QueueBase_dealloc},
    {Py_tp_clear, QueueBase_clear},       {Py_tp_methods, QueueBase_methods},
    {Py_tp_members, QueueBase_members},   {0, NULL},
};

static PyType_Spec QueueBase_spec = {
    .name = "mproc_ext._core.QueueBase",
    .basicsize = sizeof(QueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = QueueBase_slots,
};

int mpx_add_queue_type(PyObject *module, PyType_Spec *spec, PyTypeObject **type)
{
    *type = (PyTypeObject *)PyType_FromModuleAndSpec(
        module, spec, (PyObject *)module_state(module)->queue_base_type);
    return *type == NULL ? -1 : PyModule_AddType(module, *type);
}

PyDoc_STRVAR(serve_queues_doc, "serve_queues(empty, full, shut_down, /)\n--\n\n"
                               "Tell the types of queues the exceptions to raise.");

static PyObject *serve_queues(PyObject *module, PyObject *args)
{
    module_state_t *state = module_state(module);
    PyObject *empty, *full, *shut_down;
    if (!PyArg_ParseTuple(args, "OOO:serve_queues", &empty, &full, &shut_down))
        return NULL;
    mpx_state_set(module, &state->empty_error, empty);
    mpx_state_set(module, &state->full_error, full);
    mpx_state_set(module, &state->shut_down_error, shut_down);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"serve_queues", serve_queues, METH_VARARGS, serve_queues_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_queue_base(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->queue_base_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &QueueBase_spec, NULL);
    if (state->queue_base_type == NULL || PyModule_AddType(module, state->queue_base_type) < 0)
        return -1;
    if (PyModule_AddIntConstant(module, "FIRST_TAG", MPX_TAG_FIRST) < 0 ||
        PyModule_AddIntConstant(module, "RAW_TAG", MPX_TAG_RAW) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
