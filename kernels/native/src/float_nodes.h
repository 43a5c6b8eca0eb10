/* Nodes of floats: what they demand of their inputs, and how kernels.h does them; part of operators.c. */

/* The norm that a node's attributes have, of an image; where it goes is for the caller to say. */
static GroupNorm norm_of(const Node *node, const Tensor *x, const Tensor *scale, const Tensor *bias) {
  GroupNorm norm = {.x = x->data, .scale = scale->data, .bias = bias->data};
  norm.channels = (size_t)x->dims[1], norm.groups = (size_t)node->groups, norm.pixels = product(x->dims + 2, x->rank - 2);
  norm.epsilon = node->epsilon, norm.silu = (int)node->silu;
  return norm;
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
  GroupNorm task = norm_of(node, &x, &scale, &bias);
  task.y = y.data;
  size_t groups = (size_t)x.dims[0] * task.groups;
  return KernelContext_ParallelFor(api)(context, node->kernels->group_norm, groups, 0, &task);
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
    return refuse(api, "HeadsAttention: the width doesn't make heads of 512 at most");
  if (!k.dims[1]) return refuse(api, "HeadsAttention: there is no key");
  Tensor o = q;
  RETURN_IF(make_output(api, context, &o));
  if (!product(q.dims, 3)) return NULL;
  Attention task = {.q = q.data, .k = k.data, .v = v.data, .o = o.data, .scale = node->scale};
  task.heads = (size_t)node->heads, task.size = (size_t)(width / node->heads);
  task.queries = (size_t)q.dims[1], task.keys = (size_t)k.dims[1];
  const AttentionKernels *way = node->bfloat16 ? &kernels->attention_half : &kernels->attention;
  size_t heads = (size_t)batch * task.heads, keys = heads * way->packed_keys(&task);
  size_t values = heads * way->packed_values(&task);
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, (keys + values) * sizeof(float), &scratch);
  if (!status) {
    task.packed_keys = scratch.data, task.packed_values = task.packed_keys + keys;
    size_t pieces = heads * kernels->attention_pieces(&task), blocks = heads * kernels->attention_blocks(&task);
    status = KernelContext_ParallelFor(api)(context, way->pack, pieces, 0, &task);
    if (!status) status = KernelContext_ParallelFor(api)(context, way->attend, blocks, 0, &task);
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

/* What convolutions of floats take: x (batch, inputs, height, width); weights; bias (outputs); and what is added: shift (batch
   or 1, outputs, 1, 1), to every pixel, and added, as y (batch, outputs, height, width). */
typedef struct {
  Tensor x, weights, bias, shift, added, y;
  size_t shifts; /* how far those of two images are apart */
} Convolution;

static OrtStatus *read_convolution(const OrtApi *api, OrtKernelContext *context, size_t weight_rank, Convolution *conv) {
  RETURN_IF(read_input(api, context, 0, &conv->x));
  RETURN_IF(read_input(api, context, 1, &conv->weights));
  RETURN_IF(read_input(api, context, 2, &conv->bias));
  RETURN_IF(read_optional(api, context, 3, &conv->shift));
  RETURN_IF(read_optional(api, context, 4, &conv->added));
  if (conv->x.rank != 4 || conv->weights.rank != weight_rank || conv->bias.rank != 1)
    return refuse(api, "a convolution's x has 4 dimensions and its bias 1, or the weights are not those of such channels");
  conv->y = conv->x, conv->y.dims[1] = conv->bias.dims[0];
  if (conv->shift.data && !is_shift(&conv->shift, &conv->y))
    return refuse(api, "the shift has to have a number for each channel, of each image or of all");
  if (conv->added.data && !same_shape(&conv->added, &conv->y))
    return refuse(api, "what is added has another shape than a convolution's output");
  conv->shifts = conv->shift.rank && conv->shift.dims[0] == 1 ? 0 : (size_t)conv->bias.dims[0];
  return NULL;
}

/* WinogradConv: weights transformed (36, blocks, inputs, 10), or as they are (blocks, inputs, 9, 32), those also float16. */
static OrtStatus *winograd(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  Convolution conv;
  RETURN_IF(read_convolution(api, context, 4, &conv));
  int few = conv.weights.dims[3] == FEW_OUTPUTS;
  int64_t each = few ? FEW_OUTPUTS : WINOGRAD_OUTPUTS, blocks = (conv.bias.dims[0] + each - 1) / each;
  int64_t inputs = conv.x.dims[1];
  const int64_t transformed[4] = {36, blocks, inputs, each}, filters[4] = {blocks, inputs, 9, each};
  if (memcmp(conv.weights.dims, few ? filters : transformed, sizeof filters))
    return refuse(api, "WinogradConv: the weights are not those of such channels");
  if (conv.weights.type != ORT_FLOAT && !(few && conv.weights.type == ORT_FLOAT16))
    return refuse(api, "WinogradConv: the weights are of another type");
  RETURN_IF(make_output(api, context, &conv.y));
  if (!product(conv.y.dims, 4)) return NULL;
  Winograd task = {.x = conv.x.data, .bias = conv.bias.data, .y = conv.y.data};
  if (conv.weights.type == ORT_FLOAT) task.weights = conv.weights.data;
  else task.halves = conv.weights.data;
  task.shift = conv.shift.data, task.added = conv.added.data, task.shifts = conv.shifts;
  task.inputs = (size_t)inputs, task.outputs = (size_t)conv.bias.dims[0];
  task.height = (size_t)conv.x.dims[2], task.width = (size_t)conv.x.dims[3];
  size_t tiles = (size_t)conv.x.dims[0] * ((task.height + 3) / 4) * ((task.width + 3) / 4);
  return (few ? few_tiles : winograd_strips)(node, context, &task, tiles);
}

/* PointwiseConv: weights (blocks, inputs, 10). */
static OrtStatus *pointwise(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Convolution conv;
  RETURN_IF(read_convolution(api, context, 3, &conv));
  int64_t blocks = (conv.bias.dims[0] + WINOGRAD_OUTPUTS - 1) / WINOGRAD_OUTPUTS;
  const int64_t fit[3] = {blocks, conv.x.dims[1], WINOGRAD_OUTPUTS};
  if (memcmp(conv.weights.dims, fit, sizeof fit))
    return refuse(api, "PointwiseConv: the weights are not those of such channels");
  RETURN_IF(make_output(api, context, &conv.y));
  if (!product(conv.y.dims, 4)) return NULL;
  Pointwise task = {.x = conv.x.data, .weights = conv.weights.data, .bias = conv.bias.data, .y = conv.y.data};
  task.shift = conv.shift.data, task.added = conv.added.data, task.shifts = conv.shifts;
  task.images = (size_t)conv.x.dims[0], task.inputs = (size_t)conv.x.dims[1], task.outputs = (size_t)conv.bias.dims[0];
  task.pixels = product(conv.x.dims + 2, 2);
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, kernels->pointwise_scratch(&task) * sizeof(float), &scratch);
  task.scratch = scratch.data;
  size_t laid = kernels->pointwise_layers(&task), tasks = kernels->pointwise_tasks(&task);
  if (!status) status = KernelContext_ParallelFor(api)(context, kernels->pointwise_lay, laid, 0, &task);
  if (!status) status = KernelContext_ParallelFor(api)(context, kernels->pointwise, tasks, 0, &task);
  release_scratch(&scratch);
  return status;
}

