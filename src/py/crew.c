/* crew.c - Crew: the parent's side of a pool, as an object; see engine.h.
 *
 * Its Python subclass (mproc_ext/_engine.py) starts and replaces the workers, and says what errors
 * are. Methods that need the right to drive say so: _engine.py takes it by `with crew.turn()`.
 */
#include "engine.h"

#include <errno.h>
#include <structmember.h>
#include <unistd.h>

static CrewObject *crew_of(PyObject *self)
{
    return (CrewObject *)self;
}

static bool is_made(PyObject *self)
{
    return mpx_shared_check((SharedObject *)self, "_crew");
}

/* ---- Jobs ------------------------------------------------------------------------------------ */

void mpx_crew_enqueue(CrewObject *crew, JobObject *job)
{
    if (job->is_in_queue || job->items == NULL)
        return;
    job->is_in_queue = true;
    job->next_to_send = NULL;
    job->previous_to_send = crew->last_to_send;
    Py_INCREF((PyObject *)job);
    if (crew->first_to_send == NULL)
        crew->first_to_send = job;
    else
        crew->last_to_send->next_to_send = job;
    crew->last_to_send = job;
}

static void link_job(CrewObject *crew, JobObject *job)
{
    job->previous = NULL;
    job->next = crew->jobs;
    if (job->next != NULL)
        job->next->previous = job;
    crew->jobs = (JobObject *)Py_NewRef((PyObject *)job);
    (void)mpx_u32_fetch_add_acq_rel(&crew->unfinished, 1);
}

/* The reference that the list had is the caller's. */
static void unlink_job(CrewObject *crew, JobObject *job)
{
    Py_BEGIN_CRITICAL_SECTION(crew);
    if (job->previous != NULL)
        job->previous->next = job->next;
    else
        crew->jobs = job->next;
    if (job->next != NULL)
        job->next->previous = job->previous;
    job->previous = job->next = NULL;
    Py_END_CRITICAL_SECTION();
    (void)mpx_u32_fetch_add_acq_rel(&crew->unfinished, UINT32_MAX);
}

/* Nobody else watches it from now on; whether somebody does. A future that is cancelled tells that
 * itself. */
static bool seal(CrewObject *crew, JobObject *job)
{
    uint32_t watch = mpx_u32_fetch_or_acq_rel(&job->watch, MPX_SEALED);
    if (watch & MPX_WATCHED)
        (void)mpx_u32_fetch_add_acq_rel(&crew->watched, UINT32_MAX);
    return (watch & MPX_WATCHED) && !(job->is_executor && job->is_cancelled);
}

bool mpx_job_watch(JobObject *job)
{
    uint32_t watch = mpx_u32_load_relaxed(&job->watch);
    while (!(watch & (MPX_WATCHED | MPX_SEALED))) {
        CrewObject *crew = job->crew;
        if (!mpx_u32_cas_acq_rel(&job->watch, &watch, watch | MPX_WATCHED))
            continue;
        if (crew != NULL) {
            (void)mpx_u32_fetch_add_acq_rel(&crew->watched, 1);
            mpx_crew_kick(crew, true);
        }
        return true;
    }
    return (watch & MPX_SEALED) == 0;
}

static void become_done(CrewObject *crew, JobObject *job)
{
    CrewObject *former = job->crew;
    PyObject *pool = job->pool;
    job->crew = NULL;
    job->pool = NULL;
    mpx_u32_store_release(&job->state, MPX_JOB_DONE); /* C8: with C9 */
    mpx_crew_tell(crew);
    mpx_crew_wake_driver(crew);
    Py_XDECREF(pool);
    Py_XDECREF((PyObject *)former);
}

static void settle(CrewObject *crew, JobObject *job)
{
    mpx_u32_store_release(&job->state, MPX_JOB_SETTLED); /* C8: with C9 */
    Py_BEGIN_CRITICAL_SECTION(crew);
    job->next_to_send = NULL;
    if (crew->first_settled == NULL)
        crew->first_settled = job;
    else
        crew->last_settled->next_to_send = job;
    crew->last_settled = job;
    Py_END_CRITICAL_SECTION();
    (void)mpx_u32_fetch_add_acq_rel(&crew->settled, 1);
    mpx_crew_kick(crew, true);
    mpx_crew_tell(crew);
}

void mpx_crew_take_from_queue(CrewObject *crew, JobObject *job)
{
    if (job->previous_to_send != NULL)
        job->previous_to_send->next_to_send = job->next_to_send;
    else
        crew->first_to_send = job->next_to_send;
    if (job->next_to_send != NULL)
        job->next_to_send->previous_to_send = job->previous_to_send;
    else
        crew->last_to_send = job->previous_to_send;
    job->next_to_send = job->previous_to_send = NULL;
    job->is_in_queue = false;
}

/* A job that is settled leaves the queue of those that send first. */
static void leave_queue(CrewObject *crew, JobObject *job)
{
    if (!job->is_in_queue)
        return;
    Py_BEGIN_CRITICAL_SECTION(crew);
    mpx_crew_take_from_queue(crew, job);
    Py_END_CRITICAL_SECTION();
    Py_DECREF((PyObject *)job); /* which the caller holds too */
}

void mpx_crew_check(CrewObject *crew, JobObject *job)
{
    if (mpx_job_state(job) != MPX_JOB_OPEN || !mpx_job_is_complete(job))
        return;
    unlink_job(crew, job);
    leave_queue(crew, job);
    PyObject *function = job->function;
    job->function = NULL;
    if (job->value == NULL && job->kind == MPX_JOB_ONE) { /* no result, and no failure */
        PyErr_NoMemory();
        mpx_job_fail(job, mpx_take_exception());
    }
    if (seal(crew, job)) {
        settle(crew, job); /* with the list's reference */
    } else {
        become_done(crew, job);
        Py_DECREF((PyObject *)job);
    }
    Py_XDECREF(function);
}

void mpx_crew_look_at(CrewObject *crew, JobObject *job)
{
    if (job->items == NULL)
        return;
    if (mpx_crew_is_here(crew) && mpx_crew_try_drive(crew)) {
        (void)mpx_crew_collect(crew);
        (void)mpx_crew_send(crew);
        mpx_crew_leave(crew);
    } else {
        mpx_crew_wake_driver(crew);
    }
}

/* ---- The methods of jobs --------------------------------------------------------------------- */

