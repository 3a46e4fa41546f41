/* Faults of a file system, for the processes that this library is preloaded into.

   What it does stands in a file that all of them map (see shim.py): after `countdown` operations
   of one class below `directory`, the fault strikes, once or from then on. C's own stdio calls the
   kernel without these wrappers; Python, the C++ streams and Rust do not. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, COUNT, KILL, FAIL_WRITES, FAIL_READS, FAIL_OPENS, SHORT };
enum { READS = 1, WRITES = 2, OPENS = 4 };

struct plan {
    int kind;
    int error;
    int lasting;
    atomic_int struck;
    atomic_long countdown;
    atomic_long counted[3];
    char directory[1024];
};

static struct plan *plan;

int soak_map(const char *path) {
    int number = (int)open(path, O_RDWR);
    if (number < 0) return -1;
    void *at = mmap(NULL, sizeof(struct plan), PROT_READ | PROT_WRITE, MAP_SHARED, number, 0);
    close(number);
    if (at == MAP_FAILED) return -1;
    plan = at;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("SOAK_PLAN");
    if (path != NULL) soak_map(path);
}

static int classes(void) {
    switch (plan->kind) {
        case KILL: case FAIL_WRITES: return WRITES;
        case FAIL_READS: return READS;
        case FAIL_OPENS: return OPENS;
        case SHORT: return READS | WRITES;
        case COUNT: return READS | WRITES | OPENS;
        default: return 0;
    }
}

static int below(const char *path) {
    size_t length = strlen(plan->directory);
    return strncmp(path, plan->directory, length) == 0 && (path[length] == '/' || !path[length]);
}

/* Whether the fault strikes at this operation; a kill does not return. */
static int strikes(int class, const char *path) {
    if (plan == NULL || !(classes() & class) || !below(path)) return 0;
    if (plan->kind == COUNT) {
        for (int bit = 0; bit < 3; bit++)
            if (class & (1 << bit)) atomic_fetch_add(&plan->counted[bit], 1);
        return 0;
    }
    long left = atomic_fetch_sub(&plan->countdown, 1);
    if (left > 0 || (left < 0 && !plan->lasting)) return 0;
    atomic_store(&plan->struck, 1);
    if (plan->kind == KILL) {
        killpg(getpgrp(), SIGKILL);
        pause();
    }
    errno = plan->error;
    return 1;
}

static int strikes_number(int class, int number) {
    char link[64], path[1200];
    if (plan == NULL || !(classes() & class)) return 0;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", number);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = kept;
    if (length < 0) return 0;
    path[length] = 0;
    return strikes(class, path);
}

static int strikes_name(int class, const char *name) {
    char path[2400];
    if (plan == NULL || name == NULL) return 0;
    if (name[0] == '/') return strikes(class, name);
    int kept = errno;
    if (getcwd(path, 1200) == NULL) return 0;
    errno = kept;
    strcat(path, "/");
    strncat(path, name, 1100);
    return strikes(class, path);
}

#define NEXT(result, name, ...) \
    static result (*next)(__VA_ARGS__); \
    if (next == NULL) next = (result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

static int opening(int flags) {
    return OPENS | ((flags & (O_CREAT | O_TRUNC)) ? WRITES : 0);
}

#define OPEN(function) \
    int function(const char *name, int flags, ...) { \
        NEXT(int, #function, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        if (strikes_name(opening(flags), name) && plan->kind != SHORT) return -1; \
        return next(name, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(function) \
    int function(int at, const char *name, int flags, ...) { \
        NEXT(int, #function, int, const char *, int, ...); \
        va_list more; \
        va_start(more, flags); \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(more, mode_t) : 0; \
        va_end(more); \
        if (at == AT_FDCWD && strikes_name(opening(flags), name) && plan->kind != SHORT) return -1; \
        return next(at, name, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

#define TRANSFER(function, class, pointer) \
    ssize_t function(int number, pointer data, size_t count) { \
        NEXT(ssize_t, #function, int, pointer, size_t); \
        if (!strikes_number(class, number)) return next(number, data, count); \
        if (plan->kind != SHORT) return -1; \
        return next(number, data, count > 1 ? count / 2 : count); \
    }
TRANSFER(read, READS, void *)
TRANSFER(write, WRITES, const void *)

#define TRANSFER_AT(function, class, pointer, place) \
    ssize_t function(int number, pointer data, size_t count, place offset) { \
        NEXT(ssize_t, #function, int, pointer, size_t, place); \
        if (!strikes_number(class, number)) return next(number, data, count, offset); \
        if (plan->kind != SHORT) return -1; \
        return next(number, data, count > 1 ? count / 2 : count, offset); \
    }
TRANSFER_AT(pread, READS, void *, off_t)
TRANSFER_AT(pread64, READS, void *, off64_t)
TRANSFER_AT(pwrite, WRITES, const void *, off_t)
TRANSFER_AT(pwrite64, WRITES, const void *, off64_t)

ssize_t writev(int number, const struct iovec *parts, int count) {
    NEXT(ssize_t, "writev", int, const struct iovec *, int);
    if (strikes_number(WRITES, number) && plan->kind != SHORT) return -1;
    return next(number, parts, count);
}

ssize_t sendfile64(int to, int from, off64_t *offset, size_t count) {
    NEXT(ssize_t, "sendfile64", int, int, off64_t *, size_t);
    if (strikes_number(WRITES, to) && plan->kind != SHORT) return -1;
    return next(to, from, offset, count);
}

ssize_t sendfile(int to, int from, off_t *offset, size_t count) {
    NEXT(ssize_t, "sendfile", int, int, off_t *, size_t);
    if (strikes_number(WRITES, to) && plan->kind != SHORT) return -1;
    return next(to, from, offset, count);
}

#define ON_NUMBER(function) \
    int function(int number) { \
        NEXT(int, #function, int); \
        if (strikes_number(WRITES, number) && plan->kind != SHORT) return -1; \
        return next(number); \
    }
ON_NUMBER(fsync)
ON_NUMBER(fdatasync)

int rename(const char *from, const char *to) {
    NEXT(int, "rename", const char *, const char *);
    if (strikes_name(WRITES, to) && plan->kind != SHORT) return -1;
    return next(from, to);
}

int mkdir(const char *name, mode_t mode) {
    NEXT(int, "mkdir", const char *, mode_t);
    if (strikes_name(WRITES, name) && plan->kind != SHORT) return -1;
    return next(name, mode);
}

int unlink(const char *name) {
    NEXT(int, "unlink", const char *);
    /* A full disk lets go of files. */
    if (plan != NULL && plan->kind == KILL) strikes_name(WRITES, name);
    return next(name);
}
