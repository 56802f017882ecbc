/* child.c - the type _core.Child: one child process as its parent sees it.
 *
 * The base of the Popen classes of fork and spawn. It starts the child, waits for it, signals it
 * and keeps its exit code.
 *
 * Threads. All fields are read and written under the GIL (or in the object's critical section). Any
 * number of threads may wait for one child: waiting does not reap. Reaping and the store of the
 * exit code are one step, so no thread finds the child gone and the exit code not there yet; and
 * since a signal is sent in such a step, only while there is no exit code, it cannot reach another
 * process that got the number. Of several threads that start, one does: the others are refused. A
 * thread may close the object while another waits: waiting asks for the pid, and takes what a
 * descriptor says for a hint.
 *
 * Sentinels. The child's is its pidfd: readable when it has ended, whatever its own children do.
 * The parent's, given to the child, is a pidfd too. Where the kernel has none, each is the read end
 * of a pipe whose write end the other process holds open, as in the stdlib.
 */
#include "module.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <unistd.h>

#include "mpx_arena.h"
#include "mpx_process.h"

/* The exit code of a child that somebody else reaped (SIGCHLD ignored, a foreign waitpid): it has
 * ended, and nobody can tell how. asyncio reports the same. */
#define EXITCODE_UNKNOWN 255

typedef struct {
    PyObject_HEAD pid_t pid; /* 0 before the start, and in a child where a subclass has set it */
    pid_t owner;             /* the process that started it: only there is it a child */
    int pidfd;               /* -1: none */
    int sentinel;  /* the pidfd, or a pipe's read end, or what a subclass has set; -1: none */
    int parent_w;  /* -1, or the write end of the pipe that tells the child of our end */
    bool started;  /* pid is set */
    bool starting; /* a thread is at it */
    bool owns_sentinel;
    bool ended;
    int exitcode; /* where ended */
} ChildObject;

#define CHILD(object) ((ChildObject *)(object))

/* ---- Descriptors ----------------------------------------------------------------------------- */

static void close_fd(int *fd)
{
    if (*fd >= 0)
        close(*fd);
    *fd = -1;
}

/* A process forked from the owner has copies of the descriptors, but the program there may have
 * closed them and use the numbers: they are left alone, as the stdlib leaves them. */
static void release_fds(ChildObject *self)
{
    if (self->owner == getpid()) {
        if (self->owns_sentinel)
            close_fd(&self->sentinel);
        close_fd(&self->parent_w);
    }
    self->sentinel = self->pidfd = self->parent_w = -1;
    self->owns_sentinel = false;
}

/* The descriptors of one start, before it is known whether it succeeds. All -1 where not open. */
typedef struct {
    int parent_fd;        /* for the child: the sentinel of its parent */
    int parent_w;         /* for us: the other end of parent_fd where that is a pipe */
    int child_r, child_w; /* without pidfds: the pipe that tells of the child's end */
} links_t;

static void close_links(links_t *links)
{
    close_fd(&links->parent_fd);
    close_fd(&links->parent_w);
    close_fd(&links->child_r);
    close_fd(&links->child_w);
}

static int open_links(links_t *links)
{
    int pipes[2];
    *links = (links_t){-1, -1, -1, -1};
    links->parent_fd = mpx_os_pidfd_open(getpid());
    if (links->parent_fd >= 0)
        return 0;
    if (links->parent_fd != -ENOSYS)
        return links->parent_fd;
    links->parent_fd = -1;
    int status = mpx_os_pipe(pipes);
    if (status < 0)
        return status;
    links->parent_fd = pipes[0];
    links->parent_w = pipes[1];
    status = mpx_os_pipe(pipes);
    if (status < 0) {
        close_links(links);
        return status;
    }
    links->child_r = pipes[0];
    links->child_w = pipes[1];
    return 0;
}

/* A descriptor that is readable for ever. */
static int open_ready(void)
{
    int pipes[2];
    int status = mpx_os_pipe(pipes);
    if (status < 0)
        return status;
    close(pipes[1]);
    return pipes[0];
}

