/* test_process.c - children: start, wait, reap, signals, death with the parent, descriptors. */
#define _GNU_SOURCE
#include "harness.h"

#include "mpx_process.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static const int64_t SOON = 30 * MPX_NANOS_PER_SEC;

/* A child that ends with the code as soon as something is written to, or the end of, the pipe. */
static pid_t start_waiting(int code, int pipes[2])
{
    if (pipe2(pipes, O_CLOEXEC) < 0) {
        return -errno;
    }
    pid_t pid = mpx_process_fork();
    if (pid == 0) {
        char byte;
        close(pipes[1]);
        (void)!read(pipes[0], &byte, 1);
        _exit(code);
    }
    close(pipes[0]);
    return pid;
}

static pid_t start_shell(const char *script, const int *fds, size_t count)
{
    char *argv[] = {(char *)"sh", (char *)"-c", (char *)(uintptr_t)script, NULL};
    mpx_program_t program = {"/bin/sh", argv, environ, fds, count};
    return mpx_process_spawn(&program);
}

static void check_ends(pid_t pid, int expected)
{
    int code = -1000;
    CHECK_EQ(mpx_process_wait(pid, -1, mpx_os_deadline(SOON)), 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 1);
    CHECK_EQ(code, expected);
    CHECK_EQ(mpx_process_reap(pid, &code), -ECHILD);
    CHECK_EQ(mpx_process_wait(pid, -1, MPX_NEVER), -ECHILD);
}

TEST(a_child_is_waited_for_and_reaped)
{
    int pipes[2], code;
    pid_t pid = start_waiting(7, pipes);
    REQUIRE(pid > 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 0);
    CHECK_EQ(mpx_process_wait(pid, -1, mpx_os_deadline(0)), -ETIMEDOUT);
    CHECK_EQ(mpx_process_wait(pid, -1, mpx_os_deadline(50 * MPX_NANOS_PER_MILLI)), -ETIMEDOUT);
    close(pipes[1]);
    check_ends(pid, 7);
}

TEST(a_child_is_waited_for_by_pidfd)
{
    int pipes[2], code = 0;
    pid_t pid = start_waiting(8, pipes);
    REQUIRE(pid > 0);
    int pidfd = mpx_os_pidfd_open(pid);
    CHECK_EQ(mpx_process_wait(pid, pidfd, mpx_os_deadline(0)), -ETIMEDOUT);
    close(pipes[1]);
    /* Waiting does not reap: it may be done twice. */
    CHECK_EQ(mpx_process_wait(pid, pidfd, MPX_NEVER), 0);
    CHECK_EQ(mpx_process_wait(pid, pidfd, mpx_os_deadline(SOON)), 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 1);
    CHECK_EQ(code, 8);
    if (pidfd >= 0) {
        close(pidfd);
    }
}

TEST(a_pidfd_that_the_program_closed_is_done_without)
{
    int pipes[2], code = 0;
    pid_t pid = start_waiting(9, pipes);
    REQUIRE(pid > 0);
    close(pipes[1]);
    CHECK_EQ(mpx_process_wait(pid, 1000, mpx_os_deadline(SOON)), 0);
    CHECK_EQ(mpx_process_signal(pid, 0), 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 1);
    CHECK_EQ(code, 9);
}

/* The program closed it, and the number is another file's by now. */
TEST(a_descriptor_that_is_no_pidfd_of_the_child_is_not_believed)
{
    int pipes[2], other[2], code = 0;
    pid_t pid = start_waiting(9, pipes);
    REQUIRE(pid > 0 && pipe(other) == 0);
    int64_t soon = 150 * MPX_NANOS_PER_MILLI;
    CHECK_EQ(mpx_process_wait(pid, other[0], mpx_os_deadline(soon)), -ETIMEDOUT);
    CHECK_EQ(write(other[1], "x", 1), 1);
    CHECK_EQ(mpx_process_wait(pid, other[0], mpx_os_deadline(soon)), -ETIMEDOUT);
    CHECK_EQ(read(other[0], &(char){0}, 1), 1);
    close(pipes[1]);
    CHECK_EQ(mpx_process_wait(pid, other[0], mpx_os_deadline(SOON)), 0);
    CHECK_EQ(mpx_process_wait(pid, other[0], MPX_NEVER), 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 1);
    CHECK_EQ(code, 9);
    close(other[0]);
    close(other[1]);
}

