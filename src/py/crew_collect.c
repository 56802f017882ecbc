/* crew_collect.c - what the workers of a crew have answered; see engine.h.
 *
 * A plain tree is read where the worker has written it. What needs Python code to be read is copied
 * first, or lies in a block that is the crew's, so that the lane can go on meanwhile.
 */
#include "engine.h"

#include <errno.h>

/* So many answers of one worker at once: others wait, and so does what there is to send. */
#define AT_ONCE 256

/* What a worker is to have to do until somebody looks again, nanoseconds. */
#define WORK (2 * MPX_NANOS_PER_MILLI)

JobObject *mpx_crew_close_task(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task)
{
    JobObject *job = task->job;
    task->job = NULL;
    if (job->kind == MPX_JOB_ONE)
        mpx_job_note_cell(job, NULL, false); /* the lane may go */
    if (task->block != 0 && (task->kind & MPX_ORDER_KEPT))
        mpx_crew_free_block(&crew->crew, task->block);
    task->block = 0;
    if (task->kind & MPX_ORDER_TIMED) {
        worker->timed--;
        crew->timed--;
    }
    worker->open--;
    crew->open--;
    job->open--;
    Py_CLEAR(task->kept);
    return job;
}

/* Whether the cell may be used again: the task has ended, and its record was read. */
static bool is_over(mpx_worker_t *worker, const mpx_task_t *task, uint32_t number, uint64_t read)
{
    if (task->job != NULL)
        return false;
    enum mpx_cell state = mpx_lane_state(&worker->lane, number);
    return state == MPX_CELL_FREE || (state == MPX_CELL_REVOKED && read >= task->end);
}

static void free_cells(mpx_worker_t *worker)
{
    uint64_t read = mpx_spsc_read_up_to(&worker->lane.tasks);
    while (worker->oldest != worker->next &&
           is_over(worker, mpx_task_at(worker, worker->oldest), worker->oldest, read))
        worker->oldest++;
}

/* By what it has done since the last time. */
static void set_window(mpx_worker_t *worker)
{
    int64_t now = mpx_os_now(), spent = now - worker->since;
    uint64_t most = 2 * (uint64_t)worker->window, fits = MPX_CREW_CELLS;
    if (spent > 0)
        fits = (uint64_t)WORK * worker->answers / (uint64_t)spent;
    if (fits > most)
        fits = most;
    worker->window = fits < 2 ? 2 : fits > MPX_CREW_CELLS - 8 ? MPX_CREW_CELLS - 8 : (uint32_t)fits;
    worker->answers = 0;
    worker->since = now;
}

/* The task of an answer; NULL: there is none of that number, and the worker's memory is damaged. */
static mpx_task_t *task_of(mpx_worker_t *worker, uint32_t number)
{
    if (number - worker->oldest >= worker->next - worker->oldest)
        return NULL;
    return mpx_task_at(worker, number);
}

void mpx_crew_deliver(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task, bool is_error,
                      PyObject *value)
{
    Py_ssize_t index = task->index;
    JobObject *job = mpx_crew_close_task(crew, worker, task);
    if (value == NULL) { /* what cannot be unpickled */
        is_error = true;
        value = mpx_take_exception();
    }
    if (mpx_job_state(job) != MPX_JOB_OPEN) { /* it was abandoned meanwhile */
        Py_DECREF(value);
    } else {
        mpx_job_deliver(job, index, is_error, value);
        mpx_crew_check(crew, job);
    }
    Py_DECREF((PyObject *)job);
}

/* It leaves the lane before that code runs. */
static JobObject *leave_lane(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task)
{
    JobObject *job = mpx_crew_close_task(crew, worker, task);
    job->open++; /* it has no result yet */
    mpx_job_note_cell(job, NULL, true);
    return job;
}

/* What cannot be unpickled has in an executor an exception that says so. Steals the reason. */
static PyObject *explain_unread(CrewObject *crew, JobObject *job, Py_ssize_t index, bool is_error,
                                PyObject *reason)
{
    if (!crew->is_executor)
        return reason;
    PyObject *error = PyObject_CallMethod((PyObject *)crew, "_explain_unread", "OnOO", job, index,
                                          is_error ? Py_True : Py_False, reason);
    if (error == NULL) {
        if (!mpx_crew_take_interrupt(crew))
            PyErr_Clear();
        return reason;
    }
    Py_DECREF(reason);
    return error;
}

static void deliver_read(CrewObject *crew, JobObject *job, Py_ssize_t index, bool is_error,
                         PyObject *value)
{
    if (value == NULL) {
        value = explain_unread(crew, job, index, is_error, mpx_take_exception());
        is_error = true;
    }
    if (mpx_job_state(job) != MPX_JOB_OPEN) { /* it was abandoned meanwhile */
        Py_DECREF(value);
    } else {
        job->open--;
        mpx_job_deliver(job, index, is_error, value);
        mpx_crew_check(crew, job);
    }
    Py_DECREF((PyObject *)job);
}

/* What Python code reads. */
static PyObject *load(CrewObject *crew, const char *data, size_t size)
{
    mpx_namespace_t namespace = mpx_engine_namespace(crew->state);
    PyObject *value = NULL;
    bool is_interrupted = true;
    for (int tries = 0; is_interrupted && tries < MPX_CREW_ATTEMPTS; tries++) {
        value = mpx_loads(crew->state, &namespace, data, size, NULL);
        is_interrupted = value == NULL && mpx_crew_take_interrupt(crew);
    }
    if (is_interrupted)
        PyErr_SetObject((PyObject *)Py_TYPE(crew->interrupt), crew->interrupt);
    return value;
}

