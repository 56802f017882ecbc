/* mpx_arena.c - see mpx_arena.h: the handles of this process, creation, attachment and fork.
 *
 * Layer: L3
 *
 * What is true at every instruction. A slot is free when its `taken` bit is clear. The bit is set
 * before the first member's bit, and cleared after the last one's; a process killed between these
 * leaves a slot that is taken and nobody's, which the next look for dead members frees. Nothing
 * else in an arena depends on two stores:
 *
 *   units       `used` is raised before the storage is given a name: killed between, it is lost
 *   storage     what is below `stored` has some; `stored` is raised after it was allocated
 *   a region    is complete before `regions` counts it; the next one who adds it begins anew
 *   a member    has its bits before it has an owner
 *
 * Locks. `local` is held around everything here, and a fork waits for it, so a child never finds a
 * handle half changed, nor misses a slot that its parent held. The arena's own mutex is taken
 * inside, never across a fork.
 */
#include "mpx_arena_pvt.h"

#include "mpx_fault.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

/* Storage is allocated for a quarter more than is needed, but no more than that in bytes. */
#define GROWTH_DIVISOR 4
#define MOST_SPARE     (UINT64_C(256) * 1024)

static pthread_mutex_t local = PTHREAD_MUTEX_INITIALIZER;
static mpx_arena_t *arenas; /* the newest handle first */
static mpx_atomic_ptr home; /* of handles, which stay; changed under `local` */
static bool handlers_registered;

void mpx_arena_enter(void)
{
    pthread_mutex_lock(&local);
}

void mpx_arena_exit(void)
{
    pthread_mutex_unlock(&local);
}

/* That the owner died is of no importance: see above. */
int mpx_arena_lock_until(mpx_arena_t *arena, int64_t deadline)
{
    int status = mpx_mutex_lock(&arena->shared->mutex, deadline);
    return status < 0 ? status : 0;
}

void mpx_arena_lock(mpx_arena_t *arena)
{
    while (mpx_arena_lock_until(arena, MPX_NEVER) < 0) {
    }
}

void mpx_arena_unlock(mpx_arena_t *arena)
{
    mpx_mutex_unlock(&arena->shared->mutex);
}

/* ---- The segment ----------------------------------------------------------------------------- */

void *mpx_arena_bytes(mpx_arena_t *arena, uint64_t offset, uint64_t size)
{
    void *address = mpx_segment_at(&arena->segment, offset, size);
    if (address == NULL && mpx_segment_refresh(&arena->segment) == 0) {
        address = mpx_segment_at(&arena->segment, offset, size);
    }
    return address;
}

void *mpx_arena_unit(mpx_arena_t *arena, uint32_t unit, uint64_t size)
{
    return mpx_arena_bytes(arena, (uint64_t)unit * MPX_UNIT, size);
}

/* Where the storage is to end so that there is some up to `end`: in the next page, or further on,
 * so that not every region grows the segment. */
static uint64_t storage_end(uint64_t end)
{
    uint64_t page = mpx_os_page_size();
    uint64_t spare = end / GROWTH_DIVISOR < MOST_SPARE ? end / GROWTH_DIVISOR : MOST_SPARE;
    return (end + spare + page - 1) / page * page;
}

/* Gives [used, end) storage. What lies below the segment's end may have none: an extent that was
 * never reserved to its end, because somebody died. */
static int make_room(mpx_arena_t *arena, uint64_t used, uint64_t end)
{
    uint64_t stored = mpx_u64_load_relaxed(&arena->shared->stored);
    if (end <= stored) {
        return 0;
    }
    if (end / MPX_UNIT > UINT32_MAX) {
        return -ENOSPC;
    }
    int status = mpx_segment_refresh(&arena->segment);
    uint64_t size = mpx_segment_size(&arena->segment);
    uint64_t begin = stored > used ? stored : used;
    uint64_t enough = storage_end(end);
    if (status == 0 && begin < size) {
        uint64_t inside = enough < size ? enough : size;
        status = mpx_segment_allocate(&arena->segment, begin, inside - begin);
    }
    if (status == 0) {
        status = mpx_segment_grow(&arena->segment, enough);
    }
    if (status == 0) {
        MPX_STEP(arena_stored); /* the next one allocates the same again */
        mpx_u64_store_relaxed(&arena->shared->stored, enough);
    }
    return status;
}

