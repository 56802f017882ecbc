/* mpx_process.c - see mpx_process.h.
 *
 * Layer: L2
 *
 * Start of a program: vfork, because the cost of fork grows with the memory of the parent (16 ms
 * at 512 MB) and that of vfork does not. The child shares the parent's memory until it executes,
 * so it runs only what is async-signal-safe, no handler of the parent's runs in it (all signals
 * are blocked until the handlers are gone), and it tells of a failed exec by a store.
 *
 * Death with the parent: PR_SET_PDEATHSIG fires when the *thread* that forked ends, so its signal
 * only asks a question: the handler looks whether the parent process is gone, which is so when
 * the kernel has given us another parent (after the end of one thread we are passed on to another
 * thread of the same process, and getppid stays the same). Each later end of a thread signals
 * again, the last one after the change of parent, so the question is always asked once more after
 * its answer has become yes.
 */
#define _GNU_SOURCE
#include "mpx_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How often a child without a pidfd is looked at while a wait with a deadline goes on. */
#define REAP_INTERVAL (20 * MPX_NANOS_PER_MILLI)

pid_t mpx_process_fork(void)
{
    pid_t pid = fork();
    return pid < 0 ? -errno : pid;
}

/* ---- Start of a program ---------------------------------------------------------------------- */

/* What the child of vfork does; it shares memory with the parent, which is suspended. */
static void execute(const mpx_program_t *program, const sigset_t *mask, volatile int *error)
{
    struct sigaction action;
    for (int signum = 1; signum < NSIG; signum++) {
        if (sigaction(signum, NULL, &action) == 0 && action.sa_handler != SIG_IGN &&
            action.sa_handler != SIG_DFL) {
            action.sa_handler = SIG_DFL;
            action.sa_flags = 0;
            sigaction(signum, &action, NULL);
        }
    }
    for (size_t i = 0; i < program->fd_count; i++) {
        int flags = fcntl(program->fds[i], F_GETFD);
        if (flags < 0 || fcntl(program->fds[i], F_SETFD, flags & ~FD_CLOEXEC) < 0) {
            *error = errno;
            return;
        }
    }
    mpx_os_close_except(3, program->fds, program->fd_count);
    sigprocmask(SIG_SETMASK, mask, NULL);
    execve(program->path, program->argv, program->envp);
    *error = errno;
}

pid_t mpx_process_spawn(const mpx_program_t *program)
{
    sigset_t all, mask;
    volatile int error = 0;

    sigfillset(&all);
    if (pthread_sigmask(SIG_SETMASK, &all, &mask) != 0)
        return -EINVAL;
    pid_t pid = vfork();
    if (pid == 0) {
        execute(program, &mask, &error);
        _exit(127);
    }
    int failed = pid < 0 ? errno : error;
    pthread_sigmask(SIG_SETMASK, &mask, NULL);
    if (failed == 0)
        return pid;
    if (pid > 0) {
        while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
            continue;
    }
    return -failed;
}

/* ---- Wait, reap, signal ---------------------------------------------------------------------- */

/* poll with a deadline in place of a timeout. */
static int poll_until(struct pollfd *entry, int64_t deadline)
{
    struct timespec left = {0, 0};
    const struct timespec *timeout = NULL;

    if (deadline != MPX_NEVER) {
        int64_t nanos = deadline - mpx_os_now();
        if (nanos > 0) {
            left.tv_sec = (time_t)(nanos / MPX_NANOS_PER_SEC);
            left.tv_nsec = (long)(nanos % MPX_NANOS_PER_SEC);
        }
        timeout = &left;
    }
    int ready = ppoll(entry, 1, timeout, NULL);
    if (ready < 0)
        return -errno;
    return ready == 0 ? -ETIMEDOUT : 0;
}

int mpx_fd_wait(int fd, short events, int64_t deadline)
{
    struct pollfd entry = {.fd = fd, .events = events};
    int status = poll_until(&entry, deadline);
    return status == 0 && (entry.revents & POLLNVAL) ? -EBADF : status;
}

/* 1 where the child has ended, 0 where not (only with WNOHANG), or a negative errno. */
static int has_ended(pid_t pid, int flags)
{
    siginfo_t info = {.si_pid = 0};
    if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | flags) < 0)
        return -errno;
    return info.si_pid != 0;
}

int mpx_process_wait(pid_t pid, int pidfd, int64_t deadline)
{
    if (pidfd >= 0) {
        int status = mpx_fd_wait(pidfd, POLLIN, deadline);
        if (status != -EBADF)
            return status;
        /* The program closed our descriptor: go on without. */
    }
    if (deadline == MPX_NEVER) {
        int ended = has_ended(pid, 0);
        return ended < 0 ? ended : 0;
    }
    for (;;) {
        int ended = has_ended(pid, WNOHANG);
        if (ended != 0)
            return ended < 0 ? ended : 0;
        int64_t now = mpx_os_now();
        if (now >= deadline)
            return -ETIMEDOUT;
        int64_t left = deadline - now < REAP_INTERVAL ? deadline - now : REAP_INTERVAL;
        struct timespec pause = {0, (long)left};
        if (nanosleep(&pause, NULL) < 0)
            return -errno;
    }
}

