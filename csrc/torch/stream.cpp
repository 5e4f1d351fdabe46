#include "stream.h"

#include <mutex>
#include <utility>

#include "cpu_first_step.h"
#include "cpu_norm.h"
#include "cpu_walk.h"

namespace fused_rnn {
namespace {

// Rows of x in a piece of time, which goes through all layers before the next one: gx stays in cache.
constexpr int64_t kPieceRows = 256;

template <class F, class S>
struct PackedLayer {
    int64_t I, H, R;
    bool projected, two_products, silenced;
    Buffer<F> bias, w_ch;
    NormWeights<F, S> norm;
    Packed<F, S> ih, hh, hr;
};

// What streams on the same weights share.
template <class F, class S>
struct Stack {
    Stack(int64_t cell, Variant variant, const std::vector<StreamLayer>& from)
        : cell(cell), variant(variant), k(cpu::kernels<F, S>()) {
        if (std::is_same_v<S, bf16>) tiles = cpu::tile_kernels<F, S>();  // a stream of f32 is not split
        const cpu::Pool pool = torch_pool();
        const int64_t G = gates_of(cell, variant), of_h = gates_of_h(cell, variant);
        const auto matrix = [](const void* w, int64_t rows, int64_t columns) {
            return Matrix<const S>{static_cast<const S*>(w), rows, columns, columns, 1}.tensor();
        };
        const auto packed = [&](const void* w, int64_t rows, int64_t columns, int64_t gates) {
            return Packed<F, S>(pool, k, tiles, matrix(w, rows, columns), gates, true);
        };
        for (const StreamLayer& l : from) {
            const bool silenced = silenced_by_zeros<F, S>(pool, k, matrix(l.w_hh, of_h * l.H, l.R));
            PackedLayer<F, S>& to = layers.emplace_back(PackedLayer<F, S>{
                l.I, l.H, l.R, l.w_hr != nullptr, l.w_hr || variant.reset_before, silenced, {}, {}, {}, {}, {}, {}});
            to.bias = bias_buffer(k, cell, variant, l.H, static_cast<const S*>(l.b_ih), static_cast<const S*>(l.b_hh));
            if (l.w_ch) {
                const int64_t count = (G - 1) * l.H;
                to.w_ch = Buffer<F>(count);
                k.copy_in(static_cast<const S*>(l.w_ch), count, 1, count, to.w_ch.data(), count);
            }
            to.ih = packed(l.w_ih, G * l.H, l.I, 1);
            if (variant.layer_norm) {
                const auto given = [](const void* weight) { return static_cast<const S*>(weight); };
                to.norm = NormWeights<F, S>(k, G * l.H, l.H, given(l.ln_x), given(l.ln_h), given(l.ln_c),
                                            given(l.ln_c_shift));
            }
            to.hh = packed(l.w_hh, of_h * l.H, l.R, panel_gates(cell, variant));
            if (to.projected) to.hr = packed(l.w_hr, l.R, l.H, 1);
            if (variant.reset_before) to.hr = packed(static_cast<const S*>(l.w_hh) + of_h * l.H * l.H, l.H, l.H, 1);
        }
    }

    const int64_t cell;
    const Variant variant;
    const cpu::Kernels<F, S>& k;
    const cpu::TileKernels<F, S>* tiles = nullptr;
    std::vector<PackedLayer<F, S>> layers;
};

template <class F, class S>
class StreamOf final : public Stream {
  public:
    StreamOf(std::shared_ptr<const Stack<F, S>> stack, int64_t B)
        : stack_(std::move(stack)), k_(stack_->k), B_(B), carried_(stack_->layers.size()) {
        for (size_t i = 0; i < carried_.size(); ++i) prepare(carried_[i], stack_->layers[i]);
    }

    void run(const void* x, int64_t T, void* y) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        pool_ = torch_pool();
        const int64_t steps = std::max<int64_t>(1, kPieceRows / B_), I = stack_->layers[0].I, R = stack_->layers[0].R;
        const S* from = static_cast<const S*>(x);
        S* to = static_cast<S*>(y);
        const bool zero = std::exchange(zero_, false);
        for (int64_t t = 0; t < T; t += steps) {
            const int64_t count = std::min(steps, T - t);
            const S* input = from + t * B_ * I;
            for (size_t i = 0; i < carried_.size(); ++i) {
                const bool last = i + 1 == carried_.size();
                S* output = last ? to + t * B_ * R : storage(between_[i % 2], count * B_ * R);
                advance(i, input, count, output, zero && t == 0);
                input = output;
            }
        }
    }

