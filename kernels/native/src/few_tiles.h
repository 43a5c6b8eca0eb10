/* The same convolution where there are few tiles; part of kernels.c.

   There weights are most of what is read, so filters stay as they are, nine numbers a pair of channels, and become 36 on
   the way, some inputs at a time. Lanes are outputs, so that none is idle where there are fewer tiles than lanes. */

enum {
  SOME_INPUTS = 32,                         /* whose filters are transformed at once */
  FILTERS = SOME_INPUTS * FEW_OUTPUTS + 16, /* numbers of theirs at a point */
  LINE = 64                                 /* bytes that come from memory together */
};
#if defined(__AVX512F__) || defined(__aarch64__)
enum { TILES = 8 }; /* of 32 registers 16 sums, 2 of a filter; tiles often come by eights */
#else
enum { TILES = 4 };
#endif

/* A row or column of a filter, three numbers `apart`, as six. */
INLINE void transform_filter(const Floats *w, int apart, Floats *to, int to_apart) {
  Floats ends = (w[0] + w[2 * apart]) * (-1.0f / 6.0f), middle = w[apart] * (1.0f / 6.0f);
  Floats far = multiply_add(w[2 * apart], (Floats)(1.0f / 6.0f), w[0] * (1.0f / 24.0f)), half = middle * 0.5f;
  to[0] = w[0] * 0.25f;
  to[to_apart] = ends - middle, to[2 * to_apart] = ends + middle;
  to[3 * to_apart] = far + half, to[4 * to_apart] = far - half;
  to[5 * to_apart] = w[2 * apart];
}

/* Weights of some inputs, (input, 9, output), which begin at a number, to (point, input, output). */
INLINE void filters_from(const Winograd *task, size_t number, size_t inputs, float *to, int of_halves) {
  for (size_t input = 0; input < inputs; input++, number += 9 * FEW_OUTPUTS, to += FEW_OUTPUTS)
    for (size_t part = 0; part < FEW_OUTPUTS; part += W) {
      Floats filter[9], columns[18], points[6];
      for (size_t i = 0; i < 9; i++) {
        size_t at = number + i * FEW_OUTPUTS + part;
        filter[i] = of_halves ? load_halves(task->halves + at) : load(task->weights + at);
      }
      for (int i = 0; i < 3; i++) transform_filter(filter + i, 3, columns + i, 3);
      for (int i = 0; i < 6; i++) {
        transform_filter(columns + i * 3, 1, points, 1);
        for (int j = 0; j < 6; j++) store(to + (i * 6 + j) * FILTERS + part, points[j]);
      }
    }
}

static void few_filters(const Winograd *task, size_t number, size_t inputs, float *to) {
  if (task->halves) filters_from(task, number, inputs, to, 1);
  else filters_from(task, number, inputs, to, 0);
}
/* Asks for the lines of weights of an input. */
static void fetch_filters(const Winograd *task, size_t number) {
  const char *from = task->halves ? (const char *)(task->halves + number) : (const char *)(task->weights + number);
  size_t bytes = 9 * FEW_OUTPUTS * (task->halves ? sizeof(uint16_t) : sizeof(float));
  for (size_t line = 0; line < bytes; line += LINE) __builtin_prefetch(from + line);
}

/* To sums (tile, output) of some tiles: tiles (input, tile) times filters (input, output). */
INLINE void multiply_tiles(const float *tiles, size_t room, const float *filters, size_t inputs, float *sums, int begun,
                           int count) {
  for (size_t part = 0; part < FEW_OUTPUTS / 2; part += W) {
    Floats sum[TILES][2];
    for (int i = 0; i < count; i++)
      for (int j = 0; j < 2; j++)
        sum[i][j] = begun ? load(sums + i * FEW_OUTPUTS + j * FEW_OUTPUTS / 2 + part) : (Floats)0.0f;
    const float *tile = tiles, *filter = filters + part;
#pragma clang loop unroll_count(4)
    for (size_t input = 0; input < inputs; input++, tile += room, filter += FEW_OUTPUTS) {
      Floats low = load(filter), high = load(filter + FEW_OUTPUTS / 2);
      for (int i = 0; i < count; i++) {
        sum[i][0] = multiply_add((Floats)tile[i], low, sum[i][0]);
        sum[i][1] = multiply_add((Floats)tile[i], high, sum[i][1]);
      }
    }
    for (int i = 0; i < count; i++)
      for (int j = 0; j < 2; j++) store(sums + i * FEW_OUTPUTS + j * FEW_OUTPUTS / 2 + part, sum[i][j]);
  }
}
static __attribute__((noinline)) void multiply_many(const float *tiles, size_t room, const float *filters,
                                                    size_t inputs, float *sums, int begun) {
  multiply_tiles(tiles, room, filters, inputs, sums, begun, TILES);
}
static __attribute__((noinline)) void multiply_four_tiles(const float *tiles, size_t room, const float *filters,
                                                          size_t inputs, float *sums, int begun) {
  multiply_tiles(tiles, room, filters, inputs, sums, begun, 4);
}

/* Where a tile's pixels go. */
typedef struct {
  size_t image, first, rows, columns; /* first: of its pixels in a channel; rows, columns: that are in the image */
} Target;

