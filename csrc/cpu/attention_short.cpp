/* Block-sparse attention over the ring with both products in bf16 or int8; attention.cpp has the formula and the order
 * of work, and the softmax is in float32 here as well.
 *
 *     bf16   query, key, probability and value rounded to bf16, sums in float32; keys and values are float32 in the ring
 *     int8   query     round(q / a), a = largest |q| / 127 of its row, as u8 with 128 added, which is taken off again by
 *                      sums that start at -128 times the sum of the key
 *            key       int8 and the scale of its row, as they lie in the ring; a score is exact up to these roundings
 *            p         exp(score - highest of the tile) times the scale of the value, as u8: 255 is what a key with the
 *                      highest score and the largest value of the tile would get
 *            value     int8, as it lies in the ring: p value is exact, then scaled and added to the float32 output
 *     exp    2^x by a polynomial of degree 3, relative error 1.1e-4: a sixteenth of a bf16's, a fortieth of a u8's of p
 *
 * A tile is 64 keys (bf16) or 128 (int8), packed as product.cpp packs weights: lane by lane of 32 bits, keys side by
 * side for the scores; values side by side, lane by lane of tokens, for the sums. Packing moves bytes, and is shared by
 * up to 512 queries. NaN in a query, key or value stays NaN in what reads it.
 */
#include "dots.h"
#include "tiles.h"

enum {
    QUERIES = WIDTH == 16 ? 10 : 4, /* two registers of sums each */
    LANES = 32,                     /* of tokens in a tile */
    MOST_KEYS = 4 * LANES,
    PAIR = 2 * WIDTH,
    CHUNK = DREAMLOOP_CHUNK_QUERIES,
    ROOM = DREAMLOOP_CHUNK_QUERIES + DREAMLOOP_WIDTH
};

/* Elements in a lane, and keys in a tile. */
template <int FORMAT> constexpr int64_t elements = FORMAT == DREAMLOOP_I8 ? 4 : 2;
template <int FORMAT> constexpr int64_t tile_keys = LANES * elements<FORMAT>;

typedef struct {
    int64_t keys, head_size, padded; /* keys: a multiple of PAIR, as `padded`, which is D or above it */
    char *key, *value;               /* (D / elements, keys of a tile) and (LANES, padded) lanes */
    char *row;                       /* bf16: the keys as they are turned over */
    float scale[MOST_KEYS], bias[MOST_KEYS]; /* score = sum * scale + bias, as a power of two; bias: 0, or -inf beyond */
    float share[MOST_KEYS], largest;         /* int8: 255 value scale / largest of the tile, and that largest / 255 */
    int32_t start[MOST_KEYS];                /* int8: what the sums of a score begin with */
} tile_t;

/* What at most CHUNK queries of one head carry from tile to tile. */
typedef struct {
    char *query; /* (CHUNK, D) elements */
    float *out;
    int64_t out_stride;
    float scale[ROOM], top[ROOM], total[ROOM];
} chunk_t;

INLINE vec as_float(vec x) { return x; }
INLINE vec as_float(ivec x) { return __builtin_convertvector(x, vec); }

/* -- the tile --------------------------------------------------------------------------------------- */

