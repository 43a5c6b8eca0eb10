/* Layers and convolutions of 8-bit weights; part of check.c. */
static const float INTEGER_SCALE = 0x1p-8f; /* so that a layer's numbers are about as large as its bias */

static void check_integers(const Kernels *kernels, size_t rows, size_t inputs, size_t outputs, int activation, int sums,
                           size_t rank) {
  size_t count = rows * outputs, halves = activation == LINEAR_GEGLU ? 2 : 1, each = LINEAR_COLUMNS / halves;
  size_t blocks = (rows + INTEGER_ROWS - 1) / INTEGER_ROWS, fours = (inputs + 3) / 4;
  const float *weight = noise(halves * inputs * outputs), *scale = noise(halves * outputs);
  IntegerLinear task = {.layer = {.x = noise(rows * inputs), .bias = noise(halves * outputs)}};
  task.layer.rows = rows, task.layer.inputs = inputs, task.layer.outputs = outputs, task.layer.activation = activation;
  task.layer.y = guarded(count * sizeof(float));
  if (sums) task.layer.added = noise(count);
  size_t columns = kernels->linear_panels(&task.layer) * LINEAR_COLUMNS;
  int8_t *packed = guarded(columns * fours * 4);
  float *scales = guarded(columns * sizeof *scales);
  int32_t *totals = guarded(columns * sizeof *totals);
  for (size_t column = 0; column < columns; column++) {
    size_t panel = column / LINEAR_COLUMNS, half = column % LINEAR_COLUMNS / each, o = panel * each + column % each;
    scales[column] = o < outputs ? scale[half * outputs + o] * INTEGER_SCALE : 0, totals[column] = 0;
    for (size_t i = 0; i < fours * 4; i++) {
      int8_t number = o < outputs && i < inputs ? (int8_t)(weight[(half * inputs + i) * outputs + o] * 63) : 0;
      packed[((panel * fours + i / 4) * LINEAR_COLUMNS + column % LINEAR_COLUMNS) * 4 + i % 4] = number;
      totals[column] += number;
    }
  }
  task.weights = packed, task.scales = scales, task.totals = totals;
  task.fours = guarded(blocks * INTEGER_ROWS * fours * sizeof *task.fours);
  task.roundings = guarded(blocks * INTEGER_ROWS * sizeof *task.roundings);
  if (rank) {
    task.layer.low = some_low_rank(inputs, rank, halves * outputs);
    kernels->integer_low_rank(&task, guarded(kernels->integer_low_rank(&task, NULL)));
    for (size_t i = 0; i < kernels->integer_packs(&task); i++) kernels->integer_pack(&task, i);
  }
  for (size_t i = 0; i < blocks; i++) kernels->integer_round(&task, i);
  for (size_t i = 0; i < kernels->integer_tasks(&task); i++) kernels->integer_linear(&task, i);
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    const float *x = task.layer.x + at / outputs * inputs, *bias = task.layer.bias;
    float low = 0, high = 0;
    for (size_t i = 0; i < inputs; i++) low = fminf(low, x[i]), high = fmaxf(high, x[i]);
    float step = 255.0f / (high - low), zero = rintf(-low * step);
    double made[2];
    for (size_t half = 0; half < halves; half++) {
      double sum = 0;
      for (size_t i = 0; i < inputs; i++) {
        double number = fmin(fmax(rintf(x[i] * step) + zero, 0), 255) - zero;
        sum += number * (int8_t)(weight[(half * inputs + i) * outputs + at % outputs] * 63);
      }
      made[half] = sum / step * INTEGER_SCALE * scale[half * outputs + at % outputs] + bias[half * outputs + at % outputs];
      made[half] += added_by(&task.layer.low, x, inputs, half * outputs + at % outputs, halves * outputs);
    }
    expected[at] = halves == 2 ? made[0] * activated(made[1], LINEAR_GELU) : activated(made[0], activation);
    if (sums) expected[at] += task.layer.added[at];
  }
  demand_near(task.layer.y, expected, count, rank ? 5e-3 : 1e-4);
  free(expected);
  give_back();
}

