/* A stand-in for libcurand, of which the provider calls nothing. */
#define FAILED 1
#define NOT_SUPPORTED 1
#include "handles.h"

ACCEPT(curandCreateGenerator)

#include "refused_curand.h"
