/* One pass of the diffusion transformer for B players: networks/dit.py in phases of independent tasks.
 *
 *     tokens   h = W_in [ z_(t-1) ; x_t ] + W_a a_t
 *     block    normal -> q k v -> (per head: norm, turn, write to the ring, attend) -> h += gate1 W_o
 *              normal -> gelu W_up -> h += gate2 W_down
 *     output   z_t = z_(t-1) + W_out normal
 *
 * Seven phases a layer, nine in int8. A row of a phase is one token; its arithmetic knows neither the batch
 * nor the thread. The four products of a block read their rows as float32, bf16, or int8 with a scale and a zero of the
 * row's own, made anew for every frame. With static scales whoever makes a row writes its bytes at once, and seven
 * phases are left. Sums, norms and softmax are float32 in every precision; so is the ring, but in int8, where a row has a
 * scale behind it.
 */
#include <algorithm>
#include <chrono>
#include <cmath>

#include "world.h"

namespace dreamloop {

namespace {

constexpr int64_t SMALL_ROWS = 160, TASK_ROWS = 40;

/* (C, h, w) -> tokens, channel-major within a token: move(place in the latent, token, place in the token). */
template <typename Move> void each_latent(const Spec &spec, Move move) {
    const int64_t p = spec.patch, columns = spec.columns();
    int64_t from = 0;
    for (int64_t c = 0; c < spec.latent_channels; c++)
        for (int64_t first = 0; first < spec.tokens(); first += columns)
            for (int64_t y = 0; y < p; y++)
                for (int64_t token = first; token < first + columns; token++)
                    for (int64_t x = 0; x < p; x++) move(from++, token, (c * p + y) * p + x);
}

/* As dreamloop_operation_name names them. */
enum { CONDITION, INPUT, NORM, QKV, ATTENTION, NARROW, OUT, UP, DOWN, OUTPUT };
static_assert(OUTPUT + 1 == DREAMLOOP_OPERATIONS);

struct Pass {
    dreamloop_world &world;
    const Spec &spec;
    PassBuffers &buffer;
    const dreamloop_pass_inputs &in;
    int64_t batch, tokens, rows, width, narrow_bytes = 0;
    int format; /* of the four products of a block */
    bool fixed;  /* static scales of int8 are known */
    bool direct; /* whoever makes a row of a product writes it in its format: bf16, and int8 with static scales */
    std::chrono::steady_clock::time_point now = std::chrono::steady_clock::now();

    Pass(dreamloop_world &w, const dreamloop_pass_inputs &inputs)
        : world(w), spec(w.spec), buffer(w.pass), in(inputs), batch(inputs.batch), tokens(w.spec.tokens()),
          rows(batch * tokens), width(w.spec.width), format(w.precision), fixed(w.ranges.known),
          direct(format == DREAMLOOP_BF16 || fixed) {
        const int64_t heads = batch * spec.heads, d = spec.head_size();
        buffer.tokens.at_least(rows * 2 * spec.token_channels());
        for (auto *array : {&buffer.h, &buffer.normal, &buffer.query, &buffer.attended}) array->at_least(rows * width);
        buffer.qkv.at_least(rows * 3 * width);
        buffer.up.at_least(rows * spec.mlp_width);
        buffer.output.at_least(rows * spec.token_channels());
        narrow_bytes =
            std::max(padded_depth(format, width), padded_depth(format, spec.mlp_width)) * element_bytes(format);
        if (format != DREAMLOOP_F32) buffer.narrow.at_least(rows * narrow_bytes);
        if (format == DREAMLOOP_BF16 || w.static_scales) buffer.narrow_up.at_least(rows * narrow_bytes);
        buffer.row_scale.at_least(rows), buffer.row_zero.at_least(rows);
        buffer.turned.at_least(heads * spec.sink_frames * spec.tokens_padded() * d);
        buffer.scratch.at_least(heads * DREAMLOOP_SCRATCH_ROWS * (d + 32));
        buffer.fresh.at_least(heads * 2 * tokens * d);
        if (spec.plan_policy == TOP_K) {
            const int64_t most = spec.slots() * spec.blocks();
            buffer.mean_query.at_least(heads * d), buffer.mean_scores.at_least(heads * most);
            buffer.chosen.at_least(heads * spec.blocks() * most), buffer.chosen_count.at_least(heads * spec.blocks());
        }
        std::fill_n(w.operation_seconds, DREAMLOOP_OPERATIONS, 0.0);
    }

