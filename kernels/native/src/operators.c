/* The operators of domain `tintype`, as ONNX Runtime calls them: attributes and shapes are checked here, kernels.h has
   what is computed. */
#include <stdlib.h>
#include <string.h>

#include "kernels.h"
#include "ort.h"

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#else
#define EXPORTED __attribute__((visibility("default")))
#endif

#include "tensors.h"

#include "float_nodes.h"

#include "integer_nodes.h"

#include "four_bit_nodes.h"

static OrtStatus *create(const OrtCustomOp *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)operator;
  int64_t rank = -1; /* of the set of instructions: for tests alone */
  Node *node = calloc(1, sizeof *node);
  if (!node) return CreateStatus(api)(ORT_FAIL, "no memory");
  *node = (Node){.api = api, .groups = 1, .epsilon = 1e-5f, .heads = 1, .scale = 1.0f, .stride = 1, .next_scale = 1.0f};
  read_int(api, info, "groups", &node->groups);
  read_int(api, info, "silu", &node->silu);
  read_float(api, info, "epsilon", &node->epsilon);
  read_int(api, info, "heads", &node->heads);
  read_int(api, info, "bfloat16", &node->bfloat16);
  read_int(api, info, "rounded", &node->rounded);
  read_float(api, info, "scale", &node->scale);
  read_int(api, info, "activation", &node->activation);
  read_int(api, info, "stride", &node->stride);
  read_int(api, info, "padding", &node->padding);
  read_int(api, info, "zero", &node->zero);
  read_int(api, info, "upsampled", &node->upsampled);
  read_int(api, info, "rectified", &node->rectified);
  read_float(api, info, "next_scale", &node->next_scale);
  read_int(api, info, "next_zero", &node->next_zero);
  read_int(api, info, "next_padding", &node->next_padding);
  read_int(api, info, "instructions", &rank);
  node->kernels = rank < 0 ? best_kernels() : rank < 8 ? kernels_of_rank((int)rank) : NULL;
  int lacks = node->kernels && ((node->bfloat16 && !node->kernels->attention_half.attend) ||
                                (node->rounded && !node->kernels->four_bit_integers));
  if (!node->kernels || lacks) {
    free(node);
    return refuse(api, "this processor hasn't these instructions");
  }
  *kernel = node;
  return NULL;
}

static OrtStatus *create_integers(const OrtCustomOp *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  RETURN_IF(create(operator, api, info, kernel));
  if (((Node *)*kernel)->kernels->integer_linear) return NULL;
  free(*kernel);
  return refuse(api, "this processor hasn't these instructions");
}

static OrtStatus *compute_group_norm(void *kernel, OrtKernelContext *context) { return group_norm(kernel, context); }
static OrtStatus *compute_winograd(void *kernel, OrtKernelContext *context) { return winograd(kernel, context); }
static OrtStatus *compute_pointwise(void *kernel, OrtKernelContext *context) { return pointwise(kernel, context); }
static OrtStatus *compute_attention(void *kernel, OrtKernelContext *context) { return attention(kernel, context); }
static OrtStatus *compute_linear(void *kernel, OrtKernelContext *context) { return linear(kernel, context); }
static OrtStatus *compute_integers(void *kernel, OrtKernelContext *context) { return integer_linear(kernel, context); }
static OrtStatus *compute_four_bits(void *kernel, OrtKernelContext *context) { return four_bits(kernel, context); }
static OrtStatus *compute_conv(void *kernel, OrtKernelContext *context) { return integer_conv(kernel, context); }

/* The output has the shape of the first input; of the third one the number of channels, or of columns. */
static OrtStatus *infer_as_first(const OrtCustomOp *operator, OrtShapeInferContext *context);
static OrtStatus *infer_channels(const OrtCustomOp *operator, OrtShapeInferContext *context);
static OrtStatus *infer_columns(const OrtCustomOp *operator, OrtShapeInferContext *context);
static OrtStatus *infer_nothing(const OrtCustomOp *operator, OrtShapeInferContext *context) { /* builds say it */
  return (void)operator, (void)context, NULL;
}

