/* job.c - Job: what a call of a pool asks for and waits for; see engine.h.
 *
 * Results that are handed out one by one lie in a ring of pointers, from `taken` on: in order, or
 * as they come. The lowest bit of a pointer says that it is an exception. A result that is not
 * there is NULL.
 */
#include "engine.h"

#include <structmember.h>

#define IS_ERROR ((uintptr_t)1)

static JobObject *job_of(PyObject *self)
{
    return (JobObject *)self;
}

bool mpx_job_is_complete(const JobObject *job)
{
    return job->items == NULL && job->open == 0;
}

Py_ssize_t mpx_job_left_to_send(const JobObject *job)
{
    if (job->length < 0)
        return PY_SSIZE_T_MAX;
    return (job->length + job->chunk - 1) / job->chunk - job->sent;
}

/* Whether there is a task's worth of items, or the last ones, or the end. */
static bool is_fed_enough(const JobObject *job)
{
    return job->is_fed_up || job->fed >= job->chunk;
}

bool mpx_job_may_send(const JobObject *job)
{
    if (job->is_left) /* its end is to be seen */
        return job->items != NULL;
    return job->items != NULL && (job->ahead == 0 || job->sent - job->taken < job->ahead) &&
           (!job->is_fed || is_fed_enough(job));
}

static PyObject *raise_value(PyObject *error)
{
    PyErr_SetObject((PyObject *)Py_TYPE(error), error);
    return NULL;
}

static bool is_watched(JobObject *job)
{
    return (mpx_u32_load_relaxed(&job->watch) & MPX_WATCHED) != 0;
}

/* ---- Feeding --------------------------------------------------------------------------------- */

/* So many items, or two chunks, are drawn before they are sent. */
#define FEED_MOST 1024

/* An iterator that runs no code of the program's, and never waits: whoever drives may ask it. */
static bool is_prompt(PyObject *items)
{
    static PyTypeObject *const types[] = {
        &PyListIter_Type,  &PyTupleIter_Type,     &PyRangeIter_Type,    &PyLongRangeIter_Type,
        &PySetIter_Type,   &PyDictIterKey_Type,   &PyDictIterItem_Type, &PyDictIterValue_Type,
        &PyBytesIter_Type, &PyByteArrayIter_Type, &PyUnicodeIter_Type};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(types); i++) {
        if (Py_IS_TYPE(items, types[i]))
            return true;
    }
    return false;
}

bool mpx_job_needs_feeder(JobObject *job)
{
    job->is_fed = job->kind != MPX_JOB_ONE && !is_prompt(job->items);
    return job->is_fed;
}

static Py_ssize_t feed_most(const JobObject *job)
{
    return job->chunk > FEED_MOST / 2 ? 2 * job->chunk : FEED_MOST;
}

/* Whether the feeder may draw one more: not before its turn where the reader is to be near. */
static bool may_feed(const JobObject *job)
{
    return job->fed < feed_most(job) &&
           (job->ahead == 0 || job->drawn / job->chunk - job->taken < job->ahead);
}

static bool grow_feed(JobObject *job)
{
    Py_ssize_t size = job->feed_size > 0 ? 2 * job->feed_size : 64;
    PyObject **feed = PyMem_RawCalloc((size_t)size, sizeof(*feed));
    if (feed == NULL)
        return false;
    for (Py_ssize_t i = 0; i < job->fed; i++)
        feed[i] = job->feed[(job->feed_from + i) & (job->feed_size - 1)];
    PyMem_RawFree(job->feed);
    job->feed = feed;
    job->feed_size = size;
    job->feed_from = 0;
    return true;
}

/* The item, which it steals; NULL: there is none any more, or the exception that is set. Whether
 * there was nothing to send before, and now there is. */
static bool feed(JobObject *job, PyObject *item)
{
    PyObject *error = item == NULL && PyErr_Occurred() ? mpx_take_exception() : NULL;
    bool had_enough = false, has_enough = false;
    Py_BEGIN_CRITICAL_SECTION(job);
    had_enough = is_fed_enough(job);
    if (item != NULL && job->fed == job->feed_size && !grow_feed(job)) {
        PyErr_NoMemory();
        error = mpx_take_exception();
    } else if (item != NULL) {
        job->feed[(job->feed_from + job->fed++) & (job->feed_size - 1)] = item;
        item = NULL;
    }
    if (error != NULL || item != NULL || job->is_last) {
        job->is_fed_up = true;
        job->feed_error = error;
    }
    has_enough = is_fed_enough(job);
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(item);
    return has_enough && !had_enough;
}

