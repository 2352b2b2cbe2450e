/* dreamloop.runtime._kernels: numpy arrays in, the C interface out. The only file that knows pybind11.
 *
 * Everything that a kernel takes on trust is checked here, once per call: types, shapes, strides,
 * every listed block. The lists are copied as they are checked, so another thread that changes them
 * while the kernel runs without the interpreter's lock cannot lead it out of bounds.
 */
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "dreamloop.h"
#include "kernels.h"

namespace py = pybind11;

namespace {

[[noreturn]] void refuse(const std::string &message) { throw py::value_error(message); }

std::string shape_of(const py::array &array) { return py::str(array.attr("shape")); }

void check_shape(const py::array &array, const char *name, const std::vector<py::ssize_t> &expected) {
    const bool same = array.ndim() == static_cast<py::ssize_t>(expected.size()) &&
                      std::equal(expected.begin(), expected.end(), array.shape());
    if (same) return;
    std::string wanted;
    for (const auto size : expected) wanted += (wanted.empty() ? "" : ", ") + std::to_string(size);
    refuse(std::string(name) + " has shape " + shape_of(array) + ", expected (" + wanted + ")");
}

/* A (B, H, tokens, D) float32 array as the kernels take it: D contiguous, other strides free. */
void check_tensor(const py::array &array, const char *name, int64_t stride[3]) {
    if (!array.dtype().equal(py::dtype::of<float>()))
        refuse(std::string(name) + " is " + std::string(py::str(array.dtype())) + ", expected float32");
    if (array.ndim() != 4) refuse(std::string(name) + " has shape " + shape_of(array) + ", expected (B, H, tokens, D)");
    const auto item = static_cast<py::ssize_t>(sizeof(float));
    if (array.strides(3) != item && array.shape(3) > 1)
        refuse(std::string(name) + " must be contiguous along its last axis");
    for (int axis = 0; axis < 3; axis++) {
        if (array.strides(axis) % item != 0) refuse(std::string(name) + " has a stride that is no whole float");
        stride[axis] = array.strides(axis) / item;
    }
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(float) != 0)
        refuse(std::string(name) + " is not aligned to a float");
}

/* First and last byte + 1 that a non-empty tensor may touch. */
std::pair<std::intptr_t, std::intptr_t> extent(const py::array &array) {
    auto low = reinterpret_cast<std::intptr_t>(array.data()), high = low + array.itemsize();
    for (py::ssize_t axis = 0; axis < array.ndim(); axis++) {
        const auto span = (array.shape(axis) - 1) * array.strides(axis);
        (span < 0 ? low : high) += span;
    }
    return {low, high};
}

void check_apart(const py::array &out, const py::array &input, const char *name) {
    const auto a = extent(out), b = extent(input);
    if (a.first < b.second && b.first < a.second) refuse(std::string("out overlaps ") + name);
}

/* A contiguous private copy of an int32 array of the given rank whose leading sizes are 1 or as given. */
void copy_list(const py::array &array, const char *name, const std::vector<py::ssize_t> &most, size_t broadcast,
               std::vector<int32_t> &to) {
    if (!array.dtype().equal(py::dtype::of<int32_t>()))
        refuse(std::string(name) + " is " + std::string(py::str(array.dtype())) + ", expected int32");
    auto expected = most;
    for (size_t axis = 0; axis < broadcast && static_cast<py::ssize_t>(axis) < array.ndim(); axis++)
        if (array.shape(axis) == 1) expected[axis] = 1;
    check_shape(array, name, expected);
    const auto packed = py::array_t<int32_t, py::array::c_style | py::array::forcecast>::ensure(array);
    if (!packed) throw py::error_already_set();
    to.assign(packed.data(), packed.data() + packed.size());
}

