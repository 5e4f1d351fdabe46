// The GPU of device.cuh on the CPU, so that the kernels' own source runs, and is checked, where there is none: a thread of
// a block is a thread (or a fiber), a barrier a barrier, shared memory memory. An asynchronous copy is performed where it is
// waited for, not where it is issued, or a missing wait would go unseen; tensor-core fragments are spread over a warp
// as PTX documents them.
#pragma once
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include "../../csrc/cuda/args.h"

namespace fused_rnn::cuda {

// What a check may break on purpose, to see that it is noticed.
struct Faults {
    int sync = -1;              // which meeting of a block's threads does not take place
    bool no_await = false;      // blocks of a group, or of a cluster, do not wait for each other
    bool no_copy_wait = false;  // nor a thread for its asynchronous copies
};
inline Faults faults;

// What lanes of a warp lay out for each other.
struct Exchange {
    double values[32];
    uint32_t a[32][4], b[32][2];
};

template <class Scheduler>
struct HostBlock;

template <class Scheduler>
struct HostCluster {
    explicit HostCluster(int threads) : barrier(threads) {}
    typename Scheduler::Barrier barrier;
    std::vector<HostBlock<Scheduler>*> blocks;
};

template <class Scheduler>
struct HostBlock {
    HostBlock(int index, int count, int threads, int shared_bytes, HostCluster<Scheduler>& cluster)
        : index(index),
          count(count),
          threads(threads),
          cluster(cluster),
          barrier(threads),
          memory(shared_bytes / 16 + 1) {
        cluster.blocks.push_back(this);
        for (int first = 0; first < threads; first += 32) {
            warps.push_back(std::make_unique<typename Scheduler::Barrier>(std::min(32, threads - first)));
            exchanges.push_back(std::make_unique<Exchange[]>(2));
        }
        // Shared memory begins with whatever was there.
        std::memset(memory.data(), 0xff, memory.size() * 16);
    }
    struct alignas(16) Line {
        unsigned char bytes[16];
    };
    const int index, count, threads;
    HostCluster<Scheduler>& cluster;
    typename Scheduler::Barrier barrier;
    std::vector<std::unique_ptr<typename Scheduler::Barrier>> warps;
    std::vector<std::unique_ptr<Exchange[]>> exchanges;  // two in turn, so that one barrier each time is enough
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

    void copy16(void* to, const void* from) const {
        must_be_aligned("copy16: to", to);
        must_be_aligned("copy16: from", from);
        open_.push_back({to, from});
    }
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

    static unsigned again(unsigned x) { return x; }
    void prefetch(const void*) const {}

    void meet_cluster() const { block_.cluster.barrier.wait(); }
    // An mbarrier of one arrival. From the lowest bit on: bytes that are still to come (32), whether nobody has said yet how
    // many, and phases that have ended.
    using Mailbox = uint64_t;
    void open(Mailbox* box) const { std::atomic_ref<Mailbox>(*box).store(kUntold); }
    void expect(Mailbox* box, int bytes) const { count_bytes(box, bytes, 0); }
    void await(Mailbox* box, unsigned parity) const {
        if (faults.no_await) return;
        std::atomic_ref<Mailbox> state(*box);
        while ((state.load() >> 33 & 1) == parity) Scheduler::yield();
    }
    template <class Words>
    void send16(int peer, void* to, Mailbox* box, const Words& words) const {
        must_be_aligned("send16: to", to);
        HostBlock<Scheduler>& there = *block_.cluster.blocks[peer];
        const auto here = static_cast<unsigned char*>(shared());
        const auto same = [&](void* at) {
            return reinterpret_cast<unsigned char*>(there.memory.data()) + (static_cast<unsigned char*>(at) - here);
        };
        std::memcpy(same(to), &words, 16);
        count_bytes(reinterpret_cast<Mailbox*>(same(box)), -16, kUntold);
    }

    unsigned ballot(bool mine) const {
        const Exchange& all = exchange([&](Exchange& to, int lane) { to.values[lane] = mine; });
        unsigned bits = 0;
        for (int lane = 0; lane < 32; ++lane) bits |= static_cast<unsigned>(all.values[lane] != 0) << lane;
        return bits;
    }
    template <class T>
    T shuffle_xor(T value, int mask) const {
        const Exchange& all = exchange([&](Exchange& to, int lane) { to.values[lane] = value; });
        return static_cast<T>(all.values[thread_ % 32 ^ mask]);
    }

