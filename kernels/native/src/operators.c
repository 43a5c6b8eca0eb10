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
  int64_t groups, silu, heads, bfloat16, activation, stride, padding, zero;
  float epsilon, scale;
} Node;

/* A tensor: its shape, and where its numbers are, which the operator knows the type of. */
typedef struct {
  void *data;
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
  OrtStatus *status = GetDimensionsCount(api)(shape, &tensor->rank);
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

static OrtStatus *make_output(const OrtApi *api, OrtKernelContext *context, Tensor *tensor) {
  OrtValue *value;
  RETURN_IF(KernelContext_GetOutput(api)(context, 0, tensor->dims, tensor->rank, &value));
  return GetTensorMutableData(api)(value, &tensor->data);
}

static size_t product(const int64_t *dims, size_t count) {
  size_t numbers = 1;
  for (size_t i = 0; i < count; i++) numbers *= (size_t)dims[i];
  return numbers;
}

/* GroupNormSilu: x (batch, channels, ...), scale (channels), bias (channels) -> y as x. Attributes: groups, epsilon,
   silu (0 leaves it out). */
static OrtStatus *group_norm(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  Tensor x, scale, bias;
  RETURN_IF(read_input(api, context, 0, &x));
  RETURN_IF(read_input(api, context, 1, &scale));
  RETURN_IF(read_input(api, context, 2, &bias));
  if (x.rank < 3) return refuse(api, "GroupNormSilu: x has fewer than 3 dimensions");
  if (node->groups < 1 || x.dims[1] % node->groups) return refuse(api, "GroupNormSilu: channels don't make groups");
  if (scale.rank != 1 || bias.rank != 1 || scale.dims[0] != x.dims[1] || bias.dims[0] != x.dims[1])
    return refuse(api, "GroupNormSilu: scale and bias have to have a number for each channel");
  Tensor y = x;
  RETURN_IF(make_output(api, context, &y));
  if (!product(x.dims, x.rank)) return NULL;
  GroupNorm task = {x.data,
                    scale.data,
                    bias.data,
                    y.data,
                    (size_t)x.dims[1],
                    (size_t)node->groups,
                    product(x.dims + 2, x.rank - 2),
                    node->epsilon,
                    (int)node->silu};
  size_t groups = (size_t)x.dims[0] * task.groups;
  return KernelContext_ParallelFor(api)(context, node->kernels->group_norm, groups, 0, &task);
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

/* HeadsAttention: q (batch, queries, heads * size), k and v (batch, keys, heads * size) -> as q. Attributes: heads,
   scale, bfloat16 (1 rounds what is multiplied). */
static OrtStatus *attention(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Tensor q, k, v;
  RETURN_IF(read_input(api, context, 0, &q));
  RETURN_IF(read_input(api, context, 1, &k));
  RETURN_IF(read_input(api, context, 2, &v));
  if (q.rank != 3 || k.rank != 3 || v.rank != 3) return refuse(api, "HeadsAttention: q, k and v have 3 dimensions");
  int64_t width = q.dims[2], batch = q.dims[0];
  if (k.dims[0] != batch || v.dims[0] != batch || k.dims[1] != v.dims[1] || k.dims[2] != width || v.dims[2] != width)
    return refuse(api, "HeadsAttention: q, k and v don't go together");
  if (node->heads < 1 || width % node->heads || width / node->heads > ATTENTION_MOST_SIZE || !width)
    return refuse(api, "HeadsAttention: the width doesn't make heads of 160 at most");
  if (!k.dims[1]) return refuse(api, "HeadsAttention: there is no key");
  Tensor o = q;
  RETURN_IF(make_output(api, context, &o));
  if (!product(q.dims, 3)) return NULL;
  Attention task = {.q = q.data, .k = k.data, .v = v.data, .o = o.data, .scale = node->scale};
  task.heads = (size_t)node->heads, task.size = (size_t)(width / node->heads);
  task.queries = (size_t)q.dims[1], task.keys = (size_t)k.dims[1];
  int half = node->bfloat16 != 0;
  size_t heads = (size_t)batch * task.heads;
  size_t keys = heads * (half ? kernels->attention_half_keys : kernels->attention_packed_keys)(&task);
  size_t values = heads * (half ? kernels->attention_half_values : kernels->attention_packed_values)(&task);
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, (keys + values) * sizeof(float), &scratch);
  if (!status) {
    task.packed_keys = scratch.data, task.packed_values = task.packed_keys + keys;
    size_t pieces = heads * kernels->attention_pieces(&task), blocks = heads * kernels->attention_blocks(&task);
    void (*pack)(void *, size_t) = half ? kernels->attention_half_pack : kernels->attention_pack;
    status = KernelContext_ParallelFor(api)(context, pack, pieces, 0, &task);
    void (*attend)(void *, size_t) = half ? kernels->attention_half : kernels->attention;
    if (!status) status = KernelContext_ParallelFor(api)(context, attend, blocks, 0, &task);
  }
  release_scratch(&scratch);
  return status;
}

/* Numbers between the steps of a strip: half as many as there are weights, which each strip reads anew, 6 to 24 MiB.
   Whether it is twice that or a fourth changes little in time. */
enum { LEAST_STRIP = 3 << 19, MOST_STRIP = 6 << 20 };

static OrtStatus *winograd_strips(const Node *node, OrtKernelContext *context, Winograd *task, size_t tiles) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  task->panel = kernels->winograd_panel(tiles);
  size_t strip = (tiles + task->panel - 1) / task->panel * task->panel, each = 36 * (task->inputs + task->outputs);
  size_t most = 36 * task->inputs * task->outputs / 2;
  most = most < LEAST_STRIP ? LEAST_STRIP : most > MOST_STRIP ? MOST_STRIP : most;
  if (strip * each > most) strip = most / each / task->panel * task->panel;
  task->room = strip ? strip : task->panel;
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, kernels->winograd_scratch(task) * sizeof(float), &scratch);
  task->scratch = scratch.data;
  for (strip = task->room; !status && task->first < tiles; task->first += strip) {
    task->tiles = tiles - task->first < strip ? tiles - task->first : strip;
    task->room = (task->tiles + task->panel - 1) / task->panel * task->panel;
    status = KernelContext_ParallelFor(api)(context, kernels->winograd_input, task->inputs, 0, task);
    size_t products = kernels->winograd_products(task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->winograd_multiply, products, 0, task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->winograd_output, task->outputs, 0, task);
  }
  release_scratch(&scratch);
  return status;
}

