/* mpx_process.h - child processes: start, wait, signal, reap; death with the parent; descriptors
 * sent from process to process.
 *
 * Layer: L2
 *
 * A child is named by its pid and, where the kernel has them, a pidfd. Waiting never reaps:
 * mpx_process_wait only learns that the child has ended, mpx_process_reap takes its status. So
 * any number of threads may wait for one child, and whoever is first takes the status under a
 * lock of the caller's; a signal can then never reach another process that got the number.
 */
#ifndef MPX_PROCESS_H
#define MPX_PROCESS_H

#include "mpx_os.h"

/* fork. 0 in the child, the child's pid in the parent. */
MPX_NODISCARD pid_t mpx_process_fork(void);

/* A program to start. */
typedef struct {
    const char *path;  /* of the executable; not searched for */
    char *const *argv; /* NULL at the end */
    char *const *envp; /* NULL at the end */
    const int *fds;    /* what the program inherits beside 0, 1 and 2: ascending, no duplicates */
    size_t fd_count;
} mpx_program_t;

/* Starts a program in a child; returns the child's pid. The program gets the caller's signal mask,
 * default actions in place of handlers, and no descriptor but those named. Where it cannot be
 * executed the result is execve's error (-ENOENT, -EACCES ...), and there is no child. */
MPX_NODISCARD pid_t mpx_process_spawn(const mpx_program_t *program);

/* Waits until the child has ended, without reaping it.
 *   0           it has ended
 *   -ETIMEDOUT  it had not by the deadline
 *   -EINTR      a signal handler ran
 *   -ECHILD     there is no such child: it was reaped already
 * `pidfd` is the child's, or -1 where there are none. It only makes a wait with a deadline end
 * sooner: what it says is never believed, as the program may have closed it, and the number may be
 * another file's by now. */
MPX_NODISCARD int mpx_process_wait(pid_t pid, int pidfd, int64_t deadline);

/* Reaps the child if it has ended. 1 and the exit code (negative: the signal that killed it),
 * 0 where it runs, -ECHILD where there is no such child. Does not block. */
MPX_NODISCARD int mpx_process_reap(pid_t pid, int *exitcode);

/* Sends a signal to a child. It has not been reaped, so the number is still its own. */
MPX_NODISCARD int mpx_process_signal(pid_t pid, int signal_number);

/* Whether the calling thread is its process's main thread, as the kernel sees it. */
bool mpx_process_in_main_thread(void);

/* Kills this process with SIGKILL once its parent *process* has ended, be it before the call; that
 * the thread which started it ends means nothing. `parent` is the parent's pid as it sees itself;
 * `parent_fd` is readable when it has ended, its pidfd where there are pidfds, or -1;
 * `by_main_thread` says whether the parent's main thread started this process. Where another thread
 * did, the handler of SIGURG is replaced, whose default action is to do nothing, so that a program
 * executed later is not hurt, and the signal is unblocked. All this ends with a change of the user:
 * the kernel forgets it then. */
MPX_NODISCARD int mpx_process_die_with_parent(pid_t parent, int parent_fd, bool by_main_thread);

/* Waits until a descriptor has one of the poll events, an error or a hangup: 0, -ETIMEDOUT, -EINTR,
 * -EBADF. */
MPX_NODISCARD int mpx_fd_wait(int fd, short events, int64_t deadline);

/* The most descriptors that one message carries (the kernel's SCM_MAX_FD). */
#define MPX_FDS_MAX 253

/* Sends one message of `size` > 0 bytes with descriptors over a Unix socket. */
MPX_NODISCARD int mpx_fds_send(int socket_fd, const void *data, size_t size, const int *fds,
                               size_t fd_count);

/* Receives one message: returns its size in bytes, 0 at the end of the stream; *fd_count goes in
 * as the room in `fds` and comes out as the number received, all close-on-exec. A message that does
 * not fit gives -EMSGSIZE, one whose descriptors found no room in this process -EMFILE; both are
 * consumed and leave no descriptor open. */
MPX_NODISCARD ssize_t mpx_fds_recv(int socket_fd, void *data, size_t size, int *fds,
                                   size_t *fd_count);

/* The descriptor of the first message, which brings one and stays where it is: anew, close-on-exec.
 * -EAGAIN: there is no message. -EMFILE: there is no room for it. */
MPX_NODISCARD int mpx_fds_peek(int socket_fd);

/* Drops all such messages, and their descriptors. */
void mpx_fds_drop(int socket_fd);

#endif
