/* queue.c - Queue of mproc_ext.queues: objects through a channel, with a limit and timeouts.
 *
 * An object is pickled at once, in the thread that puts it.
 */
#include "queue.h"

#include <math.h>

#include "mpx_os.h"

/* A queue is closed for the process that did so: a child that it forks has an open one. */
static bool is_closed(PyObject *self)
{
    return mpx_queue(self)->closed_by != 0 && mpx_queue(self)->closed_by == mpx_os_own_word();
}

static bool check_open(PyObject *self)
{
    if (MPX_LIKELY(!is_closed(self)))
        return true;
    PyErr_Format(PyExc_ValueError, "Queue %R is closed", self);
    return false;
}

/* The standard library says what is wrong with them. */
MPX_COLD static PyObject *bad_arguments(PyObject *self, const char *name, PyObject *const *args,
                                        Py_ssize_t nargs, PyObject *names)
{
    PyErr_Clear();
    return mpx_super(self, mpx_queue_state(self)->queue_type, name, args, nargs, names);
}

/* ---- put ------------------------------------------------------------------------------------- */

/* What the standard library's feeder thread does with an object that it cannot send, while the
 * exception is being handled. */
static PyObject *report(PyObject *self, PyObject *object)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    PyObject *before = PyErr_GetHandledException();
    PyErr_SetHandledException(error);
    PyObject *result = PyObject_CallMethod(self, "_on_unsent", "OO", error, object);
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(traceback);
    return result;
}

/* An object may be too deep for what is left of the caller's stack, and not for that of the
 * standard library's feeder thread. NULL with the exception that it raised there. */
MPX_COLD static PyObject *send_by_thread(PyObject *self, PyObject *object, int64_t deadline,
                                         mpx_queue_fault_t *fault)
{
    PyErr_Clear();
    PyObject *result = NULL, *bytes = PyObject_CallMethod(self, "_dumps_in_thread", "O", object);
    if (bytes != NULL)
        result = mpx_queue_send_message(self, bytes, deadline, fault);
    Py_XDECREF(bytes);
    return result;
}

static PyObject *send_or_report(PyObject *self, PyObject *object, int64_t deadline)
{
    mpx_queue_fault_t fault;
    mpx_queue(self)->used_by = mpx_os_own_word();
    PyObject *result = mpx_queue_send(self, object, deadline, &fault);
    if (MPX_UNLIKELY(fault == MPX_UNPICKLABLE) && PyErr_ExceptionMatches(PyExc_RecursionError))
        result = send_by_thread(self, object, deadline, &fault);
    if (MPX_UNLIKELY(fault != MPX_NOT_AT_FAULT) && PyErr_ExceptionMatches(PyExc_Exception) &&
        !PyErr_ExceptionMatches(PyExc_MemoryError))
        return report(self, object);
    return result;
}

/* A queue that is full says so before it looks at the object. */
static bool is_full_now(PyObject *self)
{
    mpx_ring_t *ring = &mpx_queue_channel(self)->ring;
    return mpx_queue(self)->is_limited && mpx_ring_is_full(ring);
}

static PyObject *put(PyObject *self, PyObject *object, int64_t deadline)
{
    /* MPX_CHANNEL_NOW has always passed. */
    if (deadline != MPX_NEVER && deadline != MPX_NO_DEADLINE && is_full_now(self) &&
        mpx_os_now() >= deadline) {
        PyErr_SetNone(mpx_queue_state(self)->full_error);
        return NULL;
    }
    return send_or_report(self, object, deadline);
}

/* The standard library waits for room by sem_timedwait, which sleeps for a moment also where the
 * deadline has passed. A producer that tries again and again relies on that: it would not let those
 * run who make room. */
#define MOMENT (50 * INT64_C(1000))

static int let_others_run(void)
{
    mpx_atomic_u32 word;
    int status;
    mpx_u32_store_relaxed(&word, 0);
    Py_BEGIN_ALLOW_THREADS
    status = mpx_os_futex_wait(&word, 0, mpx_os_deadline(MOMENT));
    Py_END_ALLOW_THREADS
    return status;
}

