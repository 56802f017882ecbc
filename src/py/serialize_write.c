/* serialize_write.c - plain trees of objects to bytes.
 *
 * Plain is what has exactly the type None, bool, int, float, str, bytes, tuple, list or dict, to a
 * bounded depth. Such an object is one that pickle, too, writes without looking at any table of
 * reducers and without running Python code; so with a GIL nothing changes while it is written.
 *
 * Identities: pickle remembers strings, bytes and containers, no numbers, and so an object at two
 * places stays one. A place owns a reference: what has only one is at no other place, and needs not
 * be remembered. All others get a number, and at further places the number is written.
 *
 * Without a GIL other threads may change lists and dicts meanwhile. So each is written from a copy,
 * one of the states in between; and what is remembered is owned until the end, so that no address
 * means two objects. (To find a list changed and leave it to pickle would not do: in 3.13 pickle
 * crashes on a list that becomes shorter.)
 */
#include "serialize.h"

#include <limits.h>
#include <stdint.h>

/* What writing a value ends with, beside 0, and -1 with an exception. */
#define NOT_PLAIN 1
#define BY_NUMBER 2 /* `meet` alone: the object was met before, and is written */

#ifdef Py_GIL_DISABLED
#    define OWNED_BY_WRITER 1
#else
#    define OWNED_BY_WRITER 0
#endif

/* An object that was met. */
typedef struct {
    PyObject *object;
    uint32_t number; /* or NO_NUMBER while its items are written */
} known_t;

#define NO_NUMBER UINT32_MAX

/* On the stack; twice as much, and so on, on the heap. Half of the slots stay free: a search ends
 * soon. */
#define KNOWN    64
#define MOST     ((uint32_t)1 << 24)
#define SLOTS(n) (2 * (size_t)(n))

typedef struct {
    char *at, *end; /* what is free in the buffer */
    mpx_buffer_t *out;
    int depth;
    uint32_t count, capacity, numbered; /* of known objects */
    known_t *known;
    uint32_t *slots; /* by address: 1 + the index in `known`, or 0 */
    known_t first_known[KNOWN];
    uint32_t first_slots[SLOTS(KNOWN)];
} writer_t;

static int write_value(writer_t *writer, PyObject *object, int owned);

/* Room for `size` bytes; *writer->at is to be moved by who fills it. */
static inline int make_room(writer_t *writer, size_t size)
{
    if (MPX_LIKELY((size_t)(writer->end - writer->at) >= size))
        return 0;
    mpx_buffer_t *out = writer->out;
    out->size = (size_t)(writer->at - out->data);
    if (mpx_buffer_grow(out, size) < 0)
        return -1;
    writer->at = out->data + out->size;
    writer->end = out->data + out->capacity;
    return 0;
}

static inline void put(writer_t *writer, const void *data, size_t size)
{
    memcpy(writer->at, data, size);
    writer->at += size;
}

#define HEAD_SIZE 10 /* tag and length */

static inline void put_head(writer_t *writer, unsigned tag, size_t length)
{
    *writer->at++ = (char)tag;
    *writer->at++ = length < 0xff ? (char)length : (char)0xff;
    if (length >= 0xff) {
        uint64_t wide = length;
        put(writer, &wide, sizeof wide);
    }
}

/* The place of an object in `slots`: its own, or the free one where it would go. */
static inline uint32_t *slot_of(const writer_t *writer, PyObject *object)
{
    size_t mask = SLOTS(writer->capacity) - 1;
    size_t slot = ((uintptr_t)object >> 4) * UINT64_C(0x9e3779b97f4a7c15) >> 32 & mask;
    while (writer->slots[slot] != 0 && writer->known[writer->slots[slot] - 1].object != object)
        slot = (slot + 1) & mask;
    return &writer->slots[slot];
}

static void free_known(writer_t *writer)
{
    if (writer->capacity > KNOWN) {
        PyMem_RawFree(writer->known);
        PyMem_RawFree(writer->slots);
    }
}

