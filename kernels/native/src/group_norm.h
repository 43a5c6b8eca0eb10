/* Group normalization (Wu & He 2018) and SiLU: a group is read twice and written once; part of kernels.c. */

enum { PIECE = 1024 }; /* numbers whose mean and squares are found while they are in the nearest cache */

/* Of so many numbers: their mean, and the sum of squares of what they are away from it. */
typedef struct {
  double count, mean, squares;
} Moments;

/* By two passes over a piece, so that a mean of many deviations costs no accuracy. */
static Moments moments_of(const float *x, size_t count) {
  Floats sum[4] = {0.0f, 0.0f, 0.0f, 0.0f}, squares[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  size_t i = 0;
  for (; i + 4 * W <= count; i += 4 * W)
    for (int j = 0; j < 4; j++) sum[j] += load(x + i + (size_t)j * W);
  float rest = 0.0f;
  for (; i < count; i++) rest += x[i];
  float mean = (sum_of(sum[0] + sum[1] + sum[2] + sum[3]) + rest) / (float)count;
  for (int j = 0; j < 4; j++) sum[j] = 0.0f; /* now of what is left once the mean is taken away, which was rounded */
  for (i = 0; i + 4 * W <= count; i += 4 * W)
    for (int j = 0; j < 4; j++) {
      Floats away = load(x + i + (size_t)j * W) - mean;
      sum[j] += away;
      squares[j] = multiply_add(away, away, squares[j]);
    }
  double left = sum_of(sum[0] + sum[1] + sum[2] + sum[3]);
  double square = sum_of(squares[0] + squares[1] + squares[2] + squares[3]);
  for (; i < count; i++) {
    float away = x[i] - mean;
    left += away;
    square += (double)away * away;
  }
  return (Moments){(double)count, mean + left / (double)count, square - left * left / (double)count};
}

/* Of two parts together (Chan, Golub & LeVeque 1983). */
static Moments joined(Moments a, Moments b) {
  double count = a.count + b.count, apart = b.mean - a.mean, share = b.count / count;
  return (Moments){count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
}

INLINE Floats scaled(Floats x, Channel channel, int with_silu) {
  x = multiply_add(x - channel.mean, (Floats)channel.scale, (Floats)channel.shift);
  return with_silu ? silu(x) : x;
}

INLINE void scale_channel(const float *x, float *y, size_t count, Channel channel, int with_silu) {
  size_t i = 0;
  for (; i + 2 * W <= count; i += 2 * W) {
    Floats first = scaled(load(x + i), channel, with_silu), second = scaled(load(x + i + W), channel, with_silu);
    store(y + i, first);
    store(y + i + W, second);
  }
  for (; i < count; i += W) {
    size_t some = count - i < W ? count - i : W;
    store_part(y + i, scaled(load_part(x + i, some), channel, with_silu), some);
  }
}

/* Mean and deviation of a group of an image; `index` counts those of all images. */
typedef struct {
  double mean, deviation;
} Group;

static Group group_of(const GroupNorm *norm, size_t index) {
  size_t count = norm->channels / norm->groups * norm->pixels;
  const float *x = norm->x + index * count;
  Moments all = moments_of(x, count < PIECE ? count : PIECE);
  for (size_t i = PIECE; i < count; i += PIECE)
    all = joined(all, moments_of(x + i, count - i < PIECE ? count - i : PIECE));
  return (Group){all.mean, __builtin_sqrt(all.squares / all.count + (double)norm->epsilon)};
}

static Channel channel_of(const GroupNorm *norm, Group group, size_t channel) {
  float mean = (float)group.mean;
  double scale = norm->scale[channel] / group.deviation;
  return (Channel){mean, (float)scale, (float)(norm->bias[channel] - (group.mean - (double)mean) * scale)};
}

static void group_norm(void *task, size_t index) {
  const GroupNorm *norm = task;
  size_t channels = norm->channels / norm->groups, first = index % norm->groups * channels;
  const float *x = norm->x + index * channels * norm->pixels;
  float *y = norm->y + index * channels * norm->pixels;
  Group group = group_of(norm, index);
  for (size_t i = 0; i < channels; i++, x += norm->pixels, y += norm->pixels) {
    Channel each = channel_of(norm, group, first + i);
    if (norm->silu)
      scale_channel(x, y, norm->pixels, each, 1);
    else
      scale_channel(x, y, norm->pixels, each, 0);
  }
}
