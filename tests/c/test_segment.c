/* test_segment.c - segments: create, attach, grow, bounds, lost descriptors, bad files, failures.
 */
#include "harness.h"

#include "mpx_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILO = 1024, MEGA = 1024 * 1024 };

static uint64_t page(void)
{
    return mpx_os_page_size();
}

/* Another handle of the same segment, as another process would have it. */
static int attach_again(mpx_segment_t *other, const mpx_segment_t *segment)
{
    int copy = fcntl(mpx_segment_fd(segment), F_DUPFD_CLOEXEC, 0);
    int status = mpx_segment_attach(other, copy);
    if (status < 0) {
        close(copy);
    }
    return status;
}

/* Reads and writes every byte that may be used: a missing page would be SIGBUS. */
static void use_every_byte(mpx_segment_t *segment)
{
    uint64_t length = mpx_segment_size(segment) - MPX_SEGMENT_DATA;
    volatile unsigned char *bytes = mpx_segment_at(segment, MPX_SEGMENT_DATA, length);
    REQUIRE(bytes != NULL);
    for (uint64_t i = 0; i < length; i += 64) {
        bytes[i] = (unsigned char)(bytes[i] + 1);
    }
    bytes[length - 1] = 1;
}

/* ---- Create and attach ----------------------------------------------------------------------- */

TEST(a_segment_is_made_of_whole_zero_pages)
{
    const size_t sizes[] = {0, 1, MPX_SEGMENT_DATA, MPX_SEGMENT_DATA + 1, 4096, 100 * KILO, MEGA};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        mpx_segment_t segment;
        REQUIRE(mpx_segment_create(&segment, sizes[i]) == 0);
        uint64_t size = mpx_segment_size(&segment);
        CHECK(size >= sizes[i] && size > 0 && size % page() == 0 && size < sizes[i] + 2 * page());
        const char *bytes = mpx_segment_at(&segment, MPX_SEGMENT_DATA, size - MPX_SEGMENT_DATA);
        REQUIRE(bytes != NULL);
        CHECK(bytes[0] == 0 && memcmp(bytes, bytes + 1, size - MPX_SEGMENT_DATA - 1) == 0);
        use_every_byte(&segment);
        mpx_segment_close(&segment);
    }
}

TEST(every_byte_has_storage_and_none_can_be_taken)
{
    mpx_segment_t segment;
    struct stat stat = {.st_blocks = 0};
    REQUIRE(mpx_segment_create(&segment, MEGA) == 0);
    int fd = mpx_segment_fd(&segment);
    CHECK_EQ(fstat(fd, &stat), 0);
    CHECK(stat.st_blocks * 512 >= MEGA);
    CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC);
    if (mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
        CHECK_EQ(ftruncate(fd, 0), -1);
        CHECK_EQ(errno, EPERM);
    }
    mpx_segment_close(&segment);
}

TEST(impossible_sizes_are_refused)
{
    mpx_segment_t segment;
    CHECK_EQ(mpx_segment_create(&segment, SIZE_MAX), -EFBIG);
    CHECK_EQ(mpx_segment_create(&segment, INT64_MAX), -EFBIG);
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    CHECK_EQ(mpx_segment_grow(&segment, SIZE_MAX), -EFBIG);
    CHECK_EQ(mpx_segment_grow(&segment, INT64_MAX), -EFBIG);
    CHECK_EQ(mpx_segment_size(&segment), page());
    mpx_segment_close(&segment);
}

TEST(two_handles_see_the_same_bytes)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 2 * page()) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    CHECK_EQ(mpx_segment_size(&other), 2 * page());
    char *here = mpx_segment_at(&segment, 5000 % page() + 64, 6);
    char *there = mpx_segment_at(&other, 5000 % page() + 64, 6);
    CHECK(here != there);
    memcpy(here, "hello", 6);
    CHECK_EQ(strcmp(there, "hello"), 0);
    mpx_segment_close(&segment);
    CHECK_EQ(strcmp(there, "hello"), 0);
    mpx_segment_close(&other);
}

