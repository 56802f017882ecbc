/* crew_peer.h - what the tests of the crew share: a parent and workers that do as those of pools.
 */
#ifndef CREW_PEER_H
#define CREW_PEER_H

#include "harness.h"
#include "heap_blocks.h"

#include "mpx_crew.h"
#include "mpx_fault.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>

/* Kinds of records. */
enum { STOP = 1, TASK, RESULT, IN_BLOCK = 0x100 };

/* Tasks of a scene at most; lanes of one. */
enum { TASKS = 20000, LANES = 3 };

/* What all its processes share. */
struct scene {
    mpx_crew_t crew; /* the parent's handle; a worker opens its own by the slot */
    mpx_block_t blocks[LANES];
    mpx_atomic_u32 broken; /* what was not as it should be, in any process */
    mpx_atomic_u32 ended;  /* workers that have ended in good order */
    mpx_atomic_u32 begun[TASKS], done[TASKS];
};

static inline void count_broken(struct scene *scene, bool is_right)
{
    (void)mpx_u32_fetch_add_relaxed(&scene->broken, !is_right);
}

static inline struct scene *open_scene(void)
{
    struct scene *scene = shared_memory(sizeof(*scene));
    mpx_arena_t *arena = home();
    CHECK_EQ(mpx_crew_create(&scene->crew, arena), 0);
    return scene;
}

static inline void close_scene(struct scene *scene)
{
    CHECK_EQ(mpx_u32_load_relaxed(&scene->broken), 0);
    (void)mpx_crew_drop(&scene->crew);
    free_shared_memory(scene, sizeof(*scene));
}

/* ---- Payloads -------------------------------------------------------------------------------- */

/* Of the task with this number, and of its result: mostly short, some in a block. */
static inline uint32_t payload_size(uint32_t number)
{
    static const uint32_t most[] = {1, 8, 40, 40, 200, MPX_CREW_INLINE, 100000, 300000};
    uint32_t mixed = number * UINT32_C(2654435761);
    return (mixed >> 8) % most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)];
}

static inline uint32_t result_number(uint32_t number)
{
    return number + UINT32_C(0x10000);
}

/* Only where a block is looked at: each byte of some, else the ends. */
static inline void fill(unsigned char *bytes, uint32_t number, uint32_t size)
{
    for (uint32_t i = 0; i < size; i += i < MPX_CREW_INLINE ? 1 : 509) {
        bytes[i] = (unsigned char)(number * 31 + i * 7);
    }
}

static inline bool is_as_filled(const unsigned char *bytes, uint32_t number, uint32_t size)
{
    for (uint32_t i = 0; i < size; i += i < MPX_CREW_INLINE ? 1 : 509) {
        if (bytes[i] != (unsigned char)(number * 31 + i * 7)) {
            return false;
        }
    }
    return true;
}

/* Whether a record holds the payload of that number; the block, if it is in one. */
static inline bool is_payload(mpx_crew_t *crew, const mpx_spsc_header_t *header, const void *data,
                              uint32_t number, mpx_block_t *block)
{
    mpx_parcel_note_t note = {.block = 0};
    *block = 0;
    if (!(header->kind & IN_BLOCK)) {
        return header->size == payload_size(number) && is_as_filled(data, number, header->size);
    }
    if (header->size != sizeof(note)) {
        return false;
    }
    memcpy(&note, data, sizeof(note));
    const char *bytes;
    int status = mpx_crew_parcel(crew, &note, &bytes);
    *block = note.block;
    return status == 0 && note.size == payload_size(number) &&
           is_as_filled((const unsigned char *)bytes, number, (uint32_t)note.size);
}

/* A block of this process's own with the payload of that number; 0: it needs none. */
static inline mpx_block_t payload_block(struct scene *scene, mpx_crew_t *crew, uint32_t number)
{
    mpx_block_t block = 0;
    void *address;
    uint32_t size = payload_size(number);
    if (size > MPX_CREW_INLINE) {
        int status = mpx_crew_new_block(crew, size, &block, &address, much_later());
        count_broken(scene, status == 0);
        if (status == 0) {
            fill(address, number, size);
        }
    }
    return block;
}

/* Writes the record's payload where there is room for it; the size of the record. */
static inline uint32_t write_payload(void *room, uint32_t number, mpx_block_t block)
{
    uint32_t size = payload_size(number);
    mpx_parcel_note_t note = {.block = block, .size = size};
    if (block == 0) {
        fill(room, number, size);
        return size;
    }
    memcpy(room, &note, sizeof(note));
    return sizeof(note);
}

/* ---- A worker -------------------------------------------------------------------------------- */

/* A worker of a scene, and how it behaves. */
struct post {
    struct scene *scene;
    int place;
    const char *step;    /* where it dies; NULL: nowhere */
    uint32_t armed_from; /* which task of its own: from that on */
    uint32_t shy;        /* each so many tasks it waits until the parent sleeps; 0: never */
};

