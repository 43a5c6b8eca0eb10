/* 3x3 convolution, stride 1, padding 1, as F(4x4, 3x3) of Lavin & Gray (2016): 36 products for 144; part of kernels.c.

   Each lane of a vector is a tile of 4 x 4 pixels, whose 6 x 6 neighbourhood makes 36 numbers a channel; they are
   multiplied as 36 matrices, and 36 results make 4 x 4 pixels of each output channel. Tiles go through in strips, so
   that what lies between the three steps stays in the caches. */

enum {
  POINTS = 36,
  SPREAD = 80, /* numbers that keep what belongs together out of one set of a cache */
  AHEAD = 640, /* weights that are asked of memory before they are needed: where there are few tiles it is the limit */
  TILES_AHEAD = 64 /* the same of an image's row */
};
#if defined(__AVX512F__) || defined(__aarch64__)
enum { ROWS = WINOGRAD_OUTPUTS };
#else
enum { ROWS = WINOGRAD_OUTPUTS / 2 }; /* of 16 registers: 8 sums, 2 of tiles, 1 of a weight */
#endif

static size_t winograd_panel(size_t tiles) { return tiles <= W ? W : 2 * W; }

static size_t tiles_across(size_t pixels) { return (pixels + 3) / 4; }
static size_t blocks_of(size_t outputs) { return (outputs + WINOGRAD_OUTPUTS - 1) / WINOGRAD_OUTPUTS; }
static size_t point_of_input(const Winograd *task) { return task->inputs * task->room + SPREAD; }
static size_t point_of_output(const Winograd *task) {
  return blocks_of(task->outputs) * WINOGRAD_OUTPUTS * task->room + SPREAD;
}

/* Numbers that a strip with room for so many tiles needs. */
static size_t winograd_scratch(const Winograd *task) {
  return POINTS * (point_of_input(task) + point_of_output(task));
}

/* Where a tile is. */
typedef struct {
  size_t image, row, column; /* in tiles */
} Place;

static Place place_of(const Winograd *task, size_t tile) {
  size_t across = tiles_across(task->width), each = across * tiles_across(task->height);
  return (Place){tile / each, tile % each / across, tile % across};
}

/* The 6 numbers of one row of a tile's neighbourhood, where they are within the image. */
INLINE void read_line(const Winograd *task, const float *image, Place at, size_t i, float line[8]) {
  size_t y = at.row * 4 + i, x = at.column * 4; /* one further down and to the right than what they stand for */
  if (y < 1 || y > task->height) return;
  size_t first = x < 1 ? 1 : 0, end = task->width + 1 - x < 6 ? task->width + 1 - x : 6;
  memcpy(line + first, image + (y - 1) * task->width + x + first - 1, (end - first) * sizeof(float));
}

/* One row of the neighbourhoods of four tiles side by side, whose 16 pixels are within the image, turned: 6 numbers of
   each, W apart. */
INLINE void read_four(const float *from, float left, float right, float *to) {
  turn_four(from, 4, to + W, W, 1.0f);
  Four first = *(const Four *)(to + W), last = *(const Four *)(to + 4 * W);
  *(Four *)to = __builtin_shufflevector((Four)left, last, 0, 4, 5, 6);
  *(Four *)(to + 5 * W) = __builtin_shufflevector(first, (Four)right, 1, 2, 3, 4);
}

/* Neighbourhoods of W tiles from `tile` on, (row, column, tile); zeros beyond the image and the last tile. Four tiles side
   by side are turned at once: where they are whole, of the pixels as they lie, else of lines of their own. */
static void read_tiles(const Winograd *task, size_t channel, size_t tile, float *to) {
  size_t pixels = task->height * task->width, end = task->first + task->tiles, width = task->width;
  for (size_t lane = 0; lane < W; lane += 4) {
    Place at = place_of(task, tile + lane);
    size_t x = at.column * 4;
    int whole = tile + lane + 4 <= end && x + 16 <= width;
    for (size_t i = 0; i < 6; i++) {
      size_t y = at.row * 4 + i;
      if (whole) {
        float *six = to + i * 6 * W + lane;
        if (y >= 1 && y <= task->height) {
          const float *from = task->x + (at.image * task->inputs + channel) * pixels + (y - 1) * width + x;
          __builtin_prefetch(from + TILES_AHEAD);
          read_four(from, x > 0 ? from[-1] : 0.0f, x + 16 < width ? from[16] : 0.0f, six);
        } else {
          for (int j = 0; j < 6; j++) *(Four *)(six + j * W) = 0.0f;
        }
        continue;
      }
      float lines[4][8];
      for (size_t each = 0; each < 4; each++) {
        Place its = place_of(task, tile + lane + each);
        memset(lines[each], 0, sizeof lines[each]);
        if (tile + lane + each < end)
          read_line(task, task->x + (its.image * task->inputs + channel) * pixels, its, i, lines[each]);
      }
      turn_four(lines[0], 8, to + (i * 6) * W + lane, W, 1.0f);
      turn_four(lines[0] + 2, 8, to + (i * 6 + 2) * W + lane, W, 1.0f);
    }
  }
}

