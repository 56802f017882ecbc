/* block.c - a few bytes of shared memory, as a buffer: what Barrier and Value keep their state in.
 */
#include "shared.h"

typedef struct {
    MPX_SHARED_HEAD
    Py_ssize_t size;
} BlockObject;

PyDoc_STRVAR(Block_make_doc, "_make($self, size, /)\n--\n\nMake the shared part: zeros.");

static bool set_size(PyObject *self, Py_ssize_t size)
{
    if (size >= 0 && size <= MPX_SLOT_ROOM) {
        ((BlockObject *)self)->size = size;
        return true;
    }
    PyErr_Format(PyExc_ValueError, "a block has at most %d bytes", MPX_SLOT_ROOM);
    return false;
}

static PyObject *Block_make(PyObject *self, PyObject *argument)
{
    Py_ssize_t size = PyNumber_AsSsize_t(argument, PyExc_OverflowError);
    if ((size == -1 && PyErr_Occurred()) || !set_size(self, size) ||
        mpx_shared_make((SharedObject *)self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Block_remake_doc, "_remake($self, identity, slot, size, /)\n--\n\n"
                               "Become the block that the parent has handed over.");

static PyObject *Block_remake(PyObject *self, PyObject *args)
{
    PyObject *identity;
    unsigned int slot;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "SIn:_remake", &identity, &slot, &size) || !set_size(self, size) ||
        mpx_shared_take((SharedObject *)self, identity, slot) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int Block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    if (((SharedObject *)self)->room == NULL) {
        PyErr_SetString(PyExc_BufferError, "the block has no memory: it was not made");
        return -1;
    }
    return PyBuffer_FillInfo(view, self, ((SharedObject *)self)->room, ((BlockObject *)self)->size,
                             0, flags);
}

PyDoc_STRVAR(Block_doc, "Bytes that processes share: a writable buffer.");

static PyMethodDef Block_methods[] = {
    {"_make", Block_make, METH_O, Block_make_doc},
    {"_remake", Block_remake, METH_VARARGS, Block_remake_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Block_slots[] = {
    {Py_tp_doc, (void *)Block_doc},
    {Py_tp_methods, Block_methods},
    {Py_bf_getbuffer, Block_getbuffer},
    {0, NULL},
};

static PyType_Spec Block_spec = {
    .name = "mproc_ext._core.Block",
    .basicsize = sizeof(BlockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Block_slots,
};

int mpx_add_block(PyObject *module)
{
    return mpx_add_shared_type(module, &Block_spec);
}
