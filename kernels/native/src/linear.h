/* Rows times a fixed matrix, with what is done to the sums before they are written; part of kernels.c.

   A panel is 32 columns of the matrix, two halves of 16 that lie side by side. The sums of some rows and two vectors of
   columns stay in registers over all inputs; rows are read as they lie, or laid out by input before, on the stack of the
   thread. */

enum { HALF = LINEAR_COLUMNS / 2 };
#if defined(__AVX512F__) || defined(__aarch64__)
enum { LINEAR_ROWS = 8 }; /* of 32 registers 16 sums, 2 of weights; rows often come by eights */
#elif defined(__FMA__)
enum { LINEAR_ROWS = 6 }; /* of 16: 12 sums, 2 of weights, 1 of a row */
#else
enum { LINEAR_ROWS = 4 }; /* of 16: 8 sums, 2 of weights, what products that aren't fused need */
#endif
enum { ROWS_LAID_OUT = LINEAR_ROWS == 8 }; /* of floats; float16 has fewer panels a task, so that it would not pay */
enum { LINEAR_AHEAD = 16 * LINEAR_COLUMNS }; /* weights that are asked of the cache before they are needed */
enum { LINEAR_TASK_ROWS = 192, LINEAR_TASK_NUMBERS = ROWS_LAID_OUT ? 1 << 17 : 1 << 16 }; /* of rows, and of weights that stay
   in a core's cache for them */
enum { HALVES_TASK_NUMBERS = LINEAR_MOST_INPUTS * LINEAR_COLUMNS }; /* of float16: 160 KiB of floats, on the thread's stack */

static size_t linear_panels(const Linear *task) {
  size_t columns = task->activation == LINEAR_GEGLU ? HALF : LINEAR_COLUMNS;
  return (task->outputs + columns - 1) / columns;
}
static size_t even_share(size_t count, size_t most) { /* of as many equal parts as it takes for none to be larger */
  size_t parts = (count + most - 1) / most;
  return (count + parts - 1) / parts;
}
static size_t task_rows(const Linear *task) {
  return (even_share(task->rows, LINEAR_TASK_ROWS) + LINEAR_ROWS - 1) / LINEAR_ROWS * LINEAR_ROWS;
}
static size_t task_panels(const Linear *task) {
  size_t numbers = task->halves ? HALVES_TASK_NUMBERS : LINEAR_TASK_NUMBERS;
  size_t most = numbers / (even_share(task->inputs, LINEAR_MOST_INPUTS) * LINEAR_COLUMNS);
  return even_share(linear_panels(task), most ? most : 1);
}
static size_t linear_tasks(const Linear *task) {
  size_t rows = task_rows(task), panels = task_panels(task);
  return (task->rows + rows - 1) / rows * ((linear_panels(task) + panels - 1) / panels);
}

/* x * Phi(x), where Phi is the share of a normal distribution below x: 2 to a polynomial's power from 0 to 6, beyond
   which it is less than 1e-9 (degree 9 by weighted least squares; within 4e-8 of Phi). */
INLINE Floats gelu(Floats x) {
  Floats far = __builtin_elementwise_min(__builtin_elementwise_abs(x), (Floats)6.0f), power = 0x1.b329eap-22f;
  power = multiply_add(power, far, (Floats)-0x1.0c8158p-17f);
  power = multiply_add(power, far, (Floats)0x1.13ca6ap-14f);
  power = multiply_add(power, far, (Floats)-0x1.0be576p-12f);
  power = multiply_add(power, far, (Floats)-0x1.33de3cp-15f);
  power = multiply_add(power, far, (Floats)0x1.c9bdacp-8f);
  power = multiply_add(power, far, (Floats)-0x1.adcbc4p-5f);
  power = multiply_add(power, far, (Floats)-0x1.d63be4p-2f);
  power = multiply_add(power, far, (Floats)-0x1.26aed4p+0f);
  power = multiply_add(power, far, (Floats)-1.0f);
  Floats tail = power_of_two(power);
  return x * (x < 0 ? tail : 1.0f - tail);
}

