/* Preloaded into a server: writes down how much of each file is safe on disk.
 *
 * Safe is what a file held when a successful fsync or fdatasync of it began; all that was written
 * later may be gone after a power cut, although the page cache keeps it over a SIGKILL. The file
 * named by SECKILL_FSYNC_TABLE is an array of {inode, safe length}, mapped shared, so it outlives the
 * process and a forked child (the AOF rewrite) writes into it too. sync_file_range promises nothing
 * (it skips the metadata), so it does not count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define ENTRIES 1024

struct entry {
    uint64_t inode;
    int64_t length;
};

static struct entry *table;

__attribute__((constructor)) static void map_table(void) {
    const char *path = getenv("SECKILL_FSYNC_TABLE");
    int (*open_file)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = path ? open_file(path, O_RDWR) : -1;
    if (fd < 0) abort(); /* Better no server than one that is believed to be watched. */
    void *map = mmap(NULL, ENTRIES * sizeof(struct entry), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) abort();
    table = map;
    close(fd);
}

static void record(uint64_t inode, int64_t length) {
    for (int i = 0; i < ENTRIES; i++) {
        uint64_t found = 0;
        if (__atomic_compare_exchange_n(&table[i].inode, &found, inode, 0, __ATOMIC_SEQ_CST,
                                        __ATOMIC_SEQ_CST) ||
            found == inode) {
            __atomic_store_n(&table[i].length, length, __ATOMIC_SEQ_CST);
            return;
        }
    }
    abort();
}

static int sync_and_record(int (*sync_file)(int), int fd) {
    struct stat before;
    int regular = fstat(fd, &before) == 0 && S_ISREG(before.st_mode);
    int result = sync_file(fd);
    if (result == 0 && regular) record(before.st_ino, before.st_size);
    return result;
}

int fsync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fsync");
    return sync_and_record(next, fd);
}

int fdatasync(int fd) {
    static int (*next)(int);
    if (!next) next = dlsym(RTLD_NEXT, "fdatasync");
    return sync_and_record(next, fd);
}

/* A new file may get the inode of one that was deleted, and must not inherit its safe length. */
static int opened(int fd) {
    struct stat now;
    if (fd >= 0 && fstat(fd, &now) == 0 && S_ISREG(now.st_mode) && now.st_size == 0)
        record(now.st_ino, 0);
    return fd;
}

static mode_t mode_of(int flags, va_list rest) {
    int creates = (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE;
    return creates ? (mode_t)va_arg(rest, int) : 0;
}

int open(const char *path, int flags, ...) {
    static int (*next)(const char *, int, ...);
    if (!next) next = dlsym(RTLD_NEXT, "open");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(next(path, flags, mode));
}

int open64(const char *path, int flags, ...) {
    static int (*next)(const char *, int, ...);
    if (!next) next = dlsym(RTLD_NEXT, "open64");
    va_list rest;
    va_start(rest, flags);
    mode_t mode = mode_of(flags, rest);
    va_end(rest);
    return opened(next(path, flags, mode));
}
