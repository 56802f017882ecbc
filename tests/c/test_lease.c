/* test_lease.c - blocks on loan: who holds them, what they are bounded by, when they are free. */
#include "harness.h"
#include "heap_blocks.h"

#include "mpx_arena_pvt.h"
#include "mpx_lease.h"

#include <errno.h>
#include <signal.h>
#include <unistd.h>

enum { UNITS = 3, OFTEN = 2000, FEW = 300 };

static uint64_t owned(mpx_arena_t *arena)
{
    return stats_of(arena).owned;
}

static struct model new_model(mpx_arena_t *arena, uint64_t mark)
{
    struct model model = {.owner = own(arena), .units = UNITS, .mark = mark};
    model.block = make(arena, model.owner, UNITS * UNIT);
    write_marks(arena, &model);
    return model;
}

static mpx_lease_t take(mpx_arena_t *arena, mpx_block_t block)
{
    mpx_lease_t lease;
    CHECK_EQ(mpx_lease_take(&lease, arena, block), 0);
    return lease;
}

/* ---- One process ----------------------------------------------------------------------------- */

TEST(a_block_on_loan_stays_and_is_free_at_its_end)
{
    mpx_arena_t *arena = home();
    struct model model = new_model(arena, 1);
    mpx_lease_t lease = take(arena, model.block);
    CHECK_EQ(lease.size, UNITS * UNIT);
    CHECK_EQ(mpx_lease_total(), UNITS * UNIT);
    CHECK(!mpx_heap_free(arena, model.block, model.owner)); /* not its own any more */
    mpx_heap_sweep(arena);
    check_marks(arena, &model);
    CHECK_EQ(owned(arena), UNITS * UNIT);
    mpx_lease_end(&lease);
    size_t size;
    CHECK(mpx_heap_at(arena, model.block, &size) == NULL);
    CHECK_EQ(owned(arena), 0);
    CHECK_EQ(mpx_lease_total(), 0);
    CHECK(!mpx_slots_is_taken(arena, (mpx_slot_t)lease.owner));
}

TEST(leases_end_in_any_order_each_with_its_own_block)
{
    enum { COUNT = 200 };
    mpx_arena_t *arena = home();
    struct model models[COUNT];
    mpx_lease_t leases[COUNT];
    for (size_t i = 0; i < COUNT; i++) {
        models[i] = new_model(arena, i + 1);
        leases[i] = take(arena, models[i].block);
    }
    for (size_t i = 0; i < COUNT; i++) {
        size_t k = i * 77 % COUNT;
        check_marks(arena, &models[k]);
        mpx_lease_end(&leases[k]);
        CHECK_EQ(owned(arena), (uint64_t)(COUNT - 1 - i) * UNITS * UNIT);
    }
}

/* ---- The bound ------------------------------------------------------------------------------- */

TEST(above_the_limit_there_is_no_lease_and_the_block_stays_the_callers)
{
    mpx_arena_t *arena = home();
    struct model one = new_model(arena, 1), other = new_model(arena, 2);
    mpx_lease_t lease = take(arena, one.block), refused;
    mpx_lease_set_limit((2 * UNITS * UNIT) - 1);
    CHECK_EQ(mpx_lease_take(&refused, arena, other.block), -EDQUOT);
    CHECK_EQ(mpx_lease_total(), UNITS * UNIT);
    check_marks(arena, &other);
    mpx_lease_set_limit(2 * UNITS * UNIT);
    mpx_lease_t second = take(arena, other.block);
    mpx_lease_set_limit(1); /* takes nothing away */
    check_marks(arena, &one);
    mpx_lease_end(&lease);
    struct model third = new_model(arena, 3);
    CHECK_EQ(mpx_lease_take(&refused, arena, third.block), -EDQUOT);
    CHECK(mpx_heap_free(arena, third.block, third.owner));
    mpx_lease_end(&second);
    CHECK_EQ(owned(arena), 0);
    CHECK_EQ(mpx_lease_total(), 0);
}

TEST(the_limit_is_a_part_of_the_memory)
{
    uint64_t limit = mpx_lease_limit();
    CHECK(limit > 0 && limit < (uint64_t)INT64_MAX);
    CHECK_EQ(mpx_lease_limit(), limit);
    mpx_lease_set_limit(4711);
    CHECK_EQ(mpx_lease_limit(), 4711);
    mpx_lease_set_limit(0);
    CHECK(mpx_lease_limit() > 4711);
}

