/* Convolutions of 8-bit integers, summed in floats with what is added to them; part of kernels.c.

   The picture is rounded once, with its channels side by side, so that a pixel is a row of integer_linear.h whose inputs
   are those of all cells of the filter, and nothing is copied. What is around the picture stands for 0. */

enum {
  CONV_PIXELS = 256, /* of a task */
  CONV_GROUP = 64,   /* that are written together, some lines of the memory */
  CONV_STRIP = 256,  /* pixels of a row whose bytes stay in the nearest cache while all inputs of a large picture are read */
  CONV_STREAM = 16 << 20 /* bytes of an output that the next reader wouldn't find in a cache */
};

static size_t conv_pixels(const IntegerConv *task) { /* that the filters are laid on */
  return task->upsampled ? task->height * task->width : task->made_height * task->made_width;
}
static size_t conv_panels(const IntegerConv *task) {
  size_t all = (task->outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS;
  size_t each = task->filter_height * task->filter_width * fours_of(task->inputs) * 4 * LINEAR_COLUMNS;
  size_t most = INTEGER_TASK_BYTES / each / (task->upsampled ? 4 : 1);
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

/* Bytes of W numbers, one in each word: what is beyond them becomes the nearest one. */
INLINE Integers to_words(Floats x, Floats each, int32_t zero) {
  const Floats low = (float)-zero, high = (float)(255 - zero);
  x *= each;
  x = x > low ? x : low, x = x < high ? x : high;
  return nearest(x) + zero;
}

static void integer_bytes(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t padding = task->padding, rows = task->height + 2 * padding, columns = task->width + 2 * padding;
  size_t fours = fours_of(task->inputs), pixels = task->height * task->width, image = index / rows, row = index % rows;
  uint32_t *to = (uint32_t *)task->bytes + index * columns * fours, around = (uint32_t)task->zero * 0x1010101u ^ LESS_IN_FOUR;
  int outside = row < padding || row >= task->height + padding;
  for (size_t i = 0; i < (outside ? columns : padding) * fours; i++) to[i] = around;
  if (outside) return;
  for (size_t i = (columns - padding) * fours; i < columns * fours; i++) to[i] = around;
  to += padding * fours;
  const float *from = task->x + image * task->inputs * pixels + (row - padding) * task->width;
  const Floats each = 1.0f / task->step;
  size_t most = task->width < CONV_STRIP ? W : CONV_STRIP;
  for (size_t strip = 0; strip < task->width; strip += most) {
    size_t end = strip + most < task->width ? strip + most : task->width;
    for (size_t four = 0; four < fours; four++)
      for (size_t column = strip; column < end; column += W) {
        size_t count = end - column < W ? end - column : W;
        Integers words = (int32_t)LESS_IN_FOUR;
        for (size_t i = 0; i < 4 && four * 4 + i < task->inputs; i++) {
          const float *x = from + (four * 4 + i) * pixels + column;
          words ^= to_words(count == W ? load(x) : load_part(x, count), each, task->zero) << 8 * (int32_t)i;
        }
        uint32_t made[W];
        store_integers(made, words);
        for (size_t i = 0; i < count; i++) to[(column + i) * fours + four] = made[i];
      }
  }
}

/* A panel's outputs of some pixels, which begin at `places` of the rounded picture, to (pixel, output). `filters` is the panel
   of weights: of an upsampled picture four, one after the other, have the same outputs. */
INLINE void convolve(const IntegerConv *task, const size_t *places, size_t panel, size_t filters, float *to, int pixels) {
  size_t fours = fours_of(task->inputs), columns = (task->width + 2 * task->padding) * fours;
  size_t count = task->filter_width * fours; /* cells of a row of the filter lie side by side, as pixels do */
  for (size_t part = 0; part < HALF; part += W) {
    Integers sums[LINEAR_ROWS][2];
    const uint32_t *x[LINEAR_ROWS];
    for (int i = 0; i < pixels; i++) sums[i][0] = sums[i][1] = 0;
    const int8_t *weight = task->weights + (filters * task->filter_height * count * LINEAR_COLUMNS + part) * 4;
    for (size_t row = 0; row < task->filter_height; row++) {
      for (int i = 0; i < pixels; i++) x[i] = (const uint32_t *)task->bytes + places[i] + row * columns;
#pragma clang loop unroll_count(2)
      for (size_t four = 0; four < count; four++, weight += 4 * LINEAR_COLUMNS) {
        Integers low = load_integers(weight), high = load_integers(weight + 4 * HALF);
        for (int i = 0; i < pixels; i++) {
          Integers bytes = (int32_t)x[i][four];
          sums[i][0] = add_bytes(sums[i][0], bytes, low);
          sums[i][1] = add_bytes(sums[i][1], bytes, high);
        }
      }
    }
    for (int half = 0; half < 2; half++) {
      size_t place = panel * LINEAR_COLUMNS + half * HALF + part, filter = filters * LINEAR_COLUMNS + half * HALF + part;
      Floats scale = load(task->scales + filter), bias = 0.0f;
      if (place < task->outputs) bias = load_part(task->bias + place, place + W < task->outputs ? W : task->outputs - place);
      Integers moved = load_integers(task->totals + filter) * (task->zero - LESS);
      for (int i = 0; i < pixels; i++)
        store(to + i * LINEAR_COLUMNS + half * HALF + part, multiply_add(floats_of(sums[i][half] - moved), scale, bias));
    }
  }
}
static __attribute__((noinline)) void convolve_all(const IntegerConv *task, const size_t *places, size_t panel,
                                                   size_t filters, float *to) {
  convolve(task, places, panel, filters, to, LINEAR_ROWS);
}
static __attribute__((noinline)) void convolve_one(const IntegerConv *task, const size_t *places, size_t panel,
                                                   size_t filters, float *to) {
  convolve(task, places, panel, filters, to, 1);
}

/* (pixel, output) of a panel to (output, pixel). */
static void turn_pixels(const float *made, float *turned, size_t pixels) {
  for (size_t i = 0; i < pixels; i += 4)
    for (size_t output = 0; output < LINEAR_COLUMNS; output += 4)
      turn_four(made + i * LINEAR_COLUMNS + output, LINEAR_COLUMNS, turned + output * CONV_GROUP + i, CONV_GROUP, 1.0f);
}

/* (output, pixel) with every other pixel in the second half, to one after the other. */
static void interleave(float *turned) {
  for (size_t output = 0; output < LINEAR_COLUMNS; output++, turned += CONV_GROUP) {
    Floats even[CONV_GROUP / W / 2], odd[CONV_GROUP / W / 2];
    for (size_t i = 0; i < CONV_GROUP / W / 2; i++)
      even[i] = load(turned + i * W), odd[i] = load(turned + CONV_GROUP / 2 + i * W);
    for (size_t i = 0; i < CONV_GROUP / W / 2; i++) {
      store(turned + 2 * i * W, __builtin_shufflevector(even[i], odd[i], FIRST_BY_TURNS));
      store(turned + (2 * i + 1) * W, __builtin_shufflevector(even[i], odd[i], SECOND_BY_TURNS));
    }
  }
}

/* (output, pixel) of a panel to pixels of the picture that lie side by side from `pixel` on. */
static void write_pixels(const IntegerConv *task, const float *turned, size_t image, size_t panel, size_t pixel,
                         size_t count) {
  size_t outputs = task->outputs - panel * LINEAR_COLUMNS, pixels = task->made_height * task->made_width;
  if (outputs > LINEAR_COLUMNS) outputs = LINEAR_COLUMNS;
  int streams = task->outputs * pixels * sizeof(float) >= CONV_STREAM && ((uintptr_t)task->y & 63) == 0;
  for (size_t output = 0; output < outputs; output++) {
    size_t channel = panel * LINEAR_COLUMNS + output, place = (image * task->outputs + channel) * pixels + pixel;
    float shift = task->shift ? task->shift[image * task->shifts + channel] : 0.0f;
    for (size_t i = 0; i < count; i += W) {
      size_t some = count - i < W ? count - i : W;
      Floats sum = load(turned + output * CONV_GROUP + i) + shift;
      if (task->added) sum += some == W ? load(task->added + place + i) : load_part(task->added + place + i, some);
      if (some < W) store_part(task->y + place + i, sum, some);
      else if (streams && (place + i) % W == 0) stream(task->y + place + i, sum);
      else store(task->y + place + i, sum);
    }
  }
}

/* Some pixels of a panel, at `places`, to (pixel, output). */
static void convolve_group(const IntegerConv *task, const size_t *places, size_t panel, size_t filters, size_t count,
                           float *made) {
  size_t done = 0;
  for (; count - done >= LINEAR_ROWS; done += LINEAR_ROWS)
    convolve_all(task, places + done, panel, filters, made + done * LINEAR_COLUMNS);
  for (; done < count; done++) convolve_one(task, places + done, panel, filters, made + done * LINEAR_COLUMNS);
}

/* Pixels that lie side by side in a row of the small picture, each of which is four of the large one: two rows of two. */
static void upsample_group(const IntegerConv *task, const size_t *places, size_t image, size_t panel, size_t pixel,
                           size_t count, float *made, float *turned) {
  size_t row = (task->width + 2 * task->padding) * fours_of(task->inputs), moved[CONV_GROUP];
  size_t first = pixel / task->width * 2 * task->made_width + pixel % task->width * 2;
  for (size_t phase = 0; phase < 4; phase++) {
    for (size_t i = 0; i < count; i++) moved[i] = places[i] + phase / 2 * row + phase % 2 * fours_of(task->inputs);
    convolve_group(task, moved, panel, panel * 4 + phase, count, made);
    turn_pixels(made, turned + phase % 2 * CONV_GROUP / 2, CONV_GROUP / 2);
    if (phase % 2 == 0) continue;
    interleave(turned);
    write_pixels(task, turned, image, panel, first + phase / 2 * task->made_width, 2 * count);
  }
}

static void integer_conv(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t panels = conv_panels(task), all = (task->outputs + LINEAR_COLUMNS - 1) / LINEAR_COLUMNS, parts = conv_parts(task);
  size_t across = conv_across(task), image = index / across / parts, first = index / across % parts * CONV_PIXELS;
  size_t end = first + CONV_PIXELS < conv_pixels(task) ? first + CONV_PIXELS : conv_pixels(task);
  size_t panel_end = (index % across + 1) * panels < all ? (index % across + 1) * panels : all;
  size_t columns = task->width + 2 * task->padding, rows = task->height + 2 * task->padding, fours = fours_of(task->inputs);
  size_t wide = task->upsampled ? task->width : task->made_width;
  LINE_ALIGNED float made[CONV_GROUP * LINEAR_COLUMNS] = {0}, turned[CONV_GROUP * LINEAR_COLUMNS];
  for (size_t pixel = first, count; pixel < end; pixel += count) {
    size_t most = task->upsampled ? CONV_GROUP / 2 : CONV_GROUP, places[CONV_GROUP];
    if (task->upsampled && wide - pixel % wide < most) most = wide - pixel % wide; /* a group lies in one row */
    count = end - pixel < most ? end - pixel : most;
    for (size_t i = 0; i < count; i++) {
      size_t row = (pixel + i) / wide * task->stride, column = (pixel + i) % wide * task->stride;
      places[i] = ((image * rows + row) * columns + column) * fours;
    }
    for (size_t panel = index % across * panels; panel < panel_end; panel++) {
      if (task->upsampled) {
        upsample_group(task, places, image, panel, pixel, count, made, turned);
        continue;
      }
      convolve_group(task, places, panel, panel, count, made);
      turn_pixels(made, turned, CONV_GROUP);
      write_pixels(task, turned, image, panel, pixel, count);
    }
  }
  streamed();
}
