/* The kernels behind every instruction tier: what the files of csrc/cpu offer to the rest of csrc/.
 *
 * Whoever calls must have checked the arguments: kernels read what they are told to and check nothing.
 * They take no memory, keep no state and start no thread, so any number of calls may run side by side.
 *
 * Letters: B players, H heads, T tokens of a frame, D head size.
 */
#ifndef DREAMLOOP_KERNELS_H
#define DREAMLOOP_KERNELS_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction tiers, slowest first. Each is the same source compiled with other flags. `avx512` needs the F, VL,
 * DQ and BW parts; `avx512vnni` VNNI and BF16 besides, and differs in the products and the attention of int8 and bf16. */
enum { DREAMLOOP_PORTABLE, DREAMLOOP_AVX2, DREAMLOOP_AVX512, DREAMLOOP_AVX512VNNI, DREAMLOOP_TIERS };

/* What activations and weights of a product are. */
enum { DREAMLOOP_F32, DREAMLOOP_BF16, DREAMLOOP_I8 };

/* Block-sparse attention of B players over one layer of the ring; formula in attention.cpp.
 *
 * query, out   (B, H, T, D) float32                       stride: in floats, of B, H and T; that of D is 1
 * key, value   (B, H, key_blocks * block_tokens, D) float32; strides in bytes
 * format       of the two products. In int8 the rows of key and value are D int8 and then their float32 scale
 * turned       NULL, or keys (turned_rows, D) contiguous that stand in for the first `turned_rows` keys: sinks,
 *              turned to their time at this pass, rows as those of key; only where B = H = 1
 * block_index  (B or 1, H or 1, query_blocks, max_blocks) int32, contiguous: blocks in 0 .. key_blocks - 1
 * block_count  (B or 1, H or 1, query_blocks) int32, contiguous: entries used, 1 .. max_blocks
 * block_length (B or 1, key_blocks) int32, contiguous: written tokens, 0 .. block_tokens
 *
 * Query block i is the tokens i * block_tokens .. min(T, (i + 1) * block_tokens) - 1, and its
 * list must name at least one written token. `out` overlaps no input. */
typedef struct {
    int64_t batch, heads, tokens, head_size; /* B, H, T, D; D a multiple of 8 */
    int64_t block_tokens, key_blocks, query_blocks, max_blocks;
    int64_t list_players, list_heads, length_players; /* the leading sizes of the lists: 1 or B, 1 or H, 1 or B */
    int format;
    const float *query;
    const void *key, *value, *turned;
    float *out;
    int64_t turned_rows;
    int64_t query_stride[3], key_stride[3], value_stride[3], out_stride[3];
    const int32_t *block_index, *block_count, *block_length;
    float scale;
} dreamloop_attention;

/* Keys that are gathered at a time (twice as many in int8), and queries that a gathered tile serves. An attention needs
 * DREAMLOOP_SCRATCH_ROWS * (D + 32) floats of scratch. */
enum { DREAMLOOP_TILE_KEYS = 64, DREAMLOOP_CHUNK_QUERIES = 512, DREAMLOOP_SCRATCH_ROWS = 352 };

/* What a product does to its sums before it writes them. */
enum { DREAMLOOP_PLAIN, DREAMLOOP_SILU, DREAMLOOP_GELU };
/* What the second output of a product is: bits. */
enum { DREAMLOOP_COPY_RELU = 1, DREAMLOOP_COPY_BF16 = 2, DREAMLOOP_COPY_BYTES = 4 };

/* A product of rows with packed weights, or a convolution as one; formula and layouts in product.cpp.
 * Row i stands at x = i % row_length, y = i / row_length; strides are in elements. */
