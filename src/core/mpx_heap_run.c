/* mpx_heap_run.c - see mpx_heap.c: runs of units, free and owned.
 *
 * Layer: L4
 */
#include "mpx_heap_pvt.h"

#include "mpx_fault.h"

/* How many runs a search looks at for one with storage, when it knows one without. */
#define SEARCH_LENGTH 128

/* ---- Free runs ------------------------------------------------------------------------------- */

/* Joins a free run with those behind it, up to `end`, until it is long enough, or one is not free;
 * its length. Under the mutex. */
static uint32_t merge(const mpx_extent_t *extent, uint32_t index, uint32_t length, uint32_t end,
                      uint32_t enough)
{
    while (length < enough && index + length < end) {
        mpx_run_t *run = extent->runs + index, *next = run + length;
        uint32_t more = mpx_run_is_free(next) ? mpx_run_length(extent, index + length) : 0;
        if (more == 0) {
            break;
        }
        uint64_t meta = mpx_u64_load_relaxed(&next->meta);
        mpx_u64_store_relaxed(&next->meta, meta & ~MPX_RUN_HEAD);
        MPX_STEP(heap_beheaded);
        length += more;
        meta = mpx_u64_load_relaxed(&run->meta) & ~MPX_RUN_LENGTH;
        mpx_u64_store_relaxed(&run->meta, meta | length);
        MPX_STEP(heap_merged);
    }
    return length;
}

/* A free run that begins for certain there, as long as it is or `enough`. Under the mutex. */
static bool is_free_head(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t unit,
                         uint32_t enough, mpx_place_t *place)
{
    if (!mpx_extent_find(arena, heap, unit, place)) {
        return false;
    }
    mpx_run_t *run = place->extent.runs + place->index;
    if (!(mpx_u64_load_relaxed(&run->meta) & MPX_RUN_HEAD) || !mpx_run_is_free(run)) {
        return false;
    }
    place->length = mpx_run_length(&place->extent, place->index);
    if (place->length == 0) {
        return false;
    }
    place->length =
        merge(&place->extent, place->index, place->length, place->extent.length, enough);
    return true;
}

/* Whether the first units of a free run all have storage. */
static bool has_storage(const mpx_place_t *run, uint32_t units)
{
    return mpx_place_missing(&(mpx_place_t){run->extent, run->index, units}) == 0;
}

/* The run with storage that was freed last and has this length, or else the shortest longer one. */
static bool find_recent(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units,
                        mpx_place_t *best)
{
    uint32_t newest = mpx_u32_load_relaxed(&heap->frees);
    mpx_atomic_u32 *hint = NULL;
    for (uint32_t i = 1; i <= MPX_HEAP_RECENT && (hint == NULL || best->length != units); i++) {
        mpx_atomic_u32 *recent = &heap->recent[(newest - i) % MPX_HEAP_RECENT];
        uint32_t unit = mpx_u32_load_relaxed(recent);
        mpx_place_t place;
        if (unit == 0) {
            continue;
        }
        /* What was found must not be joined to another one. */
        if (!is_free_head(arena, heap, unit - 1, hint == NULL ? units : 0, &place)) {
            mpx_u32_store_relaxed(recent, 0);
        } else if (place.length >= units && has_storage(&place, units) &&
                   (hint == NULL || place.length < best->length)) {
            *best = place;
            hint = recent;
        }
    }
    if (hint != NULL) {
        mpx_u32_store_relaxed(hint, 0);
    }
    return hint != NULL;
}

/* A search of all runs, from the rover on. */
typedef struct {
    uint32_t units;
    uint32_t seen; /* runs */
    bool found;
    bool has_storage;
    mpx_place_t place; /* what was found */
    uint32_t end;      /* the unit where it ended */
} search_t;

/* How far a run may be joined with others: what was found must not be. */
static uint32_t end_of_merge(const search_t *search, const mpx_extent_t *extent, uint32_t index)
{
    bool is_before =
        search->found && search->place.extent.first == extent->first && search->place.index > index;
    return is_before ? search->place.index : extent->length;
}

/* Looks at the runs that begin in [index, end), the first of which does; true: enough. */
static bool search_runs(search_t *search, const mpx_extent_t *extent, uint32_t index, uint32_t end)
{
    while (index < end) {
        mpx_run_t *run = extent->runs + index;
        uint32_t length = mpx_run_length(extent, index);
        if (length == 0) {
            break; /* damaged: the rest is not used */
        }
        if (mpx_run_is_free(run)) {
            length =
                merge(extent, index, length, end_of_merge(search, extent, index), search->units);
            mpx_place_t place = {*extent, index, length};
            bool stored = length >= search->units && has_storage(&place, search->units);
            if (length >= search->units && (!search->found || stored)) {
                search->found = true;
                search->has_storage = stored;
                search->place = place;
            }
        }
        search->seen++;
        search->end = extent->first + index;
        if (search->found && (search->has_storage || search->seen >= SEARCH_LENGTH)) {
            return true;
        }
        index += length;
    }
    return false;
}

