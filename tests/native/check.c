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

static void *guarded(size_t bytes) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = (bytes + page - 1) / page;
  char *start = mmap(NULL, (pages + 1) * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  demand(start != MAP_FAILED, "no memory");
  demand(mprotect(start + pages * page, page, PROT_NONE) == 0, "no guard");
  return start + pages * page - bytes;
}

/* Numbers between -2 and 2, the same at every run. */
static float *noise(size_t count) {
  static unsigned state = 1;
  float *made = guarded(count * sizeof(float));
  for (size_t i = 0; i < count; i++) {
    state = state * 1664525u + 1013904223u;
    made[i] = (float)(state >> 8) * 0x1p-22f - 2.0f;
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
}

static void check_attention(const Kernels *kernels, size_t batch, size_t heads, size_t size, size_t queries,
                            size_t keys) {
  size_t width = heads * size, count = batch * queries * width;
  double *expected = calloc(count, sizeof *expected), *weights = malloc(keys * sizeof *weights);
  Attention task = {.q = noise(count), .k = noise(batch * keys * width), .v = noise(batch * keys * width)};
  task.o = guarded(count * sizeof(float)), task.heads = heads, task.size = size, task.queries = queries;
  task.keys = keys, task.scale = 0.5f;
  task.packed_keys = guarded(batch * heads * kernels->attention_packed_keys(&task) * sizeof(float));
  task.packed_values = guarded(batch * heads * kernels->attention_packed_values(&task) * sizeof(float));
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
  for (size_t i = 0; i < batch * heads * kernels->attention_pieces(&task); i++) kernels->attention_pack(&task, i);
  for (size_t i = 0; i < batch * heads * kernels->attention_blocks(&task); i++) kernels->attention(&task, i);
  demand_near(task.o, expected, count, 1e-4);
  free(expected), free(weights);
}

static void check_winograd(const Kernels *kernels, size_t images, size_t inputs, size_t outputs, size_t height,
                           size_t width, size_t strip) {
  static const double g[6][3] = {{0.25, 0, 0},           {-1 / 6., -1 / 6., -1 / 6.}, {-1 / 6., 1 / 6., -1 / 6.},
                                 {1 / 24., 1 / 12., 1 / 6.}, {1 / 24., -1 / 12., 1 / 6.}, {0, 0, 1}};
  size_t blocks = (outputs + WINOGRAD_OUTPUTS - 1) / WINOGRAD_OUTPUTS, pixels = height * width;
  size_t tiles = images * ((height + 3) / 4) * ((width + 3) / 4), count = images * outputs * pixels;
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
  Winograd task = {.x = noise(images * inputs * pixels), .weights = packed, .bias = noise(outputs)};
  task.inputs = inputs, task.outputs = outputs, task.height = height, task.width = width;
  task.y = guarded(count * sizeof(float)), task.panel = kernels->winograd_panel(tiles);
  strip = strip ? strip * task.panel : (tiles + task.panel - 1) / task.panel * task.panel, task.room = strip;
  task.scratch = guarded(kernels->winograd_scratch(&task) * sizeof(float));
  for (; task.first < tiles; task.first += strip) {
    task.tiles = tiles - task.first < strip ? tiles - task.first : strip;
    task.room = (task.tiles + task.panel - 1) / task.panel * task.panel;
    for (size_t i = 0; i < inputs; i++) kernels->winograd_input(&task, i);
    for (size_t i = 0; i < kernels->winograd_products(&task); i++) kernels->winograd_multiply(&task, i);
    for (size_t i = 0; i < outputs; i++) kernels->winograd_output(&task, i);
  }
  double *expected = malloc(count * sizeof *expected);
  for (size_t at = 0; at < count; at++) {
    size_t image = at / pixels / outputs, o = at / pixels % outputs, y = at / width % height, x = at % width;
    expected[at] = task.bias[o];
    for (size_t i = 0; i < inputs; i++)
      for (size_t cell = 0; cell < 9; cell++) {
        size_t row = y + cell / 3, column = x + cell % 3; /* one further on than what they stand for */
        if (row >= 1 && row <= height && column >= 1 && column <= width)
          expected[at] += (double)weight[(o * inputs + i) * 9 + cell] *
                          task.x[(image * inputs + i) * pixels + (row - 1) * width + column - 1];
      }
  }
  demand_near(task.y, expected, count, 1e-3);
  free(expected);
}

int main(void) {
  const Kernels *kernels;
  for (int rank = 0; (kernels = kernels_of_rank(rank)); rank++) {
    doing = kernels->name;
    for (size_t pixels = 1; pixels < 70; pixels += pixels < 20 ? 1 : 13)
      for (int silu = 0; silu < 2; silu++) {
        check_group_norm(kernels, 2, 6, 3, pixels, silu);
        check_group_norm(kernels, 1, 5, 1, pixels, silu);
      }
    check_group_norm(kernels, 1, 6, 2, 1025, 1);
    check_group_norm(kernels, 3, 4, 4, 1023, 1);
    for (size_t size = 1; size <= ATTENTION_MOST_SIZE; size += size < 12 ? 1 : 37)
      for (size_t queries = 1; queries < 70; queries += 15) check_attention(kernels, 2, 2, size, queries, queries * 5);
    check_attention(kernels, 1, 1, ATTENTION_MOST_SIZE, 33, 121);
    check_attention(kernels, 1, 3, 40, 64, 240);
    for (size_t width = 1; width < 24; width += width < 10 ? 1 : 6)
      for (size_t height = 1; height < 12; height += 3) check_winograd(kernels, 2, 3, 11, height, width, 0);
    check_winograd(kernels, 1, 16, 20, 32, 33, 0);
    check_winograd(kernels, 3, 5, 7, 36, 40, 1); /* in strips, of which the last is not full */
    printf("%s\n", kernels->name);
  }
  demand(kernels_of_rank(-1) == NULL && best_kernels() != NULL, "which sets there are");
  return 0;
}
