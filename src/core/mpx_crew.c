/* mpx_crew.c - see mpx_crew.h.
 *
 * Layer: L5
 */
#include "mpx_crew.h"

#include "mpx_fault.h"

#include <errno.h>
#include <limits.h>
#include <string.h>

#define MAGIC UINT64_C(0x00ff656e616c7fff)

/* In the slot; the heap keeps the first word. */
typedef struct mpx_crew_room {
    uint64_t key;
    mpx_heap_owner_t owner;
    mpx_atomic_u64 parent; /* as its word */
    mpx_atomic_u32 bell;
} crew_room_t;

MPX_STATIC_ASSERT(sizeof(crew_room_t) <= MPX_SLOT_ROOM, "a crew is in its slot");
MPX_STATIC_ASSERT((MPX_CREW_TASKS & (MPX_CREW_TASKS - 1)) == 0 &&
                      (MPX_CREW_RESULTS & (MPX_CREW_RESULTS - 1)) == 0,
                  "positions wrap by a mask");
MPX_STATIC_ASSERT(MPX_CREW_INLINE < MPX_CREW_TASKS / 4, "see mpx_spsc_reserve");

int mpx_crew_create(mpx_crew_t *crew, mpx_arena_t *arena)
{
    *crew = (mpx_crew_t){.arena = arena};
    int status = mpx_slot_new(arena, &crew->slot);
    if (status < 0) {
        return status;
    }
    status = mpx_heap_owner_new(arena, crew->slot, &crew->owner);
    if (status < 0) {
        mpx_slot_drop(arena, crew->slot);
        return status;
    }
    crew->room = mpx_slot_at(arena, crew->slot);
    crew->room->owner = crew->owner;
    mpx_u64_store_release(&crew->room->parent, mpx_os_own_word()); /* C4: with C5 */
    return 0;
}

int mpx_crew_open(mpx_crew_t *crew, mpx_arena_t *arena, mpx_slot_t slot)
{
    *crew = (mpx_crew_t){.arena = arena, .slot = slot, .room = mpx_slot_at(arena, slot)};
    if (crew->room == NULL || mpx_u64_load_acquire(&crew->room->parent) == 0) { /* C5: with C4 */
        return -EPROTO;
    }
    crew->owner = crew->room->owner;
    return 0;
}

uint64_t mpx_crew_drop(mpx_crew_t *crew)
{
    mpx_slot_drop(crew->arena, crew->slot);
    crew->room = NULL;
    return mpx_heap_free_all(crew->arena, crew->owner);
}

bool mpx_crew_has_parent(mpx_crew_t *crew)
{
    uint64_t word = mpx_u64_load_relaxed(&crew->room->parent);
    return mpx_os_process_alive((mpx_process_id_t){.pid = (pid_t)(uint32_t)word,
                                                   .start = (uint32_t)(word >> 32)}) != 0;
}

/* ---- Lanes ----------------------------------------------------------------------------------- */

static void open_as_parent(mpx_lane_t *lane)
{
    mpx_lane_room_t *room = lane->room;
    mpx_spsc_open_producer(&lane->tasks, &room->tasks, room->task_data, MPX_CREW_TASKS);
    mpx_spsc_open_consumer(&lane->results, &room->results, room->result_data, MPX_CREW_RESULTS);
}

void mpx_lane_renew(mpx_lane_t *lane)
{
    mpx_lane_room_t *room = lane->room;
    mpx_u64_store_relaxed(&room->giving, 0);
    mpx_u64_store_relaxed(&room->begun_at, 0);
    mpx_u32_store_relaxed(&room->begun, 0);
    mpx_spsc_init(&room->tasks);
    mpx_spsc_init(&room->results);
    for (unsigned i = 0; i < MPX_CREW_CELLS; i++) {
        mpx_u32_store_relaxed(room->cells + i, MPX_CELL_FREE);
    }
    room->magic = MAGIC;
    open_as_parent(lane);
}

int mpx_lane_create(mpx_lane_t *lane, mpx_crew_t *crew)
{
    void *address;
    *lane = (mpx_lane_t){.crew = crew};
    int status =
        mpx_heap_new(crew->arena, crew->owner, sizeof(mpx_lane_room_t), &lane->block, &address);
    if (status < 0) {
        return status;
    }
    lane->room = address;
    mpx_lane_renew(lane);
    return 0;
}