static bool find_from_rover(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units,
                            mpx_place_t *found)
{
    search_t search = {.units = units};
    uint32_t count = mpx_heap_extents(heap), rover = mpx_u32_load_relaxed(&heap->rover);
    uint32_t first = 0, start = 0;
    mpx_place_t place;
    if (mpx_extent_find(arena, heap, rover, &place) &&
        (mpx_u64_load_relaxed(&place.extent.runs[place.index].meta) & MPX_RUN_HEAD)) {
        start = place.index;
        while (first + 1 < count &&
               mpx_u32_load_relaxed(&heap->extent[first].first) != place.extent.first) {
            first++;
        }
    }
    for (uint32_t i = 0; i <= count; i++) {
        if (count == 0 || !mpx_extent_at(arena, heap, (first + i) % count, &place.extent)) {
            continue;
        }
        uint32_t length = place.extent.length, middle = start < length ? start : length;
        if (search_runs(&search, &place.extent, i == 0 ? middle : 0,
                        i == count ? middle : length)) {
            break;
        }
    }
    mpx_u32_store_relaxed(&heap->rover, search.end);
    *found = search.place;
    return search.found;
}

bool mpx_run_find(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units, mpx_place_t *place)
{
    return find_recent(arena, heap, units, place) || find_from_rover(arena, heap, units, place);
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

static mpx_block_t block_of(uint32_t generation, uint32_t unit)
{
    return (uint64_t)generation << 32 | (unit + 1);
}

void mpx_heap_remember(mpx_heap_shared_t *heap, uint32_t unit)
{
    uint32_t next = mpx_u32_fetch_add_relaxed(&heap->frees, 1);
    mpx_u32_store_relaxed(&heap->recent[next % MPX_HEAP_RECENT], unit + 1);
}

mpx_block_t mpx_run_take(mpx_heap_shared_t *heap, mpx_place_t *place, uint32_t units,
                         mpx_heap_owner_t owner)
{
    mpx_run_t *run = place->extent.runs + place->index, *rest = run + units;
    uint32_t unit = place->extent.first + place->index;
    uint64_t meta = mpx_u64_load_relaxed(&run->meta), rest_meta = 0;
    bool splits = units < place->length;
    if (splits) {
        rest_meta = mpx_u64_load_relaxed(&rest->meta) & ~(MPX_RUN_LENGTH | MPX_RUN_HEAD);
        rest_meta |= place->length - units;
        mpx_u64_store_relaxed(&rest->meta, rest_meta);
        MPX_STEP(heap_rest);
    }
    uint32_t generation = mpx_generation_of(meta) + 1;
    meta &= MPX_RUN_TOUCHED | MPX_RUN_STORED;
    mpx_u64_store_relaxed(&run->meta, (uint64_t)generation << 32 | meta | MPX_RUN_HEAD | units);
    MPX_STEP(heap_split);
    if (splits) {
        mpx_u64_store_relaxed(&rest->meta, rest_meta | MPX_RUN_HEAD);
        MPX_STEP(heap_rest_headed);
        if (rest_meta & MPX_RUN_STORED) {
            mpx_heap_remember(heap, unit + units);
        }
    }
    mpx_u64_store_release(&run->owner, mpx_owner_word(owner, generation)); /* B6: with B7 */
    MPX_STEP(heap_taken);
    mpx_u64_store_relaxed(&heap->taken, mpx_u64_load_relaxed(&heap->taken) + units);
    mpx_u64_store_relaxed(&heap->made, mpx_u64_load_relaxed(&heap->made) + units);
    place->length = units;
    return block_of(generation, unit);
}

mpx_run_t *mpx_run_of(mpx_arena_t *arena, mpx_block_t block, mpx_place_t *place)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    uint32_t unit = (uint32_t)block - 1;
    if (heap == NULL || (uint32_t)block == 0 || !mpx_extent_find(arena, heap, unit, place)) {
        return NULL;
    }
    return place->extent.runs + place->index;
}

/* The whole generation is compared first; what of it is in the word, together with the owner. */
bool mpx_block_change_owner(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                            mpx_heap_owner_t to)
{
    mpx_place_t place;
    uint32_t generation = mpx_generation_of(block);
    mpx_run_t *run = mpx_run_of(arena, block, &place);
    if (run == NULL || mpx_generation_of(mpx_u64_load_relaxed(&run->meta)) != generation) {
        return false;
    }
    uint64_t before = mpx_owner_word(from, generation);
    uint64_t after = to == 0 ? 0 : mpx_owner_word(to, generation);
    return mpx_u64_cas_acq_rel(&run->owner, &before, after); /* B0: with B1; B6: with B7 */
}
