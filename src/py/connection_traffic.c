/* connection_traffic.c - see connection.h.
 *
 * What can be done at once is done with the GIL held, where it is short; without it, what is long
 * or has to wait. Signal handlers run between the steps, and whatever they do is done when the next
 * step looks: so each begins with a look at the descriptor and at what there is left to do.
 */
#include "connection.h"

#include <errno.h>
#include <limits.h>

#include "mpx_os.h"

/* Above this many bytes a system call takes longer than giving up the GIL and getting it back. */
#define LONG ((size_t)16 << 10)

/* Of what is shorter, the kernel takes all at once or nothing, with the GIL held; without one,
 * another thread may close the descriptor in between. */
#ifdef Py_GIL_DISABLED
#    define ALONE ((size_t)PIPE_BUF)
#else
#    define ALONE LONG
#endif

/* ---- Steps ----------------------------------------------------------------------------------- */

typedef struct {
    ConnectionObject *connection;
    mpx_sending_t *sending; /* or NULL: of receiving */
    size_t size;            /* at most, of what it transfers */
    char *to;               /* with what is received of the content, but no header */
} step_t;

/* -1 where there is none any more. */
static int sending_fd(ConnectionObject *self, const mpx_sending_t *sending)
{
    return sending->own.number != 0 ? sending->own.number : mpx_connection_fd(self);
}

static int fd_of(const step_t *step)
{
    ConnectionObject *self = step->connection;
    return step->sending != NULL ? sending_fd(self, step->sending) : mpx_connection_fd(self);
}

/* From here on the message goes on if the connection is closed. */
static void own_fd(ConnectionObject *self, mpx_sending_t *sending)
{
    int fd = mpx_connection_fd(self);
    if (sending->own.number == 0 && fd >= 0)
        mpx_own_fd_take(&sending->own, fd);
}

/* Whether a message is about to be begun; the rest of one has no header. */
static bool begins(const mpx_outflow_t *out)
{
    return out->header_size > 0 && out->done == 0;
}

/* Of an end of a Pipe() with rings. */
static int begin(const step_t *step, int fd)
{
    mpx_duct_t *duct = mpx_end_sends_to(&step->connection->end);
    int status = duct == NULL ? mpx_end_begin(&step->connection->end, fd, &step->sending->out)
                              : mpx_duct_begin(duct, fd, &step->sending->out, 0);
    if (status == 0 && mpx_outflow_left(&step->sending->out) > 0)
        step->sending->duct = duct;
    return status == -EBUSY ? -EAGAIN : status;
}

static int transfer(const step_t *step, int fd, const mpx_stream_wait_t *wait)
{
    ConnectionObject *self = step->connection;
    if (step->sending != NULL && mpx_end_is_joined(&self->end) && begins(&step->sending->out))
        return begin(step, fd);
    if (step->sending != NULL)
        return mpx_outflow_write(&step->sending->out, fd, wait);
    self->in.is_socket = mpx_u32_load_relaxed(&self->is_socket);
    if (!self->in.has_size)
        return mpx_inflow_read_header(&self->in, fd, wait);
    return mpx_inflow_read(&self->in, fd, step->to, step->size, wait);
}

static bool has_begun(const step_t *step)
{
    if (step->sending != NULL)
        return step->sending->out.done > 0;
    return mpx_inflow_has_begun(&step->connection->in);
}

static int transfer_without_gil(const step_t *step, int fd, const mpx_stream_wait_t *wait)
{
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = transfer(step, fd, wait);
    Py_END_ALLOW_THREADS
    return status;
}

/* Who sends may have to wait for a receiver to settle what somebody who died has left in the duct;
 * who receives, for a sender who is not yet done with a message that has come. Neither is told. */
#define UNSETTLED MPX_NANOS_PER_MILLI

