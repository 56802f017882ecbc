/* buffer.h - bytes that grow at their end: what a message is written to.
 *
 * Its owner keeps it from message to message and sets `size` back to 0; all zero it is empty. No
 * Python object is in it, so growing runs no Python code. One thread at a time.
 */
#ifndef MPX_PY_BUFFER_H
#define MPX_PY_BUFFER_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#include "mpx_base.h"

typedef struct mpx_buffer mpx_buffer_t;

/* Makes room for `needed` bytes in all, where the owner has another place for the content: 1; 0
 * where it has none, or -1 with an exception. Of 0 bytes: only sees to it that the content is this
 * process's own; see mpx_buffer_settle. */
typedef int mpx_buffer_grower_t(mpx_buffer_t *buffer, size_t needed);

struct mpx_buffer {
    char *data;
    size_t size;
    size_t capacity;
    mpx_buffer_grower_t *grower; /* or NULL */
};

static inline void mpx_buffer_free(mpx_buffer_t *buffer)
{
    PyMem_RawFree(buffer->data);
    *buffer = (mpx_buffer_t){.data = NULL};
}

#define MPX_BUFFER_LEAST ((size_t)512)

/* Makes room for that many bytes more. 0, or -1 with a MemoryError; the content stays. */
static inline int mpx_buffer_grow(mpx_buffer_t *buffer, size_t more)
{
    if (more <= buffer->capacity - buffer->size)
        return 0;
    if (more > (size_t)PY_SSIZE_T_MAX - buffer->size) {
        PyErr_NoMemory();
        return -1;
    }
    size_t needed = buffer->size + more, capacity = MPX_BUFFER_LEAST;
    int grown = buffer->grower == NULL ? 0 : buffer->grower(buffer, needed);
    if (grown != 0)
        return grown < 0 ? -1 : 0;
    if (buffer->capacity > 0)
        capacity = buffer->capacity <= (size_t)PY_SSIZE_T_MAX / 2 ? buffer->capacity * 2 : needed;
    if (capacity < needed)
        capacity = needed;
    char *data = PyMem_RawRealloc(buffer->data, capacity);
    if (data == NULL && capacity > needed)
        data = PyMem_RawRealloc(buffer->data, capacity = needed);
    if (data == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    buffer->data = data;
    buffer->capacity = capacity;
    return 0;
}

/* Only the first `size` bytes are still wanted, and memory only for them. It has no grower. */
static inline void mpx_buffer_shrink(mpx_buffer_t *buffer, size_t size)
{
    size_t capacity = size < MPX_BUFFER_LEAST ? MPX_BUFFER_LEAST : size;
    buffer->size = size;
    char *data = capacity < buffer->capacity ? PyMem_RawRealloc(buffer->data, capacity) : NULL;
    if (data != NULL) {
        buffer->data = data;
        buffer->capacity = capacity;
    }
}

/* Is due after code of the program's, which may have forked: this may be the child, and the content
 * where its parent goes on writing. 0, or -1 with an exception; then nothing may be written. */
static inline int mpx_buffer_settle(mpx_buffer_t *buffer)
{
    return buffer->grower != NULL && buffer->grower(buffer, 0) < 0 ? -1 : 0;
}

static inline int mpx_buffer_append(mpx_buffer_t *buffer, const void *data, size_t size)
{
    if (mpx_buffer_grow(buffer, size) < 0)
        return -1;
    if (size > 0)
        memcpy(buffer->data + buffer->size, data, size);
    buffer->size += size;
    return 0;
}

#endif
