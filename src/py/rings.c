/* rings.c - see rings.h. */
#include "rings.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mpx_heap.h"
#include "mpx_os.h"
#include "mpx_process.h"

/* So many messages go through the descriptor before a duct is made: most pipes see only a few. */
#define FEW 4

/* A process puts so many copies in trust: they count for the kernel's limit of those that are on
 * the way, which is the user's. */
#define MOST_IN_TRUST 32

/* How long the other end may be gone unnoticed, where no process has closed it but one has ended.
 */
#define LOOK_INTERVAL (20 * INT64_C(1000))

/* So long is somebody waited for that was stopped in the middle of sending. */
#define PATIENCE MPX_NANOS_PER_SEC

/* Buffers of the kernel that a ring's content fits into, beside what may be there. */
#define SOCKET_BUFFER (128 * 1024)
#define PIPE_BUFFER   (64 * 1024)

/* In the slot. */
typedef struct {
    uint64_t key;           /* the heap's */
    mpx_heap_owner_t owner; /* of the blocks */
    mpx_atomic_u64 blocks[2];
    mpx_mutex_t beginners[2]; /* of messages, where there is no duct; and of ducts */
    mpx_atomic_u32 closings;
} room_t;

/* In the place of a block: there never will be a duct. */
#define NEVER UINT64_MAX

MPX_STATIC_ASSERT(sizeof(room_t) <= MPX_SLOT_ROOM, "it lies in a slot");

struct mpx_rings {
    mpx_atomic_u32 users; /* connections in this process */
    mpx_atomic_u32 ends;  /* those of them that have not been closed, nor left */
    bool is_pair;
    mpx_arena_t *arena;
    mpx_slot_t slot;
    mpx_heap_owner_t owner;
    room_t *room;
    mpx_atomic_ptr ducts[2]; /* where they are in this process, or NULL */
    mpx_atomic_u32 trusted;  /* of this process's copies in trust, those for these rings */
};

/* Lives that this process has open at most: a program may need its descriptors, and numbers below
 * FD_SETSIZE, for more than twice as many pipes. More pairs could not have rings. */
#define MOST_LIVES MOST_IN_TRUST

/* Copies that this process has put in trust, and the lives that it has open. */
static mpx_atomic_u32 in_trust, lives_open;

static mpx_rings_t *rings_of(mpx_ring_end_t *end)
{
    return mpx_ptr_load_relaxed(&end->rings);
}

/* ---- Making ---------------------------------------------------------------------------------- */

/* Rings in a slot that this process holds; a new one is all zero. */
static mpx_rings_t *new_rings(bool is_pair, mpx_arena_t *arena, mpx_slot_t slot)
{
    room_t *room = mpx_slot_at(arena, slot);
    mpx_rings_t *rings = room == NULL ? NULL : PyMem_RawCalloc(1, sizeof(*rings));
    if (rings == NULL)
        return NULL;
    rings->is_pair = is_pair;
    rings->arena = arena;
    rings->slot = slot;
    rings->room = room;
    rings->owner = room->owner;
    return rings;
}

static mpx_rings_t *make_rings(bool is_pair)
{
    mpx_arena_t *arena;
    mpx_slot_t slot;
    mpx_heap_owner_t owner;
    if (mpx_arena_home(&arena) < 0 || mpx_slot_new(arena, &slot) < 0)
        return NULL;
    mpx_rings_t *rings = NULL;
    if (mpx_heap_owner_new(arena, slot, &owner) == 0) {
        ((room_t *)mpx_slot_at(arena, slot))->owner = owner;
        rings = new_rings(is_pair, arena, slot);
    }
    if (rings == NULL)
        mpx_slot_drop(arena, slot);
    return rings;
}

static void forget_trust(mpx_rings_t *rings)
{
    mpx_u32_fetch_add_relaxed(&in_trust, 0 - mpx_u32_exchange_acq_rel(&rings->trusted, 0));
}

static void drop_rings(mpx_rings_t *rings)
{
    if (mpx_u32_fetch_add_acq_rel(&rings->users, UINT32_MAX) != 1)
        return;
    forget_trust(rings);
    mpx_slot_drop(rings->arena, rings->slot);
    (void)mpx_heap_free_all(rings->arena, rings->owner);
    PyMem_RawFree(rings);
}

/* The end has nothing more to do with the rings, if it had until now: these, or NULL. Copies in
 * trust are gone with the last end that this process has. */
