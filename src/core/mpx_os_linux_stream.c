/* mpx_os_linux_stream.c - Linux: bytes through pipes and sockets, and waiting for them.
 *
 * Layer: L1
 *
 * Not to wait is asked of each call, by RWF_NOWAIT; where the kernel does not know that of a
 * descriptor, sockets have MSG_DONTWAIT, and of a pipe poll says that there is something to read,
 * or room for PIPE_BUF bytes. Of what is known to be a socket MSG_DONTWAIT is asked at once: such a
 * call does not go by way of the file system (0.3 us for 0.65 where there is nothing to read).
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The offset of a stream is wherever it is: -1, in the two halves that the system call takes. */
#define CURRENT_OFFSET -1L, -1L

static ssize_t preadv2_now(int fd, const struct iovec *parts, int count)
{
    return syscall(SYS_preadv2, fd, parts, count, CURRENT_OFFSET, MPX_RWF_NOWAIT);
}

static ssize_t pwritev2_now(int fd, const struct iovec *parts, int count)
{
    return syscall(SYS_pwritev2, fd, parts, count, CURRENT_OFFSET, MPX_RWF_NOWAIT);
}

bool mpx_os_probe_nowait(void)
{
    return preadv2_now(-1, NULL, 0) < 0 && errno == EBADF; /* the system call is there */
}

static bool is_ready(int fd, short events)
{
    struct pollfd look = {.fd = fd, .events = events};
    return poll(&look, 1, 0) != 0; /* an error is the next call's to say */
}

bool mpx_os_is_stream_socket(int fd)
{
    int type;
    socklen_t size = sizeof(type);
    return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

int64_t mpx_os_socket_patience(int fd, bool sends)
{
    struct timeval time = {0, 0};
    socklen_t size = sizeof(time);
    if (getsockopt(fd, SOL_SOCKET, sends ? SO_SNDTIMEO : SO_RCVTIMEO, &time, &size) < 0 ||
        (time.tv_sec == 0 && time.tv_usec == 0)) {
        return MPX_NEVER;
    }
    int64_t most = MPX_NEVER / MPX_NANOS_PER_SEC - 1;
    return time.tv_sec > most ? MPX_NEVER
                              : time.tv_sec * MPX_NANOS_PER_SEC + time.tv_usec * INT64_C(1000);
}

int mpx_os_local_socket_error(int fd)
{
    int domain = 0, error = 0;
    socklen_t size = sizeof(domain);
    if (getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) < 0 || domain != AF_UNIX) {
        return 0;
    }
    return getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? -error : 0;
}

bool mpx_os_closes_at_once(int fd)
{
    struct stat info;
    struct linger linger;
    socklen_t size = sizeof(linger);
    if (fstat(fd, &info) < 0 || S_ISFIFO(info.st_mode)) {
        return true;
    }
    return S_ISSOCK(info.st_mode) && getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &size) == 0 &&
           linger.l_onoff == 0;
}

ssize_t mpx_os_recv_now(int fd, void *data, size_t size)
{
    ssize_t got = MPX_SYS(stream_recv, recv(fd, data, size, MSG_DONTWAIT));
    return got < 0 ? -errno : got;
}

static ssize_t send_parts(int fd, const struct iovec *parts, int count)
{
    struct msghdr message = {.msg_iov = (struct iovec *)parts, .msg_iovlen = (size_t)count};
    ssize_t put = MPX_SYS(stream_send, sendmsg(fd, &message, MSG_DONTWAIT));
    return put < 0 ? -errno : put;
}

/* To copy so many bytes takes less time than to tell the kernel of several parts. */
#define SHORT 512

ssize_t mpx_os_send_now(int fd, const struct iovec *parts, int count)
{
    char copy[SHORT];
    size_t size = 0;
    for (int i = 0; i < count; i++) {
        if (parts[i].iov_len > SHORT - size) {
            return send_parts(fd, parts, count);
        }
        memcpy(copy + size, parts[i].iov_base, parts[i].iov_len);
        size += parts[i].iov_len;
    }
    ssize_t put = MPX_SYS(stream_send, send(fd, copy, size, MSG_DONTWAIT));
    return put < 0 ? -errno : put;
}

ssize_t mpx_os_read(int fd, void *data, size_t size)
{
    ssize_t got = MPX_SYS(stream_read, read(fd, data, size));
    return got < 0 ? -errno : got;
}

ssize_t mpx_os_write(int fd, const struct iovec *parts, int count)
{
    ssize_t put = MPX_SYS(stream_write, writev(fd, parts, count));
    return put < 0 ? -errno : put;
}

static ssize_t read_what_is_seen(int fd, void *data, size_t size)
{
    return is_ready(fd, POLLIN) ? mpx_os_read(fd, data, size) : -EAGAIN;
}

ssize_t mpx_os_read_now(int fd, void *data, size_t size)
{
    struct iovec part = {data, size};
    if (!mpx_os_has(MPX_HAS_NOWAIT)) {
        return read_what_is_seen(fd, data, size);
    }
    ssize_t got = MPX_SYS(stream_read_now, preadv2_now(fd, &part, 1));
    if (got >= 0) {
        return got;
    }
    return errno == EOPNOTSUPP ? read_what_is_seen(fd, data, size) : -errno;
}

/* Of a pipe: a write of PIPE_BUF bytes has room where poll says that there is any. */
static ssize_t write_where_room_is_seen(int fd, const struct iovec *parts, int count)
{
    struct iovec few[2];
    size_t left = PIPE_BUF;
    int used = 0;
    if (!is_ready(fd, POLLOUT)) {
        return -EAGAIN;
    }
    for (; used < count && used < 2 && left > 0; used++) {
        few[used] = parts[used];
        if (few[used].iov_len > left) {
            few[used].iov_len = left;
        }
        left -= few[used].iov_len;
    }
    return mpx_os_write(fd, few, used);
}

static ssize_t write_without_nowait(int fd, const struct iovec *parts, int count)
{
    ssize_t put = send_parts(fd, parts, count);
    return put == -ENOTSOCK ? write_where_room_is_seen(fd, parts, count) : put;
}

ssize_t mpx_os_write_now(int fd, const struct iovec *parts, int count)
{
    if (!mpx_os_has(MPX_HAS_NOWAIT)) {
        return write_without_nowait(fd, parts, count);
    }
    ssize_t put = MPX_SYS(stream_write_now, pwritev2_now(fd, parts, count));
    if (put >= 0) {
        return put;
    }
    return errno == EOPNOTSUPP ? write_without_nowait(fd, parts, count) : -errno;
}

int mpx_os_poll(struct pollfd *fds, size_t count, int64_t deadline)
{
    struct timespec left = {0, 0};
    int64_t now = deadline == MPX_NEVER ? 0 : mpx_os_now();
    if (deadline > now) {
        left.tv_sec = (deadline - now) / MPX_NANOS_PER_SEC;
        left.tv_nsec = (deadline - now) % MPX_NANOS_PER_SEC;
    }
    int ready = MPX_SYS(poll, ppoll(fds, count, deadline == MPX_NEVER ? NULL : &left, NULL));
    return ready < 0 ? -errno : ready;
}

int mpx_os_unread(int fd)
{
    int bytes;
    return MPX_SYS(unread, ioctl(fd, FIONREAD, &bytes)) < 0 ? -errno : bytes;
}

bool mpx_os_is_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && (flags & O_NONBLOCK) != 0;
}
