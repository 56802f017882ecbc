/* test_arena.c - slots in shared memory: made, dropped, inherited, given away, left by the dead. */
#include "harness.h"

#include "mpx_arena_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MANY = 5000, KILLS = 100, HELD = 100, NOBODY = 65534 };

/* So often; less where each step takes long. */
static int times(int count)
{
    return emulated() ? count / 10 + 1 : count;
}

static mpx_arena_t *home(void)
{
    mpx_arena_t *arena = NULL;
    CHECK_EQ(mpx_arena_home(&arena), 0);
    keeps_descriptors(1);
    return arena;
}

static mpx_slot_t make(mpx_arena_t *arena)
{
    mpx_slot_t slot = 0;
    CHECK_EQ(mpx_slot_new(arena, &slot), 0);
    return slot;
}

static uint64_t *number_in(mpx_arena_t *arena, mpx_slot_t slot)
{
    return mpx_slot_at(arena, slot);
}

/* How long the arena's file is: what all of it costs. */
static long long size_of(mpx_arena_t *arena)
{
    mpx_file_info_t info = {{0, 0}, 0, false};
    CHECK_EQ(mpx_os_file_info(mpx_arena_fd(arena), &info), 0);
    return (long long)info.size;
}

/* ---- One process ----------------------------------------------------------------------------- */

TEST(slots_are_zero_apart_and_reused)
{
    mpx_arena_t *arena = home();
    static mpx_slot_t slots[MANY];
    for (int i = 0; i < MANY; i++) {
        slots[i] = make(arena);
        uint64_t *room = number_in(arena, slots[i]);
        REQUIRE(room != NULL && slots[i] != 0);
        for (size_t w = 0; w < MPX_SLOT_ROOM / sizeof(*room); w++) {
            CHECK_EQ(room[w], 0);
        }
        memset(room, 0xa5, MPX_SLOT_ROOM);
        *room = (uint64_t)i;
    }
    for (int i = 0; i < MANY; i++) {
        CHECK_EQ(*number_in(arena, slots[i]), i);
    }
    long long size = size_of(arena);
    CHECK(size < 2 * MANY * MPX_SLOT_SIZE + 65536);
    for (int i = 0; i < MANY; i++) {
        mpx_slot_drop(arena, slots[i]);
    }
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < MANY; i++) {
            slots[i] = make(arena);
            CHECK_EQ(*number_in(arena, slots[i]), 0);
        }
        for (int i = 0; i < MANY; i++) {
            mpx_slot_drop(arena, slots[i]);
        }
    }
    CHECK_EQ(size_of(arena), size);
}

TEST(a_slot_is_held_as_often_as_it_is_dropped)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    mpx_slot_hold(arena, slot);
    mpx_slot_drop(arena, slot);
    mpx_slot_t other = make(arena);
    CHECK(other != slot);
    mpx_slot_drop(arena, slot);
    CHECK_EQ(make(arena), slot);
    CHECK(mpx_slot_at(arena, 0) == NULL);
    CHECK(mpx_slot_at(arena, UINT32_MAX) == NULL);
    CHECK(mpx_slot_at(arena, MANY * 100) == NULL);
}

TEST(locks_are_nobodys_at_the_end_where_they_are_marked)
{
    mpx_arena_t *arena = home();
    mpx_slot_t marked = 0, later = make(arena), plain = make(arena);
    CHECK_EQ(mpx_slot_new_lock(arena, &marked), 0);
    mpx_slot_mark_lock(arena, later);
    const mpx_slot_t slots[] = {marked, later, plain};
    mpx_atomic_u64 next_look = {0};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(slots); i++) {
        CHECK_EQ(mpx_lock_try(mpx_slot_at(arena, slots[i]), &next_look), 0);
    }
    mpx_arena_disown_locks();
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(slots); i++) {
        CHECK(mpx_lock_is_held(mpx_slot_at(arena, slots[i])));
        CHECK(mpx_lock_is_own(mpx_slot_at(arena, slots[i])) == (slots[i] == plain));
    }
}

TEST(the_home_is_found_by_its_identity)
{
    mpx_arena_t *arena = home();
    CHECK(home() == arena);
    CHECK(mpx_arena_find(mpx_arena_id(arena)) == arena);
    mpx_arena_id_t other = mpx_arena_id(arena);
    other.low++;
    CHECK(mpx_arena_find(other) == NULL);
}

TEST(another_home_where_the_descriptor_was_closed)
{
    mpx_arena_t *arena = home(), *moved = arena;
    mpx_slot_t slot = make(arena);
    close(mpx_arena_fd(arena));
    CHECK_EQ(mpx_arena_fd(arena), -EBADF);
    *number_in(arena, slot) = 7;
    int status = 0;
    while (status == 0) {
        mpx_slot_t more;
        status = mpx_slot_new(arena, &more);
    }
    CHECK_EQ(status, -EBADF);
    CHECK_EQ(mpx_arena_move(&moved), 0);
    CHECK(moved != arena && home() == moved);
    mpx_arena_t *again = arena;
    CHECK_EQ(mpx_arena_move(&again), 0);
    CHECK(again == moved);
    CHECK(make(moved) != 0);
    CHECK_EQ(*number_in(arena, slot), 7);
    mpx_slot_drop(arena, slot);
    CHECK_EQ(make(arena), slot);
}