TEST(offsets_are_checked)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    uint64_t size = mpx_segment_size(&segment);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA, size - MPX_SEGMENT_DATA) != NULL);
    CHECK(mpx_segment_at(&segment, size - 1, 1) != NULL);
    CHECK(mpx_segment_at(&segment, size, 0) != NULL);
    CHECK(mpx_segment_at(&segment, 0, 1) == NULL);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA - 1, 1) == NULL);
    CHECK(mpx_segment_at(&segment, size, 1) == NULL);
    CHECK(mpx_segment_at(&segment, size + 1, 0) == NULL);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA, size - MPX_SEGMENT_DATA + 1) == NULL);
    CHECK(mpx_segment_at(&segment, UINT64_MAX, 1) == NULL);
    CHECK(mpx_segment_at(&segment, UINT64_MAX, UINT64_MAX) == NULL);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA, UINT64_MAX) == NULL);
    CHECK(mpx_segment_at(&segment, size - 1, UINT64_MAX - 1) == NULL);
    mpx_segment_close(&segment);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA, 1) == NULL);
    CHECK_EQ(mpx_segment_size(&segment), 0);
}

/* ---- Growth ---------------------------------------------------------------------------------- */

TEST(growth_keeps_addresses_and_contents)
{
    mpx_segment_t segment;
    char *addresses[12];
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    for (unsigned i = 0; i < MPX_ARRAY_LENGTH(addresses); i++) {
        uint64_t last = mpx_segment_size(&segment) - 1;
        addresses[i] = mpx_segment_at(&segment, last, 1);
        *addresses[i] = (char)i;
        CHECK_EQ(mpx_segment_grow(&segment, last + 2), 0); /* one page more */
        CHECK_EQ(mpx_segment_size(&segment), last + 1 + page());
        CHECK(*addresses[i] == (char)i);
        CHECK(*(char *)mpx_segment_at(&segment, last, 1) == (char)i);
    }
    for (unsigned i = 0; i < MPX_ARRAY_LENGTH(addresses); i++) {
        *addresses[i] = (char)(*addresses[i] + 100);
        CHECK(*(char *)mpx_segment_at(&segment, (i + 1) * page() - 1, 1) == (char)(i + 100));
    }
    use_every_byte(&segment);
    mpx_segment_close(&segment);
}

TEST(growth_by_large_factors)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    CHECK_EQ(mpx_segment_grow(&segment, 4 * MEGA), 0);
    use_every_byte(&segment);
    CHECK_EQ(mpx_segment_grow(&other, 9 * MEGA), 0);
    use_every_byte(&other);
    CHECK_EQ(mpx_segment_refresh(&segment), 0);
    CHECK_EQ(mpx_segment_size(&segment), 9 * MEGA);
    use_every_byte(&segment);
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

TEST(growth_to_less_does_nothing)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 10 * page()) == 0);
    CHECK_EQ(mpx_segment_grow(&segment, 0), 0);
    CHECK_EQ(mpx_segment_grow(&segment, page()), 0);
    CHECK_EQ(mpx_segment_grow(&segment, 10 * page()), 0);
    CHECK_EQ(mpx_segment_size(&segment), 10 * page());
    mpx_segment_close(&segment);
}

TEST(others_see_growth_after_refresh)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    CHECK_EQ(mpx_segment_refresh(&other), 0);
    char *first = mpx_segment_at(&other, MPX_SEGMENT_DATA, 6);
    CHECK_EQ(mpx_segment_grow(&segment, 10 * page()), 0);
    memcpy(mpx_segment_at(&segment, 9 * page(), 6), "there", 6);
    CHECK(mpx_segment_at(&other, 9 * page(), 6) == NULL);
    CHECK_EQ(mpx_segment_refresh(&other), 0);
    char *there = mpx_segment_at(&other, 9 * page(), 6);
    REQUIRE(there != NULL);
    CHECK_EQ(strcmp(there, "there"), 0);
    memcpy(first, "early", 6);
    CHECK_EQ(strcmp(mpx_segment_at(&segment, MPX_SEGMENT_DATA, 6), "early"), 0);
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

