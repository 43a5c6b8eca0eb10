/* Convolutions of 8-bit integers, summed in floats with what is added to them; part of kernels.c.

   The picture is rounded once, with its channels side by side, so that a pixel is a row of integer_linear.h whose inputs
   are those of all cells of the filter, and nothing is copied. What is around the picture stands for 0. It may be
   normalized before it is rounded, or rounded already: by the convolution that makes it, which then writes such bytes. */

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

static void integer_channels(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t channels = task->inputs / task->norm.groups, first = index % task->norm.groups * channels;
  Group group = group_of(&task->norm, index);
  for (size_t i = 0; i < channels; i++) task->channels[index * channels + i] = channel_of(&task->norm, group, first + i);
}

/* What lies around the pixels of a row, of an image whose rows have so much before and after them; whether it is one of
   those that have no pixels. */
static int write_around(uint32_t *to, size_t row, size_t height, size_t width, size_t padding, size_t fours, int32_t zero) {
  uint32_t around = (uint32_t)zero * 0x1010101u ^ LESS_IN_FOUR;
  int outside = row < padding || row >= height + padding;
  size_t columns = width + 2 * padding;
  for (size_t i = 0; i < (outside ? columns : padding) * fours; i++) to[i] = around;
  for (size_t i = (columns - padding) * fours; i < columns * fours; i++) to[i] = around;
  return outside;
}

static void integer_around(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t fours = fours_of(task->outputs), rows = task->made_height + 2 * task->next_padding;
  uint32_t *to = (uint32_t *)task->next + index * (task->made_width + 2 * task->next_padding) * fours;
  write_around(to, index % rows, task->made_height, task->made_width, task->next_padding, fours, task->next_zero);
}

INLINE void round_pixels(const IntegerConv *task, const float *from, const Channel *channels, uint32_t *to, int silu) {
  size_t fours = fours_of(task->inputs), pixels = task->height * task->width;
  const Floats each = 1.0f / task->step;
  size_t most = task->width < CONV_STRIP ? W : CONV_STRIP;
  for (size_t strip = 0; strip < task->width; strip += most) {
    size_t end = strip + most < task->width ? strip + most : task->width;
    for (size_t four = 0; four < fours; four++)
      for (size_t column = strip; column < end; column += W) {
        size_t count = end - column < W ? end - column : W;
        Integers words = (int32_t)LESS_IN_FOUR;
        for (size_t i = 0; i < 4 && four * 4 + i < task->inputs; i++) {
          const float *place = from + (four * 4 + i) * pixels + column;
          Floats x = count == W ? load(place) : load_part(place, count);
          if (channels) x = scaled(x, channels[four * 4 + i], silu);
          words ^= to_words(x, each, task->zero) << 8 * (int32_t)i;
        }
        uint32_t made[W];
        store_integers(made, words);
        for (size_t i = 0; i < count; i++) to[(column + i) * fours + four] = made[i];
      }
  }
}

static void integer_bytes(void *argument, size_t index) {
  const IntegerConv *task = argument;
  size_t padding = task->padding, rows = task->height + 2 * padding, columns = task->width + 2 * padding;
  size_t fours = fours_of(task->inputs), pixels = task->height * task->width, image = index / rows, row = index % rows;
  uint32_t *to = (uint32_t *)task->bytes + index * columns * fours;
  if (write_around(to, row, task->height, task->width, padding, fours, task->zero)) return;
  const float *from = task->x + image * task->inputs * pixels + (row - padding) * task->width;
  const Channel *channels = task->norm.groups ? task->channels + image * task->inputs : NULL;
  to += padding * fours;
  if (!channels)
    round_pixels(task, from, NULL, to, 0);
  else if (task->norm.silu)
    round_pixels(task, from, channels, to, 1);
  else
    round_pixels(task, from, channels, to, 0);
}

/* A panel's outputs of some pixels, which begin at `places` of the rounded picture, to (pixel, output). `filters` is the panel
   of weights: of an upsampled picture four, one after the other, have the same outputs. halves: of the panel's outputs, 1 or
   2 of them. */
INLINE void convolve(const IntegerConv *task, const size_t *places, size_t panel, size_t filters, float *to, int pixels,
                     int halves) {
  size_t fours = fours_of(task->inputs), columns = (task->width + 2 * task->padding) * fours;
  size_t count = task->filter_width * fours; /* cells of a row of the filter lie side by side, as pixels do */
  for (size_t part = 0; part < HALF; part += W) {
    Integers sums[BYTE_ROWS][2];
    const uint32_t *x[BYTE_ROWS];
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
          if (halves > 1) sums[i][1] = add_bytes(sums[i][1], bytes, high);
        }
      }
    }
    for (int half = 0; half < halves; half++) {
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
  convolve(task, places, panel, filters, to, BYTE_ROWS, 2);
}
static __attribute__((noinline)) void convolve_half(const IntegerConv *task, const size_t *places, size_t panel,
                                                    size_t filters, float *to) {
  convolve(task, places, panel, filters, to, BYTE_ROWS, 1);
}
static __attribute__((noinline)) void convolve_one(const IntegerConv *task, const size_t *places, size_t panel,
                                                   size_t filters, float *to) {
  convolve(task, places, panel, filters, to, 1, 2);
}

