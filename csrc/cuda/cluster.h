// What both passes of a loop of clusters have in common: which cells are a thread's, and how blocks hand each other values
// through their shared memory, without a barrier: a mailbox counts the bytes that have come, and who waits for as many as he
// expects knows them all there. There are two, in turn, and two places for what is sent: a block that sends for an
// exchange has received all of the one before, so it cannot be two ahead of one that still reads.
#pragma once
#include "fragments.h"
#include "product.h"

namespace fused_rnn::cuda {

// Who of `count` has what in rows of `size` things: one of each row, in every so-many-th; those who are over have nothing.
struct ShareOfRows {
    int at, first, apart;

    FUSED_RNN_DEVICE ShareOfRows(int index, int count, int size)
        : ShareOfRows(index, count / size, size, inverse_of(size)) {}
    // Without a division: quotients of numbers below 256 by a size up to 64 are exact.
    FUSED_RNN_DEVICE ShareOfRows(int index, int rows, int size, int inverse)
        : at(index - (index * inverse >> 16) * size), first(index * inverse >> 16), apart(rows) {
        if (first >= apart) first = kClusterRows;
    }
    static FUSED_RNN_DEVICE int inverse_of(int size) { return (1 << 16) / size + 1; }
};

template <class Device>
class Mailboxes {
    using Box = typename Device::Mailbox;

  public:
    // Rows of `bytes` are sent to each block. Nothing may be before all blocks of the cluster have met behind this.
    FUSED_RNN_DEVICE Mailboxes(const Device& dev, const ClusterGrid& grid, int part, int bytes, void* memory)
        : dev_(dev),
          parts_(grid.parts),
          part_(part),
          vectors_(bytes / kVectorBytes),
          rows_(32 / vectors_),
          inverse_(ShareOfRows::inverse_of(vectors_)),
          boxes_(static_cast<Box*>(memory)) {
        if (dev.thread() == 0) {
            dev.open(boxes_);
            dev.open(boxes_ + 1);
        }
    }

    // The place of what the last exchange brought; before the first it is anybody's.
    FUSED_RNN_DEVICE int here() const { return exchanges_ % 2; }
    FUSED_RNN_DEVICE int there() const { return here() ^ 1; }

    // What is sent: so many bytes, more than none, from all blocks together, this one too. Then what was sent is here.
    FUSED_RNN_DEVICE void expect(int bytes) const {
        if (dev_.thread() == 0) dev_.expect(boxes_ + there(), bytes);
    }
    FUSED_RNN_DEVICE void await() {
        const unsigned parity = exchanges_ / 2 % 2;
        ++exchanges_;
        dev_.await(boxes_ + here(), parity);
    }

    // So many rows to each block. from(row, offset) gives what a peer gets of one, to(row) is where it lies there.
    template <class From, class To>
    FUSED_RNN_DEVICE void send(int rows, const From& from, const To& to) const {
        const ShareOfRows mine(static_cast<int>(dev_.again(static_cast<unsigned>(dev_.thread())) % 32), rows_, vectors_,
                               inverse_);
        const int offset = mine.at * kVectorBytes;
        for (int row = mine.first; row < rows; row += mine.apart) {
            const auto words = from(row, offset);
            for (int i = dev_.thread() / 32; i < parts_; i += kClusterWarps) {
                const int peer = (i + part_) & (parts_ - 1);  // not all to the same at once
                dev_.send16(peer, to(row) + offset, boxes_ + there(), words(peer));
            }
        }
    }

  private:
    const Device& dev_;
    const int parts_, part_;              // a power of two
    const int vectors_, rows_, inverse_;  // of a row; rows that a warp sends at once; for the quotient
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
    // Bit i: whether there is a row i, of so many, and f(its number in the batch).
    template <class Device, class Function>
    FUSED_RNN_DEVICE unsigned rows_where(const Device& dev, int rows, const Function& f) const {
        const unsigned row = dev.again(static_cast<unsigned>(dev.thread()) % 32);
        return dev.ballot(row < static_cast<unsigned>(rows) && f(b0 + row));
    }
};

// A thread's cells, of one unit of its block: neighbours in a row are neighbours in memory.
template <int kRowTiles>
struct OwnCells : ShareOfRows {
    static constexpr int kCount = kClusterUnits * kRowTile * kRowTiles / kClusterThreads;

    template <class Device>
    FUSED_RNN_DEVICE OwnCells(const Device& dev, const ClusterGrid& grid, const ClusterShare& share)
        : ShareOfRows(dev.thread(), dev.threads(), grid.units) {
        if (at >= share.units) first = kClusterRows;
    }
    FUSED_RNN_DEVICE bool any() const { return first < kClusterRows; }
    // f(i, row) for the i-th of them, of those in so many rows of the slice.
    template <class Device, class Function>
    FUSED_RNN_DEVICE void each(const Device& dev, unsigned rows, const Function& f) const {
        unsigned row = dev.again(static_cast<unsigned>(first));
        FUSED_RNN_UNROLL()
        for (int i = 0; i < kCount; ++i, row += static_cast<unsigned>(apart))
            if (row < rows) f(i, row);
    }
};

}  // namespace fused_rnn::cuda
