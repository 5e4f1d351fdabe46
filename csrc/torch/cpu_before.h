// What each row of a piece of time started from.
#pragma once
#include "cpu_layer.h"

namespace fused_rnn {

// One state of one direction, h or c: that of the step before in walking order, the initial one, or the one that an
// episode begins from.
template <class F, class S>
class StateBefore {
  public:
    StateBefore() = default;
    // Row n of the sequence left its state at kept + n * ld, row b of the batch began with first + b * ld_first, and begins
    // an episode with anew + b * ld_anew; all are multiplied by mask + b * ld_mask, or null. For pieces of up to `most` rows.
    StateBefore(const S* kept, int64_t ld, int64_t width, const F* first, int64_t ld_first, const F* anew,
                int64_t ld_anew, const F* mask, int64_t ld_mask, int64_t most)
        : kept_(kept),
          first_(first),
          anew_(anew),
          mask_(mask),
          ld_(ld),
          width_(width),
          ld_first_(ld_first),
          ld_anew_(ld_anew),
          ld_mask_(ld_mask),
          buffer_(most * width) {}

    // All rows of steps [t0, t1), gathered anew.
    Matrix<const F> rows(const cpu::Crew& crew, const cpu::Kernels<F, S>& k, const Layer& l,
                         const cpu::BackwardArgs<F, S>& a, int64_t t0, int64_t t1) const {
        if (l.T == 1 && !l.begins && !mask_) return {first_, l.B, width_, ld_first_, 1};
        const int64_t count = l.rows_between(t0, t1), from_row = l.seq.row(t0);
        crew.split(t1 - t0, count * width_ >> 14, [&](int64_t from, int64_t end) {
            for (int64_t t = t0 + from; t < t0 + end; ++t) {
                const int64_t before = a.reverse ? t + 1 : t - 1;
                const int64_t rows = l.seq.rows(t), kept = std::min(rows, l.seq.rows(before));
                F* out = buffer_.data() + (l.seq.row(t) - from_row) * width_;
                if (kept) k.copy_in(kept_ + l.seq.row(before) * ld_, ld_, kept, width_, out, width_);
                for (int64_t b = kept; b < rows; ++b) std::copy_n(first_ + b * ld_first_, width_, out + b * width_);
                const cpu::Marks anew = cpu::reset_before(a, t);
                for (int64_t b = 0; b < anew.count; ++b)
                    if (anew[b]) std::copy_n(anew_ + b * ld_anew_, width_, out + b * width_);
                if (mask_) k.mask_rows(out, width_, mask_, ld_mask_, rows, width_, out, width_, false);
            }
        });
        return {buffer_.data(), count, width_, width_, 1};
    }

  private:
    const S* kept_ = nullptr;
    const F *first_ = nullptr, *anew_ = nullptr, *mask_ = nullptr;
    int64_t ld_ = 0, width_ = 0, ld_first_ = 0, ld_anew_ = 0, ld_mask_ = 0;
    Buffer<F> buffer_;
};

}  // namespace fused_rnn
