/* The C interface of dreamloop's kernels: raw pointers, sizes and strides, nothing of Python or C++.
 *
 * Whoever calls must have checked the arguments (csrc/bindings.cpp does): the kernels read what the
 * lists name and check nothing. They take no memory, keep no state and start no thread, so any
 * number of calls may run side by side.
 *
 * Letters: B players, H heads, T tokens of a frame, D head size.
 */
#ifndef DREAMLOOP_H
#define DREAMLOOP_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Instruction tiers, slowest first. Each is the same source compiled with other flags. */
enum { DREAMLOOP_PORTABLE = 0, DREAMLOOP_AVX2 = 1, DREAMLOOP_AVX512 = 2, DREAMLOOP_TIERS = 3 };

/* "portable", "avx2", "avx512". */
const char *dreamloop_tier_name(int tier);

/* 1 when the tier was compiled in and this processor and its operating system run it, else 0. */
int dreamloop_tier_usable(int tier);

/* Block-sparse attention of B players over one layer of the ring; formula in cpu/attention.cpp.
 *
 * query, out   (B, H, T, D) float32                       stride: in floats, of B, H and T; that of D is 1
 * key, value   (B, H, key_blocks * block_tokens, D) float32
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
    const float *query, *key, *value;
    float *out;
    int64_t query_stride[3], key_stride[3], value_stride[3], out_stride[3];
    const int32_t *block_index, *block_count, *block_length;
    float scale;
} dreamloop_attention;

/* Keys that are gathered at a time. */
enum { DREAMLOOP_TILE_KEYS = 64 };

/* Runs the given tier, which must be usable. scratch: DREAMLOOP_TILE_KEYS * D floats of the caller's. */
void dreamloop_block_attention(const dreamloop_attention *call, int tier, float *scratch);

#ifdef __cplusplus
}
#endif
#endif
