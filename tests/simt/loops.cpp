// The CUDA time loops on the host, threads of a kernel as threads of the system, against a plain scalar double
// implementation: every cell, storage type and tile, padded and packed, with a projection, on devices small and smaller,
// so that every way of a plan is taken. Variants, whose values the suite tests, give the same bits on all of them. Built
// under the thread sanitizer by run.sh, which also breaks one thing at a time (--fault=NAME) and expects that to be noticed.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "../cpp/naive.h"
#include "host_launch.h"
#include "threads.h"

using namespace fused_rnn;
using namespace fused_rnn::cuda;
using naive::Layer;
using std::vector;
using Host = HostDevice<Threads>;

namespace {

long checks = 0, failures = 0;
bool faulty = false;  // on purpose

template <class S>
vector<S> narrow(const vector<double>& from) {
    vector<S> to(from.size());
    for (size_t i = 0; i < from.size(); ++i) Host::narrow(static_cast<ComputeType<S>>(from[i]), to[i]);
    return to;
}

template <class S>
vector<S> transposed(const vector<double>& w, int64_t rows, int64_t columns) {
    vector<double> to(w.size());
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; ++c) to[size_t(c * rows + r)] = w[size_t(r * columns + c)];
    return narrow<S>(to);
}

// Columns [from, from + count) of rows of `width`.
template <class S>
vector<double> columns(const vector<S>& rows, int64_t width, int64_t from, int64_t count) {
    vector<double> out;
    for (size_t row = 0; row < rows.size() / size_t(width); ++row)
        for (int64_t c = 0; c < count; ++c) out.push_back(Host::widen(rows[row * size_t(width) + size_t(from + c)]));
    return out;
}

template <class S>
vector<S> part(const vector<S>& all, int64_t d, int64_t count) {
    return {all.begin() + d * count, all.begin() + (d + 1) * count};
}

void check(const char* what, const std::string& where, const vector<double>& got, const vector<double>& want,
           double eps) {
    ++checks;
    double worst = 0, size = 1;
    for (const double x : want) size = std::max(size, std::abs(x));
    for (size_t i = 0; i < want.size(); ++i) {
        const double error = i < got.size() ? std::abs(got[i] - want[i]) : NAN;
        if (!(error <= worst)) worst = error;  // NaN too
    }
    if (got.size() == want.size() && worst <= eps * size) return;
    std::printf("FAILED %s: off by %g of %g (%s)\n", what, worst, size, where.c_str());
    ++failures;
    if (faulty) std::exit(1);  // that it was noticed is enough
}

// A layer's tensors and both passes over it, as csrc/torch prepares them.
template <class S>
struct Run {
    using F = ComputeType<S>;
    const Layer& l;
    const Variant v;
    const bool once;           // a step is one product
    const bool rowwise;        // that looks at whole rows
    const bool rounds;         // f32 may be multiplied as TF32
    const int64_t G, N, B, Q;  // Q: width of a row of dg
    bool tf32 = false;         // a product was of TF32
    vector<F> gx[2], carry, dc, passed, z, mask, sums, dnorm[2];
    vector<S> w_hh[2], w_hr[2], b_ih[2], b_hh[2], w_hh_t[2], w_hr_t[2], dg[2], dr[2];
    vector<S> gains, dproduct[2];
    vector<S> h0, c0, dhn, dcn, dy, dcells, h_full, y, hn, cn, saved, dh0, dc0, seen, h0_seen;
    vector<int64_t> seeds;
    vector<unsigned> arrivals;

