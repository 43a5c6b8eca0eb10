/* Rows times a fixed matrix of 4-bit integers, of which 32 inputs of an output share a scale and a zero point; part of
   kernels.c.

   Panels, and the rows and panels of a task, are those of linear.h. A product with floats turns a panel to floats once for
   all rows of a task; one with integers takes its weights apart in registers, and rounds rows to 8 bits before. */

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

typedef uint32_t Words __attribute__((ext_vector_type(W)));
typedef uint32_t WordsAnywhere __attribute__((ext_vector_type(W), aligned(1)));
typedef uint8_t Bytes __attribute__((ext_vector_type(W), aligned(1)));
typedef int8_t SignedBytes __attribute__((ext_vector_type(W)));

enum { FOUR_BIT_PIECE = 128 }; /* inputs of a panel that are floats at a time: 16 KiB, in the nearest cache */

static size_t groups_of(const FourBits *task) { return task->layer.inputs / FOUR_BIT_GROUP; }

/* What a task is of: some rows, whole sets of them, and some panels. */
typedef struct {
  size_t row, row_end, panel, panel_end, count; /* count: of all tasks */
} Share;

static Share four_bit_share(const FourBits *task, size_t index) {
  const Linear *layer = &task->layer;
  size_t rows = (task_rows(layer) + FOUR_BIT_SET - 1) / FOUR_BIT_SET * FOUR_BIT_SET, panels = task_panels(layer);
  size_t all = linear_panels(layer), across = (all + panels - 1) / panels;
  Share share = {.row = index / across * rows, .panel = index % across * panels};
  share.row_end = share.row + rows < layer->rows ? share.row + rows : layer->rows;
  share.panel_end = share.panel + panels < all ? share.panel + panels : all;
  share.count = (layer->rows + rows - 1) / rows * across;
  return share;
}
static size_t four_bit_tasks(const FourBits *task) { return four_bit_share(task, 0).count; }

/* W columns' weights of eight inputs: a byte has one of the first four in its lower half, one of the others in its upper. */
INLINE Words four_bit_words(const FourBits *task, size_t panel, size_t group, size_t eight, size_t column) {
  size_t at = (panel * groups_of(task) + group) * (FOUR_BIT_GROUP / 8) + eight;
  return *(const WordsAnywhere *)(task->weights + (at * LINEAR_COLUMNS + column) * 4);
}
INLINE Floats four_bit_scales(const FourBits *task, size_t panel, size_t group, size_t column) {
  return load_halves(task->scales + (panel * groups_of(task) + group) * LINEAR_COLUMNS + column);
}
INLINE Words four_bit_zeros(const FourBits *task, size_t panel, size_t group, size_t column) {
  const uint8_t *from = task->zeros + (panel * groups_of(task) + group) * HALF + column % HALF;
  return __builtin_convertvector(*(const Bytes *)from, Words) >> (column < HALF ? 0 : 4) & 15;
}

/* A set of rows by input, as linear.h multiplies them. */
static void four_bit_lay(void *argument, size_t set) {
  const FourBits *task = argument;
  size_t inputs = task->layer.inputs, first = set * FOUR_BIT_SET;
  for (size_t row = first; row < first + FOUR_BIT_SET && row < task->layer.rows; row += LINEAR_ROWS) {
    size_t rows = task->layer.rows - row < LINEAR_ROWS ? task->layer.rows - row : LINEAR_ROWS;
    lay_out(task->layer.x + row * inputs, inputs, inputs, rows, task->laid + row * inputs);
  }
}

