/* test_file.c - anonymous files: creation and its fallbacks, seals, storage, mappings. */
#include "harness.h"

#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILO = 1024, MEGA = 1024 * 1024 };

static uint64_t allocated_bytes(int fd)
{
    struct stat stat = {.st_blocks = 0};
    CHECK_EQ(fstat(fd, &stat), 0);
    return (uint64_t)stat.st_blocks * 512;
}

static uint64_t file_size(int fd)
{
    mpx_file_info_t info = {.size = 0};
    CHECK_EQ(mpx_os_file_info(fd, &info), 0);
    return info.size;
}

/* Neither a name nor an open descriptor for a program that is executed. */
static void check_anonymous(int fd)
{
    struct stat stat = {.st_nlink = 1};
    CHECK(fd >= 0);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    CHECK_EQ(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDWR);
    CHECK_EQ(fstat(fd, &stat), 0);
    CHECK(S_ISREG(stat.st_mode));
    CHECK_EQ(stat.st_nlink, 0);
    CHECK_EQ(stat.st_size, 0);
}

TEST(an_anonymous_file_is_empty_and_nameless)
{
    int fd = mpx_os_anonymous_file("label");
    check_anonymous(fd);
    close(fd);
}

TEST(without_memfd_there_is_an_unlinked_file)
{
    inject("memfd_create", ENOSYS, 0, ALWAYS);
    int fd = mpx_os_anonymous_file("label");
    check_anonymous(fd);
    close(fd);
}

TEST(without_tmpfile_a_file_is_unlinked)
{
    inject("memfd_create", EPERM, 0, ALWAYS);
    inject("open_tmpfile", EOPNOTSUPP, 0, ALWAYS);
    int first = mpx_os_anonymous_file("label");
    int second = mpx_os_anonymous_file("label");
    check_anonymous(first);
    check_anonymous(second);
    close(first);
    close(second);
}

TEST(directories_are_tried_in_turn)
{
    inject("memfd_create", ENOSYS, 0, ALWAYS);
    inject("open_tmpfile", EROFS, 0, 1);
    inject("open_named", EROFS, 0, 1);
    int fd = mpx_os_anonymous_file("label");
    check_anonymous(fd);
    close(fd);
}

TEST(no_directory_is_an_error)
{
    inject("memfd_create", ENOSYS, 0, ALWAYS);
    inject("open_tmpfile", EACCES, 0, ALWAYS);
    inject("open_named", EACCES, 0, ALWAYS);
    CHECK_EQ(mpx_os_anonymous_file("label"), -EACCES);
}

TEST(no_descriptors_left_is_an_error_at_once)
{
    CHECK_EQ(mpx_os_without(""), 0);
    inject("memfd_create", EMFILE, 0, 1);
    CHECK_EQ(mpx_os_anonymous_file("label"), -EMFILE);
    inject_nothing();
    CHECK_EQ(mpx_os_without("memfd_seal"), 0);
    inject("open_tmpfile", ENFILE, 0, 1);
    inject("open_named", ENFILE, 0, 1);
    CHECK_EQ(mpx_os_anonymous_file("label"), -ENFILE);
}

TEST(an_old_kernel_gets_flags_it_knows)
{
    inject("memfd_create", EINVAL, 0, 1); /* MFD_NOEXEC_SEAL */
    int fd = mpx_os_anonymous_file("label");
    check_anonymous(fd);
    close(fd);
}

TEST(file_info_tells_files_apart)
{
    int pipe_ends[2];
    mpx_file_info_t first, again, second, other;
    int fd = mpx_os_anonymous_file("label");
    int copy = dup(fd);
    int next = mpx_os_anonymous_file("label");
    REQUIRE(pipe(pipe_ends) == 0);
    CHECK_EQ(mpx_os_file_info(fd, &first), 0);
    CHECK_EQ(mpx_os_file_info(copy, &again), 0);
    CHECK_EQ(mpx_os_file_info(next, &second), 0);
    CHECK_EQ(mpx_os_file_info(pipe_ends[0], &other), 0);
    CHECK(first.regular && !other.regular);
    CHECK(memcmp(&first.id, &again.id, sizeof(first.id)) == 0);
    CHECK(memcmp(&first.id, &second.id, sizeof(first.id)) != 0);
    close(fd);
    close(copy);
    close(next);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    CHECK_EQ(mpx_os_file_info(fd, &first), -EBADF);
    CHECK_EQ(mpx_os_file_info(-1, &first), -EBADF);
}

