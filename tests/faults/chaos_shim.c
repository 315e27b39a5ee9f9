/* Preloaded into a server: its clock is off by what we say, and its disk has as much room as we say.
 *
 * The file named by SECKILL_CHAOS_TABLE holds two int64, mapped shared, so that both can be changed
 * while the server runs: by how many microseconds the wall clock is ahead, and how many bytes still
 * fit on the disk (negative: no end of room). A write that does not fit writes what does, and the
 * next one fails with ENOSPC, as on a real disk. Only regular files take room, and the server's own
 * log, written by stdio, none. The monotonic clock is left alone, as a step of the time leaves it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct table {
    int64_t ahead_us;
    int64_t room;
};

static struct table *table;

__attribute__((constructor)) static void map_table(void) {
    const char *path = getenv("SECKILL_CHAOS_TABLE");
    int fd = path ? open(path, O_RDWR) : -1;
    if (fd < 0) abort(); /* Better no server than one whose faults never happen. */
    void *map = mmap(NULL, sizeof(struct table), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) abort();
    table = map;
    close(fd);
}

static int64_t ahead_us(void) {
    return table ? __atomic_load_n(&table->ahead_us, __ATOMIC_SEQ_CST) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = dlsym(RTLD_NEXT, "clock_gettime");
    int result = next(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t ns = now->tv_nsec + ahead_us() % 1000000 * 1000;
        now->tv_sec += ahead_us() / 1000000;
        if (ns < 0) now->tv_sec--, ns += 1000000000;
        if (ns >= 1000000000) now->tv_sec++, ns -= 1000000000;
        now->tv_nsec = ns;
    }
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    struct timespec exact;
    (void)zone;
    int result = clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return result;
}

time_t time(time_t *to) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (to) *to = exact.tv_sec;
    return exact.tv_sec;
}

ssize_t write(int fd, const void *bytes, size_t count) {
    static ssize_t (*next)(int, const void *, size_t);
    if (!next) next = dlsym(RTLD_NEXT, "write");
    struct stat file;
    int64_t room = table ? __atomic_load_n(&table->room, __ATOMIC_SEQ_CST) : -1;
    if (room < 0 || fstat(fd, &file) != 0 || !S_ISREG(file.st_mode)) return next(fd, bytes, count);
    if (room == 0) {
        errno = ENOSPC;
        return -1;
    }
    ssize_t written = next(fd, bytes, (int64_t)count < room ? count : (size_t)room);
    if (written > 0) {
        /* Whoever has made room meanwhile has the last word. */
        __atomic_compare_exchange_n(&table->room, &room, room - written, 0, __ATOMIC_SEQ_CST,
                                    __ATOMIC_SEQ_CST);
    }
    return written;
}