/* Of an end of a Pipe() with rings: 0, a negative errno; or 1: nobody has the other end. */
static int wait_joined(const step_t *step, int fd, int64_t deadline)
{
    ConnectionObject *self = step->connection;
    bool sends = step->sending != NULL;
    mpx_wait_mood_t *mood = sends ? &self->sender_mood : &self->receiver_mood;
    struct pollfd polled[2] = {{.fd = fd, .events = sends ? POLLOUT : POLLIN},
                               mpx_end_polls(&self->end)};
    for (unsigned tries = 0; mpx_wait_yields(mood, tries, deadline); tries++) {
        int status = transfer(step, fd, NULL);
        if (status != -EAGAIN || fd_of(step) != fd)
            return status == -EAGAIN ? 0 : status;
    }
    bool is_unsettled = !sends && !has_begun(step) && mpx_end_receives_from(&self->end) != NULL;
    int64_t soon = mpx_os_deadline(UNSETTLED);
    int ready = mpx_os_poll(polled, 2, is_unsettled ? Py_MIN(deadline, soon) : deadline);
    if (ready <= 0)
        return ready == 0 ? -ETIMEDOUT : ready;
    if (fd_of(step) != fd)
        return 0;
    bool has_no_reader = sends && (polled[0].revents & (POLLERR | POLLHUP | POLLNVAL));
    if (has_no_reader || mpx_end_was_left(&self->end, &polled[1]))
        return 1;
    int status = polled[0].revents == 0 ? 0 : transfer(step, fd, NULL);
    mpx_duct_t *duct = sends && begins(&step->sending->out) ? mpx_end_sends_to(&self->end) : NULL;
    if (status == -EAGAIN && duct != NULL)
        (void)!mpx_duct_wait_for_room(duct, mood, mpx_os_deadline(UNSETTLED));
    return status == -EAGAIN ? -ETIMEDOUT : status;
}

static int wait_joined_without_gil(const step_t *step, int fd)
{
    int64_t deadline = mpx_piece_of(MPX_NEVER);
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = wait_joined(step, fd, deadline);
    Py_END_ALLOW_THREADS
    if (status == 1) {
        mpx_connection_leave(step->connection);
        return step->sending == NULL ? 0 : mpx_outflow_error(&step->sending->out, fd);
    }
    if (status == -ETIMEDOUT || status == -EINTR)
        return mpx_wait_on(&status, MPX_NEVER) ? 0 : -EINTR;
    return status;
}

/* A socket may have a time limit of its own, which is that of each call. */
static int64_t deadline_of(const step_t *step, int fd)
{
    bool sends = step->sending != NULL;
    bool is_socket = sends ? step->sending->out.is_socket : step->connection->in.is_socket;
    int64_t patience = is_socket ? mpx_os_socket_patience(fd, sends) : MPX_NEVER;
    return patience == MPX_NEVER ? MPX_NEVER : mpx_os_deadline(patience);
}

/* -EINTR with an exception of a signal handler; -EAGAIN: the socket's own time is over; or 0: look
 * again. */
static int wait_and_transfer(const step_t *step, int fd)
{
    ConnectionObject *self = step->connection;
    if (MPX_UNLIKELY(mpx_end_is_joined(&self->end)))
        return wait_joined_without_gil(step, fd);
    mpx_stream_wait_t wait = {
        .mood = step->sending != NULL ? &self->sender_mood : &self->receiver_mood,
        .handle = step->sending != NULL && step->sending->own.number != 0 ? NULL : &self->handle,
    };
    int64_t deadline = deadline_of(step, fd);
    int status;
    do {
        wait.deadline = mpx_piece_of(deadline);
        status = transfer_without_gil(step, fd, &wait);
        if (status != -ETIMEDOUT && status != -EINTR)
            return status;
        bool is_late = status == -ETIMEDOUT && mpx_os_now() >= deadline;
        if (!mpx_wait_on(&status, MPX_NEVER))
            return -EINTR;
        if (is_late)
            return fd_of(step) == fd ? -EAGAIN : 0;
    } while (status == -ETIMEDOUT && deadline != MPX_NEVER && fd_of(step) == fd);
    return 0;
}

/* A descriptor, which may have been closed meanwhile; -1 with an exception. */
static int check_fd(int fd)
{
    if (fd < 0)
        PyErr_SetString(PyExc_OSError, "handle is closed");
    return fd;
}

static int open_fd(ConnectionObject *self)
{
    return check_fd(mpx_connection_fd(self));
}

/* Whether this process will be able to leave, which each one asks once. */
static inline bool may_leave(ConnectionObject *self, int fd)
{
    if (MPX_UNLIKELY(mpx_u64_load_relaxed(&self->end.asked_by) != mpx_os_own_word())) {
        Py_BEGIN_CRITICAL_SECTION(self->module);
        mpx_end_ask_to_leave(&self->end, fd);
        Py_END_CRITICAL_SECTION();
    }
    return mpx_u32_load_relaxed(&self->end.may_leave) != 0;
}

