/* A stand-in for libcudart: memory is the host's, kernels are logged and not run.
 *
 * The values are those of CUDA 13's driver_types.h. A failed call is kept until cudaGetLastError clears it. */
#define _GNU_SOURCE
#include "shared.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define NO_MEMORY 2
#define INVALID_VALUE 1
#define NO_DEVICE 101
#define LAUNCH_FAILED 719
#define NOT_SUPPORTED 801

static __thread int last_error;

static int keep(int error) {
    if (error) last_error = error;
    return error;
}

#define call(...) keep(call(__VA_ARGS__))
#define ACCEPT(name) int name(void) { return call(#name, LAUNCH_FAILED, "accepted=1"); }
#define REFUSE(name) int name(void) { call(#name, 0, "refused=1"); return keep(NOT_SUPPORTED); }

typedef struct { unsigned x, y, z; } dim3;

/* Kernels: the host function of each, and its name. */

#define SLOTS (1 << 18)
static struct { const void *function; const char *name; } kernels[SLOTS];
static pthread_mutex_t kernels_lock = PTHREAD_MUTEX_INITIALIZER;
static __thread struct { dim3 grid, block; size_t shared; struct stream *stream; } configuration;

static size_t slot_of(const void *function) {
    size_t slot = ((size_t)function >> 4) % SLOTS;
    while (kernels[slot].function && kernels[slot].function != function) slot = (slot + 1) % SLOTS;
    return slot;
}

void **__cudaRegisterFatBinary(void *binary) { (void)binary; return calloc(1, sizeof(void *)); }
void __cudaRegisterFatBinaryEnd(void **handle) { (void)handle; }
void __cudaUnregisterFatBinary(void **handle) { free(handle); }
void __cudaRegisterVar(void) {}
void __cudaRegisterFunction(void **handle, const char *function, char *on_device, const char *name) {
    (void)handle, (void)on_device;
    pthread_mutex_lock(&kernels_lock);
    size_t slot = slot_of(function);
    kernels[slot].function = function, kernels[slot].name = name;
    pthread_mutex_unlock(&kernels_lock);
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, struct stream *stream) {
    configuration.grid = grid, configuration.block = block;
    configuration.shared = shared, configuration.stream = stream;
    return 0;
}
int __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *shared, struct stream **stream) {
    *grid = configuration.grid, *block = configuration.block;
    *shared = configuration.shared, *stream = configuration.stream;
    return 0;
}

static int launch(const void *function, struct stream *stream) {
    const char *name = kernels[slot_of(function)].name;
    return call("cudaLaunchKernel", LAUNCH_FAILED, "stream=%d kernel=%.600s", stream_number(stream), name ? name : "?");
}
int cudaLaunchKernel(const void *function, dim3 grid, dim3 block, void **values, size_t shared, struct stream *stream) {
    (void)grid, (void)block, (void)values, (void)shared;
    return launch(function, stream);
}
int __cudaLaunchKernel(const void *kernel, dim3 grid, dim3 block, void **values, size_t shared, struct stream *stream) {
    return cudaLaunchKernel(kernel, grid, block, values, shared, stream);
}
int __cudaGetKernel(const void **kernel, const void *function) { *kernel = function; return 0; }
int cudaFuncGetAttributes(void *attributes) { memset(attributes, 0, 64); return 0; }
ACCEPT(cudaFuncSetAttribute)
int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks) { *blocks = 2; return 0; }

/* Devices: all of them an H200. */

struct properties { /* the first fields of cudaDeviceProp */
    char name[256], uuid[16], luid[8];
    unsigned node_mask;
    size_t memory, shared_per_block;
    int registers, warp;
    size_t pitch;
    int threads_per_block, block_sides[3], grid_sides[3];
    size_t constants;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int processors;
    char rest[616];
};
_Static_assert(sizeof(struct properties) == 1008, "the size of cudaDeviceProp in CUDA 13");

