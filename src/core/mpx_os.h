/* mpx_os.h - the operating system as the core sees it: clock, futex, anonymous files, processes.
 *
 * Layer: L1
 *
 * The only interface through which the layers above reach the kernel for these things. What is
 * newer than Linux 4.18 is probed at run time, has a fallback, and can be switched off by name
 * (mpx_os_without) so that every fallback is tested on every machine.
 *
 * "Async-signal-safe" below means: no allocation, no lock, no stdio; may run in a signal handler
 * and between vfork and exec. Everything here is safe to call from several threads.
 */
#ifndef MPX_OS_H
#define MPX_OS_H

#include "mpx_atomic.h"
#include "mpx_base.h"

#include <poll.h>
#include <sys/types.h>
#include <sys/uio.h>

/* ---- Features that a kernel may lack --------------------------------------------------------- */

enum mpx_feature {
    MPX_HAS_PIDFD,         /* "pidfd": pidfd_open and pidfd_send_signal (5.3) */
    MPX_HAS_MADV_POPULATE, /* "madv_populate": MADV_POPULATE_WRITE (5.14) */
    MPX_HAS_MEMFD_SEAL,    /* "memfd_seal": memfd_create with F_ADD_SEALS */
    MPX_HAS_ROBUST_LIST,   /* "robust_list": the kernel marks futexes of a dead thread */
    MPX_HAS_CLOSE_RANGE,   /* "close_range": close_range (5.9) */
    MPX_HAS_NOWAIT,        /* "nowait": preadv2 and pwritev2 with RWF_NOWAIT (4.14; pipes: 6.4) */
    MPX_FEATURE_COUNT
};

/* Whether the kernel (and libc) offer the feature and it is not switched off. The first call for
 * a feature probes, later ones read the result; a probe may open descriptors and (robust list
 * only) start and join a thread, so it is not async-signal-safe. Probes leave nothing behind. */
bool mpx_os_has(enum mpx_feature feature);

/* Switches features off by name ("pidfd,close_range"), and all others on again. NULL or "" is
 * none. Blanks around a name are ignored. An unknown name gives -EINVAL and changes nothing. */
MPX_NODISCARD int mpx_os_without(const char *comma_list);

/* The name of a feature as mpx_os_without takes it. */
const char *mpx_os_feature_name(enum mpx_feature feature);

/* ---- Time ------------------------------------------------------------------------------------ */

/* Points in time are nanoseconds of CLOCK_MONOTONIC in an int64_t, the same for all processes of
 * the machine. */
#define MPX_NEVER           INT64_MAX
#define MPX_NANOS_PER_SEC   INT64_C(1000000000)
#define MPX_NANOS_PER_MILLI INT64_C(1000000)

/* The present. Async-signal-safe. */
int64_t mpx_os_now(void);

/* The present as it was at the kernel's last tick, some milliseconds ago: costs less than a call of
 * mpx_os_now. Async-signal-safe. */
int64_t mpx_os_tick(void);

/* The point in time `nanos` from now; zero or less means now, and what lies beyond the end of
 * the clock is MPX_NEVER. Async-signal-safe. */
int64_t mpx_os_deadline(int64_t nanos);

/* ---- Futex ----------------------------------------------------------------------------------- */

/* Sleeps while *word == expected, until woken or until the deadline. Works across processes.
 *   0           woken, or for no reason at all: look at the word again
 *   -EAGAIN     *word was not `expected`
 *   -ETIMEDOUT  the deadline has passed
 *   -EINTR      a signal handler ran; not retried here, so that the caller may act on it
 * Async-signal-safe. */
MPX_NODISCARD int mpx_os_futex_wait(mpx_atomic_u32 *word, uint32_t expected, int64_t deadline);

/* Wakes at most `count` sleepers of the word; returns how many. Async-signal-safe. */
int mpx_os_futex_wake(mpx_atomic_u32 *word, int count);

/* ---- Anonymous files and memory -------------------------------------------------------------- */

/* What makes a file itself, whatever descriptor number leads to it. */
typedef struct {
    uint64_t device;
    uint64_t inode;
} mpx_file_id_t;

typedef struct {
    mpx_file_id_t id;
    uint64_t size; /* bytes */
    bool regular;  /* a regular file (a memfd is one) */
} mpx_file_info_t;

/* A new empty file without a name, close-on-exec; returns the descriptor. A memfd that can be
 * sealed; without that feature, an unlinked file in /dev/shm, $TMPDIR, /tmp or /var/tmp. `label`
 * is what /proc/<pid>/maps shows of a memfd. */
MPX_NODISCARD int mpx_os_anonymous_file(const char *label);

