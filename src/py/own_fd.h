/* own_fd.h - a descriptor again, under a number that is one call's own: what another thread closes
 * meanwhile is another number. A child that is forked meanwhile has none of them: who reads at the
 * other end is not to wait for the child's end.
 */
#ifndef MPX_PY_OWN_FD_H
#define MPX_PY_OWN_FD_H

#include "module.h"

/* All zero: none. It stays where it is while it has a number. */
typedef struct mpx_own_fd {
    int number; /* or 0: none has the number of a standard stream */
    struct mpx_own_fd *next, **link;
} mpx_own_fd_t;

/* Where there is no number to be had, it stays none. */
void mpx_own_fd_take(mpx_own_fd_t *self, int fd);

void mpx_own_fd_drop(mpx_own_fd_t *self);

#endif
