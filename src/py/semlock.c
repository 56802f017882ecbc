/* semlock.c - SemLock, Lock, RLock, Semaphore and BoundedSemaphore of mproc_ext.synchronize.
 *
 * The standard library has a Python object around a C object, `_semlock`, around a POSIX semaphore;
 * here the first is the lock, and `_semlock` a view of it. What counts is in a slot of shared
 * memory: for Lock and RLock a word with an owner, which is recovered when that dies, for
 * semaphores a number.
 *
 * A lock is owned by a process. Which thread holds an RLock, and how often, is known to the object
 * alone, as in the standard library; a forked child has not acquired what its parent has.
 *
 * Threads without the GIL. `holder` is written by a thread that has acquired, before it says so in
 * `depth`, and read by others only to compare it with themselves: who sees that depth sees that it
 * is another's. A thread that releases says so in `depth` first, so that whoever acquires next
 * finds no count but its own. The rest is written while the object is made; made again, it has new
 * values for another slot of its own, never somebody else's.
 */
#include "semlock.h"
#include "shared.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <structmember.h>

#include "mpx_lock.h"
#include "mpx_semaphore.h"

enum { RECURSIVE_MUTEX, SEMAPHORE };

typedef struct SemLockObject SemLockObject;

struct SemLockObject {
    MPX_SHARED_HEAD
    mpx_atomic_ptr target; /* itself, once it is made */
    mpx_atomic_u32 kind;
    mpx_atomic_u32 maxvalue;
    mpx_atomic_u32 is_lock;   /* the slot has a lock in it, not a semaphore */
    bool warned;              /* of an owner that died */
    mpx_atomic_u64 next_look; /* see mpx_lock_try */
    /* The thread that acquired it last. */
    mpx_atomic_u64 holder;
    /* How often it was acquired here and not released: that in the lower half, and of which process
     * it is said in the upper one. */
    mpx_atomic_u64 depth;
};

/* What `_semlock` is: the same lock without what a subclass has overridden, which may call it. */
typedef struct {
    MPX_SHARED_HEAD            /* not used */
        mpx_atomic_ptr target; /* a strong reference */
} ViewObject;

MPX_STATIC_ASSERT(offsetof(SemLockObject, target) == offsetof(ViewObject, target),
                  "one method serves both");

static inline SemLockObject *semlock(PyObject *self)
{
    return mpx_ptr_load_acquire(&((ViewObject *)self)->target); /* P3: with P2 */
}

static inline bool is_lock(SemLockObject *self)
{
    return mpx_u32_load_relaxed(&self->is_lock);
}

static inline bool is_recursive(SemLockObject *self)
{
    return mpx_u32_load_relaxed(&self->kind) == RECURSIVE_MUTEX;
}

static inline int maxvalue_of(SemLockObject *self)
{
    return (int)mpx_u32_load_relaxed(&self->maxvalue);
}

static inline mpx_lock_t *lock_of(SemLockObject *self)
{
    return mpx_shared_room((SharedObject *)self);
}

static inline mpx_semaphore_t *semaphore_of(SemLockObject *self)
{
    return mpx_shared_room((SharedObject *)self);
}

/* The lock behind a method's self; NULL with an exception where it was not made. */
static SemLockObject *made(PyObject *self, const char *attribute)
{
    SemLockObject *lock = semlock(self);
    if (MPX_UNLIKELY(lock == NULL))
        mpx_shared_raise_not_made((SharedObject *)self, attribute);
    return lock;
}

/* ---- Who holds it ---------------------------------------------------------------------------- */

static uint32_t own_pid(void)
{
    return (uint32_t)mpx_os_own_word();
}

/* Different for any two threads that run: what PyThread_get_thread_ident returns, without its look
 * whether threads are initialised. */
static uint64_t own_thread(void)
{
    return (uint64_t)(uintptr_t)pthread_self();
}

/* The depth that this process finds in the word: a parent's is none of its own. */
static int64_t depth_in(uint64_t word)
{
    return MPX_LIKELY((uint32_t)(word >> 32) == own_pid()) ? (int32_t)(uint32_t)word : 0;
}

static int64_t depth_of(SemLockObject *self)
{
    return depth_in(mpx_u64_load_acquire(&self->depth)); /* P5: with P4 */
}

static bool is_mine(SemLockObject *self)
{
    return depth_of(self) > 0 && mpx_u64_load_relaxed(&self->holder) == own_thread();
}