/* The transforms of one row or column, of numbers `apart`. */
INLINE void transform_input(const Floats *d, int apart, Floats *to) {
  Floats a = d[0], b = d[apart], c = d[2 * apart], e = d[3 * apart], f = d[4 * apart], g = d[5 * apart];
  Floats even = f - 4.0f * c, odd = e - 4.0f * b, far_even = f - c, far_odd = 2.0f * (e - b);
  to[0] = 4.0f * a - 5.0f * c + f;
  to[apart] = even + odd, to[2 * apart] = even - odd;
  to[3 * apart] = far_even + far_odd, to[4 * apart] = far_even - far_odd;
  to[5 * apart] = 4.0f * b - 5.0f * e + g;
}

INLINE void transform_output(const Floats *m, int apart, Floats *to, int to_apart) {
  Floats near = m[apart] + m[2 * apart], near_odd = m[apart] - m[2 * apart];
  Floats far = m[3 * apart] + m[4 * apart], far_odd = m[3 * apart] - m[4 * apart];
  to[0] = m[0] + near + far;
  to[to_apart] = near_odd + 2.0f * far_odd;
  to[2 * to_apart] = near + 4.0f * far;
  to[3 * to_apart] = near_odd + 8.0f * far_odd + m[5 * apart];
}

/* One input channel of a strip: (point, panel, channel, tile of the panel). */
static void winograd_input(void *argument, size_t channel) {
  const Winograd *task = argument;
  size_t panel = task->panel, point = point_of_input(task);
  for (size_t tile = 0; tile < task->room; tile += W) {
    LINE_ALIGNED float patch[POINTS * W];
    Floats numbers[POINTS];
    read_tiles(task, channel, task->first + tile, patch);
    for (int i = 0; i < POINTS; i++) numbers[i] = load(patch + i * W);
    for (int i = 0; i < 6; i++) transform_input(numbers + i * 6, 1, numbers + i * 6);
    for (int i = 0; i < 6; i++) transform_input(numbers + i, 6, numbers + i);
    float *to = task->scratch + (tile / panel * task->inputs + channel) * panel + tile % panel;
    for (int i = 0; i < POINTS; i++) store(to + (size_t)i * point, numbers[i]);
  }
}

/* weights (channel, output of a block) times tiles (channel, tile of a panel) to (output, tile). */
INLINE void multiply(const float *weights, const float *tiles, size_t channels, float *to, size_t apart, int columns) {
  for (size_t first = 0; first < WINOGRAD_OUTPUTS; first += ROWS) {
    Floats sums[ROWS][2];
    for (int i = 0; i < ROWS; i++)
      for (int j = 0; j < columns; j++) sums[i][j] = 0.0f;
    const float *weight = weights + first, *tile = tiles;
#pragma clang loop unroll_count(4)
    for (size_t channel = 0; channel < channels; channel++, weight += WINOGRAD_OUTPUTS, tile += columns * W) {
      __builtin_prefetch(weight + AHEAD);
      for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < columns; j++) sums[i][j] = multiply_add(load(tile + j * W), (Floats)weight[i], sums[i][j]);
    }
    for (size_t i = 0; i < ROWS; i++)
      for (int j = 0; j < columns; j++) store(to + (first + i) * apart + j * W, sums[i][j]);
  }
}
static __attribute__((noinline)) void multiply_one(const float *w, const float *t, size_t n, float *to, size_t apart) {
  multiply(w, t, n, to, apart, 1);
}
static __attribute__((noinline)) void multiply_two(const float *w, const float *t, size_t n, float *to, size_t apart) {
  multiply(w, t, n, to, apart, 2);
}

