/* mpx_heap.c - see mpx_heap.h.
 *
 * Layer: L4
 *
 * The runs of an extent are found by walking: each one's length leads to the next. What is said of
 * a run is said in its first entry; only there can an owner be other than 0.
 *
 * Who changes what:
 *
 *   a free run's meta     under the arena's mutex
 *   an owned run's meta   its maker, before the block is handed out; a trim, of what it has claimed
 *   owner, from 0         under the arena's mutex, the last step of making a block
 *   owner, to 0 or other  anyone, by one exchange of exactly the word that it expects: the owner's,
 *                         with bits of the block's generation
 *
 * What a process leaves that is killed between two stores:
 *
 *   take     the rest's length           in the middle of a free run: means nothing
 *            this run's length, new      two free runs; the second one is found by walking alone
 *            the rest is a head          two free runs
 *            the owner                   a block of somebody's, who is dead or will use or free it
 *   merge    the second is no head       two free runs; the second one is found by walking alone
 *            the first one's length      one free run
 *   extend   units that are nobody's     (mpx_arena_take_units) their address space is lost
 *            an entry of the directory   not counted: written anew by the next one
 *   storage  "touched"                   perhaps no storage: a trim will look there for nothing
 *            allocated, "stored"         storage
 *   trim     not "stored"                some storage, which the next maker allocates anew
 *            punched, not "touched"      none
 *
 * Hints (`rover`, `recent`) are written by anyone at any time, and may lead anywhere: what has no
 * MPX_RUN_HEAD, or an owner, is not what they promise. That bit is set only after a walk leads to
 * the entry, and cleared before none does.
 *
 * Numbers that are read from shared memory are compared with what this process has mapped before
 * they lead to memory, and a walk makes at most as many steps as the extent has units. So a damaged
 * heap hands out damaged blocks, at worst.
 */
#include "mpx_heap_pvt.h"

#include "mpx_arena_pvt.h"
#include "mpx_fault.h"

#include <errno.h>

#define UNITS_PER_BLOCK_UNIT (MPX_BLOCK_UNIT / MPX_UNIT)
#define FIRST_EXTENT         UINT32_C(16)
#define FREE_SHARE           4

/* How many runs a search looks at for one with storage, when it knows one without. */
#define SEARCH_LENGTH 128

/* An extent as this process has verified it. */
typedef struct {
    mpx_run_t *runs;
    uint64_t at; /* offset in the segment */
    uint32_t first;
    uint32_t length;
} extent_t;

/* A run in an extent. */
typedef struct {
    extent_t extent;
    uint32_t index;
    uint32_t length;
} place_t;

/* ---- Words ----------------------------------------------------------------------------------- */

static uint32_t generation_of(uint64_t meta)
{
    return (uint32_t)(meta >> 32);
}

/* The word of a block with that owner: no other owner's, and no former block's. */
static uint64_t owner_word(mpx_heap_owner_t owner, uint32_t generation)
{
    return owner | (uint64_t)generation << 48;
}

static mpx_heap_owner_t owner_in(uint64_t word)
{
    return word & ((UINT64_C(1) << 48) - 1);
}

static mpx_block_t block_of(uint32_t generation, uint32_t unit)
{
    return (uint64_t)generation << 32 | (unit + 1);
}

static bool is_free(mpx_run_t *run)
{
    return mpx_u64_load_acquire(&run->owner) == 0; /* B1: with B0 */
}

/* ---- Extents --------------------------------------------------------------------------------- */

static mpx_heap_shared_t *heap_of(mpx_arena_t *arena)
{
    uint32_t unit = mpx_u32_load_acquire(&arena->shared->heap); /* B3: with B2 */
    return unit == 0 ? NULL : mpx_arena_unit(arena, unit, sizeof(mpx_heap_shared_t));
}

static uint32_t extents(mpx_heap_shared_t *heap)
{
    uint32_t count = mpx_u32_load_acquire(&heap->extents); /* B5: with B4 */
    return count < MPX_HEAP_EXTENTS ? count : MPX_HEAP_EXTENTS;
}