/* Some groups of a panel to floats (input, column): integers become floats by the exponent that makes them whole. */
static void four_bit_floats(const FourBits *task, size_t panel, size_t first, size_t groups, float *to) {
  for (size_t group = first; group < first + groups; group++, to += FOUR_BIT_GROUP * LINEAR_COLUMNS)
    for (size_t column = 0; column < LINEAR_COLUMNS; column += W) {
      Floats scale = four_bit_scales(task, panel, group, column), zero;
      Words moved = four_bit_zeros(task, panel, group, column) | 0x4b000000;
      memcpy(&zero, &moved, sizeof moved);
      for (size_t eight = 0; eight < FOUR_BIT_GROUP / 8; eight++) {
        Words words = four_bit_words(task, panel, group, eight, column);
        for (size_t i = 0; i < 8; i++) { /* of the bytes' lower halves, then of their upper ones */
          Words whole = (words >> (i % 4 * 8 + i / 4 * 4) & 15) | 0x4b000000;
          Floats weight;
          memcpy(&weight, &whole, sizeof whole);
          store(to + (eight * 8 + i) * LINEAR_COLUMNS + column, (weight - zero) * scale);
        }
      }
    }
}

/* What is done to whole sums, compiled once for some rows, of which any block is made, and once for a row. */
enum { FINISHED_ROWS = LINEAR_ROWS == 6 ? 2 : LINEAR_ROWS };
static __attribute__((noinline)) void finish_block(const Linear *layer, Floats sums[LINEAR_ROWS][2], size_t row, size_t panel,
                                                   size_t part) {
  finish_rows(layer, sums, 0, 1, row, panel, part, FINISHED_ROWS);
}
static __attribute__((noinline)) void finish_row(const Linear *layer, Floats sums[LINEAR_ROWS][2], size_t row, size_t panel,
                                                 size_t part) {
  finish_rows(layer, sums, 0, 1, row, panel, part, 1);
}
INLINE void finish_some(const Linear *layer, Floats sums[][2], size_t row, size_t panel, size_t part, int rows) {
  int done = 0;
  for (; done + (int)FINISHED_ROWS <= rows; done += FINISHED_ROWS) finish_block(layer, sums + done, row + (size_t)done, panel, part);
  for (; done < rows; done++) finish_row(layer, sums + done, row + (size_t)done, panel, part);
}

/* A piece of a panel, floats by now, times some rows, whose sums wait in `partial` (row, column) from piece to piece. */
typedef struct {
  const float *weights; /* (input, column) */
  size_t inputs, panel;
  int begun, ended; /* whether there are sums already, and whether it is the last piece */
} Piece;

INLINE void multiply_piece(const Linear *layer, const Piece *piece, const float *x, float *partial, size_t row, int rows) {
  for (size_t part = 0; part < HALF; part += W) {
    Floats sums[LINEAR_ROWS][2];
    for (int i = 0; i < rows; i++)
      for (int half = 0; half < 2; half++)
        sums[i][half] = piece->begun ? load(partial + i * LINEAR_COLUMNS + half * HALF + part) : (Floats)0.0f;
    add_rows(sums, (Rows){x, LINEAR_ROWS, 1}, piece->weights + part, HALF, piece->inputs, rows);
    if (piece->ended) {
      finish_some(layer, sums, row, piece->panel, part, rows);
      continue;
    }
    for (int i = 0; i < rows; i++)
      for (int half = 0; half < 2; half++) store(partial + i * LINEAR_COLUMNS + half * HALF + part, sums[i][half]);
  }
}
static __attribute__((noinline)) void multiply_all_of_piece(const Linear *layer, const Piece *piece, const float *x,
                                                            float *partial, size_t row) {
  multiply_piece(layer, piece, x, partial, row, LINEAR_ROWS);
}
static __attribute__((noinline)) void multiply_four_of_piece(const Linear *layer, const Piece *piece, const float *x,
                                                             float *partial, size_t row) {
  multiply_piece(layer, piece, x, partial, row, 4);
}
static __attribute__((noinline)) void multiply_row_of_piece(const Linear *layer, const Piece *piece, const float *x,
                                                            float *partial, size_t row) {
  multiply_piece(layer, piece, x, partial, row, 1);
}

