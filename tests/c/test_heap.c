/* test_heap.c - blocks of shared memory: made, given, freed, inherited, left by the dead. */
#include "harness.h"
#include "heap_blocks.h"

#include "mpx_arena_pvt.h"
#include "mpx_fault.h"
#include "mpx_heap_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static mpx_heap_shared_t *shared_of(mpx_arena_t *arena)
{
    return mpx_arena_unit(arena, mpx_u32_load_relaxed(&arena->shared->heap),
                          sizeof(mpx_heap_shared_t));
}

static mpx_run_t *run_of(mpx_arena_t *arena, mpx_block_t block)
{
    mpx_place_t place;
    return mpx_run_of(arena, block, &place);
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

/* Frees two of eight blocks; the next one that is made is in the place of the second. */
static void check_last_is_first(mpx_arena_t *arena, int first, int second)
{
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t blocks[8];
    size_t size;
    for (int i = 0; i < 8; i++) {
        blocks[i] = make(arena, owner, 3 * UNIT);
    }
    void *address = mpx_heap_at(arena, blocks[second], &size);
    CHECK(mpx_heap_free(arena, blocks[first], owner));
    CHECK(mpx_heap_free(arena, blocks[second], owner));
    mpx_block_t block = make(arena, owner, 3 * UNIT);
    CHECK(block != blocks[second]);
    CHECK(mpx_heap_at(arena, block, &size) == address);
    CHECK(mpx_heap_at(arena, blocks[second], &size) == NULL);
    CHECK(!mpx_heap_free(arena, blocks[second], owner));
    CHECK(!mpx_heap_give(arena, blocks[second], owner, owner));
    CHECK(mpx_heap_free(arena, block, owner));
    for (int i = 0; i < 8; i++) {
        CHECK(mpx_heap_free(arena, blocks[i], owner) == (i != first && i != second));
    }
}

TEST(what_was_freed_last_is_used_first_under_another_name)
{
    mpx_arena_t *arena = home();
    for (int first = 0; first < 8; first += 2) { /* with walls between them */
        for (int second = 0; second < 8; second += 2) {
            if (first != second) {
                check_last_is_first(arena, first, second);
            }
        }
    }
}

/* Also where there are more free blocks than anybody remembers. */
TEST(blocks_with_storage_are_used_before_others)
{
    enum { BLOCKS = 2 * MPX_HEAP_RECENT + 20 };
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t blocks[BLOCKS];
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = make(arena, owner, UNIT);
    }
    for (int i = 0; i < BLOCKS; i += 2) {
        CHECK(mpx_heap_free(arena, blocks[i], owner));
    }
    inject("fallocate", ENOSPC, 0, ALWAYS);
    for (int i = 0; i < BLOCKS; i += 2) {
        make(arena, owner, UNIT);
    }
    inject_nothing();
}

TEST(what_is_used_next_is_trimmed_last)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t used = make(arena, owner, 2 * UNIT), wall = make(arena, owner, UNIT);
    mpx_block_t unused = make(arena, owner, 2 * UNIT), other_wall = make(arena, owner, UNIT);
    CHECK(mpx_heap_free(arena, unused, owner));
    for (int i = 0; i < MPX_HEAP_RECENT + 1; i++) {
        CHECK(mpx_heap_free(arena, used, owner));
        used = make(arena, owner, 1 + UNIT);
    }
    CHECK(mpx_heap_free(arena, used, owner));
    mpx_heap_trim(arena, 2 * UNIT);
    CHECK_EQ(stats_of(arena).free_stored, 2 * UNIT);
    inject("fallocate", ENOSPC, 0, ALWAYS);
    make(arena, owner, 2 * UNIT);
    inject_nothing();
    CHECK(mpx_heap_free(arena, wall, owner) && mpx_heap_free(arena, other_wall, owner));
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

