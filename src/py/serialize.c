/* serialize.c - which way an object becomes a message, and a message an object.
 *
 * The standard library looks up `_ForkingPickler` in the module of queues or of connections at each
 * message, and calls its `dumps` or `loads`: programs put another class there, or change that one.
 * So the class is looked up here too. Where it does just what the standard library's does
 * (mproc_ext/_pickling.py looks), its work is done here; any other is called.
 *
 * That a class has not been changed since it was looked at is seen by its version.
 *
 * Without a GIL: class and version are stored one after the other, version last, and belong
 * together wherever they are equal to a class's own; so they are read without a lock.
 */
#include "apart.h"
#include "class_version.h"

#ifdef Py_GIL_DISABLED
#    define LOAD_POINTER(field) _Py_atomic_load_ptr(&(field))
#else
#    define LOAD_POINTER(field) (field)
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

/* The class, a new reference; NULL with an exception. */
static PyObject *find_class(module_state_t *state, mpx_namespace_t *namespace)
{
    PyObject *name = state->names[MPX_NAME_FORKING_PICKLER], *cls = NULL;
#if PY_VERSION_HEX >= 0x030D0000
    PyDict_GetItemRef(namespace->dict, name, &cls);
#else
    cls = Py_XNewRef(PyDict_GetItemWithError(namespace->dict, name));
#endif
    if (cls == NULL && !PyErr_Occurred())
        PyErr_Format(PyExc_NameError, "name '%U' is not defined", name);
    return cls;
}

/* What mproc_ext._pickling has told, which is imported where it has not been: a new reference, or
 * NULL with an exception. */
static PyObject *helped_by(PyObject *module, PyObject **field)
{
    PyObject *found = mpx_state_ref(module, field);
    if (MPX_LIKELY(found != NULL))
        return found;
    PyObject *helper = PyImport_ImportModule("mproc_ext._pickling");
    if (helper == NULL)
        return NULL;
    Py_DECREF(helper);
    found = mpx_state_ref(module, field);
    if (found == NULL)
        PyErr_SetString(PyExc_ImportError, "mproc_ext._pickling is not whole yet");
    return found;
}

/* Looks at a class. 1: it is like the standard library's; 0: it is not; -1: an exception. */
static int look_at_class(PyObject *module, PyObject *cls)
{
    module_state_t *state = module_state(module);
    if (!Py_IS_TYPE(cls, &PyType_Type))
        return 0;
    Py_XDECREF(PyObject_GetAttr(cls, state->names[MPX_NAME_DUMPS]));
    PyErr_Clear();
    unsigned version = mpx_class_version((PyTypeObject *)cls);
    PyObject *find = helped_by(module, &state->find_tables);
    PyObject *tables = find == NULL ? NULL : PyObject_CallOneArg(find, cls);
    Py_XDECREF(find);
    if (tables == NULL)
        return -1;
    bool is_plain = tables != Py_None;
    if (is_plain) {
        mpx_state_set(module, &state->pickler_tables, tables);
        mpx_state_set(module, &state->pickler_class, cls);
        MPX_STORE_UINT(state->pickler_version, version);
    }
    Py_DECREF(tables);
    return is_plain;
}

static inline bool is_known_class(module_state_t *state, PyObject *cls)
{
    if (MPX_UNLIKELY(cls != LOAD_POINTER(state->pickler_class)))
        return false;
    unsigned version = mpx_class_version((PyTypeObject *)cls);
    return version != 0 && version == MPX_LOAD_UINT(state->pickler_version);
}

#ifdef Py_GIL_DISABLED
#    define MAY_LOOK_AT_PLACE false /* of a dict that others may change */
#else
#    define MAY_LOOK_AT_PLACE true
#endif

/* Whether the namespace has the class that is like the standard library's. To look at the place
 * where the name was last costs a fraction of a lookup: a dict has a key once. */
static inline bool is_known_namespace(module_state_t *state, const mpx_namespace_t *namespace)
{
    Py_ssize_t at = namespace->at;
    PyObject *key, *cls;
    return MAY_LOOK_AT_PLACE && PyDict_Next(namespace->dict, &at, &key, &cls) &&
           key == state->names[MPX_NAME_FORKING_PICKLER] && is_known_class(state, cls);
}

