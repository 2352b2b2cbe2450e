/* What the kernels of one instruction tier share: the vector of the tier and a few functions on it.
 *
 * Each tier is a translation unit with its own flags, and the linker may keep any one copy of an inline
 * function: so everything here is static and inlined, and no header of the C++ library is included.
 * The vectors are the vector extension of GCC and Clang. DREAMLOOP_WIDTH is the number of floats in a register.
 */
#ifndef DREAMLOOP_VECTORS_H
#define DREAMLOOP_VECTORS_H

#include <stdint.h>

#if !defined(DREAMLOOP_WIDTH) || !defined(DREAMLOOP_TIER)
#error "CMakeLists.txt gives each tier DREAMLOOP_WIDTH (floats in a register) and DREAMLOOP_TIER (its name)"
#endif

#if DREAMLOOP_WIDTH == 16
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define DREAMLOOP_JOIN2(a, b) a##_##b
#define DREAMLOOP_JOIN(a, b) DREAMLOOP_JOIN2(a, b)
#define ENTRY(name) DREAMLOOP_JOIN(name, DREAMLOOP_TIER) /* the name of an entry point in this tier */

enum { WIDTH = DREAMLOOP_WIDTH };

typedef float vec __attribute__((vector_size(4 * DREAMLOOP_WIDTH)));
typedef uint32_t uvec __attribute__((vector_size(4 * DREAMLOOP_WIDTH)));
typedef int32_t ivec __attribute__((vector_size(4 * DREAMLOOP_WIDTH)));

