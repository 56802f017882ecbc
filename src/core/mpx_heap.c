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
 * What the dead have written is seen without a release of theirs: they are dead when the kernel
 * says so, which it does after all that they stored.
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

/* After a sweep, one part in so many must be free, or the heap grows: so sweeping stays cheap
 * beside what it finds. */
#define FREE_SHARE 4

/* Storage is given where so much more can be had, and a part of it that the page tables take. */
#define RESERVE   (INT64_C(16) << 20)
#define PER_TABLE 256

/* Whoever has looked may give so much, or that part of what there is, without another look; for so
 * long. Blocks of a megabyte are always worth one. */
#define MUCH         (UINT64_C(1) << 20)
#define ALLOWED      (UINT64_C(16) << 20)
#define ALLOWED_PART 16
#define ALLOWED_FOR  MPX_NANOS_PER_SEC

/* So many units are kept beyond what was needed lately; each look at that forgets so much of it. */
#define SPARE_UNITS UINT64_C(1024)
#define PEAK_DECAY  8

/* In the place of a number of extents. */
#define NEVER UINT32_MAX

/* ---- Blocks ---------------------------------------------------------------------------------- */

bool mpx_heap_give(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                   mpx_heap_owner_t to)
{
    bool given = from != 0 && to != 0 && mpx_block_change_owner(arena, block, from, to);
    MPX_STEP(heap_given);
    return given;
}

bool mpx_heap_free(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t owner)
{
    bool freed = owner != 0 && mpx_block_change_owner(arena, block, owner, 0);
    MPX_STEP(heap_freed);
    if (freed) {
        mpx_heap_shared_t *heap = mpx_heap_of(arena);
        if (heap != NULL) {
            mpx_heap_remember(heap, (uint32_t)block - 1);
        }
    }
    return freed;
}

void *mpx_heap_at(mpx_arena_t *arena, mpx_block_t block, size_t *size)
{
    mpx_place_t place;
    uint32_t generation = mpx_generation_of(block);
    mpx_run_t *run = mpx_run_of(arena, block, &place);
    uint64_t owner = run == NULL ? 0 : mpx_u64_load_acquire(&run->owner); /* B7: with B6 */
    if (owner == 0 || mpx_owner_word(mpx_owner_in(owner), generation) != owner ||
        mpx_generation_of(mpx_u64_load_relaxed(&run->meta)) != generation) {
        return NULL;
    }
    place.length = mpx_run_length(&place.extent, place.index);
    *size = (size_t)place.length * MPX_BLOCK_UNIT;
    return place.length == 0 ? NULL : mpx_place_address(arena, &place);
}

int mpx_heap_find(mpx_arena_t *arena, mpx_block_t block, void **address, size_t *size)
{
    *address = mpx_heap_at(arena, block, size);
    if (*address != NULL) {
        return 0;
    }
    int status = mpx_segment_refresh(&arena->segment);
    if (status == 0) { /* nothing is missing, or not any more */
        *address = mpx_heap_at(arena, block, size);
        status = *address == NULL ? -EPROTO : 0;
    }
    return status;
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

/* Frees the blocks of one owner, or with 0 of all that are dead: how many bytes. Walks through
 * entries, not runs: what has an owner is a block. */
static uint64_t free_blocks(mpx_arena_t *arena, mpx_heap_shared_t *heap, mpx_heap_owner_t owner)
{
    mpx_extent_t extent;
    uint64_t units = 0;
    for (uint32_t number = 0; number < mpx_heap_extents(heap); number++) {
        if (!mpx_extent_at(arena, heap, number, &extent)) {
            continue;
        }
        for (uint32_t index = 0; index < extent.length; index++) {
            mpx_run_t *run = extent.runs + index;
            uint64_t word = mpx_u64_load_acquire(&run->owner); /* B7: with B6 */
            if (word == 0 ||
                (owner != 0 ? mpx_owner_in(word) != owner : is_alive(arena, mpx_owner_in(word)))) {
                continue;
            }
            uint32_t length = mpx_run_length(&extent, index);
            if (mpx_u64_cas_acq_rel(&run->owner, &word, 0)) { /* B0: with B1 */
                MPX_STEP(heap_swept);
                mpx_heap_remember(heap, extent.first + index);
                units += length;
            }
        }
    }
    return units * MPX_BLOCK_UNIT;
}

void mpx_heap_free_left(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t owner)
{
    if (!is_alive(arena, owner)) {
        (void)mpx_heap_free(arena, block, owner);
    }
}

uint64_t mpx_heap_free_all(mpx_arena_t *arena, mpx_heap_owner_t owner)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    bool is_left = heap != NULL && owner != 0 && !is_alive(arena, owner);
    return is_left ? free_blocks(arena, heap, owner) : 0;
}