static PyObject *put_in_time(PyObject *self, PyObject *object, int64_t deadline)
{
    PyObject *result = put(self, object, deadline);
    if (MPX_UNLIKELY(result == NULL) && deadline != MPX_CHANNEL_NOW &&
        PyErr_ExceptionMatches(mpx_queue_state(self)->full_error))
        (void)let_others_run();
    return result;
}

/* As the standard library's lock takes them that is acquired for the room. */
static int put_deadline_of(PyObject *block, PyObject *timeout, int64_t *deadline)
{
    bool blocks;
    *deadline = MPX_NEVER;
    if (mpx_flag_of(block, &blocks) < 0 ||
        (timeout != Py_None && mpx_wait_deadline_of(timeout, deadline) < 0))
        return -1;
    if (!blocks)
        *deadline = MPX_CHANNEL_NOW;
    return 0;
}

PyDoc_STRVAR(Queue_put_doc,
             "put($self, obj, block=True, timeout=None)\n--\n\n"
             "Put an object into the queue.\n"
             "\n"
             "It is pickled now, in this thread, and may be changed right after.  When put()\n"
             "returns it is in the queue: it is lost neither by the end nor by the death of\n"
             "this process.\n"
             "\n"
             "Where the queue is full, wait for room: for ever, for timeout seconds, or not at\n"
             "all if block is false; a timeout that is negative counts as 0.  A process that\n"
             "is killed while it puts leaves a whole object or none, and nobody waits for it.\n"
             "\n"
             "queue.Full: there was no room in time.\n"
             "queue.ShutDown: the queue has been shut down.\n"
             "ValueError: this process has closed the queue, or the object is larger than\n"
             "max_bytes.\n"
             "MemoryError, OSError: there is no memory for it; the queue is as before.\n"
             "\n"
             "An object that cannot be pickled goes to _on_queue_feeder_error(), which prints\n"
             "a traceback to stderr, and is dropped.");

static PyObject *Queue_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const char *const keywords[] = {"obj", "block", "timeout", NULL};
    PyObject *values[3] = {NULL, Py_True, Py_None};
    int64_t deadline;
    if (mpx_queue(self)->channel == NULL)
        return mpx_super(self, mpx_queue_state(self)->queue_type, "put", args, nargs, names);
    if (MPX_LIKELY(nargs == 1 && names == NULL))
        return check_open(self) ? put(self, args[0], MPX_NEVER) : NULL;
    if (mpx_parse_arguments("O|OO:put", args, nargs, names, keywords, values, 1, 3) < 0)
        return bad_arguments(self, "put", args, nargs, names);
    if (!check_open(self) || put_deadline_of(values[1], values[2], &deadline) < 0)
        return NULL;
    return put_in_time(self, values[0], deadline);
}

PyDoc_STRVAR(Queue_put_nowait_doc,
             "put_nowait($self, obj)\n--\n\n"
             "The same as put(obj, False): raise queue.Full rather than wait for room.");

/* By the method, which a subclass may have overridden. */
static PyObject *Queue_put_nowait(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *names)
{
    static const char *const keywords[] = {"obj", NULL};
    PyObject *object;
    if (mpx_parse_arguments("O:put_nowait", args, nargs, names, keywords, &object, 1, 1) < 0)
        return bad_arguments(self, "put_nowait", args, nargs, names);
    PyObject *call[] = {self, object, Py_False};
    return PyObject_VectorcallMethod(mpx_queue_state(self)->names[MPX_NAME_PUT], call, 3, NULL);
}

PyDoc_STRVAR(Queue_put_many_doc,
             "put_many($self, iterable, block=True, timeout=None)\n--\n\n"
             "Put the objects of an iterable, in their order, as put() does.\n"
             "\n"
             "For small objects in a list, a tuple or a range it is several times as fast as\n"
             "as many calls of put().  Other processes' objects may come between them.  The\n"
             "timeout, in seconds, is for all of them together.  A process that is killed on\n"
             "the way has put the first of them, each whole.\n"
             "\n"
             "queue.Full: there was no room for one in time; args[0] is the number of those\n"
             "that are in the queue, or were dropped because they cannot be pickled.\n"
             "What the iterable raises comes out, when those before it have been put.  Else as\n"
             "put().");

