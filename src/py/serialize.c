/* serialize.c - which way an object becomes a message, and a message an object.
 *
 * The standard library looks up `_ForkingPickler` in the module of queues or of connections at each
 * message, and calls its `dumps` or `loads`: programs put another class there, or change that one.
 * So the class is looked up here too. Where it does just what the standard library's does
 * (mproc_ext/_pickling.py looks), its work is done here; any other is called.
 *
 * That a class has not been changed since it was looked at is seen by its version, a number that
 * the interpreter gives no second time and takes away when something is assigned to the class.
 *
 * Without a GIL: class and version are stored one after the other, version last, and belong
 * together wherever they are equal to a class's own; so they are read without a lock.
 */
#include "serialize.h"

#ifdef Py_GIL_DISABLED
#    define LOAD_POINTER(field)      _Py_atomic_load_ptr(&(field))
#    define LOAD_UINT(field)         _Py_atomic_load_uint(&(field))
#    define STORE_UINT(field, value) _Py_atomic_store_uint(&(field), value)
#else
#    define LOAD_POINTER(field)      (field)
#    define LOAD_UINT(field)         (field)
#    define STORE_UINT(field, value) ((field) = (value))
#endif

PyObject *mpx_unpickling_error(void)
{
    PyObject *pickle = PyImport_ImportModule("_pickle");
    PyObject *error = pickle == NULL ? NULL : PyObject_GetAttrString(pickle, "UnpicklingError");
    Py_XDECREF(pickle);
    return error;
}

PyObject *mpx_from_pickle(PyObject *module, PyObject **field, int name)
{
    PyObject *found = mpx_state_ref(module, field);
    if (MPX_LIKELY(found != NULL))
        return found;
    PyObject *pickle = PyImport_ImportModule("_pickle");
    found = pickle == NULL ? NULL : PyObject_GetAttr(pickle, module_state(module)->names[name]);
    Py_XDECREF(pickle);
    if (found != NULL)
        mpx_state_set(module, field, found);
    return found;
}

/* ---- The class ---------------------------------------------------------------------------- */

/* 0 where there is none. */
static unsigned version_of(PyObject *cls)
{
    PyTypeObject *type = (PyTypeObject *)cls;
#if PY_VERSION_HEX < 0x030D0000
    if (!PyType_HasFeature(type, Py_TPFLAGS_VALID_VERSION_TAG))
        return 0;
#endif
    return LOAD_UINT(type->tp_version_tag);
}

/* A new reference. */
static PyObject *class_of(PyObject *module, PyObject *namespace)
{
    PyObject *name = module_state(module)->names[MPX_NAME_FORKING_PICKLER], *cls = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    PyDict_GetItemRef(namespace, name, &cls);
#else
    cls = Py_XNewRef(PyDict_GetItemWithError(namespace, name));
#endif
    if (cls == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_NameError, "name '%U' is not defined", name);
    return cls;
}

/* Looks at a class. 1: it is like the standard library's; 0: it is not; -1: an exception. */
static int look_at_class(PyObject *module, PyObject *cls)
{
    module_state_t *state = module_state(module);
    if (!Py_IS_TYPE(cls, &PyType_Type))
        return 0;
    /* A lookup gives the class a version: before it is looked at, so that what is changed later
     * counts as a change. */
    Py_XDECREF(PyObject_GetAttr(cls, state->names[MPX_NAME_DUMPS]));
    PyErr_Clear();
    unsigned version = version_of(cls);
    PyObject *helper = PyImport_ImportModule("mproc_ext._pickling");
    PyObject *tables = helper == NULL ? NULL : PyObject_CallMethod(helper, "tables", "O", cls);
    Py_XDECREF(helper);
    if (tables == NULL)
        return -1;
    bool is_plain = tables != Py_None;
    if (is_plain) {
        mpx_state_set(module, &state->pickler_tables, tables);
        mpx_state_set(module, &state->pickler_class, cls);
        STORE_UINT(state->pickler_version, version);
    }
    Py_DECREF(tables);
    return is_plain;
}

static inline int is_plain_class(PyObject *module, PyObject *cls)
{
    module_state_t *state = module_state(module);
    if (MPX_LIKELY(cls == LOAD_POINTER(state->pickler_class))) {
        unsigned version = version_of(cls);
        if (MPX_LIKELY(version != 0 && version == LOAD_UINT(state->pickler_version)))
            return 1;
    }
    return look_at_class(module, cls);
}

