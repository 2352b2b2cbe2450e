/* A world in memory: its numbers, its packed weights, and the buffers that frames are made in.
 *
 * Letters: B players, L layers, H heads, T tokens of a frame, D head size, C latent channels.
 */
#ifndef DREAMLOOP_WORLD_H
#define DREAMLOOP_WORLD_H

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "dreamloop.h"
#include "kernels.h"
#include "pool.h"

namespace dreamloop {

/* What a caller can put right; `code` is one of DREAMLOOP_BAD_*. */
struct Error : std::runtime_error {
    int code;
    Error(int code, const std::string &text) : std::runtime_error(text), code(code) {}
};

/* Zeroed memory, aligned to a cache line; grows, never shrinks. */
template <typename T> class Array {
public:
    Array() = default;
    explicit Array(int64_t size) { at_least(size); }

    /* Room for `size` elements; what was in it is lost when it must grow. */
    T *at_least(int64_t size) {
        if (size > size_) {
            if (size > (int64_t{1} << 40) / static_cast<int64_t>(sizeof(T))) throw std::bad_alloc();
            const auto bytes =
                (static_cast<size_t>(size) * sizeof(T) + 127) & ~size_t{63}; /* one line to read beyond */
            data_.reset(static_cast<T *>(std::aligned_alloc(64, bytes)));
            if (!data_) throw std::bad_alloc();
            std::memset(static_cast<void *>(data_.get()), 0, bytes);
            size_ = size;
        }
        return data_.get();
    }

    T *get() const { return data_.get(); }
    int64_t size() const { return size_; }

private:
    struct Free {
        void operator()(T *p) const { std::free(p); }
    };
    std::unique_ptr<T, Free> data_;
    int64_t size_ = 0;
};

constexpr int MOST_STAGES = 5, MOST_PASSES = 64;

/* Policies of a plan, in the order of PLAN_POLICIES in core/spec.py; core/plan.py says what each is. */
enum { DENSE, WINDOW, RADIAL, TOP_K, POLICIES };

/* The numbers of a world: core/spec.py. */
struct Spec {
    int64_t frame_height, frame_width, latent_channels, stages;
    int64_t widths[MOST_STAGES], encoder_blocks[MOST_STAGES], decoder_blocks[MOST_STAGES];
    int64_t width, layers, heads, mlp_width, patch, passes;
    int64_t window_frames, sink_frames, dilated_frames, dilation, max_age;
    int64_t plan_policy, plan_window_frames, plan_block_tokens, plan_top_blocks;
    int64_t buttons, axes, starts;
    double fps, rope_base, sigmas[MOST_PASSES];
    std::vector<float> axis_limits;
    std::vector<std::string> names;

