/* engine.h - what pools and executors are made of: jobs, and the crew that does their tasks.
 *
 * A *job* is what one call of a program asks for, and what it waits for: of one task (apply), or of
 * many (map, imap). A task is one message to one worker, and one back.
 *
 * A *crew* (crew.c) is the parent's side: it gives the tasks of its jobs to the lanes of its
 * workers (mpx_crew.h), a window of some tasks for each, and collects the results. It has no thread
 * for that: whoever waits for a job *drives* the crew meanwhile, one thread at a time; the others
 * follow, until their job is done or it is their turn. A service thread (mproc_ext/_engine.py)
 * drives when nobody waits and there is something to do, and runs callbacks.
 *
 * The driver may run code of the program's: pickling an argument, unpickling a result, the next
 * item of an iterable. That may come back here and drive again, in the same thread. So whenever
 * such code runs, everything is whole, and nothing that was looked up before counts after it.
 *
 * A worker's side is worker.c. Processes, and what becomes of them, are Python's: _engine.py.
 */
#ifndef MPX_PY_ENGINE_H
#define MPX_PY_ENGINE_H

#include "module.h"

#include "mpx_crew.h"
#include "serialize.h"
#include "shared.h"

/* What a record asks a worker to do; above that, flags. */
enum mpx_order {
    MPX_ORDER_STOP = 1,  /* end, after what is done */
    MPX_ORDER_FUNCTION,  /* know this function by that number */
    MPX_ORDER_CALL,      /* function(x) */
    MPX_ORDER_STAR,      /* function(*x) */
    MPX_ORDER_CHUNK,     /* [function(x) for x in xs] */
    MPX_ORDER_STARCHUNK, /* [function(*x) for x in xs] */
    MPX_ORDER_APPLY,     /* function(*args, **kwds) of (args, kwds) */
};
#define MPX_ORDER_MASK          UINT32_C(0xff)
#define MPX_ORDER_WITH_FUNCTION 0x100  /* the payload is (function, payload) */
#define MPX_ORDER_IN_BLOCK      0x200  /* the payload is an mpx_parcel_note_t */
#define MPX_ORDER_TIMED         0x400  /* say when it is begun */
#define MPX_ORDER_KEPT          0x800  /* the parent keeps the block */
#define MPX_ORDER_LISTED        0x1000 /* a chunk of one: a result is shown as a list */

/* What a worker answers. */
enum mpx_answer {
    MPX_ANSWER_VALUE = 1,
    MPX_ANSWER_ERROR,
    MPX_ANSWER_BEGUN, /* to no task: the program's initializer is about to run */
    MPX_ANSWER_READY, /* to no task: it is about to take the first one */
    MPX_ANSWER_NOTE,  /* to no task: an exception, why it could not begin */
};
#define MPX_ANSWER_IN_BLOCK 0x200

/* ---- Jobs: job.c ----------------------------------------------------------------------------- */

typedef struct CrewObject CrewObject;
typedef struct JobObject JobObject;

typedef enum {
    MPX_JOB_ONE,       /* one task, whose result is the job's */
    MPX_JOB_ALL,       /* a list of all results */
    MPX_JOB_ORDERED,   /* results that are handed out one by one, in order */
    MPX_JOB_UNORDERED, /* the same as they come */
} mpx_job_kind_t;

typedef enum {
    MPX_JOB_OPEN,    /* not all results are there */
    MPX_JOB_SETTLED, /* they are; a callback is to be called first */
    MPX_JOB_DONE,
} mpx_job_state_t;

