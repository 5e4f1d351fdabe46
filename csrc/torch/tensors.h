// Thin helpers over torch's stable ABI: allocation, checks, and products of raw matrices through
// the BLAS that torch itself uses.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "../core/loop_args.h"
#include "../cpu/hooks.h"
#include "../cpu/team.h"

namespace fused_rnn {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline int32_t dtype_code(ScalarType type) {
    return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

// glibc gives blocks over 32 MB back to the system at every free, so at every call they are fresh again and cost more in
// page faults than the kernels need to fill them. Where the system gives huge pages to those who ask (Linux's default),
// ask for these. Smaller blocks are reused, and the zeroing of huge pages only flushes caches there (docs/performance.md).
inline void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t kHuge = 2 << 20;
    if (bytes <= 32 << 20) return;
    const uintptr_t from = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) & ~(kHuge - 1);
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kHuge - 1);
    madvise(reinterpret_cast<void*>(from), end - from, MADV_HUGEPAGE);  // advice: a refusal changes nothing
#endif
}

// A new contiguous tensor.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
    int64_t strides[4] = {1, 1, 1, 1};
    int64_t running = 1;
    for (size_t k = sizes.size(); k-- > 0;) {
        strides[k] = running;
        running *= sizes.begin()[k];
    }
    AtenTensorHandle handle = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
                                                           dtype_code(type), aoti_torch_device_type_cpu(), 0, &handle));
    const Tensor tensor(handle);
    ask_for_huge_pages(tensor.mutable_data_ptr(), running * static_cast<int64_t>(tensor.element_size()));
    return tensor;
}

// Working memory from torch's allocator, so that memory profilers see it; 64-byte aligned.
template <class F>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count)
        : tensor_(empty({count}, sizeof(F) == 8 ? ScalarType::Double : ScalarType::Float)),
          data_(static_cast<F*>(tensor_->mutable_data_ptr())),
          count_(count) {}
    F* data() const { return data_; }
    int64_t count() const { return count_; }
    void zero() { std::fill_n(data_, count_, F(0)); }
    explicit operator bool() const { return data_ != nullptr; }

  private:
    std::optional<Tensor> tensor_;
    F* data_ = nullptr;
    int64_t count_ = 0;
};

template <class S>
constexpr ScalarType scalar_type() {
    if constexpr (std::is_same_v<S, float>) return ScalarType::Float;
    if constexpr (std::is_same_v<S, double>) return ScalarType::Double;
    if constexpr (std::is_same_v<S, bf16>) return ScalarType::BFloat16;
    if constexpr (std::is_same_v<S, f16>) return ScalarType::Half;
}

template <class S>
const S* data_of(const Tensor& t) {
    return static_cast<const S*>(t.const_data_ptr());
}
template <class S>
S* mutable_data_of(const Tensor& t) {
    return static_cast<S*>(t.mutable_data_ptr());
}

inline Tensor laid_out(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline std::string shape_text(const Tensor& t) {
    std::string s = "[";
    for (int64_t k = 0; k < t.dim(); ++k) s += (k ? ", " : "") + std::to_string(t.size(k));
    return s + "]";
}

// Memory safety only: what users see is raised in Python before.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> sizes) {
    bool same = t.dim() == static_cast<int64_t>(sizes.size());
    std::string want = "[";
    for (size_t k = 0; k < sizes.size(); ++k) {
        same = same && t.size(static_cast<int64_t>(k)) == sizes.begin()[k];
        want += (k ? ", " : "") + std::to_string(sizes.begin()[k]);
    }
    STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", want, "], got ", shape_text(t));
}

inline void check_cpu(const char* op, const char* name, const Tensor& t, ScalarType type) {
    STD_TORCH_CHECK(t.is_cpu(), op, ": ", name, " must be a CPU tensor");
    STD_TORCH_CHECK(t.scalar_type() == type, op, ": ", name, " must have the dtype of x");
}

// torch's own thread pool, as the kernels want it.
inline cpu::Pool torch_pool() {
    const int threads = static_cast<int>(torch::stable::get_num_threads());
    if (threads > 1) hooks::note_threads();
    return {threads, [](int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
                torch::stable::parallel_for(0, n, 1, [&](int64_t b, int64_t e) { body(context, b, e); });
            }};
}

// A view of raw memory as a matrix for BLAS: `rows` x `columns`, element (i, j) at i*row + j*column.
template <class F>
struct Matrix {
    F* data;
    int64_t rows, columns, row, column;

    Matrix transposed() const { return {data, columns, rows, column, row}; }
    Tensor tensor() const {
        const int64_t sizes[2] = {rows, columns}, strides[2] = {row, column};
        AtenTensorHandle handle = nullptr;
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob_v2(
            const_cast<std::remove_const_t<F>*>(data), 2, sizes, strides, 0,
            dtype_code(sizeof(F) == 8 ? ScalarType::Double : ScalarType::Float), aoti_torch_device_type_cpu(), 0,
            &handle, aoti_torch_layout_strided(), nullptr, 0));
        return Tensor(handle);
    }
};

// c (+)= a b
template <class F>
void multiply(Matrix<F> c, Matrix<const F> a, Matrix<const F> b, bool accumulate) {
    if (!c.rows || !c.columns) return;
    const Tensor out = c.tensor(), left = a.tensor(), right = b.tensor();
    if (accumulate) {
        STABLE_TORCH_ERROR_CODE_CHECK(
            aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1.0, 1.0));
    } else {
        STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
    }
}

}  // namespace fused_rnn