/* Objects that were written, but not yet sent. They are kept: what cannot be sent at once is put as
 * by put(), which waits, or says what is wrong with it. */
#define BATCH       64
#define BATCH_BYTES 8192

typedef struct {
    mpx_buffer_t buffer; /* their messages, one behind the other */
    Py_ssize_t done;     /* how many objects were sent before them */
    size_t count;
    size_t ends[BATCH];
    PyObject *objects[BATCH];
    char room[BATCH_BYTES];
} batch_t;

static int batch_is_full(mpx_buffer_t *Py_UNUSED(buffer), size_t Py_UNUSED(needed))
{
    return -1;
}

/* As many as there is room for at once, the first of which is the one at `first`. */
static size_t send_batch(PyObject *self, batch_t *batch, size_t first)
{
    mpx_message_t messages[BATCH];
    for (size_t i = first; i < batch->count; i++) {
        size_t start = i == 0 ? 0 : batch->ends[i - 1];
        messages[i - first] =
            (mpx_message_t){.data = batch->buffer.data + start, .size = batch->ends[i] - start};
    }
    return mpx_channel_send_some(mpx_queue_channel(self), messages, batch->count - first);
}

/* Like put, and counts; queue.Full says how many there are. */
static int put_one(PyObject *self, PyObject *object, int64_t deadline, Py_ssize_t *count)
{
    PyObject *full = mpx_queue_state(self)->full_error;
    PyObject *done = check_open(self) ? put(self, object, deadline) : NULL;
    if (done != NULL) {
        Py_DECREF(done);
        ++*count;
        return 0;
    }
    if (PyErr_ExceptionMatches(full)) {
        PyObject *number = PyLong_FromSsize_t(*count);
        if (number != NULL)
            PyErr_SetObject(full, number);
        Py_XDECREF(number);
    }
    return -1;
}

static int put_batch(PyObject *self, batch_t *batch, int64_t deadline)
{
    int status = 0;
    for (size_t first = 0; status == 0 && first < batch->count;) {
        size_t sent = check_open(self) ? send_batch(self, batch, first) : 0;
        batch->done += (Py_ssize_t)sent;
        first += sent;
        if (PyErr_Occurred())
            status = -1;
        else if (sent == 0)
            status = put_one(self, batch->objects[first++], deadline, &batch->done);
    }
    for (size_t i = 0; i < batch->count; i++)
        Py_DECREF(batch->objects[i]);
    batch->count = 0;
    batch->buffer.size = 0;
    return status;
}

/* Whether the object is in the batch now. One that is not goes behind it. */
static bool add_to_batch(PyObject *self, batch_t *batch, PyObject *object)
{
    QueueObject *queue = mpx_queue(self);
    if (batch->count == BATCH ||
        !mpx_dumps_quickly(queue->state, &queue->namespace, object, &batch->buffer))
        return false;
    batch->ends[batch->count] = batch->buffer.size;
    batch->objects[batch->count++] = Py_NewRef(object);
    return true;
}

/* Puts the objects of what runs no code of the program's between one and the next: several at once.
 */
static int put_quickly(PyObject *self, PyObject *iterator, int64_t deadline)
{
    batch_t batch;
    batch.buffer =
        (mpx_buffer_t){.data = batch.room, .capacity = sizeof(batch.room), .grower = batch_is_full};
    batch.count = 0;
    batch.done = 0;
    PyObject *object;
    int status = 0;
    mpx_queue(self)->used_by = mpx_os_own_word();
    while (status == 0 && (object = PyIter_Next(iterator)) != NULL) {
        if (!add_to_batch(self, &batch, object)) {
            status = put_batch(self, &batch, deadline);
            if (status == 0 && !add_to_batch(self, &batch, object))
                status = put_one(self, object, deadline, &batch.done);
        }
        Py_DECREF(object);
    }
    if (status < 0)
        return -1;
    PyObject *type, *error, *traceback; /* the iterator's */
    PyErr_Fetch(&type, &error, &traceback);
    status = put_batch(self, &batch, deadline);
    if (type == NULL)
        return status;
    PyErr_Restore(type, error, traceback);
    return -1;
}