TEST(signals_are_sent_and_reported)
{
    int pipes[2], code = 0;
    pid_t pid = start_waiting(0, pipes);
    REQUIRE(pid > 0);
    CHECK_EQ(mpx_process_signal(pid, 0), 0);
    CHECK_EQ(mpx_process_signal(pid, 10000), -EINVAL);
    CHECK_EQ(mpx_process_signal(pid, SIGKILL), 0);
    CHECK_EQ(mpx_process_wait(pid, -1, mpx_os_deadline(SOON)), 0);
    CHECK_EQ(mpx_process_reap(pid, &code), 1);
    CHECK_EQ(code, -SIGKILL);
    CHECK_EQ(mpx_process_signal(pid, SIGKILL), -ESRCH);
    close(pipes[1]);
}

static void do_nothing(int signum)
{
    (void)signum;
}

TEST(a_signal_handler_interrupts_a_wait)
{
    int pipes[2];
    struct sigaction action = {.sa_handler = do_nothing};
    sigaction(SIGALRM, &action, NULL);
    pid_t pid = start_waiting(0, pipes);
    REQUIRE(pid > 0);
    int pidfd = mpx_os_pidfd_open(pid);
    int ways[] = {-1, pidfd};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(ways); i++) {
        int64_t deadlines[] = {MPX_NEVER, mpx_os_deadline(SOON)};
        for (size_t j = 0; j < MPX_ARRAY_LENGTH(deadlines); j++) {
            /* Again and again, so that one comes while the wait sleeps. */
            struct itimerval every = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
            setitimer(ITIMER_REAL, &every, NULL);
            CHECK_EQ(mpx_process_wait(pid, ways[i], deadlines[j]), -EINTR);
            setitimer(ITIMER_REAL, &never, NULL);
        }
    }
    if (pidfd >= 0) {
        close(pidfd);
    }
    close(pipes[1]);
    check_ends(pid, 0);
}

TEST(a_fork_that_is_refused)
{
    inject("fork", EAGAIN, 0, 1);
    CHECK_EQ(mpx_process_fork(), -EAGAIN);
}

TEST(a_program_runs)
{
    check_ends(start_shell("exit 3", NULL, 0), 3);
    check_ends(start_shell("kill -TERM $$", NULL, 0), -SIGTERM);
}

TEST(a_program_that_cannot_be_executed_leaves_no_child)
{
    char *argv[] = {(char *)"x", NULL};
    struct {
        const char *path;
        int error;
    } cases[] = {
        {"/nonexistent/program", ENOENT},
        {"/etc/passwd", EACCES},
        {"/", EACCES},
        {"/etc/passwd/x", ENOTDIR},
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(cases); i++) {
        mpx_program_t program = {cases[i].path, argv, environ, NULL, 0};
        CHECK_EQ(mpx_process_spawn(&program), -cases[i].error);
        CHECK_EQ(waitpid(-1, NULL, WNOHANG), -1);
    }
    inject("pipe", EMFILE, 0, 1);
    CHECK_EQ(start_shell("exit", NULL, 0), -EMFILE);
    inject_nothing();
    inject("vfork", EAGAIN, 0, 1);
    CHECK_EQ(start_shell("exit", NULL, 0), -EAGAIN);
    inject_nothing();
    int closed = 999;
    CHECK_EQ(start_shell("exit", &closed, 1), -EBADF);
}

static void start_without_stderr(void *unused)
{
    int error_output = STDERR_FILENO;
    (void)unused;
    int saved = fcntl(error_output, F_DUPFD_CLOEXEC, 100);
    close(error_output);
    pid_t pid = start_shell("exit 4", &error_output, 1);
    dup2(saved, error_output);
    check_ends(pid, 4);
}

TEST(a_standard_stream_that_is_closed_may_be_named)
{
    CHECK_EQ(wait_for(start_process(start_without_stderr, NULL)), 0);
}

