/* test_crew.c - crews and their lanes: making and opening them, what becomes of tasks, blocks, and
 * the bell. Deaths are in test_crew_crash.c.
 */
#include "crew_peer.h"

#include <pthread.h>

static mpx_lane_t new_lane(mpx_crew_t *crew)
{
    mpx_lane_t lane;
    CHECK_EQ(mpx_lane_create(&lane, crew), 0);
    return lane;
}

static int64_t soon(void)
{
    return mpx_os_deadline(20 * MPX_NANOS_PER_MILLI);
}

/* ---- Making and opening ---------------------------------------------------------------------- */

TEST(a_crew_is_made_and_dropped)
{
    mpx_arena_t *arena = home();
    uint64_t before = stats_of(arena).owned;
    for (int i = 0; i < 3; i++) {
        mpx_crew_t crew;
        CHECK_EQ(mpx_crew_create(&crew, arena), 0);
        CHECK(mpx_crew_has_parent(&crew));
        mpx_lane_t first = new_lane(&crew), second = new_lane(&crew);
        CHECK(first.block != second.block);
        mpx_lane_free(&first);
        CHECK(stats_of(arena).owned > before);
        CHECK_EQ(mpx_crew_drop(&crew), (sizeof(mpx_lane_room_t) + UNIT - 1) / UNIT * UNIT);
        CHECK_EQ(stats_of(arena).owned, before);
        CHECK(second.room != NULL);
    }
}

/* Who has the slot too keeps the blocks. */
TEST(a_crew_that_others_have_stays)
{
    mpx_crew_t crew, other;
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&crew, arena), 0);
    mpx_lane_t lane = new_lane(&crew), theirs;
    mpx_slot_hold(arena, crew.slot);
    CHECK_EQ(mpx_crew_open(&other, arena, crew.slot), 0);
    CHECK_EQ(other.owner, crew.owner);
    CHECK_EQ(mpx_crew_drop(&crew), 0);
    CHECK_EQ(mpx_lane_open(&theirs, &other, lane.block), 0);
    CHECK(mpx_crew_drop(&other) > 0);
}

TEST(what_is_no_crew_is_not_opened)
{
    mpx_crew_t crew;
    mpx_slot_t slot;
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_open(&crew, arena, 0), -EPROTO);
    CHECK_EQ(mpx_crew_open(&crew, arena, 123456789), -EPROTO);
    CHECK_EQ(mpx_slot_new(arena, &slot), 0);
    CHECK_EQ(mpx_crew_open(&crew, arena, slot), -EPROTO);
    new_owner(arena, &slot);
    CHECK_EQ(mpx_crew_open(&crew, arena, slot), -EPROTO);
}

TEST(what_is_no_lane_is_not_opened)
{
    mpx_crew_t crew;
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&crew, arena), 0);
    mpx_lane_t lane = new_lane(&crew), opened;
    CHECK_EQ(mpx_lane_open(&opened, &crew, lane.block), 0);
    CHECK(opened.room == lane.room);
    CHECK_EQ(mpx_lane_open(&opened, &crew, 0), -EPROTO);
    CHECK_EQ(mpx_lane_open(&opened, &crew, lane.block ^ UINT64_C(1) << 40), -EPROTO);
    CHECK_EQ(mpx_lane_open(&opened, &crew, make(arena, crew.owner, UNIT)), -EPROTO); /* short */
    mpx_block_t long_enough = make(arena, crew.owner, sizeof(mpx_lane_room_t));
    size_t size;
    memset(mpx_heap_at(arena, long_enough, &size), 0, sizeof(mpx_lane_room_t));
    CHECK_EQ(mpx_lane_open(&opened, &crew, long_enough), -EPROTO);
    lane.room->magic++;
    CHECK_EQ(mpx_lane_open(&opened, &crew, lane.block), -EPROTO);
    mpx_lane_renew(&lane);
    CHECK_EQ(mpx_lane_open(&opened, &crew, lane.block), 0);
    mpx_block_t block = lane.block;
    mpx_lane_free(&lane);
    CHECK_EQ(mpx_lane_open(&opened, &crew, block), -EPROTO);
    (void)mpx_crew_drop(&crew);
}

