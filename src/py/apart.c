/* apart.c - see apart.h. */
#include "apart.h"

/* Of buffers: a cache line, and what vector instructions like. */
#define ALIGNMENT ((size_t)64)

/* From here on, to copy is worth letting other threads run. */
#define LARGE ((size_t)512 * 1024)

#define WRITABLE (UINT64_C(1) << 63)

typedef struct {
    uint64_t at;
    uint64_t size; /* and WRITABLE */
} entry_t;

typedef struct {
    uint64_t entries;
    uint64_t pickle;
} ending_t;

/* ---- Writing --------------------------------------------------------------------------------- */

static size_t aligned(size_t size)
{
    return (size + ALIGNMENT - 1) & ~(ALIGNMENT - 1);
}

/* A view of a buffer's own: the program may release the PickleBuffer while other threads run. */
static int view_buffer(PyObject *buffer, Py_buffer *view)
{
    if (PyObject_GetBuffer(buffer, view, PyBUF_FULL_RO) < 0)
        return -1;
    if (view->suboffsets == NULL && PyBuffer_IsContiguous(view, 'A'))
        return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_BufferError, "a buffer has changed while it was pickled");
    return -1;
}

static void release_views(Py_buffer *views, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++)
        PyBuffer_Release(views + i);
    PyMem_Free(views);
}

static Py_buffer *view_buffers(PyObject *buffers, Py_ssize_t count)
{
    Py_buffer *views = PyMem_New(Py_buffer, (size_t)count);
    if (views == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        if (view_buffer(PyList_GET_ITEM(buffers, i), views + i) < 0) {
            release_views(views, i);
            return NULL;
        }
    }
    return views;
}

static void append_zeros(mpx_buffer_t *out, size_t size)
{
    memset(out->data + out->size, 0, size);
    out->size += size;
}

static void append(mpx_buffer_t *out, const void *data, size_t size)
{
    char *to = out->data + out->size;
    out->size += size;
    if (size < LARGE) {
        memcpy(to, data, size);
        return;
    }
    Py_BEGIN_ALLOW_THREADS
    memcpy(to, data, size);
    Py_END_ALLOW_THREADS
}

/* Room for all, so that nothing is moved. */
static int reserve(mpx_buffer_t *out, size_t start, const Py_buffer *views, Py_ssize_t count)
{
    size_t size = aligned(out->size - start) + sizeof(ending_t);
    for (Py_ssize_t i = 0; i < count; i++) {
        size_t more = aligned((size_t)views[i].len) + sizeof(entry_t);
        if (more > (size_t)PY_SSIZE_T_MAX - size) {
            PyErr_NoMemory();
            return -1;
        }
        size += more;
    }
    return mpx_buffer_grow(out, size - (out->size - start));
}

static int append_buffers(mpx_buffer_t *out, size_t start, const Py_buffer *views, Py_ssize_t count)
{
    ending_t ending = {.entries = (uint64_t)count, .pickle = out->size - start - 1};
    if (mpx_buffer_settle(out) < 0 || reserve(out, start, views, count) < 0)
        return -1;
    size_t first = aligned(out->size - start);
    for (Py_ssize_t i = 0; i < count; i++) {
        append_zeros(out, aligned(out->size - start) - (out->size - start));
        append(out, views[i].buf, (size_t)views[i].len);
    }
    size_t at = first;
    for (Py_ssize_t i = 0; i < count; i++) {
        entry_t entry = {.at = at, .size = (uint64_t)views[i].len};
        entry.size |= views[i].readonly ? 0 : WRITABLE;
        append(out, &entry, sizeof(entry));
        at = aligned(at + (size_t)views[i].len);
    }
    append(out, &ending, sizeof(ending));
    return 0;
}