/* Other processes see each object as soon as it is there. */
static int put_all(PyObject *self, PyObject *iterator, int64_t deadline)
{
    PyObject *object;
    Py_ssize_t count = 0;
    int status = 0;
    while (status == 0 && (object = PyIter_Next(iterator)) != NULL) {
        status = put_one(self, object, deadline, &count);
        Py_DECREF(object);
    }
    return status < 0 || PyErr_Occurred() ? -1 : 0;
}

static bool is_quick(PyObject *iterable)
{
    return PyList_CheckExact(iterable) || PyTuple_CheckExact(iterable) ||
           Py_IS_TYPE(iterable, &PyRange_Type);
}

static PyObject *no_such_method(PyObject *self, const char *name)
{
    PyErr_Format(PyExc_NotImplementedError,
                 "%s(): %.100s overrides a part of the standard library's queue, and so is one",
                 name, Py_TYPE(self)->tp_name);
    return NULL;
}

static PyObject *Queue_put_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *names)
{
    static const char *const keywords[] = {"iterable", "block", "timeout", NULL};
    PyObject *values[3] = {NULL, Py_True, Py_None};
    int64_t deadline;
    if (mpx_queue(self)->channel == NULL)
        return no_such_method(self, "put_many");
    if (mpx_parse_arguments("O|OO:put_many", args, nargs, names, keywords, values, 1, 3) < 0 ||
        !check_open(self) || put_deadline_of(values[1], values[2], &deadline) < 0)
        return NULL;
    PyObject *iterator = PyObject_GetIter(values[0]);
    int status = iterator == NULL      ? -1
                 : is_quick(values[0]) ? put_quickly(self, iterator, deadline)
                                       : put_all(self, iterator, deadline);
    Py_XDECREF(iterator);
    return status < 0 ? NULL : Py_NewRef(Py_None);
}

/* ---- get ------------------------------------------------------------------------------------- */

/* The standard library adds the timeout to the time, and waits a whole number of milliseconds. */
static int check_timeout(PyObject *timeout)
{
    double seconds = PyFloat_AsDouble(timeout);
    if (isnan(seconds))
        PyErr_SetString(PyExc_ValueError, "cannot convert float NaN to integer");
    else if (isinf(seconds) && seconds > 0)
        PyErr_SetString(PyExc_OverflowError, "cannot convert float infinity to integer");
    return PyErr_Occurred() ? -1 : 0;
}

static int get_timeout_of(PyObject *timeout, int64_t *deadline)
{
    if (PyFloat_Check(timeout) || PyLong_Check(timeout))
        return check_timeout(timeout) < 0 ? -1 : mpx_wait_deadline_of(timeout, deadline);
    PyObject *now = PyFloat_FromDouble((double)mpx_os_now() / (double)MPX_NANOS_PER_SEC);
    PyObject *end = now == NULL ? NULL : PyNumber_Add(now, timeout);
    PyObject *rest = end == NULL ? NULL : PyNumber_Subtract(end, now);
    int status =
        rest == NULL || check_timeout(rest) < 0 ? -1 : mpx_wait_deadline_of(rest, deadline);
    Py_XDECREF(now);
    Py_XDECREF(end);
    Py_XDECREF(rest);
    return status;
}

/* Then it takes a lock so, unless it waits for ever; and that has its own idea of a flag. */
static int get_deadline_of(PyObject *block, PyObject *timeout, int64_t *deadline)
{
    bool flag;
    int blocks = PyObject_IsTrue(block);
    *deadline = MPX_NEVER;
    if (blocks < 0)
        return -1;
    if (blocks && timeout == Py_None)
        return 0;
    if (blocks)
        return get_timeout_of(timeout, deadline) < 0 ? -1 : mpx_flag_of(block, &flag);
    if (mpx_flag_of(block, &flag) < 0 ||
        (timeout != Py_None && mpx_wait_deadline_of(timeout, deadline) < 0))
        return -1;
    *deadline = MPX_CHANNEL_NOW;
    return 0;
}

