/* Rows times a fixed matrix of 8-bit integers, with what is done to the sums before they are written; part of kernels.c.

   For the sets of instructions of integers.h that have products of bytes. Panels are those of linear.h, and so are the rows
   whose sums stay in registers. */

enum { INTEGER_TASK_BYTES = 1 << 19 }; /* of weights that stay in a core's cache */

static size_t fours_of(size_t inputs) { return (inputs + 3) / 4; }
static size_t integer_rows(const IntegerLinear *task) { /* of a task: blocks */
  return (even_share(task->layer.rows, LINEAR_TASK_ROWS) + INTEGER_ROWS - 1) / INTEGER_ROWS * INTEGER_ROWS;
}
static size_t integer_panels(const IntegerLinear *task) {
  size_t most = INTEGER_TASK_BYTES / (fours_of(task->layer.inputs) * 4 * LINEAR_COLUMNS);
  return even_share(linear_panels(&task->layer), most ? most : 1);
}
static size_t integer_tasks(const IntegerLinear *task) {
  size_t rows = integer_rows(task), panels = integer_panels(task);
  return (task->layer.rows + rows - 1) / rows * ((linear_panels(&task->layer) + panels - 1) / panels);
}

/* A row to whole numbers from 0 to 255, four inputs in each of `to`. Where a number isn't finite the step is NaN, and so is
   all that becomes of the row. */
static Rounding round_row(const float *from, size_t inputs, uint32_t *to) {
  Floats low = 0.0f, high = 0.0f, odd = 0.0f;
  for (size_t i = 0; i < inputs; i += W) {
    Floats x = inputs - i < W ? load_part(from + i, inputs - i) : load(from + i);
    low = __builtin_elementwise_min(low, x), high = __builtin_elementwise_max(high, x);
    odd = multiply_add(x, (Floats)0.0f, odd);
  }
  float least = __builtin_reduce_min(low), range = __builtin_reduce_max(high) - least;
  float each = range > 0x1p-100f ? 255.0f / range : 0.0f, zero = __builtin_rintf(-least * each);
  int32_t shift = zero <= 255.0f ? (int32_t)zero : 255;
  for (size_t i = 0; i < inputs; i += W) {
    Floats x = inputs - i < W ? load_part(from + i, inputs - i) : load(from + i);
    ByteLanes bytes = to_bytes(nearest(x * each) + shift);
    uint32_t fours[W / 4];
    memcpy(fours, &bytes, sizeof fours);
    for (size_t j = 0; j < W / 4 && i + 4 * j < inputs; j++) to[(i / 4 + j) * INTEGER_ROWS] = fours[j] ^ LESS_IN_FOUR;
  }
  return (Rounding){range * (1.0f / 255.0f) + sum_of(odd), shift - LESS};
}
static size_t rank_parts(const IntegerLinear *task) { return (task->layer.low.rank + W - 1) / W; }
static void *take(unsigned char *from, size_t *taken, size_t bytes) {
  void *part = from ? from + *taken : NULL;
  *taken += bytes;
  return part;
}
/* Where what is added by low rank lies in scratch memory; returns the bytes that it takes. */
static size_t integer_low_rank(IntegerLinear *task, void *scratch) {
  size_t parts = rank_parts(task), rows = (task->layer.rows + INTEGER_ROWS - 1) / INTEGER_ROWS * INTEGER_ROWS, taken = 0;
  task->down = take(scratch, &taken, parts * fours_of(task->layer.inputs) * 4 * W);
  task->down_scales = take(scratch, &taken, parts * W * sizeof(float));
  task->down_totals = take(scratch, &taken, parts * W * sizeof(int32_t));
#if defined(__AVX512BF16__)
  size_t pairs = parts * W / 2;
  task->up = take(scratch, &taken, linear_panels(&task->layer) * pairs * LINEAR_COLUMNS * sizeof(uint32_t));
  task->inner = take(scratch, &taken, rows * pairs * sizeof(uint32_t));
#else
  task->layer.low.inner = take(scratch, &taken, rows * task->layer.low.rank * sizeof(float));
#endif
  return taken;
}

