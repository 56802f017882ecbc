/* mpx_segment.c - see mpx_segment.h.
 *
 * Layer: L2
 *
 * Why a process may be killed at any instruction. Two stores change what others see:
 *
 *   ready = MPX_SEGMENT_READY (S0)   before it, the file is known to its creator alone and goes
 *                                    with it; whoever got hold of it reads "not a segment"
 *   size = the new size (S2)         before it, the added bytes belong to the file and not to the
 *                                    segment; the next grow allocates the same range again
 *
 * Both come after all that they announce, so there is never anything to repair.
 *
 * Within a process, a view is entered in `views` before `newest` names it, and `newest` before
 * `size` allows offsets that need it. All three only ever grow.
 */
#include "mpx_segment.h"

#include "mpx_fault.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* ---- The file behind the descriptor ---------------------------------------------------------- */

static bool is_same_file(mpx_file_id_t a, mpx_file_id_t b)
{
    return a.device == b.device && a.inode == b.inode;
}

/* Comes before every use of the descriptor. A thread that closes it between this and the use
 * defeats the check: nothing can be done about that. */
static int check_file(const mpx_segment_t *segment, mpx_file_info_t *info)
{
    int status = mpx_os_file_info(segment->fd, info);
    if (status == 0 && !is_same_file(info->id, segment->file)) {
        status = -ESTALE;
    }
    return status;
}

int mpx_segment_fd(const mpx_segment_t *segment)
{
    mpx_file_info_t info;
    int status = check_file(segment, &info);
    return status < 0 ? status : segment->fd;
}

/* `size` as whole pages; 0 where there is no such file size. */
static uint64_t round_to_pages(uint64_t size)
{
    uint64_t page = mpx_os_page_size();
    return size > INT64_MAX - page ? 0 : (size + page - 1) & ~(page - 1);
}

/* ---- Views ----------------------------------------------------------------------------------- */

/* The first view is there as long as the segment is open. */
static mpx_segment_header_t *header_of(mpx_segment_t *segment)
{
    return mpx_ptr_load_relaxed(&segment->views[0]);
}

static size_t view_length(const mpx_segment_t *segment, uint32_t view)
{
    return segment->first_length << view;
}

/* The shortest view that reaches `size`, MPX_SEGMENT_VIEWS where there is none. */
static uint32_t view_for(const mpx_segment_t *segment, uint64_t size)
{
    for (uint32_t view = 0; view < MPX_SEGMENT_VIEWS; view++) {
        if (segment->first_length > (size_t)INT64_MAX >> view) {
            break;
        }
        if (view_length(segment, view) >= size) {
            return view;
        }
    }
    return MPX_SEGMENT_VIEWS;
}

/* Maps the view unless it is mapped. Of two threads that do so at once, one drops its own. */
static int map_view(mpx_segment_t *segment, uint32_t view)
{
    size_t length = view_length(segment, view);
    void *address;
    void *none = NULL;
    if (mpx_ptr_load_relaxed(&segment->views[view]) != NULL) {
        return 0;
    }
    int status = mpx_os_map(segment->fd, length, &address);
    if (status == 0 && !mpx_ptr_cas_release(&segment->views[view], &none, address)) {
        mpx_os_unmap(address, length);
    }
    return status;
}

/* V0: with V1. Comes after the view itself. */
static void raise_newest(mpx_segment_t *segment, uint32_t view)
{
    uint32_t newest = mpx_u32_load_relaxed(&segment->newest);
    while (newest < view && !mpx_u32_cas_release(&segment->newest, &newest, view)) {
    }
}

/* V2: with V3. Comes after the view that the size needs is the newest or older. */
static void raise_size(mpx_segment_t *segment, uint64_t size)
{
    uint64_t known = mpx_u64_load_relaxed(&segment->size);
    while (known < size && !mpx_u64_cas_release(&segment->size, &known, size)) {
    }
}

/* Makes [0, size) of the file, which the file must have, reachable for this process. */
static int map_up_to(mpx_segment_t *segment, uint64_t size)
{
    uint32_t view = view_for(segment, size);
    if (view == MPX_SEGMENT_VIEWS) {
        return -EFBIG;
    }
    int status = map_view(segment, view);
    if (status == 0) {
        raise_newest(segment, view);
    }
    return status;
}

/* ---- Creation -------------------------------------------------------------------------------- */

/* Fills in the fields that do not change and maps the first view. */
static int open_handle(mpx_segment_t *segment, int fd, const mpx_file_info_t *info)
{
    memset(segment, 0, sizeof(*segment));
    segment->fd = fd;
    segment->file = info->id;
    segment->first_length = info->size;
    return map_view(segment, 0);
}

