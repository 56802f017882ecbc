/* test_namespaces.c - owners, and those who wait for them, in several PID namespaces.
 *
 * To make a namespace takes a privilege: without it there is nothing to test here.
 */
#include "harness.h"

#include "mpx_arena_pvt.h"
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- Processes in another namespace ---------------------------------------------------------- */

struct inside {
    void (*function)(void *);
    void *argument;
    pid_t pid; /* its number there */
};

/* The next process of this namespace gets the number. */
static bool choose_pid(pid_t pid)
{
    char text[MPX_DECIMAL_SIZE];
    int fd = open("/proc/sys/kernel/ns_last_pid", O_WRONLY | O_CLOEXEC);
    size_t length = mpx_os_decimal(text, (uint64_t)pid - 1);
    bool chosen = fd >= 0 && write(fd, text, length) == (ssize_t)length;
    close(fd);
    return chosen;
}

static void be_first(void *argument)
{
    struct inside *inside = argument;
    CHECK_EQ(getpid(), 1);
    if (inside->pid == 1) {
        inside->function(inside->argument);
        return;
    }
    REQUIRE(choose_pid(inside->pid));
    pid_t pid = start_process(inside->function, inside->argument);
    CHECK_EQ(pid, inside->pid);
    int status = wait_for(pid);
    CHECK(status == 0 || was_killed(status));
}

static void lead_inside(void *argument)
{
    REQUIRE(unshare(CLONE_NEWPID) == 0);
    CHECK_EQ(wait_for(start_process(be_first, argument)), 0);
}

/* Has the function called in a new namespace, by the process of that number. Waiting for the pid
 * that is returned says whether all checks held; that the function was killed is no failure. */
static pid_t start_inside(struct inside *inside)
{
    return start_process(lead_inside, inside);
}

static void try_to_make_one(void *argument)
{
    bool *can = argument;
    *can = unshare(CLONE_NEWPID) == 0 && access("/proc/sys/kernel/ns_last_pid", W_OK) == 0;
}

static bool can_make_namespaces(void)
{
    bool *can = shared_memory(sizeof(*can));
    CHECK_EQ(wait_for(start_process(try_to_make_one, can)), 0);
    bool result = *can;
    free_shared_memory(can, sizeof(*can));
    if (!result) {
        printf("(not permitted to make PID namespaces) ");
    }
    return result;
}

static void come_to(mpx_atomic_u32 *stage, uint32_t value)
{
    mpx_u32_store_release(stage, value);
    CHECK(mpx_os_futex_wake(stage, INT32_MAX) >= 0);
}

static void wait_for_stage(mpx_atomic_u32 *stage, uint32_t value)
{
    int64_t deadline = much_later();
    uint32_t seen;
    while ((seen = mpx_u32_load_acquire(stage)) < value) {
        REQUIRE(mpx_os_futex_wait(stage, seen, deadline) != -ETIMEDOUT);
    }
}

/* Long enough for several looks at an owner. */
static int64_t after_some_looks(void)
{
    return mpx_os_deadline(300 * MPX_NANOS_PER_MILLI);
}

/* ---- Names ----------------------------------------------------------------------------------- */

static void be_told_from(void *argument)
{
    mpx_process_id_t *parent = argument;
    mpx_process_id_t own = mpx_os_own_process();
    CHECK(mpx_os_is_foreign());
    CHECK(own.pid >= MPX_PIDS && (own.pid & (MPX_PIDS - 1)) == getpid());
    CHECK(own.pid != parent->pid && own.start != 0 && own.start != parent->start);
    CHECK(((uint32_t)own.pid & ~MPX_FUTEX_TID_MASK) == 0);
    CHECK(mpx_os_own_process().start == own.start);
    CHECK(mpx_os_self()->robust == NULL);
    CHECK_EQ(mpx_os_self()->number, own.pid);
    CHECK_EQ(mpx_os_self()->id, mpx_os_thread_id());
    CHECK_EQ(mpx_os_namespaces(), 1);
}