/* ---- Settling -------------------------------------------------------------------------------- */

static uint32_t count_extents(mpx_arena_t *arena)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    return heap == NULL ? 0 : mpx_heap_extents(heap);
}

void mpx_heap_sweep(mpx_arena_t *arena)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    if (heap != NULL) {
        mpx_arena_enter();
        mpx_slots_sweep(arena);
        mpx_arena_exit();
        (void)free_blocks(arena, heap, 0);
    }
}

/* Frees what is nobody's; whether that leaves so much free that the heap need not grow. */
static bool sweep_for_room(mpx_arena_t *arena)
{
    mpx_heap_stats_t stats;
    mpx_heap_sweep(arena);
    mpx_heap_stats(arena, &stats);
    return stats.size / FREE_SHARE <= stats.size - stats.owned;
}

/* Whether so much has been made of the heap since the last time that it is worth a look. Under the
 * mutex: one process looks. */
static bool is_due(mpx_heap_shared_t *heap)
{
    uint64_t peak = mpx_u64_load_relaxed(&heap->peak);
    bool due = mpx_u64_load_relaxed(&heap->taken) / 2 > peak / 2 + SPARE_UNITS / 2;
    if (due) {
        mpx_u64_store_relaxed(&heap->taken, 0);
    }
    return due;
}

/* Keeps as much storage as was lately needed at once, and some to spare. What was needed is
 * forgotten by and by: a program that needs much from time to time does not pay for it anew each
 * time. */
static void settle(mpx_arena_t *arena)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_heap_stats_t stats;
    if (heap == NULL) {
        return;
    }
    mpx_heap_sweep(arena);
    mpx_heap_stats(arena, &stats);
    uint64_t peak = mpx_u64_load_relaxed(&heap->peak), owned = stats.owned / MPX_BLOCK_UNIT;
    peak -= peak / PEAK_DECAY;
    peak = owned > peak ? owned : peak;
    mpx_u64_store_relaxed(&heap->peak, peak);
    mpx_heap_trim(arena, (peak - owned + SPARE_UNITS) * MPX_BLOCK_UNIT);
}

/* ---- Making a block -------------------------------------------------------------------------- */

typedef struct {
    mpx_heap_owner_t owner;
    uint32_t units;
    mpx_block_t block; /* what was made */
    mpx_place_t place;
    int64_t deadline;
    bool due; /* the heap is to be settled */
} request_t;

/* Takes a block, which may have no storage yet. Where there still are so many extents, one more is
 * added before. -EAGAIN: no free run is long enough. */
static int try_to_take(mpx_arena_t *arena, request_t *request, uint32_t full)
{
    mpx_heap_shared_t *heap;
    int status = mpx_heap_lock_until(arena, request->deadline);
    if (status < 0) {
        return status == -ETIMEDOUT ? -EBUSY : status;
    }
    status = mpx_heap_make(arena, &heap);
    int extended = 0;
    if (status == 0 && mpx_heap_extents(heap) == full) {
        extended = mpx_heap_extend(arena, heap, request->units);
    }
    if (status == 0 && !mpx_run_find(arena, heap, request->units, &request->place)) {
        status = extended < 0 ? extended : -EAGAIN;
    }
    if (status == 0) {
        request->block = mpx_run_take(heap, &request->place, request->units, request->owner);
        request->due = is_due(heap);
    }
    mpx_heap_unlock(arena);
    return status;
}

static int take(mpx_arena_t *arena, request_t *request)
{
    int status = try_to_take(arena, request, NEVER);
    bool is_enough = true;
    while (status == -EAGAIN) { /* others may take what we have freed or added */
        uint32_t extents = count_extents(arena);
        is_enough = is_enough && extents > 0 && sweep_for_room(arena);
        status = try_to_take(arena, request, is_enough ? NEVER : extents);
        is_enough = false;
    }
    return status;
}

