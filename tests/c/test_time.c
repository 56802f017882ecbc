/* test_time.c - the clock, deadlines and futexes. */
#include "harness.h"

#include "mpx_os.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>

TEST(the_clock_does_not_go_back)
{
    int64_t before = mpx_os_now();
    CHECK(before > 0);
    for (int i = 0; i < 1000; i++) {
        int64_t now = mpx_os_now();
        CHECK(now >= before);
        before = now;
    }
}

TEST(the_last_tick_is_not_long_ago)
{
    int64_t before = mpx_os_tick();
    for (int i = 0; i < 1000; i++) {
        int64_t earliest = mpx_os_now() - MPX_NANOS_PER_SEC;
        int64_t tick = mpx_os_tick();
        CHECK(tick >= before && tick >= earliest);
        CHECK(tick <= mpx_os_now());
        before = tick;
    }
}

TEST(deadlines_saturate)
{
    int64_t before = mpx_os_now();
    int64_t deadline = mpx_os_deadline(MPX_NANOS_PER_SEC);
    CHECK(deadline >= before + MPX_NANOS_PER_SEC);
    CHECK(deadline <= mpx_os_now() + MPX_NANOS_PER_SEC);
    CHECK(mpx_os_deadline(INT64_MAX) == MPX_NEVER);
    CHECK(mpx_os_deadline(INT64_MAX - 1) == MPX_NEVER);
    CHECK(mpx_os_deadline(0) <= mpx_os_now());
    CHECK(mpx_os_deadline(-1) >= before);
    CHECK(mpx_os_deadline(INT64_MIN) >= before);
}

TEST(a_wait_for_another_value_returns_at_once)
{
    mpx_atomic_u32 word = {5};
    CHECK_EQ(mpx_os_futex_wait(&word, 4, MPX_NEVER), -EAGAIN);
}

TEST(a_wait_ends_at_its_deadline)
{
    mpx_atomic_u32 word = {0};
    int64_t deadline = mpx_os_deadline(5 * MPX_NANOS_PER_MILLI);
    int status;
    do {
        status = mpx_os_futex_wait(&word, 0, deadline);
    } while (status == 0);
    CHECK_EQ(status, -ETIMEDOUT);
    CHECK(mpx_os_now() >= deadline);
}

TEST(a_deadline_in_the_past_does_not_wait)
{
    static const int64_t past[] = {0, 1, -1, INT64_MIN};
    mpx_atomic_u32 word = {0};
    for (size_t i = 0; i < MPX_ARRAY_LENGTH(past); i++) {
        CHECK_EQ(mpx_os_futex_wait(&word, 0, past[i]), -ETIMEDOUT);
    }
}

TEST(a_wake_without_sleepers_wakes_none)
{
    mpx_atomic_u32 word = {0};
    CHECK_EQ(mpx_os_futex_wake(&word, INT32_MAX), 0);
}

TEST(failures_of_the_kernel_are_reported)
{
    mpx_atomic_u32 word = {0};
    inject("futex_wait", ENOSYS, 0, 1);
    inject("futex_wake", EFAULT, 0, 1);
    CHECK_EQ(mpx_os_futex_wait(&word, 0, MPX_NEVER), -ENOSYS);
    CHECK_EQ(mpx_os_futex_wake(&word, 1), -EFAULT);
}

/* ---- Between threads and processes ----------------------------------------------------------- */

/* Two sides alternate: each waits until the word has its number and then sets the other's. */
enum { ROUNDS = 2000 };

struct game {
    mpx_atomic_u32 turn;
    unsigned data; /* plain: the turn guards it */
};

static void play(struct game *game, uint32_t mine, uint32_t next)
{
    for (int i = 0; i < ROUNDS; i++) {
        uint32_t turn;
        while ((turn = mpx_u32_load_acquire(&game->turn)) != mine) {
            int status = mpx_os_futex_wait(&game->turn, turn, MPX_NEVER);
            CHECK(status == 0 || status == -EAGAIN || status == -EINTR);
        }
        game->data++;
        mpx_u32_store_release(&game->turn, next);
        CHECK(mpx_os_futex_wake(&game->turn, 1) >= 0);
    }
}

static void *second_thread(void *game)
{
    play(game, 1, 0);
    return NULL;
}

static void second_process(void *game)
{
    play(game, 1, 0);
}

TEST(threads_wake_each_other)
{
    struct game game = {.turn = {0}, .data = 0};
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, second_thread, &game) == 0);
    play(&game, 0, 1);
    pthread_join(thread, NULL);
    CHECK_EQ(game.data, 2 * ROUNDS);
}

TEST(processes_wake_each_other)
{
    struct game *game = shared_memory(sizeof(*game));
    pid_t pid = start_process(second_process, game);
    play(game, 0, 1);
    CHECK_EQ(wait_for(pid), 0);
    CHECK_EQ(game->data, 2 * ROUNDS);
    free_shared_memory(game, sizeof(*game));
}

/* ---- Signals --------------------------------------------------------------------------------- */

static mpx_atomic_u32 signals_seen;

static void count_signal(int number)
{
    (void)number;
    mpx_u32_fetch_add_relaxed(&signals_seen, 1);
}

struct sleeper {
    mpx_atomic_u32 word;
    mpx_atomic_u32 done;
    int status;
};

static void *sleep_until_interrupted(void *argument)
{
    struct sleeper *sleeper = argument;
    do {
        sleeper->status = mpx_os_futex_wait(&sleeper->word, 0, MPX_NEVER);
    } while (sleeper->status == 0);
    mpx_u32_store_release(&sleeper->done, 1);
    return NULL;
}

/* The handler does not ask for restart (SA_RESTART): the kernel would go on waiting by itself. */
TEST(a_signal_interrupts_a_wait)
{
    struct sigaction action = {.sa_handler = count_signal};
    struct sleeper sleeper = {.word = {0}, .done = {0}, .status = 1};
    pthread_t thread;
    sigaction(SIGUSR1, &action, NULL);
    REQUIRE(pthread_create(&thread, NULL, sleep_until_interrupted, &sleeper) == 0);
    while (!mpx_u32_load_acquire(&sleeper.done)) {
        pthread_kill(thread, SIGUSR1); /* again and again: one may come before the wait */
        sched_yield();
    }
    pthread_join(thread, NULL);
    CHECK_EQ(sleeper.status, -EINTR);
    CHECK(mpx_u32_load_relaxed(&signals_seen) > 0);
}
