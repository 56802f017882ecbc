/* mpx_ring_join.c - see mpx_ring.h: messages that are done with, and who has taken them.
 *
 * Layer: L5
 *
 * A ring counts how many messages are done with, in a word like `head` and `tail`: join waits until
 * it has as many as `tail`. Whoever finishes one adds 1, and nothing else need be known: where a
 * consumer is killed, what it had taken stays unfinished.
 *
 * A ring that counts takers (mpx_ring_count_takers) knows of each process how many it has taken and
 * not finished, in a record behind the control block:
 *
 *     owner   the process; 0: a free record
 *     open    so many has it taken, less those that it has finished
 *
 * Where the process has ended, they are counted as done, and the record is freed; who joins looks
 * for such processes.
 *
 * A process may finish what another one has taken: when it has nothing open itself. Nobody knows
 * then whose that was, so it goes by the dead. `strangers` says how many were finished so, less
 * those that the dead had open: as long as it is above 0, what a dead one had open has been
 * finished already, as far as can be known, and is not counted again; as long as it is below, what
 * is finished so is a dead one's, and has been counted. So at each moment
 *
 *     done = taken - (the sum of all `open`) + (strangers where that is above 0)
 *
 * which is never more than has been taken and finished by living processes, and taken by dead ones:
 * join may wait for too long, as long as somebody lives that has something open by these counts,
 * but it does not return too early.
 *
 * Killed. All of this is written under the consumers' mutex, and a change of more than one word is
 * noted before: `counting` says which record is concerned, and is written last.
 *
 *   TAKES     `open` gets its new value if `head` goes on: so a message that was taken has a taker
 *             at the same instant
 *   FINISHES  done, `open` and `strangers` get theirs
 *
 * Whoever takes the mutex next and finds a note goes through with it. Since it names the values,
 * not what is added, that can be done twice.
 */
#include "mpx_ring_pvt.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <limits.h>

/* Of a process that has taken something. */
typedef struct {
    mpx_atomic_u64 owner;
    mpx_atomic_u64 open;
} taker_t;

/* As many as there is room for in the heap's unit in which the control block lies. */
#define MOST_TAKERS ((uint32_t)((MPX_BLOCK_UNIT - sizeof(mpx_ring_control_t)) / sizeof(taker_t)))

/* `counting` is 0, or one of these and the number of a record, from 1 on, or 0 for none. */
#define TAKES     (UINT32_C(1) << 31)
#define FINISHES  (UINT32_C(1) << 30)
#define RECORD_OF (FINISHES - 1)

/* ---- Records --------------------------------------------------------------------------------- */

static uint32_t takers_of(mpx_ring_control_t *control)
{
    uint32_t count = mpx_u32_load_acquire(&control->takers); /* R17: with R16 */
    return count < MOST_TAKERS ? count : MOST_TAKERS;
}

static taker_t *record_at(mpx_ring_control_t *control, uint32_t number)
{
    return (taker_t *)(control + 1) + number - 1;
}

/* The record of that number; NULL where there is none. */
static taker_t *taker_at(mpx_ring_control_t *control, uint32_t number)
{
    return number == 0 || number > MOST_TAKERS ? NULL : record_at(control, number);
}

static bool is_owned_by(taker_t *taker, uint64_t process)
{
    return taker != NULL && mpx_u64_load_relaxed(&taker->owner) == process;
}

/* The number of the record that is the process's, or free where that is 0; 0 where there is none.
 * Under the mutex. */
static uint32_t find_taker(mpx_ring_control_t *control, uint64_t process)
{
    uint32_t count = takers_of(control);
    for (uint32_t number = 1; number <= count; number++) {
        if (is_owned_by(taker_at(control, number), process)) {
            return number;
        }
    }
    return 0;
}

/* This process's, if it has one. Under the mutex. */
static taker_t *own_taker(mpx_ring_t *ring)
{
    uint64_t own = mpx_os_own_word();
    taker_t *taker = taker_at(ring->control, ring->taker);
    if (MPX_UNLIKELY(!is_owned_by(taker, own))) {
        ring->taker = find_taker(ring->control, own);
        taker = taker_at(ring->control, ring->taker);
    }
    return taker;
}

