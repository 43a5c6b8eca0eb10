/* What is computed, apart from ONNX Runtime: each kernel is a task that is run once for every index below its count, by
   as many threads as there are, in any order. No task adds to what another one writes, so that the bytes are the same
   for any number of threads. */
#ifndef TINTYPE_KERNELS_H
#define TINTYPE_KERNELS_H

#include <stddef.h>
#include <stdint.h>

/* What becomes of a number of one channel. The mean is taken away first, where that costs no accuracy; what was lost
   when it was rounded to a float is in the shift. */
typedef struct {
  float mean, scale, shift;
} Channel;

/* Group normalization, and what becomes of it by SiLU. A task is one group of one image. */
typedef struct {
  const float *x;            /* (images, channels, pixels) */
  const float *scale, *bias; /* (channels) */
  float *y;                  /* as x */
  size_t channels, groups, pixels;
  float epsilon;
  int silu;
} GroupNorm;

/* Attention: softmax(scale * queries keys^T) values for each head. A task of `pack` is some keys of one head, of `attention`
   some queries of one head, once all is packed. */
enum { ATTENTION_MOST_SIZE = 512 };
typedef struct {
  const float *q, *k, *v;            /* (batch, queries or keys, heads * size) */
  float *o;                          /* as q */
  float *packed_keys, *packed_values; /* of each head, as long as `packed` functions say */
  size_t heads, size, queries, keys; /* size: numbers of a head, at most ATTENTION_MOST_SIZE */
  float scale;
} Attention;

/* What two matrices of low rank add to the sums of a layer: x down up. A task of `low_rank` makes LOW_RANK_ROWS rows of
   `inner`, before the layer's begin. */
enum { LOW_RANK_ROWS = 8 };
typedef struct {
  const float *down; /* (inputs, rank), or NULL */
  const float *up;   /* (rank, outputs); of a gated layer (rank, 2 * outputs) */
  float *inner;      /* (rows, rank): x down; NULL where pairs of bfloat16 stand for it */
  size_t rank;
} LowRank;

/* Rows times a fixed matrix. With LINEAR_GEGLU a panel has half as many outputs, which are multiplied in its first half and
   gated in its second. */
enum { LINEAR_COLUMNS = 32, LINEAR_MOST_INPUTS = 1280 }; /* of a panel; that sums are made of before they are written */
enum { LINEAR_PLAIN, LINEAR_GELU, LINEAR_SILU, LINEAR_GEGLU };
typedef struct {
  const float *x;       /* (rows, inputs) */
  const float *weights; /* (panels, inputs, columns), zeros beyond the last output */
  const uint16_t *halves; /* the same as float16, finite, in their place; or NULL */
  const float *bias;    /* (outputs); of a gated layer (2, outputs) */
  const float *added;   /* as y, or NULL */
  float *y;             /* (rows, outputs) */
  size_t rows, inputs, outputs;
  LowRank low;
  int activation; /* with LINEAR_GEGLU inputs are at most LINEAR_MOST_INPUTS */
} Linear;

/* The same with 8-bit weights. Each row is rounded first, to 256 steps from its least number to its largest, 0 among them:
   a task of `round` is a block of rows. `layer` has no weights; numbers of columns lie as those do, zeros beyond the last
   output. */
enum { INTEGER_ROWS = 8, INTEGER_MOST_INPUTS = 1 << 16 }; /* of a block; whose sums surely fit in 32 bits */
typedef struct {
  float step;
  int32_t zero; /* what stands for 0, as the products take bytes */
} Rounding;
typedef struct {
  Linear layer;
  const int8_t *weights; /* (panels, inputs / 4, columns, 4), zeros beyond the last input */
  const float *scales;   /* (panels, columns) */
  const int32_t *totals; /* (panels, columns): sums of the weights */
  uint32_t *fours;       /* (blocks of rows, inputs / 4, rows): four inputs each */
  Rounding *roundings;   /* (blocks of rows, rows) */
  /* Of what is added by low rank, in parts of 16 columns of `down`, which is rounded by the range of each, and zeros beyond
     the last: `integer_pack` makes all but `inner`, which is floats where there is no `up` of pairs. */
  int8_t *down;          /* (parts, inputs / 4, 16, 4) */
  float *down_scales;    /* (parts, 16) */
  int32_t *down_totals;  /* (parts, 16) */
  uint32_t *up;          /* (panels, pairs, columns): two of bfloat16 each; NULL in a set without them */
  uint32_t *inner;       /* (blocks of rows, pairs, rows) */
} IntegerLinear;

