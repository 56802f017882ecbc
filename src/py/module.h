/* module.h - what the files of the extension module mproc_ext._core share.
 *
 * One Python type per file; the module's state holds the types, there are no other globals. The
 * core below knows nothing of Python: it returns negative errnos, and mpx_raise turns them into
 * exceptions. The GIL is released only to block.
 */
#ifndef MPX_PY_MODULE_H
#define MPX_PY_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "buffer.h"
#include "mpx_base.h"

/* Names that are looked up often. */
enum {
    MPX_NAME_ACQUIRE,
    MPX_NAME_CLEAR_MEMO,
    MPX_NAME_COUNT,
    MPX_NAME_CTX,
    MPX_NAME_DISPATCH_TABLE,
    MPX_NAME_DUMP,
    MPX_NAME_DUMPS,
    MPX_NAME_ENTER,
    MPX_NAME_EXIT,
    MPX_NAME_FILENO,
    MPX_NAME_FORKING_PICKLER,
    MPX_NAME_GET,
    MPX_NAME_GET_START_METHOD,
    MPX_NAME_IS_MINE,
    MPX_NAME_LOAD,
    MPX_NAME_LOADS,
    MPX_NAME_LOCK,
    MPX_NAME_MAKE_METHODS,
    MPX_NAME_NOTIFY,
    MPX_NAME_PUT,
    MPX_NAME_PICKLER,
    MPX_NAME_RELEASE,
    MPX_NAME_ROUNDED_UP,
    MPX_NAME_SEMLOCK,
    MPX_NAME_SEND,
    MPX_NAME_UNPICKLER,
    MPX_NAMES
};

/* How many idle picklers are kept, of those that leave large buffers apart and those that do not.
 */
#define MPX_PICKLINGS 4

/* Short keys of dicts that were received: the next message has the same ones, mostly, and to make a
 * str and its hash takes longer than to find it. */
#define MPX_KEYS 256

typedef struct {
    PyObject *strings[MPX_KEYS]; /* or NULL */
    uint64_t used_by[MPX_KEYS];  /* the message that had it last */
    uint64_t messages;           /* counted */
} mpx_keys_t;

typedef struct {
    PyObject *module;           /* whose state it is: borrowed */
    PyObject *names[MPX_NAMES]; /* strings */
    PyTypeObject *child_type;
    PyTypeObject *shared_type;
    PyTypeObject *view_type;
    PyTypeObject *synchronized_type;
    PyTypeObject *semlock_type;
    PyObject *semlock_view;    /* what a lock's `_semlock` is when nobody overrides it */
    bool asserts;              /* not with -O */
    PyObject *first_lock_hook; /* or NULL */
    PyObject *slow_inits;      /* a tuple, or NULL */
    PyTypeObject *channel_type;
    PyTypeObject *queue_base_type;
    PyTypeObject *queue_type;
    PyTypeObject *simple_queue_type;
    PyTypeObject *connection_type;
    unsigned connection_versions[3]; /* of the classes that were looked at last: connection.c */
    PyObject *connections;           /* the dict of their module, or NULL */
    PyObject *connection_kind_of;    /* with it: a function of theirs */
    PyObject *empty_error;           /* NULL before mproc_ext.queues is imported */
    PyObject *full_error;            /* these too */
    PyObject *shut_down_error;
    PyTypeObject *pickling_type;
    PyTypeObject *lease_type;
    PyTypeObject *reading_type;
    PyTypeObject *scratch_type;
    PyTypeObject *job_type;
    PyTypeObject *crew_type;
    PyTypeObject *turn_type;      /* of what `with crew.turn()` holds */
    PyObject *pool_timeout_error; /* NULL before mproc_ext._engine is imported */
    PyObject *pool_failure;       /* these too: see serve_pools */
    PyObject *pool_unsendable;
    PyObject *pool_apply;
    void *picklings[2][MPX_PICKLINGS]; /* objects that nobody uses now; or NULL */
    PyObject *pickler_class;           /* which is like ForkingPickler, or NULL */
    unsigned pickler_version;          /* of that class: as long as it has it, it is */
    PyObject *pickler_tables;          /* of reducers, a tuple, or NULL */
    PyObject *pickle_loads, *pickle_pickler, *pickle_unpickler; /* of _pickle, or NULL */
    void *buffer;                                               /* that nobody uses now; or NULL */
    mpx_keys_t keys;
    PyObject *find_tables;        /* of mproc_ext._pickling, or NULL before that is imported */
    PyObject *pickling_namespace; /* with it: its dict */
    Py_ssize_t pickling_place;    /* in that: see mpx_namespace_t */
} module_state_t;

/* Bytes of the idle buffer: a larger one goes back to the system. */
#define MPX_BUFFER_KEPT ((size_t)1 << 20)

extern struct PyModuleDef mpx_core_module;

static inline module_state_t *module_state(PyObject *module)
{
    return PyModule_GetState(module);
}

/* Python before 3.13 has no critical sections, and no build without a GIL that would need them.
 *
 * A critical section keeps other threads out of those of the same object until it ends, or until
 * something in it waits or runs Python code: what belongs together is read, or written, with
 * nothing of that kind in between. */
#ifndef Py_BEGIN_CRITICAL_SECTION
#    define Py_BEGIN_CRITICAL_SECTION(object) {
#    define Py_END_CRITICAL_SECTION()         }
#endif

/* Puts a reference, which it steals, into a member that programs see, and returns the former one,
 * to be dropped after the critical section of the object: other threads may look at the member
 * outside of it. */
static inline PyObject *mpx_put(PyObject **member, PyObject *value)
{
    PyObject *before = *member;
#ifdef Py_GIL_DISABLED
    _Py_atomic_store_ptr_release(member, value);
#else
    *member = value;
#endif
    return before;
}

