// The GPU of device.cuh on the CPU, so that the kernels' own source runs, and is checked, where there is none: a thread of
// a block is a thread (or a fiber), a barrier a barrier, shared memory memory. An asynchronous copy is performed where it is
// waited for, not where it is issued, or a missing wait would go unseen; tensor-core fragments are spread over a warp
// as PTX documents them.
#pragma once
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/cuda/args.h"

namespace fused_rnn::cuda {

// What a check may break on purpose, to see that it is noticed.
struct Faults {
    int sync = -1;              // which meeting of a block's threads does not take place
    bool no_await = false;      // blocks of a group do not wait for each other
    bool no_copy_wait = false;  // nor a thread for its asynchronous copies
};
inline Faults faults;

// What lanes of a warp lay out for each other: two slots, so that one barrier an exchange is enough.
struct Exchange {
    double values[2][32];
    uint32_t a[2][32][4], b[2][32][2];
};

template <class Scheduler>
struct HostBlock {
    HostBlock(int index, int count, int threads, int shared_bytes)
        : index(index), count(count), threads(threads), barrier(threads), memory(shared_bytes / 16 + 1) {
        for (int first = 0; first < threads; first += 32) {
            warps.push_back(std::make_unique<typename Scheduler::Barrier>(std::min(32, threads - first)));
            exchanges.push_back(std::make_unique<Exchange>());
        }
        // Shared memory begins with whatever was there.
        std::memset(memory.data(), 0xff, memory.size() * 16);
    }
    struct alignas(16) Line {
        unsigned char bytes[16];
    };
    const int index, count, threads;
    typename Scheduler::Barrier barrier;
    std::vector<std::unique_ptr<typename Scheduler::Barrier>> warps;
    std::vector<std::unique_ptr<Exchange>> exchanges;
    std::vector<Line> memory;
};

template <class Scheduler>
class HostDevice {
  public:
    HostDevice(HostBlock<Scheduler>& block, int thread) : block_(block), thread_(thread) {}
    HostDevice(const HostDevice&) = delete;

    int thread() const { return thread_; }
    int threads() const { return block_.threads; }
    int block() const { return block_.index; }
    int blocks() const { return block_.count; }
    void* shared() const { return block_.memory.data(); }

    void sync(Sync which) const {
        if (static_cast<int>(which) != faults.sync) block_.barrier.wait();
    }
    void arrive(unsigned* arrivals) const { std::atomic_ref<unsigned>(*arrivals).fetch_add(1); }
    void await(const unsigned* arrivals, unsigned count) const {
        if (faults.no_await) return;
        std::atomic_ref<unsigned> seen(*const_cast<unsigned*>(arrivals));
        while (static_cast<int>(seen.load() - count) < 0) Scheduler::yield();
    }

    void copy16(void* to, const void* from) const { open_.push_back({to, from}); }
    void commit_copies() const {
        groups_.push_back(std::move(open_));
        open_.clear();
    }
    template <int pending>
    void await_copies() const {
        if (faults.no_copy_wait) return;
        while (groups_.size() > pending) {
            for (const Copy& copy : groups_.front()) std::memcpy(copy.to, copy.from, 16);
            groups_.erase(groups_.begin());
        }
    }

    template <class T>
    T fresh(const T* from) const {
        return *from;
    }

    template <class T>
    T shuffle_xor(T value, int mask) const {
        Exchange& exchange = *block_.exchanges[thread_ / 32];
        double (&values)[32] = exchange.values[turn_];
        turn_ ^= 1;
        values[thread_ % 32] = value;
        block_.warps[thread_ / 32]->wait();
        return static_cast<T>(values[thread_ % 32 ^ mask]);
    }

    // PTX mma.m16n8k16: element (row, k) of `a` is with lane row%8*4 + k%8/2, in register row/8 + k/8*2, half k%2;
    // element (k, column) of `b` with lane column*4 + k%8/2, in register k/8, half k%2.
    template <class S>
    void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], S) const {
        Exchange& exchange = *block_.exchanges[thread_ / 32];
        const int slot = turn_, lane = thread_ % 32;
        turn_ ^= 1;
        std::memcpy(exchange.a[slot][lane], a, sizeof(a));
        std::memcpy(exchange.b[slot][lane], b, sizeof(b));
        block_.warps[thread_ / 32]->wait();
        const auto half = [](uint32_t bits, int k) { return widen(S{static_cast<uint16_t>(bits >> (k % 2 * 16))}); };
        for (int i = 0; i < 4; ++i) {
            const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < 16; ++k)
                sum += half(exchange.a[slot][row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k) *
                       half(exchange.b[slot][column * 4 + k % 8 / 2][k / 8], k);
            c[i] += sum;
        }
    }

    static float widen(float x) { return x; }
    static double widen(double x) { return x; }
    static float widen(bf16 x) {
        const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
        float value;
        std::memcpy(&value, &bits, 4);
        return value;
    }
    static float widen(f16 x) {
        _Float16 value;
        std::memcpy(&value, &x.bits, 2);
        return value;
    }
    static void narrow(float x, float& to) { to = x; }
    static void narrow(double x, double& to) { to = x; }
    static void narrow(float x, bf16& to) {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        // Round to nearest, ties to even; a NaN must not round to infinity.
        to.bits = std::isnan(x) ? 0x7fff : static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    static void narrow(float x, f16& to) {
        const _Float16 value = static_cast<_Float16>(x);
        std::memcpy(&to.bits, &value, 2);
    }

  private:
    struct Copy {
        void* to;
        const void* from;
    };
    HostBlock<Scheduler>& block_;
    const int thread_;
    mutable int turn_ = 0;
    mutable std::vector<Copy> open_;
    mutable std::vector<std::vector<Copy>> groups_;
};

// All blocks of one launch.
template <class Scheduler, class Kernel>
void run_on_host(int blocks, int threads, int shared_bytes, const Kernel& kernel) {
    std::vector<std::unique_ptr<HostBlock<Scheduler>>> all;
    for (int b = 0; b < blocks; ++b)
        all.push_back(std::make_unique<HostBlock<Scheduler>>(b, blocks, threads, shared_bytes));
    Scheduler::run(blocks * threads, [&](int i) {
        const HostDevice<Scheduler> device(*all[i / threads], i % threads);
        kernel(device);
    });
}

}  // namespace fused_rnn::cuda