/* A result that lies in a block, which is freed. */
static void read_block(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task, bool is_error,
                       const mpx_parcel_note_t *note)
{
    const char *data;
    int status = mpx_crew_parcel(&crew->crew, note, &data);
    PyObject *value = NULL;
    Py_ssize_t index = task->index;
    if (task->job != NULL) {
        JobObject *job = leave_lane(crew, worker, task);
        if (status == 0)
            value = load(crew, data, note->size);
        else
            mpx_raise_unread(status, "the shared memory of a pool's worker is damaged");
        deliver_read(crew, job, index, is_error, value);
    }
    if (status != -EPROTO) { /* one that cannot be mapped is freed nevertheless */
        mpx_crew_free_block(&crew->crew, note->block);
        mpx_heap_flow(crew->crew.arena, note->size);
    }
}

/* A result that needs Python code. */
static void read_copy(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task, bool is_error,
                      PyObject *bytes)
{
    Py_ssize_t index = task->index;
    PyObject *value = NULL;
    JobObject *job = leave_lane(crew, worker, task);
    if (bytes != NULL)
        value = load(crew, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    deliver_read(crew, job, index, is_error, value);
}

/* Something that is no answer to a task. */
static int collect_note(CrewObject *crew, mpx_worker_t *worker, mpx_spsc_header_t header,
                        const void *data)
{
    if ((header.kind & MPX_ORDER_MASK) != MPX_ANSWER_NOTE) {
        worker->stage = header.kind;
        if (header.kind == MPX_ANSWER_READY)
            (void)mpx_u32_fetch_add_acq_rel(&crew->ready, 1);
        mpx_spsc_pop(&worker->lane.results, header.size);
        return 0;
    }
    if (header.kind & MPX_ANSWER_IN_BLOCK)
        return -EPROTO;
    PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)header.size), *note = NULL;
    mpx_spsc_pop(&worker->lane.results, header.size);
    if (bytes != NULL)
        note = load(crew, PyBytes_AS_STRING(bytes), (size_t)PyBytes_GET_SIZE(bytes));
    Py_XDECREF(bytes);
    Py_XSETREF(worker->note, note != NULL ? note : mpx_take_exception());
    return 0;
}

/* One answer: 0, -EAGAIN: there is none, -EPROTO. */
static int collect_one(CrewObject *crew, mpx_worker_t *worker)
{
    mpx_spsc_header_t header;
    const void *data;
    int status = mpx_spsc_peek(&worker->lane.results, &header, &data);
    if (status < 0)
        return status;
    if ((header.kind & MPX_ORDER_MASK) >= MPX_ANSWER_BEGUN)
        return collect_note(crew, worker, header, data);
    mpx_task_t *task = task_of(worker, header.number);
    bool is_error = (header.kind & MPX_ORDER_MASK) == MPX_ANSWER_ERROR;
    bool is_in_block = (header.kind & MPX_ANSWER_IN_BLOCK) != 0;
    if (task == NULL || (is_in_block && header.size != sizeof(mpx_parcel_note_t)))
        return -EPROTO;
    mpx_u32_store_relaxed(mpx_lane_cell(&worker->lane, header.number), MPX_CELL_FREE);
    worker->answers++;
    if (is_in_block) {
        mpx_parcel_note_t note;
        memcpy(&note, data, sizeof(note));
        mpx_spsc_pop(&worker->lane.results, header.size);
        read_block(crew, worker, task, is_error, &note);
    } else if (task->job == NULL) {
        mpx_spsc_pop(&worker->lane.results, header.size);
    } else if (mpx_is_tree(mpx_tag_of(data, header.size))) {
        PyObject *value = mpx_tree_read(&crew->state->keys, data, header.size, true);
        mpx_spsc_pop(&worker->lane.results, header.size);
        mpx_crew_deliver(crew, worker, task, is_error, value);
    } else {
        PyObject *bytes = PyBytes_FromStringAndSize(data, (Py_ssize_t)header.size);
        mpx_spsc_pop(&worker->lane.results, header.size);
        read_copy(crew, worker, task, is_error, bytes);
        Py_XDECREF(bytes);
    }
    return 0;
}

bool mpx_crew_collect_from(CrewObject *crew, mpx_worker_t *worker)
{
    int status = 0, done = 0;
    while (done < AT_ONCE && !worker->is_damaged && worker->is_open &&
           (status = collect_one(crew, worker)) == 0)
        done++;
    if (status == -EPROTO)
        worker->is_damaged = true;
    if (done == 0)
        return false;
    mpx_spsc_release(&worker->lane.results);
    free_cells(worker);
    if (worker->answers >= worker->window / 2 || worker->open == 0)
        set_window(worker);
    mpx_crew_note_end(crew, worker);
    return true;
}

bool mpx_crew_collect(CrewObject *crew)
{
    bool any = false;
    for (Py_ssize_t i = 0; i < crew->count; i++)
        any |= mpx_crew_collect_from(crew, crew->workers[i]);
    if (any && mpx_u32_load_relaxed(&crew->followers) > 0)
        mpx_crew_tell(crew); /* who waits for the next of many results */
    return any;
}