/* Describes the file behind a descriptor. -EBADF: not open. */
MPX_NODISCARD int mpx_os_file_info(int fd, mpx_file_info_t *info);

/* Whether it is this file that is open under the number; the program may have closed ours, and have
 * another one there. */
bool mpx_os_is_file(int fd, mpx_file_id_t file);

/* Makes the file unable to shrink, for good and for everyone. -EOPNOTSUPP where such a file
 * cannot be sealed, -EPERM where its seals are closed. */
MPX_NODISCARD int mpx_os_seal_shrink(int fd);

/* 1 where the file is sealed against shrinking, 0 where not. */
MPX_NODISCARD int mpx_os_is_shrink_sealed(int fd);

/* Gives every byte of [offset, offset + length) storage, and extends the file to the end of the
 * range if it is shorter; what the file held stays. So a full file system is an error here
 * (-ENOSPC) and no SIGBUS later. A file-size limit in the way is -EFBIG, never SIGXFSZ. Signal
 * handlers wait for one piece of the work at most. On failure a part of the range may have been
 * allocated. (A file system without fallocate gets zeros written behind the end of the file;
 * holes before it stay.) */
MPX_NODISCARD int mpx_os_allocate(int fd, uint64_t offset, uint64_t length);

/* Gives the storage of whole pages in the range back; they read as zeros and the file keeps its
 * size. -EOPNOTSUPP where the file system cannot. */
MPX_NODISCARD int mpx_os_deallocate(int fd, uint64_t offset, uint64_t length);

/* Maps [0, length) of the file, shared, readable and writable. The end of the mapping may lie
 * behind the end of the file: those bytes become usable when the file grows. */
MPX_NODISCARD int mpx_os_map(int fd, size_t length, void **address);
void mpx_os_unmap(void *address, size_t length);

/* Enters the pages of a mapping into this process's page table at once instead of at first use.
 * They must have storage (mpx_os_allocate). Contents do not change, also while others write. */
MPX_NODISCARD int mpx_os_populate(void *address, size_t length);

size_t mpx_os_page_size(void);

/* How many bytes of memory can still be had before the kernel refuses or kills: of the machine,
 * with swap, and of the control groups that this process is in. INT64_MAX where nothing says. */
int64_t mpx_os_memory_headroom(void);

/* The same of the machine whose /proc and control groups lie below that directory. */
int64_t mpx_os_memory_headroom_in(const char *root);

/* ---- Processes ------------------------------------------------------------------------------- */

/* A number is reused, a number with its start time is not. `start` is the kernel's clock tick since
 * boot, as far as 32 bits hold it, and never 0: that stands for "not known".
 *
 * Numbers mean something within one PID namespace only. Of processes that share memory, those in
 * the namespace of the first one go by their pids. A process in another one is *foreign*: its `pid`
 * is MPX_PIDS or more, its `start` is random, and neither says anything but which process it is. */
typedef struct {
    pid_t pid;
    uint32_t start;
} mpx_process_id_t;

/* All numbers of processes and threads are below (the kernel's PID_MAX_LIMIT). */
#define MPX_PIDS (1 << 22)

/* A descriptor of the process, close-on-exec, readable once all its threads have ended.
 * -ENOSYS without MPX_HAS_PIDFD, -ESRCH where there is no such process. It is above 2. */
MPX_NODISCARD int mpx_os_pidfd_open(pid_t pid);

/* When the process started. -ESRCH: no such process; -ENOENT: there is no /proc to ask.
 * Async-signal-safe. */
MPX_NODISCARD int mpx_os_process_start(pid_t pid, uint32_t *start);

/* 1 while the process of this pid runs, 0 once it is dead: gone, or all its threads have ended and
 * it waits to be reaped, or its number belongs to another process. id.start may be 0 (not known);
 * then the number alone counts. Only ever says 0 when sure. Async-signal-safe. */
MPX_NODISCARD int mpx_os_pid_alive(mpx_process_id_t id);

/* The same of a process that shares memory with this one, in whatever namespace: where a pid says
 * nothing, its sign of life does (see mpx_os_life_t). Async-signal-safe. */
MPX_NODISCARD int mpx_os_process_alive(mpx_process_id_t id);

/* The calling process as one word, `start` in the upper half. Costs a few system calls once, and
 * again after fork in the child (see mpx_os_self). Not async-signal-safe. */
uint64_t mpx_os_ask_own_process(void);
extern MPX_HIDDEN mpx_atomic_u64 mpx_os_known_process; /* that word; 0: ask */

static inline uint64_t mpx_os_own_word(void)
{
    uint64_t known = mpx_u64_load_relaxed(&mpx_os_known_process);
    return MPX_LIKELY(known != 0) ? known : mpx_os_ask_own_process();
}

