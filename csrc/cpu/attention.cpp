/* Block-sparse attention over the ring, one source for every instruction tier.
 *
 *     out[b, h, t] = sum_j p_j value[b, h, j] / sum_j p_j
 *     p_j          = exp(scale * query[b, h, t] . key[b, h, j] - max over j)
 *     j            runs over the written tokens of the blocks that t's query block lists, in list order
 *
 *     query, out (B, H, T, D)     key, value (B, H, S * T_padded, D)     float32, D contiguous
 *
 * Order of work, for one head of one player:
 *     for each run of neighbouring query blocks that have the same list
 *         for each 64 keys of the list: gather them, transposed, into a tile (64 x D floats, in L1)
 *             for each 4 queries (AVX-512: 8): scores (4 x 64), online softmax, out = out * keep + p value
 * The values are read in place, through a pointer per token. Keys are gathered token by token, so short
 * blocks (20 tokens) fill a tile as well as long ones, and a tail that was never written is never
 * read. A query's arithmetic depends on its list and its own row alone, so a result has the same bits for any
 * batch size. The softmax is in float32 with the running maximum of Milakov and Gimelshein 2018
 * ("Online normalizer calculation for softmax"), as FlashAttention uses it. exp is a polynomial of
 * degree 7, relative error 2e-7; NaN in a score stays NaN in the output.
 *
 * Ladder: one player, T = 80, D = 32, H = 6, 24 slots, every block listed. Medians of 80 interleaved calls in one
 * run, processor time of one thread, on two shared cores of an AMD EPYC with AVX-512:
 *     portable, one query at a time      7.4 ms   0.7 x
 *     portable, four queries at a time   5.1 ms   1.0 x    a key is loaded once for four queries
 *     avx2                               2.25 ms  2.3 x
 *     avx512, eight queries at a time    2.2 ms   2.3 x    this processor runs 512 bits as two halves
 * With D = 64, T = 256: 19.1, 8.0 and 7.4 ms: avx2 2.4 x, avx512 2.6 x.
 */
#include "kernels.h"
#include "vectors.h"

enum {
    TAIL_WIDTH = WIDTH < 8 ? WIDTH : 8, /* what is left of D is a multiple of 8 floats */
    TILE_KEYS = DREAMLOOP_TILE_KEYS,
    TILE_QUERIES = WIDTH == 16 ? 8 : 4, /* two registers of sums each; AVX-512 has 32 registers, the others 16 */
    CHUNK_QUERIES = 256,
    AHEAD = 12 /* keys between the one that is turned over and the one that is asked for */
};

typedef float vec4 __attribute__((vector_size(16)));
typedef float tail_vec __attribute__((vector_size(4 * TAIL_WIDTH)));

/* c[r][0 .. N vectors) = c[r] * keep[r] + sum over k < count of a[r][k] * b_k; without `keep` from zero.
 * b_k is rows[k] + offset, or, without `rows`, base + k * TILE_KEYS. */
template <typename V, int R, int N>
INLINE void product(const float *const *a, const float *const *rows, const float *base, int64_t offset,
                    int64_t count, const float *keep, float *const *c) {
    enum { LANES = sizeof(V) / sizeof(float) };
    V sum[R][N];
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) sum[r][n] = keep ? load<V>(c[r] + offset + n * LANES) * keep[r] : V{};
    for (int64_t k = 0; k < count; k++) {
        const float *row = rows ? rows[k] + offset : base + k * TILE_KEYS + offset;
        V b[N];
        for (int n = 0; n < N; n++) b[n] = load<V>(row + n * LANES);
        for (int r = 0; r < R; r++)
            for (int n = 0; n < N; n++) sum[r][n] += a[r][k] * b[n];
    }
    for (int r = 0; r < R; r++)
        for (int n = 0; n < N; n++) store<V>(c[r] + offset + n * LANES, sum[r][n]);
}

/* Asks for a row before it is read: a ring of a few megabytes lies in the last cache. */
INLINE void fetch(const float *row, int64_t head_size) {
    for (int64_t d = 0; d < head_size; d += 16) __builtin_prefetch(row + d);
}

/* The keys that one tile holds: their rows in the ring, and their transpose. */
typedef struct {
    int64_t count;
    const float *key[TILE_KEYS], *value[TILE_KEYS];
    float *wide; /* narrow only: (2, TILE_KEYS, D), keys and values of the tile as floats */
    float *transposed; /* (D, TILE_KEYS); columns from `count` on hold anything finite or not */
} key_tile;

/* A row of the ring in int8, with its scale behind it, as floats in `wide`. */
INLINE const float *widened(const char *row, int64_t head_size, float *wide) {
    float scale;
    __builtin_memcpy(&scale, row + head_size, 4);
    for (int64_t d = 0; d < head_size; d++) wide[d] = (float)(int8_t)row[d] * scale;
    return wide;
}