/* The scales of `count` gathered rows of int8, and what the sums of their scores begin with. */
INLINE void take_scales(tile_t *tile, const char *const *key, const char *const *value, int64_t count, float scale) {
    for (int64_t j = 0; j < tile->keys; j++) {
        tile->scale[j] = j < count ? load<float>(key[j] + tile->head_size) : 0.0f;
        tile->share[j] = j < count ? load<float>(value[j] + tile->head_size) : 0.0f;
    }
    vec high = vec{}, nothing = vec{};
    for (int64_t j = 0; j < tile->keys; j += WIDTH) {
        const vec share = load<vec>(tile->share + j);
        high = share > high ? share : high;
        nothing += share * 0.0f; /* NaN where a value was not finite */
        store<vec>(tile->scale + j, load<vec>(tile->scale + j) * scale);
    }
    const float largest = highest_lane(high), inverse = largest > 0 ? 255.0f / largest : 0.0f;
    for (int64_t j = 0; j < tile->keys; j += WIDTH)
        store<vec>(tile->share + j, load<vec>(tile->share + j) * inverse);
    tile->largest = largest / 255.0f + sum_of_lanes(nothing);
    static const uint8_t offset[4] = {128, 128, 128, 128};
    const char *const one[1] = {(const char *)offset};
    for (int64_t j = 0; j < tile->keys; j += PAIR) {
        ivec sum[1][2] = {};
        for (int64_t lane = 0; lane < tile->head_size / 4; lane++)
            add_dots<DREAMLOOP_I8, 1, 2>(one, 0, tile->key + 4 * (lane * tile_keys<DREAMLOOP_I8> + j), sum);
        for (int n = 0; n < 2; n++) store<ivec>(tile->start + j + n * WIDTH, -sum[0][n]);
    }
}

/* The next keys of a list into the tile; 0 when none is left. */
template <int FORMAT>
static int64_t fill(const dreamloop_attention *call, const char *key, const char *value, walk_t *walk, tile_t *tile) {
    const int64_t d = call->head_size, turned_bytes = FORMAT == DREAMLOOP_I8 ? d + 4 : 4 * d;
    const char *key_row[MOST_KEYS], *value_row[MOST_KEYS];
    int64_t row[MOST_KEYS];
    const int64_t count = next_rows(walk, tile_keys<FORMAT>, row);
    if (count == 0) return 0;
    for (int64_t j = 0; j < count; j++) {
        key_row[j] = row[j] < call->turned_rows ? (const char *)call->turned + row[j] * turned_bytes
                                                : key + row[j] * call->key_stride[2];
        value_row[j] = value + row[j] * call->value_stride[2];
        fetch(value_row[j], turned_bytes);
    }
    tile->keys = (count + PAIR - 1) / PAIR * PAIR;
    for (int64_t j = count; j < tile->keys; j++) key_row[j] = key_row[count - 1], value_row[j] = value_row[count - 1];
    for (int64_t j = 0; j < tile->keys; j++) {
        tile->bias[j] = j < count ? 0.0f : -__builtin_inff();
        tile->scale[j] = j < count ? call->scale * 1.44269504f : 0.0f; /* log2(e) */
    }
    if (FORMAT == DREAMLOOP_BF16)
        for (int64_t j = 0; j < tile->keys; j++) {
            char *to = tile->row + 2 * j * d;
            for (int64_t i = 0; i < d; i += WIDTH) store_bf16((uint16_t *)to + i, load_part(key_row[j] + 4 * i, d - i), d - i);
            key_row[j] = to;
        }
    turn_rows(key_row, tile->keys, d / elements<FORMAT>, tile->key, 4 * tile_keys<FORMAT>);
    for (int64_t j = 0; j < tile->keys; j += elements<FORMAT>) {
        char *to = tile->value + j / elements<FORMAT> * 4 * tile->padded;
        if (FORMAT == DREAMLOOP_I8) weave_bytes(value_row + j, d, to);
        else weave_floats(value_row + j, d, to);
    }
    if (FORMAT == DREAMLOOP_I8) take_scales(tile, key_row, value_row, count, call->scale * 1.44269504f);
    return count;
}

/* -- the queries ------------------------------------------------------------------------------------ */

/* One query in the format of the products, and its scale. */
template <int FORMAT> INLINE float take_query(const float *query, int64_t head_size, char *to) {
    if (FORMAT == DREAMLOOP_BF16) {
        for (int64_t i = 0; i < head_size; i += WIDTH)
            store_bf16((uint16_t *)to + i, load_part(query + i, head_size - i), head_size - i);
        return 1.0f;
    }
    vec high = vec{}, nothing = vec{};
    for (int64_t i = 0; i < head_size; i += WIDTH) {
        const vec part = load_part(query + i, head_size - i), size = part < 0.0f ? -part : part;
        high = size > high ? size : high;
        nothing += part * 0.0f; /* NaN where a value is not finite */
    }
    const float largest = highest_lane(high), poison = sum_of_lanes(nothing);
    const float inverse = largest > 0 && poison == 0 ? 127.0f / largest : 0.0f;
    for (int64_t i = 0; i < head_size; i += WIDTH)
        store_bytes((uint8_t *)to + i, load_part(query + i, head_size - i) * inverse + 128.0f, head_size - i);
    return inverse > 0 ? largest / 127.0f : 1.0f + poison;
}

