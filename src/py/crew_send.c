/* crew_send.c - the tasks of a crew's jobs on their way to the workers; see engine.h.
 *
 * A worker has a window: so many tasks it may have that have no result. It is as long as what the
 * worker does in some milliseconds, and never longer than what it did between two looks, doubled:
 * so tasks that take long are not hoarded by one worker while another has none, and those that take
 * a microsecond go in batches. Where a worker has none left and there is none to give, it gets some
 * of those that another one has and has not begun.
 *
 * A payload that needs no Python code is written where the worker reads it. One that does is
 * written apart first, as the worker may be gone, or its lane full, when that code returns.
 */
#include "engine.h"

/* A function of a longer pickle is not one that is known by its name. */
#define FUNCTION_MOST 1024

/* So many functions have numbers. What comes after them goes along with each task. */
#define FUNCTIONS ((Py_ssize_t)sizeof(((mpx_worker_t *)NULL)->known) * 8)

enum {
    NOT_ASKED = -1,
    GOES_ALONG = -2,
};

/* ---- Workers --------------------------------------------------------------------------------- */

static bool has_room(CrewObject *crew, const mpx_worker_t *worker)
{
    return worker->is_open && !worker->is_stopped && worker->open <= worker->window / 2 &&
           worker->next - worker->oldest < MPX_CREW_CELLS &&
           (crew->most_tasks == 0 || worker->sent < (uint64_t)crew->most_tasks);
}

/* The one that has the fewest tasks. */
static mpx_worker_t *pick(CrewObject *crew)
{
    mpx_worker_t *best = NULL;
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        mpx_worker_t *worker = crew->workers[i];
        if (has_room(crew, worker) && (best == NULL || worker->open < best->open))
            best = worker;
    }
    return best;
}

/* Its window counts as full until it has answered something: there is no room in its ring. */
static void is_full(mpx_worker_t *worker)
{
    worker->window = worker->open > 2 ? worker->open - 1 : 2;
}

/* The record was written, and becomes a task of the worker's. */
static void note_task(CrewObject *crew, mpx_worker_t *worker, JobObject *job, Py_ssize_t index,
                      mpx_spsc_header_t header, mpx_block_t block)
{
    mpx_task_t *task = mpx_task_at(worker, header.number);
    mpx_lane_offer(&worker->lane, header.number);
    mpx_spsc_commit(&worker->lane.tasks, header);
    if (worker->open == 0)
        worker->since = mpx_os_now();
    if (job->kind == MPX_JOB_ONE)
        mpx_job_note_cell(job, mpx_lane_cell(&worker->lane, header.number),
                          worker->stage != MPX_ANSWER_READY && worker->open == 0);
    *task = (mpx_task_t){.job = (JobObject *)Py_NewRef((PyObject *)job),
                         .index = index,
                         .end = mpx_spsc_committed_up_to(&worker->lane.tasks),
                         .kind = header.kind,
                         .function = header.extra,
                         .size = header.size,
                         .block = block};
    worker->next++;
    worker->open++;
    worker->sent++;
    crew->open++;
    if (header.kind & MPX_ORDER_TIMED) {
        worker->timed++;
        crew->timed++;
    }
}

/* ---- Functions ------------------------------------------------------------------------------- */

/* Whether a pickle is nothing but the name of a global: then it means the same every time. */
static bool is_name(const char *pickle, Py_ssize_t size)
{
    static const char stack_global[] = "\x93.", memoized[] = "\x93\x94.";
    return size > 3 && size <= FUNCTION_MOST &&
           (memcmp(pickle + size - 2, stack_global, 2) == 0 ||
            memcmp(pickle + size - 3, memoized, 3) == 0);
}

static PyObject *pickle_of(CrewObject *crew, PyObject *function)
{
    mpx_namespace_t namespace = mpx_engine_namespace(crew->state);
    mpx_buffer_t out = {.data = NULL};
    PyObject *pickle = NULL;
    if (mpx_dumps_pickle(crew->state, &namespace, function, &out) == 0)
        pickle = PyBytes_FromStringAndSize(out.data, (Py_ssize_t)out.size);
    mpx_buffer_free(&out);
    return pickle;
}

