/* received.c - see received.h. */
#include "received.h"

#include "serialize.h"

/* So much memory is taken for a message because its header says so; more, as it comes. */
#define TRUSTED ((size_t)1 << 20)

/* The same of an object, which is not written to before the bytes come; and a larger one when so
 * much of it has come that it is at most that many times as large. */
#define OBJECT_LEAST  MPX_UNFRAMED
#define OBJECT_MOST   ((uint64_t)1 << 30)
#define OBJECT_LARGER 16

static size_t object_size(const mpx_received_t *received)
{
    return received->bytes == NULL ? 0 : (size_t)PyBytes_GET_SIZE(received->bytes);
}

/* The object of that size, whose bytes begin at `at` in the message; what of them is among the
 * `got` bytes in the buffer is in it then, and no longer there. False with an exception, and it is
 * as before. */
static bool make_object(mpx_received_t *received, size_t at, size_t size, size_t got)
{
    mpx_buffer_t *buffer = &received->buffer;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes == NULL)
        return false;
    if (got > at)
        memcpy(PyBytes_AS_STRING(bytes), buffer->data + at, Py_MIN(got - at, size));
    received->bytes = bytes;
    received->at = at;
    if (got > at)
        mpx_buffer_shrink(buffer, at);
    return true;
}

/* Its size if an object is to be made for it now that `got` bytes of the message are in the buffer,
 * else 0; *at is where it begins. Where there was no memory for it, it is tried again when the
 * buffer is full. */
static size_t wanted_object(const mpx_received_t *received, mpx_purpose_t purpose, uint64_t size,
                            uint64_t got, size_t *at)
{
    const mpx_buffer_t *buffer = &received->buffer;
    bool is_full = got >= TRUSTED && got == buffer->capacity;
    *at = purpose == MPX_FOR_OBJECT ? MPX_BYTES_BEFORE : 0;
    if (received->bytes != NULL || size < OBJECT_LEAST || (got != *at && !is_full))
        return 0;
    if (size > OBJECT_MOST && size / OBJECT_LARGER > got)
        return 0;
    if (purpose == MPX_FOR_BYTES)
        return (size_t)size;
    bool is_bytes = purpose == MPX_FOR_OBJECT && mpx_pickle_is_bytes(buffer->data, (size_t)size);
    return is_bytes ? (size_t)size - MPX_BYTES_AROUND : 0;
}

static char *room_in_buffer(mpx_received_t *received, uint64_t left, size_t *room)
{
    mpx_buffer_t *buffer = &received->buffer;
    bool is_short = buffer->size < TRUSTED;
    size_t more = is_short ? TRUSTED - buffer->size : buffer->size;
    if (is_short || buffer->size == buffer->capacity) {
        if (mpx_buffer_grow(buffer, left < more ? (size_t)left : more) < 0)
            return NULL;
    }
    *room = buffer->capacity - buffer->size;
    if (*room > left)
        *room = (size_t)left;
    return buffer->data + buffer->size;
}

char *mpx_received_room(mpx_received_t *received, mpx_purpose_t purpose, uint64_t size,
                        uint64_t got, size_t *room)
{
    size_t at, wanted = wanted_object(received, purpose, size, got, &at);
    if (wanted > 0 && !make_object(received, at, wanted, (size_t)got))
        PyErr_Clear(); /* it goes on in the buffer */
    size_t length = object_size(received);
    if (got >= received->at && got - received->at < length) {
        size_t in_object = (size_t)got - received->at;
        *room = length - in_object;
        return PyBytes_AS_STRING(received->bytes) + in_object;
    }
    received->buffer.size = (size_t)got - (got > received->at ? length : 0);
    bool looks = purpose == MPX_FOR_OBJECT && size >= OBJECT_LEAST && got < MPX_BYTES_BEFORE;
    uint64_t end = looks ? MPX_BYTES_BEFORE : size;
    return room_in_buffer(received, end - got, room);
}

int mpx_received_join(mpx_received_t *received)
{
    mpx_buffer_t *buffer = &received->buffer;
    size_t length = object_size(received), at = received->at;
    if (received->bytes == NULL)
        return 0;
    if (mpx_buffer_grow(buffer, length) < 0)
        return -1;
    memmove(buffer->data + at + length, buffer->data + at, buffer->size - at);
    memcpy(buffer->data + at, PyBytes_AS_STRING(received->bytes), length);
    buffer->size += length;
    Py_CLEAR(received->bytes);
    return 0;
}

void mpx_received_drop(PyObject *module, mpx_received_t *received)
{
    Py_CLEAR(received->bytes);
    if (received->buffer.data != NULL)
        mpx_give_buffer(module, &received->buffer);
    *received = (mpx_received_t){.bytes = NULL};
}

int mpx_received_end(mpx_received_t *received, mpx_purpose_t purpose, size_t size)
{
    mpx_buffer_t *buffer = &received->buffer;
    buffer->size = size - object_size(received);
    if (purpose == MPX_FOR_BYTES && received->bytes == NULL && size >= OBJECT_LEAST)
        return make_object(received, 0, size, size) ? 0 : -1;
    bool is_object =
        received->bytes != NULL &&
        (purpose == MPX_FOR_BYTES ? buffer->size == 0
                                  : purpose == MPX_FOR_OBJECT && received->at == MPX_BYTES_BEFORE &&
                                        mpx_pickle_ends(buffer->data + MPX_BYTES_BEFORE));
    return is_object ? 0 : mpx_received_join(received);
}
