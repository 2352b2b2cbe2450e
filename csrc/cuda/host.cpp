/* The same arithmetic as attention.cu, warp by warp on the host: how it is tested where there is no GPU.
 *     g++ -std=c++20 -O1 -shared -fPIC host.cpp */
#include "attention.h"
#include "attention_tile.h"

template <int WIDE>
static void run(const attention_call &call, int tile, int head, int player) {
    static shared_tile<WIDE> tiles;
    static warp_rows<WIDE> rows[WARPS];
    const place at = place_of(call, tile, head, player);
    for (int warp = 0; warp < WARPS; warp++) begin(call, at, warp, rows[warp]);
    for (int step = 0; step < steps_of(call, at); step++) {
        for (int thread = 0; thread < THREADS; thread++) find(call, at, step, thread, tiles);
        for (int thread = 0; thread < THREADS; thread++) fetch(call, at, thread, tiles);
        for (int warp = 0; warp < WARPS; warp++) attend(call, tiles, rows[warp]);
    }
    for (int warp = 0; warp < WARPS; warp++) finish(call, at, warp, rows[warp]);
}

extern "C" int dreamloop_cuda_attention(const void *query, const void *key, const void *value, const void *turned,
                                        const int32_t *block_index, const int32_t *block_count,
                                        const int32_t *block_length, const int32_t sizes[12], int32_t players,
                                        void *out, void *) {
    const attention_call call = {
        (const bf16 *)query, (const bf16 *)key, (const bf16 *)value, (const bf16 *)turned, block_index, block_count,
        block_length, sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6], sizes[7], sizes[8],
        sizes[9], sizes[10], sizes[11], (bf16 *)out};
    for (int player = 0; player < players; player++)
        for (int head = 0; head < call.heads; head++)
            for (int tile = 0; tile < call.query_blocks * tiles_of(call); tile++) {
                if (call.head_size <= 32) run<32>(call, tile, head, player);
                else if (call.head_size <= 64) run<64>(call, tile, head, player);
                else run<128>(call, tile, head, player);
            }
    return 0;
}
