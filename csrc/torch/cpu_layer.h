// A layer on the CPU: working memory, products through the BLAS that torch itself uses, weights as the loops want them.
#pragma once
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>

#include "../cpu/crowd.h"
#include "../cpu/dispatch.h"
#include "../cpu/hooks.h"
#include "../cpu/memory.h"
#include "../cpu/team.h"
#include "layer.h"

namespace fused_rnn {

// Up to this many rows (T*B) products are done row by row from the weights as they lie: packing
// them, or a BLAS call, would cost more than the product.
constexpr int64_t kFewRows = 4;
// Packing the recurrent weights costs a few passes over them; a step of few rows is one pass anyway, and gains less.
constexpr int64_t kStepsWorthPacking = 6;
constexpr int64_t kStepsWorthPackingFewRows = 16;
// Forward, with so many rows (T*B), our products of packed weights gain as much on BLAS's.
constexpr int64_t kRowsWorthPacking = 1024;
constexpr int64_t kCellFlops = 100;         // that a gate's activation and stores take the time of
constexpr int64_t kSmallWeights = 1 << 15;  // elements, packed in microseconds
template <class S>
constexpr int64_t kTileSpeed = std::is_same_v<S, float> ? 3 : 8;  // of matrix tiles over multiply-adds in f32

// A new contiguous tensor on the CPU.
inline Tensor empty(Sizes sizes, ScalarType type) {
    const Tensor tensor = empty_at({aoti_torch_device_type_cpu(), 0}, sizes, type);
    cpu::ask_for_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(tensor.element_size()));
    return tensor;
}

// Working memory; 64-byte aligned.
template <class F>
class Buffer {
  public:
    Buffer() = default;
    explicit Buffer(int64_t count) : block_(count * static_cast<int64_t>(sizeof(F))), count_(count) {}
    F* data() const { return static_cast<F*>(block_.data()); }
    int64_t count() const { return count_; }
    void zero() { std::fill_n(data(), count_, F(0)); }
    explicit operator bool() const { return data() != nullptr; }

  private:
    cpu::Block block_;
    int64_t count_ = 0;
};

// Working memory from piece to piece: what was in it is lost when it grows.
template <class F>
void grow(Buffer<F>& buffer, int64_t count) {
    if (buffer.count() < count) buffer = Buffer<F>(count);
}

// torch's own thread pool.
inline cpu::Pool torch_pool(int threads, int all) {
    if (all > 1) hooks::note_threads();
    return {threads, all, [](int64_t n, void (*body)(void*, int64_t, int64_t), void* context) {
                torch::stable::parallel_for(0, n, 1, [&](int64_t b, int64_t e) { body(context, b, e); });
            }};
}
// As torch's BLAS uses it.
inline cpu::Pool blas_pool() {
    const int all = static_cast<int>(torch::stable::get_num_threads());
    return torch_pool(all, all);
}
// As the kernels want it: fewer threads while other processes want the cores.
inline cpu::Pool torch_pool() {
    const int all = static_cast<int>(torch::stable::get_num_threads());
    return torch_pool(cpu::threads_in_crowd(all), all);
}

// c (+)= a b
template <class F>
void multiply(Matrix<F> c, Matrix<const F> a, Matrix<const F> b, bool accumulate) {
    if (!c.rows || !c.columns) return;
    const Tensor out = c.tensor(), left = a.tensor(), right = b.tensor();
    if (accumulate) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_addmm_out(out.get(), out.get(), left.get(), right.get(), 1.0, 1.0));
    } else {
        TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_mm_out(out.get(), left.get(), right.get()));
    }
}

// The size of `steps` steps of a layer's time loop over these packed weights (one direction's).
template <class S, class Sizes, class PackedWeights>
cpu::LoopSize loop_size(const Sizes& l, const PackedWeights& hh, const PackedWeights& hr, int64_t steps, bool tiles) {
    // Two for each weight and row, and what the cell costs beside them.
    const int64_t products = 2 * l.G * l.R + (l.projected ? 2 * l.R : 0);
    const int64_t flops = l.B * l.H * (products / (tiles ? kTileSpeed<S> : 1) + kCellFlops * l.G);
    constexpr int64_t exchanged_element = sizeof(ComputeType<S>);  // forward: of h
    return {l.D, l.B, hh.panels().count, hh.bytes() + hr.bytes(), steps, flops, l.R * exchanged_element};
}

// Whether to walk time straight on the weights as they lie, unpacked.
inline bool walks_unpacked(const Layer& l) {
    if (l.N <= kFewRows) return true;
    if (l.G * l.H * l.R <= kSmallWeights) return false;
    return l.T < (l.B <= kFewRows ? kStepsWorthPackingFewRows : kStepsWorthPacking);
}