int mpx_arena_take_units(mpx_arena_t *arena, uint64_t size, uint32_t *unit)
{
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    uint64_t end = used + (size + MPX_UNIT - 1) / MPX_UNIT * MPX_UNIT;
    int status = make_room(arena, used, end);
    if (status < 0) {
        return status;
    }
    mpx_u64_store_relaxed(&arena->shared->used, end);
    MPX_STEP(arena_units); /* nobody's */
    *unit = (uint32_t)(used / MPX_UNIT);
    return 0;
}

int mpx_arena_take_sparse(mpx_arena_t *arena, uint64_t size, uint64_t alignment, uint32_t *unit)
{
    uint64_t used = mpx_u64_load_relaxed(&arena->shared->used);
    uint64_t begin = (used + alignment - 1) / alignment * alignment;
    if ((begin + size) / MPX_UNIT > UINT32_MAX) {
        return -ENOSPC;
    }
    int status = mpx_segment_grow_sparse(&arena->segment, begin + size);
    if (status < 0) {
        return status;
    }
    MPX_STEP(arena_lengthened); /* longer, not used: `stored` says that it has no storage */
    mpx_u64_store_relaxed(&arena->shared->used, begin + size);
    MPX_STEP(arena_units); /* nobody's */
    *unit = (uint32_t)(begin / MPX_UNIT);
    return 0;
}

/* ---- Fork ------------------------------------------------------------------------------------ */

/* A child without a record may hold anything that its parent held. */
static void pin(mpx_arena_t *arena)
{
    mpx_u32_store_relaxed(&arena->shared->pinned, 1);
}

/* This process shows that it lives, before it is a member. Where it cannot, members of other
 * namespaces give up to find out who is dead. */
static void sign(mpx_arena_t *arena)
{
    int fd = mpx_segment_fd(&arena->segment);
    arena->mark = NULL; /* a parent's is not mapped here */
    if (fd < 0 || mpx_os_life_sign(fd, &arena->mark) < 0) {
        mpx_u32_store_release(&arena->shared->unsigned_members, 1); /* L2: with L3 */
    }
}

/* Where this process could give no sign, neither can it give marks. */
static void prepare_mark(mpx_arena_t *arena)
{
    if (arena->mark == NULL ||
        mpx_os_mark_prepare(mpx_segment_fd(&arena->segment), &arena->unborn_mark) < 0) {
        arena->unborn_mark.address = NULL;
    }
}

static void before_fork(void)
{
    mpx_arena_enter();
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        arena->unborn = NULL;
        arena->unborn_thread = mpx_os_self()->id;
        prepare_mark(arena);
        if (arena->self == NULL || mpx_member_seat(arena, true, &arena->unborn) < 0) {
            pin(arena);
        }
    }
}

/* Or there was none. */
static void after_fork_in_parent(void)
{
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        mpx_os_mark_drop(&arena->unborn_mark);
    }
    mpx_arena_exit();
}

static void after_fork_in_child(void)
{
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        arena->self = arena->unborn;
        arena->unborn = NULL;
        mpx_slots_leave_private(arena);
        sign(arena);
        if (arena->self != NULL && !mpx_member_adopt(arena->self)) {
            /* It had no mark, and the parent was killed long ago: it was taken for a leftover. */
            arena->self = NULL;
            pin(arena);
            mpx_slots_mark_own(arena);
        }
        mpx_os_mark_drop(&arena->unborn_mark);
    }
    mpx_arena_exit();
}

void mpx_arena_forked(pid_t pid)
{
    mpx_arena_enter();
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        if (arena->unborn != NULL && arena->unborn_thread == mpx_os_self()->id) {
            mpx_member_settle(arena->unborn, pid);
            arena->unborn = NULL;
        }
    }
    mpx_arena_exit();
}