    void run(const dreamloop_product &call, int64_t count) { run_products(world, call, count); }

    /* What was done since the last of these calls was `operation`. */
    void spent(int operation) {
        const auto later = std::chrono::steady_clock::now();
        world.operation_seconds[operation] += std::chrono::duration<double>(later - now).count();
        now = later;
    }

    void make_tokens() {
        const int64_t channels = spec.token_channels();
        for (int64_t b = 0; b < batch; b++) {
            float *to = buffer.tokens.get() + b * tokens * 2 * channels;
            const float *previous = in.previous + b * spec.latent_size(), *x = in.x + b * spec.latent_size();
            each_latent(spec, [&](int64_t from, int64_t token, int64_t place) {
                to[token * 2 * channels + place] = previous[from];
                to[token * 2 * channels + channels + place] = x[from];
            });
        }
        auto call = linear(world.dynamics.input, rows, buffer.tokens.get(), 2 * channels, buffer.h.get());
        call.bias = buffer.action.get(), call.bias_step = width, call.player_rows = tokens;
        run(call, rows);
    }

    template <typename Body> void each_row(const Body &body) {
        world.pool->run((rows + 3) / 4, [&](int64_t task) {
            for (int64_t row = 4 * task; row < rows && row < 4 * task + 4; row++) body(row);
        });
    }

    /* The static range of an input of a product of a layer; NULL where rows have their own. */
    const Ranges::Range *range_of(int64_t layer, int input) const {
        return fixed ? &world.ranges.rows[static_cast<size_t>(layer * INPUTS + input)] : nullptr;
    }

    /* normal = norm(h) scale + shift, token by token; one player's scale and shift lie `step` apart. */
    void normalise(const float *scale, const float *shift, int64_t step, int to, const Ranges::Range *range) {
        each_row([&](int64_t row) {
            float *normal = buffer.normal.get() + row * width;
            world.kernels->modulate(buffer.h.get() + row * width, width, scale + row / tokens * step,
                                    shift + row / tokens * step, normal);
            narrow(normal, width, row, to, range);
        });
    }

    /* One row in the format of the next product. */
    void narrow(const float *from, int64_t count, int64_t row, int to, const Ranges::Range *range) {
        char *place = buffer.narrow.get() + row * narrow_bytes;
        auto *bytes = reinterpret_cast<uint8_t *>(place);
        if (to == DREAMLOOP_BF16) world.kernels->to_bf16(from, count, reinterpret_cast<uint16_t *>(place));
        if (to == DREAMLOOP_I8 && range)
            world.kernels->to_bytes(from, count, range->inverse, static_cast<float>(range->zero), bytes);
        else if (to == DREAMLOOP_I8)
            world.kernels->quantize(from, count, bytes, buffer.row_scale.get() + row, buffer.row_zero.get() + row);
    }

    /* Rows that a phase before made into the format of the next product, where that is not theirs already: int8 with a
     * scale for a whole row. */
    void narrow_rows(const float *from, int64_t count) {
        if (format == DREAMLOOP_F32 || direct) return;
        each_row([&](int64_t row) { narrow(from + row * count, count, row, format, nullptr); });
        spent(NARROW);
    }