TEST(sizes_that_there_are_not)
{
    mpx_arena_t *arena = home();
    mpx_block_t block;
    void *address;
    size_t size;
    static const size_t sizes[] = {SIZE_MAX, SIZE_MAX / 2, (size_t)UNIT * MPX_RUN_LENGTH + 1};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sizes); i++) {
        CHECK_EQ(mpx_heap_new(arena, own(arena), sizes[i], &block, &address), -EFBIG);
    }
    CHECK(mpx_heap_new(arena, own(arena), (size_t)UNIT * MPX_RUN_LENGTH, &block, &address) < 0);
    CHECK_EQ(mpx_heap_new(arena, 0, UNIT, &block, &address), -EINVAL);
    CHECK_EQ(stats_of(arena).owned, 0);
    CHECK(mpx_heap_at(arena, make(arena, own(arena), 0), &size) != NULL);
    CHECK_EQ(size, UNIT);
    CHECK(!mpx_heap_give(arena, make(arena, own(arena), 1), own(arena), 0));
    CHECK(!mpx_heap_free(arena, make(arena, own(arena), 1), 0));
    CHECK(mpx_heap_at(arena, 0, &size) == NULL);
    CHECK(mpx_heap_at(arena, UINT64_MAX, &size) == NULL);
}

TEST(there_are_so_many_extents_and_units)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, MEGA);
    void *address;
    mpx_heap_shared_t *heap = shared_of(arena);
    mpx_u32_store_relaxed(&heap->extents, MPX_HEAP_EXTENTS);
    CHECK_EQ(mpx_heap_new(arena, owner, UNIT, &block, &address), -ENOSPC);
    mpx_u32_store_relaxed(&heap->extents, 1);
    mpx_u32_store_relaxed(&heap->extent[0].first, UINT32_MAX - 40);
    CHECK_EQ(mpx_heap_new(arena, owner, 24 * UNIT, &block, &address), -ENOSPC);
    CHECK_EQ(mpx_heap_new(arena, owner, 20 * UNIT, &block, &address), 0);
    CHECK(mpx_heap_free(arena, block, owner));
}

/* ---- Generations ----------------------------------------------------------------------------- */

TEST(generations_begin_again_after_the_last)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, UNIT);
    size_t size;
    CHECK(mpx_heap_free(arena, block, owner));
    mpx_atomic_u64 *meta = &run_of(arena, block)->meta;
    mpx_u64_store_relaxed(meta, (uint32_t)mpx_u64_load_relaxed(meta) | UINT64_C(0xfffffffe) << 32);
    mpx_block_t last = make(arena, owner, UNIT);
    CHECK(last == (UINT64_C(0xffffffff) << 32 | (uint32_t)block));
    CHECK(mpx_heap_at(arena, last, &size) != NULL);
    CHECK(mpx_heap_free(arena, last, owner));
    mpx_block_t first = make(arena, owner, UNIT);
    CHECK(first == (uint32_t)block && first != 0);
    CHECK(mpx_heap_at(arena, first, &size) != NULL);
    CHECK(mpx_heap_at(arena, last, &size) == NULL);
    CHECK(!mpx_heap_free(arena, last, owner));
    CHECK(!mpx_heap_free(arena, first + (UINT64_C(1) << 48), owner));
    CHECK(mpx_heap_give(arena, first, owner, owner));
    CHECK(mpx_heap_free(arena, first, owner));
}

/* ---- Storage --------------------------------------------------------------------------------- */

TEST(without_storage_nothing_is_made_and_nothing_lost)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, UNIT);
    void *address;
    mpx_heap_stats_t before = stats_of(arena);
    for (int i = 0; i < 200; i++) { /* then the arena has storage to spare for a table */
        mpx_slot_t slot;
        CHECK_EQ(mpx_slot_new(arena, &slot), 0);
    }
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    inject("fallocate", ENOSPC, 0, ALWAYS);
    for (int i = 0; i < 100; i++) {
        CHECK_EQ(mpx_heap_new(arena, owner, 3 * UNIT, &block, &address), -ENOSPC);
        CHECK_EQ(mpx_heap_new(arena, owner, 2 * MEGA, &block, &address), -ENOSPC);
    }
    inject_nothing();
    CHECK_EQ(mpx_u64_load_relaxed(&arena->shared->used), used);
    CHECK_EQ(stats_of(arena).owned, before.owned);
    CHECK_EQ(stats_of(arena).size, before.size);
    CHECK_EQ(stats_of(arena).free_stored, before.free_stored);
    make(arena, owner, 3 * UNIT);
    CHECK_EQ(stats_of(arena).owned, before.owned + 3 * UNIT);
}

