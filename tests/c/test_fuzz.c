/* test_fuzz.c - what fuzz_ring.c does with the inputs of corpus/ and with random ones, the same
 * ones each time, as many as there is time for: so every configuration runs some, and those of a
 * fuzzer that found something for good.
 */
#define _GNU_SOURCE

#include "fuzz_ring.h"
#include "harness.h"

#include "mpx_os.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { LONGEST = 2048, BATCHES = 40, BATCH = 250, SECONDS_EACH = 10, SECONDS_IN_ALL = 10 };

/* Where the parent finds what a child died of. */
typedef struct {
    uint32_t seed; /* of the batch */
    size_t size;
    uint8_t bytes[LONGEST];
} input_t;

/* SIGALRM ends one that hangs. */
static void run(const input_t *input)
{
    alarm(SECONDS_EACH * (emulated() ? 4 : 1));
    LLVMFuzzerTestOneInput(input->bytes, input->size);
    alarm(0);
}

static void run_alone(void *argument)
{
    run(argument);
}

static void run_batch(void *argument)
{
    input_t *input = argument;
    random_state = input->seed;
    for (int i = 0; i < BATCH; i++) {
        input->size = random_below(random_below(8) == 0 ? LONGEST : 200);
        for (size_t at = 0; at < input->size; at++) {
            input->bytes[at] = (uint8_t)random_below(256);
        }
        run(input);
    }
}

/* The bytes as xxd -r -p reads them. */
static void check_end(int status, const input_t *input, const char *name)
{
    CHECK_EQ(status, 0);
    if (status != 0) {
        printf("input %s, status %#x:\n", name, (unsigned)status);
        for (size_t i = 0; i < input->size; i++) {
            printf("%02x%s", input->bytes[i], i % 32 == 31 ? "\n" : "");
        }
        printf("\n");
    }
}

TEST(random_damage)
{
    input_t *input = shared_memory(sizeof(*input));
    int64_t end = mpx_os_deadline(SECONDS_IN_ALL * MPX_NANOS_PER_SEC);
    for (uint32_t batch = 1; batch <= BATCHES && mpx_os_now() < end; batch++) {
        input->seed = batch * UINT32_C(2654435761);
        check_end(wait_for(start_process(run_batch, input)), input, "(random)");
    }
    free_shared_memory(input, sizeof(*input));
}

static void run_file(input_t *input, const char *name)
{
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, input->bytes, sizeof(input->bytes));
    CHECK(size > 0);
    close(fd);
    input->size = size > 0 ? (size_t)size : 0;
    check_end(wait_for(start_process(run_alone, input)), input, name);
}

/* The folder is not open while a child runs, which would not close it. */
TEST(damage_that_did_harm_once)
{
    enum { MOST = 64, LENGTH = 300 };
    static char names[MOST][LENGTH];
    input_t *input = shared_memory(sizeof(*input));
    DIR *folder = opendir("corpus");
    int count = 0;
    REQUIRE(folder != NULL);
    for (struct dirent *entry; count < MOST && (entry = readdir(folder)) != NULL;) {
        if (entry->d_name[0] != '.') {
            (void)snprintf(names[count++], LENGTH, "corpus/%s", entry->d_name);
        }
    }
    closedir(folder);
    CHECK(count > 0 && count < MOST);
    for (int i = 0; i < count; i++) {
        run_file(input, names[i]);
    }
    free_shared_memory(input, sizeof(*input));
}
