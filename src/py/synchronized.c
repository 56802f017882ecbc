/* synchronized.c - see synchronized.h: the memory, the lock and the conversions.
 *
 * Threads without the GIL. What _bind writes is written once, before `bound` says so; that may
 * become false at any time and stays false, and what a thread still does then is what it would have
 * done a moment before. The items are guarded by the lock.
 */
#include "synchronized.h"

#include <structmember.h>

#include "mpx_atomic.h"
#include "semlock.h"

/* ---- One item -------------------------------------------------------------------------------- */

/* The size of an item, 0 where the type is not known here. */
static Py_ssize_t size_of(char code)
{
    switch (code) {
    case 'b':
    case 'B':
    case '?':
        return 1;
    case 'h':
    case 'H':
        return sizeof(short);
    case 'i':
    case 'I':
        return sizeof(int);
    case 'l':
    case 'L':
        return sizeof(long);
    case 'q':
    case 'Q':
        return sizeof(long long);
    case 'f':
        return sizeof(float);
    case 'd':
        return sizeof(double);
    default:
        return 0;
    }
}

/* One item as any of these; which one the code says. */
typedef union {
    signed char b;
    unsigned char B;
    short h;
    unsigned short H;
    int i;
    unsigned int I;
    long l;
    unsigned long L;
    long long q;
    unsigned long long Q;
    float f;
    double d;
} item_t;

/* One store for what is aligned: whoever looks without the lock, or after this process was killed
 * here, sees the old item or the new one. */
static void copy(void *to, const void *from, Py_ssize_t size)
{
    switch (size) {
    case 1:
        memcpy(to, from, 1);
        break;
    case 2:
        memcpy(to, from, 2);
        break;
    case 4:
        memcpy(to, from, 4);
        break;
    default:
        memcpy(to, from, 8);
    }
}

static PyObject *to_python(char code, const item_t *item)
{
    switch (code) {
    case 'b':
        return PyLong_FromLong(item->b);
    case 'B':
        return PyLong_FromLong(item->B);
    case '?':
        return PyBool_FromLong(item->B);
    case 'h':
        return PyLong_FromLong(item->h);
    case 'H':
        return PyLong_FromLong(item->H);
    case 'i':
        return PyLong_FromLong(item->i);
    case 'I':
        return PyLong_FromUnsignedLong(item->I);
    case 'l':
        return PyLong_FromLong(item->l);
    case 'L':
        return PyLong_FromUnsignedLong(item->L);
    case 'q':
        return PyLong_FromLongLong(item->q);
    case 'Q':
        return PyLong_FromUnsignedLongLong(item->Q);
    case 'f':
        return PyFloat_FromDouble(item->f);
    default:
        return PyFloat_FromDouble(item->d);
    }
}

/* As ctypes converts, which takes of an int as many bits as fit. False: leave it to ctypes. */
static bool from_python(char code, PyObject *value, item_t *item)
{
    if (code == 'd' || code == 'f') {
        if (!PyFloat_CheckExact(value) && !PyLong_CheckExact(value))
            return false;
        double number = PyFloat_AsDouble(value);
        if (number == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return false;
        }
        if (code == 'd')
            item->d = number;
        else
            item->f = (float)number;
        return true;
    }
    if (code == '?') {
        item->B = value == Py_True;
        return PyBool_Check(value);
    }
    if (!PyLong_CheckExact(value))
        return false;
    item->Q = PyLong_AsUnsignedLongLongMask(value); /* the core is for little-endian machines */
    return true;
}

PyObject *mpx_synchronized_get(SynchronizedObject *self, Py_ssize_t index)
{
    item_t item;
    char code = self->code;
    Py_ssize_t size = size_of(code);
    int how = mpx_semlock_enter(self->semlock);
    if (how < 0)
        return NULL;
    copy(&item, (const char *)self->view.buf + index * size, size);
    if (mpx_semlock_leave(self->semlock, how) < 0)
        return NULL;
    return to_python(code, &item);
}

int mpx_synchronized_set(SynchronizedObject *self, Py_ssize_t index, PyObject *value)
{
    item_t item;
    char code = self->code;
    Py_ssize_t size = size_of(code);
    if (!from_python(code, value, &item))
        return 0;
    int how = mpx_semlock_enter(self->semlock);
    if (how < 0)
        return -1;
    copy((char *)self->view.buf + index * size, &item, size);
    return mpx_semlock_leave(self->semlock, how) < 0 ? -1 : 1;
}

/* ---- Binding --------------------------------------------------------------------------------- */

