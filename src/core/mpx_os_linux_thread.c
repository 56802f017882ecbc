/* mpx_os_linux_thread.c - Linux: the calling thread as others see it, and whether another one
 * lives.
 *
 * Layer: L1
 *
 * What a thread knows of itself is kept in a variable of its own. A forked child has one thread, a
 * copy of the one that forked, with another number: a handler that libc runs in the child makes it
 * ask again.
 */
#include "mpx_os_linux_pvt.h"

#include <pthread.h>

static _Thread_local mpx_thread_t self; /* id 0: not asked yet */
static pthread_once_t registered = PTHREAD_ONCE_INIT;
static bool forks_are_seen; /* written once, before any thread relies on it */

static void forget_self(void)
{
    self.id = 0;
}

static void register_handler(void)
{
    forks_are_seen = !MPX_FAULT(pthread_atfork) && pthread_atfork(NULL, NULL, forget_self) == 0;
}

/* As words of 32 bits hold it; what is not known stays 0. */
static uint32_t start_of(pid_t id)
{
    mpx_proc_stat_t stat;
    if (mpx_proc_stat_of_own_thread(id, &stat) < 0) {
        return 0;
    }
    uint32_t start = (uint32_t)(stat.start_ticks + 1);
    return start != 0 ? start : 1;
}

const mpx_thread_t *mpx_os_self(void)
{
    if (MPX_LIKELY(self.id != 0 && forks_are_seen)) {
        return &self;
    }
    pthread_once(&registered, register_handler);
    pid_t id = mpx_os_thread_id();
    if (self.id != (uint32_t)id) {
        if (self.robust != NULL) {
            self.robust->pending = NULL; /* a copy of what the thread that forked had announced */
        }
        self.robust = mpx_os_robust_head();
        self.start = start_of(id);
        self.id = (uint32_t)id;
    }
    return &self;
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
    uint32_t found = (uint32_t)(stat.start_ticks + 1);
    return start == 0 || start == (found != 0 ? found : 1);
}