/* A number for the function, GOES_ALONG where it has none; runs Python code. */
static int32_t ask_function(CrewObject *crew, PyObject *function)
{
    if (!PyFunction_Check(function) && !PyCFunction_Check(function) && !PyType_Check(function))
        return GOES_ALONG;
    int32_t number = GOES_ALONG;
    PyObject *key = PyLong_FromVoidPtr(function);
    PyObject *found = key == NULL ? NULL : PyDict_GetItemWithError(crew->functions, key);
    PyObject *pickle = NULL, *pair = NULL, *value = NULL;
    if (found != NULL) {
        number = (int32_t)PyLong_AsLong(found);
    } else if (key != NULL && PyList_GET_SIZE(crew->known) < FUNCTIONS &&
               (pickle = pickle_of(crew, function)) != NULL &&
               is_name(PyBytes_AS_STRING(pickle), PyBytes_GET_SIZE(pickle))) {
        Py_ssize_t next = PyList_GET_SIZE(crew->known);
        pair = PyTuple_Pack(2, function, pickle);
        value = PyLong_FromSsize_t(next);
        if (pair != NULL && value != NULL && next < FUNCTIONS &&
            PyList_Append(crew->known, pair) == 0) {
            number = (int32_t)next;
            if (PyDict_SetItem(crew->functions, key, value) < 0)
                PyErr_Clear(); /* it gets another number next time */
        }
    }
    if (mpx_crew_take_interrupt(crew))
        number = NOT_ASKED;
    PyErr_Clear(); /* what is wrong with it, each task will say */
    Py_XDECREF(value);
    Py_XDECREF(pair);
    Py_XDECREF(pickle);
    Py_XDECREF(key);
    return number;
}

static bool knows(const mpx_worker_t *worker, uint32_t function)
{
    return (worker->known[function / 8] >> function % 8 & 1) != 0;
}

/* Tells the worker which function has the number; false where there is no room. */
static bool tell_function(CrewObject *crew, mpx_worker_t *worker, uint32_t function)
{
    PyObject *pickle = PyTuple_GET_ITEM(PyList_GET_ITEM(crew->known, function), 1);
    uint32_t size = (uint32_t)PyBytes_GET_SIZE(pickle);
    void *room = mpx_spsc_reserve(&worker->lane.tasks, size);
    if (room == NULL)
        return false;
    memcpy(room, PyBytes_AS_STRING(pickle), size);
    mpx_spsc_commit(
        &worker->lane.tasks,
        (mpx_spsc_header_t){.size = size, .kind = MPX_ORDER_FUNCTION, .extra = function});
    worker->known[function / 8] |= (unsigned char)(1 << function % 8);
    return true;
}

static bool makes_known(CrewObject *crew, mpx_worker_t *worker, uint32_t kind, uint32_t function)
{
    return (kind & MPX_ORDER_WITH_FUNCTION) != 0 || knows(worker, function) ||
           tell_function(crew, worker, function);
}

/* ---- Tasks that wait ------------------------------------------------------------------------- */

static void free_pending(CrewObject *crew, mpx_pending_t *pending)
{
    if (pending->block != 0 && !(pending->kind & MPX_ORDER_KEPT))
        mpx_crew_free_block(&crew->crew, pending->block);
    Py_XDECREF(pending->bytes);
    Py_DECREF((PyObject *)pending->job);
    PyMem_RawFree(pending);
}

/* Its result is that there is no memory for it. */
static void fail_for_memory(CrewObject *crew, JobObject *job, Py_ssize_t index)
{
    PyErr_NoMemory();
    job->open--;
    mpx_job_deliver(job, index, true, mpx_take_exception());
    mpx_crew_check(crew, job);
}