bool mpx_ring_is_taker(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    if (MPX_LIKELY(own_taker(ring) != NULL)) {
        return true;
    }
    uint32_t number = find_taker(control, 0), count = takers_of(control);
    if (number == 0 && count == MOST_TAKERS) {
        return false;
    }
    bool is_new = number == 0;
    number = is_new ? count + 1 : number;
    taker_t *taker = record_at(control, number);
    mpx_u64_store_relaxed(&taker->open, 0);
    mpx_compiler_barrier(); /* whoever dies here leaves a free record, or an empty one */
    mpx_u64_store_relaxed(&taker->owner, mpx_os_own_word());
    if (is_new) {
        mpx_u32_store_release(&control->takers, number); /* R16: with R17 */
    }
    MPX_STEP(ring_taker_made);
    ring->taker = number;
    return true;
}

/* ---- Notes ----------------------------------------------------------------------------------- */

static void note(mpx_ring_control_t *control, uint32_t what, const mpx_ring_counts_t *counts)
{
    control->counts = *counts;
    mpx_compiler_barrier(); /* whoever dies here leaves no note, or a whole one */
    mpx_u32_store_relaxed(&control->counting, what);
    MPX_STEP(ring_count_noted);
}

static void forget(mpx_ring_control_t *control)
{
    mpx_compiler_barrier(); /* after all that it speaks of */
    mpx_u32_store_relaxed(&control->counting, 0);
}

void mpx_ring_note_taking(mpx_ring_t *ring, uint64_t head, uint32_t messages)
{
    taker_t *taker = record_at(ring->control, ring->taker);
    mpx_ring_counts_t counts = {.messages = mpx_ring_messages(head),
                                .open = mpx_u64_load_relaxed(&taker->open) + messages};
    note(ring->control, TAKES | ring->taker, &counts);
}

void mpx_ring_count_taken(mpx_ring_t *ring)
{
    taker_t *taker = record_at(ring->control, ring->taker);
    mpx_u64_store_relaxed(&taker->open, ring->control->counts.open);
    MPX_STEP(ring_counted);
    forget(ring->control);
}

/* ---- Done ------------------------------------------------------------------------------------ */

/* `done` goes by the same words as `head` and `tail`, without a position. */
static bool is_finished(mpx_ring_t *ring, uint64_t done)
{
    return mpx_ring_between(done, mpx_u64_load_acquire(&ring->control->tail)) ==
           0; /* R5: with R4 */
}

/* `done` with so many messages; it goes on saying that somebody sleeps, unless it is time to wake
 * them. */
static uint64_t done_with(mpx_ring_t *ring, uint32_t messages, uint64_t seen)
{
    uint64_t next = mpx_ring_word(0, messages);
    return is_finished(ring, next) ? next : next | (seen & MPX_RING_SLEEPERS);
}

/* The joiners, after `done` has become `next`. */
static void wake_joiners(mpx_ring_t *ring, uint64_t seen, uint64_t next)
{
    if ((seen & ~next) & MPX_RING_SLEEPERS) {
        (void)!mpx_os_futex_wake(mpx_ring_futex(&ring->control->done), INT_MAX);
    }
}

uint32_t mpx_ring_unfinished(mpx_ring_t *ring)
{
    uint64_t done = mpx_u64_load_acquire(&ring->control->done);                /* R15: with R14 */
    return mpx_ring_between(done, mpx_u64_load_acquire(&ring->control->tail)); /* R5: with R4 */
}

/* Where nobody counts takers. */
static int finish(mpx_ring_t *ring)
{
    mpx_atomic_u64 *word = &ring->control->done;
    uint64_t seen = mpx_u64_load_acquire(word), next; /* R15: with R14 */
    do {
        if (is_finished(ring, seen)) {
            return -ERANGE;
        }
        next = done_with(ring, mpx_ring_messages(seen) + 1, seen);
    } while (!mpx_u64_cas_acq_rel(word, &seen, next)); /* R14: with R15, R15: with R14 */
    MPX_STEP(ring_finished);
    wake_joiners(ring, seen, next);
    return 0;
}

/* ---- Done, where takers are counted ---------------------------------------------------------- */

/* What a change has to tell when the mutex has been released. */
typedef struct {
    uint64_t seen; /* `done` before and after */
    uint64_t next;
} change_t;

/* Goes through with the note of a FINISHES. Nobody else changes `done` now, but for the sleepers.
 */
