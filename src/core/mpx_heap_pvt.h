/* mpx_heap_pvt.h - how a heap lies in its arena's segment.
 *
 * Layer: L4
 *
 *   shared    what the arena's `heap` leads to: the directory of extents, and hints
 *   extent    a run of units of MPX_BLOCK_UNIT, with a table that has an entry for each; units are
 *             numbered through all extents
 *   run       units in a row, all free or one block; the entry of the first one tells of it, those
 * of the others but that they keep their generation and say which units have storage
 *
 *   owner     0                32         48            64       0: free
 *             | slot           | key      | generation  |
 *   meta      0           24   27         32            64
 *             | length    | .. |          | generation  |
 */
#ifndef MPX_HEAP_PVT_H
#define MPX_HEAP_PVT_H

#include "mpx_heap.h"

/* An extent is twice as long as the one before, so these are enough for all that an arena holds,
 * with some to spare for times when so much is not to be had. */
#define MPX_HEAP_EXTENTS 60
#define MPX_HEAP_RECENT  32

#define MPX_RUN_LENGTH UINT64_C(0x00ffffff)

/* A run begins here for certain. Without it, only a walk from the extent's begin can tell. */
#define MPX_RUN_HEAD (UINT64_C(1) << 24)

/* The unit may have storage; it has. */
#define MPX_RUN_TOUCHED (UINT64_C(1) << 25)
#define MPX_RUN_STORED  (UINT64_C(1) << 26)

/* In the upper half of the first word of an owner's room; the key is in the lower one. */
#define MPX_HEAP_OWNER_MAGIC UINT64_C(0xff6b636f)
#define MPX_HEAP_KEYS        UINT32_C(0xffff)

typedef struct {
    mpx_atomic_u64 owner;
    mpx_atomic_u64 meta;
} mpx_run_t;

typedef struct {
    mpx_atomic_u32 at;     /* its first byte, in units of the arena */
    mpx_atomic_u32 table;  /* in units of the arena */
    mpx_atomic_u32 first;  /* the number of its first unit */
    mpx_atomic_u32 length; /* units */
} mpx_extent_entry_t;

typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u32 extents; /* how many are complete */
    mpx_atomic_u32 rover; /* a unit: the last search ended here, or anything */
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u32 recent[MPX_HEAP_RECENT]; /* units + 1, or anything */
    mpx_atomic_u32 frees; /* the next place in `recent` */
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_extent_entry_t extent[MPX_HEAP_EXTENTS];
} mpx_heap_shared_t;

MPX_STATIC_ASSERT(sizeof(mpx_run_t) == 16, "layout 1");
MPX_STATIC_ASSERT(sizeof(mpx_heap_shared_t) == 64 + 192 + 960, "layout 1");

#endif