/* Every list of the plan: in range, nothing twice, something to read. */
void check_lists(const dreamloop_attention &call) {
    std::vector<int64_t> seen(call.key_blocks, -1);
    const int64_t lists = call.list_players * call.list_heads * call.query_blocks;
    for (int64_t player = 0; player < call.length_players; player++)
        for (int64_t block = 0; block < call.key_blocks; block++) {
            const int32_t length = call.block_length[player * call.key_blocks + block];
            if (length < 0 || length > call.block_tokens)
                refuse("block_length " + std::to_string(length) + " of block " + std::to_string(block) +
                       " must be 0.." + std::to_string(call.block_tokens));
        }
    for (int64_t list = 0; list < lists; list++) {
        const int32_t *index = call.block_index + list * call.max_blocks, count = call.block_count[list];
        const std::string row = " of query block " + std::to_string(list % call.query_blocks);
        if (count < 1 || count > call.max_blocks)
            refuse("block_count " + std::to_string(count) + row + " must be 1.." + std::to_string(call.max_blocks));
        for (int32_t i = 0; i < count; i++) {
            if (index[i] < 0 || index[i] >= call.key_blocks)
                refuse("block_index " + std::to_string(index[i]) + row + " must be 0.." +
                       std::to_string(call.key_blocks - 1));
            if (seen[index[i]] == list) refuse("block_index " + std::to_string(index[i]) + row + " stands twice");
            seen[index[i]] = list;
        }
        /* one shared list may serve many players, each with its own lengths */
        const int64_t owner = list / (call.list_heads * call.query_blocks);
        const int64_t first = call.list_players > 1 && call.length_players > 1 ? owner : 0;
        const int64_t last = call.list_players > 1 ? first : call.length_players - 1;
        for (int64_t player = first; player <= last; player++) {
            int64_t keys = 0;
            for (int32_t i = 0; i < count; i++) keys += call.block_length[player * call.key_blocks + index[i]];
            if (keys == 0) refuse("the list" + row + " names no written token");
        }
    }
}

/* The three arrays of a plan, copied; the copies keep their room from one frame to the next. */
struct Lists {
    std::vector<int32_t> index, count, length, kept;
    int64_t players = 1, heads = 1, length_players = 1, max_blocks = 1;

    void read(const py::array &block_index, const py::array &block_count, const py::array &block_length,
              py::ssize_t batch, py::ssize_t all_heads, py::ssize_t query_blocks, py::ssize_t key_blocks) {
        max_blocks = block_index.ndim() == 4 ? block_index.shape(3) : 1;
        copy_list(block_index, "block_index", {batch, all_heads, query_blocks, max_blocks}, 2, index);
        copy_list(block_count, "block_count", {batch, all_heads, query_blocks}, 2, count);
        copy_list(block_length, "block_length", {batch, key_blocks}, 1, length);
        if (block_count.shape(0) != block_index.shape(0) || block_count.shape(1) != block_index.shape(1))
            refuse("block_count has shape " + shape_of(block_count) + ", block_index " + shape_of(block_index));
        players = block_index.shape(0), heads = block_index.shape(1), length_players = block_length.shape(0);
    }

    /* block_kept of top_k: at least 1, at most block_count; that part of the list must name a written token. */
    void read_kept(const py::array &block_kept, py::ssize_t batch, py::ssize_t all_heads, py::ssize_t query_blocks) {
        copy_list(block_kept, "block_kept", {batch, all_heads, query_blocks}, 2, kept);
        if (kept.size() != count.size()) refuse("block_kept has shape " + shape_of(block_kept));
        for (size_t i = 0; i < kept.size(); i++)
            if (kept[i] < 1 || kept[i] > count[i])
                refuse("block_kept " + std::to_string(kept[i]) + " must be 1.." + std::to_string(count[i]));
    }

    void give(dreamloop_attention &call) const {
        call.block_index = index.data(), call.block_count = count.data(), call.block_length = length.data();
        call.list_players = players, call.list_heads = heads, call.length_players = length_players;
        call.max_blocks = max_blocks;
    }
};

int tier_of(const std::string &name) {
    for (int tier = 0; tier < DREAMLOOP_TIERS; tier++)
        if (name == dreamloop_tier_name(tier) && dreamloop_tier_usable(tier)) return tier;
    refuse("instruction tier '" + name + "' cannot run here");
}

py::list usable_tiers() {
    py::list names;
    for (int tier = 0; tier < DREAMLOOP_TIERS; tier++)
        if (dreamloop_tier_usable(tier)) names.append(dreamloop_tier_name(tier));
    return names;
}