PyObject *mpx_job_take_fed(JobObject *job)
{
    PyObject *item = NULL;
    bool wakes = false;
    Py_BEGIN_CRITICAL_SECTION(job);
    if (job->fed > 0) {
        item = job->feed[job->feed_from];
        job->feed_from = (job->feed_from + 1) & (job->feed_size - 1);
        wakes = --job->fed == feed_most(job) / 2;
    } else if (job->feed_error != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(job->feed_error), job->feed_error);
        Py_CLEAR(job->feed_error);
    }
    Py_END_CRITICAL_SECTION();
    if (wakes)
        mpx_job_wake_feeder(job);
    return item;
}

void mpx_job_drop_fed(JobObject *job)
{
    PyObject *item;
    while (job->fed > 0 && (item = mpx_job_take_fed(job)) != NULL)
        Py_DECREF(item);
    Py_CLEAR(job->feed_error);
}

void mpx_job_wake_feeder(JobObject *job)
{
    (void)mpx_u32_fetch_add_acq_rel(&job->feed_turns, 1); /* M8: with M9 */
    if (mpx_u32_load_relaxed(&job->is_feeder_asleep))
        (void)mpx_os_futex_wake(&job->feed_turns, 1);
}

/* Until there is room. */
static void wait_to_feed(JobObject *job)
{
    uint32_t turns = mpx_u32_load_acquire(&job->feed_turns); /* M9: with M8 */
    if (may_feed(job) || job->items == NULL)
        return;
    mpx_u32_store_relaxed(&job->is_feeder_asleep, 1);
    Py_BEGIN_ALLOW_THREADS(void)
    !mpx_os_futex_wait(&job->feed_turns, turns, mpx_piece_of(MPX_NEVER));
    Py_END_ALLOW_THREADS
    mpx_u32_store_relaxed(&job->is_feeder_asleep, 0);
}

/* Nothing comes after what there is. */
static void end_feed(JobObject *job, CrewObject *crew)
{
    job->is_last = true;
    if (feed(job, NULL))
        mpx_crew_look_at(crew, job);
}

int mpx_job_feed(JobObject *job, CrewObject *crew, bool is_eager)
{
    PyObject *source = Py_XNewRef(job->items);
    int status = 0;
    while (source != NULL && job->items != NULL && mpx_job_state(job) == MPX_JOB_OPEN) {
        if (!is_eager && !may_feed(job)) {
            wait_to_feed(job);
            continue;
        }
        job->drawn++;
        PyObject *item = PyIter_Next(source);
        if (is_eager && item == NULL && PyErr_Occurred()) {
            PyObject *error = mpx_take_exception();
            end_feed(job, crew);
            raise_value(error);
            Py_DECREF(error);
            status = -1;
            break;
        }
        job->is_last = item == NULL;
        if (feed(job, item))
            mpx_crew_look_at(crew, job);
        if (job->is_fed_up) {
            status = 1;
            break;
        }
        if (is_eager && mpx_u32_load_relaxed(&crew->is_closing)) {
            end_feed(job, crew);
            break;
        }
    }
    Py_XDECREF(source);
    return status;
}

/* ---- Results --------------------------------------------------------------------------------- */

/* For as many results as are not taken. */
static bool grow_ring(JobObject *job, Py_ssize_t needed)
{
    Py_ssize_t size = job->ring_size > 0 ? job->ring_size : 64;
    while (size < needed)
        size *= 2;
    if (size == job->ring_size)
        return true;
    PyObject **ring = PyMem_RawCalloc((size_t)size, sizeof(*ring));
    if (ring == NULL)
        return false;
    for (Py_ssize_t i = 0; i < job->ring_size; i++)
        ring[(job->taken + i) & (size - 1)] = job->ring[(job->taken + i) & (job->ring_size - 1)];
    PyMem_RawFree(job->ring);
    job->ring = ring;
    job->ring_size = size;
    return true;
}

/* What the program is to get where there is no memory for what it asked for. */
static PyObject *no_memory(void)
{
    PyErr_NoMemory();
    return mpx_take_exception();
}

static void put_into_ring(JobObject *job, Py_ssize_t index, bool is_error, PyObject *value)
{
    Py_ssize_t place = job->kind == MPX_JOB_ORDERED ? index : job->taken + job->there;
    if (!grow_ring(job, place - job->taken + 1)) {
        Py_DECREF(value);
        return; /* it will be missed: see Job_next */
    }
    job->ring[place & (job->ring_size - 1)] =
        (PyObject *)((uintptr_t)value | (is_error ? IS_ERROR : 0));
    job->there++;
}

