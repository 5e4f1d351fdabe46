// The time loops of csrc/cpu alone, without torch or Python, against a plain scalar double implementation: every cell,
// storage type and instruction set, padded and packed, with a projection, with resets, in teams that split rows, units or
// directions, on thread pools that behave and on ones that do not. Built and run under the sanitizers by sanitize.sh.
#include <atomic>
#include <cmath>
#include <cstdio>
#include <deque>
#include <exception>
#include <functional>
#include <future>
#include <new>
#include <thread>

#include "naive.h"
#include "../../csrc/cpu/dispatch.h"
#include "../../csrc/cpu/forward_walk.h"
#include "../../csrc/cpu/team.h"

using namespace fused_rnn;
using fused_rnn::cpu::BackwardArgs;
using fused_rnn::cpu::Barrier;
using fused_rnn::cpu::ForwardArgs;
using fused_rnn::cpu::Panels;
using fused_rnn::cpu::Slice;
using naive::Layer;
using naive::Reset;
using std::vector;

namespace {

int failures = 0;
long checks = 0;
vector<long> teams_of(16);  // how many loops were done by so many threads

#include "run.h"
#include "teams.h"

template <class F, class S>
void every_team(const Layer& l, const cpu::TileKernels<F, S>* tiles = nullptr) {
    const int64_t panels = cpu::PanelShape{l.H, int(gates_of(l.cell)), cpu::kernels<F, S>().W}.count();
    const auto once = [&](const std::function<void(cpu::Work, void*)>& loop) {
        for (const bool walks : {false, true}) {
            Run<F, S> run(l, tiles, walks);
            run(loop);
            run.compare();
        }
    };
    once([&](cpu::Work work, void* context) { alone(l.seq.B, work, context); });
    // directions, parts of the rows, parts of the units
    for (const auto& parts : {std::array{1, 2, 1}, {1, 3, 1}, {1, 1, 2}, {1, 1, 4}, {2, 1, 1}, {2, 1, 2}}) {
        if (parts[0] > l.D) continue;
        once([&](cpu::Work work, void* context) { team(l.seq.B, parts[0], parts[1], parts[2], work, context); });
    }
    for (const auto& pool : pools) {
        // sizes from which divide_loop makes a team of rows, then of units
        for (const int64_t weight_bytes : {int64_t(1000), int64_t(1) << 30}) {
            const cpu::LoopSize size{l.D, l.seq.B, panels, weight_bytes, 1000, 1 << 20};
            once([&](cpu::Work work, void* context) { cpu::run_loop(pool, size, work, context); });
        }
        // a loop for one thread, to which others come for what is around it
        const cpu::LoopSize small{l.D, l.seq.B, panels, 1000, l.seq.T, 1000, 0, 1 << 30};
        once([&](cpu::Work work, void* context) { cpu::run_loop(pool, small, work, context); });
    }
}

// What one member of a crew wrote all others see after they have met; with a pool, the one caller.
void crews() {
    struct Sums {
        vector<long> squares = vector<long>(37), sums = vector<long>(37);
        static void work(void* context, const cpu::Share& share) { static_cast<Sums*>(context)->add(share.crew); }
        void add(const cpu::Crew& crew) {
            const auto n = int64_t(squares.size());
            for (long round = 1; round <= 20; ++round) {
                crew.split(n, round, [&](int64_t from, int64_t end) {
                    for (int64_t k = from; k < end; ++k) squares[size_t(k)] = k * k + round;
                });
                crew.split(n, n, [&](int64_t from, int64_t end) {
                    for (int64_t k = from; k < end; ++k) sums[size_t(k)] += squares[size_t(n - 1 - k)];
                });
            }
        }
    };
    const auto check_all = [](const Sums& of) {
        for (size_t k = 0; k < of.sums.size(); ++k) {
            const long from = long(of.sums.size() - 1 - k), want = 20 * from * from + 210;
            ++checks;
            if (of.sums[k] != want) ++failures, std::printf("crew: %ld for %ld\n", of.sums[k], want);
        }
    };
    for (const auto& pool : pools) {
        for (const int64_t rows : {1, 64}) {  // with and without parts of the loop for all
            Sums shared, called;
            cpu::run_loop(pool, {1, rows, 4, 1000, 1000, 1 << 16, 0, 1 << 30}, Sums::work, &shared);
            called.add(cpu::Crew(pool));
            check_all(shared);
            check_all(called);
        }
    }
}

// Layers side by side: each adds to what the one below it has left of a piece.
void floors() {
    struct Floors {
        vector<vector<long>> values = vector<vector<long>>(5, vector<long>(300));
        std::deque<cpu::Progress> progress = std::deque<cpu::Progress>(4);
        static void work(void* context, const cpu::Share& share) {
            auto& self = *static_cast<Floors*>(context);
            for (size_t i = size_t(share.layer); i < 4; i += size_t(share.layers)) self.walk(i);
        }
        void walk(size_t i) {
            for (size_t piece = 0; piece < 30; ++piece) {
                if (i) cpu::progress_wait(&progress[i - 1], int32_t(piece) + 1);
                for (size_t k = 10 * piece; k < 10 * (piece + 1); ++k) values[i + 1][k] = values[i][k] + long(k);
                cpu::progress_reach(&progress[i], int32_t(piece) + 1);
            }
        }
    };
    for (const auto& pool : pools) {
        Floors all;
        cpu::run_loop(pool, {1, 1, 4, 1000, 1000, 1 << 16, 0, 0, 4}, Floors::work, &all);
        for (size_t k = 0; k < 300; ++k) {
            ++checks;
            if (all.values[4][k] != long(4 * k))
                ++failures, std::printf("floor: %ld for %zu\n", all.values[4][k], 4 * k);
        }
    }
}

// One member of a team throws between two barriers: the others do not wait for it, and the caller hears of it.
void failing() {
    struct Failing {
        int from, at;
        std::atomic<int> members{0};
        static void work(void* context, const cpu::Share& share) {
            auto& self = *static_cast<Failing*>(context);
            const bool fails = self.members.fetch_add(1) == self.from;
            for (int round = 0; round < 100; ++round) {
                if (fails && round == self.at) {
                    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the others sleep
                    throw std::bad_alloc();
                }
                if (share.slice.barrier) cpu::barrier_wait(share.slice.barrier);
                share.crew.wait();
            }
        }
    };
    for (const auto& pool : pools) {
        for (const int64_t weight_bytes : {int64_t(1000), int64_t(1) << 30}) {  // parts of rows, then of units
            for (const auto& [from, at] : {std::array{0, 50}, {1, 0}, {1, 50}, {2, 0}, {2, 99}, {3, 0}}) {
                Failing all{from, at};
                bool heard = false;
                try {
                    cpu::run_loop(pool, {1, 64, 4, weight_bytes, 1000, 1 << 20}, Failing::work, &all);
                } catch (const std::bad_alloc&) {
                    heard = true;
                }
                ++checks;
                if (heard != (from < all.members))
                    ++failures, std::printf("failing: %d of %d\n", from, int(all.members));
            }
        }
    }
}

// float alone, or every storage type.
void every_type(const Layer& l, bool every) {
    every_team<float, float>(l);
    if (const auto* tiles = cpu::tile_kernels<float, float>()) every_team<float, float>(l, tiles);
    if (!every) return;
    every_team<double, double>(l);
    every_team<float, bf16>(l, cpu::tile_kernels<float, bf16>());
    every_team<float, f16>(l);
}

}  // namespace