static void *churn(void *arena)
{
    for (uint64_t round = 1; round < (uint64_t)times(2000); round++) {
        mpx_slot_t slots[8];
        for (int i = 0; i < 8; i++) {
            slots[i] = make(arena);
            *number_in(arena, slots[i]) = round * 8 + (uint64_t)i;
        }
        for (int i = 0; i < 8; i++) {
            CHECK_EQ(*number_in(arena, slots[i]), round * 8 + (uint64_t)i);
            mpx_slot_drop(arena, slots[i]);
        }
    }
    return NULL;
}

static void churn_once(void *arena)
{
    churn(arena);
}

TEST(threads_make_and_drop)
{
    mpx_arena_t *arena = home();
    run_in_threads(churn_once, arena);
    CHECK(size_of(arena) < 65536);
}

TEST(processes_make_and_drop)
{
    mpx_arena_t *arena = home();
    run_in_processes(churn_once, arena);
    CHECK(size_of(arena) < 65536);
}

/* ---- Fork ------------------------------------------------------------------------------------ */

struct gates {
    mpx_atomic_u32 open[4];
};

static void open_gate(struct gates *gates, int gate)
{
    mpx_u32_store_release(&gates->open[gate], 1);
}

static void pass_gate(struct gates *gates, int gate)
{
    while (!mpx_u32_load_acquire(&gates->open[gate])) {
        usleep(1000);
    }
}

struct inheritance {
    mpx_arena_t *arena;
    struct gates *gates;
    mpx_slot_t slots[HELD];
    int dropped; /* how many of them the child drops at the second gate */
};

static void hold_and_check(void *argument)
{
    struct inheritance *inherited = argument;
    pass_gate(inherited->gates, 0);
    for (int i = 0; i < HELD; i++) {
        CHECK_EQ(*number_in(inherited->arena, inherited->slots[i]), 1000 + i);
    }
    for (int i = 0; i < inherited->dropped; i++) {
        mpx_slot_drop(inherited->arena, inherited->slots[i]);
    }
    open_gate(inherited->gates, 1);
    pass_gate(inherited->gates, 2);
    for (int i = inherited->dropped; i < HELD; i++) {
        CHECK_EQ(*number_in(inherited->arena, inherited->slots[i]), 1000 + i);
    }
}

static void make_inheritance(struct inheritance *made, mpx_arena_t *arena)
{
    made->arena = arena;
    made->gates = shared_memory(sizeof(struct gates));
    for (int i = 0; i < HELD; i++) {
        made->slots[i] = make(arena);
        *number_in(arena, made->slots[i]) = 1000 + (uint64_t)i;
    }
}

static void overwrite(mpx_arena_t *arena, int count)
{
    mpx_slot_t *slots = malloc((size_t)count * sizeof(*slots));
    for (int i = 0; i < count; i++) {
        slots[i] = make(arena);
        memset(number_in(arena, slots[i]), 0xff, MPX_SLOT_ROOM);
    }
    for (int i = 0; i < count; i++) {
        mpx_slot_drop(arena, slots[i]);
    }
    free(slots);
}

TEST(a_slot_is_not_reused_while_a_child_holds_it)
{
    struct inheritance state = {.dropped = HELD / 2};
    make_inheritance(&state, home());
    pid_t child = start_process(hold_and_check, &state);
    mpx_slot_t young = make(state.arena);
    CHECK(!mpx_slot_is_shared(state.arena, young));
    mpx_slot_drop(state.arena, young);
    for (int i = 0; i < HELD; i++) {
        CHECK(i < state.dropped || mpx_slot_is_shared(state.arena, state.slots[i]));
        mpx_slot_drop(state.arena, state.slots[i]);
    }
    overwrite(state.arena, 4 * HELD);
    long long size = size_of(state.arena);
    for (int round = 0; round < 100; round++) {
        overwrite(state.arena, 4 * HELD); /* with the child alive */
    }
    CHECK_EQ(size_of(state.arena), size);
    open_gate(state.gates, 0);
    pass_gate(state.gates, 1);
    overwrite(state.arena, 4 * HELD);
    open_gate(state.gates, 2);
    CHECK_EQ(wait_for(child), 0);
}

static void hold_for_ever(void *argument)
{
    struct inheritance *inherited = argument;
    open_gate(inherited->gates, 0);
    for (;;) {
        pause();
    }
}