/* To settle is to open a duct that nobody has opened. */
static inline bool may_settle(ConnectionObject *self, mpx_duct_t *duct, int fd)
{
    return may_leave(self, fd) || mpx_duct_is_open(duct);
}

/* Tells the duct to receive from, if there is one, that the descriptor is empty: whether the ring
 * is what to look at. */
static bool settle(ConnectionObject *self, int fd)
{
    mpx_duct_t *duct = mpx_end_receives_from(&self->end);
    if (duct == NULL || !may_settle(self, duct, fd))
        return false;
    int status = mpx_duct_settle(duct, fd, 0);
    if (status == -EBUSY) {
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_duct_settle(duct, fd, piece);
        Py_END_ALLOW_THREADS
    }
    return status == 0;
}

/* Does a part of it: 0; or a negative errno, -EINTR with an exception. */
static int take_step(const step_t *step)
{
    int fd = check_fd(fd_of(step));
    if (fd < 0)
        return -EINTR;
    int status =
        step->size < LONG ? transfer(step, fd, NULL) : transfer_without_gil(step, fd, NULL);
    if (MPX_UNLIKELY(status == -EINTR)) /* without RWF_NOWAIT poll is asked, and may say so */
        return PyErr_CheckSignals() < 0 ? -EINTR : 0;
    if (status != -EAGAIN || mpx_os_is_nonblocking(fd))
        return status;
    if (step->sending == NULL && !has_begun(step) && settle(step->connection, fd))
        return 0; /* there may be something in the ring */
    if (step->sending != NULL) {
        own_fd(step->connection, step->sending);
        fd = fd_of(step);
    }
    return wait_and_transfer(step, fd);
}

/* Whether what was kept is of this process, and of the descriptor that there is now. It is from
 * here on. */
static bool is_keeper(ConnectionObject *self, mpx_keeper_t *keeper)
{
    uint64_t own = mpx_os_own_word();
    uint32_t handles = mpx_u32_load_relaxed(&self->handles);
    if (MPX_LIKELY(keeper->process == own && keeper->handles == handles))
        return true;
    *keeper = (mpx_keeper_t){.process = own, .handles = handles};
    return false;
}

/* ---- Sending --------------------------------------------------------------------------------- */

static void drop_rest(ConnectionObject *self)
{
    mpx_own_fd_drop(&self->rest.own);
    PyMem_RawFree((char *)self->rest.out.data);
    self->rest = (mpx_sending_t){.before = NULL};
}

static bool has_rest(const ConnectionObject *self)
{
    return mpx_outflow_left(&self->rest.out) > 0;
}

/* Tells the duct that a message has no end. Without it the duct waits for that as long as this
 * process lives. */
static void tear(mpx_sending_t *sending)
{
    mpx_duct_t *duct = sending->duct;
    sending->duct = NULL;
    if (MPX_LIKELY(duct == NULL) || sending->process != mpx_os_own_word())
        return;
    Py_BEGIN_ALLOW_THREADS
    mpx_duct_tear(duct, mpx_os_deadline(MPX_NANOS_PER_SEC));
    Py_END_ALLOW_THREADS
}

/* Keeps what is left of a message that the reader has the beginning of. */
static void keep_rest(ConnectionObject *self, mpx_sending_t *sending)
{
    size_t left = mpx_outflow_left(&sending->out);
    char *copy = PyMem_RawMalloc(left);
    if (copy == NULL) {
        /* The reader would take the next message for the rest of this one. */
        mpx_u32_store_relaxed(&self->writable, false);
        tear(sending);
        return;
    }
    mpx_outflow_copy_rest(&sending->out, copy);
    drop_rest(self);
    self->rest.out = (mpx_outflow_t){.data = copy, .size = left};
    self->rest.process = sending->process;
    self->rest.duct = sending->duct;
}

/* Tells the duct that was told of the beginning. */
static void finish(ConnectionObject *self, mpx_sending_t *sending)
{
    mpx_duct_t *duct = sending->duct;
    bool is_socket = sending->out.is_socket;
    int fd = sending_fd(self, sending), status = -EBUSY;
    sending->duct = NULL;
    if (MPX_LIKELY(duct == NULL) || sending->process != mpx_os_own_word())
        return;
    Py_BEGIN_ALLOW_THREADS
    while (status == -EBUSY || status == -EINTR)
        status = mpx_duct_finish(duct, fd, is_socket, mpx_piece_of(MPX_NEVER));
    Py_END_ALLOW_THREADS
}

