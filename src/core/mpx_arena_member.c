/* mpx_arena_member.c - see mpx_arena_pvt.h: the records of an arena's processes.
 *
 * Layer: L3
 *
 * Records form a list that only grows, at its head; a record whose process has died is used again.
 * It belongs to nobody while `owner` is 0, and its bits are written then. So a process killed
 * while it makes a record leaves one that is free.
 *
 * A record that was made for a child is its maker's until the child adopts it. Meanwhile nobody is
 * seen to live by it: the maker may live and the child be dead, or never have been; or the maker is
 * killed, and has a child all the same. So both hold a mark of the record's number from before the
 * fork, the maker until it is over, the child until it has adopted. Where nobody has it any more,
 * the record is nobody's.
 *
 *   given     before the record has an owner, and that under the mutex: so what is seen under the
 *             mutex, an owner who has marked it and no mark, cannot be the end of one fork and the
 *             beginning of the next
 *   dropped   by the child after the record has changed hands
 *
 * For want of a mark, and where a child is started by exec, a record is its maker's as long as that
 * lives, and is left alone for a while after that: the first thing a forked child does is to adopt.
 */
#include "mpx_arena_pvt.h"

#include "mpx_fault.h"

#include <errno.h>

/* Far longer than any child is kept from its first instructions. */
#define ADOPTION_TIME (60 * MPX_NANOS_PER_SEC)

#define RECORDS_AT_FIRST 8

static uint64_t word_of(mpx_process_id_t id)
{
    return (uint64_t)id.start << 32 | (uint32_t)id.pid;
}

static mpx_process_id_t id_of(uint64_t word)
{
    return (mpx_process_id_t){.pid = (pid_t)(uint32_t)word, .start = (uint32_t)(word >> 32)};
}

/* ---- The list -------------------------------------------------------------------------------- */

static mpx_member_t *record_at(mpx_arena_t *arena, uint32_t unit)
{
    return unit == 0 ? NULL : mpx_arena_unit(arena, unit, sizeof(mpx_member_t));
}

static mpx_member_t *newest(mpx_arena_t *arena)
{
    return record_at(arena, mpx_u32_load_acquire(&arena->shared->newest)); /* A1: with A0 */
}

static mpx_member_t *before(mpx_arena_t *arena, const mpx_member_t *member)
{
    return record_at(arena, member->next);
}

mpx_member_t *mpx_member_find(mpx_arena_t *arena, uint32_t number)
{
    uint32_t unit = mpx_u32_load_acquire(&arena->shared->newest); /* A1: with A0 */
    while (unit != 0 && unit != number) {
        mpx_member_t *member = record_at(arena, unit);
        unit = member == NULL ? 0 : member->next;
    }
    return record_at(arena, unit);
}

static bool is_free(mpx_member_t *member)
{
    return mpx_u64_load_relaxed(&member->owner) == 0;
}

static bool is_self(const mpx_arena_t *arena, const mpx_member_t *member)
{
    return arena->self != NULL && arena->self->number == member->number;
}

/* ---- Bits ------------------------------------------------------------------------------------ */

/* The word with the slot's bit; NULL where the member has no bits in that region. */
static mpx_atomic_u64 *word_with(mpx_arena_t *arena, mpx_member_t *member, uint32_t index,
                                 uint64_t *bit)
{
    uint32_t region = mpx_region_of(index);
    uint32_t in_region = index - mpx_region_start(region);
    mpx_atomic_u64 *bits = mpx_region_bits(arena, &member->held[region], region);
    *bit = UINT64_C(1) << in_region % 64;
    return bits == NULL ? NULL : bits + in_region / 64;
}

bool mpx_member_holds(mpx_arena_t *arena, mpx_member_t *member, uint32_t index)
{
    uint64_t bit;
    mpx_atomic_u64 *word = word_with(arena, member, index, &bit);
    return word != NULL && (mpx_u64_load_relaxed(word) & bit);
}

/* Gives the member bits for a region. */
static int furnish(mpx_arena_t *arena, mpx_member_t *member, uint32_t region)
{
    uint32_t unit;
    if (mpx_u32_load_relaxed(&member->held[region]) != 0) {
        return 0;
    }
    int status = mpx_arena_take_units(arena, mpx_region_words(region) * sizeof(uint64_t), &unit);
    if (status == 0) {
        mpx_u32_store_relaxed(&member->held[region], unit);
    }
    return status;
}

