/* A few threads that share the tasks of one phase after another, thousands of phases a second.
 *
 * A task is taken by raising one 64-bit word (phase, tasks, next task) with a compare-and-swap, so a thread
 * that the system lets run late takes nothing and nobody waits for it: on a busy machine the caller does all
 * the work itself. Between phases a thread spins for some microseconds, then sleeps.
 *
 * Which thread runs a task is chance. Tasks write disjoint memory and know nothing of threads, so
 * results do not depend on it.
 */
#ifndef DREAMLOOP_POOL_H
#define DREAMLOOP_POOL_H

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace dreamloop {

class Pool {
public:
    /* threads: 1 or more, the caller's own included. */
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    /* body(i) for every i < tasks, in any order, on any thread; returns when all are done. `body` must not throw. */
    template <typename Body> void run(int64_t tasks, const Body &body) {
        run_erased(tasks, [](const void *it, int64_t i) { (*static_cast<const Body *>(it))(i); }, &body);
    }

    /* Work is near: threads that sleep begin to wake while the caller prepares it. */
    void wake() {
        if (workers_.empty()) return;
        phase_.fetch_add(1);
        phase_.notify_all();
    }

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

private:
    using Call = void (*)(const void *, int64_t);
    void run_erased(int64_t tasks, Call call, const void *body);
    void work();
    bool take();

    std::atomic<uint64_t> state_{0};   /* phase << 32 | tasks << 16 | next task */
    std::atomic<uint32_t> phase_{0};   /* what sleepers watch */
    std::atomic<uint32_t> done_{0};    /* finished tasks of this phase */
    std::atomic<bool> stopping_{false};
    std::atomic<Call> call_{nullptr};
    std::atomic<const void *> body_{nullptr};
    int64_t owner_;                    /* process that made the threads: a fork has none of them */
    std::vector<std::thread> workers_;
};

} // namespace dreamloop
#endif
