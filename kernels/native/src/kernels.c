/* Every kernel for one set of instructions; SET is its name. Compiled once for each set that the processor may have. */
#include <string.h>

#include "kernels.h"

#include "vector.h"

#include "group_norm.h"

#include "attention.h"

#if defined(__AVX512BF16__)
#include "attention_bf16.h"
#endif

#include "linear.h"

#include "four_bits.h"

#include "integers.h"

#if defined(BYTE_PRODUCTS)
#include "integer_linear.h"

#include "integer_conv.h"
#endif

#include "winograd.h"

#include "few_tiles.h"

#include "pointwise.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)

extern const Kernels JOIN(kernels_, SET);
const Kernels JOIN(kernels_, SET) = {
    .name = TEXT(SET),
    .group_norm = group_norm,
    .attention = {attention_pack, attention, attention_packed_keys, attention_packed_values},
    .attention_pieces = attention_pieces,
    .attention_blocks = attention_blocks,
#if defined(__AVX512BF16__)
    .attention_half = {attention_half_pack, attention_half, attention_half_keys, attention_half_values},
#endif
    .low_rank = low_rank,
    .linear = linear,
    .linear_tasks = linear_tasks,
    .linear_panels = linear_panels,
#if defined(BYTE_PRODUCTS)
    .integer_pack = integer_pack,
    .integer_packs = integer_packs,
    .integer_low_rank = integer_low_rank,
    .integer_round = integer_round,
    .integer_linear = integer_linear,
    .integer_tasks = integer_tasks,
    .integer_channels = integer_channels,
    .integer_bytes = integer_bytes,
    .integer_around = integer_around,
    .integer_conv = integer_conv,
    .integer_conv_tasks = integer_conv_tasks,
#endif
    .four_bit_tasks = four_bit_tasks,
    .four_bit_lay = four_bit_lay,
    .four_bit_linear = four_bit_linear,
#if defined(__AVX2__) || defined(__aarch64__)
    .four_bit_round = four_bit_round,
    .four_bit_integers = four_bit_integers,
#endif
    .winograd_input = winograd_input,
    .winograd_multiply = winograd_multiply,
    .winograd_output = winograd_output,
    .winograd_panel = winograd_panel,
    .winograd_products = winograd_products,
    .few_tiles = few_tiles,
    .few_tasks = few_tasks,
    .few_scratch = few_scratch,
    .winograd_scratch = winograd_scratch,
    .pointwise_lay = pointwise_lay,
    .pointwise = pointwise,
    .pointwise_layers = pointwise_layers,
    .pointwise_tasks = pointwise_tasks,
    .pointwise_scratch = pointwise_scratch,
};
