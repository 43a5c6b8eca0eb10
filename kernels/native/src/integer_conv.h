/* Convolutions of 8-bit integers, summed in floats with what is added to them; part of kernels.c.

   The picture is rounded once, with its channels side by side, so that a pixel is a row of integer_linear.h whose inputs
   are those of all cells of the filter, and nothing is copied. What is around the picture stands for 0. */

enum { CONV_PIXELS = 256, CONV_GROUP = 2 * INTEGER_ROWS }; /* of a task; that are written together, a line of the cache */

static size_t conv_pixels(const IntegerConv *task) { return task->made_height * task->made_width; }
static size_t conv_panels(const IntegerConv *task) {
  size_t all = (task->outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
  size_t each = task->filter_height * task->filter_width * fours_of(task->inputs) * 4 * LINEAR_COLUMNS;
  size_t most = INTEGER_TASK_BYTES / each;
  return even_share(all, most ? most : 1);
}
static size_t conv_parts(const IntegerConv *task) { /* of an image's pixels */
  return (conv_pixels(task) + CONV_PIXELS - 1) / CONV_PIXELS;
}
static size_t conv_across(const IntegerConv *task) {
  size_t all = (task->outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS, panels = conv_panels(task);
  return (all + panels - 1) / panels;
}
static size_t integer_conv_tasks(const IntegerConv *task) { return task->images * conv_parts(task) * conv_across(task); }

/* Bytes of W numbers, one in each word. */
INLINE __m512i to_words(Floats x, Floats each, __m512i zero) {
  __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32((__m512)(x * each)), zero);
  return _mm512_min_epi32(_mm512_max_epi32(whole, _mm512_setzero_si512()), _mm512_set1_epi32(255));
}

static void integer_bytes(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t padding = task->padding, rows = task->height + 2 * padding, columns = task->width + 2 * padding;
  size_t fours = fours_of(task->inputs), pixels = task->height * task->width, image = index / rows, row = index % rows;
  uint32_t *to = (uint32_t *)task->bytes + index * columns * fours, around = (uint32_t)task->zero * 0x1010101u;
  int outside = row < padding || row >= task->height + padding;
  for (size_t i = 0; i < (outside ? columns : padding) * fours; i++) to[i] = around;
  if (outside) return;
  for (size_t i = (columns - padding) * fours; i < columns * fours; i++) to[i] = around;
  to += padding * fours;
  const float *from = task->x + image * task->inputs * pixels + (row - padding) * task->width;
  const Floats each = 1.0f / task->step;
  const __m512i zero = _mm512_set1_epi32(task->zero);
  for (size_t column = 0; column < task->width; column += W) {
    size_t count = task->width - column < W ? task->width - column : W;
    for (size_t four = 0; four < fours; four++) {
      __m512i words = _mm512_setzero_si512();
      for (size_t i = 0; i < 4 && four * 4 + i < task->inputs; i++) {
        const float *x = from + (four * 4 + i) * pixels + column;
        __m512i part = to_words(count == W ? load(x) : load_part(x, count), each, zero);
        words = _mm512_or_si512(words, _mm512_sll_epi32(part, _mm_cvtsi32_si128(8 * (int)i)));
      }
      uint32_t made[W];
      _mm512_storeu_si512(made, words);
      for (size_t i = 0; i < count; i++) to[(column + i) * fours + four] = made[i];
    }
  }
}

/* A panel's outputs of some pixels, which begin at `places` of the rounded picture, to (pixel, output). */
INLINE void convolve(const IntegerConv *task, const size_t *places, size_t panel, float *to, int pixels) {
  __m512i sums[INTEGER_ROWS][2];
  const uint32_t *x[INTEGER_ROWS];
  for (int i = 0; i < pixels; i++) sums[i][0] = sums[i][1] = _mm512_setzero_si512();
  size_t fours = fours_of(task->inputs), columns = (task->width + 2 * task->padding) * fours;
  const int8_t *weight =
      task->weights + panel * task->filter_height * task->filter_width * fours * 4 * LINEAR_COLUMNS;
  for (size_t row = 0; row < task->filter_height; row++) {
    for (int i = 0; i < pixels; i++) x[i] = (const uint32_t *)task->bytes + places[i] + row * columns;
    size_t count = task->filter_width * fours; /* cells of a row of the filter lie side by side, as pixels do */
#pragma clang loop unroll_count(2)
    for (size_t four = 0; four < count; four++, weight += 4 * LINEAR_COLUMNS) {
      __m512i low = _mm512_loadu_si512(weight), high = _mm512_loadu_si512(weight + 4 * HALF);
      for (int i = 0; i < pixels; i++) {
        __m512i bytes = _mm512_set1_epi32((int)x[i][four]);
        sums[i][0] = _mm512_dpbusd_epi32(sums[i][0], bytes, low);
        sums[i][1] = _mm512_dpbusd_epi32(sums[i][1], bytes, high);
      }
    }
  }
  for (int half = 0; half < 2; half++) {
    size_t place = panel * LINEAR_COLUMNS + half * HALF;
    Floats scale = load(task->scales + place), bias = 0.0f;
    if (place < task->outputs) bias = load_part(task->bias + place, place + W < task->outputs ? W : task->outputs - place);
    __m512i moved = _mm512_mullo_epi32(_mm512_loadu_si512(task->totals + place), _mm512_set1_epi32(task->zero));
    for (int i = 0; i < pixels; i++) {
      Floats whole = (Floats)_mm512_cvtepi32_ps(_mm512_sub_epi32(sums[i][half], moved));
      store(to + i * LINEAR_COLUMNS + half * HALF, multiply_add(whole, scale, bias));
    }
  }
}
static __attribute__((noinline)) void convolve_all(const IntegerConv *task, const size_t *places, size_t panel, float *to) {
  convolve(task, places, panel, to, INTEGER_ROWS);
}
static __attribute__((noinline)) void convolve_one(const IntegerConv *task, const size_t *places, size_t panel, float *to) {
  convolve(task, places, panel, to, 1);
}

/* (pixel, output) of a panel to the picture. */
static void write_pixels(const IntegerConv *task, const float *made, size_t image, size_t panel, size_t pixel, size_t count) {
  size_t outputs = task->outputs - panel * LINEAR_COLUMNS, pixels = conv_pixels(task);
  if (outputs > LINEAR_COLUMNS) outputs = LINEAR_COLUMNS;
  LINE_ALIGNED float turned[LINEAR_COLUMNS * CONV_GROUP];
  for (size_t i = 0; i < CONV_GROUP; i += 4)
    for (size_t output = 0; output < LINEAR_COLUMNS; output += 4)
      turn_four(made + i * LINEAR_COLUMNS + output, LINEAR_COLUMNS, turned + output * CONV_GROUP + i, CONV_GROUP, 1.0f);
  for (size_t output = 0; output < outputs; output++) {
    size_t channel = panel * LINEAR_COLUMNS + output, place = (image * task->outputs + channel) * pixels + pixel;
    float shift = task->shift ? task->shift[image * task->shifts + channel] : 0.0f;
    for (size_t i = 0; i < count; i += W) {
      size_t some = count - i < W ? count - i : W;
      Floats sum = load(turned + output * CONV_GROUP + i) + shift;
      if (task->added) sum += some == W ? load(task->added + place + i) : load_part(task->added + place + i, some);
      if (some == W) store(task->y + place + i, sum);
      else store_part(task->y + place + i, sum, some);
    }
  }
}

static void integer_conv(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t panels = conv_panels(task), all = (task->outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS, parts = conv_parts(task);
  size_t across = conv_across(task), image = index / across / parts, first = index / across % parts * CONV_PIXELS;
  size_t end = first + CONV_PIXELS < conv_pixels(task) ? first + CONV_PIXELS : conv_pixels(task);
  size_t panel_end = (index % across + 1) * panels < all ? (index % across + 1) * panels : all;
  size_t columns = task->width + 2 * task->padding, rows = task->height + 2 * task->padding, fours = fours_of(task->inputs);
  LINE_ALIGNED float made[CONV_GROUP * LINEAR_COLUMNS] = {0};
  for (size_t pixel = first; pixel < end; pixel += CONV_GROUP) {
    size_t count = end - pixel < CONV_GROUP ? end - pixel : CONV_GROUP, places[CONV_GROUP];
    for (size_t i = 0; i < count; i++) {
      size_t row = (pixel + i) / task->made_width * task->stride, column = (pixel + i) % task->made_width * task->stride;
      places[i] = ((image * rows + row) * columns + column) * fours;
    }
    for (size_t panel = index % across * panels; panel < panel_end; panel++) {
      size_t done = 0;
      for (; count - done >= INTEGER_ROWS; done += INTEGER_ROWS)
        convolve_all(task, places + done, panel, made + done * LINEAR_COLUMNS);
      for (; done < count; done++) convolve_one(task, places + done, panel, made + done * LINEAR_COLUMNS);
      write_pixels(task, made, image, panel, pixel, count);
    }
  }
}
