/* The same attention with products of bfloat16 numbers, two at a time, added up in floats; part of kernels.c.

   For processors with AVX512_BF16. Scores and sums stay floats. Two numbers of a query, or weights of two keys, lie side by
   side in a lane. */
#include <immintrin.h>

enum { PAIRS = KEYS / 2 };

/* Two vectors rounded to bfloat16: in each lane the first's number, then the second's. */
INLINE __m512i pair_of(Floats first, Floats second) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                         20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first));
}
INLINE Floats add_products(Floats sums, __m512i pairs, uint32_t pair) {
  return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)pairs, (__m512bh)_mm512_set1_epi32((int)pair));
}
INLINE __m512i load_pairs(const uint32_t *from) { return _mm512_loadu_si512(from); }

/* A number rounded to bfloat16, to the even one of two as near. */
INLINE uint32_t rounded(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40; /* NaN stays NaN */
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

/* Scores are counted in PARTS to an octave: as whole numbers of 16 bits, beside bfloat16's exponent of one, they are the
   exponents of their powers of two and, in the lowest bits, the places of what is behind the point. */
enum { PARTS = 128, ONE = 127 * PARTS, ONES = ONE * 0x10001 };

/* bfloat16's digits of 2^(i / PARTS), as `python -c "print([round((2 ** (i / 128) - 1) * 128) for i in range(128)])"`. */
static const LINE_ALIGNED uint8_t octave[PARTS] = {
  0, 1, 1, 2, 3, 4, 4, 5, 6, 6, 7, 8, 9, 9, 10, 11, 12, 12, 13, 14,
  15, 15, 16, 17, 18, 19, 19, 20, 21, 22, 23, 23, 24, 25, 26, 27, 28, 28, 29, 30,
  31, 32, 33, 34, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 43, 44, 45, 46, 47, 48,
  49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68,
  69, 70, 72, 73, 74, 75, 76, 77, 78, 79, 80, 82, 83, 84, 85, 86, 87, 88, 90, 91,
  92, 93, 94, 96, 97, 98, 99, 100, 102, 103, 104, 105, 107, 108, 109, 111, 112, 113, 115, 116,
  117, 118, 120, 121, 123, 124, 125, 127};

/* Powers of two of two vectors of parts of an octave, none above 0, as pairs; what is below 2^-127 is 0. A part is met to
   half of it, which is 0.3 % of the power, and so are digits. */
INLINE __m512i power_pairs(Floats first, Floats second, __m512i low, __m512i high) {
  const __m512i digits = _mm512_set1_epi32((PARTS - 1) * 0x10001);
  first = __builtin_elementwise_max(first + (float)ONE, (Floats)0.0f);
  second = __builtin_elementwise_max(multiply_add(second, (Floats)65536.0f, (Floats)(65536.0f * (ONE + 0.5f))), (Floats)0.0f);
  __m512i parts = _mm512_mask_blend_epi16(0x55555555, _mm512_cvttps_epi32((__m512)second), _mm512_cvtps_epi32((__m512)first));
  __m512i found = _mm512_maskz_permutex2var_epi8(0x5555555555555555, low, parts, high);
  return _mm512_ternarylogic_epi32(digits, parts, found, 0xae);
}

static size_t half_pairs(size_t count) { return (count + 1) / 2; }

/* Pairs of one head's keys, and of its values. */
static size_t attention_half_keys(const Attention *task) { return tiles_of(task->keys) * TILE * half_pairs(task->size); }
static size_t attention_half_values(const Attention *task) {
  return half_pairs(task->keys) * tiles_of(task->size) * TILE;
}

static int all_finite(const float *x, size_t count) {
  uint32_t odd = 0, bits;
  for (size_t i = 0; i < count; i++) {
    memcpy(&bits, x + i, sizeof bits);
    odd |= (bits & 0x7f800000) == 0x7f800000;
  }
  return !odd;
}

/* Keys (tile, pair of numbers, key of the tile), the last one again where a tile is not full; values (tile of numbers, pair
   of keys, number), zeros where one is missing. Scores that are not finite have no weight, so the values of a key that is
   not are NaN: whoever asks is to get NaN. */
static void attention_half_pack(void *argument, size_t index) {
  const Attention *task = argument;
  size_t pieces = attention_pieces(task), head = index / pieces, first = index % pieces * KEYS, size = task->size;
  size_t end = first + KEYS < task->keys ? first + KEYS : task->keys, stride = task->heads * size;
  size_t from = head / task->heads * task->keys * stride + head % task->heads * size;
  uint32_t *keys = (uint32_t *)task->packed_keys + head * attention_half_keys(task) + first * half_pairs(size);
  for (size_t key = first; key < end; key += TILE)
    for (size_t number = 0; number < size; number += 2)
      for (size_t i = 0; i < TILE; i++) {
        const float *k = task->k + from + (key + i < task->keys ? key + i : task->keys - 1) * stride + number;
        *keys++ = rounded(k[0]) | (number + 1 < size ? rounded(k[1]) << 16 : 0);
      }
  uint32_t *values = (uint32_t *)task->packed_values + head * attention_half_values(task);
  for (size_t key = first; key < end; key += 2) {
    int two = key + 1 < task->keys;
    const float *k = task->k + from + key * stride, *v = task->v + from + key * stride;
    uint32_t lost = all_finite(k, size) ? 0 : 0x7fc0;
    if (two && !all_finite(k + stride, size)) lost |= 0x7fc0u << 16;
    for (size_t tile = 0; tile < tiles_of(size); tile++)
      for (size_t i = 0; i < TILE; i++) {
        size_t number = tile * TILE + i;
        uint32_t pair = number < size ? rounded(v[number]) | (two ? rounded(v[stride + number]) << 16 : 0) : 0;
        values[(tile * half_pairs(task->keys) + key / 2) * TILE + i] = pair | lost;
      }
  }
}

static __attribute__((noinline)) void find_half_scores(const uint32_t *queries, const uint32_t *keys, size_t pairs,
                                                       size_t tiles, float *scores, float *largest) {
  for (size_t tile = 0; tile < tiles; tile++, scores += TILE * QUERIES) {
    Floats sums[TILE][COLUMNS];
    for (int i = 0; i < TILE; i++)
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = 0.0f;
    const uint32_t *query = queries;
#pragma clang loop unroll_count(4)
    for (size_t pair = 0; pair < pairs; pair++, query += QUERIES, keys += TILE)
      for (int i = 0; i < TILE; i++)
        for (int j = 0; j < COLUMNS; j++) sums[i][j] = add_products(sums[i][j], load_pairs(query + j * W), keys[i]);
    keep_scores(sums, scores, largest);
  }
}

static __attribute__((noinline)) void add_half_values(const uint32_t *weights, const uint32_t *values, size_t pairs,
                                                      float *to) {
  Floats sums[TILE][COLUMNS];
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = load(to + i * QUERIES + j * W);
#pragma clang loop unroll_count(4)
  for (size_t pair = 0; pair < pairs; pair++, weights += QUERIES, values += TILE)
    for (int i = 0; i < TILE; i++)
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = add_products(sums[i][j], load_pairs(weights + j * W), values[i]);
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) store(to + i * QUERIES + j * W, sums[i][j]);
}

