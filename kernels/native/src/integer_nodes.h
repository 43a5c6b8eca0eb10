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
   scales and totals (panels, 32), the latter int32; shift and added as WinogradConv has them; norm_scale and norm_bias
   (inputs), by which x is normalized as GroupNormSilu does before it is rounded; or in place of x its bytes as another such
   node made them. Outputs, one of which may be missing: y, and y as the bytes that the next such node wants.
   Attributes: scale and zero, by which x is rounded to uint8; stride; padding on each side; upsampled: whether x is made
   twice as large first, with filters of 2x2 on x for the four kinds of pixels (panels, 4, 2, 2, ...), stride and padding 1;
   rectified: whether y is 0 where it would be less; next_scale, next_zero and next_padding of the next node's input; groups,
   epsilon and silu of the norm.
   Bytes are uint8 (batch, height and twice the padding, width and twice the padding, channels by fours): what is in them
   is the affair of this library and this processor. */
static OrtStatus *integer_conv(const Node *node, OrtKernelContext *context) {
  const OrtApi *api = node->api;
  const Kernels *kernels = node->kernels;
  Tensor x, weights, bias, scales, totals, shift, added, norm_scale, norm_bias, bytes;
  RETURN_IF(read_optional(api, context, 0, &x));
  RETURN_IF(read_input(api, context, 1, &weights));
  RETURN_IF(read_input(api, context, 2, &bias));
  RETURN_IF(read_input(api, context, 3, &scales));
  RETURN_IF(read_input(api, context, 4, &totals));
  RETURN_IF(read_optional(api, context, 5, &shift));
  RETURN_IF(read_optional(api, context, 6, &added));
  RETURN_IF(read_optional(api, context, 7, &norm_scale));
  RETURN_IF(read_optional(api, context, 8, &norm_bias));
  RETURN_IF(read_optional(api, context, 9, &bytes));
  if (!x.rank == !bytes.rank || (bytes.rank && norm_scale.rank))
    return refuse(api, "IntegerConv: it takes either x, normalized or not, or bytes");
  if (bytes.rank) {
    if (bytes.rank != 4 || node->padding < 0 || bytes.dims[3] % 4)
      return refuse(api, "IntegerConv: the bytes are those of no picture");
    x.rank = 4, x.dims[0] = bytes.dims[0], x.dims[1] = bytes.dims[3];
    for (int i = 0; i < 2; i++) x.dims[2 + i] = bytes.dims[1 + i] - 2 * node->padding;
    if (x.dims[2] < 0 || x.dims[3] < 0) return refuse(api, "IntegerConv: the bytes have less around them");
  }
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
  int normed = norm_scale.rank || norm_bias.rank;
  if (normed && (norm_scale.rank != 1 || norm_bias.rank != 1 || norm_scale.dims[0] != x.dims[1] ||
                 norm_bias.dims[0] != x.dims[1] || node->groups < 1 || x.dims[1] % node->groups))
    return refuse(api, "IntegerConv: a norm has a scale and a bias for each channel, and channels make its groups");
  Tensor next = {.rank = 4, .dims = {y.dims[0], y.dims[2], y.dims[3], (outputs + 3) / 4 * 4}};
  if (node->next_padding < 0 || node->next_zero < 0 || node->next_zero > 255 || !(node->next_scale > 0))
    return refuse(api, "IntegerConv: there is no such rounding of its output");
  for (int i = 1; i < 3; i++) next.dims[i] += 2 * node->next_padding;
  RETURN_IF(make_nth_output(api, context, 0, &y));
  RETURN_IF(make_nth_output(api, context, 1, &next));
  if (!product(y.dims, 4) || (!y.data && !next.data)) return NULL;
  IntegerConv task = {.x = x.data, .weights = weights.data, .scales = scales.data, .totals = totals.data, .y = y.data};
  task.bias = bias.data, task.shift = shift.data, task.added = added.data;
  task.shifts = shift.rank && shift.dims[0] == 1 ? 0 : (size_t)outputs;
  task.images = (size_t)x.dims[0], task.inputs = (size_t)x.dims[1], task.outputs = (size_t)outputs;
  task.height = (size_t)x.dims[2], task.width = (size_t)x.dims[3];
  task.made_height = (size_t)y.dims[2], task.made_width = (size_t)y.dims[3];
  task.filter_height = (size_t)filter[0], task.filter_width = (size_t)filter[1];
  task.stride = (size_t)node->stride, task.padding = (size_t)node->padding;
  task.step = node->scale, task.zero = (int32_t)node->zero, task.upsampled = node->upsampled != 0;
  task.rectified = node->rectified != 0, task.next = next.data, task.next_step = node->next_scale;
  task.next_zero = (int32_t)node->next_zero, task.next_padding = (size_t)node->next_padding;
  if (normed) task.norm = norm_of(node, &x, &norm_scale, &norm_bias);
  size_t rows = task.images * (task.height + 2 * task.padding), row = (task.width + 2 * task.padding) * (size_t)fit[3] * 4;
  Scratch scratch;
  size_t channels = normed ? task.images * task.inputs * sizeof *task.channels : 0;
  OrtStatus *status = take_scratch(api, context, channels + (bytes.rank ? 0 : rows * row), &scratch);
  if (!status) {
    task.channels = scratch.data, task.bytes = bytes.rank ? bytes.data : (uint8_t *)scratch.data + channels;
    size_t count = task.images * task.norm.groups;
    if (normed) status = KernelContext_ParallelFor(api)(context, kernels->integer_channels, count, 0, &task);
    if (!status && !bytes.rank) status = KernelContext_ParallelFor(api)(context, kernels->integer_bytes, rows, 0, &task);
    count = task.images * (size_t)next.dims[1];
    if (!status && task.next) status = KernelContext_ParallelFor(api)(context, kernels->integer_around, count, 0, &task);
    count = kernels->integer_conv_tasks(&task);
    if (!status) status = KernelContext_ParallelFor(api)(context, kernels->integer_conv, count, 0, &task);
  }
  release_scratch(&scratch);
  return status;
}
