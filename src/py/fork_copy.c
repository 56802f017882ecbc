/* fork_copy.c - see fork_copy.h.
 *
 * The handlers of fork run in the thread that forks, so nothing here is locked. They call malloc
 * and free of libc, which are whole after fork, and not Python's, which may want the GIL.
 */
#include "fork_copy.h"

#include <stdlib.h>

#include "at_fork.h"

static MPX_THREAD_LOCAL mpx_fork_copy_t *in_use;

static void before_fork(void)
{
    for (mpx_fork_copy_t *self = in_use; self != NULL; self = self->next) {
        if (self->is_child) /* it is in memory that is copied anyway */
            continue;
        self->copy = malloc(self->size);
        if (self->copy != NULL)
            memcpy(self->copy, self->data, self->size);
    }
}

static void after_fork_in_parent(void)
{
    for (mpx_fork_copy_t *self = in_use; self != NULL; self = self->next) {
        if (!self->is_child) {
            free(self->copy);
            self->copy = NULL;
        }
    }
}

static void after_fork_in_child(void)
{
    for (mpx_fork_copy_t *self = in_use; self != NULL; self = self->next) {
        if (!self->is_child) {
            self->is_child = true;
            self->data = self->copy;
        }
    }
}

mpx_fork_copy_t *mpx_fork_copy_begin(char *data, size_t size)
{
    mpx_fork_copy_t *self = malloc(sizeof(*self));
    if (self == NULL) {
        PyErr_NoMemory();
        return NULL;
    }
    *self = (mpx_fork_copy_t){.data = data, .size = size, .next = in_use, .link = &in_use};
    if (in_use != NULL)
        in_use->link = &self->next;
    in_use = self;
    return self;
}

void mpx_fork_copy_move(mpx_fork_copy_t *self, char *data, size_t size)
{
    free(self->copy);
    self->copy = NULL;
    self->is_child = false;
    self->data = data;
    self->size = size;
}

void mpx_fork_copy_end(mpx_fork_copy_t *self)
{
    if (self == NULL)
        return;
    *self->link = self->next;
    if (self->next != NULL)
        self->next->link = self->link;
    free(self->copy);
    free(self);
}

int mpx_add_fork_copy(PyObject *Py_UNUSED(module))
{
    static mpx_at_fork_t handlers = {before_fork, after_fork_in_parent, after_fork_in_child, false};
    return mpx_at_fork(&handlers);
}
