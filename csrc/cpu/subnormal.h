// Arithmetic whose results are no subnormal numbers, those so small that they lose digits (of f32 below 1.2e-38). x86 takes a
// hundred times as long to make one or to multiply it, and gradients that vanish over a few hundred steps come to nothing else.
#pragma once
#include <atomic>
#include <thread>
#include <vector>

#include "team.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_rnn::cpu {

// How a thread rounds and what it makes of such numbers.
#if defined(__x86_64__)
inline unsigned float_control() { return _mm_getcsr(); }
inline void set_float_control(unsigned bits) { _mm_setcsr(bits); }
constexpr unsigned kNoSubnormals = _MM_FLUSH_ZERO_ON;
#else  // other CPUs are as fast with them
inline unsigned float_control() { return 0; }
inline void set_float_control(unsigned) {}
constexpr unsigned kNoSubnormals = 0;
#endif

// While it lives, on this thread, they become zero. As operands they count, for what comes from outside: f16 is widened by way of
// them, too.
class NoSubnormals {
  public:
    NoSubnormals() : before_(float_control()) { set_float_control(before_ | kNoSubnormals); }
    ~NoSubnormals() { set_float_control(before_); }
    NoSubnormals(const NoSubnormals&) = delete;
    NoSubnormals& operator=(const NoSubnormals&) = delete;

  private:
    const unsigned before_;
};

// The same on all threads of a pool, for products that BLAS makes on them.
class NoSubnormalsOnPool {
  public:
    explicit NoSubnormalsOnPool(const Pool& pool) : pool_(pool), threads_(static_cast<size_t>(pool.threads)) {
        if (kNoSubnormals == 0) return;
        each_thread([&](int64_t k) {
            const unsigned before = float_control();
            if ((before | kNoSubnormals) == before) return;
            threads_[static_cast<size_t>(k)] = {std::this_thread::get_id(), before};
            set_float_control(before | kNoSubnormals);
            ++changed_;
        });
    }
    ~NoSubnormalsOnPool() {
        // A pool that shares its work otherwise each time is asked again.
        for (int tries = 0; changed_ > 0 && tries < 1000; ++tries) {
            each_thread([&](int64_t) {
                for (Thread& thread : threads_) {
                    if (thread.id != std::this_thread::get_id() || thread.restored) continue;
                    set_float_control(thread.before);
                    thread.restored = true;  // nobody else looks
                    --changed_;
                }
            });
        }
    }
    NoSubnormalsOnPool(const NoSubnormalsOnPool&) = delete;
    NoSubnormalsOnPool& operator=(const NoSubnormalsOnPool&) = delete;

  private:
    struct Thread {
        std::thread::id id;
        unsigned before = 0;
        bool restored = false;
    };

    // f(k) on each that the pool gives, another k for each call.
    template <class Function>
    void each_thread(const Function& f) const {
        pool_.split(pool_.threads, pool_.threads, [&](int64_t begin, int64_t) { f(begin); });
    }

    const Pool pool_;
    std::vector<Thread> threads_;
    std::atomic<int> changed_{0};
};

}  // namespace fused_rnn::cpu