    explicit Run(const Layer& layer, bool rounds, Variant variant = {})
        : l(layer),
          v(variant),
          once(!l.projected() && !v.reset_before),
          rowwise(v.layer_norm || v.clips()),
          rounds(rounds),
          G(gates_of(l.cell)),
          N(l.rows()),
          B(l.seq.B),
          Q(gradient_blocks(l.cell, v) * l.H),
          dy(narrow<S>(l.dy)),
          dcells(narrow<S>(l.dcells)) {
        const auto all = [&](vector<double> naive::Direction::* member) {
            vector<double> both;
            for (int64_t d = 0; d < l.D; ++d)
                both.insert(both.end(), (l.dir[d].*member).begin(), (l.dir[d].*member).end());
            return narrow<S>(both);
        };
        h0 = all(&naive::Direction::h0);
        c0 = all(&naive::Direction::c0);
        dhn = all(&naive::Direction::dhn);
        dcn = all(&naive::Direction::dcn);
        for (int64_t d = 0; d < l.D; ++d) {
            const auto& in = l.dir[d];
            gx[d].assign(in.gx.begin(), in.gx.end());
            // `bias` is the sum, and after it what a GRU adds inside the product.
            b_ih[d] = narrow<S>({in.bias.begin(), in.bias.begin() + G * l.H});
            vector<double> hidden(size_t(G * l.H), 0.0);
            if (is_gru(l.cell)) std::copy(in.bias.begin() + G * l.H, in.bias.end(), hidden.begin() + 2 * l.H);
            b_hh[d] = narrow<S>(hidden);
            const auto of_n = in.w_hh.end() - (v.reset_before ? l.H * l.R : 0);
            w_hh[d] = narrow<S>({in.w_hh.begin(), of_n});
            w_hh_t[d] = transposed<S>({in.w_hh.begin(), of_n}, gates_of_h(l.cell, v) * l.H, l.R);
            if (v.reset_before) {
                w_hr[d] = narrow<S>({of_n, in.w_hh.end()});
                w_hr_t[d] = transposed<S>({of_n, in.w_hh.end()}, l.H, l.R);
            } else if (l.projected()) {
                w_hr[d] = narrow<S>(in.w_hr);
                w_hr_t[d] = transposed<S>(in.w_hr, l.R, l.H);
                dr[d].resize(size_t(N * l.R));
            }
            dg[d].resize(size_t(N * Q));
            dproduct[d].resize(size_t(N * G * l.H));
            dnorm[d].resize(size_t(N * 2 * l.H));
        }
        for (int64_t k = 0; k < G * l.H; ++k) gains.push_back(h0[size_t(k) % h0.size()]);
        sums.resize(size_t(l.D * B * G * l.H));
        h_full.resize(size_t(l.D * B * l.H));
        carry.resize(h_full.size());
        dc.resize(h_full.size());
        passed.resize(size_t(l.D * B * l.R));
        y.resize(size_t(N * l.D * l.R));
        hn.resize(size_t(l.D * B * l.R));
        saved.resize(size_t(l.D * N * saved_of(l.cell, kSaveAll, v) * l.H));
        dh0.resize(hn.size());
        cn.resize(h_full.size());
        dc0.resize(h_full.size());
        z.resize(h_full.size());
        if (v.recurrent_dropout == 0) return;
        for (int64_t row = 0; row < l.D * B; ++row) seeds.push_back(row);
        for (size_t i = 0; i < hn.size(); ++i) mask.push_back(F(i % 3 ? 2 : 0));
        seen.resize(2 * hn.size());
        h0_seen = h0;
    }

    Plan planned(bool backward, const DeviceLimits& limits) {
        const bool rows = backward ? rowwise : v.layer_norm;
        const int64_t gates = backward || rows ? gates_of_h(l.cell, v) : multiplied_gates(l.cell, v);
        const Plan p =
            plan({static_cast<int>(gates), backward, l.seq.T, B, l.D, l.H, once ? 0 : l.R, static_cast<int>(sizeof(S)),
                  sizeof(S) == 2 || (sizeof(S) == 4 && rounds), rows, !is_linear(l.cell) && v.plain() && mask.empty()},
                 limits);
        const bool tensor = p.mode == Mode::kClusters || p.tile == static_cast<int>(TileKind::kTensor);
        tf32 = tf32 || (sizeof(S) == 4 && tensor && p.mode != Mode::kProducts);
        arrivals.assign(size_t(l.D * p.grid.slices), 0u);
        return p;
    }

    // Copies of 16 bytes where the layout allows them, as the ops decide it.
    bool whole_pieces(int64_t count) const { return count * int64_t(sizeof(S)) % kVectorBytes == 0; }

