/* test_descriptors.c - closing many descriptors in each of the three ways; keeping off the standard
 * streams; room where there is none. */
#include "harness.h"

#include "mpx_os.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

/* Above what a harness, a sanitizer or an emulator has open. */
enum { FIRST = 100, COUNT = 300, END = FIRST + COUNT };

static void open_all(void)
{
    int fd = open("/dev/null", O_RDONLY);
    for (int number = FIRST; number < END; number++) {
        if (number != fd) {
            CHECK_EQ(dup2(fd, number), number);
        }
    }
    close(fd);
}

static bool is_open(int fd)
{
    return fcntl(fd, F_GETFD) >= 0;
}

static int count_open(void)
{
    int count = 0;
    for (int fd = FIRST; fd < END; fd++) {
        count += is_open(fd);
    }
    return count;
}

/* The whole of a test, to be run once for each way. */
static void check_ranges(void)
{
    open_all();
    mpx_os_close_range(FIRST + 10, FIRST + 19);
    CHECK_EQ(count_open(), COUNT - 10);
    CHECK(is_open(FIRST + 9) && !is_open(FIRST + 10) && !is_open(FIRST + 19) &&
          is_open(FIRST + 20));
    mpx_os_close_range(FIRST + 10, FIRST + 19);
    CHECK_EQ(count_open(), COUNT - 10);
    mpx_os_close_range(FIRST + 1, FIRST);
    CHECK_EQ(count_open(), COUNT - 10);
    mpx_os_close_range(FIRST, FIRST);
    CHECK_EQ(count_open(), COUNT - 11);
    mpx_os_close_range(FIRST, ~0U);
    CHECK_EQ(count_open(), 0);
}

static void check_exceptions(void)
{
    const int keep[] = {-1, 0, FIRST, FIRST + 1, FIRST + 50, END - 1, INT32_MAX};
    open_all();
    mpx_os_close_except(FIRST, keep, MPX_ARRAY_LENGTH(keep));
    CHECK_EQ(count_open(), 4);
    CHECK(is_open(FIRST) && is_open(FIRST + 1) && is_open(FIRST + 50) && is_open(END - 1));
    CHECK(is_open(0) && is_open(1) && is_open(2));
    mpx_os_close_except(FIRST, NULL, 0);
    CHECK_EQ(count_open(), 0);
}

static void check_all(void)
{
    check_ranges();
    check_exceptions();
}

TEST(as_the_machine_does_it)
{
    check_all();
}

TEST(by_listing_proc)
{
    inject("close_range", ENOSYS, 0, ALWAYS);
    check_all();
}

TEST(by_listing_proc_where_a_filter_forbids_the_call)
{
    inject("close_range", EPERM, 0, ALWAYS);
    check_all();
}

/* The limit bounds the search, and emulators are slow. (Those that keep the limit are not.) */
static void limit_descriptors(rlim_t count)
{
    struct rlimit limit = {.rlim_cur = count, .rlim_max = count};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 || emulated());
}

TEST(one_by_one_without_proc)
{
    limit_descriptors(4096);
    inject("close_range", ENOSYS, 0, ALWAYS);
    inject("open_fds", ENOENT, 0, ALWAYS);
    check_all();
}

TEST(one_by_one_with_no_descriptors_left)
{
    limit_descriptors(4096);
    inject("close_range", ENOSYS, 0, ALWAYS);
    inject("open_fds", EMFILE, 0, ALWAYS);
    check_all();
}

TEST(one_by_one_where_listing_breaks_off)
{
    limit_descriptors(4096);
    inject("close_range", ENOSYS, 0, ALWAYS);
    inject("getdents", EIO, 0, ALWAYS);
    check_all();
}

