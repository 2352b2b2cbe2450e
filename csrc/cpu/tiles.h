/* What every kind of attention does before it multiplies: walk the lists of a plan, gather the tokens that they name,
 * turn keys over, so that neighbouring lanes of a register are neighbouring keys, and weave values, so that a lane holds
 * neighbouring tokens.
 */
#ifndef DREAMLOOP_TILES_H
#define DREAMLOOP_TILES_H

#include "kernels.h"
#include "vectors.h"

typedef uint32_t lane4 __attribute__((vector_size(16)));

/* The tokens of one list, in its order. */
typedef struct {
    const int32_t *list, *length;
    int64_t listed, block_tokens, entry, token;
} walk_t;

/* The rows in the ring of the next tokens, `most` of them or what is left; returns how many. */
INLINE int64_t next_rows(walk_t *walk, int64_t most, int64_t *row) {
    int64_t count = 0;
    while (count < most && walk->entry < walk->listed) {
        const int32_t block = walk->list[walk->entry];
        if (walk->token >= walk->length[block]) walk->entry++, walk->token = 0;
        else row[count++] = block * walk->block_tokens + walk->token++;
    }
    return count;
}

INLINE int same_list(const int32_t *a, int64_t a_count, const int32_t *b, int64_t b_count) {
    if (a_count != b_count) return 0;
    for (int64_t i = 0; i < a_count; i++)
        if (a[i] != b[i]) return 0;
    return 1;
}

/* Asks for a row before it is read: a ring of a few megabytes lies in the last cache. What is left of the last line
 * comes with the next row. */
INLINE void fetch(const char *row, int64_t bytes) {
    __builtin_prefetch(row);
    for (int64_t i = 64; i + 64 <= bytes; i += 64) __builtin_prefetch(row + i);
}

#if DREAMLOOP_WIDTH == 16
enum { TURNED_ROWS = 16 };

/* Up to 16 lanes of 16 rows, from byte `at` of each: 64 shuffles. */
INLINE void turn_group(const char *const *row, int64_t at, int64_t lanes, char *to, int64_t step) {
    const __mmask16 part = lanes >= 16 ? 0xffff : (__mmask16)((1u << lanes) - 1);
    __m512i pair[16], four[16];
    for (int i = 0; i < 16; i += 2) {
        const __m512i a = _mm512_maskz_loadu_epi32(part, row[i] + at);
        const __m512i b = _mm512_maskz_loadu_epi32(part, row[i + 1] + at);
        pair[i] = _mm512_unpacklo_epi32(a, b), pair[i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    for (int i = 0; i < 16; i += 4) { /* four[i + c]: lanes c, 4 + c, 8 + c, 12 + c of rows i .. i + 3 */
        four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]), four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
        four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
        four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        const __m512i even_low = _mm512_shuffle_i32x4(four[c], four[4 + c], 0x88);
        const __m512i odd_low = _mm512_shuffle_i32x4(four[c], four[4 + c], 0xdd);
        const __m512i even_high = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0x88);
        const __m512i odd_high = _mm512_shuffle_i32x4(four[8 + c], four[12 + c], 0xdd);
        const __m512i turned[4] = {_mm512_shuffle_i32x4(even_low, even_high, 0x88),
                                   _mm512_shuffle_i32x4(odd_low, odd_high, 0x88),
                                   _mm512_shuffle_i32x4(even_low, even_high, 0xdd),
                                   _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd)};
        for (int i = 0; i < 4; i++)
            if (4 * i + c < lanes) _mm512_storeu_si512(to + (4 * i + c) * step, turned[i]);
    }
}
#else
enum { TURNED_ROWS = 4 };

/* Up to 16 lanes of 4 rows, from byte `at` of each, four lanes at a time. */
INLINE void turn_group(const char *const *row, int64_t at, int64_t lanes, char *to, int64_t step) {
    int64_t lane = 0;
    for (; lane + 4 <= lanes && lane < 16; lane += 4) {
        const lane4 a = load<lane4>(row[0] + at + 4 * lane), b = load<lane4>(row[1] + at + 4 * lane);
        const lane4 c = load<lane4>(row[2] + at + 4 * lane), d = load<lane4>(row[3] + at + 4 * lane);
        const lane4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        const lane4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
        store<lane4>(to + lane * step, __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5));
        store<lane4>(to + (lane + 1) * step, __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7));
        store<lane4>(to + (lane + 2) * step, __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5));
        store<lane4>(to + (lane + 3) * step, __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7));
    }
    for (; lane < lanes && lane < 16; lane++)
        for (int i = 0; i < 4; i++) store(to + lane * step + 4 * i, load<uint32_t>(row[i] + at + 4 * lane));
}
#endif

/* to[lane][j] = lane of row j, all of 32 bits, from lane to lane `step` bytes; count: a multiple of TURNED_ROWS. */
INLINE void turn_rows(const char *const *row, int64_t count, int64_t lanes, char *to, int64_t step) {
    for (int64_t j = 0; j < count; j += TURNED_ROWS) {
        const char *const *next = row + (j + TURNED_ROWS < count ? j + TURNED_ROWS : j);
        for (int64_t lane = 0; lane < lanes; lane += 16) {
            for (int i = 0; i < TURNED_ROWS; i++) __builtin_prefetch(next[i] + 4 * lane);
            turn_group(row + j, 4 * lane, lanes - lane, to + lane * step + 4 * j, step);
        }
    }
}