/* Writes what is left of the messages that were begun before this one, and then this one: 0; or a
 * negative errno with an exception, which with -EINTR is a signal handler's. In a child that a
 * handler forks there is nothing left of what its parent goes on with. */
static int write_in_order(ConnectionObject *self, mpx_sending_t *sending);

static int write_all(ConnectionObject *self, mpx_sending_t *sending)
{
    int status = sending->before == NULL ? 0 : write_in_order(self, sending->before);
    if (status < 0)
        return status;
    while (mpx_outflow_left(&sending->out) > 0 && sending->process == mpx_os_own_word()) {
        const step_t step = {self, sending, mpx_outflow_left(&sending->out), NULL};
        if (step.size >= ALONE || sending->out.done > 0)
            own_fd(self, sending);
        status = take_step(&step);
        if (status < 0) {
            if (status != -EINTR && status != -EAGAIN)
                tear(sending);
            if (status != -EINTR)
                mpx_raise(status);
            return status;
        }
    }
    finish(self, sending);
    return 0;
}

static int write_in_order(ConnectionObject *self, mpx_sending_t *sending)
{
    int status = write_all(self, sending);
    mpx_own_fd_drop(&sending->own);
    return status;
}

/* With a BlockingIOError: the message is under way, and not to be sent again. */
MPX_COLD static void say_how_much(size_t done)
{
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    PyObject *count = PyLong_FromSize_t(done);
    if (count == NULL || PyObject_SetAttrString(error, "characters_written", count) < 0)
        PyErr_Clear();
    Py_XDECREF(count);
    PyErr_Restore(type, error, traceback);
}

static int send_in_turn(ConnectionObject *self, const mpx_brackets_t *brackets, const char *data,
                        size_t size)
{
    if (!is_keeper(self, &self->sending_of)) {
        drop_rest(self);
        self->sending = NULL; /* of another thread of the parent's, mostly */
    }
    mpx_sending_t mine = {.before = self->sending, .process = self->sending_of.process};
    mpx_outflow_begin_within(&mine.out, brackets, data, size);
    mine.out.is_socket = mpx_u32_load_relaxed(&self->is_socket);
    if (mine.before == NULL && has_rest(self))
        mine.before = &self->rest;
    self->sending = &mine;
    int status = write_in_order(self, &mine);
    self->sending = mine.before == &self->rest ? NULL : mine.before;
    if (MPX_UNLIKELY(self->rest.out.data != NULL) && self->sending == NULL && !has_rest(self))
        drop_rest(self);
    bool is_torn = mine.out.done > 0 && mpx_outflow_left(&mine.out) > 0;
    if (MPX_UNLIKELY(is_torn)) {
        if (status == -EAGAIN)
            say_how_much(mine.out.done);
        if ((status == -EINTR || status == -EAGAIN) && mpx_connection_fd(self) >= 0)
            keep_rest(self, &mine);
        else
            tear(&mine);
    }
    return status;
}

/* So long is a receiver waited for that takes nothing out of the ring, before all that is in it
 * goes to the descriptor: there may be none before that has more room. */
#define SLOWNESS (2 * MPX_NANOS_PER_MILLI)

/* Where nobody has the other end. As long as there is more to receive than the descriptor has room
 * for, a copy of that end is in trust, and the kernel would take what is sent. */
MPX_COLD static int check_left(ConnectionObject *self)
{
    if (!mpx_end_is_joined(&self->end))
        return -EAGAIN; /* it says so itself */
    mpx_raise(-EPIPE);
    return -EINTR;
}

