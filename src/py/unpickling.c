/* unpickling.c - pickles back to objects, by the interpreter's own unpickler.
 *
 * It is given the bytes as they are, where nobody else writes to them. In a block of shared memory
 * another process may, whatever it ought to do, and the unpickler reads bytes of a buffer more than
 * once: it would make invalid strings, and worse, of what changes in between. So it reads a shared
 * block as a file. Of a file it looks at copies alone, a frame of 64 KB at a time; and large bytes
 * go straight into the object that is made of them, so that they are copied only once.
 *
 * What `read` returns it takes by the buffer protocol, and lets go when it has called `read` again.
 * It reads the first byte of whatever comes next by itself, so that a large copy is nobody's any
 * more when the next large one is asked for, and both can be in one memory (scratch.h). But where
 * it reads something in pieces (3.15 does, from 1 MB on) the first must be bytes, which it makes
 * longer. So the memory is for what is read whole: what its length, which was read just before,
 * says.
 */
#include "fork_copy.h"
#include "scratch.h"
#include "serialize.h"

#define COPIED ((size_t)1 << 10) /* up to there a copy takes less time than a view */

/* Whether `read` may return what is no bytes: not known of later versions. */
#define TAKES_BUFFERS (PY_VERSION_HEX < 0x03100000)

/* ---- Bytes in shared memory, as a file --------------------------------------------------------
 */

typedef struct {
    PyObject_HEAD mpx_fork_copy_t *rest; /* what is left; NULL: the message is gone */
    PyObject *module;                    /* borrowed, and there as long as the message */
    PyObject *scratch;                   /* or NULL */
    uint64_t length;                     /* that was read last, of what comes now; or 0 */
} ReadingObject;

/* The bytes that are left, and can be read in this process; NULL with an exception. */
static mpx_fork_copy_t *rest_of(PyObject *self)
{
    mpx_fork_copy_t *rest = ((ReadingObject *)self)->rest;
    if (MPX_LIKELY(rest != NULL && rest->data != NULL))
        return rest;
    if (rest != NULL)
        PyErr_NoMemory();
    else
        PyErr_SetString(PyExc_ValueError, "nothing is being unpickled");
    return NULL;
}

static void take(mpx_fork_copy_t *rest, void *to, size_t size)
{
    memcpy(to, rest->data, size);
    rest->data += size;
    rest->size -= size;
}

static PyObject *take_bytes(mpx_fork_copy_t *rest, size_t size)
{
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL)
        take(rest, PyBytes_AS_STRING(bytes), size);
    return bytes;
}

/* What the bytes are as a length in a pickle: little-endian; 0 where they are none. */
static uint64_t length_in(PyObject *bytes)
{
    uint64_t length = 0;
    size_t size = (size_t)PyBytes_GET_SIZE(bytes);
    if (size == 4 || size == 8)
        memcpy(&length, PyBytes_AS_STRING(bytes), size);
    return length;
}

/* What is large, in the scratch; NULL, without an exception, where it is to be new bytes. */
static PyObject *take_scratch(ReadingObject *self, mpx_fork_copy_t *rest, size_t size)
{
    char *to = mpx_scratch_room(self->module, &self->scratch, size);
    if (to == NULL)
        return NULL;
    take(rest, to, size);
    return Py_NewRef(self->scratch);
}

PyDoc_STRVAR(Reading_read_doc, "read($self, size, /)\n--\n\n"
                               "At most so many bytes, or an object whose buffer has them.");

static PyObject *Reading_read(PyObject *self, PyObject *argument)
{
    size_t size = PyLong_AsSize_t(argument);
    if (size == (size_t)-1 && PyErr_Occurred())
        return NULL;
    mpx_fork_copy_t *rest = rest_of(self);
    if (rest == NULL)
        return NULL;
    if (size > rest->size)
        size = rest->size;
    ReadingObject *file = (ReadingObject *)self;
    PyObject *copy = NULL;
    if (TAKES_BUFFERS && size >= MPX_SCRATCH_LEAST && size <= MPX_SCRATCH_MOST &&
        size == file->length)
        copy = take_scratch(file, rest, size);
    if (copy == NULL)
        copy = take_bytes(rest, size);
    file->length = copy != NULL && PyBytes_Check(copy) ? length_in(copy) : 0;
    return copy;
}

PyDoc_STRVAR(Reading_readline_doc, "readline($self, /)\n--\n\nA line, its end included.");

