/* mpx_os_linux_fds.c - Linux: closing many descriptors, also between vfork and exec; descriptors
 * that stay off the standard streams.
 *
 * Layer: L1
 *
 * What closes runs on the parent's memory while the parent is suspended: no allocation, no lock, no
 * opendir. Three ways, each where the one before is missing: close_range, /proc/self/fd, trying
 * them all.
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

int mpx_os_above_stdio(int fd)
{
    if (fd < 0 || fd > STDERR_FILENO) {
        return fd;
    }
    int moved = MPX_SYS(above_stdio, fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
    int status = moved < 0 ? -errno : moved;
    close(fd);
    return status;
}

int mpx_os_pipe(int ends[2])
{
    if (MPX_SYS(pipe, pipe2(ends, O_CLOEXEC)) < 0) {
        return -errno;
    }
    for (int i = 0; i < 2; i++) {
        ends[i] = mpx_os_above_stdio(ends[i]);
        if (ends[i] < 0) {
            int status = ends[i];
            close(ends[1 - i]);
            return status;
        }
    }
    return 0;
}

/* As the kernel writes them; libc's struct dirent is another layout on some systems. */
struct kernel_dirent {
    uint64_t inode;
    int64_t next;
    unsigned short record_length;
    unsigned char type;
    char name[];
};

/* The kernel's default for fs.nr_open: without close_range or /proc nobody says how far to go. */
#define HIGHEST_TRIED ((rlim_t)1 << 20)

static int close_range_by_kernel(unsigned first, unsigned last)
{
    return MPX_SYS(close_range, (int)syscall(MPX_SYS_CLOSE_RANGE, first, last, 0)) < 0 ? -errno : 0;
}

bool mpx_os_probe_close_range(void)
{
    return close_range_by_kernel(~0U, ~0U) == 0; /* no descriptor has this number */
}

/* The number in a name of /proc/self/fd, -1 for "." and "..". */
static int descriptor_of(const char *name)
{
    int number = 0;
    for (; *name != '\0'; name++) {
        if (*name < '0' || *name > '9') {
            return -1;
        }
        number = number * 10 + (*name - '0');
    }
    return number;
}

static void close_listed(const char *entries, long length, unsigned first, unsigned last,
                         int directory)
{
    for (long at = 0; at < length;) {
        const struct kernel_dirent *entry = (const void *)(entries + at);
        int fd = descriptor_of(entry->name);
        if (fd >= 0 && fd != directory && (unsigned)fd >= first && (unsigned)fd <= last) {
            close(fd);
        }
        at += entry->record_length;
    }
}

/* The kernel lists descriptors by number from where it stopped, so closing some on the way hides
 * none of the rest. */
static int close_range_by_proc(unsigned first, unsigned last)
{
    MPX_ALIGNED(8) char entries[2048];
    int directory = MPX_SYS(open_fds, open("/proc/self/fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    if (directory < 0) {
        return -errno;
    }
    long length;
    do {
        length = MPX_SYS(getdents, syscall(SYS_getdents64, directory, entries, sizeof(entries)));
        close_listed(entries, length, first, last, directory);
    } while (length > 0);
    int status = length < 0 ? -errno : 0;
    close(directory);
    return status;
}

/* The hard limit, since descriptors stay open when a program lowers its soft one. */
static void close_range_one_by_one(unsigned first, unsigned last)
{
    struct rlimit limit;
    rlim_t end = HIGHEST_TRIED;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_max < end) {
        end = limit.rlim_max;
    }
    for (rlim_t fd = first; fd < end && fd <= last; fd++) {
        close((int)fd);
    }
}

void mpx_os_close_range(unsigned first, unsigned last)
{
    if (first > last) {
        return;
    }
    if (mpx_os_enabled(MPX_HAS_CLOSE_RANGE) && close_range_by_kernel(first, last) == 0) {
        return;
    }
    if (close_range_by_proc(first, last) == 0) {
        return;
    }
    close_range_one_by_one(first, last);
}

void mpx_os_close_except(unsigned first, const int *keep, size_t keep_count)
{
    for (size_t i = 0; i < keep_count; i++) {
        if (keep[i] < 0 || (unsigned)keep[i] < first) {
            continue;
        }
        if ((unsigned)keep[i] > first) {
            mpx_os_close_range(first, (unsigned)keep[i] - 1);
        }
        first = (unsigned)keep[i] + 1;
    }
    mpx_os_close_range(first, ~0U);
}

/* ---- A table with room ----------------------------------------------------------------------- */

typedef struct {
    const int *keep;
    size_t keep_count;
    void (*work)(void *);
    void *argument;
    int status;
} roomy_t;

static bool is_kept(const roomy_t *roomy, int fd)
{
    for (size_t i = 0; i < roomy->keep_count; i++) {
        if (roomy->keep[i] == fd) {
            return true;
        }
    }
    return false;
}

/* The kernel frees the table when the thread has been joined already, or later: an end of a pipe
 * that is open in it would not be seen to be closed until then. */
static void *work_with_room(void *argument)
{
    roomy_t *roomy = argument;
    int fd = 0;
    if (MPX_SYS(unshare, unshare(CLONE_FILES)) < 0) {
        roomy->status = -errno;
        return NULL;
    }
    while (is_kept(roomy, fd)) {
        fd++;
    }
    close(fd);
    roomy->work(roomy->argument);
    mpx_os_close_range(0, ~0U);
    return NULL;
}

int mpx_os_with_room(const int *keep, size_t keep_count, void (*work)(void *), void *argument)
{
    roomy_t roomy = {keep, keep_count, work, argument, 0};
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = MPX_FAULT(thread) ? EAGAIN : pthread_create(&thread, NULL, work_with_room, &roomy);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        return -error;
    }
    pthread_join(thread, NULL);
    return roomy.status;
}
