/* Rows times a fixed matrix of 8-bit integers, with what is done to the sums before they are written; part of kernels.c.

   For processors with AVX512_VNNI, whose products of four bytes are added up exactly. Panels, and rows of a task, are those
   of linear.h. */
#include <immintrin.h>

enum { INTEGER_TASK_BYTES = 1 << 19 }; /* of weights that stay in a core's cache */

static size_t fours_of(size_t inputs) { return (inputs + 3) / 4; }
static size_t integer_panels(const IntegerLinear *task) {
  size_t most = INTEGER_TASK_BYTES / (fours_of(task->layer.inputs) * 4 * LINEAR_COLUMNS);
  return even_share(linear_panels(&task->layer), most ? most : 1);
}
static size_t integer_tasks(const IntegerLinear *task) {
  size_t rows = task_rows(&task->layer), panels = integer_panels(task);
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
  Rounding rounding = {range * (1.0f / 255.0f) + sum_of(odd), zero <= 255.0f ? (int32_t)zero : 255};
  const __m512i none = _mm512_setzero_si512(), shift = _mm512_set1_epi32(rounding.zero);
  for (size_t i = 0; i < inputs; i += W) {
    Floats x = inputs - i < W ? load_part(from + i, inputs - i) : load(from + i);
    __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)(x * each)), shift);
    uint32_t fours[W / 4];
    _mm_storeu_si128((__m128i *)fours, _mm512_cvtusepi32_epi8(_mm512_max_epi32(whole, none)));
    for (size_t j = 0; j < W / 4 && i + 4 * j < inputs; j++) to[(i / 4 + j) * INTEGER_ROWS] = fours[j];
  }
  return rounding;
}
static void integer_round(void *argument, size_t block) {
  const IntegerLinear *task = argument;
  size_t inputs = task->layer.inputs, first = block * INTEGER_ROWS;
  uint32_t *to = task->fours + first * fours_of(inputs);
  for (size_t i = 0; i < INTEGER_ROWS && first + i < task->layer.rows; i++)
    task->roundings[first + i] = round_row(task->layer.x + (first + i) * inputs, inputs, to + i);
}

/* Some rows of a panel. x (four of inputs, row). */
INLINE void multiply_bytes(const IntegerLinear *task, const uint32_t *x, size_t row, size_t panel, int rows) {
  __m512i sums[INTEGER_ROWS][2];
  for (int i = 0; i < rows; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
  size_t fours = fours_of(task->layer.inputs);
  const int8_t *weight = task->weights + panel * fours * 4 * LINEAR_COLUMNS;
#pragma clang loop unroll_count(4)
  for (size_t four = 0; four < fours; four++, weight += 4 * LINEAR_COLUMNS, x += INTEGER_ROWS) {
    __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + 4 * HALF);
    for (int i = 0; i < rows; i++) {
      __m512i bytes = _mm512_set1_epi32((int)x[i]);
      sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], bytes, low);
      sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], bytes, high);
    }
  }
  Floats made[INTEGER_ROWS][2];
  const Rounding *rounding = task->roundings + row;
  for (int half = 0; half < 2; half++) {
    Floats scale = load(task->scales + panel * LINEAR_COLUMNS + half * HALF);
    __m512i total = _mm512_loadu_si512(task->totals + panel * LINEAR_COLUMNS + half * HALF);
    for (int i = 0; i < rows; i++) {
      __m512i moved = _mm512_mullo_epi32(total, _mm512_set1_epi32(rounding[i].zero));
      Floats whole = (Floats)_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][half], moved));
      made[i][half] = whole * (scale * rounding[i].step);
    }
  }
  finish_rows(&task->layer, made, 0, 1, row, panel, 0, rows);
}
static __attribute__((noinline)) void multiply_all_bytes(const IntegerLinear *task, const uint32_t *x, size_t row,
                                                         size_t panel) {
  multiply_bytes(task, x, row, panel, INTEGER_ROWS);
}
static __attribute__((noinline)) void multiply_row_bytes(const IntegerLinear *task, const uint32_t *x, size_t row,
                                                         size_t panel) {
  multiply_bytes(task, x, row, panel, 1);
}

static void integer_linear(void *argument, size_t index) {
  const IntegerLinear *task = argument;
  size_t rows = task_rows(&task->layer), panels = integer_panels(task), all = linear_panels(&task->layer);
  size_t across = (all + panels - 1) / panels, fours = fours_of(task->layer.inputs);
  size_t row_end = (index / across + 1) * rows, panel_end = (index % across + 1) * panels;
  if (row_end > task->layer.rows) row_end = task->layer.rows;
  if (panel_end > all) panel_end = all;
  for (size_t row = index / across * rows; row < row_end; row += INTEGER_ROWS) {
    const uint32_t *x = task->fours + row * fours;
    for (size_t panel = index % across * panels; panel < panel_end; panel++)
      if (row_end - row >= INTEGER_ROWS) multiply_all_bytes(task, x, row, panel);
      else
        for (size_t i = row; i < row_end; i++) multiply_row_bytes(task, x + (i - row), i, panel);
  }
}