/* ---- Objects to messages ------------------------------------------------------------------ */

/* By the program's own class: what it returns is treated as a connection treats it. */
static int dumps_by_class(PyObject *module, PyObject *cls, PyObject *object, mpx_buffer_t *out)
{
    PyObject *args[] = {cls, object};
    PyObject *name = module_state(module)->names[MPX_NAME_DUMPS];
    PyObject *data = PyObject_VectorcallMethod(name, args, 2, NULL);
    PyObject *bytes = data == NULL ? NULL : PyMemoryView_FromObject(data);
    Py_XDECREF(data);
    Py_buffer view;
    int status = bytes == NULL ? -1 : PyObject_GetBuffer(bytes, &view, PyBUF_SIMPLE);
    if (status == 0) {
        const unsigned char raw = MPX_TAG_RAW;
        if (view.len > 0 && *(unsigned char *)view.buf >= MPX_TAG_FIRST)
            status = mpx_buffer_append(out, &raw, 1);
        if (status == 0)
            status = mpx_buffer_append(out, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    Py_XDECREF(bytes);
    return status;
}

static int dumps_plainly(PyObject *module, PyObject *object, mpx_buffer_t *out)
{
    size_t before = out->size;
    int status = mpx_tree_write(object, out);
    if (MPX_LIKELY(status <= 0))
        return status;
    out->size = before;
    PyObject *tables = mpx_state_ref(module, &module_state(module)->pickler_tables);
    status = mpx_pickle(module, tables, object, out);
    Py_DECREF(tables);
    return status;
}

int mpx_dumps(PyObject *module, PyObject *namespace, PyObject *object, mpx_buffer_t *out)
{
    PyObject *cls = class_of(module, namespace);
    if (cls == NULL)
        return -1;
    size_t before = out->size;
    int status = is_plain_class(module, cls);
    if (status >= 0)
        status = MPX_LIKELY(status > 0) ? dumps_plainly(module, object, out)
                                        : dumps_by_class(module, cls, object, out);
    if (MPX_UNLIKELY(status < 0))
        out->size = before;
    Py_DECREF(cls);
    return status;
}

/* ---- Messages to objects ------------------------------------------------------------------ */

#define COPIED ((size_t)1 << 10) /* up to there a copy takes less time than a view */

/* The bytes as an argument of `loads`. */
static PyObject *as_argument(const char *data, size_t size)
{
    if (size <= COPIED)
        return PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    return PyMemoryView_FromMemory((char *)data, (Py_ssize_t)size, PyBUF_READ);
}

/* Drops the argument, and whatever else holds it (by gc.get_objects) can no longer read it. */
static void drop_argument(PyObject *argument)
{
    if (PyMemoryView_Check(argument) && Py_REFCNT(argument) > 1) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        Py_XDECREF(PyObject_CallMethod(argument, "release", NULL));
        PyErr_Restore(type, value, traceback);
    }
    Py_DECREF(argument);
}

static PyObject *unpickle(PyObject *module, const char *data, size_t size)
{
    PyObject *loads = mpx_from_pickle(module, &module_state(module)->pickle_loads, MPX_NAME_LOADS);
    if (loads == NULL)
        return NULL;
    PyObject *argument = as_argument(data, size), *object = NULL;
    if (argument != NULL) {
        object = PyObject_CallOneArg(loads, argument);
        drop_argument(argument);
    }
    Py_DECREF(loads);
    return object;
}

static PyObject *loads_plainly(PyObject *module, const char *data, size_t size)
{
    if (MPX_LIKELY(size > 0)) {
        unsigned char tag = (unsigned char)*data;
        if (tag == MPX_TAG_RAW)
            return unpickle(module, data + 1, size - 1);
        if (tag >= MPX_TAG_FIRST)
            return mpx_tree_read(data, size);
    }
    return unpickle(module, data, size);
}

/* A tree is pickled first, as the program's class expects. */
static PyObject *loads_by_class(PyObject *module, PyObject *cls, const char *data, size_t size)
{
    module_state_t *state = module_state(module);
    unsigned char tag = size > 0 ? (unsigned char)*data : 0;
    PyObject *argument;
    if (tag == MPX_TAG_RAW || tag < MPX_TAG_FIRST) {
        size_t start = tag == MPX_TAG_RAW;
        argument = PyBytes_FromStringAndSize(data + start, (Py_ssize_t)(size - start));
    } else {
        PyObject *tree = mpx_tree_read(data, size);
        PyObject *pickle = tree == NULL ? NULL : PyImport_ImportModule("_pickle");
        argument = pickle == NULL ? NULL : PyObject_CallMethod(pickle, "dumps", "O", tree);
        Py_XDECREF(pickle);
        Py_XDECREF(tree);
    }
    if (argument == NULL)
        return NULL;
    PyObject *args[] = {cls, argument};
    PyObject *object = PyObject_VectorcallMethod(state->names[MPX_NAME_LOADS], args, 2, NULL);
    Py_DECREF(argument);
    return object;
}

PyObject *mpx_loads(PyObject *module, PyObject *namespace, const char *data, size_t size)
{
    PyObject *cls = class_of(module, namespace);
    if (cls == NULL)
        return NULL;
    int is_plain = is_plain_class(module, cls);
    PyObject *object = is_plain < 0           ? NULL
                       : MPX_LIKELY(is_plain) ? loads_plainly(module, data, size)
                                              : loads_by_class(module, cls, data, size);
    Py_DECREF(cls);
    return object;
}

/* ---- The idle buffer ---------------------------------------------------------------------- */

/* It begins with its capacity, while it is idle. */

#define KEPT ((size_t)1 << 20) /* bytes: a larger one goes back to the system */

void mpx_take_buffer(PyObject *module, mpx_buffer_t *buffer)
{
    *buffer = (mpx_buffer_t){.data = mpx_swap(&module_state(module)->buffer, NULL)};
    if (buffer->data != NULL)
        memcpy(&buffer->capacity, buffer->data, sizeof(buffer->capacity));
}

void mpx_give_buffer(PyObject *module, mpx_buffer_t *buffer)
{
    if (buffer->data != NULL && buffer->capacity <= KEPT) {
        memcpy(buffer->data, &buffer->capacity, sizeof(buffer->capacity));
        buffer->data = mpx_swap(&module_state(module)->buffer, buffer->data);
    }
    mpx_buffer_free(buffer);
}

/* ---- Functions ---------------------------------------------------------------------------- */

/* The second argument, or the namespace where nobody has assigned anything; a new reference. */
static PyObject *namespace_of(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                              const char *function)
{
    module_state_t *state = module_state(module);
    if (nargs == 2 && PyDict_Check(args[1]))
        return Py_NewRef(args[1]);
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes an argument, and the dict of a module", function);
        return NULL;
    }
    PyObject *namespace = mpx_state_ref(module, &state->pickling_namespace);
    if (namespace == NULL) {
        PyObject *helper = PyImport_ImportModule("mproc_ext._pickling");
        namespace = helper == NULL ? NULL : PyObject_GetAttrString(helper, "__dict__");
        Py_XDECREF(helper);
        if (namespace != NULL)
            mpx_state_set(module, &state->pickling_namespace, namespace);
    }
    return namespace;
}

