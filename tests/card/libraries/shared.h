/* What the stand-ins for the CUDA libraries share. They compute nothing. */
#ifndef SHARED_H
#define SHARED_H

#include <stddef.h>

enum place { BEYOND = -3, HOST = -2, PINNED = -1 }; /* 0 and up: the memory of that device */

struct stream {
    int number; /* in the log; 0 is the default stream */
    int device;
};

struct handle { /* of cuBLAS or cuDNN */
    struct stream *stream;
    int device;
};

/* Log a call, and return 0, or `error` if this call was requested to fail. `details` is a printf format. */
int call(const char *name, int error, const char *details, ...) __attribute__((format(printf, 3, 4)));

int device_count(void);
int current_device(void);
int set_current_device(int device);
int stream_number(const struct stream *stream);
void wait_for(const struct stream *stream);
struct handle *make_handle(void);

/* Memory of the current device, or pinned; zeros. It is unmapped when freed: a later access ends the process. */
void *allocate(size_t size, int pinned);
int release(void *address, int pinned);
int place_of(const void *address, size_t size);

#endif
