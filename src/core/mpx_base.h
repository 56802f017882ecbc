/* mpx_base.h - what every file of the core may rely on: status convention, alignment, asserts.
 *
 * Layer: L0
 *
 * Status convention. A function that can fail returns 0 or a non-negative value on success and
 * a negative errno on failure (-EAGAIN, -ENOMEM ...). errno itself is not part of any interface:
 * it may hold anything after a call. Nothing in the core prints, aborts or raises.
 *
 * Layers. Each file says its layer; a file includes only files of the same or a lower layer.
 *   L0  mpx_base.h, mpx_atomic.h, mpx_fault.h   the language: types, atomics, test hooks
 *   L1  mpx_os.h, mpx_os_linux.c                the operating system
 *   L2  mpx_segment.{h,c}, mpx_process.{h,c}    shared memory, processes
 *   L2  mpx_wait.{h,c}, mpx_owned.{h,c}, mpx_mutex.{h,c}, mpx_lock.{h,c}, mpx_semaphore.{h,c} locks
 *   L2  mpx_event.{h,c}                         a flag to wait for
 *   L2  mpx_bell.{h,c}                          a descriptor that others can wait for
 *   L2  mpx_stream.{h,c}                        messages through pipes and sockets
 *   L3  mpx_arena.h, mpx_arena*.c               small objects in shared memory
 *   L3  mpx_condition.{h,c}                     waiters that are notified one by one
 *   L3  mpx_spsc.{h,c}                          a ring with one process at each end
 *   L4  mpx_heap.h, mpx_heap*.c                 blocks of shared memory
 *   L5  mpx_ring.h, mpx_ring*.c                 a queue of messages
 *   L5  mpx_crew.{h,c}                          the lanes between a parent and its workers
 */
#ifndef MPX_BASE_H
#define MPX_BASE_H

/* What Linux has beyond C11. It counts only before the first header of libc, so every file of the
 * core includes a header of the core before any other. */
#ifndef _GNU_SOURCE
#    define _GNU_SOURCE 1
#endif

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#if !defined(__STDC_VERSION__) || __STDC_VERSION__ < 201112L
#    error "the core needs C11"
#endif

/* The unit in which processors own memory. Fields written by different processors are kept a
 * line apart. It is part of every shared layout, hence a constant and not a question to the
 * machine: two processes that disagree about it could not share a structure. */
#define MPX_CACHE_LINE 64

/* For a member of a structure: starts at a multiple of n bytes. */
#define MPX_ALIGNED(n) _Alignas(n)

#define MPX_STATIC_ASSERT(condition, message) _Static_assert(condition, message)

/* A variable that several files use: reached without a look into the loader's table. */
#define MPX_HIDDEN __attribute__((visibility("hidden")))

/* A result that must not be dropped: a status, or a descriptor that would leak. */
#define MPX_NODISCARD __attribute__((warn_unused_result))

/* A function that is called rarely, and kept out of those that call it. */
#define MPX_COLD __attribute__((noinline, cold))

#define MPX_LIKELY(condition)   __builtin_expect(!!(condition), 1)
#define MPX_UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* A thread's own variable. The GNU loader gets the memory of a library's own ones when the thread
 * first uses one, and ends the process where there is none; these few bytes it has room for when it
 * starts the thread. (musl does so with all.) */
#ifdef __GLIBC__
#    define MPX_THREAD_LOCAL __attribute__((tls_model("initial-exec"))) _Thread_local
#else
#    define MPX_THREAD_LOCAL _Thread_local
#endif

#define MPX_ARRAY_LENGTH(array) (sizeof(array) / sizeof((array)[0]))

/* Shared memory is read by 64-bit little-endian programs only (x86-64, arm64); offsets and
 * sizes are 64 bits wide in every layout and fit a pointer of this process. */
MPX_STATIC_ASSERT(sizeof(void *) == 8 && sizeof(size_t) == 8, "the core is for 64-bit machines");
MPX_STATIC_ASSERT(sizeof(int) == 4, "errno values, pids and descriptors are 32 bits wide");

#endif
