/* mpx_condition.c - see mpx_condition.h.
 *
 * Layer: L3
 *
 * Tickets grow, and a node's is above that of the next older one. So a walk along the list ends,
 * whatever the links say, and a node is told from a former one in the same slot.
 *
 * A process may die between any two stores. The list is whole after each: a node is complete before
 * the store that links it, and unlinked by one store. Burying a node that has been granted takes
 * two, a grant and an unlinking, so it is written down first, and whoever has the mutex next goes
 * through with it before anything else.
 */
#include "mpx_condition.h"

#include "mpx_fault.h"
#include "mpx_wait.h"

#include <errno.h>
#include <sched.h>

enum { WAITING = 1, ASLEEP, GRANTED, GONE };

/* What a marked slot is: a word at the same place in both. */
#define CONDITION_KIND UINT32_C(0x646e6f63)
#define NODE_KIND      UINT32_C(0x65646f6e)

struct node {
    mpx_atomic_u32 kind;      /* from before it is linked till after */
    mpx_atomic_u32 state;     /* the waiter sleeps on it */
    mpx_atomic_u32 older;     /* a slot, 0: none */
    uint64_t ticket;          /* from here on under the mutex, or before it is linked */
    uint64_t limit;           /* the last ticket at the notify that granted this node */
    mpx_process_id_t process; /* who waits */
    mpx_slot_t condition;
};

MPX_STATIC_ASSERT(sizeof(struct node) <= MPX_SLOT_ROOM, "a node fits a slot");
MPX_STATIC_ASSERT(offsetof(struct node, kind) == offsetof(mpx_condition_t, kind),
                  "the undertaker looks there");

/* A condition as the functions here pass it on. */
struct list {
    mpx_arena_t *arena;
    mpx_condition_t *condition;
    mpx_slot_t slot;
    bool held; /* by this process; the undertaker's are not */
};

/* Between two stores that a death may come between: the compiler keeps their order, and who finds
 * out about the death sees the first if it sees the second. */
#define STORED(site)            \
    do {                        \
        mpx_compiler_barrier(); \
        MPX_STEP(site);         \
    } while (0)

/* How often one of the sleepers looks: for dead nodes that have been granted, a little more often
 * than each of them wakes, and for dead nodes that wait, so that this takes 1/INQUEST_SHARE of a
 * processor at most. */
#define LOOK_INTERVAL    (4 * MPX_WAIT_RECHECK / 5)
#define INQUEST_INTERVAL MPX_NANOS_PER_SEC
#define INQUEST_LONGEST  (60 * MPX_NANOS_PER_SEC)
#define INQUEST_SHARE    2000

/* ---- Nodes ----------------------------------------------------------------------------------- */

/* The node in that slot, NULL where there is none. */
static struct node *node_at(mpx_arena_t *arena, mpx_slot_t slot)
{
    struct node *node = slot != 0 ? mpx_slot_at(arena, slot) : NULL;
    bool is_node = node != NULL && mpx_u32_load_acquire(&node->kind) == NODE_KIND; /* N3: with N2 */
    return is_node ? node : NULL;
}

static bool is_of(const struct node *node, mpx_process_id_t process)
{
    return node->process.pid == process.pid && node->process.start == process.start;
}

static bool is_waiting(struct node *node)
{
    uint32_t state = mpx_u32_load_relaxed(&node->state);
    return state == WAITING || state == ASLEEP;
}

static bool is_granted(struct node *node)
{
    return mpx_u32_load_acquire(&node->state) == GRANTED; /* N1: with N0 */
}

static void wake(struct node *node)
{
    (void)!mpx_os_futex_wake(&node->state, 1);
}

/* Whether its waiter has to be woken. */
static bool grant(struct node *node, uint64_t limit)
{
    node->limit = limit;
    STORED(condition_granting);
    uint32_t before = mpx_u32_exchange_release(&node->state, GRANTED); /* N0: with N1 */
    STORED(condition_granted);
    return before == ASLEEP;
}

