/* mpx_atomic.h - atomic words: the only file of the core that names C11 memory orders.
 *
 * Layer: L0
 *
 * A word that several threads or processes use is one of the structures below, so that no plain
 * access to it compiles. Every function says its order in its name:
 *
 *   relaxed   the value alone, nothing about other memory
 *   acquire   what the writer did before its release is seen after this load
 *   release   what was done before is seen by whoever acquires this value
 *   acq_rel   both, for read-modify-write
 *
 * There is no sequentially consistent access and no fence here on purpose: each edge is a pair of
 * a release and an acquire that name each other in comments (src/DESIGN.md, ordering pairs).
 * Thread sanitizers understand such pairs, and do not understand fences.
 *
 * The words live in memory shared by processes, so they must be free of locks: a lock hidden by
 * the compiler would be another one in every process.
 */
#ifndef MPX_ATOMIC_H
#define MPX_ATOMIC_H

#include "mpx_base.h"

#include <stdatomic.h>

typedef struct {
    _Atomic uint32_t value;
} mpx_atomic_u32;

typedef struct {
    _Atomic uint64_t value;
} mpx_atomic_u64;

/* For memory of one process only: shared structures hold offsets. */
typedef struct {
    _Atomic(void *) value;
} mpx_atomic_ptr;

MPX_STATIC_ASSERT(ATOMIC_INT_LOCK_FREE == 2, "32-bit atomics must be lock-free");
MPX_STATIC_ASSERT(ATOMIC_LONG_LOCK_FREE == 2 && ATOMIC_LLONG_LOCK_FREE == 2,
                  "64-bit atomics must be lock-free");
MPX_STATIC_ASSERT(ATOMIC_POINTER_LOCK_FREE == 2, "atomic pointers must be lock-free");
MPX_STATIC_ASSERT(sizeof(mpx_atomic_u32) == 4 && _Alignof(mpx_atomic_u32) == 4,
                  "the kernel takes an atomic word as a futex");
MPX_STATIC_ASSERT(sizeof(mpx_atomic_u64) == 8 && _Alignof(mpx_atomic_u64) == 8,
                  "atomic words have the layout of plain ones");

/* Loads, stores and exchanges of one type. A failed compare-and-exchange has relaxed order and
 * leaves in *expected what it found. */
#define MPX_ATOMIC_WORD(word_t, value_t, prefix)                                              \
    static inline value_t prefix##_load_relaxed(word_t *word)                                 \
    {                                                                                         \
        return atomic_load_explicit(&word->value, memory_order_relaxed);                      \
    }                                                                                         \
    static inline value_t prefix##_load_acquire(word_t *word)                                 \
    {                                                                                         \
        return atomic_load_explicit(&word->value, memory_order_acquire);                      \
    }                                                                                         \
    static inline void prefix##_store_relaxed(word_t *word, value_t value)                    \
    {                                                                                         \
        atomic_store_explicit(&word->value, value, memory_order_relaxed);                     \
    }                                                                                         \
    static inline void prefix##_store_release(word_t *word, value_t value)                    \
    {                                                                                         \
        atomic_store_explicit(&word->value, value, memory_order_release);                     \
    }                                                                                         \
    static inline value_t prefix##_exchange_acquire(word_t *word, value_t value)              \
    {                                                                                         \
        return atomic_exchange_explicit(&word->value, value, memory_order_acquire);           \
    }                                                                                         \
    static inline value_t prefix##_exchange_release(word_t *word, value_t value)              \
    {                                                                                         \
        return atomic_exchange_explicit(&word->value, value, memory_order_release);           \
    }                                                                                         \
    static inline value_t prefix##_exchange_acq_rel(word_t *word, value_t value)              \
    {                                                                                         \
        return atomic_exchange_explicit(&word->value, value, memory_order_acq_rel);           \
    }                                                                                         \
    static inline bool prefix##_cas_relaxed(word_t *word, value_t *expected, value_t desired) \
    {                                                                                         \
        return atomic_compare_exchange_strong_explicit(                                       \
            &word->value, expected, desired, memory_order_relaxed, memory_order_relaxed);     \
    }                                                                                         \
    static inline bool prefix##_cas_acquire(word_t *word, value_t *expected, value_t desired) \
    {                                                                                         \
        return atomic_compare_exchange_strong_explicit(                                       \
            &word->value, expected, desired, memory_order_acquire, memory_order_relaxed);     \
    }                                                                                         \
    static inline bool prefix##_cas_release(word_t *word, value_t *expected, value_t desired) \
    {                                                                                         \
        return atomic_compare_exchange_strong_explicit(                                       \
            &word->value, expected, desired, memory_order_release, memory_order_relaxed);     \
    }                                                                                         \
    static inline bool prefix##_cas_acq_rel(word_t *word, value_t *expected, value_t desired) \
    {                                                                                         \
        return atomic_compare_exchange_strong_explicit(                                       \
            &word->value, expected, desired, memory_order_acq_rel, memory_order_relaxed);     \
    }

/* Arithmetic; each returns the value before. */
#define MPX_ATOMIC_INTEGER(word_t, value_t, prefix)                                  \
    static inline value_t prefix##_fetch_add_relaxed(word_t *word, value_t value)    \
    {                                                                                \
        return atomic_fetch_add_explicit(&word->value, value, memory_order_relaxed); \
    }                                                                                \
    static inline value_t prefix##_fetch_add_acq_rel(word_t *word, value_t value)    \
    {                                                                                \
        return atomic_fetch_add_explicit(&word->value, value, memory_order_acq_rel); \
    }                                                                                \
    static inline value_t prefix##_fetch_or_acq_rel(word_t *word, value_t value)     \
    {                                                                                \
        return atomic_fetch_or_explicit(&word->value, value, memory_order_acq_rel);  \
    }                                                                                \
    static inline value_t prefix##_fetch_and_acq_rel(word_t *word, value_t value)    \
    {                                                                                \
        return atomic_fetch_and_explicit(&word->value, value, memory_order_acq_rel); \
    }

MPX_ATOMIC_WORD(mpx_atomic_u32, uint32_t, mpx_u32)
MPX_ATOMIC_WORD(mpx_atomic_u64, uint64_t, mpx_u64)
MPX_ATOMIC_WORD(mpx_atomic_ptr, void *, mpx_ptr)
MPX_ATOMIC_INTEGER(mpx_atomic_u32, uint32_t, mpx_u32)
MPX_ATOMIC_INTEGER(mpx_atomic_u64, uint64_t, mpx_u64)

#undef MPX_ATOMIC_WORD
#undef MPX_ATOMIC_INTEGER

/* Keeps the compiler from moving accesses across it. For what the kernel reads of a thread when
 * that dies: it sees the thread's own stores in order, whatever other processors see. */
static inline void mpx_compiler_barrier(void)
{
    atomic_signal_fence(memory_order_seq_cst);
}

/* For the inside of a short spinning loop: leaves the core to the other hardware thread. */
static inline void mpx_cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb" ::: "memory");
#endif
}

#endif