TEST(a_slot_is_shared_until_its_holder_is_known_to_have_died)
{
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    CHECK(!mpx_slot_is_shared(state.arena, state.slots[0]));
    pid_t child = start_process(hold_for_ever, &state);
    pass_gate(state.gates, 0);
    mpx_arena_bury_dead();
    CHECK(mpx_slot_is_shared(state.arena, state.slots[0]));
    CHECK_EQ(kill(child, SIGKILL), 0);
    siginfo_t end;
    CHECK_EQ(waitid(P_PID, (id_t)child, &end, WEXITED | WNOWAIT), 0);
    CHECK(mpx_slot_is_shared(state.arena, state.slots[0]));
    mpx_arena_bury_dead(); /* a zombie is dead */
    CHECK(!mpx_slot_is_shared(state.arena, state.slots[0]));
    (void)wait_for(child);
}

static void become_another(void *unused)
{
    (void)unused;
    become_another_program();
}

static mpx_process_id_t identity_of(pid_t pid)
{
    mpx_process_id_t id = {.pid = pid, .start = 0};
    CHECK_EQ(mpx_os_process_start(pid, &id.start), 0);
    return id;
}

/* By its pid and its start it is the one that held the slot. */
TEST(a_slot_is_not_held_by_a_child_that_executes_another_program)
{
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    pid_t child = start_process(become_another, NULL);
    mpx_process_id_t id = identity_of(child);
    while (mpx_slot_is_shared(state.arena, state.slots[0])) {
        sched_yield();
        mpx_arena_bury_dead();
    }
    CHECK(mpx_arena_has_lost(state.arena, id));
    CHECK(!mpx_arena_has_lost(state.arena, mpx_os_own_process()));
    CHECK_EQ(kill(child, SIGKILL), 0);
    CHECK(was_killed(wait_for(child))); /* it did live */
}

/* Until it has executed /bin/sleep. */
static void wait_for_another_program(pid_t pid)
{
    char path[64], name[16] = "";
    (void)snprintf(path, sizeof(path), "/proc/%d/comm", (int)pid);
    while (strcmp(name, "sleep\n") != 0) {
        sched_yield();
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        ssize_t length = read(fd, name, sizeof(name) - 1);
        name[length > 0 ? length : 0] = '\0';
        close(fd);
    }
}

TEST(without_signs_nobody_is_known_to_execute_another_program)
{
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    inject("life_open", ENOENT, 0, ALWAYS); /* in the child, which says so before it is a member */
    pid_t child = start_process(become_another, NULL);
    inject_nothing();
    mpx_process_id_t id = identity_of(child);
    wait_for_another_program(child);
    mpx_arena_bury_dead();
    CHECK(mpx_slot_is_shared(state.arena, state.slots[0]));
    CHECK(!mpx_arena_has_lost(state.arena, id));
    CHECK_EQ(kill(child, SIGKILL), 0);
    siginfo_t end;
    CHECK_EQ(waitid(P_PID, (id_t)child, &end, WEXITED | WNOWAIT), 0);
    mpx_arena_bury_dead();
    CHECK(!mpx_slot_is_shared(state.arena, state.slots[0]));
    CHECK(was_killed(wait_for(child)));
}

static void fork_and_leave(void *argument)
{
    struct inheritance *inherited = argument;
    pid_t grandchild = start_process(hold_and_check, inherited);
    CHECK(grandchild > 0);
    for (int i = 0; i < HELD; i++) {
        mpx_slot_drop(inherited->arena, inherited->slots[i]);
    }
    open_gate(inherited->gates, 3);
    CHECK_EQ(wait_for(grandchild), 0);
}

TEST(a_grandchild_holds_what_both_before_it_have_dropped)
{
    struct inheritance state = {.dropped = HELD};
    make_inheritance(&state, home());
    pid_t child = start_process(fork_and_leave, &state);
    for (int i = 0; i < HELD; i++) {
        mpx_slot_drop(state.arena, state.slots[i]);
    }
    overwrite(state.arena, 2 * HELD);
    pass_gate(state.gates, 3);
    overwrite(state.arena, 2 * HELD);
    open_gate(state.gates, 0);
    pass_gate(state.gates, 1);
    open_gate(state.gates, 2);
    CHECK_EQ(wait_for(child), 0);
    mpx_slot_t slot = make(state.arena);
    CHECK(slot <= HELD + 1);
}

static void do_nothing(void *unused)
{
    (void)unused;
}

TEST(many_short_children_leave_the_arena_as_small)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    for (int i = 0; i < 50; i++) {
        CHECK_EQ(wait_for(start_process(do_nothing, NULL)), 0);
    }
    long long size = size_of(arena);
    for (int i = 0; i < times(200); i++) {
        CHECK_EQ(wait_for(start_process(do_nothing, NULL)), 0);
        mpx_slot_t other = make(arena);
        CHECK(other != slot);
        mpx_slot_drop(arena, other);
    }
    CHECK_EQ(size_of(arena), size);
}

