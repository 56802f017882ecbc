/* mpx_os_linux_file.c - Linux: files without a name, their storage, seals and mappings.
 *
 * Layer: L1
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* A container's /dev/shm may have room for nothing. */
#define ROOM_WANTED ((unsigned long)16 << 20)

/* ---- Creation -------------------------------------------------------------------------------- */

/* MFD_NOEXEC_SEAL first: from Linux 6.3 on a machine may insist on it (vm.memfd_noexec), and older
 * kernels answer EINVAL. */
static int create_memfd(const char *label)
{
    unsigned flags = MPX_MFD_CLOEXEC | MPX_MFD_ALLOW_SEALING;
    long fd = MPX_SYS(memfd_create, syscall(SYS_memfd_create, label, flags | MPX_MFD_NOEXEC_SEAL));
    if (fd < 0 && errno == EINVAL) {
        fd = MPX_SYS(memfd_create, syscall(SYS_memfd_create, label, flags));
    }
    return fd < 0 ? -errno : (int)fd;
}

/* "<directory>/.mpx-<pid>-<n>"; false where it does not fit. */
static bool temporary_path(char *path, size_t size, const char *directory)
{
    static mpx_atomic_u32 counter;
    size_t length = strlen(directory);
    if (length + sizeof("/.mpx--") + 2 * MPX_DECIMAL_SIZE > size) {
        return false;
    }
    memcpy(path, directory, length);
    memcpy(path + length, "/.mpx-", 6);
    length += 6;
    length += mpx_os_decimal(path + length, (uint64_t)getpid());
    path[length++] = '-';
    mpx_os_decimal(path + length, mpx_u32_fetch_add_relaxed(&counter, 1) + (uint64_t)mpx_os_now());
    return true;
}

/* For file systems without O_TMPFILE. A process killed between open and unlink leaves an empty
 * file behind; there is no way to do both at once. */
static int create_and_unlink(const char *directory)
{
    char path[512];
    if (!temporary_path(path, sizeof(path), directory)) {
        return -ENAMETOOLONG;
    }
    int fd =
        MPX_SYS(open_named, open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600));
    if (fd < 0) {
        return -errno;
    }
    unlink(path);
    return fd;
}

static int create_in(const char *directory)
{
    int fd = MPX_SYS(open_tmpfile, open(directory, O_RDWR | O_TMPFILE | O_EXCL | O_CLOEXEC, 0600));
    return fd >= 0 ? fd : create_and_unlink(directory);
}

static bool out_of_descriptors(int status)
{
    return status == -EMFILE || status == -ENFILE;
}

/* Whether a file there can grow; a file system without blocks has no limit of its own. */
static bool has_room(const char *directory)
{
    struct statvfs room;
    return statvfs(directory, &room) == 0 &&
           (room.f_blocks == 0 || room.f_bavail >= ROOM_WANTED / room.f_frsize);
}

static int create_in_one_of(const char *const *directories, size_t count, bool with_room)
{
    int status = -ENOENT;
    for (size_t i = 0; i < count; i++) {
        if (directories[i] == NULL || directories[i][0] == '\0' ||
            (with_room && !has_room(directories[i]))) {
            continue;
        }
        status = create_in(directories[i]);
        if (status >= 0 || out_of_descriptors(status)) {
            break;
        }
    }
    return status;
}

static int create_unlinked_file(void)
{
    const char *const directories[] = {"/dev/shm", getenv("TMPDIR"), "/tmp", "/var/tmp"};
    int status = create_in_one_of(directories, MPX_ARRAY_LENGTH(directories), true);
    return status >= 0 || out_of_descriptors(status)
               ? status
               : create_in_one_of(directories, MPX_ARRAY_LENGTH(directories), false);
}

int mpx_os_anonymous_file(const char *label)
{
    if (mpx_os_enabled(MPX_HAS_MEMFD_SEAL)) {
        int fd = create_memfd(label);
        if (fd >= 0 || out_of_descriptors(fd)) {
            return fd;
        }
    }
    return create_unlinked_file();
}

int mpx_os_file_info(int fd, mpx_file_info_t *info)
{
    struct stat stat;
    if (MPX_SYS(fstat, fstat(fd, &stat)) < 0) {
        return -errno;
    }
    info->id.device = stat.st_dev;
    info->id.inode = stat.st_ino;
    info->size = (uint64_t)stat.st_size;
    info->regular = S_ISREG(stat.st_mode);
    return 0;
}

bool mpx_os_is_file(int fd, mpx_file_id_t file)
{
    mpx_file_info_t info = {.size = 0};
    return fd >= 0 && mpx_os_file_info(fd, &info) == 0 && info.id.device == file.device &&
           info.id.inode == file.inode;
}

/* ---- Seals ----------------------------------------------------------------------------------- */

int mpx_os_seal_shrink(int fd)
{
    if (MPX_SYS(add_seals, fcntl(fd, MPX_F_ADD_SEALS, MPX_F_SEAL_SHRINK)) == 0) {
        return 0;
    }
    return errno == EINVAL ? -EOPNOTSUPP : -errno;
}

int mpx_os_is_shrink_sealed(int fd)
{
    int seals = MPX_SYS(get_seals, fcntl(fd, MPX_F_GET_SEALS));
    if (seals < 0) {
        return errno == EINVAL ? 0 : -errno; /* EINVAL: not a file that has seals */
    }
    return (seals & MPX_F_SEAL_SHRINK) != 0;
}

