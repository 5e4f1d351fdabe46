// The product of a step, block by block: rows of an operand (h, or gate gradients) with rows of weights, staged through
// shared memory a chunk of the summed dimension at a time, two chunks in flight; what follows a sum is the caller's Work:
//
//   K(), columns()       the summed dimension; units (cells of a row)
//   operand(b)           row b of the operand, or null where the product is zero
//   skip(k)              where element k of that row lies
//   weight(g, j)         the row of weights of gate g, unit j, K() before that of unit j + 1; null where all are zero
//   copies16()           whether both may be copied 16 bytes at a time
//   Cell load(b, j)      what the cell needs beside the sum: read before the barrier, while other blocks still work
//   store(b, j, cell, sums)
#pragma once
#include "plan.h"
#include "tiles.h"

namespace fused_rnn::cuda {

// The barrier of the blocks that share one slice of the batch, in two halves.
template <class Device>
class GroupBarrier {
  public:
    FUSED_RNN_DEVICE GroupBarrier(const Device& dev, unsigned* arrivals, int parts)
        : dev_(dev), arrivals_(arrivals), parts_(static_cast<unsigned>(parts)) {}

    // What this block wrote so far may be read by the others.
    FUSED_RNN_DEVICE void arrive() {
        dev_.sync(Sync::kArrive);
        if (parts_ > 1 && dev_.thread() == 0) dev_.arrive(arrivals_);
        expected_ += parts_;
    }
    // All blocks have arrived as often as this one.
    FUSED_RNN_DEVICE void await() {
        if (parts_ > 1 && dev_.thread() == 0) dev_.await(arrivals_, expected_);
        dev_.sync(Sync::kAwait);
    }

  private:
    const Device& dev_;
    unsigned* arrivals_;
    unsigned parts_, expected_ = 0;
};

// Which direction, slice and units are this block's.
struct Share {
    int64_t direction, b0, b1;
    int part, group;

    FUSED_RNN_DEVICE Share(int block, const Slices& grid, int64_t B) {
        group = block / grid.parts;
        part = block % grid.parts;
        direction = group / grid.slices;
        b0 = group % grid.slices * grid.slice_rows;
        b1 = b0 + grid.slice_rows < B ? b0 + grid.slice_rows : B;
    }
    // Where its rows end in a step that has so many.
    FUSED_RNN_DEVICE int64_t end(int64_t rows) const { return rows < b1 ? rows : b1; }
};

template <class Tile, int G, class Device>
class Product {
    using S = typename Tile::S;
    using F = typename Tile::F;
    static constexpr int kSize = static_cast<int>(sizeof(S));

  public:
    FUSED_RNN_DEVICE Product(const Device& dev, const Grid& grid, int part, int64_t K, bool resident)
        : dev_(dev),
          teams_(grid.teams),
          part_(part),
          parts_(grid.parts),
          chunk_(grid.chunk),
          resident_(resident),
          lda_(padded_row<S>(grid.chunk)),
          ldw_(padded_row<S>(resident ? round_up(K, Tile::kStep) : grid.chunk)) {
        rows_ = static_cast<const S**>(dev.shared());
        a_ = reinterpret_cast<S*>(rows_ + kRowPointers);
        const int chunk = Tile::kRows * lda_;
        exchange_ = reinterpret_cast<unsigned char*>(a_ + chunk);
        w_ = a_ + operand_bytes(chunk * kSize, teams_ * Tile::kExchange, resident) / kSize;
    }

    // Resident weights: once, before the first step. The first run() waits for them.
    template <class Work>
    FUSED_RNN_DEVICE void load_weights(const Work& work) {
        S* to = w_;
        for (int64_t j0 = first_unit(); j0 < work.columns(); j0 += stride(), to += tile_columns() * ldw_)
            stage_weights(to, work, j0, 0, work.K());
        dev_.commit_copies();
    }

    // Rows [b0, b1), after `barrier`: the operand is what other blocks wrote before it.
    template <class Work>
    FUSED_RNN_DEVICE void run(const Work& work, int64_t b0, int64_t b1, GroupBarrier<Device>& barrier) {
        bool waits = true;
        for (int64_t row0 = b0; row0 < b1; row0 += Tile::kRows) {
            bool staged = false;  // the rows of the operand, whole
            const S* w = w_;
            for (int64_t j0 = first_unit(); j0 < work.columns(); j0 += stride(), w += tile_columns() * ldw_) {
                Tile tile(dev_.thread());
                const int64_t u0 = j0 + dev_.thread() / Tile::kTeam * Tile::kUnits;
                const int64_t b = row0 + tile.row(), j = u0 + tile.unit();
                const bool holds = tile.holds_cells() && b < b1 && j < work.columns();
                typename Work::Cell cell{};
                if (holds) cell = work.load(b, j);
                if (!staged && dev_.thread() < Tile::kRows)
                    rows_[dev_.thread()] = row0 + dev_.thread() < b1 ? work.operand(row0 + dev_.thread()) : nullptr;
                if (waits) {
                    barrier.await();
                    waits = false;
                } else {
                    dev_.sync(Sync::kRows);
                }
                multiply(tile, work, j0, w, staged);
                staged = work.K() <= chunk_;
                if (!holds) continue;
                F sums[G];
                FUSED_RNN_UNROLL()
                for (int g = 0; g < G; ++g) sums[g] = tile.sum(g);
                work.store(b, j, cell, sums);
            }
        }
        if (waits) barrier.await();  // no units for this block; it keeps pace
    }

  private:
    FUSED_RNN_DEVICE int units() const { return teams_ * Tile::kUnits; }
    FUSED_RNN_DEVICE int tile_columns() const { return units() * G; }
    FUSED_RNN_DEVICE int64_t first_unit() const { return static_cast<int64_t>(part_) * units(); }
    FUSED_RNN_DEVICE int64_t stride() const { return static_cast<int64_t>(parts_) * units(); }