/* Emulators, valgrind and ThreadSanitizer make it of fork: a failed exec can only be told by the
 * pipe then, and a start waits for its end. */
static bool vfork_shares_memory(void)
{
    volatile bool shared = false;
    pid_t pid = vfork();
    if (pid == 0) {
        shared = true;
        _exit(0);
    }
    wait_for(pid);
    return shared;
}

struct forks {
    mpx_atomic_u32 stop;
    pid_t pids[64];
    size_t count;
};

static void *fork_until_stopped(void *argument)
{
    struct forks *forks = argument;
    while (!mpx_u32_load_relaxed(&forks->stop) && forks->count < MPX_ARRAY_LENGTH(forks->pids)) {
        pid_t pid = fork();
        if (pid == 0) {
            for (;;) {
                pause();
            }
        }
        forks->pids[forks->count++] = pid;
    }
    return NULL;
}

/* What it forks in the middle of a start has a copy of the pipe that tells of a failed exec, and
 * lives until the starts are done. */
TEST(a_start_does_not_wait_for_what_another_thread_forked)
{
    struct forks forks = {.count = 0};
    pthread_t thread;
    if (!vfork_shares_memory()) {
        return;
    }
    REQUIRE(pthread_create(&thread, NULL, fork_until_stopped, &forks) == 0);
    for (int i = 0; i < 100; i++) {
        check_ends(start_shell("exit 6", NULL, 0), 6);
    }
    mpx_u32_store_relaxed(&forks.stop, 1);
    pthread_join(thread, NULL);
    CHECK(forks.count > 0);
    for (size_t i = 0; i < forks.count; i++) {
        kill(forks.pids[i], SIGKILL);
        wait_for(forks.pids[i]);
    }
}

TEST(a_program_inherits_what_is_named_and_nothing_else)
{
    int kept = fcntl(0, F_DUPFD_CLOEXEC, 50), other = fcntl(0, F_DUPFD, 60);
    REQUIRE(kept >= 50 && other >= 60);
    char script[200];
    snprintf(script, sizeof script, "test -e /proc/self/fd/%d && ! test -e /proc/self/fd/%d", kept,
             other);
    check_ends(start_shell(script, &kept, 1), 0);
    CHECK(fcntl(kept, F_GETFD) == FD_CLOEXEC); /* ours is as it was */
    close(kept);
    close(other);
}

