/* fuzz_ring.c - see fuzz_ring.h.
 *
 * All runs use one arena, of which a copy is made once the ring and some messages are in it; before
 * each run the copy is written back, and what the arena has grown by is punched out. So a run
 * depends on its bytes alone, as far as shared memory goes; what a process knows for itself is a
 * handle, which is written back too.
 *
 * What is overwritten: the control block but its mutexes, headers of segments, records, blocks of
 * messages, the heap's directory, hints and tables. Not mutexes: one that is damaged is one that
 * somebody holds. Not the arena's own structures, which every other object has in common with the
 * ring.
 */
#define _GNU_SOURCE

#include "fuzz_ring.h"

#include "mpx_arena_pvt.h"
#include "mpx_heap_pvt.h"
#include "mpx_ring_pvt.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* What a run may have stored at its end, at most. */
#define MOST_STORED ((off_t)256 * 1024 * 1024)

/* Operations of a run, at most. */
#define MOST_STEPS 400

static void require(int condition, const char *what)
{
    if (!condition) {
        (void)!fprintf(stderr, "fuzz_ring: %s\n", what);
        abort();
    }
}

/* ---- The program ----------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *next;
    const uint8_t *end;
} program_t;

static uint32_t read_byte(program_t *program)
{
    return program->next < program->end ? *program->next++ : 0;
}

static uint32_t read_number(program_t *program, uint32_t limit)
{
    uint32_t number = read_byte(program);
    return (number << 8 | read_byte(program)) % limit;
}

/* ---- The state before each run --------------------------------------------------------------- */

static mpx_arena_t *arena;
static mpx_ring_t first_ring;
static mpx_block_t first_block; /* of a message in the ring */
static unsigned char *copy;
static size_t copied; /* bytes of the arena that the copy is of */

static unsigned char bytes[MPX_RING_INLINE];

static mpx_block_t make_block(size_t size)
{
    mpx_block_t block = 0;
    mpx_heap_owner_t own;
    void *address;
    if (mpx_heap_own(arena, &own) == 0 && mpx_heap_new(arena, own, size, &block, &address) == 0) {
        memset(address, 'b', 1000);
    }
    return block;
}

static void begin(void)
{
    mpx_message_t message = {.data = bytes};
    require(mpx_arena_home(&arena) == 0, "no arena");
    require(mpx_ring_create(&first_ring, arena, MPX_RING_UNLIMITED) == 0, "no ring");
    require(mpx_bell_new(&first_ring.bell) == 0, "no bell");
    mpx_ring_limit_bytes(&first_ring, UINT64_C(1) << 30);
    for (uint32_t i = 0; i < 200; i++) { /* so many that there are two segments */
        message.size = i % 5 == 0 ? 3000 : i % 40;
        message.block = i == 3 ? (first_block = make_block(150000)) : 0;
        require(mpx_ring_put_now(&first_ring, &message, MPX_NEVER) == 0, "no message");
    }
    copied = (size_t)mpx_u64_load_relaxed(&arena->shared->used);
    copy = malloc(copied);
    require(copy != NULL && mpx_segment_at(&arena->segment, MPX_SEGMENT_DATA,
                                           copied - MPX_SEGMENT_DATA) != NULL,
            "no copy");
    memcpy(copy, mpx_segment_at(&arena->segment, MPX_SEGMENT_DATA, copied - MPX_SEGMENT_DATA),
           copied - MPX_SEGMENT_DATA);
}

static struct stat look(void)
{
    struct stat file;
    require(fstat(arena->segment.fd, &file) == 0, "no file");
    return file;
}

/* The bell is left as it is: that it may be heard for no reason is no fault. */
static mpx_ring_t restore(void)
{
    struct stat file = look();
    size_t size = copied - MPX_SEGMENT_DATA;
    memcpy(mpx_segment_at(&arena->segment, MPX_SEGMENT_DATA, size), copy, size);
    if ((size_t)file.st_size > copied) {
        require(fallocate(arena->segment.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                          (off_t)copied, file.st_size - (off_t)copied) == 0,
                "no hole");
    }
    return first_ring;
}

/* ---- Damage ---------------------------------------------------------------------------------- */

typedef struct {
    unsigned char *start;
    size_t size;
} area_t;

static area_t block_area(mpx_block_t block, size_t from, size_t most)
{
    size_t size = 0;
    unsigned char *address = mpx_heap_at(arena, block, &size);
    if (address == NULL || size <= from) {
        return (area_t){NULL, 0};
    }
    return (area_t){address + from, size - from < most ? size - from : most};
}