static void be_told_from_all(void *argument)
{
    be_told_from(argument);
    mpx_process_id_t own = mpx_os_own_process();
    CHECK_EQ(wait_for(start_process(be_told_from, &own)), 0);
}

TEST(a_foreign_process_has_a_name_of_its_own)
{
    mpx_process_id_t own = mpx_os_own_process();
    CHECK(!mpx_os_is_foreign());
    CHECK_EQ(own.pid, getpid());
    CHECK_EQ(mpx_os_namespaces(), 0);
    if (can_make_namespaces()) {
        struct inside inside = {be_told_from_all, &own, own.pid};
        CHECK_EQ(wait_for(start_inside(&inside)), 0);
    }
}

static void be_its_child(void *argument)
{
    mpx_process_id_t *parent = argument;
    CHECK(mpx_os_own_process().pid != parent->pid);
    CHECK(mpx_os_own_process().pid < (int)MPX_FUTEX_TID_MASK);
    *parent = mpx_os_own_process();
    if (getpid() < 300) { /* once around */
        CHECK_EQ(wait_for(start_process(be_its_child, parent)), 0);
    }
}

TEST(forks_of_forks_are_told_from_their_parents)
{
    mpx_process_id_t own = mpx_os_own_process();
    if (can_make_namespaces()) {
        struct inside inside = {be_its_child, &own, 1};
        CHECK_EQ(wait_for(start_inside(&inside)), 0);
    }
}

static void be_started_by(void *foreign)
{
    mpx_process_id_t before = mpx_os_own_process();
    mpx_os_started_by(*(bool *)foreign);
    CHECK_EQ(mpx_os_is_foreign(), *(bool *)foreign);
    CHECK_EQ(mpx_os_own_process().pid != before.pid, *(bool *)foreign);
}

TEST(a_child_by_exec_is_foreign_if_its_parent_is)
{
    bool foreign[] = {false, true};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(foreign); i++) {
        CHECK_EQ(wait_for(start_process(be_started_by, &foreign[i])), 0);
    }
}

/* ---- Signs of life --------------------------------------------------------------------------- */

struct sight {
    mpx_atomic_u32 stage;
    mpx_atomic_u32 nobody; /* no process is without a sign */
    mpx_os_life_t life;
    mpx_process_id_t id;
};

static void show_life(void *argument)
{
    struct sight *sight = argument;
    void *mark;
    CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), 0);
    sight->id = mpx_os_own_process();
    close(sight->life.fd); /* of no importance */
    come_to(&sight->stage, 1);
    wait_for_stage(&sight->stage, 2);
}

static struct sight *open_sight(void)
{
    struct sight *sight = shared_memory(sizeof(*sight));
    mpx_file_info_t info;
    int fd = mpx_os_anonymous_file("sight");
    CHECK(fd >= 0 && ftruncate(fd, 4096) == 0);
    CHECK_EQ(mpx_os_file_info(fd, &info), 0);
    sight->life = (mpx_os_life_t){.fd = fd, .file = info.id, .unsigned_members = &sight->nobody};
    mpx_os_life_register(&sight->life);
    keeps_descriptors(1);
    return sight;
}

TEST(a_sign_lasts_as_long_as_its_process)
{
    struct sight *sight = open_sight();
    mpx_process_id_t nobody = {.pid = MPX_PIDS + 1, .start = 1};
    CHECK_EQ(mpx_os_process_alive(nobody), 0);
    pid_t pid = start_process(show_life, sight);
    wait_for_stage(&sight->stage, 1);
    CHECK_EQ(mpx_life_of(sight->id), MPX_LIFE_SEEN);
    CHECK_EQ(mpx_life_of((mpx_process_id_t){sight->id.pid, 0}), MPX_LIFE_UNKNOWN);
    come_to(&sight->stage, 2);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(mpx_life_of(sight->id), MPX_LIFE_NONE);
}

