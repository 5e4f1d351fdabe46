#include "team.h"

#include <algorithm>
#include <deque>
#include <thread>

#include "crowd.h"
#include "subnormal.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fused_rnn::cpu {

namespace {

void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Longer than a sleeper takes to wake, 40 to 200 us on a virtual machine whose core has gone idle. With a shorter spin one
// sleep makes the next: the partner comes to the following barrier, waits there for the one who still wakes, sleeps too,
// and every step costs a wake-up from then on.
constexpr int64_t kSpinNs = 200'000;

// Whether it came within about that time.
template <class Done>
bool spin_until(const Done& done, int64_t longest_ns) {
    const int64_t end = now_ns() + longest_ns;
    do {
        for (int spin = 0; spin < 16; ++spin) {
            if (done()) return true;
            pause_briefly();
        }
    } while (now_ns() < end);
    return false;
}

// Spins while a partner is likely to answer within microseconds, then gives the core away at every
// look: on a busy machine the partner may be waiting for this very core.
template <class Done>
void wait_until(const Done& done) {
    constexpr int64_t kSoonNs = 6000;
    if (spin_until(done, kSoonNs)) return;
    while (!done()) std::this_thread::yield();
}

// Flags beside the number of members.
constexpr int kClosing = 1 << 29;  // no newcomers
constexpr int kClosed = 1 << 30;   // and the division is known

// What a core does while it has its weights in L2 and past it; only ratios matter here.
constexpr int64_t kFlopsPerNs = 150;
constexpr int64_t kBytesPerNs = 100;
constexpr int64_t kWorthNs = 12000;       // a parallel region must save about this much
constexpr int64_t kTeamNs = 20000;        // until its threads have come, and gone
constexpr int64_t kSlicesNs = 4'000'000;  // a scheduler's time slice, and a half
constexpr int64_t kRowsForReuse = 48;     // rows a core needs to hide weights that come from past L2
constexpr int64_t kRowsToHideL2 = 5;      // and weights that come from L2
constexpr int64_t kExchangeBytesPerNs = 3;

// Of a barrier, with what is read of others after it: between two cores 500 were measured, and each is one more to write
// to the same line.
int64_t barrier_ns(int64_t members) { return 250 * members; }

int64_t step_ns(const LoopSize& size) {
    return std::max(size.flops_per_step / kFlopsPerNs, size.weight_bytes / kBytesPerNs);
}

// Few rows wait for the weights; cores that share units read only a part of them.
bool sharing_units_pays(const LoopSize& size, int threads) {
    if (size.rows >= kRowsToHideL2 * threads) return false;
    const int64_t spared = size.weight_bytes * (threads - 1) / threads / kBytesPerNs;
    return spared > barrier_ns(threads) + size.rows * size.exchanged / kExchangeBytesPerNs;
}

int64_t serial_ns(const LoopSize& size) {
    return step_ns(size) * size.steps * size.directions * size.layers + size.flops_around / kFlopsPerNs;
}

// Of a step of one direction and layer, where a loop is divided so.
int64_t step_ns(const LoopSize& size, const Division& d) {
    const int64_t parts = int64_t(d.row_parts) * d.unit_parts;
    const int64_t waiting = d.unit_parts > 1 ? barrier_ns(d.unit_parts) : 0;
    return std::max(size.flops_per_step / parts / kFlopsPerNs, size.weight_bytes / d.unit_parts / kBytesPerNs) +
           waiting;
}

// Whether members wait for each other on the way; or, which on cores that others take is the same, at an end that comes within
// a time slice or two.
bool meets(const LoopSize& size, const Division& d) {
    return size.flops_around || d.unit_parts > 1 || d.layers > 1 || serial_ns(size) < kSlicesNs * d.threads;
}

// Threads to call up.
int team_size(const LoopSize& size, const Division& d, int threads) {
    if (!size.flops_around) return d.threads;
    return serial_ns(size) < kWorthNs ? d.threads : threads;
}

class Team {
  public:
    Team(const LoopSize& size, Work work, void* context, int wanted)
        : size_(size), work_(work), context_(context), wanted_(wanted) {}

