/* The C interface: arguments checked, exceptions turned into codes and a line of text. */
#include <cstdlib>

#include "guard.h"

using dreamloop::Error;
using dreamloop::guarded;
using dreamloop::require;

std::string &dreamloop::last_error() {
    static thread_local std::string text;
    return text;
}

namespace {

struct Precision {
    const char *name;
    int format;
    bool static_scales;
};
const Precision PRECISIONS[] = {{"fp32", DREAMLOOP_F32, false},
                                {"bf16", DREAMLOOP_BF16, false},
                                {"int8", DREAMLOOP_I8, false},
                                {"int8-static", DREAMLOOP_I8, true}};

const Precision &precision_of(const std::string &name) {
    std::string known;
    for (const auto &precision : PRECISIONS) {
        if (name == precision.name) return precision;
        known += std::string(known.empty() ? "" : ", ") + precision.name;
    }
    throw Error(DREAMLOOP_BAD_ARGUMENT, "precision '" + name.substr(0, 100) + "' is not known; known: " + known);
}

int chosen_tier(const char *name) {
    const char *forced = std::getenv("DREAMLOOP_ISA");
    if (!name && forced && *forced) name = forced;
    for (int tier = DREAMLOOP_TIERS; tier-- > 0;)
        if (dreamloop_tier_usable(tier) && (!name || std::string(name) == dreamloop_tier_name(tier))) return tier;
    throw Error(DREAMLOOP_CANNOT_RUN, "instruction tier '" + std::string(name).substr(0, 100) + "' cannot run here");
}

} // namespace

extern "C" {

const char *dreamloop_error(void) { return dreamloop::last_error().c_str(); }

int dreamloop_open(const void *bytes, int64_t size, const dreamloop_options *options, dreamloop_world **world) {
    return guarded([&] {
        require(bytes && world && size >= 0, "open needs bytes, and a place for the world");
        const dreamloop_options chosen = options ? *options : dreamloop_options{};
        require(chosen.threads >= 0 && chosen.threads <= 64,
                "threads=" + std::to_string(chosen.threads) + " must be 0..64");
        auto made = std::make_unique<dreamloop_world>();
        const Precision &precision = precision_of(chosen.precision ? chosen.precision : PRECISIONS[0].name);
        made->precision = precision.format, made->precision_name = precision.name;
        made->static_scales = precision.static_scales;
        made->tier = chosen_tier(chosen.tier);
        made->kernels = dreamloop_tier_kernels(made->tier);
        dreamloop::load(*made, static_cast<const uint8_t *>(bytes), size);
        const int cores = static_cast<int>(std::thread::hardware_concurrency());
        made->pool = std::make_unique<dreamloop::Pool>(chosen.threads ? chosen.threads : cores == 1 ? 1 : 2);
        if (made->static_scales) dreamloop::calibrate(*made);
        *world = made.release();
    });
}

void dreamloop_close(dreamloop_world *world) { delete world; }

void dreamloop_describe(const dreamloop_world *world, dreamloop_description *out) {
    const auto &s = world->spec;
    *out = {s.frame_height,
            s.frame_width,
            s.actions(),
            s.buttons,
            s.starts,
            s.latent_channels,
            s.latent_height(),
            s.latent_width(),
            s.layers,
            s.heads,
            s.head_size(),
            s.tokens(),
            s.slots(),
            s.tokens_padded(),
            s.block_tokens(),
            s.blocks(),
            s.sink_frames,
            s.passes,
            s.plan_top_blocks,
            dreamloop::row_bytes(*world),
            s.fps,
            world->pool->threads(),
            dreamloop_tier_name(world->tier),
            world->precision_name};
}

int dreamloop_measure_limit(dreamloop_world *world, const char *precision, double *operations) {
    return guarded([&] {
        require(world && precision && operations,
                "measure_limit needs a world, a precision, and a place for the result");
        *operations = dreamloop::measure_limit(*world, precision_of(precision).format);
    });
}

int dreamloop_pass(dreamloop_world *world, const dreamloop_pass_inputs *inputs, float *z) {
    return guarded([&] {
        require(world && inputs && z && inputs->batch >= 1, "pass needs a world, inputs of one player or more, and z");
        dreamloop::pass(*world, *inputs, z);
    });
}

const char *dreamloop_operation_name(int operation) {
    static const char *const names[DREAMLOOP_OPERATIONS] = {"condition", "input", "norm", "qkv", "attention",
                                                            "narrow", "out", "up", "down", "output"};
    return operation >= 0 && operation < DREAMLOOP_OPERATIONS ? names[operation] : nullptr;
}

double dreamloop_operation_seconds(const dreamloop_world *world, int operation) {
    return operation >= 0 && operation < DREAMLOOP_OPERATIONS ? world->operation_seconds[operation] : 0.0;
}

int dreamloop_decode(dreamloop_world *world, const float *latent, uint8_t *pixels, int64_t row_bytes) {
    return guarded([&] {
        require(world && latent && pixels, "decode needs a world, a latent and pixels");
        require(row_bytes >= 3 * world->spec.frame_width, "row_bytes is below a row of pixels");
        dreamloop::decode(*world, latent, pixels, row_bytes);
    });
}

int dreamloop_encode(dreamloop_world *world, const uint8_t *pixels, int64_t row_bytes, float *latent) {
    return guarded([&] {
        require(world && latent && pixels, "encode needs a world, pixels and a latent");
        require(row_bytes >= 3 * world->spec.frame_width, "row_bytes is below a row of pixels");
        dreamloop::encode(*world, pixels, row_bytes, latent);
    });
}
}