/* Some inputs of some rows, which are `stride` apart, to (input, row). */
static void lay_out(const float *from, size_t stride, size_t inputs, size_t rows, float *to) {
  size_t turned = rows < 4 ? 0 : inputs / 4 * 4;
  for (size_t first = 0; first < rows && turned; first += 4) {
    size_t row = first + 4 <= rows ? first : rows - 4; /* some of them twice where they aren't fours */
    for (size_t input = 0; input < turned; input += 4)
      turn_four(from + row * stride + input, stride, to + input * LINEAR_ROWS + row, LINEAR_ROWS, 1.0f);
  }
  for (size_t row = 0; row < rows; row++)
    for (size_t input = turned; input < inputs; input++) to[input * LINEAR_ROWS + row] = from[row * stride + input];
}

/* Some rows of what is added by low rank, all of its inputs at once. */
static void low_rank(void *argument, size_t block) {
  const Linear *task = argument;
  size_t inputs = task->inputs, rank = task->low.rank, first = block * LOW_RANK_ROWS;
  const float *x[LOW_RANK_ROWS]; /* beyond the last row that one again */
  for (size_t i = 0; i < LOW_RANK_ROWS; i++)
    x[i] = task->x + (first + i < task->rows ? first + i : task->rows - 1) * inputs;
  for (size_t part = 0; part < rank; part += W) {
    size_t count = rank - part < W ? rank - part : W;
    Floats sums[LOW_RANK_ROWS];
    for (int i = 0; i < LOW_RANK_ROWS; i++) sums[i] = 0.0f;
    const float *down = task->low.down + part;
    for (size_t input = 0; input < inputs; input++, down += rank) {
      Floats each = count == W ? load(down) : load_part(down, count);
      for (int i = 0; i < LOW_RANK_ROWS; i++) sums[i] = multiply_add((Floats)x[i][input], each, sums[i]);
    }
    for (size_t i = 0; i < LOW_RANK_ROWS && first + i < task->rows; i++) {
      float *to = task->low.inner + (first + i) * rank + part;
      if (count == W) store(to, sums[i]);
      else store_part(to, sums[i], count);
    }
  }
}

INLINE void add_low_rank(const LowRank *low, Floats sums[LINEAR_ROWS][2], int half, size_t row, size_t column, size_t width,
                         size_t count, int rows) {
  const float *up = low->up + column, *inner = low->inner + row * low->rank;
  Floats made[LINEAR_ROWS]; /* in registers */
  for (int i = 0; i < rows; i++) made[i] = sums[i][half];
  for (size_t r = 0; r < low->rank; r++, up += width) {
    Floats each = count == W ? load(up) : load_part(up, count);
    for (int i = 0; i < rows; i++) made[i] = multiply_add((Floats)inner[i * low->rank + r], each, made[i]);
  }
  for (int i = 0; i < rows; i++) sums[i][half] = made[i];
}

/* Writes what some rows of a panel came to: what lies in y already, what is added by low rank, bias, activation and what is
   added. */
INLINE void finish_rows(const Linear *task, Floats sums[LINEAR_ROWS][2], int begun, int ended, size_t row, size_t panel,
                        size_t part, int rows) {
  int gated = task->activation == LINEAR_GEGLU;
  for (int half = 0; half < (gated ? 1 : 2); half++) {
    size_t column = panel * (gated ? HALF : LINEAR_COLUMNS) + half * HALF + part;
    if (column >= task->outputs) return;
    size_t count = task->outputs - column < W ? task->outputs - column : W;
    if (ended && task->low.inner) {
      size_t width = gated ? 2 * task->outputs : task->outputs;
      add_low_rank(&task->low, sums, half, row, column, width, count, rows);
      if (gated) add_low_rank(&task->low, sums, 1, row, column + task->outputs, width, count, rows);
    }
    for (int i = 0; i < rows; i++) {
      float *to = task->y + (row + i) * task->outputs + column;
      Floats sum = sums[i][half];
      if (begun) sum += count == W ? load(to) : load_part(to, count);
      if (ended) {
        const float *bias = task->bias + column, *gate = bias + task->outputs;
        sum += count == W ? load(bias) : load_part(bias, count);
        if (gated) sum *= gelu(sums[i][1] + (count == W ? load(gate) : load_part(gate, count)));
        if (task->activation == LINEAR_GELU) sum = gelu(sum);
        if (task->activation == LINEAR_SILU) sum = silu(sum);
        if (task->added) {
          const float *added = task->added + (row + i) * task->outputs + column;
          sum += count == W ? load(added) : load_part(added, count);
        }
      }
      if (count == W) store(to, sum);
      else store_part(to, sum, count);
    }
  }
}