/* Makes room for more known objects. */
static int grow_known(writer_t *writer)
{
    if (writer->capacity == 0) {
        writer->capacity = KNOWN;
        writer->known = writer->first_known;
        writer->slots = writer->first_slots;
        memset(writer->slots, 0, sizeof writer->first_slots);
        return 0;
    }
    if (writer->capacity == MOST)
        return NOT_PLAIN;
    uint32_t capacity = writer->capacity * 2;
    known_t *known = PyMem_RawMalloc(capacity * sizeof *known);
    uint32_t *slots = PyMem_RawCalloc(SLOTS(capacity), sizeof *slots);
    if (known == NULL || slots == NULL) {
        PyMem_RawFree(known);
        PyMem_RawFree(slots);
        PyErr_NoMemory();
        return -1;
    }
    memcpy(known, writer->known, writer->count * sizeof *known);
    free_known(writer);
    writer->known = known;
    writer->slots = slots;
    writer->capacity = capacity;
    for (uint32_t i = 0; i < writer->count; i++)
        *slot_of(writer, known[i].object) = i + 1;
    return 0;
}

/* Looks whether an object was met before. 0: it was not, *index is where it is known from now on
 * (-1: it can be only here), and *flag is to be added to its tag. */
static inline int meet(writer_t *writer, PyObject *object, int owned, int64_t *index,
                       unsigned *flag)
{
    *index = -1;
    *flag = 0;
    if (Py_REFCNT(object) <= 1 + owned)
        return 0;
    int status;
    if (writer->count == writer->capacity && (status = grow_known(writer)) != 0)
        return status;
    uint32_t *slot = slot_of(writer, object);
    if (*slot != 0) {
        uint32_t number = writer->known[*slot - 1].number;
        if (number == NO_NUMBER)
            return NOT_PLAIN; /* it is in itself */
        if (make_room(writer, HEAD_SIZE) < 0)
            return -1;
        put_head(writer, MPX_TAG_KNOWN, number);
        return BY_NUMBER;
    }
#ifdef Py_GIL_DISABLED
    Py_INCREF(object);
#endif
    *index = writer->count++;
    *flag = MPX_TAG_NUMBERED;
    writer->known[*index] = (known_t){object, NO_NUMBER};
    *slot = writer->count;
    return 0;
}

/* Gives an object that was met, and is written, its number. */
static inline void number(writer_t *writer, int64_t index)
{
    if (index >= 0)
        writer->known[index].number = writer->numbered++;
}

