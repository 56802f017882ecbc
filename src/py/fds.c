/* fds.c - descriptors: waiting for one, sending them from process to process, keeping them off the
 * standard streams. */
#include "module.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "mpx_os.h"
#include "mpx_process.h"

PyDoc_STRVAR(send_fds_doc,
             "send_fds(socket_fd, data, fds, /)\n--\n\n"
             "Send one message, of at least one byte, with descriptors over a Unix socket.");

static PyObject *send_fds(PyObject *Py_UNUSED(module), PyObject *args)
{
    int socket_fd, status, *fds;
    Py_buffer data;
    PyObject *sequence;
    Py_ssize_t count;

    if (!PyArg_ParseTuple(args, "iy*O:send_fds", &socket_fd, &data, &sequence))
        return NULL;
    if (mpx_fds_of(sequence, &fds, &count) < 0) {
        PyBuffer_Release(&data);
        return NULL;
    }
    do {
        Py_BEGIN_ALLOW_THREADS
        status = mpx_fds_send(socket_fd, data.buf, (size_t)data.len, fds, (size_t)count);
        Py_END_ALLOW_THREADS
    } while (status == -EINTR && PyErr_CheckSignals() == 0);
    PyMem_Free(fds);
    PyBuffer_Release(&data);
    if (PyErr_Occurred())
        return NULL;
    if (status < 0)
        return mpx_raise(status);
    Py_RETURN_NONE;
}

static PyObject *received_tuple(const char *data, Py_ssize_t size, const int *fds, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *fd = PyLong_FromLong(fds[i]);
        if (fd == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, (Py_ssize_t)i, fd);
    }
    PyObject *result = list == NULL ? NULL : Py_BuildValue("y#N", data, size, list);
    if (result == NULL) {
        for (size_t i = 0; i < count; i++)
            close(fds[i]);
    }
    return result;
}

PyDoc_STRVAR(recv_fds_doc,
             "recv_fds(socket_fd, size, /)\n--\n\n"
             "Receive one message of at most size bytes: (data, list of descriptors).\n\n"
             "The data is empty at the end of the stream.  The descriptors are close-on-exec.\n"
             "OSError(EMFILE) where this process has no room for them.");

static PyObject *recv_fds(PyObject *Py_UNUSED(module), PyObject *args)
{
    int socket_fd, fds[MPX_FDS_MAX];
    size_t count = 0;
    Py_ssize_t size, received;

    if (!PyArg_ParseTuple(args, "in:recv_fds", &socket_fd, &size))
        return NULL;
    if (size < 0) {
        PyErr_SetString(PyExc_ValueError, "the size of a message must not be negative");
        return NULL;
    }
    PyObject *buffer = PyBytes_FromStringAndSize(NULL, size);
    if (buffer == NULL)
        return NULL;
    do {
        count = MPX_FDS_MAX;
        Py_BEGIN_ALLOW_THREADS
        received = mpx_fds_recv(socket_fd, PyBytes_AS_STRING(buffer), (size_t)size, fds, &count);
        Py_END_ALLOW_THREADS
    } while (received == -EINTR && PyErr_CheckSignals() == 0);
    PyObject *result = NULL;
    if (PyErr_Occurred())
        ;
    else if (received < 0)
        mpx_raise((int)received);
    else
        result = received_tuple(PyBytes_AS_STRING(buffer), received, fds, count);
    Py_DECREF(buffer);
    return result;
}

PyDoc_STRVAR(wait_readable_doc,
             "wait_readable(fd, timeout, /)\n--\n\n"
             "Wait until a descriptor is readable, at its end or broken: True, or False after\n"
             "timeout seconds.  None waits for ever.");

static PyObject *wait_readable(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd, status;
    int64_t deadline;
    PyObject *timeout;

    if (!PyArg_ParseTuple(args, "iO:wait_readable", &fd, &timeout) ||
        mpx_deadline_of(timeout, &deadline) < 0)
        return NULL;
    do {
        Py_BEGIN_ALLOW_THREADS
        status = mpx_fd_wait(fd, POLLIN, deadline);
        Py_END_ALLOW_THREADS
    } while (status == -EINTR && PyErr_CheckSignals() == 0);
    if (status == -EINTR)
        return NULL;
    if (status < 0 && status != -ETIMEDOUT)
        return mpx_raise(status);
    return PyBool_FromLong(status == 0);
}

PyDoc_STRVAR(
    above_stdio_doc,
    "above_stdio(fd, /)\n--\n\n"
    "The descriptor, moved to a number above 2 where it has one of the standard streams'.\n\n"
    "A program that has closed such a stream goes on printing to its number.");

static PyObject *above_stdio(PyObject *Py_UNUSED(module), PyObject *args)
{
    int fd;
    if (!PyArg_ParseTuple(args, "i:above_stdio", &fd))
        return NULL;
    fd = mpx_os_above_stdio(fd);
    return fd < 0 ? mpx_raise(fd) : PyLong_FromLong(fd);
}

PyDoc_STRVAR(pipe_doc, "pipe()\n--\n\n"
                       "os.pipe, with both ends above 2.");

static PyObject *pipe_(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int ends[2];
    int status = mpx_os_pipe(ends);
    return status < 0 ? mpx_raise(status) : Py_BuildValue("ii", ends[0], ends[1]);
}

PyDoc_STRVAR(memory_file_doc,
             "memory_file()\n--\n\n"
             "The descriptor, above 2, of a new empty file without a name that lies in memory\n"
             "(where there is no memfd_create, in /dev/shm or on a disk).");

static PyObject *memory_file(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int fd = mpx_os_anonymous_file("mproc_ext");
    if (fd >= 0)
        fd = mpx_os_above_stdio(fd);
    return fd < 0 ? mpx_raise(fd) : PyLong_FromLong(fd);
}

static PyMethodDef fds_methods[] = {
    {"memory_file", memory_file, METH_NOARGS, memory_file_doc},
    {"above_stdio", above_stdio, METH_VARARGS, above_stdio_doc},
    {"pipe", pipe_, METH_NOARGS, pipe_doc},
    {"wait_readable", wait_readable, METH_VARARGS, wait_readable_doc},
    {"send_fds", send_fds, METH_VARARGS, send_fds_doc},
    {"recv_fds", recv_fds, METH_VARARGS, recv_fds_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_fds(PyObject *module)
{
    return PyModule_AddFunctions(module, fds_methods);
}