void block_sparse_attention(const py::array &query, const py::array &key, const py::array &value,
                            const py::array &block_index, const py::array &block_count, const py::array &block_length,
                            py::ssize_t block_tokens, float scale, py::array &out, const std::string &isa) {
    dreamloop_attention call{};
    const int tier = tier_of(isa);
    check_tensor(query, "query", call.query_stride);
    check_tensor(key, "ring_keys", call.key_stride);
    check_tensor(value, "ring_values", call.value_stride);
    check_tensor(out, "out", call.out_stride);
    if (!out.writeable()) refuse("out is read-only");
    const auto batch = query.shape(0), heads = query.shape(1), tokens = query.shape(2), head_size = query.shape(3);
    if (batch < 1 || heads < 1 || tokens < 1 || head_size < 8 || head_size % 8 != 0)
        refuse("query has shape " + shape_of(query) + "; none may be empty and D must be a multiple of 8");
    if (block_tokens < 1 || key.shape(2) < 1 || key.shape(2) % block_tokens != 0)
        refuse("ring_keys holds " + std::to_string(key.shape(2)) + " tokens, expected a multiple of block_tokens=" +
               std::to_string(block_tokens));
    const auto key_blocks = key.shape(2) / block_tokens, query_blocks = (tokens - 1) / block_tokens + 1;
    check_shape(key, "ring_keys", {batch, heads, key.shape(2), head_size});
    check_shape(value, "ring_values", {batch, heads, key.shape(2), head_size});
    check_shape(out, "out", {batch, heads, tokens, head_size});
    check_apart(out, query, "query");
    check_apart(out, key, "ring_keys");
    check_apart(out, value, "ring_values");

    Lists lists;
    lists.read(block_index, block_count, block_length, batch, heads, query_blocks, key_blocks);
    call.batch = batch, call.heads = heads, call.tokens = tokens, call.head_size = head_size;
    call.block_tokens = block_tokens, call.key_blocks = key_blocks;
    call.query_blocks = query_blocks;
    lists.give(call);
    call.query = static_cast<const float *>(query.data()), call.key = static_cast<const float *>(key.data());
    call.value = static_cast<const float *>(value.data()), call.out = static_cast<float *>(out.mutable_data());
    call.scale = scale;
    check_lists(call);

    std::vector<float> scratch(static_cast<size_t>(DREAMLOOP_TILE_KEYS * head_size));
    py::gil_scoped_release unlocked;
    dreamloop_tier_kernels(tier)->attention(&call, scratch.data());
}

/* A contiguous array of exactly this type and shape; `write` where it is written to. */
template <typename T>
T *array_of(const py::array &array, const char *name, const std::vector<py::ssize_t> &shape, bool write = false) {
    if (!array.dtype().equal(py::dtype::of<T>()))
        refuse(std::string(name) + " is " + std::string(py::str(array.dtype())) + ", expected " +
               std::string(py::str(py::dtype::of<T>())));
    check_shape(array, name, shape);
    if (!(array.flags() & py::array::c_style)) refuse(std::string(name) + " must be contiguous");
    if (reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) != 0)
        refuse(std::string(name) + " is not aligned to its elements");
    if (write && !array.writeable()) refuse(std::string(name) + " is read-only");
    return static_cast<T *>(const_cast<void *>(array.data()));
}

float *floats(const py::array &array, const char *name, const std::vector<py::ssize_t> &shape, bool write = false) {
    return array_of<float>(array, name, shape, write);
}

/* Pixels (B, H, W, 3) uint8, whole pixels next to each other, rows anywhere further on. */
uint8_t *pixels_of(const py::array &array, const std::vector<py::ssize_t> &shape, bool write) {
    if (!array.dtype().equal(py::dtype::of<uint8_t>()))
        refuse("frames are " + std::string(py::str(array.dtype())) + ", expected uint8");
    check_shape(array, "frames", shape);
    if (array.strides(3) != 1 || array.strides(2) != 3 || array.strides(1) < 3 * shape[2])
        refuse("the pixels of a frame's row must be contiguous, and rows must not overlap");
    if (write && !array.writeable()) refuse("frames are read-only");
    return static_cast<uint8_t *>(const_cast<void *>(array.data()));
}

/* One world on the native engine. Calls release the interpreter's lock; a second thread that calls meanwhile is
 * refused. */
class NativeWorld {
public:
    NativeWorld(const py::buffer &packed, int threads, const std::string &tier, const std::string &precision) {
        const py::buffer_info info = packed.request();
        if (info.itemsize != 1 || info.ndim != 1) refuse("a packed world is bytes");
        const dreamloop_options options{threads, tier.c_str(), precision.c_str()}; /* static scales take a while */
        check([&] { return dreamloop_open(info.ptr, info.size, &options, &world_); });
        dreamloop_describe(world_, &about_);
    }
    ~NativeWorld() { dreamloop_close(world_); }
    NativeWorld(const NativeWorld &) = delete;

