/* own_fd.h - descriptors that a child which is forked meanwhile does not have: who reads at the
 * other end is not to wait for the child's end. Mostly a descriptor again, under a number that is
 * one call's own: what another thread closes meanwhile is another number.
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

/* A number that there is already: a child has it no more than the others. */
void mpx_own_fd_hide(mpx_own_fd_t *self, int number);

/* From here on the number is its owner's again. */
void mpx_own_fd_show(mpx_own_fd_t *self);

#endif
