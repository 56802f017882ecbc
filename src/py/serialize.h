/* serialize.h - objects as messages of bytes, and back: what queues and connections send.
 *
 * What comes out is what the standard library's ForkingPickler gives, to the types, the identities
 * (which places hold one and the same object) and the exceptions. A message is
 *
 *   - a plain tree, written by serialize_write.c and read by serialize_read.c, which takes a
 *     fraction of pickle's time; it starts with a byte of 0xa0 or more, which starts no pickle; or
 *   - what pickle makes, as it is; or
 *   - MPX_TAG_APART and a pickle whose large buffers lie beside it: see apart.h; or
 *   - MPX_TAG_RAW and then what a class of the program's made that it put in ForkingPickler's
 *     place, where that starts with 0xa0 or more.
 */
#ifndef MPX_PY_SERIALIZE_H
#define MPX_PY_SERIALIZE_H

#include "buffer.h"
#include "lease.h"

#include "mpx_stream.h"

/* What is deeper is left to pickle. Reading and writing recurse in C to this depth. */
#define MPX_TREE_DEPTH 32

/* The first byte of each value. A container's is followed by the count of its items, a string's by
 * that of its characters, each in one byte, or in 0xff and eight. Numbers and characters are in the
 * machine's own form: a message does not leave it. */
enum mpx_tag {
    MPX_TAG_FIRST = 0xa0,
    MPX_TAG_NONE = MPX_TAG_FIRST,
    MPX_TAG_FALSE,
    MPX_TAG_TRUE,
    MPX_TAG_INT8,
    MPX_TAG_INT32,
    MPX_TAG_INT64,
    MPX_TAG_INT_LONG, /* length, two's complement, little-endian */
    MPX_TAG_FLOAT,
    MPX_TAG_ASCII, /* a str */
    MPX_TAG_STR_2,
    MPX_TAG_STR_4,
    MPX_TAG_BYTES,
    MPX_TAG_TUPLE,
    MPX_TAG_LIST,
    MPX_TAG_FLOATS, /* a list of nothing but floats: one after the other */
    MPX_TAG_DICT,   /* key, value, key, value ... */
    MPX_TAG_KNOWN,  /* an object that was numbered before: its number, in the form of a count */
    MPX_TAG_STR_1,  /* one byte a character: Latin 1, and not all of it ASCII */
    MPX_TAG_LAST = MPX_TAG_STR_1,
    MPX_TAG_APART = 0xbe,
    MPX_TAG_RAW = 0xbf,
};

/* Added to the tag of an object that the next number is given to, from 0 on; a container has its
 * own after those of its items. What is in itself is no tree, and left to pickle. */
#define MPX_TAG_NUMBERED 0x40

/* serialize_write.c: appends the message of a plain tree. 0; 1 where the object is none (what was
 * appended is to be dropped); -1 with an exception. Runs no Python code. */
int mpx_tree_write(PyObject *object, mpx_buffer_t *out);

/* serialize_read.c: the object of such a message, which may hold anything: an UnpicklingError where
 * it is damaged, and no memory is taken that the message does not account for. With `is_shared`,
 * others may write to the bytes while they are read. */
PyObject *mpx_tree_read(mpx_keys_t *keys, const char *data, size_t size, bool is_shared);

/* serialize_read.c: a message that is a tuple of nothing but numbers (None, bool, int to 64 bits,
 * float), whose items are made one by one. The message is looked through once; it may change. */
typedef struct {
    const unsigned char *at, *end;
    size_t count;
} mpx_numbers_t;

bool mpx_numbers_open(mpx_numbers_t *numbers, const char *data, size_t size);
PyObject *mpx_numbers_next(mpx_numbers_t *numbers);

/* serialize_write.c: the message of a list, to an empty buffer, whose items are appended one by
 * one, and which is complete with their count. An item: 0; 1 where it is no number (of any size);
 * -1 with an exception. */
int mpx_list_begin(mpx_buffer_t *out);
int mpx_list_add_number(mpx_buffer_t *out, PyObject *object);
void mpx_list_end(mpx_buffer_t *out, size_t count);

/* serialize.c: pickle's exception for what it cannot read, a new reference; NULL with another. */
PyObject *mpx_unpickling_error(void);

/* serialize.c: what _pickle has by this name (one of MPX_NAME_...), kept in a field of the module's
 * state; a new reference. */
PyObject *mpx_from_pickle(PyObject *module, PyObject **field, int name);

/* pickling.c: appends what ForkingPickler makes of an object, with these tables of reducers. 0, or
 * -1 with its exception. With a list in `apart` it is made by protocol 5, and large buffers are not
 * appended but put into the list. */