int mpx_member_hold(mpx_arena_t *arena, mpx_member_t *member, uint32_t index)
{
    uint64_t bit;
    int status = furnish(arena, member, mpx_region_of(index));
    if (status < 0) {
        return status;
    }
    mpx_atomic_u64 *word = word_with(arena, member, index, &bit);
    if (word == NULL) {
        return -ENOMEM; /* there, but it cannot be mapped */
    }
    mpx_u64_store_relaxed(word, mpx_u64_load_relaxed(word) | bit);
    return 0;
}

void mpx_member_drop(mpx_arena_t *arena, mpx_member_t *member, uint32_t index)
{
    uint64_t bit;
    mpx_atomic_u64 *word = word_with(arena, member, index, &bit);
    if (word != NULL) {
        mpx_u64_store_relaxed(word, mpx_u64_load_relaxed(word) & ~bit);
    }
}

bool mpx_member_others_hold(mpx_arena_t *arena, uint32_t index, uint64_t born)
{
    if (born != 0 && born >= mpx_u64_load_relaxed(&arena->shared->births)) {
        return false; /* nobody is younger than the slot, and it was given to nobody */
    }
    for (mpx_member_t *member = newest(arena); member != NULL; member = before(arena, member)) {
        if (!is_self(arena, member) && !is_free(member) && mpx_member_holds(arena, member, index)) {
            return true;
        }
    }
    return false;
}

uint64_t mpx_member_all_hold(mpx_arena_t *arena, uint32_t region, uint32_t word)
{
    uint64_t held = 0;
    for (mpx_member_t *member = newest(arena); member != NULL; member = before(arena, member)) {
        mpx_atomic_u64 *bits =
            is_free(member) ? NULL : mpx_region_bits(arena, &member->held[region], region);
        if (bits != NULL) {
            held |= mpx_u64_load_relaxed(bits + word);
        }
    }
    return held;
}

/* ---- Making a record ------------------------------------------------------------------------- */

/* The bit of this process's private slot, if it is in that word. */
static uint64_t private_bit(const mpx_arena_t *arena, uint32_t region, uint32_t word)
{
    uint32_t index = arena->private_slot - 1;
    if (arena->private_slot == 0 || mpx_region_of(index) != region) {
        return 0;
    }
    uint32_t in_region = index - mpx_region_start(region);
    return in_region / 64 == word ? UINT64_C(1) << in_region % 64 : 0;
}

/* Writes the bits of a record that is nobody's: `from`'s, which is this process's, or none. Or adds
 * them to those of this process's. */
static int write_bits(mpx_arena_t *arena, mpx_member_t *member, mpx_member_t *from, bool adds)
{
    for (uint32_t region = 0; region < MPX_REGIONS; region++) {
        mpx_atomic_u64 *source =
            from == NULL ? NULL : mpx_region_bits(arena, &from->held[region], region);
        int status = source == NULL ? 0 : furnish(arena, member, region);
        if (status < 0) {
            return status;
        }
        mpx_atomic_u64 *bits = mpx_region_bits(arena, &member->held[region], region);
        if (bits == NULL && source != NULL) {
            return -ENOMEM;
        }
        for (uint32_t w = 0; bits != NULL && w < mpx_region_words(region); w++) {
            uint64_t kept = adds ? mpx_u64_load_relaxed(bits + w) : 0;
            uint64_t more = source == NULL ? 0 : mpx_u64_load_relaxed(source + w);
            mpx_u64_store_relaxed(bits + w, kept | (more & ~private_bit(arena, region, w)));
        }
        MPX_STEP(member_bits);
    }
    return 0;
}

/* Whether there is no free record, and one more would be too many. */
static bool has_enough(mpx_arena_t *arena)
{
    uint32_t records = 0;
    for (mpx_member_t *member = newest(arena); member != NULL; member = before(arena, member)) {
        if (is_free(member)) {
            return false;
        }
        records++;
    }
    return records >= arena->records;
}

/* Marks a free record for the child of a fork. -EAGAIN: somebody has the mark of a former one, who
 * is just about to drop it; otherwise there is none to give. */
static int mark(mpx_arena_t *arena, const mpx_member_t *member, bool inherits)
{
    return inherits ? mpx_os_mark_give(&arena->unborn_mark, member->number) : -EBADF;
}

/* What mark says of the free record that was found; -EAGAIN where there is none to be marked, or
 * none at all. */
