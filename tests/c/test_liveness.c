/* test_liveness.c - pidfds, start times, who is alive, /proc/<pid>/stat, threads. */
#include "harness.h"

#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- /proc/<pid>/stat ------------------------------------------------------------------------ */

#define FIELDS_4_TO_19 " 1 2 3 0 -1 4194304 105 0 0 0 0 0 0 0 20 0"

static int parse(const char *text, mpx_proc_stat_t *stat)
{
    return mpx_proc_stat_parse(text, strlen(text), stat);
}

TEST(stat_lines_are_parsed_behind_the_last_parenthesis)
{
    static const char *const names[] = {
        "(cat)", "(a b)", "())", "(x) Z 1 2 3)", "(line\nend)", "(() ()", "()", "(99)",
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(names); i++) {
        char line[256];
        mpx_proc_stat_t stat = {.state = '?'};
        snprintf(line, sizeof(line), "77 %s S" FIELDS_4_TO_19 " 12 0 34567890123 99 1\n", names[i]);
        CHECK_EQ(parse(line, &stat), 0);
        CHECK_EQ(stat.state, 'S');
        CHECK_EQ(stat.threads, 12);
        CHECK(stat.start_ticks == UINT64_C(34567890123));
    }
}

/* In memory of its exact size, so that a sanitizer sees a read beyond it. */
TEST(cut_stat_lines_are_refused)
{
    static const char whole[] = "77 (a) b) S" FIELDS_4_TO_19 " 12 0 3456";
    for (size_t length = 0; length < sizeof(whole) - 1; length++) {
        char *cut = malloc(length + 1);
        mpx_proc_stat_t stat;
        memcpy(cut, whole, length);
        int status = mpx_proc_stat_parse(cut, length, &stat);
        CHECK_EQ(status, length <= strlen(whole) - 4 ? -EPROTO : 0); /* cut digits are digits */
        free(cut);
    }
}

TEST(stat_lines_that_make_no_sense_are_refused)
{
    static const char *const bad[] = {
        "",
        ")",
        ") ",
        "77 (a)S 1 2",
        "77 (a) S" FIELDS_4_TO_19 " x 0 3456",
        "77 (a) S" FIELDS_4_TO_19 " 12 0 -3456",
        "77 (a) S" FIELDS_4_TO_19 " 12 0  ",
        "77 (a) S" FIELDS_4_TO_19 " 12 0 99999999999999999999",
        "77 (a) S" FIELDS_4_TO_19 " 12 0 18446744073709551616",
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(bad); i++) {
        mpx_proc_stat_t stat;
        CHECK_EQ(parse(bad[i], &stat), -EPROTO);
    }
    mpx_proc_stat_t stat = {.start_ticks = 0};
    CHECK_EQ(parse("77 (a) S" FIELDS_4_TO_19 " 12 0 18446744073709551615", &stat), 0);
    CHECK(stat.start_ticks == UINT64_MAX);
}

TEST(decimals)
{
    static const uint64_t numbers[] = {0, 7, 10, 4294967296, UINT64_MAX};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(numbers); i++) {
        char got[MPX_DECIMAL_SIZE], expected[MPX_DECIMAL_SIZE];
        int length = snprintf(expected, sizeof(expected), "%llu", (unsigned long long)numbers[i]);
        CHECK_EQ(mpx_os_decimal(got, numbers[i]), length);
        CHECK_EQ(strcmp(got, expected), 0);
    }
}

/* ---- Start times ----------------------------------------------------------------------------- */

/* A process that waits until it is killed. */
static void wait_forever(void *unused)
{
    (void)unused;
    for (;;) {
        pause();
    }
}

static mpx_process_id_t identify(pid_t pid)
{
    mpx_process_id_t id = {.pid = pid, .start = 0};
    CHECK_EQ(mpx_os_process_start(pid, &id.start), 0);
    CHECK(id.start != 0);
    return id;
}

static void kill_and_reap(pid_t pid)
{
    kill(pid, SIGKILL);
    wait_for(pid);
}

TEST(the_start_time_does_not_change_and_survives_a_strange_name)
{
    mpx_process_id_t before = identify(getpid());
    CHECK_EQ(prctl(PR_SET_NAME, ") Z 1 2 3 4"), 0);
    mpx_process_id_t after = identify(getpid());
    CHECK(before.start == after.start);
    mpx_process_id_t parent = identify(getppid());
    CHECK(parent.start <= after.start);
}