/* As the standard library does it with results that are not as many as the items: of a function
 * that raises StopIteration, which ends the map() of its chunk. */
MPX_COLD static void put_slice(JobObject *job, Py_ssize_t index, PyObject *results)
{
    Py_ssize_t from = index * job->chunk;
    if (PyList_SetSlice(job->value, from, from + job->chunk, results) < 0)
        mpx_job_fail(job, mpx_take_exception());
}

/* How many items the chunk has. */
static Py_ssize_t chunk_size(const JobObject *job, Py_ssize_t index)
{
    return Py_MIN(job->chunk, job->length - index * job->chunk);
}

/* Of a chunk: the results are a list, in place of as many items. */
static void put_chunk(JobObject *job, Py_ssize_t index, PyObject *results)
{
    Py_ssize_t from = index * job->chunk, count = PyList_GET_SIZE(results);
    if (count != chunk_size(job, index) || PyList_GET_SIZE(job->value) - from < count) {
        put_slice(job, index, results);
        count = 0;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GET_ITEM(results, i);
        PyList_SET_ITEM(results, i, PyList_GET_ITEM(job->value, from + i));
        PyList_SET_ITEM(job->value, from + i, item);
    }
    Py_DECREF(results);
}

static bool has_chunks(const JobObject *job)
{
    return job->order == MPX_ORDER_CHUNK || job->order == MPX_ORDER_STARCHUNK;
}

/* Of a chunk of one item, whose results are not sent as a list. */
static bool stops_chunk(const JobObject *job, PyObject *error)
{
    return !has_chunks(job) && PyErr_GivenExceptionMatches(error, PyExc_StopIteration);
}

/* The same: no result, or one where some before it have none. */
MPX_COLD static void put_one(JobObject *job, Py_ssize_t index, bool is_error, PyObject *value)
{
    PyObject *results = has_chunks(job) ? Py_NewRef(value) : PyList_New(is_error ? 0 : 1);
    if (results == NULL)
        mpx_job_fail(job, mpx_take_exception());
    else if (!is_error && !has_chunks(job))
        PyList_SET_ITEM(results, 0, Py_NewRef(value));
    if (results != NULL)
        put_slice(job, index, results);
    Py_XDECREF(results);
    Py_DECREF(value);
}

void mpx_job_fail(JobObject *job, PyObject *error)
{
    if (job->has_failed) {
        Py_DECREF(error);
        return;
    }
    job->has_failed = true;
    Py_XSETREF(job->value, error);
}

void mpx_job_deliver(JobObject *job, Py_ssize_t index, bool is_error, PyObject *value)
{
    if (value == NULL) {
        is_error = true;
        value = no_memory();
    }
    job->finished++;
    if (job->kind == MPX_JOB_ORDERED || job->kind == MPX_JOB_UNORDERED) {
        Py_BEGIN_CRITICAL_SECTION(job);
        put_into_ring(job, index, is_error, value);
        Py_END_CRITICAL_SECTION();
    } else if (is_error && !(job->kind == MPX_JOB_ALL && stops_chunk(job, value)))
        mpx_job_fail(job, value);
    else if (job->has_failed)
        Py_DECREF(value);
    else if (job->kind == MPX_JOB_ONE)
        Py_XSETREF(job->value, value);
    else if (is_error || index >= PyList_GET_SIZE(job->value))
        put_one(job, index, is_error, value);
    else if (has_chunks(job))
        put_chunk(job, index, value);
    else {
        PyObject *before = PyList_GET_ITEM(job->value, index);
        PyList_SET_ITEM(job->value, index, value);
        Py_DECREF(before);
    }
}

void mpx_job_end_input(JobObject *job)
{
    Py_CLEAR(job->items);
    if (job->is_fed) {
        mpx_job_drop_fed(job);
        mpx_job_wake_feeder(job);
    }
    if (job->length < 0)
        job->length = job->sent * job->chunk;
}

/* ---- Waiting for it -------------------------------------------------------------------------- */

static bool is_done(JobObject *job)
{
    return mpx_job_state(job) == MPX_JOB_DONE;
}

