/* mpx_arena_slot.c - see mpx_arena.h: regions of slots, and who holds them.
 *
 * Layer: L3
 *
 * A slot's number is its index plus 1. Regions double, so a slot's address is found in a few steps
 * and never changes.
 *
 * Reuse. The lowest free slot is handed out first. When none seems to be free, the dead are buried
 * and the taken bits written anew from those of the living: after that, a quarter of the slots must
 * be free, or a region is added, so that looking stays cheap beside what it finds.
 */
#include "mpx_arena_pvt.h"

#include "mpx_fault.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FREE_SHARE 4

/* The longest wait for another process that sweeps. */
#define SWEEP_TIME MPX_NANOS_PER_SEC

/* In `references`, beside the count. */
#define IS_LOCK UINT32_C(0x80000000)

static mpx_undertaker_t *undertaker; /* within mpx_arena_enter */

/* ---- Regions --------------------------------------------------------------------------------- */

uint32_t mpx_region_start(uint32_t region)
{
    return region == 0 ? 0 : MPX_FIRST_SLOTS << (region - 1);
}

static uint32_t slots_of(uint32_t region)
{
    return mpx_region_start(region + 1) - mpx_region_start(region);
}

uint32_t mpx_region_words(uint32_t region)
{
    return slots_of(region) / 64;
}

uint32_t mpx_region_of(uint32_t index)
{
    return index < MPX_FIRST_SLOTS ? 0 : 32 - (uint32_t)__builtin_clz(index / MPX_FIRST_SLOTS);
}

static uint32_t regions(mpx_arena_t *arena)
{
    uint32_t count = mpx_u32_load_acquire(&arena->shared->regions); /* A5: with A4 */
    return count < MPX_REGIONS ? count : MPX_REGIONS;
}

mpx_atomic_u64 *mpx_region_bits(mpx_arena_t *arena, mpx_atomic_u32 *unit, uint32_t region)
{
    uint32_t at = mpx_u32_load_relaxed(unit);
    return at == 0 ? NULL : mpx_arena_unit(arena, at, mpx_region_words(region) * sizeof(uint64_t));
}

static mpx_atomic_u64 *taken_bits(mpx_arena_t *arena, uint32_t region)
{
    return mpx_region_bits(arena, &arena->shared->region[region].taken, region);
}

/* Where a region's slots are in this process; NULL where they cannot be mapped. */
static mpx_slot_cell_t *cells(mpx_arena_t *arena, uint32_t region)
{
    mpx_slot_cell_t *known = mpx_ptr_load_acquire(&arena->slots[region]); /* A7: with A6 */
    if (MPX_UNLIKELY(known == NULL) && region < regions(arena)) {
        known = mpx_arena_unit(arena, mpx_u32_load_relaxed(&arena->shared->region[region].slots),
                               (uint64_t)slots_of(region) * MPX_SLOT_SIZE);
        mpx_ptr_store_release(&arena->slots[region], known); /* A6: with A7 */
    }
    return known;
}

static mpx_slot_cell_t *cell(mpx_arena_t *arena, uint32_t index)
{
    uint32_t region = mpx_region_of(index);
    if (region >= MPX_REGIONS) {
        return NULL;
    }
    mpx_slot_cell_t *first = cells(arena, region);
    return first == NULL ? NULL : first + (index - mpx_region_start(region));
}

int mpx_region_add(mpx_arena_t *arena)
{
    uint32_t taken, slots, region = regions(arena);
    if (region == MPX_REGIONS) {
        return -ENOSPC;
    }
    int status = mpx_arena_take_units(arena, mpx_region_words(region) * sizeof(uint64_t), &taken);
    if (status == 0) {
        status = mpx_arena_take_units(arena, (uint64_t)slots_of(region) * MPX_SLOT_SIZE, &slots);
    }
    if (status < 0) {
        return status;
    }
    mpx_u32_store_relaxed(&arena->shared->region[region].taken, taken);
    MPX_STEP(region_taken);
    mpx_u32_store_relaxed(&arena->shared->region[region].slots, slots);
    MPX_STEP(region_slots);
    mpx_u32_store_release(&arena->shared->regions, region + 1); /* A4: with A5 */
    MPX_STEP(region_added);
    return 0;
}

