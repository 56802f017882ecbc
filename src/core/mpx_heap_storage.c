/* mpx_heap_storage.c - see mpx_heap.c: which units have storage, and giving it back.
 *
 * Layer: L4
 */
#include "mpx_heap_pvt.h"

#include "mpx_arena_pvt.h"
#include "mpx_fault.h"

/* So many units get storage at a time. */
#define PIECE 64

/* ---- Storage --------------------------------------------------------------------------------- */

static void set_flags(const mpx_extent_t *extent, uint32_t begin, uint32_t end, uint64_t clear,
                      uint64_t set)
{
    for (uint32_t index = begin; index < end; index++) {
        mpx_atomic_u64 *meta = &extent->runs[index].meta;
        mpx_u64_store_relaxed(meta, (mpx_u64_load_relaxed(meta) & ~clear) | set);
    }
}

/* The end of the units from `begin` on, up to `end`, that agree about the flag. */
static uint32_t end_of_same(const mpx_extent_t *extent, uint32_t begin, uint32_t end, uint64_t flag)
{
    uint32_t index = begin + 1;
    while (index < end && mpx_unit_has(extent, index, flag) == mpx_unit_has(extent, begin, flag)) {
        index++;
    }
    return index;
}

static int allocate(mpx_arena_t *arena, const mpx_extent_t *extent, uint32_t begin, uint32_t end)
{
    set_flags(extent, begin, end, 0, MPX_RUN_TOUCHED);
    MPX_STEP(heap_touched);
    int status =
        mpx_segment_allocate(&arena->segment, extent->at + (uint64_t)begin * MPX_BLOCK_UNIT,
                             (uint64_t)(end - begin) * MPX_BLOCK_UNIT);
    if (status == 0) {
        MPX_STEP(heap_allocated);
        set_flags(extent, begin, end, 0, MPX_RUN_STORED);
    }
    return status;
}

static void deallocate(mpx_arena_t *arena, const mpx_extent_t *extent, uint32_t begin, uint32_t end)
{
    set_flags(extent, begin, end, MPX_RUN_STORED, 0);
    MPX_STEP(heap_unstored);
    int status =
        mpx_segment_deallocate(&arena->segment, extent->at + (uint64_t)begin * MPX_BLOCK_UNIT,
                               (uint64_t)(end - begin) * MPX_BLOCK_UNIT);
    if (status == 0) {
        MPX_STEP(heap_punched);
        set_flags(extent, begin, end, MPX_RUN_TOUCHED, 0);
    }
}

uint32_t mpx_place_missing(const mpx_place_t *place)
{
    uint32_t missing = 0;
    for (uint32_t index = place->index; index < place->index + place->length; index++) {
        missing += !mpx_unit_has(&place->extent, index, MPX_RUN_STORED);
    }
    return missing;
}

/* Piece by piece, each after a look whether the file still is ours. What was given to a block that
 * cannot have all is taken back. */
int mpx_place_store(mpx_arena_t *arena, const mpx_place_t *place)
{
    const mpx_extent_t *extent = &place->extent;
    uint32_t begin = place->index, end = place->index + place->length, first = end;
    int status = 0;
    while (status == 0 && begin < end) {
        uint32_t next = end_of_same(extent, begin, end, MPX_RUN_STORED);
        if (!mpx_unit_has(extent, begin, MPX_RUN_STORED)) {
            first = first == end ? begin : first;
            next = next - begin > PIECE ? begin + PIECE : next;
            status = allocate(arena, extent, begin, next);
        }
        begin = next;
    }
    if (status < 0) {
        deallocate(arena, extent, first, begin);
    }
    return status;
}

/* ---- Statistics ------------------------------------------------------------------------------ */

void mpx_heap_stats(mpx_arena_t *arena, mpx_heap_stats_t *stats)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_extent_t extent;
    *stats = (mpx_heap_stats_t){0};
    if (heap == NULL) {
        return;
    }
    stats->extents = mpx_heap_extents(heap);
    for (uint32_t number = 0; number < stats->extents; number++) {
        if (!mpx_extent_at(arena, heap, number, &extent)) {
            continue;
        }
        stats->size += (uint64_t)extent.length * MPX_BLOCK_UNIT;
        uint32_t owned_until = 0;
        for (uint32_t index = 0; index < extent.length; index++) {
            if (!mpx_run_is_free(extent.runs + index)) {
                uint32_t length = mpx_run_length(&extent, index);
                stats->owned += (uint64_t)length * MPX_BLOCK_UNIT;
                owned_until = index + length;
            }
            if (index >= owned_until && mpx_unit_has(&extent, index, MPX_RUN_TOUCHED)) {
                stats->free_stored += MPX_BLOCK_UNIT;
            }
        }
    }
}

