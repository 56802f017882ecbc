/* fuzz_stream.c - see fuzz_stream.h. */
#define _GNU_SOURCE

#include "fuzz_stream.h"

#include "mpx_stream.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void require(int condition, const char *what)
{
    if (!condition) {
        (void)!fprintf(stderr, "fuzz_stream: %s\n", what);
        abort();
    }
}

/* ---- What there is to receive ---------------------------------------------------------------- */

typedef struct {
    const uint8_t *bytes;
    size_t left;
} model_t;

static uint64_t number(const uint8_t *bytes, size_t count)
{
    uint64_t value = 0;
    for (size_t i = 0; i < count; i++) {
        value = value * 256 + bytes[i];
    }
    return value;
}

/* How the part of so many bytes that comes next ends: 0, -EPIPE or -EPROTO. */
static int take_part(model_t *model, uint64_t size, const uint8_t **part)
{
    *part = model->bytes;
    if (model->left < size) {
        return model->left == 0 ? -EPIPE : -EPROTO;
    }
    model->bytes += size;
    model->left -= size;
    return 0;
}

/* The next message: 0, or what follows the last one. */
static int take_message(model_t *model, const uint8_t **content, uint64_t *size)
{
    const uint8_t *part;
    int status = take_part(model, 4, &part);
    if (status < 0) {
        return status;
    }
    *size = number(part, 4);
    if (*size == UINT32_MAX) {
        status = take_part(model, 8, &part);
        if (status < 0) {
            return status;
        }
        *size = number(part, 8);
        if (*size > INT64_MAX) {
            return -EBADMSG;
        }
    } else if (*size > INT32_MAX) {
        return -EBADMSG;
    }
    return take_part(model, *size, content);
}

/* ---- What is received ------------------------------------------------------------------------ */

typedef struct {
    model_t model;
    mpx_inflow_t in;
    const uint8_t *content; /* which the model says */
    int end;                /* after the last message, as the model says; 0 before it */
    size_t room;            /* for content, at a time */
} receiver_t;

static void expect_message(receiver_t *receiver)
{
    uint64_t size = 0;
    int status = take_message(&receiver->model, &receiver->content, &size);
    receiver->end = status;
    require(status == 0 || status == -EPIPE || status == -EPROTO || status == -EBADMSG, "model");
    if (receiver->in.has_size && status == 0) {
        require(receiver->in.size == size, "another size");
    }
}

/* One step; its status. */
static int receive(receiver_t *receiver, int fd)
{
    char data[64];
    mpx_inflow_t *in = &receiver->in;
    if (!in->has_size) {
        int status = mpx_inflow_read_header(in, fd, NULL);
        if (in->has_size) {
            expect_message(receiver);
        }
        return status;
    }
    uint64_t before = in->got;
    int status = mpx_inflow_read(in, fd, data, receiver->room, NULL);
    require(in->got <= in->size && in->got - before <= receiver->room, "more than there is");
    if (status == 0) {
        require(memcmp(data, receiver->content + before, (size_t)(in->got - before)) == 0,
                "other bytes");
    }
    return status;
}

/* All that can be had now. 0: more may come. */
static int receive_all(receiver_t *receiver, int fd)
{
    for (;;) {
        if (receiver->in.has_size && receiver->in.got == receiver->in.size) {
            require(receiver->end == 0, "a message too many");
            mpx_inflow_reset(&receiver->in);
        }
        int status = receive(receiver, fd);
        if (status < 0) {
            return status == -EAGAIN ? 0 : status;
        }
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int ends[2], status = 0;
    if (size < 2 || size > 4096) {
        return 0;
    }
    size_t piece = data[0] % 40 + 1U;
    receiver_t receiver = {.model = {data + 2, size - 2}, .room = data[1] % 64 + 1U};
    require(pipe2(ends, O_CLOEXEC) == 0, "pipe");
    for (size_t at = 2; at < size && status == 0; at += piece) {
        size_t count = size - at < piece ? size - at : piece;
        require(write(ends[1], data + at, count) == (ssize_t)count, "write");
        status = receive_all(&receiver, ends[0]);
    }
    close(ends[1]);
    if (status == 0) {
        status = receive_all(&receiver, ends[0]);
    }
    if (receiver.end == 0) {
        expect_message(&receiver);
    }
    require(status < 0 && status == receiver.end, "another end");
    close(ends[0]);
    return 0;
}
