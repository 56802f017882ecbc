/* worker.c - what a pool's worker does: takes the tasks of its lane one by one; see engine.h.
 *
 * A result is published as soon as it is there. What a killed worker leaves: see mpx_crew.h.
 */
#include "engine.h"

#include <errno.h>

#include "mpx_fault.h"

/* How long an idle worker sleeps before it looks whether its parent lives: often at first, as it
 * may also have missed a wake of a parent that was killed in the middle of one. */
#define PIECE      (50 * MPX_NANOS_PER_MILLI)
#define PIECE_IDLE (200 * MPX_NANOS_PER_MILLI)
#define PIECES     20

/* So many bytes of tasks may have been read before their room is given back, while there are more.
 */
#define UNRELEASED (MPX_CREW_TASKS / 8)

/* A function that the parent has sent. */
typedef struct {
    PyObject *pickle;
    PyObject *function; /* NULL: not looked up yet */
} known_t;

typedef struct {
    module_state_t *state;
    mpx_lane_t lane;
    known_t known[sizeof(((mpx_worker_t *)NULL)->known) * 8];
    PyObject *after; /* called after each task: true: to end; or None */
    Py_ssize_t most; /* tasks; 0: any number */
    Py_ssize_t done;
    int manners; /* of enum manners */
    bool is_idle;
    bool is_puzzled; /* it has failed to unpickle a task */
} desk_t;

/* How it is otherwise than a pool's worker. */
enum manners {
    TELLS_ALL = 1,    /* what a task raises is the task's, be it no Exception */
    ENDS_PUZZLED = 2, /* a task that cannot be unpickled ends it */
};

/* What a step has led to. */
typedef enum { GO_ON, END, FAILED } step_t;

/* ---- Waiting --------------------------------------------------------------------------------- */

/* After a piece of a wait. */
static step_t look_around(desk_t *desk, int status)
{
    if (PyErr_CheckSignals() < 0)
        return FAILED;
    return status != 0 && status != -EINTR && !mpx_crew_has_parent(desk->lane.crew) ? END : GO_ON;
}

static step_t wait_for_task(desk_t *desk)
{
    mpx_spsc_t *tasks = &desk->lane.tasks;
    mpx_spsc_release(tasks);
    desk->is_idle = true;
    for (int pieces = 0; !mpx_spsc_has_record(tasks); pieces++) {
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = mpx_spsc_wait(tasks, pieces < PIECES ? PIECE : PIECE_IDLE, MPX_NEVER);
        Py_END_ALLOW_THREADS
        step_t step = look_around(desk, status);
        if (step != GO_ON)
            return step;
    }
    desk->is_idle = false;
    return GO_ON;
}

/* Room for an answer of so many bytes. */
static step_t wait_for_room(desk_t *desk, uint32_t size, void **room)
{
    mpx_spsc_t *results = &desk->lane.results;
    while ((*room = mpx_spsc_reserve(results, size)) == NULL) {
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = mpx_spsc_wait_for_room(results, size, mpx_piece_of(MPX_NEVER));
        Py_END_ALLOW_THREADS
        step_t step = look_around(desk, status);
        if (step != GO_ON)
            return step;
    }
    return GO_ON;
}

/* ---- Answers --------------------------------------------------------------------------------- */

/* The parent may have given the task up: then this worker is about to be killed, and ends. */
static step_t publish(desk_t *desk, mpx_spsc_header_t header)
{
    if (!mpx_lane_finish(&desk->lane, header.number))
        return END;
    MPX_STEP(worker_finished);
    mpx_spsc_commit(&desk->lane.results, header);
    mpx_lane_publish_results(&desk->lane);
    MPX_STEP(worker_answered);
    return GO_ON;
}

static int never_grow(mpx_buffer_t *Py_UNUSED(buffer), size_t Py_UNUSED(needed))
{
    PyErr_NoMemory();
    return -1;
}

/* A short plain tree is written where the parent reads it; *written says whether it is one. */
static step_t answer_quickly(desk_t *desk, uint32_t number, PyObject *value, bool *written)
{
    mpx_namespace_t namespace = mpx_engine_namespace(desk->state);
    void *room;
    step_t step = wait_for_room(desk, MPX_CREW_INLINE, &room);
    *written = false;
    if (step != GO_ON)
        return step;
    mpx_buffer_t out = {.data = room, .capacity = MPX_CREW_INLINE, .grower = never_grow};
    if (!mpx_dumps_quickly(desk->state, &namespace, value, &out))
        return GO_ON;
    *written = true;
    return publish(desk, (mpx_spsc_header_t){.size = (uint32_t)out.size,
                                             .kind = MPX_ANSWER_VALUE,
                                             .number = number});
}