void mpx_arena_fork_failed(void)
{
    mpx_arena_enter();
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        if (arena->unborn != NULL && arena->unborn_thread == mpx_os_self()->id) {
            mpx_member_unseat(arena->unborn);
            arena->unborn = NULL;
        }
    }
    mpx_arena_exit();
}

static int register_handlers(void)
{
    if (handlers_registered) {
        return 0;
    }
    (void)mpx_os_self(); /* its own handler must run before ours, which asks who we are */
    (void)mpx_os_own_process();
    if (MPX_FAULT(arena_atfork) ||
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) != 0) {
        return -ENOMEM;
    }
    handlers_registered = true;
    return 0;
}

/* ---- Handles --------------------------------------------------------------------------------- */

static int new_handle(mpx_arena_t **arena)
{
    int status = register_handlers();
    if (status < 0) {
        return status;
    }
    *arena = MPX_FAULT(arena_handle) ? NULL : calloc(1, sizeof(**arena));
    return *arena == NULL ? -ENOMEM : 0;
}

static void enter_handle(mpx_arena_t *arena)
{
    arena->next = arenas;
    arenas = arena;
    arena->life = (mpx_os_life_t){.fd = arena->segment.fd,
                                  .file = arena->segment.file,
                                  .unsigned_members = &arena->shared->unsigned_members};
    mpx_os_life_register(&arena->life);
}

static int make_id(mpx_arena_id_t *id)
{
    ssize_t got = MPX_SYS(arena_getrandom, getrandom(id, sizeof(*id), 0));
    return got == sizeof(*id) ? 0 : got < 0 ? -errno : -EIO;
}

/* Nobody else knows of the arena yet. */
static int furnish(mpx_arena_t *arena)
{
    arena->shared = mpx_segment_at(&arena->segment, MPX_SEGMENT_DATA, sizeof(*arena->shared));
    if (arena->shared == NULL) {
        return -EIO;
    }
    int status = make_id(&arena->shared->id);
    if (status < 0) {
        return status;
    }
    arena->shared->magic = MPX_ARENA_MAGIC;
    mpx_u64_store_relaxed(&arena->shared->used, MPX_SEGMENT_DATA + sizeof(*arena->shared));
    mpx_u64_store_relaxed(&arena->shared->stored, mpx_segment_size(&arena->segment));
    sign(arena);
    mpx_arena_lock(arena);
    status = mpx_region_add(arena);
    mpx_arena_unlock(arena);
    if (status == 0) {
        status = mpx_member_seat(arena, false, &arena->self);
    }
    if (status == 0 && !mpx_member_adopt(arena->self)) {
        status = -EIO;
    }
    return status;
}

static void free_handle(mpx_arena_t *arena)
{
    if (arena->mark != NULL) {
        mpx_os_unmap(arena->mark, mpx_os_page_size());
    }
    free(arena->references);
    free(arena);
}

static int create(mpx_arena_t **created)
{
    mpx_arena_t *arena;
    int status = new_handle(&arena);
    if (status < 0) {
        return status;
    }
    status = mpx_segment_create(&arena->segment, mpx_os_page_size());
    if (status == 0) {
        status = furnish(arena);
        if (status < 0) {
            mpx_segment_close(&arena->segment);
        }
    }
    if (status < 0) {
        free_handle(arena);
        return status;
    }
    enter_handle(arena);
    *created = arena;
    return 0;
}

static mpx_arena_t *known_home(void)
{
    return mpx_ptr_load_acquire(&home); /* A9: with A8 */
}

static void set_home(mpx_arena_t *arena)
{
    mpx_ptr_store_release(&home, arena); /* A8: with A9 */
}

int mpx_arena_home(mpx_arena_t **arena)
{
    int status = 0;
    *arena = known_home();
    if (MPX_LIKELY(*arena != NULL)) {
        return 0;
    }
    mpx_arena_enter();
    *arena = known_home() != NULL ? known_home() : arenas;
    if (*arena == NULL) {
        status = create(arena);
    }
    if (status == 0) {
        set_home(*arena);
    }
    mpx_arena_exit();
    return status;
}