static void four_bit_linear(void *argument, size_t index) {
  const FourBits *task = argument;
  const Linear *layer = &task->layer;
  Share share = four_bit_share(task, index);
  size_t inputs = layer->inputs, some = even_share(groups_of(task), FOUR_BIT_PIECE / FOUR_BIT_GROUP) * FOUR_BIT_GROUP;
  LINE_ALIGNED float weights[FOUR_BIT_PIECE * LINEAR_COLUMNS], partial[LINEAR_TASK_ROWS * LINEAR_COLUMNS];
  for (size_t panel = share.panel; panel < share.panel_end; panel++)
    for (size_t first = 0; first < inputs; first += some) {
      size_t count = inputs - first < some ? inputs - first : some;
      Piece piece = {weights, count, panel, first > 0, first + count == inputs};
      four_bit_floats(task, panel, first / FOUR_BIT_GROUP, count / FOUR_BIT_GROUP, weights);
      for (size_t row = share.row; row < share.row_end; row += LINEAR_ROWS) {
        const float *x = task->laid + row * inputs + first * LINEAR_ROWS;
        float *sums = partial + (row - share.row) * LINEAR_COLUMNS;
        size_t left = share.row_end - row, done = 0;
        if (left >= LINEAR_ROWS) multiply_all_of_piece(layer, &piece, x, sums, row), done = left;
        for (; done + 4 <= left; done += 4)
          multiply_four_of_piece(layer, &piece, x + done, sums + done * LINEAR_COLUMNS, row + done);
        for (; done < left; done++)
          multiply_row_of_piece(layer, &piece, x + done, sums + done * LINEAR_COLUMNS, row + done);
      }
    }
}

#if defined(__AVX2__) || defined(__aarch64__)
/* What products of four bytes add up to, weights of 0 to 15 and inputs of -127 to 127: of W columns, sums of a group fit. */
#if defined(__AVX512VNNI__)
typedef Integers Dots;
INLINE Dots no_dots(Integers begun) { return begun; }
INLINE Dots add_dots(Dots sums, Words weights, uint32_t x) {
  return (Dots)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)weights, _mm512_set1_epi32((int)x));
}
INLINE Integers dots_of(Dots sums, Integers begun) { return (void)begun, sums; }
#elif defined(__AVX512F__)
typedef __m512i Dots; /* 16 bits, in pairs: no more than 8 * 2 * 15 * 127 */
INLINE Dots no_dots(Integers begun) { return (void)begun, _mm512_setzero_si512(); }
INLINE Dots add_dots(Dots sums, Words weights, uint32_t x) {
  return _mm512_add_epi16(sums, _mm512_maddubs_epi16((__m512i)weights, _mm512_set1_epi32((int)x)));
}
INLINE Integers dots_of(Dots sums, Integers begun) {
  return (Integers)_mm512_madd_epi16(sums, _mm512_set1_epi16(1)) + begun;
}
#elif defined(__AVX2__)
typedef __m256i Dots;
INLINE Dots no_dots(Integers begun) { return (void)begun, _mm256_setzero_si256(); }
INLINE Dots add_dots(Dots sums, Words weights, uint32_t x) {
  return _mm256_add_epi16(sums, _mm256_maddubs_epi16((__m256i)weights, _mm256_set1_epi32((int)x)));
}
INLINE Integers dots_of(Dots sums, Integers begun) {
  return (Integers)_mm256_madd_epi16(sums, _mm256_set1_epi16(1)) + begun;
}
#elif defined(__ARM_FEATURE_DOTPROD)
typedef Integers Dots;
INLINE Dots no_dots(Integers begun) { return begun; }
INLINE Dots add_dots(Dots sums, Words weights, uint32_t x) {
  return (Dots)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, vreinterpretq_s8_u32(vdupq_n_u32(x)));
}
INLINE Integers dots_of(Dots sums, Integers begun) { return (void)begun, sums; }
#else
typedef struct {
  int16x8_t low, high; /* of two columns each, four inputs apart: no more than 8 * 15 * 127 */
} Dots;
INLINE Dots no_dots(Integers begun) { return (void)begun, (Dots){vdupq_n_s16(0), vdupq_n_s16(0)}; }
INLINE Dots add_dots(Dots sums, Words weights, uint32_t x) {
  int8x16_t bytes = (int8x16_t)weights;
  int8x8_t four = vreinterpret_s8_u32(vdup_n_u32(x));
  sums.low = vmlal_s8(sums.low, vget_low_s8(bytes), four);
  sums.high = vmlal_s8(sums.high, vget_high_s8(bytes), four);
  return sums;
}
INLINE Integers dots_of(Dots sums, Integers begun) {
  return (Integers)vpaddq_s32(vpaddlq_s16(sums.low), vpaddlq_s16(sums.high)) + begun;
}
#endif

