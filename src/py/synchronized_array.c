/* synchronized_array.c - the items of mproc_ext.sharedctypes.SynchronizedArray; see synchronized.h.
 */
#include "synchronized.h"

/* Whether `key` is an index of an item that can be got and set here. */
static bool find(SynchronizedObject *self, PyObject *key, Py_ssize_t *index)
{
    if (MPX_UNLIKELY(!mpx_is_bound(self) || !PyLong_CheckExact(key)))
        return false;
    *index = PyLong_AsSsize_t(key);
    if (MPX_UNLIKELY(*index == -1 && PyErr_Occurred())) {
        PyErr_Clear();
        return false;
    }
    if (*index < 0)
        *index += self->length;
    return *index >= 0 && *index < self->length;
}

static PyObject *get_item(PyObject *self, PyObject *key)
{
    Py_ssize_t index;
    if (MPX_LIKELY(find((SynchronizedObject *)self, key, &index)))
        return mpx_synchronized_get((SynchronizedObject *)self, index);
    PyObject *method = mpx_synchronized_next(self, self, "__getitem__");
    PyObject *item = method == NULL ? NULL : PyObject_CallOneArg(method, key);
    Py_XDECREF(method);
    return item;
}

static int set_item(PyObject *self, PyObject *key, PyObject *value)
{
    Py_ssize_t index;
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "__delitem__");
        return -1;
    }
    if (MPX_LIKELY(find((SynchronizedObject *)self, key, &index))) {
        int done = mpx_synchronized_set((SynchronizedObject *)self, index, value);
        if (done != 0)
            return done < 0 ? -1 : 0;
    }
    PyObject *method = mpx_synchronized_next(self, self, "__setitem__");
    PyObject *result =
        method == NULL ? NULL : PyObject_CallFunctionObjArgs(method, key, value, NULL);
    Py_XDECREF(method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static Py_ssize_t length(PyObject *self)
{
    if (MPX_LIKELY(mpx_is_bound((SynchronizedObject *)self)))
        return ((SynchronizedObject *)self)->length;
    PyObject *method = mpx_synchronized_next(self, self, "__len__");
    PyObject *result = method == NULL ? NULL : PyObject_CallNoArgs(method);
    Py_ssize_t count = result == NULL ? -1 : PyLong_AsSsize_t(result);
    Py_XDECREF(method);
    Py_XDECREF(result);
    return count;
}

PyDoc_STRVAR(SynchronizedArray_doc, "Base of a shared ctypes array and its lock.");

static PyType_Slot SynchronizedArray_slots[] = {
    {Py_tp_doc, (void *)SynchronizedArray_doc},
    {Py_mp_length, length},
    {Py_mp_subscript, get_item},
    {Py_mp_ass_subscript, set_item},
    {0, NULL},
};

PyType_Spec mpx_synchronized_array_spec = {
    .name = "mproc_ext._core.SynchronizedArray",
    .basicsize = sizeof(SynchronizedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = SynchronizedArray_slots,
};