static OrtStatus *few_tiles(const Node *node, OrtKernelContext *context, Winograd *task, size_t tiles) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  task->tiles = tiles < FEW_TILES ? tiles : FEW_TILES;
  task->panel = task->room = (task->tiles + 15) / 16 * 16;
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, kernels->few_scratch(task) * sizeof(float), &scratch);
  task->scratch = scratch.data;
  for (; !status && task->first < tiles; task->first += FEW_TILES) {
    if (tiles - task->first < FEW_TILES) task->tiles = tiles - task->first;
    status = KernelContext_ParallelFor(api)(context, kernels->winograd_input, task->inputs, 0, task);
    size_t blocks = kernels->few_tasks(task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->few_tiles, blocks, 0, task);
  }
  release_scratch(&scratch);
  return status;
}

/* A number for each channel, added to every pixel of an image or of all of them. */
static int is_shift(const Tensor *shift, const Tensor *y) {
  const int64_t shape[4] = {shift->dims[0] == 1 ? 1 : y->dims[0], y->dims[1], 1, 1};
  return shift->rank == 4 && !memcmp(shift->dims, shape, sizeof shape);
}

/* WinogradConv: x (batch, inputs, height, width); weights, transformed (36, blocks, inputs, 10) or as they are (blocks,
   inputs, 9, 32); bias (outputs); and what is added: shift (batch or 1, outputs, 1, 1), to every pixel, and added, as y -> y
   (batch, outputs, height, width). */