static uint64_t own_depth(int64_t depth)
{
    return (uint64_t)own_pid() << 32 | (uint32_t)depth;
}

/* With a GIL one thread at a time is here, and need not pay for an atomic step. */
static void add_depth(SemLockObject *self, int64_t change)
{
    uint64_t seen = mpx_u64_load_relaxed(&self->depth);
#ifdef Py_GIL_DISABLED
    while (!mpx_u64_cas_release(&self->depth, &seen, own_depth(depth_in(seen) + change)))
        continue; /* P4: with P5 */
#else
    mpx_u64_store_relaxed(&self->depth, own_depth(depth_in(seen) + change));
#endif
}

/* ---- Acquire and release --------------------------------------------------------------------- */

static inline int try_once(SemLockObject *self)
{
    return is_lock(self) ? mpx_lock_try(lock_of(self), &self->next_look)
                         : mpx_semaphore_try(semaphore_of(self));
}

/* The slot stays while this thread waits without the GIL: the caller has a reference to the object,
 * which keeps its slots. It is the same one to the end. */
static int acquire_blocking(SemLockObject *self, int64_t deadline)
{
    int status;
    bool has_lock = is_lock(self);
    void *room = mpx_shared_room((SharedObject *)self);
    if (!mpx_may_wait(deadline))
        return -EINTR;
    do {
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        status = has_lock ? mpx_lock_acquire(room, piece) : mpx_semaphore_acquire(room, piece);
        Py_END_ALLOW_THREADS
    } while (mpx_wait_on(&status, deadline));
    return status;
}

static int give_back(SemLockObject *self)
{
    return is_lock(self) ? mpx_lock_release(lock_of(self))
                         : mpx_semaphore_release(semaphore_of(self), MPX_SEMAPHORE_MAX);
}

/* The owner before this one died: says so once. Where the warning is an error, the lock is
 * released: nobody else would. */
static int warn_of_death(SemLockObject *self)
{
    bool warned;
    Py_BEGIN_CRITICAL_SECTION(self);
    warned = self->warned;
    self->warned = true;
    Py_END_CRITICAL_SECTION();
    if (warned)
        return 0;
    int status = PyErr_WarnFormat(
        PyExc_RuntimeWarning, 1,
        "a process died while it held this %s: it is taken over, and what it protects may be "
        "half changed",
        Py_TYPE(self)->tp_name);
    return status;
}

/* The process that has called the hook of set_first_lock_hook. */
static mpx_atomic_u32 hooked;

static bool is_hooked(void)
{
    return mpx_u32_load_relaxed(&hooked) == own_pid();
}

