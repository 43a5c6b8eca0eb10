/* VPDPBUSD of AVX-VNNI by what AVX2 has, exactly: given to kernels.c where no processor here, and no emulated one, has it.
   All else that is compiled is what is compiled for such a processor. */
#define __AVXVNNI__ 1
#include <immintrin.h>

static inline __m256i exact_products(__m256i sums, __m256i bytes, __m256i weights) {
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)),
                                   _mm256_srai_epi16(_mm256_slli_epi16(weights, 8), 8));
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(weights, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(even, odd));
}
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 exact_products