static change_t go_through(mpx_ring_t *ring, taker_t *taker)
{
    mpx_ring_control_t *control = ring->control;
    mpx_atomic_u64 *word = &control->done;
    change_t change = {.seen = mpx_u64_load_acquire(word)}; /* R15: with R14 */
    do {
        change.next = done_with(ring, control->counts.messages, change.seen);
    } while (!mpx_u64_cas_acq_rel(word, &change.seen, change.next)); /* R14: with R15 */
    MPX_STEP(ring_finished);
    if (taker != NULL) {
        mpx_u64_store_relaxed(&taker->open, control->counts.open);
    }
    control->strangers = control->counts.strangers;
    MPX_STEP(ring_finish_counted);
    forget(control);
    return change;
}

void mpx_ring_settle_counts(mpx_ring_t *ring)
{
    mpx_ring_control_t *control = ring->control;
    uint32_t counting = mpx_u32_load_relaxed(&control->counting);
    taker_t *taker = taker_at(control, counting & RECORD_OF);
    if (counting & FINISHES) {
        (void)go_through(ring, taker); /* who sleeps looks */
    } else if ((counting & TAKES) && taker != NULL &&
               mpx_ring_messages(mpx_u64_load_relaxed(&control->head)) !=
                   control->counts.messages) {
        mpx_u64_store_relaxed(&taker->open, control->counts.open);
    }
    MPX_STEP(ring_settled_count);
    forget(control);
}

/* In the place of a deadline: without a wait. */
#define AT_ONCE 0

static int lock(mpx_ring_t *ring, int64_t deadline)
{
    int status = deadline == AT_ONCE ? mpx_mutex_try_lock(&ring->control->consumers)
                                     : mpx_mutex_lock(&ring->control->consumers, deadline);
    if (status < 0) {
        return status == -EAGAIN || status == -ETIMEDOUT ? -EBUSY : status;
    }
    if (MPX_UNLIKELY(mpx_u32_load_relaxed(&ring->control->counting) != 0)) {
        mpx_ring_settle_counts(ring);
    }
    return 0;
}

/* Numbers from damaged memory may be beyond all bounds. */
static int64_t sum_of(int64_t strangers, uint64_t more)
{
    return (int64_t)((uint64_t)strangers + more);
}

/* Adds to `done`. Under the mutex. */
static change_t add_done(mpx_ring_t *ring, uint32_t number, uint64_t open, int64_t strangers,
                         uint64_t messages)
{
    mpx_ring_control_t *control = ring->control;
    uint64_t done = mpx_u64_load_relaxed(&control->done);
    mpx_ring_counts_t counts = {.messages = mpx_ring_messages(done) + (uint32_t)messages,
                                .open = open,
                                .strangers = strangers};
    note(control, FINISHES | number, &counts);
    return go_through(ring, taker_at(control, number));
}

/* Under the mutex. */
static int finish_one(mpx_ring_t *ring, change_t *change)
{
    mpx_ring_control_t *control = ring->control;
    taker_t *taker = own_taker(ring);
    uint64_t open = taker == NULL ? 0 : mpx_u64_load_relaxed(&taker->open);
    if (open == 0 && control->strangers < 0) {
        control->strangers++; /* has been counted, when the one died who had taken it */
        return 0;
    }
    if (is_finished(ring, mpx_u64_load_relaxed(&control->done))) {
        return -ERANGE;
    }
    *change = open > 0 ? add_done(ring, ring->taker, open - 1, control->strangers, 1)
                       : add_done(ring, 0, 0, sum_of(control->strangers, 1), 1);
    return 0;
}

static int finish_counted(mpx_ring_t *ring, int64_t deadline)
{
    change_t change = {0, 0};
    int status = lock(ring, deadline);
    if (status < 0) {
        return status;
    }
    status = finish_one(ring, &change);
    mpx_mutex_unlock(&ring->control->consumers);
    wake_joiners(ring, change.seen, change.next);
    return status;
}

int mpx_ring_try_finish(mpx_ring_t *ring)
{
    return MPX_UNLIKELY(ring->control->counts_takers) ? finish_counted(ring, AT_ONCE)
                                                      : finish(ring);
}

int mpx_ring_finish(mpx_ring_t *ring, int64_t deadline)
{
    return ring->control->counts_takers ? finish_counted(ring, deadline) : finish(ring);
}

void mpx_ring_count_takers(mpx_ring_t *ring)
{
    ring->control->counts_takers = 1;
}

/* ---- The dead -------------------------------------------------------------------------------- */

/* Counts as done what a dead process had open, unless somebody else has been here. Under the mutex.
 */