    /* A product of a block, over rows that `narrow` made, or in float32 over `a` itself. */
    dreamloop_product narrow_product(const Layer &layer, int64_t number, int input, const float *a, int64_t a_width,
                                     float *out) {
        dreamloop_product call = linear(layer, rows, a, a_width, out);
        if (layer.format == DREAMLOOP_F32) return call;
        call.a = buffer.narrow.get(), call.a_x = narrow_bytes / element_bytes(layer.format);
        call.row_scale = buffer.row_scale.get(), call.row_zero = buffer.row_zero.get(), call.row_step = 1;
        if (const auto *range = range_of(number, input))
            call.row_scale = &range->scale, call.row_zero = &range->zero, call.row_step = 0;
        else if (world.ranges.watching && format == DREAMLOOP_I8) watch(number, input);
        return call;
    }

    /* The range of an input grows to that of the rows of this frame. */
    void watch(int64_t layer, int input) {
        auto &range = world.ranges.rows[static_cast<size_t>(layer * INPUTS + input)];
        for (int64_t row = 0; row < rows; row++) {
            const float scale = buffer.row_scale.get()[row];
            const auto zero = static_cast<float>(buffer.row_zero.get()[row]);
            range.low = std::min(range.low, -zero * scale);
            range.high = scale == scale ? std::max(range.high, (255.0f - zero) * scale) : INFINITY;
        }
    }

    /* One slot's worth of fresh rows of a head, (2, T, D) floats, into an int8 ring. */
    void to_ring(const float *fresh, char *keys, char *values) {
        const int64_t d = spec.head_size();
        world.kernels->to_narrow(fresh, tokens, d, keys);
        world.kernels->to_narrow(fresh + tokens * d, tokens, d, values);
    }

    /* The sinks' keys, turned to their time at this pass, into `turned` as rows of the ring; scratch: D floats. */
    void turn_sinks(int64_t b, const char *keys, char *turned, float *scratch) {
        const int64_t d = spec.head_size(), half = d / 2, row = row_bytes(world), slot_tokens = spec.tokens_padded();
        for (int64_t sink = 0; sink < spec.sink_frames; sink++) {
            const float *cosine = in.sink_cosine + (b * spec.sink_frames + sink) * half;
            const float *sine = in.sink_sine + (b * spec.sink_frames + sink) * half;
            for (int64_t t = sink * slot_tokens; t < (sink + 1) * slot_tokens; t++) {
                float *to = narrow_ring(world) ? scratch : reinterpret_cast<float *>(turned + t * row);
                if (narrow_ring(world)) world.kernels->from_narrow(keys + t * row, d, to);
                else std::memcpy(to, keys + t * row, static_cast<size_t>(row));
                for (int64_t i = 0; i < half; i++) {
                    const float first = to[i], second = to[half + i];
                    to[i] = first * cosine[i] - second * sine[i];
                    to[half + i] = first * sine[i] + second * cosine[i];
                }
                if (narrow_ring(world)) world.kernels->to_narrow(to, 1, d, turned + t * row);
            }
        }
    }

