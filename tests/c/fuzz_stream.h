/* fuzz_stream.h - a stream of a hostile peer, as a function of bytes.
 *
 * The bytes are what comes, and in which pieces. What is received has to be what a parser that has
 * all of it at once says: the same messages, the same end. libFuzzer drives it in `make fuzz`,
 * test_stream.c in every other configuration.
 */
#ifndef FUZZ_STREAM_H
#define FUZZ_STREAM_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
