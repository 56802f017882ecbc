/* program.c - the start of a program: `_core.spawn`, and what Child._spawn shares with it. */
#include "module.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "mpx_process.h"

extern char **environ;

static int ascending(const void *left, const void *right)
{
    int a = *(const int *)left, b = *(const int *)right;
    return (a > b) - (a < b);
}

static Py_ssize_t sort_unique(int *fds, Py_ssize_t count)
{
    Py_ssize_t kept = 0;
    qsort(fds, (size_t)count, sizeof *fds, ascending);
    for (Py_ssize_t i = 0; i < count; i++) {
        if (kept == 0 || fds[kept - 1] != fds[i])
            fds[kept++] = fds[i];
    }
    return kept;
}

/* The arguments as bytes objects in a new list, which owns what *argv (to be freed) points to. */
static PyObject *encode_argv(PyObject *sequence, char ***argv)
{
    PyObject *encoded = PySequence_List(sequence);
    if (encoded == NULL)
        return NULL;
    Py_ssize_t count = PyList_GET_SIZE(encoded);
    *argv = PyMem_New(char *, (size_t)count + 1);
    if (*argv == NULL) {
        Py_DECREF(encoded);
        return PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *bytes;
        if (!PyUnicode_FSConverter(PyList_GET_ITEM(encoded, i), &bytes)) {
            PyMem_Free(*argv);
            Py_DECREF(encoded);
            return NULL;
        }
        PyList_SetItem(encoded, i, bytes);
        (*argv)[i] = PyBytes_AS_STRING(bytes);
    }
    (*argv)[count] = NULL;
    return encoded;
}

static void raise_spawn_error(int status, const char *path_bytes)
{
    PyObject *path = PyUnicode_DecodeFSDefault(path_bytes);
    if (path == NULL)
        return;
    if (status == -EAGAIN) {
        mpx_raise_message(status,
                          "cannot start a process: the limit on processes is reached "
                          "(RLIMIT_NPROC, see ulimit -u, or pids.max of the cgroup)",
                          NULL);
    } else if (status == -EMFILE)
        mpx_raise(status); /* not the executable's fault */
    else if (status == -ENOENT)
        mpx_raise_message(status, "cannot execute, no such file; see set_executable()", path);
    else if (status == -EACCES)
        mpx_raise_message(status, "cannot execute, permission denied; see set_executable()", path);
    else if (status == -ENOEXEC)
        mpx_raise_message(status, "cannot execute, no program; see set_executable()", path);
    else {
        errno = -status;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    }
    Py_DECREF(path);
}

pid_t mpx_start_program(PyObject *path, PyObject *argv, PyObject *fds)
{
    PyObject *path_bytes = NULL, *encoded = NULL;
    mpx_program_t program = {.envp = environ};
    char **arguments = NULL;
    int *descriptors = NULL;
    Py_ssize_t count;
    pid_t pid = -1;

    if (PySys_Audit("os.posix_spawn", "OOO", path, argv, Py_None) < 0)
        return -1;
    if (!PyUnicode_FSConverter(path, &path_bytes))
        return -1;
    encoded = encode_argv(argv, &arguments);
    if (encoded == NULL || mpx_fds_of(fds, &descriptors, &count) < 0)
        goto done;
    program.path = PyBytes_AS_STRING(path_bytes);
    program.argv = arguments;
    program.fds = descriptors;
    program.fd_count = (size_t)sort_unique(descriptors, count);
    pid = mpx_process_spawn(&program);
    if (pid < 0) {
        raise_spawn_error(pid, program.path);
        pid = -1;
    }
done:
    if (encoded != NULL)
        PyMem_Free(arguments);
    PyMem_Free(descriptors);
    Py_XDECREF(encoded);
    Py_DECREF(path_bytes);
    return pid;
}

PyDoc_STRVAR(spawn_doc,
             "spawn(path, argv, fds, /)\n--\n\n"
             "Start a program in a child process and return its pid.\n\n"
             "path is the executable, argv its whole argument list, fds the descriptors that it\n"
             "inherits beside 0, 1 and 2; every other one is closed in it.  The environment is\n"
             "this process's.  OSError where the program cannot be executed: then there is no\n"
             "child.");

static PyObject *spawn(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *path, *argv, *fds;
    if (!PyArg_ParseTuple(args, "OOO:spawn", &path, &argv, &fds))
        return NULL;
    pid_t pid = mpx_start_program(path, argv, fds);
    return pid < 0 ? NULL : PyLong_FromPid(pid);
}