    void operator()(const DeviceLimits& limits) {
        RowwiseForwardArgs<S> f{};
        RowwiseBackwardArgs<S> b{};
        f.seq = b.seq = l.seq;
        f.cell = b.cell = l.cell;
        f.D = b.D = l.D, f.N = b.N = N, f.H = b.H = l.H, f.R = b.R = l.R;
        f.two_products = b.two_products = !once;
        f.varies = b.varies = is_linear(l.cell) || !v.plain() || !mask.empty();
        f.variant = b.variant = with_activations(l.cell, v);
        if (!mask.empty()) {
            f.seeds = b.seeds = seeds.data();
            f.mask = b.mask = mask.data();
            f.seen = seen.data(), f.h0_seen = h0_seen.data();
        }
        b.G = gates_of_h(l.cell, v), b.width = Q;
        b.ld_dr = v.reset_before ? Q : l.R;
        f.first_copies16 = b.second_copies16 = whole_pieces(l.R);
        f.second_copies16 = b.first_copies16 = whole_pieces(l.H);
        for (int64_t d = 0; d < l.D; ++d) {
            f.gx[d] = gx[d].data(), f.w_hh[d] = w_hh[d].data(), f.w_hr[d] = w_hr[d].data();
            f.b_ih[d] = b_ih[d].data(), f.b_hh[d] = b_hh[d].data();
            b.w_hh_t[d] = w_hh_t[d].data(), b.w_hr_t[d] = w_hr_t[d].data();
            b.dg[d] = dg[d].data(), b.dr[d] = v.reset_before ? b.dg[d] + 2 * l.H : dr[d].data();
            b.dproduct[d] = dproduct[d].data(), b.dnorm[d] = dnorm[d].data();
            if (v.layer_norm) {
                f.norm.h[d] = f.norm.c[d] = f.norm.c_shift[d] = gains.data();
                b.norm = f.norm;
            }
            const int64_t vectors = saved_of(l.cell, kSaveAll, v), at = d * N * vectors * l.H;
            f.saved[d] = saved_rows(l.cell, saved.data() + at, vectors, l.H);
            b.saved[d] = saved_rows<const S>(l.cell, saved.data() + at, vectors, l.H, y.data() + d * l.R, l.D * l.R);
        }
        f.h0 = b.h0 = h0.data(), f.c0 = b.c0 = c0.data(), f.carry = carry.data();
        b.dc = dc.data();
        if (is_gru(l.cell) || v.zoneout_h > 0) b.passed = passed.data();
        f.z = z.data();
        f.h_full = h_full.data(), f.y = y.data(), f.hn = hn.data(), f.cn = cn.data();
        b.dy = dy.data(), b.dhn = dhn.data(), b.dcn = dcn.data();
        if (!dcells.empty()) b.dcells = dcells.data();
        b.needs_dh0 = true, b.dh0 = dh0.data(), b.dc0 = dc0.data();
        f.sums = b.sums = sums.data(), b.ld_sums = l.H;
        Plan p = planned(false, limits);
        f.arrivals = arrivals.data();
        p.mode == Mode::kProducts ? by_products(f) : launch(f, p, v.layer_norm, f.varies);
        p = planned(true, limits);
        b.arrivals = arrivals.data();
        p.mode == Mode::kProducts ? by_products(b) : launch(b, p, rowwise, b.varies);
    }