/* The number of bytes that an int of any size takes, 0 where it is left to pickle. */
static size_t int_size(PyObject *object)
{
#if PY_VERSION_HEX >= 0x030D0000
    Py_ssize_t size = PyLong_AsNativeBytes(object, NULL, 0, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
    return size > 0 && size <= INT16_MAX ? (size_t)size : 0;
#else
    size_t bits = _PyLong_NumBits(object);
    return bits < (size_t)INT16_MAX * 8 ? bits / 8 + 1 : 0; /* one more for the sign */
#endif
}

static int write_long_int(writer_t *writer, PyObject *object)
{
    size_t size = int_size(object);
    if (size == 0)
        return NOT_PLAIN;
    if (make_room(writer, HEAD_SIZE + size) < 0)
        return -1;
    put_head(writer, MPX_TAG_INT_LONG, size);
#if PY_VERSION_HEX >= 0x030D0000
    if (PyLong_AsNativeBytes(object, writer->at, (Py_ssize_t)size, Py_ASNATIVEBYTES_LITTLE_ENDIAN) <
        0)
        return -1;
#else
    if (_PyLong_AsByteArray((PyLongObject *)object, (unsigned char *)writer->at, size, 1, 1) < 0)
        return -1;
#endif
    writer->at += size;
    return 0;
}

static inline int write_int(writer_t *writer, PyObject *object)
{
    int overflow;
    long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
    if (MPX_UNLIKELY(overflow != 0))
        return write_long_int(writer, object);
    if (make_room(writer, 1 + sizeof value) < 0)
        return -1;
    if (value >= INT8_MIN && value <= INT8_MAX) {
        *writer->at++ = (char)MPX_TAG_INT8;
        *writer->at++ = (char)value;
    } else if (value >= INT32_MIN && value <= INT32_MAX) {
        int32_t narrow = (int32_t)value;
        *writer->at++ = (char)MPX_TAG_INT32;
        put(writer, &narrow, sizeof narrow);
    } else {
        *writer->at++ = (char)MPX_TAG_INT64;
        put(writer, &value, sizeof value);
    }
    return 0;
}

static inline int write_float(writer_t *writer, PyObject *object)
{
    double value = PyFloat_AS_DOUBLE(object);
    if (make_room(writer, 1 + sizeof value) < 0)
        return -1;
    *writer->at++ = (char)MPX_TAG_FLOAT;
    put(writer, &value, sizeof value);
    return 0;
}

static inline int write_characters(writer_t *writer, unsigned tag, const void *data, size_t length,
                                   size_t size)
{
    if (make_room(writer, HEAD_SIZE + size) < 0)
        return -1;
    put_head(writer, tag, length);
    put(writer, data, size);
    return 0;
}

/* The object is at no other place: it is the whole message. */
#define ALONE INT_MAX

static inline int write_str(writer_t *writer, PyObject *object, int owned)
{
#if PY_VERSION_HEX < 0x030C0000
    if (PyUnicode_READY(object) < 0)
        return -1;
#endif
    size_t length = (size_t)PyUnicode_GET_LENGTH(object);
    int kind = PyUnicode_KIND(object);
    unsigned tag = PyUnicode_IS_ASCII(object)     ? MPX_TAG_ASCII
                   : kind == PyUnicode_1BYTE_KIND ? MPX_TAG_STR_1
                   : kind == PyUnicode_2BYTE_KIND ? MPX_TAG_STR_2
                                                  : MPX_TAG_STR_4;
    int64_t index = -1;
    unsigned flag = 0;
    /* Of the shortest there is one each, wherever they come from; not so of bytes, which pickle
     * makes anew. */
    if (owned != ALONE && (length > 1 || kind != PyUnicode_1BYTE_KIND)) {
        int status = meet(writer, object, owned, &index, &flag);
        if (status != 0)
            return status;
    }
    number(writer, index);
    return write_characters(writer, tag | flag, PyUnicode_DATA(object), length,
                            length * (size_t)kind);
}

static inline int write_bytes(writer_t *writer, PyObject *object, int owned)
{
    size_t size = (size_t)PyBytes_GET_SIZE(object);
    int64_t index = -1;
    unsigned flag = 0;
    if (size > 0) {
        int status = meet(writer, object, owned, &index, &flag);
        if (status != 0)
            return status;
    }
    number(writer, index);
    return write_characters(writer, MPX_TAG_BYTES | flag, PyBytes_AS_STRING(object), size, size);
}

static int write_tuple(writer_t *writer, PyObject *object, int owned)
{
    Py_ssize_t count = PyTuple_GET_SIZE(object);
    int64_t index = -1;
    int status;
    unsigned flag = 0;
    if (count > 0 && (status = meet(writer, object, owned, &index, &flag)) != 0)
        return status;
    if (make_room(writer, HEAD_SIZE) < 0)
        return -1;
    put_head(writer, MPX_TAG_TUPLE | flag, (size_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if ((status = write_value(writer, PyTuple_GET_ITEM(object, i), 0)) != 0)
            return status;
    }
    number(writer, index);
    return 0;
}

/* Lists and dicts are written from what nobody changes: with a GIL themselves, without one a copy
 * of one moment, which the caller drops. NULL with an exception. */
#ifdef Py_GIL_DISABLED
#    define STILL_LIST(list) PyList_AsTuple(list)
#    define STILL_DICT(dict) PyDict_Copy(dict)
#    define STILL_ITEMS(still, count) \
        ((count) = PyTuple_GET_SIZE(still), ((PyTupleObject *)(still))->ob_item)
#    define DROP(still) Py_DECREF(still)
#else
#    define STILL_LIST(list) (list)
#    define STILL_DICT(dict) (dict)
#    define STILL_ITEMS(still, count) \
        ((count) = PyList_GET_SIZE(still), ((PyListObject *)(still))->ob_item)
#    define DROP(still)
#endif

/* Whether it is worth to try write_floats: there are floats at either end and in the middle. */
static bool may_be_floats(PyObject **items, Py_ssize_t count)
{
    return count > 2 && PyFloat_CheckExact(items[0]) && PyFloat_CheckExact(items[count / 2]) &&
           PyFloat_CheckExact(items[count - 1]);
}

/* A list of nothing but floats; NOT_PLAIN, and nothing written, where there is something else. */
static int write_floats(writer_t *writer, PyObject **items, Py_ssize_t count, unsigned flag)
{
    if (make_room(writer, HEAD_SIZE + (size_t)count * sizeof(double)) < 0)
        return -1;
    char *before = writer->at;
    put_head(writer, MPX_TAG_FLOATS | flag, (size_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyFloat_CheckExact(items[i])) {
            writer->at = before;
            return NOT_PLAIN;
        }
        double value = PyFloat_AS_DOUBLE(items[i]);
        put(writer, &value, sizeof value);
    }
    return 0;
}

static int write_items(writer_t *writer, PyObject **items, Py_ssize_t count, unsigned flag)
{
    int status;
    if (may_be_floats(items, count) &&
        (status = write_floats(writer, items, count, flag)) != NOT_PLAIN)
        return status;
    if (make_room(writer, HEAD_SIZE) < 0)
        return -1;
    put_head(writer, MPX_TAG_LIST | flag, (size_t)count);
    for (Py_ssize_t i = 0; i < count; i++) {
        if ((status = write_value(writer, items[i], OWNED_BY_WRITER)) != 0)
            return status;
    }
    return 0;
}

static int write_list(writer_t *writer, PyObject *object, int owned)
{
    int64_t index;
    int status;
    unsigned flag;
    if ((status = meet(writer, object, owned, &index, &flag)) != 0)
        return status;
    PyObject *still = STILL_LIST(object);
    if (still == NULL)
        return -1;
    Py_ssize_t count;
    PyObject **items = STILL_ITEMS(still, count);
    if ((status = write_items(writer, items, count, flag)) == 0)
        number(writer, index);
    DROP(still);
    return status;
}

static int write_pairs(writer_t *writer, PyObject *dict, unsigned flag)
{
    if (make_room(writer, HEAD_SIZE) < 0)
        return -1;
    put_head(writer, MPX_TAG_DICT | flag, (size_t)PyDict_GET_SIZE(dict));
    Py_ssize_t at = 0;
    PyObject *key, *value;
    int status;
    while (PyDict_Next(dict, &at, &key, &value)) {
        if ((status = write_value(writer, key, OWNED_BY_WRITER)) != 0 ||
            (status = write_value(writer, value, OWNED_BY_WRITER)) != 0)
            return status;
    }
    return 0;
}

static int write_dict(writer_t *writer, PyObject *object, int owned)
{
    int64_t index;
    int status;
    unsigned flag;
    if ((status = meet(writer, object, owned, &index, &flag)) != 0)
        return status;
    PyObject *still = STILL_DICT(object);
    if (still == NULL)
        return -1;
    if ((status = write_pairs(writer, still, flag)) == 0)
        number(writer, index);
    DROP(still);
    return status;
}

static int write_container(writer_t *writer, PyObject *object, int owned)
{
    int (*write)(writer_t *, PyObject *, int) = PyList_CheckExact(object)    ? write_list
                                                : PyDict_CheckExact(object)  ? write_dict
                                                : PyTuple_CheckExact(object) ? write_tuple
                                                                             : NULL;
    if (write == NULL || writer->depth == MPX_TREE_DEPTH)
        return NOT_PLAIN;
    writer->depth++;
    int status = write(writer, object, owned);
    writer->depth--;
    return status;
}

/* `owned`: how many of the object's references are this file's own. */
static int write_value(writer_t *writer, PyObject *object, int owned)
{
    PyTypeObject *type = Py_TYPE(object);
    int status;
    if (type == &PyUnicode_Type) {
        status = write_str(writer, object, owned);
    } else if (type == &PyLong_Type) {
        status = write_int(writer, object);
    } else if (type == &PyFloat_Type) {
        status = write_float(writer, object);
    } else if (object == Py_None || type == &PyBool_Type) {
        if ((status = make_room(writer, 1)) == 0)
            *writer->at++ = (char)(object == Py_None   ? MPX_TAG_NONE
                                   : object == Py_True ? MPX_TAG_TRUE
                                                       : MPX_TAG_FALSE);
    } else if (type == &PyBytes_Type) {
        status = write_bytes(writer, object, owned);
    } else {
        status = write_container(writer, object, owned);
    }
    return status == BY_NUMBER ? 0 : status;
}

static int write_tree(PyObject *object, mpx_buffer_t *out)
{
    writer_t writer;
    writer.at = out->data + out->size;
    writer.end = out->data + out->capacity;
    writer.out = out;
    writer.depth = 0;
    writer.count = writer.capacity = writer.numbered = 0;
    /* None of its references is known to be a place's: the root may be anywhere below itself. */
    int status = write_value(&writer, object, -1);
#ifdef Py_GIL_DISABLED
    for (uint32_t i = 0; i < writer.count; i++)
        Py_DECREF(writer.known[i].object);
#endif
    free_known(&writer);
    if (status == 0)
        out->size = (size_t)(writer.at - out->data);
    return status;
}

/* An int or a str is all there is: it is written without more ado. */
int mpx_tree_write(PyObject *object, mpx_buffer_t *out)
{
    bool is_int = PyLong_CheckExact(object);
    if (mpx_buffer_grow(out, HEAD_SIZE) < 0)
        return -1;
    if (!is_int && !PyUnicode_CheckExact(object))
        return write_tree(object, out);
    writer_t writer;
    writer.at = out->data + out->size;
    writer.end = out->data + out->capacity;
    writer.out = out;
    int status = is_int ? write_int(&writer, object) : write_str(&writer, object, ALONE);
    if (status == 0)
        out->size = (size_t)(writer.at - out->data);
    return status;
}

/* ---- A list, item by item -------------------------------------------------------------------- */

/* With the wide form of the count, which is not known yet. */
int mpx_list_begin(mpx_buffer_t *out)
{
    if (mpx_buffer_grow(out, HEAD_SIZE) < 0)
        return -1;
    out->data[0] = (char)MPX_TAG_LIST;
    out->data[1] = (char)0xff;
    out->size = HEAD_SIZE;
    return 0;
}

int mpx_list_add_number(mpx_buffer_t *out, PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    if (type != &PyLong_Type && type != &PyFloat_Type && type != &PyBool_Type && object != Py_None)
        return NOT_PLAIN;
    writer_t writer; /* no more of it than where it is: numbers are not remembered */
    writer.at = out->data + out->size;
    writer.end = out->data + out->capacity;
    writer.out = out;
    int status = write_value(&writer, object, 0);
    if (status == 0)
        out->size = (size_t)(writer.at - out->data);
    return status;
}

void mpx_list_end(mpx_buffer_t *out, size_t count)
{
    uint64_t wide = count;
    memcpy(out->data + HEAD_SIZE - sizeof(wide), &wide, sizeof(wide));
}
