/* mpx_arena_pvt.h - how an arena lies in its segment, and what the arena's own files share.
 *
 * Layer: L3
 *
 * Offsets within the segment are kept in units of 64 bytes, which are handed out from `used` upward
 * and never taken back: member records and bitmaps are used again by later members, slots by later
 * objects. All have storage but the extents of the heap (mpx_heap.h), whose blocks are given some.
 *
 *   shared      mutex, identity, number of births, the newest member, the regions
 *   signs       no bytes, but locks on bytes far behind the end: see mpx_os_life_t
 *   region r    64 slots in the first two, twice as many in each one after: region r begins with
 *               slot 64 << (r - 1); beside it, the bitmap of its slots that are taken
 *   member      who, and per region a bitmap of the slots that it holds
 */
#ifndef MPX_ARENA_PVT_H
#define MPX_ARENA_PVT_H

#include "mpx_arena.h"

#define MPX_ARENA_MAGIC UINT64_C(0x00ff616e657261ff)
#define MPX_UNIT        64
#define MPX_REGIONS     24
#define MPX_FIRST_SLOTS UINT32_C(64)

typedef struct {
    mpx_atomic_u32 slots; /* units */
    mpx_atomic_u32 taken; /* units; a bit for each slot */
} mpx_region_t;

typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) uint64_t magic;
    mpx_mutex_t mutex;
    mpx_arena_id_t id;
    mpx_atomic_u64 births; /* how often a member record was made */
    mpx_atomic_u64 used;   /* bytes of the segment that are handed out */
    mpx_atomic_u32 newest; /* the member record made last, in units */
    mpx_atomic_u32 regions;
    mpx_atomic_u32 pinned; /* a process without a record may hold anything: nothing is freed */
    mpx_atomic_u32 unsigned_members; /* a process may live of which there is no sign */
    mpx_region_t region[MPX_REGIONS];
    mpx_lock_t sweeper;    /* held by who looks for what the dead held */
    mpx_atomic_u64 stored; /* from `used` up to here, every byte has storage */
    mpx_atomic_u32 heap;   /* what the heap keeps, in units; 0: there is none yet */
    mpx_atomic_u32 keys;   /* how many owners of blocks were made */
} mpx_arena_shared_t;

/* `owner` is an mpx_process_id_t, the start in the upper half (0: not known); 0 is a free record,
 * whose bits mean nothing. While `seated_at` is set, the owner is the one who made it for a child.
 * `marked_by` is who made it for the child of a fork and gave it a mark (mpx_os_mark_t), 0: nobody;
 * as long as that is the owner, it is his who has the mark. */
typedef struct {
    MPX_ALIGNED(MPX_CACHE_LINE) mpx_atomic_u64 owner;
    mpx_atomic_u64 seated_at; /* nanoseconds */
    mpx_atomic_u64 marked_by;
    uint32_t number; /* where it is, in units: addresses of one record may differ */
    uint32_t next;   /* the record made before */
    mpx_atomic_u32 held[MPX_REGIONS];
} mpx_member_t;

/* `born` is how many members had been born when the slot was made: as long as there has been none
 * since, nobody but its maker holds it. 0: it was given to somebody. */
typedef struct {
    mpx_atomic_u64 born;
    char room[MPX_SLOT_ROOM];
} mpx_slot_cell_t;

MPX_STATIC_ASSERT(sizeof(mpx_slot_cell_t) == MPX_SLOT_SIZE, "a slot is one cache line");
MPX_STATIC_ASSERT(sizeof(mpx_member_t) == 2 * MPX_UNIT, "a member record is two lines");
MPX_STATIC_ASSERT(sizeof(mpx_arena_shared_t) == 5 * MPX_UNIT, "layout 1");

/* In `born`: other slots refer to this one, which must not be used again before they have
 * forgotten it. */
#define MPX_BORN_LINKED (UINT64_C(1) << 63)

struct mpx_arena {
    mpx_segment_t segment;
    mpx_os_life_t life;
    void *mark;        /* of mpx_os_life_sign: stays until the process ends */
    mpx_arena_t *next; /* the one attached before */
    mpx_arena_shared_t *shared;
    mpx_member_t *self;        /* NULL: this process has no record, and the arena is pinned */
    mpx_member_t *unborn;      /* made for the child of a fork that is under way, or was last */
    uint32_t unborn_thread;    /* who forks */
    mpx_os_mark_t unborn_mark; /* while a fork is under way */
    uint32_t first_word; /* no word before this one has a free slot, as far as is known here */
    uint32_t records;    /* how many member records there may be before the next look for dead */
    mpx_slot_t private_slot; /* 0: none */
    mpx_atomic_u64 own;      /* the private slot as an owner of blocks; 0: not yet */
    uint32_t *references;    /* by slot: how often this process holds it */
    uint32_t reference_count;
    mpx_atomic_ptr slots[MPX_REGIONS]; /* where each region is mapped; NULL: look */
};