static void grow_and_write(void *argument)
{
    mpx_segment_t *segment = argument;
    CHECK_EQ(mpx_segment_grow(segment, 3 * MEGA), 0);
    memcpy(mpx_segment_at(segment, 2 * MEGA, 6), "child", 6);
    mpx_segment_close(segment);
}

TEST(a_forked_child_may_grow_what_it_inherits)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    CHECK_EQ(wait_for(start_process(grow_and_write, &segment)), 0);
    CHECK_EQ(mpx_segment_refresh(&segment), 0);
    CHECK_EQ(mpx_segment_size(&segment), 3 * MEGA);
    CHECK_EQ(strcmp(mpx_segment_at(&segment, 2 * MEGA, 6), "child"), 0);
    mpx_segment_close(&segment);
}

/* A futex is known by file and offset, whichever view leads to it. */
TEST(a_sleeper_in_one_view_is_woken_through_another)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    mpx_atomic_u32 *old = mpx_segment_at(&segment, MPX_SEGMENT_DATA, sizeof(*old));
    CHECK_EQ(mpx_segment_grow(&segment, 4 * page()), 0);
    mpx_atomic_u32 *new = mpx_segment_at(&segment, MPX_SEGMENT_DATA, sizeof(*new));
    CHECK(old != new);
    pid_t pid = fork();
    if (pid == 0) {
        while (mpx_u32_load_acquire(old) == 0) {
            if (mpx_os_futex_wait(old, 0, MPX_NEVER) == -ETIMEDOUT) {
                _exit(1);
            }
        }
        _exit(0);
    }
    mpx_u32_store_release(new, 1);
    CHECK(mpx_os_futex_wake(new, INT32_MAX) >= 0);
    CHECK_EQ(wait_for(pid), 0);
    mpx_segment_close(&segment);
}

/* ---- Threads --------------------------------------------------------------------------------- */

enum { GROWTHS = 200, READERS = 3 };

struct race {
    mpx_segment_t writer; /* two handles, as of two processes */
    mpx_segment_t reader; /* shared by all the readers */
    mpx_atomic_u64 published;
};

/* Each published offset holds itself. Readers map what is new at the same time. */
static void *follow_growth(void *argument)
{
    struct race *race = argument;
    uint64_t offset;
    do {
        offset = mpx_u64_load_acquire(&race->published);
        mpx_atomic_u64 *word = mpx_segment_at(&race->reader, offset, sizeof(*word));
        if (word == NULL) {
            CHECK_EQ(mpx_segment_refresh(&race->reader), 0);
            word = mpx_segment_at(&race->reader, offset, sizeof(*word));
        }
        CHECK(word != NULL && mpx_u64_load_relaxed(word) == offset);
    } while (offset < GROWTHS * page());
    return NULL;
}

TEST(threads_follow_growth)
{
    struct race race = {.published = {MPX_SEGMENT_DATA}};
    pthread_t threads[READERS];
    REQUIRE(mpx_segment_create(&race.writer, 1) == 0);
    REQUIRE(attach_again(&race.reader, &race.writer) == 0);
    mpx_atomic_u64 *first = mpx_segment_at(&race.writer, MPX_SEGMENT_DATA, sizeof(*first));
    mpx_u64_store_relaxed(first, MPX_SEGMENT_DATA);
    for (int i = 0; i < READERS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, follow_growth, &race) == 0);
    }
    for (uint64_t i = 1; i <= GROWTHS; i++) {
        CHECK_EQ(mpx_segment_grow(&race.writer, (i + 1) * page()), 0);
        mpx_atomic_u64 *word = mpx_segment_at(&race.writer, i * page(), sizeof(*word));
        mpx_u64_store_relaxed(word, i * page());
        mpx_u64_store_release(&race.published, i * page());
    }
    for (int i = 0; i < READERS; i++) {
        pthread_join(threads[i], NULL);
    }
    mpx_segment_close(&race.reader);
    mpx_segment_close(&race.writer);
}