static void make_and_die(void *argument)
{
    mpx_arena_t *arena = argument;
    for (int i = 0; i < times(MANY); i++) {
        make(arena);
    }
    raise(SIGKILL);
}

TEST(what_the_dead_held_is_used_again)
{
    mpx_arena_t *arena = home();
    for (int i = 0; i < 20; i++) { /* until there are records enough to look for the dead */
        CHECK(was_killed(wait_for(start_process(make_and_die, arena))));
    }
    long long size = size_of(arena);
    for (int i = 0; i < 20; i++) {
        CHECK(was_killed(wait_for(start_process(make_and_die, arena))));
    }
    CHECK_EQ(size_of(arena), size);
}

struct vain {
    mpx_arena_t *arena;
    void (*failed)(void);
};

static void say_nothing(void)
{
}

static bool can_be_marked(mpx_arena_t *arena)
{
    mpx_os_mark_t mark;
    int status = mpx_os_mark_prepare(mpx_arena_fd(arena), &mark);
    CHECK(status == 0 || (status == -EACCES && !mpx_os_has(MPX_HAS_MEMFD_SEAL)));
    mpx_os_mark_drop(&mark);
    return status == 0;
}

/* Without another process the kernel would let this user have. */
static void fork_in_vain(void *argument)
{
    struct vain *vain = argument;
    mpx_arena_t *arena = vain->arena;
    struct rlimit none = {0, 0};
    CHECK_EQ(setrlimit(RLIMIT_NPROC, &none), 0);
    CHECK(getuid() != 0 || setuid(NOBODY) == 0);
    if (vain->failed == say_nothing && !can_be_marked(arena)) {
        return; /* without memfds the file is another user's now */
    }
    mpx_slot_t slot = make(arena);
    for (int i = 0; i < times(MANY); i++) {
        CHECK_EQ(fork(), -1);
        CHECK_EQ(errno, EAGAIN);
        vain->failed();
    }
    mpx_arena_bury_dead();
    mpx_slot_drop(arena, slot);
    overwrite(arena, 100);
    CHECK_EQ(make(arena), slot);
    vain->failed();
}

TEST(a_fork_that_failed_leaves_no_member)
{
    mpx_arena_t *arena = home();
    CHECK_EQ(wait_for(start_process(do_nothing, NULL)), 0);
    overwrite(arena, 100);
    long long size = size_of(arena);
    struct vain kinds[] = {{arena, mpx_arena_fork_failed}, {arena, say_nothing}};
    for (size_t k = 0; k < MPX_ARRAY_LENGTH(kinds); k++) {
        CHECK_EQ(wait_for(start_process(fork_in_vain, &kinds[k])), 0);
        CHECK_EQ(size_of(arena), size);
    }
}

/* A child that is killed at the step. */
static pid_t fork_and_kill_at(const char *step)
{
    signal_at_step(step, SIGKILL);
    pid_t child = fork();
    if (child == 0) {
        _exit(0);
    }
    signal_at_step(NULL, 0);
    CHECK(was_killed(wait_for(child)));
    return child;
}

TEST(a_child_that_is_killed_before_it_is_a_member_holds_nothing)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    for (int i = 0; i < times(20); i++) {
        pid_t child = fork_and_kill_at(i % 2 == 0 ? "member_adopting" : "member_handed_over");
        if (i % 4 < 2) { /* os.fork says nothing */
            mpx_arena_forked(child);
        }
    }
    mpx_slot_drop(arena, slot);
    overwrite(arena, times(MANY));
    CHECK_EQ(make(arena), slot);
}

/* What nobody waits to adopt is taken for another child. */
TEST(what_was_said_of_a_record_too_late_means_no_other)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    uint32_t seats[3];
    for (int i = 0; i < 3; i++) {
        pid_t child = fork_and_kill_at("member_adopting");
        mpx_arena_bury_dead();
        CHECK(!mpx_slot_is_shared(arena, slot));
        CHECK_EQ(mpx_arena_seat(arena, &seats[i]), 0);
        CHECK_EQ(mpx_arena_give(arena, seats[i], slot), 0);
        if (i == 0) {
            mpx_arena_forked(child);
        } else if (i == 1) {
            mpx_arena_fork_failed();
        }
        mpx_arena_bury_dead();
        CHECK(mpx_slot_is_shared(arena, slot));
        mpx_arena_settle(arena, seats[i], 0);
        CHECK(!mpx_slot_is_shared(arena, slot));
        CHECK_EQ(seats[i], seats[0]); /* it was the same one */
    }
}

