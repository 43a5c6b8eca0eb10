/* Vectors of W floats, W as the set of instructions has them; part of kernels.c, which is compiled once for each. */
#if defined(__AVX512F__)
#define W 16
#elif defined(__AVX__)
#define W 8
#else
#define W 4
#endif
#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((ext_vector_type(W)));
typedef float FloatsAnywhere __attribute__((ext_vector_type(W), aligned(4)));
typedef int32_t Integers __attribute__((ext_vector_type(W)));

#define LINE_ALIGNED _Alignas(64) /* a vector that lies across two lines of a cache is loaded twice */

INLINE Floats load(const float *from) { return *(const FloatsAnywhere *)from; }
INLINE void store(float *to, Floats x) { *(FloatsAnywhere *)to = x; }

/* The first `count` < W numbers, zeros after them. */
INLINE Floats load_part(const float *from, size_t count) {
  Floats x = 0.0f;
  memcpy(&x, from, count * sizeof(float));
  return x;
}
INLINE void store_part(float *to, Floats x, size_t count) { memcpy(to, &x, count * sizeof(float)); }

/* W numbers that are stored as float16, which are finite. */
#if defined(__F16C__) || defined(__aarch64__)
typedef _Float16 Halves __attribute__((ext_vector_type(W), aligned(2)));
INLINE Floats load_halves(const uint16_t *from) { return __builtin_convertvector(*(const Halves *)from, Floats); }
#else
typedef uint16_t Shorts __attribute__((ext_vector_type(W), aligned(2)));
INLINE Floats load_halves(const uint16_t *from) {
  Integers bits = __builtin_convertvector(*(const Shorts *)from, Integers), size = bits & 0x7fff;
  Integers moved = (size << 13) + 0x38000000, sign = (bits & 0x8000) << 16;
  Floats large, small = __builtin_convertvector(size, Floats) * 0x1p-24f, x; /* whose exponent is 0 */
  memcpy(&large, &moved, sizeof moved);
  x = size < 0x400 ? small : large;
  memcpy(&moved, &x, sizeof x);
  moved |= sign;
  memcpy(&x, &moved, sizeof x);
  return x;
}
#endif

/* a * b + c, rounded once where the processor can: without such an instruction it would be a call of a function. */
INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_elementwise_fma(a, b, c);
#else
  return a * b + c;
#endif
}

INLINE float sum_of(Floats x) {
  float sum = 0.0f;
  for (int i = 0; i < W; i++) sum += x[i];
  return sum;
}

/* 2^x for x <= 0, to some 1e-7 of it, and 2^-126 below that; NaN of NaN. The power of the nearest whole number goes into the exponent; the polynomial is the best of degree 6 for the rest,
   -1/2 to 1/2 (Remez's algorithm, relative error 3e-9). */
INLINE Floats power_of_two(Floats x) {
  const float shift = 0x1.8p23f; /* added to a float it leaves a whole number in its lowest bits */
  x = x < -126.0f ? (Floats)-126.0f : x; /* not the larger of the two, which would not be NaN */
  Floats whole = x + shift, part = x - (whole - shift), power = 0x1.470b4ap-13f;
  power = multiply_add(power, part, (Floats)0x1.5f7276p-10f);
  power = multiply_add(power, part, (Floats)0x1.3b270ep-7f);
  power = multiply_add(power, part, (Floats)0x1.c6ae72p-5f);
  power = multiply_add(power, part, (Floats)0x1.ebfbe2p-3f);
  power = multiply_add(power, part, (Floats)0x1.62e432p-1f);
  power = multiply_add(power, part, (Floats)1.0f);
  Integers exponent, bits;
  memcpy(&exponent, &whole, sizeof whole);
  memcpy(&bits, &power, sizeof power);
  bits += exponent << 23;
  memcpy(&power, &bits, sizeof power);
  return power;
}

/* x / (1 + exp(-x)), of exp(-|x|), which is never too large. */
INLINE Floats silu(Floats x) {
  const float log2_e = 1.44269504f;
  Floats small = power_of_two(-__builtin_elementwise_abs(x) * log2_e);
  return x * (x < 0 ? small : (Floats)1.0f) / (1.0f + small);
}