/* ---- Seals ----------------------------------------------------------------------------------- */

TEST(a_sealed_file_does_not_shrink)
{
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_allocate(fd, 0, 2 * KILO), 0);
    CHECK_EQ(mpx_os_is_shrink_sealed(fd), 0);
    if (mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
        CHECK_EQ(mpx_os_seal_shrink(fd), 0);
        CHECK_EQ(mpx_os_seal_shrink(fd), 0); /* again is no harm */
        CHECK_EQ(mpx_os_is_shrink_sealed(fd), 1);
        CHECK_EQ(ftruncate(fd, KILO), -1);
        CHECK_EQ(errno, EPERM);
        CHECK_EQ(mpx_os_allocate(fd, 2 * KILO, KILO), 0);
    } else {
        int status = mpx_os_seal_shrink(fd);
        CHECK(status == -EOPNOTSUPP || status == -EPERM);
        CHECK_EQ(mpx_os_is_shrink_sealed(fd), 0);
    }
    close(fd);
}

TEST(what_cannot_be_sealed_says_so)
{
    int pipe_ends[2];
    REQUIRE(pipe(pipe_ends) == 0);
    CHECK_EQ(mpx_os_seal_shrink(pipe_ends[0]), -EPERM); /* cannot be written */
    CHECK_EQ(mpx_os_seal_shrink(pipe_ends[1]), -EOPNOTSUPP);
    CHECK_EQ(mpx_os_is_shrink_sealed(pipe_ends[0]), 0);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    CHECK_EQ(mpx_os_seal_shrink(pipe_ends[0]), -EBADF);
    CHECK_EQ(mpx_os_is_shrink_sealed(pipe_ends[0]), -EBADF);
}

/* ---- Storage --------------------------------------------------------------------------------- */

TEST(allocation_gives_every_byte_storage)
{
    const uint64_t sizes[] = {1, 4096, 5000, 9 * MEGA + 1}; /* the last: more than one piece */
    int fd = mpx_os_anonymous_file("label");
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        CHECK_EQ(mpx_os_allocate(fd, 0, sizes[i]), 0);
        CHECK_EQ(file_size(fd), sizes[i]);
        CHECK(allocated_bytes(fd) >= sizes[i]);
    }
    close(fd);
}

TEST(allocation_keeps_what_the_file_holds)
{
    char text[6] = "";
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(pwrite(fd, "hello", 6, 100), 6);
    CHECK_EQ(mpx_os_allocate(fd, 0, 64 * KILO), 0);
    CHECK_EQ(mpx_os_allocate(fd, 50, 100), 0);
    CHECK_EQ(file_size(fd), 64 * KILO);
    CHECK_EQ(pread(fd, text, 6, 100), 6);
    CHECK_EQ(strcmp(text, "hello"), 0);
    close(fd);
}

TEST(without_fallocate_zeros_are_written_behind_the_end)
{
    static const int errors[] = {EOPNOTSUPP, ENOSYS};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(errors); i++) {
        char text[6] = "";
        int fd = mpx_os_anonymous_file("label");
        CHECK_EQ(pwrite(fd, "hello", 6, 0), 6);
        inject("fallocate", errors[i], 0, ALWAYS);
        inject("pwrite", EINTR, 1, 1);
        CHECK_EQ(mpx_os_allocate(fd, 0, 70 * KILO), 0);
        inject_nothing();
        CHECK_EQ(file_size(fd), 70 * KILO);
        CHECK(allocated_bytes(fd) >= 70 * KILO);
        CHECK_EQ(pread(fd, text, 6, 0), 6);
        CHECK_EQ(strcmp(text, "hello"), 0);
        close(fd);
    }
}

