/* Block-sparse attention over the ring in float32, one source for every instruction tier; attention_short.cpp is that of
 * bf16 and int8.
 *
 *     out[b, h, t] = sum_j p_j value[b, h, j] / sum_j p_j
 *     p_j          = exp(scale * query[b, h, t] . key[b, h, j] - max over j)
 *     j            runs over the written tokens of the blocks that t's query block lists, in list order
 *
 *     query, out (B, H, T, D)     key, value (B, H, S * T_padded, D)     float32, D contiguous
 *
 * Order of work, for one head of one player:
 *     for each run of neighbouring query blocks that have the same list
 *         for each 64 keys of the list: gather them, turned over, into a tile (64 x D floats, in L1)
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
#include "tiles.h"

enum {
    TAIL_WIDTH = WIDTH < 8 ? WIDTH : 8, /* what is left of D is a multiple of 8 floats */
    TILE_KEYS = DREAMLOOP_TILE_KEYS,
    TILE_QUERIES = WIDTH == 16 ? 8 : 4, /* two registers of sums each; AVX-512 has 32 registers, the others 16 */
    CHUNK_QUERIES = DREAMLOOP_CHUNK_QUERIES
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

/* The keys that one tile holds: their rows in the ring, and their transpose. */
typedef struct {
    int64_t count;
    const char *key[TILE_KEYS];
    const float *value[TILE_KEYS];
    float *transposed; /* (D, TILE_KEYS); columns from `count` on hold anything finite or not */
} key_tile;

/* The next keys of a list into the tile; 0 when none is left. */
static int64_t fill(const dreamloop_attention *call, const char *key, const char *value, walk_t *walk, key_tile *tile) {
    int64_t row[TILE_KEYS];
    tile->count = next_rows(walk, TILE_KEYS, row);
    for (int64_t j = 0; j < tile->count; j++) {
        tile->key[j] = row[j] < call->turned_rows ? (const char *)call->turned + 4 * row[j] * call->head_size
                                                  : key + row[j] * call->key_stride[2];
        tile->value[j] = (const float *)(value + row[j] * call->value_stride[2]);
        fetch((const char *)tile->value[j], 4 * call->head_size);
    }
    int64_t whole = tile->count;
    for (; whole % TURNED_ROWS; whole++) tile->key[whole] = tile->key[tile->count - 1];
    turn_rows(tile->key, whole, call->head_size, (char *)tile->transposed, 4 * TILE_KEYS);
    return tile->count;
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
static void run_chunk(const dreamloop_attention *call, const float *query, const char *key, const char *value,
                      float *out, int64_t tokens, walk_t *walk, key_tile *tile) {
    const int64_t query_stride = call->query_stride[2], out_stride = call->out_stride[2];
    float top[CHUNK_QUERIES], total[CHUNK_QUERIES];
    for (int64_t t = 0; t < tokens; t++) {
        top[t] = -__builtin_inff();
        total[t] = 0;
        for (int64_t d = 0; d < call->head_size; d++) out[t * out_stride + d] = 0;
    }
    while (fill(call, key, value, walk, tile)) {
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

extern "C" void ENTRY(dreamloop_attention)(const dreamloop_attention *call, float *scratch) {
    key_tile tile;
    tile.transposed = scratch;
    each_chunk(call, CHUNK_QUERIES, [&](const float *query, const char *key, const char *value, float *out,
                                        int64_t tokens, walk_t *walk) {
        run_chunk(call, query, key, value, out, tokens, walk, &tile);
    });
}
