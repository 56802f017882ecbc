/* mpx_os_linux_thread.c - Linux: the calling thread as others see it, and whether another one
 * lives.
 *
 * Layer: L1
 *
 * What a thread knows of itself is kept in a variable of its own, what the process knows in a word
 * that is whole at every moment. A forked child has one thread, a copy of the one that forked, with
 * another number: a handler that libc runs in the child makes it ask again.
 */
#include "mpx_os_linux_pvt.h"

#include <pthread.h>
#include <unistd.h>

static _Thread_local mpx_thread_t self; /* id 0: not asked yet */
static mpx_atomic_u64 own_process;      /* pid and start, 0: not asked yet */
mpx_atomic_u64 mpx_os_known_process;    /* the same where forks are seen, else 0 */
static pthread_once_t registered = PTHREAD_ONCE_INIT;
static mpx_atomic_u32 forks_are_seen; /* set once; who sees it late asks more often */

static void forget(void)
{
    self.id = 0;
    mpx_u64_store_relaxed(&own_process, 0);
    mpx_u64_store_relaxed(&mpx_os_known_process, 0);
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

const mpx_thread_t *mpx_os_self(void)
{
    if (MPX_LIKELY(self.id != 0 && mpx_u32_load_relaxed(&forks_are_seen))) {
        return &self;
    }
    pthread_once(&registered, register_handler);
    pid_t id = mpx_os_thread_id();
    if (self.id != (uint32_t)id) {
        if (self.robust != NULL) {
            self.robust->pending = NULL; /* a copy of what the thread that forked had announced */
        }
        self.robust = mpx_os_robust_head();
        self.start = start_of_own_thread(id);
        self.id = (uint32_t)id;
    }
    return &self;
}

/* The process started with its main thread. */
uint64_t mpx_os_ask_own_process(void)
{
    pthread_once(&registered, register_handler);
    uint64_t known = mpx_u64_load_relaxed(&own_process);
    pid_t pid = getpid();
    if ((pid_t)known != pid) {
        known = (uint64_t)start_of_own_thread(pid) << 32 | (uint32_t)pid;
        mpx_u64_store_relaxed(&own_process, known);
    }
    if (mpx_u32_load_relaxed(&forks_are_seen)) {
        mpx_u64_store_relaxed(&mpx_os_known_process, known);
    }
    return known;
}

int mpx_os_thread_alive(uint32_t id, uint32_t start)
{
    mpx_proc_stat_t stat;
    if (mpx_proc_stat_of((pid_t)id, &stat) < 0) {
        return mpx_os_pid_in_use((pid_t)id);
    }
    /* A main thread that has ended is a zombie until the others have: as a thread it is dead. */
    if (stat.state == 'Z' || stat.state == 'X' || stat.state == 'x') {
        return 0;
    }
    return start == 0 || start == mpx_proc_start(&stat);
}