/* False: the parent is no more. */
static inline bool wait_for_task(mpx_lane_t *lane)
{
    mpx_spsc_release(&lane->tasks);
    while (!mpx_spsc_has_record(&lane->tasks)) {
        int status = mpx_spsc_wait(&lane->tasks, 20 * MPX_NANOS_PER_MILLI, MPX_NEVER);
        if (status != 0 && status != -EINTR && !mpx_crew_has_parent(lane->crew)) {
            return false;
        }
    }
    return true;
}

static inline void *wait_for_room(mpx_lane_t *lane, uint32_t size)
{
    void *room;
    while ((room = mpx_spsc_reserve(&lane->results, size)) == NULL) {
        int status =
            mpx_spsc_wait_for_room(&lane->results, size, mpx_os_deadline(MPX_NANOS_PER_SEC));
        if (status != 0 && status != -EINTR && !mpx_crew_has_parent(lane->crew)) {
            return NULL;
        }
    }
    return room;
}

/* Or for a while: it may be at something else. */
static inline void wait_until_parent_sleeps(mpx_lane_t *lane)
{
    int64_t deadline = mpx_os_deadline(MPX_NANOS_PER_SEC);
    while (!(mpx_u64_load_relaxed(&lane->room->results.tail) & 1) && mpx_os_now() < deadline) {
        sched_yield();
    }
}

/* Answers the task as worker.c does; false: the result is not wanted, or the parent is no more. */
static inline bool answer(const struct post *post, mpx_lane_t *lane, uint32_t cell, uint32_t task)
{
    struct scene *scene = post->scene;
    uint32_t number = result_number(task);
    mpx_block_t block = payload_block(scene, lane->crew, number);
    void *room = wait_for_room(lane, block != 0 ? sizeof(mpx_parcel_note_t) : payload_size(number));
    if (room == NULL) {
        return false;
    }
    uint32_t size = write_payload(room, number, block);
    if (block != 0) {
        mpx_lane_note_giving(lane, block);
        MPX_STEP(peer_noted);
        count_broken(scene, mpx_crew_give_block(lane->crew, block));
        MPX_STEP(peer_gave);
    }
    if (post->shy != 0 && task % post->shy == 0) {
        wait_until_parent_sleeps(lane);
    }
    if (!mpx_lane_finish(lane, cell)) {
        return false;
    }
    MPX_STEP(peer_finished);
    mpx_spsc_commit(&lane->results, (mpx_spsc_header_t){
                                        .size = size,
                                        .kind = RESULT | (block != 0 ? (uint32_t)IN_BLOCK : 0),
                                        .number = cell,
                                        .extra = task,
                                    });
    mpx_lane_publish_results(lane);
    MPX_STEP(peer_answered);
    if (block != 0) {
        mpx_lane_note_giving(lane, 0);
    }
    return true;
}

/* Does one; false where it is to end. */
static inline bool do_task(const struct post *post, mpx_lane_t *lane,
                           const mpx_spsc_header_t *header, const void *data)
{
    struct scene *scene = post->scene;
    uint32_t task = header->extra;
    mpx_block_t block;
    if (!mpx_lane_begin(lane, header->number)) {
        mpx_spsc_pop(&lane->tasks, header->size);
        return true;
    }
    MPX_STEP(peer_began);
    count_broken(scene, task < TASKS && mpx_u32_fetch_add_relaxed(&scene->begun[task], 1) == 0);
    count_broken(scene, is_payload(lane->crew, header, data, task, &block));
    if (block != 0) {
        mpx_crew_free_block(lane->crew, block);
    }
    mpx_spsc_pop(&lane->tasks, header->size);
    if (task % 3 == 0) {
        mpx_spsc_release(&lane->tasks);
    }
    (void)mpx_u32_fetch_add_relaxed(&scene->done[task], 1);
    return answer(post, lane, header->number, task);
}