/* The product of zero points and a group's negated sum, which both fit in 16 bits. */
INLINE Integers moved_by(Words zeros, int32_t total) {
#if defined(__AVX512F__)
  return (Integers)_mm512_madd_epi16((__m512i)zeros, _mm512_set1_epi32(total));
#elif defined(__AVX2__)
  return (Integers)_mm256_madd_epi16((__m256i)zeros, _mm256_set1_epi32(total));
#else
  return __builtin_convertvector(zeros, Integers) * total;
#endif
}

/* A group of inputs to whole numbers from -127 to 127 by the largest of them, four in each of `to`. Where one isn't finite
   the step is NaN, and so is all that becomes of the row. Returns minus their sum. */
static int32_t round_group(const float *from, uint32_t *to, float *step) {
  Floats largest = 0.0f, odd = 0.0f;
  for (size_t i = 0; i < FOUR_BIT_GROUP; i += W) {
    Floats x = load(from + i);
    largest = __builtin_elementwise_max(largest, __builtin_elementwise_abs(x));
    odd = multiply_add(x, (Floats)0.0f, odd);
  }
  const float shift = 0x1.8p23f; /* added to a float it leaves a whole number in its lowest bits */
  float most = __builtin_reduce_max(largest), each = most > 0x1p-100f ? 127.0f / most : 0.0f;
  Integers total = 0;
  int8_t bytes[FOUR_BIT_GROUP];
  for (size_t i = 0; i < FOUR_BIT_GROUP; i += W) {
    Floats moved = load(from + i) * each + shift;
    Integers whole;
    memcpy(&whole, &moved, sizeof moved);
    SignedBytes some = __builtin_convertvector(whole, SignedBytes); /* their lowest ones */
    memcpy(bytes + i, &some, sizeof some);
    total -= __builtin_convertvector(some, Integers);
  }
  for (size_t four = 0; four < FOUR_BIT_GROUP / 4; four++) memcpy(to + four * FOUR_BIT_ROWS, bytes + 4 * four, 4);
  *step = most * (1.0f / 127.0f) + sum_of(odd);
  int32_t sum = 0;
  for (int i = 0; i < W; i++) sum += total[i];
  return sum;
}

static void four_bit_round(void *argument, size_t block) {
  const FourBits *task = argument;
  size_t inputs = task->layer.inputs, groups = groups_of(task), first = block * FOUR_BIT_ROWS;
  for (size_t i = 0; i < FOUR_BIT_ROWS && first + i < task->layer.rows; i++)
    for (size_t group = 0; group < groups; group++) {
      size_t at = (block * groups + group) * FOUR_BIT_ROWS + i;
      const float *from = task->layer.x + (first + i) * inputs + group * FOUR_BIT_GROUP;
      uint32_t *to = task->fours + (block * groups + group) * (FOUR_BIT_GROUP / 4) * FOUR_BIT_ROWS + i;
      task->totals[at] = round_group(from, to, task->steps + at);
    }
}

