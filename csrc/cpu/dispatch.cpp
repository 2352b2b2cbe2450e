/* Which instruction tiers this library holds, and which of them this processor runs. */
#include "kernels.h"

extern "C" {

#define TIER(tier)                                                                                        \
    void dreamloop_attention_##tier(const dreamloop_attention *, float *);                                \
    void dreamloop_attention_short_##tier(const dreamloop_attention *, float *);                          \
    void dreamloop_heads_##tier(const dreamloop_heads *);                                                 \
    void dreamloop_modulate_##tier(const float *, int64_t, const float *, const float *, float *);        \
    void dreamloop_to_bf16_##tier(const float *, int64_t, uint16_t *);                                    \
    void dreamloop_quantize_##tier(const float *, int64_t, uint8_t *, float *, int32_t *);                \
    float dreamloop_highest_##tier(const float *, int64_t);                                               \
    void dreamloop_to_bytes_##tier(const float *, int64_t, float, float, uint8_t *);                      \
    void dreamloop_to_narrow_##tier(const float *, int64_t, int64_t, char *);                             \
    void dreamloop_from_narrow_##tier(const char *, int64_t, float *);                                    \
    void dreamloop_mean_##tier(const float *, int64_t, int64_t, float *);                                 \
    void dreamloop_scores_##tier(const float *, int64_t, const char *, int64_t, int64_t, int,             \
                                 const int32_t *, int64_t, int64_t, float *);                             \
    void dreamloop_product_##tier(const dreamloop_product *, int64_t, int64_t, int64_t, int64_t);

TIER(portable)
#ifdef DREAMLOOP_X86_TIERS
TIER(avx2)
TIER(avx512)
TIER(avx512vnni)
#endif

const char *dreamloop_tier_name(int tier) {
    static const char *const names[DREAMLOOP_TIERS] = {"portable", "avx2", "avx512", "avx512vnni"};
    return names[tier];
}

int dreamloop_tier_usable(int tier) {
    if (tier == DREAMLOOP_PORTABLE) return 1;
#ifdef DREAMLOOP_X86_TIERS
    /* these builtins also ask whether the operating system saves the wide registers */
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                       __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    if (tier == DREAMLOOP_AVX2) return avx2;
    if (tier == DREAMLOOP_AVX512) return avx512;
    if (tier == DREAMLOOP_AVX512VNNI)
        return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
#endif
    return 0;
}

#define KERNELS(width, tier, products)                                                                     \
    {width, 2 * width, dreamloop_attention_##tier, dreamloop_attention_short_##products,                   \
     dreamloop_product_##products, dreamloop_heads_##tier, dreamloop_modulate_##tier,                      \
     dreamloop_to_bf16_##tier, dreamloop_quantize_##tier,                                                  \
     dreamloop_highest_##tier, dreamloop_to_bytes_##tier, dreamloop_to_narrow_##tier,                      \
     dreamloop_from_narrow_##tier, dreamloop_mean_##tier, dreamloop_scores_##tier}

const dreamloop_kernels *dreamloop_tier_kernels(int tier) {
    static const dreamloop_kernels kernels[] = {
        KERNELS(4, portable, portable),
#ifdef DREAMLOOP_X86_TIERS
        KERNELS(8, avx2, avx2),
        KERNELS(16, avx512, avx512),
        KERNELS(16, avx512, avx512vnni),
#endif
    };
    return kernels + tier;
}
}