/* Until there is memory again. */
TEST(without_memory_there_is_no_crew_and_no_lane)
{
    enum { MANY = 20000 };
    static mpx_crew_t crews[MANY];
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&crews[0], arena), 0);
    mpx_lane_t lane = new_lane(&crews[0]), another;
    int count = 1, status = 0;
    inject("fallocate", ENOSPC, 0, ALWAYS);
    while (count < MANY && (status = mpx_crew_create(&crews[count], arena)) == 0) {
        count++;
    }
    CHECK_EQ(status, -ENOSPC);
    mpx_block_t last = 0;
    void *address;
    while ((status = mpx_crew_new_block(&crews[0], 1, &last, &address, much_later())) == 0) {
    }
    CHECK_EQ(status, -ENOSPC);
    CHECK_EQ(mpx_lane_create(&another, &crews[0]), -ENOSPC);
    CHECK(another.room == NULL);
    inject_nothing();
    CHECK_EQ(mpx_crew_create(&crews[count], arena), 0);
    CHECK_EQ(mpx_lane_create(&another, &crews[0]), 0);
    mpx_lane_free(&another);
    mpx_lane_free(&lane);
    for (int i = 0; i <= count; i++) {
        CHECK_EQ(mpx_crew_drop(&crews[i]), 0);
    }
    keeps_descriptors(1);
}

/* ---- In another process ---------------------------------------------------------------------- */

/* A worker of the parent that has made the crew, and its answers. */
TEST(another_process_does_the_tasks)
{
    static struct desk desk;
    enum { ALL = 3000 };
    struct scene *scene = open_scene();
    open_desk(&desk, scene, 0);
    desk.post.armed_from = UINT32_MAX;
    start_worker(&desk);
    mpx_lane_t *lanes = &desk.lane;
    uint32_t next = 0, all = emulated() ? ALL / 10 : ALL;
    while (desk.answered < all) {
        while (next < all && offer(&desk, next)) {
            next++;
        }
        mpx_lane_publish_tasks(&desk.lane);
        uint32_t heard = mpx_crew_listen(&scene->crew);
        if (!collect(&desk)) {
            CHECK_EQ(mpx_crew_sleep(&scene->crew, heard, &lanes, 1, much_later()), 0);
        }
    }
    CHECK(mpx_spsc_reserve(&desk.lane.tasks, 0) != NULL);
    mpx_spsc_commit(&desk.lane.tasks, (mpx_spsc_header_t){.kind = STOP});
    mpx_lane_publish_tasks(&desk.lane);
    CHECK_EQ(wait_for(desk.pid), 0);
    CHECK_EQ(mpx_u32_load_relaxed(&scene->ended), 1);
    CHECK_EQ(mpx_heap_owned_by(scene->crew.arena, scene->crew.owner),
             (sizeof(mpx_lane_room_t) + UNIT - 1) / UNIT * UNIT);
    mpx_lane_free(&desk.lane);
    close_scene(scene);
}

struct orphan {
    mpx_crew_t crew;
    mpx_atomic_u32 knows; /* 1: the parent lived, 2: it has died */
};

static void await_the_death(void *argument)
{
    struct orphan *orphan = argument;
    mpx_crew_t crew;
    CHECK_EQ(mpx_crew_open(&crew, orphan->crew.arena, orphan->crew.slot), 0);
    CHECK(mpx_crew_has_parent(&crew));
    mpx_u32_store_release(&orphan->knows, 1);
    while (mpx_crew_has_parent(&crew)) {
        sched_yield();
    }
    mpx_u32_store_release(&orphan->knows, 2);
}

static void be_a_parent_that_ends(void *argument)
{
    struct orphan *orphan = argument;
    CHECK_EQ(mpx_crew_create(&orphan->crew, orphan->crew.arena), 0);
    start_process(await_the_death, orphan);
    while (mpx_u32_load_acquire(&orphan->knows) == 0) {
        sched_yield();
    }
}