/* Puts a pointer into what any thread may exchange, and returns the former one. There is no lock,
 * which a fork in the middle would leave locked in the child. */
static inline void *mpx_swap(void **member, void *value)
{
#ifdef Py_GIL_DISABLED
    return _Py_atomic_exchange_ptr(member, value);
#else
    void *before = *member;
    *member = value;
    return before;
#endif
}

/* A new reference to what a field of the module's state refers to, NULL where that is NULL. */
static inline PyObject *mpx_state_ref(PyObject *module, PyObject **field)
{
    PyObject *object;
    Py_BEGIN_CRITICAL_SECTION(module);
    object = Py_XNewRef(*field);
    Py_END_CRITICAL_SECTION();
    return object;
}

/* Puts a new reference there. */
static inline void mpx_state_set(PyObject *module, PyObject **field, PyObject *object)
{
    PyObject *before;
    Py_BEGIN_CRITICAL_SECTION(module);
    before = mpx_put(field, Py_NewRef(object));
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(before);
}

/* errors.c: sets the OSError of a negative errno; returns NULL. */
PyObject *mpx_raise(int status);

/* The same with a message of our own, and the name of a file where one is to blame (or NULL). */
PyObject *mpx_raise_message(int status, const char *message, PyObject *filename);

/* super.c: what super() of that class, one of ours, gives for the method, called with these
 * arguments. */
PyObject *mpx_super(PyObject *self, PyTypeObject *cls, const char *name, PyObject *const *args,
                    Py_ssize_t nargs, PyObject *names);

/* convert.c: the deadline of a timeout in seconds (None: MPX_NEVER; below 0: now). 0, or -1 with an
 * exception. */
int mpx_deadline_of(PyObject *timeout, int64_t *deadline);

/* convert.c: the same where it is None or a plain number that no clock minds: true. Where it is
 * not, what becomes of it is the standard library's to say: false, without an exception. */
bool mpx_usual_deadline_of(PyObject *timeout, int64_t *deadline);

/* wait.c: waiting in the core in pieces, so that a signal which comes just before the thread falls
 * asleep is not left until it wakes: the end of the piece that begins now. */
int64_t mpx_piece_of(int64_t deadline);

/* wait.c: before the first piece: sets the OSError of MPX_NO_DEADLINE. */
bool mpx_may_wait(int64_t deadline);

/* wait.c: whether to wait on after a piece that returned *status. Runs signal handlers; *status is
 * -EINTR, with an exception, where one raised. */
bool mpx_wait_on(int *status, int64_t deadline);

/* What sem_timedwait calls invalid (NaN, and what is no number of seconds): found out by who waits.
 */
#define MPX_NO_DEADLINE INT64_MIN

/* The same as locks take it: a number, and MPX_NO_DEADLINE where the standard library's fail as
 * soon as they have to wait. */
int mpx_wait_deadline_of(PyObject *timeout, int64_t *deadline);

/* convert.c: a flag as the standard library's C functions take it: before 3.12 an int. 0, or -1
 * with an exception. */
int mpx_flag_of(PyObject *object, bool *flag);

/* convert.c: a new array of the descriptors in a sequence, which the caller frees with PyMem_Free.
 * 0, or -1 with an exception. */
int mpx_fds_of(PyObject *sequence, int **fds, Py_ssize_t *count);

/* convert.c: the arguments of a METH_FASTCALL | METH_KEYWORDS method all of whose `count`
 * parameters are optional: values[i] is replaced where it is given. 0, or -1 with the interpreter's
 * TypeError. */
int mpx_parse_optional(const char *format, PyObject *const *args, Py_ssize_t nargs, PyObject *names,
                       const char *const *keywords, PyObject **values, Py_ssize_t count);

/* convert.c: the same where the first `required` of them (3 at most) must be given. */
int mpx_parse_arguments(const char *format, PyObject *const *args, Py_ssize_t nargs,
                        PyObject *names, const char *const *keywords, PyObject **values,
                        Py_ssize_t required, Py_ssize_t count);

/* Each file of these names adds its part to the module. 0, or -1 with an exception. */
int mpx_add_child(PyObject *module);
int mpx_add_program(PyObject *module);
int mpx_add_fds(PyObject *module);
int mpx_add_shared(PyObject *module);
int mpx_add_semlock(PyObject *module);
int mpx_add_event(PyObject *module);
int mpx_add_condition(PyObject *module);
int mpx_add_block(PyObject *module);
int mpx_add_synchronized(PyObject *module);
int mpx_add_channel(PyObject *module);
int mpx_add_queue_base(PyObject *module);
int mpx_add_queue(PyObject *module);
int mpx_add_simple_queue(PyObject *module);
int mpx_add_pickling(PyObject *module);
int mpx_add_unpickling(PyObject *module);
int mpx_add_scratch(PyObject *module);
int mpx_add_serialize(PyObject *module);
int mpx_add_lease(PyObject *module);
int mpx_add_fork_copy(PyObject *module);
int mpx_add_own_fd(PyObject *module);
int mpx_add_connection(PyObject *module);
int mpx_add_connection_wait(PyObject *module);
int mpx_add_job(PyObject *module);
int mpx_add_crew(PyObject *module);
int mpx_add_worker(PyObject *module);

#ifdef MPX_KILL_POINTS
/* src/testing/kill_points.c */
int mpx_add_kill_points(PyObject *module);
#endif

/* program.c: starts a program, see mpx_process_spawn; its pid, or -1 with an exception. */
pid_t mpx_start_program(PyObject *path, PyObject *argv, PyObject *fds);

#endif
