/* test_heap_crash.c - what is left of a heap when processes are killed in the middle. */
#include "harness.h"
#include "heap_blocks.h"

#include "mpx_arena_pvt.h"
#include "mpx_heap_pvt.h"

#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KILLS = 150, ROUNDS = 12 };

/* ---- Whether a heap is whole ----------------------------------------------------------------- */

struct sums {
    uint64_t owned;  /* units of one owner */
    uint64_t stored; /* units that have storage */
    uint64_t touched;
};

/* Each unit belongs to one run. */
static void check_extent(const mpx_extent_t *extent, mpx_heap_owner_t owner, struct sums *sums)
{
    uint32_t next = 0; /* where a run begins */
    for (uint32_t index = 0; index < extent->length; index++) {
        mpx_run_t *run = extent->runs + index;
        uint64_t meta = mpx_u64_load_relaxed(&run->meta);
        uint64_t word = mpx_u64_load_relaxed(&run->owner);
        if (index == next) {
            CHECK(mpx_run_length(extent, index) != 0);
            next += mpx_run_length(extent, index);
            sums->owned += mpx_owner_in(word) == owner ? mpx_run_length(extent, index) : 0;
            CHECK(word == 0 || (meta & MPX_RUN_HEAD));
            CHECK(word == 0 || word >> 48 == (mpx_generation_of(meta) & 0xffff));
        } else {
            CHECK(!(meta & MPX_RUN_HEAD) && word == 0);
        }
        CHECK((meta & MPX_RUN_TOUCHED) || !(meta & MPX_RUN_STORED));
        sums->stored += (meta & MPX_RUN_STORED) != 0;
        sums->touched += (meta & MPX_RUN_TOUCHED) != 0;
    }
    CHECK_EQ(next, extent->length);
}

/* What the kernel has given the file: all that is stored, and no more than what was touched, beside
 * the arena's own and what it had to spare before each extent. */
static void check_storage(mpx_arena_t *arena, const struct sums *sums)
{
    struct stat file = {.st_blocks = 0};
    mpx_heap_stats_t stats = stats_of(arena);
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    CHECK_EQ(fstat(mpx_arena_fd(arena), &file), 0);
    uint64_t bytes = (uint64_t)file.st_blocks * 512;
    uint64_t others = used - stats.size + (stats.extents + 1) * (uint64_t)MEGA / 2;
    CHECK(bytes >= sums->stored * UNIT);
    CHECK(bytes <= sums->touched * UNIT + others);
}

/* Nobody is at it; the bytes of one owner. */
static uint64_t check_whole(mpx_arena_t *arena, mpx_heap_owner_t owner)
{
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    struct sums sums = {.owned = 0};
    for (uint32_t number = 0; heap != NULL && number < mpx_heap_extents(heap); number++) {
        mpx_extent_t extent;
        CHECK(mpx_extent_at(arena, heap, number, &extent));
        check_extent(&extent, owner, &sums);
    }
    check_storage(arena, &sums);
    return sums.owned * UNIT;
}

/* The dead have nothing, and the living what they had: so much. */
static void check_owned(mpx_arena_t *arena, mpx_heap_owner_t shared, uint64_t others)
{
    mpx_heap_sweep(arena);
    uint64_t bytes = check_whole(arena, shared);
    CHECK_EQ(stats_of(arena).owned, bytes + others);
}

/* ---- Killed at each step --------------------------------------------------------------------- */

struct victim {
    mpx_arena_t *arena;
    mpx_heap_owner_t shared;
    const char *step;
};

static void leave_to_be_swept(mpx_arena_t *arena)
{
    mpx_slot_t slot;
    make(arena, new_owner(arena, &slot), 2 * UNIT);
    mpx_slot_drop(arena, slot);
    mpx_heap_sweep(arena);
}

/* Everything that stores to a heap. */
static void do_everything(mpx_arena_t *arena, mpx_heap_owner_t shared)
{
    mpx_heap_owner_t mine = own(arena);
    mpx_block_t blocks[4];
    for (size_t i = 0; i < 4; i++) {
        blocks[i] = make(arena, mine, (i + 1) * UNIT);
    }
    for (size_t i = 0; i < 4; i++) {
        CHECK(mpx_heap_give(arena, blocks[i], mine, shared));
    }
    for (size_t i = 4; i-- > 0;) {
        CHECK(mpx_heap_free(arena, blocks[i], shared));
    }
    CHECK(mpx_heap_free(arena, make(arena, mine, 10 * UNIT), mine));
    leave_to_be_swept(arena);
    mpx_heap_trim(arena, UNIT);
    if (stats_of(arena).size < 12 * MEGA) {
        make(arena, mine, stats_of(arena).size + UNIT);
    }
}

static void do_until_killed(void *argument)
{
    struct victim *victim = argument;
    signal_at_step(victim->step, SIGKILL);
    for (int i = 0; i < ROUNDS; i++) {
        do_everything(victim->arena, victim->shared);
    }
}

