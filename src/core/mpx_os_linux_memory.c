/* mpx_os_linux_memory.c - Linux: how much memory can still be had.
 *
 * Layer: L1
 *
 * The kernel promises memory freely and takes it back by killing, so it is asked before much is
 * taken: the machine (/proc/meminfo), and the memory cgroup of this process and each one above it,
 * in version 2 or 1. Pages of files that nobody used lately count as free in both. What cannot be
 * read says nothing.
 */
#include "mpx_os_linux_pvt.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PATH_SIZE 4096

/* ---- Files of lines -------------------------------------------------------------------------- */

typedef struct {
    int fd;
    size_t start, end; /* what was read and not looked at */
    char text[4096];
} reader_t;

/* "<root><path>"; false where there is no such file. */
static bool open_text(reader_t *reader, const char *root, const char *path)
{
    char whole[PATH_SIZE];
    size_t before = strlen(root), length = strlen(path);
    if (before + length >= sizeof(whole)) {
        return false;
    }
    memcpy(whole, root, before);
    memcpy(whole + before, path, length + 1);
    reader->fd = MPX_SYS(open_memory, open(whole, O_RDONLY | O_CLOEXEC));
    reader->start = reader->end = 0;
    return reader->fd >= 0;
}

/* Reads more behind what was not looked at, which is moved to the front; false at the end of the
 * file, and where there is no room. */
static bool read_more(reader_t *reader)
{
    ssize_t got;
    memmove(reader->text, reader->text + reader->start, reader->end - reader->start);
    reader->end -= reader->start;
    reader->start = 0;
    do {
        got = MPX_SYS(read_memory, read(reader->fd, reader->text + reader->end,
                                        sizeof(reader->text) - 1 - reader->end));
    } while (got < 0 && errno == EINTR);
    reader->end += got > 0 ? (size_t)got : 0;
    return got > 0;
}

static char *find_line_end(reader_t *reader)
{
    return memchr(reader->text + reader->start, '\n', reader->end - reader->start);
}

/* The next line, which stays until the next call; NULL at the end. One that is longer than the
 * buffer comes in pieces. */
static char *next_line(reader_t *reader)
{
    char *end = find_line_end(reader);
    while (end == NULL && read_more(reader)) {
        end = find_line_end(reader);
    }
    char *line = reader->text + reader->start;
    if (end == NULL && reader->start == reader->end) {
        return NULL;
    }
    if (end == NULL) {
        end = reader->text + reader->end;
        reader->start = reader->end;
    } else {
        reader->start = (size_t)(end + 1 - reader->text);
    }
    *end = '\0';
    return line;
}

static bool read_number(const char *text, uint64_t *number)
{
    const char *start;
    text += strspn(text, " \t");
    start = text;
    for (*number = 0; *text >= '0' && *text <= '9'; text++) {
        uint64_t digit = (uint64_t)(*text - '0');
        if (*number > (UINT64_MAX - digit) / 10) {
            return false;
        }
        *number = *number * 10 + digit;
    }
    return text > start;
}

/* The number behind the name at the start of a line; with an empty name, the file's first number.
 */
static bool number_in(const char *root, const char *path, const char *name, uint64_t *number)
{
    reader_t reader;
    bool found = false;
    if (!open_text(&reader, root, path)) {
        return false;
    }
    for (char *line = next_line(&reader); line != NULL && !found; line = next_line(&reader)) {
        size_t length = strlen(name);
        found = strncmp(line, name, length) == 0 && read_number(line + length, number);
    }
    close(reader.fd);
    return found;
}

/* ---- The machine ----------------------------------------------------------------------------- */

static int64_t bounded(uint64_t number)
{
    return number > INT64_MAX ? INT64_MAX : (int64_t)number;
}

/* What the kernel calls available it may want for itself: it kills before it has given that much.
 */
#define KERNELS_PART 64
#define KERNELS_MOST (UINT64_C(1) << 20) /* kilobytes */

static int64_t headroom_of_machine(const char *root)
{
    uint64_t kilobytes, swap = 0, total = 0;
    if (!number_in(root, "/proc/meminfo", "MemAvailable:", &kilobytes)) {
        return INT64_MAX;
    }
    (void)number_in(root, "/proc/meminfo", "MemTotal:", &total);
    (void)number_in(root, "/proc/meminfo", "SwapFree:", &swap);
    total = total / KERNELS_PART < KERNELS_MOST ? total / KERNELS_PART : KERNELS_MOST;
    kilobytes -= total < kilobytes ? total : kilobytes;
    return kilobytes > INT64_MAX / 4096 || swap > INT64_MAX / 4096
               ? INT64_MAX
               : (int64_t)(kilobytes + swap) * 1024;
}

/* ---- Control groups -------------------------------------------------------------------------- */

/* What a hierarchy calls its files. */
typedef struct {
    const char *limit;
    const char *usage;
    const char *reclaimable; /* in memory.stat */
} names_t;

static const names_t names_of_v1 = {"/memory.limit_in_bytes", "/memory.usage_in_bytes",
                                    "total_inactive_file "};
static const names_t names_of_v2 = {"/memory.max", "/memory.current", "inactive_file "};

/* Whether one of the words, with commas between them, is this one. */
static bool has_word(const char *words, const char *word)
{
    size_t length = strlen(word);
    while (words != NULL) {
        if (strncmp(words, word, length) == 0 && (words[length] == ',' || words[length] == '\0')) {
            return true;
        }
        words = strchr(words, ',');
        words = words == NULL ? NULL : words + 1;
    }
    return false;
}

