/* Nodes with weights of 8-bit integers: what they demand of their inputs, and how kernels.h does them; part of operators.c. */

/* IntegerLinear: the same with weights (panels, inputs / 4, 32, 4), int8; bias; scales (panels, 32); totals (panels, 32), int32,
   sums of the weights; what is added; and down and up of what is by low rank, of which down is rounded to 8 bits too, and
   up to bfloat16 where the set of instructions has it. */
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
  size_t low_rank = task.layer.low.down ? kernels->integer_low_rank(&task, NULL) : 0;
  OrtStatus *status = take_scratch(api, context, rows * each + low_rank, &scratch);
  if (!status) {
    task.fours = scratch.data, task.roundings = (Rounding *)(task.fours + rows * (size_t)fours);
    if (low_rank) {
      kernels->integer_low_rank(&task, task.roundings + rows);
      status = KernelContext_ParallelFor(api)(context, kernels->integer_pack, kernels->integer_packs(&task), 0, &task);
    }
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->integer_round, blocks, 0, &task);
    size_t count = kernels->integer_tasks(&task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->integer_linear, count, 0, &task);
  }
  release_scratch(&scratch);
  return status;
}

/* IntegerConv: x (batch, inputs, height, width), weights (panels, rows, columns, inputs / 4, 32, 4), int8; bias (outputs);
   scales and totals (panels, 32), the latter int32; shift and added as WinogradConv has them.
   Attributes: scale and zero, by which x is rounded to uint8; stride; padding on each side; upsampled: whether x is made
   twice as large first, with filters of 2x2 on x for the four kinds of pixels (panels, 4, 2, 2, ...), stride and padding 1. */
static OrtStatus *integer_conv(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Tensor x, weights, bias, scales, totals, shift, added;
  RETURN_IF(read_input(api, context, 0, &x));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_input(api, context, 3, &scales));
  RETURN_IF(read_input(api, context, 4, &totals));
  RETURN_IF(read_optional(api, context, 5, &shift));
  RETURN_IF(read_optional(api, context, 6, &added));
  if (x.rank != 4 || weights.rank != 6 || bias.rank != 1)
    return refuse(api, "IntegerConv: x has 4 dimensions, weights have 6, and bias 1");
  int64_t outputs = bias.dims[0], panels = (outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS * (node->upsampled ? 4 : 1);
  const int64_t columns[2] = {panels, LINEAR_COLUMNS}, *filter = weights.dims + 1;
  const int64_t fit[6] = {panels, filter[0], filter[1], (x.dims[1] + 3) / 4, LINEAR_COLUMNS, 4};
  int fits = !memcmp(weights.dims, fit, sizeof fit) && x.dims[1] > 0;
  fits = fits && scales.rank == 2 && !memcmp(scales.dims, columns, sizeof columns);
  fits = fits && totals.rank == 2 && !memcmp(totals.dims, columns, sizeof columns);
  if (!fits || filter[0] < 1 || filter[1] < 1 || (size_t)(filter[0] * filter[1] * fit[3]) * 4 > INTEGER_MOST_INPUTS)
    return refuse(api, "IntegerConv: the weights are not those of such channels");
  if (node->stride < 1 || node->padding < 0 || node->zero < 0 || node->zero > 255 || !(node->scale > 0))
    return refuse(api, "IntegerConv: there is no such stride, padding or rounding");
  if (node->upsampled && (filter[0] != 2 || filter[1] != 2 || node->stride != 1 || node->padding != 1))
    return refuse(api, "IntegerConv: a picture is upsampled with filters of 2x2, stride and padding 1");
  Tensor y = x;
  y.dims[1] = outputs;
  for (int i = 0; i < 2; i++) {
    int64_t room = x.dims[2 + i] + 2 * node->padding - filter[i];
    if (room < 0) return refuse(api, "IntegerConv: the filter is larger than the picture");
    y.dims[2 + i] = node->upsampled ? 2 * x.dims[2 + i] : room / node->stride + 1;
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
  task.step = node->scale, task.zero = (int32_t)node->zero, task.upsampled = node->upsampled != 0;
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