// Whether splitting f32 pays for packing the weights: w_ih alone where the loop does not go through tiles; both, where w_hh
// would not be packed otherwise; else w_ih for the gain of both.
inline bool worth_splitting(const Layer& l) {
    return l.N >= l.G * l.H * (l.I + l.R) >> (l.B == 1 ? 10 : walks_unpacked(l) ? 12 : 14);
}

// The matrix tiles to multiply with, or null where there are none, too few rows for them, or f32 is not to be split.
template <class F, class S>
const cpu::TileKernels<F, S>* tiles_for(const Layer& l, bool split_f32) {
    if (l.N <= kFewRows) return nullptr;
    if (std::is_same_v<S, float> && !(split_f32 && worth_splitting(l))) return nullptr;
    return cpu::tile_kernels<F, S>();
}

// Those of the time loop: a single row a step is bound by reading the weights, as many bytes in f32 whether split or not.
template <class F, class S>
const cpu::TileKernels<F, S>* loop_tiles_for(const Layer& l, const cpu::TileKernels<F, S>* tiles) {
    return std::is_same_v<S, float> && l.B == 1 ? nullptr : tiles;
}

// What the time loops of both passes are told of direction d.
template <class Args>
void describe(Args& to, const Layer& l, int64_t d) {
    to.seq = l.seq;
    to.cell = l.cell;
    to.variant = resolved(l.cell, l.variant);
    to.H = l.H;
    to.R = l.R;
    to.reverse = d == 1;
    to.two_products = l.two_products;
}

// Weights and other inputs in the compute type, contiguous: as they are, or converted once.
template <class F, class S>
class Compute {
  public:
    Compute() = default;
    // `rows` x `columns`
    Compute(const cpu::Kernels<F, S>& k, const Tensor& t, int64_t rows, int64_t columns) : kept_(laid_out(t)) {
        if constexpr (std::is_same_v<F, S>) {
            data_ = data_of<F>(*kept_);
        } else {
            buffer_ = Buffer<F>(rows * columns);
            k.copy_in(data_of<S>(*kept_), columns, rows, columns, buffer_.data(), columns);
            data_ = buffer_.data();
        }
    }
    const F* data() const { return data_; }

  private:
    std::optional<Tensor> kept_;
    Buffer<F> buffer_;
    const F* data_ = nullptr;
};

// A row-major weight matrix [N,K] and its products with a few rows or many.
template <class F, class S>
class Weight {
  public:
    Weight() = default;
    Weight(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const Tensor& w)
        : pool_(&pool), k_(&k), kept_(laid_out(w)), N_(w.size(0)), K_(w.size(1)) {}

    // c [M,N] (+)= a w^T
    void dot(const F* a, int64_t lda, int64_t M, F* c, int64_t ldc, bool accumulate) {
        if (M > kFewRows) return multiply<F>({c, M, N_, ldc, 1}, {a, M, K_, lda, 1}, matrix().transposed(), accumulate);
        const S* w = data_of<S>(*kept_);
        pool_->split(N_, parts(), [&](int64_t n0, int64_t n1) {
            k_->dot_rows(a, lda, M, w + n0 * K_, K_, n1 - n0, K_, c + n0, ldc, accumulate);
        });
    }
    // c [M,K] (+)= a w
    void sum(const F* a, int64_t lda, int64_t M, F* c, int64_t ldc, bool accumulate) {
        if (M > kFewRows) return multiply<F>({c, M, K_, ldc, 1}, {a, M, N_, lda, 1}, matrix(), accumulate);
        const S* w = data_of<S>(*kept_);
        pool_->split(K_, parts(), [&](int64_t k0, int64_t k1) {
            k_->sum_rows(a, lda, M, w + k0, K_, N_, k1 - k0, c + k0, ldc, accumulate);
        });
    }

  private:
    Matrix<const F> matrix() {
        if (!wide_) wide_.emplace(*k_, *kept_, N_, K_);
        return {wide_->data(), N_, K_, K_, 1};
    }
    // A second thread pays for itself from some 256 KiB of weights.
    int64_t parts() const { return N_ * K_ < (1 << 16) ? 1 : 1 << 10; }

    const cpu::Pool* pool_ = nullptr;
    const cpu::Kernels<F, S>* k_ = nullptr;
    std::optional<Tensor> kept_;
    int64_t N_ = 0, K_ = 0;
    std::optional<Compute<F, S>> wide_;
};

// The rows of steps [t0, t1) of x in the compute type, as one matrix.
template <class F, class S>
class InputRows {
  public:
    InputRows(const cpu::Kernels<F, S>& k, const Layer& layer) : k_(k), layer_(layer) {}