/* The descriptor that tells of the child's end. Where the child has ended and been reaped already
 * (SIGCHLD is ignored, or another thread waits for any child) there is nothing left to open. */
static int open_sentinel(ChildObject *self)
{
    int fd = mpx_os_pidfd_open(self->pid);
    if (fd >= 0) {
        self->pidfd = fd;
    } else if (fd == -ESRCH) {
        self->ended = true;
        self->exitcode = EXITCODE_UNKNOWN;
        fd = open_ready();
    }
    return fd;
}

/* In the parent, after the start: keeps what is ours, closes what is the child's. The child's are
 * closed first, so that a table of descriptors which had room for the start has room for the
 * sentinel. Where another thread took that room, the child is ended: 0, or -1 with an exception. */
static int adopt_alone(ChildObject *self, pid_t pid, links_t *links)
{
    self->pid = pid;
    self->started = true;
    self->owner = getpid();
    self->parent_w = links->parent_w;
    links->parent_w = -1;
    self->sentinel = links->child_r;
    links->child_r = -1;
    close_links(links);
    if (self->sentinel < 0) {
        self->sentinel = open_sentinel(self);
        if (self->sentinel < 0) {
            int status = self->sentinel, ignored;
            (void)!mpx_process_signal(pid, SIGKILL);
            while (mpx_process_wait(pid, -1, MPX_NEVER) == -EINTR)
                continue;
            (void)!mpx_process_reap(pid, &ignored);
            self->sentinel = -1;
            self->ended = true;
            self->exitcode = -SIGKILL;
            mpx_raise(status);
            return -1;
        }
    }
    self->owns_sentinel = true;
    return 0;
}

static int adopt(ChildObject *self, pid_t pid, links_t *links)
{
    int status;
    Py_BEGIN_CRITICAL_SECTION(self);
    status = adopt_alone(self, pid, links);
    Py_END_CRITICAL_SECTION();
    return status;
}

/* Whether this thread may start the child; where it may, it says end_start afterwards. Raises where
 * not. */
static bool begin_start(ChildObject *self)
{
    bool started, may;
    pid_t pid;
    Py_BEGIN_CRITICAL_SECTION(self);
    pid = self->pid;
    started = self->started;
    may = !started && !self->starting;
    if (may)
        self->starting = true;
    Py_END_CRITICAL_SECTION();
    if (started)
        PyErr_Format(PyExc_RuntimeError, "this object has started process %d already", (int)pid);
    else if (!may)
        PyErr_SetString(PyExc_RuntimeError, "another thread is starting this object's process");
    return may;
}

static void end_start(ChildObject *self)
{
    Py_BEGIN_CRITICAL_SECTION(self);
    self->starting = false;
    Py_END_CRITICAL_SECTION();
}

/* ---- Fork ------------------------------------------------------------------------------------ */

/* Whether os.fork has to be asked instead of the core: another library replaced it (gevent), or it
 * would refuse, in the words of its version: in a subinterpreter, at the interpreter's end. */
static int fork_is_special(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main())
        return 1;
#if PY_VERSION_HEX >= 0x030D0000
    if (Py_IsFinalizing())
        return 1;
#else
    if (_Py_IsFinalizing())
        return 1;
#endif
    int special = -1;
    PyObject *os = PyImport_ImportModule("os");
    PyObject *posix = PyImport_ImportModule("posix");
    PyObject *seen = os == NULL ? NULL : PyObject_GetAttrString(os, "fork");
    PyObject *original = posix == NULL ? NULL : PyObject_GetAttrString(posix, "fork");
    if (seen != NULL && original != NULL)
        special = seen != original;
    Py_XDECREF(seen);
    Py_XDECREF(original);
    Py_XDECREF(os);
    Py_XDECREF(posix);
    return special;
}

