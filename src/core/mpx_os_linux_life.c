/* mpx_os_linux_life.c - Linux: how processes, also of several PID namespaces, see that each other
 * lives.
 *
 * Layer: L1
 *
 * The sign of life of a process is a lock on one byte of a file that all of them have, far behind
 * its end: the byte whose number is the process's name. The lock belongs to an open file that is
 * the process's own (F_OFD_SETLK), and this is held by nothing but a mapping, which is never
 * touched:
 *
 *   fork              does not copy the mapping (MADV_DONTFORK): a child has a sign of its own
 *   close             there is no descriptor that a program could close
 *   exec, the end of  free the mapping, hence the open file, hence the lock; not before the last
 *   the last thread   instruction of the process, and before it is a zombie
 *
 * Any process looks by asking who has the byte (F_OFD_GETLK), through any descriptor of the file;
 * the kernel's answer does not depend on namespaces.
 *
 * The mark of a number is the same, on bytes that no process is named by, but that its mapping is
 * copied by fork.
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* Bits of a process's number: see MPX_FUTEX_TID_MASK. */
#define NUMBER_BITS 30

/* Behind the bytes of all processes. */
#define FIRST_MARK (UINT64_C(1) << (NUMBER_BITS + 32))

static mpx_atomic_ptr lives; /* the newest first */

static struct flock byte_at(uint64_t offset)
{
    return (struct flock){
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)offset, .l_len = 1};
}

static struct flock byte_of(mpx_process_id_t id)
{
    return byte_at((uint64_t)id.start << NUMBER_BITS | (uint32_t)id.pid);
}

/* Whether somebody has the byte: 1 or 0, or why that cannot be said. */
static int is_taken(int fd, struct flock byte)
{
    return MPX_SYS(life_look, fcntl(fd, F_OFD_GETLK, &byte)) < 0 ? -errno : byte.l_type != F_UNLCK;
}

/* ---- Giving a sign --------------------------------------------------------------------------- */

/* The file once more, as an open file of this process's own. */
static int open_again(int fd)
{
    char path[sizeof("/proc/self/fd/") + MPX_DECIMAL_SIZE] = "/proc/self/fd/";
    mpx_file_info_t info;
    int status = mpx_os_file_info(fd, &info);
    if (status < 0) {
        return status;
    }
    (void)mpx_os_decimal(path + strlen(path), (uint64_t)fd);
    int again = MPX_SYS(life_open, open(path, O_RDWR | O_CLOEXEC | O_NOCTTY | O_NONBLOCK));
    again = mpx_os_above_stdio(again < 0 ? -errno : again);
    if (again >= 0 && !mpx_os_is_file(again, info.id)) { /* that is no /proc */
        close(again);
        return -ENOENT;
    }
    return again;
}

/* A byte that is taken is taken by this process, which has given its sign before. */
static int take_byte(int fd)
{
    struct flock byte = byte_of(mpx_os_own_process());
    int status = MPX_SYS(life_lock, fcntl(fd, F_OFD_SETLK, &byte));
    return status < 0 && errno != EAGAIN && errno != EACCES ? -errno : 0;
}

/* A mapping that holds the open file. */
static int map(int fd, void **mapped)
{
    size_t size = mpx_os_page_size();
    void *address =
        MPX_FAULT(life_map) ? MAP_FAILED : mmap(NULL, size, PROT_NONE, MAP_SHARED, fd, 0);
    if (address == MAP_FAILED) {
        return -errno;
    }
    *mapped = address;
    return 0;
}

/* Has the open file live as long as this process. */
static int hold(int fd, void **mark)
{
    size_t size = mpx_os_page_size();
    void *address = NULL;
    int status = map(fd, &address);
    if (status < 0) {
        return status;
    }
    if (MPX_SYS(life_dontfork, madvise(address, size, MADV_DONTFORK)) < 0) {
        status = -errno;
        mpx_os_unmap(address, size);
        return status;
    }
    *mark = address;
    return 0;
}

/* Others go by it that this process lives: so it is seen to be there, now that nothing but the
 * mapping holds it. A sandbox that imitates Linux may think otherwise. */