/* 0; -EAGAIN: it goes through the descriptor; or -EINTR with an exception. */
MPX_COLD static int send_slowly(ConnectionObject *self, mpx_duct_t *duct, const char *data,
                                size_t size, int status)
{
    uint64_t process = mpx_os_own_word();
    while (status == -EAGAIN || status == -EBUSY) {
        bool is_full = status == -EAGAIN;
        int64_t deadline = is_full ? mpx_os_deadline(SLOWNESS) : mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        if (is_full)
            status = mpx_duct_wait_for_room(duct, &self->end.room_mood, deadline);
        if (!is_full || status == 0)
            status = mpx_duct_put(duct, data, size, deadline);
        Py_END_ALLOW_THREADS
        if (status == -EINTR) {
            if (PyErr_CheckSignals() < 0)
                return -EINTR;
            if (process != mpx_os_own_word())
                return 0; /* a child that a handler has forked: its parent sends it */
            status = mpx_end_is_joined(&self->end) ? mpx_duct_try_put(duct, data, size) : -EXDEV;
        }
        if (status == -ETIMEDOUT)
            return -EAGAIN;
        if (status != 0 && mpx_end_is_alone(&self->end, mpx_connection_fd(self))) {
            bool was_reset = mpx_end_was_reset(&self->end);
            mpx_connection_leave(self);
            if (!was_reset)
                return check_left(self);
            mpx_raise(-ECONNRESET); /* who waits for room is told, and who receives then is not */
            return -EINTR;
        }
    }
    return status == 0 ? 0 : -EAGAIN;
}

/* The same. */
static int send_joined(ConnectionObject *self, const char *data, size_t size)
{
    mpx_duct_t *duct = mpx_end_sends_to(&self->end);
    bool is_alone = mpx_end_is_alone(&self->end, mpx_connection_fd(self));
    if (is_alone || (duct != NULL && mpx_duct_is_stopped(duct))) {
        mpx_connection_leave(self);
        return is_alone ? check_left(self) : -EAGAIN;
    }
    if (duct == NULL) {
        mpx_end_count_sent(&self->end, mpx_connection_fd(self));
        return -EAGAIN;
    }
    int status = mpx_duct_try_put(duct, data, size);
    if (MPX_LIKELY(status == 0))
        return 0;
    if (status == -EXDEV && !mpx_duct_is_open(duct)) {
        mpx_end_wait_for_opening(&self->end, duct);
        status = mpx_duct_try_put(duct, data, size);
    }
    return send_slowly(self, duct, data, size, status);
}

/* Where nobody is sending: whoever was looks again when it has let go of the turn. */
MPX_COLD static void see_to_end(ConnectionObject *self)
{
    if (mpx_turn_is_anothers(&self->sender) || !mpx_u32_exchange_acq_rel(&self->is_ended, 0))
        return;
    mpx_end_close(&self->end);
    tear(&self->rest);
}

int mpx_connection_send(ConnectionObject *self, const char *data, size_t size)
{
    const mpx_brackets_t none = {.before_size = 0};
    return mpx_connection_send_within(self, &none, data, size);
}

MPX_STATIC_ASSERT(MPX_UNFRAMED > MPX_DUCT_MOST, "what has brackets is too long for a ring");

int mpx_connection_send_within(ConnectionObject *self, const mpx_brackets_t *brackets,
                               const char *data, size_t size)
{
    if (mpx_end_is_joined(&self->end)) {
        int status = send_joined(self, data, size);
        if (status != -EAGAIN)
            return status;
    }
    if (mpx_turn_take(&self->sender) < 0)
        return -1;
    int status = send_in_turn(self, brackets, data, size);
    mpx_turn_end(&self->sender);
    if (MPX_UNLIKELY(mpx_u32_load_relaxed(&self->is_ended)))
        see_to_end(self);
    return status;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

static void drop_message(ConnectionObject *self)
{
    mpx_inflow_reset(&self->in);
    mpx_received_drop(self->module, &self->content);
}

static int raise_unreceived(ConnectionObject *self, int status)
{
    if (status == -EPIPE || status == -EPROTO) {
        drop_message(self);
        if (status == -EPIPE && mpx_end_was_reset(&self->end))
            mpx_raise(-ECONNRESET);
        else if (status == -EPIPE)
            PyErr_SetNone(PyExc_EOFError);
        else
            PyErr_SetString(PyExc_OSError, "got end of file during message");
    } else if (status != -EINTR) {
        if (status == -ECONNRESET)
            (void)mpx_end_was_reset(&self->end);
        mpx_raise(status);
    }
    return -1;
}

/* A message that is no longer being received is the caller's. */
static int hand_over(ConnectionObject *self, mpx_purpose_t purpose, mpx_received_t *message)
{
    if (mpx_received_end(&self->content, purpose, (size_t)self->in.size) < 0)
        return -1;
    *message = self->content;
    self->content = (mpx_received_t){.bytes = NULL};
    mpx_inflow_reset(&self->in);
    return 0;
}

/* Of a Pipe() with rings. A duct in which nothing was found: waits for something in the ring, or
 * the descriptor, or for the end. 0: look again; -EXDEV: look at the descriptor; -EINTR,
 * -ETIMEDOUT; or 1: nobody has the other end. */
static int wait_for_message(ConnectionObject *self, mpx_duct_t *duct, int fd, int64_t deadline)
{
    struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, mpx_end_polls(&self->end)};
    for (unsigned tries = 0; mpx_wait_yields(&self->receiver_mood, tries, deadline); tries++) {
        if (mpx_duct_has_something(duct) || mpx_connection_fd(self) != fd)
            return 0;
    }
    if (!mpx_duct_announce_sleep(duct)) {
        if (mpx_duct_has_message(duct))
            return 0;
        /* Who writes to the descriptor is not done, and may have been stopped. */
        deadline = Py_MIN(deadline, mpx_os_deadline(UNSETTLED));
    }
    int ready = mpx_os_poll(polled, 2, deadline);
    if (ready <= 0)
        return ready == 0 ? -ETIMEDOUT : ready;
    if (mpx_connection_fd(self) != fd)
        return 0;
    return mpx_end_was_left(&self->end, &polled[1]) ? 1 : polled[0].revents != 0 ? -EXDEV : 0;
}

