// Preloaded into the program: lets the n-th call of one kind fail, or all from the n-th on, or take long; counts all calls.
//
//   FAULT_KIND   which kind: open, read, write, sync, link, rename, mkdir, thread, memory
//   FAULT_AT     the number of the call, from 1 on; without it nothing fails
//   FAULT_LASTS  all later calls fail too
//   FAULT_SLEEP  seconds that the call takes before it succeeds, instead of failing
//   FAULT_COUNT  file to write at the end: a line "KIND CALLS" for each kind

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum Kind { OPEN, READ, WRITE, SYNC, LINK, RENAME, MKDIR, THREAD, MEMORY, KINDS };
static const char* const names[KINDS] = {"open", "read", "write", "sync", "link", "rename", "mkdir", "thread", "memory"};
static const int errors[KINDS] = {EMFILE, EIO, ENOSPC, EIO, EPERM, EIO, EACCES, EAGAIN, ENOMEM};

static atomic_long calls[KINDS];
static int chosen = -1;
static long at, seconds;
static int lasts;

__attribute__((constructor)) static void begin(void) {
  const char *kind = getenv("FAULT_KIND"), *number = getenv("FAULT_AT"), *sleep = getenv("FAULT_SLEEP");
  lasts = getenv("FAULT_LASTS") != NULL;
  seconds = sleep ? atol(sleep) : 0;
  at = number ? atol(number) : 0;
  for (int k = 0; k < KINDS && kind && at > 0; k++) {
    if (strcmp(kind, names[k]) == 0) chosen = k;
  }
}

__attribute__((destructor)) static void end(void) {
  const char* path = getenv("FAULT_COUNT");
  int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
  for (int k = 0; k < KINDS && file >= 0; k++) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s %ld\n", names[k], calls[k]);
    syscall(SYS_write, file, line, length);
  }
}

// Whether this call fails; errno is set then.
static int fails(enum Kind kind) {
  long call = ++calls[kind];
  if (kind != chosen || (lasts ? call < at : call != at)) return 0;
  if (seconds) {
    struct timespec left = {seconds, 0};
    while (nanosleep(&left, &left) != 0) {}
    return 0;
  }
  errno = errors[kind];
  return 1;
}

#define REAL(name) \
  static typeof(name)* real; \
  if (!real) real = (typeof(name)*)dlsym(RTLD_NEXT, #name)

#define OPEN(name) \
  int name(const char* path, int flags, ...) { \
    REAL(name); \
    va_list more; \
    va_start(more, flags); \
    mode_t mode = va_arg(more, mode_t); \
    va_end(more); \
    return fails(OPEN) ? -1 : real(path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define FAULTY(kind, result, failed, name, parameters, arguments) \
  result name parameters { \
    REAL(name); \
    return fails(kind) ? failed : real arguments; \
  }
FAULTY(READ, ssize_t, -1, read, (int file, void* to, size_t n), (file, to, n))
FAULTY(READ, ssize_t, -1, pread64, (int file, void* to, size_t n, off64_t from), (file, to, n, from))
FAULTY(SYNC, int, -1, fsync, (int file), (file))
FAULTY(LINK, int, -1, link, (const char* from, const char* to), (from, to))
FAULTY(LINK, int, -1, linkat, (int a, const char* from, int b, const char* to, int flags), (a, from, b, to, flags))
FAULTY(RENAME, int, -1, rename, (const char* from, const char* to), (from, to))
FAULTY(MKDIR, int, -1, mkdir, (const char* path, mode_t mode), (path, mode))
FAULTY(THREAD, int, EAGAIN, pthread_create,
       (pthread_t* thread, const pthread_attr_t* with, void* (*run)(void*), void* value), (thread, with, run, value))

// What is said to the person must get through, or nothing could be checked.
ssize_t write(int file, const void* from, size_t n) {
  REAL(write);
  return file != 2 && fails(WRITE) ? -1 : real(file, from, n);
}

// Of large memory: small requests come out of what the process has, and a C library may not survive their refusal.
static int lacks(size_t n) { return n >= 65536 && fails(MEMORY); }

// dlsym allocates, so glibc's own names are called.
extern void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void*, size_t), *__libc_memalign(size_t, size_t);

void* malloc(size_t n) { return lacks(n) ? NULL : __libc_malloc(n); }
void* calloc(size_t count, size_t n) { return lacks(count * n) ? NULL : __libc_calloc(count, n); }
void* realloc(void* old, size_t n) { return lacks(n) ? NULL : __libc_realloc(old, n); }

int posix_memalign(void** memory, size_t alignment, size_t n) {
  *memory = lacks(n) ? NULL : __libc_memalign(alignment, n);
  return *memory ? 0 : ENOMEM;
}