/* As the standard library's conditions take a timeout: what is not above 0 is no time at all. */
static int deadline_of(PyObject *timeout, int64_t *deadline)
{
    if (mpx_usual_deadline_of(timeout, deadline))
        return 0;
    PyObject *zero = PyLong_FromLong(0);
#if PY_VERSION_HEX >= 0x030E0000
    int waits = zero == NULL ? -1 : PyObject_RichCompareBool(timeout, zero, Py_LE);
    waits = waits < 0 ? -1 : !waits;
#else
    int waits = zero == NULL ? -1 : PyObject_RichCompareBool(timeout, zero, Py_GT);
#endif
    Py_XDECREF(zero);
    *deadline = 0;
    return waits < 0 ? -1 : waits ? mpx_deadline_of(timeout, deadline) : 0;
}

/* 1: it is ready, 0: it is not, -1: an exception. */
static int wait_for(JobObject *job, mpx_job_ready_t *ready, PyObject *timeout)
{
    int64_t deadline;
    if (ready(job))
        return 1;
    if (deadline_of(timeout, &deadline) < 0)
        return -1;
    CrewObject *crew = (CrewObject *)Py_XNewRef((PyObject *)job->crew);
    if (crew == NULL)
        return ready(job); /* it was not begun; or it is done by now */
    int status = mpx_crew_wait(crew, job, ready, deadline);
    Py_DECREF(crew);
    return status;
}

static PyObject *raise_timeout(JobObject *job)
{
    PyErr_SetNone(job->is_executor || job->module_state == NULL ||
                          job->module_state->pool_timeout_error == NULL
                      ? PyExc_TimeoutError
                      : job->module_state->pool_timeout_error);
    return NULL;
}

/* The one argument of get, wait and next. */
static bool parse_timeout(const char *format, PyObject *const *args, Py_ssize_t nargs,
                          PyObject *names, PyObject **timeout)
{
    static const char *const keywords[] = {"timeout", NULL};
    PyObject *values[1] = {Py_None};
    if (nargs == 0 && names == NULL) {
        *timeout = Py_None;
        return true;
    }
    if (mpx_parse_optional(format, args, nargs, names, keywords, values, 1) < 0)
        return false;
    *timeout = values[0];
    return true;
}

PyDoc_STRVAR(Job_ready_doc, "ready($self, /)\n--\n\nWhether the call has been done.");

static PyObject *Job_ready(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int ready = is_done(job_of(self));
    if (!ready && job_of(self)->crew != NULL)
        ready = wait_for(job_of(self), is_done, Py_False);
    return ready < 0 ? NULL : PyBool_FromLong(ready);
}

PyDoc_STRVAR(Job_wait_doc, "wait($self, /, timeout=None)\n--\n\n"
                           "Wait until the call has been done, or for timeout seconds.");

static PyObject *Job_wait(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    PyObject *timeout;
    if (!parse_timeout("|O:wait", args, nargs, names, &timeout) ||
        wait_for(job_of(self), is_done, timeout) < 0)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Job_get_doc,
             "get($self, /, timeout=None)\n--\n\n"
             "The result of the call, which this waits for; or raise what the call has raised.\n"
             "\n"
             "multiprocessing.TimeoutError: it was not there after timeout seconds.\n"
             "WorkerLostError: the worker that had it has died.\n"
             "BrokenPoolError: the pool was terminated, or cannot go on.");

static PyObject *Job_get(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    JobObject *job = job_of(self);
    PyObject *timeout;
    if (!parse_timeout("|O:get", args, nargs, names, &timeout))
        return NULL;
    int ready = wait_for(job, is_done, timeout);
    if (ready < 0)
        return NULL;
    if (!ready || job->value == NULL)
        return raise_timeout(job);
    return job->has_failed ? raise_value(job->value) : Py_NewRef(job->value);
}

static bool has_next(JobObject *job)
{
    bool there;
    Py_BEGIN_CRITICAL_SECTION(job);
    there = (job->ring_size > 0 && job->ring[job->taken & (job->ring_size - 1)] != NULL) ||
            mpx_job_is_complete(job);
    Py_END_CRITICAL_SECTION();
    return there;
}

/* NULL: there is none. Steals it from the ring; where another thread was first, NULL without
 * *is_end. */