TEST(the_end_of_the_parent_is_seen)
{
    if (emulated()) {
        return; /* a child has its parent's sign of life there, for want of MADV_DONTFORK */
    }
    struct orphan *orphan = shared_memory(sizeof(*orphan));
    orphan->crew.arena = home();
    pid_t parent = start_process(be_a_parent_that_ends, orphan);
    siginfo_t end;
    CHECK_EQ(waitid(P_PID, (id_t)parent, &end, WEXITED | WNOWAIT), 0);
    int64_t deadline = much_later(); /* a zombie is dead */
    while (mpx_u32_load_acquire(&orphan->knows) != 2 && mpx_os_now() < deadline) {
        sched_yield();
    }
    CHECK_EQ(mpx_u32_load_relaxed(&orphan->knows), 2);
    CHECK_EQ(wait_for(parent), 0);
    free_shared_memory(orphan, sizeof(*orphan));
}

/* ---- What becomes of a task ------------------------------------------------------------------ */

TEST(a_task_goes_from_state_to_state)
{
    static const struct {
        enum mpx_cell from;
        enum mpx_cell begin, finish, revoke, doom; /* what is there after each; the same: false */
    } all[] = {
#define STAYS(state) state, state, state, state, state
        {STAYS(MPX_CELL_FREE)},
        {MPX_CELL_OFFERED, MPX_CELL_BEGUN, MPX_CELL_OFFERED, MPX_CELL_REVOKED, MPX_CELL_OFFERED},
        {MPX_CELL_BEGUN, MPX_CELL_BEGUN, MPX_CELL_DONE, MPX_CELL_BEGUN, MPX_CELL_DOOMED},
        {STAYS(MPX_CELL_DONE)},
        {STAYS(MPX_CELL_REVOKED)},
        {STAYS(MPX_CELL_DOOMED)},
    };
    mpx_crew_t crew;
    CHECK_EQ(mpx_crew_create(&crew, home()), 0);
    mpx_lane_t lane = new_lane(&crew);
    for (uint32_t i = 0; i < MPX_ARRAY_LENGTH(all); i++) {
        for (uint32_t number = 5; number < 3 * MPX_CREW_CELLS; number += MPX_CREW_CELLS) {
            mpx_atomic_u32 *cell = mpx_lane_cell(&lane, number);
#define CHECK_STEP(step, call)                                 \
    mpx_u32_store_relaxed(cell, all[i].from);                  \
    CHECK_EQ(call(&lane, number), all[i].step != all[i].from); \
    CHECK_EQ(mpx_lane_state(&lane, number), all[i].step)
            CHECK_STEP(begin, mpx_lane_begin);
            CHECK_STEP(finish, mpx_lane_finish);
            CHECK_STEP(revoke, mpx_lane_revoke);
            CHECK_STEP(doom, mpx_lane_doom);
            mpx_lane_offer(&lane, number);
            CHECK_EQ(mpx_lane_state(&lane, number), MPX_CELL_OFFERED);
        }
    }
    mpx_lane_renew(&lane);
    for (uint32_t number = 0; number < MPX_CREW_CELLS; number++) {
        CHECK_EQ(mpx_lane_state(&lane, number), MPX_CELL_FREE);
    }
    (void)mpx_crew_drop(&crew);
}

/* Two that want the same task: a thread each. What one has got is plain memory. */
struct duel {
    mpx_lane_t lane;
    bool (*first)(mpx_lane_t *lane, uint32_t number);
    bool (*second)(mpx_lane_t *lane, uint32_t number);
    enum mpx_cell from;
    unsigned char won[2][100000];
    mpx_atomic_u32 turn[2]; /* how far each is: they keep together */
};

enum { NEAR = 4 };

static uint32_t duels(void)
{
    return emulated() ? 5000 : 100000;
}

