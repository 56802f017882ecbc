/* connection.c - see connection.h; _core.Connection.
 *
 * The class that programs use is mproc_ext.connection.Connection, a subclass that has the standard
 * library's Connection as its second base. What is asked for in an unusual way (by keywords, with a
 * view of many dimensions) is left to the standard library's methods, which come back here for the
 * bytes: to _send_bytes and _recv_bytes. And a class in which somebody has put other methods in the
 * place of those that the standard library's call has all of its methods from there, see kind_of.
 */
#include "connection.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "class_version.h"
#include "mpx_os.h"
#include "shared.h"

/* The standard library's way. */
static PyObject *super(PyObject *self, const char *name, PyObject *const *args, Py_ssize_t nargs,
                       PyObject *names)
{
    PyTypeObject *type = mpx_connection(self)->state->connection_type;
    return mpx_super(self, type, name, args, nargs, names);
}

/* ---- Which methods a class has --------------------------------------------------------------- */

/* As mproc_ext.connection tells them apart. */
enum {
    PLAIN,           /* all of them are ours and the standard library's */
    OVERRIDES_HOOKS, /* the ones that call others are the standard library's */
    OVERRIDES_BYTES, /* and so are _send_bytes and _recv_bytes */
    KINDS
};

MPX_COLD static int look_at_class(module_state_t *state, PyTypeObject *type)
{
    Py_XDECREF(PyObject_GetAttr((PyObject *)type, state->names[MPX_NAME_SEND]));
    PyErr_Clear();
    unsigned version = mpx_class_version(type);
    PyObject *helper = mpx_state_ref(state->module, &state->connection_kind_of);
    PyObject *answer = helper == NULL ? NULL : PyObject_CallOneArg(helper, (PyObject *)type);
    long kind = answer == NULL ? -1 : PyLong_AsLong(answer);
    if (helper == NULL)
        PyErr_SetString(PyExc_RuntimeError, "the interpreter ends");
    Py_XDECREF(answer);
    Py_XDECREF(helper);
    if (kind < 0 || kind >= KINDS)
        return -1;
    MPX_STORE_UINT(state->connection_versions[kind], version);
    return (int)kind;
}

MPX_STATIC_ASSERT(KINDS == MPX_ARRAY_LENGTH(((module_state_t *)NULL)->connection_versions),
                  "the state has a version of each kind");

/* Of each kind the class that was looked at last is known. -1: this one is not. */
static inline int known_kind_of(PyObject *self)
{
    module_state_t *state = mpx_connection(self)->state;
    if (MPX_UNLIKELY(mpx_u32_load_relaxed(&mpx_connection(self)->is_patched)))
        return OVERRIDES_BYTES;
    unsigned version = mpx_class_version(Py_TYPE(self));
    for (int kind = 0; version != 0 && kind < KINDS; kind++) {
        if (version == MPX_LOAD_UINT(state->connection_versions[kind]))
            return kind;
    }
    return -1;
}

/* -1 with an exception. */
static inline int kind_of(PyObject *self)
{
    int kind = known_kind_of(self);
    return MPX_LIKELY(kind >= 0) ? kind : look_at_class(mpx_connection(self)->state, Py_TYPE(self));
}

bool mpx_connection_is_plain(PyObject *self)
{
    int kind = kind_of(self);
    if (kind < 0)
        PyErr_Clear();
    return kind == PLAIN;
}

/* ---- What may be done ------------------------------------------------------------------------ */

static inline bool check_open(PyObject *self)
{
    if (MPX_LIKELY(mpx_connection_fd(mpx_connection(self)) >= 0))
        return true;
    PyErr_SetString(PyExc_OSError, "handle is closed");
    return false;
}

static inline bool check_readable(PyObject *self)
{
    if (!check_open(self))
        return false;
    if (MPX_LIKELY(mpx_u32_load_relaxed(&mpx_connection(self)->readable)))
        return true;
    PyErr_SetString(PyExc_OSError, "connection is write-only");
    return false;
}

static inline bool check_writable(PyObject *self)
{
    if (!check_open(self))
        return false;
    if (MPX_LIKELY(mpx_u32_load_relaxed(&mpx_connection(self)->writable)))
        return true;
    PyErr_SetString(PyExc_OSError, "connection is read-only");
    return false;
}

static void give_handle(ConnectionObject *self, uint32_t handle)
{
    mpx_u32_fetch_add_relaxed(&self->handles, 1);
    mpx_u32_store_relaxed(&self->is_socket, mpx_os_is_stream_socket((int)handle));
    mpx_u32_store_relaxed(&self->handle, handle);
}

static int close_slowly(int fd)
{
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = close(fd) < 0 ? -errno : 0;
    Py_END_ALLOW_THREADS
    return status;
}