/* Some rows of a block of W columns of a panel; block: from the first of them on. */
INLINE void multiply_four_bits(const FourBits *task, size_t row, size_t panel, size_t column, int rows, Floats *made) {
  size_t groups = groups_of(task), place = row / FOUR_BIT_ROWS * groups * FOUR_BIT_ROWS + row % FOUR_BIT_ROWS;
  const uint32_t *x = task->fours + row / FOUR_BIT_ROWS * groups * (FOUR_BIT_GROUP / 4) * FOUR_BIT_ROWS + row % FOUR_BIT_ROWS;
  const float *step = task->steps + place;
  const int32_t *total = task->totals + place;
  Floats sums[FOUR_BIT_ROWS];
  for (int i = 0; i < rows; i++) sums[i] = 0.0f;
  for (size_t group = 0; group < groups; group++, step += FOUR_BIT_ROWS, total += FOUR_BIT_ROWS) {
    Words zeros = four_bit_zeros(task, panel, group, column);
    Dots dots[FOUR_BIT_ROWS];
    for (int i = 0; i < rows; i++) dots[i] = no_dots(moved_by(zeros, total[i]));
#pragma clang loop unroll(full)
    for (size_t eight = 0; eight < FOUR_BIT_GROUP / 8; eight++, x += 2 * FOUR_BIT_ROWS) {
      Words words = four_bit_words(task, panel, group, eight, column);
      Words low = words & 0x0f0f0f0f, high = words >> 4 & 0x0f0f0f0f;
      for (int i = 0; i < rows; i++) dots[i] = add_dots(dots[i], low, x[i]);
      for (int i = 0; i < rows; i++) dots[i] = add_dots(dots[i], high, x[FOUR_BIT_ROWS + i]);
    }
    Floats scale = four_bit_scales(task, panel, group, column);
    for (int i = 0; i < rows; i++) {
      Floats whole = __builtin_convertvector(dots_of(dots[i], moved_by(zeros, total[i])), Floats);
      sums[i] = multiply_add(whole, scale * step[i], sums[i]);
    }
  }
  for (int i = 0; i < rows; i++) made[2 * i] = sums[i];
}
INLINE void multiply_four_bit_rows(const FourBits *task, size_t row, size_t panel, int rows) {
  for (size_t part = 0; part < HALF; part += W) {
    Floats made[FOUR_BIT_ROWS][2];
    for (int half = 0; half < 2; half++)
      multiply_four_bits(task, row, panel, half * HALF + part, rows, &made[0][half]);
    finish_some(&task->layer, made, row, panel, part, rows);
  }
}
static __attribute__((noinline)) void multiply_all_four_bits(const FourBits *task, size_t row, size_t panel) {
  multiply_four_bit_rows(task, row, panel, FOUR_BIT_ROWS);
}
static __attribute__((noinline)) void multiply_some_four_bits(const FourBits *task, size_t row, size_t panel) {
  multiply_four_bit_rows(task, row, panel, 4);
}
static __attribute__((noinline)) void multiply_row_four_bits(const FourBits *task, size_t row, size_t panel) {
  multiply_four_bit_rows(task, row, panel, 1);
}

static void four_bit_integers(void *argument, size_t index) {
  const FourBits *task = argument;
  Share share = four_bit_share(task, index);
  for (size_t row = share.row; row < share.row_end; row += FOUR_BIT_ROWS)
    for (size_t panel = share.panel; panel < share.panel_end; panel++) {
      size_t left = share.row_end - row, done = 0;
      if (left >= FOUR_BIT_ROWS) multiply_all_four_bits(task, row, panel), done = left;
      for (; done + 4 <= left; done += 4) multiply_some_four_bits(task, row + done, panel);
      for (; done < left; done++) multiply_row_four_bits(task, row + done, panel);
    }
}
#endif