TEST(a_full_file_system_is_an_error)
{
    int fd = mpx_os_anonymous_file("label");
    inject("fallocate", ENOSPC, 1, ALWAYS); /* in the second piece */
    CHECK_EQ(mpx_os_allocate(fd, 0, 9 * MEGA), -ENOSPC);
    inject_nothing();
    inject("fallocate", EOPNOTSUPP, 0, ALWAYS);
    inject("pwrite", ENOSPC, 2, ALWAYS);
    CHECK_EQ(mpx_os_allocate(fd, 0, 9 * MEGA), -ENOSPC);
    close(fd);
}

TEST(interrupted_allocation_goes_on)
{
    int fd = mpx_os_anonymous_file("label");
    inject("fallocate", EINTR, 0, 3);
    CHECK_EQ(mpx_os_allocate(fd, 0, 64 * KILO), 0);
    CHECK_EQ(file_size(fd), 64 * KILO);
    close(fd);
}

TEST(impossible_ranges_are_refused)
{
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_allocate(fd, 0, 0), -EINVAL);
    CHECK_EQ(mpx_os_allocate(fd, INT64_MAX, 2), -EFBIG);
    CHECK_EQ(mpx_os_allocate(fd, UINT64_MAX, 1), -EFBIG);
    CHECK_EQ(mpx_os_allocate(fd, 1, UINT64_MAX), -EFBIG);
    CHECK_EQ(file_size(fd), 0);
    close(fd);
    CHECK_EQ(mpx_os_allocate(fd, 0, 1), -EBADF);
}

/* SIGXFSZ keeps its default, which is death. */
TEST(the_file_size_limit_is_an_error_and_no_signal)
{
    struct rlimit limit, low;
    int fd = mpx_os_anonymous_file("label");
    REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    low = limit;
    low.rlim_cur = 64 * KILO;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &low) == 0);
    CHECK_EQ(mpx_os_allocate(fd, 0, 64 * KILO), 0);
    CHECK_EQ(mpx_os_allocate(fd, 0, 64 * KILO + 1), -EFBIG);
    CHECK_EQ(mpx_os_allocate(fd, 64 * KILO, 1), -EFBIG);
    CHECK_EQ(file_size(fd), 64 * KILO);
    setrlimit(RLIMIT_FSIZE, &limit);
    CHECK_EQ(mpx_os_allocate(fd, 64 * KILO, 1), 0);
    CHECK_EQ(mpx_os_allocate(fd, 0, 64 * KILO), 0); /* within the file no limit counts */
    close(fd);
}

static mpx_atomic_u32 signals_seen;

static void count_signal(int number)
{
    (void)number;
    mpx_u32_fetch_add_relaxed(&signals_seen, 1);
}

static void send_signals(void *unused)
{
    (void)unused;
    for (pid_t parent = getppid(); kill(parent, SIGUSR1) == 0;) {
    }
}

/* In tmpfs of older kernels a pending signal undoes an allocation; one that meets a signal each
 * time would never end. */
TEST(allocation_gets_through_a_storm_of_signals)
{
    struct sigaction action = {.sa_handler = count_signal, .sa_flags = SA_RESTART};
    int fd = mpx_os_anonymous_file("label");
    sigaction(SIGUSR1, &action, NULL);
    pid_t pid = start_process(send_signals, NULL);
    while (mpx_u32_load_relaxed(&signals_seen) == 0) {
        sched_yield();
    }
    CHECK_EQ(mpx_os_allocate(fd, 0, 32 * MEGA), 0);
    kill(pid, SIGKILL);
    wait_for(pid);
    CHECK_EQ(file_size(fd), 32 * MEGA);
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    CHECK(!sigismember(&blocked, SIGUSR1));
    close(fd);
}