struct JobObject {
    PyObject_HEAD module_state_t *module_state; /* NULL: it was not begun */
    CrewObject *crew;                           /* until it is done; NULL then */
    JobObject *previous, *next; /* of the crew's unfinished jobs, which hold a reference */
    JobObject *next_to_send;    /* of those that have tasks to send, or of the settled ones */
    JobObject *previous_to_send;
    bool is_in_queue;
    mpx_job_kind_t kind;
    mpx_atomic_u32 state; /* an mpx_job_state_t */
    mpx_atomic_u32 watch; /* bits of enum mpx_watch */
    bool has_failed;
    bool is_cancelled;
    bool is_executor; /* of an executor */
    uint32_t order;   /* enum mpx_order */
    PyObject *function;
    PyObject *pool;          /* is to live until the job is done; or NULL */
    PyObject *items;         /* an iterator; of ONE, the argument; NULL: no more to send */
    int32_t function_number; /* -1: not looked up; -2: it goes with each task */
    Py_ssize_t chunk;        /* items of a task */
    Py_ssize_t length;       /* items of all; -1: not known yet */
    Py_ssize_t sent;         /* tasks, from the first on */
    Py_ssize_t open;         /* tasks that were sent and have no result */
    Py_ssize_t retries;
    Py_ssize_t ahead;    /* of ORDERED and UNORDERED: how many tasks may be ahead of the reader */
    Py_ssize_t finished; /* tasks that have a result */
    int64_t timeout;     /* of a task, nanoseconds; 0: none */
    bool is_left;        /* nobody reads the results any more */
    bool is_fed;         /* a thread of its own draws the items: see mpx_job_feed */
    bool is_fed_up;      /* it has drawn all */
    bool is_last;        /* that thread's own */
    PyObject **feed;     /* a ring of what it has drawn */
    Py_ssize_t feed_size, feed_from, fed;
    Py_ssize_t drawn;          /* how many it has asked for */
    PyObject *feed_error;      /* comes after those */
    mpx_atomic_u32 feed_turns; /* a futex */
    mpx_atomic_u32 is_feeder_asleep;
    mpx_atomic_ptr cell; /* of ONE: that of its task, in the lane that has it; or NULL */
    PyObject *said;      /* of a future: the state that was told to who waits; or NULL */
    PyObject *value;     /* the result, the list of results, or the exception */
    PyObject **ring;     /* results to be handed out: see job.c */
    Py_ssize_t ring_size, taken, there;
};

static inline mpx_job_state_t mpx_job_state(JobObject *job)
{
    return (mpx_job_state_t)mpx_u32_load_acquire(&job->state); /* C9: with C8 */
}

/* Whether Python code is to be told by the service thread when all results are there. Who comes too
 * late for that finds the bit that says so. */
enum mpx_watch { MPX_WATCHED = 1, MPX_SEALED = 2 };

/* Has Python code told; false: the results are there already. */
bool mpx_job_watch(JobObject *job);

/* Of ONE: its task is in that cell, or in none. `is_next`: it counts as begun, as a worker that
 * starts has it as its first. */
void mpx_job_note_cell(JobObject *job, mpx_atomic_u32 *cell, bool is_next);
bool mpx_job_is_begun(JobObject *job);

/* A result of a task; steals the value. Of an exception, `is_error`. Runs no Python code. */
void mpx_job_deliver(JobObject *job, Py_ssize_t index, bool is_error, PyObject *value);

/* The job has that exception as its result, if it has none yet; steals it. */
void mpx_job_fail(JobObject *job, PyObject *error);

/* All that was to be sent has been: `length` is known. */
void mpx_job_end_input(JobObject *job);

/* Whether all its results are there. */
bool mpx_job_is_complete(const JobObject *job);

/* Items of an iterator that may run code of the program's, or wait, are drawn by a thread that does
 * nothing else: else who waits for a result would wait for the next item. Whether this job needs
 * it; what that thread does, until it is over; the next item (NULL, perhaps with an exception:
 * there is none); drops those that there are; wakes it where there is room, or nothing to do any
 * more. */
bool mpx_job_needs_feeder(JobObject *job);
int mpx_job_feed(JobObject *job, CrewObject *crew, bool is_eager);
PyObject *mpx_job_take_fed(JobObject *job);
void mpx_job_drop_fed(JobObject *job);
void mpx_job_wake_feeder(JobObject *job);

/* Whether it may send a task now. */
bool mpx_job_may_send(const JobObject *job);

/* How many tasks are still to be sent; PY_SSIZE_T_MAX where that is not known. */
Py_ssize_t mpx_job_left_to_send(const JobObject *job);

/* ---- The crew: crew.c ------------------------------------------------------------------------ */

/* A task in a lane. */
typedef struct {
    JobObject *job; /* NULL: none, or its result does not matter any more */
    Py_ssize_t index;
    uint64_t end;  /* where its record ends */
    uint32_t size; /* of that */
    uint32_t kind; /* order and flags */
    uint32_t function;
    mpx_block_t block; /* or 0 */
    PyObject *kept;    /* its payload, if it may be done again; or NULL */
    Py_ssize_t tries;
} mpx_task_t;

