/* mpx_crew.h - what the parent of a pool and its workers share: for each worker a lane of tasks and
 * results, and a bell that rings for the parent.
 *
 * Layer: L5
 *
 * The parent alone says who does what: it puts a task into the lane of one worker, and keeps note
 * of that. So where a worker dies, the parent knows what it had; what of that was done, or begun,
 * stands in the lane. Nothing is claimed by several, there is no lock, and workers do not know of
 * each other.
 *
 *     slot   key of the heap | the parent | bell
 *     lane   words of two rings | cells | tasks ... | results ...      a block that the slot owns
 *
 * A task has a number, counted from 0 in each lane, and a *cell*, which is one of MPX_CREW_CELLS
 * and is used again only when the parent has heard the end of the task before:
 *
 *     OFFERED -> BEGUN -> DONE        the worker's; each one compare-and-exchange
 *     OFFERED -> REVOKED              the parent takes the task back: another worker may do it
 *     BEGUN   -> DOOMED               the parent does not want the result: the worker, if it lives
 * to see that, begins nothing more, so that it can be killed
 *
 * A worker that is killed leaves in the cell of each task of its what became of it: OFFERED, it was
 * not begun, and another worker does it; BEGUN or DONE without a result in the ring, it is lost.
 *
 * Payloads longer than MPX_CREW_INLINE lie in blocks of the heap. Who writes one owns it; then it
 * is the slot's, and the receiver frees it. Of tasks, the parent knows the blocks and frees what a
 * killed worker has left. Of results, the worker notes one in `giving` before it is the slot's
 * until it is in the ring, and the parent frees that one. So no block is lost.
 *
 * The bell is a word on which the parent sleeps until any lane has a result: it says in each that
 * it sleeps, and the worker that finds this rings. Where the worker is killed before it rings, the
 * parent wakes at the end of its piece, and sees the result.
 */
#ifndef MPX_CREW_H
#define MPX_CREW_H

#include "mpx_heap.h"
#include "mpx_spsc.h"

/* How many tasks a lane has at most: a power of two. */
#define MPX_CREW_CELLS 1024

/* The longest payload without a block, bytes. */
#define MPX_CREW_INLINE (UINT32_C(4) * 1024)

#define MPX_CREW_TASKS   (UINT32_C(32) * 1024)
#define MPX_CREW_RESULTS (UINT32_C(64) * 1024)

enum mpx_cell {
    MPX_CELL_FREE,
    MPX_CELL_OFFERED,
    MPX_CELL_BEGUN,
    MPX_CELL_DONE,
    MPX_CELL_REVOKED,
    MPX_CELL_DOOMED
};

/* In shared memory; the members are private. */
typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) uint64_t magic;
    mpx_atomic_u64 giving;   /* a block that is on its way to the parent, or 0 */
    mpx_atomic_u64 begun_at; /* when the task was begun that is being done, for who times it */
    mpx_atomic_u32 begun;    /* its number */
    mpx_spsc_words_t tasks;
    mpx_spsc_words_t results;
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u32 cells[MPX_CREW_CELLS];
    MPX_ALIGNED(MPX_CACHE_LINE) unsigned char task_data[MPX_CREW_TASKS];
    MPX_ALIGNED(MPX_CACHE_LINE) unsigned char result_data[MPX_CREW_RESULTS];
} mpx_lane_room_t;

struct mpx_crew_room;

/* This process's handle of a crew; it holds the slot. */
typedef struct {
    mpx_arena_t *arena;
    mpx_slot_t slot;
    mpx_heap_owner_t owner;
    struct mpx_crew_room *room;
} mpx_crew_t;

/* This process's handle of a lane: the parent's, or the worker's. */
typedef struct {
    mpx_crew_t *crew;
    mpx_block_t block;
    mpx_lane_room_t *room;
    mpx_spsc_t tasks;
    mpx_spsc_t results;
} mpx_lane_t;

/* What a long payload is in a ring. */
typedef struct {
    mpx_block_t block;
    uint64_t size;
} mpx_parcel_note_t;

/* Makes a crew of which this process is the parent, in a slot that it holds once. */
MPX_NODISCARD int mpx_crew_create(mpx_crew_t *crew, mpx_arena_t *arena);

/* The crew in a slot that this process holds. -EPROTO: there is none. */
MPX_NODISCARD int mpx_crew_open(mpx_crew_t *crew, mpx_arena_t *arena, mpx_slot_t slot);

/* Lets the slot go; where nobody else has it, so do its blocks: how many bytes. */
uint64_t mpx_crew_drop(mpx_crew_t *crew);

/* Whether the parent lives. */
bool mpx_crew_has_parent(mpx_crew_t *crew);