static void *grow_and_grow(void *argument)
{
    struct race *race = argument;
    for (uint64_t i = 1; i <= GROWTHS; i++) {
        CHECK_EQ(mpx_segment_grow(&race->writer, (i + 1) * page()), 0);
        mpx_u64_store_release(&race->published, i * page());
    }
    return NULL;
}

TEST(attach_while_it_grows)
{
    for (int round = 0; round < 10; round++) {
        struct race race = {.published = {0}};
        pthread_t grower;
        REQUIRE(mpx_segment_create(&race.writer, 1) == 0);
        REQUIRE(pthread_create(&grower, NULL, grow_and_grow, &race) == 0);
        uint64_t published;
        do {
            published = mpx_u64_load_acquire(&race.published);
            REQUIRE(attach_again(&race.reader, &race.writer) == 0);
            CHECK(mpx_segment_size(&race.reader) >= published);
            use_every_byte(&race.reader);
            mpx_segment_close(&race.reader);
            sched_yield(); /* emulators run one thread at a time, and leave it running */
        } while (published < GROWTHS * page());
        pthread_join(grower, NULL);
        mpx_segment_close(&race.writer);
    }
}

/* ---- Descriptors that the program closed ----------------------------------------------------- */

TEST(a_closed_descriptor_is_noticed)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    char *bytes = mpx_segment_at(&segment, MPX_SEGMENT_DATA, 6);
    close(mpx_segment_fd(&segment));
    CHECK_EQ(mpx_segment_fd(&segment), -EBADF);
    CHECK_EQ(mpx_segment_grow(&segment, MEGA), -EBADF);
    memcpy(bytes, "works", 6);
    CHECK(mpx_segment_at(&segment, MPX_SEGMENT_DATA, 6) == bytes);
    CHECK_EQ(mpx_segment_grow(&segment, 1), 0); /* nothing to do */
    mpx_segment_close(&segment);
}

TEST(a_reused_descriptor_is_noticed_and_left_alone)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    int fd = mpx_segment_fd(&segment);
    int foreign = mpx_os_anonymous_file("foreign");
    CHECK_EQ(write(foreign, "data", 4), 4);
    CHECK_EQ(dup2(foreign, fd), fd);
    CHECK_EQ(mpx_segment_fd(&segment), -ESTALE);
    CHECK_EQ(mpx_segment_grow(&segment, MEGA), -ESTALE);
    CHECK_EQ(mpx_segment_grow(&other, MEGA), 0);
    CHECK_EQ(mpx_segment_refresh(&segment), -ESTALE);
    CHECK(mpx_segment_at(&segment, MEGA - 1, 1) == NULL);
    mpx_file_info_t info = {.size = 0};
    CHECK_EQ(mpx_os_file_info(foreign, &info), 0);
    CHECK_EQ(info.size, 4);
    mpx_segment_close(&segment);
    CHECK(fcntl(fd, F_GETFD) >= 0); /* the program's descriptor, not ours to close */
    close(fd);
    close(foreign);
    mpx_segment_close(&other);
}

/* ---- Bad files ------------------------------------------------------------------------------- */

/* A file of the given size with a good header, sealed where that is possible. */
static int make_file(const mpx_segment_header_t *header, uint64_t size)
{
    int fd = mpx_os_anonymous_file("bad");
    CHECK_EQ(ftruncate(fd, (off_t)size), 0);
    size_t length = size < sizeof(*header) ? size : sizeof(*header);
    CHECK_EQ(pwrite(fd, header, length, 0), length);
    if (mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
        CHECK_EQ(mpx_os_seal_shrink(fd), 0);
    }
    return fd;
}

static mpx_segment_header_t good_header(uint64_t size)
{
    mpx_segment_header_t header;
    memset(&header, 0, sizeof(header)); /* what is written to a file has no undefined bytes */
    header.magic = MPX_SEGMENT_MAGIC;
    header.layout = MPX_SEGMENT_LAYOUT;
    mpx_u32_store_relaxed(&header.ready, MPX_SEGMENT_READY);
    mpx_u64_store_relaxed(&header.size, size);
    return header;
}

