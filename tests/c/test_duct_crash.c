/* test_duct_crash.c - the duct when processes are killed: senders and receivers at each step, and
 * at random. What was sent comes once and in order; of a message whose call did not return, nothing
 * or all.
 */
#include "duct_peer.h"

#include <signal.h>
#include <sys/wait.h>

/* ---- A sender -------------------------------------------------------------------------------- */

/* The victim's numbers, and where those of another sender begin. */
enum { BATCHES = 3, EACH = 6, ALL = BATCHES * EACH, OTHERS = 100, MANY = 40 };

/* What a process did before it died. */
struct scene {
    struct way *way;
    struct receiver *in;
    mpx_atomic_u32 sent; /* calls of the victim that returned */
    mpx_atomic_u32 taken;
};

static const char *step;  /* where the victim dies */
static unsigned armed_at; /* from which batch on */

/* Several pieces for the descriptor, one of them long. */
static size_t planned_size(const struct way *way, uint32_t number)
{
    static const size_t sizes[EACH] = {10, 3000, 3000, 9000, 20, 4092};
    size_t size = sizes[number % EACH];
    return size < way->most ? size : way->most;
}

static unsigned char planned[MPX_DUCT_RING];

/* Into the ring where it goes there, else through the descriptor. There is room. */
static void send_planned(struct way *way, uint32_t number)
{
    size_t size = planned_size(way, number);
    fill(planned, number, size);
    int status = mpx_duct_try_put(&way->duct, planned, size);
    if (status != 0) {
        CHECK(status == -EXDEV || status == -EAGAIN);
        mpx_outflow_t out;
        mpx_outflow_begin(&out, (const char *)planned, size);
        out.is_socket = way->is_socket;
        CHECK_EQ(mpx_duct_begin(&way->duct, way->writer, &out, much_later()), 0);
        CHECK_EQ(mpx_outflow_left(&out), 0);
    }
}

/* A message that goes through the descriptor anyway, after what is in the ring. */
static void send_aside_planned(struct way *way, uint32_t number)
{
    mpx_outflow_t out;
    fill(planned, number, planned_size(way, number));
    mpx_outflow_begin(&out, (const char *)planned, planned_size(way, number));
    out.is_socket = way->is_socket;
    CHECK_EQ(mpx_duct_begin(&way->duct, way->writer, &out, much_later()), 0);
    CHECK_EQ(mpx_outflow_left(&out), 0);
}

/* Batches of messages, all but the last of each into the ring; the last takes them along. In the
 * end it stops the duct. */
static void send_plan(void *argument)
{
    struct scene *scene = argument;
    struct way *way = scene->way;
    for (uint32_t number = 0; number < ALL; number++) {
        if (number == armed_at * EACH) {
            signal_at_step(step, SIGKILL);
        }
        if (number % EACH == EACH - 1 && number != ALL - 1) {
            send_aside_planned(way, number);
        } else {
            send_planned(way, number);
        }
        mpx_u32_fetch_add_relaxed(&scene->sent, 1);
    }
    if (armed_at == BATCHES) {
        signal_at_step(step, SIGKILL);
    }
    CHECK_EQ(mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later()), 0);
}

static void check_planned(const struct scene *scene, uint32_t number)
{
    CHECK_EQ(scene->in->size, planned_size(scene->way, number));
    CHECK(is_as_filled(scene->in->bytes, number, scene->in->size));
}

static bool is_planned(const struct scene *scene, uint32_t number)
{
    return scene->in->size == planned_size(scene->way, number) &&
           is_as_filled(scene->in->bytes, number, scene->in->size);
}

static struct scene *open_scene(bool is_socket)
{
    struct scene *scene = shared_memory(sizeof(*scene));
    scene->way = open_way(is_socket);
    scene->in = new_receiver();
    settle(scene->way);
    return scene;
}

static void close_scene(struct scene *scene)
{
    free(scene->in);
    close_way(scene->way);
    free_shared_memory(scene, sizeof(*scene));
}

/* Sends as much as anybody would, waiting for room. */
static void send_others(void *argument)
{
    struct scene *scene = argument;
    for (uint32_t i = 0; i < MANY; i++) {
        CHECK_EQ(send_number(scene->way, OTHERS + i, much_later()), 0);
    }
}

