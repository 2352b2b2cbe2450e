/* Block-sparse attention in CUDA C++: the kernels, under plain names, and their launcher. Mathematics, layouts and
 * limits: attention_tile.h. No library is linked: whoever has pointers and a stream can call it, and the PTX of
 * this file (`nvcc -ptx`) holds kernels whose parameters are pointers and 32-bit numbers in the order inputs, sizes,
 * output, as a TensorRT plugin that brings its own PTX has them. */
#include "attention.h"
#include "attention_tile.h"

template <int WIDE>
static __device__ __forceinline__ void run(const attention_call &call) {
    __shared__ shared_tile<WIDE> tiles;
    const place at = place_of(call, blockIdx.x, blockIdx.y, blockIdx.z);
    const int warp = threadIdx.x / 32, steps = steps_of(call, at);
    warp_rows<WIDE> rows;
    begin(call, at, warp, rows);
    for (int step = 0; step < steps; step++) {
        find(call, at, step, threadIdx.x, tiles);
        __syncthreads();
        fetch(call, at, threadIdx.x, tiles);
        __syncthreads();
        attend(call, tiles, rows);
        __syncthreads();
    }
    finish(call, at, warp, rows);
}

#define KERNEL(WIDE)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2) dreamloop_attention_##WIDE(                             \
        const bf16 *query, const bf16 *key, const bf16 *value, const bf16 *turned, const int32_t *block_index,    \
        const int32_t *block_count, const int32_t *block_length, int32_t tokens, int32_t heads, int32_t key_heads, \
        int32_t head_size, int32_t block_tokens, int32_t key_blocks, int32_t query_blocks, int32_t most,          \
        int32_t list_players, int32_t list_heads, int32_t length_players, int32_t turned_rows, bf16 *out) {       \
        run<WIDE>({query, key, value, turned, block_index, block_count, block_length, tokens, heads, key_heads,   \
                   head_size, block_tokens, key_blocks, query_blocks, most, list_players, list_heads,             \
                   length_players, turned_rows, out});                                                            \
    }
KERNEL(32)
KERNEL(64)
KERNEL(128)

extern "C" int dreamloop_cuda_attention(const void *query, const void *key, const void *value, const void *turned,
                                        const int32_t *block_index, const int32_t *block_count,
                                        const int32_t *block_length, const int32_t sizes[12], int32_t players,
                                        void *out, void *stream) {
    const int32_t tokens = sizes[0], heads = sizes[1], head_size = sizes[3], query_blocks = sizes[6];
    if (head_size < 8 || head_size > 128 || head_size % 8 || sizes[2] < 1 || heads % sizes[2]) return cudaErrorInvalidValue;
    attention_call call = {};
    call.tokens = tokens, call.block_tokens = sizes[4], call.query_blocks = query_blocks;
    const dim3 grid(query_blocks * tiles_of(call), heads, players);
    const void *kernel = head_size <= 32   ? (const void *)dreamloop_attention_32
                         : head_size <= 64 ? (const void *)dreamloop_attention_64
                                           : (const void *)dreamloop_attention_128;
    int32_t size[12];
    for (int i = 0; i < 12; i++) size[i] = sizes[i];
    void *arguments[20] = {&query, &key, &value, &turned, &block_index, &block_count, &block_length};
    for (int i = 0; i < 12; i++) arguments[7 + i] = size + i;
    arguments[19] = &out;
    return cudaLaunchKernel(kernel, grid, dim3(THREADS), arguments, 0, (cudaStream_t)stream);
}