static JobObject *job_argument(CrewObject *crew, PyObject *object)
{
    if (PyObject_TypeCheck(object, crew->state->job_type))
        return (JobObject *)object;
    PyErr_Format(PyExc_TypeError, "%R is no job", object);
    return NULL;
}

/* Gives the first tasks away, unless somebody else drives. */
static void start_job(CrewObject *crew)
{
    if (mpx_crew_try_drive(crew)) {
        if (crew->open > 0)
            (void)mpx_crew_collect(crew);
        (void)mpx_crew_send(crew);
        mpx_crew_leave(crew);
    } else {
        mpx_crew_wake_driver(crew);
    }
}

static bool set_up_results(JobObject *job)
{
    if (job->kind != MPX_JOB_ALL)
        return true;
    job->value = PyList_New(job->length);
    for (Py_ssize_t i = 0; job->value != NULL && i < job->length; i++)
        PyList_SET_ITEM(job->value, i, Py_NewRef(Py_None));
    return job->value != NULL;
}

static bool may_begin(CrewObject *crew, JobObject *job)
{
    if (!mpx_crew_is_here(crew))
        PyErr_SetString(PyExc_ValueError,
                        "Pool not running: it belongs to the process that has made it");
    else if (crew->broken != NULL)
        PyErr_SetObject((PyObject *)Py_TYPE(crew->broken), crew->broken);
    else if (job->module_state != NULL)
        PyErr_SetString(PyExc_ValueError, "the job was begun before");
    else
        return true;
    return false;
}

/* Whether it is among the crew's jobs now: not where that is closed. */
static bool admit(CrewObject *crew, JobObject *job)
{
    bool is_open;
    Py_BEGIN_CRITICAL_SECTION(crew);
    is_open = mpx_u32_load_relaxed(&crew->is_closing) == 0;
    if (is_open) {
        if (mpx_u32_load_relaxed(&job->watch) & MPX_WATCHED)
            (void)mpx_u32_fetch_add_acq_rel(&crew->watched, 1);
        link_job(crew, job);
        mpx_crew_enqueue(crew, job);
    }
    Py_END_CRITICAL_SECTION();
    return is_open;
}

static bool begin(CrewObject *crew, JobObject *job)
{
    job->module_state = crew->state;
    job->crew = (CrewObject *)Py_NewRef((PyObject *)crew);
    if (!admit(crew, job)) {
        job->module_state = NULL;
        Py_CLEAR(job->function);
        Py_CLEAR(job->items);
        Py_CLEAR(job->pool);
        Py_CLEAR(job->crew);
        PyErr_SetString(PyExc_ValueError, "Pool not running");
        return false;
    }
    start_job(crew);
    mpx_crew_kick(crew, false);
    /* Of a job that is to be fed the caller has to hear. */
    return job->is_fed || !mpx_crew_raise_interrupt(crew);
}

PyDoc_STRVAR(
    Crew_begin_doc,
    "_begin($self, job, kind, order, function, items, chunk, length, has_callbacks,\n"
    "       timeout, retries, ahead, /)\n--\n\n"
    "Have the job done. items: an iterator; of a job of one task, its (args, kwds).\n"
    "timeout in seconds, 0: none; ahead: tasks before the reader, 0: any number.\n"
    "True: a thread is to run _feed(job).\n"
    "\n"
    "ValueError: after _close(), or in another process than that which has made the crew.");

static PyObject *Crew_begin(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    CrewObject *crew = crew_of(self);
    JobObject *job;
    if (!is_made(self))
        return NULL;
    if (nargs != 11) {
        PyErr_SetString(PyExc_TypeError, "_begin() takes 11 arguments");
        return NULL;
    }
    if ((job = job_argument(crew, args[0])) == NULL)
        return NULL;
    if (!may_begin(crew, job))
        return NULL;
    long kind = PyLong_AsLong(args[1]), order = PyLong_AsLong(args[2]);
    job->chunk = PyLong_AsSsize_t(args[5]);
    job->length = PyLong_AsSsize_t(args[6]);
    mpx_u32_store_relaxed(&job->watch, args[7] == Py_True ? MPX_WATCHED : 0);
    double timeout = PyFloat_AsDouble(args[8]);
    job->retries = PyLong_AsSsize_t(args[9]);
    job->ahead = PyLong_AsSsize_t(args[10]);
    if (PyErr_Occurred())
        return NULL;
    job->kind = (mpx_job_kind_t)kind;
    job->order = (uint32_t)order;
    job->timeout = timeout <= 0 ? 0 : timeout < 1e9 ? (int64_t)(timeout * 1e9) + 1 : 0;
    job->function_number = -1;
    job->is_executor = crew->is_executor;
    if (!set_up_results(job))
        return NULL;
    job->function = Py_NewRef(args[3]);
    job->items = Py_NewRef(args[4]);
    bool is_fed = mpx_job_needs_feeder(job);
    if (!begin(crew, job))
        return NULL;
    return PyBool_FromLong(is_fed);
}

PyDoc_STRVAR(
    Crew_feed_doc,
    "_feed($self, job, is_eager, /)\n--\n\n"
    "Draw the items of the job as they are sent, until it is over.\n"
    "\n"
    "Eager: all at once; what the iterator raises is raised here, after what it gave before. "
    "False: the\njob is over, or the crew closed, before the end.");

static PyObject *Crew_feed(PyObject *self, PyObject *args)
{
    PyObject *object;
    int is_eager;
    JobObject *job;
    if (!is_made(self) || !PyArg_ParseTuple(args, "Op:_feed", &object, &is_eager) ||
        (job = job_argument(crew_of(self), object)) == NULL)
        return NULL;
    int status = mpx_job_feed(job, crew_of(self), is_eager != 0);
    return status < 0 ? NULL : PyBool_FromLong(status);
}

PyDoc_STRVAR(Crew_begin_call_doc,
             "_begin_call($self, job, pool, function, args, kwds, /)\n--\n\n"
             "The same of a job of one call, without callbacks or anything else, which the pool "
             "outlives.");

static PyObject *Crew_begin_call(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    CrewObject *crew = crew_of(self);
    JobObject *job;
    if (!is_made(self))
        return NULL;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "_begin_call() takes 5 arguments");
        return NULL;
    }
    if ((job = job_argument(crew, args[0])) == NULL || !may_begin(crew, job))
        return NULL;
    PyObject *call = PyTuple_Pack(2, args[3], args[4]);
    if (call == NULL)
        return NULL;
    job->kind = MPX_JOB_ONE;
    job->order = MPX_ORDER_APPLY;
    job->chunk = job->length = 1;
    job->function_number = -1;
    job->function = Py_NewRef(args[2]);
    job->items = call;
    job->pool = Py_NewRef(args[1]);
    if (!begin(crew, job))
        return NULL;
    Py_RETURN_NONE;
}