/* As for a child that is started by exec. */
TEST(a_record_that_cannot_be_marked_is_its_makers)
{
    static const char *const sites[] = {"mark_lock", "life_map"};
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(sites); s++) {
        int before = next_descriptor();
        inject(sites[s], ENOLCK, 0, 1); /* the parent's, before the fork */
        pid_t child = fork_and_kill_at("member_adopting");
        inject_nothing();
        CHECK_EQ(next_descriptor(), before);
        mpx_arena_bury_dead();
        CHECK(mpx_slot_is_shared(arena, slot));
        mpx_arena_forked(child);
        mpx_arena_bury_dead();
        CHECK(!mpx_slot_is_shared(arena, slot));
    }
}

struct orphan {
    struct inheritance state;
    mpx_atomic_u32 *pid;
    const char *step;
};

/* Forks a child that stops before it is a member, and is killed. */
static void leave_an_orphan(void *argument)
{
    struct orphan *orphan = argument;
    signal_at_step(orphan->step, SIGSTOP);
    pid_t child = fork();
    if (child == 0) {
        signal_at_step(NULL, 0);
        hold_and_check(&orphan->state);
        _exit(0);
    }
    mpx_u32_store_relaxed(orphan->pid, (uint32_t)child);
    wait_until_stopped(child);
    kill(getpid(), SIGKILL);
}

static pid_t make_orphan(struct orphan *orphan)
{
    *orphan = (struct orphan){.state = {.dropped = 0},
                              .pid = shared_memory(sizeof(*orphan->pid)),
                              .step = "member_adopting"};
    make_inheritance(&orphan->state, home());
    CHECK(was_killed(wait_for(start_process(leave_an_orphan, orphan))));
    return (pid_t)mpx_u32_load_relaxed(orphan->pid);
}

TEST(the_child_of_a_dead_parent_that_is_no_member_yet_becomes_one)
{
    struct orphan orphan;
    pid_t pid = make_orphan(&orphan);
    struct inheritance *state = &orphan.state;
    mpx_arena_bury_dead();
    for (int i = 0; i < HELD; i++) {
        CHECK(mpx_slot_is_shared(state->arena, state->slots[i]));
        mpx_slot_drop(state->arena, state->slots[i]);
    }
    overwrite(state->arena, 4 * HELD);
    CHECK_EQ(kill(pid, SIGCONT), 0);
    open_gate(state->gates, 0);
    pass_gate(state->gates, 1);
    overwrite(state->arena, 4 * HELD);
    open_gate(state->gates, 2);
    while (mpx_os_pid_alive((mpx_process_id_t){.pid = pid}) == 1) {
        sched_yield();
    }
    CHECK_EQ(mpx_u32_load_relaxed(&state->arena->shared->pinned), 0);
}

/* At once, and not after the time that a child might take. */
TEST(the_child_of_a_dead_parent_that_was_killed_before_it_was_a_member_holds_nothing)
{
    struct orphan orphan;
    pid_t pid = make_orphan(&orphan);
    mpx_arena_bury_dead();
    CHECK(mpx_slot_is_shared(orphan.state.arena, orphan.state.slots[0]));
    CHECK_EQ(kill(pid, SIGKILL), 0);
    while (mpx_os_pid_alive((mpx_process_id_t){.pid = pid}) == 1) {
        sched_yield();
    }
    mpx_arena_bury_dead();
    CHECK(!mpx_slot_is_shared(orphan.state.arena, orphan.state.slots[0]));
}

static void *fork_often(void *unused)
{
    for (int i = 0; i < times(50); i++) {
        pid_t child = fork();
        if (child == 0) {
            mpx_slot_t slot;
            mpx_arena_t *arena;
            bool works = mpx_arena_home(&arena) == 0 && mpx_slot_new(arena, &slot) == 0;
            _exit(works ? 0 : 1);
        }
        CHECK_EQ(wait_for(child), 0);
    }
    return unused;
}

TEST(fork_while_other_threads_make_and_drop)
{
    mpx_arena_t *arena = home();
    pthread_t forker, churner[2];
    CHECK_EQ(pthread_create(&forker, NULL, fork_often, NULL), 0);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(pthread_create(&churner[i], NULL, churn, arena), 0);
    }
    pthread_join(forker, NULL);
    pthread_join(churner[0], NULL);
    pthread_join(churner[1], NULL);
}

/* ---- Exec ------------------------------------------------------------------------------------ */

/* Stands for a program that was started by exec: a process forked before there was an arena. */
struct gift {
    struct gates *gates;
    int socket_fds[2];
    mpx_arena_id_t id;
    uint32_t seat;
    mpx_slot_t slot;
};

