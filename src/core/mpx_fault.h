/* mpx_fault.h - the points at which tests make the core fail or die. Nothing in a normal build.
 *
 * Layer: L0
 *
 * MPX_SYS(site, call)  a system call that tests can make fail: the call's value, or -1 and errno.
 * MPX_FAULT(site)      the same question alone, for calls that do not say -1: true means "failed".
 * MPX_STEP(site)       a point between two stores to shared memory, where tests kill the process.
 *
 * MPX_FAULT(recovery)  true: the dead are taken for living, and who sleeps looks for nothing. So a
 *                      test can show that it would find out.
 */
#ifndef MPX_FAULT_H
#define MPX_FAULT_H

#include "mpx_base.h"

#if defined(MPX_KILL_POINTS)
/* An extension module that can be told at which point to die: src/testing/kill_points.c. The linker
 * puts the points side by side, so that there is a list of all of them. */
typedef struct {
    char name[32];
} mpx_kill_point_t;

bool mpx_fault(const char *site);
void mpx_kill_point(const mpx_kill_point_t *point);
#    define MPX_FAULT(site) mpx_fault(#    site)
#    define MPX_STEP(site)                                              \
        do {                                                            \
            static const mpx_kill_point_t mpx_this_point                \
                __attribute__((section("mpx_points"), used)) = {#site}; \
            mpx_kill_point(&mpx_this_point);                            \
        } while (0)
#elif defined(MPX_TESTING)
/* Defined by the tests. mpx_fault sets errno where it returns true. */
bool mpx_fault(const char *site);
void mpx_step(const char *site);
#    define MPX_FAULT(site) mpx_fault(#    site)
#    define MPX_STEP(site)  mpx_step(#    site)
#else
#    define MPX_FAULT(site) false
#    define MPX_STEP(site)  ((void)0)
#endif

#define MPX_SYS(site, call) (MPX_FAULT(site) ? -1 : (call))

#endif
