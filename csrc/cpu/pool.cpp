/* See pool.h. */
#include "pool.h"

#include <unistd.h>

namespace dreamloop {

namespace {

constexpr int SPINS = 2000; /* 20 to 80 microseconds: longer than the serial part between two phases */
constexpr int64_t MOST_TASKS = 0xffff;

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

uint32_t tasks_of(uint64_t state) { return state >> 16 & 0xffff; }
uint32_t next_of(uint64_t state) { return state & 0xffff; }

} // namespace

Pool::Pool(int threads) : owner_(getpid()) {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int i = 1; i < threads; i++) workers_.emplace_back([this] { work(); });
}

Pool::~Pool() {
    const bool forked = owner_ != getpid();
    stopping_.store(true);
    phase_.fetch_add(1);
    if (!forked) phase_.notify_all();
    for (auto &worker : workers_) forked ? worker.detach() : worker.join();
}

/* Runs one task of the current phase; false when none is left to take. */
bool Pool::take() {
    uint64_t state = state_.load(std::memory_order_acquire);
    for (;;) {
        if (next_of(state) >= tasks_of(state)) return false;
        /* if these belong to a later phase, so does the state, and the exchange fails */
        const Call call = call_.load(std::memory_order_relaxed);
        const void *body = body_.load(std::memory_order_relaxed);
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire))
            continue;
        call(body, next_of(state));
        if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == tasks_of(state)) done_.notify_one();
        return true;
    }
}

void Pool::work() {
    for (;;) {
        const uint32_t phase = phase_.load();
        if (stopping_.load()) return;
        while (take()) {
        }
        for (int i = 0; i < SPINS && phase_.load(std::memory_order_acquire) == phase; i++) pause();
        phase_.wait(phase);
    }
}

void Pool::run_erased(int64_t tasks, Call call, const void *body) {
    if (workers_.empty() || tasks <= 1) {
        for (int64_t i = 0; i < tasks; i++) call(body, i);
        return;
    }
    for (int64_t first = 0; first < tasks; first += MOST_TASKS) {
        struct Part {
            Call call;
            const void *body;
            int64_t first;
        } const part{call, body, first};
        const auto count = static_cast<uint32_t>(tasks - first < MOST_TASKS ? tasks - first : MOST_TASKS);
        call_.store([](const void *it, int64_t i) {
            const Part *p = static_cast<const Part *>(it);
            p->call(p->body, p->first + i);
        }, std::memory_order_relaxed);
        body_.store(&part, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        const uint64_t phase = phase_.load(std::memory_order_relaxed) + 1;
        state_.store(phase << 32 | static_cast<uint64_t>(count) << 16, std::memory_order_release);
        phase_.fetch_add(1);
        phase_.notify_all();
        while (take()) {
        }
        for (int i = 0; i < SPINS && done_.load(std::memory_order_acquire) != count; i++) pause();
        for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != count;) done_.wait(done);
    }
}

} // namespace dreamloop