static bool is_other(const struct scene *scene, uint32_t number)
{
    return scene->in->size == size_of(number) &&
           is_as_filled(scene->in->bytes, number, scene->in->size);
}

/* Receives what the victim has sent, from number `next` on, and all of another one. */
static void receive_rest(struct scene *scene, uint32_t next, uint32_t others)
{
    uint32_t sent = mpx_u32_load_relaxed(&scene->sent), other = 0;
    while (next < sent || other < others) {
        CHECK_EQ(receive(scene->way, scene->in, much_later()), 0);
        if (other < others && is_other(scene, OTHERS + other)) {
            other++;
        } else {
            CHECK(next <= sent); /* one that was not returned from at most */
            check_planned(scene, next);
            if (!is_planned(scene, next)) {
                return;
            }
            next++;
        }
    }
    if (next == sent && receive_now(scene->way, scene->in) == 0) {
        check_planned(scene, next);
    }
    check_nothing(scene->way, scene->in);
}

/* It is used on: by the ring, if it has not been stopped. */
static void check_usable(struct scene *scene)
{
    check_nothing(scene->way, scene->in);
    pid_t sender = start_process(send_others, scene);
    for (uint32_t i = 0; i < MANY; i++) {
        check_next(scene->way, scene->in, OTHERS + i);
    }
    CHECK_EQ(wait_for(sender), 0);
    check_nothing(scene->way, scene->in);
    CHECK_EQ(
        mpx_duct_stop(&scene->way->duct, scene->way->writer, scene->way->is_socket, much_later()),
        0);
    check_nothing(scene->way, scene->in);
}

static bool kill_sender(struct scene *scene)
{
    int status = wait_for(start_process(send_plan, scene));
    CHECK(was_killed(status) || status == 0);
    return was_killed(status);
}

/* How often there was a death. */
static uint32_t check_sender_killed(bool is_socket, bool goes_on)
{
    struct scene *scene = open_scene(is_socket);
    bool died = kill_sender(scene);
    pid_t other = goes_on ? start_process(send_others, scene) : 0;
    receive_rest(scene, 0, goes_on ? MANY : 0);
    CHECK(!goes_on || wait_for(other) == 0);
    check_usable(scene);
    close_scene(scene);
    return died;
}

/* Where there is something in the descriptor there may be no room in the ring: then nobody comes to
 * some of the points. */
static void check_sender_killed_at(const char *site, unsigned least)
{
    uint32_t deaths = 0;
    step = site;
    for (armed_at = 0; armed_at <= BATCHES; armed_at++) {
        for (int kind = 0; kind < KINDS; kind++) {
            deaths += check_sender_killed(kind, false);
            deaths += check_sender_killed(kind, true);
        }
    }
    CHECK(deaths >= least);
}

TEST(a_sender_killed_while_it_puts)
{
    check_sender_killed_at("duct_written", 3 * BATCHES);
    check_sender_killed_at("duct_put", 3 * BATCHES);
}

TEST(a_sender_killed_while_it_moves)
{
    static const char *const steps[] = {"duct_move_noted", "duct_move_taken", "duct_move_written",
                                        "duct_move_counted"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        check_sender_killed_at(steps[i], 3 * BATCHES);
    }
}

TEST(a_sender_killed_while_it_writes)
{
    check_sender_killed_at("duct_aside", 4 * (BATCHES - 1));
    check_sender_killed_at("duct_begun", 4 * (BATCHES - 1));
    check_sender_killed_at("duct_stopping", 4 * (BATCHES + 1));
}

TEST(a_sender_killed_with_the_mutex)
{
    static const char *const steps[] = {"mutex_announced", "owned_taken", "mutex_releasing",
                                        "mutex_released", "mutex_woken"};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(steps); i++) {
        check_sender_killed_at(steps[i], 4 * (BATCHES + 1));
    }
}

/* ---- A receiver ------------------------------------------------------------------------------ */

static void receive_until_killed(void *argument)
{
    struct scene *scene = argument;
    signal_at_step(step, SIGKILL);
    for (uint32_t next = 0; next < ALL; next++) {
        CHECK_EQ(receive(scene->way, scene->in, much_later()), 0);
        check_planned(scene, next);
        mpx_u32_fetch_add_relaxed(&scene->taken, 1);
    }
    CHECK_EQ(receive_now(scene->way, scene->in), -EAGAIN); /* it settles */
}

