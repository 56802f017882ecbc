/* mpx_os_linux_pvt.h - what the files of the Linux layer share.
 *
 * Layer: L1
 *
 * Names that headers of the oldest supported libc (glibc 2.28, musl) lack are defined here with
 * their kernel values, which are the same on x86-64 and arm64.
 */
#ifndef MPX_OS_LINUX_PVT_H
#define MPX_OS_LINUX_PVT_H

#include "mpx_fault.h"
#include "mpx_os.h"

#include <sys/syscall.h>

#ifndef __linux__
#    error "this file is for Linux"
#endif

#define MPX_SYS_PIDFD_SEND_SIGNAL 424
#define MPX_SYS_PIDFD_OPEN        434
#define MPX_SYS_CLOSE_RANGE       436

#define MPX_MADV_POPULATE_WRITE 23

#define MPX_RWF_NOWAIT 8

#define MPX_MFD_CLOEXEC       1U
#define MPX_MFD_ALLOW_SEALING 2U
#define MPX_MFD_NOEXEC_SEAL   8U
#define MPX_F_ADD_SEALS       1033
#define MPX_F_GET_SEALS       1034
#define MPX_F_SEAL_SHRINK     2

#define MPX_FUTEX_WAKE             1
#define MPX_FUTEX_WAIT_BITSET      9
#define MPX_FUTEX_BITSET_MATCH_ANY UINT32_C(0xffffffff)

/* Whether a feature is not switched off; does not probe. Async-signal-safe. */
bool mpx_os_enabled(enum mpx_feature feature);

/* The probes: whether the kernel and libc offer the feature, switched off or not. */
bool mpx_os_probe_pidfd(void);
bool mpx_os_probe_madv_populate(void);
bool mpx_os_probe_memfd_seal(void);
bool mpx_os_probe_robust_list(void);
bool mpx_os_probe_close_range(void);
bool mpx_os_probe_nowait(void);

/* What the core needs of /proc/<pid>/stat. */
typedef struct {
    char state;
    uint64_t threads;
    uint64_t start_ticks;
} mpx_proc_stat_t;

/* -EPROTO where the text is no such line. Async-signal-safe. */
MPX_NODISCARD int mpx_proc_stat_parse(const char *text, size_t length, mpx_proc_stat_t *stat);

/* Reads /proc/<id>/stat of a process or of any thread: 0, or why not; -ENOENT also where the /proc
 * that is mounted is another namespace's. Async-signal-safe. */
MPX_NODISCARD int mpx_proc_stat_of(pid_t id, mpx_proc_stat_t *stat);

/* The same of a thread of this process, as others see it: emulators make up a /proc/self/stat. */
MPX_NODISCARD int mpx_proc_stat_of_own_thread(pid_t id, mpx_proc_stat_t *stat);

/* Whether a process shows a sign of life. */
enum mpx_life { MPX_LIFE_NONE, MPX_LIFE_SEEN, MPX_LIFE_UNKNOWN };
enum mpx_life mpx_life_of(mpx_process_id_t id);

/* In the child of a fork that is in another namespace. */
void mpx_proc_forget(void);

/* The start time as the core holds it: 32 bits, never 0. */
uint32_t mpx_proc_start(const mpx_proc_stat_t *stat);

/* False only where certainly nobody has the number; a zombie counts. Async-signal-safe. */
bool mpx_os_pid_in_use(pid_t pid);

/* Writes `number` in decimal and a terminating zero; returns the length without the zero. `text`
 * has room for MPX_DECIMAL_SIZE bytes. (snprintf is not async-signal-safe.) */
#define MPX_DECIMAL_SIZE 21
size_t mpx_os_decimal(char *text, uint64_t number);

#endif