static OrtStatus *winograd(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  Tensor x, weights, bias, shift, added;
  RETURN_IF(read_input(api, context, 0, &x));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_optional(api, context, 3, &shift));
  RETURN_IF(read_optional(api, context, 4, &added));
  if (x.rank != 4 || weights.rank != 4 || bias.rank != 1)
    return refuse(api, "WinogradConv: x and weights have 4 dimensions, and bias 1");
  int few = weights.dims[3] == FEW_OUTPUTS;
  int64_t each = few ? FEW_OUTPUTS : WINOGRAD_OUTPUTS, blocks = (bias.dims[0] + each - 1) / each, inputs = x.dims[1];
  const int64_t transformed[4] = {36, blocks, inputs, each}, filters[4] = {blocks, inputs, 9, each};
  if (memcmp(weights.dims, few ? filters : transformed, sizeof filters))
    return refuse(api, "WinogradConv: the weights are not those of such channels");
  Tensor y = x;
  y.dims[1] = bias.dims[0];
  if (shift.data && !is_shift(&shift, &y))
    return refuse(api, "WinogradConv: the shift has to have a number for each channel, of each image or of all");
  if (added.data && !same_shape(&added, &y))
    return refuse(api, "WinogradConv: what is added has another shape than the output");
  RETURN_IF(make_output(api, context, &y));
  if (!product(y.dims, 4)) return NULL;
  Winograd task = {.x = x.data, .weights = weights.data, .bias = bias.data, .y = y.data};
  task.shift = shift.data, task.added = added.data, task.shifts = shift.rank && shift.dims[0] == 1 ? 0 : (size_t)bias.dims[0];
  task.inputs = (size_t)inputs, task.outputs = (size_t)bias.dims[0];
  task.height = (size_t)x.dims[2], task.width = (size_t)x.dims[3];
  size_t tiles = (size_t)x.dims[0] * ((task.height + 3) / 4) * ((task.width + 3) / 4);
  return (few ? few_tiles : winograd_strips)(node, context, &task, tiles);
}

/* The sizes of a layer, whose bias is its third input and what is added its `place`th: x (..., inputs), bias (1, outputs),
   with a gate (2, outputs), added as y, y (..., outputs). Its output is made once the weights are known to be right. */
static OrtStatus *read_layer(const Node *node, OrtKernelContext *context, size_t place, Linear *task, Tensor *y) {
  const OrtApi *api = node->api;
  Tensor bias, added;
  RETURN_IF(read_input(api, context, 0, y));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_optional(api, context, place, &added));
  if (!y->rank || bias.rank != 2) return refuse(api, "a layer's bias has 2 dimensions, and x one at least");
  if (node->activation < LINEAR_PLAIN || node->activation > LINEAR_GEGLU)
    return refuse(api, "a layer has no such activation");
  *task = (Linear){.x = y->data, .bias = bias.data, .added = added.data, .activation = (int)node->activation};
  task->rows = product(y->dims, y->rank - 1), task->inputs = (size_t)y->dims[y->rank - 1];
  task->outputs = (size_t)bias.dims[1];
  if (bias.dims[0] != 1 + (task->activation == LINEAR_GEGLU) || !task->inputs)
    return refuse(api, "the weights are not those of such a layer");
  y->dims[y->rank - 1] = bias.dims[1];
  if (added.data && !same_shape(&added, y)) return refuse(api, "what is added has another shape than a layer's output");
  return NULL;
}