/* Lets go of the job's task in the worker: whether the worker is to be killed for it. */
static bool drop_task(CrewObject *crew, mpx_worker_t *worker, uint32_t number, PyObject *error,
                      bool kills)
{
    mpx_task_t *task = mpx_task_at(worker, number);
    mpx_block_t block = 0;
    bool is_killed = false;
    if (mpx_lane_revoke(&worker->lane, number)) {
        worker->sent--;
        block = task->kind & MPX_ORDER_KEPT ? 0 : task->block;
    } else if (kills && mpx_lane_doom(&worker->lane, number)) {
        worker->is_stopped = is_killed = true;
        Py_XSETREF(worker->reason, Py_NewRef(error));
    }
    JobObject *job = mpx_crew_close_task(crew, worker, task);
    if (block != 0)
        mpx_crew_free_block(&crew->crew, block);
    Py_DECREF((PyObject *)job);
    return is_killed;
}

static int abandon(CrewObject *crew, JobObject *job, PyObject *error, bool kills)
{
    int status = 0;
    if (mpx_job_state(job) != MPX_JOB_OPEN)
        return 0;
    Py_INCREF((PyObject *)job);
    PyObject *items = job->items;
    job->items = NULL;
    if (job->is_fed) {
        mpx_job_drop_fed(job);
        mpx_job_wake_feeder(job);
    }
    mpx_crew_drop_pending(crew, job);
    for (Py_ssize_t i = 0; i < crew->count && job->open > 0; i++) {
        mpx_worker_t *worker = crew->workers[i];
        bool is_killed = false;
        for (uint32_t number = worker->next; number != worker->oldest;) {
            number--;
            if (mpx_task_at(worker, number)->job == job)
                is_killed |= drop_task(crew, worker, number, error, kills);
        }
        if (is_killed) {
            PyObject *done = PyObject_CallMethod((PyObject *)crew, "_kill", "n", i);
            if (done == NULL)
                status = -1;
            Py_XDECREF(done);
        }
    }
    job->open = 0; /* what is being read just now does not count */
    mpx_job_fail(job, Py_NewRef(error));
    mpx_crew_check(crew, job);
    Py_XDECREF(items);
    Py_DECREF((PyObject *)job);
    return status;
}

/* The job fails, but what is begun of it goes on, and has its results. */
static void curtail(CrewObject *crew, JobObject *job, PyObject *error)
{
    if (mpx_job_state(job) != MPX_JOB_OPEN)
        return;
    Py_INCREF((PyObject *)job);
    PyObject *items = job->items;
    job->items = NULL;
    if (job->is_fed) {
        mpx_job_drop_fed(job);
        mpx_job_wake_feeder(job);
    }
    mpx_crew_drop_pending(crew, job);
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        mpx_worker_t *worker = crew->workers[i];
        for (uint32_t number = worker->next; number != worker->oldest;) {
            number--;
            if (mpx_task_at(worker, number)->job == job &&
                mpx_lane_state(&worker->lane, number) == MPX_CELL_OFFERED)
                (void)drop_task(crew, worker, number, error, false);
        }
    }
    mpx_job_fail(job, Py_NewRef(error));
    mpx_crew_check(crew, job);
    Py_XDECREF(items);
    Py_DECREF((PyObject *)job);
}

PyDoc_STRVAR(Crew_curtail_doc,
             "_curtail($self, job, error, /)\n--\n\n"
             "Have the job of many tasks fail with that exception after what is begun of it, which "
             "goes on.\nNeeds the right to drive.");

static PyObject *Crew_curtail(PyObject *self, PyObject *args)
{
    PyObject *object, *error;
    JobObject *job;
    if (!is_made(self) || !PyArg_ParseTuple(args, "OO:_curtail", &object, &error) ||
        (job = job_argument(crew_of(self), object)) == NULL)
        return NULL;
    curtail(crew_of(self), job, error);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Crew_abandon_doc,
             "_abandon($self, job, error, kills, /)\n--\n\n"
             "Have the job fail with that exception; with kills, the workers that are in a task of "
             "it are\nkilled. Needs the right to drive.");

static PyObject *Crew_abandon(PyObject *self, PyObject *args)
{
    PyObject *object, *error;
    int kills;
    JobObject *job;
    if (!is_made(self) || !PyArg_ParseTuple(args, "OOp:_abandon", &object, &error, &kills) ||
        (job = job_argument(crew_of(self), object)) == NULL)
        return NULL;
    return abandon(crew_of(self), job, error, kills) < 0 ? NULL : Py_NewRef(Py_None);
}

PyDoc_STRVAR(Crew_cancel_doc, "_cancel($self, job, error, kills, /)\n--\n\n"
                              "The same of a job that counts as cancelled then; whether it does.");

static PyObject *Crew_cancel(PyObject *self, PyObject *args)
{
    PyObject *object, *error;
    int kills;
    JobObject *job;
    if (!is_made(self) || !PyArg_ParseTuple(args, "OOp:_cancel", &object, &error, &kills) ||
        (job = job_argument(crew_of(self), object)) == NULL)
        return NULL;
    if (mpx_job_state(job) != MPX_JOB_OPEN)
        Py_RETURN_FALSE;
    job->is_cancelled = true;
    return abandon(crew_of(self), job, error, kills) < 0 ? NULL : Py_NewRef(Py_True);
}

PyDoc_STRVAR(Crew_withdraw_doc,
             "_withdraw($self, job, /)\n--\n\n"
             "Take a job of one task back that nobody has begun: whether it was done so. Needs the "
             "right to drive.");