static void add_pending(CrewObject *crew, mpx_pending_t pending)
{
    mpx_pending_t *copy = PyMem_RawMalloc(sizeof(*copy));
    if (copy == NULL || (pending.bytes == NULL && pending.block == 0)) {
        PyErr_Clear();
        if (pending.block != 0)
            mpx_crew_free_block(&crew->crew, pending.block);
        Py_XDECREF(pending.bytes);
        PyMem_RawFree(copy);
        fail_for_memory(crew, pending.job, pending.index);
        return;
    }
    *copy = pending;
    copy->next = NULL;
    Py_INCREF((PyObject *)copy->job);
    if (crew->pending == NULL)
        crew->pending = copy;
    else
        crew->last_pending->next = copy;
    crew->last_pending = copy;
}

void mpx_crew_drop_pending(CrewObject *crew, JobObject *job)
{
    mpx_pending_t **link = &crew->pending, *dropped = NULL;
    crew->last_pending = NULL;
    while (*link != NULL) {
        mpx_pending_t *pending = *link;
        if (pending->job == job) {
            *link = pending->next;
            pending->next = dropped;
            dropped = pending;
            job->open--;
        } else {
            crew->last_pending = pending;
            link = &pending->next;
        }
    }
    while (dropped != NULL) {
        mpx_pending_t *next = dropped->next;
        free_pending(crew, dropped);
        dropped = next;
    }
}

/* The bytes of a record that the worker has not written over: the parent alone writes there. */
static PyObject *copy_record(mpx_worker_t *worker, const mpx_task_t *task)
{
    const mpx_spsc_header_t *record =
        mpx_spsc_record_before(&worker->lane.tasks, task->end, task->size);
    return PyBytes_FromStringAndSize((const char *)(record + 1), (Py_ssize_t)task->size);
}

/* The job keeps the task as an open one. */
void mpx_crew_put_back(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task)
{
    mpx_pending_t pending = {.job = task->job,
                             .index = task->index,
                             .tries = task->tries,
                             .kind = task->kind,
                             .function = task->function,
                             .block = task->block};
    if (task->kept != NULL)
        pending.bytes = Py_NewRef(task->kept);
    else
        pending.bytes = copy_record(worker, task);
    task->block = 0;
    JobObject *job = mpx_crew_close_task(crew, worker, task);
    job->open++;
    add_pending(crew, pending);
    Py_DECREF((PyObject *)job);
}

/* Gives a payload to a worker: true. `bytes` are the record's, whatever it holds. */
static bool place(CrewObject *crew, mpx_worker_t *worker, const mpx_pending_t *pending,
                  const char *bytes, size_t size)
{
    if (!makes_known(crew, worker, pending->kind, pending->function))
        return false;
    void *room = mpx_spsc_reserve(&worker->lane.tasks, (uint32_t)size);
    if (room == NULL)
        return false;
    memcpy(room, bytes, size);
    mpx_spsc_header_t header = {.size = (uint32_t)size,
                                .kind = pending->kind,
                                .number = worker->next,
                                .extra = pending->function};
    note_task(crew, worker, pending->job, pending->index, header, pending->block);
    mpx_task_t *task = mpx_task_at(worker, header.number);
    task->tries = pending->tries;
    if (pending->job->retries > 0)
        task->kept = Py_XNewRef(pending->bytes);
    return true;
}

/* The first one of those that wait. */
static bool send_pending(CrewObject *crew)
{
    mpx_pending_t *pending = crew->pending;
    mpx_worker_t *worker = pick(crew);
    if (pending == NULL || worker == NULL)
        return false;
    if (!place(crew, worker, pending, PyBytes_AS_STRING(pending->bytes),
               (size_t)PyBytes_GET_SIZE(pending->bytes))) {
        is_full(worker);
        return false;
    }
    mpx_lane_publish_tasks(&worker->lane);
    crew->pending = pending->next;
    if (crew->pending == NULL)
        crew->last_pending = NULL;
    pending->block = 0;
    free_pending(crew, pending);
    return true;
}

/* ---- Tasks of jobs --------------------------------------------------------------------------- */

static PyObject *next_item(JobObject *job)
{
    return job->is_fed ? mpx_job_take_fed(job) : PyIter_Next(job->items);
}