/* Some rows of x: of an input and the next one, and of a row and the next one, how far they are apart. */
typedef struct {
  const float *x;
  size_t input, row;
} Rows;

/* Products of some inputs of some rows and two vectors of columns, `apart`, of a panel (input, column), to the sums that are
   there. Vectors in one line of the cache are asked for by the processor itself. */
INLINE void add_rows(Floats made[LINEAR_ROWS][2], Rows from, const float *weight, size_t apart, size_t inputs, int rows) {
  Floats sums[LINEAR_ROWS][2]; /* in registers */
  for (int i = 0; i < rows; i++) sums[i][0] = made[i][0], sums[i][1] = made[i][1];
#pragma clang loop unroll_count(4)
  for (size_t input = 0; input < inputs; input++, weight += LINEAR_COLUMNS, from.x += from.input) {
    if (apart == HALF) __builtin_prefetch(weight + LINEAR_AHEAD), __builtin_prefetch(weight + LINEAR_AHEAD + HALF);
    Floats low = load(weight), high = load(weight + apart);
    for (int i = 0; i < rows; i++) {
      Floats x = from.x[i * from.row];
      sums[i][0] = multiply_add(x, low, sums[i][0]);
      sums[i][1] = multiply_add(x, high, sums[i][1]);
    }
  }
  for (int i = 0; i < rows; i++) made[i][0] = sums[i][0], made[i][1] = sums[i][1];
}

static int is_laid_out(const Linear *task) { return ROWS_LAID_OUT && !task->halves; }

/* Products of rows that are laid out, or that lie in x. */
INLINE void add_these(const Linear *task, Floats made[LINEAR_ROWS][2], const float *x, const float *weight, size_t apart,
                      size_t inputs, int rows) {
  if (is_laid_out(task)) add_rows(made, (Rows){x, LINEAR_ROWS, 1}, weight, apart, inputs, rows);
  else add_rows(made, (Rows){x, 1, task->inputs}, weight, apart, inputs, rows);
}

/* Some rows of a panel, for inputs from `first` on, whose weights are (input, column). */
INLINE void multiply_rows(const Linear *task, const float *x, const float *weights, size_t first, size_t inputs, size_t row,
                          size_t panel, int rows) {
  int begun = first > 0, ended = first + inputs == task->inputs;
#if W == 16
  Floats sums[LINEAR_ROWS][2];
  for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = 0.0f;
  add_these(task, sums, x, weights, HALF, inputs, rows);
  finish_rows(task, sums, begun, ended, row, panel, 0, rows);
#else
  for (size_t part = 0; part < HALF; part += 2 * W) { /* of each half two vectors, as they lie; then one of each */
    Floats made[2][LINEAR_ROWS][2], sums[LINEAR_ROWS][2];
    for (int half = 0; half < 2; half++) {
      for (int i = 0; i < rows; i++) made[half][i][0] = made[half][i][1] = 0.0f;
      add_these(task, made[half], x, weights + half * HALF + part, W, inputs, rows);
    }
    for (int vector = 0; vector < 2; vector++) {
      for (int i = 0; i < rows; i++) sums[i][0] = made[0][i][vector], sums[i][1] = made[1][i][vector];
      finish_rows(task, sums, begun, ended, row, panel, part + (size_t)vector * W, rows);
    }
  }
#endif
}
static __attribute__((noinline)) void multiply_all(const Linear *task, const float *x, const float *weights, size_t first,
                                                   size_t inputs, size_t row, size_t panel) {
  multiply_rows(task, x, weights, first, inputs, row, panel, LINEAR_ROWS);
}
static __attribute__((noinline)) void multiply_four(const Linear *task, const float *x, const float *weights, size_t first,
                                                    size_t inputs, size_t row, size_t panel) {
  multiply_rows(task, x, weights, first, inputs, row, panel, 4);
}
static __attribute__((noinline)) void multiply_row(const Linear *task, const float *x, const float *weights, size_t first,
                                                   size_t inputs, size_t row, size_t panel) {
  multiply_rows(task, x, weights, first, inputs, row, panel, 1);
}