TEST(a_block_that_cannot_have_all_its_storage_has_none)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, MEGA);
    void *address;
    CHECK(mpx_heap_free(arena, block, owner));
    inject("fallocate", ENOSPC, 6, ALWAYS);
    CHECK_EQ(mpx_heap_new(arena, owner, 64 * MEGA, &block, &address), -ENOSPC);
    inject_nothing();
    CHECK_EQ(stats_of(arena).owned, 0);
    CHECK(stats_of(arena).free_stored <= MEGA);
    struct stat file = {.st_blocks = 0};
    CHECK_EQ(fstat(mpx_arena_fd(arena), &file), 0);
    CHECK((uint64_t)file.st_blocks * 512 < 2 * MEGA);
}

TEST(storage_of_free_blocks_is_given_back_where_it_is_needed_elsewhere)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t freed = make(arena, owner, 2 * UNIT), kept = make(arena, owner, UNIT);
    CHECK(mpx_heap_free(arena, freed, owner));
    inject("fallocate", ENOSPC, 0, 1);
    make(arena, owner, 4 * UNIT);
    inject_nothing();
    CHECK_EQ(stats_of(arena).free_stored, 0);
    CHECK(mpx_heap_free(arena, kept, owner));
}

TEST(much_is_made_only_where_there_is_room)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, 2 * MEGA), other;
    void *address;
    CHECK(mpx_heap_free(arena, block, owner));
    inject("heap_headroom", 0, 0, ALWAYS);
    block = make(arena, owner, 2 * MEGA); /* has its storage */
    CHECK_EQ(mpx_heap_new(arena, owner, MEGA, &other, &address), -ENOMEM);
    CHECK_EQ(mpx_heap_new(arena, owner, UNIT, &other, &address), -ENOMEM);
    CHECK(mpx_heap_free(arena, block, owner));
    inject_nothing();
    inject("heap_headroom", 0, 0, 1); /* then what is free was given back */
    make(arena, owner, 3 * MEGA);
    inject_nothing();
}

/* One look is enough for some small ones, but not for many. */
TEST(small_ones_are_made_where_there_was_room_just_now)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block;
    void *address;
    int count = 0;
    make(arena, owner, UNIT);
    inject("heap_headroom", 0, 0, ALWAYS);
    while (mpx_heap_new(arena, owner, UNIT, &block, &address) == 0) {
        count++;
    }
    inject_nothing();
    CHECK(count > 0 && (size_t)count <= 16 * MEGA / UNIT);
    make(arena, owner, UNIT);
}

static void fill_up_to_a_limit(void *unused)
{
    (void)unused;
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, UNIT), first = block;
    void *address;
    struct rlimit limit = {8 * MEGA, 8 * MEGA};
    CHECK_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
    int status, blocks = 1;
    while ((status = mpx_heap_new(arena, owner, UNIT, &block, &address)) == 0) {
        memset(address, 1, UNIT);
        blocks++;
    }
    CHECK_EQ(status, -EFBIG);
    CHECK(blocks >= 6 * MEGA / UNIT);
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    for (int i = 0; i < 20; i++) {
        CHECK_EQ(mpx_heap_new(arena, owner, UNIT, &block, &address), -EFBIG);
    }
    CHECK_EQ(mpx_u64_load_relaxed(&arena->shared->used), used);
    CHECK(mpx_heap_free(arena, first, owner));
    CHECK_EQ(mpx_heap_new(arena, owner, UNIT, &block, &address), 0);
}

TEST(a_limit_of_files_ends_the_heap_and_not_the_process)
{
    CHECK_EQ(wait_for(start_process(fill_up_to_a_limit, NULL)), 0);
}

