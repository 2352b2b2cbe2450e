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
 *     bf16, int8   as dots.h says; the instructions and their stand-ins agree
 */
#include "dots.h"

enum : int64_t {
    TILE_ROWS = WIDTH == 16 ? 10 : 6,
    PANEL = 2 * WIDTH,
    AHEAD = 2048 /* bytes between the weights that are multiplied and those that are asked for: of the next panel, too */
};

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

/* bf16 and int8: dots.h */
template <int FORMAT, int R, int N>
INLINE void sum_short(const call_t *call, const char *const *row, const char *weights, vec *out) {
    typename dots_of<FORMAT>::sums sum[R][N] = {};
    const int64_t item = FORMAT == DREAMLOOP_BF16 ? 2 : 1;
    for (int64_t p = 0; p < call->tap_count; p++) {
        const char *a[R];
        for (int r = 0; r < R; r++) a[r] = row[r] + item * call->taps[p];
        for (int64_t k = 0; k < item * call->depth; k += 4, weights += N * 4 * WIDTH) {
            for (int n = 0; n < N; n++) __builtin_prefetch(weights + AHEAD + 4 * n * WIDTH);
            add_dots<FORMAT, R, N>(a, k, weights, sum);
        }
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) out[r * 2 + n] = (vec)sum[r][n];
}

template <int R, int N>
INLINE void sum_tile(const call_t *call, const char *const *row, const char *weights, vec *out) {
    if (call->format == DREAMLOOP_F32) sum_f32<R, N>(call, row, weights, out);
    else if (call->format == DREAMLOOP_BF16) sum_short<DREAMLOOP_BF16, R, N>(call, row, weights, out);
    else sum_short<DREAMLOOP_I8, R, N>(call, row, weights, out);
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