    int64_t actions() const { return buttons + axes; }
    int64_t downsample() const { return int64_t{4} << (stages - 1); }
    int64_t token_pixels() const { return downsample() * patch; } /* a side */
    int64_t rows() const { return (frame_height + token_pixels() - 1) / token_pixels(); }
    int64_t columns() const { return (frame_width + token_pixels() - 1) / token_pixels(); }
    int64_t latent_height() const { return rows() * patch; }
    int64_t latent_width() const { return columns() * patch; }
    int64_t latent_size() const { return latent_channels * latent_height() * latent_width(); }
    int64_t tokens() const { return rows() * columns(); }
    int64_t token_channels() const { return latent_channels * patch * patch; }
    int64_t head_size() const { return width / heads; }
    int64_t block_tokens() const { return plan_block_tokens ? plan_block_tokens : tokens(); }
    int64_t blocks() const { return (tokens() + block_tokens() - 1) / block_tokens(); }
    /* with top_k, room for one mean key of each block behind the blocks of a slot */
    int64_t slot_blocks() const {
        return blocks() + (plan_policy == TOP_K ? (blocks() + block_tokens() - 1) / block_tokens() : 0);
    }
    int64_t tokens_padded() const { return slot_blocks() * block_tokens(); }
    int64_t slots() const { return sink_frames + dilated_frames + window_frames; }
    int64_t ring_tokens() const { return slots() * tokens_padded(); }
    int64_t condition_size() const { return actions() + 3 * 8; } /* three levels of eight features */
};

/* Weights of one product, packed for one tier and one format. */
struct Layer {
    int format = DREAMLOOP_F32;
    int64_t columns = 0, depth = 0, taps = 1; /* depth: per tap, padded */
    Array<char> weights;
    Array<float> bias, column_scale;
    Array<int32_t> column_sum;
    bool has_bias = false;
};

struct Block {
    Array<float> table, query_norm, key_norm;
    Layer qkv, out, up, down;
};

struct Stage {
    struct Residual {
        Layer first, second;
    };
    std::vector<Residual> blocks;
    Layer down;  /* encoder */
    Layer up[4]; /* decoder: one for each of the four pixels that one becomes */
    bool has_next = false;
};

struct Dynamics {
    Layer input, action, first, second, modulation, output;
    std::vector<Block> blocks;
    Array<float> final_table;
};

struct Autoencoder {
    Layer encoder_stem, encoder_head, decoder_stem, decoder_head;
    std::vector<Stage> encoder, decoder;
    Array<float> mean, deviation;
};

/* Static scales of int8: the range of the input of each product of each block, and the highest value of each image of
 * the decoder, in the order in which they come. `calibrate` finds them; until then `known` is false and every scale is
 * made anew at every frame. */
struct Ranges {
    struct Range {
        float low = 0, high = 0, scale = 1, inverse = 1;
        int32_t zero = 0;
    };
    std::vector<Range> rows;   /* layer * INPUTS + input */
    std::vector<float> images;
    size_t image = 0; /* of `images`, the one that the decoder makes next */
    bool watching = false, known = false;
};
enum { QKV_INPUT, OUT_INPUT, UP_INPUT, DOWN_INPUT, INPUTS };

/* Channels-last pixels in a border of one zero pixel. */
template <typename T> struct Image {
    Array<T> memory;
    int64_t height = 0, width = 0, channels = 0;

    void make(int64_t h, int64_t w, int64_t c) {
        height = h, width = w, channels = c;
        memory.at_least((h + 2) * (w + 2) * c);
    }
    int64_t row() const { return (width + 2) * channels; }
    int64_t first() const { return row() + channels; } /* of pixel (0, 0) */
    T *pixels() const { return memory.get() + first(); }
};

/* relu of an image, in the format of the convolution that reads it. In int8 one scale serves the whole image,
 * since a sum runs over nine of its pixels; it is that of this very frame. */
struct Activation {
    int format = DREAMLOOP_F32;
    Image<float> f32;
    Image<uint16_t> bf16;
    Image<uint8_t> i8;
    float scale = 0;
};

/* What one stage of the autoencoder works in. raw: int8 only, the sums that `hidden` is made from. */
struct StageBuffers {
    Image<float> x, raw;
    Activation relu, hidden;
    Array<float> row_highest;
};

/* Conditions that passes had lately, (A + 24) and (A) floats each, and what became of them; see condition.cpp. */
struct Conditions {
    Array<float> asked, made;
    int64_t count = 0, next = 0;
};

/* Buffers of a pass; they grow to the largest batch seen. */
struct PassBuffers {
    Array<float> tokens, h, normal, qkv, query, turned, attended, up, output, scratch, fresh;
    Array<float> mean_query, mean_scores;                /* top_k: per head of a player */
    Array<int32_t> chosen, chosen_count;
    Array<uint16_t> silu_bf16;
    Array<char> narrow, narrow_up; /* rows in bf16 or int8, as the next product reads them; narrow_up: of the MLP */
    Array<float> row_scale;
    Array<int32_t> row_zero;
    Array<float> action, silu, combined, final_table;
};

} // namespace dreamloop

