/* A stand-in for the driver, libcuda. */
#define FAILED 719
#define NOT_SUPPORTED 801
#include "handles.h"

#include <stdio.h>

int cuInit(unsigned flags) { return call("cuInit", 100, "flags=%u", flags); }
int cuDeviceGet(int *handle, int device) { *handle = device; return device >= 0 && device < device_count() ? 0 : 101; }
int cuDeviceGetName(char *name, int size, int handle) { (void)handle; snprintf(name, size, "NVIDIA H200"); return 0; }

#include "refused_cuda.h"