/* R queries from `t` on against one tile. */
template <int FORMAT, int R> INLINE void attend(const tile_t *tile, chunk_t *chunk, int64_t t) {
    typedef typename dots_of<FORMAT>::sums sums;
    const int64_t lanes = tile->head_size / elements<FORMAT>;
    float score[R][tile_keys<FORMAT>];
    char weight[R][4 * LANES];
    vec top[R];
    const char *from[R];
    for (int r = 0; r < R; r++) from[r] = chunk->query + (t + r) * 4 * lanes, top[r] = vec{} - __builtin_inff();
    for (int64_t j = 0; j < tile->keys; j += PAIR) {
        sums sum[R][2];
        for (int n = 0; n < 2; n++) {
            const sums start = FORMAT == DREAMLOOP_I8 ? (sums)load<ivec>(tile->start + j + n * WIDTH) : sums{};
            for (int r = 0; r < R; r++) sum[r][n] = start;
        }
        for (int64_t lane = 0; lane < lanes; lane++)
            add_dots<FORMAT, R, 2>(from, 4 * lane, tile->key + 4 * (lane * tile_keys<FORMAT> + j), sum);
        for (int n = 0; n < 2; n++) {
            const vec scale = load<vec>(tile->scale + j + n * WIDTH), bias = load<vec>(tile->bias + j + n * WIDTH);
            for (int r = 0; r < R; r++) {
                const vec s = as_float(sum[r][n]) * scale + bias;
                store<vec>(score[r] + j + n * WIDTH, s);
                top[r] = s > top[r] ? s : top[r];
            }
        }
    }
    float high[16] = {}, part[16] = {}, keep[16] = {}, above[16] = {}, total[16] = {};
    for (int r = 0; r < R; r++) {
        const float own = chunk->scale[t + r];
        high[r] = highest_lane(top[r]) * own;
        vec sum = vec{};
        int64_t j = 0;
#if DREAMLOOP_WIDTH == 16
        for (; FORMAT == DREAMLOOP_I8 && j + 64 <= tile->keys; j += 64) { /* four registers of levels in one of bytes */
            __m512i level[4];
            for (int i = 0; i < 4; i++) {
                const vec p = power_of_two(load<vec>(score[r] + j + 16 * i) * own - high[r]);
                sum += p;
                level[i] = _mm512_cvttps_epi32((__m512)(p * load<vec>(tile->share + j + 16 * i) + 0.5f));
            }
            const __m512i bytes = _mm512_packus_epi16(_mm512_packus_epi32(level[0], level[1]),
                                                      _mm512_packus_epi32(level[2], level[3]));
            const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_storeu_si512(weight[r] + j, _mm512_permutexvar_epi32(order, bytes));
        }
#endif
        for (; j < tile->keys; j += WIDTH) {
            const vec p = power_of_two(load<vec>(score[r] + j) * own - high[r]);
            sum += p;
            if (FORMAT == DREAMLOOP_BF16) store_bf16((uint16_t *)weight[r] + j, p, WIDTH);
            else store_bytes((uint8_t *)weight[r] + j, p * load<vec>(tile->share + j), WIDTH);
        }
        total[r] = sum_of_lanes(sum);
    }
    for (int r = 0; r < R; r += WIDTH) { /* a lane is a query: what it had so far, and this tile, at the higher top */
        const vec before = load<vec>(chunk->top + t + r), now = load<vec>(high + r);
        const vec higher = now > before ? now : before;
        store<vec>(above + r, higher);
        store<vec>(keep + r, power_of_two(before - higher));
        store<vec>(part + r, power_of_two(now - higher));
    }
    for (int r = 0; r < R; r++) {
        chunk->top[t + r] = above[r];
        chunk->total[t + r] = chunk->total[t + r] * keep[r] + total[r] * part[r];
        if (FORMAT == DREAMLOOP_I8) part[r] *= tile->largest;
        from[r] = weight[r];
    }
    for (int64_t d = 0; d < tile->head_size; d += PAIR) {
        sums sum[R][2];
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = sums{};
        for (int64_t lane = 0; lane < tile->keys / elements<FORMAT>; lane++)
            add_dots<FORMAT, R, 2>(from, 4 * lane, tile->value + 4 * (lane * tile->padded + d), sum);
        float *out = chunk->out + t * chunk->out_stride + d;
        const int64_t count = tile->head_size - d;
#pragma GCC unroll 16
        for (int r = 0; r < R; r++, out += chunk->out_stride) {
            const vec low = as_float(sum[r][0]) * part[r], high = as_float(sum[r][1]) * part[r];
            if (count >= PAIR) {
                store<vec>(out, load<vec>(out) * keep[r] + low);
                store<vec>(out + WIDTH, load<vec>(out + WIDTH) * keep[r] + high);
                continue;
            }
            store_part(out, load_part(out, count) * keep[r] + low, count);
            if (count > WIDTH)
                store_part(out + WIDTH, load_part(out + WIDTH, count - WIDTH) * keep[r] + high, count - WIDTH);
        }
    }
}