TEST(a_closed_descriptor_leaves_what_there_is)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, UNIT), other;
    void *address;
    size_t size;
    memset(mpx_heap_at(arena, block, &size), 3, UNIT);
    int fd = mpx_arena_fd(arena), stranger = open("/dev/null", O_RDWR | O_CLOEXEC);
    close(fd);
    CHECK_EQ(mpx_heap_new(arena, owner, 2 * UNIT, &other, &address), -EBADF);
    CHECK_EQ(dup2(stranger, fd), fd);
    CHECK_EQ(mpx_heap_new(arena, owner, 64 * MEGA, &other, &address), -ESTALE);
    mpx_heap_trim(arena, 0);
    CHECK(*(char *)mpx_heap_at(arena, block, &size) == 3);
    CHECK(mpx_heap_free(arena, block, owner));
    mpx_heap_trim(arena, 0);
    make(arena, owner, UNIT);
    CHECK_EQ(stats_of(arena).owned, UNIT);
    close(stranger);
}

TEST(memory_of_a_burst_is_given_back_by_and_by)
{
    if (emulated()) {
        return; /* takes a while there */
    }
    enum { BURST = 96 };
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t blocks[BURST];
    for (int i = 0; i < BURST; i++) {
        blocks[i] = make(arena, owner, 2 * MEGA);
    }
    for (int i = 0; i < BURST; i++) {
        CHECK(mpx_heap_free(arena, blocks[i], owner));
    }
    CHECK_EQ(stats_of(arena).free_stored, BURST * 2 * MEGA);
    for (int i = 0; i < 200 * 1000; i++) {
        CHECK(mpx_heap_free(arena, make(arena, owner, UNIT), owner));
    }
    CHECK(stats_of(arena).free_stored < 80 * MEGA);
    mpx_block_t block = make(arena, owner, MEGA);
    for (int i = 0; i < 200; i++) { /* what is in use all the time stays */
        CHECK(mpx_heap_free(arena, block, owner));
        inject("fallocate", ENOSPC, 0, ALWAYS);
        block = make(arena, owner, MEGA);
        inject_nothing();
    }
}

/* ---- Several threads and processes ----------------------------------------------------------- */

static void work_often(void *argument)
{
    struct crowd *crowd = argument;
    unsigned seed = mpx_u32_fetch_add_relaxed(&crowd->marks, 1);
    for (int i = 0; i < (emulated() ? 50 : 2000); i++) {
        mpx_slot_t slot;
        work(crowd, &seed);
        make(crowd->arena, new_owner(crowd->arena, &slot), UNIT);
        mpx_slot_drop(crowd->arena, slot);
        if (i % 50 == 0) {
            mpx_heap_trim(crowd->arena, 4 * UNIT);
            mpx_heap_sweep(crowd->arena);
        }
    }
}

static void check_crowd(struct crowd *crowd, mpx_slot_t slot)
{
    uint64_t passed = 0;
    CHECK_EQ(mpx_u32_load_relaxed(&crowd->failures), 0);
    for (int i = 0; i < 8; i++) {
        size_t size = 0;
        if (mpx_u64_load_relaxed(&crowd->passed[i]) != 0) {
            CHECK(mpx_heap_at(crowd->arena, mpx_u64_load_relaxed(&crowd->passed[i]), &size));
            passed += size;
        }
    }
    mpx_heap_sweep(crowd->arena);
    CHECK_EQ(stats_of(crowd->arena).owned, passed);
    mpx_slot_drop(crowd->arena, slot);
    mpx_heap_free_all(crowd->arena, crowd->shared);
    CHECK_EQ(stats_of(crowd->arena).owned, 0);
    free_shared_memory(crowd, sizeof(*crowd));
}

TEST(threads_make_give_and_free)
{
    mpx_slot_t slot;
    struct crowd *crowd = new_crowd(&slot);
    run_in_threads(work_often, crowd);
    check_crowd(crowd, slot);
}