int mpx_process_reap(pid_t pid, int *exitcode)
{
    int status;
    pid_t reaped = waitpid(pid, &status, WNOHANG);
    if (reaped < 0)
        return -errno;
    if (reaped == 0)
        return 0;
    *exitcode = WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
    return 1;
}

int mpx_process_signal(pid_t pid, int pidfd, int signal_number)
{
    if (pidfd >= 0) {
        int status = mpx_os_pidfd_send_signal(pidfd, signal_number);
        if (status != -EBADF && status != -ENOSYS)
            return status;
    }
    return kill(pid, signal_number) < 0 ? -errno : 0;
}

/* ---- Death with the parent ------------------------------------------------------------------- */

/* Written before the handler is installed, read by it. A process has one parent, hence static. */
static volatile sig_atomic_t first_parent;
static volatile sig_atomic_t first_parent_fd;

static bool parent_has_ended(void)
{
    pid_t parent = getppid();
    if (parent != first_parent)
        return true;
    /* A parent in an outer PID namespace is always seen as 0: only its pidfd can tell. */
    return parent == 0 && first_parent_fd >= 0 && mpx_fd_wait(first_parent_fd, POLLIN, 0) == 0;
}

static void on_parent_signal(int signum)
{
    int saved = errno;
    (void)signum;
    if (parent_has_ended())
        kill(getpid(), SIGKILL);
    errno = saved;
}

int mpx_process_die_with_parent(pid_t parent, int parent_fd)
{
    struct sigaction action = {.sa_handler = on_parent_signal, .sa_flags = SA_RESTART};
    sigset_t urgent;

    first_parent = getppid();
    first_parent_fd = parent_fd;
    sigemptyset(&action.sa_mask);
    sigemptyset(&urgent);
    sigaddset(&urgent, SIGURG);
    if (sigaction(SIGURG, &action, NULL) < 0 || prctl(PR_SET_PDEATHSIG, SIGURG) < 0)
        return -errno;
    pthread_sigmask(SIG_UNBLOCK, &urgent, NULL);

    /* The parent may have ended before the kernel knew whom to tell. */
    bool ended;
    if (parent_fd >= 0)
        ended = mpx_fd_wait(parent_fd, POLLIN, 0) == 0;
    else
        ended = first_parent != 0 && !mpx_os_process_alive((mpx_process_id_t){parent, 0});
    if (ended)
        kill(getpid(), SIGKILL);
    return 0;
}

/* ---- Descriptors from process to process ----------------------------------------------------- */

typedef union {
    struct cmsghdr align;
    char bytes[CMSG_SPACE(sizeof(int) * MPX_FDS_MAX)];
} fds_control_t;

int mpx_fds_send(int socket_fd, const void *data, size_t size, const int *fds, size_t fd_count)
{
    fds_control_t control;
    struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = size};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

    if (fd_count > MPX_FDS_MAX)
        return -E2BIG;
    if (fd_count > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(header), fds, sizeof(int) * fd_count);
    }
    ssize_t sent = sendmsg(socket_fd, &message, MSG_NOSIGNAL);
    if (sent < 0)
        return -errno;
    return (size_t)sent == size ? 0 : -EMSGSIZE;
}

/* Appends the descriptors of a control message to `fds`; closes those for which there is no room.
 */
static bool take_fds(struct cmsghdr *header, int *fds, size_t room, size_t *count)
{
    bool fits = true;
    size_t received = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < received; i++) {
        int fd;
        memcpy(&fd, CMSG_DATA(header) + i * sizeof fd, sizeof fd);
        if (*count < room) {
            fds[(*count)++] = fd;
        } else {
            close(fd);
            fits = false;
        }
    }
    return fits;
}

ssize_t mpx_fds_recv(int socket_fd, void *data, size_t size, int *fds, size_t *fd_count)
{
    fds_control_t control;
    struct iovec part = {.iov_base = data, .iov_len = size};
    struct msghdr message = {
        .msg_iov = &part,
        .msg_iovlen = 1,
        .msg_control = control.bytes,
        .msg_controllen = sizeof control.bytes,
    };
    size_t room = *fd_count;
    bool fits = true;

    *fd_count = 0;
    ssize_t received = recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC);
    if (received < 0)
        return -errno;
    for (struct cmsghdr *header = CMSG_FIRSTHDR(&message); header != NULL;
         header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            fits &= take_fds(header, fds, room, fd_count);
    }
    /* The kernel cuts the control message where our table of descriptors is full. */
    bool cut = (message.msg_flags & MSG_CTRUNC) != 0;
    if (fits && !cut && !(message.msg_flags & MSG_TRUNC))
        return received;
    for (size_t i = 0; i < *fd_count; i++)
        close(fds[i]);
    *fd_count = 0;
    return fits && cut ? -EMFILE : -EMSGSIZE;
}
