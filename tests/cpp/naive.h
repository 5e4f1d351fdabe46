// A layer in plain scalar double, one value at a time, from the formulas of csrc/core/cells.h: what loops.cpp compares
// with. Deliberately slow and simple.
#pragma once
#include <atomic>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/core/sequence.h"

namespace naive {

using fused_rnn::Sequence;
using std::vector;

struct Direction {
    vector<double> gx, bias, w_hh, w_hr, h0, c0, dhn, dcn;  // given; bias: [G*H] and b_hn [H]
    vector<double> cn, dgx, dgh, dr, dh0, dc0;              // computed
};

enum class Reset { none, zero, initial };

struct Layer {
    int64_t cell, H, R, D;
    Reset reset;
    std::unique_ptr<bool[]> begins;  // [N], where an episode does; none at step 0, nor without a reset
    Sequence seq{};
    vector<int64_t> batch_sizes, offsets;
    Direction dir[2];
    vector<double> dy, dcells, y, hn;  // dcells: [N, D*H], what comes to c of every step; none, but for a packed LSTM

    bool projected() const { return !dir[0].w_hr.empty(); }
    int64_t rows() const { return seq.row(seq.T - 1) + seq.rows(seq.T - 1); }

    Layer(int64_t cell, int64_t T, int64_t B, int64_t H, int64_t P, int64_t D, bool packed, Reset reset, unsigned seed)
        : cell(cell), H(H), R(P ? P : H), D(D), reset(reset), seq{T, B, nullptr, nullptr} {
        if (packed) {
            int64_t total = 0;
            for (int64_t t = 0; t < T; ++t) {
                batch_sizes.push_back(B - B * t / (T + 1));
                offsets.push_back(total);
                total += batch_sizes.back();
            }
            seq.batch_sizes = batch_sizes.data();
            seq.offsets = offsets.data();
        }
        std::mt19937 random(seed);
        // Multiples of 1/8: every storage type holds them exactly.
        const auto values = [&](int64_t n, int range) {
            vector<double> v(static_cast<size_t>(n));
            for (double& x : v) x = (int(random() % unsigned(2 * range + 1)) - range) / 8.0;
            return v;
        };
        const int64_t G = fused_rnn::gates_of(cell), N = rows();
        if (reset != Reset::none) {
            begins = std::make_unique<bool[]>(static_cast<size_t>(N));
            for (int64_t n = B; n < N; ++n) begins[n] = random() % 3 == 0;
        }
        dy = values(N * D * R, 8);
        if (fused_rnn::is_lstm(cell) && packed) dcells = values(N * D * H, 8);
        for (int64_t d = 0; d < D; ++d) {
            Direction& to = dir[d];
            to.gx = values(N * G * H, 8);
            to.bias = values((G + 1) * H, 4);
            to.w_hh = values(G * H * R, 1);
            // sparser where many units add up, or linear cells grow past what f16 holds
            for (double& w : to.w_hh)
                if (random() % 24 >= 48u / unsigned(R + 2) + 1) w = 0;
            if (P) to.w_hr = values(P * H, 2);
            to.h0 = values(B * R, 8);
            to.dhn = values(B * R, 8);
            to.c0 = to.dcn = {};
            if (!fused_rnn::is_lstm(cell)) continue;
            to.c0 = values(B * H, 8);
            to.dcn = values(B * H, 8);
        }
        if (cell >= fused_rnn::kLstmLinear) tame();
        y.resize(static_cast<size_t>(N * D * R));
        hn.resize(static_cast<size_t>(D * B * R));
        for (int64_t d = 0; d < D; ++d) compute(d);
    }

  private:
    // Linear gates multiply: what enters them stays below 1.
    void tame() {
        for (Direction& d : dir) {
            for (auto* v : {&d.gx, &d.bias, &d.h0, &d.c0})
                for (double& x : *v) x /= 8;
        }
    }