/* ---- mpx_arena.c ----------------------------------------------------------------------------- */

/* Around all that uses a handle's private members: a fork waits for it. */
void mpx_arena_enter(void);
void mpx_arena_exit(void);

/* The arena's mutex, after mpx_arena_enter. */
void mpx_arena_lock(mpx_arena_t *arena);

/* 0; -ETIMEDOUT, -EINTR. */
MPX_NODISCARD int mpx_arena_lock_until(mpx_arena_t *arena, int64_t deadline);
void mpx_arena_unlock(mpx_arena_t *arena);

/* The address of `size` bytes at the unit, NULL where they are not, or cannot be mapped. */
void *mpx_arena_unit(mpx_arena_t *arena, uint32_t unit, uint64_t size);

/* The same, at an offset from the start of the segment. */
void *mpx_arena_bytes(mpx_arena_t *arena, uint64_t offset, uint64_t size);

/* Hands out `size` bytes of zeros. Under the mutex. */
MPX_NODISCARD int mpx_arena_take_units(mpx_arena_t *arena, uint64_t size, uint32_t *unit);

/* Hands out `size` bytes, a multiple of the unit, which may have no storage, at an offset that is a
 * multiple of the alignment. Under the mutex. */
MPX_NODISCARD int mpx_arena_take_sparse(mpx_arena_t *arena, uint64_t size, uint64_t alignment,
                                        uint32_t *unit);

/* ---- mpx_arena_member.c: who is in the arena ------------------------------------------------- */

/* Makes a record: with a copy of this process's bits but for the private slot's, for a child that
 * will be forked, which has the handle's `unborn_mark`; or with none. Its owner is this process
 * until it is adopted or settled. */
MPX_NODISCARD int mpx_member_seat(mpx_arena_t *arena, bool inherits, mpx_member_t **member);

/* Makes a record that another process has made this process's; false where it is not to be had. */
bool mpx_member_adopt(mpx_member_t *member);

/* Adds what another record of this process holds to its own one, and frees that. Under the mutex.
 */
MPX_NODISCARD int mpx_member_merge(mpx_arena_t *arena, mpx_member_t *member);

/* Says whose a record that was made here is, unless that has adopted it already. In a foreign
 * process, nothing: the record stays its own until it is adopted. */
void mpx_member_settle(mpx_member_t *member, pid_t pid);

/* Frees a record that was made here and not adopted. */
void mpx_member_unseat(mpx_member_t *member);

/* The record of that number; NULL where there is none. */
mpx_member_t *mpx_member_find(mpx_arena_t *arena, uint32_t number);

/* The bits of a slot's holders. Under the mutex; to hold may take storage. */
bool mpx_member_holds(mpx_arena_t *arena, mpx_member_t *member, uint32_t index);
MPX_NODISCARD int mpx_member_hold(mpx_arena_t *arena, mpx_member_t *member, uint32_t index);
void mpx_member_drop(mpx_arena_t *arena, mpx_member_t *member, uint32_t index);

/* Whether a member other than this process holds the slot. Under the mutex. */
bool mpx_member_others_hold(mpx_arena_t *arena, uint32_t index, uint64_t born);

/* The slots of one word that any member holds. Under the mutex. */
uint64_t mpx_member_all_hold(mpx_arena_t *arena, uint32_t region, uint32_t word);

/* Frees the records of the dead. Not under the mutex: it takes system calls. */
void mpx_member_bury_dead(mpx_arena_t *arena);

/* ---- mpx_arena_slot.c: regions and slots ----------------------------------------------------- */

/* How many words the bitmaps of a region have, and how many slots come before it. */
uint32_t mpx_region_words(uint32_t region);
uint32_t mpx_region_start(uint32_t region);

/* The region in which a slot is. */
uint32_t mpx_region_of(uint32_t index);

/* The first word of a region's bitmap; NULL where it has none yet. */
mpx_atomic_u64 *mpx_region_bits(mpx_arena_t *arena, mpx_atomic_u32 *unit, uint32_t region);

/* Adds a region. Under the mutex. */
MPX_NODISCARD int mpx_region_add(mpx_arena_t *arena);

/* Marks as taken what this process holds: for one whose record was lost. */
void mpx_slots_mark_own(mpx_arena_t *arena);

/* Frees what only dead processes held. Takes the mutex. */
void mpx_slots_sweep(mpx_arena_t *arena);

/* Whether anybody holds the slot, as far as is known; of one that somebody does hold, always. */
bool mpx_slots_is_taken(mpx_arena_t *arena, mpx_slot_t slot);

/* Makes this process's private slot, which a forked child does not inherit, unless there is one. */
MPX_NODISCARD int mpx_slots_make_private(mpx_arena_t *arena);

/* In a forked child: forgets the parent's private slot. */
void mpx_slots_leave_private(mpx_arena_t *arena);

/* Makes every lock nobody's that this process holds. */
void mpx_slots_disown_locks(mpx_arena_t *arena);

#endif
