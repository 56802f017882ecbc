/* mpx_bell.h - a pair of descriptors by which those who wait with select and the like see that
 * there is something in shared memory.
 *
 * Layer: L2
 *
 * A pipe of which nothing but its state is used: it is readable from `mpx_bell_ring` to
 * `mpx_bell_quiet`, and hung up once no process has its writing end. A process may have closed
 * either end (-1), or the program may have closed it behind our back and have another file under
 * the number: a file is recognised before it is touched.
 */
#ifndef MPX_BELL_H
#define MPX_BELL_H

#include "mpx_os.h"

typedef struct {
    int reader;
    int writer;
    mpx_file_id_t file;
} mpx_bell_t;

/* Makes a silent one; its descriptors do not block, and are closed by exec. */
MPX_NODISCARD int mpx_bell_new(mpx_bell_t *bell);

/* The one behind descriptors that were inherited or passed; one of them may be -1. -EBADF. */
MPX_NODISCARD int mpx_bell_adopt(mpx_bell_t *bell, int reader, int writer);

/* Closes what of it is still its own. */
void mpx_bell_close_reader(mpx_bell_t *bell);
void mpx_bell_close_writer(mpx_bell_t *bell);

/* To ring once more is no error, nor is it where the end is closed: then it is false. */
bool mpx_bell_ring(const mpx_bell_t *bell);
void mpx_bell_quiet(const mpx_bell_t *bell);

/* Whether the ends that this process has not closed still are the bell's. */
bool mpx_bell_is_whole(const mpx_bell_t *bell);

/* Whether no process has the other end any more; false where this process has closed its own. */
bool mpx_bell_has_no_writer(const mpx_bell_t *bell);
bool mpx_bell_has_no_reader(const mpx_bell_t *bell);

#endif