static pid_t fork_by_os(void)
{
    PyObject *os = PyImport_ImportModule("os");
    PyObject *result = os == NULL ? NULL : PyObject_CallMethod(os, "fork", NULL);
    pid_t pid = result == NULL ? -1 : PyLong_AsPid(result);
    Py_XDECREF(result);
    Py_XDECREF(os);
    return pid;
}

/* os.fork, by the core. The child's pid, 0 in the child, -1 with an exception. */
static pid_t fork_by_core(void)
{
    if (PySys_Audit("os.fork", NULL) < 0)
        return -1;
    PyOS_BeforeFork();
    pid_t pid = mpx_process_fork();
    if (pid > 0)
        mpx_arena_forked(pid);
    else if (pid < 0)
        mpx_arena_fork_failed();
    if (pid == 0)
        PyOS_AfterFork_Child();
    else
        PyOS_AfterFork_Parent();
    if (pid == -EAGAIN)
        mpx_raise_message(pid,
                          "cannot fork: the limit on processes is reached (RLIMIT_NPROC, see "
                          "ulimit -u, or pids.max of the cgroup)",
                          NULL);
    else if (pid < 0)
        mpx_raise(pid);
    return pid < 0 ? -1 : pid;
}

PyDoc_STRVAR(Child_fork_doc,
             "_fork($self, die_with_parent, /)\n--\n\n"
             "Fork: None in the parent; in the child a descriptor that becomes readable when the\n"
             "parent has ended.\n\n"
             "die_with_parent says whether the child is killed when the parent process ends.\n"
             "Unlike os.fork it does not warn where this process has threads.\n"
             "OSError where the system refuses: then there is no child.");

static PyObject *fork_child(ChildObject *self, bool die_with_parent)
{
    links_t links;
    int special = fork_is_special();
    if (special < 0)
        return NULL;
    int status = open_links(&links);
    if (status < 0)
        return mpx_raise(status);

    pid_t parent = getpid();
    bool by_main_thread = mpx_process_in_main_thread();
    pid_t pid = special ? fork_by_os() : fork_by_core();
    if (pid < 0) {
        close_links(&links);
        return NULL;
    }
    if (pid > 0) {
        if (adopt(self, pid, &links) < 0)
            return NULL;
        Py_RETURN_NONE;
    }
    /* child_w stays open, unseen, until this process ends: that is what it is for. */
    links.child_w = -1;
    close_fd(&links.parent_w);
    close_fd(&links.child_r);
    if (die_with_parent) {
        int armed = mpx_process_die_with_parent(parent, links.parent_fd, by_main_thread);
        if (armed < 0)
            return mpx_raise(armed);
    }
    return PyLong_FromLong(links.parent_fd);
}

static PyObject *Child_fork(PyObject *object, PyObject *args)
{
    int die_with_parent;
    if (!PyArg_ParseTuple(args, "p:_fork", &die_with_parent) || !begin_start(CHILD(object)))
        return NULL;
    PyObject *result = fork_child(CHILD(object), die_with_parent != 0);
    end_start(CHILD(object));
    return result;
}

PyDoc_STRVAR(
    Child_spawn_doc,
    "_spawn($self, path, argv_of, fds, start=None, /)\n--\n\n"
    "Start a program: argv_of(parent_fd) gives its argument list, where parent_fd is the\n"
    "number of a descriptor that becomes readable in it when this process has ended.\n\n"
    "fds are the descriptors it inherits besides.  start(path, argv, fds) is what starts it\n"
    "and gives its pid in place of the core.  OSError where it cannot be executed: then\n"
    "there is no child.");

static PyObject *fds_with(PyObject *fds, const links_t *links)
{
    PyObject *all = PySequence_List(fds);
    int more[] = {links->parent_fd, links->child_w};
    for (size_t i = 0; all != NULL && i < MPX_ARRAY_LENGTH(more); i++) {
        PyObject *fd = more[i] < 0 ? NULL : PyLong_FromLong(more[i]);
        if (more[i] >= 0 && (fd == NULL || PyList_Append(all, fd) < 0))
            Py_CLEAR(all);
        Py_XDECREF(fd);
    }
    return all;
}

