/* lease.c - see lease.h; _core.Lease. */
#include "lease.h"

#include "mpx_lease.h"

typedef struct {
    PyObject_HEAD PyObject *whole; /* of a part: what has the lease; else NULL */
    mpx_lease_t lease;             /* block 0: none */
    char *data;
    Py_ssize_t size;
    bool is_readonly;
} LeaseObject;

static LeaseObject *new_lease(PyObject *module)
{
    PyTypeObject *type = module_state(module)->lease_type;
    return (LeaseObject *)type->tp_alloc(type, 0);
}

PyObject *mpx_lease_new(PyObject *module, mpx_parcel_t *parcel)
{
    LeaseObject *self = new_lease(module);
    if (self == NULL)
        return NULL;
    if (mpx_lease_take(&self->lease, parcel->arena, parcel->block) < 0) {
        self->lease.block = 0;
        Py_DECREF(self);
        return Py_NewRef(Py_None);
    }
    parcel->block = 0;
    return (PyObject *)self;
}

PyObject *mpx_lease_view(PyObject *module, PyObject *lease, const char *data, size_t size,
                         bool is_readonly)
{
    LeaseObject *part = new_lease(module);
    if (part == NULL)
        return NULL;
    part->whole = Py_NewRef(lease);
    part->data = (char *)data;
    part->size = (Py_ssize_t)size;
    part->is_readonly = is_readonly;
    PyObject *view = PyMemoryView_FromObject((PyObject *)part);
    Py_DECREF(part);
    return view;
}

static int Lease_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    LeaseObject *lease = (LeaseObject *)self;
    return PyBuffer_FillInfo(view, self, lease->data, lease->size, lease->is_readonly, flags);
}

static void Lease_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    LeaseObject *lease = (LeaseObject *)self;
    if (lease->lease.block != 0)
        mpx_lease_end(&lease->lease);
    Py_XDECREF(lease->whole);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot Lease_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("A part of a message's memory, which stays as long as this.")},
    {Py_tp_dealloc, Lease_dealloc},
    {Py_bf_getbuffer, Lease_getbuffer},
    {0, NULL},
};

static PyType_Spec Lease_spec = {
    .name = "mproc_ext._core.Lease",
    .basicsize = sizeof(LeaseObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Lease_slots,
};

/* ---- Functions ------------------------------------------------------------------------------- */

PyDoc_STRVAR(leases_doc,
             "leases()\n--\n\n"
             "(bytes that this process has on loan from queues with zero_copy, how many it may).");

static PyObject *leases(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("KK", (unsigned long long)mpx_lease_total(),
                         (unsigned long long)mpx_lease_limit());
}

PyDoc_STRVAR(limit_leases_doc,
             "limit_leases(bytes, /)\n--\n\n"
             "Have this process, and those that it forks, take at most so much on loan (0: a "
             "quarter of the memory that can\nbe had now).");

static PyObject *limit_leases(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long long bytes = PyLong_AsUnsignedLongLong(argument);
    if (bytes == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    mpx_lease_set_limit(bytes);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"leases", leases, METH_NOARGS, leases_doc},
    {"limit_leases", limit_leases, METH_O, limit_leases_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_lease(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->lease_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Lease_spec, NULL);
    return state->lease_type == NULL ? -1 : PyModule_AddFunctions(module, functions);
}
