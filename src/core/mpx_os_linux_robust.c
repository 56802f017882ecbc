/* mpx_os_linux_robust.c - Linux: the robust futex list of a thread, and whether it works.
 *
 * Layer: L1
 *
 * The kernel keeps one list head per thread, and libc owns it. When a thread dies the kernel walks
 * the list and then looks at `pending`, the slot for a lock that is just being taken or released.
 * A word that is announced there alone, with nothing in the list, is marked all the same. That is
 * all the core relies on, and what the probe tries out: list formats differ between libcs.
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

/* The word that belongs to an entry lies in the same mutex, a few bytes away. */
#define FUTEX_OFFSET_LIMIT 4096

static bool is_sane(const mpx_robust_head_t *head, size_t size)
{
    return head != NULL && size == sizeof(*head) && head->futex_offset > -FUTEX_OFFSET_LIMIT &&
           head->futex_offset < FUTEX_OFFSET_LIMIT &&
           head->futex_offset % (long)sizeof(uint32_t) == 0;
}

static mpx_robust_head_t *registered_head(void)
{
    mpx_robust_head_t *head = NULL;
    size_t size = 0;
    if (MPX_SYS(get_robust_list, syscall(SYS_get_robust_list, 0, &head, &size)) < 0) {
        return NULL;
    }
    return is_sane(head, size) ? head : NULL;
}

/* glibc registers a thread's list when the thread starts, musl when it first locks a mutex that
 * needs it. */
static void make_libc_register(void)
{
    pthread_mutexattr_t attributes;
    pthread_mutex_t mutex;
    if (pthread_mutexattr_init(&attributes) != 0) {
        return;
    }
    if (pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED) == 0 &&
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST) == 0 &&
        pthread_mutex_init(&mutex, &attributes) == 0) {
        if (pthread_mutex_lock(&mutex) == 0) {
            pthread_mutex_unlock(&mutex);
        }
        pthread_mutex_destroy(&mutex);
    }
    pthread_mutexattr_destroy(&attributes);
}

static mpx_robust_head_t *head_of_this_thread(void)
{
    mpx_robust_head_t *head = registered_head();
    if (head == NULL) {
        make_libc_register();
        head = registered_head();
    }
    return head;
}

mpx_robust_head_t *mpx_os_robust_head(void)
{
    return mpx_os_has(MPX_HAS_ROBUST_LIST) ? head_of_this_thread() : NULL;
}

/* ---- Probe ----------------------------------------------------------------------------------- */

struct probe {
    mpx_atomic_u32 word;
    mpx_atomic_u32 tid;
};

/* Ends as the owner of the word, announced as pending and in no list. */
static void *die_as_owner(void *argument)
{
    struct probe *probe = argument;
    mpx_robust_head_t *head = head_of_this_thread();
    uint32_t tid = (uint32_t)mpx_os_thread_id();
    mpx_u32_store_relaxed(&probe->tid, tid);
    if (head != NULL) {
        mpx_u32_store_relaxed(&probe->word, tid);
        head->pending = (char *)&probe->word - head->futex_offset;
    }
    return NULL;
}

/* pthread_join returns a moment before the kernel stops counting the thread, and a program that
 * forks next would be told that it has two. */
static void wait_until_gone(pid_t tid)
{
    for (int attempts = 0; attempts < 1000; attempts++) {
        if (syscall(SYS_tgkill, getpid(), tid, 0) < 0) {
            return;
        }
        sched_yield();
    }
}

/* A thread and no process: the program's SIGCHLD handlers and waits for any child see nothing of
 * it. With all signals blocked, since it must not run the program's handlers either. */
static bool run_thread(void *(*function)(void *), void *argument)
{
    sigset_t all, before;
    pthread_t thread;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    bool started =
        !MPX_FAULT(pthread_create) && pthread_create(&thread, NULL, function, argument) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return started && pthread_join(thread, NULL) == 0;
}

bool mpx_os_probe_robust_list(void)
{
    struct probe probe = {.word = {0}, .tid = {0}};
    if (!run_thread(die_as_owner, &probe)) {
        return false;
    }
    wait_until_gone((pid_t)mpx_u32_load_relaxed(&probe.tid));
    return (mpx_u32_load_relaxed(&probe.word) & MPX_FUTEX_OWNER_DIED) != 0;
}