static mpx_rings_t *part(mpx_ring_end_t *end)
{
    mpx_rings_t *rings = mpx_ptr_exchange_acq_rel(&end->rings, NULL);
    if (rings != NULL && mpx_u32_fetch_add_acq_rel(&rings->ends, UINT32_MAX) == 1)
        forget_trust(rings);
    return rings;
}

static bool is_large_enough(int fd, bool is_socket)
{
    int size;
    socklen_t length = sizeof(size);
    if (is_socket)
        return getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, &length) == 0 && size >= SOCKET_BUFFER;
    return fcntl(fd, F_GETPIPE_SZ) >= PIPE_BUFFER;
}

static int make_lives(int lives[2])
{
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, lives) < 0)
        return -errno;
    for (int i = 0; i < 2; i++)
        lives[i] = mpx_os_above_stdio(lives[i]);
    if (lives[0] >= 0 && lives[1] >= 0)
        return 0;
    for (int i = 0; i < 2; i++) {
        if (lives[i] >= 0)
            close(lives[i]);
    }
    return -EMFILE;
}

static int give_life(mpx_ring_end_t *end, int life)
{
    mpx_file_info_t info;
    int status = mpx_os_file_info(life, &info);
    end->life_file = info.id;
    mpx_u32_store_relaxed(&end->life, (uint32_t)life);
    mpx_u32_fetch_add_relaxed(&lives_open, 1);
    return status;
}

/* Whether it is for the caller to close. */
static bool forget_life(mpx_ring_end_t *end)
{
    if (mpx_u32_exchange_acq_rel(&end->life, MPX_NO_HANDLE) == MPX_NO_HANDLE)
        return false;
    mpx_u32_fetch_add_relaxed(&lives_open, UINT32_MAX);
    return true;
}

static int own_life(mpx_ring_end_t *end)
{
    int life = (int)mpx_u32_load_relaxed(&end->life);
    return mpx_os_is_file(life, end->life_file) ? life : -1;
}

static void join(mpx_ring_end_t *end, mpx_rings_t *rings, unsigned side, int life)
{
    bool is_pair = rings->is_pair;
    if (is_pair)
        (void)!give_life(end, life); /* else it is not recognised, and left alone */
    mpx_u32_fetch_add_relaxed(&rings->users, 1);
    mpx_u32_fetch_add_relaxed(&rings->ends, 1);
    end->joined = rings;
    end->side = side;
    end->is_socket = is_pair;
    end->sends = is_pair || side == 1;
    end->receives = is_pair || side == 0;
    mpx_ptr_store_relaxed(&end->rings, rings); /* nobody else has the connection yet */
}

void mpx_ends_join(mpx_ring_end_t *first, mpx_ring_end_t *second, bool duplex)
{
    mpx_ring_end_t *ends[2] = {first, second};
    int lives[2] = {-1, -1};
    if (duplex && (mpx_u32_load_relaxed(&lives_open) >= MOST_LIVES || make_lives(lives) < 0))
        return;
    mpx_rings_t *rings = make_rings(duplex);
    for (unsigned i = 0; i < 2; i++) {
        if (rings == NULL) {
            if (duplex)
                close(lives[i]);
            continue;
        }
        join(ends[i], rings, i, lives[i]);
    }
}

bool mpx_end_parts(mpx_ring_end_t *end, mpx_end_parts_t *parts)
{
    mpx_rings_t *rings = rings_of(end);
    if (rings == NULL || mpx_arena_fd(rings->arena) < 0)
        return false;
    *parts = (mpx_end_parts_t){rings->arena, rings->slot, end->side, end->is_socket, -1};
    if (end->is_socket)
        parts->life = own_life(end);
    return !end->is_socket || parts->life >= 0;
}

int mpx_end_adopt(mpx_ring_end_t *end, const mpx_end_parts_t *parts)
{
    mpx_rings_t *rings = new_rings(parts->is_socket, parts->arena, parts->slot);
    if (rings == NULL)
        return -ENOMEM;
    if (parts->life >= 0)
        (void)fcntl(parts->life, F_SETFD, FD_CLOEXEC); /* it came through an exec */
    join(end, rings, parts->side, parts->life);
    return 0;
}

/* ---- Ducts ----------------------------------------------------------------------------------- */