/* Some inputs of some panels to floats (panel, input, column). */
static void panels_to_floats(const Linear *task, size_t panel, size_t end, size_t first, size_t inputs, float *to) {
  for (; panel < end; panel++) {
    const uint16_t *from = task->halves + (panel * task->inputs + first) * LINEAR_COLUMNS;
    for (size_t i = 0; i < inputs * LINEAR_COLUMNS; i += W, to += W) store(to, load_halves(from + i));
  }
}

/* Asks for one of as many parts of those that become floats next, as nothing is multiplied meanwhile: of an input and a panel
   they are a line. */
static void fetch_panels(const Linear *task, size_t panel, size_t end, size_t first, size_t inputs, size_t part, size_t parts) {
  if (end > linear_panels(task)) end = linear_panels(task);
  for (; panel < end; panel++)
    for (size_t input = inputs * part / parts; input < inputs * (part + 1) / parts; input++)
      __builtin_prefetch(task->halves + (panel * task->inputs + first + input) * LINEAR_COLUMNS, 0, 2);
}

/* Some rows of some panels; floats: room for these panels' weights where they are float16. */
static void multiply_share(const Linear *task, size_t index, float *floats) {
  size_t rows = task_rows(task), panels = task_panels(task), across = (linear_panels(task) + panels - 1) / panels;
  size_t row_end = (index / across + 1) * rows, panel_begin = index % across * panels, panel_end = panel_begin + panels;
  if (row_end > task->rows) row_end = task->rows;
  if (panel_end > linear_panels(task)) panel_end = linear_panels(task);
  size_t some = even_share(task->inputs, LINEAR_MOST_INPUTS), apart = is_laid_out(task) ? 1 : task->inputs;
  LINE_ALIGNED float laid[ROWS_LAID_OUT ? LINEAR_MOST_INPUTS * LINEAR_ROWS : 1]; /* 40 KiB at most, on the thread's stack */
  for (size_t first = 0; first < task->inputs; first += some) {
    size_t inputs = task->inputs - first < some ? task->inputs - first : some;
    size_t each = (task->halves ? inputs : task->inputs) * LINEAR_COLUMNS; /* numbers of a panel, where they lie */
    if (task->halves) panels_to_floats(task, panel_begin, panel_end, first, inputs, floats);
    size_t next = first + inputs < task->inputs ? first + inputs : 0, after = next ? panel_begin : panel_end;
    const float *begin = task->halves ? floats : task->weights + panel_begin * each + first * LINEAR_COLUMNS;
    for (size_t row = index / across * rows; row < row_end; row += LINEAR_ROWS) {
      size_t count = row_end - row < LINEAR_ROWS ? row_end - row : LINEAR_ROWS;
      const float *x = task->x + row * task->inputs + first, *weights = begin;
      if (task->halves)
        fetch_panels(task, after, after + panels, next, task->inputs - next < some ? task->inputs - next : some,
                     row % rows / LINEAR_ROWS, rows / LINEAR_ROWS);
      if (is_laid_out(task)) lay_out(x, task->inputs, inputs, count, laid), x = laid;
      for (size_t panel = panel_begin; panel < panel_end; panel++, weights += each) {
        size_t done = 0;
        if (count == LINEAR_ROWS) multiply_all(task, x, weights, first, inputs, row, panel), done = count;
        for (; count - done >= 4; done += 4)
          multiply_four(task, x + done * apart, weights, first, inputs, row + done, panel);
        for (; done < count; done++) multiply_row(task, x + done * apart, weights, first, inputs, row + done, panel);
      }
    }
  }
}
static __attribute__((noinline)) void multiply_halves(const Linear *task, size_t index) {
  LINE_ALIGNED float floats[HALVES_TASK_NUMBERS];
  multiply_share(task, index, floats);
}
static void linear(void *argument, size_t index) {
  const Linear *task = argument;
  if (task->halves) multiply_halves(task, index);
  else multiply_share(task, index, NULL);
}