static Target target_of(const Winograd *task, size_t tile) {
  Place at = place_of(task, tile);
  size_t rows = task->height - at.row * 4, columns = task->width - at.column * 4;
  return (Target){at.image, at.row * 4 * task->width + at.column * 4, rows < 4 ? rows : 4, columns < 4 ? columns : 4};
}

/* Pixels (pixel, tile, output) of some tiles to four outputs or fewer. */
static void write_outputs(const Winograd *task, const Target *targets, size_t tiles, const float *pixels, size_t apart,
                          size_t output, size_t outputs) {
  size_t area = task->height * task->width;
  for (size_t tile = 0; tile < tiles; tile++) {
    const Target *target = targets + tile;
    size_t place = (target->image * task->outputs + output) * area + target->first;
    const float *from = pixels + tile * FEW_OUTPUTS;
    for (size_t row = 0; row < target->rows; row++, place += task->width) {
      const float *added = task->added ? task->added + place : NULL, *line = from + row * 4 * apart;
      if (outputs == 4 && target->columns == 4) {
        turn_four(line, apart, task->y + place, area, 1.0f);
        for (size_t i = 0; i < 4 && added; i++)
          *(Four *)(task->y + place + i * area) += *(const Four *)(added + i * area);
      } else {
        for (size_t i = 0; i < outputs; i++)
          for (size_t j = 0; j < target->columns; j++)
            task->y[place + i * area + j] = line[j * apart + i] + (added ? added[i * area + j] : 0.0f);
      }
    }
  }
}

/* Sums (point, tile, output) of some tiles to pixels in their place, with bias and shift. */
static void find_pixels(const Winograd *task, const Target *targets, size_t tiles, float *sums, size_t apart,
                        size_t first, size_t outputs) {
  float biases[FEW_OUTPUTS] = {0}, shifts[FEW_OUTPUTS] = {0};
  memcpy(biases, task->bias + first, outputs * sizeof(float));
  for (size_t tile = 0; tile < tiles; tile++) {
    if (task->shift) memcpy(shifts, task->shift + targets[tile].image * task->shifts + first, outputs * sizeof(float));
    for (size_t part = 0; part < FEW_OUTPUTS; part += W) {
      float *to = sums + tile * FEW_OUTPUTS + part;
      Floats products[POINTS], halves[24], made[16], bias = load(biases + part) + load(shifts + part);
      for (size_t i = 0; i < POINTS; i++) products[i] = load(to + i * apart);
      for (int i = 0; i < 6; i++) transform_output(products + i * 6, 1, halves + i * 4, 1);
      for (int i = 0; i < 4; i++) transform_output(halves + i, 4, made + i, 4);
      for (size_t i = 0; i < 16; i++) store(to + i * apart, made[i] + bias);
    }
  }
}

static size_t few_apart(const Winograd *task) { return task->room * FEW_OUTPUTS + SPREAD; }
static size_t few_tasks(const Winograd *task) { return (task->outputs + FEW_OUTPUTS - 1) / FEW_OUTPUTS; }
static size_t few_scratch(const Winograd *task) {
  return POINTS * (point_of_input(task) + few_tasks(task) * few_apart(task));
}

/* The tiles of a strip of a block of outputs. */
static void few_tiles(void *argument, size_t index) {
  const Winograd *task = argument;
  size_t block = index, point = point_of_input(task), apart = few_apart(task), count = task->tiles;
  float *sums = task->scratch + POINTS * point + index * POINTS * apart;
  LINE_ALIGNED float filters[POINTS * FILTERS]; /* 146 KiB on the stack of the thread */
  for (size_t input = 0; input < task->inputs; input += SOME_INPUTS) {
    size_t some = task->inputs - input < SOME_INPUTS ? task->inputs - input : SOME_INPUTS;
    size_t number = (block * task->inputs + input) * 9 * FEW_OUTPUTS;
    few_filters(task, number, some, filters);
    for (size_t i = 0; i < POINTS; i++) {
      const float *tiles = task->scratch + i * point + input * task->room, *filter = filters + i * FILTERS;
      float *to = sums + i * apart;
      size_t tile = 0;
      /* Of the next inputs' filters as much as brings them all in by the last point. */
      fetch_filters(task, number + (SOME_INPUTS + i) * 9 * FEW_OUTPUTS);
      for (; tile + TILES <= count; tile += TILES, tiles += TILES, to += TILES * FEW_OUTPUTS)
        multiply_many(tiles, task->room, filter, some, to, input > 0);
      for (; tile < count; tile += 4, tiles += 4, to += 4 * FEW_OUTPUTS) /* with zeros beyond the last one */
        multiply_four_tiles(tiles, task->room, filter, some, to, input > 0);
    }
  }
  Target targets[FEW_TILES];
  for (size_t tile = 0; tile < count; tile++) targets[tile] = target_of(task, task->first + tile);
  size_t output = block * FEW_OUTPUTS, outputs = task->outputs - output;
  if (outputs > FEW_OUTPUTS) outputs = FEW_OUTPUTS;
  find_pixels(task, targets, count, sums, apart, output, outputs);
  for (size_t i = 0; i < outputs; i += 4)
    write_outputs(task, targets, count, sums + i, apart, output + i, outputs - i < 4 ? outputs - i : 4);
}
