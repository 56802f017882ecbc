/* test_memory.c - how much memory can still be had, on machines that are made up of files. */
#include "harness.h"

#include "mpx_os.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILO = 1024 };

static char root[64];

static void new_machine(void)
{
    strcpy(root, "/tmp/mpx-machine-XXXXXX");
    CHECK(mkdtemp(root) != NULL);
}

static int remove_one(const char *path, const struct stat *stat, int type, struct FTW *place)
{
    (void)stat, (void)type, (void)place;
    return remove(path);
}

static void remove_machine(void)
{
    CHECK_EQ(nftw(root, remove_one, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* Makes a file of the machine, and the folders above it. */
static void put(const char *path, const char *text)
{
    char whole[512];
    snprintf(whole, sizeof(whole), "%s%s", root, path);
    for (char *slash = strchr(whole + strlen(root) + 1, '/'); slash != NULL;
         slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        CHECK(mkdir(whole, 0700) == 0 || errno == EEXIST);
        *slash = '/';
    }
    int fd = open(whole, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    REQUIRE(fd >= 0);
    CHECK_EQ(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static int64_t headroom(void)
{
    return mpx_os_memory_headroom_in(root);
}

TEST(this_machine_has_some)
{
    CHECK(mpx_os_memory_headroom() > 0);
}

TEST(where_nothing_says_there_is_no_end)
{
    new_machine();
    CHECK_EQ(headroom(), INT64_MAX);
    put("/proc/meminfo", "MemTotal: 1 kB\nNonsense\n");
    put("/proc/self/cgroup", "0::\nnonsense\n0\n");
    put("/proc/self/mountinfo", "nonsense\n");
    CHECK_EQ(headroom(), INT64_MAX);
    remove_machine();
}

TEST(the_machine_says_what_is_available_with_swap)
{
    new_machine();
    put("/proc/meminfo", "MemTotal:  900 kB\nMemFree:  1 kB\nMemAvailable:     300 kB\n"
                         "SwapTotal:  77 kB\nSwapFree:       20 kB\n");
    CHECK_EQ(headroom(), (320 - 900 / 64) * KILO); /* the rest is the kernel's */
    put("/proc/meminfo", "MemTotal: 6400 kB\nMemAvailable: 100 kB\n");
    CHECK_EQ(headroom(), 0);
    put("/proc/meminfo", "MemTotal: 1000000000 kB\nMemAvailable: 1048577 kB\n");
    CHECK_EQ(headroom(), KILO); /* a gigabyte at most */
    put("/proc/meminfo", "MemAvailable: 18446744073709551615 kB\n");
    CHECK_EQ(headroom(), INT64_MAX);
    put("/proc/meminfo", "MemAvailable: 99999999999999999999999 kB\n");
    CHECK_EQ(headroom(), INT64_MAX);
    remove_machine();
}

static void put_v2(const char *group, const char *mount_root)
{
    char text[512];
    snprintf(text, sizeof(text), "0::%s\n", group);
    put("/proc/self/cgroup", text);
    snprintf(text, sizeof(text),
             "22 1 0:20 / /proc rw - proc proc rw\n"
             "30 23 0:26 %s /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
             mount_root);
    put("/proc/self/mountinfo", text);
}

TEST(the_tightest_group_counts)
{
    new_machine();
    put("/proc/meminfo", "MemAvailable: 100000 kB\n");
    put_v2("/a/b", "/");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b/memory.current", "1000\n");
    CHECK_EQ(headroom(), 100000 * KILO);
    put("/sys/fs/cgroup/a/memory.max", "50000\n");
    put("/sys/fs/cgroup/a/memory.current", "20000\n");
    CHECK_EQ(headroom(), 30000);
    put("/sys/fs/cgroup/a/b/memory.max", "11000\n");
    CHECK_EQ(headroom(), 10000);
    put("/sys/fs/cgroup/memory.max", "5000\n"); /* of a container: the root of what is seen */
    put("/sys/fs/cgroup/memory.current", "1000\n");
    CHECK_EQ(headroom(), 4000);
    put("/sys/fs/cgroup/memory.current", "7000\n");
    CHECK_EQ(headroom(), 0);
    put("/sys/fs/cgroup/memory.max", "");
    CHECK_EQ(headroom(), 10000);
    put("/proc/meminfo", "MemAvailable: 3 kB\n");
    CHECK_EQ(headroom(), 3 * KILO);
    remove_machine();
}

TEST(pages_of_files_that_nobody_used_lately_are_free)
{
    new_machine();
    put_v2("/a", "/");
    put("/sys/fs/cgroup/a/memory.max", "50000\n");
    put("/sys/fs/cgroup/a/memory.current", "20000\n");
    put("/sys/fs/cgroup/a/memory.stat", "anon 5\nactive_file 9000\ninactive_file 5000\n");
    CHECK_EQ(headroom(), 35000);
    put("/sys/fs/cgroup/a/memory.stat", "inactive_file 30000\n");
    CHECK_EQ(headroom(), 50000);
    remove_machine();
}

TEST(a_mount_may_show_a_part_of_the_groups)
{
    new_machine();
    put_v2("/docker/x/y", "/docker/x");
    put("/sys/fs/cgroup/y/memory.max", "500\n");
    put("/sys/fs/cgroup/y/memory.current", "100\n");
    CHECK_EQ(headroom(), 400);
    put("/sys/fs/cgroup/memory.max", "300\n");
    put("/sys/fs/cgroup/memory.current", "100\n");
    CHECK_EQ(headroom(), 200);
    put_v2("/docker/xyz", "/docker/x"); /* another one, which is not seen from here */
    CHECK_EQ(headroom(), 200);
    put_v2("/../y", "/");
    CHECK_EQ(headroom(), 200);
    put_v2("/docker/x", "/docker/x");
    CHECK_EQ(headroom(), 200);
    put_v2("/", "/");
    CHECK_EQ(headroom(), 200);
    remove_machine();
}

TEST(the_first_version_of_groups)
{
    new_machine();
    put("/proc/self/cgroup", "5:cpu,cpuacct:/c\n4:hugetlb,memory:/m/n\n1:name=systemd:/\n0::/u\n");
    put("/proc/self/mountinfo",
        "30 23 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
        "31 23 0:27 / /sys/fs/cgroup/cpu rw shared:3 - cgroup cgroup rw,cpu,cpuacct\n"
        "32 23 0:28 / /sys/fs/cgroup/memory rw shared:4 master:1 - cgroup cgroup rw,memory\n");
    put("/sys/fs/cgroup/unified/u/memory.max", "1\n");
    put("/sys/fs/cgroup/unified/u/memory.current", "1\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "123456\n");
    CHECK(headroom() > INT64_MAX / 2);
    put("/sys/fs/cgroup/memory/m/n/memory.limit_in_bytes", "9000\n");
    put("/sys/fs/cgroup/memory/m/n/memory.usage_in_bytes", "8000\n");
    put("/sys/fs/cgroup/memory/m/n/memory.stat",
        "inactive_file 11\nhierarchical_memory_limit 5\ntotal_inactive_file 500\n");
    CHECK_EQ(headroom(), 1500);
    put("/sys/fs/cgroup/memory/m/memory.limit_in_bytes", "8100\n");
    put("/sys/fs/cgroup/memory/m/memory.usage_in_bytes", "8000\n");
    CHECK_EQ(headroom(), 100);
    remove_machine();
}

/* Mounts of many layers have lines that are longer than any buffer. */
TEST(long_lines_are_passed_over)
{
    enum { LONG = 3 * 4096 };
    static char text[LONG + 1024], tail[256];
    for (int length = LONG - 64; length < LONG + 64; length += 7) {
        new_machine();
        put_v2("/a", "/");
        snprintf(tail, sizeof(tail), "\n30 23 0:26 / /groups rw - cgroup2 cgroup2 rw");
        memset(text, 'x', sizeof(text));
        strcpy(text + length, tail);
        put("/proc/self/mountinfo", text);
        put("/groups/a/memory.max", "50000");
        put("/groups/a/memory.current", "20000\n");
        CHECK_EQ(headroom(), 30000);
        remove_machine();
    }
}

TEST(what_cannot_be_read_says_nothing)
{
    new_machine();
    put("/proc/meminfo", "MemAvailable: 300 kB\n");
    put_v2("/a", "/");
    put("/sys/fs/cgroup/a/memory.max", "50000\n");
    put("/sys/fs/cgroup/a/memory.current", "20000\n");
    inject("open_memory", EMFILE, 0, ALWAYS);
    CHECK_EQ(headroom(), INT64_MAX);
    inject_nothing();
    inject("read_memory", EIO, 0, ALWAYS);
    CHECK_EQ(headroom(), INT64_MAX);
    inject_nothing();
    inject("read_memory", EINTR, 0, 3);
    CHECK_EQ(headroom(), 30000);
    inject_nothing();
    for (unsigned opened = 0; opened < 12; opened++) {
        inject("open_memory", ENOENT, opened, 1);
        CHECK(headroom() >= 30000);
        inject_nothing();
    }
    remove_machine();
}
