/* Rows times packed weights: every linear layer and, as an implicit product, every convolution.
 *
 *     sum[i, n] = sum over taps p, elements k of a[i, p, k] w[p, k, n]
 *     out[i, n] = activation(sum[i, n] + bias[n]) * gate[n] + residual[i, n]
 *     copy      = out again, after relu, in bf16, or as bytes of a scale that is known beforehand
 *
 *     a        row i stands at a + (i / row_length) a_y + (i % row_length) a_x; tap p adds taps[p]. A linear layer
 *              has one tap at 0. A 3x3 convolution over channels-last pixels, in a buffer with a border of
 *              zeros, has nine, with steps of one pixel (stride 1) or two (stride 2): nothing is unfolded.
 *     weights  panels of 2 registers of columns; in a panel (taps, depth / G, columns, G), where G elements that
 *              follow each other in depth make one 32-bit lane: 1 (f32), 2 (bf16), 4 (int8). The last panel is
 *              one register wide where that is enough.
 *
 * A tile is R rows by one panel: its sums stay in registers over the whole depth, each lane of weights is loaded once
 * for R rows, each element of `a` is broadcast for two registers of columns. Every sum runs over the depth in order,
 * whatever R is, so a row has the same bits in any batch, on any number of threads.
 *
 *     f32    sum += a w
 *     bf16   sum += a1 w1, then sum += a0 w0, each rounded to float32; products of two bf16 are exact, so the
 *            instruction (vdpbf16ps) and its stand-in agree, but for denormal numbers, which the instruction drops
 *     int8   u8 by s8 into int32, exact: the instruction (vpdpbusd) and its stand-in agree. GCC 12 spills the sums
 *            of that intrinsic at -O2, so four of them are one asm statement.
 */
#include "kernels.h"
#include "vectors.h"

#if defined(__AVX512BF16__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h> /* the portable tier's registers of 4 floats are NEON there */
#endif

enum : int64_t { TILE_ROWS = WIDTH == 16 ? 10 : 6, PANEL = 2 * WIDTH };

typedef dreamloop_product call_t;

/* -- sums of one tile, by format ------------------------------------------------------------------- */

