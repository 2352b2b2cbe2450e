/* What actions and noise level make of a pass, before any token: the action's part of every token, and the scales,
 * shifts and gates of every norm.
 *
 *     c = W_2 silu(W_1 condition)      modulation = W silu(c), six parts, to which each layer adds its table
 *
 * One row against as many weights as a layer has takes as long as they take to be read, a tenth of a pass; but it
 * depends on the condition alone, and a player holds keys. So the last KEPT of them are kept, with what became of them.
 */
#include <algorithm>
#include <cmath>

#include "world.h"

namespace dreamloop {

namespace {

constexpr int64_t KEPT = 16;

/* The four products for one player, into the kept row `to`: (width) of the action, (width) c, (6 width) modulation. */
void make(dreamloop_world &world, const float *action, const float *condition, float *to) {
    const Spec &s = world.spec;
    const Dynamics &d = world.dynamics;
    PassBuffers &buffer = world.pass;
    const int64_t width = s.width;
    float *c = to + width, *silu = buffer.silu.at_least(width);
    uint16_t *short_silu = buffer.silu_bf16.at_least(width);
    run_products(world, linear(d.action, 1, action, s.actions(), to), 1);
    for (int64_t i = 0; i < width; i++) to[i] += d.input.bias.get()[i];
    auto first = linear(d.first, 1, condition, s.condition_size(), silu);
    first.activation = DREAMLOOP_SILU;
    run_products(world, first, 1);
    run_products(world, linear(d.second, 1, silu, width, c), 1);
    for (int64_t i = 0; i < width; i++) silu[i] = c[i] / (1.0f + std::exp(-c[i]));
    auto modulation = linear(d.modulation, 1, silu, width, c + width);
    if (d.modulation.format == DREAMLOOP_BF16) {
        world.kernels->to_bf16(silu, width, short_silu);
        modulation.a = short_silu;
    }
    run_products(world, modulation, 1);
}

/* The kept row of a condition, made where there is none; good until KEPT others were asked for. */
const float *made_of(dreamloop_world &world, const float *action, const float *condition) {
    Conditions &kept = world.conditions;
    const Spec &s = world.spec;
    const int64_t asked = s.condition_size() + s.actions(), size = 8 * s.width;
    kept.asked.at_least(KEPT * asked), kept.made.at_least(KEPT * size);
    const auto action_bytes = static_cast<size_t>(s.actions()) * sizeof(float);
    const auto condition_bytes = static_cast<size_t>(s.condition_size()) * sizeof(float);
    for (int64_t i = 0; i < kept.count; i++) {
        const float *own = kept.asked.get() + i * asked;
        if (std::memcmp(own, condition, condition_bytes) == 0 &&
            std::memcmp(own + s.condition_size(), action, action_bytes) == 0)
            return kept.made.get() + i * size;
    }
    const int64_t row = kept.next;
    float *own = kept.asked.get() + row * asked, *made = kept.made.get() + row * size;
    std::memcpy(own, condition, condition_bytes);
    std::memcpy(own + s.condition_size(), action, action_bytes);
    make(world, action, condition, made);
    kept.next = (row + 1) % KEPT, kept.count = std::max(kept.count, row + 1);
    return made;
}

} // namespace

void make_conditions(dreamloop_world &world, const dreamloop_pass_inputs &in) {
    const Spec &s = world.spec;
    const Dynamics &d = world.dynamics;
    PassBuffers &buffer = world.pass;
    const int64_t width = s.width;
    buffer.action.at_least(in.batch * width), buffer.final_table.at_least(in.batch * 2 * width);
    buffer.combined.at_least(s.layers * in.batch * 6 * width);
    for (int64_t b = 0; b < in.batch; b++) {
        const float *made = made_of(world, in.action + b * s.actions(), in.condition + b * s.condition_size());
        const float *c = made + width, *modulation = c + width;
        std::memcpy(buffer.action.get() + b * width, made, static_cast<size_t>(width) * sizeof(float));
        for (int64_t layer = 0; layer < s.layers; layer++) {
            const float *table = d.blocks[static_cast<size_t>(layer)].table.get();
            float *to = buffer.combined.get() + (layer * in.batch + b) * 6 * width;
            for (int64_t i = 0; i < 6 * width; i++) to[i] = modulation[i] + table[i];
            for (int64_t i = 0; i < width; i++) to[width + i] += 1.0f, to[4 * width + i] += 1.0f; /* 1 + scale */
        }
        float *last = buffer.final_table.get() + b * 2 * width;
        for (int64_t i = 0; i < width; i++) {
            last[i] = d.final_table.get()[i] + c[i];
            last[width + i] = (d.final_table.get()[width + i] + c[i]) + 1.0f;
        }
    }
}

} // namespace dreamloop