static PyObject *Reading_readline(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    mpx_fork_copy_t *rest = rest_of(self);
    size_t size = 0;
    ((ReadingObject *)self)->length = 0;
    while (rest != NULL && size < rest->size && rest->data[size++] != '\n')
        continue;
    return rest == NULL ? NULL : take_bytes(rest, size);
}

PyDoc_STRVAR(Reading_readinto_doc,
             "readinto($self, buffer, /)\n--\n\nFill the buffer; with how many bytes.");

static PyObject *Reading_readinto(PyObject *self, PyObject *buffer)
{
    Py_buffer view;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE) < 0)
        return NULL;
    mpx_fork_copy_t *rest = rest_of(self);
    size_t size = rest == NULL ? 0 : rest->size;
    ((ReadingObject *)self)->length = 0;
    if (size > (size_t)view.len)
        size = (size_t)view.len;
    if (size > 0)
        take(rest, view.buf, size);
    PyBuffer_Release(&view);
    return rest == NULL ? NULL : PyLong_FromSize_t(size);
}

static void Reading_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMethodDef Reading_methods[] = {
    {"read", Reading_read, METH_O, Reading_read_doc},
    {"readinto", Reading_readinto, METH_O, Reading_readinto_doc},
    {"readline", Reading_readline, METH_NOARGS, Reading_readline_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Reading_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("A message in shared memory, as a file.")},
    {Py_tp_methods, Reading_methods},
    {Py_tp_dealloc, Reading_dealloc},
    {0, NULL},
};

static PyType_Spec Reading_spec = {
    .name = "mproc_ext._core.Reading",
    .basicsize = sizeof(ReadingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Reading_slots,
};

/* ---- Unpickling ------------------------------------------------------------------------------ */

/* function(argument), or function(argument, buffers=buffers). */
static PyObject *call(PyObject *function, PyObject *argument, PyObject *buffers)
{
    if (MPX_LIKELY(buffers == NULL))
        return PyObject_CallOneArg(function, argument);
    PyObject *args = PyTuple_Pack(1, argument);
    PyObject *names = args == NULL ? NULL : Py_BuildValue("{s:O}", "buffers", buffers);
    PyObject *object = names == NULL ? NULL : PyObject_Call(function, args, names);
    Py_XDECREF(names);
    Py_XDECREF(args);
    return object;
}

static PyObject *load(PyObject *module, PyObject *file, PyObject *buffers)
{
    module_state_t *state = module_state(module);
    PyObject *type = mpx_from_pickle(module, &state->pickle_unpickler, MPX_NAME_UNPICKLER);
    PyObject *unpickler = type == NULL ? NULL : call(type, file, buffers);
    PyObject *object = NULL;
    Py_XDECREF(type);
    if (unpickler != NULL)
        object = PyObject_VectorcallMethod(state->names[MPX_NAME_LOAD], &unpickler, 1, NULL);
    Py_XDECREF(unpickler);
    return object;
}

static PyObject *unpickle_shared(PyObject *module, const char *data, size_t size, PyObject *buffers)
{
    PyTypeObject *type = module_state(module)->reading_type;
    ReadingObject *file = (ReadingObject *)type->tp_alloc(type, 0);
    if (file == NULL)
        return NULL;
    file->module = module;
    file->rest = mpx_fork_copy_begin((char *)data, size);
    PyObject *object = file->rest == NULL ? NULL : load(module, (PyObject *)file, buffers);
    mpx_fork_copy_end(file->rest);
    file->rest = NULL; /* whatever else holds it */
    mpx_scratch_drop(module, file->scratch);
    file->scratch = NULL;
    Py_DECREF(file);
    return object;
}

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

MPX_COLD PyObject *mpx_unpickle(PyObject *module, const char *data, size_t size, PyObject *buffers,
                                bool is_shared)
{
    if (is_shared && size > COPIED)
        return unpickle_shared(module, data, size, buffers);
    PyObject *loads = mpx_from_pickle(module, &module_state(module)->pickle_loads, MPX_NAME_LOADS);
    if (loads == NULL)
        return NULL;
    PyObject *argument = as_argument(data, size), *object = NULL;
    if (argument != NULL) {
        object = call(loads, argument, buffers);
        drop_argument(argument);
    }
    Py_DECREF(loads);
    return object;
}

int mpx_add_unpickling(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->reading_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Reading_spec, NULL);
    return state->reading_type == NULL ? -1 : 0;
}
