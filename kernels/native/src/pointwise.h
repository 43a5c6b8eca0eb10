/* 1x1 convolution of stride 1: a product whose columns are pixels; part of kernels.c.

   Each lane of a vector is a pixel, as a tile is in winograd.h, whose products these are. Pixels are laid out by panel of two
   vectors before, so that the products read what lies together. */

enum { PIXELS = 2 * W, LAID_PANELS = 4, POINTWISE_PANELS = 16 }; /* of a panel; panels of a task, of either kind */

static size_t pixel_panels(const Pointwise *task) { return (task->pixels + PIXELS - 1) / PIXELS; }
static size_t pointwise_scratch(const Pointwise *task) { return task->images * pixel_panels(task) * task->inputs * PIXELS; }
static size_t pointwise_layers(const Pointwise *task) {
  return task->images * ((pixel_panels(task) + LAID_PANELS - 1) / LAID_PANELS);
}
static size_t pointwise_groups(const Pointwise *task) { return (blocks_of(task->outputs) + BLOCKS - 1) / BLOCKS; }
static size_t pointwise_tasks(const Pointwise *task) {
  return task->images * ((pixel_panels(task) + POINTWISE_PANELS - 1) / POINTWISE_PANELS) * pointwise_groups(task);
}

/* Some panels of an image: (panel, input, pixel), zeros beyond the last pixel. */
static void pointwise_lay(void *argument, size_t index) {
  const Pointwise *task = argument;
  size_t panels = pixel_panels(task), each = (panels + LAID_PANELS - 1) / LAID_PANELS, image = index / each;
  size_t first = index % each * LAID_PANELS, end = first + LAID_PANELS < panels ? first + LAID_PANELS : panels;
  for (size_t input = 0; input < task->inputs; input++)
    for (size_t panel = first; panel < end; panel++) {
      const float *from = task->x + (image * task->inputs + input) * task->pixels + panel * PIXELS;
      float *to = task->scratch + ((image * panels + panel) * task->inputs + input) * PIXELS;
      size_t count = task->pixels - panel * PIXELS;
      for (size_t part = 0; part < PIXELS; part += W, count -= count < W ? count : W)
        store(to + part, count >= W ? load(from + part) : count ? load_part(from + part, count) : (Floats)0.0f);
    }
}

/* Sums of a block of outputs and a panel (output, pixel), to where they belong, with what is added. */
static void write_panel(const Pointwise *task, const float *sums, size_t image, size_t block, size_t panel) {
  for (size_t i = 0; i < WINOGRAD_OUTPUTS && block * WINOGRAD_OUTPUTS + i < task->outputs; i++) {
    size_t output = block * WINOGRAD_OUTPUTS + i, place = (image * task->outputs + output) * task->pixels + panel * PIXELS;
    float bias = task->bias[output] + (task->shift ? task->shift[image * task->shifts + output] : 0.0f);
    size_t count = task->pixels - panel * PIXELS;
    for (size_t part = 0; part < PIXELS && part < count; part += W) {
      Floats sum = load(sums + i * PIXELS + part) + bias;
      const float *added = task->added ? task->added + place + part : NULL;
      if (count - part >= W) {
        store(task->y + place + part, added ? sum + load(added) : sum);
      } else {
        store_part(task->y + place + part, added ? sum + load_part(added, count - part) : sum, count - part);
      }
    }
  }
}

/* Asks for the lines that `write_panel` is going to need: those of outputs lie far apart. */
static void fetch_panel(const Pointwise *task, size_t image, size_t block, size_t panel) {
  for (size_t i = 0; i < WINOGRAD_OUTPUTS && block * WINOGRAD_OUTPUTS + i < task->outputs; i++) {
    size_t place = (image * task->outputs + block * WINOGRAD_OUTPUTS + i) * task->pixels + panel * PIXELS;
    __builtin_prefetch(task->y + place, 1);
    if (task->added) __builtin_prefetch(task->added + place);
  }
}

/* Some outputs of some panels, once all is laid out. */
static void pointwise(void *argument, size_t index) {
  const Pointwise *task = argument;
  size_t panels = pixel_panels(task), each = (panels + POINTWISE_PANELS - 1) / POINTWISE_PANELS, groups = pointwise_groups(task);
  size_t image = index / groups / each, first = index / groups % each * POINTWISE_PANELS, block = index % groups * BLOCKS;
  size_t end = first + POINTWISE_PANELS < panels ? first + POINTWISE_PANELS : panels;
  size_t block_end = block + BLOCKS < blocks_of(task->outputs) ? block + BLOCKS : blocks_of(task->outputs);
  for (; block < block_end; block++)
    for (size_t panel = first; panel < end; panel++) {
      LINE_ALIGNED float sums[WINOGRAD_OUTPUTS * PIXELS];
      fetch_panel(task, image, block, panel);
      multiply_two(task->weights + block * task->inputs * WINOGRAD_OUTPUTS,
                   task->scratch + (image * panels + panel) * task->inputs * PIXELS, task->inputs, sums, PIXELS);
      write_panel(task, sums, image, block, panel);
    }
}
