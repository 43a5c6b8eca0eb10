/* Which sets of instructions this processor has, and the system lets programs use.

   The processor is asked itself (CPUID, XGETBV): the compilers' own means (__builtin_cpu_supports) answer wrongly where
   the library is linked by zig. */
#include "kernels.h"

extern const Kernels kernels_baseline;

#if defined(__x86_64__)
#include <cpuid.h>

extern const Kernels kernels_avx2, kernels_avx512, kernels_avx512vnni, kernels_avx512bf16;

static unsigned long long enabled_states(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (unsigned long long)high << 32 | low;
}

/* All that a compiler may use for x86-64-v3: 2; and for x86-64-v4: 3; and AVX512_VNNI: 4; and AVX512_BF16 and
   AVX512_VBMI: 5; else 1. */
static int count_sets(void) {
  const unsigned v3_leaf1 = bit_SSE4_2 | bit_FMA | bit_MOVBE | bit_POPCNT | bit_OSXSAVE | bit_AVX | bit_F16C;
  const unsigned v3_leaf7 = bit_BMI | bit_AVX2 | bit_BMI2;
  const unsigned v4_leaf7 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
  const unsigned ymm = 6, zmm = 0xe6; /* registers that the system keeps between threads */
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & v3_leaf1) != v3_leaf1 || (enabled_states() & ymm) != ymm) return 1;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LZCNT)) return 1;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & v3_leaf7) != v3_leaf7) return 1;
  if ((b & v4_leaf7) != v4_leaf7 || (enabled_states() & zmm) != zmm) return 2;
  if (!(c & bit_AVX512VNNI)) return 3;
  int permutes = (c & bit_AVX512VBMI) != 0;
  return permutes && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & bit_AVX512BF16) ? 5 : 4;
}

const Kernels *kernels_of_rank(int rank) {
  const Kernels *sets[] = {&kernels_baseline, &kernels_avx2, &kernels_avx512, &kernels_avx512vnni, &kernels_avx512bf16};
  return rank >= 0 && rank < count_sets() ? sets[rank] : 0;
}

const Kernels *best_kernels(void) { return kernels_of_rank(count_sets() - 1); }

#else /* arm64, whose NEON every processor has */

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
static int adds_up_bytes(void) { return IsProcessorFeaturePresent(43); } /* PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE */
#elif defined(__APPLE__)
static int adds_up_bytes(void) { return 1; } /* as every Mac's has */
#else
#include <sys/auxv.h>
static int adds_up_bytes(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
#endif

extern const Kernels kernels_dotprod;

const Kernels *kernels_of_rank(int rank) {
  const Kernels *sets[] = {&kernels_baseline, &kernels_dotprod};
  return rank == 0 || (rank == 1 && adds_up_bytes()) ? sets[rank] : 0;
}

const Kernels *best_kernels(void) { return kernels_of_rank(adds_up_bytes() ? 1 : 0); }

#endif