/* With the GIL held, where nothing is waited for: a child that another thread forks in between
 * would have a descriptor that it has no means to close, and who reads at the other end would not
 * see the end. */
static int close_handle(ConnectionObject *self)
{
    uint32_t handle = mpx_u32_exchange_acq_rel(&self->handle, MPX_NO_HANDLE);
    int fd = (int)handle, status;
    if (handle == MPX_NO_HANDLE)
        return 0;
    if (MPX_LIKELY(mpx_end_is_joined(&self->end) || mpx_os_closes_at_once(fd)))
        status = close(fd) < 0 ? -errno : 0;
    else
        status = close_slowly(fd);
    mpx_connection_end(self);
    if (status < 0)
        mpx_raise(status);
    return status;
}

/* What follows in the stream would be taken for something else. */
MPX_COLD static PyObject *raise_bad_length(PyObject *self)
{
    ConnectionObject *connection = mpx_connection(self);
    if (mpx_u32_load_relaxed(&connection->writable))
        mpx_u32_store_relaxed(&connection->readable, false);
    else if (close_handle(connection) < 0)
        return NULL;
    PyErr_SetString(PyExc_OSError, "bad message length");
    return NULL;
}

/* Nothing was received that is wanted; what has come of it may be in the message. */
MPX_COLD static PyObject *refused(PyObject *self, mpx_received_t *message, int status)
{
    mpx_received_drop(mpx_connection(self)->module, message);
    return status < 0 ? NULL : raise_bad_length(self);
}

/* ---- Objects --------------------------------------------------------------------------------- */

PyDoc_STRVAR(Connection_send_doc,
             "send($self, obj)\n--\n\n"
             "Send an object, which must be picklable.\n"
             "\n"
             "It waits while there is no room for it on the way.  Messages of several threads do\n"
             "not mix.  Where a signal handler raises in the middle, the rest goes before the\n"
             "next message: the object may have been sent, and the other end is in step.\n"
             "\n"
             "OSError: the connection is closed, or for reading only.\n"
             "BrokenPipeError, ConnectionResetError: nobody has the other end any more.\n"
             "BlockingIOError: the descriptor does not block, and there is no room.  If it has\n"
             "characters_written, there was for a part: the rest of the message goes before the\n"
             "next one, and it is not to be sent again.\n"
             "An object that cannot be pickled raises what pickle says of it; nothing is sent.");

/* A large object, from where its bytes are; 1: it cannot be sent so. */
static inline int send_apart(ConnectionObject *self, PyObject *object)
{
    mpx_brackets_t brackets;
    const char *data;
    size_t size;
    if (MPX_LIKELY(!mpx_scalar_take_apart(object, &brackets, &data, &size)))
        return 1;
    int is_plain = mpx_pickles_plainly(self->state, &self->namespace);
    if (is_plain <= 0)
        return is_plain < 0 ? -1 : 1;
    return mpx_connection_send_within(self, &brackets, data, size);
}

static int send_pickle(ConnectionObject *self, PyObject *object)
{
    mpx_buffer_t pickle;
    mpx_take_buffer(self->module, &pickle);
    int status = mpx_dumps_pickle(self->state, &self->namespace, object, &pickle);
    if (status == 0)
        status = mpx_connection_send(self, pickle.data, pickle.size);
    mpx_give_buffer(self->module, &pickle);
    return status;
}

static PyObject *Connection_send(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *names)
{
    ConnectionObject *connection = mpx_connection(self);
    int kind = kind_of(self);
    if (kind != PLAIN || nargs != 1 || names != NULL)
        return kind < 0 ? NULL : super(self, "send", args, nargs, names);
    if (!check_writable(self))
        return NULL;
    int status = send_apart(connection, args[0]);
    if (MPX_LIKELY(status > 0))
        status = send_pickle(connection, args[0]);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Connection_recv_doc,
             "recv($self)\n--\n\n"
             "Receive the next object that was sent; wait for it.\n"
             "\n"
             "Where a signal handler raises in the middle, nothing is lost: the next call goes\n"
             "on there.\n"
             "\n"
             "EOFError: there is nothing left to receive, and nobody who could send.\n"
             "OSError: the connection is closed, or for writing only; or the other end was closed\n"
             "in the middle of a message.\n"
             "BlockingIOError: the descriptor does not block, and the message is not there, or\n"
             "not all of it; what is there is not lost.\n"
             "MemoryError: the next call goes on with the message.\n"
             "An exception that unpickling raises comes out here, and the message is gone.");

