/* test_crew_crash.c - what is left in a lane when its worker is killed, or the parent: at each
 * step, and at random. Each task was not begun, or is lost, or has its answer; no block is lost.
 */
#include "crew_peer.h"

#include <stdio.h>

/* ---- A worker -------------------------------------------------------------------------------- */

/* What was found of the dead one's tasks. */
struct found {
    uint32_t offered, begun, done;
};

/* As crew.c does it. Who is not begun is left to be offered again: `again`, so many of them. */
static struct found bury(struct desk *desk, uint32_t *again)
{
    struct found found = {0, 0, 0};
    (void)collect(desk);
    for (uint32_t number = desk->oldest; number != desk->next; number++) {
        struct known *known = known_of(desk, number);
        if (!known->is_open) {
            continue;
        }
        switch (mpx_lane_state(&desk->lane, number)) {
        case MPX_CELL_OFFERED:
            CHECK_EQ(mpx_u32_load_relaxed(&desk->scene->begun[known->task]), 0);
            again[found.offered++] = known->task;
            break;
        case MPX_CELL_BEGUN:
            found.begun++;
            break;
        case MPX_CELL_DONE:
            CHECK_EQ(mpx_u32_load_relaxed(&desk->scene->done[known->task]), 1);
            found.done++;
            break;
        default:
            CHECK(!"a state that there is");
        }
        if (known->block != 0) {
            mpx_crew_free_block(&desk->scene->crew, known->block);
        }
        known->is_open = false;
    }
    mpx_lane_free_given(&desk->lane);
    mpx_lane_renew(&desk->lane);
    desk->oldest = desk->next = desk->open = 0;
    return found;
}

/* The crew has its lanes, and nobody has anything else. */
static void check_blocks(struct scene *scene, uint64_t lanes)
{
    mpx_arena_t *arena = scene->crew.arena;
    mpx_heap_sweep(arena);
    uint64_t of_a_lane = (sizeof(mpx_lane_room_t) + UNIT - 1) / UNIT * UNIT;
    CHECK_EQ(mpx_heap_owned_by(arena, scene->crew.owner), lanes * of_a_lane);
    CHECK_EQ(stats_of(arena).owned, lanes * of_a_lane);
}

/* Sleeps until the worker has answered something, or ended. */
static void listen(struct desk *desk)
{
    mpx_lane_t *lane = &desk->lane;
    uint32_t heard = mpx_crew_listen(&desk->scene->crew);
    int status = mpx_crew_sleep(&desk->scene->crew, heard, &lane, 1,
                                mpx_os_deadline(5 * MPX_NANOS_PER_MILLI));
    CHECK(status == 0 || status == -ETIMEDOUT);
}

static void wait_until_worker_sleeps(struct desk *desk)
{
    while (!(mpx_u64_load_relaxed(&desk->lane.room->tasks.tail) & 1) && !has_ended(desk->pid)) {
        sched_yield();
    }
}

enum { BATCH = 7, BATCHES = 12 };

/* Batches, each of which the worker does, or dies of. */
static void have_done(struct desk *desk, uint32_t first)
{
    for (uint32_t batch = 0; batch < BATCHES && !has_ended(desk->pid); batch++) {
        if (batch % 4 == 3) {
            wait_until_worker_sleeps(desk);
        }
        for (uint32_t i = 0; i < BATCH; i++) {
            CHECK(offer(desk, first + batch * BATCH + i));
        }
        mpx_lane_publish_tasks(&desk->lane);
        while (desk->open > 0 && !has_ended(desk->pid)) {
            if (!collect(desk)) {
                listen(desk);
            }
        }
    }
    (void)collect(desk);
}

static void tell_to_end(struct desk *desk)
{
    if (!has_ended(desk->pid)) {
        CHECK(mpx_spsc_reserve(&desk->lane.tasks, 0) != NULL);
        mpx_spsc_commit(&desk->lane.tasks, (mpx_spsc_header_t){.kind = STOP});
        mpx_lane_publish_tasks(&desk->lane);
    }
}

/* What is to be found of a worker that died there, where that is sure. */
struct step {
    const char *name;
    int begun, done; /* -1: any, but one in all at most */
};

static const struct step steps[] = {
    {"peer_began", 1, 0},      {"peer_noted", 1, 0},      {"peer_gave", 1, 0},
    {"peer_finished", 0, 1},   {"peer_answered", 0, 0},   {"spsc_written", 0, 1},
    {"spsc_published", 0, 0},  {"spsc_announced", 0, 0},  {"crew_rang", 0, 0},
    {"spsc_released", -1, 0},  {"heap_taken", 1, 0},      {"heap_given", 1, 0},
    {"heap_freed", 1, 0},      {"heap_split", 1, 0},      {"mutex_announced", 1, 0},
    {"mutex_released", 1, 0},  {"mutex_releasing", 1, 0}, {"owned_taken", 1, 0},
    {"heap_beheaded", -1, -1}, {"heap_merged", -1, -1},
};

