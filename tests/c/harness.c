/* harness.c - see harness.h. */
#include "harness.h"

#include "mpx_atomic.h"
#include "mpx_fault.h"
#include "mpx_os.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#ifdef MPX_MEMCHECK
#    include <valgrind/memcheck.h>
#endif

/* ---- Checks ---------------------------------------------------------------------------------- */

static test_t *tests;
static mpx_atomic_u32 failed_checks;

/* Constructors run in the order of the file; this list is kept in it. */
void test_register(test_t *test)
{
    test_t **end = &tests;
    while (*end != NULL) {
        end = &(*end)->next;
    }
    *end = test;
}

void test_check(bool condition, const char *text, const char *file, int line)
{
    if (!condition) {
        mpx_u32_fetch_add_relaxed(&failed_checks, 1);
        fprintf(stderr, "%s:%d: not true: %s\n", file, line, text);
    }
}

void test_check_equal(long long got, long long expected, const char *text, const char *file,
                      int line)
{
    if (got != expected) {
        mpx_u32_fetch_add_relaxed(&failed_checks, 1);
        fprintf(stderr, "%s:%d: not true: %s (%lld, expected %lld)\n", file, line, text, got,
                expected);
    }
}

/* ---- Injected failures ----------------------------------------------------------------------- */

#define MAX_INJECTIONS 8

static struct {
    const char *site;
    int error;
    uint32_t first;
    uint32_t end;
    mpx_atomic_u32 calls;
} injections[MAX_INJECTIONS];
static int injection_count;

void inject(const char *site, int error, unsigned skip, unsigned times)
{
    if (injection_count == MAX_INJECTIONS) {
        abort();
    }
    injections[injection_count].site = site;
    injections[injection_count].error = error;
    injections[injection_count].first = skip;
    injections[injection_count].end = skip + times;
    mpx_u32_store_relaxed(&injections[injection_count].calls, 0);
    injection_count++;
}

void inject_nothing(void)
{
    injection_count = 0;
}

bool mpx_fault(const char *site)
{
    for (int i = 0; i < injection_count; i++) {
        if (strcmp(injections[i].site, site) == 0) {
            uint32_t call = mpx_u32_fetch_add_relaxed(&injections[i].calls, 1);
            if (call >= injections[i].first && call < injections[i].end) {
                errno = injections[i].error;
                return true;
            }
        }
    }
    return false;
}

static const char *deadly_step;
static int deadly_signal;

void signal_at_step(const char *site, int signal_number)
{
    deadly_step = site;
    deadly_signal = signal_number;
}

void mpx_step(const char *site)
{
    if (deadly_step != NULL && strcmp(site, deadly_step) == 0) {
        kill(getpid(), deadly_signal);
    }
}

/* ---- The leak check -------------------------------------------------------------------------- */

/* memcheck looks for pointers in all memory when a process ends: for minutes where that is a heap,
 * which is large and has holes. What is in files has no pointers. */
static void hide_files_from_the_leak_check(void)
{
#ifdef MPX_MEMCHECK
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "re");
    while (maps != NULL && fgets(line, sizeof(line), maps) != NULL) {
        unsigned long begin, end;
        bool is_file = strstr(line, "(deleted)") != NULL && strstr(line, "/dev/zero") == NULL;
        if (is_file && sscanf(line, "%lx-%lx rw-s", &begin, &end) == 2) {
            (void)VALGRIND_MAKE_MEM_NOACCESS(begin, end - begin);
        }
    }
    if (maps != NULL) {
        fclose(maps);
    }
#endif
}

/* ---- Helpers for tests ----------------------------------------------------------------------- */

pid_t start_process(void (*function)(void *), void *argument)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        uint32_t before = mpx_u32_load_relaxed(&failed_checks);
        function(argument);
        fflush(NULL);
        hide_files_from_the_leak_check();
        _exit(mpx_u32_load_relaxed(&failed_checks) != before);
    }
    return pid;
}

void become_another_program(void)
{
    (void)execl("/bin/sleep", "sleep", "1000", (char *)NULL);
    CHECK(!"there is /bin/sleep");
}

int wait_for(pid_t pid)
{
    int status = -1;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
    }
    return status;
}

bool was_killed(int status)
{
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
}

int64_t much_later(void)
{
    return mpx_os_deadline(30 * MPX_NANOS_PER_SEC);
}

static void ignore_signal(int signum)
{
    (void)signum;
}

pid_t start_interrupting(void)
{
    struct sigaction action = {.sa_handler = ignore_signal};
    pid_t parent = getpid();
    sigaction(SIGUSR1, &action, NULL);
    pid_t pid = fork();
    while (pid == 0) {
        kill(parent, SIGUSR1);
        usleep(1000);
    }
    return pid;
}

struct call {
    void (*function)(void *);
    void *argument;
};

static void *call_in_thread(void *argument)
{
    struct call *call = argument;
    call->function(call->argument);
    return NULL;
}

