/* crew_drive.c - who drives a crew, and how the others wait; see engine.h.
 *
 * The right to drive is a word with the thread that has it, which may take it again. Who cannot
 * have it follows: sleeps until a job is done, or the driver leaves. Who wants it for something
 * short that is not to wait (resize, terminate) says so, and the driver leaves.
 */
#include "engine.h"

#include <errno.h>
#include <limits.h>

/* How often the driver looks for workers that have ended, and for tasks that have taken too long.
 */
#define TICK       (20 * MPX_NANOS_PER_MILLI)
#define TICK_TIMED (5 * MPX_NANOS_PER_MILLI)

/* The same while a worker is about to end that has no task any more: its place is another's then.
 */
#define TICK_ENDING (2 * MPX_NANOS_PER_MILLI)

/* Where sentinels may not tell, each worker is asked for with every so manyth look. */
#define BLIND_LOOKS 10

/* So long nobody has driven before the service thread does: who waits for one result after the
 * other comes back sooner. */
#define GAP MPX_NANOS_PER_MILLI

/* So often the service thread looks whether nobody drives, and after so many looks at a crew that
 * has no job it sleeps until it is woken. */
#define IDLE_LOOKS 50

/* How long it sleeps then, before it looks for workers that have ended. */
#define IDLE_SLEEP (MPX_NANOS_PER_SEC / 2)

/* The longest time that it drives before it looks who else is there. */
#define SHIFT (50 * MPX_NANOS_PER_MILLI)

/* ---- The right to drive ---------------------------------------------------------------------- */

bool mpx_crew_try_drive(CrewObject *crew)
{
    uint64_t me = (uint64_t)PyThread_get_thread_ident(), nobody = 0;
    if (mpx_u64_load_relaxed(&crew->driver) == me) {
        crew->depth++;
        return true;
    }
    if (!mpx_u64_cas_acquire(&crew->driver, &nobody, me)) /* M1: with M0 */
        return false;
    crew->depth = 1;
    return true;
}

void mpx_crew_tell(CrewObject *crew)
{
    (void)mpx_u32_fetch_add_acq_rel(&crew->turns, 1); /* M2: with M3 */
    if (mpx_u32_load_relaxed(&crew->followers) > 0)
        (void)mpx_os_futex_wake(&crew->turns, INT_MAX);
}

void mpx_crew_leave(CrewObject *crew)
{
    if (--crew->depth > 0)
        return;
    mpx_u64_store_relaxed(&crew->left_at, (uint64_t)mpx_os_tick());
    mpx_u64_store_release(&crew->driver, 0); /* M0: with M1 */
    mpx_crew_tell(crew);
    if (mpx_u32_load_relaxed(&crew->watched) > 0)
        mpx_crew_kick(crew, true);
}

/* The driver is to look at what has changed. */
void mpx_crew_wake_driver(CrewObject *crew)
{
    (void)mpx_u32_fetch_add_acq_rel(&crew->calls, 1); /* W6: with W7 */
    if (mpx_u32_load_relaxed(&crew->is_asleep))
        mpx_crew_ring(&crew->crew);
}

/* Sleeps until something has happened, or a while. 0; or -1 with an exception of a signal's. */
static int follow(CrewObject *crew, uint32_t turns, int64_t deadline)
{
    int64_t piece = mpx_piece_of(deadline);
    int status = 0;
    (void)mpx_u32_fetch_add_acq_rel(&crew->followers, 1);
    Py_BEGIN_ALLOW_THREADS
    if (mpx_u32_fetch_add_acq_rel(&crew->turns, 0) == turns) /* M3: with M2 */
        status = mpx_os_futex_wait(&crew->turns, turns, piece);
    Py_END_ALLOW_THREADS(void)
    mpx_u32_fetch_add_acq_rel(&crew->followers, UINT32_MAX);
    return status == -EINTR || status == -ETIMEDOUT ? PyErr_CheckSignals() : 0;
}

static uint32_t turns_now(CrewObject *crew)
{
    return mpx_u32_load_acquire(&crew->turns); /* M3: with M2 */
}