    /* One head of one player: its keys and values into the ring, then its attention. */
    void attend(int64_t layer, int64_t task) {
        const int64_t b = task / spec.heads, head = task % spec.heads, d = spec.head_size(), row = row_bytes(world);
        const int64_t slot_tokens = spec.tokens_padded(), part = spec.ring_tokens() * row;
        char *keys = static_cast<char *>(in.ring) + (((2 * layer) * batch + b) * spec.heads + head) * part;
        char *values = keys + batch * spec.heads * part;
        const int64_t own = in.slot[b] * slot_tokens * row, angles = b * tokens * (d / 2);
        const Block &block = world.dynamics.blocks[static_cast<size_t>(layer)];
        float *fresh = buffer.fresh.get() + task * 2 * tokens * d;

        dreamloop_heads heads{};
        heads.qkv = buffer.qkv.get() + b * tokens * 3 * width + head * d;
        heads.qkv_stride = 3 * width, heads.part_stride = width, heads.tokens = tokens, heads.head_size = d;
        heads.query_norm = block.query_norm.get(), heads.key_norm = block.key_norm.get();
        heads.cosine = in.cosine + angles, heads.sine = in.sine + angles;
        heads.store_cosine = in.store_cosine + angles, heads.store_sine = in.store_sine + angles;
        heads.query = buffer.query.get() + task * tokens * d;
        heads.key = narrow_ring(world) ? fresh : reinterpret_cast<float *>(keys + own);
        heads.value = narrow_ring(world) ? fresh + tokens * d : reinterpret_cast<float *>(values + own);
        world.kernels->heads(&heads);
        if (narrow_ring(world)) to_ring(fresh, keys + own, values + own);
        float *scratch = buffer.scratch.get() + task * DREAMLOOP_SCRATCH_ROWS * (d + 32);
        char *turned = reinterpret_cast<char *>(buffer.turned.get() + task * spec.sink_frames * slot_tokens * d);
        turn_sinks(b, keys, turned, scratch);

        dreamloop_attention call{};
        call.batch = call.heads = call.list_players = call.list_heads = call.length_players = 1;
        call.tokens = tokens, call.head_size = d, call.scale = 1.0f / std::sqrt(static_cast<float>(d));
        call.block_tokens = spec.block_tokens(), call.query_blocks = spec.blocks();
        call.key_blocks = spec.slots() * spec.slot_blocks(), call.max_blocks = in.max_blocks;
        const int64_t list =
            ((in.list_players > 1 ? b : 0) * in.list_heads + (in.list_heads > 1 ? head : 0)) * call.query_blocks;
        call.block_index = in.block_index + list * in.max_blocks, call.block_count = in.block_count + list;
        call.block_length = in.block_length + (in.length_players > 1 ? b : 0) * call.key_blocks;
        call.query = heads.query, call.format = format, call.key = keys, call.value = values;
        call.turned = turned, call.turned_rows = spec.sink_frames * slot_tokens;
        float *out = buffer.attended.get() + b * tokens * width + head * d;
        call.out = out, call.query_stride[2] = d, call.out_stride[2] = width;
        call.key_stride[2] = call.value_stride[2] = row;
        if (spec.plan_policy == TOP_K) choose_blocks(world, in, task, list, heads.key, in.slot[b], keys, call);
        (format == DREAMLOOP_F32 ? world.kernels->attention : world.kernels->attention_short)(&call, scratch);
        if (direct) narrow_head(out, b, head, range_of(layer, OUT_INPUT));
    }

    /* What a head of a player made, (T, D) at `from`, in the format of the next product. */
    void narrow_head(const float *from, int64_t b, int64_t head, const Ranges::Range *range) {
        const int64_t d = spec.head_size();
        for (int64_t t = 0; t < tokens; t++) {
            char *to = buffer.narrow.get() + (b * tokens + t) * narrow_bytes + head * d * element_bytes(format);
            if (range)
                world.kernels->to_bytes(from + t * width, d, range->inverse, static_cast<float>(range->zero),
                                        reinterpret_cast<uint8_t *>(to));
            else world.kernels->to_bf16(from + t * width, d, reinterpret_cast<uint16_t *>(to));
        }
    }

    void block(int64_t layer) {
        const Block &weights = world.dynamics.blocks[static_cast<size_t>(layer)];
        const float *part = buffer.combined.get() + layer * batch * 6 * width; /* shift1, scale1, gate1, shift2, ... */
        const int64_t step = 6 * width;
        normalise(part + width, part, step, format, range_of(layer, QKV_INPUT));
        spent(NORM);
        run(narrow_product(weights.qkv, layer, QKV_INPUT, buffer.normal.get(), width, buffer.qkv.get()), rows);
        spent(QKV);
        world.pool->run(batch * spec.heads, [&](int64_t task) { attend(layer, task); });
        spent(ATTENTION);
        narrow_rows(buffer.attended.get(), width);
        auto out = narrow_product(weights.out, layer, OUT_INPUT, buffer.attended.get(), width, buffer.h.get());
        out.gate = part + 2 * width, out.gate_step = step, out.player_rows = tokens, out.residual = buffer.h.get();
        run(out, rows);
        spent(OUT);
        normalise(part + 4 * width, part + 3 * width, step, format, range_of(layer, UP_INPUT));
        spent(NORM);
        auto up = narrow_product(weights.up, layer, UP_INPUT, buffer.normal.get(), width, buffer.up.get());
        up.activation = DREAMLOOP_GELU;
        if (direct) { /* straight from the sums, beside their own input */
            up.out = nullptr, up.copy = buffer.narrow_up.get(), up.copy_kind = DREAMLOOP_COPY_BF16;
            up.copy_x = narrow_bytes / element_bytes(format);
        }
        if (const auto *range = range_of(layer, DOWN_INPUT))
            up.copy_kind = DREAMLOOP_COPY_BYTES, up.copy_inverse = range->inverse,
            up.copy_zero = static_cast<float>(range->zero);
        run(up, rows);
        spent(UP);
        narrow_rows(buffer.up.get(), spec.mlp_width);
        auto down = narrow_product(weights.down, layer, DOWN_INPUT, buffer.up.get(), spec.mlp_width, buffer.h.get());
        if (direct) down.a = buffer.narrow_up.get();
        down.gate = part + 5 * width, down.gate_step = step, down.player_rows = tokens, down.residual = buffer.h.get();
        run(down, rows);
        spent(DOWN);
    }

