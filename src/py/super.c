/* super.c - the method that comes after ours in the order of an object's classes: mostly the
 * standard library's, whose Python class is a base beside our type in C.
 */
#include "module.h"

PyObject *mpx_super(PyObject *self, PyTypeObject *cls, const char *name, PyObject *const *args,
                    Py_ssize_t nargs, PyObject *names)
{
    PyObject *super = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type, cls, self, NULL);
    PyObject *method = super == NULL ? NULL : PyObject_GetAttrString(super, name);
    PyObject *result =
        method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, names);
    Py_XDECREF(method);
    Py_XDECREF(super);
    return result;
}