/* The same with 4-bit weights, of which each group of inputs shares a scale and a zero point for an output. A product with
   floats first lays its rows out by input, a set of rows a task of `lay`; one with integers rounds each group of a row
   to 255 steps by its largest number, a block of rows a task of `round`. `layer` has no weights. */
enum { FOUR_BIT_GROUP = 32, FOUR_BIT_ROWS = 8 }; /* inputs of a group; rows of a block */
enum { FOUR_BIT_SET = 24 };                      /* rows of a set: whole blocks, of 4, 6 or 8 that are multiplied at once too */
typedef struct {
  Linear layer;
  const uint8_t *weights; /* (panels, groups, 4, columns, 4): of each eight inputs one of the first four in a byte's lower
                             half, one of the others in its upper half */
  const uint16_t *scales; /* (panels, groups, columns): float16, finite, not below 0 */
  const uint8_t *zeros;   /* (panels, groups, columns / 2): zero points of the first 16 columns in lower halves, of the
                             others in upper ones */
  float *laid;            /* (rows in blocks of as many as are multiplied at once, inputs, rows of the block) */
  uint32_t *fours;        /* (blocks of rows, inputs / 4, rows): four inputs each */
  float *steps;           /* (blocks of rows, groups, rows) */
  int32_t *totals;        /* as steps: minus the sums of the rounded inputs */
} FourBits;

/* A convolution with 8-bit weights. A task of `bytes` is a row of an image with what is around it, rounded as QuantizeLinear
   does; one of `integer_conv` some outputs of some pixels, once all is rounded; one of `around` a row of `next`, apart from
   its pixels. */
typedef struct {
  const float *x;        /* (images, inputs, height, width), or NULL where the bytes are there already */
  GroupNorm norm;        /* of x before it is rounded: a task of `channels` is a group; no groups where there is none */
  Channel *channels;     /* (images, inputs), of the norm */
  const int8_t *weights; /* (panels, rows and columns of the filter, inputs / 4, LINEAR_COLUMNS, 4), zeros beyond the last input */
  const float *scales;   /* (panels, LINEAR_COLUMNS): of the input times those of the weights */
  const int32_t *totals; /* as scales: sums of the weights */
  const float *bias;     /* (outputs) */
  const float *shift;    /* (images, outputs), added to every pixel, or NULL */
  size_t shifts;         /* how far those of two images are apart; 0 where all have the same */
  const float *added;    /* as y, or NULL */
  int rectified;         /* whether sums below 0 become 0 */
  float *y;              /* (images, outputs, made_height, made_width), or NULL */
  uint8_t *bytes;        /* (images, height and twice the padding, width and twice the padding, inputs by fours) */
  uint8_t *next;         /* y as the bytes of another convolution that reads it, or NULL */
  float next_step;
  int32_t next_zero;
  size_t next_padding;
  size_t images, inputs, outputs, height, width, made_height, made_width;
  size_t filter_height, filter_width, stride, padding;
  int upsampled; /* twice as large before: filters are 2x2 on the picture as it is, four for each output, in that order of panels */
  float step; /* of the input */
  int32_t zero;
} IntegerConv;

/* A 3x3 convolution of stride 1 and padding 1, of a strip of tiles. A task of `input` is an input channel. Then, of
   weights that are transformed, one of `multiply` is some outputs at one point, and one of `output` an output channel; of
   those that are not, one of `few_tiles` is a block of outputs. Each begins when the one before is done. */
enum { WINOGRAD_OUTPUTS = 10, FEW_OUTPUTS = 32 }; /* outputs of a block of weights */
enum { FEW_TILES = 64 };                          /* that a strip may have whose weights aren't transformed */
typedef struct {
  const float *x;       /* (images, inputs, height, width) */
  const float *weights; /* transformed: (36, blocks of outputs, inputs, 10); else (blocks, inputs, 9, 32); zeros beyond
                           the last output */
  const uint16_t *halves; /* those that are not as float16, finite, in their place; or NULL */
  const float *bias;    /* (outputs) */
  const float *shift;   /* (images, outputs), added to every pixel, or NULL */
  size_t shifts;        /* how far those of two images are apart; 0 where all have the same */
  const float *added;   /* as y, or NULL */
  float *y;             /* (images, outputs, height, width) */
  float *scratch;
  size_t inputs, outputs, height, width;
  size_t panel;              /* tiles that lie together; winograd_panel, or as `room` for few_tiles */
  size_t first, tiles, room; /* of the strip; room: the least multiple of panel (of 16 for few_tiles) that holds its tiles */
} Winograd;