void run_in_threads(void (*function)(void *), void *argument)
{
    struct call call = {function, argument};
    pthread_t threads[CONTENDERS];
    for (int i = 0; i < CONTENDERS; i++) {
        REQUIRE(pthread_create(&threads[i], NULL, call_in_thread, &call) == 0);
    }
    for (int i = 0; i < CONTENDERS; i++) {
        pthread_join(threads[i], NULL);
    }
}

void run_in_processes(void (*function)(void *), void *argument)
{
    pid_t pids[CONTENDERS];
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = start_process(function, argument);
    }
    for (int i = 0; i < CONTENDERS; i++) {
        CHECK_EQ(wait_for(pids[i]), 0);
    }
}

void kill_at_random(void (*function)(void *), void *argument, mpx_atomic_u32 *progress, int kills)
{
    pid_t pids[CONTENDERS];
    unsigned seed = 1;
    for (int i = 0; i < CONTENDERS; i++) {
        pids[i] = start_process(function, argument);
    }
    for (int i = 0; i < kills; i++) {
        uint32_t target = mpx_u32_load_relaxed(progress) + 1 + (uint32_t)(rand_r(&seed) % 50);
        while ((int32_t)(mpx_u32_load_relaxed(progress) - target) < 0) {
            sched_yield();
        }
        pid_t *victim = &pids[rand_r(&seed) % CONTENDERS];
        kill(*victim, SIGKILL);
        wait_for(*victim);
        *victim = start_process(function, argument);
    }
    for (int i = 0; i < CONTENDERS; i++) {
        kill(pids[i], SIGKILL);
        wait_for(pids[i]);
    }
}

void wait_until_stopped(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, WUNTRACED) < 0 && errno == EINTR) {
    }
    CHECK(WIFSTOPPED(status));
}

void *shared_memory(size_t size)
{
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        abort();
    }
    return memory;
}

void free_shared_memory(void *memory, size_t size)
{
    munmap(memory, size);
}

int next_descriptor(void)
{
    int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    close(fd);
    return fd;
}

bool emulated(void)
{
    return getenv("MPX_TEST_EMULATED") != NULL;
}

uint32_t random_state = UINT32_C(2654435761);

uint32_t random_below(uint32_t limit)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state % limit;
}

/* ---- Running --------------------------------------------------------------------------------- */

#define DESCRIPTORS_LOOKED_AT 1024

static int time_limit(void)
{
    return emulated() ? 4 * TIME_LIMIT : TIME_LIMIT;
}

static int kept_descriptors;

void keeps_descriptors(int count)
{
    kept_descriptors = count;
}

static int count_descriptors(void)
{
    int count = 0;
    for (int fd = 0; fd < DESCRIPTORS_LOOKED_AT; fd++) {
        count += fcntl(fd, F_GETFD) >= 0;
    }
    return count;
}

/* Ends with exit and not _exit, so that a leak checker gets its turn. */
static void run_in_child(const test_t *test)
{
    setpgid(0, 0);
    signal(SIGALRM, SIG_DFL);
    alarm((unsigned)time_limit());
    if (mpx_os_without(getenv("MPROC_EXT_WITHOUT")) < 0) {
        fprintf(stderr, "MPROC_EXT_WITHOUT names a feature that there is not\n");
        exit(1);
    }
    int before = count_descriptors();
    test->function();
    inject_nothing();
    CHECK_EQ(count_descriptors(), before + kept_descriptors);
    hide_files_from_the_leak_check();
    exit(mpx_u32_load_relaxed(&failed_checks) != 0);
}

static bool run(const test_t *test)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        run_in_child(test);
    }
    if (pid < 0) {
        perror("fork");
        return false;
    }
    setpgid(pid, pid); /* by both, so that it is done whoever comes first */
    int status = wait_for(pid);
    kill(-pid, SIGKILL);
    if (status == 0) {
        return true;
    }
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) {
        fprintf(stderr, "FAILED %s: over %d seconds\n", test->name, time_limit());
    } else if (WIFSIGNALED(status)) {
        fprintf(stderr, "FAILED %s: died of signal %d\n", test->name, WTERMSIG(status));
    } else {
        fprintf(stderr, "FAILED %s\n", test->name);
    }
    return false;
}

/* Arguments are names of tests to run; none means all. */
static bool is_wanted(const test_t *test, int count, char **names)
{
    for (int i = 1; i < count; i++) {
        if (strcmp(names[i], test->name) == 0) {
            return true;
        }
    }
    return count == 1;
}

/* What this program was started with is not for tests to trip over. */
static void close_inherited(void)
{
    for (int fd = 3; fd < DESCRIPTORS_LOOKED_AT; fd++) {
        close(fd);
    }
}

int main(int argc, char **argv)
{
    close_inherited();
    int passed = 0;
    int failed = 0;
    for (const test_t *test = tests; test != NULL; test = test->next) {
        if (is_wanted(test, argc, argv)) {
            bool ok = run(test);
            passed += ok;
            failed += !ok;
        }
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0 || passed == 0;
}