/* The status of attaching to such a file; what attaches must be usable throughout. */
static int attach_to(const mpx_segment_header_t *header, uint64_t size)
{
    mpx_segment_t segment;
    int fd = make_file(header, size);
    int status = mpx_segment_attach(&segment, fd);
    if (status == 0) {
        if (mpx_segment_size(&segment) > MPX_SEGMENT_DATA) {
            use_every_byte(&segment);
        }
        mpx_segment_close(&segment);
    } else {
        CHECK_EQ(fcntl(fd, F_GETFD), FD_CLOEXEC); /* stays the caller's */
        close(fd);
    }
    return status;
}

TEST(attach_refuses_bad_headers)
{
    const uint64_t size = 2 * page();
    mpx_segment_header_t header = good_header(size);
    CHECK_EQ(attach_to(&header, size), 0);

    header.magic++;
    CHECK_EQ(attach_to(&header, size), -EPROTO);
    header = good_header(size);
    header.layout++;
    CHECK_EQ(attach_to(&header, size), -EPROTO);
    header = good_header(size);
    mpx_u32_store_relaxed(&header.ready, 0);
    CHECK_EQ(attach_to(&header, size), -EPROTO);
    header = good_header(size);
    header.magic = __builtin_bswap64(header.magic); /* of another byte order */
    CHECK_EQ(attach_to(&header, size), -EPROTO);
}

TEST(attach_refuses_bad_sizes)
{
    const uint64_t bad[] = {0, 1, MPX_SEGMENT_DATA - 1, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(bad); i++) {
        mpx_segment_header_t header = good_header(bad[i]);
        CHECK_EQ(attach_to(&header, page()), -EPROTO);
    }
    mpx_segment_header_t header = good_header(page() + 1);
    CHECK_EQ(attach_to(&header, page()), -EPROTO);
    header = good_header(100); /* odd but possible */
    CHECK_EQ(attach_to(&header, 100), 0);
    CHECK_EQ(attach_to(&header, 99), -EPROTO);
}

TEST(attach_refuses_truncated_files)
{
    const uint64_t sizes[] = {0, 1, 8, 16, 24, MPX_SEGMENT_DATA - 1, MPX_SEGMENT_DATA, 4095};
    mpx_segment_header_t header = good_header(4096);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        CHECK_EQ(attach_to(&header, sizes[i]), -EPROTO);
    }
}

/* A hole reads as zeros; it takes storage when it is written. */
TEST(attach_accepts_a_file_with_holes)
{
    mpx_segment_header_t header = good_header(MEGA);
    CHECK_EQ(attach_to(&header, MEGA), 0);
}

TEST(attach_refuses_what_is_no_file)
{
    mpx_segment_t segment;
    int pipe_ends[2];
    REQUIRE(pipe(pipe_ends) == 0);
    int directory = open("/", O_RDONLY | O_DIRECTORY);
    int device = open("/dev/zero", O_RDWR);
    CHECK_EQ(mpx_segment_attach(&segment, pipe_ends[0]), -EINVAL);
    CHECK_EQ(mpx_segment_attach(&segment, directory), -EINVAL);
    CHECK_EQ(mpx_segment_attach(&segment, device), -EINVAL);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
    close(directory);
    close(device);
    CHECK_EQ(mpx_segment_attach(&segment, device), -EBADF);
    CHECK_EQ(mpx_segment_attach(&segment, -1), -EBADF);
}

/* What could shrink under us is not mapped, where the machine offers better. */
TEST(attach_refuses_a_file_that_is_not_sealed)
{
    if (!mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
        return;
    }
    mpx_segment_t segment;
    mpx_segment_header_t header = good_header(page());
    int fd = mpx_os_anonymous_file("unsealed");
    CHECK_EQ(pwrite(fd, &header, sizeof(header), 0), sizeof(header));
    CHECK_EQ(ftruncate(fd, (off_t)page()), 0);
    CHECK_EQ(mpx_segment_attach(&segment, fd), -EPROTO);
    CHECK_EQ(mpx_os_seal_shrink(fd), 0);
    REQUIRE(mpx_segment_attach(&segment, fd) == 0);
    mpx_segment_close(&segment);
}

