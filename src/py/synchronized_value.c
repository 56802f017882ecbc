/* synchronized_value.c - `value` of mproc_ext.sharedctypes.Synchronized; see synchronized.h.
 */
#include "synchronized.h"

static PyObject *get_value(PyObject *object, void *Py_UNUSED(closure))
{
    SynchronizedObject *self = (SynchronizedObject *)object;
    if (MPX_LIKELY(mpx_is_bound(self)))
        return mpx_synchronized_get(self, 0);
    return mpx_synchronized_next(object, object, "value");
}

/* super() sets no attributes, but that of the class gives the property. */
static int set_next(PyObject *self, PyObject *value)
{
    PyObject *property = mpx_synchronized_next(self, (PyObject *)Py_TYPE(self), "value");
    descrsetfunc set = property == NULL ? NULL : Py_TYPE(property)->tp_descr_set;
    if (property != NULL && set == NULL)
        PyErr_SetString(PyExc_AttributeError, "value");
    int status = set == NULL ? -1 : set(property, self, value);
    Py_XDECREF(property);
    return status;
}

static int set_value(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    SynchronizedObject *self = (SynchronizedObject *)object;
    int done =
        MPX_LIKELY(mpx_is_bound(self) && value != NULL) ? mpx_synchronized_set(self, 0, value) : 0;
    return done != 0 ? (done < 0 ? -1 : 0) : set_next(object, value);
}

PyDoc_STRVAR(SynchronizedValue_doc, "Base of a shared ctypes object with a value, and its lock.");

static PyGetSetDef SynchronizedValue_getset[] = {
    {"value", get_value, set_value, "the object's value, got and set under the lock", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot SynchronizedValue_slots[] = {
    {Py_tp_doc, (void *)SynchronizedValue_doc},
    {Py_tp_getset, SynchronizedValue_getset},
    {0, NULL},
};

PyType_Spec mpx_synchronized_value_spec = {
    .name = "mproc_ext._core.SynchronizedValue",
    .basicsize = sizeof(SynchronizedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = SynchronizedValue_slots,
};
