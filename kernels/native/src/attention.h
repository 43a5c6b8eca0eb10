/* Attention without a matrix of scores (Rabe & Staats 2021; Dao et al. 2022); part of kernels.c.

   Each lane of a vector is a query of its own, so that sums, largest scores and exponentials need nothing of their
   neighbours. A tile is TILE keys (or TILE numbers of the values) by COLUMNS vectors of queries, all in registers; keys
   and values are packed once a call, each tile's numbers in the order in which its loop reads them. */

#if defined(__AVX512F__)
#include <immintrin.h>
enum { TILE = 8, COLUMNS = 2 };
#elif defined(__aarch64__)
enum { TILE = 5, COLUMNS = 4 };
#else
enum { TILE = 5, COLUMNS = 2 }; /* of 16 registers: 10 sums, 2 of queries, 1 of a key */
#endif
enum { QUERIES = COLUMNS * W, KEYS = 120 }; /* of a block; KEYS is a multiple of any TILE */

INLINE size_t tiles_of(size_t count) { return (count + TILE - 1) / TILE; }

static size_t attention_blocks(const Attention *task) { return (task->queries + QUERIES - 1) / QUERIES; }
static size_t attention_pieces(const Attention *task) { return (task->keys + KEYS - 1) / KEYS; }

/* Numbers of one head's keys, and of its values. */
static size_t attention_packed_keys(const Attention *task) { return tiles_of(task->keys) * TILE * task->size; }
static size_t attention_packed_values(const Attention *task) { return task->keys * tiles_of(task->size) * TILE; }

/* Keys (tile, number, key of the tile), the last one again where a tile is not full; values (tile of numbers, key,
   number), zeros where a tile is not full. */
static void attention_pack(void *argument, size_t index) {
  const Attention *task = argument;
  size_t pieces = attention_pieces(task), head = index / pieces, first = index % pieces * KEYS;
  size_t end = first + KEYS < task->keys ? first + KEYS : task->keys, stride = task->heads * task->size;
  size_t from = head / task->heads * task->keys * stride + head % task->heads * task->size;
  float *keys = task->packed_keys + head * attention_packed_keys(task) + first * task->size;
  for (size_t key = first; key < end; key += TILE)
    for (size_t number = 0; number < task->size; number++)
      for (size_t i = 0; i < TILE; i++)
        *keys++ = task->k[from + (key + i < task->keys ? key + i : task->keys - 1) * stride + number];
  float *values = task->packed_values + head * attention_packed_values(task);
  for (size_t tile = 0; tile < tiles_of(task->size); tile++)
    for (size_t key = first; key < end; key++)
      for (size_t i = 0; i < TILE; i++) {
        size_t number = tile * TILE + i;
        values[(tile * task->keys + key) * TILE + i] = number < task->size ? task->v[from + key * stride + number] : 0;
      }
}

/* A tile of scores, and the largest of each query with them. */
INLINE void keep_scores(Floats sums[TILE][COLUMNS], float *scores, float *largest) {
  for (int j = 0; j < COLUMNS; j++) {
    Floats most = load(largest + j * W);
    for (int i = 0; i < TILE; i++) {
      store(scores + i * QUERIES + j * W, sums[i][j]);
      most = __builtin_elementwise_max(most, sums[i][j]);
    }
    store(largest + j * W, most);
  }
}

/* Vectors of queries (number, query), each times the numbers of a tile (number, TILE), to the sums that are there. */
INLINE void add_tile(Floats made[TILE][COLUMNS], const float *vectors, const float *numbers, size_t count) {
  Floats sums[TILE][COLUMNS]; /* in registers */
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = made[i][j];
#pragma clang loop unroll_count(4)
  for (size_t at = 0; at < count; at++, vectors += QUERIES, numbers += TILE)
    for (int i = 0; i < TILE; i++)
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = multiply_add(load(vectors + j * W), (Floats)numbers[i], sums[i][j]);
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) made[i][j] = sums[i][j];
}

/* Scores of whole tiles of keys, (key, query), and the largest of each query so far. A function of its own, as the next
   ones: within a larger one the compiler keeps sums in memory. */
static __attribute__((noinline)) void find_scores(const float *queries, const float *keys, size_t size, size_t tiles,
                                                  float *scores, float *largest) {
  for (size_t tile = 0; tile < tiles; tile++, keys += size * TILE, scores += TILE * QUERIES) {
    Floats sums[TILE][COLUMNS];
    for (int i = 0; i < TILE; i++)
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = 0.0f;
    add_tile(sums, queries, keys, size);
    keep_scores(sums, scores, largest);
  }
}