int mpx_pickle(PyObject *module, PyObject *tables, PyObject *object, mpx_buffer_t *out,
               PyObject *apart);

/* unpickling.c: the object of a pickle, whose buffers beside it are in the list, or NULL. With
 * `is_shared`, others may write to the bytes while they are read. */
PyObject *mpx_unpickle(PyObject *module, const char *data, size_t size, PyObject *buffers,
                       bool is_shared);

/* serialize.c: takes the module's idle buffer, empty, or a new one; and gives one back, its content
 * gone. One that has become large is not kept. */
void mpx_take_buffer(PyObject *module, mpx_buffer_t *buffer);
void mpx_give_buffer(PyObject *module, mpx_buffer_t *buffer);

/* The dict of the standard library's module (queues or connection) that one speaks for: a program
 * may assign another class to its `_ForkingPickler`. */
typedef struct {
    PyObject *dict;
    Py_ssize_t at; /* where that name was, as PyDict_Next counts; 0 at first, -1: do not look */
} mpx_namespace_t;

/* serialize.c: appends an object's message, in the caller's thread. 0, or -1 with an exception and
 * the buffer as before. With `apart`, what a pickle is needed for is written as apart.h says.
 *
 * May run Python code, which may come back here: with another buffer. */
int mpx_dumps(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
              mpx_buffer_t *out, bool apart);

/* serialize.c: appends an object's message where that needs no Python code: the object is a plain
 * tree, and the namespace's class is the standard library's. False, without an exception, where it
 * is not so, or where the buffer does not grow; then it has what was in it before. */
bool mpx_dumps_quickly(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
                       mpx_buffer_t *out);

/* serialize.c: the object of a message. The bytes must stay where they are until it returns. They
 * lie in the parcel's block, which the object may take over; NULL: it may not. */
PyObject *mpx_loads(module_state_t *state, mpx_namespace_t *namespace, const char *data,
                    size_t size, mpx_parcel_t *parcel);

/* serialize.c: the same for those who do not know our form of messages: as the standard library's
 * class, or the program's, pickles. */
int mpx_dumps_pickle(module_state_t *state, mpx_namespace_t *namespace, PyObject *object,
                     mpx_buffer_t *out);
PyObject *mpx_loads_pickle(module_state_t *state, mpx_namespace_t *namespace, const char *data,
                           size_t size);

/* serialize_scalar.c: appends the pickle of an object without parts: 0; 1 where it is another one;
 * or -1 with an exception. */
int mpx_scalar_write(PyObject *object, mpx_buffer_t *out);

/* serialize_scalar.c: whether the pickle of an object is bytes that the object has, as long as it
 * lives, between a few others: that of bytes or a text which is too large for pickle's frames. */
#define MPX_UNFRAMED ((size_t)64 << 10)
bool mpx_scalar_take_apart(PyObject *object, mpx_brackets_t *brackets, const char **data,
                           size_t *size);

/* serialize_scalar.c: the object of such a pickle, NULL without an exception where it is another
 * one. */
PyObject *mpx_scalar_read(const char *data, size_t size);

/* serialize_scalar.c: whether a pickle of so many bytes, of which the first MPX_BYTES_BEFORE are
 * here, goes on with those of a bytes object, and ends with two more: these. */
#define MPX_BYTES_BEFORE 7
#define MPX_BYTES_AROUND (MPX_BYTES_BEFORE + 2)
bool mpx_pickle_is_bytes(const char *data, size_t size);
bool mpx_pickle_ends(const char *data);

/* serialize.c: whether the namespace's class is the standard library's: 1, 0, or -1 with an
 * exception. */
int mpx_pickles_plainly(module_state_t *state, mpx_namespace_t *namespace);

/* serialize.c: the same, false for an exception: then messages of plain trees are read without
 * Python code of the program's. */
bool mpx_reads_plainly(module_state_t *state, mpx_namespace_t *namespace);

/* Has the compiler keep a value that was read: it could read it again instead, from where others
 * write. */
#define MPX_READ_ONCE(value) __asm__("" : "+r"(value))

/* The first byte; 0 where there is none. */
static inline unsigned char mpx_tag_of(const void *message, size_t size)
{
    unsigned char tag = size > 0 ? *(const unsigned char *)message : 0;
    MPX_READ_ONCE(tag);
    return tag;
}

static inline bool mpx_is_tree(unsigned char tag)
{
    return tag >= MPX_TAG_FIRST && tag != MPX_TAG_RAW && tag != MPX_TAG_APART;
}

#endif