TEST(processes_make_give_and_free)
{
    mpx_slot_t slot;
    struct crowd *crowd = new_crowd(&slot);
    run_in_processes(work_often, crowd);
    check_crowd(crowd, slot);
}

/* ---- Fork and death -------------------------------------------------------------------------- */

struct family {
    mpx_arena_t *arena;
    mpx_atomic_u64 shared, parents, childs; /* blocks */
    mpx_heap_owner_t owner;
    mpx_heap_owner_t grandparent;
    mpx_atomic_u32 ready;
    mpx_slot_t slot;
};

/* A child that holds what its parent shared, and not its parent's own. */
static void inherit(void *argument)
{
    struct family *family = argument;
    mpx_arena_t *arena = family->arena;
    size_t size;
    CHECK(mpx_heap_at(arena, mpx_u64_load_relaxed(&family->shared), &size) != NULL);
    mpx_heap_owner_t mine = own(arena);
    mpx_u64_store_relaxed(&family->childs, make(arena, mine, UNIT));
    CHECK(!mpx_heap_free(arena, mpx_u64_load_relaxed(&family->parents), mine));
    mpx_u32_store_release(&family->ready, 1);
    for (;;) {
        pause();
    }
}

static void fork_and_wait(void *argument)
{
    struct family *family = argument;
    mpx_arena_t *arena = family->arena;
    mpx_u64_store_relaxed(&family->parents, make(arena, own(arena), UNIT));
    CHECK(own(arena) != family->grandparent);
    mpx_heap_owner_t owner = new_owner(arena, &family->slot);
    mpx_u64_store_relaxed(&family->shared, make(arena, owner, UNIT));
    start_process(inherit, family);
    for (;;) {
        pause();
    }
}

static bool is_there(mpx_arena_t *arena, mpx_atomic_u64 *block)
{
    size_t size;
    return mpx_heap_at(arena, mpx_u64_load_relaxed(block), &size) != NULL;
}

TEST(a_child_keeps_what_was_shared_and_not_what_was_its_parents_own)
{
    struct family *family = shared_memory(sizeof(*family));
    mpx_arena_t *arena = family->arena = home();
    family->grandparent = own(arena);
    pid_t pid = start_process(fork_and_wait, family);
    while (!mpx_u32_load_acquire(&family->ready)) {
        usleep(1000);
    }
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, 3 * UNIT);
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
    mpx_heap_sweep(arena);
    CHECK(is_there(arena, &family->childs) && is_there(arena, &family->shared));
    if (emulated()) {
        return; /* emulators let MADV_DONTFORK be: a child holds its parent's sign of life */
    }
    CHECK(!is_there(arena, &family->parents));
    CHECK_EQ(stats_of(arena).owned, 2 * UNIT);
}

/* What a process that is started by exec is told. */
struct message {
    char path[64];
    uint32_t seat;
    mpx_slot_t slot;
    mpx_heap_owner_t shared;
    mpx_block_t block;
};

/* Stands for such a process: it was forked before there was an arena. */
static void receive(void *argument)
{
    struct message message;
    mpx_arena_t *arena;
    size_t size = 0;
    CHECK_EQ(read(*(int *)argument, &message, sizeof(message)), sizeof(message));
    int fd = open(message.path, O_RDWR | O_CLOEXEC);
    REQUIRE(mpx_arena_attach(&arena, fd, message.seat) == 0);
    CHECK_EQ(mpx_slot_take(arena, message.slot), 0);
    char *bytes = mpx_heap_at(arena, message.block, &size);
    REQUIRE(bytes != NULL);
    CHECK_EQ(size, 20 * UNIT);
    CHECK_EQ(bytes[20 * UNIT - 1], 7);
    CHECK(mpx_heap_give(arena, message.block, message.shared, own(arena)));
    CHECK(mpx_heap_free(arena, message.block, own(arena)));
    bytes = mpx_heap_at(arena, make(arena, message.shared, 40 * UNIT), &size);
    bytes[40 * UNIT - 1] = 8;
    make(arena, own(arena), UNIT);
    close(fd);
}

