// How many threads to use while other processes want the same cores.
//
// Threads that meet at a barrier go at the pace of the one whose core somebody else has: with every core taken half of the
// time, two of them are slower than one, which the system moves to whichever core is free. So teams keep an account of
// what their cores did. Where cores were taken from a team and it got little done, calls get half of the threads for a
// while, then the whole again: soon, where nobody takes cores from the half either, as the others may be gone. Results are
// the same bits for any number of threads.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>

namespace fused_rnn::cpu {

// What a thread did between two moments.
struct Spent {
    int64_t wall_ns = 0;
    int64_t worked_ns = 0;  // had a core
    int64_t slept_ns = 0;   // waited for partners without one; the rest of `wall_ns` it wanted a core that others had
};

// Begins where it is made. Where the system does not tell a thread's own time, all of it counts as work.
class Stopwatch {
  public:
    Stopwatch();
    Spent spent() const;

  private:
    int64_t wall_, worked_, slept_;
};
int64_t now_ns();
// To be told by whoever lets this thread sleep.
void note_sleep(int64_t ns);

class Crowd {
  public:
    // Whether fewer are to be used at all.
    bool crowded() const { return halvings_.load(std::memory_order_relaxed) > 0; }
    // Of so many that a call may use.
    int threads(int wanted, int64_t now);
    // What a team of `wanted` threads did in `duration_ns`, its members' times added up; who came too late had no core.
    // Those of one thread are of interest while it is crowded.
    void account(int wanted, int64_t duration_ns, const Spent& members, int64_t now);

  private:
    int64_t judged_ns() const;
    void judge(bool can_shrink, int64_t now);

    std::mutex mutex_;
    std::atomic<int> halvings_{0};
    int64_t until_ = 0;         // they hold
    bool was_crowded_ = false;  // the last team that was not halved
    int early_ = 0;             // ends of halvings before their time, but for those long ago
    // Since the last judgement: over all threads that were wanted, and of that.
    struct {
        int64_t duration_ns = 0, wall_ns = 0, worked_ns = 0, taken_ns = 0;
    } seen_;
};

// That of the process. FUSED_RNN_FIXED_THREADS=1 in the environment: it never takes a thread away.
bool in_crowd();
int threads_in_crowd(int wanted);
void account_in_crowd(int wanted, int64_t duration_ns, const Spent& members);

}  // namespace fused_rnn::cpu