    template <class Work>
    FUSED_RNN_DEVICE void multiply(Tile& tile, const Work& work, int64_t j0, const S* resident, bool staged) {
        const int64_t K = work.K();
        const int team_row = dev_.thread() / Tile::kTeam * Tile::kUnits;
        stage(work, j0, 0, staged);
        int buffer = 0;
        for (int64_t k0 = 0; k0 < K; k0 += chunk_, buffer ^= 1) {
            const int64_t end = k0 + chunk_ < K ? k0 + chunk_ : K;
            if (end < K) {
                stage(work, j0, end, staged, buffer ^ 1);
                dev_.template await_copies<1>();
            } else {
                dev_.template await_copies<0>();
            }
            dev_.sync(Sync::kStaged);
            const S* w = resident_ ? resident + k0 : w_ + buffer * tile_columns() * ldw_;
            tile.add(dev_, a_ + buffer * Tile::kRows * lda_, lda_, w + team_row * ldw_, ldw_, units() * ldw_,
                     static_cast<int>(round_up(end - k0, Tile::kStep)));
            dev_.sync(Sync::kConsumed);  // the buffer is free again
        }
        tile.complete(dev_, exchange_ + dev_.thread() / Tile::kTeam * Tile::kExchange);
    }

    template <class Work>
    FUSED_RNN_DEVICE void stage(const Work& work, int64_t j0, int64_t k0, bool staged, int buffer = 0) {
        const int64_t end = k0 + chunk_ < work.K() ? k0 + chunk_ : work.K();
        if (!staged) {
            copy_rows(
                a_ + buffer * Tile::kRows * lda_, lda_, Tile::kRows, k0, end, work.copies16(),
                [&](int r) { return rows_[r]; }, [&](int64_t k) { return work.skip(k); });
        }
        if (!resident_) stage_weights(w_ + buffer * tile_columns() * ldw_, work, j0, k0, end);
        dev_.commit_copies();
    }

    template <class Work>
    FUSED_RNN_DEVICE void stage_weights(S* to, const Work& work, int64_t j0, int64_t k0, int64_t end) {
        const int64_t left = work.columns() - j0;
        const int present = left < units() ? static_cast<int>(left) : units(), K = static_cast<int>(work.K());
        FUSED_RNN_UNROLL(1)
        for (int g = 0; g < G; ++g, to += units() * ldw_) {
            const S* const rows = work.weight(g, j0);
            copy_rows(
                to, ldw_, units(), k0, end, work.copies16(),
                [&](int unit) { return rows && unit < present ? rows + static_cast<int64_t>(unit) * K : nullptr; },
                [](int64_t k) { return k; });
        }
    }

    // Elements [k0, end) of `count` rows, filled up with zeros to a whole step; a null row is all zeros. A thread has the same
    // place in some of the rows, where it fits in more than one.
    template <class Row, class Place>
    FUSED_RNN_DEVICE void copy_rows(S* to, int ld, int count, int64_t k0, int64_t end, bool copies16, const Row& row,
                                    const Place& place) {
        using V = Vector<S>;
        const auto pieces = static_cast<unsigned>(round_up(end - k0, Tile::kStep)) / V::kCount;
        const auto thread = static_cast<unsigned>(dev_.thread()), threads = static_cast<unsigned>(dev_.threads());
        const unsigned abreast = pieces < threads ? pieces : threads, rows = threads / abreast;
        if (thread >= rows * abreast) return;
        for (unsigned piece = thread % abreast; piece < pieces; piece += abreast) {
            const int offset = static_cast<int>(piece) * V::kCount, first = static_cast<int>(thread / abreast);
            const int64_t k = k0 + offset;
            if (copies16 && k + V::kCount <= end) {
                copy_pieces(to + offset, ld, first, count, static_cast<int>(rows), place(k), row);
                continue;
            }
            for (int r = first; r < count; r += static_cast<int>(rows)) {
                V filled{};
                if (const S* from = row(r)) {
                    FUSED_RNN_UNROLL()
                    for (int e = 0; e < V::kCount; ++e)
                        if (k + e < end) filled.at[e] = dev_.fresh(from + place(k + e));
                }
                *reinterpret_cast<V*>(to + r * ld + offset) = filled;
            }
        }
    }
    // One of them each of rows first, first + step, ..., four at a time: first where they lie, as that takes a while to come.
    template <class Row>
    FUSED_RNN_DEVICE void copy_pieces(S* to, int ld, int first, int count, int step, int64_t from, const Row& row) {
        constexpr int kAtOnce = 4;
        FUSED_RNN_UNROLL(1)
        for (int r = first; r < count; r += kAtOnce * step) {
            const S* rows[kAtOnce];
            FUSED_RNN_UNROLL()
            for (int i = 0; i < kAtOnce; ++i) rows[i] = r + i * step < count ? row(r + i * step) : nullptr;
            FUSED_RNN_UNROLL()
            for (int i = 0; i < kAtOnce; ++i) {
                if (r + i * step >= count) break;
                S* at = to + (r + i * step) * ld;
                if (rows[i]) {
                    dev_.copy16(at, rows[i] + from);
                } else {
                    *reinterpret_cast<Vector<S>*>(at) = Vector<S>{};
                }
            }
        }
    }

    const Device& dev_;
    const int teams_, part_, parts_, chunk_;
    const bool resident_;
    const int lda_, ldw_;
    const S** rows_;
    S *a_, *w_;
    unsigned char* exchange_;
};

}  // namespace fused_rnn::cuda