/* Where nothing has the name, which is interned, the place stays as it is. */
static void find_place(module_state_t *state, mpx_namespace_t *namespace)
{
    Py_ssize_t at = 0, next = 0;
    PyObject *key, *cls;
    if (!MAY_LOOK_AT_PLACE || namespace->at < 0)
        return;
    while (PyDict_Next(namespace->dict, &next, &key, &cls)) {
        if (key == state->names[MPX_NAME_FORKING_PICKLER]) {
            namespace->at = at;
            return;
        }
        at = next;
    }
}

/* 1: the namespace's class is like the standard library's; 0: it is not, and *cls is a new
 * reference to it; -1: an exception. */
MPX_COLD static int look_at_namespace(module_state_t *state, mpx_namespace_t *namespace,
                                      PyObject **cls)
{
    *cls = find_class(state, namespace);
    if (*cls == NULL)
        return -1;
    int is_plain = is_known_class(state, *cls) ? 1 : look_at_class(state->module, *cls);
    if (is_plain > 0)
        find_place(state, namespace);
    if (is_plain != 0)
        Py_CLEAR(*cls);
    return is_plain;
}

static inline int is_plain(module_state_t *state, mpx_namespace_t *namespace, PyObject **cls)
{
    if (MPX_LIKELY(is_known_namespace(state, namespace)))
        return 1;
    return look_at_namespace(state, namespace, cls);
}

/* ---- Objects to messages ------------------------------------------------------------------ */

/* By the program's own class: what it returns is treated as a connection treats it. `escapes`: so
 * that it is told from our own messages. */
MPX_COLD static int dumps_by_class(PyObject *module, PyObject *cls, PyObject *object,
                                   mpx_buffer_t *out, bool escapes)
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
        if (escapes && view.len > 0 && *(unsigned char *)view.buf >= MPX_TAG_FIRST)
            status = mpx_buffer_append(out, &raw, 1);
        if (status == 0)
            status = mpx_buffer_append(out, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    Py_XDECREF(bytes);
    return status;
}

MPX_COLD static int pickle(module_state_t *state, PyObject *object, mpx_buffer_t *out, bool apart)
{
    PyObject *tables = mpx_state_ref(state->module, &state->pickler_tables);
    int status = apart ? mpx_apart_write(state->module, tables, object, out)
                       : mpx_pickle(state->module, tables, object, out, NULL);
    Py_DECREF(tables);
    return status;
}

static inline int dumps_plainly(module_state_t *state, PyObject *object, mpx_buffer_t *out,
                                bool apart)
{
    size_t before = out->size;
    int status = mpx_tree_write(object, out);
    if (MPX_LIKELY(status <= 0))
        return status;
    out->size = before;
    return pickle(state, object, out, apart);
}

int mpx_dumps(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
              mpx_buffer_t *out, bool apart)
{
    PyObject *cls;
    size_t before = out->size;
    int status = is_plain(state, namespace, &cls);
    if (MPX_LIKELY(status > 0)) {
        status = dumps_plainly(state, object, out, apart);
    } else if (status == 0) {
        status = dumps_by_class(state->module, cls, object, out, true);
        Py_DECREF(cls);
    }
    if (MPX_UNLIKELY(status < 0))
        out->size = before;
    return status;
}

int mpx_dumps_pickle(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
                     mpx_buffer_t *out)
{
    PyObject *cls;
    size_t before = out->size;
    int status = is_plain(state, namespace, &cls);
    if (MPX_LIKELY(status > 0)) {
        status = mpx_scalar_write(object, out);
        if (status > 0)
            status = pickle(state, object, out, false);
    } else if (status == 0) {
        status = dumps_by_class(state->module, cls, object, out, false);
        Py_DECREF(cls);
    }
    if (MPX_UNLIKELY(status < 0))
        out->size = before;
    return status;
}

int mpx_pickles_plainly(module_state_t *state, mpx_namespace_t *namespace)
{
    PyObject *cls;
    int status = is_plain(state, namespace, &cls);
    if (status == 0)
        Py_DECREF(cls);
    return status;
}

bool mpx_reads_plainly(module_state_t *state, mpx_namespace_t *namespace)
{
    int status = mpx_pickles_plainly(state, namespace);
    if (status < 0)
        PyErr_Clear();
    return status > 0;
}