static PyObject *take_next(JobObject *job, bool *is_error, bool *is_end)
{
    PyObject *result = NULL;
    *is_end = *is_error = false;
    Py_BEGIN_CRITICAL_SECTION(job);
    PyObject **place = job->ring_size > 0 ? job->ring + (job->taken & (job->ring_size - 1)) : NULL;
    if (place != NULL && *place != NULL) {
        *is_error = ((uintptr_t)*place & IS_ERROR) != 0;
        result = (PyObject *)((uintptr_t)*place & ~IS_ERROR);
        *place = NULL;
        job->there--;
        job->taken++;
    } else if (mpx_job_is_complete(job)) {
        *is_end = true;
        if (job->taken < job->finished && !job->has_failed) { /* there was no memory to keep it */
            job->taken++;
            *is_error = true;
        }
    }
    Py_END_CRITICAL_SECTION();
    return result;
}

PyDoc_STRVAR(Job_next_doc,
             "next($self, /, timeout=None)\n--\n\n"
             "The next result, which this waits for; or raise what that task raised.\n"
             "\n"
             "multiprocessing.TimeoutError: it was not there after timeout seconds.");

/* The end of an iterator is not what a task has raised: as where a generator raises it. */
static void hide_stop(void)
{
    PyObject *stop = mpx_take_exception();
    PyErr_SetString(PyExc_RuntimeError, "generator raised StopIteration");
    PyObject *error = mpx_take_exception();
    PyException_SetContext(error, Py_NewRef(stop));
    PyException_SetCause(error, stop);
    raise_value(error);
    Py_DECREF(error);
}

static PyObject *next_result(JobObject *job, PyObject *timeout)
{
    bool is_error, is_end;
    PyObject *result;
    while ((result = take_next(job, &is_error, &is_end)) == NULL) {
        if (is_end && is_error)
            return PyErr_NoMemory();
        if (is_end && is_watched(job) && wait_for(job, is_done, timeout) < 0)
            return NULL; /* who shows the progress is to have shown all */
        if (is_end)
            return job->has_failed ? raise_value(job->value) : NULL;
        int ready = wait_for(job, has_next, timeout);
        if (ready < 0)
            return NULL;
        if (!ready)
            return raise_timeout(job);
    }
    if (MPX_UNLIKELY(job->ahead > 0)) {
        if (job->is_fed)
            mpx_job_wake_feeder(job);
        CrewObject *crew = (CrewObject *)Py_XNewRef((PyObject *)job->crew);
        if (crew != NULL)
            mpx_crew_look_at(crew, job);
        Py_XDECREF(crew);
    }
    if (is_error) {
        raise_value(result);
        Py_CLEAR(result);
        if (job->is_executor && PyErr_ExceptionMatches(PyExc_StopIteration))
            hide_stop();
    }
    return result;
}

static PyObject *Job_next(PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    PyObject *timeout;
    if (!parse_timeout("|O:next", args, nargs, names, &timeout))
        return NULL;
    PyObject *result = next_result(job_of(self), timeout);
    if (result == NULL && !PyErr_Occurred())
        PyErr_SetNone(PyExc_StopIteration);
    return result;
}

PyDoc_STRVAR(Job_leave_doc, "_leave($self, /)\n--\n\n"
                            "Nobody reads any more: ask for no further items.");

static PyObject *Job_leave(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    JobObject *job = job_of(self);
    CrewObject *crew = (CrewObject *)Py_XNewRef((PyObject *)job->crew);
    job->is_left = true;
    if (crew != NULL && job->items != NULL)
        mpx_crew_look_at(crew, job);
    Py_XDECREF((PyObject *)crew);
    Py_RETURN_NONE;
}

static PyObject *Job_iternext(PyObject *self)
{
    return next_result(job_of(self), Py_None);
}

PyDoc_STRVAR(Job_watch_doc, "_watch($self, /)\n--\n\n"
                            "Have the service thread call _call_callbacks() before it is done; "
                            "false: all results\nare there already.");

static PyObject *Job_watch(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(mpx_job_watch(job_of(self)));
}

/* ---- Futures --------------------------------------------------------------------------------- */

/* A future has its result when the job is settled: callbacks may ask for it. Who waits for it by
 * the condition of its own is told by _tell() in Python, which sets the state; so do those who wait
 * here find that state when they go on. */

static bool is_settled(JobObject *job)
{
    return mpx_job_state(job) != MPX_JOB_OPEN;
}

static PyObject *said_of(JobObject *job)
{
    PyObject *said;
    Py_BEGIN_CRITICAL_SECTION(job);
    said = Py_XNewRef(job->said);
    Py_END_CRITICAL_SECTION();
    return said;
}

/* 1: its result is there, and whoever is to be told has been told; 0: it is not; -1: an exception.
 */
