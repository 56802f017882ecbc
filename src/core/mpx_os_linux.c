/* mpx_os_linux.c - Linux: which features there are, the clock, futexes.
 *
 * Layer: L1
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- Features -------------------------------------------------------------------------------- */

static const struct {
    const char *name;
    bool (*probe)(void);
} features[MPX_FEATURE_COUNT] = {
    [MPX_HAS_PIDFD] = {"pidfd", mpx_os_probe_pidfd},
    [MPX_HAS_MADV_POPULATE] = {"madv_populate", mpx_os_probe_madv_populate},
    [MPX_HAS_MEMFD_SEAL] = {"memfd_seal", mpx_os_probe_memfd_seal},
    [MPX_HAS_ROBUST_LIST] = {"robust_list", mpx_os_probe_robust_list},
    [MPX_HAS_CLOSE_RANGE] = {"close_range", mpx_os_probe_close_range},
    [MPX_HAS_NOWAIT] = {"nowait", mpx_os_probe_nowait},
};

/* One bit per feature. `known` is set after `present`: whoever sees a feature as known (K1) sees
 * what the probe found (K0). Two threads that probe at once find the same. */
static mpx_atomic_u32 switched_off;
static mpx_atomic_u32 present;
static mpx_atomic_u32 known;

static uint32_t feature_bit(enum mpx_feature feature)
{
    return UINT32_C(1) << feature;
}

bool mpx_os_enabled(enum mpx_feature feature)
{
    return !(mpx_u32_load_relaxed(&switched_off) & feature_bit(feature));
}

bool mpx_os_has(enum mpx_feature feature)
{
    uint32_t bit = feature_bit(feature);
    if (!mpx_os_enabled(feature)) {
        return false;
    }
    if (!(mpx_u32_load_acquire(&known) & bit)) { /* K1: with K0 */
        if (features[feature].probe()) {
            mpx_u32_fetch_or_acq_rel(&present, bit);
        }
        mpx_u32_fetch_or_acq_rel(&known, bit); /* K0: with K1 */
    }
    return (mpx_u32_load_relaxed(&present) & bit) != 0;
}

const char *mpx_os_feature_name(enum mpx_feature feature)
{
    return features[feature].name;
}

/* The bit of the feature called name[0 .. length), 0 where there is none. */
static uint32_t find_feature(const char *name, size_t length)
{
    for (int i = 0; i < MPX_FEATURE_COUNT; i++) {
        if (strlen(features[i].name) == length && memcmp(features[i].name, name, length) == 0) {
            return feature_bit((enum mpx_feature)i);
        }
    }
    return 0;
}

int mpx_os_without(const char *comma_list)
{
    static const char blanks[] = " \t";
    uint32_t bits = 0;
    const char *rest = comma_list != NULL ? comma_list : "";
    rest += strspn(rest, blanks);
    while (*rest != '\0') {
        uint32_t bit = find_feature(rest, strcspn(rest, ", \t"));
        if (bit == 0) {
            return -EINVAL;
        }
        bits |= bit;
        rest += strcspn(rest, ", \t");
        rest += strspn(rest, blanks);
        if (*rest == ',') {
            rest++;
        } else if (*rest != '\0') {
            return -EINVAL;
        }
        rest += strspn(rest, blanks);
    }
    mpx_u32_store_relaxed(&switched_off, bits);
    return 0;
}

/* ---- Time ------------------------------------------------------------------------------------ */

int64_t mpx_os_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* cannot fail: the clock exists, the address is ours */
    return now.tv_sec * MPX_NANOS_PER_SEC + now.tv_nsec;
}

int64_t mpx_os_tick(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return now.tv_sec * MPX_NANOS_PER_SEC + now.tv_nsec;
}

int64_t mpx_os_deadline(int64_t nanos)
{
    int64_t now = mpx_os_now();
    if (nanos <= 0) {
        return now;
    }
    return nanos > MPX_NEVER - now ? MPX_NEVER : now + nanos;
}

/* ---- Futex ----------------------------------------------------------------------------------- */

/* Neither call uses FUTEX_PRIVATE_FLAG: the words are shared by processes. The _BITSET form of
 * wait is the one that takes a point in time, on the monotonic clock, so that a wait which is
 * resumed after a signal still ends when it should. */
int mpx_os_futex_wait(mpx_atomic_u32 *word, uint32_t expected, int64_t deadline)
{
    struct timespec until = {0, 0};
    if (deadline > 0) {
        until.tv_sec = deadline / MPX_NANOS_PER_SEC;
        until.tv_nsec = deadline % MPX_NANOS_PER_SEC;
    }
    long status = MPX_SYS(futex_wait, syscall(SYS_futex, &word->value, MPX_FUTEX_WAIT_BITSET,
                                              expected, deadline == MPX_NEVER ? NULL : &until, NULL,
                                              MPX_FUTEX_BITSET_MATCH_ANY));
    return status < 0 ? -errno : 0;
}

int mpx_os_futex_wake(mpx_atomic_u32 *word, int count)
{
    long woken =
        MPX_SYS(futex_wake, syscall(SYS_futex, &word->value, MPX_FUTEX_WAKE, count, NULL, NULL, 0));
    return woken < 0 ? -errno : (int)woken;
}

size_t mpx_os_decimal(char *text, uint64_t number)
{
    char reversed[MPX_DECIMAL_SIZE];
    size_t length = 0;
    do {
        reversed[length++] = (char)('0' + number % 10);
        number /= 10;
    } while (number != 0);
    for (size_t i = 0; i < length; i++) {
        text[i] = reversed[length - 1 - i];
    }
    text[length] = '\0';
    return length;
}