template <int R, int N> INLINE void sum_f32(const call_t *call, const char *const *row, const char *weights, vec *out) {
    vec sum[R][N] = {};
    const float *w = (const float *)weights;
    for (int64_t p = 0; p < call->tap_count; p++) {
        const float *a[R];
        for (int r = 0; r < R; r++) a[r] = (const float *)row[r] + call->taps[p];
        for (int64_t k = 0; k < call->depth; k++, w += N * WIDTH) {
            vec b[N];
            for (int n = 0; n < N; n++) b[n] = load<vec>(w + n * WIDTH);
            for (int r = 0; r < R; r++)
                for (int n = 0; n < N; n++) sum[r][n] += a[r][k] * b[n];
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) out[r * 2 + n] = sum[r][n];
}

template <int R, int N>
INLINE void sum_bf16(const call_t *call, const char *const *row, const char *weights, vec *out) {
    vec sum[R][N] = {};
    const char *w = weights;
    for (int64_t p = 0; p < call->tap_count; p++) {
        const char *a[R];
        for (int r = 0; r < R; r++) a[r] = row[r] + 2 * call->taps[p];
        for (int64_t k = 0; k < 2 * call->depth; k += 4, w += N * 4 * WIDTH) {
            uvec b[N];
            for (int n = 0; n < N; n++) b[n] = load<uvec>(w + 4 * n * WIDTH);
            for (int r = 0; r < R; r++) {
                const uvec pair = uvec{} + load<uint32_t>(a[r] + k);
#ifdef __AVX512BF16__
                for (int n = 0; n < N; n++)
                    sum[r][n] = (vec)_mm512_dpbf16_ps((__m512)sum[r][n], (__m512bh)pair, (__m512bh)b[n]);
#else
                for (int n = 0; n < N; n++) sum[r][n] += (vec)(pair & 0xffff0000u) * (vec)(b[n] & 0xffff0000u);
                for (int n = 0; n < N; n++) sum[r][n] += (vec)(pair << 16) * (vec)(b[n] << 16);
#endif
            }
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) out[r * 2 + n] = sum[r][n];
}

#ifndef __AVX512VNNI__
/* sum of products of neighbouring int16 into int32 lanes */
INLINE ivec multiply_pairs(ivec a, ivec b) {
#if defined(__AVX512BW__)
    return (ivec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (ivec)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (ivec)_mm_madd_epi16((__m128i)a, (__m128i)b);
#elif defined(__aarch64__)
    const int16x8_t x = (int16x8_t)a, y = (int16x8_t)b;
    return (ivec)vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(y)), vmull_high_s16(x, y));
#else
    return ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}
#endif

template <int R, int N> INLINE void sum_i8(const call_t *call, const char *const *row, const char *weights, vec *out) {
    ivec sum[R][N] = {};
    const char *w = weights;
    for (int64_t p = 0; p < call->tap_count; p++) {
        const char *a[R];
        for (int r = 0; r < R; r++) a[r] = row[r] + call->taps[p];
        for (int64_t k = 0; k < call->depth; k += 4, w += N * 4 * WIDTH) {
            ivec b[N];
            for (int n = 0; n < N; n++) b[n] = load<ivec>(w + 4 * n * WIDTH);
#ifdef __AVX512VNNI__
            for (int r = 0; r < R; r += 2) {
                const int s = r + 1 < R ? r + 1 : r; /* an odd last row stands alone */
                const ivec a0 = ivec{} + load<int32_t>(a[r] + k), a1 = ivec{} + load<int32_t>(a[s] + k);
                /* through copies: an asm operand that lies in an array would keep the array in memory */
                ivec c0 = sum[r][0], c1 = sum[r][N - 1], c2 = sum[s][0], c3 = sum[s][N - 1];
                if (N == 2 && s > r)
                    __asm__("vpdpbusd %4, %6, %0\n\tvpdpbusd %5, %6, %1\n\tvpdpbusd %4, %7, %2\n\tvpdpbusd %5, %7, %3"
                            : "+&v"(c0), "+&v"(c1), "+&v"(c2), "+&v"(c3) : "v"(b[0]), "v"(b[N - 1]), "v"(a0), "v"(a1));
                else if (N == 2)
                    __asm__("vpdpbusd %2, %4, %0\n\tvpdpbusd %3, %4, %1"
                            : "+&v"(c0), "+&v"(c1) : "v"(b[0]), "v"(b[N - 1]), "v"(a0));
                else if (s > r)
                    __asm__("vpdpbusd %2, %3, %0\n\tvpdpbusd %2, %4, %1"
                            : "+&v"(c0), "+&v"(c2) : "v"(b[0]), "v"(a0), "v"(a1));
                else
                    __asm__("vpdpbusd %1, %2, %0" : "+v"(c0) : "v"(b[0]), "v"(a0));
                if (s > r) sum[s][N - 1] = c3, sum[s][0] = c2;
                if (N == 2) sum[r][N - 1] = c1;
                sum[r][0] = c0;
            }
#else
            /* bytes 0 and 2, then 1 and 3 of each lane, widened to int16 */
            typedef int16_t short_vec __attribute__((vector_size(4 * DREAMLOOP_WIDTH)));
            ivec even[N], odd[N];
            for (int n = 0; n < N; n++)
                even[n] = (ivec)((short_vec)b[n] << 8 >> 8), odd[n] = (ivec)((short_vec)b[n] >> 8);
            for (int r = 0; r < R; r++) {
                const uvec lane = uvec{} + load<uint32_t>(a[r] + k);
                const ivec a_even = (ivec)(lane & 0x00ff00ffu), a_odd = (ivec)((lane >> 8) & 0x00ff00ffu);
                for (int n = 0; n < N; n++)
                    sum[r][n] += multiply_pairs(a_even, even[n]) + multiply_pairs(a_odd, odd[n]);
            }
#endif
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) out[r * 2 + n] = (vec)sum[r][n];
}

template <int R, int N>
INLINE void sum_tile(const call_t *call, const char *const *row, const char *weights, vec *out) {
    if (call->format == DREAMLOOP_F32) sum_f32<R, N>(call, row, weights, out);
    else if (call->format == DREAMLOOP_BF16) sum_bf16<R, N>(call, row, weights, out);
    else sum_i8<R, N>(call, row, weights, out);
}

template <int R, int N> static void sums(int rows, const call_t *call, const char *const *row, const char *weights,
                                         vec *out) {
    if constexpr (R > 1) {
        if (rows < R) return sums<R - 1, N>(rows, call, row, weights, out);
    }
    sum_tile<R, N>(call, row, weights, out);
}

/* -- what becomes of the sums ----------------------------------------------------------------------- */

/* What a register of columns brings along; loaded once for all rows of a tile that belong to one player. */
typedef struct {
    ivec sum;
    vec scale, bias, gate;
} columns_t;

INLINE void of_player(const call_t *call, int64_t player, int64_t column, int64_t count, columns_t *to) {
    if (call->bias) to->bias = load_part(call->bias + player * call->bias_step + column, count);
    if (call->gate) to->gate = load_part(call->gate + player * call->gate_step + column, count);
}

INLINE vec finished(const call_t *call, vec sum, const columns_t *columns, int32_t zero, float scale) {
    if (call->format == DREAMLOOP_I8) {
        const ivec exact = (ivec)sum - columns->sum * zero;
        sum = __builtin_convertvector(exact, vec) * (columns->scale * scale);
    }
    if (call->bias) sum += columns->bias;
    if (call->activation == DREAMLOOP_SILU) sum = silu(sum);
    if (call->activation == DREAMLOOP_GELU) sum = gelu_tanh(sum);
    if (call->gate) sum *= columns->gate;
    return sum;
}

INLINE void write_copy(const call_t *call, vec value, int64_t place, int64_t count) {
    if (call->copy_kind & DREAMLOOP_COPY_RELU) value = value < 0.0f ? vec{} : value;
    if (call->copy_kind & DREAMLOOP_COPY_BYTES)
        store_bytes((uint8_t *)call->copy + place, value * call->copy_inverse + call->copy_zero, count);
    else if (call->copy_kind & DREAMLOOP_COPY_BF16) store_bf16((uint16_t *)call->copy + place, value, count);
    else store_part((float *)call->copy + place, value, count);
}

/* 48 columns (4 rows, 4 pixels, RGB) about [-1, 1] as bytes, rounded to even, cropped. */
INLINE void write_pixels(const call_t *call, const float *value, int64_t x, int64_t y) {
    uint8_t bytes[48];
    for (int i = 0; i < 48; i++) {
        float level = (value[i] + 1.0f) * 127.5f;
        level = level > 0.0f ? level : 0.0f; /* NaN becomes 0 */
        level = level < 255.0f ? level : 255.0f;
        bytes[i] = (uint8_t)((level + 8388608.0f) - 8388608.0f);
    }
    int64_t run = 3 * (call->width - 4 * x);
    if (run > 12) run = 12;
    for (int64_t dy = 0; dy < 4 && 4 * y + dy < call->height && run > 0; dy++) {
        uint8_t *to = call->pixels + (4 * y + dy) * call->pixel_row_bytes + 12 * x;
        for (int64_t i = 0; i < run; i++) to[i] = bytes[12 * dy + i];
    }
}

extern "C" void ENTRY(dreamloop_product)(const call_t *call, int64_t first, int64_t last, int64_t first_panel,
                                         int64_t last_panel) {
    const int64_t item = call->format == DREAMLOOP_F32 ? 4 : call->format == DREAMLOOP_BF16 ? 2 : 1;
    const int64_t tiles = (last - first + TILE_ROWS - 1) / TILE_ROWS;
    vec tile[TILE_ROWS * 2];
    float whole[TILE_ROWS][2 * PANEL > 64 ? 2 * PANEL : 64]; /* all 48 columns of `pixels` */
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t begin = first + (last - first) * t / tiles, end = first + (last - first) * (t + 1) / tiles;
        const int rows = (int)(end - begin);
        const char *row[TILE_ROWS];
        int64_t x[TILE_ROWS], y[TILE_ROWS], player[TILE_ROWS];
        int32_t zero[TILE_ROWS] = {};
        float scale[TILE_ROWS] = {};
        /* divided once a tile: a division costs as much as a dozen products */
        int64_t next_x = begin % call->row_length, next_y = begin / call->row_length;
        int64_t owner = begin / call->player_rows, until = (owner + 1) * call->player_rows;
        for (int r = 0; r < rows; r++) {
            if (begin + r == until) owner++, until += call->player_rows;
            x[r] = next_x, y[r] = next_y, player[r] = owner;
            row[r] = (const char *)call->a + item * (next_y * call->a_y + next_x * call->a_x);
            if (++next_x == call->row_length) next_x = 0, next_y++;
            if (call->format != DREAMLOOP_I8) continue;
            zero[r] = call->row_zero[(begin + r) * call->row_step], scale[r] = call->row_scale[(begin + r) * call->row_step];
        }
        for (int64_t panel = first_panel; panel < last_panel; panel++) {
            const int64_t column = panel * PANEL, left = call->columns - column;
            const int64_t columns = left < PANEL ? left : int64_t{PANEL};
            const char *weights = (const char *)call->weights + item * column * call->tap_count * call->depth;
            if (columns > WIDTH) sums<TILE_ROWS, 2>(rows, call, row, weights, tile);
            else sums<TILE_ROWS, 1>(rows, call, row, weights, tile);
            for (int64_t n = 0; n < columns; n += WIDTH) {
                const int64_t count = columns - n < WIDTH ? columns - n : int64_t{WIDTH}, at = column + n;
                columns_t own = {};
                if (call->format == DREAMLOOP_I8)
                    own.sum = (ivec)load_part(call->column_sum + at, count),
                    own.scale = load_part(call->column_scale + at, count);
                of_player(call, player[0], at, count, &own);
                for (int r = 0; r < rows; r++) {
                    if (r > 0 && player[r] != player[r - 1]) of_player(call, player[r], at, count, &own);
                    vec value = finished(call, tile[r * 2 + n / WIDTH], &own, zero[r], scale[r]);
                    if (call->pixels) {
                        store_part(whole[r] + at, value, count);
                        continue;
                    }
                    const int64_t place = y[r] * call->out_y + x[r] * call->out_x + at;
                    if (call->residual) value += load_part(call->residual + place, count);
                    if (call->out) store_part(call->out + place, value, count);
                    if (call->copy) write_copy(call, value, y[r] * call->copy_y + x[r] * call->copy_x + at, count);
                }
            }
        }
        if (call->pixels)
            for (int r = 0; r < rows; r++) write_pixels(call, whole[r], x[r], y[r]);
    }
}