/* Publishes what is in the draft. */
static step_t answer_draft(desk_t *desk, uint32_t number, uint32_t kind, mpx_draft_t *draft)
{
    mpx_lane_t *lane = &desk->lane;
    mpx_parcel_note_t note = {.block = draft->block, .size = draft->buffer.size};
    bool is_in_block = draft->block != 0;
    const char *data = is_in_block ? (const char *)&note : draft->buffer.data;
    uint32_t size = is_in_block ? (uint32_t)sizeof(note) : (uint32_t)draft->buffer.size;
    void *room;
    step_t step = wait_for_room(desk, size, &room);
    if (step != GO_ON)
        return step;
    memcpy(room, data, size);
    if (is_in_block) {
        mpx_lane_note_giving(lane, draft->block);
        MPX_STEP(worker_noted);
        draft->block = 0;
        if (!mpx_crew_give_block(lane->crew, note.block)) {
            PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
            return FAILED;
        }
        MPX_STEP(worker_gave);
    }
    step = publish(desk, (mpx_spsc_header_t){.size = size,
                                             .kind = kind | (is_in_block ? MPX_ANSWER_IN_BLOCK : 0),
                                             .number = number});
    if (is_in_block && step == GO_ON)
        mpx_lane_note_giving(lane, 0);
    return step;
}

/* Appends the object to a draft, and publishes it; FAILED where it cannot be pickled: then there is
 * no answer yet. */
static step_t answer_slowly(desk_t *desk, uint32_t number, uint32_t kind, PyObject *object,
                            bool *sent)
{
    mpx_namespace_t namespace = mpx_engine_namespace(desk->state);
    mpx_draft_t draft;
    mpx_draft_begin(&draft, desk->lane.crew);
    *sent = mpx_dumps(desk->state, &namespace, object, &draft.buffer, false) == 0;
    step_t step = *sent ? answer_draft(desk, number, kind, &draft) : FAILED;
    mpx_draft_end(&draft);
    return step;
}

/* Whether the exception that is set is the task's. */
static bool is_told(const desk_t *desk)
{
    return (desk->manners & TELLS_ALL) != 0 || PyErr_ExceptionMatches(PyExc_Exception);
}

/* The exception that is set says why this cannot be sent: that is the answer. */
static step_t answer_unsendable(desk_t *desk, uint32_t number, PyObject *object)
{
    bool sent;
    if (!is_told(desk))
        return FAILED;
    PyObject *reason = mpx_take_exception();
    PyObject *error =
        PyObject_CallFunctionObjArgs(desk->state->pool_unsendable, reason, object, NULL);
    Py_DECREF(reason);
    if (error == NULL)
        return FAILED;
    step_t step = answer_slowly(desk, number, MPX_ANSWER_ERROR, error, &sent);
    Py_DECREF(error);
    return step;
}

/* The same of the one result of a chunk. */
static step_t answer_unsendable_list(desk_t *desk, uint32_t number, PyObject *value)
{
    PyObject *reason = mpx_take_exception(), *list = PyList_New(1);
    if (list != NULL)
        PyList_SET_ITEM(list, 0, Py_NewRef(value));
    PyErr_SetObject((PyObject *)Py_TYPE(reason), reason);
    Py_DECREF(reason);
    step_t step = answer_unsendable(desk, number, list != NULL ? list : value);
    Py_XDECREF(list);
    return step;
}

static step_t answer_value(desk_t *desk, const mpx_spsc_header_t *header, PyObject *value)
{
    bool written;
    step_t step = answer_quickly(desk, header->number, value, &written);
    if (MPX_LIKELY(written) || step != GO_ON)
        return step;
    step = answer_slowly(desk, header->number, MPX_ANSWER_VALUE, value, &written);
    if (step != FAILED || written)
        return step;
    return header->kind & MPX_ORDER_LISTED ? answer_unsendable_list(desk, header->number, value)
                                           : answer_unsendable(desk, header->number, value);
}

/* The exception that is set is the answer, if it is an error of the task's: those that are not mean
 * this process. */
