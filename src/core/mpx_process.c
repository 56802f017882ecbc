/* mpx_process.c - see mpx_process.h.
 *
 * Layer: L2
 *
 * Start of a program: vfork, because the cost of fork grows with the memory of the parent (16 ms
 * at 512 MB) and that of vfork does not. The child shares the parent's memory until it executes,
 * so it runs only what is async-signal-safe, no handler of the parent's runs in it (all signals
 * are blocked until the handlers are gone). It tells of a failed exec through a pipe, not through
 * the memory: where vfork is made of fork (emulators, sandboxes) there is no common memory. Where
 * it is a real one, what is to be told has been told when it returns, so nobody waits for the end
 * of the pipe, which another thread's fork may hold open.
 *
 * Death with the parent: PR_SET_PDEATHSIG fires when the *thread* that forked ends. The main thread
 * ends with its process (a program in C may end it alone: its children die then), and its
 * children simply get SIGKILL, whatever signals they block or handle. For those of another thread
 * the signal only asks a question: the handler looks whether the parent process is gone, which is
 * so when the kernel has given us another parent (after the end of one thread we are passed on to
 * another thread of the same process, and getppid stays the same). Each later end of a thread
 * signals again, the last one after the change of parent, so the question is always asked once more
 * after its answer has become yes.
 */
#include "mpx_process.h"

#include "mpx_fault.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* How often a child is looked at while a wait with a deadline goes on: without a pidfd, and with
 * one that may be another file's by now. */
#define REAP_INTERVAL    (20 * MPX_NANOS_PER_MILLI)
#define RECHECK_INTERVAL (100 * MPX_NANOS_PER_MILLI)

pid_t mpx_process_fork(void)
{
    pid_t pid = MPX_SYS(fork, fork());
    return pid < 0 ? -errno : pid;
}

/* ---- Start of a program ---------------------------------------------------------------------- */

/* What the child needs to become the program. */
typedef struct {
    const mpx_program_t *program;
    sigset_t mask; /* to be restored */
    int error_w;   /* where a failure is told; closed by a successful exec */
    int *keep;     /* the program's descriptors and error_w, ascending */
    size_t kept;
} start_t;

static void reset_handlers(void)
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
}

static int make_inheritable(const int *fds, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        int flags = fcntl(fds[i], F_GETFD);
        if (flags < 0 && fds[i] <= STDERR_FILENO)
            continue; /* a standard stream that is closed here is closed there */
        if (flags < 0 || fcntl(fds[i], F_SETFD, flags & ~FD_CLOEXEC) < 0)
            return -errno;
    }
    return 0;
}

/* In the child of vfork, which shares memory with its parent. Returns only where it failed. */
static int execute(const start_t *start)
{
    const mpx_program_t *program = start->program;
    reset_handlers();
    int status = make_inheritable(program->fds, program->fd_count);
    if (status < 0)
        return status;
    mpx_os_close_except(3, start->keep, start->kept);
    sigprocmask(SIG_SETMASK, &start->mask, NULL);
    execve(program->path, program->argv, program->envp);
    return -errno;
}

/* Puts error_w among the program's descriptors. */
static int list_kept(start_t *start)
{
    const mpx_program_t *program = start->program;
    start->keep = malloc(sizeof *start->keep * (program->fd_count + 1));
    if (start->keep == NULL)
        return -ENOMEM;
    size_t i = 0;
    while (i < program->fd_count && program->fds[i] < start->error_w) {
        start->keep[i] = program->fds[i];
        i++;
    }
    start->keep[i] = start->error_w;
    for (; i < program->fd_count; i++)
        start->keep[i + 1] = program->fds[i];
    start->kept = program->fd_count + 1;
    return 0;
}

/* What the child has told before it ended or executed: 0, or the error. */
static int read_error(int error_r, bool wait)
{
    int error = 0;
    ssize_t count;
    if (!wait)
        (void)fcntl(error_r, F_SETFL, O_NONBLOCK);
    do {
        count = read(error_r, &error, sizeof error);
    } while (count < 0 && errno == EINTR);
    return count == (ssize_t)sizeof error ? error : 0;
}

/* The start proper, with all signals blocked. */
static pid_t start_program(start_t *start, int error_r)
{
    volatile bool shares_memory = false;
    pid_t pid = MPX_SYS(vfork, vfork());
    if (pid == 0) {
        shares_memory = true;
        int error = execute(start);
        (void)!write(start->error_w, &error, sizeof error);
        _exit(127);
    }
    if (pid < 0)
        return -errno;
    close(start->error_w);
    start->error_w = -1;
    int error = read_error(error_r, !shares_memory);
    if (error == 0)
        return pid;
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        continue;
    return error;
}