static pid_t start_by(PyObject *start, PyObject *path, PyObject *argv, PyObject *fds)
{
    if (start == Py_None)
        return mpx_start_program(path, argv, fds);
    PyObject *result = PyObject_CallFunctionObjArgs(start, path, argv, fds, NULL);
    pid_t pid = result == NULL ? -1 : PyLong_AsPid(result);
    Py_XDECREF(result);
    return pid;
}

static PyObject *spawn_child(ChildObject *self, PyObject *path, PyObject *argv_of, PyObject *fds,
                             PyObject *start)
{
    PyObject *argv = NULL, *all = NULL;
    links_t links;
    int status = open_links(&links);
    if (status < 0)
        return mpx_raise(status);
    argv = PyObject_CallFunction(argv_of, "i", links.parent_fd);
    all = argv == NULL ? NULL : fds_with(fds, &links);
    pid_t pid = all == NULL ? -1 : start_by(start, path, argv, all);
    Py_XDECREF(argv);
    Py_XDECREF(all);
    if (pid < 0) {
        close_links(&links);
        return NULL;
    }
    if (adopt(self, pid, &links) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *Child_spawn(PyObject *object, PyObject *args)
{
    PyObject *path, *argv_of, *fds, *start = Py_None;
    if (!PyArg_ParseTuple(args, "OOO|O:_spawn", &path, &argv_of, &fds, &start) ||
        !begin_start(CHILD(object)))
        return NULL;
    PyObject *result = spawn_child(CHILD(object), path, argv_of, fds, start);
    end_start(CHILD(object));
    return result;
}

/* ---- Wait and signal ------------------------------------------------------------------------- */

/* Takes the status if the child has ended. To be called under the object's lock. */
static void try_reap(ChildObject *self)
{
    int exitcode;
    if (self->ended || self->pid <= 0)
        return;
    int status = mpx_process_reap(self->pid, &exitcode);
    if (status == -ECHILD && self->owner == getpid()) {
        status = 1;
        exitcode = EXITCODE_UNKNOWN;
    }
    if (status == 1) {
        self->exitcode = exitcode;
        self->ended = true;
    }
}

static PyObject *exitcode_or_none(ChildObject *self)
{
    PyObject *result;
    Py_BEGIN_CRITICAL_SECTION(self);
    try_reap(self);
    result = self->ended ? PyLong_FromLong(self->exitcode) : Py_NewRef(Py_None);
    Py_END_CRITICAL_SECTION();
    return result;
}

/* Whether it is a child of this process. */
static bool is_own(ChildObject *self)
{
    bool is;
    Py_BEGIN_CRITICAL_SECTION(self);
    is = self->owner == getpid();
    Py_END_CRITICAL_SECTION();
    return is;
}

/* Blocks until the child has ended or the deadline has passed; 0, or -1 with an exception. */
static int block(ChildObject *self, int64_t deadline)
{
    int status;
    do {
        bool ended;
        pid_t pid;
        int pidfd;
        Py_BEGIN_CRITICAL_SECTION(self);
        ended = self->ended;
        pid = self->pid;
        pidfd = self->pidfd;
        Py_END_CRITICAL_SECTION();
        int64_t piece = deadline == MPX_NEVER ? deadline : mpx_piece_of(deadline);
        if (ended || pid <= 0)
            return 0;
        Py_BEGIN_ALLOW_THREADS
        status = mpx_process_wait(pid, pidfd, piece);
        Py_END_ALLOW_THREADS
    } while (mpx_wait_on(&status, deadline));
    return status == -EINTR ? -1 : 0;
}

PyDoc_STRVAR(Child_poll_doc,
             "poll($self, flag=1)\n--\n\n"
             "The exit code, or None while the child runs; a flag of 0 waits for its\n"
             "end, any other (os.WNOHANG) does not.\n\n"
             "A negative exit code is the signal that killed it; 255 stands for a child that\n"
             "somebody else reaped.  In another process than the one that started it: None.");

static PyObject *Child_poll(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"flag", NULL};
    int flag = 1; /* os.WNOHANG */
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|i:poll", keywords, &flag))
        return NULL;
    if (flag == 0 && is_own(CHILD(object)) && block(CHILD(object), MPX_NEVER) < 0)
        return NULL;
    return exitcode_or_none(CHILD(object));
}

PyDoc_STRVAR(Child_wait_doc,
             "wait($self, timeout=None)\n--\n\n"
             "Wait until the child has ended; its exit code, or None after timeout seconds.");

static PyObject *Child_wait(PyObject *object, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"timeout", NULL};
    PyObject *timeout = Py_None;
    int64_t deadline;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:wait", keywords, &timeout) ||
        mpx_deadline_of(timeout, &deadline) < 0)
        return NULL;
    PyObject *result = exitcode_or_none(CHILD(object));
    if (result != Py_None || !is_own(CHILD(object)))
        return result;
    Py_DECREF(result);
    return block(CHILD(object), deadline) < 0 ? NULL : exitcode_or_none(CHILD(object));
}