static int await_future(JobObject *job, PyObject *timeout)
{
    int ready = wait_for(job, is_settled, timeout);
    if (ready <= 0 || job->is_cancelled || !is_watched(job))
        return ready;
    PyObject *said = said_of(job);
    if (said == NULL)
        said = PyObject_CallMethod((PyObject *)job, "_tell", NULL);
    Py_XDECREF(said);
    return said == NULL ? -1 : 1;
}

/* What result() and exception() have in common: true where it has a result. */
static bool has_result(JobObject *job, const char *format, PyObject *const *args, Py_ssize_t nargs,
                       PyObject *names)
{
    PyObject *timeout;
    if (!parse_timeout(format, args, nargs, names, &timeout))
        return false;
    int ready = await_future(job, timeout);
    if (ready < 0)
        return false;
    if (job->is_cancelled)
        Py_XDECREF(PyObject_CallMethod((PyObject *)job, "_raise_cancelled", NULL));
    else if (ready == 0 || job->value == NULL)
        PyErr_SetNone(PyExc_TimeoutError);
    else
        return true;
    return false;
}

PyDoc_STRVAR(Future_result_doc,
             "result($self, /, timeout=None)\n--\n\n"
             "The result of the call, which this waits for; or raise what the call has raised.\n"
             "\n"
             "CancelledError: it was cancelled. TimeoutError: it was not there after timeout "
             "seconds.\nBrokenProcessPool: a worker has died.");

static PyObject *Future_result(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *names)
{
    JobObject *job = job_of(self);
    if (!has_result(job, "|O:result", args, nargs, names))
        return NULL;
    return job->has_failed ? raise_value(job->value) : Py_NewRef(job->value);
}

PyDoc_STRVAR(Future_exception_doc,
             "exception($self, /, timeout=None)\n--\n\n"
             "What the call has raised, which this waits for; None: it has a result.\n"
             "\n"
             "CancelledError: it was cancelled. TimeoutError: it was not there after timeout "
             "seconds.");

static PyObject *Future_exception(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                  PyObject *names)
{
    JobObject *job = job_of(self);
    if (!has_result(job, "|O:exception", args, nargs, names))
        return NULL;
    return Py_NewRef(job->has_failed ? job->value : Py_None);
}

PyDoc_STRVAR(Future_done_doc, "done($self, /)\n--\n\n"
                              "Whether it was cancelled, or has a result.");

/* A forked copy has no result, and never will have. */
static int is_done_now(JobObject *job)
{
    CrewObject *crew = job->crew;
    if (job->is_cancelled)
        return 1;
    return crew != NULL && !mpx_crew_is_here(crew) ? 0 : await_future(job, Py_False);
}

static PyObject *Future_done(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    int done = is_done_now(job_of(self));
    return done < 0 ? NULL : PyBool_FromLong(done);
}

PyDoc_STRVAR(Future_cancelled_doc, "cancelled($self, /)\n--\n\nWhether it was cancelled.");

static PyObject *Future_cancelled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return PyBool_FromLong(job_of(self)->is_cancelled);
}

static mpx_atomic_u32 begun_cell = {MPX_CELL_BEGUN};

void mpx_job_note_cell(JobObject *job, mpx_atomic_u32 *cell, bool is_next)
{
    mpx_ptr_store_release(&job->cell, is_next ? &begun_cell : cell); /* W0: with W1 */
}

bool mpx_job_is_begun(JobObject *job)
{
    mpx_atomic_u32 *cell = mpx_ptr_load_acquire(&job->cell); /* W1: with W0 */
    return cell != NULL && mpx_u32_load_relaxed(cell) != MPX_CELL_OFFERED;
}

PyDoc_STRVAR(Future_running_doc, "running($self, /)\n--\n\nWhether a worker is at it.");

static PyObject *Future_running(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    JobObject *job = job_of(self);
    int done = is_done_now(job);
    return done < 0 ? NULL : PyBool_FromLong(!done && mpx_job_is_begun(job));
}

static PyObject *Future_get_state(PyObject *self, void *Py_UNUSED(closure))
{
    JobObject *job = job_of(self);
    PyObject *said = said_of(job);
    if (said != NULL)
        return said;
    const char *state = "PENDING";
    if (job->is_cancelled)
        state = "CANCELLED";
    else if (is_settled(job) && !is_watched(job))
        state = "FINISHED";
    else if (is_settled(job) || mpx_job_is_begun(job))
        state = "RUNNING";
    return PyUnicode_InternFromString(state);
}