static PyObject *load(ConnectionObject *self, mpx_received_t *message)
{
    if (message->bytes != NULL) {
        int is_plain = mpx_pickles_plainly(self->state, &self->namespace);
        if (is_plain > 0)
            return Py_NewRef(message->bytes);
        if (is_plain < 0 || mpx_received_join(message) < 0)
            return NULL;
    }
    return mpx_loads_pickle(self->state, &self->namespace, message->buffer.data,
                            message->buffer.size);
}

static PyObject *Connection_recv(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    ConnectionObject *connection = mpx_connection(self);
    int kind = kind_of(self);
    if (kind != PLAIN)
        return kind < 0 ? NULL : super(self, "recv", NULL, 0, NULL);
    if (!check_readable(self))
        return NULL;
    mpx_received_t message = {.bytes = NULL};
    int status = mpx_connection_receive(connection, -1, MPX_FOR_OBJECT, &message);
    if (status != 0)
        return refused(self, &message, status);
    PyObject *object = load(connection, &message);
    mpx_received_drop(connection->module, &message);
    return object;
}

/* ---- Bytes ----------------------------------------------------------------------------------- */

/* Whether the bytes of an object are one after the other, each an item: then they are in *view,
 * which is to be released. */
static bool get_plain_bytes(PyObject *object, Py_buffer *view, int flags)
{
    if (PyObject_GetBuffer(object, view, PyBUF_STRIDES | flags) < 0) {
        PyErr_Clear();
        return false;
    }
    if (view->ndim == 1 && view->itemsize == 1 && PyBuffer_IsContiguous(view, 'C'))
        return true;
    PyBuffer_Release(view);
    return false;
}

/* The number of an argument, -1 where it is none from 0 on. */
static Py_ssize_t size_of(PyObject *argument)
{
    Py_ssize_t size = PyLong_CheckExact(argument) ? PyLong_AsSsize_t(argument) : -1;
    if (size < 0)
        PyErr_Clear();
    return size < 0 ? -1 : size;
}

PyDoc_STRVAR(Connection_send_bytes_doc,
             "send_bytes($self, buf, offset=0, size=None)\n--\n\n"
             "Send bytes of a bytes-like object as one message: *size* of them from *offset* on\n"
             "(None: all of them).\n"
             "\n"
             "ValueError: they are not all there.  The rest is as of send().");

static PyObject *Connection_send_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                       PyObject *names)
{
    int kind = kind_of(self);
    Py_ssize_t offset = nargs > 1 ? size_of(args[1]) : 0, size = -1;
    Py_buffer view;
    if (kind < 0)
        return NULL;
    bool is_usual = kind == PLAIN && names == NULL && nargs >= 1 && nargs <= 3 && offset >= 0;
    if (is_usual && nargs == 3)
        is_usual = (size = size_of(args[2])) >= 0;
    if (is_usual && !check_writable(self))
        return NULL;
    if (!is_usual || !get_plain_bytes(args[0], &view, 0))
        return super(self, "send_bytes", args, nargs, names);
    int status = 1;
    if (offset <= view.len && size <= view.len - offset)
        status = mpx_connection_send(mpx_connection(self), (const char *)view.buf + offset,
                                     (size_t)(size < 0 ? view.len - offset : size));
    PyBuffer_Release(&view);
    if (status > 0)
        return super(self, "send_bytes", args, nargs, names); /* which says what is wrong */
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Connection_recv_bytes_doc,
             "recv_bytes($self, maxlength=None)\n--\n\n"
             "Receive the next message as bytes; wait for it.\n"
             "\n"
             "OSError: it has more than *maxlength* bytes.  Nothing can be received after that.\n"
             "ValueError: *maxlength* is negative.  The rest is as of recv().");

static PyObject *Connection_recv_bytes(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                       PyObject *names)
{
    ConnectionObject *connection = mpx_connection(self);
    int kind = kind_of(self);
    Py_ssize_t most = -1;
    if (kind < 0)
        return NULL;
    bool is_usual = kind == PLAIN && names == NULL && nargs <= 1;
    if (is_usual && nargs == 1 && args[0] != Py_None)
        is_usual = (most = size_of(args[0])) >= 0;
    if (!is_usual)
        return super(self, "recv_bytes", args, nargs, names);
    if (!check_readable(self))
        return NULL;
    mpx_received_t message = {.bytes = NULL};
    int status = mpx_connection_receive(connection, most, MPX_FOR_BYTES, &message);
    if (status != 0)
        return refused(self, &message, status);
    const mpx_buffer_t *buffer = &message.buffer;
    PyObject *bytes = message.bytes != NULL
                          ? Py_NewRef(message.bytes)
                          : PyBytes_FromStringAndSize(buffer->data, (Py_ssize_t)buffer->size);
    mpx_received_drop(connection->module, &message);
    return bytes;
}