static void show_life_and_become_another(void *argument)
{
    struct sight *sight = argument;
    void *mark;
    CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), 0);
    sight->id = mpx_os_own_process();
    CHECK(!mpx_os_life_is_over(&sight->life, sight->id));
    come_to(&sight->stage, 1);
    wait_for_stage(&sight->stage, 2);
    become_another_program();
}

TEST(a_sign_ends_where_another_program_begins)
{
    struct sight *sight = open_sight();
    pid_t pid = start_process(show_life_and_become_another, sight);
    wait_for_stage(&sight->stage, 1);
    mpx_process_id_t unknown = {.pid = sight->id.pid, .start = 0};
    CHECK(!mpx_os_life_is_over(&sight->life, sight->id));
    come_to(&sight->stage, 2);
    while (mpx_life_of(sight->id) != MPX_LIFE_NONE) {
        sched_yield();
    }
    CHECK(emulated() || mpx_os_process_alive(sight->id) == 1);
    CHECK(mpx_os_life_is_over(&sight->life, sight->id));
    CHECK(!mpx_os_life_is_over(&sight->life, unknown));
    inject("recovery", 0, 0, ALWAYS);
    CHECK(!mpx_os_life_is_over(&sight->life, sight->id));
    inject_nothing();
    mpx_u32_store_relaxed(&sight->nobody, 1);
    CHECK(!mpx_os_life_is_over(&sight->life, sight->id));
    CHECK_EQ(kill(pid, SIGKILL), 0);
    CHECK(was_killed(wait_for(pid)));
}

static void show_life_and_fork(void *argument)
{
    struct sight *sight = argument;
    void *mark;
    CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), 0);
    sight->id = mpx_os_own_process();
    if (fork() == 0) {
        wait_for_stage(&sight->stage, 2);
        _exit(0);
    }
    come_to(&sight->stage, 1);
    kill(getpid(), SIGKILL);
}

TEST(a_child_does_not_show_its_parents_sign)
{
    if (emulated()) {
        return; /* emulators let MADV_DONTFORK be: a child holds its parent's sign */
    }
    struct sight *sight = open_sight();
    pid_t pid = start_process(show_life_and_fork, sight);
    wait_for_stage(&sight->stage, 1);
    siginfo_t info;
    CHECK_EQ(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
    CHECK_EQ(mpx_life_of(sight->id), MPX_LIFE_NONE); /* a zombie, whose child lives */
    come_to(&sight->stage, 2);
    CHECK(was_killed(wait_for(pid)));
}

TEST(nothing_is_said_where_a_sign_may_be_missing)
{
    struct sight *sight = open_sight();
    mpx_process_id_t nobody = {.pid = MPX_PIDS + 1, .start = 1};
    inject("life_look", EINVAL, 0, 1);
    CHECK_EQ(mpx_os_process_alive(nobody), 1);
    inject_nothing();
    CHECK_EQ(mpx_os_process_alive(nobody), 0);
    mpx_u32_store_relaxed(&sight->nobody, 1);
    CHECK_EQ(mpx_os_process_alive(nobody), 1);
    mpx_u32_store_relaxed(&sight->nobody, 0);
    CHECK_EQ(mpx_os_process_alive(nobody), 0);
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    CHECK(dup2(fd, sight->life.fd) >= 0); /* the program has closed it, and the number is used */
    close(fd);
    CHECK_EQ(mpx_os_process_alive(nobody), 1);
}

/* Time namespaces and restored checkpoints move the start. */
TEST(a_sign_outweighs_another_start)
{
    struct sight *sight = open_sight();
    void *mark;
    mpx_process_id_t own = mpx_os_own_process();
    own.start++;
    if (!emulated()) { /* emulators have their own ideas of a start */
        CHECK_EQ(mpx_os_pid_alive(own), own.start == 1);
        CHECK_EQ(mpx_os_process_alive(own), own.start == 1);
    }
    struct flock byte = {.l_type = F_WRLCK,
                         .l_start = (off_t)((uint64_t)own.start << 30 | (uint32_t)own.pid),
                         .l_len = 1};
    char path[64];
    (void)snprintf(path, sizeof(path), "/proc/self/fd/%d", sight->life.fd);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    CHECK_EQ(fcntl(fd, F_OFD_SETLK, &byte), 0);
    CHECK_EQ(mpx_os_process_alive(own), 1);
    close(fd);
    CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), 0);
    CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), 0); /* once more is no error */
}