/* What a convolution writes for the next one, without and beside the floats in `y`, which are those it wrote before. */
static void check_next(const Kernels *kernels, IntegerConv task) {
  size_t padding = 1, rows = task.made_height + 2 * padding, columns = task.made_width + 2 * padding;
  size_t channels = (task.outputs + 3) / 4 * 4, made = task.made_height * task.made_width;
  const float *floats = task.y;
  task.rectified = 1, task.next_step = 0x1p-5f, task.next_zero = 77, task.next_padding = padding;
  for (int both = 0; both < 2; both++) {
    task.y = both ? guarded(task.images * task.outputs * made * sizeof(float)) : NULL;
    task.next = guarded(task.images * rows * columns * channels);
    for (size_t i = 0; i < task.images * rows; i++) kernels->integer_around(&task, i);
    for (size_t i = 0; i < kernels->integer_conv_tasks(&task); i++) kernels->integer_conv(&task, i);
    uint8_t around = task.next[0], less = around ^ 77; /* that bytes are turned by where products take signed ones */
    for (size_t place = 0; place < task.images * rows * columns; place++) {
      size_t row = place / columns % rows, column = place % columns, image = place / columns / rows;
      int outside = row < padding || column < padding || row >= rows - padding || column >= columns - padding;
      for (size_t o = 0; o < (outside ? channels : task.outputs); o++) {
        size_t at = (image * task.outputs + o) * made + (row - padding) * task.made_width + column - padding;
        float rounded = outside ? 77 : fminf(rintf(fmaxf(floats[at], 0) * 32) + 77, 255);
        demand(task.next[place * channels + o] == ((uint8_t)rounded ^ less), "a byte is off");
        if (both && !outside) demand(task.y[at] == fmaxf(floats[at], 0), "it is not rectified");
      }
    }
  }
}

static void check_conv(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t height, size_t width,
                       size_t filter, size_t stride, int sums, size_t groups) {
  size_t padding = filter / 2, fours = (inputs + 3) / 4, pixels = height * width, cells = filter * filter;
  size_t panels = (outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS, columns = panels * LINEAR_COLUMNS;
  IntegerConv task = {.x = noise(images * inputs * pixels), .images = images, .inputs = inputs, .outputs = outputs};
  task.height = height, task.width = width, task.filter_height = task.filter_width = filter;
  task.made_height = (height + 2 * padding - filter) / stride + 1;
  task.made_width = (width + 2 * padding - filter) / stride + 1;
  task.stride = stride, task.padding = padding, task.step = 0x1p-7f, task.zero = 128; /* cut off at 1 */
  size_t made = task.made_height * task.made_width, count = images * outputs * made;
  const float *weight = noise(outputs * inputs * cells);
  float *scales = guarded(columns * sizeof *scales), *bias = guarded(outputs * sizeof *bias);
  int32_t *totals = guarded(columns * sizeof *totals);
  int8_t *packed = guarded(columns * cells * fours * 4);
  for (size_t o = 0; o < columns; o++) {
    scales[o] = o < outputs ? 0x1p-14f * (float)(o + 1) : 0, totals[o] = 0;
    if (o < outputs) bias[o] = (float)o;
    for (size_t cell = 0; cell < cells; cell++)
      for (size_t i = 0; i < fours * 4; i++) {
        int8_t number = o < outputs && i < inputs ? (int8_t)(weight[(o * inputs + i) * cells + cell] * 63) : 0;
        size_t row = (o / LINEAR_COLUMNS * cells + cell) * fours + i / 4;
        packed[(row * LINEAR_COLUMNS + o % LINEAR_COLUMNS) * 4 + i % 4] = number, totals[o] += number;
      }
  }
  task.weights = packed, task.scales = scales, task.totals = totals, task.bias = bias;
  task.y = guarded(count * sizeof(float));
  if (sums) task.shift = noise(images * outputs), task.shifts = outputs, task.added = noise(count);
  size_t rows = height + 2 * padding, row = width + 2 * padding;
  const float *given = task.x;
  if (groups) {
    GroupNorm norm = {task.x, noise(inputs), noise(inputs), guarded(images * inputs * pixels * sizeof(float)),
                      inputs, groups, pixels, 1e-5f, (int)groups % 2};
    for (size_t i = 0; i < images * groups; i++) kernels->group_norm(&norm, i);
    given = norm.y, task.norm = norm, task.channels = guarded(images * inputs * sizeof *task.channels);
    for (size_t i = 0; i < images * groups; i++) kernels->integer_channels(&task, i);
  }
  task.bytes = guarded(images * rows * row * fours * 4);
  for (size_t i = 0; i < images * rows; i++) kernels->integer_bytes(&task, i);
  for (size_t i = 0; i < kernels->integer_conv_tasks(&task); i++) kernels->integer_conv(&task, i);
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    size_t image = at / made / outputs, o = at / made % outputs, y = at % made / task.made_width * stride;
    size_t x = at % task.made_width * stride;
    double sum = 0;
    for (size_t i = 0; i < inputs; i++)
      for (size_t cell = 0; cell < cells; cell++) {
        size_t down = y + cell / filter, across = x + cell % filter; /* further by the padding */
        if (down < padding || across < padding || down >= height + padding || across >= width + padding) continue;
        float number = given[(image * inputs + i) * pixels + (down - padding) * width + across - padding];
        number = fminf(fmaxf(rintf(number * 128) + 128, 0), 255) - 128;
        sum += (double)number * (int8_t)(weight[(o * inputs + i) * cells + cell] * 63);
      }
    expected[at] = sum * scales[o] + bias[o];
    if (sums) expected[at] += task.shift[image * outputs + o] + task.added[at];
  }
  demand_near(task.y, expected, count, 1e-3);
  check_next(kernels, task);
  free(expected);
  give_back();
}