/* False where it cannot be mapped, or is none. */
static bool extent_at(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t number,
                      extent_t *extent)
{
    mpx_extent_entry_t *entry = &heap->extent[number];
    extent->at = (uint64_t)mpx_u32_load_relaxed(&entry->at) * MPX_UNIT;
    extent->first = mpx_u32_load_relaxed(&entry->first);
    extent->length = mpx_u32_load_relaxed(&entry->length);
    extent->runs = mpx_arena_unit(arena, mpx_u32_load_relaxed(&entry->table),
                                  (uint64_t)extent->length * sizeof(mpx_run_t));
    return extent->runs != NULL;
}

/* The extent with the unit, which is where a run may begin. */
static bool find_extent(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t unit, place_t *place)
{
    for (uint32_t number = extents(heap); number-- > 0;) {
        mpx_extent_entry_t *entry = &heap->extent[number];
        if (unit - mpx_u32_load_relaxed(&entry->first) < mpx_u32_load_relaxed(&entry->length)) {
            bool found = extent_at(arena, heap, number, &place->extent);
            place->index = unit - place->extent.first;
            return found && place->index < place->extent.length;
        }
    }
    return false;
}

/* The length of the run that begins there; 0 where that cannot be. */
static uint32_t run_length(const extent_t *extent, uint32_t index)
{
    uint64_t length = mpx_u64_load_relaxed(&extent->runs[index].meta) & MPX_RUN_LENGTH;
    return length <= extent->length - index ? (uint32_t)length : 0;
}

static void *address_of(mpx_arena_t *arena, const place_t *place)
{
    return mpx_arena_bytes(arena, place->extent.at + (uint64_t)place->index * MPX_BLOCK_UNIT,
                           (uint64_t)place->length * MPX_BLOCK_UNIT);
}

