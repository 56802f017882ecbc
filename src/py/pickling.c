/* pickling.c - C picklers that are kept: to set one up costs more than to pickle a small object.
 *
 * A pickler here does what multiprocessing.reduction.ForkingPickler.dumps does: the interpreter's
 * own pickler, of the default protocol, whose dispatch table is a copy, made when an object is
 * begun, of copyreg's and of what ForkingPickler.register was called with.  The copy is kept while
 * both are what they were.
 *
 * A thread takes a pickler out of the module's state and puts it back: what is pickled may run
 * Python code, that may come back here or let other threads run, and they find another one.  It is
 * put back with nothing remembered, its memo cleared; what that costs grows with the largest object
 * it ever pickled, so the pickler itself is made anew after a large one.
 */
#include "apart.h"

#define LARGE ((size_t)2 << 10)

/* A pickler, and the file that it writes to. */
typedef struct {
    PyObject_HEAD PyObject *pickler; /* or NULL */
    PyObject *table;                 /* its dispatch table, or NULL */
    PyObject *copied;  /* the tables' keys and values when they were copied: a tuple, or NULL */
    mpx_buffer_t *out; /* while an object is pickled */
    PyObject *apart;   /* and a list for its large buffers; or NULL */
    bool takes_apart;  /* such pickles: by protocol 5 */
} PicklingObject;

static int Pickling_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((PicklingObject *)self)->pickler);
    Py_VISIT(((PicklingObject *)self)->table);
    Py_VISIT(((PicklingObject *)self)->copied);
    Py_VISIT(((PicklingObject *)self)->apart);
    return 0;
}

static int Pickling_clear(PyObject *self)
{
    Py_CLEAR(((PicklingObject *)self)->pickler);
    Py_CLEAR(((PicklingObject *)self)->table);
    Py_CLEAR(((PicklingObject *)self)->copied);
    Py_CLEAR(((PicklingObject *)self)->apart);
    return 0;
}