static void fight(struct duel *duel, int who, bool (*takes)(mpx_lane_t *lane, uint32_t number))
{
    for (uint32_t i = 0; i < duels(); i++) {
        mpx_u32_store_release(&duel->turn[who], i);
        while (i - mpx_u32_load_acquire(&duel->turn[1 - who]) == NEAR) {
            sched_yield();
        }
        duel->won[who][i] = takes(&duel->lane, i);
        if (who == 0 && i >= 2 * NEAR) { /* a cell that both have left */
            mpx_u32_store_relaxed(mpx_lane_cell(&duel->lane, i - 2 * NEAR), duel->from);
        }
    }
    mpx_u32_store_release(&duel->turn[who], duels());
}

static void *fight_first(void *argument)
{
    struct duel *duel = argument;
    fight(duel, 0, duel->first);
    return NULL;
}

static void *fight_second(void *argument)
{
    struct duel *duel = argument;
    fight(duel, 1, duel->second);
    return NULL;
}

static void check_duel(bool (*first)(mpx_lane_t *lane, uint32_t number),
                       bool (*second)(mpx_lane_t *lane, uint32_t number), enum mpx_cell from)
{
    static struct duel duel;
    mpx_crew_t crew;
    pthread_t threads[2];
    CHECK_EQ(mpx_crew_create(&crew, home()), 0);
    memset(&duel, 0, sizeof(duel));
    duel.lane = new_lane(&crew);
    duel.first = first;
    duel.second = second;
    duel.from = from;
    for (uint32_t number = 0; number < MPX_CREW_CELLS; number++) {
        mpx_u32_store_relaxed(mpx_lane_cell(&duel.lane, number), from);
    }
    REQUIRE(pthread_create(&threads[0], NULL, fight_first, &duel) == 0);
    REQUIRE(pthread_create(&threads[1], NULL, fight_second, &duel) == 0);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    uint32_t wrong = 0;
    for (uint32_t i = 0; i < duels(); i++) {
        wrong += duel.won[0][i] + duel.won[1][i] != 1;
    }
    CHECK_EQ(wrong, 0);
    (void)mpx_crew_drop(&crew);
}

static bool take_back(mpx_lane_t *lane, uint32_t number)
{
    return mpx_lane_revoke(lane, number);
}

static bool take(mpx_lane_t *lane, uint32_t number)
{
    return mpx_lane_begin(lane, number);
}

static bool give_up(mpx_lane_t *lane, uint32_t number)
{
    return mpx_lane_doom(lane, number);
}

static bool end(mpx_lane_t *lane, uint32_t number)
{
    return mpx_lane_finish(lane, number);
}

TEST(one_of_two_gets_a_task_that_is_taken_back)
{
    check_duel(take_back, take, MPX_CELL_OFFERED);
}

TEST(one_of_two_ends_a_task_that_is_doomed)
{
    check_duel(give_up, end, MPX_CELL_BEGUN);
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

TEST(a_block_goes_to_the_crew_and_is_freed)
{
    mpx_crew_t crew;
    mpx_block_t block, other;
    void *address;
    const char *bytes;
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&crew, arena), 0);
    CHECK_EQ(mpx_crew_new_block(&crew, 100000, &block, &address, much_later()), 0);
    memset(address, 7, 100000);
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), 0);
    CHECK(mpx_crew_give_block(&crew, block));
    CHECK(!mpx_crew_give_block(&crew, block)); /* it is not this process's own any more */
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), 2 * UNIT);
    mpx_crew_free_own(&crew, block); /* nor this */
    mpx_parcel_note_t note = {.block = block, .size = 100000};
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), 0);
    CHECK(bytes == address);
    note.size = 2 * UNIT;
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), 0);
    CHECK(bytes == address);
    note.size = 2 * UNIT + 1;
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), -EPROTO);
    note.size = UINT64_MAX;
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), -EPROTO);
    note = (mpx_parcel_note_t){.block = 0, .size = 0};
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), -EPROTO);
    mpx_crew_free_block(&crew, block);
    mpx_crew_free_block(&crew, block); /* somebody else's block may be there now */
    CHECK_EQ(mpx_crew_new_block(&crew, 100000, &other, &address, much_later()), 0);
    mpx_crew_free_block(&crew, block);
    mpx_crew_free_block(&crew, other); /* it is not the crew's */
    note = (mpx_parcel_note_t){.block = block, .size = 1};
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), -EPROTO);
    note.block = other;
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), 0);
    CHECK(bytes == address);
    mpx_crew_free_own(&crew, other);
    CHECK_EQ(mpx_crew_parcel(&crew, &note, &bytes), -EPROTO);
    CHECK_EQ(stats_of(arena).owned, 0);
    CHECK_EQ(mpx_crew_drop(&crew), 0);
}