    void finish(float *z) {
        const int64_t channels = spec.token_channels();
        normalise(buffer.final_table.get() + width, buffer.final_table.get(), 2 * width, DREAMLOOP_F32, nullptr);
        run(linear(world.dynamics.output, rows, buffer.normal.get(), width, buffer.output.get()), rows);
        for (int64_t b = 0; b < batch; b++) {
            const float *from = buffer.output.get() + b * tokens * channels;
            const int64_t first = b * spec.latent_size();
            each_latent(spec, [&](int64_t to, int64_t token, int64_t place) {
                z[first + to] = in.previous[first + to] + from[token * channels + place];
            });
        }
    }
};

} // namespace

dreamloop_product product_of(const Layer &layer, int64_t rows) {
    static const int64_t no_offset = 0;
    dreamloop_product call{};
    call.format = layer.format, call.row_length = rows, call.columns = layer.columns;
    call.taps = &no_offset, call.tap_count = layer.taps, call.depth = layer.depth;
    call.weights = layer.weights.get(), call.player_rows = rows;
    if (layer.has_bias) call.bias = layer.bias.get();
    call.column_scale = layer.column_scale.get(), call.column_sum = layer.column_sum.get();
    return call;
}

dreamloop_product linear(const Layer &layer, int64_t rows, const float *a, int64_t a_width, float *out) {
    dreamloop_product call = product_of(layer, rows);
    call.a = a, call.a_x = a_width;
    call.out = out, call.out_x = layer.columns;
    return call;
}

void run_products(dreamloop_world &world, const dreamloop_product *calls, int64_t count, int64_t rows) {
    const dreamloop_kernels &kernels = *world.kernels;
    const int64_t panels = (calls[0].columns + kernels.panel - 1) / kernels.panel;
    if (rows <= SMALL_ROWS && !calls[0].pixels) { /* few rows: every task reads its own weights, once */
        world.pool->run(count * panels, [&](int64_t task) {
            kernels.product(calls + task / panels, 0, rows, task % panels, task % panels + 1);
        });
        return;
    }
    const int64_t parts = (rows + TASK_ROWS - 1) / TASK_ROWS;
    world.pool->run(count * parts, [&](int64_t task) {
        const int64_t first = task % parts * TASK_ROWS, last = first + TASK_ROWS < rows ? first + TASK_ROWS : rows;
        kernels.product(calls + task / parts, first, last, 0, panels);
    });
}

void pass(dreamloop_world &world, const dreamloop_pass_inputs &inputs, float *z) {
    Pass run(world, inputs);
    world.pool->wake();
    make_conditions(world, inputs);
    run.spent(CONDITION);
    run.make_tokens();
    run.spent(INPUT);
    for (int64_t layer = 0; layer < world.spec.layers; layer++) run.block(layer);
    run.finish(z);
    run.spent(OUTPUT);
}

} // namespace dreamloop
