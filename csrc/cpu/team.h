// Threads that work on one time loop together, and how the loop is shared among them.
//
// A loop whose units are split needs all its threads at every step. A thread pool promises no such
// thing: nested regions run serially, and a worker may be late because somebody else has its core.
// So a team is formed at the start from whoever has arrived, and closed; a late worker finds it
// closed and goes home. The result is the same bits for every team.
#pragma once
#include <atomic>
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace fused_rnn::cpu {

// A number that others wait for.
class Awaited {
  public:
    int32_t value() const { return value_.load(std::memory_order_acquire); }
    void set(int32_t value);
    // Until `done(value)`.
    template <class Done>
    void wait(const Done& done) const;

  private:
    std::atomic<int32_t> value_{0};
    mutable std::atomic<int32_t> sleepers_{0};
    std::atomic<int64_t> told_ns_{0};  // when it was set while somebody slept
};

struct alignas(64) Barrier {
    explicit Barrier(int members) : members(members) {}
    const int members;
    std::atomic<int> arrived{0};
    std::atomic<bool> broken{false};  // a member has gone for good
    Awaited epoch;
};
// Nobody waits any more.
void barrier_break(Barrier* barrier);

// How far a layer is, for the layer above it. One writes, one reads.
struct alignas(64) Progress {
    Awaited pieces;
};

// The thread pool of whoever calls: run(n, body, context) splits [0, n) over its threads, a call of
// body per contiguous part, as at::parallel_for does.
struct Pool {
    int threads;  // to use where they meet again and again
    int all;      // and where each goes its own way to the end
    void (*run)(int64_t n, void (*body)(void*, int64_t begin, int64_t end), void* context);

    // body(begin, end) over [0, n) in at most `most` parts.
    template <class Body>
    void split(int64_t n, int64_t most, const Body& body) const {
        const int64_t parts = threads < most ? threads : most;
        if (parts <= 1 || n <= 1) return n > 0 ? body(int64_t(0), n) : void();
        struct Context {
            const Body* body;
            int64_t n, parts;
        } context{&body, n, parts < n ? parts : n};
        run(
            context.parts,
            [](void* c, int64_t begin, int64_t end) {
                const auto* ctx = static_cast<Context*>(c);
                (*ctx->body)(ctx->n* begin / ctx->parts, ctx->n * end / ctx->parts);
            },
            &context);
    }
};

// Threads at the same work, each of which makes the same calls in the same order: the members of a team; or, where one
// thread makes the calls, those of its pool.
class Crew {
  public:
    Crew() = default;  // one thread
    explicit Crew(const Pool& pool) : pool_(&pool) {}
    Crew(int member, int members, Barrier* barrier) : member_(member), members_(members), barrier_(barrier) {}

    // body(begin, end) over [0, n) in at most `most` parts. What a part writes is there for all after wait().
    template <class Body>
    void share(int64_t n, int64_t most, const Body& body) const {
        if (pool_) return pool_->split(n, most, body);
        int64_t parts = members_ < most ? members_ : most;
        parts = parts < n ? parts : n;
        if (parts <= 1) return member_ == 0 && n > 0 ? body(int64_t(0), n) : void();
        if (member_ < parts) body(n * member_ / parts, n * (member_ + 1) / parts);
    }
    void wait() const {
        if (barrier_) barrier_wait(barrier_);
    }
    template <class Body>
    void split(int64_t n, int64_t most, const Body& body) const {
        share(n, most, body);
        wait();
    }

  private:
    const Pool* pool_ = nullptr;
    int member_ = 0, members_ = 1;
    Barrier* barrier_ = nullptr;
};

// The size of a loop, from which its division follows.
struct LoopSize {
    int64_t directions;
    int64_t rows;          // of the batch
    int64_t panels;        // that units can be split into
    int64_t weight_bytes;  // of one direction, as packed
    int64_t steps;
    int64_t flops_per_step;  // of one direction, in multiply-adds of f32 that would take as long
    int64_t exchanged = 0;   // bytes of a row that threads which share units hand each other at a step
    // Of what a crew does around the steps, all of it; then all threads come, though some may have no part in the loop.
    int64_t flops_around = 0;
    int64_t layers = 1;  // alike, of one direction, that threads walk side by side, each a piece after the one below
};

struct Division {
    int threads;     // worth using, all directions together
    int directions;  // run side by side
    int row_parts;   // of the batch, in each direction
    int unit_parts;  // of the units, in each row part; above 1 needs a barrier
    int layers = 1;  // side by side; above 1 nothing else is divided
};

// Chooses for at most `threads`; plain arithmetic, no machine state.
Division divide_loop(const LoopSize& size, int threads);

// How many of the pool's threads a loop may be divided for.
int threads_for(const LoopSize& size, const Pool& pool);

// Whether `layers` of that size had better be walked side by side than one after the other.
bool side_by_side_pays(const LoopSize& layer, int64_t layers, int threads);
// Of a piece of time, then.
int64_t steps_side_by_side(int64_t steps, int64_t rows);

// One thread's work: direction and slice, and those it may share other work with.
struct Share {
    int direction;  // -1: all of them, one after the other
    Slice slice;
    Crew crew = {};
    int layer = 0, layers = 1;  // this and every `layers`-th after it
};

// Forms a team on the pool and calls work(share) in each of its threads. What one of them throws the pool hands on, as
// at::parallel_for does; until then the others go on without it, on whatever they find.
using Work = void (*)(void* context, const Share& share);
void run_loop(const Pool& pool, const LoopSize& size, Work work, void* context);

}  // namespace fused_rnn::cpu
