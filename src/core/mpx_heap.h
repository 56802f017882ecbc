/* mpx_heap.h - blocks of shared memory that belong to slots: the memory of large messages.
 *
 * Layer: L4
 *
 * A block is a run of units of 64 KB in an arena's segment, so every member of the arena reaches it
 * and no further descriptor is needed. It belongs to an *owner*, a slot of the same arena, and is
 * free when it is freed, or some time after that slot is: when the last process that held it has
 * dropped it or died. So nothing is lost with a process that is killed.
 *
 * While a thread works on a block, the owner is its process's own (mpx_heap_own), which no child
 * inherits; a block that others are to find belongs to a slot that they share. It goes from one to
 * the other in one step (mpx_heap_give).
 *
 * A block that is not the caller's may vanish at any time: its number is verified, not its
 * contents. It has a generation, so that the number of a block that was freed leads nowhere.
 *
 * The memory. Blocks that were freed last are used first. A free block keeps its storage until
 * mpx_heap_trim; a block that is handed out has storage for every byte.
 *
 * Threads. Everything here may be called from any thread; nothing from a signal handler. give,
 * free, free_left and at take no lock. The others take the arena's mutex, so no other mutex may be
 * held.
 *
 * Killed at any point, a process leaves a whole heap: see mpx_heap.c.
 */
#ifndef MPX_HEAP_H
#define MPX_HEAP_H

#include "mpx_arena.h"

#define MPX_BLOCK_UNIT (64 * 1024)

/* Generation and number; 0 is none. May be stored in shared memory. */
typedef uint64_t mpx_block_t;

/* Key and slot; 0 is none. May be stored in shared memory. */
typedef uint64_t mpx_heap_owner_t;

/* Makes a slot that this process holds able to own blocks. It keeps the first 8 bytes of its room
 * for that; the rest is the caller's. */
MPX_NODISCARD int mpx_heap_owner_new(mpx_arena_t *arena, mpx_slot_t slot, mpx_heap_owner_t *owner);

/* This process's own. -ENOMEM and the like where it has none yet and it cannot be made. */
MPX_NODISCARD int mpx_heap_own(mpx_arena_t *arena, mpx_heap_owner_t *owner);

/* Makes a block of at least `size` bytes for an owner whose slot this process holds. What is in it
 * is undefined. -ENOMEM, -ENOSPC, -EFBIG, -EBADF and -ESTALE where there is none to be had. -ENOMEM
 * also where so much would leave the machine, or a control group, without memory. */
MPX_NODISCARD int mpx_heap_new(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size,
                               mpx_block_t *block, void **address);

/* The same for who does not wait longer than that for a process that was stopped in the middle:
 * -EBUSY. -EINTR: a signal came while it waited. */
MPX_NODISCARD int mpx_heap_new_until(mpx_arena_t *arena, mpx_heap_owner_t owner, size_t size,
                                     mpx_block_t *block, void **address, int64_t deadline);

/* Makes the block another owner's; false: it was not `from`'s. What was written to it is seen by
 * who gets its address after that. */
bool mpx_heap_give(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t from,
                   mpx_heap_owner_t to);

/* Frees the block; false: it was not the owner's, and nothing has happened. */
bool mpx_heap_free(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t owner);

/* The address of a block, and how many bytes it has; NULL where there is no such block, or it
 * cannot be mapped. Maps it if need be. */
void *mpx_heap_at(mpx_arena_t *arena, mpx_block_t block, size_t *size);

/* The same, and why there is none: -EPROTO: there is no such block; -ENOMEM: this process has no
 * address space for it. */
MPX_NODISCARD int mpx_heap_find(mpx_arena_t *arena, mpx_block_t block, void **address,
                                size_t *size);

/* After a drop of the owner's slot: frees that block of its blocks, unless somebody else holds the
 * slot; or all: how many bytes. */
void mpx_heap_free_left(mpx_arena_t *arena, mpx_block_t block, mpx_heap_owner_t owner);
uint64_t mpx_heap_free_all(mpx_arena_t *arena, mpx_heap_owner_t owner);

/* Frees the blocks of the dead, which otherwise happens from time to time, and before the heap
 * grows.
 */
void mpx_heap_sweep(mpx_arena_t *arena);

/* Gives the storage of free blocks back to the kernel, but for `keep` bytes of it. */
void mpx_heap_trim(mpx_arena_t *arena, size_t keep);

/* So many bytes were freed that somebody had received; and, once there is nothing left to receive:
 * gives back what a program that goes on as before does not need. */
void mpx_heap_flow(mpx_arena_t *arena, size_t size);
void mpx_heap_ebb(mpx_arena_t *arena);

/* When somebody looked last, and how much had been made of the heap then; at first zeros. */
typedef struct {
    mpx_atomic_u64 at;
    mpx_atomic_u64 made;
} mpx_heap_watch_t;

/* Somebody waits in vain: once in a second at most, frees what the dead had, and gives back what
 * has not been used since the last time. */
void mpx_heap_look(mpx_arena_t *arena, mpx_heap_watch_t *watch);

/* Something with blocks of so many bytes is no more. Where it had something large: frees what the
 * dead had, and gives all but a little back. */
void mpx_heap_end(mpx_arena_t *arena, uint64_t size, bool had_large);

typedef struct {
    uint64_t size;        /* bytes of all blocks, owned or free, most of them without storage */
    uint64_t owned;       /* bytes of blocks that have an owner, which may be dead */
    uint64_t free_stored; /* bytes of free blocks that have storage */
    uint32_t extents;
} mpx_heap_stats_t;

/* How many bytes the owner's blocks have. */
uint64_t mpx_heap_owned_by(mpx_arena_t *arena, mpx_heap_owner_t owner);

/* As far as that can be said while others go on. */
void mpx_heap_stats(mpx_arena_t *arena, mpx_heap_stats_t *stats);

#endif