static mpx_duct_t *find_duct(mpx_rings_t *rings, unsigned side)
{
    size_t size;
    mpx_duct_t *duct = mpx_ptr_load_acquire(&rings->ducts[side]); /* D13: with D12 */
    if (MPX_LIKELY(duct != NULL))
        return duct;
    uint64_t block = mpx_u64_load_acquire(&rings->room->blocks[side]); /* D11: with D10 */
    if (block == 0 || block == NEVER)
        return NULL;
    duct = mpx_heap_at(rings->arena, block, &size);
    if (duct == NULL || !mpx_duct_is_sound(duct, size))
        return NULL;
    mpx_ptr_store_release(&rings->ducts[side], duct); /* D12: with D13 */
    return duct;
}

mpx_duct_t *mpx_end_sends_to(mpx_ring_end_t *end)
{
    mpx_rings_t *rings = rings_of(end);
    return rings == NULL ? NULL : find_duct(rings, end->side);
}

mpx_duct_t *mpx_end_receives_from(mpx_ring_end_t *end)
{
    mpx_rings_t *rings = rings_of(end);
    return rings == NULL ? NULL : find_duct(rings, !end->side);
}

/* A copy of the end, for the other one. */
static bool put_in_trust(mpx_ring_end_t *end, mpx_rings_t *rings, int fd)
{
    int life = end->is_socket ? own_life(end) : -1;
    if (!end->is_socket)
        return true;
    if (life < 0 || mpx_u32_load_relaxed(&in_trust) >= MOST_IN_TRUST ||
        mpx_fds_send(life, "", 1, &fd, 1) < 0)
        return false;
    mpx_u32_fetch_add_relaxed(&in_trust, 1);
    mpx_u32_fetch_add_relaxed(&rings->trusted, 1);
    return true;
}

/* Root's pipe, which may be somebody else's process by the time that it is opened again. */
static void let_anybody_open(mpx_ring_end_t *end, int fd)
{
    if (!end->is_socket && geteuid() == 0)
        (void)!fchmod(fd, S_IRUSR | S_IWUSR | S_IWGRP | S_IWOTH);
}

/* A duct for what the end sends. Who is writing a message without one has the mutex; later ones go
 * by the duct, so that the receiver, once it has opened that, finds nothing that came by another
 * way.
 */
static void make_duct(mpx_ring_end_t *end, mpx_rings_t *rings, int fd)
{
    mpx_block_t block;
    void *address;
    mpx_file_info_t info;
    uint64_t none = 0;
    if (mpx_os_file_info(fd, &info) < 0 || !is_large_enough(fd, end->is_socket) ||
        mpx_heap_new_until(rings->arena, rings->owner, sizeof(mpx_duct_t), &block, &address, 0) < 0)
        return;
    let_anybody_open(end, fd);
    mpx_duct_init(address, end->is_socket);
    mpx_duct_belong_to(address, &info.id);
    bool is_made = false;
    if (mpx_mutex_try_lock(&rings->room->beginners[end->side]) >= 0) {
        if (mpx_u64_load_relaxed(&rings->room->blocks[end->side]) == 0 &&
            put_in_trust(end, rings, fd))
            is_made = mpx_u64_cas_release(&rings->room->blocks[end->side], &none, block);
        mpx_mutex_unlock(&rings->room->beginners[end->side]); /* D10: with D11 */
    }
    if (!is_made)
        (void)mpx_heap_free(rings->arena, block, rings->owner);
}

void mpx_end_count_sent(mpx_ring_end_t *end, int fd)
{
    mpx_rings_t *rings = rings_of(end);
    if (rings == NULL || mpx_u64_load_relaxed(&rings->room->blocks[end->side]) != 0 ||
        mpx_u32_fetch_add_relaxed(&end->sent, 1) < FEW)
        return;
    mpx_u32_store_relaxed(&end->sent, 0); /* if it comes to nothing now */
    make_duct(end, rings, fd);
}

/* So long a sender waits for the duct to be opened, after 1, 8, 64... messages. */
#define OPENING  MPX_NANOS_PER_MILLI
#define INTERVAL (OPENING / 10)

static bool is_power_of_8(uint32_t number)
{
    return (number & (number - 1)) == 0 && (number & UINT32_C(0x49249249)) != 0;
}

/* A receiver opens the duct when it finds the descriptor empty. As long as one is slower than who
 * sends, which it may be by the descriptor only, it would never be. */
