/* Every kernel by every set of instructions that the processor has, at odd shapes, against plain loops in double.

   Each array ends where a page begins that may not be touched, so that one number too many ends the process. Prints the
   sets that ran; ends with 1 at the first number that is off. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels.h"

static const char *doing = "";

static void demand(int holds, const char *what) {
  if (holds) return;
  fprintf(stderr, "%s: %s\n", doing, what);
  exit(1);
}

/* Arrays that are there, which a check gives back at its end: a process may have 65,530 pieces of memory. */
enum { MOST_ARRAYS = 64 };
static struct {
  void *start;
  size_t bytes;
} arrays[MOST_ARRAYS];
static size_t array_count;

static void give_back(void) {
  while (array_count) array_count--, munmap(arrays[array_count].start, arrays[array_count].bytes);
}

static void *guarded(size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
  char *start = mmap(NULL, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  demand(start != MAP_FAILED, "no memory");
  demand(mprotect(start + pages * page, page, PROT_NONE) == 0, "no guard");
  demand(array_count < MOST_ARRAYS, "too many arrays");
  arrays[array_count].start = start, arrays[array_count++].bytes = (pages + 1) * page;
  return start + pages * page - bytes;
}

/* Numbers between -2 and 2, the same for every set and at every run. */
static unsigned state;
static float *noise(size_t count) {
  float *made = guarded(count * sizeof(float));
  for (size_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    made[i] = (float)(state >> 8) * 0x1p-22f - 2.0f;
  }
  return made;
}

/* The same numbers rounded to float16, in place, and as such. */
static uint16_t *halved(float *numbers, size_t count) {
  uint16_t *made = guarded(count * sizeof *made);
  for (size_t i = 0; i < count; i++) {
    _Float16 half = (_Float16)numbers[i];
    memcpy(made + i, &half, sizeof half);
    numbers[i] = (float)half;
  }
  return made;
}

static void demand_near(const float *given, const double *expected, size_t count, double tolerance) {
  for (size_t i = 0; i < count; i++) demand(fabs(given[i] - expected[i]) <= tolerance, "it is off");
}

static void check_group_norm(const Kernels *kernels, size_t images, size_t channels, size_t groups, size_t pixels,
                             int silu) {
  size_t count = images * channels * pixels, each = channels / groups * pixels;
  double *expected = malloc(count * sizeof *expected);
  GroupNorm task = {noise(count), noise(channels), noise(channels), guarded(count * sizeof(float)),
                    channels,     groups,          pixels,          1e-5f, silu};
  for (size_t group = 0; group < images * groups; group++) {
    const float *x = task.x + group * each;
    double mean = 0, squares = 0;
    for (size_t i = 0; i < each; i++) mean += x[i] / (double)each;
    for (size_t i = 0; i < each; i++) squares += (x[i] - mean) * (x[i] - mean) / (double)each;
    for (size_t i = 0; i < each; i++) {
      size_t channel = group % groups * (channels / groups) + i / pixels;
      double y = (x[i] - mean) / sqrt(squares + 1e-5) * task.scale[channel] + task.bias[channel];
      expected[group * each + i] = silu ? y / (1 + exp(-y)) : y;
    }
    kernels->group_norm(&task, group);
  }
  demand_near(task.y, expected, count, 1e-5);
  free(expected);
  give_back();
}

static void check_attention(const Kernels *kernels, size_t batch, size_t heads, size_t size, size_t queries,
                            size_t keys, int half) {
  size_t width = heads * size, count = batch * queries * width;
  double *expected = calloc(count, sizeof *expected), *weights = malloc(keys * sizeof *weights);
  Attention task = {.q = noise(count), .k = noise(batch * keys * width), .v = noise(batch * keys * width)};
  task.o = guarded(count * sizeof(float)), task.heads = heads, task.size = size, task.queries = queries;
  task.keys = keys, task.scale = 0.5f;
  const AttentionKernels *way = half ? &kernels->attention_half : &kernels->attention;
  task.packed_keys = guarded(batch * heads * way->packed_keys(&task) * sizeof(float));
  task.packed_values = guarded(batch * heads * way->packed_values(&task) * sizeof(float));
  for (size_t row = 0; row < batch * queries; row++)
    for (size_t head = 0; head < heads; head++) {
      size_t place = row * width + head * size, other = row / queries * keys * width + head * size;
      double most = -INFINITY, sum = 0;
      for (size_t key = 0; key < keys; key++) {
        weights[key] = 0;
        for (size_t i = 0; i < size; i++) weights[key] += 0.5 * task.q[place + i] * task.k[other + key * width + i];
        most = fmax(most, weights[key]);
      }
      for (size_t key = 0; key < keys; key++) sum += weights[key] = exp(weights[key] - most);
      for (size_t key = 0; key < keys; key++)
        for (size_t i = 0; i < size; i++) expected[place + i] += weights[key] / sum * task.v[other + key * width + i];
    }
  size_t pieces = batch * heads * kernels->attention_pieces(&task);
  size_t blocks = batch * heads * kernels->attention_blocks(&task);
  for (size_t i = 0; i < pieces; i++) way->pack(&task, i);
  for (size_t i = 0; i < blocks; i++) way->attend(&task, i);
  /* Scores of numbers up to 2, rounded to 8 bits each, may be off by so much where there are 160 of them. */
  demand_near(task.o, expected, count, half ? 0.5 : 1e-4);
  free(expected), free(weights);
  give_back();
}

/* What a convolution is, with what is added to it. */
static double *convolved(const Winograd *task, const float *weight, size_t images) {
  size_t pixels = task->height * task->width, count = images * task->outputs * pixels;
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    size_t image = at / pixels / task->outputs, o = at / pixels % task->outputs;
    size_t y = at / task->width % task->height, x = at % task->width;
    expected[at] = task->bias[o] + (task->shift ? task->shift[image * task->shifts + o] : 0);
    expected[at] += task->added ? task->added[at] : 0;
    for (size_t i = 0; i < task->inputs; i++)
      for (size_t cell = 0; cell < 9; cell++) {
        size_t row = y + cell / 3, column = x + cell % 3; /* one further on than what they stand for */
        if (row >= 1 && row <= task->height && column >= 1 && column <= task->width)
          expected[at] += (double)weight[(o * task->inputs + i) * 9 + cell] *
                          task->x[(image * task->inputs + i) * pixels + (row - 1) * task->width + column - 1];
      }
  }
  return expected;
}

