/* kill_points.c - a core that can be told where to die. Only in builds with
 * MPROC_EXT_KILL_POINTS=1.
 *
 * Every MPX_STEP of the core is a point with a name. A process that has enrolled counts in a table,
 * which the processes of a test share, how often it passes each, and dies by SIGKILL where its plan
 * says so. The plan is a word in the same memory, which the test may write at any time:
 *
 *     0                        go on
 *     (number + 1) << 32 | n   die at the n-th pass of the point with that number from now on
 *     2^31-1 << 32 | n         die at the n-th pass of any
 *
 * Who asks for that finds in a note who has died, and when.
 *
 * MPROC_EXT_RECOVERY=0 in the environment makes every process one that recovers nothing (see
 * mpx_fault.h): a test that passes all the same could not have failed.
 */
#include "module.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mpx_atomic.h"
#include "mpx_fault.h"
#include "mpx_os.h"

#define ANY INT32_MAX

typedef struct {
    mpx_atomic_u64 passes;
    mpx_atomic_u64 kills;
} count_t;

/* Of who has died by its plan; the process is written last. */
typedef struct {
    mpx_atomic_u64 died_at; /* as of mpx_os_now, which is time.monotonic_ns() */
    mpx_atomic_u64 pid;
} note_t;

/* Where the linker has put them. */
extern const mpx_kill_point_t __start_mpx_points[] __attribute__((visibility("hidden")));
extern const mpx_kill_point_t __stop_mpx_points[] __attribute__((visibility("hidden")));

/* A step in an inline function is one point, and as many in the linker's list as files use it. */
static size_t *number_of; /* of each in the list */
static size_t numbers;

static Py_buffer memory;
static count_t *counts; /* NULL: not enrolled */
static mpx_atomic_u64 *plan;
static note_t *note; /* or NULL */
static bool recovers_nothing;

static size_t listed(void)
{
    return (size_t)(__stop_mpx_points - __start_mpx_points);
}

static int give_numbers(void)
{
    if (number_of != NULL)
        return 0;
    number_of = PyMem_RawCalloc(listed(), sizeof(*number_of));
    if (number_of == NULL) {
        PyErr_NoMemory();
        return -1;
    }
    for (size_t i = 0; i < listed(); i++) {
        size_t first = 0;
        while (strcmp(__start_mpx_points[first].name, __start_mpx_points[i].name) != 0)
            first++;
        number_of[i] = first == i ? numbers++ : number_of[first];
    }
    return 0;
}

/* Whether the plan is to die here and now; counts the pass down. */
static bool is_last_pass(size_t number)
{
    uint64_t seen = mpx_u64_load_relaxed(plan);
    do {
        uint32_t where = (uint32_t)(seen >> 32);
        if ((uint32_t)seen == 0 || (where != ANY && where != number + 1))
            return false;
    } while (!mpx_u64_cas_relaxed(plan, &seen, seen - 1));
    return (uint32_t)seen == 1;
}

void mpx_kill_point(const mpx_kill_point_t *point)
{
    if (counts == NULL)
        return;
    size_t number = number_of[point - __start_mpx_points];
    (void)mpx_u64_fetch_add_relaxed(&counts[number].passes, 1);
    if (is_last_pass(number)) {
        (void)mpx_u64_fetch_add_relaxed(&counts[number].kills, 1);
        if (note != NULL) {
            mpx_u64_store_relaxed(&note->died_at, (uint64_t)mpx_os_now());
            mpx_u64_store_release(&note->pid, (uint64_t)getpid()); /* with the test's read */
        }
        kill(getpid(), SIGKILL);
    }
}

bool mpx_fault(const char *site)
{
    return recovers_nothing && strcmp(site, "recovery") == 0;
}

PyDoc_STRVAR(kill_points_doc, "kill_points()\n--\n\n"
                              "The names of the points where this core can be told to die.");

static PyObject *kill_points(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored))
{
    PyObject *names = PyTuple_New((Py_ssize_t)numbers);
    size_t next = 0;
    for (size_t i = 0; names != NULL && i < listed(); i++) {
        if (number_of[i] != next)
            continue;
        PyObject *name = PyUnicode_FromString(__start_mpx_points[i].name);
        if (name == NULL || PyTuple_SetItem(names, (Py_ssize_t)next++, name) < 0)
            Py_CLEAR(names);
    }
    return names;
}

PyDoc_STRVAR(enrol_doc,
             "kill_points_enrol(memory, counts, plan, note=-1, /)\n--\n\n"
             "From now on count in the shared memory, at that offset, (passes, kills) of\n"
             "each point, and die as the plan at that offset says; at that of the note, if there "
             "is one,\n(nanoseconds, pid) says when that was.");

static PyObject *enrol(PyObject *Py_UNUSED(module), PyObject *args)
{
    Py_buffer view;
    Py_ssize_t at, plan_at, note_at = -1;
    if (!PyArg_ParseTuple(args, "w*nn|n:kill_points_enrol", &view, &at, &plan_at, &note_at))
        return NULL;
    Py_ssize_t size = (Py_ssize_t)(numbers * sizeof(count_t));
    if (counts != NULL || at < 0 || at % 8 != 0 || at > view.len - size || plan_at < 0 ||
        plan_at % 8 != 0 || plan_at > view.len - (Py_ssize_t)sizeof(*plan) ||
        (note_at >= 0 && (note_at % 8 != 0 || note_at > view.len - (Py_ssize_t)sizeof(*note)))) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "enrolled already, or an offset is none");
        return NULL;
    }
    memory = view; /* for good */
    plan = (void *)((char *)view.buf + plan_at);
    if (note_at >= 0)
        note = (void *)((char *)view.buf + note_at);
    counts = (void *)((char *)view.buf + at);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"kill_points", kill_points, METH_NOARGS, kill_points_doc},
    {"kill_points_enrol", enrol, METH_VARARGS, enrol_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_kill_points(PyObject *module)
{
    const char *recovery = getenv("MPROC_EXT_RECOVERY");
    recovers_nothing = recovery != NULL && strcmp(recovery, "0") == 0;
    return give_numbers() < 0 ? -1 : PyModule_AddFunctions(module, methods);
}