static void raise_too_short(ConnectionObject *self, const mpx_buffer_t *message)
{
    PyObject *error = PyDict_GetItemString(self->namespace.dict, "BufferTooShort"); /* borrowed */
    PyObject *bytes = PyBytes_FromStringAndSize(message->data, (Py_ssize_t)message->size);
    if (error != NULL && bytes != NULL)
        PyErr_SetObject(error, bytes);
    else if (error == NULL)
        PyErr_SetString(PyExc_NameError, "name 'BufferTooShort' is not defined");
    Py_XDECREF(bytes);
}

PyDoc_STRVAR(Connection_recv_bytes_into_doc,
             "recv_bytes_into($self, buf, offset=0)\n--\n\n"
             "Receive the next message into a writable bytes-like object, from *offset* on; wait\n"
             "for it.  Returns how many bytes it has.\n"
             "\n"
             "BufferTooShort: there is not so much room.  The message is in the exception's args.\n"
             "ValueError: *offset* is not in the object.  The rest is as of recv().");

static PyObject *Connection_recv_bytes_into(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                            PyObject *names)
{
    ConnectionObject *connection = mpx_connection(self);
    int kind = kind_of(self);
    Py_ssize_t offset = nargs > 1 ? size_of(args[1]) : 0;
    Py_buffer view;
    if (kind < 0)
        return NULL;
    bool is_usual = kind == PLAIN && names == NULL && nargs >= 1 && nargs <= 2 && offset >= 0;
    if (is_usual && !check_readable(self))
        return NULL;
    if (!is_usual || !get_plain_bytes(args[0], &view, PyBUF_WRITABLE))
        return super(self, "recv_bytes_into", args, nargs, names);
    if (offset > view.len) {
        PyBuffer_Release(&view);
        return super(self, "recv_bytes_into", args, nargs, names); /* which says so */
    }
    mpx_received_t message = {.bytes = NULL};
    const mpx_buffer_t *buffer = &message.buffer;
    PyObject *result = NULL;
    int status = mpx_connection_receive(connection, -1, MPX_FOR_BUFFER, &message);
    if (status > 0) {
        raise_bad_length(self);
    } else if (status == 0 && buffer->size <= (size_t)(view.len - offset)) {
        if (buffer->size > 0)
            memcpy((char *)view.buf + offset, buffer->data, buffer->size);
        result = PyLong_FromSize_t(buffer->size);
    } else if (status == 0) {
        raise_too_short(connection, buffer);
    }
    mpx_received_drop(connection->module, &message);
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(Connection_send_bytes_hook_doc,
             "_send_bytes($self, buf, /)\n--\n\nSend all bytes of a bytes-like object.");

/* The standard library writes a header and so many bytes together. */
#define TOGETHER 16384

/* With an exception: what it says where it puts them together. */
MPX_COLD static void say_unfit(PyObject *buffer)
{
    PyObject *type, *error, *traceback, *none = NULL;
    PyErr_Fetch(&type, &error, &traceback);
    Py_ssize_t length = PyObject_Length(buffer);
    if (length >= 0 && length <= TOGETHER && (none = PyBytes_FromString("")) != NULL)
        PyBytes_Concat(&none, buffer); /* which fails as that does */
    Py_XDECREF(none);
    if (PyErr_Occurred()) {
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    } else {
        PyErr_Restore(type, error, traceback);
    }
}

static PyObject *Connection_send_bytes_hook(PyObject *self, PyObject *buffer)
{
    Py_buffer view;
    int kind = kind_of(self);
    if (kind < 0 || kind == OVERRIDES_BYTES)
        return kind < 0 ? NULL : super(self, "_send_bytes", &buffer, 1, NULL);
    if (!check_open(self))
        return NULL;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) < 0) {
        say_unfit(buffer);
        return NULL;
    }
    int status = mpx_connection_send(mpx_connection(self), view.buf, (size_t)view.len);
    PyBuffer_Release(&view);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

/* A new BytesIO that has been written to: the standard library's methods ask it where it is. */
static PyObject *written_file(const mpx_buffer_t *message)
{
    const char *data = message->size > 0 ? message->data : ""; /* NULL would be None */
    PyObject *io = PyImport_ImportModule("io");
    PyObject *file = io == NULL ? NULL : PyObject_CallMethod(io, "BytesIO", NULL);
    PyObject *count =
        file == NULL ? NULL
                     : PyObject_CallMethod(file, "write", "y#", data, (Py_ssize_t)message->size);
    if (count == NULL)
        Py_CLEAR(file);
    Py_XDECREF(count);
    Py_XDECREF(io);
    return file;
}

PyDoc_STRVAR(Connection_recv_bytes_hook_doc,
             "_recv_bytes($self, maxsize=None, /)\n--\n\n"
             "Receive a message: a BytesIO, at its end; or None where it is larger than that.");

