// The op of several layers of one direction: threads walk them side by side where that pays, each layer a piece of time after
// the one below it; else they are walked one after the other.
#include <deque>

#include "cpu_forward_pass.h"

namespace fused_rnn {
namespace {

// What the op was given.
struct StackArgs {
    const Tensor& h0;
    const OptionalTensor& c0;
    const std::vector<Tensor>& weights;
    const OptionalTensor& batch_sizes;
    int64_t cell, layers;
    bool split_f32;
    const OptionalTensor& reset;
    bool reset_initial;
    const OptionalNumbers& variant;

    int64_t each() const { return static_cast<int64_t>(weights.size()) / layers; }
    // [1, ..] of layer i; the same for all where there is but one.
    Tensor state(Tensor of, int64_t i) const { return of.size(0) == 1 ? of : torch::stable::narrow(of, 0, i, 1); }
};

// One layer, with what its arguments refer to.
template <class F, class S>
class Floor {
  public:
    // hn and cn are the whole stack's, [layers, B, ..].
    Floor(const StackArgs& in, int64_t i, const Tensor& x, Tensor hn, Tensor cn)
        : x_(x),
          h0_(in.state(in.h0, i)),
          c0_(in.c0 ? OptionalTensor(in.state(*in.c0, i)) : OptionalTensor()),
          weights_(in.weights.begin() + i * in.each(), in.weights.begin() + (i + 1) * in.each()),
          args_{x_, h0_, c0_, weights_, in.batch_sizes, in.cell, in.reset, in.reset_initial, in.variant, none_},
          layer_("stack_forward", args_),
          out_{new_y(layer_, [&](std::initializer_list<int64_t> sizes) { return empty(sizes, layer_.type); }),
               torch::stable::narrow(hn, 0, i, 1), is_lstm(in.cell) ? torch::stable::narrow(cn, 0, i, 1) : cn,
               empty({0}, layer_.type)} {
        if (layer_.N > 0) pass_.emplace(layer_, args_, out_, in.split_f32);
    }
    Floor(const Floor&) = delete;

    ForwardPass<F, S>& pass() { return *pass_; }
    bool goes_beside(int64_t layers) const {
        return pass_ && pass_->packs() && cpu::side_by_side_pays(pass_->size(), layers, pass_->pool().threads);
    }
    void run() {
        if (pass_) pass_->run(out_);
    }
    void finish() { pass_->finish(out_); }
    const Tensor& y() const { return out_.y; }

  private:
    const Tensor x_, h0_;
    const OptionalTensor c0_, none_;
    const std::vector<Tensor> weights_;
    const LayerArgs args_;
    const Layer layer_;
    const LayerOutputs out_;
    std::optional<ForwardPass<F, S>> pass_;
};

template <class F, class S>
struct SideBySide {
    std::deque<Floor<F, S>> floors;
    std::deque<cpu::Progress> progress;

    void run() {
        for (Floor<F, S>& floor : floors) floor.pass().cut_side_by_side();
        progress.resize(floors.size());
        cpu::LoopSize size = floors[0].pass().size();
        size.layers = static_cast<int64_t>(floors.size());
        cpu::run_loop(floors[0].pass().pool(), size, work, this);
        for (Floor<F, S>& floor : floors) floor.finish();
    }
    static void work(void* context, const cpu::Share& share) {
        auto& self = *static_cast<SideBySide*>(context);
        size_t i = static_cast<size_t>(share.layer);
        const auto step = static_cast<size_t>(share.layers);
        try {
            for (; i < self.floors.size(); i += step)
                self.floors[i].pass().run_beside(i ? &self.progress[i - 1] : nullptr, &self.progress[i]);
        } catch (...) {  // nobody is to wait for what will not come
            for (; i < self.floors.size(); i += step) cpu::progress_reach(&self.progress[i], INT32_MAX);
            throw;
        }
    }
};

// y of the last layer.
template <class F, class S>
Tensor run_stack(const StackArgs& in, Tensor x, const Tensor& hn, const Tensor& cn) {
    SideBySide<F, S> all;
    bool together = false;
    for (int64_t i = 0; i < in.layers; ++i) {
        Floor<F, S>& floor = all.floors.emplace_back(in, i, x, hn, cn);
        if (i == 0) together = floor.goes_beside(in.layers);
        x = floor.y();
        if (together) continue;
        floor.run();
        all.floors.pop_back();  // what it was made of is needed no longer
    }
    if (together) all.run();
    return x;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor> stack_forward(Tensor x, Tensor h0, OptionalTensor c0, std::vector<Tensor> weights,
                                                 OptionalTensor batch_sizes, int64_t cell, int64_t layers,
                                                 bool split_f32, OptionalTensor reset, bool reset_initial,
                                                 OptionalNumbers variant) {
    constexpr const char* op = "stack_forward";
    const auto check_states = [&](const char* name, const Tensor& t) {
        FUSED_RNN_CHECK(t.dim() == 3 && (t.size(0) == 1 || t.size(0) == layers), op, ": ", name,
                        " must be [layers,B,..] or [1,B,..], got ", shape_text(t));
    };
    FUSED_RNN_CHECK(layers > 0 && weights.size() % static_cast<size_t>(layers) == 0, op, ": ", weights.size(),
                    " weights are not those of ", layers, " layers alike");
    check_states("h0", h0);
    const StackArgs in{h0, c0, weights, batch_sizes, cell, layers, split_f32, reset, reset_initial, variant};
    FUSED_RNN_CHECK(c0.has_value() == is_lstm(cell), op, ": c0 is an LSTM's, and an LSTM needs it");
    if (c0) check_states("c0", *c0);
    const Tensor hn = empty({layers, h0.size(1), h0.size(2)}, x.scalar_type());
    const Tensor cn = c0 ? empty({layers, c0->size(1), c0->size(2)}, x.scalar_type()) : empty({0}, x.scalar_type());
    return cpu_by_dtype(op, x.scalar_type(),
                        [&]<class F, class S>() { return std::tuple(run_stack<F, S>(in, x, hn, cn), hn, cn); });
}

}  // namespace fused_rnn