TEST(a_process_that_is_started_by_exec_has_the_same_blocks)
{
    int ends[2];
    struct message message = {.seat = 0};
    CHECK_EQ(pipe(ends), 0);
    pid_t pid = start_process(receive, &ends[0]);
    mpx_arena_t *arena = home();
    message.shared = new_owner(arena, &message.slot);
    message.block = make(arena, message.shared, 20 * UNIT);
    size_t size;
    memset(mpx_heap_at(arena, message.block, &size), 7, 20 * UNIT);
    CHECK_EQ(mpx_arena_seat(arena, &message.seat), 0);
    CHECK_EQ(mpx_arena_give(arena, message.seat, message.slot), 0);
    mpx_arena_settle(arena, message.seat, pid);
    snprintf(message.path, sizeof(message.path), "/proc/%d/fd/%d", (int)getpid(),
             mpx_arena_fd(arena));
    CHECK_EQ(write(ends[1], &message, sizeof(message)), sizeof(message));
    CHECK_EQ(wait_for(pid), 0);
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, 40 * UNIT); /* the slot is held here, and not its own */
    mpx_slot_drop(arena, message.slot);
    mpx_heap_free_all(arena, message.shared);
    CHECK_EQ(stats_of(arena).owned, 0);
    close(ends[0]);
    close(ends[1]);
}

static void die_with_blocks(void *argument)
{
    mpx_arena_t *arena = argument;
    for (int i = 0; i < 20; i++) {
        make(arena, own(arena), MEGA / 2);
    }
    raise(SIGKILL);
}

TEST(a_heap_does_not_grow_with_the_dead)
{
    mpx_arena_t *arena = home();
    int deaths = emulated() ? 8 : 40;
    for (int i = 0; i < deaths; i++) {
        CHECK(was_killed(wait_for(start_process(die_with_blocks, arena))));
    }
    CHECK(stats_of(arena).size < 64 * MEGA);
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, 0);
}

TEST(another_owner_in_the_same_slot_has_nothing_of_the_former)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot, again;
    mpx_heap_owner_t owner = new_owner(arena, &slot);
    mpx_block_t block = make(arena, owner, UNIT);
    mpx_slot_drop(arena, slot);
    mpx_heap_owner_t other = new_owner(arena, &again);
    CHECK_EQ(again, slot);
    CHECK(other != owner);
    CHECK(!mpx_heap_free(arena, block, other));
    mpx_heap_free_all(arena, other);
    CHECK_EQ(stats_of(arena).owned, UNIT);
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, 0);
    make(arena, other, UNIT);
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, UNIT);
    *(uint64_t *)mpx_slot_at(arena, slot) = 0; /* it is another kind of slot now */
    mpx_heap_sweep(arena);
    CHECK_EQ(stats_of(arena).owned, 0);
}

/* ---- Damage ---------------------------------------------------------------------------------- */

static uint64_t any_number(unsigned *seed)
{
    uint64_t number =
        (uint64_t)rand_r(seed) << 33 ^ (uint64_t)rand_r(seed) << 15 ^ (uint64_t)rand_r(seed);
    switch (rand_r(seed) % 6) {
    case 0:
        return 0;
    case 1:
        return number % 64;
    case 2:
        return (uint32_t)number;
    case 3:
        return number | UINT64_C(0xffff0000);
    case 4:
        return UINT64_MAX;
    default:
        return number;
    }
}

/* Writes anything into the directory and into the table of runs. */
static void damage(mpx_arena_t *arena, mpx_run_t *runs, unsigned *seed, bool directory)
{
    mpx_heap_shared_t *heap = shared_of(arena);
    for (int i = rand_r(seed) % 8; i >= 0; i--) {
        mpx_run_t *run = &runs[rand_r(seed) % 16];
        mpx_u64_store_relaxed(rand_r(seed) % 2 ? &run->meta : &run->owner, any_number(seed));
    }
    mpx_u32_store_relaxed(&heap->rover, (uint32_t)any_number(seed));
    for (int i = 0; i < MPX_HEAP_RECENT; i += 3) {
        mpx_u32_store_relaxed(&heap->recent[i], (uint32_t)any_number(seed));
    }
    if (directory) {
        mpx_extent_entry_t *entry = &heap->extent[rand_r(seed) % 3];
        mpx_atomic_u32 *fields[] = {&entry->at, &entry->first, &entry->length, &heap->extents};
        mpx_u32_store_relaxed(fields[rand_r(seed) % 4], (uint32_t)any_number(seed));
    }
    mpx_u64_store_relaxed(&heap->taken, any_number(seed));
    mpx_u64_store_relaxed(&heap->peak, any_number(seed));
}