/* ---- The list, with the mutex held ----------------------------------------------------------- */

/* The node to which the link leads. NULL: this is the end, or the list is damaged. *below is above
 * the ticket of each node that is left, UINT64_MAX at first. */
static struct node *follow(const struct list *list, mpx_atomic_u32 *link, uint64_t *below)
{
    struct node *node = node_at(list->arena, mpx_u32_load_relaxed(link));
    if (node == NULL || node->condition != list->slot || node->ticket >= *below) {
        return NULL;
    }
    *below = node->ticket;
    return node;
}

static bool is_end(mpx_atomic_u32 *link)
{
    return mpx_u32_load_relaxed(link) == 0;
}

/* The link that leads to the node in that slot; another one, where the list ends before. */
static mpx_atomic_u32 *find(const struct list *list, mpx_slot_t slot)
{
    mpx_atomic_u32 *link = &list->condition->newest;
    uint64_t below = UINT64_MAX;
    struct node *node;
    while (mpx_u32_load_relaxed(link) != slot && (node = follow(list, link, &below)) != NULL) {
        link = &node->older;
    }
    return link;
}

/* Whether a link that was found leads to the node. */
static bool leads_to(mpx_atomic_u32 *link, mpx_slot_t slot)
{
    return mpx_u32_load_relaxed(link) == slot;
}

/* A condition that this process holds stays where it is without the mark. Another one may be freed
 * as soon as it has none, and this process has still to release its mutex. */
static void unlink_node(const struct list *list, mpx_atomic_u32 *link, mpx_slot_t slot,
                        struct node *node)
{
    mpx_u32_store_relaxed(link, mpx_u32_load_relaxed(&node->older));
    STORED(condition_unlinked);
    mpx_u32_store_relaxed(&node->kind, 0);
    STORED(condition_unnamed);
    mpx_slot_mark_linked(list->arena, slot, false);
    STORED(condition_unmarked);
    if (list->held && is_end(&list->condition->newest)) {
        mpx_slot_mark_linked(list->arena, list->slot, false);
        STORED(condition_emptied);
    }
}

/* Counts the nodes: 0, or -EPROTO where the list is damaged. */
static int count(const struct list *list, mpx_condition_counts_t *counts)
{
    mpx_atomic_u32 *link = &list->condition->newest;
    uint64_t below = UINT64_MAX;
    struct node *node;
    *counts = (mpx_condition_counts_t){0};
    while ((node = follow(list, link, &below)) != NULL) {
        counts->waiting += is_waiting(node);
        counts->granted += is_granted(node);
        link = &node->older;
    }
    return is_end(link) ? 0 : -EPROTO;
}

/* The slot of the oldest node that waits and was linked when that ticket was the last; 0: none. */
static mpx_slot_t oldest_waiting(const struct list *list, uint64_t limit)
{
    mpx_atomic_u32 *link = &list->condition->newest;
    uint64_t below = UINT64_MAX;
    mpx_slot_t oldest = 0;
    struct node *node;
    while ((node = follow(list, link, &below)) != NULL) {
        if (is_waiting(node) && node->ticket <= limit) {
            oldest = mpx_u32_load_relaxed(link);
        }
        link = &node->older;
    }
    return oldest;
}

/* ---- Burials, with the mutex held ------------------------------------------------------------ */

/* Goes through with a burial. May be repeated after a death at any point: the heir cannot leave
 * before, since it needs the mutex. */
static void complete_burial(const struct list *list)
{
    mpx_condition_t *condition = list->condition;
    mpx_slot_t dead = mpx_u32_load_relaxed(&condition->dead);
    mpx_atomic_u32 *link = find(list, dead);
    struct node *node = node_at(list->arena, dead);
    if (leads_to(link, dead) && node != NULL) {
        struct node *heir = node_at(list->arena, mpx_u32_load_relaxed(&condition->heir));
        if (heir != NULL) {
            (void)!grant(heir, node->limit);
            wake(heir);
        }
        unlink_node(list, link, dead, node);
    }
    mpx_u32_store_relaxed(&condition->dead, 0);
    STORED(condition_buried);
}