static step_t answer_error(desk_t *desk, uint32_t number)
{
    bool sent;
    if (!is_told(desk))
        return FAILED;
    PyObject *error = mpx_take_exception();
    PyObject *wrapped = PyObject_CallOneArg(desk->state->pool_failure, error);
    step_t step = FAILED;
    if (wrapped != NULL) {
        step = answer_slowly(desk, number, MPX_ANSWER_ERROR, wrapped, &sent);
        if (step == FAILED && !sent)
            step = answer_unsendable(desk, number, wrapped);
    }
    Py_XDECREF(wrapped);
    Py_DECREF(error);
    return step;
}

/* Says something that is no answer to a task. */
static step_t say(desk_t *desk, enum mpx_answer kind, const char *data, uint32_t size)
{
    void *room;
    step_t step = wait_for_room(desk, size, &room);
    if (step != GO_ON)
        return step;
    memcpy(room, data, size);
    mpx_spsc_commit(&desk->lane.results, (mpx_spsc_header_t){.size = size, .kind = kind});
    mpx_lane_publish_results(&desk->lane);
    return GO_ON;
}

/* ---- Tasks ----------------------------------------------------------------------------------- */

static PyObject *load(desk_t *desk, const char *data, size_t size)
{
    mpx_namespace_t namespace = mpx_engine_namespace(desk->state);
    return mpx_loads(desk->state, &namespace, data, size, NULL);
}

/* Where the payload of a record is; NULL with an exception. */
static const char *find_payload(desk_t *desk, const mpx_spsc_header_t *header, const void *data,
                                size_t *size)
{
    mpx_parcel_note_t note;
    *size = header->size;
    if (!(header->kind & MPX_ORDER_IN_BLOCK))
        return data;
    if (header->size != sizeof(note)) {
        PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
        return NULL;
    }
    memcpy(&note, data, sizeof(note));
    *size = note.size;
    const char *bytes;
    int status = mpx_crew_parcel(desk->lane.crew, &note, &bytes);
    if (status < 0)
        mpx_raise_unread(status, "the pool's shared memory is damaged");
    return bytes;
}

/* The payload has been read: its block, if it is in one, is freed. */
static void drop_payload(desk_t *desk, const mpx_spsc_header_t *header, const void *data)
{
    mpx_parcel_note_t note;
    if (!(header->kind & MPX_ORDER_IN_BLOCK) || (header->kind & MPX_ORDER_KEPT))
        return;
    memcpy(&note, data, sizeof(note));
    mpx_crew_free_block(desk->lane.crew, note.block);
    mpx_heap_flow(desk->lane.crew->arena, note.size);
}

static step_t learn_function(desk_t *desk, const mpx_spsc_header_t *header, const void *data)
{
    if (header->extra >= MPX_ARRAY_LENGTH(desk->known))
        return GO_ON;
    PyObject *pickle = PyBytes_FromStringAndSize(data, (Py_ssize_t)header->size);
    if (pickle == NULL)
        return FAILED;
    Py_XSETREF(desk->known[header->extra].pickle, pickle);
    Py_CLEAR(desk->known[header->extra].function);
    return GO_ON;
}

/* A new reference. That it is not there is an error of each task that needs it. */
static PyObject *known_function(desk_t *desk, uint32_t number)
{
    if (number >= MPX_ARRAY_LENGTH(desk->known) || desk->known[number].pickle == NULL) {
        PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
        return NULL;
    }
    known_t *known = desk->known + number;
    if (known->function == NULL) {
        known->function =
            load(desk, PyBytes_AS_STRING(known->pickle), (size_t)PyBytes_GET_SIZE(known->pickle));
        desk->is_puzzled = known->function == NULL;
    }
    return Py_XNewRef(known->function);
}

static PyObject *call_star(PyObject *function, PyObject *item)
{
    PyObject *args = PySequence_Tuple(item);
    PyObject *result = args == NULL ? NULL : PyObject_Call(function, args, NULL);
    Py_XDECREF(args);
    return result;
}

/* StopIteration ends the map() that the standard library's pools make of a chunk. */
static bool is_end_of_chunk(const desk_t *desk)
{
    if ((desk->manners & TELLS_ALL) || !PyErr_ExceptionMatches(PyExc_StopIteration))
        return false;
    PyErr_Clear();
    return true;
}

MPX_COLD static PyObject *first_ones(PyObject *results, Py_ssize_t count)
{
    PyObject *list = PyList_New(count);
    for (Py_ssize_t i = 0; list != NULL && i < count; i++)
        PyList_SET_ITEM(list, i, Py_NewRef(PyList_GET_ITEM(results, i)));
    Py_DECREF(results);
    return list;
}