TEST(attach_refuses_a_descriptor_that_cannot_write)
{
    char path[64];
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    snprintf(path, sizeof(path), "/proc/self/fd/%d", mpx_segment_fd(&segment));
    int fd = open(path, O_RDONLY);
    REQUIRE(fd >= 0);
    CHECK_EQ(mpx_segment_attach(&other, fd), -EACCES);
    close(fd);
    mpx_segment_close(&segment);
}

TEST(refresh_refuses_a_size_beyond_the_file)
{
    const uint64_t bad[] = {2 * MEGA, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(bad); i++) {
        mpx_segment_t segment;
        mpx_segment_header_t header = good_header(MEGA);
        int fd = make_file(&header, MEGA);
        REQUIRE(mpx_segment_attach(&segment, fd) == 0);
        mpx_u64_store_relaxed(&header.size, bad[i]);
        CHECK_EQ(pwrite(fd, &header, sizeof(header), 0), sizeof(header));
        CHECK_EQ(mpx_segment_refresh(&segment), -EPROTO);
        CHECK_EQ(mpx_segment_grow(&segment, 3 * MEGA), -EPROTO);
        CHECK_EQ(mpx_segment_size(&segment), MEGA);
        use_every_byte(&segment);
        mpx_segment_close(&segment);
    }
}

/* Random damage: whatever comes, attach says no or all that it offers can be used. */
TEST(random_headers_do_no_harm)
{
    enum { FILES = 3000 };
    unsigned seed = 20;
    int attached = 0;
    for (int i = 0; i < FILES; i++) {
        uint64_t size = (uint64_t)rand_r(&seed) % (3 * page());
        mpx_segment_header_t header = good_header((uint64_t)rand_r(&seed) % (4 * page()));
        unsigned char *bytes = (unsigned char *)&header;
        if (rand_r(&seed) % 2) {
            bytes[rand_r(&seed) % 24] ^= (unsigned char)(1 << rand_r(&seed) % 8);
        }
        int status = attach_to(&header, size);
        CHECK(status == 0 || status == -EPROTO);
        attached += status == 0;
    }
    CHECK(attached > FILES / 20 && attached < FILES / 2); /* both happen */
}

/* ---- Failures of the system ------------------------------------------------------------------ */

/* Each leaves no descriptor behind: the harness counts them. */
TEST(create_reports_each_failure)
{
    static const struct {
        const char *site;
        int error;
    } failures[] = {{"fallocate", ENOSPC}, {"fallocate", EFBIG}, {"mmap", ENOMEM}, {"fstat", EIO}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(failures); i++) {
        mpx_segment_t segment;
        inject(failures[i].site, failures[i].error, 0, 1);
        CHECK_EQ(mpx_segment_create(&segment, MEGA), -failures[i].error);
        inject_nothing();
        REQUIRE(mpx_segment_create(&segment, MEGA) == 0);
        mpx_segment_close(&segment);
    }
}

TEST(create_without_descriptors)
{
    mpx_segment_t segment;
    inject("memfd_create", EMFILE, 0, ALWAYS);
    inject("open_tmpfile", EMFILE, 0, ALWAYS);
    inject("open_named", EMFILE, 0, ALWAYS);
    CHECK_EQ(mpx_segment_create(&segment, 1), -EMFILE);
}

TEST(create_insists_on_the_seal_where_there_are_seals)
{
    mpx_segment_t segment;
    bool seals = mpx_os_has(MPX_HAS_MEMFD_SEAL);
    inject("add_seals", EBUSY, 0, 1);
    CHECK_EQ(mpx_segment_create(&segment, 1), seals ? -EBUSY : 0);
    if (!seals) {
        mpx_segment_close(&segment);
    }
}

