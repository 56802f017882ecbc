/* own_fd.c - see own_fd.h.
 *
 * A fork waits until nobody is changing the list, so the child finds it whole; it closes the copies
 * that it has got of these descriptors. The call of the thread that has forked goes on there
 * without one.
 */
#include "own_fd.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include "at_fork.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static mpx_own_fd_t *all;

static void link_in(mpx_own_fd_t *self, int number)
{
    *self = (mpx_own_fd_t){.number = number, .next = all, .link = &all};
    if (all != NULL)
        all->link = &self->next;
    all = self;
}

/* The number that it had. */
static int unlink_from_all(mpx_own_fd_t *self)
{
    int number = self->number;
    *self->link = self->next;
    if (self->next != NULL)
        self->next->link = self->link;
    self->number = 0;
    return number;
}

void mpx_own_fd_take(mpx_own_fd_t *self, int fd)
{
    pthread_mutex_lock(&mutex);
    int number = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (number > 0)
        link_in(self, number);
    pthread_mutex_unlock(&mutex);
}

void mpx_own_fd_drop(mpx_own_fd_t *self)
{
    if (MPX_LIKELY(self->number == 0))
        return;
    pthread_mutex_lock(&mutex);
    close(unlink_from_all(self));
    pthread_mutex_unlock(&mutex);
}

void mpx_own_fd_hide(mpx_own_fd_t *self, int number)
{
    pthread_mutex_lock(&mutex);
    link_in(self, number);
    pthread_mutex_unlock(&mutex);
}

void mpx_own_fd_show(mpx_own_fd_t *self)
{
    if (MPX_LIKELY(self->number == 0))
        return;
    pthread_mutex_lock(&mutex);
    (void)unlink_from_all(self);
    pthread_mutex_unlock(&mutex);
}

static void before_fork(void)
{
    pthread_mutex_lock(&mutex);
}

static void after_fork_in_parent(void)
{
    pthread_mutex_unlock(&mutex);
}

static void after_fork_in_child(void)
{
    for (mpx_own_fd_t *self = all; self != NULL; self = self->next) {
        close(self->number);
        self->number = 0;
    }
    all = NULL;
    pthread_mutex_unlock(&mutex);
}

int mpx_add_own_fd(PyObject *Py_UNUSED(module))
{
    static mpx_at_fork_t handlers = {before_fork, after_fork_in_parent, after_fork_in_child, false};
    return mpx_at_fork(&handlers);
}