static PyObject *call_chunk(const desk_t *desk, PyObject *function, PyObject *items, bool stars)
{
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    PyObject *results = PyList_New(count);
    for (Py_ssize_t i = 0; results != NULL && i < count; i++) {
        PyObject *item = PyTuple_GET_ITEM(items, i);
        PyObject *result = stars ? call_star(function, item) : PyObject_CallOneArg(function, item);
        if (result != NULL) {
            PyList_SET_ITEM(results, i, result);
        } else if (is_end_of_chunk(desk)) {
            return first_ones(results, i);
        } else {
            Py_CLEAR(results);
        }
    }
    return results;
}

static PyObject *call_apply(desk_t *desk, PyObject *function, PyObject *payload)
{
    PyObject *args = PyTuple_GET_ITEM(payload, 0), *names = PyTuple_GET_ITEM(payload, 1);
    if (PyTuple_CheckExact(args) && PyDict_CheckExact(names))
        return PyObject_Call(function, args, PyDict_GET_SIZE(names) > 0 ? names : NULL);
    return PyObject_CallFunctionObjArgs(desk->state->pool_apply, function, args, names, NULL);
}

static PyObject *call(desk_t *desk, uint32_t order, PyObject *function, PyObject *payload)
{
    switch (order) {
    case MPX_ORDER_CALL:
        return PyObject_CallOneArg(function, payload);
    case MPX_ORDER_STAR:
        return call_star(function, payload);
    case MPX_ORDER_CHUNK:
    case MPX_ORDER_STARCHUNK:
        if (PyTuple_Check(payload))
            return call_chunk(desk, function, payload, order == MPX_ORDER_STARCHUNK);
        break;
    case MPX_ORDER_APPLY:
        if (PyTuple_Check(payload) && PyTuple_GET_SIZE(payload) == 2)
            return call_apply(desk, function, payload);
        break;
    }
    PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
    return NULL;
}

/* The result of a task whose record has been read. Drops the payload's pair. */
static PyObject *call_task(desk_t *desk, const mpx_spsc_header_t *header, PyObject *payload)
{
    PyObject *function, *result = NULL;
    uint32_t order = header->kind & MPX_ORDER_MASK;
    if (!(header->kind & MPX_ORDER_WITH_FUNCTION)) {
        function = known_function(desk, header->extra);
        if (function != NULL)
            result = call(desk, order, function, payload);
        Py_XDECREF(function);
    } else if (PyTuple_Check(payload) && PyTuple_GET_SIZE(payload) == 2) {
        result = call(desk, order, PyTuple_GET_ITEM(payload, 0), PyTuple_GET_ITEM(payload, 1));
    } else {
        PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
    }
    return result;
}

static step_t after_task(desk_t *desk)
{
    desk->done++;
    if (desk->most > 0 && desk->done >= desk->most)
        return END;
    if (desk->after == Py_None)
        return GO_ON;
    PyObject *result = PyObject_CallNoArgs(desk->after);
    int ends = result == NULL ? -1 : PyObject_IsTrue(result);
    Py_XDECREF(result);
    return ends < 0 ? FAILED : ends ? END : GO_ON;
}

static void read_record(desk_t *desk, uint32_t size)
{
    mpx_spsc_t *tasks = &desk->lane.tasks;
    mpx_spsc_pop(tasks, size);
    if (tasks->position - tasks->shown >= UNRELEASED)
        mpx_spsc_release(tasks);
}

static void note_begin(desk_t *desk, uint32_t number)
{
    mpx_u64_store_relaxed(&desk->lane.room->begun_at, (uint64_t)mpx_os_now());
    mpx_u32_store_release(&desk->lane.room->begun, number); /* M4: with M5 */
}

/* ---- Chunks of numbers ----------------------------------------------------------------------- */

/* Of a chunk of numbers each is made when it is its turn, and each result that is a number is
 * written at once: two objects live at a time, in memory that is at hand, where all of a chunk and
 * of its results are many times what the processor keeps. Numbers have no identity to be kept. */

typedef struct {
    mpx_buffer_t out; /* the message of the list of results */
    size_t count;     /* of them */
    PyObject *list;   /* the results, once one was no number; or NULL */
} results_t;

static bool is_of_numbers(desk_t *desk, const mpx_spsc_header_t *header, const char *bytes,
                          size_t size, mpx_numbers_t *numbers)
{
    mpx_namespace_t namespace = mpx_engine_namespace(desk->state);
    return (header->kind & (MPX_ORDER_MASK | MPX_ORDER_WITH_FUNCTION)) == MPX_ORDER_CHUNK &&
           mpx_numbers_open(numbers, bytes, size) && mpx_reads_plainly(desk->state, &namespace);
}

