/* at_fork.h - handlers of fork, for what a process has once, however many interpreters it has. */
#ifndef MPX_PY_AT_FORK_H
#define MPX_PY_AT_FORK_H

#include "module.h"

#include <pthread.h>

typedef struct {
    void (*before)(void), (*in_parent)(void), (*in_child)(void);
    bool are_registered;
} mpx_at_fork_t;

/* Registers them, if they are not. 0, or -1 with a MemoryError. */
int mpx_at_fork(mpx_at_fork_t *handlers);

#endif
