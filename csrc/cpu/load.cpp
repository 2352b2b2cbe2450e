/* A packed world (models/core/packed.py) checked, and its weights packed for the tier that will run them.
 *
 *     "DREAMLP1"  hash (32 bytes)  64 x int64 numbers  float64: fps, rope_base, sigmas, axis limits
 *     names, each ended by a newline, padded to 8 bytes
 *     every tensor of `weight_shapes`, float32, in its order        start frames (N, H, W, 3) uint8
 *
 * all little-endian. The file is untrusted: the numbers are held to the limits of core/spec.py, the size that follows
 * from them is compared with that of the file, and only then is a weight read or memory taken.
 */
#include <algorithm>
#include <cmath>

#include "world.h"

namespace dreamloop {

namespace {

constexpr int64_t NUMBERS = 64;
constexpr int64_t MOST_WEIGHTS = int64_t{2} << 30; /* of float32: 8 GiB */
constexpr int64_t MOST_RING_BYTES = int64_t{64} << 30, MOST_PLAN_BYTES = int64_t{256} << 20, MOST_START_BYTES = 1 << 30;

[[noreturn]] void refuse(const std::string &text) { throw Error(DREAMLOOP_BAD_FILE, "packed world: " + text); }

class Reader {
public:
    Reader(const uint8_t *at, int64_t size) : at_(at), left_(size) {}