/* The group of this process in the hierarchy that limits memory: version 1 where that has the
 * controller. False where there is none. */
static bool find_group(const char *root, char *group, const names_t **names)
{
    reader_t reader;
    *names = NULL;
    if (!open_text(&reader, root, "/proc/self/cgroup")) {
        return false;
    }
    for (char *line = next_line(&reader); line != NULL; line = next_line(&reader)) {
        char *words = strchr(line, ':');
        char *path = words == NULL ? NULL : strchr(words + 1, ':');
        if (path == NULL || path[1] != '/' || strlen(path + 1) >= PATH_SIZE) {
            continue;
        }
        *path++ = '\0';
        bool is_v1 = has_word(words + 1, "memory");
        if (is_v1 || (words[1] == '\0' && *names == NULL)) {
            *names = is_v1 ? &names_of_v1 : &names_of_v2;
            memcpy(group, path, strlen(path) + 1);
        }
    }
    close(reader.fd);
    return *names != NULL;
}

/* The rest of the group's path below the directory; NULL where it is not below. */
static const char *below(const char *group, const char *directory)
{
    size_t length = strcmp(directory, "/") == 0 ? 0 : strlen(directory);
    if (strncmp(group, directory, length) != 0 || (group[length] != '/' && group[length] != '\0')) {
        return NULL;
    }
    return strcmp(group + length, "/") == 0 ? "" : group + length;
}

/* Cuts the next field off a line. */
static char *cut_field(char **line)
{
    char *field = *line;
    *line = strchr(field, ' ');
    if (*line == NULL) {
        *line = field + strlen(field);
    } else {
        *(*line)++ = '\0';
    }
    return field;
}

/* One line of /proc/self/mountinfo: where the hierarchy is mounted, and which directory of it. */
static bool parse_mount(char *line, const names_t *names, char **directory, char **mount)
{
    char *tail = strstr(line, " - ");
    if (tail == NULL) {
        return false;
    }
    *tail = '\0';
    tail += strlen(" - ");
    for (int i = 0; i < 3; i++) {
        (void)cut_field(&line); /* identity, parent, device */
    }
    *directory = cut_field(&line);
    *mount = cut_field(&line);
    char *type = cut_field(&tail);
    (void)cut_field(&tail); /* source */
    return names == &names_of_v2 ? strcmp(type, "cgroup2") == 0
                                 : strcmp(type, "cgroup") == 0 && has_word(tail, "memory");
}

/* Where the group's directory is, and how long the part of its path is that all groups share. A
 * group that cannot be seen from here is taken for the one that can. */
static bool find_directory(const char *root, const char *group, const names_t *names, char *path,
                           size_t *mount_length)
{
    reader_t reader;
    bool found = false;
    if (!open_text(&reader, root, "/proc/self/mountinfo")) {
        return false;
    }
    for (char *line = next_line(&reader); line != NULL && !found; line = next_line(&reader)) {
        char *directory, *mount;
        if (!parse_mount(line, names, &directory, &mount)) {
            continue;
        }
        const char *rest = below(group, directory);
        rest = rest == NULL || strncmp(rest, "/..", 3) == 0 ? "" : rest;
        *mount_length = strlen(mount);
        found = *mount_length + strlen(rest) < PATH_SIZE;
        if (found) {
            memcpy(path, mount, *mount_length);
            memcpy(path + *mount_length, rest, strlen(rest) + 1);
        }
    }
    close(reader.fd);
    return found;
}

/* `path` is followed by room for a name. */
static bool number_of_group(const char *root, char *path, const char *file, const char *name,
                            uint64_t *number)
{
    char *end = path + strlen(path);
    if (strlen(file) >= (size_t)(path + PATH_SIZE - end)) {
        return false;
    }
    memcpy(end, file, strlen(file) + 1);
    bool found = number_in(root, path, name, number);
    *end = '\0';
    return found;
}

static int64_t headroom_of_group(const char *root, char *path, const names_t *names)
{
    uint64_t limit, usage, reclaimable = 0;
    if (!number_of_group(root, path, names->limit, "", &limit) ||
        !number_of_group(root, path, names->usage, "", &usage)) {
        return INT64_MAX; /* no limit ("max"), or the root of all */
    }
    (void)number_of_group(root, path, "/memory.stat", names->reclaimable, &reclaimable);
    usage = usage > reclaimable ? usage - reclaimable : 0;
    return limit > usage ? bounded(limit - usage) : 0;
}

static int64_t headroom_of_groups(const char *root)
{
    char group[PATH_SIZE], path[PATH_SIZE];
    const names_t *names;
    size_t mount_length;
    int64_t least = INT64_MAX;
    if (!find_group(root, group, &names) ||
        !find_directory(root, group, names, path, &mount_length)) {
        return INT64_MAX;
    }
    for (;;) {
        int64_t headroom = headroom_of_group(root, path, names);
        least = headroom < least ? headroom : least;
        char *last = strrchr(path, '/');
        if (last == NULL || last < path + mount_length) {
            return least;
        }
        *last = '\0';
    }
}

int64_t mpx_os_memory_headroom_in(const char *root)
{
    int64_t machine = headroom_of_machine(root), groups = headroom_of_groups(root);
    return machine < groups ? machine : groups;
}

int64_t mpx_os_memory_headroom(void)
{
    return mpx_os_memory_headroom_in("");
}