/* `hands`: a message may be lost with it. */
static void check_receiver_killed_at(const char *site, uint32_t hands)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct scene *scene = open_scene(kind);
        step = NULL;
        armed_at = BATCHES + 1;
        CHECK(!kill_sender(scene));
        /* Which has stopped it; what comes now is as it was before. */
        mpx_u32_store_relaxed(&scene->way->duct.stopped, 0);
        step = site;
        pid_t pid = start_process(receive_until_killed, scene);
        int status = wait_for(pid);
        CHECK(was_killed(status) || status == 0);
        receive_rest(scene, mpx_u32_load_relaxed(&scene->taken) + (was_killed(status) ? hands : 0),
                     0);
        check_usable(scene);
        close_scene(scene);
    }
}

TEST(a_receiver_killed_while_it_settles)
{
    check_receiver_killed_at("duct_settling", 0);
    check_receiver_killed_at("duct_settled", 0);
}

static void take_one(void *argument)
{
    struct scene *scene = argument;
    signal_at_step(step, SIGKILL);
    CHECK_EQ(receive_now(scene->way, scene->in), 0);
}

TEST(a_receiver_killed_while_it_takes)
{
    static const char *const steps[] = {"duct_copied", "duct_taken"};
    for (uint32_t hands = 0; hands < MPX_ARRAY_LENGTH(steps); hands++) {
        for (int kind = 0; kind < KINDS; kind++) {
            struct scene *scene = open_scene(kind);
            for (uint32_t number = 0; number < 5; number++) {
                send_planned(scene->way, number);
                mpx_u32_fetch_add_relaxed(&scene->sent, 1);
            }
            step = steps[hands];
            CHECK(was_killed(wait_for(start_process(take_one, scene))));
            receive_rest(scene, hands, 0);
            check_usable(scene);
            close_scene(scene);
        }
    }
}

/* ---- Both ------------------------------------------------------------------------------------ */

static const char *const moves[] = {"duct_move_noted", "duct_move_taken", "duct_move_written",
                                    "duct_move_counted"};

static const char *second_step;

static void settle_until_killed(void *argument)
{
    struct scene *scene = argument;
    struct way *way = scene->way;
    for (;;) { /* reads what is there, and settles */
        if (read_aside(way, scene->in) == -EALREADY) {
            return;
        }
        check_planned(scene, mpx_u32_fetch_add_relaxed(&scene->taken, 1));
        signal_at_step(second_step, SIGKILL);
    }
}

/* A sender that moves, and then who settles that. */
TEST(a_receiver_killed_where_a_sender_was)
{
    static const char *const steps[] = {"duct_settling", "duct_settled"};
    unsigned deaths = 0;
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(moves) * MPX_ARRAY_LENGTH(steps); i++) {
        for (armed_at = 1; armed_at <= BATCHES; armed_at++) {
            for (int kind = 0; kind < KINDS; kind++) {
                struct scene *scene = open_scene(kind);
                step = moves[i / 2];
                second_step = steps[i % 2];
                if (kill_sender(scene)) {
                    int status = wait_for(start_process(settle_until_killed, scene));
                    CHECK(was_killed(status));
                    deaths++;
                }
                receive_rest(scene, mpx_u32_load_relaxed(&scene->taken), 0);
                check_usable(scene);
                close_scene(scene);
            }
        }
    }
    CHECK(deaths >= MPX_ARRAY_LENGTH(moves) * MPX_ARRAY_LENGTH(steps) * BATCHES);
}

static void take_with_a_stop(void *argument)
{
    struct scene *scene = argument;
    size_t size;
    signal_at_step("duct_copied", SIGSTOP);
    int status = mpx_duct_try_get(&scene->way->duct, scene->in->bytes, LONGEST, &size);
    CHECK(status == 0 || status == -EXDEV);
    scene->in->size = size;
    if (status == 0) {
        check_planned(scene, mpx_u32_fetch_add_relaxed(&scene->taken, 1));
    }
}

static void move(void *argument)
{
    struct scene *scene = argument;
    signal_at_step(step, SIGKILL);
    (void)!mpx_duct_stop(&scene->way->duct, scene->way->writer, scene->way->is_socket,
                         much_later());
}