    // Each thread that the pool gives. `parts`: of how many it stands.
    void run(bool leads, int64_t parts) {
        const Stopwatch watch;
        int rank = 0;
        if (!leads) {
            int members = members_.load(std::memory_order_relaxed);
            do {
                if (members & (kClosed | kClosing)) return;
            } while (!members_.compare_exchange_weak(members, members + 1));
            rank = members;
        }
        try {
            if (leads) {
                alone_ = parts == wanted_;
                form();
            } else {
                wait_until([&] { return members_.load(std::memory_order_acquire) & kClosed; });
            }
            if (rank < crew_) work_as(rank);
        } catch (...) {
            for (Barrier& barrier : barriers_) barrier_break(&barrier);
            members_.fetch_or(kClosed, std::memory_order_release);
            throw;
        }
        const Spent spent = watch.spent();
        wall_ns_ += spent.wall_ns;
        worked_ns_ += spent.worked_ns;
        slept_ns_ += spent.slept_ns;
    }

    // After all of them.
    void account(int64_t duration_ns) const {
        if (alone_) return;
        const int missing = wanted_ - (members_ & (kClosing - 1));
        account_in_crowd(wanted_, duration_ns, {wall_ns_ + missing * duration_ns, worked_ns_, slept_ns_});
    }

  private:
    void form() {
        // Waiting for a late worker must not cost more than its help is worth.
        const int64_t end = now_ns() + std::min<int64_t>(serial_ns(size_) / 4 + 10000, 2000000);
        while (!alone_ && members_.load(std::memory_order_relaxed) < wanted_ && now_ns() < end) {
            for (int k = 0; k < 16; ++k) pause_briefly();
        }
        // Close first to newcomers, then build what the members wait for.
        const int members = members_.fetch_or(kClosing);
        division_ = divide_loop(size_, members);
        const int crew = size_.flops_around ? members : division_.threads;
        for (int k = 0; k < division_.directions * division_.row_parts; ++k)
            barriers_.emplace_back(division_.unit_parts);
        barriers_.emplace_back(crew);
        crew_ = crew;
        members_.fetch_or(kClosed, std::memory_order_release);
    }

    void work_as(int rank) {
        const NoSubnormals here;
        const Division& d = division_;
        const Crew crew = crew_ > 1 ? Crew(rank, crew_, &barriers_.back()) : Crew();
        if (rank >= d.threads) return work_(context_, {-1, {0, 0, 0, 1, nullptr}, crew});
        if (d.layers > 1) return work_(context_, {-1, {0, size_.rows, 0, 1, nullptr}, crew, rank, d.layers});
        const int part = rank % d.unit_parts;
        const int group = rank / d.unit_parts;
        const int row_part = group % d.row_parts;
        const int64_t rows = size_.rows;
        const Slice slice{rows * row_part / d.row_parts, rows * (row_part + 1) / d.row_parts, part, d.unit_parts,
                          d.unit_parts > 1 ? &barriers_[group] : nullptr};
        work_(context_, {d.directions > 1 ? group / d.row_parts : -1, slice, crew});
    }

    const LoopSize& size_;
    const Work work_;
    void* const context_;
    const int wanted_;
    bool alone_ = false;            // a nested or serial region: nobody can come
    std::atomic<int> members_{1};   // the leader is in from the start
    std::deque<Barrier> barriers_;  // of those who share units; the last one is the crew's
    Division division_ = {};
    int crew_ = 1;
    std::atomic<int64_t> wall_ns_{0}, worked_ns_{0}, slept_ns_{0};  // of all members
};

}  // namespace

Division divide_loop(const LoopSize& size, int threads) {
    Division d{1, 1, 1, 1};
    const int64_t serial = step_ns(size) * size.steps * size.directions * size.layers;
    if (threads < 2 || serial < kWorthNs) return d;
    if (size.layers > 1) {
        d.threads = d.layers = static_cast<int>(std::min<int64_t>(threads, size.layers));
        return d;
    }
    if (size.directions > 1) d.directions = 2;
    const int each = threads / d.directions;
    const bool reuse = size.weight_bytes <= kL2Bytes || size.rows >= kRowsForReuse * each;
    if (each > 1 && size.rows >= 2 * each && reuse && !sharing_units_pays(size, each)) {
        d.row_parts = each;
    } else if (each > 1 && step_ns(size) > 2 * barrier_ns(each)) {
        d.unit_parts = static_cast<int>(std::min<int64_t>(each, size.panels));
    }
    d.threads = d.directions * d.row_parts * d.unit_parts;
    return d;
}