    double gate(double x) const { return cell >= fused_rnn::kLstmLinear ? x : 1 / (1 + std::exp(-x)); }
    double gate_slope(double s) const { return cell >= fused_rnn::kLstmLinear ? 1 : s * (1 - s); }
    double state(double x) const {
        if (cell >= fused_rnn::kLstmLinear) return x;
        return cell == fused_rnn::kRnnRelu ? (x > 0 ? x : 0) : std::tanh(x);
    }
    double state_slope(double t) const {
        if (cell >= fused_rnn::kLstmLinear) return 1;
        return cell == fused_rnn::kRnnRelu ? t > 0 : 1 - t * t;
    }

    // Whether the state of row b is set anew before step t of direction d.
    bool anew(int64_t d, int64_t t, int64_t b) const {
        const int64_t at = d ? t + 1 : t;
        return begins && b < seq.rows(at) && begins[seq.row(at) + b];
    }
    // Row b of a state.
    void set_anew(vector<double>& state, const vector<double>& initial, int64_t b) const {
        const int64_t width = static_cast<int64_t>(state.size()) / seq.B;
        for (int64_t k = b * width; k < (b + 1) * width; ++k) state[k] = reset == Reset::initial ? initial[k] : 0;
    }
    // Row b of a state's gradient.
    void move_out(vector<double>& gradient, vector<double>& sums, int64_t b) const {
        const int64_t width = static_cast<int64_t>(gradient.size()) / seq.B;
        for (int64_t k = b * width; k < (b + 1) * width; ++k) {
            if (reset == Reset::initial) sums[k] += gradient[k];
            gradient[k] = 0;
        }
    }

    struct Step {
        vector<double> h_before, c_before, gates, hidden_n, c, full;  // of this step's rows
    };

    void compute(int64_t d) {
        Direction& io = dir[d];
        const int64_t G = fused_rnn::gates_of(cell), GH = G * H, B = seq.B;
        const bool lstm = fused_rnn::is_lstm(cell), gru = fused_rnn::is_gru(cell);
        vector<double> h = io.h0, c = io.c0;
        vector<Step> steps(static_cast<size_t>(seq.T));
        for (int64_t k = 0; k < seq.T; ++k) {
            const int64_t t = d ? seq.T - 1 - k : k;
            Step& s = steps[static_cast<size_t>(t)];
            for (int64_t b = 0; b < seq.rows(t); ++b) {
                if (!anew(d, t, b)) continue;
                set_anew(h, io.h0, b);
                set_anew(c, io.c0, b);
            }
            s.h_before = h;
            s.c_before = c;
            s.gates.resize(static_cast<size_t>(B * GH));
            s.hidden_n.resize(static_cast<size_t>(B * H));
            s.full.resize(static_cast<size_t>(B * H));
            for (int64_t b = 0; b < seq.rows(t); ++b) {
                const double* gx = io.gx.data() + (seq.row(t) + b) * GH;
                double* a = s.gates.data() + b * GH;
                for (int64_t g = 0; g < G; ++g) {
                    for (int64_t u = 0; u < H; ++u) {
                        double product = 0;
                        for (int64_t r = 0; r < R; ++r) product += io.w_hh[(g * H + u) * R + r] * s.h_before[b * R + r];
                        const double x = gx[g * H + u] + io.bias[g * H + u];
                        if (gru && g == 2) {
                            s.hidden_n[b * H + u] = product + io.bias[GH + u];
                            a[g * H + u] = state(x + a[u] * s.hidden_n[b * H + u]);
                        } else {
                            const bool is_state = (lstm && g == 2) || G == 1;
                            a[g * H + u] = is_state ? state(x + product) : gate(x + product);
                        }
                    }
                }
                for (int64_t u = 0; u < H; ++u) {
                    double out = a[u];
                    if (lstm) {
                        c[b * H + u] = a[H + u] * c[b * H + u] + a[u] * a[2 * H + u];
                        out = a[3 * H + u] * state(c[b * H + u]);
                    } else if (gru) {
                        out = (1 - a[H + u]) * a[2 * H + u] + a[H + u] * s.h_before[b * R + u];
                    }
                    s.full[b * H + u] = out;
                }
                for (int64_t r = 0; r < R; ++r) {
                    double out = s.full[b * H + r % H];
                    if (projected()) {
                        out = 0;
                        for (int64_t u = 0; u < H; ++u) out += io.w_hr[r * H + u] * s.full[b * H + u];
                    }
                    h[b * R + r] = y[(seq.row(t) + b) * D * R + d * R + r] = out;
                }
            }
            s.c = c;
        }
        std::copy(h.begin(), h.end(), hn.begin() + d * B * R);
        io.cn = c;
        backward(d, steps);
    }