TEST(a_sign_that_cannot_be_given_leaves_nothing)
{
    static const char *const sites[] = {"life_open", "life_lock", "life_map", "life_dontfork",
                                        "life_look"};
    struct sight *sight = open_sight();
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(sites); i++) {
        void *mark = NULL;
        int before = next_descriptor();
        inject(sites[i], ENOMEM, 0, 1);
        CHECK_EQ(mpx_os_life_sign(sight->life.fd, &mark), -ENOMEM);
        inject_nothing();
        CHECK(mark == NULL);
        CHECK_EQ(next_descriptor(), before);
        CHECK_EQ(mpx_life_of(mpx_os_own_process()), MPX_LIFE_NONE);
    }
    CHECK_EQ(mpx_os_life_sign(-1, &(void *){NULL}), -EBADF);
}

/* ---- Marks ----------------------------------------------------------------------------------- */

struct marked {
    struct sight *sight;
    mpx_os_mark_t mark;
};

static void have_a_mark(void *argument)
{
    struct marked *marked = argument;
    wait_for_stage(&marked->sight->stage, 1);
    mpx_os_mark_drop(&marked->mark);
    CHECK(marked->mark.address == NULL);
    come_to(&marked->sight->stage, 2);
    wait_for_stage(&marked->sight->stage, 3);
}

static struct marked make_marked(uint32_t number)
{
    struct marked marked = {.sight = open_sight(), .mark = {NULL, 0}};
    int before = next_descriptor();
    CHECK_EQ(mpx_os_mark_prepare(marked.sight->life.fd, &marked.mark), 0);
    CHECK_EQ(mpx_os_mark_is_held(&marked.sight->life, number), 0);
    CHECK_EQ(mpx_os_mark_give(&marked.mark, number), 0);
    CHECK_EQ(next_descriptor(), before);
    CHECK_EQ(mpx_os_mark_is_held(&marked.sight->life, number), 1);
    return marked;
}

TEST(a_mark_is_had_by_parent_and_child_until_both_have_dropped_it)
{
    for (int child_is_last = 0; child_is_last < 2; child_is_last++) {
        struct marked marked = make_marked(UINT32_MAX);
        struct sight *sight = marked.sight;
        pid_t pid = start_process(have_a_mark, &marked);
        if (child_is_last) {
            mpx_os_mark_drop(&marked.mark);
            CHECK_EQ(mpx_os_mark_is_held(&sight->life, UINT32_MAX), 1);
        }
        come_to(&sight->stage, 1);
        wait_for_stage(&sight->stage, 2);
        CHECK_EQ(mpx_os_mark_is_held(&sight->life, UINT32_MAX), !child_is_last);
        CHECK_EQ(mpx_os_mark_is_held(&sight->life, 0), 0);
        mpx_os_mark_drop(&marked.mark);
        mpx_os_mark_drop(&marked.mark);
        CHECK_EQ(mpx_os_mark_is_held(&sight->life, UINT32_MAX), 0);
        come_to(&sight->stage, 3);
        CHECK_EQ(wait_for(pid), 0);
    }
    keeps_descriptors(2);
}