static void use_damaged(void *argument)
{
    unsigned seed = *(unsigned *)argument;
    mpx_arena_t *arena = home();
    mpx_slot_t slot;
    mpx_heap_owner_t owner = own(arena), other = new_owner(arena, &slot);
    mpx_block_t blocks[8] = {make(arena, owner, UNIT), make(arena, owner, MEGA)};
    mpx_run_t *runs = run_of(arena, blocks[0]);
    bool directory = seed % 2;
    inject("fallocate", ENOSPC, 20, ALWAYS); /* there are no terabytes to be had */
    for (int i = 0; i < 50; i++) {
        mpx_block_t *block = &blocks[rand_r(&seed) % 8];
        void *address;
        size_t size = (size_t)(1 + rand_r(&seed) % 20) * UNIT;
        damage(arena, runs, &seed, directory);
        if (mpx_heap_new(arena, owner, size, block, &address) < 0) {
            *block = any_number(&seed);
        }
        char *bytes = mpx_heap_at(arena, *block, &size);
        if (bytes != NULL && !directory) {
            bytes[0] = bytes[size - 1] = 1;
        }
        (void)mpx_heap_give(arena, *block, owner, other);
        (void)mpx_heap_free(arena, blocks[rand_r(&seed) % 8], rand_r(&seed) % 2 ? owner : other);
        mpx_heap_free_all(arena, any_number(&seed));
        mpx_heap_sweep(arena);
        mpx_heap_trim(arena, (size_t)(rand_r(&seed) % 2) * UNIT);
        (void)stats_of(arena);
    }
    _exit(0);
}

/* What it says leads to no memory that is not the heap's, and the heap does not grow by it. */
TEST(an_extent_that_is_damaged_is_none)
{
    mpx_arena_t *arena = home();
    mpx_heap_owner_t owner = own(arena);
    mpx_block_t block = make(arena, owner, UNIT), other;
    mpx_extent_entry_t *entry = &shared_of(arena)->extent[0];
    mpx_atomic_u32 *fields[] = {&entry->at, &entry->table, &entry->length};
    static const uint32_t values[] = {0, 1, 16, 1024, 2048, 5000, 1 << 20, UINT32_MAX};
    size_t size = 0;
    void *address;
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(fields) * MPX_ARRAY_LENGTH(values); i++) {
        mpx_atomic_u32 *field = fields[i / MPX_ARRAY_LENGTH(values)];
        uint32_t before = mpx_u32_load_relaxed(field), value = values[i % MPX_ARRAY_LENGTH(values)];
        if (value == before || (field == &entry->length && value < 4096)) {
            continue; /* the same place */
        }
        mpx_u32_store_relaxed(field, value);
        CHECK(mpx_heap_at(arena, block, &size) == NULL);
        CHECK_EQ(mpx_heap_new(arena, owner, UNIT, &other, &address), -EPROTO);
        mpx_u32_store_relaxed(field, before);
    }
    CHECK(mpx_heap_at(arena, block, &size) != NULL);
    CHECK(mpx_heap_free(arena, block, owner));
}

TEST(a_damaged_heap_crashes_nobody)
{
    for (unsigned seed = 1; seed <= (emulated() ? 10 : 200); seed++) {
        int status = wait_for(start_process(use_damaged, &seed));
        CHECK(WIFEXITED(status));
        if (!WIFEXITED(status)) {
            fprintf(stderr, "seed %u: signal %d\n", seed, WTERMSIG(status));
        }
    }
}
