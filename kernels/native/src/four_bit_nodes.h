/* Nodes with weights of 4-bit integers: what they demand of their inputs, and how kernels.h does them; part of operators.c. */

enum { FOUR_BIT_STRIP = 8 << 20 }; /* bytes of rows that are laid out or rounded at a time */

/* Some rows of a layer whose rows have to be laid out or rounded, into `scratch`, before they are multiplied. */
static OrtStatus *four_bit_strip(const Node *node, OrtKernelContext *context, FourBits *task) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  size_t rows = node->rounded ? FOUR_BIT_ROWS : FOUR_BIT_SET, count = kernels->four_bit_tasks(task);
  OrtStatus *status = NULL;
  if (task->layer.low.inner)
    status = KernelContext_ParallelFor(api)(context, kernels->low_rank, (task->layer.rows + LOW_RANK_ROWS - 1) / LOW_RANK_ROWS,
                                            0, &task->layer);
  void (*before)(void *, size_t) = node->rounded ? kernels->four_bit_round : kernels->four_bit_lay;
  void (*multiply)(void *, size_t) = node->rounded ? kernels->four_bit_integers : kernels->four_bit_linear;
  if (!status) status = KernelContext_ParallelFor(api)(context, before, (task->layer.rows + rows - 1) / rows, 0, task);
  if (!status) status = KernelContext_ParallelFor(api)(context, multiply, count, 0, task);
  return status;
}

/* The same of all rows, strip by strip. */
static OrtStatus *four_bit_strips(const Node *node, OrtKernelContext *context, FourBits *task) {
  const OrtApi *api = node->api;
  size_t rows = task->layer.rows, inputs = task->layer.inputs, groups = inputs / FOUR_BIT_GROUP;
  size_t each = node->rounded ? inputs + groups * (sizeof *task->steps + sizeof *task->totals) : inputs * sizeof(float);
  each += task->layer.low.rank * sizeof(float);
  size_t strip = FOUR_BIT_STRIP / each / FOUR_BIT_SET * FOUR_BIT_SET;
  if (!strip) strip = FOUR_BIT_SET;
  if (strip > rows) strip = (rows + FOUR_BIT_SET - 1) / FOUR_BIT_SET * FOUR_BIT_SET;
  Scratch scratch;
  OrtStatus *status = take_scratch(api, context, strip * each, &scratch);
  float *numbers = scratch.data;
  if (task->layer.low.rank) task->layer.low.inner = numbers, numbers += strip * task->layer.low.rank;
  task->laid = numbers, task->fours = (uint32_t *)numbers;
  task->steps = (float *)(task->fours + strip * inputs / 4), task->totals = (int32_t *)(task->steps + strip * groups);
  for (size_t first = 0; !status && first < rows; first += strip) {
    task->layer.rows = rows - first < strip ? rows - first : strip;
    status = four_bit_strip(node, context, task);
    task->layer.x += strip * inputs, task->layer.y += strip * task->layer.outputs;
    if (task->layer.added) task->layer.added += strip * task->layer.outputs;
  }
  release_scratch(&scratch);
  return status;
}

/* FourBitLinear: x; weights (panels, groups, 4, 32, 4), uint8; bias; scales (panels, groups, 32), float16; zero points
   (panels, groups, 16), uint8; what is added; and down and up of what is by low rank, which stay floats. Attributes:
   activation; rounded (1 rounds x to 8 bits, each group of a row by its largest number). */
static OrtStatus *four_bits(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  FourBits task = {0};
  Tensor weights, scales, zeros, y;
  RETURN_IF(read_layer(node, context, 5, &task.layer, &y));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 3, &scales));
  RETURN_IF(read_input(api, context, 4, &zeros));
  int64_t panels = (int64_t)node->kernels->linear_panels(&task.layer), groups = (int64_t)task.layer.inputs / FOUR_BIT_GROUP;
  const int64_t fit[5] = {panels, groups, FOUR_BIT_GROUP / 8, LINEAR_COLUMNS, 4};
  const int64_t columns[3] = {panels, groups, LINEAR_COLUMNS}, halves[3] = {panels, groups, LINEAR_COLUMNS / 2};
  if (task.layer.inputs % FOUR_BIT_GROUP || weights.rank != 5 || scales.rank != 3 || zeros.rank != 3 ||
      memcmp(weights.dims, fit, sizeof fit) || memcmp(scales.dims, columns, sizeof columns) ||
      memcmp(zeros.dims, halves, sizeof halves))
    return refuse(api, "FourBitLinear: the weights are not those of such a layer");
  RETURN_IF(make_output(api, context, &y));
  if (!task.layer.rows || !task.layer.outputs) return NULL;
  task.weights = weights.data, task.scales = scales.data, task.zeros = zeros.data, task.layer.y = y.data;
  return four_bit_strips(node, context, &task);
}
