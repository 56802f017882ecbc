/* test_heap.c - blocks of shared memory: made, given, freed, inherited, left by the dead. */
#include "harness.h"

#include "mpx_heap.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { UNIT = MPX_BLOCK_UNIT, MEGA = 1024 * 1024 };

static mpx_arena_t *home(void)
{
    mpx_arena_t *arena = NULL;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    return arena;
}

static mpx_heap_owner_t own(mpx_arena_t *arena)
{
    mpx_heap_owner_t owner = 0;
    CHECK_EQ(mpx_heap_own(arena, &owner), 0);
    return owner;
}

static mpx_heap_owner_t new_owner(mpx_arena_t *arena, mpx_slot_t *slot)
{
    mpx_heap_owner_t owner = 0;
    CHECK_EQ(mpx_slot_new(arena, slot), 0);
    CHECK_EQ(mpx_heap_owner_new(arena, *slot, &owner), 0);
    return owner;
}

static mpx_block_t make(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size)
{
    mpx_block_t block = 0;
    void *address = NULL;
    CHECK_EQ(mpx_heap_new(arena, owner, size, &block, &address), 0);
    CHECK(block != 0 && address != NULL);
    return block;
}

static mpx_heap_stats_t stats_of(mpx_arena_t *arena)
{
    mpx_heap_stats_t stats;
    mpx_heap_stats(arena, &stats);
    return stats;
}

/* ---- One process ----------------------------------------------------------------------------- */

TEST(a_block_is_there_until_it_is_freed)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    void *address = NULL;
    mpx_block_t block = 0;
    size_t size = 0;
    CHECK(mpx_heap_at(arena, 1, &size) == NULL); /* no heap yet */
    CHECK(!mpx_heap_free(arena, 1, owner));
    REQUIRE(mpx_heap_new(arena, owner, UNIT + 1, &block, &address) == 0);
    memset(address, 0x5a, 2 * UNIT);
    unsigned char *again = mpx_heap_at(arena, block, &size);
    REQUIRE(again != NULL);
    CHECK_EQ(size, 2 * UNIT);
    CHECK(again[0] == 0x5a && again[2 * UNIT - 1] == 0x5a);
    CHECK_EQ(stats_of(arena).owned, 2 * UNIT);
    CHECK(!mpx_heap_free(arena, block, owner + 1));
    CHECK(mpx_heap_free(arena, block, owner));
    CHECK(!mpx_heap_free(arena, block, owner));
    CHECK(mpx_heap_at(arena, block, &size) == NULL);
    CHECK_EQ(stats_of(arena).owned, 0);
}

TEST(what_was_freed_last_is_used_first_under_another_name)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t blocks[8];
    size_t size;
    for (int i = 0; i < 8; i++) {
        blocks[i] = make(arena, owner, 3 * UNIT);
    }
    void *address = mpx_heap_at(arena, blocks[5], &size);
    CHECK(mpx_heap_free(arena, blocks[2], owner));
    CHECK(mpx_heap_free(arena, blocks[5], owner));
    mpx_block_t block = make(arena, owner, 3 * UNIT);
    CHECK(block != blocks[5]);
    CHECK(mpx_heap_at(arena, block, &size) == address);
    CHECK(mpx_heap_at(arena, blocks[5], &size) == NULL);
    CHECK(!mpx_heap_free(arena, blocks[5], owner));
    CHECK(!mpx_heap_give(arena, blocks[5], owner, owner));
}

TEST(a_block_is_given_from_owner_to_owner)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot;
    mpx_heap_owner_t mine = own(arena), shared = new_owner(arena, &slot);
    mpx_block_t block = make(arena, mine, UNIT);
    CHECK(mpx_heap_give(arena, block, mine, shared));
    CHECK(!mpx_heap_give(arena, block, mine, shared));
    CHECK(!mpx_heap_free(arena, block, mine));
    mpx_heap_free_all(arena, shared);
    CHECK_EQ(stats_of(arena).owned, UNIT); /* the slot is held */
    mpx_slot_drop(arena, slot);
    mpx_heap_free_all(arena, shared);
    CHECK_EQ(stats_of(arena).owned, 0);
    CHECK(!mpx_heap_free(arena, block, shared));
}

TEST(trimmed_blocks_have_no_storage_and_get_it_again)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t kept = make(arena, owner, MEGA), freed = make(arena, owner, 4 * MEGA);
    size_t size;
    memset(mpx_heap_at(arena, kept, &size), 1, MEGA);
    memset(mpx_heap_at(arena, freed, &size), 2, 4 * MEGA);
    CHECK(mpx_heap_free(arena, freed, owner));
    CHECK_EQ(stats_of(arena).free_stored, 4 * MEGA);
    mpx_heap_trim(arena, MEGA);
    CHECK_EQ(stats_of(arena).free_stored, MEGA);
    mpx_heap_trim(arena, 0);
    CHECK_EQ(stats_of(arena).free_stored, 0);
    CHECK_EQ(stats_of(arena).owned, MEGA);
    unsigned char *address = mpx_heap_at(arena, kept, &size);
    CHECK(address[0] == 1 && address[MEGA - 1] == 1);
    freed = make(arena, owner, 4 * MEGA);
    address = mpx_heap_at(arena, freed, &size);
    CHECK(address[0] == 0 && address[4 * MEGA - 1] == 0);
}

/* A block as the model knows it: every unit begins with its mark. */
struct model {
    mpx_block_t block;
    mpx_heap_owner_t owner;
    size_t units;
    uint64_t mark;
};

static void write_marks(mpx_arena_t *arena, const struct model *model)
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

static void check_marks(mpx_arena_t *arena, const struct model *model)
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

enum { MODELS = 200, ROUNDS = 20000 };

TEST(blocks_never_overlap_and_keep_what_is_in_them)
{
    mpx_arena_t *arena = home();
    static struct model models[MODELS];
    mpx_slot_t slot;
    mpx_heap_owner_t owners[2] = {own(arena), new_owner(arena, &slot)};
    unsigned seed = 1;
    size_t units = 0;
    int rounds = emulated() ? ROUNDS / 20 : ROUNDS;
    for (int round = 1; round <= rounds; round++) {
        struct model *model = &models[rand_r(&seed) % MODELS];
        mpx_heap_owner_t other = owners[model->owner == owners[0]];
        if (model->block == 0) {
            model->units = 1 + (size_t)(rand_r(&seed) % (rand_r(&seed) % 10 == 0 ? 40 : 4));
            model->owner = owners[0];
            model->mark = (uint64_t)round;
            model->block = make(arena, model->owner, model->units * UNIT);
            write_marks(arena, model);
            units += model->units;
        } else if (rand_r(&seed) % 3 == 0) {
            CHECK(mpx_heap_give(arena, model->block, model->owner, other));
            model->owner = other;
        } else {
            check_marks(arena, model);
            CHECK(!mpx_heap_free(arena, model->block, other));
            CHECK(mpx_heap_free(arena, model->block, model->owner));
            model->block = 0;
            units -= model->units;
        }
        if (round % 1000 == 0) {
            mpx_heap_trim(arena, (size_t)(rand_r(&seed) % 32) * UNIT);
            CHECK_EQ(stats_of(arena).owned, units * UNIT);
            for (int i = 0; i < MODELS; i++) {
                if (models[i].block != 0) {
                    check_marks(arena, &models[i]);
                }
            }
        }
    }
    CHECK(stats_of(arena).size < 256 * MEGA);
}