/* ---- What cannot be lent --------------------------------------------------------------------- */

TEST(what_is_no_block_of_this_process_is_not_lent)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot;
    mpx_heap_owner_t others = new_owner(arena, &slot);
    mpx_block_t block = make(arena, others, UNIT), gone = make(arena, own(arena), UNIT);
    mpx_lease_t lease;
    CHECK(mpx_heap_free(arena, gone, own(arena)));
    CHECK_EQ(mpx_lease_take(&lease, arena, 0), -EPROTO);
    CHECK_EQ(mpx_lease_take(&lease, arena, gone), -EPROTO);
    CHECK_EQ(mpx_lease_take(&lease, arena, UINT64_MAX), -EPROTO);
    for (int i = 0; i < OFTEN; i++) { /* and no slot is lost by it */
        CHECK_EQ(mpx_lease_take(&lease, arena, block), -EPROTO);
    }
    CHECK_EQ(mpx_lease_total(), 0);
    CHECK_EQ(mpx_u32_load_relaxed(&arena->shared->regions), 1);
    CHECK_EQ(owned(arena), UNIT);
}

TEST(without_a_slot_there_is_no_lease)
{
    enum { SLOTS = 200 };
    mpx_arena_t *arena = home();
    struct model model = new_model(arena, 1);
    mpx_lease_t lease;
    mpx_slot_t slot;
    inject("arena_references", ENOMEM, 0, ALWAYS);
    for (int i = 0; i < SLOTS && mpx_slot_new(arena, &slot) == 0; i++) {
    }
    CHECK_EQ(mpx_lease_take(&lease, arena, model.block), -ENOMEM);
    CHECK_EQ(mpx_lease_total(), 0);
    inject_nothing();
    check_marks(arena, &model);
    CHECK(mpx_heap_free(arena, model.block, model.owner));
}

TEST(in_an_arena_that_frees_nothing_no_block_is_lent)
{
    mpx_arena_t *arena = home();
    struct model model = new_model(arena, 1);
    mpx_lease_t lease;
    mpx_u32_store_relaxed(&arena->shared->pinned, 1);
    CHECK_EQ(mpx_lease_take(&lease, arena, model.block), -EBUSY);
    CHECK(mpx_heap_free(arena, model.block, model.owner));
    CHECK_EQ(mpx_lease_total(), 0);
}

/* ---- Forks ----------------------------------------------------------------------------------- */

struct family {
    mpx_arena_t *arena;
    struct model model;
    mpx_lease_t lease;
    mpx_atomic_u32 parent_is_done;
};

static struct family *new_family(void)
{
    struct family *family = shared_memory(sizeof(*family));
    family->arena = home();
    family->model = new_model(family->arena, 1);
    family->lease = take(family->arena, family->model.block);
    return family;
}

static void wait_for_parent(struct family *family)
{
    while (!mpx_u32_load_relaxed(&family->parent_is_done)) {
        usleep(100);
    }
}

static void outlive_parents_lease(void *argument)
{
    struct family *family = argument;
    CHECK_EQ(mpx_lease_total(), UNITS * UNIT);
    wait_for_parent(family);
    mpx_heap_sweep(family->arena);
    for (uint64_t mark = 2; mark < 20; mark++) {
        struct model another = new_model(family->arena, mark);
        CHECK(mpx_heap_free(family->arena, another.block, another.owner));
    }
    check_marks(family->arena, &family->model);
    mpx_lease_end(&family->lease);
    CHECK_EQ(mpx_lease_total(), 0);
    CHECK_EQ(owned(family->arena), 0); /* at once: nobody has to look */
}

TEST(a_forked_child_keeps_what_its_parent_gives_back)
{
    struct family *family = new_family();
    pid_t pid = start_process(outlive_parents_lease, family);
    mpx_lease_end(&family->lease);
    CHECK_EQ(owned(family->arena), UNITS * UNIT);
    mpx_u32_store_relaxed(&family->parent_is_done, 1);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(owned(family->arena), 0);
    free_shared_memory(family, sizeof(*family));
}

static void end_inherited(void *argument)
{
    struct family *family = argument;
    mpx_lease_end(&family->lease);
    mpx_heap_sweep(family->arena);
}

TEST(a_parent_keeps_what_its_child_gives_back)
{
    struct family *family = new_family();
    CHECK_EQ(wait_for(start_process(end_inherited, family)), 0);
    mpx_heap_sweep(family->arena);
    check_marks(family->arena, &family->model);
    mpx_lease_end(&family->lease);
    CHECK_EQ(owned(family->arena), 0);
    free_shared_memory(family, sizeof(*family));
}