static const char *group_norm_name(const OrtCustomOp *operator) { return (void)operator, "GroupNormSilu"; }
static const char *attention_name(const OrtCustomOp *operator) { return (void)operator, "HeadsAttention"; }
static const char *winograd_name(const OrtCustomOp *operator) { return (void)operator, "WinogradConv"; }
static const char *pointwise_name(const OrtCustomOp *operator) { return (void)operator, "PointwiseConv"; }
static const char *linear_name(const OrtCustomOp *operator) { return (void)operator, "LinearLayer"; }
static const char *integers_name(const OrtCustomOp *operator) { return (void)operator, "IntegerLinear"; }
static const char *four_bits_name(const OrtCustomOp *operator) { return (void)operator, "FourBitLinear"; }
static const char *integer_conv_name(const OrtCustomOp *operator) { return (void)operator, "IntegerConv"; }
static const char *processor(const OrtCustomOp *operator) { return (void)operator, "CPUExecutionProvider"; }
static int float_type(const OrtCustomOp *operator, size_t index) { return (void)operator, (void)index, ORT_FLOAT; }
static int weights_type(const OrtCustomOp *operator, size_t index) { /* as it is called, they are looked at */
  return (void)operator, index == 1 ? ORT_ANY : ORT_FLOAT;
}
static int integers_type(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index == 1 ? ORT_INT8 : index == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int conv_type(const OrtCustomOp *operator, size_t index) {
  return index == 9 ? ORT_UINT8 : integers_type(operator, index);
}
static int conv_output_type(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index == 1 ? ORT_UINT8 : ORT_FLOAT;
}
static int four_bits_type(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index == 1 || index == 4 ? ORT_UINT8 : index == 3 ? ORT_FLOAT16 : ORT_FLOAT;
}
static int required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index < 3 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int five_required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index < 5 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int conv_required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index > 0 && index < 5 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int not_required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, (void)index, ORT_OPTIONAL;
}
static int in_memory(const OrtCustomOp *operator, size_t index) { return (void)operator, (void)index, ORT_MEMORY_DEFAULT; }
static int one(const OrtCustomOp *operator) { return (void)operator, 1; }
static size_t one_port(const OrtCustomOp *operator) { return (void)operator, 1; }
static size_t two_ports(const OrtCustomOp *operator) { return (void)operator, 2; }
static size_t three_ports(const OrtCustomOp *operator) { return (void)operator, 3; }
static size_t five_ports(const OrtCustomOp *operator) { return (void)operator, 5; }
static size_t six_ports(const OrtCustomOp *operator) { return (void)operator, 6; }
static size_t eight_ports(const OrtCustomOp *operator) { return (void)operator, 8; }
static size_t ten_ports(const OrtCustomOp *operator) { return (void)operator, 10; }

#define OPERATOR_OF(name, inputs, type, needed, outputs, output_type, output_needed, make, run, infer)                  \
  {.version = ORT_VERSION_ASKED, .GetName = (name), .GetExecutionProviderType = processor, .GetInputType = (type),      \
   .GetInputTypeCount = (inputs), .GetOutputType = (output_type), .GetOutputTypeCount = (outputs),                      \
   .KernelDestroy = free, .GetInputCharacteristic = (needed), .GetOutputCharacteristic = (output_needed),               \
   .GetInputMemoryType = in_memory,                                                                                     \
   .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one, .GetVariadicOutputMinArity = one,               \
   .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = (make), .KernelComputeV2 = (run),                             \
   .InferOutputShapeFn = (infer), .GetStartVersion = one, .GetEndVersion = one}
#define OPERATOR(name, inputs, type, needed, make, run, infer) \
  OPERATOR_OF(name, inputs, type, needed, one_port, float_type, required, make, run, infer)
#define OF_FLOATS(name, inputs, run, infer) OPERATOR(name, inputs, float_type, required, create, run, infer)

static const OrtCustomOp operators[] = {
    OF_FLOATS(group_norm_name, three_ports, compute_group_norm, infer_as_first),
    OF_FLOATS(attention_name, three_ports, compute_attention, infer_as_first),
    OPERATOR(winograd_name, five_ports, weights_type, required, create, compute_winograd, infer_channels),
    OF_FLOATS(pointwise_name, five_ports, compute_pointwise, infer_channels),
    OPERATOR(linear_name, six_ports, weights_type, required, create, compute_linear, infer_columns),
    OPERATOR(integers_name, eight_ports, integers_type, five_required, create_integers, compute_integers, infer_columns),
    OPERATOR(four_bits_name, eight_ports, four_bits_type, five_required, create, compute_four_bits, infer_columns),
    OPERATOR_OF(integer_conv_name, ten_ports, conv_type, conv_required, two_ports, conv_output_type, not_required,
                create_integers, compute_conv, infer_nothing),
};

