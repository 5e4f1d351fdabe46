// Thin helpers over torch's stable ABI, the same for every device: allocation, access, checks.
#pragma once
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../core/saved.h"
#include "../core/variant.h"

// As STD_TORCH_CHECK, whose text begins with a path of the machine that built the library.
#define FUSED_RNN_CHECK(cond, ...)        \
    if (!(cond)) [[unlikely]] {           \
        ::fused_rnn::refuse(__VA_ARGS__); \
    }

namespace fused_rnn {

template <class... Parts>
[[noreturn, gnu::noinline]] void refuse(const Parts&... parts) {
    std::ostringstream text;
    (text << ... << parts);
    throw std::runtime_error(text.str());
}

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using OptionalNumbers = std::optional<std::vector<double>>;
using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;

inline int32_t dtype_code(ScalarType type) {
    return torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
}

// Where a tensor lies.
struct Place {
    int32_t device, index;
    bool operator==(const Place&) const = default;
};
inline Place place_of(const Tensor& t) {
    int32_t device = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device));
    return {device, t.get_device_index()};
}

inline int64_t size_of(ScalarType type) {
    switch (type) {
        case ScalarType::Double:
        case ScalarType::Long:
            return 8;
        case ScalarType::BFloat16:
        case ScalarType::Half:
            return 2;
        case ScalarType::Bool:
            return 1;
        default:  // Float, Int
            return 4;
    }
}

// torch's words, which programs that look for the largest batch go by: its shim keeps them to itself.
[[noreturn, gnu::noinline]] inline void refuse_memory(Place place, Sizes sizes, int64_t element_size) {
    std::ostringstream text;
    int64_t bytes = element_size;
    bool overflows = false;
    for (const int64_t size : sizes) overflows = __builtin_mul_overflow(bytes, size, &bytes) || overflows;
    const bool cpu = place.device == aoti_torch_device_type_cpu();
    if (overflows) {
        text << "Storage size calculation overflowed with sizes=[";
        for (const int64_t& size : sizes) text << (&size == sizes.begin() ? "" : ", ") << size;
        text << "]";
    } else if (cpu) {
        text << "DefaultCPUAllocator: can't allocate memory: you tried to allocate " << bytes << " bytes.";
    } else {
        text << "CUDA out of memory. Tried to allocate " << bytes << " bytes.";
    }
    throw std::runtime_error(text.str());
}

// A new contiguous tensor.
inline Tensor empty_at(Place place, Sizes sizes, ScalarType type) {
    int64_t strides[4] = {1, 1, 1, 1};
    int64_t running = 1;
    for (size_t k = sizes.size(); k-- > 0;) {
        strides[k] = running;
        running *= sizes.begin()[k];
    }
    AtenTensorHandle handle = nullptr;
    const int64_t rank = static_cast<int64_t>(sizes.size());
    if (aoti_torch_empty_strided(rank, sizes.begin(), strides, dtype_code(type), place.device, place.index, &handle))
        refuse_memory(place, sizes, size_of(type));
    return Tensor(handle);
}

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

// make(t), a copy of t.
template <class Make>
Tensor copy_by(const Tensor& t, const Make& make) {
    try {
        return make(t);
    } catch (const std::exception&) {
        std::vector<int64_t> sizes;
        for (int64_t k = 0; k < t.dim(); ++k) sizes.push_back(t.size(k));
        refuse_memory(place_of(t), {sizes.data(), sizes.size()}, size_of(t.scalar_type()));
    }
}
// t itself where it is contiguous; and a copy in any case.
inline Tensor laid_out(const Tensor& t) {
    return t.is_contiguous() ? t : copy_by(t, [](const Tensor& from) { return torch::stable::contiguous(from); });
}
inline Tensor copied(const Tensor& t) {
    return laid_out(copy_by(t, [](const Tensor& from) { return torch::stable::clone(from); }));
}

inline std::string shape_text(const Tensor& t) {
    std::string s = "[";
    for (int64_t k = 0; k < t.dim(); ++k) s += (k ? ", " : "") + std::to_string(t.size(k));
    return s + "]";
}

struct RowRange {
    int64_t from, end;
    int64_t count() const { return end - from; }
};

// A view of raw memory as a matrix for BLAS: `rows` x `columns`, element (i, j) at i*row + j*column.
template <class F>
struct Matrix {
    F* data;
    int64_t rows, columns, row, column;

    Matrix transposed() const { return {data, columns, rows, column, row}; }
    Matrix part(RowRange of) const { return {data + of.from * row, of.count(), columns, row, column}; }
    Tensor tensor(Place place = {aoti_torch_device_type_cpu(), 0}) const {
        const int64_t sizes[2] = {rows, columns}, strides[2] = {row, column};
        AtenTensorHandle handle = nullptr;
        TORCH_ERROR_CODE_CHECK(
            aoti_torch_create_tensor_from_blob_v2(const_cast<std::remove_const_t<F>*>(data), 2, sizes, strides, 0,
                                                  dtype_code(scalar_type<std::remove_const_t<F>>()), place.device,
                                                  place.index, &handle, aoti_torch_layout_strided(), nullptr, 0));
        return Tensor(handle);
    }
};

// Memory safety only: what users see is raised in Python before.
inline void check_shape(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> sizes) {
    bool same = t.dim() == static_cast<int64_t>(sizes.size());
    std::string want = "[";
    for (size_t k = 0; k < sizes.size(); ++k) {
        same = same && t.size(static_cast<int64_t>(k)) == sizes.begin()[k];
        want += (k ? ", " : "") + std::to_string(sizes.begin()[k]);
    }
    FUSED_RNN_CHECK(same, op, ": ", name, " must have shape ", want, "], got ", shape_text(t));
}

// A tensor may be without: freed by resize_(0) of its storage, as those who shard weights do.
inline void check_memory(const char* op, const char* name, const Tensor& t) {
    int64_t bytes = 0, count = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(t.get(), &bytes));
    if (bytes > 0) return;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(t.get(), &count));
    FUSED_RNN_CHECK(count == 0, op, ": ", name, " ", shape_text(t), " has a storage without memory");
}

inline void check_place(const char* op, const char* name, const Tensor& t, const Tensor& x) {
    FUSED_RNN_CHECK(place_of(t) == place_of(x), op, ": ", name, " must be on the device of x");
    check_memory(op, name, t);
}

inline void check_same(const char* op, const char* name, const Tensor& t, const Tensor& x) {
    check_place(op, name, t, x);
    FUSED_RNN_CHECK(t.scalar_type() == x.scalar_type(), op, ": ", name, " must have the dtype of x");
}

}  // namespace fused_rnn