pid_t mpx_process_spawn(const mpx_program_t *program)
{
    start_t start = {.program = program};
    sigset_t all;
    int error_pipe[2];

    int status = mpx_os_pipe(error_pipe);
    if (status < 0)
        return status;
    start.error_w = error_pipe[1];
    pid_t pid = list_kept(&start);
    if (pid == 0) {
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &start.mask);
        pid = start_program(&start, error_pipe[0]);
        pthread_sigmask(SIG_SETMASK, &start.mask, NULL);
    }
    free(start.keep);
    close(error_pipe[0]);
    if (start.error_w >= 0)
        close(start.error_w);
    return pid;
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
    int ready = MPX_SYS(ppoll, ppoll(entry, 1, timeout, NULL));
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
    if (MPX_SYS(waitid, waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT | flags)) < 0)
        return -errno;
    return info.si_pid != 0;
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Passes some time, until the deadline at most: 0, or -EINTR. A pidfd that is closed, or ready
 * although its child was just seen running, is given up. */
static int pause_for(int *pidfd, int64_t deadline)
{
    int64_t now = mpx_os_now();
    if (*pidfd >= 0) {
        int status = mpx_fd_wait(*pidfd, POLLIN, earlier(deadline, now + RECHECK_INTERVAL));
        if (status == -EBADF || status == 0)
            *pidfd = -1;
        return status == -EINTR ? status : 0;
    }
    int64_t left = earlier(deadline - now, REAP_INTERVAL);
    struct timespec pause = {0, left > 0 ? (long)left : 0};
    return nanosleep(&pause, NULL) < 0 ? -errno : 0;
}

int mpx_process_wait(pid_t pid, int pidfd, int64_t deadline)
{
    if (deadline == MPX_NEVER) {
        int ended = has_ended(pid, 0);
        return ended < 0 ? ended : 0;
    }
    for (;;) {
        int ended = has_ended(pid, WNOHANG);
        if (ended != 0)
            return ended < 0 ? ended : 0;
        if (mpx_os_now() >= deadline)
            return -ETIMEDOUT;
        int status = pause_for(&pidfd, deadline);
        if (status < 0)
            return status;
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

int mpx_process_signal(pid_t pid, int signal_number)
{
    return kill(pid, signal_number) < 0 ? -errno : 0;
}

/* ---- Death with the parent ------------------------------------------------------------------- */

/* Written before the handler is installed, read by it. A process has one parent, hence static. */
static volatile sig_atomic_t armed; /* the process that asked for it: not one that it forks later */
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
    if (armed == getpid() && parent_has_ended())
        kill(getpid(), SIGKILL);
    errno = saved;
}

static int handle_parent_signal(void)
{
    struct sigaction action = {.sa_handler = on_parent_signal, .sa_flags = SA_RESTART};
    sigset_t urgent;
    sigemptyset(&action.sa_mask);
    sigemptyset(&urgent);
    sigaddset(&urgent, SIGURG);
    if (sigaction(SIGURG, &action, NULL) < 0)
        return -errno;
    pthread_sigmask(SIG_UNBLOCK, &urgent, NULL);
    return 0;
}

bool mpx_process_in_main_thread(void)
{
    return mpx_os_thread_id() == getpid();
}

int mpx_process_die_with_parent(pid_t parent, int parent_fd, bool by_main_thread)
{
    /* Without pidfds it is the end of a pipe, which a sibling may hold open. */
    if (!mpx_os_has(MPX_HAS_PIDFD))
        parent_fd = -1;
    first_parent = getppid();
    first_parent_fd = parent_fd;
    armed = getpid();
    if (!by_main_thread) {
        int status = handle_parent_signal();
        if (status < 0)
            return status;
    }
    if (MPX_SYS(prctl, prctl(PR_SET_PDEATHSIG, by_main_thread ? SIGKILL : SIGURG)) < 0)
        return -errno;

    /* The parent may have ended before the kernel knew whom to tell. */
    bool ended;
    if (parent_fd >= 0)
        ended = mpx_fd_wait(parent_fd, POLLIN, 0) == 0;
    else
        ended = first_parent != 0 && !mpx_os_pid_alive((mpx_process_id_t){parent, 0});
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
    ssize_t sent = MPX_SYS(sendmsg, sendmsg(socket_fd, &message, MSG_NOSIGNAL));
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

static ssize_t receive(int socket_fd, void *data, size_t size, int *fds, size_t *fd_count,
                       int flags)
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
    ssize_t received = MPX_SYS(recvmsg, recvmsg(socket_fd, &message, MSG_CMSG_CLOEXEC | flags));
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

ssize_t mpx_fds_recv(int socket_fd, void *data, size_t size, int *fds, size_t *fd_count)
{
    return receive(socket_fd, data, size, fds, fd_count, 0);
}

int mpx_fds_peek(int socket_fd)
{
    char byte;
    int fd;
    size_t count = 1;
    ssize_t size = receive(socket_fd, &byte, 1, &fd, &count, MSG_PEEK | MSG_DONTWAIT);
    return size < 0 ? (int)size : count == 0 ? -EAGAIN : fd;
}

void mpx_fds_drop(int socket_fd)
{
    char byte;
    while (recv(socket_fd, &byte, 1, MSG_DONTWAIT) == 1) {
    }
}