#if defined(__AVX512F__)
/* 2^x, to some 2e-7 of it: what is behind the whole number below x by the best polynomial of degree 5 from 0 to 1 (least of
   the largest relative error, 8e-8), the rest by the exponent. */
INLINE Floats any_power_of_two(Floats x) {
  Floats part = (Floats)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC), power = 0x1.ec320ap-10f;
  power = multiply_add(power, part, (Floats)0x1.26900ep-7f);
  power = multiply_add(power, part, (Floats)0x1.c95446p-5f);
  power = multiply_add(power, part, (Floats)0x1.ebd5a8p-3f);
  power = multiply_add(power, part, (Floats)0x1.62e4f6p-1f);
  power = multiply_add(power, part, (Floats)0x1.fffffep-1f);
  return (Floats)_mm512_scalef_ps((__m512)power, (__m512)x);
}

/* A tile of scores to weights, which are added to those of each query. */
INLINE void keep_weights(Floats sums[TILE][COLUMNS], float *to, float *weights) {
#pragma clang loop unroll(full)
  for (int j = 0; j < COLUMNS; j++) {
    Floats sum = load(weights + j * W);
#pragma clang loop unroll(full)
    for (int i = 0; i < TILE; i++) {
      Floats weight = any_power_of_two(sums[i][j]);
      store(to + i * QUERIES + j * W, weight);
      sum += weight;
    }
    store(weights + j * W, sum);
  }
}

/* Weights of whole tiles of keys at once, to scores that are no largest ones: as long as those are not much larger, weights
   are large and as good. Returns whether they are. */
static __attribute__((noinline)) int find_weights(const float *queries, const float *keys, size_t size, size_t tiles,
                                                  const float *largest, float *to, float *weights) {
  for (size_t tile = 0; tile < tiles; tile++, keys += size * TILE, to += TILE * QUERIES) {
    Floats sums[TILE][COLUMNS];
    for (int i = 0; i < TILE; i++)
      for (int j = 0; j < COLUMNS; j++) sums[i][j] = -load(largest + j * W);
    add_tile(sums, queries, keys, size);
    keep_weights(sums, to, weights);
  }
  int good = 1;
  for (int j = 0; j < COLUMNS; j++) good &= __builtin_reduce_and(load(weights + j * W) < 0x1p64f) != 0;
  return good;
}
#else
static int find_weights(const float *queries, const float *keys, size_t size, size_t tiles, const float *largest, float *to,
                        float *weights) {
  return (void)queries, (void)keys, (void)size, (void)tiles, (void)largest, (void)to, (void)weights, 0;
}
#endif

/* Adds values (key, number of one tile), each times its weight (key, query), to sums (number, query). */
static __attribute__((noinline)) void add_values(const float *weights, const float *values, size_t keys, float *to) {
  Floats sums[TILE][COLUMNS];
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = load(to + i * QUERIES + j * W);
  add_tile(sums, weights, values, keys);
  for (int i = 0; i < TILE; i++)
    for (int j = 0; j < COLUMNS; j++) store(to + i * QUERIES + j * W, sums[i][j]);
}

/* One block of queries, as far as some keys are known. */
typedef struct {
  LINE_ALIGNED float queries[ATTENTION_MOST_SIZE * QUERIES];       /* (number, query), scaled */
  float sums[(ATTENTION_MOST_SIZE + TILE) * QUERIES]; /* (number, query), not yet divided by the weights */
  float scores[KEYS * QUERIES];                       /* (key, query), then their weights */
  float largest[QUERIES], weights[QUERIES];           /* of each query: score, and the sum of weights */
} Block;

/* What is there already of a vector of queries, to the new largest scores; returns the sum of its weights. An octave is a
   factor of two, as scores count it. */
INLINE Floats shrink(Block *block, size_t numbers, const float *before, int j, float octave) {
  Floats was = load(before + j * W), largest = load(block->largest + j * W);
  Floats shrunk = power_of_two((was - largest) * (1.0f / octave));
  if (__builtin_reduce_or(largest > was))
    for (size_t number = 0; number < numbers; number++) {
      float *sums = block->sums + number * QUERIES + j * W;
      store(sums, load(sums) * shrunk);
    }
  return load(block->weights + j * W) * shrunk;
}

/* Scores to weights. */
static void weigh(Block *block, size_t keys, size_t numbers, const float *before) {
  for (int j = 0; j < COLUMNS; j++) {
    Floats largest = load(block->largest + j * W), sum = shrink(block, numbers, before, j, 1.0f);
    for (size_t key = 0; key < keys; key++) {
      float *score = block->scores + key * QUERIES + j * W;
      Floats weight = power_of_two(load(score) - largest);
      sum += weight;
      store(score, weight);
    }
    store(block->weights + j * W, sum);
  }
}