void mpx_lane_free(mpx_lane_t *lane)
{
    mpx_crew_free_block(lane->crew, lane->block);
    lane->room = NULL;
}

int mpx_lane_open(mpx_lane_t *lane, mpx_crew_t *crew, mpx_block_t block)
{
    size_t size;
    *lane = (mpx_lane_t){.crew = crew, .block = block};
    void *address;
    int status = mpx_heap_find(crew->arena, block, &address, &size);
    if (status < 0) {
        return status;
    }
    mpx_lane_room_t *room = address;
    if (size < sizeof(*room) || room->magic != MAGIC) {
        return -EPROTO;
    }
    lane->room = room;
    mpx_spsc_open_consumer(&lane->tasks, &room->tasks, room->task_data, MPX_CREW_TASKS);
    mpx_spsc_open_producer(&lane->results, &room->results, room->result_data, MPX_CREW_RESULTS);
    return 0;
}

/* ---- Waking and sleeping --------------------------------------------------------------------- */

void mpx_lane_publish_tasks(mpx_lane_t *lane)
{
    if (mpx_spsc_publish(&lane->tasks)) {
        mpx_spsc_wake_consumer(&lane->tasks);
    }
}

void mpx_crew_ring(mpx_crew_t *crew)
{
    (void)mpx_u32_fetch_add_acq_rel(&crew->room->bell, 1); /* C6: with C7 */
    MPX_STEP(crew_rang);
    (void)mpx_os_futex_wake(&crew->room->bell, INT_MAX);
}

void mpx_lane_publish_results(mpx_lane_t *lane)
{
    if (mpx_spsc_publish(&lane->results)) {
        mpx_crew_ring(lane->crew);
    }
}

uint32_t mpx_crew_listen(mpx_crew_t *crew)
{
    return mpx_u32_load_acquire(&crew->room->bell); /* C7: with C6 */
}

int mpx_crew_sleep(mpx_crew_t *crew, uint32_t heard, mpx_lane_t *const *lanes, size_t count,
                   int64_t deadline)
{
    size_t announced = 0;
    int status = 0;
    while (announced < count && mpx_spsc_announce(&lanes[announced]->results)) {
        announced++;
    }
    if (announced == count) {
        status = mpx_os_futex_wait(&crew->room->bell, heard, deadline);
    }
    for (size_t i = 0; i < announced; i++) {
        mpx_spsc_stand_down(&lanes[i]->results);
    }
    return status == -EAGAIN ? 0 : status;
}

/* ---- Blocks ---------------------------------------------------------------------------------- */

int mpx_crew_new_block(mpx_crew_t *crew, size_t size, mpx_block_t *block, void **address,
                       int64_t deadline)
{
    mpx_heap_owner_t own;
    int status = mpx_heap_own(crew->arena, &own);
    return status < 0 ? status
                      : mpx_heap_new_until(crew->arena, own, size, block, address, deadline);
}

bool mpx_crew_give_block(mpx_crew_t *crew, mpx_block_t block)
{
    mpx_heap_owner_t own;
    return mpx_heap_own(crew->arena, &own) == 0 &&
           mpx_heap_give(crew->arena, block, own, crew->owner);
}

void mpx_crew_free_own(mpx_crew_t *crew, mpx_block_t block)
{
    mpx_heap_owner_t own;
    if (mpx_heap_own(crew->arena, &own) == 0) {
        (void)mpx_heap_free(crew->arena, block, own);
    }
}

void mpx_crew_free_block(mpx_crew_t *crew, mpx_block_t block)
{
    (void)mpx_heap_free(crew->arena, block, crew->owner);
}

void mpx_lane_free_given(mpx_lane_t *lane)
{
    mpx_block_t block = mpx_u64_load_relaxed(&lane->room->giving);
    if (block != 0) {
        mpx_crew_free_block(lane->crew, block);
    }
    mpx_u64_store_relaxed(&lane->room->giving, 0);
}

int mpx_crew_parcel(mpx_crew_t *crew, const mpx_parcel_note_t *note, const char **bytes)
{
    size_t size;
    void *address;
    int status = mpx_heap_find(crew->arena, note->block, &address, &size);
    if (status == 0 && note->size > size) {
        status = -EPROTO;
    }
    *bytes = status < 0 ? NULL : address;
    return status;
}
