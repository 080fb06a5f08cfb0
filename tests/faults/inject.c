/* Makes system calls on files below one folder fail, tear, wait or kill the process: LD_PRELOAD of the fault campaign.
 *
 * Every call that changes something below the folder is counted (reads as well, where `kinds` asks for them); call
 * number N meets the fault, and with `sticky` every call behind it too. Environment: FAULT_FOLDER, FAULT_NUMBER,
 * FAULT_MODE, FAULT_KINDS, FAULT_STICKY; FAULT_REPORT names a file that receives the count at exit. A process that
 * forks arms itself by fault_arm().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, NAME = 4, CREATE = 8, REMOVE = 16, READ = 32, CLOSE = 64 };

static char folder[PATH_MAX];
static size_t folder_length;
static long fault_number;
static int fault_errno, fault_sticky, fault_kinds, is_kill, is_tear, is_short;
static long delay_us;
static atomic_long calls;

static struct { const char *name; int number; } errnos[] = {
    {"ENOSPC", ENOSPC}, {"EIO", EIO}, {"EROFS", EROFS}, {"EDQUOT", EDQUOT}, {"EACCES", EACCES}};

void fault_arm(const char *path, long number, const char *mode, int kinds, int sticky) {
  folder_length = 0;
  if (!path || !*path) return;
  fault_errno = is_kill = is_tear = is_short = 0;
  delay_us = 0;
  for (size_t i = 0; i < sizeof errnos / sizeof *errnos; i++)
    if (!strcmp(mode, errnos[i].name)) fault_errno = errnos[i].number;
  is_kill = !strcmp(mode, "kill");
  is_tear = !strcmp(mode, "tear");
  is_short = !strcmp(mode, "short");
  if (!strncmp(mode, "delay", 5)) delay_us = atol(mode + 5);
  fault_number = number;
  fault_kinds = kinds;
  fault_sticky = sticky;
  atomic_store(&calls, 0);
  strncpy(folder, path, sizeof folder - 1);
  folder_length = strlen(folder);
}

long fault_count(void) { return atomic_load(&calls); }

static void report(void) {
  const char *path = getenv("FAULT_REPORT");
  if (!path) return;
  char text[32];
  int size = snprintf(text, sizeof text, "%ld\n", fault_count());
  folder_length = 0;
  int fd = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
  if (fd >= 0) { syscall(SYS_write, fd, text, size); syscall(SYS_close, fd); }
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULT_FOLDER"), *number = getenv("FAULT_NUMBER"), *mode = getenv("FAULT_MODE");
  const char *kinds = getenv("FAULT_KINDS"), *sticky = getenv("FAULT_STICKY");
  if (path) fault_arm(path, number ? atol(number) : 0, mode ? mode : "", kinds ? atoi(kinds) : 31, sticky ? atoi(sticky) : 0);
  atexit(report);
}

static int is_below(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || path[folder_length] == 0);
}

static int fd_below(int fd) {
  if (!folder_length || fd < 0) return 0;
  char link[48], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size <= 0) return 0;
  path[size] = 0;
  return is_below(path);
}

static int name_below(int directory, const char *name) {
  if (!folder_length || !name) return 0;
  if (*name == '/') return is_below(name);
  char path[2 * PATH_MAX], link[48];
  ssize_t size;
  if (directory == AT_FDCWD) {
    if (!getcwd(path, PATH_MAX)) return 0;
    size = strlen(path);
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    size = readlink(link, path, PATH_MAX - 1);
    if (size <= 0) return 0;
  }
  snprintf(path + size, PATH_MAX, "/%s", name);
  return is_below(path);
}

/* Whether this call meets the fault; errno is set where it is to fail. */
static int met(int below, int kind) {
  if (!below || !(fault_kinds & kind)) return 0;
  long number = atomic_fetch_add(&calls, 1) + 1;
  if (!fault_number || (fault_sticky ? number < fault_number : number != fault_number)) return 0;
  if (is_kill) raise(SIGKILL);
  if (delay_us) {
    struct timespec pause = {delay_us / 1000000, delay_us % 1000000 * 1000};
    nanosleep(&pause, NULL);
  }
  if (fault_errno) errno = fault_errno;
  return 1;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define TRANSFER(name, kind, parameters, below, shortened, whole)        \
  ssize_t name parameters {                                              \
    REAL(name);                                                          \
    int saved = errno;                                                   \
    if (met(below, kind)) {                                              \
      if (fault_errno) return -1;                                        \
      if (is_short || is_tear) {                                         \
        ssize_t size = shortened;                                        \
        if (is_tear) raise(SIGKILL);                                     \
        return size;                                                     \
      }                                                                  \
    }                                                                    \
    errno = saved;                                                       \
    return whole;                                                        \
  }

#define HALF (n > 1 ? n / 2 : n)
TRANSFER(write, WRITE, (int fd, const void *p, size_t n), fd_below(fd), real(fd, p, HALF), real(fd, p, n))
TRANSFER(pwrite, WRITE, (int fd, const void *p, size_t n, off_t at), fd_below(fd), real(fd, p, HALF, at), real(fd, p, n, at))
TRANSFER(pwrite64, WRITE, (int fd, const void *p, size_t n, off64_t at), fd_below(fd), real(fd, p, HALF, at), real(fd, p, n, at))
TRANSFER(writev, WRITE, (int fd, const struct iovec *p, int n), fd_below(fd), real(fd, p, HALF), real(fd, p, n))
TRANSFER(read, READ, (int fd, void *p, size_t n), fd_below(fd), real(fd, p, HALF), real(fd, p, n))
TRANSFER(pread, READ, (int fd, void *p, size_t n, off_t at), fd_below(fd), real(fd, p, HALF, at), real(fd, p, n, at))
TRANSFER(pread64, READ, (int fd, void *p, size_t n, off64_t at), fd_below(fd), real(fd, p, HALF, at), real(fd, p, n, at))
TRANSFER(copy_file_range, WRITE, (int in, off64_t *pi, int out, off64_t *po, size_t n, unsigned flags), fd_below(out),
         real(in, pi, out, po, HALF, flags), real(in, pi, out, po, n, flags))
TRANSFER(sendfile, WRITE, (int out, int in, off_t *at, size_t n), fd_below(out), real(out, in, at, HALF), real(out, in, at, n))

#define CALL(name, kind, parameters, below, whole)                       \
  int name parameters {                                                  \
    REAL(name);                                                          \
    int saved = errno;                                                   \
    if (met(below, kind)) {                                              \
      if (fault_errno) return -1;                                        \
      if (is_tear) { int done = whole; (void)done; raise(SIGKILL); }     \
    }                                                                    \
    errno = saved;                                                       \
    return whole;                                                        \
  }

ssize_t sendfile(int, int, off_t *, size_t);
CALL(fsync, SYNC, (int fd), fd_below(fd), real(fd))
CALL(fdatasync, SYNC, (int fd), fd_below(fd), real(fd))
CALL(ftruncate, WRITE, (int fd, off_t n), fd_below(fd), real(fd, n))
CALL(ftruncate64, WRITE, (int fd, off64_t n), fd_below(fd), real(fd, n))
CALL(posix_fallocate, WRITE, (int fd, off_t a, off_t n), fd_below(fd), real(fd, a, n))
CALL(truncate, WRITE, (const char *p, off_t n), name_below(AT_FDCWD, p), real(p, n))
CALL(rename, NAME, (const char *a, const char *b), name_below(AT_FDCWD, b), real(a, b))
CALL(renameat, NAME, (int da, const char *a, int db, const char *b), name_below(db, b), real(da, a, db, b))
CALL(renameat2, NAME, (int da, const char *a, int db, const char *b, unsigned f), name_below(db, b), real(da, a, db, b, f))
CALL(link, NAME, (const char *a, const char *b), name_below(AT_FDCWD, b), real(a, b))
CALL(linkat, NAME, (int da, const char *a, int db, const char *b, int f), name_below(db, b), real(da, a, db, b, f))
CALL(symlink, NAME, (const char *a, const char *b), name_below(AT_FDCWD, b), real(a, b))
CALL(mkdir, CREATE, (const char *p, mode_t m), name_below(AT_FDCWD, p), real(p, m))
CALL(mkdirat, CREATE, (int d, const char *p, mode_t m), name_below(d, p), real(d, p, m))
CALL(unlink, REMOVE, (const char *p), name_below(AT_FDCWD, p), real(p))
CALL(unlinkat, REMOVE, (int d, const char *p, int f), name_below(d, p), real(d, p, f))
CALL(rmdir, REMOVE, (const char *p), name_below(AT_FDCWD, p), real(p))

int close(int fd) {
  REAL(close);
  int saved = errno;
  /* The descriptor is gone whatever close answers, as Linux has it. */
  if (met((fault_kinds & CLOSE) && fd_below(fd), CLOSE) && fault_errno) {
    int failure = fault_errno;
    real(fd);
    errno = failure;
    return -1;
  }
  errno = saved;
  return real(fd);
}

/* Opening counts where it makes or changes a file. */
#define OPEN(name, parameters, directory, path, call)                    \
  int name parameters {                                                  \
    REAL(name);                                                          \
    mode_t mode = 0;                                                     \
    int saved = errno;                                                   \
    if (flags & (O_CREAT | __O_TMPFILE)) {                               \
      va_list rest;                                                      \
      va_start(rest, flags);                                             \
      mode = va_arg(rest, mode_t);                                       \
      va_end(rest);                                                      \
    }                                                                    \
    int kind = flags & (O_CREAT | O_TRUNC | O_WRONLY | O_RDWR) ? CREATE : READ; \
    if (met(name_below(directory, path), kind) && fault_errno) return -1; \
    errno = saved;                                                       \
    return call;                                                         \
  }

OPEN(open, (const char *path, int flags, ...), AT_FDCWD, path, real(path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), AT_FDCWD, path, real(path, flags, mode))
OPEN(openat, (int directory, const char *path, int flags, ...), directory, path, real(directory, path, flags, mode))
OPEN(openat64, (int directory, const char *path, int flags, ...), directory, path, real(directory, path, flags, mode))