    py::dict describe() const {
        py::dict said;
        said["threads"] = about_.threads, said["tier"] = about_.tier, said["precision"] = about_.precision;
        return said;
    }

    int64_t ring_row_bytes() const { return about_.ring_row_bytes; }

    py::dict operations() const {
        py::dict seconds;
        for (int i = 0; i < DREAMLOOP_OPERATIONS; i++)
            seconds[dreamloop_operation_name(i)] = dreamloop_operation_seconds(world_, i);
        return seconds;
    }

    double measure_limit(const std::string &precision) {
        const Busy busy(busy_);
        double operations = 0;
        check([&] { return dreamloop_measure_limit(world_, precision.c_str(), &operations); });
        return operations;
    }

    void pass(const py::array &ring, const py::array &previous, const py::array &x, const py::array &action,
              const py::array &condition, const py::array &cosine, const py::array &sine, const py::array &store_cosine,
              const py::array &store_sine, const py::array &sink_cosine, const py::array &sink_sine,
              const py::array &slot, const py::array &block_index, const py::array &block_count,
              const py::array &block_length, const py::object &block_kept, py::array &z) {
        const Busy busy(busy_);
        const auto &a = about_;
        if (previous.ndim() < 1 || previous.shape(0) < 1) refuse("previous has shape " + shape_of(previous));
        const py::ssize_t b = previous.shape(0), half = a.head_size / 2,
                          key_blocks = a.slots * (a.tokens_padded / a.block_tokens);
        const bool narrow = a.ring_row_bytes != a.head_size * static_cast<int64_t>(sizeof(float));
        const std::vector<py::ssize_t> latent{b, a.latent_channels, a.latent_height, a.latent_width},
            turn{b, a.tokens, half}, sinks{b, a.sink_frames, half};
        dreamloop_pass_inputs in{};
        in.batch = b;
        const py::ssize_t ring_tokens = a.slots * a.tokens_padded;
        in.ring = narrow ? array_of<int8_t>(ring, "ring", {a.layers, 2, b, a.heads, ring_tokens, a.ring_row_bytes}, true)
                         : static_cast<void *>(floats(ring, "ring", {a.layers, 2, b, a.heads, ring_tokens, a.head_size},
                                                      true));
        in.previous = floats(previous, "previous", latent), in.x = floats(x, "x", latent);
        in.action = floats(action, "action", {b, a.actions}),
        in.condition = floats(condition, "condition", {b, a.actions + 24});
        in.cosine = floats(cosine, "cos", turn), in.sine = floats(sine, "sin", turn);
        in.store_cosine = floats(store_cosine, "store_cos", turn),
        in.store_sine = floats(store_sine, "store_sin", turn);
        in.sink_cosine = floats(sink_cosine, "sink_cos", sinks), in.sink_sine = floats(sink_sine, "sink_sin", sinks);
        float *to = floats(z, "z", latent, true);
        if (!slot.dtype().equal(py::dtype::of<int64_t>())) refuse("slot must be int64");
        check_shape(slot, "slot", {b});
        slots_.clear();
        for (py::ssize_t i = 0; i < b; i++) {
            slots_.push_back(*static_cast<const int64_t *>(slot.data(i)));
            if (slots_.back() < 0 || slots_.back() >= a.slots)
                refuse("slot " + std::to_string(slots_.back()) + " is not one of the ring");
        }
        for (const auto *other : {&ring, &previous, &x}) check_apart(z, *other, "an input");
        lists_.read(block_index, block_count, block_length, b, a.heads, a.query_blocks, key_blocks);
        dreamloop_attention call{};
        call.key_blocks = key_blocks, call.block_tokens = a.block_tokens,
        call.query_blocks = a.query_blocks;
        lists_.give(call);
        check_lists(call);
        if (a.top_blocks > 0) {
            if (block_kept.is_none()) refuse("the plan of this world is top_k, which needs block_kept");
            lists_.read_kept(py::array::ensure(block_kept), b, a.heads, a.query_blocks);
            call.block_count = lists_.kept.data(); /* what is read in any case must hold a written token by itself */
            check_lists(call);
            call.block_count = lists_.count.data();
            in.block_kept = lists_.kept.data();
            if (call.max_blocks > a.slots * a.query_blocks) refuse("block_index names more blocks than there are");
        }
        in.slot = slots_.data(), in.block_index = call.block_index, in.block_count = call.block_count;
        in.block_length = call.block_length, in.list_players = call.list_players, in.list_heads = call.list_heads;
        in.length_players = call.length_players, in.max_blocks = call.max_blocks;
        check([&] { return dreamloop_pass(world_, &in, to); });
    }

