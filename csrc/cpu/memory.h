// Working memory of calls, kept from one to the next.
//
// malloc gives memory back to the system: large blocks at every free, others when the end of the heap is free. Fresh memory
// costs a page fault for each 4 KB, 1 to 3 us on a virtual machine, where most kernels fill them in less. So each thread keeps
// the blocks that its calls worked in, up to 64 MB, or FUSED_RNN_KEPT_MB of the environment.
#pragma once
#include <cstdint>
#include <utility>

namespace fused_rnn::cpu {

// 64-byte aligned, its content is undefined. Throws std::bad_alloc.
class Block {
  public:
    Block() = default;
    explicit Block(int64_t bytes);
    Block(Block&& other) noexcept : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
    Block& operator=(Block&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Block();
    void* data() const { return data_; }
    int64_t bytes() const { return bytes_; }  // at least as many as were asked for

  private:
    void* data_ = nullptr;
    int64_t bytes_ = 0;
};

// Where the system gives huge pages to those who ask (Linux's default), ask for them for fresh blocks so large that malloc
// never keeps them (over 32 MB): with those they cost a fraction. Smaller ones are used again and again, and the zeroing of
// huge pages only flushes caches there (docs/performance.md).
void ask_for_huge_pages(void* data, int64_t bytes);

}  // namespace fused_rnn::cpu
