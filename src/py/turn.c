/* turn.c - see turn.h.
 *
 * `holder` is a futex: WAITED is set in it while a thread may be asleep, and then whoever ends the
 * turn wakes one. Who was woken sets it again, as there may be more.
 *
 * What a holder did before it let go (T0) is seen by the next one (T1). Who asks whether somebody
 * has the turn (T2), and hears that, has been heard: the holder sees what was done before, after it
 * has let go (T3).
 */
#include "turn.h"

#include <errno.h>

#include "mpx_os.h"

#define WAITED UINT32_C(0x80000000)

static bool take_if_free(mpx_turn_t *turn, uint32_t mine)
{
    uint32_t free = 0;
    return mpx_u32_cas_acquire(&turn->holder, &free, mine); /* T1: with T0 */
}

/* In a child, after a fork: no thread of this process has the turn. Two threads may find that at
 * once; the one that says so lets go of what the copy says, and the other waits for it in vain for
 * one piece of a wait at most. */
MPX_COLD static void leave_to_parent(mpx_turn_t *turn, uint64_t before, uint64_t own)
{
    if (mpx_u64_cas_relaxed(&turn->process, &before, own)) {
        turn->depth = 0;
        mpx_u32_store_release(&turn->holder, 0); /* T0: with T1 */
    }
}

static bool mark_as_waited(mpx_turn_t *turn, uint32_t holder)
{
    return (holder & WAITED) || mpx_u32_cas_acquire(&turn->holder, &holder, holder | WAITED);
}

MPX_COLD static int wait_for_turn(mpx_turn_t *turn, uint32_t me)
{
    int status = 0;
    for (;;) {
        if (take_if_free(turn, me | WAITED))
            return 0;
        uint32_t holder = mpx_u32_load_relaxed(&turn->holder);
        if (holder == 0 || !mark_as_waited(turn, holder))
            continue;
        int64_t piece = mpx_piece_of(MPX_NEVER);
        Py_BEGIN_ALLOW_THREADS
        status = mpx_os_futex_wait(&turn->holder, holder | WAITED, piece);
        Py_END_ALLOW_THREADS
        if (status < 0 && status != -EAGAIN && !mpx_wait_on(&status, MPX_NEVER))
            return -1;
    }
}

int mpx_turn_take(mpx_turn_t *turn)
{
    uint32_t me = mpx_os_self()->id;
    uint64_t own = mpx_os_own_word(), process = mpx_u64_load_relaxed(&turn->process);
    if (MPX_UNLIKELY(process != own))
        leave_to_parent(turn, process, own);
    if (MPX_LIKELY(take_if_free(turn, me)))
        return 0;
    if ((mpx_u32_load_relaxed(&turn->holder) & ~WAITED) == me) {
        turn->depth++;
        return 0;
    }
    return wait_for_turn(turn, me);
}

void mpx_turn_end(mpx_turn_t *turn)
{
    if (MPX_UNLIKELY(turn->depth > 0)) {
        turn->depth--;
        return;
    }
    /* T0: with T1; T3: with T2 */
    if (MPX_UNLIKELY(mpx_u32_exchange_acq_rel(&turn->holder, 0) & WAITED))
        mpx_os_futex_wake(&turn->holder, 1);
}

bool mpx_turn_is_anothers(mpx_turn_t *turn)
{
    /* T2: with T3, which reads what is written here, where this does not read what that writes. */
    uint32_t holder = mpx_u32_fetch_add_acq_rel(&turn->holder, 0) & ~WAITED;
    return holder != 0 && holder != mpx_os_self()->id &&
           mpx_u64_load_relaxed(&turn->process) == mpx_os_own_word();
}

bool mpx_turn_is_mine(mpx_turn_t *turn)
{
    return (mpx_u32_load_relaxed(&turn->holder) & ~WAITED) == mpx_os_self()->id &&
           mpx_u64_load_relaxed(&turn->process) == mpx_os_own_word();
}