/* LinearLayer: x, weights (panels, inputs, 32), bias, and what is added. Attribute: activation, as kernels.h numbers them. */
static OrtStatus *linear(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Linear task;
  Tensor weights, y;
  RETURN_IF(read_layer(node, context, 3, &task, &y));
  RETURN_IF(read_input(api, context, 1, &weights));
  const int64_t fit[3] = {(int64_t)kernels->linear_panels(&task), (int64_t)task.inputs, LINEAR_COLUMNS};
  if (weights.rank != 3 || memcmp(weights.dims, fit, sizeof fit))
    return refuse(api, "LinearLayer: the weights are not those of such a layer");
  if (task.activation == LINEAR_GEGLU && task.inputs > LINEAR_MOST_INPUTS)
    return refuse(api, "LinearLayer: a gated layer has more than 1280 inputs");
  RETURN_IF(make_output(api, context, &y));
  if (!task.rows || !task.outputs) return NULL;
  task.weights = weights.data, task.y = y.data;
  return KernelContext_ParallelFor(api)(context, kernels->linear, kernels->linear_tasks(&task), 0, &task);
}

/* IntegerLinear: the same with weights (panels, inputs / 4, 32, 4), int8; bias; scales (panels, 32); totals (panels, 32), int32,
   sums of the weights; and what is added. */
static OrtStatus *integer_linear(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  IntegerLinear task = {0};
  Tensor weights, scales, totals, y;
  RETURN_IF(read_layer(node, context, 5, &task.layer, &y));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 3, &scales));
  RETURN_IF(read_input(api, context, 4, &totals));
  int64_t panels = (int64_t)kernels->linear_panels(&task.layer), fours = (int64_t)(task.layer.inputs + 3) / 4;
  const int64_t fit[4] = {panels, fours, LINEAR_COLUMNS, 4}, columns[2] = {panels, LINEAR_COLUMNS};
  if (weights.rank != 4 || scales.rank != 2 || totals.rank != 2 || memcmp(weights.dims, fit, sizeof fit) ||
      memcmp(scales.dims, columns, sizeof columns) || memcmp(totals.dims, columns, sizeof columns))
    return refuse(api, "IntegerLinear: the weights are not those of such a layer");
  if (task.layer.inputs > INTEGER_MOST_INPUTS) return refuse(api, "IntegerLinear: there are more than 65536 inputs");
  RETURN_IF(make_output(api, context, &y));
  if (!task.layer.rows || !task.layer.outputs) return NULL;
  task.weights = weights.data, task.scales = scales.data, task.totals = totals.data, task.layer.y = y.data;
  size_t blocks = (task.layer.rows + INTEGER_ROWS - 1) / INTEGER_ROWS, rows = blocks * INTEGER_ROWS;
  Scratch scratch;
  size_t each = (size_t)fours * sizeof *task.fours + sizeof *task.roundings;
  OrtStatus *status = take_scratch(api, context, rows * each, &scratch);
  if (!status) {
    task.fours = scratch.data, task.roundings = (Rounding *)(task.fours + rows * (size_t)fours);
    status = KernelContext_ParallelFor(api)(context, kernels->integer_round, blocks, 0, &task);
    size_t count = kernels->integer_tasks(&task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->integer_linear, count, 0, &task);
  }
  release_scratch(&scratch);
  return status;
}

/* IntegerConv: x (batch, inputs, height, width), weights (panels, rows, columns, inputs / 4, 32, 4), int8; bias, scales and
   totals (panels, 32), of the last int32; like (outputs), whatever its numbers; shift and added as WinogradConv has them.
   Attributes: scale and zero, by which x is rounded to uint8; stride; padding on each side. */
