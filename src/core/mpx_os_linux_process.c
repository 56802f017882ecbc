/* mpx_os_linux_process.c - Linux: pidfds, and what /proc says about processes and threads.
 *
 * Layer: L1
 *
 * No function here allocates or takes a lock.
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- pidfd ----------------------------------------------------------------------------------- */

static int pidfd_open(pid_t pid)
{
    long fd = MPX_SYS(pidfd_open, syscall(MPX_SYS_PIDFD_OPEN, pid, 0));
    return fd < 0 ? -errno : (int)fd;
}

static int pidfd_send_signal(int pidfd, int signal_number)
{
    return MPX_SYS(pidfd_send_signal,
                   (int)syscall(MPX_SYS_PIDFD_SEND_SIGNAL, pidfd, signal_number, NULL, 0)) < 0
               ? -errno
               : 0;
}

bool mpx_os_probe_pidfd(void)
{
    int fd = pidfd_open(getpid());
    if (fd < 0) {
        return false;
    }
    bool works = pidfd_send_signal(fd, 0) == 0;
    close(fd);
    return works;
}

int mpx_os_pidfd_open(pid_t pid)
{
    if (pid <= 0) {
        return -EINVAL;
    }
    if (!mpx_os_enabled(MPX_HAS_PIDFD)) {
        return -ENOSYS;
    }
    int fd = pidfd_open(pid);
    /* The number of a thread that is no process: EINVAL, ENOENT from 6.15 on. */
    return fd == -EINVAL || fd == -ENOENT ? -ESRCH : mpx_os_above_stdio(fd);
}

/* ---- /proc/<pid>/stat ------------------------------------------------------------------------ */

/* Numbers of the fields in proc(5). The third follows the name in parentheses, which may itself
 * hold blanks, parentheses and line ends: so the last ')' counts. */
enum { FIELD_STATE = 3, FIELD_THREADS = 20, FIELD_START = 22 };

static const char *find_last(const char *text, size_t length, char wanted)
{
    while (length > 0) {
        if (text[--length] == wanted) {
            return text + length;
        }
    }
    return NULL;
}

/* Reads the digits at *text and moves behind them; false where there are none or too many. */
static bool read_decimal(const char **text, const char *end, uint64_t *number)
{
    const char *start = *text;
    *number = 0;
    while (*text < end && **text >= '0' && **text <= '9') {
        uint64_t digit = (uint64_t)(**text - '0');
        if (*number > (UINT64_MAX - digit) / 10) {
            return false;
        }
        *number = *number * 10 + digit;
        ++*text;
    }
    return *text > start;
}

/* The start of the next blank-separated field, `end` where there is none. */
static const char *next_field(const char *text, const char *end)
{
    while (text < end && *text != ' ') {
        text++;
    }
    return text < end ? text + 1 : end;
}

int mpx_proc_stat_parse(const char *text, size_t length, mpx_proc_stat_t *stat)
{
    const char *end = text + length;
    const char *field = find_last(text, length, ')');
    if (field == NULL) {
        return -EPROTO;
    }
    field = next_field(field, end);
    if (field == end) {
        return -EPROTO;
    }
    stat->state = *field;
    for (int number = FIELD_STATE; number < FIELD_START; number++) {
        field = next_field(field, end);
        const char *digits = field;
        if (number + 1 == FIELD_THREADS && !read_decimal(&digits, end, &stat->threads)) {
            return -EPROTO;
        }
    }
    return read_decimal(&field, end, &stat->start_ticks) ? 0 : -EPROTO;
}

/* ---- Whose numbers /proc has ------------------------------------------------------------------
 */

/* Reads a file of /proc that was opened, or could not be. It answers at once. Returns how much. */
static ssize_t read_proc(int fd, char *buffer, size_t size)
{
    if (fd < 0) {
        return -errno;
    }
    size_t length = 0;
    ssize_t got;
    do {
        got = MPX_SYS(read_proc, read(fd, buffer + length, size - length));
        length += got > 0 ? (size_t)got : 0;
    } while ((got > 0 && length < size) || (got < 0 && errno == EINTR));
    ssize_t status = got < 0 ? -errno : (ssize_t)length;
    close(fd);
    return status;
}

/* In /proc/self/status: the process's numbers from the namespace of this /proc down to its own. One
 * is its own; a kernel that does not say has no namespaces, or the list of groups was too long. */
static bool has_one_number(void)
{
    static const char label[] = "\nNSpid:\t";
    char text[4096];
    int fd = MPX_SYS(open_status, open("/proc/self/status", O_RDONLY | O_CLOEXEC));
    ssize_t length = read_proc(fd, text, sizeof(text) - 1);
    text[length > 0 ? length : 0] = '\0';
    const char *numbers = strstr(text, label);
    return numbers == NULL ||
           numbers[sizeof(label) - 1 + strcspn(numbers + sizeof(label) - 1, "\t\n")] != '\t';
}

/* Whether /proc is this process's own namespace's, and not one that was mounted outside: what that
 * says of a number is about another process. */
static bool is_own_proc(void)
{
    char own[MPX_DECIMAL_SIZE], link[MPX_DECIMAL_SIZE];
    size_t length = mpx_os_decimal(own, (uint64_t)getpid());
    return readlink("/proc/self", link, sizeof(link)) == (ssize_t)length &&
           memcmp(own, link, length) == 0 && has_one_number();
}

/* The answer is kept for one /proc, which is known by its device: in the upper half, and whether it
 * is the own one in the lowest bit; 0: not asked yet. */
static mpx_atomic_u64 known_proc;