TEST(what_a_worker_was_giving_is_freed)
{
    mpx_crew_t crew;
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&crew, arena), 0);
    mpx_lane_t lane = new_lane(&crew);
    uint64_t before = mpx_heap_owned_by(arena, crew.owner);
    void *address;
    mpx_block_t block;
    mpx_lane_free_given(&lane); /* nothing */
    CHECK_EQ(mpx_crew_new_block(&crew, 1, &block, &address, much_later()), 0);
    mpx_lane_note_giving(&lane, block);
    mpx_lane_free_given(&lane); /* it was not given yet */
    CHECK(mpx_crew_give_block(&crew, block));
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), before + UNIT);
    mpx_lane_free_given(&lane); /* it was forgotten */
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), before + UNIT);
    mpx_lane_note_giving(&lane, block);
    mpx_lane_free_given(&lane);
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), before);
    mpx_lane_note_giving(&lane, block); /* which leads nowhere */
    mpx_lane_free_given(&lane);
    mpx_lane_note_giving(&lane, UINT64_MAX);
    mpx_lane_free_given(&lane);
    CHECK_EQ(mpx_heap_owned_by(arena, crew.owner), before);
    (void)mpx_crew_drop(&crew);
}

/* ---- The bell -------------------------------------------------------------------------------- */

static void publish_result(mpx_lane_t *worker)
{
    CHECK(mpx_spsc_reserve(&worker->results, 0) != NULL);
    mpx_spsc_commit(&worker->results, (mpx_spsc_header_t){.kind = RESULT});
    mpx_lane_publish_results(worker);
}

static void take_result(mpx_lane_t *lane)
{
    mpx_spsc_header_t header;
    const void *data;
    CHECK_EQ(mpx_spsc_peek(&lane->results, &header, &data), 0);
    mpx_spsc_pop(&lane->results, header.size);
    mpx_spsc_release(&lane->results);
}

static bool is_announced(mpx_lane_t *lane)
{
    return (mpx_u64_load_acquire(&lane->room->results.tail) & 1) != 0;
}

struct hall {
    mpx_crew_t crew;
    mpx_lane_t lanes[LANES], workers[LANES];
    mpx_lane_t *all[LANES];
    mpx_atomic_u32 goes_on;
};

static struct hall hall;

static void open_hall(void)
{
    CHECK_EQ(mpx_crew_create(&hall.crew, home()), 0);
    for (int i = 0; i < LANES; i++) {
        hall.lanes[i] = new_lane(&hall.crew);
        hall.all[i] = &hall.lanes[i];
        CHECK_EQ(mpx_lane_open(&hall.workers[i], &hall.crew, hall.lanes[i].block), 0);
    }
}

static int sleep_in_hall(int64_t deadline)
{
    return mpx_crew_sleep(&hall.crew, mpx_crew_listen(&hall.crew), hall.all, LANES, deadline);
}

