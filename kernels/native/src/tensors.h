/* What a node is given by ONNX Runtime: attributes, tensors, memory for the time of a call; part of operators.c. */
#define RETURN_IF(call)          \
  do {                           \
    OrtStatus *status_ = (call); \
    if (status_) return status_; \
  } while (0)

enum { MOST_DIMS = 8 };

/* A node: what its attributes say. */
typedef struct {
  const OrtApi *api;
  const Kernels *kernels;
  int64_t groups, silu, heads, bfloat16, rounded, activation, stride, padding, zero, upsampled, rectified;
  int64_t next_zero, next_padding;
  float epsilon, scale, next_scale;
} Node;

/* A tensor: its shape, and where its numbers are, of which type. */
typedef struct {
  void *data;
  int type;
  size_t rank;
  int64_t dims[MOST_DIMS];
} Tensor;

static OrtStatus *refuse(const OrtApi *api, const char *why) { return CreateStatus(api)(ORT_INVALID_ARGUMENT, why); }

/* The attribute, or what is there already where the node has none. */
static void read_int(const OrtApi *api, const OrtKernelInfo *info, const char *name, int64_t *value) {
  OrtStatus *missing = KernelInfoGetAttribute_int64(api)(info, name, value);
  if (missing) ReleaseStatus(api)(missing);
}

static void read_float(const OrtApi *api, const OrtKernelInfo *info, const char *name, float *value) {
  OrtStatus *missing = KernelInfoGetAttribute_float(api)(info, name, value);
  if (missing) ReleaseStatus(api)(missing);
}

static OrtStatus *read_shape(const OrtApi *api, const OrtValue *value, Tensor *tensor) {
  OrtTensorShape *shape;
  RETURN_IF(GetTensorTypeAndShape(api)(value, &shape));
  OrtStatus *status = GetTensorElementType(api)(shape, &tensor->type);
  if (!status) status = GetDimensionsCount(api)(shape, &tensor->rank);
  if (!status && tensor->rank > MOST_DIMS) status = refuse(api, "a tensor of more than 8 dimensions");
  if (!status) status = GetDimensions(api)(shape, tensor->dims, tensor->rank);
  ReleaseTensorShape(api)(shape);
  return status;
}

static OrtStatus *read_input(const OrtApi *api, const OrtKernelContext *context, size_t index, Tensor *tensor) {
  OrtValue *value;
  RETURN_IF(KernelContext_GetInput(api)(context, index, &value));
  RETURN_IF(read_shape(api, value, tensor));
  return GetTensorMutableData(api)(value, &tensor->data);
}

/* The same; its data is NULL where the node has no such input. */
static OrtStatus *read_optional(const OrtApi *api, const OrtKernelContext *context, size_t index, Tensor *tensor) {
  size_t count;
  OrtValue *value = NULL;
  *tensor = (Tensor){0};
  RETURN_IF(KernelContext_GetInputCount(api)(context, &count));
  if (index < count) RETURN_IF(KernelContext_GetInput(api)(context, index, &value));
  return value ? read_input(api, context, index, tensor) : NULL;
}

static int same_shape(const Tensor *one, const Tensor *other) {
  return one->rank == other->rank && !memcmp(one->dims, other->dims, one->rank * sizeof *one->dims);
}

/* Its data is NULL where the node has no such output. */
static OrtStatus *make_nth_output(const OrtApi *api, OrtKernelContext *context, size_t index, Tensor *tensor) {
  size_t count;
  OrtValue *value = NULL;
  tensor->data = NULL;
  RETURN_IF(KernelContext_GetOutputCount(api)(context, &count));
  if (index < count) RETURN_IF(KernelContext_GetOutput(api)(context, index, tensor->dims, tensor->rank, &value));
  return value ? GetTensorMutableData(api)(value, &tensor->data) : NULL;
}

static OrtStatus *make_output(const OrtApi *api, OrtKernelContext *context, Tensor *tensor) {
  return make_nth_output(api, context, 0, tensor);
}

static size_t product(const int64_t *dims, size_t count) {
  size_t numbers = 1;
  for (size_t i = 0; i < count; i++) numbers *= (size_t)dims[i];
  return numbers;
}

/* Memory for the time of a call, from the arena that the session's tensors come from. */
typedef struct {
  const OrtApi *api;
  OrtAllocator *allocator;
  void *data;
} Scratch;

static OrtStatus *take_scratch(const OrtApi *api, const OrtKernelContext *context, size_t bytes, Scratch *scratch) {
  OrtMemoryInfo *memory;
  *scratch = (Scratch){.api = api};
  RETURN_IF(CreateCpuMemoryInfo(api)(ORT_ARENA_ALLOCATOR, ORT_MEMORY_DEFAULT, &memory));
  OrtStatus *status = KernelContext_GetAllocator(api)(context, memory, &scratch->allocator);
  ReleaseMemoryInfo(api)(memory);
  if (!status) status = AllocatorAlloc(api)(scratch->allocator, bytes, &scratch->data);
  return status;
}

static void release_scratch(Scratch *scratch) {
  OrtStatus *status = scratch->data ? AllocatorFree(scratch->api)(scratch->allocator, scratch->data) : NULL;
  if (status) ReleaseStatus(scratch->api)(status);
  if (scratch->allocator) ReleaseAllocator(scratch->api)(scratch->allocator);
}