static bool proc_is_own(void)
{
    struct stat info;
    if (stat("/proc", &info) < 0) {
        return false;
    }
    uint64_t key = (uint64_t)info.st_dev << 32 | UINT64_C(2);
    uint64_t known = mpx_u64_load_relaxed(&known_proc);
    if ((known & ~UINT64_C(1)) != key) {
        known = key | is_own_proc();
        mpx_u64_store_relaxed(&known_proc, known);
    }
    return known & 1;
}

void mpx_proc_forget(void)
{
    mpx_u64_store_relaxed(&known_proc, 0);
}

static int read_stat(const char *path, mpx_proc_stat_t *stat)
{
    char text[1024];
    int fd = MPX_SYS(open_proc, open(path, O_RDONLY | O_CLOEXEC));
    ssize_t length = read_proc(fd, text, sizeof(text));
    return length < 0 ? (int)length : mpx_proc_stat_parse(text, (size_t)length, stat);
}

static int read_stat_in(const char *folder, pid_t id, mpx_proc_stat_t *stat)
{
    char path[sizeof("/proc/self/task//stat") + MPX_DECIMAL_SIZE];
    size_t length = strlen(folder);
    memcpy(path, folder, length);
    length += mpx_os_decimal(path + length, (uint64_t)id);
    memcpy(path + length, "/stat", sizeof("/stat"));
    return read_stat(path, stat);
}

int mpx_proc_stat_of(pid_t id, mpx_proc_stat_t *stat)
{
    return proc_is_own() ? read_stat_in("/proc/", id, stat) : -ENOENT;
}

int mpx_proc_stat_of_own_thread(pid_t id, mpx_proc_stat_t *stat)
{
    return proc_is_own() ? read_stat_in("/proc/self/task/", id, stat) : -ENOENT;
}

/* ---- Processes ------------------------------------------------------------------------------- */

bool mpx_os_pid_in_use(pid_t pid)
{
    return kill(pid, 0) == 0 || errno != ESRCH;
}

uint32_t mpx_proc_start(const mpx_proc_stat_t *stat)
{
    uint32_t start = (uint32_t)(stat->start_ticks + 1);
    return start != 0 ? start : 1;
}

int mpx_os_process_start(pid_t pid, uint32_t *start)
{
    mpx_proc_stat_t stat;
    if (pid <= 0) {
        return -EINVAL;
    }
    int status = mpx_proc_stat_of(pid, &stat);
    if (status == -ENOENT && !mpx_os_pid_in_use(pid)) {
        return -ESRCH; /* not for want of /proc */
    }
    if (status == 0) {
        *start = mpx_proc_start(&stat);
    }
    return status;
}

static bool is_readable(int fd)
{
    struct pollfd query = {.fd = fd, .events = POLLIN};
    return poll(&query, 1, 0) == 1 && (query.revents & POLLIN);
}

/* Whether the process that has the number now is not the one that started at `start`. */
static bool is_another(mpx_process_id_t id, const mpx_proc_stat_t *stat)
{
    return id.start != 0 && id.start != mpx_proc_start(stat);
}

/* A main thread that ended before the others is a zombie too; the process is dead with the last. */
static bool has_ended(const mpx_proc_stat_t *stat)
{
    return (stat->state == 'Z' || stat->state == 'X' || stat->state == 'x') && stat->threads <= 1;
}

/* For want of a pidfd. Where /proc does not answer (not mounted, hidepid), only a number that
 * nobody has is certain. */
static int alive_by_proc(mpx_process_id_t id)
{
    mpx_proc_stat_t stat;
    if (mpx_proc_stat_of(id.pid, &stat) < 0) {
        return mpx_os_pid_in_use(id.pid);
    }
    return !is_another(id, &stat) && !has_ended(&stat);
}

/* The pidfd is opened first: if the process whose start time is then read is the right one, it
 * had the number all along, so the pidfd is its own. */
static int alive_by_pidfd(int pidfd, mpx_process_id_t id)
{
    mpx_proc_stat_t stat;
    if (is_readable(pidfd)) {
        return 0;
    }
    if (id.start == 0) {
        return 1;
    }
    int status = mpx_proc_stat_of(id.pid, &stat);
    if (status < 0) {
        return !is_readable(pidfd);
    }
    return !is_another(id, &stat) && !is_readable(pidfd);
}

int mpx_os_pid_alive(mpx_process_id_t id)
{
    if (id.pid <= 0) {
        return -EINVAL;
    }
    if (MPX_FAULT(recovery)) {
        return 1;
    }
    int pidfd = mpx_os_pidfd_open(id.pid);
    if (pidfd == -ESRCH) {
        return 0;
    }
    if (pidfd < 0) {
        return alive_by_proc(id);
    }
    int alive = alive_by_pidfd(pidfd, id);
    close(pidfd);
    return alive;
}

/* Of a process that seems dead by its pid a sign may say otherwise: where processes differ about
 * the start time (time namespaces, a restored checkpoint). */
int mpx_os_process_alive(mpx_process_id_t id)
{
    if (id.pid > 0 && (id.pid >= MPX_PIDS || mpx_os_is_foreign())) {
        return mpx_life_of(id) != MPX_LIFE_NONE;
    }
    int alive = mpx_os_pid_alive(id);
    return alive == 0 ? mpx_life_of(id) == MPX_LIFE_SEEN : alive;
}

/* ---- Threads of this process ----------------------------------------------------------------- */

int mpx_os_thread_count(void)
{
    mpx_proc_stat_t stat;
    int status = read_stat("/proc/self/stat", &stat);
    if (status < 0) {
        return status;
    }
    return stat.threads > 0 ? (int)stat.threads : -ENOENT; /* an emulator's own idea of the file */
}

pid_t mpx_os_thread_id(void)
{
    return (pid_t)syscall(SYS_gettid);
}