TEST(a_mark_ends_with_who_is_killed)
{
    struct marked marked = make_marked(0);
    pid_t pid = start_process(have_a_mark, &marked);
    mpx_os_mark_drop(&marked.mark);
    CHECK_EQ(mpx_os_mark_is_held(&marked.sight->life, 0), 1);
    kill(pid, SIGKILL);
    CHECK(was_killed(wait_for(pid)));
    CHECK_EQ(mpx_os_mark_is_held(&marked.sight->life, 0), 0);
}

/* No process has the byte: the largest names there are end before. */
TEST(a_mark_is_no_sign_and_a_sign_no_mark)
{
    struct marked marked = make_marked(0);
    mpx_process_id_t last = {.pid = (pid_t)((1 << 30) - 1), .start = UINT32_MAX};
    void *mark;
    CHECK_EQ(mpx_life_of(last), MPX_LIFE_NONE);
    CHECK_EQ(mpx_os_life_sign(marked.sight->life.fd, &mark), 0);
    mpx_os_mark_drop(&marked.mark);
    CHECK_EQ(mpx_os_mark_is_held(&marked.sight->life, 0), 0);
}

TEST(a_mark_that_cannot_be_given_or_seen)
{
    struct marked marked = make_marked(7);
    mpx_os_mark_t other = {NULL, 0};
    const mpx_os_life_t *life = &marked.sight->life;
    int before = next_descriptor();
    CHECK_EQ(mpx_os_mark_prepare(life->fd, &other), 0);
    CHECK_EQ(mpx_os_mark_give(&other, 7), -EAGAIN);
    mpx_os_mark_drop(&other);
    CHECK_EQ(mpx_os_mark_give(&other, 8), -EBADF);
    CHECK_EQ(mpx_os_mark_prepare(life->fd, &other), 0);
    mpx_os_mark_drop(&other); /* not given */
    CHECK_EQ(mpx_os_mark_prepare(-1, &other), -EBADF);
    static const char *const sites[] = {"life_open", "life_map"};
    for (size_t s = 0; s < MPX_ARRAY_LENGTH(sites); s++) {
        inject(sites[s], ENOMEM, 0, 1);
        CHECK_EQ(mpx_os_mark_prepare(life->fd, &other), -ENOMEM);
        inject_nothing();
        mpx_os_mark_drop(&other);
    }
    CHECK_EQ(next_descriptor(), before);
    inject("life_look", EIO, 0, 1);
    CHECK_EQ(mpx_os_mark_is_held(life, 7), -EIO);
    inject("recovery", 0, 0, ALWAYS);
    CHECK_EQ(mpx_os_mark_is_held(life, 8), 1);
    inject_nothing();
    CHECK_EQ(mpx_os_mark_is_held(&(mpx_os_life_t){.fd = 0}, 7), -EBADF);
    mpx_os_mark_drop(&marked.mark);
}

/* ---- Locks ----------------------------------------------------------------------------------- */

struct shared {
    mpx_atomic_u32 stage;
    mpx_arena_t *arena;
    mpx_slot_t slot;
    bool with_mutex;
};

static void *room(struct shared *shared)
{
    return mpx_slot_at(shared->arena, shared->slot);
}

static int lock(struct shared *shared, int64_t deadline)
{
    return shared->with_mutex ? mpx_mutex_lock(room(shared), deadline)
                              : mpx_lock_acquire(room(shared), deadline);
}

static void unlock(struct shared *shared)
{
    if (shared->with_mutex) {
        mpx_mutex_unlock(room(shared));
    } else {
        CHECK_EQ(mpx_lock_release(room(shared)), 0);
    }
}

static struct shared *make_shared(bool with_mutex)
{
    struct shared *shared = shared_memory(sizeof(*shared));
    shared->with_mutex = with_mutex;
    CHECK_EQ(mpx_arena_home(&shared->arena), 0);
    CHECK_EQ(mpx_slot_new(shared->arena, &shared->slot), 0);
    keeps_descriptors(1);
    return shared;
}

