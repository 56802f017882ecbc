/* test_lease_crash.c - blocks on loan when processes are killed: none lost, none freed that
 * somebody can reach. From the producer to the lease: a ring, as queues use it. */
#include "harness.h"
#include "heap_blocks.h"

#include "mpx_arena_pvt.h"
#include "mpx_lease.h"
#include "mpx_ring_pvt.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

enum { UNITS = 2, MESSAGES = 4, ROUNDS = 40, KILLS = 200 };

/* What all share; `held` and `children` are told by victims before they may die. */
struct scene {
    mpx_arena_t *arena;
    const char *step;
    mpx_atomic_u32 marks;
    mpx_atomic_u32 failures;
    mpx_atomic_u32 grandchild; /* its pid, once it has looked at what it inherits */
    mpx_atomic_u32 may_end;
    mpx_atomic_u32 received;
    bool forks;
};

/* Each process has its own handle, a copy of its parent's. */
static mpx_ring_t ring;

static struct scene *new_scene(void)
{
    struct scene *scene = shared_memory(sizeof(*scene));
    CHECK_EQ(mpx_arena_home(&scene->arena), 0);
    CHECK_EQ(mpx_arena_move(&scene->arena), 0); /* a new one for each */
    CHECK_EQ(mpx_ring_create(&ring, scene->arena, MPX_RING_UNLIMITED), 0);
    return scene;
}

/* Bytes that somebody owns, after a look for the dead, beside the ring's own two blocks. */
static uint64_t owned(struct scene *scene)
{
    mpx_heap_sweep(scene->arena);
    return stats_of(scene->arena).owned;
}

/* Puts a block whose units begin and end with the mark. */
static bool put(struct scene *scene, uint64_t mark)
{
    mpx_arena_t *arena = scene->arena;
    struct model model = {.owner = own(arena), .units = UNITS, .mark = mark};
    model.block = make(arena, model.owner, UNITS * UNIT);
    write_marks(arena, &model);
    mpx_message_t message = {.data = &mark, .size = sizeof(mark), .block = model.block};
    return mpx_ring_put(&ring, &message, much_later()) == 0;
}

/* Takes a message's block on loan. 0; -EAGAIN: there is none. */
static int get(struct scene *scene, mpx_lease_t *lease, struct model *model)
{
    uint64_t mark;
    mpx_message_t message;
    int status = mpx_ring_get_now(&ring, &mark, sizeof(mark), &message, much_later());
    if (status == 0) {
        *model = (struct model){.block = message.block, .units = UNITS, .mark = mark};
        status = mpx_lease_take(lease, scene->arena, message.block);
    }
    return status;
}

/* ---- Killed at each step --------------------------------------------------------------------- */

static void work_until_killed(void *argument)
{
    struct scene *scene = argument;
    struct model model;
    mpx_lease_t leases[MESSAGES];
    signal_at_step(scene->step, SIGKILL);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MESSAGES; i++) {
            CHECK(put(scene, mpx_u32_fetch_add_relaxed(&scene->marks, 1) + 1));
        }
        for (int i = 0; i < MESSAGES; i++) {
            CHECK_EQ(get(scene, &leases[i], &model), 0);
            check_marks(scene->arena, &model);
        }
        for (int i = 0; i < MESSAGES; i++) {
            mpx_lease_end(&leases[i]);
        }
    }
}