TEST(the_start_time_of_nobody)
{
    uint32_t start;
    pid_t pid = start_process(wait_forever, NULL);
    kill_and_reap(pid);
    CHECK_EQ(mpx_os_process_start(pid, &start), -ESRCH);
    CHECK_EQ(mpx_os_process_start(0, &start), -EINVAL);
    CHECK_EQ(mpx_os_process_start(-1, &start), -EINVAL);
}

TEST(start_time_without_proc)
{
    uint32_t start;
    inject("open_proc", ENOENT, 0, 1);
    CHECK_EQ(mpx_os_process_start(getpid(), &start), -ENOENT);
    inject_nothing();
    inject("open_proc", EMFILE, 0, 1);
    CHECK_EQ(mpx_os_process_start(getpid(), &start), -EMFILE);
    inject_nothing();
    inject("read_proc", ESRCH, 0, 1);
    CHECK_EQ(mpx_os_process_start(getpid(), &start), -ESRCH);
    inject_nothing();
    inject("read_proc", EINTR, 0, 2);
    CHECK_EQ(mpx_os_process_start(getpid(), &start), 0);
}

/* ---- Alive or dead --------------------------------------------------------------------------- */

static int alive(mpx_process_id_t id)
{
    return mpx_os_process_alive(id);
}

static int alive_by_number(mpx_process_id_t id)
{
    id.start = 0;
    return mpx_os_process_alive(id);
}

/* From birth to the grave: running, stopped, zombie, gone. */
TEST(a_process_is_alive_until_it_is_a_zombie)
{
    int status;
    pid_t pid = start_process(wait_forever, NULL);
    mpx_process_id_t id = identify(pid);
    CHECK_EQ(alive(id), 1);
    CHECK_EQ(alive_by_number(id), 1);
    kill(pid, SIGSTOP);
    CHECK_EQ(waitpid(pid, &status, WUNTRACED), pid);
    CHECK_EQ(alive(id), 1);
    kill(pid, SIGKILL);
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    CHECK_EQ(alive(id), 0);
    CHECK_EQ(alive_by_number(id), 0);
    wait_for(pid);
    CHECK_EQ(alive(id), 0);
    CHECK_EQ(alive_by_number(id), 0);
}

TEST(another_start_time_is_another_process)
{
    mpx_process_id_t id = identify(getpid());
    CHECK_EQ(alive(id), 1);
    id.start++;
    CHECK_EQ(alive(id), 0);
}

TEST(impossible_pids_are_refused)
{
    CHECK_EQ(mpx_os_process_alive((mpx_process_id_t){.pid = 0}), -EINVAL);
    CHECK_EQ(mpx_os_process_alive((mpx_process_id_t){.pid = -1}), -EINVAL);
}

/* Without pidfds and without /proc only a number that nobody has is certain. */
TEST(alive_without_proc)
{
    pid_t pid = start_process(wait_forever, NULL);
    mpx_process_id_t id = identify(pid);
    CHECK_EQ(mpx_os_without("pidfd"), 0);
    inject("open_proc", ENOENT, 0, ALWAYS);
    CHECK_EQ(alive(id), 1);
    kill_and_reap(pid);
    CHECK_EQ(alive(id), 0);
}

/* No descriptor for a pidfd, but /proc answers (it would not in truth: hence both). */
TEST(alive_with_no_descriptors_left)
{
    pid_t pid = start_process(wait_forever, NULL);
    mpx_process_id_t id = identify(pid);
    inject("pidfd_open", EMFILE, 0, ALWAYS);
    CHECK_EQ(alive(id), 1);
    inject("open_proc", EMFILE, 0, ALWAYS);
    CHECK_EQ(alive(id), 1);
    kill_and_reap(pid);
    CHECK_EQ(alive(id), 0);
}

struct outliving {
    int release[2];
};

/* Not on the stack of a thread that ends. */
static struct outliving outliving;

static void *wait_for_release(void *argument)
{
    char byte;
    (void)argument;
    CHECK_EQ(read(outliving.release[0], &byte, 1), 0);
    _exit(0);
}

/* The main thread ends, the process does not. */
static void end_main_thread(void *argument)
{
    pthread_t thread;
    (void)argument;
    close(outliving.release[1]);
    if (pthread_create(&thread, NULL, wait_for_release, NULL) == 0) {
        pthread_exit(NULL);
    }
    CHECK(!"a thread starts");
}

static char state_of(pid_t pid)
{
    char path[64];
    char line[512];
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY);
    ssize_t length = read(fd, line, sizeof(line));
    close(fd);
    mpx_proc_stat_t stat = {.state = '?'};
    CHECK_EQ(mpx_proc_stat_parse(line, length > 0 ? (size_t)length : 0, &stat), 0);
    return stat.state;
}