    void backward(int64_t d, const vector<Step>& steps) {
        Direction& io = dir[d];
        const int64_t G = fused_rnn::gates_of(cell), GH = G * H;
        const bool lstm = fused_rnn::is_lstm(cell), gru = fused_rnn::is_gru(cell);
        io.dgx.resize(static_cast<size_t>(rows() * GH));
        io.dgh = io.dgx;
        io.dr.resize(static_cast<size_t>(rows() * R));
        io.dh0 = io.dhn;
        io.dc0 = io.dcn;
        vector<double> dfull(static_cast<size_t>(H)), dh_sums(io.dh0.size()), dc_sums(io.dc0.size());
        for (int64_t k = 0; k < seq.T; ++k) {
            const int64_t t = d ? k : seq.T - 1 - k;
            const Step& s = steps[static_cast<size_t>(t)];
            for (int64_t b = 0; b < seq.rows(t); ++b) {
                const int64_t n = seq.row(t) + b;
                double *dh = io.dh0.data() + b * R, *dgx = io.dgx.data() + n * GH, *dgh = io.dgh.data() + n * GH;
                const double* a = s.gates.data() + b * GH;
                for (int64_t r = 0; r < R; ++r) io.dr[n * R + r] = dh[r] + dy[n * D * R + d * R + r];
                for (int64_t u = 0; u < H; ++u) {
                    dfull[u] = projected() ? 0 : io.dr[n * R + u];
                    for (int64_t r = 0; projected() && r < R; ++r) dfull[u] += io.w_hr[r * H + u] * io.dr[n * R + r];
                }
                for (int64_t r = 0; r < R; ++r) dh[r] = 0;
                for (int64_t u = 0; u < H; ++u) {
                    const double g = dfull[u];
                    if (lstm) {
                        const double i = a[u], f = a[H + u], n_ = a[2 * H + u], o = a[3 * H + u];
                        const double tc = state(s.c[b * H + u]);
                        const double shown = dcells.empty() ? 0 : dcells[(n * D + d) * H + u];
                        const double dc = io.dc0[b * H + u] + shown + g * o * state_slope(tc);
                        dgx[u] = dc * n_ * gate_slope(i);
                        dgx[H + u] = dc * s.c_before[b * H + u] * gate_slope(f);
                        dgx[2 * H + u] = dc * i * state_slope(n_);
                        dgx[3 * H + u] = g * tc * gate_slope(o);
                        io.dc0[b * H + u] = dc * f;
                    } else if (gru) {
                        const double r = a[u], z = a[H + u], n_ = a[2 * H + u];
                        const double dn = g * (1 - z) * state_slope(n_);
                        dgx[u] = dn * s.hidden_n[b * H + u] * gate_slope(r);
                        dgx[H + u] = g * (s.h_before[b * R + u] - n_) * gate_slope(z);
                        dgx[2 * H + u] = dn;
                        dgh[2 * H + u] = dn * r;
                        dh[u] += g * z;
                    } else {
                        dgx[u] = g * state_slope(a[u]);
                    }
                }
                for (int64_t g = 0; g < GH; ++g) {
                    if (!gru || g < 2 * H) dgh[g] = dgx[g];
                    for (int64_t r = 0; r < R; ++r) dh[r] += dgh[g] * io.w_hh[g * R + r];
                }
                if (!anew(d, t, b)) continue;
                move_out(io.dh0, dh_sums, b);
                move_out(io.dc0, dc_sums, b);
            }
        }
        for (size_t k = 0; k < dh_sums.size(); ++k) io.dh0[k] += dh_sums[k];
        for (size_t k = 0; k < dc_sums.size(); ++k) io.dc0[k] += dc_sums[k];
    }
};

}  // namespace naive