static void settle_and_die(void *argument)
{
    struct scene *scene = argument;
    signal_at_step(second_step, SIGKILL);
    settle(scene->way);
}

/* One has copied a message when somebody moves it, and dies; perhaps it is put back by one who dies
 * as well. It is taken, or it comes again: not both. */
static void check_copied(const char *dies_at, const char *settler_dies_at, bool is_socket)
{
    struct scene *scene = open_scene(is_socket);
    send_planned(scene->way, 0);
    mpx_u32_fetch_add_relaxed(&scene->sent, 1);
    pid_t taker = start_process(take_with_a_stop, scene);
    wait_until_stopped(taker);
    step = dies_at;
    second_step = settler_dies_at;
    CHECK(was_killed(wait_for(start_process(move, scene))));
    if (settler_dies_at != NULL && mpx_os_unread(scene->way->reader) == 0) {
        CHECK(was_killed(wait_for(start_process(settle_and_die, scene))));
    }
    kill(taker, SIGCONT);
    CHECK_EQ(wait_for(taker), 0);
    receive_rest(scene, mpx_u32_load_relaxed(&scene->taken), 0);
    check_usable(scene);
    close_scene(scene);
}

TEST(one_has_copied_what_is_moved)
{
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(moves); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            check_copied(moves[i], NULL, kind);
            check_copied(moves[i], "duct_settling", kind);
            check_copied(moves[i], "duct_settled", kind);
        }
    }
}

/* Whoever stops it after that does not say that the ring is empty: it may come back. */
TEST(stopped_by_another_one_after_a_death)
{
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(moves); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            struct scene *scene = open_scene(kind);
            struct way *way = scene->way;
            send_planned(way, 0);
            mpx_u32_fetch_add_relaxed(&scene->sent, 1);
            step = moves[i];
            CHECK(was_killed(wait_for(start_process(move, scene))));
            int status = mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later());
            CHECK(status == 0 || status == -EAGAIN);
            CHECK_EQ(mpx_duct_is_empty(&way->duct), status == 0);
            CHECK(mpx_duct_is_stopped(&way->duct));
            CHECK(status == -EAGAIN || mpx_os_unread(way->reader) > 0);
            receive_rest(scene, 0, 0);
            CHECK_EQ(mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later()), 0);
            close_scene(scene);
        }
    }
}

/* With nothing in the descriptor, a dead one leaves no doubt about what is there. */
TEST(stopped_after_one_died_who_put)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct scene *scene = open_scene(kind);
        struct way *way = scene->way;
        step = "duct_put";
        armed_at = 0;
        CHECK(kill_sender(scene));
        CHECK_EQ(mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later()), 0);
        receive_rest(scene, 0, 0);
        close_scene(scene);
    }
}

/* ---- Who waits for room ---------------------------------------------------------------------- */

static void wait_until_wanted(struct way *way)
{
    while (!(mpx_u64_load_relaxed(&way->duct.head) & 1)) {
        usleep(100);
    }
    usleep(1000);
}

static void put_with_a_stop(void *argument)
{
    struct scene *scene = argument;
    mpx_wait_mood_t mood = {0};
    static unsigned char bytes[1000];
    int status;
    inject("recovery", 0, 0, ALWAYS);
    while ((status = mpx_duct_put(&scene->way->duct, bytes, sizeof(bytes), much_later())) == 0) {
    }
    CHECK_EQ(status, -EAGAIN);
    signal_at_step("duct_waiting", SIGSTOP);
    CHECK_EQ(mpx_duct_wait_for_room(&scene->way->duct, &mood, much_later()), 0);
}

/* All has been taken, or it is stopped, when one is about to sleep: nobody would wake it. */
TEST(nobody_sleeps_for_room_that_there_is)
{
    for (int kind = 0; kind < KINDS; kind++) {
        for (int stops = 0; stops < 2; stops++) {
            struct scene *scene = open_scene(kind);
            struct way *way = scene->way;
            pid_t pid = start_process(put_with_a_stop, scene);
            wait_until_stopped(pid);
            if (stops) {
                inject(write_site(way), EAGAIN, 0, 1);
                CHECK_EQ(mpx_duct_stop(&way->duct, way->writer, way->is_socket, much_later()),
                         -EAGAIN);
                inject_nothing();
            } else {
                while (receive_now(way, scene->in) == 0) {
                }
            }
            kill(pid, SIGCONT);
            CHECK_EQ(wait_for(pid), 0);
            close_scene(scene);
        }
    }
}