static void receive(void *argument)
{
    struct gift *gift = argument;
    mpx_arena_t *arena;
    int fd;
    pass_gate(gift->gates, 0);
    char path[64];
    CHECK_EQ(read(gift->socket_fds[0], path, sizeof(path)), sizeof(path));
    CHECK_EQ(read(gift->socket_fds[0], gift, sizeof(*gift)), sizeof(*gift));
    fd = open(path, O_RDWR | O_CLOEXEC);
    REQUIRE(fd >= 0);
    CHECK(mpx_arena_find(gift->id) == NULL);
    CHECK_EQ(mpx_arena_attach(&arena, fd, gift->seat + 2), -EPROTO);
    REQUIRE(mpx_arena_attach(&arena, fd, gift->seat) == 0);
    CHECK(mpx_arena_find(gift->id) == arena && home() == arena);
    CHECK_EQ(mpx_slot_take(arena, gift->slot + 1), -EPROTO);
    CHECK_EQ(mpx_slot_take(arena, gift->slot), 0);
    CHECK_EQ(*number_in(arena, gift->slot), 4711);
    open_gate(gift->gates, 1);
    pass_gate(gift->gates, 2);
    CHECK_EQ(*number_in(arena, gift->slot), 4711);
    mpx_slot_drop(arena, gift->slot);
    close(fd);
}

/* A child that runs the function, and a slot with a number in it which is given to that. */
static pid_t make_gift(struct gift *gift, void (*function)(void *))
{
    *gift = (struct gift){.gates = shared_memory(sizeof(struct gates))};
    CHECK_EQ(pipe(gift->socket_fds), 0);
    pid_t child = start_process(function, gift);
    mpx_arena_t *arena = home();
    gift->id = mpx_arena_id(arena);
    gift->slot = make(arena);
    *number_in(arena, gift->slot) = 4711;
    CHECK_EQ(mpx_arena_seat(arena, &gift->seat), 0);
    CHECK_EQ(mpx_arena_give(arena, gift->seat, gift->slot), 0);
    return child;
}

static void free_gift(struct gift *gift)
{
    close(gift->socket_fds[0]);
    close(gift->socket_fds[1]);
    free_shared_memory(gift->gates, sizeof(struct gates));
}

static void send_gift(struct gift *gift, mpx_arena_t *arena)
{
    char path[64] = {0};
    snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), mpx_arena_fd(arena));
    CHECK_EQ(write(gift->socket_fds[1], path, sizeof(path)), sizeof(path));
    CHECK_EQ(write(gift->socket_fds[1], gift, sizeof(*gift)), sizeof(*gift));
}

TEST(a_slot_is_given_to_a_process_that_did_not_inherit_it)
{
    struct gift gift;
    pid_t child = make_gift(&gift, receive);
    mpx_arena_t *arena = home();
    mpx_arena_settle(arena, gift.seat, child);
    mpx_slot_drop(arena, gift.slot);
    overwrite(arena, times(MANY));
    send_gift(&gift, arena);
    open_gate(gift.gates, 0);
    pass_gate(gift.gates, 1);
    overwrite(arena, times(MANY));
    open_gate(gift.gates, 2);
    CHECK_EQ(wait_for(child), 0);
    overwrite(arena, times(MANY));
    CHECK_EQ(make(arena), gift.slot);
    free_gift(&gift);
}

static void receive_while_it_is_settled(void *argument)
{
    signal_at_step("member_adopting", SIGSTOP);
    receive(argument);
}

TEST(a_record_is_settled_just_when_it_is_adopted)
{
    struct gift gift;
    pid_t child = make_gift(&gift, receive_while_it_is_settled);
    mpx_arena_t *arena = home();
    send_gift(&gift, arena);
    open_gate(gift.gates, 0);
    wait_until_stopped(child);
    mpx_arena_settle(arena, gift.seat, child);
    CHECK_EQ(kill(child, SIGCONT), 0);
    open_gate(gift.gates, 2);
    CHECK_EQ(wait_for(child), 0);
    free_gift(&gift);
}

TEST(a_seat_that_is_given_up_holds_nothing)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    uint32_t seat;
    CHECK_EQ(mpx_arena_seat(arena, &seat), 0);
    CHECK_EQ(mpx_arena_give(arena, seat, slot), 0);
    mpx_slot_drop(arena, slot);
    CHECK(make(arena) != slot);
    mpx_arena_settle(arena, seat, 0);
    overwrite(arena, 200);
    CHECK_EQ(make(arena), slot);
    CHECK_EQ(mpx_arena_give(arena, seat + 100000, slot), -EPROTO);
}

/* ---- A crowd --------------------------------------------------------------------------------- */

/* Stops when it looks for the dead, at the latest when all slots are taken. */
static void stop_in_the_sweep(void *arena)
{
    signal_at_step("arena_sweeping", SIGSTOP);
    overwrite(arena, MANY);
}

static void make_one(void *arena)
{
    CHECK(make(arena) != 0);
}