PyDoc_STRVAR(dumps_doc, "dumps(object, namespace=..., /)\n--\n\n"
                        "The message of an object. `namespace` is the dict of the module whose\n"
                        "`_ForkingPickler` counts.");

static PyObject *dumps(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *namespace = namespace_of(module, args, nargs, "dumps");
    if (namespace == NULL)
        return NULL;
    mpx_buffer_t out;
    mpx_take_buffer(module, &out);
    PyObject *message = NULL;
    if (mpx_dumps(module, namespace, args[0], &out) == 0)
        message = PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    mpx_give_buffer(module, &out);
    Py_DECREF(namespace);
    return message;
}

PyDoc_STRVAR(loads_doc, "loads(message, namespace=..., /)\n--\n\nThe object of a message.");

static PyObject *loads(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    PyObject *namespace = namespace_of(module, args, nargs, "loads");
    if (namespace == NULL)
        return NULL;
    Py_buffer view;
    PyObject *object = NULL;
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) == 0) {
        object = mpx_loads(module, namespace, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    Py_DECREF(namespace);
    return object;
}

static PyMethodDef serialize_functions[] = {
    {"dumps", (PyCFunction)(void (*)(void))dumps, METH_FASTCALL, dumps_doc},
    {"loads", (PyCFunction)(void (*)(void))loads, METH_FASTCALL, loads_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_serialize(PyObject *module)
{
    return PyModule_AddFunctions(module, serialize_functions);
}