TEST(who_comes_after_all_was_taken_does_not_wait)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct scene *scene = open_scene(kind);
        mpx_wait_mood_t mood = {0};
        send_planned(scene->way, 0);
        mpx_u32_fetch_add_relaxed(&scene->sent, 1);
        receive_rest(scene, 0, 0);
        inject("recovery", 0, 0, ALWAYS);
        CHECK_EQ(mpx_duct_wait_for_room(&scene->way->duct, &mood, much_later()), 0);
        close_scene(scene);
    }
}

static void send_one_other(void *argument)
{
    struct scene *scene = argument;
    inject("recovery", 0, 0, ALWAYS);
    CHECK_EQ(send_number(scene->way, OTHERS, much_later()), 0);
}

/* Where a dead one has left something to be settled, who settles it wakes who waits for that. */
TEST(who_settles_wakes)
{
    for (size_t i = 1; i < MPX_ARRAY_LENGTH(moves); i++) {
        for (int kind = 0; kind < KINDS; kind++) {
            struct scene *scene = open_scene(kind);
            struct way *way = scene->way;
            send_planned(way, 0); /* all that there is */
            mpx_u32_fetch_add_relaxed(&scene->sent, 1);
            step = moves[i];
            CHECK(was_killed(wait_for(start_process(move, scene))));
            CHECK_EQ(mpx_duct_put(&way->duct, "", 0, much_later()), -EAGAIN);
            pid_t other = start_process(send_one_other, scene);
            wait_until_wanted(way);
            receive_rest(scene, 0, 1);
            CHECK_EQ(wait_for(other), 0);
            close_scene(scene);
        }
    }
}

static void take_until_killed(void *argument)
{
    struct scene *scene = argument;
    struct way *way = scene->way;
    size_t size;
    while (used_bytes(way) > MPX_DUCT_RING / 2 + 3000) {
        CHECK_EQ(mpx_duct_try_get(&way->duct, scene->in->bytes, LONGEST, &size), 0);
        mpx_u32_fetch_add_relaxed(&scene->taken, 1);
    }
    for (;;) {
        signal_at_step("duct_taken", SIGKILL);
        if (!(mpx_u64_load_relaxed(&way->duct.head) & 1)) {
            return;
        }
        CHECK_EQ(mpx_duct_try_get(&way->duct, scene->in->bytes, LONGEST, &size), 0);
    }
}

static void wait_in_a_full_ring(void *argument)
{
    struct scene *scene = argument;
    mpx_wait_mood_t mood = {0};
    static unsigned char bytes[1000];
    int status;
    while ((status = mpx_duct_put(&scene->way->duct, bytes, sizeof(bytes), much_later())) !=
           -EAGAIN) {
        CHECK_EQ(status, 0);
    }
    while (status == -EAGAIN) {
        status = mpx_duct_wait_for_room(&scene->way->duct, &mood, much_later());
        CHECK_EQ(status, 0);
        status = mpx_duct_put(&scene->way->duct, bytes, sizeof(bytes), much_later());
    }
    CHECK_EQ(status, 0);
}

/* A receiver dies before it wakes who waits. */
TEST(a_wake_that_is_lost)
{
    for (int kind = 0; kind < KINDS; kind++) {
        struct scene *scene = open_scene(kind);
        pid_t sender = start_process(wait_in_a_full_ring, scene);
        wait_until_wanted(scene->way);
        int status = 0, kills = 0;
        while (mpx_u64_load_relaxed(&scene->way->duct.head) & 1) {
            status = wait_for(start_process(take_until_killed, scene));
            kills += was_killed(status);
        }
        CHECK(kills > 0);
        CHECK_EQ(wait_for(sender), 0);
        close_scene(scene);
    }
}

/* ---- A storm --------------------------------------------------------------------------------- */

enum { KILLS = 400, IDS = 40000, OF_AN_ID = 1000 };

