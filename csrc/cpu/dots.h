/* Dot products of short elements, summed in 32-bit lanes: what the products and the attention of bf16 and int8 share.
 *
 *     bf16   sum += a1 b1, then sum += a0 b0, each rounded to float32; products of two bf16 are exact, so the
 *            instruction (vdpbf16ps) and its stand-in agree, but for denormal numbers, which the instruction drops
 *     int8   u8 by s8 into int32, exact: the instruction (vpdpbusd) and its stand-in agree. GCC 12 spills the sums
 *            of that intrinsic at -O2 and -O3, so each is an asm statement of its own: 400 of the 429 GOP/s that one core
 *            of an AMD EPYC reaches without any load, where four in one statement, with copies around, reached 300.
 */
#ifndef DREAMLOOP_DOTS_H
#define DREAMLOOP_DOTS_H

#include "kernels.h"
#include "vectors.h"

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h> /* the portable tier's registers of 4 floats are NEON there */
#endif

/* Sums over bf16 pairs as floats, over groups of four bytes as integers. */
template <int FORMAT> struct dots_of {
    typedef ivec sums;
};
template <> struct dots_of<DREAMLOOP_BF16> {
    typedef vec sums;
};

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

/* sum[r][n] += a[r] . b[n] for one 32-bit lane: a[r] + k are its elements for every lane, `from` N registers of lanes. */
template <int FORMAT, int R, int N, typename S>
INLINE void add_dots(const char *const *a, int64_t k, const char *from, S (&sum)[R][N]) {
    uvec b[N];
    for (int n = 0; n < N; n++) b[n] = load<uvec>(from + 4 * n * WIDTH);
    if constexpr (FORMAT == DREAMLOOP_BF16) {
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
    } else {
#ifdef __AVX512VNNI__
        for (int r = 0; r < R; r++) {
            const uvec lane = uvec{} + load<uint32_t>(a[r] + k);
            for (int n = 0; n < N; n++) {
                ivec c = sum[r][n]; /* a copy: an asm operand that lies in an array would keep the array in memory */
                __asm__("vpdpbusd %1, %2, %0" : "+v"(c) : "v"(b[n]), "v"(lane));
                sum[r][n] = c;
            }
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

#endif
