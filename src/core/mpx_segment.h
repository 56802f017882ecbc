/* mpx_segment.h - shared memory that frees itself: an anonymous file, mapped by each process.
 *
 * Layer: L2
 *
 * A segment starts with a header that says what it is; behind it lie the user's bytes, all zero
 * at first. Addresses differ from process to process, so what is stored in a segment refers to
 * its other parts by offset from the start of the file. No offset below MPX_SEGMENT_DATA is ever
 * valid, so 0 can mean "none".
 *
 * Storage. What is added has storage, or is sparse: then its bytes are given some before they are
 * used, or a full machine would answer with SIGBUS.
 *
 * Growth. A segment only grows. Addresses that were handed out stay valid until the segment is
 * closed: when it outgrows its mapping, another one of the whole file is added (a "view", at least
 * twice as long) and the earlier ones stay. Two addresses of one byte may therefore differ, but
 * they lead to the same memory, for atomics and futexes too.
 *
 * Descriptors. A program may close the segment's descriptor and get its number for another file.
 * So the file is recognised before each use of the number: -EBADF where nothing is open under it,
 * -ESTALE where it is another file. What is mapped goes on working then; the segment cannot grow.
 *
 * Bad files. mpx_segment_attach reads a file that others have made. It maps only a file that
 * cannot shrink and refuses what is not a segment with -EINVAL (the wrong kind of file) or
 * -EPROTO (the wrong contents). Where there are no seals (MPX_HAS_MEMFD_SEAL) nothing keeps a
 * process that has the descriptor from truncating the file later.
 *
 * Threads. mpx_segment_at, _size, _fd and _refresh may run at any time in any thread. create,
 * attach and close are for one thread, and only one thread of all processes that share the
 * segment may be in mpx_segment_grow or mpx_segment_grow_sparse: hold a lock. Storage is given to a
 * range, and taken from it, by whoever has it for himself.
 */
#ifndef MPX_SEGMENT_H
#define MPX_SEGMENT_H

#include "mpx_atomic.h"
#include "mpx_base.h"
#include "mpx_os.h"

/* The version of the header below. */
#define MPX_SEGMENT_LAYOUT UINT32_C(1)

/* "mpxseg" and two bytes that no text has; read as a number, so a foreign byte order differs. */
#define MPX_SEGMENT_MAGIC UINT64_C(0x00ff67657378706d)

#define MPX_SEGMENT_READY UINT32_C(0x79646572)

/* As it lies at the start of the file. */
typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) uint64_t magic;
    uint32_t layout;
    mpx_atomic_u32 ready; /* MPX_SEGMENT_READY once everything else is there; stored last */
    mpx_atomic_u64 size;  /* bytes that may be mapped, header included */
} mpx_segment_header_t;

/* The offset of the first byte that belongs to the user. */
#define MPX_SEGMENT_DATA sizeof(mpx_segment_header_t)

MPX_STATIC_ASSERT(MPX_SEGMENT_DATA == MPX_CACHE_LINE, "the header is one cache line");
MPX_STATIC_ASSERT(offsetof(mpx_segment_header_t, magic) == 0, "layout 1");
MPX_STATIC_ASSERT(offsetof(mpx_segment_header_t, layout) == 8, "layout 1");
MPX_STATIC_ASSERT(offsetof(mpx_segment_header_t, ready) == 12, "layout 1");
MPX_STATIC_ASSERT(offsetof(mpx_segment_header_t, size) == 16, "layout 1");

/* View n is 2^n times as long as view 0, so this many are enough for any size there is memory
 * for. */
#define MPX_SEGMENT_VIEWS 32

/* A process's own handle of a segment; fork copies it. The members are private. */
typedef struct {
    int fd;
    mpx_file_id_t file;
    size_t first_length;
    mpx_atomic_u64 size;                     /* bytes that the views of this process reach */
    mpx_atomic_u32 newest;                   /* the longest view */
    mpx_atomic_ptr views[MPX_SEGMENT_VIEWS]; /* NULL where not mapped */
} mpx_segment_t;

/* Makes a segment of at least `size` bytes, header included, rounded up to whole pages. */
MPX_NODISCARD int mpx_segment_create(mpx_segment_t *segment, size_t size);

/* Attaches to the segment behind the descriptor, which belongs to the segment from then on; on
 * failure it stays the caller's. */
MPX_NODISCARD int mpx_segment_attach(mpx_segment_t *segment, int fd);

/* Unmaps all views and closes the descriptor if it still is ours. */
void mpx_segment_close(mpx_segment_t *segment);

/* Makes the segment at least `size` bytes long, for all processes. On failure it is as before.
 * Success without effect where it is that long already. */
MPX_NODISCARD int mpx_segment_grow(mpx_segment_t *segment, size_t size);

/* The same, without storage for what is added but the last page: whoever uses any of it gives it
 * storage before. */
MPX_NODISCARD int mpx_segment_grow_sparse(mpx_segment_t *segment, size_t size);

/* Gives every byte of the range storage; what it held stays. On failure a part may have some. */
MPX_NODISCARD int mpx_segment_allocate(mpx_segment_t *segment, uint64_t offset, uint64_t length);

/* Takes the storage of the range away; whole pages, which nobody uses. -EOPNOTSUPP where the file
 * system cannot. */
MPX_NODISCARD int mpx_segment_deallocate(mpx_segment_t *segment, uint64_t offset, uint64_t length);

/* Makes what other processes have added reachable here. */
MPX_NODISCARD int mpx_segment_refresh(mpx_segment_t *segment);

/* The address of [offset, offset + length), NULL where that is not within what this process has
 * mapped. After NULL for an offset that another process has handed out, refresh and ask again. */
void *mpx_segment_at(mpx_segment_t *segment, uint64_t offset, uint64_t length);

/* How many bytes, header included, this process reaches. */
uint64_t mpx_segment_size(mpx_segment_t *segment);

/* The descriptor, to hand to another process, after a look whether it still is ours. */
MPX_NODISCARD int mpx_segment_fd(const mpx_segment_t *segment);

#endif
