/* The one set of instructions that is checked where no processor says that it has it; in place of processor.c. */
#include "kernels.h"

extern const Kernels kernels_avxvnni;

const Kernels *kernels_of_rank(int rank) { return rank == 0 ? &kernels_avxvnni : 0; }
const Kernels *best_kernels(void) { return &kernels_avxvnni; }
