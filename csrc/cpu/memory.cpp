#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "kernels.h"

namespace fused_rnn::cpu {

namespace {

constexpr int64_t kAlignment = 64;
constexpr int64_t kLeastBytes = 1 << 14;  // malloc keeps smaller ones itself
constexpr size_t kMostBlocks = 64;
constexpr int64_t kMostMegabytes = 64;  // of a thread; an LSTM of 1024 units has 32 MB of packed weights
#if defined(__SANITIZE_ADDRESS__)
constexpr bool kWatched = true;  // the ends of blocks, and blocks that are free
#else
constexpr bool kWatched = false;
#endif

int64_t most_bytes() {
    static const int64_t most = [] {
        const char* text = std::getenv("FUSED_RNN_KEPT_MB");
        const int64_t megabytes = text ? std::clamp<int64_t>(std::atoll(text), 0, 1 << 30) : kMostMegabytes;
        return kWatched ? 0 : megabytes << 20;
    }();
    return most;
}

struct Free {
    void* data;
    int64_t bytes;
};

thread_local bool gone = false;  // what the thread kept; a block may outlive it

class Kept {
  public:
    Kept() { blocks_.reserve(kMostBlocks + 1); }
    ~Kept() {
        for (const Free& block : blocks_) std::free(block.data);
        gone = true;
    }
    // The smallest that is large enough and not half as large again; of equals the one used last.
    Free take(int64_t bytes) {
        size_t best = blocks_.size();
        for (size_t k = blocks_.size(); k-- > 0;) {
            const int64_t of_it = blocks_[k].bytes;
            if (of_it < bytes || of_it > bytes + bytes / 2) continue;
            if (best == blocks_.size() || of_it < blocks_[best].bytes) best = k;
        }
        if (best == blocks_.size()) return {nullptr, 0};
        const Free found = blocks_[best];
        remove(best);
        return found;
    }
    void give(const Free& block) {
        blocks_.push_back(block);
        bytes_ += block.bytes;
        while (bytes_ > most_bytes() || blocks_.size() > kMostBlocks) {
            std::free(blocks_.front().data);
            remove(0);
        }
    }

  private:
    void remove(size_t k) {
        bytes_ -= blocks_[k].bytes;
        blocks_.erase(blocks_.begin() + static_cast<std::ptrdiff_t>(k));
    }

    std::vector<Free> blocks_;  // the one used last at the end
    int64_t bytes_ = 0;
};

thread_local Kept kept;

}  // namespace

Block::Block(int64_t bytes) : bytes_((bytes + kAlignment - 1) / kAlignment * kAlignment) {
    if (bytes_ >= kLeastBytes && !gone) {
        const Free found = kept.take(bytes_);
        if (found.data) {
            data_ = found.data;
            bytes_ = found.bytes;
            return;
        }
    }
    data_ = std::aligned_alloc(kAlignment, static_cast<size_t>(bytes_));
    if (!data_ && bytes_) throw std::bad_alloc();
    ask_for_huge_pages(data_, bytes_);
    if (kWatched && bytes_) std::memset(data_, 0xff, static_cast<size_t>(bytes_));  // NaN
}

Block::~Block() {
    if (data_ && bytes_ >= kLeastBytes && !gone) {
        kept.give({data_, bytes_});
    } else {
        std::free(data_);
    }
}

void* thread_scratch(int64_t bytes) {
    thread_local Block memory;
    if (memory.bytes() < bytes) memory = Block(bytes);
    return memory.data();
}

void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kHuge = 2 << 20;
    if (bytes <= 32 << 20) return;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
    madvise(reinterpret_cast<void*>(from), end - from, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

}  // namespace fused_rnn::cpu