/* The same in two parts. */
static inline mpx_process_id_t mpx_os_own_process(void)
{
    uint64_t word = mpx_os_own_word();
    return (mpx_process_id_t){.pid = (pid_t)(uint32_t)word, .start = (uint32_t)(word >> 32)};
}

/* Whether the calling process is foreign. A forked child is where its parent is, or where it finds
 * that its parent is in another namespace. */
bool mpx_os_is_foreign(void);

/* How many of the forks that led to this process led into another namespace, since the first time
 * that mpx_os_own_process was called. */
uint32_t mpx_os_namespaces(void);

/* In a process that was started by exec, before it asks who it is: it is foreign if its parent is,
 * or is in another namespace. Otherwise it is taken for the first one of its kind. */
void mpx_os_started_by(bool foreign_parent);

/* The number of threads of this process; -ENOENT where /proc does not say. Async-signal-safe. */
MPX_NODISCARD int mpx_os_thread_count(void);

/* The kernel's number of the calling thread. Async-signal-safe. */
pid_t mpx_os_thread_id(void);

/* ---- Signs of life --------------------------------------------------------------------------- */

/* A file in which processes show each other that they live, whatever namespaces they are in. */
typedef struct mpx_os_life {
    int fd; /* may be closed by the program, and another file's by then */
    mpx_file_id_t file;
    mpx_atomic_u32 *unsigned_members; /* shared: not 0 where a process lives without a sign */
    struct mpx_os_life *next;
} mpx_os_life_t;

/* Gives the calling process its sign in the file, which lasts exactly until its last thread has
 * ended or it executes another program. `mark` is an address to unmap (a page) if the sign is not
 * wanted after all. Needs /proc, and file locks that belong to open files. -ENOLCK: the sign was
 * given, but is not seen. */
MPX_NODISCARD int mpx_os_life_sign(int fd, void **mark);

/* Says where mpx_os_process_alive is to look. `life` stays for good. One thread at a time. */
void mpx_os_life_register(mpx_os_life_t *life);

/* A sign that a number stands behind, not a process: it lasts as long as any process lives that has
 * it, which are who has given it and the children that it forked since, until they drop it. */
typedef struct {
    void *address; /* NULL: there is none */
    int fd;        /* until it is given, then -1 */
} mpx_os_mark_t;

/* Makes a mark ready that is to be given in the file; and gives it, which takes few system calls.
 * -EAGAIN: somebody still has one of this number; another number may be tried. In the end it is to
 * be dropped, which does nothing where there is none. */
MPX_NODISCARD int mpx_os_mark_prepare(int fd, mpx_os_mark_t *mark);
MPX_NODISCARD int mpx_os_mark_give(mpx_os_mark_t *mark, uint32_t number);
void mpx_os_mark_drop(mpx_os_mark_t *mark);

/* Whether anybody has the mark of this number: 1 or 0, or why that cannot be said. */
MPX_NODISCARD int mpx_os_mark_is_held(const mpx_os_life_t *life, uint32_t number);

/* Whether a process that has given its sign in this file shows it no more: it has ended, or
 * executes another program. False where that is not sure. */
bool mpx_os_life_is_over(const mpx_os_life_t *life, mpx_process_id_t id);

/* ---- Descriptors ----------------------------------------------------------------------------- */

/* Moves a descriptor that got the number of a standard stream, because the program has closed that:
 * what is printed must not come to us. Takes a descriptor or a negative errno, which it returns;
 * the new descriptor is above 2 and close-on-exec. */
MPX_NODISCARD int mpx_os_above_stdio(int fd);

/* A pipe, both ends close-on-exec and above 2: 0 or a negative errno. */
MPX_NODISCARD int mpx_os_pipe(int ends[2]);

/* Closes every open descriptor in [first, last]; ~0U is "to the end". Async-signal-safe. Where
 * neither close_range nor /proc is there, descriptors from 1,048,576 on (the kernel's default
 * ceiling) are not found. */
void mpx_os_close_range(unsigned first, unsigned last);

/* Closes every open descriptor from `first` on, except those in `keep`, which is in ascending
 * order and without duplicates. Async-signal-safe. */
void mpx_os_close_except(unsigned first, const int *keep, size_t keep_count);

/* Calls `work` in a thread that has a table of descriptors for itself, a copy of the process's, in
 * which there is room for one more: one that is not of those to keep is closed there. For who has
 * none left. Signals do not go to that thread. Nothing is open in the table any more when this
 * returns. 0 when that is done, or a negative errno. */