/* Who waits for a sweep in vain adds a region; one is enough for all of them. */
TEST(a_crowd_that_waits_for_a_stopped_process_adds_one_region)
{
    enum { CROWD = 6 };
    pid_t crowd[CROWD];
    mpx_arena_t *arena = home();
    uint32_t before = mpx_u32_load_relaxed(&arena->shared->regions);
    pid_t stopped = start_process(stop_in_the_sweep, arena);
    wait_until_stopped(stopped);
    for (int i = 0; i < CROWD; i++) {
        crowd[i] = start_process(make_one, arena);
    }
    for (int i = 0; i < CROWD; i++) {
        CHECK_EQ(wait_for(crowd[i]), 0);
    }
    CHECK_EQ(mpx_u32_load_relaxed(&arena->shared->regions), before + 1);
    kill(stopped, SIGKILL);
    CHECK(was_killed(wait_for(stopped)));
}

/* ---- Failures -------------------------------------------------------------------------------- */

TEST(an_arena_that_cannot_be_made_leaves_nothing)
{
    static const struct {
        const char *site;
        int error;
    } failures[] = {
        {"arena_atfork", ENOMEM}, {"arena_handle", ENOMEM}, {"arena_getrandom", EINTR},
        {"fstat", EIO},           {"fallocate", ENOSPC},    {"mmap", ENOMEM},
    };
    mpx_os_own_process();
    for (size_t f = 0; f < MPX_ARRAY_LENGTH(failures); f++) {
        mpx_arena_t *arena = NULL;
        inject(failures[f].site, failures[f].error, 0, ALWAYS);
        CHECK(mpx_arena_home(&arena) < 0);
        inject_nothing();
    }
    mpx_slot_drop(home(), make(home()));
}

TEST(a_slot_that_cannot_be_made_changes_nothing)
{
    static const struct {
        const char *site;
        int error;
    } failures[] = {{"fallocate", ENOSPC}, {"arena_references", ENOMEM}};
    mpx_arena_t *arena = home();
    for (size_t f = 0; f < MPX_ARRAY_LENGTH(failures); f++) {
        mpx_slot_t slot, last = 0;
        int status = 0;
        inject(failures[f].site, failures[f].error, 0, ALWAYS);
        while ((status = mpx_slot_new(arena, &slot)) == 0) {
            last = slot;
        }
        CHECK_EQ(status, -failures[f].error);
        CHECK_EQ(mpx_slot_new(arena, &slot), -failures[f].error);
        mpx_slot_drop(arena, last);
        CHECK_EQ(make(arena), last);
        inject_nothing();
        CHECK(make(arena) > last);
    }
}

static void check_own_slots(void *argument)
{
    struct inheritance *inherited = argument;
    for (int i = 0; i < HELD; i++) {
        CHECK_EQ(*number_in(inherited->arena, inherited->slots[i]), 1000 + i);
        mpx_slot_drop(inherited->arena, inherited->slots[i]);
    }
    overwrite(inherited->arena, HELD);
}

TEST(a_child_for_whom_there_is_no_record_works_and_nothing_is_freed)
{
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    inject("fallocate", ENOSPC, 0, ALWAYS);
    for (int i = 0; i < 200; i++) { /* until there is no room for one more */
        pid_t child = start_process(hold_and_check, &state);
        open_gate(state.gates, 0);
        open_gate(state.gates, 2);
        if (i < 199) {
            kill(child, SIGSTOP);
        }
    }
    inject_nothing();
    CHECK_EQ(wait_for(start_process(check_own_slots, &state)), 0);
    for (int i = 0; i < HELD; i++) {
        CHECK_EQ(*number_in(state.arena, state.slots[i]), 1000 + i);
    }
}

/* ---- Death ----------------------------------------------------------------------------------- */

/* Everything that stores to the arena. */
static void work(mpx_arena_t *arena)
{
    mpx_slot_t slots[HELD];
    uint32_t seat;
    for (int i = 0; i < HELD; i++) {
        slots[i] = make(arena);
        *number_in(arena, slots[i]) = 1;
    }
    pid_t child = fork();
    if (child == 0) {
        mpx_slot_drop(arena, slots[0]);
        mpx_slot_drop(arena, make(arena));
        _exit(0);
    }
    CHECK_EQ(mpx_arena_seat(arena, &seat), 0);
    CHECK_EQ(mpx_arena_give(arena, seat, slots[1]), 0);
    mpx_arena_settle(arena, seat, child);
    (void)wait_for(child); /* it may have been killed, too */
    for (int i = 0; i < HELD; i++) {
        CHECK_EQ(*number_in(arena, slots[i]), 1);
        mpx_slot_drop(arena, slots[i]);
    }
}

static void check_whole(struct inheritance *state)
{
    mpx_slot_t slots[4 * HELD];
    for (int i = 0; i < 4 * HELD; i++) {
        slots[i] = make(state->arena);
        CHECK_EQ(*number_in(state->arena, slots[i]), 0);
        *number_in(state->arena, slots[i]) = 5000 + (uint64_t)i;
    }
    for (int i = 0; i < HELD; i++) {
        CHECK_EQ(*number_in(state->arena, state->slots[i]), 1000 + i);
    }
    for (int i = 0; i < 4 * HELD; i++) {
        CHECK_EQ(*number_in(state->arena, slots[i]), 5000 + i);
        mpx_slot_drop(state->arena, slots[i]);
    }
}