    // As csrc/torch does it, with sums by hand.
    void by_products(const ForwardArgs<S>& a) const {
        const auto weights = [&](int phase, int64_t d) -> const vector<S>& { return phase ? w_hr[d] : w_hh[d]; };
        by_products<ForwardCells<S>>(a, false, G * l.H, l.R, weights);
    }
    void by_products(const BackwardArgs<S>& a) const {
        const auto weights = [&](int phase, int64_t d) -> const vector<S>& { return phase ? w_hr_t[d] : w_hh_t[d]; };
        by_products<BackwardCells<S>>(a, true, l.H, gates_of_h(l.cell, v) * l.H, weights);
    }
    // Rows of weights(..) are columns of the right factor; neither that nor a row of the left one is longer than this.
    template <class Cells, class Args, class Weights>
    void by_products(const Args& a, bool backward, int64_t most_columns, int64_t most_depth,
                     const Weights& weights) const {
        const int64_t ld_sums = most_columns, ld_operand = std::max(most_depth, l.H);
        vector<F> to(size_t(l.D * B * ld_sums));
        vector<S> from(size_t(l.D * B * ld_operand));
        MadeProduct<S> made{};
        made.sums = to.data(), made.ld_sums = ld_sums;
        made.operand = from.data(), made.ld_operand = ld_operand;
        const auto multiply = [&](int phase, int64_t) {
            const int64_t depth = phase == backward ? l.R : backward ? gates_of_h(l.cell, v) * l.H : l.H;
            for (int64_t row = 0; row < l.D * B; ++row) {
                const vector<S>& w = weights(phase, row / B);
                for (int64_t c = 0; c < int64_t(w.size()) / depth; ++c) {
                    double sum = 0;
                    for (int64_t k = 0; k < depth; ++k)
                        sum += double(Host::widen(from[size_t(row * ld_operand + k)])) *
                               double(Host::widen(w[size_t(c * depth + k)]));
                    to[size_t(row * ld_sums + c)] = F(sum);
                }
            }
        };
        each_product(made, l.seq.T, once ? 1 : 2, backward, multiply, [&](const MadeProduct<S>& product) {
            const Cells cells{a, product};
            a.varies ? cells_on_host<Threads, S, true>(cells) : cells_on_host<Threads, S, false>(cells);
        });
    }

    static void launch(const RowwiseForwardArgs<S>& a, const Plan& p, bool rowwise, bool varies) {
        if (rowwise) return rowwise_forward_on_host<Threads>(a, p);
        varies ? forward_on_host<Threads, true>(a, p) : forward_on_host<Threads, false>(a, p);
    }
    static void launch(const RowwiseBackwardArgs<S>& a, const Plan& p, bool rowwise, bool varies) {
        if (rowwise) return rowwise_backward_on_host<Threads>(a, p);
        varies ? backward_on_host<Threads, true>(a, p) : backward_on_host<Threads, false>(a, p);
    }

    void compare(const std::string& where) const {
        const double eps = sizeof(S) == 8            ? 1e-11
                           : tf32                    ? 5e-3
                           : sizeof(S) == 4          ? 2e-4
                           : std::is_same_v<S, bf16> ? 0.1
                                                     : 0.02;
        const auto whole = [](const vector<S>& v) { return columns(v, 1, 0, 1); };
        check("y", where, whole(y), l.y, eps);
        check("hn", where, whole(hn), l.hn, eps);
        for (int64_t d = 0; d < l.D; ++d) {
            const auto& want = l.dir[d];
            const int64_t GH = G * l.H;
            check("dgx", where, columns(dg[d], Q, 0, GH), want.dgx, eps);
            if (is_gru(l.cell)) {
                const vector<double> hidden = columns(want.dgh, GH, 2 * l.H, l.H);
                check("dgh", where, columns(dg[d], Q, 3 * l.H, l.H), hidden, eps);
            }
            if (l.projected()) check("dr", where, whole(dr[d]), want.dr, eps);
            check("dh0", where, whole(part(dh0, d, B * l.R)), want.dh0, eps);
            if (!is_lstm(l.cell)) continue;
            check("cn", where, whole(part(cn, d, B * l.H)), want.cn, eps);
            check("dc0", where, whole(part(dc0, d, B * l.H)), want.dc0, eps);
        }
    }
};

// Enough for a block a slice or for several blocks; too little to keep the weights; blocks that cannot wait; clusters; no loop.
const DeviceLimits devices[] = {{3, 48 << 10, 100 << 10, 512, 1 << 16, true},
                                {1, 48 << 10, 64 << 10, 256, 1 << 16, true},
                                {2, 14800, 64 << 10, 256, 1 << 16, true},
                                {2, 48 << 10, 64 << 10, 256, 1 << 16, false},
                                {2, 48 << 10, 64 << 10, 256, 1 << 16, true, {0, 1}},
                                {2, 48 << 10, 64 << 10, 256, 1 << 16, true, {}, false}};

template <class S>
void every_device(const Layer& l, bool rounds = false) {
    int index = 0;
    for (const auto& limits : devices) {
        char where[160];
        std::snprintf(where, sizeof(where), "cell %d T %d B %d H %d R %d D %d%s, %d bytes%s, device %d", int(l.cell),
                      int(l.seq.T), int(l.seq.B), int(l.H), int(l.R), int(l.D), l.seq.batch_sizes ? " packed" : "",
                      int(sizeof(S)), rounds ? " rounded" : "", index++);
        Run<S> run(l, rounds);
        run(limits);
        run.compare(where);
    }
}

