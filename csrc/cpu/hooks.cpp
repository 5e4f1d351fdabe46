#include "hooks.h"

#include "dispatch.h"

namespace fused_rnn::hooks {

std::string isa() { return cpu::isa_name(); }
std::vector<std::string> isas() { return cpu::available_isas(); }
void force_isa(const std::string& name) { cpu::force_isa(name); }
cpu::Division divide_loop(const cpu::LoopSize& size, int64_t layers, int threads, int all) {
    cpu::LoopSize whole = size;
    if (layers > 1 && cpu::side_by_side_pays(size, layers, threads)) whole.layers = layers;
    return cpu::divide_loop(whole, cpu::threads_for(whole, {threads, all, nullptr}));
}
std::vector<int> threads_of(const std::vector<TeamRun>& runs) {
    cpu::Crowd crowd;
    std::vector<int> given;
    for (const TeamRun& run : runs) {
        given.push_back(crowd.threads(run.wanted, run.now_ns));
        if (given.back() > 1 || crowd.crowded())
            crowd.account(given.back(), run.duration_ns, run.spent, run.now_ns + run.duration_ns);
    }
    return given;
}
static thread_local bool threads_noted = false;
bool used_threads() { return threads_noted; }
void note_threads() { threads_noted = true; }
void sigmoid(const float* x, float* y, int64_t n) { cpu::kernels<float, float>().sigmoid(x, y, n); }
void sigmoid(const double* x, double* y, int64_t n) { cpu::kernels<double, double>().sigmoid(x, y, n); }
void narrow_sigmoid(const float* x, float* y, int64_t n) { cpu::kernels<float, bf16>().sigmoid(x, y, n); }
void narrow_tanh(const float* x, float* y, int64_t n) { cpu::kernels<float, bf16>().tanh(x, y, n); }
void tanh(const float* x, float* y, int64_t n) { cpu::kernels<float, float>().tanh(x, y, n); }
void tanh(const double* x, double* y, int64_t n) { cpu::kernels<double, double>().tanh(x, y, n); }

}  // namespace fused_rnn::hooks