struct victim {
    mpx_arena_t *arena;
    const char *step;
};

/* More slots than there are, then everything else. */
static void work_until_killed(void *argument)
{
    struct victim *victim = argument;
    mpx_arena_t *arena = victim->arena;
    long long size = size_of(arena);
    signal_at_step(victim->step, SIGKILL);
    while (size_of(arena) == size) {
        make(arena);
    }
    for (int i = 0; i < 20; i++) {
        work(arena);
    }
}

TEST(killed_at_each_step)
{
    if (emulated()) {
        return; /* these two fork hundreds of times, which takes minutes there */
    }
    static const char *const steps[] = {
        "arena_units",    "member_bits",        "member_made",   "member_listed", "member_birth",
        "member_seating", "member_seated",      "member_buried", "region_taken",  "region_slots",
        "region_added",   "member_handed_over", "slot_taken",    "slot_held",     "slot_swept",
        "slot_dropped",   "slot_freed",         "slot_offered",  "slot_given",    "arena_sweeping",
        "member_marked",
    };
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(steps); s++) {
        struct victim victim = {state.arena, steps[s]};
        int status = wait_for(start_process(work_until_killed, &victim));
        CHECK(was_killed(status));
        if (!was_killed(status)) {
            fprintf(stderr, "not killed at %s\n", steps[s]);
        }
        check_whole(&state);
    }
    long long size = size_of(state.arena);
    for (int i = 0; i < 20; i++) {
        check_whole(&state);
    }
    CHECK_EQ(size_of(state.arena), size);
}

/* Has a child that was killed before it was a member, and is killed while it finds that out. */
static void bury_until_killed(void *unused)
{
    (void)unused;
    (void)fork_and_kill_at("member_adopting");
    signal_at_step("member_burying", SIGKILL);
    mpx_arena_bury_dead();
}

TEST(killed_while_it_buries_who_was_no_member)
{
    mpx_arena_t *arena = home();
    mpx_slot_t slot = make(arena);
    for (int i = 0; i < times(20); i++) {
        CHECK(was_killed(wait_for(start_process(bury_until_killed, NULL))));
        mpx_arena_bury_dead();
        CHECK(!mpx_slot_is_shared(arena, slot));
    }
}

/* Looks at all records all the time, while their makers make them. */
static void bury_for_ever(void *unused)
{
    (void)unused;
    for (;;) {
        mpx_arena_bury_dead();
    }
}

static void fork_and_kill_often(void *argument)
{
    struct inheritance *state = argument;
    for (int i = 0; i < 100; i++) {
        pid_t child = fork();
        if (child == 0) {
            bool works =
                state->arena->self != NULL && mpx_slot_at(state->arena, make(state->arena));
            _exit(works ? 0 : 1);
        }
        if (i % 2 == 0) {
            kill(child, SIGKILL);
        }
        int status = wait_for(child);
        CHECK(status == 0 || (i % 2 == 0 && was_killed(status)));
    }
}

TEST(forks_are_looked_at_while_they_are_made)
{
    if (emulated()) {
        return;
    }
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    pid_t buriers[2];
    for (int i = 0; i < 2; i++) {
        buriers[i] = start_process(bury_for_ever, NULL);
    }
    run_in_processes(fork_and_kill_often, &state);
    for (int i = 0; i < 2; i++) {
        kill(buriers[i], SIGKILL);
        CHECK(was_killed(wait_for(buriers[i])));
    }
    CHECK_EQ(mpx_u32_load_relaxed(&state.arena->shared->pinned), 0);
    mpx_arena_bury_dead();
    CHECK(!mpx_slot_is_shared(state.arena, state.slots[0]));
    check_whole(&state);
}

struct labour {
    mpx_arena_t *arena;
    mpx_atomic_u32 *progress;
};

static void labour(void *argument)
{
    struct labour *shared = argument;
    for (;;) {
        work(shared->arena);
        mpx_u32_fetch_add_relaxed(shared->progress, 1);
    }
}

TEST(killed_at_random)
{
    if (emulated()) {
        return;
    }
    struct inheritance state = {.dropped = 0};
    make_inheritance(&state, home());
    struct labour shared = {state.arena, shared_memory(sizeof(mpx_atomic_u32))};
    kill_at_random(labour, &shared, shared.progress, KILLS);
    check_whole(&state);
    long long size = size_of(state.arena);
    kill_at_random(labour, &shared, shared.progress, KILLS);
    check_whole(&state);
    CHECK_EQ(mpx_u32_load_relaxed(&state.arena->shared->pinned), 0);
    CHECK(size_of(state.arena) <= 2 * size);
}
