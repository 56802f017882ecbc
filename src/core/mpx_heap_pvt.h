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
    mpx_atomic_u64 taken; /* units made blocks since the heap was settled */
    mpx_atomic_u64 peak;  /* units owned at once, lately */
    mpx_atomic_u64 made;  /* units made blocks, ever */
    /* Hints: see mpx_heap_ebb.c. */
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 flowed; /* bytes freed since the last ebb */
    mpx_atomic_u64 kept;                               /* bytes, for who goes on */
    mpx_atomic_u64 ebbed_at;                           /* times */
    mpx_atomic_u64 looked_at;
    mpx_atomic_u64 dropped;    /* bytes of small queues since the last look because of these */
    mpx_atomic_u64 dropped_at; /* what had been made then */
    mpx_atomic_u64 allowance;  /* bytes that may be given storage without a look at the machine */
    mpx_atomic_u64 allowed_at;
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u32 recent[MPX_HEAP_RECENT]; /* units + 1, or anything */
    mpx_atomic_u32 frees; /* the next place in `recent` */
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_extent_entry_t extent[MPX_HEAP_EXTENTS];
} mpx_heap_shared_t;

MPX_STATIC_ASSERT(sizeof(mpx_run_t) == 16, "layout 1");
MPX_STATIC_ASSERT(sizeof(mpx_heap_shared_t) == 128 + 192 + 960, "layout 1");

/* An extent as this process has verified it. */
typedef struct {
    mpx_run_t *runs;
    uint64_t at; /* offset in the segment */
    uint32_t first;
    uint32_t length;
} mpx_extent_t;

/* A run in an extent. */
typedef struct {
    mpx_extent_t extent;
    uint32_t index;
    uint32_t length;
} mpx_place_t;

/* ---- Words ----------------------------------------------------------------------------------- */

/* Of a run's meta, or of a block. */
static inline uint32_t mpx_generation_of(uint64_t word)
{
    return (uint32_t)(word >> 32);
}

/* The word of a block with that owner: no other owner's, and no former block's. */
static inline uint64_t mpx_owner_word(mpx_heap_owner_t owner, uint32_t generation)
{
    return owner | (uint64_t)generation << 48;
}

static inline mpx_heap_owner_t mpx_owner_in(uint64_t word)
{
    return word & ((UINT64_C(1) << 48) - 1);
}

static inline bool mpx_run_is_free(mpx_run_t *run)
{
    return mpx_u64_load_acquire(&run->owner) == 0; /* B1: with B0 */
}

static inline bool mpx_unit_has(const mpx_extent_t *extent, uint32_t index, uint64_t flag)
{
    return (mpx_u64_load_relaxed(&extent->runs[index].meta) & flag) != 0;
}

/* ---- mpx_heap_extent.c ----------------------------------------------------------------------- */

/* The arena's mutex. */
void mpx_heap_lock(mpx_arena_t *arena);
MPX_NODISCARD int mpx_heap_lock_until(mpx_arena_t *arena, int64_t deadline);
void mpx_heap_unlock(mpx_arena_t *arena);

/* NULL where there is none yet, or it cannot be mapped. */
mpx_heap_shared_t *mpx_heap_of(mpx_arena_t *arena);

/* The same, and makes it where there is none. Under the mutex. */
MPX_NODISCARD int mpx_heap_make(mpx_arena_t *arena, mpx_heap_shared_t **heap);

uint32_t mpx_heap_extents(mpx_heap_shared_t *heap);

/* Adds an extent in which there is room for so many units. Under the mutex. */
MPX_NODISCARD int mpx_heap_extend(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units);

/* False where it cannot be mapped, or is none. */
bool mpx_extent_at(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t number,
                   mpx_extent_t *extent);

/* The extent with the unit, where a run may begin; its length is not looked at. */
bool mpx_extent_find(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t unit,
                     mpx_place_t *place);

/* The length of the run that begins there; 0 where that cannot be. */
uint32_t mpx_run_length(const mpx_extent_t *extent, uint32_t index);

/* NULL where it cannot be mapped. */
void *mpx_place_address(mpx_arena_t *arena, const mpx_place_t *place);

/* ---- mpx_heap_run.c -------------------------------------------------------------------------- */

/* Finds a free run of so many units or more. Under the mutex. */
bool mpx_run_find(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units, mpx_place_t *place);

/* Makes the first units of a free run a block. Under the mutex. */
mpx_block_t mpx_run_take(mpx_heap_shared_t *heap, mpx_place_t *place, uint32_t units,
                         mpx_heap_owner_t owner);

/* The run whose block that is, or was; NULL where there is none. */
mpx_run_t *mpx_run_of(mpx_arena_t *arena, mpx_block_t block, mpx_place_t *place);

/* Changes the owner of a block; 0 frees it. False: it was not `from`'s. */
bool mpx_block_change_owner(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                            mpx_heap_owner_t to);

/* The run that begins with the unit is to be used soon. */
void mpx_heap_remember(mpx_heap_shared_t *heap, uint32_t unit);

/* ---- mpx_heap_storage.c ---------------------------------------------------------------------- */

/* How many units of a block have no storage. */
uint32_t mpx_place_missing(const mpx_place_t *place);

/* Gives them some, or none of them. By who has made the block, and has not handed it out yet. */
MPX_NODISCARD int mpx_place_store(mpx_arena_t *arena, const mpx_place_t *place);

#endif