static int add_result(desk_t *desk, results_t *results, PyObject *result)
{
    if (results->list == NULL) {
        int status = mpx_list_add_number(&results->out, result);
        results->count += status == 0;
        if (status <= 0)
            return status;
        mpx_list_end(&results->out, results->count);
        results->list =
            mpx_tree_read(&desk->state->keys, results->out.data, results->out.size, false);
        if (results->list == NULL)
            return -1;
    }
    return PyList_Append(results->list, result);
}

/* 0, or -1 with an exception. */
static int call_numbers(desk_t *desk, PyObject *function, mpx_numbers_t *numbers,
                        results_t *results)
{
    for (size_t i = 0; i < numbers->count; i++) {
        PyObject *item = mpx_numbers_next(numbers);
        if (item == NULL)
            return -1;
        PyObject *result = PyObject_CallOneArg(function, item);
        Py_DECREF(item);
        if (result == NULL)
            return is_end_of_chunk(desk) ? 0 : -1;
        int status = add_result(desk, results, result);
        Py_DECREF(result);
        if (status < 0)
            return -1;
    }
    return 0;
}

static step_t answer_message(desk_t *desk, uint32_t number, const mpx_buffer_t *message)
{
    mpx_draft_t draft;
    mpx_draft_begin(&draft, desk->lane.crew);
    step_t step = mpx_buffer_append(&draft.buffer, message->data, message->size) < 0
                      ? answer_error(desk, number)
                      : answer_draft(desk, number, MPX_ANSWER_VALUE, &draft);
    mpx_draft_end(&draft);
    return step;
}

static step_t do_numbers(desk_t *desk, const mpx_spsc_header_t *header, const void *data,
                         mpx_numbers_t *numbers)
{
    results_t results = {.count = 0};
    desk->is_puzzled = false;
    PyObject *function = known_function(desk, header->extra);
    int status = function == NULL || mpx_list_begin(&results.out) < 0
                     ? -1
                     : call_numbers(desk, function, numbers, &results);
    drop_payload(desk, header, data);
    read_record(desk, header->size);
    step_t step;
    if (status < 0) {
        step = desk->is_puzzled && (desk->manners & ENDS_PUZZLED)
                   ? FAILED
                   : answer_error(desk, header->number);
    } else if (results.list != NULL) {
        step = answer_value(desk, header, results.list);
    } else {
        mpx_list_end(&results.out, results.count);
        step = answer_message(desk, header->number, &results.out);
    }
    Py_XDECREF(function);
    Py_XDECREF(results.list);
    mpx_buffer_free(&results.out);
    return step;
}

/* ---- One task -------------------------------------------------------------------------------- */

/* Its payload is made as a whole. */
static step_t do_any(desk_t *desk, const mpx_spsc_header_t *header, const void *data,
                     const char *bytes, size_t size)
{
    PyObject *payload = bytes == NULL ? NULL : load(desk, bytes, size);
    if (bytes != NULL)
        drop_payload(desk, header, data);
    desk->is_puzzled = payload == NULL;
    read_record(desk, header->size);
    PyObject *result = payload == NULL ? NULL : call_task(desk, header, payload);
    step_t step = desk->is_puzzled && (desk->manners & ENDS_PUZZLED) ? FAILED
                  : result != NULL ? answer_value(desk, header, result)
                                   : answer_error(desk, header->number);
    Py_XDECREF(payload);
    Py_XDECREF(result);
    return step;
}

static step_t do_task(desk_t *desk, const mpx_spsc_header_t *header, const void *data)
{
    if (header->kind & MPX_ORDER_TIMED)
        note_begin(desk, header->number);
    if (!mpx_lane_begin(&desk->lane, header->number)) { /* it was taken back */
        read_record(desk, header->size);
        return GO_ON;
    }
    MPX_STEP(worker_began);
    mpx_numbers_t numbers;
    size_t size;
    const char *bytes = find_payload(desk, header, data, &size);
    step_t step = bytes != NULL && is_of_numbers(desk, header, bytes, size, &numbers)
                      ? do_numbers(desk, header, data, &numbers)
                      : do_any(desk, header, data, bytes, size);
    return step == GO_ON ? after_task(desk) : step;
}