static Winograd convolution(size_t images, size_t inputs, size_t outputs, size_t height, size_t width, int sums) {
  size_t pixels = height * width, count = images * outputs * pixels;
  Winograd task = {.x = noise(images * inputs * pixels), .bias = noise(outputs), .y = guarded(count * sizeof(float))};
  task.inputs = inputs, task.outputs = outputs, task.height = height, task.width = width;
  if (sums) task.shifts = sums == 1 ? 0 : outputs, task.shift = noise(sums == 1 ? outputs : images * outputs);
  if (sums) task.added = noise(count);
  return task;
}

static void check_winograd(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t height,
                           size_t width, size_t strip, int sums) {
  static const double g[6][3] = {{0.25, 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                                 {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};
  size_t blocks = (outputs + WINOGRAD_OUTPUTS - 1) / WINOGRAD_OUTPUTS;
  size_t tiles = images * ((height + 3) / 4) * ((width + 3) / 4), count = images * outputs * height * width;
  const float *weight = noise(outputs * inputs * 9);
  float *packed = guarded(36 * blocks * inputs * WINOGRAD_OUTPUTS * sizeof(float));
  for (size_t point = 0; point < 36; point++)
    for (size_t o = 0; o < blocks * WINOGRAD_OUTPUTS; o++)
      for (size_t i = 0; i < inputs; i++) {
        double sum = 0;
        for (size_t cell = 0; cell < 9 && o < outputs; cell++)
          sum += g[point / 6][cell / 3] * weight[(o * inputs + i) * 9 + cell] * g[point % 6][cell % 3];
        size_t place = (point * blocks + o / WINOGRAD_OUTPUTS) * inputs + i;
        packed[place * WINOGRAD_OUTPUTS + o % WINOGRAD_OUTPUTS] = (float)sum;
      }
  Winograd task = convolution(images, inputs, outputs, height, width, sums);
  task.weights = packed, task.panel = kernels->winograd_panel(tiles);
  strip = strip ? strip * task.panel : (tiles + task.panel - 1) / task.panel * task.panel, task.room = strip;
  task.scratch = guarded(kernels->winograd_scratch(&task) * sizeof(float));
  for (; task.first < tiles; task.first += strip) {
    task.tiles = tiles - task.first < strip ? tiles - task.first : strip;
    task.room = (task.tiles + task.panel - 1) / task.panel * task.panel;
    for (size_t i = 0; i < inputs; i++) kernels->winograd_input(&task, i);
    for (size_t i = 0; i < kernels->winograd_products(&task); i++) kernels->winograd_multiply(&task, i);
    for (size_t i = 0; i < outputs; i++) kernels->winograd_output(&task, i);
  }
  double *expected = convolved(&task, weight, images);
  demand_near(task.y, expected, count, 1e-3);
  free(expected);
  give_back();
}

static void check_pointwise(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t pixels, int sums) {
  size_t blocks = (outputs + WINOGRAD_OUTPUTS - 1) / WINOGRAD_OUTPUTS, count = images * outputs * pixels;
  const float *weight = noise(outputs * inputs);
  float *packed = guarded(blocks * inputs * WINOGRAD_OUTPUTS * sizeof(float));
  for (size_t o = 0; o < blocks * WINOGRAD_OUTPUTS; o++)
    for (size_t i = 0; i < inputs; i++)
      packed[(o / WINOGRAD_OUTPUTS * inputs + i) * WINOGRAD_OUTPUTS + o % WINOGRAD_OUTPUTS] =
          o < outputs ? weight[o * inputs + i] : 0;
  Winograd same = convolution(images, inputs, outputs, 1, pixels, sums);
  Pointwise task = {.x = same.x, .weights = packed, .bias = same.bias, .shift = same.shift, .shifts = same.shifts};
  task.added = same.added, task.y = same.y;
  task.images = images, task.inputs = inputs, task.outputs = outputs, task.pixels = pixels;
  task.scratch = guarded(kernels->pointwise_scratch(&task) * sizeof(float));
  for (size_t i = 0; i < kernels->pointwise_layers(&task); i++) kernels->pointwise_lay(&task, i);
  for (size_t i = 0; i < kernels->pointwise_tasks(&task); i++) kernels->pointwise(&task, i);
  double *expected = malloc(count * sizeof(double));
  for (size_t place = 0; place < count; place++) {
    size_t pixel = place % pixels, output = place / pixels % outputs, image = place / pixels / outputs;
    double sum = task.bias[output] + (task.shift ? task.shift[image * task.shifts + output] : 0);
    sum += task.added ? task.added[place] : 0;
    for (size_t i = 0; i < inputs; i++) sum += weight[output * inputs + i] * (double)task.x[(image * inputs + i) * pixels + pixel];
    expected[place] = sum;
  }
  demand_near(task.y, expected, count, 1e-3);
  free(expected);
  give_back();
}

static void check_few_tiles(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t height,
                            size_t width, int sums, int half) {
  size_t blocks = (outputs + FEW_OUTPUTS - 1) / FEW_OUTPUTS, count = images * outputs * height * width;
  size_t tiles = images * ((height + 3) / 4) * ((width + 3) / 4);
  float *weight = noise(outputs * inputs * 9);
  if (half) halved(weight, outputs * inputs * 9);
  float *packed = guarded(blocks * inputs * 9 * FEW_OUTPUTS * sizeof(float));
  for (size_t o = 0; o < blocks * FEW_OUTPUTS; o++)
    for (size_t i = 0; i < inputs; i++)
      for (size_t cell = 0; cell < 9; cell++)
        packed[((o / FEW_OUTPUTS * inputs + i) * 9 + cell) * FEW_OUTPUTS + o % FEW_OUTPUTS] =
            o < outputs ? weight[(o * inputs + i) * 9 + cell] : 0;
  Winograd task = convolution(images, inputs, outputs, height, width, sums);
  if (half) task.halves = halved(packed, blocks * inputs * 9 * FEW_OUTPUTS);
  else task.weights = packed;
  task.tiles = tiles < FEW_TILES ? tiles : FEW_TILES;
  task.panel = task.room = (task.tiles + 15) / 16 * 16;
  task.scratch = guarded(kernels->few_scratch(&task) * sizeof(float));
  for (; task.first < tiles; task.first += FEW_TILES) {
    if (tiles - task.first < FEW_TILES) task.tiles = tiles - task.first;
    for (size_t i = 0; i < inputs; i++) kernels->winograd_input(&task, i);
    for (size_t i = 0; i < kernels->few_tasks(&task); i++) kernels->few_tiles(&task, i);
  }
  double *expected = convolved(&task, weight, images);
  demand_near(task.y, expected, count, 2e-3); /* of sums of 630 products, up to 150 */
  free(expected);
  give_back();
}

static double activated(double x, int activation) {
  if (activation == LINEAR_GELU) return x * erfc(-x / sqrt(2)) / 2;
  return activation == LINEAR_SILU ? x / (1 + exp(-x)) : x;
}

/* Small, so that what is rounded of it is less than it by far. width: of `up`. */
static LowRank some_low_rank(size_t inputs, size_t rank, size_t width) {
  float *up = noise(rank * width);
  for (size_t i = 0; i < rank * width; i++) up[i] *= 0x1p-12f;
  return (LowRank){.down = noise(inputs * rank), .up = up, .rank = rank};
}
static double added_by(const LowRank *low, const float *x, size_t inputs, size_t column, size_t width) {
  double sum = 0;
  for (size_t r = 0; r < low->rank; r++) {
    double inner = 0;
    for (size_t i = 0; i < inputs; i++) inner += (double)x[i] * low->down[i * low->rank + r];
    sum += inner * low->up[r * width + column];
  }
  return sum;
}

static void check_linear(const Kernels *kernels, size_t rows, size_t inputs, size_t outputs, int activation, int sums,
                         size_t rank, int half_weights) {
  size_t count = rows * outputs, halves = activation == LINEAR_GEGLU ? 2 : 1, each = LINEAR_COLUMNS / halves;
  float *weight = noise(halves * inputs * outputs);
  if (half_weights) halved(weight, halves * inputs * outputs);
  Linear task = {.x = noise(rows * inputs), .bias = noise(halves * outputs), .y = guarded(count * sizeof(float))};
  task.rows = rows, task.inputs = inputs, task.outputs = outputs, task.activation = activation;
  if (sums) task.added = noise(count);
  size_t panels = kernels->linear_panels(&task);
  float *packed = guarded(panels * inputs * LINEAR_COLUMNS * sizeof(float));
  for (size_t half = 0; half < halves; half++)
    for (size_t i = 0; i < inputs; i++)
      for (size_t o = 0; o < panels * each; o++)
        packed[(o / each * inputs + i) * LINEAR_COLUMNS + half * each + o % each] =
            o < outputs ? weight[(half * inputs + i) * outputs + o] : 0;
  if (half_weights) task.halves = halved(packed, panels * inputs * LINEAR_COLUMNS);
  else task.weights = packed;
  if (rank) {
    task.low = some_low_rank(inputs, rank, halves * outputs), task.low.inner = guarded(rows * rank * sizeof(float));
    for (size_t i = 0; i < (rows + LOW_RANK_ROWS - 1) / LOW_RANK_ROWS; i++) kernels->low_rank(&task, i);
  }
  for (size_t i = 0; i < kernels->linear_tasks(&task); i++) kernels->linear(&task, i);
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    double made[2] = {task.bias[at % outputs], halves == 2 ? task.bias[outputs + at % outputs] : 0};
    for (size_t half = 0; half < halves; half++)
      made[half] += added_by(&task.low, task.x + at / outputs * inputs, inputs, half * outputs + at % outputs, halves * outputs);
    for (size_t half = 0; half < halves; half++)
      for (size_t i = 0; i < inputs; i++)
        made[half] += (double)task.x[at / outputs * inputs + i] * weight[(half * inputs + i) * outputs + at % outputs];
    expected[at] = halves == 2 ? made[0] * activated(made[1], LINEAR_GELU) : activated(made[0], activation);
    expected[at] += sums ? task.added[at] : 0;
  }
  demand_near(task.y, expected, count, 2e-3); /* of sums of up to 1,500 numbers up to 4 */
  free(expected);
  give_back();
}

#include "check_integers.h"

#include "check_four_bits.h"

#include "check_upsampled.h"

int main(void) {
  const Kernels *kernels;
  for (int rank = 0; (kernels = kernels_of_rank(rank)); rank++) {
    doing = kernels->name, state = 1;
    for (size_t pixels = 1; pixels < 70; pixels += pixels < 20 ? 1 : 13)
      for (int silu = 0; silu < 2; silu++) {
        check_group_norm(kernels, 2, 6, 3, pixels, silu);
        check_group_norm(kernels, 1, 5, 1, pixels, silu);
      }
    check_group_norm(kernels, 1, 6, 2, 1025, 1);
    check_group_norm(kernels, 3, 4, 4, 1023, 1);
    for (int half = 0; half <= (kernels->attention_half.attend != NULL); half++) {
      for (size_t size = 1; size <= ATTENTION_MOST_SIZE; size += size < 12 ? 1 : size < 120 ? 37 : 150)
        for (size_t queries = 1; queries < 70; queries += 15)
          check_attention(kernels, 2, 2, size, queries, queries * 5, half);
      check_attention(kernels, 1, 1, ATTENTION_MOST_SIZE, 33, 121, half);
      check_attention(kernels, 1, 3, 40, 64, 240, half);
    }
    for (size_t width = 1; width < 24; width += width < 10 ? 1 : 6)
      for (size_t height = 1; height < 12; height += 3) {
        check_winograd(kernels, 2, 3, 11, height, width, 0, (int)(width + height) % 3);
        for (int half = 0; half < 2; half++) check_few_tiles(kernels, 2, 3, 35, height, width, (int)(width + height) % 3, half);
      }
    check_winograd(kernels, 1, 16, 20, 32, 33, 0, 1);
    check_winograd(kernels, 3, 5, 7, 36, 40, 1, 2); /* in strips, of which the last is not full */
    for (int half = 0; half < 2; half++) {
      check_few_tiles(kernels, 1, 70, 40, 16, 16, 1, half);
      check_few_tiles(kernels, 3, 5, 7, 36, 40, 2, half);
      check_linear(kernels, 300, 20, 33, LINEAR_PLAIN, 1, 16, half);
      check_linear(kernels, 5, 1500, 40, LINEAR_SILU, 0, 4, half); /* more inputs than a sum is made of at once */
      check_linear(kernels, 200, 70, 700, LINEAR_GELU, 0, 0, half); /* several panels a task */
    }
    for (size_t pixels = 1; pixels < 80; pixels += pixels < 10 ? 1 : 13)
      for (size_t outputs = 1; outputs < 30; outputs += 9)
        check_pointwise(kernels, 2, 3, outputs, pixels, (int)(pixels + outputs) % 3);
    check_pointwise(kernels, 1, 40, 171, 1025, 1); /* in tasks, of which the last is not full */
    for (int activation = LINEAR_PLAIN; activation <= LINEAR_GEGLU; activation++)
      for (size_t rows = 1; rows < 30; rows += 7)
        for (size_t outputs = 1; outputs < 70; outputs += 11)
          for (int half = 0; half < 2; half++)
            check_linear(kernels, rows, rows * 3, outputs, activation, (int)(rows + outputs) % 2, (rows + outputs) % 5 * 9, half);
    for (int activation = LINEAR_PLAIN; activation <= LINEAR_GEGLU && kernels->integer_linear; activation++)
      for (size_t rows = 1; rows < 30; rows += 7)
        for (size_t outputs = 1; outputs < 70; outputs += 11)
          check_integers(kernels, rows, rows * 3, outputs, activation, (int)(rows + outputs) % 2, (rows + outputs) % 5 * 9);
    if (kernels->integer_linear) check_integers(kernels, 300, 20, 33, LINEAR_PLAIN, 1, 16);
    check_all_four_bits(kernels);
    for (size_t width = 1; width < 24 && kernels->integer_conv; width += width < 10 ? 1 : 6)
      for (size_t height = 1; height < 12; height += 3) {
        check_conv(kernels, 2, height + width, 35, height, width, 3, 1, (int)(width + height) % 2, 0);
        check_conv(kernels, 1, 5, width, height, width, 1, 1, 0, 0);
        check_conv(kernels, 1, 6, 33, height, width, 3, 2, 1, 0);
        check_conv(kernels, 2, 6, 5, height, width, 3, 1, 0, width % 3 + 1);
      }
    if (kernels->integer_conv) check_conv(kernels, 2, 9, 40, 17, 32, 3, 1, 1, 3), check_all_upsampled(kernels);
    if (kernels->integer_conv) check_conv(kernels, 1, 5, 3, 2, 300, 3, 1, 1, 1); /* rows that are rounded in strips */
    printf("%s\n", kernels->name);
  }
  demand(kernels_of_rank(-1) == NULL && best_kernels() != NULL, "which sets there are");
  return 0;
}