PyDoc_STRVAR(pidfd_open_doc,
             "pidfd_open(pid, /)\n--\n\n"
             "A descriptor of the process, readable once it has ended; None where the kernel has\n"
             "none (before 5.3).  OSError(ESRCH) where there is no such process.");

static PyObject *pidfd_open_(PyObject *Py_UNUSED(module), PyObject *args)
{
    int pid;
    if (!PyArg_ParseTuple(args, "i:pidfd_open", &pid))
        return NULL;
    int fd = mpx_os_pidfd_open(pid);
    if (fd == -ENOSYS)
        Py_RETURN_NONE;
    return fd < 0 ? mpx_raise(fd) : PyLong_FromLong(fd);
}

PyDoc_STRVAR(in_main_thread_doc,
             "in_main_thread()\n--\n\n"
             "Whether the calling thread is the one that the kernel takes for the process's main\n"
             "thread.");

static PyObject *in_main_thread(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(mpx_process_in_main_thread());
}

PyDoc_STRVAR(thread_count_doc, "thread_count()\n--\n\n"
                               "The number of this process's threads; 0 where /proc does not say.");

static PyObject *thread_count(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    int count = mpx_os_thread_count();
    return PyLong_FromLong(count > 0 ? count : 0);
}

PyDoc_STRVAR(
    die_with_parent_doc,
    "die_with_parent(parent_pid, parent_fd, by_main_thread, /)\n--\n\n"
    "Have this process killed once its parent process has ended.\n\n"
    "That the thread which started it ends means nothing.  parent_fd is a descriptor from\n"
    "the parent (see Child._spawn); by_main_thread says whether its main thread started\n"
    "this process.");

static PyObject *die_with_parent(PyObject *Py_UNUSED(module), PyObject *args)
{
    int parent, parent_fd, by_main_thread;
    if (!PyArg_ParseTuple(args, "iip:die_with_parent", &parent, &parent_fd, &by_main_thread))
        return NULL;
    int status = mpx_process_die_with_parent(parent, parent_fd, by_main_thread != 0);
    if (status < 0)
        return mpx_raise(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(identity_doc,
             "identity()\n--\n\n"
             "A number that no other process has with which this one shares objects.");

static PyObject *identity(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    mpx_process_id_t own = mpx_os_own_process();
    return PyLong_FromUnsignedLongLong((uint64_t)own.start << 32 | (uint32_t)own.pid);
}

PyDoc_STRVAR(is_foreign_doc,
             "is_foreign()\n--\n\n"
             "Whether this process is in another PID namespace than the first one of those that\n"
             "share objects with it.");

static PyObject *is_foreign(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(mpx_os_is_foreign());
}

PyDoc_STRVAR(namespaces_doc,
             "namespaces()\n--\n\n"
             "How often one of the forks that led to this process led into another\n"
             "PID namespace: a copy of an object compares it with what it was.");

static PyObject *namespaces(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    (void)mpx_os_own_process(); /* from here on forks are seen */
    return PyLong_FromUnsignedLong(mpx_os_namespaces());
}

PyDoc_STRVAR(started_by_doc,
             "started_by(foreign, /)\n--\n\n"
             "This process was started by exec; foreign is its parent's is_foreign().");

static PyObject *started_by(PyObject *Py_UNUSED(module), PyObject *foreign)
{
    mpx_os_started_by(foreign == Py_True);
    Py_RETURN_NONE;
}

static PyMethodDef program_methods[] = {
    {"identity", identity, METH_NOARGS, identity_doc},
    {"is_foreign", is_foreign, METH_NOARGS, is_foreign_doc},
    {"namespaces", namespaces, METH_NOARGS, namespaces_doc},
    {"started_by", started_by, METH_O, started_by_doc},
    {"spawn", spawn, METH_VARARGS, spawn_doc},
    {"pidfd_open", pidfd_open_, METH_VARARGS, pidfd_open_doc},
    {"die_with_parent", die_with_parent, METH_VARARGS, die_with_parent_doc},
    {"in_main_thread", in_main_thread, METH_NOARGS, in_main_thread_doc},
    {"thread_count", thread_count, METH_NOARGS, thread_count_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_program(PyObject *module)
{
    return PyModule_AddFunctions(module, program_methods);
}
