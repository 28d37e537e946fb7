/* The log, the calls that fail on request, devices and memory.
 *
 * Environment:
 * STAND_IN_LOG      file to which a line is appended for each call: thread, name, details
 * STAND_IN_FAIL     "name n": the n-th call of `name` fails; "name n ever": all later ones too; "name n lost": every
 *                   later call of any function fails too, as after a fault of the device
 * STAND_IN_DEVICES  number of devices, 1 by default
 * STAND_IN_WAIT_MS  how long a wait for a stream takes, as if it had work to do
 */
#define _GNU_SOURCE
#include "shared.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAX_ALLOCATIONS 65536

struct allocation {
    char *address;
    size_t size;
    int place;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct allocation allocations[MAX_ALLOCATIONS];
static int allocation_count;
static int log_file = -1, devices = 1, wait_ms;
static char failing[128], failing_mode[16];
static long failing_from, failing_calls;
static int lost;
static __thread int device;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("STAND_IN_LOG"), *fail = getenv("STAND_IN_FAIL"), *count = getenv("STAND_IN_DEVICES");
    const char *wait = getenv("STAND_IN_WAIT_MS");
    fprintf(stderr, "stand-ins for the CUDA libraries: nothing is computed\n");
    if (path) log_file = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fail && sscanf(fail, "%127s %ld %15s", failing, &failing_from, failing_mode) < 2) abort();
    if (count) devices = atoi(count);
    if (wait) wait_ms = atoi(wait);
}

static int fails(const char *name) {
    int result = 0;
    if (!failing_from) return 0;
    pthread_mutex_lock(&lock);
    if (!strcmp(name, failing)) {
        failing_calls++;
        result = failing_calls == failing_from || (failing_calls > failing_from && *failing_mode);
        lost = lost || (result && !strcmp(failing_mode, "lost"));
    }
    result = result || lost;
    pthread_mutex_unlock(&lock);
    return result;
}

int call(const char *name, int error, const char *details, ...) {
    char line[1024];
    va_list values;
    int result = fails(name) ? error : 0, length;
    if (log_file < 0) return result;
    length = snprintf(line, sizeof line, "%d %s device=%d result=%d ", gettid(), name, device, result);
    va_start(values, details);
    length += vsnprintf(line + length, sizeof line - length, details, values);
    va_end(values);
    if (length > (int)sizeof line - 2) length = sizeof line - 2;
    line[length++] = '\n';
    if (write(log_file, line, length) != length) abort();
    return result;
}

/* A line of the test's own in the log. */
void mark(const char *text) { call("mark", 0, "text=%s", text); }

void wait_for(const struct stream *stream) {
    if (stream && wait_ms) usleep(wait_ms * 1000);
}

int device_count(void) { return devices; }
int current_device(void) { return device; }
int set_current_device(int number) {
    if (number < 0 || number >= devices) return 1;
    device = number;
    return 0;
}

int stream_number(const struct stream *stream) {
    return (size_t)stream < 4096 ? -(int)(size_t)stream : stream->number; /* cudaStreamLegacy is a small number */
}

struct handle *make_handle(void) {
    struct handle *handle = calloc(1, sizeof *handle);
    handle->device = device;
    return handle;
}

void *allocate(size_t size, int pinned) {
    struct allocation new = {NULL, size ? size : 1, pinned ? PINNED : device};
    new.address = mmap(NULL, new.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (new.address == MAP_FAILED) return NULL;
    pthread_mutex_lock(&lock);
    if (allocation_count == MAX_ALLOCATIONS) abort();
    allocations[allocation_count++] = new;
    pthread_mutex_unlock(&lock);
    return new.address;
}

int release(void *address, int pinned) {
    int known = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < allocation_count && !known; i++)
        if (allocations[i].address == address && (allocations[i].place == PINNED) == pinned) {
            munmap(address, allocations[i].size);
            allocations[i] = allocations[--allocation_count];
            known = 1;
        }
    pthread_mutex_unlock(&lock);
    return known || !address ? 0 : 1;
}

int place_of(const void *address, size_t size) {
    const char *start = address;
    int result = HOST;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < allocation_count && result == HOST; i++) {
        const char *from = allocations[i].address, *to = from + allocations[i].size;
        if (start >= from && start < to) result = size <= (size_t)(to - start) ? allocations[i].place : BEYOND;
    }
    pthread_mutex_unlock(&lock);
    return result;
}