/* The sizes of a layer, whose bias is its third input, what is added its `place`th, and what is added by low rank the two
   behind that: x (..., inputs), bias (1, outputs), with a gate (2, outputs), added as y, down (inputs, rank), up (rank,
   outputs), with a gate (rank, 2 * outputs), y (..., outputs). Its output is made once the weights are known to be right. */
static OrtStatus *read_layer(const Node *node, OrtKernelContext *context, size_t place, Linear *task, Tensor *y) {
  const OrtApi *api = node->api;
  Tensor bias, added, down, up;
  RETURN_IF(read_input(api, context, 0, y));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_optional(api, context, place, &added));
  RETURN_IF(read_optional(api, context, place + 1, &down));
  RETURN_IF(read_optional(api, context, place + 2, &up));
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
  if (!down.rank && !up.rank) return NULL;
  const int64_t fit[3] = {(int64_t)task->inputs, down.rank == 2 ? down.dims[1] : 0, bias.dims[0] * bias.dims[1]};
  if (down.rank != 2 || up.rank != 2 || memcmp(down.dims, fit, 2 * sizeof *fit) || memcmp(up.dims, fit + 1, 2 * sizeof *fit))
    return refuse(api, "what is added by low rank doesn't fit the layer");
  if (fit[1]) task->low = (LowRank){.down = down.data, .up = up.data, .rank = (size_t)fit[1]};
  return NULL;
}

/* LinearLayer: x, weights (panels, inputs, 32), float or float16, bias, what is added, and down and up of what is by low rank. Attribute: activation, as kernels.h numbers them. */
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
  if (weights.type != ORT_FLOAT && weights.type != ORT_FLOAT16)
    return refuse(api, "LinearLayer: the weights are of another type");
  if (task.activation == LINEAR_GEGLU && task.inputs > LINEAR_MOST_INPUTS)
    return refuse(api, "LinearLayer: a gated layer has more than 1280 inputs");
  RETURN_IF(make_output(api, context, &y));
  if (!task.rows || !task.outputs) return NULL;
  if (weights.type == ORT_FLOAT) task.weights = weights.data;
  else task.halves = weights.data;
  task.y = y.data;
  Scratch scratch = {.api = api};
  OrtStatus *status = NULL;
  if (task.low.down) {
    status = take_scratch(api, context, task.rows * task.low.rank * sizeof(float), &scratch);
    task.low.inner = scratch.data;
    size_t blocks = (task.rows + LOW_RANK_ROWS - 1) / LOW_RANK_ROWS;
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->low_rank, blocks, 0, &task);
  }
  size_t count = kernels->linear_tasks(&task);
  if (!status) status = KernelContext_ParallelFor(api)(context, kernels->linear, count, 0, &task);
  release_scratch(&scratch);
  return status;
}
