// Threads of a kernel as threads of the system: what the thread sanitizer watches.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <thread>
#include <vector>

namespace fused_rnn::cuda {

struct Threads {
    class Barrier {
      public:
        explicit Barrier(int count) { pthread_barrier_init(&barrier_, nullptr, static_cast<unsigned>(count)); }
        ~Barrier() { pthread_barrier_destroy(&barrier_); }
        void wait() { pthread_barrier_wait(&barrier_); }

      private:
        pthread_barrier_t barrier_;
    };
    static void yield() { sched_yield(); }

    template <class Body>
    static void run(int count, const Body& body) {
        std::vector<std::thread> threads;
        for (int i = 0; i < count; ++i) threads.emplace_back([&body, i] { body(i); });
        for (auto& thread : threads) thread.join();
    }
};

}  // namespace fused_rnn::cuda
