/* What stands between the products: the norm that opens a block, queries, keys and values of a head, and the
 * rows in the format of the next product.
 *
 *     modulate   out = x / sqrt(mean x^2 + 1e-6) scale + shift           over the width
 *     heads      query = turn(norm(q) query_norm, cos, sin)              norm over the head, without mean
 *                key   = turn(norm(k) key_norm, store_cos, store_sin)    as it is written to the ring
 *                value = v
 *     turn       pairs (i, i + D/2):  x_i cos - x_j sin,  x_i sin + x_j cos
 *     quantize   scale = (highest - lowest) / 255, zero = -lowest / scale, out = x / scale + zero      both ends take
 *                in 0, so the tail of GELU below it costs one bit at most; scale and zero belong to this row alone
 *
 *     to_narrow  scale = the largest |x| / 127, out = x / scale           one scale a row, written behind it
 *     scores     out = query . mean key                                   of the blocks that top_k chooses among
 *
 * A sum of squares runs over the lanes of one register, which are then added up (`sum_of_lanes`): its order hangs on
 * the tier and the width alone.
 */
#include "kernels.h"
#include "vectors.h"

static const float NORM_EPSILON = 1e-6f;

/* 1 / sqrt(mean x^2 + epsilon) */
INLINE float norm_of(const float *x, int64_t count) {
    vec squares = vec{};
    for (int64_t i = 0; i < count; i += WIDTH) {
        const vec part = load_part(x + i, count - i);
        squares += part * part;
    }
    return 1.0f / __builtin_sqrtf(sum_of_lanes(squares) / (float)count + NORM_EPSILON);
}

extern "C" void ENTRY(dreamloop_modulate)(const float *x, int64_t width, const float *scale, const float *shift,
                                          float *out) {
    const float norm = norm_of(x, width);
    for (int64_t i = 0; i < width; i += WIDTH) {
        const int64_t count = width - i;
        store_part(out + i, load_part(x + i, count) * norm * load_part(scale + i, count) + load_part(shift + i, count),
                   count);
    }
}

INLINE void turned(const float *x, const float *weight, int64_t head_size, const float *cosine, const float *sine,
                   float *out) {
    const float norm = norm_of(x, head_size);
    const int64_t pairs = head_size / 2;
    for (int64_t i = 0; i < pairs; i += WIDTH) {
        const int64_t count = pairs - i;
        const vec a = load_part(x + i, count) * norm * load_part(weight + i, count);
        const vec b = load_part(x + pairs + i, count) * norm * load_part(weight + pairs + i, count);
        const vec cos = load_part(cosine + i, count), sin = load_part(sine + i, count);
        store_part(out + i, a * cos - b * sin, count);
        store_part(out + pairs + i, a * sin + b * cos, count);
    }
}

extern "C" void ENTRY(dreamloop_heads)(const dreamloop_heads *call) {
    const int64_t d = call->head_size;
    for (int64_t t = 0; t < call->tokens; t++) {
        const float *from = call->qkv + t * call->qkv_stride;
        const int64_t angle = t * (d / 2);
        turned(from, call->query_norm, d, call->cosine + angle, call->sine + angle, call->query + t * d);
        turned(from + call->part_stride, call->key_norm, d, call->store_cosine + angle, call->store_sine + angle,
               call->key + t * d);
        __builtin_memcpy(call->value + t * d, from + 2 * call->part_stride, (uint64_t)d * sizeof(float));
    }
}

extern "C" void ENTRY(dreamloop_to_bf16)(const float *x, int64_t count, uint16_t *out) {
    for (int64_t i = 0; i < count; i += WIDTH) store_bf16(out + i, load_part(x + i, count - i), count - i);
}

extern "C" void ENTRY(dreamloop_quantize)(const float *x, int64_t count, uint8_t *out, float *scale, int32_t *zero) {
    vec high = vec{}, low = vec{}, nothing = vec{};
    for (int64_t i = 0; i < count; i += WIDTH) {
        const vec part = load_part(x + i, count - i);
        high = part > high ? part : high;
        low = part < low ? part : low;
        nothing += part * 0.0f; /* NaN where a value is not finite */
    }
    const float highest = highest_lane(high), lowest = -highest_lane(-low), poison = sum_of_lanes(nothing);
    const float range = highest - lowest, inverse = range > 0 && poison == 0 ? 255.0f / range : 0.0f;
    *zero = (int32_t)(-lowest * inverse + 0.5f);
    *scale = range / 255.0f + poison;
    for (int64_t i = 0; i < count; i += WIDTH)
        store_bytes(out + i, load_part(x + i, count - i) * inverse + (float)*zero, count - i);
}