static void check_killed_at(const char *step)
{
    mpx_arena_t *arena = NULL;
    mpx_slot_t slot;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    CHECK_EQ(mpx_arena_move(&arena), 0); /* a new one for each step */
    struct victim victim = {arena, new_owner(arena, &slot), step};
    struct model kept = {.owner = own(arena), .units = 3, .mark = 4711};
    kept.block = make(arena, kept.owner, kept.units * UNIT);
    write_marks(arena, &kept);
    int status = wait_for(start_process(do_until_killed, &victim));
    CHECK(was_killed(status));
    if (!was_killed(status)) {
        fprintf(stderr, "not killed at %s\n", step);
    }
    check_owned(arena, victim.shared, 3 * UNIT);
    for (int i = 0; i < 3; i++) {
        do_everything(arena, victim.shared);
        check_marks(arena, &kept);
    }
    CHECK(check_whole(arena, kept.owner) >= 3 * UNIT);
    mpx_slot_drop(arena, slot);
    mpx_heap_free_all(arena, victim.shared);
    CHECK_EQ(check_whole(arena, victim.shared), 0);
}

TEST(killed_at_each_step)
{
    if (emulated()) {
        return; /* at each death memcheck reads all that is mapped, and views end behind the file */
    }
    static const char *const steps[] = {
        "arena_stored", "arena_lengthened", "arena_units",      "grow_allocated", "grow_published",
        "heap_entry",   "heap_extent",      "heap_extended",    "heap_beheaded",  "heap_merged",
        "heap_rest",    "heap_split",       "heap_rest_headed", "heap_taken",     "heap_given",
        "heap_freed",   "heap_swept",       "heap_touched",     "heap_allocated", "heap_unstored",
        "heap_punched",
    };
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(steps); s++) {
        check_killed_at(steps[s]);
    }
    keeps_descriptors((int)MPX_ARRAY_LENGTH(steps) + 1);
}

/* The segment is longer than what has storage, and what is handed out next must have some. */
TEST(killed_before_an_extent_is_reserved_its_bytes_are_used_with_storage)
{
    enum { SLOTS = 3 * MEGA / MPX_SLOT_SIZE };
    mpx_slot_t slot;
    mpx_arena_t *arena = home();
    struct victim victim = {arena, new_owner(arena, &slot), "arena_lengthened"};
    CHECK(was_killed(wait_for(start_process(do_until_killed, &victim))));
    uint64_t known = 0, used = 0;
    for (int i = 0; i < SLOTS; i++) {
        CHECK_EQ(mpx_slot_new(arena, &slot), 0);
        used = mpx_u64_load_relaxed(&arena->shared->used);
        if (used != known) { /* most of it nobody has touched yet */
            struct stat file = {.st_blocks = 0};
            CHECK_EQ(fstat(mpx_arena_fd(arena), &file), 0);
            CHECK((uint64_t)file.st_blocks * 512 >= used);
            known = used;
        }
    }
    CHECK(used >= (uint64_t)SLOTS * MPX_SLOT_SIZE);
}

static void make_much(void *arena)
{
    signal_at_step("heap_touched", SIGKILL);
    make(arena, own(arena), 4 * MEGA);
}

TEST(killed_before_there_is_storage_none_is_promised)
{
    mpx_arena_t *arena = home();
    CHECK(was_killed(wait_for(start_process(make_much, arena))));
    check_owned(arena, own(arena), 0);
}

/* ---- Killed anywhere ------------------------------------------------------------------------- */

static void labour(void *argument)
{
    struct crowd *crowd = argument;
    unsigned seed = (unsigned)getpid();
    for (unsigned i = 1;; i++) {
        work(crowd, &seed);
        if (i % 16 == 0) {
            do_everything(crowd->arena, crowd->shared);
        }
    }
}

TEST(killed_at_random)
{
    if (emulated()) {
        return;
    }
    mpx_slot_t slot;
    struct crowd *crowd = new_crowd(&slot);
    for (int round = 0; round < 2; round++) {
        kill_at_random(labour, crowd, &crowd->marks, KILLS);
        CHECK_EQ(mpx_u32_load_relaxed(&crowd->failures), 0);
        check_owned(crowd->arena, crowd->shared, 0);
        for (int i = 0; i < 8; i++) {
            mpx_block_t block = mpx_u64_exchange_acq_rel(&crowd->passed[i], 0);
            CHECK(block == 0 || consume(crowd, block));
        }
    }
    CHECK(stats_of(crowd->arena).size < 256 * MEGA);
    /* Dropping the slot may not free it: a child that was killed in the fork itself may hold it. */
    *(uint64_t *)mpx_slot_at(crowd->arena, slot) = 0;
    mpx_heap_free_all(crowd->arena, crowd->shared);
    CHECK_EQ(check_whole(crowd->arena, crowd->shared), 0);
    CHECK_EQ(stats_of(crowd->arena).owned, 0);
    free_shared_memory(crowd, sizeof(*crowd));
}