    const uint8_t *take(int64_t bytes) {
        if (bytes < 0 || bytes > left_) refuse("it ends too early");
        const uint8_t *from = at_;
        at_ += bytes, left_ -= bytes;
        return from;
    }
    template <typename T> T one() {
        T value;
        std::memcpy(&value, take(sizeof value), sizeof value);
        return value;
    }
    int64_t left() const { return left_; }

private:
    const uint8_t *at_;
    int64_t left_;
};

/* Numbers by position, each within its limits. */
class Numbers {
public:
    explicit Numbers(Reader &reader) {
        for (auto &value : values_) value = reader.one<int64_t>();
    }
    int64_t next(const char *name, int64_t lowest, int64_t highest) {
        const int64_t value = values_[place_++];
        if (value < lowest || value > highest)
            refuse(std::string(name) + "=" + std::to_string(value) + " must be " + std::to_string(lowest) + ".." +
                   std::to_string(highest));
        return value;
    }
    void skip_to(int place) { place_ = place; }

private:
    int64_t values_[NUMBERS];
    int place_ = 0;
};

void require(bool ok, const char *text) {
    if (!ok) refuse(text);
}

void read_numbers(Reader &reader, Spec &s) {
    Numbers n(reader);
    s.frame_height = n.next("frame_height", 8, 4096), s.frame_width = n.next("frame_width", 8, 4096);
    s.latent_channels = n.next("latent_channels", 1, 256), s.stages = n.next("stages", 1, MOST_STAGES);
    const struct {
        const char *name;
        int64_t *to, lowest, highest;
    } lists[] = {{"autoencoder width", s.widths, 1, 2048}, {"encoder_blocks", s.encoder_blocks, 0, 16},
                 {"decoder_blocks", s.decoder_blocks, 0, 16}};
    for (int list = 0; list < 3; list++) {
        n.skip_to(4 + list * MOST_STAGES);
        for (int64_t i = 0; i < s.stages; i++)
            lists[list].to[i] = n.next(lists[list].name, lists[list].lowest, lists[list].highest);
    }
    n.skip_to(4 + 3 * MOST_STAGES);
    s.width = n.next("width", 8, 16384), s.layers = n.next("layers", 1, 128), s.heads = n.next("heads", 1, 256);
    s.mlp_width = n.next("mlp_width", 1, 65536), s.patch = n.next("patch", 1, 8),
    s.passes = n.next("passes", 1, MOST_PASSES);
    s.window_frames = n.next("window_frames", 1, 4096), s.sink_frames = n.next("sink_frames", 0, 64);
    s.dilated_frames = n.next("dilated_frames", 0, 1024), s.dilation = n.next("dilation", 0, 1024);
    s.max_age = n.next("max_age", 0, int64_t{1} << 40);
    s.plan_policy = n.next("plan policy", 0, POLICIES - 1),
    s.plan_window_frames = n.next("plan window_frames", 0, int64_t{1} << 40);
    s.plan_block_tokens = n.next("block_tokens", 0, 4096);
    s.buttons = n.next("buttons", 0, 1024), s.axes = n.next("axes", 0, 1024),
    s.starts = n.next("starts", 1, int64_t{1} << 30), s.plan_top_blocks = n.next("top_blocks", 0, 65536);

    require(s.width % s.heads == 0 && s.head_size() % 8 == 0, "heads must divide width into multiples of 8");
    require(s.plan_block_tokens <= s.tokens(), "block_tokens is above the tokens of a frame");
    require((s.dilated_frames == 0) == (s.dilation == 0) && s.dilation != 1, "dilated_frames and dilation do not fit");
    require(s.sink_frames == 0 || (s.max_age >= 1 && s.max_age <= 1000000), "max_age must be 1..1000000");
    require((s.plan_policy == WINDOW || s.plan_policy == RADIAL) == (s.plan_window_frames > 0) &&
                (s.plan_policy != RADIAL || s.plan_window_frames <= 4096),
            "plan policy and window_frames do not fit");
    require((s.plan_policy == TOP_K) == (s.plan_top_blocks > 0), "plan policy and top_blocks do not fit");
    require(s.actions() >= 1, "a world needs a button or an axis");
    /* each factor is below 2^21 or checked before it multiplies */
    const int64_t tokens = s.ring_tokens();
    require(tokens <= MOST_RING_BYTES && tokens * s.width <= MOST_RING_BYTES / 8 / s.layers,
            "the ring is above its cap");
    require(s.blocks() * s.blocks() <= MOST_PLAN_BYTES / 4 / s.slots(), "block lists are above their cap");
    require(s.starts <= MOST_START_BYTES / (s.frame_height * s.frame_width * 3), "start frames are above their cap");
}

void read_doubles(Reader &reader, Spec &s) {
    s.fps = reader.one<double>(), s.rope_base = reader.one<double>();
    require(s.fps > 0 && s.fps <= 1000, "fps must be above 0, at most 1000");
    require(s.rope_base > 1 && s.rope_base < 1e9, "rope_base must be above 1");
    for (int64_t i = 0; i < s.passes; i++) {
        s.sigmas[i] = reader.one<double>();
        require(i == 0 ? s.sigmas[0] == 1.0 : s.sigmas[i] > 0 && s.sigmas[i] < s.sigmas[i - 1],
                "sigmas must start with 1, fall, and stay above 0");
    }
    for (int64_t i = 0; i < s.axes; i++) {
        s.axis_limits.push_back(static_cast<float>(reader.one<double>()));
        require(s.axis_limits.back() > 0 && std::isfinite(s.axis_limits.back()), "an axis limit must be above 0");
    }
}

void read_names(Reader &reader, Spec &s) {
    int64_t bytes = 0;
    for (int64_t i = 0; i < s.actions(); i++) {
        std::string name;
        for (char c; (c = static_cast<char>(*reader.take(1))) != '\n'; name += c)
            require(name.size() < 400 && static_cast<unsigned char>(c) >= 32,
                    "a name must be printable, at most 100 characters");
        bytes += static_cast<int64_t>(name.size()) + 1;
        s.names.push_back(std::move(name));
    }
    reader.take((8 - bytes % 8) % 8);
}

/* Tensors in the order of `weight_shapes`. Without a world it only adds up how many values they have. */
class Weights {
public:
    Weights(const uint8_t *from, dreamloop_world *world) : from_(from), world_(world) {}
    int64_t values = 0;

    void vector(Array<float> &to, int64_t size) {
        const float *value = next(size);
        if (value) std::memcpy(to.at_least(size), value, static_cast<size_t>(size) * sizeof(float));
    }

