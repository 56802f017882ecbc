/* at_fork.c - see at_fork.h. */
#include "at_fork.h"

int mpx_at_fork(mpx_at_fork_t *handlers)
{
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_lock(&mutex);
    if (!handlers->are_registered)
        handlers->are_registered =
            pthread_atfork(handlers->before, handlers->in_parent, handlers->in_child) == 0;
    bool are_registered = handlers->are_registered;
    pthread_mutex_unlock(&mutex);
    if (are_registered)
        return 0;
    PyErr_NoMemory();
    return -1;
}