static PyObject *Connection_recv_bytes_hook(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    ConnectionObject *connection = mpx_connection(self);
    int kind = kind_of(self);
    Py_ssize_t most = -1;
    if (kind < 0)
        return NULL;
    bool is_usual = kind != OVERRIDES_BYTES && nargs <= 1;
    if (is_usual && nargs == 1 && args[0] != Py_None)
        is_usual = (most = size_of(args[0])) >= 0;
    if (!is_usual)
        return super(self, "_recv_bytes", args, nargs, NULL);
    if (!check_open(self))
        return NULL;
    mpx_received_t message = {.bytes = NULL};
    int status = mpx_connection_receive(connection, most, MPX_FOR_BUFFER, &message);
    if (status != 0) {
        mpx_received_drop(connection->module, &message);
        return status < 0 ? NULL : Py_NewRef(Py_None);
    }
    PyObject *file = written_file(&message.buffer);
    mpx_received_drop(connection->module, &message);
    return file;
}

/* ---- Looking and ending ---------------------------------------------------------------------- */

PyDoc_STRVAR(Connection_poll_doc,
             "poll($self, timeout=0.0)\n--\n\n"
             "Whether there is something to receive: at once, or within *timeout* seconds (None:\n"
             "without a limit).  The end counts: recv() would not wait.\n"
             "\n"
             "OSError: the connection is closed, or for writing only.");

static PyObject *Connection_poll(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *names)
{
    int kind = kind_of(self);
    int64_t deadline = 0;
    if (kind < 0)
        return NULL;
    if (kind != PLAIN || names != NULL || nargs > 1 ||
        (nargs == 1 && !mpx_usual_deadline_of(args[0], &deadline)))
        return super(self, "poll", args, nargs, names);
    if (!check_readable(self))
        return NULL;
    if (deadline > mpx_os_now() && mpx_polls_otherwise())
        return super(self, "poll", args, nargs, names);
    int has = mpx_connection_poll(mpx_connection(self), deadline);
    return has < 0 ? NULL : PyBool_FromLong(has);
}

PyDoc_STRVAR(Connection_fileno_doc, "fileno($self)\n--\n\n"
                                    "The descriptor.\n"
                                    "\n"
                                    "OSError: the connection is closed.");

static PyObject *Connection_fileno(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int kind = kind_of(self);
    if (kind != PLAIN)
        return kind < 0 ? NULL : super(self, "fileno", NULL, 0, NULL);
    if (!check_open(self))
        return NULL;
    mpx_connection_leave(mpx_connection(self));
    return PyLong_FromLong(mpx_connection_fd(mpx_connection(self)));
}

PyDoc_STRVAR(Connection_close_doc,
             "close($self)\n--\n\n"
             "Close the descriptor.  The connection is closed then, also where that fails.  To\n"
             "close it again does nothing.");

static PyObject *Connection_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int kind = kind_of(self);
    if (kind != PLAIN)
        return kind < 0 ? NULL : super(self, "close", NULL, 0, NULL);
    return close_handle(mpx_connection(self)) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *Connection_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(self);
}

static PyObject *Connection_exit(PyObject *self, PyObject *const *Py_UNUSED(args),
                                 Py_ssize_t Py_UNUSED(nargs))
{
    PyObject *close = PyObject_GetAttrString(self, "close");
    PyObject *result = close == NULL ? NULL : PyObject_CallNoArgs(close);
    Py_XDECREF(close);
    Py_XDECREF(result);
    return result == NULL ? NULL : Py_NewRef(Py_None);
}

/* Who drops a connection closes it. */
static void Connection_finalize(PyObject *self)
{
    ConnectionObject *connection = mpx_connection(self);
    PyObject *type, *value, *traceback;
    if (mpx_connection_fd(connection) < 0)
        return;
    PyErr_Fetch(&type, &value, &traceback);
    int status;
    if (known_kind_of(self) == PLAIN) {
        status = close_handle(connection);
    } else {
        PyObject *result = PyObject_CallMethod(self, "_close", NULL);
        status = result == NULL ? -1 : 0;
        Py_XDECREF(result);
    }
    if (status < 0)
        PyErr_WriteUnraisable(self);
    PyErr_Restore(type, value, traceback);
}

/* ---- Attributes ------------------------------------------------------------------------------ */

static PyObject *Connection_get_handle(PyObject *self, void *Py_UNUSED(closure))
{
    mpx_connection_leave(mpx_connection(self));
    int fd = mpx_connection_fd(mpx_connection(self));
    return fd < 0 ? Py_NewRef(Py_None) : PyLong_FromLong(fd);
}

