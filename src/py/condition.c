/* condition.c - Condition of mproc_ext.synchronize: what waits for a notify, with its lock.
 *
 * The lock is any object that the standard library's Condition takes. It is released and acquired
 * by its methods, whoever has written them; whether this thread holds it is seen at once where it
 * is one of our locks (semlock.h), else it is asked.
 *
 * A wait is enter (with the lock held), sleep, and leave; in between the lock is free.
 */
#include "semlock.h"
#include "shared.h"

#include <errno.h>
#include <structmember.h>

#include "mpx_condition.h"

typedef struct {
    MPX_SHARED_HEAD
    PyObject *lock;              /* NULL: not initialised, or deleted */
    PyObject *acquire, *release; /* bound methods of the lock: attributes of the object */
    mpx_plain_version_t known;
} ConditionObject;

static PyObject *raise_status(int status)
{
    if (status == -EPROTO)
        return mpx_raise_message(status, "the list of a condition's waiters is damaged", NULL);
    return mpx_raise(status);
}

static module_state_t *state_of(ConditionObject *self)
{
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &mpx_core_module);
    return module == NULL ? NULL : module_state(module);
}

/* ---- The lock -------------------------------------------------------------------------------- */

/* A new reference: while one of its methods runs, the program may put another one in its place. */
static PyObject *lock_of(ConditionObject *self)
{
    PyObject *lock;
    Py_BEGIN_CRITICAL_SECTION(self);
    lock = Py_XNewRef(self->lock);
    Py_END_CRITICAL_SECTION();
    if (MPX_UNLIKELY(lock == NULL))
        mpx_shared_raise_not_made((SharedObject *)self, "_lock");
    return lock;
}

/* Whether this thread holds the lock, where anybody wants to know: 1, 0, or -1. */
static int is_mine_or_not_asked(ConditionObject *self, PyObject *lock)
{
    if (mpx_is_plain(lock, &self->known) && mpx_semlock_is_mine_plainly(lock))
        return 1;
    module_state_t *state = state_of(self);
    if (state == NULL)
        return -1;
    return state->asserts ? mpx_semlock_is_mine(state, lock, &self->known) : 1;
}

static int assert_mine(ConditionObject *self, PyObject *lock, const char *message)
{
    int mine = is_mine_or_not_asked(self, lock);
    if (mine == 0)
        PyErr_SetString(PyExc_AssertionError, message);
    return mine > 0 ? 0 : -1;
}

/* Calls a method without arguments so many times. */
static int call_often(PyObject *lock, PyObject *name, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *result = PyObject_CallMethodNoArgs(lock, name);
        if (result == NULL)
            return -1;
        Py_DECREF(result);
    }
    return 0;
}

/* How often the lock is to be released, -1 with an exception. */
static Py_ssize_t count_of(ConditionObject *self, module_state_t *state, PyObject *lock)
{
    PyObject *count = mpx_semlock_count(state, lock, &self->known);
    Py_ssize_t number = count == NULL ? -1 : PyNumber_AsSsize_t(count, PyExc_OverflowError);
    Py_XDECREF(count);
    if (number < 0 && !PyErr_Occurred())
        number = 0;
    return number;
}

PyDoc_STRVAR(Condition_dunder_enter_doc, "__enter__($self)\n--\n\nAcquire the lock.");

static PyObject *Condition_dunder_enter(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    ConditionObject *self = (ConditionObject *)object;
    module_state_t *state = state_of(self);
    PyObject *lock = state == NULL ? NULL : lock_of(self);
    PyObject *result =
        lock == NULL ? NULL : PyObject_CallMethodNoArgs(lock, state->names[MPX_NAME_ENTER]);
    Py_XDECREF(lock);
    return result;
}

PyDoc_STRVAR(Condition_dunder_exit_doc, "__exit__($self, *args)\n--\n\nRelease the lock.");

static PyObject *Condition_dunder_exit(PyObject *object, PyObject *const *args, Py_ssize_t nargs)
{
    ConditionObject *self = (ConditionObject *)object;
    module_state_t *state = state_of(self);
    PyObject *lock = state == NULL ? NULL : lock_of(self);
    PyObject *method = lock == NULL ? NULL : PyObject_GetAttr(lock, state->names[MPX_NAME_EXIT]);
    PyObject *result =
        method == NULL ? NULL : PyObject_Vectorcall(method, args, (size_t)nargs, NULL);
    Py_XDECREF(method);
    Py_XDECREF(lock);
    return result;
}

/* ---- Exceptions, as in a `finally` ----------------------------------------------------------- */