/* Rows need no alignment beyond that of their elements. */
template <typename V> INLINE V load(const void *from) {
    V value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <typename V> INLINE void store(void *to, V value) { __builtin_memcpy(to, &value, sizeof value); }

/* The first `count` lanes of a vector, zero beyond; count >= 1, and from WIDTH up all of it. */
INLINE vec load_part(const void *from, int64_t count) {
    if (count >= WIDTH) return load<vec>(from);
    vec value = vec{};
    __builtin_memcpy(&value, from, (uint64_t)count * 4);
    return value;
}

INLINE void store_part(float *to, vec value, int64_t count) {
    if (count >= WIDTH) return store<vec>(to, value);
    __builtin_memcpy(to, &value, (uint64_t)count * 4);
}

/* The highest lane; the sum of all, first lanes 4 apart, then those that are left. */
INLINE float highest_lane(vec x) {
    typedef float vec4 __attribute__((vector_size(16)));
    vec4 four[WIDTH / 4];
    __builtin_memcpy(four, &x, sizeof x);
    for (int i = 1; i < WIDTH / 4; i++) four[0] = four[i] > four[0] ? four[i] : four[0];
    const float a = four[0][0] > four[0][1] ? four[0][0] : four[0][1], b = four[0][2] > four[0][3] ? four[0][2] : four[0][3];
    return a > b ? a : b;
}

INLINE float sum_of_lanes(vec x) {
    typedef float vec4 __attribute__((vector_size(16)));
    vec4 four[WIDTH / 4];
    __builtin_memcpy(four, &x, sizeof x);
    for (int i = 1; i < WIDTH / 4; i++) four[0] += four[i];
    return (four[0][0] + four[0][1]) + (four[0][2] + four[0][3]);
}

/* exp(x) for x <= 0, from -87 down taken as exp(-87); NaN gives NaN. Cephes' polynomial (Moshier),
 * relative error 2e-7; good up to x = 88 as well. */
INLINE vec exponential(vec x) {
    const float round_to_integer = 12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
    x = x < -87.0f ? vec{} - 87.0f : x;
    const vec shifted = x * 1.44269504f + round_to_integer;
    const vec n = shifted - round_to_integer;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec y = r * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * r + 8.3334519073e-3f;
    y = y * r + 4.1665795894e-2f;
    y = y * r + 1.6666665459e-1f;
    y = y * r + 5.0000001201e-1f;
    y = y * (r * r) + (r + 1.0f);
    const uvec power = ((uvec)shifted << 23) + 0x3f800000u;
    return y * (vec)power; /* a product, not a sum of exponents: it keeps NaN */
}

/* 2^x for x <= 0, or a little above, relative error 1.1e-4; 0 or 2^-126 far below; NaN gives NaN. */
INLINE vec power_of_two(vec x) {
#if DREAMLOOP_WIDTH == 16
    const vec r = (vec)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
#else
    const float round_to_integer = 12582912.0f; /* 1.5 * 2^23: adding it leaves an integer in the low bits */
    x = x < -126.0f ? vec{} - 126.0f : x;
    const vec shifted = (x - 0.5f) + round_to_integer;
    const vec r = x - (shifted - round_to_integer);
#endif
    const vec y = ((r * 0.07826796f + 0.2263077f) * r + 0.69542434f) * r + 1.0f;
#if DREAMLOOP_WIDTH == 16
    return (vec)_mm512_scalef_ps((__m512)y, (__m512)x); /* by 2^floor(x) */
#else
    return y * (vec)(((uvec)shifted << 23) + 0x3f800000u);
#endif
}

/* x / (1 + exp(-x)) */
INLINE vec silu(vec x) {
    const vec power = -x;
    return x / (exponential(power > 88.0f ? vec{} + 88.0f : power) + 1.0f);
}

/* x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, written with one exponential. AVX-512 takes it as a power of two of
 * any size, with a polynomial of degree 5 (relative error 2e-7): half the instructions. */
INLINE vec gelu_tanh(vec x) {
#if DREAMLOOP_WIDTH == 16
    const vec power = x * (x * x * 0.044715f + 1.0f) * -2.3022082f;
    const vec r = (vec)_mm512_reduce_ps((__m512)power, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    vec y = ((r * 1.8671305e-3f + 9.01703e-3f) * r + 5.5799913e-2f) * r + 0.24016444f;
    y = (y * r + 0.6931513f) * r + 1.0f;
    return x / ((vec)_mm512_scalef_ps((__m512)y, (__m512)power) + 1.0f);
#else
    const vec power = x * (x * x * 0.044715f + 1.0f) * -1.5957691216f;
    return x / (exponential(power > 88.0f ? vec{} + 88.0f : power) + 1.0f);
#endif
}

/* bfloat16 is the upper half of a float: nearest, ties to even; NaN stays NaN. What the lower half holds is left over. */
INLINE uvec bf16_bits(vec value) {
    const uvec bits = (uvec)value;
    return value == value ? bits + 0x7fffu + ((bits >> 16) & 1u) : bits | 0x400000u;
}

/* `count` of them, WIDTH at most. The instruction drops denormal numbers, as those that multiply bf16 do. */
INLINE void store_bf16(uint16_t *to, vec value, int64_t count) {
    typedef uint16_t half_vec __attribute__((vector_size(2 * DREAMLOOP_WIDTH)));
#ifdef __AVX512BF16__
    const half_vec halves = (half_vec)_mm512_cvtneps_pbh((__m512)value);
#else
    const half_vec halves = __builtin_convertvector(bf16_bits(value) >> 16, half_vec);
#endif
    if (count >= WIDTH) return store<half_vec>(to, halves);
    __builtin_memcpy(to, &halves, (uint64_t)count * 2);
}

/* Levels as bytes, to the nearest; levels below 0 or above 255 are taken as these. */
INLINE void store_bytes(uint8_t *to, vec level, int64_t count) {
    typedef uint8_t byte_vec __attribute__((vector_size(DREAMLOOP_WIDTH)));
    level = level > 0.0f ? level : vec{};
    level = level < 255.0f ? level : vec{} + 255.0f;
    const byte_vec bytes = __builtin_convertvector(__builtin_convertvector(level + 0.5f, ivec), byte_vec);
    if (count >= WIDTH) return store<byte_vec>(to, bytes);
    __builtin_memcpy(to, &bytes, (uint64_t)count);
}

#endif
