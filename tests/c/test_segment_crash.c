/* test_segment_crash.c - what is left of a segment when a process is killed in the middle. */
#include "harness.h"

#include "mpx_segment.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { KILO = 1024, MEGA = 1024 * 1024 };

/* Every byte behind `from` must be there (no SIGBUS) and zero: nobody has written to it. */
static bool is_zero(mpx_segment_t *segment, uint64_t from)
{
    uint64_t length = mpx_segment_size(segment) - from;
    const unsigned char *bytes = mpx_segment_at(segment, from, length);
    unsigned any = bytes == NULL;
    for (uint64_t i = 0; bytes != NULL && i < length; i += 8) {
        any |= bytes[i];
    }
    return any == 0;
}

/* ---- Killed while creating ------------------------------------------------------------------- */

static void create_one(void *unused)
{
    mpx_segment_t segment;
    (void)unused;
    CHECK_EQ(mpx_segment_create(&segment, 64 * KILO), 0);
}

/* Opens the file behind another process's descriptor, as one that a fork copied would be. */
static int open_descriptor_of(pid_t pid, int fd)
{
    char path[64];
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)pid, fd);
    return open(path, O_RDWR | O_CLOEXEC);
}

/* The file as it is at the step, after its creator was killed there. */
static int file_of_killed_creator(const char *step)
{
    (void)mpx_os_has(MPX_HAS_MEMFD_SEAL); /* probed here, or the child's probe takes the number */
    int number = next_descriptor();
    signal_at_step(step, SIGSTOP);
    pid_t pid = start_process(create_one, NULL);
    wait_until_stopped(pid);
    int fd = open_descriptor_of(pid, number);
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
    return fd;
}

TEST(before_the_last_store_it_is_no_segment)
{
    static const char *const steps[] = {"create_file",  "create_allocated", "create_mapped",
                                        "create_magic", "create_layout",    "create_size"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        mpx_segment_t segment;
        int fd = file_of_killed_creator(steps[i]);
        REQUIRE(fd >= 0);
        CHECK_EQ(mpx_segment_attach(&segment, fd), -EPROTO);
        close(fd);
    }
}

TEST(after_the_last_store_it_is_whole)
{
    mpx_segment_t segment;
    int fd = file_of_killed_creator("create_ready");
    REQUIRE(fd >= 0);
    REQUIRE(mpx_segment_attach(&segment, fd) == 0);
    CHECK_EQ(mpx_segment_size(&segment), 64 * KILO);
    CHECK(is_zero(&segment, MPX_SEGMENT_DATA));
    mpx_segment_close(&segment);
}

/* ---- Killed while growing -------------------------------------------------------------------- */

static void grow_to_a_megabyte(void *segment)
{
    (void)!mpx_segment_grow(segment, MEGA);
}

static const uint64_t canary = UINT64_C(0x0123456789abcdef);

static void check_killed_at(const char *step, uint64_t expected_size)
{
    mpx_segment_t segment;
    REQUIRE(mpx_segment_create(&segment, 64 * KILO) == 0);
    uint64_t *mark = mpx_segment_at(&segment, 64 * KILO - sizeof(*mark), sizeof(*mark));
    *mark = canary;

    signal_at_step(step, SIGKILL);
    CHECK(was_killed(wait_for(start_process(grow_to_a_megabyte, &segment))));
    signal_at_step(NULL, 0);

    CHECK_EQ(mpx_segment_refresh(&segment), 0);
    CHECK_EQ(mpx_segment_size(&segment), expected_size);
    CHECK_EQ(mpx_segment_grow(&segment, 2 * MEGA), 0); /* the next one just goes on */
    CHECK_EQ(mpx_segment_size(&segment), 2 * MEGA);
    CHECK(*mark == canary);
    CHECK(is_zero(&segment, 64 * KILO));
    mpx_segment_close(&segment);
}

TEST(killed_before_the_size_is_stored_nothing_has_grown)
{
    check_killed_at("grow_allocated", 64 * KILO);
}

TEST(killed_after_the_size_is_stored_it_has_grown)
{
    check_killed_at("grow_published", MEGA);
}

/* What was allocated and not published is not lost: it is allocated again, at no cost. */
TEST(attach_after_a_killed_growth)
{
    mpx_segment_t segment, other;
    REQUIRE(mpx_segment_create(&segment, 64 * KILO) == 0);
    signal_at_step("grow_allocated", SIGKILL);
    CHECK(was_killed(wait_for(start_process(grow_to_a_megabyte, &segment))));
    signal_at_step(NULL, 0);
    int copy = fcntl(mpx_segment_fd(&segment), F_DUPFD_CLOEXEC, 0);
    REQUIRE(mpx_segment_attach(&other, copy) == 0);
    CHECK_EQ(mpx_segment_size(&other), 64 * KILO);
    CHECK(mpx_segment_at(&other, 64 * KILO, 1) == NULL);
    CHECK_EQ(mpx_segment_grow(&other, MEGA), 0);
    CHECK(is_zero(&other, MPX_SEGMENT_DATA));
    mpx_segment_close(&other);
    mpx_segment_close(&segment);
}

/* ---- Killed anywhere ------------------------------------------------------------------------- */

enum { KILLS = 60, STEP_PAGES = 64 };

struct victim {
    mpx_segment_t *segment;
    mpx_atomic_u32 *growths;
};

/* Grows in steps until it is killed, and then some: the size bounds the memory. */
static void grow_until_killed(void *argument)
{
    struct victim *victim = argument;
    uint64_t step = STEP_PAGES * mpx_os_page_size();
    for (;;) {
        uint64_t size = mpx_segment_size(victim->segment);
        if (size >= 16 * MEGA || mpx_segment_grow(victim->segment, size + step) < 0) {
            pause();
        }
        mpx_u32_fetch_add_relaxed(victim->growths, 1);
    }
}

/* Kills after a random number of growths and a random bit of another, so that no moment of a
 * growth is safe; the yields are there to hit one, not to wait for anything. */
static void kill_soon(pid_t pid, mpx_atomic_u32 *growths, unsigned *seed)
{
    uint32_t target = mpx_u32_load_relaxed(growths) + (uint32_t)(rand_r(seed) % 4);
    int64_t enough = mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
    while (mpx_u32_load_relaxed(growths) < target && mpx_os_now() < enough) {
        mpx_cpu_relax();
    }
    int64_t until = mpx_os_deadline(rand_r(seed) % 200000);
    while (mpx_os_now() < until) {
        mpx_cpu_relax();
    }
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
}

TEST(killed_at_random_nothing_is_ever_half_done)
{
    unsigned seed = 1;
    mpx_atomic_u32 *growths = shared_memory(sizeof(*growths));
    for (int i = 0; i < KILLS; i++) {
        mpx_segment_t segment;
        REQUIRE(mpx_segment_create(&segment, 1) == 0);
        struct victim victim = {.segment = &segment, .growths = growths};
        kill_soon(start_process(grow_until_killed, &victim), growths, &seed);
        CHECK_EQ(mpx_segment_refresh(&segment), 0);
        CHECK(is_zero(&segment, MPX_SEGMENT_DATA));
        uint64_t size = mpx_segment_size(&segment);
        CHECK_EQ(mpx_segment_grow(&segment, size + MEGA), 0);
        CHECK_EQ(mpx_segment_size(&segment), size + MEGA);
        CHECK(is_zero(&segment, MPX_SEGMENT_DATA));
        mpx_segment_close(&segment);
    }
    free_shared_memory(growths, sizeof(*growths));
}
