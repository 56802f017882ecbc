/* connection_traffic.c - see connection.h.
 *
 * What can be done at once is done with the GIL held, where it is short; without it, what is long
 * or has to wait. Signal handlers run between the steps, and whatever they do is done when the next
 * step looks: so each begins with a look at the descriptor and at what there is left to do.
 */
#include "connection.h"

#include <errno.h>

#include "mpx_os.h"

/* Above this many bytes a system call takes longer than giving up the GIL and getting it back. */
#define LONG ((size_t)16 << 10)

/* So much memory is taken for a message because its header says so; more, as it comes. */
#define TRUSTED ((size_t)1 << 20)

/* ---- Steps ----------------------------------------------------------------------------------- */

typedef struct {
    ConnectionObject *connection;
    mpx_outflow_t *out; /* or NULL: of receiving */
    size_t size;        /* at most, of what it transfers */
} step_t;

static int transfer(const step_t *step, int fd, const mpx_stream_wait_t *wait)
{
    ConnectionObject *self = step->connection;
    if (step->out != NULL)
        return mpx_outflow_write(step->out, fd, wait);
    self->in.is_socket = mpx_u32_load_relaxed(&self->is_socket);
    if (!self->in.has_size)
        return mpx_inflow_read_header(&self->in, fd, wait);
    mpx_buffer_t *content = &self->content;
    return mpx_inflow_read(&self->in, fd, content->data + self->in.got,
                           content->capacity - self->in.got, wait);
}

