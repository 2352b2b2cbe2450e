/* Which instruction tiers this library holds, and which of them this processor runs. */
#include "dreamloop.h"

extern "C" {

void dreamloop_attention_portable(const dreamloop_attention *call, float *scratch);
#ifdef DREAMLOOP_X86_TIERS
void dreamloop_attention_avx2(const dreamloop_attention *call, float *scratch);
void dreamloop_attention_avx512(const dreamloop_attention *call, float *scratch);
#endif

const char *dreamloop_tier_name(int tier) {
    static const char *const names[DREAMLOOP_TIERS] = {"portable", "avx2", "avx512"};
    return names[tier];
}

int dreamloop_tier_usable(int tier) {
    if (tier == DREAMLOOP_PORTABLE) return 1;
#ifdef DREAMLOOP_X86_TIERS
    /* these builtins also ask whether the operating system saves the wide registers */
    __builtin_cpu_init();
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (tier == DREAMLOOP_AVX2) return avx2;
    if (tier == DREAMLOOP_AVX512)
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
#endif
    return 0;
}

void dreamloop_block_attention(const dreamloop_attention *call, int tier, float *scratch) {
#ifdef DREAMLOOP_X86_TIERS
    if (tier == DREAMLOOP_AVX512) return dreamloop_attention_avx512(call, scratch);
    if (tier == DREAMLOOP_AVX2) return dreamloop_attention_avx2(call, scratch);
#endif
    (void)tier;
    dreamloop_attention_portable(call, scratch);
}
}
