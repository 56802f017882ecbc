/* mpx_bell.c - see mpx_bell.h.
 *
 * Layer: L2
 */
#include "mpx_bell.h"

#include "mpx_fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

static bool is_own(const mpx_bell_t *bell, int fd)
{
    return mpx_os_is_file(fd, bell->file);
}

bool mpx_bell_is_whole(const mpx_bell_t *bell)
{
    return (bell->reader < 0 || is_own(bell, bell->reader)) &&
           (bell->writer < 0 || is_own(bell, bell->writer));
}

static int recognise(mpx_bell_t *bell)
{
    mpx_file_info_t info;
    int status = mpx_os_file_info(bell->reader >= 0 ? bell->reader : bell->writer, &info);
    bell->file = info.id;
    return status;
}

int mpx_bell_new(mpx_bell_t *bell)
{
    int ends[2];
    int status = mpx_os_pipe(ends);
    if (status < 0) {
        return status;
    }
    *bell = (mpx_bell_t){.reader = ends[0], .writer = ends[1]};
    if (MPX_SYS(bell_nonblock, fcntl(ends[0], F_SETFL, O_NONBLOCK)) < 0 ||
        MPX_SYS(bell_nonblock, fcntl(ends[1], F_SETFL, O_NONBLOCK)) < 0) {
        status = -errno;
    }
    if (status == 0) {
        status = recognise(bell);
    }
    if (status < 0) {
        close(ends[0]);
        close(ends[1]);
    }
    return status;
}

int mpx_bell_adopt(mpx_bell_t *bell, int reader, int writer)
{
    *bell = (mpx_bell_t){.reader = reader, .writer = writer};
    return recognise(bell);
}

static void close_end(const mpx_bell_t *bell, int *end)
{
    if (is_own(bell, *end)) {
        close(*end);
    }
    *end = -1;
}

void mpx_bell_close_reader(mpx_bell_t *bell)
{
    close_end(bell, &bell->reader);
}

void mpx_bell_close_writer(mpx_bell_t *bell)
{
    close_end(bell, &bell->writer);
}

/* A pipe that is full is readable. Without a reader there is nobody to see it, and no SIGPIPE is
 * wanted for that. */
bool mpx_bell_ring(const mpx_bell_t *bell)
{
    if (!is_own(bell, bell->writer) || mpx_bell_has_no_reader(bell)) {
        return false;
    }
    (void)!MPX_SYS(bell_write, write(bell->writer, "", 1));
    return true;
}

void mpx_bell_quiet(const mpx_bell_t *bell)
{
    char bytes[64];
    if (is_own(bell, bell->reader)) {
        while (MPX_SYS(bell_read, read(bell->reader, bytes, sizeof(bytes))) == sizeof(bytes)) {
        }
    }
}

static bool has_event(const mpx_bell_t *bell, int fd, short event)
{
    struct pollfd polled = {.fd = fd};
    return is_own(bell, fd) && poll(&polled, 1, 0) == 1 && (polled.revents & event) != 0;
}

bool mpx_bell_has_no_writer(const mpx_bell_t *bell)
{
    return has_event(bell, bell->reader, POLLHUP);
}

bool mpx_bell_has_no_reader(const mpx_bell_t *bell)
{
    return has_event(bell, bell->writer, POLLERR);
}
