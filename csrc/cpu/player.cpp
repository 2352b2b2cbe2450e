/* One player in C: a state of its own, stepped, copied, saved and loaded. */
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "guard.h"
#include "host.h"

using dreamloop::guarded;
using dreamloop::require;

struct dreamloop_state {
    dreamloop_world *world;
    dreamloop::Array<char> ring;
    dreamloop::Array<float> latent, next, mixed;
    std::vector<float> action;
    int64_t frame = 0;
    uint64_t seed = 0;
    dreamloop::Host host;

    int64_t ring_bytes() const {
        const auto &s = world->spec;
        return s.layers * 2 * s.heads * s.ring_tokens() * dreamloop::row_bytes(*world);
    }
};

namespace {

/* What a saved state begins with. A state goes on with the same bits only where all of this is the same. */
struct Header {
    char magic[8];
    uint8_t world[32];
    char tier[16], precision[16];
    int64_t frame;
    uint64_t seed;
};

Header header_of(const dreamloop_state &state) {
    Header header{};
    dreamloop_description about;
    dreamloop_describe(state.world, &about);
    std::memcpy(header.magic, "DREAMLS1", 8);
    std::memcpy(header.world, state.world->identity, 32);
    std::snprintf(header.tier, sizeof header.tier, "%s", about.tier);
    std::snprintf(header.precision, sizeof header.precision, "%s", about.precision);
    header.frame = state.frame, header.seed = state.seed;
    return header;
}

std::unique_ptr<dreamloop_state> empty_state(dreamloop_world *world) {
    auto state = std::make_unique<dreamloop_state>();
    state->world = world;
    state->ring.at_least(state->ring_bytes());
    for (auto *latent : {&state->latent, &state->next, &state->mixed}) latent->at_least(world->spec.latent_size());
    state->action.resize(static_cast<size_t>(world->spec.actions()));
    return state;
}

/* Values as a world takes them: buttons in 0..1, axes within their limits. */
void take_action(const float *action, dreamloop_state &state) {
    const auto &s = state.world->spec;
    for (int64_t i = 0; i < s.actions(); i++) {
        require(!action || std::isfinite(action[i]),
                [&] { return "action value " + std::to_string(i) + " is not finite"; });
        const float limit = i < s.buttons ? 1.0f : s.axis_limits[static_cast<size_t>(i - s.buttons)];
        const float lowest = i < s.buttons ? 0.0f : -limit;
        state.action[static_cast<size_t>(i)] = action ? std::min(std::max(action[i], lowest), limit) : 0.0f;
    }
}

void advance(dreamloop_state &state) {
    auto &world = *state.world;
    const int64_t size = world.spec.latent_size();
    for (int index = 0; index < world.spec.passes; index++) {
        dreamloop_pass_inputs in{};
        dreamloop::make_inputs(world.spec, state.seed, state.frame + 1, state.action.data(), index, state.host, in);
        const auto sigma = static_cast<float>(world.spec.sigmas[index]);
        const auto rest = static_cast<float>(1 - world.spec.sigmas[index]);
        for (int64_t i = 0; i < size; i++) {
            const float noise = state.host.noise.get()[i];
            state.mixed.get()[i] = index ? rest * state.next.get()[i] + sigma * noise : noise;
        }
        in.ring = state.ring.get(), in.previous = state.latent.get(), in.x = state.mixed.get();
        dreamloop::pass(world, in, state.next.get());
    }
    std::swap(state.latent, state.next);
    state.frame++;
}

void check_pixels(const dreamloop_world &world, const uint8_t *pixels, int64_t row_bytes) {
    require(pixels && row_bytes >= 3 * world.spec.frame_width,
            "pixels are missing, or row_bytes is below a row of them");
}

} // namespace

