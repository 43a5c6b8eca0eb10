/* Vectors of W whole numbers, and the products of bytes that a set of instructions has; part of kernels.c.

   BYTE_PRODUCTS: the set adds four products of bytes exactly to a lane of 32 bits, unsigned ones by signed ones. SDOT takes
   two signed ones: where it has to do, the first are LESS than they were, so that what stands for 0 is too. */
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#define BYTE_PRODUCTS
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#define BYTE_PRODUCTS
#include <arm_neon.h>
#endif

#if defined(BYTE_PRODUCTS)
#if defined(__ARM_FEATURE_DOTPROD) && !defined(__ARM_FEATURE_MATMUL_INT8)
enum { LESS = 128 };
#define LESS_IN_FOUR 0x80808080u /* a byte's highest bit turned over is 128 less, as a signed one */
#else
enum { LESS = 0 };
#define LESS_IN_FOUR 0u
#endif

#if defined(__AVX512F__) || defined(__aarch64__)
enum { BYTE_ROWS = 8 };
#else
enum { BYTE_ROWS = 4 };
#endif /* rows or pixels whose sums of two vectors are in registers; divides INTEGER_ROWS */

typedef uint8_t ByteLanes __attribute__((ext_vector_type(W)));

INLINE Integers load_integers(const void *from) {
  Integers x;
  memcpy(&x, from, sizeof x);
  return x;
}
INLINE void store_integers(void *to, Integers x) { memcpy(to, &x, sizeof x); }
INLINE Floats floats_of(Integers x) { return __builtin_convertvector(x, Floats); }

/* To the nearest whole number, the even one of two as near; of what is no such number any. */
INLINE Integers nearest(Floats x) {
#if W == 16
  return (Integers)_mm512_cvtps_epi32((__m512)x);
#elif W == 8
  return (Integers)_mm256_cvtps_epi32((__m256)x);
#else
  return (Integers)vcvtnq_s32_f32((float32x4_t)x);
#endif
}

/* Numbers as unsigned bytes, the nearest one for those that are none. */
INLINE ByteLanes to_bytes(Integers x) {
  x = __builtin_elementwise_max(x, (Integers)0);
#if W == 16
  return (ByteLanes)_mm512_cvtusepi32_epi8((__m512i)x);
#else
  return __builtin_convertvector(__builtin_elementwise_min(x, (Integers)255), ByteLanes);
#endif
}

/* One of some rows' four inputs, in each lane. */
INLINE Integers inputs_of(const uint32_t *x, int row, int rows) {
#if defined(__aarch64__)
  if (rows % 4 == 0) return (Integers)load_integers(x + row / 4 * 4)[row % 4]; /* a lane, which products take as it is */
#endif
  return (void)rows, (Integers)(int32_t)x[row];
}

/* Products of four inputs and of four weights in each lane, added to it. */
INLINE Integers add_bytes(Integers sums, Integers inputs, Integers weights) {
#if W == 16
  return (Integers)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)inputs, (__m512i)weights);
#elif W == 8
  return (Integers)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)inputs, (__m256i)weights);
#elif defined(__ARM_FEATURE_MATMUL_INT8)
  return (Integers)vusdotq_s32((int32x4_t)sums, (uint8x16_t)inputs, (int8x16_t)weights);
#else
  return (Integers)vdotq_s32((int32x4_t)sums, (int8x16_t)weights, (int8x16_t)inputs);
#endif
}

/* Two vectors by turns, in two halves. */
#if W == 16
#define FIRST_BY_TURNS 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define SECOND_BY_TURNS 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#elif W == 8
#define FIRST_BY_TURNS 0, 8, 1, 9, 2, 10, 3, 11
#define SECOND_BY_TURNS 4, 12, 5, 13, 6, 14, 7, 15
#else
#define FIRST_BY_TURNS 0, 4, 1, 5
#define SECOND_BY_TURNS 2, 6, 3, 7
#endif

/* A vector that goes to the memory past the caches; `streamed` before others are told that it is there. */
INLINE void stream(float *to, Floats x) { __builtin_nontemporal_store(x, (Floats *)to); }
INLINE void streamed(void) {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}
#endif
