/* received.c - see received.h. */
#include "received.h"

#include "serialize.h"

/* So much memory is taken for a message because its header says so; more, as it comes. */
#define TRUSTED ((size_t)1 << 20)

/* The same of an object, which is not written to before the bytes come. */
#define OBJECT_LEAST MPX_UNFRAMED
#define OBJECT_MOST  ((size_t)64 << 20)

static size_t object_size(const mpx_received_t *received)
{
    return received->bytes == NULL ? 0 : (size_t)PyBytes_GET_SIZE(received->bytes);
}

/* Without memory for it, it goes on without it. */
static void make_object(mpx_received_t *received, size_t at, size_t size)
{
    received->at = at;
    received->bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (received->bytes == NULL)
        PyErr_Clear();
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
    bool is_large = size >= OBJECT_LEAST && size <= OBJECT_MOST;
    bool looks = is_large && purpose == MPX_FOR_OBJECT && received->bytes == NULL;
    if (is_large && purpose == MPX_FOR_BYTES && got == 0 && received->bytes == NULL)
        make_object(received, 0, (size_t)size);
    if (looks && got == MPX_BYTES_BEFORE &&
        mpx_pickle_is_bytes(received->buffer.data, (size_t)size))
        make_object(received, MPX_BYTES_BEFORE, (size_t)size - MPX_BYTES_AROUND);
    size_t length = object_size(received);
    if (got >= received->at && got - received->at < length) {
        size_t in_object = (size_t)got - received->at;
        *room = length - in_object;
        return PyBytes_AS_STRING(received->bytes) + in_object;
    }
    received->buffer.size = (size_t)got - (got > received->at ? length : 0);
    uint64_t end = looks && got < MPX_BYTES_BEFORE ? MPX_BYTES_BEFORE : size;
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
    bool is_object =
        received->bytes != NULL &&
        (purpose == MPX_FOR_BYTES ? buffer->size == 0
                                  : purpose == MPX_FOR_OBJECT && received->at == MPX_BYTES_BEFORE &&
                                        mpx_pickle_ends(buffer->data + MPX_BYTES_BEFORE));
    return is_object ? 0 : mpx_received_join(received);
}
