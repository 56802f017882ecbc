/* test_features.c - probes of features and the switches that force them off. */
#include "harness.h"

#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

TEST(each_name_switches_its_feature_off)
{
    for (int i = 0; i < MPX_FEATURE_COUNT; i++) {
        enum mpx_feature feature = (enum mpx_feature)i;
        CHECK_EQ(mpx_os_without(mpx_os_feature_name(feature)), 0);
        for (int other = 0; other < MPX_FEATURE_COUNT; other++) {
            CHECK_EQ(mpx_os_enabled((enum mpx_feature)other), other != i);
        }
        CHECK(!mpx_os_has(feature));
    }
}

TEST(lists_may_have_blanks_and_replace_each_other)
{
    CHECK_EQ(mpx_os_without(" pidfd ,\tclose_range "), 0);
    CHECK(!mpx_os_enabled(MPX_HAS_PIDFD));
    CHECK(!mpx_os_enabled(MPX_HAS_CLOSE_RANGE));
    CHECK(mpx_os_enabled(MPX_HAS_MEMFD_SEAL));
    CHECK_EQ(mpx_os_without("memfd_seal"), 0);
    CHECK(mpx_os_enabled(MPX_HAS_PIDFD));
    CHECK(!mpx_os_enabled(MPX_HAS_MEMFD_SEAL));
    CHECK_EQ(mpx_os_without(NULL), 0);
    CHECK(mpx_os_enabled(MPX_HAS_MEMFD_SEAL));
    CHECK_EQ(mpx_os_without("pidfd,"), 0);
    CHECK_EQ(mpx_os_without(""), 0);
    CHECK(mpx_os_enabled(MPX_HAS_PIDFD));
}

TEST(bad_lists_are_refused_and_change_nothing)
{
    static const char *const bad[] = {"pidfds",        "pid",    "pidfd,none", "pidfd close_range",
                                      "pidfd;",        ",pidfd", ",",          "PIDFD",
                                      "close_range,,", "pidfd\n"};
    CHECK_EQ(mpx_os_without("madv_populate"), 0);
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(bad); i++) {
        CHECK_EQ(mpx_os_without(bad[i]), -EINVAL);
        CHECK(mpx_os_enabled(MPX_HAS_PIDFD));
        CHECK(!mpx_os_enabled(MPX_HAS_MADV_POPULATE));
    }
}

/* A probe that wrongly says no would hide a feature for good. */
TEST(probes_find_what_the_kernel_has)
{
    struct utsname system;
    int major = 0;
    int minor = 0;
    if (emulated()) {
        return;
    }
    REQUIRE(uname(&system) == 0 && sscanf(system.release, "%d.%d", &major, &minor) == 2);
    int version = major * 1000 + minor;
    CHECK_EQ(mpx_os_probe_pidfd(), version >= 5003);
    CHECK_EQ(mpx_os_probe_madv_populate(), version >= 5014);
    CHECK_EQ(mpx_os_probe_close_range(), version >= 5009);
    CHECK(mpx_os_probe_memfd_seal());
    CHECK(mpx_os_probe_robust_list());
}

TEST(switching_a_feature_on_again_finds_it)
{
    CHECK_EQ(mpx_os_without(""), 0);
    bool before = mpx_os_has(MPX_HAS_PIDFD);
    CHECK_EQ(mpx_os_without("pidfd"), 0);
    CHECK(!mpx_os_has(MPX_HAS_PIDFD));
    CHECK_EQ(mpx_os_without(""), 0);
    CHECK_EQ(mpx_os_has(MPX_HAS_PIDFD), before);
}

TEST(probes_say_no_where_the_kernel_does)
{
    static const struct {
        const char *site;
        bool (*probe)(void);
    } cases[] = {
        {"pidfd_open", mpx_os_probe_pidfd},           {"pidfd_send_signal", mpx_os_probe_pidfd},
        {"madvise", mpx_os_probe_madv_populate},      {"memfd_create", mpx_os_probe_memfd_seal},
        {"add_seals", mpx_os_probe_memfd_seal},       {"get_robust_list", mpx_os_probe_robust_list},
        {"pthread_create", mpx_os_probe_robust_list}, {"close_range", mpx_os_probe_close_range},
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(cases); i++) {
        inject(cases[i].site, i % 2 ? EPERM : ENOSYS, 0, ALWAYS); /* EPERM: a seccomp filter */
        CHECK(!cases[i].probe());
        inject_nothing();
    }
}

TEST(the_result_of_a_probe_is_kept)
{
    CHECK_EQ(mpx_os_without(""), 0);
    bool has = mpx_os_has(MPX_HAS_CLOSE_RANGE);
    inject("close_range", ENOSYS, 0, ALWAYS);
    CHECK_EQ(mpx_os_has(MPX_HAS_CLOSE_RANGE), has);
}