/* A process that has held a lock has something to do at its end. */
static int hook(SemLockObject *self)
{
    if (mpx_u32_exchange_acq_rel(&hooked, own_pid()) == own_pid())
        return 0; /* another thread does it */
    PyObject *module = PyType_GetModuleByDef(Py_TYPE(self), &mpx_core_module);
    PyObject *function =
        module == NULL ? NULL : mpx_state_ref(module, &module_state(module)->first_lock_hook);
    if (function == NULL)
        return module == NULL ? -1 : 0;
    PyObject *result = PyObject_CallNoArgs(function);
    Py_DECREF(function);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* What seldom follows an acquisition. */
static PyObject *acquired_with_care(SemLockObject *self, int status)
{
    if ((status == MPX_OWNER_DIED && warn_of_death(self) < 0) ||
        (is_lock(self) && hook(self) < 0)) {
        add_depth(self, -1);
        (void)!give_back(self);
        return NULL;
    }
    Py_RETURN_TRUE;
}

static inline PyObject *acquired(SemLockObject *self, int status)
{
    mpx_u64_store_relaxed(&self->holder, own_thread());
    add_depth(self, 1);
    if (MPX_UNLIKELY(status == MPX_OWNER_DIED || !is_hooked()))
        return acquired_with_care(self, status);
    Py_RETURN_TRUE;
}

/* After a first attempt: the rest of acquire. */
static PyObject *acquire_or_not(SemLockObject *self, int status, bool block, int64_t deadline)
{
    if (status == -EAGAIN && block) {
        status = acquire_blocking(self, deadline);
        if (status == -EINTR)
            return NULL;
    }
    if (status >= 0)
        return acquired(self, status);
    if (status == -EAGAIN || status == -ETIMEDOUT)
        Py_RETURN_FALSE;
    return mpx_raise(status);
}

static inline PyObject *acquire(SemLockObject *self, bool block, PyObject *timeout)
{
    int64_t deadline = MPX_NEVER;
    if (is_recursive(self) && is_mine(self)) {
        add_depth(self, 1);
        Py_RETURN_TRUE;
    }
    if (timeout != Py_None && mpx_wait_deadline_of(timeout, &deadline) < 0)
        return NULL;
    int status = try_once(self);
    if (MPX_LIKELY(status == 0))
        return acquired(self, 0);
    return acquire_or_not(self, status, block, deadline);
}

PyDoc_STRVAR(
    SemLock_acquire_doc,
    "acquire($self, /, block=True, timeout=None)\n--\n\n"
    "Acquire the lock, or a permit of the semaphore: True, or False where it was not to be had.\n\n"
    "block    whether to wait until it is to be had\n"
    "timeout  how many seconds to wait at most; negative is zero, None for ever\n\n"
    "A Lock or RLock whose owner died is taken over with one RuntimeWarning: within 100 ms by who\n"
    "waits, and by repeated attempts that do not.  Signal handlers run during the wait.");

static PyObject *SemLock_acquire(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                 PyObject *names)
{
    PyObject *values[2] = {Py_True, Py_None};
    static const char *const keywords[] = {"block", "timeout", NULL};
    SemLockObject *lock = semlock(self);
    if (MPX_LIKELY(nargs == 0 && names == NULL && lock != NULL))
        return acquire(lock, true, Py_None);
    if (nargs == 1 && names == NULL && args[0] == Py_False && lock != NULL)
        return acquire(lock, false, Py_None);
    if (mpx_parse_optional("|OO:acquire", args, nargs, names, keywords, values, 2) < 0)
        return NULL;
    bool block;
    lock = made(self, "acquire");
    if (lock == NULL || mpx_flag_of(values[0], &block) < 0)
        return NULL;
    return acquire(lock, block, values[1]);
}

PyDoc_STRVAR(SemLock_release_doc,
             "release($self, /)\n--\n\n"
             "Release the lock, or give a permit to the semaphore.\n\n"
             "A Lock may be released by any thread and process, also where it was acquired by one\n"
             "that has ended; an RLock by the thread that holds it (AssertionError).  ValueError\n"
             "where nobody has acquired it.");

static PyObject *raise_released_too_often(void)
{
    PyErr_SetString(PyExc_ValueError, "semaphore or lock released too many times");
    return NULL;
}

static inline PyObject *release(SemLockObject *self)
{
    int status, limit = maxvalue_of(self);
    bool is_last = true;
    if (is_recursive(self)) {
        if (!is_mine(self)) {
            PyErr_SetString(PyExc_AssertionError,
                            "attempt to release recursive lock not owned by thread");
            return NULL;
        }
        is_last = depth_of(self) == 1;
    }
    add_depth(self, -1); /* before another thread has it */
    if (!is_last)
        Py_RETURN_NONE;
    status = is_lock(self)
                 ? mpx_lock_release(lock_of(self))
                 : mpx_semaphore_release(semaphore_of(self), limit > 0 ? (uint32_t)limit : 0);
    if (MPX_UNLIKELY(status < 0)) {
        if (!is_recursive(self))
            add_depth(self, 1);
        return raise_released_too_often();
    }
    Py_RETURN_NONE;
}

static PyObject *SemLock_release(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "release");
    return lock == NULL ? NULL : release(lock);
}

PyDoc_STRVAR(SemLock_enter_doc, "__enter__($self)\n--\n\nAcquire the lock; True.");

static PyObject *SemLock_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : acquire(lock, true, Py_None);
}

PyDoc_STRVAR(SemLock_exit_doc, "__exit__($self, *args)\n--\n\nRelease the lock.");

static PyObject *SemLock_exit(PyObject *self, PyObject *const *Py_UNUSED(args),
                              Py_ssize_t Py_UNUSED(nargs))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : release(lock);
}

/* ---- For other types in C -------------------------------------------------------------------- */

static bool is_method(PyObject *method, PyObject *lock, PyCFunction function)
{
    return method != NULL && PyCFunction_Check(method) && PyCFunction_GET_SELF(method) == lock &&
           PyCFunction_GET_FUNCTION(method) == function;
}

bool mpx_semlock_has(PyObject *lock, PyObject *acquire_method, PyObject *release_method)
{
    return is_method(acquire_method, lock, (PyCFunction)(void (*)(void))SemLock_acquire) &&
           is_method(release_method, lock, SemLock_release) && semlock(lock) != NULL;
}