/* tile->transposed[d][j] = key[j][d], four keys by four at a time. */
static void transpose(key_tile *tile, int64_t head_size) {
    for (int64_t j = 0; j < tile->count; j += 4) {
        const float *row[4];
        for (int i = 0; i < 4; i++) row[i] = tile->key[j + i < tile->count ? j + i : j];
        for (int64_t i = j + AHEAD; i < j + AHEAD + 4 && i < tile->count; i++) fetch(tile->key[i], head_size);
        for (int64_t d = 0; d < head_size; d += 4) {
            const vec4 a = load<vec4>(row[0] + d), b = load<vec4>(row[1] + d);
            const vec4 c = load<vec4>(row[2] + d), e = load<vec4>(row[3] + d);
            const vec4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
            const vec4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
            const vec4 ce_low = __builtin_shufflevector(c, e, 0, 4, 1, 5);
            const vec4 ce_high = __builtin_shufflevector(c, e, 2, 6, 3, 7);
            float *to = tile->transposed + d * TILE_KEYS + j;
            store<vec4>(to, __builtin_shufflevector(ab_low, ce_low, 0, 1, 4, 5));
            store<vec4>(to + TILE_KEYS, __builtin_shufflevector(ab_low, ce_low, 2, 3, 6, 7));
            store<vec4>(to + 2 * TILE_KEYS, __builtin_shufflevector(ab_high, ce_high, 0, 1, 4, 5));
            store<vec4>(to + 3 * TILE_KEYS, __builtin_shufflevector(ab_high, ce_high, 2, 3, 6, 7));
        }
    }
}

/* Scores of one query row become probabilities in place; *top and *total are its running maximum and
 * sum. Returns the factor that what was summed before must be multiplied by. */
INLINE float online_softmax(float *scores, int64_t count, float scale, float *top, float *total) {
    for (int64_t j = 0; j < count; j += WIDTH) store<vec>(scores + j, load<vec>(scores + j) * scale);
    vec highest = vec{} + *top;
    for (int64_t j = count; j % WIDTH; j++) scores[j] = -__builtin_inff();
    for (int64_t j = 0; j < count; j += WIDTH) {
        const vec s = load<vec>(scores + j);
        highest = s > highest ? s : highest;
    }
    vec4 four[WIDTH / 4];
    __builtin_memcpy(four, &highest, sizeof highest);
    for (int i = 1; i < WIDTH / 4; i++) four[0] = four[i] > four[0] ? four[i] : four[0];
    float above = *top;
    for (int i = 0; i < 4; i++) above = four[0][i] > above ? four[0][i] : above;
    vec sum = vec{};
    for (int64_t j = 0; j < count; j += WIDTH) {
        const vec p = exponential(load<vec>(scores + j) - above);
        store<vec>(scores + j, p); /* below 2e-38 past `count`: lost in a sum that is at least 1 */
        sum += p;
    }
    const float keep = exponential(vec{} + (*top - above))[0];
    *top = above;
    *total *= keep;
    __builtin_memcpy(four, &sum, sizeof sum);
    for (int i = 1; i < WIDTH / 4; i++) four[0] += four[i];
    *total += (four[0][0] + four[0][1]) + (four[0][2] + four[0][3]);
    return keep;
}

/* R query rows against one tile. */
template <int R>
INLINE void attend(const dreamloop_attention *call, const key_tile *tile, const float *const *query, float *const *out,
                   float *top, float *total) {
    const int64_t head_size = call->head_size;
    float scores[R][TILE_KEYS];
    float *score[R], keep[R];
    for (int r = 0; r < R; r++) score[r] = scores[r];
    for (int64_t j = 0; j < tile->count; j += 2 * WIDTH)
        product<vec, R, 2>(query, 0, tile->transposed, j, head_size, 0, score);
    for (int r = 0; r < R; r++) keep[r] = online_softmax(scores[r], tile->count, call->scale, top + r, total + r);
    int64_t d = 0;
    for (; d + 2 * WIDTH <= head_size; d += 2 * WIDTH)
        product<vec, R, 2>(score, tile->value, 0, d, tile->count, keep, out);
    for (; d < head_size; d += TAIL_WIDTH) product<tail_vec, R, 1>(score, tile->value, 0, d, tile->count, keep, out);
}