static int Future_set_state(PyObject *self, PyObject *value, void *Py_UNUSED(closure))
{
    PyObject *before;
    Py_XINCREF(value);
    Py_BEGIN_CRITICAL_SECTION(self);
    before = job_of(self)->said;
    job_of(self)->said = value;
    Py_END_CRITICAL_SECTION();
    Py_XDECREF(before);
    return 0;
}

static PyObject *Future_get_value(PyObject *self, void *is_exception)
{
    JobObject *job = job_of(self);
    bool has = is_settled(job) && !job->is_cancelled && job->value != NULL &&
               job->has_failed == (is_exception != NULL);
    return Py_NewRef(has ? job->value : Py_None);
}

/* Python's has an __init__ of its own, which makes what this has when it is asked for. */
static int Future_init(PyObject *self, PyObject *args, PyObject *names)
{
    if (PyTuple_GET_SIZE(args) == 0 && (names == NULL || PyDict_GET_SIZE(names) == 0))
        return 0;
    PyErr_Format(PyExc_TypeError, "%s() takes no arguments", Py_TYPE(self)->tp_name);
    return -1;
}

/* ---- The types ------------------------------------------------------------------------------- */

static PyObject *Job_get_success(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!job_of(self)->has_failed);
}

static PyObject *Job_get_is_many(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(job_of(self)->kind != MPX_JOB_ONE);
}

static PyObject *Job_get_is_cancelled(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(job_of(self)->is_cancelled);
}

static PyObject *Job_get_progress(PyObject *self, void *Py_UNUSED(closure))
{
    JobObject *job = job_of(self);
    return Py_BuildValue("nn", job->finished * job->chunk, job->length);
}