int mpx_apart_write(PyObject *module, PyObject *tables, PyObject *object, mpx_buffer_t *out)
{
    const unsigned char tag = MPX_TAG_APART;
    size_t start = out->size;
    PyObject *buffers = PyList_New(0);
    int status = buffers == NULL ? -1 : mpx_buffer_append(out, &tag, 1);
    if (status == 0)
        status = mpx_pickle(module, tables, object, out, buffers);
    Py_ssize_t count = status == 0 ? PyList_GET_SIZE(buffers) : 0;
    Py_buffer *views = status == 0 ? view_buffers(buffers, count) : NULL;
    status = views == NULL ? -1 : append_buffers(out, start, views, count);
    if (views != NULL)
        release_views(views, count);
    Py_XDECREF(buffers);
    return status;
}

/* ---- Reading --------------------------------------------------------------------------------- */

static void raise_damaged(void)
{
    PyObject *error = mpx_unpickling_error();
    if (error != NULL)
        PyErr_SetString(error, "a message's buffers are damaged");
    Py_XDECREF(error);
}

/* `lease` is None where there is none. */
static PyObject *make_buffer(PyObject *module, PyObject *lease, const char *data,
                             const entry_t *entry)
{
    bool is_readonly = (entry->size & WRITABLE) == 0;
    size_t size = (size_t)(entry->size & ~WRITABLE);
    if (lease != Py_None)
        return mpx_lease_view(module, lease, data + entry->at, size, is_readonly);
    if (is_readonly)
        return PyBytes_FromStringAndSize(data + entry->at, (Py_ssize_t)size);
    return PyByteArray_FromStringAndSize(data + entry->at, (Py_ssize_t)size);
}

/* The next entry, which is read once. `from` is where a buffer may begin: they do not overlap, so a
 * message makes no more memory than it has. */
static bool read_entry(const char *at, size_t *from, size_t end, entry_t *entry)
{
    memcpy(entry, at, sizeof(*entry));
    MPX_READ_ONCE(entry->at);
    MPX_READ_ONCE(entry->size);
    uint64_t size = entry->size & ~WRITABLE;
    if (entry->at < *from || entry->at > end || size > end - entry->at)
        return false;
    *from = (size_t)(entry->at + size);
    return true;
}

static PyObject *read_buffers(PyObject *module, PyObject *lease, const char *data,
                              const char *entries, size_t count, size_t from)
{
    PyObject *buffers = PyList_New(0);
    size_t end = (size_t)(entries - data);
    entry_t entry;
    for (size_t i = 0; i < count && buffers != NULL; i++) {
        PyObject *buffer = NULL;
        if (!read_entry(entries + i * sizeof(entry), &from, end, &entry))
            raise_damaged();
        else
            buffer = make_buffer(module, lease, data, &entry);
        if (buffer == NULL || PyList_Append(buffers, buffer) < 0)
            Py_CLEAR(buffers);
        Py_XDECREF(buffer);
    }
    return buffers;
}

static bool read_ending(const char *data, size_t size, ending_t *ending)
{
    if (size < sizeof(*ending) + 1)
        return false;
    size -= sizeof(*ending);
    memcpy(ending, data + size, sizeof(*ending));
    MPX_READ_ONCE(ending->entries);
    MPX_READ_ONCE(ending->pickle);
    return ending->entries <= (size - 1) / sizeof(entry_t) &&
           ending->pickle <= size - 1 - ending->entries * sizeof(entry_t);
}

PyObject *mpx_apart_read(PyObject *module, const char *data, size_t size, mpx_parcel_t *parcel)
{
    ending_t ending;
    if (!read_ending(data, size, &ending)) {
        raise_damaged();
        return NULL;
    }
    const char *entries = data + size - sizeof(ending) - ending.entries * sizeof(entry_t);
    PyObject *lease =
        ending.entries > 0 && parcel != NULL ? mpx_lease_new(module, parcel) : Py_NewRef(Py_None);
    if (lease == NULL)
        return NULL;
    PyObject *buffers =
        read_buffers(module, lease, data, entries, ending.entries, ending.pickle + 1);
    PyObject *object = NULL;
    if (buffers != NULL)
        object = mpx_unpickle(module, data + 1, ending.pickle, buffers, parcel != NULL);
    Py_XDECREF(buffers);
    Py_DECREF(lease); /* not before: the pickle lies in it too */
    return object;
}
