/* A stand-in for libcublas. */
#define FAILED 13
#define NOT_SUPPORTED 15
#include "handles.h"

CREATE(cublasCreate_v2)
SET_STREAM(cublasSetStream_v2)
ACCEPT(cublasDestroy_v2)
ACCEPT(cublasSetMathMode)
COMPUTE(cublasSgeam) /* transposes */
const char *cublasGetStatusName(int status) {
    return status == NOT_SUPPORTED ? "CUBLAS_STATUS_NOT_SUPPORTED" : "CUBLAS_STATUS_EXECUTION_FAILED";
}
const char *cublasGetStatusString(int status) { return cublasGetStatusName(status); }

#include "refused_cublas.h"