void mpx_end_wait_for_opening(mpx_ring_end_t *end, mpx_duct_t *duct)
{
    if (!is_power_of_8(mpx_u32_fetch_add_relaxed(&end->sent, 1) + 1))
        return;
    int64_t deadline = mpx_os_deadline(OPENING);
    Py_BEGIN_ALLOW_THREADS
    for (unsigned tries = 0; !mpx_duct_is_open(duct) && mpx_os_now() < deadline; tries++) {
        if (!mpx_wait_yields(&end->room_mood, tries, deadline))
            (void)!mpx_os_poll(NULL, 0, mpx_os_deadline(INTERVAL));
    }
    Py_END_ALLOW_THREADS
}

int mpx_end_begin(mpx_ring_end_t *end, int fd, mpx_outflow_t *out)
{
    mpx_rings_t *rings = rings_of(end);
    if (rings == NULL)
        return mpx_outflow_write(out, fd, NULL);
    int status = mpx_mutex_try_lock(&rings->room->beginners[end->side]);
    if (status < 0)
        return status;
    uint64_t block = mpx_u64_load_relaxed(&rings->room->blocks[end->side]);
    status = block == 0 || block == NEVER ? mpx_outflow_write(out, fd, NULL) : -EAGAIN;
    mpx_mutex_unlock(&rings->room->beginners[end->side]);
    return status;
}

/* ---- The other end --------------------------------------------------------------------------- */

struct pollfd mpx_end_polls(mpx_ring_end_t *end)
{
    return (struct pollfd){.fd = (int)mpx_u32_load_relaxed(&end->life)};
}

bool mpx_end_was_left(mpx_ring_end_t *end, const struct pollfd *polled)
{
    if (polled->revents == 0)
        return false;
    if (polled->fd == own_life(end))
        return true;
    (void)forget_life(end); /* the program has closed it */
    return false;
}

/* A socket's other end is seen by its life; a pipe's, where it can be written to. */
static bool has_no_other_end(mpx_ring_end_t *end, int fd)
{
    struct pollfd polled[2] = {{.fd = fd}, mpx_end_polls(end)};
    if (mpx_os_poll(polled, 2, 0) <= 0)
        return false;
    return polled[0].revents != 0 || mpx_end_was_left(end, &polled[1]);
}

bool mpx_end_is_alone(mpx_ring_end_t *end, int fd)
{
    mpx_rings_t *rings = rings_of(end);
    if (rings == NULL)
        return false;
    int64_t now = mpx_os_now();
    uint32_t closings = mpx_u32_load_relaxed(&rings->room->closings);
    if (MPX_LIKELY(now < (int64_t)mpx_u64_load_relaxed(&end->next_look) &&
                   closings == mpx_u32_load_relaxed(&end->closings)))
        return false;
    mpx_u64_store_relaxed(&end->next_look, (uint64_t)(now + LOOK_INTERVAL));
    mpx_u32_store_relaxed(&end->closings, closings);
    return has_no_other_end(end, fd);
}

/* ---- Leaving --------------------------------------------------------------------------------- */

/* Whether nothing is in the duct, and nothing will be. */
static bool stop(mpx_ring_end_t *end, mpx_rings_t *rings, unsigned side, int fd, int64_t patience)
{
    uint64_t none = 0;
    if (mpx_u64_cas_relaxed(&rings->room->blocks[side], &none, NEVER) || none == NEVER)
        return true;
    mpx_duct_t *duct = find_duct(rings, side);
    if (duct == NULL)
        return true;
    if (mpx_duct_is_stopped(duct) && mpx_duct_is_empty(duct))
        return true;
    int status;
    do {
        status = mpx_duct_stop(duct, fd, end->is_socket, mpx_os_deadline(patience));
    } while (status == -EINTR);
    return mpx_duct_is_stopped(duct) && (mpx_duct_is_empty(duct) || status == -EPIPE);
}