/* The exception that is raised, NULL for none; it is not raised any more. */
static PyObject *fetch_raised(void)
{
#if PY_VERSION_HEX >= 0x030C0000
    return PyErr_GetRaisedException();
#else
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyErr_NormalizeException(&type, &value, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(value, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
    return value;
#endif
}

/* Raises it; steals it. */
static void raise_again(PyObject *exception)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyErr_SetRaisedException(exception);
#else
    PyErr_Restore(Py_NewRef(Py_TYPE(exception)), exception, PyException_GetTraceback(exception));
#endif
}

/* At the end of a `finally`: goes on with the exception that was raised before it (or NULL), which
 * is the context of one that was raised in it. Steals it. Whether there is any. */
static bool end_finally(PyObject *before)
{
    if (before != NULL && PyErr_Occurred()) {
        PyObject *exception = fetch_raised();
        PyException_SetContext(exception, before); /* steals it */
        raise_again(exception);
    } else if (before != NULL) {
        raise_again(before);
    }
    return PyErr_Occurred() != NULL;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

static int sleep_until(mpx_place_t place, mpx_slot_t node, PyObject *timeout)
{
    int64_t deadline = MPX_NEVER;
    int status;
    if ((timeout != Py_None && mpx_wait_deadline_of(timeout, &deadline) < 0) ||
        !mpx_may_wait(deadline))
        return -1;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_condition_sleep(place.arena, place.slot, node, piece);
        Py_END_ALLOW_THREADS
    } while (mpx_wait_on(&status, deadline));
    return status == -EINTR ? -1 : 0;
}

/* Releases the lock, sleeps, and acquires the lock again: 0, or -1 with an exception. *slept says
 * whether nothing was raised before the lock is acquired. */
static int sleep_without_lock(ConditionObject *self, PyObject *lock, mpx_place_t place,
                              mpx_slot_t node, PyObject *timeout, bool *slept)
{
    module_state_t *state = state_of(self);
    Py_ssize_t count = state == NULL ? -1 : count_of(self, state, lock);
    if (count < 0 || call_often(lock, state->names[MPX_NAME_RELEASE], count) < 0)
        return -1;
    *slept = sleep_until(place, node, timeout) == 0;
    PyObject *exception = fetch_raised();
    (void)!call_often(lock, state->names[MPX_NAME_ACQUIRE], count);
    return end_finally(exception) ? -1 : 0;
}

static PyObject *wait_with(ConditionObject *self, PyObject *lock, PyObject *timeout)
{
    mpx_slot_t node;
    bool slept = false;
    if (assert_mine(self, lock, "must acquire() condition before using wait()") < 0 ||
        !mpx_shared_check((SharedObject *)self, "_cond"))
        return NULL;
    mpx_place_t place = mpx_shared_place((SharedObject *)self);
    int status = mpx_condition_enter(place.arena, place.slot, &node);
    if (status < 0)
        return mpx_raise(status);
    status = sleep_without_lock(self, lock, place, node, timeout, &slept);
    bool notified = mpx_condition_leave(place.arena, place.slot, node) > 0;
    if (notified && !slept) /* a signal handler raised: the notify is for another one */
        (void)!mpx_condition_notify(place.arena, place.slot, 1);
    return status < 0 ? NULL : PyBool_FromLong(notified);
}

PyDoc_STRVAR(Condition_wait_doc,
             "wait($self, timeout=None)\n--\n\n"
             "Release the lock, wait for a notify, and acquire the lock again.\n\n"
             "True, or False where there was no notify within timeout seconds (None: for ever).");

static PyObject *Condition_wait(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *names)
{
    static const char *const keywords[] = {"timeout", NULL};
    PyObject *values[2] = {Py_None, NULL};
    if (mpx_parse_optional("|O:wait", args, nargs, names, keywords, values, 1) < 0)
        return NULL;
    PyObject *lock = lock_of((ConditionObject *)object);
    PyObject *result = lock == NULL ? NULL : wait_with((ConditionObject *)object, lock, values[0]);
    Py_XDECREF(lock);
    return result;
}

/* ---- Notifying ------------------------------------------------------------------------------- */

/* How many waiters are fewer than n: what compares with numbers is a number here. -1 with an
 * exception. */
static Py_ssize_t number_below(ConditionObject *self, PyObject *n)
{
    module_state_t *state = PyLong_CheckExact(n) ? NULL : state_of(self);
    PyObject *rounded = Py_NewRef(n);
    if (!PyLong_CheckExact(n))
        Py_SETREF(rounded, state == NULL
                               ? NULL
                               : PyObject_CallMethodOneArg((PyObject *)self,
                                                           state->names[MPX_NAME_ROUNDED_UP], n));
    if (rounded == NULL)
        return -1;
    Py_ssize_t number = PyNumber_AsSsize_t(rounded, NULL); /* clipped */
    Py_DECREF(rounded);
    if (number == -1 && PyErr_Occurred())
        return -1;
    return number < 0 ? 0 : number;
}

static PyObject *notify_some(ConditionObject *self, PyObject *n)
{
    Py_ssize_t count = n == NULL ? 1 : number_below(self, n);
    if (count < 0 || !mpx_shared_check((SharedObject *)self, "_cond"))
        return NULL;
    mpx_place_t place = mpx_shared_place((SharedObject *)self);
    int status = mpx_condition_notify(place.arena, place.slot, (size_t)count);
    if (status < 0)
        return raise_status(status);
    Py_RETURN_NONE;
}

static PyObject *notify_with(ConditionObject *self, PyObject *lock, PyObject *n)
{
    return assert_mine(self, lock, "lock is not owned") < 0 ? NULL : notify_some(self, n);
}

/* Whether all is as it should be and nobody waits, which is most often so; false: look closer. */
static bool is_for_nobody(ConditionObject *self)
{
    bool is;
    void *room = mpx_shared_room((SharedObject *)self);
    Py_BEGIN_CRITICAL_SECTION(self);
    is = self->lock != NULL && room != NULL && mpx_is_plain(self->lock, &self->known) &&
         mpx_semlock_is_mine_plainly(self->lock) && mpx_condition_is_empty(room);
    Py_END_CRITICAL_SECTION();
    return is;
}

PyDoc_STRVAR(Condition_notify_doc,
             "notify($self, n=1)\n--\n\n"
             "Wake the n waiters that have waited longest, or as many as there are.");

static PyObject *Condition_notify(PyObject *object, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *names)
{
    static const char *const keywords[] = {"n", NULL};
    ConditionObject *self = (ConditionObject *)object;
    PyObject *values[2] = {NULL, NULL};
    if (nargs == 0 && names == NULL && is_for_nobody(self))
        Py_RETURN_NONE;
    if (mpx_parse_optional("|O:notify", args, nargs, names, keywords, values, 1) < 0)
        return NULL;
    PyObject *lock = lock_of(self);
    PyObject *result = lock == NULL ? NULL : notify_with(self, lock, values[0]);
    Py_XDECREF(lock);
    return result;
}

PyDoc_STRVAR(Condition_counts_doc,
             "_counts($self, living, /)\n--\n\n"
             "How many wait and how many of them are notified: (waiting, notified).\n\n"
             "living says whether to look first which of them live; it takes system calls.");

static PyObject *Condition_counts(PyObject *object, PyObject *living)
{
    ConditionObject *self = (ConditionObject *)object;
    mpx_condition_counts_t counts;
    if (!mpx_shared_check((SharedObject *)self, "_cond"))
        return NULL;
    mpx_place_t place = mpx_shared_place((SharedObject *)self);
    int status = living == Py_True ? mpx_condition_count_living(place.arena, place.slot, &counts)
                                   : mpx_condition_count(place.arena, place.slot, &counts);
    if (status < 0)
        return raise_status(status);
    return Py_BuildValue("II", counts.waiting, counts.granted);
}

/* ---- The type -------------------------------------------------------------------------------- */

PyDoc_STRVAR(Condition_make_doc, "_make($self, /)\n--\n\nMake the shared part.");

static PyObject *Condition_make(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_shared_make((SharedObject *)self) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static int Condition_traverse(PyObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(((ConditionObject *)self)->lock);
    Py_VISIT(((ConditionObject *)self)->acquire);
    Py_VISIT(((ConditionObject *)self)->release);
    return 0;
}

static int Condition_clear(PyObject *self)
{
    Py_CLEAR(((ConditionObject *)self)->lock);
    Py_CLEAR(((ConditionObject *)self)->acquire);
    Py_CLEAR(((ConditionObject *)self)->release);
    return 0;
}

static void Condition_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    (void)Condition_clear(self);
    mpx_shared_drop((SharedObject *)self);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(Condition_doc, "The waiters of a condition that processes share, and its lock.");

static PyMethodDef Condition_methods[] = {
    {"__enter__", Condition_dunder_enter, METH_NOARGS, Condition_dunder_enter_doc},
    {"__exit__", (PyCFunction)(void (*)(void))Condition_dunder_exit, METH_FASTCALL,
     Condition_dunder_exit_doc},
    {"wait", (PyCFunction)(void (*)(void))Condition_wait, METH_FASTCALL | METH_KEYWORDS,
     Condition_wait_doc},
    {"notify", (PyCFunction)(void (*)(void))Condition_notify, METH_FASTCALL | METH_KEYWORDS,
     Condition_notify_doc},
    {"_counts", Condition_counts, METH_O, Condition_counts_doc},
    {"_make", Condition_make, METH_NOARGS, Condition_make_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef Condition_members[] = {
    {"acquire", T_OBJECT_EX, offsetof(ConditionObject, acquire), 0, "the lock's"},
    {"release", T_OBJECT_EX, offsetof(ConditionObject, release), 0, "the lock's"},
    {"_lock", T_OBJECT_EX, offsetof(ConditionObject, lock), 0, "what guards what it waits for"},
    {NULL, 0, 0, 0},
};

static PyType_Slot Condition_slots[] = {
    {Py_tp_doc, (void *)Condition_doc},
    {Py_tp_methods, Condition_methods},
    {Py_tp_members, Condition_members},
    {Py_tp_traverse, Condition_traverse},
    {Py_tp_clear, Condition_clear},
    {Py_tp_dealloc, Condition_dealloc},
    {0, NULL},
};

static PyType_Spec Condition_spec = {
    .name = "mproc_ext._core.Condition",
    .basicsize = sizeof(ConditionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Condition_slots,
};

int mpx_add_condition(PyObject *module)
{
    mpx_arena_set_undertaker(mpx_condition_undertake);
    return mpx_add_shared_type(module, &Condition_spec);
}