extern "C" {

const char *dreamloop_action_name(const dreamloop_world *world, int64_t index) {
    return index >= 0 && index < world->spec.actions() ? world->spec.names[static_cast<size_t>(index)].c_str()
                                                       : nullptr;
}

int dreamloop_open_file(const char *path, const dreamloop_options *options, dreamloop_world **world) {
    std::vector<uint8_t> bytes;
    const int code = guarded([&] {
        require(path, "open_file needs a path");
        std::unique_ptr<std::FILE, int (*)(std::FILE *)> file(std::fopen(path, "rb"), std::fclose);
        require(file != nullptr, "cannot read " + std::string(path).substr(0, 500), DREAMLOOP_BAD_FILE);
        for (size_t found = 1; found > 0;) { /* no trust in a size that the system tells beforehand */
            require(bytes.size() < (size_t{16} << 30), "the file is larger than any world", DREAMLOOP_BAD_FILE);
            const size_t before = bytes.size();
            bytes.resize(before + std::max<size_t>(before, 1 << 20));
            found = std::fread(bytes.data() + before, 1, bytes.size() - before, file.get());
            bytes.resize(before + found);
        }
    });
    return code == DREAMLOOP_OK ? dreamloop_open(bytes.data(), static_cast<int64_t>(bytes.size()), options, world)
                                : code;
}

int dreamloop_new_state(dreamloop_world *world, uint64_t seed, int64_t start, dreamloop_state **state) {
    return guarded([&] {
        require(world && state, "new_state needs a world, and a place for the state");
        const auto &s = world->spec;
        require(start >= 0 && start < s.starts,
                "start=" + std::to_string(start) + " must be 0.." + std::to_string(s.starts - 1));
        auto made = empty_state(world);
        made->seed = seed;
        dreamloop::encode(*world, world->starts.get() + start * s.frame_height * s.frame_width * 3, 3 * s.frame_width,
                          made->latent.get());
        *state = made.release();
    });
}

void dreamloop_free_state(dreamloop_state *state) { delete state; }

int64_t dreamloop_frame(const dreamloop_state *state) { return state->frame; }

int dreamloop_step(dreamloop_state *state, const float *action, uint8_t *pixels, int64_t row_bytes) {
    return guarded([&] {
        require(state, "step needs a state");
        if (pixels) check_pixels(*state->world, pixels, row_bytes);
        take_action(action, *state);
        advance(*state);
        if (pixels) dreamloop::decode(*state->world, state->latent.get(), pixels, row_bytes);
    });
}

int dreamloop_render(dreamloop_state *state, uint8_t *pixels, int64_t row_bytes) {
    return guarded([&] {
        require(state, "render needs a state");
        check_pixels(*state->world, pixels, row_bytes);
        dreamloop::decode(*state->world, state->latent.get(), pixels, row_bytes);
    });
}

int dreamloop_copy_state(const dreamloop_state *from, dreamloop_state **to) {
    return guarded([&] {
        require(from && to, "copy_state needs a state, and a place for the copy");
        auto made = empty_state(from->world);
        made->frame = from->frame, made->seed = from->seed;
        std::copy_n(from->ring.get(), from->ring_bytes(), made->ring.get());
        std::copy_n(from->latent.get(), from->world->spec.latent_size(), made->latent.get());
        *to = made.release();
    });
}

int64_t dreamloop_state_bytes(const dreamloop_state *state) {
    const int64_t latent = state->world->spec.latent_size() * static_cast<int64_t>(sizeof(float));
    return static_cast<int64_t>(sizeof(Header)) + latent + state->ring_bytes();
}

int dreamloop_save_state(const dreamloop_state *state, void *bytes, int64_t size) {
    return guarded([&] {
        require(state && bytes && size >= dreamloop_state_bytes(state), "save_state needs dreamloop_state_bytes bytes");
        const Header header = header_of(*state);
        const auto latent = static_cast<size_t>(state->world->spec.latent_size()) * sizeof(float);
        auto *to = static_cast<char *>(bytes);
        std::memcpy(to, &header, sizeof header);
        std::memcpy(to + sizeof header, state->latent.get(), latent);
        std::memcpy(to + sizeof header + latent, state->ring.get(),
                    static_cast<size_t>(state->ring_bytes()));
    });
}

int dreamloop_load_state(dreamloop_state *state, const void *bytes, int64_t size) {
    return guarded([&] {
        require(state && bytes, "load_state needs a state and bytes");
        require(size == dreamloop_state_bytes(state),
                "a state of this world has " + std::to_string(dreamloop_state_bytes(state)) + " bytes, not " +
                    std::to_string(size),
                DREAMLOOP_BAD_FILE);
        const Header own = header_of(*state);
        Header header;
        std::memcpy(&header, bytes, sizeof header);
        require(std::memcmp(header.magic, own.magic, 8) == 0, "it is not a saved state", DREAMLOOP_BAD_FILE);
        require(std::memcmp(header.world, own.world, 32) == 0, "it belongs to another world", DREAMLOOP_BAD_FILE);
        require(std::memcmp(header.tier, own.tier, 16) == 0 && std::memcmp(header.precision, own.precision, 16) == 0,
                "it was saved with another instruction tier or precision", DREAMLOOP_BAD_FILE);
        require(header.frame >= 0 && header.frame < int64_t{1} << 53, "its frame index is out of range",
                DREAMLOOP_BAD_FILE);
        const auto latent = static_cast<size_t>(state->world->spec.latent_size()) * sizeof(float);
        const auto *from = static_cast<const char *>(bytes) + sizeof header;
        std::memcpy(state->latent.get(), from, latent);
        std::memcpy(state->ring.get(), from + latent, static_cast<size_t>(state->ring_bytes()));
        state->frame = header.frame, state->seed = header.seed;
    });
}
}