MPX_NODISCARD int mpx_os_with_room(const int *keep, size_t keep_count, void (*work)(void *),
                                   void *argument);

/* ---- Bytes through descriptors --------------------------------------------------------------- */

/* All of these return how many bytes, or a negative errno. What the descriptor's flags say of
 * blocking is shared with every process that has it, so it is asked of each call instead. */

/* Reads what is there, at most `size` bytes; -EAGAIN: nothing is. 0 is the end. Without
 * MPX_HAS_NOWAIT, and of kinds of descriptors that do not know it, it waits where another reader
 * takes what has been seen there. */
MPX_NODISCARD ssize_t mpx_os_read_now(int fd, void *data, size_t size);

/* Writes what there is room for; -EAGAIN: for nothing. */
MPX_NODISCARD ssize_t mpx_os_write_now(int fd, const struct iovec *parts, int count);

/* The same of a socket, in two thirds of the time; -ENOTSOCK. */
MPX_NODISCARD ssize_t mpx_os_recv_now(int fd, void *data, size_t size);
MPX_NODISCARD ssize_t mpx_os_send_now(int fd, const struct iovec *parts, int count);

/* Whether it is a socket that bytes go through in a stream. */
bool mpx_os_is_stream_socket(int fd);

/* How long a call on the socket may wait (SO_SNDTIMEO where it `sends`, else SO_RCVTIMEO), in
 * nanoseconds; MPX_NEVER: as long as it takes, or it is no socket. */
int64_t mpx_os_socket_patience(int fd, bool sends);

/* The error that waits in a socket of AF_UNIX, and is gone then: a negative errno, or 0. */
int mpx_os_local_socket_error(int fd);

/* Whether closing the descriptor waits for nothing: it is a pipe, or a socket that does not linger.
 */
bool mpx_os_closes_at_once(int fd);

/* As mpx_os_read_now and mpx_os_write_now where they wait, unless the descriptor's flags say no.
 * -EINTR: a signal handler ran. */
MPX_NODISCARD ssize_t mpx_os_read(int fd, void *data, size_t size);
MPX_NODISCARD ssize_t mpx_os_write(int fd, const struct iovec *parts, int count);

/* Waits until something is to be said of a descriptor: of how many; 0 where the deadline has
 * passed; -EINTR. */
MPX_NODISCARD int mpx_os_poll(struct pollfd *fds, size_t count, int64_t deadline);

/* How many bytes there are to be read; or a negative errno. */
MPX_NODISCARD int mpx_os_unread(int fd);

/* Whether its flags say that it does not block. */
bool mpx_os_is_nonblocking(int fd);

/* ---- Robust list ----------------------------------------------------------------------------- */

/* The kernel's per-thread list of futexes to mark when the thread dies, as libc registered it.
 * The core uses `pending` alone: while it is set, the futex word at pending + futex_offset gets
 * OWNER_DIED on the thread's death if it holds the thread's id. The list itself is libc's. */
typedef struct {
    void *list;
    long futex_offset;
    void *volatile pending;
} mpx_robust_head_t;

/* Bits of a robust futex word beside the owner's thread id. */
#define MPX_FUTEX_WAITERS    UINT32_C(0x80000000)
#define MPX_FUTEX_OWNER_DIED UINT32_C(0x40000000)
#define MPX_FUTEX_TID_MASK   UINT32_C(0x3fffffff)

/* The calling thread's head; NULL without MPX_HAS_ROBUST_LIST or where the thread has none. Ask
 * again in every thread, and after fork in the child. Not async-signal-safe. */
mpx_robust_head_t *mpx_os_robust_head(void);

/* ---- The calling thread ---------------------------------------------------------------------- */

/* A thread as shared words name it. One of a foreign process goes by that process's name: the
 * kernel would find its number in words of other namespaces. */
typedef struct {
    uint32_t id;               /* the kernel's number */
    uint32_t number;           /* the same; of a foreign process, its number */
    uint32_t start;            /* when it started; 0 where that is not known */
    mpx_robust_head_t *robust; /* NULL without MPX_HAS_ROBUST_LIST, and in a foreign process */
} mpx_thread_t;

/* The calling thread. Costs a few system calls once in every thread, and again after fork in the
 * child (of libc's fork: a raw clone keeps what it copied). Not async-signal-safe. */
const mpx_thread_t *mpx_os_self(void);

/* 1 while the thread runs, 0 once it is dead: gone, a zombie, or its number is another thread's.
 * Only ever says 0 when sure: never of a thread in another namespace, but of a foreign one once its
 * process is dead. Async-signal-safe. */
MPX_NODISCARD int mpx_os_thread_alive(uint32_t number, uint32_t start);

#endif