/* What is left is what messages have that are still there. */
static void check_killed_at(const char *step)
{
    struct scene *scene = new_scene();
    uint64_t rings = owned(scene);
    scene->step = step;
    CHECK(put(scene, 1000)); /* these are the living one's */
    struct model kept;
    mpx_lease_t lease, next;
    CHECK_EQ(get(scene, &lease, &kept), 0);
    int status = wait_for(start_process(work_until_killed, scene));
    CHECK(was_killed(status));
    if (!was_killed(status)) {
        fprintf(stderr, "not killed at %s\n", step);
    }
    CHECK(put(scene, 2000)); /* settles what the dead one has noted */
    struct model model = {.block = 0};
    int left = 0;
    while (get(scene, &next, &model) == 0) {
        check_marks(scene->arena, &model);
        mpx_lease_end(&next);
        left++;
    }
    CHECK(left >= 1 && left <= MESSAGES + 1);
    CHECK_EQ(model.mark, 2000);
    check_marks(scene->arena, &kept);
    CHECK_EQ(owned(scene), rings + UNITS * UNIT);
    mpx_lease_end(&lease);
    CHECK_EQ(owned(scene), rings);
    CHECK_EQ(mpx_lease_total(), 0);
    mpx_ring_drop(&ring);
    CHECK_EQ(owned(scene), 0);
    free_shared_memory(scene, sizeof(*scene));
}

TEST(killed_at_each_step)
{
    if (emulated()) {
        return; /* at each death memcheck reads all that is mapped, and views end behind the file */
    }
    static const char *const steps[] = {
        "ring_gift_noted", "ring_given",      "ring_published", "ring_copied",  "ring_take_noted",
        "ring_taken",      "ring_take_given", "slot_taken",     "slot_held",    "lease_slot",
        "lease_keyed",     "heap_given",      "lease_taken",    "slot_dropped", "slot_freed",
        "lease_dropped",   "heap_freed",      "lease_ended",
    };
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(steps); s++) {
        check_killed_at(steps[s]);
    }
    keeps_descriptors((int)MPX_ARRAY_LENGTH(steps) + 1);
}

/* ---- Killed with a child that has it too ----------------------------------------------------- */

struct heir {
    struct scene *scene;
    mpx_lease_t *lease;
    const struct model *model;
};

static void hold_on(void *argument)
{
    struct heir *heir = argument;
    struct scene *scene = heir->scene;
    mpx_u32_store_relaxed(&scene->grandchild, (uint32_t)getpid());
    while (!mpx_u32_load_relaxed(&scene->may_end)) {
        usleep(100);
    }
    check_marks(scene->arena, heir->model);
    mpx_u32_store_relaxed(&scene->received, 1);
    mpx_lease_end(heir->lease);
}

static void take_fork_and_die(void *argument)
{
    struct scene *scene = argument;
    struct model model;
    mpx_lease_t lease;
    CHECK_EQ(get(scene, &lease, &model), 0);
    struct heir heir = {scene, &lease, &model};
    (void)start_process(hold_on, &heir);
    while (!mpx_u32_load_relaxed(&scene->grandchild)) {
        usleep(100);
    }
    signal_at_step(scene->step, SIGKILL);
    if (scene->step != NULL) {
        mpx_lease_end(&lease);
    }
    raise(SIGKILL);
}

static void check_heir(const char *step)
{
    struct scene *scene = new_scene();
    uint64_t rings = owned(scene);
    scene->step = step;
    CHECK(put(scene, 1));
    CHECK(was_killed(wait_for(start_process(take_fork_and_die, scene))));
    CHECK_EQ(owned(scene), rings + UNITS * UNIT);
    for (uint64_t mark = 2; mark < 40; mark++) { /* these would be written over it */
        struct model model;
        mpx_lease_t lease;
        CHECK(put(scene, mark));
        CHECK_EQ(get(scene, &lease, &model), 0);
        mpx_lease_end(&lease);
    }
    mpx_u32_store_relaxed(&scene->may_end, 1);
    pid_t pid = (pid_t)mpx_u32_load_relaxed(&scene->grandchild);
    while (kill(pid, 0) == 0) { /* no child of this one: init, or the harness, reaps it */
        usleep(100);
        CHECK_EQ(mpx_u32_load_relaxed(&scene->failures), 0);
        if (mpx_u32_load_relaxed(&scene->received) && owned(scene) == rings) {
            break;
        }
    }
    CHECK_EQ(mpx_u32_load_relaxed(&scene->received), 1);
    CHECK_EQ(owned(scene), rings);
    mpx_ring_drop(&ring);
    free_shared_memory(scene, sizeof(*scene));
}

