// Ways to run a time loop in several threads. Part of loops.cpp, inside its namespace.

// One thread, all directions.
void alone(int64_t rows, cpu::Work work, void* context) { work(context, {-1, {0, rows, 0, 1, nullptr}}); }

// Exactly these parts, each in a thread of its own, whatever divide_loop would say.
void team(int64_t rows, int directions, int row_parts, int unit_parts, cpu::Work work, void* context) {
    std::deque<Barrier> barriers;
    vector<std::thread> threads;
    for (int group = 0; group < directions * row_parts; ++group) {
        barriers.emplace_back(unit_parts);
        const int part = group % row_parts;
        for (int unit = 0; unit < unit_parts; ++unit) {
            const Slice slice{rows * part / row_parts, rows * (part + 1) / row_parts, unit, unit_parts,
                              unit_parts > 1 ? &barriers.back() : nullptr};
            const int direction = directions > 1 ? group / row_parts : -1;
            threads.emplace_back([=] { work(context, {direction, slice}); });
        }
    }
    for (auto& thread : threads) thread.join();
}

using Body = void (*)(void*, int64_t, int64_t);

// `given` threads share n parts, contiguously, the caller among them; the others come `late_us` later. The caller gets the
// first exception.
void share_out(int64_t n, int64_t given, int late_us, Body body, void* context) {
    vector<std::thread> threads;
    vector<std::exception_ptr> thrown(size_t(given) + 1);
    const auto part = [&](int64_t k) {
        try {
            body(context, n * k / given, n * (k + 1) / given);
        } catch (...) {
            thrown[size_t(k)] = std::current_exception();
        }
    };
    for (int64_t k = 1; k < given; ++k)
        threads.emplace_back([=, &part] {
            if (late_us) std::this_thread::sleep_for(std::chrono::microseconds(late_us * k));
            part(k);
        });
    part(0);
    for (auto& thread : threads) thread.join();
    for (const auto& one : thrown)
        if (one) std::rethrow_exception(one);
}

const vector<cpu::Pool> pools = {
    {2, 2, [](int64_t n, Body body, void* context) { share_out(n, n, 0, body, context); }},
    {4, 4, [](int64_t n, Body body, void* context) { share_out(n, n, 0, body, context); }},
    // fewer threads than asked, so that some get several parts
    {4, 4, [](int64_t n, Body body, void* context) { share_out(n, n < 3 ? n : 3, 0, body, context); }},
    // a nested region: serial
    {4, 4, [](int64_t n, Body body, void* context) { body(context, 0, n); }},
    // late workers: some find the team closed
    {3, 3, [](int64_t n, Body body, void* context) { share_out(n, n, 1500, body, context); }},
    // others want the cores: one thread, but where none waits for another
    {1, 4, [](int64_t n, Body body, void* context) { share_out(n, n, 0, body, context); }},
    // the caller is late, and is not the first
    {3, 3,
     [](int64_t n, Body body, void* context) {
         std::async(std::launch::async, [=] { share_out(n, n, 0, body, context); }).get();
     }},
};