static bool has_begun(const step_t *step)
{
    if (step->out != NULL)
        return step->out->done > 0;
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

/* -EINTR with an exception of a signal handler; or 0: look again. */
static int wait_and_transfer(const step_t *step, int fd)
{
    ConnectionObject *self = step->connection;
    mpx_stream_wait_t wait = {
        .mood = step->out != NULL ? &self->sender_mood : &self->receiver_mood,
        .deadline = mpx_piece_of(MPX_NEVER),
        .handle = &self->handle,
    };
    int status = transfer_without_gil(step, fd, &wait);
    if (status == -ETIMEDOUT || status == -EINTR)
        return mpx_wait_on(&status, MPX_NEVER) ? 0 : -EINTR;
    return status;
}

/* The descriptor, which may have been closed meanwhile; -1 with an exception. */
static int open_fd(ConnectionObject *self)
{
    int fd = mpx_connection_fd(self);
    if (fd < 0)
        PyErr_SetString(PyExc_OSError, "handle is closed");
    return fd;
}

/* Does a part of it: 0; or a negative errno, -EINTR with an exception. */
static int take_step(const step_t *step)
{
    int fd = open_fd(step->connection);
    if (fd < 0)
        return -EINTR;
    int status =
        step->size < LONG ? transfer(step, fd, NULL) : transfer_without_gil(step, fd, NULL);
    if (status != -EAGAIN || (!has_begun(step) && mpx_os_is_nonblocking(fd)))
        return status;
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
    PyMem_RawFree((char *)self->rest.out.data);
    self->rest = (mpx_sending_t){.before = NULL};
}

static bool has_rest(const ConnectionObject *self)
{
    return mpx_outflow_left(&self->rest.out) > 0;
}

/* Keeps what is left of a message that the reader has the beginning of. */
static void keep_rest(ConnectionObject *self, const mpx_sending_t *sending)
{
    const mpx_outflow_t *out = &sending->out;
    size_t left = mpx_outflow_left(out), in_header = 0;
    char *copy = PyMem_RawMalloc(left);
    if (copy == NULL) {
        /* The reader would take the next message for the rest of this one. */
        mpx_u32_store_relaxed(&self->writable, false);
        return;
    }
    if (out->done < out->header_size) {
        in_header = out->header_size - out->done;
        memcpy(copy, out->header + out->done, in_header);
    }
    if (left > in_header)
        memcpy(copy + in_header, out->data + (out->size - (left - in_header)), left - in_header);
    drop_rest(self);
    self->rest.out = (mpx_outflow_t){.data = copy, .size = left};
    self->rest.process = sending->process;
}

/* Writes what is left of the messages that were begun before this one, and then this one: 0; or a
 * negative errno with an exception, which with -EINTR is a signal handler's. In a child that a
 * handler forks there is nothing left of what its parent goes on with. */
static int write_in_order(ConnectionObject *self, mpx_sending_t *sending)
{
    int status = sending->before == NULL ? 0 : write_in_order(self, sending->before);
    if (status < 0)
        return status;
    while (mpx_outflow_left(&sending->out) > 0 && sending->process == mpx_os_own_word()) {
        const step_t step = {self, &sending->out, mpx_outflow_left(&sending->out)};
        status = take_step(&step);
        if (status < 0) {
            if (status != -EINTR)
                mpx_raise(status);
            return status;
        }
    }
    return 0;
}

static int send_in_turn(ConnectionObject *self, const char *data, size_t size)
{
    if (!is_keeper(self, &self->sending_of)) {
        drop_rest(self);
        self->sending = NULL; /* of another thread of the parent's, mostly */
    }
    mpx_sending_t mine = {.before = self->sending, .process = self->sending_of.process};
    mpx_outflow_begin(&mine.out, data, size);
    mine.out.is_socket = mpx_u32_load_relaxed(&self->is_socket);
    if (mine.before == NULL && has_rest(self))
        mine.before = &self->rest;
    self->sending = &mine;
    int status = write_in_order(self, &mine);
    self->sending = mine.before == &self->rest ? NULL : mine.before;
    if (MPX_UNLIKELY(self->rest.out.data != NULL) && self->sending == NULL && !has_rest(self))
        drop_rest(self);
    bool is_torn = mine.out.done > 0 && mpx_outflow_left(&mine.out) > 0;
    if (status == -EINTR && is_torn && mpx_connection_fd(self) >= 0)
        keep_rest(self, &mine);
    return status;
}

int mpx_connection_send(ConnectionObject *self, const char *data, size_t size)
{
    if (mpx_turn_take(&self->sender) < 0)
        return -1;
    int status = send_in_turn(self, data, size);
    mpx_turn_end(&self->sender);
    return status;
}

/* ---- Receiving ------------------------------------------------------------------------------- */

static void drop_message(ConnectionObject *self)
{
    mpx_inflow_reset(&self->in);
    if (self->content.data != NULL)
        mpx_give_buffer(self->module, &self->content);
    self->content = (mpx_buffer_t){.data = NULL};
}

static int raise_unreceived(ConnectionObject *self, int status)
{
    if (status == -EPIPE || status == -EPROTO) {
        drop_message(self);
        if (status == -EPIPE)
            PyErr_SetNone(PyExc_EOFError);
        else
            PyErr_SetString(PyExc_OSError, "got end of file during message");
    } else if (status != -EINTR) {
        mpx_raise(status);
    }
    return -1;
}

/* Room for the next bytes of the content. */
static int make_room(ConnectionObject *self)
{
    mpx_buffer_t *content = &self->content;
    uint64_t left = self->in.size - self->in.got;
    size_t more = self->in.got == 0 ? TRUSTED : (size_t)self->in.got;
    if (content->data == NULL)
        mpx_take_buffer(self->module, content);
    content->size = (size_t)self->in.got;
    if (content->size > 0 && content->size < content->capacity)
        return 0;
    return mpx_buffer_grow(content, left < more ? (size_t)left : more);
}

/* A message that is no longer being received is the caller's. */
static void hand_over(ConnectionObject *self, mpx_buffer_t *message)
{
    *message = self->content;
    message->size = (size_t)self->in.got;
    self->content = (mpx_buffer_t){.data = NULL};
    mpx_inflow_reset(&self->in);
}

static int receive_in_turn(ConnectionObject *self, Py_ssize_t most, mpx_buffer_t *message)
{
    const mpx_inflow_t *in = &self->in;
    if (!is_keeper(self, &self->receiving_of))
        drop_message(self);
    for (;;) {
        step_t step = {.connection = self, .out = NULL, .size = MPX_STREAM_HEADER};
        if (in->has_size) {
            if (most >= 0 && in->size > (uint64_t)most)
                return 1;
            if (in->got == in->size) {
                hand_over(self, message);
                return 0;
            }
            if (make_room(self) < 0)
                return -1;
            step.size = (size_t)(in->size - in->got);
        }
        int status = take_step(&step);
        if (status == -EBADMSG)
            return 1;
        if (status < 0)
            return raise_unreceived(self, status);
    }
}

int mpx_connection_receive(ConnectionObject *self, Py_ssize_t most, mpx_buffer_t *message)
{
    if (mpx_turn_take(&self->receiver) < 0)
        return -1;
    int status = receive_in_turn(self, most, message);
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

int mpx_connection_poll(ConnectionObject *self, int64_t deadline)
{
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

void mpx_connection_forget(ConnectionObject *self)
{
    drop_rest(self);
    mpx_buffer_free(&self->content);
}