/* Of a job whose length is known: so many, unless there are fewer after all. */
static PyObject *draw_many(JobObject *job, Py_ssize_t most)
{
    PyObject *chunk = PyTuple_New(most), *item;
    Py_ssize_t count = 0;
    while (chunk != NULL && count < most && (item = next_item(job)) != NULL)
        PyTuple_SET_ITEM(chunk, count++, item);
    if (chunk != NULL && count < most && !PyErr_Occurred())
        (void)_PyTuple_Resize(&chunk, count);
    return chunk;
}

/* Of one that ends when its items do. */
static PyObject *draw_some(JobObject *job)
{
    PyObject *list = PyList_New(0), *item;
    while (list != NULL && PyList_GET_SIZE(list) < job->chunk && (item = next_item(job)) != NULL) {
        if (PyList_Append(list, item) < 0)
            Py_CLEAR(list);
        Py_DECREF(item);
    }
    PyObject *chunk = list == NULL || PyErr_Occurred() ? NULL : PyList_AsTuple(list);
    Py_XDECREF(list);
    return chunk;
}

/* The items of the next chunk; NULL without an exception: there are none. */
static PyObject *draw_chunk(JobObject *job)
{
    PyObject *chunk;
    if (job->length < 0)
        chunk = draw_some(job);
    else
        chunk = draw_many(job, Py_MIN(job->chunk, job->length - job->sent * job->chunk));
    if (chunk != NULL && (PyErr_Occurred() || PyTuple_GET_SIZE(chunk) == 0))
        Py_CLEAR(chunk);
    return chunk;
}

/* What the next task is about; NULL without an exception: there is none. */
static PyObject *draw(JobObject *job)
{
    if (job->kind == MPX_JOB_ONE) {
        PyObject *payload = job->items;
        job->items = NULL;
        return payload;
    }
    if (job->is_left || (job->length >= 0 && job->sent * job->chunk >= job->length))
        return NULL;
    return job->order == MPX_ORDER_CHUNK || job->order == MPX_ORDER_STARCHUNK ? draw_chunk(job)
                                                                              : next_item(job);
}

static int never_grow(mpx_buffer_t *Py_UNUSED(buffer), size_t Py_UNUSED(needed))
{
    PyErr_NoMemory();
    return -1;
}

/* A chunk of one item is sent as the item; the standard library sends a list. */
static bool is_listed(const JobObject *job)
{
    return job->kind == MPX_JOB_ALL && !job->is_executor &&
           (job->order == MPX_ORDER_CALL || job->order == MPX_ORDER_STAR);
}

static uint32_t kind_of(const JobObject *job)
{
    return job->order | (job->function_number == GOES_ALONG ? MPX_ORDER_WITH_FUNCTION : 0) |
           (job->timeout > 0 ? MPX_ORDER_TIMED : 0) | (is_listed(job) ? MPX_ORDER_LISTED : 0);
}

/* What cannot be pickled has in an executor the traceback of that as its cause. Steals it. */
static PyObject *explain(CrewObject *crew, PyObject *error)
{
    if (!crew->is_executor || error == NULL)
        return error;
    PyObject *explained = PyObject_CallMethod((PyObject *)crew, "_explain", "O", error);
    if (explained == NULL && mpx_crew_take_interrupt(crew))
        return error;
    Py_DECREF(error);
    return explained != NULL ? explained : mpx_take_exception();
}

/* 0, or -1 with an exception; NULL: with the one that is set. The draft is begun. */
static int dump(CrewObject *crew, PyObject *payload, mpx_draft_t *draft)
{
    mpx_namespace_t namespace = mpx_engine_namespace(crew->state);
    bool is_interrupted = payload != NULL;
    int status = -1;
    mpx_draft_begin(draft, &crew->crew);
    for (int tries = 0; is_interrupted && tries < MPX_CREW_ATTEMPTS; tries++) {
        draft->buffer.size = 0;
        status = mpx_dumps(crew->state, &namespace, payload, &draft->buffer, false);
        is_interrupted = status < 0 && mpx_crew_take_interrupt(crew);
    }
    if (is_interrupted)
        PyErr_SetObject((PyObject *)Py_TYPE(crew->interrupt), crew->interrupt);
    return status;
}

