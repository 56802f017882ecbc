/* mpx_stream.h - messages through a pipe or a socket, in the form of the standard library's
 * multiprocessing.connection: the size in 4 bytes, in network order, and the content; above 2 GiB
 * -1, the size in 8 bytes, and the content.
 *
 * What a message has come to is kept between calls: who is interrupted in the middle goes on there,
 * or somebody else does. One thread at a time in each direction.
 *
 * Layer: L2
 */
#ifndef MPX_STREAM_H
#define MPX_STREAM_H

#include "mpx_os.h"
#include "mpx_wait.h"

#define MPX_STREAM_HEADER 12

/* How long to wait where nothing can be done at once; in place of a pointer to one, NULL: do not.
 */
typedef struct {
    mpx_wait_mood_t *mood; /* of the descriptor's readers, or of its writers */
    int64_t deadline;
    mpx_atomic_u32 *handle; /* the descriptor; another number once it is closed. Or NULL */
} mpx_stream_wait_t;

/* The functions below do what they can at once, which may be a part, and return 0; or
 *   -EAGAIN     nothing can be done, and there was no waiting for it
 *   -ETIMEDOUT  nothing, by the deadline; or the descriptor was closed meanwhile
 *   -EINTR      a signal handler ran
 * or another negative errno. */

/* ---- Out ------------------------------------------------------------------------------------- */

/* A few bytes of a message that stand before and behind those that somebody has. */
typedef struct {
    unsigned char before[8], after[4];
    unsigned before_size, after_size;
} mpx_brackets_t;

/* A message that is being sent; the content stays its owner's. */
typedef struct {
    unsigned char header[MPX_STREAM_HEADER];
    size_t header_size;
    mpx_brackets_t brackets;
    const char *data;
    size_t size;
    size_t done;    /* bytes of all these that have been written */
    bool is_socket; /* it probably goes through one: see mpx_os_is_stream_socket */
} mpx_outflow_t;

void mpx_outflow_begin(mpx_outflow_t *out, const char *data, size_t size);

/* The same, of a message that the brackets are a part of. */
void mpx_outflow_begin_within(mpx_outflow_t *out, const mpx_brackets_t *brackets, const char *data,
                              size_t size);

/* How many bytes are written in all. */
static inline size_t mpx_outflow_length(const mpx_outflow_t *out)
{
    return out->header_size + out->brackets.before_size + out->size + out->brackets.after_size;
}

static inline size_t mpx_outflow_left(const mpx_outflow_t *out)
{
    return mpx_outflow_length(out) - out->done;
}

/* Copies what is left. */
void mpx_outflow_copy_rest(const mpx_outflow_t *out, char *to);

/* Who waits for room in a local socket, and finds that the other end is closed: what a call says
 * that sleeps in the kernel, which takes the socket's error with it; it has written nothing, or a
 * part, and then the next call says -EPIPE. 0: the next call says it. */
MPX_NODISCARD int mpx_outflow_error(const mpx_outflow_t *out, int fd);

MPX_NODISCARD int mpx_outflow_write(mpx_outflow_t *out, int fd, const mpx_stream_wait_t *wait);

/* ---- In -------------------------------------------------------------------------------------- */

/* The message that is being received; all zero but for is_socket: none has begun. */
typedef struct {
    unsigned char header[MPX_STREAM_HEADER];
    unsigned header_got;
    bool has_size;
    uint64_t size; /* with has_size */
    uint64_t got;  /* bytes of the content that have been read */
    bool is_socket;
} mpx_inflow_t;

/* What comes next begins a message. */
static inline void mpx_inflow_reset(mpx_inflow_t *in)
{
    in->header_got = 0;
    in->has_size = false;
    in->got = 0;
}

static inline bool mpx_inflow_has_begun(const mpx_inflow_t *in)
{
    return in->header_got > 0;
}

/* Of both, besides the errors above:
 *   -EPIPE   the end, where a part of a message could have begun: the size in 4 bytes, that in 8,
 *            or the content
 *   -EPROTO  the end, in the middle of a part */

/* Reads of the header; it is there once in->has_size. -EBADMSG: what it says is no size. */
MPX_NODISCARD int mpx_inflow_read_header(mpx_inflow_t *in, int fd, const mpx_stream_wait_t *wait);

/* Reads of the content, at most `room` bytes, to where data points. */
MPX_NODISCARD int mpx_inflow_read(mpx_inflow_t *in, int fd, char *data, size_t room,
                                  const mpx_stream_wait_t *wait);

#endif