/* Four rows of bytes side by side: to[d] is the lane of their elements d. */
#if DREAMLOOP_WIDTH == 16
INLINE void weave_bytes(const char *const *row, int64_t head_size, char *to) {
    for (int64_t d = 0; d < head_size; d += 64, to += 256) {
        const int64_t left = head_size - d;
        const __mmask64 part = left >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << left) - 1;
        __m512i r[4], pair[4], four[4];
        for (int i = 0; i < 4; i++) r[i] = _mm512_maskz_loadu_epi8(part, row[i] + d);
        for (int i = 0; i < 2; i++)
            pair[2 * i] = _mm512_unpacklo_epi8(r[2 * i], r[2 * i + 1]),
            pair[2 * i + 1] = _mm512_unpackhi_epi8(r[2 * i], r[2 * i + 1]);
        for (int i = 0; i < 2; i++) /* four[i]: lanes 4 i .. 4 i + 3 of each quarter */
            four[2 * i] = _mm512_unpacklo_epi16(pair[i], pair[2 + i]),
            four[2 * i + 1] = _mm512_unpackhi_epi16(pair[i], pair[2 + i]);
        const __m512i low = _mm512_shuffle_i32x4(four[0], four[1], 0x44), high = _mm512_shuffle_i32x4(four[0], four[1], 0xee);
        const __m512i low2 = _mm512_shuffle_i32x4(four[2], four[3], 0x44), high2 = _mm512_shuffle_i32x4(four[2], four[3], 0xee);
        _mm512_storeu_si512(to, _mm512_shuffle_i32x4(low, low2, 0x88));
        if (left > 16) _mm512_storeu_si512(to + 64, _mm512_shuffle_i32x4(low, low2, 0xdd));
        if (left > 32) _mm512_storeu_si512(to + 128, _mm512_shuffle_i32x4(high, high2, 0x88));
        if (left > 48) _mm512_storeu_si512(to + 192, _mm512_shuffle_i32x4(high, high2, 0xdd));
    }
}
#else
INLINE void weave_bytes(const char *const *row, int64_t head_size, char *to) {
    typedef uint8_t bytes __attribute__((vector_size(16)));
    typedef uint16_t pairs __attribute__((vector_size(16)));
    for (int64_t d = 0; d < head_size; d += 16, to += 64) {
        const uint64_t size = head_size - d < 16 ? 8 : 16;
        bytes r[4] = {};
        for (int i = 0; i < 4; i++) {
            if (size == 16) r[i] = load<bytes>(row[i] + d);
            else __builtin_memcpy(&r[i], row[i] + d, 8);
        }
        for (int half = 0; half < 2; half++) {
            pairs ab, ce;
            if (half == 0) {
                ab = (pairs)__builtin_shufflevector(r[0], r[1], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
                ce = (pairs)__builtin_shufflevector(r[2], r[3], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            } else {
                ab = (pairs)__builtin_shufflevector(r[0], r[1], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
                ce = (pairs)__builtin_shufflevector(r[2], r[3], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
            }
            store(to + 32 * half, __builtin_shufflevector(ab, ce, 0, 8, 1, 9, 2, 10, 3, 11));
            store(to + 32 * half + 16, __builtin_shufflevector(ab, ce, 4, 12, 5, 13, 6, 14, 7, 15));
        }
    }
}

#endif

/* Two rows of floats as bf16 side by side. */
INLINE void weave_floats(const char *const *row, int64_t head_size, char *to) {
    for (int64_t d = 0; d < head_size; d += WIDTH) {
        const vec first = load_part(row[0] + 4 * d, head_size - d), second = load_part(row[1] + 4 * d, head_size - d);
#ifdef __AVX512BF16__
        static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                           8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
        const __m512i halves = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
        _mm512_storeu_si512(to + 4 * d, _mm512_permutexvar_epi16(_mm512_loadu_si512(order), halves));
#else
        store<uvec>(to + 4 * d, bf16_bits(first) >> 16 | (bf16_bits(second) & 0xffff0000u));
#endif
    }
}

/* chunk(query, key, value, out, tokens, walk) for at most `most` neighbouring queries at a time that share a list. */
template <typename Chunk> INLINE void each_chunk(const dreamloop_attention *call, int64_t most, const Chunk &chunk) {
    for (int64_t b = 0; b < call->batch; b++) {
        const int32_t *length = call->block_length + (call->length_players > 1 ? b : 0) * call->key_blocks;
        for (int64_t h = 0; h < call->heads; h++) {
            const int64_t lists = ((call->list_players > 1 ? b : 0) * call->list_heads +
                                   (call->list_heads > 1 ? h : 0)) * call->query_blocks;
            const int32_t *index = call->block_index + lists * call->max_blocks, *count = call->block_count + lists;
            const float *query = call->query + b * call->query_stride[0] + h * call->query_stride[1];
            const char *key = (const char *)call->key + b * call->key_stride[0] + h * call->key_stride[1];
            const char *value = (const char *)call->value + b * call->value_stride[0] + h * call->value_stride[1];
            float *out = call->out + b * call->out_stride[0] + h * call->out_stride[1];
            for (int64_t row = 0, next; row < call->query_blocks; row = next) {
                const int32_t *list = index + row * call->max_blocks;
                for (next = row + 1; next < call->query_blocks; next++)
                    if (!same_list(list, count[row], index + next * call->max_blocks, count[next])) break;
                int64_t end = next * call->block_tokens;
                if (end > call->tokens) end = call->tokens;
                for (int64_t t = row * call->block_tokens; t < end; t += most) {
                    walk_t walk = {list, length, count[row], call->block_tokens, 0, 0};
                    chunk(query + t * call->query_stride[2], key, value, out + t * call->out_stride[2],
                          end - t < most ? end - t : most, &walk);
                }
            }
        }
    }
}

#endif