typedef struct {
    int format; /* of `a` and `weights` */
    int64_t row_length, columns;
    const void *a;
    int64_t a_x, a_y;
    const int64_t *taps; /* (tap_count) offsets that are added to a row's place */
    int64_t tap_count, depth; /* depth: elements per tap, a multiple of 1 (f32), 2 (bf16) or 4 (int8) */
    const void *weights;
    /* int8: value of a = row_scale (a - row_zero), of a weight = column_scale w; column_sum: sum of w */
    const float *row_scale, *column_scale;
    const int32_t *row_zero, *column_sum;
    int64_t row_step; /* of row_scale and row_zero: 1, or 0 where all rows share them */
    /* per player, which is row / player_rows; *_step: elements from one player to the next, 0 where they share */
    const float *bias, *gate; /* (columns) each, or NULL */
    int64_t bias_step, gate_step, player_rows;
    int activation;
    const float *residual; /* where `out` is, or NULL; may be `out` itself */
    float *out;            /* or NULL */
    int64_t out_x, out_y;
    void *copy; /* a second output, or NULL */
    int copy_kind;
    float copy_inverse, copy_zero; /* bytes: value * copy_inverse + copy_zero in 0 .. 255 */
    int64_t copy_x, copy_y;
    /* instead of out and copy: 48 columns (4 rows, 4 pixels, RGB) as bytes, cropped to height and width */
    uint8_t *pixels;
    int64_t pixel_row_bytes, height, width;
} dreamloop_product;

/* Queries, keys and values of one head of one player: normalised, turned, and written where they belong. */
typedef struct {
    const float *qkv; /* (T, 3 * H * D), at this head's query */
    int64_t qkv_stride, part_stride; /* from token to token, and from query to key to value */
    int64_t tokens, head_size;
    const float *query_norm, *key_norm;                /* (D) */
    const float *cosine, *sine, *store_cosine, *store_sine; /* (T, D/2) */
    float *query, *key, *value;                        /* (T, D) each, contiguous */
} dreamloop_heads;

/* One tier. width: floats in a register; panel: columns of packed weights that lie together, 2 * width. */
typedef struct {
    int64_t width, panel;
    void (*attention)(const dreamloop_attention *call, float *scratch);       /* of float32 */
    void (*attention_short)(const dreamloop_attention *call, float *scratch); /* of bf16 and int8 */
    /* rows first .. last - 1 of the panels first_panel .. last_panel - 1 */
    void (*product)(const dreamloop_product *call, int64_t first, int64_t last, int64_t first_panel,
                    int64_t last_panel);
    void (*heads)(const dreamloop_heads *call);
    /* out = x / sqrt(mean x^2 + 1e-6) scale + shift over `width` values */
    void (*modulate)(const float *x, int64_t width, const float *scale, const float *shift, float *out);
    void (*to_bf16)(const float *x, int64_t count, uint16_t *out);
    /* out = x / scale + zero in 0 .. 255, with the scale and the zero that fit these values best; what is not
     * finite makes the scale NaN */
    void (*quantize)(const float *x, int64_t count, uint8_t *out, float *scale, int32_t *zero);
    /* the highest of 0 and x, NaN where x holds one */
    float (*highest)(const float *x, int64_t count);
    /* x * inverse + zero in 0 .. 255; with a zero of 0 it is relu as well */
    void (*to_bytes)(const float *x, int64_t count, float inverse, float zero, uint8_t *out);
    /* rows of `count` floats, a multiple of 8, to int8 and their scale behind them, and back; NaN where a value is not
     * finite */
    void (*to_narrow)(const float *x, int64_t rows, int64_t count, char *out);
    void (*from_narrow)(const char *x, int64_t count, float *out);
    /* the mean of rows of `count` floats */
    void (*mean)(const float *x, int64_t rows, int64_t count, float *out);
    /* out[i] = query . the mean key of block blocks[i]: row blocks[i] % slot_blocks of slot blocks[i] / slot_blocks */
    void (*scores)(const float *query, int64_t head_size, const char *means, int64_t row_bytes, int64_t slot_bytes,
                   int narrow, const int32_t *blocks, int64_t count, int64_t slot_blocks, float *out);
} dreamloop_kernels;

/* "portable", "avx2", "avx512", "avx512vnni". */
const char *dreamloop_tier_name(int tier);

/* 1 when the tier was compiled in and this processor and its operating system run it, else 0. */
int dreamloop_tier_usable(int tier);

/* The kernels of a tier, which must be usable. */
const dreamloop_kernels *dreamloop_tier_kernels(int tier);

#ifdef __cplusplus
}
#endif
#endif
