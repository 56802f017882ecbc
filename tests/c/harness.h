/* harness.h - the test harness of the core: tests, checks, injected failures and deaths.
 *
 *     TEST(name)            a test; runs in a process of its own, under a time limit
 *     {
 *         CHECK(condition);
 *         CHECK_EQ(got, expected);        integers
 *     }
 *
 * A test fails by a failed check (it goes on), by dying, by leaving a descriptor open, or by taking
 * more than TIME_LIMIT (four times that under an emulator). Processes that it leaves behind are
 * killed. What the environment's MPROC_EXT_WITHOUT names is switched off before each test.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include "mpx_atomic.h"
#include "mpx_base.h"

#include <sys/types.h>

/* Seconds; generous, since emulators and sanitizers are slow. */
#define TIME_LIMIT 240

typedef struct test {
    const char *name;
    void (*function)(void);
    struct test *next;
} test_t;

void test_register(test_t *test);
void test_check(bool condition, const char *text, const char *file, int line);
void test_check_equal(long long got, long long expected, const char *text, const char *file,
                      int line);

#define TEST(title)                                                 \
    static void title(void);                                        \
    __attribute__((constructor)) static void register_##title(void) \
    {                                                               \
        static test_t test = {#title, title, NULL};                 \
        test_register(&test);                                       \
    }                                                               \
    static void title(void)

#define CHECK(condition) test_check((condition), #condition, __FILE__, __LINE__)
#define CHECK_EQ(got, expected)                                                                \
    test_check_equal((long long)(got), (long long)(expected), #got " == " #expected, __FILE__, \
                     __LINE__)

/* For tests that cannot go on after a failure. */
#define REQUIRE(condition)                                    \
    do {                                                      \
        bool required = (condition);                          \
        test_check(required, #condition, __FILE__, __LINE__); \
        if (!required) {                                      \
            return;                                           \
        }                                                     \
    } while (0)

/* Makes the system call at `site` fail with `error`: the calls after the first `skip`, `times` of
 * them. Several sites may be set at once. */
void inject(const char *site, int error, unsigned skip, unsigned times);
void inject_nothing(void);

#define ALWAYS 0x7fffffffu

/* Sends this process the signal when it comes to the step; NULL for no step. */
void signal_at_step(const char *site, int signal_number);

/* The test leaves so many descriptors open that belong to the process until it ends. */
void keeps_descriptors(int count);

/* Forks a process that runs the function and exits with 0, or 1 if one of its checks failed. */
pid_t start_process(void (*function)(void *), void *argument);

/* Has this process execute another program, which sleeps until it is killed. */
void become_another_program(void);

/* Waits for the end of a child; its wait status. */
int wait_for(pid_t pid);

/* Whether that is the status of one that SIGKILL ended. */
bool was_killed(int status);

/* A deadline that only a hang reaches. */
int64_t much_later(void);

/* Starts a process that sends this one SIGUSR1, which does nothing but interrupt, every
 * millisecond: until it finds it asleep. To be killed and waited for. */
pid_t start_interrupting(void);

/* The function in CONTENDERS threads, or processes, at once; returns when all have ended. */
enum { CONTENDERS = 4 };
void run_in_threads(void (*function)(void *), void *argument);
void run_in_processes(void (*function)(void *), void *argument);

/* The function, which does not return, in CONTENDERS processes, of which one after the other is
 * killed and replaced, `kills` times: each time after some more steps of `progress`, so somebody
 * has to get on after each death. The time limit of the test is for a hang. */
void kill_at_random(void (*function)(void *), void *argument, mpx_atomic_u32 *progress, int kills);

/* Waits until the child has stopped itself. */
void wait_until_stopped(pid_t pid);

/* Memory that forked processes share. */
void *shared_memory(size_t size);
void free_shared_memory(void *memory, size_t size);

/* The number the next descriptor will get. */
int next_descriptor(void);

/* Whether an emulator, which lacks some system calls, runs this (MPX_TEST_EMULATED is set). */
bool emulated(void);

/* The same numbers in each run; the state may be set, but to 0. */
extern uint32_t random_state;
uint32_t random_below(uint32_t limit);

#endif