bool mpx_dumps_quickly(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
                       mpx_buffer_t *out)
{
    size_t before = out->size;
    if (!mpx_reads_plainly(state, namespace))
        return false;
    int status = mpx_tree_write(object, out);
    if (status < 0)
        PyErr_Clear();
    if (status != 0)
        out->size = before;
    return status == 0;
}

/* ---- Messages to objects ------------------------------------------------------------------ */

static inline PyObject *loads_plainly(module_state_t *state, const char *data, size_t size,
                                      mpx_parcel_t *parcel)
{
    unsigned char tag = mpx_tag_of(data, size);
    bool is_shared = parcel != NULL, is_raw = tag == MPX_TAG_RAW;
    if (MPX_LIKELY(mpx_is_tree(tag)))
        return mpx_tree_read(&state->keys, data, size, is_shared);
    if (tag == MPX_TAG_APART)
        return mpx_apart_read(state->module, data, size, parcel);
    return mpx_unpickle(state->module, data + is_raw, size - is_raw, NULL, is_shared);
}

/* As the program's class reads a pickle. */
MPX_COLD static PyObject *load_by_class(module_state_t *state, PyObject *cls, PyObject *pickle)
{
    PyObject *args[] = {cls, pickle};
    return PyObject_VectorcallMethod(state->names[MPX_NAME_LOADS], args, 2, NULL);
}

/* What is no pickle is pickled first, as the program's class expects. */
MPX_COLD static PyObject *loads_by_class(PyObject *module, PyObject *cls, const char *data,
                                         size_t size, mpx_parcel_t *parcel)
{
    module_state_t *state = module_state(module);
    unsigned char tag = mpx_tag_of(data, size);
    PyObject *argument;
    if (tag == MPX_TAG_RAW || tag < MPX_TAG_FIRST) {
        size_t start = tag == MPX_TAG_RAW;
        argument = PyBytes_FromStringAndSize(data + start, (Py_ssize_t)(size - start));
    } else {
        PyObject *tree = loads_plainly(state, data, size, parcel);
        PyObject *pickle = tree == NULL ? NULL : PyImport_ImportModule("_pickle");
        argument = pickle == NULL ? NULL : PyObject_CallMethod(pickle, "dumps", "O", tree);
        Py_XDECREF(pickle);
        Py_XDECREF(tree);
    }
    if (argument == NULL)
        return NULL;
    PyObject *object = load_by_class(state, cls, argument);
    Py_DECREF(argument);
    return object;
}

PyObject *mpx_loads(module_state_t *state, mpx_namespace_t *namespace, const char *data,
                    size_t size, mpx_parcel_t *parcel)
{
    PyObject *cls;
    int status = is_plain(state, namespace, &cls);
    if (MPX_LIKELY(status > 0))
        return loads_plainly(state, data, size, parcel);
    if (status < 0)
        return NULL;
    PyObject *object = loads_by_class(state->module, cls, data, size, parcel);
    Py_DECREF(cls);
    return object;
}

PyObject *mpx_loads_pickle(module_state_t *state, mpx_namespace_t *namespace, const char *data,
                           size_t size)
{
    PyObject *cls;
    int status = is_plain(state, namespace, &cls);
    if (MPX_LIKELY(status > 0)) {
        PyObject *object = mpx_scalar_read(data, size);
        return object != NULL ? object : mpx_unpickle(state->module, data, size, NULL, false);
    }
    if (status < 0)
        return NULL;
    PyObject *pickle = PyBytes_FromStringAndSize(data, (Py_ssize_t)size);
    PyObject *object = pickle == NULL ? NULL : load_by_class(state, cls, pickle);
    Py_XDECREF(pickle);
    Py_DECREF(cls);
    return object;
}

/* ---- The idle buffer ---------------------------------------------------------------------- */

/* It begins with its capacity, while it is idle. */

void mpx_take_buffer(PyObject *module, mpx_buffer_t *buffer)
{
    *buffer = (mpx_buffer_t){.data = mpx_swap(&module_state(module)->buffer, NULL)};
    if (buffer->data != NULL)
        memcpy(&buffer->capacity, buffer->data, sizeof(buffer->capacity));
}

void mpx_give_buffer(PyObject *module, mpx_buffer_t *buffer)
{
    if (buffer->data != NULL && buffer->capacity <= MPX_BUFFER_KEPT) {
        memcpy(buffer->data, &buffer->capacity, sizeof(buffer->capacity));
        buffer->data = mpx_swap(&module_state(module)->buffer, buffer->data);
    }
    mpx_buffer_free(buffer);
}