/* What makes an empty file ready to be mapped: storage for every byte, and no way back. */
static int prepare_file(int fd, uint64_t size)
{
    int status = mpx_os_allocate(fd, 0, size);
    if (status < 0) {
        return status;
    }
    status = mpx_os_seal_shrink(fd);
    return status < 0 && mpx_os_has(MPX_HAS_MEMFD_SEAL) ? status : 0;
}

/* Killed at any point here, the creator takes the file with it: no other process has it. The
 * order is for those that could have it all the same (a descriptor that a fork in another thread
 * copied): up to the last store the file is refused. */
static void write_header(mpx_segment_header_t *header, uint64_t size)
{
    MPX_STEP(create_mapped); /* all zero: refused, not ready */
    header->magic = MPX_SEGMENT_MAGIC;
    MPX_STEP(create_magic); /* refused, not ready */
    header->layout = MPX_SEGMENT_LAYOUT;
    MPX_STEP(create_layout); /* refused, not ready */
    mpx_u64_store_relaxed(&header->size, size);
    MPX_STEP(create_size);                                    /* refused, not ready */
    mpx_u32_store_release(&header->ready, MPX_SEGMENT_READY); /* S0: with S1 */
    MPX_STEP(create_ready);                                   /* a segment */
}

static int create_in_file(mpx_segment_t *segment, int fd, uint64_t size)
{
    mpx_file_info_t info;
    int status = prepare_file(fd, size);
    MPX_STEP(create_allocated); /* no header: refused */
    if (status == 0) {
        status = mpx_os_file_info(fd, &info);
    }
    if (status == 0) {
        status = open_handle(segment, fd, &info);
    }
    if (status == 0) {
        write_header(header_of(segment), size);
        raise_size(segment, size);
    }
    return status;
}

int mpx_segment_create(mpx_segment_t *segment, size_t size)
{
    uint64_t whole = round_to_pages(size > MPX_SEGMENT_DATA ? size : MPX_SEGMENT_DATA);
    if (whole == 0) {
        return -EFBIG;
    }
    int fd = mpx_os_anonymous_file("mproc_ext");
    if (fd < 0) {
        return fd;
    }
    MPX_STEP(create_file); /* an empty file: refused */
    int status = create_in_file(segment, fd, whole);
    if (status < 0) {
        close(fd);
    }
    return status;
}

void mpx_segment_close(mpx_segment_t *segment)
{
    int fd = mpx_segment_fd(segment);
    for (uint32_t view = 0; view < MPX_SEGMENT_VIEWS; view++) {
        void *address = mpx_ptr_exchange_acquire(&segment->views[view], NULL);
        if (address != NULL) {
            mpx_os_unmap(address, view_length(segment, view));
        }
    }
    mpx_u64_store_relaxed(&segment->size, 0);
    if (fd >= 0) {
        close(fd);
    }
    segment->fd = -1;
}

/* ---- Attaching ------------------------------------------------------------------------------- */

/* Whether the file may be mapped at all: it has room for a header, and will not lose it. */
static int check_kind(int fd, mpx_file_info_t *info)
{
    int status = mpx_os_file_info(fd, info);
    if (status < 0) {
        return status;
    }
    if (!info->regular) {
        return -EINVAL;
    }
    if (mpx_os_has(MPX_HAS_MEMFD_SEAL)) {
        status = mpx_os_is_shrink_sealed(fd);
        if (status <= 0) {
            return status < 0 ? status : -EPROTO;
        }
    }
    /* Asked again: before the seal was seen the file could shrink. */
    status = mpx_os_file_info(fd, info);
    if (status == 0 && info->size < MPX_SEGMENT_DATA) {
        status = -EPROTO;
    }
    return status;
}

/* Reads each field once; returns the size of the segment through `size`. The file is asked for its
 * own size after that: it grows first. */
static int read_header(mpx_segment_t *segment, uint64_t *size)
{
    mpx_segment_header_t *header = header_of(segment);
    mpx_file_info_t info;
    if (mpx_u32_load_acquire(&header->ready) != MPX_SEGMENT_READY) { /* S1: with S0 */
        return -EPROTO;
    }
    if (header->magic != MPX_SEGMENT_MAGIC || header->layout != MPX_SEGMENT_LAYOUT) {
        return -EPROTO;
    }
    *size = mpx_u64_load_acquire(&header->size); /* S3: with S2 */
    int status = mpx_os_file_info(segment->fd, &info);
    if (status < 0) {
        return status;
    }
    return *size >= MPX_SEGMENT_DATA && *size <= info.size ? 0 : -EPROTO;
}