    void linear(Layer &layer, int64_t out, int64_t in, bool bias = true) {
        const float *w = next(out * in);
        if (w) pack(layer, out, 1, in, [=](int64_t column, int64_t, int64_t k) { return w[column * in + k]; });
        if (bias) this->bias(layer, out, [](int64_t column) { return column; });
    }

    /* kernel: 1 or 3. column_at, channel_at: which stored output or input stands at a place. */
    template <typename Column, typename Channel>
    void conv(Layer *layers, int64_t parts, int64_t out, int64_t in, int64_t kernel, Column column_at,
              Channel channel_at) {
        const int64_t taps = kernel * kernel, columns = out / parts;
        const float *w = next(out * in * taps);
        for (int64_t part = 0; part < parts && w; part++)
            pack(layers[part], columns, taps, in, [=](int64_t column, int64_t tap, int64_t k) {
                return w[(column_at(part, column) * in + channel_at(k)) * taps + tap];
            });
        const float *b = next(out);
        for (int64_t part = 0; part < parts && b; part++) {
            layers[part].has_bias = true;
            float *to = layers[part].bias.at_least(columns);
            for (int64_t column = 0; column < columns; column++) to[column] = b[column_at(part, column)];
        }
    }

    void conv(Layer &layer, int64_t out, int64_t in, int64_t kernel) {
        conv(&layer, 1, out, in, kernel, [](int64_t, int64_t column) { return column; }, [](int64_t k) { return k; });
    }

private:
    const uint8_t *from_;
    dreamloop_world *world_;

    /* The next tensor, or NULL when only counting. Its place is a multiple of 4 bytes from an aligned start. */
    const float *next(int64_t size) {
        const int64_t first = values;
        values += size;
        require(values <= MOST_WEIGHTS, "it asks for too many weights");
        if (!world_) return nullptr;
        const float *value = reinterpret_cast<const float *>(from_) + first;
        for (int64_t i = 0; i < size; i++) require(std::isfinite(value[i]), "a weight is not finite");
        return value;
    }

    template <typename Place> void bias(Layer &layer, int64_t out, Place place) {
        const float *b = next(out);
        if (!b) return;
        layer.has_bias = true;
        float *to = layer.bias.at_least(out);
        for (int64_t column = 0; column < out; column++) to[column] = b[place(column)];
    }

    /* Panels as product.cpp says; value(column, tap, k). */
    template <typename Value> void pack(Layer &layer, int64_t columns, int64_t taps, int64_t depth, Value value) {
        const int64_t width = world_->kernels->width, panel = world_->kernels->panel;
        const int64_t lane = lane_elements(layer.format), bytes = element_bytes(layer.format);
        layer.columns = columns, layer.taps = taps, layer.depth = padded_depth(layer.format, depth);
        if (layer.format == DREAMLOOP_I8) scale(layer, columns, taps, depth, value);
        const int64_t padded = (columns + width - 1) / width * width;
        char *to = layer.weights.at_least(padded * taps * layer.depth * bytes);
        for (int64_t first = 0; first < columns; first += panel) {
            const int64_t wide = columns - first > width ? panel : width;
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t k = 0; k < layer.depth; k += lane)
                    for (int64_t n = 0; n < wide; n++)
                        for (int64_t i = k; i < k + lane; i++, to += bytes) {
                            const bool real = first + n < columns && i < depth;
                            write(layer, to, first + n, real ? value(first + n, tap, i) : 0.0f, real);
                        }
        }
    }

    /* One weight in the layer's format. */
    static void write(Layer &layer, char *to, int64_t column, float value, bool real) {
        if (layer.format == DREAMLOOP_F32) {
            std::memcpy(to, &value, 4);
        } else if (layer.format == DREAMLOOP_BF16) {
            uint32_t bits;
            std::memcpy(&bits, &value, 4); /* finite: checked when it was read */
            const auto half = static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
            std::memcpy(to, &half, 2);
        } else if (real) {
            const float level = std::nearbyint(value / layer.column_scale.get()[column]);
            const auto whole = static_cast<int8_t>(level < -127 ? -127 : level > 127 ? 127 : level);
            std::memcpy(to, &whole, 1);
            layer.column_sum.get()[column] += whole;
        }
    }

