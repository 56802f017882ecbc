/* mpx_os_linux_thread.c - Linux: the calling thread as others see it, and whether another one
 * lives.
 *
 * Layer: L1
 *
 * What a thread knows of itself is kept in a variable of its own, what the process knows in a word
 * that is whole at every moment. A forked child has one thread, a copy of the one that forked, with
 * another number: a handler that libc runs in the child makes it ask again.
 *
 * Namespaces. A process whose parent is in another PID namespace has no number for it: getppid says
 * 0, and goes on to when the parent has died, since orphans go to a process of their parent's
 * namespace. A child gets into another one only by its birth, so that is asked once. What is
 * foreign stays so, with all that it starts: nothing leads back to the first namespace.
 *
 * A foreign process's number has, above the pid, how many foreign forks led to it, so that it
 * differs from its ancestors', of whom it has copies, also where all have the same pid. From
 * everyone else it is told by the start, which is 32 random bits.
 */
#include "mpx_os_linux_pvt.h"

#include <pthread.h>
#include <sys/random.h>
#include <unistd.h>

/* Above the pid in a number. With the most, no number is MPX_FUTEX_TID_MASK, which is nobody's. */
#define MOST_FOREIGN_FORKS 254

static MPX_THREAD_LOCAL mpx_thread_t self; /* id 0: not asked yet */
static mpx_atomic_u64 own_process;         /* pid and start, 0: not asked yet */
mpx_atomic_u64 mpx_os_known_process;       /* the same where forks are seen, else 0 */
static mpx_atomic_u32 foreign_forks;       /* 0: this process is not foreign */
static mpx_atomic_u32 namespaces;          /* how many forks led into another one */
static pthread_once_t registered = PTHREAD_ONCE_INIT;
static mpx_atomic_u32 forks_are_seen; /* set once; who sees it late asks more often */

static void forget(void)
{
    uint32_t forks = mpx_u32_load_relaxed(&foreign_forks);
    bool is_elsewhere = getppid() == 0;
    if (is_elsewhere) {
        mpx_u32_store_relaxed(&namespaces, mpx_u32_load_relaxed(&namespaces) + 1);
        mpx_proc_forget();
    }
    if (forks > 0 || is_elsewhere) {
        mpx_u32_store_relaxed(&foreign_forks, forks % MOST_FOREIGN_FORKS + 1);
    }
    self.id = 0;
    mpx_u64_store_relaxed(&own_process, 0);
    mpx_u64_store_relaxed(&mpx_os_known_process, 0);
}

bool mpx_os_is_foreign(void)
{
    return mpx_u32_load_relaxed(&foreign_forks) > 0;
}

uint32_t mpx_os_namespaces(void)
{
    return mpx_u32_load_relaxed(&namespaces);
}

void mpx_os_started_by(bool foreign_parent)
{
    if (foreign_parent || getppid() == 0) {
        mpx_u32_store_relaxed(&foreign_forks, 1);
        mpx_u64_store_relaxed(&own_process, 0);
        mpx_u64_store_relaxed(&mpx_os_known_process, 0);
    }
}

static void register_handler(void)
{
    if (!MPX_FAULT(pthread_atfork) && pthread_atfork(NULL, NULL, forget) == 0) {
        mpx_u32_store_relaxed(&forks_are_seen, 1);
    }
}

static uint32_t start_of_own_thread(pid_t id)
{
    mpx_proc_stat_t stat;
    return mpx_proc_stat_of_own_thread(id, &stat) < 0 ? 0 : mpx_proc_start(&stat);
}

/* What the threads of a foreign process are: not found by the kernel, whose look at the word of a
 * dying thread compares numbers of that thread's namespace. */
static void be_foreign(void)
{
    mpx_process_id_t own = mpx_os_own_process();
    self.robust = NULL;
    self.number = (uint32_t)own.pid;
    self.start = own.start;
}

MPX_COLD static void ask_self(void)
{
    pthread_once(&registered, register_handler);
    pid_t id = mpx_os_thread_id();
    if (self.id != (uint32_t)id) {
        if (self.robust != NULL) {
            self.robust->pending = NULL; /* a copy of what the thread that forked had announced */
        }
        if (mpx_os_is_foreign()) {
            be_foreign();
        } else {
            self.robust = mpx_os_robust_head();
            self.number = (uint32_t)id;
            self.start = start_of_own_thread(id);
        }
        self.id = (uint32_t)id;
    }
}

/* Every lock is taken in the name of the thread: where the variable lies is asked for once. */
const mpx_thread_t *mpx_os_self(void)
{
    const mpx_thread_t *known = &self;
    if (MPX_UNLIKELY(known->id == 0 || !mpx_u32_load_relaxed(&forks_are_seen))) {
        ask_self();
    }
    return known;
}

static uint32_t random_start(void)
{
    uint32_t random = 0;
    if (MPX_SYS(start_getrandom, getrandom(&random, sizeof(random), GRND_NONBLOCK)) < 0) {
        random = (uint32_t)mpx_os_now();
    }
    return random != 0 ? random : 1;
}

/* The process started with its main thread. */
static uint64_t name_of(pid_t pid)
{
    uint32_t forks = mpx_u32_load_relaxed(&foreign_forks);
    uint32_t start = forks > 0 ? random_start() : start_of_own_thread(pid);
    return (uint64_t)start << 32 | forks * MPX_PIDS | (uint32_t)pid;
}

/* Of several threads that ask first, one finds the name for all: it may be random. */
uint64_t mpx_os_ask_own_process(void)
{
    pthread_once(&registered, register_handler);
    uint64_t known = mpx_u64_load_relaxed(&own_process);
    pid_t pid = getpid();
    if (known == 0 || ((uint32_t)known & (MPX_PIDS - 1)) != (uint32_t)pid) {
        uint64_t name = name_of(pid);
        known = mpx_u64_cas_relaxed(&own_process, &known, name) ? name : known;
    }
    if (mpx_u32_load_relaxed(&forks_are_seen)) {
        mpx_u64_store_relaxed(&mpx_os_known_process, known);
    }
    return known;
}

/* A dead thread that is not foreign has the kernel to tell of it; where that has no robust list, a
 * foreign process leaves it to others to find out. */
int mpx_os_thread_alive(uint32_t number, uint32_t start)
{
    mpx_proc_stat_t stat;
    if (MPX_FAULT(recovery)) {
        return 1;
    }
    if (number >= MPX_PIDS) {
        return mpx_os_process_alive((mpx_process_id_t){.pid = (pid_t)number, .start = start});
    }
    if (mpx_os_is_foreign()) {
        return 1;
    }
    if (mpx_proc_stat_of((pid_t)number, &stat) < 0) {
        return mpx_os_pid_in_use((pid_t)number);
    }
    /* A main thread that has ended is a zombie until the others have: as a thread it is dead. */
    if (stat.state == 'Z' || stat.state == 'X' || stat.state == 'x') {
        return 0;
    }
    return start == 0 || start == mpx_proc_start(&stat);
}