static const OrtApi *shape_api; /* the function that infers shapes is given none */

static OrtStatus *infer_as_first(const OrtCustomOp *operator, OrtShapeInferContext *context) {
  (void)operator;
  OrtTensorShape *shape; /* stays the context's */
  OrtStatus *unknown = ShapeInferContext_GetInputTypeShape(shape_api)(context, 0, &shape);
  if (!unknown) return ShapeInferContext_SetOutputTypeShape(shape_api)(context, 0, shape);
  ReleaseStatus(shape_api)(unknown);
  return NULL;
}

/* The first input's shape with the third one's last dim at `place`, counted from the end where it is negative. Sizes
   that are names stay open: what a build leaves open, it says itself. */
static OrtStatus *infer_with(OrtShapeInferContext *context, int place) {
  const OrtApi *api = shape_api;
  OrtTensorShape *x, *bias, *made;
  int64_t dims[MOST_DIMS], of_bias[MOST_DIMS];
  size_t rank = 0, bias_rank = 0;
  OrtStatus *status = ShapeInferContext_GetInputTypeShape(api)(context, 0, &x);
  if (!status) status = ShapeInferContext_GetInputTypeShape(api)(context, 2, &bias);
  if (!status) status = GetDimensionsCount(api)(x, &rank);
  if (!status) status = GetDimensionsCount(api)(bias, &bias_rank);
  if (!status && rank && rank <= MOST_DIMS && bias_rank && bias_rank <= MOST_DIMS && place < (int)rank) {
    status = GetDimensions(api)(x, dims, rank);
    if (!status) status = GetDimensions(api)(bias, of_bias, bias_rank);
    dims[place < 0 ? (int)rank + place : place] = of_bias[bias_rank - 1];
    int known = !status;
    for (size_t i = 0; i < rank && known; i++) known = dims[i] >= 0;
    if (known) {
      RETURN_IF(CreateTensorShape(api)(&made));
      status = SetTensorElementType(api)(made, ORT_FLOAT);
      if (!status) status = SetDimensions(api)(made, dims, rank);
      if (!status) status = ShapeInferContext_SetOutputTypeShape(api)(context, 0, made);
      ReleaseTensorShape(api)(made);
    }
  }
  if (status) ReleaseStatus(api)(status);
  return NULL;
}

static OrtStatus *infer_channels(const OrtCustomOp *operator, OrtShapeInferContext *context) {
  return (void)operator, infer_with(context, 1);
}

static OrtStatus *infer_columns(const OrtCustomOp *operator, OrtShapeInferContext *context) {
  return (void)operator, infer_with(context, -1);
}

/* What ONNX Runtime looks for in a library of operators. The domain lives as long as the process, as the operators do:
   sessions keep pointers to it. */
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
  static OrtCustomOpDomain *domain;
  const OrtApi *api = base->GetApi(ORT_VERSION_ASKED);
  if (!api) {
    api = base->GetApi(ORT_VERSION_LEAST);
    return api ? CreateStatus(api)(ORT_FAIL, "this ONNX Runtime is older than 1.17") : NULL;
  }
  __atomic_store_n(&shape_api, api, __ATOMIC_RELEASE);
  if (!__atomic_load_n(&domain, __ATOMIC_ACQUIRE)) {
    OrtCustomOpDomain *made, *none = NULL;
    RETURN_IF(CreateCustomOpDomain(api)("tintype", &made));
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
      RETURN_IF(CustomOpDomain_Add(api)(made, &operators[i]));
    /* Of two threads that are here at once, one's is kept. */
    if (!__atomic_compare_exchange_n(&domain, &none, made, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
      ReleaseCustomOpDomain(api)(made);
  }
  return AddCustomOpDomain(api)(options, domain);
}

/* The name of the set of instructions of that rank, the last of which is used; NULL where this processor has no such set. */
EXPORTED const char *TintypeInstructions(int rank) {
  const Kernels *kernels = kernels_of_rank(rank);
  return kernels ? kernels->name : NULL;
}