    void decode(const py::array &latents, py::array &frames) {
        const Busy busy(busy_);
        const py::ssize_t count = latents.ndim() > 0 ? latents.shape(0) : 0;
        const float *from =
            floats(latents, "latents", {count, about_.latent_channels, about_.latent_height, about_.latent_width});
        uint8_t *to = pixels_of(frames, {count, about_.frame_height, about_.frame_width, 3}, true);
        const py::ssize_t size = about_.latent_channels * about_.latent_height * about_.latent_width;
        const py::ssize_t frame = frames.strides(0), row = frames.strides(1);
        check([&] {
            int code = DREAMLOOP_OK;
            for (py::ssize_t i = 0; i < count && code == DREAMLOOP_OK; i++)
                code = dreamloop_decode(world_, from + i * size, to + i * frame, row);
            return code;
        });
    }

    void encode(const py::array &frames, py::array &latents) {
        const Busy busy(busy_);
        const py::ssize_t count = frames.ndim() > 0 ? frames.shape(0) : 0;
        const uint8_t *from = pixels_of(frames, {count, about_.frame_height, about_.frame_width, 3}, false);
        float *to = floats(latents, "latents",
                           {count, about_.latent_channels, about_.latent_height, about_.latent_width}, true);
        const py::ssize_t size = about_.latent_channels * about_.latent_height * about_.latent_width;
        const py::ssize_t frame = frames.strides(0), row = frames.strides(1);
        check([&] {
            int code = DREAMLOOP_OK;
            for (py::ssize_t i = 0; i < count && code == DREAMLOOP_OK; i++)
                code = dreamloop_encode(world_, from + i * frame, row, to + i * size);
            return code;
        });
    }

private:
    /* Set and cleared under the interpreter's lock: buffers belong to one call at a time. */
    struct Busy {
        bool &flag;
        explicit Busy(bool &f) : flag(f) {
            if (flag)
                throw std::runtime_error("the engine is busy in another thread; one engine, one thread at a time");
            flag = true;
        }
        ~Busy() { flag = false; }
    };

    template <typename Body> static void check(Body body) {
        int code;
        std::string why;
        {
            py::gil_scoped_release unlocked;
            code = body();
            if (code != DREAMLOOP_OK) why = dreamloop_error();
        }
        if (code == DREAMLOOP_NO_MEMORY) throw std::bad_alloc();
        if (code != DREAMLOOP_OK) refuse(why);
    }

    dreamloop_world *world_ = nullptr;
    dreamloop_description about_{};
    Lists lists_;
    std::vector<int64_t> slots_;
    bool busy_ = false;
};

} // namespace

PYBIND11_MODULE(_kernels, module) {
    module.doc() = "Compiled kernels; use them through dreamloop.runtime.kernels.";
    module.def("usable_tiers", &usable_tiers, "Instruction tiers that run here, slowest first.");
    module.def("block_sparse_attention", &block_sparse_attention, py::arg("query").noconvert(),
               py::arg("key").noconvert(), py::arg("value").noconvert(), py::arg("block_index").noconvert(),
               py::arg("block_count").noconvert(), py::arg("block_length").noconvert(), py::arg("block_tokens"),
               py::arg("scale"), py::arg("out").noconvert(), py::arg("isa"));
    py::class_<NativeWorld>(module, "World")
        .def(py::init<const py::buffer &, int, const std::string &, const std::string &>(), py::arg("packed"),
             py::arg("threads"), py::arg("tier"), py::arg("precision"))
        .def("describe", &NativeWorld::describe)
        .def("ring_row_bytes", &NativeWorld::ring_row_bytes)
        .def("operations", &NativeWorld::operations, "Seconds of each operation of the last pass.")
        .def("measure_limit", &NativeWorld::measure_limit, py::arg("precision"))
        .def("step", &NativeWorld::pass, "One pass; the inputs of `PassInputs`, then the plan's lists, then z.")
        .def("decode", &NativeWorld::decode, py::arg("latents"), py::arg("frames"))
        .def("encode", &NativeWorld::encode, py::arg("frames"), py::arg("latents"));
}