/* Adds an extent. Under the mutex; on failure what it took is handed out again. */
static int reserve(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t first, uint32_t length)
{
    uint32_t table, at, number = extents(heap);
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

/* Adds an extent in which there is room for so many units. */
static int extend(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units)
{
    uint32_t number = extents(heap), first = 0, last = FIRST_EXTENT / 2;
    if (number == MPX_HEAP_EXTENTS) {
        return -ENOSPC;
    }
    if (number > 0) {
        last = mpx_u32_load_relaxed(&heap->extent[number - 1].length);
        first = mpx_u32_load_relaxed(&heap->extent[number - 1].first) + last;
    }
    uint32_t most = MPX_RUN_LENGTH;
    uint32_t wanted = last > most / 2 ? most : 2 * last;
    if (UINT32_MAX - 1 - first < units) {
        return -ENOSPC;
    }
    int status = units < wanted ? -ENOSPC : 0;
    if (units < wanted && UINT32_MAX - 1 - first >= wanted) {
        status = reserve(arena, heap, first, wanted);
        if (status == 0) {
            return 0;
        }
    }
    return reserve(arena, heap, first, units);
}

/* ---- Free runs ------------------------------------------------------------------------------- */

/* Joins a free run with those behind it until it is long enough, or one is not free; its length.
 * Under the mutex. */
static uint32_t merge(const extent_t *extent, uint32_t index, uint32_t length, uint32_t enough)
{
    while (length < enough && index + length < extent->length) {
        mpx_run_t *run = extent->runs + index, *next = run + length;
        uint32_t more = is_free(next) ? run_length(extent, index + length) : 0;
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
                         uint32_t enough, place_t *place)
{
    if (!find_extent(arena, heap, unit, place)) {
        return false;
    }
    mpx_run_t *run = place->extent.runs + place->index;
    if (!(mpx_u64_load_relaxed(&run->meta) & MPX_RUN_HEAD) || !is_free(run)) {
        return false;
    }
    place->length = run_length(&place->extent, place->index);
    if (place->length == 0) {
        return false;
    }
    place->length = merge(&place->extent, place->index, place->length, enough);
    return true;
}

/* The run freed last that has this length, or else the shortest that is longer. */
static bool find_recent(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units, place_t *best)
{
    uint32_t newest = mpx_u32_load_relaxed(&heap->frees);
    mpx_atomic_u32 *hint = NULL;
    for (uint32_t i = 1; i <= MPX_HEAP_RECENT && (hint == NULL || best->length != units); i++) {
        mpx_atomic_u32 *recent = &heap->recent[(newest - i) % MPX_HEAP_RECENT];
        uint32_t unit = mpx_u32_load_relaxed(recent);
        place_t place;
        if (unit == 0) {
            continue;
        }
        /* What was found must not be joined to another one. */
        if (!is_free_head(arena, heap, unit - 1, hint == NULL ? units : 0, &place)) {
            mpx_u32_store_relaxed(recent, 0);
        } else if (place.length >= units && (hint == NULL || place.length < best->length)) {
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
    place_t place; /* what was found */
    uint32_t end;  /* the unit where it ended */
} search_t;

/* Looks at the runs that begin in [index, end), the first of which does; true: enough. */
static bool search_runs(search_t *search, const extent_t *extent, uint32_t index, uint32_t end)
{
    while (index < end) {
        mpx_run_t *run = extent->runs + index;
        uint32_t length = run_length(extent, index);
        if (length == 0) {
            break; /* damaged: the rest is not used */
        }
        if (is_free(run)) {
            /* What was found must not be joined to another one. */
            length = merge(extent, index, length, search->found ? 0 : search->units);
            bool stored = (mpx_u64_load_relaxed(&run->meta) & MPX_RUN_STORED) != 0;
            if (length >= search->units && (!search->found || stored)) {
                search->found = true;
                search->has_storage = stored;
                search->place = (place_t){*extent, index, length};
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
                            place_t *found)
{
    search_t search = {.units = units};
    uint32_t count = extents(heap), rover = mpx_u32_load_relaxed(&heap->rover);
    uint32_t first = 0, start = 0;
    place_t place;
    if (find_extent(arena, heap, rover, &place) &&
        (mpx_u64_load_relaxed(&place.extent.runs[place.index].meta) & MPX_RUN_HEAD)) {
        start = place.index;
        while (first + 1 < count &&
               mpx_u32_load_relaxed(&heap->extent[first].first) != place.extent.first) {
            first++;
        }
    }
    for (uint32_t i = 0; i <= count; i++) {
        if (count == 0 || !extent_at(arena, heap, (first + i) % count, &place.extent)) {
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

/* ---- Blocks ---------------------------------------------------------------------------------- */

static void remember(mpx_heap_shared_t *heap, uint32_t unit)
{
    uint32_t next = mpx_u32_fetch_add_relaxed(&heap->frees, 1);
    mpx_u32_store_relaxed(&heap->recent[next % MPX_HEAP_RECENT], unit + 1);
}

/* Makes the first units of a free run a block. Under the mutex. */
static mpx_block_t take(mpx_heap_shared_t *heap, place_t *place, uint32_t units,
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
    uint32_t generation = generation_of(meta) + 1;
    meta &= MPX_RUN_TOUCHED | MPX_RUN_STORED;
    mpx_u64_store_relaxed(&run->meta, (uint64_t)generation << 32 | meta | MPX_RUN_HEAD | units);
    MPX_STEP(heap_split);
    if (splits) {
        mpx_u64_store_relaxed(&rest->meta, rest_meta | MPX_RUN_HEAD);
        MPX_STEP(heap_rest_headed);
        if (rest_meta & MPX_RUN_STORED) {
            remember(heap, unit + units);
        }
    }
    mpx_u64_store_release(&run->owner, owner_word(owner, generation)); /* B6: with B7 */
    MPX_STEP(heap_taken);
    place->length = units;
    return block_of(generation, unit);
}

/* The run whose block that is, or was. */
static mpx_run_t *run_of(mpx_arena_t *arena, mpx_block_t block, place_t *place)
{
    mpx_heap_shared_t *heap = heap_of(arena);
    uint32_t unit = (uint32_t)block - 1;
    if (heap == NULL || (uint32_t)block == 0 || !find_extent(arena, heap, unit, place)) {
        return NULL;
    }
    return place->extent.runs + place->index;
}

/* The whole generation is compared first; what of it is in the word, together with the owner. */
static bool change_owner(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                         mpx_heap_owner_t to)
{
    place_t place;
    uint32_t generation = generation_of(block);
    mpx_run_t *run = run_of(arena, block, &place);
    if (run == NULL || generation_of(mpx_u64_load_relaxed(&run->meta)) != generation) {
        return false;
    }
    uint64_t before = owner_word(from, generation);
    uint64_t after = to == 0 ? 0 : owner_word(to, generation);
    return mpx_u64_cas_acq_rel(&run->owner, &before, after); /* B0: with B1; B6: with B7 */
}

bool mpx_heap_give(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                   mpx_heap_owner_t to)
{
    bool given = from != 0 && to != 0 && change_owner(arena, block, from, to);
    MPX_STEP(heap_given);
    return given;
}

bool mpx_heap_free(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t owner)
{
    bool freed = owner != 0 && change_owner(arena, block, owner, 0);
    MPX_STEP(heap_freed);
    if (freed) {
        mpx_heap_shared_t *heap = heap_of(arena);
        if (heap != NULL) {
            remember(heap, (uint32_t)block - 1);
        }
    }
    return freed;
}

void *mpx_heap_at(mpx_arena_t *arena, mpx_block_t block, size_t *size)
{
    place_t place;
    uint32_t generation = generation_of(block);
    mpx_run_t *run = run_of(arena, block, &place);
    uint64_t owner = run == NULL ? 0 : mpx_u64_load_acquire(&run->owner); /* B7: with B6 */
    if (owner == 0 || owner_word(owner_in(owner), generation) != owner ||
        generation_of(mpx_u64_load_relaxed(&run->meta)) != generation) {
        return NULL;
    }
    place.length = run_length(&place.extent, place.index);
    *size = (size_t)place.length * MPX_BLOCK_UNIT;
    return place.length == 0 ? NULL : address_of(arena, &place);
}

/* ---- Owners ---------------------------------------------------------------------------------- */

static int make_owner(mpx_arena_t *arena, mpx_slot_t slot, mpx_heap_owner_t *owner)
{
    mpx_atomic_u64 *room = mpx_slot_at(arena, slot);
    if (room == NULL) {
        return -ENOMEM;
    }
    uint32_t key = mpx_u32_fetch_add_relaxed(&arena->shared->keys, 1) % MPX_HEAP_KEYS + 1;
    mpx_u64_store_relaxed(room, MPX_HEAP_OWNER_MAGIC << 32 | key);
    *owner = (uint64_t)key << 32 | slot;
    return 0;
}

int mpx_heap_owner_new(mpx_arena_t *arena, mpx_slot_t slot, mpx_heap_owner_t *owner)
{
    return make_owner(arena, slot, owner);
}

int mpx_heap_own(mpx_arena_t *arena, mpx_heap_owner_t *owner)
{
    int status = 0;
    *owner = mpx_u64_load_acquire(&arena->own); /* B9: with B8 */
    if (MPX_LIKELY(*owner != 0)) {
        return 0;
    }
    mpx_arena_enter();
    *owner = mpx_u64_load_acquire(&arena->own); /* B9: with B8 */
    if (*owner == 0) {
        status = mpx_slots_make_private(arena);
        if (status == 0) {
            status = make_owner(arena, arena->private_slot, owner);
        }
        if (status == 0) {
            mpx_u64_store_release(&arena->own, *owner); /* B8: with B9 */
        }
    }
    mpx_arena_exit();
    return status;
}

/* Only ever says false of an owner whose slot is free, or was since: it may be another's by now,
 * but has another key then. */
static bool is_alive(mpx_arena_t *arena, mpx_heap_owner_t owner)
{
    mpx_slot_t slot = (mpx_slot_t)owner;
    if (!mpx_slots_is_taken(arena, slot)) {
        return false;
    }
    mpx_atomic_u64 *room = mpx_slot_at(arena, slot);
    return room == NULL || mpx_u64_load_relaxed(room) == (MPX_HEAP_OWNER_MAGIC << 32 | owner >> 32);
}

/* Frees the blocks of one owner, or with 0 of all that are dead. Walks through entries, not runs:
 * what has an owner is a block. */
static void free_blocks(mpx_arena_t *arena, mpx_heap_shared_t *heap, mpx_heap_owner_t owner)
{
    extent_t extent;
    for (uint32_t number = 0; number < extents(heap); number++) {
        if (!extent_at(arena, heap, number, &extent)) {
            continue;
        }
        for (uint32_t index = 0; index < extent.length; index++) {
            mpx_run_t *run = extent.runs + index;
            uint64_t word = mpx_u64_load_acquire(&run->owner); /* B7: with B6 */
            if (word == 0 ||
                (owner != 0 ? owner_in(word) != owner : is_alive(arena, owner_in(word)))) {
                continue;
            }
            if (mpx_u64_cas_acq_rel(&run->owner, &word, 0)) { /* B0: with B1 */
                MPX_STEP(heap_swept);
                remember(heap, extent.first + index);
            }
        }
    }
}

void mpx_heap_free_all(mpx_arena_t *arena, mpx_heap_owner_t owner)
{
    mpx_heap_shared_t *heap = heap_of(arena);
    if (heap != NULL && owner != 0 && !is_alive(arena, owner)) {
        free_blocks(arena, heap, owner);
    }
}

/* ---- Storage --------------------------------------------------------------------------------- */

static void set_flags(const extent_t *extent, uint32_t begin, uint32_t end, uint64_t clear,
                      uint64_t set)
{
    for (uint32_t index = begin; index < end; index++) {
        mpx_atomic_u64 *meta = &extent->runs[index].meta;
        mpx_u64_store_relaxed(meta, (mpx_u64_load_relaxed(meta) & ~clear) | set);
    }
}

static bool has_flag(const extent_t *extent, uint32_t index, uint64_t flag)
{
    return (mpx_u64_load_relaxed(&extent->runs[index].meta) & flag) != 0;
}

/* The end of the units from `begin` on, up to `end`, that agree about the flag. */
static uint32_t end_of_same(const extent_t *extent, uint32_t begin, uint32_t end, uint64_t flag)
{
    uint32_t index = begin + 1;
    while (index < end && has_flag(extent, index, flag) == has_flag(extent, begin, flag)) {
        index++;
    }
    return index;
}

static int allocate(mpx_arena_t *arena, const extent_t *extent, uint32_t begin, uint32_t end)
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

static void deallocate(mpx_arena_t *arena, const extent_t *extent, uint32_t begin, uint32_t end)
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

/* Gives a block storage where it has none; on failure takes back what it was given. */
static int give_storage(mpx_arena_t *arena, const place_t *place)
{
    const extent_t *extent = &place->extent;
    uint32_t begin = place->index, end = place->index + place->length;
    int status = 0;
    while (status == 0 && begin < end) {
        uint32_t next = end_of_same(extent, begin, end, MPX_RUN_STORED);
        if (!has_flag(extent, begin, MPX_RUN_STORED)) {
            status = allocate(arena, extent, begin, next);
            if (status < 0) {
                deallocate(arena, extent, begin, next);
            }
        }
        begin = next;
    }
    return status;
}

/* ---- Making a block -------------------------------------------------------------------------- */

/* Under the mutex. */
static int make_heap(mpx_arena_t *arena, mpx_heap_shared_t **heap)
{
    uint32_t unit;
    *heap = heap_of(arena);
    if (*heap != NULL) {
        return 0;
    }
    if (mpx_u32_load_relaxed(&arena->shared->heap) != 0) {
        return -ENOMEM; /* there, but it cannot be mapped */
    }
    int status = mpx_arena_take_units(arena, sizeof(**heap), &unit);
    if (status == 0) {
        mpx_u32_store_release(&arena->shared->heap, unit); /* B2: with B3 */
        *heap = heap_of(arena);
        status = *heap == NULL ? -ENOMEM : 0;
    }
    return status;
}

static uint32_t count_units(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t *free_units)
{
    extent_t extent;
    uint32_t units = 0, owned = 0;
    for (uint32_t number = 0; number < extents(heap); number++) {
        if (!extent_at(arena, heap, number, &extent)) {
            continue;
        }
        units += extent.length;
        for (uint32_t index = 0; index < extent.length; index++) {
            owned += is_free(extent.runs + index) ? 0 : run_length(&extent, index);
        }
    }
    *free_units = owned < units ? units - owned : 0;
    return units;
}

/* Under the mutex. */
static bool find(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t units, place_t *place)
{
    return find_recent(arena, heap, units, place) || find_from_rover(arena, heap, units, place);
}

/* Takes a block, which may have no storage yet. -EAGAIN: there is no free run that is so long. */
static int try_to_take(mpx_arena_t *arena, uint32_t units, mpx_heap_owner_t owner,
                       mpx_block_t *block, place_t *place)
{
    mpx_heap_shared_t *heap;
    mpx_arena_lock(arena);
    int status = make_heap(arena, &heap);
    if (status == 0) {
        status = find(arena, heap, units, place) ? 0 : -EAGAIN;
    }
    if (status == 0) {
        *block = take(heap, place, units, owner);
    }
    mpx_arena_unlock(arena);
    return status;
}

static int extend_locked(mpx_arena_t *arena, uint32_t units)
{
    mpx_heap_shared_t *heap;
    mpx_arena_lock(arena);
    int status = make_heap(arena, &heap);
    if (status == 0) {
        status = extend(arena, heap, units);
    }
    mpx_arena_unlock(arena);
    return status;
}

/* Frees what is nobody's; whether that leaves so much free that the heap need not grow. */
static bool sweep(mpx_arena_t *arena)
{
    uint32_t free_units;
    mpx_heap_shared_t *heap = heap_of(arena);
    if (heap == NULL || extents(heap) == 0) {
        return false;
    }
    (void)mpx_slots_sweep(arena);
    free_blocks(arena, heap, 0);
    return count_units(arena, heap, &free_units) / FREE_SHARE <= free_units;
}

static int take_or_extend(mpx_arena_t *arena, uint32_t units, mpx_heap_owner_t owner,
                          mpx_block_t *block, place_t *place)
{
    int status = try_to_take(arena, units, owner, block, place);
    if (status == -EAGAIN && sweep(arena)) {
        status = try_to_take(arena, units, owner, block, place);
    }
    while (status == -EAGAIN) { /* others may take an extent before we do */
        int extended = extend_locked(arena, units);
        status = try_to_take(arena, units, owner, block, place);
        if (status == -EAGAIN && extended < 0) {
            return extended;
        }
    }
    return status;
}

int mpx_heap_new(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size, mpx_block_t *block,
                 void **address)
{
    place_t place;
    uint64_t units = size == 0 ? 1 : (size - 1) / MPX_BLOCK_UNIT + 1;
    if (units > MPX_RUN_LENGTH) {
        return -EFBIG;
    }
    mpx_arena_enter();
    int status = take_or_extend(arena, (uint32_t)units, owner, block, &place);
    mpx_arena_exit();
    if (status < 0) {
        return status;
    }
    *address = address_of(arena, &place);
    status = *address == NULL ? -ENOMEM : give_storage(arena, &place);
    if (status < 0) {
        (void)mpx_heap_free(arena, *block, owner);
    }
    return status;
}

/* ---- Trimming -------------------------------------------------------------------------------- */

/* Whether any unit of the run may have storage. */
static bool is_touched(const place_t *place)
{
    uint32_t end = place->index + place->length;
    return has_flag(&place->extent, place->index, MPX_RUN_TOUCHED) ||
           end_of_same(&place->extent, place->index, end, MPX_RUN_TOUCHED) < end;
}

/* Takes the storage of units of a run that this process has claimed, but for so many. */
static void punch(mpx_arena_t *arena, const place_t *place, uint64_t *keep)
{
    const extent_t *extent = &place->extent;
    uint32_t begin = place->index, end = place->index + place->length;
    while (begin < end) {
        uint32_t next = end_of_same(extent, begin, end, MPX_RUN_TOUCHED);
        if (has_flag(extent, begin, MPX_RUN_TOUCHED)) {
            uint32_t kept = *keep < next - begin ? (uint32_t)*keep : next - begin;
            *keep -= kept;
            if (kept < next - begin) {
                deallocate(arena, extent, begin + kept, next);
            }
        }
        begin = next;
    }
}

/* Claims the next free run, from the index on, that may have storage. The index is where a run
 * began, and does still where its entry says so; else the walk begins at the extent's. */
static bool claim_touched(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint32_t number,
                          uint32_t *index, mpx_heap_owner_t own, place_t *place, mpx_block_t *block)
{
    extent_t *extent = &place->extent;
    bool claimed = false;
    mpx_arena_lock(arena);
    if (extent_at(arena, heap, number, extent) && *index < extent->length) {
        place->index = has_flag(extent, *index, MPX_RUN_HEAD) ? *index : 0;
        while (!claimed && place->index < extent->length) {
            place->length = run_length(extent, place->index);
            if (place->length == 0) {
                break; /* damaged */
            }
            claimed =
                place->index >= *index && is_free(extent->runs + place->index) && is_touched(place);
            place->index += claimed ? 0 : place->length;
        }
    }
    if (claimed) {
        *block = take(heap, place, place->length, own);
        *index = place->index + place->length;
    }
    mpx_arena_unlock(arena);
    return claimed;
}

void mpx_heap_trim(mpx_arena_t *arena, size_t keep)
{
    mpx_heap_shared_t *heap = heap_of(arena);
    mpx_heap_owner_t own;
    uint64_t units = keep / MPX_BLOCK_UNIT;
    if (heap == NULL || mpx_heap_own(arena, &own) < 0) {
        return;
    }
    for (uint32_t number = 0; number < extents(heap); number++) {
        place_t place;
        mpx_block_t block;
        uint32_t index = 0;
        while (claim_touched(arena, heap, number, &index, own, &place, &block)) {
            punch(arena, &place, &units);
            (void)change_owner(arena, block, own, 0);
        }
    }
}

/* ---- Statistics ------------------------------------------------------------------------------ */

void mpx_heap_stats(mpx_arena_t *arena, mpx_heap_stats_t *stats)
{
    mpx_heap_shared_t *heap = heap_of(arena);
    extent_t extent;
    *stats = (mpx_heap_stats_t){0};
    if (heap == NULL) {
        return;
    }
    stats->extents = extents(heap);
    for (uint32_t number = 0; number < stats->extents; number++) {
        if (!extent_at(arena, heap, number, &extent)) {
            continue;
        }
        stats->size += (uint64_t)extent.length * MPX_BLOCK_UNIT;
        uint32_t owned_until = 0;
        for (uint32_t index = 0; index < extent.length; index++) {
            if (!is_free(extent.runs + index)) {
                uint32_t length = run_length(&extent, index);
                stats->owned += (uint64_t)length * MPX_BLOCK_UNIT;
                owned_until = index + length;
            }
            if (index >= owned_until && has_flag(&extent, index, MPX_RUN_TOUCHED)) {
                stats->free_stored += MPX_BLOCK_UNIT;
            }
        }
    }
}
