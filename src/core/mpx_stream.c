/* mpx_stream.c - see mpx_stream.h.
 *
 * Layer: L2
 */
#include "mpx_stream.h"

#include <errno.h>
#include <string.h>

#define SHORT_HEADER  4
#define LARGEST_SHORT UINT64_C(0x7fffffff)

/* ---- Numbers in network order ---------------------------------------------------------------- */

static void write_number(unsigned char *bytes, size_t count, uint64_t number)
{
    while (count > 0) {
        bytes[--count] = (unsigned char)number;
        number >>= 8;
    }
}

static uint64_t read_number(const unsigned char *bytes, size_t count)
{
    uint64_t number = 0;
    for (size_t i = 0; i < count; i++) {
        number = number << 8 | bytes[i];
    }
    return number;
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* The number of a descriptor that another thread has closed may be another file's by now. */
static bool is_closed(int fd, const mpx_stream_wait_t *wait)
{
    return wait->handle != NULL && mpx_u32_load_relaxed(wait->handle) != (uint32_t)fd;
}

/* 0, -ETIMEDOUT or -EINTR; 1: something is wrong with the descriptor. */
static int sleep_until_ready(int fd, short events, const mpx_stream_wait_t *wait)
{
    struct pollfd look = {.fd = fd, .events = events};
    int ready = mpx_os_poll(&look, 1, wait->deadline);
    if (ready < 0) {
        return ready;
    }
    if (ready == 0 || is_closed(fd, wait)) {
        return -ETIMEDOUT;
    }
    return (look.revents & (POLLERR | POLLHUP)) != 0;
}

static ssize_t read_now(int fd, bool is_socket, void *data, size_t size)
{
    ssize_t got = is_socket ? mpx_os_recv_now(fd, data, size) : -ENOTSOCK;
    return got == -ENOTSOCK ? mpx_os_read_now(fd, data, size) : got;
}

static ssize_t write_now(int fd, bool is_socket, const struct iovec *parts, int count)
{
    ssize_t put = is_socket ? mpx_os_send_now(fd, parts, count) : -ENOTSOCK;
    return put == -ENOTSOCK ? mpx_os_write_now(fd, parts, count) : put;
}

/* Where poll says that something can be done, and then it cannot: somebody else was first, or the
 * descriptor is of a kind that poll says this of always. There is no waiting but in the call. */
static ssize_t read_waiting(int fd, bool is_socket, void *data, size_t size,
                            const mpx_stream_wait_t *wait)
{
    ssize_t got;
    for (unsigned tries = 0; mpx_wait_yields(wait->mood, tries, wait->deadline); tries++) {
        if (is_closed(fd, wait)) {
            return -ETIMEDOUT;
        }
        got = read_now(fd, is_socket, data, size);
        if (got != -EAGAIN) {
            return got;
        }
    }
    do {
        int status = sleep_until_ready(fd, POLLIN, wait);
        if (status < 0) {
            return status;
        }
        got = read_now(fd, is_socket, data, size);
        if (got == -EAGAIN) {
            got = mpx_os_read(fd, data, size);
        }
    } while (got == -EAGAIN);
    return got;
}

static ssize_t write_waiting(int fd, const mpx_outflow_t *out, const struct iovec *parts, int count,
                             const mpx_stream_wait_t *wait)
{
    bool is_socket = out->is_socket;
    ssize_t put;
    for (unsigned tries = 0; mpx_wait_yields(wait->mood, tries, wait->deadline); tries++) {
        if (is_closed(fd, wait)) {
            return -ETIMEDOUT;
        }
        put = write_now(fd, is_socket, parts, count);
        if (put != -EAGAIN) {
            return put;
        }
    }
    do {
        int status = sleep_until_ready(fd, POLLOUT, wait);
        if (status < 0) {
            return status;
        }
        if (status > 0 && (put = mpx_outflow_error(out, fd)) < 0) {
            return put;
        }
        put = write_now(fd, is_socket, parts, count);
        if (put == -EAGAIN) {
            put = mpx_os_write(fd, parts, count);
        }
    } while (put == -EAGAIN);
    return put;
}

static ssize_t read_some(const mpx_inflow_t *in, int fd, void *data, size_t size,
                         const mpx_stream_wait_t *wait)
{
    ssize_t got = read_now(fd, in->is_socket, data, size);
    return got == -EAGAIN && wait != NULL ? read_waiting(fd, in->is_socket, data, size, wait) : got;
}

/* ---- Out ------------------------------------------------------------------------------------- */

static void write_header(mpx_outflow_t *out, uint64_t size)
{
    if (size <= LARGEST_SHORT) {
        out->header_size = SHORT_HEADER;
        write_number(out->header, SHORT_HEADER, size);
    } else {
        out->header_size = MPX_STREAM_HEADER;
        memset(out->header, 0xff, SHORT_HEADER);
        write_number(out->header + SHORT_HEADER, MPX_STREAM_HEADER - SHORT_HEADER, size);
    }
}

void mpx_outflow_begin(mpx_outflow_t *out, const char *data, size_t size)
{
    out->brackets.before_size = out->brackets.after_size = 0;
    out->data = data;
    out->size = size;
    out->done = 0;
    out->is_socket = false;
    write_header(out, size);
}

void mpx_outflow_begin_within(mpx_outflow_t *out, const mpx_brackets_t *brackets, const char *data,
                              size_t size)
{
    mpx_outflow_begin(out, data, size);
    out->brackets = *brackets;
    write_header(out, (uint64_t)brackets->before_size + size + brackets->after_size);
}

#define PARTS 4

/* What is left, in so many parts. */
static int rest_of(const mpx_outflow_t *out, struct iovec *rest)
{
    const mpx_brackets_t *brackets = &out->brackets;
    const struct iovec parts[PARTS] = {
        {(void *)out->header, out->header_size},
        {(void *)brackets->before, brackets->before_size},
        {(void *)out->data, out->size},
        {(void *)brackets->after, brackets->after_size},
    };
    size_t done = out->done;
    int count = 0;
    for (int i = 0; i < PARTS; i++) {
        size_t size = parts[i].iov_len, skipped = done < size ? done : size;
        done -= skipped;
        if (size > skipped) {
            rest[count++] = (struct iovec){(char *)parts[i].iov_base + skipped, size - skipped};
        }
    }
    return count;
}

void mpx_outflow_copy_rest(const mpx_outflow_t *out, char *to)
{
    struct iovec rest[PARTS];
    int count = rest_of(out, rest);
    for (int i = 0; i < count; i++) {
        memcpy(to, rest[i].iov_base, rest[i].iov_len);
        to += rest[i].iov_len;
    }
}

int mpx_outflow_error(const mpx_outflow_t *out, int fd)
{
    int error = out->is_socket ? mpx_os_local_socket_error(fd) : 0;
    return error < 0 && out->done > 0 ? -EPIPE : error;
}

int mpx_outflow_write(mpx_outflow_t *out, int fd, const mpx_stream_wait_t *wait)
{
    struct iovec rest[PARTS];
    int count = rest_of(out, rest);
    ssize_t put = write_now(fd, out->is_socket, rest, count);
    if (put == -EAGAIN && wait != NULL) {
        put = write_waiting(fd, out, rest, count, wait);
    }
    if (put < 0) {
        return (int)put;
    }
    out->done += (size_t)put;
    return 0;
}

/* ---- In -------------------------------------------------------------------------------------- */

/* The status of a read of `got` bytes, of a part of a message of which `before` had come. */
static int status_of(ssize_t got, uint64_t before)
{
    if (got == 0) {
        return before == 0 ? -EPIPE : -EPROTO;
    }
    return got < 0 ? (int)got : 0;
}

/* The header's first four bytes are there. How many it has in all. */
static unsigned header_length(const mpx_inflow_t *in)
{
    return read_number(in->header, SHORT_HEADER) == UINT32_MAX ? MPX_STREAM_HEADER : SHORT_HEADER;
}

static int take_size(mpx_inflow_t *in)
{
    uint64_t size, most;
    if (in->header_got == SHORT_HEADER) {
        size = read_number(in->header, SHORT_HEADER);
        most = LARGEST_SHORT;
    } else {
        size = read_number(in->header + SHORT_HEADER, MPX_STREAM_HEADER - SHORT_HEADER);
        most = INT64_MAX;
    }
    if (size > most) {
        return -EBADMSG;
    }
    in->size = size;
    in->has_size = true;
    return 0;
}

int mpx_inflow_read_header(mpx_inflow_t *in, int fd, const mpx_stream_wait_t *wait)
{
    unsigned start = in->header_got < SHORT_HEADER ? 0 : SHORT_HEADER;
    unsigned end = start == 0 ? SHORT_HEADER : MPX_STREAM_HEADER;
    ssize_t got = read_some(in, fd, in->header + in->header_got, end - in->header_got, wait);
    int status = status_of(got, in->header_got - start);
    if (status < 0) {
        return status;
    }
    in->header_got += (unsigned)got;
    if (in->header_got < SHORT_HEADER || in->header_got < header_length(in)) {
        return 0;
    }
    return take_size(in);
}

int mpx_inflow_read(mpx_inflow_t *in, int fd, char *data, size_t room,
                    const mpx_stream_wait_t *wait)
{
    uint64_t left = in->size - in->got;
    if (left == 0 || room == 0) {
        return 0; /* to read nothing would look like the end */
    }
    ssize_t got = read_some(in, fd, data, room < left ? room : (size_t)left, wait);
    int status = status_of(got, in->got);
    if (status == 0) {
        in->got += (uint64_t)got;
    }
    return status;
}