TEST(nobody_sleeps_where_there_is_something)
{
    open_hall();
    CHECK_EQ(sleep_in_hall(soon()), -ETIMEDOUT);
    for (int i = 0; i < LANES; i++) {
        uint32_t heard = mpx_crew_listen(&hall.crew);
        publish_result(&hall.workers[i]); /* nobody sleeps: it does not ring */
        CHECK_EQ(mpx_crew_listen(&hall.crew), heard);
        CHECK_EQ(sleep_in_hall(much_later()), 0);
        for (int j = 0; j < LANES; j++) {
            CHECK(!is_announced(&hall.lanes[j]));
        }
        take_result(&hall.lanes[i]);
        CHECK_EQ(sleep_in_hall(soon()), -ETIMEDOUT);
    }
    uint32_t heard = mpx_crew_listen(&hall.crew);
    mpx_crew_ring(&hall.crew);
    CHECK_EQ(mpx_crew_sleep(&hall.crew, heard, hall.all, LANES, much_later()), 0);
    CHECK_EQ(mpx_crew_sleep(&hall.crew, heard + 1, hall.all, LANES, soon()), -ETIMEDOUT);
    CHECK_EQ(mpx_crew_sleep(&hall.crew, heard + 1, NULL, 0, soon()), -ETIMEDOUT);
    (void)mpx_crew_drop(&hall.crew);
}

static void *answer_when_it_sleeps(void *unused)
{
    (void)unused;
    for (int i = 0; i < 60; i++) {
        mpx_lane_t *worker = &hall.workers[i % LANES];
        while (!is_announced(&hall.lanes[LANES - 1])) {
            sched_yield();
        }
        if (i % 4 == 3) {
            mpx_crew_ring(&hall.crew);
        } else {
            publish_result(worker);
        }
        while (mpx_u32_load_acquire(&hall.goes_on) != (uint32_t)i + 1) {
            sched_yield();
        }
    }
    return NULL;
}

TEST(an_answer_wakes)
{
    pthread_t thread;
    open_hall();
    REQUIRE(pthread_create(&thread, NULL, answer_when_it_sleeps, NULL) == 0);
    for (int i = 0; i < 60; i++) {
        CHECK_EQ(sleep_in_hall(much_later()), 0);
        if (i % 4 != 3) {
            take_result(&hall.lanes[i % LANES]);
        }
        mpx_u32_store_release(&hall.goes_on, (uint32_t)i + 1);
    }
    pthread_join(thread, NULL);
    (void)mpx_crew_drop(&hall.crew);
}

TEST(a_signal_ends_a_sleep)
{
    open_hall();
    pid_t pid = start_interrupting();
    CHECK_EQ(sleep_in_hall(much_later()), -EINTR);
    kill(pid, SIGKILL);
    wait_for(pid);
    (void)mpx_crew_drop(&hall.crew);
}

static void *wait_and_answer(void *argument)
{
    mpx_lane_t *worker = argument;
    CHECK_EQ(mpx_spsc_wait(&worker->tasks, 30 * MPX_NANOS_PER_SEC, much_later()), 0);
    publish_result(worker);
    return NULL;
}

TEST(a_task_wakes)
{
    pthread_t thread;
    open_hall();
    mpx_lane_t *lane = &hall.lanes[0];
    REQUIRE(pthread_create(&thread, NULL, wait_and_answer, &hall.workers[0]) == 0);
    while (!(mpx_u64_load_acquire(&lane->room->tasks.tail) & 1)) {
        sched_yield();
    }
    mpx_lane_publish_tasks(lane); /* nothing: it sleeps on */
    CHECK(mpx_u64_load_relaxed(&lane->room->tasks.tail) & 1);
    CHECK(mpx_spsc_reserve(&lane->tasks, 0) != NULL);
    mpx_spsc_commit(&lane->tasks, (mpx_spsc_header_t){.kind = TASK});
    mpx_lane_publish_tasks(lane);
    CHECK_EQ(sleep_in_hall(much_later()), 0);
    take_result(lane);
    pthread_join(thread, NULL);
    (void)mpx_crew_drop(&hall.crew);
}

/* ---- A crowd --------------------------------------------------------------------------------- */

enum { OF_EACH = 50000 };

static uint32_t of_each(void)
{
    return emulated() ? OF_EACH / 20 : OF_EACH;
}