bool mpx_os_probe_memfd_seal(void)
{
    int fd = create_memfd("mpx-probe");
    if (fd < 0) {
        return false;
    }
    bool sealed = mpx_os_seal_shrink(fd) == 0;
    close(fd);
    return sealed;
}

/* ---- Storage --------------------------------------------------------------------------------- */

/* One fallocate call handles so much at a time: a handful of milliseconds, for which a signal
 * handler can wait. */
#define ALLOCATE_PIECE (UINT64_C(4) << 20)

/* Growing a file beyond the limit would raise SIGXFSZ, which kills by default. */
static int check_file_size_limit(uint64_t end)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_FSIZE, &limit) < 0) {
        return -errno;
    }
    return limit.rlim_cur != RLIM_INFINITY && end > limit.rlim_cur ? -EFBIG : 0;
}

/* In tmpfs of older kernels fallocate starts anew when a signal is pending, so a program with a
 * fast interval timer would never get through. Signals therefore wait until the piece is done. */
static int allocate_piece(int fd, uint64_t offset, uint64_t length)
{
    sigset_t all, before;
    int status;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    do {
        status = MPX_SYS(fallocate, fallocate(fd, 0, (off_t)offset, (off_t)length));
    } while (status < 0 && errno == EINTR);
    status = status < 0 ? -errno : 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return status;
}

/* For file systems without fallocate. Never touches what the file holds: others may be writing
 * there. */
static int extend_with_zeros(int fd, uint64_t size, uint64_t end)
{
    static const char zeros[4096];
    while (size < end) {
        size_t length = end - size < sizeof(zeros) ? (size_t)(end - size) : sizeof(zeros);
        ssize_t written = MPX_SYS(pwrite, pwrite(fd, zeros, length, (off_t)size));
        if (written < 0 && errno != EINTR) {
            return -errno;
        }
        size += written > 0 ? (uint64_t)written : 0;
    }
    return 0;
}

static int allocate_range(int fd, uint64_t offset, uint64_t end)
{
    while (offset < end) {
        uint64_t length = end - offset < ALLOCATE_PIECE ? end - offset : ALLOCATE_PIECE;
        int status = allocate_piece(fd, offset, length);
        if (status < 0) {
            return status;
        }
        offset += length;
    }
    return 0;
}

int mpx_os_allocate(int fd, uint64_t offset, uint64_t length)
{
    if (length == 0) {
        return -EINVAL;
    }
    if (offset > INT64_MAX || length > INT64_MAX - offset) {
        return -EFBIG;
    }
    uint64_t end = offset + length;
    mpx_file_info_t info = {.size = 0};
    int status = mpx_os_file_info(fd, &info);
    if (status < 0) {
        return status;
    }
    if (end > info.size) {
        status = check_file_size_limit(end);
        if (status < 0) {
            return status;
        }
    }
    status = allocate_range(fd, offset, end);
    if (status == -EOPNOTSUPP || status == -ENOSYS) {
        status = extend_with_zeros(fd, info.size, end);
    }
    return status;
}

int mpx_os_deallocate(int fd, uint64_t offset, uint64_t length)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    int status = MPX_SYS(punch, fallocate(fd, mode, (off_t)offset, (off_t)length));
    return status < 0 ? -errno : 0;
}

/* ---- Mappings -------------------------------------------------------------------------------- */

int mpx_os_map(int fd, size_t length, void **address)
{
    void *mapped = MPX_FAULT(mmap) ? MAP_FAILED
                                   : mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) {
        return -errno;
    }
    *address = mapped;
    return 0;
}

void mpx_os_unmap(void *address, size_t length)
{
    munmap(address, length);
}

size_t mpx_os_page_size(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Reading is enough to get a page of shared memory mapped, and cannot disturb a writer. */
static void touch_pages(uintptr_t begin, uintptr_t end, size_t page)
{
    for (; begin < end; begin += page) {
        (void)mpx_u32_load_relaxed((mpx_atomic_u32 *)begin);
    }
}

/* Errors that say "not this way" rather than "there is no storage", which touching would answer
 * with SIGBUS. */
static bool populate_is_refused(int error)
{
    return error == EINVAL || error == ENOSYS || error == EPERM || error == EINTR ||
           error == EAGAIN;
}

int mpx_os_populate(void *address, size_t length)
{
    size_t page = mpx_os_page_size();
    uintptr_t begin = (uintptr_t)address & ~(page - 1);
    uintptr_t end = (uintptr_t)address + length;
    if (mpx_os_has(MPX_HAS_MADV_POPULATE)) {
        if (MPX_SYS(madvise, madvise((void *)begin, end - begin, MPX_MADV_POPULATE_WRITE)) == 0) {
            return 0;
        }
        if (!populate_is_refused(errno)) {
            return -errno;
        }
    }
    touch_pages(begin, end, page);
    return 0;
}

/* A translating emulator may take advice it does not know for a hint and drop it, so look whether
 * the page has come. */
bool mpx_os_probe_madv_populate(void)
{
    size_t page = mpx_os_page_size();
    void *memory = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        return false;
    }
    unsigned char resident = 0;
    bool populated = MPX_SYS(madvise, madvise(memory, page, MPX_MADV_POPULATE_WRITE)) == 0 &&
                     mincore(memory, page, &resident) == 0 && (resident & 1);
    munmap(memory, page);
    return populated;
}