static int Connection_set_handle(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    uint32_t handle = MPX_NO_HANDLE;
    if (value != NULL && value != Py_None) {
        int fd = PyObject_AsFileDescriptor(value);
        if (fd < 0)
            return -1;
        handle = (uint32_t)fd;
    }
    mpx_connection_leave(mpx_connection(self));
    give_handle(mpx_connection(self), handle);
    return 0;
}

static PyObject *Connection_get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mpx_connection_fd(mpx_connection(self)) < 0);
}

static mpx_atomic_u32 *flag(PyObject *self, void *is_writable)
{
    ConnectionObject *connection = mpx_connection(self);
    return is_writable != NULL ? &connection->writable : &connection->readable;
}

static PyObject *Connection_get_flag(PyObject *self, void *closure)
{
    return PyBool_FromLong((long)mpx_u32_load_relaxed(flag(self, closure)));
}

static int Connection_set_flag(PyObject *self, PyObject *value, void *closure)
{
    int truth = value == NULL ? 0 : PyObject_IsTrue(value);
    if (truth < 0)
        return -1;
    mpx_u32_store_relaxed(flag(self, closure), (uint32_t)truth);
    return 0;
}

static char is_writable[] = "writable"; /* a closure that is not NULL */

static PyGetSetDef Connection_getset[] = {
    {"_handle", Connection_get_handle, Connection_set_handle,
     PyDoc_STR("The descriptor, or None: closed."), NULL},
    {"_readable", Connection_get_flag, Connection_set_flag, NULL, NULL},
    {"_writable", Connection_get_flag, Connection_set_flag, NULL, is_writable},
    {"closed", Connection_get_closed, NULL, PyDoc_STR("True if the connection is closed"), NULL},
    {"readable", Connection_get_flag, NULL, PyDoc_STR("True if the connection is readable"), NULL},
    {"writable", Connection_get_flag, NULL, PyDoc_STR("True if the connection is writable"),
     is_writable},
    {NULL, NULL, NULL, NULL, NULL},
};

/* What other methods call: the standard library's find it on the object, too. */
static const char *const hooks[] = {
    "_send_bytes", "_recv_bytes",   "_send",           "_recv",           "_poll",
    "_close",      "_check_closed", "_check_readable", "_check_writable", "_bad_message_length",
    "fileno"};

static int Connection_setattr(PyObject *self, PyObject *name, PyObject *value)
{
    int status = PyObject_GenericSetAttr(self, name, value);
    for (size_t i = 0; status == 0 && i < MPX_ARRAY_LENGTH(hooks); i++) {
        if (PyUnicode_CompareWithASCIIString(name, hooks[i]) == 0)
            mpx_u32_store_relaxed(&mpx_connection(self)->is_patched, true); /* for good */
    }
    return status;
}

/* ---- The type -------------------------------------------------------------------------------- */

static PyObject *Connection_new(PyTypeObject *type, PyObject *Py_UNUSED(args),
                                PyObject *Py_UNUSED(names))
{
    PyObject *module = PyType_GetModuleByDef(type, &mpx_core_module);
    PyObject *dict =
        module == NULL ? NULL : mpx_state_ref(module, &module_state(module)->connections);
    if (dict == NULL) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_RuntimeError, "mproc_ext.connection is not imported");
        return NULL;
    }
    PyObject *self = type->tp_alloc(type, 0);
    if (self == NULL) {
        Py_DECREF(dict);
        return NULL;
    }
    ConnectionObject *connection = mpx_connection(self);
    connection->module = Py_NewRef(module);
    connection->state = module_state(module);
    connection->namespace = (mpx_namespace_t){.dict = dict, .at = 0};
    mpx_u32_store_relaxed(&connection->handle, MPX_NO_HANDLE);
    mpx_u32_store_relaxed(&connection->end.life, MPX_NO_HANDLE);
    return self;
}

/* The number that `handle.__index__()` gives, -1 with an exception. */
static int handle_of(PyObject *object)
{
    PyObject *number = PyLong_CheckExact(object) ? Py_NewRef(object)
                                                 : PyObject_CallMethod(object, "__index__", NULL);
    int overflow;
    long handle = number == NULL ? -1 : PyLong_AsLongAndOverflow(number, &overflow);
    Py_XDECREF(number);
    if (number == NULL || (handle == -1 && PyErr_Occurred()))
        return -1;
    if (handle < 0) {
        if (overflow <= 0)
            PyErr_SetString(PyExc_ValueError, "invalid handle");
        else
            PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return -1;
    }
    if (handle > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return -1;
    }
    return (int)handle;
}

