/* What these operators use of ONNX Runtime's C interface, declared by hand: its wheels carry no header.

   OrtApi is a table of functions that only grows: a function keeps its place for good. Each macro says its place, and
   since which version of the interface it is there. All of them are there since version 17 (ONNX Runtime 1.17). */
#ifndef TINTYPE_ORT_H
#define TINTYPE_ORT_H

#include <stddef.h>
#include <stdint.h>

#define ORT_VERSION_ASKED 17 /* of the table, and of struct OrtCustomOp as far as we fill it in */
#define ORT_VERSION_LEAST 1  /* of a table that can at least make a status */

typedef struct OrtApi {
  void (*function[279])(void);
} OrtApi;
typedef struct OrtApiBase {
  const OrtApi *(*GetApi)(uint32_t version);
  const char *(*GetVersionString)(void);
} OrtApiBase;

typedef struct OrtStatus OrtStatus; /* NULL is success */
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtTensorShape OrtTensorShape; /* OrtTensorTypeAndShapeInfo */
typedef struct OrtValue OrtValue;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtCustomOp OrtCustomOp;

enum { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };             /* OrtErrorCode */
enum { ORT_ANY = 0, ORT_FLOAT = 1, ORT_UINT8 = 2, ORT_INT8 = 3, ORT_INT32 = 6, ORT_FLOAT16 = 10 }; /* ONNXTensorElementDataType */
enum { ORT_REQUIRED = 0, ORT_OPTIONAL = 1 };                                   /* OrtCustomOpInputOutputCharacteristic */
enum { ORT_ARENA_ALLOCATOR = 1, ORT_MEMORY_DEFAULT = 0 };    /* OrtAllocatorType, OrtMemType */

struct OrtCustomOp {
  uint32_t version; /* how many of the fields below are there */
  void *(*CreateKernel)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *);
  const char *(*GetName)(const OrtCustomOp *);
  const char *(*GetExecutionProviderType)(const OrtCustomOp *);
  int (*GetInputType)(const OrtCustomOp *, size_t);
  size_t (*GetInputTypeCount)(const OrtCustomOp *);
  int (*GetOutputType)(const OrtCustomOp *, size_t);
  size_t (*GetOutputTypeCount)(const OrtCustomOp *);
  void (*KernelCompute)(void *, OrtKernelContext *);
  void (*KernelDestroy)(void *);
  int (*GetInputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp *, size_t);
  int (*GetInputMemoryType)(const OrtCustomOp *, size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp *);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp *);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp *);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp *);
  /* since version 16: in place of CreateKernel and KernelCompute, with a status */
  OrtStatus *(*CreateKernelV2)(const OrtCustomOp *, const OrtApi *, const OrtKernelInfo *, void **kernel);
  OrtStatus *(*KernelComputeV2)(void *kernel, OrtKernelContext *);
  /* since version 17 */
  OrtStatus *(*InferOutputShapeFn)(const OrtCustomOp *, OrtShapeInferContext *);
  int (*GetStartVersion)(const OrtCustomOp *);
  int (*GetEndVersion)(const OrtCustomOp *);
};

#define ORT_CALL(api, place, ...) ((OrtStatus * (*)(__VA_ARGS__))(api)->function[place])

/* since version 1 */
#define CreateStatus(api) ORT_CALL(api, 0, int code, const char *message)
#define CreateCustomOpDomain(api) ORT_CALL(api, 26, const char *name, OrtCustomOpDomain **)
#define CustomOpDomain_Add(api) ORT_CALL(api, 27, OrtCustomOpDomain *, const OrtCustomOp *)
#define AddCustomOpDomain(api) ORT_CALL(api, 28, OrtSessionOptions *, OrtCustomOpDomain *)
#define GetTensorMutableData(api) ORT_CALL(api, 51, OrtValue *, void **data)
#define CreateTensorShape(api) ORT_CALL(api, 57, OrtTensorShape **)
#define SetTensorElementType(api) ORT_CALL(api, 58, OrtTensorShape *, int type)
#define SetDimensions(api) ORT_CALL(api, 59, OrtTensorShape *, const int64_t *dims, size_t count)
#define GetTensorElementType(api) ORT_CALL(api, 60, const OrtTensorShape *, int *)
#define GetDimensionsCount(api) ORT_CALL(api, 61, const OrtTensorShape *, size_t *)
#define GetDimensions(api) ORT_CALL(api, 62, const OrtTensorShape *, int64_t *dims, size_t count)
#define GetTensorTypeAndShape(api) ORT_CALL(api, 65, const OrtValue *, OrtTensorShape **)
#define CreateCpuMemoryInfo(api) ORT_CALL(api, 69, int allocator, int memory, OrtMemoryInfo **)
#define AllocatorAlloc(api) ORT_CALL(api, 75, OrtAllocator *, size_t bytes, void **)
#define AllocatorFree(api) ORT_CALL(api, 76, OrtAllocator *, void *)
#define KernelInfoGetAttribute_float(api) ORT_CALL(api, 85, const OrtKernelInfo *, const char *name, float *)
#define KernelInfoGetAttribute_int64(api) ORT_CALL(api, 86, const OrtKernelInfo *, const char *name, int64_t *)
#define KernelContext_GetInputCount(api) ORT_CALL(api, 88, const OrtKernelContext *, size_t *)
#define KernelContext_GetOutputCount(api) ORT_CALL(api, 89, const OrtKernelContext *, size_t *)
#define KernelContext_GetInput(api) ORT_CALL(api, 90, const OrtKernelContext *, size_t index, OrtValue **)
#define KernelContext_GetOutput(api) \
  ORT_CALL(api, 91, OrtKernelContext *, size_t index, const int64_t *dims, size_t count, OrtValue **)
#define ReleaseStatus(api) ((void (*)(OrtStatus *))(api)->function[93])
#define ReleaseMemoryInfo(api) ((void (*)(OrtMemoryInfo *))(api)->function[94])
#define ReleaseTensorShape(api) ((void (*)(OrtTensorShape *))(api)->function[99])
#define ReleaseCustomOpDomain(api) ((void (*)(OrtCustomOpDomain *))(api)->function[101])
/* since version 5 */
#define ReleaseAllocator(api) ((void (*)(OrtAllocator *))(api)->function[132])
/* since version 15 */
#define KernelContext_GetAllocator(api) \
  ORT_CALL(api, 253, const OrtKernelContext *, const OrtMemoryInfo *, OrtAllocator **)
/* since version 17 */
#define ShapeInferContext_GetInputTypeShape(api) \
  ORT_CALL(api, 268, const OrtShapeInferContext *, size_t index, OrtTensorShape **)
#define ShapeInferContext_SetOutputTypeShape(api) \
  ORT_CALL(api, 270, const OrtShapeInferContext *, size_t index, const OrtTensorShape *)
#define KernelContext_ParallelFor(api) \
  ORT_CALL(api, 274, const OrtKernelContext *, void (*)(void *, size_t index), size_t total, size_t batches, void *)

#endif