int mpx_segment_attach(mpx_segment_t *segment, int fd)
{
    mpx_file_info_t info;
    uint64_t size;
    int status = check_kind(fd, &info);
    if (status < 0) {
        return status;
    }
    status = open_handle(segment, fd, &info);
    if (status < 0) {
        return status;
    }
    status = read_header(segment, &size);
    if (status < 0) {
        mpx_os_unmap(header_of(segment), segment->first_length);
        return status;
    }
    /* It may have grown since it was mapped: a refresh will see that. */
    raise_size(segment, size < segment->first_length ? size : segment->first_length);
    return 0;
}

/* ---- Growth ---------------------------------------------------------------------------------- */

/* Gives [from, size) storage, which extends the file, and maps it; on failure takes the storage
 * back, which nobody uses. */
static int add_bytes(mpx_segment_t *segment, uint64_t from, uint64_t size)
{
    int status = mpx_os_allocate(segment->fd, from, size - from);
    MPX_STEP(grow_allocated); /* the size before; the bytes behind it are nobody's */
    if (status == 0) {
        status = map_up_to(segment, size);
    }
    if (status < 0 && mpx_segment_fd(segment) >= 0) {
        /* Best effort: at worst the storage waits for the next grow. */
        (void)!mpx_os_deallocate(segment->fd, from, size - from);
    }
    return status;
}

/* With storage for all that is added, or for the last page alone. */
static int lengthen(mpx_segment_t *segment, size_t size, bool sparse)
{
    mpx_file_info_t info;
    uint64_t whole = round_to_pages(size);
    if (whole == 0 && size > 0) {
        return -EFBIG;
    }
    int status = mpx_segment_refresh(segment);
    uint64_t old = mpx_u64_load_relaxed(&segment->size);
    if (status < 0 || whole <= old) {
        return status;
    }
    status = check_file(segment, &info);
    if (status == 0) {
        status = add_bytes(segment, sparse ? whole - mpx_os_page_size() : old, whole);
    }
    if (status == 0) {
        mpx_u64_store_release(&header_of(segment)->size, whole); /* S2: with S3 */
        MPX_STEP(grow_published);                                /* the new size, complete */
        raise_size(segment, whole);
    }
    return status;
}

int mpx_segment_grow(mpx_segment_t *segment, size_t size)
{
    return lengthen(segment, size, false);
}

int mpx_segment_grow_sparse(mpx_segment_t *segment, size_t size)
{
    return lengthen(segment, size, true);
}

int mpx_segment_refresh(mpx_segment_t *segment)
{
    mpx_file_info_t info;
    uint64_t size = mpx_u64_load_acquire(&header_of(segment)->size); /* S3: with S2 */
    if (size <= mpx_u64_load_relaxed(&segment->size)) {
        return 0;
    }
    int status = check_file(segment, &info);
    if (status < 0) {
        return status;
    }
    if (size > info.size) {
        return -EPROTO; /* someone wrote there who should not */
    }
    status = map_up_to(segment, size);
    if (status == 0) {
        raise_size(segment, size);
    }
    return status;
}

/* ---- Storage --------------------------------------------------------------------------------- */

/* Whether the range is the user's, and the file still is the segment's. */
static int check_range(mpx_segment_t *segment, uint64_t offset, uint64_t length)
{
    mpx_file_info_t info;
    uint64_t size = mpx_segment_size(segment);
    if (offset < MPX_SEGMENT_DATA || offset > size || length > size - offset) {
        return -EINVAL;
    }
    return check_file(segment, &info);
}

int mpx_segment_allocate(mpx_segment_t *segment, uint64_t offset, uint64_t length)
{
    int status = check_range(segment, offset, length);
    return status < 0 ? status : mpx_os_allocate(segment->fd, offset, length);
}

int mpx_segment_deallocate(mpx_segment_t *segment, uint64_t offset, uint64_t length)
{
    int status = check_range(segment, offset, length);
    return status < 0 ? status : mpx_os_deallocate(segment->fd, offset, length);
}

/* ---- Access ---------------------------------------------------------------------------------- */

uint64_t mpx_segment_size(mpx_segment_t *segment)
{
    return mpx_u64_load_acquire(&segment->size); /* V3: with V2 */
}

void *mpx_segment_at(mpx_segment_t *segment, uint64_t offset, uint64_t length)
{
    uint64_t size = mpx_segment_size(segment);
    if (offset < MPX_SEGMENT_DATA || offset > size || length > size - offset) {
        return NULL;
    }
    uint32_t view = mpx_u32_load_acquire(&segment->newest); /* V1: with V0 */
    unsigned char *base = mpx_ptr_load_relaxed(&segment->views[view]);
    return base + offset;
}