static OrtStatus *integer_conv(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Tensor x, weights, bias, scales, totals, like, shift, added;
  RETURN_IF(read_input(api, context, 0, &x));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_input(api, context, 3, &scales));
  RETURN_IF(read_input(api, context, 4, &totals));
  RETURN_IF(read_input(api, context, 5, &like));
  RETURN_IF(read_optional(api, context, 6, &shift));
  RETURN_IF(read_optional(api, context, 7, &added));
  if (x.rank != 4 || weights.rank != 6 || like.rank != 1)
    return refuse(api, "IntegerConv: x has 4 dimensions, weights have 6");
  int64_t outputs = like.dims[0], panels = (outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
  const int64_t columns[2] = {panels, LINEAR_COLUMNS}, *filter = weights.dims + 1;
  const int64_t fit[6] = {panels, filter[0], filter[1], (x.dims[1] + 3) / 4, LINEAR_COLUMNS, 4};
  const Tensor *of_columns[3] = {&bias, &scales, &totals};
  int fits = !memcmp(weights.dims, fit, sizeof fit) && x.dims[1] > 0;
  for (int i = 0; i < 3; i++)
    fits = fits && of_columns[i]->rank == 2 && !memcmp(of_columns[i]->dims, columns, sizeof columns);
  if (!fits || filter[0] < 1 || filter[1] < 1 || (size_t)(filter[0] * filter[1] * fit[3]) * 4 > INTEGER_MOST_INPUTS)
    return refuse(api, "IntegerConv: the weights are not those of such channels");
  if (node->stride < 1 || node->padding < 0 || node->zero < 0 || node->zero > 255 || !(node->scale > 0))
    return refuse(api, "IntegerConv: there is no such stride, padding or rounding");
  Tensor y = x;
  y.dims[1] = outputs;
  for (int i = 0; i < 2; i++) {
    int64_t room = x.dims[2 + i] + 2 * node->padding - filter[i];
    if (room < 0) return refuse(api, "IntegerConv: the filter is larger than the picture");
    y.dims[2 + i] = room / node->stride + 1;
  }
  if (shift.data && !is_shift(&shift, &y))
    return refuse(api, "IntegerConv: the shift has to have a number for each channel, of each image or of all");
  if (added.data && !same_shape(&added, &y))
    return refuse(api, "IntegerConv: what is added has another shape than the output");
  RETURN_IF(make_output(api, context, &y));
  if (!product(y.dims, 4)) return NULL;
  IntegerConv task = {.x = x.data, .weights = weights.data, .scales = scales.data, .totals = totals.data, .y = y.data};
  task.bias = bias.data, task.shift = shift.data, task.added = added.data;
  task.shifts = shift.rank && shift.dims[0] == 1 ? 0 : (size_t)outputs;
  task.images = (size_t)x.dims[0], task.inputs = (size_t)x.dims[1], task.outputs = (size_t)outputs;
  task.height = (size_t)x.dims[2], task.width = (size_t)x.dims[3];
  task.made_height = (size_t)y.dims[2], task.made_width = (size_t)y.dims[3];
  task.filter_height = (size_t)filter[0], task.filter_width = (size_t)filter[1];
  task.stride = (size_t)node->stride, task.padding = (size_t)node->padding;
  task.step = node->scale, task.zero = (int32_t)node->zero;
  size_t rows = task.images * (task.height + 2 * task.padding), row = (task.width + 2 * task.padding) * (size_t)fit[3] * 4;
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, rows * row, &scratch);
  if (!status) {
    task.bytes = scratch.data;
    status = KernelContext_ParallelFor(api)(context, kernels->integer_bytes, rows, 0, &task);
    size_t count = kernels->integer_conv_tasks(&task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->integer_conv, count, 0, &task);
  }
  release_scratch(&scratch);
  return status;
}