static PyObject *Crew_withdraw(PyObject *self, PyObject *object)
{
    CrewObject *crew = crew_of(self);
    JobObject *job;
    if (!is_made(self) || (job = job_argument(crew, object)) == NULL)
        return NULL;
    if (mpx_job_state(job) != MPX_JOB_OPEN || job->kind != MPX_JOB_ONE || mpx_job_is_begun(job))
        Py_RETURN_FALSE;
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        mpx_worker_t *worker = crew->workers[i];
        for (uint32_t number = worker->oldest; number != worker->next; number++) {
            if (mpx_task_at(worker, number)->job != job)
                continue;
            if (mpx_lane_state(&worker->lane, number) != MPX_CELL_OFFERED)
                Py_RETURN_FALSE;
            if (!mpx_lane_revoke(&worker->lane, number))
                Py_RETURN_FALSE;
            worker->sent--;
            mpx_crew_put_back(crew, worker, mpx_task_at(worker, number));
        }
    }
    bool waits = job->items != NULL;
    for (mpx_pending_t *pending = crew->pending; pending != NULL; pending = pending->next)
        waits |= pending->job == job;
    if (!waits)
        Py_RETURN_FALSE; /* its payload is being written, or its result read */
    job->is_cancelled = true;
    return abandon(crew, job, Py_None, false) < 0 ? NULL : Py_NewRef(Py_True);
}

PyDoc_STRVAR(Crew_jobs_doc, "_jobs($self, /)\n--\n\nA list of the jobs that are not done.");

static PyObject *Crew_jobs(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *jobs = PyList_New(0);
    Py_BEGIN_CRITICAL_SECTION(self);
    for (JobObject *job = crew_of(self)->jobs; jobs != NULL && job != NULL; job = job->next) {
        if (PyList_Append(jobs, (PyObject *)job) < 0)
            Py_CLEAR(jobs);
    }
    Py_END_CRITICAL_SECTION();
    return jobs;
}

PyDoc_STRVAR(
    Crew_break_doc,
    "_break($self, error, /)\n--\n\n"
    "Have all jobs fail with that exception, and those to come. Needs the right to drive.");

