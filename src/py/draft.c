/* draft.c - what payloads are written to, by the parent and by workers; see engine.h. */
#include "engine.h"

#include <errno.h>

/* Waiting for another process that was stopped while it made a block. */
#define PATIENCE MPX_NANOS_PER_SEC

/* Moves the content to a block, or a larger one. */
static int move_to_block(mpx_draft_t *draft, size_t needed)
{
    mpx_buffer_t *buffer = &draft->buffer;
    size_t capacity = draft->block == 0 ? needed : Py_MAX(needed, 2 * buffer->capacity);
    mpx_block_t block;
    void *address;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = mpx_crew_new_block(draft->crew, capacity, &block, &address, mpx_os_deadline(PATIENCE));
    if (status == 0)
        memcpy(address, buffer->data, buffer->size);
    Py_END_ALLOW_THREADS
    if (status < 0) {
        if (status == -ENOMEM)
            PyErr_NoMemory();
        else
            mpx_raise(status);
        return -1;
    }
    if (draft->block != 0)
        mpx_crew_free_own(draft->crew, draft->block);
    draft->block = block;
    buffer->data = address;
    buffer->capacity = capacity;
    return 1;
}

static int grow(mpx_buffer_t *buffer, size_t needed)
{
    return needed <= buffer->capacity ? 1 : move_to_block((mpx_draft_t *)buffer, needed);
}

void mpx_draft_begin(mpx_draft_t *draft, mpx_crew_t *crew)
{
    draft->buffer =
        (mpx_buffer_t){.data = draft->small, .capacity = sizeof(draft->small), .grower = grow};
    draft->crew = crew;
    draft->block = 0;
}

void mpx_draft_end(mpx_draft_t *draft)
{
    if (draft->block != 0)
        mpx_crew_free_own(draft->crew, draft->block);
}

mpx_namespace_t mpx_engine_namespace(module_state_t *state)
{
    return (mpx_namespace_t){.dict = state->pickling_namespace, .at = state->pickling_place};
}

PyObject *mpx_take_exception(void)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return error;
}

void mpx_raise_unread(int status, const char *damage)
{
    if (status == -EPROTO)
        PyErr_SetString(PyExc_OSError, damage);
    else if (status == -ENOMEM)
        PyErr_SetString(PyExc_MemoryError, "no address space for the shared memory of a pool");
    else
        mpx_raise(status);
}