static OrtStatus *create(const OrtCustomOp *operator, const OrtApi *api, const OrtKernelInfo *info, void **kernel) {
  (void)operator;
  int64_t rank = -1; /* of the set of instructions: for tests alone */
  Node *node = calloc(1, sizeof *node);
  if (!node) return CreateStatus(api)(ORT_FAIL, "no memory");
  *node = (Node){.api = api, .groups = 1, .epsilon = 1e-5f, .heads = 1, .scale = 1.0f, .stride = 1};
  read_int(api, info, "groups", &node->groups);
  read_int(api, info, "silu", &node->silu);
  read_float(api, info, "epsilon", &node->epsilon);
  read_int(api, info, "heads", &node->heads);
  read_int(api, info, "bfloat16", &node->bfloat16);
  read_float(api, info, "scale", &node->scale);
  read_int(api, info, "activation", &node->activation);
  read_int(api, info, "stride", &node->stride);
  read_int(api, info, "padding", &node->padding);
  read_int(api, info, "zero", &node->zero);
  read_int(api, info, "instructions", &rank);
  node->kernels = rank < 0 ? best_kernels() : rank < 8 ? kernels_of_rank((int)rank) : NULL;
  if (!node->kernels || (node->bfloat16 && !node->kernels->attention_half)) {
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
static OrtStatus *compute_attention(void *kernel, OrtKernelContext *context) { return attention(kernel, context); }
static OrtStatus *compute_linear(void *kernel, OrtKernelContext *context) { return linear(kernel, context); }
static OrtStatus *compute_integer_conv(void *kernel, OrtKernelContext *context) { return integer_conv(kernel, context); }
static OrtStatus *compute_integers(void *kernel, OrtKernelContext *context) { return integer_linear(kernel, context); }

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
static const char *linear_name(const OrtCustomOp *operator) { return (void)operator, "LinearLayer"; }
static const char *integers_name(const OrtCustomOp *operator) { return (void)operator, "IntegerLinear"; }
static const char *integer_conv_name(const OrtCustomOp *operator) { return (void)operator, "IntegerConv"; }
static const char *processor(const OrtCustomOp *operator) { return (void)operator, "CPUExecutionProvider"; }
static int float_type(const OrtCustomOp *operator, size_t index) { return (void)operator, (void)index, ORT_FLOAT; }
static int integers_type(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index == 1 ? ORT_INT8 : index == 4 ? ORT_INT32 : ORT_FLOAT;
}
static int required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index < 3 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int six_required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index < 6 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int five_required(const OrtCustomOp *operator, size_t index) {
  return (void)operator, index < 5 ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int in_memory(const OrtCustomOp *operator, size_t index) { return (void)operator, (void)index, ORT_MEMORY_DEFAULT; }
static int one(const OrtCustomOp *operator) { return (void)operator, 1; }
static size_t one_port(const OrtCustomOp *operator) { return (void)operator, 1; }
static size_t three_ports(const OrtCustomOp *operator) { return (void)operator, 3; }
static size_t four_ports(const OrtCustomOp *operator) { return (void)operator, 4; }
static size_t five_ports(const OrtCustomOp *operator) { return (void)operator, 5; }
static size_t six_ports(const OrtCustomOp *operator) { return (void)operator, 6; }
static size_t eight_ports(const OrtCustomOp *operator) { return (void)operator, 8; }

#define OPERATOR(name, inputs, type, needed, make, run, infer)                                                          \
  {.version = ORT_VERSION_ASKED, .GetName = (name), .GetExecutionProviderType = processor, .GetInputType = (type),      \
   .GetInputTypeCount = (inputs), .GetOutputType = float_type, .GetOutputTypeCount = one_port, .KernelDestroy = free,   \
   .GetInputCharacteristic = (needed), .GetOutputCharacteristic = required, .GetInputMemoryType = in_memory,            \
   .GetVariadicInputMinArity = one, .GetVariadicInputHomogeneity = one, .GetVariadicOutputMinArity = one,               \
   .GetVariadicOutputHomogeneity = one, .CreateKernelV2 = (make), .KernelComputeV2 = (run),                             \
   .InferOutputShapeFn = (infer), .GetStartVersion = one, .GetEndVersion = one}
#define OF_FLOATS(name, inputs, run, infer) OPERATOR(name, inputs, float_type, required, create, run, infer)

static const OrtCustomOp operators[] = {
    OF_FLOATS(group_norm_name, three_ports, compute_group_norm, infer_as_first),
    OF_FLOATS(attention_name, three_ports, compute_attention, infer_as_first),
    OF_FLOATS(winograd_name, five_ports, compute_winograd, infer_channels),
    OF_FLOATS(linear_name, four_ports, compute_linear, infer_columns),
    OPERATOR(integers_name, six_ports, integers_type, five_required, create_integers, compute_integers, infer_columns),
    OPERATOR(integer_conv_name, eight_ports, integers_type, six_required, create_integers, compute_integer_conv, infer_nothing),
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