static PyObject *Crew_break(PyObject *self, PyObject *error)
{
    CrewObject *crew = crew_of(self);
    if (!is_made(self))
        return NULL;
    if (crew->broken == NULL)
        crew->broken = Py_NewRef(error);
    while (crew->jobs != NULL) {
        JobObject *job = (JobObject *)Py_NewRef((PyObject *)crew->jobs);
        int status = abandon(crew, job, error, false);
        Py_DECREF((PyObject *)job);
        if (status < 0)
            return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- Callbacks ------------------------------------------------------------------------------- */

PyDoc_STRVAR(Crew_next_settled_doc,
             "_next_settled($self, /)\n--\n\nA job whose callbacks are to be called, or None.");

static PyObject *Crew_next_settled(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    CrewObject *crew = crew_of(self);
    JobObject *job;
    Py_BEGIN_CRITICAL_SECTION(self);
    job = mpx_u32_load_relaxed(&crew->is_over) ? NULL : crew->first_settled;
    if (job != NULL) {
        crew->first_settled = job->next_to_send;
        if (crew->first_settled == NULL)
            crew->last_settled = NULL;
        job->next_to_send = NULL;
        (void)mpx_u32_fetch_add_acq_rel(&crew->settled, UINT32_MAX);
    }
    Py_END_CRITICAL_SECTION();
    return job == NULL ? Py_NewRef(Py_None) : (PyObject *)job;
}

PyDoc_STRVAR(Crew_set_done_doc, "_set_done($self, job, /)\n--\n\n"
                                "The callbacks of the job have been called: it is done.");

static PyObject *Crew_set_done(PyObject *self, PyObject *object)
{
    JobObject *job = is_made(self) ? job_argument(crew_of(self), object) : NULL;
    if (job == NULL)
        return NULL;
    if (mpx_job_state(job) == MPX_JOB_SETTLED)
        become_done(crew_of(self), job);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Crew_serve_doc,
             "_serve($self, /)\n--\n\n"
             "A turn of the service thread: 1: there are callbacks to call; 3: it is to end; else "
             "go on.");

static PyObject *Crew_serve(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    int todo = mpx_crew_serve(crew_of(self));
    return todo < 0 ? NULL : PyLong_FromLong(todo);
}

PyDoc_STRVAR(Crew_close_doc,
             "_close($self, /)\n--\n\n"
             "Have the service thread end once there is no job; none can be begun.");

static PyObject *Crew_close(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    Py_BEGIN_CRITICAL_SECTION(self); /* a job that is begun meanwhile is there first: see admit() */
    mpx_u32_store_release(&crew_of(self)->is_closing, 1); /* W2: with W3 */
    Py_END_CRITICAL_SECTION();
    mpx_crew_kick(crew_of(self), true);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Crew_be_over_doc,
             "_be_over($self, /)\n--\n\n"
             "The interpreter ends: nobody drives any more, and the service thread ends after the "
             "callback that\nit is in. Needs the right to drive.");

static PyObject *Crew_be_over(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    if (!is_made(self))
        return NULL;
    mpx_u32_store_release(&crew_of(self)->is_over, 1); /* W4: with W5 */
    mpx_crew_kick(crew_of(self), true);
    Py_RETURN_NONE;
}

/* ---- The right to drive ---------------------------------------------------------------------- */

/* The right to drive, of a with statement. A signal handler may raise wherever the interpreter
 * looks for it, be it before the block is entered: then this is dropped, and leaves. */
typedef struct {
    PyObject_HEAD CrewObject *crew;
    bool is_aside; /* the other way round: not to drive, and then to go on */
    bool is_taken;
    unsigned depth; /* how often it drove before it stood aside */
} TurnObject;

PyDoc_STRVAR(Crew_turn_doc, "turn($self, /)\n--\n\n"
                            "The right to drive, for a with statement: nobody else changes "
                            "anything meanwhile.");

static PyObject *make_turn(PyObject *self, bool is_aside)
{
    if (!is_made(self))
        return NULL;
    TurnObject *turn = PyObject_New(TurnObject, crew_of(self)->state->turn_type);
    if (turn == NULL)
        return NULL;
    turn->crew = (CrewObject *)Py_NewRef(self);
    turn->is_aside = is_aside;
    turn->is_taken = false;
    turn->depth = 0;
    return (PyObject *)turn;
}

static PyObject *Crew_turn(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return make_turn(self, false);
}

PyDoc_STRVAR(Crew_aside_doc,
             "aside($self, /)\n--\n\n"
             "To wait for a thread that may want to drive, for a with statement: where this one "
             "drives, and is\nin the handler of a signal, it goes on after that.");

static PyObject *Crew_aside(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    return make_turn(self, true);
}

static void stand_aside(TurnObject *turn)
{
    CrewObject *crew = turn->crew;
    if (mpx_u64_load_relaxed(&crew->driver) != (uint64_t)PyThread_get_thread_ident())
        return;
    turn->depth = crew->depth;
    turn->is_taken = true;
    crew->depth = 1;
    mpx_crew_leave(crew);
}

/* What handlers raise meanwhile is raised after it. */
static void come_back(TurnObject *turn)
{
    CrewObject *crew = turn->crew;
    while (mpx_crew_take_turn(crew) < 0) {
        PyObject *raised = mpx_take_exception();
        Py_XSETREF(crew->interrupt, raised);
        crew->interrupted = (uint64_t)PyThread_get_thread_ident();
    }
    crew->depth = turn->depth;
}

static void leave_turn(TurnObject *turn)
{
    if (!turn->is_taken)
        return;
    turn->is_taken = false;
    if (turn->is_aside)
        come_back(turn);
    else
        mpx_crew_leave(turn->crew);
}

static PyObject *Turn_enter(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    TurnObject *turn = (TurnObject *)self;
    if (turn->is_taken) {
        PyErr_SetString(PyExc_RuntimeError, "the turn has begun");
        return NULL;
    }
    if (turn->is_aside) {
        stand_aside(turn);
        Py_RETURN_NONE;
    }
    if (mpx_crew_take_turn(turn->crew) < 0)
        return NULL;
    turn->is_taken = true;
    Py_RETURN_NONE;
}

static PyObject *Turn_exit(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    TurnObject *turn = (TurnObject *)self;
    leave_turn(turn);
    if ((nargs == 0 || args[0] == Py_None) && mpx_crew_raise_interrupt(turn->crew))
        return NULL;
    Py_RETURN_NONE;
}

static void Turn_dealloc(PyObject *self)
{
    TurnObject *turn = (TurnObject *)self;
    PyTypeObject *type = Py_TYPE(self);
    PyObject *kind, *error, *traceback;
    PyErr_Fetch(&kind, &error, &traceback); /* which a handler has raised, mostly */
    leave_turn(turn);
    PyErr_Restore(kind, error, traceback);
    Py_DECREF((PyObject *)turn->crew);
    type->tp_free(self);
    Py_DECREF(type);
}

PyDoc_STRVAR(Turn_doc, "The right to drive a crew, for a with statement.");

static PyMethodDef Turn_methods[] = {
    {"__enter__", Turn_enter, METH_NOARGS, "__enter__($self, /)\n--\n\nWait for it."},
    {"__exit__", (PyCFunction)(void (*)(void))Turn_exit, METH_FASTCALL,
     "__exit__($self, /, *exc_info)\n--\n\nGive it back."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot Turn_slots[] = {
    {Py_tp_doc, (void *)Turn_doc},
    {Py_tp_dealloc, Turn_dealloc},
    {Py_tp_methods, Turn_methods},
    {0, NULL},
};

static PyType_Spec Turn_spec = {
    .name = "mproc_ext._core.Turn",
    .basicsize = sizeof(TurnObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = Turn_slots,
};

static bool has_no_job(JobObject *Py_UNUSED(job))
{
    return false;
}

PyDoc_STRVAR(Crew_drain_doc,
             "_drain($self, timeout, /)\n--\n\n"
             "Drive, or wait while others do, for so many seconds, or until there is no job: "
             "whether that is so.");

static PyObject *Crew_drain(PyObject *self, PyObject *timeout)
{
    CrewObject *crew = crew_of(self);
    int64_t deadline;
    if (!is_made(self) || mpx_deadline_of(timeout, &deadline) < 0)
        return NULL;
    while (mpx_crew_is_here(crew)) {
        JobObject *job;
        Py_BEGIN_CRITICAL_SECTION(self);
        job = (JobObject *)Py_XNewRef((PyObject *)crew->jobs);
        Py_END_CRITICAL_SECTION();
        if (job == NULL)
            Py_RETURN_TRUE;
        int64_t piece = mpx_piece_of(deadline);
        int status = mpx_crew_wait(crew, job, has_no_job, piece);
        Py_DECREF((PyObject *)job);
        if (status < 0)
            return NULL;
        if (mpx_os_now() >= deadline)
            break;
    }
    Py_RETURN_FALSE;
}

/* ---- Lanes ----------------------------------------------------------------------------------- */

static mpx_worker_t *worker_at(PyObject *self, PyObject *place)
{
    Py_ssize_t number = PyLong_AsSsize_t(place);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    if (!is_made(self))
        return NULL;
    if (number < 0 || number >= crew_of(self)->count) {
        PyErr_SetString(PyExc_IndexError, "there is no such lane");
        return NULL;
    }
    return crew_of(self)->workers[number];
}

/* Its tasks are large, and nothing until they are sent: a process that has just forked would pay
 * for each page of them that it clears. */
static void renew_worker(mpx_worker_t *worker, mpx_lane_t lane)
{
    memset(worker, 0, offsetof(mpx_worker_t, tasks));
    worker->lane = lane;
    worker->sentinel = -1;
}

PyDoc_STRVAR(Crew_add_lane_doc, "_add_lane($self, /)\n--\n\n"
                                "A new lane, without a worker: its number. Needs the right to "
                                "drive.");

static PyObject *Crew_add_lane(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    CrewObject *crew = crew_of(self);
    if (!is_made(self))
        return NULL;
    size_t size = (size_t)(crew->count + 1);
    mpx_worker_t **workers = PyMem_RawRealloc(crew->workers, size * sizeof(mpx_worker_t *));
    if (workers != NULL)
        crew->workers = workers;
    mpx_lane_t **lanes = PyMem_RawRealloc(crew->lanes, size * sizeof(mpx_lane_t *));
    if (lanes != NULL)
        crew->lanes = lanes;
    mpx_worker_t *worker = PyMem_RawMalloc(sizeof(*worker));
    mpx_lane_t lane;
    if (workers == NULL || lanes == NULL || worker == NULL) {
        PyMem_RawFree(worker);
        return PyErr_NoMemory();
    }
    int status = mpx_lane_create(&lane, &crew->crew);
    if (status < 0) {
        PyMem_RawFree(worker);
        return mpx_raise(status);
    }
    renew_worker(worker, lane);
    workers[crew->count] = worker;
    lanes[crew->count] = &worker->lane;
    crew->changes++;
    return PyLong_FromSsize_t(crew->count++);
}

PyDoc_STRVAR(Crew_lane_doc,
             "_lane($self, place, /)\n--\n\n"
             "(what the worker of a lane opens it by, tasks without a result,\n"
             "whether what it has answered makes no sense). MemoryError: there is one that has "
             "ended, and is\nbeing buried there.");

static PyObject *Crew_lane(PyObject *self, PyObject *place)
{
    mpx_worker_t *worker = worker_at(self, place);
    if (worker == NULL)
        return NULL;
    if (worker->is_buried)
        return PyErr_NoMemory();
    return Py_BuildValue("KIN", (unsigned long long)worker->lane.block, worker->open,
                         PyBool_FromLong(worker->is_damaged));
}

PyDoc_STRVAR(Crew_open_doc, "_open($self, place, sentinel, /)\n--\n\n"
                            "The lane has a worker now. Needs the right to drive.");

static PyObject *Crew_open(PyObject *self, PyObject *args)
{
    PyObject *place;
    int sentinel;
    if (!PyArg_ParseTuple(args, "Oi:_open", &place, &sentinel))
        return NULL;
    mpx_worker_t *worker = worker_at(self, place);
    if (worker == NULL)
        return NULL;
    worker->sentinel = sentinel;
    worker->is_open = true;
    worker->is_stopped = worker->is_untold = worker->is_damaged = false;
    worker->stage = 0;
    worker->window = 2;
    crew_of(self)->changes++;
    Py_RETURN_NONE;
}

bool mpx_crew_stop(mpx_worker_t *worker)
{
    worker->is_stopped = true;
    worker->is_untold = mpx_spsc_reserve(&worker->lane.tasks, 0) == NULL;
    if (worker->is_untold)
        return false;
    mpx_spsc_commit(&worker->lane.tasks, (mpx_spsc_header_t){.kind = MPX_ORDER_STOP});
    mpx_lane_publish_tasks(&worker->lane);
    return true;
}

PyDoc_STRVAR(Crew_stop_doc,
             "_stop($self, place, /)\n--\n\n"
             "Have the worker end after what it has to do: false where there is no room to say so "
             "yet, which\nwho drives will. Needs the right to drive.");

static PyObject *Crew_stop(PyObject *self, PyObject *place)
{
    mpx_worker_t *worker = worker_at(self, place);
    return worker == NULL ? NULL : PyBool_FromLong(mpx_crew_stop(worker));
}

/* What becomes of a task of a worker that has ended: the exception is the task's, NULL: it is done
 * by another one. */
static void end_task(CrewObject *crew, mpx_worker_t *worker, uint32_t number, PyObject *make_error,
                     PyObject **raised)
{
    mpx_task_t *task = mpx_task_at(worker, number);
    enum mpx_cell state = mpx_lane_state(&worker->lane, number);
    if (mpx_job_state(task->job) != MPX_JOB_OPEN) { /* it was abandoned meanwhile */
        if (task->block != 0 && !(task->kind & MPX_ORDER_KEPT))
            mpx_crew_free_block(&crew->crew, task->block);
        Py_DECREF((PyObject *)mpx_crew_close_task(crew, worker, task));
        return;
    }
    if (state == MPX_CELL_OFFERED) {
        mpx_crew_put_back(crew, worker, task);
        return;
    }
    if (state != MPX_CELL_DOOMED && task->kept != NULL && task->tries < task->job->retries) {
        task->tries++;
        mpx_crew_put_back(crew, worker, task);
        return;
    }
    PyObject *error;
    if (state == MPX_CELL_DOOMED && worker->reason != NULL)
        error = Py_NewRef(worker->reason);
    else
        error = PyObject_CallFunction(make_error, "OnO", task->job, task->index,
                                      worker->note != NULL ? worker->note : Py_None);
    if (error == NULL) { /* Ctrl-C, or no memory: which is the caller's too */
        error = mpx_take_exception();
        Py_XSETREF(*raised, Py_NewRef(error));
    }
    if (task->block != 0 && !(task->kind & MPX_ORDER_KEPT))
        mpx_crew_free_block(&crew->crew, task->block);
    mpx_crew_deliver(crew, worker, task, true, error);
}

/* What the dead one has left, apart: to read it, and to say what is lost, may run Python code,
 * which may drive, and start the next worker in this lane. Where there is no memory for that it
 * stays in the lane, which takes no worker and no task until it is buried. */
static mpx_worker_t *detach(CrewObject *crew, mpx_worker_t *worker)
{
    mpx_worker_t *dead = PyMem_RawMalloc(sizeof(*dead));
    mpx_lane_t lane;
    if (dead == NULL || mpx_lane_create(&lane, &crew->crew) < 0) {
        PyMem_RawFree(dead);
        worker->is_buried = worker->is_stopped = true;
        worker->sentinel = -1;
        crew->changes++;
        crew->has_gap = true;
        return worker;
    }
    memcpy(dead, worker, offsetof(mpx_worker_t, tasks));
    for (uint32_t number = dead->oldest; number != dead->next; number++)
        *mpx_task_at(dead, number) = *mpx_task_at(worker, number);
    renew_worker(worker, lane);
    crew->changes++;
    crew->has_gap = true;
    return dead;
}

static void bury_lane(CrewObject *crew, mpx_worker_t *worker, mpx_worker_t *dead)
{
    mpx_lane_free_given(&dead->lane);
    Py_CLEAR(dead->reason);
    Py_CLEAR(dead->note);
    crew->changes++;
    if (dead != worker) {
        mpx_lane_free(&dead->lane);
        PyMem_RawFree(dead);
        return;
    }
    mpx_lane_t lane = worker->lane;
    mpx_lane_renew(&lane);
    renew_worker(worker, lane);
}

PyDoc_STRVAR(
    Crew_bury_doc,
    "_bury($self, place, make_error, /)\n--\n\n"
    "The worker of a lane has ended. What it has answered is taken; what it had not begun "
    "is done by\nothers; what it was in the middle of has failed: make_error(job, index, why) "
    "says with which exception.\nThe lane is new then. Returns whether the worker was "
    "ready, and why "
    "not, or None. Needs the\nright to drive.");

static PyObject *Crew_bury(PyObject *self, PyObject *args)
{
    CrewObject *crew = crew_of(self);
    PyObject *place, *make_error;
    if (!PyArg_ParseTuple(args, "OO:_bury", &place, &make_error))
        return NULL;
    mpx_worker_t *worker = worker_at(self, place);
    if (worker == NULL)
        return NULL;
    mpx_worker_t *dead = detach(crew, worker);
    while (mpx_crew_collect_from(crew, dead)) {
    }
    dead->is_open = dead->is_untold = false;
    crew->changes++;
    if (dead->stage == MPX_ANSWER_READY)
        (void)mpx_u32_fetch_add_acq_rel(&crew->ready, UINT32_MAX);
    PyObject *raised = NULL;
    for (uint32_t number = dead->oldest; number != dead->next; number++) {
        if (mpx_task_at(dead, number)->job != NULL)
            end_task(crew, dead, number, make_error, &raised);
    }
    PyObject *note = dead->note != NULL ? Py_NewRef(dead->note) : Py_NewRef(Py_None);
    uint32_t stage = dead->stage;
    bury_lane(crew, worker, dead);
    if (raised != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(raised), raised);
        Py_DECREF(raised);
        Py_DECREF(note);
        return NULL;
    }
    return Py_BuildValue("NNN", PyBool_FromLong(stage >= MPX_ANSWER_BEGUN),
                         PyBool_FromLong(stage == MPX_ANSWER_READY), note);
}

/* ---- The type -------------------------------------------------------------------------------- */

static int hold(PyObject *self, mpx_crew_t made)
{
    CrewObject *crew = crew_of(self);
    crew->crew = made;
    void *room = mpx_slot_at(made.arena, made.slot);
    return mpx_shared_hold((SharedObject *)self, (mpx_place_t){made.arena, made.slot, room});
}

PyDoc_STRVAR(Crew_make_doc, "_make($self, most_tasks, /)\n--\n\n"
                            "Make a crew without workers, each of which is to do so many tasks "
                            "(0: any number).");

static PyObject *Crew_make(PyObject *self, PyObject *most_tasks)
{
    CrewObject *crew = crew_of(self);
    mpx_arena_t *arena;
    mpx_crew_t made;
    crew->most_tasks = PyLong_AsSsize_t(most_tasks);
    if (crew->most_tasks == -1 && PyErr_Occurred())
        return NULL;
    if (mpx_shared_room((SharedObject *)self) != NULL) {
        PyErr_SetString(PyExc_ValueError, "the crew has been made");
        return NULL;
    }
    int status = mpx_arena_home(&arena);
    if (status == 0)
        status = mpx_crew_create(&made, arena);
    if (status == -EBADF || status == -ESTALE) {
        status = mpx_arena_move(&arena); /* the program has closed its descriptor */
        if (status == 0)
            status = mpx_crew_create(&made, arena);
    }
    if (status < 0)
        return mpx_raise(status);
    crew->parent = mpx_os_own_word();
    int pidfd = mpx_os_pidfd_open(getpid());
    crew->is_blind = pidfd < 0;
    if (pidfd >= 0)
        close(pidfd);
    crew->functions = PyDict_New();
    crew->known = PyList_New(0);
    if (hold(self, made) < 0 || crew->functions == NULL || crew->known == NULL)
        return NULL;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Crew_be_executor_doc, "_be_executor($self, /)\n--\n\nBe an executor's.");

static PyObject *Crew_be_executor(PyObject *self, PyObject *Py_UNUSED(ignored))
{
    crew_of(self)->is_executor = true;
    Py_RETURN_NONE;
}

PyDoc_STRVAR(Crew_take_doc, "_take($self, identity, slot, /)\n--\n\n"
                            "In a worker: become the crew that the parent has handed over.");

static PyObject *Crew_take(PyObject *self, PyObject *args)
{
    PyObject *identity;
    unsigned int slot;
    mpx_place_t place;
    mpx_crew_t opened;
    if (!PyArg_ParseTuple(args, "SI:_take", &identity, &slot) ||
        mpx_place_take(&place, identity, slot) < 0)
        return NULL;
    int status = mpx_crew_open(&opened, place.arena, slot);
    if (status < 0) {
        mpx_slot_drop(place.arena, slot);
        return mpx_raise(status);
    }
    return hold(self, opened) < 0 ? NULL : Py_NewRef(Py_None);
}

static PyObject *Crew_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    PyObject *self = type->tp_alloc(type, 0);
    PyObject *module = self == NULL ? NULL : PyType_GetModuleByDef(type, &mpx_core_module);
    if (module == NULL) {
        Py_XDECREF(self);
        return NULL;
    }
    crew_of(self)->state = module_state(module);
    return self;
}

static int Crew_traverse(PyObject *self, visitproc visit, void *arg)
{
    CrewObject *crew = crew_of(self);
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(crew->functions);
    Py_VISIT(crew->known);
    Py_VISIT(crew->broken);
    Py_VISIT(crew->interrupt);
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        Py_VISIT(crew->workers[i]->reason);
        Py_VISIT(crew->workers[i]->note);
    }
    return 0;
}

static int Crew_clear(PyObject *self)
{
    CrewObject *crew = crew_of(self);
    Py_CLEAR(crew->functions);
    Py_CLEAR(crew->known);
    Py_CLEAR(crew->broken);
    Py_CLEAR(crew->interrupt);
    return 0;
}

static void Crew_dealloc(PyObject *self)
{
    CrewObject *crew = crew_of(self);
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    if (mpx_shared_room((SharedObject *)self) != NULL) {
        for (Py_ssize_t i = 0; i < crew->count; i++) {
            Py_XDECREF(crew->workers[i]->reason);
            Py_XDECREF(crew->workers[i]->note);
            PyMem_RawFree(crew->workers[i]);
        }
        uint64_t size = mpx_crew_drop(&crew->crew);
        if (size > 0) {
            Py_BEGIN_ALLOW_THREADS
            mpx_heap_end(crew->crew.arena, size, false);
            Py_END_ALLOW_THREADS
        }
    }
    PyMem_RawFree(crew->workers);
    PyMem_RawFree(crew->lanes);
    Py_XDECREF(crew->functions);
    Py_XDECREF(crew->known);
    Py_XDECREF(crew->broken);
    Py_XDECREF(crew->interrupt);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *Crew_get_broken(PyObject *self, void *Py_UNUSED(closure))
{
    PyObject *broken = crew_of(self)->broken;
    return Py_NewRef(broken == NULL ? Py_None : broken);
}

static PyObject *Crew_get_is_here(PyObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(mpx_crew_is_here(crew_of(self)));
}

static PyObject *Crew_get_unfinished(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(mpx_u32_load_relaxed(&crew_of(self)->unfinished));
}

PyDoc_STRVAR(Crew_doc, "The parent's side of a pool; the base of the one in _engine.");

static PyMethodDef Crew_methods[] = {
    {"_make", Crew_make, METH_O, Crew_make_doc},
    {"_be_executor", Crew_be_executor, METH_NOARGS, Crew_be_executor_doc},
    {"_take", Crew_take, METH_VARARGS, Crew_take_doc},
    {"_begin", (PyCFunction)(void (*)(void))Crew_begin, METH_FASTCALL, Crew_begin_doc},
    {"_begin_call", (PyCFunction)(void (*)(void))Crew_begin_call, METH_FASTCALL,
     Crew_begin_call_doc},
    {"_feed", Crew_feed, METH_VARARGS, Crew_feed_doc},
    {"_abandon", Crew_abandon, METH_VARARGS, Crew_abandon_doc},
    {"_curtail", Crew_curtail, METH_VARARGS, Crew_curtail_doc},
    {"_cancel", Crew_cancel, METH_VARARGS, Crew_cancel_doc},
    {"_withdraw", Crew_withdraw, METH_O, Crew_withdraw_doc},
    {"_jobs", Crew_jobs, METH_NOARGS, Crew_jobs_doc},
    {"_break", Crew_break, METH_O, Crew_break_doc},
    {"_next_settled", Crew_next_settled, METH_NOARGS, Crew_next_settled_doc},
    {"_set_done", Crew_set_done, METH_O, Crew_set_done_doc},
    {"_serve", Crew_serve, METH_NOARGS, Crew_serve_doc},
    {"_close", Crew_close, METH_NOARGS, Crew_close_doc},
    {"_be_over", Crew_be_over, METH_NOARGS, Crew_be_over_doc},
    {"turn", Crew_turn, METH_NOARGS, Crew_turn_doc},
    {"aside", Crew_aside, METH_NOARGS, Crew_aside_doc},
    {"_drain", Crew_drain, METH_O, Crew_drain_doc},
    {"_add_lane", Crew_add_lane, METH_NOARGS, Crew_add_lane_doc},
    {"_lane", Crew_lane, METH_O, Crew_lane_doc},
    {"_open", Crew_open, METH_VARARGS, Crew_open_doc},
    {"_stop", Crew_stop, METH_O, Crew_stop_doc},
    {"_bury", Crew_bury, METH_VARARGS, Crew_bury_doc},
    {NULL, NULL, 0, NULL},
};

static PyObject *Crew_get_ready(PyObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(mpx_u32_load_relaxed(&crew_of(self)->ready));
}

static PyMemberDef Crew_members[] = {
    {"_looks_at_memory", T_BOOL, offsetof(CrewObject, looks_at_memory), 0,
     "whether who drives is to call _look_at_memory() now and then"},
    {NULL, 0, 0, 0, NULL},
};

static PyGetSetDef Crew_getset[] = {
    {"_broken", Crew_get_broken, NULL, "why no job is done any more, or None", NULL},
    {"_is_here", Crew_get_is_here, NULL, "whether this process has made it", NULL},
    {"_unfinished", Crew_get_unfinished, NULL, "how many jobs are not done", NULL},
    {"_ready", Crew_get_ready, NULL, "how many workers take tasks", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot Crew_slots[] = {
    {Py_tp_doc, (void *)Crew_doc},
    {Py_tp_new, Crew_new},
    {Py_tp_traverse, Crew_traverse},
    {Py_tp_clear, Crew_clear},

    {Py_tp_dealloc, Crew_dealloc},
    {Py_tp_methods, Crew_methods},
    {Py_tp_members, Crew_members},
    {Py_tp_getset, Crew_getset},
    {0, NULL},
};

static PyType_Spec Crew_spec = {
    .name = "mproc_ext._core.Crew",
    .basicsize = sizeof(CrewObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = Crew_slots,
};

PyDoc_STRVAR(
    serve_pools_doc,
    "serve_pools(timeout_error, failure, unsendable, apply, /)\n--\n\n"
    "What the types of pools need of Python: an exception; what makes one that can be sent "
    "of another\none; the same of what cannot be pickled; and what calls a function.");

static PyObject *serve_pools(PyObject *module, PyObject *args)
{
    module_state_t *state = module_state(module);
    PyObject *timeout_error, *failure, *unsendable, *apply;
    if (!PyArg_ParseTuple(args, "OOOO:serve_pools", &timeout_error, &failure, &unsendable, &apply))
        return NULL;
    mpx_state_set(module, &state->pool_timeout_error, timeout_error);
    mpx_state_set(module, &state->pool_failure, failure);
    mpx_state_set(module, &state->pool_unsendable, unsendable);
    mpx_state_set(module, &state->pool_apply, apply);
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"serve_pools", serve_pools, METH_VARARGS, serve_pools_doc},
    {NULL, NULL, 0, NULL},
};

static int add_constants(PyObject *module)
{
    static const struct {
        const char *name;
        long value;
    } constants[] = {
        {"JOB_ONE", MPX_JOB_ONE},         {"JOB_ALL", MPX_JOB_ALL},
        {"JOB_ORDERED", MPX_JOB_ORDERED}, {"JOB_UNORDERED", MPX_JOB_UNORDERED},
        {"ORDER_CALL", MPX_ORDER_CALL},   {"ORDER_STAR", MPX_ORDER_STAR},
        {"ORDER_CHUNK", MPX_ORDER_CHUNK}, {"ORDER_STARCHUNK", MPX_ORDER_STARCHUNK},
        {"ORDER_APPLY", MPX_ORDER_APPLY}, {"SERVICE_CALLBACKS", MPX_SERVICE_CALLBACKS},
        {"SERVICE_END", MPX_SERVICE_END},
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(constants); i++) {
        if (PyModule_AddIntConstant(module, constants[i].name, constants[i].value) < 0)
            return -1;
    }
    return 0;
}

int mpx_add_crew(PyObject *module)
{
    module_state_t *state = module_state(module);
    state->crew_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Crew_spec,
                                                                (PyObject *)state->shared_type);
    state->turn_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &Turn_spec, NULL);
    if (state->crew_type == NULL || PyModule_AddType(module, state->crew_type) < 0 ||
        state->turn_type == NULL || add_constants(module) < 0)
        return -1;
    return PyModule_AddFunctions(module, functions);
}