static int Job_traverse(PyObject *self, visitproc visit, void *arg)
{
    JobObject *job = job_of(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT((PyObject *)job->crew);
    Py_VISIT(job->function);
    Py_VISIT(job->items);
    Py_VISIT(job->pool);
    Py_VISIT(job->value);
    Py_VISIT(job->said);
    Py_VISIT(job->feed_error);
    for (Py_ssize_t i = 0; i < job->ring_size; i++)
        Py_VISIT((PyObject *)((uintptr_t)job->ring[i] & ~IS_ERROR));
    for (Py_ssize_t i = 0; i < job->fed; i++)
        Py_VISIT(job->feed[(job->feed_from + i) & (job->feed_size - 1)]);
    return 0;
}

static int Job_clear(PyObject *self)
{
    JobObject *job = job_of(self);
    Py_CLEAR(job->function);
    Py_CLEAR(job->items);
    Py_CLEAR(job->pool);
    Py_CLEAR(job->value);
    Py_CLEAR(job->said);
    mpx_job_drop_fed(job);
    for (Py_ssize_t i = 0; i < job->ring_size; i++) {
        PyObject *result = (PyObject *)((uintptr_t)job->ring[i] & ~IS_ERROR);
        job->ring[i] = NULL;
        Py_XDECREF(result);
    }
    return 0;
}

static void Job_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Job_clear(self);
    Py_CLEAR(job_of(self)->crew);
    PyMem_RawFree(job_of(self)->ring);
    PyMem_RawFree(job_of(self)->feed);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(Job_doc, "What a call of a pool waits for; the base of AsyncResult and IMapIterator.");

static PyMemberDef Job_members[] = {
    {"_value", T_OBJECT, offsetof(JobObject, value), READONLY, "the result, or the exception"},
    {"_pool", T_OBJECT, offsetof(JobObject, pool), 0, "whose job it is, until it is done"},
    {"_crew", T_OBJECT, offsetof(JobObject, crew), READONLY, "None: it is done, or not begun"},
    {"_chunk", T_PYSSIZET, offsetof(JobObject, chunk), READONLY, "how many items a task has"},
    {"_function", T_OBJECT, offsetof(JobObject, function), READONLY,
     "what is called; None: it is done, or not begun"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Job_getset[] = {
    {"_success", Job_get_success, NULL, "whether it has not failed", NULL},
    {"_is_many", Job_get_is_many, NULL, "whether it has more than one task", NULL},
    {"_is_cancelled", Job_get_is_cancelled, NULL, "whether it was cancelled", NULL},
    {"_progress", Job_get_progress, NULL, "(items that are done, all of them or -1)", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyMethodDef Job_methods[] = {
    {"_watch", Job_watch, METH_NOARGS, Job_watch_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Job_slots[] = {
    {Py_tp_doc, (void *)Job_doc},   {Py_tp_methods, Job_methods},
    {Py_tp_members, Job_members},   {Py_tp_getset, Job_getset},
    {Py_tp_traverse, Job_traverse}, {Py_tp_clear, Job_clear},
    {Py_tp_dealloc, Job_dealloc},   {0, NULL},
};

static PyType_Spec Job_spec = {
    .name = "mproc_ext._core.Job",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Job_slots,
};

PyDoc_STRVAR(JobResult_doc, "The result of a call; the base of AsyncResult.");

static PyMethodDef JobResult_methods[] = {
    {"ready", Job_ready, METH_NOARGS, Job_ready_doc},
    {"wait", (PyCFunction)(void (*)(void))Job_wait, METH_FASTCALL | METH_KEYWORDS, Job_wait_doc},
    {"get", (PyCFunction)(void (*)(void))Job_get, METH_FASTCALL | METH_KEYWORDS, Job_get_doc},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot JobResult_slots[] = {
    {Py_tp_doc, (void *)JobResult_doc},
    {Py_tp_methods, JobResult_methods},
    {0, NULL},
};

static PyType_Spec JobResult_spec = {
    .name = "mproc_ext._core.JobResult",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = JobResult_slots,
};

PyDoc_STRVAR(JobFuture_doc, "The result of a call; the base of an executor's Future.");

static PyMethodDef JobFuture_methods[] = {
    {"result", (PyCFunction)(void (*)(void))Future_result, METH_FASTCALL | METH_KEYWORDS,
     Future_result_doc},
    {"exception", (PyCFunction)(void (*)(void))Future_exception, METH_FASTCALL | METH_KEYWORDS,
     Future_exception_doc},
    {"done", Future_done, METH_NOARGS, Future_done_doc},
    {"cancelled", Future_cancelled, METH_NOARGS, Future_cancelled_doc},
    {"running", Future_running, METH_NOARGS, Future_running_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef JobFuture_getset[] = {
    {"_state", Future_get_state, Future_set_state, "as that of the standard library's", NULL},
    {"_result", Future_get_value, NULL, "the result, or None", NULL},
    {"_exception", Future_get_value, NULL, "what was raised, or None", (void *)"exception"},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot JobFuture_slots[] = {
    {Py_tp_doc, (void *)JobFuture_doc},
    {Py_tp_init, Future_init},
    {Py_tp_methods, JobFuture_methods},
    {Py_tp_getset, JobFuture_getset},
    {0, NULL},
};

static PyType_Spec JobFuture_spec = {
    .name = "mproc_ext._core.JobFuture",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = JobFuture_slots,
};

PyDoc_STRVAR(JobIterator_doc, "Results one by one; the base of IMapIterator.");

static PyMethodDef JobIterator_methods[] = {
    {"_leave", Job_leave, METH_NOARGS, Job_leave_doc},
    {"next", (PyCFunction)(void (*)(void))Job_next, METH_FASTCALL | METH_KEYWORDS, Job_next_doc},
    {NULL, NULL, 0, NULL},
};

/* Some programs look at it. */
static PyObject *Iterator_get_length(PyObject *self, void *Py_UNUSED(closure))
{
    JobObject *job = job_of(self);
    if (job->length < 0 || job->chunk < 1)
        Py_RETURN_NONE;
    return PyLong_FromSsize_t(job->length / job->chunk + (job->length % job->chunk > 0));
}

static PyGetSetDef JobIterator_getset[] = {
    {"_length", Iterator_get_length, NULL, "how many tasks; None: that is not known yet", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot JobIterator_slots[] = {
    {Py_tp_doc, (void *)JobIterator_doc}, {Py_tp_methods, JobIterator_methods},
    {Py_tp_getset, JobIterator_getset},   {Py_tp_iter, PyObject_SelfIter},
    {Py_tp_iternext, Job_iternext},       {0, NULL},
};

static PyType_Spec JobIterator_spec = {
    .name = "mproc_ext._core.JobIterator",
    .basicsize = sizeof(JobObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = JobIterator_slots,
};

int mpx_add_job(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->job_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Job_spec, NULL);
    if (state->job_type == NULL || PyModule_AddType(module, state->job_type) < 0)
        return -1;
    if (mpx_add_type(module, &JobResult_spec, (PyObject *)state->job_type) < 0 ||
        mpx_add_type(module, &JobFuture_spec, (PyObject *)state->job_type) < 0)
        return -1;
    return mpx_add_type(module, &JobIterator_spec, (PyObject *)state->job_type);
}