/* Has the standard library's __init__ say what is wrong with the arguments. */
static int init_as_super(PyObject *self, PyObject *args, PyObject *names)
{
    PyObject *type = (PyObject *)mpx_connection(self)->state->connection_type;
    PyObject *super = PyObject_CallFunctionObjArgs((PyObject *)&PySuper_Type, type, self, NULL);
    PyObject *init = super == NULL ? NULL : PyObject_GetAttrString(super, "__init__");
    PyObject *result = init == NULL ? NULL : PyObject_Call(init, args, names);
    Py_XDECREF(result);
    Py_XDECREF(init);
    Py_XDECREF(super);
    return result == NULL ? -1 : 0;
}

static int Connection_init(PyObject *self, PyObject *args, PyObject *names)
{
    static char *keywords[] = {"handle", "readable", "writable", NULL};
    ConnectionObject *connection = mpx_connection(self);
    PyObject *object, *readable = Py_True, *writable = Py_True;
    if (!PyArg_ParseTupleAndKeywords(args, names, "O|OO", keywords, &object, &readable,
                                     &writable)) {
        PyErr_Clear();
        return init_as_super(self, args, names);
    }
    int handle = handle_of(object);
    int may_read = handle < 0 ? -1 : PyObject_IsTrue(readable);
    int may_write = may_read < 0 ? -1 : PyObject_IsTrue(writable);
    if (may_write < 0)
        return -1;
    if (!may_read && !may_write) {
        PyErr_SetString(PyExc_ValueError, "at least one of `readable` and `writable` must be True");
        return -1;
    }
    mpx_connection_leave(connection);
    mpx_u32_store_relaxed(&connection->readable, (uint32_t)may_read);
    mpx_u32_store_relaxed(&connection->writable, (uint32_t)may_write);
    give_handle(connection, (uint32_t)handle);
    return 0;
}

static int Connection_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(mpx_connection(self)->namespace.dict);
    Py_VISIT(mpx_connection(self)->module);
    return 0;
}

static void Connection_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    if (PyObject_CallFinalizerFromDealloc(self) < 0)
        return; /* somebody has taken it up again */
    PyObject_GC_UnTrack(self);
    mpx_connection_forget(mpx_connection(self));
    Py_CLEAR(mpx_connection(self)->namespace.dict);
    Py_CLEAR(mpx_connection(self)->module);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(Connection_doc, "Connection(handle, readable=True, writable=True)\n--\n\n"
                             "Messages through a descriptor; the base of the one in connection.");

static PyMethodDef Connection_methods[] = {
    {"send", (PyCFunction)(void (*)(void))Connection_send, METH_FASTCALL | METH_KEYWORDS,
     Connection_send_doc},
    {"recv", Connection_recv, METH_NOARGS, Connection_recv_doc},
    {"send_bytes", (PyCFunction)(void (*)(void))Connection_send_bytes,
     METH_FASTCALL | METH_KEYWORDS, Connection_send_bytes_doc},
    {"recv_bytes", (PyCFunction)(void (*)(void))Connection_recv_bytes,
     METH_FASTCALL | METH_KEYWORDS, Connection_recv_bytes_doc},
    {"recv_bytes_into", (PyCFunction)(void (*)(void))Connection_recv_bytes_into,
     METH_FASTCALL | METH_KEYWORDS, Connection_recv_bytes_into_doc},
    {"poll", (PyCFunction)(void (*)(void))Connection_poll, METH_FASTCALL | METH_KEYWORDS,
     Connection_poll_doc},
    {"fileno", Connection_fileno, METH_NOARGS, Connection_fileno_doc},
    {"close", Connection_close, METH_NOARGS, Connection_close_doc},
    {"_send_bytes", Connection_send_bytes_hook, METH_O, Connection_send_bytes_hook_doc},
    {"_recv_bytes", (PyCFunction)(void (*)(void))Connection_recv_bytes_hook, METH_FASTCALL,
     Connection_recv_bytes_hook_doc},
    {"__enter__", Connection_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))Connection_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Connection_slots[] = {
    {Py_tp_doc, (void *)Connection_doc},  {Py_tp_new, Connection_new},
    {Py_tp_init, Connection_init},        {Py_tp_traverse, Connection_traverse},
    {Py_tp_dealloc, Connection_dealloc},  {Py_tp_finalize, Connection_finalize},
    {Py_tp_setattro, Connection_setattr}, {Py_tp_methods, Connection_methods},
    {Py_tp_getset, Connection_getset},    {0, NULL},
};