static uint64_t missing_bytes(const mpx_place_t *place)
{
    return (uint64_t)mpx_place_missing(place) * MPX_BLOCK_UNIT;
}

/* A hint: what is lost of it between two processes is little. */
static bool is_allowed(mpx_heap_shared_t *heap, uint64_t bytes)
{
    uint64_t now = (uint64_t)mpx_os_now(), then = mpx_u64_load_relaxed(&heap->allowed_at);
    if (bytes >= MUCH || now - then > (uint64_t)ALLOWED_FOR ||
        mpx_u64_load_relaxed(&heap->allowance) < bytes) {
        return false;
    }
    if (mpx_u64_fetch_add_relaxed(&heap->allowance, -bytes) >= bytes) {
        return true;
    }
    (void)mpx_u64_fetch_add_relaxed(&heap->allowance, bytes);
    return false;
}

static void allow(mpx_heap_shared_t *heap, uint64_t rest)
{
    uint64_t part = rest / ALLOWED_PART;
    mpx_u64_store_relaxed(&heap->allowance, part < ALLOWED ? part : ALLOWED);
    mpx_u64_store_relaxed(&heap->allowed_at, (uint64_t)mpx_os_now());
}

/* Whether there is memory for so much, with what would be given back for it. The machine is asked:
 * once it is promised, it is had by having something killed. */
static bool is_to_be_had(mpx_arena_t *arena, uint64_t bytes, uint64_t given_back)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    if (heap == NULL || bytes <= given_back || is_allowed(heap, bytes)) {
        return true;
    }
    uint64_t missing = bytes - given_back + bytes / PER_TABLE;
    int64_t headroom = MPX_FAULT(heap_headroom) ? 0 : mpx_os_memory_headroom();
    bool is_there = headroom >= RESERVE && (uint64_t)(headroom - RESERVE) >= missing;
    if (is_there && bytes < MUCH) {
        allow(heap, (uint64_t)(headroom - RESERVE) - missing);
    }
    return is_there;
}

static int give_storage(mpx_arena_t *arena, const mpx_place_t *place)
{
    uint64_t missing = missing_bytes(place);
    if (missing == 0) {
        return 0;
    }
    return is_to_be_had(arena, missing, 0) ? mpx_place_store(arena, place) : -ENOMEM;
}

/* Memory is short: frees what is nobody's, and gives back as much as is missing, where that helps.
 */
static void make_headroom(mpx_arena_t *arena, const mpx_place_t *place)
{
    mpx_heap_stats_t stats;
    uint64_t missing = missing_bytes(place);
    mpx_heap_sweep(arena);
    mpx_heap_stats(arena, &stats);
    if (is_to_be_had(arena, missing, stats.free_stored)) {
        mpx_heap_trim(arena, stats.free_stored > missing ? stats.free_stored - missing : 0);
    }
}

static int furnish(mpx_arena_t *arena, const mpx_place_t *place, void **address)
{
    *address = mpx_place_address(arena, place);
    if (*address == NULL) {
        int status = mpx_segment_refresh(&arena->segment);
        return status < 0 ? status : -ENOMEM;
    }
    int status = give_storage(arena, place);
    if (status == -ENOMEM || status == -ENOSPC) {
        make_headroom(arena, place);
        status = give_storage(arena, place);
    }
    return status;
}

int mpx_heap_new_until(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size, mpx_block_t *block,
                       void **address, int64_t deadline)
{
    uint64_t units = size == 0 ? 1 : (size - 1) / MPX_BLOCK_UNIT + 1;
    if (owner == 0) {
        return -EINVAL; /* that would be a free block */
    }
    if (units > MPX_RUN_LENGTH) {
        return -EFBIG;
    }
    request_t request = {.owner = owner, .units = (uint32_t)units, .deadline = deadline};
    int status = take(arena, &request);
    if (status < 0) {
        return status;
    }
    *block = request.block;
    status = furnish(arena, &request.place, address);
    if (status < 0) {
        (void)mpx_block_change_owner(arena, *block, owner, 0);
    } else if (request.due) {
        settle(arena);
    }
    return status;
}

int mpx_heap_new(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size, mpx_block_t *block,
                 void **address)
{
    int status;
    do {
        status = mpx_heap_new_until(arena, owner, size, block, address, MPX_NEVER);
    } while (status == -EINTR);
    return status;
}