    /* One scale per output channel: the largest weight becomes 127, or as many steps as it is on the grid that the
     * channel was stored on (models/core/quantize.py), for then no weight is rounded again. */
    template <typename Value>
    static void scale(Layer &layer, int64_t columns, int64_t taps, int64_t depth, Value value) {
        float *to = layer.column_scale.at_least(columns);
        layer.column_sum.at_least(columns);
        for (int64_t column = 0; column < columns; column++) {
            float largest = 0;
            for (int64_t tap = 0; tap < taps; tap++)
                for (int64_t k = 0; k < depth; k++) largest = std::max(largest, std::fabs(value(column, tap, k)));
            const auto on_grid = [&](float step) {
                for (int64_t tap = 0; tap < taps; tap++)
                    for (int64_t k = 0; k < depth; k++) {
                        const float level = value(column, tap, k) / step;
                        if (std::fabs(level - std::nearbyint(level)) > 1e-3f) return false;
                    }
                return true;
            };
            int64_t steps = largest > 0 ? 127 : 0;
            while (steps > 0 && !on_grid(largest / static_cast<float>(steps))) steps--;
            to[column] = largest > 0 ? largest / static_cast<float>(steps > 0 ? steps : 127) : 1.0f;
        }
    }
};

/* Pixels of 4x4 RGB: the networks' channel is colour * 16 + row * 4 + column, ours row * 12 + column * 3 + colour. */
int64_t stored_pixel_channel(int64_t ours) { return ours % 3 * 16 + ours / 12 * 4 + ours % 12 / 3; }

void read_autoencoder(Weights &w, const Spec &s, Autoencoder &a) {
    const auto same = [](int64_t k) { return k; };
    const auto one = [](int64_t, int64_t column) { return column; };
    const auto residuals = [&](Stage &stage, int64_t count, int64_t width) {
        stage.blocks.resize(static_cast<size_t>(count));
        for (auto &block : stage.blocks) w.conv(block.first, width, width, 3), w.conv(block.second, width, width, 3);
    };
    a.encoder.resize(static_cast<size_t>(s.stages)), a.decoder.resize(static_cast<size_t>(s.stages));
    w.conv(&a.encoder_stem, 1, s.widths[0], 48, 3, one, stored_pixel_channel);
    for (int64_t i = 0; i < s.stages; i++) {
        Stage &stage = a.encoder[static_cast<size_t>(i)];
        residuals(stage, s.encoder_blocks[i], s.widths[i]);
        if (i + 1 < s.stages) w.conv(stage.down, s.widths[i + 1], s.widths[i], 3);
    }
    w.conv(a.encoder_head, s.latent_channels, s.widths[s.stages - 1], 1);
    w.vector(a.mean, s.latent_channels), w.vector(a.deviation, s.latent_channels);
    w.conv(a.decoder_stem, s.widths[s.stages - 1], s.latent_channels, 3);
    for (int64_t i = s.stages; i-- > 0;) {
        Stage &stage = a.decoder[static_cast<size_t>(i)];
        residuals(stage, s.decoder_blocks[i], s.widths[i]);
        /* pixel-shuffle: stored output is channel * 4 + quarter */
        if (i > 0)
            w.conv(stage.up, 4, 4 * s.widths[i - 1], s.widths[i], 1,
                   [](int64_t quarter, int64_t column) { return column * 4 + quarter; }, same);
    }
    w.conv(
        &a.decoder_head, 1, 48, s.widths[0], 3, [](int64_t, int64_t column) { return stored_pixel_channel(column); },
        same);
}

void read_dynamics(Weights &w, const Spec &s, Dynamics &d) {
    w.linear(d.input, s.width, 2 * s.token_channels());
    w.linear(d.action, s.width, s.actions(), false);
    w.linear(d.first, s.width, s.condition_size()), w.linear(d.second, s.width, s.width);
    w.linear(d.modulation, 6 * s.width, s.width);
    d.blocks.resize(static_cast<size_t>(s.layers));
    for (auto &block : d.blocks) {
        w.vector(block.table, 6 * s.width);
        w.linear(block.qkv, 3 * s.width, s.width, false);
        w.vector(block.query_norm, s.head_size()), w.vector(block.key_norm, s.head_size());
        w.linear(block.out, s.width, s.width, false);
        w.linear(block.up, s.mlp_width, s.width), w.linear(block.down, s.width, s.mlp_width);
    }
    w.vector(d.final_table, 2 * s.width);
    w.linear(d.output, s.token_channels(), s.width);
}

/* In a lower precision the four products of each block and the decoder's 3x3 convolutions, but for the first,
 * are in that precision: nearly all of the work. The modulation has many weights for a single row, so it takes as long
 * as they take to be read: half as long in bf16. What is left is in float32; so is the encoder, which runs once. */
void choose_formats(dreamloop_world &world) {
    const Spec &s = world.spec;
    world.dynamics.blocks.resize(static_cast<size_t>(s.layers));
    for (auto &block : world.dynamics.blocks)
        for (auto *layer : {&block.qkv, &block.out, &block.up, &block.down}) layer->format = world.precision;
    if (world.precision != DREAMLOOP_F32) world.dynamics.modulation.format = DREAMLOOP_BF16;
    world.autoencoder.decoder.resize(static_cast<size_t>(s.stages));
    for (int64_t i = 0; i < s.stages; i++) {
        auto &blocks = world.autoencoder.decoder[static_cast<size_t>(i)].blocks;
        blocks.resize(static_cast<size_t>(s.decoder_blocks[i]));
        for (auto &block : blocks) block.first.format = block.second.format = world.precision;
    }
    world.autoencoder.decoder_head.format = world.precision;
}

} // namespace