int cudaGetDeviceProperties(struct properties *properties, int device) {
    if (device < 0 || device >= device_count()) return keep(NO_DEVICE);
    *properties = (struct properties){.name = "NVIDIA H200", .memory = 150000000000, .shared_per_block = 49152,
        .registers = 65536, .warp = 32, .pitch = 2147483647, .threads_per_block = 1024, .block_sides = {1024, 1024, 64},
        .grid_sides = {2147483647, 65535, 65535}, .constants = 65536, .major = 9, .texture_alignment = 512,
        .texture_pitch_alignment = 32, .processors = 132};
    return call("cudaGetDeviceProperties", NO_DEVICE, "of=%d", device);
}
int cudaDeviceGetAttribute(int *value, int attribute, int device) {
    (void)device;
    switch (attribute) {
    case 1: *value = 1024; break;    /* threads per block */
    case 8: *value = 49152; break;   /* shared memory per block */
    case 10: *value = 32; break;     /* warp */
    case 16: *value = 132; break;    /* processors */
    case 39: *value = 2048; break;   /* threads per processor */
    case 75: *value = 9; break;      /* compute capability, major; 76 is minor */
    case 81: *value = 233472; break; /* shared memory per processor */
    case 97: *value = 232448; break; /* shared memory per block, on request */
    default: *value = 0;
    }
    return 0;
}
int cudaDriverGetVersion(int *version) { *version = 13000; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaGetDeviceCount(int *count) {
    *count = device_count();
    return call("cudaGetDeviceCount", NO_DEVICE, "count=%d", *count);
}
int cudaGetDevice(int *device) { *device = current_device(); return 0; }
int cudaSetDevice(int device) {
    int failed = call("cudaSetDevice", NO_DEVICE, "to=%d", device);
    return failed ? failed : set_current_device(device) ? keep(NO_DEVICE) : 0;
}
int cudaMemGetInfo(size_t *free_bytes, size_t *total) { *free_bytes = 140000000000, *total = 150000000000; return 0; }
int cudaGetDriverEntryPointByVersion(const char *name, void **function, unsigned version, unsigned long flags,
                                     int *result) {
    (void)version, (void)flags;
    *function = NULL;
    if (result) *result = 1; /* cudaDriverEntryPointSymbolNotFound */
    return call("cudaGetDriverEntryPointByVersion", NOT_SUPPORTED, "of=%s", name);
}

const char *cudaGetErrorName(int error) {
    switch (error) {
    case INVALID_VALUE: return "cudaErrorInvalidValue";
    case NO_MEMORY: return "cudaErrorMemoryAllocation";
    case NO_DEVICE: return "cudaErrorInvalidDevice";
    case LAUNCH_FAILED: return "cudaErrorLaunchFailure";
    case NOT_SUPPORTED: return "cudaErrorNotSupported";
    }
    return "cudaErrorUnknown";
}
const char *cudaGetErrorString(int error) {
    switch (error) {
    case INVALID_VALUE: return "invalid argument";
    case NO_MEMORY: return "out of memory";
    case NO_DEVICE: return "invalid device ordinal";
    case LAUNCH_FAILED: return "unspecified launch failure";
    case NOT_SUPPORTED: return "operation not supported";
    }
    return "unknown error";
}
int cudaGetLastError(void) {
    int error = last_error;
    last_error = 0;
    return error;
}
int cudaPeekAtLastError(void) { return last_error; }

/* Memory. */

static int allocate_logged(const char *name, void **address, size_t size, int pinned, unsigned flags) {
    int failed = call(name, NO_MEMORY, "bytes=%zu flags=%u", size, flags);
    *address = failed ? NULL : allocate(size, pinned);
    if (failed) return failed;
    if (!*address) return keep(NO_MEMORY);
    call("allocated", 0, "address=%p bytes=%zu pinned=%d", *address, size, pinned);
    return 0;
}
static int free_logged(const char *name, void *address, int pinned) {
    int failed = call(name, LAUNCH_FAILED, "address=%p", address);
    return failed ? failed : release(address, pinned) ? keep(INVALID_VALUE) : 0;
}
int cudaMalloc(void **address, size_t size) { return allocate_logged("cudaMalloc", address, size, 0, 0); }
int cudaMallocHost(void **address, size_t size) { return allocate_logged("cudaMallocHost", address, size, 1, 0); }
int cudaHostAlloc(void **address, size_t size, unsigned flags) {
    return allocate_logged("cudaHostAlloc", address, size, 1, flags);
}
int cudaFree(void *address) { return free_logged("cudaFree", address, 0); }
int cudaFreeHost(void *address) { return free_logged("cudaFreeHost", address, 1); }
struct pointer { int type, device; const void *on_device, *on_host; }; /* cudaPointerAttributes */
int cudaPointerGetAttributes(struct pointer *attributes, const void *address) {
    int place = place_of(address, 0);
    attributes->type = place >= 0 ? 2 : place == PINNED ? 1 : 0;
    attributes->device = place >= 0 ? place : 0;
    attributes->on_device = attributes->on_host = address;
    return 0;
}

/* Copies. The kinds are 0 host to host, 1 up, 2 down, 3 on the device, 4 by the addresses. */

static int copy(const char *name, void *target, const void *source, size_t size, int kind, struct stream *stream) {
    int to = place_of(target, size), from = place_of(source, size);
    int found = to >= 0 ? (from >= 0 ? 3 : 1) : (from >= 0 ? 2 : 0);
    int wrong = to == BEYOND || from == BEYOND || (kind != 4 && kind != found);
    static const char *const directions[] = {"host", "up", "down", "inside"};
    int failed = call(name, LAUNCH_FAILED, "stream=%d direction=%s bytes=%zu kind=%d to=%d from=%d wrong=%d",
                      stream_number(stream), directions[found], size, kind, to, from, wrong);
    if (failed || wrong) return failed ? failed : keep(INVALID_VALUE);
    memmove(target, source, size);
    return 0;
}
int cudaMemcpy(void *target, const void *source, size_t size, int kind) {
    return copy("cudaMemcpy", target, source, size, kind, NULL);
}
int cudaMemcpyAsync(void *target, const void *source, size_t size, int kind, struct stream *stream) {
    return copy("cudaMemcpyAsync", target, source, size, kind, stream);
}
static int fill(const char *name, void *target, int value, size_t size, struct stream *stream) {
    int wrong = place_of(target, size) < 0;
    int failed = call(name, LAUNCH_FAILED, "stream=%d bytes=%zu wrong=%d", stream_number(stream), size, wrong);
    if (failed || wrong) return failed ? failed : keep(INVALID_VALUE);
    memset(target, value, size);
    return 0;
}
int cudaMemset(void *target, int value, size_t size) { return fill("cudaMemset", target, value, size, NULL); }
int cudaMemsetAsync(void *target, int value, size_t size, struct stream *stream) {
    return fill("cudaMemsetAsync", target, value, size, stream);
}

/* Streams and events. */

static int make_stream(const char *name, struct stream **stream, unsigned flags) {
    static int streams;
    struct stream new = {__sync_add_and_fetch(&streams, 1), current_device()};
    int failed = call(name, LAUNCH_FAILED, "stream=%d flags=%u", new.number, flags);
    *stream = NULL;
    if (failed) return failed;
    *stream = malloc(sizeof new);
    **stream = new;
    return 0;
}
int cudaStreamCreate(struct stream **stream) { return make_stream("cudaStreamCreate", stream, 0); }
int cudaStreamCreateWithFlags(struct stream **stream, unsigned flags) {
    return make_stream("cudaStreamCreateWithFlags", stream, flags);
}
int cudaStreamDestroy(struct stream *stream) {
    int failed = call("cudaStreamDestroy", LAUNCH_FAILED, "stream=%d", stream_number(stream));
    free(stream);
    return failed;
}
int cudaStreamSynchronize(struct stream *stream) {
    wait_for(stream);
    return call("cudaStreamSynchronize", LAUNCH_FAILED, "stream=%d", stream_number(stream));
}
int cudaStreamWaitEvent(struct stream *stream) {
    return call("cudaStreamWaitEvent", LAUNCH_FAILED, "stream=%d", stream_number(stream));
}
int cudaStreamIsCapturing(struct stream *stream, int *status) { (void)stream; *status = 0; return 0; }
int cudaEventCreate(void **event) { *event = malloc(1); return call("cudaEventCreate", LAUNCH_FAILED, "made=1"); }
int cudaEventCreateWithFlags(void **event) { return cudaEventCreate(event); }
int cudaEventDestroy(void *event) { free(event); return 0; }
ACCEPT(cudaEventRecord)
ACCEPT(cudaEventSynchronize)
ACCEPT(cudaDeviceSynchronize)

#include "refused_cudart.h"