/* ---- This process's references --------------------------------------------------------------- */

/* Makes room for the slots there are; 1 where there was less. Not under the mutex: it allocates. */
static int count_references(mpx_arena_t *arena)
{
    uint32_t count = mpx_region_start(regions(arena));
    if (count <= arena->reference_count) {
        return 0;
    }
    uint32_t *more =
        MPX_FAULT(arena_references) ? NULL : realloc(arena->references, count * sizeof(*more));
    if (more == NULL) {
        return -ENOMEM;
    }
    memset(more + arena->reference_count, 0, (count - arena->reference_count) * sizeof(*more));
    arena->references = more;
    arena->reference_count = count;
    return 1;
}

/* ---- Taking a free slot ---------------------------------------------------------------------- */

static void set_taken(mpx_arena_t *arena, uint32_t index, bool is_taken)
{
    uint32_t region = mpx_region_of(index), in_region = index - mpx_region_start(region);
    uint64_t bit = UINT64_C(1) << in_region % 64;
    mpx_atomic_u64 *word = taken_bits(arena, region) + in_region / 64;
    uint64_t before = mpx_u64_load_relaxed(word);
    mpx_u64_store_relaxed(word, is_taken ? before | bit : before & ~bit);
}

/* A free slot within the first `limit`, from first_word on; -EAGAIN where there is none. */
static int find_free(mpx_arena_t *arena, uint32_t limit, uint32_t *index)
{
    while (arena->first_word < limit / 64) {
        uint32_t first = arena->first_word * 64;
        uint32_t region = mpx_region_of(first);
        mpx_atomic_u64 *bits = taken_bits(arena, region);
        if (bits == NULL) {
            return -ENOMEM;
        }
        for (uint32_t w = (first - mpx_region_start(region)) / 64; w < mpx_region_words(region);
             w++) {
            uint64_t word = mpx_u64_load_relaxed(bits + w);
            if (~word != 0) {
                *index = arena->first_word * 64 + (uint32_t)__builtin_ctzll(~word);
                return 0;
            }
            arena->first_word++;
        }
    }
    return -EAGAIN;
}

/* In atomic steps: others may look whether there still is a former owner of blocks in it. */
static void clear_room(mpx_slot_cell_t *slot)
{
    mpx_atomic_u64 *words = (mpx_atomic_u64 *)(void *)slot->room;
    for (size_t w = 0; w < sizeof(slot->room) / sizeof(*words); w++) {
        mpx_u64_store_relaxed(words + w, 0);
    }
}

/* Under the mutex. */
static int claim(mpx_arena_t *arena, uint32_t *index)
{
    int status = find_free(arena, arena->reference_count, index);
    mpx_slot_cell_t *slot = status == 0 ? cell(arena, *index) : NULL;
    if (slot == NULL) {
        return status == 0 ? -ENOMEM : status;
    }
    set_taken(arena, *index, true);
    MPX_STEP(slot_taken);
    status = arena->self == NULL ? 0 : mpx_member_hold(arena, arena->self, *index);
    if (status < 0) {
        set_taken(arena, *index, false);
        return status;
    }
    MPX_STEP(slot_held);
    mpx_u64_store_relaxed(&slot->born, mpx_u64_load_relaxed(&arena->shared->births));
    clear_room(slot);
    return 0;
}

/* ---- The dead's slots ------------------------------------------------------------------------ */

/* Of the slots that nobody holds any more, those that others refer to. */
static uint64_t linked_of(mpx_arena_t *arena, uint32_t first, uint64_t orphans)
{
    uint64_t linked = 0;
    for (; orphans != 0; orphans &= orphans - 1) {
        uint32_t bit = (uint32_t)__builtin_ctzll(orphans);
        mpx_slot_cell_t *slot = cell(arena, first + bit);
        if (slot == NULL || (mpx_u64_load_relaxed(&slot->born) & MPX_BORN_LINKED)) {
            linked |= UINT64_C(1) << bit;
        }
    }
    return linked;
}

/* Writes one word of taken bits anew; returns how many slots in it are free, and the first one that
 * nobody holds but others refer to. Under the mutex. */