static int find_free(mpx_arena_t *arena, bool inherits, mpx_member_t **found)
{
    int marked = -EAGAIN;
    *found = NULL;
    mpx_member_t *member = newest(arena);
    for (; member != NULL && marked == -EAGAIN; member = before(arena, member)) {
        if (is_free(member)) {
            *found = member;
            marked = mark(arena, member, inherits);
        }
    }
    return marked;
}

static int add_record(mpx_arena_t *arena, mpx_member_t **member)
{
    uint32_t unit;
    int status = mpx_arena_take_units(arena, sizeof(**member), &unit);
    if (status < 0) {
        return status;
    }
    *member = record_at(arena, unit);
    if (*member == NULL) {
        return -ENOMEM;
    }
    (*member)->number = unit;
    (*member)->next = mpx_u32_load_relaxed(&arena->shared->newest);
    MPX_STEP(member_made);
    mpx_u32_store_release(&arena->shared->newest, unit); /* A0: with A1 */
    MPX_STEP(member_listed);
    return 0;
}

/* Under the mutex. */
static int seat(mpx_arena_t *arena, mpx_member_t *member, bool inherits, bool is_marked)
{
    int status = write_bits(arena, member, inherits ? arena->self : NULL, false);
    if (status < 0) {
        return status;
    }
    uint64_t own = word_of(mpx_os_own_process());
    uint64_t birth = mpx_u64_load_relaxed(&arena->shared->births) + 1;
    mpx_u64_store_relaxed(&arena->shared->births, birth);
    MPX_STEP(member_birth);
    mpx_u64_store_relaxed(&member->seated_at, (uint64_t)mpx_os_now());
    MPX_STEP(member_seating);
    mpx_u64_store_relaxed(&member->marked_by, is_marked ? own : 0);
    MPX_STEP(member_marked);
    mpx_u64_store_release(&member->owner, own); /* A2: with A3, A10: with A11 */
    MPX_STEP(member_seated);
    return 0;
}

/* What this process may still want to settle (mpx_arena_forked) was somebody's meanwhile. */
static void forget_unborn(mpx_arena_t *arena, const mpx_member_t *member)
{
    if (arena->unborn != NULL && arena->unborn->number == member->number) {
        arena->unborn = NULL;
    }
}

/* A record that is free. Under the mutex. */
static int find_record(mpx_arena_t *arena, bool inherits, mpx_member_t **record, bool *is_marked)
{
    int marked = find_free(arena, inherits, record), status = 0;
    if (marked == -EAGAIN) {
        mpx_member_t *made = NULL;
        status = add_record(arena, &made);
        if (status == 0) {
            *record = made;
            marked = mark(arena, made, inherits);
        }
    }
    *is_marked = marked == 0;
    return *record == NULL ? status : 0; /* without a mark where there is no memory for another */
}

int mpx_member_seat(mpx_arena_t *arena, bool inherits, mpx_member_t **seated)
{
    mpx_member_t *member;
    bool is_marked;
    (void)mpx_os_own_process(); /* asks the kernel, the first time: not under the mutex */
    if (has_enough(arena)) {
        mpx_member_bury_dead(arena);
    }
    mpx_arena_lock(arena);
    int status = find_record(arena, inherits, &member, &is_marked);
    if (status == 0) {
        status = seat(arena, member, inherits, is_marked);
    }
    mpx_arena_unlock(arena);
    if (status == 0) {
        forget_unborn(arena, member);
        *seated = member;
    }
    return status;
}

/* ---- From maker to child --------------------------------------------------------------------- */

static bool hand_over(mpx_member_t *member, uint64_t from, uint64_t to)
{
    if (from == 0 || !mpx_u64_cas_acq_rel(&member->owner, &from, to)) {
        /* A3: with A2, A10: with A11 */
        return false;
    }
    MPX_STEP(member_handed_over);
    mpx_u64_store_relaxed(&member->seated_at, 0);
    return true;
}

/* Whether a record, as its maker has settled it, is this process's. */
static bool is_settled_for_us(uint64_t owner)
{
    mpx_process_id_t id = id_of(owner);
    return owner != 0 && (id.pid == mpx_os_own_process().pid ||
                          (mpx_os_is_foreign() && id.start == 0)); /* a pid elsewhere */
}