struct storm {
    struct way *way;
    mpx_atomic_u32 turns, ids, over, broken, received;
    mpx_atomic_u32 returned[IDS]; /* messages of each sender whose call has returned */
    mpx_atomic_u32 got[IDS];
};

/* Nothing that the descriptor would take only in parts. */
static size_t storm_size(const struct way *way, uint32_t number)
{
    static const uint32_t most[] = {1, 8, 40, 40, 200, 1000, 4000, 16000};
    uint32_t mixed = number * UINT32_C(2654435761);
    size_t size = 8 + (mixed >> 8) % most[(mixed >> 2) % MPX_ARRAY_LENGTH(most)];
    return size < way->most ? size : way->most;
}

static void count_broken(struct storm *storm, bool is_right)
{
    mpx_u32_fetch_add_relaxed(&storm->broken, !is_right);
}

static void send_for_ever(void *argument)
{
    static unsigned char bytes[MPX_DUCT_RING];
    struct storm *storm = argument;
    struct way *way = storm->way;
    unsigned seed = (unsigned)getpid();
    for (;;) {
        uint32_t id = mpx_u32_fetch_add_relaxed(&storm->ids, 1);
        for (uint32_t i = 0; id < IDS && i < OF_AN_ID; i++) {
            uint32_t number = id * OF_AN_ID + i;
            size_t size = storm_size(way, number);
            mpx_wait_mood_t mood = {0};
            fill(bytes, number, size);
            int status = rand_r(&seed) % 16 == 0 ? send_aside(way, bytes, size, &mood, much_later())
                                                 : send_bytes(way, bytes, size, much_later());
            count_broken(storm, status == 0);
            mpx_u32_fetch_add_relaxed(&storm->returned[id], 1);
            mpx_u32_fetch_add_relaxed(&storm->turns, 1);
        }
    }
}

/* Each sender's come in order, without a gap. */
static void receive_all(void *argument)
{
    struct storm *storm = argument;
    struct receiver *in = new_receiver();
    for (;;) {
        bool is_over = mpx_u32_load_relaxed(&storm->over);
        int status = receive(storm->way, in, mpx_os_deadline(20 * MPX_NANOS_PER_MILLI));
        if (status == -EAGAIN && is_over) {
            break;
        }
        struct head head = {0, 0};
        if (status == 0) {
            memcpy(&head, in->bytes, sizeof(head));
            uint32_t id = head.number / OF_AN_ID;
            bool is_right = id < IDS && in->size == storm_size(storm->way, head.number) &&
                            is_as_filled(in->bytes, head.number, in->size);
            count_broken(storm, is_right);
            if (is_right) {
                uint32_t before = mpx_u32_fetch_add_relaxed(&storm->got[id], 1);
                count_broken(storm, before == head.number % OF_AN_ID);
            }
            mpx_u32_fetch_add_relaxed(&storm->received, 1);
        } else {
            count_broken(storm, status == -EAGAIN);
        }
    }
    check_nothing(storm->way, in);
    free(in);
}

static void storm_of(bool is_socket)
{
    struct storm *storm = shared_memory(sizeof(*storm));
    storm->way = open_way(is_socket);
    pid_t receiver = start_process(receive_all, storm);
    kill_at_random(send_for_ever, storm, &storm->turns, emulated() ? KILLS / 10 : KILLS);
    mpx_u32_store_relaxed(&storm->over, 1);
    CHECK_EQ(wait_for(receiver), 0);
    CHECK_EQ(mpx_u32_load_relaxed(&storm->broken), 0);
    CHECK(mpx_u32_load_relaxed(&storm->received) > 0);
    uint32_t wrong = 0;
    for (uint32_t id = 0; id < IDS; id++) {
        uint32_t got = mpx_u32_load_relaxed(&storm->got[id]);
        uint32_t returned = mpx_u32_load_relaxed(&storm->returned[id]);
        wrong += got < returned || got > returned + 1;
    }
    CHECK_EQ(wrong, 0);
    CHECK(mpx_u32_load_relaxed(&storm->ids) < IDS);
    close_way(storm->way);
    free_shared_memory(storm, sizeof(*storm));
}

TEST(killed_at_random_through_a_pipe)
{
    storm_of(false);
}

TEST(killed_at_random_through_sockets)
{
    storm_of(true);
}
