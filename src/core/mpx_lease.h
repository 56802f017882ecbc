/* mpx_lease.h - a block of shared memory on loan: it stays as long as a process can reach it.
 *
 * Layer: L5
 *
 * Who has received a message's block may keep it instead of copying what is in it. A lease is a
 * slot that owns the block and nothing else. So what holds for slots holds for it: the processes
 * that are forked while it lasts hold it too, each ends it for itself, and with the last of them,
 * ended or dead, the block is free. No other process reaches it.
 *
 * The bound. A process has at most so many bytes on loan, those that it has from its parent
 * included; where it would be more, there is no lease, and the content is copied. The number is the
 * process's own: nothing in shared memory could be wrong after a death.
 *
 * Threads. Everything here may be called from any thread; nothing from a signal handler. No mutex
 * may be held.
 *
 * Killed at any point, a process leaves the block to the heap's look for the dead: see mpx_lease.c.
 */
#ifndef MPX_LEASE_H
#define MPX_LEASE_H

#include "mpx_heap.h"

typedef struct {
    mpx_arena_t *arena;
    mpx_block_t block;
    mpx_heap_owner_t owner; /* its slot, of which this process holds one reference */
    size_t size;            /* bytes of the block */
} mpx_lease_t;

/* Takes a block on loan that is this process's own (mpx_heap_own); on failure it still is.
 * -EDQUOT: too much is on loan. -ENOMEM, -ENOSPC, -EFBIG, -EBADF, -ESTALE: there is no slot.
 * -EBUSY: nothing in the arena is freed any more, so neither would the block be. -EPROTO: that is
 * no block of this process's. */
MPX_NODISCARD int mpx_lease_take(mpx_lease_t *lease, mpx_arena_t *arena, mpx_block_t block);

/* Gives it back: this process does not touch the block again. */
void mpx_lease_end(const mpx_lease_t *lease);

/* How many bytes this process has on loan. */
uint64_t mpx_lease_total(void);

/* The most that it may have, at first a quarter of the memory that could be had when it was first
 * asked; and another number in its place (0: ask again). Lower than what is on loan, it ends no
 * lease. */
uint64_t mpx_lease_limit(void);
void mpx_lease_set_limit(uint64_t bytes);

#endif
