/* mpx_heap_extent.c - see mpx_heap_pvt.h: the directory of extents, and what is read from it.
 *
 * Layer: L4
 */
#include "mpx_heap_pvt.h"

#include "mpx_arena_pvt.h"
#include "mpx_fault.h"

#include <errno.h>

#define FIRST_EXTENT UINT32_C(16)

/* ---- The arena's mutex ----------------------------------------------------------------------- */

int mpx_heap_lock_until(mpx_arena_t *arena, int64_t deadline)
{
    mpx_arena_enter();
    int status = mpx_arena_lock_until(arena, deadline);
    if (status < 0) {
        mpx_arena_exit();
    }
    return status;
}

void mpx_heap_lock(mpx_arena_t *arena)
{
    mpx_arena_enter();
    mpx_arena_lock(arena);
}

void mpx_heap_unlock(mpx_arena_t *arena)
{
    mpx_arena_unlock(arena);
    mpx_arena_exit();
}

/* ---- Extents --------------------------------------------------------------------------------- */

mpx_heap_shared_t *mpx_heap_of(mpx_arena_t *arena)
{
    uint32_t unit = mpx_u32_load_acquire(&arena->shared->heap); /* B3: with B2 */
    return unit == 0 ? NULL : mpx_arena_unit(arena, unit, sizeof(mpx_heap_shared_t));
}

uint32_t mpx_heap_extents(mpx_heap_shared_t *heap)
{
    uint32_t count = mpx_u32_load_acquire(&heap->extents); /* B5: with B4 */
    return count < MPX_HEAP_EXTENTS ? count : MPX_HEAP_EXTENTS;
}

/* Where the units begin whose table that is: `reserve` takes both at once, behind the directory. So
 * an entry that is damaged leads nowhere, and not to the arena's own words. */
static uint64_t units_behind(uint32_t table, uint32_t length)
{
    uint64_t end = (uint64_t)table * MPX_UNIT + (uint64_t)length * sizeof(mpx_run_t);
    return (end + MPX_BLOCK_UNIT - 1) / MPX_BLOCK_UNIT * MPX_BLOCK_UNIT;
}

bool mpx_extent_at(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t number,
                   mpx_extent_t *extent)
{
    mpx_extent_entry_t *entry = &heap->extent[number];
    uint32_t table = mpx_u32_load_relaxed(&entry->table);
    extent->at = (uint64_t)mpx_u32_load_relaxed(&entry->at) * MPX_UNIT;
    extent->first = mpx_u32_load_relaxed(&entry->first);
    extent->length = mpx_u32_load_relaxed(&entry->length);
    extent->runs = mpx_arena_unit(arena, table, (uint64_t)extent->length * sizeof(mpx_run_t));
    return extent->runs != NULL && table > mpx_u32_load_relaxed(&arena->shared->heap) &&
           extent->at == units_behind(table, extent->length);
}

bool mpx_extent_find(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t unit, mpx_place_t *place)
{
    for (uint32_t number = mpx_heap_extents(heap); number-- > 0;) {
        mpx_extent_entry_t *entry = &heap->extent[number];
        if (unit - mpx_u32_load_relaxed(&entry->first) < mpx_u32_load_relaxed(&entry->length)) {
            bool found = mpx_extent_at(arena, heap, number, &place->extent);
            place->index = unit - place->extent.first;
            return found && place->index < place->extent.length;
        }
    }
    return false;
}

uint32_t mpx_run_length(const mpx_extent_t *extent, uint32_t index)
{
    uint64_t length = mpx_u64_load_relaxed(&extent->runs[index].meta) & MPX_RUN_LENGTH;
    return length <= extent->length - index ? (uint32_t)length : 0;
}

void *mpx_place_address(mpx_arena_t *arena, const mpx_place_t *place)
{
    return mpx_arena_bytes(arena, place->extent.at + (uint64_t)place->index * MPX_BLOCK_UNIT,
                           (uint64_t)place->length * MPX_BLOCK_UNIT);
}

/* Adds an extent. Under the mutex; on failure what it took is handed out again. */
static int reserve(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t first, uint32_t length)
{
    uint32_t table, at, number = mpx_heap_extents(heap);
    if (first >= UINT32_MAX - length) {
        return -ENOSPC; /* numbers end */
    }
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    int status = mpx_arena_take_units(arena, (uint64_t)length * sizeof(mpx_run_t), &table);
    if (status == 0) {
        status =
            mpx_arena_take_sparse(arena, (uint64_t)length * MPX_BLOCK_UNIT, MPX_BLOCK_UNIT, &at);
    }
    mpx_run_t *runs = status < 0 ? NULL : mpx_arena_unit(arena, table, sizeof(mpx_run_t));
    if (runs == NULL) {
        mpx_u64_store_relaxed(&arena->shared->used, used);
        return status < 0 ? status : -ENOMEM;
    }
    mpx_u64_store_relaxed(&runs->meta, MPX_RUN_HEAD | length);
    mpx_extent_entry_t *entry = &heap->extent[number];
    mpx_u32_store_relaxed(&entry->table, table);
    mpx_u32_store_relaxed(&entry->at, at);
    mpx_u32_store_relaxed(&entry->first, first);
    MPX_STEP(heap_entry);
    mpx_u32_store_relaxed(&entry->length, length);
    MPX_STEP(heap_extent);
    mpx_u32_store_release(&heap->extents, number + 1); /* B4: with B5 */
    MPX_STEP(heap_extended);
    return 0;
}

/* Twice as long as the one before, or as the request needs; shorter where that is not to be had. */
int mpx_heap_extend(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units)
{
    uint32_t number = mpx_heap_extents(heap), first = 0, wanted = FIRST_EXTENT;
    if (number == MPX_HEAP_EXTENTS) {
        return -ENOSPC;
    }
    if (number > 0) {
        mpx_extent_t last;
        if (!mpx_extent_at(arena, heap, number - 1, &last)) {
            int status = mpx_segment_refresh(&arena->segment);
            return status < 0 ? status : -EPROTO; /* where one cannot be mapped, no other could */
        }
        first = last.first + last.length;
        wanted = last.length > MPX_RUN_LENGTH / 2 ? (uint32_t)MPX_RUN_LENGTH : 2 * last.length;
    }
    int status = -ENOSPC;
    for (; status < 0 && wanted > units; wanted /= 2) {
        status = reserve(arena, heap, first, wanted);
    }
    return status < 0 ? reserve(arena, heap, first, units) : 0;
}

int mpx_heap_make(mpx_arena_t *arena, mpx_heap_shared_t **heap)
{
    uint32_t unit;
    *heap = mpx_heap_of(arena);
    if (*heap != NULL) {
        return 0;
    }
    if (mpx_u32_load_relaxed(&arena->shared->heap) != 0) {
        return -ENOMEM; /* there, but it cannot be mapped */
    }
    int status = mpx_arena_take_units(arena, sizeof(**heap), &unit);
    if (status == 0) {
        mpx_u32_store_release(&arena->shared->heap, unit); /* B2: with B3 */
        *heap = mpx_heap_of(arena);
        status = *heap == NULL ? -ENOMEM : 0;
    }
    return status;
}