static int check_sign(int fd, void **mark)
{
    int seen = is_taken(fd, byte_of(mpx_os_own_process()));
    if (seen <= 0) {
        mpx_os_unmap(*mark, mpx_os_page_size());
        *mark = NULL;
    }
    return seen < 0 ? seen : seen == 0 ? -ENOLCK : 0;
}

int mpx_os_life_sign(int fd, void **mark)
{
    int own = open_again(fd);
    if (own < 0) {
        return own;
    }
    int status = take_byte(own);
    if (status == 0) {
        status = hold(own, mark);
    }
    close(own);
    return status == 0 ? check_sign(fd, mark) : status;
}

/* ---- Marks ----------------------------------------------------------------------------------- */

int mpx_os_mark_prepare(int fd, mpx_os_mark_t *mark)
{
    *mark = (mpx_os_mark_t){.address = NULL, .fd = open_again(fd)};
    if (mark->fd < 0) {
        return mark->fd;
    }
    int status = map(mark->fd, &mark->address);
    if (status < 0) {
        close(mark->fd);
        mark->fd = -1;
    }
    return status;
}

int mpx_os_mark_give(mpx_os_mark_t *mark, uint32_t number)
{
    struct flock byte = byte_at(FIRST_MARK + number);
    if (mark->address == NULL || mark->fd < 0) {
        return -EBADF;
    }
    if (MPX_SYS(mark_lock, fcntl(mark->fd, F_OFD_SETLK, &byte)) < 0) {
        return errno == EACCES ? -EAGAIN : -errno;
    }
    close(mark->fd);
    mark->fd = -1;
    return 0;
}

void mpx_os_mark_drop(mpx_os_mark_t *mark)
{
    if (mark->address == NULL) {
        return;
    }
    if (mark->fd >= 0) {
        close(mark->fd);
        mark->fd = -1;
    }
    mpx_os_unmap(mark->address, mpx_os_page_size());
    mark->address = NULL;
}

int mpx_os_mark_is_held(const mpx_os_life_t *life, uint32_t number)
{
    if (MPX_FAULT(recovery)) {
        return 1;
    }
    return mpx_os_is_file(life->fd, life->file) ? is_taken(life->fd, byte_at(FIRST_MARK + number))
                                                : -EBADF;
}

/* ---- Looking for one ------------------------------------------------------------------------- */

void mpx_os_life_register(mpx_os_life_t *life)
{
    life->next = mpx_ptr_load_relaxed(&lives);
    mpx_ptr_store_release(&lives, life); /* L0: with L1 */
}

static enum mpx_life look(const mpx_os_life_t *life, mpx_process_id_t id)
{
    int taken = mpx_os_is_file(life->fd, life->file) ? is_taken(life->fd, byte_of(id)) : -EBADF;
    if (taken != 0) {
        return taken < 0 ? MPX_LIFE_UNKNOWN : MPX_LIFE_SEEN;
    }
    return mpx_u32_load_acquire(life->unsigned_members) ? MPX_LIFE_UNKNOWN /* L3: with L2 */
                                                        : MPX_LIFE_NONE;
}

bool mpx_os_life_is_over(const mpx_os_life_t *life, mpx_process_id_t id)
{
    return id.pid > 0 && id.start != 0 && !MPX_FAULT(recovery) && look(life, id) == MPX_LIFE_NONE;
}

/* In the file in which the process should be seen, it is not said which one that is: none is sure
 * when no file is left where it might be. */
enum mpx_life mpx_life_of(mpx_process_id_t id)
{
    const mpx_os_life_t *life = mpx_ptr_load_acquire(&lives); /* L1: with L0 */
    enum mpx_life result = life == NULL || id.start == 0 ? MPX_LIFE_UNKNOWN : MPX_LIFE_NONE;
    for (; life != NULL && result != MPX_LIFE_SEEN; life = life->next) {
        enum mpx_life seen = look(life, id);
        result = seen == MPX_LIFE_NONE ? result : seen;
    }
    return result;
}