TEST(an_heir_of_the_dead_keeps_the_block)
{
    static const char *const steps[] = {NULL, "slot_dropped", "lease_dropped", "lease_ended"};
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(steps); s++) {
        check_heir(steps[s]);
    }
    keeps_descriptors((int)MPX_ARRAY_LENGTH(steps) + 1);
}

/* ---- Killed anywhere ------------------------------------------------------------------------- */

/* Blocks that are written to while they are on loan: whoever shared one would see another's mark.
 */
static void labour(void *argument)
{
    struct scene *scene = argument;
    unsigned seed = (unsigned)getpid();
    mpx_lease_t leases[MESSAGES];
    struct model models[MESSAGES];
    size_t count = 0;
    for (;;) {
        uint64_t mark = mpx_u32_fetch_add_relaxed(&scene->marks, 1) + 1;
        bool well = put(scene, mark);
        int status = count < MESSAGES ? get(scene, &leases[count], &models[count]) : -EAGAIN;
        if (status == 0) {
            struct model *model = &models[count++];
            well = is_whole(scene->arena, model->block) && well;
            model->mark = mark << 32 | model->mark;
            write_marks(scene->arena, model);
        }
        well = well && (status == 0 || status == -EAGAIN);
        if (count > 0 && rand_r(&seed) % 2) {
            size_t k = (size_t)rand_r(&seed) % count;
            uint64_t found = *(uint64_t *)mpx_heap_at(scene->arena, models[k].block, &(size_t){0});
            well = found == models[k].mark && is_whole(scene->arena, models[k].block) && well;
            mpx_lease_end(&leases[k]);
            leases[k] = leases[--count];
            models[k] = models[count];
        }
        if (scene->forks && rand_r(&seed) % 64 == 0) {
            pid_t child = fork(); /* which has them too, and dies with them */
            if (child == 0) {
                _exit(0);
            }
            well = child > 0 && wait_for(child) == 0 && well;
        }
        (void)mpx_u32_fetch_add_relaxed(&scene->failures, !well);
    }
}

static struct scene *kill_labourers(bool forks)
{
    struct scene *scene = new_scene();
    struct model model;
    mpx_lease_t lease;
    scene->forks = forks;
    kill_at_random(labour, scene, &scene->marks, KILLS);
    CHECK_EQ(mpx_u32_load_relaxed(&scene->failures), 0);
    CHECK(put(scene, 1)); /* settles what the dead have noted */
    while (get(scene, &lease, &model) == 0) {
        check_marks(scene->arena, &model);
        mpx_lease_end(&lease);
    }
    CHECK_EQ(mpx_lease_total(), 0);
    keeps_descriptors(2);
    return scene;
}

TEST(killed_at_random)
{
    if (emulated()) {
        return;
    }
    struct scene *scene = kill_labourers(false);
    /* Dropping the slot may not free it: a child that was killed in the fork itself may hold it. */
    *(uint64_t *)mpx_slot_at(ring.arena, ring.slot) = 0;
    mpx_heap_free_all(ring.arena, ring.owner);
    CHECK_EQ(owned(scene), 0);
    free_shared_memory(scene, sizeof(*scene));
}

/* Who is killed in the middle of a fork leaves the child's record for a minute, and with it what
 * the child would have had on loan. */
TEST(killed_at_random_with_heirs)
{
    if (emulated()) {
        return;
    }
    struct scene *scene = kill_labourers(true);
    *(uint64_t *)mpx_slot_at(ring.arena, ring.slot) = 0;
    mpx_heap_free_all(ring.arena, ring.owner);
    CHECK(owned(scene) <= (uint64_t)KILLS / 10 * MESSAGES * UNITS * UNIT);
    free_shared_memory(scene, sizeof(*scene));
}