/* A payload that needs Python code, or is long. */
MPX_COLD static void send_slowly(CrewObject *crew, JobObject *job, PyObject *payload,
                                 Py_ssize_t index)
{
    mpx_pending_t pending = {.job = job, .index = index, .kind = kind_of(job), .function = 0};
    mpx_draft_t draft;
    PyObject *pair = NULL;
    if (job->function_number >= 0)
        pending.function = (uint32_t)job->function_number;
    else
        pair = PyTuple_Pack(2, job->function, payload);
    bool failed = dump(crew, pair != NULL || job->function_number < 0 ? pair : payload, &draft) < 0;
    Py_XDECREF(pair);
    mpx_parcel_note_t note = {.block = draft.block, .size = draft.buffer.size};
    if (!failed && draft.block != 0) {
        draft.block = 0;
        pending.kind |= MPX_ORDER_IN_BLOCK | (job->retries > 0 ? MPX_ORDER_KEPT : 0);
        pending.block = note.block;
        if (!mpx_crew_give_block(&crew->crew, note.block)) {
            PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
            failed = true;
        }
    }
    if (failed) {
        mpx_draft_end(&draft);
        PyObject *error = explain(crew, mpx_take_exception());
        job->open--;
        mpx_job_deliver(job, index, true, error);
        mpx_crew_check(crew, job);
        return;
    }
    const char *bytes = pending.block != 0 ? (const char *)&note : draft.buffer.data;
    size_t size = pending.block != 0 ? sizeof(note) : draft.buffer.size;
    mpx_worker_t *worker = job->retries > 0 ? NULL : pick(crew);
    if (worker != NULL && place(crew, worker, &pending, bytes, size)) {
        mpx_lane_publish_tasks(&worker->lane);
    } else {
        pending.bytes = PyBytes_FromStringAndSize(bytes, (Py_ssize_t)size);
        add_pending(crew, pending);
    }
}

typedef enum { SENT, SENT_ELSEWHERE, NO_ROOM, NOTHING_LEFT } sent_t;

/* Sends the next task of the job to the worker, or to whoever has room when it can be sent. */
static sent_t send_one(CrewObject *crew, mpx_worker_t *worker, JobObject *job)
{
    if (job->function_number == NOT_ASKED) {
        job->function_number = ask_function(crew, job->function);
        return SENT_ELSEWHERE;
    }
    uint32_t kind = kind_of(job), changes = crew->changes;
    uint32_t function = job->function_number >= 0 ? (uint32_t)job->function_number : 0;
    void *room = NULL;
    if (makes_known(crew, worker, kind, function))
        room = mpx_spsc_reserve(&worker->lane.tasks, MPX_CREW_INLINE);
    if (room == NULL)
        return NO_ROOM;
    PyObject *payload = draw(job);
    if (payload == NULL) {
        PyObject *error = PyErr_Occurred() ? mpx_take_exception() : NULL;
        if (job->items == NULL) /* it was abandoned meanwhile */
            Py_CLEAR(error);
        if (error != NULL) {
            Py_ssize_t index = job->sent++;
            if (job->kind == MPX_JOB_ALL)
                index = 0; /* its results do not matter any more */
            mpx_job_deliver(job, index, true, error);
        }
        mpx_job_end_input(job);
        return NOTHING_LEFT;
    }
    if (job->kind != MPX_JOB_ONE && job->items == NULL) { /* the same */
        Py_DECREF(payload);
        return NOTHING_LEFT;
    }
    Py_ssize_t index = job->sent++;
    job->open++;
    sent_t sent = SENT_ELSEWHERE;
    mpx_namespace_t namespace = mpx_engine_namespace(crew->state);
    mpx_buffer_t out = {.data = room, .capacity = MPX_CREW_INLINE, .grower = never_grow};
    if (MPX_LIKELY(crew->changes == changes && job->retries == 0 && job->function_number >= 0) &&
        mpx_dumps_quickly(crew->state, &namespace, payload, &out)) {
        mpx_spsc_header_t header = {
            .size = (uint32_t)out.size, .kind = kind, .number = worker->next, .extra = function};
        note_task(crew, worker, job, index, header, 0);
        sent = SENT;
    } else {
        mpx_lane_publish_tasks(&worker->lane);
        send_slowly(crew, job, payload, index);
    }
    Py_DECREF(payload);
    return sent;
}

