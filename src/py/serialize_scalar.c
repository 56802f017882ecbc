/* serialize_scalar.c - see serialize.h: pickles of objects without parts, byte for byte as pickle
 * makes them, and read without its machine: for those who are told of pickles, not of our form.
 */
#include "serialize.h"

#if PY_VERSION_HEX >= 0x030E0000
#    define PROTOCOL 5
#else
#    define PROTOCOL 4
#endif

/* Longer texts and bytes are left to pickle: it does not take longer for them. */
#define MOST 4096

/* Before the content: the protocol, and the length of the frame, where that has so many bytes. */
#define PROTO       '\x80'
#define FRAME       '\x95'
#define FRAME_LEAST 4
#define START_SIZE  2
#define FRAME_SIZE  9

#define STOP    '.'
#define MEMOIZE '\x94'

/* ---- Writing --------------------------------------------------------------------------------- */

/* What stands for an object, as far as it is short: the rest is at `data`. */
typedef struct {
    unsigned char head[16];
    size_t head_size;
    const char *data;
    size_t size;
    bool is_kept; /* in pickle's memo */
} scalar_t;

static void put_number(scalar_t *scalar, char code, uint64_t number, size_t size)
{
    scalar->head[0] = (unsigned char)code;
    for (size_t i = 0; i < size; i++)
        scalar->head[1 + i] = (unsigned char)(number >> 8 * i);
    scalar->head_size = 1 + size;
}

/* The bytes that a number takes with its sign. */
static size_t size_of(int64_t number)
{
    size_t size = 1;
    while (size < 8 && (number >> (8 * size - 1)) != 0 && (number >> (8 * size - 1)) != -1)
        size++;
    return size;
}

static bool look_at_int(PyObject *object, scalar_t *scalar)
{
    int overflow;
    int64_t number = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (overflow != 0)
        return false;
    if (number >= 0 && number <= UINT8_MAX) {
        put_number(scalar, 'K', (uint64_t)number, 1);
    } else if (number >= 0 && number <= UINT16_MAX) {
        put_number(scalar, 'M', (uint64_t)number, 2);
    } else if (number >= INT32_MIN && number <= INT32_MAX) {
        put_number(scalar, 'J', (uint64_t)number, 4);
    } else {
        size_t size = size_of(number);
        put_number(scalar, '\x8a', (uint64_t)number << 8 | size, 1 + size);
        if (size == 8) /* the shift has lost the upper byte */
            scalar->head[9] = (unsigned char)((uint64_t)number >> 56);
    }
    return true;
}

static bool look_at_float(PyObject *object, scalar_t *scalar)
{
    scalar->head[0] = 'G';
    scalar->head_size = 9;
    return PyFloat_Pack8(PyFloat_AS_DOUBLE(object), (char *)scalar->head + 1, 0) == 0;
}

static void look_at_bytes(scalar_t *scalar, char code, char long_code, const char *data,
                          size_t size)
{
    bool is_short = size <= UINT8_MAX;
    put_number(scalar, is_short ? code : long_code, size, is_short ? 1 : 4);
    scalar->data = data;
    scalar->size = size;
    scalar->is_kept = true;
}

static bool look_at(PyObject *object, scalar_t *scalar)
{
    *scalar = (scalar_t){.head_size = 1};
    if (PyLong_CheckExact(object))
        return look_at_int(object, scalar);
    if (PyUnicode_CheckExact(object) && PyUnicode_IS_COMPACT_ASCII(object)) {
        look_at_bytes(scalar, '\x8c', 'X', PyUnicode_DATA(object),
                      (size_t)PyUnicode_GET_LENGTH(object));
    } else if (PyBytes_CheckExact(object)) {
        look_at_bytes(scalar, 'C', 'B', PyBytes_AS_STRING(object),
                      (size_t)PyBytes_GET_SIZE(object));
    } else if (PyFloat_CheckExact(object)) {
        return look_at_float(object, scalar);
    } else if (object == Py_None || object == Py_True || object == Py_False) {
        scalar->head[0] = object == Py_None ? 'N' : object == Py_True ? 0x88 : 0x89;
    } else {
        return false;
    }
    return true;
}

int mpx_scalar_write(PyObject *object, mpx_buffer_t *out)
{
    scalar_t scalar;
    if (!look_at(object, &scalar) || scalar.size > MOST) {
        PyErr_Clear();
        return 1;
    }
    uint64_t size = scalar.head_size + scalar.size + scalar.is_kept + 1;
    if (mpx_buffer_grow(out, START_SIZE + FRAME_SIZE + size) < 0)
        return -1;
    char *at = out->data + out->size;
    *at++ = PROTO;
    *at++ = PROTOCOL;
    if (size >= FRAME_LEAST) {
        *at++ = FRAME;
        memcpy(at, &size, sizeof(size)); /* the core is for little-endian machines */
        at += sizeof(size);
    }
    memcpy(at, scalar.head, scalar.head_size);
    at += scalar.head_size;
    if (scalar.size > 0)
        memcpy(at, scalar.data, scalar.size);
    at += scalar.size;
    if (scalar.is_kept)
        *at++ = MEMOIZE;
    *at++ = STOP;
    out->size = (size_t)(at - out->data);
    return 0;
}

