/* fuzz_ring.h - a ring whose shared memory another process damages, as a function of bytes.
 *
 * The bytes are a program: what to put and get, and which words to overwrite in between. Whatever
 * they are, each call has to come back with a message or an error: no crash, no hang, no storage
 * without bounds. libFuzzer drives it in `make fuzz`, test_fuzz.c in every other configuration.
 */
#ifndef FUZZ_RING_H
#define FUZZ_RING_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
