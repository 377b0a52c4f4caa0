/* The C library's calls on a folder say EROFS while a file is there: preloaded by test_faults.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static int denied(const char *path) {
    const char *root = getenv("TEST_READ_ONLY"), *flag = getenv("TEST_READ_ONLY_FLAG");
    return root && flag && !strncmp(path, root, strlen(root)) && !access(flag, F_OK);
}
static int denied_fd(int fd) {
    char link[64], path[4096];
    const char *flag = getenv("TEST_READ_ONLY_FLAG");
    if (!flag || access(flag, F_OK)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return denied(path);
}
#define REFUSE(bad) if (bad) { errno = EROFS; return -1; }
#define REAL(name, type) static type real; if (!real) real = (type)dlsym(RTLD_NEXT, name)
#define FD(name, result, declared, given) \
    result name declared { typedef result (*type) declared; \
        REFUSE(denied_fd(fd)) REAL(#name, type); return real given; }
FD(write, ssize_t, (int fd, const void *b, size_t n), (fd, b, n))
FD(pwrite, ssize_t, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
FD(pwrite64, ssize_t, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
FD(ftruncate, int, (int fd, off_t n), (fd, n))
FD(ftruncate64, int, (int fd, off64_t n), (fd, n))
#define PATH1(name) int name(const char *path) { typedef int (*type)(const char *); \
    REFUSE(denied(path)) REAL(#name, type); return real(path); }
PATH1(unlink)
int rename(const char *a, const char *b) {
    typedef int (*type)(const char *, const char *);
    REFUSE(denied(a)) REAL("rename", type); return real(a, b);
}
#define OPEN(name) int name(const char *path, int flags, ...) { \
    typedef int (*type)(const char *, int, mode_t); mode_t mode = 0; \
    if (flags & O_CREAT) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); } \
    REFUSE((flags & (O_WRONLY | O_RDWR | O_CREAT)) && denied(path)) \
    REAL(#name, type); return real(path, flags, mode); }
OPEN(open)
OPEN(open64)
