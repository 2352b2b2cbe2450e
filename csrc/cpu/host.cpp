/* What the host makes for a pass, for programs without Python: core/noise.py, core/memory.py, core/plan.py and
 * core/conditioning.py again, for one player. The tests hold each to its original; where they disagree, Python is
 * right.
 */
#include "host.h"

#include <algorithm>
#include <cmath>

namespace dreamloop {

namespace {

constexpr int64_t EMPTY = -1;
constexpr double PI = 3.14159265358979323846;

/* Ten rounds of Philox4x32. */
void philox(uint32_t c[4], uint32_t k0, uint32_t k1) {
    for (int round = 0; round < 10; round++) {
        const uint64_t p0 = uint64_t{0xD2511F53} * c[0], p1 = uint64_t{0xCD9E8D57} * c[2];
        const uint32_t c0 = static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ k0,
                       c2 = static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ k1;
        c[1] = static_cast<uint32_t>(p1), c[3] = static_cast<uint32_t>(p0);
        c[0] = c0, c[2] = c2;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
}

bool is_sink(const Spec &s, int64_t frame) { return frame >= 1 && frame <= s.sink_frames; }

bool is_dilated(const Spec &s, int64_t frame) { return s.dilation && frame % s.dilation == 0; }

/* How many frames u, sinks < u < frame, belong to the window ring. */
int64_t windowed_before(const Spec &s, int64_t frame) {
    int64_t count = std::max<int64_t>(frame - 1 - s.sink_frames, 0);
    if (s.dilation && count) count -= (frame - 1) / s.dilation - s.sink_frames / s.dilation;
    return count;
}

int64_t slot_of(const Spec &s, int64_t frame) {
    if (is_sink(s, frame)) return frame - 1;
    if (is_dilated(s, frame)) return s.sink_frames + frame / s.dilation % s.dilated_frames;
    return s.sink_frames + s.dilated_frames + windowed_before(s, frame) % s.window_frames;
}

/* The frame that lies in each slot while `frame` runs, itself in its own. */
void visible_frames(const Spec &s, int64_t frame, std::vector<int64_t> &held) {
    held.assign(static_cast<size_t>(s.slots()), EMPTY);
    for (int64_t sink = 1; sink <= std::min(s.sink_frames, frame - 1); sink++)
        held[static_cast<size_t>(sink - 1)] = sink;
    if (s.dilation) {
        const int64_t newest = (frame - 1) / s.dilation;
        for (int64_t multiple = newest; multiple > std::max<int64_t>(newest - s.dilated_frames, 0); multiple--)
            if (multiple * s.dilation > s.sink_frames)
                held[static_cast<size_t>(s.sink_frames + multiple % s.dilated_frames)] = multiple * s.dilation;
    }
    const int64_t first = s.sink_frames + s.dilated_frames, rank = windowed_before(s, frame);
    for (int64_t past = frame - 1, found = 0; past > s.sink_frames && found < s.window_frames; past--)
        if (!is_dilated(s, past)) held[static_cast<size_t>(first + (rank - ++found) % s.window_frames)] = past;
    held[static_cast<size_t>(slot_of(s, frame))] = frame;
}

/* Whether query block `row` of `frame` reads block `part` of the visible frame `past`. */
bool reads(const Spec &s, int64_t frame, int64_t past, int64_t row, int64_t part) {
    const int64_t age = frame - past, parts = s.blocks();
    if (is_sink(s, past) || s.plan_policy == DENSE || s.plan_policy == TOP_K) return true;
    if (age <= s.plan_window_frames || s.plan_policy == WINDOW) return age <= s.plan_window_frames;
    int64_t octave = 0, halvings = 0; /* halvings: of a frame's blocks until one is left */
    while (age > s.plan_window_frames << octave) octave++;
    while (parts >> (halvings + 1)) halvings++;
    return std::abs(row - part) << (octave + 1) < parts && past % (int64_t{1} << std::max<int64_t>(octave - halvings, 0)) == 0;
}

void make_plan(const Spec &s, int64_t frame, Host &host) {
    const int64_t parts = s.blocks(), most = s.slots() * parts, tail = s.tokens() - (parts - 1) * s.block_tokens();
    visible_frames(s, frame, host.held);
    host.block_length.assign(static_cast<size_t>(s.slots() * s.slot_blocks()), 0);
    host.block_index.assign(static_cast<size_t>(parts * most), 0);
    host.block_count.assign(static_cast<size_t>(parts), 0), host.block_kept.assign(static_cast<size_t>(parts), 0);
    for (int64_t slot = 0; slot < s.slots(); slot++) {
        if (host.held[static_cast<size_t>(slot)] == EMPTY) continue;
        for (int64_t part = 0; part < parts; part++)
            host.block_length[static_cast<size_t>(slot * s.slot_blocks() + part)] =
                static_cast<int32_t>(part + 1 < parts ? s.block_tokens() : tail);
    }
    /* with top_k, what is always read stands first: two rounds, the second of candidates */
    for (int round = 0; round < (s.plan_policy == TOP_K ? 2 : 1); round++)
        for (int64_t slot = 0; slot < s.slots(); slot++) {
            const int64_t past = host.held[static_cast<size_t>(slot)];
            const bool always = s.plan_policy != TOP_K || is_sink(s, past) || past >= frame - 1;
            if (past == EMPTY || always == (round == 1)) continue;
            for (int64_t row = 0; row < parts; row++)
                for (int64_t part = 0; part < parts; part++) {
                    if (!reads(s, frame, past, row, part)) continue;
                    auto &listed = host.block_count[static_cast<size_t>(row)];
                    host.block_index[static_cast<size_t>(row * most + listed++)] =
                        static_cast<int32_t>(slot * s.slot_blocks() + part);
                    if (always) host.block_kept[static_cast<size_t>(row)] = listed;
                }
        }
}

double frequency(const Spec &s, int64_t i, int64_t pairs) {
    return std::pow(s.rope_base, -static_cast<double>(i) / static_cast<double>(pairs));
}

/* Rotation of all tokens of a frame whose time is `time`: (T, D/2) each. */
void rotation(const Spec &s, double time, float *cosine, float *sine) {
    const int64_t pairs = s.head_size() / 2, quarter = pairs / 4, half = pairs / 2;
    for (int64_t t = 0; t < s.tokens(); t++)
        for (int64_t i = 0; i < pairs; i++, cosine++, sine++) {
            const double angle = i < half ? time * frequency(s, i, half)
                                 : i < half + quarter
                                     ? static_cast<double>(t / s.columns()) * frequency(s, i - half, quarter)
                                     : static_cast<double>(t % s.columns()) * frequency(s, i - half - quarter, quarter);
            *cosine = static_cast<float>(std::cos(angle)), *sine = static_cast<float>(std::sin(angle));
        }
}

} // namespace

void normal_noise(uint64_t seed, uint64_t frame, int64_t count, int index, float *out) {
    for (int64_t block = 0; 4 * block < count; block++) {
        uint32_t words[4] = {static_cast<uint32_t>(block), static_cast<uint32_t>(frame),
                             static_cast<uint32_t>(frame >> 32), static_cast<uint32_t>(index)};
        philox(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        for (int pair = 0; pair < 2; pair++) {
            const double radius = std::sqrt(-2.0 * std::log(((words[2 * pair] >> 8) + 1.0) * 0x1p-24));
            const double angle = (words[2 * pair + 1] >> 8) * (2.0 * PI * 0x1p-24);
            const int64_t at = 4 * block + 2 * pair;
            if (at < count) out[at] = static_cast<float>(radius * std::cos(angle));
            if (at + 1 < count) out[at + 1] = static_cast<float>(radius * std::sin(angle));
        }
    }
}

void make_inputs(const Spec &s, uint64_t seed, int64_t frame, const float *action, int index, Host &host,
                 dreamloop_pass_inputs &in) {
    const int64_t half = s.head_size() / 2, angles = s.tokens() * half;
    float *condition = host.condition.at_least(s.condition_size());
    std::copy_n(action, s.actions(), condition);
    const double levels[3] = {s.sigmas[index], s.sigmas[index], 0.0}; // a pass goes all the way from its level
    for (int level = 0; level < 3; level++)
        for (int i = 0; i < 4; i++) {
            const double angle = levels[level] * (0.5 * PI * (1 << i));
            condition[s.actions() + 8 * level + i] = static_cast<float>(std::sin(angle));
            condition[s.actions() + 8 * level + 4 + i] = static_cast<float>(std::cos(angle));
        }
    float *turns = host.turns.at_least(4 * angles + 2 * s.sink_frames * half);
    rotation(s, static_cast<double>(frame), turns, turns + angles);
    rotation(s, is_sink(s, frame) ? 0.0 : static_cast<double>(frame), turns + 2 * angles, turns + 3 * angles);
    float *sink = turns + 4 * angles;
    for (int64_t number = 1; number <= s.sink_frames; number++)
        for (int64_t i = 0; i < half; i++) {
            const auto time = static_cast<double>(frame - std::min(frame - number, s.max_age));
            const double angle = i < half / 2 ? time * frequency(s, i, half / 2) : 0.0;
            sink[(number - 1) * half + i] = static_cast<float>(std::cos(angle));
            sink[(s.sink_frames + number - 1) * half + i] = static_cast<float>(std::sin(angle));
        }
    normal_noise(seed, static_cast<uint64_t>(frame), s.latent_size(), index, host.noise.at_least(s.latent_size()));
    host.slot = slot_of(s, frame);
    make_plan(s, frame, host);
    in.batch = in.list_players = in.list_heads = in.length_players = 1;
    in.max_blocks = s.slots() * s.blocks();
    in.action = action, in.condition = condition;
    in.cosine = turns, in.sine = turns + angles, in.store_cosine = turns + 2 * angles,
    in.store_sine = turns + 3 * angles;
    in.sink_cosine = sink, in.sink_sine = sink + s.sink_frames * half;
    in.slot = &host.slot, in.block_index = host.block_index.data(), in.block_count = host.block_count.data();
    in.block_length = host.block_length.data();
    in.block_kept = s.plan_policy == TOP_K ? host.block_kept.data() : nullptr;
}

} // namespace dreamloop