/* A 1x1 convolution of stride 1. A task of `lay` is some pixels of an image; one of `pointwise` some outputs of some pixels,
   once all is laid out. */
typedef struct {
  const float *x;       /* (images, inputs, pixels) */
  const float *weights; /* (blocks of outputs, inputs, WINOGRAD_OUTPUTS), zeros beyond the last output */
  const float *bias;    /* (outputs) */
  const float *shift;   /* (images, outputs), added to every pixel, or NULL */
  size_t shifts;        /* how far those of two images are apart; 0 where all have the same */
  const float *added;   /* as y, or NULL */
  float *y;             /* (images, outputs, pixels) */
  float *scratch;       /* pointwise_scratch numbers */
  size_t images, inputs, outputs, pixels;
} Pointwise;

/* One way to attend. Packed numbers are floats, or pairs of halves as large. */
typedef struct {
  void (*pack)(void *, size_t index);   /* of batch * heads * attention_pieces */
  void (*attend)(void *, size_t index); /* of batch * heads * attention_blocks */
  size_t (*packed_keys)(const Attention *), (*packed_values)(const Attention *); /* of one head */
} AttentionKernels;

/* The kernels as they were compiled for one set of instructions. */
typedef struct {
  const char *name;
  void (*group_norm)(void *, size_t index); /* of images * groups */
  size_t (*attention_pieces)(const Attention *), (*attention_blocks)(const Attention *);
  AttentionKernels attention, attention_half; /* the latter with products of bfloat16; all NULL in a set without such */
  void (*low_rank)(void *, size_t index); /* of a Linear's blocks of rows */
  void (*linear)(void *, size_t index);   /* of linear_tasks */
  size_t (*linear_tasks)(const Linear *), (*linear_panels)(const Linear *);
  void (*integer_pack)(void *, size_t index);   /* of integer_packs */
  size_t (*integer_packs)(const IntegerLinear *);
  size_t (*integer_low_rank)(IntegerLinear *, void *scratch); /* lays out; returns the bytes that it takes */
  void (*integer_round)(void *, size_t index);  /* of blocks of rows; NULL in a set without such products */
  void (*integer_linear)(void *, size_t index); /* of integer_tasks */
  size_t (*integer_tasks)(const IntegerLinear *);
  size_t (*four_bit_tasks)(const FourBits *);
  void (*four_bit_lay)(void *, size_t index);      /* of sets of rows */
  void (*four_bit_linear)(void *, size_t index);   /* of four_bit_tasks */
  void (*four_bit_round)(void *, size_t index);    /* of blocks of rows; NULL in a set without such products */
  void (*four_bit_integers)(void *, size_t index); /* of four_bit_tasks */
  void (*integer_channels)(void *, size_t index); /* of images * groups */
  void (*integer_bytes)(void *, size_t index);    /* of images * rows of `bytes` */
  void (*integer_around)(void *, size_t index);   /* of images * rows of `next` */
  void (*integer_conv)(void *, size_t index);  /* of integer_conv_tasks */
  size_t (*integer_conv_tasks)(const IntegerConv *);
  void (*winograd_input)(void *, size_t index);    /* of inputs */
  void (*winograd_multiply)(void *, size_t index); /* of winograd_products */
  void (*winograd_output)(void *, size_t index);   /* of outputs */
  size_t (*winograd_panel)(size_t tiles), (*winograd_products)(const Winograd *), (*winograd_scratch)(const Winograd *);
  void (*few_tiles)(void *, size_t index); /* of few_tasks */
  size_t (*few_tasks)(const Winograd *), (*few_scratch)(const Winograd *);
  void (*pointwise_lay)(void *, size_t index); /* of pointwise_layers */
  void (*pointwise)(void *, size_t index);     /* of pointwise_tasks */
  size_t (*pointwise_layers)(const Pointwise *), (*pointwise_tasks)(const Pointwise *), (*pointwise_scratch)(const Pointwise *);
} Kernels;

/* The best set of those that this processor has and its system lets programs use: never NULL. */
const Kernels *best_kernels(void);
/* The set of that rank, 0 for the plainest; NULL where this processor has no such set. */
const Kernels *kernels_of_rank(int rank);

#endif