PyDoc_STRVAR(Queue_drop_taken_doc,
             "_drop_taken($self, /)\n--\n\n"
             "Drop the next object that a get_many that raised had taken; False where there is "
             "none.");

static PyObject *Queue_drop_taken(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *object = mpx_queue_get_taken(self);
    if (object == NULL && PyErr_Occurred())
        return NULL;
    bool dropped = object != NULL;
    Py_XDECREF(object);
    return PyBool_FromLong(dropped);
}

/* What get_many has taken when it raises is not lost: the next ones get it. */
MPX_COLD static void keep_taken(PyObject *self, PyObject *list)
{
    QueueObject *queue = mpx_queue(self);
    PyObject *before;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    Py_BEGIN_CRITICAL_SECTION(self);
    before = mpx_put(&queue->taken, list);
    if (before != NULL && queue->taken_by == mpx_os_own_word() &&
        PyList_SetSlice(list, 0, 0, before) < 0)
        PyErr_WriteUnraisable(self);
    queue->taken_by = mpx_os_own_word();
    Py_END_CRITICAL_SECTION();
    mpx_u32_store_relaxed(&mpx_queue_channel(self)->set_aside, 1);
    Py_XDECREF(before);
    PyErr_Restore(type, error, traceback);
}

PyDoc_STRVAR(Queue_get_doc,
             "get($self, block=True, timeout=None)\n--\n\n"
             "Take the oldest object out of the queue.\n"
             "\n"
             "Where there is none, wait for one: for ever, for timeout seconds, or not at all\n"
             "if block is false.  Nobody waits for a process that is killed while it gets; the\n"
             "object that it had taken is lost with it, and no other.\n"
             "\n"
             "queue.Empty: there was none in time.\n"
             "queue.ShutDown: the queue is empty, and has been shut down.\n"
             "ValueError: this process has closed the queue.\n"
             "EOFError: the queue is empty, and there is no process that could put something.\n"
             "\n"
             "An exception that unpickling raises comes out here, and the object is gone.");

static PyObject *Queue_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    static const char *const keywords[] = {"block", "timeout", NULL};
    PyObject *values[2] = {Py_True, Py_None};
    int64_t deadline;
    if (mpx_queue(self)->channel == NULL)
        return mpx_super(self, mpx_queue_state(self)->queue_type, "get", args, nargs, names);
    if (MPX_LIKELY(nargs == 0 && names == NULL))
        return check_open(self) ? mpx_queue_receive(self, MPX_NEVER) : NULL;
    if (mpx_parse_optional("|OO:get", args, nargs, names, keywords, values, 2) < 0)
        return bad_arguments(self, "get", args, nargs, names);
    if (!check_open(self) || get_deadline_of(values[0], values[1], &deadline) < 0)
        return NULL;
    return mpx_queue_receive(self, deadline);
}

PyDoc_STRVAR(Queue_get_nowait_doc,
             "get_nowait($self)\n--\n\n"
             "The same as get(False): raise queue.Empty rather than wait for an object.");

static PyObject *Queue_get_nowait(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *args[] = {self, Py_False};
    PyObject *name = mpx_queue_state(self)->names[MPX_NAME_GET];
    return PyObject_VectorcallMethod(name, args, 2, NULL);
}

PyDoc_STRVAR(Queue_get_many_doc,
             "get_many($self, max=None, block=True, timeout=None)\n--\n\n"
             "Take the oldest objects out of the queue, at least one and at most max: a list.\n"
             "\n"
             "Without max, as many as there are now.  It waits for the first one as get()\n"
             "does, and raises what get() does; for the others it does not wait.  If this\n"
             "process is killed, those are lost that it had in its hands.\n"
             "\n"
             "Where an object's unpickling raises, or a signal handler does meanwhile, that\n"
             "exception comes out; what was taken before is what this process gets next.\n"
             "ValueError: max is below 1.");