TEST(a_process_outlives_its_main_thread)
{
    REQUIRE(pipe(outliving.release) == 0);
    pid_t pid = start_process(end_main_thread, NULL);
    mpx_process_id_t id = identify(pid);
    while (!emulated() && state_of(pid) != 'Z') { /* emulators keep their own main thread */
        sched_yield();
    }
    CHECK_EQ(alive(id), 1);
    CHECK_EQ(alive_by_number(id), 1);
    close(outliving.release[0]);
    close(outliving.release[1]);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(alive(id), 0);
}

/* ---- pidfd ----------------------------------------------------------------------------------- */

TEST(a_pidfd_tells_of_the_end_of_its_process)
{
    pid_t pid = start_process(wait_forever, NULL);
    int pidfd = mpx_os_pidfd_open(pid);
    if (mpx_os_has(MPX_HAS_PIDFD)) {
        struct pollfd query = {.fd = pidfd, .events = POLLIN};
        REQUIRE(pidfd >= 0);
        CHECK_EQ(fcntl(pidfd, F_GETFD), FD_CLOEXEC);
        CHECK_EQ(poll(&query, 1, 0), 0);
        CHECK_EQ(kill(pid, SIGTERM), 0);
        CHECK_EQ(poll(&query, 1, -1), 1);
        int status = wait_for(pid);
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
        CHECK_EQ(mpx_os_pidfd_open(pid), -ESRCH);
        close(pidfd);
    } else {
        CHECK_EQ(pidfd, -ENOSYS);
        kill_and_reap(pid);
    }
    CHECK_EQ(mpx_os_pidfd_open(0), -EINVAL);
    CHECK_EQ(mpx_os_pidfd_open(-7), -EINVAL);
}

/* ---- Threads --------------------------------------------------------------------------------- */

struct thread {
    mpx_atomic_u32 tid;
    mpx_atomic_u32 released;
    int pidfd;
};

static void *announce_and_wait(void *argument)
{
    struct thread *thread = argument;
    thread->pidfd = mpx_os_pidfd_open(mpx_os_thread_id());
    mpx_u32_store_release(&thread->tid, (uint32_t)mpx_os_thread_id());
    CHECK(mpx_os_futex_wake(&thread->tid, 1) >= 0);
    while (!mpx_u32_load_acquire(&thread->released)) {
        int status = mpx_os_futex_wait(&thread->released, 0, MPX_NEVER);
        CHECK(status == 0 || status == -EAGAIN);
    }
    return NULL;
}

static void *store_thread_id(void *tid)
{
    *(pid_t *)tid = mpx_os_thread_id();
    return NULL;
}

/* Sanitizers start a thread of their own with the first one of the program. */
static int count_threads_after_the_first(void)
{
    pthread_t thread;
    pid_t tid = 0;
    CHECK_EQ(pthread_create(&thread, NULL, store_thread_id, &tid), 0);
    pthread_join(thread, NULL);
    while (syscall(SYS_tgkill, getpid(), tid, 0) == 0) { /* the kernel is behind the join */
        sched_yield();
    }
    return mpx_os_thread_count();
}

TEST(threads_are_counted_and_are_no_processes)
{
    struct thread other = {.pidfd = 0};
    pthread_t thread;
    int before = count_threads_after_the_first();
    CHECK(before >= 1 || (before == -ENOENT && emulated()));
    CHECK_EQ(mpx_os_thread_id(), getpid());
    REQUIRE(pthread_create(&thread, NULL, announce_and_wait, &other) == 0);
    uint32_t tid;
    while ((tid = mpx_u32_load_acquire(&other.tid)) == 0) {
        int status = mpx_os_futex_wait(&other.tid, 0, MPX_NEVER);
        CHECK(status == 0 || status == -EAGAIN);
    }
    CHECK_EQ(mpx_os_thread_count(), before < 0 ? before : before + 1);
    CHECK((pid_t)tid != getpid());
    CHECK_EQ(other.pidfd, mpx_os_has(MPX_HAS_PIDFD) ? -ESRCH : -ENOSYS);
    mpx_u32_store_release(&other.released, 1);
    CHECK(mpx_os_futex_wake(&other.released, 1) >= 0);
    pthread_join(thread, NULL);
    while (mpx_os_thread_count() != before) { /* the kernel is a moment behind the join */
        sched_yield();
    }
}

TEST(thread_count_without_proc)
{
    inject("open_proc", ENOENT, 0, 1);
    CHECK_EQ(mpx_os_thread_count(), -ENOENT);
}