static void pack_down(const IntegerLinear *task, size_t part) {
  size_t rank = task->layer.low.rank, inputs = task->layer.inputs, fours = fours_of(inputs);
  size_t count = rank - part * W < W ? rank - part * W : W;
  const float *from = task->layer.low.down + part * W;
  Floats largest = 0.0f;
  for (size_t input = 0; input < inputs; input++) {
    Floats each = count == W ? load(from + input * rank) : load_part(from + input * rank, count);
    largest = __builtin_elementwise_max(largest, __builtin_elementwise_abs(each));
  }
  Floats scale = largest * (1.0f / 127.0f), each = largest > 0x1p-100f ? 127.0f / largest : (Floats)0.0f;
  Integers total = 0;
  int8_t *to = task->down + part * fours * 4 * W;
  for (size_t input = 0; input < fours * 4; input++) {
    Floats x = 0.0f;
    if (input < inputs) x = count == W ? load(from + input * rank) : load_part(from + input * rank, count);
    Integers whole = nearest(x * each);
    total += whole;
    for (size_t i = 0; i < W; i++) to[input / 4 * 4 * W + 4 * i + input % 4] = (int8_t)whole[i];
  }
  store(task->down_scales + part * W, scale);
  store_integers(task->down_totals + part * W, total);
}
#if defined(__AVX512BF16__)
/* A pair of rows that lie `stride` apart, of as many as there are: W columns, zeros where there is none. */
INLINE __m512i pair_of_rows(const float *from, size_t stride, size_t rows, size_t columns) {
  Floats each[2] = {0.0f, 0.0f};
  for (size_t i = 0; i < 2 && i < rows; i++)
    each[i] = columns >= W ? load(from + i * stride) : load_part(from + i * stride, columns);
  return pair_of(each[0], each[1]);
}
static void pack_up(const IntegerLinear *task, size_t panel) {
  int gated = task->layer.activation == LINEAR_GEGLU;
  size_t rank = task->layer.low.rank, outputs = task->layer.outputs, width = gated ? 2 * outputs : outputs;
  size_t pairs = rank_parts(task) * W / 2;
  uint32_t *to = task->up + panel * pairs * LINEAR_COLUMNS;
  for (size_t pair = 0; pair < pairs; pair++)
    for (int half = 0; half < 2; half++, to += HALF) {
      size_t column = panel * (gated ? HALF : LINEAR_COLUMNS) + (gated ? 0 : half * HALF);
      size_t rows = 2 * pair < rank && column < outputs ? rank - 2 * pair : 0;
      const float *from = task->layer.low.up + 2 * pair * width + column + (gated && half ? outputs : 0);
      _mm512_storeu_si512(to, rows ? pair_of_rows(from, width, rows, outputs - column) : _mm512_setzero_si512());
    }
}
#endif
static size_t integer_packs(const IntegerLinear *task) {
  return rank_parts(task) + (task->up ? linear_panels(&task->layer) : 0);
}
static void integer_pack(void *argument, size_t index) {
  const IntegerLinear *task = argument;
  if (index < rank_parts(task)) pack_down(task, index);
#if defined(__AVX512BF16__)
  else pack_up(task, index - rank_parts(task));
#endif
}

/* Rows of `inner` from those of x that are rounded already. */
static void low_rank_of_bytes(const IntegerLinear *task, size_t block) {
  size_t fours = fours_of(task->layer.inputs), parts = rank_parts(task), first = block * INTEGER_ROWS;
  const Rounding *rounding = task->roundings + first;
  for (size_t part = 0; part < parts; part++) {
    const int8_t *down = task->down + part * fours * 4 * W;
    const uint32_t *x = task->fours + first * fours;
    Integers sums[INTEGER_ROWS], total = load_integers(task->down_totals + part * W);
    for (int i = 0; i < INTEGER_ROWS; i++) sums[i] = 0;
#pragma clang loop unroll_count(4)
    for (size_t four = 0; four < fours; four++, down += 4 * W, x += INTEGER_ROWS) {
      Integers each = load_integers(down);
      for (int i = 0; i < INTEGER_ROWS; i++) sums[i] = add_bytes(sums[i], inputs_of(x, i, INTEGER_ROWS), each);
    }
    for (size_t i = 0; i < INTEGER_ROWS && first + i < task->layer.rows; i++) {
      Floats scale = load(task->down_scales + part * W) * rounding[i].step;
      Floats made = floats_of(sums[i] - total * rounding[i].zero) * scale;
#if defined(__AVX512BF16__)
      uint32_t pairs[W / 2], *to = task->inner + (block * parts + part) * W / 2 * INTEGER_ROWS + i;
      _mm256_storeu_si256((__m256i *)pairs, (__m256i)_mm512_cvtneps_pbh((__m512)made));
      for (size_t pair = 0; pair < W / 2; pair++) to[pair * INTEGER_ROWS] = pairs[pair];
#else
      size_t rank = task->layer.low.rank, count = rank - part * W < W ? rank - part * W : W;
      float *to = task->layer.low.inner + (first + i) * rank + part * W;
      if (count == W) store(to, made);
      else store_part(to, made, count);
#endif
    }
  }
}
#if defined(__AVX512BF16__)
INLINE void add_low_rank_pairs(const IntegerLinear *task, Floats made[BYTE_ROWS][2], size_t row, size_t panel, int rows) {
  size_t pairs = rank_parts(task) * W / 2;
  const uint32_t *up = task->up + panel * pairs * LINEAR_COLUMNS;
  const uint32_t *inner = task->inner + row / INTEGER_ROWS * pairs * INTEGER_ROWS + row % INTEGER_ROWS;
  Floats sums[BYTE_ROWS][2]; /* in registers */
  for (int i = 0; i < rows; i++) sums[i][0] = made[i][0], sums[i][1] = made[i][1];
  for (size_t pair = 0; pair < pairs; pair++, up += LINEAR_COLUMNS, inner += INTEGER_ROWS) {
    __m512i low = load_pairs(up), high = load_pairs(up + HALF);
    for (int i = 0; i < rows; i++) {
      sums[i][0] = add_products(sums[i][0], low, inner[i]);
      sums[i][1] = add_products(sums[i][1], high, inner[i]);
    }
  }
  for (int i = 0; i < rows; i++) made[i][0] = sums[i][0], made[i][1] = sums[i][1];
}
#endif