/* Holds it from stage 1 to 2, and again from 3 on, when it is killed. */
static void hold_and_die(void *argument)
{
    struct shared *shared = argument;
    CHECK_EQ(lock(shared, much_later()), 0);
    come_to(&shared->stage, 1);
    wait_for_stage(&shared->stage, 2);
    unlock(shared);
    CHECK_EQ(lock(shared, much_later()), 0);
    come_to(&shared->stage, 3);
    wait_for_stage(&shared->stage, 4);
    kill(getpid(), SIGKILL);
}

/* The other side of that. */
static void wait_for_holder(struct shared *shared)
{
    wait_for_stage(&shared->stage, 1);
    CHECK_EQ(lock(shared, after_some_looks()), -ETIMEDOUT);
    come_to(&shared->stage, 2);
    wait_for_stage(&shared->stage, 3);
    CHECK_EQ(lock(shared, after_some_looks()), -ETIMEDOUT);
    come_to(&shared->stage, 4);
    CHECK_EQ(lock(shared, much_later()), MPX_OWNER_DIED);
    unlock(shared);
}

static void holder_inside(bool with_mutex, pid_t pid)
{
    struct shared *shared = make_shared(with_mutex);
    struct inside inside = {hold_and_die, shared, pid};
    pid_t started = start_inside(&inside);
    wait_for_holder(shared);
    CHECK_EQ(wait_for(started), 0);
}

static pid_t nobodys_pid(void)
{
    pid_t pid = fork();
    if (pid == 0) {
        _exit(0);
    }
    (void)waitpid(pid, NULL, 0);
    return pid;
}

TEST(a_holder_inside_that_nobody_here_has_the_number_of)
{
    if (can_make_namespaces()) {
        holder_inside(false, nobodys_pid());
        holder_inside(true, nobodys_pid());
    }
}

TEST(a_holder_inside_with_the_number_of_who_waits)
{
    if (can_make_namespaces()) {
        holder_inside(false, getpid());
        holder_inside(true, getpid());
    }
}

static void wait_inside(void *argument)
{
    wait_for_holder(argument);
}

static void holder_outside(bool with_mutex, pid_t (*pid_of)(void))
{
    struct shared *shared = make_shared(with_mutex);
    pid_t holder = start_process(hold_and_die, shared);
    struct inside inside = {wait_inside, shared, pid_of == getpid ? holder : pid_of()};
    CHECK_EQ(wait_for(start_inside(&inside)), 0);
    CHECK(was_killed(wait_for(holder)));
}

/* A mutex's waiter there depends on the kernel. */
TEST(a_holder_outside_and_who_waits_inside)
{
    bool mutexes = mpx_os_has(MPX_HAS_ROBUST_LIST);
    if (!can_make_namespaces()) {
        return;
    }
    holder_outside(false, nobodys_pid);
    holder_outside(false, getpid);
    if (mutexes) {
        holder_outside(true, nobodys_pid);
        holder_outside(true, getpid);
    }
}

TEST(two_namespaces_beside_each_other)
{
    if (!can_make_namespaces()) {
        return;
    }
    for (int with_mutex = 0; with_mutex < 2; with_mutex++) {
        struct shared *shared = make_shared(with_mutex);
        struct inside one = {hold_and_die, shared, 7};
        struct inside two = {wait_inside, shared, 7};
        pid_t holder = start_inside(&one);
        CHECK_EQ(wait_for(start_inside(&two)), 0);
        CHECK_EQ(wait_for(holder), 0);
    }
}

/* ---- What the kernel does to the word of a dying thread -------------------------------------- */

static void die_waiting(void *argument)
{
    struct shared *shared = argument;
    signal_at_step("owned_waiting", SIGKILL);
    CHECK_EQ(lock(shared, much_later()), 0);
}