int threads_for(const LoopSize& size, const Pool& pool) {
    return pool.threads == pool.all || meets(size, divide_loop(size, pool.all)) ? pool.threads : pool.all;
}

bool side_by_side_pays(const LoopSize& layer, int64_t layers, int threads) {
    LoopSize all = layer;
    all.layers = layers;
    const Division together = divide_loop(all, threads);
    if (together.layers < 2) return false;
    const int64_t rounds = (layers + together.layers - 1) / together.layers;
    // The last layer begins when all below it have done a piece.
    const int64_t steps = rounds * layer.steps + (together.layers - 1) * steps_side_by_side(layer.steps, layer.rows);
    const Division apart = divide_loop(layer, threads);
    return layer.weight_bytes <= kL2Bytes / 2 &&  // W_ih comes by at each piece, too
           steps * step_ns(layer) + kTeamNs < layers * layer.steps * step_ns(layer, apart);
}

// Pieces are short, as a layer waits for the first one of those below it, but of two tiles of rows at least.
int64_t steps_side_by_side(int64_t steps, int64_t rows) {
    constexpr int64_t kPieces = 16, kRows = 12;
    return std::max(steps / kPieces, (kRows + rows - 1) / std::max<int64_t>(1, rows));
}

void run_loop(const Pool& pool, const LoopSize& size, Work work, void* context) {
    const int threads = threads_for(size, pool);
    const Division planned = divide_loop(size, threads);
    const int wanted = team_size(size, planned, threads);
    if (wanted < 2) {
        const NoSubnormals here;
        const Share all{-1, {0, size.rows, 0, 1, nullptr}};
        if (!in_crowd()) return work(context, all);
        const Stopwatch watch;
        work(context, all);
        const Spent spent = watch.spent();
        return account_in_crowd(1, spent.wall_ns, spent);
    }
    Team team(size, work, context, wanted);
    const Stopwatch watch;
    pool.run(
        wanted, [](void* team, int64_t begin, int64_t end) { static_cast<Team*>(team)->run(begin == 0, end - begin); },
        &team);
    if (meets(size, planned)) team.account(watch.spent().wall_ns);
}

void Awaited::set(int32_t value) {
    // Before they see it: what they wait for from then on is a core.
    if (sleepers_.load(std::memory_order_relaxed) > 0) told_ns_.store(now_ns(), std::memory_order_relaxed);
    // In one order with that look at whether anybody sleeps: else each side could miss the other.
    value_.store(value, std::memory_order_seq_cst);
    value_.notify_all();  // a look at a counter where nobody sleeps
}

template <class Done>
void Awaited::wait(const Done& done) const {
    if (spin_until([&] { return done(value()); }, kSpinNs)) return;
    // Asleep, not yielding: whoever yields on a busy core comes back a whole time slice later, whoever sleeps is woken at
    // once.
    const int64_t from = now_ns();
    sleepers_.fetch_add(1, std::memory_order_relaxed);
    for (int32_t seen = value(); !done(seen); seen = value()) value_.wait(seen, std::memory_order_acquire);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
    note_sleep(std::max<int64_t>(0, told_ns_.load(std::memory_order_relaxed) - from));
}

void barrier_wait(Barrier* barrier) {
    const int32_t epoch = barrier->epoch.value();
    if (barrier->arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == barrier->members) {
        barrier->arrived.store(0, std::memory_order_relaxed);
        return barrier->epoch.set(epoch + 1);
    }
    barrier->epoch.wait([&](int32_t now) { return now != epoch || barrier->broken; });
}

void barrier_break(Barrier* barrier) {
    barrier->broken = true;
    // Those who sleep look again; far from all epochs, as who comes later counts on from it.
    barrier->epoch.set(INT32_MIN);
}

void progress_wait(const Progress* of, int32_t pieces) {
    of->pieces.wait([&](int32_t done) { return done >= pieces; });
}

void progress_reach(Progress* own, int32_t pieces) { own->pieces.set(pieces); }

}  // namespace fused_rnn::cpu