PyDoc_STRVAR(Child_send_signal_doc,
             "_send_signal($self, sig, /)\n--\n\n"
             "Send a signal to the child if it runs.  It can reach no other process.");

static PyObject *Child_send_signal(PyObject *object, PyObject *args)
{
    ChildObject *self = CHILD(object);
    int signum, status = 0;
    if (!PyArg_ParseTuple(args, "i:_send_signal", &signum))
        return NULL;
    Py_BEGIN_CRITICAL_SECTION(self);
    try_reap(self);
    if (!self->ended && self->pid > 0)
        status = mpx_process_signal(self->pid, signum);
    Py_END_CRITICAL_SECTION();
    if (status < 0 && status != -ESRCH)
        return mpx_raise(status);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Child_close_doc,
             "close($self)\n--\n\n"
             "Close the descriptors that are held for the child; it may go on running.");

static PyObject *Child_close(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    Py_BEGIN_CRITICAL_SECTION(object);
    release_fds(CHILD(object));
    Py_END_CRITICAL_SECTION();
    Py_RETURN_NONE;
}

/* ---- Attributes ------------------------------------------------------------------------------ */

static PyObject *missing(PyObject *object, const char *name)
{
    PyErr_Format(PyExc_AttributeError, "'%.100s' object has no attribute '%s'",
                 Py_TYPE(object)->tp_name, name);
    return NULL;
}

static int store_int(PyObject *value, int *field)
{
    if (value == NULL) {
        PyErr_SetString(PyExc_AttributeError, "cannot delete attribute");
        return -1;
    }
    long number = PyLong_AsLong(value);
    if (number == -1 && PyErr_Occurred())
        return -1;
    if (number < INT_MIN || number > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "number out of range");
        return -1;
    }
    *field = (int)number;
    return 0;
}

static PyObject *Child_get_pid(PyObject *object, void *Py_UNUSED(closure))
{
    bool started;
    pid_t pid;
    Py_BEGIN_CRITICAL_SECTION(object);
    started = CHILD(object)->started;
    pid = CHILD(object)->pid;
    Py_END_CRITICAL_SECTION();
    return started ? PyLong_FromPid(pid) : missing(object, "pid");
}

/* Settable, like the two below, for subclasses that start the child by other means. */
static int Child_set_pid(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    int pid;
    if (store_int(value, &pid) < 0)
        return -1;
    Py_BEGIN_CRITICAL_SECTION(object);
    CHILD(object)->pid = pid;
    CHILD(object)->started = true;
    CHILD(object)->owner = getpid();
    Py_END_CRITICAL_SECTION();
    return 0;
}

static PyObject *Child_get_sentinel(PyObject *object, void *Py_UNUSED(closure))
{
    int sentinel;
    Py_BEGIN_CRITICAL_SECTION(object);
    sentinel = CHILD(object)->sentinel;
    Py_END_CRITICAL_SECTION();
    return sentinel < 0 ? missing(object, "sentinel") : PyLong_FromLong(sentinel);
}