static void *hold_in_thread(void *argument)
{
    struct shared *shared = argument;
    CHECK_EQ(lock(shared, MPX_NEVER), 0);
    come_to(&shared->stage, 1);
    wait_for_stage(&shared->stage, 2);
    unlock(shared);
    return NULL;
}

TEST(the_kernel_does_not_take_a_waiter_for_the_owner_of_the_same_number)
{
    if (!can_make_namespaces()) {
        return;
    }
    struct shared *shared = make_shared(true);
    mpx_mutex_t *mutex = room(shared);
    pthread_t holder;
    REQUIRE(pthread_create(&holder, NULL, hold_in_thread, shared) == 0);
    wait_for_stage(&shared->stage, 1);
    uint64_t before = mpx_u64_load_relaxed(&mutex->owned.word);
    struct inside inside = {die_waiting, shared, (pid_t)(before & MPX_FUTEX_TID_MASK)};
    CHECK_EQ(wait_for(start_inside(&inside)), 0);
    CHECK_EQ(mpx_u64_load_relaxed(&mutex->owned.word), before | MPX_FUTEX_WAITERS);
    come_to(&shared->stage, 2);
    pthread_join(holder, NULL);
}

/* ---- Without signs --------------------------------------------------------------------------- */

static void start_without_sign(void *argument)
{
    struct shared *shared = argument;
    inject("life_open", ENOENT, 0, ALWAYS); /* there is no /proc */
    CHECK(was_killed(wait_for(start_process(hold_and_die, shared))));
}

TEST(a_holder_without_a_sign_is_left_alone)
{
    if (!can_make_namespaces()) {
        return;
    }
    struct shared *shared = make_shared(false);
    struct inside inside = {start_without_sign, shared, 1};
    pid_t started = start_inside(&inside);
    wait_for_stage(&shared->stage, 1);
    CHECK_EQ(lock(shared, after_some_looks()), -ETIMEDOUT);
    come_to(&shared->stage, 2);
    wait_for_stage(&shared->stage, 3);
    come_to(&shared->stage, 4);
    CHECK_EQ(wait_for(started), 0);
    CHECK_EQ(lock(shared, after_some_looks()), -ETIMEDOUT); /* dead, but nobody can know */
    unlock(shared);                                         /* anyone may release it */
    CHECK_EQ(lock(shared, MPX_NEVER), 0);
}

/* ---- Members --------------------------------------------------------------------------------- */

static void make_slots(void *argument)
{
    struct shared *shared = argument;
    mpx_slot_t slot;
    for (int i = 0; i < 200; i++) {
        CHECK_EQ(mpx_slot_new(shared->arena, &slot), 0);
    }
    come_to(&shared->stage, 1);
    wait_for_stage(&shared->stage, 2);
    kill(getpid(), SIGKILL);
}

static uint32_t records_in_use(mpx_arena_t *arena)
{
    uint32_t count = 0, unit = mpx_u32_load_acquire(&arena->shared->newest);
    while (unit != 0) {
        mpx_member_t *member = mpx_arena_unit(arena, unit, sizeof(*member));
        count += mpx_u64_load_relaxed(&member->owner) != 0;
        unit = member->next;
    }
    return count;
}

TEST(members_inside_are_kept_while_they_live_and_buried_when_dead)
{
    if (!can_make_namespaces()) {
        return;
    }
    struct shared *shared = make_shared(false);
    struct inside inside = {make_slots, shared, nobodys_pid()};
    pid_t started = start_inside(&inside);
    wait_for_stage(&shared->stage, 1);
    mpx_member_bury_dead(shared->arena);
    CHECK_EQ(records_in_use(shared->arena), 4); /* this, who leads, the first, and who makes */
    come_to(&shared->stage, 2);
    CHECK_EQ(wait_for(started), 0);
    mpx_member_bury_dead(shared->arena);
    CHECK_EQ(records_in_use(shared->arena), 1);
}