typedef struct {
    mpx_lane_t lane;
    int sentinel;          /* readable once the worker has ended; -1: there is none */
    bool is_open;          /* it takes tasks */
    bool is_stopped;       /* it was told to end, or is to be */
    bool is_untold;        /* there was no room to tell it so */
    bool is_damaged;       /* what it has answered makes no sense */
    bool is_buried;        /* it has ended, and what it has left is still in the lane */
    uint32_t stage;        /* what it has said of that last, or 0 */
    uint32_t oldest, next; /* the numbers of its tasks: those that are not free, and the next one */
    uint32_t open;         /* tasks without a result */
    uint32_t window;       /* how many it may have */
    uint32_t timed;        /* tasks with a timeout */
    uint64_t sent;         /* tasks, to this worker */
    int64_t since;         /* when `answers` began to count */
    uint32_t answers;
    PyObject *reason;         /* why it is killed: the exception of the task that it is in */
    PyObject *note;           /* what it has said of itself; or NULL */
    unsigned char known[128]; /* functions, a bit each */
    mpx_task_t tasks[MPX_CREW_CELLS]; /* from `oldest` on, up to `next`; the others are no value */
} mpx_worker_t;

static inline mpx_task_t *mpx_task_at(mpx_worker_t *worker, uint32_t number)
{
    return worker->tasks + (number & (MPX_CREW_CELLS - 1));
}

/* A task that waits for a lane. */
typedef struct mpx_pending {
    struct mpx_pending *next;
    JobObject *job;
    Py_ssize_t index, tries;
    uint32_t kind; /* order and flags */
    uint32_t function;
    PyObject *bytes; /* the payload; NULL: it is in the block */
    mpx_block_t block;
    uint64_t size;
} mpx_pending_t;

struct CrewObject {
    MPX_SHARED_HEAD
    mpx_crew_t crew;
    module_state_t *state;
    uint64_t parent; /* the process that has made it, as its word */

    mpx_atomic_u64 driver;    /* a thread, or 0 */
    unsigned depth;           /* how often it drives */
    mpx_atomic_u32 turns;     /* a futex: changes when a driver leaves, or a job is done */
    mpx_atomic_u32 followers; /* who sleeps on it */
    mpx_atomic_u32 wanted;    /* threads that are to have their turn before the driver goes on */
    mpx_atomic_u32 is_asleep; /* the driver is */
    mpx_atomic_u32 calls;     /* how often it was to look */
    mpx_atomic_u64 left_at;   /* when a driver left last */
    mpx_wait_mood_t mood;

    mpx_atomic_u32 kicks;               /* a futex, of the service thread */
    mpx_atomic_u32 service_sleeps;      /* how */
    mpx_atomic_u64 service;             /* that thread, or 0 */
    mpx_atomic_u32 unfinished, settled; /* how many jobs are */
    mpx_atomic_u32 watched;             /* of those: whose results somebody is to be told */
    mpx_atomic_u32 is_closing;          /* the service thread is to end once there is no job */
    mpx_atomic_u32 is_over;             /* the interpreter ends: nobody drives any more */

    mpx_worker_t **workers;
    mpx_lane_t **lanes; /* theirs */
    Py_ssize_t count;
    uint32_t changes;      /* counts what makes a worker that was looked up another one */
    bool is_blind;         /* without pidfds: a worker's child may keep its sentinel from telling */
    unsigned looks;        /* at the sentinels */
    bool has_gap;          /* a lane may be without a worker, and nobody has looked since */
    Py_ssize_t most_tasks; /* of a worker; 0: any number */
    bool looks_at_memory;  /* Python code is to be called with each tick */
    mpx_atomic_u32 ready;  /* workers that take tasks */
    mpx_atomic_u32 ending; /* workers that are about to end, at the last look */
    bool is_executor;      /* of one, not of a pool */
    JobObject *jobs;       /* all unfinished ones */
    JobObject *first_to_send, *last_to_send;
    JobObject *first_settled, *last_settled;
    mpx_pending_t *pending, *last_pending;
    Py_ssize_t open; /* tasks in lanes */
    Py_ssize_t timed;
    int64_t next_tick;
    PyObject *functions; /* a dict: the address of a function, its number */
    PyObject *known;     /* a list: (function, its pickle) */
    PyObject *broken;    /* an exception: no job is done any more; or NULL */
    PyObject
        *interrupt; /* what a signal's handler has raised in the middle of a task's code; or NULL */
    uint64_t interrupted; /* the thread that is to raise it */
};