enum { BLOCKS = 8 }; /* of outputs in a task */
static size_t winograd_products(const Winograd *task) {
  return POINTS * ((blocks_of(task->outputs) + BLOCKS - 1) / BLOCKS);
}

/* One point of some outputs: (point, output, tile). */
static void winograd_multiply(void *argument, size_t index) {
  const Winograd *task = argument;
  size_t blocks = blocks_of(task->outputs), groups = (blocks + BLOCKS - 1) / BLOCKS, point = index / groups;
  size_t first = index % groups * BLOCKS, end = first + BLOCKS < blocks ? first + BLOCKS : blocks;
  const float *input = task->scratch + point * point_of_input(task);
  float *output = task->scratch + POINTS * point_of_input(task) + point * point_of_output(task);
  for (size_t block = first; block < end; block++) {
    const float *weights = task->weights + (point * blocks + block) * task->inputs * WINOGRAD_OUTPUTS;
    for (size_t tile = 0; tile < task->room; tile += task->panel)
      (task->panel == W ? multiply_one : multiply_two)(weights, input + tile * task->inputs, task->inputs,
                                                       output + block * WINOGRAD_OUTPUTS * task->room + tile,
                                                       task->room);
  }
}

/* Pixels of W tiles, (row, column, tile), to where they belong, with what is added. */
static void write_tiles(const Winograd *task, size_t channel, size_t tile, const float *from) {
  size_t pixels = task->height * task->width, end = task->first + task->tiles;
  for (size_t lane = 0; lane < W && tile + lane < end; lane += 4) {
    Place at = place_of(task, tile + lane);
    int inside = tile + lane + 4 <= end && at.column * 4 + 16 <= task->width;
    for (size_t i = 0; i < 4; i++) {
      float lines[4][4];
      size_t place = (at.image * task->outputs + channel) * pixels + (at.row * 4 + i) * task->width + at.column * 4;
      if (inside) {
        if (at.row * 4 + i >= task->height) break;
        turn_four(from + i * 4 * W + lane, W, task->y + place, 4, 1.0f);
        for (size_t four = 0; four < 16 && task->added; four += 4)
          *(Four *)(task->y + place + four) += *(const Four *)(task->added + place + four);
        continue;
      }
      turn_four(from + i * 4 * W + lane, W, lines[0], 4, 1.0f);
      for (size_t each = 0; each < 4 && tile + lane + each < end; each++) {
        Place its = place_of(task, tile + lane + each);
        if (its.row * 4 + i >= task->height) continue;
        size_t count = task->width - its.column * 4 < 4 ? task->width - its.column * 4 : 4;
        place = (its.image * task->outputs + channel) * pixels + (its.row * 4 + i) * task->width + its.column * 4;
        for (size_t j = 0; j < count; j++) task->y[place + j] = lines[each][j] + (task->added ? task->added[place + j] : 0.0f);
      }
    }
  }
}

/* A channel's bias for W tiles, and its shift of the images that they are of. */
static Floats bias_of(const Winograd *task, size_t channel, size_t tile) {
  Floats bias = task->bias[channel];
  size_t each = tiles_across(task->width) * tiles_across(task->height), end = task->first + task->tiles;
  for (size_t lane = 0; lane < W && task->shift && tile + lane < end; lane++)
    bias[lane] += task->shift[(tile + lane) / each * task->shifts + channel];
  return bias;
}

/* One output channel of a strip. */
static void winograd_output(void *argument, size_t channel) {
  const Winograd *task = argument;
  size_t point = point_of_output(task);
  const float *from = task->scratch + POINTS * point_of_input(task) + channel * task->room;
  for (size_t tile = 0; tile < task->room; tile += W) {
    Floats products[POINTS], halves[24], pixels[16];
    Floats bias = bias_of(task, channel, task->first + tile);
    LINE_ALIGNED float patch[16 * W];
    for (int i = 0; i < POINTS; i++) products[i] = load(from + (size_t)i * point + tile);
    for (int i = 0; i < 6; i++) transform_output(products + i * 6, 1, halves + i * 4, 1);
    for (int i = 0; i < 4; i++) transform_output(halves + i, 4, pixels + i, 4);
    for (int i = 0; i < 16; i++) store(patch + i * W, pixels[i] + bias);
    write_tiles(task, channel, task->first + tile, patch);
  }
}