template <int FORMAT> static void attend_some(int64_t left, const tile_t *tile, chunk_t *chunk, int64_t t) {
    if (left >= QUERIES) attend<FORMAT, QUERIES>(tile, chunk, t);
    else if (left >= 4) attend<FORMAT, 4>(tile, chunk, t);
    else if (left >= 2) attend<FORMAT, 2>(tile, chunk, t);
    else attend<FORMAT, 1>(tile, chunk, t);
}

template <int FORMAT>
static void run_chunk(const dreamloop_attention *call, const float *query, const char *key, const char *value,
                      int64_t tokens, walk_t *walk, tile_t *tile, chunk_t *chunk) {
    const int64_t d = call->head_size;
    for (int64_t t = 0; t < tokens; t++) {
        chunk->scale[t] = take_query<FORMAT>(query + t * call->query_stride[2], d,
                                             chunk->query + t * d * (4 / elements<FORMAT>));
        chunk->top[t] = -__builtin_inff(), chunk->total[t] = 0;
        for (int64_t i = 0; i < d; i++) chunk->out[t * chunk->out_stride + i] = 0;
    }
    while (fill<FORMAT>(call, key, value, walk, tile)) {
        for (int64_t t = 0; t < tokens;) {
            const int64_t left = tokens - t;
            attend_some<FORMAT>(left, tile, chunk, t);
            t += left >= QUERIES ? QUERIES : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        const float share = 1.0f / chunk->total[t];
        for (int64_t i = 0; i < d; i++) chunk->out[t * chunk->out_stride + i] *= share;
    }
}

extern "C" void ENTRY(dreamloop_attention_short)(const dreamloop_attention *call, float *scratch) {
    const int64_t d = call->head_size;
    tile_t tile;
    chunk_t chunk;
    tile.head_size = d, tile.padded = (d + PAIR - 1) / PAIR * PAIR;
    tile.key = (char *)scratch;
    tile.value = tile.key + d * 4 * LANES;
    tile.row = tile.value + tile.padded * 4 * LANES;
    chunk.query = tile.row + d * 4 * LANES;
    chunk.out_stride = call->out_stride[2];
    each_chunk(call, CHUNK, [&](const float *query, const char *key, const char *value, float *out, int64_t tokens,
                                walk_t *walk) {
        chunk.out = out;
        if (call->format == DREAMLOOP_I8)
            run_chunk<DREAMLOOP_I8>(call, query, key, value, tokens, walk, &tile, &chunk);
        else run_chunk<DREAMLOOP_BF16>(call, query, key, value, tokens, walk, &tile, &chunk);
    });
}