    void read_state(void* h, void* c) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        each_state(h, c,
                   [&](F* own, int64_t ld, int64_t width, S* given) { k_.copy_out(own, ld, B_, width, given, width); });
    }
    void write_state(const void* h, const void* c) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        each_state(const_cast<void*>(h), const_cast<void*>(c),
                   [&](F* own, int64_t ld, int64_t width, S* given) { k_.copy_in(given, width, B_, width, own, ld); });
        zero_ = false;
    }
    void clear() override {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (Carried& s : carried_) {
            std::fill_n(s.args.h[0], B_ * s.args.ld_h, F(0));
            s.c.zero();
        }
        zero_ = true;
    }
    void clear(const std::vector<int64_t>& rows) override {
        const std::lock_guard<std::mutex> lock(mutex_);
        for (Carried& s : carried_) {
            for (const int64_t b : rows) {
                std::fill_n(s.args.h[0] + b * s.args.ld_h, s.args.R, F(0));
                if (s.c) std::fill_n(s.args.c + b * s.args.ld_c, s.args.H, F(0));
            }
        }
    }

    std::unique_ptr<Stream> fork(int64_t B) const override { return std::make_unique<StreamOf>(stack_, B); }

  private:
    // Of one layer, from call to call; args.h[0] is h.
    struct Carried {
        Buffer<F> h[2], c, h_full, z, hn, gx, hg;
        cpu::ForwardArgs<F, S> args{};
    };
    // As loop_size asks for them.
    struct Sizes {
        int64_t D, B, G, H, R;
        bool projected;
    };

    void prepare(Carried& s, const PackedLayer<F, S>& l) {
        cpu::ForwardArgs<F, S>& a = s.args;
        const auto zeros = [&](int64_t width) {
            Buffer<F> buffer(B_ * cpu::padded(width));
            buffer.zero();
            return buffer;
        };
        for (int i = 0; i < 2; ++i) {
            s.h[i] = zeros(l.R);
            a.h[i] = s.h[i].data();
        }
        if (is_lstm(stack_->cell)) s.c = zeros(l.H);
        if (l.two_products) s.h_full = zeros(l.H);
        if (stack_->variant.reset_before) s.z = zeros(l.H);
        s.hn = Buffer<F>(B_ * l.R);  // written by the loop; h is read from the state itself
        a.cell = stack_->cell;
        a.variant = resolved(stack_->cell, stack_->variant);
        a.H = l.H;
        a.R = l.R;
        a.two_products = l.two_products;
        a.ld_gx = cpu::padded(gates_of(stack_->cell, stack_->variant) * l.H);
        a.bias = l.bias.data();
        a.bias_hn = bias_hn(stack_->cell, l.H, l.bias);
        a.w_ch = l.w_ch.data();
        a.norm = l.norm.args();
        if (stack_->variant.layer_norm) s.hg = Buffer<F>(B_ * a.ld_gx);
        a.hg = s.hg.data();
        a.ld_h = cpu::padded(l.R);
        a.c = s.c.data();
        a.ld_c = cpu::padded(l.H);
        a.h_full = s.h_full.data();
        a.z = s.z.data();
        a.ld_y = l.R;
        a.hn = reinterpret_cast<S*>(s.hn.data());
        a.w_hh = l.hh.panels();
        a.w_hr = l.hr.panels();
    }

    // Layer i over `steps` steps, from a state of zeros if `zero`.
    void advance(size_t i, const S* x, int64_t steps, S* y, bool zero) {
        const PackedLayer<F, S>& l = stack_->layers[i];
        Carried& s = carried_[i];
        cpu::ForwardArgs<F, S>& a = s.args;
        const int64_t rows = steps * B_;
        a.seq = {steps, B_, nullptr, nullptr};
        a.y = y;
        a.from_zero = zero && l.silenced;
        const Sizes sizes{1, B_, gates_of(stack_->cell, stack_->variant), l.H, l.R, l.projected};
        cpu::LoopSize size = loop_size<S>(sizes, l.hh, l.hr, steps, stack_->tiles != nullptr);
        size.weight_bytes += l.ih.bytes() / steps;  // W_ih goes by once
        grow(s.gx, rows * a.ld_gx);
        grow(x_rows_, rows * l.I);
        if (stack_->tiles) {
            walk<S, bf16>(size, s, l, x, steps);
        } else {
            walk<F, F>(size, s, l, x, steps);
        }
        if (steps % 2) std::swap(a.h[0], a.h[1]);
    }

    template <class Left, class Panel>
    void walk(const cpu::LoopSize& size, const Carried& s, const PackedLayer<F, S>& l, const S* x, int64_t steps) {
        using Walk = cpu::ForwardWalk<F, S, Left, Panel>;
        Walk walk = forward_walk<Left, Panel>(k_, stack_->tiles, stack_->tiles, s.args, x, B_ * l.I, l.I, l.I, l.ih,
                                              steps, s.gx, x_rows_);
        cpu::run_loop(
            pool_, size,
            [](void* context, const cpu::Share& share) { static_cast<const Walk*>(context)->run(share.slice); }, &walk);
    }

    // f(own, ld, width, given) for h and c of every layer, given as [L, B, width].
    template <class Function>
    void each_state(void* h, void* c, const Function& f) {
        S *to_h = static_cast<S*>(h), *to_c = static_cast<S*>(c);
        for (Carried& s : carried_) {
            f(s.args.h[0], s.args.ld_h, s.args.R, to_h);
            to_h += B_ * s.args.R;
            if (!s.c) continue;
            f(s.args.c, s.args.ld_c, s.args.H, to_c);
            to_c += B_ * s.args.H;
        }
    }

    static S* storage(Buffer<F>& buffer, int64_t count) {
        grow(buffer, count);
        return reinterpret_cast<S*>(buffer.data());
    }

    const std::shared_ptr<const Stack<F, S>> stack_;
    const cpu::Kernels<F, S>& k_;
    const int64_t B_;
    std::vector<Carried> carried_;
    bool zero_ = true;  // each h is known to be
    Buffer<F> between_[2], x_rows_;
    cpu::Pool pool_{};
    std::mutex mutex_;  // Python lets go of its lock while a call runs
};

}  // namespace

std::unique_ptr<Stream> make_stream(ScalarType type, int64_t cell, const std::vector<double>& variant, int64_t B,
                                    const std::vector<StreamLayer>& layers) {
    const Variant parsed = parse_variant("Stream", cell, variant);
    return cpu_by_dtype("Stream", type, [&]<class F, class S>() -> std::unique_ptr<Stream> {
        return std::make_unique<StreamOf<F, S>>(std::make_shared<const Stack<F, S>>(cell, parsed, layers), B);
    });
}

}  // namespace fused_rnn
