/* Convolutions of pictures that are twice as large before, by 8-bit integers; part of check.c. */

static void check_upsampled(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t height,
                            size_t width, int sums) {
  size_t fours = (inputs + 3) / 4, pixels = height * width, panels = (outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
  size_t columns = panels * 4 * LINEAR_COLUMNS, count = images * outputs * pixels * 4;
  IntegerConv task = {.x = noise(images * inputs * pixels), .images = images, .inputs = inputs, .outputs = outputs};
  task.height = height, task.width = width, task.made_height = 2 * height, task.made_width = 2 * width;
  task.filter_height = task.filter_width = 2, task.stride = task.padding = 1, task.upsampled = 1;
  task.step = 0x1p-6f, task.zero = 100;
  const float *weight = noise(panels * LINEAR_COLUMNS * 16 * fours * 4);
  float *scales = guarded(columns * sizeof *scales), *bias = guarded(outputs * sizeof *bias);
  int32_t *totals = guarded(columns * sizeof *totals);
  int8_t *packed = guarded(columns * 4 * fours * 4);
  for (size_t column = 0; column < columns; column++) { /* panel, kind of pixel, output */
    size_t o = column / (4 * LINEAR_COLUMNS) * LINEAR_COLUMNS + column % LINEAR_COLUMNS, kind = column / LINEAR_COLUMNS % 4;
    scales[column] = o < outputs ? 0x1p-12f * (float)(kind + 1) : 0, totals[column] = 0;
    if (o < outputs) bias[o] = (float)o;
    for (size_t cell = 0; cell < 4; cell++)
      for (size_t i = 0; i < fours * 4; i++) {
        int8_t number = o < outputs && i < inputs ? (int8_t)(weight[((o * 4 + kind) * 4 + cell) * inputs + i] * 63) : 0;
        size_t row = (column / LINEAR_COLUMNS * 4 + cell) * fours + i / 4;
        packed[(row * LINEAR_COLUMNS + column % LINEAR_COLUMNS) * 4 + i % 4] = number, totals[column] += number;
      }
  }
  task.weights = packed, task.scales = scales, task.totals = totals, task.bias = bias;
  task.y = guarded(count * sizeof(float));
  if (sums) task.shift = noise(images * outputs), task.shifts = outputs, task.added = noise(count);
  task.bytes = guarded(images * (height + 2) * (width + 2) * fours * 4);
  for (size_t i = 0; i < images * (height + 2); i++) kernels->integer_bytes(&task, i);
  for (size_t i = 0; i < kernels->integer_conv_tasks(&task); i++) kernels->integer_conv(&task, i);
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    size_t image = at / (4 * pixels) / outputs, o = at / (4 * pixels) % outputs;
    size_t y = at % (4 * pixels) / (2 * width), x = at % (2 * width), kind = y % 2 * 2 + x % 2;
    double sum = 0;
    for (size_t cell = 0; cell < 4; cell++) {
      size_t down = y / 2 + y % 2 + cell / 2, across = x / 2 + x % 2 + cell % 2; /* further by the padding */
      if (down < 1 || across < 1 || down > height || across > width) continue;
      for (size_t i = 0; i < inputs; i++) {
        float number = task.x[(image * inputs + i) * pixels + (down - 1) * width + across - 1];
        number = fminf(fmaxf(rintf(number * 64) + 100, 0), 255) - 100;
        sum += (double)number * (int8_t)(weight[((o * 4 + kind) * 4 + cell) * inputs + i] * 63);
      }
    }
    expected[at] = sum * 0x1p-12 * (double)(kind + 1) + bias[o];
    if (sums) expected[at] += task.shift[image * outputs + o] + task.added[at];
  }
  demand_near(task.y, expected, count, 1e-3);
  check_next(kernels, task);
  free(expected);
  give_back();
}

static void check_all_upsampled(const Kernels *kernels) {
  for (size_t width = 1; width < 40; width += width < 10 ? 2 : 7)
    for (size_t height = 1; height < 8; height += 3)
      check_upsampled(kernels, 2, height + width, 35, height, width, (int)(width + height) % 2);
  check_upsampled(kernels, 1, 130, 64, 17, 20, 1); /* more pixels than in a task */
  check_upsampled(kernels, 1, 3, 64, 2, 300, 0);   /* and than in a group */
}