enum { HELD_BEFORE, BARELY, IN_FULL };

/* With a GIL nobody can ask meanwhile who holds the lock, and how often: that need not be written
 * down. */
int mpx_semlock_enter(PyObject *lock)
{
    SemLockObject *self = semlock(lock);
    if (is_recursive(self) && is_mine(self))
        return HELD_BEFORE;
    int status = try_once(self);
#ifndef Py_GIL_DISABLED
    if (MPX_LIKELY(status == 0))
        return BARELY;
#endif
    PyObject *result = status < 0 ? acquire(self, true, Py_None) : acquired(self, status);
    Py_XDECREF(result);
    return result == NULL ? -1 : IN_FULL;
}

int mpx_semlock_leave(PyObject *lock, int how)
{
    SemLockObject *self = semlock(lock);
    if (how == HELD_BEFORE)
        return 0;
    if (MPX_LIKELY(how == BARELY && give_back(self) == 0))
        return 0;
    PyObject *result = release(self);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

/* ---- Looking at it --------------------------------------------------------------------------- */

static uint32_t value_of(SemLockObject *self)
{
    return is_lock(self) ? !mpx_lock_is_held(lock_of(self))
                         : mpx_semaphore_value(semaphore_of(self));
}

PyDoc_STRVAR(SemLock_locked_doc, "locked($self, /)\n--\n\n"
                                 "Whether acquire would have to wait.");

static PyObject *SemLock_is_zero(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : PyBool_FromLong(value_of(lock) == 0);
}

PyDoc_STRVAR(SemLock_get_value_doc, "_get_value($self, /)\n--\n\n"
                                    "The number of permits there are; of a lock, 1 where it is "
                                    "free.");

static PyObject *SemLock_get_value(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : PyLong_FromUnsignedLong(value_of(lock));
}

PyDoc_STRVAR(SemLock_count_doc, "_count($self, /)\n--\n\n"
                                "How often this process has acquired it, less its releases.");

static PyObject *SemLock_count(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : PyLong_FromLongLong(depth_of(lock));
}

PyDoc_STRVAR(SemLock_is_mine_doc, "_is_mine($self, /)\n--\n\n"
                                  "Whether this thread has acquired it last.");

static PyObject *SemLock_is_mine(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    return lock == NULL ? NULL : PyBool_FromLong(is_mine(lock));
}

PyDoc_STRVAR(SemLock_after_fork_doc, "_after_fork($self, /)\n--\n\n"
                                     "Forget what the parent has acquired; here that needs no "
                                     "call.");

static PyObject *SemLock_after_fork(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    SemLockObject *lock = made(self, "_semlock");
    if (lock == NULL)
        return NULL;
    mpx_u64_store_relaxed(&lock->depth, own_depth(0));
    Py_RETURN_NONE;
}

/* ---- Creation -------------------------------------------------------------------------------- */

/* What is in a new slot. */
static void fill(mpx_place_t place, int value, bool has_lock)
{
    if (!has_lock) {
        mpx_semaphore_init(place.room, (uint32_t)value);
    } else if (value == 0) { /* held from the start, by nobody */
        mpx_atomic_u64 next_look = {0};
        (void)!mpx_lock_try(place.room, &next_look);
        mpx_lock_disown(place.room);
    }
}

/* Makes the object the lock or semaphore in the slot. 0, or -1 with an exception. */
static int become(SemLockObject *self, mpx_place_t place, int kind, int maxvalue, bool has_lock)
{
    mpx_u32_store_relaxed(&self->is_lock, has_lock);
    mpx_u32_store_relaxed(&self->kind, (uint32_t)kind);
    mpx_u32_store_relaxed(&self->maxvalue, (uint32_t)maxvalue);
    if (mpx_shared_hold((SharedObject *)self, place) < 0)
        return -1;
    mpx_u64_store_relaxed(&self->depth, own_depth(0));
    mpx_ptr_store_release(&self->target, self); /* P2: with P3 */
    return 0;
}

PyDoc_STRVAR(SemLock_make_doc,
             "_make($self, kind, value, maxvalue, is_fork_ctx, is_lock, /)\n--\n\n"
             "Make the shared part: a lock with an owner, or a semaphore.");

/* A C int, with the message of the standard library's own parser. */
static int int_of(PyObject *object, void *result)
{
    int overflow;
    long value = PyLong_AsLongAndOverflow(object, &overflow);
    if (value == -1 && !overflow && PyErr_Occurred())
        return 0;
    if (overflow || value < INT_MIN || value > INT_MAX) {
        PyErr_SetString(PyExc_OverflowError, "Python int too large to convert to C int");
        return 0;
    }
    *(int *)result = (int)value;
    return 1;
}

static int make(SemLockObject *self, int kind, int value, int maxvalue, bool has_lock)
{
    mpx_place_t place;
    if (value < 0) {
        mpx_raise(-EINVAL);
        return -1;
    }
    if (mpx_place_new(&place, has_lock) < 0)
        return -1;
    fill(place, value, has_lock);
    return become(self, place, kind, maxvalue, has_lock);
}

static PyObject *SemLock_make(PyObject *object, PyObject *args)
{
    SemLockObject *self = (SemLockObject *)object;
    int kind, value, maxvalue, is_fork_ctx, has_lock;
    if (!PyArg_ParseTuple(args, "O&O&O&pp:_make", int_of, &kind, int_of, &value, int_of, &maxvalue,
                          &is_fork_ctx, &has_lock))
        return NULL;
    if (kind != RECURSIVE_MUTEX && kind != SEMAPHORE) {
        PyErr_SetString(PyExc_ValueError, "unrecognized kind");
        return NULL;
    }
    self->is_fork_ctx = is_fork_ctx;
    if (make(self, kind, value, maxvalue, has_lock) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(SemLock_remake_doc,
             "_remake($self, identity, slot, kind, maxvalue, is_lock, /)\n--\n\n"
             "Become the object that the parent has handed over.");

static PyObject *SemLock_remake(PyObject *object, PyObject *args)
{
    SemLockObject *self = (SemLockObject *)object;
    PyObject *identity;
    unsigned int slot;
    int kind, maxvalue, has_lock;
    mpx_place_t place;
    if (!PyArg_ParseTuple(args, "SIiip:_remake", &identity, &slot, &kind, &maxvalue, &has_lock) ||
        mpx_place_take(&place, identity, slot) < 0)
        return NULL;
    if (has_lock)
        mpx_slot_mark_lock(place.arena, slot);
    if (become(self, place, kind, maxvalue, has_lock) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(SemLock_make_methods_doc,
             "_make_methods($self)\n--\n\n"
             "For subclasses: here acquire and release are methods already.");

static PyObject *SemLock_make_methods(PyObject *Py_UNUSED(self), PyObject *Py_UNUSED(ignored))
{
    Py_RETURN_NONE;
}

/* ---- The four kinds --------------------------------------------------------------------------
 *
 * Their __init__ is here for the ways they are called in practice; any other way, right or wrong,
 * goes to a function in Python that has the standard library's signature (set_slow_inits).
 */

enum { LOCK, RLOCK, PLAIN_SEMAPHORE, BOUNDED_SEMAPHORE, KINDS };

/* The arguments where they are (value, ctx=) or fewer, value a small int: whether they are. The
 * context is a borrowed reference: the dict of a call's keywords is that call's alone. */
static bool understand(module_state_t *state, PyObject *args, PyObject *keywords, bool has_value,
                       int *value, PyObject **ctx)
{
    Py_ssize_t nargs = PyTuple_GET_SIZE(args);
    if (keywords == NULL || PyDict_GET_SIZE(keywords) != 1 || nargs > has_value)
        return false;
    *ctx = PyDict_GetItemWithError(keywords, state->names[MPX_NAME_CTX]);
    if (*ctx == NULL || *ctx == Py_None)
        return false;
    if (nargs == 1) {
        int overflow = 0;
        PyObject *given = PyTuple_GET_ITEM(args, 0);
        long number = PyLong_CheckExact(given) ? PyLong_AsLongAndOverflow(given, &overflow) : -1;
        if (number < 0 || number > INT_MAX)
            return false;
        *value = (int)number;
    }
    return true;
}

static int init_slowly(PyObject *module, PyObject *self, PyObject *args, PyObject *keywords,
                       int kind)
{
    if (PyErr_Occurred())
        return -1;
    PyObject *inits = mpx_state_ref(module, &module_state(module)->slow_inits);
    if (inits == NULL) {
        PyErr_SetString(PyExc_TypeError, "locks are made by mproc_ext.synchronize");
        return -1;
    }
    PyObject *method = PyMethod_New(PyTuple_GET_ITEM(inits, kind), self);
    PyObject *result = method == NULL ? NULL : PyObject_Call(method, args, keywords);
    Py_DECREF(inits);
    Py_XDECREF(method);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int init(PyObject *object, PyObject *args, PyObject *keywords, int kind)
{
    SemLockObject *self = (SemLockObject *)object;
    bool has_lock = kind == LOCK || kind == RLOCK;
    PyObject *ctx, *module = PyType_GetModuleByDef(Py_TYPE(object), &mpx_core_module);
    int value = 1;
    if (module == NULL)
        return -1;
    module_state_t *state = module_state(module);
    if (!understand(state, args, keywords, !has_lock, &value, &ctx))
        return init_slowly(module, object, args, keywords, kind);
    int is_fork = mpx_shared_is_fork(state, ctx);
    if (is_fork < 0)
        return -1;
    self->is_fork_ctx = is_fork;
    if (make(self, kind == RLOCK ? RECURSIVE_MUTEX : SEMAPHORE, value,
             kind == PLAIN_SEMAPHORE ? (int)MPX_SEMAPHORE_MAX : value, has_lock) < 0)
        return -1;
    PyObject *result = PyObject_CallMethodNoArgs(object, state->names[MPX_NAME_MAKE_METHODS]);
    Py_XDECREF(result);
    return result == NULL ? -1 : 0;
}

static int Lock_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    return init(self, args, keywords, LOCK);
}

static int RLock_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    return init(self, args, keywords, RLOCK);
}

static int Semaphore_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    return init(self, args, keywords, PLAIN_SEMAPHORE);
}

static int BoundedSemaphore_init(PyObject *self, PyObject *args, PyObject *keywords)
{
    return init(self, args, keywords, BOUNDED_SEMAPHORE);
}

PyDoc_STRVAR(Lock_doc, "Lock(*, ctx)\n--\n\nThe base of the class in synchronize.");
PyDoc_STRVAR(RLock_doc, "RLock(*, ctx)\n--\n\nThe base of the class in synchronize.");
PyDoc_STRVAR(Semaphore_doc,
             "Semaphore(value=1, *, ctx)\n--\n\nThe base of the class in synchronize.");
PyDoc_STRVAR(BoundedSemaphore_doc,
             "BoundedSemaphore(value=1, *, ctx)\n--\n\nThe base of the class in synchronize.");

#define KIND(kind)                                         \
    static PyType_Slot kind##_slots[] = {                  \
        {Py_tp_doc, (void *)kind##_doc},                   \
        {Py_tp_init, kind##_init},                         \
        {0, NULL},                                         \
    };                                                     \
    static PyType_Spec kind##_spec = {                     \
        .name = "mproc_ext._core." #kind,                  \
        .basicsize = sizeof(SemLockObject),                \
        .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, \
        .slots = kind##_slots,                             \
    };

KIND(Lock)
KIND(RLock)
KIND(Semaphore)
KIND(BoundedSemaphore)

/* ---- The view -------------------------------------------------------------------------------- */

static PyObject *SemLock_semlock(PyObject *self, void *Py_UNUSED(closure))
{
    SemLockObject *lock = made(self, "_semlock");
    PyObject *module = lock == NULL ? NULL : PyType_GetModuleByDef(Py_TYPE(self), &mpx_core_module);
    if (module == NULL)
        return NULL;
    PyTypeObject *type = module_state(module)->view_type;
    ViewObject *view = (ViewObject *)type->tp_alloc(type, 0);
    if (view != NULL)
        mpx_ptr_store_release(&view->target, Py_NewRef(lock)); /* P2: with P3 */
    return (PyObject *)view;
}

static void View_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF((PyObject *)semlock(self));
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *View_name(PyObject *Py_UNUSED(self), void *Py_UNUSED(closure))
{
    Py_RETURN_NONE;
}

static PyObject *View_handle(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(mpx_shared_place((SharedObject *)semlock(self)).slot);
}

static PyObject *View_kind(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(is_recursive(semlock(self)) ? RECURSIVE_MUTEX : SEMAPHORE);
}

static PyObject *View_maxvalue(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromLong(maxvalue_of(semlock(self)));
}

/* ---- For other types ------------------------------------------------------------------------- */

/* Whether `_semlock` of the type's objects is ours: 1, which is noted, 0, or -1. What is noted is
 * the version from before the look: where the type is changed meanwhile, nothing has that any more.
 */
static int is_plain(module_state_t *state, PyTypeObject *type, mpx_plain_version_t *known)
{
    if (!PyType_IsSubtype(type, state->semlock_type) ||
        type->tp_getattro != PyObject_GenericGetAttr)
        return 0;
    uint32_t version = mpx_version_of(type);
    PyObject *found = PyObject_GetAttr((PyObject *)type, state->names[MPX_NAME_SEMLOCK]);
    Py_XDECREF(found);
    if (found != state->semlock_view)
        return found == NULL ? -1 : 0;
    mpx_u32_store_relaxed(known, version);
    return 1;
}

/* The lock behind any object that has a `_semlock` of ours, a borrowed reference; NULL where its
 * `_semlock` has to be asked, or with an exception. */
static SemLockObject *plain(module_state_t *state, PyObject *lock, mpx_plain_version_t *known)
{
    return is_plain(state, Py_TYPE(lock), known) > 0 ? made(lock, "_semlock") : NULL;
}

static PyObject *ask(module_state_t *state, PyObject *lock, int name)
{
    PyObject *semlock =
        PyErr_Occurred() ? NULL : PyObject_GetAttr(lock, state->names[MPX_NAME_SEMLOCK]);
    PyObject *answer =
        semlock == NULL ? NULL : PyObject_CallMethodNoArgs(semlock, state->names[name]);
    Py_XDECREF(semlock);
    return answer;
}

int mpx_semlock_is_mine(module_state_t *state, PyObject *lock, mpx_plain_version_t *known)
{
    SemLockObject *ours = plain(state, lock, known);
    if (ours != NULL)
        return is_mine(ours);
    PyObject *answer = ask(state, lock, MPX_NAME_IS_MINE);
    int result = answer == NULL ? -1 : PyObject_IsTrue(answer);
    Py_XDECREF(answer);
    return result;
}

bool mpx_semlock_is_mine_plainly(PyObject *lock)
{
    SemLockObject *self = semlock(lock);
    return self != NULL && is_mine(self);
}

PyObject *mpx_semlock_count(module_state_t *state, PyObject *lock, mpx_plain_version_t *known)
{
    SemLockObject *ours = plain(state, lock, known);
    return ours != NULL ? PyLong_FromLongLong(depth_of(ours)) : ask(state, lock, MPX_NAME_COUNT);
}

/* ---- The types ------------------------------------------------------------------------------- */

PyDoc_STRVAR(SemLock_doc,
             "A lock or semaphore that processes share; the base of those in synchronize.");

#define ACQUIRE_AND_RELEASE                                                                    \
    {"acquire", (PyCFunction)(void (*)(void))SemLock_acquire, METH_FASTCALL | METH_KEYWORDS,   \
     SemLock_acquire_doc},                                                                     \
        {"release", SemLock_release, METH_NOARGS, SemLock_release_doc},                        \
        {"__enter__", SemLock_enter, METH_NOARGS, SemLock_enter_doc},                          \
    {                                                                                          \
        "__exit__", (PyCFunction)(void (*)(void))SemLock_exit, METH_FASTCALL, SemLock_exit_doc \
    }

static PyMethodDef SemLock_methods[] = {
    ACQUIRE_AND_RELEASE,
    {"locked", SemLock_is_zero, METH_NOARGS, SemLock_locked_doc},
    {"_make", SemLock_make, METH_VARARGS, SemLock_make_doc},
    {"_make_methods", SemLock_make_methods, METH_NOARGS, SemLock_make_methods_doc},
    {"_remake", SemLock_remake, METH_VARARGS, SemLock_remake_doc},
    {NULL, NULL, 0, NULL},
};

static PyMemberDef SemLock_members[] = {
    {"_warned", T_BOOL, offsetof(SemLockObject, warned), 0,
     "whether it was said, or need not be, that an owner died"},
    {NULL, 0, 0, 0},
};

static PyObject *SemLock_is_lock(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_lock((SemLockObject *)self));
}

static PyGetSetDef SemLock_getset[] = {
    {"_is_lock", SemLock_is_lock, NULL, "whether it has an owner", NULL},
    {"_semlock", SemLock_semlock, NULL, "the lock without what a subclass overrides", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot SemLock_slots[] = {
    {Py_tp_doc, (void *)SemLock_doc},
    {Py_tp_methods, SemLock_methods},
    {Py_tp_members, SemLock_members},
    {Py_tp_getset, SemLock_getset},
    {0, NULL},
};

static PyType_Spec SemLock_spec = {
    .name = "mproc_ext._core.SemLockBase",
    .basicsize = sizeof(SemLockObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = SemLock_slots,
};

static PyMethodDef View_methods[] = {
    ACQUIRE_AND_RELEASE,
    {"_is_zero", SemLock_is_zero, METH_NOARGS, SemLock_locked_doc},
    {"_get_value", SemLock_get_value, METH_NOARGS, SemLock_get_value_doc},
    {"_count", SemLock_count, METH_NOARGS, SemLock_count_doc},
    {"_is_mine", SemLock_is_mine, METH_NOARGS, SemLock_is_mine_doc},
    {"_after_fork", SemLock_after_fork, METH_NOARGS, SemLock_after_fork_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef View_getset[] = {
    {"name", View_name, NULL, "None: it has no name in any file system", NULL},
    {"handle", View_handle, NULL, "the number of its slot", NULL},
    {"kind", View_kind, NULL, "0: a lock that its holder may acquire again; 1: any other", NULL},
    {"maxvalue", View_maxvalue, NULL, "the largest value", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(View_doc, "A lock or semaphore, as the standard library's internals know it.");

static PyType_Slot View_slots[] = {
    {Py_tp_doc, (void *)View_doc},
    {Py_tp_dealloc, View_dealloc},
    {Py_tp_methods, View_methods},
    {Py_tp_getset, View_getset},
    {0, NULL},
};

static PyType_Spec View_spec = {
    .name = "mproc_ext._core.SemLock",
    .basicsize = sizeof(ViewObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = View_slots,
};

PyDoc_STRVAR(disown_locks_doc, "disown_locks()\n--\n\n"
                               "This process ends in good order: what locks it holds stay locked,\n"
                               "and are nobody's.");

static PyObject *disown_locks(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    mpx_arena_disown_locks();
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_first_lock_hook_doc, "set_first_lock_hook(function, /)\n--\n\n"
                                      "What to call when a process acquires its first lock.");

static PyObject *set_first_lock_hook(PyObject *module, PyObject *function)
{
    mpx_state_set(module, &module_state(module)->first_lock_hook, function);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(set_slow_inits_doc,
             "set_slow_inits(lock, rlock, semaphore, bounded_semaphore, /)\n--\n\n"
             "The functions that __init__ calls where it is called in an uncommon way.");

static PyObject *set_slow_inits(PyObject *module, PyObject *args)
{
    PyObject *each[KINDS];
    if (!PyArg_ParseTuple(args, "OOOO:set_slow_inits", &each[0], &each[1], &each[2], &each[3]))
        return NULL;
    mpx_state_set(module, &module_state(module)->slow_inits, args);
    Py_RETURN_NONE;
}

static PyMethodDef semlock_functions[] = {
    {"set_slow_inits", set_slow_inits, METH_VARARGS, set_slow_inits_doc},
    {"set_first_lock_hook", set_first_lock_hook, METH_O, set_first_lock_hook_doc},
    {"disown_locks", disown_locks, METH_NOARGS, disown_locks_doc},
    {NULL, NULL, 0, NULL},
};

static int add_view(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &View_spec, NULL);
    module_state(module)->view_type = type;
    PyObject *largest = type == NULL ? NULL : PyLong_FromUnsignedLong(MPX_SEMAPHORE_MAX);
    int status =
        largest == NULL ? -1 : PyObject_SetAttrString((PyObject *)type, "SEM_VALUE_MAX", largest);
    Py_XDECREF(largest);
    return status < 0 ? -1 : PyModule_AddType(module, type);
}

static int add_kinds(PyObject *module, PyObject *base)
{
    static PyType_Spec *const specs[] = {&Lock_spec, &RLock_spec, &Semaphore_spec,
                                         &BoundedSemaphore_spec};
    int status = 0;
    for (size_t i = 0; status == 0 && i < MPX_ARRAY_LENGTH(specs); i++)
        status = mpx_add_type(module, specs[i], base);
    return status;
}

int mpx_add_semlock(PyObject *module)
{
    module_state_t *state = module_state(module);
    if (mpx_add_shared_type(module, &SemLock_spec) < 0)
        return -1;
    state->semlock_type = (PyTypeObject *)PyObject_GetAttrString(module, "SemLockBase");
    if (state->semlock_type == NULL)
        return -1;
    state->semlock_view =
        PyObject_GetAttr((PyObject *)state->semlock_type, state->names[MPX_NAME_SEMLOCK]);
    if (state->semlock_view == NULL || add_kinds(module, (PyObject *)state->semlock_type) < 0 ||
        add_view(module) < 0)
        return -1;
    return PyModule_AddFunctions(module, semlock_functions);
}
