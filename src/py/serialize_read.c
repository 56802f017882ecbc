/* serialize_read.c - messages of plain trees back to objects.
 *
 * The bytes are not trusted: another process wrote them, and may be out of its mind. Every length
 * is compared with what is left of the message, of which every item of every container that is open
 * needs one byte more, so what is allocated is at most a constant factor of the message's size.
 * Strings are made such that no bytes give an invalid one, nor bytes that change meanwhile: what
 * another process can write to (`is_shared`) is copied first and looked at then, and what decides
 * something is read once.
 *
 * Making objects may start a garbage collection, and comparing a dict's keys may warn (python -bb),
 * so Python code may run between. A list or tuple that has empty places is hidden from it; and it
 * may fork: so after that (`settle`) the bytes of a shared message may lie elsewhere.
 */
#include "serialize.h"

#include <stdint.h>

#include "fork_copy.h"

#define KNOWN 64 /* numbered objects, on the stack; for more there is the heap */

typedef struct {
    const unsigned char *at, *end;
    size_t open; /* items to come, of all containers that are being read */
    int depth;
    bool is_shared;
    const unsigned char *start;
    mpx_fork_copy_t *shared; /* where the message is shared */
    size_t count, capacity;  /* of numbered objects */
    PyObject **known;        /* they, owned */
    mpx_keys_t *keys;
    uint64_t message; /* its number, for the keys */
    PyObject *first_known[KNOWN];
} reader_t;

static PyObject *read_value(reader_t *reader);

static PyObject *damaged(void)
{
    PyObject *error = mpx_unpickling_error();
    if (error != NULL) {
        PyErr_SetString(error, "the message is damaged");
        Py_DECREF(error);
    }
    return NULL;
}

static inline size_t left(const reader_t *reader)
{
    return (size_t)(reader->end - reader->at);
}

/* Reads that many bytes into `to`; false where there are not so many. */
static inline bool take(reader_t *reader, void *to, size_t size)
{
    if (MPX_UNLIKELY(left(reader) < size))
        return false;
    memcpy(to, reader->at, size);
    reader->at += size;
    return true;
}

/* The length of something whose units take `unit` bytes or more each of what is left. */
static inline bool take_length(reader_t *reader, size_t unit, size_t *length)
{
    uint8_t narrow;
    uint64_t wide;
    if (!take(reader, &narrow, 1))
        return false;
    MPX_READ_ONCE(narrow);
    wide = narrow;
    if (narrow == 0xff) {
        if (!take(reader, &wide, sizeof wide))
            return false;
        MPX_READ_ONCE(wide);
    }
    *length = (size_t)wide;
    return unit == 0 || wide <= left(reader) / unit;
}

/* Twice as much room for numbered objects, of which each takes at least two bytes of the message.
 */
