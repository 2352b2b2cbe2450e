/* Latents to pixels and back: networks/autoencoder.py over channels-last images.
 *
 * Every image stands in a border of zeros, which is what a convolution's padding reads. A residual block is two
 * products: hidden = relu(conv(relu(x))), then x = x + conv(hidden) and, from the same registers, relu(x) for
 * whoever comes next. `up` and its pixel-shuffle are four 1x1 products, one for each pixel that one becomes,
 * written to every other pixel. In int8 a block's images are first written in float32, then made bytes with the scale
 * of this very frame; with static scales they are bytes at once. The decoder's last convolution goes to bytes in the
 * caller's buffer.
 */
#include <cmath>

#include "world.h"

namespace dreamloop {

namespace {

constexpr int64_t PIXEL_CHANNELS = 48; /* 4 rows, 4 pixels, RGB */

/* Offsets of the nine taps of a 3x3 convolution over `image`. */
struct Taps {
    int64_t offset[9];
    template <typename T> explicit Taps(const Image<T> &image) {
        for (int i = 0; i < 9; i++) offset[i] = (i / 3 - 1) * image.row() + (i % 3 - 1) * image.channels;
    }
};

/* A convolution from `image`, with `stride`, to an image of `height` x `width`. */
template <typename T>
dreamloop_product convolution(const Layer &layer, const Image<T> &image, const Taps &taps, int64_t stride,
                              int64_t height, int64_t width) {
    dreamloop_product call = product_of(layer, height * width);
    call.row_length = width, call.a = image.pixels();
    call.a_x = stride * image.channels, call.a_y = stride * image.row();
    if (layer.taps == 9) call.taps = taps.offset;
    return call;
}

/* The offsets of the taps over relu'd pixels, whatever their format: they count elements. */
Taps taps_of(const Activation &a) {
    return a.format == DREAMLOOP_I8 ? Taps(a.i8) : a.format == DREAMLOOP_BF16 ? Taps(a.bf16) : Taps(a.f32);
}

/* A convolution that reads relu'd pixels, at their own size. */
dreamloop_product relu_convolution(const Layer &layer, const Activation &from, const Taps &taps,
                                   const Image<float> &size) {
    if (from.format == DREAMLOOP_F32) return convolution(layer, from.f32, taps, 1, size.height, size.width);
    if (from.format == DREAMLOOP_BF16) return convolution(layer, from.bf16, taps, 1, size.height, size.width);
    static const int32_t no_zero = 0;
    auto call = convolution(layer, from.i8, taps, 1, size.height, size.width);
    call.row_scale = &from.scale, call.row_zero = &no_zero, call.row_step = 0;
    return call;
}

void write_to(dreamloop_product &call, const Image<float> &image) {
    call.out = image.pixels(), call.out_x = image.channels, call.out_y = image.row();
}

/* The highest value of the decoder's next image, where static scales are known; else NULL. */
const float *next_highest(dreamloop_world &world, const Activation &image) {
    if (image.format != DREAMLOOP_I8) return nullptr;
    const auto number = world.ranges.image++;
    return world.ranges.known ? &world.ranges.images[number] : nullptr;
}

/* relu of the result besides, from pixel (x, y) on, every `step`th; int8 without a known `highest` value comes later,
 * from `out`. */
void relu_to(dreamloop_product &call, Activation &to, const float *highest, int64_t x = 0, int64_t y = 0,
             int64_t step = 1) {
    const auto give = [&](auto &image, int kind) {
        call.copy = image.pixels() + y * image.row() + x * image.channels, call.copy_kind = kind;
        call.copy_x = step * image.channels, call.copy_y = step * image.row();
    };
    if (to.format == DREAMLOOP_F32) give(to.f32, DREAMLOOP_COPY_RELU);
    if (to.format == DREAMLOOP_BF16) give(to.bf16, DREAMLOOP_COPY_RELU | DREAMLOOP_COPY_BF16);
    if (!highest) return;
    give(to.i8, DREAMLOOP_COPY_BYTES);
    to.scale = *highest / 255.0f, call.copy_inverse = *highest > 0 ? 255.0f / *highest : 0.0f;
}

/* int8 only, where static scales are not known: relu of a whole image as bytes, with the scale that makes its highest
 * value 255. */
void quantize(dreamloop_world &world, const Image<float> &from, Activation &to, Array<float> &row_highest) {
    if (to.format != DREAMLOOP_I8 || world.ranges.known) return;
    world.pool->run(from.height, [&](int64_t y) {
        row_highest.get()[y] = world.kernels->highest(from.pixels() + y * from.row(), from.width * from.channels);
    });
    float highest = 0;
    for (int64_t y = 0; y < from.height; y++) {
        const float row = row_highest.get()[y];
        highest = row > highest || row != row ? row : highest; /* NaN stays: nothing is above it */
        if (highest != highest) break;
    }
    if (world.ranges.watching) {
        auto &seen = world.ranges.images;
        if (seen.size() < world.ranges.image) seen.resize(world.ranges.image);
        float &most = seen[world.ranges.image - 1];
        most = highest > most || highest != highest ? highest : most;
    }
    to.scale = highest / 255.0f;
    const float inverse = highest > 0 ? 255.0f / highest : 0.0f;
    world.pool->run(from.height, [&](int64_t y) {
        const float *row = from.pixels() + y * from.row();
        uint8_t *bytes = to.i8.pixels() + y * to.i8.row();
        if (from.channels == to.i8.channels)
            return world.kernels->to_bytes(row, from.width * from.channels, inverse, 0.0f, bytes);
        for (int64_t x = 0; x < from.width; x++)
            world.kernels->to_bytes(row + x * from.channels, from.channels, inverse, 0.0f, bytes + x * to.i8.channels);
    });
}

void run(dreamloop_world &world, const dreamloop_product &call, const Image<float> &to) {
    run_products(world, &call, 1, to.height * to.width);
}

/* x and relu(x) of the layer's result. */
void stem(dreamloop_world &world, const Layer &layer, const Image<float> &from, StageBuffers &to) {
    const Taps taps(from);
    auto call = convolution(layer, from, taps, 1, to.x.height, to.x.width);
    write_to(call, to.x);
    relu_to(call, to.relu, next_highest(world, to.relu));
    run(world, call, to.x);
    quantize(world, to.x, to.relu, to.row_highest);
}

void residual_blocks(dreamloop_world &world, const Stage &stage, StageBuffers &buffers) {
    const Taps taps = taps_of(buffers.relu);
    for (const auto &block : stage.blocks) {
        auto first = relu_convolution(block.first, buffers.relu, taps, buffers.x);
        relu_to(first, buffers.hidden, next_highest(world, buffers.hidden));
        if (buffers.hidden.format == DREAMLOOP_I8 && !world.ranges.known) write_to(first, buffers.raw);
        run(world, first, buffers.x);
        quantize(world, buffers.raw, buffers.hidden, buffers.row_highest);
        auto second = relu_convolution(block.second, buffers.hidden, taps, buffers.x);
        second.residual = buffers.x.pixels();
        write_to(second, buffers.x);
        relu_to(second, buffers.relu, next_highest(world, buffers.relu));
        run(world, second, buffers.x);
        quantize(world, buffers.x, buffers.relu, buffers.row_highest);
    }
}

void up(dreamloop_world &world, const Stage &stage, const StageBuffers &from, StageBuffers &to) {
    const Taps taps(from.x);
    dreamloop_product calls[4];
    const float *highest = next_highest(world, to.relu);
    for (int64_t quarter = 0; quarter < 4; quarter++) {
        const int64_t x = quarter % 2, y = quarter / 2;
        auto &call = calls[quarter] = convolution(stage.up[quarter], from.x, taps, 1, from.x.height, from.x.width);
        call.out = to.x.pixels() + y * to.x.row() + x * to.x.channels;
        call.out_x = 2 * to.x.channels, call.out_y = 2 * to.x.row();
        relu_to(call, to.relu, highest, x, y, 2);
    }
    run_products(world, calls, 4, from.x.height * from.x.width);
    quantize(world, to.x, to.relu, to.row_highest);
}

void make(Activation &activation, int format, int64_t height, int64_t width, int64_t channels) {
    activation.format = format;
    channels = padded_depth(format, channels);
    if (format == DREAMLOOP_F32) activation.f32.make(height, width, channels);
    if (format == DREAMLOOP_BF16) activation.bf16.make(height, width, channels);
    if (format == DREAMLOOP_I8) activation.i8.make(height, width, channels);
}

void make(dreamloop_world &world, std::vector<StageBuffers> &stages, Image<float> &input, bool encoder) {
    const Spec &spec = world.spec;
    if (!stages.empty()) return;
    const int format = encoder ? static_cast<int>(DREAMLOOP_F32) : world.precision;
    std::vector<StageBuffers> made(static_cast<size_t>(spec.stages));
    int64_t height = spec.latent_height() << (spec.stages - 1), width = spec.latent_width() << (spec.stages - 1);
    if (encoder) input.make(height, width, PIXEL_CHANNELS);
    else input.make(spec.latent_height(), spec.latent_width(), spec.latent_channels);
    for (int64_t i = 0; i < spec.stages; i++, height /= 2, width /= 2) {
        StageBuffers &stage = made[static_cast<size_t>(i)];
        stage.x.make(height, width, spec.widths[i]);
        make(stage.relu, format, height, width, spec.widths[i]);
        make(stage.hidden, format, height, width, spec.widths[i]);
        if (format != DREAMLOOP_I8) continue;
        stage.raw.make(height, width, spec.widths[i]);
        stage.row_highest.at_least(height);
    }
    stages = std::move(made);
}

} // namespace

void decode(dreamloop_world &world, const float *latent, uint8_t *pixels, int64_t row_bytes) {
    const Spec &spec = world.spec;
    const Autoencoder &weights = world.autoencoder;
    make(world, world.decoder, world.decoder_input, false);
    world.ranges.image = 0;
    Image<float> &input = world.decoder_input;
    for (int64_t c = 0; c < input.channels; c++)
        for (int64_t y = 0; y < input.height; y++)
            for (int64_t x = 0; x < input.width; x++)
                input.pixels()[y * input.row() + x * input.channels + c] =
                    latent[(c * input.height + y) * input.width + x] * weights.deviation.get()[c] +
                    weights.mean.get()[c];
    auto &stages = world.decoder;
    stem(world, weights.decoder_stem, input, stages.back());
    for (size_t i = stages.size(); i-- > 0;) {
        residual_blocks(world, weights.decoder[i], stages[i]);
        if (i > 0) up(world, weights.decoder[i], stages[i], stages[i - 1]);
    }
    const Taps taps = taps_of(stages[0].relu);
    auto head = relu_convolution(weights.decoder_head, stages[0].relu, taps, stages[0].x);
    head.pixels = pixels, head.pixel_row_bytes = row_bytes, head.height = spec.frame_height,
    head.width = spec.frame_width;
    run(world, head, stages[0].x);
}

void encode(dreamloop_world &world, const uint8_t *pixels, int64_t row_bytes, float *latent) {
    const Spec &spec = world.spec;
    const Autoencoder &weights = world.autoencoder;
    make(world, world.encoder, world.encoder_input, true);
    Image<float> &input = world.encoder_input;
    for (int64_t y = 0; y < 4 * input.height; y++)
        for (int64_t x = 0; x < 4 * input.width; x++) {
            /* what lies beyond the frame repeats its last row and column */
            const int64_t from_y = y < spec.frame_height ? y : spec.frame_height - 1;
            const int64_t from_x = x < spec.frame_width ? x : spec.frame_width - 1;
            float *to = input.pixels() + y / 4 * input.row() + x / 4 * PIXEL_CHANNELS + y % 4 * 12 + x % 4 * 3;
            for (int64_t c = 0; c < 3; c++)
                to[c] = static_cast<float>(pixels[from_y * row_bytes + 3 * from_x + c]) / 127.5f - 1.0f;
        }
    auto &stages = world.encoder;
    stem(world, weights.encoder_stem, input, stages[0]);
    for (size_t i = 0; i < stages.size(); i++) {
        residual_blocks(world, weights.encoder[i], stages[i]);
        if (i + 1 == stages.size()) break;
        const Taps taps(stages[i].x);
        auto down =
            convolution(weights.encoder[i].down, stages[i].x, taps, 2, stages[i + 1].x.height, stages[i + 1].x.width);
        write_to(down, stages[i + 1].x);
        relu_to(down, stages[i + 1].relu, nullptr);
        run(world, down, stages[i + 1].x);
    }
    const Image<float> &last = stages.back().relu.f32;
    float *raw = world.encoded.at_least(last.height * last.width * spec.latent_channels);
    const Taps taps(last);
    auto head = convolution(weights.encoder_head, last, taps, 1, last.height, last.width);
    head.out = raw, head.out_x = spec.latent_channels, head.out_y = last.width * spec.latent_channels;
    run(world, head, last);
    for (int64_t c = 0; c < spec.latent_channels; c++)
        for (int64_t i = 0; i < last.height * last.width; i++)
            latent[c * last.height * last.width + i] =
                (raw[i * spec.latent_channels + c] - weights.mean.get()[c]) / weights.deviation.get()[c];
}

} // namespace dreamloop
