/* Which sets of instructions this processor has, and the system lets programs use.

   On x86-64 the processor is asked itself (CPUID, XGETBV): the compilers' own means (__builtin_cpu_supports) answer wrongly
   where the library is linked by zig. On arm64 programs may not ask it, so the system is. */
#include "kernels.h"

enum { MOST_SETS = 6 };
extern const Kernels kernels_baseline;

#if defined(__x86_64__)
#include <cpuid.h>

extern const Kernels kernels_avx2, kernels_avxvnni, kernels_avx512, kernels_avx512vnni, kernels_avx512bf16;

static unsigned long long enabled_states(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (unsigned long long)high << 32 | low;
}

/* After the plainest one: all that a compiler may use for x86-64-v3; that and AVX-VNNI; x86-64-v4; that and AVX512_VNNI; that
   and AVX512_BF16 and AVX512_VBMI. */
static int list_sets(const Kernels *sets[MOST_SETS]) {
  const unsigned v3_leaf1 = bit_SSE4_2 | bit_FMA | bit_MOVBE | bit_POPCNT | bit_OSXSAVE | bit_AVX | bit_F16C;
  const unsigned v3_leaf7 = bit_BMI | bit_AVX2 | bit_BMI2;
  const unsigned v4_leaf7 = bit_AVX512F | bit_AVX512DQ | bit_AVX512CD | bit_AVX512BW | bit_AVX512VL;
  const unsigned ymm = 6, zmm = 0xe6; /* registers that the system keeps between threads */
  unsigned a, b, c, d, more = 0, unused;
  int count = 0;
  sets[count++] = &kernels_baseline;
  if (!__get_cpuid(1, &a, &b, &c, &d) || (c & v3_leaf1) != v3_leaf1 || (enabled_states() & ymm) != ymm) return count;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & bit_LZCNT)) return count;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & v3_leaf7) != v3_leaf7) return count;
  if (a >= 1) __get_cpuid_count(7, 1, &more, &unused, &unused, &unused);
  sets[count++] = &kernels_avx2;
  if (more & bit_AVXVNNI) sets[count++] = &kernels_avxvnni;
  if ((b & v4_leaf7) != v4_leaf7 || (enabled_states() & zmm) != zmm) return count;
  sets[count++] = &kernels_avx512;
  if (!(c & bit_AVX512VNNI)) return count;
  sets[count++] = &kernels_avx512vnni;
  if (c & bit_AVX512VBMI && more & bit_AVX512BF16) sets[count++] = &kernels_avx512bf16;
  return count;
}

#else /* arm64, whose NEON every processor has */

extern const Kernels kernels_dotprod, kernels_i8mm;

#if defined(__linux__)
#include <sys/auxv.h>
static int has_dotprod(void) { return (getauxval(AT_HWCAP) >> 20 & 1) != 0; } /* HWCAP_ASIMDDP */
static int has_i8mm(void) { return (getauxval(AT_HWCAP2) >> 13 & 1) != 0; }   /* HWCAP2_I8MM */
#elif defined(__APPLE__)
#include <sys/sysctl.h>
static int says(const char *name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}
static int has_dotprod(void) { return says("hw.optional.arm.FEAT_DotProd"); }
static int has_i8mm(void) { return says("hw.optional.arm.FEAT_I8MM"); }
#elif defined(_WIN32)
#include <windows.h>
static int has_dotprod(void) { return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) != 0; }
static int has_i8mm(void) { return IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE) != 0; }
#endif

/* After the plainest one: with products of bytes of one sign; and with those of two. */
static int list_sets(const Kernels *sets[MOST_SETS]) {
  int count = 0;
  sets[count++] = &kernels_baseline;
  if (!has_dotprod()) return count;
  sets[count++] = &kernels_dotprod;
  if (has_i8mm()) sets[count++] = &kernels_i8mm;
  return count;
}

#endif

const Kernels *kernels_of_rank(int rank) {
  const Kernels *sets[MOST_SETS];
  int count = list_sets(sets);
  return rank >= 0 && rank < count ? sets[rank] : 0;
}

const Kernels *best_kernels(void) {
  const Kernels *sets[MOST_SETS];
  return sets[list_sets(sets) - 1];
}
