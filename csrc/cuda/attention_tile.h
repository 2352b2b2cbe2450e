/* Block-sparse attention over the ring with tensor cores: the arithmetic of one warp, for nvcc and for g++.
 *
 *     out[b, t, h] = sum_j p_j value[b, g, j] / sum_j p_j
 *     p_j          = exp(query[b, t, h] . key[b, g, j] / sqrt D - max over j)        g = h / (H / G)
 *     j            runs over the written tokens of the blocks that t's query block lists
 *
 *     query, out   (B, T, H, D) bf16, contiguous          key, value  (B, G, key_blocks * block_tokens, D) bf16
 *     turned       (B, G, turned_rows, D) bf16: stands in for the first keys (sinks at their time), or turned_rows = 0
 *     block_index  (B or 1, H or 1, query_blocks, most)   block_count (B or 1, H or 1, query_blocks)   int32
 *     block_length (B or 1, key_blocks) int32: written tokens; query_blocks is 1 where all rows have one list
 *
 * A program of 4 warps holds 64 queries, 16 a warp, and goes over its list in tiles of 64 keys, gathered over as many
 * blocks as it takes: keys and values of a tile lie in shared memory, sums and the online softmax (Milakov and
 * Gimelshein 2018) in registers, products are mma.m16n8k16 with float32 sums.
 *
 * What a thread does with its values is written for LANES lanes: 1 on the device, where a thread is a lane, and 32 on
 * the host, where one call is a warp. The layout of fragments, the exchange between lanes and the rounding are then
 * the same source in both, and only three things are not: the product itself, the exchange and the exponential.
 */
#ifndef DREAMLOOP_ATTENTION_TILE_H
#define DREAMLOOP_ATTENTION_TILE_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define BOTH __host__ __device__ __forceinline__
#define UNROLL _Pragma("unroll")
#else
#define BOTH inline
#define UNROLL
#endif
#ifdef __CUDA_ARCH__
#define LANES 1
#define EACH_LANE for (int i = 0, lane = threadIdx.x % 32; i < LANES; i++)
#else
#define LANES 32
#define EACH_LANE for (int i = 0, lane = 0; i < LANES; i++, lane++)
#endif
#define EACH for (int i = 0; i < LANES; i++)

enum { WARPS = 4, WARP_QUERIES = 16, QUERIES = WARPS * WARP_QUERIES, KEYS = 64, THREADS = 32 * WARPS, PAD = 8 };

typedef uint16_t bf16;

struct attention_call {
    const bf16 *query, *key, *value, *turned;
    const int32_t *block_index, *block_count, *block_length;
    int32_t tokens, heads, key_heads, head_size, block_tokens, key_blocks, query_blocks, most;
    int32_t list_players, list_heads, length_players, turned_rows; /* leading sizes of the lists: 1 or B, 1 or H */
    bf16 *out;
};

/* What the threads of a program share. WIDE: head_size up to a power of two; what is beyond it is zero. */
template <int WIDE>
struct shared_tile {
    alignas(16) bf16 key[KEYS][WIDE + PAD], value[KEYS][WIDE + PAD]; /* PAD spreads rows over the banks */
    int32_t row[KEYS];                                   /* where a key lies, or -1 */
};

/* What a warp keeps over all tiles, 16 queries of it. Lane l holds rows l / 4 and l / 4 + 8. */
template <int WIDE>
struct warp_rows {
    uint32_t query[LANES][WIDE / 16][4];
    float sums[LANES][WIDE / 8][4], top[LANES][2], total[LANES][2];
};

/* Where a program stands. */
struct place {
    int first, end, head, player; /* queries first .. first + QUERIES - 1, those before `end` */
    const int32_t *list, *length;
    int listed;
    int64_t ring, turned; /* rows of key, value and turned before those of this player and head */
};

BOTH int tiles_of(const attention_call &call) {
    const int span = call.query_blocks > 1 ? call.block_tokens : call.tokens;
    return (span + QUERIES - 1) / QUERIES;
}

BOTH place place_of(const attention_call &call, int tile, int head, int player) {
    const int span = call.query_blocks > 1 ? call.block_tokens : call.tokens;
    const int tiles = tiles_of(call), row = tile / tiles, group = head / (call.heads / call.key_heads);
    const int64_t list = (int64_t)((call.list_players > 1 ? player : 0) * call.list_heads +
                                   (call.list_heads > 1 ? head : 0)) * call.query_blocks + row;
    const int64_t owner = (int64_t)player * call.key_heads + group;
    place at;
    at.first = row * span + tile % tiles * QUERIES;
    at.end = (row + 1) * span < call.tokens ? (row + 1) * span : call.tokens;
    at.head = head, at.player = player;
    at.list = call.block_index + list * call.most;
    at.listed = call.block_count[list];
    at.length = call.block_length + (int64_t)(call.length_players > 1 ? player : 0) * call.key_blocks;
    at.ring = owner * call.key_blocks * call.block_tokens;
    at.turned = owner * call.turned_rows;
    return at;
}

