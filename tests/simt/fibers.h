// Threads of a kernel as fibers of one thread, in turn from barrier to barrier: far faster than threads of the system
// where these outnumber the cores by hundreds. A context is for a fiber's first steps on its own stack; from then on it goes by
// jumps, as a change of context is two calls of the system, for the mask of signals, which is always the same.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdlib>
#include <exception>
#include <memory>
#include <vector>

namespace fused_rnn::cuda {

struct Fibers {
    class Barrier {
      public:
        explicit Barrier(int count) : count_(count) {}
        void wait() {
            if (++arrived_ == count_) {
                arrived_ = 0;
                ++generation_;
                return;
            }
            for (const unsigned mine = generation_; mine == generation_;) yield();
        }

      private:
        const int count_;
        int arrived_ = 0;
        unsigned generation_ = 0;
    };

    // Goes on with the next fiber that has not ended.
    static void yield() {
        State& s = *state();
        const int from = s.current;
        s.turn();
        if (s.current != from && _setjmp(s.fibers[from].left) == 0) s.go_on();
    }

    template <class Body>
    static void run(int count, const Body& body) {
        constexpr size_t kStack = 64 << 10;
        State s;
        State* const outer = state();
        state() = &s;
        s.fibers.resize(count);
        s.stacks.reset(new unsigned char[kStack * count]);
        s.left = count;
        s.body = [](const void* what, int i) { (*static_cast<const Body*>(what))(i); };
        s.what = &body;
        for (int i = 0; i < count; ++i) {
            ucontext_t& context = s.fibers[i].context;
            getcontext(&context);
            context.uc_stack.ss_sp = s.stacks.get() + kStack * i;
            context.uc_stack.ss_size = kStack;
            makecontext(&context, reinterpret_cast<void (*)()>(&enter), 0);
        }
        if (_setjmp(s.main) == 0) s.go_on();
        state() = outer;
        if (s.error) std::rethrow_exception(s.error);
    }

  private:
    struct Fiber {
        ucontext_t context;
        jmp_buf left;
        bool begun = false, done = false;
    };
    struct State {
        std::vector<Fiber> fibers;
        std::unique_ptr<unsigned char[]> stacks;
        jmp_buf main;
        int current = 0, left = 0;
        void (*body)(const void*, int);
        const void* what;
        std::exception_ptr error;

        // To the next that has not ended.
        void turn() {
            do {
                current = current + 1 == static_cast<int>(fibers.size()) ? 0 : current + 1;
            } while (fibers[current].done);
        }
        [[noreturn]] void go_on() {
            Fiber& fiber = fibers[current];
            if (fiber.begun) _longjmp(fiber.left, 1);
            fiber.begun = true;
            setcontext(&fiber.context);
            std::abort();  // it does not come back
        }
    };
    static State*& state() {
        thread_local State* current = nullptr;
        return current;
    }
    static void enter() {
        State& s = *state();
        try {
            s.body(s.what, s.current);
        } catch (...) {
            s.error = std::current_exception();
        }
        s.fibers[s.current].done = true;
        if (--s.left == 0) _longjmp(s.main, 1);
        s.turn();  // not back here
        s.go_on();
    }
};

}  // namespace fused_rnn::cuda