/* (pixel, output) of a panel to (output, pixel). */
static void turn_pixels(const float *made, float *turned, size_t pixels) {
  for (size_t i = 0; i < pixels; i += 4)
    for (size_t output = 0; output < LINEAR_COLUMNS; output += 4)
      turn_four(made + i * LINEAR_COLUMNS + output, LINEAR_COLUMNS, turned + output * CONV_GROUP + i, CONV_GROUP, 1.0f);
}
/* And back. */
static void turn_outputs(const float *turned, float *made) {
  for (size_t output = 0; output < LINEAR_COLUMNS; output += 4)
    for (size_t i = 0; i < CONV_GROUP; i += 4)
      turn_four(turned + output * CONV_GROUP + i, CONV_GROUP, made + i * LINEAR_COLUMNS + output, LINEAR_COLUMNS, 1.0f);
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

INLINE Floats rectified(const IntegerConv *task, Floats x) { return task->rectified ? (x > 0 ? x : (Floats)0.0f) : x; }

/* (pixel, output) of a panel to the bytes of pixels from `pixel` on, of a row each `apart`-th one. summed: whether all is
   added to them. */
static void write_bytes(const IntegerConv *task, const float *made, size_t image, size_t panel, size_t pixel, size_t apart,
                        size_t count, int summed) {
  size_t padding = task->next_padding, columns = task->made_width + 2 * padding, fours = fours_of(task->outputs);
  size_t row = image * (task->made_height + 2 * padding) + padding + pixel / task->made_width;
  size_t column = pixel % task->made_width, places[CONV_GROUP];
  for (size_t i = 0; i < count; i++) {
    places[i] = (row * columns + padding + column) * fours * 4;
    column += apart;
    if (apart == 1 && column == task->made_width) column = 0, row++;
  }
  const Floats each = 1.0f / task->next_step;
  for (size_t part = 0; part < LINEAR_COLUMNS; part += W) {
    size_t channel = panel * LINEAR_COLUMNS + part;
    if (channel >= task->outputs) return;
    size_t room = fours * 4 - channel < W ? fours * 4 - channel : W;
    size_t some = task->outputs - channel < W ? task->outputs - channel : W;
    Floats shift = 0.0f;
    if (task->shift && !summed) shift = load_part(task->shift + image * task->shifts + channel, some);
    for (size_t i = 0; i < count; i++) {
      Floats x = load(made + i * LINEAR_COLUMNS + part);
      if (!summed) x = rectified(task, x + shift);
      ByteLanes bytes = __builtin_convertvector(to_words(x, each, task->next_zero), ByteLanes) ^ (uint8_t)LESS;
      if (room == W)
        memcpy(task->next + places[i] + channel, &bytes, W);
      else
        memcpy(task->next + places[i] + channel, &bytes, room);
    }
  }
}

/* (output, pixel) of a panel to pixels of the picture that lie side by side from `pixel` on; sums stay where they were
   too. */
static void write_pixels(const IntegerConv *task, float *turned, size_t image, size_t panel, size_t pixel, size_t count) {
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
      sum = rectified(task, sum);
      if (task->next) store(turned + output * CONV_GROUP + i, sum);
      if (!task->y) continue;
      if (some < W) store_part(task->y + place + i, sum, some);
      else if (streams && (place + i) % W == 0) stream(task->y + place + i, sum);
      else store(task->y + place + i, sum);
    }
  }
}

/* Whether pixels have to be turned for nothing: neither to be added to nor as floats. */
INLINE int bytes_alone(const IntegerConv *task) { return !task->y && !task->added; }

/* Some pixels of a panel, at `places`, to (pixel, output). */
static void convolve_group(const IntegerConv *task, const size_t *places, size_t panel, size_t filters, size_t count,
                           float *made) {
  size_t done = 0;
  int half = task->outputs <= panel * LINEAR_COLUMNS + HALF; /* the others are none */
  for (; count - done >= BYTE_ROWS; done += BYTE_ROWS)
    (half ? convolve_half : convolve_all)(task, places + done, panel, filters, made + done * LINEAR_COLUMNS);
  for (; done < count; done++) convolve_one(task, places + done, panel, filters, made + done * LINEAR_COLUMNS);
}

/* Pixels that are summed, and turned, to wherever they are wanted. */
static void write_turned(const IntegerConv *task, float *made, float *turned, size_t image, size_t panel, size_t pixel,
                         size_t count) {
  write_pixels(task, turned, image, panel, pixel, count);
  if (!task->next) return;
  turn_outputs(turned, made);
  write_bytes(task, made, image, panel, pixel, 1, count, 1);
}

/* Pixels that lie side by side in a row of the small picture, each of which is four of the large one: two rows of two. */
static void upsample_group(const IntegerConv *task, const size_t *places, size_t image, size_t panel, size_t pixel,
                           size_t count, float *made, float *turned) {
  size_t row = (task->width + 2 * task->padding) * fours_of(task->inputs), moved[CONV_GROUP];
  size_t first = pixel / task->width * 2 * task->made_width + pixel % task->width * 2;
  for (size_t phase = 0; phase < 4; phase++) {
    for (size_t i = 0; i < count; i++) moved[i] = places[i] + phase / 2 * row + phase % 2 * fours_of(task->inputs);
    convolve_group(task, moved, panel, panel * 4 + phase, count, made);
    if (bytes_alone(task)) {
      write_bytes(task, made, image, panel, first + phase / 2 * task->made_width + phase % 2, 2, count, 0);
      continue;
    }
    turn_pixels(made, turned + phase % 2 * CONV_GROUP / 2, CONV_GROUP / 2);
    if (phase % 2 == 0) continue;
    interleave(turned);
    write_turned(task, made, turned, image, panel, first + phase / 2 * task->made_width, 2 * count);
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
      if (bytes_alone(task)) {
        write_bytes(task, made, image, panel, pixel, 1, count, 0);
        continue;
      }
      turn_pixels(made, turned, CONV_GROUP);
      write_turned(task, made, turned, image, panel, pixel, count);
    }
  }
  streamed();
}
