// A layer by the time loops, its results beside those of naive.h. Part of loops.cpp, inside its namespace.

float widen(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
float widen(f16 x) {
    const int exponent = x.bits >> 10 & 31, mantissa = x.bits & 1023;
    const float f = exponent ? std::ldexp(1024.0f + mantissa, exponent - 25) : std::ldexp(float(mantissa), -24);
    return x.bits >> 15 ? -f : f;
}
double widen(double x) { return x; }

// A value of the storage type through the kernels' own conversion, which tests/test_vector_math.py checks.
template <class F, class S>
vector<S> narrow(const vector<double>& from) {
    vector<F> wide(from.begin(), from.end());
    vector<S> to(from.size());
    if (!from.empty())
        cpu::kernels<F, S>().copy_out(wide.data(), int64_t(wide.size()), 1, int64_t(wide.size()), to.data(), 0);
    return to;
}

template <class S>
vector<double> wide(const vector<S>& from) {
    vector<double> to;
    for (const S& x : from) to.push_back(widen(x));
    return to;
}

// Rows of `width` beside each other -> rows `ld` apart, the gaps NaN: nothing may depend on them.
template <class F>
vector<F> spread(const vector<double>& from, int64_t width, int64_t ld) {
    vector<F> to(from.size() / width * ld, F(NAN));
    for (size_t k = 0; k < from.size(); ++k) to[k / width * ld + k % width] = F(from[k]);
    return to;
}

template <class F>
vector<double> gather(const vector<F>& from, int64_t width, int64_t ld) {
    vector<double> to;
    for (size_t row = 0; row < from.size() / ld; ++row)
        for (int64_t k = 0; k < width; ++k) to.push_back(from[row * ld + k]);
    return to;
}

// What reached the initial state: from the first step, and from later episodes where these begin from it.
template <class F>
vector<F> sum(vector<F> gradient, const vector<F>& of_episodes) {
    for (size_t k = 0; k < of_episodes.size(); ++k) gradient[k] += of_episodes[k];
    return gradient;
}

void check(const char* what, const Layer& l, const vector<double>& got, const vector<double>& want, double tolerance) {
    ++checks;
    if (got.size() == want.size()) {
        double worst = 0;
        for (size_t k = 0; k < got.size(); ++k) {
            const double error = std::fabs(got[k] - want[k]) / (1 + std::fabs(want[k]));
            if (!(error <= worst)) worst = error;
        }
        if (worst <= tolerance) return;
        std::printf("FAILED %s: error %g", what, worst);
    } else {
        std::printf("FAILED %s: %zu values, not %zu", what, got.size(), want.size());
    }
    std::printf(" (%s, cell %d T %d B %d H %d R %d D %d%s%s)\n", cpu::isa_name().c_str(), int(l.cell), int(l.seq.T),
                int(l.seq.B), int(l.H), int(l.R), int(l.D), l.seq.batch_sizes ? " packed" : "",
                l.begins ? " reset" : "");
    ++failures;
}

// One direction's buffers and arguments, as csrc/torch prepares them.
template <class F, class S>
struct Direction {
    const cpu::TileKernels<F, S>* tiles = nullptr;
    vector<S> x;  // an x of which w_ih, the identity, makes gx
    vector<F> gx, walk_gx, x_rows, packed_ih, bias, h[2], c, h_full, h0, c0, dh, dc, zeros, dh_reset, dc_reset, dgx,
        dgh, dr, packed_hh, packed_hr, back_hh, back_hr;
    ForwardArgs<F, S> forward{};
    BackwardArgs<F, S> backward{};

    Panels<F> pack(vector<F>& to, const vector<double>& w, int64_t rows, int64_t columns, int gates, bool transposed) {
        const auto& k = cpu::kernels<F, S>();
        const cpu::PanelShape shape{transposed ? rows / gates : columns, transposed ? gates : 1, k.W};
        const int64_t K = transposed ? columns : rows;
        const int64_t lanes = shape.count() * (shape.gates > 1 ? gates : cpu::kMaxVectors) * k.W;
        const vector<S> stored = narrow<F, S>(w);
        if (tiles) {
            to.assign(size_t(cpu::whole_tiles<S>(K) * lanes) * sizeof(bf16) / sizeof(F), F(NAN));
            (transposed ? tiles->pack_transposed : tiles->pack_plain)(
                stored.data(), columns, K, shape, 0, shape.count(), reinterpret_cast<bf16*>(to.data()));
            return {to.data(), K, shape.columns, shape.count()};
        }
        to.assign(size_t(K * lanes), F(NAN));
        (transposed ? k.pack_transposed : k.pack_plain)(stored.data(), columns, K, shape, 0, shape.count(), to.data());
        return {to.data(), K, shape.columns, shape.count()};
    }
};

template <class F, class S>
struct Run {
    const Layer& l;
    const cpu::TileKernels<F, S>* tiles;
    const bool walks;  // the forward pass, through ForwardWalk
    const int64_t piece;
    vector<S> y, saved, hn, dy, dcells;
    Direction<F, S> dir[2];
    int64_t ld_r, ld_h;
    bool forward_now = true;
    std::atomic<int> workers{0};

    Run(const Layer& layer, const cpu::TileKernels<F, S>* tiles, bool walks)
        : l(layer),
          tiles(tiles),
          walks(walks),
          piece((l.seq.T + 1) / 2),
          ld_r(cpu::padded(l.R)),
          ld_h(cpu::padded(l.H)) {
        const int64_t G = gates_of(l.cell), N = l.rows(), B = l.seq.B;
        y.resize(size_t(N * l.D * l.R));
        saved.resize(size_t(l.D * N * saved_of(l.cell, kSaveAll) * l.H));
        hn.resize(size_t(l.D * B * l.R));
        dy = narrow<F, S>(l.dy);
        dcells = narrow<F, S>(l.dcells);
        for (int d = 0; d < l.D; ++d) {
            auto& to = dir[d];
            to.tiles = tiles;
            const auto& in = l.dir[d];
            const auto state = [&](const vector<double>& s, int64_t width) {
                return spread<F>(wide(narrow<F, S>(s)), width, cpu::padded(width));
            };
            to.gx.assign(in.gx.begin(), in.gx.end());
            to.x = narrow<F, S>(in.gx);
            to.walk_gx.assign(size_t(piece * B * cpu::padded(G * l.H)), F(NAN));
            to.x_rows.assign(size_t(piece * B * G * l.H), F(NAN));
            vector<double> identity(size_t(G * l.H * G * l.H));
            for (int64_t k = 0; k < G * l.H; ++k) identity[size_t(k * (G * l.H + 1))] = 1;
            to.pack(to.packed_ih, identity, G * l.H, G * l.H, 1, true);
            to.bias.assign(in.bias.begin(), in.bias.end());
            to.h0 = to.h[0] = to.h[1] = state(in.h0, l.R);
            to.c0 = to.c = state(in.c0, l.H);
            to.h_full.assign(size_t(B * ld_h), F(NAN));
            to.dh = state(in.dhn, l.R);
            to.dc = state(in.dcn, l.H);
            to.dgx.assign(size_t(N * G * l.H), F(NAN));
            to.dgh = to.dgx;
            to.dr.assign(size_t(N * l.R), F(NAN));
            const int gates = int(G);
            auto& f = to.forward;
            f.seq = l.seq, f.cell = l.cell, f.variant = resolved(l.cell, {}), f.H = l.H, f.R = l.R, f.reverse = d == 1,
            f.two_products = l.projected();
            f.gx = to.gx.data(), f.ld_gx = G * l.H, f.bias = to.bias.data(), f.bias_hn = to.bias.data() + G * l.H;
            f.h[0] = to.h[0].data(), f.h[1] = to.h[1].data(), f.ld_h = ld_r;
            f.c = to.c.data(), f.ld_c = ld_h, f.h_full = to.h_full.data();
            f.y = y.data() + d * l.R, f.ld_y = l.D * l.R, f.hn = hn.data() + d * B * l.R;
            const int64_t vectors = saved_of(l.cell, kSaveAll);
            f.saved = saved_rows(l.cell, saved.data() + d * N * vectors * l.H, vectors, l.H);
            f.w_hh = to.pack(to.packed_hh, in.w_hh, G * l.H, l.R, gates, true);
            auto& b = to.backward;
            b.seq = l.seq, b.cell = l.cell, b.variant = f.variant, b.H = l.H, b.R = l.R, b.reverse = d == 1,
            b.two_products = l.projected();
            b.saved = saved_rows<const S>(l.cell, saved.data() + d * N * vectors * l.H, vectors, l.H, f.y, f.ld_y);
            b.dy = dy.data() + d * l.R, b.ld_dy = l.D * l.R, b.h0 = to.h0.data(), b.ld_h0 = ld_r;
            b.c0 = to.c0.data(), b.ld_c = ld_h, b.dh = to.dh.data(), b.ld_dh = ld_r, b.dc = to.dc.data();
            b.dgx = to.dgx.data(), b.dgh = is_gru(l.cell) ? to.dgh.data() : b.dgx, b.ld_dg = G * l.H;
            b.dr = to.dr.data(), b.ld_dr = l.R;
            if (!dcells.empty()) b.dcells = dcells.data() + d * l.H, b.ld_dcells = l.D * l.H;
            b.w_hh = to.pack(to.back_hh, in.w_hh, G * l.H, l.R, gates, false);
            if (l.begins) {
                to.zeros.assign(size_t(std::max(l.R, l.H)), F(0));
                f.reset = {l.begins.get(), to.zeros.data(), 0, to.zeros.data(), 0};
                if (l.reset == Reset::initial) {
                    f.reset = {l.begins.get(), to.h0.data(), ld_r, to.c0.data(), ld_h};
                    to.dh_reset.assign(to.dh.size(), F(0)), to.dc_reset.assign(to.dc.size(), F(0));
                    b.dh_reset = to.dh_reset.data(), b.dc_reset = to.dc_reset.data();
                }
                b.reset = f.reset;
            }
            if (l.projected()) {
                f.w_hr = to.pack(to.packed_hr, in.w_hr, l.R, l.H, 1, true);
                b.w_hr = to.pack(to.back_hr, in.w_hr, l.R, l.H, 1, false);
            }
        }
    }

    // The forward loops in pieces of time, each thread multiplying the rows of x that it goes on with.
    template <class Left, class Panel>
    void walk(int d, const Slice& slice, cpu::MultiplyPanels<Left, Panel, F> multiply,
              decltype(cpu::Kernels<F, S>::forward_loop) loop,
              decltype(cpu::ForwardWalk<F, S, Left, Panel>::copy) copy) {
        const int64_t width = gates_of(l.cell) * l.H;
        auto& from = dir[d];
        cpu::ForwardWalk<F, S, Left, Panel> w{};
        w.args = from.forward, w.loop = loop, w.multiply = multiply, w.copy = copy;
        w.args.ld_gx = cpu::padded(width);
        w.x = from.x.data(), w.x_step = l.seq.B * width, w.x_row = width, w.I = width;
        w.w_ih = reinterpret_cast<const Panel*>(from.packed_ih.data());
        w.w_ih_shape = {width, 1, cpu::kernels<F, S>().W};
        w.piece = piece, w.gx = from.walk_gx.data(), w.rows = reinterpret_cast<Left*>(from.x_rows.data());
        w.run(slice);
    }
    void walk(int d, const Slice& slice) {
        const auto& k = cpu::kernels<F, S>();
        if (!tiles) return walk<F, F>(d, slice, k.multiply, k.forward_loop, k.copy_in);
        walk<S, bf16>(d, slice, tiles->multiply, tiles->forward_loop,
                      [](const S* from, int64_t ld_from, int64_t rows, int64_t columns, S* to, int64_t ld_to) {
                          for (int64_t r = 0; r < rows; ++r) std::copy_n(from + r * ld_from, columns, to + r * ld_to);
                      });
    }

    static void work(void* context, const cpu::Share& share) {
        auto& self = *static_cast<Run*>(context);
        self.workers.fetch_add(1);
        const auto& k = cpu::kernels<F, S>();
        const auto forward_loop = self.tiles ? self.tiles->forward_loop : k.forward_loop;
        const auto backward_loop = self.tiles ? self.tiles->backward_loop : k.backward_loop;
        const int64_t T = self.l.seq.T, cut = T / 3;  // in two pieces of time, as chunks come
        for (int d = 0; d < self.l.D; ++d) {
            if (share.direction >= 0 && share.direction != d) continue;
            if (self.forward_now && self.walks) {
                self.walk(d, share.slice);
                continue;
            }
            std::array pieces{std::array{int64_t(0), cut}, std::array{cut, T}};
            if (self.forward_now != (d == 0)) std::swap(pieces[0], pieces[1]);
            for (const auto& [t0, t1] : pieces) {
                if (t0 == t1) continue;
                if (self.forward_now) {
                    forward_loop(self.dir[d].forward, t0, t1, share.slice);
                } else {
                    backward_loop(self.dir[d].backward, t0, t1, share.slice);
                }
                // as between two calls of run_loop
                if (share.slice.barrier) cpu::barrier_wait(share.slice.barrier);
            }
        }
    }

    // `loop` runs work() in some team.
    void operator()(const std::function<void(cpu::Work, void*)>& loop) {
        for (const bool forward : {true, false}) {
            forward_now = forward;
            workers = 0;
            loop(work, this);
            ++teams_of[size_t(workers)];
        }
    }

    void compare() const {
        const double eps = sizeof(S) == 8 ? 1e-11 : sizeof(S) == 4 ? 2e-4 : std::is_same_v<S, bf16> ? 0.1 : 0.02;
        const int64_t GH = gates_of(l.cell) * l.H;
        check("y", l, wide(y), l.y, eps);
        check("hn", l, wide(hn), l.hn, eps);
        for (int d = 0; d < l.D; ++d) {
            const auto& got = dir[d];
            const auto& want = l.dir[d];
            check("dgx", l, gather(got.dgx, GH, GH), want.dgx, eps);
            if (is_gru(l.cell)) check("dgh", l, gather(got.dgh, GH, GH), want.dgh, eps);
            if (l.projected()) check("dr", l, gather(got.dr, l.R, l.R), want.dr, eps);
            check("dh0", l, gather(sum(got.dh, got.dh_reset), l.R, ld_r), want.dh0, eps);
            if (!is_lstm(l.cell)) continue;
            check("cn", l, gather(got.c, l.H, ld_h), want.cn, eps);
            check("dc0", l, gather(sum(got.dc, got.dc_reset), l.H, ld_h), want.dc0, eps);
        }
    }
};