static void Pickling_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Pickling_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *write_other(mpx_buffer_t *out, PyObject *data)
{
    Py_buffer view;
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0)
        return NULL;
    int status = mpx_buffer_settle(out);
    if (status == 0)
        status = mpx_buffer_append(out, view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *Pickling_write(PyObject *self, PyObject *data)
{
    mpx_buffer_t *out = ((PicklingObject *)self)->out;
    if (out == NULL) {
        PyErr_SetString(PyExc_ValueError, "nothing is being pickled");
        return NULL;
    }
    if (!PyBytes_CheckExact(data))
        return write_other(out, data);
    if (mpx_buffer_settle(out) < 0 ||
        mpx_buffer_append(out, PyBytes_AS_STRING(data), (size_t)PyBytes_GET_SIZE(data)) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Pickling_write_doc, "write($self, data, /)\n--\n\nAppend to the message.");

/* What Pickler asks of each buffer: whether it is to be in the pickle. */
static PyObject *Pickling_keep(PyObject *self, PyObject *buffer)
{
    PyObject *apart = ((PicklingObject *)self)->apart;
    const Py_buffer *view = PyPickleBuffer_GetBuffer(buffer);
    if (view == NULL)
        return NULL;
    if (apart == NULL || view->len < MPX_APART_LEAST)
        Py_RETURN_TRUE;
    return PyList_Append(apart, buffer) < 0 ? NULL : Py_NewRef(Py_False);
}

PyDoc_STRVAR(Pickling_keep_doc, "keep($self, buffer, /)\n--\n\n"
                                "Keep a large buffer to be sent beside the pickle: False.");

static PyMethodDef Pickling_methods[] = {
    {"keep", Pickling_keep, METH_O, Pickling_keep_doc},
    {"write", Pickling_write, METH_O, Pickling_write_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Pickling_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("A pickler, and what it writes to.")},
    {Py_tp_methods, Pickling_methods},
    {Py_tp_traverse, Pickling_traverse},
    {Py_tp_clear, Pickling_clear},
    {Py_tp_dealloc, Pickling_dealloc},
    {0, NULL},
};

static PyType_Spec Pickling_spec = {
    .name = "mproc_ext._core.Pickling",
    .basicsize = sizeof(PicklingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE |
             Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Pickling_slots,
};

/* ---- The dispatch table ------------------------------------------------------------------- */

/* Whether the dict has the keys and values of the tuple from *at on, in their order. */
static bool is_as_copied(PyObject *dict, PyObject *copied, Py_ssize_t *at)
{
    bool same = true;
    Py_BEGIN_CRITICAL_SECTION(dict);
    Py_ssize_t position = 0, i = *at, size = PyTuple_GET_SIZE(copied);
    PyObject *key, *value;
    while (same && PyDict_Next(dict, &position, &key, &value)) {
        same = i < size && PyTuple_GET_ITEM(copied, i) == key &&
               PyTuple_GET_ITEM(copied, i + 1) == value;
        i += 2;
    }
    *at = i;
    Py_END_CRITICAL_SECTION();
    return same;
}

static bool is_current(PyObject *copied, PyObject *tables)
{
    Py_ssize_t at = 0;
    return copied != NULL && is_as_copied(PyTuple_GET_ITEM(tables, 0), copied, &at) &&
           is_as_copied(PyTuple_GET_ITEM(tables, 1), copied, &at) && at == PyTuple_GET_SIZE(copied);
}

/* Adds a copy of a dict to the list of keys and values, and to the table. */
static int copy_table(PyObject *dict, PyObject *list, PyObject *table)
{
    PyObject *copy = PyDict_Copy(dict);
    int status = copy == NULL ? -1 : 0;
    Py_ssize_t position = 0;
    PyObject *key, *value;
    while (status == 0 && PyDict_Next(copy, &position, &key, &value)) {
        if (PyList_Append(list, key) < 0 || PyList_Append(list, value) < 0)
            status = -1;
    }
    if (status == 0)
        status = PyDict_Update(table, copy);
    Py_XDECREF(copy);
    return status;
}

static int set_table(PicklingObject *self, PyObject *tables)
{
    PyObject *list = PyList_New(0), *table = PyDict_New(), *copied = NULL;
    if (list != NULL && table != NULL &&
        copy_table(PyTuple_GET_ITEM(tables, 0), list, table) == 0 &&
        copy_table(PyTuple_GET_ITEM(tables, 1), list, table) == 0)
        copied = PyList_AsTuple(list);
    Py_XDECREF(list);
    if (copied == NULL) {
        Py_XDECREF(table);
        return -1;
    }
    Py_CLEAR(self->pickler); /* which has the former one */
    Py_XSETREF(self->table, table);
    Py_XSETREF(self->copied, copied);
    return 0;
}

/* ---- Taking and putting back -------------------------------------------------------------- */

static PyObject *new_for_buffers(PyObject *type, PyObject *self)
{
    PyObject *keep = PyObject_GetAttrString(self, "keep");
    PyObject *args = keep == NULL ? NULL : Py_BuildValue("(Oi)", self, 5);
    PyObject *names = args == NULL ? NULL : Py_BuildValue("{s:O}", "buffer_callback", keep);
    PyObject *pickler = names == NULL ? NULL : PyObject_Call(type, args, names);
    Py_XDECREF(names);
    Py_XDECREF(args);
    Py_XDECREF(keep);
    return pickler;
}

static int set_pickler(PyObject *module, PicklingObject *self)
{
    module_state_t *state = module_state(module);
    PyObject *type = mpx_from_pickle(module, &state->pickle_pickler, MPX_NAME_PICKLER);
    PyObject *pickler = type == NULL        ? NULL
                        : self->takes_apart ? new_for_buffers(type, (PyObject *)self)
                                            : PyObject_CallOneArg(type, (PyObject *)self);
    Py_XDECREF(type);
    if (pickler != NULL &&
        PyObject_SetAttr(pickler, state->names[MPX_NAME_DISPATCH_TABLE], self->table) < 0)
        Py_CLEAR(pickler);
    self->pickler = pickler;
    return pickler == NULL ? -1 : 0;
}

static PicklingObject *take_pickling(PyObject *module, bool takes_apart)
{
    module_state_t *state = module_state(module);
    PicklingObject *self = NULL;
    for (int i = 0; i < MPX_PICKLINGS && self == NULL; i++)
        self = mpx_swap(&state->picklings[takes_apart][i], NULL);
    if (self == NULL)
        self = (PicklingObject *)state->pickling_type->tp_alloc(state->pickling_type, 0);
    if (self != NULL)
        self->takes_apart = takes_apart;
    return self;
}

/* The two refer to each other. */
static void drop_pickling(PicklingObject *self)
{
    Py_CLEAR(self->pickler);
    Py_DECREF(self);
}

static void put_back_pickling(PyObject *module, PicklingObject *self)
{
    module_state_t *state = module_state(module);
    void **row = state->picklings[self->takes_apart];
    for (int i = 0; i < MPX_PICKLINGS && self != NULL; i++)
        self = mpx_swap(&row[i], self);
    if (self != NULL)
        drop_pickling(self);
}

static int dump(module_state_t *state, PicklingObject *self, PyObject *object)
{
    PyObject *args[] = {self->pickler, object};
    PyObject *result = PyObject_VectorcallMethod(state->names[MPX_NAME_DUMP], args, 2, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* Drops what the pickler has seen, which may run anything. */
static int forget(module_state_t *state, PicklingObject *self)
{
    PyObject *args[] = {self->pickler};
    PyObject *result = PyObject_VectorcallMethod(state->names[MPX_NAME_CLEAR_MEMO], args, 1, NULL);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

int mpx_pickle(PyObject *module, PyObject *tables, PyObject *object, mpx_buffer_t *out,
               PyObject *apart)
{
    module_state_t *state = module_state(module);
    PicklingObject *self = take_pickling(module, apart != NULL);
    if (self == NULL)
        return -1;
    if ((!is_current(self->copied, tables) && set_table(self, tables) < 0) ||
        (self->pickler == NULL && set_pickler(module, self) < 0)) {
        drop_pickling(self);
        return -1;
    }
    size_t before = out->size;
    self->out = out;
    self->apart = Py_XNewRef(apart);
    int status = dump(state, self, object);
    self->out = NULL;
    Py_CLEAR(self->apart);
    if (status == 0 && out->size - before > LARGE)
        Py_CLEAR(self->pickler);
    else if (status == 0)
        status = forget(state, self);
    if (status == 0)
        put_back_pickling(module, self);
    else
        drop_pickling(self);
    return status;
}

int mpx_add_pickling(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->pickling_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Pickling_spec, NULL);
    return state->pickling_type == NULL ? -1 : 0;
}