// Blocks that meet compute what they do one launch after the other.
template <class S>
void alike(const Layer& l, Variant v, bool rounds = false) {
    Run<S> alone(l, rounds, v);
    alone(devices[3]);
    for (int index = 0; index < 3; ++index) {
        const std::string where = "variant of cell " + std::to_string(l.cell) + ", device " + std::to_string(index);
        Run<S> run(l, rounds, v);
        run(devices[index]);
        const auto same = [&](const char* what, const vector<S>& got, const vector<S>& want) {
            check(what, where, columns(got, 1, 0, 1), columns(want, 1, 0, 1), 0);
        };
        same("y", run.y, alone.y);
        same("saved", run.saved, alone.saved);
        same("dh0", run.dh0, alone.dh0);
        for (int64_t d = 0; d < l.D; ++d) same("dg", run.dg[d], alone.dg[d]);
    }
}

void variants(int64_t B) {
    Variant before{}, drops{};
    before.reset_before = true;
    drops.recurrent_dropout = 0.5;
    Variant both = before;
    both.recurrent_dropout = both.zoneout_h = drops.zoneout_h = 0.5;
    for (const bool packed : {false, true}) {
        const Layer gru(kGru, 4, B, 40, 0, 1, packed, naive::Reset::none, 1);
        for (const bool rounds : {false, true}) alike<float>(gru, before, rounds);
        alike<bf16>(gru, both);
        alike<float>(Layer(kLstm, 4, B, 40, packed ? 9 : 0, 2, packed, naive::Reset::none, 2), drops);
        Variant rows{};
        rows.layer_norm = true;
        rows.clip_value = packed ? 0 : 0.3;
        rows.clip_norm = 0.5;
        const Layer lstm(kLstm, 3, B, 40, packed ? 9 : 0, 2, packed, naive::Reset::none, 3);
        for (const bool rounds : {false, true}) alike<float>(lstm, rows, rounds);
        rows.layer_norm = false;
        alike<bf16>(gru, rows);
    }
}

// `quick`: few of them, each way of a loop once.
void cells(bool quick) {
    struct Size {
        int64_t T, B, H, P;
    };
    // Odd ones, one row, whole pieces of 16 bytes, more than one tile of rows and of units, a projection.
    const vector<Size> sizes = {{1, 1, 1, 0}, {3, 2, 9, 0}, {3, 19, 16, 0}, {3, 5, 40, 0}, {3, 3, 11, 6}};
    for (int64_t cell = 0; cell < kCellCount; ++cell) {
        for (size_t k = 0; k < sizes.size(); ++k) {
            const auto [T, B, H, P] = sizes[k];
            if (P && !is_lstm(cell)) continue;
            if (k > 1 && cell > kRnnTanh) continue;  // the activations differ, not the loops
            if (quick && (k < 2 || cell > kGru)) continue;
            for (const bool packed : {false, true}) {
                const Layer l(cell, T, B, H, P, 1 + int(k + packed) % 2, packed, naive::Reset::none, unsigned(k));
                if (!quick || !packed) every_device<float>(l);
                if (!quick || packed) every_device<float>(l, true);
                every_device<bf16>(l);
                if (quick || (k > 1 && packed)) continue;
                every_device<double>(l);
                every_device<f16>(l);
            }
        }
    }
}

}  // namespace

// "cells", "variants": a few of these alone; "--fault=NAME": of both, until it is noticed.
int main(int argc, char** argv) {
    const std::string argument = argc > 1 ? argv[1] : "";
    const bool quick = !argument.empty();
    faulty = argument.starts_with("--fault=");
    if (argument == "--fault=await") faults.no_await = true;
    if (argument == "--fault=copies") faults.no_copy_wait = true;
    if (argument.starts_with("--fault=sync")) faults.sync = argument.back() - '0';
    if (argument != "variants") cells(quick);
    if (!quick) variants(2);
    if (argument != "cells") variants(5);
    std::printf("%ld comparisons, %ld failed\n", checks, failures);
    return failures ? 1 : 0;
}