/* As mpx_wait_on; -EINTR also for an exception of another error. */
static bool goes_on(int *status, int64_t deadline)
{
    if (*status != -EINTR && *status != -ETIMEDOUT) {
        mpx_raise(*status);
        *status = -EINTR;
        return false;
    }
    return mpx_wait_on(status, deadline);
}

/* The oldest message in the ring, if it has at most that many bytes (below 0: any number). */
static int try_get(mpx_duct_t *duct, Py_ssize_t most, mpx_buffer_t *message, size_t *size)
{
    size_t room = message->capacity;
    if (most >= 0 && (size_t)most < room)
        room = (size_t)most;
    return mpx_duct_try_get(duct, message->data, room, size);
}

/* Takes what is in the ring: 0, -EAGAIN, -EXDEV, -E2BIG: it is longer than wanted, and stays; or
 * -ENOMEM and -EPROTO with an exception. */
static int take_from_ring(ConnectionObject *self, mpx_duct_t *duct, Py_ssize_t most,
                          mpx_buffer_t *message)
{
    size_t size;
    int status = try_get(duct, most, message, &size);
    if (MPX_UNLIKELY(status == -ENOBUFS)) {
        if (most >= 0 && size > (size_t)most)
            return -E2BIG;
        if (mpx_buffer_grow(message, size) < 0)
            return -ENOMEM;
        status = try_get(duct, most, message, &size);
        status = status == -ENOBUFS ? -EAGAIN : status; /* another one, which is longer */
    }
    if (MPX_UNLIKELY(status == -EPROTO))
        mpx_raise_message(status, "the connection's shared memory is damaged", NULL);
    message->size = status == 0 ? size : 0;
    return status;
}

/* A message that is longer than wanted. Its content is to be found in the descriptor, of which the
 * header is read: -EXDEV. Else it is gone: 1. */
MPX_COLD static int refuse(ConnectionObject *self, mpx_duct_t *duct, mpx_buffer_t *message)
{
    mpx_connection_leave(self);
    if (!mpx_end_is_joined(&self->end))
        return -EXDEV;
    int status = take_from_ring(self, duct, -1, message);
    return status == 0 ? 1 : status;
}

/* 0, 1 and -1 as of mpx_connection_receive; -EXDEV: it comes through the descriptor. */
static int receive_joined(ConnectionObject *self, Py_ssize_t most, mpx_buffer_t *message)
{
    mpx_duct_t *duct;
    int status = -EXDEV;
    mpx_take_buffer(self->module, message);
    while ((duct = mpx_end_receives_from(&self->end)) != NULL) {
        status = take_from_ring(self, duct, most, message);
        if (status == -E2BIG)
            status = refuse(self, duct, message);
        if (status != -EAGAIN)
            break;
        int fd = open_fd(self);
        if (fd < 0) {
            status = -EINTR;
            break;
        }
        if (mpx_duct_is_stopped(duct)) {
            mpx_connection_leave(self);
            status = -EXDEV;
            break;
        }
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = wait_for_message(self, duct, fd, piece);
        Py_END_ALLOW_THREADS
        if (status == 1)
            mpx_connection_leave(self);
        if (status == 1 || status == -EXDEV) {
            status = -EXDEV;
            break;
        }
        if (status < 0 && !goes_on(&status, MPX_NEVER))
            break;
        status = -EXDEV;
    }
    if (status >= 0)
        return status;
    mpx_give_buffer(self->module, message);
    *message = (mpx_buffer_t){.data = NULL};
    return status == -EXDEV ? -EXDEV : -1;
}