void load(dreamloop_world &world, const uint8_t *bytes, int64_t size) {
    Reader reader(bytes, size);
    require(size >= 8 && std::memcmp(reader.take(8), "DREAMLP1", 8) == 0, "it does not begin with DREAMLP1");
    std::memcpy(world.identity, reader.take(32), 32);
    Spec &spec = world.spec;
    read_numbers(reader, spec);
    read_doubles(reader, spec);
    read_names(reader, spec);
    {
        Dynamics dynamics;
        Autoencoder autoencoder;
        Weights count(nullptr, nullptr);
        read_autoencoder(count, spec, autoencoder);
        read_dynamics(count, spec, dynamics);
        const int64_t starts = spec.starts * spec.frame_height * spec.frame_width * 3;
        if (reader.left() != 4 * count.values + starts)
            refuse("its numbers ask for " + std::to_string(4 * count.values + starts) +
                   " bytes of weights and frames, it has " + std::to_string(reader.left()));
    }
    const int64_t values = reader.left() - spec.starts * spec.frame_height * spec.frame_width * 3;
    Array<uint8_t> aligned; /* a caller's bytes may stand anywhere */
    const uint8_t *from = reader.take(values);
    if (reinterpret_cast<std::uintptr_t>(from) % alignof(float)) {
        std::memcpy(aligned.at_least(values), from, static_cast<size_t>(values));
        from = aligned.get();
    }
    choose_formats(world);
    Weights weights(from, &world);
    read_autoencoder(weights, spec, world.autoencoder);
    read_dynamics(weights, spec, world.dynamics);
    for (int64_t c = 0; c < spec.latent_channels; c++)
        require(world.autoencoder.deviation.get()[c] > 0, "a latent deviation is not above 0");
    const int64_t frames = reader.left();
    std::memcpy(world.starts.at_least(frames), reader.take(frames), static_cast<size_t>(frames));
}

} // namespace dreamloop