static void integer_round(void *argument, size_t block) {
  IntegerLinear *task = argument;
  size_t inputs = task->layer.inputs, first = block * INTEGER_ROWS;
  uint32_t *to = task->fours + first * fours_of(inputs);
  for (size_t i = 0; i < INTEGER_ROWS && first + i < task->layer.rows; i++)
    task->roundings[first + i] = round_row(task->layer.x + (first + i) * inputs, inputs, to + i);
  if (task->down) low_rank_of_bytes(task, block);
}

/* Some rows of a panel. x (four of inputs, row). */
INLINE void multiply_bytes(const IntegerLinear *task, const uint32_t *x, size_t row, size_t panel, int rows) {
  size_t fours = fours_of(task->layer.inputs);
  const Rounding *rounding = task->roundings + row;
  for (size_t part = 0; part < HALF; part += W) {
    Integers sums[BYTE_ROWS][2];
    for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = 0;
    const int8_t *weight = task->weights + (panel * fours * LINEAR_COLUMNS + part) * 4;
    const uint32_t *each = x;
#pragma clang loop unroll_count(4)
    for (size_t four = 0; four < fours; four++, weight += 4 * LINEAR_COLUMNS, each += INTEGER_ROWS) {
      Integers low = load_integers(weight), high = load_integers(weight + 4 * HALF);
      for (int i = 0; i < rows; i++) {
        Integers bytes = inputs_of(each, i, rows);
        sums[i][0] = add_bytes(sums[i][0], bytes, low);
        sums[i][1] = add_bytes(sums[i][1], bytes, high);
      }
    }
    Floats made[BYTE_ROWS][2];
    for (int half = 0; half < 2; half++) {
      size_t column = panel * LINEAR_COLUMNS + half * HALF + part;
      Floats scale = load(task->scales + column);
      Integers total = load_integers(task->totals + column);
      for (int i = 0; i < rows; i++)
        made[i][half] = floats_of(sums[i][half] - total * rounding[i].zero) * (scale * rounding[i].step);
    }
#if defined(__AVX512BF16__)
    if (task->up) add_low_rank_pairs(task, made, row, panel, rows);
#endif
    finish_rows(&task->layer, made, 0, 1, row, panel, part, rows);
  }
}
static __attribute__((noinline)) void multiply_all_bytes(const IntegerLinear *task, const uint32_t *x, size_t row,
                                                         size_t panel) {
  multiply_bytes(task, x, row, panel, BYTE_ROWS);
}
static __attribute__((noinline)) void multiply_row_bytes(const IntegerLinear *task, const uint32_t *x, size_t row,
                                                         size_t panel) {
  multiply_bytes(task, x, row, panel, 1);
}

static void integer_linear(void *argument, size_t index) {
  const IntegerLinear *task = argument;
  size_t rows = integer_rows(task), panels = integer_panels(task), all = linear_panels(&task->layer);
  size_t across = (all + panels - 1) / panels, fours = fours_of(task->layer.inputs);
  size_t row_end = (index / across + 1) * rows, panel_end = (index % across + 1) * panels;
  if (row_end > task->layer.rows) row_end = task->layer.rows;
  if (panel_end > all) panel_end = all;
  for (size_t row = index / across * rows; row < row_end; row += INTEGER_ROWS) {
    const uint32_t *x = task->fours + row * fours;
    size_t count = row_end - row < INTEGER_ROWS ? row_end - row : INTEGER_ROWS;
    for (size_t panel = index % across * panels; panel < panel_end; panel++) {
      size_t done = 0;
      for (; count - done >= BYTE_ROWS; done += BYTE_ROWS) multiply_all_bytes(task, x + done, row + done, panel);
      for (; done < count; done++) multiply_row_bytes(task, x + done, row + done, panel);
    }
  }
}
