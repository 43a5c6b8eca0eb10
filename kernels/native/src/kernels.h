/* What is computed, apart from ONNX Runtime: each kernel is a task that is run once for every index below its count, by
   as many threads as there are, in any order. No task adds to what another one writes, so that the bytes are the same
   for any number of threads. */
#ifndef TINTYPE_KERNELS_H
#define TINTYPE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* Group normalization, and what becomes of it by SiLU. A task is one group of one image. */
typedef struct {
  const float *x;            /* (images, channels, pixels) */
  const float *scale, *bias; /* (channels) */
  float *y;                  /* as x */
  size_t channels, groups, pixels;
  float epsilon;
  int silu;
} GroupNorm;

/* The kernels as they were compiled for one set of instructions. */
typedef struct {
  const char *name;
  void (*group_norm)(void *, size_t index); /* of images * groups */
} Kernels;

/* The best set of those that this processor has and its system lets programs use: never NULL. */
const Kernels *best_kernels(void);
/* The set of that rank, 0 for the plainest; NULL where this processor has no such set. */
const Kernels *kernels_of_rank(int rank);

#endif