int mpx_crew_take_turn(CrewObject *crew)
{
    int status = 0;
    (void)mpx_u32_fetch_add_acq_rel(&crew->wanted, 1);
    for (;;) {
        uint32_t turns = turns_now(crew);
        if (mpx_crew_try_drive(crew))
            break;
        mpx_crew_wake_driver(crew);
        status = follow(crew, turns, MPX_NEVER);
        if (status < 0)
            break;
    }
    (void)mpx_u32_fetch_add_acq_rel(&crew->wanted, UINT32_MAX);
    if (status < 0)
        mpx_crew_tell(crew); /* others may have left it to this one */
    return status;
}

/* ---- Interrupts ------------------------------------------------------------------------------ */

/* Ctrl-C, and whatever a signal's handler raises, may come while this thread runs code of a task
 * that it does not wait for: pickles arguments, or reads a result. It is the program's, no error of
 * that task: the code is run again, and the thread hears of it after that. */

static bool is_interrupt(CrewObject *crew, PyObject *error)
{
    if (PyErr_GivenExceptionMatches(error, PyExc_KeyboardInterrupt))
        return true;
    PyObject *answer = PyObject_CallMethod((PyObject *)crew, "_is_interrupt", "O", error);
    if (answer == NULL) /* the next one has come, which counts, and the code will say itself */
        Py_XSETREF(crew->interrupt, mpx_take_exception());
    bool is = answer != Py_False;
    Py_XDECREF(answer);
    return is;
}

bool mpx_crew_take_interrupt(CrewObject *crew)
{
    if (!PyErr_Occurred())
        return false;
    PyObject *error = mpx_take_exception(), *before = crew->interrupt;
    if (!is_interrupt(crew, error)) {
        PyErr_SetObject((PyObject *)Py_TYPE(error), error);
        Py_DECREF(error);
        return false;
    }
    if (crew->interrupt == before)
        Py_XSETREF(crew->interrupt, Py_NewRef(error));
    crew->interrupted = (uint64_t)PyThread_get_thread_ident();
    Py_DECREF(error);
    return true;
}

bool mpx_crew_raise_interrupt(CrewObject *crew)
{
    if (MPX_LIKELY(crew->interrupt == NULL) ||
        crew->interrupted != (uint64_t)PyThread_get_thread_ident())
        return false;
    PyObject *interrupt = crew->interrupt;
    crew->interrupt = NULL;
    PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
    Py_DECREF(interrupt);
    return true;
}

/* ---- Driving --------------------------------------------------------------------------------- */

static bool has_answer(CrewObject *crew)
{
    for (Py_ssize_t i = 0; i < crew->count; i++) {
        if (mpx_spsc_has_record(&crew->lanes[i]->results))
            return true;
    }
    return false;
}

/* Waits for an answer, or that somebody calls, who did so last before this one has looked. 0,
 * -ETIMEDOUT, -EINTR. */
static int nap(CrewObject *crew, uint32_t calls, int64_t deadline)
{
    int status = 0;
    uint32_t heard = mpx_crew_listen(&crew->crew);
    mpx_u32_store_relaxed(&crew->is_asleep, 1);
    /* Who calls from here on sees that this one sleeps, and rings. */
    bool is_called = mpx_u32_fetch_add_acq_rel(&crew->calls, 0) != calls; /* W7: with W6 */
    Py_BEGIN_ALLOW_THREADS
    for (unsigned tries = 0;
         !is_called && !has_answer(crew) && mpx_crew_listen(&crew->crew) == heard; tries++) {
        if (!mpx_wait_yields(&crew->mood, tries, deadline)) {
            status = mpx_crew_sleep(&crew->crew, heard, crew->lanes, (size_t)crew->count, deadline);
            break;
        }
    }
    Py_END_ALLOW_THREADS
    mpx_u32_store_relaxed(&crew->is_asleep, 0);
    return status;
}