/* A record that is the next to be read, or written. */
static area_t record_area(mpx_ring_t *ring, bool last)
{
    mpx_ring_control_t *control = ring->control;
    mpx_ring_control_t pristine;
    memcpy(&pristine, control, sizeof(pristine));
    uint64_t word = last ? pristine.tail.value : pristine.head.value;
    mpx_block_t block = last ? pristine.tail_block.value : pristine.head_block.value;
    area_t area = block_area(block, MPX_SEGMENT_HEADER, SIZE_MAX);
    size_t at = (size_t)mpx_ring_position(word) * MPX_RING_UNIT;
    if (area.size < MPX_RING_UNIT * 8) {
        return area;
    }
    at &= area.size - 1;
    at = at > area.size - 8 * MPX_RING_UNIT ? area.size - 8 * MPX_RING_UNIT : at;
    return (area_t){area.start + at, 8 * MPX_RING_UNIT};
}

static area_t table_area(mpx_heap_shared_t *heap, uint32_t number)
{
    mpx_extent_t extent;
    if (!mpx_extent_at(arena, heap, number % MPX_HEAP_EXTENTS, &extent)) {
        return (area_t){NULL, 0};
    }
    return (area_t){(unsigned char *)extent.runs, extent.length * sizeof(mpx_run_t)};
}

static area_t pick_area(mpx_ring_t *ring, program_t *program)
{
    mpx_ring_control_t *control = ring->control;
    mpx_heap_shared_t *heap = mpx_heap_of(arena);
    unsigned char *start = (unsigned char *)control;
    switch (read_byte(program) % 12) {
    case 0:
        return (area_t){start, offsetof(mpx_ring_control_t, producers)};
    case 1:
        return (area_t){start + offsetof(mpx_ring_control_t, tail_block),
                        offsetof(mpx_ring_control_t, consumers) -
                            offsetof(mpx_ring_control_t, tail_block)};
    case 2:
        return (area_t){start + offsetof(mpx_ring_control_t, head_block),
                        sizeof(*control) - offsetof(mpx_ring_control_t, head_block)};
    case 3:
        return block_area(mpx_u64_load_relaxed(&control->head_block), 0, MPX_SEGMENT_HEADER);
    case 4:
        return block_area(mpx_u64_load_relaxed(&control->tail_block), 0, MPX_SEGMENT_HEADER);
    case 5:
    case 6:
        return record_area(ring, false);
    case 7:
        return record_area(ring, true);
    case 8:
        return (area_t){(unsigned char *)heap, offsetof(mpx_heap_shared_t, extent)};
    case 9:
        return (area_t){(unsigned char *)heap->extent, 3 * sizeof(heap->extent[0])};
    case 10:
        return block_area(first_block, 0, 64);
    default:
        return table_area(heap, read_byte(program) % 3);
    }
}

static uint64_t pick_value(area_t area, program_t *program, uint64_t before)
{
    static const uint64_t values[] = {0,
                                      1,
                                      2,
                                      7,
                                      8,
                                      15,
                                      16,
                                      17,
                                      63,
                                      64,
                                      4095,
                                      4096,
                                      65535,
                                      65536,
                                      65544,
                                      0x7fffffff,
                                      0x80000000,
                                      0xffffffff,
                                      0x100000000,
                                      0x7fffffffffffffff,
                                      0x8000000000000000,
                                      UINT64_MAX};
    uint64_t other = 0;
    switch (read_byte(program) % 6) {
    case 0:
        return values[read_byte(program) % MPX_ARRAY_LENGTH(values)];
    case 1:
        return before ^ UINT64_C(1) << read_byte(program) % 64;
    case 2:
        return before + read_byte(program) - 128;
    case 3:
        return before + ((uint64_t)(read_byte(program) - 128) << 32);
    case 4: /* another word of the same area */
        memcpy(&other, area.start + read_number(program, (uint32_t)(area.size - 7)), sizeof(other));
        return other;
    default:
        for (unsigned i = 0; i < 8; i++) {
            other = other << 8 | read_byte(program);
        }
        return other;
    }
}

static void damage(mpx_ring_t *ring, program_t *program)
{
    static const size_t lengths[] = {8, 4, 4, 1};
    area_t area = pick_area(ring, program);
    uint64_t value;
    if (area.size < sizeof(value)) {
        return;
    }
    size_t length = lengths[read_byte(program) % MPX_ARRAY_LENGTH(lengths)];
    size_t at = read_number(program, (uint32_t)(area.size - sizeof(value) + 1)) / length * length;
    memcpy(&value, area.start + at, sizeof(value));
    value = pick_value(area, program, value);
    memcpy(area.start + at, &value, length);
}

/* ---- A run ----------------------------------------------------------------------------------- */

static uint32_t pick_size(program_t *program)
{
    static const uint32_t most[] = {1, 17, 65, 300, 5000, MPX_RING_INLINE + 1};
    uint32_t limit = most[read_byte(program) % MPX_ARRAY_LENGTH(most)];
    return read_number(program, limit);
}

static void check_message(const mpx_message_t *message, const unsigned char *from)
{
    require(message->room == from && message->size <= MPX_RING_INLINE, "a message out of bounds");
}

/* A block that came belongs to this process. What it holds is read, as far as it says it reaches.
 */
