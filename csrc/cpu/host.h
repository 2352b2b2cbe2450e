/* The host's part of a pass, made in C++ for programs without Python; see host.cpp. */
#ifndef DREAMLOOP_HOST_H
#define DREAMLOOP_HOST_H

#include "world.h"

namespace dreamloop {

/* What the pointers of `dreamloop_pass_inputs` point into; kept from frame to frame. */
struct Host {
    Array<float> condition, turns, noise;
    int64_t slot = 0;
    std::vector<int64_t> held;
    std::vector<int32_t> block_index, block_count, block_length, block_kept;
};

/* Everything of `in` but ring, previous and x, for one player about to make `frame` (>= 1). */
void make_inputs(const Spec &spec, uint64_t seed, int64_t frame, const float *action, int index, Host &host,
                 dreamloop_pass_inputs &in);

/* `count` standard normals of pass `index` of a frame. */
void normal_noise(uint64_t seed, uint64_t frame, int64_t count, int index, float *out);

} // namespace dreamloop
#endif