static void bury(const struct list *list, mpx_slot_t slot, struct node *node)
{
    mpx_condition_t *condition = list->condition;
    mpx_slot_t heir = is_granted(node) ? oldest_waiting(list, node->limit) : 0;
    mpx_u32_store_relaxed(&condition->heir, heir);
    STORED(condition_heir_named);
    mpx_u32_store_relaxed(&condition->dead, slot);
    STORED(condition_burying);
    complete_burial(list);
}

/* ---- The mutex ------------------------------------------------------------------------------- */

static int open_list(struct list *list, mpx_arena_t *arena, mpx_slot_t slot)
{
    *list = (struct list){arena, mpx_slot_at(arena, slot), slot, true};
    return list->condition != NULL ? 0 : -EFAULT;
}

static int lock(const struct list *list)
{
    int status;
    do {
        status = mpx_mutex_lock(&list->condition->mutex, MPX_NEVER);
    } while (status == -EINTR);
    if (status < 0) {
        return status;
    }
    if (MPX_UNLIKELY(mpx_u32_load_relaxed(&list->condition->dead) != 0)) {
        complete_burial(list);
    }
    return 0;
}

static void unlock(const struct list *list)
{
    mpx_mutex_unlock(&list->condition->mutex);
}

/* ---- Looking for the dead -------------------------------------------------------------------- */

struct suspect {
    mpx_slot_t slot;
    uint64_t ticket;
    mpx_process_id_t process;
};

enum { SUSPECTS = 16 };

/* Nodes of other processes, all or those that have been granted, older than *below, which is moved
 * on: how many. */
static int list_suspects(const struct list *list, bool all, uint64_t *below,
                         struct suspect *suspects)
{
    mpx_process_id_t own = mpx_os_own_process(); /* known: whoever locks has asked */
    mpx_atomic_u32 *link = &list->condition->newest;
    uint64_t reached = UINT64_MAX;
    struct node *node;
    int found = 0;
    while (found < SUSPECTS && (node = follow(list, link, &reached)) != NULL) {
        if (reached < *below && !is_of(node, own) && (all || is_granted(node))) {
            mpx_slot_t slot = mpx_u32_load_relaxed(link);
            suspects[found++] = (struct suspect){slot, node->ticket, node->process};
        }
        link = &node->older;
    }
    *below = reached;
    return found;
}

static int bury_suspect(const struct list *list, const struct suspect *suspect)
{
    int status = lock(list);
    if (status < 0) {
        return status;
    }
    mpx_atomic_u32 *link = find(list, suspect->slot);
    struct node *node = node_at(list->arena, suspect->slot);
    if (leads_to(link, suspect->slot) && node != NULL && node->ticket == suspect->ticket) {
        bury(list, suspect->slot, node);
    }
    unlock(list);
    return 0;
}