static int Child_set_sentinel(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    int sentinel;
    if (store_int(value, &sentinel) < 0)
        return -1;
    Py_BEGIN_CRITICAL_SECTION(object);
    release_fds(CHILD(object));
    CHILD(object)->sentinel = sentinel;
    Py_END_CRITICAL_SECTION();
    return 0;
}

static PyObject *Child_get_returncode(PyObject *object, void *Py_UNUSED(closure))
{
    bool ended;
    int exitcode;
    Py_BEGIN_CRITICAL_SECTION(object);
    ended = CHILD(object)->ended;
    exitcode = CHILD(object)->exitcode;
    Py_END_CRITICAL_SECTION();
    return ended ? PyLong_FromLong(exitcode) : Py_NewRef(Py_None);
}

static int Child_set_returncode(PyObject *object, PyObject *value, void *Py_UNUSED(closure))
{
    int exitcode = 0;
    if (value != Py_None && store_int(value, &exitcode) < 0)
        return -1;
    Py_BEGIN_CRITICAL_SECTION(object);
    CHILD(object)->ended = value != Py_None;
    CHILD(object)->exitcode = exitcode;
    Py_END_CRITICAL_SECTION();
    return 0;
}

static PyGetSetDef Child_getset[] = {
    {"pid", Child_get_pid, Child_set_pid, PyDoc_STR("The process's number."), NULL},
    {"sentinel", Child_get_sentinel, Child_set_sentinel,
     PyDoc_STR("A descriptor that is readable once the child has ended."), NULL},
    {"returncode", Child_get_returncode, Child_set_returncode,
     PyDoc_STR("The exit code, or None as long as nobody has learned it."), NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* ---- The type -------------------------------------------------------------------------------- */

static PyObject *Child_new(PyTypeObject *type, PyObject *Py_UNUSED(args), PyObject *Py_UNUSED(kw))
{
    PyObject *object = type->tp_alloc(type, 0);
    if (object != NULL) {
        CHILD(object)->pidfd = -1;
        CHILD(object)->sentinel = -1;
        CHILD(object)->parent_w = -1;
    }
    return object;
}

static void Child_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    release_fds(CHILD(object));
    type->tp_free(object);
    Py_DECREF(type);
}

static PyMethodDef Child_methods[] = {
    {"_fork", Child_fork, METH_VARARGS, Child_fork_doc},
    {"_spawn", Child_spawn, METH_VARARGS, Child_spawn_doc},
    {"poll", (PyCFunction)(void (*)(void))Child_poll, METH_VARARGS | METH_KEYWORDS, Child_poll_doc},
    {"wait", (PyCFunction)(void (*)(void))Child_wait, METH_VARARGS | METH_KEYWORDS, Child_wait_doc},
    {"_send_signal", Child_send_signal, METH_VARARGS, Child_send_signal_doc},
    {"close", Child_close, METH_NOARGS, Child_close_doc},
    {NULL, NULL, 0, NULL},
};

PyDoc_STRVAR(Child_doc, "One child process as its parent sees it: the base of the Popen classes.");

static PyType_Slot Child_slots[] = {
    {Py_tp_doc, (void *)Child_doc}, {Py_tp_new, Child_new},       {Py_tp_dealloc, Child_dealloc},
    {Py_tp_methods, Child_methods}, {Py_tp_getset, Child_getset}, {0, NULL},
};

static PyType_Spec Child_spec = {
    .name = "mproc_ext._core.Child",
    .basicsize = sizeof(ChildObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Child_slots,
};

int mpx_add_child(PyObject *module)
{
    PyObject *type = PyType_FromModuleAndSpec(module, &Child_spec, NULL);
    if (type == NULL)
        return -1;
    module_state(module)->child_type = (PyTypeObject *)type;
    return PyModule_AddType(module, (PyTypeObject *)type);
}