static uint32_t write_taken(mpx_arena_t *arena, uint32_t region, uint32_t w, uint32_t *linked_slot)
{
    uint32_t first = mpx_region_start(region) + w * 64;
    mpx_atomic_u64 *word = taken_bits(arena, region) + w;
    uint64_t before = mpx_u64_load_relaxed(word);
    uint64_t held = mpx_member_all_hold(arena, region, w);
    uint64_t linked = linked_of(arena, first, before & ~held);
    if (linked != 0 && *linked_slot == 0) {
        *linked_slot = first + (uint32_t)__builtin_ctzll(linked) + 1;
    }
    mpx_u64_store_relaxed(word, held | linked);
    MPX_STEP(slot_swept);
    return 64 - (uint32_t)__builtin_popcountll(held | linked);
}

static uint32_t sweep_words(mpx_arena_t *arena, uint32_t *linked_slot)
{
    uint32_t free_slots = 0;
    for (uint32_t region = 0; region < regions(arena); region++) {
        if (taken_bits(arena, region) == NULL) {
            continue;
        }
        for (uint32_t w = 0; w < mpx_region_words(region); w++) {
            free_slots += write_taken(arena, region, w, linked_slot);
        }
    }
    return free_slots;
}

static void let_go(mpx_arena_t *arena, uint32_t index);

/* Has the slot taken out of what refers to it. This process holds it meanwhile: another one that
 * sweeps must not free it as soon as it is unmarked. */
static void undertake(mpx_arena_t *arena, mpx_slot_t slot)
{
    undertaker(arena, slot);
    mpx_arena_lock(arena);
    let_go(arena, slot - 1);
    mpx_arena_unlock(arena);
}

static uint32_t sweep_alone(mpx_arena_t *arena)
{
    uint32_t free_slots = 0;
    mpx_slot_t linked = 0, last;
    mpx_member_bury_dead(arena);
    do {
        last = linked;
        linked = 0;
        mpx_arena_lock(arena);
        if (!mpx_u32_load_relaxed(&arena->shared->pinned)) {
            free_slots = sweep_words(arena, &linked);
        }
        if (linked != 0 && (linked == last || undertaker == NULL ||
                            mpx_member_hold(arena, arena->self, linked - 1) < 0)) {
            linked = 0;
        }
        mpx_arena_unlock(arena);
        if (linked != 0) {
            undertake(arena, linked);
        }
    } while (linked != 0);
    arena->first_word = 0;
    return free_slots;
}

/* Below it: -ETIMEDOUT where somebody was stopped in the middle of it. */
static int wait_for_sweeper(mpx_arena_t *arena)
{
    int64_t deadline = mpx_os_deadline(SWEEP_TIME);
    int status;
    do {
        status = mpx_lock_acquire(&arena->shared->sweeper, deadline);
    } while (status == -EINTR);
    return status;
}

/* Who has the lock sweeps and lets it go; the number of free slots. */
static uint32_t sweep_locked(mpx_arena_t *arena)
{
    MPX_STEP(arena_sweeping); /* the next one takes the lock over */
    uint32_t free_slots = sweep_alone(arena);
    (void)!mpx_lock_release(&arena->shared->sweeper);
    return free_slots;
}

/* Frees what only dead processes held. One process at a time: another one would free what the first
 * one's undertaker is at. */
void mpx_slots_sweep(mpx_arena_t *arena)
{
    if (wait_for_sweeper(arena) >= 0) {
        (void)sweep_locked(arena);
    }
}

/* ---- The interface --------------------------------------------------------------------------- */

static bool is_plenty(mpx_arena_t *arena, uint32_t free_slots)
{
    return free_slots >= mpx_region_start(regions(arena)) / FREE_SHARE;
}

/* The number of slots that are free without a sweep; looks for one from the first on again. */
static uint32_t count_free(mpx_arena_t *arena)
{
    uint32_t free_slots = 0;
    mpx_arena_lock(arena);
    for (uint32_t region = 0; region < regions(arena); region++) {
        mpx_atomic_u64 *bits = taken_bits(arena, region);
        for (uint32_t w = 0; bits != NULL && w < mpx_region_words(region); w++) {
            free_slots += 64 - (uint32_t)__builtin_popcountll(mpx_u64_load_relaxed(bits + w));
        }
    }
    arena->first_word = 0;
    mpx_arena_unlock(arena);
    return free_slots;
}

