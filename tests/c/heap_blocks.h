/* heap_blocks.h - what the tests of the heap share: blocks whose contents are known. */
#ifndef HEAP_BLOCKS_H
#define HEAP_BLOCKS_H

#include "harness.h"

#include "mpx_heap.h"

#include <stdlib.h>
#include <string.h>

enum { UNIT = MPX_BLOCK_UNIT, MEGA = 1024 * 1024 };

static inline mpx_arena_t *home(void)
{
    mpx_arena_t *arena = NULL;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    return arena;
}

static inline mpx_heap_owner_t own(mpx_arena_t *arena)
{
    mpx_heap_owner_t owner = 0;
    CHECK_EQ(mpx_heap_own(arena, &owner), 0);
    return owner;
}

static inline mpx_heap_owner_t new_owner(mpx_arena_t *arena, mpx_slot_t *slot)
{
    mpx_heap_owner_t owner = 0;
    CHECK_EQ(mpx_slot_new(arena, slot), 0);
    CHECK_EQ(mpx_heap_owner_new(arena, *slot, &owner), 0);
    return owner;
}

static inline mpx_block_t make(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size)
{
    mpx_block_t block = 0;
    void *address = NULL;
    CHECK_EQ(mpx_heap_new(arena, owner, size, &block, &address), 0);
    CHECK(block != 0 && address != NULL);
    return block;
}

static inline mpx_heap_stats_t stats_of(mpx_arena_t *arena)
{
    mpx_heap_stats_t stats;
    mpx_heap_stats(arena, &stats);
    return stats;
}

/* A block as the model knows it: every unit begins with its mark. */
struct model {
    mpx_block_t block;
    mpx_heap_owner_t owner;
    size_t units;
    uint64_t mark;
};

static inline void write_marks(mpx_arena_t *arena, const struct model *model)
{
    size_t size = 0;
    unsigned char *address = mpx_heap_at(arena, model->block, &size);
    REQUIRE(address != NULL);
    CHECK_EQ(size, model->units * UNIT);
    for (size_t i = 0; i < model->units; i++) {
        memcpy(address + i * UNIT, &model->mark, sizeof(model->mark));
        memcpy(address + (i + 1) * UNIT - 8, &model->mark, sizeof(model->mark));
    }
}

static inline void check_marks(mpx_arena_t *arena, const struct model *model)
{
    size_t size = 0;
    unsigned char *address = mpx_heap_at(arena, model->block, &size);
    REQUIRE(address != NULL);
    CHECK_EQ(size, model->units * UNIT);
    for (size_t i = 0; i < model->units; i++) {
        CHECK(memcmp(address + i * UNIT, &model->mark, sizeof(model->mark)) == 0);
        CHECK(memcmp(address + (i + 1) * UNIT - 8, &model->mark, sizeof(model->mark)) == 0);
    }
}

/* ---- A crowd that passes blocks on ----------------------------------------------------------- */

struct crowd {
    mpx_arena_t *arena;
    mpx_heap_owner_t shared;
    mpx_atomic_u64 passed[8]; /* blocks that are shared's; 0: none */
    mpx_atomic_u32 marks;
    mpx_atomic_u32 failures; /* also of those who are killed */
};

/* Whether each unit of the block begins and ends with the mark of the first one. */
static inline bool is_whole(mpx_arena_t *arena, mpx_block_t block)
{
    size_t size = 0;
    unsigned char *address = mpx_heap_at(arena, block, &size);
    bool whole = address != NULL;
    for (size_t at = 0; at < size && whole; at += UNIT) {
        whole = memcmp(address, address + at, 8) == 0 &&
                memcmp(address, address + at + UNIT - 8, 8) == 0;
    }
    return whole;
}

/* Takes a block that was passed on, and frees it. */
static inline bool consume(struct crowd *crowd, mpx_block_t block)
{
    mpx_heap_owner_t mine = own(crowd->arena);
    return mpx_heap_give(crowd->arena, block, crowd->shared, mine) &&
           is_whole(crowd->arena, block) && mpx_heap_free(crowd->arena, block, mine);
}

/* Makes a block and passes it on, and takes one that another has passed on. */
static inline void work(struct crowd *crowd, unsigned *seed)
{
    mpx_arena_t *arena = crowd->arena;
    struct model model = {.owner = own(arena), .units = 1 + (size_t)(rand_r(seed) % 5)};
    model.mark = mpx_u32_fetch_add_relaxed(&crowd->marks, 1) + 1;
    model.block = make(arena, model.owner, model.units * UNIT);
    write_marks(arena, &model);
    bool well = is_whole(arena, model.block) &&
                mpx_heap_give(arena, model.block, model.owner, crowd->shared);
    mpx_atomic_u64 *place = &crowd->passed[rand_r(seed) % 8];
    mpx_block_t taken = mpx_u64_exchange_acq_rel(place, well ? model.block : 0);
    if (taken != 0) {
        well = consume(crowd, taken) && well;
    }
    (void)mpx_u32_fetch_add_relaxed(&crowd->failures, !well);
}

static inline struct crowd *new_crowd(mpx_slot_t *slot)
{
    struct crowd *crowd = shared_memory(sizeof(*crowd));
    crowd->arena = home();
    crowd->shared = new_owner(crowd->arena, slot);
    return crowd;
}

#endif