uint64_t mpx_heap_owned_by(mpx_arena_t *arena, mpx_heap_owner_t owner)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_extent_t extent;
    uint64_t units = 0;
    for (uint32_t number = 0; heap != NULL && number < mpx_heap_extents(heap); number++) {
        uint32_t length = mpx_extent_at(arena, heap, number, &extent) ? extent.length : 0;
        for (uint32_t index = 0; index < length; index++) {
            uint64_t word = mpx_u64_load_relaxed(&extent.runs[index].owner);
            units += mpx_owner_in(word) == owner ? mpx_run_length(&extent, index) : 0;
        }
    }
    return units * MPX_BLOCK_UNIT;
}

/* ---- Trimming -------------------------------------------------------------------------------- */

static bool is_recent(mpx_heap_shared_t *heap, uint32_t unit)
{
    for (uint32_t i = 0; i < MPX_HEAP_RECENT; i++) {
        if (mpx_u32_load_relaxed(&heap->recent[i]) == unit + 1) {
            return true;
        }
    }
    return false;
}

/* Whether any unit of the run may have storage. */
static bool is_touched(const mpx_place_t *place)
{
    uint32_t end = place->index + place->length;
    return mpx_unit_has(&place->extent, place->index, MPX_RUN_TOUCHED) ||
           end_of_same(&place->extent, place->index, end, MPX_RUN_TOUCHED) < end;
}

/* For who has the arena's mutex, and may have been stopped: another trim will do. */
#define PATIENCE (10 * MPX_NANOS_PER_MILLI)

/* A trim of one extent. */
typedef struct {
    mpx_heap_owner_t own;
    uint32_t number;
    uint32_t next;     /* where it goes on: a run began there */
    bool recent_too;   /* also the runs that will be used next */
    mpx_place_t place; /* the run that was claimed */
    mpx_block_t block;
} trim_t;

/* Claims the next free run that may have storage. Where none begins at `next` any more, the walk is
 * from the extent's begin. */
static bool claim_touched(mpx_arena_t *arena, mpx_heap_shared_t *heap, trim_t *trim)
{
    mpx_place_t *place = &trim->place;
    bool claimed = false;
    if (mpx_heap_lock_until(arena, mpx_os_now() + PATIENCE) < 0) {
        return false;
    }
    if (mpx_extent_at(arena, heap, trim->number, &place->extent) &&
        trim->next < place->extent.length) {
        place->index = mpx_unit_has(&place->extent, trim->next, MPX_RUN_HEAD) ? trim->next : 0;
        while (place->index < place->extent.length) {
            place->length = mpx_run_length(&place->extent, place->index);
            claimed = place->length != 0 && place->index >= trim->next &&
                      mpx_run_is_free(place->extent.runs + place->index) && is_touched(place) &&
                      (trim->recent_too || !is_recent(heap, place->extent.first + place->index));
            if (claimed || place->length == 0) {
                break;
            }
            place->index += place->length;
        }
    }
    if (claimed) {
        trim->block = mpx_run_take(heap, place, place->length, trim->own);
        trim->next = place->index + place->length;
    }
    mpx_heap_unlock(arena);
    return claimed;
}

/* Takes the storage of so many units of a claimed run, at most; returns how many. */
static uint64_t punch(mpx_arena_t *arena, const mpx_place_t *place, uint64_t most)
{
    const mpx_extent_t *extent = &place->extent;
    uint32_t begin = place->index, end = place->index + place->length;
    uint64_t punched = 0;
    while (begin < end && punched < most) {
        uint32_t next = end_of_same(extent, begin, end, MPX_RUN_TOUCHED);
        if (mpx_unit_has(extent, begin, MPX_RUN_TOUCHED)) {
            next = most - punched < next - begin ? begin + (uint32_t)(most - punched) : next;
            punched += next - begin;
            deallocate(arena, extent, begin, next);
        }
        begin = next;
    }
    return punched;
}

/* Gives the storage of so many units back. The longest extents come first, and the runs that will
 * be used next come last. */
static void trim_units(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint64_t excess)
{
    trim_t trim;
    if (mpx_segment_fd(&arena->segment) < 0 || mpx_heap_own(arena, &trim.own) < 0) {
        return; /* a block whose storage cannot be taken would have to be given it again */
    }
    for (int pass = 0; pass < 2; pass++) {
        trim.recent_too = pass == 1;
        for (trim.number = mpx_heap_extents(heap); trim.number-- > 0;) {
            trim.next = 0;
            while (excess > 0 && claim_touched(arena, heap, &trim)) {
                excess -= punch(arena, &trim.place, excess);
                (void)mpx_block_change_owner(arena, trim.block, trim.own, 0);
            }
        }
    }
}

void mpx_heap_trim(mpx_arena_t *arena, size_t keep)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_heap_stats_t stats;
    mpx_heap_stats(arena, &stats);
    if (heap != NULL && stats.free_stored > keep) {
        trim_units(arena, heap, (stats.free_stored - keep + MPX_BLOCK_UNIT - 1) / MPX_BLOCK_UNIT);
    }
}