static PyType_Spec Connection_spec = {
    .name = "mproc_ext._core.Connection",
    .basicsize = sizeof(ConnectionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Connection_slots,
};

PyDoc_STRVAR(serve_connections_doc,
             "serve_connections(namespace, kind_of, /)\n--\n\n"
             "From now on connections are made, for the module of connections with that dict: its\n"
             "_ForkingPickler pickles, and its BufferTooShort is raised.  The function says of a\n"
             "class which methods are overridden.");

static PyObject *serve_connections(PyObject *module, PyObject *args)
{
    PyObject *namespace, *kind_of_class;
    if (!PyArg_ParseTuple(args, "O!O", &PyDict_Type, &namespace, &kind_of_class))
        return NULL;
    mpx_state_set(module, &module_state(module)->connection_kind_of, kind_of_class);
    mpx_state_set(module, &module_state(module)->connections, namespace);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(join_ends_doc,
             "join_ends(first, second, duplex, /)\n--\n\n"
             "Let two new connections, the ends of a pipe, have shared memory beside their\n"
             "descriptors: where it is to be had.  Without duplex, the first one receives.");

static PyObject *join_ends(PyObject *module, PyObject *args)
{
    PyTypeObject *type = module_state(module)->connection_type;
    PyObject *first, *second;
    int duplex;
    if (!PyArg_ParseTuple(args, "OOp:join_ends", &first, &second, &duplex))
        return NULL;
    if (!PyObject_TypeCheck(first, type) || !PyObject_TypeCheck(second, type))
        Py_RETURN_NONE; /* the program has put something else in the place of the class */
    ConnectionObject *ends[2] = {mpx_connection(first), mpx_connection(second)};
    if (ends[0]->end.joined == NULL && ends[1]->end.joined == NULL && !mpx_polls_otherwise())
        mpx_ends_join(&ends[0]->end, &ends[1]->end, duplex);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    end_parts_doc,
    "end_parts(connection, /)\n--\n\n"
    "What a child needs to have shared memory with the connection's other end: (identity\n"
    "of the arena, its descriptor, slot), descriptor of the connection, side, whether it is a\n"
    "socket, another descriptor or -1.  None where there is nothing.");

static PyObject *end_parts(PyObject *module, PyObject *object)
{
    mpx_end_parts_t parts;
    if (!PyObject_TypeCheck(object, module_state(module)->connection_type) ||
        !mpx_end_parts(&mpx_connection(object)->end, &parts))
        Py_RETURN_NONE;
    mpx_arena_id_t id = mpx_arena_id(parts.arena);
    return Py_BuildValue("(y#iI)iIii", (const char *)&id, (Py_ssize_t)sizeof(id),
                         mpx_arena_fd(parts.arena), parts.slot,
                         mpx_connection_fd(mpx_connection(object)), parts.side,
                         (int)parts.is_socket, parts.life);
}

PyDoc_STRVAR(adopt_end_doc,
             "adopt_end(connection, identity, slot, side, is_socket, life, /)\n--\n\n"
             "In the child: give the connection what the parent has handed over.");

static PyObject *adopt_end(PyObject *module, PyObject *args)
{
    PyObject *object, *identity;
    unsigned int slot, side;
    int is_socket, life;
    if (!PyArg_ParseTuple(args, "O!SIIii:adopt_end", module_state(module)->connection_type, &object,
                          &identity, &slot, &side, &is_socket, &life))
        return NULL;
    mpx_place_t place;
    if (mpx_place_take(&place, identity, slot) < 0)
        return NULL;
    mpx_end_parts_t parts = {place.arena, slot, side & 1, is_socket != 0, life};
    int status = mpx_end_adopt(&mpx_connection(object)->end, &parts);
    if (status < 0) {
        mpx_slot_drop(place.arena, slot);
        return mpx_raise(status);
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(open_rings_doc,
             "open_rings(connection, /)\n--\n\n"
             "Whether short messages go through shared memory: (what it sends, what "
             "it receives).");

static PyObject *open_rings(PyObject *module, PyObject *object)
{
    if (!PyObject_TypeCheck(object, module_state(module)->connection_type)) {
        PyErr_Format(PyExc_TypeError, "%R is no connection", object);
        return NULL;
    }
    mpx_duct_t *sends = mpx_end_sends_to(&mpx_connection(object)->end);
    mpx_duct_t *receives = mpx_end_receives_from(&mpx_connection(object)->end);
    return Py_BuildValue("NN", PyBool_FromLong(sends != NULL && mpx_duct_is_open(sends)),
                         PyBool_FromLong(receives != NULL && mpx_duct_is_open(receives)));
}

static PyMethodDef functions[] = {
    {"adopt_end", adopt_end, METH_VARARGS, adopt_end_doc},
    {"end_parts", end_parts, METH_O, end_parts_doc},
    {"open_rings", open_rings, METH_O, open_rings_doc},
    {"join_ends", join_ends, METH_VARARGS, join_ends_doc},
    {"serve_connections", serve_connections, METH_VARARGS, serve_connections_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_connection(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->connection_type =
        (PyTypeObject *)PyType_FromModuleAndSpec(module, &Connection_spec, NULL);
    if (state->connection_type == NULL || PyModule_AddType(module, state->connection_type) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
