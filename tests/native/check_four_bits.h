/* Layers of 4-bit weights; part of check.c. */

/* Of any number that float16 holds, not below 0. */
static double half_number(uint16_t half) {
  return half < 0x400 ? ldexp(half, -24) : ldexp(0x400 + half % 0x400, half / 0x400 - 25);
}

/* Weights, scales and zero points as the kernels read them, and what they stand for, (halves, inputs, outputs). */
static double *pack_four_bits(FourBits *task, size_t panels) {
  size_t inputs = task->layer.inputs, outputs = task->layer.outputs, groups = inputs / FOUR_BIT_GROUP;
  size_t halves = task->layer.activation == LINEAR_GEGLU ? 2 : 1, each = LINEAR_COLUMNS / halves;
  uint8_t *weights = guarded(panels * inputs * LINEAR_COLUMNS / 2), *zeros = guarded(panels * groups * LINEAR_COLUMNS / 2);
  uint16_t *scales = guarded(panels * groups * LINEAR_COLUMNS * sizeof *scales);
  const float *integer = noise(panels * inputs * LINEAR_COLUMNS), *zero = noise(panels * groups * LINEAR_COLUMNS);
  double *meaning = calloc(halves * inputs * outputs, sizeof *meaning);
  memset(weights, 0, panels * inputs * LINEAR_COLUMNS / 2), memset(zeros, 0, panels * groups * LINEAR_COLUMNS / 2);
  for (size_t panel = 0; panel < panels; panel++)
    for (size_t column = 0; column < LINEAR_COLUMNS; column++) {
      size_t o = panel * each + column % each, half = column / each;
      for (size_t group = 0; group < groups; group++) {
        size_t at = (panel * groups + group) * LINEAR_COLUMNS + column;
        int moved = o < outputs ? (int)(zero[at] * 4 + 8) % 16 : 0, turn = column < LINEAR_COLUMNS / 2 ? 0 : 4;
        zeros[(panel * groups + group) * LINEAR_COLUMNS / 2 + column % (LINEAR_COLUMNS / 2)] |= (uint8_t)(moved << turn);
        /* Some below the least normal number, and 0. */
        scales[at] = o < outputs ? (uint16_t)((o + group) % 5 == 4 ? 0x3f0 : (o + group) % 7 == 6 ? 0 : 0x2000 + 37 * o) : 0;
        for (size_t i = 0; i < FOUR_BIT_GROUP && o < outputs; i++) {
          size_t input = group * FOUR_BIT_GROUP + i;
          int whole = (int)(integer[(panel * inputs + input) * LINEAR_COLUMNS + column] * 4 + 8) % 16;
          size_t byte = (((panel * groups + group) * 4 + i / 8) * LINEAR_COLUMNS + column) * 4 + i % 4;
          weights[byte] |= (uint8_t)(whole << (i % 8 < 4 ? 0 : 4));
          meaning[(half * inputs + input) * outputs + o] = (whole - moved) * half_number(scales[at]);
        }
      }
    }
  task->weights = weights, task->scales = scales, task->zeros = zeros;
  return meaning;
}

/* Each group of a row as it is after rounding. */
static double *rounded_groups(const float *x, size_t count) {
  double *made = malloc(count * sizeof *made);
  for (size_t first = 0; first < count; first += FOUR_BIT_GROUP) {
    float most = 0;
    for (size_t i = 0; i < FOUR_BIT_GROUP; i++) most = fmaxf(most, fabsf(x[first + i]));
    for (size_t i = 0; i < FOUR_BIT_GROUP; i++) made[first + i] = rintf(x[first + i] * (127 / most)) * (most / 127.0);
  }
  return made;
}

static void check_four_bits(const Kernels *kernels, size_t rows, size_t inputs, size_t outputs, int activation, int rounded,
                            int sums, size_t rank) {
  size_t count = rows * outputs, halves = activation == LINEAR_GEGLU ? 2 : 1, groups = inputs / FOUR_BIT_GROUP;
  size_t each = rounded ? FOUR_BIT_ROWS : FOUR_BIT_SET, blocks = (rows + each - 1) / each, room = blocks * each;
  FourBits task = {.layer = {.x = noise(rows * inputs), .bias = noise(halves * outputs), .rows = rows, .inputs = inputs}};
  task.layer.outputs = outputs, task.layer.activation = activation, task.layer.y = guarded(count * sizeof(float));
  if (sums) task.layer.added = noise(count);
  double *meaning = pack_four_bits(&task, kernels->linear_panels(&task.layer)), *expected = malloc(count * sizeof *expected);
  double *x = rounded_groups(task.layer.x, rows * inputs);
  for (size_t i = 0; i < rows * inputs && !rounded; i++) x[i] = task.layer.x[i];
  if (rank) {
    task.layer.low = some_low_rank(inputs, rank, halves * outputs), task.layer.low.inner = guarded(rows * rank * sizeof(float));
    for (size_t i = 0; i * LOW_RANK_ROWS < rows; i++) kernels->low_rank(&task.layer, i);
  }
  if (rounded) {
    task.fours = guarded(room * inputs), task.steps = guarded(room * groups * sizeof(float));
    task.totals = guarded(room * groups * sizeof(int32_t));
  } else {
    task.laid = guarded(room * inputs * sizeof(float));
  }
  for (size_t i = 0; i < blocks; i++) (rounded ? kernels->four_bit_round : kernels->four_bit_lay)(&task, i);
  for (size_t i = 0; i < kernels->four_bit_tasks(&task); i++)
    (rounded ? kernels->four_bit_integers : kernels->four_bit_linear)(&task, i);
  for (size_t at = 0; at < count; at++) {
    double made[2];
    for (size_t half = 0; half < halves; half++) {
      size_t column = half * outputs + at % outputs;
      made[half] = task.layer.bias[column];
      for (size_t i = 0; i < inputs; i++)
        made[half] += x[at / outputs * inputs + i] * meaning[(half * inputs + i) * outputs + at % outputs];
      made[half] += added_by(&task.layer.low, task.layer.x + at / outputs * inputs, inputs, column, halves * outputs);
    }
    expected[at] = halves == 2 ? made[0] * activated(made[1], LINEAR_GELU) : activated(made[0], activation);
    if (sums) expected[at] += task.layer.added[at];
  }
  demand_near(task.layer.y, expected, count, 1e-3);
  free(expected), free(meaning), free(x);
  give_back();
}

static void check_all_four_bits(const Kernels *kernels) {
  for (int rounded = 0; rounded <= (kernels->four_bit_integers != NULL); rounded++) {
    for (int activation = LINEAR_PLAIN; activation <= LINEAR_GEGLU; activation++)
      for (size_t rows = 1; rows < 30; rows += 7)
        for (size_t outputs = 1; outputs < 70; outputs += 11)
          check_four_bits(kernels, rows, 32 * (1 + (rows + outputs) % 6), outputs, activation, rounded,
                          (int)(rows + outputs) % 2, (rows + outputs) % 5 * 9);
    check_four_bits(kernels, 300, 32, 33, LINEAR_PLAIN, rounded, 1, 16);
    check_four_bits(kernels, 205, 1504, 40, LINEAR_GEGLU, rounded, 0, 4); /* rows and inputs of more than a task and a piece */
  }
}
