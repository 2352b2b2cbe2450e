/* Latents to pixels and back: networks/autoencoder.py over channels-last images.
 *
 * Every image stands in a border of zeros, which is what a convolution's padding reads. A residual block is two
 * products: hidden = relu(conv(relu(x))), then x = x + conv(hidden) and, from the same registers, relu(x) for
 * whoever comes next. `up` and its pixel-shuffle are four 1x1 products, one for each pixel that one becomes,
 * written to every other pixel. The decoder's last convolution goes to bytes in the caller's buffer at once.
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
dreamloop_product convolution(const Layer &layer, const Image<float> &image, const Taps &taps, int64_t stride,
                              int64_t height, int64_t width) {
    dreamloop_product call = product_of(layer, height * width);
    call.row_length = width, call.a = image.pixels();
    call.a_x = stride * image.channels, call.a_y = stride * image.row();
    if (layer.taps == 9) call.taps = taps.offset;
    return call;
}

void write_to(dreamloop_product &call, const Image<float> &image) {
    call.out = image.pixels(), call.out_x = image.channels, call.out_y = image.row();
}

void relu_to(dreamloop_product &call, const Image<float> &image) {
    call.copy = image.pixels(), call.copy_kind = DREAMLOOP_COPY_RELU;
    call.copy_x = image.channels, call.copy_y = image.row();
}

void run(dreamloop_world &world, const dreamloop_product &call, const Image<float> &to) {
    run_products(world, &call, 1, to.height * to.width);
}

/* x and relu(x) of the layer's result. */
void stem(dreamloop_world &world, const Layer &layer, const Image<float> &from, StageBuffers &to) {
    const Taps taps(from);
    auto call = convolution(layer, from, taps, 1, to.x.height, to.x.width);
    write_to(call, to.x);
    relu_to(call, to.relu);
    run(world, call, to.x);
}

void residual_blocks(dreamloop_world &world, const Stage &stage, StageBuffers &buffers) {
    const Taps taps(buffers.relu);
    for (const auto &block : stage.blocks) {
        auto first = convolution(block.first, buffers.relu, taps, 1, buffers.x.height, buffers.x.width);
        relu_to(first, buffers.hidden);
        run(world, first, buffers.x);
        auto second = convolution(block.second, buffers.hidden, taps, 1, buffers.x.height, buffers.x.width);
        second.residual = buffers.x.pixels();
        write_to(second, buffers.x);
        relu_to(second, buffers.relu);
        run(world, second, buffers.x);
    }
}

void up(dreamloop_world &world, const Stage &stage, const StageBuffers &from, StageBuffers &to) {
    const Taps taps(from.x);
    dreamloop_product calls[4];
    for (int64_t quarter = 0; quarter < 4; quarter++) {
        auto &call = calls[quarter] = convolution(stage.up[quarter], from.x, taps, 1, from.x.height, from.x.width);
        const int64_t place = quarter / 2 * to.x.row() + quarter % 2 * to.x.channels;
        call.out = to.x.pixels() + place;
        call.copy = to.relu.pixels() + place, call.copy_kind = DREAMLOOP_COPY_RELU;
        call.out_x = call.copy_x = 2 * to.x.channels;
        call.out_y = call.copy_y = 2 * to.x.row();
    }
    run_products(world, calls, 4, from.x.height * from.x.width);
}

void make(dreamloop_world &world, std::vector<StageBuffers> &stages, Image<float> &input, bool encoder) {
    const Spec &spec = world.spec;
    if (!stages.empty()) return;
    std::vector<StageBuffers> made(static_cast<size_t>(spec.stages));
    int64_t height = spec.latent_height() << (spec.stages - 1), width = spec.latent_width() << (spec.stages - 1);
    if (encoder) input.make(height, width, PIXEL_CHANNELS);
    else input.make(spec.latent_height(), spec.latent_width(), spec.latent_channels);
    for (int64_t i = 0; i < spec.stages; i++, height /= 2, width /= 2)
        for (auto *image : {&made[static_cast<size_t>(i)].x, &made[static_cast<size_t>(i)].relu,
                            &made[static_cast<size_t>(i)].hidden})
            image->make(height, width, spec.widths[i]);
    stages = std::move(made);
}

} // namespace

void decode(dreamloop_world &world, const float *latent, uint8_t *pixels, int64_t row_bytes) {
    const Spec &spec = world.spec;
    const Autoencoder &weights = world.autoencoder;
    make(world, world.decoder, world.decoder_input, false);
    Image<float> &input = world.decoder_input;
    for (int64_t c = 0; c < input.channels; c++)
        for (int64_t y = 0; y < input.height; y++)
            for (int64_t x = 0; x < input.width; x++)
                input.pixels()[y * input.row() + x * input.channels + c] =
                    latent[(c * input.height + y) * input.width + x] * weights.deviation.get()[c] + weights.mean.get()[c];
    auto &stages = world.decoder;
    stem(world, weights.decoder_stem, input, stages.back());
    for (size_t i = stages.size(); i-- > 0;) {
        residual_blocks(world, weights.decoder[i], stages[i]);
        if (i > 0) up(world, weights.decoder[i], stages[i], stages[i - 1]);
    }
    const Image<float> &last = stages[0].relu;
    const Taps taps(last);
    auto head = convolution(weights.decoder_head, last, taps, 1, last.height, last.width);
    head.pixels = pixels, head.pixel_row_bytes = row_bytes, head.height = spec.frame_height, head.width = spec.frame_width;
    run(world, head, last);
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
        auto down = convolution(weights.encoder[i].down, stages[i].x, taps, 2, stages[i + 1].x.height, stages[i + 1].x.width);
        write_to(down, stages[i + 1].x);
        relu_to(down, stages[i + 1].relu);
        run(world, down, stages[i + 1].x);
    }
    const Image<float> &last = stages.back().relu;
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
