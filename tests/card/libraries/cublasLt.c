/* A stand-in for libcublasLt. */
#define FAILED 13
#define NOT_SUPPORTED 15
#include "handles.h"

CREATE(cublasLtCreate)
ACCEPT(cublasLtDestroy)

#include "refused_cublasLt.h"