static void *answer_tasks(void *argument)
{
    mpx_lane_t *worker = argument;
    for (uint32_t number = 0; number < of_each(); number++) {
        mpx_spsc_header_t header;
        const void *data;
        while (mpx_spsc_peek(&worker->tasks, &header, &data) == -EAGAIN) {
            mpx_spsc_release(&worker->tasks);
            int status = mpx_spsc_wait(&worker->tasks, 30 * MPX_NANOS_PER_SEC, much_later());
            CHECK_EQ(status, 0);
        }
        bool is_begun = mpx_lane_begin(worker, header.number);
        uint32_t value = 0;
        memcpy(&value, data, sizeof(value));
        mpx_spsc_pop(&worker->tasks, header.size);
        void *room;
        while ((room = mpx_spsc_reserve(&worker->results, sizeof(value))) == NULL) {
            (void)!mpx_spsc_wait_for_room(&worker->results, sizeof(value), much_later());
        }
        value = is_begun ? value * 3 : 0;
        memcpy(room, &value, sizeof(value));
        CHECK(!is_begun || mpx_lane_finish(worker, header.number));
        mpx_spsc_commit(
            &worker->results,
            (mpx_spsc_header_t){.size = sizeof(value), .kind = RESULT, .number = header.number});
        mpx_lane_publish_results(worker);
    }
    return NULL;
}

/* Workers that are threads, so that a sanitizer sees both sides. Some tasks are taken back. */
TEST(a_crew_of_threads)
{
    enum { AHEAD = 100 };
    pthread_t threads[LANES];
    uint32_t sent[LANES] = {0}, got[LANES] = {0}, wrong = 0, revoked = 0, all = 0;
    static bool is_revoked[LANES][AHEAD];
    open_hall();
    for (int i = 0; i < LANES; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, answer_tasks, &hall.workers[i]) == 0);
    }
    while (all < LANES * of_each()) {
        uint32_t heard = mpx_crew_listen(&hall.crew), before = all;
        for (uint32_t i = 0; i < LANES; i++) {
            mpx_lane_t *lane = &hall.lanes[i];
            mpx_spsc_header_t header;
            const void *data;
            while (mpx_spsc_peek(&lane->results, &header, &data) == 0) {
                uint32_t value;
                memcpy(&value, data, sizeof(value));
                wrong += header.number != got[i] ||
                         value != (is_revoked[i][got[i] % AHEAD] ? 0 : (got[i] * 10 + i) * 3);
                mpx_spsc_pop(&lane->results, header.size);
                got[i]++;
                all++;
            }
            mpx_spsc_release(&lane->results);
            while (sent[i] < of_each() && sent[i] - got[i] < AHEAD) {
                void *room = mpx_spsc_reserve(&lane->tasks, 100);
                uint32_t value = sent[i] * 10 + i;
                if (room == NULL) {
                    break;
                }
                memcpy(room, &value, sizeof(value));
                mpx_lane_offer(lane, sent[i]);
                mpx_spsc_commit(&lane->tasks,
                                (mpx_spsc_header_t){.size = sizeof(value) + random_below(90),
                                                    .kind = TASK,
                                                    .number = sent[i]});
                is_revoked[i][sent[i] % AHEAD] = false;
                sent[i]++;
            }
            mpx_lane_publish_tasks(lane);
            if (sent[i] != got[i] && random_below(2) == 0 && mpx_lane_revoke(lane, sent[i] - 1)) {
                is_revoked[i][(sent[i] - 1) % AHEAD] = true;
                revoked++;
            }
        }
        if (all == before && all < LANES * of_each()) {
            CHECK_EQ(mpx_crew_sleep(&hall.crew, heard, hall.all, LANES, much_later()), 0);
        }
    }
    CHECK_EQ(wrong, 0);
    CHECK(revoked > 0);
    for (int i = 0; i < LANES; i++) {
        pthread_join(threads[i], NULL);
    }
    (void)mpx_crew_drop(&hall.crew);
}
