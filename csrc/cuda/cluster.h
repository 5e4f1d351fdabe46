// What both passes of a loop of clusters have in common: which cells are a thread's, and how blocks hand each other values
// through their shared memory, without a barrier: a mailbox counts the bytes that have come, and who waits for as many as he
// expects knows them all there. There are two, in turn, and two places for what is sent: a block that sends for an
// exchange has received all of the one before, so it cannot be two ahead of one that still reads.
#pragma once
#include "fragments.h"
#include "product.h"

namespace fused_rnn::cuda {

template <class Device>
class Mailboxes {
    using Box = typename Device::Mailbox;

  public:
    // Nothing may be sent before all blocks of the cluster have met behind this.
    FUSED_RNN_DEVICE Mailboxes(const Device& dev, const ClusterGrid& grid, int part, void* memory)
        : dev_(dev), parts_(grid.parts), part_(part), boxes_(static_cast<Box*>(memory)) {
        if (dev.thread() == 0) {
            dev.open(boxes_);
            dev.open(boxes_ + 1);
        }
    }

    // The place of what the last exchange brought; before the first it is anybody's.
    FUSED_RNN_DEVICE int here() const { return exchanges_ % 2; }
    FUSED_RNN_DEVICE int there() const { return here() ^ 1; }

    // What was sent: so many bytes, more than none, from all blocks together, this one too.
    FUSED_RNN_DEVICE void receive(int bytes) {
        const unsigned parity = exchanges_ / 2 % 2;
        ++exchanges_;
        if (dev_.thread() == 0) dev_.expect(boxes_ + here(), bytes);
        dev_.await(boxes_ + here(), parity);
    }

    // `rows` rows of `bytes` to each block; from(peer, row) and to(row) are where they lie here and there.
    template <class From, class To>
    FUSED_RNN_DEVICE void send(int rows, int bytes, const From& from, const To& to) const {
        const int pieces = bytes / kVectorBytes, lane = dev_.thread() % 32;
        for (int i = dev_.thread() / 32; i < parts_; i += kClusterWarps) {
            const int peer = (i + part_) % parts_;  // not all to the same at once
            for (int piece = lane; piece < rows * pieces; piece += 32) {
                const int row = piece / pieces, offset = piece % pieces * kVectorBytes;
                dev_.send16(peer, to(row) + offset, boxes_ + there(),
                            *reinterpret_cast<const FourWords*>(from(peer, row) + offset));
            }
        }
    }

  private:
    const Device& dev_;
    const int parts_, part_;
    Box* const boxes_;
    unsigned exchanges_ = 0;
};

// A block's: the slice of its cluster, and its units.
struct ClusterShare : Share {
    int64_t first_unit;
    int units;  // that are there, maybe none

    FUSED_RNN_DEVICE ClusterShare(int block, const ClusterGrid& grid, int64_t B, int64_t H)
        : Share(block, grid, B), first_unit(static_cast<int64_t>(part) * grid.units) {
        const int64_t left = H - first_unit;
        units = left < 0 ? 0 : left < grid.units ? static_cast<int>(left) : grid.units;
    }
    // Rows of the slice that a step of so many has.
    FUSED_RNN_DEVICE int rows_in(int64_t rows) const {
        const int64_t last = end(rows);
        return last > b0 ? static_cast<int>(last - b0) : 0;
    }
};

// The i-th cell of a thread, of all units of a block in all rows of its slice: neighbours in a row are neighbours in memory.
struct CellPlace {
    int row, unit;

    template <class Device>
    FUSED_RNN_DEVICE CellPlace(const Device& dev, const ClusterGrid& grid, int i) {
        const int index = dev.thread() + i * dev.threads();
        row = index / grid.units;
        unit = index % grid.units;
    }
};
template <int kRowTiles>
constexpr int kCellsEach = kClusterUnits * kRowTile * kRowTiles / kClusterThreads;

}  // namespace fused_rnn::cuda