/* The maker settles it at the same time, perhaps. */
bool mpx_member_adopt(mpx_member_t *member)
{
    uint64_t own = word_of(mpx_os_own_process());
    uint64_t owner = mpx_u64_load_relaxed(&member->owner);
    bool is_ours = mpx_u64_load_relaxed(&member->seated_at) != 0 || is_settled_for_us(owner);
    MPX_STEP(member_adopting);
    if (is_ours && hand_over(member, owner, own)) {
        return true;
    }
    owner = mpx_u64_load_relaxed(&member->owner);
    return is_settled_for_us(owner) && hand_over(member, owner, own);
}

/* A foreign process has no name for its child, which only its pid here is known of. */
void mpx_member_settle(mpx_member_t *member, pid_t pid)
{
    if (mpx_os_is_foreign()) {
        return;
    }
    (void)hand_over(member, word_of(mpx_os_own_process()),
                    word_of((mpx_process_id_t){.pid = pid, .start = 0}));
}

void mpx_member_unseat(mpx_member_t *member)
{
    (void)hand_over(member, word_of(mpx_os_own_process()), 0);
}

/* Under the mutex. */
int mpx_member_merge(mpx_arena_t *arena, mpx_member_t *member)
{
    int status = write_bits(arena, arena->self, member, true);
    if (status == 0) {
        mpx_member_unseat(member);
    }
    return status;
}

/* ---- Death ----------------------------------------------------------------------------------- */

/* A process that executes another program goes on by its name, but has nothing of this any more:
 * its sign, which it gave before it adopted a record, is gone. */
bool mpx_arena_has_lost(const mpx_arena_t *arena, mpx_process_id_t process)
{
    return mpx_os_process_alive(process) == 0 || mpx_os_life_is_over(&arena->life, process);
}

/* A record that was settled for a process which has not adopted it yet does not know its start, and
 * that process gave no sign: it lives as long as its pid. */
static bool is_dead(const mpx_arena_t *arena, mpx_member_t *member, uint64_t owner)
{
    if (!mpx_arena_has_lost(arena, id_of(owner))) {
        return false;
    }
    uint64_t maker = mpx_u64_load_relaxed(&member->marked_by);
    uint64_t seated_at = mpx_u64_load_relaxed(&member->seated_at);
    return seated_at == 0 || (maker != 0 && maker != owner) ||
           (uint64_t)mpx_os_now() - seated_at > (uint64_t)ADOPTION_TIME;
}

static bool is_own(uint64_t owner)
{
    return (pid_t)(uint32_t)owner == mpx_os_own_process().pid;
}

/* 1 while somebody has the mark of a record that nobody has adopted yet, 0 when nobody has;
 * negative where there is no mark to go by. */
static int is_expected(const mpx_arena_t *arena, mpx_member_t *member, uint64_t owner)
{
    return mpx_u64_load_relaxed(&member->marked_by) == owner
               ? mpx_os_mark_is_held(&arena->life, member->number)
               : -ENOENT;
}

/* Whether the record was its maker's, and has been made free: under the mutex, since a maker who
 * lives may make it anew at any time, with a mark and under the same name. */
static bool bury_unadopted(mpx_arena_t *arena, mpx_member_t *member, uint64_t owner)
{
    mpx_arena_lock(arena);
    bool is_nobodys = is_expected(arena, member, owner) == 0;
    if (is_nobodys) {
        MPX_STEP(member_burying);
        is_nobodys = mpx_u64_cas_relaxed(&member->owner, &owner, 0);
    }
    mpx_arena_unlock(arena);
    return is_nobodys;
}

/* Frees the record if it is nobody's any more; whether it was. */
static bool bury(mpx_arena_t *arena, mpx_member_t *member, uint64_t owner)
{
    int expected = is_expected(arena, member, owner);
    if (expected == 0) {
        return bury_unadopted(arena, member, owner);
    }
    if (expected > 0 || is_own(owner) || !is_dead(arena, member, owner)) {
        return false;
    }
    (void)mpx_u64_cas_relaxed(&member->owner, &owner, 0); /* the dead make no records */
    MPX_STEP(member_buried);
    return true;
}

void mpx_member_bury_dead(mpx_arena_t *arena)
{
    uint32_t living = 0;
    for (mpx_member_t *member = newest(arena); member != NULL; member = before(arena, member)) {
        uint64_t owner = mpx_u64_load_acquire(&member->owner); /* A11: with A10 */
        if (owner == 0) {
            continue;
        }
        living += !bury(arena, member, owner);
    }
    arena->records = 2 * living + RECORDS_AT_FIRST;
}