TEST(attach_reports_each_failure)
{
    static const struct {
        const char *site;
        int error;
    } failures[] = {{"mmap", ENOMEM}, {"fstat", EIO}, {"get_seals", EPERM}};
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    int copy = dup(mpx_segment_fd(&segment));
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(failures); i++) {
        if (strcmp(failures[i].site, "get_seals") == 0 && !mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
            continue;
        }
        inject(failures[i].site, failures[i].error, 0, 1);
        CHECK_EQ(mpx_segment_attach(&other, copy), -failures[i].error);
        inject_nothing();
    }
    REQUIRE(mpx_segment_attach(&other, copy) == 0);
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

static uint64_t stored_bytes(const mpx_segment_t *segment)
{
    struct stat stat = {.st_blocks = 0};
    CHECK_EQ(fstat(mpx_segment_fd(segment), &stat), 0);
    return (uint64_t)stat.st_blocks * 512;
}

/* A failed growth leaves the segment as it was and gives the storage back. */
TEST(grow_reports_each_failure_and_can_be_repeated)
{
    static const struct {
        const char *site;
        int error;
        unsigned skip;
    } failures[] = {{"fallocate", ENOSPC, 0}, {"fallocate", ENOSPC, 2}, {"mmap", ENOMEM, 0}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(failures); i++) {
        mpx_segment_t segment, other;
        REQUIRE(mpx_segment_create(&segment, 1) == 0);
        REQUIRE(attach_again(&other, &segment) == 0);
        char *bytes = mpx_segment_at(&segment, MPX_SEGMENT_DATA, 6);
        memcpy(bytes, "first", 6);
        uint64_t stored = stored_bytes(&segment);
        inject(failures[i].site, failures[i].error, failures[i].skip, 1);
        CHECK_EQ(mpx_segment_grow(&segment, 16 * MEGA), -failures[i].error);
        inject_nothing();
        CHECK_EQ(mpx_segment_size(&segment), page());
        CHECK_EQ(mpx_segment_refresh(&other), 0);
        CHECK_EQ(mpx_segment_size(&other), page());
        CHECK_EQ(stored_bytes(&segment), stored);
        CHECK_EQ(strcmp(bytes, "first"), 0);
        CHECK_EQ(mpx_segment_grow(&segment, 16 * MEGA), 0);
        use_every_byte(&segment);
        CHECK_EQ(mpx_segment_refresh(&other), 0);
        use_every_byte(&other);
        mpx_segment_close(&other);
        mpx_segment_close(&segment);
    }
}

TEST(sparse_growth_has_storage_where_it_is_given_some)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    CHECK_EQ(mpx_segment_grow_sparse(&segment, 64 * MEGA), 0);
    CHECK_EQ(mpx_segment_size(&segment), 64 * MEGA);
    CHECK(stored_bytes(&segment) <= MEGA);
    CHECK_EQ(mpx_segment_refresh(&other), 0);
    CHECK_EQ(mpx_segment_allocate(&segment, 8 * MEGA, 2 * MEGA), 0);
    CHECK(stored_bytes(&segment) >= 2 * MEGA);
    memset(mpx_segment_at(&segment, 8 * MEGA, 2 * MEGA), 1, 2 * MEGA);
    CHECK_EQ(*(char *)mpx_segment_at(&other, 10 * MEGA - 1, 1), 1);
    CHECK_EQ(mpx_segment_allocate(&other, 8 * MEGA, 2 * MEGA), 0); /* what it holds stays */
    CHECK_EQ(*(char *)mpx_segment_at(&other, 10 * MEGA - 1, 1), 1);
    CHECK_EQ(mpx_segment_deallocate(&segment, 8 * MEGA, 2 * MEGA), 0);
    CHECK(stored_bytes(&segment) <= MEGA);
    CHECK_EQ(*(char *)mpx_segment_at(&other, 10 * MEGA - 1, 1), 0);
    CHECK_EQ(mpx_segment_grow(&segment, 65 * MEGA), 0); /* the rest has storage again */
    CHECK(stored_bytes(&segment) >= MEGA && stored_bytes(&segment) <= 2 * MEGA);
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