static change_t bury(mpx_ring_t *ring, uint32_t number, uint64_t process)
{
    mpx_ring_control_t *control = ring->control;
    taker_t *taker = record_at(control, number);
    change_t change = {0, 0};
    if (!is_owned_by(taker, process)) {
        return change;
    }
    uint64_t open = mpx_u64_load_relaxed(&taker->open);
    if (open > 0) {
        int64_t strangers = control->strangers;
        uint64_t finished = strangers > 0 ? (uint64_t)strangers : 0;
        change = add_done(ring, number, 0, sum_of(strangers, -open),
                          open > finished ? open - finished : 0);
    }
    MPX_STEP(ring_buried);
    mpx_u64_store_relaxed(&taker->owner, 0);
    return change;
}

/* Or executes another program, in which nothing that it had taken is left. */
static bool is_dead(const mpx_ring_t *ring, uint64_t process)
{
    mpx_process_id_t id = {.pid = (pid_t)(uint32_t)process, .start = (uint32_t)(process >> 32)};
    return process != 0 && process != mpx_os_own_word() && mpx_arena_has_lost(ring->arena, id);
}

/* Looks for the dead, which takes system calls: so without the mutex. Those that had nothing open
 * are of interest where there is no free record. */
static int bury_dead(mpx_ring_t *ring, bool empty_too, int64_t deadline)
{
    uint32_t count = takers_of(ring->control);
    for (uint32_t number = 1; number <= count; number++) {
        taker_t *taker = record_at(ring->control, number);
        uint64_t process = mpx_u64_load_relaxed(&taker->owner);
        bool counts = empty_too || mpx_u64_load_relaxed(&taker->open) > 0;
        if (!counts || !is_dead(ring, process)) {
            continue;
        }
        MPX_STEP(ring_burying);
        int status = lock(ring, deadline);
        if (status < 0) {
            return status;
        }
        change_t change = bury(ring, number, process);
        mpx_mutex_unlock(&ring->control->consumers);
        wake_joiners(ring, change.seen, change.next);
    }
    return 0;
}

int mpx_ring_make_taker(mpx_ring_t *ring, int64_t deadline)
{
    int status = bury_dead(ring, true, deadline);
    if (status == 0) {
        status = lock(ring, deadline);
    }
    if (status < 0) {
        return status;
    }
    bool is_taker = mpx_ring_is_taker(ring);
    mpx_mutex_unlock(&ring->control->consumers);
    return is_taker ? 0 : -EUSERS;
}

/* So long is a consumer waited for that was stopped in the middle; the dead are found sooner. */
#define PATIENCE (3 * MPX_WAIT_RECHECK)

/* What a dead one has noted may be that it had something open. */
static int settle_note(mpx_ring_t *ring, int64_t deadline)
{
    if (mpx_u32_load_relaxed(&ring->control->counting) == 0) {
        return 0;
    }
    int status = lock(ring, deadline);
    if (status == 0) {
        mpx_mutex_unlock(&ring->control->consumers);
    }
    return status;
}

/* One look for those who have died with something open. */
static int look(mpx_ring_t *ring)
{
    int64_t deadline = mpx_os_deadline(PATIENCE);
    int status = settle_note(ring, deadline);
    if (status == 0) {
        status = bury_dead(ring, false, deadline);
    }
    return status == -EBUSY ? 0 : status; /* the next look does it */
}

/* ---- Join ------------------------------------------------------------------------------------ */

int mpx_ring_join(mpx_ring_t *ring, int64_t deadline)
{
    mpx_atomic_u64 *word = &ring->control->done;
    int64_t next_look = 0;
    int status = 0;
    for (unsigned tries = 0;; tries++) {
        uint64_t seen = mpx_u64_load_acquire(word); /* R15: with R14 */
        if (is_finished(ring, seen)) {
            return 0;
        }
        if (status < 0) {
            return status == -ETIMEDOUT ? -EAGAIN : status;
        }
        if (mpx_wait_yields(&ring->mood, tries, deadline)) {
            continue;
        }
        tries = MPX_WAIT_YIELDS;
        if (ring->control->counts_takers && mpx_os_now() >= next_look) {
            status = look(ring);
            next_look = mpx_os_deadline(MPX_WAIT_RECHECK);
        } else if (mpx_ring_announce(word, seen)) {
            status = mpx_ring_sleep_on(word, seen, deadline);
        }
    }
}
