/* How fast this machine multiplies: the limit that `dreamloop bench` compares a frame with.
 *
 * The product kernel itself, on rows and weights that stay in the first two caches, on every thread of the world at
 * once, in one precision: the best of several short runs, in operations (a multiplication and an addition are two) a
 * second.
 */
#include <algorithm>
#include <chrono>

#include "world.h"

namespace dreamloop {

double measure_limit(dreamloop_world &world, int format) {
    constexpr int64_t ROWS = 120, DEPTH = 256, REPEATS = 20, RUNS = 40;
    const int64_t columns = 2 * world.kernels->panel, threads = world.pool->threads();
    Layer layer;
    layer.format = format, layer.columns = columns, layer.depth = DEPTH;
    layer.weights.at_least(columns * DEPTH * 4);
    layer.column_scale.at_least(columns), layer.column_sum.at_least(columns);
    Array<float> a(ROWS * DEPTH), out(threads * ROWS * columns), scale(1);
    Array<int32_t> zero(1);
    dreamloop_product call = product_of(layer, ROWS);
    call.a = a.get(), call.a_x = DEPTH, call.out_x = columns, call.row_scale = scale.get(), call.row_zero = zero.get();
    double best = 0;
    for (int64_t i = 0; i < RUNS; i++) {
        const auto began = std::chrono::steady_clock::now();
        world.pool->run(threads, [&](int64_t task) {
            dreamloop_product own = call;
            own.out = out.get() + task * ROWS * columns;
            for (int64_t repeat = 0; repeat < REPEATS; repeat++) world.kernels->product(&own, 0, ROWS, 0, 2);
        });
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
        best = std::max(best, static_cast<double>(2 * ROWS * DEPTH * columns * REPEATS * threads) / took.count());
    }
    return best;
}

} // namespace dreamloop