int main(int argc, char** argv) {
    const bool quick = argc > 1 && std::string(argv[1]) == "quick";  // under an emulator
    // First: without its wait a race is found at once.
    floors();
    struct Size {
        int64_t T, B, H, P;
    };
    const vector<Size> sizes = {{1, 1, 1, 0}, {5, 7, 19, 0}, {4, 3, 70, 0}, {4, 13, 9, 0}, {5, 3, 21, 0}};
    for (const auto& isa : cpu::available_isas()) {
        cpu::force_isa(isa);
        long before = checks;
        for (int64_t cell = 0; cell < kCellCount; ++cell) {
            for (size_t k = 0; k < sizes.size(); ++k) {
                auto [T, B, H, P] = sizes[k];
                if (k + 1 == sizes.size()) {
                    if (!is_lstm(cell)) continue;
                    P = 18;
                }
                if (quick && k == 2) continue;
                for (const bool packed : {false, true}) {
                    const int D = 1 + int(k + packed) % 2;
                    // the rest differ in loads and stores alone
                    every_type(Layer(cell, T, B, H, P, D, packed, Reset::none, unsigned(k)),
                               k <= 1 || cell <= kRnnTanh);
                    if (k != 1 && k + 1 != sizes.size()) continue;
                    for (const Reset reset : {Reset::zero, Reset::initial})
                        every_type(Layer(cell, T, B, H, P, D, packed, reset, unsigned(k)), false);
                }
            }
        }
        std::printf("%s: %ld comparisons\n", isa.c_str(), checks - before);
    }
    crews();
    failing();
    std::printf("loops by size of team:");
    for (size_t n = 1; n < teams_of.size(); ++n)
        if (teams_of[n]) std::printf(" %zu: %ld", n, teams_of[n]);
    std::printf("\n%d failures\n", failures);
    return failures != 0;
}
