/* A stand-in for libcudnn 9: descriptors remember the little that is asked for. Names and values: cudnn_graph.h. */
#define FAILED 5000
#define NOT_SUPPORTED 3000
#include "handles.h"

#include <string.h>

#define BAD_PARAMETER 2000
#define MAX_POINTERS 32
enum { TYPE_INT64 = 3, TYPE_NUMERICAL_NOTE = 11, TYPE_DESCRIPTOR = 15, TYPE_INT32 = 23 };
enum { KNOB_CHOICES = 302, DATA_POINTERS = 1001, KNOB_INFO = 1302, NUMERICAL_NOTE = 1303, BEHAVIOR_NOTE = 1305 };

struct descriptor {
    int type;
    int finalized;
    long count; /* of a variant pack */
    const void *pointers[MAX_POINTERS];
};

size_t cudnnGetVersion(void) { return 91300; }
const char *cudnnGetErrorString(int status) {
    return status == NOT_SUPPORTED ? "CUDNN_STATUS_NOT_SUPPORTED" : "CUDNN_STATUS_EXECUTION_FAILED";
}
void cudnnGetLastErrorString(char *text, size_t size) { if (size) *text = 0; }

CREATE(cudnnCreate)
ACCEPT(cudnnDestroy)
SET_STREAM(cudnnSetStream)
int cudnnGetStream(struct handle *handle, struct stream **stream) { *stream = handle->stream; return 0; }

/* Graphs, which the front end in the provider builds of descriptors. One engine without knobs takes each. */

int cudnnBackendCreateDescriptor(int type, struct descriptor **descriptor) {
    *descriptor = calloc(1, sizeof **descriptor);
    (*descriptor)->type = type;
    return call("cudnnBackendCreateDescriptor", FAILED, "type=%d", type);
}
int cudnnBackendDestroyDescriptor(struct descriptor *descriptor) { free(descriptor); return 0; }
int cudnnBackendFinalize(struct descriptor *descriptor) {
    descriptor->finalized = 1;
    return call("cudnnBackendFinalize", NOT_SUPPORTED, "type=%d", descriptor->type);
}
int cudnnBackendSetAttribute(struct descriptor *descriptor, int name, int type, long count, const void *values) {
    (void)type;
    if (descriptor->finalized) return BAD_PARAMETER;
    if (name == DATA_POINTERS) {
        if (count > MAX_POINTERS) return NOT_SUPPORTED;
        descriptor->count = count;
        memcpy(descriptor->pointers, values, count * sizeof(void *));
    }
    return 0;
}
int cudnnBackendGetAttribute(void *descriptor, int name, int type, long requested, long *count, void *values) {
    int none = name == KNOB_CHOICES || name == KNOB_INFO || name == NUMERICAL_NOTE || name == BEHAVIOR_NOTE;
    (void)descriptor;
    if (count) *count = none ? 0 : 1;
    if (none || !values || requested < 1 || type == TYPE_DESCRIPTOR) return 0;
    if (type == TYPE_INT64) *(long *)values = 0;
    else if (type == TYPE_INT32) *(int *)values = 0;
    else return NOT_SUPPORTED;
    return 0;
}
int cudnnBackendExecute(struct handle *handle, struct descriptor *plan, struct descriptor *pack) {
    int elsewhere = 0;
    (void)plan;
    for (long i = 0; i < pack->count; i++) elsewhere += place_of(pack->pointers[i], 0) != handle->device;
    int failed = call("cudnnBackendExecute", FAILED, "stream=%d pointers=%ld elsewhere=%d",
                      stream_number(handle->stream), pack->count, elsewhere);
    return failed ? failed : elsewhere ? BAD_PARAMETER : 0;
}

/* The older functions. */

MAKE(cudnnCreateActivationDescriptor)
MAKE(cudnnCreateConvolutionDescriptor)
MAKE(cudnnCreateFilterDescriptor)
MAKE(cudnnCreatePoolingDescriptor)
MAKE(cudnnCreateReduceTensorDescriptor)
MAKE(cudnnCreateTensorDescriptor)
ACCEPT(cudnnDestroyActivationDescriptor)
ACCEPT(cudnnDestroyConvolutionDescriptor)
ACCEPT(cudnnDestroyFilterDescriptor)
ACCEPT(cudnnDestroyPoolingDescriptor)
ACCEPT(cudnnDestroyReduceTensorDescriptor)
ACCEPT(cudnnDestroyTensorDescriptor)
ACCEPT(cudnnSetActivationDescriptor)
ACCEPT(cudnnSetConvolutionGroupCount)
ACCEPT(cudnnSetConvolutionMathType)
ACCEPT(cudnnSetConvolutionNdDescriptor)
ACCEPT(cudnnSetFilterNdDescriptor)
ACCEPT(cudnnSetPoolingNdDescriptor)
ACCEPT(cudnnSetReduceTensorDescriptor)
ACCEPT(cudnnSetTensorNdDescriptor)
ACCEPT(cudnnDeriveBNTensorDescriptor)
COMPUTE(cudnnActivationForward)
COMPUTE(cudnnAddTensor)
COMPUTE(cudnnBatchNormalizationForwardInference)
COMPUTE(cudnnBatchNormalizationForwardTraining)
COMPUTE(cudnnConvolutionBiasActivationForward)
COMPUTE(cudnnConvolutionForward)
COMPUTE(cudnnPoolingForward)
COMPUTE(cudnnReduceTensor)
int cudnnGetReductionWorkspaceSize(struct handle *handle, void *reduce, void *a, void *c, size_t *size) {
    (void)handle, (void)reduce, (void)a, (void)c;
    *size = 0;
    return 0;
}
int cudnnGetReductionIndicesSize(struct handle *handle, void *reduce, void *a, void *c, size_t *size) {
    return cudnnGetReductionWorkspaceSize(handle, reduce, a, c, size);
}

#include "refused_cudnn.h"