/* A message has come through the descriptor, where there mostly is none behind it. */
static void count_read(ConnectionObject *self)
{
    mpx_duct_t *duct = mpx_end_receives_from(&self->end);
    if (MPX_LIKELY(duct == NULL))
        return;
    int fd = mpx_connection_fd(self);
    mpx_duct_count_read(duct);
    if (may_settle(self, duct, fd))
        (void)!mpx_duct_settle(duct, fd, 0);
}

/* At the descriptor's end: whether there is something in the ring all the same, which came later.
 */
static bool has_rest_in_ring(ConnectionObject *self)
{
    mpx_duct_t *duct = mpx_end_receives_from(&self->end);
    int fd = mpx_connection_fd(self);
    return duct != NULL && fd >= 0 && settle(self, fd) && !mpx_duct_is_empty(duct);
}

static int receive_in_turn(ConnectionObject *self, Py_ssize_t most, mpx_purpose_t purpose,
                           mpx_received_t *message)
{
    const mpx_inflow_t *in = &self->in;
    if (!is_keeper(self, &self->receiving_of))
        drop_message(self);
    for (;;) {
        step_t step = {.connection = self, .sending = NULL, .size = MPX_STREAM_HEADER};
        if (mpx_end_is_joined(&self->end) && !mpx_inflow_has_begun(in)) {
            int status = receive_joined(self, most, &message->buffer);
            if (status != -EXDEV)
                return status;
        }
        if (in->has_size) {
            if (most >= 0 && in->size > (uint64_t)most)
                return 1;
            if (in->got == in->size) {
                if (hand_over(self, purpose, message) < 0)
                    return -1;
                count_read(self);
                return 0;
            }
            if (self->content.buffer.data == NULL)
                mpx_take_buffer(self->module, &self->content.buffer);
            step.to = mpx_received_room(&self->content, purpose, in->size, in->got, &step.size);
            if (step.to == NULL)
                return -1;
        }
        int status = take_step(&step);
        if (status == -EBADMSG)
            return 1;
        if (status == -EPIPE && !mpx_inflow_has_begun(in) && has_rest_in_ring(self))
            continue;
        if (status < 0)
            return raise_unreceived(self, status);
    }
}

/* Without a turn, which only the descriptor needs. */
static bool receive_from_ring(ConnectionObject *self, Py_ssize_t most, mpx_buffer_t *message)
{
    mpx_duct_t *duct = mpx_end_receives_from(&self->end);
    if (duct == NULL)
        return false;
    (void)may_leave(self, mpx_connection_fd(self)); /* a child may not have asked */
    mpx_take_buffer(self->module, message);
    if (MPX_LIKELY(try_get(duct, most, message, &message->size) == 0))
        return true;
    mpx_give_buffer(self->module, message);
    *message = (mpx_buffer_t){.data = NULL};
    return false;
}

int mpx_connection_receive(ConnectionObject *self, Py_ssize_t most, mpx_purpose_t purpose,
                           mpx_received_t *message)
{
    if (mpx_end_is_joined(&self->end) && receive_from_ring(self, most, &message->buffer))
        return 0;
    if (mpx_turn_take(&self->receiver) < 0)
        return -1;
    int status = receive_in_turn(self, most, purpose, message);
    if (status > 0)
        drop_message(self);
    mpx_turn_end(&self->receiver);
    return status;
}

/* ---- Looking --------------------------------------------------------------------------------- */

/* As read_waiting does, so that an answer is there before this thread sleeps. */
static int look(int fd, mpx_wait_mood_t *mood, int64_t deadline)
{
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    int ready;
    for (unsigned tries = 0; mpx_wait_yields(mood, tries, deadline); tries++) {
        ready = mpx_os_poll(&polled, 1, 0);
        if (ready != 0)
            return ready;
    }
    return mpx_os_poll(&polled, 1, deadline);
}