    // PTX mma.m16n8k16: element (row, k) of `a` is with lane row%8*4 + k%8/2, in register row/8 + k/8*2, half k%2;
    // element (k, column) of `b` with lane column*4 + k%8/2, in register k/8, half k%2.
    template <class S>
    void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], S) const {
        const auto half = [](uint32_t bits, int k) { return widen(S{static_cast<uint16_t>(bits >> (k % 2 * 16))}); };
        multiply<16>(
            c, a, b,
            [&](const Exchange& all, int row, int k) {
                return half(all.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2], k);
            },
            [&](const Exchange& all, int k, int column) { return half(all.b[column * 4 + k % 8 / 2][k / 8], k); });
    }

    // PTX mma.m16n8k8: element (row, k) of `a` is with lane row%8*4 + k%4, in register row/8 + k/4*2; element (k, column) of
    // `b` with lane column*4 + k%4, in register k/4. Of a number it takes 19 bits.
    void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], float) const {
        const auto number = [](uint32_t bits) {
            bits &= ~0x1fffu;
            float value;
            std::memcpy(&value, &bits, 4);
            return value;
        };
        multiply<8>(
            c, a, b,
            [&](const Exchange& all, int row, int k) {
                return number(all.a[row % 8 * 4 + k % 4][row / 8 + k / 4 * 2]);
            },
            [&](const Exchange& all, int k, int column) { return number(all.b[column * 4 + k % 4][k / 4]); });
    }
    // Rounded to 11 bits, ties away from zero.
    static float tf32(float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, 4);
        if (std::isfinite(x)) bits = (bits + 0x1000) & ~0x1fffu;
        std::memcpy(&x, &bits, 4);
        return x;
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
    // A GPU ends a kernel that moves 16 bytes otherwise.
    static void must_be_aligned(const char* what, const void* at) {
        if (reinterpret_cast<uintptr_t>(at) % 16 == 0) return;
        std::fprintf(stderr, "%s is %p, which is no multiple of 16\n", what, at);
        std::abort();
    }
    // What all lanes have laid out.
    template <class LayOut>
    const Exchange& exchange(const LayOut& lay_out) const {
        Exchange& all = block_.exchanges[thread_ / 32][turn_];
        turn_ ^= 1;
        lay_out(all, thread_ % 32);
        block_.warps[thread_ / 32]->wait();
        return all;
    }
    // c += a b over kCount of the summed dimension, left(all, row, k) right(all, k, column) being where fragments have them.
    template <int kCount, class Left, class Right>
    void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], const Left& left,
                  const Right& right) const {
        const Exchange& all = exchange([&](Exchange& to, int lane) {
            std::memcpy(to.a[lane], a, sizeof(a));
            std::memcpy(to.b[lane], b, sizeof(b));
        });
        for (int i = 0; i < 4; ++i) {
            const int row = thread_ % 32 / 4 + i / 2 * 8, column = thread_ % 4 * 2 + i % 2;
            float sum = 0;
            for (int k = 0; k < kCount; ++k) sum += left(all, row, k) * right(all, k, column);
            c[i] += sum;
        }
    }

    static constexpr Mailbox kUntold = Mailbox(1) << 32;
    static void count_bytes(Mailbox* box, int bytes, Mailbox untold) {
        std::atomic_ref<Mailbox> state(*box);
        Mailbox old = state.load(), next;
        do {
            const auto left = static_cast<uint32_t>(old) + static_cast<uint32_t>(bytes);
            next = (old >> 33 << 33) | (old & untold) | left;
            if (left == 0 && !(next & kUntold)) next = ((old >> 33) + 1) << 33 | kUntold;
        } while (!state.compare_exchange_weak(old, next));
    }
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

// All blocks of one launch, so many a cluster.
template <class Scheduler, class Kernel>
void run_on_host(int blocks, int threads, int shared_bytes, const Kernel& kernel, int together = 1) {
    std::vector<std::unique_ptr<HostCluster<Scheduler>>> clusters;
    std::vector<std::unique_ptr<HostBlock<Scheduler>>> all;
    for (int b = 0; b < blocks; ++b) {
        if (b % together == 0) clusters.push_back(std::make_unique<HostCluster<Scheduler>>(together * threads));
        all.push_back(std::make_unique<HostBlock<Scheduler>>(b, blocks, threads, shared_bytes, *clusters.back()));
    }
    Scheduler::run(blocks * threads, [&](int i) {
        const HostDevice<Scheduler> device(*all[i / threads], i % threads);
        kernel(device);
    });
}

}  // namespace fused_rnn::cuda