/* A program may lower its limit below what it has open. */
TEST(descriptors_beyond_a_lowered_limit_are_found)
{
    struct rlimit limit;
    REQUIRE(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = FIRST;
    open_all();
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    inject("close_range", ENOSYS, 0, ALWAYS);
    inject("open_fds", ENOENT, 0, ALWAYS);
    mpx_os_close_range(FIRST, ~0U);
    CHECK_EQ(count_open(), 0);
}

/* ---- A table with room -------------------------------------------------------------------------
 */

/* What somebody does who has no descriptor left. */
typedef struct {
    bool was_kept[2], has_room;
    pid_t process;
} visit_t;

static void visit(void *argument)
{
    visit_t *visit = argument;
    for (int i = 0; i < 2; i++) {
        visit->was_kept[i] = is_open(i);
    }
    visit->process = getpid();
    visit->has_room = open("/dev/null", O_RDONLY) >= 0;
}

static void fill_table(void)
{
    struct rlimit limit = {.rlim_cur = END, .rlim_max = END};
    CHECK_EQ(setrlimit(RLIMIT_NOFILE, &limit), 0);
    while (open("/dev/null", O_RDONLY) >= 0) {
    }
    CHECK_EQ(errno, EMFILE);
}

TEST(a_table_with_room)
{
    const int keep[] = {1, -1, 0};
    visit_t seen = {.has_room = false};
    if (emulated()) {
        return; /* one thread of an emulator's has no table of its own */
    }
    fill_table();
    CHECK_EQ(mpx_os_with_room(keep, MPX_ARRAY_LENGTH(keep), visit, &seen), 0);
    CHECK(seen.was_kept[0] && seen.was_kept[1] && seen.has_room);
    CHECK_EQ(seen.process, getpid());
    CHECK_EQ(count_open(), COUNT); /* the process has all that it had */
    CHECK(open("/dev/null", O_RDONLY) < 0);
    mpx_os_close_range(STDERR_FILENO + 1, ~0U);
}

/* Nor afterwards: an end that the process closes then is closed. */
static void check_that_nothing_stays_open(void)
{
    visit_t seen = {.has_room = false};
    int late = 0;
    open_all();
    for (int i = 0; i < 300; i++) {
        int ends[2];
        CHECK_EQ(mpx_os_pipe(ends), 0);
        const int keep[] = {0, 1};
        CHECK_EQ(mpx_os_with_room(keep, MPX_ARRAY_LENGTH(keep), visit, &seen), 0);
        close(ends[1]);
        struct pollfd polled = {.fd = ends[0], .events = POLLIN};
        late += poll(&polled, 1, 0) == 0;
        close(ends[0]);
    }
    CHECK_EQ(late, 0);
    CHECK_EQ(count_open(), COUNT);
    mpx_os_close_range(FIRST, ~0U);
}

TEST(a_table_with_room_is_gone_at_once)
{
    if (emulated()) {
        return;
    }
    check_that_nothing_stays_open();
}

TEST(a_table_with_room_is_gone_at_once_by_listing_proc)
{
    if (emulated()) {
        return;
    }
    inject("close_range", ENOSYS, 0, ALWAYS);
    check_that_nothing_stays_open();
}

TEST(no_table_with_room)
{
    visit_t seen = {.has_room = false};
    inject("unshare", EPERM, 0, 1);
    CHECK_EQ(mpx_os_with_room(NULL, 0, visit, &seen), -EPERM);
    inject("thread", 0, 0, 1);
    CHECK_EQ(mpx_os_with_room(NULL, 0, visit, &seen), -EAGAIN);
    CHECK(!seen.has_room && is_open(1));
}

/* ---- Between vfork and exec ------------------------------------------------------------------ */

/* vfork and all that runs in its child, so that the frame the child returns from lives on. */
static __attribute__((noinline)) pid_t vfork_and_close(int keep)
{
    pid_t pid = vfork();
    if (pid == 0) {
        mpx_os_close_except(FIRST, &keep, 1);
        _exit(count_open() == 1 && is_open(keep) ? 0 : 1);
    }
    return pid;
}

static void check_in_vfork(void)
{
    open_all();
    CHECK_EQ(wait_for(vfork_and_close(FIRST + 7)), 0);
    CHECK_EQ(count_open(), COUNT); /* the parent's table is its own */
    mpx_os_close_range(FIRST, ~0U);
}

TEST(in_a_vfork_child)
{
    check_in_vfork();
}

TEST(in_a_vfork_child_by_listing_proc)
{
    inject("close_range", ENOSYS, 0, ALWAYS);
    check_in_vfork();
}

/* ---- Off the standard streams ---------------------------------------------------------------- */

static int count_low(void)
{
    int count = 0;
    for (int fd = 0; fd < 10; fd++) {
        count += is_open(fd);
    }
    return count;
}

/* In a process without standard streams: its exit status is the number of what went wrong. */
static int without_streams(void)
{
    int ends[2];
    for (int fd = 0; fd < 10; fd++) {
        close(fd);
    }
    int pidfd = mpx_os_pidfd_open(getpid());
    if (pidfd != -ENOSYS && pidfd <= STDERR_FILENO) {
        return 1;
    }
    close(pidfd);
    if (mpx_os_pipe(ends) != 0 || ends[0] <= STDERR_FILENO || ends[1] <= STDERR_FILENO) {
        return 2;
    }
    if (!(fcntl(ends[0], F_GETFD) & fcntl(ends[1], F_GETFD) & FD_CLOEXEC)) {
        return 3;
    }
    close(ends[0]);
    close(ends[1]);
    if (count_low() != 0 || mpx_os_above_stdio(-EPERM) != -EPERM || mpx_os_above_stdio(7) != 7) {
        return 4;
    }
    for (unsigned failing = 0; failing < 2; failing++) {
        inject("above_stdio", EMFILE, failing, 1);
        if (mpx_os_pipe(ends) != -EMFILE || count_low() != 0) {
            return 5;
        }
        inject_nothing();
    }
    return 0;
}

TEST(no_descriptor_is_a_standard_stream)
{
    pid_t pid = fork();
    if (pid == 0) {
        _exit(without_streams());
    }
    CHECK_EQ(wait_for(pid), 0);
}
