/* top_k: the blocks that a block of queries reads, chosen by mean keys against its mean query.
 *
 *     mean key     of each block of a frame, as it is stored, written behind the frame's blocks in its slot
 *     score        mean query . mean key, for every layer, head and query block
 *     list         what the plan always reads, then the `top_blocks` highest of its candidates, in the plan's order;
 *                  between equals the one that stands first, what is not a number last
 *
 * core/plan.py (`select`) is the definition. The cost is one product of D numbers a candidate and query block: small
 * beside the attention that it spares, but not nothing in a long memory.
 */
#include <algorithm>
#include <cmath>

#include "world.h"

namespace dreamloop {

namespace {

/* The places of the `best` highest scores, rising, into `place`; scores are overwritten with those of the chosen. */
void highest_places(float *score, int64_t count, int64_t best, int32_t *place) {
    int64_t held = 0; /* place[0 .. held - 1] by falling score, which stands beside it in score[] */
    for (int64_t i = 0; i < count; i++) {
        const float value = std::isnan(score[i]) ? -INFINITY : score[i];
        if (held == best && !(value > score[held - 1])) continue;
        int64_t at = held < best ? held++ : held - 1; /* never above i, so no score is lost before it was read */
        for (; at > 0 && value > score[at - 1]; at--) score[at] = score[at - 1], place[at] = place[at - 1];
        score[at] = value, place[at] = static_cast<int32_t>(i);
    }
    std::sort(place, place + held);
}

} // namespace

void choose_blocks(dreamloop_world &world, const dreamloop_pass_inputs &in, int64_t task, int64_t list,
                   const float *fresh, int64_t slot, char *keys, dreamloop_attention &call) {
    const Spec &s = world.spec;
    const dreamloop_kernels &kernels = *world.kernels;
    const int64_t d = s.head_size(), parts = s.blocks(), block = s.block_tokens(), row = row_bytes(world);
    const int64_t most = s.slots() * parts, slot_bytes = s.tokens_padded() * row;
    float *mean = world.pass.mean_query.get() + task * d, *score = world.pass.mean_scores.get() + task * most;
    int32_t *chosen = world.pass.chosen.get() + task * parts * most;
    int32_t *chosen_count = world.pass.chosen_count.get() + task * parts;
    char *means = keys + parts * block * row; /* of slot 0 */
    const auto length = [&](int64_t part) { return std::min(block, s.tokens() - part * block); };
    for (int64_t part = 0; part < parts; part++) {
        kernels.mean(fresh + part * block * d, length(part), d, mean);
        char *to = means + slot * slot_bytes + part * row;
        if (narrow_ring(world)) kernels.to_narrow(mean, 1, d, to);
        else std::memcpy(to, mean, static_cast<size_t>(row));
    }
    for (int64_t part = 0; part < parts; part++) {
        const int32_t *listed = in.block_index + (list + part) * in.max_blocks;
        const int64_t kept = in.block_kept[list + part], rest = in.block_count[list + part] - kept;
        int32_t *to = chosen + part * most;
        std::copy_n(listed, kept, to);
        kernels.mean(call.query + part * block * d, length(part), d, mean);
        kernels.scores(mean, d, means, row, slot_bytes, narrow_ring(world), listed + kept, rest, s.slot_blocks(), score);
        const int64_t best = std::min(rest, s.plan_top_blocks);
        highest_places(score, rest, best, to + kept);
        for (int64_t i = kept; i < kept + best; i++) to[i] = listed[kept + to[i]];
        chosen_count[part] = static_cast<int32_t>(kept + best);
    }
    call.block_index = chosen, call.block_count = chosen_count, call.max_blocks = most;
}

} // namespace dreamloop