TEST(storage_is_for_the_users_bytes_alone)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, MEGA) == 0);
    static const uint64_t ranges[][2] = {
        {0, MEGA}, {MPX_SEGMENT_DATA - 1, 64}, {MEGA - 64, 65}, {MEGA + 1, 1}, {64, UINT64_MAX}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(ranges); i++) {
        CHECK_EQ(mpx_segment_allocate(&segment, ranges[i][0], ranges[i][1]), -EINVAL);
        CHECK_EQ(mpx_segment_deallocate(&segment, ranges[i][0], ranges[i][1]), -EINVAL);
    }
    int fd = mpx_segment_fd(&segment), foreign = mpx_os_anonymous_file("foreign");
    CHECK_EQ(write(foreign, "data", 4), 4);
    CHECK_EQ(dup2(foreign, fd), fd);
    CHECK_EQ(mpx_segment_allocate(&segment, 64 * KILO, KILO), -ESTALE);
    CHECK_EQ(mpx_segment_deallocate(&segment, 64, MEGA / 2), -ESTALE);
    CHECK_EQ(mpx_segment_grow_sparse(&segment, 2 * MEGA), -ESTALE);
    close(fd);
    CHECK_EQ(mpx_segment_allocate(&segment, 64 * KILO, KILO), -EBADF);
    CHECK_EQ(mpx_segment_grow_sparse(&segment, 2 * MEGA), -EBADF);
    char data[5] = {0};
    CHECK_EQ(pread(foreign, data, sizeof(data), 0), 4);
    CHECK_EQ(strcmp(data, "data"), 0);
    close(foreign);
    mpx_segment_close(&segment);
}

TEST(sparse_growth_that_fails_changes_nothing)
{
    static const struct {
        const char *site;
        int error;
    } failures[] = {{"fallocate", ENOSPC}, {"mmap", ENOMEM}, {"fstat", EIO}};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(failures); i++) {
        mpx_segment_t segment;
        REQUIRE(mpx_segment_create(&segment, 1) == 0);
        uint64_t stored = stored_bytes(&segment);
        inject(failures[i].site, failures[i].error, 0, 1);
        CHECK_EQ(mpx_segment_grow_sparse(&segment, 16 * MEGA), -failures[i].error);
        inject_nothing();
        CHECK_EQ(mpx_segment_size(&segment), page());
        CHECK_EQ(stored_bytes(&segment), stored);
        CHECK_EQ(mpx_segment_grow(&segment, 16 * MEGA), 0);
        CHECK(stored_bytes(&segment) >= 16 * MEGA);
        use_every_byte(&segment);
        mpx_segment_close(&segment);
    }
}

TEST(refresh_that_cannot_map_can_be_repeated)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    REQUIRE(attach_again(&other, &segment) == 0);
    CHECK_EQ(mpx_segment_grow(&segment, MEGA), 0);
    inject("mmap", ENOMEM, 0, 1);
    CHECK_EQ(mpx_segment_refresh(&other), -ENOMEM);
    CHECK_EQ(mpx_segment_size(&other), page());
    inject_nothing();
    CHECK_EQ(mpx_segment_refresh(&other), 0);
    use_every_byte(&other);
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

TEST(the_file_size_limit_is_an_error_and_no_signal)
{
    mpx_segment_t segment, refused;
    struct rlimit limit, low;
    REQUIRE(getrlimit(RLIMIT_FSIZE, &limit) == 0);
    low = limit;
    low.rlim_cur = 128 * KILO;
    REQUIRE(setrlimit(RLIMIT_FSIZE, &low) == 0);
    CHECK_EQ(mpx_segment_create(&refused, MEGA), -EFBIG);
    REQUIRE(mpx_segment_create(&segment, 1) == 0);
    CHECK_EQ(mpx_segment_grow(&segment, MEGA), -EFBIG);
    CHECK_EQ(mpx_segment_grow(&segment, 128 * KILO), 0);
    use_every_byte(&segment);
    setrlimit(RLIMIT_FSIZE, &limit);
    mpx_segment_close(&segment);
}