static step_t take_record(desk_t *desk)
{
    mpx_spsc_header_t header;
    const void *data;
    int status = mpx_spsc_peek(&desk->lane.tasks, &header, &data);
    if (status == -EAGAIN)
        return wait_for_task(desk);
    if (status < 0) {
        PyErr_SetString(PyExc_OSError, "the pool's shared memory is damaged");
        return FAILED;
    }
    switch (header.kind & MPX_ORDER_MASK) {
    case MPX_ORDER_STOP:
        return END;
    case MPX_ORDER_FUNCTION: {
        step_t step = learn_function(desk, &header, data);
        read_record(desk, header.size);
        return step;
    }
    default:
        return do_task(desk, &header, data);
    }
}

/* Opens the lane; 0, or -1 with an exception. */
static int sit_down(desk_t *desk, PyObject *module, PyObject *object, unsigned long long block)
{
    desk->state = module_state(module);
    if (!PyObject_TypeCheck(object, desk->state->crew_type)) {
        PyErr_Format(PyExc_TypeError, "%R is no crew", object);
        return -1;
    }
    if (!mpx_shared_check((SharedObject *)object, "_crew"))
        return -1;
    int status = mpx_lane_open(&desk->lane, &((CrewObject *)object)->crew, block);
    if (status < 0)
        mpx_raise(status);
    return status < 0 ? -1 : 0;
}

/* Ctrl-C goes to all processes of a terminal: it is no error of a worker that waits. */
static bool is_interrupted_idle(const desk_t *desk)
{
    return desk->is_idle && PyErr_ExceptionMatches(PyExc_KeyboardInterrupt);
}

PyDoc_STRVAR(work_doc,
             "work(crew, lane, most_tasks, after, manners, /)\n--\n\n"
             "Do the tasks of a lane until the parent says to end, or has ended; or until so many "
             "are done\n(0: any number), or after() is true that is called after each (None: it is "
             "not).\n"
             "\n"
             "What is raised by a task and is no Exception is raised here, unless manners has the "
             "bit 1. With the\nbit 2, what unpickling a task has raised is raised here too. False: "
             "a KeyboardInterrupt came between\ntwo tasks.");

static PyObject *work(PyObject *module, PyObject *args)
{
    PyObject *object;
    unsigned long long block;
    desk_t *desk = PyMem_RawCalloc(1, sizeof(*desk));
    if (desk == NULL)
        return PyErr_NoMemory();
    step_t step = FAILED;
    if (PyArg_ParseTuple(args, "OKnOi:work", &object, &block, &desk->most, &desk->after,
                         &desk->manners) &&
        sit_down(desk, module, object, block) == 0)
        step = say(desk, MPX_ANSWER_READY, "", 0);
    while (step == GO_ON)
        step = take_record(desk);
    bool is_quiet = step == FAILED && is_interrupted_idle(desk);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(desk->known); i++) {
        Py_XDECREF(desk->known[i].pickle);
        Py_XDECREF(desk->known[i].function);
    }
    PyMem_RawFree(desk);
    if (is_quiet)
        PyErr_Clear();
    else if (step == FAILED)
        return NULL;
    return PyBool_FromLong(!is_quiet);
}

PyDoc_STRVAR(say_why_doc, "say_why(crew, lane, pickle, /)\n--\n\n"
                          "Tell the parent, by the pickle of an exception, why this worker does "
                          "not begin; an empty\none says that it runs the initializer.");

static PyObject *say_why(PyObject *module, PyObject *args)
{
    PyObject *object;
    unsigned long long block;
    const char *pickle;
    Py_ssize_t size;
    if (!PyArg_ParseTuple(args, "OKy#:say_why", &object, &block, &pickle, &size))
        return NULL;
    if (size > (Py_ssize_t)MPX_CREW_INLINE) {
        PyErr_SetString(PyExc_ValueError, "the pickle is too long");
        return NULL;
    }
    desk_t *desk = PyMem_RawCalloc(1, sizeof(*desk));
    if (desk == NULL)
        return PyErr_NoMemory();
    bool failed =
        sit_down(desk, module, object, block) < 0 ||
        say(desk, size == 0 ? MPX_ANSWER_BEGUN : MPX_ANSWER_NOTE, pickle, (uint32_t)size) == FAILED;
    PyMem_RawFree(desk);
    return failed ? NULL : Py_NewRef(Py_None);
}

static PyMethodDef functions[] = {
    {"work", work, METH_VARARGS, work_doc},
    {"say_why", say_why, METH_VARARGS, say_why_doc},
    {NULL, NULL, 0, NULL},
};

int mpx_add_worker(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
