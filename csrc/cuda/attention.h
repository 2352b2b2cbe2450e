/* Block-sparse attention of one layer on a CUDA device. Formula and layouts: attention_tile.h.
 *
 * Pointers are of the device, of what torch calls bfloat16, contiguous and 16-byte aligned. `stream` is a cudaStream_t.
 * sizes (on the host): tokens, heads, key_heads, head_size (8 .. 128, a multiple of 8), block_tokens, key_blocks,
 * query_blocks (1: one list for all rows), most, list_players, list_heads, length_players, turned_rows.
 * Returns a cudaError_t; 0 is well. Nothing is allocated and nothing is waited for, so a graph can capture it. */
#ifndef DREAMLOOP_CUDA_ATTENTION_H
#define DREAMLOOP_CUDA_ATTENTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

int dreamloop_cuda_attention(const void *query, const void *key, const void *value, const void *turned,
                             const int32_t *block_index, const int32_t *block_count, const int32_t *block_length,
                             const int32_t sizes[12], int32_t players, void *out, void *stream);

#ifdef __cplusplus
}
#endif
#endif