/* The most objects to take; -1 with an exception. */
static Py_ssize_t most_of(PyObject *max)
{
    if (max == Py_None)
        return PY_SSIZE_T_MAX;
    Py_ssize_t most = PyNumber_AsSsize_t(max, NULL);
    if (most == -1 && PyErr_Occurred())
        return -1;
    if (most > 0)
        return most;
    PyErr_SetString(PyExc_ValueError, "max must be positive");
    return -1;
}

/* After a failure with objects at hand: whether it says only that there are no more. */
static bool ends_list(PyObject *self)
{
    if (!PyErr_ExceptionMatches(mpx_queue_state(self)->empty_error) &&
        !PyErr_ExceptionMatches(mpx_queue_state(self)->shut_down_error))
        return false;
    PyErr_Clear();
    return true;
}

static bool is_quick_message(const void *data, size_t size, mpx_block_t block)
{
    return block == 0 && mpx_is_tree(mpx_tag_of(data, size));
}

typedef struct {
    QueueObject *queue;
    PyObject *list;
    bool has_failed; /* the exception is set */
} collector_t;

/* All of a batch are at hand by now: one that is damaged, or has no memory, takes no other with it.
 */
static void collect(void *context, const char *data, size_t size)
{
    collector_t *collector = context;
    QueueObject *queue = collector->queue;
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyObject *object = mpx_loads(queue->state, &queue->namespace, data, size, NULL);
    if (object == NULL || PyList_Append(collector->list, object) < 0)
        collector->has_failed = true;
    Py_XDECREF(object);
    if (type != NULL)
        PyErr_Restore(type, error, traceback);
}

/* Several at once, of those whose reading runs no code of the program's: how many, or -1. */
static Py_ssize_t get_some(PyObject *self, PyObject *list, size_t most)
{
    QueueObject *queue = mpx_queue(self);
    collector_t collector = {.queue = queue, .list = list};
    if (mpx_queue_count_taken(self) > 0 || !mpx_reads_plainly(queue->state, &queue->namespace))
        return 0;
    size_t taken = mpx_channel_receive_some(mpx_queue_channel(self), most, is_quick_message,
                                            collect, &collector);
    return collector.has_failed ? -1 : (Py_ssize_t)taken;
}

/* 0: the list ends here. */
static int get_one(PyObject *self, PyObject *list)
{
    PyObject *object = mpx_queue_receive(self, MPX_CHANNEL_NOW);
    if (object == NULL)
        return ends_list(self) ? 0 : -1;
    int status = PyList_Append(list, object);
    Py_DECREF(object);
    return status < 0 ? -1 : 1;
}

/* No more than there are at first: producers may be as fast as this is. */
static PyObject *get_list(PyObject *self, Py_ssize_t most, int64_t deadline)
{
    PyObject *list = PyList_New(1);
    PyObject *object = list == NULL ? NULL : mpx_queue_receive(self, deadline);
    if (object == NULL) {
        Py_XDECREF(list);
        return NULL;
    }
    PyList_SET_ITEM(list, 0, object);
    size_t rest = mpx_ring_count(&mpx_queue_channel(self)->ring) + mpx_queue_count_taken(self);
    if (rest > (size_t)most - 1)
        rest = (size_t)most - 1;
    while (rest > 0) {
        Py_ssize_t taken = get_some(self, list, rest);
        if (taken == 0)
            taken = get_one(self, list);
        if (taken < 0) {
            keep_taken(self, list);
            return NULL;
        }
        if (taken == 0)
            break;
        rest -= (size_t)taken;
    }
    return list;
}

static PyObject *Queue_get_many(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *names)
{
    static const char *const keywords[] = {"max", "block", "timeout", NULL};
    PyObject *values[3] = {Py_None, Py_True, Py_None};
    int64_t deadline;
    if (mpx_queue(self)->channel == NULL)
        return no_such_method(self, "get_many");
    if (mpx_parse_optional("|OOO:get_many", args, nargs, names, keywords, values, 3) < 0)
        return NULL;
    Py_ssize_t most = most_of(values[0]);
    if (most < 0 || !check_open(self) || get_deadline_of(values[1], values[2], &deadline) < 0)
        return NULL;
    return get_list(self, most, deadline);
}