BOTH float to_float(bf16 x) {
    const uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* To nearest even; NaN stays NaN. */
BOTH bf16 to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bf16)(bits >> 16 | 0x40);
    return (bf16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/* Eight numbers, from and to places that are multiples of 16 bytes: one load and one store. */
BOTH void copy_eight(bf16 *to, const bf16 *from) {
#ifdef __CUDA_ARCH__
    *(uint4 *)to = *(const uint4 *)from;
#else
    memcpy(to, from, 16);
#endif
}

BOTH uint32_t pair(bf16 low, bf16 high) { return (uint32_t)low | (uint32_t)high << 16; }

BOTH float exponential(float x) {
#ifdef __CUDA_ARCH__
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#else
    return exp2f(x);
#endif
}

/* c (16, 8) += a (16, 16) b (16, 8). Of lane l, with r = l / 4 and n = 2 (l % 4), each register two neighbours:
 *     a   (r, n) (r + 8, n) (r, n + 8) (r + 8, n + 8)       b   (n, r) (n + 8, r) going down       c  (r, n) (r + 8, n) */
BOTH void multiply(float c[LANES][4], const uint32_t a[LANES][4], const uint32_t b[LANES][2]) {
#ifdef __CUDA_ARCH__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(c[0][0]), "+f"(c[0][1]), "+f"(c[0][2]), "+f"(c[0][3])
                 : "r"(a[0][0]), "r"(a[0][1]), "r"(a[0][2]), "r"(a[0][3]), "r"(b[0][0]), "r"(b[0][1]));
#else
    float left[16][16], right[16][8];
    for (int l = 0; l < 32; l++)
        for (int half = 0; half < 2; half++) {
            const int r = l / 4, n = l % 4 * 2 + half, shift = 16 * half;
            for (int part = 0; part < 4; part++)
                left[r + part % 2 * 8][n + part / 2 * 8] = to_float((bf16)(a[l][part] >> shift));
            for (int part = 0; part < 2; part++) right[n + part * 8][r] = to_float((bf16)(b[l][part] >> shift));
        }
    for (int l = 0; l < 32; l++)
        for (int part = 0; part < 4; part++)
            for (int k = 0; k < 16; k++)
                c[l][part] += left[l / 4 + part / 2 * 8][k] * right[k][l % 4 * 2 + part % 2];
#endif
}

/* x of every lane becomes the sum, or the largest, of the four lanes that hold one row. */
template <bool SUM>
BOTH void over_row(float x[LANES]) {
#ifdef __CUDA_ARCH__
    for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, x[0], step);
        x[0] = SUM ? x[0] + other : fmaxf(x[0], other);
    }
#else
    for (int step = 1; step < 4; step *= 2) {
        float other[LANES];
        for (int l = 0; l < 32; l++) other[l] = x[l ^ step];
        for (int l = 0; l < 32; l++) x[l] = SUM ? x[l] + other[l] : fmaxf(x[l], other[l]);
    }
#endif
}

/* Queries of a warp into registers. */
template <int WIDE>
BOTH void begin(const attention_call &call, const place &at, int warp, warp_rows<WIDE> &rows) {
    EACH_LANE {
        UNROLL for (int part = 0; part < WIDE / 16 * 4; part++) {
            const int token = at.first + warp * WARP_QUERIES + lane / 4 + part % 2 * 8;
            const int d = part / 4 * 16 + lane % 4 * 2 + part / 2 % 2 * 8; /* D is even: both or none */
            const bf16 *from = call.query + (((int64_t)at.player * call.tokens + token) * call.heads + at.head) *
                                                call.head_size + d;
            rows.query[i][part / 4][part % 4] = token < at.end && d < call.head_size ? pair(from[0], from[1]) : 0;
        }
        UNROLL for (int part = 0; part < WIDE / 8 * 4; part++) rows.sums[i][part / 4][part % 4] = 0;
        UNROLL for (int half = 0; half < 2; half++) rows.top[i][half] = -INFINITY, rows.total[i][half] = 0;
    }
}

/* First what lies in a tile, then (all threads done) its keys and values; thread: 0 .. THREADS - 1. */
template <int WIDE>
BOTH void find(const attention_call &call, const place &at, int tile, int thread, shared_tile<WIDE> &tiles) {
    for (int j = thread; j < KEYS; j += THREADS) {
        const int64_t entry = ((int64_t)tile * KEYS + j) / call.block_tokens;
        const int within = (int)((int64_t)tile * KEYS + j - entry * call.block_tokens);
        const int block = entry < at.listed ? at.list[entry] : 0;
        const bool seen = entry < at.listed && within < at.length[block];
        tiles.row[j] = seen ? block * call.block_tokens + within : -1;
    }
}