/* ---- Functions ---------------------------------------------------------------------------- */

/* The second argument, or the namespace where nobody has assigned anything; its dict is a new
 * reference, or NULL with an exception. */
static mpx_namespace_t namespace_of(PyObject *module, PyObject *const *args, Py_ssize_t nargs,
                                    const char *function)
{
    module_state_t *state = module_state(module);
    if (nargs == 2 && PyDict_Check(args[1]))
        return (mpx_namespace_t){.dict = Py_NewRef(args[1]), .at = -1};
    if (nargs != 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes an argument, and the dict of a module", function);
        return (mpx_namespace_t){.dict = NULL};
    }
    PyObject *dict = helped_by(module, &state->pickling_namespace);
    return (mpx_namespace_t){.dict = dict, .at = state->pickling_place};
}

static void drop_namespace(PyObject *module, mpx_namespace_t *namespace)
{
    if (MAY_LOOK_AT_PLACE && namespace->at >= 0)
        module_state(module)->pickling_place = namespace->at;
    Py_DECREF(namespace->dict);
}

PyDoc_STRVAR(dumps_doc, "dumps(object, namespace=..., /)\n--\n\n"
                        "The message of an object. `namespace` is the dict of the module whose\n"
                        "`_ForkingPickler` counts.");

static PyObject *dumps(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    mpx_namespace_t namespace = namespace_of(module, args, nargs, "dumps");
    if (namespace.dict == NULL)
        return NULL;
    mpx_buffer_t out;
    mpx_take_buffer(module, &out);
    PyObject *message = NULL;
    if (mpx_dumps(module_state(module), &namespace, args[0], &out, false) == 0)
        message = PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    mpx_give_buffer(module, &out);
    drop_namespace(module, &namespace);
    return message;
}

PyDoc_STRVAR(loads_doc, "loads(message, namespace=..., /)\n--\n\nThe object of a message.");

static PyObject *loads(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    mpx_namespace_t namespace = namespace_of(module, args, nargs, "loads");
    if (namespace.dict == NULL)
        return NULL;
    Py_buffer view;
    PyObject *object = NULL;
    if (PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) == 0) {
        object = mpx_loads(module_state(module), &namespace, view.buf, (size_t)view.len, NULL);
        PyBuffer_Release(&view);
    }
    drop_namespace(module, &namespace);
    return object;
}

PyDoc_STRVAR(serve_pickling_doc,
             "serve_pickling(tables, namespace, /)\n--\n\n"
             "Tell what finds the tables of reducers of a class, and the dict of the module that\n"
             "has the class of those who speak for no other one.  What else it takes to pickle is\n"
             "found now, too: later there may be no descriptor, no file or no sys.modules left\n"
             "for an import.");

static PyObject *serve_pickling(PyObject *module, PyObject *args)
{
    module_state_t *state = module_state(module);
    mpx_namespace_t namespace = {.at = -1};
    PyObject *find_tables;
    if (!PyArg_ParseTuple(args, "OO!:serve_pickling", &find_tables, &PyDict_Type, &namespace.dict))
        return NULL;
    mpx_state_set(module, &state->find_tables, find_tables);
    mpx_state_set(module, &state->pickling_namespace, namespace.dict);
    struct {
        PyObject **field;
        int name;
    } parts[] = {{&state->pickle_loads, MPX_NAME_LOADS},
                 {&state->pickle_pickler, MPX_NAME_PICKLER},
                 {&state->pickle_unpickler, MPX_NAME_UNPICKLER}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(parts); i++) {
        PyObject *part = mpx_from_pickle(module, parts[i].field, parts[i].name);
        if (part == NULL)
            return NULL;
        Py_DECREF(part);
    }
    PyObject *cls = find_class(state, &namespace);
    int status = cls == NULL ? -1 : look_at_class(module, cls);
    Py_XDECREF(cls);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef serialize_functions[] = {
    {"serve_pickling", serve_pickling, METH_VARARGS, serve_pickling_doc},
    {"dumps", (PyCFunction)(void (*)(void))dumps, METH_FASTCALL, dumps_doc},
    {"loads", (PyCFunction)(void (*)(void))loads, METH_FASTCALL, loads_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_serialize(PyObject *module)
{
    return PyModule_AddFunctions(module, serialize_functions);
}
