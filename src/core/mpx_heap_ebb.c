/* mpx_heap_ebb.c - see mpx_heap.h: when the storage of free blocks goes back to the kernel.
 *
 * Layer: L4
 *
 * A program that sends something large time and again needs the same storage time and again, and
 * to get it anew costs more than to copy into it. One that is done with what it had needs none. So
 * it is not said by the time alone which of the two it is:
 *
 *   ebb    A queue has been emptied. What was freed since the last ebb is what the program had at
 *          once, at most; as much as it had at the ones before, it will have again, and that is
 *          kept. The rest goes back now. What is kept is bounded, and forgotten by and by.
 *   look   Somebody waits in vain, or asks in vain again and again. What was not made blocks of
 *          within a second or more goes back, and what the dead have had.
 *   end    A queue that had something large is no more: nothing is kept. For one that had not, as
 *          much as was made lately.
 *
 * All words of the heap that say so are hints. They are written without a mutex, so one may be lost
 * between two processes, or with one that is killed: then too much goes back, or too late.
 */
#include "mpx_heap_pvt.h"

#include "mpx_arena_pvt.h"

/* What was needed at once is forgotten after that time, and before that by an eighth each time. */
#define REMEMBERED MPX_NANOS_PER_SEC
#define FADES      8

/* The most that is kept for a program that goes on, and what is not worth a look. */
#define MOST_KEPT  ((uint64_t)64 * 1024 * 1024)
#define LEAST_KEPT ((uint64_t)2 * 1024 * 1024)
#define IDLE_KEPT  ((uint64_t)4 * 1024 * 1024)

/* Between two looks: one process's, and all processes'. */
#define LOOK_INTERVAL     MPX_NANOS_PER_SEC
#define ANY_LOOK_INTERVAL (MPX_NANOS_PER_SEC / 2)

static uint64_t at_most(uint64_t bytes, uint64_t most)
{
    return bytes < most ? bytes : most;
}

static uint64_t at_least(uint64_t bytes, uint64_t least)
{
    return bytes > least ? bytes : least;
}

static uint64_t stored(mpx_arena_t *arena, mpx_heap_stats_t *stats)
{
    mpx_heap_stats(arena, stats);
    return stats->owned + stats->free_stored;
}

/* ---- Ebb ------------------------------------------------------------------------------------- */

void mpx_heap_flow(mpx_arena_t *arena, size_t size)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    if (heap != NULL) {
        (void)mpx_u64_fetch_add_relaxed(&heap->flowed, size);
    }
}

/* What is kept for a program that had so much at once: `before` is what was kept for it. */
static uint64_t kept_after(uint64_t before, uint64_t had)
{
    return at_most(at_least(had, before - before / FADES), MOST_KEPT);
}

void mpx_heap_ebb(mpx_arena_t *arena)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_heap_stats_t stats;
    uint64_t had = heap == NULL ? 0 : mpx_u64_load_relaxed(&heap->flowed);
    if (had == 0) {
        return;
    }
    mpx_u64_store_relaxed(&heap->flowed, 0);
    uint64_t now = (uint64_t)mpx_os_now(), last = mpx_u64_load_relaxed(&heap->ebbed_at);
    uint64_t kept = now - last > REMEMBERED ? 0 : mpx_u64_load_relaxed(&heap->kept);
    mpx_u64_store_relaxed(&heap->ebbed_at, now);
    mpx_u64_store_relaxed(&heap->kept, kept_after(kept, had));
    if (had <= kept + kept / 2 || had <= LEAST_KEPT) {
        return; /* what a program has at once varies, and to keep that is cheaper */
    }
    mpx_heap_stats(arena, &stats);
    uint64_t rest = stats.free_stored - at_most(had - kept, stats.free_stored);
    mpx_heap_trim(arena, at_least(rest, at_least(kept, LEAST_KEPT)));
}

/* ---- Look ------------------------------------------------------------------------------------ */

/* Whether so long has passed since then. One that is in the future is of another boot. */
static bool has_passed(mpx_atomic_u64 *since, uint64_t now, uint64_t interval)
{
    uint64_t then = mpx_u64_load_relaxed(since);
    if (now >= then && now - then < interval) {
        return false;
    }
    return mpx_u64_cas_relaxed(since, &then, now);
}

static void look(mpx_arena_t *arena, uint64_t lately)
{
    mpx_heap_stats_t stats;
    if (stored(arena, &stats) <= IDLE_KEPT) {
        return;
    }
    if (stats.owned > 0) {
        mpx_heap_sweep(arena);
    }
    mpx_heap_trim(arena, IDLE_KEPT + at_most(lately, MOST_KEPT));
}

void mpx_heap_look(mpx_arena_t *arena, mpx_heap_watch_t *watch)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    uint64_t now = (uint64_t)mpx_os_now();
    bool is_first = mpx_u64_load_relaxed(&watch->at) == 0;
    if (heap == NULL || !has_passed(&watch->at, now, LOOK_INTERVAL)) {
        return;
    }
    uint64_t made = mpx_u64_load_relaxed(&heap->made);
    uint64_t before = mpx_u64_load_relaxed(&watch->made);
    mpx_u64_store_relaxed(&watch->made, made);
    if (!is_first && has_passed(&heap->looked_at, now, ANY_LOOK_INTERVAL)) {
        look(arena, (made - before) * MPX_BLOCK_UNIT);
    }
}

/* ---- End ------------------------------------------------------------------------------------- */

/* A program that makes queues and drops them makes as much as it drops. */
static void end_small(mpx_arena_t *arena, mpx_heap_shared_t *heap, uint64_t size)
{
    if (mpx_u64_fetch_add_relaxed(&heap->dropped, size) + size < IDLE_KEPT) {
        return;
    }
    mpx_u64_store_relaxed(&heap->dropped, 0);
    uint64_t made = mpx_u64_load_relaxed(&heap->made);
    uint64_t lately = (made - mpx_u64_load_relaxed(&heap->dropped_at)) * MPX_BLOCK_UNIT;
    mpx_u64_store_relaxed(&heap->dropped_at, made);
    mpx_heap_trim(arena, IDLE_KEPT + at_most(lately, MOST_KEPT));
}

void mpx_heap_end(mpx_arena_t *arena, uint64_t size, bool had_large)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    mpx_heap_stats_t stats;
    if (heap == NULL) {
        return;
    }
    if (!had_large) {
        end_small(arena, heap, size);
        return;
    }
    if (stored(arena, &stats) <= LEAST_KEPT) {
        return;
    }
    mpx_u64_store_relaxed(&heap->flowed, 0);
    mpx_u64_store_relaxed(&heap->kept, 0);
    if (stats.owned > LEAST_KEPT) {
        mpx_heap_sweep(arena);
    }
    mpx_heap_trim(arena, LEAST_KEPT);
}