template <int WIDE>
BOTH void fetch(const attention_call &call, const place &at, int thread, shared_tile<WIDE> &tiles) {
    const int chunks = WIDE / 8; /* of 16 bytes; D is a multiple of 8 */
    for (int item = thread; item < KEYS * chunks; item += THREADS) {
        const int j = item / chunks, d = item % chunks * 8, row = tiles.row[j];
        if (row < 0 || d >= call.head_size) { /* read by nobody, but a product with zero must not meet a NaN */
            UNROLL for (int n = 0; n < 8; n++) tiles.key[j][d + n] = tiles.value[j][d + n] = 0;
            continue;
        }
        copy_eight(&tiles.key[j][d], row < call.turned_rows ? call.turned + (at.turned + row) * call.head_size + d
                                                            : call.key + (at.ring + row) * call.head_size + d);
        copy_eight(&tiles.value[j][d], call.value + (at.ring + row) * call.head_size + d);
    }
}

/* The queries of a warp against one tile. */
template <int WIDE>
BOTH void attend(const attention_call &call, const shared_tile<WIDE> &tiles, warp_rows<WIDE> &rows) {
    const float scale = 1.4426950408889634f / sqrtf((float)call.head_size);
    float score[KEYS / 8][LANES][4], above[2][LANES], sum[2][LANES];
    UNROLL for (int n = 0; n < KEYS / 8; n++) {
        EACH {
            UNROLL for (int part = 0; part < 4; part++) score[n][i][part] = 0;
        }
        UNROLL for (int k = 0; k < WIDE / 16; k++) {
            uint32_t a[LANES][4], b[LANES][2];
            EACH_LANE {
                const bf16 *from = &tiles.key[n * 8 + lane / 4][k * 16 + lane % 4 * 2];
                UNROLL for (int part = 0; part < 4; part++) a[i][part] = rows.query[i][k][part];
                b[i][0] = pair(from[0], from[1]), b[i][1] = pair(from[8], from[9]);
            }
            multiply(score[n], a, b);
        }
    }
    UNROLL for (int half = 0; half < 2; half++) {
        EACH_LANE {
            float highest = rows.top[i][half];
            UNROLL for (int n = 0; n < KEYS / 8; n++) {
                UNROLL for (int side = 0; side < 2; side++) {
                    float &s = score[n][i][half * 2 + side];
                    s = tiles.row[n * 8 + lane % 4 * 2 + side] >= 0 ? s * scale : -INFINITY;
                    highest = highest >= s ? highest : s; /* a score that is not a number is kept */
                }
            }
            above[half][i] = highest;
        }
        over_row<false>(above[half]);
        EACH {
            const float finite = above[half][i] == -INFINITY ? 0 : above[half][i];
            const float keep = exponential(rows.top[i][half] - finite);
            sum[half][i] = 0;
            UNROLL for (int n = 0; n < KEYS / 8; n++) {
                UNROLL for (int side = 0; side < 2; side++) {
                    float &s = score[n][i][half * 2 + side];
                    s = exponential(s - finite);
                    sum[half][i] += s;
                }
            }
            UNROLL for (int n = 0; n < WIDE / 8; n++) {
                rows.sums[i][n][half * 2] *= keep, rows.sums[i][n][half * 2 + 1] *= keep;
            }
            rows.total[i][half] *= keep;
            rows.top[i][half] = above[half][i];
        }
        over_row<true>(sum[half]);
        EACH rows.total[i][half] += sum[half][i];
    }
    UNROLL for (int k = 0; k < KEYS / 16; k++) {
        uint32_t a[LANES][4];
        EACH {
            UNROLL for (int part = 0; part < 4; part++) { /* sums of one product are the left side of the next */
                const float *p = score[2 * k + part / 2][i] + part % 2 * 2;
                a[i][part] = pair(to_bf16(p[0]), to_bf16(p[1]));
            }
        }
        UNROLL for (int n = 0; n < WIDE / 8; n++) {
            uint32_t b[LANES][2];
            float c[LANES][4];
            EACH_LANE {
                const int j = k * 16 + lane % 4 * 2, d = n * 8 + lane / 4;
                b[i][0] = pair(tiles.value[j][d], tiles.value[j + 1][d]);
                b[i][1] = pair(tiles.value[j + 8][d], tiles.value[j + 9][d]);
                UNROLL for (int part = 0; part < 4; part++) c[i][part] = rows.sums[i][n][part];
            }
            multiply(c, a, b);
            EACH {
                UNROLL for (int part = 0; part < 4; part++) rows.sums[i][n][part] = c[i][part];
            }
        }
    }
}

/* Tiles that a list takes. */
BOTH int steps_of(const attention_call &call, const place &at) {
    return (int)(((int64_t)at.listed * call.block_tokens + KEYS - 1) / KEYS);
}

template <int WIDE>
BOTH void finish(const attention_call &call, const place &at, int warp, const warp_rows<WIDE> &rows) {
    EACH_LANE {
        UNROLL for (int part = 0; part < WIDE / 8 * 4; part++) {
            const int half = part / 2 % 2, token = at.first + warp * WARP_QUERIES + lane / 4 + half * 8;
            const int d = part / 4 * 8 + lane % 4 * 2 + part % 2;
            const float total = rows.total[i][half];
            if (token < at.end && d < call.head_size)
                call.out[(((int64_t)at.player * call.tokens + token) * call.heads + at.head) * call.head_size + d] =
                    to_bf16(rows.sums[i][part / 4][part % 4] / (total == 0 ? 1 : total));
        }
    }
}

#endif