static int grow_known(reader_t *reader)
{
    bool is_first = reader->capacity == KNOWN;
    size_t size = reader->capacity * sizeof *reader->known;
    PyObject **known = PyMem_RawRealloc(is_first ? NULL : reader->known, 2 * size);
    if (known == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    if (is_first)
        memcpy(known, reader->first_known, size);
    reader->known = known;
    reader->capacity *= 2;
    return 0;
}

/* An object that is complete, or NULL, is handed on, with the next number where it is to have one.
 */
static inline PyObject *numbered(reader_t *reader, PyObject *object, bool is_numbered)
{
    if (!is_numbered || object == NULL)
        return object;
    if (reader->count == reader->capacity && grow_known(reader) < 0) {
        Py_DECREF(object);
        return NULL;
    }
    reader->known[reader->count++] = Py_NewRef(object);
    return object;
}

static PyObject *read_known(reader_t *reader)
{
    size_t number;
    if (!take_length(reader, 0, &number) || number >= reader->count)
        return damaged();
    return Py_NewRef(reader->known[number]);
}

static PyObject *make_long_int(const unsigned char *bytes, size_t size)
{
#if PY_VERSION_HEX >= 0x030D0000
    return PyLong_FromNativeBytes(bytes, size, Py_ASNATIVEBYTES_LITTLE_ENDIAN);
#else
    return _PyLong_FromByteArray(bytes, size, 1, 1);
#endif
}

static PyObject *read_long_int(reader_t *reader)
{
    size_t size;
    if (!take_length(reader, 1, &size))
        return damaged();
    if (!reader->is_shared) {
        reader->at += size;
        return make_long_int(reader->at - size, size);
    }
    unsigned char *bytes = PyMem_RawMalloc(size);
    if (bytes == NULL)
        return PyErr_NoMemory();
    take(reader, bytes, size);
    PyObject *object = make_long_int(bytes, size);
    PyMem_RawFree(bytes);
    return object;
}

static PyObject *read_int64(reader_t *reader)
{
    int64_t value;
    return take(reader, &value, sizeof value) ? PyLong_FromLongLong(value) : damaged();
}

static PyObject *read_int32(reader_t *reader)
{
    int32_t value;
    return take(reader, &value, sizeof value) ? PyLong_FromLong(value) : damaged();
}

static PyObject *read_int8(reader_t *reader)
{
    int8_t value;
    return take(reader, &value, 1) ? PyLong_FromLong(value) : damaged();
}

static PyObject *read_float(reader_t *reader)
{
    double value;
    return take(reader, &value, sizeof value) ? PyFloat_FromDouble(value) : damaged();
}

static PyObject *read_bytes(reader_t *reader)
{
    size_t size;
    if (!take_length(reader, 1, &size))
        return damaged();
    /* As pickle does: of one byte, too, a new object. */
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (bytes != NULL)
        take(reader, PyBytes_AS_STRING(bytes), size);
    return bytes;
}

static inline bool is_ascii(const unsigned char *characters, size_t length)
{
    unsigned char all = 0;
    for (size_t i = 0; i < length; i++)
        all |= characters[i];
    return all <= 0x7f;
}

#define SHORT 64

/* Copies what others may write to; whether it is ASCII what was copied. Of a few characters each is
 * read once: to look at them just after they were stored would have the processor wait. */
static inline bool copy_ascii(unsigned char *to, const unsigned char *from, size_t length)
{
    uint64_t all = 0, word;
    size_t i = 0;
    if (length >= SHORT) {
        memcpy(to, from, length);
        return is_ascii(to, length);
    }
    for (; i + sizeof word <= length; i += sizeof word) {
        memcpy(&word, from + i, sizeof word);
        MPX_READ_ONCE(word);
        memcpy(to + i, &word, sizeof word);
        all |= word;
    }
    for (; i < length; i++) {
        unsigned char character = from[i];
        MPX_READ_ONCE(character);
        to[i] = character;
        all |= character;
    }
    return (all & UINT64_C(0x8080808080808080)) == 0;
}

/* There is one str of each single character. */
static PyObject *make_character(unsigned char character)
{
    return PyUnicode_FromKindAndData(PyUnicode_1BYTE_KIND, &character, 1);
}

/* What nobody changes is looked at before it is copied, as it lies in the processor's cache. */
static inline PyObject *make_ascii(const unsigned char *characters, size_t length, bool is_shared)
{
    if (MPX_UNLIKELY(!is_shared && !is_ascii(characters, length)))
        return damaged();
    if (MPX_UNLIKELY(length == 1))
        return make_character(*characters & 0x7f); /* whatever it is by now */
    PyObject *str = PyUnicode_New((Py_ssize_t)length, 0x7f);
    if (MPX_UNLIKELY(str == NULL))
        return NULL;
    if (!is_shared) {
        memcpy(PyUnicode_1BYTE_DATA(str), characters, length);
    } else if (MPX_UNLIKELY(!copy_ascii(PyUnicode_1BYTE_DATA(str), characters, length))) {
        Py_DECREF(str);
        return damaged();
    }
    return str;
}

static PyObject *read_ascii(reader_t *reader)
{
    size_t length;
    if (!take_length(reader, 1, &length))
        return damaged();
    reader->at += length;
    return make_ascii(reader->at - length, length, reader->is_shared);
}

/* As below. */
static PyObject *read_str_1(reader_t *reader)
{
    size_t length;
    if (!take_length(reader, 1, &length) || length == 0)
        return damaged();
    PyObject *str = PyUnicode_New((Py_ssize_t)length, 0xff);
    if (str == NULL)
        return NULL;
    take(reader, PyUnicode_1BYTE_DATA(str), length);
    PyObject *result = is_ascii(PyUnicode_1BYTE_DATA(str), length) ? damaged()
                       : length == 1 ? make_character(*PyUnicode_1BYTE_DATA(str))
                                     : Py_NewRef(str);
    Py_DECREF(str);
    return result;
}

/* The characters are copied before they are looked at: in the message they are not aligned. A str
 * must have a character that needs as many bytes as it has for each. */
static PyObject *read_wide_str(reader_t *reader, size_t size)
{
    size_t length;
    if (!take_length(reader, size, &length) || length == 0)
        return damaged();
    PyObject *str = PyUnicode_New((Py_ssize_t)length, size == 2 ? 0xffff : 0x10ffff);
    if (str == NULL)
        return NULL;
    take(reader, PyUnicode_DATA(str), length * size);
    uint32_t highest = 0;
    for (size_t i = 0; i < length; i++) {
        uint32_t character =
            size == 2 ? PyUnicode_2BYTE_DATA(str)[i] : PyUnicode_4BYTE_DATA(str)[i];
        highest = character > highest ? character : highest;
    }
    if (highest <= 0x10ffff && highest >= (size == 2 ? 0x100 : 0x10000))
        return str;
    Py_DECREF(str);
    return damaged();
}

/* Whether there may be that many items more; they count as open then. */
static inline bool open_items(reader_t *reader, size_t count)
{
    size_t rest = left(reader);
    if (reader->depth == MPX_TREE_DEPTH || reader->open > rest || count > rest - reader->open)
        return false;
    reader->open += count;
    reader->depth++;
    return true;
}

/* In a child that was forked while its parent read. */
MPX_COLD static int go_on_in_copy(reader_t *reader)
{
    const unsigned char *start = (const unsigned char *)reader->shared->data;
    if (start == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    reader->at = start + (reader->at - reader->start);
    reader->end = start + (reader->end - reader->start);
    reader->start = start;
    return 0;
}

static inline int settle(reader_t *reader)
{
    return MPX_UNLIKELY(reader->is_shared && reader->shared->is_child) ? go_on_in_copy(reader) : 0;
}

static PyObject *read_tuple(reader_t *reader, bool is_numbered)
{
    size_t count;
    if (!take_length(reader, 1, &count) || !open_items(reader, count))
        return damaged();
    PyObject *tuple = PyTuple_New((Py_ssize_t)count);
    if (tuple == NULL || settle(reader) < 0) {
        Py_XDECREF(tuple);
        return NULL;
    }
    if (count > 0)
        PyObject_GC_UnTrack(tuple);
    for (size_t i = 0; i < count; i++) {
        reader->open--;
        PyObject *item = read_value(reader);
        if (item == NULL) {
            Py_DECREF(tuple);
            return NULL;
        }
        PyTuple_SET_ITEM(tuple, (Py_ssize_t)i, item);
    }
    reader->depth--;
    if (count > 0)
        PyObject_GC_Track(tuple);
    return numbered(reader, tuple, is_numbered);
}

static PyObject *read_list(reader_t *reader, bool is_numbered)
{
    size_t count;
    if (!take_length(reader, 1, &count) || !open_items(reader, count))
        return damaged();
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (list == NULL || settle(reader) < 0) {
        Py_XDECREF(list);
        return NULL;
    }
    PyObject_GC_UnTrack(list);
    for (size_t i = 0; i < count; i++) {
        reader->open--;
        PyObject *item = read_value(reader);
        if (item == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    reader->depth--;
    PyObject_GC_Track(list);
    return numbered(reader, list, is_numbered);
}

static PyObject *read_floats(reader_t *reader, bool is_numbered)
{
    size_t count;
    if (!take_length(reader, sizeof(double), &count))
        return damaged();
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (list == NULL || settle(reader) < 0) {
        Py_XDECREF(list);
        return NULL;
    }
    PyObject_GC_UnTrack(list);
    for (size_t i = 0; i < count; i++) {
        double value;
        memcpy(&value, reader->at, sizeof value);
        reader->at += sizeof value;
        PyObject *item = PyFloat_FromDouble(value);
        if (item == NULL) {
            Py_DECREF(list);
            return NULL;
        }
        PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
    PyObject_GC_Track(list);
    return numbered(reader, list, is_numbered);
}

#define KEY_LEAST 2 /* characters: of the shorter ones the interpreter has one each */
#define KEY_MOST  32

static inline size_t key_slot(const unsigned char *characters, size_t length)
{
    uint32_t mixed = (uint32_t)length;
    for (size_t i = 0; i < length; i++)
        mixed = (mixed ^ characters[i]) * UINT32_C(0x01000193);
    return (mixed ^ mixed >> 16) % MPX_KEYS;
}

static inline bool is_key(PyObject *str, const unsigned char *characters, size_t length)
{
    return str != NULL && (size_t)PyUnicode_GET_LENGTH(str) == length &&
           memcmp(PyUnicode_1BYTE_DATA(str), characters, length) == 0;
}

/* The str of such a key, which may be another message's. Not twice in one message: what comes out
 * has no identities that what went in did not have. */
static PyObject *find_key(reader_t *reader, const unsigned char *characters, size_t length)
{
    mpx_keys_t *keys = reader->keys;
    size_t slot = key_slot(characters, length);
    bool is_there = is_key(keys->strings[slot], characters, length);
    if (is_there && keys->used_by[slot] != reader->message) {
        keys->used_by[slot] = reader->message;
        return Py_NewRef(keys->strings[slot]);
    }
    PyObject *str = make_ascii(characters, length, false);
    if (str != NULL && !is_there) {
        keys->used_by[slot] = reader->message;
        Py_XSETREF(keys->strings[slot], Py_NewRef(str));
    }
    return str;
}

static PyObject *find_copied_key(reader_t *reader, const unsigned char *characters, size_t length)
{
    unsigned char copy[KEY_MOST];
    memcpy(copy, characters, length);
    return find_key(reader, copy, length);
}

#ifdef Py_GIL_DISABLED
#    define KEEPS_KEYS false
#else
#    define KEEPS_KEYS true
#endif

static PyObject *read_key(reader_t *reader)
{
    const unsigned char *at = reader->at;
    if (!KEEPS_KEYS || left(reader) <= 2)
        return read_value(reader);
    unsigned char tag = at[0], length = at[1];
    MPX_READ_ONCE(tag);
    MPX_READ_ONCE(length);
    if ((tag & ~MPX_TAG_NUMBERED) != MPX_TAG_ASCII || length < KEY_LEAST || length > KEY_MOST ||
        length > left(reader) - 2)
        return read_value(reader);
    reader->at += 2 + length;
    PyObject *key = MPX_LIKELY(!reader->is_shared) ? find_key(reader, at + 2, length)
                                                   : find_copied_key(reader, at + 2, length);
    return numbered(reader, key, (tag & MPX_TAG_NUMBERED) != 0);
}

static int read_item(reader_t *reader, PyObject *dict)
{
    reader->open--;
    PyObject *key = read_key(reader);
    if (key == NULL)
        return -1;
    reader->open--;
    PyObject *value = read_value(reader);
    int status = value == NULL ? -1 : PyDict_SetItem(dict, key, value);
    Py_DECREF(key);
    Py_XDECREF(value);
    return status < 0 ? -1 : settle(reader);
}

static PyObject *read_dict(reader_t *reader, bool is_numbered)
{
    size_t count;
    if (!take_length(reader, 2, &count) || !open_items(reader, 2 * count))
        return damaged();
    PyObject *dict = PyDict_New();
    if (dict == NULL || settle(reader) < 0) {
        Py_XDECREF(dict);
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        if (read_item(reader, dict) < 0) {
            Py_DECREF(dict);
            return NULL;
        }
    }
    reader->depth--;
    return numbered(reader, dict, is_numbered);
}

/* The rest of a value with this tag. That of a number needs no more of the reader than where it is.
 */
static inline PyObject *read_tagged(reader_t *reader, uint8_t tag)
{
    bool is_numbered = (tag & MPX_TAG_NUMBERED) != 0 && tag >= (MPX_TAG_FIRST | MPX_TAG_NUMBERED);
    PyObject *object;
    switch (is_numbered ? tag & ~MPX_TAG_NUMBERED : tag) {
    case MPX_TAG_NONE:
        return Py_NewRef(Py_None);
    case MPX_TAG_FALSE:
        return Py_NewRef(Py_False);
    case MPX_TAG_TRUE:
        return Py_NewRef(Py_True);
    case MPX_TAG_INT8:
        return read_int8(reader);
    case MPX_TAG_INT32:
        return read_int32(reader);
    case MPX_TAG_INT64:
        return read_int64(reader);
    case MPX_TAG_INT_LONG:
        return read_long_int(reader);
    case MPX_TAG_FLOAT:
        return read_float(reader);
    case MPX_TAG_KNOWN:
        return read_known(reader);
    case MPX_TAG_TUPLE:
        return read_tuple(reader, is_numbered);
    case MPX_TAG_LIST:
        return read_list(reader, is_numbered);
    case MPX_TAG_FLOATS:
        return read_floats(reader, is_numbered);
    case MPX_TAG_DICT:
        return read_dict(reader, is_numbered);
    case MPX_TAG_ASCII:
        object = read_ascii(reader);
        break;
    case MPX_TAG_STR_1:
        object = read_str_1(reader);
        break;
    case MPX_TAG_STR_2:
        object = read_wide_str(reader, 2);
        break;
    case MPX_TAG_STR_4:
        object = read_wide_str(reader, 4);
        break;
    case MPX_TAG_BYTES:
        object = read_bytes(reader);
        break;
    default:
        return damaged();
    }
    return numbered(reader, object, is_numbered);
}

static PyObject *read_value(reader_t *reader)
{
    uint8_t tag;
    if (!take(reader, &tag, 1))
        return damaged();
    MPX_READ_ONCE(tag);
    return read_tagged(reader, tag);
}

static PyObject *read_tree(mpx_keys_t *keys, const char *data, size_t size, bool is_shared)
{
    reader_t reader;
    reader.start = reader.at = (const unsigned char *)data;
    reader.end = reader.at + size;
    reader.open = 0;
    reader.depth = 0;
    reader.is_shared = is_shared;
    reader.count = 0;
    reader.capacity = KNOWN;
    reader.known = reader.first_known;
    reader.keys = keys;
    reader.shared = is_shared ? mpx_fork_copy_begin((char *)data, size) : NULL;
    if (is_shared && reader.shared == NULL)
        return NULL;
#ifndef Py_GIL_DISABLED
    reader.message = ++keys->messages;
#endif
    PyObject *object = read_value(&reader);
    if (object != NULL && reader.at != reader.end) {
        Py_DECREF(object);
        object = damaged();
    }
    mpx_fork_copy_end(reader.shared);
    for (size_t i = 0; i < reader.count; i++)
        Py_DECREF(reader.known[i]);
    if (reader.capacity > KNOWN)
        PyMem_RawFree(reader.known);
    return object;
}

/* The shortest messages are read without more ado. */
PyObject *mpx_tree_read(mpx_keys_t *keys, const char *data, size_t size, bool is_shared)
{
    const unsigned char *bytes = (const unsigned char *)data;
    if (MPX_UNLIKELY(is_shared))
        return read_tree(keys, data, size, true);
    if (size == 2 && bytes[0] == MPX_TAG_INT8)
        return PyLong_FromLong((int8_t)bytes[1]);
    if (size >= 2 && bytes[0] == MPX_TAG_ASCII && bytes[1] == size - 2 && bytes[1] != 0xff)
        return make_ascii(bytes + 2, size - 2, false);
    return read_tree(keys, data, size, false);
}

/* ---- Numbers, one by one --------------------------------------------------------------------- */

/* The bytes of a number with such a tag; 0: it is no number. */
static inline size_t number_size(unsigned char tag)
{
    switch (tag) {
    case MPX_TAG_NONE:
    case MPX_TAG_FALSE:
    case MPX_TAG_TRUE:
        return 1;
    case MPX_TAG_INT8:
        return 2;
    case MPX_TAG_INT32:
        return 5;
    case MPX_TAG_INT64:
    case MPX_TAG_FLOAT:
        return 9;
    default:
        return 0;
    }
}

bool mpx_numbers_open(mpx_numbers_t *numbers, const char *data, size_t size)
{
    reader_t reader; /* no more of it than where it is */
    uint8_t tag;
    reader.at = (const unsigned char *)data;
    reader.end = reader.at + size;
    if (!take(&reader, &tag, 1) || (tag & ~MPX_TAG_NUMBERED) != MPX_TAG_TUPLE ||
        !take_length(&reader, 1, &numbers->count))
        return false;
    numbers->at = reader.at;
    numbers->end = reader.end;
    for (size_t i = 0; i < numbers->count; i++) {
        size_t step = left(&reader) > 0 ? number_size(*reader.at) : 0;
        if (step == 0 || step > left(&reader))
            return false;
        reader.at += step;
    }
    return reader.at == reader.end;
}

PyObject *mpx_numbers_next(mpx_numbers_t *numbers)
{
    reader_t reader; /* the same */
    reader.at = numbers->at;
    reader.end = numbers->end;
    uint8_t tag = 0;
    (void)take(&reader, &tag, 1);
    MPX_READ_ONCE(tag);
    PyObject *number = number_size(tag) > 0 ? read_tagged(&reader, tag) : damaged();
    numbers->at = reader.at;
    return number;
}