/* The handle of the C interface. */
struct dreamloop_world {
    dreamloop::Spec spec;
    int tier = 0, precision = DREAMLOOP_F32; /* precision: the format of the products */
    bool static_scales = false;
    const char *precision_name = "fp32";
    double operation_seconds[DREAMLOOP_OPERATIONS] = {}; /* of the last pass */
    const dreamloop_kernels *kernels = nullptr;
    std::unique_ptr<dreamloop::Pool> pool;
    dreamloop::Dynamics dynamics;
    dreamloop::Autoencoder autoencoder;
    dreamloop::Array<uint8_t> starts;
    dreamloop::PassBuffers pass;
    dreamloop::Conditions conditions;
    std::vector<dreamloop::StageBuffers> decoder, encoder;
    dreamloop::Image<float> decoder_input, encoder_input;
    dreamloop::Array<float> encoded;
    dreamloop::Ranges ranges;
    uint8_t identity[32] = {}; /* SHA-256 of the world that was packed */
};

namespace dreamloop {

/* load.cpp: fills spec and weights from the bytes of a packed world, or throws `Error`. */
void load(dreamloop_world &world, const uint8_t *bytes, int64_t size);

/* dynamics.cpp, autoencoder.cpp: arguments as in dreamloop.h, already checked. */
void pass(dreamloop_world &world, const dreamloop_pass_inputs &inputs, float *z);
void decode(dreamloop_world &world, const float *latent, uint8_t *pixels, int64_t row_bytes);
void encode(dreamloop_world &world, const uint8_t *pixels, int64_t row_bytes, float *latent);

/* choice.cpp: top_k. The mean keys of this frame, whose rows lie at `fresh` (T, D), into slot `slot` of `keys`, one
 * head's part of a layer of the ring; then the lists of `call` become the choice of its queries. `task` owns a part of
 * the buffers. */
void choose_blocks(dreamloop_world &world, const dreamloop_pass_inputs &in, int64_t task, int64_t list,
                   const float *fresh, int64_t slot, char *keys, dreamloop_attention &call);

/* calibrate.cpp: plays the world by itself and fixes the ranges of int8. */
void calibrate(dreamloop_world &world);

/* Bytes of one row of the ring: D floats, or, in int8, D int8 and the float32 scale of the row. */
inline bool narrow_ring(const dreamloop_world &world) { return world.precision == DREAMLOOP_I8; }
inline int64_t row_bytes(const dreamloop_world &world) {
    return narrow_ring(world) ? world.spec.head_size() + 4 : 4 * world.spec.head_size();
}

/* limit.cpp: operations a second of products in `format`, on all threads of the world. */
double measure_limit(dreamloop_world &world, int format);

/* condition.cpp: the action's part of the tokens, and scales, shifts and gates, into the buffers of the pass. */
void make_conditions(dreamloop_world &world, const dreamloop_pass_inputs &inputs);

/* A product over all its rows and columns, on all threads. `calls`: several that may run side by side. */
void run_products(dreamloop_world &world, const dreamloop_product *calls, int64_t count, int64_t rows);
inline void run_products(dreamloop_world &world, const dreamloop_product &call, int64_t rows) {
    run_products(world, &call, 1, rows);
}

/* Elements of depth that make one 32-bit lane of a format, and bytes of an element. */
inline int64_t lane_elements(int format) { return format == DREAMLOOP_I8 ? 4 : format == DREAMLOOP_BF16 ? 2 : 1; }
inline int64_t element_bytes(int format) { return 4 / lane_elements(format); }
inline int64_t padded_depth(int format, int64_t depth) {
    return (depth + lane_elements(format) - 1) / lane_elements(format) * lane_elements(format);
}

/* A product with the weights of a layer; the caller fills in `a` and where results go. */
dreamloop_product product_of(const Layer &layer, int64_t rows);

/* A linear layer from contiguous float rows to contiguous float rows. */
dreamloop_product linear(const Layer &layer, int64_t rows, const float *a, int64_t a_width, float *out);

} // namespace dreamloop
#endif