/* ---- Looking --------------------------------------------------------------------------------- */

PyDoc_STRVAR(Queue_qsize_doc, "qsize($self)\n--\n\n"
                              "The number of objects in the queue: exact, now.");

static PyObject *Queue_qsize(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_super(self, mpx_queue_state(self)->queue_type, "qsize", NULL, 0, NULL);
    return PyLong_FromSize_t(mpx_ring_count(&mpx_queue_channel(self)->ring) +
                             mpx_queue_count_taken(self));
}

PyDoc_STRVAR(Queue_empty_doc, "empty($self)\n--\n\n"
                              "Whether there is no object in the queue: exact, now.\n"
                              "\n"
                              "OSError: this process has closed the queue.");

static PyObject *Queue_empty(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_super(self, mpx_queue_state(self)->queue_type, "empty", NULL, 0, NULL);
    if (!mpx_queue_check_reader(self))
        return NULL;
    return PyBool_FromLong(mpx_queue_is_empty(self));
}

PyDoc_STRVAR(Queue_full_doc, "full($self)\n--\n\n"
                             "Whether put() would wait: exact, now.");

static PyObject *Queue_full(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (mpx_queue(self)->channel == NULL)
        return mpx_super(self, mpx_queue_state(self)->queue_type, "full", NULL, 0, NULL);
    return PyBool_FromLong(mpx_ring_is_full(&mpx_queue_channel(self)->ring));
}

/* ---- The type -------------------------------------------------------------------------------- */

PyDoc_STRVAR(Queue_doc, "Objects through a ring in shared memory; the base of those in queues.");

#define WITH_NAMES(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef Queue_methods[] = {
    {"put", WITH_NAMES(Queue_put), METH_FASTCALL | METH_KEYWORDS, Queue_put_doc},
    {"put_nowait", WITH_NAMES(Queue_put_nowait), METH_FASTCALL | METH_KEYWORDS,
     Queue_put_nowait_doc},
    {"put_many", WITH_NAMES(Queue_put_many), METH_FASTCALL | METH_KEYWORDS, Queue_put_many_doc},
    {"get", WITH_NAMES(Queue_get), METH_FASTCALL | METH_KEYWORDS, Queue_get_doc},
    {"get_nowait", Queue_get_nowait, METH_NOARGS, Queue_get_nowait_doc},
    {"get_many", WITH_NAMES(Queue_get_many), METH_FASTCALL | METH_KEYWORDS, Queue_get_many_doc},
    {"qsize", Queue_qsize, METH_NOARGS, Queue_qsize_doc},
    {"empty", Queue_empty, METH_NOARGS, Queue_empty_doc},
    {"full", Queue_full, METH_NOARGS, Queue_full_doc},
    {"_drop_taken", Queue_drop_taken, METH_NOARGS, Queue_drop_taken_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *get_closed(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(is_closed(self));
}

static int set_closed(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    int closed = value == NULL ? 0 : PyObject_IsTrue(value);
    if (closed < 0)
        return -1;
    mpx_queue(self)->closed_by = closed ? mpx_os_own_word() : 0;
    return 0;
}

static PyObject *get_used(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mpx_queue(self)->used_by == mpx_os_own_word());
}

static PyGetSetDef Queue_properties[] = {
    {"_used", get_used, NULL, "whether this process has put something", NULL},
    {"_closed", get_closed, set_closed, "closed in this process", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Queue_slots[] = {
    {Py_tp_doc, (void *)Queue_doc},
    {Py_tp_methods, Queue_methods},
    {Py_tp_getset, Queue_properties},
    {0, NULL},
};

static PyType_Spec Queue_spec = {
    .name = "mproc_ext._core.Queue",
    .basicsize = sizeof(QueueObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = Queue_slots,
};

int mpx_add_queue(PyObject *module)
{
    return mpx_add_queue_type(module, &Queue_spec, &module_state(module)->queue_type);
}