/* Four rows of four numbers to columns: where rows are `from_row` and `to_row` numbers apart. */
typedef float Four __attribute__((ext_vector_type(4), aligned(4)));
INLINE void turn_four(const float *from, size_t from_row, float *to, size_t to_row, float factor) {
  Four a = *(const Four *)from, b = *(const Four *)(from + from_row);
  Four c = *(const Four *)(from + 2 * from_row), d = *(const Four *)(from + 3 * from_row);
  Four ab = __builtin_shufflevector(a, b, 0, 4, 1, 5), cd = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  Four ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *(Four *)to = __builtin_shufflevector(ab, cd, 0, 1, 4, 5) * factor;
  *(Four *)(to + to_row) = __builtin_shufflevector(ab, cd, 2, 3, 6, 7) * factor;
  *(Four *)(to + 2 * to_row) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5) * factor;
  *(Four *)(to + 3 * to_row) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7) * factor;
}

static void read_queries(Block *block, const float *from, size_t stride, size_t size, size_t count, float scale) {
  size_t whole = count == QUERIES ? size / 4 * 4 : 0; /* numbers that are turned by fours */
  for (size_t query = 0; query < QUERIES; query += 4)
    for (size_t number = 0; number < whole; number += 4)
      turn_four(from + query * stride + number, stride, block->queries + number * QUERIES + query, QUERIES, scale);
  for (size_t query = 0; query < QUERIES; query++) /* the last one again where there are fewer */
    for (size_t number = whole; number < size; number++)
      block->queries[number * QUERIES + query] = from[(query < count ? query : count - 1) * stride + number] * scale;
}

static void write_sums(Block *block, float *to, size_t stride, size_t size, size_t count) {
  for (int j = 0; j < COLUMNS; j++) {
    Floats share = 1.0f / load(block->weights + j * W);
    for (size_t number = 0; number < size; number++) {
      float *sums = block->sums + number * QUERIES + j * W;
      store(sums, load(sums) * share);
    }
  }
  size_t whole = count == QUERIES ? size / 4 * 4 : 0;
  for (size_t query = 0; query < QUERIES; query += 4)
    for (size_t number = 0; number < whole; number += 4)
      turn_four(block->sums + number * QUERIES + query, QUERIES, to + query * stride + number, stride, 1.0f);
  for (size_t query = 0; query < count; query++)
    for (size_t number = whole; number < size; number++)
      to[query * stride + number] = block->sums[number * QUERIES + query];
}

static void attention(void *argument, size_t index) {
  const Attention *task = argument;
  const float log2_e = 1.44269504f;
  size_t size = task->size, tiles = tiles_of(size), blocks = attention_blocks(task), head = index / blocks;
  size_t first = index % blocks * QUERIES, stride = task->heads * size;
  size_t count = task->queries - first < QUERIES ? task->queries - first : QUERIES;
  size_t place = (head / task->heads * task->queries + first) * stride + head % task->heads * size;
  const float *keys = task->packed_keys + head * attention_packed_keys(task);
  const float *values = task->packed_values + head * attention_packed_values(task);
  Block block; /* 150 KiB at most, on the stack of the thread */
  read_queries(&block, task->q + place, stride, size, count, task->scale * log2_e);
  memset(block.sums, 0, tiles * TILE * QUERIES * sizeof(float));
  for (int i = 0; i < QUERIES; i++) block.largest[i] = -__builtin_inff(), block.weights[i] = 0.0f;
  for (size_t key = 0; key < task->keys; key += KEYS) {
    size_t some = task->keys - key < KEYS ? task->keys - key : KEYS;
    float before[QUERIES], weights[QUERIES];
    memcpy(before, block.largest, sizeof before);
    memcpy(weights, block.weights, sizeof weights);
    const float *each = keys + key * size;
    if (key && some % TILE == 0 && find_weights(block.queries, each, size, some / TILE, before, block.scores, weights)) {
      memcpy(block.weights, weights, sizeof weights);
    } else {
      find_scores(block.queries, each, size, tiles_of(some), block.scores, block.largest);
      weigh(&block, some, size, before);
    }
    for (size_t tile = 0; tile < tiles; tile++)
      add_values(block.scores, values + (tile * task->keys + key) * TILE, some, block.sums + tile * TILE * QUERIES);
  }
  write_sums(&block, task->o + place, stride, size, count);
}