int mpx_arena_move(mpx_arena_t **arena)
{
    mpx_arena_t *made;
    mpx_arena_enter();
    int status = 0;
    if (*arena == known_home()) {
        status = create(&made);
        if (status == 0) {
            set_home(made);
        }
    }
    if (status == 0) {
        *arena = known_home();
    }
    mpx_arena_exit();
    return status;
}

static bool same_id(mpx_arena_id_t a, mpx_arena_id_t b)
{
    return a.low == b.low && a.high == b.high;
}

mpx_arena_id_t mpx_arena_id(const mpx_arena_t *arena)
{
    return arena->shared->id;
}

mpx_arena_t *mpx_arena_find(mpx_arena_id_t id)
{
    mpx_arena_enter();
    mpx_arena_t *arena = arenas;
    while (arena != NULL && !same_id(arena->shared->id, id)) {
        arena = arena->next;
    }
    mpx_arena_exit();
    return arena;
}

int mpx_arena_fd(const mpx_arena_t *arena)
{
    return mpx_segment_fd(&arena->segment);
}

void mpx_arena_disown_locks(void)
{
    mpx_arena_enter();
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        mpx_slots_disown_locks(arena);
    }
    mpx_arena_exit();
}

void mpx_arena_bury_dead(void)
{
    mpx_arena_enter();
    for (mpx_arena_t *arena = arenas; arena != NULL; arena = arena->next) {
        mpx_member_bury_dead(arena);
    }
    mpx_arena_exit();
}

/* ---- Processes started by exec --------------------------------------------------------------- */

int mpx_arena_seat(mpx_arena_t *arena, uint32_t *seat)
{
    mpx_member_t *member;
    mpx_arena_enter();
    int status = mpx_member_seat(arena, false, &member);
    if (status == 0) {
        *seat = member->number;
    }
    mpx_arena_exit();
    return status;
}

void mpx_arena_settle(mpx_arena_t *arena, uint32_t seat, pid_t pid)
{
    mpx_arena_enter();
    mpx_member_t *member = mpx_member_find(arena, seat);
    if (member != NULL && pid == 0) {
        mpx_member_unseat(member);
    } else if (member != NULL) {
        mpx_member_settle(member, pid);
    }
    mpx_arena_exit();
}

static int recognise(mpx_arena_t *arena, uint32_t seat)
{
    arena->shared = mpx_segment_at(&arena->segment, MPX_SEGMENT_DATA, sizeof(*arena->shared));
    if (arena->shared == NULL || arena->shared->magic != MPX_ARENA_MAGIC) {
        return -EPROTO;
    }
    sign(arena);
    arena->self = mpx_member_find(arena, seat);
    return arena->self != NULL && mpx_member_adopt(arena->self) ? 0 : -EPROTO;
}

static int attach(mpx_arena_t **attached, int fd, uint32_t seat)
{
    mpx_arena_t *arena;
    int status = new_handle(&arena);
    if (status < 0) {
        return status;
    }
    status = mpx_segment_attach(&arena->segment, fd);
    if (status == 0) {
        status = recognise(arena, seat);
        if (status < 0) {
            arena->segment.fd = -1; /* it stays the caller's */
            mpx_segment_close(&arena->segment);
        }
    }
    if (status < 0) {
        free_handle(arena);
        return status;
    }
    enter_handle(arena);
    *attached = arena;
    return 0;
}

int mpx_arena_attach(mpx_arena_t **arena, int fd, uint32_t seat)
{
    mpx_arena_enter();
    int status = attach(arena, fd, seat);
    mpx_arena_exit();
    return status;
}

static int join(mpx_arena_t *arena, uint32_t seat)
{
    mpx_member_t *member = mpx_member_find(arena, seat);
    if (member == NULL || arena->self == NULL || !mpx_member_adopt(member)) {
        return -EPROTO;
    }
    if (member->number == arena->self->number) {
        return 0;
    }
    mpx_arena_lock(arena);
    int status = mpx_member_merge(arena, member);
    mpx_arena_unlock(arena);
    return status;
}

int mpx_arena_join(mpx_arena_t *arena, uint32_t seat)
{
    mpx_arena_enter();
    int status = join(arena, seat);
    mpx_arena_exit();
    return status;
}