/* Whether it died there. */
static bool check_killed_at(const struct step *step, uint32_t armed_from)
{
    static struct desk desk;
    static uint32_t again[MPX_CREW_CELLS];
    struct scene *scene = open_scene();
    open_desk(&desk, scene, 0);
    desk.post.step = step->name;
    desk.post.armed_from = armed_from;
    desk.post.shy = 4;
    start_worker(&desk);
    have_done(&desk, 0);
    tell_to_end(&desk);
    bool is_dead = was_killed(wait_for(desk.pid));
    uint32_t given = desk.next; /* no cell was used twice */
    struct found found = bury(&desk, again);
    CHECK_EQ(desk.answered + found.offered + found.begun + found.done, given);
    CHECK(found.begun + found.done <= 1);
    CHECK(!is_dead || step->begun < 0 || found.begun == (uint32_t)step->begun);
    CHECK(!is_dead || step->done < 0 || found.done == (uint32_t)step->done);
    check_blocks(scene, 1);
    /* The next one in the same lane. */
    desk.post.step = NULL;
    uint32_t before = desk.answered;
    start_worker(&desk);
    for (uint32_t i = 0; i < found.offered; i++) {
        CHECK(offer(&desk, again[i]));
    }
    have_done(&desk, 1000);
    tell_to_end(&desk);
    CHECK_EQ(wait_for(desk.pid), 0);
    CHECK_EQ(desk.answered - before, found.offered + BATCH * BATCHES);
    check_blocks(scene, 1);
    mpx_lane_free(&desk.lane);
    check_blocks(scene, 0);
    close_scene(scene);
    return is_dead;
}

TEST(a_worker_killed_at_each_step)
{
    static const uint32_t from[] = {0, 1, 20};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        int kills = 0;
        for (size_t j = 0; j < (emulated() ? 1 : MPX_ARRAY_LENGTH(from)); j++) {
            kills += check_killed_at(&steps[i], from[j]);
        }
        if (kills == 0) {
            fprintf(stderr, "not killed at %s\n", steps[i].name);
        }
        CHECK(kills > 0);
    }
}

/* A full ring, whose room the parent gives back; and the worker dies where it waits for that. */
TEST(a_worker_killed_while_it_waits_for_room)
{
    static struct desk desk;
    static uint32_t again[MPX_CREW_CELLS];
    struct scene *scene = open_scene();
    open_desk(&desk, scene, 0);
    start_worker(&desk);
    uint32_t task = 0;
    while (!(mpx_u64_load_relaxed(&desk.lane.room->results.head) & 1)) {
        if (offer(&desk, task)) {
            task++;
            mpx_lane_publish_tasks(&desk.lane);
        } else {
            sched_yield();
        }
        free_cells(&desk);
    }
    CHECK_EQ(kill(desk.pid, SIGKILL), 0);
    CHECK(was_killed(wait_for(desk.pid)));
    struct found found = bury(&desk, again);
    CHECK_EQ(found.begun, 1);
    CHECK_EQ(found.done, 0);
    CHECK(desk.answered > 0);
    CHECK_EQ(desk.answered + found.offered + found.begun, task);
    check_blocks(scene, 1);
    mpx_lane_free(&desk.lane);
    close_scene(scene);
}

/* ---- The parent's decisions, of one that dies ------------------------------------------------ */

struct stopped {
    struct post post;
    int signal;
};

static void be_stopped_worker(void *argument)
{
    struct stopped *stopped = argument;
    signal_at_step("peer_began", SIGSTOP);
    be_worker(&stopped->post);
}

/* It is doomed in the middle, goes on, and begins nothing more. */
TEST(a_doomed_worker_begins_nothing)
{
    static struct desk desk;
    static uint32_t again[MPX_CREW_CELLS];
    struct scene *scene = open_scene();
    open_desk(&desk, scene, 0);
    struct stopped stopped = {.post = desk.post};
    stopped.post.armed_from = UINT32_MAX; /* keep the step */
    desk.pid = start_process(be_stopped_worker, &stopped);
    for (uint32_t task = 0; task < 5; task++) {
        CHECK(offer(&desk, task));
    }
    mpx_lane_publish_tasks(&desk.lane);
    wait_until_stopped(desk.pid);
    CHECK(mpx_lane_revoke(&desk.lane, 3));
    CHECK(!mpx_lane_revoke(&desk.lane, 0));
    CHECK(mpx_lane_doom(&desk.lane, 0));
    CHECK(!mpx_lane_doom(&desk.lane, 1));
    CHECK_EQ(kill(desk.pid, SIGCONT), 0);
    CHECK_EQ(wait_for(desk.pid), 0);
    for (uint32_t task = 1; task < 5; task++) {
        CHECK_EQ(mpx_u32_load_relaxed(&scene->begun[task]), 0);
    }
    CHECK_EQ(mpx_lane_state(&desk.lane, 0), MPX_CELL_DOOMED);
    CHECK_EQ(mpx_lane_state(&desk.lane, 3), MPX_CELL_REVOKED);
    for (uint32_t number = 0; number < 4; number += 3) {
        struct known *known = known_of(&desk, number);
        if (known->block != 0) {
            mpx_crew_free_block(&scene->crew, known->block);
        }
        known->is_open = false;
        desk.open--;
    }
    struct found found = bury(&desk, again);
    CHECK_EQ(found.offered, 3);
    CHECK_EQ(found.begun + found.done, 0);
    check_blocks(scene, 1);
    mpx_lane_free(&desk.lane);
    close_scene(scene);
}