static void take_one_more(void *argument)
{
    struct family *family = argument;
    struct model model = new_model(family->arena, 2);
    mpx_lease_t lease;
    CHECK_EQ(mpx_lease_take(&lease, family->arena, model.block), -EDQUOT);
}

TEST(what_a_child_inherits_counts_in_it)
{
    struct family *family = new_family();
    mpx_lease_set_limit(2 * UNITS * UNIT - 1);
    CHECK_EQ(wait_for(start_process(take_one_more, family)), 0);
    mpx_lease_end(&family->lease);
    free_shared_memory(family, sizeof(*family));
}

static void take_and_die(void *argument)
{
    struct family *family = argument;
    struct model model = new_model(family->arena, 2);
    take(family->arena, model.block);
    raise(SIGKILL);
}

TEST(a_dead_process_gives_back_what_it_had_and_only_that)
{
    struct family *family = new_family();
    CHECK(was_killed(wait_for(start_process(take_and_die, family))));
    CHECK_EQ(owned(family->arena), 2 * UNITS * UNIT);
    mpx_heap_sweep(family->arena);
    CHECK_EQ(owned(family->arena), UNITS * UNIT);
    check_marks(family->arena, &family->model);
    mpx_lease_end(&family->lease);
    mpx_heap_sweep(family->arena); /* the child had this one too */
    CHECK_EQ(owned(family->arena), 0);
    free_shared_memory(family, sizeof(*family));
}

/* ---- A crowd --------------------------------------------------------------------------------- */

/* Passes a block on, and takes what another has passed on as a loan. */
static bool work_with_lease(struct crowd *crowd, unsigned *seed)
{
    mpx_arena_t *arena = crowd->arena;
    mpx_heap_owner_t mine = own(arena);
    struct model model = {.owner = mine, .units = 1 + (size_t)(rand_r(seed) % 4)};
    model.mark = mpx_u32_fetch_add_relaxed(&crowd->marks, 1) + 1;
    model.block = make(arena, mine, model.units * UNIT);
    write_marks(arena, &model);
    if (!mpx_heap_give(arena, model.block, mine, crowd->shared)) {
        return false;
    }
    mpx_block_t taken = mpx_u64_exchange_acq_rel(&crowd->passed[rand_r(seed) % 8], model.block);
    if (taken == 0) {
        return true;
    }
    mpx_lease_t lease;
    if (!mpx_heap_give(arena, taken, crowd->shared, mine) ||
        mpx_lease_take(&lease, arena, taken) < 0) {
        return false;
    }
    bool whole = is_whole(arena, taken);
    /* Only its holder writes to it: somebody else's mark would be seen. */
    uint64_t mark = mpx_u32_fetch_add_relaxed(&crowd->marks, 1) + 1;
    model = (struct model){.block = taken, .units = lease.size / UNIT, .mark = mark};
    write_marks(arena, &model);
    whole = is_whole(arena, taken) && whole;
    mpx_lease_end(&lease);
    return whole;
}

static void work_often(void *argument)
{
    struct crowd *crowd = argument;
    unsigned seed = mpx_u32_fetch_add_relaxed(&crowd->marks, 1);
    for (int i = 0; i < (emulated() ? FEW : OFTEN); i++) {
        bool well = work_with_lease(crowd, &seed);
        (void)mpx_u32_fetch_add_relaxed(&crowd->failures, !well);
    }
}

static void check_crowd(struct crowd *crowd, mpx_slot_t slot)
{
    CHECK_EQ(mpx_u32_load_relaxed(&crowd->failures), 0);
    CHECK_EQ(mpx_lease_total(), 0);
    mpx_slot_drop(crowd->arena, slot);
    mpx_heap_free_all(crowd->arena, crowd->shared);
    mpx_heap_sweep(crowd->arena);
    CHECK_EQ(owned(crowd->arena), 0);
    free_shared_memory(crowd, sizeof(*crowd));
}

TEST(threads_never_share_a_block)
{
    mpx_slot_t slot;
    struct crowd *crowd = new_crowd(&slot);
    run_in_threads(work_often, crowd);
    check_crowd(crowd, slot);
}

TEST(processes_never_share_a_block)
{
    mpx_slot_t slot;
    struct crowd *crowd = new_crowd(&slot);
    run_in_processes(work_often, crowd);
    check_crowd(crowd, slot);
}
