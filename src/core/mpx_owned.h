/* mpx_owned.h - words in shared memory that have an owner: what mutexes and locks are made of.
 *
 * Layer: L2
 *
 * The lower half of a word is a futex: the owner's number (of a thread or of a process), and the
 * kernel's WAITERS and OWNER_DIED bits. The upper half says when the owner started, and is written
 * in the same step, so that the owner is told from another one who got its number. Free is a word
 * without a number; a word whose owner died may be free too, with OWNER_DIED in it.
 *
 * Waiting. A few yields first: a wake of another processor costs more than most sections. WAITERS
 * is set by who goes to sleep and cleared by the release; who was asleep sets it again when it
 * takes the word, since others may sleep on. Who gives up after a sleep passes on the wake that it
 * may have taken. Nobody counts sleepers: a dead one would be counted for ever. Who sleeps looks
 * every MPX_WAIT_RECHECK whether the word is free and whether its owner lives, so a wake that was
 * lost with a dying process costs that long.
 *
 * Order. The release (O0) makes what the owner has written visible to who takes the word next (O1).
 * Where the owner died there is no O0: who finds that out has asked the kernel, which knew of the
 * death after all of the owner's stores.
 */
#ifndef MPX_OWNED_H
#define MPX_OWNED_H

#include "mpx_fault.h"
#include "mpx_os.h"

#include <errno.h>

/* All zero is free. */
typedef struct {
    mpx_atomic_u64 word;
} mpx_owned_t;

/* Taken, and the owner before this one died. */
#define MPX_OWNER_DIED 1

/* Whether the owner of this number and start lives; says 0 only when sure. */
typedef int mpx_owner_alive_t(uint32_t number, uint32_t start);

static inline uint64_t mpx_owned_by(uint32_t number, uint32_t start)
{
    return (uint64_t)start << 32 | number;
}

static inline bool mpx_owned_is_free(uint64_t word)
{
    return (word & MPX_FUTEX_TID_MASK) == 0;
}

/* The half that the kernel knows. The core is for little-endian machines. */
static inline mpx_atomic_u32 *mpx_owned_futex(mpx_owned_t *owned)
{
    return (mpx_atomic_u32 *)(void *)&owned->word;
}

/* Takes a word that was `seen`, which is free or has a dead owner: 0, MPX_OWNER_DIED, or -EAGAIN
 * where it is another by now. */
MPX_NODISCARD static inline int mpx_owned_take(mpx_owned_t *owned, uint64_t seen, uint64_t own)
{
    bool died = !mpx_owned_is_free(seen) || (seen & MPX_FUTEX_OWNER_DIED);
    if (!mpx_u64_cas_acquire(&owned->word, &seen, own)) { /* O1: with O0 */
        return -EAGAIN;
    }
    MPX_STEP(owned_taken);
    return died ? MPX_OWNER_DIED : 0;
}

/* Waits until the word can be taken, and takes it: 0, MPX_OWNER_DIED, -ETIMEDOUT or -EINTR. */
MPX_NODISCARD int mpx_owned_wait(mpx_owned_t *owned, uint64_t own, int64_t deadline,
                                 mpx_owner_alive_t *alive);

/* Wakes one who waits, after a release that found WAITERS in the word. */
void mpx_owned_wake(mpx_owned_t *owned);

#endif