/* Of a Pipe() with rings, once: 1; 0: there is nothing; -EXDEV: the descriptor says. */
static int look_joined(ConnectionObject *self, int fd)
{
    mpx_duct_t *duct = mpx_end_receives_from(&self->end);
    struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, mpx_end_polls(&self->end)};
    if (duct != NULL && mpx_duct_has_message(duct))
        return 1;
    int ready = mpx_os_poll(polled, 2, 0);
    if (ready == 0 && duct != NULL && mpx_duct_has_something(duct)) {
        bool is_settled = settle(self, fd);
        if (mpx_duct_has_message(duct))
            return 1;
        if (is_settled)
            return 0;
        ready = mpx_os_poll(polled, 2, 0); /* now that what was being moved has got there */
    }
    if (ready == 0)
        return 0;
    if (polled[0].revents & POLLIN)
        return 1;
    return mpx_end_was_left(&self->end, &polled[1]) || polled[0].revents == 0 ? -EXDEV : 1;
}

/* 1, 0, -1 with an exception; or -EXDEV: the connection is plain now. */
static int poll_joined(ConnectionObject *self, int64_t deadline)
{
    for (;;) {
        int fd = open_fd(self);
        if (fd < 0)
            return -1;
        mpx_duct_t *duct = mpx_end_receives_from(&self->end);
        int status = look_joined(self, fd);
        if (status > 0)
            return status;
        if (status == -EXDEV || (duct != NULL && mpx_duct_is_stopped(duct))) {
            mpx_connection_leave(self);
            if (!mpx_end_is_joined(&self->end))
                return -EXDEV;
        }
        if (deadline <= mpx_os_now())
            return 0;
        int64_t piece = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        if (duct != NULL) {
            status = wait_for_message(self, duct, fd, piece);
        } else {
            struct pollfd polled[2] = {{.fd = fd, .events = POLLIN}, mpx_end_polls(&self->end)};
            status = mpx_os_poll(polled, 2, piece);
            status = status == 0 ? -ETIMEDOUT : status > 0 ? 0 : status;
        }
        Py_END_ALLOW_THREADS
        if (status < 0 && status != -EXDEV && !goes_on(&status, deadline))
            return status == -EINTR ? -1 : 0;
    }
}

int mpx_connection_poll(ConnectionObject *self, int64_t deadline)
{
    if (mpx_end_is_joined(&self->end)) {
        int has = poll_joined(self, deadline);
        if (has != -EXDEV)
            return has;
    }
    struct pollfd polled = {.fd = mpx_connection_fd(self), .events = POLLIN};
    int ready = mpx_os_poll(&polled, 1, 0);
    int64_t end = deadline;
    while (ready == 0 || ready == -EINTR) {
        int status = ready == 0 ? -ETIMEDOUT : -EINTR;
        if (!mpx_wait_on(&status, deadline))
            return status == -EINTR ? -1 : 0;
        int fd = open_fd(self);
        if (fd < 0)
            return -1;
        end = mpx_piece_of(deadline);
        Py_BEGIN_ALLOW_THREADS
        ready = look(fd, &self->receiver_mood, end);
        Py_END_ALLOW_THREADS
        if (ready > 0 && mpx_connection_fd(self) != fd)
            ready = 0; /* it was closed meanwhile, and poll() says so */
    }
    if (ready < 0)
        mpx_raise(ready);
    return ready < 0 ? -1 : 1;
}

void mpx_connection_end(ConnectionObject *self)
{
    if (mpx_turn_is_mine(&self->sender)) {
        for (mpx_sending_t *sending = self->sending; sending != NULL; sending = sending->before)
            mpx_own_fd_drop(&sending->own);
    }
    if (mpx_turn_is_anothers(&self->sender))
        mpx_end_hide(&self->end);
    (void)mpx_u32_exchange_acq_rel(&self->is_ended, 1);
    see_to_end(self);
}

void mpx_connection_forget(ConnectionObject *self)
{
    tear(&self->rest);
    drop_rest(self);
    Py_CLEAR(self->content.bytes);
    mpx_buffer_free(&self->content.buffer);
    mpx_end_forget(&self->end);
}