bool mpx_scalar_take_apart(PyObject *object, mpx_brackets_t *brackets, const char **data,
                           size_t *size)
{
    scalar_t scalar;
    if (!(PyBytes_CheckExact(object) || PyUnicode_CheckExact(object)) ||
        !look_at(object, &scalar) || scalar.size < MPX_UNFRAMED || scalar.size > UINT32_MAX)
        return false;
    brackets->before[0] = (unsigned char)PROTO;
    brackets->before[1] = PROTOCOL;
    memcpy(brackets->before + START_SIZE, scalar.head, scalar.head_size);
    brackets->before_size = START_SIZE + (unsigned)scalar.head_size;
    brackets->after[0] = (unsigned char)MEMOIZE;
    brackets->after[1] = STOP;
    brackets->after_size = 2;
    *data = scalar.data;
    *size = scalar.size;
    return true;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static uint64_t number_at(const char *data, size_t size)
{
    uint64_t number = 0;
    memcpy(&number, data, size);
    return number;
}

static PyObject *read_long(const char *data, size_t size)
{
    size_t count = (unsigned char)data[0];
    if (size != 1 + count || count == 0 || count > 8)
        return NULL;
    uint64_t number = number_at(data + 1, count);
    unsigned spare = (unsigned)(64 - 8 * count);
    return PyLong_FromLongLong((int64_t)(number << spare) >> spare);
}

static PyObject *read_float(const char *data)
{
    double number = PyFloat_Unpack8(data, 0);
    return number == -1.0 && PyErr_Occurred() ? NULL : PyFloat_FromDouble(number);
}

/* Text or bytes whose length has so many bytes, and that pickle has kept, or not. */
static PyObject *read_bytes(const char *data, size_t size, size_t length_size, bool is_text)
{
    if (size < length_size)
        return NULL;
    uint64_t length = number_at(data, length_size);
    const char *content = data + length_size;
    size -= length_size;
    bool is_kept = size > 0 && length == size - 1 && content[size - 1] == MEMOIZE;
    if (!is_kept && length != size)
        return NULL;
    return is_text ? PyUnicode_DecodeUTF8(content, (Py_ssize_t)length, "surrogatepass")
                   : PyBytes_FromStringAndSize(content, (Py_ssize_t)length);
}

/* The object of a code, and of what follows before the stop; NULL: of another form. */
static PyObject *read_scalar(unsigned char code, const char *data, size_t size)
{
    switch (code) {
    case 'K':
        return size == 1 ? PyLong_FromLong((long)number_at(data, 1)) : NULL;
    case 'M':
        return size == 2 ? PyLong_FromLong((long)number_at(data, 2)) : NULL;
    case 'J':
        return size == 4 ? PyLong_FromLong((int32_t)number_at(data, 4)) : NULL;
    case 0x8a:
        return size > 1 ? read_long(data, size) : NULL;
    case 'G':
        return size == 8 ? read_float(data) : NULL;
    case 0x8c:
        return read_bytes(data, size, 1, true);
    case 'X':
        return read_bytes(data, size, 4, true);
    case 'C':
        return read_bytes(data, size, 1, false);
    case 'B':
        return read_bytes(data, size, 4, false);
    case 'N':
        return size == 0 ? Py_NewRef(Py_None) : NULL;
    case 0x88:
        return size == 0 ? Py_NewRef(Py_True) : NULL;
    case 0x89:
        return size == 0 ? Py_NewRef(Py_False) : NULL;
    default:
        return NULL;
    }
}

bool mpx_pickle_is_bytes(const char *data, size_t size)
{
    return data[0] == PROTO && data[1] == PROTOCOL && data[START_SIZE] == 'B' &&
           number_at(data + START_SIZE + 1, sizeof(uint32_t)) == size - MPX_BYTES_AROUND;
}

bool mpx_pickle_ends(const char *data)
{
    return data[0] == MEMOIZE && data[1] == STOP;
}

PyObject *mpx_scalar_read(const char *data, size_t size)
{
    size_t start = START_SIZE;
    if (size < START_SIZE + 2 || data[0] != PROTO || data[1] != PROTOCOL || data[size - 1] != STOP)
        return NULL;
    if (data[START_SIZE] == FRAME) {
        start += FRAME_SIZE;
        if (size < start + FRAME_LEAST ||
            number_at(data + START_SIZE + 1, sizeof(uint64_t)) != size - start)
            return NULL;
    }
    PyObject *object = read_scalar((unsigned char)data[start], data + start + 1, size - start - 2);
    if (object == NULL)
        PyErr_Clear();
    return object;
}
