#include "layer.h"

#include <algorithm>
#include <cmath>

namespace fused_rnn {
namespace {

const Tensor* checked(const char* op, const char* name, const Tensor& t, const Tensor& x,
                      std::initializer_list<int64_t> sizes) {
    check_same(op, name, t, x);
    check_shape(op, name, t, sizes);
    return &t;
}

bool flag(const char* op, double number) {
    FUSED_RNN_CHECK(number == 0 || number == 1, op, ": an option of variant must be 0 or 1, got ", number);
    return number == 1;
}

double probability(const char* op, double number) {
    FUSED_RNN_CHECK(number >= 0 && number <= 1, op, ": a rate of variant must be in [0, 1], got ", number);
    return number;
}

double bound(const char* op, double number) {
    FUSED_RNN_CHECK(number >= 0, op, ": a bound of variant must not be negative, got ", number);
    return number;
}

Activation activation(const char* op, double number) {
    FUSED_RNN_CHECK(number >= 0 && number < static_cast<double>(Activation::kCount) && number == std::floor(number), op,
                    ": variant holds no activation ", number);
    return static_cast<Activation>(static_cast<int>(number));
}

}  // namespace

Variant parse_variant(const char* op, int64_t cell, const OptionalNumbers& numbers) {
    Variant v{};
    if (!numbers) return v;
    const auto at = [&](size_t k) { return k < numbers->size() ? (*numbers)[k] : 0; };
    for (size_t k = kVariantPlaces; k < numbers->size(); ++k)
        FUSED_RNN_CHECK(at(k) == 0, op, ": variant has ", at(k), " at place ", k, ", which means nothing here");
    v.gate = activation(op, at(kGatePlace));
    v.state = activation(op, at(kStatePlace));
    v.peephole = flag(op, at(kPeepholePlace));
    v.coupled = flag(op, at(kCoupledPlace));
    v.reset_before = flag(op, at(kResetBeforePlace));
    v.layer_norm = flag(op, at(kLayerNormPlace));
    v.recurrent_dropout = probability(op, at(kRecurrentDropoutPlace));
    v.zoneout_h = probability(op, at(kZoneoutHPlace));
    v.zoneout_c = probability(op, at(kZoneoutCPlace));
    v.clip_value = bound(op, at(kClipValuePlace));
    v.clip_norm = bound(op, at(kClipNormPlace));
    FUSED_RNN_CHECK(!(v.peephole || v.coupled) || is_lstm(cell), op, ": only the LSTM has peepholes and coupled gates");
    FUSED_RNN_CHECK(!v.reset_before || is_gru(cell), op, ": only the GRU has a reset gate");
    FUSED_RNN_CHECK(!(v.reset_before && v.layer_norm), op,
                    ": with the reset gate before the product nothing is normalised");
    FUSED_RNN_CHECK(v.zoneout_c == 0 || is_lstm(cell), op, ": only the LSTM has a c to zone out");
    FUSED_RNN_CHECK(v.gate == Activation::kOwn || is_lstm(cell) || is_gru(cell), op, ": an RNN has no gates");
    return v;
}

Layer::Layer(const char* op, const LayerArgs& a)
    : cell(a.cell),
      variant(parse_variant(op, a.cell, a.variant)),
      packed(a.batch_sizes.has_value()),
      x(a.x),
      reset_initial(a.reset_initial) {
    FUSED_RNN_CHECK(cell >= 0 && cell < kCellCount, op, ": unknown cell ", cell);
    type = x.scalar_type();
    check_memory(op, "x", x);
    check_same(op, "h0", a.h0, x);
    FUSED_RNN_CHECK(x.dim() == (packed ? 2 : 3), op, ": x must be [T,B,I] or, with batch_sizes, [N,I], got ",
                    shape_text(x));
    FUSED_RNN_CHECK(a.h0.dim() == 3, op, ": h0 must be [D,B,R], got ", shape_text(a.h0));
    G = gates_of(cell, variant);
    D = a.h0.size(0);
    B = a.h0.size(1);
    R = a.h0.size(2);
    FUSED_RNN_CHECK(D == 1 || D == 2, op, ": h0 must have 1 or 2 directions, got ", D);
    const int64_t count = static_cast<int64_t>(a.weights.size());
    per_direction = count / D;
    const int64_t own = variant.peephole + (!variant.layer_norm ? 0 : is_lstm(cell) ? 4 : 2);
    const int64_t base = per_direction - own;
    FUSED_RNN_CHECK(per_direction * D == count && base >= 2 && base <= 5, op, ": weights must hold ", 2 + own, " to ",
                    5 + own, " tensors for each direction, got ", count, " for ", D);
    biased = base >= 4;
    projected = base % 2 == 1;
    at_w_hr = base - 1;
    at_w_ch = base;
    at_norm = base + variant.peephole;
    two_products = projected || variant.reset_before;
    FUSED_RNN_CHECK(!projected || is_lstm(cell), op, ": only the LSTM has projections");

    I = x.size(packed ? 1 : 2);
    H = a.weights[0].dim() == 2 ? a.weights[0].size(0) / G : 0;
    FUSED_RNN_CHECK(H > 0 && (projected ? R > 0 : R == H), op, ": w_ih ", shape_text(a.weights[0]), " does not fit h0 ",
                    shape_text(a.h0));
    for (int64_t d = 0; d < D; ++d) {
        const Tensor* w = a.weights.data() + d * per_direction;
        DirectionWeights& to = weights[d];
        to.w_ih = checked(op, "w_ih", w[0], x, {G * H, I});
        to.w_hh = checked(op, "w_hh", w[1], x, {G * H, R});
        if (biased) {
            to.b_ih = checked(op, "b_ih", w[2], x, {G * H});
            to.b_hh = checked(op, "b_hh", w[3], x, {G * H});
        }
        if (projected) to.w_hr = checked(op, "w_hr", w[at_w_hr], x, {R, H});
        if (variant.reset_before) {
            auto& [of_r_and_z, of_n] = parts_[d];
            Tensor w_hh = w[1];
            of_r_and_z = torch::stable::narrow(w_hh, 0, 0, 2 * H);
            of_n = torch::stable::narrow(w_hh, 0, 2 * H, H);
            to.w_hh = &*of_r_and_z;
            to.w_hr = &*of_n;
        }
        if (variant.peephole) to.w_ch = checked(op, "w_ch", w[at_w_ch], x, {(G - 1) * H});
        if (!variant.layer_norm) continue;
        to.ln_x = checked(op, "ln_ih", w[at_norm], x, {G * H});
        to.ln_h = checked(op, "ln_hh", w[at_norm + 1], x, {G * H});
        if (!is_lstm(cell)) continue;
        to.ln_c = checked(op, "ln_ch", w[at_norm + 2], x, {H});
        to.ln_c_shift = checked(op, "the shift of ln_ch", w[at_norm + 3], x, {H});
    }
    if (is_lstm(cell)) {
        FUSED_RNN_CHECK(a.c0.has_value(), op, ": an LSTM needs c0");
        checked(op, "c0", *a.c0, x, {D, B, H});
    }

    if (packed) {
        const Tensor& sizes = *a.batch_sizes;
        FUSED_RNN_CHECK(sizes.is_cpu() && sizes.scalar_type() == ScalarType::Long && sizes.dim() == 1, op,
                        ": batch_sizes must be a 1-D int64 tensor on the CPU");
        check_memory(op, "batch_sizes", sizes);
        batch_sizes_ = laid_out(sizes);
        T = sizes.size(0);
        N = x.size(0);
        const int64_t* rows = data_of<int64_t>(*batch_sizes_);
        offsets_.resize(static_cast<size_t>(T) + 1);
        int64_t total = 0, before = B;
        for (int64_t t = 0; t < T; ++t) {
            FUSED_RNN_CHECK(rows[t] >= 0 && rows[t] <= before, op,
                            ": batch_sizes must not increase, nor pass the batch of h0");
            offsets_[t] = total;
            total += before = rows[t];
        }
        offsets_[T] = total;
        FUSED_RNN_CHECK(total == N, op, ": batch_sizes add up to ", total, " rows, x has ", N);
        FUSED_RNN_CHECK(T == 0 || rows[0] == B, op, ": batch_sizes begin with ", T ? rows[0] : 0, ", h0 has batch ", B);
        seq = {T, B, rows, offsets_.data()};
    } else {
        T = x.size(0);
        FUSED_RNN_CHECK(x.size(1) == B, op, ": x has batch ", x.size(1), ", h0 has ", B);
        N = T * B;
        seq = {T, B, nullptr, nullptr};
    }
    if (a.reset) {
        check_place(op, "reset", *a.reset, x);
        FUSED_RNN_CHECK(a.reset->scalar_type() == ScalarType::Bool, op, ": reset must be a bool tensor");
        packed ? check_shape(op, "reset", *a.reset, {N}) : check_shape(op, "reset", *a.reset, {T, B});
        reset_ = laid_out(*a.reset);
        begins = data_of<bool>(*reset_);
    }
    if (a.seed) {
        check_place(op, "seed", *a.seed, x);
        FUSED_RNN_CHECK(a.seed->scalar_type() == ScalarType::Long, op, ": seed must be an int64 tensor");
        check_shape(op, "seed", *a.seed, {D, B});
        seed_ = laid_out(*a.seed);
        seeds = data_of<int64_t>(*seed_);
    }
    FUSED_RNN_CHECK(T > 0, op, ": expected sequence length to be larger than 0");
    if (I > 1 && x.stride(packed ? 1 : 2) != 1) x = laid_out(x);
    x_step = packed ? 0 : x.stride(0);
    x_row = packed ? x.stride(0) : x.stride(1);
    // BLAS and row copies want rows that do not overlap: an expanded x is laid out.
    if ((N > 1 && x_row < I && (packed || B > 1)) || (!packed && T > 1 && x_step < I)) {
        x = copied(x);
        x_step = packed ? 0 : B * I;
        x_row = I;
    }
}

std::vector<int64_t> Layer::chunks(int64_t rows) const {
    const int64_t pieces = std::max<int64_t>(1, (N + rows / 2) / rows);
    std::vector<int64_t> bounds = {0};
    for (int64_t t = 0; t < T; ++t) {
        const int64_t done = seq.row(t) + seq.rows(t);
        // The k-th cut comes where k of the `pieces` equal shares of rows are done.
        if (t == T - 1 || done * pieces >= N * static_cast<int64_t>(bounds.size())) bounds.push_back(t + 1);
    }
    return bounds;
}

void check_gradients(const char* op, const Layer& l, const Gradients& g) {
    const auto check = [&](const char* name, const OptionalTensor& t, std::initializer_list<int64_t> sizes) {
        if (!t) return;
        check_same(op, name, *t, l.x);
        check_shape(op, name, *t, sizes);
    };
    FUSED_RNN_CHECK(!g.dcells || is_lstm(l.cell), op, ": dcells is for an LSTM only");
    if (l.packed) {
        check("dcells", g.dcells, {l.N, l.D * l.H});
        check("dy", g.dy, {l.N, l.D * l.R});
        check("y", g.y, {l.N, l.D * l.R});
    } else {
        check("dcells", g.dcells, {l.T, l.B, l.D * l.H});
        check("dy", g.dy, {l.T, l.B, l.D * l.R});
        check("y", g.y, {l.T, l.B, l.D * l.R});
    }
    check("dhn", g.dhn, {l.D, l.B, l.R});
    if (is_lstm(l.cell)) check("dcn", g.dcn, {l.D, l.B, l.H});
    const int64_t states = saved_of(l.cell, kSaveStates, l.variant) * l.H;
    const bool states_only = g.saved.dim() == 3 && g.saved.size(2) == states;
    check("saved", g.saved, {l.D, l.N, states_only ? states : saved_of(l.cell, kSaveAll, l.variant) * l.H});
}

}  // namespace fused_rnn