static inline bool mpx_crew_is_here(CrewObject *crew)
{
    return crew->parent == mpx_os_own_word();
}

/* crew_send.c: gives tasks to workers that have room; whether it gave any. */
bool mpx_crew_send(CrewObject *crew);

/* crew_send.c: has a task, of which the worker has begun nothing or is dead, done by another. */
void mpx_crew_put_back(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task);
void mpx_crew_drop_pending(CrewObject *crew, JobObject *job);

/* crew_collect.c: takes what the workers have answered; whether there was anything. */
bool mpx_crew_collect(CrewObject *crew);
bool mpx_crew_collect_from(CrewObject *crew, mpx_worker_t *worker);

/* crew_collect.c: the task has its result, or needs none. Drops the reference to its job, which it
 * returns as the caller's. */
JobObject *mpx_crew_close_task(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task);

/* crew_collect.c: that is its result, of which the reference is taken over. */
void mpx_crew_deliver(CrewObject *crew, mpx_worker_t *worker, mpx_task_t *task, bool is_error,
                      PyObject *value);

/* crew.c: the job may be complete: then it is done, or its callbacks are called. */
void mpx_crew_check(CrewObject *crew, JobObject *job);

/* crew.c: has the worker end after what it has to do; false: there is no room to say so yet, and
 * the driver will. */
bool mpx_crew_stop(mpx_worker_t *worker);

/* crew.c: the job has something to send; or nothing any more: the queue's reference is the
 * caller's. */
void mpx_crew_enqueue(CrewObject *crew, JobObject *job);
void mpx_crew_take_from_queue(CrewObject *crew, JobObject *job);

/* crew_drive.c: the right to drive: what follows may be done only with it. */
bool mpx_crew_try_drive(CrewObject *crew);
void mpx_crew_leave(CrewObject *crew);
int mpx_crew_take_turn(CrewObject *crew);

/* crew_drive.c: whether the exception that is set is no error of the code that it came out of, but
 * was raised by a signal's handler in the middle of it. Then it is taken, and that code is to be
 * run again; raised is it by the second one, if this is the thread that it came to. */
bool mpx_crew_take_interrupt(CrewObject *crew);
bool mpx_crew_raise_interrupt(CrewObject *crew);

/* Attempts to run such code: a handler may raise each time. */
#define MPX_CREW_ATTEMPTS 5

/* crew_drive.c: the worker may have done its last task: has somebody look soon whether it has
 * ended. */
void mpx_crew_note_end(CrewObject *crew, const mpx_worker_t *worker);

/* crew_drive.c: wakes who may wait for what has happened. */
void mpx_crew_tell(CrewObject *crew);
void mpx_crew_wake_driver(CrewObject *crew);

/* crew_drive.c: wakes the service thread; where it is not urgent, only if it sleeps for long. */
void mpx_crew_kick(CrewObject *crew, bool is_urgent);

/* crew_drive.c: a turn of the service thread: what it is to do, -1 with an exception. */
enum mpx_service { MPX_SERVICE_LOOK, MPX_SERVICE_CALLBACKS, MPX_SERVICE_DRIVE, MPX_SERVICE_END };
int mpx_crew_serve(CrewObject *crew);

/* Waits until ready(job) or the deadline: 1, 0, or -1 with an exception. */
typedef bool mpx_job_ready_t(JobObject *job);
int mpx_crew_wait(CrewObject *crew, JobObject *job, mpx_job_ready_t *ready, int64_t deadline);

/* The job may have something to send that it had not before. */
void mpx_crew_look_at(CrewObject *crew, JobObject *job);

/* A buffer that goes on in a block of the heap where it is long: what payloads are written to. */
typedef struct {
    mpx_buffer_t buffer; /* the first member: its grower finds the rest by it */
    mpx_crew_t *crew;
    mpx_block_t block; /* this process's own; or 0 */
    char small[MPX_CREW_INLINE];
} mpx_draft_t;

/* draft.c */
void mpx_draft_begin(mpx_draft_t *draft, mpx_crew_t *crew);
void mpx_draft_end(mpx_draft_t *draft);

/* The namespace of what pools send. */
mpx_namespace_t mpx_engine_namespace(module_state_t *state);

/* The exception that is set, normalised, with its traceback: a new reference. */
PyObject *mpx_take_exception(void);

/* Why a long payload cannot be read, which mpx_crew_parcel says; `damage` is for -EPROTO. */
void mpx_raise_unread(int status, const char *damage);

#endif