/* What a thread sees of these belongs together. References. */
typedef struct {
    PyObject *obj, *lock, *acquire, *release;
} parts_t;

static void drop_parts(parts_t parts)
{
    Py_XDECREF(parts.obj);
    Py_XDECREF(parts.lock);
    Py_XDECREF(parts.acquire);
    Py_XDECREF(parts.release);
}

static parts_t parts_of(SynchronizedObject *self)
{
    parts_t parts;
    Py_BEGIN_CRITICAL_SECTION(self);
    parts = (parts_t){Py_XNewRef(self->obj), Py_XNewRef(self->lock), Py_XNewRef(self->acquire),
                      Py_XNewRef(self->release)};
    Py_END_CRITICAL_SECTION();
    return parts;
}

/* Steals the references; returns those before. */
static parts_t put_parts(SynchronizedObject *self, parts_t parts)
{
    parts_t before;
    Py_BEGIN_CRITICAL_SECTION(self);
    mpx_u32_store_relaxed(&self->bound, false);
    before.obj = mpx_put(&self->obj, parts.obj);
    before.lock = mpx_put(&self->lock, parts.lock);
    before.acquire = mpx_put(&self->acquire, parts.acquire);
    before.release = mpx_put(&self->release, parts.release);
    Py_END_CRITICAL_SECTION();
    return before;
}

static int SynchronizedBase_init(PyObject *object, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"obj", "lock", "ctx", NULL};
    SynchronizedObject *self = (SynchronizedObject *)object;
    PyObject *obj, *lock = Py_None, *ctx = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, names, "O|OO:__init__", keywords, &obj, &lock, &ctx))
        return -1;
    int given = PyObject_IsTrue(lock);
    if (given < 0)
        return -1;
    lock = given ? Py_NewRef(lock) : PyObject_CallMethod(object, "_new_lock", "O", ctx);
    if (lock == NULL)
        return -1;
    PyObject *acquire = PyObject_GetAttrString(lock, "acquire");
    PyObject *release = acquire == NULL ? NULL : PyObject_GetAttrString(lock, "release");
    parts_t parts = {Py_NewRef(obj), lock, acquire, release};
    drop_parts(put_parts(self, parts));
    return release == NULL ? -1 : 0;
}

/* Nothing where the object is bound, or its attributes are not these any more. */
static int bind(SynchronizedObject *self, parts_t parts, char code, Py_ssize_t size)
{
    Py_buffer view;
    bool is_bound;
    if (PyObject_GetBuffer(parts.obj, &view, PyBUF_WRITABLE) < 0)
        return -1;
    Py_BEGIN_CRITICAL_SECTION(self);
    is_bound = self->semlock == NULL && self->obj == parts.obj && self->lock == parts.lock &&
               self->acquire == parts.acquire && self->release == parts.release;
    if (is_bound) {
        self->view = view;
        self->semlock = Py_NewRef(parts.lock);
        self->code = code;
        self->length = view.len / size;
        mpx_u32_store_release(&self->bound, true); /* P6: with P7 */
    }
    Py_END_CRITICAL_SECTION();
    if (!is_bound)
        PyBuffer_Release(&view);
    return 0;
}

PyDoc_STRVAR(
    SynchronizedBase_bind_doc,
    "_bind($self, code, /)\n--\n\n"
    "Get and set the items here, where the lock allows that.\n\n"
    "Once at most, of an object that is new.  Its _obj has memory that does not move, and\n"
    "items of the type that ctypes calls code; its _lock is of no subclass.");

static PyObject *SynchronizedBase_bind(PyObject *object, PyObject *argument)
{
    SynchronizedObject *self = (SynchronizedObject *)object;
    Py_UCS4 code = PyUnicode_Check(argument) && PyUnicode_GET_LENGTH(argument) == 1
                       ? PyUnicode_READ_CHAR(argument, 0)
                       : 0;
    Py_ssize_t size = code < 128 ? size_of((char)code) : 0;
    if (size == 0) {
        PyErr_SetString(PyExc_ValueError, "not the code of a type of items");
        return NULL;
    }
    parts_t parts = parts_of(self);
    int status = 0;
    if (parts.obj != NULL && mpx_semlock_has(parts.lock, parts.acquire, parts.release))
        status = bind(self, parts, (char)code, size);
    drop_parts(parts);
    if (status < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* The attributes that the standard library's code works with. */
static bool is_relied_on(PyObject *name)
{
    static const char *const relied_on[] = {"_obj", "_lock", "acquire", "release"};
    Py_UCS4 first = PyUnicode_GET_LENGTH(name) > 0 ? PyUnicode_READ_CHAR(name, 0) : 0;
    if (first != '_' && first != 'a' && first != 'r')
        return false;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(relied_on); i++) {
        if (PyUnicode_CompareWithASCIIString(name, relied_on[i]) == 0)
            return true;
    }
    return false;
}

/* Somebody has put something else in the place of what we know. */
static int SynchronizedBase_setattro(PyObject *self, PyObject *name, PyObject *value)
{
    if (PyUnicode_Check(name) && is_relied_on(name))
        mpx_u32_store_relaxed(&((SynchronizedObject *)self)->bound, false);
    return PyObject_GenericSetAttr(self, name, value);
}

PyObject *mpx_synchronized_next(PyObject *self, PyObject *bound, const char *name)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &mpx_core_module);
    if (module == NULL)
        return NULL;
    PyObject *next = PyObject_CallFunctionObjArgs(
        (PyObject *)&PySuper_Type, module_state(module)->synchronized_type, bound, NULL);
    PyObject *attribute = next == NULL ? NULL : PyObject_GetAttrString(next, name);
    Py_XDECREF(next);
    return attribute;
}