extern "C" float ENTRY(dreamloop_highest)(const float *x, int64_t count) {
    vec high = vec{}, nothing = vec{};
    for (int64_t i = 0; i < count; i += WIDTH) {
        const vec part = load_part(x + i, count - i);
        high = part > high ? part : high;
        nothing += part * 0.0f;
    }
    return highest_lane(high) + sum_of_lanes(nothing);
}

extern "C" void ENTRY(dreamloop_to_bytes)(const float *x, int64_t count, float inverse, float zero, uint8_t *out) {
    for (int64_t i = 0; i < count; i += WIDTH)
        store_bytes(out + i, load_part(x + i, count - i) * inverse + zero, count - i);
}

extern "C" void ENTRY(dreamloop_to_narrow)(const float *x, int64_t rows, int64_t count, char *out) {
    typedef int8_t byte_vec __attribute__((vector_size(DREAMLOOP_WIDTH)));
    for (int64_t row = 0; row < rows; row++, x += count, out += count + 4) {
        vec high = vec{}, nothing = vec{};
        for (int64_t i = 0; i < count; i += WIDTH) {
            const vec part = load_part(x + i, count - i), size = part < 0.0f ? -part : part;
            high = size > high ? size : high;
            nothing += part * 0.0f; /* NaN where a value is not finite */
        }
        const float largest = highest_lane(high), poison = sum_of_lanes(nothing);
        const float scale = largest / 127.0f + poison;
        const float inverse = largest > 0 && poison == 0 ? 127.0f / largest : 0.0f;
        for (int64_t i = 0; i < count; i += WIDTH) {
            vec level = load_part(x + i, count - i) * inverse;
            level = level == level ? level : vec{};
            const ivec whole = __builtin_convertvector((level + 12582912.0f) - 12582912.0f, ivec); /* to the nearest */
            const byte_vec bytes = __builtin_convertvector(whole, byte_vec);
            if (count - i >= WIDTH) store<byte_vec>(out + i, bytes);
            else __builtin_memcpy(out + i, &bytes, (uint64_t)(count - i));
        }
        __builtin_memcpy(out + count, &scale, 4);
    }
}

extern "C" void ENTRY(dreamloop_from_narrow)(const char *x, int64_t count, float *out) {
    float scale;
    __builtin_memcpy(&scale, x + count, 4);
    for (int64_t i = 0; i < count; i++) out[i] = (float)(int8_t)x[i] * scale;
}

extern "C" void ENTRY(dreamloop_mean)(const float *x, int64_t rows, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) out[i] = x[i];
    for (int64_t row = 1; row < rows; row++)
        for (int64_t i = 0; i < count; i++) out[i] += x[row * count + i];
    for (int64_t i = 0; i < count; i++) out[i] /= (float)rows;
}

extern "C" void ENTRY(dreamloop_scores)(const float *query, int64_t head_size, const char *means, int64_t row_bytes,
                                        int64_t slot_bytes, int narrow, const int32_t *blocks, int64_t count,
                                        int64_t slot_blocks, float *out) {
    typedef float eight __attribute__((vector_size(32)));
    for (int64_t n = 0; n < count; n++) {
        const uint32_t block = (uint32_t)blocks[n], slot = block / (uint32_t)slot_blocks;
        const char *row = means + slot * slot_bytes + (block - slot * (uint32_t)slot_blocks) * row_bytes;
        eight sums = {};
        for (int64_t i = 0; i < head_size; i += 8) { /* a head is a multiple of 8 */
            eight key;
            if (narrow)
                for (int lane = 0; lane < 8; lane++) key[lane] = (float)(int8_t)row[i + lane];
            else __builtin_memcpy(&key, row + 4 * i, sizeof key);
            eight part;
            __builtin_memcpy(&part, query + i, sizeof part);
            sums += part * key;
        }
        float scale = 1;
        if (narrow) __builtin_memcpy(&scale, row + head_size, 4);
        out[n] = (((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))) * scale;
    }
}