TEST(storage_can_be_given_back)
{
    char byte = 1;
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_allocate(fd, 0, MEGA), 0);
    CHECK_EQ(pwrite(fd, &byte, 1, MEGA - 1), 1);
    uint64_t before = allocated_bytes(fd);
    int status = mpx_os_deallocate(fd, MEGA / 2, MEGA / 2);
    CHECK(status == 0 || (status == -EOPNOTSUPP && !mpx_os_has(MPX_HAS_MEMFD_SEAL)));
    if (status == 0) {
        CHECK(allocated_bytes(fd) < before);
        CHECK_EQ(pread(fd, &byte, 1, MEGA - 1), 1);
        CHECK_EQ(byte, 0);
    }
    CHECK_EQ(file_size(fd), MEGA);
    close(fd);
    CHECK_EQ(mpx_os_deallocate(fd, 0, MEGA), -EBADF);
}

/* ---- Mappings -------------------------------------------------------------------------------- */

TEST(a_mapping_may_be_longer_than_the_file)
{
    void *address = NULL;
    size_t page = mpx_os_page_size();
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_allocate(fd, 0, page), 0);
    REQUIRE(mpx_os_map(fd, 4 * page, &address) == 0);
    char *bytes = address;
    bytes[page - 1] = 1;
    CHECK_EQ(mpx_os_allocate(fd, page, 3 * page), 0);
    bytes[4 * page - 1] = 2;
    char byte = 0;
    CHECK_EQ(pread(fd, &byte, 1, (off_t)(4 * page - 1)), 1);
    CHECK_EQ(byte, 2);
    mpx_os_unmap(address, 4 * page);
    close(fd);
}

TEST(mapping_failures_are_reported)
{
    void *address = NULL;
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_map(fd, 0, &address), -EINVAL);
    CHECK_EQ(mpx_os_map(-1, 4096, &address), -EBADF);
    inject("mmap", ENOMEM, 0, 1);
    CHECK_EQ(mpx_os_map(fd, 4096, &address), -ENOMEM);
    CHECK(address == NULL);
    close(fd);
}

static size_t resident_pages(void *address, size_t length)
{
    unsigned char resident[64];
    size_t count = 0;
    CHECK_EQ(mincore(address, length, resident), 0);
    for (size_t i = 0; i < length / mpx_os_page_size(); i++) {
        count += resident[i] & 1;
    }
    return count;
}

/* Once by the kernel, once for each error that means "do it yourself". */
TEST(populate_maps_pages_and_keeps_their_contents)
{
    static const int errors[] = {0, EINVAL, ENOSYS, EPERM, EINTR, EAGAIN};
    size_t page = mpx_os_page_size();
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(errors); i++) {
        void *address = NULL;
        int fd = mpx_os_anonymous_file("label");
        CHECK_EQ(mpx_os_allocate(fd, 0, 16 * page), 0);
        CHECK_EQ(pwrite(fd, "hello", 6, (off_t)(3 * page)), 6);
        REQUIRE(mpx_os_map(fd, 16 * page, &address) == 0);
        if (errors[i] != 0) {
            inject("madvise", errors[i], 0, 1);
        }
        char *bytes = address;
        CHECK_EQ(mpx_os_populate(bytes + 100, 16 * page - 200), 0);
        inject_nothing();
        CHECK_EQ(resident_pages(address, 16 * page), 16);
        CHECK_EQ(strcmp(bytes + 3 * page, "hello"), 0);
        mpx_os_unmap(address, 16 * page);
        close(fd);
    }
}

/* Touching would be answered with SIGBUS here. */
TEST(populate_reports_missing_storage)
{
    CHECK_EQ(mpx_os_without(""), 0);
    if (!mpx_os_has(MPX_HAS_MADV_POPULATE)) {
        return;
    }
    void *address = NULL;
    size_t page = mpx_os_page_size();
    int fd = mpx_os_anonymous_file("label");
    CHECK_EQ(mpx_os_allocate(fd, 0, page), 0);
    REQUIRE(mpx_os_map(fd, 2 * page, &address) == 0);
    CHECK_EQ(mpx_os_populate(address, 2 * page), -EFAULT);
    mpx_os_unmap(address, 2 * page);
    close(fd);
}