TEST(a_program_gets_our_mask_and_no_handlers)
{
    struct sigaction action = {.sa_handler = do_nothing}, now;
    sigset_t usr2, mask;
    sigaction(SIGUSR1, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    sigemptyset(&usr2);
    sigaddset(&usr2, SIGUSR2);
    sigprocmask(SIG_BLOCK, &usr2, NULL);

    check_ends(start_shell("kill -USR1 $$; exit 0", NULL, 0), -SIGUSR1);
    check_ends(start_shell("kill -HUP $$; exit 4", NULL, 0), 4);
    check_ends(start_shell("kill -USR2 $$; exit 5", NULL, 0), 5);

    sigaction(SIGUSR1, NULL, &now);
    CHECK(now.sa_handler == do_nothing);
    sigprocmask(SIG_BLOCK, NULL, &mask);
    CHECK(sigismember(&mask, SIGUSR2) == 1 && sigismember(&mask, SIGUSR1) == 0);
}

TEST(waiting_for_a_descriptor)
{
    int pipes[2];
    REQUIRE(pipe(pipes) == 0);
    CHECK_EQ(mpx_fd_wait(pipes[0], POLLIN, mpx_os_deadline(0)), -ETIMEDOUT);
    CHECK_EQ(mpx_fd_wait(999, POLLIN, mpx_os_deadline(SOON)), -EBADF);
    inject("ppoll", EINTR, 0, 1);
    CHECK_EQ(mpx_fd_wait(pipes[0], POLLIN, MPX_NEVER), -EINTR);
    inject_nothing();
    CHECK_EQ(write(pipes[1], "x", 1), 1);
    CHECK_EQ(mpx_fd_wait(pipes[0], POLLIN, MPX_NEVER), 0);
    close(pipes[1]);
    CHECK_EQ(mpx_fd_wait(pipes[0], POLLIN, mpx_os_deadline(SOON)), 0);
    close(pipes[0]);
}

/* ---- Death with the parent ------------------------------------------------------------------- */

/* The middle of three processes: forks a child that is to die with it, from a thread that ends. */
struct family {
    int child_w; /* what the child holds open while it lives */
    int ready_w; /* written to by the child once it is armed */
    int go_r;    /* the child arms after this is closed; -1: at once */
    bool with_pidfd;
    bool by_main_thread;
};

static void *fork_child(void *argument)
{
    struct family *family = argument;
    pid_t parent = getpid();
    int parent_fd = family->with_pidfd ? mpx_os_pidfd_open(parent) : -1;
    family->by_main_thread = mpx_process_in_main_thread();
    pid_t pid = mpx_process_fork();
    if (pid == 0) {
        char byte;
        if (family->go_r >= 0) {
            (void)!write(family->ready_w, "b", 1);
            (void)!read(family->go_r, &byte, 1);
        }
        if (mpx_process_die_with_parent(parent, parent_fd, family->by_main_thread) < 0) {
            _exit(2);
        }
        (void)!write(family->ready_w, "r", 1);
        for (;;) {
            pause();
        }
    }
    if (parent_fd >= 0) {
        close(parent_fd);
    }
    return NULL;
}

static void start_from_the_main_thread(void *argument)
{
    fork_child(argument);
    for (;;) {
        pause();
    }
}

static void be_the_middle(void *argument)
{
    pthread_t thread;
    pthread_create(&thread, NULL, fork_child, argument);
    pthread_join(thread, NULL);
    for (;;) {
        pause();
    }
}

static void check_death(void (*middle_part)(void *), bool with_pidfd)
{
    int alive[2], ready[2];
    char byte;
    REQUIRE(pipe(alive) == 0 && pipe(ready) == 0);
    struct family family = {alive[1], ready[1], -1, with_pidfd, false};
    pid_t middle = start_process(middle_part, &family);
    close(alive[1]);
    close(ready[1]);
    CHECK_EQ(read(ready[0], &byte, 1), 1);
    /* The thread has ended, or is about to: the child must not care. */
    CHECK_EQ(mpx_fd_wait(alive[0], POLLIN, mpx_os_deadline(300 * MPX_NANOS_PER_MILLI)), -ETIMEDOUT);
    kill(middle, SIGKILL);
    wait_for(middle);
    CHECK_EQ(mpx_fd_wait(alive[0], POLLIN, mpx_os_deadline(SOON)), 0);
    close(alive[0]);
    close(ready[0]);
}

/* Whether signals that the kernel sends are held back: by the emulator, which has its own idea of
 * PR_SET_PDEATHSIG, and by ThreadSanitizer in a process forked by a thread. */
static bool holds_back_signals(void)
{
#ifdef __SANITIZE_THREAD__
    return true;
#else
    return emulated();
#endif
}

TEST(a_child_dies_with_its_parent_and_not_with_a_thread)
{
    if (holds_back_signals()) {
        return;
    }
    for (int with_pidfd = 0; with_pidfd < 2; with_pidfd++) {
        check_death(be_the_middle, with_pidfd != 0);
        check_death(start_from_the_main_thread, with_pidfd != 0);
    }
}

TEST(a_parent_that_died_before_is_noticed)
{
    for (int with_pidfd = 0; with_pidfd < 2; with_pidfd++) {
        int alive[2], ready[2], go[2];
        char byte;
        REQUIRE(pipe(alive) == 0 && pipe(ready) == 0 && pipe(go) == 0);
        fcntl(go[1], F_SETFD, FD_CLOEXEC);
        struct family family = {alive[1], ready[1], go[0], with_pidfd != 0, false};
        pid_t middle = start_process(be_the_middle, &family);
        close(alive[1]);
        close(ready[1]);
        close(go[0]);
        CHECK_EQ(read(ready[0], &byte, 1), 1); /* the child is born */
        kill(middle, SIGKILL);
        wait_for(middle);
        CHECK_EQ(write(go[1], "g", 1), 1);
        close(go[1]);
        CHECK_EQ(mpx_fd_wait(alive[0], POLLIN, mpx_os_deadline(SOON)), 0);
        CHECK_EQ(read(ready[0], &byte, 1), 0); /* it never came to that */
        close(alive[0]);
        close(ready[0]);
    }
}

TEST(death_with_the_parent_can_be_refused)
{
    inject("prctl", EPERM, 0, 1);
    CHECK_EQ(mpx_process_die_with_parent(getppid(), -1, false), -EPERM);
    inject("prctl", EPERM, 0, 1);
    CHECK_EQ(mpx_process_die_with_parent(getppid(), -1, true), -EPERM);
}

/* ---- Descriptors from process to process ----------------------------------------------------- */

TEST(descriptors_travel_with_a_message)
{
    int pair[2], fds[4], pipes[2];
    char data[16];
    size_t count = 4;
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
    REQUIRE(pipe(pipes) == 0);
    CHECK_EQ(mpx_fds_send(pair[0], "hello", 5, pipes, 2), 0);
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), 5);
    REQUIRE(count == 2);
    CHECK(memcmp(data, "hello", 5) == 0);
    CHECK_EQ(fcntl(fds[0], F_GETFD), FD_CLOEXEC);
    CHECK_EQ(write(fds[1], "x", 1), 1);
    CHECK_EQ(read(pipes[0], data, 1), 1);
    for (int i = 0; i < 2; i++) {
        close(fds[i]);
        close(pipes[i]);
    }
    close(pair[0]);
    count = 4;
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), 0);
    CHECK_EQ(count, 0);
    CHECK_EQ(mpx_fds_send(pair[1], "x", 1, NULL, 0), -EPIPE);
    close(pair[1]);
}