/* How many tasks it is to have more than it has: the last ones of a job are dealt out in small
 * portions. */
static uint32_t portion(CrewObject *crew, const mpx_worker_t *worker, const JobObject *job)
{
    Py_ssize_t left = mpx_job_left_to_send(job), share = left / (2 * crew->count);
    uint32_t room = worker->window > worker->open ? worker->window - worker->open : 1;
    if (crew->most_tasks > 0 && room > (uint64_t)crew->most_tasks - worker->sent)
        room = (uint32_t)((uint64_t)crew->most_tasks - worker->sent);
    uint32_t free_cells = MPX_CREW_CELLS - (worker->next - worker->oldest);
    if (room > free_cells)
        room = free_cells;
    return share < 1 ? 1 : share < (Py_ssize_t)room ? (uint32_t)share : room;
}

/* Some tasks of one job to one worker: false where it has no more to send now. */
static bool send_some(CrewObject *crew, mpx_worker_t *worker, JobObject *job)
{
    uint32_t most = portion(crew, worker, job);
    sent_t sent = SENT;
    for (uint32_t i = 0; i < most && sent == SENT && mpx_job_may_send(job); i++)
        sent = send_one(crew, worker, job);
    mpx_lane_publish_tasks(&worker->lane);
    if (sent == NO_ROOM)
        is_full(worker);
    if (sent == NOTHING_LEFT)
        mpx_crew_check(crew, job);
    return mpx_job_may_send(job);
}

/* The first job that may send something, or one that has nothing more to send and has left the
 * queue (*is_over; the reference is the caller's). */
static JobObject *look_for_job(CrewObject *crew, bool *is_over)
{
    JobObject *job = crew->first_to_send;
    *is_over = false;
    for (; job != NULL; job = job->next_to_send) {
        if (job->items == NULL) {
            mpx_crew_take_from_queue(crew, job);
            *is_over = true;
            return job;
        }
        if (mpx_job_may_send(job))
            return job;
    }
    return NULL;
}

static JobObject *find_job(CrewObject *crew)
{
    for (;;) {
        bool is_over;
        JobObject *job;
        Py_BEGIN_CRITICAL_SECTION(crew);
        job = look_for_job(crew, &is_over);
        Py_END_CRITICAL_SECTION();
        if (!is_over)
            return job;
        Py_DECREF((PyObject *)job);
    }
}

/* Half of what the busiest one has and has not begun, for one that has nothing. */
static bool share(CrewObject *crew)
{
    mpx_worker_t *busiest = NULL, *idle = NULL;
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        mpx_worker_t *worker = crew->workers[i];
        if (worker->open == 0 && has_room(crew, worker))
            idle = worker;
        else if (worker->open > 1 && (busiest == NULL || worker->open > busiest->open))
            busiest = worker;
    }
    if (idle == NULL || busiest == NULL)
        return false;
    uint32_t most = busiest->open / 2, got = 0;
    for (uint32_t number = busiest->next; number != busiest->oldest && got < most;) {
        mpx_task_t *task = mpx_task_at(busiest, --number);
        if (task->job == NULL)
            continue;
        if (!mpx_lane_revoke(&busiest->lane, number))
            break; /* it is begun, and so are those before it */
        busiest->sent--;
        mpx_crew_put_back(crew, busiest, task);
        got++;
    }
    return got > 0;
}

bool mpx_crew_send(CrewObject *crew)
{
    bool any = false;
    JobObject *job;
    crew->changes++;
    while (crew->pending != NULL && send_pending(crew))
        any = true;
    while (crew->pending == NULL && (job = find_job(crew)) != NULL) {
        mpx_worker_t *worker = pick(crew);
        if (worker == NULL)
            break;
        any = true;
        Py_INCREF((PyObject *)job);
        (void)send_some(crew, worker, job);
        Py_DECREF((PyObject *)job);
    }
    if (crew->pending == NULL && crew->open > 1 && crew->count > 1 && share(crew)) {
        while (crew->pending != NULL && send_pending(crew))
            any = true;
    }
    return any;
}
