/* scratch.c - see scratch.h; _core.Scratch. */
#include "scratch.h"

#include "serialize.h"

typedef struct {
    PyObject_HEAD mpx_buffer_t buffer;
} ScratchObject;

static PyObject *new_scratch(PyObject *module)
{
    PyTypeObject *type = module_state(module)->scratch_type;
    ScratchObject *self = (ScratchObject *)type->tp_alloc(type, 0);
    if (self != NULL)
        mpx_take_buffer(module, &self->buffer);
    return (PyObject *)self;
}

/* Who has a view of the buffer has a reference too. Where there is but one, no other thread can
 * come by a second. */
static bool is_the_makers_alone(PyObject *scratch)
{
    return Py_REFCNT(scratch) == 1;
}

char *mpx_scratch_room(PyObject *module, PyObject **scratch, size_t size)
{
    if (*scratch == NULL)
        *scratch = new_scratch(module);
    if (*scratch == NULL) {
        PyErr_Clear();
        return NULL;
    }
    if (!is_the_makers_alone(*scratch))
        return NULL;
    mpx_buffer_t *buffer = &((ScratchObject *)*scratch)->buffer;
    buffer->size = 0;
    if (buffer->capacity < size)
        mpx_buffer_free(buffer); /* growing would copy what was in it, and take twice as much */
    if (mpx_buffer_grow(buffer, size) < 0) {
        PyErr_Clear();
        return NULL;
    }
    buffer->size = size;
    return buffer->data;
}

void mpx_scratch_drop(PyObject *module, PyObject *scratch)
{
    if (scratch == NULL)
        return;
    ScratchObject *self = (ScratchObject *)scratch;
    if (is_the_makers_alone(scratch)) {
        mpx_give_buffer(module, &self->buffer);
        self->buffer = (mpx_buffer_t){.data = NULL};
    }
    Py_DECREF(scratch);
}

static int Scratch_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const mpx_buffer_t *buffer = &((ScratchObject *)self)->buffer;
    return PyBuffer_FillInfo(view, self, buffer->data, (Py_ssize_t)buffer->size, true, flags);
}

static void Scratch_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    mpx_buffer_free(&((ScratchObject *)self)->buffer);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyType_Slot Scratch_slots[] = {
    {Py_tp_doc, (void *)PyDoc_STR("A copy of bytes of a message that is being unpickled.")},
    {Py_tp_dealloc, Scratch_dealloc},
    {Py_bf_getbuffer, Scratch_getbuffer},
    {0, NULL},
};

static PyType_Spec Scratch_spec = {
    .name = "mproc_ext._core.Scratch",
    .basicsize = sizeof(ScratchObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Scratch_slots,
};

int mpx_add_scratch(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->scratch_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Scratch_spec, NULL);
    return state->scratch_type == NULL ? -1 : 0;
}