/* A pipe's other end. After a chroot anything may have that name. */
static int open_again(int fd)
{
    char path[32];
    mpx_file_info_t info;
    int status = mpx_os_file_info(fd, &info);
    if (status < 0)
        return status;
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
    int other = open(path, O_WRONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    if (other < 0)
        return -errno;
    if (!mpx_os_is_file(other, info.id)) {
        close(other);
        return -ENOENT;
    }
    return other;
}

void mpx_end_ask_to_leave(mpx_ring_end_t *end, int fd)
{
    int other = end->is_socket ? -1 : open_again(fd);
    if (other >= 0)
        let_anybody_open(end, other); /* the sender need not be root */
    mpx_u32_store_relaxed(&end->may_leave, end->is_socket || other >= 0);
    if (other >= 0)
        close(other);
    mpx_u64_store_relaxed(&end->asked_by, mpx_os_own_word());
}

/* A descriptor by which to write what this end receives. */
static int open_other_end(mpx_ring_end_t *end, int fd)
{
    if (!end->is_socket)
        return open_again(fd);
    int life = own_life(end);
    return life < 0 ? -EBADF : mpx_fds_peek(life);
}

/* Where a sender has died, what it was moving is where it belongs once that is settled. */
static void settle(mpx_rings_t *rings, unsigned side, int fd)
{
    mpx_duct_t *duct = find_duct(rings, side);
    if (duct != NULL && !mpx_duct_is_empty(duct))
        (void)!mpx_duct_settle(duct, fd, mpx_os_deadline(PATIENCE));
}

/* A sender that was at work may be so again: none begins when the duct is stopped. */
#define TRIES 10

typedef struct {
    mpx_ring_end_t *end;
    mpx_rings_t *rings;
    int fd, other; /* or what came of opening it */
    bool is_done;
} move_t;

static void move(void *argument)
{
    move_t *moving = argument;
    moving->other = open_other_end(moving->end, moving->fd);
    moving->is_done = stop(moving->end, moving->rings, !moving->end->side, moving->other, 0);
    if (moving->other >= 0)
        close(moving->other);
}

/* With the GIL: a child that another thread forked meanwhile would have the other end open, too, so
 * that this one never saw its end. */
static bool move_to_descriptor(mpx_ring_end_t *end, mpx_rings_t *rings, int fd)
{
    move_t moving = {end, rings, fd, -1, false};
    bool is_done = false;
    for (int i = 0; !is_done && i < TRIES; i++) {
        move(&moving);
        if (moving.other == -EMFILE) {
            const int keep[] = {fd, own_life(end)};
            (void)!mpx_os_with_room(keep, MPX_ARRAY_LENGTH(keep), move, &moving);
        }
        is_done = moving.is_done;
        if (is_done)
            break;
        Py_BEGIN_ALLOW_THREADS
        is_done = stop(end, rings, !end->side, -1, PATIENCE); /* which waits for the sender */
        Py_END_ALLOW_THREADS
    }
    return is_done;
}

static void close_life(mpx_ring_end_t *end)
{
    int life = own_life(end);
    mpx_own_fd_show(&end->hidden);
    if (forget_life(end) && life >= 0)
        close(life);
}

void mpx_end_hide(mpx_ring_end_t *end)
{
    int life = end->joined == NULL ? -1 : own_life(end);
    if (life >= 0 && end->hidden.number == 0)
        mpx_own_fd_hide(&end->hidden, life);
}

bool mpx_end_was_reset(mpx_ring_end_t *end)
{
    mpx_duct_t *duct = end->is_socket ? find_duct(end->joined, end->side) : NULL;
    return duct != NULL && !mpx_duct_is_empty(duct) &&
           mpx_u32_exchange_acq_rel(&end->is_reset, 1) == 0;
}

void mpx_end_leave(mpx_ring_end_t *end, int fd)
{
    mpx_rings_t *rings = rings_of(end);
    if (rings == NULL)
        return;
    bool has_sent, has_received = true;
    Py_BEGIN_ALLOW_THREADS
    has_sent =
        !end->sends || stop(end, rings, end->side, fd, PATIENCE) || has_no_other_end(end, fd);
    if (end->receives) {
        settle(rings, !end->side, fd);
        has_received = stop(end, rings, !end->side, -1, PATIENCE);
    }
    Py_END_ALLOW_THREADS
    if (!has_received)
        has_received = move_to_descriptor(end, rings, fd);
    if (has_sent && has_received && part(end) != NULL && end->is_socket) {
        int life = own_life(end);
        if (life >= 0)
            mpx_fds_drop(life);
        close_life(end);
    }
}

void mpx_end_close(mpx_ring_end_t *end)
{
    mpx_rings_t *rings = part(end);
    if (end->joined != NULL)
        close_life(end);
    if (rings != NULL) /* now that the other end can see it */
        mpx_u32_fetch_add_acq_rel(&rings->room->closings, 1);
}

void mpx_end_forget(mpx_ring_end_t *end)
{
    if (end->joined == NULL)
        return;
    mpx_end_close(end);
    drop_rings(end->joined);
    end->joined = NULL;
}
