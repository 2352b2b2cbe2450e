/* Static scales of int8: the world plays by itself, and the ranges that its rows and images had are kept.
 *
 * A one-step world has one noise level, so what shifts its statistics is how deep a rollout is: one long rollout from
 * the first start, and short ones from others, with random actions that are held for a while. The products then write
 * bytes themselves, and no row is read twice.
 */
#include <algorithm>
#include <cmath>

#include "guard.h"
#include "host.h"

namespace dreamloop {

namespace {

constexpr int64_t LONG_FRAMES = 96, SHORT_FRAMES = 16, SHORT_ROLLOUTS = 4, HOLD_FRAMES = 6, LOOK_FRAMES = 8;

void pass_on(int code) {
    if (code != DREAMLOOP_OK) throw Error(code, dreamloop_error());
}

/* Plays from a start; every LOOK_FRAMES frames the picture is decoded as well. */
void roll_out(dreamloop_world &world, int64_t start, int64_t frames, uint8_t *pixels) {
    const Spec &s = world.spec;
    dreamloop_state *made;
    pass_on(dreamloop_new_state(&world, static_cast<uint64_t>(start), start, &made));
    const std::unique_ptr<dreamloop_state, void (*)(dreamloop_state *)> state(made, dreamloop_free_state);
    std::vector<float> action(static_cast<size_t>(s.actions()));
    for (int64_t frame = 0; frame < frames; frame++) {
        if (frame % HOLD_FRAMES == 0) {
            normal_noise(static_cast<uint64_t>(start) + 1, static_cast<uint64_t>(frame), s.actions(), 0, action.data());
            for (int64_t i = 0; i < s.buttons; i++) {
                auto &value = action[static_cast<size_t>(i)];
                value = value > 0.5f ? 1.0f : 0.0f;
            }
        }
        pass_on(dreamloop_step(state.get(), action.data(), frame % LOOK_FRAMES ? nullptr : pixels, 3 * s.frame_width));
    }
}

} // namespace

void calibrate(dreamloop_world &world) {
    Ranges &ranges = world.ranges;
    const Spec &s = world.spec;
    Array<uint8_t> pixels(s.frame_height * s.frame_width * 3);
    ranges.rows.assign(static_cast<size_t>(s.layers * INPUTS), {});
    ranges.watching = true;
    roll_out(world, 0, LONG_FRAMES, pixels.get());
    for (int64_t i = 1; i <= std::min(SHORT_ROLLOUTS, s.starts - 1); i++)
        roll_out(world, s.starts * i / (SHORT_ROLLOUTS + 1), SHORT_FRAMES, pixels.get());
    ranges.watching = false;
    bool finite = true;
    for (auto &range : ranges.rows) {
        const float width = range.high - range.low;
        finite = finite && std::isfinite(width);
        range.scale = width > 0 ? width / 255.0f : 1.0f;
        range.inverse = 1.0f / range.scale;
        range.zero = static_cast<int32_t>(-range.low * range.inverse + 0.5f);
    }
    for (const float highest : ranges.images) finite = finite && std::isfinite(highest);
    if (!finite) throw Error(DREAMLOOP_CANNOT_RUN, "static scales: the world does not stay finite when it plays by itself");
    ranges.known = true;
}

} // namespace dreamloop
