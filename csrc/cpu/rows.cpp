/* What stands between the products: the norm that opens a block, and queries, keys and values of a head.
 *
 *     modulate   out = x / sqrt(mean x^2 + 1e-6) scale + shift           over the width
 *     heads      query = turn(norm(q) query_norm, cos, sin)              norm over the head, without mean
 *                key   = turn(norm(k) key_norm, store_cos, store_sin)    as it is written to the ring
 *                value = v
 *     turn       pairs (i, i + D/2):  x_i cos - x_j sin,  x_i sin + x_j cos
 *
 * A sum of squares runs over the lanes of one register and is then added up lane by lane: its order hangs on the
 * tier and the width alone.
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
    float sum = 0;
    for (int i = 0; i < WIDTH; i++) sum += squares[i];
    return 1.0f / __builtin_sqrtf(sum / (float)count + NORM_EPSILON);
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
    for (int64_t i = 0; i < pairs; i++) {
        const float a = x[i] * norm * weight[i], b = x[i + pairs] * norm * weight[i + pairs];
        out[i] = a * cosine[i] - b * sine[i];
        out[i + pairs] = a * sine[i] + b * cosine[i];
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