    // As they are stored, where they are one matrix.
    std::optional<Matrix<const S>> stored(int64_t t0, int64_t t1) const {
        if (!layer_.x_is_matrix()) return {};
        const int64_t row = layer_.x_matrix_row();
        return {{data_of<S>(layer_.x) + layer_.seq.row(t0) * row, layer_.rows_between(t0, t1), layer_.I, row, 1}};
    }

    // Memory for pieces of up to so many rows; needed before the first of them.
    void reserve(int64_t rows) {
        if (!std::is_same_v<F, S> || !layer_.x_is_matrix()) grow(buffer_, rows * layer_.I);
    }

    Matrix<const F> rows(const cpu::Crew& crew, int64_t t0, int64_t t1) const {
        if constexpr (std::is_same_v<F, S>) {
            if (const auto ready = stored(t0, t1)) return *ready;
        }
        const int64_t first = layer_.seq.row(t0);
        const int64_t count = layer_.rows_between(t0, t1);
        const S* x = data_of<S>(layer_.x);
        crew.split(t1 - t0, count * layer_.I >> 14, [&](int64_t from, int64_t end) {
            for (int64_t t = t0 + from; t < t0 + end; ++t) {
                const int64_t row = layer_.seq.row(t);
                k_.copy_in(layer_.packed ? x + row * layer_.x_row : x + t * layer_.x_step, layer_.x_row,
                           layer_.seq.rows(t), layer_.I, buffer_.data() + (row - first) * layer_.I, layer_.I);
            }
        });
        return {buffer_.data(), count, layer_.I, layer_.I, 1};
    }

  private:
    const cpu::Kernels<F, S>& k_;
    const Layer& layer_;
    Buffer<F> buffer_;
};

// A state [D,B,width] in the compute type, one padded buffer a direction.
template <class F, class S>
Buffer<F> state_buffer(const cpu::Kernels<F, S>& k, const Tensor& state, int64_t direction, int64_t B, int64_t width) {
    const int64_t ld = cpu::padded(width);
    Buffer<F> buffer(B * ld);
    if (ld != width) buffer.zero();
    const Tensor rows = laid_out(state);
    k.copy_in(data_of<S>(rows) + direction * B * width, width, B, width, buffer.data(), ld);
    return buffer;
}

// What is added outside any product: b_ih + b_hh, but only b_ih for the n of a GRU whose r multiplies b_hn; then b_hh. Null
// biases are zero.
template <class F, class S>
Buffer<F> bias_buffer(const cpu::Kernels<F, S>& k, int64_t cell, Variant variant, int64_t H, const S* b_ih,
                      const S* b_hh) {
    const int64_t GH = gates_of(cell, variant) * H, summed = biases_apart(cell, variant) ? 2 * H : GH;
    Buffer<F> bias(2 * GH);
    if (!b_ih) {
        bias.zero();
        return bias;
    }
    F *sum = bias.data(), *hidden = sum + GH;
    k.copy_in(b_ih, GH, 1, GH, sum, GH);
    k.copy_in(b_hh, GH, 1, GH, hidden, GH);
    for (int64_t j = 0; j < summed; ++j) sum[j] += hidden[j];
    return bias;
}

template <class F, class S>
Buffer<F> bias_buffer(const cpu::Kernels<F, S>& k, const Layer& layer, const DirectionWeights& w) {
    if (!w.b_ih) return bias_buffer<F, S>(k, layer.cell, layer.variant, layer.H, nullptr, nullptr);
    const Tensor b_ih = laid_out(*w.b_ih), b_hh = laid_out(*w.b_hh);
    return bias_buffer(k, layer.cell, layer.variant, layer.H, data_of<S>(b_ih), data_of<S>(b_hh));
}
// b_hn in it; read by the GRU only.
template <class F>
const F* bias_hn(int64_t cell, int64_t H, const Buffer<F>& bias) {
    return bias.data() + (gates_of(cell) + 2) * H;
}

// Empty where a layer has none.
template <class F, class S>
Compute<F, S> peepholes(const cpu::Kernels<F, S>& k, const DirectionWeights& w) {
    return w.w_ch ? Compute<F, S>(k, *w.w_ch, 1, w.w_ch->numel()) : Compute<F, S>();
}

// Memory for so many bf16.
template <class F>
Buffer<F> tile_buffer(int64_t count) {
    constexpr int64_t each = sizeof(F) / sizeof(bf16);
    return Buffer<F>((count + each - 1) / each);
}
template <class F>
bf16* as_tiles(const Buffer<F>& buffer) {
    return reinterpret_cast<bf16*>(buffer.data());
}