/* Makes a lane, which has no worker yet; and frees one that has none any more. */
MPX_NODISCARD int mpx_lane_create(mpx_lane_t *lane, mpx_crew_t *crew);
void mpx_lane_free(mpx_lane_t *lane);

/* As mpx_lane_create in the memory of a lane whose worker is dead and buried. */
void mpx_lane_renew(mpx_lane_t *lane);

/* In the worker. -EPROTO: there is no such lane. */
MPX_NODISCARD int mpx_lane_open(mpx_lane_t *lane, mpx_crew_t *crew, mpx_block_t block);

static inline mpx_atomic_u32 *mpx_lane_cell(mpx_lane_t *lane, uint32_t number)
{
    return lane->room->cells + (number & (MPX_CREW_CELLS - 1));
}

/* ---- The parent ------------------------------------------------------------------------------ */

/* Before the task is published. */
static inline void mpx_lane_offer(mpx_lane_t *lane, uint32_t number)
{
    mpx_u32_store_relaxed(mpx_lane_cell(lane, number), MPX_CELL_OFFERED);
}

/* Takes a task back that was not begun; false: it was. */
static inline bool mpx_lane_revoke(mpx_lane_t *lane, uint32_t number)
{
    uint32_t seen = MPX_CELL_OFFERED;
    return mpx_u32_cas_relaxed(mpx_lane_cell(lane, number), &seen, MPX_CELL_REVOKED);
}

/* Has the worker begin nothing after a task that it is in the middle of; false: it is not. */
static inline bool mpx_lane_doom(mpx_lane_t *lane, uint32_t number)
{
    uint32_t seen = MPX_CELL_BEGUN;
    return mpx_u32_cas_relaxed(mpx_lane_cell(lane, number), &seen, MPX_CELL_DOOMED);
}

static inline enum mpx_cell mpx_lane_state(mpx_lane_t *lane, uint32_t number)
{
    return (enum mpx_cell)mpx_u32_load_relaxed(mpx_lane_cell(lane, number));
}

/* Publishes the tasks that were committed to lane->tasks. */
void mpx_lane_publish_tasks(mpx_lane_t *lane);

/* What the bell says now; and sleeps until a lane has a result, somebody has rung since then, or
 * the deadline: 0, -ETIMEDOUT, -EINTR. */
uint32_t mpx_crew_listen(mpx_crew_t *crew);
MPX_NODISCARD int mpx_crew_sleep(mpx_crew_t *crew, uint32_t heard, mpx_lane_t *const *lanes,
                                 size_t count, int64_t deadline);

/* Of another thread of the parent: what that sleeps for is to be looked at. */
void mpx_crew_ring(mpx_crew_t *crew);

/* Of a worker that is dead: frees what it had not given yet. */
void mpx_lane_free_given(mpx_lane_t *lane);

/* ---- The worker ------------------------------------------------------------------------------ */

/* Whether the task is to be done here, and is begun. */
static inline bool mpx_lane_begin(mpx_lane_t *lane, uint32_t number)
{
    uint32_t seen = MPX_CELL_OFFERED;
    return mpx_u32_cas_relaxed(mpx_lane_cell(lane, number), &seen, MPX_CELL_BEGUN);
}

/* Whether the result is wanted. Where it is not, the worker is about to be killed. */
static inline bool mpx_lane_finish(mpx_lane_t *lane, uint32_t number)
{
    uint32_t seen = MPX_CELL_BEGUN;
    return mpx_u32_cas_relaxed(mpx_lane_cell(lane, number), &seen, MPX_CELL_DONE);
}

/* Publishes the results that were committed to lane->results, and rings where the parent sleeps. */
void mpx_lane_publish_results(mpx_lane_t *lane);

/* ---- Blocks ---------------------------------------------------------------------------------- */

/* Makes a block this process's own; gives it to the slot (false: it was not this process's); the
 * worker notes a result's block first, and forgets it when it has been published. */
MPX_NODISCARD int mpx_crew_new_block(mpx_crew_t *crew, size_t size, mpx_block_t *block,
                                     void **address, int64_t deadline);
MPX_NODISCARD bool mpx_crew_give_block(mpx_crew_t *crew, mpx_block_t block);
void mpx_crew_free_own(mpx_crew_t *crew, mpx_block_t block);
void mpx_crew_free_block(mpx_crew_t *crew, mpx_block_t block);

static inline void mpx_lane_note_giving(mpx_lane_t *lane, mpx_block_t block)
{
    mpx_u64_store_relaxed(&lane->room->giving, block);
    mpx_compiler_barrier();
}

/* The bytes of a long payload. -EPROTO: there are none such, the memory is damaged; -ENOMEM: this
 * process has no address space for them. */
MPX_NODISCARD int mpx_crew_parcel(mpx_crew_t *crew, const mpx_parcel_note_t *note,
                                  const char **bytes);

#endif