/* Looks for free slots; the number of them. A crowd waits for who sweeps, and each of it would do
 * so once more: what was freed meanwhile is enough for all, as a rule. */
static uint32_t look_for_slots(mpx_arena_t *arena)
{
    mpx_atomic_u64 next_look = {(uint64_t)MPX_NEVER}; /* whether the owner lives: the wait asks */
    int status = mpx_lock_try(&arena->shared->sweeper, &next_look);
    if (status == -EAGAIN) {
        status = wait_for_sweeper(arena);
        uint32_t free_slots = count_free(arena);
        if (status < 0) {
            return free_slots;
        }
        if (is_plenty(arena, free_slots)) {
            (void)!mpx_lock_release(&arena->shared->sweeper);
            return free_slots;
        }
    }
    return sweep_locked(arena);
}

/* One more than there were; others may have added it. */
static int add_region(mpx_arena_t *arena, uint32_t there_were)
{
    mpx_arena_lock(arena);
    int status = regions(arena) == there_were ? mpx_region_add(arena) : 0;
    mpx_arena_unlock(arena);
    return status;
}

static int new_slot(mpx_arena_t *arena, uint32_t *index)
{
    uint32_t free_slots = 0, there_were = 0;
    bool looked = false;
    for (;;) {
        mpx_arena_lock(arena);
        int status = claim(arena, index);
        mpx_arena_unlock(arena);
        if (status != -EAGAIN) {
            return status;
        }
        int counted = count_references(arena);
        if (counted > 0) {
            continue;
        }
        if (!looked) {
            looked = true;
            there_were = regions(arena);
            free_slots = look_for_slots(arena);
            if (is_plenty(arena, free_slots)) {
                continue;
            }
        }
        status = counted < 0 ? counted : add_region(arena, there_were);
        if (status < 0 && free_slots == 0) {
            return status;
        }
        free_slots = 0;
        there_were = regions(arena);
    }
}

static int make(mpx_arena_t *arena, mpx_slot_t *slot, uint32_t reference)
{
    uint32_t index = 0;
    int status = new_slot(arena, &index);
    if (status == 0) {
        arena->references[index] = reference;
        *slot = index + 1;
    }
    return status;
}

static int new_for(mpx_arena_t *arena, mpx_slot_t *slot, uint32_t reference)
{
    mpx_arena_enter();
    int status = make(arena, slot, reference);
    mpx_arena_exit();
    return status;
}

int mpx_slots_make_private(mpx_arena_t *arena)
{
    return arena->private_slot != 0 ? 0 : make(arena, &arena->private_slot, 1);
}

int mpx_slot_new(mpx_arena_t *arena, mpx_slot_t *slot)
{
    return new_for(arena, slot, 1);
}

int mpx_slot_new_lock(mpx_arena_t *arena, mpx_slot_t *slot)
{
    return new_for(arena, slot, 1 | IS_LOCK);
}

void mpx_slot_hold(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_arena_enter();
    arena->references[slot - 1]++;
    mpx_arena_exit();
}

static void disown(mpx_arena_t *arena, uint32_t index)
{
    if (arena->references[index] & IS_LOCK) {
        mpx_lock_disown((mpx_lock_t *)(void *)cell(arena, index)->room);
    }
}

void mpx_slot_mark_lock(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_arena_enter();
    arena->references[slot - 1] |= IS_LOCK;
    mpx_arena_exit();
}

void mpx_slots_disown_locks(mpx_arena_t *arena)
{
    for (uint32_t index = 0; index < arena->reference_count; index++) {
        disown(arena, index);
    }
}

/* The last reference of this process is gone. Under the mutex. */
static void let_go(mpx_arena_t *arena, uint32_t index)
{
    uint64_t born = mpx_u64_load_relaxed(&cell(arena, index)->born);
    if (arena->self != NULL) {
        mpx_member_drop(arena, arena->self, index);
        MPX_STEP(slot_dropped);
    }
    if (mpx_u32_load_relaxed(&arena->shared->pinned) || (born & MPX_BORN_LINKED) ||
        mpx_member_others_hold(arena, index, born)) {
        return;
    }
    set_taken(arena, index, false);
    MPX_STEP(slot_freed);
    if (index / 64 < arena->first_word) {
        arena->first_word = index / 64;
    }
}

