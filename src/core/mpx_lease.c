/* mpx_lease.c - see mpx_lease.h.
 *
 * Layer: L5
 *
 * What a process leaves that is killed between two stores:
 *
 *   a slot is made      a slot of the dead: free when somebody looks for them
 *   it has a key        the same; the block is the dead process's own
 *   the block is its    a block whose owner only the dead hold: freed by a look for the dead
 *   the slot is gone    a block whose owner is dead, or another process's too
 *   the block is freed  nothing
 *
 * The last two are of the end of a lease.
 *
 * A fork in between takes the slot along or does not, in one step (see mpx_arena.h): never the
 * block without it. A child that has the slot without knowing, as the thread that took the lease is
 * not in it, keeps the block for as long as it lives: no more than that can happen.
 */
#include "mpx_lease.h"

#include "mpx_arena_pvt.h"
#include "mpx_atomic.h"
#include "mpx_fault.h"

#include <errno.h>

#define LIMIT_SHARE 4

static mpx_atomic_u64 total; /* bytes on loan */
static mpx_atomic_u64 limit; /* 0: not asked yet */

uint64_t mpx_lease_total(void)
{
    return mpx_u64_load_relaxed(&total);
}

uint64_t mpx_lease_limit(void)
{
    uint64_t bytes = mpx_u64_load_relaxed(&limit);
    if (MPX_UNLIKELY(bytes == 0)) {
        int64_t headroom = mpx_os_memory_headroom();
        bytes = headroom > 0 ? (uint64_t)headroom / LIMIT_SHARE : 0;
        mpx_u64_store_relaxed(&limit, bytes);
    }
    return bytes;
}

void mpx_lease_set_limit(uint64_t bytes)
{
    mpx_u64_store_relaxed(&limit, bytes);
}

static bool count(size_t size)
{
    uint64_t before = mpx_u64_fetch_add_relaxed(&total, size), most = mpx_lease_limit();
    if (before <= most && size <= most - before) {
        return true;
    }
    (void)mpx_u64_fetch_add_relaxed(&total, -(uint64_t)size);
    return false;
}

/* How much is left. */
static uint64_t uncount(size_t size)
{
    return mpx_u64_fetch_add_relaxed(&total, -(uint64_t)size) - size;
}

/* A slot that owns the block, which was this process's own. */
static int give_to_slot(mpx_lease_t *lease, mpx_slot_t slot)
{
    mpx_heap_owner_t own;
    int status = mpx_heap_own(lease->arena, &own);
    if (status == 0) {
        status = mpx_heap_owner_new(lease->arena, slot, &lease->owner);
    }
    MPX_STEP(lease_keyed);
    if (status == 0 && !mpx_heap_give(lease->arena, lease->block, own, lease->owner)) {
        status = -EPROTO;
    }
    return status;
}

int mpx_lease_take(mpx_lease_t *lease, mpx_arena_t *arena, mpx_block_t block)
{
    mpx_slot_t slot;
    *lease = (mpx_lease_t){.arena = arena, .block = block};
    if (mpx_heap_at(arena, block, &lease->size) == NULL) {
        return -EPROTO;
    }
    if (mpx_u32_load_relaxed(&arena->shared->pinned)) {
        return -EBUSY;
    }
    if (!count(lease->size)) {
        return -EDQUOT;
    }
    int status = mpx_slot_new(arena, &slot);
    if (status == 0) {
        MPX_STEP(lease_slot);
        status = give_to_slot(lease, slot);
        if (status < 0) {
            mpx_slot_drop(arena, slot);
        }
    }
    if (status < 0) {
        (void)uncount(lease->size);
    }
    MPX_STEP(lease_taken);
    return status;
}

void mpx_lease_end(const mpx_lease_t *lease)
{
    mpx_slot_drop(lease->arena, (mpx_slot_t)lease->owner);
    MPX_STEP(lease_dropped);
    mpx_heap_free_left(lease->arena, lease->block, lease->owner);
    MPX_STEP(lease_ended);
    mpx_heap_flow(lease->arena, lease->size);
    if (uncount(lease->size) == 0) {
        mpx_heap_ebb(lease->arena);
    }
}