/* Threads of one process often wait one after the other: it is asked for once. */
static int bury_the_dead_of(const struct list *list, const struct suspect *suspects, int found)
{
    mpx_process_id_t asked = {.pid = 0};
    bool alive = true;
    for (int i = 0; i < found; i++) {
        mpx_process_id_t process = suspects[i].process;
        if (process.pid != asked.pid || process.start != asked.start) {
            alive = !mpx_arena_has_lost(list->arena, process);
            asked = process;
        }
        int status = alive ? 0 : bury_suspect(list, &suspects[i]);
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

/* Buries the dead nodes, all or those that have been granted. `own`: until that node is granted. */
static int bury_the_dead(const struct list *list, bool all, struct node *own)
{
    struct suspect suspects[SUSPECTS];
    uint64_t below = UINT64_MAX;
    int found;
    do {
        int status = lock(list);
        if (status < 0) {
            return status;
        }
        found = list_suspects(list, all, &below, suspects);
        unlock(list);
        status = bury_the_dead_of(list, suspects, found);
        if (status < 0) {
            return status;
        }
    } while (found == SUSPECTS && (own == NULL || !is_granted(own)));
    return 0;
}

/* Whether the time has come, which is then set anew: one sleeper looks for all. A time too far away
 * is none of ours, but of a machine with another clock, or damage. */
static bool is_due(mpx_atomic_u64 *next, int64_t now, int64_t interval)
{
    uint64_t seen = mpx_u64_load_relaxed(next);
    return seen - (uint64_t)now > (uint64_t)INQUEST_LONGEST &&
           mpx_u64_cas_relaxed(next, &seen, (uint64_t)(now + interval));
}

static void hold_inquest(const struct list *list, int64_t now, struct node *own)
{
    (void)!bury_the_dead(list, true, own);
    int64_t after = mpx_os_now();
    int64_t pause = (after - now) * INQUEST_SHARE;
    pause = pause < INQUEST_INTERVAL ? INQUEST_INTERVAL : pause;
    pause = pause > INQUEST_LONGEST ? INQUEST_LONGEST : pause;
    mpx_u64_store_relaxed(&list->condition->next_inquest, (uint64_t)(after + pause));
}

/* For who has slept for a while. What cannot be done now can be done next time. */
static void look_around(const struct list *list, struct node *own)
{
    int64_t now = mpx_os_now();
    if (is_due(&list->condition->next_inquest, now, INQUEST_INTERVAL)) {
        hold_inquest(list, now, own);
    } else if (is_due(&list->condition->next_look, now, LOOK_INTERVAL)) {
        (void)!bury_the_dead(list, false, own);
    }
}

/* ---- Waiting --------------------------------------------------------------------------------- */

/* Marks the slots that are not to be used again while the node is linked, and says what they are.
 */
static void mark(const struct list *list, mpx_slot_t slot, struct node *node)
{
    mpx_condition_t *condition = list->condition;
    if (is_end(&condition->newest)) {
        mpx_u32_store_relaxed(&condition->kind, CONDITION_KIND);
        STORED(condition_named);
        mpx_slot_mark_linked(list->arena, list->slot, true);
        STORED(condition_filling);
    }
    mpx_u32_store_release(&node->kind, NODE_KIND); /* N2: with N3 */
    STORED(condition_node_named);
    mpx_slot_mark_linked(list->arena, slot, true);
    STORED(condition_marked);
}

static int link_node(const struct list *list, mpx_slot_t slot, struct node *node)
{
    mpx_condition_t *condition = list->condition;
    int status = lock(list);
    if (status < 0) {
        return status;
    }
    node->ticket = ++condition->tickets;
    mpx_u32_store_relaxed(&node->older, mpx_u32_load_relaxed(&condition->newest));
    STORED(condition_filled);
    mark(list, slot, node);
    mpx_u32_store_relaxed(&condition->newest, slot);
    STORED(condition_linked);
    unlock(list);
    return 0;
}

int mpx_condition_enter(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t *slot)
{
    struct list list;
    int status = open_list(&list, arena, condition);
    if (status == 0) {
        status = mpx_slot_new(arena, slot);
    }
    if (status < 0) {
        return status;
    }
    MPX_STEP(condition_made);
    struct node *node = mpx_slot_at(arena, *slot);
    if (node != NULL) {
        node->process = mpx_os_own_process();
        node->condition = condition;
        mpx_u32_store_relaxed(&node->state, WAITING);
    }
    status = node != NULL ? link_node(&list, *slot, node) : -EFAULT;
    if (status < 0) {
        mpx_slot_drop(arena, *slot);
    }
    return status;
}

/* Sleeps while the node is not granted: 0 is "look again". */
static int sleep_on(const struct list *list, struct node *node, int64_t deadline)
{
    uint32_t seen = WAITING;
    (void)!mpx_u32_cas_relaxed(&node->state, &seen, ASLEEP);
    MPX_STEP(condition_waiting);
    int status = mpx_wait_a_while(&node->state, ASLEEP, deadline);
    MPX_STEP(condition_awake);
    if (status == MPX_WAIT_LOOK) {
        look_around(list, node);
        return 0;
    }
    return status;
}

int mpx_condition_sleep(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t slot, int64_t deadline)
{
    struct list list;
    struct node *node = mpx_slot_at(arena, slot);
    int status = open_list(&list, arena, condition);
    if (status < 0 || node == NULL) {
        return -EFAULT;
    }
    if (!is_of(node, mpx_os_own_process())) {
        return -ESTALE;
    }
    for (unsigned tries = 0; !is_granted(node); tries++) {
        if (status < 0) {
            return status;
        }
        if (tries >= MPX_WAIT_YIELDS) {
            status = sleep_on(&list, node, deadline);
        } else if (mpx_os_now() < deadline) {
            sched_yield();
        } else {
            status = -ETIMEDOUT;
        }
    }
    return 0;
}

/* Whether the node could be unlinked. Where the list is damaged before it, no notify is to count on
 * it any more, should it be reached after all. */
static bool take_out(const struct list *list, mpx_slot_t slot, struct node *node)
{
    mpx_atomic_u32 *link = find(list, slot);
    if (leads_to(link, slot)) {
        unlink_node(list, link, slot, node);
        return true;
    }
    mpx_u32_store_relaxed(&node->state, GONE);
    return false;
}

int mpx_condition_leave(mpx_arena_t *arena, mpx_slot_t condition, mpx_slot_t slot)
{
    struct list list;
    struct node *node = mpx_slot_at(arena, slot);
    int status = open_list(&list, arena, condition);
    if (status < 0 || node == NULL) {
        return -EFAULT;
    }
    if (!is_of(node, mpx_os_own_process())) {
        mpx_slot_drop(arena, slot); /* this process's share of its parent's node */
        return 0;
    }
    status = lock(&list);
    if (status < 0) {
        return status;
    }
    bool granted = is_granted(node);
    bool out = take_out(&list, slot, node);
    unlock(&list);
    MPX_STEP(condition_left);
    if (out) {
        mpx_slot_drop(arena, slot);
    }
    return granted;
}

/* ---- Notifying ------------------------------------------------------------------------------- */

/* Waiters to wake once the mutex is released: they take it at once. By then a node may be another
 * one's slot, which is woken for nothing. */
struct wakes {
    struct node *nodes[32];
    size_t count;
};

static void wake_later(struct wakes *wakes, struct node *node)
{
    if (wakes->count < MPX_ARRAY_LENGTH(wakes->nodes)) {
        wakes->nodes[wakes->count++] = node;
    } else {
        wake(node);
    }
}

/* Grants the nodes that wait, from the newest on, but for the first `spared`. */
static void grant_oldest(const struct list *list, uint32_t spared, struct wakes *wakes)
{
    mpx_atomic_u32 *link = &list->condition->newest;
    uint64_t below = UINT64_MAX;
    struct node *node;
    while ((node = follow(list, link, &below)) != NULL) {
        if (is_waiting(node)) {
            if (spared > 0) {
                spared--;
            } else if (grant(node, list->condition->tickets)) {
                wake_later(wakes, node);
            }
        }
        link = &node->older;
    }
}

static int grant_some(const struct list *list, size_t wanted, struct wakes *wakes)
{
    mpx_condition_counts_t counts;
    int status = count(list, &counts);
    if (status < 0) {
        return status;
    }
    uint32_t granted = counts.waiting < wanted ? counts.waiting : (uint32_t)wanted;
    if (granted > 0) {
        grant_oldest(list, counts.waiting - granted, wakes);
    }
    return (int)granted;
}

int mpx_condition_notify(mpx_arena_t *arena, mpx_slot_t condition, size_t wanted)
{
    struct list list;
    struct wakes wakes;
    int status = open_list(&list, arena, condition);
    if (status < 0 || is_end(&list.condition->newest)) { /* a waiter's lock says that it is there */
        return status;
    }
    status = lock(&list);
    if (status < 0) {
        return status;
    }
    wakes.count = 0;
    status = grant_some(&list, wanted, &wakes);
    unlock(&list);
    MPX_STEP(condition_notified);
    for (size_t i = 0; i < wakes.count; i++) {
        wake(wakes.nodes[i]);
    }
    return status;
}

/* ---- Counting -------------------------------------------------------------------------------- */

static int count_nodes(const struct list *list, mpx_condition_counts_t *counts)
{
    int status = lock(list);
    if (status < 0) {
        return status;
    }
    status = count(list, counts);
    unlock(list);
    return status;
}

int mpx_condition_count(mpx_arena_t *arena, mpx_slot_t condition, mpx_condition_counts_t *counts)
{
    struct list list;
    int status = open_list(&list, arena, condition);
    return status < 0 ? status : count_nodes(&list, counts);
}

int mpx_condition_count_living(mpx_arena_t *arena, mpx_slot_t condition,
                               mpx_condition_counts_t *counts)
{
    struct list list;
    int status = open_list(&list, arena, condition);
    if (status == 0) {
        status = bury_the_dead(&list, true, NULL);
    }
    return status < 0 ? status : count_nodes(&list, counts);
}

/* ---- For the arena --------------------------------------------------------------------------- */

/* A node that nobody can use. Where the list is damaged, it may be in it still. */
static void bury_orphan(const struct list *list, mpx_slot_t slot, const struct suspect *suspect)
{
    if (bury_suspect(list, suspect) < 0 || lock(list) < 0) {
        return;
    }
    mpx_atomic_u32 *link = find(list, slot);
    bool is_in = leads_to(link, slot) || !is_end(link);
    unlock(list);
    struct node *node = is_in ? NULL : node_at(list->arena, slot);
    if (node != NULL && node->ticket == suspect->ticket) { /* not linked yet, or not any more */
        mpx_u32_store_relaxed(&node->kind, 0);
        mpx_slot_mark_linked(list->arena, slot, false);
    }
}

static void undertake_node(mpx_arena_t *arena, mpx_slot_t slot, struct node *node)
{
    struct suspect suspect = {slot, node->ticket, node->process};
    struct list list;
    if (!mpx_arena_has_lost(arena, suspect.process) ||
        open_list(&list, arena, node->condition) < 0 ||
        mpx_u32_load_relaxed(&list.condition->kind) != CONDITION_KIND) {
        return;
    }
    list.held = false;
    bury_orphan(&list, slot, &suspect);
}

/* A condition that nobody can use: all who waited are dead. */
static void undertake_condition(mpx_arena_t *arena, mpx_slot_t slot)
{
    struct list list;
    if (open_list(&list, arena, slot) < 0) {
        return;
    }
    list.held = false;
    if (bury_the_dead(&list, true, NULL) == 0 && is_end(&list.condition->newest)) {
        mpx_slot_mark_linked(arena, slot, false);
    }
}

void mpx_condition_undertake(mpx_arena_t *arena, mpx_slot_t slot)
{
    mpx_condition_t *condition = mpx_slot_at(arena, slot);
    struct node *node = node_at(arena, slot);
    uint32_t kind = condition == NULL ? NODE_KIND : mpx_u32_load_relaxed(&condition->kind);
    if (node != NULL) {
        undertake_node(arena, slot, node);
    } else if (kind == CONDITION_KIND) {
        undertake_condition(arena, slot);
    } else if (kind == 0) {
        mpx_slot_mark_linked(arena, slot, false); /* a node, killed after it was unlinked */
    }
}