void mpx_slot_drop(mpx_arena_t *arena, mpx_slot_t slot)
{
    uint32_t index = slot - 1;
    mpx_arena_enter();
    if ((--arena->references[index] & ~IS_LOCK) == 0) {
        disown(arena, index);
        arena->references[index] = 0;
        mpx_arena_lock(arena);
        let_go(arena, index);
        mpx_arena_unlock(arena);
    }
    mpx_arena_exit();
}

bool mpx_slot_is_shared(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_arena_enter();
    mpx_arena_lock(arena);
    uint64_t born = mpx_u64_load_relaxed(&cell(arena, slot - 1)->born);
    bool shared = mpx_u32_load_relaxed(&arena->shared->pinned) ||
                  mpx_member_others_hold(arena, slot - 1, born & ~MPX_BORN_LINKED);
    mpx_arena_unlock(arena);
    mpx_arena_exit();
    return shared;
}

void *mpx_slot_at(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_slot_cell_t *found = slot == 0 ? NULL : cell(arena, slot - 1);
    return found == NULL ? NULL : found->room;
}

void mpx_slot_mark_linked(mpx_arena_t *arena, mpx_slot_t slot, bool linked)
{
    mpx_slot_cell_t *found = slot == 0 ? NULL : cell(arena, slot - 1);
    if (found != NULL && linked) {
        (void)mpx_u64_fetch_or_acq_rel(&found->born, MPX_BORN_LINKED);
    } else if (found != NULL) {
        (void)mpx_u64_fetch_and_acq_rel(&found->born, ~MPX_BORN_LINKED);
    }
}

void mpx_arena_set_undertaker(mpx_undertaker_t *function)
{
    mpx_arena_enter();
    undertaker = function;
    mpx_arena_exit();
}

/* The child's record is without it (see mpx_member_seat). */
void mpx_slots_leave_private(mpx_arena_t *arena)
{
    if (arena->private_slot != 0) {
        arena->references[arena->private_slot - 1] = 0;
        arena->private_slot = 0;
        mpx_u64_store_relaxed(&arena->own, 0);
    }
}

bool mpx_slots_is_taken(mpx_arena_t *arena, mpx_slot_t slot)
{
    uint32_t index = slot - 1;
    if (slot == 0 || index >= mpx_region_start(regions(arena))) {
        return false;
    }
    uint32_t region = mpx_region_of(index);
    mpx_atomic_u64 *bits = taken_bits(arena, region);
    uint32_t in_region = index - mpx_region_start(region);
    return bits == NULL || (mpx_u64_load_relaxed(bits + in_region / 64) >> in_region % 64 & 1);
}

void mpx_slots_mark_own(mpx_arena_t *arena)
{
    mpx_arena_lock(arena);
    for (uint32_t index = 0; index < arena->reference_count; index++) {
        if (arena->references[index] != 0) {
            set_taken(arena, index, true);
        }
    }
    mpx_arena_unlock(arena);
}

int mpx_arena_give(mpx_arena_t *arena, uint32_t seat, mpx_slot_t slot)
{
    mpx_arena_enter();
    mpx_member_t *member = mpx_member_find(arena, seat);
    int status = member == NULL ? -EPROTO : 0;
    if (status == 0) {
        mpx_arena_lock(arena);
        (void)mpx_u64_fetch_and_acq_rel(&cell(arena, slot - 1)->born, MPX_BORN_LINKED);
        MPX_STEP(slot_offered); /* as before, but that a drop looks at all members */
        status = mpx_member_hold(arena, member, slot - 1);
        MPX_STEP(slot_given);
        mpx_arena_unlock(arena);
    }
    mpx_arena_exit();
    return status;
}

static bool is_given(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_arena_lock(arena);
    bool given = slot != 0 && slot <= mpx_region_start(regions(arena)) && arena->self != NULL &&
                 mpx_member_holds(arena, arena->self, slot - 1) && cell(arena, slot - 1) != NULL;
    mpx_arena_unlock(arena);
    return given;
}

int mpx_slot_take(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_arena_enter();
    int status = count_references(arena);
    if (status >= 0) {
        status = is_given(arena, slot) ? 0 : -EPROTO;
    }
    if (status == 0) {
        arena->references[slot - 1]++;
    }
    mpx_arena_exit();
    return status;
}