/* ---- The parent ------------------------------------------------------------------------------ */

static const char *deadly; /* where the parent dies */

static void be_parent(void *argument)
{
    static struct desk desk;
    struct scene *scene = argument;
    /* The arena is the grandparent's too; the crew is this process's. */
    CHECK_EQ(mpx_crew_create(&scene->crew, scene->crew.arena), 0);
    open_desk(&desk, scene, 0);
    start_worker(&desk);
    have_done(&desk, 0);
    signal_at_step(deadly, SIGKILL);
    for (uint32_t first = 1000; first < TASKS - BATCH * BATCHES; first += BATCH * BATCHES) {
        have_done(&desk, first);
    }
}

/* Its workers end, and what they have read was whole. */
TEST(the_parent_killed_at_each_step)
{
    if (emulated()) {
        return; /* a child has its parent's sign of life there, for want of MADV_DONTFORK */
    }
    static const char *const names[] = {
        "spsc_written", "spsc_published", "spsc_released", "spsc_announced",
        "heap_taken",   "heap_given",     "heap_freed",    "mutex_released",
    };
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(names); i++) {
        struct scene *scene = shared_memory(sizeof(*scene));
        scene->crew.arena = home();
        deadly = names[i];
        CHECK(was_killed(wait_for(start_process(be_parent, scene))));
        int64_t deadline = much_later();
        while (mpx_u32_load_acquire(&scene->ended) == 0 && mpx_os_now() < deadline) {
            sched_yield();
        }
        CHECK_EQ(mpx_u32_load_relaxed(&scene->ended), 1);
        CHECK_EQ(mpx_u32_load_relaxed(&scene->broken), 0);
        mpx_heap_sweep(scene->crew.arena);
        free_shared_memory(scene, sizeof(*scene));
    }
}

/* ---- A storm --------------------------------------------------------------------------------- */

enum { KILLS = 400, AHEAD = 60 };

/* Tasks go to the worker that has the fewest, and are offered again where they were not begun. */
static void give_tasks(struct desk *desks, uint32_t *waiting, uint32_t *waits, uint32_t *next)
{
    for (int i = 0; i < LANES; i++) {
        while (desks[i].open < AHEAD / 2) {
            uint32_t task = *waits > 0 ? waiting[*waits - 1] : *next;
            if (task >= TASKS || !offer(&desks[i], task)) {
                break;
            }
            *waits -= *waits > 0;
            *next += task == *next;
        }
        mpx_lane_publish_tasks(&desks[i].lane);
    }
}

TEST(workers_killed_at_random)
{
    static struct desk desks[LANES];
    static uint32_t waiting[LANES * MPX_CREW_CELLS];
    struct scene *scene = open_scene();
    mpx_lane_t *lanes[LANES];
    uint32_t waits = 0, next = 0, lost = 0, kills = 0, again = 0;
    uint32_t wanted = emulated() ? KILLS / 20 : KILLS;
    for (int i = 0; i < LANES; i++) {
        open_desk(&desks[i], scene, i);
        desks[i].post.shy = 7;
        lanes[i] = &desks[i].lane;
        start_worker(&desks[i]);
    }
    while (kills < wanted && next < TASKS) {
        give_tasks(desks, waiting, &waits, &next);
        uint32_t heard = mpx_crew_listen(&scene->crew);
        bool any = false;
        for (int i = 0; i < LANES; i++) {
            any |= collect(&desks[i]);
        }
        if (!any) {
            int status = mpx_crew_sleep(&scene->crew, heard, lanes, LANES,
                                        mpx_os_deadline(MPX_NANOS_PER_MILLI));
            CHECK(status == 0 || status == -ETIMEDOUT);
        }
        if (random_below(20) == 0) {
            struct desk *desk = &desks[random_below(LANES)];
            CHECK_EQ(kill(desk->pid, SIGKILL), 0);
            CHECK(was_killed(wait_for(desk->pid)));
            struct found found = bury(desk, waiting + waits);
            CHECK(found.begun + found.done <= 1);
            waits += found.offered;
            again += found.offered;
            lost += found.begun + found.done;
            kills++;
            start_worker(desk);
        }
    }
    uint32_t answered = 0;
    for (int i = 0; i < LANES; i++) {
        kill(desks[i].pid, SIGKILL);
        wait_for(desks[i].pid);
        struct found found = bury(&desks[i], waiting + waits);
        waits += found.offered;
        lost += found.begun + found.done;
        answered += desks[i].answered;
    }
    CHECK_EQ(answered + lost + waits, next);
    CHECK(lost <= kills + LANES);
    CHECK(lost > 0 && again > 0 && answered > 0);
    check_blocks(scene, LANES);
    for (int i = 0; i < LANES; i++) {
        mpx_lane_free(&desks[i].lane);
    }
    check_blocks(scene, 0);
    close_scene(scene);
}
