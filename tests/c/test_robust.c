/* test_robust.c - the robust futex list: what dies as an owner leaves a mark. */
#include "harness.h"

#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

TEST(there_is_a_head_exactly_where_the_feature_is)
{
    mpx_robust_head_t *head = mpx_os_robust_head();
    CHECK_EQ(head != NULL, mpx_os_has(MPX_HAS_ROBUST_LIST));
    if (head != NULL) {
        CHECK(head == mpx_os_robust_head());
        CHECK(head->pending == NULL);
    }
}

TEST(switched_off_there_is_no_head)
{
    CHECK_EQ(mpx_os_without("robust_list"), 0);
    CHECK(mpx_os_robust_head() == NULL);
}

TEST(the_probe_leaves_no_thread_behind)
{
    mpx_os_probe_robust_list(); /* sanitizers start a thread of their own with the first one */
    int before = mpx_os_thread_count();
    for (int i = 0; i < 50; i++) {
        mpx_os_probe_robust_list();
        CHECK_EQ(mpx_os_thread_count(), before);
    }
}

static void *store_head(void *head)
{
    *(mpx_robust_head_t **)head = mpx_os_robust_head();
    return NULL;
}

TEST(each_thread_has_its_own_head)
{
    mpx_robust_head_t *other = NULL;
    pthread_t thread;
    REQUIRE(pthread_create(&thread, NULL, store_head, &other) == 0);
    pthread_join(thread, NULL);
    CHECK_EQ(other != NULL, mpx_os_has(MPX_HAS_ROBUST_LIST));
    CHECK(other == NULL || other != mpx_os_robust_head());
}

static void check_head_in_child(void *unused)
{
    (void)unused;
    CHECK_EQ(mpx_os_robust_head() != NULL, mpx_os_has(MPX_HAS_ROBUST_LIST));
}

TEST(a_forked_child_has_a_head)
{
    CHECK_EQ(mpx_os_robust_head() != NULL, mpx_os_has(MPX_HAS_ROBUST_LIST));
    CHECK_EQ(wait_for(start_process(check_head_in_child, NULL)), 0);
}

/* ---- Death of an owner ----------------------------------------------------------------------- */

struct owned {
    mpx_atomic_u32 word;
    mpx_atomic_u32 taken;
};

static void announce(mpx_atomic_u32 *word)
{
    mpx_robust_head_t *head = mpx_os_robust_head();
    head->pending = (char *)word - head->futex_offset;
}

static void take_and_wait(void *argument)
{
    struct owned *owned = argument;
    announce(&owned->word);
    mpx_u32_store_release(&owned->word, (uint32_t)mpx_os_thread_id());
    mpx_u32_store_release(&owned->taken, 1);
    CHECK(mpx_os_futex_wake(&owned->taken, 1) >= 0);
    for (;;) {
        pause();
    }
}

static void wait_until_taken(struct owned *owned)
{
    while (!mpx_u32_load_acquire(&owned->taken)) {
        int status = mpx_os_futex_wait(&owned->taken, 0, MPX_NEVER);
        CHECK(status == 0 || status == -EAGAIN);
    }
}

TEST(a_killed_owner_is_marked)
{
    if (!mpx_os_has(MPX_HAS_ROBUST_LIST)) {
        return;
    }
    struct owned *owned = shared_memory(sizeof(*owned));
    pid_t pid = start_process(take_and_wait, owned);
    wait_until_taken(owned);
    CHECK_EQ(mpx_u32_load_acquire(&owned->word), pid);
    kill(pid, SIGKILL);
    wait_for(pid);
    CHECK_EQ(mpx_u32_load_acquire(&owned->word), MPX_FUTEX_OWNER_DIED);
    free_shared_memory(owned, sizeof(*owned));
}

/* With WAITERS set the kernel wakes one who sleeps on the word. */
TEST(a_waiter_is_woken_when_the_owner_is_killed)
{
    if (!mpx_os_has(MPX_HAS_ROBUST_LIST)) {
        return;
    }
    struct owned *owned = shared_memory(sizeof(*owned));
    pid_t pid = start_process(take_and_wait, owned);
    wait_until_taken(owned);
    uint32_t value = (uint32_t)pid | MPX_FUTEX_WAITERS;
    mpx_u32_fetch_or_acq_rel(&owned->word, MPX_FUTEX_WAITERS);
    kill(pid, SIGKILL);
    while (mpx_u32_load_acquire(&owned->word) == value) {
        int status = mpx_os_futex_wait(&owned->word, value, MPX_NEVER);
        CHECK(status == 0 || status == -EAGAIN);
    }
    CHECK_EQ(mpx_u32_load_acquire(&owned->word), MPX_FUTEX_OWNER_DIED | MPX_FUTEX_WAITERS);
    wait_for(pid);
    free_shared_memory(owned, sizeof(*owned));
}

static void take_and_release(void *argument)
{
    struct owned *owned = argument;
    announce(&owned->word);
    mpx_u32_store_release(&owned->word, (uint32_t)mpx_os_thread_id());
    mpx_u32_store_release(&owned->word, 0);
    mpx_os_robust_head()->pending = NULL;
}

TEST(who_has_released_leaves_no_mark)
{
    if (!mpx_os_has(MPX_HAS_ROBUST_LIST)) {
        return;
    }
    struct owned *owned = shared_memory(sizeof(*owned));
    CHECK_EQ(wait_for(start_process(take_and_release, owned)), 0);
    CHECK_EQ(mpx_u32_load_acquire(&owned->word), 0);
    free_shared_memory(owned, sizeof(*owned));
}