static inline void be_worker(void *argument)
{
    const struct post *post = argument;
    struct scene *scene = post->scene;
    mpx_crew_t crew;
    mpx_lane_t lane;
    CHECK_EQ(mpx_crew_open(&crew, scene->crew.arena, scene->crew.slot), 0);
    REQUIRE(mpx_lane_open(&lane, &crew, scene->blocks[post->place]) == 0);
    for (uint32_t count = 0;; count++) {
        mpx_spsc_header_t header;
        const void *data;
        if (count == post->armed_from) {
            signal_at_step(post->step, SIGKILL);
        }
        int status = mpx_spsc_peek(&lane.tasks, &header, &data);
        if (status == -EAGAIN && !wait_for_task(&lane)) {
            break;
        }
        if (status == -EAGAIN) {
            count--;
            continue;
        }
        count_broken(scene, status == 0);
        if (status < 0 || header.kind == STOP || !do_task(post, &lane, &header, data)) {
            break;
        }
    }
    (void)mpx_u32_fetch_add_acq_rel(&scene->ended, 1);
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* What the parent knows of a task in a lane. */
struct known {
    uint32_t task;
    mpx_block_t block;
    uint64_t end;
    bool is_open;
};

struct desk {
    struct scene *scene;
    mpx_lane_t lane;
    pid_t pid;
    struct post post;
    uint32_t oldest, next;
    uint32_t open;
    uint32_t answered;
    struct known known[MPX_CREW_CELLS];
};

static inline struct known *known_of(struct desk *desk, uint32_t number)
{
    return desk->known + (number & (MPX_CREW_CELLS - 1));
}

static inline void open_desk(struct desk *desk, struct scene *scene, int place)
{
    *desk = (struct desk){.scene = scene, .post = {.scene = scene, .place = place}};
    CHECK_EQ(mpx_lane_create(&desk->lane, &scene->crew), 0);
    scene->blocks[place] = desk->lane.block;
}

static inline void start_worker(struct desk *desk)
{
    desk->pid = start_process(be_worker, &desk->post);
}

/* Gives the task to the worker, not yet published; false: there is no room. */
static inline bool offer(struct desk *desk, uint32_t task)
{
    mpx_crew_t *crew = &desk->scene->crew;
    mpx_spsc_t *tasks = &desk->lane.tasks;
    if (desk->next - desk->oldest == MPX_CREW_CELLS) {
        return false;
    }
    mpx_block_t block = payload_block(desk->scene, crew, task);
    void *room =
        mpx_spsc_reserve(tasks, block != 0 ? sizeof(mpx_parcel_note_t) : payload_size(task));
    if (room == NULL) {
        if (block != 0) {
            mpx_crew_free_own(crew, block);
        }
        return false;
    }
    uint32_t size = write_payload(room, task, block);
    count_broken(desk->scene, block == 0 || mpx_crew_give_block(crew, block));
    mpx_lane_offer(&desk->lane, desk->next);
    mpx_spsc_commit(tasks, (mpx_spsc_header_t){.size = size,
                                               .kind = TASK | (block != 0 ? (uint32_t)IN_BLOCK : 0),
                                               .number = desk->next,
                                               .extra = task});
    *known_of(desk, desk->next) = (struct known){
        .task = task, .block = block, .end = mpx_spsc_committed_up_to(tasks), .is_open = true};
    desk->next++;
    desk->open++;
    return true;
}

/* Takes one answer: whether there was one. */
static inline bool collect_one(struct desk *desk)
{
    mpx_crew_t *crew = &desk->scene->crew;
    mpx_spsc_header_t header;
    const void *data;
    mpx_block_t block;
    int status = mpx_spsc_peek(&desk->lane.results, &header, &data);
    if (status == -EAGAIN) {
        return false;
    }
    struct known *known = known_of(desk, header.number);
    bool is_right = status == 0 && header.number - desk->oldest < desk->next - desk->oldest &&
                    known->is_open && header.extra == known->task &&
                    is_payload(crew, &header, data, result_number(known->task), &block) &&
                    mpx_u32_load_relaxed(&desk->scene->done[known->task]) == 1 &&
                    mpx_lane_state(&desk->lane, header.number) == MPX_CELL_DONE;
    CHECK(is_right);
    if (!is_right) {
        return false;
    }
    if (block != 0) {
        mpx_crew_free_block(crew, block);
    }
    mpx_spsc_pop(&desk->lane.results, header.size);
    mpx_u32_store_relaxed(mpx_lane_cell(&desk->lane, header.number), MPX_CELL_FREE);
    known->is_open = false;
    desk->open--;
    desk->answered++;
    return true;
}

static inline void free_cells(struct desk *desk)
{
    uint64_t read = mpx_spsc_read_up_to(&desk->lane.tasks);
    while (desk->oldest != desk->next && !known_of(desk, desk->oldest)->is_open &&
           (mpx_lane_state(&desk->lane, desk->oldest) == MPX_CELL_FREE ||
            read >= known_of(desk, desk->oldest)->end)) {
        desk->oldest++;
    }
}

static inline bool collect(struct desk *desk)
{
    uint32_t before = desk->answered;
    while (collect_one(desk)) {
    }
    mpx_spsc_release(&desk->lane.results);
    free_cells(desk);
    return desk->answered != before;
}

/* Whether the worker has ended; it stays to be waited for. */
static inline bool has_ended(pid_t pid)
{
    siginfo_t end = {.si_pid = 0};
    return waitid(P_PID, (id_t)pid, &end, WEXITED | WNOHANG | WNOWAIT) == 0 && end.si_pid != 0;
}

#endif