// Recurrent weights packed for the register tiles, or for matrix tiles where `tiles` is given. `transposed`: columns of
// the panels are rows of w (forward, h W^T), else columns of w (backward, dg W).
template <class F, class S>
class Packed {
  public:
    Packed() = default;
    Packed(const cpu::Pool& pool, const cpu::Kernels<F, S>& k, const cpu::TileKernels<F, S>* tiles, const Tensor& w,
           int64_t gates, bool transposed) {
        const Tensor laid = laid_out(w);
        const int64_t rows = w.size(0), columns = w.size(1);
        const int64_t K = transposed ? columns : rows;
        shape_ = {transposed ? rows / gates : columns, transposed ? static_cast<int>(gates) : 1, k.W};
        const int64_t vectors = shape_.gates > 1 ? shape_.gates * shape_.count() : cpu::kMaxVectors * shape_.count();
        const S* from = data_of<S>(laid);
        // Below some 64 KiB a second thread costs more than it packs.
        const int64_t parts = rows * columns < (1 << 14) ? 1 : shape_.count();
        const auto split = [&](const auto& pack, auto* to) {
            pool.split(shape_.count(), parts,
                       [&](int64_t p0, int64_t p1) { pack(from, columns, K, shape_, p0, p1, to); });
        };
        if (tiles) {
            buffer_ = tile_buffer<F>(cpu::whole_tiles<S>(K) * vectors * k.W);
            split(transposed ? tiles->pack_transposed : tiles->pack_plain, as_tiles(buffer_));
        } else {
            buffer_ = Buffer<F>(K * vectors * k.W);
            split(transposed ? k.pack_transposed : k.pack_plain, buffer_.data());
        }
        panels_ = {buffer_.data(), K, shape_.columns, shape_.count()};
    }
    const cpu::Panels<F>& panels() const { return panels_; }
    const cpu::PanelShape& shape() const { return shape_; }
    const F* data() const { return buffer_.data(); }
    // As matrix tiles have them.
    const bf16* tiles() const { return as_tiles(buffer_); }
    int64_t bytes() const { return buffer_.count() * static_cast<int64_t>(sizeof(F)); }

  private:
    cpu::PanelShape shape_{};
    Buffer<F> buffer_;
    cpu::Panels<F> panels_{};
};

// Where a product goes: to sums in the compute type; or, of matrix tiles or of few rows, and where nothing is added to it, to
// what is stored.
template <class F, class S>
struct Target {
    F* sums = nullptr;
    S* stored = nullptr;
    Target operator+(int64_t elements) const {
        return stored ? Target{nullptr, stored + elements} : Target{sums + elements, nullptr};
    }
};

// A gradient that comes out in the storage type but is gathered in the compute type; unless it is `at_once` made as it is
// stored.
template <class F, class S>
class Result {
  public:
    Result() = default;
    Result(Sizes sizes, bool at_once) : tensor_(empty(sizes, scalar_type<S>())), count_(tensor_->numel()) {
        if constexpr (std::is_same_v<F, S>) {
            data_ = mutable_data_of<F>(*tensor_);
        } else if (!at_once) {
            buffer_ = Buffer<F>(count_);
            data_ = buffer_.data();
        }
    }
    explicit operator bool() const { return tensor_.has_value(); }
    F* data() const { return data_; }
    Target<F, S> target() const { return {data_, data_ ? nullptr : mutable_data_of<S>(*tensor_)}; }
    void zero() { std::fill_n(data_, count_, F(0)); }
    void copy(const Result& other) { std::copy_n(other.data_, count_, data_); }
    Tensor finish(const cpu::Pool& pool, const cpu::Kernels<F, S>& k) {
        if (!tensor_) return empty({0}, scalar_type<S>());
        if constexpr (!std::is_same_v<F, S>) {
            if (!data_) return *tensor_;
            S* to = mutable_data_of<S>(*tensor_);
            // From 64 Ki elements on a second thread pays for itself.
            pool.split((count_ + cpu::kPad - 1) / cpu::kPad, count_ >> 15, [&](int64_t from, int64_t end) {
                const int64_t first = from * cpu::kPad, n = std::min(end * cpu::kPad, count_) - first;
                k.copy_out(data_ + first, n, 1, n, to + first, n);
            });
        }
        return *tensor_;
    }

  private:
    std::optional<Tensor> tensor_;
    Buffer<F> buffer_;
    F* data_ = nullptr;
    int64_t count_ = 0;
};

// by_dtype, with the type it computes in before the type it stores.
template <class Function>
auto cpu_by_dtype(const char* op, ScalarType type, const Function& f) {
    return by_dtype(op, type, [&]<class S>() { return f.template operator()<ComputeType<S>, S>(); });
}

}  // namespace fused_rnn
