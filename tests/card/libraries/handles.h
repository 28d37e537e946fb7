/* Functions of cuBLAS and cuDNN, whose first argument is a handle with a stream. */
#include "shared.h"

#include <stdlib.h>

#define ACCEPT(name) int name(void) { return call(#name, FAILED, "accepted=1"); }
#define REFUSE(name) int name(void) { call(#name, 0, "refused=1"); return NOT_SUPPORTED; }
#define MAKE(name) int name(void **made) { *made = calloc(64, 8); return call(#name, FAILED, "made=1"); }
#define COMPUTE(name) int name(struct handle *handle) { \
    return call(#name, FAILED, "stream=%d", stream_number(handle->stream)); }
#define CREATE(name) int name(struct handle **handle) { *handle = make_handle(); return call(#name, FAILED, "made=1"); }
#define SET_STREAM(name) int name(struct handle *handle, struct stream *stream) { \
    handle->stream = stream; return call(#name, FAILED, "stream=%d", stream_number(stream)); }