static int maintain(CrewObject *crew)
{
    /* Ctrl-C ends workers too: the program is to hear of that first. */
    if (PyErr_CheckSignals() < 0)
        return -1;
    crew->has_gap = false;
    PyObject *done = PyObject_CallMethod((PyObject *)crew, "_maintain", NULL);
    if (done == NULL)
        crew->has_gap = true; /* it may have been interrupted anywhere */
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Workers that have ended are Python's to replace. */
static int look_for_ended(CrewObject *crew)
{
    struct pollfd fds[64];
    if (crew->has_gap || (crew->is_blind && ++crew->looks % BLIND_LOOKS == 0))
        return maintain(crew);
    for (Py_ssize_t from = 0; from < crew->count; from += (Py_ssize_t)MPX_ARRAY_LENGTH(fds)) {
        Py_ssize_t count = Py_MIN(crew->count - from, (Py_ssize_t)MPX_ARRAY_LENGTH(fds));
        for (Py_ssize_t i = 0; i < count; i++)
            fds[i] = (struct pollfd){.fd = crew->workers[from + i]->sentinel, .events = POLLIN};
        bool any = mpx_os_poll(fds, (size_t)count, 0) > 0;
        for (Py_ssize_t i = 0; i < count; i++)
            any |= crew->workers[from + i]->is_damaged;
        if (any)
            return maintain(crew);
    }
    return 0;
}

/* Has the worker killed that is in the middle of a task for too long. */
static int look_at_time(CrewObject *crew, Py_ssize_t place, int64_t now)
{
    mpx_worker_t *worker = crew->workers[place];
    uint32_t number = mpx_u32_load_acquire(&worker->lane.room->begun); /* M5: with M4 */
    int64_t begun_at = (int64_t)mpx_u64_load_relaxed(&worker->lane.room->begun_at);
    mpx_task_t *task = mpx_task_at(worker, number);
    if (begun_at == 0 /* it has begun nothing yet */ ||
        number - worker->oldest >= worker->next - worker->oldest || task->job == NULL ||
        task->job->timeout == 0 || now - begun_at < task->job->timeout ||
        !mpx_lane_doom(&worker->lane, number))
        return 0;
    PyObject *error = PyObject_CallMethod((PyObject *)crew, "_make_timeout", "nOn", place,
                                          task->job, task->index);
    if (error == NULL)
        return -1;
    Py_XSETREF(worker->reason, error);
    worker->is_stopped = true;
    PyObject *done = PyObject_CallMethod((PyObject *)crew, "_kill", "n", place);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* Whether it ends by itself: it was told so, or has done as many tasks as it may. */
static bool is_ending(const CrewObject *crew, const mpx_worker_t *worker)
{
    return worker->sentinel >= 0 && worker->open == 0 &&
           (worker->is_stopped ||
            (crew->most_tasks > 0 && worker->sent >= (uint64_t)crew->most_tasks));
}

void mpx_crew_note_end(CrewObject *crew, const mpx_worker_t *worker)
{
    if (!is_ending(crew, worker) || mpx_u32_load_relaxed(&crew->ending) > 0)
        return;
    mpx_u32_store_relaxed(&crew->ending, 1);
    crew->next_tick = Py_MIN(crew->next_tick, mpx_os_now() + TICK_ENDING);
}

static void count_ending(CrewObject *crew)
{
    uint32_t ending = 0;
    for (Py_ssize_t i = 0; i < crew->count; i++)
        ending += is_ending(crew, crew->workers[i]);
    mpx_u32_store_relaxed(&crew->ending, ending);
}

/* Workers that have more than their limit are Python's to kill. */
static int look_at_memory(CrewObject *crew)
{
    PyObject *done = PyObject_CallMethod((PyObject *)crew, "_look_at_memory", NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

static int tick(CrewObject *crew, int64_t now)
{
    int status = look_for_ended(crew);
    if (status == 0 && crew->looks_at_memory)
        status = look_at_memory(crew);
    for (Py_ssize_t i = 0; status == 0 && i < crew->count; i++) {
        if (crew->workers[i]->is_untold)
            (void)mpx_crew_stop(crew->workers[i]);
        if (crew->workers[i]->timed > 0 && !crew->workers[i]->is_buried)
            status = look_at_time(crew, i, now);
    }
    count_ending(crew);
    crew->next_tick = mpx_os_now() + (mpx_u32_load_relaxed(&crew->ending) > 0 ? TICK_ENDING
                                      : crew->timed > 0                       ? TICK_TIMED
                                                                              : TICK);
    Py_BEGIN_ALLOW_THREADS /* others may wait for the GIL while answers come and come */
    Py_END_ALLOW_THREADS
    return status;
}

enum { TIMED_OUT, READY, LEFT, CHECK };

/* Of the service thread, which has callbacks to call besides. */
static bool has_nothing_to_drive(CrewObject *crew)
{
    return mpx_u32_load_relaxed(&crew->unfinished) == 0 || mpx_u32_load_relaxed(&crew->settled) > 0;
}

/* Until ready(job) (NULL: until there is nothing to drive), or the deadline, or somebody wants to
 * drive. CHECK: handlers of signals may be due, which are to run when others may drive, for whom
 * they may wait; *checked: they have run. -1 with an exception. */
static int drive(CrewObject *crew, JobObject *job, mpx_job_ready_t *ready, int64_t deadline,
                 bool *checked)
{
    for (;;) {
        uint32_t calls = mpx_u32_load_acquire(&crew->calls); /* W7: with W6 */
        bool news = mpx_crew_collect(crew);
        news |= mpx_crew_send(crew);
        if (mpx_crew_raise_interrupt(crew))
            return -1;
        if (job != NULL ? ready(job) : has_nothing_to_drive(crew))
            return READY;
        if (mpx_u32_load_relaxed(&crew->wanted) > 0 && crew->depth == 1)
            return LEFT;
        int64_t now = mpx_os_now();
        if (now >= crew->next_tick) {
            if (!*checked)
                return CHECK;
            *checked = false;
            if (tick(crew, now) < 0)
                return -1;
            continue;
        }
        if (now >= deadline)
            return TIMED_OUT;
        if (!news && nap(crew, calls, Py_MIN(deadline, crew->next_tick)) == -EINTR)
            return CHECK;
    }
}

static bool is_over(CrewObject *crew)
{
    return mpx_u32_load_acquire(&crew->is_over) != 0; /* W5: with W4 */
}

static bool is_service(CrewObject *crew)
{
    return mpx_u64_load_relaxed(&crew->service) == (uint64_t)PyThread_get_thread_ident();
}

/* In the service thread a callback may wait for a job that has callbacks itself. */
static int run_settled(CrewObject *crew)
{
    if (mpx_u32_load_relaxed(&crew->settled) == 0 || !is_service(crew))
        return 0;
    PyObject *done = PyObject_CallMethod((PyObject *)crew, "_run_settled", NULL);
    Py_XDECREF(done);
    return done == NULL ? -1 : 0;
}

/* The right to drive, unless nobody is to have it any more. */
static bool begin_to_drive(CrewObject *crew)
{
    if (is_over(crew) || !mpx_crew_try_drive(crew))
        return false;
    if (!is_over(crew))
        return true;
    mpx_crew_leave(crew);
    return false;
}

static int raise_over(CrewObject *crew)
{
    Py_XDECREF(PyObject_CallMethod((PyObject *)crew, "_raise_over", NULL));
    return -1;
}

int mpx_crew_wait(CrewObject *crew, JobObject *job, mpx_job_ready_t *ready, int64_t deadline)
{
    if (!mpx_crew_is_here(crew)) {
        PyErr_SetString(PyExc_ValueError,
                        "Pool not running: it belongs to the process that has made it");
        return -1;
    }
    bool checked = false;
    for (;;) {
        uint32_t turns = turns_now(crew);
        if (mpx_crew_raise_interrupt(crew))
            return -1;
        if (ready(job))
            return 1;
        if (run_settled(crew) < 0)
            return -1;
        if ((mpx_u32_load_relaxed(&crew->wanted) == 0 ||
             mpx_u64_load_relaxed(&crew->driver) == (uint64_t)PyThread_get_thread_ident()) &&
            begin_to_drive(crew)) {
            int status = drive(crew, job, ready, deadline, &checked);
            mpx_crew_leave(crew);
            /* What Ctrl-C has done to the workers is a result too: it comes after Ctrl-C. */
            checked |= status == CHECK;
            if ((status == CHECK || status == READY) && PyErr_CheckSignals() < 0)
                return -1;
            if (status != LEFT && status != CHECK)
                return status;
            continue;
        }
        mpx_crew_wake_driver(crew);
        if (mpx_os_now() >= deadline)
            return ready(job);
        if (is_over(crew) && is_service(crew)) /* whose callback the interpreter waits for */
            return raise_over(crew);
        if (follow(crew, turns, deadline) < 0)
            return -1;
    }
}

/* ---- The service thread ---------------------------------------------------------------------- */

/* How it sleeps. */
enum { AWAKE, NAPS, SLEEPS };

void mpx_crew_kick(CrewObject *crew, bool is_urgent)
{
    (void)mpx_u32_fetch_add_acq_rel(&crew->kicks, 1); /* M6: with M7 */
    if (mpx_u32_load_relaxed(&crew->service_sleeps) >= (is_urgent ? NAPS : SLEEPS))
        (void)mpx_os_futex_wake(&crew->kicks, 1);
}

/* What there is to do for it now; LOOK: nothing. */
static enum mpx_service look_for_service(CrewObject *crew, bool has_jobs)
{
    bool is_closing = mpx_u32_load_acquire(&crew->is_closing) != 0; /* W3: with W2 */
    bool is_hurried = is_closing || mpx_u32_load_relaxed(&crew->watched) > 0;
    if (is_over(crew))
        return MPX_SERVICE_END;
    if (mpx_u32_load_relaxed(&crew->settled) > 0)
        return MPX_SERVICE_CALLBACKS;
    if (is_closing && !has_jobs)
        return MPX_SERVICE_END;
    int64_t left_at = (int64_t)mpx_u64_load_relaxed(&crew->left_at);
    if (has_jobs && mpx_u64_load_relaxed(&crew->driver) == 0 &&
        (is_hurried || mpx_os_now() - left_at > GAP))
        return MPX_SERVICE_DRIVE;
    return MPX_SERVICE_LOOK;
}

/* Nothing of Python here. It says that it sleeps before it looks: who kicks it later sees that, and
 * wakes it; what was done before an earlier kick, it sees. */
static enum mpx_service wait_for_service(CrewObject *crew)
{
    enum mpx_service todo = MPX_SERVICE_LOOK;
    bool is_idle = false, has_ending = false;
    int status = 0;
    for (int looks = 0;
         todo == MPX_SERVICE_LOOK && !((is_idle || has_ending) && status == -ETIMEDOUT); looks++) {
        has_ending = mpx_u32_load_relaxed(&crew->ending) > 0;
        is_idle = looks > IDLE_LOOKS && !has_ending;
        mpx_u32_store_relaxed(&crew->service_sleeps, is_idle ? SLEEPS : NAPS);
        uint32_t kicks = mpx_u32_fetch_add_acq_rel(&crew->kicks, 0); /* M7: with M6 */
        bool has_jobs = mpx_u32_load_relaxed(&crew->unfinished) > 0;
        todo = look_for_service(crew, has_jobs);
        if (has_jobs) {
            looks = 0;
            is_idle = has_ending = false;
        }
        int64_t most = has_ending ? TICK_ENDING : is_idle ? IDLE_SLEEP : GAP;
        if (todo == MPX_SERVICE_LOOK)
            status = mpx_os_futex_wait(&crew->kicks, kicks, mpx_os_deadline(most));
    }
    mpx_u32_store_relaxed(&crew->service_sleeps, AWAKE);
    return todo;
}

int mpx_crew_serve(CrewObject *crew)
{
    enum mpx_service todo;
    mpx_u64_store_relaxed(&crew->service, (uint64_t)PyThread_get_thread_ident());
    Py_BEGIN_ALLOW_THREADS
    todo = wait_for_service(crew);
    Py_END_ALLOW_THREADS
    if (todo == MPX_SERVICE_CALLBACKS || todo == MPX_SERVICE_END)
        return todo;
    if (mpx_u32_load_relaxed(&crew->wanted) == 0 && begin_to_drive(crew)) {
        bool checked = true; /* no handler runs in this thread */
        int status = todo == MPX_SERVICE_DRIVE
                         ? drive(crew, NULL, NULL, mpx_os_deadline(SHIFT), &checked)
                         : tick(crew, mpx_os_now());
        mpx_crew_leave(crew);
        if (status < 0)
            return -1;
    }
    return MPX_SERVICE_LOOK;
}