/* ---- The base type --------------------------------------------------------------------------- */

static int SynchronizedBase_traverse(PyObject *object, visitproc visit, void *arg)
{
    SynchronizedObject *self = (SynchronizedObject *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->obj);
    Py_VISIT(self->lock);
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    Py_VISIT(self->view.obj);
    Py_VISIT(self->semlock);
    return 0;
}

static int SynchronizedBase_clear(PyObject *object)
{
    SynchronizedObject *self = (SynchronizedObject *)object;
    mpx_u32_store_relaxed(&self->bound, false);
    PyBuffer_Release(&self->view); /* nothing, where it has no object */
    Py_CLEAR(self->semlock);
    Py_CLEAR(self->obj);
    Py_CLEAR(self->lock);
    Py_CLEAR(self->acquire);
    Py_CLEAR(self->release);
    return 0;
}

static void SynchronizedBase_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    SynchronizedBase_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(SynchronizedBase_doc,
             "SynchronizedBase(obj, lock=None, ctx=None)\n--\n\n"
             "Base of a ctypes object in shared memory with its lock.  Without a lock, the one of\n"
             "_new_lock(ctx).");

static PyMethodDef SynchronizedBase_methods[] = {
    {"_bind", SynchronizedBase_bind, METH_O, SynchronizedBase_bind_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef SynchronizedBase_members[] = {
    {"_obj", T_OBJECT_EX, offsetof(SynchronizedObject, obj), 0, "the ctypes object"},
    {"_lock", T_OBJECT_EX, offsetof(SynchronizedObject, lock), 0, "its lock"},
    {"acquire", T_OBJECT_EX, offsetof(SynchronizedObject, acquire), 0, "the lock's acquire"},
    {"release", T_OBJECT_EX, offsetof(SynchronizedObject, release), 0, "the lock's release"},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot SynchronizedBase_slots[] = {
    {Py_tp_doc, (void *)SynchronizedBase_doc},
    {Py_tp_methods, SynchronizedBase_methods},
    {Py_tp_members, SynchronizedBase_members},
    {Py_tp_init, SynchronizedBase_init},
    {Py_tp_setattro, SynchronizedBase_setattro},
    {Py_tp_traverse, SynchronizedBase_traverse},
    {Py_tp_clear, SynchronizedBase_clear},
    {Py_tp_dealloc, SynchronizedBase_dealloc},
    {0, NULL},
};

static PyType_Spec SynchronizedBase_spec = {
    .name = "mproc_ext._core.SynchronizedBase",
    .basicsize = sizeof(SynchronizedObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = SynchronizedBase_slots,
};

/* On top of _core.SynchronizedBase, or that itself. A reference, or NULL with an exception. */
static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec)
{
    PyObject *base = (PyObject *)module_state(module)->synchronized_type;
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, base);
    if (type != NULL && PyModule_AddType(module, type) < 0)
        Py_CLEAR(type);
    return type;
}

int mpx_add_synchronized(PyObject *module)
{
    PyType_Spec *const specs[] = {&mpx_synchronized_value_spec, &mpx_synchronized_array_spec};
    module_state(module)->synchronized_type = add_type(module, &SynchronizedBase_spec);
    if (module_state(module)->synchronized_type == NULL)
        return -1;
    for (size_t i = 0; i < Py_ARRAY_LENGTH(specs); i++) {
        PyTypeObject *type = add_type(module, specs[i]);
        if (type == NULL)
            return -1;
        Py_DECREF(type); /* the module has it */
    }
    return 0;
}
