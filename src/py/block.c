/* block.c - a few bytes of shared memory, as a buffer: what Barrier and Value keep their state in.
 *
 * One without bytes stands for memory elsewhere (mproc_ext/heap.py): it tells who can reach that.
 */
#include "shared.h"

/* Any size is one of any slot, so a thread may see those of different initialisations. */
typedef struct {
    MPX_SHARED_HEAD
    mpx_atomic_u32 size;
} BlockObject;

static bool set_size(PyObject *self, Py_ssize_t size)
{
    if (size >= 0 && size <= MPX_SLOT_ROOM) {
        mpx_u32_store_relaxed(&((BlockObject *)self)->size, (uint32_t)size);
        return true;
    }
    PyErr_Format(PyExc_ValueError, "a block has at most %d bytes", MPX_SLOT_ROOM);
    return false;
}

static int Block_init(PyObject *self, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"size", NULL};
    Py_ssize_t size;
    if (!PyArg_ParseTupleAndKeywords(args, names, "n:Block", keywords, &size) ||
        !set_size(self, size))
        return -1;
    return mpx_shared_make((SharedObject *)self);
}

PyDoc_STRVAR(Block_remake_doc, "_remake($self, identity, slot, size, /)\n--\n\n"
                               "Become the block that the parent has handed over.");

static PyObject *Block_remake(PyObject *self, PyObject *args)
{
    PyObject *identity;
    unsigned int slot;
    Py_ssize_t size;
    mpx_place_t place;
    if (!PyArg_ParseTuple(args, "SIn:_remake", &identity, &slot, &size) || !set_size(self, size) ||
        mpx_place_take(&place, identity, slot) < 0 ||
        mpx_shared_hold((SharedObject *)self, place) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Block_is_shared_doc,
             "_is_shared($self, /)\n--\n\n"
             "Whether another process has it too: one that has died counts until bury_dead().");

static PyObject *Block_is_shared(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SharedObject *shared = (SharedObject *)self;
    if (!mpx_shared_check(shared, "_is_shared"))
        return NULL;
    mpx_place_t place = mpx_shared_place(shared);
    return PyBool_FromLong(mpx_slot_is_shared(place.arena, place.slot));
}

static int Block_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    void *room = mpx_shared_room((SharedObject *)self);
    if (room == NULL) {
        PyErr_SetString(PyExc_BufferError, "the block has no memory: it was not made");
        return -1;
    }
    return PyBuffer_FillInfo(view, self, room, mpx_u32_load_relaxed(&((BlockObject *)self)->size),
                             0, flags);
}

PyDoc_STRVAR(create_memoryview_doc, "create_memoryview($self, /)\n--\n\nIts bytes.");

static PyObject *create_memoryview(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyMemoryView_FromObject(self);
}

PyDoc_STRVAR(Block_doc,
             "Block(size)\n--\n\nBytes that processes share, zeros at first: a writable buffer.");

static PyMethodDef Block_methods[] = {
    {"_remake", Block_remake, METH_VARARGS, Block_remake_doc},
    {"_is_shared", Block_is_shared, METH_NOARGS, Block_is_shared_doc},
    {"create_memoryview", create_memoryview, METH_NOARGS, create_memoryview_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Block_slots[] = {
    {Py_tp_init, Block_init},
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

PyDoc_STRVAR(bury_dead_doc, "bury_dead()\n--\n\n"
                            "Look which processes have died: they hold no shared object any more.");

static PyObject *bury_dead(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    mpx_arena_bury_dead();
    Py_RETURN_NONE;
}

static PyMethodDef block_functions[] = {
    {"bury_dead", bury_dead, METH_NOARGS, bury_dead_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_block(PyObject *module)
{
    if (mpx_add_shared_type(module, &Block_spec) < 0 ||
        PyModule_AddIntConstant(module, "BLOCK_SIZE", MPX_SLOT_ROOM) < 0)
        return -1;
    return PyModule_AddFunctions(module, block_functions);
}