/* At most CHUNK_QUERIES query rows of one head against every tile of one list. */
static void run_chunk(const dreamloop_attention *call, const float *query, const float *key, const float *value,
                      float *out, int64_t tokens, const int32_t *list, int64_t listed, const int32_t *length,
                      key_tile *tile) {
    const int64_t query_stride = call->query_stride[2], out_stride = call->out_stride[2];
    float top[CHUNK_QUERIES], total[CHUNK_QUERIES];
    for (int64_t t = 0; t < tokens; t++) {
        top[t] = -__builtin_inff();
        total[t] = 0;
        for (int64_t d = 0; d < call->head_size; d++) out[t * out_stride + d] = 0;
    }
    int64_t entry = 0, token = 0;
    while (entry < listed) {
        for (tile->count = 0; entry < listed && tile->count < TILE_KEYS;) {
            if (token >= length[list[entry]]) {
                entry++;
                token = 0;
                continue;
            }
            const int64_t row = list[entry] * call->block_tokens + token++;
            const int turned = row < call->turned_rows;
            if (turned) tile->key[tile->count] = call->turned + row * call->head_size;
            if (call->narrow) {
                float *wide = tile->wide + 2 * tile->count * call->head_size;
                if (!turned)
                    tile->key[tile->count] = widened((const char *)key + row * call->key_stride[2], call->head_size, wide);
                tile->value[tile->count++] = widened((const char *)value + row * call->value_stride[2],
                                                     call->head_size, wide + call->head_size);
                continue;
            }
            if (!turned) tile->key[tile->count] = key + row * call->key_stride[2];
            tile->value[tile->count++] = value + row * call->value_stride[2];
            fetch(value + row * call->value_stride[2], call->head_size);
        }
        if (tile->count == 0) break;
        transpose(tile, call->head_size);
        for (int64_t t = 0; t < tokens;) {
            const int64_t left = tokens - t;
            const int rows = left >= TILE_QUERIES ? TILE_QUERIES : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const float *q[TILE_QUERIES];
            float *o[TILE_QUERIES];
            for (int r = 0; r < rows; r++) {
                q[r] = query + (t + r) * query_stride;
                o[r] = out + (t + r) * out_stride;
            }
            if (rows == TILE_QUERIES) attend<TILE_QUERIES>(call, tile, q, o, top + t, total + t);
            else if (rows == 4) attend<4>(call, tile, q, o, top + t, total + t);
            else if (rows == 2) attend<2>(call, tile, q, o, top + t, total + t);
            else attend<1>(call, tile, q, o, top + t, total + t);
            t += rows;
        }
    }
    for (int64_t t = 0; t < tokens; t++) {
        const float share = 1.0f / total[t];
        for (int64_t d = 0; d < call->head_size; d++) out[t * out_stride + d] *= share;
    }
}

static int same_list(const int32_t *a, int64_t a_count, const int32_t *b, int64_t b_count) {
    if (a_count != b_count) return 0;
    for (int64_t i = 0; i < a_count; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}

extern "C" void ENTRY(dreamloop_attention)(const dreamloop_attention *call, float *scratch) {
    key_tile tile;
    tile.transposed = scratch;
    tile.wide = scratch + TILE_KEYS * call->head_size;
    for (int64_t i = 0; i < call->head_size * TILE_KEYS; i++) scratch[i] = 0;
    for (int64_t b = 0; b < call->batch; b++) {
        const int32_t *length = call->block_length + (call->length_players > 1 ? b : 0) * call->key_blocks;
        for (int64_t h = 0; h < call->heads; h++) {
            const int64_t lists = ((call->list_players > 1 ? b : 0) * call->list_heads +
                                   (call->list_heads > 1 ? h : 0)) * call->query_blocks;
            const int32_t *index = call->block_index + lists * call->max_blocks, *count = call->block_count + lists;
            const float *query = call->query + b * call->query_stride[0] + h * call->query_stride[1];
            const float *key = call->key + b * call->key_stride[0] + h * call->key_stride[1];
            const float *value = call->value + b * call->value_stride[0] + h * call->value_stride[1];
            float *out = call->out + b * call->out_stride[0] + h * call->out_stride[1];
            for (int64_t row = 0, next; row < call->query_blocks; row = next) {
                const int32_t *list = index + row * call->max_blocks;
                for (next = row + 1; next < call->query_blocks; next++)
                    if (!same_list(list, count[row], index + next * call->max_blocks, count[next])) break;
                int64_t end = next * call->block_tokens;
                if (end > call->tokens) end = call->tokens;
                for (int64_t t = row * call->block_tokens; t < end; t += CHUNK_QUERIES) {
                    const int64_t tokens = end - t < CHUNK_QUERIES ? end - t : int64_t{CHUNK_QUERIES};
                    run_chunk(call, query + t * call->query_stride[2], key, value, out + t * call->out_stride[2],
                              tokens, list, count[row], length, &tile);
                }
            }
        }
    }
}