TEST(a_message_that_does_not_fit_leaves_no_descriptor)
{
    int pair[2], fds[4], many[4] = {0, 1, 2, 0};
    char data[4];
    size_t count = 2;
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    int next = next_descriptor();
    CHECK_EQ(mpx_fds_send(pair[0], "data", 4, many, 4), 0);
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), -EMSGSIZE);
    CHECK_EQ(count, 0);
    CHECK_EQ(next_descriptor(), next);

    count = 4;
    CHECK_EQ(mpx_fds_send(pair[0], "too long", 8, many, 4), 0);
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), -EMSGSIZE);
    CHECK_EQ(next_descriptor(), next);

    close(pair[0]);
    close(pair[1]);
}

TEST(a_message_for_whose_descriptors_there_is_no_room)
{
    if (emulated()) {
        return; /* limits are the emulator's, and not told to the kernel */
    }
    int pair[2], fds[4], many[4] = {0, 1, 2, 0};
    char data[4];
    size_t count = 4;
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    int next = next_descriptor();
    struct rlimit limit, none = {(rlim_t)next + 2, (rlim_t)next + 2};
    getrlimit(RLIMIT_NOFILE, &limit);
    none.rlim_max = limit.rlim_max;
    CHECK_EQ(mpx_fds_send(pair[0], "data", 4, many, 4), 0);
    setrlimit(RLIMIT_NOFILE, &none);
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), -EMFILE);
    setrlimit(RLIMIT_NOFILE, &limit);
    CHECK_EQ(count, 0);
    CHECK_EQ(next_descriptor(), next);
    close(pair[0]);
    close(pair[1]);
}

TEST(errors_of_sending_and_receiving)
{
    int pair[2], fds[1];
    int too_many[MPX_FDS_MAX + 1] = {0};
    char data[4];
    size_t count = 1;
    REQUIRE(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    CHECK_EQ(mpx_fds_send(pair[0], "x", 1, too_many, MPX_FDS_MAX + 1), -E2BIG);
    inject("sendmsg", EINTR, 0, 1);
    CHECK_EQ(mpx_fds_send(pair[0], "x", 1, NULL, 0), -EINTR);
    inject("recvmsg", EINTR, 0, 1);
    CHECK_EQ(mpx_fds_recv(pair[1], data, sizeof data, fds, &count), -EINTR);
    close(pair[0]);
    close(pair[1]);
}