/* One block of queries; queries and weights of keys as pairs too. */
typedef struct {
  Block floats;
  LINE_ALIGNED uint32_t queries[ATTENTION_MOST_SIZE / 2 * QUERIES], weights[PAIRS * QUERIES];
} HalfBlock;

/* As `weigh`, to pairs of weights. */
static void weigh_half(HalfBlock *block, size_t keys, size_t numbers, const float *before) {
  const __m512i low = _mm512_load_si512(octave), high = _mm512_load_si512(octave + 64);
  for (int j = 0; j < COLUMNS; j++) {
    Floats largest = load(block->floats.largest + j * W), sum = shrink(&block->floats, numbers, before, j, PARTS);
    for (size_t key = 0; key < keys; key += 2) {
      const float *score = block->floats.scores + key * QUERIES + j * W;
      Floats second = key + 1 < keys ? load(score + QUERIES) - largest : (Floats)-ONE;
      __m512i pair = power_pairs(load(score) - largest, second, low, high);
      sum = add_products(sum, pair, ONES);
      _mm512_storeu_si512(block->weights + key / 2 * QUERIES + j * W, pair);
    }
    store(block->floats.weights + j * W, sum);
  }
}

static void attention_half(void *argument, size_t index) {
  const Attention *task = argument;
  const float log2_e = 1.44269504f;
  size_t size = task->size, tiles = tiles_of(size), blocks = attention_blocks(task), head = index / blocks;
  size_t first = index % blocks * QUERIES, stride = task->heads * size, pairs = half_pairs(size);
  size_t count = task->queries - first < QUERIES ? task->queries - first : QUERIES;
  size_t place = (head / task->heads * task->queries + first) * stride + head % task->heads * size;
  const uint32_t *keys = (const uint32_t *)task->packed_keys + head * attention_half_keys(task);
  const uint32_t *values = (const uint32_t *)task->packed_values + head * attention_half_values(task);
  HalfBlock block; /* 190 KiB at most, on the stack of the thread */
  read_queries(&block.floats, task->q + place, stride, size, count, task->scale * log2_e * PARTS);
  for (size_t pair = 0; pair < pairs; pair++)
    for (int j = 0; j < COLUMNS; j++) {
      const float *query = block.floats.queries + pair * 2 * QUERIES + j * W;
      Floats second = pair * 2 + 1 < size ? load(query + QUERIES) : (Floats)0.0f;
      _mm512_storeu_si512(block.queries + pair * QUERIES + j * W, pair_of(load(query), second));
    }
  memset(block.floats.sums, 0, tiles * TILE * QUERIES * sizeof(float));
  for (int i = 0; i < QUERIES; i++) block.floats.largest[i] = -__builtin_inff(), block.floats.weights[i] = 0.0f;
  for (size_t key = 0; key < task->keys; key += KEYS) {
    size_t some = task->keys - key < KEYS ? task->keys - key : KEYS;
    float before[QUERIES];
    memcpy(before, block.floats.largest, sizeof before);
    find_half_scores(block.queries, keys + key * pairs, pairs, tiles_of(some), block.floats.scores, block.floats.largest);
    weigh_half(&block, some, size, before);
    for (size_t tile = 0; tile < tiles; tile++)
      add_half_values(block.weights, values + (tile * half_pairs(task->keys) + key / 2) * TILE, half_pairs(some),
                      block.floats.sums + tile * TILE * QUERIES);
  }
  for (int j = 0; j < COLUMNS; j++) { /* a query that isn't finite, or whose scores grew too large, gets NaN */
    Floats lost = load(block.floats.largest + j * W) * 0.0f;
    for (size_t number = 0; number < size; number++)
      lost = multiply_add(load(block.floats.queries + number * QUERIES + j * W), (Floats)0.0f, lost);
    store(block.floats.weights + j * W, load(block.floats.weights + j * W) + lost);
  }
  write_sums(&block.floats, task->o + place, stride, size, count);
}