static void take_in(const mpx_message_t *message)
{
    mpx_heap_owner_t own;
    size_t size = 0;
    if (message->block == 0) {
        return;
    }
    const volatile unsigned char *address = mpx_heap_at(arena, message->block, &size);
    if (address != NULL) {
        require(size > 0, "an empty block");
        (void)address[0];
        (void)address[size - 1];
    }
    if (mpx_heap_own(arena, &own) == 0) {
        (void)mpx_heap_free(arena, message->block, own);
    }
}

static int get(mpx_ring_t *ring, size_t capacity)
{
    mpx_message_t message;
    int status = capacity % 2 == 0 ? mpx_ring_try_get(ring, bytes, capacity, &message)
                                   : mpx_ring_get(ring, bytes, capacity, &message, 0);
    if (status == 0) {
        check_message(&message, bytes);
        take_in(&message);
    }
    return status;
}

static void get_many(mpx_ring_t *ring, uint32_t count)
{
    mpx_message_t messages[8];
    size_t done;
    if (mpx_ring_try_get_many(ring, bytes, sizeof(bytes), NULL, messages, count, &done) == 0) {
        unsigned char *from = bytes;
        require(done >= 1 && done <= count, "a wrong number of messages");
        for (size_t i = 0; i < done; i++) {
            check_message(&messages[i], from);
            from += messages[i].size;
            take_in(&messages[i]);
        }
        require(from <= bytes + sizeof(bytes), "messages out of bounds");
    }
}

static void put(mpx_ring_t *ring, uint32_t size)
{
    mpx_message_t message = {.data = bytes, .size = size};
    (void)!(size % 2 == 0 ? mpx_ring_try_put(ring, &message) : mpx_ring_put(ring, &message, 0));
}

static void put_many(mpx_ring_t *ring, program_t *program)
{
    mpx_message_t messages[8];
    size_t done, count = 1 + read_byte(program) % 8;
    for (size_t i = 0; i < count; i++) {
        messages[i] = (mpx_message_t){.data = bytes, .size = pick_size(program) % MPX_RING_INLINE};
    }
    (void)!mpx_ring_try_put_many(ring, messages, count, &done);
    require(done <= count, "a wrong number of messages");
}

static void put_block(mpx_ring_t *ring, uint32_t size)
{
    mpx_heap_owner_t own;
    mpx_message_t message = {
        .data = bytes, .size = 8, .block = make_block(size * 16), .bytes = size * 16};
    if (message.block != 0 && mpx_ring_put(ring, &message, 0) != 0 &&
        mpx_heap_own(arena, &own) == 0) {
        (void)mpx_heap_free(arena, message.block, own);
    }
}

static void reopen(mpx_ring_t *ring)
{
    mpx_ring_t again;
    if (mpx_ring_open(&again, arena, ring->slot) == 0) {
        again.bell = ring->bell;
        *ring = again;
    }
}

static void step(mpx_ring_t *ring, program_t *program)
{
    switch (read_byte(program) % 20) {
    case 0:
        put(ring, pick_size(program));
        break;
    case 1:
        (void)get(ring, sizeof(bytes) - read_byte(program) % 2);
        break;
    case 2:
        put_many(ring, program);
        break;
    case 3:
        get_many(ring, 1 + read_byte(program) % 8);
        break;
    case 4:
        put_block(ring, pick_size(program));
        break;
    case 5:
        (void)get(ring, read_byte(program));
        break;
    case 6:
        (void)mpx_ring_count(ring);
        (void)mpx_ring_is_full(ring);
        (void)mpx_ring_unfinished(ring);
        (void)!mpx_ring_finish(ring, 0);
        (void)!mpx_ring_join(ring, 0);
        (void)!mpx_ring_wait(ring, 0);
        break;
    case 7:
        mpx_heap_sweep(arena);
        mpx_heap_trim(arena, (size_t)read_byte(program) << 16);
        break;
    case 8:
        mpx_ring_watch(ring);
        break;
    case 9:
        if (read_byte(program) % 16 == 0) {
            mpx_ring_shut(ring);
        }
        break;
    case 10:
        reopen(ring);
        break;
    case 11: /* the handle as a forked child has it */
        ring->producer.process = ring->consumer.process = 0;
        break;
    default:
        damage(ring, program);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (copy == NULL) {
        begin();
    }
    program_t program = {data, data + size};
    mpx_ring_t ring = restore();
    if (read_byte(&program) % 2 == 0) { /* bytes are not counted */
        mpx_ring_limit_bytes(&ring, 0);
    }
    for (int i = 0; i < MOST_STEPS && program.next < program.end; i++) {
        step(&ring, &program);
    }
    for (int i = 0; i < MOST_STEPS && get(&ring, sizeof(bytes)) == 0; i++) {
    }
    put(&ring, 100);
    require((off_t)look().st_blocks * 512 <= MOST_STORED, "too much is stored");
    return 0;
}
