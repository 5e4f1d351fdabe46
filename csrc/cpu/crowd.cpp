#include "crowd.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <ctime>

namespace fused_rnn::cpu {

namespace {

constexpr int64_t kJudgedNs = 20'000'000;      // of teams' work; a scheduler's time slices are a few milliseconds
constexpr int64_t kJudgedAgainNs = 5'000'000;  // where it was crowded the last time
constexpr int64_t kPause = 64;                 // times the time judged: a look at the whole team costs 2%
constexpr int64_t kLeastPauseNs = 1'000'000'000, kMostPauseNs = 10'000'000'000;
constexpr double kTaken = 0.15;                  // of the team's time; a quiet machine takes a few hundredths at most
constexpr double kWorked = 0.65;                 // half of the threads, left alone, would do as much
constexpr double kLeft = 0.05;                   // of half a team's: others may be gone
constexpr int kMostEarly = 9;                    // each time that they were not, twice as long until the next such look
constexpr int64_t kForgottenNs = 1'000'000'000;  // one such time

thread_local int64_t slept = 0;

int64_t thread_ns(int64_t otherwise) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
    timespec time;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time) == 0) return time.tv_sec * int64_t(1'000'000'000) + time.tv_nsec;
#endif
    return otherwise;
}

Crowd& crowd() {
    static Crowd whole;
    return whole;
}
bool fixed() {
    static const bool fixed = [] {
        const char* text = std::getenv("FUSED_RNN_FIXED_THREADS");
        return text && text[0] == '1';
    }();
    return fixed;
}

}  // namespace

int64_t now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch())
        .count();
}
void note_sleep(int64_t ns) { slept += ns; }

Stopwatch::Stopwatch() : wall_(now_ns()), worked_(thread_ns(wall_)), slept_(slept) {}
Spent Stopwatch::spent() const {
    const int64_t now = now_ns();
    return {now - wall_, thread_ns(now) - worked_, slept - slept_};
}

int Crowd::threads(int wanted, int64_t now) {
    if (wanted < 2 || !crowded()) return wanted;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (now >= until_) {
        halvings_.fetch_sub(halvings_.load() > 0);
        until_ = now;
        seen_ = {};
    }
    return std::max(1, wanted >> halvings_.load());
}

void Crowd::account(int wanted, int64_t duration_ns, const Spent& members, int64_t now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    seen_.duration_ns += duration_ns;
    seen_.wall_ns += wanted * duration_ns;
    seen_.worked_ns += members.worked_ns;
    seen_.taken_ns += members.wall_ns - members.worked_ns - members.slept_ns;
    if (seen_.duration_ns < judged_ns()) return;
    judge(wanted > 1, now);
    seen_ = {};
}

int64_t Crowd::judged_ns() const {
    if (crowded()) return kJudgedNs << early_;
    return was_crowded_ ? kJudgedAgainNs : kJudgedNs;
}

void Crowd::judge(bool can_shrink, int64_t now) {
    const double wall = static_cast<double>(seen_.wall_ns), taken = static_cast<double>(seen_.taken_ns);
    if (can_shrink && taken > kTaken * wall && static_cast<double>(seen_.worked_ns) < kWorked * wall) {
        if (!crowded()) early_ = static_cast<int>(std::max<int64_t>(0, early_ - (now - until_) / kForgottenNs));
        halvings_.fetch_add(halvings_.load() < 16);
        until_ = now + std::clamp(kPause * seen_.duration_ns, kLeastPauseNs, kMostPauseNs);
        was_crowded_ = true;
    } else if (!crowded()) {
        was_crowded_ = false;
    } else if (taken < kLeft * wall) {
        until_ = now;
        early_ = std::min(early_ + 1, kMostEarly);
    }
}

bool in_crowd() { return crowd().crowded(); }
int threads_in_crowd(int wanted) {
    return in_crowd() ? crowd().threads(wanted, now_ns()) : wanted;  // a fixed one never is
}
void account_in_crowd(int wanted, int64_t duration_ns, const Spent& members) {
    if (!fixed()) crowd().account(wanted, duration_ns, members, now_ns());
}

}  // namespace fused_rnn::cpu
